//! Holders that are away (R12), and changes of the set of holders (R13).

use super::Harness;
use super::kit::{HERE, Remote, S, Store, T0, THERE, applied, at, done, identity, region, vector};
use crate::core::commit::{DAY_MS, Outcome, Refusal, StoreOp};
use crate::core::holders::HoldersChange;
use crate::core::ids::{Origin, Seq};
use crate::core::op::Op;
use crate::core::vector::Vector;

type Case = fn(&mut dyn Harness);

pub(super) const ALL: &[(&str, Case)] = &[
    (
        "an absent holder is marked beyond its share of bytes",
        marked_by_bytes,
    ),
    ("an absent holder is marked after too long", marked_by_time),
    ("confirmations pin nothing", confirmations),
    ("a mark goes when the holder reaches the floors", back),
    (
        "what is trimmed in the batch of a mark is removed",
        marked_and_trimmed,
    ),
    ("a log that nobody may trim is full at twice the share", full),
    (
        "a change of holders counts the old and the new set until the new one confirmed",
        changed,
    ),
    ("of two changes the higher counts, whatever comes first", ordered),
    ("a region that is removed takes nothing more", removed),
    (
        "a region that was removed stays so with the store that it had",
        removed_for_good,
    ),
    (
        "a region that is added again counts from when it knows",
        added_again,
    ),
    ("what a removed region left behind is retired", left),
    ("a mark goes with the region that it is of", marked_while_it_left),
    (
        "a holder that is marked counts for dedup and devices",
        marked_counts,
    ),
];

const THIRD: &str = "ap-south";

/// A store of three holders with eight shards, of which a shard may pin a kilobyte, and the log of another holder.
fn three(harness: &mut dyn Harness) -> (Store, Remote) {
    let mut identity = identity(10, &[HERE, THERE, THIRD]);
    identity.limits.absent_log_bytes = 8 * 1024;
    identity.limits.absent_log_ms = 1_000;
    let mut store = Store::own(harness.create(identity));
    let there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    store.apply(&there, 1, 1);
    (store, there)
}

fn mark(store: &mut Store, absent: &[&str], by_time: bool) -> Vec<String> {
    let op = StoreOp::Mark {
        shard: S,
        epoch: store.epoch,
        absent: absent.iter().map(|name| region(name)).collect(),
        by_time,
    };
    match store.one(op) {
        Outcome::Marked { marked, .. } => marked.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

/// The other region confirms all that is here.
fn confirm_there(store: &mut Store, there: &mut Remote) {
    let all = store.shard().applied();
    there.confirm(store.now, all);
    let last = there.ops.len() as Seq;
    assert_eq!(store.apply(there, last, last), applied(last));
}

fn fill(store: &mut Store, from: u64, count: u64) {
    for n in from..from + count {
        let op = store.append_op("bob", super::kit::id(T0, n), &"x".repeat(100));
        assert!(matches!(store.one(op), Outcome::Appended(_)));
    }
}

fn floor(store: &mut Store) -> Seq {
    store.shard().logs[&Origin(10)].floor
}

fn marked_by_bytes(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    fill(&mut store, 1, 3);
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert!(store.shard().holding.log_bytes <= 1024);
    assert!(mark(&mut store, &[THIRD], true).is_empty(), "within the limits");
    assert_eq!((store.trim(), floor(&mut store)), (done(), 0));
    fill(&mut store, 4, 5);
    assert!(store.shard().holding.log_bytes > 1024);
    assert!(mark(&mut store, &[], true).is_empty(), "nobody is away");
    // Who has confirmed everything holds nothing back, and one does not mark oneself.
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!(
        mark(&mut store, &[HERE, THERE, THIRD, "elsewhere"], false),
        [THIRD]
    );
    assert_eq!(store.trim(), done());
    let row = store.shard();
    let said = [HERE, THERE].map(|holder| row.confirmed[&region(holder)].applied.of(Origin(10)));
    assert_eq!(Some(floor(&mut store)), said.into_iter().min());
    assert_eq!(
        row.stable(Origin(10), &store.engine.identity().holders.clone()),
        0,
        "for all else it counts"
    );
}

fn marked_while_it_left(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    fill(&mut store, 1, 9);
    assert_eq!(propose(&mut store, change(1, &[HERE, THERE])), done());
    let knows = vector(&[(10, store.shard().applied().of(Origin(10)))]);
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!(
        mark(&mut store, &[THIRD], false),
        [THIRD],
        "it counts as it leaves"
    );
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!(store.trim(), done());
    assert!(store.shard().logs[&Origin(20)].floor > 0);
    // It knows, and does not have all that is gone.
    let mut third = Remote::new(THIRD, 30, None, T0);
    third.confirm(T0, knows);
    assert_eq!(store.apply(&third, 1, 2), applied(2));
    assert_eq!(counting(&mut store), [HERE, THERE]);
    assert!(mark(&mut store, &[], false).is_empty());
}

fn marked_by_time(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    let mut third = Remote::new(THIRD, 30, None, T0);
    let mut all = store.shard().applied();
    all.raise(Origin(30), 1);
    third.confirm(T0, all);
    store.apply(&third, 1, 2);
    store.now += 5_000;
    fill(&mut store, 1, 1);
    assert!(
        mark(&mut store, &[THIRD], true).is_empty(),
        "it waits for nothing that is old"
    );
    store.now += 1_001;
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert!(
        mark(&mut store, &[THIRD], false).is_empty(),
        "the clocks do not agree"
    );
    assert_eq!(mark(&mut store, &[THIRD], true), [THIRD]);
}

fn confirmations(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    let before = store.shard().holding.log_bytes;
    for n in 0..200 {
        there.confirm(T0, vector(&[(20, n)]));
    }
    assert_eq!(store.apply(&there, 2, 201), applied(201));
    assert_eq!(store.shard().holding.log_bytes, before);
    assert!(mark(&mut store, &[THIRD], false).is_empty());
}

fn back(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    fill(&mut store, 1, 8);
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!(mark(&mut store, &[THIRD], false), [THIRD]);
    store.trim();
    let begins = floor(&mut store);
    assert!(begins > 0);
    // It is back, and from now on the logs wait for it where they begin.
    let mut third = Remote::new(THIRD, 30, None, T0);
    third.confirm(T0, vector(&[(10, 1)]));
    store.apply(&third, 1, 2);
    fill(&mut store, 20, 2);
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!(
        mark(&mut store, &[], false),
        [THIRD],
        "it has not reached where they begin"
    );
    store.trim();
    assert_eq!(floor(&mut store), begins);
    third.confirm(T0, vector(&[(10, begins), (20, there.ops.len() as Seq)]));
    store.apply(&third, 3, 3);
    assert!(mark(&mut store, &[], false).is_empty());
    store.trim();
    assert_eq!(floor(&mut store), begins, "it counts like any other again");
}

fn marked_and_trimmed(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    fill(&mut store, 1, 8);
    let last = store.coords("bob").pop().unwrap();
    store.confirm();
    confirm_there(&mut store, &mut there);
    store.cursor("bob", "phone", vector(&[(10, last.seq)]));
    assert_eq!(store.coords("bob").len(), 8, "nothing of it is stable");
    let (shard, epoch) = (S, store.epoch);
    let absent = vec![region(THIRD)];
    let by_time = false;
    let mark = StoreOp::Mark {
        shard,
        epoch,
        absent,
        by_time,
    };
    store.commit(vec![mark, StoreOp::Trim { shard, epoch }]);
    assert!(floor(&mut store) >= last.seq);
    assert!(store.coords("bob").is_empty());
}

fn full(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    let is_full = |store: &mut Store, absent: &[&str]| {
        let op = StoreOp::Mark {
            shard: S,
            epoch: store.epoch,
            absent: absent.iter().map(|name| region(name)).collect(),
            by_time: false,
        };
        match store.one(op) {
            Outcome::Marked { full, .. } => full,
            other => panic!("{other:?}"),
        }
    };
    fill(&mut store, 1, 8);
    assert!(store.shard().holding.log_bytes < 2048 && !is_full(&mut store, &[]));
    fill(&mut store, 9, 8);
    assert!(store.shard().holding.log_bytes > 2048 && is_full(&mut store, &[]));
    store.confirm();
    confirm_there(&mut store, &mut there);
    is_full(&mut store, &[THIRD]);
    store.trim();
    assert!(!is_full(&mut store, &[]));
}

fn change(version: u64, set: &[&str]) -> HoldersChange {
    HoldersChange {
        version,
        set: set.iter().map(|name| region(name)).collect(),
        gone: [].into(),
    }
}

fn propose(store: &mut Store, change: HoldersChange) -> Outcome {
    let epoch = store.epoch;
    store.one(StoreOp::Holders {
        shard: S,
        epoch,
        change,
    })
}

fn counting(store: &mut Store) -> Vec<String> {
    let first = store.engine.identity().holders.clone();
    store
        .shard()
        .holders(&first)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn changed(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let mut there = Remote::new(THERE, 20, None, T0);
    store.appended("bob", 1);
    store.apply(&there, 1, 1);
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!(propose(&mut store, change(1, &[HERE, THIRD])), done());
    assert_eq!(propose(&mut store, change(1, &[HERE, THIRD])), done(), "known");
    let set = store.shard().holding.set.clone().unwrap();
    assert_eq!(counting(&mut store), [THIRD, HERE, THERE]);
    let leaving: Vec<String> = set.leaving.keys().map(ToString::to_string).collect();
    assert_eq!(leaving, [THERE]);
    // Nothing is trimmed that the new region has yet to get.
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!((store.trim(), floor(&mut store)), (done(), 0));
    assert!(
        store.shard().holding.set.unwrap().leaving.is_empty(),
        "all that it took is here"
    );
    assert_eq!(counting(&mut store), [THIRD, HERE, THERE]);
    let all = store.shard().applied();
    let mut third = Remote::new(THIRD, 30, None, T0);
    third.confirm(T0, all);
    store.apply(&third, 1, 2);
    assert_eq!(counting(&mut store), [THIRD, HERE]);
    assert!(store.shard().holding.set.unwrap().settled);
    store.trim();
    assert!(floor(&mut store) > 0);
    let engine = harness.reopen(store.engine, identity(11, &[HERE, "elsewhere"]));
    let mut store = Store::own(engine);
    assert_eq!(counting(&mut store), [THIRD, HERE], "what is stored counts");
}

fn ordered(harness: &mut dyn Harness) {
    let changes = [
        change(1, &[HERE, THERE, THIRD]),
        change(1, &[HERE, THIRD]),
        change(2, &[HERE]),
    ];
    let mut last = None;
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
        let mut there = Remote::new(THERE, 20, None, T0);
        for at in order {
            there.push(T0, &Op::Holders(changes[at].clone()));
        }
        assert_eq!(store.apply(&there, 1, 4), applied(4));
        let set = store.shard().holding.set.unwrap();
        assert_eq!((set.version, set.new.len()), (2, 1));
        let known = Outcome::Refused(Refusal::HoldersKnown { version: 2 });
        assert_eq!(propose(&mut store, change(1, &[HERE, THERE])), known);
        let new = (set.version, set.new);
        assert!(last.is_none_or(|last| last == new));
        last = Some(new);
    }
}

fn removed(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    store.appended("bob", 1);
    let mut there = Remote::new(THERE, 20, None, T0);
    there.push(T0, &Op::Holders(change(1, &[THERE])));
    store.apply(&there, 1, 2);
    let refused = Outcome::Refused(Refusal::Removed);
    assert_eq!(store.append("bob", 2), refused);
    assert_eq!(store.register("bob", "phone", Vector::new()), refused);
    assert_eq!(store.confirm(), done());
    assert_eq!(
        store.log(10).len(),
        3,
        "the others learn by its last confirmation that nothing more comes"
    );
}

fn removed_for_good(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    store.appended("bob", 1);
    let mut there = Remote::new(THERE, 20, None, T0);
    there.push(T0, &Op::Holders(change(1, &[THERE])));
    store.apply(&there, 1, 2);
    assert_eq!(store.confirm(), done());
    there.append(T0, "bob", 9);
    there.push(T0, &Op::Holders(change(2, &[HERE, THERE])));
    store.apply(&there, 3, 4);
    let refused = Outcome::Refused(Refusal::Removed);
    assert_eq!(store.append("bob", 2), refused);
    assert_eq!(store.confirm(), refused, "it said its last word");
    assert_eq!(store.log(10).len(), 3);
    let engine = harness.reopen(store.engine, identity(11, &[HERE, THERE]));
    let mut store = Store::own(engine);
    assert_eq!(store.append("bob", 2), refused, "a restart does not change it");
}

fn added_again(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let mut there = Remote::new(THERE, 20, None, T0);
    store.appended("bob", 1);
    store.apply(&there, 1, 1);
    propose(&mut store, change(1, &[HERE]));
    store.confirm();
    confirm_there(&mut store, &mut there);
    let first = store.engine.identity().holders.clone();
    let before = store.shard();
    assert!(before.confirmed[&region(THERE)].applied.of(Origin(10)) > 0);
    propose(&mut store, change(2, &[HERE, THERE]));
    store.appended("bob", 2);
    store.confirm();
    assert_eq!(
        store.shard().stable(Origin(10), &first),
        0,
        "what it had once it has no more"
    );
    let end = there.ops.len() as Seq;
    let mut back = Remote::new(THERE, 21, Some(at(20, end)), T0);
    let all = store.shard().applied();
    back.confirm(store.now, all);
    assert_eq!(store.apply(&back, 1, 2), applied(2));
    assert!(store.shard().stable(Origin(10), &first) > 0);
    assert!(store.shard().holding.set.unwrap().is_done());
}

fn marked_counts(harness: &mut dyn Harness) {
    let (mut store, mut there) = three(harness);
    fill(&mut store, 1, 8);
    store.confirm();
    confirm_there(&mut store, &mut there);
    assert_eq!(mark(&mut store, &[THIRD], false), [THIRD]);
    store.trim();
    assert!(floor(&mut store) > 0);
    store.now += 10 * DAY_MS;
    let drop = StoreOp::DropDedup {
        shard: S,
        epoch: store.epoch,
        day: u32::MAX,
    };
    assert_eq!(store.one(drop.clone()), Outcome::Done { more: true });
    assert_eq!(
        store.shard().forgotten,
        0,
        "it may hold a copy that was accepted there"
    );
    // It is back, and has all.
    let mut third = Remote::new(THIRD, 30, None, T0);
    let all = store.shard().applied();
    third.confirm(T0, all);
    store.apply(&third, 1, 2);
    assert!(mark(&mut store, &[], false).is_empty());
    store.one(drop);
    assert!(store.shard().forgotten > 0);
}

fn left(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let mut there = Remote::new(THERE, 20, None, T0);
    store.appended("bob", 1);
    store.apply(&there, 1, 1);
    propose(&mut store, change(1, &[HERE]));
    store.confirm();
    confirm_there(&mut store, &mut there);
    let end = there.ops.len() as Seq;
    store.confirm();
    store.trim();
    assert_eq!(store.retire(&[]).look, [(Origin(20), false)].into());
    store.retire(&[20]);
    store.confirm();
    assert_eq!(store.retire(&[]).retired, [(Origin(20), end)].into());
    // It comes back as another one.
    let back = Remote::new(THERE, 21, Some(at(20, end)), T0);
    assert_eq!(store.apply(&back, 1, 1), applied(1));
}
