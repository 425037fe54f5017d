//! Nodes: how they start and die, and what each believes of the others.
//!
//! Membership is modelled: every observer learns of starts and deaths at its own time, and may take a living node for dead.

use std::collections::{BTreeMap, VecDeque};

use super::case::Clients;
use super::defect::Defect;
use super::ghosts::Disturbed;
use super::queues::Queues;
use super::rng::SimRng;
use super::world::{Event, Process, Task, World};
use crate::core::ids::{Generation, RegionId};
use crate::core::members::{Member, Members};
use crate::core::node::{Input, Partition, PartitionConfig};
use crate::core::wire::RegionEndpoints;

impl World {
    /// Starts a node that does not run.
    pub(super) fn start(&mut self, index: usize) {
        if self.nodes[index].process.is_some() {
            return;
        }
        let region = self.nodes[index].region;
        if self.wrong.gone.contains(&region) || self.parts.out.contains(&region) {
            return;
        }
        let core = self.nodes[index].core;
        let shared = self.plan.engine == super::case::EngineKind::Shared;
        if core && shared && !self.open_shared(region) {
            return;
        }
        let store = if core && !shared {
            match self.open_store(region) {
                Some(store) => Some(store),
                None => return,
            }
        } else {
            None
        };
        self.disturb_by_life(index);
        let mut holders = self.holding();
        if self.defect != Some(Defect::TrimWithoutStable) {
            let opened = store
                .as_ref()
                .map(|store| store.engine.identity().holders.clone());
            holders = opened.unwrap_or(holders);
        }
        let now = self.now;
        let node = &mut self.nodes[index];
        node.boot += 1;
        node.started = now;
        node.paused_until = 0;
        node.generation = (node.generation + 1).max(node.wall_ms(now));
        let (generation, partitions, key) = (node.generation, node.partitions, node.key.clone());
        self.trace
            .chapter(now, || format!("{key} starts, generation {generation}"));
        let clocks = self.clocks(index);
        let mut tasks = Vec::new();
        for partition in 0..partitions {
            let config = PartitionConfig {
                me: self.addr(index, partition),
                generation: Generation(generation),
                sharding: self.plan.sharding(),
                holders: holders.clone(),
                limits: self.plan.limits.clone(),
                durability: self.plan.accepts.policy(),
                core,
                edge: self.nodes[index].edge,
            };
            let machine = Partition::new(config, self.rng.seed(), clocks);
            tasks.push(Task {
                machine,
                inbox: VecDeque::new(),
                wake_at: None,
                spins: (0, 0),
                queues: Queues::default(),
            });
        }
        let view = BTreeMap::from([(index, generation)]);
        self.nodes[index].process = Some(Process { tasks, store, view });
        let endpoints = self.endpoints(region);
        let members = self.members(index);
        for partition in 0..partitions {
            self.input(index, partition, Input::Endpoints(endpoints.clone()));
            self.input(index, partition, Input::Members(members.clone()));
        }
        self.start_evacuated(index);
        self.seen(index);
        self.dial_all(index);
    }

    /// Everybody learns of a node that started, and it of the others, each at its own time.
    fn seen(&mut self, index: usize) {
        let generation = self.nodes[index].generation;
        for other in 0..self.nodes.len() {
            let near = self.nodes[other].region == self.nodes[index].region;
            let (min, max) = (self.plan.membership.seen_min, self.plan.membership.seen_max);
            let times = if near { 1 } else { 3 };
            let delay = |rng: &mut SimRng| rng.between(times * min, times * max);
            if other == index || self.nodes[other].process.is_none() {
                continue;
            }
            let (there, back) = (delay(&mut self.rng), delay(&mut self.rng));
            let (boot, other_boot) = (self.nodes[index].boot, self.nodes[other].boot);
            let other_generation = self.nodes[other].generation;
            self.after(
                there,
                Event::View {
                    observer: other,
                    boot: other_boot,
                    subject: index,
                    generation: Some(generation),
                },
            );
            self.after(
                back,
                Event::View {
                    observer: index,
                    boot,
                    subject: other,
                    generation: Some(other_generation),
                },
            );
        }
    }

    /// A node dies: all that it had in memory is gone.
    pub(super) fn kill(&mut self, index: usize) {
        let Some(process) = self.nodes[index].process.take() else {
            return;
        };
        self.disturb_by_life(index);
        let (now, key) = (self.now, self.nodes[index].key.clone());
        self.trace.chapter(now, || format!("{key} dies"));
        self.nodes[index].boot += 1;
        if let Some(store) = process.store {
            self.crash_store(self.nodes[index].region, store);
        }
        self.drop_peers(index);
        self.drop_clients(index);
        for observer in 0..self.nodes.len() {
            if observer == index || self.nodes[observer].process.is_none() {
                continue;
            }
            let (min, max) = (self.plan.membership.death_min, self.plan.membership.death_max);
            let delay = self.rng.between(min, max);
            let boot = self.nodes[observer].boot;
            self.after(
                delay,
                Event::View {
                    observer,
                    boot,
                    subject: index,
                    generation: None,
                },
            );
        }
    }

    /// `None` takes the subject for dead, unless it runs or its death is news of an older life.
    pub(super) fn view_changes(
        &mut self,
        observer: usize,
        boot: u64,
        subject: usize,
        generation: Option<u64>,
    ) {
        if self.nodes[observer].boot != boot {
            return;
        }
        let alive = self.nodes[subject].process.is_some();
        let current = self.nodes[subject].generation;
        let Some(process) = &mut self.nodes[observer].process else {
            return;
        };
        let before = process.view.get(&subject).copied();
        match generation {
            Some(generation) if before.is_none_or(|known| known < generation) => {
                process.view.insert(subject, generation);
            }
            None if !alive || before.is_some_and(|known| known < current) => {
                process.view.remove(&subject);
            }
            _ => return,
        }
        if process.view.get(&subject).copied() != before {
            // That an edge came or went is got over from when it did.
            if self.nodes[subject].core {
                self.disturb(observer, Disturbed::All);
            }
            self.tell_members(observer);
        }
    }

    /// An observer takes a living node for dead; whether it took it for alive.
    pub(super) fn forget(&mut self, observer: usize, subject: usize) -> bool {
        let process = self.nodes[observer].process.as_mut();
        let known = process.is_some_and(|process| process.view.remove(&subject).is_some());
        if known {
            self.disturb(observer, Disturbed::All);
            self.tell_members(observer);
        }
        known
    }

    fn tell_members(&mut self, observer: usize) {
        let members = self.members(observer);
        let (now, key) = (self.now, self.nodes[observer].key.clone());
        self.trace.tell(now, || {
            let names: Vec<String> = members
                .regions
                .values()
                .flat_map(|nodes| nodes.values())
                .map(|member| format!("{}.{}", member.key, member.generation))
                .collect();
            format!("{key} sees {}", names.join(" "))
        });
        for partition in 0..self.nodes[observer].partitions {
            self.input(observer, partition, Input::Members(members.clone()));
        }
    }

    fn members(&self, observer: usize) -> Members {
        let view = self.nodes[observer].process.as_ref().map(|process| &process.view);
        let seen = view.into_iter().flatten().map(|(subject, generation)| {
            let node = &self.nodes[*subject];
            Member {
                key: node.key.clone(),
                generation: Generation(*generation),
                partitions: node.partitions,
                core: node.core,
                edge: node.edge,
                ready: true,
                client: node.edge.then(|| node.key.to_string()),
            }
        });
        Members::new(seen)
    }

    /// The other region that serves an edge, if one does.
    pub(super) fn served_elsewhere(&self, node: usize) -> Option<&RegionId> {
        let tasks = self.nodes[node].process.iter().flat_map(|process| &process.tasks);
        let mut serving = tasks.map(|task| task.machine.edge().served_by());
        serving.find(|region| **region != self.nodes[node].key.region)
    }

    /// The endpoints that a region tells its clients: its own first, those of evacuated regions last.
    pub(super) fn endpoints(&self, region: usize) -> Vec<RegionEndpoints> {
        let mut order: Vec<usize> = (0..self.plan.places.len()).collect();
        // Servers name the nearest first; other cases have the order in which they were drawn.
        let far = |at: usize| match self.plan.clients {
            Clients::AsShipped => self.plan.delay(region, at),
            Clients::Hasty => 0,
        };
        order.sort_by_key(|at| (*at != region, self.evacuations.has(*at), far(*at), *at));
        order
            .into_iter()
            .map(|at| RegionEndpoints {
                region: self.plan.places[at].id.clone(),
                endpoints: self
                    .nodes
                    .iter()
                    .filter(|node| node.region == at && node.edge)
                    .map(|node| node.key.to_string())
                    .collect(),
            })
            .collect()
    }
}
