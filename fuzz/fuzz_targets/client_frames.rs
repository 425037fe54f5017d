//! A frame from a client: kind, then payload. What decodes must come back the same when it is encoded again.
#![no_main]

use bytes::{Bytes, BytesMut};
use iris::core::wire::ClientFrame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, payload)) = data.split_first() else {
        return;
    };
    if let Ok(frame) = ClientFrame::decode(*kind, Bytes::copy_from_slice(payload)) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let bytes = out.freeze();
        assert_eq!(ClientFrame::decode(bytes[5], bytes.slice(6..)), Ok(frame));
    }
});
