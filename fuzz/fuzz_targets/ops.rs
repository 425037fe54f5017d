//! A logged operation. What decodes must come back the same when it is encoded again.
#![no_main]

use bytes::Bytes;
use iris::core::op::LoggedOp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(logged) = LoggedOp::from_bytes(Bytes::copy_from_slice(data)) else {
        return;
    };
    let _ = logged.running_hash(7);
    if let Ok(op) = logged.decode() {
        let again = LoggedOp::encode(&op, logged.hlc());
        assert_eq!(again.decode(), Ok(op));
    }
});
