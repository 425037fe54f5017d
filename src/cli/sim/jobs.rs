//! Runs on several threads, their results in order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a swarm goes on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// So many jobs.
    Jobs(u64),
    /// So long; a job that began is finished.
    Time(Duration),
}

/// Does jobs 0, 1, 2, ... on `threads` threads. `see` gets each result in the order of the jobs, and says whether to go
/// on; jobs that were under way then are thrown away.
pub(super) fn each<T: Send>(
    threads: usize,
    until: Until,
    work: impl Fn(u64) -> T + Sync,
    mut see: impl FnMut(u64, T) -> anyhow::Result<bool>,
) -> anyhow::Result<u64> {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let over = |job: u64| match until {
        Until::Jobs(jobs) => job >= jobs,
        Until::Time(time) => begun.elapsed() >= time,
    };
    let (send, receive) = mpsc::sync_channel(threads * 4);
    let mut seen = 0;
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let send = send.clone();
            let (next, stop, work, over) = (&next, &stop, &work, &over);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    if over(job) || send.send((job, work(job))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut early = BTreeMap::new();
        let mut result = Ok(());
        while let Ok((job, done)) = receive.recv() {
            early.insert(job, done);
            while let Some(done) = early.remove(&seen) {
                let goes_on = see(seen, done);
                seen += 1;
                if !matches!(goes_on, Ok(true)) {
                    stop.store(true, Ordering::Relaxed);
                    result = goes_on.map(|_| ());
                    drop(receive);
                    return result;
                }
            }
        }
        result
    })?;
    Ok(seen)
}

/// As many threads as this machine has processors.
pub(super) fn threads(asked: Option<usize>) -> usize {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    asked.unwrap_or(all).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_it_stops_when_told() {
        let mut seen = Vec::new();
        let count = each(
            3,
            Until::Jobs(20),
            |job| job * job,
            |job, done| {
                seen.push((job, done));
                Ok(job < 9)
            },
        );
        assert_eq!(count.expect("nothing fails"), 10);
        assert_eq!(seen, (0..10).map(|job| (job, job * job)).collect::<Vec<_>>());
        let count = each(2, Until::Time(Duration::ZERO), |job| job, |_, _| Ok(true));
        assert_eq!(count.expect("nothing fails"), 0);
    }
}
