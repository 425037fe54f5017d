//! The world of a run: every node, store, connection and client, one queue of events, one clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::case::{Case, MILLI, SECOND};
use super::check::Checker;
use super::clients::Client;
use super::defect::Defect;
use super::device::Device;
use super::evacuate::Evacuations;
use super::expect::Apart;
use super::fault::Kind;
use super::faults::{Undo, Wrong};
use super::ghosts::Calm;
use super::holders::Parts;
use super::network::{Pair, Stalled};
use super::queues::Queues;
use super::rng::SimRng;
use super::settle::Bounds;
use super::storage::{RegionStore, Store};
use super::timeline::Timeline;
use super::trace::{Micros, Trace};
use super::witness::Witness;
use crate::core::ids::{Addr, NodeKey, RegionId, ShardId};
use crate::core::link::LinkAlarm;
use crate::core::msg::{MAX_PEER_MESSAGE, Message};
use crate::core::node::{Input, Output, Partition};
use crate::core::time::{Mono, Now};

/// Unix milliseconds at the start of a run.
pub(super) const EPOCH_MS: u64 = 1_780_000_000_000;
/// Inputs that a partition takes before its outputs are polled, as the driver does.
const BATCH: usize = 256;
/// Most inputs that may wait for a partition: its windows and credits must keep it far below.
const INBOX_LIMIT: usize = 20_000;
/// A partition that is woken by its timers this often within a second, to no effect, is in a busy loop.
const SPIN_LIMIT: u32 = 1_000;
/// Most outputs of one wake-up.
const OUTPUT_LIMIT: usize = 100_000;

/// What may happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A node starts.
    Start { node: usize },
    /// A partition has something to do.
    Wake { node: usize, boot: u64, partition: u8 },
    /// The store of a node ends what it was doing.
    StoreDone { node: usize, boot: u64 },
    /// A message between partitions of one node arrives.
    Local {
        node: usize,
        boot: u64,
        from: u8,
        to: u8,
        bytes: Bytes,
    },
    /// A message between nodes arrives.
    Peer {
        pair: usize,
        side: usize,
        inc: u64,
        number: u64,
        from: u8,
        to: u8,
        stream: u8,
        bytes: Bytes,
    },
    /// A connection between nodes stands, as one side sees it.
    PeerUp { pair: usize, side: usize, inc: u64 },
    /// One side may have heard nothing for too long.
    PeerIdle {
        pair: usize,
        side: usize,
        inc: u64,
        silent: u64,
    },
    /// Somebody tries to connect.
    PeerDial { pair: usize },
    /// An observer's view of a node changes.
    View {
        observer: usize,
        boot: u64,
        subject: usize,
        generation: Option<u64>,
    },
    /// Bytes of a client arrive at its edge.
    ToServer { conn: u64, number: u64, bytes: Bytes },
    /// Bytes of an edge arrive at its client.
    ToClient { conn: u64, number: u64, bytes: Bytes },
    /// A client's attempt ends; with a connection or without.
    Connected {
        device: usize,
        life: u64,
        attempt: u64,
        conn: Option<u64>,
    },
    /// The edge learns that a client's connection is gone.
    ServerGone { conn: u64 },
    /// The client learns it.
    ClientGone { conn: u64 },
    /// A client's timer.
    DeviceTimer { device: usize, life: u64 },
    /// The application handles a message.
    Consume { device: usize, life: u64 },
    /// A device comes.
    Arrive { device: usize },
    /// Somebody does something.
    Act { act: usize },
    /// Something goes wrong, or goes on to.
    Fault { fault: usize, round: u32 },
    /// Something that went wrong ends.
    Undo(Undo),
    /// Somebody looks from outside; nothing changes by it.
    Look,
    /// The same, at what watchers see.
    Ghosts,
    /// Somebody looks how far a change of the holders is.
    Holders,
    /// Everything heals.
    Heal,
    /// Whether all is as it must be by now.
    Settle,
}

/// A partition of a running node and what waits for it.
pub(super) struct Task {
    pub(super) machine: Partition,
    pub(super) inbox: VecDeque<Input>,
    pub(super) wake_at: Option<Micros>,
    /// Wake-ups without effect, and the second in which they are counted.
    pub(super) spins: (Micros, u32),
    pub(super) queues: Queues,
}

/// A running node.
pub(super) struct Process {
    pub(super) tasks: Vec<Task>,
    pub(super) store: Option<Store>,
    /// What it believes of every node: the generation it takes for alive.
    pub(super) view: BTreeMap<usize, u64>,
}

/// A node, running or not.
pub(super) struct Node {
    pub(super) key: NodeKey,
    pub(super) region: usize,
    pub(super) core: bool,
    pub(super) edge: bool,
    pub(super) partitions: u8,
    pub(super) clock_ms: i64,
    pub(super) drift_ppm: i32,
    pub(super) generation: u64,
    /// Counts starts: events of earlier lives are void.
    pub(super) boot: u64,
    pub(super) started: Micros,
    pub(super) paused_until: Micros,
    pub(super) process: Option<Process>,
}

/// What a run must not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise was broken.
    pub invariant: &'static str,
    /// How.
    pub detail: String,
    /// Words by which lines of the story belong to it.
    pub subjects: Vec<String>,
    /// When, in microseconds of virtual time.
    pub at: Micros,
}

/// The stages of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Messages are sent and things go wrong.
    Work,
    /// Nothing goes wrong any more: everything must come to an end.
    Settle,
    /// Some devices left; presence must follow.
    Leave,
    /// Nothing is to be done: nothing may be sent.
    Silence,
    /// Over.
    Done,
}

/// Everything.
pub(super) struct World {
    pub(super) now: Micros,
    queue: BTreeMap<(Micros, u64), Event>,
    ties: u64,
    pub(super) rng: SimRng,
    pub(super) plan: Case,
    pub(super) defect: Option<Defect>,
    pub(super) trace: Trace,
    pub(super) nodes: Vec<Node>,
    pub(super) stores: Vec<RegionStore>,
    pub(super) pairs: Vec<Pair>,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) next_conn: u64,
    pub(super) devices: Vec<Device>,
    /// Devices and users by name, which acts use.
    pub(super) named: BTreeMap<String, usize>,
    pub(super) named_users: BTreeMap<String, usize>,
    pub(super) wrong: Wrong,
    /// Kinds of faults that had an effect.
    pub(super) struck: BTreeSet<Kind>,
    pub(super) parts: Parts,
    pub(super) apart: Apart,
    pub(super) evacuations: Evacuations,
    pub(super) calm: Calm,
    pub(super) bounds: Bounds,
    pub(super) timeline: Timeline,
    pub(super) witness: Witness,
    pub(super) check: Checker,
    pub(super) stage: Stage,
    pub(super) healed_at: Micros,
    pub(super) silence_from: Micros,
    /// When something was last accepted or handled, and how much by then.
    pub(super) progress: (Micros, u64),
    pub(super) violation: Option<Violation>,
}

impl World {
    /// The world of a case whose faults and acts are drawn.
    pub(super) fn new(plan: Case, options: super::Options) -> World {
        let (defect, trace) = (options.defect, options.trace);
        let mut rng = SimRng::stream(plan.seed, super::draw::RUN);
        let nodes: Vec<Node> = plan.nodes.iter().map(|node| Node::planned(&plan, node)).collect();
        let stores = (0..plan.places.len())
            .map(|region| RegionStore::new(&plan, region, &mut rng, defect))
            .collect();
        let mut pairs = Vec::new();
        for a in 0..nodes.len() {
            for b in a + 1..nodes.len() {
                let falls_back = plan.limits.fallback_ms > 0 && (nodes[a].core || nodes[b].core);
                let cores = nodes[a].core && nodes[b].core;
                if nodes[a].region == nodes[b].region || cores || falls_back {
                    pairs.push(Pair::new(a, b));
                }
            }
        }
        let devices = Device::planned(&plan);
        let check = Checker::new(&plan, &devices);
        let mut world = World {
            now: 0,
            queue: BTreeMap::new(),
            ties: 0,
            rng,
            defect,
            trace: Trace::new(trace, options.chapter),
            nodes,
            stores,
            pairs,
            clients: BTreeMap::new(),
            next_conn: 1,
            named: devices
                .iter()
                .enumerate()
                .map(|(index, device)| (device.name(), index))
                .collect(),
            named_users: plan
                .users
                .iter()
                .enumerate()
                .map(|(index, user)| (user.name.clone(), index))
                .collect(),
            wrong: Wrong::default(),
            struck: BTreeSet::new(),
            parts: Parts::new(&plan),
            apart: Apart::default(),
            evacuations: Evacuations::default(),
            calm: Calm::new(&plan),
            bounds: Bounds::new(&plan),
            timeline: Timeline::new(options.timeline),
            witness: Witness::new(options.witness),
            devices,
            check,
            stage: Stage::Work,
            healed_at: 0,
            silence_from: 0,
            progress: (0, 0),
            violation: None,
            plan,
        };
        world.begin();
        world.begin_to_look_for_ghosts();
        world
    }

    fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            let at = self.rng.below(400 * MILLI);
            self.at(at, Event::Start { node });
        }
        for device in 0..self.devices.len() {
            if let Some(at) = self.devices[device].first {
                self.at(at, Event::Arrive { device });
            }
        }
        for fault in 0..self.plan.faults.len() {
            let at = self.plan.faults[fault].at;
            self.at(at, Event::Fault { fault, round: 0 });
        }
        if let Some(act) = self.plan.acts.first() {
            let at = act.at;
            self.at(at, Event::Act { act: 0 });
        }
        if self.plan.expect.unreachable_within.is_some() || self.timeline.wanted() {
            self.at(super::expect::LOOK, Event::Look);
        }
        let end = self.plan.work;
        self.at(end, Event::Heal);
    }

    /// Runs to the end, or to the first violation.
    pub(super) fn run(&mut self) {
        while self.violation.is_none() && self.stage != Stage::Done {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                return self.fail("progress", "nothing is left to happen".to_owned(), Vec::new());
            };
            self.now = self.now.max(at);
            self.happen(event);
            self.witness_looks();
        }
    }

    /// Schedules an event.
    pub(super) fn at(&mut self, at: Micros, event: Event) {
        self.ties += 1;
        self.queue.insert((at.max(self.now), self.ties), event);
    }

    /// Schedules an event in a while.
    pub(super) fn after(&mut self, delay: Micros, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The first broken promise ends the run.
    pub(super) fn fail(&mut self, invariant: &'static str, detail: String, subjects: Vec<String>) {
        let at = self.now;
        self.trace
            .chapter(at, || format!("VIOLATION of {invariant}: {detail}"));
        self.violation.get_or_insert(Violation {
            invariant,
            detail,
            subjects,
            at,
        });
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Start { node } => {
                self.trace.event(now, 1, node as u64, &[]);
                self.start(node);
            }
            Event::Wake {
                node,
                boot,
                partition,
            } => self.wake(node, boot, partition),
            Event::StoreDone { node, boot } => {
                self.trace.event(now, 2, node as u64, &[]);
                self.store_done(node, boot);
            }
            Event::Local {
                node,
                boot,
                from,
                to,
                bytes,
            } => {
                if self.nodes[node].boot == boot {
                    self.trace.event(now, 3, node as u64, &bytes);
                    let from = self.addr(node, from);
                    self.peer_input(node, to, from, &bytes);
                }
            }
            Event::Peer {
                pair,
                side,
                inc,
                number,
                from,
                to,
                stream,
                bytes,
            } => {
                let message = Stalled {
                    from,
                    to,
                    stream,
                    inc,
                    bytes,
                };
                self.peer_arrives(pair, side, number, message);
            }
            Event::PeerUp { pair, side, inc } => {
                self.trace.event(now, 5, pair as u64, &[side as u8]);
                self.peer_up(pair, side, inc);
            }
            Event::PeerIdle {
                pair,
                side,
                inc,
                silent,
            } => self.peer_idle(pair, side, inc, silent),
            Event::PeerDial { pair } => self.peer_dial(pair),
            Event::View {
                observer,
                boot,
                subject,
                generation,
            } => {
                self.trace.event(now, 6, observer as u64, &[subject as u8]);
                self.view_changes(observer, boot, subject, generation);
            }
            Event::ToServer { conn, number, bytes } => self.client_bytes_at_server(conn, number, bytes),
            Event::ToClient { conn, number, bytes } => self.client_bytes_at_client(conn, number, bytes),
            Event::Connected {
                device,
                life,
                attempt,
                conn,
            } => {
                self.trace.event(now, 9, device as u64, &[]);
                self.device_connected(device, life, attempt, conn);
            }
            Event::ServerGone { conn } => {
                self.trace.event(now, 10, conn, &[]);
                self.server_gone(conn);
            }
            Event::ClientGone { conn } => {
                self.trace.event(now, 11, conn, &[]);
                self.client_gone(conn);
            }
            Event::DeviceTimer { device, life } => self.device_timer(device, life),
            Event::Consume { device, life } => self.device_consumes(device, life),
            Event::Arrive { device } => {
                self.trace.event(now, 12, device as u64, &[]);
                self.device_arrives(device);
            }
            Event::Act { act } => self.act(act),
            Event::Fault { fault, round } => self.fault(fault, round),
            Event::Undo(undo) => self.undo(undo),
            Event::Look => self.look(),
            Event::Ghosts => self.look_for_ghosts(),
            Event::Holders => self.look_at_change(),
            Event::Heal => self.heal(),
            Event::Settle => self.settle(),
        }
    }

    /// The address of a partition.
    pub(super) fn addr(&self, node: usize, partition: u8) -> Addr {
        Addr {
            node: self.nodes[node].key.clone(),
            partition,
        }
    }

    /// The index of a node.
    pub(super) fn node_of(&self, key: &NodeKey) -> Option<usize> {
        self.nodes.iter().position(|node| node.key == *key)
    }

    /// The two clocks of a node.
    pub(super) fn clocks(&self, node: usize) -> Now {
        let node = &self.nodes[node];
        Now {
            mono: Mono(SECOND + self.now - node.started),
            wall_ms: node.wall_ms(self.now),
        }
    }

    /// Hands an input to a partition, which takes it up soon.
    pub(super) fn input(&mut self, node: usize, partition: u8, input: Input) {
        let delay = self.rng.below(100);
        let Some(task) = self.task(node, partition) else {
            return;
        };
        task.inbox.push_back(input);
        let waiting = task.inbox.len();
        self.wake_in(node, partition, delay);
        if waiting > INBOX_LIMIT {
            let detail = format!("{waiting} inputs wait for {}", self.addr(node, partition));
            self.fail("bounded queues", detail, Vec::new());
        }
    }

    /// A node that stood still goes on.
    pub(super) fn resume(&mut self, node: usize) {
        for partition in 0..self.nodes[node].partitions {
            self.wake_in(node, partition, 0);
        }
    }

    pub(super) fn task(&mut self, node: usize, partition: u8) -> Option<&mut Task> {
        self.nodes[node]
            .process
            .as_mut()?
            .tasks
            .get_mut(usize::from(partition))
    }

    fn wake_in(&mut self, node: usize, partition: u8, delay: Micros) {
        let at = (self.now + delay).max(self.nodes[node].paused_until);
        let boot = self.nodes[node].boot;
        let Some(task) = self.task(node, partition) else {
            return;
        };
        if task.wake_at.is_none_or(|planned| at < planned) {
            task.wake_at = Some(at);
            self.at(
                at,
                Event::Wake {
                    node,
                    boot,
                    partition,
                },
            );
        }
    }

    /// One turn of a partition's loop: inputs, timers, outputs.
    fn wake(&mut self, node: usize, boot: u64, partition: u8) {
        if self.nodes[node].boot != boot {
            return;
        }
        let (now, paused_until) = (self.now, self.nodes[node].paused_until);
        let clocks = self.clocks(node);
        let limits = self.plan.limits.clone();
        let Some(task) = self.task(node, partition) else {
            return;
        };
        if task.wake_at != Some(now) {
            return;
        }
        task.wake_at = None;
        if now < paused_until {
            return self.wake_in(node, partition, 0);
        }
        let batch = task.inbox.len().min(BATCH);
        for input in task.inbox.drain(..batch) {
            task.queues.took(&input);
            task.machine.handle(input, clocks);
        }
        if task.machine.poll_timeout().is_some_and(|due| due <= clocks.mono) {
            task.machine.handle_timeout(clocks);
        }
        let mut outputs = Vec::new();
        while let Some(output) = task.machine.poll_output() {
            task.queues.said(&output, &limits);
            outputs.push(output);
            if outputs.len() > OUTPUT_LIMIT {
                break;
            }
        }
        let flooding = outputs.len() > OUTPUT_LIMIT;
        let second = now / SECOND;
        if task.spins.0 != second {
            task.spins = (second, 0);
        }
        task.spins.1 += u32::from(batch == 0 && outputs.is_empty());
        let due = [
            task.machine.edge().poll_timeout(),
            task.machine.owner().poll_timeout(),
            task.machine.links().poll_timeout(),
        ];
        let spinning = task.spins.1 > SPIN_LIMIT;
        self.trace.event(
            now,
            4,
            node as u64,
            &[partition, batch as u8, outputs.len() as u8],
        );
        for output in outputs {
            self.output(node, partition, output);
        }
        if spinning || flooding {
            let mono = clocks.mono;
            let detail = format!(
                "{} works without end: its edge, owner and links want to be called at {due:?}; it is {mono:?}",
                self.addr(node, partition)
            );
            self.fail("progress", detail, Vec::new());
        }
        self.check_limits(node, partition);
        let Some(task) = self.task(node, partition) else {
            return;
        };
        let more = !task.inbox.is_empty();
        let due = task.machine.poll_timeout();
        if more {
            self.wake_in(node, partition, 1);
        } else if let Some(due) = due {
            // Timers fire a little late, as on a busy machine.
            let late = due.0.saturating_sub(clocks.mono.0).max(1);
            self.wake_in(node, partition, late);
        }
    }

    fn output(&mut self, node: usize, partition: u8, output: Output) {
        match output {
            Output::Client { conn, frames } => self.frames_to_client(node, conn, frames),
            Output::Close { conn, code, detail } => self.close_client(node, conn, code, &detail),
            Output::Peer { to, message } => self.peer_output(node, partition, to, message),
            Output::Commit { token, ops, now_ms } => self.commit(node, partition, token, ops, now_ms),
            Output::Read { token, read } => self.read(node, partition, token, read),
            Output::Alarm(LinkAlarm::Refused { .. }) if self.may_not_know_regions() => {}
            Output::Alarm(alarm) => self.alarm(node, &format!("{alarm:?}")),
            Output::Recovery {
                shard,
                recovering,
                detail,
            } => self.recovery(node, shard, recovering, &detail),
            Output::Stop(alarm) => self.alarm(node, &format!("{alarm:?}")),
            // Nobody asks here.
            Output::Told { .. } => {}
            Output::Regions(regions) => self.regions_told(node, &regions),
        }
    }

    fn recovery(&mut self, node: usize, shard: ShardId, recovering: bool, why: &str) {
        let (now, key) = (self.now, self.nodes[node].key.clone());
        let what = if recovering { "recovers" } else { "is open" };
        self.trace
            .tell(now, || format!("{key}: shard {shard} {what}: {why}"));
    }

    fn alarm(&mut self, node: usize, what: &str) {
        let detail = format!("{}: {what}", self.nodes[node].key);
        self.fail("no alarms", detail, Vec::new());
    }

    fn peer_output(&mut self, node: usize, partition: u8, to: Addr, message: Message) {
        let Some(target) = self.node_of(&to.node) else {
            let detail = format!("a message to {to}, which is not there");
            return self.fail("addresses", detail, Vec::new());
        };
        self.check_message(node, &message);
        let Some(mut message) = self.spoil(message) else {
            return;
        };
        self.lose_presence(node, target, &mut message);
        let bytes = message.encode();
        self.note_repair(node, target, &message, bytes.len());
        let (now, from) = (self.now, self.addr(node, partition));
        if bytes.len() > MAX_PEER_MESSAGE {
            let detail = format!("{from} says {} bytes at once to {to}", bytes.len());
            return self.fail("bounded queues", detail, Vec::new());
        }
        self.trace.tell(now, || {
            format!("{from} -> {to}: {}", super::report::message(&message))
        });
        if target == node {
            let boot = self.nodes[node].boot;
            let event = Event::Local {
                node,
                boot,
                from: partition,
                to: to.partition,
                bytes,
            };
            return self.after(20, event);
        }
        let stream = match message {
            Message::ToOwner { .. } => 0,
            Message::ToEdge { .. } => 1,
            Message::ToProvider { .. } => 2,
            Message::ToSubscriber { .. } => 3,
        };
        self.peer_send(node, target, (partition, to.partition, stream), bytes);
    }

    /// A message of another partition reaches its machine.
    pub(super) fn peer_input(&mut self, node: usize, partition: u8, from: Addr, bytes: &Bytes) {
        match Message::decode(bytes) {
            Ok(message) => self.input(node, partition, Input::Peer { from, message }),
            Err(error) => {
                let detail = format!("a message of {from} does not decode: {error}");
                self.fail("codec", detail, Vec::new());
            }
        }
    }

    /// The region's name.
    pub(super) fn region_name(&self, region: usize) -> &RegionId {
        &self.plan.places[region].id
    }

    /// The core node of a region.
    pub(super) fn core_of(&self, region: usize) -> usize {
        self.nodes
            .iter()
            .position(|node| node.region == region && node.core)
            .unwrap_or_default()
    }
}

impl Node {
    fn planned(plan: &Case, node: &super::case::NodePlan) -> Node {
        Node {
            key: node.key(),
            region: plan.region(&node.region).unwrap_or_default(),
            core: node.core,
            edge: node.edge,
            partitions: node.partitions,
            clock_ms: node.clock_ms,
            drift_ppm: node.drift_ppm,
            generation: 0,
            boot: 0,
            started: 0,
            paused_until: 0,
            process: None,
        }
    }

    /// What its wall clock shows, unix milliseconds.
    pub(super) fn wall_ms(&self, now: Micros) -> u64 {
        let drift = i128::from(now) * i128::from(self.drift_ppm) / 1_000_000 / i128::from(MILLI);
        let off = self.clock_ms.saturating_add(drift as i64);
        (EPOCH_MS + now / MILLI).saturating_add_signed(off)
    }
}
