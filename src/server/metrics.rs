//! What a node counts, for Prometheus. Names are `iris_<area>_<what>_<unit>`; a counter's name gets `_total` when it is served.
//!
//! To add a metric, add a line to the table below: field, type, name, help. The driver updates the fields; labels are small
//! closed sets, never users or devices.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use crate::core::edge::{Durations, GOODBYE};
use crate::core::wire::Code;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why something was refused, ended or stopped: the name of an error's variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// In snake case: `inbox_full`.
    pub reason: &'static str,
}

/// The link to another region.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Link {
    /// The other region's id.
    pub region: String,
}

/// The link to another region, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LinkReason {
    /// The other region's id.
    pub region: String,
    /// In snake case: `needs_snapshot`.
    pub reason: &'static str,
}

/// A queue between tasks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Queue {
    /// Its name: `store`, `inputs`.
    pub queue: &'static str,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct Peer {
    /// Its region and name: `eu-west/eu-west-core-1`.
    pub peer: String,
}

/// A supervised task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Task {
    /// Its name.
    pub task: &'static str,
}

/// A histogram of durations that the core counted itself, in buckets of its own.
#[derive(Debug, Clone, Default)]
pub struct Latency(Arc<Mutex<Durations>>);

impl Latency {
    /// Counts what came since `old`.
    pub fn add(&self, new: &Durations, old: &Durations) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Durations { buckets, sum_us } = &mut *all;
        for (at, bucket) in buckets.iter_mut().enumerate() {
            *bucket += new.buckets[at] - old.buckets[at];
        }
        *sum_us += new.sum_us - old.sum_us;
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let end = |at: usize| match at + 1 {
            Durations::BUCKETS => f64::INFINITY,
            _ => (Durations::FIRST_US << at) as f64 / 1e6,
        };
        let buckets: Vec<(f64, u64)> = all
            .buckets
            .iter()
            .enumerate()
            .map(|(at, n)| (end(at), *n))
            .collect();
        let count = all.buckets.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(all.sum_us as f64 / 1e6, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Makes a metric at zero, and the handle of it that the registry keeps.
trait Make {
    type Handle: Metric;
    fn make() -> (Self, Self::Handle)
    where
        Self: Sized;
}

/// A histogram of durations in seconds: 25 us to 26 s, each bucket twice the one before.
#[derive(Debug, Clone)]
pub struct Seconds(Histogram);

/// A histogram of counts: 1 to 32,768, each bucket twice the one before.
#[derive(Debug, Clone)]
pub struct Sizes(Histogram);

/// Declares the metrics: names in [`names`], fields in [`Metrics`], and their registration.
macro_rules! metrics {
    ($($field:ident: $type:ty = $constant:ident $name:literal, $help:literal;)*) => {
        /// The names as they are registered.
        pub mod names {
            $(#[doc = $help] pub const $constant: &str = $name;)*
            /// All of them but [`BUILD`].
            pub const ALL: &[&str] = &[$($constant),*];
            /// Version of the program, name and region of the node.
            pub const BUILD: &str = "iris_build";
        }

        /// The metrics of one node. Updating one is an atomic addition, with labels a read lock before it.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $type,)*
        }

        impl Metrics {
            /// All metrics at zero, for the node with this name in this region.
            pub fn new(region: &str, node: &str) -> Self {
                let mut registry = Registry::default();
                let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("region", region.to_owned()), ("node", node.to_owned())];
                registry.register(names::BUILD, "Version of the program, name and region of the node", Info::new(build));
                $(
                    let ($field, handle) = <$type as Make>::make();
                    registry.register(names::$constant, $help, handle);
                )*
                Self { registry, $($field,)* }
            }
        }
    };
}

metrics! {
    connections: Gauge = EDGE_CONNECTIONS "iris_edge_connections", "Connections of clients";
    connections_refused: Family<Reason, Counter> = EDGE_CONNECTIONS_REFUSED "iris_edge_connections_refused", "Connections of clients that were not admitted: limit (too many), failed (no handshake or Hello in time)";
    sessions: Gauge = EDGE_SESSIONS "iris_edge_sessions", "Sessions of clients";
    sessions_ended: Family<Reason, Counter> = EDGE_SESSIONS_ENDED "iris_edge_sessions_ended", "Sessions of clients that ended, and connections turned away before they had one: by code, goodbye (the client left), or closed (the connection ended)";
    shards_unserved: Gauge = EDGE_SHARDS_UNSERVED "iris_edge_shards_unserved", "Shards without an open lane from this edge to their owner: their users are not served here";
    fallbacks: Counter = EDGE_FALLBACKS "iris_edge_fallbacks", "Times at which a partition of this edge was taken to the owners of another region, since its own region's did not serve";
    frames_refused: Family<Reason, Counter> = EDGE_FRAMES_REFUSED "iris_edge_frames_refused", "Frames of clients that were refused, by reason";
    deposits_accepted: Counter = DEPOSIT_ACCEPTED "iris_deposit_accepted", "Messages accepted: durable as configured";
    deposits_duplicate: Counter = DEPOSIT_DUPLICATE "iris_deposit_duplicate", "Deposits of messages that were accepted before";
    deposits_alone: Counter = DEPOSIT_ALONE "iris_deposit_alone", "Messages accepted as durable in this region alone, where durability is geo, because no other region took them in time";
    deposits_refused: Family<Reason, Counter> = DEPOSIT_REFUSED "iris_deposit_refused", "Messages refused to clients, by code";
    deposits_retried: Counter = DEPOSIT_RETRIED "iris_deposit_retried", "Deposits that an owner refused for now, which their edge sends again";
    edge_deposits: Counter = EDGE_DEPOSITS "iris_edge_deposits", "Deposits that edges handed to owners, those that went again included";
    edge_deposit_batches: Counter = EDGE_DEPOSIT_BATCHES "iris_edge_deposit_batches", "Messages to owners that carried deposits";
    deposit_seconds: Latency = DEPOSIT_SECONDS "iris_deposit_duration_seconds", "Time from a message's arrival at the edge to its answer";
    delivered: Counter = DELIVERY_DELIVERED "iris_delivery_delivered", "Messages handed to sessions, each time they are";
    delivery_batches: Counter = DELIVERY_BATCHES "iris_delivery_batches", "Messages to edges that carried what was handed to sessions";
    acked: Counter = DELIVERY_ACKED "iris_delivery_acked", "Messages acknowledged by devices";
    commits: Counter = STORE_COMMITS "iris_store_commits", "Group commits";
    commit_operations: Sizes = STORE_COMMIT_OPERATIONS "iris_store_commit_operations", "Operations in a group commit";
    commit_seconds: Seconds = STORE_COMMIT_SECONDS "iris_store_commit_duration_seconds", "Time of a group commit";
    store_errors: Family<Reason, Counter> = STORE_ERRORS "iris_store_errors", "Errors of the store, by kind";
    queue_depth: Family<Queue, Gauge> = QUEUE_DEPTH "iris_queue_depth", "Entries that wait: events of partitions (inputs), requests of the store (store), messages without an answer at edges (edge_deposits) and at owners (owner_deposits)";
    queue_refused: Family<Queue, Counter> = QUEUE_REFUSED "iris_queue_refused", "Times that a full queue took no more: of a client's connection (client), of a stream to another node (peer), of another partition (partition), of an owner (owner_deposits), of the store (store)";
    link_up: Family<Link, Gauge> = LINK_UP "iris_link_up", "Whether the link to another region has round trips (1) or not (0)";
    link_shipped: Counter = LINK_SHIPPED "iris_link_shipped_operations", "Operations sent to other regions";
    link_batches: Counter = LINK_BATCHES "iris_link_shipped_batches", "Messages to other regions that carried operations";
    link_applied: Family<Link, Counter> = LINK_APPLIED "iris_link_applied_operations", "Operations of other regions applied, by the region that sent them";
    link_drifted: Counter = LINK_DRIFTED "iris_link_drifted_operations", "Operations of other regions applied whose time lay more than a minute ahead of the clock here: a clock is wrong, here or there";
    link_lag: Family<Link, Gauge> = LINK_LAG "iris_link_lag_operations", "Operations committed here that the other region has not been sent yet";
    link_lag_messages: Family<Link, Gauge> = LINK_LAG_MESSAGES "iris_link_lag_messages", "Messages among them";
    link_lag_bytes: Family<Link, Gauge> = LINK_LAG_BYTES "iris_link_lag_bytes", "Bytes of those operations";
    link_lag_seconds: Family<Link, Gauge> = LINK_LAG_SECONDS "iris_link_lag_seconds", "How long the first of them has waited, whole seconds";
    link_stopped: Family<LinkReason, Counter> = LINK_STOPPED "iris_link_stopped", "Links that stopped until someone acts, by reason";
    presence_merges: Counter = PRESENCE_MERGES "iris_presence_merges", "Presence records merged";
    presence_invalid: Counter = PRESENCE_INVALID "iris_presence_invalid_merges", "Presence records refused: equal version with another value";
    presence_records: Gauge = PRESENCE_RECORDS "iris_presence_records", "Presence records held";
    presence_repairs: Counter = PRESENCE_REPAIRS "iris_presence_repairs", "Shards that were looked into because their presence differed from that of another region";
    presence_repair_records: Counter = PRESENCE_REPAIR_RECORDS "iris_presence_repair_records", "Presence records sent to other regions that lacked them";
    presence_repair_bytes: Counter = PRESENCE_REPAIR_BYTES "iris_presence_repair_bytes", "Bytes sent to other regions to find what differs in presence, and of those records";
    presence_digest_bytes: Counter = PRESENCE_DIGEST_BYTES "iris_presence_digest_bytes", "Bytes of the digests of presence that are sent to other regions every few seconds";
    peer_breaker: Family<Peer, Gauge> = PEER_BREAKER "iris_peer_breaker_state", "Circuit breaker of the connection to another node: 0 closed (it is tried), 1 half-open (one attempt is under way that decides), 2 open (nothing is tried for a while); no sample for a node that is not wanted any more";
    peer_messages: Counter = PEER_MESSAGES "iris_peer_messages", "Messages written to other nodes, gossip left out";
    peer_writes: Counter = PEER_WRITES "iris_peer_writes", "Writes to streams to other nodes that carried messages";
    peer_refused: Family<Reason, Counter> = PEER_REFUSED "iris_peer_messages_refused", "Messages of other nodes that ended their connection, by reason";
    task_restarts: Family<Task, Counter> = TASK_RESTARTS "iris_task_restarts", "Restarts of a supervised task, by kind of task";
}

impl Metrics {
    /// All metrics as OpenMetrics text, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut to = String::with_capacity(8 * 1024);
        text::encode(&mut to, &self.registry).expect("writing to a string cannot fail");
        to
    }
}

impl Seconds {
    /// Counts one duration.
    pub fn observe(&self, duration: std::time::Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl Sizes {
    /// Counts one batch with this many entries.
    pub fn observe(&self, entries: usize) {
        self.0.observe(entries as f64);
    }
}

/// For a type that clones as a handle and starts at zero by default.
macro_rules! make_by_default {
    ([$($labels:tt)*] $type:ty) => {
        impl $($labels)* Make for $type {
            type Handle = Self;
            fn make() -> (Self, Self) {
                let made = Self::default();
                (made.clone(), made)
            }
        }
    };
}

make_by_default!([] Counter);
make_by_default!([] Gauge);
make_by_default!([] Latency);
make_by_default!([<L: Labels>] Family<L, Counter>);
make_by_default!([<L: Labels>] Family<L, Gauge>);

/// The label of a code of the wire.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Unknown => "unknown",
        Code::Overloaded => "overloaded",
        Code::Unavailable => "unavailable",
        Code::Blocked => "blocked",
        Code::IdReused => "id_reused",
        Code::IdTooOld => "id_too_old",
        Code::IdInFuture => "id_in_future",
        Code::IdMalformed => "id_malformed",
        Code::InboxFull => "inbox_full",
        Code::TooLarge => "too_large",
        Code::OutOfOrder => "out_of_order",
        Code::TooManyInFlight => "too_many_in_flight",
        Code::RateLimited => "rate_limited",
        Code::Unauthorized => "unauthorized",
        Code::Protocol => "protocol",
        Code::Version => "version",
        Code::TooManyDevices => "too_many_devices",
        Code::TooManyWatches => "too_many_watches",
        Code::Superseded => "superseded",
        Code::Draining => "draining",
        Code::Timeout => "timeout",
        Code::SessionLost => "session_lost",
        Code::StoreFull => "store_full",
        Code::Internal => "internal",
        Code::Restored => "restored",
        GOODBYE => "goodbye",
        Code::Other(_) => "other",
    }
}

/// A set of labels.
trait Labels: EncodeLabelSet + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static {}

impl<T: EncodeLabelSet + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static> Labels
    for T
{
}

impl Make for Seconds {
    type Handle = Histogram;
    fn make() -> (Self, Histogram) {
        let made = Histogram::new(exponential_buckets(25e-6, 2.0, 21));
        (Self(made.clone()), made)
    }
}

impl Make for Sizes {
    type Handle = Histogram;
    fn make() -> (Self, Histogram) {
        let made = Histogram::new(exponential_buckets(1.0, 2.0, 16));
        (Self(made.clone()), made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_served_under_its_name() {
        let metrics = Metrics::new("us-east", "us-east-core-1");
        metrics.deposits_accepted.inc_by(3);
        metrics
            .deposits_refused
            .get_or_create(&Reason { reason: "inbox_full" })
            .inc();
        metrics
            .link_lag
            .get_or_create(&Link {
                region: "eu-west".to_owned(),
            })
            .set(7);
        metrics.commit_operations.observe(100);
        metrics
            .commit_seconds
            .observe(std::time::Duration::from_millis(2));
        let text = metrics.encode();
        for line in [
            "iris_deposit_accepted_total 3",
            "iris_deposit_refused_total{reason=\"inbox_full\"} 1",
            "iris_link_lag_operations{region=\"eu-west\"} 7",
            "iris_store_commit_operations_bucket{le=\"64.0\"} 0",
            "iris_store_commit_operations_bucket{le=\"128.0\"} 1",
            "iris_store_commit_duration_seconds_count 1",
            "# TYPE iris_edge_connections gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(
            text.contains("region=\"us-east\",node=\"us-east-core-1\""),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn names_follow_the_rule() {
        for name in names::ALL {
            assert!(
                name.starts_with("iris_")
                    && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
        }
        let unique: std::collections::BTreeSet<_> = names::ALL.iter().collect();
        assert_eq!(unique.len(), names::ALL.len(), "a name is used twice");
    }
}
