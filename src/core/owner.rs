//! The owner machine: the shards that this partition owns.
//!
//! | module | what it holds |
//! |---|---|
//! | this | lanes of edges, the periodic work of a shard |
//! | `shards` | taking shards over, and giving them up |
//! | [`deposits`] | judging deposits in order (R21), and answering them |
//! | [`forget`] | dropping dedup records of ids that cannot come any more (R16) |
//! | [`delivery`] | attached sessions: windows, cursors, reading the inbox |
//! | [`holes`] | what is gone of an inbox, told in its place |
//! | [`sweep`] | looking for what expires: messages and devices (R18, R19) |
//! | [`parts`] | spreads the periodic work over time |
//! | [`sessions`] | presence of sessions: admission, ends, probes, watchers |
//! | `asked` | what is asked of the store, and what for |
//! | `inspect` | what an operator is shown |
//! | `moved` | sessions that a plan moved here from another region (R22) |
//! | [`holders`] | who is away (R12), changes of who keeps the shards (R13) |
//! | [`retire`] | what old origins are needed for (R23) |
//! | [`recovery`] | shards that lack what other regions have (R4) |
//!
//! A shard is taken over in three steps: a `Bump` of its epoch is committed, its head is read, and it is active. Deposits
//! and attaches before that are refused retryably. Whatever is committed comes back through
//! [`Owner::handle_committed`], own operations and applied ones alike; delivery reads only from there and from the store.

mod asked;
mod copies;
mod credit;
mod delivery;
mod deposits;
mod forget;
mod holders;
mod holes;
mod inspect;
mod moved;
mod parts;
mod recovery;
mod retire;
mod sessions;
mod shards;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::commit::{Outcome, Refusal, StoreOp};
use super::defect::{self, Defect};
use super::holders::Partners;
use super::ids::{
    Addr, DeviceId, Epoch, Generation, NodeKey, Origin, RegionId, Seq, SessionId, ShardId, Sharding, UserId,
};
use super::limits::{CoreLimits, ms};
use super::members::{Member, Members};
use super::msg::{Answer, Delivery, ToEdge, ToOwner};
use super::op::{Op, kind};
use super::presence::Presence;
use super::state::{Logged, ShardRow};
use super::storage::{ReadReply, StoreError};
use super::time::{Clocks, Mono, Now};
use super::vector::Vector;
use super::wire::{Code, PresenceEvent};
use crate::core::commit;

use parts::{PARTS, Parts};

pub use asked::{Question, Tag};
pub use copies::{DurabilityPolicy, WithoutCopy};
pub use credit::{TAKEN_STEP, delivery_cost};
pub use delivery::DeliveryStats;
pub use deposits::DepositStats;
pub use holders::HoldersStatus;

/// Deliveries for one edge go out in messages of about this many bytes: far below what a message may hold, large enough
/// to be worth its overhead.
const DELIVERY_MESSAGE_BYTES: usize = 1024 * 1024;

/// Presence events in one message: each is below a kilobyte.
const PRESENCE_MESSAGE_EVENTS: usize = 1024;

/// What an owner is told once.
#[derive(Debug, Clone)]
pub struct OwnerConfig {
    /// This partition.
    pub me: Addr,
    /// How users are spread.
    pub sharding: Sharding,
    /// The regions that keep every shard.
    pub holders: BTreeSet<RegionId>,
    /// Limits.
    pub limits: CoreLimits,
    /// When a message is accepted.
    pub durability: DurabilityPolicy,
}

/// What an owner wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerOutput {
    /// A message for an edge.
    ToEdge {
        /// The edge.
        to: Addr,
        /// Its lane.
        lane: u64,
        /// What.
        body: ToEdge,
    },
    /// Operations for the store; what becomes of each comes back with its tag.
    Commit(StoreOp, Tag),
    /// A question to the store.
    Read(Question),
    /// The shard is active here, as its head says; `None`: it is no longer.
    Owned(ShardId, Option<Box<ShardRow>>),
    /// The shard begins to recover, or is open (R4).
    Recovering(ShardId, bool),
    /// The regions that this one has links with are others from now on (R13).
    Regions(Partners),
    /// The shard begins to recover because this region was away, and lost nothing (R12).
    Behind(ShardId),
    /// Origins are retired, with their last sequences (R23).
    Retired(ShardId, BTreeMap<Origin, Seq>),
    /// A presence record changed here.
    PresenceChanged {
        /// The shard.
        shard: ShardId,
        /// Whose.
        user: UserId,
        /// Of which device.
        device: DeviceId,
        /// Who told it; `None` where it was written here.
        from: Option<Addr>,
    },
}

/// One attachment of a session. A session that is attached again is another one: what was asked for the one before must
/// not be taken for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachId {
    /// The user's shard.
    pub shard: ShardId,
    /// The session.
    pub session: SessionId,
    number: u64,
}

/// Counters of an owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnerStats {
    /// Of deposits.
    pub deposits: DepositStats,
    /// Of deliveries.
    pub delivery: DeliveryStats,
    /// Shards taken over.
    pub takeovers: u64,
    /// Operations that another owner's epoch fenced.
    pub fenced: u64,
    /// Sessions that were superseded by a newer one of their device.
    pub superseded: u64,
}

/// The owner machine.
pub struct Owner {
    config: OwnerConfig,
    shards: BTreeMap<ShardId, Shard>,
    wanted: BTreeSet<ShardId>,
    /// Shards that are active.
    active: usize,
    /// Lanes by a number of our own, so that a message for a lane that died meanwhile finds nothing.
    lanes: BTreeMap<LaneId, Lane>,
    lane_of: BTreeMap<Addr, LaneId>,
    next_lane: u64,
    next_attach: u64,
    /// Looks for what old origins are needed for, so far.
    looks: u64,
    /// The last input's clock.
    now: Mono,
    /// The change of the holders that every shard is to have.
    target: Option<holders::Target>,
    /// The regions as told last; at first those that the store was begun with, told to nobody.
    partners: Partners,
    partners_told: bool,
    /// They may be others by now.
    regions_due: bool,
    /// Lanes that broke on our side: their edges are told once they can be reached.
    broken: BTreeMap<Addr, u64>,
    senders: deposits::Senders,
    waits: copies::Waits,
    /// Shards whose presence changed since the last tick.
    touched: BTreeSet<ShardId>,
    unreachable: BTreeMap<RegionId, u64>,
    dead_edges: BTreeMap<NodeKey, (Generation, Mono)>,
    /// Edges of other regions that have a lane here, while their own region serves nobody.
    guests: BTreeMap<NodeKey, Generation>,
    /// Cursors that the store could not write; at most one for each device that acknowledged since the last flush.
    unwritten: BTreeMap<(ShardId, UserId, DeviceId), Vector>,
    /// Edges that are there: of this region, and guests.
    members: BTreeMap<NodeKey, Generation>,
    /// The nodes of this region.
    edges: BTreeMap<NodeKey, Generation>,
    /// Other nodes of this region own shards too, or did: what is ours may be taken over.
    shared: bool,
    probes: BTreeMap<SessionId, sessions::Probe>,
    /// Sessions that gave way, by the one that they gave way to, until that one's probe is answered.
    doubts: BTreeMap<SessionId, Vec<sessions::Doubt>>,
    /// Deposits are refused: the node stops.
    finishing: bool,
    /// Sessions that wait for what another region took before it sent them here.
    held: Vec<moved::Held>,
    /// An operator's word that what recovers when it is taken over is enough.
    end_recovery: bool,
    /// What the clocks of the other regions say.
    clocks: Clocks,
    /// Messages that expire at or before this, unix milliseconds, are not given any more.
    expired_ms: u64,
    sweeps: sweep::Sweeps,
    upkeep: Parts,
    flush: Parts,
    presence_at: Mono,
    retry_at: Option<Mono>,
    out: VecDeque<OwnerOutput>,
    stats: OwnerStats,
}

/// A lane of an edge, by our own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneId(u64);

struct Lane {
    edge: Addr,
    number: u64,
    generation: Generation,
    answers: Vec<Answer>,
    deliveries: Vec<Delivery>,
    /// Bytes of deliveries that the edge did not say that it took.
    in_flight: usize,
    /// Sessions that found no room, in the order of their turns.
    waiting: VecDeque<(ShardId, SessionId)>,
    presence: BTreeMap<UserId, PresenceEvent>,
    sessions: BTreeSet<(ShardId, SessionId)>,
    watches: BTreeSet<UserId>,
    /// Shards of which the edge has attached its whole set.
    synced: BTreeSet<ShardId>,
}

struct Shard {
    /// `None` until the head was read.
    epoch: Option<Epoch>,
    recovery: recovery::Recovery,
    applied: Vector,
    /// Origins of this region.
    own: BTreeSet<Origin>,
    /// To here another region has them.
    copied: BTreeMap<Origin, Seq>,
    stable: BTreeMap<RegionId, Vector>,
    /// Boxed, because a map takes room for eleven at once and a shard has few.
    sessions: BTreeMap<SessionId, Box<delivery::Attachment>>,
    users: BTreeMap<UserId, BTreeSet<SessionId>>,
    watchers: BTreeMap<UserId, BTreeSet<LaneId>>,
    /// Something was logged since the last upkeep.
    dirty: bool,
    forget: forget::Forget,
    look: retire::Look,
    sweep: sweep::Sweep,
    holders: holders::Holders,
    /// Sessions whose cursor moved since it was last written.
    moved: BTreeSet<SessionId>,
    presence: Presence,
    /// When to look for sessions that their edge does not have.
    check_missing: Option<Mono>,
}

impl Shard {
    fn new(region: &RegionId) -> Self {
        Self {
            epoch: None,
            recovery: recovery::Recovery::default(),
            applied: Vector::new(),
            own: BTreeSet::new(),
            copied: BTreeMap::new(),
            stable: BTreeMap::new(),
            sessions: BTreeMap::new(),
            users: BTreeMap::new(),
            watchers: BTreeMap::new(),
            dirty: false,
            forget: forget::Forget::default(),
            look: retire::Look::default(),
            sweep: sweep::Sweep::default(),
            holders: holders::Holders::default(),
            moved: BTreeSet::new(),
            presence: Presence::new(region.clone()),
            check_missing: None,
        }
    }

    fn is_open(&self) -> bool {
        self.epoch.is_some() && !self.recovery.on && self.holders.removed != Some(holders::Removed::Closed)
    }

    fn stable(&self, first: &BTreeSet<RegionId>) -> Vector {
        let none = Vector::new();
        let holders = self.holders.counting(first);
        let of = |holder: &RegionId| self.stable.get(holder).unwrap_or(&none);
        let mut holders = holders.iter();
        let Some(first) = holders.next() else {
            return Vector::new();
        };
        holders.fold(of(first).clone(), |low, holder| low.min(of(holder)))
    }
}

impl Owner {
    /// An owner of nothing yet.
    pub fn new(config: OwnerConfig, now: Now) -> Self {
        Self {
            shards: BTreeMap::new(),
            wanted: BTreeSet::new(),
            active: 0,
            lanes: BTreeMap::new(),
            lane_of: BTreeMap::new(),
            next_lane: 1,
            next_attach: 1,
            looks: 0,
            now: now.mono,
            target: None,
            partners: Partners {
                all: config.holders.clone(),
                staying: config.holders.clone(),
                change: None,
            },
            partners_told: false,
            regions_due: false,
            broken: BTreeMap::new(),
            senders: deposits::Senders::default(),
            waits: copies::Waits::default(),
            touched: BTreeSet::new(),
            unreachable: BTreeMap::new(),
            dead_edges: BTreeMap::new(),
            guests: BTreeMap::new(),
            edges: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            members: BTreeMap::new(),
            shared: false,
            probes: BTreeMap::new(),
            doubts: BTreeMap::new(),
            finishing: false,
            held: Vec::new(),
            end_recovery: false,
            clocks: Clocks::default(),
            expired_ms: 0,
            sweeps: sweep::Sweeps::default(),
            upkeep: Parts::new(now.mono, config.limits.confirm_ms),
            flush: Parts::new(now.mono, config.limits.cursor_ms),
            presence_at: now.mono + ms(config.limits.presence_ms),
            retry_at: None,
            out: VecDeque::new(),
            stats: OwnerStats::default(),
            config,
        }
    }

    /// Counters.
    pub fn stats(&self) -> &OwnerStats {
        &self.stats
    }

    /// The presence records of a shard that this partition owns.
    pub fn presence(&self, shard: ShardId) -> Option<&Presence> {
        self.shards.get(&shard).map(|shard| &shard.presence)
    }

    /// Shards that are active here.
    pub fn active_shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.shards
            .iter()
            .filter(|(_, shard)| shard.is_open())
            .map(|(id, _)| *id)
    }

    /// How many shards are active here.
    pub fn active_count(&self) -> usize {
        self.active
    }

    /// The epoch of a shard that is active here.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.shards.get(&shard)?.epoch
    }

    /// The lanes of edges: whose, and of which of its incarnations.
    pub fn lanes(&self) -> impl Iterator<Item = (&Addr, Generation)> {
        self.lanes.values().map(|lane| (&lane.edge, lane.generation))
    }

    /// The sessions that are attached in a shard, each with its edge.
    pub fn attached_in(&self, shard: ShardId) -> impl Iterator<Item = (SessionId, &Addr, Generation)> {
        let sessions = self
            .shards
            .get(&shard)
            .into_iter()
            .flat_map(|shard| &shard.sessions);
        sessions.filter_map(|(session, attachment)| {
            let lane = self.lanes.get(&attachment.lane)?;
            Some((*session, &lane.edge, lane.generation))
        })
    }

    /// Whether every shard that this partition should own is active.
    pub fn all_active(&self) -> bool {
        self.active == self.wanted.len()
    }

    /// From now on deposits are refused retryably: their edges try again where the shard goes, or here after a restart.
    pub fn handle_finish(&mut self) {
        self.finishing = true;
    }

    /// Whether deposits are refused and all that were taken before are answered.
    pub fn is_settled(&self) -> bool {
        self.finishing && self.stats.deposits.pending == 0
    }

    /// The shards that placement gives to this partition.
    pub fn handle_placement(&mut self, mine: BTreeSet<ShardId>, now: Now) {
        let lost: Vec<ShardId> = self
            .shards
            .keys()
            .copied()
            .filter(|shard| !mine.contains(shard))
            .collect();
        for shard in lost {
            self.give_up(shard);
        }
        for shard in mine.difference(&self.wanted.clone()) {
            self.take_over(*shard);
        }
        self.wanted = mine;
        let _ = now;
    }

    /// The nodes of every region: an edge of this region that is gone takes its sessions with it after a grace.
    pub fn handle_members(&mut self, members: &Members, now: Now) {
        let region = &self.config.me.node.region;
        let edges = members
            .regions
            .get(region)
            .into_iter()
            .flat_map(|nodes| nodes.values());
        self.edges = edges
            .map(|member: &Member| (member.key.clone(), member.generation))
            .collect();
        let cores = members
            .regions
            .get(region)
            .into_iter()
            .flat_map(|nodes| nodes.values());
        self.shared |= cores.filter(|member| member.core).count() > 1;
        self.note_edges(now);
    }

    /// Edges came or went: the sessions of one that is not there end after a grace.
    fn note_edges(&mut self, now: Now) {
        let mut there = self.guests.clone();
        there.extend(self.edges.clone());
        let grace = now.mono + ms(self.config.limits.session_grace_ms);
        for (node, generation) in &self.members {
            let forgotten = there.contains_key(node) && defect::on(Defect::GenerationForgotten);
            if there.get(node) != Some(generation) && !forgotten {
                self.dead_edges.insert(node.clone(), (*generation, grace));
            }
        }
        self.dead_edges
            .retain(|node, (generation, _)| there.get(node) != Some(generation));
        self.members = there;
    }

    /// The connection to a node came up, or broke: then what was on its lanes may be lost.
    pub fn handle_reachable(&mut self, node: &NodeKey, up: bool, now: Now) {
        if up {
            let told: Vec<Addr> = self
                .broken
                .keys()
                .filter(|edge| edge.node == *node)
                .cloned()
                .collect();
            for edge in told {
                let lane = self.broken.remove(&edge).unwrap_or_default();
                self.out.push_back(OwnerOutput::ToEdge {
                    to: edge,
                    lane,
                    body: ToEdge::Reset,
                });
            }
        } else {
            let lanes: Vec<LaneId> = self
                .lanes
                .iter()
                .filter(|(_, lane)| lane.edge.node == *node)
                .map(|(id, _)| *id)
                .collect();
            for id in lanes {
                if let Some(lane) = self.close_lane(id) {
                    self.broken.insert(lane.edge, lane.number);
                }
            }
            // No gossip tells of it.
            if self.guests.remove(node).is_some() {
                self.note_edges(now);
            }
        }
    }

    /// A message from an edge.
    pub fn handle_edge(&mut self, from: &Addr, number: u64, body: ToOwner, now: Now) {
        if let ToOwner::Open { generation } = body {
            return self.open_lane(from, number, generation, now);
        }
        let lane = match self.lane_of.get(from).map(|id| (*id, self.lanes[id].number)) {
            Some((id, current)) if current == number => id,
            Some((_, current)) if current > number => return,
            _ => {
                let to = from.clone();
                return self.out.push_back(OwnerOutput::ToEdge {
                    to,
                    lane: number,
                    body: ToEdge::Reset,
                });
            }
        };
        match body {
            ToOwner::Open { .. } => {}
            ToOwner::Attach(sessions) => {
                sessions
                    .into_iter()
                    .for_each(|attach| self.attach(lane, attach, now));
            }
            ToOwner::Synced(shards) => self.synced(lane, &shards, now),
            ToOwner::Deposit(deposits) => {
                deposits
                    .into_iter()
                    .for_each(|deposit| self.deposit(lane, deposit, now));
            }
            ToOwner::Ack(acks) => acks
                .into_iter()
                .for_each(|ack| self.ack(ack.shard, ack.session, ack.at)),
            ToOwner::Taken { bytes } => self.taken(lane, bytes),
            ToOwner::Detach(ended) => {
                ended
                    .into_iter()
                    .for_each(|detach| self.detach(detach.shard, detach.session, now));
            }
            ToOwner::Leave(leaving) => leaving.into_iter().for_each(|leave| self.leave(lane, leave)),
            ToOwner::SetStatus(changes) => changes
                .into_iter()
                .for_each(|change| self.set_status(change, now)),
            ToOwner::Watch(users) => users.into_iter().for_each(|user| self.watch(lane, user)),
            ToOwner::Unwatch(users) => users.into_iter().for_each(|user| self.unwatch(lane, &user)),
            ToOwner::Probed { session, alive, .. } => self.probed(session, alive, now),
        }
    }

    /// What became of an operation; `Err` says whether it may be tried again, and why.
    pub fn handle_outcome(&mut self, tag: Tag, outcome: Result<Outcome, StoreError>, now: Now) {
        if let Ok(Outcome::Refused(Refusal::Fenced { .. })) = outcome {
            self.stats.fenced += 1;
        }
        match (tag, outcome) {
            (Tag::Bump(shard), Ok(Outcome::Bumped { epoch })) => {
                if self.shards.contains_key(&shard) {
                    self.out
                        .push_back(OwnerOutput::Read(Question::Head(shard, epoch)));
                }
            }
            (Tag::Bump(_), _) => self.retry_at = Some(now.mono + ms(self.config.limits.retry_ms)),
            (Tag::Deposit(tag), outcome) => self.deposited(tag, outcome, now),
            (Tag::Register(at), outcome) => self.registered(at, outcome, now),
            // The store could not: the session may be gone by now, so the cursor is kept here until it is written.
            (Tag::Cursor(cursor), Err(_)) => {
                let key = (cursor.shard, cursor.user, cursor.device);
                self.unwritten.entry(key).or_default().merge(&cursor.cursor);
            }
            (Tag::Cursor(cursor), Ok(outcome)) => {
                self.handle_outcome(Tag::Remove(cursor.shard, cursor.user), Ok(outcome), now);
            }
            (Tag::Remove(shard, user), Ok(Outcome::Done { more: true })) => {
                if let Some(epoch) = self.open_epoch(shard) {
                    let op = StoreOp::Remove {
                        shard,
                        epoch,
                        user: user.clone(),
                    };
                    self.out
                        .push_back(OwnerOutput::Commit(op, Tag::Remove(shard, user)));
                }
            }
            (Tag::Upkeep(shard) | Tag::Remove(shard, _), Ok(Outcome::Refused(Refusal::Fenced { .. }))) => {
                self.handle_fenced(shard, now);
            }
            (Tag::Upkeep(shard), Ok(Outcome::Done { more: true })) => {
                if let Some(epoch) = self.epoch(shard) {
                    self.out.push_back(OwnerOutput::Commit(
                        StoreOp::Trim { shard, epoch },
                        Tag::Upkeep(shard),
                    ));
                }
            }
            (Tag::Upkeep(shard), Err(_)) => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.dirty = true;
                }
            }
            (Tag::Forget(shard, before), outcome) => self.forgot(shard, before, outcome, now),
            (Tag::Expire(shard, user), outcome) => self.expired(shard, user, outcome, now),
            (Tag::Recover(shard, on), outcome) => self.recovery_written(shard, on, outcome, now),
            (Tag::Retire(shard), outcome) => self.retired(shard, outcome, now),
            (Tag::Mark(shard), outcome) => self.marked(shard, outcome, now),
            (Tag::Behind(shard), outcome) => self.behind_written(shard, outcome, now),
            // Proposed again where it did not come to anything.
            (Tag::Holders(shard), Ok(Outcome::Refused(Refusal::Fenced { .. }))) => {
                self.handle_fenced(shard, now);
            }
            (Tag::Holders(_), _) => {}
            (Tag::Upkeep(_) | Tag::Remove(..), _) => {}
        }
    }

    /// The answer to a question.
    pub fn handle_answer(&mut self, question: Question, answer: Result<ReadReply, StoreError>, now: Now) {
        match (question, answer) {
            (Question::Head(shard, epoch), Ok(ReadReply::Shard(row))) => self.activate(shard, epoch, &row),
            (Question::Verify(shard, epoch), Ok(ReadReply::Shard(row))) => {
                if row.epoch > epoch && self.epoch(shard) == Some(epoch) {
                    self.handle_fenced(shard, now);
                }
            }
            // Asked again in the next interval.
            (Question::Verify(..), _) => {}
            (Question::Sweep(shard, _), Ok(ReadReply::Users(users))) => self.swept(shard, users, now),
            // Gone on with in the next interval.
            (Question::Sweep(..), _) => self.sweeps.ended(),
            (Question::Recovered(shard), Ok(ReadReply::Shard(row))) => self.recovery_read(shard, &row),
            (Question::Recovered(shard), _) => self.recovery_failed(shard),
            (Question::Needed { shard, number, .. }, Ok(ReadReply::Needed(page))) => {
                self.looked(shard, number, Some(page));
            }
            (Question::Needed { shard, number, .. }, _) => self.looked(shard, number, None),
            (Question::Head(..), _) => self.retry_at = Some(now.mono + ms(self.config.limits.retry_ms)),
            (Question::User(at, user), Ok(ReadReply::User(row))) => {
                self.user_read(at, &user, &row, now);
            }
            (Question::Inbox { at, .. }, Ok(ReadReply::Inbox(page))) => {
                self.inbox_read(at, page);
            }
            (Question::User(at, _) | Question::Inbox { at, .. }, answer) => {
                if self.attached(at).is_none() {
                    return;
                }
                let why = match answer {
                    Err(error) => error.to_string(),
                    Ok(_) => "the store answered another question".to_owned(),
                };
                self.end_session(at.shard, at.session, Code::Unavailable, &why, now);
            }
        }
    }

    /// Operations that were committed, in order.
    pub fn handle_committed(&mut self, logged: &[Logged]) {
        for entry in logged {
            let Some(shard) = self.shards.get_mut(&entry.shard) else {
                continue;
            };
            shard.dirty = true;
            shard.applied.raise(entry.origin, entry.entry.seq);
            if entry.region == self.config.me.node.region {
                shard.own.insert(entry.origin);
            }
            if entry.entry.op.kind() != kind::CONFIRM {
                shard.holders.logged(entry.coord());
            }
            match entry.entry.op.kind() {
                kind::APPEND => {
                    shard.sweep.appended(&entry.entry.op);
                    self.appended(entry);
                }
                kind::CURSOR => {
                    if let Ok(Op::Cursor { user, device, cursor }) = entry.entry.op.decode() {
                        self.consumed_elsewhere(entry.shard, &user, &device, &cursor);
                    }
                }
                kind::HOLDERS => {
                    if let Ok(Op::Holders(change)) = entry.entry.op.decode() {
                        self.holders_changed(entry.shard, &change, entry.coord());
                    }
                }
                kind::CONFIRM => {
                    if let Ok(Op::Confirm {
                        holder, mut applied, ..
                    }) = entry.entry.op.decode()
                    {
                        crate::core::retire::strip(&mut applied, &shard.look.retired);
                        shard.stable.insert(holder, applied);
                        self.settle_holders(entry.shard);
                    }
                }
                _ => {}
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now.mono;
        if self.retry_at.is_some_and(|at| at <= now.mono) {
            self.retry_at = None;
            let missing: Vec<ShardId> = self
                .wanted
                .iter()
                .copied()
                .filter(|shard| self.epoch(*shard).is_none())
                .collect();
            missing.into_iter().for_each(|shard| self.take_over(shard));
        }
        for _ in 0..PARTS {
            let (flush, upkeep) = (self.flush.due(now.mono), self.upkeep.due(now.mono));
            if let Some(part) = flush {
                self.flush_cursors(part);
            }
            if let Some(part) = upkeep {
                self.upkeep(part, now);
            }
            if flush.is_none() && upkeep.is_none() {
                break;
            }
        }
        self.give_up_copies(now);
        if self.presence_at <= now.mono {
            self.presence_at = now.mono + ms(self.config.limits.presence_ms);
            self.holders_tick(now);
            self.presence_tick(now);
            self.use_all_room();
        }
    }

    /// When [`Owner::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Mono> {
        let periodic = self.flush.at.min(self.upkeep.at).min(self.presence_at);
        self.retry_at
            .into_iter()
            .chain(self.copies_due())
            .chain([periodic])
            .min()
    }

    /// What is to be done, grouped by lane.
    pub fn poll_output(&mut self) -> Option<OwnerOutput> {
        if let Some(output) = self.out.pop_front() {
            return Some(output);
        }
        for lane in self.lanes.values_mut() {
            let (to, number) = (lane.edge.clone(), lane.number);
            let body = if !lane.answers.is_empty() {
                ToEdge::Answers(take_some(&mut lane.answers))
            } else if !lane.deliveries.is_empty() {
                self.stats.delivery.messages += 1;
                ToEdge::Deliver(take_deliveries(&mut lane.deliveries))
            } else if !lane.presence.is_empty() {
                ToEdge::Presence(take_presence(&mut lane.presence))
            } else {
                continue;
            };
            return Some(OwnerOutput::ToEdge {
                to,
                lane: number,
                body,
            });
        }
        None
    }

    fn open_lane(&mut self, edge: &Addr, number: u64, generation: Generation, now: Now) {
        if let Some(id) = self.lane_of.get(edge).copied() {
            if self.lanes[&id].number >= number {
                return;
            }
            self.close_lane(id);
        }
        self.broken.remove(edge);
        let guest = edge.node.region != self.config.me.node.region;
        if guest && self.guests.insert(edge.node.clone(), generation) != Some(generation) {
            self.note_edges(now);
        }
        let id = LaneId(self.next_lane);
        self.next_lane += 1;
        let lane = Lane {
            edge: edge.clone(),
            number,
            generation,
            answers: Vec::new(),
            deliveries: Vec::new(),
            in_flight: 0,
            waiting: VecDeque::new(),
            presence: BTreeMap::new(),
            sessions: BTreeSet::new(),
            watches: BTreeSet::new(),
            synced: BTreeSet::new(),
        };
        self.lanes.insert(id, lane);
        self.lane_of.insert(edge.clone(), id);
    }

    /// Forgets a lane and its attachments; the sessions themselves end only if the edge does not attach them again.
    fn close_lane(&mut self, id: LaneId) -> Option<Lane> {
        let lane = self.lanes.remove(&id)?;
        self.lane_of.remove(&lane.edge);
        for (shard, session) in &lane.sessions {
            self.drop_attachment(*shard, *session);
        }
        for user in &lane.watches {
            let shard = self.config.sharding.of_user(user);
            if let Some(shard) = self.shards.get_mut(&shard)
                && let Some(watchers) = shard.watchers.get_mut(user)
            {
                watchers.remove(&id);
                if watchers.is_empty() {
                    shard.watchers.remove(user);
                }
            }
        }
        Some(lane)
    }

    fn upkeep(&mut self, part: u32, now: Now) {
        self.forget(part, now);
        self.sweep(part, now);
        let mut again = Vec::new();
        let due = self.shards.iter_mut().filter(|(id, _)| parts::of(**id) == part);
        for (id, shard) in due {
            if let Some(output) = shard.recovery.overdue(*id, shard.epoch) {
                self.out.push_back(output);
            }
            let Some(epoch) = shard.epoch else { continue };
            // Who commits learns it from that; who does not would keep sessions that are given nothing any more.
            if self.shared {
                self.out
                    .push_back(OwnerOutput::Read(Question::Verify(*id, epoch)));
            }
            // What recovers says nothing of its own (R4).
            if shard.recovery.on && !shard.look.told {
                continue;
            }
            if !std::mem::take(&mut shard.dirty) && !shard.holders.looks_due(now.mono) {
                if shard.look.waits() {
                    again.push(*id);
                }
                continue;
            }
            let (first, me) = (&self.config.holders, &self.config.me.node.region);
            let limits = (self.config.limits.absent_ms, self.clocks.agree);
            if !shard.recovery.on {
                self.out
                    .extend(shard.mark_op(*id, epoch, (first, me), limits, now));
            }
            let holders = shard.holders.counting(first).len();
            let retire = shard.retire_op(*id, epoch, holders);
            // A region that is removed confirms all the same: the others wait for that.
            let confirms = !shard.recovery.on;
            let shard = *id;
            // Trimmed is what earlier confirmations made stable: nothing is logged and trimmed in one commit, and no entry is
            // looked at before it can go.
            self.out.push_back(OwnerOutput::Commit(
                StoreOp::Trim { shard, epoch },
                Tag::Upkeep(shard),
            ));
            self.out.extend(retire);
            if confirms {
                self.out.push_back(OwnerOutput::Commit(
                    StoreOp::Confirm { shard, epoch },
                    Tag::Upkeep(shard),
                ));
            }
        }
        for id in again {
            self.look_once_more(id);
        }
        if part == 0 {
            self.senders.forget_idle(now.mono);
        }
        #[cfg(any(test, feature = "defects"))]
        if part == 0 && defect::on(Defect::LeaseIsAWrite) {
            for (id, shard) in &mut self.shards {
                shard.presence.refresh();
                self.touched.insert(*id);
            }
        }
    }
}

/// At most what one message may hold, from the front.
fn take_some<T>(items: &mut Vec<T>) -> Vec<T> {
    if items.len() <= super::msg::MAX_ITEMS {
        return std::mem::take(items);
    }
    let rest = items.split_off(super::msg::MAX_ITEMS);
    std::mem::replace(items, rest)
}

/// As many events as fit one message whatever their texts, in order of user.
fn take_presence(events: &mut BTreeMap<UserId, PresenceEvent>) -> Vec<PresenceEvent> {
    let Some(next) = events.keys().nth(PRESENCE_MESSAGE_EVENTS).cloned() else {
        return std::mem::take(events).into_values().collect();
    };
    let rest = events.split_off(&next);
    std::mem::replace(events, rest).into_values().collect()
}

/// At most what one message may hold, in items and in bytes, from the front.
fn take_deliveries(items: &mut Vec<Delivery>) -> Vec<Delivery> {
    let mut bytes = 0;
    let fits = items.iter().take(super::msg::MAX_ITEMS).take_while(|delivery| {
        bytes += delivery.op.len();
        bytes <= DELIVERY_MESSAGE_BYTES
    });
    let count = fits.count().max(1);
    let rest = items.split_off(count.min(items.len()));
    std::mem::replace(items, rest)
}

/// How a refusal of a commit is told to a sender.
fn refusal_code(refusal: &commit::Refusal) -> (Code, u64) {
    match refusal {
        Refusal::Fenced { .. }
        | Refusal::Recovering
        | Refusal::NotRecovering
        | Refusal::Removed
        | Refusal::HoldersKnown { .. } => (Code::Unavailable, 0),
        Refusal::IdReused => (Code::IdReused, 0),
        Refusal::IdTooOld { server_ms } => (Code::IdTooOld, *server_ms),
        Refusal::IdInFuture { server_ms } => (Code::IdInFuture, *server_ms),
        Refusal::IdMalformed => (Code::IdMalformed, 0),
        Refusal::InboxFull { .. } => (Code::InboxFull, 0),
        Refusal::AlreadyJudged => (Code::OutOfOrder, 0),
        Refusal::TooManyDevices { .. } => (Code::TooManyDevices, 0),
    }
}
