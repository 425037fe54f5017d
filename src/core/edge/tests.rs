//! Each behaviour of the edge against a scripted owner; `model` runs them all in random interleavings.

use bytes::Bytes;

use super::*;
use crate::core::ids::{Coord, DeviceId, MessageId, NodeKey, NodeName, Origin, RegionId};
use crate::core::members::Owner;
use crate::core::msg::{Answer, Attach, Delivery, Deposit, SessionAck, ToEdge, Verdict};
use crate::core::op::{LoggedOp, Op};
use crate::core::wire::{
    Accepted, Durability, Hole, HoleReason, PresenceEvent, Rejected, Send, SendControl, Status,
};

mod admission;
mod fallback;
mod model;
mod moves;
mod paths;
mod sending;

const SHARDS: u32 = 8;

/// What an edge put out between two looks.
#[derive(Debug, Default)]
struct Out {
    frames: BTreeMap<ConnId, Vec<ServerFrame>>,
    closed: BTreeMap<ConnId, Code>,
    owners: Vec<(Addr, u64, ToOwner)>,
}

impl Out {
    fn of(&self, conn: u64) -> &[ServerFrame] {
        self.frames.get(&ConnId(conn)).map_or(&[], Vec::as_slice)
    }

    fn rejected(&self, conn: u64) -> Vec<(u64, Code)> {
        let frames = self.of(conn).iter();
        frames
            .filter_map(|frame| match frame {
                ServerFrame::Rejected(Rejected {
                    session_seq, code, ..
                }) => Some((*session_seq, *code)),
                _ => None,
            })
            .collect()
    }

    fn accepted(&self, conn: u64) -> Vec<u64> {
        let frames = self.of(conn).iter();
        frames
            .filter_map(|frame| match frame {
                ServerFrame::Accepted(Accepted { session_seq, .. }) => Some(*session_seq),
                _ => None,
            })
            .collect()
    }

    fn deposits(&self) -> Vec<Deposit> {
        self.each(|body| match body {
            ToOwner::Deposit(some) => some.clone(),
            _ => Vec::new(),
        })
    }

    /// Session sequence and attempt of each deposit.
    fn tries(&self) -> Vec<(u64, u32)> {
        self.deposits()
            .iter()
            .map(|d| (d.envelope.session_seq, d.attempt))
            .collect()
    }

    fn attaches(&self) -> Vec<Attach> {
        self.each(|body| match body {
            ToOwner::Attach(some) => some.clone(),
            _ => Vec::new(),
        })
    }

    fn acks(&self) -> Vec<SessionAck> {
        self.each(|body| match body {
            ToOwner::Ack(some) => some.clone(),
            _ => Vec::new(),
        })
    }

    fn detached(&self) -> Vec<SessionId> {
        self.each(|body| match body {
            ToOwner::Detach(some) => some.iter().map(|d| d.session).collect(),
            _ => Vec::new(),
        })
    }

    fn each<T>(&self, of: impl Fn(&ToOwner) -> Vec<T>) -> Vec<T> {
        self.owners.iter().flat_map(|(_, _, body)| of(body)).collect()
    }

    fn kinds(&self) -> Vec<&'static str> {
        let kind = |body: &ToOwner| match body {
            ToOwner::Open { .. } => "open",
            ToOwner::Attach(_) => "attach",
            ToOwner::Synced(_) => "synced",
            ToOwner::Deposit(_) => "deposit",
            ToOwner::Ack(_) => "ack",
            ToOwner::Taken { .. } => "taken",
            ToOwner::Leave(_) => "leave",
            ToOwner::Detach(_) => "detach",
            ToOwner::SetStatus(_) => "status",
            ToOwner::Watch(_) => "watch",
            ToOwner::Unwatch(_) => "unwatch",
            ToOwner::Probed { .. } => "probed",
        };
        self.owners.iter().map(|(_, _, body)| kind(body)).collect()
    }
}

/// An edge on node `edge` whose shards all belong to node `one` at first.
struct Rig {
    edge: Edge,
    now: Now,
    lane: u64,
}

fn node(name: &str) -> NodeKey {
    NodeKey {
        region: RegionId::new("here").unwrap(),
        node: NodeName::new(name).unwrap(),
    }
}

fn addr(name: &str) -> Addr {
    Addr {
        node: node(name),
        partition: 0,
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// Placement of all shards: on `one`, but those of `two` on `two`.
fn placed(one: (&str, u64), two: (&str, u64), of_two: impl Fn(ShardId) -> bool) -> BTreeMap<ShardId, Owner> {
    (0..SHARDS)
        .map(ShardId)
        .map(|shard| {
            let (name, generation) = if of_two(shard) { two } else { one };
            let owner = Owner {
                addr: addr(name),
                generation: Generation(generation),
            };
            (shard, owner)
        })
        .collect()
}

fn all_on(name: &str, generation: u64) -> BTreeMap<ShardId, Owner> {
    placed((name, generation), (name, generation), |_| false)
}

const SHARDING: Sharding = Sharding {
    count: SHARDS,
    seed: 5,
};

fn config(limits: CoreLimits) -> EdgeConfig {
    EdgeConfig {
        me: addr("edge"),
        generation: Generation(3),
        sharding: SHARDING,
        limits,
        node: "edge".into(),
    }
}

fn hello(device: &str) -> Hello {
    Hello {
        token: String::new(),
        device: DeviceId::new(device).unwrap(),
        capabilities: 0,
        cursor: Vector::new(),
        connect_epoch: 7,
        status: Status::Online,
        text: String::new(),
        agent: String::new(),
        memory: 5,
        after: Vector::new(),
    }
}

impl Rig {
    fn new(limits: CoreLimits) -> Rig {
        let mut rig = Rig {
            edge: Edge::new(config(limits)),
            now: Now {
                mono: Mono(1_000_000),
                wall_ms: 1_700_000_000_000,
            },
            lane: 0,
        };
        rig.edge.handle_placement(&all_on("one", 1), rig.now);
        assert!(rig.out().owners.is_empty());
        rig.edge.handle_reachable(&node("one"), true, rig.now);
        let out = rig.out();
        assert_eq!(out.kinds(), ["open", "synced"]);
        rig.lane = out.owners[0].1;
        rig
    }

    fn standard() -> Rig {
        Rig::new(CoreLimits::default())
    }

    /// Everything put out since the last look.
    fn out(&mut self) -> Out {
        let mut out = Out::default();
        while let Some(output) = self.edge.poll_output() {
            match output {
                EdgeOutput::Client { conn, frames } => out.frames.entry(conn).or_default().extend(frames),
                EdgeOutput::Close { conn, code, .. } => assert!(out.closed.insert(conn, code).is_none()),
                EdgeOutput::ToOwner { to, lane, body } => out.owners.push((to, lane, body)),
            }
        }
        out
    }

    /// Lets time pass, doing what is due when it is due.
    fn pass(&mut self, milliseconds: u64) {
        let end = self.now.mono + ms(milliseconds);
        while let Some(at) = self.edge.poll_timeout().filter(|at| *at <= end) {
            self.now.wall_ms += at.since(self.now.mono).as_millis() as u64;
            self.now.mono = self.now.mono.max(at);
            self.edge.handle_timeout(self.now);
            assert!(self.edge.poll_timeout() > Some(at) || self.edge.poll_timeout().is_none());
        }
        self.now.wall_ms += end.since(self.now.mono).as_millis() as u64;
        self.now.mono = end;
    }

    fn owner(&mut self, body: ToEdge) {
        self.edge.handle_owner(&addr("one"), self.lane, body, self.now);
    }

    fn frame(&mut self, conn: u64, frame: ClientFrame) {
        self.edge.handle_frame(ConnId(conn), frame, self.now);
    }

    fn hello(&mut self, conn: u64, name: &str) {
        let session = SessionId(conn + 100);
        self.edge
            .handle_hello(ConnId(conn), user(name), hello("phone"), session, self.now);
    }

    /// A welcomed session: its number is that of its connection + 100.
    fn login(&mut self, conn: u64, name: &str) -> SessionId {
        self.hello(conn, name);
        let session = SessionId(conn + 100);
        self.attached(session, 8);
        let out = self.out();
        assert!(matches!(out.of(conn), [ServerFrame::Welcome(_)]), "{out:?}");
        session
    }

    fn attached(&mut self, session: SessionId, connect_epoch: u64) {
        let stable = Vector::new();
        self.owner(ToEdge::Attached {
            store: Origin(0),
            session,
            connect_epoch,
            stable,
        });
    }

    fn send(&mut self, conn: u64, seq: u64, id: u8, to: &str) {
        self.send_body(conn, seq, id, to, Bytes::from_static(b"hi"));
    }

    fn send_body(&mut self, conn: u64, session_seq: u64, id: u8, to: &str, body: Bytes) {
        let frame = ClientFrame::Send(Send {
            id: message(id),
            session_seq,
            control: SendControl {
                to: user(to),
                kind: 2,
                ttl_ms: 0,
                trace: Vec::new(),
            },
            body,
        });
        self.frame(conn, frame);
    }

    fn answer(&mut self, deposit: &Deposit, verdict: Verdict) {
        let answer = answer(deposit, verdict);
        self.owner(ToEdge::Answers(vec![answer]));
    }
}

fn message(id: u8) -> MessageId {
    MessageId::v7(1_700_000_000_000, [id; 10])
}

fn answer(deposit: &Deposit, verdict: Verdict) -> Answer {
    Answer {
        session: deposit.envelope.session,
        shard: deposit.shard,
        session_seq: deposit.envelope.session_seq,
        attempt: deposit.attempt,
        id: deposit.envelope.id,
        verdict,
    }
}

fn accept() -> Verdict {
    Verdict::Accepted {
        at: Coord {
            origin: Origin(1),
            seq: 1,
        },
        duplicate: false,
        durability: Durability::Region,
    }
}

fn refuse(code: Code) -> Verdict {
    Verdict::Refused {
        code,
        detail: String::new(),
        server_ms: 5,
    }
}

fn delivery(session: SessionId, origin: u64, seq: u64) -> Delivery {
    let start = Op::Start {
        region: RegionId::new("here").unwrap(),
        previous: None,
    };
    Delivery {
        session,
        at: Coord {
            origin: Origin(origin),
            seq,
        },
        op: LoggedOp::encode(&start, Default::default()).bytes().clone(),
    }
}

fn presence(name: &str, since_ms: u64) -> PresenceEvent {
    PresenceEvent {
        user: user(name),
        status: Status::Online,
        text: String::new(),
        since_ms,
        region: None,
        unreachable_since_ms: None,
        devices: 1,
    }
}

/// Two users of one shard, and one of another.
fn same_and_other_shard() -> (String, String, String) {
    let names: Vec<String> = (0..100).map(|n| format!("to{n}")).collect();
    let shard = |name: &String| SHARDING.of_user(&user(name));
    let same = names[1..]
        .iter()
        .find(|name| shard(name) == shard(&names[0]))
        .unwrap();
    let other = names[1..]
        .iter()
        .find(|name| shard(name) != shard(&names[0]))
        .unwrap();
    (names[0].clone(), same.clone(), other.clone())
}

/// Nothing may be left of sessions once they are gone.
fn assert_empty(edge: &Edge) {
    assert!(edge.sessions.is_empty() && edge.conns.is_empty() && edge.by_shard.is_empty());
    assert!(edge.watched.is_empty() && edge.wakes.is_empty() && edge.retries.is_empty());
    assert!(edge.closing.is_empty() && edge.waiting() == 0);
    assert_eq!(
        (
            edge.routing.in_flight(),
            edge.routing.bytes_in_flight(),
            edge.routing.attaching(),
            edge.buckets.len()
        ),
        (0, 0, 0, 0)
    );
    let stats = edge.stats();
    assert_eq!(
        (
            stats.sessions,
            stats.pending,
            stats.deposits,
            stats.bytes,
            stats.watched
        ),
        (0, 0, 0, 0, 0)
    );
}
