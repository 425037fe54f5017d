//! What the wall clocks of the other regions say of ours.
//!
//! Each ping and its answer carry a wall clock. Two questions are asked of them. Which time may decide that an id is too old
//! (R16)? A clock of ours that was set back must not accept what others forgot, and one region whose clock is far ahead must
//! not make all others refuse: a clock counts if it is within the drift bound of ours, or as late as most regions have it.
//! May anything be deleted by time (R20)? Only while most of the other regions show what our clock shows.

use std::collections::BTreeMap;

use super::Links;
use crate::core::ids::RegionId;
use crate::core::limits::ms;
use crate::core::time::{Clocks, MAX_DRIFT, Mono, Now};

impl Links {
    /// The wall clocks of the other regions, each moved on by the time since it was told. A region without a link counts as
    /// one that does not agree; where this region is alone, nobody has to.
    pub fn clocks(&self, now: Now) -> Clocks {
        let mut told: BTreeMap<&RegionId, (Mono, u64)> = BTreeMap::new();
        for peer in &self.peers {
            let (Some((_, at)), Some(wall_ms)) = (peer.wall, peer.wall_at(now.mono)) else {
                continue;
            };
            let region = told.entry(&peer.addr.node.region).or_insert((at, wall_ms));
            if at > region.0 {
                *region = (at, wall_ms);
            }
        }
        let fresh = ms(self.config.limits.link_timeout_ms);
        let fresh = told.values().filter(|(at, _)| now.mono.since(*at) <= fresh);
        let agreeing = fresh
            .filter(|(_, wall_ms)| wall_ms.abs_diff(now.wall_ms) <= DRIFT_MS)
            .count();
        let others = self.reach.len();
        let walls: Vec<u64> = told.values().map(|(_, wall_ms)| *wall_ms).collect();
        Clocks {
            latest_ms: latest(now.wall_ms, walls, others + 1),
            agree: others == 0 || 2 * agreeing > others,
        }
    }
}

const DRIFT_MS: u64 = MAX_DRIFT.as_millis() as u64;

/// The latest clock that counts, of `theirs`: no further ahead than the drift bound of ours, or of what more than half of
/// all `regions` have reached.
fn latest(ours: u64, theirs: Vec<u64>, regions: usize) -> u64 {
    let mut all = theirs.clone();
    all.push(ours);
    all.sort_unstable_by_key(|wall_ms| std::cmp::Reverse(*wall_ms));
    let reached = all.get(regions / 2).copied().unwrap_or(0);
    let bound = ours.max(reached).saturating_add(DRIFT_MS);
    let counts = theirs.into_iter().filter(|wall_ms| *wall_ms <= bound);
    counts.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_700_000_000_000;
    const DAY: u64 = 86_400_000;

    #[test]
    fn a_clock_of_ours_that_was_set_back_follows_the_others() {
        assert_eq!(latest(T - 10 * DAY, vec![T, T + 3], 3), T + 3);
        assert_eq!(latest(T - 10 * DAY, vec![T, T + 3, T], 4), T + 3);
        // Two regions cannot tell who is right, nor can half of four.
        assert_eq!(latest(T - 10 * DAY, vec![T], 2), 0);
        assert_eq!(latest(T - 10 * DAY, vec![T, T, T - 10 * DAY], 4), T - 10 * DAY);
    }

    #[test]
    fn an_absurd_clock_elsewhere_does_not_count() {
        assert_eq!(latest(T, vec![T + 1, T + 3000 * DAY], 3), T + 1);
        assert_eq!(latest(T, vec![u64::MAX], 2), 0);
        assert_eq!(latest(T, vec![u64::MAX, T], 3), T);
        assert_eq!(latest(T, vec![0, u64::MAX], 3), 0);
        assert_eq!(latest(T, Vec::new(), 1), 0);
        // Some seconds are nothing.
        assert_eq!(latest(T, vec![T + DRIFT_MS], 2), T + DRIFT_MS);
    }
}
