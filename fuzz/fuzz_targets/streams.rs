//! A client's stream in chunks, as a server reads it: the first byte says how long chunks are.
#![no_main]

use bytes::Bytes;
use iris::core::wire::ClientFrame;
use iris::net::frame::{FrameDecoder, LENGTH_BYTES};
use libfuzzer_sys::fuzz_target;

const MAX: u32 = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((len, stream)) = data.split_first() else {
        return;
    };
    let mut decoder = FrameDecoder::new(MAX);
    let mut frames = Vec::new();
    for chunk in stream.chunks(usize::from(*len) + 1) {
        let fine = decoder.push(Bytes::copy_from_slice(chunk), &mut frames).is_ok();
        assert!(decoder.buffered() < LENGTH_BYTES + MAX as usize);
        for frame in frames.drain(..) {
            let _ = ClientFrame::decode(frame.kind, frame.payload);
        }
        if !fine {
            return;
        }
    }
});
