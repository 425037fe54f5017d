//! Each defect of the machines is found within so many seeds, by a checker that is about it. Those of the harness are in
//! `tests/sim.rs`.

use super::{Defect, Options};
use crate::core::defect::Defect as Core;

/// Runs seeds with the defect until a checker finds it, and prints how many that took.
fn found(defect: Core, seeds: u64, by: &[&str]) {
    let options = Options {
        defect: Some(Defect::Core(defect)),
        ..Options::default()
    };
    let first = (0..seeds).find_map(|seed| Some((seed, super::run(seed, options).violation?)));
    let (seed, violation) = first.unwrap_or_else(|| panic!("{defect:?} is not found in {seeds} seeds"));
    println!("{defect:?}: found with seed {seed}, by {:?}", violation.invariant);
    assert!(
        by.contains(&violation.invariant),
        "{defect:?}, seed {seed}: {violation:?}"
    );
}

macro_rules! defects {
    ($($name:ident: $defect:ident within $seeds:literal by [$($by:literal),*];)*) => {
        $(
            #[test]
            fn $name() {
                found(Core::$defect, $seeds, &[$($by),*]);
            }
        )*
    };
}

defects! {
    ship_before_commit: ShipBeforeCommit within 200 by [""];
    trim_by_time: TrimByTime within 200 by [""];
    trim_without_devices: TrimWithoutDevices within 200 by [""];
    one_read_position: OneReadPosition within 200 by [""];
    first_copy_only: FirstCopyOnly within 200 by [""];
    all_copies: AllCopies within 200 by [""];
    device_starts_at_applied: DeviceStartsAtApplied within 200 by [""];
    claim_clamped: ClaimClamped within 200 by [""];
    confirm_on_confirm: ConfirmOnConfirm within 200 by [""];
    later_passes: LaterPasses within 200 by [""];
    ends_anyone: EndsAnyone within 200 by [""];
    death_is_an_event: DeathIsAnEvent within 200 by [""];
    generation_forgotten: GenerationForgotten within 200 by [""];
    keeps_own: KeepsOwn within 200 by [""];
    lease_is_a_write: LeaseIsAWrite within 200 by [""];
    drops_when_full: DropsWhenFull within 200 by [""];
    no_relay: NoRelay within 200 by [""];
}
