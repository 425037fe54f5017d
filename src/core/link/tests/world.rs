//! Regions with one node each, their stores in memory, and a network that delays, cuts and breaks connections.

mod data;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use self::data::Table;
pub use self::data::{ended, record};
use super::super::*;
use crate::core::commit::{StoreOp, decide};
use crate::core::holders::HoldersChange;
use crate::core::ids::{MessageId, NodeName, SessionId, Sharding};
use crate::core::op::Envelope;
use crate::core::placement;
use crate::core::state::{Decision, State, StoreIdentity, StoreLimits};

pub const SECOND: u64 = 1_000_000;
const WALL: u64 = 1_700_000_000_000;
/// Operations of the tests are smaller than this.
pub const OP_MAX: u64 = 400;

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
}

enum Event {
    Deliver {
        pair: (usize, usize),
        conn: u64,
        to: Addr,
        from: Addr,
        bytes: Bytes,
    },
    Timer {
        region: usize,
        partition: usize,
        generation: u64,
    },
    Commit {
        region: usize,
        partition: usize,
        generation: u64,
        token: ApplyToken,
        op: Box<StoreOp>,
    },
    Read {
        region: usize,
        partition: usize,
        generation: u64,
        token: ReadToken,
        read: (ShardId, Origin, Seq, usize, usize),
    },
    Break {
        pair: (usize, usize),
        conn: u64,
    },
    Connect {
        pair: (usize, usize),
    },
    /// A side learns that a connection broke, or of the next one.
    Lost {
        pair: (usize, usize),
        side: usize,
        conn: u64,
    },
    Found {
        pair: (usize, usize),
        side: usize,
        conn: u64,
    },
    Placement {
        region: usize,
        of: usize,
    },
}

/// The connection between two nodes, the lesser first.
#[derive(Default)]
struct Conn {
    alive: Option<u64>,
    view: [Option<u64>; 2],
    /// Messages of this side vanish.
    cut: [bool; 2],
    /// The last message of each side arrives then.
    arrives: [u64; 2],
    connecting: bool,
}

pub struct Region {
    pub id: RegionId,
    pub generation: u64,
    pub state: State,
    pub links: Vec<Links>,
    pub presence: Table,
    pub alarms: Vec<LinkAlarm>,
    pub removed_by: Vec<HoldersChange>,
    /// Why shards began to recover.
    pub losses: Vec<(ShardId, String)>,
    /// How far another region has our origins, as was said last.
    pub copied: BTreeMap<(ShardId, Origin), Seq>,
    /// Shards that recover.
    pub recovering: BTreeSet<ShardId>,
    pub reach: BTreeMap<RegionId, bool>,
    armed: Vec<Option<u64>>,
    in_flight: BTreeSet<ShardId>,
    alive: bool,
}

pub struct World {
    pub random: Random,
    pub now: u64,
    pub shards: u32,
    pub limits: CoreLimits,
    pub regions: Vec<Region>,
    /// Store errors in a thousand commits.
    pub store_errors: u64,
    /// Longest delay of a message in microseconds.
    pub delay: u64,
    /// When something other than a ping or its answer was last sent.
    pub last_busy: u64,
    /// Runs that the store could not apply to their end, for other reasons than R1.
    pub misfits: u64,
    /// Runs that the store could not apply because of R1.
    pub early: u64,
    /// Operations that arrived at a store which had them.
    pub again: u64,
    pub shipped: u64,
    /// So many messages with operations are lost without anybody noticing.
    pub swallow: u64,
    /// Changes of presence are lost without anybody noticing.
    pub swallow_presence: bool,
    conns: BTreeMap<(usize, usize), Conn>,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
}

pub fn region_id(n: usize) -> RegionId {
    RegionId::new(["a", "b", "c", "d"][n]).unwrap()
}

fn node(n: usize) -> NodeKey {
    NodeKey {
        region: region_id(n),
        node: NodeName::new("core").unwrap(),
    }
}

pub fn addr(n: usize, partition: usize) -> Addr {
    Addr {
        node: node(n),
        partition: partition as u8,
    }
}

impl World {
    /// Regions with so many partitions each, connected.
    pub fn new(seed: u64, partitions: &[usize], shards: u32, limits: CoreLimits) -> Self {
        let holders: BTreeSet<RegionId> = (0..partitions.len()).map(region_id).collect();
        let mut world = Self {
            random: Random(seed),
            now: SECOND,
            shards,
            limits,
            regions: Vec::new(),
            store_errors: 0,
            delay: 40_000,
            last_busy: 0,
            misfits: 0,
            early: 0,
            again: 0,
            shipped: 0,
            swallow: 0,
            swallow_presence: false,
            conns: BTreeMap::new(),
            events: BTreeMap::new(),
            count: 0,
        };
        for (n, partitions) in partitions.iter().enumerate() {
            let identity = StoreIdentity {
                cluster: 1,
                region: region_id(n),
                origin: Origin(0),
                holders: holders.clone(),
                sharding: Sharding {
                    count: shards,
                    seed: 0,
                },
                limits: StoreLimits::default(),
                joining: false,
            };
            world.regions.push(Region {
                id: region_id(n),
                generation: 0,
                state: State::new(identity),
                links: Vec::with_capacity(*partitions),
                presence: Table::default(),
                alarms: Vec::new(),
                removed_by: Vec::new(),
                losses: Vec::new(),
                copied: BTreeMap::new(),
                recovering: BTreeSet::new(),
                reach: BTreeMap::new(),
                armed: vec![None; *partitions],
                in_flight: BTreeSet::new(),
                alive: false,
            });
            for other in 0..n {
                world.conns.insert((other, n), Conn::default());
            }
        }
        for n in 0..partitions.len() {
            world.start(n);
        }
        world
    }

    pub fn clocks(&self) -> Now {
        Now {
            mono: Mono(self.now),
            wall_ms: WALL + self.now / 1000,
        }
    }

    /// Starts a region's node under a new generation and a new origin (R1).
    pub fn start(&mut self, n: usize) {
        let now = self.clocks();
        self.count += 1;
        let generation = now.wall_ms + self.count;
        let partitions = self.regions[n].armed.len();
        let holders: BTreeSet<RegionId> = self.regions.iter().map(|region| region.id.clone()).collect();
        let region = &mut self.regions[n];
        region.alive = true;
        region.generation = generation;
        region.in_flight.clear();
        region.state.identity.origin = Origin(generation * 10 + n as u64);
        region.armed = vec![None; partitions];
        let config = |partition| LinkConfig {
            me: addr(n, partition),
            region: region_id(n),
            holders: holders.clone(),
            limits: self.limits.clone(),
            generation: Generation(generation),
            report_copies: true,
        };
        region.links = (0..partitions)
            .map(|partition| Links::new(config(partition)))
            .collect();
        for shard in (0..self.shards).map(ShardId) {
            let partition = usize::from(placement::partition(shard, partitions as u8));
            decide(&mut region.state, &StoreOp::Bump { shard }, 0, &mut Vec::new());
            let logs = region.state.shards[&shard].row.logs.iter();
            let logs = logs
                .map(|(origin, log)| (*origin, log.region.clone(), log.seq))
                .collect();
            region.links[partition].handle_owned(shard, Some(logs), now);
        }
        for other in 0..self.regions.len() {
            if other != n {
                self.tell_placement(n, other);
                let at = self.now + self.random.below(SECOND);
                self.at(at, Event::Placement { region: other, of: n });
                self.connect_soon(pair(n, other));
            }
        }
        self.drain(n);
    }

    /// Kills a region's node: what was not committed is gone, connections break.
    pub fn kill(&mut self, n: usize) {
        self.regions[n].alive = false;
        self.regions[n].links.clear();
        for other in (0..self.regions.len()).filter(|other| *other != n) {
            self.break_pair(pair(n, other));
            let conn = self.conns.get_mut(&pair(n, other)).unwrap();
            conn.view[side(n, other)] = None;
        }
    }

    /// The connection between two regions breaks; the next one comes soon, unless it is cut.
    pub fn break_link(&mut self, a: usize, b: usize) {
        self.break_pair(pair(a, b));
    }

    /// From now on messages from `a` to `b` vanish; after a while both sides lose the connection.
    pub fn cut(&mut self, a: usize, b: usize) {
        let conn = self.conns.get_mut(&pair(a, b)).unwrap();
        conn.cut[side(a, b)] = true;
        if let Some(id) = conn.alive {
            let at = self.now + SECOND + self.random.below(5 * SECOND);
            self.at(
                at,
                Event::Break {
                    pair: pair(a, b),
                    conn: id,
                },
            );
        }
    }

    /// From now on (or no more) messages both ways vanish, and no connection breaks.
    pub fn mute(&mut self, a: usize, b: usize, mute: bool) {
        self.conns.get_mut(&pair(a, b)).unwrap().cut = [mute; 2];
    }

    /// A region alone sees its connection to another break and come back.
    pub fn flap(&mut self, n: usize, other: usize) {
        self.reachable(n, other, false);
        self.reachable(n, other, true);
    }

    pub fn cut_both(&mut self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    pub fn heal(&mut self, a: usize, b: usize) {
        let conn = self.conns.get_mut(&pair(a, b)).unwrap();
        if conn.cut != [false; 2] {
            conn.cut = [false; 2];
            // Messages were lost on it: it cannot go on.
            self.break_pair(pair(a, b));
        }
    }

    /// Accepts a message in a region; returns its sequence.
    pub fn append(&mut self, n: usize, shard: u32, body: usize) -> Seq {
        self.count += 1;
        let now_ms = self.clocks().wall_ms;
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.count.to_be_bytes());
        let user = UserId::new(&format!("u{shard}")).unwrap();
        let envelope = Envelope {
            to: user.clone(),
            from: user,
            from_device: DeviceId::new("d").unwrap(),
            connect_epoch: 1,
            session: SessionId(1),
            session_seq: self.count,
            id: MessageId::v7(now_ms, random),
            kind: 0,
            expires_ms: 0,
            trace: Vec::new(),
        };
        let shard = ShardId(shard);
        let epoch = self.regions[n].state.shards[&shard].row.epoch;
        let op = StoreOp::Append {
            shard,
            epoch,
            envelope: Box::new(envelope),
            body: Bytes::from(vec![7; body]),
            seen_ms: 0,
            known_only: false,
        };
        let (outcome, logged) = self.commit(n, &op);
        let Outcome::Appended(at) = outcome else {
            panic!("{outcome:?}")
        };
        let now = self.clocks();
        let partition = self.partition(n, shard);
        self.regions[n].links[partition].handle_committed(&logged, now);
        self.drain(n);
        at.seq
    }

    pub fn set_presence(&mut self, n: usize, shard: u32, user: &str, version: u64) {
        let key = (UserId::new(user).unwrap(), DeviceId::new("d").unwrap());
        let shard = ShardId(shard);
        let now = self.clocks();
        let partition = self.partition(n, shard);
        let region = &mut self.regions[n];
        region.presence.merge(shard, record(&key, version));
        region.links[partition].handle_presence_changed(shard, &key.0, &key.1, None, now);
        self.drain(n);
    }

    /// Runs for so long.
    pub fn run(&mut self, time: u64) {
        let end = self.now + time;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    /// Whether every region has the same logs.
    pub fn assert_equal_logs(&self) {
        let logs = |region: &Region| -> BTreeMap<(ShardId, Origin), (Seq, u64)> {
            let shards = region.state.shards.iter();
            shards
                .flat_map(|(shard, state)| {
                    state
                        .row
                        .logs
                        .iter()
                        .map(|(origin, log)| ((*shard, *origin), (log.seq, log.hash)))
                })
                .collect()
        };
        let first = logs(&self.regions[0]);
        for region in &self.regions[1..] {
            assert_eq!(
                first,
                logs(region),
                "{} against {}",
                self.regions[0].id,
                region.id
            );
        }
        self.assert_known_copies();
    }

    /// Each region knows that another one has all of its own logs, of earlier lives too.
    fn assert_known_copies(&self) {
        for region in self.regions.iter().filter(|region| region.alive) {
            for (shard, state) in &region.state.shards {
                for (origin, log) in state.row.logs.iter().filter(|(_, log)| log.region == region.id) {
                    let known = region.copied.get(&(*shard, *origin));
                    assert_eq!(known, Some(&log.seq), "{}, shard {shard}, {origin}", region.id);
                }
            }
        }
    }

    pub fn applied(&self, n: usize, shard: u32, of: usize) -> Seq {
        let Some(state) = self.regions[n].state.shards.get(&ShardId(shard)) else {
            return 0;
        };
        let logs = state.row.logs.values().filter(|log| log.region == region_id(of));
        logs.map(|log| log.seq).sum()
    }

    /// Delivers a message made up by a test, as if it came from a partition.
    pub fn inject(&mut self, n: usize, partition: usize, from: &Addr, message: Message) {
        let now = self.clocks();
        let links = &mut self.regions[n].links[partition];
        match message {
            Message::ToProvider { lane, body } => links.handle_to_provider(from, lane, body, now),
            Message::ToSubscriber { lane, body } => links.handle_to_subscriber(from, lane, body, now),
            _ => unreachable!(),
        }
        self.drain(n);
    }

    fn partition(&self, n: usize, shard: ShardId) -> usize {
        usize::from(placement::partition(shard, self.regions[n].armed.len() as u8))
    }

    fn tell_placement(&mut self, n: usize, of: usize) {
        let now = self.clocks();
        let partitions = self.regions[of].armed.len() as u8;
        let generation = Generation(self.regions[of].generation);
        let owner = |shard| Owner {
            addr: addr(of, usize::from(placement::partition(shard, partitions))),
            generation,
        };
        let owners: BTreeMap<ShardId, Owner> = (0..self.shards)
            .map(ShardId)
            .map(|shard| (shard, owner(shard)))
            .collect();
        for links in &mut self.regions[n].links {
            links.handle_placement(&region_id(of), &owners, now);
        }
        self.drain(n);
    }

    fn commit(&mut self, n: usize, op: &StoreOp) -> (Outcome, Vec<Logged>) {
        let now_ms = self.clocks().wall_ms;
        let mut decisions = Vec::new();
        let outcome = decide(&mut self.regions[n].state, op, now_ms, &mut decisions);
        let logged = decisions.into_iter().filter_map(|decision| match decision {
            Decision::Logged(logged) => Some(logged),
            _ => None,
        });
        (outcome, logged.collect())
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.insert((time, self.count), event);
    }

    fn break_pair(&mut self, pair: (usize, usize)) {
        let conn = self.conns.get_mut(&pair).unwrap();
        if let Some(id) = conn.alive.take() {
            for side in 0..2 {
                let at = self.now + self.random.below(2 * SECOND);
                self.at(at, Event::Lost { pair, side, conn: id });
            }
        }
        self.connect_soon(pair);
    }

    fn connect_soon(&mut self, pair: (usize, usize)) {
        let conn = self.conns.get_mut(&pair).unwrap();
        if conn.alive.is_none() && !std::mem::replace(&mut conn.connecting, true) {
            let at = self.now + 50_000 + self.random.below(SECOND / 2);
            self.at(at, Event::Connect { pair });
        }
    }

    fn reachable(&mut self, n: usize, other: usize, up: bool) {
        let now = self.clocks();
        for links in &mut self.regions[n].links {
            links.handle_reachable(&node(other), up, now);
        }
        self.drain(n);
    }

    fn handle(&mut self, event: Event) {
        let now = self.clocks();
        match event {
            Event::Deliver {
                pair,
                conn,
                to,
                from,
                bytes,
            } => {
                if self.conns[&pair].alive == Some(conn) {
                    let n = (0..self.regions.len())
                        .find(|n| region_id(*n) == to.node.region)
                        .unwrap();
                    if self.regions[n].alive {
                        let message = Message::decode(&bytes).unwrap();
                        self.inject(n, usize::from(to.partition), &from, message);
                    }
                }
            }
            Event::Timer {
                region,
                partition,
                generation,
            } => {
                let entry = &mut self.regions[region];
                if entry.alive && entry.generation == generation {
                    entry.armed[partition] = None;
                    entry.links[partition].handle_timeout(now);
                    self.drain(region);
                }
            }
            Event::Commit {
                region,
                partition,
                generation,
                token,
                op,
            } => {
                if !self.regions[region].alive || self.regions[region].generation != generation {
                    return;
                }
                let StoreOp::ApplyRemote {
                    shard,
                    origin,
                    first,
                    ref ops,
                    ..
                } = *op
                else {
                    unreachable!()
                };
                self.regions[region].in_flight.remove(&shard);
                let outcome = if self.random.below(1000) < self.store_errors {
                    Err(StoreError::Retryable("busy".into()))
                } else {
                    let have = self.regions[region].state.shards[&shard].row.applied().of(origin);
                    self.again += (have + 1).saturating_sub(first).min(ops.len() as u64);
                    let (outcome, logged) = self.commit(region, &op);
                    if let Outcome::Applied {
                        stopped: Some(stop), ..
                    } = &outcome
                    {
                        let early = matches!(stop, crate::core::commit::Stop::StartsAfter(_));
                        self.early += u64::from(early);
                        self.misfits += u64::from(!early);
                    }
                    self.regions[region].links[partition].handle_committed(&logged, now);
                    Ok(outcome)
                };
                self.regions[region].links[partition].handle_applied(token, shard, origin, outcome, now);
                self.drain(region);
            }
            Event::Read {
                region,
                partition,
                generation,
                token,
                read,
            } => {
                if !self.regions[region].alive || self.regions[region].generation != generation {
                    return;
                }
                let page = if self.random.below(1000) < self.store_errors {
                    Err(StoreError::Retryable("busy".into()))
                } else {
                    Ok(self.regions[region].page(read))
                };
                self.regions[region].links[partition].handle_log(token, page, now);
                self.drain(region);
            }
            Event::Break { pair, conn } => {
                if self.conns[&pair].alive == Some(conn) {
                    self.break_pair(pair);
                }
            }
            Event::Connect { pair } => {
                let alive = self.regions[pair.0].alive && self.regions[pair.1].alive;
                self.count += 1;
                let id = self.count;
                let conn = self.conns.get_mut(&pair).unwrap();
                conn.connecting = false;
                if conn.alive.is_some() {
                    return;
                }
                if !alive || conn.cut != [false; 2] {
                    self.connect_soon(pair);
                    return;
                }
                conn.alive = Some(id);
                conn.arrives = [0; 2];
                for side in 0..2 {
                    let at = self.now + self.random.below(100_000);
                    self.at(at, Event::Found { pair, side, conn: id });
                }
            }
            Event::Lost { pair, side, conn } => {
                let view = &mut self.conns.get_mut(&pair).unwrap().view[side];
                if *view == Some(conn) {
                    *view = None;
                    let (n, other) = ends(pair, side);
                    self.reachable(n, other, false);
                }
            }
            Event::Found { pair, side, conn } => {
                let entry = self.conns.get_mut(&pair).unwrap();
                if entry.alive != Some(conn) {
                    return;
                }
                let old = entry.view[side].replace(conn);
                let (n, other) = ends(pair, side);
                if old.is_some() {
                    self.reachable(n, other, false);
                }
                self.reachable(n, other, true);
            }
            Event::Placement { region, of } => {
                if self.regions[region].alive {
                    self.tell_placement(region, of);
                }
            }
        }
    }

    /// Takes every output of a region's partitions.
    pub fn drain(&mut self, n: usize) {
        for partition in 0..self.regions[n].links.len() {
            while let Some(output) = {
                let region = &mut self.regions[n];
                region.links[partition].poll_output(&region.presence)
            } {
                self.output(n, partition, output);
            }
            self.check_bounds(n, partition);
            let region = &mut self.regions[n];
            let generation = region.generation;
            if let Some(at) = region.links[partition].poll_timeout() {
                let at = at.0.max(self.now);
                if region.armed[partition].is_none_or(|armed| at < armed) {
                    region.armed[partition] = Some(at);
                    self.at(
                        at,
                        Event::Timer {
                            region: n,
                            partition,
                            generation,
                        },
                    );
                }
            }
        }
    }

    fn check_bounds(&self, n: usize, partition: usize) {
        let links = &self.regions[n].links[partition];
        for status in links.snapshot(self.clocks()) {
            let held = status.pull.map_or(0, |pull| pull.held_bytes);
            assert!(
                held <= self.limits.link_bytes + OP_MAX,
                "{held} bytes held of {}",
                self.limits.link_bytes
            );
            let flying = status.serve.map_or(0, |serve| serve.in_flight_bytes);
            assert!(
                flying <= self.limits.link_bytes + OP_MAX,
                "{flying} bytes in flight"
            );
        }
    }

    fn output(&mut self, n: usize, partition: usize, output: LinkOutput) {
        let now = self.clocks();
        let generation = self.regions[n].generation;
        match output {
            LinkOutput::Removed(change) => self.regions[n].removed_by.push(change),
            LinkOutput::ToPeer { to, message } => self.send(n, partition, to, message),
            LinkOutput::Apply {
                token,
                shard,
                origin,
                region,
                first,
                before,
                ops,
            } => {
                let epoch = self.regions[n].state.shards[&shard].row.epoch;
                assert!(
                    self.regions[n].in_flight.insert(shard),
                    "two runs of shard {shard} at the store"
                );
                let op = StoreOp::ApplyRemote {
                    shard,
                    epoch,
                    origin,
                    region,
                    first,
                    before,
                    ops,
                    attached: Vec::new(),
                };
                let at = self.now + 500 + self.random.below(20_000);
                self.at(
                    at,
                    Event::Commit {
                        region: n,
                        partition,
                        generation,
                        token,
                        op: Box::new(op),
                    },
                );
            }
            LinkOutput::ReadLog {
                token,
                shard,
                origin,
                after,
                max_items,
                max_bytes,
            } => {
                let at = self.now + 200 + self.random.below(10_000);
                let read = (shard, origin, after, max_items, max_bytes);
                self.at(
                    at,
                    Event::Read {
                        region: n,
                        partition,
                        generation,
                        token,
                        read,
                    },
                );
            }
            LinkOutput::Merge {
                token,
                shard,
                cut,
                page,
            } => {
                let epoch = self.regions[n].state.shards[&shard].row.epoch;
                let op = StoreOp::Merge {
                    shard,
                    epoch,
                    cut,
                    page,
                };
                let (outcome, _) = self.commit(n, &op);
                self.regions[n].links[partition].handle_merged(token, shard, Ok(outcome), now);
            }
            LinkOutput::ReadSnapshot {
                token,
                shard,
                cut,
                after,
                ..
            } => {
                let page = self.regions[n].snapshot(shard, cut, &after);
                self.regions[n].links[partition].handle_snapshot(token, Ok(page), now);
            }
            LinkOutput::Copied { shard, origin, seq } => {
                self.regions[n].copied.insert((shard, origin), seq);
            }
            LinkOutput::Lost { shard, why, .. } => {
                self.regions[n].losses.push((shard, why));
                self.recover(n, partition, shard, true);
            }
            LinkOutput::CaughtUp { shard } => self.recover(n, partition, shard, false),
            LinkOutput::VerifyHead {
                link,
                shard,
                origin,
                theirs,
            } => {
                let ours = self.regions[n].state.shards[&shard].row.applied().of(origin);
                if ours < theirs {
                    self.regions[n].alarms.push(LinkAlarm::AheadOfUs {
                        link,
                        shard,
                        origin,
                        ours,
                        theirs,
                    });
                }
            }
            LinkOutput::PresenceMerge { from, records } => {
                let region = &mut self.regions[n];
                for (shard, entry) in records {
                    let key = (entry.user().clone(), entry.device().clone());
                    if region.presence.merge(shard, entry) {
                        let links = &mut region.links[partition];
                        links.handle_presence_changed(shard, &key.0, &key.1, Some(&from), now);
                    }
                }
            }
            LinkOutput::RegionReach {
                region, reachable, ..
            } => {
                self.regions[n].reach.insert(region, reachable);
            }
            LinkOutput::Alarm(alarm) => self.regions[n].alarms.push(alarm),
        }
    }

    /// A shard begins to recover, or is open.
    pub fn recover(&mut self, n: usize, partition: usize, shard: ShardId, recovering: bool) {
        let now = self.clocks();
        let epoch = self.regions[n].state.shards[&shard].row.epoch;
        let op = StoreOp::Recover {
            shard,
            epoch,
            recovering,
        };
        self.commit(n, &op);
        let region = &mut self.regions[n];
        if recovering {
            region.recovering.insert(shard);
        } else {
            region.recovering.remove(&shard);
        }
        region.links[partition].handle_recovering(shard, recovering, now);
    }

    fn send(&mut self, n: usize, partition: usize, to: Addr, mut message: Message) {
        match &message {
            Message::ToProvider {
                body: ToProvider::Ping { .. },
                ..
            }
            | Message::ToSubscriber {
                body: ToSubscriber::Pong { .. } | ToSubscriber::PresenceDigests { .. },
                ..
            } => {}
            _ => self.last_busy = self.now,
        }
        if let Message::ToSubscriber {
            body: ToSubscriber::Ops(runs),
            ..
        } = &message
        {
            self.shipped += runs.iter().map(|run| run.ops.len() as u64).sum::<u64>();
        }
        if self.swallow > 0
            && matches!(
                &message,
                Message::ToSubscriber {
                    body: ToSubscriber::Ops(_),
                    ..
                }
            )
        {
            self.swallow -= 1;
            return;
        }
        if let Message::ToSubscriber {
            body: ToSubscriber::Presence(records),
            ..
        } = &mut message
            && self.swallow_presence
        {
            records.clear();
        }
        let other = (0..self.regions.len())
            .find(|n| region_id(*n) == to.node.region)
            .unwrap();
        let (pair, side) = (pair(n, other), side(n, other));
        let delay = 100 + self.random.below(self.delay);
        let conn = self.conns.get_mut(&pair).unwrap();
        let Some(id) = conn.view[side] else { return };
        if conn.alive != Some(id) || conn.cut[side] {
            return;
        }
        let at = conn.arrives[side].max(self.now + delay);
        conn.arrives[side] = at;
        let bytes = message.encode();
        self.at(
            at,
            Event::Deliver {
                pair,
                conn: id,
                to,
                from: addr(n, partition),
                bytes,
            },
        );
    }
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

/// Which end of the pair `a` is.
fn side(a: usize, b: usize) -> usize {
    usize::from(a > b)
}

fn ends(pair: (usize, usize), side: usize) -> (usize, usize) {
    if side == 0 { pair } else { (pair.1, pair.0) }
}
