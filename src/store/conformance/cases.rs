//! The cases, one promise each.

use bytes::Bytes;

use super::Harness;
use super::kit::{
    HERE, Remote, S, Store, T0, THERE, applied, at, device, done, envelope, id, identity, region, user,
    vector,
};
use crate::core::commit::{
    CONSUME_STEP, ID_FUTURE_MS, ID_WINDOW_MS, Outcome, Refusal, Stop, StoreOp, TIME_MARGIN_MS, TRIM_READS,
};
use crate::core::ids::{Epoch, MessageId, Origin, Seq, ShardId};
use crate::core::op::{DeviceChange, Op};
use crate::core::vector::Vector;
use crate::store::engine::{LogPage, Read, ReadReply};

pub(super) type Case = fn(&mut dyn Harness);

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) const ALL: &[(&str, Case)] = &[
    ("unknown things read as empty", unknown_reads),
    ("a message is logged and waits in the inbox", append),
    ("a duplicate gets the original coordinates", duplicates),
    ("the window of ids", id_window),
    ("a full inbox refuses", limits),
    ("an old owner is fenced", fencing),
    ("operations of a batch see each other", batches),
    ("consumed and stable entries go", removal),
    ("nothing goes where no message was", nothing_to_remove),
    ("each device must consume", devices),
    ("without a device nothing goes", no_device),
    ("a device that returns gets what is kept", returning_device),
    ("logs are trimmed only when stable", trimming),
    ("confirmations do not feed each other", confirms),
    ("runs of another log apply once and in order", remote_runs),
    ("a start waits for what came before", remote_starts),
    ("copies of a message know each other", siblings),
    ("delivery order between origins", delivery_order),
    ("pages end at their limits", pages),
    ("a new origin begins with its start", reopen),
    ("dedup records go by day", dedup_days),
    ("what was forgotten stays so", super::forget::forgotten_for_good),
    ("records that come late are kept", super::forget::late_records),
    (
        "records go as far as they are stable",
        super::forget::as_far_as_stable,
    ),
    ("a long backlog is consumed in steps", long_backlog),
    ("a long backlog consumed elsewhere", long_backlog_remote),
];

fn here(harness: &mut dyn Harness) -> Store {
    Store::own(harness.create(identity(10, &[HERE])))
}

fn both(harness: &mut dyn Harness) -> Store {
    Store::own(harness.create(identity(10, &[HERE, THERE])))
}

fn unknown_reads(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let shard = ShardId(5);
    let row = store.engine.read(&Read::Shard(shard)).unwrap();
    assert_eq!(row, ReadReply::Shard(Box::default()));
    let row = store.engine.read(&Read::User(shard, user("bob"))).unwrap();
    assert_eq!(row, ReadReply::User(Box::default()));
    assert!(store.inbox("bob").is_empty());
    let empty = LogPage::Run {
        before: 0,
        entries: Vec::new(),
        end: true,
    };
    assert_eq!(store.log_page(99, 0, 10, 10), empty);
    assert_eq!(store.commit(Vec::new()).outcomes, Vec::new());
}

fn append(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let op = store.append_op("bob", id(T0, 1), "hello");
    let committed = store.commit(vec![op]);
    // The first sequence of a new origin is its start (R1).
    assert_eq!(committed.outcomes, [Outcome::Appended(at(10, 2))]);
    let kinds: Vec<_> = committed.logged.iter().map(|logged| logged.entry.seq).collect();
    assert_eq!(kinds, [1, 2]);
    assert!(committed.logged.iter().all(|logged| logged.own));
    let inbox = store.inbox("bob");
    assert_eq!(inbox.len(), 1);
    assert_eq!(inbox[0].at, at(10, 2));
    assert_eq!(inbox[0].op.body(), "hello");
    let log = store.log(10);
    assert_eq!(log[1].op, inbox[0].op);
    let row = store.user("bob");
    assert_eq!((row.unread, row.unread_bytes), (1, inbox[0].op.len() as u64));
}

fn duplicates(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let first = store.appended("bob", 1);
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![first]));
    let other = store.append_op("bob", id(T0, 1), "other words");
    assert_eq!(store.one(other), Outcome::Refused(Refusal::IdReused));
    // The same id to another recipient, or from another sender, is another message.
    assert!(matches!(store.append("carol", 1), Outcome::Appended(_)));
    let from_dave = StoreOp::Append {
        shard: S,
        epoch: store.epoch,
        envelope: Box::new(envelope("bob", "dave", id(T0, 1))),
        body: Bytes::from_static(b"message 1"),
        seen_ms: 0,
        known_only: false,
    };
    assert!(matches!(store.one(from_dave), Outcome::Appended(_)));
    // One that was judged before is only looked up (R21).
    let again = |store: &Store, n| match store.append_op("bob", id(T0, n), &format!("message {n}")) {
        StoreOp::Append {
            shard,
            epoch,
            envelope,
            body,
            ..
        } => StoreOp::Append {
            shard,
            epoch,
            envelope,
            body,
            seen_ms: 0,
            known_only: true,
        },
        other => other,
    };
    let (known, unknown) = (again(&store, 1), again(&store, 77));
    assert_eq!(store.one(known), Outcome::Duplicate(vec![first]));
    assert_eq!(store.one(unknown), Outcome::Refused(Refusal::AlreadyJudged));
    // Dedup comes before the window of the id, and holds after the message is gone (R16).
    store.register("bob", "phone", Vector::new());
    store.cursor("bob", "phone", vector(&[(10, 99)]));
    store.confirm();
    store.trim();
    assert!(store.inbox("bob").is_empty());
    store.now += ID_WINDOW_MS + 1;
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![first]));
}

fn id_window(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let mut send = |id: MessageId, now: u64| {
        store.now = now;
        let op = store.append_op("bob", id, "x");
        store.one(op)
    };
    let server_ms = T0 + ID_WINDOW_MS + 1;
    assert!(matches!(send(id(T0, 1), T0 + ID_WINDOW_MS), Outcome::Appended(_)));
    assert_eq!(
        send(id(T0, 2), server_ms),
        Outcome::Refused(Refusal::IdTooOld { server_ms })
    );
    let ahead = server_ms + ID_FUTURE_MS;
    assert!(matches!(send(id(ahead, 3), server_ms), Outcome::Appended(_)));
    let refused = Refusal::IdInFuture { server_ms };
    assert_eq!(send(id(ahead + 1, 4), server_ms), Outcome::Refused(refused));
    assert_eq!(
        send(MessageId([0; 16]), server_ms),
        Outcome::Refused(Refusal::IdMalformed)
    );
    // A clock set back must not accept an id that is forgotten: the hybrid time counts (R16).
    assert!(matches!(
        send(id(T0, 5), T0),
        Outcome::Refused(Refusal::IdTooOld { .. })
    ));
    assert_eq!(store.coords("bob").len(), 2);
}

fn limits(harness: &mut dyn Harness) {
    let mut identity = identity(10, &[HERE]);
    identity.limits.inbox_messages = 2;
    identity.limits.devices = 2;
    let mut store = Store::own(harness.create(identity));
    let first = store.appended("bob", 1);
    store.appended("bob", 2);
    let bytes = store.user("bob").unread_bytes;
    assert_eq!(
        store.append("bob", 3),
        Outcome::Refused(Refusal::InboxFull { messages: 2, bytes })
    );
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![first]));
    assert!(matches!(store.append("carol", 3), Outcome::Appended(_)));
    // Only what some device has not consumed counts.
    assert_eq!(store.cursor("bob", "phone", vector(&[(10, 2)])), done());
    assert!(matches!(store.append("bob", 3), Outcome::Appended(_)));
    assert!(matches!(store.append("bob", 4), Outcome::Refused(_)));

    assert_eq!(store.register("bob", "tablet", Vector::new()), done());
    assert_eq!(store.register("bob", "tablet", Vector::new()), done());
    let refused = Refusal::TooManyDevices { limit: 2 };
    assert_eq!(
        store.register("bob", "laptop", Vector::new()),
        Outcome::Refused(refused)
    );
}

fn fencing(harness: &mut dyn Harness) {
    let mut store = here(harness);
    store.appended("bob", 1);
    let old = store.epoch;
    let Outcome::Bumped { epoch } = store.one(StoreOp::Bump { shard: S }) else {
        panic!("not bumped");
    };
    assert!(epoch > old);
    let fenced = Outcome::Refused(Refusal::Fenced { current: epoch });
    assert_eq!(store.append("bob", 2), fenced);
    // Only the fenced shard's operations fail.
    let other = ShardId(4);
    let ops = vec![
        store.append_op("bob", id(T0, 3), "x"),
        StoreOp::Bump { shard: other },
        StoreOp::Confirm {
            shard: other,
            epoch: Epoch(1),
        },
    ];
    let outcomes = store.commit(ops).outcomes;
    assert_eq!(outcomes, [fenced, Outcome::Bumped { epoch: Epoch(1) }, done()]);
    store.epoch = epoch;
    assert_eq!(store.append("bob", 2), Outcome::Appended(at(10, 3)));
    assert_eq!(store.log(10).len(), 3);
}

fn batches(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let epoch = store.epoch;
    let ops = vec![
        store.append_op("bob", id(T0, 1), "one"),
        store.append_op("bob", id(T0, 1), "one"),
        store.append_op("bob", id(T0, 1), "two"),
        store.append_op("carol", id(T0, 2), "three"),
        StoreOp::Cursor {
            shard: S,
            epoch,
            user: user("bob"),
            device: device("phone"),
            cursor: vector(&[(10, 2)]),
        },
        StoreOp::Confirm { shard: S, epoch },
        StoreOp::Trim { shard: S, epoch },
    ];
    let outcomes = store.commit(ops).outcomes;
    assert_eq!(
        outcomes,
        [
            Outcome::Appended(at(10, 2)),
            Outcome::Duplicate(vec![at(10, 2)]),
            Outcome::Refused(Refusal::IdReused),
            Outcome::Appended(at(10, 3)),
            done(),
            done(),
            done(),
        ]
    );
    assert_eq!(store.coords("bob"), []);
    assert_eq!(store.coords("carol"), [at(10, 3)]);
    // Start, two messages, a cursor: trimmed. The confirmation is not stable.
    assert_eq!(store.shard().logs[&Origin(10)].floor, 4);
    assert_eq!(store.user("bob").trimmed, vector(&[(10, 2)]));
}

fn removal(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    assert_eq!(store.register("bob", "phone", Vector::new()), done());
    let one = store.appended("bob", 1);
    let two = store.appended("bob", 2);
    store.confirm();
    // Consumed but not stable: stays.
    store.cursor("bob", "phone", vector(&[(10, one.seq)]));
    assert_eq!(store.trim(), done());
    assert_eq!(store.coords("bob"), [one, two]);
    assert_eq!(store.user("bob").unread, 1);
    // Both stable, one consumed: that one goes.
    there.confirm(T0, vector(&[(10, two.seq)]));
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    assert_eq!(store.trim(), done());
    assert_eq!(store.coords("bob"), [two]);
    // Consumed later: goes at once.
    store.cursor("bob", "phone", vector(&[(10, two.seq)]));
    assert_eq!(store.coords("bob"), []);
    let row = store.user("bob");
    assert_eq!((row.unread, row.unread_bytes), (0, 0));
    assert_eq!(row.trimmed.of(Origin(10)), two.seq);
}

/// A device that comes while the only message is not stable is told of no hole before it.
fn nothing_to_remove(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    let other = store.appended("carol", 1);
    store.register("bob", "phone", Vector::new());
    store.register("carol", "phone", Vector::new());
    let one = store.appended("bob", 1);
    let two = store.appended("bob", 2);
    let later = store.appended("carol", 2);
    store.confirm();
    let mut stable_to = |store: &mut Store, seq: Seq| {
        let confirm = there.confirm(T0, vector(&[(10, seq)]));
        let first = if confirm.seq == 2 { 1 } else { confirm.seq };
        assert_eq!(store.apply(&there, first, confirm.seq), applied(confirm.seq));
        assert_eq!(store.trim(), done());
        assert_eq!(store.shard().logs[&Origin(10)].floor, seq);
    };
    stable_to(&mut store, other.seq);
    store.cursor("bob", "phone", vector(&[(10, one.seq)]));
    let bob = store.user("bob");
    assert_eq!(
        (bob.consumed.of(Origin(10)), bob.trimmed),
        (one.seq, Vector::new())
    );
    // Trimmed up to what lies before it: still nothing of bob's.
    stable_to(&mut store, one.seq - 1);
    assert_eq!(store.user("bob").trimmed, Vector::new());
    // The first goes when it is stable, though another one was consumed behind it that is not.
    store.cursor("bob", "phone", vector(&[(10, two.seq)]));
    stable_to(&mut store, one.seq);
    assert_eq!(store.user("bob").trimmed, vector(&[(10, one.seq)]));
    assert_eq!(store.coords("bob"), [two]);
    // So does one that was stable before it was consumed, behind one that is not.
    store.cursor("carol", "phone", vector(&[(10, later.seq)]));
    assert_eq!(store.user("carol").trimmed, vector(&[(10, one.seq)]));
    assert_eq!(store.coords("carol"), [later]);
    // The rest, when all is stable.
    stable_to(&mut store, later.seq);
    assert_eq!(store.user("bob").trimmed, vector(&[(10, two.seq)]));
    assert_eq!(store.user("carol").trimmed, vector(&[(10, later.seq)]));
    assert_eq!((store.coords("bob"), store.coords("carol")), (vec![], vec![]));
}

fn devices(harness: &mut dyn Harness) {
    let mut store = here(harness);
    store.register("bob", "phone", Vector::new());
    store.register("bob", "tablet", Vector::new());
    let one = store.appended("bob", 1);
    let two = store.appended("bob", 2);
    store.confirm();
    store.trim();
    store.cursor("bob", "phone", vector(&[(10, two.seq)]));
    assert_eq!(store.coords("bob"), [one, two]);
    assert_eq!(store.user("bob").unread, 2);
    store.cursor("bob", "tablet", vector(&[(10, one.seq)]));
    assert_eq!(store.coords("bob"), [two]);
    // A new device gets what is still kept, and must consume it (R17).
    store.register("bob", "laptop", Vector::new());
    store.cursor("bob", "tablet", vector(&[(10, two.seq)]));
    assert_eq!(store.coords("bob"), [two]);
    // What is logged of a cursor is at most what is applied.
    store.cursor("bob", "laptop", vector(&[(10, 1_000), (77, 5)]));
    assert_eq!(store.coords("bob"), []);
    let row = store.user("bob");
    assert!(row.devices[&device("laptop")].cursor.of(Origin(10)) < 1_000);
    assert_eq!(row.devices[&device("laptop")].cursor.of(Origin(77)), 0);
}

fn no_device(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let one = store.appended("bob", 1);
    store.confirm();
    store.trim();
    store.remove("bob");
    assert_eq!(store.coords("bob"), [one]);
    // The log does not need it any more, the inbox does.
    assert!(store.shard().logs[&Origin(10)].floor >= one.seq);
    // The same when the only device, which consumed it, expires before it is stable.
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    let one = store.appended("bob", 1);
    store.cursor("bob", "phone", vector(&[(10, one.seq)]));
    let (user, device) = (user("bob"), device("phone"));
    let change = DeviceChange::Expire { epoch: 1 };
    store.now += 40 * DAY_MS;
    there.push(store.now, &Op::Device { user, device, change });
    there.confirm(store.now, vector(&[(20, 2)]));
    assert_eq!(store.apply(&there, 1, 3), applied(3));
    store.confirm();
    store.trim();
    assert!(store.user("bob").devices[&super::kit::device("phone")].expired);
    there.confirm(store.now, vector(&[(10, 100), (20, 3)]));
    assert_eq!(store.apply(&there, 4, 4), applied(4));
    store.trim();
    store.remove("bob");
    assert_eq!(store.coords("bob"), [one]);
}

fn returning_device(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    store.register("bob", "tablet", Vector::new());
    let one = store.appended("bob", 1);
    let change = |change| Op::Device {
        user: user("bob"),
        device: device("tablet"),
        change,
    };
    store.now += 40 * DAY_MS;
    there.push(store.now, &change(DeviceChange::Expire { epoch: 1 }));
    there.confirm(store.now, vector(&[(20, 2)]));
    assert_eq!(store.apply(&there, 1, 3), applied(3));
    store.confirm();
    store.trim();
    store.cursor("bob", "phone", vector(&[(10, one.seq)]));
    assert_eq!(store.user("bob").consumed, vector(&[(10, one.seq)]));
    // It comes back before the entry was stable: it must consume it again.
    store.register("bob", "tablet", Vector::new());
    assert_eq!(store.user("bob").devices[&device("tablet")].epoch, 2);
    store.confirm();
    there.confirm(store.now, vector(&[(10, 100), (20, 3)]));
    assert_eq!(store.apply(&there, 4, 4), applied(4));
    store.trim();
    assert_eq!(store.coords("bob"), [one]);
    store.cursor("bob", "tablet", vector(&[(10, one.seq)]));
    assert_eq!(store.coords("bob"), []);
    assert_eq!(store.user("bob").unread, 0);
}

fn trimming(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    for n in 1..=5 {
        store.appended("bob", n);
    }
    store.confirm();
    assert_eq!(store.trim(), done());
    assert_eq!(store.log(10).len(), 7);
    there.confirm(T0, vector(&[(10, 3)]));
    store.apply(&there, 1, 2);
    assert_eq!(store.trim(), done());
    assert_eq!(store.log(10).len(), 4);
    assert_eq!(store.log_page(10, 2, 10, 1_000), LogPage::Trimmed { floor: 3 });
    let LogPage::Run { before, entries, end } = store.log_page(10, 4, 1, usize::MAX) else {
        panic!("not trimmed to there");
    };
    assert_eq!((entries[0].seq, end), (5, false));
    assert_eq!(entries[0].op.running_hash(before), entries[0].hash);
    // Messages nobody consumed stay in the inbox.
    assert_eq!(store.coords("bob").len(), 5);
    let LogPage::Run { entries, end, .. } = store.log_page(10, 7, 10, 10) else {
        panic!("the end is not trimmed");
    };
    assert!(entries.is_empty() && end);
}

fn confirms(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.confirm();
    assert_eq!(store.log(10).len(), 0);
    store.appended("bob", 1);
    store.confirm();
    store.confirm();
    assert_eq!(store.log(10).len(), 3);
    // Seven confirmations of others are no news, the eighth is (R8). The start is.
    store.apply(&there, 1, 1);
    store.confirm();
    assert_eq!(store.log(10).len(), 4);
    for n in 0..8 {
        assert_eq!(store.log(10).len(), 4);
        there.confirm(T0 + n, vector(&[(10, 4)]));
        let seq = there.ops.len() as Seq;
        assert_eq!(store.apply(&there, seq, seq), applied(seq));
        store.confirm();
    }
    assert_eq!(store.log(10).len(), 5);
    let row = store.shard();
    assert_eq!(row.confirmed[&region(HERE)].applied.of(Origin(20)), 9);
    assert_eq!(row.confirmed[&region(THERE)].applied.of(Origin(10)), 4);
}

fn remote_runs(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    for n in 1..=6 {
        there.append(T0 + n, "bob", n);
    }
    let gap = |have, first| Outcome::Applied {
        through: have,
        stopped: Some(Stop::Gap { have, first }),
    };
    assert_eq!(store.apply(&there, 2, 3), gap(0, 2));
    assert_eq!(store.apply(&there, 1, 3), applied(3));
    assert_eq!(store.apply(&there, 5, 6), gap(3, 5));
    // Overlapping and doubled runs apply only what is new.
    assert_eq!(store.apply(&there, 2, 5), applied(5));
    assert_eq!(store.apply(&there, 1, 4), applied(5));
    assert_eq!(store.coords("bob").len(), 4);
    // Other bytes before the run: diverged, nothing applied (R3).
    let mut other = there.clone();
    other.ops.truncate(4);
    other.append(T0 + 50, "bob", 50);
    other.append(T0 + 51, "bob", 51);
    let stopped = store.apply(&other, 6, 6);
    let (ours, theirs) = (there.hash(5), other.hash(5));
    let diverged = Outcome::Applied {
        through: 5,
        stopped: Some(Stop::Diverged { at: 5, ours, theirs }),
    };
    assert_eq!(stopped, diverged);
    assert_eq!(store.apply(&other, 3, 6), diverged);
    assert_eq!(store.apply(&there, 6, 7), applied(7));
    let log: Vec<_> = store.log(20).into_iter().map(|entry| entry.op).collect();
    assert_eq!(log, there.ops);
    // A second start, or a first operation that is none, is out of place.
    let start = Op::Start {
        region: region(THERE),
        previous: None,
    };
    there.push(T0 + 60, &start);
    let stopped = Outcome::Applied {
        through: 7,
        stopped: Some(Stop::OutOfPlace(8)),
    };
    assert_eq!(store.apply(&there, 8, 8), stopped);
    let mut headless = Remote::new(THERE, 30, None, T0);
    headless.ops.clear();
    headless.append(T0, "bob", 90);
    let stopped = Outcome::Applied {
        through: 0,
        stopped: Some(Stop::OutOfPlace(1)),
    };
    assert_eq!(store.apply(&headless, 1, 1), stopped);
    // Our own clock follows theirs (R7).
    let last = store.shard().hlc;
    assert!(last >= there.hlc || last >= store.log(20)[6].op.hlc());
    store.appended("bob", 99);
    assert!(store.shard().hlc > last);
}

fn remote_starts(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut first = Remote::new(THERE, 30, None, T0);
    first.append(T0, "bob", 1);
    let second = Remote::new(THERE, 20, Some(at(30, 2)), T0 + 5);
    let stopped = Outcome::Applied {
        through: 0,
        stopped: Some(Stop::StartsAfter(at(30, 2))),
    };
    assert_eq!(store.apply(&second, 1, 1), stopped);
    assert_eq!(store.apply(&first, 1, 1), applied(1));
    assert_eq!(store.apply(&second, 1, 1), stopped);
    assert_eq!(store.apply(&first, 2, 2), applied(2));
    assert_eq!(store.apply(&second, 1, 1), applied(1));
}

fn siblings(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 5, None, T0);
    store.register("bob", "phone", Vector::new());
    let ours = store.appended("bob", 1);
    let theirs = there.append(T0, "bob", 1);
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    let inbox = store.inbox("bob");
    let pairs: Vec<_> = inbox
        .iter()
        .map(|entry| (entry.at, entry.siblings.clone()))
        .collect();
    assert!(pairs.contains(&(ours, vec![theirs])));
    assert!(pairs.contains(&(theirs, vec![ours])));
    // The original coordinates come first, though the other origin has the lower number.
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![ours, theirs]));
    // A cursor over one of them consumes both.
    store.cursor("bob", "phone", vector(&[(5, theirs.seq)]));
    let row = store.user("bob");
    assert_eq!(row.unread, 0);
    assert_eq!(row.consumed, vector(&[(5, theirs.seq), (10, ours.seq)]));
    store.confirm();
    there.confirm(T0, vector(&[(5, 2), (10, 9)]));
    store.apply(&there, 3, 3);
    assert_eq!(store.trim(), done());
    assert_eq!(store.coords("bob"), []);
    assert!(store.user("bob").siblings.is_empty());

    // What was consumed here before its copy arrives is consumed as it arrives; and the other way round.
    let ours = store.appended("bob", 2);
    store.cursor("bob", "phone", vector(&[(10, ours.seq)]));
    there.append(T0, "bob", 2);
    assert_eq!(store.apply(&there, 4, 4), applied(4));
    assert_eq!(store.user("bob").unread, 0);
    let ours = store.appended("bob", 3);
    there.cursor(T0, "bob", "phone", vector(&[(5, 6)]));
    there.append(T0, "bob", 3);
    assert_eq!(store.apply(&there, 5, 6), applied(6));
    assert_eq!(store.user("bob").unread, 0);
    assert_eq!(store.user("bob").consumed.of(Origin(10)), ours.seq);
    // Another body under the same id is another message.
    let mut envelope = envelope("bob", "alice", id(T0, 3));
    envelope.kind = 2;
    let odd = there.push(T0, &Op::Append(envelope, Bytes::from_static(b"message 3")));
    assert_eq!(store.apply(&there, 7, 7), applied(7));
    let inbox = store.inbox("bob");
    let entry = inbox.iter().find(|entry| entry.at == odd).unwrap();
    assert!(entry.siblings.is_empty());
    assert_eq!(store.user("bob").unread, 1);
}

fn delivery_order(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 5, None, T0);
    store.now = T0 + 100;
    store.appended("bob", 1);
    store.now = T0 + 300;
    store.appended("bob", 2);
    there.append(T0 + 50, "bob", 11);
    there.append(T0 + 200, "bob", 12);
    there.append(T0 + 250, "bob", 13);
    there.append(T0 + 400, "bob", 14);
    store.apply(&there, 1, 5);
    let order: Vec<_> = store.inbox("bob").iter().map(|entry| entry.op.body()).collect();
    assert_eq!(
        order,
        [
            "message 11",
            "message 1",
            "message 12",
            "message 13",
            "message 2",
            "message 14"
        ]
    );
    let after = vector(&[(10, 2), (5, 3)]);
    let page = store.inbox_page("bob", after, 10, usize::MAX);
    let order: Vec<_> = page.entries.iter().map(|entry| entry.op.body()).collect();
    assert_eq!(order, ["message 13", "message 2", "message 14"]);
    assert!(page.end);
}

fn pages(harness: &mut dyn Harness) {
    let mut store = here(harness);
    for n in 1..=5 {
        store.appended("bob", n);
    }
    let len = store.inbox("bob")[0].op.len();
    let mut inbox = |items, bytes| {
        let page = store.inbox_page("bob", Vector::new(), items, bytes);
        (page.entries.len(), page.end)
    };
    assert_eq!(inbox(4, usize::MAX), (4, false));
    assert_eq!(inbox(5, usize::MAX), (5, true));
    assert_eq!(inbox(6, usize::MAX), (5, true));
    assert_eq!(inbox(5, 2 * len), (2, false));
    assert_eq!(inbox(5, 2 * len - 1), (1, false));
    assert_eq!(inbox(5, 0), (1, false));
    assert_eq!(inbox(0, 0), (1, false));
    let mut log = |after, items, bytes| match store.log_page(10, after, items, bytes) {
        LogPage::Run { entries, end, .. } => (entries.len(), end),
        LogPage::Trimmed { .. } => panic!("nothing is trimmed"),
    };
    assert_eq!(log(1, 4, usize::MAX), (4, false));
    assert_eq!(log(1, 5, usize::MAX), (5, true));
    assert_eq!(log(1, 5, 2 * len), (2, false));
    assert_eq!(log(1, 5, 0), (1, false));
    assert_eq!(log(6, 5, 0), (0, true));
    assert_eq!(log(7, 5, 0), (0, true));
}

fn reopen(harness: &mut dyn Harness) {
    let mut store = here(harness);
    store.register("bob", "phone", Vector::new());
    let one = store.appended("bob", 1);
    let two = store.appended("bob", 2);
    store.cursor("bob", "phone", vector(&[(10, one.seq)]));
    let (shard, bob) = (store.shard(), store.user("bob"));
    let (inbox, log) = (store.inbox("bob"), store.log(10));

    let engine = harness.reopen(store.engine, identity(8, &[HERE]));
    let mut store = Store {
        engine,
        epoch: store.epoch,
        now: store.now,
    };
    assert_eq!(store.engine.identity().origin, Origin(8));
    assert_eq!(store.shard(), shard);
    assert_eq!(store.user("bob"), bob);
    assert_eq!(store.inbox("bob"), inbox);
    assert_eq!(store.log(10), log);
    // The new origin starts with the first own operation, tied to the one before (R1); a duplicate logs nothing.
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![one]));
    assert!(store.log(8).is_empty());
    assert_eq!(store.appended("bob", 3), at(8, 2));
    let start = store.log(8)[0].op.decode();
    let previous = Some(at(10, shard.logs[&Origin(10)].seq));
    let region = region(HERE);
    assert_eq!(start, Ok(Op::Start { region, previous }));
    assert!(store.log(8)[0].op.hlc() > log.last().unwrap().op.hlc());
    assert_eq!(store.coords("bob"), [one, two, at(8, 2)]);
    // The new origin's messages are consumed and removed beside the old one's.
    store.cursor("bob", "phone", vector(&[(10, two.seq), (8, 2)]));
    store.confirm();
    assert_eq!(store.trim(), done());
    assert_eq!(store.coords("bob"), []);

    let engine = harness.reopen(store.engine, identity(9, &[HERE]));
    let mut store = Store {
        engine,
        epoch: store.epoch,
        now: store.now,
    };
    assert_eq!(store.coords("bob"), []);
    assert_eq!(store.append("bob", 3), Outcome::Duplicate(vec![at(8, 2)]));
}

fn dedup_days(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0 + 20 * DAY_MS);
    let day = (T0 / DAY_MS) as u32;
    let first = store.appended("bob", 1);
    store.now = (u64::from(day) + 1) * DAY_MS + ID_WINDOW_MS + TIME_MARGIN_MS;
    // The days before are old enough, and held up by what is not stable.
    assert_eq!(store.drop_dedup(day), Outcome::Done { more: true });
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![first]));
    store.now += 1;
    // Old enough, but the other region may not have it yet.
    assert_eq!(store.drop_dedup(day), Outcome::Done { more: true });
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![first]));
    store.confirm();
    there.confirm(T0, vector(&[(10, first.seq)])); // its clock goes on from the start
    store.apply(&there, 1, 2);
    let another = store.append_op("bob", id(store.now, 2), "today");
    let Outcome::Appended(today) = store.one(another.clone()) else {
        panic!("not accepted");
    };
    // What is not stable now was logged after those ids had left the window.
    assert_eq!(store.drop_dedup(day), done());
    assert!(matches!(
        store.append("bob", 1),
        Outcome::Refused(Refusal::IdTooOld { .. })
    ));
    assert_eq!(store.one(another), Outcome::Duplicate(vec![today]));
}

fn long_backlog(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let count = CONSUME_STEP as u64 * 2 + 10;
    store.register("bob", "phone", Vector::new());
    for chunk in 0..count / 100 + 1 {
        let ids = (chunk * 100..count.min(chunk * 100 + 100)).map(|n| id(T0, n));
        let ops = ids.map(|id| store.append_op("bob", id, "x")).collect();
        store.commit(ops);
    }
    store.confirm();
    let mut rounds = 0;
    while store.trim() == (Outcome::Done { more: true }) {
        rounds += 1;
        assert!(rounds <= count / TRIM_READS + 1);
    }
    assert_eq!(store.coords("bob").len() as u64, count);
    let mut outcome = store.cursor("bob", "phone", vector(&[(10, 1_000_000)]));
    rounds = 0;
    while outcome == (Outcome::Done { more: true }) {
        outcome = store.remove("bob");
        rounds += 1;
        assert!(rounds < 10);
    }
    assert_eq!(outcome, done());
    assert_eq!(store.coords("bob"), []);
    assert_eq!(store.user("bob").unread, 0);
}

fn long_backlog_remote(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    let count = CONSUME_STEP as u64 * 3 + 10;
    store.register("bob", "phone", Vector::new());
    for n in 0..count {
        there.append(T0, "bob", n);
    }
    let last = there.ops.len() as Seq;
    for first in (1..=last).step_by(500) {
        let to = last.min(first + 499);
        assert_eq!(store.apply(&there, first, to), applied(to));
    }
    // Consumed there, in one stroke.
    there.cursor(T0, "bob", "phone", vector(&[(20, last)]));
    assert_eq!(store.apply(&there, last + 1, last + 1), applied(last + 1));
    let mut rounds = 0;
    while store.engine.idle().unwrap() {
        rounds += 1;
        assert!(rounds < 100_000);
    }
    let row = store.user("bob");
    assert_eq!((row.unread, row.consumed.of(Origin(20))), (0, last));
}
