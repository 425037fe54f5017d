//! The rows of a shard, and how a decision changes them.
//!
//! An engine loads the rows that [`commit`](super::commit) names into a [`State`]; `decide` turns operations into
//! [`Decision`]s and applies them here; what the engine makes durable is the decisions (or the rows they touched).
//! Replay applies decisions and never decides again.

mod decision;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::commit::{DAY_MS, ID_WINDOW_MS};
use super::defect::{self, Defect};
use super::expire::EXPIRY_MARGIN_MS;
use super::holders::Holding;
use super::ids::{Coord, Epoch, MessageId, Origin, RegionId, Seq, ShardId, Sharding, UserId};
use super::op::{self, Envelope, LogItem, LoggedOp, Op};
use super::retire::OldOrigins;
use super::time::Hlc;
use super::vector::Vector;

pub use decision::{Decision, Logged};

pub use super::series::{Next, Page, Pieces, Series, Weigh};
pub use super::user::{DeviceRow, UserRow};

/// Limits that a commit judges. Counts are per user unless they say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLimits {
    /// Messages that some device has not consumed.
    pub inbox_messages: u64,
    /// Bytes of those messages.
    pub inbox_bytes: u64,
    /// Devices of one user: each must consume before a message may go.
    pub devices: usize,
    /// A device that was not heard of for so long expires, milliseconds; 0: none does (R19).
    pub device_expiry_ms: u64,
    /// What goes by time goes so much later, milliseconds (R20).
    pub expiry_margin_ms: u64,
    /// Bytes of the region's logs that an absent holder pins at most (R12); each shard has its share of it, and takes no
    /// more messages at twice that.
    pub absent_log_bytes: u64,
    /// And for how long, milliseconds.
    pub absent_log_ms: u64,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            inbox_messages: 100_000,
            inbox_bytes: 256 * 1024 * 1024,
            devices: 32,
            device_expiry_ms: 30 * DAY_MS,
            expiry_margin_ms: EXPIRY_MARGIN_MS,
            // Some hours of a thousand messages a second; a disk has room for it, and a snapshot of a shard costs less by then.
            absent_log_bytes: 16 * 1024 * 1024 * 1024,
            absent_log_ms: 7 * DAY_MS,
        }
    }
}

/// Who this store is; fixed while it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The cluster.
    pub cluster: u128,
    /// The region.
    pub region: RegionId,
    /// The incarnation that new own operations are logged under (R1).
    pub origin: Origin,
    /// The regions that keep every shard (R13).
    pub holders: BTreeSet<RegionId>,
    /// How users are spread.
    pub sharding: Sharding,
    /// Limits.
    pub limits: StoreLimits,
    /// It was begun in a cluster that runs: its shards recover first (R4). As stored when it was created.
    pub joining: bool,
}

/// One origin's log of a shard as far as it is applied here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRow {
    /// The region that the origin belongs to.
    pub region: RegionId,
    /// Highest sequence applied (contiguous).
    pub seq: Seq,
    /// Running hash there.
    pub hash: u64,
    /// Everything to here was trimmed (R9).
    pub floor: Seq,
    /// Running hash at the floor.
    pub floor_hash: u64,
    /// What its `Start` named (R1).
    pub previous: Option<Coord>,
    /// Hybrid time of the last operation, or a later one.
    pub hlc: Hlc,
}

/// Whether a shard has what the other regions have (R4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Recovery {
    /// Nobody owned it yet: see [`StoreIdentity::joining`].
    #[default]
    Unset,
    /// It neither accepts nor attaches.
    Recovering,
    /// It is open.
    Open,
    /// It recovers, and for a snapshot that is not complete it trimmed logs beyond what is stable as far as it knows: of
    /// messages in them devices may not have consumed that it does not know (R11).
    Merging,
}

impl Recovery {
    /// Whether it neither accepts nor attaches.
    pub fn recovers(self) -> bool {
        matches!(self, Recovery::Recovering | Recovery::Merging)
    }
}

/// What a holder last logged about what it has (R8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRow {
    /// Applied and durable there.
    pub applied: Vector,
    /// Old origins it still needs (R23).
    pub needed: Vec<Origin>,
    /// Which operation said so; a later one of the same holder replaces it.
    pub at: (Hlc, Origin, Seq),
    /// What it named retired; `None` where its build knew nothing of that, nor of what it needs.
    #[serde(default)]
    pub retired: Option<Vec<Coord>>,
    /// What it listed and is retired here.
    #[serde(default)]
    pub stale: Vec<Origin>,
}

/// The head of a shard: a few hundred bytes, always at hand for its owner.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardRow {
    /// Fencing number of the owner.
    pub epoch: Epoch,
    /// The origin of the last own operation; 0 before the first.
    pub origin: Origin,
    /// Last hybrid time logged or observed (R7).
    pub hlc: Hlc,
    /// Each origin known here, own ones too.
    pub logs: BTreeMap<Origin, LogRow>,
    /// What each holder confirmed.
    pub confirmed: BTreeMap<RegionId, ConfirmRow>,
    /// Operations other than confirmations that were logged or applied since our last confirmation.
    pub news: u64,
    /// Confirmations of others that were applied since our last one.
    pub confirms: u32,
    /// Whether it has what the others have.
    pub recovery: Recovery,
    /// The origin under which it last began to recover, 0 where it never did: sessions of before have ended (R4).
    pub recovered_in: Origin,
    /// Dedup records of ids from before this UTC day were dropped, days counted from 1970 (R16).
    #[serde(default)]
    pub forgotten: u32,
    /// Old origins (R23).
    #[serde(default)]
    pub old: OldOrigins,
    /// Who keeps the shard, and who is away (R12, R13).
    #[serde(default, skip_serializing_if = "Holding::is_empty")]
    pub holding: Holding,
}

impl ShardRow {
    /// What is applied here, own operations included.
    pub fn applied(&self) -> Vector {
        self.logs.iter().map(|(origin, log)| (*origin, log.seq)).collect()
    }

    /// The highest sequence of `origin` that every holder logged as applied (R8), those that are marked, too (R12). `first` is
    /// the set of holders that the store was begun with.
    pub fn stable(&self, origin: Origin, first: &BTreeSet<RegionId>) -> Seq {
        let holders = self.holders(first);
        holders
            .iter()
            .map(|holder| self.said(holder).map_or(0, |row| row.applied.of(origin)))
            .min()
            .unwrap_or(0)
    }

    /// Whether R8 allows another confirmation of ours; `holders` is how many regions keep the shard.
    ///
    /// Each confirmation counts once at each of the other `holders - 1`. One that only answers confirmations uses up at least
    /// as many as there are holders, so of those in reach fewer come to be with each, and it ends.
    pub fn confirm_due(&self, holders: usize) -> bool {
        let enough = match defect::on(Defect::ConfirmOnConfirm) {
            true => 1,
            false => holders.max(CONFIRMS_BEFORE_CONFIRM),
        };
        self.news > 0 || self.old.changed || self.confirms as usize >= enough
    }

    /// No id of an earlier time than this less the window is accepted: its record may have been dropped here. Unix
    /// milliseconds, 0 where nothing was dropped yet (R16).
    pub fn forgotten_ms(&self) -> u64 {
        match self.forgotten {
            0 => 0,
            day => (u64::from(day) * DAY_MS).saturating_add(ID_WINDOW_MS),
        }
    }
}

/// After so many confirmations of others, or as many as there are holders if that is more, we confirm again, so that they
/// can be trimmed (R8).
pub const CONFIRMS_BEFORE_CONFIRM: usize = 8;

/// Names one message of one sender to one recipient; ordered by id first, so by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DedupKey {
    /// The message's id.
    pub id: MessageId,
    /// To whom.
    pub recipient: UserId,
    /// From whom.
    pub sender: UserId,
}

impl DedupKey {
    /// The key of a message.
    pub fn of(envelope: &Envelope) -> Self {
        Self {
            id: envelope.id,
            recipient: envelope.to.clone(),
            sender: envelope.from.clone(),
        }
    }

    /// The UTC day of the id's time, counted from 1970; ids without a time stand in day 0.
    pub fn day(&self) -> u32 {
        (self.id.unix_ms().unwrap_or(0) / DAY_MS) as u32
    }

    /// Not above any key of this day and of later ones, and above those of all days before.
    pub fn first_of(day: u32) -> Self {
        let mut id = [0; 16];
        id[..6].copy_from_slice(&(u64::from(day) * DAY_MS).to_be_bytes()[2..]);
        let blank = || UserId::new("\u{20}").expect("a blank is a valid id");
        Self {
            id: MessageId(id),
            recipient: blank(),
            sender: blank(),
        }
    }
}

/// The coordinates under which one id was accepted, with the digest of the body (R15, R16).
///
/// Nearly every row has exactly one entry, and there is a row for each message of seven days: the first is kept inline.
/// Stored as a list of digests and coordinates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "StoredBodies", into = "StoredBodies")]
pub struct DedupRow {
    /// The original, the one that was logged here first.
    first: Option<(u128, Coord)>,
    /// The others, in the order in which they were logged here.
    #[allow(
        clippy::box_collection,
        reason = "a word in each of millions of rows, nearly always empty"
    )]
    more: Option<Box<Vec<(u128, Coord)>>>,
}

impl DedupRow {
    /// The coordinates of the messages with this digest, the original first.
    pub fn coords(&self, digest: u128) -> impl Iterator<Item = Coord> + '_ {
        let same = self.bodies().filter(move |(body, _)| *body == digest);
        same.map(|(_, at)| at)
    }

    /// Adds a coordinate, unless it is known.
    pub fn insert(&mut self, digest: u128, at: Coord) {
        let new = (digest, at);
        if self.first.is_none() {
            self.first = Some(new);
        } else if !self.bodies().any(|known| known == new) {
            self.more.get_or_insert_default().push(new);
        }
    }

    /// All digests and coordinates, the original first.
    pub fn bodies(&self) -> impl Iterator<Item = (u128, Coord)> + '_ {
        let more = self.more.iter().flat_map(|more| more.iter().copied());
        self.first.into_iter().chain(more)
    }
}

impl From<Vec<(u128, Coord)>> for DedupRow {
    fn from(bodies: Vec<(u128, Coord)>) -> Self {
        let mut row = Self::default();
        for (digest, at) in bodies {
            row.insert(digest, at);
        }
        row
    }
}

/// How a [`DedupRow`] is stored.
#[derive(Serialize, Deserialize)]
struct StoredBodies {
    bodies: Vec<(u128, Coord)>,
}

impl From<StoredBodies> for DedupRow {
    fn from(stored: StoredBodies) -> Self {
        stored.bodies.into()
    }
}

impl From<DedupRow> for StoredBodies {
    fn from(row: DedupRow) -> Self {
        let bodies = row.bodies().collect();
        Self { bodies }
    }
}

/// What a user costs in memory without messages: the row, a device, and their maps, each of
/// which takes room for eleven.
pub const USER_WEIGHT: usize = 3 * 1024;
/// What a dedup record costs in memory: two ids, a coordinate, their places.
pub const DEDUP_WEIGHT: usize = 256;

/// A user of a shard.
#[derive(Debug, Clone, Default)]
pub struct UserState {
    /// The row.
    pub row: UserRow,
    /// The messages, by origin.
    pub inbox: BTreeMap<Origin, Series<LoggedOp>>,
    /// The round of the ledger in which a change was last noted.
    pub noted: u64,
    /// So many origins were retired when what the row names of them was last dropped.
    pub stripped: usize,
}

/// A shard as far as it is loaded.
#[derive(Debug, Clone, Default)]
pub struct ShardState {
    /// The head.
    pub row: ShardRow,
    /// The logs, by origin; `(running hash, operation)`.
    pub logs: BTreeMap<Origin, Series<(u64, LogItem)>>,
    /// The users. Boxed: few stand in each shard, and a map makes room for eleven.
    pub users: BTreeMap<UserId, Box<UserState>>,
    /// Ids that were accepted.
    pub dedup: BTreeMap<DedupKey, DedupRow>,
    /// The round of the ledger in which a change was last noted.
    pub noted: u64,
}

/// Rows of many shards.
#[derive(Debug, Clone)]
pub struct State {
    /// Who this store is.
    pub identity: StoreIdentity,
    /// The shards.
    pub shards: BTreeMap<ShardId, ShardState>,
    /// Users of whom a bounded step left entries to mark, where no outcome says so: the engine gives each a
    /// [`Remove`](super::commit::StoreOp::Remove) and takes them out.
    pub unfinished: BTreeSet<(ShardId, UserId)>,
    /// What applying decisions did to memory and which rows it touched.
    pub ledger: Ledger,
}

/// What an engine wants to know of applied decisions: kept here, where everything is decoded and found anyway.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// What the loaded users, dedup records and items of tails weigh, in bytes. A message that stands in the tails of
    /// both log and inbox counts twice.
    pub resident: usize,
    /// A number that an engine raises when it has taken note of the lists below. What was noted in a round is not
    /// listed again in it.
    pub round: u64,
    /// Shards that anything was applied to.
    pub shards: Vec<ShardId>,
    /// Users whose row or messages changed.
    pub users: Vec<(ShardId, UserId)>,
    /// Dedup records that were added or changed, maybe several times.
    pub dedup: Pieces<(ShardId, DedupKey)>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            resident: 0,
            // Rows begin with round 0: nothing noted yet.
            round: 1,
            shards: Vec::new(),
            users: Vec::new(),
            dedup: Pieces::default(),
        }
    }
}

impl Ledger {
    /// Something left memory; what an engine loaded without counting it does not matter.
    pub fn drop(&mut self, weight: usize) {
        self.resident = self.resident.saturating_sub(weight);
    }
}

/// Which rows a decision is applied to: a replay leaves out those that hold its effect already. Items of logs, inboxes
/// and dedup are added and dropped in any case: doing so twice is the same as once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The row of the shard.
    pub shard: bool,
    /// The row of the user.
    pub user: bool,
}

impl Parts {
    /// All of them.
    pub const ALL: Parts = Parts {
        shard: true,
        user: true,
    };
}

impl State {
    /// An empty state.
    pub fn new(identity: StoreIdentity) -> Self {
        Self {
            identity,
            shards: BTreeMap::new(),
            unfinished: BTreeSet::new(),
            ledger: Ledger::default(),
        }
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.shards.clear();
        self.ledger = Ledger::default();
    }

    /// Applies a decision to the rows. The rows that it touches must be loaded.
    pub fn apply(&mut self, decision: &Decision) {
        self.apply_parts(decision, Parts::ALL);
    }

    /// Applies [`Decision::Logged`] for an operation that is decoded already.
    pub fn apply_logged(&mut self, logged: &Logged, op: &Op) {
        let shard = shard_noted(&mut self.shards, &mut self.ledger, logged.shard);
        shard.row.apply_logged(logged, Some(op), &self.identity);
        shard.apply_logged(logged, Some(op), true, &mut self.ledger);
    }

    /// Applies a decision where some rows hold its effect already.
    pub fn apply_parts(&mut self, decision: &Decision, parts: Parts) {
        let identity = &self.identity;
        let ledger = &mut self.ledger;
        let id = decision.shard();
        let shard = shard_noted(&mut self.shards, ledger, id);
        match decision {
            Decision::Epoch { epoch, .. } => {
                if parts.shard {
                    shard.row.epoch = *epoch;
                }
            }
            Decision::Logged(logged) => {
                // Decisions were judged before they were recorded, so what they hold decodes.
                let op = logged.entry.op.decode().ok();
                if parts.shard {
                    shard.row.apply_logged(logged, op.as_ref(), identity);
                }
                shard.apply_logged(logged, op.as_ref(), parts.user, ledger);
            }
            Decision::Consumed {
                user,
                origin,
                to,
                messages,
                bytes,
                ..
            } => {
                let known = shard.user(id, user, ledger);
                if parts.user {
                    let row = &mut known.row;
                    row.consumed.raise(*origin, *to);
                    row.counted.raise(*origin, *to);
                    row.unread = row.unread.saturating_sub(*messages);
                    row.unread_bytes = row.unread_bytes.saturating_sub(*bytes);
                }
            }
            Decision::Removed { user, origin, to, .. } => {
                let known = shard.user(id, user, ledger);
                if parts.user {
                    known.row.pass_removed(*origin, *to);
                    known.row.trimmed.raise(*origin, *to);
                    let siblings = &mut known.row.siblings;
                    siblings.retain(|at, _| at.origin != *origin || at.seq > *to);
                    let gaps = &mut known.row.gaps;
                    gaps.retain(|(of, _), end| of != origin || *end > *to);
                    known.row.timed.removed(*origin, *to);
                }
                if let Some(series) = known.inbox.get_mut(origin) {
                    ledger.drop(series.drop_to(*to));
                }
            }
            Decision::Trimmed {
                origin,
                to,
                hash,
                bytes,
                ..
            } => {
                if parts.shard {
                    let holding = &mut shard.row.holding;
                    holding.log_bytes = holding.log_bytes.saturating_sub(*bytes);
                }
                if parts.shard
                    && let Some(log) = shard.row.logs.get_mut(origin)
                {
                    log.floor = *to;
                    log.floor_hash = *hash;
                }
                if let Some(series) = shard.logs.get_mut(origin) {
                    ledger.drop(series.drop_to(*to));
                }
            }
            Decision::DedupDropped { day, .. } => {
                if parts.shard && !defect::on(Defect::DedupDroppedEarly) {
                    shard.row.forgotten = shard.row.forgotten.max(day.saturating_add(1));
                }
                let kept = shard.dedup.split_off(&DedupKey::first_of(day.saturating_add(1)));
                let dropped = std::mem::replace(&mut shard.dedup, kept);
                ledger.drop(dropped.len() * DEDUP_WEIGHT);
            }
            Decision::Recovery { began, .. } => {
                if parts.shard {
                    shard.row.apply_recovery(*began);
                }
            }
            Decision::DedupMerged { key, bodies, .. } => {
                for (digest, at) in bodies {
                    shard.dedup(id, key.clone(), ledger).insert(*digest, *at);
                }
            }
            Decision::UserMerged { user, merged, .. } => {
                let known = shard.user(id, user, ledger);
                if parts.user {
                    known.row.apply_merge(merged);
                }
            }
            Decision::Merged {
                user,
                at,
                op,
                siblings,
                ..
            } => {
                let known = shard.user(id, user, ledger);
                if parts.user {
                    let op = (op.len(), op.expires_ms());
                    known.row.apply_append(*at, op, siblings, false);
                }
                if !known.row.trimmed.covers(*at) {
                    let inbox = known.inbox.entry(at.origin).or_default();
                    ledger.resident += inbox.push(at.seq, op.clone());
                }
                if let Ok(Op::Append(envelope, body)) = op.decode() {
                    let digest = op::digest(envelope.kind, &body);
                    shard
                        .dedup(id, DedupKey::of(&envelope), ledger)
                        .insert(digest, *at);
                }
            }
            Decision::Merging { .. } => {
                if parts.shard {
                    shard.row.recovery = Recovery::Merging;
                }
            }
            Decision::Expired { user, hole, .. } => {
                let known = shard.user(id, user, ledger);
                ledger.drop(known.apply_expired(hole, parts.user));
            }
            Decision::Expires { user, from_ms, .. } => {
                let known = shard.user(id, user, ledger);
                if parts.user {
                    known.row.timed.from_ms = *from_ms;
                    known.row.timed.new_ms = 0;
                }
            }
            Decision::DeviceExpired {
                user, device, epoch, ..
            } => {
                let known = shard.user(id, user, ledger);
                if parts.user {
                    known.row.apply_expiry(device, *epoch);
                }
            }
            Decision::Jumped { cut, hlc, .. } => {
                if parts.shard {
                    shard.row.apply_jump(cut, *hlc);
                }
            }
            Decision::Marked { region, at, .. } => {
                if parts.shard {
                    shard.row.apply_marked(region, *at);
                }
            }
            Decision::Behind { began, .. } => {
                if parts.shard {
                    shard.row.apply_recovery(Some(*began));
                    shard.row.holding.whole = true;
                }
            }
            Decision::Needed { origin, needed, .. } => {
                if parts.shard {
                    shard.row.apply_needed(*origin, *needed);
                }
            }
            Decision::Retired { origin, seq, .. } => {
                if parts.shard {
                    shard.row.apply_retired(*origin, *seq);
                }
                if let Some(mut log) = shard.logs.remove(origin) {
                    ledger.drop(log.drop_to(Seq::MAX));
                }
            }
        }
    }
}

/// A shard, listed as changed.
fn shard_noted<'a>(
    shards: &'a mut BTreeMap<ShardId, ShardState>,
    ledger: &mut Ledger,
    id: ShardId,
) -> &'a mut ShardState {
    let shard = shards.entry(id).or_default();
    if shard.noted != ledger.round {
        shard.noted = ledger.round;
        ledger.shards.push(id);
    }
    shard
}

impl ShardRow {
    fn apply_logged(&mut self, logged: &Logged, op: Option<&Op>, identity: &StoreIdentity) {
        let me = &identity.region;
        let Logged {
            origin,
            region,
            own,
            entry,
            hlc,
            ..
        } = logged;
        if *own {
            self.origin = *origin;
        }
        let log = self.logs.entry(*origin).or_insert_with(|| LogRow {
            region: region.clone(),
            seq: 0,
            hash: 0,
            floor: 0,
            floor_hash: 0,
            previous: None,
            hlc: Hlc::default(),
        });
        log.seq = entry.seq;
        log.hash = entry.hash;
        log.hlc = log.hlc.max(entry.op.hlc());
        if entry.op.kind() == op::kind::START
            && let Ok(Op::Start { previous, .. }) = entry.op.decode()
        {
            log.previous = previous;
        }
        self.hlc = *hlc;
        if entry.op.kind() != op::kind::CONFIRM {
            self.news += 1;
            self.holding.log_bytes += entry.op.len() as u64;
            if let Some(Op::Holders(change)) = op {
                self.apply_holders(change, logged.coord(), identity);
            }
            return;
        }
        if region != me {
            self.confirms = self.confirms.saturating_add(1);
        }
        if let Some(Op::Confirm {
            holder,
            applied,
            needed,
            retired,
        }) = op
        {
            let at = (entry.op.hlc(), *origin, entry.seq);
            // One of before, that comes back from the others, does not tell of what was applied since.
            if holder == me && *own {
                self.news = 0;
                self.confirms = 0;
                self.old.changed = false;
            }
            let known = self.confirmed.get(holder);
            if known.is_none_or(|known| known.at < at) {
                let mut said = ConfirmRow {
                    applied: applied.clone(),
                    needed: needed.clone(),
                    at,
                    retired: retired.clone(),
                    stale: Vec::new(),
                };
                said.strip(&self.old.retired);
                // It is told once more.
                self.old.changed |= !said.stale.is_empty() && holder != me;
                self.confirmed.insert(holder.clone(), said);
                self.settle_holders();
            }
        }
    }
}

impl ShardState {
    /// Whether a dedup record of a UTC day is loaded.
    pub fn has_dedup_of(&self, day: u32) -> bool {
        let first = self.dedup.range(DedupKey::first_of(day)..).next();
        first.is_some_and(|(key, _)| key.day() == day)
    }

    /// A dedup record, made where it is not known yet.
    fn dedup(&mut self, id: ShardId, key: DedupKey, ledger: &mut Ledger) -> &mut DedupRow {
        ledger.dedup.push((id, key.clone()));
        match self.dedup.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                ledger.resident += DEDUP_WEIGHT;
                vacant.insert(DedupRow::default())
            }
        }
    }

    /// A user, made where it is not known yet.
    fn user(&mut self, id: ShardId, user: &UserId, ledger: &mut Ledger) -> &mut UserState {
        let known = match self.users.entry(user.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                ledger.resident += USER_WEIGHT;
                vacant.insert(Box::default())
            }
        };
        if known.noted != ledger.round {
            known.noted = ledger.round;
            ledger.users.push((id, user.clone()));
        }
        known
    }

    /// All but the shard's row.
    fn apply_logged(&mut self, logged: &Logged, op: Option<&Op>, row: bool, ledger: &mut Ledger) {
        let Logged {
            shard: id,
            origin,
            entry,
            siblings,
            ..
        } = logged;
        let at = logged.coord();
        let floor = self.row.logs.get(origin).map_or(0, |log| log.floor);
        if at.seq > floor {
            let log = self.logs.entry(*origin).or_default();
            ledger.resident += log.push(at.seq, (entry.hash, LogItem::Op(entry.op.clone())));
        }
        match op {
            Some(Op::Start { .. } | Op::Confirm { .. } | Op::Holders(_)) | None => {}
            Some(Op::Append(envelope, body)) => {
                let user = self.user(*id, &envelope.to, ledger);
                let dropped = !siblings.is_empty() && defect::on(Defect::FirstCopyOnly);
                if row && !dropped {
                    let op = (entry.op.len(), envelope.expires_ms);
                    user.row.apply_append(at, op, siblings, logged.merged);
                }
                if !logged.merged && !user.row.trimmed.covers(at) && !dropped {
                    let inbox = user.inbox.entry(*origin).or_default();
                    ledger.resident += inbox.push(at.seq, entry.op.clone());
                }
                let digest = op::digest(envelope.kind, body);
                self.dedup(*id, DedupKey::of(envelope), ledger).insert(digest, at);
            }
            Some(Op::Cursor { user, device, cursor }) => {
                let cursor = self.row.known(cursor);
                let user = self.user(*id, user, ledger);
                if row {
                    let device = user.row.device(device);
                    device.cursor.merge(&cursor);
                    device.life.seen(entry.op.hlc().ms);
                }
            }
            Some(Op::Device { user, device, change }) => {
                let change = self.row.known_change(change);
                let user = self.user(*id, user, ledger);
                if row {
                    user.row.apply_change(device, &change, at, entry.op.hlc().ms);
                }
            }
        }
    }
}
