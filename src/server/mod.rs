//! The server of one node: its configuration, what runs it, and what an operator sees of it.
//!
//! - [`config`]: the settings of a node, layered by figment; [`regions`]: the regions of the cluster, one file each
//! - [`node`]: a node from start to drain; `partition`: the task that drives a partition of the core; `shards`: their
//!   readiness; [`prepare`]: what is judged before a start; `intake`: what arrives from connections; `store`: the thread that commits; [`folder`]: the data folder
//! - [`inspect`]: what an operator may look at, for the admin interface on top
//! - [`evacuation`]: which regions are evacuated, and how every node learns of it
//! - [`holders`]: changing the regions that keep the shards; `region_files`: their files, read again while a node runs
//! - [`faults`]: what a drill breaks in a running node, for a time; `clock`: the clocks that it may shift
//! - [`dev`]: the folder of a whole cluster on one machine
//! - [`token`]: the tokens that clients present
//! - [`log`], [`metrics`], [`http`]: what a running node tells: logs, counters, health

mod clock;
pub mod config;
pub mod dev;
pub mod evacuation;
pub mod faults;
pub mod folder;
pub mod holders;
pub mod http;
pub mod inspect;
mod intake;
mod known;
pub mod log;
mod meters;
pub mod metrics;
pub mod node;
mod open;
mod partition;
pub mod prepare;
mod region_files;
pub mod regions;
mod shards;
mod store;
pub mod token;

pub use clock::{Clock, Wall};
pub use partition::PartitionStatus;
