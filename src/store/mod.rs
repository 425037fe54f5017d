//! Where a region keeps what it promised.
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | the interface that a shard's owner calls |

pub mod engine;
