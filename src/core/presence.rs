//! Who is online: the presence of a shard's users, as state that every region writes and all regions converge on.
//!
//! Per user a map device -> last-writer-wins register (`crdts::LWWReg`, Shapiro et al., "A comprehensive study of
//! Convergent and Commutative Replicated Data Types", 2011). Its version is a total order without a clock:
//! (connect epoch, session, terminal, counter), where the end of a session beats each of that session's counters.
//!
//! | module | what it holds |
//! |---|---|
//! | [`record`] | status, version, value, and how they travel: [`Entry`], [`Delta`] |
//! | [`table`] | [`Presence`]: registers of a shard, merge, pages, index by edge, tombstones |
//! | [`digest`] | digests of what is live, and what two regions tell each other where they differ |
//! | [`local`] | sessions of this region: admission, status, end, and what follows when one loses a merge |
//! | [`visible`] | what a watcher sees |
//! | `explain` | why |
//!
//! The path through it: an edge attaches a session ([`Presence::admit`]), changes its status
//! ([`Presence::set_status`]) and ends it ([`Presence::end`]). What changed is drained with
//! [`Presence::take_changed`], goes to other regions as [`Delta`]s, and is merged there ([`Presence::merge`]). What the
//! owner must do about a session (tell its edge a new epoch, probe its client, close it) comes out of
//! [`Presence::poll_effect`], to be drained after each call.
//!
//! # One writer
//!
//! The region whose owner admitted a session is the only one that writes that session's record, and each write has a
//! new version: the edge's counter grows with each change, and all that a value holds besides (edge, since) is fixed for
//! a session and kept by its edge. So a new owner to which the edge attaches the session again writes the same value
//! under the same version. Terminal records hold no value at all.
//!
//! # When a live session's record loses a merge
//!
//! * To a terminal record: it re-asserts itself at once under a greater connect epoch.
//! * To a live session of another region: the client is probed (`probe_ms` of the limits). No answer ends the session. An
//!   answer re-asserts it, marked as proved ([`Stage::Live`]), which makes the other region probe its client in turn. The
//!   session with the lesser (since, session) gives way once the other has re-asserted itself with a proof, for only that
//!   shows that the other is alive: a ghost whose edge's clock runs ahead must not close a live session, whose client
//!   would not reconnect by itself. Only the losing side acts, the greater one re-asserts each time and the lesser
//!   challenges until it sees the other's proof, so a contest ends.
//! * To a live session of this region that has not been attached to this owner: it waits. Either that session's edge
//!   attaches it and the newer of both wins, or its owner ends it.

pub mod digest;
mod explain;
pub mod local;
pub mod record;
pub mod table;
#[cfg(test)]
mod tests;
pub mod visible;

pub use digest::{Comparison, Digest, Item, Judgement, Node, Told};
pub use local::{Admission, AdmitError, Claim, Effect, SessionRef, StatusOutcome, next_connect_epoch};
pub use record::{Delta, Edge, Entry, Live, PresenceError, Stage, StatusText, Version};
pub use table::{Counters, Key, MergeOutcome, Presence, Register, Source};
pub use visible::{Visible, VisibleDevice, VisibleStatus};

/// Most a client's connect epoch may lie above what the server knows; more is cut, so that no client can use up the
/// numbers. What a region cut off for long may have missed is far less.
pub const MAX_EPOCH_CLAIM: u64 = 65_536;
/// Greatest connect epoch of a record from outside: leaves room for 10^13 connects whatever came before.
pub const MAX_CONNECT_EPOCH: u64 = 1 << 62;
/// Most live devices of a user at which another is admitted; the store keeps as many devices. Regions that are cut off
/// from each other count for themselves, and a merge never refuses: it would diverge.
pub const MAX_LIVE_DEVICES: usize = 32;
/// Tombstones kept for a user: twice the devices that can be live.
pub const MAX_TERMINALS_PER_USER: usize = 64;
/// Tombstones kept for a shard, about 250 bytes each.
pub const MAX_TERMINALS_PER_SHARD: usize = 16_384;
/// Most records in a delta: under 400 KB when each is as long as it can be, well inside a frame between nodes.
pub const MAX_DELTA_RECORDS: usize = 512;
/// Longest encoding of one record in bytes (ids and texts at their limits, numbers at full width).
pub const MAX_ENTRY_BYTES: usize = 800;
/// Longest encoding of a delta in bytes.
pub const MAX_DELTA_BYTES: usize = MAX_DELTA_RECORDS * MAX_ENTRY_BYTES + 8;
/// Rivals a session remembers: there is at most one at a time in each other region.
pub const MAX_RIVALS: usize = 16;
