//! Limits and refusals of a real server: more than memory holds, and what is not allowed. Who reads nothing has a file of its own.

mod common;

use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use common::raw::{Raw, encoded, frame, hello, message};
use common::{
    PATIENCE, TestCluster, number_in, padded, receive, regions, send, send_all, token, unix_secs, user,
    within,
};
use iris::client::{Client, SendFailed};
use iris::core::ids::MessageId;
use iris::core::wire::{ClientFrame, Code};
use iris::net::CloseCode;
use iris::server::token::{KeyFiles, Signer};

/// The least that a store may keep in memory.
const SMALL_STORE: [(&str, &str); 4] = [
    ("store.memory_bytes", "1MiB"),
    ("store.checkpoint_bytes", "1MiB"),
    ("store.segment_bytes", "1MiB"),
    ("store.cache_bytes", "1MiB"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_ten_times_the_memory_is_kept_in_order_over_a_restart() {
    const BODY: usize = 8 * 1024;
    const COUNT: u64 = 11 * 1024 * 1024 / BODY as u64;
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &SMALL_STORE).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    // Two users on shards of their own, the messages in turns.
    send_all(&alice, &["bob", "carol"], 0..COUNT, BODY).await;
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

/// Clients that come at once, to a node that admits 40 a second and ten of them at once.
const STORM: usize = 120;

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_clients_is_admitted_at_the_rate_and_those_who_are_in_go_on() {
    let set = [("limits.sessions_per_second", "40"), ("timeouts.admit", "500ms")];
    let cluster = TestCluster::start(&regions(&["us-east"]), &set).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let began = Instant::now();
    let storm: Vec<Client> = (0..STORM)
        .map(|n| Client::connect(cluster.config("us-east", &format!("storm-{n}"), "phone")).unwrap())
        .collect();
    let (mut took, mut sessions) = (Vec::new(), 0);
    while sessions <= STORM {
        let asked = Instant::now();
        send(&alice, "bob", "still here").await;
        took.push(asked.elapsed());
        sessions = cluster.node("us-east-edge").sessions();
        let most = 1 + 10 + (began.elapsed().as_secs_f64() * 40.0).ceil() as usize;
        assert!(
            sessions <= most,
            "{sessions} sessions after {:?}",
            began.elapsed()
        );
        assert!(began.elapsed() < PATIENCE, "{sessions} sessions");
    }
    let lasted = began.elapsed();
    for client in &storm {
        assert!(within("connected", client.connected()).await);
    }
    assert!(lasted > Duration::from_secs(2), "{lasted:?}");
    // There was no time for most of them at first: they came back by themselves.
    let attempts: u64 = storm.iter().map(|client| client.stats().attempts).sum();
    assert!(attempts > STORM as u64, "{attempts} attempts");
    assert_eq!(alice.stats().sessions, 1, "who was in stayed in");
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 1000];
    eprintln!(
        "{STORM} clients at once were in after {lasted:?}, with {attempts} attempts; meanwhile {} messages of one who was in \
         were accepted: p50 {:?}, p99 {:?}, longest {:?}",
        took.len(),
        at(500),
        at(990),
        at(1000)
    );
    cluster.stop().await;
}
