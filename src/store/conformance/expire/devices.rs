//! Cases of devices that expire (R19).

use super::*;

pub(in crate::store::conformance) const ALL: &[(&str, Case)] = &[
    ("a device that nobody heard of expires", device_expires),
    ("a device that is attached stays", vetoed),
    (
        "regions with different settings let a device expire in the end",
        settings_differ,
    ),
    ("a veto counts in any order", any_order),
    ("a device that comes back before it expired stays", comes_back),
    ("a snapshot brings vetoes", snapshot_of_vetoes),
    ("an expiry that was left over takes effect", left_over),
];

fn device_expires(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    store.register("bob", "tablet", Vector::new());
    let one = store.appended("bob", 1);
    let seen = store.device("phone").life.seen_ms;
    store.now = seen + AFTER + EXPIRY_MARGIN_MS - 1;
    assert_eq!(store.expire_device("phone"), done());
    assert_eq!(store.device("phone").life.expiry, None);
    store.now += 1;
    store.cursor("bob", "tablet", vector(&[(10, one.seq)]));
    assert_eq!(store.expire_device("phone"), done());
    let life = store.device("phone").life;
    let expiry = life.expiry.expect("it is to expire");
    // Once is enough; and nothing comes of it before every region has it.
    assert_eq!(store.expire_device("phone"), done());
    assert_eq!(store.shard().logs[&Origin(10)].seq, expiry.seq);
    store.confirm();
    store.trim();
    assert!(!store.device("phone").expired);
    assert_eq!(store.coords("bob"), [one]);
    there.confirm(store.now, vector(&[(10, expiry.seq)]));
    store.apply(&there, 1, 2);
    store.trim();
    let phone = store.device("phone");
    assert_eq!((phone.expired, phone.epoch, phone.life.expiry), (true, 1, None));
    // It holds nothing back any more.
    assert_eq!(store.coords("bob"), []);
    assert_eq!(store.expire_device("phone"), done());
    while store.engine.idle().unwrap() {}
    let mut store = reopened(harness, store, identity(11, &[HERE, THERE]));
    assert_eq!(store.device("phone"), phone);
    // It comes back under the next epoch, with what is still there, and what comes late for the one before is void.
    let op = store.append_op("bob", id(store.now, 2), "later");
    let Outcome::Appended(two) = store.one(op) else {
        panic!("not accepted");
    };
    store.register("bob", "phone", Vector::new());
    let back = store.device("phone");
    assert_eq!((back.expired, back.epoch), (false, 2));
    there.push(store.now, &change(DeviceChange::Expire { epoch: 1 }));
    store.apply(&there, 3, 3);
    assert_eq!(store.device("phone").life.expiry, None);
    store.cursor("bob", "tablet", vector(&[(11, two.seq)]));
    assert_eq!(store.coords("bob"), [two]);
}

fn vetoed(harness: &mut dyn Harness) {
    for attached in [true, false] {
        let mut store = both(harness);
        let mut there = Remote::new(THERE, 20, None, T0);
        store.register("bob", "phone", Vector::new());
        let seen = store.device("phone").life.seen_ms;
        // Attached, or heard of later than the other region knew.
        let when = seen + AFTER - u64::from(!attached);
        store.now = when + 10;
        there.push(when, &change(DeviceChange::Expire { epoch: 1 }));
        let mut op = there.run(store.epoch, 1, 2);
        if let StoreOp::ApplyRemote { attached: list, .. } = &mut op
            && attached
        {
            list.push((user("bob"), device("phone")));
        }
        let committed = store.commit(vec![op]);
        let last = &committed.logged.last().expect("a veto").entry.op;
        assert_eq!(last.decode().unwrap(), change(DeviceChange::Veto { epoch: 1 }));
        let phone = store.device("phone");
        assert_eq!((phone.epoch, phone.expired, phone.life.expiry), (2, false, None));
        store.confirm();
        there.confirm(store.now, vector(&[(10, 100), (20, 2)]));
        store.apply(&there, 3, 3);
        store.trim();
        assert_eq!(store.device("phone").epoch, 2);
        assert!(!store.device("phone").expired);
    }
    // Neither: nobody objects.
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    let when = store.device("phone").life.seen_ms + AFTER;
    there.push(when, &change(DeviceChange::Expire { epoch: 1 }));
    let op = there.run(store.epoch, 1, 2);
    assert_eq!(store.commit(vec![op]).logged.len(), 2);
    assert_eq!(store.device("phone").life.expiry, Some(at(20, 2)));
}

fn settings_differ(harness: &mut dyn Harness) {
    // Who was objected to asks again after its whole time.
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    let seen = store.device("phone").life.seen_ms;
    store.now = seen + AFTER + EXPIRY_MARGIN_MS;
    store.expire_device("phone");
    assert!(store.device("phone").life.expiry.is_some());
    let objected = store.now + 5;
    there.push(objected, &change(DeviceChange::Veto { epoch: 1 }));
    store.apply(&there, 1, 2);
    let life = store.device("phone").life;
    assert_eq!(
        (life.seen_ms, life.objected_ms, life.expiry),
        (seen, objected, None)
    );
    store.now = objected + AFTER + EXPIRY_MARGIN_MS - 1;
    store.expire_device("phone");
    assert_eq!(store.device("phone").life.expiry, None);
    store.now += 1;
    store.expire_device("phone");
    assert!(store.device("phone").life.expiry.is_some());
    // Who objected goes by when the device was heard of, so that does not go on for ever.
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    let seen = store.device("phone").life.seen_ms;
    there.push(seen + AFTER - 1, &change(DeviceChange::Expire { epoch: 1 }));
    there.push(seen + AFTER, &change(DeviceChange::Expire { epoch: 2 }));
    store.now = seen + AFTER;
    store.apply(&there, 1, 2);
    assert_eq!(store.device("phone").epoch, 2);
    store.apply(&there, 3, 3);
    let phone = store.device("phone");
    assert_eq!((phone.epoch, phone.life.expiry), (2, Some(at(20, 3))));
}

fn any_order(harness: &mut dyn Harness) {
    let three = [HERE, THERE, "ap-south"];
    let mut store = Store::own(harness.create(identity(10, &three)));
    let later = T0 + 40 * DAY_MS;
    store.register("bob", "phone", Vector::new());
    let mut there = Remote::new(THERE, 20, None, T0);
    there.push(later, &change(DeviceChange::Expire { epoch: 1 }));
    let mut third = Remote::new("ap-south", 30, None, T0);
    third.push(later, &change(DeviceChange::Veto { epoch: 1 }));
    // The veto comes before what it vetoes.
    store.now = later;
    store.apply(&third, 1, 2);
    store.apply(&there, 1, 2);
    let all = vector(&[(10, 2), (20, 2), (30, 2)]);
    there.confirm(later, all.clone());
    third.confirm(later, all);
    store.apply(&there, 3, 3);
    store.apply(&third, 3, 3);
    store.confirm();
    store.trim();
    let phone = store.device("phone");
    assert_eq!((phone.epoch, phone.expired, phone.life.expiry), (2, false, None));
    // An expiry under an epoch whose registration comes later, from another log, counts.
    let end = later + 2 * AFTER;
    store.now = end;
    third.push(
        later,
        &change(DeviceChange::Register {
            epoch: 3,
            cursor: Vector::new(),
        }),
    );
    there.push(end, &change(DeviceChange::Expire { epoch: 3 }));
    store.apply(&there, 4, 4);
    store.apply(&third, 4, 4);
    let phone = store.device("phone");
    assert_eq!((phone.epoch, phone.life.expiry), (3, Some(at(20, 4))));
}

fn comes_back(harness: &mut dyn Harness) {
    let mut store = both(harness);
    let mut there = Remote::new(THERE, 20, None, T0);
    store.register("bob", "phone", Vector::new());
    // A device that is attached and idle is heard of again, but not all the time.
    let seq = |store: &mut Store| store.shard().logs[&Origin(10)].seq;
    let before = seq(&mut store);
    let seen = store.device("phone").life.seen_ms;
    store.now = seen + AFTER / 4 - 1;
    store.register("bob", "phone", Vector::new());
    assert_eq!(seq(&mut store), before);
    store.now += 1;
    store.register("bob", "phone", Vector::new());
    assert_eq!(seq(&mut store), before + 1);
    assert_eq!(store.device("phone").life.seen_ms, store.now);
    // It is to expire, and comes while that has no effect yet.
    store.now += AFTER + EXPIRY_MARGIN_MS;
    store.expire_device("phone");
    let expiry = store.device("phone").life.expiry.expect("it is to expire");
    store.register("bob", "phone", Vector::new());
    assert_eq!(store.device("phone").epoch, 2);
    store.confirm();
    there.confirm(store.now, vector(&[(10, expiry.seq)]));
    store.apply(&there, 1, 2);
    store.trim();
    let phone = store.device("phone");
    assert_eq!((phone.epoch, phone.expired), (2, false));
}

/// A store that has the expiry of a device, and a snapshot in which it was vetoed.
fn snapshot_of_vetoes(harness: &mut dyn Harness) {
    let later = T0 + 40 * DAY_MS;
    let mut there = Remote::new(THERE, 20, None, T0);
    there.push(
        T0,
        &change(DeviceChange::Register {
            epoch: 1,
            cursor: Vector::new(),
        }),
    );
    let expiry = there.push(later, &change(DeviceChange::Expire { epoch: 1 }));
    let mut provider = both(harness);
    provider.now = later;
    let mut op = there.run(provider.epoch, 1, 3);
    if let StoreOp::ApplyRemote { attached, .. } = &mut op {
        attached.push((user("bob"), device("phone")));
    }
    provider.one(op);
    provider.confirm();
    there.confirm(later, vector(&[(10, 3), (20, 3)]));
    provider.apply(&there, 4, 4);
    provider.confirm();
    there.confirm(later, vector(&[(10, 4), (20, 4)]));
    provider.apply(&there, 5, 5);
    provider.trim();
    assert!(provider.shard().logs[&Origin(20)].floor >= expiry.seq);
    // The other has the expiry by log, and nothing of the region that objected.
    let mut store = joining(harness);
    store.now = later;
    store.apply(&there, 1, 3);
    assert_eq!(store.device("phone").life.expiry, Some(expiry));
    provider.snapshot_into(&mut store);
    open(&mut store);
    assert!(
        store
            .shard()
            .stable(Origin(20), &identity(30, &[HERE, THERE]).holders)
            >= expiry.seq
    );
    store.trim();
    store.expire_device("phone");
    let phone = store.device("phone");
    assert_eq!((phone.epoch, phone.expired, phone.life.expiry), (2, false, None));
}

/// Where the log was trimmed for a snapshot, what the snapshot does not tell of is found by the round over devices.
fn left_over(harness: &mut dyn Harness) {
    let later = T0 + 40 * DAY_MS;
    let mut there = Remote::new(THERE, 20, None, T0);
    there.push(
        T0,
        &change(DeviceChange::Register {
            epoch: 1,
            cursor: Vector::new(),
        }),
    );
    there.push(later, &change(DeviceChange::Expire { epoch: 1 }));
    let mut provider = both(harness);
    provider.now = later;
    provider.apply(&there, 1, 3);
    provider.confirm();
    there.confirm(later, vector(&[(10, 2), (20, 3)]));
    provider.apply(&there, 4, 4);
    let mut store = joining(harness);
    store.now = later;
    store.apply(&there, 1, 3);
    provider.trim();
    assert!(provider.device("phone").expired);
    provider.snapshot_into(&mut store);
    open(&mut store);
    store.trim();
    store.expire_device("phone");
    assert!(store.device("phone").expired);
    assert_eq!(store.device("phone").life.expiry, None);
}

#[cfg(test)]
mod defects {
    use super::*;
    use crate::core::defect::{self, Defect};
    use crate::store::memory::tests::Memory;

    /// The case passes, and fails with the defect.
    fn finds(defect: Defect, case: Case) {
        case(&mut Memory::default());
        let found = std::panic::catch_unwind(|| {
            defect::set(Some(defect));
            case(&mut Memory::default());
        });
        defect::set(None);
        assert!(found.is_err(), "{defect:?} is not found");
    }

    #[test]
    fn a_hole_that_forgets_its_siblings_is_found() {
        finds(Defect::HoleForgetsSiblings, copies);
    }

    #[test]
    fn a_snapshot_without_vetoes_is_found() {
        finds(Defect::SnapshotWithoutVetoes, snapshot_of_vetoes);
    }

    #[test]
    fn a_region_that_does_not_object_is_found() {
        finds(Defect::NoVeto, vetoed);
    }
}
