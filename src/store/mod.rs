//! Where a region keeps what it promised.
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | the interface that a shard's owner calls |
//! | [`opening`] | what a store keeps about itself, and why it refuses to open |
//! | [`embedded`] | the engine of a region with one core node: a journal, and tables behind it |
//! | [`memory`] | the engine over an ordered map in memory: tests, simulator |
//! | [`keys`], [`paging`], [`snapshot`] | rows as bytes; pages of inboxes, logs and snapshots, for every engine |
//! | [`journal`] | one durable record per group commit, in segments of our own |
//! | [`disk`] | the files under the journal, real and simulated |
//! | `background` | threads whose work can wait |

mod background;
pub mod disk;
pub mod embedded;
pub mod engine;
pub mod journal;
pub mod keys;
pub mod memory;
pub mod opening;
pub mod paging;
pub mod snapshot;

#[cfg(test)]
pub(crate) mod conformance;
