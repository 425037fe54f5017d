//! Simulated worlds: seeds that must hold every promise, the same run twice, and defects that must be found.

use iris::sim::{self, Defect, EngineKind, Options};

/// Seeds that each test runs.
const SEEDS: u64 = 300;

fn hold(first: u64, options: Options) {
    for seed in first..first + SEEDS {
        let report = sim::run_with_story(seed, options);
        assert!(report.violation.is_none(), "{report}");
    }
}

macro_rules! seeds {
    ($($name:ident: $first:expr),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                hold($first * SEEDS, Options::default());
            }
        )*
    };
}

seeds!(
    promises_hold_0: 0,
    promises_hold_1: 1,
    promises_hold_2: 2,
    promises_hold_3: 3,
    promises_hold_4: 4,
    promises_hold_5: 5,
    promises_hold_6: 6,
    promises_hold_7: 7,
);

#[test]
fn a_seed_runs_the_same_way_each_time() {
    for seed in 0..20 {
        for engine in [EngineKind::Memory, EngineKind::Embedded, EngineKind::Shared] {
            let options = Options {
                engine: Some(engine),
                ..Options::default()
            };
            let (one, two) = (sim::run(seed, options), sim::run(seed, options));
            assert_eq!((one.hash, one.events), (two.hash, two.events), "seed {seed}");
            let told = sim::run(
                seed,
                Options {
                    trace: true,
                    ..options
                },
            );
            assert_eq!(one.hash, told.hash, "seed {seed} with its story kept");
        }
    }
}

/// The defect is found within so many seeds, by a checker that is about it; prints how many that took, as the tests of the
/// machines' own defects do.
fn found(defect: Defect, seeds: u64, by: &[&str]) {
    let options = Options {
        defect: Some(defect),
        ..Options::default()
    };
    let broken = |seed| Some((seed, sim::run(seed, options).violation?));
    let first = (0..seeds).find_map(broken);
    let (seed, violation) = first.unwrap_or_else(|| panic!("{defect:?} is not found in {seeds} seeds"));
    println!(
        "{defect:?}: found in run {} (seed {seed}) by {:?}",
        seed + 1,
        violation.invariant
    );
    assert!(by.contains(&violation.invariant), "{defect:?}: {violation:?}");
}

#[test]
fn an_acknowledgement_before_the_commit_is_found() {
    found(Defect::AckBeforeCommit, 20, &["durability", "ship after commit"]);
}

#[test]
fn missing_dedup_is_found() {
    // What waited for another region in vain comes again, and is judged before and not known.
    let by = ["once in effect", "dedup (R16)", "refusals have a cause"];
    found(Defect::DedupOff, 100, &by);
}

#[test]
fn a_lost_delivery_is_found() {
    let by = [
        "a cursor covers what was consumed (R14)",
        "consumed by every device (R10)",
        "accepted is delivered",
        "every message is answered",
    ];
    found(Defect::DeliverLost, 20, &by);
}

#[test]
fn trimming_without_stable_is_found() {
    let by = [
        "nothing above stable is trimmed (R9)",
        "nothing above stable is removed (R10)",
        "retired when nobody needs it (R23)",
    ];
    found(Defect::TrimWithoutStable, 40, &by);
}

#[test]
fn a_dropped_end_of_a_session_is_found() {
    found(
        Defect::TerminalDropped,
        40,
        &["presence is the truth", "watchers see the truth", "no ghosts"],
    );
}

#[test]
fn deposits_out_of_order_are_found() {
    let by = ["order (R21)", "refusals have a cause"];
    found(Defect::DepositsSwapped, 100, &by);
}

#[test]
fn a_garbled_operation_is_found() {
    let by = ["equal coordinates, equal bytes", "no alarms"];
    found(Defect::OperationGarbled, 40, &by);
}

#[test]
fn a_disk_that_does_not_sync_is_found() {
    found(Defect::SyncIgnored, 60, &["durability"]);
}

#[test]
fn a_lost_deposit_is_found() {
    let by = [
        "order (R21)",
        "every message is answered",
        "refusals have a cause",
    ];
    found(Defect::DepositLost, 60, &by);
}
