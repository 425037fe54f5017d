//! Presence that regions have differently: found by digests, and repaired for about what the difference weighs.

use super::world::{SECOND, World, addr, ended, record, region_id};
use super::*;
use crate::core::msg::{Message, ToSubscriber};
use crate::core::presence::digest::Sums;
use crate::core::presence::{Comparison, Digest, Item, Node};

/// How somebody's presence differs after a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A new session of somebody who had one.
    Again,
    /// Somebody who was never there.
    New,
    /// The end of a session.
    Ended,
}

fn key(n: usize) -> DeviceKey {
    (
        UserId::new(&format!("user-{n:06}")).unwrap(),
        DeviceId::new("phone").unwrap(),
    )
}

/// What both sides of a link sent to repair presence, and how many records.
fn repaired(world: &World) -> (u64, u64) {
    let links = world.regions.iter().flat_map(|region| &region.links);
    links.map(Links::stats).fold((0, 0), |(bytes, records), stats| {
        let spent = stats.presence_repair_bytes + stats.presence_digest_bytes;
        (bytes + spent, records + stats.presence_repaired)
    })
}

/// Two regions with `all` sessions, of which `differ` change on either side while they are cut off from each other: bytes of
/// what differs, and of the repair.
fn partition(all: usize, differ: usize, change: Change) -> (u64, u64) {
    const SHARDS: u32 = 2;
    let mut world = World::new(7, &[1, 1], SHARDS, CoreLimits::default());
    world.run(3 * SECOND);
    for n in 0..all {
        for region in 0..2 {
            world.regions[region]
                .presence
                .merge(ShardId(n as u32 % SHARDS), record(&key(n), 1));
        }
    }
    world.cut_both(0, 1);
    world.run(20 * SECOND);
    let mut weight = 0;
    for n in 0..differ {
        // Those that differ are spread over all.
        let (at, region) = (n * all / differ, n % 2);
        let (at, entry) = match change {
            Change::Again => (at, record(&key(at), 2)),
            Change::New => (at, record(&key(all + at), 1)),
            Change::Ended => (at, ended(&key(at), 1)),
        };
        weight += entry.encode().len() as u64;
        assert!(
            world.regions[region]
                .presence
                .merge(ShardId(at as u32 % SHARDS), entry)
        );
    }
    let (before, records) = repaired(&world);
    settle(&mut world);
    let live = world.regions[0].presence.live();
    assert!(live == world.regions[1].presence.live(), "all is repaired");
    let (after, sent) = repaired(&world);
    assert_eq!(
        sent - records,
        differ as u64,
        "what differs is sent, and nothing else"
    );
    println!(
        "{differ} of {all} {change:?}: {weight} bytes differ, {} repair",
        after - before
    );
    (weight, after - before)
}

#[test]
fn repair_costs_at_most_twice_what_differs() {
    for (all, differ) in [(1_000, 1_000), (1_000, 100), (4_000, 200), (20_000, 1_000)] {
        for change in [Change::Again, Change::New] {
            let (weight, spent) = partition(all, differ, change);
            assert!(spent <= 2 * weight, "{spent} bytes for {weight}");
        }
    }
    // The end of a session is four times as small as a session.
    let (weight, spent) = partition(1_000, 1_000, Change::Ended);
    assert!(spent <= 2 * weight, "{spent} bytes for {weight}");
}

/// Where next to nothing differs in much, the way down costs more than what is found: seven levels, each a message.
#[test]
fn a_single_difference_among_many_is_found_for_little() {
    let (weight, spent) = partition(20_000, 1, Change::Again);
    assert!(spent <= weight + 700, "{spent} bytes for {weight}");
}

#[test]
fn what_was_lost_on_the_way_is_found_by_digests() {
    let mut world = World::new(21, &[1, 2, 1], 4, CoreLimits::default());
    for n in 0..60u32 {
        world.set_presence(n as usize % 3, n % 4, &format!("u{n}"), 1);
    }
    world.run(5 * SECOND);
    assert_eq!(world.regions[1].presence.live().len(), 60);
    let lanes = |world: &World| -> u64 {
        let links = world.regions.iter().flat_map(|region| &region.links);
        links.map(|links| links.stats().lanes_lost).sum()
    };
    let before = lanes(&world);
    world.swallow_presence = true;
    for n in 0..60u32 {
        world.set_presence(n as usize % 3, n % 4, &format!("u{n}"), 2);
    }
    world.run(SECOND);
    let two = |world: &World, n: usize| {
        let live = world.regions[n].presence.live();
        live.values().filter(|version| **version == 2).count()
    };
    assert!((0..3).all(|n| two(&world, n) == 20), "nobody was told");
    world.swallow_presence = false;
    world.run(15 * SECOND);
    assert!((0..3).all(|n| two(&world, n) == 60), "all is known everywhere");
    assert_eq!(lanes(&world), before, "no lane had to be opened for it");
    let busy = world.last_busy;
    world.run(20 * SECOND);
    assert_eq!(world.last_busy, busy, "then nothing more is said");
}

#[test]
fn a_region_that_knows_nothing_is_filled_at_once() {
    let mut world = World::new(22, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    for n in 0..2_000u32 {
        world.set_presence(0, n % 2, &format!("u{n}"), 1);
    }
    world.run(10 * SECOND);
    for lost in [1, 0] {
        world.kill(lost);
        world.regions[lost].presence = Default::default();
        world.start(lost);
        world.run(4 * SECOND);
        assert_eq!(
            world.regions[lost].presence.live().len(),
            2_000,
            "region {}",
            region_id(lost)
        );
    }
}

/// Digests of a busy shard differ by what is under way: that is no reason to send anything again.
#[test]
fn what_is_under_way_is_not_repaired() {
    let mut world = World::new(25, &[1, 1], 1, CoreLimits::default());
    world.run(8 * SECOND);
    let mismatches = |world: &World| -> u64 {
        let links = world.regions.iter().flat_map(|region| &region.links);
        links.map(|links| links.stats().presence_mismatches).sum()
    };
    let (before, looked) = (repaired(&world).1, mismatches(&world));
    for n in 0..3_000u32 {
        world.set_presence(n as usize % 2, 0, &format!("u{}", n % 50), u64::from(n) + 1);
        world.run(SECOND / 100);
    }
    assert_eq!(repaired(&world).1, before, "nothing is sent twice");
    assert_eq!(mismatches(&world), looked, "in 30 s nothing is looked into");
    world.run(15 * SECOND);
    assert!(world.regions[0].presence.live() == world.regions[1].presence.live());
    assert_eq!(repaired(&world).1, before);
}

/// Two regions remember different ends: neither tells the other of them, and nothing is repaired.
#[test]
fn ends_that_only_one_region_remembers_do_not_differ() {
    let mut world = World::new(23, &[1, 1], 1, CoreLimits::default());
    world.run(3 * SECOND);
    for n in 0..100 {
        world.regions[n % 2].presence.merge(ShardId(0), ended(&key(n), 1));
    }
    let before = repaired(&world).1;
    settle(&mut world);
    assert_eq!(repaired(&world).1, before);
    let busy = world.last_busy;
    world.run(20 * SECOND);
    assert_eq!(world.last_busy, busy);
}

/// What makes no sense ends the lane that brought it, and presence is repaired all the same.
#[test]
fn nonsense_ends_the_lane_and_nothing_else() {
    let mut world = World::new(24, &[1, 1], 1, CoreLimits::default());
    for n in 0..50u32 {
        world.set_presence(0, 0, &format!("u{n}"), 1);
    }
    world.run(5 * SECOND);
    let wrong_node = |raw: u64| rmp_serde::from_slice::<Node>(&rmp_serde::to_vec(&raw).unwrap()).unwrap();
    let item = Item {
        key: 1,
        epoch: 1,
        session: 1,
        counter: 1,
    };
    let compared = |part: Comparison| ToSubscriber::PresenceCompared {
        salt: 1,
        parts: vec![part],
    };
    let part = |node| Comparison {
        sums: vec![(node, Sums::new([7; 12]))],
        ..Comparison::default()
    };
    let many = |nodes: [u64; 2]| Comparison {
        sums: nodes.map(|raw| (wrong_node(raw), Sums::new([7; 12]))).to_vec(),
        ..Comparison::default()
    };
    let twice = ToSubscriber::PresenceCompared {
        salt: 1,
        parts: vec![part(Node::ROOT), part(Node::ROOT)],
    };
    let list = |node| Comparison {
        lists: vec![(node, 7, vec![item])],
        ..Comparison::default()
    };
    let beyond = ShardId(77);
    let nonsense = [
        (compared(part(wrong_node(0))), true),
        (compared(part(wrong_node(2))), true),
        (compared(part(wrong_node(u64::MAX))), true),
        // The nodes of whole keys have no children.
        (compared(part(wrong_node(1 << 32))), true),
        (compared(part(wrong_node(1 << 30))), false),
        (compared(many([4, 5])), false),
        (compared(many([5, 4])), true),
        (compared(many([4, 4])), true),
        (twice, true),
        (compared(list(wrong_node(1 << 33))), true),
        (compared(list(wrong_node(1 << 32))), false),
        (
            compared(Comparison {
                wants: (0..=65_536).collect(),
                ..Comparison::default()
            }),
            true,
        ),
        (
            compared(Comparison {
                wants: (0..65_535).collect(),
                ..Comparison::default()
            }),
            false,
        ),
        (
            compared(Comparison {
                shard: beyond,
                blank: true,
                ..Comparison::default()
            }),
            false,
        ),
        (
            ToSubscriber::PresenceDigests {
                at_once: true,
                shards: vec![(beyond, Digest { sum: 1, blank: false })],
            },
            false,
        ),
    ];
    for (body, ends) in nonsense {
        let lost = world.regions[1].links[0].stats().lanes_lost;
        let lane = world.regions[1].links[0].peers[0].pull.lane();
        world.inject(1, 0, &addr(0, 0), Message::ToSubscriber { lane, body });
        let lost = world.regions[1].links[0].stats().lanes_lost - lost;
        assert_eq!(lost, u64::from(ends));
        world.run(10 * SECOND);
        let live = world.regions[0].presence.live();
        assert_eq!(live.len(), 50);
        assert!(live == world.regions[1].presence.live());
    }
}
