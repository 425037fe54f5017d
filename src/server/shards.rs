//! Whether a node's shards are ready, whether an edge reaches the owners of all, and what is said of those that recover (R4): a line when it begins and one when it
//! ends, with the number. Each shard's own is at level debug.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::http::Health;
use super::metrics::Metrics;
use super::partition::PartitionStatus;

/// Shards of a store begin to recover within this of each other; the line waits for it, so that it counts them all.
const SETTLE: Duration = Duration::from_millis(500);

/// What a node is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched {
    pub(super) core: bool,
    pub(super) edge: bool,
    /// Whether its store was made at this start.
    pub(super) fresh: bool,
}

/// Keeps the components `shards` and, for an edge, `owners` of a node's health.
pub(super) async fn watch_shards(
    node: Watched,
    mut status: Vec<watch::Receiver<PartitionStatus>>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let mut told = Recoveries::default();
    loop {
        let seen: Vec<PartitionStatus> = status
            .iter_mut()
            .map(|status| status.borrow_and_update().clone())
            .collect();
        health.set_ready("shards", if node.core { readiness(&seen) } else { Ok(()) });
        if node.edge {
            let (served, unserved) = owners(&seen);
            health.set_ready("owners", served);
            metrics.shards_unserved.set(unserved.into());
        }
        let due = told.look(&seen, Instant::now(), &mut |news| tell(&news, node.fresh));
        tokio::select! {
            changed = futures_any(status.iter_mut().map(|status| Box::pin(status.changed()))) => {
                if !matches!(changed, Some(Ok(()))) {
                    // A partition is gone, and its own component says so.
                    return;
                }
            }
            () = tokio::time::sleep(due.unwrap_or(Duration::from_secs(3600))) => {}
            _ = stop.changed() => return,
        }
    }
}

fn readiness(status: &[PartitionStatus]) -> Result<(), String> {
    let waiting = status.iter().any(|status| !status.active || status.shards == 0);
    let recovering: usize = status.iter().map(|status| status.recovering).sum();
    let removed: usize = status.iter().map(|status| status.removed).sum();
    if removed > 0 {
        Err(format!(
            "this region was removed from the cluster ({removed} shards): stop it once the others have what only it had; to come \
             back it needs an empty store (--create) and iris region add"
        ))
    } else if waiting && recovering > 0 {
        Err(format!(
            "{recovering} shards recover: they wait until they have what the other regions have, at least one of which \
             must be within reach and complete (--end-recovery opens them without)"
        ))
    } else if waiting {
        Err("not all shards placed here are active".to_owned())
    } else {
        Ok(())
    }
}

/// Whether every partition of an edge has an open lane to the owner of every shard, and how many shards lack one.
fn owners(status: &[PartitionStatus]) -> (Result<(), String>, u32) {
    let unserved = || status.iter().map(|status| &status.unserved);
    if unserved().any(|unserved| unserved.shards == 0) {
        return (Err("the node has just started".to_owned()), 0);
    }
    match unserved().max_by_key(|unserved| unserved.count()) {
        Some(worst) if worst.count() > 0 => (Err(worst.to_string()), worst.count()),
        _ => (Ok(()), 0),
    }
}

/// What is to be said.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// So many recover; why the last one does.
    Begins(usize, Arc<str>),
    /// None does any more; so many did, in this time.
    Ends(usize, Duration),
}

/// A new store of a cluster that runs recovers by design; of another one an operator must know.
fn tell(news: &News, fresh: bool) {
    match news {
        News::Begins(shards, why) if fresh => {
            tracing::info!(shards, %why, "the new store fills from the other regions before it takes anything");
        }
        News::Begins(shards, why) => tracing::warn!(
            shards,
            %why,
            "shards recover: they take nothing before they have caught up with the other regions"
        ),
        News::Ends(shards, took) if fresh => {
            tracing::info!(shards, ?took, "the new store has what the other regions have");
        }
        News::Ends(shards, took) => tracing::warn!(shards, ?took, "all shards that recovered are open again"),
    }
}

/// What was said of recoveries.
#[derive(Debug, Default)]
struct Recoveries {
    /// Since when some recover, how many had begun before, and whether it was said.
    now: Option<(Instant, usize, bool)>,
    /// How many had begun when none did any more.
    over: usize,
}

impl Recoveries {
    /// Says what is new; when to look again, where nothing changes.
    fn look(
        &mut self,
        status: &[PartitionStatus],
        now: Instant,
        say: &mut dyn FnMut(News),
    ) -> Option<Duration> {
        let began: usize = status.iter().map(|status| status.began_recovery).sum();
        let recovering: usize = status.iter().map(|status| status.recovering).sum();
        // A shard can begin and end between two looks.
        if self.now.is_none() && (recovering > 0 || began > self.over) {
            self.now = Some((now, self.over, false));
        }
        let (since, before, said) = self.now?;
        if recovering == 0 {
            self.now = None;
            self.over = began;
            say(News::Ends(began - before, now - since));
            return None;
        }
        if said {
            return None;
        }
        let left = SETTLE.saturating_sub(now - since);
        if left > Duration::ZERO {
            return Some(left);
        }
        let why = status.iter().rev().map(|status| &status.recovery_why);
        let why = why.max_by_key(|why| why.len()).cloned().unwrap_or_default();
        self.now = Some((since, before, true));
        say(News::Begins(recovering, why));
        None
    }
}

/// Waits for the first of some futures.
pub(super) async fn futures_any<F: Future + Unpin>(futures: impl Iterator<Item = F>) -> Option<F::Output> {
    let mut futures: Vec<F> = futures.collect();
    std::future::poll_fn(|context| {
        for future in &mut futures {
            if let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(context) {
                return std::task::Poll::Ready(Some(output));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_of_many_shards_is_two_lines_with_their_number() {
        let start = Instant::now();
        let (mut told, mut lines) = (Recoveries::default(), Vec::new());
        let status = |recovering, began| PartitionStatus {
            recovering,
            began_recovery: began,
            recovery_why: if began > 0 {
                "it lacks something".into()
            } else {
                "".into()
            },
            ..PartitionStatus::default()
        };
        let mut at = |ms: u64, first: (usize, usize), second: (usize, usize)| {
            let both = [status(first.0, first.1), status(second.0, second.1)];
            told.look(&both, start + Duration::from_millis(ms), &mut |news| {
                lines.push(news)
            })
        };
        assert_eq!(at(0, (0, 0), (0, 0)), None);
        for n in 1..=500 {
            assert!(at(n as u64 / 2, (n, n), (0, 0)).is_some());
        }
        at(700, (512, 512), (512, 512));
        at(800, (512, 512), (256, 512));
        at(1_000, (0, 512), (0, 512));
        at(1_100, (0, 512), (0, 512));
        at(2_000, (1, 513), (0, 512));
        at(2_100, (0, 513), (0, 512));
        let expected = [
            News::Begins(1024, "it lacks something".into()),
            News::Ends(1024, Duration::from_millis(1_000)),
            News::Ends(1, Duration::from_millis(100)),
        ];
        assert_eq!(lines, expected);
    }
}
