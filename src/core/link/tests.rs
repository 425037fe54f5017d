mod partners;
mod repair;
mod world;

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use self::world::{OP_MAX, SECOND, World, addr, region_id};
use super::*;
use crate::core::holders::{HoldersChange, Partners};
use crate::core::ids::Coord;
use crate::core::msg::Run;
use crate::core::op::Op;
use crate::core::time::Hlc;
use crate::core::vector::Vector;

fn tiny() -> CoreLimits {
    CoreLimits {
        link_bytes: 2000,
        presence_batch: 3,
        ..CoreLimits::default()
    }
}

fn run(origin: u64, first: Seq, op: Bytes) -> Run {
    Run {
        shard: ShardId(0),
        origin: Origin(origin),
        region: region_id(0),
        first,
        before: 0,
        ops: vec![op],
        count: 1,
    }
}

fn settle(world: &mut World) {
    for a in 0..world.regions.len() {
        for b in 0..a {
            world.heal(a, b);
        }
    }
    world.run(30 * SECOND);
}

#[test]
fn what_one_region_accepts_the_others_apply_once() {
    let mut world = World::new(1, &[1, 1, 1], 4, CoreLimits::default());
    world.run(3 * SECOND);
    for n in 0..300 {
        world.append(n % 3, n as u32 % 4, 20);
        world.run(1000);
    }
    world.run(5 * SECOND);
    world.assert_equal_logs();
    assert_eq!(world.applied(2, 0, 0), world.applied(0, 0, 0));
    assert_eq!(world.again, 0, "nothing is shipped twice while all is well");
    // 300 messages and 12 starts, to two others each; nothing by a detour, nothing back to where it came from.
    assert_eq!(world.shipped, 2 * 312);
    let stats = world.regions[0].links[0].stats();
    assert!(stats.ops_shipped_hot * 10 > stats.ops_shipped * 9, "{stats:?}");
    let (messages, most) = (stats.messages_shipped, stats.ops_shipped);
    assert!((1..=most).contains(&messages), "{stats:?}");
    assert!(world.now - world.last_busy > 4 * SECOND, "links fall silent");
    assert_eq!(
        world.regions[0].reach,
        [(region_id(1), true), (region_id(2), true)].into()
    );
}

#[test]
fn a_long_log_with_tiny_credit_does_not_hold_up_another_shard() {
    let mut world = World::new(2, &[1, 1], 2, tiny());
    world.cut_both(0, 1);
    for _ in 0..2000 {
        world.append(0, 0, 100);
    }
    world.run(10 * SECOND);
    world.heal(0, 1);
    while world.applied(1, 0, 0) < 100 {
        world.run(SECOND / 10);
    }
    let live = world.append(0, 1, 100);
    let start = world.now;
    while world.applied(1, 1, 0) < live {
        world.run(SECOND / 100);
        assert!(
            world.now - start < SECOND,
            "the live shard waits behind the long one"
        );
    }
    assert!(world.applied(1, 0, 0) < 1500, "the long one is still catching up");
    world.run(100 * SECOND);
    world.assert_equal_logs();
    assert_eq!(world.again, 0);
}

#[test]
fn shards_that_are_behind_take_turns() {
    let mut world = World::new(19, &[1, 1], 2, tiny());
    world.cut_both(0, 1);
    for _ in 0..1000 {
        world.append(0, 0, 100);
    }
    for _ in 0..20 {
        world.append(0, 1, 100);
    }
    world.run(10 * SECOND);
    world.heal(0, 1);
    while world.applied(1, 1, 0) < 20 {
        world.run(SECOND / 10);
    }
    assert!(
        world.applied(1, 0, 0) < 500,
        "the short one came after the long one"
    );
}

#[test]
fn a_run_lost_without_notice_is_asked_for_again() {
    let mut world = World::new(20, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    world.run(SECOND);
    let lanes = world.regions[1].links[0].stats().lanes_opened;
    world.swallow = 1;
    for _ in 0..5 {
        world.append(0, 0, 10);
        world.append(0, 1, 10);
    }
    world.run(2 * SECOND);
    world.assert_equal_logs();
    let stats = world.regions[1].links[0].stats();
    assert!(stats.runs_gapped > 0);
    assert_eq!(stats.lanes_opened, lanes);
    assert_eq!((world.misfits, world.regions[1].alarms.len()), (0, 0));
}

#[test]
fn a_mute_lane_gives_way_to_the_next_one() {
    let mut world = World::new(21, &[1, 1], 1, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    world.run(SECOND);
    world.mute(0, 1, true);
    world.run(SECOND);
    world.append(0, 0, 10);
    world.append(1, 0, 10);
    world.run(6 * SECOND);
    assert!(!world.regions[1].reach[&region_id(0)]);
    world.mute(0, 1, false);
    world.run(7 * SECOND);
    world.assert_equal_logs();
    assert!(world.regions[1].reach[&region_id(0)]);
}

#[test]
fn a_provider_that_lost_a_lane_says_so() {
    let mut world = World::new(22, &[1, 1], 1, CoreLimits::default());
    // Just after a ping, which would bring it to light as well.
    world.run(3 * SECOND + SECOND / 5);
    world.flap(0, 1);
    world.append(0, 0, 10);
    world.run(SECOND / 2);
    world.assert_equal_logs();
}

#[test]
fn a_region_in_touch_with_both_relays() {
    let mut world = World::new(3, &[1, 2, 1], 4, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    world.run(2 * SECOND);
    world.cut_both(0, 1);
    world.run(20 * SECOND);
    for n in 0..40 {
        world.append(0, n % 4, 10);
        world.append(1, n % 4, 10);
    }
    world.set_presence(0, 3, "alice", 5);
    world.run(5 * SECOND);
    world.assert_equal_logs();
    assert!(!world.regions[1].reach[&region_id(0)]);
    assert_eq!(
        world.regions[1].presence.live().len(),
        1,
        "presence is relayed too"
    );
    // The direct link takes over again, and the relay stops.
    settle(&mut world);
    assert!(world.regions[1].reach[&region_id(0)]);
    assert!(world.again <= 4, "{} operations came twice", world.again);
    let shipped = world.shipped;
    world.append(0, 0, 10);
    world.run(SECOND);
    world.assert_equal_logs();
    assert_eq!(world.shipped - shipped, 2);
}

#[test]
fn what_a_chain_of_regions_relays_arrives_at_its_end() {
    let mut world = World::new(4, &[1, 1, 1, 1], 2, CoreLimits::default());
    // Only a-b, b-c and c-d remain.
    world.cut_both(0, 2);
    world.cut_both(0, 3);
    world.cut_both(1, 3);
    world.run(20 * SECOND);
    for n in 0..20 {
        world.append(0, n % 2, 10);
        world.append(3, n % 2, 10);
    }
    world.run(10 * SECOND);
    world.assert_equal_logs();
}

/// What a region asks of the others is all they know of its links: nobody may go on changing its mind about whom to ask.
#[test]
fn those_that_are_left_fall_silent_when_a_region_is_gone_for_good() {
    for seed in 0..40 {
        let mut world = World::new(300 + seed, &[1, 1, 2, 1], 3, CoreLimits::default());
        world.run(3 * SECOND);
        world.append(3, 0, 10);
        world.run(SECOND);
        world.kill(3);
        world.run(40 * SECOND);
        let since = world.now - world.last_busy;
        assert!(
            since > 15 * SECOND,
            "seed {seed}: something is sent {since} us before"
        );
    }
}

#[test]
fn one_of_those_in_touch_relays_in_the_end() {
    let mut world = World::new(7, &[1, 1, 1, 1], 2, CoreLimits::default());
    // Of a, d hears by b or c.
    world.cut_both(0, 3);
    world.run(40 * SECOND);
    let (shipped, again) = (world.shipped, world.again);
    for n in 0..20 {
        world.append(0, n % 2, 10);
    }
    world.run(5 * SECOND);
    world.assert_equal_logs();
    // a to b, a to c, and one of them to d.
    assert_eq!(world.again, again, "nothing comes twice");
    assert!(world.shipped - shipped <= 3 * 22, "{}", world.shipped - shipped);
}

#[test]
fn a_restored_backup_gets_back_what_it_lost() {
    let mut world = World::new(5, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    let backup = world.regions[0].state.clone();
    for _ in 0..10 {
        world.append(0, 0, 10);
        world.append(0, 1, 10);
    }
    world.run(2 * SECOND);
    world.kill(0);
    world.regions[0].state = backup;
    world.start(0);
    world.append(0, 0, 10);
    world.run(10 * SECOND);
    world.assert_equal_logs();
    assert_eq!(world.applied(0, 1, 0), 11);
    assert!(world.regions.iter().all(|region| region.alarms.is_empty()));
}

/// What waits for a busy store when its region loses it is applied afterwards, and goes back there.
#[test]
fn a_lost_store_gets_back_what_others_had_not_stored_yet() {
    let mut world = World::new(6, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    world.run(SECOND);
    let backup = world.regions[0].state.clone();
    world.store_errors = 1000;
    for _ in 0..10 {
        world.append(0, 0, 10);
    }
    world.run(SECOND);
    assert_eq!(world.applied(1, 0, 0), 2);
    world.kill(0);
    world.regions[0].state = backup;
    world.start(0);
    world.run(3 * SECOND);
    world.store_errors = 0;
    world.run(10 * SECOND);
    world.assert_equal_logs();
    assert_eq!(world.applied(0, 0, 0), 12);
}

#[test]
fn older_origins_go_before_newer_ones() {
    let mut world = World::new(17, &[1, 1], 2, tiny());
    world.cut_both(0, 1);
    for _ in 0..4 {
        for _ in 0..30 {
            world.append(0, 0, 50);
            world.append(0, 1, 50);
        }
        world.run(SECOND);
        world.kill(0);
        world.start(0);
    }
    settle(&mut world);
    world.assert_equal_logs();
    assert_eq!(
        world.early, 0,
        "no log arrives before the one that it begins after"
    );
    assert_eq!(world.again, 0);
}

#[test]
fn a_log_that_arrives_before_the_one_it_begins_after_waits() {
    let mut world = World::new(18, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    let lane = world.regions[1].links[0].peers[0].pull.lane();
    let start = |origin, previous: Option<u64>| {
        let previous = previous.map(|previous| Coord {
            origin: Origin(previous),
            seq: 1,
        });
        let region = region_id(0);
        let op = Op::Start { region, previous };
        let op = LoggedOp::encode(&op, Hlc::default());
        let run = run(origin, 1, op.bytes().clone());
        Message::ToSubscriber {
            lane,
            body: ToSubscriber::Ops(vec![run]),
        }
    };
    world.inject(1, 0, &addr(0, 0), start(900, Some(800)));
    world.run(SECOND);
    assert_eq!((world.early, world.applied(1, 0, 0)), (1, 0));
    world.inject(1, 0, &addr(0, 0), start(900, Some(800)));
    world.run(SECOND);
    assert_eq!(
        world.early, 1,
        "what waits does not go to the store again and again"
    );
    world.inject(1, 0, &addr(0, 0), start(800, None));
    world.run(SECOND);
    world.inject(1, 0, &addr(0, 0), start(900, Some(800)));
    world.run(SECOND);
    assert_eq!((world.early, world.applied(1, 0, 0)), (1, 2));
    assert_eq!(world.regions[1].links[0].owned[&ShardId(0)].held.len(), 0);
}

/// The subscriber got the older log by another way, and it was retired before this provider could ship it.
#[test]
fn a_log_that_begins_after_one_that_is_retired_meanwhile_is_shipped() {
    let mut world = World::new(19, &[1, 1], 2, tiny());
    world.cut_both(0, 1);
    for _ in 0..100 {
        world.append(0, 0, 50);
    }
    let older = world.regions[0].state.identity.origin;
    world.run(SECOND);
    world.kill(0);
    world.start(0);
    let newer = world.regions[0].state.identity.origin;
    world.append(0, 0, 50);
    let shard = ShardId(0);
    let position = |world: &World| {
        let serve = world.regions[0].links[0].peers[0].serve.as_ref()?;
        let position = serve.shards.get(&shard)?.positions.get(&newer)?;
        Some((position.waits, position.seq))
    };
    world.heal(0, 1);
    let waits = |world: &World| position(world).is_some_and(|(waits, _)| waits.is_some());
    for _ in 0..10_000 {
        if waits(&world) {
            break;
        }
        world.run(SECOND / 1000);
    }
    assert!(waits(&world), "{:?}", position(&world));

    let seq = world.regions[0].state.shards[&shard].row.logs[&older].seq;
    let now = world.clocks();
    world.regions[0].links[0].handle_retired(shard, &BTreeMap::from([(older, seq)]), now);
    world.drain(0);
    world.run(SECOND);
    assert_eq!(position(&world), Some((None, 2)));
}

#[test]
fn what_a_log_does_not_have_any_more_comes_as_a_snapshot() {
    let mut world = World::new(6, &[1, 1], 2, CoreLimits::default());
    world.cut_both(0, 1);
    for _ in 0..10 {
        world.append(0, 0, 10);
        world.append(0, 1, 10);
    }
    world.regions[0].trim(0, 0, 5);
    world.heal(0, 1);
    world.run(20 * SECOND);
    assert_eq!((world.applied(1, 0, 0), world.applied(1, 1, 0)), (11, 11));
    assert!(
        world.regions[1].alarms.is_empty(),
        "{:?}",
        world.regions[1].alarms
    );
    // What another region trimmed was confirmed here once: the store lost it, and the shard recovers.
    let lost: Vec<ShardId> = world.regions[1].losses.iter().map(|(shard, _)| *shard).collect();
    assert_eq!(lost, [ShardId(0)]);
    assert!(world.regions[1].recovering.is_empty(), "it has caught up");
    let (ours, theirs) = (
        &world.regions[1].state.shards[&ShardId(0)],
        &world.regions[0].state.shards[&ShardId(0)],
    );
    let kept = |shard: &crate::core::state::ShardState| {
        let users = shard.users.iter();
        users
            .map(|(user, known)| {
                (
                    user.clone(),
                    known.row.unread,
                    known.inbox.values().map(crate::core::state::Series::last).max(),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(ours), kept(theirs));
    let stats = world.regions[1].links[0].stats();
    assert_eq!(
        (
            stats.snapshots_asked,
            stats.snapshots_taken,
            stats.snapshots_ended
        ),
        (1, 1, 0)
    );
    world.append(1, 0, 10);
    world.append(0, 0, 10);
    world.run(SECOND);
    world.assert_equal_logs();
}

#[test]
fn other_bytes_under_the_same_sequence_stop_the_shard() {
    let mut world = World::new(7, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    world.run(SECOND);
    // The store is set back and goes on under the same origin: what R1 forbids.
    let origin = world.regions[0].state.identity.origin;
    let before = world.regions[0].state.clone();
    world.append(0, 0, 10);
    world.run(SECOND);
    world.kill(0);
    world.regions[0].state = before;
    world.start(0);
    world.regions[0].state.identity.origin = origin;
    for _ in 0..3 {
        world.append(0, 0, 11);
        world.append(0, 1, 11);
    }
    world.run(10 * SECOND);
    let diverged = world.regions[1].alarms.iter().any(|alarm| {
        matches!(
            alarm,
            LinkAlarm::Stopped {
                shard: ShardId(0),
                reason: StopReason::Diverged { .. },
                ..
            }
        )
    });
    assert!(diverged, "{:?}", world.regions[1].alarms);
    assert_eq!(
        world.applied(1, 1, 0),
        world.applied(0, 1, 0),
        "the other shard goes on"
    );
}

#[test]
fn a_peer_that_has_more_of_our_current_origin_is_an_alarm() {
    let mut world = World::new(8, &[1, 1], 1, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    world.run(SECOND);
    let origin = world.regions[0].state.identity.origin;
    let subscribe = ToProvider::Subscribe {
        first: true,
        holders: vec![region_id(0), region_id(1)],
        shards: vec![(ShardId(0), [(origin, 99)].into_iter().collect())],
        wanted: vec![region_id(0)],
        last: true,
    };
    let message = Message::ToProvider {
        lane: u64::MAX,
        body: subscribe,
    };
    world.inject(0, 0, &addr(1, 0), message);
    assert!(matches!(
        world.regions[0].alarms[..],
        [LinkAlarm::AheadOfUs {
            ours: 2,
            theirs: 99,
            ..
        }]
    ));
}

#[test]
fn holders_without_the_provider_are_refused_on_both_sides() {
    let mut world = World::new(9, &[1, 1], 1, CoreLimits::default());
    world.run(3 * SECOND);
    let subscribe = ToProvider::Subscribe {
        first: true,
        holders: vec![region_id(1), region_id(2)],
        shards: vec![(ShardId(0), Vector::new())],
        wanted: vec![region_id(0)],
        last: true,
    };
    let lane = world.regions[1].links[0].peers[0].pull.lane();
    let message = Message::ToProvider {
        lane: lane + 1,
        body: subscribe,
    };
    world.inject(0, 0, &addr(1, 0), message);
    assert!(matches!(
        &world.regions[0].alarms[..],
        [LinkAlarm::Refused { .. }]
    ));
    let refused = ToSubscriber::Refused {
        detail: "no".into(),
        removed: None,
    };
    world.inject(1, 0, &addr(0, 0), Message::ToSubscriber { lane, body: refused });
    assert!(matches!(
        &world.regions[1].alarms[..],
        [LinkAlarm::Refused { .. }]
    ));
    let status = &world.regions[1].links[0].snapshot(world.clocks())[0];
    assert_eq!(status.pull.as_ref().unwrap().state, LinkState::Refused);
    world.append(0, 0, 10);
    world.run(40 * SECOND);
    world.assert_equal_logs();
}

#[test]
fn a_region_that_knows_that_it_was_removed_raises_no_alarm_for_it() {
    let mut world = World::new(9, &[1, 1], 1, CoreLimits::default());
    let change = HoldersChange {
        version: 1,
        set: [region_id(0)].into(),
        gone: BTreeSet::new(),
    };
    for (told, alarms) in [(None, 1), (Some(change.clone()), 1), (None, 2)] {
        let partners = Partners {
            all: [region_id(0), region_id(1)].into(),
            staying: [region_id(0), region_id(1)].into(),
            change: told,
        };
        let now = world.clocks();
        world.regions[1].links[0].handle_regions(&partners, now);
        world.run(10 * SECOND);
        let lane = world.regions[1].links[0].peers[0].pull.lane();
        let body = ToSubscriber::Refused {
            detail: "removed".into(),
            removed: Some(change.clone()),
        };
        world.inject(1, 0, &addr(0, 0), Message::ToSubscriber { lane, body });
        assert_eq!(world.regions[1].alarms.len(), alarms);
    }
    assert_eq!(world.regions[1].removed_by.len(), 3);
}

#[test]
fn messages_of_older_lanes_are_ignored() {
    let mut world = World::new(10, &[1, 1], 1, CoreLimits::default());
    world.run(3 * SECOND);
    world.append(0, 0, 10);
    world.run(SECOND);
    let before = world.regions[1].links[0].stats();
    let lane = world.regions[1].links[0].peers[0].pull.lane();
    let run = run(77, 9, Bytes::from_static(b"junk"));
    for body in [ToSubscriber::Ops(vec![run]), ToSubscriber::Reset] {
        world.inject(1, 0, &addr(0, 0), Message::ToSubscriber { lane: lane - 1, body });
    }
    let subscribe = ToProvider::Subscribe {
        first: true,
        holders: vec![region_id(0), region_id(1)],
        shards: Vec::new(),
        wanted: Vec::new(),
        last: true,
    };
    world.inject(
        0,
        0,
        &addr(1, 0),
        Message::ToProvider {
            lane: 1,
            body: subscribe,
        },
    );
    world.append(0, 0, 10);
    world.run(SECOND);
    world.assert_equal_logs();
    let after = world.regions[1].links[0].stats();
    assert_eq!(after.stale - before.stale, 2);
    assert_eq!(after.lanes_opened, before.lanes_opened);
    assert!(world.regions[1].alarms.is_empty());
}

#[test]
fn a_run_that_never_fits_stops_the_shard() {
    let mut world = World::new(11, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    let junk = || ToSubscriber::Ops(vec![run(77, 9, Bytes::from_static(b"junk"))]);
    let lane = world.regions[1].links[0].peers[0].pull.lane();
    for _ in 0..2 {
        world.inject(1, 0, &addr(0, 0), Message::ToSubscriber { lane, body: junk() });
    }
    assert!(
        world.regions[1].alarms.is_empty(),
        "what was on its way before the shard was asked for again"
    );
    world.run(SECOND);
    world.inject(1, 0, &addr(0, 0), Message::ToSubscriber { lane, body: junk() });
    assert!(matches!(
        &world.regions[1].alarms[..],
        [LinkAlarm::Stopped {
            shard: ShardId(0),
            reason: StopReason::NeedsSnapshot { .. },
            ..
        }]
    ));
    let status = &world.regions[1].links[0].snapshot(world.clocks())[0];
    assert_eq!(
        status.pull.as_ref().unwrap().held_bytes,
        0,
        "what is dropped is not held"
    );
    world.append(0, 1, 10);
    world.run(SECOND);
    assert_eq!(world.applied(1, 1, 0), 2);
}

#[test]
fn a_provider_that_ignores_credit_loses_its_lane() {
    let mut world = World::new(12, &[1, 1], 1, tiny());
    world.run(3 * SECOND);
    let pull = &world.regions[1].links[0].peers[0].pull;
    let lane = pull.lane();
    let run = run(77, 1, Bytes::from(vec![0; 2 * 1024 * 1024]));
    world.inject(
        1,
        0,
        &addr(0, 0),
        Message::ToSubscriber {
            lane,
            body: ToSubscriber::Ops(vec![run]),
        },
    );
    assert_eq!(world.regions[1].links[0].stats().overruns, 1);
    world.append(0, 0, 10);
    world.run(5 * SECOND);
    world.assert_equal_logs();
}

#[test]
fn a_silent_region_is_told_within_the_timeout() {
    let mut world = World::new(13, &[1, 1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    // One way only: what c says does not arrive at a, though c hears a.
    world.cut(2, 0);
    world.run(7 * SECOND);
    assert_eq!(
        world.regions[0].reach,
        [(region_id(1), true), (region_id(2), false)].into()
    );
    world.run(3 * SECOND);
    assert!(!world.regions[2].reach[&region_id(0)]);
    settle(&mut world);
    assert!(
        world
            .regions
            .iter()
            .all(|region| region.reach.values().all(|up| *up))
    );
    assert!(
        world.regions[0].links[0]
            .clocks(world.clocks())
            .latest_ms
            .abs_diff(world.clocks().wall_ms)
            < 200
    );
}

#[test]
fn what_waits_is_known_in_bytes_and_time_also_while_its_region_is_away() {
    let mut world = World::new(31, &[1, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    for _ in 0..10 {
        world.append(0, 0, 20);
    }
    world.run(5 * SECOND);
    let given = |world: &World| {
        let status = world.regions[0].links[0].snapshot(world.clocks());
        status
            .into_iter()
            .find_map(|link| link.serve)
            .expect("it is served, or was")
    };
    let level = given(&world);
    assert_eq!((level.open, level.behind), (true, Lag::default()));
    assert!(level.shipped >= 10 && level.shipped_bytes > 0, "{level:?}");

    world.cut_both(0, 1);
    world.run(20 * SECOND);
    let before = given(&world).behind.operations;
    let since = world.clocks().wall_ms;
    for shard in [0, 1, 1] {
        world.append(0, shard, 500);
        world.run(SECOND);
    }
    let away = given(&world);
    assert!(!away.open, "{away:?}");
    assert!(away.behind.operations >= before + 3, "{away:?}");
    assert_eq!(away.behind.messages, 3);
    assert!(away.behind.bytes >= 1500 && !away.behind.at_least, "{away:?}");
    assert!(
        away.behind.since_ms.is_some_and(|ms| ms <= since + 100),
        "{away:?}"
    );
    assert_eq!(
        away.shipped, level.shipped,
        "what was shipped before still counts"
    );

    settle(&mut world);
    world.run(5 * SECOND);
    let again = given(&world);
    assert_eq!((again.open, again.behind), (true, Lag::default()));
    assert!(again.shipped >= level.shipped + 3, "{again:?}");
}

#[test]
fn a_region_that_never_answers_is_unreachable() {
    let mut world = World::new(14, &[1, 1], 1, CoreLimits::default());
    world.cut_both(0, 1);
    world.run(4 * SECOND);
    assert!(world.regions[0].reach.is_empty());
    world.run(4 * SECOND);
    assert_eq!(world.regions[0].reach, [(region_id(1), false)].into());
}

#[test]
fn presence_arrives_everywhere_as_changes_and_by_digests() {
    let mut world = World::new(15, &[1, 2, 1], 4, tiny());
    for n in 0..40u32 {
        world.set_presence(n as usize % 3, n % 4, &format!("u{n}"), 1);
    }
    world.run(5 * SECOND);
    let expected = world.regions[0].presence.live();
    assert_eq!(expected.len(), 40);
    assert!(
        world
            .regions
            .iter()
            .all(|region| region.presence.live() == expected)
    );
    world.set_presence(0, 1, "u1", 2);
    world.run(SECOND);
    assert!(
        world
            .regions
            .iter()
            .all(|region| region.presence.live().values().filter(|v| **v == 2).count() == 1)
    );
    // What changed while a link was down comes with the next subscription.
    world.cut_both(0, 1);
    world.cut_both(0, 2);
    world.run(10 * SECOND);
    for n in 0..40u32 {
        world.set_presence(0, n % 4, &format!("u{n}"), 3);
    }
    world.run(SECOND);
    settle(&mut world);
    let expected = world.regions[0].presence.live();
    assert!(
        world
            .regions
            .iter()
            .all(|region| region.presence.live() == expected)
    );
    assert!(world.now - world.last_busy > 20 * SECOND, "presence falls silent");
}

#[test]
fn a_shard_that_moves_between_partitions_goes_on() {
    let mut world = World::new(16, &[2, 1], 2, CoreLimits::default());
    world.run(3 * SECOND);
    for _ in 0..5 {
        world.append(0, 0, 10);
        world.append(1, 0, 10);
    }
    // Region b's only partition loses shard 0 for a while, and its neighbour's view of who owns it follows.
    let now = world.clocks();
    world.regions[1].links[0].handle_owned(ShardId(0), None, now);
    world.drain(1);
    for _ in 0..5 {
        world.append(0, 0, 10);
    }
    world.run(3 * SECOND);
    let logs = world.regions[1].state.shards[&ShardId(0)].row.logs.iter();
    let logs = logs
        .map(|(origin, log)| (*origin, log.region.clone(), log.seq))
        .collect();
    let now = world.clocks();
    world.regions[1].links[0].handle_owned(ShardId(0), Some(logs), now);
    world.drain(1);
    world.append(1, 0, 10);
    world.run(3 * SECOND);
    world.assert_equal_logs();
    assert!(world.regions.iter().all(|region| region.alarms.is_empty()));
}

/// Random faults, then heal: all logs equal, nothing shipped in vain any more.
fn storm(seed: u64, partitions: &[usize], tight: bool) {
    let limits = if tight { tiny() } else { CoreLimits::default() };
    let mut world = World::new(seed, partitions, 6, limits);
    world.store_errors = 20;
    world.delay = if seed.is_multiple_of(3) { 400_000 } else { 40_000 };
    let count = partitions.len() as u64;
    let mut version = 0;
    for _ in 0..100 {
        let a = world.random.below(count) as usize;
        let b = (a + 1 + world.random.below(count - 1) as usize) % partitions.len();
        match world.random.below(20) {
            0 => world.cut_both(a, b),
            1 => world.cut(a, b),
            2 | 3 => world.heal(a, b),
            4 => world.break_link(a, b),
            5 => {
                world.kill(a);
                let pause = world.random.below(3 * SECOND);
                world.run(pause);
                world.start(a);
            }
            6 | 7 => {
                version += 1;
                let user = format!("u{}", world.random.below(30));
                world.set_presence(a, world.shards - 1, &user, version);
            }
            _ => {
                let shard = world.random.below(6) as u32;
                for _ in 0..world.random.below(12) {
                    let body = world.random.below(OP_MAX - 200) as usize;
                    world.append(a, shard, body);
                }
            }
        }
        let pause = world.random.below(SECOND);
        world.run(pause);
    }
    settle(&mut world);
    world.assert_equal_logs();
    let presence = world.regions[0].presence.live();
    for region in &world.regions {
        assert!(region.presence.live() == presence, "presence of {}", region.id);
        assert!(region.alarms.is_empty(), "{:?}", region.alarms);
        assert!(region.reach.values().all(|up| *up));
    }
    assert_eq!(world.misfits, 0, "every run fits what is applied");
    assert!(world.now - world.last_busy > 5 * SECOND, "links fall silent");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn after_a_storm_all_regions_are_equal(seed in any::<u64>(), shape in 0usize..5, tight in any::<bool>()) {
        let shapes: [&[usize]; 5] = [&[1, 1], &[2, 1], &[1, 1, 1], &[1, 2, 1], &[1, 1, 2, 1]];
        storm(seed, shapes[shape], tight);
    }
}

#[test]
fn a_backlog_is_given_at_a_limited_rate_and_live_operations_are_not() {
    let limits = CoreLimits {
        catch_up_bytes: 20_000,
        ..CoreLimits::default()
    };
    let mut world = World::new(21, &[1, 1], 2, limits);
    world.run(3 * SECOND);
    world.cut_both(0, 1);
    let mut last = 0;
    for _ in 0..100 {
        last = world.append(0, 0, 1000);
    }
    world.run(20 * SECOND);
    world.heal(0, 1);
    let mut waited = 0;
    while world.applied(1, 0, 0) < 2 {
        world.run(SECOND / 10);
        waited += 1;
        assert!(waited < 600);
    }
    // A burst comes at once, the rest at the rate; what is committed now, in another shard, does not wait for it.
    world.run(SECOND);
    let live = world.append(0, 1, 10);
    world.run(SECOND / 2);
    assert_eq!(world.applied(1, 1, 0), live);
    let given = world.applied(1, 0, 0);
    assert!(given < last / 2 + 20, "{given} of {last}");
    world.run(6 * SECOND);
    assert_eq!(world.applied(1, 0, 0), last);
}
