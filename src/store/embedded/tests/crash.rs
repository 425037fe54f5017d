//! Power loss, full disks and failing disks.

use super::*;
use crate::core::ids::Coord;
use crate::store::conformance::kit::{HERE, S, Store, T0, id, identity, user, vector};
use crate::store::engine::LogPage;
use std::collections::BTreeMap;

type Sim = EmbeddedEngine<SimDisk, MemTables>;

fn options() -> Options {
    Options {
        segment_bytes: 32 * 1024,
        checkpoint_bytes: 6 * 1024,
        memory_bytes: 8 * 1024,
        slice_bytes: 700,
        ..Options::default()
    }
}

/// What was acknowledged to the outside.
#[derive(Default)]
struct Promised {
    messages: BTreeMap<(&'static str, u64), Coord>,
    /// Of dave's messages, those to here were acknowledged as consumed.
    consumed: u64,
}

/// Traffic until the power fails; says whether it did.
fn traffic(store: &mut Store, promised: &mut Promised, next: &mut u64, rounds: u64) -> bool {
    let epoch = store.epoch;
    for _ in 0..rounds {
        let numbers = *next..*next + 4;
        *next += 4;
        let to = |n: u64| ["bob", "carol", "dave"][(n % 3) as usize];
        let ops = numbers
            .clone()
            .map(|n| store.append_op(to(n), id(T0, n), &"x".repeat(90)));
        let mut ops: Vec<StoreOp> = ops.collect();
        let origin = store.engine.identity().origin;
        let upto = store.shard().logs.get(&origin).map_or(0, |log| log.seq);
        ops.push(StoreOp::Cursor {
            shard: S,
            epoch,
            user: user("dave"),
            device: crate::store::conformance::kit::device("phone"),
            cursor: vector(&[(origin.0, upto.max(1))]),
        });
        if (*next).is_multiple_of(3) {
            ops.push(StoreOp::Confirm { shard: S, epoch });
            ops.push(StoreOp::Trim { shard: S, epoch });
        }
        let Ok(committed) = store.engine.commit(ops, store.now) else {
            return true;
        };
        for (n, outcome) in numbers.zip(&committed.outcomes) {
            let Outcome::Appended(at) = outcome else {
                panic!("{outcome:?}");
            };
            promised.messages.insert((to(n), n), *at);
        }
        promised.consumed = *next;
        if store.engine.idle().is_err() {
            return true;
        }
    }
    false
}

/// What is missing of what was promised.
fn missing(store: &mut Store, promised: &Promised) -> usize {
    let mut missing = 0;
    for name in ["bob", "carol"] {
        let inbox = store.coords(name);
        let mine = promised.messages.iter().filter(|((to, _), _)| *to == name);
        missing += mine.filter(|(_, at)| !inbox.contains(at)).count();
    }
    let last: Vec<_> = promised.messages.iter().rev().take(30).collect();
    for ((to, n), at) in last {
        let again = store.append_op(to, id(T0, *n), &"x".repeat(90));
        if store.one(again) != Outcome::Duplicate(vec![*at]) {
            missing += 1;
        }
    }
    let origins: Vec<u64> = store.shard().logs.keys().map(|origin| origin.0).collect();
    for origin in origins {
        store.log(origin);
    }
    missing
}

fn reopen(disk: &SimDisk, tables: &MemTables, origin: u64) -> Result<Store, OpenError> {
    let identity = identity(origin, &[HERE]);
    let (engine, _) = Sim::open(disk.clone(), tables.clone(), identity, options())?;
    Ok(Store::own(Box::new(engine)))
}

/// Lives through several power failures; gives what was lost, or that the store did not open any more.
fn lives(seed: u64, ignore_sync: bool) -> Result<usize, OpenError> {
    let mut sim = Simulated::new(options());
    sim.random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    sim.disk = SimDisk::new(seed);
    sim.tables.slow_flush((seed % 4) as u32);
    let (disk, tables) = (sim.disk.clone(), sim.tables.clone());
    let engine = Sim::create(disk.clone(), tables.clone(), identity(100, &[HERE]), options()).unwrap();
    disk.set_ignore_sync(ignore_sync);
    let mut store = Store::own(Box::new(engine));
    let (mut promised, mut next, mut lost) = (Promised::default(), 0, 0);
    for life in 0..4 {
        disk.power_off_after(20 + (seed.wrapping_mul(31) + life * 57) % 160);
        if life % 2 == 1 {
            tables.fail_after(3 + seed % 40);
        }
        let failed = traffic(&mut store, &mut promised, &mut next, 60);
        assert!(failed, "the power fails within that time");
        assert!(
            store.engine.commit(Vec::new(), T0).is_err(),
            "a failed engine stays so"
        );
        disk.crash(if seed.is_multiple_of(2) {
            CrashMode::LoseAll
        } else {
            CrashMode::Random
        });
        tables.crash(sim.coin());
        store = reopen(&disk, &tables, 101 + life)?;
        lost += missing(&mut store, &promised);
    }
    Ok(lost)
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails() {
    for seed in 0..24 {
        assert_eq!(lives(seed, false), Ok(0), "seed {seed}");
    }
}

/// The test above is worth something only if it sees a missing sync.
#[test]
fn a_disk_that_does_not_sync_is_seen() {
    let seen = (0..20).filter(|seed| lives(*seed, true) != Ok(0)).count();
    assert!(seen >= 10, "only {seen} of 20 seeds show the loss");
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let (disk, tables) = (SimDisk::new(3), MemTables::new());
    let engine = Sim::create(disk.clone(), tables.clone(), identity(100, &[HERE]), options()).unwrap();
    let mut store = Store::own(Box::new(engine));
    disk.set_capacity(Some(70 * 1024));
    let body = "x".repeat(3_000);
    let mut kept = Vec::new();
    let mut n = 0;
    // No checkpoint can make room: nothing is confirmed, and the tables do not answer.
    tables.slow_flush(u32::MAX);
    let full = loop {
        let op = store.append_op("bob", id(T0, n), &body);
        match store.engine.commit(vec![op], T0) {
            Ok(committed) => kept.push(committed.outcomes[0].clone()),
            Err(error) => break error,
        }
        n += 1;
        assert!(n < 100);
    };
    assert!(matches!(full, StoreError::Full(_)), "{full}");
    // Reads go on, nothing of the refused operation is there, and room lets it go on without a new start.
    assert_eq!(store.coords("bob").len(), kept.len());
    disk.set_capacity(None);
    assert!(matches!(
        {
            let op = store.append_op("bob", id(T0, n), &body);
            store.one(op)
        },
        Outcome::Appended(_)
    ));
    disk.crash(CrashMode::LoseAll);
    tables.crash(|| false);
    let mut store = reopen(&disk, &tables, 101).unwrap();
    assert_eq!(store.coords("bob").len(), kept.len() + 1);
}

#[test]
fn a_failed_sync_stops_the_engine() {
    let (disk, tables) = (SimDisk::new(3), MemTables::new());
    let engine = Sim::create(disk.clone(), tables.clone(), identity(100, &[HERE]), options()).unwrap();
    let mut store = Store::own(Box::new(engine));
    let one = store.appended("bob", 1);
    disk.fail_sync_after(0);
    let op = store.append_op("bob", id(T0, 2), "x");
    let error = store.engine.commit(vec![op.clone()], T0).unwrap_err();
    assert!(matches!(error, StoreError::Fatal(_)), "{error}");
    assert_eq!(store.engine.commit(vec![op], T0), Err(error.clone()));
    assert_eq!(store.engine.read(&Read::Shard(S)), Err(error));
    disk.crash(CrashMode::LoseAll);
    let mut store = reopen(&disk, &tables, 101).unwrap();
    assert_eq!(store.coords("bob"), [one]);
}

#[test]
fn failing_tables_stop_the_engine_and_lose_nothing() {
    let (disk, tables) = (SimDisk::new(3), MemTables::new());
    let engine = Sim::create(disk.clone(), tables.clone(), identity(100, &[HERE]), options()).unwrap();
    let mut store = Store::own(Box::new(engine));
    tables.fail_after(1);
    let mut kept = 0;
    for n in 0..1_000 {
        let op = store.append_op("bob", id(T0, n), "a message");
        match store.engine.commit(vec![op], T0) {
            Ok(_) => kept += 1,
            Err(StoreError::Fatal(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(kept < 999, "the tables were needed");
    tables.crash(|| true);
    let mut store = reopen(&disk, &tables, 101).unwrap();
    assert_eq!(store.coords("bob").len(), kept);
}

#[test]
fn what_comes_and_goes_never_reaches_the_tables() {
    let (disk, tables) = (SimDisk::new(3), MemTables::new());
    let roomy = Options {
        segment_bytes: 256 * 1024,
        checkpoint_bytes: 64 * 1024,
        ..Options::default()
    };
    let engine = Sim::create(disk, tables.clone(), identity(100, &[HERE]), roomy).unwrap();
    let mut store = Store::own(Box::new(engine));
    store.register("bob", "phone", Default::default());
    let mut most = 0;
    for n in 0..1_000 {
        let at = store.appended("bob", n);
        store.cursor("bob", "phone", vector(&[(at.origin.0, at.seq)]));
        store.confirm();
        store.trim();
        store.engine.idle().unwrap();
        most = most.max(tables.count(Table::Log) + tables.count(Table::Inbox));
    }
    store.engine.close().unwrap();
    // Dedup records, and now and then the last few entries of a log.
    let blocks = super::dedup::blocks(&tables);
    assert_eq!(
        blocks.iter().map(|(_, _, block)| block.rows.len()).sum::<usize>(),
        1_000
    );
    assert!(most < 16, "{most} entries in the tables");
    assert_eq!((tables.count(Table::Users), tables.count(Table::Shards)), (1, 1));
    assert!(matches!(store.log_page(100, 0, 1, 1), LogPage::Trimmed { .. }));
    assert!(store.coords("bob").is_empty());
}

#[test]
fn memory_stays_within_its_limit() {
    let (disk, tables) = (SimDisk::new(3), MemTables::new());
    let options = Options {
        segment_bytes: 1024 * 1024,
        checkpoint_bytes: 64 * 1024,
        memory_bytes: 256 * 1024,
        slice_bytes: 16 * 1024,
        ..Options::default()
    };
    let mut engine = Sim::create(disk, tables, identity(100, &[HERE]), options.clone()).unwrap();
    let mut most = 0;
    for n in 0..400u64 {
        let ops = (0..16).map(|i| StoreOp::Append {
            shard: S,
            epoch: Default::default(),
            envelope: Box::new(crate::store::conformance::kit::envelope(
                &format!("user{}", (n * 16 + i) % 3_000),
                "alice",
                id(T0 + n, i),
            )),
            body: vec![7; 200].into(),
            seen_ms: 0,
            known_only: false,
        });
        engine.commit(ops.collect(), T0).unwrap();
        engine.idle().unwrap();
        most = most.max(engine.stats().resident_bytes);
    }
    // It may be over by what one checkpoint takes: here a window of 64 KiB of journal, twice.
    assert!(most < 2 * options.memory_bytes as u64, "{most} bytes");
    assert!(engine.stats().checkpoints > 10);
    // Users that are only looked at do not pile up either.
    for n in 0..3_000 {
        let ops = vec![StoreOp::Remove {
            shard: S,
            epoch: Default::default(),
            user: user(&format!("user{n}")),
        }];
        engine.commit(ops, T0).unwrap();
        most = most.max(engine.stats().resident_bytes);
    }
    assert!(most < 2 * options.memory_bytes as u64, "{most} bytes");
}
