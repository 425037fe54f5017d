//! Connections between clients and edges.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes, BytesMut};

use super::case::{Clients, MILLI, SECOND};
use super::faults::Undo;
use super::trace::Micros;
use super::world::{Event, World};
use crate::client::machine;
use crate::core::ids::{Addr, ConnId};
use crate::core::node::Input;
use crate::core::vector::Vector;
use crate::core::wire::{ClientFrame, Code, ServerFrame, WIRE_VERSION};

/// A connection of a client to an edge.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) device: usize,
    /// The life of the device that made it.
    pub(super) life: u64,
    pub(super) attempt: u64,
    pub(super) node: usize,
    pub(super) boot: u64,
    pub(super) partition: u8,
    /// Whether the edge still has it.
    pub(super) server: bool,
    /// Whether the client still has it.
    pub(super) client: bool,
    pub(super) greeted: bool,
    /// What the device says in its `Hello` that it consumed.
    claim: Vector,
    last: [Micros; 2],
    /// What waits because the way is cut or the client reads nothing: to the edge, to the client.
    stalled: [BTreeMap<u64, Bytes>; 2],
    /// What of it is under way again, by number: what left later waits for it.
    again: [BTreeSet<u64>; 2],
    /// What the client sent is under way for long: it gives the connection up before that comes.
    held: bool,
    /// Numbers what is sent, each way.
    sent: [u64; 2],
    /// The first of what is sent to the edge that was lost and is sent again: not by a client that is gone.
    lost_from: Option<u64>,
    /// Bytes that are on their way to the client or that it did not read.
    unread: usize,
}

/// What the outbox of a client's connection takes at least.
const OUTBOX_BYTES: usize = 1024 * 1024;
const TO_SERVER: usize = 0;
const TO_CLIENT: usize = 1;

impl World {
    /// A client wants a connection; it gets an answer in a while.
    pub(super) fn client_connects(&mut self, device: usize, attempt: u64, endpoint: &str) {
        let life = self.devices[device].life;
        let node = self
            .nodes
            .iter()
            .position(|node| node.key.to_string() == endpoint);
        let here = &self.devices[device];
        if node.is_some_and(|node| here.stays && self.nodes[node].region != here.home) {
            let event = Event::Connected {
                device,
                life,
                attempt,
                conn: None,
            };
            return self.after(MILLI, event);
        }
        let reachable = node.filter(|node| self.client_reaches(device, *node));
        let Some(node) = reachable else {
            if self.plan.clients == Clients::AsShipped {
                // Nobody answers: it waits as long as it will.
                return;
            }
            let delay = self.rng.between(100, 3000) * MILLI;
            return self.after(
                delay,
                Event::Connected {
                    device,
                    life,
                    attempt,
                    conn: None,
                },
            );
        };
        let conn = self.next_conn;
        self.next_conn += 1;
        let partition = self.rng.below(u64::from(self.nodes[node].partitions)) as u8;
        self.clients.insert(
            conn,
            Client {
                device,
                life,
                attempt,
                node,
                boot: self.nodes[node].boot,
                partition,
                server: true,
                client: true,
                greeted: false,
                claim: Vector::new(),
                last: [0, 0],
                stalled: Default::default(),
                again: Default::default(),
                held: false,
                sent: [0, 0],
                lost_from: None,
                unread: 0,
            },
        );
        let delay = 2 * self.client_way(conn);
        self.after(
            delay,
            Event::Connected {
                device,
                life,
                attempt,
                conn: Some(conn),
            },
        );
    }

    fn client_reaches(&self, device: usize, node: usize) -> bool {
        let edge = &self.nodes[node];
        edge.process.is_some()
            && edge.edge
            && edge.paused_until <= self.now
            && !self.wrong.client_cut(device, edge.region)
    }

    fn client_way(&mut self, conn: u64) -> Micros {
        let (way, late) = self.client_ways_of(conn);
        way + late
    }

    /// How long something takes, and how much longer because it was lost and sent again.
    fn client_ways_of(&mut self, conn: u64) -> (Micros, Micros) {
        let client = &self.clients[&conn];
        let home = self.devices[client.device].home;
        let base = self.plan.delay(home, self.nodes[client.node].region) + 5 * MILLI;
        let late = if self.rng.chance(self.plan.network.loss.into()) {
            2 * base + self.rng.between(10, 200) * MILLI
        } else {
            0
        };
        (base + self.rng.below(self.plan.network.jitter + 1), late)
    }

    fn client_send(&mut self, conn: u64, way: usize, bytes: Bytes) {
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        client.sent[way] += 1;
        let number = client.sent[way];
        self.client_send_on(conn, way, number, bytes);
    }

    fn client_send_on(&mut self, conn: u64, way: usize, number: u64, bytes: Bytes) {
        if self.client_held(conn, way) {
            if let Some(client) = self.clients.get_mut(&conn) {
                client.stalled[way].insert(number, bytes);
            }
            return;
        }
        let (takes, late) = self.client_ways_of(conn);
        let arrives = self.now + takes + late;
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        if late > 0 && way == TO_SERVER {
            client.lost_from.get_or_insert(number);
        }
        let arrives = arrives.max(client.last[way] + 1);
        client.last[way] = arrives;
        let event = match way {
            TO_SERVER => Event::ToServer { conn, number, bytes },
            _ => Event::ToClient { conn, number, bytes },
        };
        self.at(arrives, event);
    }

    /// Whether a cut, or a client that reads nothing, holds up what goes this way.
    fn client_held(&self, conn: u64, way: usize) -> bool {
        self.clients.get(&conn).is_some_and(|client| {
            let cut = self
                .wrong
                .client_cut(client.device, self.nodes[client.node].region);
            match way {
                TO_SERVER => cut || client.held,
                _ => cut || self.wrong.reads_nothing(client.device),
            }
        })
    }

    /// What a client sends stays under way; it gives the connection up, and sends all that again on another. Then the first
    /// comes, too: the same messages twice, by two connections.
    pub(super) fn client_retries(&mut self, device: usize, lasts: Micros) -> bool {
        let Some((conn, client)) = self.devices[device]
            .conn
            .and_then(|conn| Some((conn, self.clients.get_mut(&conn)?)))
        else {
            return false;
        };
        client.held = true;
        self.after(lasts / 2, Event::ClientGone { conn });
        self.after(lasts, Event::Undo(Undo::Held { conn }));
        let noticed = lasts.saturating_add(self.rng.between(1, 8) * SECOND);
        self.after(noticed, Event::ServerGone { conn });
        true
    }

    /// What was under way for long comes.
    pub(super) fn client_comes_through(&mut self, conn: u64) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.held = false;
        }
        self.clients_go_on();
    }

    /// The same for all.
    pub(super) fn clients_come_through(&mut self) {
        self.clients.values_mut().for_each(|client| client.held = false);
        self.clients_go_on();
    }

    /// What stood still goes on, where nothing holds it up any more.
    pub(super) fn clients_go_on(&mut self) {
        let conns: Vec<u64> = self.clients.keys().copied().collect();
        for conn in conns {
            for way in [TO_SERVER, TO_CLIENT] {
                let held = self.client_held(conn, way);
                let Some(client) = self.clients.get_mut(&conn).filter(|_| !held) else {
                    continue;
                };
                let stalled = std::mem::take(&mut client.stalled[way]);
                client.again[way].extend(stalled.keys());
                for (number, bytes) in stalled {
                    self.client_send_on(conn, way, number, bytes);
                }
            }
        }
    }

    /// What arrives, unless something holds it up or what left before it was held up and is still under way.
    fn client_arrives(&mut self, conn: u64, way: usize, number: u64, bytes: Bytes) -> Option<Bytes> {
        let held = self.client_held(conn, way);
        let client = self.clients.get_mut(&conn)?;
        if held {
            client.again[way].remove(&number);
            client.stalled[way].insert(number, bytes);
            return None;
        }
        if client.again[way].first().is_some_and(|first| *first < number) {
            client.again[way].insert(number);
            self.client_send_on(conn, way, number, bytes);
            return None;
        }
        client.again[way].remove(&number);
        Some(bytes)
    }

    /// A frame of a client leaves for its edge.
    pub(super) fn frame_to_server(&mut self, conn: u64, frame: &ClientFrame) {
        if !self.clients.get(&conn).is_some_and(|client| client.client) {
            return;
        }
        self.check_client_frame(conn, frame);
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.client_send(conn, TO_SERVER, bytes.freeze());
    }

    pub(super) fn client_bytes_at_server(&mut self, conn: u64, number: u64, bytes: Bytes) {
        let Some(bytes) = self.client_arrives(conn, TO_SERVER, number, bytes) else {
            return;
        };
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        let (node, partition, device) = (client.node, client.partition, client.device);
        let lost = !client.client && client.lost_from.is_some_and(|from| number >= from);
        if lost || !client.server || client.boot != self.nodes[node].boot {
            return;
        }
        if client.lost_from == Some(number) {
            client.lost_from = None;
        }
        let first = !std::mem::replace(&mut client.greeted, true);
        let now = self.now;
        self.trace.event(now, 13, conn, &bytes);
        let Some((kind, payload)) = split(bytes) else {
            return self.fail("codec", "a frame of a client is cut short".to_owned(), Vec::new());
        };
        let frame = match ClientFrame::decode(kind, payload) {
            Ok(frame) => frame,
            Err(error) => {
                let detail = format!(
                    "a frame of {} does not decode: {error}",
                    self.devices[device].name()
                );
                return self.fail("codec", detail, Vec::new());
            }
        };
        let name = self.devices[device].name();
        self.trace.tell(now, || {
            format!(
                "{name} on {conn} -> edge: {}",
                super::report::client_frame(&frame)
            )
        });
        if let (ClientFrame::Hello(hello), Some(client)) = (&frame, self.clients.get_mut(&conn)) {
            client.claim = hello.cursor.clone();
        }
        if let ClientFrame::Send(send) = &frame {
            self.check.came(device, send.id, conn);
        }
        let conn = ConnId(conn);
        let input = match frame {
            ClientFrame::Hello(hello) if first => Input::Hello {
                conn,
                user: self.devices[device].user.clone(),
                hello,
            },
            frame => Input::Client { conn, frame },
        };
        self.input(node, partition, input);
    }

    /// Frames of an edge leave for a client.
    pub(super) fn frames_to_client(&mut self, node: usize, conn: ConnId, frames: Vec<ServerFrame>) {
        let conn = conn.0;
        let Some(client) = self.clients.get(&conn) else {
            return;
        };
        if client.node != node || !client.server {
            return;
        }
        let device = client.device;
        for frame in frames {
            self.check_frame(node, device, &frame);
            let (now, name) = (self.now, self.devices[device].name());
            self.trace.tell(now, || {
                format!(
                    "edge on {conn} -> {name}: {}",
                    super::report::server_frame(&frame)
                )
            });
            if let (ServerFrame::Deliver { at, .. }, Some(client)) = (&frame, self.clients.get(&conn))
                && client.claim.covers(*at)
            {
                let detail = format!("{name} is given {at}, which its Hello said that it consumed");
                return self.fail("a claim is obeyed (R17)", detail, vec![name]);
            }
            let mut bytes = BytesMut::new();
            frame.encode(&mut bytes);
            self.wait_for_client(conn, bytes.len());
            self.client_send(conn, TO_CLIENT, bytes.freeze());
        }
    }

    /// So much more is under way to a client, or not read by it: what a connection's outbox takes before the driver gives the
    /// connection up.
    fn wait_for_client(&mut self, conn: u64, bytes: usize) {
        let limits = &self.plan.limits;
        let (body, window) = (
            limits.max_body as usize,
            limits.window_bytes + limits.window_messages * 512,
        );
        let most = OUTBOX_BYTES.max(window + 2 * (body + 64 * 1024));
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        client.unread += bytes;
        let (unread, device) = (client.unread, client.device);
        if unread > most {
            let name = self.devices[device].name();
            let detail = format!("{unread} bytes wait for {name}, at most {most}");
            self.fail("bounded queues", detail, vec![name]);
        }
    }

    pub(super) fn client_bytes_at_client(&mut self, conn: u64, number: u64, bytes: Bytes) {
        let Some(bytes) = self.client_arrives(conn, TO_CLIENT, number, bytes) else {
            return;
        };
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        let (node, device, life) = (client.node, client.device, client.life);
        client.unread -= bytes.len();
        if !client.client || self.devices[device].life != life {
            return;
        }
        let now = self.now;
        self.trace.event(now, 14, conn, &bytes);
        let frame = split(bytes).ok_or_else(|| "cut short".to_owned());
        let frame =
            frame.and_then(|(kind, payload)| ServerFrame::decode(kind, payload).map_err(|e| e.to_string()));
        match frame {
            Ok(frame) => {
                self.device_input(device, machine::Input::Frame(frame));
            }
            Err(error) => {
                let detail = format!("a frame of {} does not decode: {error}", self.nodes[node].key);
                self.fail("codec", detail, Vec::new());
            }
        }
    }

    /// An edge closes a connection once what it sent has left.
    pub(super) fn close_client(&mut self, node: usize, conn: ConnId, code: Code, detail: &str) {
        let Some(client) = self.clients.get(&conn.0) else {
            return;
        };
        if client.node != node || !client.server {
            return;
        }
        let (device, last) = (client.device, client.last[TO_CLIENT]);
        let (now, name) = (self.now, self.devices[device].name());
        self.trace.tell(now, || {
            format!("edge closes {} of {name}: {code:?} {detail}", conn.0)
        });
        self.check_close(device, code, detail);
        let way = self.client_way(conn.0);
        let at = (now + way).max(last + 1);
        self.at(at, Event::ClientGone { conn: conn.0 });
        // The driver says so when the tasks of the connection have ended.
        let delay = self.rng.below(50) * MILLI;
        self.after(delay, Event::ServerGone { conn: conn.0 });
    }

    pub(super) fn server_gone(&mut self, conn: u64) {
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        let had = std::mem::replace(&mut client.server, false);
        let (node, partition, boot) = (client.node, client.partition, client.boot);
        let over = !client.client;
        if had && boot == self.nodes[node].boot && self.clients[&conn].greeted {
            self.input(node, partition, Input::Closed { conn: ConnId(conn) });
        }
        if over {
            self.clients.remove(&conn);
        }
    }

    pub(super) fn client_gone(&mut self, conn: u64) {
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        let had = std::mem::replace(&mut client.client, false);
        let (device, life, attempt, over) = (client.device, client.life, client.attempt, !client.server);
        if over {
            self.clients.remove(&conn);
        }
        if had && self.devices[device].life == life {
            let reason = "closed by the server or lost".to_owned();
            self.device_input(device, machine::Input::Disconnected { attempt, reason });
        }
    }

    /// A client ends its connection; the edge learns of it soon if told, otherwise when it hears nothing.
    pub(super) fn client_leaves(&mut self, conn: u64, told: bool) {
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        client.client = false;
        let last = client.last[TO_SERVER];
        let delay = if told {
            self.client_way(conn)
        } else {
            self.rng.between(1, 12) * SECOND
        };
        let at = (self.now + delay).max(last + 1);
        self.at(at, Event::ServerGone { conn });
    }

    /// A device that lost a connection of which the edge has not noticed: it will still have something to say.
    pub(super) fn unnoticed_loss(&self) -> Option<String> {
        let lost = self.clients.values().find(|client| {
            let there = self.nodes[client.node].boot == client.boot;
            !client.client && client.server && client.greeted && there
        });
        lost.map(|client| self.devices[client.device].name())
    }

    /// The connections of a partition that its edge has: their clients said hello, and nobody said that they are gone.
    pub(super) fn conns_at(&self, addr: &Addr) -> BTreeSet<ConnId> {
        let there = |client: &Client| {
            let node = &self.nodes[client.node];
            (&node.key, client.partition, client.boot) == (&addr.node, addr.partition, node.boot)
                && client.server
                && client.greeted
        };
        let conns = self.clients.iter().filter(|(_, client)| there(client));
        conns.map(|(conn, _)| ConnId(*conn)).collect()
    }

    /// A node died: its clients notice at their own time, or find out.
    pub(super) fn drop_clients(&mut self, node: usize) {
        let conns: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.node == node)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in conns {
            if let Some(client) = self.clients.get_mut(&conn) {
                client.server = false;
            }
            if self.plan.clients == Clients::AsShipped {
                continue;
            }
            let delay = self.rng.between(10, 5000) * MILLI;
            self.after(delay, Event::ClientGone { conn });
        }
    }
}

/// Splits a frame into its kind and what follows.
fn split(mut bytes: Bytes) -> Option<(u8, Bytes)> {
    if bytes.len() < 6 {
        return None;
    }
    let len = bytes.get_u32() as usize;
    let (version, kind) = (bytes.get_u8(), bytes.get_u8());
    (version == WIRE_VERSION && bytes.len() + 2 == len).then_some((kind, bytes))
}
