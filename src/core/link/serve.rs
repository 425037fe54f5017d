//! What subscribers take from us: a position for each shard and origin, moved on by shipping.
//!
//! An operation that was just committed and continues a position is shipped from memory. A position that fell behind
//! (at the start, or for want of credit) is caught up with pages of the log, shards taking turns, until it is level.
//! Of one region's origins the older goes before the newer: a log that begins after another one waits for it (R1).
//! Nothing is shipped before its commit came back (R5), and nothing goes back to the region that it came from.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::exchange::Exchange;
use super::report::{LinkAlarm, ServeStatus};
use super::{LinkOutput, LinkStats, Links, Log, Owned, PeerId, PresenceSource, ReadToken};
use crate::core::ids::{Addr, Coord, Origin, RegionId, Seq, ShardId};
use crate::core::limits::ms;
use crate::core::msg::{MAX_ITEMS, Message, Run, ToProvider, ToSubscriber};
use crate::core::op::{LogEntry, LoggedOp, Op, kind};
use crate::core::state::Logged;
use crate::core::storage::{LogPage, MAX_PAGE_ITEMS, StoreError};
use crate::core::time::Mono;
use crate::core::vector::Vector;

/// Bytes of operations in one message: enough that headers cost nothing, little enough that pings are not held up.
const MESSAGE_BYTES: u64 = 256 * 1024;
/// Bytes of one page read to catch up.
const READ_BYTES: u64 = 256 * 1024;
/// Pages that one subscriber has in flight from the store: keeps the disk busy without crowding out others.
const READS: usize = 4;
/// After a failed read, the next one waits so long.
const READ_RETRY: Duration = Duration::from_millis(500);
/// Shards that one subscriber may name: more than any cluster has.
const MAX_SHARDS: usize = 64 * 1024;

/// What one partition of another region takes from us.
#[derive(Debug)]
pub(super) struct Serve {
    pub lane: u64,
    wanted: BTreeSet<RegionId>,
    pub shards: BTreeMap<ShardId, Served>,
    /// Bytes that may be shipped.
    credit: u64,
    /// Of those, set aside for pages on their way from the store.
    reserved: u64,
    /// The most credit there ever was on this lane: so much again means that nothing is in flight.
    window: u64,
    /// An operation of this size found no room: nothing else is shipped from memory before it.
    need: u64,
    behind: VecDeque<(ShardId, Origin)>,
    reads: usize,
    pause_until: Option<Mono>,
    batch: Batch,
    heard: Mono,
    pub exchange: Exchange,
}

/// A subscribed shard.
#[derive(Debug, Default)]
pub(super) struct Served {
    positions: BTreeMap<Origin, Position>,
    /// Nothing is shipped until it is subscribed again: it needs a snapshot.
    stopped: bool,
    /// Positions that wait for another origin.
    waiting: usize,
}

#[derive(Debug, Default)]
struct Position {
    /// Shipped, or known there.
    seq: Seq,
    queued: bool,
    reading: Option<ReadToken>,
    waits: Option<Coord>,
}

/// A page on its way from the store.
#[derive(Debug)]
pub(super) struct Reading {
    peer: PeerId,
    lane: u64,
    shard: ShardId,
    origin: Origin,
    after: Seq,
    reserved: u64,
}

/// Runs for the next message.
#[derive(Debug, Default)]
struct Batch {
    runs: Vec<Run>,
    index: BTreeMap<(ShardId, Origin), usize>,
    bytes: u64,
    ops: usize,
}

impl Batch {
    /// Adds an operation; says whether the message is full.
    fn push(
        &mut self,
        shard: ShardId,
        origin: Origin,
        region: &RegionId,
        before: u64,
        entry: &LogEntry,
    ) -> bool {
        let bytes = entry.op.bytes().clone();
        self.bytes += bytes.len() as u64;
        self.ops += 1;
        let known = self.index.get(&(shard, origin)).map(|at| &mut self.runs[*at]);
        match known.filter(|run| run.first + run.ops.len() as u64 == entry.seq) {
            Some(run) => run.ops.push(bytes),
            None => {
                self.index.insert((shard, origin), self.runs.len());
                self.runs.push(Run {
                    shard,
                    origin,
                    region: region.clone(),
                    first: entry.seq,
                    before,
                    ops: vec![bytes],
                    count: 0,
                });
            }
        }
        self.bytes >= MESSAGE_BYTES || self.ops >= MAX_ITEMS
    }
}

impl Serve {
    fn new(lane: u64, now: Mono) -> Self {
        Self {
            lane,
            wanted: BTreeSet::new(),
            shards: BTreeMap::new(),
            credit: 0,
            reserved: 0,
            window: 0,
            need: 0,
            behind: VecDeque::new(),
            reads: 0,
            pause_until: None,
            batch: Batch::default(),
            heard: now,
            exchange: Exchange::default(),
        }
    }

    /// Whether it wants origins of a region from us.
    pub fn wants(&self, region: &RegionId) -> bool {
        self.wanted.contains(region)
    }

    pub fn due(&self) -> Option<Mono> {
        self.exchange.due().into_iter().chain(self.pause_until).min()
    }

    pub fn take_due(&mut self, now: Mono) -> bool {
        let resumed = self.pause_until.take_if(|at| *at <= now).is_some();
        self.exchange.take_due(now) || resumed
    }

    fn available(&self) -> u64 {
        self.credit.saturating_sub(self.reserved)
    }

    /// Whether an operation of this size may go now; one that is larger than the window goes when nothing is in flight.
    fn fits(&self, len: u64) -> bool {
        let available = self.available();
        available >= len || (self.window > 0 && available >= self.window)
    }

    fn enqueue(&mut self, shard: ShardId, origin: Origin) {
        let Some(served) = self.shards.get_mut(&shard) else {
            return;
        };
        let position = served.positions.entry(origin).or_default();
        if !position.queued && position.reading.is_none() && position.waits.is_none() {
            position.queued = true;
            self.behind.push_back((shard, origin));
        }
    }

    /// Queues what waited in a shard and need not any more.
    fn wake(&mut self, shard: ShardId) {
        let Some(served) = self.shards.get_mut(&shard) else {
            return;
        };
        if served.waiting == 0 {
            return;
        }
        let ready = served.positions.iter().filter(|(_, position)| {
            let after = position.waits;
            after.is_some_and(|after| served.seq(after.origin) >= after.seq)
        });
        let ready: Vec<Origin> = ready.map(|(origin, _)| *origin).collect();
        served.waiting -= ready.len();
        for origin in &ready {
            served.positions.entry(*origin).or_default().waits = None;
        }
        for origin in ready {
            self.enqueue(shard, origin);
        }
    }

    /// Ships one operation: it must be the next of its position, and fit.
    fn ship(
        &mut self,
        shard: ShardId,
        origin: Origin,
        region: &RegionId,
        before: u64,
        entry: &LogEntry,
    ) -> bool {
        self.credit = self.credit.saturating_sub(entry.op.len() as u64);
        let Some(served) = self.shards.get_mut(&shard) else {
            return false;
        };
        served.positions.entry(origin).or_default().seq = entry.seq;
        self.batch.push(shard, origin, region, before, entry)
    }
}

impl Served {
    fn seq(&self, origin: Origin) -> Seq {
        self.positions.get(&origin).map_or(0, |position| position.seq)
    }
}

impl Links {
    pub(super) fn serve_message(&mut self, from: &Addr, lane: u64, body: ToProvider) {
        let Some(id) = self.peer(from) else {
            self.stats.stale += 1;
            if matches!(body, ToProvider::Subscribe { first: true, .. }) {
                let detail = format!(
                    "region {} is not among the holders of region {}: give both the same set of holders",
                    from.node.region, self.config.region
                );
                let body = ToSubscriber::Refused { detail };
                let message = Message::ToSubscriber { lane, body };
                let to = from.clone();
                self.outputs.push_back(LinkOutput::ToPeer { to, message });
            }
            return;
        };
        if !self.is_up(id) {
            // What we would answer could be lost: it hears of us when its node is known to be reachable.
            let peer = &mut self.peers[id];
            peer.lost_lane = peer.lost_lane.max(Some(lane));
            self.stats.stale += 1;
            return;
        }
        let current = self.peers[id].serve.as_ref().map(|serve| serve.lane);
        if current == Some(lane) {
            self.on_lane(id, lane, body);
            return;
        }
        let newer = lane > self.peers[id].served_lane;
        match body {
            ToProvider::Subscribe { first: true, .. } if newer => {
                self.open_serve(id, lane);
                self.on_lane(id, lane, body);
            }
            // It believes in a lane that we do not know.
            ToProvider::Subscribe { first: false, .. } | ToProvider::Ping { .. }
                if newer || current.is_none() =>
            {
                self.tell_subscriber(id, lane, ToSubscriber::Reset);
            }
            _ => self.stats.stale += 1,
        }
    }

    /// Tells a subscriber whose node can be reached again that its lane is gone.
    pub(super) fn serve_reachable(&mut self, peer: PeerId) {
        if let Some(lane) = self.peers[peer].lost_lane.take() {
            self.tell_subscriber(peer, lane, ToSubscriber::Reset);
        }
    }

    /// The connection to a subscriber broke.
    pub(super) fn lose_serve(&mut self, peer: PeerId) {
        if let Some(lane) = self.drop_serve(peer) {
            self.peers[peer].lost_lane = Some(lane);
        }
        // Nothing of an older lane arrives over the next connection, and a node that lost its disk may number lower.
        self.peers[peer].served_lane = 0;
    }

    /// A shard is owned here from now on: whoever subscribed it is served.
    pub(super) fn serve_owned(&mut self, shard: ShardId) {
        for peer in self.subscribers.get(&shard).cloned().unwrap_or_default() {
            if let Some(serve) = &mut self.peers[peer].serve {
                serve.exchange.ask(shard);
            }
            self.catch_up(peer, shard);
        }
    }

    /// An operation was committed: ships it to whom it continues, and marks the others as behind.
    pub(super) fn committed(&mut self, logged: &Logged) {
        let Logged {
            shard,
            origin,
            region,
            own,
            entry,
            ..
        } = logged;
        if *own {
            self.own_origin = Some(*origin);
        }
        let Some(owned) = self.owned.get_mut(shard) else {
            return;
        };
        let source = owned.applying.as_ref().map(|applying| &applying.item);
        let source = source.filter(|item| !own && item.origin == *origin);
        let source = source.map(|item| self.peers[item.peer].addr.node.region.clone());
        let log = owned.logs.entry(*origin).or_insert_with(|| Log {
            region: region.clone(),
            head: 0,
            hash: Some(0),
            applied: 0,
            queued: 0,
        });
        if entry.seq <= log.head {
            return;
        }
        let before = log.hash.filter(|_| log.head + 1 == entry.seq);
        log.head = entry.seq;
        log.hash = Some(entry.hash);
        log.applied = log.applied.max(entry.seq);
        log.queued = log.queued.max(entry.seq);
        let wake = !owned.held.is_empty();
        if let Some(subscribers) = self.subscribers.get(shard) {
            for id in subscribers {
                let peer = &mut self.peers[*id];
                let Some(serve) = &mut peer.serve else { continue };
                if source.as_ref() == Some(&peer.addr.node.region) {
                    serve.raise(*shard, *origin, entry.seq);
                } else if serve.wanted.contains(region) {
                    let full = serve.offer(*shard, owned, *origin, region, before, entry, &mut self.stats);
                    self.touched.insert(*id);
                    if full {
                        let lane = serve.lane;
                        let runs = std::mem::take(&mut serve.batch).runs;
                        let to = peer.addr.clone();
                        let body = ToSubscriber::Ops(runs);
                        let message = Message::ToSubscriber { lane, body };
                        self.outputs.push_back(LinkOutput::ToPeer { to, message });
                    }
                }
            }
        }
        if wake {
            self.wake_held(*shard);
        }
    }

    /// A region is known to have an origin's log to here: it is not shipped there.
    pub(super) fn known_in(&mut self, region: &RegionId, shard: ShardId, origin: Origin, seq: Seq) {
        for id in self.subscribers.get(&shard).into_iter().flatten() {
            let peer = &mut self.peers[*id];
            if peer.addr.node.region == *region
                && let Some(serve) = &mut peer.serve
            {
                serve.raise(shard, origin, seq);
            }
        }
    }

    pub(super) fn page_read(&mut self, token: ReadToken, page: Result<LogPage, StoreError>) {
        let Some(reading) = self.reads.remove(&token) else {
            return;
        };
        let Reading {
            peer,
            lane,
            shard,
            origin,
            after,
            reserved,
        } = reading;
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        if serve.lane != lane {
            return;
        }
        self.touched.insert(peer);
        serve.reads -= 1;
        serve.reserved -= reserved;
        let Some(served) = serve.shards.get_mut(&shard) else {
            return;
        };
        let Some(position) = served.positions.get_mut(&origin) else {
            return;
        };
        if position.reading != Some(token) {
            return;
        }
        position.reading = None;
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        let Some(log) = owned.logs.get(&origin) else {
            return;
        };
        let level = position.seq != after;
        match page {
            // It moved on while the page was read, or the store was busy: looked at again.
            _ if level => serve.enqueue(shard, origin),
            Err(_) => {
                serve.pause_until = Some(self.now.mono + READ_RETRY);
                serve.enqueue(shard, origin);
            }
            Ok(LogPage::Trimmed { floor }) => {
                served.stopped = true;
                self.tell_subscriber(peer, lane, ToSubscriber::NeedsSnapshot { shard, origin, floor });
            }
            Ok(LogPage::Run { before, entries, .. }) => {
                if entries.is_empty() && log.head > after {
                    serve.pause_until = Some(self.now.mono + READ_RETRY);
                }
                let region = log.region.clone();
                self.stats.pages_read += 1;
                self.ship_page(peer, shard, origin, &region, before, &entries);
            }
        }
    }

    /// Sends what is gathered, reads on for what is behind, and tells presence.
    pub(super) fn flush_serve(&mut self, peer: PeerId, presence: &dyn PresenceSource) {
        self.flush_batch(peer);
        self.read_on(peer);
        self.flush_presence(peer, presence);
    }

    /// Forgets subscribers that fell silent: a living one that hears so opens the next lane.
    pub(super) fn tick_serves(&mut self) {
        let patience = ms(self.config.limits.link_timeout_ms) * 2;
        let now = self.now.mono;
        for peer in 0..self.peers.len() {
            let serve = self.peers[peer].serve.as_ref();
            if serve.is_some_and(|serve| now.since(serve.heard) >= patience) {
                self.drop_serve(peer);
            }
        }
    }

    pub(super) fn serve_status(&self, serve: &Serve) -> ServeStatus {
        let lag = serve.shards.iter().filter_map(|(shard, served)| {
            let logs = &self.owned.get(shard)?.logs;
            let wanted = logs.iter().filter(|(_, log)| serve.wanted.contains(&log.region));
            let lag: u64 = wanted
                .map(|(origin, log)| log.head.saturating_sub(served.seq(*origin)))
                .sum();
            (lag > 0).then_some((*shard, lag))
        });
        ServeStatus {
            shards: serve.shards.len(),
            lag: lag.collect(),
            in_flight_bytes: serve.window.saturating_sub(serve.credit),
            presence_waiting: serve.exchange.waiting(),
        }
    }

    fn open_serve(&mut self, peer: PeerId, lane: u64) {
        self.drop_serve(peer);
        self.stats.lanes_served += 1;
        let now = self.now.mono;
        let peer = &mut self.peers[peer];
        peer.served_lane = lane;
        peer.lost_lane = None;
        peer.serve = Some(Serve::new(lane, now));
    }

    fn drop_serve(&mut self, peer: PeerId) -> Option<u64> {
        let serve = self.peers[peer].serve.take()?;
        for shard in serve.shards.keys() {
            self.unsubscribe(peer, *shard);
        }
        // Whom we ask for which region depends on what the others ask us for.
        self.choose = true;
        Some(serve.lane)
    }

    fn unsubscribe(&mut self, peer: PeerId, shard: ShardId) {
        if let Some(subscribers) = self.subscribers.get_mut(&shard) {
            subscribers.remove(&peer);
            if subscribers.is_empty() {
                self.subscribers.remove(&shard);
            }
        }
    }

    fn on_lane(&mut self, id: PeerId, lane: u64, body: ToProvider) {
        let now = self.now.mono;
        let Some(serve) = &mut self.peers[id].serve else {
            return;
        };
        serve.heard = now;
        match body {
            ToProvider::Subscribe {
                holders,
                shards,
                wanted,
                last,
                ..
            } => self.subscribed(id, holders, shards, wanted, last),
            ToProvider::Unsubscribe(shards) => {
                for shard in &shards {
                    serve.shards.remove(shard);
                    serve.exchange.forget(*shard);
                }
                for shard in shards {
                    self.unsubscribe(id, shard);
                }
            }
            ToProvider::Credit(bytes) => {
                serve.credit = serve.credit.saturating_add(bytes);
                serve.window = serve.window.max(serve.credit);
                self.touched.insert(id);
            }
            ToProvider::Want(wanted) => {
                serve.wanted = wanted.into_iter().collect();
                self.choose = true;
            }
            ToProvider::PresenceCredit => {
                serve.exchange.credit();
                self.touched.insert(id);
            }
            ToProvider::Ping { nonce, wall_ms } => {
                self.peers[id].wall = Some((wall_ms, now));
                // What was shipped before must arrive before.
                self.flush_batch(id);
                let wall_ms = self.now.wall_ms;
                self.tell_subscriber(id, lane, ToSubscriber::Pong { nonce, wall_ms });
            }
        }
    }

    fn subscribed(
        &mut self,
        id: PeerId,
        holders: Vec<RegionId>,
        shards: Vec<(ShardId, Vector)>,
        wanted: Vec<RegionId>,
        last: bool,
    ) {
        let ours = &self.config.holders;
        let Some(serve) = &mut self.peers[id].serve else {
            return;
        };
        let lane = serve.lane;
        let differ = holders.len() != ours.len() || !holders.iter().all(|region| ours.contains(region));
        let too_many = serve.shards.len() + shards.len() > MAX_SHARDS;
        if differ || too_many {
            let names = |list: &mut dyn Iterator<Item = &RegionId>| {
                let names: Vec<&str> = list.take(64).map(RegionId::as_str).collect();
                names.join(", ")
            };
            let detail = if differ {
                let (theirs, ours) = (names(&mut holders.iter()), names(&mut ours.iter()));
                format!(
                    "the subscriber's holders are [{theirs}], the provider's [{ours}]: give both regions the same set"
                )
            } else {
                format!("a subscription names over {MAX_SHARDS} shards")
            };
            self.drop_serve(id);
            let link = self.peers[id].addr.clone();
            self.tell_subscriber(
                id,
                lane,
                ToSubscriber::Refused {
                    detail: detail.clone(),
                },
            );
            let alarm = LinkAlarm::Refused { link, detail };
            self.outputs.push_back(LinkOutput::Alarm(alarm));
            return;
        }
        let wanted: BTreeSet<RegionId> = wanted.into_iter().collect();
        if serve.wanted != wanted {
            serve.wanted = wanted;
            self.choose = true;
        }
        let named: Vec<ShardId> = shards.iter().map(|(shard, _)| *shard).collect();
        for (shard, applied) in &shards {
            if !serve.shards.contains_key(shard) {
                serve.exchange.ask(*shard);
            }
            let served = serve.shards.entry(*shard).or_default();
            for (origin, seq) in applied.iter() {
                let position = served.positions.entry(origin).or_default();
                position.seq = position.seq.max(seq);
            }
            self.subscribers.entry(*shard).or_default().insert(id);
        }
        for shard in named {
            self.catch_up(id, shard);
            if let Some(serve) = &mut self.peers[id].serve {
                serve.wake(shard);
            }
        }
        self.look_for_rollback(id, &shards);
        if last && let Some(serve) = &mut self.peers[id].serve {
            serve.exchange.open();
        }
        self.touched.insert(id);
    }

    /// More of our current origin elsewhere than is durable here proves that our store lost its tail (R3).
    fn look_for_rollback(&mut self, peer: PeerId, shards: &[(ShardId, Vector)]) {
        let Some(origin) = self.own_origin else { return };
        for (shard, applied) in shards {
            let Some(owned) = self.owned.get(shard) else {
                continue;
            };
            let ours = owned.logs.get(&origin).map_or(0, |log| log.head);
            let theirs = applied.of(origin);
            if theirs > ours {
                let link = self.peers[peer].addr.clone();
                let shard = *shard;
                self.outputs.push_back(LinkOutput::Alarm(LinkAlarm::AheadOfUs {
                    link,
                    shard,
                    origin,
                    ours,
                    theirs,
                }));
            }
        }
    }

    /// Queues every position of a shard that is behind.
    fn catch_up(&mut self, peer: PeerId, shard: ShardId) {
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        let Some(served) = serve.shards.get(&shard) else {
            return;
        };
        let behind = owned
            .logs
            .iter()
            .filter(|(origin, log)| serve.wanted.contains(&log.region) && served.seq(**origin) < log.head);
        let behind: Vec<Origin> = behind.map(|(origin, _)| *origin).collect();
        for origin in behind {
            serve.enqueue(shard, origin);
        }
        self.touched.insert(peer);
    }

    fn ship_page(
        &mut self,
        peer: PeerId,
        shard: ShardId,
        origin: Origin,
        region: &RegionId,
        mut before: u64,
        entries: &[LogEntry],
    ) {
        for entry in entries {
            let Some(serve) = &mut self.peers[peer].serve else {
                return;
            };
            let Some(owned) = self.owned.get(&shard) else {
                return;
            };
            let len = entry.op.len() as u64;
            if serve.must_wait(shard, owned, origin, entry) {
                return;
            }
            if !serve.fits(len) {
                serve.need = len;
                let Some(served) = serve.shards.get_mut(&shard) else {
                    return;
                };
                served.positions.entry(origin).or_default().queued = true;
                serve.behind.push_front((shard, origin));
                return;
            }
            let full = serve.ship(shard, origin, region, before, entry);
            before = entry.hash;
            self.stats.ops_shipped += 1;
            self.stats.bytes_shipped += len;
            if full {
                self.flush_batch(peer);
            }
        }
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        let Some(log) = self.owned.get(&shard).and_then(|owned| owned.logs.get(&origin)) else {
            return;
        };
        let Some(served) = serve.shards.get(&shard) else {
            return;
        };
        if served.seq(origin) < log.head {
            serve.enqueue(shard, origin);
        }
        serve.wake(shard);
    }

    fn flush_batch(&mut self, peer: PeerId) {
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        if serve.batch.runs.is_empty() {
            return;
        }
        let lane = serve.lane;
        let runs = std::mem::take(&mut serve.batch).runs;
        self.tell_subscriber(peer, lane, ToSubscriber::Ops(runs));
    }

    /// Asks the store for the next pages, as far as credit and turns allow.
    fn read_on(&mut self, peer: PeerId) {
        loop {
            let token = ReadToken(self.token());
            let Some(serve) = &mut self.peers[peer].serve else {
                return;
            };
            let available = serve.available();
            // Part of the window stays free for what is committed meanwhile.
            let spare = serve.window / 4;
            let room = if serve.need > 0 {
                available >= serve.need.min(serve.window)
            } else {
                available > spare
            };
            if !room || serve.reads >= READS || serve.pause_until.is_some() {
                return;
            }
            let Some((shard, origin)) = serve.behind.pop_front() else {
                return;
            };
            let need = std::mem::take(&mut serve.need);
            let Some(served) = serve.shards.get_mut(&shard) else {
                continue;
            };
            let stopped = served.stopped;
            let Some(position) = served.positions.get_mut(&origin) else {
                continue;
            };
            position.queued = false;
            let log = self.owned.get(&shard).and_then(|owned| owned.logs.get(&origin));
            let Some(log) = log.filter(|log| log.head > position.seq) else {
                continue;
            };
            let idle = position.reading.is_none() && position.waits.is_none();
            if stopped || !idle || !serve.wanted.contains(&log.region) {
                continue;
            }
            let reserved = if need > 0 {
                need.max(READ_BYTES).min(available)
            } else {
                READ_BYTES.min(available - spare)
            };
            let after = position.seq;
            position.reading = Some(token);
            serve.reads += 1;
            serve.reserved += reserved;
            let lane = serve.lane;
            let reading = Reading {
                peer,
                lane,
                shard,
                origin,
                after,
                reserved,
            };
            self.reads.insert(token, reading);
            self.outputs.push_back(LinkOutput::ReadLog {
                token,
                shard,
                origin,
                after,
                max_items: MAX_PAGE_ITEMS,
                max_bytes: reserved as usize,
            });
        }
    }
}

impl Serve {
    /// The subscriber has an origin's log to here.
    fn raise(&mut self, shard: ShardId, origin: Origin, seq: Seq) {
        let Some(served) = self.shards.get_mut(&shard) else {
            return;
        };
        let position = served.positions.entry(origin).or_default();
        position.seq = position.seq.max(seq);
        self.wake(shard);
    }

    /// Ships a new operation if it continues the position and fits, else marks the position as behind. Says whether the
    /// message is full.
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one logged operation, and counters"
    )]
    fn offer(
        &mut self,
        shard: ShardId,
        owned: &Owned,
        origin: Origin,
        region: &RegionId,
        before: Option<u64>,
        entry: &LogEntry,
        stats: &mut LinkStats,
    ) -> bool {
        let len = entry.op.len() as u64;
        let room = self.need == 0 && self.fits(len);
        let Some(served) = self.shards.get_mut(&shard) else {
            return false;
        };
        let position = served.positions.entry(origin).or_default();
        if served.stopped || position.seq >= entry.seq {
            return false;
        }
        let next = position.seq + 1 == entry.seq && position.reading.is_none() && position.waits.is_none();
        match before {
            Some(before) if next && room => {
                if self.must_wait(shard, owned, origin, entry) {
                    return false;
                }
                let full = self.ship(shard, origin, region, before, entry);
                stats.ops_shipped += 1;
                stats.ops_shipped_hot += 1;
                stats.bytes_shipped += len;
                self.wake(shard);
                full
            }
            _ => {
                self.enqueue(shard, origin);
                false
            }
        }
    }

    /// A log that begins after another one waits until that one was shipped, if we can ship it.
    fn must_wait(&mut self, shard: ShardId, owned: &Owned, origin: Origin, entry: &LogEntry) -> bool {
        let Some(previous) = starts_after(&entry.op, entry.seq) else {
            return false;
        };
        let Some(served) = self.shards.get_mut(&shard) else {
            return false;
        };
        let ours = owned.logs.get(&previous.origin);
        let can = ours.is_some_and(|log| log.head >= previous.seq && self.wanted.contains(&log.region));
        if !can || served.seq(previous.origin) >= previous.seq {
            return false;
        }
        let position = served.positions.entry(origin).or_default();
        if position.waits.replace(previous).is_none() {
            served.waiting += 1;
        }
        true
    }
}

fn starts_after(op: &LoggedOp, seq: Seq) -> Option<Coord> {
    if seq != 1 || op.kind() != kind::START {
        return None;
    }
    match op.decode() {
        Ok(Op::Start { previous, .. }) => previous,
        _ => None,
    }
}
