//! Names and numbers that identify things. Text ids are validated when they are made and cheap to clone.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Longest user id in bytes.
pub const MAX_USER_LEN: usize = 255;
/// Longest device id in bytes.
pub const MAX_DEVICE_LEN: usize = 64;
/// Longest name of a region or node in bytes.
pub const MAX_NAME_LEN: usize = 32;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty, or longer than the limit.
    #[error("{what} is {len} bytes long; expected 1 to {max}")]
    Length {
        /// Which id.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A character that this id may not hold.
    #[error("{what} {value:?} holds {found:?}; expected {expected}")]
    Character {
        /// Which id.
        what: &'static str,
        /// The offending text.
        value: String,
        /// The first character that is not allowed.
        found: char,
        /// What is allowed.
        expected: &'static str,
    },
    /// Not a UUID.
    #[error("{0:?} is not a message id; expected a UUID such as 0190b5c4-7d1e-7a52-8f10-3d2c1b0a9f8e")]
    Uuid(String),
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $allowed:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SmolStr);

        impl $name {
            /// Checks and makes one.
            ///
            /// # Errors
            /// [`IdError`] names the value and what was expected.
            pub fn new(text: &str) -> Result<Self, IdError> {
                if text.is_empty() || text.len() > $max {
                    return Err(IdError::Length { what: $what, len: text.len(), max: $max });
                }
                let allowed: fn(char) -> bool = $allowed;
                if let Some(found) = text.chars().find(|c| !allowed(*c)) {
                    return Err(IdError::Character {
                        what: $what,
                        value: text.to_owned(),
                        found,
                        expected: $expected,
                    });
                }
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::new(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

fn name_character(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

text_id!(
    /// A user: 1 to 255 bytes of UTF-8 without control characters, compared as bytes.
    UserId, "user id", MAX_USER_LEN, |c| !c.is_control(), "UTF-8 without control characters"
);
text_id!(
    /// A device of a user: 1 to 64 bytes of UTF-8 without control characters.
    DeviceId, "device id", MAX_DEVICE_LEN, |c| !c.is_control(), "UTF-8 without control characters"
);
text_id!(
    /// A region: `[a-z0-9-]{1,32}`.
    RegionId, "region name", MAX_NAME_LEN, name_character, "only a-z, 0-9 and -"
);
text_id!(
    /// A node of a region: `[a-z0-9-]{1,32}`.
    NodeName, "node name", MAX_NAME_LEN, name_character, "only a-z, 0-9 and -"
);

/// A node of the cluster: its region and its name there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeKey {
    /// The region it belongs to.
    pub region: RegionId,
    /// Its name, unique in the region.
    pub node: NodeName,
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.region, self.node)
    }
}

/// A partition of a node: the unit that owns shards and sessions and is driven by one task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Addr {
    /// The node.
    pub node: NodeKey,
    /// Its partition, from 0.
    pub partition: u8,
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.partition)
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// One incarnation of a region's store, a random number; 0 means "none yet" (R1).
    Origin(u64)
);
number_id!(
    /// A shard: hash of a user id modulo the shard count.
    ShardId(u32)
);
number_id!(
    /// Fencing number of a shard's owner; grows with each owner (R2).
    Epoch(u64)
);
number_id!(
    /// Incarnation of a node: grows at each start.
    Generation(u64)
);
number_id!(
    /// One connection of one device, a random number made by the edge.
    SessionId(u64)
);
number_id!(
    /// A client connection of one node, counted from its start.
    ConnId(u64)
);

/// A position in an origin's log of a shard; the first operation has 1, and 0 stands before it.
pub type Seq = u64;

/// The coordinates of an operation: an origin and a sequence in its log of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Coord {
    /// The origin.
    pub origin: Origin,
    /// The sequence, from 1.
    pub seq: Seq,
}

impl fmt::Display for Coord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.origin.0, self.seq)
    }
}

/// A message id: UUIDv7 made by the sender (RFC 9562), or UUIDv8 derived from one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// A UUIDv7 of a time in unix milliseconds and 74 bits of `random` (the rest is masked away).
    pub fn v7(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut b = [0; 16];
        b[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
        b[6..].copy_from_slice(&random);
        b[6] = 0x70 | (b[6] & 0x0f);
        b[8] = 0x80 | (b[8] & 0x3f);
        Self(b)
    }

    /// The time inside, unix milliseconds; `None` where this is neither UUIDv7 nor UUIDv8.
    pub fn unix_ms(&self) -> Option<u64> {
        let version = self.0[6] >> 4;
        if (version != 7 && version != 8) || self.0[8] >> 6 != 0b10 {
            return None;
        }
        let mut ms = [0; 8];
        ms[2..].copy_from_slice(&self.0[..6]);
        Some(u64::from_be_bytes(ms))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MessageId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Uuid(text.chars().take(64).collect());
        let shape = text.len() == 36
            && text.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_hexdigit(),
            });
        if !shape {
            return Err(bad());
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let number = u128::from_str_radix(&digits, 16).map_err(|_| bad())?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Raw;
        impl serde::de::Visitor<'_> for Raw {
            type Value = MessageId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("16 bytes of a message id")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<MessageId, E> {
                bytes
                    .try_into()
                    .map(MessageId)
                    .map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Raw)
    }
}

/// How users are spread over shards: fixed when a store is created, and a mismatch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharding {
    /// Number of shards, at least 1.
    pub count: u32,
    /// Seed of the hash.
    pub seed: u64,
}

/// Default number of shards.
pub const DEFAULT_SHARDS: u32 = 1024;

impl Sharding {
    /// The shard of a user: xxh3-64 with the seed over a tag byte and the id.
    pub fn of_user(&self, user: &UserId) -> ShardId {
        let mut key = [0; MAX_USER_LEN + 1];
        key[0] = b'u';
        let text = user.as_str().as_bytes();
        key[1..=text.len()].copy_from_slice(text);
        let hash = xxh3_64_with_seed(&key[..=text.len()], self.seed);
        ShardId((hash % u64::from(self.count.max(1))) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ids_hold_their_limits() {
        assert!(UserId::new(&"a".repeat(255)).is_ok());
        assert!(UserId::new(&"a".repeat(256)).is_err());
        assert!(UserId::new("").is_err());
        assert!(UserId::new("a\nb").is_err());
        assert!(UserId::new("Ünï 🦀").is_ok());
        assert!(DeviceId::new(&"d".repeat(64)).is_ok());
        assert!(DeviceId::new(&"d".repeat(65)).is_err());
        assert!(RegionId::new(&"r".repeat(32)).is_ok());
        assert!(RegionId::new(&"r".repeat(33)).is_err());
        assert!(NodeName::new("Core").is_err());
    }

    #[test]
    fn message_ids_carry_their_time_and_round_trip() {
        let id = MessageId::v7(1_700_000_000_123, [0xff; 10]);
        assert_eq!(id.unix_ms(), Some(1_700_000_000_123));
        assert_eq!(id.to_string().parse::<MessageId>(), Ok(id));
        assert_eq!(MessageId([0; 16]).unix_ms(), None);
        assert!("not-a-uuid".parse::<MessageId>().is_err());
        assert!(
            "0190b5c4-7d1e-7a52-8f10-3d2c1b0a9f8é"
                .parse::<MessageId>()
                .is_err()
        );
    }
}
