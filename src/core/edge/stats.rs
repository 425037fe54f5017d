//! What an edge counts.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::wire::Code;

/// Counters since the start, and gauges of what is held now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EdgeStats {
    /// Gauge: sessions, welcomed or not.
    pub sessions: usize,
    /// Gauge: sessions that wait for their owner.
    pub pending: usize,
    /// Gauge: deposits without an answer, in flight or waiting.
    pub deposits: usize,
    /// Gauge: bytes that those hold, see [`super::DEPOSIT_COST`].
    pub bytes: usize,
    /// Gauge: users that some session watches.
    pub watched: usize,
    /// Gauge: open lanes.
    pub lanes: usize,
    /// Hellos of clients.
    pub hellos: u64,
    /// Sessions that were welcomed.
    pub welcomed: u64,
    /// Sessions that the server ended, by code; also connections that were turned away before they had one.
    pub ended: BTreeMap<Code, u64>,
    /// Sessions whose connection ended without a word of either side.
    pub closed: u64,
    /// Messages that clients sent.
    pub sends: u64,
    /// Messages answered as accepted.
    pub accepted: u64,
    /// From a message's arrival to its answer.
    pub answered: Durations,
    /// Messages refused, by code.
    pub rejected: BTreeMap<Code, u64>,
    /// Messages without an answer whose session ended.
    pub forgotten: u64,
    /// Deposits handed to owners, again ones included.
    pub deposited: u64,
    /// Messages to owners that carried those.
    pub deposit_messages: u64,
    /// Retryable refusals that made a session's deposits to a shard go again under a higher attempt.
    pub retries: u64,
    /// Deliveries handed to clients.
    pub deliveries: u64,
    /// Deliveries that the session had already, dropped.
    pub repeated: u64,
    /// Holes told to clients.
    pub holes: u64,
    /// Deliveries whose bytes are damaged.
    pub damaged: u64,
    /// Coordinates that clients acknowledged and were given.
    pub acks: u64,
    /// Acknowledged coordinates of which nothing was given, ignored.
    pub acks_ignored: u64,
    /// Acknowledgements handed to owners.
    pub acks_forwarded: u64,
    /// Presence events handed to clients.
    pub presence: u64,
    /// Probes of owners.
    pub probes: u64,
    /// Probes that the client did not answer in time.
    pub probes_unanswered: u64,
    /// Lanes opened.
    pub lanes_opened: u64,
    /// Lanes that broke, were reset, fell silent, or whose owner went.
    pub lanes_lost: u64,
    /// How often the owners of another region were taken, since the own region's did not serve.
    pub fallbacks: u64,
    /// Shards that an owner did not serve.
    pub not_owner: u64,
    /// Messages and answers of owners that came too late: from another lane, an older attempt, or for what is gone.
    pub stale: u64,
}

/// How long something took, counted in buckets: the first takes up to 25 us, each further one twice as much, the last all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Durations {
    /// How many fell into each bucket.
    pub buckets: [u64; Durations::BUCKETS],
    /// The sum of all, in microseconds.
    pub sum_us: u64,
}

impl Durations {
    /// Buckets; the last but one ends at 26 s, above the time limit of a deposit by default.
    pub const BUCKETS: usize = 22;
    /// End of the first bucket, in microseconds.
    pub const FIRST_US: u64 = 25;

    pub(super) fn add(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 2);
        let doublings = us.div_ceil(Self::FIRST_US).next_power_of_two().trailing_zeros() as usize;
        self.buckets[doublings.min(Self::BUCKETS - 1)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }
}

pub(super) fn count(map: &mut BTreeMap<Code, u64>, code: Code) {
    *map.entry(code).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let bucket = |us| {
            let mut durations = Durations::default();
            durations.add(Duration::from_micros(us));
            durations.buckets.iter().position(|count| *count == 1)
        };
        let found = [0, 1, 25, 26, 50, 51, 100, 25 << 20, (25 << 20) + 1, u64::MAX].map(bucket);
        assert_eq!(found, [0, 0, 0, 1, 1, 2, 2, 20, 21, 21].map(Some));
    }
}
