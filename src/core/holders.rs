//! The regions that keep a shard: how the set of them changes while traffic flows (R13), and what becomes of one that is
//! away for long (R12).
//!
//! **A change** is an operation in the shard's log ([`Op::Holders`]) with a version and the whole new
//! set, because everything that it must be in order with is there: whoever applied it has applied what came before, and each
//! region's own confirmations say that it has. Of two changes the higher version counts, of one version the greater set, so
//! that all regions come to the same whatever arrives first. From the operation on both the old and the new set count, until
//! every member of the new one has confirmed it; so nothing leaves a log that a new region has yet to get, and it gets what
//! is there by snapshot, as it begins with nothing.
//!
//! **A region that is removed** takes nothing more from the moment at which it applies the operation. What it took before
//! stands in its log before its confirmation of it, and is pulled until that arrives ([`HolderSet::leaving`]); unless an
//! operator says that it is gone. It comes back as a new origin on an empty disk.
//!
//! **A holder that is away** pins logs up to a limit in bytes and one in time. Each region decides that for its own copies of
//! the logs, so the mark is not shipped. The limit in bytes is the region's divided by its shards: the sum of all shards is
//! the region's limit, whatever the order of commits. Who is away is the owner's knowledge, by a clock that cannot jump;
//! the commit judges bytes and times. A mark holds until a later confirmation of the holder comes: from then on the logs wait
//! for it where they begin now, and the mark goes when its confirmations have reached that, by log or by snapshot. It could
//! be marked again meanwhile.
//!
//! A log that is twice that long is full. Who deposits is refused by the owner, before the commit, so that no later message of
//! a session overtakes an earlier one (R21).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::commit::{HOLDER_LOOK, Outcome, Refusal, StoreOp, Work};
use super::defect::{self, Defect};
use super::ids::{Coord, Origin, RegionId, Seq};
use super::op::{Op, kind};
use super::state::{ConfirmRow, Decision, Next, ShardRow, ShardState, StoreIdentity};
use super::time::Hlc;
use super::vector::Vector;

/// Names a confirmation: they are in this order.
pub type ConfirmAt = (Hlc, Origin, Seq);

/// What a shard knows of its holders beside their confirmations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holding {
    /// Bytes of the operations in its logs, without confirmations.
    pub log_bytes: u64,
    /// Holders that need a snapshot and do not hold logs back (R12), with the last confirmation known of them by then.
    pub marked: BTreeMap<RegionId, ConfirmAt>,
    /// It recovers for a snapshot because it was away, and lost nothing.
    pub whole: bool,
    /// This store was removed while it kept the shard: it comes back, if at all, as an empty one.
    #[serde(default)]
    pub out: bool,
    /// As last changed; `None` while the set is the one that the store was begun with.
    pub set: Option<HolderSet>,
}

/// A set of holders and the change that made it (R13).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderSet {
    /// Rises with each change.
    pub version: u64,
    /// The set.
    pub new: BTreeSet<RegionId>,
    /// The set before, which counts as well until the change is settled; then empty.
    pub old: BTreeSet<RegionId>,
    /// The operations applied here that say so: one, or several where more than one region proposed it. Who has confirmed
    /// one of them knows.
    pub at: BTreeSet<Coord>,
    /// Every member of the new set has confirmed it.
    pub settled: bool,
    /// Removed, and what they took before may still come.
    pub leaving: BTreeMap<RegionId, Leaving>,
    /// As in the change.
    pub gone: BTreeSet<RegionId>,
}

/// A region that was removed. It says with its last confirmation that it knows, and logs nothing after that.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leaving {
    /// Of the change that removed it.
    pub version: u64,
    /// The operations that say so, as in [`HolderSet::at`].
    pub at: BTreeSet<Coord>,
}

/// A change of the holders, as an operator asks for it and as logs carry it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct HoldersChange {
    /// Above that of the change before.
    pub version: u64,
    /// The whole new set.
    pub set: BTreeSet<RegionId>,
    /// Of those that it removes, regions that will not come back: nobody waits for what they had.
    pub gone: BTreeSet<RegionId>,
}

/// The regions that a partition has links with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Partners {
    /// Those that keep some shard, or leave, this one included.
    pub all: BTreeSet<RegionId>,
    /// Of those, the ones that keep every shard and stay: what they have is a copy (`durability = "geo"`).
    pub staying: BTreeSet<RegionId>,
    /// The last change of any shard.
    pub change: Option<HoldersChange>,
}

impl Holding {
    /// For rows that never had any of it: they stay as they were.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl HolderSet {
    /// What is compared: the higher one counts.
    pub fn rank(&self) -> (u64, &BTreeSet<RegionId>) {
        (self.version, &self.new)
    }

    /// Every region that counts. One that leaves does until it said that it knows: who registers there meanwhile has a say.
    pub fn counting(&self) -> Cow<'_, BTreeSet<RegionId>> {
        if (self.settled && self.leaving.is_empty()) || defect::on(Defect::NewSetAtOnce) {
            return Cow::Borrowed(&self.new);
        }
        let before = self.old.iter().chain(self.leaving.keys());
        Cow::Owned(self.new.iter().chain(before).cloned().collect())
    }

    /// A change was applied; whether the set is another one by that. `first` is the set before any.
    pub fn change(
        known: &mut Option<HolderSet>,
        first: &BTreeSet<RegionId>,
        change: &HoldersChange,
        at: Coord,
    ) -> bool {
        if let Some(known) = known {
            // Of two changes of one version only one may remove a region: who knows of the other knows nothing of that.
            let ours = known.leaving.iter_mut();
            for (_, leaving) in ours.filter(|(region, leaving)| {
                leaving.version == change.version && !change.set.contains(*region)
            }) {
                leaving.at.insert(at);
            }
            if known.rank() == change.rank() {
                known.at.insert(at);
                known.give_up(&change.gone);
            }
            if known.rank() >= change.rank() {
                return false;
            }
        }
        let old = known
            .as_ref()
            .map_or_else(|| first.clone(), |known| known.counting().into_owned());
        let mut leaving = known.take().map(|known| known.leaving).unwrap_or_default();
        for region in old.difference(&change.set) {
            let removed = Leaving {
                version: change.version,
                at: BTreeSet::from([at]),
            };
            leaving.entry(region.clone()).or_insert(removed);
        }
        leaving.retain(|region, _| !change.gone.contains(region) && !change.set.contains(region));
        if defect::on(Defect::LeaverForgotten) {
            leaving.clear();
        }
        *known = Some(HolderSet {
            version: change.version,
            new: change.set.clone(),
            old: old.difference(&change.gone).cloned().collect(),
            at: BTreeSet::from([at]),
            settled: false,
            leaving,
            gone: change.gone.clone(),
        });
        true
    }

    /// Nobody waits for these any more.
    fn give_up(&mut self, gone: &BTreeSet<RegionId>) {
        self.old.retain(|region| !gone.contains(region));
        self.leaving.retain(|region, _| !gone.contains(region));
        self.gone.extend(gone.iter().cloned());
    }

    /// Notes who knows, by what each region confirmed.
    ///
    /// An origin that is retired was applied to its end by every region that counted, and is named by none any more.
    pub fn confirmed<'a>(
        &mut self,
        said: impl Fn(&RegionId) -> Option<&'a Vector>,
        retired: &BTreeMap<Origin, Seq>,
    ) {
        let knows = |region: &RegionId, at: &BTreeSet<Coord>| {
            said(region).is_some_and(|said| covers(said, at, retired))
        };
        self.leaving.retain(|region, leaving| !knows(region, &leaving.at));
        self.settled |= self.new.iter().all(|region| knows(region, &self.at));
        if self.settled {
            self.old.clear();
        }
    }

    /// Whether it waits for nobody.
    pub fn is_done(&self) -> bool {
        self.settled && self.leaving.is_empty()
    }
}

/// Whether who confirmed this knows of a change.
fn covers(said: &Vector, at: &BTreeSet<Coord>, retired: &BTreeMap<Origin, Seq>) -> bool {
    at.iter()
        .any(|at| said.covers(*at) || retired.contains_key(&at.origin))
}

impl HoldersChange {
    /// What is compared: the higher one counts.
    pub fn rank(&self) -> (u64, &BTreeSet<RegionId>) {
        (self.version, &self.set)
    }
}

impl ShardRow {
    /// The holders that count; `first` is the set that the store was begun with.
    pub fn holders<'a>(&'a self, first: &'a BTreeSet<RegionId>) -> Cow<'a, BTreeSet<RegionId>> {
        match &self.holding.set {
            None => Cow::Borrowed(first),
            Some(set) => set.counting(),
        }
    }

    /// Every region that this one has a link with: the holders, and those that leave.
    pub fn partners(&self, first: &BTreeSet<RegionId>) -> BTreeSet<RegionId> {
        let mut partners = self.holders(first).into_owned();
        if let Some(set) = &self.holding.set {
            partners.extend(set.leaving.keys().cloned());
        }
        partners
    }

    /// The version of the set of holders; 0 before the first change.
    pub fn holders_version(&self) -> u64 {
        self.holding.set.as_ref().map_or(0, |set| set.version)
    }

    /// Whether a region was removed from the holders.
    pub fn is_removed(&self, region: &RegionId) -> bool {
        let set = self.holding.set.as_ref();
        set.is_some_and(|set| !set.new.contains(region))
    }

    /// What a holder confirmed last. Of one that a change adds nothing counts from before it knew of that: it may have kept the
    /// shard once, and begins with nothing.
    pub fn said(&self, holder: &RegionId) -> Option<&ConfirmRow> {
        let set = self.holding.set.as_ref().filter(|set| !set.settled);
        let came = set.filter(|set| set.new.contains(holder) && !set.old.contains(holder));
        let said = self.confirmed.get(holder)?;
        came.is_none_or(|set| covers(&said.applied, &set.at, &self.old.retired))
            .then_some(said)
    }

    /// Whether an origin has to stay listed: confirmations of it say who knows of a change.
    pub(super) fn tells_of_change(&self, origin: Origin) -> bool {
        let set = self.holding.set.as_ref();
        set.is_some_and(|set| {
            let leaving = set.leaving.values().flat_map(|leaving| &leaving.at);
            let waits = set.at.iter().filter(|_| !set.settled).chain(leaving);
            waits.into_iter().any(|at| at.origin == origin)
        })
    }

    /// To where the holders that are not away let an origin's log be trimmed.
    pub(super) fn released(&self, origin: Origin, first: &BTreeSet<RegionId>) -> Seq {
        self.released_without(origin, first, &BTreeSet::new())
    }

    /// The same if these holders let all go.
    pub(super) fn released_without(
        &self,
        origin: Origin,
        first: &BTreeSet<RegionId>,
        without: &BTreeSet<RegionId>,
    ) -> Seq {
        let holders = self.holders(first);
        let floor = self.logs.get(&origin).map_or(0, |log| log.floor);
        let of = |holder: &RegionId| {
            let has = self.said(holder).map_or(0, |said| said.applied.of(origin));
            match self.holding.marked.get(holder) {
                None => has,
                Some(_) if self.is_back(holder) => has.max(floor),
                Some(_) => Seq::MAX,
            }
        };
        let counts = holders.iter().filter(|holder| !without.contains(*holder));
        match holders.is_empty() {
            true => 0,
            false => counts.map(of).min().unwrap_or(Seq::MAX),
        }
    }

    /// Whether a holder that was marked confirmed something since.
    fn is_back(&self, holder: &RegionId) -> bool {
        let mark = self.holding.marked.get(holder);
        let said = self.confirmed.get(holder);
        mark.is_some_and(|mark| said.is_some_and(|said| said.at > *mark))
    }

    /// Whether a holder has confirmed everything below the beginnings of the logs.
    fn reaches_floors(&self, holder: &RegionId) -> bool {
        let said = self.confirmed.get(holder);
        let reached =
            |origin: &Origin, floor: Seq| said.is_some_and(|said| said.applied.of(*origin) >= floor);
        self.logs.iter().all(|(origin, log)| reached(origin, log.floor))
    }

    /// Whether this region, `me`, keeps the shard no more, be it that it was added again since: that is for a new store.
    pub fn is_out(&self, me: &RegionId) -> bool {
        self.holding.out || self.is_removed(me)
    }

    pub(super) fn apply_holders(&mut self, change: &HoldersChange, at: Coord, identity: &StoreIdentity) {
        let (me, first) = (&identity.region, &identity.holders);
        let before = self.holders_version();
        if HolderSet::change(&mut self.holding.set, first, change, at) {
            // Who recovers reads of removals from before it came.
            self.holding.out |= !change.set.contains(me) && !self.recovery.recovers();
            // Another change of that version counts, and keeps it: it was never removed.
            self.holding.out &= before != change.version || !change.set.contains(me);
            self.holding
                .marked
                .retain(|region, _| change.set.contains(region));
        }
        self.settle_holders();
    }

    /// A snapshot knows of another set.
    pub(super) fn merge_holders(&mut self, theirs: Option<&HolderSet>) {
        let Some(theirs) = theirs else { return };
        match &mut self.holding.set {
            Some(ours) if ours.rank() > theirs.rank() => {}
            // Who knows of a change knows of the same one, wherever it was first applied.
            Some(ours) if ours.rank() == theirs.rank() => {
                ours.leaving
                    .retain(|region, _| theirs.leaving.contains_key(region));
                ours.at.extend(&theirs.at);
                ours.give_up(&theirs.gone);
                if theirs.settled {
                    ours.settled = true;
                    ours.old.clear();
                }
            }
            ours => *ours = Some(theirs.clone()),
        }
        self.settle_holders();
    }

    pub(super) fn settle_holders(&mut self) {
        if let Some(set) = self.holding.set.as_mut().filter(|set| !set.is_done()) {
            let said = &self.confirmed;
            set.confirmed(
                |region| said.get(region).map(|said| &said.applied),
                &self.old.retired,
            );
        }
    }

    pub(super) fn apply_marked(&mut self, holder: &RegionId, at: Option<ConfirmAt>) {
        match at {
            Some(at) => self.holding.marked.insert(holder.clone(), at),
            None => self.holding.marked.remove(holder),
        };
    }
}

/// From where on a holder has yet to confirm each log.
pub(super) fn waits_from<'a>(
    shard: &'a ShardState,
    holder: &RegionId,
) -> impl Iterator<Item = (Origin, Seq)> + use<'a> {
    let said = shard.row.confirmed.get(holder);
    let logs = shard.row.logs.iter();
    logs.map(move |(origin, log)| {
        let has = said.map_or(0, |said| said.applied.of(*origin));
        (*origin, has.max(log.floor))
    })
}

impl Work<'_> {
    /// Marks holders that are away beyond the limits, and takes marks from those that are back (R12).
    pub(super) fn mark(&mut self, absent: &[RegionId], by_time: bool) -> Outcome {
        let (shard, identity) = (self.shard, &self.state.identity);
        let (limits, me) = (identity.limits.clone(), identity.region.clone());
        let share = limits.absent_log_bytes / u64::from(identity.sharding.count.max(1));
        let holders = self.row().row.holders(&identity.holders).into_owned();
        let row = &self.row().row;
        let mut changes: Vec<(RegionId, Option<ConfirmAt>)> = Vec::new();
        for holder in row.holding.marked.keys() {
            // One may have been marked while it left.
            if !holders.contains(holder) || (row.is_back(holder) && row.reaches_floors(holder)) {
                changes.push((holder.clone(), None));
            }
        }
        for holder in absent
            .iter()
            .filter(|holder| holders.contains(*holder) && **holder != me)
        {
            let away = row.holding.marked.contains_key(holder) && !row.is_back(holder);
            let Some(waits_ms) = self.waits_for(holder).filter(|_| !away) else {
                continue;
            };
            let long = by_time && self.now_ms.saturating_sub(waits_ms) > limits.absent_log_ms;
            let beyond = row.holding.log_bytes > share || long;
            if beyond || defect::on(Defect::MarkedEarly) {
                let said = row.confirmed.get(holder);
                let at = said.map_or_else(ConfirmAt::default, |said| said.at);
                changes.push((holder.clone(), Some(at)));
            }
        }
        for (region, at) in changes {
            self.record(Decision::Marked { shard, region, at });
        }
        let holding = &self.row().row.holding;
        Outcome::Marked {
            marked: holding.marked.keys().cloned().collect(),
            full: holding.log_bytes > share.saturating_mul(2),
        }
    }

    /// Whether an operation is an own one of a region that was removed. Of those it confirms that it knows, and no more: the
    /// others wait for that.
    pub(super) fn is_out(&self, op: &StoreOp) -> bool {
        let (row, me) = (&self.row().row, &self.state.identity.region);
        if !row.is_out(me) || !op.is_own() {
            return false;
        }
        let set = row.holding.set.as_ref();
        let said = row.confirmed.get(me);
        let retired = &row.old.retired;
        let told = set.is_none_or(|set| said.is_some_and(|said| covers(&said.applied, &set.at, retired)));
        told || !row.is_removed(me) || !matches!(op, StoreOp::Confirm { .. })
    }

    /// Since when a log waits for a holder: the hybrid time of the first operation in it, confirmations left out, that the
    /// holder has not confirmed.
    fn waits_for(&self, holder: &RegionId) -> Option<u64> {
        let shard = self.row();
        let positions = waits_from(shard, holder);
        let waits = positions.filter_map(|(origin, after)| {
            let series = shard.logs.get(&origin)?;
            let mut after = after;
            for _ in 0..HOLDER_LOOK {
                match series.next(after) {
                    Next::Item(seq, (_, op)) if op.kind() == kind::CONFIRM => after = seq,
                    Next::Item(_, (_, op)) => return Some(op.hlc().ms),
                    _ => return None,
                }
            }
            None
        });
        waits.min()
    }

    /// Logs a change of the holders, unless it is known or another one counts.
    pub(super) fn change_holders(&mut self, change: &HoldersChange) -> Outcome {
        let known = self.row().row.holding.set.as_ref();
        match known.map(|known| known.rank().cmp(&change.rank())) {
            Some(std::cmp::Ordering::Greater) => {
                let version = self.row().row.holders_version();
                Outcome::Refused(Refusal::HoldersKnown { version })
            }
            Some(std::cmp::Ordering::Equal) => Outcome::Done { more: false },
            _ => {
                self.log(&Op::Holders(change.clone()));
                Outcome::Done { more: false }
            }
        }
    }
}

#[cfg(test)]
mod tests;
