//! Where a region keeps what it promised.
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | the interface that a shard's owner calls |
//! | [`journal`] | one durable record per group commit, in segments of our own |
//! | [`disk`] | the files under the journal, real and simulated |

pub mod disk;
pub mod engine;
pub mod journal;
