//! Regions that come and go (R13), and holders that are away beyond the limit (R12).
//!
//! A region that is added comes with an empty store that joins, as soon as the change began in another one. One that is
//! removed runs on until the change is settled everywhere; then its nodes end and its disk is wiped, and nothing that it had
//! may be missing.

use std::collections::BTreeSet;

use super::case::{Accepts, Case, MILLI};
use super::check::{Durable, number_of};
use super::ghosts::Disturbed;
use super::trace::Micros;
use super::world::{Event, World};
use crate::core::holders::HoldersChange;
use crate::core::ids::{Coord, Origin, RegionId, Seq, ShardId};
use crate::core::node::Input;
use crate::core::op::Op;
use crate::core::state::ShardRow;

/// How often somebody looks how far a change is.
const LOOK: u64 = 500 * MILLI;

/// Which regions take part.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Regions that do not keep shards: not yet, or not any more.
    pub(super) out: BTreeSet<usize>,
    /// The change that goes on, and the region that it removes.
    running: Option<Running>,
    version: u64,
    /// Changes that wait for the one that goes on.
    waiting: Vec<(usize, Way)>,
    /// Regions that come and do not have everything yet, or go, or went.
    pub(super) moved: BTreeSet<usize>,
    /// Regions that were removed by force, live, and have not closed themselves.
    forced: BTreeSet<usize>,
    /// All that ever were.
    pub(super) given_up: BTreeSet<usize>,
}

/// What becomes of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Comes,
    Leaves,
    /// It leaves, and what only it has is given up.
    Forced,
    /// Likewise, and it does not run any more.
    Lost,
}

/// A change of the holders that goes on.
#[derive(Debug, Clone)]
struct Running {
    change: HoldersChange,
    region: usize,
    way: Way,
    began: Micros,
    /// Every region of the new set has it in all shards.
    settled: bool,
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
    pub(super) fn change_region(&mut self, region: usize, way: Way) -> Result<(), &'static str> {
        if self.wrong.gone.contains(&region) {
            return Err("it is gone for good");
        }
        self.parts.waiting.push((region, way));
        self.next_change();
        Ok(())
    }

    fn next_change(&mut self) {
        while self.parts.running.is_none() && !self.parts.waiting.is_empty() {
            let (region, way) = self.parts.waiting.remove(0);
            let comes = way == Way::Comes;
            let may = way != Way::Forced || self.may_do_without(region).is_ok();
            if self.parts.out.contains(&region) == comes && !self.wrong.gone.contains(&region) && may {
                self.begin_change(region, way);
            }
        }
    }

    /// Two operators ask two regions at once for changes of one version: each is to remove the other's region.
    pub(super) fn rival_changes(&mut self, rivals: &BTreeSet<usize>) -> Result<(), &'static str> {
        let rivals: Vec<usize> = rivals.iter().copied().collect();
        let [first, second] = *rivals else {
            return Err("it takes two regions");
        };
        let there = |region: usize| !self.parts.out.contains(&region) && !self.wrong.gone.contains(&region);
        if self.parts.running.is_some() || !there(first) || !there(second) || self.holding().len() < 3 {
            return Err("it takes three regions, and no change that goes on");
        }
        // Of one version the greater set counts.
        let names = [first, second].map(|region| self.region_name(region).clone());
        let without = |name: &RegionId| {
            let mut set = self.holding();
            set.remove(name);
            set
        };
        let [one, other] = [without(&names[0]), without(&names[1])];
        let (removed, loser) = if one > other {
            (first, other)
        } else {
            (second, one)
        };
        let lost = HoldersChange {
            version: self.parts.version + 1,
            set: loser,
            gone: BTreeSet::new(),
        };
        self.tell_cores(removed, &lost);
        for region in [first, second] {
            self.parts.moved.insert(region);
        }
        self.begin_change(removed, Way::Leaves);
        Ok(())
    }

    fn begin_change(&mut self, region: usize, way: Way) {
        let comes = way == Way::Comes;
        let mut set = self.holding();
        let name = self.region_name(region).clone();
        if comes {
            set.insert(name.clone());
        } else {
            set.remove(&name);
        }
        if !self.may_hold(&set) {
            return;
        }
        self.parts.version += 1;
        let change = HoldersChange {
            version: self.parts.version,
            set,
            gone: match way {
                Way::Forced | Way::Lost => BTreeSet::from([name.clone()]),
                _ => BTreeSet::new(),
            },
        };
        let now = self.now;
        self.trace.chapter(now, || {
            let what = match way {
                Way::Comes => "is added",
                Way::Leaves => "is removed",
                Way::Forced | Way::Lost => "is removed by force",
            };
            format!(
                "{name} {what}: holders {:?}, version {}",
                change.set, change.version
            )
        });
        match way {
            Way::Comes => _ = self.parts.out.remove(&region),
            Way::Leaves => {}
            Way::Forced | Way::Lost => _ = self.parts.given_up.insert(region),
        }
        self.parts.moved.insert(region);
        self.stores[region].begin_with(change.set.clone());
        self.disturb_all();
        self.parts.running = Some(Running {
            change,
            region,
            way,
            began: now,
            settled: false,
        });
        self.ask_for_change();
        if comes {
            let nodes: Vec<usize> = (0..self.nodes.len())
                .filter(|node| self.nodes[*node].region == region)
                .collect();
            for node in nodes {
                let delay = self.rng.between(10, 2000) * MILLI;
                self.after(delay, Event::Start { node });
            }
        }
        self.after(LOOK, Event::Holders);
    }

    /// An operator asks one of the regions that stay; again where it was not heard.
    fn ask_for_change(&mut self) {
        let Some(Running {
            change, region: but, ..
        }) = self.parts.running.clone()
        else {
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
        self.tell_cores(region, &change);
    }

    fn tell_cores(&mut self, region: usize, change: &HoldersChange) {
        let cores =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].region == region && self.nodes[*node].core);
        for node in cores.collect::<Vec<_>>() {
            for partition in 0..self.nodes[node].partitions {
                if self.nodes[node].process.is_some() {
                    self.input(node, partition, Input::Holders(change.clone()));
                }
            }
        }
    }

    /// Whether regions can keep the shards: of those that are not lost there must be enough to accept something.
    fn may_hold(&self, set: &BTreeSet<RegionId>) -> bool {
        let lost = |name: &&RegionId| {
            self.wrong
                .gone
                .iter()
                .any(|region| self.region_name(*region) == *name)
        };
        let left = set.iter().filter(|name| !lost(name)).count();
        left > usize::from(self.plan.accepts == Accepts::Geo)
    }

    /// Whether a region may be lost now: those to which the change that goes on leads can do without it.
    pub(super) fn change_does_without(&self, region: usize) -> bool {
        self.parts.running.as_ref().is_none_or(|running| {
            let mut set = running.change.set.clone();
            set.remove(self.region_name(region));
            self.may_hold(&set)
        })
    }

    /// A change never settles whose regions include one that is lost: an operator removes that one by force.
    fn remove_lost(&mut self) {
        let Some(mut running) = self.parts.running.take() else {
            return;
        };
        let gone = self.wrong.gone.iter().copied();
        let counts = |region: &usize| {
            let leaves = running.way == Way::Leaves && running.region == *region;
            leaves || running.change.set.contains(self.region_name(*region))
        };
        let lost: Vec<usize> = gone.filter(counts).collect();
        for region in &lost {
            let name = self.region_name(*region).clone();
            running.change.set.remove(&name);
            running.change.gone.insert(name);
            self.parts.given_up.insert(*region);
            self.parts.out.insert(*region);
        }
        if !lost.is_empty() {
            self.parts.version += 1;
            running.change.version = self.parts.version;
            let (now, change) = (self.now, &running.change);
            self.trace.chapter(now, || {
                let (gone, set, version) = (&change.gone, &change.set, change.version);
                format!("{gone:?} is lost, and removed by force: holders {set:?}, version {version}")
            });
            if lost.contains(&running.region) {
                running.way = Way::Lost;
            }
        }
        self.parts.running = Some(running);
    }

    /// Looks how far the change is.
    pub(super) fn look_at_change(&mut self) {
        self.look_at_forced();
        let Some(running) = self.parts.running.clone() else {
            return;
        };
        let Running {
            change,
            region,
            way,
            began,
            settled,
        } = running;
        let comes = way == Way::Comes;
        if !settled {
            if !self.is_settled(&change) {
                self.remove_lost();
                self.ask_for_change();
                return self.after(LOOK, Event::Holders);
            }
            if let Some(running) = &mut self.parts.running {
                running.settled = true;
            }
            let took = (self.now - began) / MILLI;
            let (now, version) = (self.now, change.version);
            self.trace.chapter(now, || {
                format!("the change to version {version} is settled, {took} ms after it began")
            });
        }
        // From then on it counts like any other.
        if comes && !self.has_everything(region) {
            return self.after(LOOK, Event::Holders);
        }
        self.disturb_all();
        self.parts.running = None;
        if way == Way::Forced {
            self.parts.forced.insert(region);
            self.after(LOOK, Event::Holders);
        } else if way == Way::Lost {
            self.parts.moved.remove(&region);
        } else if comes {
            self.parts.moved.remove(&region);
            let took = (self.now - began) / MILLI;
            let (now, name) = (self.now, self.region_name(region).clone());
            self.trace.chapter(now, || {
                format!("{name} has everything, {took} ms after it was added")
            });
        } else {
            self.wipe(region);
            // What a rival asked for in vain is over, too.
            self.parts.moved.clear();
        }
        self.next_change();
    }

    /// A region that was removed by force learns of it, and takes no more clients: then its nodes end.
    fn look_at_forced(&mut self) {
        let shards = self.plan.shards as usize;
        for region in self.parts.forced.clone() {
            let cores = self
                .nodes
                .iter()
                .filter(|node| node.region == region && node.core);
            let tasks = cores
                .filter_map(|node| node.process.as_ref())
                .flat_map(|process| &process.tasks);
            // A shard that has never been open takes nothing, and nobody gives it what it lacks.
            let closed = tasks.map(|task| {
                let owner = task.machine.owner();
                owner.removed_count() + owner.recovering_count()
            });
            if closed.sum::<usize>() < shards {
                self.after(LOOK, Event::Holders);
                continue;
            }
            let (now, name) = (self.now, self.region_name(region).clone());
            self.trace.chapter(now, || format!("{name} has closed itself"));
            self.disturb_all();
            self.parts.forced.remove(&region);
            self.parts.moved.remove(&region);
            self.parts.out.insert(region);
            self.lost_for_good(region);
        }
    }

    /// Whether every region that stays says of all shards that the change is settled.
    fn is_settled(&self, change: &HoldersChange) -> bool {
        let stay = |region: &usize| {
            !self.wrong.gone.contains(region) && change.set.contains(self.region_name(*region))
        };
        (0..self.stores.len()).filter(stay).all(|region| {
            let cores = self
                .nodes
                .iter()
                .filter(|node| node.region == region && node.core);
            let tasks = cores
                .filter_map(|node| node.process.as_ref())
                .flat_map(|process| &process.tasks);
            let settled = tasks.map(|task| {
                let status = task.machine.holders();
                let this = status.target.version == change.version;
                if this { status.settled } else { 0 }
            });
            settled.sum::<usize>() == self.plan.shards as usize
        })
    }

    /// Whether a region lacks nothing that another one has trimmed: it counts when more is.
    fn has_everything(&self, region: usize) -> bool {
        let others = (0..self.stores.len()).filter(|other| *other != region);
        let mut floors = others.flat_map(|other| &self.check.stores[other].floors);
        floors.all(|((shard, origin), seq)| {
            let (origin, seq) = (*origin, *seq);
            self.check.retired.contains(&(*shard, origin))
                || self.check.was_durable(region, *shard, Coord { origin, seq })
        })
    }

    /// A region that was removed is switched off, and nothing may be missing.
    fn wipe(&mut self, region: usize) {
        let nodes: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].region == region)
            .collect();
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
                return self.fail(
                    "a region that is removed leaves everything (R13)",
                    detail,
                    Vec::new(),
                );
            }
        }
        drop(self.stores[region].replace_disk());
        // It comes back, if at all, with an empty store: what it had says of itself that it is out.
        self.stores[region].backup = None;
        self.forget_durable(region, Durable::default());
        self.check.ever[region].clear();
    }

    pub(super) fn regions_told(&mut self, node: usize, regions: &BTreeSet<RegionId>) {
        let (now, key) = (self.now, self.nodes[node].key.clone());
        self.trace
            .tell(now, || format!("{key}: the regions are {regions:?}"));
    }

    /// A region marked holders as needing a snapshot (R12).
    pub(super) fn note_marked(&mut self, region: usize, shard: ShardId, marked: &BTreeSet<RegionId>) {
        let known = self.check.marked.get(&(region, shard));
        let new = marked
            .iter()
            .find(|holder| known.is_none_or(|known| !known.contains(*holder)));
        if let Some(holder) = new {
            let share = self.plan.store.absent_log_bytes / u64::from(self.plan.shards);
            let (bytes, oldest_ms) = self.kept(region, shard);
            let clocks = self.nodes.iter().map(|node| node.wall_ms(self.now));
            let wall_ms = clocks.max().unwrap_or(0);
            let long = oldest_ms.saturating_add(self.plan.store.absent_log / MILLI) < wall_ms;
            if bytes <= share && !long {
                let name = self.region_name(region);
                let detail = format!(
                    "{name} marks {holder} in shard {shard}, whose logs keep {bytes} of {share} bytes there"
                );
                return self.fail("marked only beyond the limits (R12)", detail, Vec::new());
            }
        }
        for holder in marked {
            self.check.ever_marked.insert((shard, holder.clone()));
        }
        if !marked.is_empty() || known.is_some() {
            self.check.marked.insert((region, shard), marked.clone());
        }
    }

    /// Who may not have trimmed what changes with this commit: what was trimmed before is looked at no more.
    pub(super) fn note_floors(&mut self, region: usize, shard: ShardId) {
        let logs = self
            .shard_row(region, shard)
            .map(|row| row.logs)
            .unwrap_or_default();
        for (origin, log) in logs {
            let floors = &mut self.check.stores[region].floors;
            floors.insert((shard, origin), log.floor);
        }
    }

    /// A snapshot says who was waited for where it comes from.
    pub(super) fn note_jumped_floors(&mut self, region: usize, shard: ShardId) {
        if self.parts.version > 0 || !self.check.marked.is_empty() {
            self.note_floors(region, shard);
        }
    }

    /// What a shard's logs keep at most, confirmations left out, since they were last looked at: bytes, and the time of the
    /// oldest.
    fn kept(&self, region: usize, shard: ShardId) -> (u64, u64) {
        let store = &self.check.stores[region];
        let logs = store.applied.iter().filter(|((of, _), _)| *of == shard);
        let (mut bytes, mut oldest_ms) = (0, u64::MAX);
        for ((_, origin), head) in logs {
            let floor = store.floors.get(&(shard, *origin)).copied().unwrap_or(0);
            let kept = (shard, *origin, floor + 1)..=(shard, *origin, (*head).max(floor + 1));
            for (_, entry) in self.check.ledger.range(kept) {
                if entry.confirm().is_none() {
                    bytes += entry.op.len() as u64;
                    oldest_ms = oldest_ms.min(entry.op.hlc().ms);
                }
            }
        }
        (bytes, oldest_ms)
    }

    /// Whether some region ever did not wait for another one in a shard: a third one learns by snapshot of what that removed.
    pub(super) fn was_marked(&self, shard: ShardId, other: usize) -> bool {
        let name = self.region_name(other).clone();
        self.check.ever_marked.contains(&(shard, name))
    }

    /// Whether any region ever did not wait for another one in a shard.
    pub(super) fn ever_marked(&self, shard: ShardId) -> bool {
        self.check.ever_marked.iter().any(|(marked, _)| *marked == shard)
    }

    /// Whether a copy of a message stands only in regions that were removed by force.
    pub(super) fn was_given_up(&self, number: u64) -> bool {
        if self.parts.given_up.is_empty() {
            return false;
        }
        let sent = &self.check.sent[number as usize];
        let shard = self.plan.sharding().of_user(&sent.to);
        sent.coords.iter().any(|at| {
            let has = |region: &usize| self.check.was_durable(*region, shard, *at);
            (0..self.stores.len())
                .filter(has)
                .all(|region| self.parts.given_up.contains(&region))
        })
    }

    /// Whether a region may not know another one that keeps the shards: one that comes may be there before the others heard of it,
    /// and one whose store was put back to an earlier state knows the regions of then.
    pub(super) fn may_not_know_regions(&self) -> bool {
        !self.parts.moved.is_empty() || (self.parts.version > 0 && !self.check.losses.is_empty())
    }

    /// Whether a region that was removed by force runs on.
    pub(super) fn forced_out_lives(&self) -> bool {
        let mut given_up = self.parts.given_up.iter();
        given_up.any(|region| !self.parts.out.contains(region))
    }

    /// Whether an origin is of a region that was removed by force.
    pub(super) fn is_given_up(&self, origin: Origin) -> bool {
        let region = self.check.origins.get(&origin);
        let mut given_up = self.parts.given_up.iter();
        region.is_some_and(|name| given_up.any(|region| self.region_name(*region) == name))
    }

    /// Whether a device may be known to a region alone that the others did not wait for.
    pub(super) fn may_forget_devices(&self, shard: ShardId) -> bool {
        self.ever_marked(shard) || !self.parts.given_up.is_empty()
    }

    /// Whether a region heard of a device, and not first by what was logged after the entry at `at`, or by the log of a region
    /// that was removed by force, for which nobody waited. Where nobody was ever marked all did before anything goes; who is
    /// known to a region alone that is away beyond the limits, or was removed by force, is told what is gone, in the end.
    pub(super) fn knows_device(&self, region: usize, shard: ShardId, device: usize, at: Coord) -> bool {
        if !self.may_forget_devices(shard) {
            return true;
        }
        let (of, with) = (&self.devices[device].user, &self.devices[device].device);
        let of_shard = (shard, Origin(0), 0)..=(shard, Origin(u64::MAX), Seq::MAX);
        let before = self.check.ledger.get(&(shard, at.origin, at.seq));
        let before = before.map(|entry| entry.logged);
        let mut ledger = self.check.ledger.range(of_shard);
        ledger.any(|((_, origin, seq), entry)| {
            let (origin, seq) = (*origin, *seq);
            if before.is_some_and(|before| entry.logged > before) || self.is_given_up(origin) {
                return false;
            }
            match entry.op.decode() {
                Ok(Op::Device { user, device, .. } | Op::Cursor { user, device, .. }) => {
                    (&user, &device) == (of, with)
                        && self.check.is_durable(region, shard, Coord { origin, seq })
                }
                _ => false,
            }
        })
    }

    /// Whether a region may not trim what another one has not: it keeps the shard as far as the one that trims knows, until
    /// it has left, and is not marked.
    pub(super) fn waits_for(&self, region: usize, row: &ShardRow, other: usize) -> bool {
        let name = self.region_name(other);
        if other == region || self.parts.out.contains(&other) || row.holding.marked.contains_key(name) {
            return false;
        }
        match &row.holding.set {
            None => self.plan.holders().contains(name),
            Some(set) => {
                let before = !set.settled && set.old.contains(name);
                set.new.contains(name) || before || set.leaving.contains_key(name)
            }
        }
    }

    /// Whether a region counts for what may leave a store: it keeps shards, and always did.
    pub(super) fn counts(&self, region: usize) -> bool {
        !self.parts.out.contains(&region) && !self.parts.moved.contains(&region)
    }

    fn disturb_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.disturb(node, Disturbed::All);
        }
    }

    /// All is settled only when no change goes on.
    pub(super) fn unsettled_holders(&self) -> Option<String> {
        if let Some(region) = self.parts.forced.first() {
            let name = self.region_name(*region);
            return Some(format!("{name} was removed by force, and goes on"));
        }
        let running = self.parts.running.as_ref()?;
        let version = running.change.version;
        let cores = self.nodes.iter().filter(|node| node.core);
        let tasks = cores.flat_map(|node| {
            node.process.iter().flat_map(move |process| {
                process
                    .tasks
                    .iter()
                    .map(move |task| (&node.key, task.machine.holders()))
            })
        });
        let told: Vec<String> = tasks
            .map(|(key, status)| {
                let (known, settled, shards) = (status.target.version, status.settled, status.shards);
                format!("{key} knows version {known}, settled in {settled} of {shards} shards")
            })
            .collect();
        Some(format!(
            "the change of the holders to version {version} goes on: {}",
            told.join("; ")
        ))
    }
}
