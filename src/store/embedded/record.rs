//! What the embedded engine writes into its journal and tables, beside the rows of [`keys`].
//!
//! A record of the journal is a format version and the decisions of one group commit in MessagePack (array form).
//! Rows in the tables carry the number of the last commit that they include, and where their items are.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::core::ids::{Origin, Seq};
use crate::core::state::{Decision, DedupKey, DedupRow, ShardRow, UserRow};
use crate::store::keys::{self, RowError};
use crate::store::opening::StoredIdentity;

/// Format version of a record.
pub const RECORD_VERSION: u8 = 1;
/// The journal's tag for a record of decisions.
pub const TAG_DECISIONS: u8 = 1;

/// Encodes decisions into a buffer, replacing its content.
pub fn encode_decisions(decisions: &[Decision], out: &mut Vec<u8>) {
    out.clear();
    out.push(RECORD_VERSION);
    rmp_serde::encode::write(out, decisions).expect("plain data in memory always encodes");
}

/// Decodes a record.
///
/// # Errors
/// [`RowError`].
pub fn decode_decisions(payload: &[u8]) -> Result<Vec<Decision>, RowError> {
    let what = "journal record";
    match payload.split_first() {
        Some((&RECORD_VERSION, rest)) => rmp_serde::from_slice(rest).map_err(|e| RowError::Malformed {
            what,
            reason: e.to_string(),
        }),
        Some((&found, _)) => Err(RowError::Version { what, found }),
        None => Err(RowError::Malformed {
            what,
            reason: "empty".to_owned(),
        }),
    }
}

/// What the tables cover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Whose store it is.
    pub identity: StoredIdentity,
    /// The store's number, which its journal carries, too.
    pub store: u64,
    /// Every effect of commits to here is in the tables, flushed.
    pub covered: u64,
    /// No dedup record of those commits has an id of a later time, unix milliseconds.
    pub newest_id_ms: u64,
}

/// Where the tables may have items of a series: in `(lo, hi]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extent {
    /// Nothing at or below.
    pub lo: Seq,
    /// Nothing above.
    pub hi: Seq,
}

/// Extents by origin.
pub type Extents = BTreeMap<Origin, Extent>;

/// A shard's row in the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredShard {
    /// The last commit that it includes.
    pub as_of: u64,
    /// Where its log entries are.
    pub logs: Extents,
    /// Days of dedup that were dropped, with the commit that did: older records of them count no more.
    pub dropped: BTreeMap<u32, u64>,
    /// Of these, days of which a record came later: their table must stay.
    pub revived: BTreeSet<u32>,
    /// The row.
    pub row: ShardRow,
}

/// A user's row in the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredUser {
    /// The last commit that it includes.
    pub as_of: u64,
    /// Where the messages are.
    pub inbox: Extents,
    /// The row.
    pub row: UserRow,
}

/// Dedup records in the tables: of one shard, and of ids of one unit of time
/// ([`DEDUP_BLOCK_MS`](keys::DEDUP_BLOCK_MS)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupBlock {
    /// The last commit that they include.
    pub as_of: u64,
    /// The records, in the order of their keys.
    pub rows: Vec<(DedupKey, DedupRow)>,
}

/// A dedup record in the tables by itself, as builds before blocks wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredDedup {
    /// The last commit that it includes.
    pub as_of: u64,
    /// The record.
    pub row: DedupRow,
}

impl Meta {
    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        keys::encode(self)
    }

    /// Decodes it.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn decode(value: &[u8]) -> Result<Self, RowError> {
        keys::decode("what the tables cover", value)
    }
}
