//! Cases of what goes by time: messages (R18), devices (R19), and not too early (R20).

use bytes::Bytes;

use super::Harness;
use super::cases::Case;
use super::kit::{HERE, Remote, S, Store, T0, THERE, at, device, done, envelope, id, identity, user, vector};
use crate::core::commit::{DAY_MS, Outcome, StoreOp};
use crate::core::expire::{EXPIRE_STEP, EXPIRY_MARGIN_MS, HoleRow, Looked, MAX_HOLES};
use crate::core::ids::{Coord, Origin, Seq};
use crate::core::op::{DeviceChange, Envelope, Op};
use crate::core::snapshot::{SnapshotAt, SnapshotPage};
use crate::core::state::{DeviceRow, StoreIdentity};
use crate::core::storage::{InboxHole, UserTimes};
use crate::core::vector::Vector;
use crate::core::wire::HoleReason;
use crate::store::engine::{Read, ReadReply};

pub(super) mod devices;

pub(super) const ALL: &[(&str, Case)] = &[
    ("a message that is due becomes a hole in its place", in_place),
    ("neighbours become one hole", neighbours),
    ("the log keeps what it needs, whatever is due", kept_for_the_log),
    ("a hole keeps the copies of what it replaced", copies),
    ("what is due is found, also after a start", found),
    ("an inbox is looked through in steps", steps),
    ("a row has so many holes", many_holes),
    ("a snapshot brings holes", snapshot_of_holes),
    ("a snapshot brings a hole in its place", snapshot_in_place),
    ("what is gone is in a hole or in a gap", apart),
];

/// When messages of these cases expire, and from when on they are due.
const EXPIRES: u64 = T0 + 60 * 60 * 1000;
const DUE: u64 = EXPIRES + EXPIRY_MARGIN_MS;
/// Devices expire after this.
const AFTER: u64 = 30 * DAY_MS;

fn here(harness: &mut dyn Harness) -> Store {
    Store::own(harness.create(identity(10, &[HERE])))
}

fn both(harness: &mut dyn Harness) -> Store {
    Store::own(harness.create(identity(10, &[HERE, THERE])))
}

fn reopened(harness: &mut dyn Harness, store: Store, identity: StoreIdentity) -> Store {
    Store {
        engine: harness.reopen(store.engine, identity),
        epoch: store.epoch,
        now: store.now,
    }
}

fn expiring(n: u64, expires_ms: u64) -> Envelope {
    Envelope {
        expires_ms,
        ..envelope("bob", "alice", id(T0, n))
    }
}

impl Store {
    /// A message to bob with number `n`, which expires then.
    fn timed(&mut self, n: u64, expires_ms: u64) -> Coord {
        let op = StoreOp::Append {
            shard: S,
            epoch: self.epoch,
            envelope: Box::new(expiring(n, expires_ms)),
            body: Bytes::from(format!("message {n}")),
            seen_ms: 0,
            known_only: false,
        };
        match self.one(op) {
            Outcome::Appended(at) => at,
            other => panic!("{other:?}"),
        }
    }

    /// Confirms and trims what that makes stable, in a region that is alone.
    fn rest(&mut self) {
        self.confirm();
        while self.trim() != done() {}
    }

    fn expire(&mut self, looked: Option<Looked>) -> Option<Looked> {
        let op = StoreOp::Expire {
            shard: S,
            epoch: self.epoch,
            user: user("bob"),
            looked,
        };
        match self.one(op) {
            Outcome::Expired { next } => next,
            other => panic!("{other:?}"),
        }
    }

    fn expire_all(&mut self) {
        let mut next = self.expire(None);
        while next.is_some() {
            next = self.expire(next);
        }
    }

    fn expire_device(&mut self, with: &str) -> Outcome {
        self.one(StoreOp::ExpireDevice {
            shard: S,
            epoch: self.epoch,
            user: user("bob"),
            device: device(with),
        })
    }

    fn holes(&mut self) -> Vec<InboxHole> {
        self.inbox_page("bob", Vector::new(), 1, 1).holes
    }

    /// The holes, in short: from, to, count.
    fn short(&mut self) -> Vec<(Coord, Seq, u64)> {
        let holes = self.holes().into_iter();
        holes.map(|hole| (hole.at, hole.row.to, hole.row.count)).collect()
    }

    fn device(&mut self, with: &str) -> DeviceRow {
        self.user("bob").devices[&device(with)].clone()
    }

    fn times(&mut self) -> Vec<UserTimes> {
        let read = Read::Users {
            shard: S,
            after: None,
            max_items: 10,
        };
        match self.engine.read(&read).unwrap() {
            ReadReply::Users(users) => users,
            other => panic!("{other:?}"),
        }
    }

    /// All pages of a snapshot, merged by another store.
    fn snapshot_into(&mut self, other: &mut Store) {
        let (mut cut, mut next) = (None, Some(SnapshotAt::Start));
        while let Some(after) = next {
            let read = Read::Snapshot {
                shard: S,
                cut: cut.take(),
                after,
                max_items: 2,
                max_bytes: 200,
            };
            let ReadReply::Snapshot(of, page) = self.engine.read(&read).unwrap() else {
                panic!("no snapshot");
            };
            next = page.next.clone();
            let page: std::sync::Arc<SnapshotPage> = (*page).into();
            let op = StoreOp::Merge {
                shard: S,
                epoch: other.epoch,
                cut: of.clone(),
                page,
            };
            while other.one(op.clone()) != done() {}
            cut = Some(of);
        }
    }
}

fn change(change: DeviceChange) -> Op {
    Op::Device {
        user: user("bob"),
        device: device("phone"),
        change,
    }
}

fn in_place(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let first = store.appended("bob", 1);
    let timed = store.timed(2, EXPIRES);
    let last = store.appended("bob", 3);
    store.rest();
    store.now = DUE - 1;
    store.expire_all();
    assert_eq!(store.coords("bob"), [first, timed, last]);
    store.now = DUE;
    store.expire_all();
    assert_eq!(store.coords("bob"), [first, last]);
    let row = HoleRow {
        to: timed.seq,
        count: 1,
        reason: HoleReason::Expired,
    };
    let hole = InboxHole {
        at: timed,
        row,
        siblings: Vec::new(),
    };
    assert_eq!(store.holes(), std::slice::from_ref(&hole));
    // It counts no more, and nothing is left that expires.
    let kept: u64 = store.inbox("bob").iter().map(|entry| entry.op.len() as u64).sum();
    let row = store.user("bob");
    assert_eq!((row.unread, row.unread_bytes, row.timed.from_ms), (2, kept, 0));
    while store.engine.idle().unwrap() {}
    let mut store = reopened(harness, store, identity(11, &[HERE]));
    assert_eq!(
        (store.coords("bob"), store.holes()),
        (vec![first, last], vec![hole])
    );
    // It is consumed like a message: what lies behind it goes no sooner.
    store.register("bob", "phone", Vector::new());
    store.cursor("bob", "phone", vector(&[(10, first.seq)]));
    assert_eq!((store.coords("bob"), store.short().len()), (vec![last], 1));
    store.cursor("bob", "phone", vector(&[(10, timed.seq)]));
    assert_eq!((store.coords("bob"), store.short().len()), (vec![last], 0));
    assert_eq!(store.user("bob").trimmed, vector(&[(10, timed.seq)]));
    store.cursor("bob", "phone", vector(&[(10, last.seq)]));
    assert_eq!(store.user("bob").unread, 0);
}

fn neighbours(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let late = EXPIRES + 1000;
    let times = [EXPIRES, late, EXPIRES, 0, EXPIRES, late];
    let at: Vec<Coord> = times.iter().zip(1..).map(|(ms, n)| store.timed(n, *ms)).collect();
    store.rest();
    store.now = DUE;
    store.expire_all();
    let hole = |from: usize, to: usize, count| (at[from], at[to].seq, count);
    assert_eq!(store.short(), [hole(0, 0, 1), hole(2, 2, 1), hole(4, 4, 1)]);
    while store.engine.idle().unwrap() {}
    store.now = DUE + 1000;
    store.expire_all();
    assert_eq!(store.short(), [hole(0, 2, 3), hole(4, 5, 2)]);
    assert_eq!(store.coords("bob"), [at[3]]);
    // What registers later is told of them, and of nothing twice.
    assert_eq!(store.user("bob").unread, 1);
}

fn kept_for_the_log(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    let timed = store.timed(1, EXPIRES);
    let log = store.log(10);
    store.now = DUE;
    store.confirm();
    store.trim();
    store.expire_all();
    // The other region was cut off: it gets the same bytes as ever.
    assert_eq!(store.coords("bob"), [timed]);
    assert_eq!(store.log(10)[..log.len()], log);
    // It is looked at again later.
    assert_eq!(store.user("bob").timed.from_ms, store.now);
    there.confirm(store.now, vector(&[(10, timed.seq)]));
    store.apply(&there, 1, 2);
    store.trim();
    store.expire_all();
    assert_eq!(store.short(), [(timed, timed.seq, 1)]);
}

fn copies(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    let (first, second) = (store.timed(1, EXPIRES), store.timed(2, EXPIRES));
    let body = |n| Bytes::from(format!("message {n}"));
    let copy = there.push(T0, &Op::Append(expiring(1, 0), body(1)));
    store.confirm();
    there.confirm(T0, vector(&[(10, 100), (20, 2)]));
    store.apply(&there, 1, 3);
    store.trim();
    store.now = DUE;
    store.expire_all();
    assert_eq!(store.short(), [(first, second.seq, 2)]);
    assert_eq!(store.holes()[0].siblings, [(first.seq, vec![copy])]);
    // Another copy comes after that.
    let late = there.push(T0, &Op::Append(expiring(2, 0), body(2)));
    there.confirm(T0, vector(&[(10, 100), (20, late.seq)]));
    store.apply(&there, 4, 5);
    assert_eq!(store.holes()[0].siblings.len(), 2);
    // The device consumed the copies elsewhere: it needs not be told.
    store.cursor("bob", "phone", vector(&[(20, copy.seq)]));
    assert_eq!(store.short().len(), 1);
    store.cursor("bob", "phone", vector(&[(20, late.seq)]));
    assert_eq!(store.user("bob").consumed.of(Origin(10)), second.seq);
    store.remove("bob");
    assert_eq!(store.short(), []);
    assert_eq!(store.user("bob").trimmed.of(Origin(10)), second.seq);
}

fn found(harness: &mut dyn Harness) {
    let mut store = here(harness);
    assert_eq!(store.times(), []);
    store.timed(1, EXPIRES + 5);
    store.timed(2, EXPIRES);
    store.timed(3, 0);
    store.register("bob", "phone", Vector::new());
    store.appended("carol", 4);
    store.rest();
    let check = |store: &mut Store| {
        let times = store.times();
        let names: Vec<&str> = times.iter().map(|times| times.user.as_str()).collect();
        assert_eq!(names, ["bob", "carol"]);
        assert_eq!((times[0].expires_ms, times[1].expires_ms), (EXPIRES, 0));
        let [(phone, life)] = &times[0].devices[..] else {
            panic!("{times:?}");
        };
        assert_eq!((phone, life.expiry), (&device("phone"), None));
        assert!(life.seen_ms >= T0);
    };
    check(&mut store);
    while store.engine.idle().unwrap() {}
    let mut store = reopened(harness, store, identity(11, &[HERE]));
    check(&mut store);
    store.now = DUE;
    store.expire_all();
    assert_eq!(store.times()[0].expires_ms, EXPIRES + 5);
    // All was consumed: nothing is left that expires.
    store.cursor("bob", "phone", vector(&[(10, 100)]));
    assert_eq!(store.coords("bob"), []);
    assert_eq!(store.times()[0].expires_ms, 0);
}

fn steps(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let count = 2 * EXPIRE_STEP as u64 + 10;
    for chunk in 0..count.div_ceil(500) {
        let numbers = (chunk * 500..(chunk + 1) * 500).take_while(|n| *n < count);
        let ops = numbers.map(|n| StoreOp::Append {
            shard: S,
            epoch: store.epoch,
            envelope: Box::new(expiring(n, EXPIRES)),
            body: Bytes::from_static(b"x"),
            seen_ms: 0,
            known_only: false,
        });
        let ops = ops.collect();
        store.commit(ops);
    }
    store.rest();
    while store.engine.idle().unwrap() {}
    let mut store = reopened(harness, store, identity(9, &[HERE]));
    store.now = DUE;
    let mut next = store.expire(None);
    assert!(next.is_some(), "a step is not all");
    assert!(store.coords("bob").len() as u64 >= count - EXPIRE_STEP as u64);
    // What comes meanwhile is not forgotten, wherever it stands.
    let late = store.timed(count, DUE);
    store.rest();
    while next.is_some() {
        next = store.expire(next);
    }
    assert_eq!(store.coords("bob"), [late]);
    let timed = store.user("bob").timed;
    assert_eq!((timed.from_ms, timed.new_ms), (DUE, 0));
    let holes = store.short();
    let [(from, to, told)] = holes[..] else {
        panic!("{holes:?}");
    };
    assert_eq!((told, to - from.seq + 1), (count, count));
    assert_eq!(store.user("bob").unread, 1);
    // All of it goes at once.
    store.register("bob", "phone", vector(&[(10, to)]));
    assert_eq!(store.short(), []);
}

fn many_holes(harness: &mut dyn Harness) {
    let mut store = here(harness);
    let count = 2 * (MAX_HOLES as u64 + 3);
    for chunk in 0..count.div_ceil(500) {
        let numbers = (chunk * 500..(chunk + 1) * 500).take_while(|n| *n < count);
        let ops = numbers.map(|n| StoreOp::Append {
            shard: S,
            epoch: store.epoch,
            envelope: Box::new(expiring(n, if n % 2 == 0 { EXPIRES } else { 0 })),
            body: Bytes::from_static(b"x"),
            seen_ms: 0,
            known_only: false,
        });
        let ops = ops.collect();
        store.commit(ops);
    }
    store.rest();
    store.now = DUE;
    store.expire_all();
    assert_eq!(store.short().len(), MAX_HOLES);
    assert_eq!(store.coords("bob").len() as u64, count - MAX_HOLES as u64);
    // What did not find room is not forgotten.
    assert_eq!(store.user("bob").timed.from_ms, store.now);
    let tenth = store.coords("bob")[9];
    store.register("bob", "phone", vector(&[(10, tenth.seq)]));
    store.expire_all();
    let kept = store.inbox("bob");
    assert!(kept.iter().all(|entry| entry.op.expires_ms() == 0));
    assert_eq!(store.user("bob").timed.from_ms, 0);
}

/// A store that joins, and recovers therefore.
fn joining(harness: &mut dyn Harness) -> Store {
    let identity = StoreIdentity {
        joining: true,
        ..identity(30, &[HERE, THERE])
    };
    Store::own(harness.create(identity))
}

fn open(store: &mut Store) {
    let (shard, epoch) = (S, store.epoch);
    let recovering = false;
    let op = StoreOp::Recover {
        shard,
        epoch,
        recovering,
    };
    assert_eq!(store.one(op), done());
}

fn snapshot_of_holes(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    let times = [EXPIRES, 0, EXPIRES, EXPIRES, 0, EXPIRES];
    let at: Vec<Coord> = times.iter().zip(1..).map(|(ms, n)| store.timed(n, *ms)).collect();
    let copy = there.push(T0, &Op::Append(expiring(4, 0), Bytes::from_static(b"message 4")));
    store.apply(&there, 1, 2);
    store.confirm();
    there.confirm(T0, vector(&[(10, 100), (20, copy.seq)]));
    store.apply(&there, 3, 3);
    store.trim();
    store.now = DUE;
    store.expire_all();
    let (kept, holes) = (store.coords("bob"), store.holes());
    assert_eq!(kept.iter().filter(|kept| kept.origin == Origin(10)).count(), 2);
    assert_eq!(holes.len(), 3);
    assert_eq!(holes[1].siblings, [(at[3].seq, vec![copy])]);
    let mut other = joining(harness);
    other.now = DUE;
    store.snapshot_into(&mut other);
    assert_eq!(
        (other.coords("bob"), other.holes()),
        (kept.clone(), holes.clone())
    );
    // Another one changes nothing.
    store.snapshot_into(&mut other);
    assert_eq!((other.coords("bob"), other.holes()), (kept, holes));
    open(&mut other);
    let (ours, theirs) = (other.user("bob"), store.user("bob"));
    assert_eq!(
        (ours.unread, ours.unread_bytes),
        (theirs.unread, theirs.unread_bytes)
    );
    other.register("bob", "phone", vector(&[(10, 100), (20, 100)]));
    assert_eq!((other.coords("bob"), other.short()), (Vec::new(), Vec::new()));
}

/// Who takes the snapshot must not take the hole, of which the phone read a copy, for the first that waits there.
fn snapshot_in_place(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0 - 1000);
    there.append(T0 - 1000, "bob", 9);
    let mut third = Remote::new("ap-south", 30, None, T0);
    let kept = store.timed(1, 0);
    store.timed(2, EXPIRES);
    let copy = third.push(T0, &Op::Append(expiring(2, 0), Bytes::from_static(b"message 2")));
    store.apply(&there, 1, 2);
    store.apply(&third, 1, 2);
    store.cursor("bob", "phone", vector(&[(30, copy.seq)]));
    store.confirm();
    there.confirm(T0, vector(&[(10, 100), (20, 2), (30, copy.seq)]));
    store.apply(&there, 3, 3);
    store.trim();
    store.now = DUE;
    store.expire_all();
    let waits = store.coords("bob");
    assert_eq!(
        (waits.as_slice(), store.short().len()),
        (&[at(20, 2), kept][..], 1)
    );
    let mut other = joining(harness);
    other.now = DUE;
    store.snapshot_into(&mut other);
    assert_eq!((other.coords("bob"), other.short()), (waits, store.short()));
}

/// Pages of regions that removed more, or less, than another had when it told of a hole.
fn apart(harness: &mut dyn Harness) {
    let mut provider = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    let at: Vec<Coord> = (1..=6).map(|n| provider.timed(n, EXPIRES)).collect();
    there.confirm(T0, vector(&[(10, at[5].seq)]));
    provider.apply(&there, 1, 2);
    provider.confirm();
    provider.trim();
    provider.now = DUE;
    provider.expire_all();
    let hole = |from: usize, to: usize, count| (at[from], at[to].seq, count);
    assert_eq!(provider.short(), [hole(0, 5, 6)]);
    let read = Read::Snapshot {
        shard: S,
        cut: None,
        after: SnapshotAt::Users,
        max_items: 10,
        max_bytes: 10_000,
    };
    let ReadReply::Snapshot(cut, whole) = provider.engine.read(&read).unwrap() else {
        panic!("no snapshot");
    };
    let mut other = joining(harness);
    other.now = DUE;
    let merge = |other: &mut Store, trimmed: Option<usize>, (from, to, count): (usize, usize, u64)| {
        let mut page = (*whole).clone();
        // More would come.
        page.next = Some(SnapshotAt::User(user("bob")));
        let told = &mut page.users[0];
        assert_eq!(told.user, user("bob"));
        told.trimmed = trimmed.map_or(Vector::new(), |to| vector(&[(10, at[to].seq)]));
        let row = HoleRow {
            to: at[to].seq,
            count,
            reason: HoleReason::Expired,
        };
        told.holes = [((Origin(10), at[from].seq), row)].into();
        let op = StoreOp::Merge {
            shard: S,
            epoch: other.epoch,
            cut: cut.clone(),
            page: std::sync::Arc::new(page),
        };
        while other.one(op.clone()) != done() {}
    };
    let gaps = |other: &mut Store| -> Vec<(Seq, Seq)> {
        let gaps = other.user("bob").gaps.into_iter();
        gaps.map(|((_, from), to)| (from, to)).collect()
    };
    merge(&mut other, None, (0, 5, 6));
    assert_eq!((other.short(), gaps(&mut other)), (vec![hole(0, 5, 6)], vec![]));
    // It removed half of them one by one.
    merge(&mut other, Some(2), (3, 5, 3));
    let half = (vec![hole(3, 5, 3)], vec![(1, at[2].seq)]);
    assert_eq!((other.short(), gaps(&mut other)), half);
    // What was removed of a hole is not in it any more, and how many are left it does not say.
    merge(&mut other, Some(3), (0, 5, 6));
    let rest = (vec![hole(4, 5, 0)], vec![(1, at[3].seq)]);
    assert_eq!((other.short(), gaps(&mut other)), rest);
    merge(&mut other, Some(2), (3, 5, 3));
    assert_eq!((other.short(), gaps(&mut other)), half);
    // It replaced only the later ones.
    merge(&mut other, Some(2), (4, 5, 2));
    assert_eq!((other.short(), gaps(&mut other)), half);
    // Nothing is left of the hole, and more is gone behind it.
    merge(&mut other, Some(4), (5, 5, 1));
    let last = (vec![hole(5, 5, 1)], vec![(1, at[4].seq)]);
    assert_eq!((other.short(), gaps(&mut other)), last);
    provider.snapshot_into(&mut other);
    assert_eq!(other.short(), [hole(0, 5, 6)]);
    open(&mut other);
    other.register("bob", "phone", vector(&[(10, 100)]));
    let row = other.user("bob");
    assert_eq!((row.timed.holes.len(), row.gaps.len()), (0, 0));
    assert_eq!(row.trimmed.of(Origin(10)), at[5].seq);
}
