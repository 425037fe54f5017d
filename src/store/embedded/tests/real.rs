//! Real files: what is refused, and copies of different moments.

use super::*;
use crate::store::conformance::kit::{HERE, Store, T0, THERE, id, identity};
use crate::store::embedded::folder::{create, exists, open};
use std::fs;
use std::path::Path;

fn options() -> Options {
    Options {
        segment_bytes: 64 * 1024,
        checkpoint_bytes: 32 * 1024,
        memory_bytes: 64 * 1024,
        ..Options::default()
    }
}

fn fill(engine: folder::FolderEngine, from: u64, count: u64) -> Store {
    let mut store = Store::own(Box::new(engine));
    for first in (from..from + count).step_by(20) {
        let ops = (first..first + 20).map(|n| store.append_op("bob", id(T0, n), &"x".repeat(200)));
        let ops = ops.collect();
        store.commit(ops);
    }
    store
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn replace(folder: &Path, part: &str, with: &Path) {
    fs::remove_dir_all(folder.join("store").join(part)).unwrap();
    copy(&with.join("store").join(part), &folder.join("store").join(part));
}

fn refusal(folder: &Path, origin: u64) -> OpenError {
    match open(folder, identity(origin, &[HERE]), options()) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
fn an_empty_folder_is_refused_and_a_second_store_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    assert!(matches!(refusal(&path, 1), OpenError::Missing { .. }));
    assert!(!path.exists(), "a refusal leaves nothing behind");
    fs::create_dir(&path).unwrap();
    assert!(matches!(refusal(&path, 1), OpenError::Missing { .. }));
    // What an interrupted creation left is no store, and no obstacle.
    fs::create_dir_all(path.join("store.new/journal")).unwrap();
    fs::write(path.join("store.new/journal/00000000000000000001.seg"), b"torn").unwrap();
    assert!(matches!(refusal(&path, 1), OpenError::Missing { .. }));
    let engine = create(&path, identity(1, &[HERE]), options()).unwrap();
    assert!(exists(&path).unwrap());
    assert!(matches!(refusal(&path, 2), OpenError::Locked { .. }));
    drop(engine);
    assert!(matches!(
        create(&path, identity(2, &[HERE]), options()),
        Err(OpenError::Exists { .. })
    ));
}

#[test]
fn another_identity_is_named() {
    let folder = tempfile::tempdir().unwrap();
    drop(fill(
        create(folder.path(), identity(1, &[HERE]), options()).unwrap(),
        0,
        20,
    ));
    let open = |change: fn(&mut StoreIdentity)| {
        let mut identity = identity(2, &[HERE]);
        change(&mut identity);
        match open(folder.path(), identity, options()) {
            Ok(_) => panic!("opened"),
            Err(error) => error,
        }
    };
    let field = |error| match error {
        OpenError::Mismatch { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(open(|identity| identity.cluster = 8)), "cluster");
    assert_eq!(field(open(|identity| identity.sharding.seed = 8)), "sharding");
    assert_eq!(
        field(open(|identity| identity.region = THERE.parse().unwrap())),
        "region"
    );
    let used = open(|identity| identity.origin = crate::core::ids::Origin(1));
    assert!(matches!(used, OpenError::OriginUsed { origin: 1, .. }), "{used}");
}

#[test]
fn copies_of_different_moments_recover_or_are_refused() {
    let (folder, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path();
    let mut store = fill(create(path, identity(1, &[HERE]), options()).unwrap(), 0, 40);
    store.engine.close().unwrap();
    drop(store);
    copy(path, old.path());

    // A little more: the journal still has all since, so old tables catch up from it.
    drop(fill(
        open(path, identity(2, &[HERE]), options()).unwrap().0,
        40,
        40,
    ));
    let tried = tempfile::tempdir().unwrap();
    copy(path, tried.path());
    replace(tried.path(), "tables", old.path());
    let (engine, report) = open(tried.path(), identity(3, &[HERE]), options()).unwrap();
    assert!(report.journal.replayed > 0);
    let mut store = Store::own(Box::new(engine));
    assert_eq!(store.coords("bob").len(), 80);
    drop(store);

    // An old journal under those tables: the tables know better.
    let tried = tempfile::tempdir().unwrap();
    copy(path, tried.path());
    {
        let (mut engine, _) = open(tried.path(), identity(3, &[HERE]), options()).unwrap();
        engine.checkpoint().unwrap();
    }
    replace(tried.path(), "journal", old.path());
    let error = refusal(tried.path(), 4);
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("newer than the journal"), "{error}");

    // Much more: segments that the old tables need are gone.
    let mut store = fill(open(path, identity(3, &[HERE]), options()).unwrap().0, 80, 800);
    store.engine.close().unwrap();
    assert_eq!(store.coords("bob").len(), 880);
    drop(store);
    replace(path, "tables", old.path());
    let error = refusal(path, 4);
    assert!(error.to_string().contains("older than the journal"), "{error}");

    // A segment of the journal that is cut: it is the journal's damage.
    let tried = tempfile::tempdir().unwrap();
    copy(old.path(), tried.path());
    let mut segments: Vec<_> = fs::read_dir(tried.path().join("store/journal"))
        .unwrap()
        .collect();
    let segment = segments.pop().unwrap().unwrap().path();
    fs::File::options()
        .write(true)
        .open(&segment)
        .unwrap()
        .set_len(100)
        .unwrap();
    let error = refusal(tried.path(), 4);
    assert!(matches!(error, OpenError::Journal { .. }), "{error}");
    assert!(error.to_string().contains("store/journal is damaged"), "{error}");

    // Half a store.
    fs::remove_dir_all(path.join("store/tables")).unwrap();
    assert!(matches!(refusal(path, 4), OpenError::Corrupt { .. }));
    copy(&old.path().join("store/tables"), &path.join("store/tables"));
    fs::remove_dir_all(path.join("store/journal")).unwrap();
    assert!(matches!(refusal(path, 4), OpenError::Corrupt { .. }));
}

/// What fjall keeps in its own journal is not relied on: damage there loses nothing and does not keep a store closed.
#[test]
fn damage_in_the_journal_of_the_tables_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut store = fill(create(path, identity(1, &[HERE]), options()).unwrap(), 0, 400);
    assert_eq!(store.coords("bob").len(), 400);
    drop(store);
    for (try_no, at) in [10, 500, 5_000, 20_000].into_iter().enumerate() {
        let tried = tempfile::tempdir().unwrap();
        copy(path, tried.path());
        let tables = tried.path().join("store/tables");
        let files = fs::read_dir(&tables).unwrap().map(|entry| entry.unwrap().path());
        // A flush may just have begun a new one.
        let journals = files.filter(|file| file.extension().is_some_and(|extension| extension == "jnl"));
        let (used, journal, mut bytes) = journals
            .map(|journal| {
                let bytes = fs::read(&journal).unwrap();
                let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                (used, journal, bytes)
            })
            .max()
            .unwrap();
        assert!(used > 20_000, "the test needs something to damage");
        bytes[at] ^= 0xff;
        fs::write(&journal, bytes).unwrap();
        let (engine, _) = open(tried.path(), identity(2 + try_no as u64, &[HERE]), options()).unwrap();
        let mut store = Store::own(Box::new(engine));
        assert_eq!(store.coords("bob").len(), 400, "a byte flipped at {at}");
        // And it goes on: new rows win over old ones, across another start.
        let at = store.appended("bob", 1_000);
        store.engine.close().unwrap();
        drop(store);
        let (engine, _) = open(tried.path(), identity(20, &[HERE]), options()).unwrap();
        let mut store = Store::own(Box::new(engine));
        assert_eq!(store.append("bob", 1_000), Outcome::Duplicate(vec![at]));
        assert_eq!(store.user("bob").unread, 401);
    }
}
