//! What can be seen of the connections between nodes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{Lane, StreamClass};
use crate::core::ids::{Generation, NodeKey};

/// State of the circuit breaker of an outgoing link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breaker {
    /// Connected, or failing for less than three attempts.
    Closed,
    /// Several attempts failed: nothing is tried until the pause is over.
    Open,
    /// One attempt is under way that decides.
    HalfOpen,
}

/// One outgoing link, as [`PeerPool::snapshot`](super::PeerPool::snapshot) sees it.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// Who is to be reached; unknown for a seed until its first hello.
    pub peer: Option<NodeKey>,
    /// Where.
    pub addr: SocketAddr,
    /// What for.
    pub lane: Lane,
    /// The connection in use.
    pub incarnation: Option<u64>,
    /// The peer's generation by its last hello.
    pub generation: Option<Generation>,
    /// The circuit breaker.
    pub breaker: Breaker,
    /// Failed attempts in a row.
    pub failures: u32,
    /// Connections so far.
    pub connects: u64,
    /// The last failure or loss.
    pub last_error: Option<String>,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Packets that QUIC declared lost on this connection.
    pub lost_packets: u64,
    /// Bytes waiting, by class.
    pub queued: BTreeMap<StreamClass, usize>,
}

/// One accepted connection, as [`PeerPool::snapshot`](super::PeerPool::snapshot) sees it.
#[derive(Debug, Clone)]
pub struct InboundStatus {
    /// Who dialled.
    pub peer: NodeKey,
    /// What for.
    pub lane: Lane,
    /// Its generation.
    pub generation: Generation,
    /// The connection.
    pub incarnation: u64,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// The address that its packets carry.
    pub remote: SocketAddr,
}

/// The state of all connections between nodes.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// Outgoing links.
    pub links: Vec<LinkStatus>,
    /// Accepted connections.
    pub inbound: Vec<InboundStatus>,
    /// Counters since the start.
    pub counters: PeerCounters,
}

/// Counters since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PeerCounters {
    /// Bytes given to quinn.
    pub bytes_out: u64,
    /// Frames of messages between nodes in the writes below.
    pub frames_out: u64,
    /// Writes of a whole queue, gossip left out.
    pub batches_out: u64,
    /// Batches not queued because the class was full.
    pub full: u64,
    /// Bytes read from streams.
    pub bytes_in: u64,
    /// Frames read.
    pub frames_in: u64,
    /// Reads that brought frames.
    pub batches_in: u64,
    /// Handshakes refused, by either side.
    pub refused: u64,
    /// Accepted connections that failed before their hello was answered.
    pub failed: u64,
    /// Gossip messages dropped.
    pub gossip_dropped: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes_out: AtomicU64,
    pub(super) frames_out: AtomicU64,
    pub(super) batches_out: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) frames_in: AtomicU64,
    pub(super) batches_in: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) gossip_dropped: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> PeerCounters {
        PeerCounters {
            bytes_out: self.bytes_out.load(Relaxed),
            frames_out: self.frames_out.load(Relaxed),
            batches_out: self.batches_out.load(Relaxed),
            full: self.full.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            frames_in: self.frames_in.load(Relaxed),
            batches_in: self.batches_in.load(Relaxed),
            refused: self.refused.load(Relaxed),
            failed: self.failed.load(Relaxed),
            gossip_dropped: self.gossip_dropped.load(Relaxed),
        }
    }
}
