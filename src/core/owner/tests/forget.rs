//! When the owner asks for dedup records to be dropped.

use super::*;
use crate::core::commit::{DAY_MS, ID_WINDOW_MS, TIME_MARGIN_MS};
use crate::core::time::Clocks;

const AGREE: Clocks = Clocks {
    latest_ms: NOW.wall_ms,
    agree: true,
};

/// The days that are asked to be dropped in some seconds from `at`, each answered.
fn asked(script: &mut Script, at: Now, more: bool) -> Vec<u32> {
    let mut days = Vec::new();
    for step in 0..60 {
        let now = Now {
            mono: at.mono + ms(50 * step),
            wall_ms: at.wall_ms + 50 * step,
        };
        script.owner.handle_timeout(now);
        while let Some(output) = script.owner.poll_output() {
            if let OwnerOutput::Commit(StoreOp::DropDedup { day, .. }, tag) = output {
                days.push(day);
                script.owner.handle_outcome(tag, Ok(Outcome::Done { more }), now);
            }
        }
    }
    days
}

fn later(minutes: u64, days: u64) -> Now {
    Now {
        mono: Mono::default() + ms(minutes * 60_000),
        wall_ms: NOW.wall_ms + minutes * 60_000 + days * DAY_MS,
    }
}

#[test]
fn each_day_is_dropped_once_and_what_is_left_is_asked_for_again() {
    let mut script = Script::new();
    script.owner.handle_clocks(AGREE, NOW);
    let last = ((NOW.wall_ms - ID_WINDOW_MS - TIME_MARGIN_MS - 1) / DAY_MS) as u32 - 1;
    assert_eq!(asked(&mut script, later(1, 0), false), [last]);
    assert_eq!(asked(&mut script, later(5, 0), false), Vec::<u32>::new());
    // Not all of the next day could go: not again in the same minute.
    assert_eq!(asked(&mut script, later(10, 1), true), [last + 1]);
    assert_eq!(asked(&mut script, later(12, 1), false), [last + 1]);
    assert_eq!(asked(&mut script, later(20, 1), false), Vec::<u32>::new());
    // After a long pause all of it goes at once.
    assert_eq!(asked(&mut script, later(30, 100), false), [last + 100]);
}

#[test]
fn nothing_is_forgotten_while_the_clocks_disagree() {
    let mut script = Script::new();
    let disagree = Clocks {
        agree: false,
        ..AGREE
    };
    script.owner.handle_clocks(disagree, NOW);
    assert_eq!(asked(&mut script, later(1, 3650), false), Vec::<u32>::new());
    script.owner.handle_clocks(AGREE, NOW);
    assert_eq!(asked(&mut script, later(5, 0), false).len(), 1);
}
