//! Settings that are numbers with a range: limits, intervals, sizes of the store. One table each gives name, meaning, default
//! and range; a value outside its range is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{GIB, KIB, MIB, Setting};

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
        }
    };
}

section! {
    /// What one user, session, device or connection may take. The answer beyond each limit is typed and names it.
    Limits at "limits" {
        /// Bytes of one message's body. Larger is refused before it is read into memory.
        max_body: u64 = 64 * KIB, in 256 => 8 * MIB;
        /// Bytes of one frame from a client, its body and the control part around it. At least `max_body` + 4 KiB.
        max_frame: u64 = 80 * KIB, in 5 * KIB => 9 * MIB;
        /// Messages in one user's inbox that some device has not consumed. Beyond it senders get `InboxFull`.
        inbox_messages: u32 = 100_000, in 1 => 100_000_000;
        /// Bytes of those messages.
        inbox_bytes: u64 = 256 * MIB, in KIB => 1024 * GIB;
        /// Messages delivered to one device and not yet acknowledged. A slow device costs this much memory and no more.
        window_messages: u32 = 256, in 1 => 65_536;
        /// Bytes of those messages. One message is always let through, so that a small window cannot block.
        window_bytes: u64 = MIB, in KIB => 256 * MIB;
        /// Sends of one session that wait for their answer. Further ones are refused, retryable.
        sends_in_flight: u32 = 1_024, in 1 => 65_536;
        /// Users whose presence one session watches.
        watches_per_session: u32 = 1_000, in 0 => 100_000;
        /// Devices of one user. Each holds back the removal of messages until it consumed them.
        devices_per_user: u32 = 32, in 1 => 1_024;
        /// Messages a second that one user may send, on average.
        user_messages_per_second: u32 = 2_000, in 1 => 10_000_000;
        /// Messages that one user may send at once, before the average counts.
        user_burst: u32 = 4_000, in 1 => 10_000_000;
        /// Connections of clients to one node.
        connections: u32 = 100_000, in 1 => 10_000_000;
        /// Handshakes under way on one node at a time; further ones must prove their address first (QUIC retry).
        handshakes: u32 = 1_024, in 1 => 1_000_000;
    }
}

section! {
    /// Sizes of a core node's store and of the queue before it.
    StoreConfig at "store" {
        /// Bytes of one journal segment; it is preallocated, and deleted as a whole once all in it is in the tables.
        segment_bytes: u64 = 64 * MIB, in MIB => 4 * GIB;
        /// Bytes of messages and indexes kept in memory. What exceeds it is read from disk again.
        memory_bytes: u64 = 256 * MIB, in MIB => 1024 * GIB;
        /// Bytes that the tables (fjall) use for their cache of blocks.
        cache_bytes: u64 = 64 * MIB, in MIB => 256 * GIB;
        /// Journal bytes after which what is pending is written to the tables.
        checkpoint_bytes: u64 = 128 * MIB, in MIB => 256 * GIB;
        /// Time after which what is pending is written to the tables.
        checkpoint_interval: Duration = Duration::from_secs(30), in Duration::from_millis(100) => HOUR;
        /// Operations of one group commit. More of them cost the first one time, fewer cost throughput.
        batch_operations: u32 = 16_384, in 1 => 1_000_000;
        /// Bytes of one group commit.
        batch_bytes: u64 = 8 * MIB, in 64 * KIB => GIB;
        /// Operations that wait for the store thread. Beyond it deposits are refused, retryable.
        queue_operations: u32 = 65_536, in 1 => 10_000_000;
        /// Bytes of those operations.
        queue_bytes: u64 = 64 * MIB, in 64 * KIB => 16 * GIB;
    }
}

section! {
    /// How often something happens by itself.
    Intervals at "intervals" {
        /// Between two `Confirm` operations of a shard (R8).
        confirm: Duration = SECOND, in Duration::from_millis(10) => MINUTE;
        /// Between two flushes of the acknowledged positions of devices (R14).
        cursor_flush: Duration = SECOND, in Duration::from_millis(10) => MINUTE;
        /// Over which presence changes for one link are batched.
        presence_batch: Duration = Duration::from_millis(50), in Duration::ZERO => Duration::from_secs(10);
        /// Between two checks that this node still owns its shards.
        epoch_check: Duration = SECOND, in Duration::from_millis(10) => MINUTE;
        /// Between two round trips that measure a link to another region.
        link_ping: Duration = SECOND, in Duration::from_millis(10) => MINUTE;
        /// Between two rounds of gossip within the region.
        gossip: Duration = Duration::from_millis(200), in Duration::from_millis(10) => MINUTE;
    }
}

section! {
    /// How long something may take. Each remote call has a deadline.
    Timeouts at "timeouts" {
        /// Of a client's connection without any traffic.
        idle: Duration = Duration::from_secs(300), in SECOND => DAY;
        /// From the first packet of a client to its accepted `Hello`.
        handshake: Duration = Duration::from_secs(10), in Duration::from_millis(100) => MINUTE;
        /// In which a session whose connection broke may be resumed before it counts as ended.
        resume_grace: Duration = Duration::from_secs(3), in Duration::ZERO => HOUR;
        /// Of a deposit, from the edge's side; then it is sent again or answered `Unknown`.
        deposit: Duration = Duration::from_secs(10), in Duration::from_millis(10) => HOUR;
        /// Of connecting to another node.
        connect: Duration = Duration::from_secs(5), in Duration::from_millis(10) => MINUTE;
        /// Of any other call to another node.
        call: Duration = Duration::from_secs(5), in Duration::from_millis(10) => HOUR;
        /// Without a round trip, after which another region counts as unreachable.
        link: Duration = Duration::from_secs(5), in Duration::from_millis(100) => HOUR;
        /// Of a client that is probed because another region claims its session.
        probe: Duration = Duration::from_secs(2), in Duration::from_millis(10) => MINUTE;
        /// Of a drain: after it what is still under way is cut off.
        drain: Duration = Duration::from_secs(30), in Duration::ZERO => HOUR;
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn check<T: Setting>(key: &str, value: T, min: T, max: T, wrong: &mut dyn FnMut(&str, String)) {
    if value < min || value > max {
        wrong(key, format!("expected {} to {}", min.show(), max.show()));
    }
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
