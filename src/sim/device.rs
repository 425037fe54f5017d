//! Devices: the client machine of the library, an application above it, and what outlives both.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, BytesMut};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use std::time::Duration;

use super::case::{Act, Case, Clients, MILLI};
use super::trace::Micros;
use super::world::{EPOCH_MS, Event, Stage, World};
use crate::client::event::{ClientEvent, CloseCause, Incoming, OutgoingMessage};
use crate::client::machine::{Input, Machine, MachineConfig, Output, Tuning};
use crate::client::state::SavedState;
use crate::core::ids::{DeviceId, MessageId, UserId};
use crate::core::time::{Mono, Now};
use crate::core::wire::{Hole, PresenceEvent, Status};

/// A device of a user, connected or not.
pub(super) struct Device {
    pub(super) user: UserId,
    pub(super) device: DeviceId,
    /// The region that it is near to.
    pub(super) home: usize,
    /// It knows no other.
    pub(super) stays: bool,
    enters: Option<u32>,
    /// When it comes first; `None` = when all is healed.
    pub(super) first: Option<Micros>,
    /// Counts the runs of its client: events of earlier ones are void.
    pub(super) life: u64,
    pub(super) machine: Option<Machine>,
    saved: SavedState,
    attempt: Option<u64>,
    pub(super) conn: Option<u64>,
    timer_at: Option<Micros>,
    handed: VecDeque<Handed>,
    pub(super) status: Status,
    /// Not drawn yet where there is none.
    watched: Option<Vec<UserId>>,
    pub(super) seen: BTreeMap<UserId, PresenceEvent>,
}

/// Keeps the one of this number, around.
fn keep_one(endpoints: &mut Vec<String>, number: u32) {
    if let Some(at) = (number as usize).checked_rem(endpoints.len()) {
        *endpoints = vec![endpoints.swap_remove(at)];
    }
}

enum Handed {
    Message(Box<Incoming>),
    Hole(Hole),
}

impl Device {
    pub(super) fn planned(plan: &Case) -> Vec<Device> {
        let mut devices = Vec::new();
        for user in &plan.users {
            for (at, planned) in user.devices.iter().enumerate() {
                let home = planned.home.as_ref().unwrap_or(&user.home);
                devices.push(Device {
                    user: user.user_id(),
                    device: DeviceId::new(&format!("device-{at}")).expect("a plain name is valid"),
                    home: plan.region(home).unwrap_or_default(),
                    stays: planned.stays,
                    enters: planned.enters,
                    first: planned.arrives,
                    life: 0,
                    machine: None,
                    saved: SavedState::default(),
                    attempt: None,
                    conn: None,
                    timer_at: None,
                    handed: VecDeque::new(),
                    status: Status::Online,
                    watched: planned.watches.as_ref().map(|names| {
                        names
                            .iter()
                            .flat_map(|name| plan.users_named(name))
                            .map(|user| plan.users[user].user_id())
                            .collect()
                    }),
                    seen: BTreeMap::new(),
                });
            }
        }
        devices
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.user, self.device)
    }

    /// The users whose presence it wants.
    pub(super) fn watched(&self) -> &[UserId] {
        self.watched.as_deref().unwrap_or_default()
    }

    /// Whether a session stands, as the client knows.
    pub(super) fn is_live(&self) -> bool {
        self.machine.as_ref().is_some_and(Machine::is_live)
    }
}

impl World {
    fn device_now(&self) -> Now {
        Now {
            mono: Mono(self.now),
            wall_ms: EPOCH_MS + self.now / MILLI,
        }
    }

    /// The client of a device starts, with what it saved.
    pub(super) fn device_arrives(&mut self, index: usize) {
        if self.devices[index].machine.is_some() || self.stage > Stage::Settle {
            return;
        }
        let (now, home) = (self.now, self.devices[index].home);
        let rng = ChaCha8Rng::from_seed(self.rng.seed());
        let device = &self.devices[index];
        let mut endpoints = self.endpoints(home);
        if let Some(enters) = device.enters {
            let own = endpoints
                .iter_mut()
                .filter(|of| of.region == self.plan.places[home].id);
            own.for_each(|of| keep_one(&mut of.endpoints, enters));
        }
        let config = MachineConfig {
            token: "token".to_owned(),
            renews_token: false,
            device: device.device.clone(),
            receives: true,
            endpoints,
            region: Some(self.plan.places[home].id.clone()),
            status: device.status,
            status_text: String::new(),
            agent: "sim".to_owned(),
            tuning: tuning(self.plan.clients),
        };
        let device = &mut self.devices[index];
        device.life += 1;
        device.timer_at = None;
        device.handed.clear();
        device.seen.clear();
        let saved = device.saved.clone();
        device.machine = Some(Machine::new(config, saved, rng));
        let name = device.name();
        self.trace.tell(now, || format!("{name} comes"));
        if self.devices[index].watched.is_none() {
            let mut drawn = Vec::new();
            for _ in 0..self.rng.below(4) {
                let at = self.rng.index(self.plan.users.len());
                drawn.push(self.plan.users[at].user_id());
            }
            self.devices[index].watched = Some(drawn);
        }
        let watched = self.devices[index].watched().to_vec();
        if !watched.is_empty() {
            self.device_input(index, Input::Watch(watched));
        }
        self.device_timer_at(index, now);
    }

    /// The client of a device ends; what it saved stays.
    pub(super) fn device_leaves(&mut self, index: usize, told: bool) {
        let (now, name) = (self.now, self.devices[index].name());
        if self.devices[index].machine.is_none() {
            return;
        }
        self.trace.tell(now, || format!("{name} goes away"));
        if told {
            self.device_input(index, Input::Close);
        }
        let device = &mut self.devices[index];
        device.machine = None;
        device.life += 1;
        device.attempt = None;
        device.handed.clear();
        if let Some(conn) = device.conn.take() {
            self.client_leaves(conn, told);
        }
    }

    /// The device forgets all that its client saved.
    pub(super) fn device_forgets(&mut self, index: usize) {
        self.device_leaves(index, false);
        self.devices[index].saved = SavedState::default();
        self.check.forgot(index);
        let (now, name) = (self.now, self.devices[index].name());
        self.trace.tell(now, || format!("{name} forgets everything"));
        let delay = self.rng.between(10, 3000) * MILLI;
        self.after(delay, Event::Arrive { device: index });
    }

    pub(super) fn device_connected(&mut self, index: usize, life: u64, attempt: u64, conn: Option<u64>) {
        let device = &mut self.devices[index];
        if device.life != life || device.attempt != Some(attempt) {
            if let Some(conn) = conn {
                self.client_leaves(conn, false);
            }
            return;
        }
        let stands = conn.filter(|conn| self.clients.get(conn).is_some_and(|client| client.client));
        match stands {
            Some(conn) => {
                self.devices[index].conn = Some(conn);
                self.device_input(index, Input::Connected { attempt });
            }
            None => {
                let reason = "no answer".to_owned();
                self.device_input(index, Input::ConnectFailed { attempt, reason });
            }
        }
    }

    pub(super) fn device_input(&mut self, index: usize, input: Input) {
        let now = self.device_now();
        if matches!(input, Input::Disconnected { .. }) {
            self.devices[index].conn = None;
        }
        let Some(machine) = &mut self.devices[index].machine else {
            return;
        };
        machine.handle(input, now);
        self.device_pump(index);
    }

    fn device_timer_at(&mut self, index: usize, at: Micros) {
        let device = &mut self.devices[index];
        if device.timer_at.is_none_or(|planned| at < planned) {
            device.timer_at = Some(at);
            let life = device.life;
            self.at(at, Event::DeviceTimer { device: index, life });
        }
    }

    pub(super) fn device_timer(&mut self, index: usize, life: u64) {
        let (world_now, now) = (self.now, self.device_now());
        let device = &mut self.devices[index];
        if device.life != life || device.timer_at != Some(world_now) {
            return;
        }
        device.timer_at = None;
        let Some(machine) = &mut device.machine else {
            return;
        };
        machine.handle_timeout(now);
        self.device_pump(index);
    }

    fn device_pump(&mut self, index: usize) {
        loop {
            let Some(machine) = &mut self.devices[index].machine else {
                return;
            };
            if let Some(output) = machine.poll_output() {
                self.device_output(index, output);
                continue;
            }
            let Some(frame) = machine.poll_send() else {
                break;
            };
            self.check_send(index, &frame);
            if let Some(conn) = self.devices[index].conn {
                self.frame_to_server(conn, &frame);
            }
        }
        let due = self.devices[index]
            .machine
            .as_ref()
            .and_then(Machine::poll_timeout);
        if let Some(due) = due {
            let at = due.0.max(self.now + 1);
            self.device_timer_at(index, at);
        }
    }

    fn device_output(&mut self, index: usize, output: Output) {
        match output {
            Output::Connect { attempt, target } => {
                self.devices[index].attempt = Some(attempt);
                self.client_connects(index, attempt, &target.endpoint);
            }
            Output::Disconnect { attempt, flush } => {
                let device = &mut self.devices[index];
                if device.attempt == Some(attempt) {
                    device.attempt = None;
                    if let Some(conn) = device.conn.take() {
                        let told = flush || self.rng.chance(700);
                        self.client_leaves(conn, told);
                    }
                }
            }
            Output::Frame(frame) => {
                if let Some(conn) = self.devices[index].conn {
                    self.frame_to_server(conn, &frame);
                }
            }
            Output::Event(event) => self.device_event(index, event),
            Output::SaveState => {
                let device = &mut self.devices[index];
                if let Some(machine) = &mut device.machine {
                    device.saved = machine.state();
                }
            }
        }
    }

    fn device_event(&mut self, index: usize, event: ClientEvent) {
        let (now, name) = (self.now, self.devices[index].name());
        self.trace
            .tell(now, || format!("{name}: {}", super::report::client_event(&event)));
        self.witness_event(index, &event);
        match event {
            ClientEvent::Connected { region, .. } => self.check_welcome(index, &region),
            ClientEvent::Accepted {
                ticket,
                id,
                at,
                durability,
                ..
            } => self.check_accepted(index, ticket, id, at, durability),
            ClientEvent::Rejected {
                ticket, code, detail, ..
            } => {
                self.check_rejected(index, ticket, code, &detail);
            }
            ClientEvent::Message(incoming) => {
                self.devices[index].handed.push_back(Handed::Message(incoming));
                self.consume_later(index);
            }
            ClientEvent::Hole(hole) => {
                self.check_hole(index, &hole);
                self.devices[index].handed.push_back(Handed::Hole(hole));
                self.consume_later(index);
            }
            ClientEvent::Presence(event) => {
                self.devices[index].seen.insert(event.user.clone(), event);
            }
            ClientEvent::Disconnected { .. }
            | ClientEvent::TokenNeeded
            | ClientEvent::TooManyWatches { .. } => {}
            ClientEvent::Closed(CloseCause::Asked) => {}
            ClientEvent::StateNotSaved(why) => {
                let detail = format!("{name} could not save its state, which never fails here: {why}");
                self.fail("clients go on", detail, vec![name]);
            }
            ClientEvent::Closed(cause) => {
                let detail = format!("the client of {name} stopped: {cause}");
                self.fail("clients go on", detail, vec![name]);
            }
        }
    }

    fn consume_later(&mut self, index: usize) {
        if self.wrong.handles_nothing(index) {
            return;
        }
        let delay = self.rng.between(1, 3000);
        let life = self.devices[index].life;
        self.after(delay, Event::Consume { device: index, life });
    }

    /// The application takes its work up again, unless something else holds it.
    pub(super) fn handle_again(&mut self, index: usize) {
        for _ in 0..self.devices[index].handed.len() {
            self.consume_later(index);
        }
    }

    /// The application handles the next of what it was handed.
    pub(super) fn device_consumes(&mut self, index: usize, life: u64) {
        let idle = self.wrong.handles_nothing(index);
        let device = &mut self.devices[index];
        if device.life != life || idle {
            return;
        }
        let Some(handed) = device.handed.pop_front() else {
            return;
        };
        let at = match handed {
            Handed::Message(incoming) => {
                self.witness_handled(index, &incoming);
                self.check_consumed(index, &incoming);
                incoming.at
            }
            Handed::Hole(hole) => {
                self.witness_gone(index, hole.count);
                crate::core::ids::Coord {
                    origin: hole.origin,
                    seq: hole.to,
                }
            }
        };
        self.device_input(index, Input::Consumed(at));
    }

    /// Somebody sends, or changes its status; then comes the next act.
    pub(super) fn act(&mut self, index: usize) {
        if self.stage != Stage::Work {
            return;
        }
        if let Some(next) = self.plan.acts.get(index + 1) {
            let at = next.at;
            self.at(at, Event::Act { act: index + 1 });
        }
        let act = self.plan.acts[index].clone();
        let Some(from) = self.device_called(&act.device) else {
            return;
        };
        if self.devices[from].machine.is_none() {
            return;
        }
        if let Some(status) = act.status {
            self.devices[from].status = status;
            let text = String::new();
            return self.device_input(from, Input::SetStatus { status, text });
        }
        let user = |world: &World, name: &str| {
            let exact = world.named_users.get(name).copied();
            exact.or_else(|| world.plan.users_named(name).first().copied())
        };
        let Some(to) = act.to.as_deref().and_then(|name| user(self, name)) else {
            return;
        };
        let twin = act.twin.as_deref().and_then(|name| user(self, name));
        let copies: Vec<usize> = act
            .copies
            .iter()
            .filter_map(|name| self.device_called(name))
            .filter(|copy| self.devices[*copy].user == self.devices[from].user && *copy != from)
            .collect();
        let shared = (twin.is_some() || !copies.is_empty()).then(|| {
            let random = self.rng.seed()[..10].try_into().unwrap_or_default();
            MessageId::v7(EPOCH_MS + self.now / MILLI, random)
        });
        let number = self.check.next_number();
        self.send(from, to, number, &act, shared);
        for copy in copies {
            self.send(copy, to, number, &act, shared);
        }
        if let Some(twin) = twin.filter(|twin| *twin != to) {
            let number = self.check.next_number();
            self.send(from, twin, number, &act, shared);
        }
        self.device_pump(from);
    }

    fn send(&mut self, from: usize, to: usize, number: u64, act: &Act, id: Option<MessageId>) {
        let user = self.plan.users[to].user_id();
        let mut body = BytesMut::new();
        body.put_u64(number);
        body.put_bytes(b'.', act.bytes as usize);
        let now = self.device_now();
        let mut message = OutgoingMessage::new(user.clone(), body.freeze());
        message.id = id;
        message.ttl_ms = act.ttl.map_or(0, |ttl| ttl / MILLI);
        let Some(machine) = &mut self.devices[from].machine else {
            return;
        };
        if let Ok(ticket) = machine.send(message, now) {
            let at = self.now;
            self.check.sent(from, user, ticket, at, number);
            self.witness_sent((from, to), ticket, number);
            self.device_pump(from);
        }
    }

    fn device_called(&self, name: &str) -> Option<usize> {
        if let Some(device) = self.named.get(name) {
            return Some(*device);
        }
        let named = self.plan.devices_named(name).first().copied()?;
        self.device_index(named)
    }

    /// The index of a user's device.
    pub(super) fn device_index(&self, (user, device): (usize, usize)) -> Option<usize> {
        let before: usize = self.plan.users[..user]
            .iter()
            .map(|user| user.devices.len())
            .sum();
        (device < self.plan.users[user].devices.len()).then_some(before + device)
    }
}

fn tuning(clients: Clients) -> Tuning {
    match clients {
        Clients::Hasty => Tuning {
            backoff_max: Duration::from_secs(3),
            ping_every: Duration::from_secs(5),
            pong_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(14),
            connect_timeout: Duration::from_secs(4),
            ..Tuning::default()
        },
        Clients::AsShipped => Tuning::default(),
    }
}
