//! The regions that keep a shard: how the set of them changes while traffic flows (R13), and what becomes of one that is
//! away for long (R12).
//!
//! **A change** is an operation in the shard's log ([`Op::Holders`](super::op::Op::Holders)) with a version and the whole new
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

use super::commit::{Outcome, Refusal, Work};
use super::ids::{Coord, Origin, RegionId, Seq};
use super::op::Op;
use super::state::{Decision, ShardRow};
use super::time::Hlc;

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
    /// The operation that was first applied here of this change.
    pub at: Coord,
    /// Every member of the new set has confirmed it.
    pub settled: bool,
    /// Removed, and what they took before may still come.
    pub leaving: BTreeSet<RegionId>,
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

impl HolderSet {
    /// What is compared: the higher one counts.
    pub fn rank(&self) -> (u64, &BTreeSet<RegionId>) {
        (self.version, &self.new)
    }

    /// Every region that counts.
    pub fn counting(&self) -> Cow<'_, BTreeSet<RegionId>> {
        match self.settled {
            true => Cow::Borrowed(&self.new),
            false => Cow::Owned(self.new.union(&self.old).cloned().collect()),
        }
    }

    /// The set after a change; `None` where it does not count. `first` is the set before any.
    pub fn changed(
        known: Option<&HolderSet>,
        first: &BTreeSet<RegionId>,
        change: &HoldersChange,
        at: Coord,
    ) -> Option<HolderSet> {
        if known.is_some_and(|known| known.rank() >= change.rank()) {
            return None;
        }
        let old = known.map_or_else(|| first.clone(), |known| known.counting().into_owned());
        let mut leaving: BTreeSet<RegionId> = old.difference(&change.set).cloned().collect();
        leaving.extend(known.into_iter().flat_map(|known| known.leaving.iter().cloned()));
        leaving.retain(|region| !change.gone.contains(region) && !change.set.contains(region));
        Some(HolderSet {
            version: change.version,
            new: change.set.clone(),
            old,
            at,
            settled: false,
            leaving,
        })
    }

    /// Notes whose confirmations cover the change.
    pub fn confirmed(&mut self, covers: impl Fn(&RegionId) -> bool) {
        let settled = self.settled || self.new.iter().all(&covers);
        let leaving = self.leaving.iter().filter(|region| !covers(region));
        self.leaving = leaving.cloned().collect();
        self.settled = settled;
        if settled {
            self.old.clear();
        }
    }
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
            partners.extend(set.leaving.iter().cloned());
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

    /// To where the holders that are not away let an origin's log be trimmed.
    pub(super) fn released(&self, origin: Origin, first: &BTreeSet<RegionId>) -> Seq {
        let holders = self.holders(first);
        let floor = self.logs.get(&origin).map_or(0, |log| log.floor);
        let of = |holder: &RegionId| {
            let said = self.confirmed.get(holder);
            let has = said.map_or(0, |said| said.applied.of(origin));
            match self.holding.marked.get(holder) {
                None => has,
                Some(_) if self.is_back(holder) => has.max(floor),
                Some(_) => Seq::MAX,
            }
        };
        holders.iter().map(of).min().unwrap_or(0)
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
        let reached = |origin: &Origin, floor: Seq| said.is_some_and(|said| said.applied.of(*origin) >= floor);
        self.logs.iter().all(|(origin, log)| reached(origin, log.floor))
    }

    pub(super) fn apply_holders(&mut self, change: &HoldersChange, at: Coord, first: &BTreeSet<RegionId>) {
        if let Some(set) = HolderSet::changed(self.holding.set.as_ref(), first, change, at) {
            self.holding.marked.retain(|region, _| set.new.contains(region));
            self.holding.set = Some(set);
            self.settle_holders();
        }
    }

    /// A snapshot knows of another set.
    pub(super) fn merge_holders(&mut self, theirs: Option<&HolderSet>) {
        let Some(theirs) = theirs else { return };
        let ours = self.holding.set.as_ref();
        if ours.is_none_or(|ours| ours.rank() < theirs.rank()) {
            self.holding.set = Some(theirs.clone());
        }
        self.settle_holders();
    }

    pub(super) fn settle_holders(&mut self) {
        if let Some(set) = &mut self.holding.set
            && (!set.settled || !set.leaving.is_empty())
        {
            let (at, said) = (set.at, &self.confirmed);
            set.confirmed(|region| said.get(region).is_some_and(|said| said.applied.covers(at)));
        }
    }

    pub(super) fn apply_marked(&mut self, holder: &RegionId, at: Option<ConfirmAt>) {
        match at {
            Some(at) => self.holding.marked.insert(holder.clone(), at),
            None => self.holding.marked.remove(holder),
        };
    }

    /// An operation that is no confirmation was logged or applied: it waits for everybody's.
    pub(super) fn count_waiting(&mut self, bytes: usize, hlc: Hlc) {
        self.holding.log_bytes += bytes as u64;
        for said in self.confirmed.values_mut() {
            if said.waits_ms == 0 {
                said.waits_ms = hlc.ms;
            }
        }
    }
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
            if row.is_back(holder) && row.reaches_floors(holder) {
                changes.push((holder.clone(), None));
            }
        }
        for holder in absent.iter().filter(|holder| holders.contains(*holder) && **holder != me) {
            let away = row.holding.marked.contains_key(holder) && !row.is_back(holder);
            let said = row.confirmed.get(holder);
            let has = |origin: &Origin| said.map_or(0, |said| said.applied.of(*origin));
            let holds = row.logs.iter().any(|(origin, log)| log.floor < log.seq && has(origin) < log.seq);
            let waits = said.map_or(0, |said| said.waits_ms);
            let long = by_time && waits > 0 && self.now_ms.saturating_sub(waits) > limits.absent_log_ms;
            if !away && holds && row.holding.log_bytes > 0 && (row.holding.log_bytes > share || long) {
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
