//! Links: replication between regions (R1, R3, R5, R6).
//!
//! A partition that owns shards has a link to each partition of another region that owns some of the same shards. Each
//! link has two sides here: what *we pull* from it as a subscriber, and what *we serve* to it as a provider.
//!
//! ```text
//!            pull (we subscribe)                                 serve (it subscribes)
//!  Ops ──> queue of the shard ──> Apply ──> store       committed ──┬── level: shipped at once from memory
//!   ^        bytes held              │                              └── behind: ReadLog pages, round robin
//!   └─────── Credit when applied <───┘                   at most the credit in flight, then it waits
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `pull` | lanes to providers: opening, what is subscribed, round trips, reachability of regions |
//! | `apply` | runs that arrived: order per shard and origin, one in flight, what follows from outcomes |
//! | `relay` | which provider is asked for which region's origins |
//! | `serve` | lanes of subscribers, what they take |
//! | `position` | where a subscriber stands in each log, its credit |
//! | `ship` | shipping from memory and from the log |
//! | `clocks` | what the clocks of the other regions say |
//! | `recover` | what others have, whether a shard has caught up, proofs of a lost store |
//! | `snapshot` | snapshots of shards, both sides |
//! | `trail` | what was committed of late: lag in messages, bytes and time |
//! | `exchange` | presence to subscribers: changes in batches |
//! | `repair` | digests of presence, and what follows where they differ |
//! | `partners` | regions that come and go (R13) |
//! | `retired` | old origins that are gone here |
//! | `report` | alarms, states, counters |
//!
//! # Order and loss
//!
//! Messages on a lane arrive in order, or the lane dies: when either side sees its connection break, the subscriber opens
//! the next lane and says again what is applied. So a run that does not continue what is there is an exception, which is
//! answered by asking for the shard once more; if what then comes does not fit either, the shard's link stops visibly.
//!
//! # Memory
//!
//! What arrived and is not applied is at most [`CoreLimits::link_bytes`] on each link (or one operation, where that is
//! larger): the provider ships only within its credit, and credit returns when the store has applied.

mod apply;
mod clocks;
mod copies;
mod exchange;
mod pace;
mod partners;
mod position;
mod pull;
mod recover;
mod relay;
mod repair;
mod report;
mod retired;
mod serve;
mod ship;
mod snapshot;
#[cfg(test)]
mod tests;
mod trail;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use exchange::IN_FLIGHT as PRESENCE_IN_FLIGHT;
pub use report::{Lag, LinkAlarm, LinkState, LinkStats, LinkStatus, PullStatus, ServeStatus, StopReason};

use self::apply::{Applying, Held, Queued};
use self::position::Serve;
use self::pull::{Pull, Reach};
use self::recover::Has;
use self::repair::Heard;
use self::ship::Reading;
use self::snapshot::{PageReading, Taking};
use self::trail::Trail;
use super::commit::Outcome;
use super::holders::HoldersChange;
use super::ids::{Addr, DeviceId, Generation, NodeKey, Origin, RegionId, Seq, ShardId, UserId};
use super::limits::{CoreLimits, ms};
use super::members::Owner;
use super::msg::{Message, RecordEntry, ToProvider, ToSubscriber};
use super::op::LoggedOp;
use super::presence::Presence;
use super::snapshot::{Cut, SnapshotAt, SnapshotPage};
use super::state::Logged;
use super::storage::{LogPage, StoreError};
use super::time::{Mono, Now};

/// Most partitions of other regions that one partition keeps links with: bounds what is remembered of nodes that left.
pub const MAX_LINKS: usize = 4096;

/// What a partition's links are told once.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// This partition.
    pub me: Addr,
    /// Its region.
    pub region: RegionId,
    /// The regions that keep every shard at first; see [`Links::handle_regions`] (R13).
    pub holders: BTreeSet<RegionId>,
    /// Limits.
    pub limits: CoreLimits,
    /// Incarnation of this node: lanes are numbered from it, so that no number comes twice.
    pub generation: Generation,
    /// Whether the others are asked to say at once what became durable there.
    pub report_copies: bool,
}

/// Names an [`LinkOutput::Apply`] until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApplyToken(pub u64);

/// Names a [`LinkOutput::ReadLog`] until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadToken(pub u64);

/// A device of a user: what a presence record is about.
pub type DeviceKey = (UserId, DeviceId);

/// Where links find presence when they send it, or compare it.
pub trait PresenceSource {
    /// The presence of a shard that is owned here.
    fn table(&self, shard: ShardId) -> Option<&Presence>;
}

/// What links want done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkOutput {
    /// A message for a partition of another region.
    ToPeer {
        /// Which.
        to: Addr,
        /// What.
        message: Message,
    },
    /// Apply a run of another origin's log; answered with [`Links::handle_applied`]. One is in flight for each shard.
    Apply {
        /// To be given with the answer.
        token: ApplyToken,
        /// The shard.
        shard: ShardId,
        /// Whose log.
        origin: Origin,
        /// The region of that origin.
        region: RegionId,
        /// Sequence of the first operation.
        first: Seq,
        /// Running hash before it (R3).
        before: u64,
        /// The operations.
        ops: Vec<LoggedOp>,
    },
    /// Read a run of a log; answered with [`Links::handle_log`].
    ReadLog {
        /// To be given with the answer.
        token: ReadToken,
        /// The shard.
        shard: ShardId,
        /// Whose log.
        origin: Origin,
        /// Above this.
        after: Seq,
        /// At most so many operations.
        max_items: usize,
        /// At most so many bytes, but at least one operation.
        max_bytes: usize,
    },
    /// Others removed this region, which did not hear of it: nobody takes what it accepts (R13).
    Removed(HoldersChange),
    /// Merge a page of a snapshot; answered with [`Links::handle_merged`]. One is in flight for each shard.
    Merge {
        /// To be given with the answer.
        token: ApplyToken,
        /// The shard.
        shard: ShardId,
        /// What the snapshot goes to.
        cut: Arc<Cut>,
        /// The page.
        page: Arc<SnapshotPage>,
    },
    /// Read a page of a snapshot; answered with [`Links::handle_snapshot`].
    ReadSnapshot {
        /// To be given with the answer.
        token: ReadToken,
        /// The shard.
        shard: ShardId,
        /// As the first page told.
        cut: Option<Arc<Cut>>,
        /// Behind this.
        after: SnapshotAt,
        /// At most so many items.
        max_items: usize,
        /// At most so many bytes, but at least one item.
        max_bytes: usize,
    },
    /// Another region has an origin of ours to here; where all lost some of it, less than before. Only with
    /// [`LinkConfig::report_copies`].
    Copied {
        /// The shard.
        shard: ShardId,
        /// Our origin.
        origin: Origin,
        /// The highest sequence that one of them has.
        seq: Seq,
    },
    /// A shard lacks what it once had: it is to recover (R4), and [`Links::handle_recovering`] to be told.
    Lost {
        /// The shard.
        shard: ShardId,
        /// For people.
        why: String,
        /// Nothing is lost: the others have not kept what this region, which was away, needs next (R12). It is to recover all
        /// the same, and [`Links::handle_behind`] to be told.
        whole: bool,
    },
    /// A shard that recovers has what the others have: it is to be open, and [`Links::handle_recovering`] to be told.
    CaughtUp {
        /// The shard.
        shard: ShardId,
    },
    /// Another region says that it has more of our current origin than we have. If the durable head, read now, is below
    /// that, the store was rolled back while it is open: the node must stop (R3).
    VerifyHead {
        /// Who says so.
        link: Addr,
        /// The shard.
        shard: ShardId,
        /// Our current origin.
        origin: Origin,
        /// What it has.
        theirs: Seq,
    },
    /// Merge these presence records; what was new comes back by [`Links::handle_presence_changed`] with this `from`.
    PresenceMerge {
        /// The link that they came from.
        from: Addr,
        /// The records.
        records: Vec<(ShardId, RecordEntry)>,
    },
    /// A region's links have round trips again, or have had none for [`CoreLimits::link_timeout_ms`].
    RegionReach {
        /// The region.
        region: RegionId,
        /// Whether it can be reached.
        reachable: bool,
        /// Since when, unix milliseconds: of the last round trip, if it cannot.
        since_ms: u64,
    },
    /// Something that an operator must see.
    Alarm(LinkAlarm),
}

/// The links of one partition.
#[derive(Debug)]
pub struct Links {
    config: LinkConfig,
    /// The inputs' last `now`.
    now: Now,
    peers: Vec<Peer>,
    by_addr: BTreeMap<Addr, PeerId>,
    /// Nodes of other regions with a connection.
    up: BTreeSet<NodeKey>,
    placement: BTreeMap<RegionId, BTreeMap<ShardId, PeerId>>,
    owned: BTreeMap<ShardId, Owned>,
    /// Who subscribed each shard, whether it is owned here yet or not.
    subscribers: BTreeMap<ShardId, BTreeSet<PeerId>>,
    reach: BTreeMap<RegionId, Reach>,
    /// Regions that keep what they have (R13).
    staying: BTreeSet<RegionId>,
    /// The last change of the regions; `None` until all shards were read, when nobody is told that it is none of them.
    change: Option<Option<HoldersChange>>,
    /// The origin of the last own operation seen.
    own_origin: Option<Origin>,
    /// Bytes of operations that were committed here, of any origin.
    committed_bytes: u64,
    lanes: u64,
    tokens: u64,
    nonces: u64,
    reads: BTreeMap<ReadToken, Reading>,
    page_reads: BTreeMap<ReadToken, PageReading>,
    /// Shards with something to do at a time.
    retries: BTreeSet<(Mono, ShardId)>,
    next_tick: Option<Mono>,
    /// What is wanted from which provider is to be chosen again.
    choose: bool,
    /// Links with something to send.
    touched: BTreeSet<PeerId>,
    outputs: VecDeque<LinkOutput>,
    stats: LinkStats,
}

type PeerId = usize;

/// A partition of another region.
#[derive(Debug)]
struct Peer {
    addr: Addr,
    /// As the placement says.
    generation: Option<Generation>,
    pull: Pull,
    serve: Option<Serve>,
    /// The highest lane on which it subscribed.
    served_lane: u64,
    /// What it said of presence and is not compared yet: until the outputs are polled.
    heard: Vec<Heard>,
    /// It may still believe in this lane, which we have lost: it is told when its node is reachable again.
    lost_lane: Option<u64>,
    /// Its wall clock in unix milliseconds, and when we were told.
    wall: Option<(u64, Mono)>,
    /// Where its last lane had come when it died, so that the lag is known while it is away.
    left: Option<Left>,
    /// Operations shipped to it on lanes that are gone, and their bytes.
    shipped: (u64, u64),
}

/// How far a subscriber had come.
#[derive(Debug)]
struct Left {
    /// The regions whose origins it wanted from us.
    wanted: BTreeSet<RegionId>,
    positions: BTreeMap<ShardId, BTreeMap<Origin, Seq>>,
}

/// A shard that we own.
#[derive(Debug)]
struct Owned {
    since: Mono,
    logs: BTreeMap<Origin, Log>,
    /// What is retired, with the last sequences (R23).
    retired: BTreeMap<Origin, Seq>,
    /// Of these, what providers are told to be known here.
    say: BTreeMap<Origin, Seq>,
    /// The provider in each other region.
    remotes: BTreeMap<RegionId, PeerId>,
    /// Runs that wait for the one in flight.
    queue: VecDeque<Queued>,
    applying: Option<Applying>,
    /// The store could not take a run: not before this.
    retry_at: Option<Mono>,
    /// Origins that wait for the one before them.
    held: BTreeMap<Origin, Held>,
    /// It lacks something (R4).
    recovering: bool,
    /// It recovers, and lost nothing: others may rely on what it has (R12).
    whole: bool,
    /// That it does not any more was said.
    caught_up: bool,
    /// How far other regions have our origins, where copies are reported.
    copies: BTreeMap<Origin, BTreeMap<RegionId, Seq>>,
    /// What the other regions said that they have.
    has: BTreeMap<RegionId, Has>,
    /// The snapshot that is being taken.
    taking: Option<Taking>,
    /// The provider of one that waits for its turn.
    awaits: Option<PeerId>,
}

/// One origin's log of an owned shard.
#[derive(Debug)]
struct Log {
    region: RegionId,
    /// Committed, as told by [`Links::handle_owned`] and [`Links::handle_committed`].
    head: Seq,
    /// Running hash at `head`, once known.
    hash: Option<u64>,
    /// Applied, as commits and outcomes of applies tell.
    applied: Seq,
    /// The end of what is applied, in flight or queued.
    queued: Seq,
    /// What was committed of late.
    trail: Trail,
}

impl Links {
    /// Links of a partition that owns nothing yet.
    pub fn new(config: LinkConfig) -> Self {
        let others = config.holders.iter().filter(|region| **region != config.region);
        let reach = others.map(|region| (region.clone(), Reach::default())).collect();
        let staying = config.holders.clone();
        // Room for a million lanes in each incarnation, also where the clock was set back and it grew by one only.
        let lanes = config.generation.0.saturating_mul(1 << 20);
        Self {
            config,
            now: Now {
                mono: Mono(0),
                wall_ms: 0,
            },
            peers: Vec::new(),
            by_addr: BTreeMap::new(),
            up: BTreeSet::new(),
            placement: BTreeMap::new(),
            owned: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            reach,
            staying,
            change: None,
            own_origin: None,
            committed_bytes: 0,
            lanes,
            tokens: 0,
            nonces: 0,
            reads: BTreeMap::new(),
            page_reads: BTreeMap::new(),
            retries: BTreeSet::new(),
            next_tick: None,
            choose: false,
            touched: BTreeSet::new(),
            outputs: VecDeque::new(),
            stats: LinkStats::default(),
        }
    }

    /// A shard is owned here from now on, with what is applied of each origin (read after its epoch was bumped); `None`
    /// where it is not any more.
    pub fn handle_owned(&mut self, shard: ShardId, applied: Option<Vec<(Origin, RegionId, Seq)>>, now: Now) {
        self.begin(now);
        self.disown(shard);
        let Some(applied) = applied else { return };
        if self.owned.is_empty() {
            for reach in self.reach.values_mut() {
                reach.begin(now);
            }
        }
        let log = |(origin, region, seq)| {
            let hash = (seq == 0).then_some(0);
            let log = Log {
                region,
                head: seq,
                hash,
                applied: seq,
                queued: seq,
                trail: Trail::default(),
            };
            (origin, log)
        };
        let owned = Owned {
            since: now.mono,
            logs: applied.into_iter().map(log).collect(),
            retired: BTreeMap::new(),
            say: BTreeMap::new(),
            remotes: BTreeMap::new(),
            queue: VecDeque::new(),
            applying: None,
            retry_at: None,
            held: BTreeMap::new(),
            recovering: false,
            whole: false,
            caught_up: false,
            copies: BTreeMap::new(),
            has: BTreeMap::new(),
            taking: None,
            awaits: None,
        };
        self.owned.insert(shard, owned);
        let providers: Vec<(RegionId, PeerId)> = self
            .placement
            .iter()
            .filter_map(|(region, owners)| Some((region.clone(), *owners.get(&shard)?)))
            .collect();
        for (region, peer) in providers {
            self.set_provider(shard, &region, Some(peer));
        }
        self.serve_owned(shard);
        self.choose = true;
    }

    /// Who owns each shard in another region, whenever that may have changed.
    pub fn handle_placement(&mut self, region: &RegionId, owners: &BTreeMap<ShardId, Owner>, now: Now) {
        self.begin(now);
        if *region == self.config.region {
            return;
        }
        let mut providers = BTreeMap::new();
        let mut last: Option<(&Owner, PeerId)> = None;
        for (shard, owner) in owners {
            let peer = match last {
                Some((known, peer)) if known == owner => peer,
                _ => {
                    let Some(peer) = self.peer(&owner.addr) else {
                        continue;
                    };
                    self.set_generation(peer, owner.generation);
                    last = Some((owner, peer));
                    peer
                }
            };
            providers.insert(*shard, peer);
        }
        let changed: Vec<(ShardId, Option<PeerId>)> = self
            .owned
            .iter()
            .map(|(shard, owned)| (*shard, providers.get(shard), owned.remotes.get(region)))
            .filter(|(_, new, old)| new != old)
            .map(|(shard, new, _)| (shard, new.copied()))
            .collect();
        for (shard, peer) in changed {
            self.set_provider(shard, region, peer);
        }
        self.placement.insert(region.clone(), providers);
        self.choose = true;
    }

    /// The connection to a node of another region came up, or broke: then everything in flight both ways may be lost.
    pub fn handle_reachable(&mut self, node: &NodeKey, up: bool, now: Now) {
        self.begin(now);
        let changed = if up {
            self.up.insert(node.clone())
        } else {
            self.up.remove(node)
        };
        if !changed {
            return;
        }
        let peers = (0..self.peers.len()).filter(|peer| self.peers[*peer].addr.node == *node);
        for peer in peers.collect::<Vec<_>>() {
            self.set_reachable(peer, up);
            if up {
                self.serve_reachable(peer);
            } else {
                self.lose_serve(peer);
            }
        }
    }

    /// A message from a subscriber.
    pub fn handle_to_provider(&mut self, from: &Addr, lane: u64, body: ToProvider, now: Now) {
        self.begin(now);
        self.serve_message(from, lane, body);
    }

    /// A message from a provider.
    pub fn handle_to_subscriber(&mut self, from: &Addr, lane: u64, body: ToSubscriber, now: Now) {
        self.begin(now);
        match self.by_addr.get(from) {
            Some(peer) if self.peers[*peer].pull.open_as(lane) => self.pull_message(*peer, body),
            _ => self.stats.stale += 1,
        }
    }

    /// Operations that were committed here, own and applied, in order, right after their commit.
    pub fn handle_committed(&mut self, logged: &[Logged], now: Now) {
        self.begin(now);
        for entry in logged {
            self.committed(entry);
        }
    }

    /// The answer to [`LinkOutput::Apply`]; what it committed is told before by [`Links::handle_committed`].
    pub fn handle_applied(
        &mut self,
        token: ApplyToken,
        shard: ShardId,
        origin: Origin,
        outcome: Result<Outcome, StoreError>,
        now: Now,
    ) {
        self.begin(now);
        self.applied(token, shard, origin, outcome);
    }

    /// The answer to [`LinkOutput::ReadLog`].
    pub fn handle_log(&mut self, token: ReadToken, page: Result<LogPage, StoreError>, now: Now) {
        self.begin(now);
        self.page_read(token, page);
    }

    /// The answer to [`LinkOutput::Merge`].
    pub fn handle_merged(
        &mut self,
        token: ApplyToken,
        shard: ShardId,
        outcome: Result<Outcome, StoreError>,
        now: Now,
    ) {
        self.begin(now);
        self.merged(token, shard, outcome);
    }

    /// The answer to [`LinkOutput::ReadSnapshot`].
    pub fn handle_snapshot(
        &mut self,
        token: ReadToken,
        page: Result<(Arc<Cut>, Box<SnapshotPage>), StoreError>,
        now: Now,
    ) {
        self.begin(now);
        self.snapshot_read(token, page);
    }

    /// A presence record changed here: by a session of ours, or merged from the link `from`, which is not told.
    pub fn handle_presence_changed(
        &mut self,
        shard: ShardId,
        user: &UserId,
        device: &DeviceId,
        from: Option<&Addr>,
        now: Now,
    ) {
        self.begin(now);
        self.presence_changed(shard, user, device, from);
    }

    /// Does what is due; see [`Links::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Now) {
        self.begin(now);
        while let Some((at, shard)) = self.retries.first().copied() {
            if at > now.mono {
                break;
            }
            self.retries.pop_first();
            self.retry(shard);
        }
        for (id, peer) in self.peers.iter_mut().enumerate() {
            let pull = peer.pull.take_due(now.mono);
            let serve = peer.serve.as_mut().is_some_and(|serve| serve.take_due(now.mono));
            if pull || serve {
                self.touched.insert(id);
            }
        }
        if self.next_tick.is_some_and(|at| at <= now.mono) {
            self.next_tick = Some(now.mono + ms(self.config.limits.ping_ms));
            self.tick_pulls();
            self.tick_serves();
            self.tick_recovery();
        }
    }

    /// When [`Links::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Mono> {
        let retry = self.retries.first().map(|(at, _)| *at);
        let links = self.peers.iter().flat_map(|peer| {
            let serve = peer.serve.as_ref().and_then(Serve::due);
            peer.pull.due().into_iter().chain(serve)
        });
        links.chain(retry).chain(self.next_tick).min()
    }

    /// The next thing to do; `presence` is asked for what is sent and compared of it.
    pub fn poll_output(&mut self, presence: &dyn PresenceSource) -> Option<LinkOutput> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            if std::mem::take(&mut self.choose) {
                self.choose_providers();
                continue;
            }
            let peer = self.touched.pop_first()?;
            self.flush_pull(peer);
            self.flush_serve(peer, presence);
        }
    }

    /// Counters since the start.
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// Where each link stands, in order of the other sides; for people, walks all shards.
    pub fn snapshot(&self, now: Now) -> Vec<LinkStatus> {
        let links = self.by_addr.values().map(|id| &self.peers[*id]);
        links
            .map(|peer| LinkStatus {
                link: peer.addr.clone(),
                pull: self.pull_status(peer, now),
                serve: self.serve_status(peer),
            })
            .filter(|status| status.pull.is_some() || status.serve.is_some())
            .collect()
    }

    fn begin(&mut self, now: Now) {
        self.now = now;
        if self.next_tick.is_none() {
            self.next_tick = Some(now.mono + ms(self.config.limits.ping_ms));
        }
    }

    /// The number of a partition of another region; `None` for one that can have no link with us.
    fn peer(&mut self, addr: &Addr) -> Option<PeerId> {
        if !self.reach.contains_key(&addr.node.region) {
            return None;
        }
        if let Some(peer) = self.by_addr.get(addr) {
            return Some(*peer);
        }
        if self.peers.len() >= MAX_LINKS {
            return None;
        }
        let id = self.peers.len();
        self.peers.push(Peer {
            addr: addr.clone(),
            generation: None,
            pull: Pull::new(self.up.contains(&addr.node), self.now.mono),
            serve: None,
            served_lane: 0,
            heard: Vec::new(),
            lost_lane: None,
            wall: None,
            left: None,
            shipped: (0, 0),
        });
        self.by_addr.insert(addr.clone(), id);
        Some(id)
    }

    fn is_up(&self, peer: PeerId) -> bool {
        self.up.contains(&self.peers[peer].addr.node)
    }

    fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    fn tell_provider(&mut self, peer: PeerId, body: ToProvider) {
        let to = self.peers[peer].addr.clone();
        let lane = self.peers[peer].pull.lane();
        let message = Message::ToProvider { lane, body };
        self.outputs.push_back(LinkOutput::ToPeer { to, message });
    }

    fn tell_subscriber(&mut self, peer: PeerId, lane: u64, body: ToSubscriber) {
        let to = self.peers[peer].addr.clone();
        let message = Message::ToSubscriber { lane, body };
        self.outputs.push_back(LinkOutput::ToPeer { to, message });
    }
}

impl Peer {
    fn wall_at(&self, now: Mono) -> Option<u64> {
        let (wall_ms, at) = self.wall?;
        Some(wall_ms.saturating_add(now.since(at).as_millis() as u64))
    }
}
