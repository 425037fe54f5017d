//! How fast a subscriber that is behind is given what it lacks.
//!
//! What was committed long ago is read again, shipped and applied, for which the same processors and disks are used as for what
//! people send meanwhile. So it is read at a limited rate, a token bucket of a tenth of a second: and at twice what is
//! committed meanwhile besides, so that a subscriber catches up however much that is.

use std::time::Duration;

use crate::core::time::Mono;

/// The part of a second's worth that is given at once after a silence: a burst takes the processors from what people send.
const BURST: u64 = 10;
/// No wait is shorter: it would give pages of few operations.
const SHORTEST: Duration = Duration::from_millis(10);
/// What is committed meanwhile, so many times.
const OF_NEW: u64 = 2;

/// What one subscriber may be given.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes; below zero where the last page was larger than what was left.
    left: i128,
    at: Mono,
    /// Bytes that had been committed by then.
    committed: u64,
}

impl Pace {
    /// A tenth of a second's worth is there at first.
    pub fn new(rate: u64, committed: u64, now: Mono) -> Self {
        Self {
            left: i128::from(burst(rate)),
            at: now,
            committed,
        }
    }

    /// How large the next page may be, or how long to wait with it: with `rate` bytes a second, 0 for no limit.
    pub fn allows(&mut self, rate: u64, committed: u64, now: Mono) -> Result<u64, Duration> {
        if rate == 0 {
            return Ok(u64::MAX);
        }
        let passed = now.since(self.at).as_micros();
        let by_time = i128::try_from(u128::from(rate) * passed / 1_000_000).unwrap_or(i128::MAX);
        let new = committed.saturating_sub(self.committed).saturating_mul(OF_NEW);
        // Time gives no more than the burst.
        let full = i128::from(burst(rate)).max(self.left);
        self.left = self.left.saturating_add(by_time).min(full) + i128::from(new);
        (self.at, self.committed) = (now, committed);
        if self.left > 0 {
            return Ok(u64::try_from(self.left).unwrap_or(u64::MAX));
        }
        let debt = u64::try_from(-self.left).unwrap_or(u64::MAX);
        let wait = Duration::from_micros(debt.saturating_mul(1_000_000) / rate);
        Err(wait.clamp(SHORTEST, Duration::from_secs(1)))
    }

    /// A page of so many bytes is asked for.
    pub fn took(&mut self, bytes: u64) {
        self.left -= i128::from(bytes);
    }

    /// It had so many, be it fewer or, for one operation that is larger, more.
    pub fn was(&mut self, asked: u64, bytes: u64) {
        self.left += i128::from(asked) - i128::from(bytes);
    }
}

fn burst(rate: u64) -> u64 {
    rate.div_ceil(BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(ms * 1_000)
    }

    #[test]
    fn a_burst_is_given_at_once_and_then_the_rate() {
        let mut pace = Pace::new(1_000, 0, at(0));
        assert_eq!(pace.allows(1_000, 0, at(0)), Ok(100));
        pace.took(99);
        assert_eq!(pace.allows(1_000, 0, at(0)), Ok(1), "just inside");
        pace.took(501);
        assert_eq!(pace.allows(1_000, 0, at(0)), Err(Duration::from_millis(500)));
        assert_eq!(pace.allows(1_000, 0, at(500)), Err(SHORTEST));
        assert_eq!(pace.allows(1_000, 0, at(501)), Ok(1));
        pace.took(300);
        pace.was(300, 100);
        assert_eq!(pace.allows(1_000, 0, at(600)), Err(SHORTEST));
        assert_eq!(pace.allows(1_000, 0, at(601)), Ok(1));
        // A long silence gives no more than the burst.
        assert_eq!(pace.allows(1_000, 0, at(100_000)), Ok(100));
    }

    #[test]
    fn however_much_is_committed_it_is_caught_up_with() {
        let mut pace = Pace::new(1, 0, at(0));
        let (mut committed, mut behind) = (0, 1_000_000);
        for ms in (0..60_000).step_by(10) {
            committed += 1_000;
            behind += 1_000;
            while behind > 0 && pace.allows(1, committed, at(ms)).is_ok() {
                pace.took(500);
                behind -= 500;
            }
        }
        assert_eq!(behind, 0);
    }

    #[test]
    fn without_a_rate_there_is_no_wait() {
        let mut pace = Pace::new(0, 0, at(0));
        pace.took(u64::MAX);
        assert_eq!(pace.allows(0, 0, at(0)), Ok(u64::MAX));
    }
}
