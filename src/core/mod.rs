//! The deterministic core: what Iris decides, without clocks, randomness, sockets, tasks or disks.
//!
//! Everything that comes from outside is an input (`now`, random bits, frames, stored outcomes) and everything that
//! leaves is an output. The same machines run under tokio in production and in the simulator.
//!
//! | module | what it holds |
//! |---|---|
//! | [`node`] | a partition of a node: edge, owner and links composed; what a driver holds |
//! | [`edge`] | sessions of clients: sends, deliveries, acknowledgements, watches, and the lanes to owners |
//! | [`owner`] | the shards of a partition: deposits, delivery, sessions |
//! | [`presence`] | who is online: registers that every region writes and all converge on |
//! | [`link`] | replication between regions: subscriptions, catch-up, relay |
//! | [`state`], [`user`], [`series`], [`commit`] | rows of a shard, and the pure function that decides what a commit means |
//! | [`expire`] | what goes by time: messages, and devices |
//! | [`snapshot`], `trim`, `remove` | commits that merge a snapshot; commits that let go of what is stable |
//! | [`holders`] | who keeps a shard, how that changes, who is away for long |
//! | [`retire`] | old origins: when nobody needs one any more, and how it leaves all vectors |
//! | [`storage`] | what machines ask of a store, and its answers |
//! | [`op`] | the logged operations and their encoding |
//! | [`wire`], [`msg`] | the client protocol, and what partitions tell each other |
//! | [`members`], [`placement`] | which nodes are there, and which node and partition runs a shard |
//! | [`limits`] | the limits and intervals of the machines, with their defaults and reasons |
//! | [`ids`], [`time`], [`vector`] | names, the two clocks, the hybrid logical clock, version vectors |
//! | [`inspect`] | what an operator may look at |
//! | [`defect`] | rules left out on purpose, in builds for tests only |

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod commit;
pub mod defect;
pub mod edge;
pub mod expire;
pub mod holders;
pub mod ids;
pub mod inspect;
pub mod limits;
pub mod link;
pub mod members;
pub mod msg;
pub mod node;
pub mod op;
pub mod owner;
pub mod placement;
pub mod presence;
mod remove;
pub mod retire;
pub mod series;
pub mod snapshot;
pub mod state;
pub mod storage;
pub mod time;
mod trim;
pub mod user;
pub mod vector;
pub mod wire;
