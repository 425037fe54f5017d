//! A message between nodes. What decodes must come back the same when it is encoded again.
#![no_main]

use bytes::Bytes;
use iris::core::msg::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(mut message) = Message::decode(&Bytes::copy_from_slice(data)) {
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Ok(message));
    }
});
