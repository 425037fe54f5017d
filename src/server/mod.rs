//! The server of one node: its configuration and what an operator sees of it.
//!
//! - [`config`]: the settings of a node, layered by figment; [`regions`]: the regions of the cluster, one file each
//! - [`token`]: the tokens that clients present
//! - [`log`], [`metrics`], [`http`]: what a running node tells: logs, counters, health

pub mod config;
pub mod http;
pub mod log;
pub mod metrics;
pub mod regions;
pub mod token;
