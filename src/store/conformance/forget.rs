//! Cases of dropped dedup records (R16).

use super::Harness;
use super::kit::{HERE, Remote, S, Store, T0, THERE, applied, done, id, identity, vector};
use crate::core::commit::{DAY_MS, ID_WINDOW_MS, Outcome, Refusal, TIME_MARGIN_MS};
use crate::core::ids::MessageId;
use crate::core::snapshot::SnapshotAt;
use crate::store::engine::{Read, ReadReply};

const DAY: u32 = (T0 / DAY_MS) as u32;
/// From when on the records of [`DAY`] may go.
const GONE: u64 = (DAY as u64 + 1) * DAY_MS + ID_WINDOW_MS + TIME_MARGIN_MS + 1;

fn reopened(harness: &mut dyn Harness, store: Store, origin: u64, holders: &[&str]) -> Store {
    Store {
        engine: harness.reopen(store.engine, identity(origin, holders)),
        epoch: store.epoch,
        now: store.now,
    }
}

/// The ids of dedup that a snapshot would send.
fn sent(store: &mut Store) -> Vec<MessageId> {
    let (mut cut, mut after, mut ids) = (None, SnapshotAt::Start, Vec::new());
    loop {
        let read = Read::Snapshot {
            shard: S,
            cut: cut.take(),
            after: after.clone(),
            max_items: 2,
            max_bytes: 1 << 20,
        };
        let ReadReply::Snapshot(known, page) = store.engine.read(&read).unwrap() else {
            panic!("another answer");
        };
        assert_eq!(known.forgotten, store.shard().forgotten);
        ids.extend(page.dedup.iter().map(|(key, _)| key.id));
        match page.next {
            Some(next @ (SnapshotAt::Start | SnapshotAt::Dedup(_))) => (cut, after) = (Some(known), next),
            _ => return ids,
        }
    }
}

/// All days to the one that is named go at once, also across starts, and with nothing else logged since.
pub(super) fn forgotten_for_good(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE])));
    store.appended("bob", 1);
    let next_day = T0 + DAY_MS;
    store.now = next_day;
    let kept = store.append_op("bob", id(next_day, 2), "kept");
    let Outcome::Appended(at) = store.one(kept.clone()) else {
        panic!("not accepted");
    };
    store.register("bob", "phone", Default::default());
    store.confirm();
    store.trim();
    assert_eq!(sent(&mut store).len(), 2);
    // Too early by a millisecond, whatever is asked for.
    store.now = GONE - 1;
    assert_eq!(store.drop_dedup(DAY + 1), done());
    assert!(matches!(store.append("bob", 1), Outcome::Duplicate(_)));
    store.now = GONE;
    assert_eq!(store.drop_dedup(DAY + 9), done());
    let settled = |store: &mut Store| {
        assert_eq!(store.shard().forgotten, DAY + 1);
        assert_eq!(sent(store), [id(next_day, 2)]);
        // The clock goes back to when the id was new: it must not be taken for a new one.
        store.now = T0;
        let server_ms = (u64::from(DAY) + 1) * DAY_MS + ID_WINDOW_MS;
        assert_eq!(
            store.append("bob", 1),
            Outcome::Refused(Refusal::IdTooOld { server_ms })
        );
        assert_eq!(store.one(kept.clone()), Outcome::Duplicate(vec![at]));
        store.now = GONE;
    };
    settled(&mut store);
    let mut store = reopened(harness, store, 11, &[HERE]);
    settled(&mut store);
    while store.engine.idle().unwrap() {}
    let mut store = reopened(harness, store, 12, &[HERE]);
    settled(&mut store);
}

/// What a region that was cut off accepted long ago is remembered when it arrives, and goes with the next day.
pub(super) fn late_records(harness: &mut dyn Harness) {
    let both = [HERE, THERE];
    let mut store = Store::own(harness.create(identity(10, &both)));
    store.now = GONE;
    assert_eq!(store.drop_dedup(DAY), done());
    let mut there = Remote::new(THERE, 20, None, T0);
    let late = there.append(T0, "bob", 1);
    store.apply(&there, 1, 2);
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![late]));
    let mut store = reopened(harness, store, 11, &both);
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![late]));
    // Not stable: not all of the next day's may go, nor this one.
    store.now = GONE + DAY_MS;
    assert_eq!(store.drop_dedup(DAY + 1), Outcome::Done { more: true });
    assert_eq!(store.append("bob", 1), Outcome::Duplicate(vec![late]));
    store.confirm();
    there.confirm(store.now, vector(&[(20, late.seq)]));
    assert_eq!(store.apply(&there, 3, 3), applied(3));
    assert_eq!(store.drop_dedup(DAY + 1), done());
    assert!(matches!(
        store.append("bob", 1),
        Outcome::Refused(Refusal::IdTooOld { .. })
    ));
    assert_eq!(sent(&mut store), []);
}

/// A region that is absent keeps back only the days that it may still need.
pub(super) fn as_far_as_stable(harness: &mut dyn Harness) {
    let mut store = Store::own(harness.create(identity(10, &[HERE, THERE])));
    let mut there = Remote::new(THERE, 20, None, T0);
    let first = store.appended("bob", 1);
    store.confirm();
    there.confirm(T0, vector(&[(10, first.seq)]));
    store.apply(&there, 1, 2);
    // Long after it was heard last, something is accepted here.
    let later = T0 + 30 * DAY_MS;
    store.now = later;
    let op = store.append_op("bob", id(later, 2), "later");
    let Outcome::Appended(at) = store.one(op.clone()) else {
        panic!("not accepted");
    };
    store.now = later + 30 * DAY_MS;
    let asked = DAY + 31;
    assert_eq!(store.drop_dedup(asked), Outcome::Done { more: true });
    let forgotten = store.shard().forgotten;
    assert!(forgotten > DAY && u64::from(forgotten) <= (later - ID_WINDOW_MS) / DAY_MS);
    assert_eq!(store.one(op), Outcome::Duplicate(vec![at]));
    assert!(matches!(
        store.append("bob", 1),
        Outcome::Refused(Refusal::IdTooOld { .. })
    ));
}
