//! Rows as bytes: the layout of keys and the encoding of values.
//!
//! | key | value |
//! |---|---|
//! | `m` | who the store is ([`StoredIdentity`](super::opening::StoredIdentity)) |
//! | `s` shard | [`ShardRow`]: head, what is applied, what holders confirmed |
//! | `u` shard user | [`UserRow`]: devices, cursors, what was removed, siblings |
//! | `l` shard origin seq | running hash, then the operation, or of a message its recipient, time and length |
//! | `i` shard user origin seq | the operation of a message |
//! | `d` shard day id recipient sender | [`DedupRow`]: digests and coordinates |
//!
//! Where each day of dedup has a table of its own, records stand in blocks: `b` shard, time of the ids in units of
//! [`DEDUP_BLOCK_MS`], checkpoint, number, first id, last id. Of earlier builds there are single records, too: `d` id
//! recipient sender shard.
//!
//! Integers are big-endian, so that the order of keys is numeric; ids of variable length have their length (one byte)
//! before them. Each value begins with a format version. The bytes of a message are stored once: its log entry names
//! the recipient, which with shard, origin and sequence is the key of the inbox entry; that entry is removed only after
//! the log entry was trimmed (see `Work::remove` in [`core::commit`](crate::core::commit)).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::core::ids::{MessageId, Origin, Seq, ShardId, UserId};
use crate::core::op::{LoggedOp, MessageHead};
use crate::core::state::{DedupKey, DedupRow, ShardRow, UserRow};
use crate::core::time::Hlc;

/// Format version of every value.
pub const VALUE_VERSION: u8 = 1;

/// Why stored bytes are not what their key says. The store is damaged, or a newer build wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Written by a build that this one does not know.
    #[error(
        "{what} has format version {found}; this build knows {VALUE_VERSION}: use the build that wrote it"
    )]
    Version {
        /// Which row.
        what: &'static str,
        /// The version found.
        found: u8,
    },
    /// The bytes do not decode.
    #[error("{what} does not decode: {reason}")]
    Malformed {
        /// Which row.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A key that no layout has.
    #[error("{0} key does not decode")]
    Key(&'static str),
}

/// The key of the store's identity.
pub fn meta() -> Vec<u8> {
    vec![b'm']
}

/// The key of a shard's row.
pub fn shard(shard: ShardId) -> Vec<u8> {
    Writer::new(b's', 4).shard(shard).0
}

/// The key of a user's row.
pub fn user(shard: ShardId, user: &UserId) -> Vec<u8> {
    Writer::new(b'u', 5 + user.as_str().len())
        .shard(shard)
        .text(user)
        .0
}

/// The key of a log entry.
pub fn log(shard: ShardId, origin: Origin, seq: Seq) -> Vec<u8> {
    Writer::new(b'l', 20).shard(shard).number(origin.0).number(seq).0
}

/// The key of a message in an inbox.
pub fn inbox(shard: ShardId, user: &UserId, origin: Origin, seq: Seq) -> Vec<u8> {
    let writer = Writer::new(b'i', 21 + user.as_str().len());
    writer.shard(shard).text(user).number(origin.0).number(seq).0
}

/// The key of a dedup record; records of one day stand together, in the order of their ids, so of time.
pub fn dedup(shard: ShardId, key: &DedupKey) -> Vec<u8> {
    let len = 26 + key.recipient.as_str().len() + key.sender.as_str().len();
    let mut writer = Writer::new(b'd', len).shard(shard).day(key.day());
    writer.0.extend_from_slice(&key.id.0);
    writer.text(&key.recipient).text(&key.sender).0
}

/// The ids in a block of dedup records have times in one unit of so many milliseconds: a look for one id reads the
/// blocks of its unit. A day has a whole number of them.
pub const DEDUP_BLOCK_MS: u64 = 4_000;

/// The key of a block of dedup records: of one shard and one unit of time, by the commit that its checkpoint covers and
/// its number therein, so that a later one stands behind. The first and the last id say whether a look into it pays.
pub fn dedup_block(shard: ShardId, covered: u64, number: u32, first: MessageId, last: MessageId) -> Vec<u8> {
    let mut key = dedup_blocks_from(shard, first);
    key.extend_from_slice(&covered.to_be_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(&first.0);
    key.extend_from_slice(&last.0);
    key
}

/// No block of a shard with ids of the same unit of time as this one, or of a later one, stands before this.
pub fn dedup_blocks_from(shard: ShardId, id: MessageId) -> Vec<u8> {
    let unit = id.unix_ms().unwrap_or(0) / DEDUP_BLOCK_MS;
    Writer::new(b'b', 4 + 8 + 8 + 4 + 32).shard(shard).number(unit).0
}

/// No block of a shard with ids of the same unit of time as this one stands behind this; without an id, none at all.
pub fn dedup_blocks_to(shard: ShardId, id: Option<MessageId>) -> Vec<u8> {
    let unit = id.map_or(u64::MAX, |id| id.unix_ms().unwrap_or(0) / DEDUP_BLOCK_MS);
    let mut key = Writer::new(b'b', 4 + 8 + 8 + 4 + 32).shard(shard).number(unit).0;
    key.resize(1 + 4 + 8 + 8 + 4 + 32, u8::MAX);
    key
}

/// The first and the last id of a block.
///
/// # Errors
/// [`RowError::Key`].
pub fn dedup_block_ids(key: &[u8]) -> Result<(MessageId, MessageId), RowError> {
    match key.get(25..).map(<[u8]>::as_chunks::<16>) {
        Some(([first, last], [])) => Ok((MessageId(*first), MessageId(*last))),
        _ => Err(RowError::Key("dedup block")),
    }
}

/// The key of a single dedup record where each day has a table of its own, as earlier builds wrote them: by id first, so
/// by time.
pub fn dedup_in_day(shard: ShardId, key: &DedupKey) -> Vec<u8> {
    let len = 22 + key.recipient.as_str().len() + key.sender.as_str().len();
    let mut writer = Writer::new(b'd', len);
    writer.0.extend_from_slice(&key.id.0);
    writer.text(&key.recipient).text(&key.sender).shard(shard).0
}

/// The keys of a shard's dedup records of one UTC day: from the first (inclusive) to the second (exclusive).
pub fn dedup_day(shard: ShardId, day: u32) -> (Vec<u8>, Vec<u8>) {
    let from = Writer::new(b'd', 8).shard(shard).day(day).0;
    let to = successor(from.clone());
    (from, to)
}

/// The sequence at the end of a key of a log or inbox entry.
///
/// # Errors
/// [`RowError::Key`].
pub fn seq_of(key: &[u8]) -> Result<Seq, RowError> {
    let tail = key.last_chunk::<8>().ok_or(RowError::Key("log or inbox"))?;
    Ok(u64::from_be_bytes(*tail))
}

/// The origin before the sequence of a key of a log or inbox entry.
///
/// # Errors
/// [`RowError::Key`].
pub fn origin_of(key: &[u8]) -> Result<Origin, RowError> {
    let tail = key.last_chunk::<16>().and_then(|tail| tail.first_chunk::<8>());
    Ok(Origin(u64::from_be_bytes(
        *tail.ok_or(RowError::Key("log or inbox"))?,
    )))
}

/// The shard of any key but the identity's.
///
/// # Errors
/// [`RowError::Key`].
pub fn shard_of(key: &[u8]) -> Result<ShardId, RowError> {
    let at = key.get(1..5).and_then(|at| at.try_into().ok());
    Ok(ShardId(u32::from_be_bytes(at.ok_or(RowError::Key("shard"))?)))
}

/// What a dedup key names.
///
/// # Errors
/// [`RowError::Key`].
pub fn dedup_of(key: &[u8]) -> Result<(ShardId, DedupKey), RowError> {
    let bad = || RowError::Key("dedup");
    let id = key.get(9..25).and_then(|id| id.try_into().ok()).ok_or_else(bad)?;
    let (recipient, rest) = text_of(&key[25..]).ok_or_else(bad)?;
    let (sender, _) = text_of(rest).ok_or_else(bad)?;
    let key_of = DedupKey {
        id: MessageId(id),
        recipient,
        sender,
    };
    Ok((shard_of(key)?, key_of))
}

/// What a key of [`dedup_in_day`] names.
///
/// # Errors
/// [`RowError::Key`].
pub fn dedup_in_day_of(key: &[u8]) -> Result<(ShardId, DedupKey), RowError> {
    let bad = || RowError::Key("dedup");
    let id = key.get(1..17).and_then(|id| id.try_into().ok()).ok_or_else(bad)?;
    let (recipient, rest) = text_of(&key[17..]).ok_or_else(bad)?;
    let (sender, rest) = text_of(rest).ok_or_else(bad)?;
    let shard = rest.try_into().map_err(|_| bad())?;
    let key = DedupKey {
        id: MessageId(id),
        recipient,
        sender,
    };
    Ok((ShardId(u32::from_be_bytes(shard)), key))
}

/// The user of a key of [`user`].
///
/// # Errors
/// [`RowError::Key`].
pub fn user_of(key: &[u8]) -> Result<UserId, RowError> {
    let text = key.get(5..).and_then(text_of);
    text.map(|(user, _)| user).ok_or(RowError::Key("user"))
}

/// The keys of a shard's users, from the first to behind the last.
pub fn users(shard: ShardId) -> (Vec<u8>, Vec<u8>) {
    let from = Writer::new(b'u', 4).shard(shard).0;
    let to = successor(from.clone());
    (from, to)
}

fn text_of(bytes: &[u8]) -> Option<(UserId, &[u8])> {
    let (len, after) = bytes.split_first()?;
    let (text, after) = after.split_at_checked(usize::from(*len))?;
    Some((UserId::new(std::str::from_utf8(text).ok()?).ok()?, after))
}

/// The first key after all that begin with `prefix`.
pub fn successor(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < u8::MAX {
            prefix.push(last + 1);
            break;
        }
    }
    prefix
}

/// A value in MessagePack (array form) after its version.
pub fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    let mut out = vec![VALUE_VERSION];
    rmp_serde::encode::write(&mut out, row).expect("plain data in memory always encodes");
    out
}

/// Decodes what [`encode`] made; `what` names the row in errors.
///
/// # Errors
/// [`RowError`].
pub fn decode<'de, T: Deserialize<'de>>(what: &'static str, value: &'de [u8]) -> Result<T, RowError> {
    rmp_serde::from_slice(versioned(what, value)?).map_err(|e| RowError::Malformed {
        what,
        reason: e.to_string(),
    })
}

/// The value of an inbox entry.
pub fn encode_inbox(op: &LoggedOp) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + op.len());
    out.push(VALUE_VERSION);
    out.extend_from_slice(op.bytes());
    out
}

/// Decodes the value of an inbox entry, without copying it.
///
/// # Errors
/// [`RowError`].
pub fn decode_inbox(value: &Bytes) -> Result<LoggedOp, RowError> {
    versioned("inbox entry", value)?;
    operation("inbox entry", value.slice(1..))
}

/// A log entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogValue {
    /// The whole operation.
    Inline(LoggedOp),
    /// A message, to be found in the inbox of its recipient.
    Message(MessageHead),
    /// The same as earlier builds wrote it, without its length.
    Inbox(UserId),
}

/// The value of a log entry: running hash after it, then the operation or, of a message, its time, its length and the
/// recipient.
pub fn encode_log(hash: u64, value: &LogValue) -> Vec<u8> {
    let (tag, rest) = match value {
        LogValue::Inline(op) => (0, &op.bytes()[..]),
        LogValue::Inbox(user) => (1, user.as_str().as_bytes()),
        LogValue::Message(head) => (2, head.to.as_str().as_bytes()),
    };
    let mut out = Vec::with_capacity(10 + HEAD_BYTES + rest.len());
    out.push(VALUE_VERSION);
    out.push(tag);
    out.extend_from_slice(&hash.to_be_bytes());
    if let LogValue::Message(head) = value {
        out.extend_from_slice(&head.hlc.ms.to_be_bytes());
        out.extend_from_slice(&head.hlc.logical.to_be_bytes());
        out.extend_from_slice(&head.len.to_be_bytes());
    }
    out.extend_from_slice(rest);
    out
}

/// Decodes the value of a log entry.
///
/// # Errors
/// [`RowError`].
pub fn decode_log(value: &Bytes) -> Result<(u64, LogValue), RowError> {
    let what = "log entry";
    let malformed = |reason: String| RowError::Malformed { what, reason };
    let rest = versioned(what, value)?;
    let (Some(tag), Some(hash)) = (rest.first(), rest.get(1..9)) else {
        return Err(malformed(format!("{} bytes", value.len())));
    };
    let hash = u64::from_be_bytes(hash.try_into().expect("8 bytes"));
    let value = match tag {
        0 => LogValue::Inline(operation(what, value.slice(10..))?),
        1 => LogValue::Inbox(recipient(&rest[9..]).map_err(malformed)?),
        2 => {
            let Some((head, to)) = rest[9..].split_first_chunk::<HEAD_BYTES>() else {
                return Err(malformed(format!("{} bytes", value.len())));
            };
            let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes"));
            LogValue::Message(MessageHead {
                to: recipient(to).map_err(malformed)?,
                hlc: Hlc {
                    ms: u64::from(number(0)) << 32 | u64::from(number(4)),
                    logical: number(8),
                },
                len: number(12),
            })
        }
        other => return Err(malformed(format!("tag {other}"))),
    };
    Ok((hash, value))
}

/// Bytes of a message's time and length in its log entry.
const HEAD_BYTES: usize = 16;

fn recipient(bytes: &[u8]) -> Result<UserId, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    UserId::new(text).map_err(|e| e.to_string())
}

/// What the rows of a kind are called in errors.
pub trait Row: Serialize + for<'de> Deserialize<'de> {
    /// The name.
    const WHAT: &'static str;
}

impl Row for ShardRow {
    const WHAT: &'static str = "shard row";
}

impl Row for UserRow {
    const WHAT: &'static str = "user row";
}

impl Row for DedupRow {
    const WHAT: &'static str = "dedup row";
}

/// Decodes a row.
///
/// # Errors
/// [`RowError`].
pub fn decode_row<T: Row>(value: &[u8]) -> Result<T, RowError> {
    decode(T::WHAT, value)
}

fn versioned<'a>(what: &'static str, value: &'a [u8]) -> Result<&'a [u8], RowError> {
    match value.split_first() {
        Some((&VALUE_VERSION, rest)) => Ok(rest),
        Some((&found, _)) => Err(RowError::Version { what, found }),
        None => Err(RowError::Malformed {
            what,
            reason: "empty".to_owned(),
        }),
    }
}

fn operation(what: &'static str, bytes: Bytes) -> Result<LoggedOp, RowError> {
    LoggedOp::from_bytes(bytes).map_err(|e| RowError::Malformed {
        what,
        reason: e.to_string(),
    })
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(tag: u8, len: usize) -> Self {
        let mut out = Vec::with_capacity(1 + len);
        out.push(tag);
        Self(out)
    }

    fn shard(mut self, shard: ShardId) -> Self {
        self.0.extend_from_slice(&shard.0.to_be_bytes());
        self
    }

    fn day(mut self, day: u32) -> Self {
        self.0.extend_from_slice(&day.to_be_bytes());
        self
    }

    fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn text(mut self, user: &UserId) -> Self {
        let text = user.as_str().as_bytes();
        self.0.push(text.len() as u8); // at most 255 by UserId
        self.0.extend_from_slice(text);
        self
    }
}

#[cfg(test)]
mod tests;
