//! Clients over QUIC on loopback, against a small server that speaks the protocol and keeps inboxes in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::core::ids::{Origin, SessionId};
use crate::core::op::{Envelope, LoggedOp, Op};
use crate::core::time::Hlc;
use crate::core::vector::Vector;
use crate::core::wire::{self, ClientFrame, ClientLimits, Hello, PresenceEvent, ServerFrame, Welcome};
use crate::net::certs::ClusterCa;
use crate::net::client::{ClientEvent as NetEvent, ClientListener, ClientListenerConfig, ConnHandle};
use crate::net::{CloseCode, CloseReason};

const PATIENCE: Duration = Duration::from_secs(20);
const ORIGIN: Origin = Origin(9);

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

/// What both servers of a test share: as if they were two edges of one region.
#[derive(Default)]
struct Store {
    inboxes: BTreeMap<UserId, Vec<(MessageId, LoggedOp)>>,
    hellos: Vec<Hello>,
    acks: Vec<(UserId, Coord)>,
    /// Users whose connection is cut before an answer to their next message.
    cut_before_answer: bool,
    /// Tokens that are refused.
    refused: Vec<String>,
}

type Shared = Arc<Mutex<Store>>;

struct Conn {
    handle: ConnHandle,
    user: Option<UserId>,
    given: u64,
}

struct Server {
    addr: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    stop: mpsc::Sender<NetEvent>,
}

impl Server {
    fn start(ca: &ClusterCa, store: Shared) -> Self {
        let identity = ca
            .issue_server(&["localhost".to_owned()], &["127.0.0.1".parse().unwrap()])
            .unwrap();
        let (sink, events) = mpsc::channel(256);
        let config = ClientListenerConfig::new("127.0.0.1:0".parse().unwrap(), identity);
        let listener = ClientListener::bind(config, sink.clone()).unwrap();
        let addr = listener.local_addr();
        let task = tokio::spawn(serve(listener, events, store));
        Self {
            addr,
            task,
            stop: sink,
        }
    }

    /// Dies without a word.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        drop(self.stop);
    }
}

async fn serve(listener: ClientListener, mut events: mpsc::Receiver<NetEvent>, store: Shared) {
    let _listener = listener;
    let mut conns: BTreeMap<u64, Conn> = BTreeMap::new();
    while let Some(event) = events.recv().await {
        match event {
            NetEvent::Opened { conn, handle, .. } => {
                let conn_state = Conn {
                    handle,
                    user: None,
                    given: 0,
                };
                conns.insert(conn, conn_state);
            }
            NetEvent::Closed { conn, .. } => {
                conns.remove(&conn);
            }
            NetEvent::Frames { conn, frames } => {
                for frame in frames {
                    let frame = ClientFrame::decode(frame.kind, frame.payload).unwrap();
                    let Some(state) = conns.get_mut(&conn) else {
                        continue;
                    };
                    answer(state, frame, &store);
                }
                for state in conns.values_mut() {
                    deliver(state, &store);
                }
            }
        }
    }
}

fn say(conn: &Conn, frames: &[ServerFrame]) {
    let mut out = bytes::BytesMut::new();
    for frame in frames {
        frame.encode(&mut out);
    }
    let _ = conn.handle.try_send(vec![out.freeze()]);
}

fn answer(conn: &mut Conn, frame: ClientFrame, store: &Shared) {
    let mut store = store.lock().unwrap();
    match frame {
        ClientFrame::Hello(hello) => {
            if store.refused.contains(&hello.token) {
                let refuse = ServerFrame::Error {
                    code: Code::Unauthorized,
                    detail: "expired".into(),
                };
                say(conn, &[refuse]);
                conn.handle
                    .close_after_flush(CloseReason::new(CloseCode::UNAUTHENTICATED, "expired"));
                return;
            }
            conn.user = Some(user(&hello.token));
            conn.given = hello.cursor.of(ORIGIN);
            let welcome = Welcome {
                session: SessionId(conn.handle.id()),
                connect_epoch: hello.connect_epoch + 1,
                server_ms: 1_700_000_000_000,
                region: RegionId::new("here").unwrap(),
                node: "edge-1".into(),
                limits: ClientLimits {
                    max_body: 1000,
                    sends_in_flight: 100,
                    watches: 10,
                    idle_seconds: 300,
                },
                regions: vec![],
                stable: Vector::new(),
            };
            store.hellos.push(*hello);
            say(conn, &[ServerFrame::Welcome(Box::new(welcome))]);
        }
        ClientFrame::Send(send) => {
            let from = conn.user.clone().unwrap();
            let inbox = store.inboxes.entry(send.control.to.clone()).or_default();
            let known = inbox.iter().position(|(id, _)| *id == send.id);
            let seq = known.unwrap_or(inbox.len()) as u64 + 1;
            if known.is_none() {
                let envelope = Envelope {
                    to: send.control.to,
                    from,
                    from_device: DeviceId::new("d").unwrap(),
                    connect_epoch: 1,
                    session: SessionId(1),
                    session_seq: send.session_seq,
                    id: send.id,
                    kind: send.control.kind,
                    expires_ms: 0,
                    trace: vec![],
                };
                let op = LoggedOp::encode(&Op::Append(envelope, send.body), Hlc::default());
                inbox.push((send.id, op));
            }
            if store.cut_before_answer {
                store.cut_before_answer = false;
                conn.handle
                    .close_now(CloseReason::new(CloseCode::INTERNAL, "cut"));
                return;
            }
            let accepted = wire::Accepted {
                id: send.id,
                session_seq: send.session_seq,
                at: Coord { origin: ORIGIN, seq },
                duplicate: known.is_some(),
                durability: Durability::Region,
            };
            say(conn, &[ServerFrame::Accepted(accepted)]);
        }
        ClientFrame::Ack(acks) => {
            let user = conn.user.clone().unwrap();
            store.acks.extend(acks.into_iter().map(|at| (user.clone(), at)));
        }
        ClientFrame::Watch(users) => {
            for user in users {
                let event = PresenceEvent {
                    user,
                    status: Status::Dnd,
                    text: "busy".into(),
                    since_ms: 5,
                    region: None,
                    unreachable_since_ms: None,
                    devices: 1,
                };
                say(conn, &[ServerFrame::Presence(Box::new(event))]);
            }
        }
        ClientFrame::Bye => conn
            .handle
            .close_after_flush(CloseReason::new(CloseCode::NORMAL, "bye")),
        _ => {}
    }
}

fn deliver(conn: &mut Conn, store: &Shared) {
    let Some(user) = &conn.user else { return };
    let store = store.lock().unwrap();
    let Some(inbox) = store.inboxes.get(user) else {
        return;
    };
    for (i, (_, op)) in inbox.iter().enumerate().skip(conn.given as usize) {
        let at = Coord {
            origin: ORIGIN,
            seq: i as u64 + 1,
        };
        say(conn, &[ServerFrame::Deliver { at, op: op.clone() }]);
        conn.given = at.seq;
    }
}

struct Rig {
    ca: ClusterCa,
    store: Shared,
    server: Server,
    connector: Connector,
}

impl Rig {
    fn new() -> Self {
        let ca = ClusterCa::create().unwrap();
        let store = Shared::default();
        Self {
            server: Server::start(&ca, store.clone()),
            connector: connector(&ca.roots()).unwrap(),
            store,
            ca,
        }
    }

    fn config(&self, user: &str) -> ClientConfig {
        let device = DeviceId::new("phone").unwrap();
        let mut config = ClientConfig::new(self.connector.clone(), user, device);
        let here = RegionId::new("here").unwrap();
        config.endpoints_of(here, [self.server.addr.to_string()]);
        config.server_name = Some("localhost".into());
        config.tuning.backoff_min = Duration::from_millis(20);
        config
    }

    fn client(&self, user: &str) -> Client {
        Client::connect(self.config(user)).unwrap()
    }

    async fn wait_for(&self, condition: impl Fn(&Store) -> bool) {
        let all = async {
            while !condition(&self.store.lock().unwrap()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, all)
            .await
            .expect("the condition within the test's patience");
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future)
        .await
        .expect("an answer within the test's patience")
}

#[tokio::test]
async fn messages_presence_and_acknowledgements_go_through() {
    let rig = Rig::new();
    let (alice, bob) = (rig.client("alice"), rig.client("bob"));
    let accepted = soon(alice.send(user("bob"), "one").unwrap()).await.unwrap();
    assert!(!accepted.duplicate);
    let message = soon(bob.next_message()).await.unwrap();
    assert_eq!(
        (message.from, message.id, &message.body[..]),
        (user("alice"), accepted.id, &b"one"[..])
    );
    bob.consumed(message.at);
    rig.wait_for(|store| store.acks.contains(&(user("bob"), message.at)))
        .await;
    bob.watch([user("alice")]);
    let presence = loop {
        if let Some(ClientEvent::Presence(event)) = soon(bob.next()).await {
            break event;
        }
    };
    assert_eq!((presence.user, presence.status), (user("alice"), Status::Dnd));
    assert!(matches!(
        alice.send(user("bob"), vec![0; 1001]),
        Err(SendError::TooLarge { .. })
    ));
    soon(bob.close()).await;
    while let Some(event) = soon(bob.next()).await {
        if let ClientEvent::Closed(cause) = event {
            assert_eq!(cause, CloseCause::Asked);
        }
    }
    assert!(matches!(
        bob.send(user("alice"), "late"),
        Err(SendError::Closed(_))
    ));
}

#[tokio::test]
async fn a_batch_is_answered_by_events_with_its_tickets() {
    let rig = Rig::new();
    let alice = rig.client("alice");
    let mut messages: VecDeque<_> = (0..500u32)
        .map(|n| OutgoingMessage::new(user("bob"), n.to_be_bytes().to_vec()))
        .collect();
    let (tickets, refused) = alice.send_batch(&mut messages);
    assert_eq!((tickets.clone(), refused, messages.len()), (1..501, None, 0));
    let mut events = Vec::new();
    let mut seen = Vec::new();
    while seen.len() < 500 {
        soon(alice.next_batch(&mut events, 64)).await;
        seen.extend(events.drain(..).filter_map(|event| match event {
            ClientEvent::Accepted { ticket, .. } => Some(ticket.0),
            _ => None,
        }));
    }
    assert_eq!(seen, tickets.collect::<Vec<_>>());
    let inbox: Vec<u32> = rig.store.lock().unwrap().inboxes[&user("bob")]
        .iter()
        .map(|(_, op)| u32::from_be_bytes(op.body()[..].try_into().unwrap()))
        .collect();
    assert_eq!(inbox, (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_outbox_counts_results_that_nobody_took() {
    let rig = Rig::new();
    let mut config = rig.config("alice");
    config.tuning.outbox_messages = 4;
    let alice = Client::connect(config).unwrap();
    let one = || OutgoingMessage::new(user("bob"), "x");
    for _ in 0..4 {
        alice.try_send(one()).unwrap();
    }
    soon(alice.flush()).await;
    assert!(matches!(alice.try_send(one()), Err(SendError::OutboxFull { .. })));
    let mut events = Vec::new();
    while events.len() < 5 {
        soon(alice.next_batch(&mut events, 10)).await;
    }
    soon(alice.room()).await;
    alice.try_send(one()).unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_id() {
    let rig = Rig::new();
    let alice = rig.client("alice");
    soon(alice.connected()).await;
    rig.store.lock().unwrap().cut_before_answer = true;
    let accepted = soon(alice.send(user("bob"), "once").unwrap()).await.unwrap();
    assert!(accepted.duplicate, "the first answer was lost");
    let store = rig.store.lock().unwrap();
    assert_eq!(store.inboxes[&user("bob")].len(), 1);
    assert_eq!(store.hellos.len(), 2);
    assert_eq!(store.hellos[1].connect_epoch, 1);
}

#[tokio::test]
async fn a_dead_server_is_left_for_another_of_the_list() {
    let rig = Rig::new();
    let other = Server::start(&rig.ca, rig.store.clone());
    let mut config = rig.config("alice");
    config.endpoints_of(RegionId::new("there").unwrap(), [other.addr.to_string()]);
    let alice = Client::connect(config).unwrap();
    soon(alice.connected()).await;
    rig.server.kill().await;
    let accepted = soon(alice.send(user("bob"), "over there").unwrap()).await;
    assert!(accepted.is_ok());
}

#[tokio::test]
async fn a_restart_goes_on_from_the_state_file() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    let alice = rig.client("alice");
    for body in ["1", "2", "3"] {
        soon(alice.send(user("bob"), body).unwrap()).await.unwrap();
    }
    let config = || {
        let mut config = rig.config("bob");
        config.state_file = Some(folder.path().join("bob.state"));
        config
    };
    let bob = Client::connect(config()).unwrap();
    assert!(matches!(
        Client::connect(config()),
        Err(StartError::State(StateError::InUse { .. }))
    ));
    let first = soon(bob.next_message()).await.unwrap();
    let second = soon(bob.next_message()).await.unwrap();
    assert_eq!((&first.body[..], &second.body[..]), (&b"1"[..], &b"2"[..]));
    bob.consumed(first.at);
    soon(bob.close()).await;
    drop(bob);

    let mut offline = config();
    offline.endpoints[0].endpoints = vec!["127.0.0.1:1".into()];
    let bob = Client::connect(offline).unwrap();
    bob.try_send(OutgoingMessage::new(user("alice"), "kept")).unwrap();
    soon(bob.close()).await;
    drop(bob);

    let bob = Client::connect(config()).unwrap();
    assert_eq!(bob.unanswered().len(), 1);
    let again = soon(bob.next_message()).await.unwrap();
    assert_eq!(
        again.id, second.id,
        "what was not consumed comes again, the rest not"
    );
    soon(bob.flush()).await;
    assert_eq!(&soon(alice.next_message()).await.unwrap().body[..], &b"kept"[..]);
    let store = rig.store.lock().unwrap();
    let cursor = &store.hellos.last().unwrap().cursor;
    assert_eq!(cursor, &[(ORIGIN, 1)].into_iter().collect());
}

#[tokio::test]
async fn a_refused_token_is_renewed_or_ends_the_client() {
    let rig = Rig::new();
    rig.store.lock().unwrap().refused = vec!["old".into()];
    let closed = |client: Client| async move {
        loop {
            if let Some(ClientEvent::Closed(cause)) = soon(client.next()).await {
                return cause;
            }
        }
    };
    assert_eq!(
        closed(rig.client("old")).await,
        CloseCause::Unauthorized("expired".into())
    );
    let mut config = rig.config("old");
    config.renew = Some(Arc::new(|| Box::pin(async { Ok("alice".to_owned()) })));
    let alice = Client::connect(config).unwrap();
    assert!(soon(alice.connected()).await);
    let mut config = rig.config("old");
    config.renew = Some(Arc::new(|| Box::pin(async { Err("nobody is asked".to_owned()) })));
    assert_eq!(
        closed(Client::connect(config).unwrap()).await,
        CloseCause::Unauthorized("nobody is asked".into())
    );
}

#[tokio::test]
async fn handlers_consume_and_the_last_clone_closes() {
    let rig = Rig::new();
    let (alice, bob) = (rig.client("alice"), rig.client("bob"));
    for _ in 0..40 {
        alice.send(user("bob"), "x").unwrap();
    }
    let count = std::cell::Cell::new(0);
    let cause = soon(bob.handle(|event| {
        if let ClientEvent::Message(_) = event {
            count.set(count.get() + 1);
        }
        let (bob, done) = (bob.clone(), count.get() == 40);
        async move {
            if done {
                bob.input(Input::Close);
            }
        }
    }))
    .await;
    assert_eq!((cause, count.get()), (CloseCause::Asked, 40));
    let at = Coord {
        origin: ORIGIN,
        seq: 39,
    };
    rig.wait_for(|store| store.acks.iter().any(|(_, ack)| *ack >= at))
        .await;
    let shared = Arc::downgrade(alice.shared());
    drop(alice);
    let gone = async {
        while shared.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
}
