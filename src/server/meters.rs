//! Carries the core's counters over to the metrics.

use std::sync::Arc;
use std::time::Duration;

use super::metrics::{Link, Metrics, Reason};
use crate::core::link::LinkState;
use crate::core::node::Partition;
use crate::core::owner::OwnerStats;
use crate::core::time::{Mono, Now};

/// Between two exports: a scrape sees figures at most so old.
const EVERY: Duration = Duration::from_millis(250);

/// Between two exports of the links, which walk all shards.
const LINKS_EVERY: Duration = Duration::from_secs(2);

/// What was exported last, so that counters go up by the difference.
pub(super) struct Meters {
    pub(super) metrics: Arc<Metrics>,
    owner: OwnerStats,
    sessions: i64,
    next: Mono,
    next_links: Mono,
}

impl Meters {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            owner: OwnerStats::default(),
            sessions: 0,
            next: Mono(0),
            next_links: Mono(0),
        }
    }

    pub(super) fn export(&mut self, core: &Partition, now: Now) {
        if now.mono < self.next {
            return;
        }
        self.next = now.mono + EVERY;
        let (new, old) = (*core.owner().stats(), self.owner);
        self.owner = new;
        let metrics = &self.metrics;
        metrics
            .deposits_accepted
            .inc_by(new.deposits.accepted - old.deposits.accepted);
        metrics
            .deposits_duplicate
            .inc_by(new.deposits.duplicates - old.deposits.duplicates);
        let refused = |reason, count| {
            if count > 0 {
                metrics
                    .deposits_refused
                    .get_or_create(&Reason { reason })
                    .inc_by(count);
            }
        };
        refused("final", new.deposits.refused - old.deposits.refused);
        refused("retryable", new.deposits.retried - old.deposits.retried);
        metrics.delivered.inc_by(new.delivery.given - old.delivery.given);
        metrics.acked.inc_by(new.delivery.acked - old.delivery.acked);
        let sessions = i64::try_from(core.edge().stats().sessions).unwrap_or(i64::MAX);
        metrics.sessions.inc_by(sessions - self.sessions);
        self.sessions = sessions;
        if now.mono < self.next_links {
            return;
        }
        self.next_links = now.mono + LINKS_EVERY;
        for link in core.links().snapshot(now) {
            let label = Link {
                region: link.link.node.region.to_string(),
            };
            let up = link.pull.is_some_and(|pull| pull.state == LinkState::Live);
            metrics.link_up.get_or_create(&label).set(i64::from(up));
            let lag: u64 = link
                .serve
                .iter()
                .flat_map(|serve| &serve.lag)
                .map(|(_, lag)| lag)
                .sum();
            metrics
                .link_lag
                .get_or_create(&label)
                .set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }
}
