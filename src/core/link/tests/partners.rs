//! Regions that were removed (R13).

use std::collections::BTreeSet;

use super::world::{SECOND, World, region_id};
use crate::core::holders::{HoldersChange, Partners};
use crate::core::limits::CoreLimits;

/// What the owners of the first two of three regions say once the third was removed.
fn without_the_third() -> Partners {
    let set: BTreeSet<_> = (0..2).map(region_id).collect();
    Partners {
        all: set.clone(),
        staying: set.clone(),
        change: Some(HoldersChange {
            version: 1,
            set,
            gone: BTreeSet::from([region_id(2)]),
        }),
    }
}

/// A region that was removed and lives has only the others' refusal to hear of it by. Who has just started, and does not know all
/// regions yet, refuses nobody.
#[test]
fn a_region_that_was_removed_hears_of_it_when_it_is_refused() {
    let mut world = World::new(9, &[1, 1, 1], 1, CoreLimits::default());
    world.run(3 * SECOND);
    let (told, now) = (without_the_third(), world.clocks());
    let links = &mut world.regions[0].links[0];
    links.handle_regions(&told, now);
    links.change = None;
    world.run(30 * SECOND);
    assert_eq!(world.regions[2].removed_by, []);
    assert!(world.regions[2].alarms.is_empty());

    world.regions[0].links[0].handle_regions(&told, now);
    world.run(90 * SECOND);
    assert_eq!(world.regions[2].removed_by.first(), told.change.as_ref());

    // One that was added since is named by the last change, and has a link as soon as its shards are read.
    let mut again = told.change.clone().unwrap();
    again.set.insert(region_id(2));
    world.regions[0].links[0].change = Some(Some(again));
    world.run(90 * SECOND);
    let heard = world.regions[2].removed_by.len();
    world.run(90 * SECOND);
    assert_eq!(world.regions[2].removed_by.len(), heard);
}

/// What a region that died left behind may be in one of the others alone: its removal does not keep the rest from getting it.
#[test]
fn what_a_removed_region_left_behind_in_one_region_reaches_the_others() {
    let mut world = World::new(11, &[1, 1, 1], 1, CoreLimits::default());
    world.run(3 * SECOND);
    world.cut_both(2, 0);
    world.append(2, 0, 10);
    world.run(SECOND);
    world.cut_both(2, 1);
    let has = |world: &World| (world.applied(0, 0, 2), world.applied(1, 0, 2));
    let before = has(&world);
    assert!(before.0 < before.1, "{before:?}");
    let (told, now) = (without_the_third(), world.clocks());
    for region in 0..2 {
        world.regions[region].links[0].handle_regions(&told, now);
        world.drain(region);
    }
    world.run(3 * SECOND);
    assert_eq!(has(&world), (before.1, before.1));
}
