//! Status, version and value of a presence record, and how records travel.
//!
//! A record on the wire is an array of five: user, device, connect epoch, session, and an array of counter, proof and value.
//! The end of a session has nil for the last and nothing beside it, so equal terminal versions always have equal values.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MAX_CONNECT_EPOCH, MAX_DELTA_BYTES, MAX_DELTA_RECORDS, MAX_ENTRY_BYTES};
use crate::core::ids::{DeviceId, Generation, NodeKey, RegionId, SessionId, UserId};
use crate::core::wire::{MAX_STATUS_TEXT, Status};

/// Why something is not a presence record or delta.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// A status text beyond its limit.
    #[error("status text is {len} bytes long; expected at most {MAX_STATUS_TEXT}")]
    TextLength {
        /// Its length in bytes.
        len: usize,
    },
    /// A status text with a character that could garble a terminal or a log.
    #[error("status text holds the control character {found:?}; expected printable UTF-8")]
    TextCharacter {
        /// The first such character.
        found: char,
    },
    /// A connect epoch out of range.
    #[error("connect epoch {found} of a presence record is out of range; expected 1 to {MAX_CONNECT_EPOCH}")]
    ConnectEpoch {
        /// The epoch.
        found: u64,
    },
    /// A record or delta that is too long.
    #[error("{what} is {len} bytes long; expected at most {max}")]
    Length {
        /// Which.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A record or delta that does not decode.
    #[error("{what} does not decode: {reason}")]
    Malformed {
        /// Which.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
}

/// A line that goes with a status: at most [`MAX_STATUS_TEXT`] bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StatusText(Box<str>);

impl StatusText {
    /// Checks and makes one.
    ///
    /// # Errors
    /// [`PresenceError::TextLength`], [`PresenceError::TextCharacter`].
    pub fn new(text: &str) -> Result<Self, PresenceError> {
        if text.len() > MAX_STATUS_TEXT {
            return Err(PresenceError::TextLength { len: text.len() });
        }
        match text.chars().find(|c| c.is_control()) {
            Some(found) => Err(PresenceError::TextCharacter { found }),
            None => Ok(Self(text.into())),
        }
    }

    /// Makes one of any text: control characters become spaces, and what is beyond the limit is cut.
    pub fn lossy(text: &str) -> Self {
        let mut kept = String::new();
        for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if kept.len() + c.len_utf8() > MAX_STATUS_TEXT {
                break;
            }
            kept.push(c);
        }
        Self(kept.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StatusText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for StatusText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StatusText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = StatusText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status text")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StatusText, E> {
                StatusText::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// How far a session has come. `Ended` is the greatest: it beats each counter of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Live.
    Live {
        /// Kept by the session's edge; grows with each change.
        counter: u64,
        /// Whether the connect epoch was taken after the client answered a probe: tells a rival that it is alive. It is
        /// part of the version and not of the value because only the owner knows it: another owner that is given the
        /// session again, and does not know, must not write another value under the same version.
        proved: bool,
    },
    /// Over for good.
    Ended,
}

impl Default for Stage {
    fn default() -> Self {
        Stage::Live {
            counter: 0,
            proved: false,
        }
    }
}

/// Version of a record: the total order (connect epoch, session, terminal, counter, proved), without a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Grows with each connect of the device; 0 only where nothing is known.
    pub connect_epoch: u64,
    /// Orders sessions that were given the same epoch in regions that did not know of each other.
    pub session: SessionId,
    /// Live with a counter, or ended.
    pub stage: Stage,
}

impl Version {
    /// Of a live session.
    pub fn live(connect_epoch: u64, session: SessionId, counter: u64, proved: bool) -> Self {
        Self {
            connect_epoch,
            session,
            stage: Stage::Live { counter, proved },
        }
    }

    /// Of a session's end.
    pub fn ended(connect_epoch: u64, session: SessionId) -> Self {
        Self {
            connect_epoch,
            session,
            stage: Stage::Ended,
        }
    }

    /// Whether this is the end of its session.
    pub fn is_terminal(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// The counter of a live session.
    pub fn counter(&self) -> Option<u64> {
        match self.stage {
            Stage::Live { counter, .. } => Some(counter),
            Stage::Ended => None,
        }
    }

    /// Whether this is of a live session whose connect epoch was taken after its client answered a probe.
    pub fn is_proved(&self) -> bool {
        matches!(self.stage, Stage::Live { proved: true, .. })
    }
}

/// One start of an edge node: what the liveness of its sessions follows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// The node; its region can differ from the record's when another region's owner admitted the session.
    pub node: NodeKey,
    /// Its incarnation.
    pub generation: Generation,
}

/// The value of a live session's record. The session itself is in the version. The order only serves to choose between
/// two values of one version the same way everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Live {
    /// The chosen status.
    pub status: Status,
    /// The line that goes with it.
    pub text: StatusText,
    /// Region of the owner that admitted the session: the only writer of this record.
    pub region: RegionId,
    /// Where the session is connected.
    pub edge: Edge,
    /// When the session began, unix milliseconds of its edge; the same for all of its life.
    pub since_ms: u64,
}

/// A record as it travels: whose it is, its version and its value. Live ones have a value, ended ones none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    user: UserId,
    device: DeviceId,
    version: Version,
    value: Option<Arc<Live>>,
}

impl Entry {
    /// The record of a live session.
    ///
    /// # Errors
    /// [`PresenceError::ConnectEpoch`] outside 1 to [`MAX_CONNECT_EPOCH`].
    pub fn live(
        user: UserId,
        device: DeviceId,
        (connect_epoch, session, counter, proved): (u64, SessionId, u64, bool),
        live: Live,
    ) -> Result<Self, PresenceError> {
        Ok(Self {
            user,
            device,
            version: Version::live(checked_epoch(connect_epoch)?, session, counter, proved),
            value: Some(Arc::new(live)),
        })
    }

    /// The end of a session.
    ///
    /// # Errors
    /// [`PresenceError::ConnectEpoch`] outside 1 to [`MAX_CONNECT_EPOCH`].
    pub fn ended(
        user: UserId,
        device: DeviceId,
        connect_epoch: u64,
        session: SessionId,
    ) -> Result<Self, PresenceError> {
        Ok(Self {
            user,
            device,
            version: Version::ended(checked_epoch(connect_epoch)?, session),
            value: None,
        })
    }

    /// From a register, which holds only what was checked.
    pub(super) fn of(user: &UserId, device: &DeviceId, version: Version, value: Option<Arc<Live>>) -> Self {
        Self {
            user: user.clone(),
            device: device.clone(),
            version,
            value,
        }
    }

    pub(super) fn into_parts(self) -> (UserId, DeviceId, Version, Option<Arc<Live>>) {
        (self.user, self.device, self.version, self.value)
    }

    /// Encodes in MessagePack, array form; at most [`MAX_ENTRY_BYTES`].
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("records have no maps or unsized parts that could fail to encode")
    }

    /// Decodes what [`Entry::encode`] made.
    ///
    /// # Errors
    /// [`PresenceError::Length`], [`PresenceError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PresenceError> {
        decode("presence record", bytes, MAX_ENTRY_BYTES)
    }

    /// Whose.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Which device.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its value; `None` for the end of a session.
    pub fn value(&self) -> Option<&Live> {
        self.value.as_deref()
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let live = match (self.version.stage, &self.value) {
            (Stage::Live { counter, proved }, Some(live)) => Some((counter, proved, &**live)),
            _ => None,
        };
        let Version {
            connect_epoch,
            session,
            ..
        } = self.version;
        (&self.user, &self.device, connect_epoch, session, live).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Raw = (UserId, DeviceId, u64, SessionId, Option<(u64, bool, Live)>);
        let (user, device, connect_epoch, session, live) = Raw::deserialize(deserializer)?;
        match live {
            Some((counter, proved, live)) => {
                Entry::live(user, device, (connect_epoch, session, counter, proved), live)
            }
            None => Entry::ended(user, device, connect_epoch, session),
        }
        .map_err(D::Error::custom)
    }
}

/// Records of one shard on their way to another region: what changed, or a page of all. At most [`MAX_DELTA_RECORDS`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Delta {
    /// The records; the order means nothing.
    pub records: Vec<Entry>,
}

impl Delta {
    /// Encodes in MessagePack, array form.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("records have no maps or unsized parts that could fail to encode")
    }

    /// Decodes what [`Delta::encode`] made.
    ///
    /// # Errors
    /// [`PresenceError::Length`], [`PresenceError::Malformed`]; nothing is allocated for more than
    /// [`MAX_DELTA_RECORDS`] records.
    pub fn decode(bytes: &[u8]) -> Result<Self, PresenceError> {
        decode("presence delta", bytes, MAX_DELTA_BYTES)
    }
}

impl<'de> Deserialize<'de> for Delta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Records;
        impl<'de> Visitor<'de> for Records {
            type Value = Delta;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_DELTA_RECORDS} presence records")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Delta, A::Error> {
                if let Some(count) = seq.size_hint().filter(|count| *count > MAX_DELTA_RECORDS) {
                    return Err(A::Error::invalid_length(count, &self));
                }
                let mut records = Vec::new();
                while records.len() < MAX_DELTA_RECORDS {
                    match seq.next_element()? {
                        Some(entry) => records.push(entry),
                        None => return Ok(Delta { records }),
                    }
                }
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Delta { records }),
                    Some(_) => Err(A::Error::invalid_length(MAX_DELTA_RECORDS + 1, &self)),
                }
            }
        }
        deserializer.deserialize_seq(Records)
    }
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8], max: usize) -> Result<T, PresenceError> {
    if bytes.len() > max {
        let len = bytes.len();
        return Err(PresenceError::Length { what, len, max });
    }
    let mut rest = bytes;
    let value = rmp_serde::from_read(&mut rest).map_err(|error| PresenceError::Malformed {
        what,
        reason: error.to_string(),
    })?;
    if !rest.is_empty() {
        let reason = format!("{} bytes follow its end", rest.len());
        return Err(PresenceError::Malformed { what, reason });
    }
    Ok(value)
}

fn checked_epoch(found: u64) -> Result<u64, PresenceError> {
    if (1..=MAX_CONNECT_EPOCH).contains(&found) {
        Ok(found)
    } else {
        Err(PresenceError::ConnectEpoch { found })
    }
}
