//! The stores of the regions: engines below an effect with latency, and the crashes that they live through.
//!
//! A store does one thing after the other, as the store thread does. What a commit wrote is volatile until it ends; a crash
//! in between keeps it or loses it, and nobody is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::case::{Case, EngineKind, MILLI, SECOND};
use super::defect::Defect;
use super::rng::SimRng;
use super::trace::Micros;
use super::world::{Event, World};
use crate::core::commit::{Outcome, StoreOp};
use crate::core::defect::Defect as CoreDefect;
use crate::core::ids::{MessageId, Origin, RegionId, UserId};
use crate::core::node::Input;
use crate::core::state::StoreIdentity;
use crate::core::storage::{Committed, Read, StoreError};
use crate::store::disk::{CrashMode, SimDisk};
use crate::store::embedded::tables::MemTables;
use crate::store::embedded::{EmbeddedEngine, Options};
use crate::store::engine::Engine;
use crate::store::memory::{MemoryDisk, MemoryEngine};

/// What of a region's store outlives its node.
pub(super) struct RegionStore {
    medium: Medium,
    created: bool,
    identity: StoreIdentity,
    pub(super) backup: Option<super::loss::Backup>,
    /// The running store, where it is not one node's.
    shared: Option<Store>,
}

pub(super) enum Medium {
    Memory(MemoryDisk),
    Embedded(Box<Embedded>),
}

pub(super) struct Embedded {
    disk: SimDisk,
    tables: MemTables,
    options: Options,
    /// Decides what a crash does with what was not synced.
    rot: SimRng,
}

/// The store of a running node.
pub(super) struct Store {
    pub(super) engine: Box<dyn Engine>,
    jobs: VecDeque<Job>,
    running: Option<Running>,
    /// What was appended, for the defect that takes a message that comes again for a new one.
    appended: BTreeSet<(UserId, UserId, MessageId)>,
    dead: bool,
}

struct Job {
    /// Who asked, and in which of its lives.
    asker: (usize, u64),
    partition: u8,
    token: u64,
    what: What,
}

enum What {
    Commit(Vec<StoreOp>, u64),
    Read(Read),
}

struct Running {
    asker: (usize, u64),
    partition: u8,
    /// `None` where it was answered before it ended, or is not known before.
    answer: Option<Input>,
    commit: Option<(Vec<StoreOp>, Committed)>,
    /// A commit whose engine makes it durable before it returns: called when it ends.
    later: Option<(u64, Vec<StoreOp>, u64)>,
}

impl RegionStore {
    pub(super) fn new(plan: &Case, region: usize, rng: &mut SimRng, defect: Option<Defect>) -> Self {
        let name = plan.places[region].id.clone();
        let holders = match defect {
            // Only its own confirmations count then.
            Some(Defect::TrimWithoutStable) => BTreeSet::from([name.clone()]),
            _ => plan.holders(),
        };
        // This defect lives in what the memory disk holds back.
        let held = [
            Some(Defect::AckBeforeCommit),
            Some(Defect::Core(CoreDefect::ShipBeforeCommit)),
        ]
        .contains(&defect);
        let medium = match plan.engine {
            EngineKind::Embedded if !held => embedded(rng, defect),
            _ => {
                let disk = MemoryDisk::new();
                disk.hold(true);
                Medium::Memory(disk)
            }
        };
        Self {
            medium,
            created: false,
            backup: None,
            shared: None,
            identity: StoreIdentity {
                cluster: 7,
                region: name,
                origin: Origin(0),
                holders,
                sharding: plan.sharding(),
                limits: plan.store_limits(),
                joining: region != plan.begins_in(),
            },
        }
    }

    /// An empty store that is made from now on is one of these regions.
    pub(super) fn begin_with(&mut self, holders: BTreeSet<RegionId>) {
        self.identity.holders = holders;
    }

    /// The origin under which the store was first opened: this one, where it was not.
    fn first_origin(&mut self, origin: u64) -> u64 {
        let first = &mut self.identity.origin.0;
        if *first == 0 {
            *first = origin;
        }
        *first
    }

    /// Opens the store under a new origin (R1).
    fn open(&mut self, origin: u64) -> Result<Box<dyn Engine>, String> {
        let identity = StoreIdentity {
            origin: Origin(origin),
            ..self.identity.clone()
        };
        let created = self.created;
        let opened = match &self.medium {
            Medium::Memory(disk) => {
                let engine = if created {
                    MemoryEngine::open(disk.clone(), identity)
                } else {
                    MemoryEngine::create(disk.clone(), identity)
                };
                engine.map(|engine| Box::new(engine) as Box<dyn Engine>)
            }
            Medium::Embedded(store) => {
                let Embedded {
                    disk,
                    tables,
                    options,
                    ..
                } = store.as_ref();
                let (disk, tables, options) = (disk.clone(), tables.clone(), options.clone());
                let engine = if created {
                    EmbeddedEngine::open(disk, tables, identity, options).map(|(engine, _)| engine)
                } else {
                    EmbeddedEngine::create(disk, tables, identity, options)
                };
                engine.map(|engine| Box::new(engine) as Box<dyn Engine>)
            }
        };
        self.created |= opened.is_ok();
        opened.map_err(|error| error.to_string())
    }

    /// An empty disk takes the place of the one before, and what is made on it joins.
    pub(super) fn replace_disk(&mut self) -> Medium {
        let empty = match &self.medium {
            Medium::Memory(_) => {
                let disk = MemoryDisk::new();
                disk.hold(true);
                Medium::Memory(disk)
            }
            Medium::Embedded(store) => Medium::Embedded(Box::new(Embedded {
                disk: SimDisk::new(7),
                tables: MemTables::new(),
                options: store.options.clone(),
                rot: store.rot.clone(),
            })),
        };
        self.created = false;
        self.identity.joining = true;
        std::mem::replace(&mut self.medium, empty)
    }

    /// A copy of what is durable.
    pub(super) fn copy(&self) -> Option<Medium> {
        if !self.created {
            return None;
        }
        Some(match &self.medium {
            Medium::Memory(disk) => {
                let copy = disk.fork();
                copy.crash();
                Medium::Memory(copy)
            }
            Medium::Embedded(store) => {
                let (disk, tables) = (store.disk.fork(), store.tables.fork());
                disk.crash(CrashMode::LoseAll);
                // Taken of a full disk or not, it is laid back onto one with room.
                disk.set_capacity(None);
                tables.crash(|| false);
                Medium::Embedded(Box::new(Embedded {
                    disk,
                    tables,
                    options: store.options.clone(),
                    rot: store.rot.clone(),
                }))
            }
        })
    }

    pub(super) fn restore(&mut self, medium: Medium) {
        self.medium = medium;
        self.created = true;
    }

    /// Whether a commit is durable when the engine returns from it.
    fn commits_at_once(&self) -> bool {
        matches!(self.medium, Medium::Embedded(_))
    }

    fn is_memory(&self) -> bool {
        matches!(self.medium, Medium::Memory(_))
    }

    /// The disk takes nothing more, or does again. A map in memory has no size: its commits are refused where they come.
    pub(super) fn full(&self, full: bool) {
        if let Medium::Embedded(store) = &self.medium {
            store.disk.set_capacity(full.then_some(0));
        }
    }

    fn sync(&self) {
        match &self.medium {
            Medium::Memory(disk) => disk.make_durable(disk.commits()),
            Medium::Embedded(_) => {}
        }
    }

    /// Lets the power fail after a few more writes, so that a commit is torn.
    fn fail_soon(&self, changes: u64) {
        match &self.medium {
            Medium::Memory(_) => {}
            Medium::Embedded(store) => store.disk.power_off_after(changes),
        }
    }

    fn crash(&mut self) {
        match &mut self.medium {
            Medium::Memory(disk) => disk.crash(),
            Medium::Embedded(store) => {
                let Embedded {
                    disk, tables, rot, ..
                } = store.as_mut();
                let mode = [CrashMode::KeepAll, CrashMode::LoseAll, CrashMode::Random][rot.index(3)];
                disk.crash(mode);
                match mode {
                    CrashMode::KeepAll => tables.crash(|| true),
                    CrashMode::LoseAll => tables.crash(|| false),
                    CrashMode::Random => tables.crash(|| rot.chance(500)),
                }
            }
        }
    }
}

/// A journal and tables so small that they turn over often.
fn embedded(rng: &mut SimRng, defect: Option<Defect>) -> Medium {
    let disk = SimDisk::new(rng.bits());
    disk.set_ignore_sync(defect == Some(Defect::SyncIgnored));
    let tables = MemTables::new();
    tables.slow_flush(rng.below(4) as u32);
    let options = Options {
        segment_bytes: 64 * 1024,
        checkpoint_bytes: rng.between(2, 60) * 1024,
        memory_bytes: rng.between(1, 200) as usize * 1024,
        slice_bytes: rng.between(1, 32) as usize * 1024,
        ..Options::default()
    };
    let rot = SimRng::new(rng.bits());
    Medium::Embedded(Box::new(Embedded {
        disk,
        tables,
        options,
        rot,
    }))
}

impl World {
    /// Opens the store that the nodes of a region share, unless it is open: its origin is as old as itself (R1).
    pub(super) fn open_shared(&mut self, region: usize) -> bool {
        if self.stores[region].shared.is_none() {
            self.stores[region].shared = self.open_store(region);
        }
        self.stores[region].shared.is_some()
    }

    pub(super) fn open_store(&mut self, region: usize) -> Option<Store> {
        let mut origin = self.rng.bits() | 1;
        if self.defect == Some(Defect::Core(CoreDefect::OriginReused)) {
            origin = self.stores[region].first_origin(origin);
        }
        match self.stores[region].open(origin) {
            Ok(engine) => {
                let mut store = Store {
                    engine,
                    jobs: VecDeque::new(),
                    running: None,
                    appended: BTreeSet::new(),
                    dead: false,
                };
                self.check_opened(region, store.engine.as_mut());
                Some(store)
            }
            // It says so, and whoever looks after the node starts it again.
            Err(error) if self.wrong.store_full(region) => {
                let (now, name) = (self.now, self.region_name(region).clone());
                self.trace
                    .tell(now, || format!("the store of {name} does not open: {error}"));
                let node = self.core_of(region);
                self.after(SECOND, Event::Start { node });
                None
            }
            Err(error) => {
                let detail = format!("the store of {} does not open: {error}", self.region_name(region));
                self.fail("durability", detail, Vec::new());
                None
            }
        }
    }

    /// The store of a region, if its node runs.
    pub(super) fn engine(&mut self, region: usize) -> Option<&mut dyn Engine> {
        let core = self.core_of(region);
        let store = self.store(core)?;
        (!store.dead).then_some(store.engine.as_mut())
    }

    pub(super) fn commit(&mut self, node: usize, partition: u8, token: u64, ops: Vec<StoreOp>, now_ms: u64) {
        let what = What::Commit(ops, now_ms);
        self.job(
            node,
            Job {
                asker: (node, self.nodes[node].boot),
                partition,
                token,
                what,
            },
        );
    }

    pub(super) fn read(&mut self, node: usize, partition: u8, token: u64, read: Read) {
        let what = What::Read(read);
        self.job(
            node,
            Job {
                asker: (node, self.nodes[node].boot),
                partition,
                token,
                what,
            },
        );
    }

    fn job(&mut self, node: usize, job: Job) {
        let Some(store) = self.store(node) else {
            let detail = format!("{} has no store, and asks it", self.nodes[node].key);
            return self.fail("addresses", detail, Vec::new());
        };
        let kind = matches!(job.what, What::Commit(..));
        let same = |other: &&Job| (other.asker, other.partition) == (job.asker, job.partition);
        let mut others = store.jobs.iter().filter(same);
        let twice = kind && others.any(|other| matches!(other.what, What::Commit(..)));
        store.jobs.push_back(job);
        if twice {
            self.fail(
                "one commit in flight",
                self.nodes[node].key.to_string(),
                Vec::new(),
            );
        }
        self.run_store(node);
    }

    pub(super) fn is_shared(&self) -> bool {
        self.plan.engine == EngineKind::Shared
    }

    /// Whether the life in which a node asked is over.
    fn is_over(&self, (node, boot): (usize, u64)) -> bool {
        self.nodes[node].boot != boot
    }

    fn store(&mut self, node: usize) -> Option<&mut Store> {
        if self.is_shared() {
            return self.stores[self.nodes[node].region].shared.as_mut();
        }
        self.nodes[node].process.as_mut()?.store.as_mut()
    }

    fn run_store(&mut self, node: usize) {
        let region = self.nodes[node].region;
        let Some(store) = self.store(node) else {
            return;
        };
        if store.running.is_some() {
            return;
        }
        let Some(job) = store.jobs.pop_front() else {
            return;
        };
        // What a node that died had asked of a shared store goes through, or does not.
        if self.is_over(job.asker) && (matches!(job.what, What::Read(_)) || self.rng.chance(500)) {
            return self.run_store(node);
        }
        let latency = match &job.what {
            What::Read(_) => 30 + self.rng.below(300),
            What::Commit(..) => self.commit_latency(region),
        };
        let Job {
            asker,
            partition,
            token,
            what,
        } = job;
        let running = match what {
            What::Read(read) => {
                let Some(store) = self.store(node) else {
                    return;
                };
                let result = store.engine.read(&read);
                Running {
                    asker,
                    partition,
                    answer: Some(Input::Answered { token, result }),
                    commit: None,
                    later: None,
                }
            }
            What::Commit(ops, now_ms) if self.stores[region].commits_at_once() => Running {
                asker,
                partition,
                answer: None,
                commit: None,
                later: Some((token, ops, now_ms)),
            },
            What::Commit(ops, now_ms) => {
                let result = self.try_commit(node, ops.clone(), now_ms);
                if let Ok(committed) = &result {
                    self.tell_commit(region, &ops, committed);
                }
                let commit = result.as_ref().ok().map(|committed| (ops, committed.clone()));
                let answer = Some(Input::Committed { token, result });
                Running {
                    asker,
                    partition,
                    answer,
                    commit,
                    later: None,
                }
            }
        };
        let mut running = running;
        let early = self.defect == Some(Defect::AckBeforeCommit) && running.commit.is_some();
        if early && let Some(answer) = running.answer.take() {
            self.input(asker.0, partition, answer);
        }
        if self.defect == Some(Defect::Core(CoreDefect::ShipBeforeCommit))
            && let Some((_, committed)) = &running.commit
        {
            let early = Committed {
                outcomes: Vec::new(),
                logged: committed.logged.clone(),
            };
            self.input(
                asker.0,
                partition,
                Input::Committed {
                    token,
                    result: Ok(early),
                },
            );
        }
        let boot = self.nodes[node].boot;
        if let Some(store) = self.store(node) {
            store.running = Some(running);
        }
        self.after(latency, Event::StoreDone { node, boot });
    }

    fn commit_latency(&mut self, region: usize) -> Micros {
        let works = self.stage == super::world::Stage::Work;
        let extra = self.wrong.store_slow(region);
        let slow = self.rng.chance(self.plan.store.stalls.into()) && works;
        let latency = if slow {
            self.rng.between(200, 1500) * MILLI
        } else {
            100 + self.rng.below(self.plan.store.latency)
        };
        latency + extra
    }

    fn try_commit(&mut self, node: usize, ops: Vec<StoreOp>, now_ms: u64) -> Result<Committed, StoreError> {
        let region = self.nodes[node].region;
        let works = self.stage == super::world::Stage::Work;
        let errors = self.wrong.store_errors(region).max(self.plan.store.errors);
        if works && self.rng.chance(errors.into()) {
            return Err(StoreError::Retryable("injected".to_owned()));
        }
        if self.wrong.store_full(region) && self.stores[region].is_memory() {
            self.check.stats.store_full += 1;
            return Err(StoreError::Full("injected".to_owned()));
        }
        let fresh = self.rng.seed();
        let dedup_off = self.defect == Some(Defect::DedupOff);
        let Some(store) = self.store(node) else {
            return Err(StoreError::Fatal("the store is gone".to_owned()));
        };
        if store.dead {
            return Err(StoreError::Fatal("the store stopped".to_owned()));
        }
        let ops = if dedup_off {
            store.forget_ids(ops, fresh)
        } else {
            ops
        };
        let result = store.engine.commit(ops, now_ms);
        let full = matches!(result, Err(StoreError::Full(_)));
        self.check.stats.store_full += u64::from(full);
        result
    }

    /// What the store did has ended: it is durable, and the answer leaves.
    pub(super) fn store_done(&mut self, node: usize, boot: u64) {
        if self.is_over((node, boot)) && !self.is_shared() {
            return;
        }
        let region = self.nodes[node].region;
        let Some(mut running) = self.store(node).and_then(|store| store.running.take()) else {
            return;
        };
        if let Some((token, ops, now_ms)) = running.later.take() {
            let result = self.try_commit(node, ops.clone(), now_ms);
            if let Ok(committed) = &result {
                self.tell_commit(region, &ops, committed);
                running.commit = Some((ops, committed.clone()));
            }
            running.answer = Some(Input::Committed { token, result });
        }
        if let Some((ops, committed)) = &running.commit {
            if self.defect != Some(Defect::SyncIgnored) {
                self.stores[region].sync();
            }
            self.count_commit(ops, committed);
            self.check_commit(region, ops, committed);
        }
        if let Some(
            Input::Committed {
                result: Err(error), ..
            }
            | Input::Answered {
                result: Err(error), ..
            },
        ) = &running.answer
        {
            let (now, name) = (self.now, self.region_name(region).clone());
            self.trace.tell(now, || format!("store of {name} fails: {error}"));
            if let StoreError::Corrupt(_) = error {
                let detail = format!("the store of {name}: {error}");
                return self.fail("durability", detail, Vec::new());
            }
        }
        if let Some(answer) = running.answer.filter(|_| !self.is_over(running.asker)) {
            self.input(running.asker.0, running.partition, answer);
        }
        let Some(store) = self.store(node) else {
            return;
        };
        if store.jobs.is_empty() && !store.dead {
            let _ = store.engine.idle();
            if self.defect != Some(Defect::SyncIgnored) {
                self.stores[region].sync();
            }
        }
        self.run_store(node);
    }

    /// The node under a store died.
    pub(super) fn crash_store(&mut self, region: usize, mut store: Store) {
        let kept = self.rng.chance(500);
        let torn = self.rng.below(4);
        match store.running.take() {
            Some(Running { commit: Some(_), .. }) if kept && self.defect != Some(Defect::SyncIgnored) => {
                self.stores[region].sync();
            }
            Some(Running {
                later: Some((_, ops, now_ms)),
                ..
            }) if kept => {
                // It was under way: all of it, a part or nothing reaches the disk, and nobody is told.
                self.stores[region].fail_soon(torn);
                let _ = store.engine.commit(ops, now_ms);
            }
            _ => {}
        }
        drop(store);
        self.stores[region].crash();
    }

    /// The store stops under its node, which must be started again.
    pub(super) fn store_dies(&mut self, node: usize) -> Result<(), &'static str> {
        if self.is_shared() {
            return Err("a store that nodes share outlives them");
        }
        let store = self.store(node).ok_or("its core does not run")?;
        store.dead = true;
        let delay = self.rng.between(100, 1500) * MILLI;
        self.after(delay, Event::Undo(super::faults::Undo::Crash { node }));
        let restart = delay + self.rng.between(100, 4000) * MILLI;
        self.after(restart.max(SECOND / 10), Event::Start { node });
        Ok(())
    }

    /// What scenarios may expect to happen in stores.
    fn count_commit(&mut self, ops: &[StoreOp], committed: &Committed) {
        let stats = &mut self.check.stats;
        for (op, outcome) in ops.iter().zip(&committed.outcomes) {
            match (op, outcome) {
                (_, Outcome::Bumped { epoch }) if epoch.0 > 1 => stats.takeovers += 1,
                (StoreOp::Merge { page, .. }, Outcome::Done { .. }) if page.next.is_none() => {
                    stats.snapshots += 1;
                }
                _ => {}
            }
        }
    }

    fn tell_commit(&mut self, region: usize, ops: &[StoreOp], committed: &Committed) {
        let now = self.now;
        if !self.trace.telling() {
            return;
        }
        let name = self.region_name(region).clone();
        for (op, outcome) in ops.iter().zip(&committed.outcomes) {
            self.trace.tell(now, || {
                format!("store of {name}: {}", super::report::commit(op, outcome))
            });
        }
    }
}

impl Store {
    /// Gives a new id to what was appended before.
    fn forget_ids(&mut self, mut ops: Vec<StoreOp>, fresh: [u8; 32]) -> Vec<StoreOp> {
        let mut renamed: BTreeMap<MessageId, u8> = BTreeMap::new();
        for op in &mut ops {
            let StoreOp::Append { envelope, .. } = op else {
                continue;
            };
            let key = (envelope.to.clone(), envelope.from.clone(), envelope.id);
            if !self.appended.insert(key) {
                let count = renamed.entry(envelope.id).or_default();
                *count += 1;
                let mut random: [u8; 10] = fresh[..10].try_into().unwrap_or_default();
                random[9] = *count;
                envelope.id = MessageId::v7(envelope.id.unix_ms().unwrap_or(0), random);
            }
        }
        ops
    }
}
