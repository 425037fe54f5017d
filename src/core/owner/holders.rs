//! The holders of the owned shards: who is away (R12), and changes of the set (R13).
//!
//! Who is away is seen here, by the monotonic clock: something was logged, and a holder has confirmed nothing since. The
//! commit judges whether it is to be marked ([`StoreOp::Mark`]). A change that an operator asks for is proposed for every
//! shard that is open here; so is one that was seen in the log of any shard and did not come to another within a while, as
//! after a crash of the node that began it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{LaneId, Owner, OwnerOutput, Shard, Tag};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::holders::{HolderSet, HoldersChange, Partners};
use crate::core::ids::{Coord, Epoch, RegionId, SessionId, ShardId, UserId};
use crate::core::limits::ms;
use crate::core::msg::ToEdge;
use crate::core::presence::Entry;
use crate::core::state::ShardRow;
use crate::core::storage::StoreError;
use crate::core::time::{Mono, Now};
use crate::core::vector::Vector;
use crate::core::wire::Code;

/// A change that was seen in another shard comes to each by its own log within so long, or is proposed here, too.
const BY_ITSELF: Duration = Duration::from_secs(10);
/// A holder that confirmed nothing for so long may be away: the length of the log is looked at.
const LATE: Duration = Duration::from_secs(3);
/// Where somebody is away and nothing happens, that is looked at again after so long: the limit in time is days.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// A proposal that did not come to anything is made again after so long.
const AGAIN: Duration = Duration::from_secs(2);

/// What the owner of a shard knows of its holders.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// As last changed.
    pub(super) set: Option<HolderSet>,
    /// Whom a snapshot names while this shard recovers: what it lacks may be with one of them. They count when it is open.
    pub(super) named: BTreeSet<RegionId>,
    /// The last operation of each origin that is no confirmation.
    news: Vector,
    /// Holders that have yet to confirm something: what, and since when it is known that they have not.
    quiet: BTreeMap<RegionId, (Vector, Mono)>,
    /// When they are looked at again although nothing happens.
    look_at: Option<Mono>,
    /// Who is marked, as the store said last.
    marked: BTreeSet<RegionId>,
    /// Its log is too long: it takes no messages.
    pub(super) full: bool,
    /// When a change was proposed last.
    proposed: Option<Mono>,
    /// This region was removed for good.
    out: bool,
    /// This region does not keep the shard: sessions are to end, and then have.
    pub(super) removed: Option<Removed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    ToClose,
    Closed,
}

/// A change that every shard is to have.
#[derive(Debug)]
pub(super) struct Target {
    change: HoldersChange,
    /// Proposed from here on.
    from: Mono,
    /// Every shard that is owned here has it.
    done: bool,
}

/// How far a change of the holders is, over the shards that a partition owns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HoldersStatus {
    /// The change that every shard is to have; version 0 where there was none.
    pub target: HoldersChange,
    /// Shards owned here.
    pub shards: usize,
    /// Of those, shards that have the change.
    pub changed: usize,
    /// Of those, shards in which every member of the new set has confirmed it, and all that leave are done.
    pub settled: usize,
    /// Regions that some shard counts, or waits for.
    pub regions: BTreeSet<RegionId>,
    /// Of those, regions that are added and have not confirmed that in every shard.
    pub coming: BTreeSet<RegionId>,
    /// Of those, regions that were removed and whose last operations some shard waits for.
    pub leaving: BTreeSet<RegionId>,
    /// Regions that are marked as needing a snapshot, and in how many shards (R12).
    pub marked: BTreeMap<RegionId, usize>,
}

impl Holders {
    pub(super) fn of(row: &ShardRow, me: &RegionId) -> Self {
        Self {
            set: row.holding.set.clone(),
            marked: row.holding.marked.keys().cloned().collect(),
            out: row.holding.out,
            removed: row.is_out(me).then_some(Removed::ToClose),
            // What waited when it was taken over waits from now on.
            news: row.applied(),
            ..Self::default()
        }
    }

    pub(super) fn logged(&mut self, at: Coord) {
        self.news.raise(at.origin, at.seq);
    }

    /// Whether somebody is away and is to be looked at although nothing happens.
    pub(super) fn looks_due(&self, now: Mono) -> bool {
        // One that is full may have been trimmed since, and what it refuses is logged by nobody.
        self.full || self.look_at.is_some_and(|at| at <= now)
    }

    /// Every region that counts.
    pub(super) fn counting(&self, first: &BTreeSet<RegionId>) -> BTreeSet<RegionId> {
        match &self.set {
            None => first.clone(),
            Some(set) => set.counting().into_owned(),
        }
    }

    fn partners(&self, first: &BTreeSet<RegionId>) -> BTreeSet<RegionId> {
        let mut partners = self.counting(first);
        partners.extend(self.set.iter().flat_map(|set| set.leaving.keys().cloned()));
        partners.extend(self.named.iter().cloned());
        partners
    }

    /// Whether a region keeps the shard and is not removed.
    fn stays(&self, region: &RegionId, first: &BTreeSet<RegionId>) -> bool {
        match &self.set {
            None => first.contains(region),
            Some(set) => set.new.contains(region),
        }
    }

    fn rank(&self) -> Option<(u64, &BTreeSet<RegionId>)> {
        self.set.as_ref().map(HolderSet::rank)
    }

    fn is_settled(&self) -> bool {
        let set = self.set.as_ref();
        set.is_none_or(HolderSet::is_done)
    }
}

impl Shard {
    /// Asks for marks where somebody is away, or was.
    pub(super) fn mark_op(
        &mut self,
        id: ShardId,
        epoch: Epoch,
        (first, me): (&BTreeSet<RegionId>, &RegionId),
        (absent_ms, by_time): (u64, bool),
        now: Now,
    ) -> Option<OwnerOutput> {
        let known = &mut self.holders;
        let counting = known.counting(first);
        let said = |holder: &RegionId, what: &Vector| {
            let said = self.stable.get(holder);
            what.iter().all(|(origin, seq)| {
                self.look.retired.contains_key(&origin) || said.is_some_and(|said| said.of(origin) >= seq)
            })
        };
        known.quiet.retain(|holder, _| counting.contains(holder));
        for holder in counting.into_iter().filter(|holder| holder != me) {
            let behind = known.quiet.get(&holder).filter(|(what, _)| !said(&holder, what));
            if behind.is_some() {
                continue;
            }
            if said(&holder, &known.news) {
                known.quiet.remove(&holder);
            } else {
                known.quiet.insert(holder, (known.news.clone(), now.mono));
            }
        }
        let long = |since: &Mono| now.mono.since(*since) >= ms(absent_ms);
        let absent = known.quiet.iter().filter(|(_, (_, since))| long(since));
        let absent: Vec<RegionId> = absent.map(|(holder, _)| holder.clone()).collect();
        let late = known
            .quiet
            .values()
            .any(|(_, since)| now.mono.since(*since) >= LATE);
        known.look_at = (!known.quiet.is_empty()).then(|| now.mono + LOOK_AGAIN);
        if absent.is_empty() && !late && known.marked.is_empty() && !known.full {
            return None;
        }
        let op = StoreOp::Mark {
            shard: id,
            epoch,
            absent,
            by_time,
        };
        Some(OwnerOutput::Commit(op, Tag::Mark(id)))
    }
}

impl Owner {
    pub(super) fn marked(&mut self, id: ShardId, outcome: Result<Outcome, StoreError>, now: Now) {
        match outcome {
            Ok(Outcome::Marked { marked, full }) => {
                if let Some(shard) = self.shards.get_mut(&id) {
                    // What may be trimmed is another by now.
                    shard.dirty |= shard.holders.marked != marked;
                    shard.holders.marked = marked;
                    shard.holders.full = full;
                }
            }
            Ok(Outcome::Refused(Refusal::Fenced { .. })) => self.handle_fenced(id, now),
            _ => {}
        }
    }

    /// An operator asks for a change of the holders, of every shard that is owned here.
    pub fn handle_holders(&mut self, change: HoldersChange, now: Now) {
        self.aim(change, now.mono);
        self.propose(now);
    }

    /// Shards that this region does not keep any more.
    pub fn removed_count(&self) -> usize {
        if self.all_active() {
            return 0;
        }
        let shards = self.shards.values();
        shards.filter(|shard| shard.holders.removed.is_some()).count()
    }

    /// How far the last change is.
    pub fn holders_status(&self) -> HoldersStatus {
        let target = self.target.as_ref().map(|target| target.change.clone());
        let mut status = HoldersStatus {
            target: target.unwrap_or_default(),
            ..HoldersStatus::default()
        };
        let rank = (status.target.version, status.target.set.clone());
        for shard in self.shards.values().filter(|shard| shard.epoch.is_some()) {
            let known = &shard.holders;
            status.shards += 1;
            let has = known.rank() >= Some((rank.0, &rank.1)) || rank.0 == 0;
            status.changed += usize::from(has);
            status.settled += usize::from(has && known.is_settled());
            status.regions.extend(known.partners(&self.config.holders));
            let leaving = known.set.iter().flat_map(|set| set.leaving.keys());
            status.leaving.extend(leaving.cloned());
            let running = known.set.iter().filter(|set| !set.settled);
            let coming = running.flat_map(|set| set.new.difference(&set.old));
            status.coming.extend(coming.cloned());
            for region in &known.marked {
                *status.marked.entry(region.clone()).or_default() += 1;
            }
        }
        status
    }

    /// A change of the holders was committed.
    pub(super) fn holders_changed(&mut self, id: ShardId, change: &HoldersChange, at: Coord) {
        let first = &self.config.holders;
        let me = &self.config.me.node.region;
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let before = shard.holders.set.as_ref().map_or(0, |set| set.version);
        if HolderSet::change(&mut shard.holders.set, first, change, at) {
            let removed = !change.set.contains(me);
            // As in the store: another change of that version counts, and keeps it.
            shard.holders.out &= removed || before != change.version;
            // One that was open does not open again: it comes back as an empty store.
            shard.holders.out |= removed && !shard.recovery.on;
            if removed {
                shard.holders.removed.get_or_insert(Removed::ToClose);
            } else if !shard.holders.out {
                let was = shard.holders.removed.take();
                self.active += usize::from(was == Some(Removed::Closed) && shard.is_open());
            }
        }
        self.settle_holders(id);
        self.regions_due = true;
        let from = self.now + BY_ITSELF;
        self.aim(change.clone(), from);
    }

    /// Somebody confirmed: perhaps the last one whom a change waits for.
    pub(super) fn settle_holders(&mut self, id: ShardId) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let waits = |set: &&mut HolderSet| !set.is_done();
        let Some(set) = shard.holders.set.as_mut().filter(waits) else {
            return;
        };
        let said = &shard.stable;
        set.confirmed(|region| said.get(region), &shard.look.retired);
        self.regions_due = true;
    }

    fn aim(&mut self, change: HoldersChange, from: Mono) {
        let known = self.target.as_ref().map(|target| target.change.rank());
        if known < Some(change.rank()) {
            let done = false;
            self.target = Some(Target { change, from, done });
        } else if known == Some(change.rank())
            && let Some(target) = &mut self.target
        {
            target.from = target.from.min(from);
        }
    }

    /// Learns from the head of a shard that was taken over.
    pub(super) fn aim_of(&mut self, row: &ShardRow) {
        if let Some(set) = &row.holding.set {
            let change = HoldersChange {
                version: set.version,
                set: set.new.clone(),
                gone: set.gone.clone(),
            };
            let from = self.now + BY_ITSELF;
            self.aim(change, from);
        }
        // It may lack a change that the others have.
        if let Some(target) = &mut self.target {
            target.done = false;
        }
        self.regions_due = true;
    }

    /// Proposes the change for shards that do not have it.
    pub(super) fn propose(&mut self, now: Now) {
        let due = |target: &&mut Target| target.from <= now.mono && !target.done;
        let Some(target) = self.target.as_mut().filter(due) else {
            return;
        };
        target.done = true;
        for (id, shard) in &mut self.shards {
            let has = shard.holders.rank() >= Some(target.change.rank());
            target.done &= has && shard.epoch.is_some();
            let Some(epoch) = shard.open_epoch() else { continue };
            let known = &mut shard.holders;
            let recently = known.proposed.is_some_and(|at| now.mono.since(at) < AGAIN);
            if has || recently {
                continue;
            }
            known.proposed = Some(now.mono);
            let op = StoreOp::Holders {
                shard: *id,
                epoch,
                change: target.change.clone(),
            };
            self.out.push_back(OwnerOutput::Commit(op, Tag::Holders(*id)));
        }
    }

    /// Closes what this region does not keep any more, and tells of the regions that count.
    pub(super) fn holders_tick(&mut self, now: Now) {
        self.propose(now);
        if !std::mem::take(&mut self.regions_due) {
            return;
        }
        let removed = self
            .shards
            .iter()
            .filter(|(_, shard)| shard.holders.removed == Some(Removed::ToClose) && shard.epoch.is_some());
        let removed: Vec<ShardId> = removed.map(|(id, _)| *id).collect();
        for id in removed {
            self.close_removed(id, now);
        }
        // What is not taken over yet may wait for others.
        if self.shards.values().any(|shard| shard.epoch.is_none()) {
            self.regions_due = true;
            return;
        }
        let first = &self.config.holders;
        let mut regions = BTreeSet::new();
        for shard in self.shards.values() {
            regions.extend(shard.holders.partners(first));
        }
        let mut staying = regions.clone();
        for shard in self.shards.values() {
            staying.retain(|region| shard.holders.stays(region, first));
        }
        let told = Partners {
            all: regions,
            staying,
            change: self.target.as_ref().map(|target| target.change.clone()),
        };
        let news = !self.partners_told || self.partners != told;
        if news && !self.shards.is_empty() {
            let left = self.partners.all.difference(&told.all).cloned();
            let left: Vec<RegionId> = left
                .filter(|region| *region != self.config.me.node.region)
                .collect();
            for region in &left {
                self.end_region(region, now);
            }
            self.partners = told.clone();
            self.partners_told = true;
            self.out.push_back(OwnerOutput::Regions(told));
        }
    }

    /// A region left: what it was the only one to write, its sessions, has ended. All others come to the same.
    fn end_region(&mut self, region: &RegionId, now: Now) {
        let ids: Vec<ShardId> = self.shards.keys().copied().collect();
        for id in ids {
            let Some(shard) = self.shards.get_mut(&id) else {
                continue;
            };
            let users: Vec<UserId> = shard.presence.users_in(region).cloned().collect();
            let mut ended = Vec::new();
            for user in &users {
                let records = shard.presence.records_of(user);
                ended.extend(
                    records.filter(|record| record.value().is_some_and(|live| live.region == *region)),
                );
            }
            for record in ended {
                let version = record.version();
                let (user, device) = (record.user().clone(), record.device().clone());
                let end = Entry::ended(
                    user.clone(),
                    device.clone(),
                    version.connect_epoch,
                    version.session,
                );
                let Ok(end) = end else { continue };
                shard.presence.merge(end);
                self.out.push_back(OwnerOutput::PresenceChanged {
                    shard: id,
                    user,
                    device,
                    from: None,
                });
            }
            self.presence_touched(id, now);
        }
        self.handle_reach(region, None);
    }

    fn close_removed(&mut self, id: ShardId, now: Now) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let was_open = shard.epoch.is_some() && !shard.recovery.on;
        shard.holders.removed = Some(Removed::Closed);
        self.active -= usize::from(was_open);
        let sessions: Vec<SessionId> = self.shards[&id].sessions.keys().copied().collect();
        for session in sessions {
            let why = "this region was removed from the cluster: connect to another one";
            self.end_session(id, session, Code::Unavailable, why, now);
        }
        let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
        for lane in lanes {
            self.tell_edge(lane, ToEdge::NotOwner(vec![id]));
        }
    }
}
