//! Length-delimited frames over a byte stream.
//!
//! A frame is a big-endian `u32` length of what follows it, a version byte, a kind byte, and the payload. Kinds
//! and payloads belong to the protocols above. The decoder is fed the chunks that QUIC hands out: a payload that
//! lies in one chunk is a slice of it, only frames that span chunks are copied. A payload therefore keeps what was
//! received with it alive, which can be some sixty packets of many connections: what is to be kept for long should be copied.

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use crate::core::wire::WIRE_VERSION;

/// Bytes of the length field.
pub const LENGTH_BYTES: usize = 4;
/// Bytes before the payload: length, version, kind.
pub const HEADER_BYTES: usize = LENGTH_BYTES + 2;
/// The smallest length field: version and kind without a payload.
const MIN_LENGTH: u32 = 2;

/// Payloads of at least this size are passed on as they are by [`FrameBatch`]; copying a smaller one costs less
/// than carrying its own chunk.
const ZERO_COPY_BYTES: usize = 2048;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Version byte; the decoder lets only [`WIRE_VERSION`] pass.
    pub version: u8,
    /// Kind byte, given meaning by the protocol above.
    pub kind: u8,
    /// The rest.
    pub payload: Bytes,
}

impl Frame {
    /// A frame of the current version.
    pub fn new(kind: u8, payload: impl Into<Bytes>) -> Self {
        Self {
            version: WIRE_VERSION,
            kind,
            payload: payload.into(),
        }
    }

    /// Bytes on the wire.
    pub fn wire_len(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// The frame as one buffer.
    ///
    /// # Panics
    /// When the payload is 4 GiB or longer; [`FrameBatch`] refuses by a limit instead.
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::with_capacity(self.wire_len());
        put_frame(&mut buffer, self.kind, |out| out.put_slice(&self.payload));
        buffer.freeze()
    }
}

/// Why bytes are not frames, or a frame cannot be sent. After the first one a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is above the limit of this stream.
    #[error("frame of {len} bytes; at most {max} are allowed here")]
    TooLong {
        /// The length field (version, kind and payload).
        len: u64,
        /// The limit.
        max: u32,
    },
    /// The length field does not even cover version and kind.
    #[error("frame with a length field of {len}; at least 2 are needed for version and kind")]
    TooShort {
        /// The length field.
        len: u32,
    },
    /// A version that this side does not speak.
    #[error("frame of version {version}; this side speaks version {WIRE_VERSION}")]
    BadVersion {
        /// The version byte.
        version: u8,
    },
}

/// Splits a byte stream into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    max_len: u32,
    /// The beginning of a frame whose end has not come yet, its length field included. Grows only with bytes that
    /// were received, never ahead to an announced length.
    partial: BytesMut,
    failed: Option<FrameError>,
}

impl FrameDecoder {
    /// A decoder that accepts length fields up to `max_len` (version, kind and payload).
    pub fn new(max_len: u32) -> Self {
        Self {
            max_len,
            partial: BytesMut::new(),
            failed: None,
        }
    }

    /// Takes the next bytes of the stream and appends the frames that they complete to `out`.
    ///
    /// # Errors
    /// The first fault of the stream; frames before it are in `out`, and every later call repeats the error.
    pub fn push(&mut self, chunk: Bytes, out: &mut Vec<Frame>) -> Result<(), FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.split(chunk, out).inspect_err(|error| {
            self.failed = Some(*error);
            self.partial = BytesMut::new();
        })
    }

    /// The fault after which this stream cannot be read on.
    pub fn error(&self) -> Option<FrameError> {
        self.failed
    }

    /// Bytes held of a frame that is not complete.
    pub fn buffered(&self) -> usize {
        self.partial.len()
    }

    fn split(&mut self, mut chunk: Bytes, out: &mut Vec<Frame>) -> Result<(), FrameError> {
        if !self.partial.is_empty() && !self.complete_partial(&mut chunk, out)? {
            return Ok(());
        }
        loop {
            match self.frame_len(&chunk)? {
                Some(total) if chunk.len() >= total => out.push(to_frame(chunk.split_to(total))),
                _ => break,
            }
        }
        if !chunk.is_empty() {
            self.partial.extend_from_slice(&chunk);
        }
        Ok(())
    }

    /// Moves bytes from `chunk` to the partial frame; true when that frame is done and was put out.
    fn complete_partial(&mut self, chunk: &mut Bytes, out: &mut Vec<Frame>) -> Result<bool, FrameError> {
        if self.partial.len() < HEADER_BYTES {
            let missing = HEADER_BYTES - self.partial.len();
            self.partial
                .extend_from_slice(&chunk.split_to(missing.min(chunk.len())));
        }
        let Some(total) = self.frame_len(&self.partial)? else {
            return Ok(false);
        };
        let missing = total - self.partial.len();
        self.partial
            .extend_from_slice(&chunk.split_to(missing.min(chunk.len())));
        if self.partial.len() < total {
            return Ok(false);
        }
        // Leaves an empty buffer without capacity behind: an idle stream holds no memory.
        out.push(to_frame(std::mem::take(&mut self.partial).freeze()));
        Ok(true)
    }

    /// Total bytes of the frame at the start of `bytes`, judged as soon as its header is there.
    fn frame_len(&self, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some(field) = bytes.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*field);
        if len > self.max_len {
            return Err(FrameError::TooLong {
                len: len.into(),
                max: self.max_len,
            });
        }
        if len < MIN_LENGTH {
            return Err(FrameError::TooShort { len });
        }
        match bytes.get(LENGTH_BYTES) {
            None => Ok(None),
            Some(&version) if version != WIRE_VERSION => Err(FrameError::BadVersion { version }),
            Some(_) if bytes.len() < HEADER_BYTES => Ok(None),
            Some(_) => Ok(Some(LENGTH_BYTES + len as usize)),
        }
    }
}

/// `bytes` is one whole frame whose header was judged by [`FrameDecoder::frame_len`].
fn to_frame(mut bytes: Bytes) -> Frame {
    let (version, kind) = (bytes[LENGTH_BYTES], bytes[LENGTH_BYTES + 1]);
    bytes.advance(HEADER_BYTES);
    Frame {
        version,
        kind,
        payload: bytes,
    }
}

/// Appends one frame to `out`; `payload` writes its payload in place.
///
/// # Panics
/// When the payload is 4 GiB or longer: senders judge sizes by their limits long before.
pub fn put_frame(out: &mut BytesMut, kind: u8, payload: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(WIRE_VERSION);
    out.put_u8(kind);
    payload(out);
    let len = u32::try_from(out.len() - start - LENGTH_BYTES).expect("payloads are limited far below 4 GiB");
    out[start..start + LENGTH_BYTES].copy_from_slice(&len.to_be_bytes());
}

/// Collects frames for one write: small ones are packed into shared buffers, large payloads are passed on
/// without a copy.
#[derive(Debug)]
pub struct FrameBatch {
    max_len: u32,
    chunks: Vec<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl FrameBatch {
    /// A batch for a stream whose reader accepts length fields up to `max_len`.
    pub fn new(max_len: u32) -> Self {
        Self {
            max_len,
            chunks: Vec::new(),
            tail: BytesMut::new(),
            bytes: 0,
        }
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; the batch is unchanged then.
    pub fn push(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let len = frame.payload.len() as u64 + u64::from(MIN_LENGTH);
        if len > u64::from(self.max_len) {
            return Err(FrameError::TooLong {
                len,
                max: self.max_len,
            });
        }
        self.bytes += frame.wire_len();
        if frame.payload.len() < ZERO_COPY_BYTES {
            put_frame(&mut self.tail, frame.kind, |out| out.put_slice(&frame.payload));
            return Ok(());
        }
        self.tail.put_u32(len as u32);
        self.tail.put_u8(WIRE_VERSION);
        self.tail.put_u8(frame.kind);
        self.chunks.push(self.tail.split().freeze());
        self.chunks.push(frame.payload.clone());
        Ok(())
    }

    /// Bytes collected so far.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The chunks in order, for `write_all_chunks` or a send queue.
    pub fn finish(mut self) -> Vec<Bytes> {
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.freeze());
        }
        self.chunks
    }
}

/// Packs neighbouring small chunks into buffers of about `target` bytes. quinn keeps every chunk as a segment of
/// its send buffer and searches them one after the other: thousands of tiny ones cost far more than their copy.
pub(crate) fn coalesce(chunks: Vec<Bytes>, target: usize) -> Vec<Bytes> {
    if chunks.len() < 2 {
        return chunks;
    }
    let mut packed = Vec::new();
    let mut tail = BytesMut::new();
    let mut left: usize = chunks.iter().map(Bytes::len).sum();
    for chunk in chunks {
        if chunk.len() >= ZERO_COPY_BYTES {
            if !tail.is_empty() {
                packed.push(tail.split().freeze());
            }
            left -= chunk.len();
            packed.push(chunk);
            continue;
        }
        if tail.len() + chunk.len() > target && !tail.is_empty() {
            packed.push(tail.split().freeze());
        }
        if tail.is_empty() {
            tail = BytesMut::with_capacity(left.min(target));
        }
        left -= chunk.len();
        tail.extend_from_slice(&chunk);
    }
    if !tail.is_empty() {
        packed.push(tail.freeze());
    }
    packed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(max: u32, chunks: impl IntoIterator<Item = Bytes>) -> (Vec<Frame>, Result<(), FrameError>) {
        let mut decoder = FrameDecoder::new(max);
        let mut frames = Vec::new();
        for chunk in chunks {
            if let Err(error) = decoder.push(chunk, &mut frames) {
                return (frames, Err(error));
            }
        }
        (frames, Ok(()))
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let payload = prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..200),
            1 => prop::collection::vec(any::<u8>(), 2000..5000),
        ];
        prop::collection::vec(
            (any::<u8>(), payload).prop_map(|(kind, payload)| Frame::new(kind, payload)),
            0..20,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn frames_survive_any_split(frames in frames(), cuts in prop::collection::vec(1usize..700, 1..40)) {
            let mut batch = FrameBatch::new(1 << 20);
            for frame in &frames {
                batch.push(frame).unwrap();
            }
            let length = batch.len();
            let mut stream: BytesMut = batch.finish().iter().flat_map(|chunk| chunk.iter().copied()).collect();
            prop_assert_eq!(stream.len(), length);
            let mut chunks = Vec::new();
            for cut in cuts.iter().cycle() {
                if stream.is_empty() { break; }
                chunks.push(stream.split_to((*cut).min(stream.len())).freeze());
            }
            let (decoded, result) = decode(1 << 20, chunks);
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(decoded, frames);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_grow(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut decoder = FrameDecoder::new(500);
            let mut frames = Vec::new();
            for chunk in chunks {
                let _ = decoder.push(chunk.into(), &mut frames);
                prop_assert!(decoder.buffered() < LENGTH_BYTES + 500);
            }
        }

        #[test]
        fn packing_keeps_the_bytes(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..20)) {
            let before: Vec<u8> = chunks.concat();
            let packed = coalesce(chunks.into_iter().map(Bytes::from).collect(), 4096);
            prop_assert_eq!(before, packed.concat());
        }
    }

    #[test]
    fn the_wire_form_is_fixed() {
        assert_eq!(&Frame::new(7, &b"abc"[..]).encode()[..], b"\0\0\0\x05\x01\x07abc");
        assert_eq!(&Frame::new(9, Bytes::new()).encode()[..], b"\0\0\0\x02\x01\x09");
    }

    #[test]
    fn the_limit_is_exact_and_judged_from_the_header_alone() {
        let just = Frame::new(1, vec![0; 98]);
        let beyond = Frame::new(1, vec![0; 99]);
        assert_eq!(decode(100, [just.encode()]).0, vec![just.clone()]);
        let (before, result) = decode(100, [just.encode(), beyond.encode().slice(..LENGTH_BYTES)]);
        assert_eq!(before, vec![just]);
        assert_eq!(result, Err(FrameError::TooLong { len: 101, max: 100 }));
        assert!(FrameBatch::new(100).push(&beyond).is_err());
    }

    #[test]
    fn faults_are_typed_and_final() {
        let mut decoder = FrameDecoder::new(100);
        let mut frames = Vec::new();
        let error = decoder
            .push(Bytes::from_static(b"\0\0\0\x02\x02\x09"), &mut frames)
            .unwrap_err();
        assert_eq!(error, FrameError::BadVersion { version: 2 });
        assert_eq!(
            decoder.push(Frame::new(1, Bytes::new()).encode(), &mut frames),
            Err(error)
        );
        assert_eq!(
            decode(100, [Bytes::from_static(b"\0\0\0\x01")]).1,
            Err(FrameError::TooShort { len: 1 })
        );
        assert!(frames.is_empty());
    }

    #[test]
    fn a_payload_within_one_chunk_is_not_copied() {
        let chunk = Frame::new(1, vec![5; 50]).encode();
        let mut frames = Vec::new();
        FrameDecoder::new(100).push(chunk.clone(), &mut frames).unwrap();
        assert_eq!(frames[0].payload.as_ptr(), chunk[HEADER_BYTES..].as_ptr());
    }
}
