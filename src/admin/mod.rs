//! The admin interface: what operators ask of a cluster and tell it to do. Defined here once, for whatever comes.
//!
//! ```text
//! iris CLI --- Unix socket (mode 0600) ------------------+
//! iris CLI --- QUIC, certificate with operator role -----+--> a node --+--> itself
//!                                                        |             +--> every other node, in parallel, with its node's
//! nodes    --- QUIC, certificate of a node: looking only +                  certificate and a deadline
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`wire`] | calls and answers as frames, versions, errors |
//! | [`request`] | what can be asked: of one node, of the cluster; what can be changed |
//! | [`data`] | the answers: what `--output json` prints |
//! | `local` | a node's own answers |
//! | `cluster` | asking all nodes and putting the answers together |
//! | `evacuation` | evacuating a region and restoring it |
//! | `faults` | injecting faults, ending and listing them |
//! | `holders` | adding a region to those that keep the shards, and removing one |
//! | [`verdict`] | whether a cluster is well, and why not |
//! | [`server`] | the socket, the connections of operators, who may ask what |
//! | [`socket`] | Unix sockets at paths of any length |
//! | [`client`] | connecting and asking |
//!
//! A later kind of request is a variant of [`request::Request`] (or [`request::Part`], [`request::Change`]) with its answer in
//! [`data`]; a node that does not know it says so.

pub mod client;
mod cluster;
pub mod data;
mod evacuation;
mod faults;
mod holders;
mod local;
pub mod request;
pub mod server;
pub mod socket;
pub mod verdict;
pub mod wire;
