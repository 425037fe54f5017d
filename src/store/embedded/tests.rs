//! Whole engines: on a simulated disk with tables in memory, and on real files with fjall.

mod crash;
mod dedup;
mod formats;
mod random;
mod real;

use super::tables::MemTables;
use super::*;
use crate::store::conformance::{Harness, run};
use crate::store::disk::{CrashMode, SimDisk};

/// Limits so small that everything ages at once.
pub(crate) fn tiny() -> Options {
    Options {
        segment_bytes: 16 * 1024,
        checkpoint_bytes: 4 * 1024,
        memory_bytes: 2 * 1024,
        slice_bytes: 512,
        flush_bytes: 2 * 1024,
        ..Options::default()
    }
}

/// On a simulated disk and tables in memory, of which a crash keeps a random part.
pub(super) struct Simulated {
    options: Options,
    disk: SimDisk,
    tables: MemTables,
    random: u64,
}

impl Simulated {
    fn new(options: Options) -> Self {
        Self {
            options,
            disk: SimDisk::new(1),
            tables: MemTables::new(),
            random: 1,
        }
    }

    fn coin(&mut self) -> impl FnMut() -> bool + '_ {
        // xorshift64
        || {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random & 1 == 0
        }
    }
}

impl Harness for Simulated {
    fn create(&mut self, identity: StoreIdentity) -> Box<dyn Engine> {
        *self = Self::new(self.options.clone());
        self.tables.slow_flush(2);
        let (disk, tables) = (self.disk.clone(), self.tables.clone());
        Box::new(EmbeddedEngine::create(disk, tables, identity, self.options.clone()).unwrap())
    }

    fn reopen(&mut self, engine: Box<dyn Engine>, identity: StoreIdentity) -> Box<dyn Engine> {
        drop(engine);
        self.disk.crash(CrashMode::LoseAll);
        let tables = self.tables.clone();
        tables.crash(self.coin());
        let (disk, tables) = (self.disk.clone(), self.tables.clone());
        let opened = EmbeddedEngine::open(disk, tables, identity, self.options.clone());
        Box::new(opened.unwrap().0)
    }
}

#[test]
fn conforms() {
    run(&mut Simulated::new(Options {
        segment_bytes: 1024 * 1024,
        ..Options::default()
    }));
}

#[test]
fn conforms_where_everything_ages_at_once() {
    run(&mut Simulated::new(tiny()));
}

/// Real files and fjall.
struct Folder {
    options: Options,
    folder: tempfile::TempDir,
}

impl Folder {
    fn new(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { options, folder }
    }
}

impl Harness for Folder {
    fn create(&mut self, identity: StoreIdentity) -> Box<dyn Engine> {
        *self = Self::new(self.options.clone());
        Box::new(folder::create(self.folder.path(), identity, self.options.clone()).unwrap())
    }

    fn reopen(&mut self, engine: Box<dyn Engine>, identity: StoreIdentity) -> Box<dyn Engine> {
        drop(engine);
        Box::new(
            folder::open(self.folder.path(), identity, self.options.clone())
                .unwrap()
                .0,
        )
    }
}

#[test]
fn conforms_on_a_folder() {
    run(&mut Folder::new(Options {
        segment_bytes: 256 * 1024,
        checkpoint_bytes: 64 * 1024,
        memory_bytes: 64 * 1024,
        ..Options::default()
    }));
}

/// A backlog of ten times the memory limit is kept and read back in order, across a start, too.
fn long_backlog_is_kept(harness: &mut dyn Harness, limit: usize) {
    use crate::store::conformance::kit::{HERE, S, Store, T0, id, identity, vector};
    let mut store = Store::own(harness.create(identity(1, &[HERE])));
    store.register("bob", "phone", Default::default());
    let body = "x".repeat(400);
    let count = (10 * limit / body.len()) as u64;
    for from in (0..count).step_by(16) {
        let ids = from..count.min(from + 16);
        let ops = ids.flat_map(|n| {
            let bob = store.append_op("bob", id(T0, n), &body);
            [bob, store.append_op("carol", id(T0, n), "a word")]
        });
        let ops = ops.collect();
        store.commit(ops);
        if from % 64 == 0 {
            store.engine.idle().unwrap();
        }
        if from % 512 == 0 {
            store.confirm();
            store.trim();
        }
    }
    let all = |store: &mut Store| {
        let inbox = store.inbox("bob");
        assert_eq!(inbox.len() as u64, count);
        assert!(inbox.windows(2).all(|pair| pair[0].at.seq < pair[1].at.seq));
        for (n, entry) in inbox.iter().enumerate() {
            assert_eq!(entry.op.envelope().unwrap().id, id(T0, n as u64));
            assert_eq!(entry.op.body().len(), body.len());
        }
        assert_eq!(store.inbox("carol").len() as u64, count);
        assert_eq!(store.user("bob").unread, count);
    };
    all(&mut store);
    let engine = harness.reopen(store.engine, identity(2, &[HERE]));
    let mut store = Store { engine, ..store };
    all(&mut store);
    // Ids of long ago are still known.
    for n in [0, count / 2, count - 1] {
        let again = store.append_op("bob", id(T0, n), &body);
        assert!(matches!(store.one(again), Outcome::Duplicate(_)));
    }
    // And it can be consumed.
    let mut outcome = store.cursor("bob", "phone", vector(&[(1, u64::MAX)]));
    while outcome == (Outcome::Done { more: true }) {
        outcome = store.remove("bob");
    }
    store.confirm();
    while store.trim() == (Outcome::Done { more: true }) {}
    store.remove("bob");
    assert!(store.inbox("bob").is_empty());
    assert_eq!(store.shard().logs.len(), 2, "shard {S}");
}

#[test]
fn a_long_backlog_is_kept() {
    let options = Options {
        segment_bytes: 64 * 1024,
        checkpoint_bytes: 32 * 1024,
        memory_bytes: 64 * 1024,
        slice_bytes: 8 * 1024,
        ..Options::default()
    };
    long_backlog_is_kept(&mut Simulated::new(options), 64 * 1024);
}

#[test]
fn a_long_backlog_is_kept_on_a_folder() {
    let options = Options {
        segment_bytes: 256 * 1024,
        checkpoint_bytes: 128 * 1024,
        memory_bytes: 128 * 1024,
        slice_bytes: 64 * 1024,
        ..Options::default()
    };
    long_backlog_is_kept(&mut Folder::new(options), 128 * 1024);
}
