//! A frame from a server: kind, then payload. What decodes must come back the same when it is encoded again.
#![no_main]

use bytes::{Bytes, BytesMut};
use iris::core::wire::ServerFrame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, payload)) = data.split_first() else {
        return;
    };
    if let Ok(frame) = ServerFrame::decode(*kind, Bytes::copy_from_slice(payload)) {
        if let ServerFrame::Deliver { op, .. } = &frame {
            let _ = op.envelope();
        }
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let bytes = out.freeze();
        assert_eq!(ServerFrame::decode(bytes[5], bytes.slice(6..)), Ok(frame));
    }
});
