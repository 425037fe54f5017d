//! Carries the core's counters over to the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::metrics::{Link, Metrics, Peer, Queue, Reason, code_name};
use crate::core::edge::EdgeStats;
use crate::core::ids::Addr;
use crate::core::link::{Lag, LinkState, LinkStats};
use crate::core::node::Partition;
use crate::core::owner::OwnerStats;
use crate::core::time::{Mono, Now};
use crate::core::wire::Code;
use crate::net::client::ClientStats;
use crate::net::peer::{Breaker, Lane, LinkStatus, PeerPool, PeerSnapshot};

/// Between two exports: a scrape sees figures at most so old.
const EVERY: Duration = Duration::from_millis(250);

/// Between two exports of the links and of presence, which walk all shards.
const SHARDS_EVERY: Duration = Duration::from_secs(2);

/// What one partition exported last, so that counters go up by the difference.
pub(super) struct Meters {
    pub(super) metrics: Arc<Metrics>,
    edge: EdgeStats,
    owner: OwnerStats,
    /// Operations applied, by link.
    applied: BTreeMap<Addr, u64>,
    links: LinkStats,
    presence: Presence,
    gauges: BTreeMap<&'static str, i64>,
    link_states: LinkStates,
    partition: u8,
    next: Mono,
    next_shards: Mono,
}

/// By region: whether every link is up, and what waits for all of them.
type ByRegion = BTreeMap<String, (bool, Lag)>;

/// What each partition of a node has of its links: a region has links with all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkStates(Arc<Mutex<BTreeMap<u8, ByRegion>>>);

impl LinkStates {
    /// Puts down what a partition has; gives what the node has.
    fn tell(&self, partition: u8, links: ByRegion) -> ByRegion {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(partition, links);
        let mut node = ByRegion::new();
        for (region, (up, lag)) in all.values().flatten() {
            let entry = node.entry(region.clone()).or_insert((true, Lag::default()));
            entry.0 &= *up;
            entry.1.add(lag);
        }
        node
    }
}

#[derive(Default)]
struct Presence {
    merges: u64,
    invalid: u64,
    records: usize,
}

impl Meters {
    pub(super) fn new(metrics: Arc<Metrics>, link_states: LinkStates, partition: u8) -> Self {
        Self {
            metrics,
            link_states,
            partition,
            edge: EdgeStats::default(),
            owner: OwnerStats::default(),
            applied: BTreeMap::new(),
            links: LinkStats::default(),
            presence: Presence::default(),
            gauges: BTreeMap::new(),
            next: Mono(0),
            next_shards: Mono(0),
        }
    }

    /// `inputs`: events that wait for the partition.
    pub(super) fn export(&mut self, core: &Partition, inputs: usize, now: Now) {
        if now.mono < self.next {
            return;
        }
        self.next = now.mono + EVERY;
        self.edge(core.edge().stats());
        self.owner(*core.owner().stats());
        self.shipped(core.links().stats());
        self.depth("inputs", inputs);
        self.depth("edge_deposits", core.edge().stats().deposits);
        let pending = core.owner().stats().deposits.pending;
        self.depth("owner_deposits", usize::try_from(pending).unwrap_or(usize::MAX));
        if now.mono >= self.next_shards {
            self.next_shards = now.mono + SHARDS_EVERY;
            self.links(core, now);
            self.presence(core);
        }
    }

    fn edge(&mut self, new: &EdgeStats) {
        let old = std::mem::replace(&mut self.edge, new.clone());
        let metrics = self.metrics.clone();
        metrics.edge_deposits.inc_by(new.deposited - old.deposited);
        metrics
            .edge_deposit_batches
            .inc_by(new.deposit_messages - old.deposit_messages);
        metrics.deposit_seconds.add(&new.answered, &old.answered);
        metrics.fallbacks.inc_by(new.fallbacks - old.fallbacks);
        let since = |new: &BTreeMap<Code, u64>, old: &BTreeMap<Code, u64>| -> Vec<(Reason, u64)> {
            let count = |(code, count): (&Code, &u64)| {
                let reason = code_name(*code);
                (Reason { reason }, count - old.get(code).unwrap_or(&0))
            };
            new.iter().map(count).filter(|(_, count)| *count > 0).collect()
        };
        for (reason, count) in since(&new.rejected, &old.rejected) {
            metrics.deposits_refused.get_or_create(&reason).inc_by(count);
        }
        let mut ended = since(&new.ended, &old.ended);
        ended.push((Reason { reason: "closed" }, new.closed - old.closed));
        for (reason, count) in ended {
            metrics.sessions_ended.get_or_create(&reason).inc_by(count);
        }
        self.gauge("sessions", &metrics.sessions, new.sessions);
    }

    fn owner(&mut self, new: OwnerStats) {
        let old = std::mem::replace(&mut self.owner, new);
        let (metrics, deposits) = (&self.metrics, new.deposits);
        metrics
            .deposits_accepted
            .inc_by(deposits.accepted - old.deposits.accepted);
        metrics
            .deposits_duplicate
            .inc_by(deposits.duplicates - old.deposits.duplicates);
        metrics.deposits_alone.inc_by(deposits.alone - old.deposits.alone);
        metrics
            .deposits_retried
            .inc_by(deposits.retried - old.deposits.retried);
        metrics
            .queue_refused
            .get_or_create(&Queue {
                queue: "owner_deposits",
            })
            .inc_by(deposits.overloaded - old.deposits.overloaded);
        metrics.delivered.inc_by(new.delivery.given - old.delivery.given);
        metrics
            .delivery_batches
            .inc_by(new.delivery.messages - old.delivery.messages);
        metrics.acked.inc_by(new.delivery.acked - old.delivery.acked);
    }

    fn shipped(&mut self, new: LinkStats) {
        let old = std::mem::replace(&mut self.links, new);
        let metrics = &self.metrics;
        metrics.link_drifted.inc_by(new.drifted - old.drifted);
        metrics.link_shipped.inc_by(new.ops_shipped - old.ops_shipped);
        metrics
            .link_batches
            .inc_by(new.messages_shipped - old.messages_shipped);
        metrics
            .presence_repairs
            .inc_by(new.presence_mismatches - old.presence_mismatches);
        metrics
            .presence_repair_records
            .inc_by(new.presence_repaired - old.presence_repaired);
        metrics
            .presence_repair_bytes
            .inc_by(new.presence_repair_bytes - old.presence_repair_bytes);
        metrics
            .presence_digest_bytes
            .inc_by(new.presence_digest_bytes - old.presence_digest_bytes);
    }

    fn links(&mut self, core: &Partition, now: Now) {
        let mut regions = ByRegion::new();
        for link in core.links().snapshot(now) {
            let label = Link {
                region: link.link.node.region.to_string(),
            };
            let up = link
                .pull
                .as_ref()
                .is_some_and(|pull| pull.state == LinkState::Live);
            let entry = regions
                .entry(label.region.clone())
                .or_insert((true, Lag::default()));
            entry.0 &= up;
            if let Some(serve) = &link.serve {
                entry.1.add(&serve.behind);
            }
            if let Some(pull) = link.pull {
                let old = self.applied.insert(link.link, pull.applied).unwrap_or_default();
                self.metrics
                    .link_applied
                    .get_or_create(&label)
                    .inc_by(pull.applied.saturating_sub(old));
            }
        }
        for (region, (up, lag)) in self.link_states.tell(self.partition, regions) {
            let label = Link { region };
            self.metrics.link_up.get_or_create(&label).set(i64::from(up));
            let set = |gauges: &Family<Link, Gauge>, value: u64| {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                gauges.get_or_create(&label).set(value);
            };
            set(&self.metrics.link_lag, lag.operations);
            set(&self.metrics.link_lag_messages, lag.messages);
            set(&self.metrics.link_lag_bytes, lag.bytes);
            let waited = lag.since_ms.map_or(0, |since| now.wall_ms.saturating_sub(since));
            set(&self.metrics.link_lag_seconds, waited / 1000);
        }
    }

    fn presence(&mut self, core: &Partition) {
        let owner = core.owner();
        let mut new = Presence::default();
        for presence in owner.active_shards().filter_map(|shard| owner.presence(shard)) {
            let counters = presence.counters();
            new.merges += counters.merged_newer + counters.merged_same + counters.merged_older;
            new.invalid += counters.invalid;
            new.records += presence.records();
        }
        // What a shard counted goes with it when another node takes it over.
        let merges = new.merges.saturating_sub(self.presence.merges);
        self.metrics.presence_merges.inc_by(merges);
        let invalid = new.invalid.saturating_sub(self.presence.invalid);
        self.metrics.presence_invalid.inc_by(invalid);
        let metrics = self.metrics.clone();
        self.gauge("presence", &metrics.presence_records, new.records);
        self.presence = new;
    }

    fn depth(&mut self, queue: &'static str, depth: usize) {
        let gauge = self.metrics.queue_depth.get_or_create(&Queue { queue }).clone();
        self.gauge(queue, &gauge, depth);
    }

    /// The gauge is the sum over all partitions.
    fn gauge(&mut self, name: &'static str, gauge: &Gauge, value: usize) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        let old = self.gauges.insert(name, value).unwrap_or_default();
        gauge.inc_by(value - old);
    }
}

/// Exports the counters of the network until it is cut: of connections to other nodes, and of the clients' listener
/// where there is one.
pub(super) async fn watch_network(
    peers: PeerPool,
    listener: Option<impl Fn() -> ClientStats>,
    metrics: Arc<Metrics>,
) {
    // What a run before a panic told of may be gone.
    metrics.peer_breaker.clear();
    let mut told = BTreeSet::new();
    loop {
        let PeerSnapshot { links, counters, .. } = peers.snapshot();
        told = breakers(&links, told, &metrics);
        metrics.peer_messages.inner().store(counters.frames_out, Relaxed);
        metrics.peer_writes.inner().store(counters.batches_out, Relaxed);
        let stats = listener.as_ref().map(|stats| stats()).unwrap_or_default();
        for (reason, count) in [("limit", stats.refused), ("failed", stats.failed)] {
            let counter = metrics.connections_refused.get_or_create(&Reason { reason });
            counter.inner().store(count, Relaxed);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// One gauge for each node that a connection for messages is kept to; gossip, which has its own, goes to the same nodes. Gives
/// those that were told; a node that was told `before` and is not any more has none.
fn breakers(links: &[LinkStatus], before: BTreeSet<Peer>, metrics: &Metrics) -> BTreeSet<Peer> {
    let mut told = BTreeSet::new();
    for link in links.iter().filter(|link| link.lane == Lane::Traffic) {
        let Some(peer) = &link.peer else { continue };
        let label = Peer {
            peer: peer.to_string(),
        };
        metrics
            .peer_breaker
            .get_or_create(&label)
            .set(match link.breaker {
                Breaker::Closed => 0,
                Breaker::HalfOpen => 1,
                Breaker::Open => 2,
            });
        told.insert(label);
    }
    for gone in before.difference(&told) {
        metrics.peer_breaker.remove(gone);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::NodeKey;

    #[test]
    fn a_breaker_has_a_number_for_each_peer_until_the_peer_is_gone() {
        let link = |name: &str, lane, breaker| LinkStatus {
            peer: Some(NodeKey {
                region: "eu-west".parse().unwrap(),
                node: name.parse().unwrap(),
            }),
            addr: "127.0.0.1:1".parse().unwrap(),
            lane,
            incarnation: None,
            generation: None,
            breaker,
            failures: 0,
            connects: 0,
            last_error: None,
            rtt: None,
            lost_packets: 0,
            queued: BTreeMap::new(),
        };
        let metrics = Metrics::new("us-east", "us-east-core-1");
        let found = || {
            let text = metrics.encode();
            let lines = text
                .lines()
                .filter(|line| line.starts_with("iris_peer_breaker_state{"));
            let mut lines: Vec<_> = lines.map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let sample =
            |name: &str, state| format!("iris_peer_breaker_state{{peer=\"eu-west/{name}\"}} {state}");
        let all = [
            link("a", Lane::Traffic, Breaker::Closed),
            link("b", Lane::Traffic, Breaker::HalfOpen),
            link("c", Lane::Traffic, Breaker::Open),
            // Another connection to the same node, and one to a seed that did not say who it is.
            link("a", Lane::Gossip, Breaker::Open),
            LinkStatus {
                peer: None,
                ..link("d", Lane::Gossip, Breaker::Open)
            },
        ];
        let told = breakers(&all, BTreeSet::new(), &metrics);
        assert_eq!(found(), [sample("a", 0), sample("b", 1), sample("c", 2)]);
        breakers(&[link("c", Lane::Traffic, Breaker::Closed)], told, &metrics);
        assert_eq!(found(), [sample("c", 0)]);
    }

    #[test]
    fn a_link_is_up_where_it_is_in_every_partition_and_lags_are_added() {
        let states = LinkStates::default();
        let of = |up, operations| {
            let lag = Lag {
                operations,
                ..Lag::default()
            };
            ByRegion::from([("eu-west".to_owned(), (up, lag))])
        };
        assert_eq!(states.tell(0, of(false, 5)), of(false, 5));
        assert_eq!(states.tell(1, of(true, 2)), of(false, 7));
        assert_eq!(states.tell(0, of(true, 1)), of(true, 3));
    }
}
