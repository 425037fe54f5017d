use super::*;
use crate::core::commit::Outcome;
use crate::store::conformance::kit::{HERE, Store, THERE, at, identity};
use crate::store::conformance::{Harness, run};

/// Engines over a disk in memory.
#[derive(Default)]
pub(crate) struct Memory(MemoryDisk);

impl Harness for Memory {
    fn create(&mut self, identity: StoreIdentity) -> Box<dyn Engine> {
        self.0 = MemoryDisk::new();
        Box::new(MemoryEngine::create(self.0.clone(), identity).unwrap())
    }

    fn reopen(&mut self, engine: Box<dyn Engine>, identity: StoreIdentity) -> Box<dyn Engine> {
        drop(engine);
        self.0.crash();
        Box::new(MemoryEngine::open(self.0.clone(), identity).unwrap())
    }
}

#[test]
fn conforms() {
    run(&mut Memory::default());
}

#[test]
fn opening_is_explicit_and_a_difference_is_named() {
    let disk = MemoryDisk::new();
    let given = identity(1, &[HERE, THERE]);
    assert!(matches!(
        MemoryEngine::open(disk.clone(), given.clone()),
        Err(OpenError::Missing { .. })
    ));
    MemoryEngine::create(disk.clone(), given.clone()).unwrap();
    assert!(matches!(
        MemoryEngine::create(disk.clone(), given.clone()),
        Err(OpenError::Exists { .. })
    ));
    let mut other = given.clone();
    other.sharding.count = 16;
    let error = MemoryEngine::open(disk.clone(), other).unwrap_err().to_string();
    assert!(
        error.contains("8 shards") && error.contains("16 shards"),
        "{error}"
    );
    // Of the holders what is stored counts (R13).
    let engine = MemoryEngine::open(disk, identity(1, &[HERE])).unwrap();
    assert_eq!(engine.identity().holders, given.holders);
}

#[test]
fn a_crash_loses_what_was_held_back() {
    let disk = MemoryDisk::new();
    let mut store = Store::own(Box::new(
        MemoryEngine::create(disk.clone(), identity(1, &[HERE])).unwrap(),
    ));
    store.appended("bob", 1);
    disk.hold(true);
    store.appended("bob", 2);
    let durable = disk.commits();
    store.appended("bob", 3);
    store.confirm();
    store.trim();
    disk.make_durable(durable);
    disk.crash();
    assert!(matches!(
        store.engine.commit(Vec::new(), 0),
        Err(StoreError::Fatal(_))
    ));
    let mut store = Store {
        engine: Box::new(MemoryEngine::open(disk.clone(), identity(2, &[HERE])).unwrap()),
        ..store
    };
    assert_eq!(store.coords("bob"), [at(1, 2), at(1, 3)]);
    assert_eq!(store.log(1).len(), 3);
    assert_eq!(disk.commits(), durable);
}

#[test]
fn failures_come_when_asked_for() {
    let disk = MemoryDisk::new();
    let open = |origin| -> Box<dyn Engine> {
        Box::new(MemoryEngine::open(disk.clone(), identity(origin, &[HERE])).unwrap())
    };
    MemoryEngine::create(disk.clone(), identity(1, &[HERE])).unwrap();
    let mut store = Store::own(open(1));
    disk.fail(Some(Failure::Full));
    disk.fail(None);
    disk.fail(Some(Failure::Retryable));
    let op = |store: &Store, n| {
        vec![store.append_op("bob", crate::store::conformance::kit::id(store.now, n), "x")]
    };
    let ops = op(&store, 1);
    assert!(matches!(
        store.engine.commit(ops, store.now),
        Err(StoreError::Full(_))
    ));
    assert_eq!(store.appended("bob", 2), at(1, 2));
    let ops = op(&store, 3);
    assert!(matches!(
        store.engine.commit(ops, store.now),
        Err(StoreError::Retryable(_))
    ));
    for applied in [true, false] {
        disk.fail(Some(Failure::Unknown { applied }));
        let n = 10 + u64::from(applied);
        let ops = op(&store, n);
        assert!(matches!(
            store.engine.commit(ops.clone(), store.now),
            Err(StoreError::Fatal(_))
        ));
        assert!(matches!(
            store.engine.commit(ops.clone(), store.now),
            Err(StoreError::Fatal(_))
        ));
        store.engine = open(1);
        let outcome = store.one(ops[0].clone());
        assert_eq!(matches!(outcome, Outcome::Duplicate(_)), applied, "{outcome:?}");
    }
}

/// Regions that confirm each second and ship at once what they log, until none has anything to say (R8); gives how many
/// rounds that took.
fn rounds_until_silence(holders: usize) -> usize {
    use crate::store::conformance::kit::{S, T0, id, region};
    let names: Vec<String> = (0..holders).map(|n| format!("r{n}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let open = |(n, name): (usize, &String)| {
        let mut identity = identity(100 + n as u64, &all);
        identity.region = region(name);
        Store::own(Box::new(
            MemoryEngine::create(MemoryDisk::new(), identity).unwrap(),
        ))
    };
    let mut stores: Vec<Store> = names.iter().enumerate().map(open).collect();
    let mut said = vec![0; holders];
    for round in 0..30 {
        let mut silent = true;
        for n in 0..holders {
            let op = match round {
                0 => stores[n].append_op("bob", id(T0, n as u64), "x"),
                _ => StoreOp::Confirm {
                    shard: S,
                    epoch: stores[n].epoch,
                },
            };
            let logged = stores[n].commit(vec![op]).logged;
            silent &= logged.is_empty();
            let Some(first) = logged.first() else { continue };
            let before = std::mem::replace(&mut said[n], logged[logged.len() - 1].entry.hash);
            let run = |epoch| StoreOp::ApplyRemote {
                shard: S,
                epoch,
                origin: first.origin,
                region: first.region.clone(),
                first: first.entry.seq,
                before,
                ops: logged.iter().map(|logged| logged.entry.op.clone()).collect(),
                attached: Vec::new(),
            };
            for other in (0..holders).filter(|other| *other != n) {
                let run = run(stores[other].epoch);
                let outcome = stores[other].one(run);
                assert!(matches!(outcome, Outcome::Applied { stopped: None, .. }));
            }
        }
        if silent {
            return round;
        }
    }
    panic!("{holders} holders confirm for ever");
}

#[test]
fn confirmations_fall_silent_with_any_number_of_holders() {
    for holders in [1, 2, 3, 8, 9, 10, 16] {
        let rounds = rounds_until_silence(holders);
        assert!(rounds <= 5, "{holders} holders: {rounds} rounds");
    }
}
