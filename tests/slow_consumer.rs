//! Who reads nothing costs the server a window, and slows nobody. Alone in its file: it measures this process.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::raw::{Raw, encoded};
use common::{TestCluster, number_in, receive, regions, send, send_all, token};
use iris::client::Client;
use iris::core::wire::{ClientFrame, ServerFrame};

const WINDOW: u64 = 64;
/// A window of these is below `limits.window_bytes`.
const BODY: usize = 12 * 1024;
/// Messages to each recipient in a round.
const FLOOD: u64 = 512;
/// So many are sent at once: the sender does not keep the flood in memory.
const AT_ONCE: usize = 32;
const ROUNDS: u64 = 4;
/// What this process may hold for other reasons at one look and not at the other: tables that are not written yet, caches,
/// buffers under way. A small part of what waits for the two.
const SLACK: i64 = 4 * 1024 * 1024;

/// Memory rests while it moves by less than this.
const RESTING: i64 = 256 * 1024;
/// For so long: the store looks several times meanwhile for what it can give back.
const RESTS: Duration = Duration::from_secs(1);
/// The test gives up where it never does.
const PATIENCE: Duration = Duration::from_secs(60);

/// The memory that this process uses, clients and servers, by the byte: what the system shows depends on what its allocator keeps.
struct Heap(AtomicI64);

#[global_allocator]
static HEAP: Heap = Heap(AtomicI64::new(0));

#[allow(
    unsafe_code,
    reason = "an allocator is unsafe by its interface; this one passes on and counts"
)]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

impl Heap {
    fn live(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// Once it rests: behind a flood the store writes on for a while, and gives back what it wrote.
    async fn settled(&self) -> i64 {
        let started = Instant::now();
        let (mut seen, mut since) = (self.live(), started);
        while since.elapsed() < RESTS {
            assert!(
                started.elapsed() < PATIENCE,
                "memory does not come to rest: {seen} bytes"
            );
            tokio::time::sleep(RESTS / 20).await;
            let now = self.live();
            if (now - seen).abs() > RESTING {
                (seen, since) = (now, Instant::now());
            }
        }
        self.live()
    }
}

/// One that takes messages from the network and handles none, and one that does not even read from its connection; each round
/// is compared with one for two who are away, whose messages cost the server the same but for their delivery. So what the
/// machine does meanwhile, and what the store keeps, is in both.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_costs_a_window_and_slows_nobody() {
    let set = [
        ("limits.window_messages", "64"),
        ("store.memory_bytes", "1MiB"),
        ("store.checkpoint_bytes", "1MiB"),
        ("store.segment_bytes", "1MiB"),
        ("store.cache_bytes", "1MiB"),
    ];
    let cluster = TestCluster::start(&regions(&["us-east"]), &set).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let mut talk = Talk {
        from: cluster.client("us-east", "carol", "laptop").await,
        to: cluster.client("us-east", "dave", "laptop").await,
        count: 0,
    };
    let slow = cluster.client("us-east", "slow", "phone").await;
    let mut deaf = Raw::start(&cluster, &token(cluster.folder.path(), "deaf"), "phone").await;
    deaf.welcome().await;
    let delivered = || cluster.node("us-east-core").metrics().delivered.get();

    // What is made once is made.
    flood(&alice, &["far", "farther"], &mut talk).await;
    let (before, talked) = (resting(&delivered).await, talk.count);
    let (mut beside_away, mut beside_slow) = (Vec::new(), Vec::new());
    let (mut grown_away, mut grown_slow) = (0, 0);
    let mut start = HEAP.settled().await;
    for _ in 0..ROUNDS {
        beside_away.extend(flood(&alice, &["far", "farther"], &mut talk).await);
        let middle = HEAP.settled().await;
        beside_slow.extend(flood(&alice, &["slow", "deaf"], &mut talk).await);
        let end = HEAP.settled().await;
        grown_away += middle - start;
        grown_slow += end - middle;
        start = end;
    }
    let handed_out = resting(&delivered).await - before - (talk.count - talked);
    let (away, slow_ones) = (median(&mut beside_away), median(&mut beside_slow));
    let samples = beside_away.len().min(beside_slow.len());
    eprintln!(
        "median of {samples}: {away:?} beside who is away, {slow_ones:?} beside the slow; \
         memory: {grown_away} and {grown_slow} bytes more"
    );
    assert_eq!(
        handed_out,
        2 * WINDOW,
        "a window for each of the two, and no more"
    );
    let windows = 2 * WINDOW as i64 * BODY as i64;
    let waits = 2 * (ROUNDS * FLOOD) as i64 * BODY as i64;
    assert!(windows + SLACK < waits / 4, "the test would not see what is kept");
    assert!(
        grown_slow - grown_away.max(0) < windows + SLACK,
        "{grown_slow} bytes for the two who read nothing, whose windows are {windows}; {grown_away} without them"
    );
    // Both were measured in turns: what is left is chance, and that of a median is small.
    assert!(samples >= 20, "{samples} are too few");
    assert!(
        slow_ones < away * 2 + Duration::from_millis(5),
        "{slow_ones:?} beside who reads nothing, {away:?} beside who is away"
    );

    // The connection that nobody reads from still stands, and holds its window: nothing else comes before the answer.
    deaf.write(encoded(&ClientFrame::Ping(7))).await;
    let mut held = 0;
    loop {
        match deaf.next().await.expect("the connection stands") {
            ServerFrame::Deliver { .. } => held += 1,
            ServerFrame::Pong { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(held, WINDOW);

    // Nothing is lost to them: each takes up where it is.
    drop(deaf);
    let deaf = cluster.client("us-east", "deaf", "phone").await;
    for client in [&slow, &deaf] {
        for number in 0..ROUNDS * FLOOD {
            assert_eq!(number_in(&receive(client).await.body), number % FLOOD);
        }
    }
    cluster.stop().await;
}

/// Two who talk to each other beside whatever goes on.
struct Talk {
    from: Client,
    to: Client,
    /// Messages so far.
    count: u64,
}

impl Talk {
    /// From the call to the other one's having it.
    async fn once(&mut self) -> Duration {
        let sent = Instant::now();
        send(&self.from, "dave", "hello").await;
        receive(&self.to).await;
        self.count += 1;
        sent.elapsed()
    }
}

/// Sends to two while two others talk; how long that took each time.
async fn flood(from: &Client, to: &[&'static str; 2], talk: &mut Talk) -> Vec<Duration> {
    let (from, to) = (from.clone(), *to);
    let flooding = tokio::spawn(async move {
        for first in (0..FLOOD).step_by(AT_ONCE) {
            send_all(&from, &to, first..first + AT_ONCE as u64, BODY).await;
        }
    });
    let mut times = Vec::new();
    while !flooding.is_finished() {
        times.push(talk.once().await);
    }
    flooding.await.unwrap();
    times
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
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
