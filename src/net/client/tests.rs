use bytes::Bytes;
use tokio::sync::mpsc;

use super::*;
use crate::net::{
    certs::{ClusterCa, Roots},
    connect::{ClientStream, ConnectError, ConnectOptions, Connector},
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    ca: ClusterCa,
    listener: ClientListener,
    connector: Connector,
    events: mpsc::Receiver<ClientEvent>,
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn rig(limits: ClientLimits, capacity: usize, endpoints: usize) -> Rig {
    let ca = ClusterCa::create().unwrap();
    let identity = ca
        .issue_server(&["localhost".to_owned()], &["127.0.0.1".parse().unwrap()])
        .unwrap();
    let (sink, events) = mpsc::channel(capacity);
    let config = ClientListenerConfig {
        limits,
        endpoints,
        ..ClientListenerConfig::new(loopback(), identity)
    };
    let listener = ClientListener::bind(config, sink).unwrap();
    let connector = Connector::new(loopback(), &ca.roots(), ConnectOptions::default()).unwrap();
    Rig {
        ca,
        listener,
        connector,
        events,
    }
}

impl Rig {
    async fn client(&self) -> ClientStream {
        self.connector
            .connect(self.listener.local_addr(), "localhost")
            .await
            .unwrap()
    }

    async fn event(&mut self) -> ClientEvent {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event within the test's patience")
            .unwrap()
    }

    async fn opened(&mut self) -> (u64, ConnHandle) {
        match self.event().await {
            ClientEvent::Opened { conn, handle, .. } => (conn, handle),
            other => panic!("expected Opened, not {other:?}"),
        }
    }

    async fn frames(&mut self, count: usize) -> Vec<(u64, Frame)> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.event().await {
                ClientEvent::Frames { conn, frames } => {
                    all.extend(frames.into_iter().map(|frame| (conn, frame)))
                }
                other => panic!("expected Frames, not {other:?}"),
            }
        }
        all
    }

    async fn closed(&mut self) -> (u64, ClosedBy) {
        loop {
            match self.event().await {
                ClientEvent::Closed { conn, reason } => return (conn, reason),
                ClientEvent::Frames { .. } => {}
                other => panic!("expected Closed, not {other:?}"),
            }
        }
    }
}

fn numbered(number: u32, size: usize) -> Bytes {
    let mut payload = vec![0; size.max(4)];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    Frame::new(1, payload).encode()
}

fn number(frame: &Frame) -> u32 {
    u32::from_be_bytes(*frame.payload.first_chunk().unwrap())
}

async fn wait_until(mut condition: impl FnMut() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, poll)
        .await
        .expect("the condition within the test's patience");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_ask_for_fewer_acknowledgements() {
    let mut rig = rig(ClientLimits::default(), 64, 1);
    let mut client = rig.client().await;
    client.send(vec![numbered(0, 100)]).await.unwrap();
    let (_, handle) = rig.opened().await;
    rig.frames(1).await;
    handle.try_send(vec![numbered(0, 100)]).unwrap();
    wait_until(|| {
        let stats = handle.stats();
        (stats.frame_rx.ack_frequency, stats.frame_tx.ack_frequency) == (1, 1)
    })
    .await;
}

/// The keys of each phase are made when they are first used, by whichever side begins it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_updated_from_both_sides() {
    let mut rig = rig(ClientLimits::default(), 64, 1);
    let mut client = rig.client().await;
    client.send(vec![numbered(0, 100)]).await.unwrap();
    let (_, handle) = rig.opened().await;
    rig.frames(1).await;
    for at in 1..=8 {
        if at % 2 == 0 {
            client.force_key_update();
        } else {
            handle.force_key_update();
        }
        handle.try_send(vec![numbered(at, 100)]).unwrap();
        let answers = timeout(PATIENCE, client.recv()).await.unwrap().unwrap();
        assert_eq!(number(&answers[0]), at);
        client.send(vec![numbered(at, 100)]).await.unwrap();
        assert_eq!(number(&rig.frames(1).await[0].1), at);
    }
}

// On one thread: what is queued without waiting is queued before the connection's task writes any of it.
#[tokio::test]
async fn frames_go_both_ways_in_order() {
    let mut rig = rig(ClientLimits::default(), 64, 1);
    let mut client = rig.client().await;
    client
        .send((0..1000).map(|n| numbered(n, 100)).collect())
        .await
        .unwrap();
    let (id, handle) = rig.opened().await;
    let received = rig.frames(1000).await;
    assert!(
        received
            .iter()
            .enumerate()
            .all(|(at, (conn, frame))| *conn == id && number(frame) == at as u32)
    );
    for at in 0..1000 {
        handle.try_send(vec![numbered(at, 100)]).unwrap();
    }
    let mut answers = Vec::new();
    while answers.len() < 1000 {
        answers.extend(timeout(PATIENCE, client.recv()).await.unwrap().unwrap());
    }
    assert!(
        answers
            .iter()
            .enumerate()
            .all(|(at, frame)| number(frame) == at as u32)
    );
    client.close(&CloseReason::new(CloseCode::NORMAL, "bye"));
    let (closed, reason) = rig.closed().await;
    assert_eq!(closed, id);
    assert_eq!(
        reason,
        ClosedBy::Remote(CloseReason::new(CloseCode::NORMAL, "bye"))
    );
    assert_eq!(handle.try_send(vec![numbered(0, 4)]), Err(TrySendError::Closed));
    assert_eq!(rig.listener.stats().open, 0);
    assert!(
        rig.listener.stats().batches_out < 500,
        "writes coalesce what is queued"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_frame_ends_its_connection_alone() {
    let mut rig = rig(
        ClientLimits {
            max_frame: 1000,
            ..ClientLimits::default()
        },
        64,
        1,
    );
    let mut good = rig.client().await;
    good.send(vec![numbered(1, 998)]).await.unwrap();
    let (good_id, good_handle) = rig.opened().await;
    rig.frames(1).await;
    let mut bad = rig.client().await;
    bad.send(vec![numbered(1, 10), numbered(2, 999)]).await.unwrap();
    let (bad_id, _) = rig.opened().await;
    let before = rig.frames(1).await;
    assert_eq!(number(&before[0].1), 1);
    let (closed, reason) = rig.closed().await;
    assert_eq!(closed, bad_id);
    assert_eq!(
        reason,
        ClosedBy::Frame(FrameError::TooLong { len: 1001, max: 1000 })
    );
    let ClosedBy::Remote(told) = timeout(PATIENCE, bad.recv()).await.unwrap().unwrap_err() else {
        panic!("the client is told")
    };
    assert_eq!(told.code, CloseCode::FRAME_TOO_LONG);
    assert!(told.text.contains("1001"), "{told}");
    good.send(vec![numbered(2, 10)]).await.unwrap();
    assert_eq!(rig.frames(1).await[0].0, good_id);
    good_handle.try_send(vec![numbered(3, 10)]).unwrap();
    assert_eq!(
        number(&timeout(PATIENCE, good.recv()).await.unwrap().unwrap()[0]),
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_bounded_and_alone() {
    let limits = ClientLimits {
        max_frame: 8 * 1024,
        send_window: 16 * 1024,
        queue_bytes: 64 * 1024,
        pause_reading_above: 32 * 1024,
        ..ClientLimits::default()
    };
    let mut rig = rig(limits, 64, 1);
    let mut lazy = rig.client().await;
    lazy.send(vec![numbered(0, 10)]).await.unwrap();
    let (lazy_id, lazy_handle) = rig.opened().await;
    rig.frames(1).await;
    let mut busy = rig.client().await;
    busy.send(vec![numbered(0, 10)]).await.unwrap();
    let (busy_id, busy_handle) = rig.opened().await;
    rig.frames(1).await;

    // The client's receive window (1 MiB), our send window and our queue fill up, and then it is full for good.
    let mut sent = 0;
    let mut refusals = 0;
    while refusals < 200 {
        match lazy_handle.try_send(vec![numbered(sent, 1000)]) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full(batch)) => {
                assert_eq!(batch.len(), 1);
                refusals += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(other) => panic!("{other}"),
        }
        assert!(lazy_handle.queued() <= 64 * 1024);
        assert!(sent < 1300, "more than all windows hold");
    }
    // What it sends is not read while its queue is above the threshold; the other one is served at once.
    lazy.send(vec![numbered(7, 10)]).await.unwrap();
    for at in 0..50 {
        busy.send(vec![numbered(at, 10)]).await.unwrap();
        let (from, frame) = rig.frames(1).await.remove(0);
        assert_eq!((from, number(&frame)), (busy_id, at));
        busy_handle.try_send(vec![numbered(at, 10)]).unwrap();
        timeout(PATIENCE, busy.recv()).await.unwrap().unwrap();
    }
    // When it reads at last, everything comes in order and it is heard again.
    let mut next = 0;
    while next < sent {
        for frame in timeout(PATIENCE, lazy.recv()).await.unwrap().unwrap() {
            assert_eq!(number(&frame), next);
            next += 1;
        }
    }
    let (from, frame) = rig.frames(1).await.remove(0);
    assert_eq!((from, number(&frame)), (lazy_id, 7));
    assert_eq!(
        lazy_handle.try_send(vec![numbered(0, 40_000), numbered(0, 40_000)]),
        Err(TrySendError::TooLarge {
            cost: 2 * (40_000 + 6 + 64),
            limit: 64 * 1024
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sink_slows_the_sender_and_loses_nothing() {
    let mut rig = rig(ClientLimits::default(), 1, 1);
    let (mut sender, _receiver) = rig.client().await.split();
    let total = 20_000u32;
    let sending = tokio::spawn(async move {
        for first in (0..total).step_by(100) {
            sender
                .send((first..first + 100).map(|n| numbered(n, 100)).collect())
                .await
                .unwrap();
        }
        sender
    });
    let listener = &rig.listener;
    // Windows, one batch in the channel and one in the hands of the reader; then nothing moves: 2 MB are to come.
    wait_until(|| listener.stats().bytes_in > 0).await;
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = listener.stats().bytes_in;
        if now == last {
            break;
        }
        last = now;
    }
    assert!(last < 200_000, "{last} bytes were read although nobody took them");
    assert!(!sending.is_finished());
    rig.opened().await;
    let frames = rig.frames(total as usize).await;
    assert!(
        frames
            .iter()
            .enumerate()
            .all(|(at, (_, frame))| number(frame) == at as u32)
    );
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_after_flush_delivers_first_and_has_a_deadline() {
    let limits = ClientLimits {
        flush_timeout: Duration::from_millis(300),
        ..ClientLimits::default()
    };
    let mut rig = rig(limits, 64, 1);
    let mut client = rig.client().await;
    client.send(vec![numbered(0, 10)]).await.unwrap();
    let (_, handle) = rig.opened().await;
    for at in 0..500 {
        handle.try_send(vec![numbered(at, 1000)]).unwrap();
    }
    handle.close_after_flush(CloseReason::new(CloseCode::SUPERSEDED, "a newer session"));
    let mut received = 0;
    let end = loop {
        match timeout(PATIENCE, client.recv()).await.unwrap() {
            Ok(frames) => received += frames.len(),
            Err(end) => break end,
        }
    };
    assert_eq!(received, 500);
    assert_eq!(
        end,
        ClosedBy::Remote(CloseReason::new(CloseCode::SUPERSEDED, "a newer session"))
    );
    let reason = rig.closed().await.1;
    assert_eq!(
        reason,
        ClosedBy::Local(CloseReason::new(CloseCode::SUPERSEDED, "a newer session"))
    );

    // A client that reads nothing cannot hold the close up.
    let mut lazy = rig.client().await;
    lazy.send(vec![numbered(0, 10)]).await.unwrap();
    let (_, handle) = rig.opened().await;
    while handle.try_send(vec![numbered(0, 60_000)]).is_ok() || rig.listener.stats().bytes_out < 1_500_000 {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    handle.close_after_flush(CloseReason::new(CloseCode::TOO_SLOW, "reads nothing"));
    assert!(matches!(rig.closed().await.1, ClosedBy::Local(reason) if reason.code == CloseCode::TOO_SLOW));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_another_ca_or_name_are_refused() {
    let rig = rig(ClientLimits::default(), 64, 1);
    let addr = rig.listener.local_addr();
    let other = ClusterCa::create().unwrap().roots();
    let stranger = Connector::new(loopback(), &other, ConnectOptions::default()).unwrap();
    let error = stranger.connect(addr, "localhost").await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    let error = rig
        .connector
        .connect(addr, "elsewhere.example")
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    assert!(rig.connector.connect(addr, "127.0.0.1").await.is_ok());
    let _: Roots = rig.ca.roots();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_an_error_in_time() {
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let options = ConnectOptions {
        connect_timeout: Duration::from_millis(200),
        ..ConnectOptions::default()
    };
    let connector = Connector::new(loopback(), &ClusterCa::create().unwrap().roots(), options).unwrap();
    let error = connector
        .connect(silent.local_addr().unwrap(), "localhost")
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_are_refused_and_retry_proves_addresses() {
    let limits = ClientLimits {
        max_connections: 2,
        retry_above: 0,
        ..ClientLimits::default()
    };
    let mut rig = rig(limits, 64, 1);
    let mut first = rig.client().await;
    first.send(vec![numbered(0, 4)]).await.unwrap();
    let mut second = rig.client().await;
    second.send(vec![numbered(0, 4)]).await.unwrap();
    wait_until(|| rig.listener.stats().open == 2).await;
    assert_eq!(rig.listener.stats().retried, 2);
    let error = rig
        .connector
        .connect(rig.listener.local_addr(), "localhost")
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    assert_eq!(rig.listener.stats().refused, 1);
    first.close(&CloseReason::new(CloseCode::NORMAL, ""));
    while !matches!(rig.event().await, ClientEvent::Closed { .. }) {}
    wait_until(|| rig.listener.shared.held.load(Relaxed) == 1).await;
    rig.client().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_stream_does_not_stay() {
    let limits = ClientLimits {
        handshake_timeout: Duration::from_millis(200),
        ..ClientLimits::default()
    };
    let rig = rig(limits, 64, 1);
    let mut client = rig.client().await;
    let end = timeout(PATIENCE, client.recv()).await.unwrap().unwrap_err();
    assert!(matches!(end, ClosedBy::Remote(reason) if reason.code == CloseCode::TOO_SLOW));
    wait_until(|| rig.listener.stats().failed == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_whole_first_frame_does_not_stay() {
    let limit = Duration::from_millis(500);
    let limits = ClientLimits {
        handshake_timeout: limit,
        ..ClientLimits::default()
    };
    let mut rig = rig(limits, 64, 1);
    let (mut slow, mut quick) = (rig.client().await, rig.client().await);
    // A byte now and then does not help.
    let began = Instant::now();
    let hello = numbered(1, 100);
    let sent = |at: usize| vec![hello.slice(at..at + 1)];
    quick.send(vec![hello.clone()]).await.unwrap();
    slow.send(sent(0)).await.unwrap();
    let mut at = 1;
    let end = loop {
        match timeout(limit / 4, slow.recv()).await {
            Err(_) if at < 40 => slow.send(sent(at)).await.unwrap_or_default(),
            Err(_) => panic!("still open after {:?}", began.elapsed()),
            Ok(Err(end)) => break end,
            Ok(Ok(other)) => panic!("expected the end, not {other:?}"),
        }
        at += 1;
    };
    assert!(matches!(end, ClosedBy::Remote(reason) if reason.code == CloseCode::TOO_SLOW));
    assert_eq!(rig.listener.stats().failed, 1);
    // One that greeted stays, whatever it does not say after.
    quick.send(vec![hello.slice(..1)]).await.unwrap();
    assert!(timeout(2 * limit, quick.recv()).await.is_err());
    wait_until(|| rig.listener.stats().open == 1).await;
    while !matches!(rig.event().await, ClientEvent::Closed { .. }) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_announces_no_idle_timeout_gets_that_of_the_server() {
    // A keep-alive may be late on a busy machine: many fit into the time.
    let limits = ClientLimits {
        idle_timeout: Duration::from_secs(2),
        ..ClientLimits::default()
    };
    let mut rig = rig(limits, 64, 1);
    let connector = |keep_alive| {
        let options = ConnectOptions {
            keep_alive,
            // Zero announces none.
            idle_timeout: Duration::ZERO,
            ..ConnectOptions::default()
        };
        Connector::new(loopback(), &rig.ca.roots(), options).unwrap()
    };
    let connectors = [connector(Some(Duration::from_millis(50))), connector(None)];
    let mut clients = Vec::new();
    for connector in &connectors {
        let mut client = connector
            .connect(rig.listener.local_addr(), "localhost")
            .await
            .unwrap();
        client.send(vec![numbered(1, 10)]).await.unwrap();
        let (conn, handle) = rig.opened().await;
        rig.frames(1).await;
        clients.push((conn, handle, client));
    }
    let (silent, _handle, _client) = clients.pop().unwrap();
    assert_eq!(rig.closed().await, (silent, ClosedBy::TimedOut));
    // The other one outlived it by its keep-alives alone.
    let (_, handle, mut kept) = clients.pop().unwrap();
    handle.try_send(vec![numbered(7, 10)]).unwrap();
    let frames = timeout(PATIENCE, kept.recv()).await.unwrap().unwrap();
    assert_eq!(number(&frames[0]), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_tells_everybody_and_ends() {
    let mut rig = rig(ClientLimits::default(), 64, 2);
    let mut clients = Vec::new();
    for _ in 0..8 {
        let connector = Connector::new(loopback(), &rig.ca.roots(), ConnectOptions::default()).unwrap();
        let mut client = connector
            .connect(rig.listener.local_addr(), "localhost")
            .await
            .unwrap();
        client.send(vec![numbered(0, 4)]).await.unwrap();
        clients.push((connector, client));
    }
    wait_until(|| rig.listener.stats().open == 8).await;
    timeout(PATIENCE, rig.listener.shutdown(Duration::from_secs(5)))
        .await
        .unwrap();
    let mut closed = 0;
    while let Some(event) = rig.events.recv().await {
        if let ClientEvent::Closed { reason, .. } = event {
            assert!(matches!(reason, ClosedBy::Local(reason) if reason.code == CloseCode::SHUTDOWN));
            closed += 1;
        }
    }
    assert_eq!(closed, 8);
    for (_, mut client) in clients {
        let end = timeout(PATIENCE, client.recv()).await.unwrap().unwrap_err();
        assert!(matches!(end, ClosedBy::Remote(reason) if reason.code == CloseCode::SHUTDOWN));
    }
}

#[test]
fn senseless_limits_are_refused_by_name() {
    let limits = ClientLimits {
        queue_bytes: 1000,
        ..ClientLimits::default()
    };
    assert!(
        limits
            .check()
            .unwrap_err()
            .to_string()
            .contains("queue_bytes = 1000")
    );
    let limits = ClientLimits {
        pause_reading_above: 2 << 20,
        ..ClientLimits::default()
    };
    assert!(
        limits
            .check()
            .unwrap_err()
            .to_string()
            .contains("pause_reading_above")
    );
    assert!(ClientLimits::default().check().is_ok());
}
