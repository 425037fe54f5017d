//! What we take from providers: lanes, what is subscribed on them, credit, round trips.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::repair::Heard;
use super::report::{LinkAlarm, LinkState, PullStatus, StopReason};
use super::{LinkOutput, Links, Peer, PeerId};
use crate::core::ids::{Generation, Origin, RegionId, Seq, ShardId};
use crate::core::limits::ms;
use crate::core::msg::{ToProvider, ToSubscriber};
use crate::core::time::{Mono, Now};
use crate::core::vector::Vector;

/// Positions that one `Subscribe` carries at most: some 300 KB, so that pings are not held up behind it for long.
const SUBSCRIBE_POSITIONS: usize = 16 * 1024;
/// Shards that one `Subscribe` or `Unsubscribe` names at most.
const SUBSCRIBE_SHARDS: usize = 1024;
/// A lane lives at least so long before the next one is opened, whatever the provider says.
const REOPEN_MIN: Duration = Duration::from_millis(100);
/// After a refusal it is an operator's turn, or a change of the holders has yet to come there (R13): asked again only so often.
const REFUSED_RETRY: Duration = Duration::from_secs(5);
/// Credit below a quarter of the window goes back after so long: the last bytes of a burst need no message each.
const CREDIT_DELAY: Duration = Duration::from_millis(20);
/// Unanswered pings that are remembered.
const PINGS: usize = 16;

/// What we take from one partition of another region.
#[derive(Debug)]
pub(super) struct Pull {
    /// Shards that we own and it owns in its region.
    pub shards: BTreeSet<ShardId>,
    /// Its node has a connection.
    reachable: bool,
    state: State,
    /// The lane that is open, or was last.
    lane: u64,
    opened: Mono,
    /// Since when it has not been live.
    down_since: Mono,
    heard: Mono,
    /// Subscribed on this lane.
    on_lane: BTreeSet<ShardId>,
    pub add: BTreeSet<ShardId>,
    pub drop: BTreeSet<ShardId>,
    /// As told on this lane.
    wanted: BTreeSet<RegionId>,
    /// As it should be, and since when.
    pub desired: BTreeMap<RegionId, Mono>,
    /// The provider wants to hear what becomes durable here of its region's origins.
    pub reports: bool,
    /// Of that, what is to be told.
    pub copies: BTreeMap<(ShardId, Origin), Seq>,
    pings: VecDeque<(u64, Mono)>,
    round_trip: Option<Duration>,
    /// Operations of it that were applied.
    pub applied: u64,
    /// Bytes of operations that arrived.
    received: u64,
    /// Bytes that arrived and are queued or in flight to the store.
    held: u64,
    /// Bytes that may be sent again and the provider does not know yet.
    returned: u64,
    credit_at: Option<Mono>,
    credit_due: bool,
    /// Shards of which no more is taken.
    pub stopped: BTreeMap<ShardId, (Origin, StopReason)>,
    /// Shards that were asked for again because a run did not fit.
    pub gaps: BTreeMap<ShardId, Gap>,
    /// Shards where the store itself saw a gap since the last run that it took.
    pub strikes: BTreeSet<ShardId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No lane; the next one not before this.
    Down(Mono),
    Connecting,
    Live,
    /// Refused; the next lane not before this.
    Refused(Mono),
}

/// How far asking for a shard again has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// To be asked.
    Due,
    /// Asked, followed by this ping: what arrives before its answer was sent before.
    Asked(u64),
    /// What arrives now must fit.
    Answered,
}

/// Whether a region answers.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// The last round trip, or when we began to care.
    last: Option<Now>,
    told: Option<bool>,
}

impl Reach {
    /// It answered; or the first shard is owned here, and from now on it ought to.
    pub fn begin(&mut self, now: Now) {
        self.last = Some(now);
    }

    /// Whether the region was told to be reachable.
    pub fn reachable(&self) -> bool {
        self.told == Some(true)
    }
}

impl Pull {
    pub fn new(reachable: bool, now: Mono) -> Self {
        Self {
            shards: BTreeSet::new(),
            reachable,
            state: State::Down(now),
            lane: 0,
            opened: Mono(0),
            down_since: now,
            heard: now,
            on_lane: BTreeSet::new(),
            add: BTreeSet::new(),
            drop: BTreeSet::new(),
            wanted: BTreeSet::new(),
            desired: BTreeMap::new(),
            reports: false,
            copies: BTreeMap::new(),
            pings: VecDeque::new(),
            round_trip: None,
            applied: 0,
            received: 0,
            held: 0,
            returned: 0,
            credit_at: None,
            credit_due: false,
            stopped: BTreeMap::new(),
            gaps: BTreeMap::new(),
            strikes: BTreeSet::new(),
        }
    }

    pub fn lane(&self) -> u64 {
        self.lane
    }

    /// Whether `lane` is the one that is open.
    pub fn open_as(&self, lane: u64) -> bool {
        self.is_open() && self.lane == lane
    }

    /// Whether it answers and gives us this shard.
    pub fn gives(&self, shard: ShardId) -> bool {
        self.state == State::Live && self.shards.contains(&shard) && !self.stopped.contains_key(&shard)
    }

    /// For how long it has not been live.
    pub fn down_for(&self, now: Mono) -> Duration {
        match self.state {
            State::Live => Duration::ZERO,
            _ => now.since(self.down_since),
        }
    }

    /// When there is something to do that nobody else would bring up.
    pub fn due(&self) -> Option<Mono> {
        let open = match self.state {
            State::Down(at) | State::Refused(at) if self.reachable && !self.shards.is_empty() => Some(at),
            _ => None,
        };
        self.credit_at.into_iter().chain(open).min()
    }

    /// Whether something of [`Pull::due`] is to be flushed now.
    pub fn take_due(&mut self, now: Mono) -> bool {
        if self.credit_at.is_some_and(|at| at <= now) {
            self.credit_at = None;
            self.credit_due = true;
        }
        self.credit_due || self.may_open(now)
    }

    fn may_open(&self, now: Mono) -> bool {
        match self.state {
            State::Down(at) | State::Refused(at) => at <= now && self.reachable && !self.shards.is_empty(),
            _ => false,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.state, State::Connecting | State::Live)
    }

    /// Whether it answers.
    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }
}

impl Links {
    /// Changes who provides an owned shard in a region.
    pub(super) fn set_provider(&mut self, shard: ShardId, region: &RegionId, new: Option<PeerId>) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        let old = match new {
            Some(new) => owned.remotes.insert(region.clone(), new),
            None => owned.remotes.remove(region),
        };
        if old == new {
            return;
        }
        if let Some(old) = old {
            let taken =
                owned.awaits == Some(old) || owned.taking.as_ref().is_some_and(|taking| taking.peer == old);
            owned.has.remove(region);
            if taken {
                self.give_up_snapshot(shard);
            }
            let pull = &mut self.peers[old].pull;
            pull.shards.remove(&shard);
            pull.add.remove(&shard);
            pull.gaps.remove(&shard);
            pull.strikes.remove(&shard);
            pull.stopped.remove(&shard);
            if pull.on_lane.contains(&shard) {
                pull.drop.insert(shard);
            }
            self.touched.insert(old);
        }
        if let Some(new) = new {
            let now = self.now.mono;
            let pull = &mut self.peers[new].pull;
            if pull.shards.is_empty() && pull.state != State::Live {
                pull.down_since = now;
            }
            pull.shards.insert(shard);
            pull.add.insert(shard);
            self.touched.insert(new);
        }
        self.choose = true;
    }

    /// A provider that restarted may have what it lacked before.
    pub(super) fn set_generation(&mut self, peer: PeerId, generation: Generation) {
        let known = self.peers[peer].generation.replace(generation);
        if known.is_none() || known == Some(generation) {
            return;
        }
        let now = self.now.mono;
        self.peers[peer].wall = None;
        let pull = &mut self.peers[peer].pull;
        let stopped = std::mem::take(&mut pull.stopped);
        pull.strikes.clear();
        pull.add.extend(stopped.into_keys());
        if let State::Refused(_) = pull.state {
            pull.state = State::Down(now);
        }
        self.touched.insert(peer);
        self.choose = true;
    }

    pub(super) fn set_reachable(&mut self, peer: PeerId, up: bool) {
        self.peers[peer].pull.reachable = up;
        if up {
            self.touched.insert(peer);
        } else {
            self.close_lane(peer, Duration::ZERO);
        }
    }

    /// The lane is dead. What it brought stays queued, and counts against the credit of the next one.
    pub(super) fn close_lane(&mut self, peer: PeerId, delay: Duration) {
        let now = self.now.mono;
        let pull = &mut self.peers[peer].pull;
        if !pull.is_open() {
            return;
        }
        if pull.state == State::Live {
            pull.down_since = now;
        }
        let again = (now + delay).max(pull.opened + REOPEN_MIN);
        pull.state = State::Down(again);
        pull.credit_at = None;
        pull.credit_due = false;
        pull.gaps.clear();
        pull.on_lane.clear();
        self.stats.lanes_lost += 1;
        self.choose = true;
        self.touched.insert(peer);
        self.give_up_snapshots(peer);
    }

    pub(super) fn pull_message(&mut self, peer: PeerId, body: ToSubscriber) {
        let now = self.now;
        let pull = &mut self.peers[peer].pull;
        pull.heard = now.mono;
        let refused = matches!(body, ToSubscriber::Reset | ToSubscriber::Refused { .. });
        if pull.state == State::Connecting && !refused {
            pull.state = State::Live;
            self.choose = true;
            self.compare_all(peer);
        }
        match body {
            ToSubscriber::Reset => self.close_lane(peer, Duration::ZERO),
            ToSubscriber::Refused { detail, removed } => {
                self.close_lane(peer, Duration::ZERO);
                self.peers[peer].pull.state = State::Refused(now.mono + REFUSED_RETRY);
                // Once this region knows that it was removed, being refused is no news.
                if removed.is_none() || !self.is_removed() {
                    let link = self.peers[peer].addr.clone();
                    let alarm = LinkAlarm::Refused { link, detail };
                    self.outputs.push_back(LinkOutput::Alarm(alarm));
                }
                if let Some(change) = removed.filter(|change| !change.set.contains(&self.config.region)) {
                    self.outputs.push_back(LinkOutput::Removed(change));
                }
            }
            ToSubscriber::Ops(runs) => self.receive(peer, runs),
            ToSubscriber::NeedsSnapshot { shard, origin, floor } => self.trimmed(peer, shard, origin, floor),
            ToSubscriber::Presence(records) | ToSubscriber::PresenceRepair(records) => {
                self.merge_records(peer, records);
                self.tell_provider(peer, ToProvider::PresenceCredit);
            }
            ToSubscriber::PresenceDigests { at_once, shards } => {
                self.hear_presence(peer, Heard::Digests { at_once, shards });
            }
            ToSubscriber::PresenceCompared { salt, parts } => {
                self.tell_provider(peer, ToProvider::PresenceCredit);
                self.hear_presence(peer, Heard::Compared { salt, parts });
            }
            ToSubscriber::Have(list) => self.have(peer, list),
            ToSubscriber::Snapshot(piece) => self.receive_piece(peer, *piece),
            ToSubscriber::ReportCopies => self.report_from_now(peer),
            ToSubscriber::Pong { nonce, wall_ms } => self.pong(peer, nonce, wall_ms),
        }
    }

    /// Bytes that were held are applied or dropped: they may be sent again.
    pub(super) fn release(&mut self, peer: PeerId, bytes: u64) {
        let window = self.config.limits.link_bytes;
        let pull = &mut self.peers[peer].pull;
        pull.held = pull.held.saturating_sub(bytes);
        if !pull.is_open() {
            return;
        }
        pull.returned += bytes;
        if pull.returned >= window / 4 {
            pull.credit_due = true;
            self.touched.insert(peer);
        } else if pull.credit_at.is_none() && pull.returned > 0 {
            pull.credit_at = Some(self.now.mono + CREDIT_DELAY);
        }
    }

    /// Counts bytes that arrived; `false` where the provider had no credit for them.
    pub(super) fn hold_bytes(&mut self, peer: PeerId, bytes: u64, slack: u64) -> bool {
        let pull = &mut self.peers[peer].pull;
        pull.held += bytes;
        pull.received += bytes;
        pull.held <= self.config.limits.link_bytes + slack
    }

    /// Asks for a shard again from what is applied.
    pub(super) fn ask_again(&mut self, peer: PeerId, shard: ShardId) {
        // Its snapshot would end with the subscription; what is missing then is asked for after it.
        let taking = self.owned.get(&shard).and_then(|owned| owned.taking.as_ref());
        if taking.is_some_and(|taking| taking.peer == peer) {
            return;
        }
        let pull = &mut self.peers[peer].pull;
        if !pull.is_open() || !pull.on_lane.contains(&shard) || pull.stopped.contains_key(&shard) {
            return;
        }
        pull.drop.insert(shard);
        pull.add.insert(shard);
        pull.gaps.insert(shard, Gap::Due);
        self.touched.insert(peer);
    }

    /// Takes no more of a shard from a provider.
    pub(super) fn stop_shard(&mut self, peer: PeerId, shard: ShardId, origin: Origin, reason: StopReason) {
        let pull = &mut self.peers[peer].pull;
        if !pull.shards.contains(&shard) || pull.stopped.contains_key(&shard) {
            return;
        }
        pull.stopped.insert(shard, (origin, reason.clone()));
        pull.gaps.remove(&shard);
        pull.add.remove(&shard);
        if pull.on_lane.contains(&shard) {
            pull.drop.insert(shard);
        }
        self.touched.insert(peer);
        self.choose = true;
        self.drop_queued(shard, |item| item.peer == peer);
        let link = self.peers[peer].addr.clone();
        let log = self.owned.get(&shard).and_then(|owned| owned.logs.get(&origin));
        let region = log.map_or_else(|| link.node.region.clone(), |log| log.region.clone());
        let alarm = LinkAlarm::Stopped {
            link,
            shard,
            origin,
            region,
            reason,
        };
        self.outputs.push_back(LinkOutput::Alarm(alarm));
    }

    /// Opens the lane if it may be, or says on it what changed.
    pub(super) fn flush_pull(&mut self, peer: PeerId) {
        let now = self.now.mono;
        if !self.peers[peer].pull.is_open() {
            if self.peers[peer].pull.may_open(now) {
                self.open_lane(peer);
            }
            return;
        }
        self.flush_copies(peer);
        let pull = &mut self.peers[peer].pull;
        let drop: Vec<ShardId> = std::mem::take(&mut pull.drop).into_iter().collect();
        pull.on_lane.retain(|shard| drop.binary_search(shard).is_err());
        let mut add: Vec<ShardId> = std::mem::take(&mut pull.add).into_iter().collect();
        let stopped = &pull.stopped;
        add.retain(|shard| pull.shards.contains(shard) && !stopped.contains_key(shard));
        let desired: BTreeSet<RegionId> = pull.desired.keys().cloned().collect();
        let wider = !desired.is_subset(&pull.wanted);
        let narrower = !wider && desired != pull.wanted;
        pull.wanted = desired;
        if wider {
            // What is applied now is said for every shard: much of what is newly wanted may have come from elsewhere.
            let rest = pull
                .on_lane
                .iter()
                .filter(|shard| add.binary_search(shard).is_err());
            let rest: Vec<ShardId> = rest.copied().collect();
            add.extend(rest);
        }
        pull.on_lane.extend(add.iter().copied());
        let empty = pull.shards.is_empty();
        for shards in drop.chunks(SUBSCRIBE_SHARDS) {
            self.tell_provider(peer, ToProvider::Unsubscribe(shards.to_vec()));
        }
        if empty {
            let pull = &mut self.peers[peer].pull;
            pull.state = State::Down(now);
            pull.down_since = now;
            pull.credit_at = None;
            return;
        }
        if !add.is_empty() || wider {
            self.subscribe(peer, &add, false);
        } else if narrower {
            let wanted = self.peers[peer].pull.wanted.iter().cloned().collect();
            self.tell_provider(peer, ToProvider::Want(wanted));
        }
        if self.peers[peer].pull.gaps.values().any(|gap| *gap == Gap::Due) {
            let nonce = self.ping(peer);
            let gaps = self.peers[peer].pull.gaps.values_mut();
            gaps.filter(|gap| **gap == Gap::Due)
                .for_each(|gap| *gap = Gap::Asked(nonce));
        }
        let pull = &mut self.peers[peer].pull;
        if std::mem::take(&mut pull.credit_due) && pull.returned > 0 {
            let credit = std::mem::take(&mut pull.returned);
            pull.credit_at = None;
            self.tell_provider(peer, ToProvider::Credit(credit));
        }
    }

    /// Pings, gives up mute lanes, and tells what regions are out of reach.
    pub(super) fn tick_pulls(&mut self) {
        let now = self.now;
        let timeout = ms(self.config.limits.link_timeout_ms);
        let mut degraded = false;
        for peer in 0..self.peers.len() {
            let pull = &self.peers[peer].pull;
            if pull.shards.is_empty() {
                continue;
            }
            degraded |= pull.state != State::Live;
            if !pull.is_open() {
                continue;
            }
            if now.mono.since(pull.heard) >= timeout {
                self.close_lane(peer, Duration::ZERO);
            } else {
                self.ping(peer);
            }
        }
        if self.owned.is_empty() {
            return;
        }
        for (region, reach) in &mut self.reach {
            degraded |= !reach.reachable();
            let Some(last) = reach.last else { continue };
            if reach.told != Some(false) && now.mono.since(last.mono) >= timeout {
                reach.told = Some(false);
                self.outputs.push_back(LinkOutput::RegionReach {
                    region: region.clone(),
                    reachable: false,
                    since_ms: last.wall_ms,
                });
            }
        }
        // Relays are asked after a while without the direct link, so the choice changes with time.
        self.choose |= degraded;
    }

    pub(super) fn pull_status(&self, peer: &Peer, now: Now) -> Option<PullStatus> {
        let pull = &peer.pull;
        if pull.shards.is_empty() {
            return None;
        }
        let stopped = pull.stopped.iter();
        Some(PullStatus {
            state: match pull.state {
                State::Down(_) => LinkState::Down,
                State::Connecting => LinkState::Connecting,
                State::Live => LinkState::Live,
                State::Refused(_) => LinkState::Refused,
            },
            down_for: pull.down_for(now.mono),
            shards: pull.shards.len(),
            stopped: stopped
                .map(|(shard, (origin, reason))| (*shard, *origin, reason.clone()))
                .collect(),
            wanted: pull.wanted.iter().cloned().collect(),
            applied: pull.applied,
            received_bytes: pull.received,
            held_bytes: pull.held,
            round_trip: pull.round_trip,
            remote_wall_ms: peer.wall_at(now.mono),
        })
    }

    fn open_lane(&mut self, peer: PeerId) {
        let now = self.now.mono;
        self.lanes += 1;
        self.stats.lanes_opened += 1;
        let window = self.config.limits.link_bytes;
        let pull = &mut self.peers[peer].pull;
        pull.lane = self.lanes;
        pull.state = State::Connecting;
        pull.opened = now;
        pull.heard = now;
        pull.add.clear();
        pull.drop.clear();
        pull.reports = false;
        pull.copies.clear();
        pull.pings.clear();
        pull.gaps.clear();
        pull.wanted = pull.desired.keys().cloned().collect();
        let shards = pull
            .shards
            .iter()
            .filter(|shard| !pull.stopped.contains_key(shard));
        let shards: Vec<ShardId> = shards.copied().collect();
        pull.on_lane = shards.iter().copied().collect();
        // What is left of the lane before returns to this lane's credit.
        let credit = window.saturating_sub(pull.held);
        pull.returned = 0;
        pull.credit_at = None;
        pull.credit_due = false;
        self.subscribe(peer, &shards, true);
        self.tell_provider(peer, ToProvider::Credit(credit));
        self.ping(peer);
    }

    fn subscribe(&mut self, peer: PeerId, shards: &[ShardId], mut first: bool) {
        let wanted: Vec<RegionId> = self.peers[peer].pull.wanted.iter().cloned().collect();
        let holders: BTreeSet<RegionId> = self.partners().cloned().collect();
        let holders: Vec<RegionId> = holders.into_iter().collect();
        let mut left = shards.iter().peekable();
        loop {
            let mut chunk: Vec<(ShardId, Vector)> = Vec::new();
            let mut positions = 0;
            while positions < SUBSCRIBE_POSITIONS && chunk.len() < SUBSCRIBE_SHARDS {
                let Some(shard) = left.next() else { break };
                let Some(owned) = self.owned.get(shard) else {
                    continue;
                };
                let applied = owned.applied();
                positions += applied.len() + 1;
                chunk.push((*shard, applied));
            }
            let last = left.peek().is_none();
            let body = ToProvider::Subscribe {
                first,
                holders: holders.clone(),
                shards: chunk,
                wanted: wanted.clone(),
                last,
            };
            self.tell_provider(peer, body);
            first = false;
            if last {
                return;
            }
        }
    }

    fn ping(&mut self, peer: PeerId) -> u64 {
        self.nonces += 1;
        let nonce = self.nonces;
        let now = self.now;
        let pings = &mut self.peers[peer].pull.pings;
        if pings.len() >= PINGS {
            pings.pop_front();
        }
        pings.push_back((nonce, now.mono));
        let wall_ms = now.wall_ms;
        self.tell_provider(peer, ToProvider::Ping { nonce, wall_ms });
        nonce
    }

    fn pong(&mut self, peer: PeerId, nonce: u64, wall_ms: u64) {
        let now = self.now;
        let Peer { addr, pull, wall, .. } = &mut self.peers[peer];
        *wall = Some((wall_ms, now.mono));
        while let Some((sent_nonce, sent)) = pull.pings.front().copied() {
            if sent_nonce > nonce {
                break;
            }
            pull.pings.pop_front();
            if sent_nonce == nonce {
                pull.round_trip = Some(now.mono.since(sent));
            }
        }
        for gap in pull.gaps.values_mut() {
            if matches!(gap, Gap::Asked(asked) if *asked <= nonce) {
                *gap = Gap::Answered;
            }
        }
        let Some(reach) = self.reach.get_mut(&addr.node.region) else {
            return;
        };
        reach.begin(now);
        if reach.told != Some(true) {
            reach.told = Some(true);
            self.outputs.push_back(LinkOutput::RegionReach {
                region: addr.node.region.clone(),
                reachable: true,
                since_ms: now.wall_ms,
            });
        }
    }
}
