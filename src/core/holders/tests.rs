use proptest::prelude::*;

use super::*;

fn region(n: usize) -> RegionId {
    RegionId::new(["a", "b", "c", "d"][n]).unwrap()
}

fn regions(bits: u8) -> BTreeSet<RegionId> {
    (0..4).filter(|n| bits & 1 << n != 0).map(region).collect()
}

fn change(version: u64, set: u8, gone: u8) -> HoldersChange {
    HoldersChange {
        version,
        set: regions(set),
        gone: regions(gone & !set),
    }
}

fn at(origin: u64, seq: Seq) -> Coord {
    let origin = Origin(origin);
    Coord { origin, seq }
}

fn apply(set: &mut Option<HolderSet>, change: &HoldersChange, at: Coord) -> bool {
    HolderSet::change(set, &regions(0b1111), change, at)
}

/// What region `n` confirmed, of all that confirmed anything.
fn confirm(set: &mut HolderSet, said: &[(usize, Vector)], retired: &BTreeMap<Origin, Seq>) {
    let said: BTreeMap<RegionId, Vector> = (said.iter())
        .map(|(n, vector)| (region(*n), vector.clone()))
        .collect();
    set.confirmed(|region| said.get(region), retired);
}

fn vector(of: Coord) -> Vector {
    let mut vector = Vector::new();
    vector.raise(of.origin, of.seq);
    vector
}

/// Two operators at once: whatever comes first, all come to the greater set, and who was removed by the other change only does not
/// leave.
#[test]
fn of_two_changes_of_one_version_the_greater_set_counts_in_either_order() {
    let (lesser, greater) = (change(1, 0b1011, 0), change(1, 0b1101, 0));
    assert!(lesser.set < greater.set);
    let (here, there) = (at(1, 5), at(2, 9));
    let (mut one, mut other) = (None, None);
    apply(&mut one, &lesser, here);
    assert_eq!(
        one.as_ref().unwrap().leaving.keys().collect::<Vec<_>>(),
        [&region(2)]
    );
    assert!(apply(&mut one, &greater, there));
    assert!(apply(&mut other, &greater, there));
    assert!(!apply(&mut other, &lesser, here));
    for set in [one.unwrap(), other.unwrap()] {
        assert_eq!(set.new, greater.set);
        assert_eq!(set.leaving.keys().collect::<Vec<_>>(), [&region(1)]);
        // It counts until it said that it knows, whichever of the two it has.
        assert!(set.counting().contains(&region(1)));
    }
}

/// A region removed by the change that counts may hear of the other one of that version first, which does not remove it: it has
/// left only when it confirmed the one that does.
#[test]
fn a_region_has_left_only_by_its_word_on_the_change_that_removes_it() {
    let (lesser, greater) = (change(1, 0b1011, 0), change(1, 0b1101, 0));
    let (kept, removed) = (at(1, 5), at(2, 9));
    let mut set = None;
    apply(&mut set, &lesser, kept);
    apply(&mut set, &greater, removed);
    let mut set = set.unwrap();
    confirm(&mut set, &[(1, vector(kept))], &BTreeMap::new());
    assert!(set.leaving.contains_key(&region(1)));
    confirm(&mut set, &[(1, vector(removed))], &BTreeMap::new());
    assert!(!set.leaving.contains_key(&region(1)));
}

/// The origin in whose log the change stands may be retired, and is named by no confirmation then: all have all of it.
#[test]
fn a_change_whose_origin_was_retired_is_confirmed_by_all() {
    let mut set = None;
    apply(&mut set, &change(1, 0b0111, 0), at(1, 5));
    let mut set = set.unwrap();
    let others = vector(at(2, 40));
    let said: Vec<(usize, Vector)> = (0..4).map(|n| (n, others.clone())).collect();
    confirm(&mut set, &said, &BTreeMap::new());
    assert!(!set.is_done());
    confirm(&mut set, &said, &BTreeMap::from([(Origin(1), 6)]));
    assert!(set.is_done());
}

/// Of the same change said twice, by two regions, the second may know that a region is gone.
#[test]
fn nobody_waits_for_a_region_once_one_of_two_equal_changes_says_that_it_is_gone() {
    let mut set = None;
    apply(&mut set, &change(1, 0b0111, 0), at(1, 5));
    assert!(set.as_ref().unwrap().counting().contains(&region(3)));
    assert!(!apply(&mut set, &change(1, 0b0111, 0b1000), at(2, 3)));
    let set = set.unwrap();
    assert!(!set.counting().contains(&region(3)));
    // Who takes the shard over proposes it as it is known here.
    assert_eq!(set.gone, regions(0b1000));
}

fn changes() -> impl Strategy<Value = Vec<HoldersChange>> {
    let one = (1u64..4, 1u8..16, 0u8..16).prop_map(|(version, set, gone)| change(version, set, gone));
    prop::collection::vec(one, 1..6)
}

proptest! {
    /// Each change stands in the log of an origin of its own: regions apply them in any order, and come to the same set, which
    /// counts everybody who is in it.
    #[test]
    fn all_come_to_the_same_set_whatever_the_order(
        changes in changes(),
        orders in prop::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let greatest = changes.iter().map(HoldersChange::rank).max().unwrap();
        for start in 0..2 {
            let mut left: Vec<usize> = (0..changes.len()).collect();
            let mut set = None;
            let mut order = orders.iter().skip(start * 6);
            while !left.is_empty() {
                let next = left.remove(order.next().unwrap().index(left.len()));
                apply(&mut set, &changes[next], at(next as u64 + 1, 1));
            }
            let set: HolderSet = set.unwrap();
            prop_assert_eq!(set.rank(), greatest);
            prop_assert!(set.counting().is_superset(&set.new));
            prop_assert!(set.leaving.keys().all(|region| !set.new.contains(region)));
            // Everybody who has all of it all at once waits for nobody.
            let mut all = Vector::new();
            for n in 0..changes.len() {
                all.raise(Origin(n as u64 + 1), 1);
            }
            let mut set = set;
            let said: Vec<(usize, Vector)> = (0..4).map(|n| (n, all.clone())).collect();
            confirm(&mut set, &said, &BTreeMap::new());
            prop_assert!(set.is_done());
            prop_assert_eq!(set.counting().into_owned(), set.new.clone());
        }
    }
}
