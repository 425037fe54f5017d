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
use crate::core::holders::{HolderSet, HoldersChange};
use crate::core::ids::{Coord, Epoch, RegionId, SessionId, ShardId, UserId};
use crate::core::limits::ms;
use crate::core::msg::ToEdge;
use crate::core::presence::Entry;
use crate::core::state::ShardRow;
use crate::core::storage::StoreError;
use crate::core::time::{Mono, Now};
use crate::core::wire::Code;

/// A change that was seen in another shard comes to each by its own log within so long, or is proposed here, too.
const BY_ITSELF: Duration = Duration::from_secs(10);
/// A holder that confirmed nothing for so long may be away: the length of the log is looked at.
const LATE: Duration = Duration::from_secs(3);
/// A proposal that did not come to anything is made again after so long.
const AGAIN: Duration = Duration::from_secs(2);

/// What the owner of a shard knows of its holders.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// As last changed.
    pub(super) set: Option<HolderSet>,
    /// Operations other than confirmations, so far.
    ops: u64,
    /// How many there were when each holder last confirmed.
    confirmed_at: BTreeMap<RegionId, u64>,
    /// Since when holders have something to confirm and have not.
    quiet: BTreeMap<RegionId, Mono>,
    /// Who is marked, as the store said last.
    marked: BTreeSet<RegionId>,
    /// Its log is too long: it takes no messages.
    pub(super) full: bool,
    /// When a change was proposed last.
    proposed: Option<Mono>,
    /// This region was removed: sessions are to end, and then have.
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
    /// Regions that are marked as needing a snapshot, and in how many shards (R12).
    pub marked: BTreeMap<RegionId, usize>,
}

impl Holders {
    pub(super) fn of(row: &ShardRow, me: &RegionId) -> Self {
        Self {
            set: row.holding.set.clone(),
            marked: row.holding.marked.keys().cloned().collect(),
            removed: row.is_removed(me).then_some(Removed::ToClose),
            // What waited when it was taken over waits from now on.
            ops: u64::from(row.holding.log_bytes > 0),
            ..Self::default()
        }
    }

    pub(super) fn logged(&mut self) {
        self.ops += 1;
    }

    pub(super) fn confirmed(&mut self, holder: &RegionId) {
        self.confirmed_at.insert(holder.clone(), self.ops);
        self.quiet.remove(holder);
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
        partners.extend(self.set.iter().flat_map(|set| set.leaving.iter().cloned()));
        partners
    }

    fn rank(&self) -> Option<(u64, &BTreeSet<RegionId>)> {
        self.set.as_ref().map(HolderSet::rank)
    }

    fn is_settled(&self) -> bool {
        let set = self.set.as_ref();
        set.is_none_or(|set| set.settled && set.leaving.is_empty())
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
        let waits = |holder: &RegionId| known.ops > known.confirmed_at.get(holder).copied().unwrap_or(0);
        let others: Vec<RegionId> = counting.into_iter().filter(|holder| holder != me && waits(holder)).collect();
        known.quiet.retain(|holder, _| others.contains(holder));
        for holder in others {
            known.quiet.entry(holder).or_insert(now.mono);
        }
        let long = |since: &Mono| now.mono.since(*since) >= ms(absent_ms);
        let absent = known.quiet.iter().filter(|(_, since)| long(since));
        let absent: Vec<RegionId> = absent.map(|(holder, _)| holder.clone()).collect();
        let late = known.quiet.values().any(|since| now.mono.since(*since) >= LATE);
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
        if let Some(set) = HolderSet::changed(shard.holders.set.as_ref(), first, change, at) {
            let removed = !set.new.contains(me);
            shard.holders.set = Some(set);
            if !removed {
                let was = shard.holders.removed.take();
                let opens = was == Some(Removed::Closed) && shard.is_open();
                self.active += usize::from(opens);
            } else if shard.holders.removed.is_none() {
                shard.holders.removed = Some(Removed::ToClose);
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
        let Some(set) = &mut shard.holders.set else {
            return;
        };
        if set.settled && set.leaving.is_empty() {
            return;
        }
        let at = set.at;
        let said = &shard.stable;
        set.confirmed(|region| said.get(region).is_some_and(|said| said.covers(at)));
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
                gone: BTreeSet::new(),
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
        let removed = self.shards.iter().filter(|(_, shard)| {
            shard.holders.removed == Some(Removed::ToClose) && shard.epoch.is_some()
        });
        let removed: Vec<ShardId> = removed.map(|(id, _)| *id).collect();
        for id in removed {
            self.close_removed(id, now);
        }
        // What is not taken over yet may wait for others.
        if self.shards.values().any(|shard| shard.epoch.is_none()) {
            self.regions_due = true;
            return;
        }
        let mut regions = BTreeSet::new();
        for shard in self.shards.values() {
            regions.extend(shard.holders.partners(&self.config.holders));
        }
        if self.regions != regions && !self.shards.is_empty() {
            let left = self.regions.difference(&regions).cloned();
            let left: Vec<RegionId> = left.filter(|region| *region != self.config.me.node.region).collect();
            for region in &left {
                self.end_region(region, now);
            }
            self.regions = regions.clone();
            self.out.push_back(OwnerOutput::Regions(regions));
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
                ended.extend(records.filter(|record| {
                    record.value().is_some_and(|live| live.region == *region)
                }));
            }
            for record in ended {
                let version = record.version();
                let (user, device) = (record.user().clone(), record.device().clone());
                let end = Entry::ended(user.clone(), device.clone(), version.connect_epoch, version.session);
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
