//! Calls and answers as frames: a big-endian `u32` length of what follows, a version byte, JSON.
//!
//! JSON, because what is asked here is asked by people and seldom, and may be looked at with any tool. Both sides skip fields
//! that they do not know; a kind of call that a node does not know is answered with [`ErrorCode::UnknownRequest`].

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::data::Reply;
use super::request::Call;

/// Version of the frames.
pub const ADMIN_VERSION: u8 = 1;
/// Longest call in bytes.
pub const MAX_CALL: u32 = 64 * 1024;
/// Longest answer in bytes: pages of a thousand items are a tenth of it.
pub const MAX_ANSWER: u32 = 16 * 1024 * 1024;

/// Why a call was not done. Nothing was changed then, unless the code says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{detail}")]
pub struct AdminError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was found and what to do.
    pub detail: String,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// No call of any kind.
    Malformed,
    /// A kind of call that this build does not know.
    UnknownRequest,
    /// The caller may not ask that.
    Forbidden,
    /// What the call names is not there.
    NotFound,
    /// This build cannot do it.
    Unsupported,
    /// Another node must be asked.
    WrongNode,
    /// It would do harm as things are.
    Refused,
    /// It took too long; a change may have been made.
    Late,
    /// The node is too busy, or stops.
    Unavailable,
    /// A code that this build does not know.
    #[serde(other)]
    Other,
}

impl AdminError {
    /// An error.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }
}

/// An answer.
pub type Answer = Result<Reply, AdminError>;

/// As it travels.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answered {
    Ok(Reply),
    Error(AdminError),
}

/// A frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Longer than allowed.
    #[error("a frame of {len} bytes; at most {max} are allowed here")]
    TooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u32,
    },
    /// Another version.
    #[error("a frame of version {0}; this side speaks version {ADMIN_VERSION}")]
    Version(u8),
    /// An answer that cannot be read.
    #[error("an answer that cannot be read here: {0}")]
    Answer(String),
}

/// Encodes a call.
pub fn encode_call(call: &Call) -> Vec<u8> {
    serde_json::to_vec(call).expect("calls have no maps with keys other than texts")
}

/// Decodes a call.
///
/// # Errors
/// [`ErrorCode::UnknownRequest`], [`ErrorCode::Malformed`].
pub fn decode_call(bytes: &[u8]) -> Result<Call, AdminError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = error.to_string();
        // Groups of calls and kinds in them are variants of enums.
        if detail.starts_with("unknown variant") {
            let detail =
                format!("this node does not know that request ({detail}): it may be of an earlier version");
            AdminError::new(ErrorCode::UnknownRequest, detail)
        } else {
            AdminError::new(ErrorCode::Malformed, format!("this is no request: {detail}"))
        }
    })
}

/// Encodes an answer; one that is too long becomes an error.
pub fn encode_answer(answer: Answer) -> Vec<u8> {
    let encode = |answer: Answer| {
        let answered = match answer {
            Ok(reply) => Answered::Ok(reply),
            Err(error) => Answered::Error(error),
        };
        serde_json::to_vec(&answered).expect("answers have no maps with keys other than texts")
    };
    let bytes = encode(answer);
    if bytes.len() < MAX_ANSWER as usize {
        return bytes;
    }
    let detail = format!(
        "the answer has {} bytes; at most {MAX_ANSWER} are sent: ask for less",
        bytes.len()
    );
    encode(Err(AdminError::new(ErrorCode::Unavailable, detail)))
}

/// Decodes an answer.
///
/// # Errors
/// [`FrameError::Answer`].
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, FrameError> {
    match decode::<Answered>(bytes)? {
        Answered::Ok(reply) => Ok(Ok(reply)),
        Answered::Error(error) => Ok(Err(error)),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(bytes).map_err(|error| FrameError::Answer(error.to_string()))
}

/// Writes a frame.
///
/// # Errors
/// [`FrameError::Io`].
pub async fn write_frame<W: AsyncWrite + Unpin>(to: &mut W, payload: &[u8]) -> Result<(), FrameError> {
    let len = u32::try_from(payload.len() + 1).map_err(|_| FrameError::TooLong {
        len: payload.len() as u64,
        max: u32::MAX,
    })?;
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.extend_from_slice(&len.to_be_bytes());
    frame.push(ADMIN_VERSION);
    frame.extend_from_slice(payload);
    to.write_all(&frame).await?;
    to.flush().await?;
    Ok(())
}

/// Reads a frame of at most `max` bytes; `None` where the other side ended before one began. Memory is taken as bytes come.
///
/// # Errors
/// [`FrameError`].
pub async fn read_frame<R: AsyncRead + Unpin>(from: &mut R, max: u32) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0; 4];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    let len = u32::from_be_bytes(length);
    if len == 0 || len > max {
        return Err(FrameError::TooLong { len: len.into(), max });
    }
    let version = from.read_u8().await?;
    if version != ADMIN_VERSION {
        return Err(FrameError::Version(version));
    }
    let mut payload = Vec::new();
    let read = from.take(u64::from(len - 1)).read_to_end(&mut payload).await?;
    if read as u64 != u64::from(len - 1) {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::admin::request::{Change, Part, Request};
    use crate::server::faults::Fault;

    #[test]
    fn calls_keep_their_form() {
        let of = |call: &Call| String::from_utf8(encode_call(call)).unwrap();
        assert_eq!(
            of(&Call::Cluster(Request::ClusterStatus)),
            r#"{"cluster":{"kind":"cluster-status"}}"#
        );
        let part = Call::Node(Part::Shard { shard: 7 });
        assert_eq!(of(&part), r#"{"node":{"kind":"shard","shard":7}}"#);
        let change = Call::Change(Change::RegionRemove {
            region: "eu-west".parse().unwrap(),
            force: false,
        });
        assert_eq!(
            of(&change),
            r#"{"change":{"kind":"region-remove","region":"eu-west","force":false}}"#
        );
        let inject = Call::Change(Change::FaultInject {
            node: "a".parse().unwrap(),
            fault: Fault::StoreSlow { ms: 5 },
            lasts_ms: Some(100),
        });
        assert_eq!(
            of(&inject),
            r#"{"change":{"kind":"fault-inject","node":"a","fault":{"kind":"store-slow","ms":5},"lasts_ms":100}}"#
        );
        for call in [part, change, inject] {
            assert_eq!(decode_call(&encode_call(&call)), Ok(call));
        }
        // What came later has defaults, and what is not known is skipped.
        let call = br#"{"cluster":{"kind":"link-list","new":1}}"#;
        assert_eq!(
            decode_call(call),
            Ok(Call::Cluster(Request::LinkList { region: None }))
        );
    }

    #[test]
    fn a_kind_that_is_not_known_is_told_apart_from_nonsense() {
        let code = |bytes: &[u8]| decode_call(bytes).map_err(|error| error.code);
        for later in [
            r#"{"cluster":{"kind":"room-list"}}"#,
            r#"{"watch":{"kind":"all"}}"#,
            r#"{"change":{"kind":"fault-inject","node":"a","fault":{"kind":"flood"}}}"#,
        ] {
            assert_eq!(code(later.as_bytes()), Err(ErrorCode::UnknownRequest), "{later}");
        }
        for bad in [
            "",
            "{}",
            "[1]",
            r#"{"cluster":{}}"#,
            r#"{"node":{"kind":"shard"}}"#,
        ] {
            assert_eq!(code(bad.as_bytes()), Err(ErrorCode::Malformed), "{bad}");
        }
    }

    #[tokio::test]
    async fn frames_hold_their_limits() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, b"hello").await.unwrap();
        assert_eq!(bytes, b"\0\0\0\x06\x01hello");
        assert_eq!(
            read_frame(&mut &bytes[..], 6).await.unwrap().as_deref(),
            Some(&b"hello"[..])
        );
        assert!(matches!(
            read_frame(&mut &bytes[..], 5).await,
            Err(FrameError::TooLong { len: 6, max: 5 })
        ));
        assert!(matches!(
            read_frame(&mut &bytes[..8], 6).await,
            Err(FrameError::Io(_))
        ));
        assert!(read_frame(&mut &b""[..], 6).await.unwrap().is_none());
        bytes[4] = 9;
        assert!(matches!(
            read_frame(&mut &bytes[..], 6).await,
            Err(FrameError::Version(9))
        ));
    }

    #[test]
    fn an_answer_that_is_too_long_is_an_error() {
        let text = "x".repeat(MAX_ANSWER as usize);
        let answer = Ok(Reply::Changed(crate::admin::data::Changed { text }));
        let back = decode_answer(&encode_answer(answer)).unwrap();
        assert_eq!(back.unwrap_err().code, ErrorCode::Unavailable);
    }

    #[test]
    fn a_code_of_a_later_version_is_an_error_all_the_same() {
        let back = decode_answer(br#"{"error":{"code":"too-early","detail":"wait"}}"#).unwrap();
        assert_eq!(back, Err(AdminError::new(ErrorCode::Other, "wait")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_call(&bytes);
            let _ = decode_answer(&bytes);
        }
    }
}
