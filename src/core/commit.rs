//! What a commit means: one pure function from rows and operations to outcomes and decisions.
//!
//! An engine that has a batch of operations calls [`needs`], loads those rows, calls [`needs_more`], loads those, then
//! [`decide`]s each operation in order; the decisions are applied to the rows as they are made, so that later operations
//! of the batch see earlier ones. What is made durable is the decisions.
//!
//! The order inside an [`StoreOp::Append`] is fence, dedup, window of the id, limits, sequence; a refusal leaves no trace
//! (R16). Sequences, hybrid times and running hashes are given here (R2, R7). A new origin's log begins with `Start`
//! (R1). Entries are removed only when stable and consumed by every device (R10), logs only when stable (R9).

mod needs;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::defect::{self, Defect};
use super::expire::{self, Looked};
use super::holders::HoldersChange;
use super::ids::{Coord, DeviceId, Epoch, Origin, RegionId, Seq, ShardId, UserId};
use super::op::{self, DeviceChange, Envelope, LogEntry, LoggedOp, Op, OpError};
use super::retire::{self, Retirement};
use super::snapshot::{Cut, SnapshotPage};
use super::state::{Decision, DedupKey, DeviceRow, Logged, Recovery, ShardState, State};
use super::vector::Vector;

pub use needs::{Need, needs, needs_more};

/// An id whose time is older than this is refused: its dedup record may be gone (R16).
pub const ID_WINDOW_MS: u64 = 7 * DAY_MS;
/// An id whose time lies further ahead than this is refused.
pub const ID_FUTURE_MS: u64 = 60 * 60 * 1000;
/// Deletion by time keeps at least this margin beside the window (R20).
pub const TIME_MARGIN_MS: u64 = DAY_MS;
/// Log entries that one [`StoreOp::Trim`] trims at most for each origin: bounds what a commit reads.
pub const TRIM_STEP: usize = 1024;
/// Of the entries that a batch trims, those at most that are not in memory: each costs a store a few microseconds to read and
/// to take out, and whoever comes meanwhile waits for it. The rest goes with the next batch.
pub const TRIM_READS: u64 = 256;
/// Log entries that are looked at for the first that is not a confirmation and that a holder lacks. Whatever confirmations
/// are about is waited for, too, so that few come before it in some log.
pub const HOLDER_LOOK: usize = 64;
/// Inbox entries that one operation marks as consumed at most.
pub const CONSUME_STEP: usize = 1024;
pub(crate) const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// An operation that a shard's owner hands to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOp {
    /// Take the shard over: a higher epoch fences the owner before (R2).
    Bump {
        /// The shard.
        shard: ShardId,
    },
    /// Accept a message.
    Append {
        /// The shard of the recipient.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// About the message.
        envelope: Box<Envelope>,
        /// Its body.
        body: Bytes,
        /// The latest clock of another region that counts, unix milliseconds: a clock of ours that was set back must not
        /// accept an id that others forgot (R16). See [`Links::clocks`](super::link::Links::clocks).
        seen_ms: u64,
        /// It was judged before: answer only if it is a duplicate (R21).
        known_only: bool,
    },
    /// A device consumed; clamped to what is applied here (R14, R17).
    Cursor {
        /// The shard of the user.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Whose device.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// What it consumed.
        cursor: Vector,
    },
    /// Register a device with the cursor that it brings; nothing is logged where nothing changes (R17).
    Register {
        /// The shard of the user.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Whose device.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// What it says it consumed; what is logged is at most what is applied here.
        claim: Vector,
    },
    /// Log what is applied here, where R8 allows it.
    Confirm {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
    },
    /// Apply a run of another origin's log (R6).
    ApplyRemote {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
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
        /// Of the devices that expire in them, those that are attached here (R19).
        attached: Vec<(UserId, DeviceId)>,
    },
    /// Trim logs, and remove what became removable, in bounded steps.
    Trim {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
    },
    /// Mark and remove what every device of a user consumed, in bounded steps.
    Remove {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The user.
        user: UserId,
    },
    /// Drop the dedup records of the UTC days to this one, as far as they lie outside the window and all of them is stable
    /// (R16).
    DropDedup {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The last day, counted from 1970.
        day: u32,
    },
    /// Recover (R4), or be open.
    Recover {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Whether it lacks something; `false` opens it.
        recovering: bool,
    },
    /// Mark holders that are away beyond the limits, and take marks from those that are back (R12).
    Mark {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Holders that have confirmed nothing for long although there was something to confirm.
        absent: Vec<RegionId>,
        /// Whether the other regions' clocks agree with ours, so that the limit in time may count (R20).
        by_time: bool,
    },
    /// Recover for a snapshot after having been away (R12).
    Behind {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
    },
    /// Change who keeps the shard (R13).
    Holders {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// To what.
        change: HoldersChange,
    },
    /// Note which old origins nobody needs here, and retire those that may be (R23). Where the shard recovers only what others
    /// said.
    Retire {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Looked for in all users' rows, and not found.
        unneeded: Vec<Origin>,
    },
    /// Let go of what waits of origins that are retired elsewhere (R23), in bounded steps.
    Forgo {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The user.
        user: UserId,
        /// The origins.
        origins: BTreeSet<Origin>,
    },
    /// Merge a page of a snapshot; the last one lets `applied` jump (R11). Only while the shard recovers.
    Merge {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// What the snapshot goes to.
        cut: Arc<Cut>,
        /// The page.
        page: Arc<SnapshotPage>,
    },
    /// Replace what is due of a user's messages by holes, in bounded steps; only what the log does not need (R18).
    Expire {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// The user.
        user: UserId,
        /// Where the step before ended; `None` begins.
        looked: Option<Looked>,
    },
    /// Log that a device expires that was not heard of for long, or let that take effect where it was left over (R19).
    ExpireDevice {
        /// The shard.
        shard: ShardId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Whose device.
        user: UserId,
        /// The device.
        device: DeviceId,
    },
}

impl StoreOp {
    /// The shard it is for.
    pub fn shard(&self) -> ShardId {
        match self {
            StoreOp::Bump { shard }
            | StoreOp::Append { shard, .. }
            | StoreOp::Cursor { shard, .. }
            | StoreOp::Register { shard, .. }
            | StoreOp::Confirm { shard, .. }
            | StoreOp::ApplyRemote { shard, .. }
            | StoreOp::Trim { shard, .. }
            | StoreOp::Remove { shard, .. }
            | StoreOp::DropDedup { shard, .. }
            | StoreOp::Recover { shard, .. }
            | StoreOp::Mark { shard, .. }
            | StoreOp::Behind { shard, .. }
            | StoreOp::Holders { shard, .. }
            | StoreOp::Retire { shard, .. }
            | StoreOp::Forgo { shard, .. }
            | StoreOp::Merge { shard, .. }
            | StoreOp::Expire { shard, .. }
            | StoreOp::ExpireDevice { shard, .. } => *shard,
        }
    }

    /// The epoch of the owner who asks; `None` where it takes the shard over.
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            StoreOp::Bump { .. } => None,
            StoreOp::Append { epoch, .. }
            | StoreOp::Cursor { epoch, .. }
            | StoreOp::Register { epoch, .. }
            | StoreOp::Confirm { epoch, .. }
            | StoreOp::ApplyRemote { epoch, .. }
            | StoreOp::Trim { epoch, .. }
            | StoreOp::Remove { epoch, .. }
            | StoreOp::DropDedup { epoch, .. }
            | StoreOp::Recover { epoch, .. }
            | StoreOp::Mark { epoch, .. }
            | StoreOp::Behind { epoch, .. }
            | StoreOp::Holders { epoch, .. }
            | StoreOp::Retire { epoch, .. }
            | StoreOp::Forgo { epoch, .. }
            | StoreOp::Merge { epoch, .. }
            | StoreOp::Expire { epoch, .. }
            | StoreOp::ExpireDevice { epoch, .. } => Some(*epoch),
        }
    }

    /// Whether it logs something of our own, which a shard that recovers must not (R4).
    pub(super) fn is_own(&self) -> bool {
        matches!(
            self,
            StoreOp::Append { .. }
                | StoreOp::Cursor { .. }
                | StoreOp::Register { .. }
                | StoreOp::Holders { .. }
                | StoreOp::Confirm { .. }
                | StoreOp::ExpireDevice { .. }
        )
    }
}

/// What became of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The shard is ours under this epoch.
    Bumped {
        /// The new epoch.
        epoch: Epoch,
    },
    /// Accepted at these coordinates.
    Appended(Coord),
    /// Accepted before, at these coordinates (the first is what is answered).
    Duplicate(Vec<Coord>),
    /// Done; `more` says that a bounded step left work for another one.
    Done {
        /// Whether to call again.
        more: bool,
    },
    /// Applied through this sequence; `stopped` says why not further.
    Applied {
        /// The highest sequence applied of that origin.
        through: Seq,
        /// Why the rest was not applied.
        stopped: Option<Stop>,
    },
    /// What was retired, and what is to be looked for.
    Retired(Retirement),
    /// Looked through an inbox for what is due.
    Expired {
        /// Where to go on, where a bounded step left some.
        next: Option<Looked>,
    },
    /// Who is marked now, and whether the log is too long all the same.
    Marked {
        /// Holders that do not hold logs back.
        marked: BTreeSet<RegionId>,
        /// The shard is to take no more messages for now.
        full: bool,
    },
    /// Refused without a trace.
    Refused(Refusal),
}

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another owner took the shard over.
    #[error("the shard is owned under epoch {current}")]
    Fenced {
        /// The epoch in force.
        current: Epoch,
    },
    /// The same sender used this id for another body.
    #[error("this message id was used for another message")]
    IdReused,
    /// The id's time is older than the dedup window.
    #[error("the time in this message id is too old; the server's time is {server_ms}")]
    IdTooOld {
        /// Unix milliseconds here.
        server_ms: u64,
    },
    /// The id's time lies ahead.
    #[error("the time in this message id lies in the future; the server's time is {server_ms}")]
    IdInFuture {
        /// Unix milliseconds here.
        server_ms: u64,
    },
    /// Neither UUIDv7 nor UUIDv8.
    #[error("the message id is not a UUIDv7")]
    IdMalformed,
    /// The recipient's inbox is full.
    #[error("the inbox of the recipient is full: {messages} messages, {bytes} bytes not consumed")]
    InboxFull {
        /// Messages not consumed.
        messages: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// It was judged before and refused: it stays so (R21).
    #[error("this message was refused before; send it again under a new session sequence")]
    AlreadyJudged,
    /// The shard lacks what other regions have (R4).
    #[error("the shard is recovering: it takes nothing before it has what the other regions have")]
    Recovering,
    /// This region does not keep the shard any more (R13).
    #[error("this region was removed from the cluster")]
    Removed,
    /// The holders are those of a later change (R13).
    #[error("the holders are at version {version} already")]
    HoldersKnown {
        /// That of the change in force.
        version: u64,
    },
    /// A snapshot merges only into a shard that recovers.
    #[error("the shard is not recovering")]
    NotRecovering,
    /// The user has as many devices as allowed.
    #[error("the user has {limit} devices already")]
    TooManyDevices {
        /// The limit.
        limit: u64,
    },
}

/// Why a run of operations was not applied to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Operations in between are missing: a snapshot is needed if the provider cannot give them.
    #[error("gap: applied through {have}, the run begins at {first}")]
    Gap {
        /// Applied here.
        have: Seq,
        /// First of the run.
        first: Seq,
    },
    /// Other bytes than ours stand before the run: the logs have diverged (R3).
    #[error("diverged after {at}: running hash {ours:016x} here, {theirs:016x} there")]
    Diverged {
        /// Sequence at which the hashes were compared.
        at: Seq,
        /// Ours.
        ours: u64,
        /// Theirs.
        theirs: u64,
    },
    /// The origin before this one must be applied further first (R1).
    #[error("starts after {0}, which is not applied yet")]
    StartsAfter(Coord),
    /// A log must begin with a start of the region that it is said to belong to.
    #[error("operation {0} is not what its log may hold there")]
    OutOfPlace(Seq),
    /// An operation that this build does not understand: it needs an upgrade.
    #[error("operation {at}: {error}")]
    Unreadable {
        /// Its sequence.
        at: Seq,
        /// Why.
        error: OpError,
    },
}

/// Decides one operation, applies its decisions to the state and adds them to `decisions`.
///
/// `now_ms` is our wall clock, which the hybrid clock follows.
pub fn decide(state: &mut State, op: &StoreOp, now_ms: u64, decisions: &mut Vec<Decision>) -> Outcome {
    state.shards.entry(op.shard()).or_default();
    let mut work = Work {
        state,
        shard: op.shard(),
        now_ms,
        decisions,
    };
    if let Some(epoch) = op.epoch() {
        let current = work.row().row.epoch;
        if epoch != current && !defect::on(Defect::NoFencing) {
            return Outcome::Refused(Refusal::Fenced { current });
        }
    }
    if op.is_own() && work.row().row.recovery.recovers() {
        return Outcome::Refused(Refusal::Recovering);
    }
    if work.is_out(op) {
        return Outcome::Refused(Refusal::Removed);
    }
    if let StoreOp::Append { envelope, .. } = op {
        work.strip_user(&envelope.to);
    }
    if let StoreOp::Cursor { user, .. }
    | StoreOp::Register { user, .. }
    | StoreOp::Forgo { user, .. }
    | StoreOp::Remove { user, .. }
    | StoreOp::Expire { user, .. }
    | StoreOp::ExpireDevice { user, .. } = op
    {
        work.strip_user(user);
    }
    match op {
        StoreOp::Bump { shard } => {
            let epoch = Epoch(work.row().row.epoch.0 + 1);
            work.record(Decision::Epoch { shard: *shard, epoch });
            if work.row().row.recovery == Recovery::Unset && work.state.identity.joining {
                work.recover(true);
            }
            Outcome::Bumped { epoch }
        }
        StoreOp::Append {
            envelope,
            body,
            seen_ms,
            known_only,
            ..
        } => work.append(envelope, body, *seen_ms, *known_only),
        StoreOp::Cursor {
            user, device, cursor, ..
        } => work.cursor(user, device, cursor),
        StoreOp::Register {
            user, device, claim, ..
        } => work.register(user, device, claim),
        StoreOp::Confirm { .. } => work.confirm(),
        StoreOp::ApplyRemote {
            origin,
            region,
            first,
            before,
            ops,
            attached,
            ..
        } => work.apply_remote(*origin, region, *first, *before, (ops, attached)),
        StoreOp::Trim { .. } => work.trim(),
        StoreOp::Remove { user, .. } => {
            let consumed = work.consume(user);
            work.remove_below(user, &consumed.first, None);
            Outcome::Done { more: consumed.more }
        }
        StoreOp::DropDedup { day, .. } => work.drop_dedup(*day),
        // What others have retired is let go of before it is open.
        StoreOp::Recover {
            recovering: false, ..
        } if !work.row().row.old.told.is_empty() => Outcome::Done { more: true },
        StoreOp::Recover { recovering, .. } => {
            work.recover(*recovering);
            Outcome::Done { more: false }
        }
        StoreOp::Mark { absent, by_time, .. } => work.mark(absent, *by_time),
        StoreOp::Behind { .. } => {
            work.behind();
            Outcome::Done { more: false }
        }
        StoreOp::Holders { change, .. } => work.change_holders(change),
        StoreOp::Retire { unneeded, .. } => work.retire(unneeded),
        StoreOp::Forgo { user, origins, .. } => work.forgo(user, origins),
        StoreOp::Merge { cut, page, .. } => work.merge(cut, page),
        StoreOp::Expire { user, looked, .. } => work.expire(user, *looked),
        StoreOp::ExpireDevice { user, device, .. } => work.expire_device(user, device),
    }
}

/// Decides operations of one shard.
pub(super) struct Work<'a> {
    pub(super) state: &'a mut State,
    pub(super) shard: ShardId,
    pub(super) now_ms: u64,
    decisions: &'a mut Vec<Decision>,
}

impl Work<'_> {
    pub(super) fn row(&self) -> &ShardState {
        &self.state.shards[&self.shard]
    }

    fn recover(&mut self, recovering: bool) {
        let row = &self.row().row;
        if row.recovery.recovers() == recovering && !row.holding.whole {
            return;
        }
        let began = recovering.then_some(self.state.identity.origin);
        let shard = self.shard;
        self.record(Decision::Recovery { shard, began });
    }

    /// As [`Work::recover`], where nothing is lost.
    fn behind(&mut self) {
        if !self.row().row.recovery.recovers() {
            let (shard, began) = (self.shard, self.state.identity.origin);
            self.record(Decision::Behind { shard, began });
        }
    }

    pub(super) fn record(&mut self, decision: Decision) {
        self.state.apply(&decision);
        self.decisions.push(decision);
    }

    /// Records an operation of which `op` is the meaning.
    fn record_logged(&mut self, logged: Logged, op: &Op) {
        self.state.apply_logged(&logged, op);
        self.decisions.push(Decision::Logged(logged));
    }

    fn append(&mut self, envelope: &Envelope, body: &Bytes, seen_ms: u64, known_only: bool) -> Outcome {
        let shard = self.row();
        let digest = op::digest(envelope.kind, body);
        if let Some(known) = shard.dedup.get(&DedupKey::of(envelope)) {
            let coords: Vec<Coord> = known.coords(digest).collect();
            return if coords.is_empty() {
                Outcome::Refused(Refusal::IdReused)
            } else {
                Outcome::Duplicate(coords)
            };
        }
        if known_only {
            return Outcome::Refused(Refusal::AlreadyJudged);
        }
        // What was forgotten here was out of the window once: it stays so, whatever the clocks say by now.
        let server_ms = self
            .now_ms
            .max(shard.row.hlc.ms)
            .max(seen_ms)
            .max(shard.row.forgotten_ms());
        let refusal = match envelope.id.unix_ms() {
            None => Some(Refusal::IdMalformed),
            Some(ms) if ms.saturating_add(ID_WINDOW_MS) < server_ms => Some(Refusal::IdTooOld { server_ms }),
            Some(ms) if ms > server_ms.saturating_add(ID_FUTURE_MS) => {
                Some(Refusal::IdInFuture { server_ms })
            }
            Some(_) => self.over_limits(&envelope.to),
        };
        if let Some(refusal) = refusal {
            return Outcome::Refused(refusal);
        }
        Outcome::Appended(self.log(&Op::Append(envelope.clone(), body.clone())))
    }

    fn over_limits(&self, user: &UserId) -> Option<Refusal> {
        let limits = &self.state.identity.limits;
        let row = &self.row().users.get(user)?.row;
        (row.unread >= limits.inbox_messages || row.unread_bytes >= limits.inbox_bytes).then_some(
            Refusal::InboxFull {
                messages: row.unread,
                bytes: row.unread_bytes,
            },
        )
    }

    fn cursor(&mut self, user: &UserId, device: &DeviceId, cursor: &Vector) -> Outcome {
        let shard = self.row();
        let cursor = shard.row.clamp(cursor);
        let known = shard
            .users
            .get(user)
            .and_then(|user| user.row.devices.get(device));
        if known.is_none_or(|row| !row.cursor.includes(&cursor)) {
            self.log(&Op::Cursor {
                user: user.clone(),
                device: device.clone(),
                cursor,
            });
        }
        let consumed = self.consume(user);
        self.remove(user, &consumed.first);
        Outcome::Done { more: consumed.more }
    }

    fn register(&mut self, user: &UserId, device: &DeviceId, claim: &Vector) -> Outcome {
        let shard = self.row();
        let mut cursor = shard.row.clamp(claim);
        let row = shard.users.get(user).map(|user| &user.row);
        let devices = row.map(|row| &row.devices);
        let known = devices.and_then(|devices| devices.get(device));
        match known {
            None if defect::on(Defect::DeviceStartsAtApplied) => cursor = shard.row.applied(),
            // Whoever let go of it did not wait for this device, whatever that consumed elsewhere: in a region that was removed
            // by force, say. Unless it was told already.
            None if row.is_some_and(|row| row.past) => {
                cursor.raise(retire::RETIRED, retire::CAME_LATER);
            }
            // While it was expired, what it had not consumed may have gone with retired origins.
            Some(known) if known.expired && row.is_some_and(|row| row.past) => {
                cursor.raise(retire::RETIRED, retire::CAME_LATER);
            }
            Some(known) if known.cursor.of(retire::RETIRED) == 0 => cursor.remove(retire::RETIRED),
            _ => {}
        }
        let limits = &self.state.identity.limits;
        // One that is to expire does not, if it comes under another epoch (R19).
        let expires = known.is_some_and(|row| row.expired || row.life.expiry.is_some());
        let fresh = |row: &&DeviceRow| {
            row.cursor.includes(&cursor)
                && !expire::is_stale(row.life.seen_ms, limits.device_expiry_ms, self.now_ms)
        };
        if known.filter(|_| !expires).is_some_and(|row| fresh(&row)) {
            return Outcome::Done { more: false };
        }
        let live = devices.map_or(0, |devices| devices.values().filter(|row| !row.expired).count());
        let limit = limits.devices;
        if known.is_none_or(|row| row.expired) && live >= limit {
            return Outcome::Refused(Refusal::TooManyDevices { limit: limit as u64 });
        }
        let epoch = known.map_or(1, |row| row.epoch.max(1) + u32::from(expires));
        let change = DeviceChange::Register { epoch, cursor };
        self.log(&Op::Device {
            user: user.clone(),
            device: device.clone(),
            change,
        });
        let consumed = self.consume(user);
        self.remove(user, &consumed.first);
        self.look_for_needs(user);
        Outcome::Done { more: consumed.more }
    }

    fn confirm(&mut self) -> Outcome {
        let holders = self.row().row.holders(&self.state.identity.holders).len();
        let (row, me) = (&self.row().row, &self.state.identity.region);
        if row.confirm_due(holders) || row.owes_word(me) {
            self.start_if_new();
            let op = Op::Confirm {
                holder: self.state.identity.region.clone(),
                applied: self.row().row.applied(),
                needed: self.row().row.needed(),
                retired: Some(self.row().row.named_retired()),
            };
            self.log(&op);
        }
        Outcome::Done { more: false }
    }

    fn apply_remote(
        &mut self,
        origin: Origin,
        region: &RegionId,
        first: Seq,
        before: u64,
        (ops, attached): (&[LoggedOp], &[(UserId, DeviceId)]),
    ) -> Outcome {
        if let Some(end) = self.row().row.retired(origin) {
            return Outcome::Applied {
                through: end,
                stopped: None,
            };
        }
        let (have, hash) = self
            .row()
            .row
            .logs
            .get(&origin)
            .map_or((0, 0), |log| (log.seq, log.hash));
        let stopped = |stop| Outcome::Applied {
            through: have,
            stopped: Some(stop),
        };
        if first > have + 1 || first == 0 {
            return stopped(Stop::Gap { have, first });
        }
        // The run may begin with what is applied already: its own running hash leads to where we stand.
        let known = ((have + 1 - first) as usize).min(ops.len());
        let theirs = ops[..known].iter().fold(before, |hash, op| op.running_hash(hash));
        if known as u64 == have + 1 - first && theirs != hash {
            return stopped(Stop::Diverged {
                at: have,
                ours: hash,
                theirs,
            });
        }
        let mut through = have;
        for op in &ops[known..] {
            let seq = through + 1;
            if let Err(stop) = self.apply_one(origin, region, seq, op, attached) {
                return Outcome::Applied {
                    through,
                    stopped: Some(stop),
                };
            }
            through = seq;
        }
        Outcome::Applied {
            through,
            stopped: None,
        }
    }

    fn apply_one(
        &mut self,
        origin: Origin,
        region: &RegionId,
        seq: Seq,
        op: &LoggedOp,
        attached: &[(UserId, DeviceId)],
    ) -> Result<(), Stop> {
        let decoded = op.decode().map_err(|error| Stop::Unreadable { at: seq, error })?;
        match &decoded {
            Op::Start {
                region: owner,
                previous,
            } => {
                if seq != 1 || owner != region {
                    return Err(Stop::OutOfPlace(seq));
                }
                if let Some(previous) = previous
                    && self.row().row.reached(previous.origin) < previous.seq
                {
                    return Err(Stop::StartsAfter(*previous));
                }
            }
            _ if seq == 1 => return Err(Stop::OutOfPlace(seq)),
            _ => {}
        }
        let user = match &decoded {
            Op::Append(envelope, _) => Some(&envelope.to),
            Op::Cursor { user, .. } | Op::Device { user, .. } => Some(user),
            Op::Start { .. } | Op::Confirm { .. } | Op::Holders(_) => None,
        };
        if let Some(user) = user {
            self.strip_user(user);
        }
        let at = Coord { origin, seq };
        let (siblings, merged) = match &decoded {
            Op::Append(envelope, body) => (self.siblings(envelope, body, at), self.known(&envelope.to, at)),
            _ => (Vec::new(), false),
        };
        let sibling = !siblings.is_empty();
        let row = &self.row().row;
        let before = row.logs.get(&origin).map_or(0, |log| log.hash);
        let hlc = if *region == self.state.identity.region {
            // An earlier life of this region: its time never goes back (R7).
            row.hlc.max(op.hlc())
        } else {
            row.hlc.observe(op.hlc(), self.now_ms)
        };
        let entry = LogEntry {
            seq,
            hash: op.running_hash(before),
            op: op.clone(),
        };
        let logged = Logged {
            shard: self.shard,
            origin,
            region: region.clone(),
            own: false,
            entry,
            hlc,
            siblings,
            merged,
        };
        self.record_logged(logged, &decoded);
        let device = matches!(decoded, Op::Device { .. });
        self.object(op, &decoded, attached);
        let user = match decoded {
            // A cursor can run ahead of the entries it covers, so an entry may be consumed as it arrives; and with a
            // sibling, what a cursor covers here may be an earlier one.
            Op::Append(envelope, _) => {
                let known = self.row().users.get(&envelope.to);
                let consumed = known.is_some_and(|user| user.row.all_consumed(Coord { origin, seq }));
                (consumed || sibling).then_some(envelope.to)
            }
            Op::Cursor { user, .. } | Op::Device { user, .. } => Some(user),
            Op::Start { .. } | Op::Confirm { .. } | Op::Holders(_) => None,
        };
        if let Some(user) = user {
            let consumed = self.consume(&user);
            if consumed.more && self.row().row.recovery != Recovery::Merging {
                self.state.unfinished.insert((self.shard, user.clone()));
            }
            self.remove(&user, &consumed.first);
            if sibling || device {
                self.look_for_needs(&user);
            }
        }
        Ok(())
    }

    /// The other coordinates of a message; a snapshot may have told of its own.
    fn siblings(&self, envelope: &Envelope, body: &Bytes, at: Coord) -> Vec<Coord> {
        let known = self.row().dedup.get(&DedupKey::of(envelope));
        known.map_or_else(Vec::new, |row| {
            let coords = row.coords(op::digest(envelope.kind, body));
            let coords = coords.filter(|coord| *coord != at);
            let retired = &self.row().row.old.retired;
            coords.map(|at| retire::or_retired(at, retired)).collect()
        })
    }

    /// Logs an own operation under the next sequence and hybrid time.
    pub(super) fn log(&mut self, op: &Op) -> Coord {
        self.start_if_new();
        self.log_here(op)
    }

    /// The first own operation of a new origin is its start, tied to the origin before it (R1).
    fn start_if_new(&mut self) {
        let row = &self.row().row;
        if row.origin == self.state.identity.origin {
            return;
        }
        let region = self.state.identity.region.clone();
        let previous = row.last_origin(&region);
        self.log_here(&Op::Start { region, previous });
    }

    fn log_here(&mut self, op: &Op) -> Coord {
        let origin = self.state.identity.origin;
        let row = &self.row().row;
        let (last, before) = row.logs.get(&origin).map_or((0, 0), |log| (log.seq, log.hash));
        let hlc = row.hlc.tick(self.now_ms);
        let encoded = LoggedOp::encode(op, hlc);
        let entry = LogEntry {
            seq: last + 1,
            hash: encoded.running_hash(before),
            op: encoded,
        };
        let coord = Coord {
            origin,
            seq: entry.seq,
        };
        let region = self.state.identity.region.clone();
        let logged = Logged {
            shard: self.shard,
            origin,
            region,
            own: true,
            entry,
            hlc,
            siblings: Vec::new(),
            merged: false,
        };
        self.record_logged(logged, op);
        coord
    }
}
