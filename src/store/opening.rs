//! What a store keeps about itself, and why it may refuse to open.
//!
//! A store belongs to one cluster and region and spreads its users in one way. That is written when the store is created and
//! compared at each opening: a wrong folder, a wrong mount or a changed setting is refused with both values, and an empty
//! place without the explicit word to create one (R4). The set of holders with which it was begun is written, too, and counts
//! from then on instead of what is given: later changes stand in its shards (R13).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::keys::{self, RowError};
use crate::core::ids::{RegionId, Sharding};
use crate::core::state::StoreIdentity;

/// Who a store is, as written when it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIdentity {
    /// The cluster.
    pub cluster: u128,
    /// The region.
    pub region: RegionId,
    /// The regions that keep every shard at first.
    pub holders: BTreeSet<RegionId>,
    /// How users are spread.
    pub sharding: Sharding,
    /// Begun in a cluster that runs: its shards recover first (R4).
    pub joining: bool,
}

/// Why a store did not open. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no store. A lost disk or a wrong mount must not look like a new server.
    #[error(
        "there is no store in {location}: check the path and the mount, or create one explicitly (--create)"
    )]
    Missing {
        /// Where.
        location: String,
    },
    /// A store was to be created where one is.
    #[error("there is a store in {location} already: open it without --create, or name an empty folder")]
    Exists {
        /// Where.
        location: String,
    },
    /// The store is not the one that the configuration describes.
    #[error("the store in {location} has the {field} {stored}, the configuration says {given}: {hint}")]
    Mismatch {
        /// Where.
        location: String,
        /// What differs.
        field: &'static str,
        /// What the store was created with.
        stored: String,
        /// What was given.
        given: String,
        /// What to do.
        hint: &'static str,
    },
    /// The incarnation given was used before (R1).
    #[error(
        "origin {origin:016x} was used by an earlier start of the store in {location}: each start needs a new one"
    )]
    OriginUsed {
        /// Where.
        location: String,
        /// The origin.
        origin: u64,
    },
    /// Another process has it open.
    #[error("the store in {location} is in use: {reason}")]
    Locked {
        /// Where.
        location: String,
        /// By whom, as far as known.
        reason: String,
    },
    /// The journal is damaged: names the file and the way out.
    #[error("the journal in {location} is damaged: {reason}")]
    Journal {
        /// The folder of its segments.
        location: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Journal and tables are not from the same moment, or the tables are damaged: names the place and the way out.
    #[error("the store in {location} is damaged: {reason}")]
    Corrupt {
        /// Where.
        location: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A setting is out of its range.
    #[error("{field} is {value}, expected {expected}")]
    Setting {
        /// Which.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// The file system refused.
    #[error("the store in {location} cannot be opened: {reason}")]
    Io {
        /// Where.
        location: String,
        /// What the system said.
        reason: String,
    },
}

impl StoredIdentity {
    /// What to write for a new store.
    pub fn of(identity: &StoreIdentity) -> Self {
        Self {
            cluster: identity.cluster,
            region: identity.region.clone(),
            holders: identity.holders.clone(),
            sharding: identity.sharding,
            joining: identity.joining,
        }
    }

    /// The value to store under [`keys::meta`].
    pub fn encode(&self) -> Vec<u8> {
        keys::encode(self)
    }

    /// Decodes it.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn decode(value: &[u8]) -> Result<Self, RowError> {
        keys::decode("store identity", value)
    }

    /// What counts of an identity that was given: what was stored when the store was created.
    pub fn applied_to(&self, given: StoreIdentity) -> StoreIdentity {
        StoreIdentity {
            joining: self.joining,
            holders: self.holders.clone(),
            ..given
        }
    }

    /// Compares what is stored with what the configuration says.
    ///
    /// # Errors
    /// [`OpenError::Mismatch`] names the first difference.
    pub fn check(&self, given: &StoreIdentity, location: &str) -> Result<(), OpenError> {
        let mismatch = |field, stored: String, given: String, hint| {
            Err(OpenError::Mismatch {
                location: location.to_owned(),
                field,
                stored,
                given,
                hint,
            })
        };
        if self.cluster != given.cluster {
            let hint = "is this the folder of another cluster?";
            let (stored, given) = (
                format!("{:032x}", self.cluster),
                format!("{:032x}", given.cluster),
            );
            return mismatch("cluster", stored, given, hint);
        }
        if self.region != given.region {
            let hint = "is this the folder of another region?";
            return mismatch("region", self.region.to_string(), given.region.to_string(), hint);
        }
        if self.sharding != given.sharding {
            let text = |s: Sharding| format!("{} shards with seed {:016x}", s.count, s.seed);
            let hint = "users cannot be spread in another way once there is a store; set it back";
            return mismatch("sharding", text(self.sharding), text(given.sharding), hint);
        }
        Ok(())
    }
}
