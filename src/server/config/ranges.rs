//! Settings that are numbers with a range: limits, intervals, sizes of the store. One table each gives name, meaning, default
//! and range; a value outside its range is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::limits::{CoreLimits, ms};
use crate::core::op::MAX_BODY;
use crate::core::state::StoreLimits;
use crate::core::wire::MAX_CLIENT_FRAME;
use crate::net::client::ClientLimits;
use crate::net::peer::PeerLimits;
use crate::server::partition::MAX_PARTITIONS;

use super::units::{GIB, KIB, MIB, Setting};

/// Bytes of a delivered message beyond its body: ids, names, trace context, and what the outbox counts for a frame.
const DELIVERY_OVERHEAD_BYTES: u64 = KIB;

/// Declares a section: `field: type = default, in smallest => largest;`. `u64` is a size in bytes, `u32` a count.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident at $path:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr, in $min:expr => $max:expr;)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* #[serde(with = "super::units::setting")] pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            /// Reports each value outside its range as (key, what was expected).
            pub(super) fn check(&self, wrong: &mut dyn FnMut(&str, String)) {
                $(check::<$type>(concat!($path, ".", stringify!($field)), self.$field, $min, $max, wrong);)*
            }

            fn range(key: &str) -> Option<String> {
                $(if key == concat!($path, ".", stringify!($field)) {
                    return Some(between::<$type>($min, $max));
                })*
                None
            }
        }
    };
}

section! {
    /// What one user, session, device, connection or queue may take. The answer beyond each limit is typed and names it.
    Limits at "limits" {
        /// Bytes of one message's body. Larger is refused before it is read into memory.
        max_body: u64 = core().max_body.into(), in 256 => MAX_BODY as u64;
        /// Messages in one user's inbox that some device has not consumed. Beyond it senders get `InboxFull`.
        inbox_messages: u32 = number(StoreLimits::default().inbox_messages), in 1 => 100_000_000;
        /// Bytes of those messages.
        inbox_bytes: u64 = StoreLimits::default().inbox_bytes, in KIB => 1024 * GIB;
        /// Devices of one user. Each holds back the removal of messages until it consumed them.
        devices_per_user: u32 = number(StoreLimits::default().devices as u64), in 1 => 1_024;
        /// Bytes of logs that a region which is away pins here at most; then it needs a snapshot. A shard takes no more messages
        /// at twice its share, and answers `StoreFull`.
        absent_log_bytes: u64 = StoreLimits::default().absent_log_bytes, in MIB => 1024 * 1024 * GIB;
        /// For how long it pins them at most.
        absent_log_age: Duration = ms(StoreLimits::default().absent_log_ms), in DAY / 24 => DAY * 3_650;
        /// Messages delivered to one device and not yet acknowledged. A slow device costs this much memory and no more.
        window_messages: u32 = number(core().window_messages as u64), in 1 => 65_536;
        /// Bytes of those messages. One message is always let through, so that a small window cannot block.
        window_bytes: u64 = core().window_bytes as u64, in KIB => 256 * MIB;
        /// Sends of one session that wait for their answer. Further ones are refused, retryable.
        sends_in_flight: u32 = core().sends_in_flight, in 1 => 65_536;
        /// Users whose presence one session watches.
        watches_per_session: u32 = number(core().watches as u64), in 0 => 100_000;
        /// Messages a second that one user may send, on average.
        user_messages_per_second: u32 = core().sends_per_second, in 1 => 10_000_000;
        /// Messages that one user may send at once, before the average counts.
        user_burst: u32 = core().send_burst, in 1 => 10_000_000;
        /// Connections of clients to one node.
        connections: u32 = number(ClientLimits::default().max_connections as u64), in 1 => 10_000_000;
        /// Handshakes under way on one node at a time: each costs 300 us and can be had for one packet.
        handshakes: u32 = number(ClientLimits::default().max_handshakes as u64), in 1 => 1_000_000;
        /// Handshakes under way from which on an address must first prove that it is real (QUIC retry).
        handshakes_before_retry: u32 = number(ClientLimits::default().retry_above as u64), in 0 => 1_000_000;
        /// New sessions a second that one node admits. Further ones wait for `timeouts.admit`; those for whom that is not enough get
        /// `Overloaded`, retryable.
        sessions_per_second: u32 = core().sessions_per_second, in 1 => 1_000_000;
        /// Bytes of unanswered messages that one edge partition holds. Beyond it senders get `Overloaded`.
        edge_bytes: u64 = core().edge_bytes as u64, in MIB => 256 * GIB;
        /// Deposits in flight from one edge partition to one owner. The rest waits at the edge.
        lane_deposits: u32 = number(core().lane_deposits as u64), in 1 => 1_000_000;
        /// Bytes in flight between one edge partition and one owner, each way. The rest waits at the edge, or in the store.
        lane_bytes: u64 = core().lane_bytes as u64, in 64 * KIB => 64 * MIB;
        /// Deposits that one owner partition holds for commits. Beyond it they are refused, retryable.
        owner_deposits: u32 = number(core().owner_deposits as u64), in 1 => 10_000_000;
        /// Bytes of the bodies of those deposits. Beyond it they are refused, retryable.
        owner_deposit_bytes: u64 = core().owner_deposit_bytes as u64, in MIB => 256 * GIB;
        /// Reads that one partition has at the store. Further ones wait for their turn.
        store_reads: u32 = number(core().store_reads as u64), in 1 => 65_536;
        /// Bytes of operations in flight on the link to another region.
        link_bytes: u64 = core().link_bytes, in 64 * KIB => GIB;
        /// Bytes a second at which a partition of another region that is behind is given what it lacks, beside twice what is committed meanwhile.
        catch_up_bytes: u64 = core().catch_up_bytes, in 64 * KIB => 64 * GIB;
    }
}

section! {
    /// Sizes of a core node's store. What waits before it is bounded by `limits.owner_deposits`, `owner_deposit_bytes`,
    /// `store_reads` and the links' credit.
    StoreConfig at "store" {
        /// Bytes of one journal segment; it is preallocated, and deleted as a whole once all in it is in the tables.
        segment_bytes: u64 = 64 * MIB, in MIB => GIB;
        /// Bytes of messages and indexes kept in memory. What exceeds it is read from disk again.
        memory_bytes: u64 = 256 * MIB, in MIB => 1024 * GIB;
        /// Bytes that the tables (fjall) use for their cache of blocks.
        cache_bytes: u64 = 64 * MIB, in MIB => 256 * GIB;
        /// Journal bytes after which what is pending is written to the tables.
        checkpoint_bytes: u64 = 128 * MIB, in MIB => 256 * GIB;
    }
}

section! {
    /// How often something happens by itself.
    Intervals at "intervals" {
        /// Between two `Confirm` operations of a shard (R8).
        confirm: Duration = ms(core().confirm_ms), in Duration::from_millis(10) => MINUTE;
        /// Between two flushes of the acknowledged positions of devices (R14).
        cursor_flush: Duration = ms(core().cursor_ms), in Duration::from_millis(10) => MINUTE;
        /// Over which presence changes for one link are batched.
        presence_batch: Duration = ms(core().presence_ms), in Duration::from_millis(1) => Duration::from_secs(10);
        /// Between two comparisons of what two regions have of presence.
        presence_repair: Duration = ms(core().presence_repair_ms), in Duration::from_millis(100) => Duration::from_secs(600);
        /// Between a retryable refusal of a deposit and its next attempt.
        retry: Duration = ms(core().retry_ms), in Duration::from_millis(1) => MINUTE;
        /// Between two round trips that measure a link to another region, or the way to an owner.
        link_ping: Duration = ms(core().ping_ms), in Duration::from_millis(10) => MINUTE;
        /// Between two rounds of gossip within the region.
        gossip: Duration = Duration::from_millis(200), in Duration::from_millis(10) => MINUTE;
    }
}

section! {
    /// How long something may take. Each remote call has a deadline.
    Timeouts at "timeouts" {
        /// Of a session whose client sends no frame, and of a connection without any packet where the client announced no
        /// shorter time to QUIC, or none; whole seconds.
        idle: Duration = Duration::from_secs(core().idle_seconds.into()), in SECOND => DAY;
        /// From the first packet of a client to its whole `Hello`, the handshake included.
        handshake: Duration = ClientLimits::default().handshake_timeout, in Duration::from_millis(100) => MINUTE;
        /// In which a client that comes with many others is admitted, or told to come back.
        admit: Duration = ms(core().admit_ms), in Duration::from_millis(1) => MINUTE;
        /// Of a session's admission by the owner of its user.
        attach: Duration = ms(core().attach_timeout_ms), in Duration::from_millis(10) => HOUR;
        /// An edge whose region serves nobody for so long is served by the nearest of the other regions that can, until its own
        /// does again; 0: never.
        fallback: Duration = Duration::from_secs(5), in Duration::ZERO => HOUR;
        /// In which what a region took before its clients were moved here comes to them first; then they are given what is here.
        moved: Duration = ms(core().moved_timeout_ms), in Duration::ZERO => MINUTE;
        /// In which an edge that was lost for a moment may name a session again before it counts as ended.
        resume_grace: Duration = ms(core().session_grace_ms), in Duration::from_millis(1) => HOUR;
        /// Of a deposit, from the edge's side; then it is answered `Unknown`.
        deposit: Duration = ms(core().deposit_timeout_ms), in Duration::from_millis(10) => HOUR;
        /// With `durability = "geo"`, in which another region takes a message; then `geo_fallback` decides.
        geo: Duration = ms(core().geo_timeout_ms), in Duration::from_millis(10) => MINUTE;
        /// Of one attempt to connect to another node, hellos included.
        connect: Duration = PeerLimits::default().connect_timeout, in Duration::from_millis(10) => MINUTE;
        /// Without a round trip, after which another region counts as unreachable.
        link: Duration = ms(core().link_timeout_ms), in Duration::from_millis(100) => HOUR;
        /// Of a client that is probed because another region claims its session.
        probe: Duration = ms(core().probe_ms), in Duration::from_millis(10) => MINUTE;
        /// Of a drain: after it what is still under way is cut off.
        drain: Duration = Duration::from_secs(30), in Duration::ZERO => HOUR;
    }
}

section! {
    /// Devices of users.
    Devices at "devices" {
        /// After which a device expires that attached nowhere: it holds back nothing any more, and begins anew when it comes
        /// back. 0: none expires. The longest of all regions counts.
        expire_after: Duration = ms(core().device_expiry_ms), in Duration::ZERO => DAY * 3_650;
    }
}

impl Limits {
    /// For the machines of the core; the rest of what they need is in intervals and timeouts.
    pub(super) fn core_limits(
        &self,
        intervals: &Intervals,
        timeouts: &Timeouts,
        devices: &Devices,
    ) -> CoreLimits {
        CoreLimits {
            max_body: u32::try_from(self.max_body).unwrap_or(u32::MAX),
            sends_in_flight: self.sends_in_flight,
            edge_bytes: size(self.edge_bytes),
            sessions_per_second: self.sessions_per_second,
            admit_ms: millis(timeouts.admit),
            lane_deposits: self.lane_deposits as usize,
            lane_bytes: size(self.lane_bytes),
            owner_deposits: self.owner_deposits as usize,
            owner_deposit_bytes: size(self.owner_deposit_bytes),
            store_reads: self.store_reads as usize,
            window_messages: self.window_messages as usize,
            window_bytes: size(self.window_bytes),
            watches: self.watches_per_session as usize,
            sends_per_second: self.user_messages_per_second,
            send_burst: self.user_burst,
            link_bytes: self.link_bytes,
            catch_up_bytes: self.catch_up_bytes,
            deposit_timeout_ms: millis(timeouts.deposit),
            retry_ms: millis(intervals.retry),
            attach_timeout_ms: millis(timeouts.attach),
            fallback_ms: millis(timeouts.fallback),
            moved_timeout_ms: millis(timeouts.moved),
            cursor_ms: millis(intervals.cursor_flush),
            confirm_ms: millis(intervals.confirm),
            presence_ms: millis(intervals.presence_batch),
            presence_repair_ms: millis(intervals.presence_repair),
            ping_ms: millis(intervals.link_ping),
            link_timeout_ms: millis(timeouts.link),
            geo_timeout_ms: millis(timeouts.geo),
            session_grace_ms: millis(timeouts.resume_grace),
            probe_ms: millis(timeouts.probe),
            idle_seconds: u32::try_from(timeouts.idle.as_secs()).unwrap_or(u32::MAX),
            device_expiry_ms: millis(devices.expire_after),
            ..core()
        }
    }

    /// For the commits of a store.
    pub(super) fn store_limits(&self, devices: &Devices) -> StoreLimits {
        StoreLimits {
            inbox_messages: self.inbox_messages.into(),
            inbox_bytes: self.inbox_bytes,
            devices: self.devices_per_user as usize,
            device_expiry_ms: millis(devices.expire_after),
            absent_log_bytes: self.absent_log_bytes,
            absent_log_ms: millis(self.absent_log_age),
            ..StoreLimits::default()
        }
    }

    /// For the connections of clients.
    pub(super) fn client_limits(&self, timeouts: &Timeouts) -> ClientLimits {
        let frame = self.max_body + (MAX_CLIENT_FRAME - MAX_BODY) as u64;
        // A device's whole window may wait in the outbox of a client that reads slowly, and some answers with it.
        let window =
            self.window_bytes + u64::from(self.window_messages) * DELIVERY_OVERHEAD_BYTES + 2 * frame;
        let defaults = ClientLimits::default();
        ClientLimits {
            queue_bytes: defaults.queue_bytes.max(size(window)),
            max_connections: self.connections as usize,
            max_handshakes: self.handshakes as usize,
            retry_above: self.handshakes_before_retry as usize,
            handshake_timeout: timeouts.handshake,
            idle_timeout: timeouts.idle,
            max_frame: u32::try_from(frame).unwrap_or(u32::MAX),
            ..defaults
        }
    }
}

fn core() -> CoreLimits {
    CoreLimits::default()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn number(default: u64) -> u32 {
    u32::try_from(default).unwrap_or(u32::MAX)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// What values a setting may have, in words, where that is a range.
pub(super) fn range(key: &str) -> Option<String> {
    let of_a_section = || {
        let sections = [
            Limits::range,
            StoreConfig::range,
            Intervals::range,
            Timeouts::range,
            Devices::range,
        ];
        sections.iter().find_map(|range| range(key))
    };
    let range = match key {
        "node.partitions" => Some(between(1, u32::from(MAX_PARTITIONS))),
        "cluster.replication_factor" => Some("1 to the number of regions".to_owned()),
        "cluster.shard_count" => Some("1 to 65536 and a power of two".to_owned()),
        _ => of_a_section(),
    };
    range.map(|range| format!("from {range}"))
}

fn check<T: Setting>(key: &str, value: T, min: T, max: T, wrong: &mut dyn FnMut(&str, String)) {
    if value < min || value > max {
        wrong(key, format!("expected {}", between(min, max)));
    }
}

fn between<T: Setting>(min: T, max: T) -> String {
    format!("{} to {}", min.show(), max.show())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_ranges() {
        let mut wrong = |key: &str, message: String| panic!("{key}: {message}");
        Limits::default().check(&mut wrong);
        StoreConfig::default().check(&mut wrong);
        Intervals::default().check(&mut wrong);
        Timeouts::default().check(&mut wrong);
        Devices::default().check(&mut wrong);
    }

    #[test]
    fn the_defaults_are_those_of_the_machines() {
        let (limits, intervals, timeouts) = (Limits::default(), Intervals::default(), Timeouts::default());
        let devices = Devices::default();
        assert_eq!(
            limits.core_limits(&intervals, &timeouts, &devices),
            CoreLimits {
                // Alone a machine knows of no other region.
                fallback_ms: 5_000,
                ..CoreLimits::default()
            }
        );
        assert_eq!(limits.store_limits(&devices), StoreLimits::default());
        assert!(limits.client_limits(&timeouts).check().is_ok());
        let largest = Limits {
            max_body: MAX_BODY as u64,
            ..limits
        };
        assert_eq!(
            largest.client_limits(&timeouts).max_frame as usize,
            MAX_CLIENT_FRAME
        );
    }

    #[test]
    fn just_beyond_a_range_is_refused_and_just_inside_is_not() {
        let check = |window_messages| {
            let mut found = Vec::new();
            Limits {
                window_messages,
                ..Limits::default()
            }
            .check(&mut |key, message| found.push(format!("{key}: {message}")));
            found
        };
        assert_eq!((check(1), check(65_536)), (vec![], vec![]));
        assert_eq!(check(0), ["limits.window_messages: expected 1 to 65536"]);
        assert_eq!(check(65_537), ["limits.window_messages: expected 1 to 65536"]);
    }
}
