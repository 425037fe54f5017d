//! Regions that come and go (R13), and holders that are away beyond the limit (R12).
//!
//! A region that is added comes with an empty store that joins, as soon as the change began in another one. One that is
//! removed runs on until the change is settled everywhere; then its nodes end and its disk is wiped, and nothing that it had
//! may be missing.

use std::collections::BTreeSet;

use super::case::{Case, MILLI};
use super::check::{Durable, number_of};
use super::world::{Event, World};
use crate::core::holders::HoldersChange;
use crate::core::ids::{RegionId, ShardId};
use crate::core::node::Input;

/// How often somebody looks how far a change is.
const LOOK: u64 = 500 * MILLI;

/// Which regions take part.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Regions that do not keep shards: not yet, or not any more.
    pub(super) out: BTreeSet<usize>,
    /// The change that goes on, and the region that it removes.
    running: Option<(HoldersChange, Option<usize>)>,
    version: u64,
    /// Changes that wait for the one that goes on: the region, and whether it comes.
    waiting: Vec<(usize, bool)>,
    /// Regions that came or went: when they had what, the checks of what is removed do not know.
    pub(super) moved: BTreeSet<usize>,
}

impl Parts {
    pub(super) fn new(plan: &Case) -> Self {
        let out = (0..plan.places.len()).filter(|region| plan.later.contains(&plan.places[*region].id));
        Self {
            out: out.collect(),
            ..Self::default()
        }
    }
}

impl World {
    /// The names of the regions that keep shards now.
    pub(super) fn holding(&self) -> BTreeSet<RegionId> {
        let places = self.plan.places.iter().enumerate();
        let there = places.filter(|(region, _)| !self.parts.out.contains(region));
        there.map(|(_, place)| place.id.clone()).collect()
    }

    /// A region is added, or removed.
    pub(super) fn change_region(&mut self, region: usize, comes: bool) {
        self.parts.waiting.push((region, comes));
        self.next_change();
    }

    fn next_change(&mut self) {
        while self.parts.running.is_none() && !self.parts.waiting.is_empty() {
            let (region, comes) = self.parts.waiting.remove(0);
            if self.parts.out.contains(&region) == comes && !self.wrong.gone.contains(&region) {
                self.begin_change(region, comes);
            }
        }
    }

    fn begin_change(&mut self, region: usize, comes: bool) {
        let mut set = self.holding();
        let name = self.region_name(region).clone();
        if comes {
            set.insert(name.clone());
        } else {
            set.remove(&name);
        }
        if set.is_empty() {
            return;
        }
        self.parts.version += 1;
        let change = HoldersChange {
            version: self.parts.version,
            set,
            gone: BTreeSet::new(),
        };
        let now = self.now;
        self.trace.chapter(now, || {
            let what = if comes { "is added" } else { "is removed" };
            format!("{name} {what}: holders {:?}, version {}", change.set, change.version)
        });
        if comes {
            self.parts.out.remove(&region);
        }
        self.parts.moved.insert(region);
        self.stores[region].begin_with(change.set.clone());
        self.disturb_all();
        self.parts.running = Some((change, (!comes).then_some(region)));
        self.ask_for_change(region);
        if comes {
            let nodes: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].region == region).collect();
            for node in nodes {
                let delay = self.rng.between(10, 2000) * MILLI;
                self.after(delay, Event::Start { node });
            }
        }
        self.after(LOOK, Event::Holders);
    }

    /// An operator asks one of the regions that stay; again where it was not heard.
    fn ask_for_change(&mut self, but: usize) {
        let Some((change, _)) = self.parts.running.clone() else {
            return;
        };
        let asked = (0..self.stores.len()).filter(|region| {
            *region != but && !self.parts.out.contains(region) && !self.wrong.gone.contains(region)
        });
        let asked: Vec<usize> = asked.collect();
        let running = |world: &World, region: usize| world.nodes[world.core_of(region)].process.is_some();
        let Some(region) = asked.into_iter().find(|region| running(self, *region)) else {
            return;
        };
        let cores = (0..self.nodes.len()).filter(|node| self.nodes[*node].region == region && self.nodes[*node].core);
        for node in cores.collect::<Vec<_>>() {
            for partition in 0..self.nodes[node].partitions {
                if self.nodes[node].process.is_some() {
                    self.input(node, partition, Input::Holders(change.clone()));
                }
            }
        }
    }

    /// Looks how far the change is.
    pub(super) fn look_at_change(&mut self) {
        let Some((change, removed)) = self.parts.running.clone() else {
            return;
        };
        let shards = self.plan.shards as usize;
        let mut all = true;
        for region in 0..self.stores.len() {
            if self.wrong.gone.contains(&region) || !change.set.contains(self.region_name(region)) {
                continue;
            }
            let cores = self.nodes.iter().filter(|node| node.region == region && node.core);
            let tasks = cores.filter_map(|node| node.process.as_ref()).flat_map(|process| &process.tasks);
            let settled: usize = tasks
                .map(|task| {
                    let status = task.machine.holders();
                    if status.target.version == change.version { status.settled } else { 0 }
                })
                .sum();
            all &= settled == shards;
        }
        if !all {
            let but = removed.unwrap_or(usize::MAX);
            self.ask_for_change(but);
            return self.after(LOOK, Event::Holders);
        }
        self.parts.running = None;
        self.disturb_all();
        let now = self.now;
        self.trace.chapter(now, || format!("the change to version {} is settled", change.version));
        if let Some(region) = removed {
            self.wipe(region);
        }
        self.next_change();
    }

    /// A region that was removed is switched off, and nothing may be missing.
    fn wipe(&mut self, region: usize) {
        let nodes: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].region == region).collect();
        for node in nodes {
            self.kill(node);
        }
        self.parts.out.insert(region);
        let had = self.check.stores[region].applied.clone();
        for ((shard, origin), seq) in had {
            let others = (0..self.stores.len()).filter(|other| *other != region);
            let kept = others.filter_map(|other| self.check.stores[other].applied.get(&(shard, origin)));
            let kept = kept.max().copied().unwrap_or(0);
            let lost = (kept + 1..=seq).find(|seq| {
                let entry = self.check.ledger.get(&(shard, origin, *seq));
                entry.is_some_and(|entry| number_of(&entry.op).is_some())
            });
            if let Some(lost) = lost {
                let name = self.region_name(region);
                let detail = format!("{name} is removed, and only it had {origin:?}:{lost} of shard {shard}");
                return self.fail("a region that is removed leaves everything (R13)", detail, Vec::new());
            }
        }
        drop(self.stores[region].replace_disk());
        self.forget_durable(region, Durable::default());
        self.check.ever[region].clear();
    }

    pub(super) fn regions_told(&mut self, node: usize, regions: &BTreeSet<RegionId>) {
        let (now, key) = (self.now, self.nodes[node].key.clone());
        self.trace.tell(now, || format!("{key}: the regions are {regions:?}"));
    }

    /// A region marked holders as needing a snapshot (R12).
    pub(super) fn note_marked(&mut self, region: usize, shard: ShardId, marked: &BTreeSet<RegionId>) {
        if !marked.is_empty() {
            self.check.marked.insert((region, shard));
        }
    }

    /// Whether a region ever let go of what a holder had not: devices that only that one knew are told of a hole.
    pub(super) fn was_marked(&self, region: usize, shard: ShardId) -> bool {
        self.check.marked.contains(&(region, shard))
    }

    pub(super) fn ever_marked(&self, shard: ShardId) -> bool {
        self.check.marked.iter().any(|(_, marked)| *marked == shard)
    }

    /// Whether a region counts for what may leave a store: it keeps shards, and always did.
    pub(super) fn counts(&self, region: usize) -> bool {
        !self.parts.out.contains(&region) && !self.parts.moved.contains(&region)
    }

    fn disturb_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.disturb(node);
        }
    }

    /// All is settled only when no change goes on.
    pub(super) fn unsettled_holders(&self) -> Option<String> {
        let (change, _) = self.parts.running.as_ref()?;
        Some(format!("the change of the holders to version {} goes on", change.version))
    }
}
