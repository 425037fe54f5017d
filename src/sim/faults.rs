//! What is wrong now: how faults strike, and how they end. Then everything heals.

use std::collections::{BTreeMap, BTreeSet};

use super::case::{Accepts, MILLI, SECOND};
use super::fault::Kind;
use super::ghosts::Disturbed;
use super::holders::Way;
use super::trace::Micros;
use super::world::{Event, Stage, World};
use crate::core::node::Input;

/// A rolling restart goes on to the next node after so long where nothing else is said.
pub(super) const ROLL: Micros = 2 * SECOND;
/// What a client sends is under way for so long where nothing else is said, when it retries.
const RETRY: Micros = 2 * SECOND;
/// A node that restarts is away for so long where nothing else is said.
pub(super) const RESTART: Micros = 300 * MILLI;
/// A node that is told to end drains for so long: clients with messages under way leave within two seconds.
pub(super) const DRAIN: Micros = 3 * SECOND;

/// Why a fault has no effect.
const NO_PLACE: &str = "no such place takes part";
const NO_WAY: &str = "there is no way between two such places";
const DOWN: &str = "nothing runs there";
const NOT_CONNECTED: &str = "no such client is connected";
const AWAY: &str = "no such client is there";

/// The end of something that went wrong.
#[derive(Debug)]
pub(super) enum Undo {
    /// A fault of the case ends.
    Fault(usize),
    /// An observer sees a node again.
    See {
        observer: usize,
        boot: u64,
        subject: usize,
    },
    /// What a client sent on a connection that it gave up comes.
    Held { conn: u64 },
    /// A store stopped, and its node with it.
    Crash { node: usize },
}

/// What is wrong at the moment. Faults may overlap: what several of them hold ends with the last.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    active: BTreeMap<usize, Active>,
    cuts: BTreeMap<(usize, usize), u32>,
    client_cuts: BTreeMap<(usize, usize), u32>,
    /// Regions that are gone for good.
    pub(super) gone: BTreeSet<usize>,
}

/// What a fault does while it lasts.
#[derive(Debug, Default)]
struct Active {
    /// Ways between nodes that are cut.
    cuts: Vec<(usize, usize)>,
    /// Clients that do not reach a region.
    client_cuts: Vec<(usize, usize)>,
    /// Ways that are slow, and how.
    slow: BTreeSet<(usize, usize)>,
    slowness: Slowness,
    /// Ways on which changes of presence are lost.
    unheard: BTreeSet<(usize, usize)>,
    /// Ways on which nothing arrives before then.
    clogged: (BTreeSet<(usize, usize)>, Micros),
    unread: BTreeSet<usize>,
    unhandled: BTreeSet<usize>,
    errors: (BTreeSet<usize>, u32),
    slow_stores: (BTreeSet<usize>, Micros),
    full: BTreeSet<usize>,
    /// Nodes whose clocks jumped, and by how much.
    clocks: Vec<(usize, i64)>,
    evacuated: BTreeSet<usize>,
}

/// How a way is slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Slowness {
    /// Of a thousand messages so many are lost.
    pub(super) loss: u32,
    /// Times as slow.
    pub(super) factor: u32,
    /// Slower by so much.
    pub(super) extra: Micros,
    /// Bytes a second; 0 = no limit.
    pub(super) bandwidth: u64,
}

impl Wrong {
    /// The faults of the case that hold now.
    pub(super) fn lasting(&self) -> Vec<usize> {
        self.active.keys().copied().collect()
    }

    /// Whether nothing gets from one node to another.
    pub(super) fn cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    /// Whether changes of presence are lost on the way from one node to another.
    pub(super) fn unheard(&self, from: usize, to: usize) -> bool {
        self.active
            .values()
            .any(|active| active.unheard.contains(&(from, to)))
    }

    /// Whether a client does not reach a region.
    pub(super) fn client_cut(&self, device: usize, region: usize) -> bool {
        self.client_cuts.contains_key(&(device, region))
    }

    /// Whether a client reads nothing.
    pub(super) fn reads_nothing(&self, device: usize) -> bool {
        self.active.values().any(|active| active.unread.contains(&device))
    }

    /// Whether an application handles nothing.
    pub(super) fn handles_nothing(&self, device: usize) -> bool {
        self.active
            .values()
            .any(|active| active.unhandled.contains(&device))
    }

    /// Of a thousand commits of a region so many fail.
    pub(super) fn store_errors(&self, region: usize) -> u32 {
        let struck = self
            .active
            .values()
            .filter(|active| active.errors.0.contains(&region));
        struck.map(|active| active.errors.1).max().unwrap_or(0)
    }

    /// Commits of a region take so much longer.
    pub(super) fn store_slow(&self, region: usize) -> Micros {
        let struck = self
            .active
            .values()
            .filter(|active| active.slow_stores.0.contains(&region));
        struck.map(|active| active.slow_stores.1).max().unwrap_or(0)
    }

    /// Whether the disk of a region is full.
    pub(super) fn store_full(&self, region: usize) -> bool {
        self.active.values().any(|active| active.full.contains(&region))
    }

    /// Whether something keeps a region evacuated.
    fn evacuated(&self, region: usize) -> bool {
        self.active
            .values()
            .any(|active| active.evacuated.contains(&region))
    }

    /// How a way is slow now; several faults on it add up.
    pub(super) fn slowness(&self, from: usize, to: usize, now: Micros) -> Slowness {
        let mut all = Slowness {
            factor: 1,
            ..Slowness::default()
        };
        for active in self.active.values() {
            if active.slow.contains(&(from, to)) {
                all.loss = all.loss.max(active.slowness.loss);
                all.factor = all.factor.max(active.slowness.factor);
                all.extra += active.slowness.extra;
                let known = Some(all.bandwidth).filter(|bandwidth| *bandwidth > 0);
                let limit = Some(active.slowness.bandwidth).filter(|bandwidth| *bandwidth > 0);
                all.bandwidth = known.into_iter().chain(limit).min().unwrap_or(0);
            }
            if active.clogged.0.contains(&(from, to)) {
                all.extra += active.clogged.1.saturating_sub(now);
            }
        }
        all
    }
}

impl World {
    /// A fault of the case strikes; one that goes on and off strikes again and again.
    pub(super) fn fault(&mut self, index: usize, round: u32) {
        if self.stage != Stage::Work {
            return;
        }
        let fault = self.plan.faults[index].clone();
        let now = self.now;
        self.trace.event(now, 15, index as u64, &round.to_be_bytes());
        self.disturb_places(index);
        if round == 0 {
            self.trace.chapter(now, || format!("fault: {}", fault.words()));
            if let Some(lasts) = fault.lasts.filter(|_| keeps(fault.kind)) {
                self.after(lasts, Event::Undo(Undo::Fault(index)));
            }
        }
        let nodes: Vec<usize> = fault
            .on
            .iter()
            .flat_map(|place| self.plan.nodes_at(place))
            .collect();
        let regions: BTreeSet<usize> = nodes.iter().map(|node| self.nodes[*node].region).collect();
        let devices: Vec<usize> = fault
            .devices
            .iter()
            .flat_map(|name| self.plan.devices_named(name))
            .filter_map(|named| self.device_index(named))
            .collect();
        let (active, effect) = self.strike(index, round, (nodes, regions, devices));
        match effect {
            Ok(()) if round == 0 => {
                self.check.stats.faults += 1;
                self.witness_begins(index);
            }
            Err(why) if round == 0 => {
                self.check.stats.without_effect += 1;
                let words = fault.words();
                self.trace.chapter(now, || format!("no effect: {words}: {why}"));
            }
            _ => {}
        }
        if fault.kind == Kind::Flap {
            let every = fault.every.unwrap_or(SECOND).max(MILLI);
            let ends = fault.lasts.is_some_and(|lasts| now >= fault.at + lasts);
            if ends {
                return;
            }
            self.after(
                every,
                Event::Fault {
                    fault: index,
                    round: round + 1,
                },
            );
            if round % 2 == 1 {
                return self.end(index);
            }
        }
        if keeps(fault.kind) {
            self.begin_fault(index, active);
        }
    }

    /// What a fault does, and why it does nothing where it does.
    fn strike(
        &mut self,
        index: usize,
        round: u32,
        (nodes, regions, devices): (Vec<usize>, BTreeSet<usize>, Vec<usize>),
    ) -> (Active, Result<(), &'static str>) {
        let fault = self.plan.faults[index].clone();
        let now = self.now;
        let mut active = Active::default();
        let effect = match fault.kind {
            Kind::Crash => {
                let mut struck = nodes.is_empty();
                for node in &nodes {
                    let skew = if nodes.len() > 1 {
                        self.rng.below(500) * MILLI
                    } else {
                        0
                    };
                    struck |= self.crash(*node, fault.lasts.map(|lasts| lasts + skew));
                }
                any(struck, DOWN).and(some(&nodes, NO_PLACE))
            }
            Kind::Rolling => {
                if let Some(node) = nodes.get(round as usize) {
                    let away = fault.lasts.unwrap_or(RESTART);
                    match fault.told {
                        true => self.drain(*node, away),
                        false => _ = self.crash(*node, Some(away)),
                    }
                    let round = round + 1;
                    let every = fault.every.unwrap_or(ROLL);
                    self.after(every, Event::Fault { fault: index, round });
                }
                some(&nodes, NO_PLACE)
            }
            Kind::Pause => {
                let mut struck = nodes.is_empty();
                for node in &nodes {
                    struck |= self.pause(*node, fault.lasts);
                }
                any(struck, DOWN).and(some(&nodes, NO_PLACE))
            }
            Kind::Lose => self.each_region(&regions, Self::lose),
            Kind::Cut | Kind::Flap => {
                active.cuts = self.ways(&fault.from, &fault.to, fault.one_way);
                if fault.clients {
                    active.client_cuts = self.client_ways(&fault.from, &fault.to);
                }
                some(&active.cuts, NO_WAY)
            }
            Kind::Clog => {
                let ways = self.ways(&fault.from, &fault.to, fault.one_way);
                let effect = some(&ways, NO_WAY);
                // A longer silence would break the connections.
                let longest = self.plan.network.idle - self.plan.network.idle / 4;
                let lasts = fault.lasts.unwrap_or(longest).min(longest);
                active.clogged = (ways.into_iter().collect(), now + lasts);
                effect
            }
            Kind::Slow => {
                let ways = self.ways(&fault.from, &fault.to, fault.one_way);
                let effect = some(&ways, NO_WAY);
                active.slow = ways.into_iter().collect();
                active.slowness = Slowness {
                    loss: fault.loss.unwrap_or(0).min(900),
                    factor: fault.factor.unwrap_or(1),
                    extra: fault.extra.unwrap_or(0),
                    bandwidth: fault.bandwidth.unwrap_or(0),
                };
                effect
            }
            Kind::PresenceLost => {
                let ways = self.ways(&fault.from, &fault.to, fault.one_way);
                let effect = some(&ways, NO_WAY);
                active.unheard = ways.into_iter().collect();
                effect
            }
            Kind::Break => {
                let pairs: BTreeSet<usize> = self
                    .ways(&fault.from, &fault.to, true)
                    .into_iter()
                    .filter_map(|(from, to)| self.pair_of(from, to))
                    .collect();
                for pair in &pairs {
                    self.peer_break(*pair);
                }
                any(!pairs.is_empty(), NO_WAY)
            }
            Kind::Disconnect => {
                let mut struck = false;
                for device in devices {
                    struck |= self.disconnect(device);
                }
                any(struck, NOT_CONNECTED)
            }
            Kind::Retry => {
                let mut struck = false;
                for device in devices {
                    struck |= self.client_retries(device, fault.lasts.unwrap_or(RETRY));
                }
                any(struck, NOT_CONNECTED)
            }
            Kind::Move => {
                let to = fault.to.first().map(|place| self.plan.regions_at(place));
                match to.and_then(|regions| regions.first().copied()) {
                    Some(to) => {
                        for device in devices {
                            self.relocate(device, to, fault.lasts);
                        }
                        Ok(())
                    }
                    None => Err(NO_PLACE),
                }
            }
            Kind::Forget => {
                let here = self.there(&devices);
                for device in &here {
                    self.device_forgets(*device);
                }
                some(&here, AWAY)
            }
            Kind::StallRead => {
                active.unread = devices.iter().copied().collect();
                some(&devices, AWAY)
            }
            Kind::StallApp => {
                active.unhandled = devices.iter().copied().collect();
                some(&devices, AWAY)
            }
            Kind::Leave => {
                let here = self.there(&devices);
                for device in &here {
                    self.device_leaves(*device, fault.told);
                    if let Some(away) = fault.lasts {
                        self.after(away, Event::Arrive { device: *device });
                    }
                }
                some(&here, AWAY)
            }
            Kind::FalseDeath => {
                let ways = self.ways(&fault.from, &fault.to, true);
                let mut struck = ways.is_empty();
                for (observer, subject) in &ways {
                    struck |= self.take_for_dead(*observer, *subject, fault.lasts);
                }
                any(struck, "nobody there takes it for alive").and(some(&ways, NO_WAY))
            }
            Kind::StoreStop => self.each_region(&regions, |world, region| {
                let node = world.core_of(region);
                world.store_dies(node)
            }),
            Kind::StoreErrors => {
                let effect = any(!regions.is_empty(), NO_PLACE);
                active.errors = (regions, fault.loss.unwrap_or(0));
                effect
            }
            Kind::StoreSlow => {
                let effect = any(!regions.is_empty(), NO_PLACE);
                active.slow_stores = (regions, fault.extra.unwrap_or(0));
                effect
            }
            Kind::StoreFull => {
                for region in &regions {
                    self.stores[*region].full(true);
                }
                let effect = any(!regions.is_empty(), NO_PLACE);
                active.full = regions;
                effect
            }
            Kind::Backup => self.each_region(&regions, Self::take_backup),
            Kind::Restore => self.each_region(&regions, |world, region| {
                world.backup_restored(region, fault.lasts)
            }),
            Kind::DiskReplaced => {
                self.each_region(&regions, |world, region| world.disk_replaced(region, fault.lasts))
            }
            Kind::Evacuate => {
                let effect = self.each_region(&regions, Self::evacuate);
                let evacuated = regions.into_iter();
                active.evacuated = evacuated.filter(|region| self.evacuations.has(*region)).collect();
                effect
            }
            Kind::RegionAdd => {
                self.each_region(&regions, |world, region| world.change_region(region, Way::Comes))
            }
            Kind::RegionRemove => {
                self.each_region(&regions, |world, region| world.change_region(region, Way::Leaves))
            }
            Kind::RegionForceOut => {
                self.each_region(&regions, |world, region| world.change_region(region, Way::Forced))
            }
            Kind::RegionRivals => self.rival_changes(&regions),
            Kind::Clock => {
                let step = fault.step_ms.unwrap_or(0);
                for node in &nodes {
                    self.nodes[*node].clock_ms = self.nodes[*node].clock_ms.saturating_add(step);
                    active.clocks.push((*node, step));
                }
                self.check.lives.clock_jumped(self.now);
                some(&nodes, NO_PLACE)
            }
        };
        if effect.is_ok() {
            self.struck.insert(fault.kind);
        }
        (active, effect)
    }

    /// Does something to each region; has an effect where one of them was struck.
    fn each_region(
        &mut self,
        regions: &BTreeSet<usize>,
        mut strike: impl FnMut(&mut World, usize) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        let mut all = Err(NO_PLACE);
        for region in regions {
            match strike(self, *region) {
                Ok(()) => all = Ok(()),
                Err(why) => {
                    let (now, name) = (self.now, self.region_name(*region).clone());
                    self.trace.tell(now, || format!("{name} is not struck: {why}"));
                    all = all.or(Err(why));
                }
            }
        }
        all
    }

    /// Those of some devices whose clients run.
    fn there(&self, devices: &[usize]) -> Vec<usize> {
        let runs = |device: &usize| self.devices[*device].machine.is_some();
        devices.iter().copied().filter(runs).collect()
    }

    fn begin_fault(&mut self, index: usize, active: Active) {
        let cuts = active.cuts.clone();
        for way in &active.client_cuts {
            *self.wrong.client_cuts.entry(*way).or_insert(0) += 1;
        }
        self.wrong.active.insert(index, active);
        for (from, to) in cuts {
            let count = self.wrong.cuts.entry((from, to)).or_insert(0);
            *count += 1;
            if *count == 1 {
                self.cut_changed(from, to);
            }
        }
    }

    /// A fault ends.
    fn end(&mut self, index: usize) {
        let Some(active) = self.wrong.active.remove(&index) else {
            return;
        };
        self.disturb_places(index);
        self.witness_ends(index);
        for way in active.client_cuts {
            lower(&mut self.wrong.client_cuts, way);
        }
        for (from, to) in active.cuts {
            if lower(&mut self.wrong.cuts, (from, to)) {
                self.cut_changed(from, to);
            }
        }
        for region in active.full {
            let full = self.wrong.store_full(region);
            self.stores[region].full(full);
        }
        if !active.clocks.is_empty() {
            self.check.lives.clock_jumped(self.now);
        }
        for (node, step) in active.clocks {
            self.nodes[node].clock_ms = self.nodes[node].clock_ms.saturating_sub(step);
        }
        for device in active.unhandled {
            self.handle_again(device);
        }
        for region in active.evacuated {
            if !self.wrong.evacuated(region) {
                self.end_evacuation(region);
            }
        }
        self.clients_go_on();
    }

    /// Something that went wrong ends.
    pub(super) fn undo(&mut self, undo: Undo) {
        let now = self.now;
        self.trace.event(now, 16, 0, &[]);
        match undo {
            Undo::Fault(index) => {
                if self.wrong.active.contains_key(&index) {
                    let words = self.plan.faults[index].words();
                    self.trace.chapter(now, || format!("fault ends: {words}"));
                    self.end(index);
                }
            }
            Undo::See {
                observer,
                boot,
                subject,
            } => {
                let generation = Some(self.nodes[subject].generation);
                if self.nodes[subject].process.is_some() {
                    self.view_changes(observer, boot, subject, generation);
                }
            }
            Undo::Held { conn } => self.client_comes_through(conn),
            Undo::Crash { node } => {
                if self.nodes[node].process.is_some() {
                    self.kill(node);
                }
            }
        }
    }

    /// Nothing is wrong any more, but what is gone for good; everybody who was away comes.
    pub(super) fn heal(&mut self) {
        let now = self.now;
        self.trace.event(now, 17, 0, &[]);
        self.trace.chapter(now, || "everything heals".to_owned());
        self.stage = Stage::Settle;
        self.healed_at = now;
        let active: Vec<usize> = self.wrong.active.keys().copied().collect();
        for index in active {
            self.end(index);
        }
        self.witness_heals();
        for node in 0..self.nodes.len() {
            let delay = self.rng.below(500) * MILLI;
            // A store that stopped takes its node with it a little later: the start after that must not be missed.
            self.after(delay, Event::Start { node });
            self.after(4 * SECOND, Event::Start { node });
            self.nodes[node].paused_until = now;
            self.resume(node);
            self.see_all(node);
        }
        for device in 0..self.devices.len() {
            let delay = self.rng.below(2000) * MILLI;
            self.after(delay, Event::Arrive { device });
        }
        self.clients_come_through();
        self.after(SECOND, Event::Settle);
    }

    /// The ways between the nodes of places: there, and back unless it is one way.
    fn ways(&self, from: &[String], to: &[String], one_way: bool) -> Vec<(usize, usize)> {
        let nodes = |places: &[String]| -> BTreeSet<usize> {
            places
                .iter()
                .flat_map(|place| self.plan.nodes_at(place))
                .collect()
        };
        let (from, to) = (nodes(from), nodes(to));
        let mut ways = BTreeSet::new();
        for a in &from {
            for b in &to {
                if a != b
                    && !(from.contains(b) && to.contains(a) && self.nodes[*a].region == self.nodes[*b].region)
                {
                    ways.insert((*a, *b));
                    if !one_way {
                        ways.insert((*b, *a));
                    }
                }
            }
        }
        ways.into_iter().collect()
    }

    /// The clients near one place and the regions of the other that most of them lose.
    fn client_ways(&mut self, from: &[String], to: &[String]) -> Vec<(usize, usize)> {
        let regions = |world: &World, places: &[String]| -> BTreeSet<usize> {
            places
                .iter()
                .flat_map(|place| world.plan.regions_at(place))
                .collect()
        };
        let (from, to) = (regions(self, from), regions(self, to));
        let mut ways = Vec::new();
        for device in 0..self.devices.len() {
            let home = self.devices[device].home;
            for (near, far) in [(&from, &to), (&to, &from)] {
                if near.contains(&home) && self.rng.chance(800) {
                    ways.extend(far.iter().filter(|far| **far != home).map(|far| (device, *far)));
                }
            }
        }
        ways.sort_unstable();
        ways.dedup();
        ways
    }

    fn crash(&mut self, node: usize, lasts: Option<Micros>) -> bool {
        let runs = self.nodes[node].process.is_some();
        if runs {
            self.kill(node);
            if let Some(lasts) = lasts {
                self.after(lasts, Event::Start { node });
            }
        }
        runs
    }

    /// A node sends its clients to others, ends and starts again.
    fn drain(&mut self, node: usize, away: Micros) {
        if self.nodes[node].process.is_none() {
            return;
        }
        let (now, key) = (self.now, self.nodes[node].key.clone());
        self.trace.chapter(now, || format!("{key} drains"));
        for partition in 0..self.nodes[node].partitions {
            self.input(node, partition, Input::Drain);
        }
        self.after(DRAIN, Event::Undo(Undo::Crash { node }));
        self.after(DRAIN.saturating_add(away), Event::Start { node });
    }

    /// A node stands still: it takes nothing in, and nothing of it goes out.
    fn pause(&mut self, node: usize, lasts: Option<Micros>) -> bool {
        if self.nodes[node].process.is_none() {
            return false;
        }
        let lasts = lasts.unwrap_or(self.plan.work.saturating_sub(self.now));
        self.nodes[node].paused_until = self.now + lasts;
        self.disturb(node, Disturbed::All);
        for pair in 0..self.pairs.len() {
            if lasts > self.plan.network.idle && self.pairs[pair].has(node) {
                self.peer_break(pair);
            }
        }
        true
    }

    /// A region is gone for good, with all that only it had.
    fn lose(&mut self, region: usize) -> Result<(), &'static str> {
        self.may_do_without(region)?;
        self.lost_for_good(region);
        Ok(())
    }

    /// Whether the others have what they need without a region.
    pub(super) fn may_do_without(&mut self, region: usize) -> Result<(), &'static str> {
        let left = |other: &usize| *other != region && !self.wrong.gone.contains(other);
        if !(0..self.stores.len())
            .filter(left)
            .any(|other| self.is_whole(other))
        {
            return Err("no region that is left has everything just now");
        }
        if self.plan.accepts == Accepts::Geo && (0..self.stores.len()).filter(left).count() < 2 {
            return Err("with one region left nothing would be accepted for good");
        }
        if !self.change_does_without(region) {
            return Err("the change of the holders that goes on would leave too few");
        }
        Ok(())
    }

    pub(super) fn lost_for_good(&mut self, region: usize) {
        self.wrong.gone.insert(region);
        self.check.losses.push((self.now, region));
        for node in 0..self.nodes.len() {
            if self.nodes[node].region == region {
                self.kill(node);
            }
        }
    }

    fn disconnect(&mut self, device: usize) -> bool {
        let Some(conn) = self.devices[device].conn else {
            return false;
        };
        self.after(0, Event::ClientGone { conn });
        let delay = self.rng.between(0, 10_000) * MILLI;
        self.after(delay, Event::ServerGone { conn });
        true
    }

    fn relocate(&mut self, device: usize, to: usize, lasts: Option<Micros>) {
        self.device_leaves(device, false);
        self.devices[device].home = to;
        let delay = lasts.unwrap_or_else(|| self.rng.between(1, 1500) * MILLI);
        self.after(delay, Event::Arrive { device });
    }

    fn take_for_dead(&mut self, observer: usize, subject: usize, lasts: Option<Micros>) -> bool {
        let known = self.forget(observer, subject);
        let boot = self.nodes[observer].boot;
        if let Some(lasts) = lasts {
            self.after(
                lasts,
                Event::Undo(Undo::See {
                    observer,
                    boot,
                    subject,
                }),
            );
        }
        known
    }

    /// A node learns of all that run, whatever it believed.
    fn see_all(&mut self, observer: usize) {
        let boot = self.nodes[observer].boot;
        for subject in 0..self.nodes.len() {
            if subject != observer && self.nodes[subject].process.is_some() {
                let delay = self.rng.below(1000) * MILLI;
                self.after(
                    delay,
                    Event::Undo(Undo::See {
                        observer,
                        boot,
                        subject,
                    }),
                );
            }
        }
    }
}

/// Whether a fault of this kind is something that holds until it ends; the others strike and are over.
pub(super) fn keeps(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Cut
            | Kind::Flap
            | Kind::Clog
            | Kind::Slow
            | Kind::PresenceLost
            | Kind::StallRead
            | Kind::StallApp
            | Kind::StoreErrors
            | Kind::StoreSlow
            | Kind::StoreFull
            | Kind::Clock
            | Kind::Evacuate
    )
}

/// Whether something was struck.
fn any(struck: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if struck { Ok(()) } else { Err(otherwise) }
}

/// Whether there is somebody to strike.
fn some<T>(all: &[T], otherwise: &'static str) -> Result<(), &'static str> {
    any(!all.is_empty(), otherwise)
}

/// One less of it; whether none is left.
fn lower(counts: &mut BTreeMap<(usize, usize), u32>, way: (usize, usize)) -> bool {
    let Some(count) = counts.get_mut(&way) else {
        return false;
    };
    *count -= 1;
    if *count == 0 {
        counts.remove(&way);
        return true;
    }
    false
}
