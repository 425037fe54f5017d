//! Disks that are replaced and backups that are restored, and what is lost with them.
//!
//! What only the lost disk held may be gone: messages that were accepted there and not applied anywhere else yet, and
//! with them registrations and cursors. Nothing else may be. What was under way to another region when the disk was lost
//! still arrives there; so what counts as lost is looked up when it matters, not when it happened.

use std::collections::BTreeSet;

use super::check::Durable;
use super::storage::Medium;
use super::trace::Micros;
use super::world::{Event, World};
use crate::core::ids::{Coord, Origin, Seq, ShardId};
use crate::core::op::Op;

/// A copy of a store and what was durable in it.
pub(super) struct Backup {
    medium: Medium,
    durable: Durable,
}

impl World {
    /// A region's disk is gone: its node starts again with an empty store under the same name, which joins.
    pub(super) fn disk_replaced(&mut self, region: usize, lasts: Option<Micros>) -> Result<(), &'static str> {
        self.may_lose(region)?;
        let core = self.core_of(region);
        self.kill(core);
        let medium = self.stores[region].replace_disk();
        drop(medium);
        // Its operator has the files of all regions that there are by now.
        let holders = self.holding();
        self.stores[region].begin_with(holders);
        self.forget_durable(region, Durable::default());
        self.come_back(region, lasts);
        Ok(())
    }

    /// An earlier copy of a region's store is put back.
    pub(super) fn backup_restored(
        &mut self,
        region: usize,
        lasts: Option<Micros>,
    ) -> Result<(), &'static str> {
        self.may_lose(region)?;
        let backup = self.stores[region].backup.take();
        let backup = backup.ok_or("no copy was taken since the last was put back")?;
        let core = self.core_of(region);
        self.kill(core);
        let Backup { medium, durable } = backup;
        let name = self.region_name(region).clone();
        for (shard, origin) in self.check.stores[region].applied.keys() {
            if self.check.origins.get(origin) == Some(&name) {
                let kept = durable.applied.get(&(*shard, *origin)).copied().unwrap_or(0);
                let known = self.check.forgotten.entry((*shard, *origin)).or_insert(kept);
                *known = (*known).min(kept);
            }
        }
        self.stores[region].restore(medium);
        self.forget_durable(region, durable);
        self.come_back(region, lasts);
        Ok(())
    }

    /// The store of a region is copied.
    pub(super) fn take_backup(&mut self, region: usize) -> Result<(), &'static str> {
        let durable = self.check.stores[region].clone();
        let medium = self.stores[region].copy().ok_or("its store is not there yet")?;
        let (now, name) = (self.now, self.region_name(region).clone());
        self.trace.tell(now, || format!("the store of {name} is copied"));
        self.stores[region].backup = Some(Backup { medium, durable });
        Ok(())
    }

    /// Another region must have everything, or nobody can say when this one has.
    fn may_lose(&self, region: usize) -> Result<(), &'static str> {
        if self.plan.engine == super::case::EngineKind::Shared {
            return Err("a store that nodes share outlives them");
        }
        if self.stores.len() < 2 {
            return Err("no other region has what the store has");
        }
        // It gives an empty store what the others gave up with it.
        if self.forced_out_lives() {
            return Err("a region that was removed by force does not know it yet");
        }
        if !(0..self.stores.len()).all(|other| other == region || self.is_whole(other)) {
            return Err("another region does not have everything just now");
        }
        Ok(())
    }

    /// Whether a region has taken up all its shards, and lacks nothing that it knows of.
    pub(super) fn is_whole(&self, region: usize) -> bool {
        let cores = self
            .nodes
            .iter()
            .filter(|node| node.region == region && node.core);
        let tasks = cores
            .filter_map(|node| node.process.as_ref())
            .flat_map(|process| &process.tasks);
        let active = tasks.map(|task| task.machine.owner().active_count());
        active.sum::<usize>() >= self.plan.sharding().count as usize
    }

    fn come_back(&mut self, region: usize, lasts: Option<Micros>) {
        let core = self.core_of(region);
        if let Some(lasts) = lasts {
            self.after(lasts, Event::Start { node: core });
        }
    }

    pub(super) fn forget_durable(&mut self, region: usize, left: Durable) {
        self.check.losses.push((self.now, region));
        let before = std::mem::replace(&mut self.check.stores[region], left);
        let mut gone: Vec<(ShardId, Origin, Seq, Seq)> = Vec::new();
        for ((shard, origin), seq) in &before.applied {
            let elsewhere = self
                .check
                .stores
                .iter()
                .filter_map(|store| store.applied.get(&(*shard, *origin)));
            let kept = elsewhere.max().copied().unwrap_or(0);
            if kept < *seq {
                gone.push((*shard, *origin, kept, *seq));
            }
        }
        let (now, name) = (self.now, self.region_name(region).clone());
        self.trace.tell(now, || {
            format!("the store of {name} is gone; nobody else has {gone:?}")
        });
        for (shard, origin, kept, seq) in gone {
            let known = self.check.lost.entry((shard, origin)).or_insert(kept);
            *known = (*known).min(kept);
            self.check.lost_to.insert((shard, origin), seq);
        }
        self.forget_registrations();
    }

    /// A device whose registration nobody has is not known any more, until it comes again.
    fn forget_registrations(&mut self) {
        let mut known = BTreeSet::new();
        for ((shard, origin, seq), entry) in &self.check.ledger {
            let at = Coord {
                origin: *origin,
                seq: *seq,
            };
            if self.check.is_lost(*shard, at) {
                continue;
            }
            if let Ok(Op::Device { user, device, .. } | Op::Cursor { user, device, .. }) = entry.op.decode() {
                known.insert((user, device));
            }
        }
        for device in 0..self.devices.len() {
            let name = (
                self.devices[device].user.clone(),
                self.devices[device].device.clone(),
            );
            if !known.contains(&name) && self.check.seen[device].welcomed.take().is_some() {
                let (now, name) = (self.now, self.devices[device].name());
                self.trace.tell(now, || format!("nobody knows {name} any more"));
            }
        }
    }
}

impl super::check::Checker {
    /// Whether what was accepted at a coordinate was lost with a disk, and no region has it.
    pub(super) fn is_lost(&self, shard: ShardId, at: Coord) -> bool {
        let key = (shard, at.origin);
        let gone = self.lost.get(&key).is_some_and(|kept| at.seq > *kept)
            && self.lost_to.get(&key).is_some_and(|to| at.seq <= *to);
        gone && !(0..self.stores.len()).any(|region| self.is_durable(region, shard, at))
    }

    /// The coordinates of a message that some region has, or had and may be asked for.
    pub(super) fn coords(&self, number: u64) -> BTreeSet<Coord> {
        let shard = self.shard_of(number);
        let coords = self.sent[number as usize].coords.iter().copied();
        coords.filter(|at| !self.is_lost(shard, *at)).collect()
    }
}
