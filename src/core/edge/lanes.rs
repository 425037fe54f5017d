//! Lanes to owners: which one serves a shard, how shards open and close on them, and what goes out at a flush.

mod unserved;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::session::{InFlight, Session, Stream};
use super::{Edge, EdgeConfig, EdgeOutput};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Addr, Generation, NodeKey, SessionId, ShardId, UserId};
use crate::core::limits::{CoreLimits, ms};
use crate::core::members::Owner;
use crate::core::msg::{Attach, Deposit, Detach, Leave, MAX_ITEMS, SessionAck, SetStatus, ToEdge, ToOwner};
use crate::core::owner::{TAKEN_STEP, delivery_cost};
use crate::core::time::{Mono, Now};

pub use unserved::Unserved;

/// Deposits of one stream that go out before another stream has its turn.
const TURN: usize = 64;
/// Bytes after which a message to an owner is full. With one more item of the largest size (a body of 1 MB; an attach
/// with three vectors of 4,096 origins, under 300 KB) it stays far below `MAX_PEER_MESSAGE`.
const MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// A shard that was open for so many times `retry_ms` was served: `NotOwner` is news then, not one more refusal.
pub(super) const SERVED: u64 = 10;
/// The wait after `NotOwner` doubles so often at most, to 3.2 s by default: opening shards again begins a new lane, with
/// all sessions of that owner, and an owner that recovers may refuse for minutes.
const MAX_DOUBLINGS: u32 = 5;
/// Lanes of one generation of an edge: their numbers are the generation times this, plus a count.
const LANES_PER_GENERATION: u64 = 1 << 20;

/// Owners, lanes, and who can be reached.
#[derive(Debug)]
pub(super) struct Routing {
    routes: Vec<Route>,
    lanes: BTreeMap<u64, Lane>,
    next_lane: u64,
    own: NodeKey,
    up: BTreeSet<NodeKey>,
    /// Shards that must not open before a time, as in their routes.
    holds: BTreeSet<(Mono, ShardId)>,
    /// Counts changes of which shards are served, and why others are not.
    version: u64,
}

#[derive(Debug, Clone, Default)]
struct Route {
    owner: Option<Owner>,
    /// The lane on which the shard is open; 0 = closed.
    lane: u64,
    /// When it was opened last.
    opened: Mono,
    /// How often in a row its owner did not serve it.
    refusals: u32,
    hold: Option<Mono>,
}

#[derive(Debug)]
pub(super) struct Lane {
    owner: Owner,
    opened: Mono,
    /// Deposits without an answer: the sum over the streams of its shards.
    in_flight: InFlight,
    /// Attaches without an answer.
    pub(super) attaching: usize,
    /// Since when the owner owes an answer, or when it last said something.
    owed_from: Mono,
    /// Streams that have something to send.
    queue: VecDeque<(SessionId, ShardId)>,
    /// Shards that were closed on it. They never open on it again, so that a session is attached at most once on a lane
    /// and nothing that is late, in either direction, is taken for what came after.
    left: BTreeSet<ShardId>,
    pub(super) out: LaneOut,
}

/// What goes out at the next flush. Grouped: the order of the groups is that of [`LaneOut::drain`].
#[derive(Debug, Default)]
pub(super) struct LaneOut {
    open: Option<Generation>,
    attach: Vec<Attach>,
    synced: Vec<ShardId>,
    unwatch: BTreeSet<UserId>,
    watch: BTreeSet<UserId>,
    /// Sessions whose status is due.
    status: Vec<SessionId>,
    deposits: Vec<Deposit>,
    /// Sessions that have acknowledgements due.
    ackers: Vec<SessionId>,
    /// Acknowledgements of sessions that ended.
    acks: Vec<SessionAck>,
    pub(super) detach: Vec<Detach>,
    /// Sessions that are to go.
    pub(super) leave: Vec<Leave>,
    /// Messages that need no order among the others.
    probed: Vec<ToOwner>,
    /// Bytes of deliveries that came and were not told as taken.
    taken: u64,
}

impl Routing {
    pub(super) fn new(config: &EdgeConfig) -> Self {
        Self {
            routes: vec![Route::default(); config.sharding.count.max(1) as usize],
            lanes: BTreeMap::new(),
            next_lane: config
                .generation
                .0
                .wrapping_mul(LANES_PER_GENERATION)
                .wrapping_add(1),
            own: config.me.node.clone(),
            up: BTreeSet::new(),
            holds: BTreeSet::new(),
            version: 0,
        }
    }

    pub(super) fn poll_timeout(&self, limits: &CoreLimits) -> Option<Mono> {
        let hold = self.holds.first().map(|(at, _)| *at);
        let silent = self.lanes.values().filter(|lane| lane.owes());
        hold.into_iter()
            .chain(silent.map(|lane| lane.owed_from + ms(limits.link_timeout_ms)))
            .min()
    }

    /// The lane on which a shard is open.
    pub(super) fn lane_of(&mut self, shard: ShardId) -> Option<&mut Lane> {
        let lane = self.number_of(shard);
        self.lanes.get_mut(&lane)
    }

    /// Puts a stream that may send something into its lane's queue, where there is a lane.
    pub(super) fn enqueue(&mut self, session: SessionId, shard: ShardId, stream: &mut Stream) {
        if !stream.queued
            && stream.paused.is_none()
            && stream.may_send() > 0
            && let Some(lane) = self.lane_of(shard)
        {
            stream.queued = true;
            lane.queue.push_back((session, shard));
        }
    }

    /// Its number; 0 where the shard is closed.
    pub(super) fn number_of(&self, shard: ShardId) -> u64 {
        self.routes.get(shard.0 as usize).map_or(0, |route| route.lane)
    }

    pub(super) fn lane_mut(&mut self, number: u64) -> Option<&mut Lane> {
        self.lanes.get_mut(&number)
    }

    /// So many deposits to a shard are not in flight any more.
    pub(super) fn answered(&mut self, shard: ShardId, some: InFlight) {
        if some.count > 0
            && let Some(lane) = self.lane_of(shard)
        {
            lane.in_flight.count -= some.count;
            lane.in_flight.bytes -= some.bytes;
        }
    }

    /// Whether a shard has a lane whose owner does not only refuse it, as one does that recovers, or owe answers, as one does
    /// that hangs.
    pub(super) fn serves(&self, now: Mono, lasts: std::time::Duration) -> bool {
        let answers = |lane: &Lane| !lane.owes() || lane.owed_from + lasts > now;
        self.routes.iter().any(|route| {
            let answers = self.lanes.get(&route.lane).is_some_and(answers);
            answers && (route.refusals == 0 || route.opened + lasts <= now)
        })
    }

    /// A number that no lane had before.
    pub(super) fn new_number(&mut self) -> u64 {
        let number = self.next_lane;
        self.next_lane = number.wrapping_add(1);
        number
    }

    pub(super) fn reaches(&self, node: &NodeKey) -> bool {
        *node == self.own || self.up.contains(node)
    }

    fn hold(&mut self, shard: ShardId, until: Option<Mono>) {
        let route = &mut self.routes[shard.0 as usize];
        if let Some(old) = std::mem::replace(&mut route.hold, until) {
            self.holds.remove(&(old, shard));
        }
        if let Some(at) = until {
            self.holds.insert((at, shard));
        }
    }

    fn shards_where(&self, wanted: impl Fn(&Route) -> bool) -> Vec<ShardId> {
        (0..)
            .map(ShardId)
            .zip(&self.routes)
            .filter(|(_, route)| wanted(route))
            .map(|(shard, _)| shard)
            .collect()
    }
}

impl Lane {
    fn owes(&self) -> bool {
        self.in_flight.count > 0 || self.attaching > 0
    }

    fn owe(&mut self, now: Mono) {
        if !self.owes() {
            self.owed_from = now;
        }
    }

    pub(super) fn watch(&mut self, user: &UserId) {
        self.out.watch.insert(user.clone());
    }

    /// An `Unwatch` goes out before a `Watch` of the same flush, so that a new watch brings the state again.
    pub(super) fn unwatch(&mut self, user: &UserId) {
        self.out.watch.remove(user);
        self.out.unwatch.insert(user.clone());
    }

    pub(super) fn status_due(&mut self, session: SessionId) {
        self.out.status.push(session);
    }

    pub(super) fn acks_due(&mut self, session: SessionId) {
        self.out.ackers.push(session);
    }

    pub(super) fn probed(&mut self, answer: ToOwner) {
        self.out.probed.push(answer);
    }
}

impl Edge {
    /// Who owns the shards from now on.
    pub(super) fn place_owners(&mut self, owners: &BTreeMap<ShardId, Owner>) {
        let routes = (0..).map(ShardId).zip(&self.routing.routes);
        let moved: Vec<ShardId> = routes
            .filter(|(shard, route)| route.owner.as_ref() != owners.get(shard))
            .map(|(shard, _)| shard)
            .collect();
        if moved.is_empty() {
            return;
        }
        self.routing.version += 1;
        self.close_shards(&moved);
        for shard in &moved {
            self.routing.hold(*shard, None);
            let route = &mut self.routing.routes[shard.0 as usize];
            route.owner = owners.get(shard).cloned();
            route.refusals = 0;
        }
        let wanted: BTreeSet<&Owner> = owners.values().collect();
        let lanes = self.routing.lanes.iter();
        let useless: Vec<u64> = lanes
            .filter(|(_, lane)| !wanted.contains(&lane.owner))
            .map(|(number, _)| *number)
            .collect();
        useless.into_iter().for_each(|lane| self.lose_lane(lane));
        self.open_routes();
    }

    /// The connection to a node came up, or broke: then everything in flight either way may be lost.
    pub fn handle_reachable(&mut self, node: &NodeKey, up: bool, now: Now) {
        self.mono = now.mono;
        if *node == self.routing.own {
            return;
        }
        self.routing.version += 1;
        if up {
            self.routing.up.insert(node.clone());
        } else {
            self.routing.up.remove(node);
            let lanes = self.routing.lanes.iter();
            let dead: Vec<u64> = lanes
                .filter(|(_, lane)| lane.owner.addr.node == *node)
                .map(|(n, _)| *n)
                .collect();
            dead.into_iter().for_each(|lane| self.lose_lane(lane));
        }
        self.open_routes();
        self.review_serving();
    }

    /// A message of an owner.
    pub fn handle_owner(&mut self, from: &Addr, lane: u64, body: ToEdge, now: Now) {
        self.mono = now.mono;
        match self.routing.lane_mut(lane) {
            Some(known) if known.owner.addr == *from => known.owed_from = now.mono,
            _ => {
                self.stats.stale += u64::from(!self.home_answers(from, lane, &body));
                return;
            }
        }
        match body {
            ToEdge::Reset => {
                self.reset(lane);
                self.review_serving();
            }
            ToEdge::NotOwner(shards) => {
                self.on_not_owner(lane, shards);
                self.review_serving();
            }
            ToEdge::Answers(answers) => answers.into_iter().for_each(|answer| self.on_answer(answer, now)),
            ToEdge::Presence(events) => events.into_iter().for_each(|event| self.on_presence(lane, event)),
            ToEdge::Deliver(deliveries) => {
                let cost: usize = deliveries.iter().map(|some| delivery_cost(&some.op)).sum();
                if let Some(lane) = self.routing.lane_mut(lane) {
                    lane.out.taken += cost as u64;
                }
                deliveries.into_iter().for_each(|d| self.on_delivery(lane, d));
            }
            ToEdge::Hole { session, hole } => self.on_hole(lane, session, hole),
            ToEdge::Attached {
                session,
                connect_epoch,
                stable,
                store,
            } => {
                if let Some(session) = self.served(lane, session) {
                    session.store = store;
                }
                self.on_attached(lane, session, connect_epoch, stable, now);
            }
            ToEdge::Reasserted {
                session,
                connect_epoch,
            } => {
                if let Some(session) = self.served(lane, session) {
                    session.connect_epoch = session.connect_epoch.max(connect_epoch);
                }
            }
            ToEdge::Ended {
                session,
                code,
                detail,
            } => {
                if self.served(lane, session).is_some() {
                    self.end(session, false, Some((code, detail)));
                }
            }
            ToEdge::Probe { session } => self.on_probe(lane, session),
            ToEdge::Position { session, after } => {
                if self.served(lane, session).is_some() {
                    self.on_position(session, after);
                }
            }
        }
    }

    /// The session, if this lane serves it.
    pub(super) fn served(&mut self, lane: u64, session: SessionId) -> Option<&mut Session> {
        let found = self
            .sessions
            .get_mut(&session)
            .filter(|session| session.lane == lane);
        if found.is_none() {
            self.stats.stale += 1;
        }
        found.map(Box::as_mut)
    }

    /// Tells the owner of a session's user about it, if it can be reached.
    pub(super) fn attach(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let number = self.routing.number_of(session.shard);
        let Some(lane) = self.routing.lanes.get_mut(&number) else {
            return;
        };
        lane.owe(self.mono);
        lane.attaching += 1;
        session.lane = number;
        session.attaching = true;
        lane.out.attach.push(session.attach(id));
    }

    pub(super) fn lanes_timeout(&mut self) {
        let now = self.mono;
        let patience = ms(self.config.limits.link_timeout_ms);
        let lanes = self.routing.lanes.iter();
        let silent: Vec<u64> = lanes
            .filter(|(_, lane)| lane.owes() && lane.owed_from + patience <= now)
            .map(|(number, _)| *number)
            .collect();
        let mut open = !silent.is_empty();
        for lane in silent {
            // Its node is there and its owner is not: as if it refused.
            for shard in self.routing.shards_where(|route| route.lane == lane) {
                let refusals = &mut self.routing.routes[shard.0 as usize].refusals;
                *refusals = (*refusals + 1).min(MAX_DOUBLINGS);
            }
            self.lose_lane(lane);
        }
        while let Some(&(_, shard)) = self.routing.holds.first().filter(|(at, _)| *at <= now) {
            self.routing.hold(shard, None);
            open = true;
        }
        if open {
            self.open_routes();
        }
        self.review_serving();
    }

    fn reset(&mut self, number: u64) {
        let retry = ms(self.config.limits.retry_ms);
        let Some(lane) = self.routing.lanes.get(&number) else {
            return;
        };
        // An owner that resets lane after lane must not be answered as fast as the network carries it.
        let hold = (lane.opened + retry > self.mono).then(|| self.mono + retry);
        let shards = self.routing.shards_where(|route| route.lane == number);
        self.lose_lane(number);
        if hold.is_some() {
            shards
                .into_iter()
                .for_each(|shard| self.routing.hold(shard, hold));
        }
        self.open_routes();
    }

    fn on_not_owner(&mut self, lane: u64, mut shards: Vec<ShardId>) {
        shards.retain(|shard| self.routing.number_of(*shard) == lane);
        if shards.is_empty() {
            self.stats.stale += 1;
            return;
        }
        self.stats.not_owner += shards.len() as u64;
        self.close_shards(&shards);
        for shard in shards {
            let route = &mut self.routing.routes[shard.0 as usize];
            if route.opened + ms(SERVED * self.config.limits.retry_ms) <= self.mono {
                route.refusals = 0;
            }
            let wait = ms(self.config.limits.retry_ms << route.refusals);
            route.refusals = (route.refusals + 1).min(MAX_DOUBLINGS);
            self.routing.hold(shard, Some(self.mono + wait));
        }
    }

    fn lose_lane(&mut self, number: u64) {
        let shards = self.routing.shards_where(|route| route.lane == number);
        self.close_shards(&shards);
        self.routing.lanes.remove(&number);
        self.stats.lanes_lost += 1;
        self.stats.lanes = self.routing.lanes.len();
    }

    /// Sessions of these shards are unattached, streams to them go again when they open.
    fn close_shards(&mut self, shards: &[ShardId]) {
        let mut closing = vec![false; self.routing.routes.len()];
        let mut any = false;
        for shard in shards {
            if self.routing.number_of(*shard) != 0 {
                closing[shard.0 as usize] = true;
                any = true;
            }
        }
        if !any {
            return;
        }
        self.routing.version += 1;
        for session in self.sessions.values_mut() {
            if session.lane != 0 && closing[session.shard.0 as usize] {
                if let Some(lane) = self.routing.lane_mut(session.lane) {
                    lane.attaching -= usize::from(session.attaching);
                }
                session.leave_lane();
            }
            for (shard, stream) in &mut session.streams {
                if closing[shard.0 as usize] {
                    self.routing.answered(*shard, stream.rewind_for_another_lane());
                }
            }
        }
        for shard in shards {
            let route = &mut self.routing.routes[shard.0 as usize];
            if let Some(lane) = self.routing.lanes.get_mut(&std::mem::take(&mut route.lane)) {
                lane.left.insert(*shard);
            }
        }
    }

    /// Opens every closed shard whose owner can be reached now.
    fn open_routes(&mut self) {
        let used: Vec<u64> = self
            .openable()
            .filter_map(|(shard, owner)| {
                let mut lanes = self.routing.lanes.iter();
                lanes.find(|(_, lane)| lane.owner == *owner && lane.left.contains(&shard))
            })
            .map(|(number, _)| *number)
            .collect();
        for lane in BTreeSet::from_iter(used) {
            self.lose_lane(lane);
        }
        let mut wanted: BTreeMap<&Owner, Vec<ShardId>> = BTreeMap::new();
        for (shard, owner) in self.openable() {
            wanted.entry(owner).or_default().push(shard);
        }
        let wanted: Vec<(Owner, Vec<ShardId>)> = wanted
            .into_iter()
            .map(|(o, shards)| (o.clone(), shards))
            .collect();
        let mut opened = vec![false; self.routing.routes.len()];
        for (owner, shards) in &wanted {
            let number = self.lane_to(owner);
            for shard in shards {
                opened[shard.0 as usize] = true;
                self.open_shard(number, *shard);
            }
        }
        if wanted.is_empty() {
            return;
        }
        for (id, session) in &mut self.sessions {
            for (shard, stream) in &mut session.streams {
                if opened[shard.0 as usize] {
                    self.routing.enqueue(*id, *shard, stream);
                }
            }
        }
    }

    /// Closed shards that may open, and their owners.
    fn openable(&self) -> impl Iterator<Item = (ShardId, &Owner)> {
        (0..)
            .map(ShardId)
            .zip(&self.routing.routes)
            .filter_map(|(shard, route)| {
                let owner = route.owner.as_ref()?;
                let free = route.lane == 0 && route.hold.is_none() && self.routing.reaches(&owner.addr.node);
                free.then_some((shard, owner))
            })
    }

    fn open_shard(&mut self, number: u64, shard: ShardId) {
        self.routing.version += 1;
        let route = &mut self.routing.routes[shard.0 as usize];
        (route.lane, route.opened) = (number, self.mono);
        let sessions = self
            .by_shard
            .range((shard, SessionId(0))..=(shard, SessionId(u64::MAX)));
        let sessions: Vec<SessionId> = sessions.map(|(_, id)| *id).collect();
        sessions.into_iter().for_each(|id| self.attach(id));
        let Some(lane) = self.routing.lanes.get_mut(&number) else {
            return;
        };
        lane.out.synced.push(shard);
        for (_, user) in super::inbound::watched_of(&self.watched, shard) {
            lane.watch(user);
        }
    }

    fn lane_to(&mut self, owner: &Owner) -> u64 {
        if let Some((number, _)) = self.routing.lanes.iter().find(|(_, lane)| lane.owner == *owner) {
            return *number;
        }
        let number = self.routing.new_number();
        let lane = Lane {
            owner: owner.clone(),
            opened: self.mono,
            in_flight: InFlight::default(),
            attaching: 0,
            owed_from: self.mono,
            queue: VecDeque::new(),
            left: BTreeSet::new(),
            out: LaneOut {
                open: Some(self.config.generation),
                ..LaneOut::default()
            },
        };
        self.routing.lanes.insert(number, lane);
        self.stats.lanes_opened += 1;
        self.stats.lanes = self.routing.lanes.len();
        number
    }

    pub(super) fn flush_lanes(&mut self) {
        let window = match defect::on(Defect::LaneIgnored) {
            true => usize::MAX,
            false => self.config.limits.lane_deposits.max(1),
        };
        let most = self.config.limits.lane_bytes;
        let routes = &self.routing.routes;
        for (number, lane) in &mut self.routing.lanes {
            while lane.in_flight.count < window
                && lane.in_flight.bytes < most
                && let Some((id, shard)) = lane.queue.pop_front()
            {
                let Some(stream) = self.sessions.get_mut(&id).and_then(|s| s.streams.get_mut(&shard)) else {
                    continue;
                };
                if routes[shard.0 as usize].lane != *number || !stream.queued {
                    continue;
                }
                let may = stream.may_send();
                let turn = TURN.min(window - lane.in_flight.count).min(may);
                lane.owe(self.mono);
                let mut end = stream.sent;
                // The one that reaches the limit goes, so that none is too large for it.
                for item in stream.items.range(stream.sent..).take(turn) {
                    if lane.in_flight.bytes >= most {
                        break;
                    }
                    lane.in_flight.bytes += item.cost();
                    end += 1;
                }
                let attempt = stream.attempt;
                stream.queued = end - stream.sent < may;
                let turn = stream.items.range(stream.sent..end);
                lane.out
                    .deposits
                    .extend(turn.map(|item| item.deposit(shard, attempt)));
                lane.in_flight.count += end - stream.sent;
                self.stats.deposited += (end - stream.sent) as u64;
                stream.sent = end;
                if stream.queued {
                    lane.queue.push_back((id, shard));
                }
            }
            let step = TAKEN_STEP.min(most / 4) as u64;
            if lane.out.taken >= step.max(1) {
                let bytes = std::mem::take(&mut lane.out.taken);
                lane.out.probed.push(ToOwner::Taken { bytes });
            }
            let (to, lane_number) = (&lane.owner.addr, *number);
            self.stats.acks_forwarded += lane.out.drain(lane_number, &mut self.sessions, &mut |body| {
                self.stats.deposit_messages += u64::from(matches!(body, ToOwner::Deposit(_)));
                self.ready.push_back(EdgeOutput::ToOwner {
                    to: to.clone(),
                    lane: lane_number,
                    body,
                });
            });
        }
    }
}

impl LaneOut {
    /// Moves what a session acknowledged here. Says how many coordinates those are.
    pub(super) fn take_acks(&mut self, id: SessionId, session: &mut Session) -> u64 {
        let shard = session.shard;
        let count = session.acks_due.len() as u64;
        let acks = session.acks_due.drain(..).map(|at| SessionAck {
            shard,
            session: id,
            at,
        });
        self.acks.extend(acks);
        count
    }

    /// Empties it into messages, in the order that the conversation needs: acknowledgements and status before the end of
    /// a session, attaches before `Synced`. Says how many acknowledgements it took from sessions.
    fn drain(
        &mut self,
        lane: u64,
        sessions: &mut BTreeMap<SessionId, Box<Session>>,
        send: &mut dyn FnMut(ToOwner),
    ) -> u64 {
        if let Some(generation) = self.open.take() {
            send(ToOwner::Open { generation });
        }
        batches(&mut self.attach, attach_bytes, |some| send(ToOwner::Attach(some)));
        batches(&mut self.synced, |_| 5, |some| send(ToOwner::Synced(some)));
        let mut users: Vec<UserId> = std::mem::take(&mut self.unwatch).into_iter().collect();
        batches(
            &mut users,
            |user| user.as_str().len(),
            |some| send(ToOwner::Unwatch(some)),
        );
        let mut users: Vec<UserId> = std::mem::take(&mut self.watch).into_iter().collect();
        batches(
            &mut users,
            |user| user.as_str().len(),
            |some| send(ToOwner::Watch(some)),
        );
        let mut changes = Vec::new();
        for id in self.status.drain(..) {
            if let Some(session) = sessions.get_mut(&id).filter(|s| s.lane == lane && s.status_due) {
                session.status_due = false;
                changes.push(SetStatus {
                    shard: session.shard,
                    session: id,
                    counter: session.counter,
                    status: session.status,
                    text: session.text.clone(),
                });
            }
        }
        batches(
            &mut changes,
            |change| 32 + change.text.len(),
            |some| send(ToOwner::SetStatus(some)),
        );
        batches(
            &mut self.deposits,
            |deposit| 256 + deposit.body.len(),
            |some| send(ToOwner::Deposit(some)),
        );
        let mut taken = 0;
        for id in std::mem::take(&mut self.ackers) {
            if let Some(session) = sessions.get_mut(&id).filter(|s| s.lane == lane) {
                taken += self.take_acks(id, session);
            }
        }
        batches(&mut self.acks, |_| 32, |some| send(ToOwner::Ack(some)));
        batches(&mut self.leave, |_| 16, |some| send(ToOwner::Leave(some)));
        batches(&mut self.detach, |_| 16, |some| send(ToOwner::Detach(some)));
        self.probed.drain(..).for_each(send);
        taken
    }
}

fn attach_bytes(attach: &Attach) -> usize {
    let origins = attach.claim.len() + attach.given.len() + attach.acked.len();
    512 + attach.text.len() + 20 * origins
}

/// Hands out all of `items` in messages of at most [`MAX_ITEMS`] items and about [`MESSAGE_BYTES`].
fn batches<T>(items: &mut Vec<T>, bytes: impl Fn(&T) -> usize, mut send: impl FnMut(Vec<T>)) {
    if items.is_empty() {
        return;
    }
    let mut some = Vec::with_capacity(items.len().min(MAX_ITEMS));
    let mut size = 0;
    for item in items.drain(..) {
        size += bytes(&item);
        some.push(item);
        if some.len() == MAX_ITEMS || size >= MESSAGE_BYTES {
            send(std::mem::take(&mut some));
            size = 0;
        }
    }
    if !some.is_empty() {
        send(some);
    }
}

#[cfg(test)]
impl Routing {
    /// Deposits in flight on all lanes.
    pub(super) fn in_flight(&self) -> usize {
        self.lanes.values().map(|lane| lane.in_flight.count).sum()
    }

    /// Their bytes.
    pub(super) fn bytes_in_flight(&self) -> usize {
        self.lanes.values().map(|lane| lane.in_flight.bytes).sum()
    }

    /// Attaches without an answer on all lanes.
    pub(super) fn attaching(&self) -> usize {
        self.lanes.values().map(|lane| lane.attaching).sum()
    }
}
