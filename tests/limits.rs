//! Limits and refusals of a real server: who reads nothing, more than memory holds, and what is not allowed.

mod common;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use common::{TestCluster, event, receive, regions, send, token, unix_secs, user, within};
use iris::client::{Client, ClientEvent, OutgoingMessage, SendFailed};
use iris::core::ids::MessageId;
use iris::core::vector::Vector;
use iris::core::wire::{ClientFrame, Code, Hello, Send, SendControl, ServerFrame, Status, Welcome};
use iris::net::client::ClosedBy;
use iris::net::connect::ClientStream;
use iris::net::{CloseCode, CloseReason};
use iris::server::dev::SERVER_NAME;
use iris::server::token::{KeyFiles, Signer};

/// The least that a store may keep in memory.
const SMALL_STORE: [(&str, &str); 4] = [
    ("store.memory_bytes", "1MiB"),
    ("store.checkpoint_bytes", "1MiB"),
    ("store.segment_bytes", "1MiB"),
    ("store.cache_bytes", "1MiB"),
];

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_costs_a_window_and_slows_nobody() {
    const WINDOW: u64 = 64;
    const FLOOD: u64 = 5_000;
    let mut set = SMALL_STORE.to_vec();
    set.push(("limits.window_messages", "64"));
    let cluster = TestCluster::start(&regions(&["us-east"]), &set).await;
    let (carol, dave) = (
        cluster.client("us-east", "carol", "laptop").await,
        cluster.client("us-east", "dave", "laptop").await,
    );
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let delivered = || cluster.node("us-east-core").metrics().delivered.get();

    // What the load itself costs the two: the same, to someone who reads.
    let quick = cluster.client("us-east", "quick", "phone").await;
    let reading = tokio::spawn(async move {
        for number in 0..FLOOD {
            assert_eq!(number_in(&receive(&quick).await.body), number);
        }
    });
    let (before, _) = flood(&alice, &["quick"], FLOOD, &carol, &dave).await;
    within("all is read", reading).await.unwrap();
    let (quiet_before, _) = latency(&carol, &dave, 50).await;

    // Takes messages from the network and handles none; and one that does not even read from its connection.
    let slow = cluster.client("us-east", "slow", "phone").await;
    let deaf = Raw::start(&cluster, &token(cluster.folder.path(), "deaf"), "phone").await;
    // Everything handed out so far was counted when the counter rests.
    let base = resting(&delivered).await;
    let (during, between) = flood(&alice, &["slow", "deaf"], FLOOD, &carol, &dave).await;
    let (quiet_after, more) = latency(&carol, &dave, 50).await;
    let handed_out = resting(&delivered).await - base - between - more;
    eprintln!(
        "median: {before:?} beside a reader, {during:?} beside the slow; quiet: {quiet_before:?} and {quiet_after:?}"
    );
    assert_eq!(
        handed_out,
        2 * WINDOW,
        "a window for each of the two, and no more"
    );
    let slack = Duration::from_millis(50);
    assert!(
        during < before * 4 + slack,
        "{during:?} beside who reads nothing, {before:?} beside a reader"
    );
    assert!(
        quiet_after < quiet_before * 4 + slack,
        "{quiet_after:?} with their backlog, {quiet_before:?} without"
    );

    // Nothing is lost to them: each takes up where it is.
    drop(deaf);
    let deaf = cluster.client("us-east", "deaf", "phone").await;
    for client in [&slow, &deaf] {
        for number in 0..FLOOD {
            assert_eq!(number_in(&receive(client).await.body), number);
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_ten_times_the_memory_is_kept_in_order_over_a_restart() {
    const BODY: usize = 8 * 1024;
    const COUNT: u64 = 11 * 1024 * 1024 / BODY as u64;
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &SMALL_STORE).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    // Two users on shards of their own, the messages in turns.
    send_all(&alice, &["bob", "carol"], COUNT, BODY).await;
    let bob = cluster.client("us-east", "bob", "phone").await;
    for number in 0..COUNT {
        assert_eq!(number_in(&receive(&bob).await.body), number, "before the restart");
    }
    cluster.stop_node("us-east-core").await;
    cluster.start_node("us-east-core").await;
    cluster.ready().await;
    let carol = cluster.client("us-east", "carol", "phone").await;
    for number in 0..COUNT {
        assert_eq!(
            number_in(&receive(&carol).await.body),
            number,
            "after the restart"
        );
    }
    // What was consumed is not given again.
    send(&alice, "bob", padded(COUNT, BODY)).await;
    assert_eq!(number_in(&receive(&bob).await.body), COUNT);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_answered_by_type_and_touches_no_one_else() {
    // More than the two who go on have unconsumed at a time, acknowledgements being written once a second.
    const INBOX: u8 = 40;
    let set = [("limits.max_body", "4KiB"), ("limits.inbox_messages", "40")];
    let cluster = TestCluster::start(&regions(&["us-east"]), &set).await;
    let bystander = cluster.client("us-east", "alice", "laptop").await;
    let friend = cluster.client("us-east", "friend", "laptop").await;
    let mallory = token(cluster.folder.path(), "mallory");

    // Messages that are refused one by one; the session goes on.
    let mut raw = Raw::start(&cluster, &mallory, "phone").await;
    let welcome = raw.welcome().await;
    assert_eq!(welcome.limits.max_body, 4096);
    let now = welcome.server_ms;
    let hour = 3_600_000;
    let id = MessageId::v7(now, [1; 10]);
    assert_eq!(raw.send(id, "bob", &[7; 4096]).await, Ok(false));
    assert_eq!(raw.send(id, "bob", &[7; 4096]).await, Ok(true), "a duplicate");
    assert_eq!(raw.send(id, "bob", b"another body").await, Err(Code::IdReused));
    let fresh = |random: u8| MessageId::v7(now, [random; 10]);
    assert_eq!(raw.send(fresh(2), "bob", &[7; 4097]).await, Err(Code::TooLarge));
    let old = MessageId::v7(now - 7 * 24 * hour - hour, [3; 10]);
    assert_eq!(raw.send(old, "bob", b"x").await, Err(Code::IdTooOld));
    let ahead = MessageId::v7(now + hour + hour / 6, [4; 10]);
    assert_eq!(raw.send(ahead, "bob", b"x").await, Err(Code::IdInFuture));
    assert_eq!(
        raw.send(MessageId([9; 16]), "bob", b"x").await,
        Err(Code::IdMalformed)
    );
    for random in 5..4 + INBOX {
        assert_eq!(raw.send(fresh(random), "bob", b"x").await, Ok(false));
    }
    assert_eq!(raw.send(fresh(100), "bob", b"x").await, Err(Code::InboxFull));
    assert_eq!(
        raw.send(fresh(5), "bob", b"x").await,
        Ok(true),
        "a duplicate, though the inbox is full"
    );
    assert_eq!(
        raw.send(fresh(101), "zoe", b"x").await,
        Ok(false),
        "another inbox"
    );
    raw.session_seq = 0;
    assert_eq!(raw.send(fresh(102), "zoe", b"x").await, Err(Code::OutOfOrder));
    assert_going_on(&bystander, &friend).await;
    drop(raw); // it would not leave when asked to, at the end

    // The library tells the application the same.
    let refused = within("refused", bystander.send(user("bob"), "x").unwrap()).await;
    assert!(
        matches!(
            refused,
            Err(SendFailed::Rejected {
                code: Code::InboxFull,
                ..
            })
        ),
        "{refused:?}"
    );

    // Tokens.
    let signer = Signer::from_file(&KeyFiles::in_data(cluster.folder.path()).private, None).unwrap();
    let expired = signer
        .mint("mallory", unix_secs() - 7200, Duration::from_secs(3600))
        .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    KeyFiles::in_data(elsewhere.path()).create_or_keep().unwrap();
    let foreign = token(elsewhere.path(), "alice");
    for (token, says) in [
        (expired.as_str(), "expired"),
        (foreign.as_str(), "signature"),
        ("nonsense", "not a token"),
        ("", "not a token"),
    ] {
        let mut raw = Raw::start(&cluster, token, "phone").await;
        let (code, detail) = raw.error().await;
        assert_eq!(code, Code::Unauthorized, "{detail}");
        assert!(detail.contains(says), "{detail}");
        assert_eq!(raw.closed().await.code, CloseCode::UNAUTHENTICATED);
    }
    assert_going_on(&bystander, &friend).await;

    // Frames that end a connection: its own.
    let send_early = encoded(&ClientFrame::Send(message(fresh(103), 1, "bob", b"x")));
    let unknown = frame(1, 200, b"????");
    let garbage = frame(1, 2, &[0xff; 40]);
    let from_server = frame(1, 68, &[0; 64]);
    let second_hello = encoded(&ClientFrame::Hello(Box::new(hello(&mallory, "phone"))));
    for (what, greeted, bytes, code) in [
        ("a message before the greeting", false, send_early, Code::Protocol),
        ("an unknown kind", true, unknown, Code::Protocol),
        ("a message that does not decode", true, garbage, Code::Protocol),
        (
            "a frame that only servers send",
            true,
            from_server,
            Code::Protocol,
        ),
        ("a second greeting", true, second_hello, Code::Protocol),
    ] {
        let mut raw = Raw::connect(&cluster).await;
        if greeted {
            raw.greet(&mallory, "tablet").await;
            raw.welcome().await;
        }
        raw.write(bytes).await;
        assert_eq!(raw.error().await.0, code, "{what}");
        raw.closed().await;
        assert_going_on(&bystander, &friend).await;
    }
    // Bytes that are no frames at all: there is nothing to answer, the connection's end says why.
    let mut long = BytesMut::new();
    long.put_u32(u32::MAX);
    long.put_slice(&[1, 2, 0, 0]);
    for (bytes, code) in [
        (long.freeze(), CloseCode::FRAME_TOO_LONG),
        (frame(9, 2, b"????"), CloseCode::BAD_FRAME),
        (Bytes::from_static(&[0, 0, 0, 1, 1]), CloseCode::BAD_FRAME),
    ] {
        let mut raw = Raw::connect(&cluster).await;
        raw.greet(&mallory, "tablet").await;
        raw.welcome().await;
        raw.write(bytes).await;
        assert_eq!(raw.closed().await.code, code);
        assert_going_on(&bystander, &friend).await;
    }
    for client in [&bystander, &friend] {
        assert_eq!(client.stats().sessions, 1, "its connection was never touched");
    }
    cluster.stop().await;
}

/// Sends and receives beside whatever happened, on sessions that stood before.
async fn assert_going_on(from: &Client, to: &Client) {
    send(from, "friend", "still here").await;
    assert_eq!(receive(to).await.body.as_ref(), b"still here");
}

fn padded(number: u64, len: usize) -> Vec<u8> {
    let mut body = vec![0; len];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body
}

fn number_in(body: &[u8]) -> u64 {
    u64::from_be_bytes(body[..8].try_into().unwrap())
}

/// Sends `count` messages to each, in turns and at the pace of the answers.
async fn send_all(from: &Client, to: &[&str], count: u64, len: usize) {
    let numbers = (0..count).flat_map(|number| to.iter().map(move |to| (number, *to)));
    let mut messages: VecDeque<OutgoingMessage> = numbers
        .map(|(number, to)| OutgoingMessage::new(user(to), padded(number, len)))
        .collect();
    let mut answers = messages.len();
    while answers > 0 {
        if !messages.is_empty() {
            from.send_batch(&mut messages);
        }
        let accepted = |event: &ClientEvent| match event {
            ClientEvent::Accepted { .. } => Some(()),
            ClientEvent::Rejected { .. } => panic!("{event:?}"),
            _ => None,
        };
        event("accepted", from, accepted).await;
        answers -= 1;
    }
}

/// Floods some recipients while two others talk; their median latency, and how many messages they sent.
async fn flood(from: &Client, to: &[&str], count: u64, carol: &Client, dave: &Client) -> (Duration, u64) {
    let (from, to) = (
        from.clone(),
        to.iter().map(|to| to.to_string()).collect::<Vec<_>>(),
    );
    let flooding = tokio::spawn(async move {
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        send_all(&from, &to, count, 1024).await;
    });
    let mut times = Vec::new();
    while !flooding.is_finished() {
        times.push(round_trip(carol, dave).await);
    }
    flooding.await.unwrap();
    median(times)
}

async fn latency(carol: &Client, dave: &Client, count: usize) -> (Duration, u64) {
    let mut times = Vec::new();
    for _ in 0..count {
        times.push(round_trip(carol, dave).await);
    }
    median(times)
}

fn median(mut times: Vec<Duration>) -> (Duration, u64) {
    times.sort();
    (times[times.len() / 2], times.len() as u64)
}

async fn round_trip(carol: &Client, dave: &Client) -> Duration {
    let sent = Instant::now();
    send(carol, "dave", "hello").await;
    receive(dave).await;
    sent.elapsed()
}

/// The value of a counter that is exported now and then, once it rests.
async fn resting(counter: &impl Fn() -> u64) -> u64 {
    let mut seen = counter();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = counter();
        if now == seen {
            return now;
        }
        seen = now;
    }
}

/// A client that speaks frames, and wrong ones too.
struct Raw {
    stream: ClientStream,
    frames: VecDeque<ServerFrame>,
    session_seq: u64,
}

impl Raw {
    async fn connect(cluster: &TestCluster) -> Self {
        let addr = cluster.node("us-east-edge").client_addr().unwrap();
        let stream = within("connected", cluster.connector.connect(addr, SERVER_NAME))
            .await
            .unwrap();
        Self {
            stream,
            frames: VecDeque::new(),
            session_seq: 0,
        }
    }

    async fn start(cluster: &TestCluster, token: &str, device: &str) -> Self {
        let mut raw = Self::connect(cluster).await;
        raw.greet(token, device).await;
        raw
    }

    async fn greet(&mut self, token: &str, device: &str) {
        self.write(encoded(&ClientFrame::Hello(Box::new(hello(token, device)))))
            .await;
    }

    async fn write(&mut self, bytes: Bytes) {
        within("written", self.stream.send(vec![bytes])).await.unwrap();
    }

    async fn next(&mut self) -> Result<ServerFrame, ClosedBy> {
        while self.frames.is_empty() {
            for frame in within("a frame", self.stream.recv()).await? {
                self.frames
                    .push_back(ServerFrame::decode(frame.kind, frame.payload).unwrap());
            }
        }
        Ok(self.frames.pop_front().unwrap())
    }

    async fn welcome(&mut self) -> Welcome {
        match self.next().await {
            Ok(ServerFrame::Welcome(welcome)) => *welcome,
            other => panic!("expected Welcome: {other:?}"),
        }
    }

    async fn error(&mut self) -> (Code, String) {
        match self.next().await {
            Ok(ServerFrame::Error { code, detail }) => (code, detail),
            other => panic!("expected Error: {other:?}"),
        }
    }

    /// How the server ended the connection.
    async fn closed(&mut self) -> CloseReason {
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(ClosedBy::Remote(reason)) => return reason,
                Err(other) => panic!("not closed by the server: {other:?}"),
            }
        }
    }

    /// Sends a message; whether it was accepted as a duplicate, or why it was refused.
    async fn send(&mut self, id: MessageId, to: &str, body: &[u8]) -> Result<bool, Code> {
        self.session_seq += 1;
        let send = message(id, self.session_seq, to, body);
        self.write(encoded(&ClientFrame::Send(send))).await;
        match self.next().await.unwrap() {
            ServerFrame::Accepted(accepted) if accepted.id == id => Ok(accepted.duplicate),
            ServerFrame::Rejected(rejected) if rejected.id == id => {
                assert!(!rejected.detail.is_empty(), "{rejected:?}");
                Err(rejected.code)
            }
            other => panic!("expected an answer to {id}: {other:?}"),
        }
    }
}

fn hello(token: &str, device: &str) -> Hello {
    Hello {
        token: token.to_owned(),
        device: device.parse().unwrap(),
        capabilities: 0,
        cursor: Vector::default(),
        connect_epoch: 0,
        status: Status::Online,
        text: String::new(),
        agent: "test".to_owned(),
        memory: 0,
    }
}

fn message(id: MessageId, session_seq: u64, to: &str, body: &[u8]) -> Send {
    let control = SendControl {
        to: user(to),
        kind: 0,
        ttl_ms: 0,
        trace: Vec::new(),
    };
    Send {
        id,
        session_seq,
        control,
        body: Bytes::copy_from_slice(body),
    }
}

fn encoded(frame: &ClientFrame) -> Bytes {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    bytes.freeze()
}

fn frame(version: u8, kind: u8, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u32(payload.len() as u32 + 2);
    bytes.put_slice(&[version, kind]);
    bytes.put_slice(payload);
    bytes.freeze()
}
