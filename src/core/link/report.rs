//! What a link tells people: alarms, states, counters.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::ids::{Addr, Origin, RegionId, Seq, ShardId};
use crate::core::op::OpError;

/// Something that an operator must see: replication of a shard stands still, or may not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkAlarm {
    /// The link takes no more of a shard until its provider or its owner here restarts.
    #[error("link to {link}: shard {shard} stopped: origin {origin:016x} of region {region}: {reason}", origin = origin.0)]
    Stopped {
        /// The provider.
        link: Addr,
        /// The shard.
        shard: ShardId,
        /// Whose log.
        origin: Origin,
        /// The region of that origin, or of the provider where it is not known.
        region: RegionId,
        /// Why.
        reason: StopReason,
    },
    /// A subscription was refused, mostly because the two regions do not agree on who keeps the shards (R13): nothing is
    /// shipped that way.
    #[error("link to {link} refused: {detail}")]
    Refused {
        /// The other side.
        link: Addr,
        /// What was found and what to do.
        detail: String,
    },
    /// Another region has more of our current origin than we have durable: our store lost its tail while it ran (R3).
    #[error(
        "link to {link}: it has shard {shard} of our current origin {origin:016x} to {theirs}, we only to {ours}: the store \
         was rolled back while it was open; this node stops, and its next start takes a new origin",
        origin = origin.0
    )]
    AheadOfUs {
        /// The other side.
        link: Addr,
        /// The shard.
        shard: ShardId,
        /// Our current origin.
        origin: Origin,
        /// Our durable head.
        ours: Seq,
        /// What it has.
        theirs: Seq,
    },
}

/// Why a link takes no more of a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// What the provider ships does not continue what is applied here, and did not when it was asked for again.
    #[error("applied through {have}, and what is offered begins above {floor}")]
    NeedsSnapshot {
        /// Applied here.
        have: Seq,
        /// What is offered begins above this.
        floor: Seq,
    },
    /// The two logs hold different operations (R3).
    #[error(
        "diverged after {at}: running hash {ours:016x} here, {theirs:016x} there; one of the two stores is damaged or was \
         restored without a new origin"
    )]
    Diverged {
        /// Where the hashes were compared.
        at: Seq,
        /// Ours.
        ours: u64,
        /// Theirs.
        theirs: u64,
    },
    /// An operation that this build does not understand.
    #[error("operation {at} cannot be read here: {error}; upgrade this node")]
    Unreadable {
        /// Its sequence.
        at: Seq,
        /// Why.
        error: OpError,
    },
    /// Not what the log may hold there, or the log of another region.
    #[error("operation {at} is not what its log may hold there")]
    OutOfPlace {
        /// Its sequence.
        at: Seq,
    },
}

/// Where a subscription stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// The provider's node is not reachable, or a new lane is about to be opened.
    Down,
    /// A lane is open; nothing came back yet.
    Connecting,
    /// The provider answers.
    Live,
    /// The provider refused us; tried again later.
    Refused,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkState::Down => "down",
            LinkState::Connecting => "connecting",
            LinkState::Live => "live",
            LinkState::Refused => "refused",
        })
    }
}

/// Both directions to one partition of another region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// The other side.
    pub link: Addr,
    /// What we take from it, where it owns shards that we own here.
    pub pull: Option<PullStatus>,
    /// What it takes from us, where it subscribed.
    pub serve: Option<ServeStatus>,
}

/// What we take from a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullStatus {
    /// Where it stands.
    pub state: LinkState,
    /// For how long it has not been live; zero when it is.
    pub down_for: Duration,
    /// Shards that it provides.
    pub shards: usize,
    /// Shards of which no more is taken, and why.
    pub stopped: Vec<(ShardId, Origin, StopReason)>,
    /// The regions whose origins it ships to us.
    pub wanted: Vec<RegionId>,
    /// Operations of it that were applied here, since this partition's start.
    pub applied: u64,
    /// Bytes of operations that arrived, since this partition's start.
    pub received_bytes: u64,
    /// Bytes of operations that arrived and are not applied yet.
    pub held_bytes: u64,
    /// The last measured round trip.
    pub round_trip: Option<Duration>,
    /// The provider's wall clock now, unix milliseconds.
    pub remote_wall_ms: Option<u64>,
}

/// How far a subscriber is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lag {
    /// Operations that are committed here and not shipped yet.
    pub operations: u64,
    /// Of them, messages.
    pub messages: u64,
    /// Bytes of those operations.
    pub bytes: u64,
    /// When the first of them was committed here, unix milliseconds; none where nothing waits, or where that was before
    /// their shard was owned here.
    pub since_ms: Option<u64>,
    /// Part of it was committed before its shard was owned here: messages and bytes count the rest alone.
    pub at_least: bool,
}

impl Lag {
    /// The lag of both together: of two shards, links or partitions.
    pub fn add(&mut self, more: &Lag) {
        self.operations = self.operations.saturating_add(more.operations);
        self.messages = self.messages.saturating_add(more.messages);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.since_ms = self.since_ms.into_iter().chain(more.since_ms).min();
        self.at_least |= more.at_least;
    }
}

/// What a subscriber takes from us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeStatus {
    /// Whether its lane is there; while it is not, what waits is counted from where the last one had come.
    pub open: bool,
    /// Shards that it subscribed.
    pub shards: usize,
    /// Operations that are committed here and not shipped yet, for each shard that has any.
    pub lag: Vec<(ShardId, Lag)>,
    /// The same over all shards, in messages, bytes and time, too.
    pub behind: Lag,
    /// Operations shipped to it, since this partition's start.
    pub shipped: u64,
    /// Their bytes.
    pub shipped_bytes: u64,
    /// Bytes of operations shipped and not yet reported as applied.
    pub in_flight_bytes: u64,
    /// Presence records that changed and are not sent yet.
    pub presence_waiting: usize,
}

/// Counters of all links of a partition, since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LinkStats {
    /// Lanes opened to providers.
    pub lanes_opened: u64,
    /// Lanes to providers that died.
    pub lanes_lost: u64,
    /// Lanes that subscribers opened.
    pub lanes_served: u64,
    /// Messages of older lanes or unknown partners, ignored.
    pub stale: u64,
    /// Operations shipped to subscribers.
    pub ops_shipped: u64,
    /// Their bytes.
    pub bytes_shipped: u64,
    /// Messages to subscribers that carried them.
    pub messages_shipped: u64,
    /// Of the operations, those shipped from memory right after their commit.
    pub ops_shipped_hot: u64,
    /// Pages read from the store to catch up.
    pub pages_read: u64,
    /// Operations received from providers.
    pub ops_received: u64,
    /// Runs received that were known in full.
    pub runs_known: u64,
    /// Runs received that did not continue what was there, dropped and asked for again.
    pub runs_gapped: u64,
    /// Runs received beyond the credit given.
    pub overruns: u64,
    /// Runs handed to the store.
    pub applies: u64,
    /// Operations applied whose time lay ahead of our clock by more than the drift bound (R7).
    pub drifted: u64,
    /// Times that another region had what our store lost (R4).
    pub losses: u64,
    /// Snapshots asked for (R11).
    pub snapshots_asked: u64,
    /// Snapshots merged to their end.
    pub snapshots_taken: u64,
    /// Snapshots given up: the next one begins anew.
    pub snapshots_ended: u64,
    /// Pages of snapshots received.
    pub snapshot_pages: u64,
    /// Pages of snapshots sent.
    pub snapshot_pages_sent: u64,
    /// Runs that the store could not take for now.
    pub apply_retries: u64,
    /// Presence records sent.
    pub presence_sent: u64,
    /// Presence records received.
    pub presence_received: u64,
    /// Times that so many changes waited for a link that they were left to the digests.
    pub presence_overflows: u64,
    /// Shards that were looked into because their digests differed.
    pub presence_mismatches: u64,
    /// Records sent for it, among all that were sent.
    pub presence_repaired: u64,
    /// Bytes sent for it: these records, what it took to find them, and the digests of links that are new.
    pub presence_repair_bytes: u64,
    /// Bytes of the digests that are said every few seconds.
    pub presence_digest_bytes: u64,
}
