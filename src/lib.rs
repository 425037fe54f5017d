//! Iris: messages and presence for users in several regions. One binary is every server, and this library is all of it.
//!
//! Each client holds one QUIC connection to an edge node near it. A message is accepted once it is durable in a region's
//! store, waits in the recipient's inbox until every device consumed it, and ships to every other region's store. Who is
//! online is state that every region writes and all converge on.
//!
//! The path of a message, and where each step stands:
//!
//! ```text
//! sender's client    client::machine       gives it an id, sends until it is accepted or refused
//! edge node          net::client           cuts frames from a stream
//!                    server::intake        decodes them, hands them to a partition's task
//!                    core::edge            judges size, sequence, rate; into a lane to the recipient's owner
//! core node          core::owner           judges the order; asks for a commit
//!                    core::commit          decides what the commit means; a store makes the decisions durable
//!                    store::embedded       one journal record for all that waits, one fdatasync
//!                    core::owner           answers "accepted"; delivers to sessions, also those that come later
//! other regions      core::link            ships what was logged; there it is committed and delivered by the same code
//! recipient's edge   core::edge            hands it to the session, takes the acknowledgement back to the owner
//! ```
//!
//! What decides has no IO: it takes inputs with the time and gives outputs, so that the simulator runs the same code as
//! the servers. What does IO decides nothing.
//!
//! | module | what it holds |
//! |---|---|
//! | [`core`] | all that Iris decides: sessions, inboxes, commits, replication, presence; deterministic, without IO |
//! | `file_lock` | a file that says that a folder is in use |
//! | [`store`] | engines that make commits durable: a journal with tables behind it, and one in memory |
//! | [`net`] | QUIC between clients and nodes, mutual TLS between nodes, membership by gossip |
//! | [`server`] | a node: configuration, the tasks that drive the core, what operators see |
//! | [`client`] | the client library |
//! | [`drill`] | failover drills: planned failures, measured by clients of their own |
//! | [`sim`] | the simulator: whole regions under a seed, in virtual time, with faults and checkers |
//! | [`cli`] | the `iris` command |
//!
//! Imports point one way, from the bottom of this table to its top; `tests/tidy.rs` holds it. `docs/architecture.md` has
//! the promises, the rules that keep them, and how far each is built; `docs/protocol.md` the wire.

pub mod admin;
pub mod cli;
pub mod client;
pub mod core;
pub mod drill;
mod file_lock;
pub mod net;
pub mod server;
pub mod sim;
pub mod store;
