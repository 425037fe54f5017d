//! Nodes as real processes, killed and started again; and folders that a node must refuse to start with.
//!
//! | part | what it does |
//! |---|---|
//! | `kill` | `kill -9` of random nodes while messages are sent; what was accepted arrives once and in order |
//! | `catch_up` | a region that comes back to a long backlog while others go on |
//! | `outage` | all nodes of a region killed while messages are sent, and started again later |
//! | `refused` | stores whose parts do not belong together, and folders that are empty or another cluster's |
//! | `supervise` | nodes that cannot be started, and ports that another cluster holds |
//! | `load` | senders and recipients, and the ledger that they write |
//! | `processes` | `iris dev --processes`, its pids, and what `kill -9` needs |

mod catch_up;
#[path = "../common/mod.rs"]
mod common;
mod kill;
mod load;
mod outage;
mod processes;
mod refused;
mod supervise;
