//! Many times in a few numbers.

use serde::{Deserialize, Serialize};

use crate::drill::log::Micros;

/// How times spread. Percentiles are by nearest rank: each is a time that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// How many were measured; at least one.
    pub count: u64,
    /// Half of them took at most this long, in microseconds.
    pub p50: Micros,
    /// Nine in ten took at most this long, in microseconds.
    pub p90: Micros,
    /// 99 in 100 took at most this long, in microseconds.
    pub p99: Micros,
    /// The longest, in microseconds.
    pub max: Micros,
}

impl Spread {
    /// The spread of these times; none if there are none.
    pub fn of(mut times: Vec<Micros>) -> Option<Self> {
        times.sort_unstable();
        Some(Self {
            count: times.len() as u64,
            p50: percentile(&times, 50)?,
            p90: percentile(&times, 90)?,
            p99: percentile(&times, 99)?,
            max: *times.last()?,
        })
    }
}

/// The smallest of the sorted times that `percent` percent of them do not exceed.
pub fn percentile(sorted: &[Micros], percent: usize) -> Option<Micros> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// Something that had to happen to each of some: to clients, or to watchers of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// To how many it had to happen.
    pub expected: u64,
    /// To how many of them it never did.
    pub missing: u64,
    /// The time until it had happened to each, in microseconds; none if it never did, or if there was nobody to await.
    pub worst: Option<Micros>,
    /// The times of those to whom it happened.
    pub spread: Option<Spread>,
}

impl Awaited {
    /// From one time for each; none for one to whom it never happened.
    pub fn of(times: &[Option<Micros>]) -> Self {
        let happened: Vec<Micros> = times.iter().flatten().copied().collect();
        let missing = (times.len() - happened.len()) as u64;
        let spread = Spread::of(happened);
        Self {
            expected: times.len() as u64,
            missing,
            worst: spread.map(|spread| spread.max).filter(|_| missing == 0),
            spread,
        }
    }
}
