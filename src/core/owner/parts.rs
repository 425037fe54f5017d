//! Work that every shard needs once in an interval, spread over it.
//!
//! Cursors, confirmations and trimming of a second's messages are a good part of all that a store does. In one commit for
//! all shards they would hold up every message that comes meanwhile, by tens of milliseconds under load.

use std::time::Duration;

use crate::core::ids::ShardId;
use crate::core::limits::ms;
use crate::core::time::Mono;

/// So many parts: one is a few milliseconds of work where all of them are a tenth of a second, and with the usual interval
/// of a second they come no more often than presence is sent.
pub(super) const PARTS: u32 = 20;

/// The part that a shard belongs to.
pub(super) fn of(shard: ShardId) -> u32 {
    shard.0 % PARTS
}

/// Which part is due.
pub(super) struct Parts {
    /// When the next one is.
    pub(super) at: Mono,
    next: u32,
    step: Duration,
}

impl Parts {
    /// All parts come once in `interval_ms`, the first a step from now.
    pub(super) fn new(now: Mono, interval_ms: u64) -> Self {
        let step = ms(interval_ms) / PARTS;
        Self {
            at: now + step,
            next: 0,
            step,
        }
    }

    /// The part that is due, to be asked until there is none. After a pause each part comes once, not once for each
    /// interval that passed.
    pub(super) fn due(&mut self, now: Mono) -> Option<u32> {
        if now < self.at {
            return None;
        }
        let part = self.next;
        self.next = (part + 1) % PARTS;
        let missed = now.since(self.at).saturating_sub(self.step * (PARTS - 1));
        self.at = self.at + missed + self.step.max(Duration::from_micros(1));
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(parts: &mut Parts, now: u64) -> Vec<u32> {
        std::iter::from_fn(|| parts.due(Mono(now * 1000))).collect()
    }

    #[test]
    fn each_part_comes_once_in_an_interval() {
        let mut parts = Parts::new(Mono(0), 1000);
        assert!(due(&mut parts, 49).is_empty());
        let mut seen = Vec::new();
        for now in (50..=1000).step_by(10) {
            seen.extend(due(&mut parts, now));
        }
        assert_eq!(seen, (0..PARTS).collect::<Vec<_>>());
        assert_eq!(due(&mut parts, 1050), [0]);
    }

    #[test]
    fn after_a_pause_each_part_comes_once() {
        let mut parts = Parts::new(Mono(0), 1000);
        assert_eq!(due(&mut parts, 100), [0, 1]);
        let mut rest: Vec<u32> = due(&mut parts, 60_000);
        rest.sort_unstable();
        assert_eq!(rest, (0..PARTS).collect::<Vec<_>>());
        assert_eq!(due(&mut parts, 60_050).len(), 1);
    }
}
