//! Retirement of old origins (R23).

use super::Harness;
use super::kit::{HERE, Remote, S, Store, T0, applied, at, device, done, identity, region, user, vector};
use crate::core::commit::StoreOp;
use crate::core::ids::Origin;
use crate::core::op::Op;
use crate::core::retire::{CAME_LATER, KNOWS, RETIRED};
use crate::core::vector::Vector;
use crate::store::conformance::kit::THERE;

type Case = fn(&mut dyn Harness);

pub(super) const ALL: &[(&str, Case)] = &[
    ("an old origin is retired when nobody needs it", retired),
    ("an old origin stays while a holder lacks or needs it", kept),
    ("a retired origin is refused in every vector", refused),
    ("a device that comes needs what nobody needed", needed_again),
    ("a device that comes later is known to come later", later),
    ("what is retired elsewhere is let go of", word),
    ("a word counts when all its teller had is here", early_word),
    (
        "a word counts for what a shard last logged under, unless it is current",
        own_word,
    ),
];

/// A store under origin 11 that had 10 before; bob consumed a message of that. The other region has origin 20, and has
/// confirmed everything. Gives the end of 10.
fn restarted(harness: &mut dyn Harness) -> (Store, Remote, u64) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    store.register("bob", "phone", Vector::new());
    store.appended("bob", 1);
    store.cursor("bob", "phone", vector(&[(10, 3)]));
    let end = store.shard().applied().of(Origin(10));
    let engine = harness.reopen(store.engine, identity(11, &[HERE, THERE]));
    let mut store = Store::own(engine);
    assert_eq!(store.confirm(), done());
    let mut there = Remote::new(THERE, 20, None, T0);
    there.confirm(T0, vector(&[(10, end), (11, 2), (20, 1)]));
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    assert_eq!(store.confirm(), done());
    (store, there, end)
}

/// Has looked, and says that 10 is not needed.
fn looked(store: &mut Store) {
    assert_eq!(store.trim(), done());
    let found = store.retire(&[]);
    assert_eq!(
        (found.retired.len(), found.look),
        (0, [(Origin(10), false)].into())
    );
    assert_eq!(store.needed(10, false), []);
    let found = store.retire(&[10]);
    assert!(
        found.retired.is_empty(),
        "our own last confirmation says that it is needed"
    );
    assert_eq!(store.confirm(), done());
    let row = store.shard();
    assert_eq!(row.confirmed[&region(HERE)].needed, [Origin(11)]);
}

fn retired(harness: &mut dyn Harness) {
    let (mut store, mut there, end) = restarted(harness);
    looked(&mut store);
    let found = store.retire(&[]);
    assert_eq!(found.retired, [(Origin(10), end)].into());
    let row = store.shard();
    assert_eq!(row.retired(Origin(10)), Some(end));
    assert_eq!(row.applied().of(Origin(10)), 0);
    assert!(
        row.confirmed
            .values()
            .all(|said| said.applied.of(Origin(10)) == 0)
    );
    let bob = store.user("bob");
    assert_eq!((bob.trimmed, bob.consumed, bob.counted), Default::default());
    assert!(bob.devices[&device("phone")].cursor.is_empty());
    // It is named as long as somebody lists it, and no longer.
    let named = |store: &mut Store| store.shard().confirmed[&region(HERE)].retired.clone();
    assert_eq!(store.confirm(), done());
    assert_eq!(named(&mut store), Some(vec![at(10, end)]));
    there.confirm(T0, vector(&[(11, 4), (20, 2)]));
    store.apply(&there, 3, 3);
    store.appended("bob", 2);
    assert_eq!(store.confirm(), done());
    assert_eq!(named(&mut store), Some(vec![]));
    // For good.
    let engine = harness.reopen(store.engine, identity(12, &[HERE, THERE]));
    let mut store = Store::own(engine);
    assert_eq!(store.shard().retired(Origin(10)), Some(end));
    assert!(store.log(10).is_empty());
    assert_eq!(store.coords("bob").len(), 1);
}

fn kept(harness: &mut dyn Harness) {
    let confirms: [fn(u64) -> Op; 4] = [
        |end| confirm(vector(&[(10, end - 1), (11, 2), (20, 3)]), &[], true),
        |end| confirm(vector(&[(10, end), (20, 3)]), &[], true),
        |end| confirm(vector(&[(10, end), (11, 2), (20, 3)]), &[10], true),
        |end| confirm(vector(&[(10, end), (11, 2), (20, 3)]), &[], false),
    ];
    for (number, make) in confirms.into_iter().enumerate() {
        let (mut store, mut there, end) = restarted(harness);
        looked(&mut store);
        there.push(T0 + 1, &make(end));
        store.apply(&there, 3, 3);
        let found = store.retire(&[]);
        assert!(found.retired.is_empty(), "confirmation {number}");
        there.confirm(T0 + 2, vector(&[(10, end), (11, 2), (20, 3)]));
        store.apply(&there, 4, 4);
        assert_eq!(store.retire(&[]).retired.len(), 1, "after confirmation {number}");
    }
}

fn confirm(applied: Vector, needed: &[u64], knows: bool) -> Op {
    Op::Confirm {
        holder: region(THERE),
        applied,
        needed: needed.iter().copied().map(Origin).collect(),
        retired: knows.then(Vec::new),
    }
}

fn refused(harness: &mut dyn Harness) {
    let (mut store, mut there, end) = restarted(harness);
    looked(&mut store);
    assert_eq!(store.retire(&[]).retired.len(), 1);
    there.cursor(T0, "bob", "phone", vector(&[(10, end), (20, 1)]));
    there.confirm(T0, vector(&[(10, end), (11, 2), (20, 3)]));
    assert_eq!(store.apply(&there, 3, 4), applied(4));
    store.register("bob", "tablet", vector(&[(10, 2), (20, 1)]));
    store.cursor("bob", "tablet", vector(&[(10, 3)]));
    let bob = store.user("bob");
    assert_eq!(bob.devices[&device("phone")].cursor, vector(&[(20, 1)]));
    let came = vector(&[(RETIRED.0, CAME_LATER), (20, 1)]);
    assert_eq!(bob.devices[&device("tablet")].cursor, came);
    let row = store.shard();
    let said = &row.confirmed[&region(THERE)];
    assert_eq!(
        (said.applied.of(Origin(10)), &said.stale[..]),
        (0, &[Origin(10)][..])
    );
    // A run of it is as good as applied, and a start may name it.
    let old = Remote::new(HERE, 10, None, T0);
    assert_eq!(store.apply(&old, 1, 1), applied(end));
    let next = Remote::new(HERE, 30, Some(at(10, end)), T0);
    assert_eq!(store.apply(&next, 1, 1), applied(1));
    assert_eq!(store.shard().applied().of(Origin(10)), 0);
}

fn needed_again(harness: &mut dyn Harness) {
    let (mut store, _, _) = restarted(harness);
    looked(&mut store);
    store.register("bob", "tablet", Vector::new());
    assert_eq!(
        store.needed(10, false),
        [user("bob")],
        "it has to be told of a hole"
    );
    assert!(store.retire(&[]).retired.is_empty());
    assert_eq!(store.confirm(), done());
    let needed = store.shard().confirmed[&region(HERE)].needed.clone();
    assert_eq!(needed, [Origin(10), Origin(11)]);
    let trimmed = store.user("bob").trimmed;
    store.cursor("bob", "tablet", trimmed);
    assert_eq!(store.retire(&[]).look, [(Origin(10), false)].into());
    store.retire(&[10]);
    assert_eq!(store.confirm(), done());
    assert_eq!(store.retire(&[]).retired.len(), 1);
}

fn later(harness: &mut dyn Harness) {
    let (mut store, _, _) = restarted(harness);
    looked(&mut store);
    assert_eq!(store.retire(&[]).retired.len(), 1);
    store.register("bob", "tablet", Vector::new());
    store.register("bob", "watch", vector(&[(10, 1), (11, 1)]));
    store.register("bob", "laptop", vector(&[(RETIRED.0, KNOWS)]));
    store.register("bob", "phone", vector(&[(RETIRED.0, KNOWS)]));
    store.register("carol", "phone", Vector::new());
    let cursor = |store: &mut Store, name: &str, with: &str| {
        let row = store.user(name);
        row.devices[&device(with)].cursor.of(RETIRED)
    };
    assert_eq!(cursor(&mut store, "bob", "tablet"), CAME_LATER);
    assert_eq!(
        cursor(&mut store, "bob", "watch"),
        CAME_LATER,
        "who let go of it did not wait for a device that only a lost region knew"
    );
    assert_eq!(
        cursor(&mut store, "bob", "laptop"),
        KNOWS,
        "it was told elsewhere"
    );
    assert_eq!(cursor(&mut store, "bob", "phone"), 0, "it was known before");
    assert_eq!(cursor(&mut store, "carol", "phone"), 0, "nothing of hers is gone");
    store.cursor("bob", "tablet", vector(&[(RETIRED.0, KNOWS + 1)]));
    assert_eq!(cursor(&mut store, "bob", "tablet"), KNOWS);
}

/// A store that holds a message of the other region's old origin, which that one has retired: as after a backup was restored.
fn behind(harness: &mut dyn Harness) -> (Store, Remote) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    store.register("bob", "phone", Vector::new());
    let mut old = Remote::new(THERE, 20, None, T0);
    old.append(T0, "bob", 1);
    old.append(T0, "bob", 2);
    assert_eq!(store.apply(&old, 1, 3), applied(3));
    store.appended("bob", 3);
    assert_eq!(store.confirm(), done());
    (store, Remote::new(THERE, 21, Some(at(20, 3)), T0))
}

fn tell(log: &mut Remote, applied: Vector) {
    let op = Op::Confirm {
        holder: region(THERE),
        applied,
        needed: Vec::new(),
        retired: Some(vec![at(20, 5)]),
    };
    log.push(T0, &op);
}

fn word(harness: &mut dyn Harness) {
    let (mut store, mut there) = behind(harness);
    tell(&mut there, vector(&[(10, 2), (21, 1)]));
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    assert_eq!(store.trim(), done());
    assert_eq!(store.retire(&[]).look, [(Origin(20), true)].into());
    assert_eq!(store.needed(20, true), [user("bob")]);
    assert_eq!(store.retire(&[]).retired.len(), 0);
    let forgo = StoreOp::Forgo {
        shard: S,
        epoch: store.epoch,
        user: user("bob"),
        origins: [Origin(20)].into(),
    };
    assert_eq!(store.one(forgo), done());
    let left: Vec<Origin> = store.coords("bob").into_iter().map(|at| at.origin).collect();
    assert_eq!((left, store.user("bob").unread), (vec![Origin(10)], 1));
    assert_eq!(store.needed(20, true), []);
    assert_eq!(store.retire(&[20]).retired, [(Origin(20), 5)].into());
    assert_eq!(store.user("bob").trimmed, Vector::new());
    assert!(store.log(20).is_empty());
}

fn early_word(harness: &mut dyn Harness) {
    let (mut store, mut there) = behind(harness);
    let third = Remote::new("ap-south", 30, None, T0);
    tell(&mut there, vector(&[(10, 2), (21, 1), (30, 1)]));
    store.apply(&there, 1, 2);
    assert!(store.retire(&[]).look.is_empty(), "a copy may still come with 30");
    store.apply(&third, 1, 1);
    assert_eq!(store.trim(), done());
    assert_eq!(store.retire(&[]).look, [(Origin(20), true)].into());
}

/// As after a backup was restored, which the shard has not logged anything since.
fn own_word(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    store.register("bob", "phone", Vector::new());
    store.appended("bob", 1);
    let mut there = Remote::new(THERE, 20, None, T0);
    let op = Op::Confirm {
        holder: region(THERE),
        applied: vector(&[(20, 1)]),
        needed: Vec::new(),
        retired: Some(vec![at(10, 5)]),
    };
    there.push(T0, &op);
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    assert!(store.retire(&[]).look.is_empty(), "we go on under it");
    let engine = harness.reopen(store.engine, identity(11, &[HERE, THERE]));
    let mut store = Store::own(engine);
    assert_eq!(store.trim(), done());
    assert_eq!(store.retire(&[]).look, [(Origin(10), true)].into());
    assert_eq!(store.needed(10, true), [user("bob")]);
    let forgo = StoreOp::Forgo {
        shard: S,
        epoch: store.epoch,
        user: user("bob"),
        origins: [Origin(10)].into(),
    };
    assert_eq!(store.one(forgo), done());
    assert_eq!(store.retire(&[10]).retired, [(Origin(10), 5)].into());
    // What comes next begins a log that continues none.
    store.appended("bob", 2);
    let left: Vec<Origin> = store.coords("bob").into_iter().map(|at| at.origin).collect();
    assert_eq!(left, [Origin(11)]);
    assert_eq!(store.shard().logs[&Origin(11)].previous, None);
}
