//! The logged operations: what a shard's log holds, ships between regions and replays.
//!
//! Encoded form, hashed and shipped verbatim: version u8, kind u8, HLC (u64 milliseconds, u32 logical), length of the
//! control part u32, the control part in MessagePack (array form), then the body as raw bytes. Integers are big-endian.
//! A region that does not know a kind keeps the bytes apart and stops that log visibly.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use super::holders::HoldersChange;
use super::ids::{Coord, DeviceId, MessageId, Origin, RegionId, Seq, SessionId, UserId};
use super::time::Hlc;
use super::vector::Vector;

/// Version of the encoding.
pub const OP_VERSION: u8 = 1;
/// Bytes before the control part.
pub const OP_HEADER: usize = 18;
/// Largest control part in bytes: a confirmation naming `MAX_ORIGINS` origins fits.
pub const MAX_CONTROL: usize = 256 * 1024;
/// Largest body in bytes that any configuration may allow.
pub const MAX_BODY: usize = 1024 * 1024;
/// Largest trace context in bytes (W3C `traceparent` has 55).
pub const MAX_TRACE: usize = 64;

/// Kinds of operations as encoded.
pub mod kind {
    /// First of each origin's log of a shard.
    pub const START: u8 = 1;
    /// A message.
    pub const APPEND: u8 = 2;
    /// A device consumed.
    pub const CURSOR: u8 = 3;
    /// Who must consume.
    pub const DEVICE: u8 = 4;
    /// What a holder has.
    pub const CONFIRM: u8 = 5;
    /// A user's settings; reserved.
    pub const SETTINGS: u8 = 6;
    /// A room's changes; reserved.
    pub const ROOM: u8 = 7;
    /// Who keeps the shard.
    pub const HOLDERS: u8 = 8;
}

/// Why bytes are not an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// Shorter than its header or the lengths in it.
    #[error("operation of {len} bytes is cut short")]
    Short {
        /// Bytes at hand.
        len: usize,
    },
    /// Encoded by a version that this build does not know.
    #[error("operation has format version {found}; this build knows {OP_VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// A kind that this build does not know: the log stops here until an upgrade.
    #[error("operation kind {0} is not known to this build: it needs an upgrade")]
    UnknownKind(u8),
    /// The control part or the body is longer than allowed.
    #[error("operation part of {len} bytes is over its limit of {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The control part does not decode.
    #[error("control part of operation kind {kind} does not decode: {reason}")]
    Malformed {
        /// The kind.
        kind: u8,
        /// What the decoder said.
        reason: String,
    },
}

/// What a message says about itself, beside its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Recipient.
    pub to: UserId,
    /// Sender, as authenticated.
    pub from: UserId,
    /// The sender's device.
    pub from_device: DeviceId,
    /// The sender's connect epoch.
    pub connect_epoch: u64,
    /// The sender's session.
    pub session: SessionId,
    /// The sender's sequence in that session, rising.
    pub session_seq: u64,
    /// Made by the sender.
    pub id: MessageId,
    /// Application's kind of content.
    pub kind: u16,
    /// Unix milliseconds after which it need not be delivered; 0 = never.
    pub expires_ms: u64,
    /// Trace context, at most [`MAX_TRACE`] bytes.
    #[serde(with = "serde_bytes")]
    pub trace: Vec<u8>,
}

/// What happens to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChange {
    /// It must consume from now on, from this cursor (R17).
    Register {
        /// Grows when a device comes back after it expired.
        epoch: u32,
        /// What it has consumed already, at most what is applied here.
        cursor: Vector,
    },
    /// It need not consume any more, once this is stable and nobody vetoed it (R19).
    Expire {
        /// The epoch that expires.
        epoch: u32,
    },
    /// It is attached: an expiry of this epoch is void, whenever it comes, and the device goes on under the next epoch (R19).
    Veto {
        /// The epoch whose expiry is void.
        epoch: u32,
    },
}

/// A decoded operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// First of an origin's log of a shard (R1).
    Start {
        /// The region that the origin belongs to.
        region: RegionId,
        /// The origin before it and its last sequence, unless it is the first.
        previous: Option<Coord>,
    },
    /// A message.
    Append(Envelope, Bytes),
    /// A device consumed up to here.
    Cursor {
        /// Whose device.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// Merged by maximum.
        cursor: Vector,
    },
    /// Registration of devices.
    Device {
        /// Whose device.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// What happens to it.
        change: DeviceChange,
    },
    /// What a holder has applied and logged (R8).
    Confirm {
        /// The holder.
        holder: RegionId,
        /// What it has.
        applied: Vector,
        /// Old origins that it still needs (R23).
        needed: Vec<Origin>,
        /// Retired origins that some holder lists, with their last sequences; `None` in what builds wrote that did not know
        /// of it: what these need nobody knows.
        retired: Option<Vec<Coord>>,
    },
    /// The set of holders changes (R13).
    Holders(HoldersChange),
}

/// The control part of a confirmation; its last field came later.
#[derive(Deserialize)]
struct Confirmed(
    RegionId,
    Vector,
    Vec<Origin>,
    #[serde(default)] Option<Vec<Coord>>,
);

/// An entry of a log as a commit has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    /// The operation.
    Op(LoggedOp),
    /// Of a message that left memory, all but what only its recipient needs: it is not read again to be trimmed. Boxed, so that
    /// the many that are in memory take no more room for it.
    Message(Box<MessageHead>),
}

/// What a log needs of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageHead {
    /// To whom.
    pub to: UserId,
    /// When its region logged it.
    pub hlc: Hlc,
    /// Length of the encoding in bytes.
    pub len: u32,
}

impl LogItem {
    /// The kind, see [`kind`].
    pub fn kind(&self) -> u8 {
        match self {
            LogItem::Op(op) => op.kind(),
            LogItem::Message(_) => kind::APPEND,
        }
    }

    /// When its region logged it.
    pub fn hlc(&self) -> Hlc {
        match self {
            LogItem::Op(op) => op.hlc(),
            LogItem::Message(head) => head.hlc,
        }
    }

    /// Length of the operation's encoding in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an operation is never empty")]
    pub fn len(&self) -> usize {
        match self {
            LogItem::Op(op) => op.len(),
            LogItem::Message(head) => head.len as usize,
        }
    }

    /// To whom a message is; `None` of other operations.
    pub fn recipient(&self) -> Option<&str> {
        match self {
            LogItem::Op(op) => op.recipient(),
            LogItem::Message(head) => Some(head.to.as_str()),
        }
    }

    /// The operation, if it is here.
    pub fn op(&self) -> Option<&LoggedOp> {
        match self {
            LogItem::Op(op) => Some(op),
            LogItem::Message(_) => None,
        }
    }
}

/// An encoded operation with a checked header; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct LoggedOp(Bytes);

impl LoggedOp {
    /// Encodes an operation.
    pub fn encode(op: &Op, hlc: Hlc) -> LoggedOp {
        let no_body = Bytes::new();
        let (kind, control, body) = match op {
            Op::Start { region, previous } => (kind::START, pack(&(region, previous)), &no_body),
            Op::Append(envelope, body) => (kind::APPEND, pack(envelope), body),
            Op::Cursor { user, device, cursor } => (kind::CURSOR, pack(&(user, device, cursor)), &no_body),
            Op::Device { user, device, change } => (kind::DEVICE, pack(&(user, device, change)), &no_body),
            Op::Confirm {
                holder,
                applied,
                needed,
                retired,
            } => {
                let control = match retired {
                    None => pack(&(holder, applied, needed)),
                    Some(retired) => pack(&(holder, applied, needed, retired)),
                };
                (kind::CONFIRM, control, &no_body)
            }
            Op::Holders(change) => (kind::HOLDERS, pack(change), &no_body),
        };
        let mut out = BytesMut::with_capacity(OP_HEADER + control.len() + body.len());
        out.put_u8(OP_VERSION);
        out.put_u8(kind);
        out.put_u64(hlc.ms);
        out.put_u32(hlc.logical);
        out.put_u32(control.len() as u32);
        out.put_slice(&control);
        out.put_slice(body);
        LoggedOp(out.freeze())
    }

    /// Checks the header of encoded bytes and the lengths in it.
    ///
    /// # Errors
    /// [`OpError`]; an unknown kind passes here and is refused by [`LoggedOp::decode`].
    pub fn from_bytes(bytes: Bytes) -> Result<LoggedOp, OpError> {
        if bytes.len() < OP_HEADER {
            return Err(OpError::Short { len: bytes.len() });
        }
        if bytes[0] != OP_VERSION {
            return Err(OpError::Version { found: bytes[0] });
        }
        let op = LoggedOp(bytes);
        let control = op.control_len();
        if control > MAX_CONTROL {
            return Err(OpError::TooLong {
                len: control,
                max: MAX_CONTROL,
            });
        }
        let Some(body) = op.0.len().checked_sub(OP_HEADER + control) else {
            return Err(OpError::Short { len: op.0.len() });
        };
        if body > MAX_BODY {
            return Err(OpError::TooLong {
                len: body,
                max: MAX_BODY,
            });
        }
        Ok(op)
    }

    /// The whole encoding.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Length of the encoding in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an operation is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The kind, see [`kind`].
    pub fn kind(&self) -> u8 {
        self.0[1]
    }

    /// When its region logged it.
    pub fn hlc(&self) -> Hlc {
        let ms = u64::from_be_bytes(self.0[2..10].try_into().expect("8 bytes"));
        let logical = u32::from_be_bytes(self.0[10..14].try_into().expect("4 bytes"));
        Hlc { ms, logical }
    }

    /// The control part, MessagePack.
    pub fn control(&self) -> &[u8] {
        &self.0[OP_HEADER..OP_HEADER + self.control_len()]
    }

    /// The body; empty for all but messages.
    pub fn body(&self) -> Bytes {
        self.0.slice(OP_HEADER + self.control_len()..)
    }

    /// Decodes the control part.
    ///
    /// # Errors
    /// [`OpError::UnknownKind`] or [`OpError::Malformed`].
    pub fn decode(&self) -> Result<Op, OpError> {
        Ok(match self.kind() {
            kind::START => {
                let (region, previous) = self.unpack()?;
                Op::Start { region, previous }
            }
            kind::APPEND => Op::Append(self.envelope()?, self.body()),
            kind::CURSOR => {
                let (user, device, cursor) = self.unpack()?;
                Op::Cursor { user, device, cursor }
            }
            kind::DEVICE => {
                let (user, device, change) = self.unpack()?;
                Op::Device { user, device, change }
            }
            kind::CONFIRM => {
                let Confirmed(holder, applied, needed, retired) = self.unpack()?;
                Op::Confirm {
                    holder,
                    applied,
                    needed,
                    retired,
                }
            }
            kind::HOLDERS => Op::Holders(self.unpack()?),
            other => return Err(OpError::UnknownKind(other)),
        })
    }

    /// The envelope of a message.
    ///
    /// # Errors
    /// [`OpError`] where this is no message or does not decode.
    pub fn envelope(&self) -> Result<Envelope, OpError> {
        if self.kind() != kind::APPEND {
            return Err(OpError::UnknownKind(self.kind()));
        }
        let envelope: Envelope = self.unpack()?;
        if envelope.trace.len() > MAX_TRACE {
            return Err(OpError::TooLong {
                len: envelope.trace.len(),
                max: MAX_TRACE,
            });
        }
        Ok(envelope)
    }

    /// The recipient of a message, read without decoding the rest: the first field of the envelope.
    pub fn recipient(&self) -> Option<&str> {
        if self.kind() != kind::APPEND {
            return None;
        }
        let control = self.control();
        // MessagePack: a short array, then a string of up to 31 or up to 255 bytes.
        let (len, at) = match *control.get(1)? {
            short @ 0xa0..=0xbf => (usize::from(short & 0x1f), 2),
            0xd9 => (usize::from(*control.get(2)?), 3),
            _ => return None,
        };
        std::str::from_utf8(control.get(at..at + len)?).ok()
    }

    /// What a log needs of a message without its body; `None` of other operations.
    pub fn message_head(&self) -> Option<MessageHead> {
        Some(MessageHead {
            to: UserId::new(self.recipient()?).ok()?,
            hlc: self.hlc(),
            len: u32::try_from(self.len()).ok()?,
        })
    }

    /// When a message's time to live ends, unix milliseconds, read without decoding the rest; 0 = never, or no message.
    pub fn expires_ms(&self) -> u64 {
        if self.kind() != kind::APPEND {
            return 0;
        }
        // The ninth of the envelope's fields; a short array has one byte before the first.
        let mut rest = self.control().get(1..);
        for _ in 0..8 {
            rest = rest.and_then(skip);
        }
        rest.and_then(number).unwrap_or(0)
    }

    /// The running hash after this operation, from the one before it: xxh3-64 seeded with it (R3).
    pub fn running_hash(&self, before: u64) -> u64 {
        xxh3_64_with_seed(&self.0, before)
    }

    fn control_len(&self) -> usize {
        u32::from_be_bytes(self.0[14..18].try_into().expect("4 bytes")) as usize
    }

    fn unpack<'de, T: Deserialize<'de>>(&'de self) -> Result<T, OpError> {
        rmp_serde::from_slice(self.control()).map_err(|e| OpError::Malformed {
            kind: self.kind(),
            reason: e.to_string(),
        })
    }
}

impl TryFrom<Bytes> for LoggedOp {
    type Error = OpError;
    fn try_from(bytes: Bytes) -> Result<Self, OpError> {
        Self::from_bytes(bytes)
    }
}

impl From<LoggedOp> for Bytes {
    fn from(op: LoggedOp) -> Bytes {
        op.0
    }
}

/// Digest of a message for dedup: xxh3-128 over its content kind and body (R16).
pub fn digest(content_kind: u16, body: &[u8]) -> u128 {
    xxh3_128(body) ^ (u128::from(content_kind) << 64 | u128::from(content_kind).wrapping_mul(0x9e37_79b9))
}

/// An operation as it stands in a log: the feed that delivery and shipping read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its sequence.
    pub seq: Seq,
    /// The running hash after it.
    pub hash: u64,
    /// The operation.
    pub op: LoggedOp,
}

/// What follows a MessagePack value, of the kinds that envelopes hold: numbers, texts, bytes.
fn skip(raw: &[u8]) -> Option<&[u8]> {
    let (first, rest) = raw.split_first()?;
    let (len, rest) = match *first {
        0x00..=0x7f => (0, rest),
        short @ 0xa0..=0xbf => (usize::from(short & 0x1f), rest),
        0xc4 | 0xd9 => (usize::from(*rest.first()?), &rest[1..]),
        0xc5 | 0xda => (
            usize::from(u16::from_be_bytes(*rest.first_chunk()?)),
            rest.get(2..)?,
        ),
        0xcc => (1, rest),
        0xcd => (2, rest),
        0xce => (4, rest),
        0xcf => (8, rest),
        _ => return None,
    };
    rest.get(len..)
}

/// A MessagePack number that is not negative.
fn number(raw: &[u8]) -> Option<u64> {
    let (first, rest) = raw.split_first()?;
    Some(match *first {
        small @ 0x00..=0x7f => small.into(),
        0xcc => (*rest.first()?).into(),
        0xcd => u16::from_be_bytes(*rest.first_chunk()?).into(),
        0xce => u32::from_be_bytes(*rest.first_chunk()?).into(),
        0xcf => u64::from_be_bytes(*rest.first_chunk()?),
        _ => return None,
    })
}

fn pack<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("plain data in memory always encodes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope() -> Envelope {
        Envelope {
            to: UserId::new("bob").unwrap(),
            from: UserId::new("alice").unwrap(),
            from_device: DeviceId::new("phone").unwrap(),
            connect_epoch: 3,
            session: SessionId(7),
            session_seq: 9,
            id: MessageId::v7(1_700_000_000_000, [1; 10]),
            kind: 1,
            expires_ms: 0,
            trace: Vec::new(),
        }
    }

    #[test]
    fn each_kind_round_trips() {
        let user = UserId::new("bob").unwrap();
        let device = DeviceId::new("phone").unwrap();
        let cursor: Vector = [(Origin(1), 4), (Origin(9), 2)].into_iter().collect();
        let region = RegionId::new("eu-west").unwrap();
        let ops = [
            Op::Start {
                region: region.clone(),
                previous: Some(Coord {
                    origin: Origin(4),
                    seq: 8,
                }),
            },
            Op::Append(envelope(), Bytes::from_static(b"hello")),
            Op::Cursor {
                user: user.clone(),
                device: device.clone(),
                cursor: cursor.clone(),
            },
            Op::Device {
                user,
                device,
                change: DeviceChange::Register {
                    epoch: 1,
                    cursor: cursor.clone(),
                },
            },
            Op::Confirm {
                holder: region.clone(),
                applied: cursor.clone(),
                needed: vec![Origin(1)],
                retired: None,
            },
            Op::Confirm {
                holder: region,
                applied: cursor,
                needed: vec![Origin(1)],
                retired: Some(vec![Coord {
                    origin: Origin(3),
                    seq: 8,
                }]),
            },
            Op::Holders(HoldersChange {
                version: 3,
                set: [RegionId::new("eu-west").unwrap()].into(),
                gone: [RegionId::new("us-east").unwrap()].into(),
            }),
        ];
        let hlc = Hlc { ms: 12, logical: 3 };
        for op in ops {
            let encoded = LoggedOp::encode(&op, hlc);
            let again = LoggedOp::from_bytes(encoded.bytes().clone()).unwrap();
            assert_eq!(again.hlc(), hlc);
            assert_eq!(again.decode(), Ok(op));
        }
    }

    #[test]
    fn the_recipient_is_read_without_decoding() {
        for to in ["b".to_owned(), "b".repeat(31), "b".repeat(32), "b".repeat(255)] {
            let envelope = Envelope {
                to: UserId::new(&to).unwrap(),
                ..envelope()
            };
            let op = LoggedOp::encode(&Op::Append(envelope, Bytes::new()), Hlc::default());
            assert_eq!(op.recipient(), Some(to.as_str()));
        }
    }

    #[test]
    fn the_expiry_is_read_without_decoding() {
        for expires_ms in [0, 1, 127, 128, 300, 70_000, 1_700_000_000_000, u64::MAX] {
            for (session_seq, trace) in [(0, 0), (200, 64), (u64::MAX, 1)] {
                let envelope = Envelope {
                    from: UserId::new(&"a".repeat(200)).unwrap(),
                    session: SessionId(u64::MAX),
                    session_seq,
                    kind: 65_535,
                    expires_ms,
                    trace: vec![0xff; trace],
                    ..envelope()
                };
                let op = LoggedOp::encode(&Op::Append(envelope, Bytes::new()), Hlc::default());
                assert_eq!(op.expires_ms(), expires_ms);
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_kept_but_not_decoded() {
        let mut raw = LoggedOp::encode(&Op::Append(envelope(), Bytes::new()), Hlc::default())
            .bytes()
            .to_vec();
        raw[1] = 200;
        let op = LoggedOp::from_bytes(raw.into()).unwrap();
        assert_eq!(op.decode(), Err(OpError::UnknownKind(200)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let _ = LoggedOp::from_bytes(raw.clone().into()).map(|op| (op.decode(), op.expires_ms()));
            let mut good = LoggedOp::encode(&Op::Append(envelope(), raw.into()), Hlc::default()).bytes().to_vec();
            good.truncate(cut);
            let _ = LoggedOp::from_bytes(good.into()).map(|op| (op.decode(), op.expires_ms()));
        }
    }
}
