//! The cases of recovery (R4) and of snapshots (R11), one promise each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Harness;
use super::cases::Case;
use super::kit::{
    HERE, Remote, S, Store, T0, THERE, applied, at, device, done, id, identity, region, user, vector,
};
use crate::core::commit::{Outcome, Refusal, StoreOp, TRIM_STEP};
use crate::core::ids::{Coord, Epoch, Origin, Seq};
use crate::core::op::digest;
use crate::core::snapshot::{Cut, CutLog, SnapshotAt, SnapshotPage, UserPage};
use crate::core::state::{DedupKey, DeviceRow, Recovery, StoreIdentity, UserRow};
use crate::core::time::Hlc;
use crate::core::vector::Vector;
use crate::store::engine::{Read, ReadReply};

pub(super) const ALL: &[(&str, Case)] = &[
    ("a shard that recovers says nothing of its own", says_nothing),
    ("recovering survives a crash", survives),
    ("a joining store recovers first", joining),
    ("only a shard that recovers merges", merges_only_then),
    ("pages of a snapshot end at their limits", pages_end),
    ("a snapshot holds nothing above its cut", nothing_above),
    ("a snapshot is merged, across crashes", merged),
    ("a message that comes again is known", known_again),
    ("what is gone behind what waits is a gap", gap),
    ("a page that comes again changes nothing", again),
    (
        "what a page says is gone has no copies any more",
        gone_with_copies,
    ),
    (
        "a device that came later is told what was gone before",
        came_later,
    ),
    (
        "what waits for a device that was forgotten stays",
        forgotten_device,
    ),
    ("a copy learns of what the snapshot knows", learned_copy),
    ("own logs below the cut go in steps", trimmed_in_steps),
];

fn joined(origin: u64) -> StoreIdentity {
    StoreIdentity {
        joining: true,
        ..identity(origin, &[HERE, THERE])
    }
}

fn recover(store: &mut Store, recovering: bool) -> Outcome {
    let epoch = store.epoch;
    store.one(StoreOp::Recover {
        shard: S,
        epoch,
        recovering,
    })
}

fn merge(store: &mut Store, cut: &Arc<Cut>, page: &SnapshotPage) -> Outcome {
    let epoch = store.epoch;
    store.one(StoreOp::Merge {
        shard: S,
        epoch,
        cut: cut.clone(),
        page: Arc::new(page.clone()),
    })
}

/// A crash; the store goes on under another origin.
fn crash(harness: &mut dyn Harness, store: Store, identity: StoreIdentity) -> Store {
    let now = store.now;
    let mut store = Store::own(harness.reopen(store.engine, identity));
    store.now = now;
    store
}

fn page(
    store: &mut Store,
    cut: Option<Arc<Cut>>,
    after: SnapshotAt,
    items: usize,
    bytes: usize,
) -> (Arc<Cut>, SnapshotPage) {
    let read = Read::Snapshot {
        shard: S,
        cut,
        after,
        max_items: items,
        max_bytes: bytes,
    };
    match store.engine.read(&read).unwrap() {
        ReadReply::Snapshot(cut, page) => (cut, *page),
        other => panic!("{other:?}"),
    }
}

/// A cut that goes to here in one log.
fn cut_of(name: &str, origin: u64, seq: Seq) -> Arc<Cut> {
    let log = CutLog {
        region: region(name),
        seq,
        hash: 1,
        previous: None,
        hlc: Hlc::default(),
    };
    Arc::new(Cut {
        logs: BTreeMap::from([(Origin(origin), log)]),
        ..Cut::default()
    })
}

/// A whole snapshot in pages of this size.
fn pages(store: &mut Store, items: usize, bytes: usize) -> (Arc<Cut>, Vec<SnapshotPage>) {
    let (cut, first) = page(store, None, SnapshotAt::Start, items, bytes);
    let mut out = vec![first];
    while let Some(next) = out.last().and_then(|page| page.next.clone()) {
        let (same, page) = page(store, Some(cut.clone()), next, items, bytes);
        assert_eq!(same, cut);
        out.push(page);
        assert!(out.len() < 1_000, "a snapshot without an end");
    }
    (cut, out)
}

/// The messages of all pages, in their order.
fn entries(pages: &[SnapshotPage]) -> Vec<Coord> {
    let users = pages.iter().flat_map(|page| &page.users);
    users
        .flat_map(|user| user.entries.iter().map(|entry| entry.at))
        .collect()
}

/// The store of the other region, whose log begins above `bob`'s first messages: bob's phone consumed one and two, three
/// waits, carol's wait all, and above the cut stands one more for each.
fn provider(harness: &mut dyn Harness) -> Store {
    let identity = StoreIdentity {
        region: region(THERE),
        ..identity(20, &[HERE, THERE])
    };
    let mut store = Store::own(harness.create(identity));
    let mut here = Remote::new(HERE, 10, None, T0);
    here.append(T0, "carol", 3);
    store.register("bob", "phone", Vector::new());
    for n in 1..=3 {
        store.appended("bob", n);
    }
    store.appended("carol", 4);
    store.cursor("bob", "phone", vector(&[(20, 4)]));
    assert_eq!(store.apply(&here, 1, 2), applied(2));
    // Its own copy of what carol has from here.
    assert_eq!(store.append("carol", 3), Outcome::Duplicate(vec![at(10, 2)]));
    store.confirm();
    here.confirm(T0, vector(&[(10, 3), (20, 7)]));
    assert_eq!(store.apply(&here, 3, 3), applied(3));
    assert_eq!(store.trim(), done());
    store.appended("bob", 5);
    store.appended("carol", 6);
    store
}

fn says_nothing(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let mut there = Remote::new(THERE, 20, None, T0);
    there.append(T0, "bob", 7);
    let first = store.appended("bob", 1);
    let before = store.shard();
    assert_eq!(recover(&mut store, true), done());
    let row = store.shard();
    assert_eq!(
        (row.recovery, row.recovered_in),
        (Recovery::Recovering, Origin(10))
    );
    let refused = Outcome::Refused(Refusal::Recovering);
    // A duplicate, too: what it would be answered with may not be what the others know.
    assert_eq!(store.append("bob", 1), refused);
    assert_eq!(store.append("bob", 2), refused);
    assert_eq!(store.cursor("bob", "phone", vector(&[(10, 2)])), refused);
    assert_eq!(store.register("bob", "phone", Vector::new()), refused);
    assert_eq!(store.confirm(), refused);
    assert_eq!(store.shard().applied(), before.applied());
    assert_eq!(store.coords("bob"), [first]);
    // What others logged it takes.
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    assert_eq!(store.coords("bob").len(), 2);
    assert_eq!(recover(&mut store, false), done());
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![first]));
    // What it confirmed before may be more than it has: it says so again, news or not.
    assert!(store.shard().confirm_due(2));
    // An old owner has no word in it.
    store.epoch = Epoch(store.epoch.0 - 1);
    assert!(matches!(
        recover(&mut store, true),
        Outcome::Refused(Refusal::Fenced { .. })
    ));
    assert_eq!(store.shard().recovery, Recovery::Open);
}

fn survives(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    store.appended("bob", 1);
    recover(&mut store, true);
    let mut store = crash(harness, store, identity(11, &[HERE, THERE]));
    let row = store.shard();
    // The origin under which it began: sessions of before have ended, those of a later start have not.
    assert_eq!(
        (row.recovery, row.recovered_in),
        (Recovery::Recovering, Origin(10))
    );
    assert_eq!(store.append("bob", 2), Outcome::Refused(Refusal::Recovering));
    assert_eq!(recover(&mut store, true), done());
    assert_eq!(store.shard().recovered_in, Origin(10));
    recover(&mut store, false);
    let mut store = crash(harness, store, identity(12, &[HERE, THERE]));
    let row = store.shard();
    assert_eq!((row.recovery, row.recovered_in), (Recovery::Open, Origin(10)));
    store.appended("bob", 2);
    recover(&mut store, true);
    assert_eq!(store.shard().recovered_in, Origin(12));
}

fn joining(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(joined(10)));
    assert_eq!(store.shard().recovery, Recovery::Recovering);
    assert_eq!(store.append("bob", 1), Outcome::Refused(Refusal::Recovering));
    // Each shard for itself.
    recover(&mut store, false);
    let other = crate::core::ids::ShardId(4);
    store.commit(vec![StoreOp::Bump { shard: other }]);
    let ReadReply::Shard(row) = store.engine.read(&Read::Shard(other)).unwrap() else {
        panic!("not a shard");
    };
    assert_eq!(row.recovery, Recovery::Recovering);
    // Once it is open, another owner does not make it recover.
    let mut store = crash(harness, store, joined(11));
    assert_eq!(store.shard().recovery, Recovery::Open);
    store.appended("bob", 1);
}

fn merges_only_then(harness: &mut dyn Harness) {
    let (cut, pages) = pages(&mut provider(harness), 100, usize::MAX);
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let before = store.shard();
    for page in &pages {
        let refused = Outcome::Refused(Refusal::NotRecovering);
        assert_eq!(merge(&mut store, &cut, page), refused);
    }
    assert_eq!(store.shard(), before);
    recover(&mut store, true);
    store.epoch = Epoch(store.epoch.0 + 1);
    assert!(matches!(
        merge(&mut store, &cut, &pages[0]),
        Outcome::Refused(Refusal::Fenced { .. })
    ));
}

fn pages_end(harness: &mut dyn Harness) {
    let mut store = provider(harness);
    let (cut, whole) = pages(&mut store, 100, usize::MAX);
    let dedup =
        |pages: &[SnapshotPage]| -> Vec<_> { pages.iter().flat_map(|page| page.dedup.clone()).collect() };
    assert_eq!(dedup(&whole).len(), 5);
    assert_eq!(entries(&whole), [at(20, 5), at(10, 2), at(20, 6)]);
    for (items, bytes) in [(1, usize::MAX), (2, usize::MAX), (100, 1), (3, 500)] {
        let (same, small) = pages(&mut store, items, bytes);
        assert_eq!(same, cut);
        assert_eq!(dedup(&small), dedup(&whole));
        let mut split = entries(&small);
        split.sort_unstable();
        assert_eq!(split, [at(10, 2), at(20, 5), at(20, 6)]);
        for page in &small {
            let count = page.dedup.len() + page.users.iter().map(|user| user.entries.len()).sum::<usize>();
            assert!(count <= items, "{count} in a page of {items}");
        }
        assert!(small.len() > whole.len());
    }
}

fn nothing_above(harness: &mut dyn Harness) {
    let mut store = provider(harness);
    let floor = store.shard().logs[&Origin(20)].floor;
    let (cut, first) = page(&mut store, None, SnapshotAt::Start, 100, usize::MAX);
    assert_eq!(cut.seq(Origin(20)), floor);
    assert_eq!(cut.logs[&Origin(20)].region, region(THERE));
    // What comes meanwhile belongs to the log.
    let late = store.appended("bob", 30);
    store.cursor("bob", "phone", vector(&[(20, 5)]));
    let mut seen = vec![first];
    while let Some(next) = seen.last().and_then(|page| page.next.clone()) {
        seen.push(page(&mut store, Some(cut.clone()), next, 100, usize::MAX).1);
    }
    assert!(!cut.covers(late) && !entries(&seen).contains(&late));
    assert!(
        seen.iter()
            .flat_map(|page| &page.dedup)
            .all(|(_, bodies)| bodies.iter().all(|(_, at)| cut.covers(*at)))
    );
    // Cursors may be ahead of it.
    let bob = seen
        .iter()
        .flat_map(|page| &page.users)
        .find(|page| page.user == user("bob"));
    let bob = bob.expect("bob is known");
    assert_eq!(bob.devices[&device("phone")].cursor.of(Origin(20)), 5);
    assert!(cut.covers(Coord {
        origin: Origin(20),
        seq: bob.trimmed.of(Origin(20))
    }));
}

fn merged(harness: &mut dyn Harness) {
    let mut there = provider(harness);
    let (cut, pages) = pages(&mut there, 1, usize::MAX);
    let log: Vec<_> = there.log(20).into_iter().map(|entry| entry.op).collect();
    let mut store = Store::own(harness.create(joined(30)));
    for (at, page) in pages.iter().enumerate() {
        assert_eq!(store.shard().applied(), Vector::new());
        assert_eq!(merge(&mut store, &cut, page), done());
        // Between pages the store crashes; a page that came before comes again.
        store = crash(harness, store, joined(31 + at as u64));
        if page.next.is_some() {
            assert_eq!(merge(&mut store, &cut, page), done());
        }
    }
    let row = store.shard();
    assert_eq!(row.logs[&Origin(20)].seq, cut.seq(Origin(20)));
    assert_eq!(row.logs[&Origin(20)].hash, cut.logs[&Origin(20)].hash);
    assert_eq!(row.logs[&Origin(20)].floor, cut.seq(Origin(20)));
    assert_eq!(row.confirmed, cut.confirmed);
    // The log goes on where the cut ends.
    let epoch = store.epoch;
    let run = StoreOp::ApplyRemote {
        shard: S,
        epoch,
        origin: Origin(20),
        region: region(THERE),
        first: cut.seq(Origin(20)) + 1,
        before: cut.logs[&Origin(20)].hash,
        ops: log,
        attached: Vec::new(),
    };
    let end = there_end(&row, &run);
    assert_eq!(store.one(run), applied(end));
    assert_eq!(store.coords("bob").len(), 2);
    assert_eq!(store.coords("carol").len(), 3);
    let bob = store.user("bob");
    assert_eq!((bob.unread, bob.trimmed), (2, vector(&[(20, 4)])));
    assert_eq!(bob.devices[&device("phone")].cursor, vector(&[(20, 4)]));
    recover(&mut store, false);
    for n in [1, 2, 3, 5] {
        assert!(matches!(store.append("bob", n), Outcome::Duplicate(_)), "{n}");
    }
    assert_eq!(store.append("carol", 3), Outcome::Duplicate(vec![at(10, 2)]));
}

fn there_end(row: &crate::core::state::ShardRow, run: &StoreOp) -> u64 {
    let StoreOp::ApplyRemote { ops, .. } = run else {
        panic!("not a run");
    };
    row.logs[&Origin(20)].seq + ops.len() as u64
}

fn known_again(harness: &mut dyn Harness) {
    let (cut, pages) = pages(&mut provider(harness), 100, usize::MAX);
    let mut store = Store::own(harness.create(joined(30)));
    for page in pages.iter().filter(|page| page.next.is_some()) {
        assert_eq!(merge(&mut store, &cut, page), done());
    }
    let last = pages.last().expect("at least one");
    assert_eq!(merge(&mut store, &cut, last), done());
    let (bob, carol) = (store.user("bob"), store.user("carol"));
    // Another snapshot, begun from the start: nothing is stored or counted twice.
    for page in &pages {
        assert_eq!(merge(&mut store, &cut, page), done());
    }
    assert_eq!((store.user("bob"), store.user("carol")), (bob, carol));
    assert_eq!(store.coords("carol").len(), 2);

    // The snapshot was given up behind a message, which then comes by log.
    let mut there = Remote::new(THERE, 20, None, T0);
    let message = there.append(T0, "dave", 1);
    let mut page = SnapshotPage {
        next: Some(SnapshotAt::Users),
        ..SnapshotPage::default()
    };
    let mut dave = pages
        .iter()
        .flat_map(|page| &page.users)
        .next()
        .expect("a user")
        .clone();
    dave.user = user("dave");
    (dave.devices, dave.trimmed, dave.siblings) = Default::default();
    dave.entries = vec![crate::core::snapshot::SnapshotEntry {
        at: message,
        op: there.ops[1].bytes().clone(),
    }];
    page.users.push(dave);
    let mut store = Store::own(harness.create(joined(30)));
    assert_eq!(merge(&mut store, &cut, &page), done());
    assert_eq!(store.user("dave").unread, 1);
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    assert_eq!(store.coords("dave"), [message]);
    assert_eq!(store.user("dave").unread, 1);
    assert!(store.inbox("dave")[0].siblings.is_empty());
}

fn gap(harness: &mut dyn Harness) {
    let (cut, pages) = pages(&mut provider(harness), 1, usize::MAX);
    // An old backup: of bob's messages one is there, and a device that nobody else knows.
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let mut there = Remote::new(THERE, 20, None, T0);
    let register = crate::core::op::Op::Device {
        user: user("bob"),
        device: device("phone"),
        change: crate::core::op::DeviceChange::Register {
            epoch: 1,
            cursor: Vector::new(),
        },
    };
    there.push(T0, &register);
    let old = there.append(T0, "bob", 1);
    assert_eq!(store.apply(&there, 1, 3), applied(3));
    store.register("bob", "tablet", Vector::new());
    // Accepted here, and in the other region as well, where every device consumed it.
    let copy = store.appended("bob", 77);
    recover(&mut store, true);
    let (last, before) = pages.split_last().expect("at least one");
    for page in before {
        assert_eq!(merge(&mut store, &cut, page), done());
    }
    // The log of another region brings what is gone: nothing is kept under it, since nothing would ever remove that.
    let gone = there.append(T0, "bob", 77);
    assert_eq!(store.apply(&there, gone.seq, gone.seq), applied(gone.seq));
    assert_eq!(
        store.user("bob").siblings,
        BTreeMap::from([(copy, BTreeSet::from([gone]))])
    );
    assert_eq!(merge(&mut store, &cut, last), done());
    let bob = store.user("bob");
    assert_eq!(bob.gaps.into_iter().collect::<Vec<_>>(), [((Origin(20), 4), 4)]);
    assert_eq!(bob.trimmed.of(Origin(20)), 0);
    assert_eq!(store.coords("bob"), [old, at(20, 5), copy]);
    // Carol had nothing older here.
    assert!(store.user("carol").gaps.is_empty());
    // When all is consumed, nothing is left of what came from there.
    recover(&mut store, false);
    for name in ["phone", "tablet"] {
        assert_eq!(store.cursor("bob", name, vector(&[(20, 9)])), done());
    }
    // Our own stays until the other region confirms it.
    assert_eq!(store.coords("bob"), [copy]);
    let bob = store.user("bob");
    assert_eq!((bob.unread, bob.gaps.len(), bob.siblings.len()), (0, 0, 1));
}

fn again(harness: &mut dyn Harness) {
    // One message of bob is here; there the phone consumed it and another, and both are gone.
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let mut there = Remote::new(THERE, 20, None, T0);
    there.append(T0, "bob", 1);
    assert_eq!(store.apply(&there, 1, 2), applied(2));
    there.append(T0, "bob", 2);
    let cut = cut_of(THERE, 20, 3);
    let phone = DeviceRow {
        epoch: 1,
        cursor: vector(&[(20, 3)]),
        ..DeviceRow::default()
    };
    let row = UserRow {
        devices: BTreeMap::from([(device("phone"), phone)]),
        trimmed: vector(&[(20, 3)]),
        ..UserRow::default()
    };
    let page = SnapshotPage {
        users: vec![UserPage::of(user("bob"), &row, &cut)],
        next: Some(SnapshotAt::User(user("bob"))),
        ..SnapshotPage::default()
    };
    recover(&mut store, true);
    assert_eq!(merge(&mut store, &cut, &page), done());
    let bob = store.user("bob");
    assert_eq!((bob.unread, bob.trimmed.of(Origin(20))), (0, 2));
    assert_eq!(bob.gaps, BTreeMap::from([((Origin(20), 3), 3)]));
    assert_eq!(merge(&mut store, &cut, &page), done());
    assert_eq!(store.user("bob"), bob);
}

fn gone_with_copies(harness: &mut dyn Harness) {
    // The dedup records of a snapshot tell of a copy, and the log brings the other before the user's page says that it is gone.
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let cut = cut_of(THERE, 20, 2);
    let mut third = Remote::new(HERE, 30, None, T0);
    let copy = third.append(T0, "bob", 1);
    let known = DedupKey {
        id: id(T0, 1),
        recipient: user("bob"),
        sender: user("alice"),
    };
    let (kind, body) = (1, b"message 1");
    let dedup = vec![(known, vec![(digest(kind, body), at(20, 2))])];
    let first = SnapshotPage {
        dedup,
        next: Some(SnapshotAt::Users),
        ..SnapshotPage::default()
    };
    recover(&mut store, true);
    assert_eq!(merge(&mut store, &cut, &first), done());
    assert_eq!(store.apply(&third, 1, 2), applied(2));
    assert_eq!(store.user("bob").siblings.len(), 2);
    let gone = UserRow {
        trimmed: vector(&[(20, 2)]),
        ..UserRow::default()
    };
    let last = SnapshotPage {
        users: vec![UserPage::of(user("bob"), &gone, &cut)],
        ..SnapshotPage::default()
    };
    assert_eq!(merge(&mut store, &cut, &last), done());
    let siblings = BTreeMap::from([(copy, BTreeSet::from([at(20, 2)]))]);
    assert_eq!(store.user("bob").siblings, siblings);
}

fn came_later(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE])));
    let rest = |store: &mut Store| {
        store.confirm();
        while store.trim() != done() {}
    };
    store.register("bob", "laptop", Vector::new());
    let before = store.appended("bob", 1);
    store.cursor("bob", "laptop", vector(&[(10, before.seq)]));
    rest(&mut store);
    assert_eq!(store.user("bob").trimmed.of(Origin(10)), before.seq);
    // Of a message the phone has read the copy that another region accepted.
    let second = store.appended("bob", 2);
    let mut there = Remote::new(THERE, 20, None, T0);
    let copy = there.append(T0, "bob", 2);
    assert_eq!(store.apply(&there, 1, copy.seq), applied(copy.seq));
    for name in ["phone", "laptop"] {
        store.cursor("bob", name, vector(&[(20, copy.seq)]));
    }
    rest(&mut store);
    let bob = store.user("bob");
    assert_eq!(bob.trimmed.of(Origin(10)), second.seq);
    let passed = |name| bob.devices[&device(name)].cursor.of(Origin(10));
    assert_eq!((passed("laptop"), passed("phone")), (second.seq, 0));
}

/// The backup is from before the tablet came: all devices that it knows have consumed the message, and the tablet has not.
fn forgotten_device(harness: &mut dyn Harness) {
    let mut here = Remote::new(HERE, 10, None, T0);
    let message = here.append(T0, "bob", 1);
    here.cursor(T0, "bob", "phone", vector(&[(10, message.seq)]));
    let there = StoreIdentity {
        region: region(THERE),
        ..identity(20, &[HERE, THERE])
    };
    let mut there = Store::own(harness.create(there));
    assert_eq!(there.apply(&here, 1, 3), applied(3));
    there.register("bob", "tablet", Vector::new());
    there.confirm();
    here.confirm(T0, vector(&[(10, 3), (20, 3)]));
    assert_eq!(there.apply(&here, 4, 4), applied(4));
    there.trim();
    assert_eq!(there.coords("bob"), [message]);
    let (cut, pages) = pages(&mut there, 1, usize::MAX);
    assert_eq!((cut.seq(Origin(10)), cut.seq(Origin(20))), (3, 2));

    let mut store = Store::own(harness.create(identity(30, &[HERE, THERE])));
    assert_eq!(store.apply(&here, 1, 2), applied(2));
    assert_eq!(store.cursor("bob", "phone", vector(&[(10, message.seq)])), done());
    recover(&mut store, true);
    for page in &pages {
        assert_eq!(merge(&mut store, &cut, page), done());
        // Whatever else comes meanwhile, and through a crash.
        store.remove("carol");
        store.trim();
        store = crash(
            harness,
            store,
            identity(31 + store_number(&pages, page), &[HERE, THERE]),
        );
        assert_eq!(store.coords("bob"), [message]);
    }
    recover(&mut store, false);
    assert_eq!(store.shard().recovery, Recovery::Open);
    // With the tablet's cursor it goes, as ever.
    assert_eq!(
        store.cursor("bob", "tablet", vector(&[(10, message.seq)])),
        done()
    );
    assert_eq!(store.coords("bob"), []);
}

fn store_number(pages: &[SnapshotPage], page: &SnapshotPage) -> u64 {
    let at = pages.iter().position(|other| other == page);
    at.expect("one of them") as u64
}

/// The provider has removed a message that was consumed as another copy, and still knows its id; here it was accepted once
/// more before anybody knew what was lost. What was consumed of the one counts for the other (R15).
fn learned_copy(harness: &mut dyn Harness) {
    let (cut, pages) = pages(&mut provider(harness), 100, usize::MAX);
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let copy = store.appended("bob", 2);
    recover(&mut store, true);
    for page in &pages {
        assert_eq!(merge(&mut store, &cut, page), done());
    }
    let bob = store.user("bob");
    assert_eq!(bob.unread, 1, "the copy was consumed: {bob:?}");
    let inbox = store.inbox("bob");
    let kept = inbox
        .iter()
        .find(|entry| entry.at == copy)
        .expect("not stable yet");
    assert_eq!(kept.siblings, [at(20, 4)]);
}

fn trimmed_in_steps(harness: &mut dyn Harness) {
    let identity_there = StoreIdentity {
        region: region(THERE),
        ..identity(20, &[HERE, THERE])
    };
    let mut there = Store::own(harness.create(identity_there));
    let count = TRIM_STEP as u64 + 10;
    for n in 0..count {
        let op = there.append_op("bob", id(T0, n), "x");
        there.commit(vec![op]);
    }
    let log = there.log(20);
    there.register("bob", "phone", Vector::new());
    there.confirm();
    let mut here = Remote::new(HERE, 10, None, T0);
    here.confirm(T0, vector(&[(20, count + 50)]));
    there.apply(&here, 1, 2);
    while there.trim() != done() {}
    let (cut, pages) = pages(&mut there, 1024, usize::MAX);
    // A backup has less, and trimmed nothing of it.
    let mut store = Store::own(harness.create(identity(30, &[HERE, THERE])));
    let epoch = store.epoch;
    let run = StoreOp::ApplyRemote {
        shard: S,
        epoch,
        origin: Origin(20),
        region: region(THERE),
        first: 1,
        before: 0,
        ops: log.into_iter().map(|entry| entry.op).collect(),
        attached: Vec::new(),
    };
    assert_eq!(store.one(run), applied(count + 1));
    recover(&mut store, true);
    assert_eq!(merge(&mut store, &cut, &pages[0]), Outcome::Done { more: true });
    for page in &pages {
        let mut rounds = 0;
        while merge(&mut store, &cut, page) != done() {
            rounds += 1;
            assert!(rounds < 10);
        }
    }
    assert_eq!(store.coords("bob").len() as u64, count);
    assert_eq!(store.user("bob").unread, count);
}
