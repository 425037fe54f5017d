//! Each defect of the machines is found within so many seeds, by a checker that is about it. Those of the harness are in
//! `tests/sim.rs`.

use super::case::{Case, DevicePlan, SECOND, UserPlan};
use super::fault::{Fault, Kind};
use super::{Defect, EngineKind, Options, Violation, draw, run_case, shipped};
use crate::core::defect::Defect as Core;
use crate::server::regions::Regions;

fn with(defect: Core) -> Options {
    Options {
        defect: Some(Defect::Core(defect)),
        ..Options::default()
    }
}

/// Runs cases with the defect until a checker finds it, and prints how many that took.
fn found(defect: Core, mut cases: impl Iterator<Item = Case>, by: &[&str]) {
    let mut runs = 0;
    let mut broken = |case: Case| -> Option<(u64, Violation)> {
        runs += 1;
        Some((case.seed, run_case(case, with(defect)).violation?))
    };
    let first = cases.find_map(&mut broken);
    let (seed, violation) = first.unwrap_or_else(|| panic!("{defect:?} is not found in {runs} runs"));
    println!(
        "{defect:?}: found in run {runs} (seed {seed}) by {:?}",
        violation.invariant
    );
    let about = by.contains(&violation.invariant);
    assert!(about, "{defect:?}, seed {seed}: {violation:?}");
}

macro_rules! defects {
    ($($name:ident: $defect:ident within $seeds:literal by [$($by:literal),* $(,)?];)*) => {
        $(
            #[test]
            fn $name() {
                found(Core::$defect, (0..$seeds).map(draw::draw), &[$($by),*]);
            }
        )*
    };
}

defects! {
    ship_before_commit_is_found: ShipBeforeCommit within 100 by ["ship after commit"];
    trim_by_time_is_found: TrimByTime within 50 by ["nothing above stable is trimmed (R9)"];
    trim_without_devices_is_found: TrimWithoutDevices within 50 by [
        "nothing is removed without a device (R10)",
        // Half of the removals are looked at when they happen; the others show in the end.
        "equal inboxes",
    ];
    one_read_position_is_found: OneReadPosition within 50 by [
        "a cursor covers what was consumed (R14)",
        "consumed by every device (R10)",
        "accepted is delivered",
    ];
    keeping_the_first_copy_is_found: FirstCopyOnly within 400 by [
        "accepted is delivered",
        "once in effect",
        "equal inboxes",
        "equal siblings",
        // A log whose message is in no inbox cannot be read.
        "durability",
    ];
    a_device_that_starts_at_applied_is_found: DeviceStartsAtApplied within 50 by [
        "a cursor covers what was consumed (R14)",
        "accepted is delivered",
        "consumed by every device (R10)",
    ];
    a_clamped_claim_is_found: ClaimClamped within 800 by ["a claim is obeyed (R17)"];
    a_cursor_that_jumps_is_found: CursorJumps within 50 by ["a cursor covers what was consumed (R14)"];
    an_origin_that_is_retired_early_is_found: RetiredEarly within 100 by [
        "retired when nobody needs it (R23)",
        "retired when all have all of it (R23)",
    ];
    a_copy_that_is_not_there_is_found: GeoEarly within 100 by ["geo"];
    // Where they follow each other closely, no moment comes at which all have all of them.
    confirm_on_confirm_is_found: ConfirmOnConfirm within 50 by ["silence", "equal logs"];
    a_later_deposit_that_passes_is_found: LaterPasses within 800 by ["refusals have a cause", "order (R21)"];
    an_end_that_ends_anyone_is_found: EndsAnyone within 200 by [
        "presence is the truth",
        "watchers see the truth",
        "no false offlines",
    ];
    a_forgotten_generation_is_found: GenerationForgotten within 800 by [
        "no ghosts",
        "presence is the truth",
        "no state of a dead generation",
    ];
    a_merge_that_keeps_its_own_is_found: KeepsOwn within 50 by ["presence is the truth", "watchers see the truth"];
    a_lease_that_is_a_write_is_found: LeaseIsAWrite within 50 by ["silence", "presence is the truth"];
    a_full_queue_that_drops_is_found: DropsWhenFull within 800 by [
        "bounded queues",
        "refusals have a cause",
        "order (R21)",
        "every message is answered",
    ];
}

/// A region is cut off for long while the logs are far below the limit.
#[test]
fn a_holder_that_is_marked_early_is_found() {
    let cut = |mut case: Case| {
        let first = case.places[0].id.to_string();
        case.random = None;
        case.store.absent_log_bytes = 1 << 40;
        case.limits.absent_ms = 1_000;
        let others = case.places.iter().skip(1).map(|place| place.id.to_string());
        case.faults = others
            .map(|other| {
                Fault::new(3 * SECOND, Kind::Cut)
                    .between(first.clone(), other)
                    .lasting(6 * SECOND)
            })
            .collect();
        case
    };
    let cases = || {
        (0..60)
            .map(draw::draw)
            .filter(|case| case.places.len() > 1)
            .map(cut)
    };
    sound(cases().take(5));
    found(
        Core::MarkedEarly,
        cases(),
        &["marked only beyond the limits (R12)"],
    );
}

/// As the shipped scenario, with the same seeds.
#[test]
fn what_is_newer_first_after_a_move_is_found() {
    let cases = || {
        let mut scenarios = shipped::scenarios().into_iter();
        let scenario = scenarios.find(|scenario| scenario.name == "moved-in-order");
        let (scenario, regions) = (scenario.expect("it is shipped"), Regions::built_in());
        (0..40).map(move |seed| scenario.case(&regions, seed).expect("it is valid"))
    };
    sound(cases().take(5));
    found(
        Core::MovedAtOnce,
        cases(),
        &["what is older comes first after a move (R22)"],
    );
}

/// A region is removed while it is cut off: it goes on accepting, until it hears of that.
fn removed_while_cut_off(mut case: Case) -> Case {
    let names: Vec<String> = case.places.iter().map(|place| place.id.to_string()).collect();
    let last = names[names.len() - 1].clone();
    case.work = 14 * SECOND;
    case.random = None;
    case.later.clear();
    case.store.absent_log_bytes = 1 << 40;
    case.faults = names[..names.len() - 1]
        .iter()
        .map(|other| {
            Fault::new(3 * SECOND, Kind::Cut)
                .between(last.clone(), other.clone())
                .lasting(6 * SECOND)
        })
        .collect();
    case.faults
        .push(Fault::new(4 * SECOND, Kind::RegionRemove).on(last));
    case
}

fn may_lose_a_region(case: &Case) -> bool {
    case.places.len() > 2 && case.engine != EngineKind::Shared
}

#[test]
fn a_region_that_nobody_waits_for_is_found() {
    let cases = || {
        (0..80)
            .map(draw::draw)
            .filter(may_lose_a_region)
            .map(removed_while_cut_off)
    };
    sound(cases().take(6));
    let by = [
        "a region that is removed leaves everything (R13)",
        "retired when all have all of it (R23)",
        "accepted is delivered",
    ];
    found(Core::LeaverForgotten, cases(), &by);
}

#[test]
fn a_set_that_counts_alone_at_once_is_found() {
    let cases = || {
        (0..80)
            .map(draw::draw)
            .filter(may_lose_a_region)
            .map(removed_while_cut_off)
    };
    let by = ["nothing above stable is trimmed (R9)"];
    found(Core::NewSetAtOnce, cases(), &by);
}

/// Every queue at its limit: so small that each is met.
fn crowded(mut case: Case) -> Case {
    let limits = &mut case.limits;
    limits.store_reads = 2;
    limits.lane_deposits = 3;
    limits.owner_deposits = 6;
    limits.window_messages = 4;
    limits.window_bytes = 2048;
    limits.lane_bytes = 4096;
    limits.link_bytes = 4096;
    limits.presence_batch = 1;
    limits.presence_ms = 5;
    for workload in &mut case.workload {
        (workload.every, workload.bursts, workload.statuses) = (5_000, 600, 300);
        workload.count = 400;
    }
    case
}

macro_rules! crowds {
    ($($name:ident: $defect:ident within $seeds:literal;)*) => {
        $(
            #[test]
            fn $name() {
                found(Core::$defect, (0..$seeds).map(draw::draw).map(crowded), &["bounded queues"]);
            }
        )*
    };
}

crowds! {
    shipping_without_credit_is_found: CreditIgnored within 50;
    a_window_that_does_not_close_is_found: WindowIgnored within 50;
    a_lane_that_takes_any_deposit_is_found: LaneIgnored within 100;
    deliveries_that_do_not_wait_for_room_are_found: RoomIgnored within 100;
    reads_without_number_are_found: ReadsAtOnce within 50;
    presence_that_does_not_wait_is_found: PresenceUncredited within 100;
    an_owner_that_is_never_full_is_found: NeverFull within 50;
}

#[test]
fn crowded_queues_stay_within_their_limits() {
    sound((0..40).map(draw::draw).map(crowded));
}

/// An edge dies together with the owner of its sessions, which is back before it and never saw it: no death is an event
/// there. Their users are gone for good, and somebody in another region watches.
#[test]
fn death_as_an_event_is_found() {
    let together = |mut case: Case| {
        let (here, there) = (case.places[0].id.clone(), case.places[1].id.clone());
        case.work = 60 * SECOND;
        case.random = None;
        (case.limits, case.membership) = Default::default();
        for node in case.nodes.iter_mut().filter(|node| node.region == here) {
            node.edge = !node.core;
        }
        case.faults.clear();
        for (at, user) in case.users.iter_mut().enumerate() {
            let gone = at % 2 == 0;
            user.home = if gone { here.clone() } else { there.clone() };
            user.devices.truncate(1);
            for device in &mut user.devices {
                device.arrives = Some(SECOND);
                device.home = None;
                device.watches = Some(vec!["all".to_owned()]);
            }
            if gone {
                let leaves = Fault::new(8 * SECOND, Kind::Leave).device(user.name.clone());
                case.faults.push(leaves);
            }
        }
        let (core, edges) = (format!("{here}/core"), format!("{here}/edges"));
        let crash = |place, lasts| Fault::new(8 * SECOND, Kind::Crash).on(place).lasting(lasts);
        case.faults.push(crash(core, SECOND));
        case.faults.push(crash(edges, 12 * SECOND));
        case
    };
    let fits = |case: &Case| {
        let edges = |at: usize| {
            let there = case.nodes.iter().filter(|node| node.region == case.places[at].id);
            there.filter(|node| !node.core).count()
        };
        let users = case.users.iter().filter(|user| !user.devices.is_empty()).count();
        case.places.len() > 1 && case.engine != EngineKind::Shared && edges(0) > 0 && users > 4
    };
    let cases = || (0..100).map(draw::draw).filter(fits).map(together);
    sound(cases().take(5));
    found(
        Core::DeathIsAnEvent,
        cases().take(20),
        &[
            "no ghosts",
            "presence is the truth",
            "watchers see the truth",
            "no state of a dead generation",
        ],
    );
}

/// A region is cut off while a third of all users connect again, on either side.
fn apart(mut case: Case) -> Case {
    let names: Vec<_> = case.places.iter().map(|place| place.id.clone()).collect();
    (case.work, case.random, case.shards) = (30 * SECOND, None, 2);
    (case.limits, case.membership, case.network) = Default::default();
    for node in &mut case.nodes {
        (node.clock_ms, node.drift_ppm) = (0, 0);
    }
    case.users = (0..90)
        .map(|at| UserPlan {
            name: format!("user-{at}"),
            home: names[at % names.len()].clone(),
            devices: vec![DevicePlan {
                arrives: Some(SECOND + at as u64 * 20_000),
                home: None,
                watches: Some(Vec::new()),
                stays: false,
                enters: None,
            }],
        })
        .collect();
    let again = (0..90).step_by(3).map(|at| format!("user-{at}"));
    let again = again.fold(Fault::new(14 * SECOND, Kind::Disconnect), Fault::device);
    let others = names[1..].iter().map(|name| name.to_string());
    let cut = Fault::new(6 * SECOND, Kind::Cut).lasting(16 * SECOND);
    let cut = others.fold(cut, |mut cut, name| {
        cut.to.push(name);
        cut
    });
    let cut = Fault {
        from: vec![names[0].to_string()],
        ..cut
    };
    case.faults = vec![cut, again];
    case.workload.iter_mut().for_each(|workload| workload.count = 40);
    // So few differ that the messages themselves weigh as much as half of it.
    case.expect.repair_percent = Some(300);
    case
}

fn cases_apart() -> impl Iterator<Item = Case> {
    let several = |case: &Case| case.places.len() > 1 && case.engine != EngineKind::Shared;
    (0..60).map(draw::draw).filter(several).map(apart)
}

#[test]
fn a_repair_that_sends_everything_is_found() {
    sound(cases_apart().take(5));
    found(
        Core::RepairsWhole,
        cases_apart(),
        &["expected: repair costs little"],
    );
}

#[test]
fn digests_that_are_ignored_are_found() {
    let by = ["presence is the truth", "no false offlines", "no ghosts"];
    found(Core::DigestsIgnored, cases_apart(), &by);
}

/// One region's clock is a day ahead, and messages live for hours: some wait for users who come when all is healed.
#[test]
fn what_expires_by_one_clock_is_found() {
    let ahead = |mut case: Case| {
        let first = case.places[0].id.clone();
        for node in case.nodes.iter_mut() {
            (node.clock_ms, node.drift_ppm) = (0, 0);
            if node.region == first {
                node.clock_ms = 86_400_000;
            }
        }
        case.random = None;
        case.limits.expiry_margin_ms = 1_000;
        for workload in &mut case.workload {
            (workload.expiring, workload.ttl) = (800, 6 * 3600 * SECOND);
        }
        case
    };
    let several = |case: &Case| case.places.len() > 1;
    let cases = || (0..60).map(draw::draw).filter(several).map(ahead);
    for case in cases().take(4) {
        let seed = case.seed;
        let violation = run_case(case, Options::default()).violation;
        assert!(
            violation.is_none(),
            "seed {seed}, all clocks asked: {violation:?}"
        );
    }
    let by = [
        "nothing expires while clocks disagree (R20)",
        "holes have a cause",
    ];
    found(Core::ExpiresAlone, cases(), &by);
}

/// A region is cut off for longer than devices live that nobody hears of; what is attached there stays.
#[test]
fn a_region_that_does_not_object_is_found() {
    let cut = |mut case: Case| {
        let names: Vec<String> = case.places.iter().map(|place| place.id.to_string()).collect();
        case.work = 20 * SECOND;
        case.random = None;
        for node in &mut case.nodes {
            (node.clock_ms, node.drift_ppm) = (0, 0);
        }
        (case.limits.expiry_margin_ms, case.limits.device_expiry_ms) = (500, 3_000);
        case.faults = (1..3)
            .map(|other| {
                Fault::new(4 * SECOND, Kind::Cut)
                    .between(names[0].clone(), names[other].clone())
                    .lasting(9 * SECOND)
            })
            .collect();
        case
    };
    let of_three = |case: &Case| case.places.len() == 3;
    let cases = || (0..60).map(draw::draw).filter(of_three).map(cut);
    sound(cases().take(8));
    let by = ["devices that are attached stay (R19)"];
    found(Core::NoVeto, cases(), &by);
}

/// Two regions of three cannot reach each other, and one of them is lost for good: what it accepted reaches the other only
/// through the third.
#[test]
fn no_relay_is_found() {
    let cut = |mut case: Case| {
        let names: Vec<String> = case.places.iter().map(|place| place.id.to_string()).collect();
        case.work = 12 * SECOND;
        case.random = None;
        case.faults = vec![
            Fault::new(SECOND, Kind::Cut).between(names[0].clone(), names[2].clone()),
            Fault::new(11 * SECOND, Kind::Lose).on(names[0].clone()),
        ];
        case
    };
    let of_three = |case: &Case| case.places.len() == 3;
    let cases = || (0..60).map(draw::draw).filter(of_three).map(cut);
    for case in cases().take(5) {
        let seed = case.seed;
        let violation = run_case(case, Options::default()).violation;
        assert!(violation.is_none(), "seed {seed}, with relay: {violation:?}");
    }
    let by = [
        "everything comes to an end",
        "accepted is delivered",
        "equal logs",
        "consumed by every device (R10)",
        "everything is applied everywhere",
    ];
    found(Core::NoRelay, cases(), &by);
}

/// A region gets an old backup back, and then each user comes with another device there: what is gone behind messages that
/// the backup kept must be told.
#[test]
fn a_gap_that_is_not_told_is_found() {
    let restored = |mut case: Case| {
        let place = case.places[0].id.clone();
        case.work = 12 * SECOND;
        case.random = None;
        case.faults = vec![
            Fault::new(4 * SECOND, Kind::Backup).on(place.to_string()),
            Fault::new(8 * SECOND, Kind::Restore)
                .on(place.to_string())
                .lasting(SECOND),
        ];
        for user in &mut case.users {
            user.devices.push(DevicePlan {
                arrives: None,
                home: Some(place.clone()),
                watches: Some(Vec::new()),
                stays: false,
                enters: None,
            });
        }
        case
    };
    let fits = |case: &Case| case.places.len() > 1 && case.engine != EngineKind::Shared;
    let cases = || (0..200).map(draw::draw).filter(fits).map(restored);
    for case in cases().take(10) {
        let seed = case.seed;
        let violation = run_case(case, Options::default()).violation;
        assert!(violation.is_none(), "seed {seed}, with holes told: {violation:?}");
    }
    // A cursor that moves on over the gap covers what nobody was told of.
    let by = ["accepted is delivered", "a cursor covers what was consumed (R14)"];
    found(Core::GapUntold, cases(), &by);
}

/// Owners that do not know yet that they are not any more need a store that several nodes share.
#[test]
fn no_fencing_is_found() {
    let shared = |case: &Case| case.engine == EngineKind::Shared;
    let cases = (0..2_000).map(draw::draw).filter(shared).take(200);
    found(Core::NoFencing, cases, &["one owner"]);
}

/// Clients give up connections on which their messages are still under way: each comes twice, on two connections.
#[test]
fn what_comes_twice_is_once_in_effect() {
    let retried = |mut case: Case| {
        case.random = None;
        case.work = 20 * SECOND;
        case.faults = (0..8)
            .map(|at| {
                Fault::new((3 + 2 * at) * SECOND, Kind::Retry)
                    .device("all")
                    .lasting(2 * SECOND)
            })
            .collect();
        for workload in &mut case.workload {
            (workload.every, workload.count) = (10_000, 1_800);
        }
        case
    };
    let mut doubled = 0;
    for case in (0..40).map(draw::draw).map(retried) {
        let report = run_case(case, Options::default());
        assert!(report.violation.is_none(), "{report}");
        doubled += report.stats.doubled;
    }
    println!("{doubled} messages came twice");
    assert!(doubled > 5);
}

/// Copies are rare: here they are not.
fn copied(mut case: Case) -> Case {
    case.workload
        .iter_mut()
        .for_each(|workload| workload.copies = 400);
    case
}

/// A message that comes again after some seconds, because its answer was lost or from another device, must be known.
#[test]
fn dedup_records_dropped_too_early_are_found() {
    let cases = (0..200).map(draw::draw).map(copied);
    found(Core::DedupDroppedEarly, cases, &["dedup (R16)", "equal dedup"]);
}

#[test]
fn asking_for_all_copies_is_found() {
    let cases = (0..800).map(draw::draw).map(copied);
    found(
        Core::AllCopies,
        cases,
        &[
            "once in effect",
            "equal inboxes",
            "consumed by every device (R10)",
        ],
    );
}

/// Cases of several regions, each with a store of its own, in which this and nothing else goes wrong.
fn aimed(seeds: u64, faults: impl Fn(&str, &str) -> Vec<Fault>) -> impl Iterator<Item = Case> {
    let fit = |case: &Case| case.places.len() > 1 && case.engine != EngineKind::Shared;
    let cases = (0..seeds).map(draw::draw).filter(fit);
    cases.map(move |mut case| {
        let (here, there) = (case.places[0].id.to_string(), case.places[1].id.to_string());
        case.work = 14 * SECOND;
        case.random = None;
        case.faults = faults(&here, &there);
        case.workload
            .iter_mut()
            .for_each(|workload| workload.copies = 400);
        case
    })
}

/// Without the defect nothing is found in them.
fn sound(cases: impl Iterator<Item = Case>) {
    for case in cases {
        let seed = case.seed;
        let violation = run_case(case, Options::default()).violation;
        assert!(
            violation.is_none(),
            "seed {seed}, without a defect: {violation:?}"
        );
    }
}

/// A disk that is replaced, so that its region takes snapshots.
fn disks(seeds: u64) -> impl Iterator<Item = Case> {
    aimed(seeds, |here, _| {
        vec![
            Fault::new(9 * SECOND, Kind::DiskReplaced)
                .on(here)
                .lasting(SECOND),
        ]
    })
}

/// A store that goes on where an old copy of it ended gives sequences a second time.
#[test]
fn a_reused_origin_is_found() {
    let restored = |seeds| {
        aimed(seeds, |here, there| {
            vec![
                Fault::new(4 * SECOND, Kind::Backup).on(here),
                Fault::new(8 * SECOND, Kind::Restore).on(here).lasting(SECOND),
                Fault::new(8 * SECOND, Kind::Cut)
                    .between(here, there)
                    .lasting(3 * SECOND),
            ]
        })
    };
    sound(restored(12));
    // Links raise an alarm as well, mostly before: here it must be seen in what the stores hold.
    let by = "equal coordinates, equal bytes";
    let seen = |case: &Case| {
        let violation = run_case(case.clone(), with(Core::OriginReused)).violation;
        violation.is_some_and(|violation| violation.invariant == by)
    };
    let (at, case) = (restored(60).enumerate())
        .find(|(_, case)| seen(case))
        .unwrap_or_else(|| panic!("no run ends by {by:?}"));
    let (run, seed) = (at + 1, case.seed);
    println!("OriginReused: found in run {run} (seed {seed}) by {by:?}");
}

/// What the holders confirmed comes by log as well, a little later: only a look at the rows tells.
#[test]
fn a_snapshot_without_confirmations_is_found() {
    sound(disks(12));
    found(
        Core::SnapshotWithoutConfirmations,
        disks(60),
        &["a snapshot is complete (R11)"],
    );
}

#[test]
fn a_snapshot_without_siblings_is_found() {
    found(
        Core::SnapshotWithoutSiblings,
        disks(200),
        &[
            "once in effect",
            "equal inboxes",
            "equal siblings",
            "consumed by every device (R10)",
        ],
    );
}

/// An old backup comes back that has less of an origin than the others had when they retired it, and its core dies once
/// more before it has let go of that: the word of the snapshot is all that is durable of it then.
#[test]
fn a_word_that_is_forgotten_is_found() {
    let restored = |seeds| {
        let cases = aimed(seeds, |here, _| {
            let core = format!("{here}/core");
            vec![
                Fault::new(2 * SECOND, Kind::Backup).on(here),
                Fault::new(4 * SECOND, Kind::Crash)
                    .on(core.clone())
                    .lasting(SECOND),
                Fault::new(12 * SECOND, Kind::Restore).on(here).lasting(SECOND),
                Fault::new(15 * SECOND, Kind::Crash).on(core).lasting(SECOND),
            ]
        });
        cases.map(|mut case| {
            case.work = 18 * SECOND;
            case
        })
    };
    sound(restored(60));
    found(Core::WordForgotten, restored(200), &["durability"]);
}
