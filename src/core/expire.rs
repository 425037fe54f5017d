//! What goes by time: messages whose time to live passed (R18), devices that nobody heard of for long (R19).
//!
//! **A message** is due when its expiry and the margin ([`EXPIRY_MARGIN_MS`]) have passed. Two things follow, each where and
//! when it is due:
//!
//! - *Delivery* tells a hole in its place, judged from the envelope alone (`owner::delivery`).
//! - *The store* replaces it by a hole of the user's row ([`HoleRow`]), as soon as the log has no need of it. As long as its
//!   log entry is not trimmed, the body stays: it is stored once, the log entry names it, and a region that was cut off must
//!   get the same bytes as all others (equal coordinates, equal bytes).
//!
//! Both follow from the envelope, which is the same in all regions; when they happen is each region's own. So two regions
//! are equal when, after all that is due was replaced, they keep the same messages, and of each origin their holes stand
//! for as many.
//!
//! **What is due is found** by the owner in rounds over the users of a shard, some at a time (`owner::sweep`). The row of a
//! user says from when on something may be due ([`Timed::from_ms`]), so a round looks into few inboxes, and after a restart
//! nothing has to be found again but where the round stands.
//!
//! **A device** was heard of when an operation of its was logged: a registration or a cursor; the hybrid time of the
//! latest is in its row, the same in all regions that have the same logs. A region where it is attached logs its registration
//! again before a quarter of the time is over, so one that is attached and idle is heard of, too. One that was not heard of
//! for as long as is configured gets an `Expire` under its epoch. That takes effect where the log entry is trimmed: then every
//! holder has logged that it has it, and whoever objects did so before it said so (R8, R19). Objecting is any region where
//! the device is attached, or that heard of it later; its `Veto` raises the epoch, so that an expiry of the epoch before is
//! void wherever it comes, in any order. So does a registration while an expiry is pending, and one after it. An objection
//! does not make it heard of, or regions with different settings would let no device expire: whoever was objected to asks
//! again after its whole time, and by then the other's may be over.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::commit::{CONSUME_STEP, Outcome, Work};
use super::defect::{self, Defect};
use super::ids::{Coord, DeviceId, Origin, Seq, UserId};
use super::op::{DeviceChange, LoggedOp, Op, kind};
use super::state::{Decision, Next, Recovery, ShardState, UserState};
use super::time::MAX_DRIFT;
use super::user::{UserRow, is_gap_between};
use super::vector::Vector;
use super::wire::HoleReason;

/// A message or a device is due so long after its time, where nothing else is configured: clocks that agree are no further
/// apart (R20). Only the simulator, whose clocks it knows, takes less.
pub const EXPIRY_MARGIN_MS: u64 = MAX_DRIFT.as_millis() as u64;
/// Inbox entries that one [`StoreOp::Expire`](super::commit::StoreOp::Expire) looks at, at most.
pub const EXPIRE_STEP: usize = CONSUME_STEP;
/// Holes that a user's row has at most: 64 KiB. Where messages with and without a time to live take turns for long,
/// further ones stay until older holes are gone; delivery tells holes in their place all the same.
pub const MAX_HOLES: usize = 2048;
/// A device that is attached is registered again when it was not heard of for this part of the time after which it expires.
pub const REFRESHES: u64 = 4;

/// Messages that were replaced: by a hole of a user's row, which stands in their place among the messages (R18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoleRow {
    /// To this sequence; from which it begins is its key.
    pub to: Seq,
    /// How many messages it stands for; 0 where that is not known.
    pub count: u64,
    /// Why.
    pub reason: HoleReason,
}

/// What time did to a user's messages, or will do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timed {
    /// By origin and first sequence. They do not overlap, and no message lies in one.
    pub holes: BTreeMap<(Origin, Seq), HoleRow>,
    /// No message that waits is due before this has passed by the margin, unix milliseconds; 0: none expires.
    pub from_ms: u64,
    /// The same of those alone that came since the last look through the inbox began.
    pub new_ms: u64,
}

impl Timed {
    /// For rows that never had any of it: they stay as they were.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The hole that a coordinate lies in.
    pub fn hole_at(&self, at: Coord) -> Option<(Seq, &HoleRow)> {
        let mut before = self.holes.range((at.origin, 0)..=(at.origin, at.seq));
        let ((_, from), hole) = before.next_back()?;
        (at.seq <= hole.to).then_some((*from, hole))
    }

    /// The first hole of an origin that ends above a sequence.
    pub fn hole_above(&self, origin: Origin, after: Seq) -> Option<(Seq, &HoleRow)> {
        let inside = self.hole_at(Coord { origin, seq: after });
        let inside = inside.filter(|(_, hole)| hole.to > after);
        let above = || {
            let mut above = self.holes.range((origin, after.saturating_add(1))..);
            let first = above.next().filter(|((of, _), _)| *of == origin);
            first.map(|((_, from), hole)| (*from, hole))
        };
        inside.or_else(above)
    }

    /// The last sequence of an origin that lies in a hole; 0 where there is none.
    pub fn last_of(&self, origin: Origin) -> Seq {
        let mut holes = self.holes.range((origin, 0)..=(origin, Seq::MAX));
        holes.next_back().map_or(0, |(_, hole)| hole.to)
    }

    /// A message waits that expires then.
    pub(super) fn expires(&mut self, expires_ms: u64) {
        self.from_ms = earlier(self.from_ms, expires_ms);
        self.new_ms = earlier(self.new_ms, expires_ms);
    }

    /// What a snapshot that was given up told to be gone comes by log after all.
    pub(super) fn fill(&mut self, at: Coord) {
        let Some((from, hole)) = self.hole_at(at).map(|(from, hole)| (from, *hole)) else {
            return;
        };
        self.holes.remove(&(at.origin, from));
        let count = hole.count.saturating_sub(1);
        if at.seq < hole.to && (count > 0 || hole.count == 0) {
            self.holes
                .insert((at.origin, at.seq + 1), HoleRow { count, ..hole });
        }
    }

    /// What is gone for another reason is in no hole: of those that reach into a range the rest stays, and how many messages
    /// that stands for nobody knows.
    pub(super) fn cut(&mut self, origin: Origin, from: Seq, to: Seq) {
        let before = self.hole_at(Coord { origin, seq: from });
        let first = before.map_or(from, |(first, _)| first);
        let reach = self.holes.range((origin, first)..=(origin, to));
        let reach: Vec<(Seq, HoleRow)> = reach.map(|((_, first), hole)| (*first, *hole)).collect();
        for (first, hole) in reach {
            self.holes.remove(&(origin, first));
            let rest = |to| HoleRow { to, count: 0, ..hole };
            if first < from {
                self.holes.insert((origin, first), rest(from - 1));
            }
            if to < hole.to {
                self.holes.insert((origin, to + 1), rest(hole.to));
            }
        }
    }

    /// Whether a hole is of an origin that is retired.
    pub(super) fn names(&self, retired: &BTreeMap<Origin, Seq>) -> bool {
        self.holes.keys().any(|(origin, _)| retired.contains_key(origin))
    }

    /// Drops what is retired.
    pub(super) fn strip(&mut self, retired: &BTreeMap<Origin, Seq>) {
        self.holes.retain(|(origin, _), _| !retired.contains_key(origin));
    }

    /// Everything of an origin to here was removed.
    pub(super) fn removed(&mut self, origin: Origin, to: Seq) {
        self.holes.retain(|(of, _), hole| *of != origin || hole.to > to);
    }
}

/// The earlier of two times at which something expires; 0 is never.
pub fn earlier(a_ms: u64, b_ms: u64) -> u64 {
    match (a_ms, b_ms) {
        (0, other) | (other, 0) => other,
        (a_ms, b_ms) => a_ms.min(b_ms),
    }
}

/// How far a look through an inbox came that takes several steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looked {
    /// To here; the origins before it were looked through.
    pub to: Coord,
    /// The earliest expiry that it saw, unix milliseconds; 0 where it saw none.
    pub earliest_ms: u64,
}

/// What is known of a device's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceLife {
    /// Hybrid time of its latest operation, unix milliseconds; 0 where that was before it was kept.
    pub seen_ms: u64,
    /// An expiry of its epoch that has no effect yet.
    pub expiry: Option<Coord>,
    /// Hybrid time of the latest objection to an expiry, unix milliseconds; 0 where there was none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub objected_ms: u64,
}

fn is_zero(ms: &u64) -> bool {
    *ms == 0
}

impl DeviceLife {
    /// For rows from before it was kept: they stay as they were.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn seen(&mut self, hlc_ms: u64) {
        self.seen_ms = self.seen_ms.max(hlc_ms);
    }

    pub(super) fn objected(&mut self, hlc_ms: u64) {
        self.objected_ms = self.objected_ms.max(hlc_ms);
    }

    /// Whether it is to expire: it was not heard of for so long and a margin, and nobody objected for so long.
    pub fn is_overdue(&self, (after_ms, margin_ms): (u64, u64), now_ms: u64) -> bool {
        let due = self.seen_ms.max(self.objected_ms).saturating_add(after_ms);
        after_ms > 0 && due.saturating_add(margin_ms) <= now_ms
    }
}

/// What comes next of an origin in an inbox.
#[derive(Debug, PartialEq, Eq)]
pub enum NextEntry<'a> {
    /// A message.
    Item(Seq, &'a LoggedOp),
    /// A hole, from this sequence.
    Hole(Seq, &'a HoleRow),
    /// Nothing.
    End,
    /// It lies in a part that is not loaded.
    NotLoaded,
}

impl UserState {
    /// The first message or hole of an origin above a sequence. Messages that a hole replaced may still lie in it.
    pub fn next_entry(&self, origin: Origin, after: Seq) -> NextEntry<'_> {
        let hole = self.row.timed.hole_above(origin, after);
        if let Some((from, hole)) = hole.filter(|(from, _)| *from <= after.saturating_add(1)) {
            return NextEntry::Hole(from, hole);
        }
        let next = self
            .inbox
            .get(&origin)
            .map_or(Next::End, |series| series.next(after));
        match (next, hole) {
            (Next::NotLoaded, _) => NextEntry::NotLoaded,
            (Next::Item(seq, op), hole) if hole.is_none_or(|(from, _)| seq < from) => {
                NextEntry::Item(seq, op)
            }
            (_, Some((from, hole))) => NextEntry::Hole(from, hole),
            (_, None) => NextEntry::End,
        }
    }

    /// The origins of which a message or a hole may wait.
    pub fn origins(&self) -> BTreeSet<Origin> {
        let holes = self.row.timed.holes.keys().map(|(origin, _)| *origin);
        self.inbox.keys().copied().chain(holes).collect()
    }

    /// No message and no hole of an origin has a higher sequence.
    pub fn last(&self, origin: Origin) -> Seq {
        let series = self.inbox.get(&origin).map_or(0, |series| series.last());
        series.max(self.row.timed.last_of(origin))
    }

    /// How many messages of an origin wait from a sequence to another, those that holes stand for too; `None` where that is
    /// not known: some are gone, or not loaded.
    pub fn count_within(&self, origin: Origin, from: Seq, to: Seq) -> Option<u64> {
        let (mut after, mut count) = (from.saturating_sub(1), 0);
        if after < self.row.trimmed.of(origin) || self.row.gap_between(origin, after, to.saturating_add(1)) {
            return None;
        }
        while after < to {
            match self.next_entry(origin, after) {
                NextEntry::Item(seq, _) if seq <= to => (after, count) = (seq, count + 1),
                NextEntry::Hole(_, hole) if hole.to <= to && hole.count > 0 => {
                    (after, count) = (hole.to, count + hole.count);
                }
                NextEntry::Hole(begins, _) if begins <= to => return None,
                NextEntry::NotLoaded => return None,
                _ => break,
            }
        }
        Some(count)
    }

    /// Whether a message waits, or a hole in its place.
    pub fn stands(&self, at: Coord) -> bool {
        let hole = self.row.timed.hole_at(at).is_some();
        self.keeps(at) || (hole && !self.row.trimmed.covers(at))
    }

    pub(super) fn apply_expired(&mut self, expired: &Expired, row: bool) -> usize {
        let Expired { origin, from, to, .. } = *expired;
        if row {
            let timed = &mut self.row.timed;
            let inside = timed.holes.range((origin, from)..=(origin, to));
            let inside: Vec<(Origin, Seq)> = inside.map(|(at, _)| *at).collect();
            inside.iter().for_each(|at| {
                timed.holes.remove(at);
            });
            let hole = HoleRow {
                to,
                count: expired.count,
                reason: HoleReason::Expired,
            };
            timed.holes.insert((origin, from), hole);
            self.row.unread = self.row.unread.saturating_sub(expired.messages);
            self.row.unread_bytes = self.row.unread_bytes.saturating_sub(expired.bytes);
            if defect::on(Defect::HoleForgetsSiblings) {
                let within = |at: &Coord| at.origin == origin && (from..=to).contains(&at.seq);
                self.row.siblings.retain(|at, _| !within(at));
            }
        }
        let series = self.inbox.get_mut(&origin);
        series.map_or(0, |series| series.drop_range(from, to))
    }
}

/// Messages of a user and an origin that are replaced by one hole, together with holes beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// The origin.
    pub origin: Origin,
    /// The hole begins here.
    pub from: Seq,
    /// It ends here.
    pub to: Seq,
    /// How many messages it stands for; 0 where that is not known.
    pub count: u64,
    /// Messages that leave the count of unread ones.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a step over an inbox found of an origin.
#[derive(Default)]
struct Run {
    /// The hole that is being made, and whether anything new is in it.
    open: Option<(Expired, bool)>,
    done: Vec<Expired>,
}

impl Run {
    fn extend(&mut self, part: Expired, new: bool) {
        match &mut self.open {
            Some((open, any)) => {
                open.to = part.to;
                let known = open.count > 0 && part.count > 0;
                open.count = if known { open.count + part.count } else { 0 };
                open.messages += part.messages;
                open.bytes += part.bytes;
                *any |= new;
            }
            none => *none = Some((part, new)),
        }
    }

    fn close(&mut self) {
        self.done
            .extend(self.open.take().filter(|(_, new)| *new).map(|(hole, _)| hole));
    }

    /// Where to go on after so much: before a hole that is made now and may grow, so that it stands there as one.
    fn resume(&self, after: Seq) -> Seq {
        match &self.open {
            Some((open, true)) => open.from - 1,
            _ => after,
        }
    }
}

impl Work<'_> {
    /// Replaces what is due of a user's messages, from where the step before ended.
    pub(super) fn expire(&mut self, user: &UserId, looked: Option<Looked>) -> Outcome {
        let shard = self.row();
        let Some(known) = shard.users.get(user).filter(|_| !shard.row.recovery.recovers()) else {
            return Outcome::Expired { next: None };
        };
        let margin_ms = self.state.identity.limits.expiry_margin_ms;
        let due_ms = self.now_ms.saturating_sub(margin_ms);
        let mut room = MAX_HOLES.saturating_sub(known.row.timed.holes.len());
        let mut steps = EXPIRE_STEP;
        let (mut expired, mut next) = (Vec::new(), None);
        let mut earliest_ms = looked.map_or(0, |looked| looked.earliest_ms);
        let from = looked.map(|looked| looked.to);
        let first = from.map_or(Origin(0), |from| from.origin);
        for origin in known.origins().into_iter().filter(|origin| *origin >= first) {
            let floor = shard.row.logs.get(&origin).map_or(0, |log| log.floor);
            let counted = known.row.counted.of(origin);
            // What was consumed goes before the rest: no hole reaches over the mark.
            let consumed = known.row.consumed.of(origin);
            let mut after = known.row.trimmed.of(origin);
            if let Some(from) = from.filter(|from| from.origin == origin) {
                after = after.max(from.seq);
            }
            let mut run = Run::default();
            let left = loop {
                if steps == 0 {
                    break true;
                }
                steps -= 1;
                match known.next_entry(origin, after) {
                    NextEntry::End => break false,
                    NextEntry::NotLoaded => break true,
                    NextEntry::Hole(from, hole) => {
                        if known.row.gap_between(origin, after, from) || after == consumed {
                            run.close();
                        }
                        after = hole.to;
                        let part = Expired {
                            origin,
                            from,
                            to: hole.to,
                            count: hole.count,
                            messages: 0,
                            bytes: 0,
                        };
                        run.extend(part, false);
                    }
                    NextEntry::Item(seq, op) => {
                        let gap = known.row.gap_between(origin, after, seq) || after == consumed;
                        let expires_ms = op.expires_ms();
                        let due = (1..=due_ms).contains(&expires_ms);
                        after = seq;
                        if gap || !due || seq > floor {
                            run.close();
                        }
                        if !due {
                            earliest_ms = earlier(earliest_ms, expires_ms);
                            continue;
                        }
                        // What the log needs, or what finds no room, is looked at again after another margin.
                        if seq > floor || (run.open.is_none() && room == 0) {
                            earliest_ms = earlier(earliest_ms, self.now_ms);
                            continue;
                        }
                        room -= usize::from(run.open.is_none());
                        let counts = seq > counted;
                        let part = Expired {
                            origin,
                            from: seq,
                            to: seq,
                            count: 1,
                            messages: counts.into(),
                            bytes: if counts { op.len() as u64 } else { 0 },
                        };
                        run.extend(part, true);
                    }
                }
            };
            let seq = run.resume(after);
            run.close();
            expired.extend(run.done);
            if left {
                let to = Coord { origin, seq };
                next = Some(Looked { to, earliest_ms });
                break;
            }
        }
        let timed = &known.row.timed;
        // What came while several steps looked is not in what they saw.
        let from_ms = match (looked, next) {
            (None, None) => earliest_ms,
            (Some(_), None) => earlier(earliest_ms, timed.new_ms),
            (_, Some(_)) => timed.from_ms,
        };
        let changes = from_ms != timed.from_ms || timed.new_ms != 0;
        let ends = looked.is_none() || next.is_none();
        for hole in expired {
            self.record(Decision::Expired {
                shard: self.shard,
                user: user.clone(),
                hole,
            });
        }
        if ends && changes {
            self.expires_from(user, from_ms);
        }
        Outcome::Expired { next }
    }

    /// Nothing waits any more, so nothing expires.
    pub(super) fn nothing_expires(&mut self, user: &UserId) {
        let Some(known) = self.row().users.get(user) else {
            return;
        };
        let empty = |origin: &Origin| known.last(*origin) <= known.row.trimmed.of(*origin);
        if known.row.timed.from_ms != 0 && known.origins().iter().all(empty) {
            self.expires_from(user, 0);
        }
    }

    fn expires_from(&mut self, user: &UserId, from_ms: u64) {
        self.record(Decision::Expires {
            shard: self.shard,
            user: user.clone(),
            from_ms,
        });
    }

    /// Logs that a device expires, or lets that take effect where it was left over.
    pub(super) fn expire_device(&mut self, user: &UserId, device: &DeviceId) -> Outcome {
        let done = Outcome::Done { more: false };
        let shard = self.row();
        let known = shard
            .users
            .get(user)
            .and_then(|user| user.row.devices.get(device));
        let Some(row) = known.filter(|row| !row.expired) else {
            return done;
        };
        let (epoch, life) = (row.epoch, row.life);
        if let Some(at) = life.expiry {
            let log = shard.row.logs.get(&at.origin);
            let trimmed = log.is_some_and(|log| log.floor >= at.seq);
            let everywhere = trimmed && at.seq <= shard.row.agreed_to(at.origin, &self.state.identity);
            if everywhere || shard.row.retired(at.origin).is_some() {
                self.device_expired(user, device, epoch);
                let consumed = self.consume(user);
                self.remove(user, &consumed.first);
                return Outcome::Done { more: consumed.more };
            }
            return done;
        }
        let limits = &self.state.identity.limits;
        let (after_ms, margin_ms) = (limits.device_expiry_ms, limits.expiry_margin_ms);
        let change = match life.seen_ms {
            _ if after_ms == 0 => return done,
            // It was kept before that was kept: it has its whole time from now on.
            0 => DeviceChange::Register {
                epoch: epoch.max(1),
                cursor: Vector::new(),
            },
            _ if life.is_overdue((after_ms, margin_ms), self.now_ms) => DeviceChange::Expire { epoch },
            _ => return done,
        };
        self.log(&Op::Device {
            user: user.clone(),
            device: device.clone(),
            change,
        });
        done
    }

    /// Another region lets a device expire that is attached here, or that we heard of later than it did: then it stays. In
    /// the commit that applied it, so before we confirm that we have it.
    pub(super) fn object(&mut self, op: &LoggedOp, decoded: &Op, attached: &[(UserId, DeviceId)]) {
        let Op::Device {
            user,
            device,
            change: DeviceChange::Expire { epoch },
        } = decoded
        else {
            return;
        };
        let shard = self.row();
        let known = shard
            .users
            .get(user)
            .and_then(|user| user.row.devices.get(device));
        let me = &self.state.identity.region;
        let pending = known.filter(|row| row.epoch == *epoch && row.life.expiry.is_some());
        let Some(row) = pending.filter(|_| !shard.row.recovery.recovers() && !shard.row.is_out(me)) else {
            return;
        };
        let is_attached = attached.iter().any(|(of, with)| (of, with) == (user, device));
        let after_ms = self.state.identity.limits.device_expiry_ms;
        let lately = after_ms == 0 || row.life.seen_ms.saturating_add(after_ms) > op.hlc().ms;
        if (is_attached || lately) && !defect::on(Defect::NoVeto) {
            self.log(&Op::Device {
                user: user.clone(),
                device: device.clone(),
                change: DeviceChange::Veto { epoch: *epoch },
            });
        }
    }

    /// The log entries of expiries left the log: every holder has them, and nobody objected (R19).
    pub(super) fn take_effect(&mut self, expiries: Vec<Expiry>) {
        for Expiry {
            at,
            user,
            device,
            epoch,
        } in expiries
        {
            // While a snapshot is merged not all objections are known: its pages tell what became of the device.
            let merging = self.row().row.recovery == Recovery::Merging;
            let row = &self.row().row;
            if merging || at.seq > row.agreed_to(at.origin, &self.state.identity) {
                continue;
            }
            self.device_expired(&user, &device, epoch);
            self.state.unfinished.insert((self.shard, user));
        }
    }

    fn device_expired(&mut self, user: &UserId, device: &DeviceId, epoch: u32) {
        let known = self.row().users.get(user);
        let known = known.and_then(|user| user.row.devices.get(device));
        if known.is_some_and(|row| row.epoch == epoch && !row.expired) {
            self.record(Decision::DeviceExpired {
                shard: self.shard,
                user: user.clone(),
                device: device.clone(),
                epoch,
            });
        }
    }
}

/// An expiry of a device in a log.
pub(super) struct Expiry {
    at: Coord,
    user: UserId,
    device: DeviceId,
    epoch: u32,
}

impl Expiry {
    /// The expiry that an operation is, if it is one.
    pub(super) fn of(op: &LoggedOp, at: Coord) -> Option<Self> {
        if op.kind() != kind::DEVICE {
            return None;
        }
        match op.decode() {
            Ok(Op::Device {
                user,
                device,
                change: DeviceChange::Expire { epoch },
            }) => Some(Self {
                at,
                user,
                device,
                epoch,
            }),
            _ => None,
        }
    }

    pub(super) fn user(self) -> UserId {
        self.user
    }
}

/// Whether a device that is attached is to be registered again.
pub fn is_stale(seen_ms: u64, after_ms: u64, now_ms: u64) -> bool {
    after_ms > 0 && seen_ms.saturating_add(after_ms / REFRESHES) <= now_ms
}

/// The parts of an inbox that an [`StoreOp::Expire`](super::commit::StoreOp::Expire) looks at: what lies above a sequence of
/// each origin.
pub(super) fn looked_at(
    shard: &ShardState,
    user: &UserId,
    from: Option<Coord>,
) -> impl Iterator<Item = (Origin, Seq)> {
    let known = shard.users.get(user);
    let origins = known
        .map(|known| known.inbox.keys().copied())
        .into_iter()
        .flatten();
    let first = from.map_or(Origin(0), |from| from.origin);
    origins.filter(move |origin| *origin >= first).map(move |origin| {
        let row = known.map(|known| &known.row);
        let trimmed = row.map_or(0, |row| row.trimmed.of(origin));
        let after = match from {
            Some(from) if from.origin == origin => trimmed.max(from.seq),
            _ => trimmed,
        };
        // Of a hole that begins there nothing has to be loaded.
        let hole = row.and_then(|row| row.timed.hole_above(origin, after));
        let hole = hole.filter(|(from, _)| *from <= after.saturating_add(1));
        (origin, hole.map_or(after, |(_, hole)| hole.to))
    })
}

impl UserRow {
    /// Whether messages are gone between two that wait, for another reason.
    pub(super) fn gap_between(&self, origin: Origin, after: Seq, before: Seq) -> bool {
        is_gap_between(&self.gaps, origin, after, before)
    }
}

#[cfg(test)]
mod tests;
