//! Retirement of old origins (R23): how an origin leaves all vectors.
//!
//! ```text
//! old: its region confirmed, under a later origin, that it has it
//!   --> log trimmed to its end --> users looked through, a page at a time (Read::Needed) --> unneeded here
//!   --> our Confirm does not name it as needed any more
//! every holder's last Confirm covers the later origin's Start, lists the same end, does not need it
//!   --> tombstone; the origin is dropped; our Confirms name it retired while some holder lists it
//! the others: have applied what the one who says so had applied --> tombstone, too
//! ```
//!
//! **Bounded work.** A commit judges origins, of which there are few, never users. Of users' rows nothing is rewritten when
//! an origin is retired: a tombstone is for good, so what a row still names is dropped when the row is next used or read
//! ([`UserState::strip`]).
//!
//! **What was needed and is not known to be** is looked for by the owner in the background ([`Need of users`]). An origin's log
//! is complete then, so the need only shrinks, with three exceptions that are watched for: a device that registers or
//! returns, and a copy that comes late ([`Work::look_for_needs`]).
//!
//! **A word** that an origin is retired counts once we have applied all that its teller had: then every copy of a message of
//! that origin is known here, too (R15). A store that was restored may still hold messages of it; everybody consumed them,
//! so they go ([`Work::forgo`]), before the shard is open again.
//!
//! **Copies.** An entry that waits and has a copy in a retired origin counts as consumed: every device had consumed that
//! copy. So that rows need not name the origin, [`IN_RETIRED`] stands for it, which every cursor covers.
//!
//! **Devices that come later** are told once that something is gone, of all retired origins together: under [`RETIRED`], since
//! each of them would otherwise stay in vectors for it. A user's row knows that there was something ([`UserRow::past`]), the
//! registration logs that the device came after it, and its acknowledgement that it was told.
//!
//! [`Need of users`]: super::storage::Read::Needed

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::commit::{Outcome, Work};
use super::defect::{self, Defect};
use super::ids::{Coord, Origin, RegionId, Seq, UserId};
use super::op::DeviceChange;
use super::snapshot::{Cut, MergedUser, UserPage};
use super::state::{ConfirmRow, Decision, LogRow, ShardRow, StoreIdentity, UserState};
use super::user::{DeviceRow, UserRow};
use super::vector::Vector;

/// Stands for all retired origins, where one has to be named.
pub const RETIRED: Origin = Origin(0);

/// A copy in an origin that is retired: below every cursor.
pub const IN_RETIRED: Coord = Coord {
    origin: RETIRED,
    seq: 0,
};

/// In a device's cursor at [`RETIRED`]: it registered when messages of retired origins were gone.
pub const CAME_LATER: Seq = 1;

/// In a device's cursor at [`RETIRED`]: it knows that, or had these messages.
pub const KNOWS: Seq = 2;

/// Users that a look for what is needed takes at once: a commit waits for it.
pub const NEEDED_STEP: usize = 256;

/// What a shard knows of its old origins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OldOrigins {
    /// Tombstones: each retired origin with its last sequence, for good.
    pub retired: BTreeMap<Origin, Seq>,
    /// Nothing of them is stored here, and no device's cursor lies below what was removed.
    pub unneeded: BTreeSet<Origin>,
    /// Retired as a snapshot said, and still listed here.
    pub told: BTreeMap<Origin, Seq>,
    /// What we list or need changed since our last confirmation, or a holder lists what is retired.
    pub changed: bool,
}

/// What became of [`StoreOp::Retire`](super::commit::StoreOp::Retire).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retirement {
    /// Retired now.
    pub retired: BTreeMap<Origin, Seq>,
    /// To be looked for in users' rows; `true` where only messages that are stored count, which are to be forgone.
    pub look: BTreeMap<Origin, bool>,
}

impl ShardRow {
    /// The last sequence of an origin that is retired.
    pub fn retired(&self, origin: Origin) -> Option<Seq> {
        self.old.retired.get(&origin).copied()
    }

    /// What is applied of an origin; of a retired one all that there was.
    pub fn reached(&self, origin: Origin) -> Seq {
        match self.logs.get(&origin) {
            Some(log) => log.seq,
            None => self.retired(origin).unwrap_or(0),
        }
    }

    /// Whether a region has left for good: it comes back under another origin, if at all (R13).
    fn has_left(&self, region: &RegionId) -> bool {
        let set = self.holding.set.as_ref();
        set.is_some_and(|set| set.settled && !set.new.contains(region) && !set.leaving.contains_key(region))
    }

    /// Whether our last confirmation says less than all of the log of a region that has left. Nothing follows in that log, so
    /// nothing else would make us say it, and it could not be retired.
    pub(super) fn owes_word(&self, me: &RegionId) -> bool {
        let said = self.confirmed.get(me);
        let less = |(origin, log): (&Origin, &LogRow)| {
            self.has_left(&log.region) && said.map_or(0, |said| said.applied.of(*origin)) < log.seq
        };
        self.holding.set.is_some() && self.logs.iter().any(less)
    }

    /// The later origin under which the region of this one said that it has it, or none where the region has left: nothing is
    /// logged under this one any more.
    fn later(&self, origin: Origin, log: &LogRow) -> Option<Option<Origin>> {
        if self.has_left(&log.region) {
            return Some(None);
        }
        let said = self.confirmed.get(&log.region)?;
        let later = said.at.1;
        let both = said.applied.of(origin) > 0 && said.applied.of(later) > 0;
        (later != origin && both).then_some(Some(later))
    }

    /// Whether an origin that is listed here is an old one.
    pub fn is_old(&self, origin: Origin) -> bool {
        let log = self.logs.get(&origin);
        log.is_some_and(|log| self.later(origin, log).is_some())
    }

    /// What our confirmation names as needed: of each region with several origins, and of those that are removed, those that are.
    pub(super) fn needed(&self) -> Vec<Origin> {
        let mut regions: BTreeMap<&RegionId, usize> = BTreeMap::new();
        for log in self.logs.values() {
            *regions.entry(&log.region).or_default() += 1;
        }
        // Of a region that is removed already from the moment at which we know of it: who reads that we do not need an origin
        // of it must be able to rely on that once all have confirmed the change.
        let several = |log: &LogRow| regions[&log.region] > 1 || self.is_removed(&log.region);
        let several = self.logs.iter().filter(|(_, log)| several(log));
        let needed = several.filter(|(origin, _)| !self.old.unneeded.contains(origin));
        needed.map(|(origin, _)| *origin).collect()
    }

    /// What our confirmation names as retired: what some holder lists.
    pub(super) fn named_retired(&self) -> Vec<Coord> {
        let holders = self
            .confirmed
            .iter()
            .filter(|(region, _)| !self.is_removed(region));
        let stale = holders.flat_map(|(_, row)| row.stale.iter());
        let stale: BTreeSet<Origin> = stale.copied().collect();
        let named = stale.into_iter().filter_map(|origin| {
            let seq = self.retired(origin)?;
            Some(Coord { origin, seq })
        });
        named.collect()
    }

    /// Retired elsewhere, as we are told by somebody who had applied no more than we have; `current` is the origin under which
    /// the store was opened.
    pub fn told_retired(&self, current: Origin) -> BTreeMap<Origin, Seq> {
        let mut told = BTreeMap::new();
        for said in self.confirmed.values() {
            let Some(named) = said.retired.as_deref().filter(|named| !named.is_empty()) else {
                continue;
            };
            if said
                .applied
                .iter()
                .all(|(origin, seq)| self.reached(origin) >= seq)
            {
                told.extend(named.iter().map(|at| (at.origin, at.seq)));
            }
        }
        told.extend(&self.old.told);
        // Under our current origin we go on, whatever somebody says. The one under which the shard last logged may be an old
        // one: of a backup that was restored the others may have retired it.
        told.retain(|origin, _| self.retired(*origin).is_none() && *origin != current);
        told
    }

    /// Whether anybody, or a snapshot, ever said of something that is listed here that it is retired.
    pub(super) fn may_be_told(&self) -> bool {
        !self.old.told.is_empty() || self.confirmed.values().any(ConfirmRow::names_retired)
    }

    /// Whether one of these is listed here, so that it may come to be retired because it is elsewhere.
    pub(super) fn lists_any<'a>(&self, named: impl IntoIterator<Item = &'a Origin>) -> bool {
        let mut named = named.into_iter();
        named.any(|origin| self.retired(*origin).is_none() && self.logs.contains_key(origin))
    }

    /// Whether anybody, or a snapshot, says of something that is still listed here that it is retired.
    pub(super) fn is_told(&self) -> bool {
        let said = self.confirmed.values();
        let named = said.flat_map(|said| said.retired.iter().flatten());
        self.lists_any(self.old.told.keys().chain(named.map(|at| &at.origin)))
    }

    /// To where an origin's log may be trimmed: what is stable (R9), whatever holders that are away beyond the limits have
    /// (R12), and all of what is retired elsewhere.
    pub fn trim_to(&self, origin: Origin, identity: &StoreIdentity) -> Seq {
        self.told_end(origin, identity)
            .unwrap_or_else(|| self.released(origin, &identity.holders))
    }

    /// To where every holder has an origin's log, those that are away beyond the limits, too; all of what is retired elsewhere.
    pub fn agreed_to(&self, origin: Origin, identity: &StoreIdentity) -> Seq {
        self.told_end(origin, identity)
            .unwrap_or_else(|| self.stable(origin, &identity.holders))
    }

    /// The end of a log that is retired elsewhere.
    fn told_end(&self, origin: Origin, identity: &StoreIdentity) -> Option<Seq> {
        let told = self.may_be_told() && self.told_retired(identity.origin).contains_key(&origin);
        told.then(|| self.logs.get(&origin).map_or(0, |log| log.seq))
    }

    /// Whether every holder's last confirmation allows to retire an origin.
    fn may_retire(&self, origin: Origin, log: &LogRow, first: &BTreeSet<RegionId>) -> bool {
        let Some(later) = self.later(origin, log) else {
            return false;
        };
        let agrees = |holder: &RegionId| {
            let Some(said) = self.said(holder) else {
                return false;
            };
            let same = said.applied.of(origin) == log.seq || defect::on(Defect::RetiredEarly);
            let free = said.retired.is_some() && !said.needed.contains(&origin);
            later.is_none_or(|later| said.applied.of(later) > 0)
                && same
                && (free || defect::on(Defect::RetiredEarly))
        };
        let holders = self.holders(first);
        self.here_rests(origin, log) && !self.tells_of_change(origin) && holders.iter().all(agrees)
    }

    /// Whether nothing is left of it here.
    fn here_rests(&self, origin: Origin, log: &LogRow) -> bool {
        log.floor == log.seq && self.old.unneeded.contains(&origin)
    }

    /// A vector from elsewhere without what is retired here.
    pub(super) fn known(&self, vector: &Vector) -> Vector {
        let mut known = vector.clone();
        if !self.old.retired.is_empty() {
            strip(&mut known, &self.old.retired);
        }
        known
    }

    /// What may be logged of a cursor here (R17).
    pub(super) fn clamp(&self, cursor: &Vector) -> Vector {
        clamp(cursor, &self.applied())
    }

    pub(super) fn known_change(&self, change: &DeviceChange) -> DeviceChange {
        match change {
            DeviceChange::Register { epoch, cursor } => DeviceChange::Register {
                epoch: *epoch,
                cursor: self.known(cursor),
            },
            other => other.clone(),
        }
    }

    pub(super) fn apply_needed(&mut self, origin: Origin, needed: bool) {
        if needed {
            self.old.unneeded.remove(&origin);
        } else {
            self.old.unneeded.insert(origin);
            self.old.changed = true;
        }
    }

    pub(super) fn apply_retired(&mut self, origin: Origin, seq: Seq) {
        self.logs.remove(&origin);
        self.old.retired.insert(origin, seq);
        self.old.unneeded.remove(&origin);
        self.old.told.remove(&origin);
        self.old.changed = true;
        for said in self.confirmed.values_mut() {
            said.strip(&self.old.retired);
        }
    }
}

impl ConfirmRow {
    fn names_retired(&self) -> bool {
        self.retired.as_ref().is_some_and(|named| !named.is_empty())
    }

    /// What is retired here leaves what the holder lists; that it listed it is kept, to be told.
    pub(super) fn strip(&mut self, retired: &BTreeMap<Origin, Seq>) {
        let listed = self.applied.iter().map(|(origin, _)| origin);
        let listed: Vec<Origin> = listed.filter(|origin| retired.contains_key(origin)).collect();
        for origin in listed {
            self.applied.remove(origin);
            self.needed.retain(|needed| *needed != origin);
            if !self.stale.contains(&origin) {
                self.stale.push(origin);
            }
        }
    }
}

impl UserRow {
    /// Whether something of an origin waits for a device, or a device has yet to be told of what is gone.
    fn lacks(&self, origin: Origin) -> bool {
        let devices = || self.devices.values().filter(|device| !device.expired);
        let below = |seq: Seq| devices().any(|device| device.cursor.of(origin) < seq);
        let mut gaps = self.gaps.range((origin, 0)..=(origin, Seq::MAX));
        below(self.trimmed.of(origin))
            || gaps.any(|(_, to)| below(*to))
            || below(self.timed.last_of(origin))
            || self.siblings.values().flatten().any(|at| at.origin == origin)
    }

    fn names(&self, retired: &BTreeMap<Origin, Seq>) -> bool {
        let of = |vector: &Vector| names(vector, retired);
        of(&self.trimmed)
            || of(&self.consumed)
            || of(&self.counted)
            || self.devices.values().any(|device| of(&device.cursor))
            || self.siblings.iter().any(|(at, others)| {
                let mut all = others.iter().chain([at]);
                all.any(|at| retired.contains_key(&at.origin))
            })
            || self.gaps.keys().any(|(origin, _)| retired.contains_key(origin))
            || self.timed.names(retired)
    }

    /// Whether messages of retired origins were removed.
    pub(super) fn has_past(&self, retired: &BTreeMap<Origin, Seq>) -> bool {
        let gap = |(origin, _): &(Origin, Seq)| retired.contains_key(origin);
        self.past || names(&self.trimmed, retired) || self.gaps.keys().any(gap)
    }

    /// Drops what is retired.
    pub fn strip(&mut self, retired: &BTreeMap<Origin, Seq>) {
        if retired.is_empty() || !self.names(retired) {
            return;
        }
        self.past = self.has_past(retired);
        strip(&mut self.trimmed, retired);
        strip(&mut self.consumed, retired);
        strip(&mut self.counted, retired);
        for device in self.devices.values_mut() {
            strip(&mut device.cursor, retired);
        }
        self.siblings.retain(|at, _| !retired.contains_key(&at.origin));
        for others in self.siblings.values_mut() {
            *others = without(others, retired);
        }
        self.gaps.retain(|(origin, _), _| !retired.contains_key(origin));
        self.timed.strip(retired);
    }
}

impl UserState {
    /// Whether an origin is needed for this user (R23); `stored`: only as far as its messages wait here.
    pub fn needs(&self, origin: Origin, stored: bool) -> bool {
        self.last(origin) > self.row.trimmed.of(origin) || (!stored && self.row.lacks(origin))
    }

    /// As [`UserRow::strip`], with what was removed long ago.
    pub(super) fn strip(&mut self, retired: &BTreeMap<Origin, Seq>) {
        if self.stripped == retired.len() {
            return;
        }
        self.stripped = retired.len();
        self.inbox.retain(|origin, _| !retired.contains_key(origin));
        self.row.strip(retired);
    }
}

/// What is applied of a cursor: no more is logged (R17). What is gone with retired origins is known as soon as it is told.
pub fn clamp(cursor: &Vector, applied: &Vector) -> Vector {
    let mut clamped = cursor.min(applied);
    clamped.raise(RETIRED, cursor.of(RETIRED).min(KNOWS));
    clamped
}

fn names(vector: &Vector, retired: &BTreeMap<Origin, Seq>) -> bool {
    vector.iter().any(|(origin, _)| retired.contains_key(&origin))
}

/// Drops what is retired from a vector.
pub fn strip(vector: &mut Vector, retired: &BTreeMap<Origin, Seq>) {
    let named = vector.iter().map(|(origin, _)| origin);
    let named: Vec<Origin> = named.filter(|origin| retired.contains_key(origin)).collect();
    for origin in named {
        vector.remove(origin);
    }
}

/// Copies, those in retired origins as [`IN_RETIRED`].
fn without(copies: &BTreeSet<Coord>, retired: &BTreeMap<Origin, Seq>) -> BTreeSet<Coord> {
    let copies = copies.iter().copied();
    copies.map(|at| or_retired(at, retired)).collect()
}

/// A copy, or [`IN_RETIRED`] where its origin is retired.
pub fn or_retired(at: Coord, retired: &BTreeMap<Origin, Seq>) -> Coord {
    if retired.contains_key(&at.origin) {
        IN_RETIRED
    } else {
        at
    }
}

impl UserPage {
    /// Drops what the provider or the receiver retired.
    pub(super) fn strip(&mut self, retired: &BTreeMap<Origin, Seq>) {
        if retired.is_empty() {
            return;
        }
        for device in self.devices.values_mut() {
            strip(&mut device.cursor, retired);
        }
        self.past |= names(&self.trimmed, retired);
        strip(&mut self.trimmed, retired);
        self.gaps.retain(|(origin, _), _| !retired.contains_key(origin));
        self.holes.retain(|(origin, _), _| !retired.contains_key(origin));
        self.siblings.retain(|at, _| !retired.contains_key(&at.origin));
        for others in self.siblings.values_mut() {
            *others = without(others, retired);
        }
        self.entries
            .retain(|entry| !retired.contains_key(&entry.at.origin));
    }
}

impl Cut {
    /// Drops what the receiver retired.
    pub(super) fn strip(&mut self, retired: &BTreeMap<Origin, Seq>) {
        self.logs.retain(|origin, _| !retired.contains_key(origin));
        self.retired.retain(|origin, _| !retired.contains_key(origin));
        for said in self.confirmed.values_mut() {
            said.strip(retired);
        }
    }
}

impl Work<'_> {
    /// Notes what was found not to be needed, retires what may be, and says what is to be looked for.
    pub(super) fn retire(&mut self, unneeded: &[Origin]) -> Outcome {
        let shard = self.shard;
        let told = self.row().row.told_retired(self.state.identity.origin);
        for origin in unneeded.iter().copied() {
            let row = &self.row().row;
            let known = row.logs.get(&origin).is_some_and(|log| log.floor == log.seq);
            let old = row.is_old(origin) || told.contains_key(&origin);
            if known && old && !row.old.unneeded.contains(&origin) {
                let needed = false;
                self.record(Decision::Needed {
                    shard,
                    origin,
                    needed,
                });
            }
        }
        let row = &self.row().row;
        let mut retired: BTreeMap<Origin, Seq> = BTreeMap::new();
        for (origin, seq) in &told {
            match row.logs.get(origin) {
                Some(log) if !row.here_rests(*origin, log) => {}
                _ => {
                    retired.insert(*origin, *seq);
                }
            }
        }
        if !row.recovery.recovers() {
            let holders = &self.state.identity.holders;
            let may = |(origin, log): &(&Origin, &LogRow)| row.may_retire(**origin, log, holders);
            let judged = row.logs.iter().filter(may);
            for (origin, log) in judged {
                retired.entry(*origin).or_insert(log.seq);
            }
        }
        for (origin, seq) in &retired {
            let (origin, seq) = (*origin, *seq);
            self.record(Decision::Retired { shard, origin, seq });
        }
        let row = &self.row().row;
        let rests = |log: &LogRow| log.floor == log.seq;
        let open = row
            .logs
            .iter()
            .filter(|(origin, log)| rests(log) && !row.old.unneeded.contains(origin));
        let look = open.filter_map(|(origin, _)| match told.contains_key(origin) {
            true => Some((*origin, true)),
            false => (row.is_old(*origin) && !row.recovery.recovers()).then_some((*origin, false)),
        });
        let look = look.collect();
        Outcome::Retired(Retirement { retired, look })
    }

    /// What waits of retired origins was consumed by everybody: it goes. Says whether work is left.
    pub(super) fn forgo(&mut self, user: &UserId, origins: &BTreeSet<Origin>) -> Outcome {
        let told = self.row().row.told_retired(self.state.identity.origin);
        let Some(known) = self.row().users.get(user) else {
            return Outcome::Done { more: false };
        };
        let raised = origins.iter().filter_map(|origin| {
            told.contains_key(origin)
                .then_some((*origin, known.last(*origin)))
        });
        let raised: Vector = raised.collect();
        let devices = known
            .row
            .devices
            .iter()
            .filter(|(_, device)| !device.expired && !device.cursor.includes(&raised));
        let devices: BTreeMap<_, _> = devices
            .map(|(name, device)| {
                let row = DeviceRow {
                    epoch: device.epoch,
                    cursor: raised.clone(),
                    ..DeviceRow::default()
                };
                (name.clone(), row)
            })
            .collect();
        if !devices.is_empty() {
            let merged = MergedUser {
                devices,
                ..MergedUser::default()
            };
            self.record(Decision::UserMerged {
                shard: self.shard,
                user: user.clone(),
                merged: Box::new(merged),
            });
        }
        let consumed = self.consume(user);
        self.remove_below(user, &consumed.first, None);
        Outcome::Done { more: consumed.more }
    }

    /// A device that registered or returned, or a copy that came late, may need what nobody needed.
    pub(super) fn look_for_needs(&mut self, user: &UserId) {
        let shard = self.row();
        if shard.row.old.unneeded.is_empty() {
            return;
        }
        let Some(known) = shard.users.get(user) else {
            return;
        };
        let unneeded = shard.row.old.unneeded.iter().copied();
        let again: Vec<Origin> = unneeded.filter(|origin| known.needs(*origin, false)).collect();
        for origin in again {
            let (shard, needed) = (self.shard, true);
            self.record(Decision::Needed {
                shard,
                origin,
                needed,
            });
        }
    }

    /// Drops from a user's row what is retired.
    pub(super) fn strip_user(&mut self, user: &UserId) {
        let id = self.shard;
        if let Some(shard) = self.state.shards.get_mut(&id)
            && !shard.row.old.retired.is_empty()
            && let Some(known) = shard.users.get_mut(user)
        {
            known.strip(&shard.row.old.retired);
        }
    }
}
