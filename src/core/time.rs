//! The two clocks of `now`, and the hybrid logical clock.
//!
//! Timers use the monotonic clock only; the wall clock only feeds the hybrid logical clock and what people read.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A remote clock further ahead than this does not move ours (R7).
pub const MAX_DRIFT: Duration = Duration::from_secs(60);

/// Monotonic time in microseconds since an arbitrary start of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// Time passed since `earlier`; zero if that lies ahead.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, d: Duration) -> Mono {
        Mono(
            self.0
                .saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

/// The two clocks, read once for each batch of inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// Unix milliseconds, for the hybrid logical clock; may jump.
    pub wall_ms: u64,
}

/// What the wall clocks of the other regions say of ours; see [`Links::clocks`](super::link::Links::clocks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clocks {
    /// The latest that counts, unix milliseconds; 0 where none was heard.
    pub latest_ms: u64,
    /// Most of them show what ours does, within [`MAX_DRIFT`]: what goes by time may be deleted (R20).
    pub agree: bool,
}

/// A hybrid logical clock value (Kulkarni et al., "Logical Physical Clocks", 2014): 96 bits, big-endian when stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Hlc {
    /// Unix milliseconds.
    pub ms: u64,
    /// Counts what happened within one millisecond, or while the wall clock stood still or went back.
    pub logical: u32,
}

impl Hlc {
    /// The next value after `self` at a wall clock reading: always greater than `self`.
    #[must_use]
    pub fn tick(self, wall_ms: u64) -> Hlc {
        if wall_ms > self.ms {
            Hlc {
                ms: wall_ms,
                logical: 0,
            }
        } else if self.logical == u32::MAX {
            Hlc {
                ms: self.ms + 1,
                logical: 0,
            }
        } else {
            Hlc {
                ms: self.ms,
                logical: self.logical + 1,
            }
        }
    }

    /// What our clock becomes on seeing a remote value: the greater, unless it is beyond the drift bound (R7).
    #[must_use]
    pub fn observe(self, remote: Hlc, wall_ms: u64) -> Hlc {
        if remote.beyond_drift(wall_ms) {
            self
        } else {
            self.max(remote)
        }
    }

    /// Whether a remote value lies further ahead of our wall clock than [`MAX_DRIFT`].
    pub fn beyond_drift(self, wall_ms: u64) -> bool {
        self.ms > wall_ms.saturating_add(MAX_DRIFT.as_millis() as u64)
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms, self.logical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_always_rise_even_when_the_wall_goes_back() {
        let mut last = Hlc::default();
        for wall in [5, 5, 4, 9, 1, 9, 10] {
            let next = last.tick(wall);
            assert!(next > last);
            last = next;
        }
        assert!(
            Hlc {
                ms: 3,
                logical: u32::MAX
            }
            .tick(1)
                > Hlc {
                    ms: 3,
                    logical: u32::MAX
                }
        );
    }

    #[test]
    fn a_remote_clock_beyond_the_drift_bound_does_not_move_ours() {
        let ours = Hlc {
            ms: 1_000,
            logical: 7,
        };
        let at = |ms| Hlc { ms, logical: 0 };
        assert_eq!(ours.observe(at(61_000), 1_000), at(61_000));
        assert_eq!(ours.observe(at(61_001), 1_000), ours);
    }
}
