//! `kill -9` while messages are sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tokio::sync::watch;

use crate::common::regions;
use crate::load::{Book, Life, Phase, Senders, all_delivered, known, lock, receive};
use crate::processes::Processes;

/// Rounds of killing that count, unless the environment says another number: those that strike while deposits are under
/// way, at least one of them a core node.
const ROUNDS: usize = 20;
/// Rounds beyond twice that number after which the test gives up: it does not test what it says then.
const SPARE_ROUNDS: usize = 10;
/// Small segments and checkpoints, so that the short life of a test sees many of them.
const SETTINGS: [(&str, &str); 3] = [
    ("IRIS_STORE__SEGMENT_BYTES", "1MiB"),
    ("IRIS_STORE__CHECKPOINT_BYTES", "1MiB"),
    ("IRIS_STORE__MEMORY_BYTES", "1MiB"),
];

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// `IRIS_TEST_KILL_ROUNDS=200 cargo test --test crash killed -- --nocapture` is the long run; `IRIS_TEST_SEED` repeats the
/// choice of nodes and pauses, though not the timing of processes.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_survives_killed_processes() {
    let rounds = from_environment("IRIS_TEST_KILL_ROUNDS").map_or(ROUNDS, |rounds| rounds as usize);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = from_environment("IRIS_TEST_SEED").unwrap_or_else(|| u64::from(clock.unwrap().subsec_nanos()));
    eprintln!("IRIS_TEST_SEED={seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);

    let started = Instant::now();
    let cluster = Processes::start(&regions(&["us-east", "eu-west"]), &SETTINGS).await;
    eprintln!("the cluster is ready after {:?}", started.elapsed());
    let book: Book = Arc::default();
    let (phase, phases) = watch::channel(Phase::Free);
    let devices = [
        (("anna", "phone", "us-east"), Life::Steady),
        (("anna", "tablet", "eu-west"), Life::Wandering),
        (("bert", "phone", "eu-west"), Life::Steady),
        (("cleo", "phone", "us-east"), Life::Wandering),
        (("dora", "phone", "eu-west"), Life::Away),
    ];
    let recipients: Vec<_> = devices
        .iter()
        .map(|&(device, life)| receive(&cluster, &book, device, life, phases.clone(), rng.next_u64()))
        .collect();
    known(
        &book,
        devices.iter().filter(|(_, life)| *life != Life::Away).count(),
    )
    .await;
    let senders = Senders::start(&cluster, &book, 3, &["anna", "bert", "cleo", "dora"]);

    let (mut counted, mut cores, mut tried) = (0, 0, 0);
    while (counted < rounds || cores == 0) && tried < 2 * rounds + SPARE_ROUNDS {
        tried += 1;
        let node = &cluster.dev.nodes[rng.next_u64() as usize % cluster.dev.nodes.len()];
        senders.at_work(&node.region).await;
        tokio::time::sleep(Duration::from_millis(rng.next_u64() % 300)).await;
        senders.burst(&node.region);
        senders.busy(&node.region).await;
        tokio::time::sleep(Duration::from_micros(rng.next_u64() % 8_000)).await;
        let under_way = senders.under_way(&node.region);
        let old = cluster.kill(&node.name);
        let struck = Instant::now();
        counted += usize::from(under_way > 0);
        cores += usize::from(under_way > 0 && node.client.is_none());
        cluster.ready_under_another_pid(&node.name, Some(old)).await;
        eprintln!(
            "round {tried}: {} struck with {under_way} messages under way, ready again after {:?}; {} accepted so far",
            node.name,
            struck.elapsed(),
            lock(&book).accepted(),
        );
    }
    let killed = started.elapsed();
    senders.rest().await;
    let answered = started.elapsed();
    phase.send_replace(Phase::Gather);
    all_delivered(&cluster, &book).await;
    senders.once_more(&book).await;
    all_delivered(&cluster, &book).await;
    phase.send_replace(Phase::End);
    for recipient in recipients {
        recipient.ended().await;
    }
    senders.end().await;
    {
        let book = lock(&book);
        eprintln!(
            "{counted} of {tried} rounds struck while deposits were under way ({cores} of them a core node); {} accepted, \
             {} deliveries; {killed:?}, then {:?} to the last answer and {:?} to the last delivery",
            book.accepted(),
            book.deliveries(),
            answered - killed,
            started.elapsed() - answered,
        );
        let faults = book.faults();
        assert!(faults.is_empty(), "seed {seed}:\n{faults}");
    }
    assert!(
        counted >= rounds && cores > 0,
        "only {counted} of {tried} rounds struck while deposits were under way, {cores} of them a core node; \
         {rounds} were to, and one a core node"
    );
    cluster.stop().await;
}
