use super::*;
use crate::{
    core::ids::{NodeName, RegionId, Sharding},
    net::{certs::ClusterCa, frame::FrameError, gate::Gate},
};

const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: u128 = 0xc1;

fn key(region: &str, node: &str) -> NodeKey {
    NodeKey {
        region: RegionId::new(region).unwrap(),
        node: NodeName::new(node).unwrap(),
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn config(ca: &ClusterCa, node: &NodeKey, generation: u64) -> PeerConfig {
    PeerConfig {
        bind: loopback(),
        hello: PeerHello {
            cluster_id: CLUSTER,
            node: node.clone(),
            generation: Generation(generation),
            partitions: 1,
            sharding: Sharding { count: 16, seed: 5 },
            addr: loopback(),
        },
        identity: ca.issue_node(node.region.as_str(), node.node.as_str()).unwrap(),
        roots: ca.roots(),
        limits: PeerLimits {
            keep_alive: Duration::from_millis(200),
            idle_timeout: Duration::from_millis(1000),
            ..PeerLimits::default()
        },
        wrap_socket: None,
        supervisor: Supervisor::default(),
    }
}

struct Node {
    pool: PeerPool,
    events: mpsc::Receiver<PeerEvent>,
}

fn start(config: PeerConfig) -> Node {
    start_with(config, 256)
}

fn start_with(config: PeerConfig, capacity: usize) -> Node {
    let (sink, events) = mpsc::channel(capacity);
    Node {
        pool: PeerPool::start_as_claimed(config, sink).unwrap(),
        events,
    }
}

impl Node {
    fn key(&self) -> NodeKey {
        self.pool.hello().node.clone()
    }

    fn want(&self, other: &Node) {
        self.pool.want(&other.key(), other.pool.addr());
    }

    async fn event(&mut self) -> PeerEvent {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event within the test's patience")
            .unwrap()
    }

    /// Waits for an `Up`, skipping frames.
    async fn up(&mut self, wanted: Direction) -> (u64, PeerHello) {
        loop {
            match self.event().await {
                PeerEvent::Up {
                    hello,
                    direction,
                    incarnation,
                } if direction == wanted => {
                    return (incarnation, hello);
                }
                PeerEvent::Refused { refusal, .. } => panic!("refused: {refusal}"),
                _ => {}
            }
        }
    }

    async fn lost(&mut self, wanted: Direction) -> (u64, ClosedBy) {
        loop {
            if let PeerEvent::Lost {
                direction,
                incarnation,
                reason,
                ..
            } = self.event().await
                && direction == wanted
            {
                return (incarnation, reason);
            }
        }
    }

    /// Waits for `count` frames of one class and gives their numbers.
    async fn numbers(&mut self, class: StreamClass, count: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            if let PeerEvent::Frames {
                class: of, frames, ..
            } = self.event().await
                && of == class
            {
                numbers.extend(frames.iter().map(number));
            }
        }
        numbers
    }

    async fn refused(&mut self) -> RefusalCode {
        loop {
            if let PeerEvent::Refused { refusal, .. } = self.event().await {
                return refusal.why;
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
async fn both_dial_at_once_and_every_class_stays_in_order() {
    let ca = ClusterCa::create().unwrap();
    let mut a = start(config(&ca, &key("us", "a"), 3));
    let mut b = start(config(&ca, &key("eu", "b"), 4));
    a.want(&b);
    b.want(&a);
    let (to_b, hello) = a.up(Direction::Out).await;
    assert_eq!(hello, *b.pool.hello());
    let (to_a, _) = b.up(Direction::Out).await;
    for at in 0..3000u32 {
        a.pool
            .send(&b.key(), to_b, (at % 3) as u16, vec![numbered(at, 100)])
            .unwrap();
        b.pool
            .send(&a.key(), to_a, 0, vec![numbered(at, 100), numbered(at, 3000)])
            .unwrap();
    }
    let mut next = [0, 1, 2];
    while next != [3000, 3001, 3002] {
        if let PeerEvent::Frames {
            from,
            generation,
            class,
            frames,
            ..
        } = b.event().await
        {
            assert_eq!((from, generation), (key("us", "a"), Generation(3)));
            for frame in frames {
                assert_eq!(number(&frame), next[usize::from(class)]);
                next[usize::from(class)] += 3;
            }
        }
    }
    let numbers = a.numbers(0, 6000).await;
    assert!(
        numbers
            .iter()
            .enumerate()
            .all(|(at, number)| *number == at as u32 / 2)
    );
    for node in [&a, &b] {
        let snapshot = node.pool.snapshot();
        assert_eq!((snapshot.links.len(), snapshot.inbound.len()), (1, 1));
        assert_eq!(snapshot.links[0].breaker, Breaker::Closed);
        assert!(snapshot.links[0].rtt.is_some());
        assert!(
            snapshot.counters.batches_out < 6000,
            "writes coalesce what is queued"
        );
        let sent = if node.key() == a.key() { 3000 } else { 6000 };
        assert_eq!(snapshot.counters.frames_out, sent, "each frame counts once");
    }
    assert_eq!(
        a.pool.send(&key("eu", "nobody"), to_b, 0, Vec::new()),
        Err(PeerSendError::Unknown(key("eu", "nobody")))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_is_refused_by_both_sides_and_opens_the_breaker() {
    let ca = ClusterCa::create().unwrap();
    let a = start(config(&ca, &key("us", "a"), 1));
    let stranger = start(config(&ClusterCa::create().unwrap(), &key("us", "b"), 1));
    a.want(&stranger);
    stranger.want(&a);
    for node in [&a, &stranger] {
        wait_until(|| node.pool.snapshot().links[0].breaker == Breaker::Open).await;
        assert!(node.pool.snapshot().links[0].last_error.is_some());
        assert!(node.pool.snapshot().inbound.is_empty());
        assert_eq!(node.pool.snapshot().links[0].connects, 0);
    }
    let peer = stranger.key();
    assert_eq!(
        a.pool.send(&peer, 1, 0, vec![numbered(0, 4)]),
        Err(PeerSendError::NotConnected)
    );

    // The right CA alone does not make a node: a client-facing certificate has neither the name nor the role.
    let mut served = config(&ca, &key("us", "c"), 1);
    served.identity = ca.issue_server(&["localhost".to_owned()], &[]).unwrap();
    assert!(matches!(
        PeerPool::start(served.clone(), mpsc::channel::<PeerEvent>(1).0),
        Err(PeerStartError::Identity { .. })
    ));
    let served = start(served);
    served.want(&a);
    wait_until(|| served.pool.snapshot().links[0].failures > 0).await;
    assert!(a.pool.snapshot().inbound.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_name_must_be_in_the_certificate() {
    let ca = ClusterCa::create().unwrap();
    let honest = start(config(&ca, &key("us", "a"), 1));
    for (claimed, certified) in [(key("us", "b"), key("us", "c")), (key("us", "b"), key("eu", "b"))] {
        let mut lie = config(&ca, &claimed, 1);
        lie.identity = ca
            .issue_node(certified.region.as_str(), certified.node.as_str())
            .unwrap();
        let mut liar = start(lie);
        // As the one who dials, it is told; as the one who is dialled, it is found out.
        liar.want(&honest);
        assert_eq!(liar.refused().await, RefusalCode::NotInCertificate);
        let mut asker = start(config(&ca, &key("us", "asker"), 1));
        asker.want(&liar);
        assert_eq!(asker.refused().await, RefusalCode::NotInCertificate);
        assert!(honest.pool.snapshot().inbound.is_empty());
        assert!(honest.pool.snapshot().counters.refused > 0);
    }
    // Another node than the one looked for, though an honest one.
    let mut asker = start(config(&ca, &key("us", "asker"), 1));
    asker.pool.want(&key("us", "z"), honest.pool.addr());
    assert_eq!(asker.refused().await, RefusalCode::Unexpected);
    // And itself.
    let mut same = start(config(&ca, &key("us", "a"), 1));
    same.pool.want(&key("us", "other"), honest.pool.addr());
    assert_eq!(same.refused().await, RefusalCode::Itself);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_learns_that_a_later_one_took_its_place_and_the_later_one_goes_on() {
    let ca = ClusterCa::create().unwrap();
    let node = key("us", "b");
    let replaced = |node: &Node| {
        let replaced = node.pool.replaced();
        async { timeout(PATIENCE, replaced).await.expect("it learns it") }
    };
    // From the hello of the later one, whichever of the two dials.
    for old_dials in [true, false] {
        let (mut old, mut new) = (start(config(&ca, &node, 10)), start(config(&ca, &node, 11)));
        let (from, to) = if old_dials {
            (&mut old, &new)
        } else {
            (&mut new, &old)
        };
        from.pool.want(&key("us", "seed"), to.pool.addr());
        let told = if old_dials {
            RefusalCode::OldGeneration
        } else {
            RefusalCode::EarlierStart
        };
        assert_eq!(from.refused().await, told);
        let found = replaced(&old).await;
        assert_eq!((&found.node, found.generation), (&node, Generation(10)));
        assert!(found.sign.contains(&new.pool.addr().to_string()), "{found}");
        assert!(new.pool.shared.replaced.borrow().is_none());
    }
    // From somebody who saw the later one, also when that one is gone.
    let a = start(config(&ca, &key("us", "a"), 1));
    let (old, mut new) = (start(config(&ca, &node, 10)), start(config(&ca, &node, 11)));
    new.want(&a);
    new.up(Direction::Out).await;
    let at = new.pool.addr();
    new.pool.shutdown(Duration::from_secs(1)).await;
    old.want(&a);
    let found = replaced(&old).await;
    assert!(found.sign.contains(&format!("11 was seen at {at}")), "{found}");
    // From membership; an earlier start there is nothing.
    let (old, new) = (start(config(&ca, &node, 10)), start(config(&ca, &node, 11)));
    new.pool.saw_generation(&node, Generation(10), old.pool.addr());
    old.pool.saw_generation(&node, Generation(11), new.pool.addr());
    replaced(&old).await;
    assert!(new.pool.shared.replaced.borrow().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_another_cluster_or_sharding_are_refused() {
    let ca = ClusterCa::create().unwrap();
    let a = start(config(&ca, &key("us", "a"), 1));
    let sharding = a.pool.hello().sharding;
    for (cluster_id, sharding, why) in [
        (CLUSTER + 1, sharding, RefusalCode::Cluster),
        (
            CLUSTER,
            Sharding {
                count: 17,
                ..sharding
            },
            RefusalCode::ShardCount,
        ),
        (CLUSTER, Sharding { seed: 6, ..sharding }, RefusalCode::HashSeed),
    ] {
        let mut other = config(&ca, &key("us", "b"), 1);
        other.hello.cluster_id = cluster_id;
        other.hello.sharding = sharding;
        let mut other = start(other);
        other.want(&a);
        assert_eq!(other.refused().await, why);
    }
    assert!(a.pool.snapshot().inbound.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_frame_ends_its_connection_alone() {
    let ca = ClusterCa::create().unwrap();
    let mut small = config(&ca, &key("us", "a"), 1);
    small.limits.max_frame = 1000;
    let mut a = start(small);
    let mut good = start(config(&ca, &key("us", "good"), 1));
    let mut bad = start(config(&ca, &key("us", "bad"), 1));
    good.want(&a);
    bad.want(&a);
    let (from_good, _) = good.up(Direction::Out).await;
    let (from_bad, _) = bad.up(Direction::Out).await;
    bad.pool
        .send(&a.key(), from_bad, 1, vec![numbered(1, 998), numbered(2, 999)])
        .unwrap();
    let (incarnation, reason) = bad.lost(Direction::Out).await;
    assert_eq!(incarnation, from_bad);
    let ClosedBy::Remote(told) = reason else {
        panic!("closed by the other side, not {reason}")
    };
    assert_eq!(told.code, CloseCode::FRAME_TOO_LONG);
    assert!(
        told.text
            .contains(&FrameError::TooLong { len: 1001, max: 1000 }.to_string()),
        "{told}"
    );
    good.pool
        .send(&a.key(), from_good, 2, vec![numbered(7, 10)])
        .unwrap();
    assert_eq!(a.numbers(2, 1).await, [7]);
    assert!(good.pool.snapshot().links[0].incarnation.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_break_is_told_and_its_frames_never_mix_with_later_ones() {
    let ca = ClusterCa::create().unwrap();
    let gate = Gate::new();
    let mut gated = config(&ca, &key("us", "a"), 1);
    gated.wrap_socket = Some(gate.wrap());
    gated.limits.backoff_max = Duration::from_millis(200);
    let mut a = start(gated);
    let mut b = start(config(&ca, &key("us", "b"), 1));
    a.want(&b);
    let (first, _) = a.up(Direction::Out).await;
    a.pool.send(&b.key(), first, 0, vec![numbered(0, 10)]).unwrap();
    assert_eq!(b.numbers(0, 1).await, [0]);
    gate.cut_all();
    for at in 1..100 {
        a.pool.send(&b.key(), first, 0, vec![numbered(at, 10)]).unwrap();
    }
    let begun = Instant::now();
    assert_eq!(a.lost(Direction::Out).await, (first, ClosedBy::TimedOut));
    assert_eq!(b.lost(Direction::In).await.1, ClosedBy::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(
        a.pool.send(&b.key(), first, 0, vec![numbered(100, 10)]),
        Err(PeerSendError::NotConnected)
    );
    gate.heal();
    let (second, _) = a.up(Direction::Out).await;
    assert!(second > first);
    assert_eq!(
        a.pool.send(&b.key(), first, 0, vec![numbered(101, 10)]),
        Err(PeerSendError::Stale {
            given: first,
            current: second
        })
    );
    a.pool.send(&b.key(), second, 0, vec![numbered(102, 10)]).unwrap();
    assert_eq!(b.numbers(0, 1).await, [102]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_busy_fills_the_queue_and_loses_nothing() {
    let ca = ClusterCa::create().unwrap();
    let mut sending = config(&ca, &key("us", "a"), 1);
    sending.limits.queue_bytes = 512 * 1024;
    sending.limits.max_frame = 128 * 1024;
    let mut a = start(sending);
    let mut b = start_with(config(&ca, &key("us", "b"), 1), 1);
    a.want(&b);
    let (incarnation, _) = a.up(Direction::Out).await;
    let mut sent = 0u32;
    let mut refusals = 0;
    while refusals < 50 {
        match a
            .pool
            .send(&b.key(), incarnation, 4, vec![numbered(sent, 10_000)])
        {
            Ok(()) => sent += 1,
            Err(PeerSendError::Full(batch)) => {
                assert_eq!(batch.len(), 1);
                refusals += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(other) => panic!("{other}"),
        }
        assert!(sent < 1000, "10 MB went to a receiver that takes nothing");
        assert!(a.pool.snapshot().links[0].queued.values().sum::<usize>() <= 512 * 1024);
    }
    let numbers = b.numbers(4, sent as usize).await;
    assert!(
        numbers
            .iter()
            .enumerate()
            .all(|(at, number)| *number == at as u32)
    );
    assert!(matches!(
        a.pool.send(&b.key(), incarnation, 4, vec![numbered(0, 600_000)]),
        Err(PeerSendError::TooLarge { limit: 524_288, .. })
    ));
    for class in 0..MAX_CLASSES as u16 + 1 {
        let sent = a.pool.send(&b.key(), incarnation, class, vec![numbered(0, 10)]);
        assert_eq!(
            sent.is_err(),
            class as usize == MAX_CLASSES,
            "class {class}: {sent:?}"
        );
    }
}

/// Takes class 0 nowhere once its channel is full, and everything else at once.
#[derive(Clone)]
struct SplitSink {
    slow: mpsc::Sender<PeerEvent>,
    quick: mpsc::Sender<PeerEvent>,
}

impl EventSink<PeerEvent> for SplitSink {
    async fn deliver(&self, event: PeerEvent) -> Result<(), crate::net::SinkError> {
        match &event {
            PeerEvent::Frames { class: 0, .. } => self.slow.deliver(event).await,
            _ => self.quick.deliver(event).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_that_nobody_reads_does_not_hold_up_the_others() {
    let ca = ClusterCa::create().unwrap();
    let mut a = start(config(&ca, &key("us", "a"), 1));
    let ((slow, _unread), (quick, events)) = (mpsc::channel(1), mpsc::channel(256));
    let pool = PeerPool::start(config(&ca, &key("us", "b"), 1), SplitSink { slow, quick }).unwrap();
    let mut b = Node { pool, events };
    a.want(&b);
    let (incarnation, _) = a.up(Direction::Out).await;
    // The window of the stream, and then the queue before it.
    while !matches!(
        a.pool.send(&b.key(), incarnation, 0, vec![numbered(0, 100_000)]),
        Err(PeerSendError::Full(_))
    ) {}
    for at in 0..100 {
        a.pool
            .send(&b.key(), incarnation, 1, vec![numbered(at, 50_000)])
            .unwrap();
        assert_eq!(b.numbers(1, 1).await, [at]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_start_replaces_the_older_and_never_the_other_way() {
    let ca = ClusterCa::create().unwrap();
    let mut a = start(config(&ca, &key("us", "a"), 1));
    let mut old = start(config(&ca, &key("us", "b"), 10));
    a.want(&old);
    old.want(&a);
    let (to_old, _) = a.up(Direction::Out).await;
    let (from_old, _) = old.up(Direction::Out).await;
    old.pool
        .send(&a.key(), from_old, 0, vec![numbered(1, 10)])
        .unwrap();
    assert_eq!(a.numbers(0, 1).await, [1]);
    // The old one still runs when the new one shows up: both of its connections end, inbound before the new Up.
    let new = start(config(&ca, &key("us", "b"), 11));
    new.want(&a);
    let (mut lost_in, mut lost_out, mut up_in) = (false, false, false);
    while !(lost_in && lost_out && up_in) {
        match a.event().await {
            PeerEvent::Lost {
                direction: Direction::In,
                ..
            } => lost_in = true,
            PeerEvent::Lost {
                direction: Direction::Out,
                incarnation,
                ..
            } => lost_out |= incarnation == to_old,
            PeerEvent::Up {
                direction: Direction::In,
                hello,
                ..
            } => {
                assert!(lost_in);
                assert_eq!(hello.generation, Generation(11));
                up_in = true;
            }
            _ => {}
        }
    }
    // The old one goes on trying, and is told; also when the new one is gone.
    assert_eq!(old.refused().await, RefusalCode::OldGeneration);
    new.pool.shutdown(Duration::from_secs(1)).await;
    wait_until(|| a.pool.snapshot().inbound.is_empty()).await;
    while old.events.try_recv().is_ok() {}
    assert_eq!(old.refused().await, RefusalCode::OldGeneration);
    // And it is refused where it is dialled, which is how it comes to be known as old here.
    while !matches!(a.event().await, PeerEvent::Refused { refusal, .. } if refusal.why == RefusalCode::OldGeneration)
    {
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_at_the_same_address_is_noticed_at_once() {
    let ca = ClusterCa::create().unwrap();
    let mut patient = config(&ca, &key("us", "a"), 1);
    patient.limits.idle_timeout = Duration::from_secs(600);
    let mut a = start(patient);
    let gate = Gate::new();
    let mut killed = config(&ca, &key("us", "b"), 1);
    killed.limits.idle_timeout = Duration::from_secs(600);
    killed.wrap_socket = Some(gate.wrap());
    let again = killed.clone();
    let b = start(killed);
    a.want(&b);
    let (first, _) = a.up(Direction::Out).await;
    gate.cut_all();
    let addr = b.pool.addr();
    b.pool.shutdown(Duration::from_millis(100)).await;
    drop(b);
    let again = PeerConfig {
        bind: addr,
        wrap_socket: None,
        ..again
    };
    let mut restarted = None;
    wait_until(|| {
        let (sink, events) = mpsc::channel::<PeerEvent>(256);
        restarted = PeerPool::start(again.clone(), sink)
            .ok()
            .map(|pool| (pool, events));
        restarted.is_some()
    })
    .await;
    let begun = Instant::now();
    assert_eq!(a.lost(Direction::Out).await.0, first);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "only the idle timeout noticed"
    );
    a.up(Direction::Out).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_and_unwant_flush_first() {
    let ca = ClusterCa::create().unwrap();
    let mut a = start(config(&ca, &key("us", "a"), 1));
    let mut b = start(config(&ca, &key("us", "b"), 1));
    for round in 0..2 {
        a.want(&b);
        let (incarnation, _) = a.up(Direction::Out).await;
        for at in 0..500 {
            a.pool
                .send(&b.key(), incarnation, 0, vec![numbered(at, 5000)])
                .unwrap();
        }
        if round == 0 {
            a.pool.unwant(&b.key());
        } else {
            timeout(PATIENCE, a.pool.shutdown(Duration::from_secs(5)))
                .await
                .unwrap();
        }
        let numbers = b.numbers(0, 500).await;
        assert!(
            numbers
                .iter()
                .enumerate()
                .all(|(at, number)| *number == at as u32)
        );
        assert!(matches!(b.lost(Direction::In).await.1, ClosedBy::Remote(_)));
        assert_eq!(a.lost(Direction::Out).await.0, incarnation);
    }
    a.want(&b);
    assert!(a.pool.wanted().is_empty(), "a stopped pool dials no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_travels_by_address_within_the_region() {
    let ca = ClusterCa::create().unwrap();
    let a = start(config(&ca, &key("us", "a"), 1));
    let b = start(config(&ca, &key("us", "b"), 1));
    let foreign = start(config(&ca, &key("eu", "c"), 1));
    let mut inbox = b.pool.take_gossip().unwrap();
    assert!(b.pool.take_gossip().is_none());
    let message = loop {
        a.pool.send_gossip(b.pool.addr(), numbered(9, 60_000));
        if let Ok(Some(message)) = timeout(Duration::from_millis(50), inbox.recv()).await {
            break message;
        }
    };
    assert_eq!(message.0, a.pool.addr());
    assert_eq!(message.1.len(), 60_000);
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let dropped = a.pool.snapshot().counters.gossip_dropped;
    a.pool.send_gossip(silent.local_addr().unwrap(), numbered(9, 10));
    assert_eq!(
        a.pool.snapshot().counters.gossip_dropped,
        dropped + 1,
        "nothing waits for a connection"
    );
    a.pool.send_gossip(foreign.pool.addr(), numbered(9, 10));
    wait_until(|| {
        let snapshot = a.pool.snapshot();
        snapshot.links.iter().any(|link| {
            link.addr == foreign.pool.addr()
                && link
                    .last_error
                    .as_deref()
                    .is_some_and(|error| error.contains("eu"))
        })
    })
    .await;
    assert!(foreign.pool.snapshot().inbound.is_empty());
    assert!(
        matches!(a.pool.snapshot().links.iter().find(|link| link.addr == b.pool.addr()), Some(link) if link.peer == Some(b.key()))
    );
}
