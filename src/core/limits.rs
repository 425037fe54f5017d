//! The limits and intervals of the machines, each with its default and its reason.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::expire::EXPIRY_MARGIN_MS;

/// Limits and intervals of a node's machines. Every queue of the core is bounded by one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoreLimits {
    /// Largest body in bytes that a client may send.
    pub max_body: u32,
    /// Messages of one session that were sent and not yet answered.
    pub sends_in_flight: u32,
    /// Bytes of unanswered messages that one edge partition holds; beyond it senders are told `Overloaded`.
    pub edge_bytes: usize,
    /// New sessions a second that one edge partition admits. Far below the handshakes that a core can do (300 us each), so
    /// that a storm of clients leaves time for those who are in.
    pub sessions_per_second: u32,
    /// A client waits at most so long to be admitted, milliseconds, and is told to come back then. Well below the time that a
    /// client waits for its `Welcome`.
    pub admit_ms: u64,
    /// Deposits in flight on a lane; the rest waits at the edge. A few commits' worth keeps the owner busy.
    pub lane_deposits: usize,
    /// Bytes of deposits in flight on a lane, and of deliveries that the edge did not take off it yet. Far below what a
    /// connection between nodes queues, so that a few lanes one after another, each said to the end, fit into it; enough
    /// for 300 MB/s at 50 ms for an answer.
    pub lane_bytes: usize,
    /// Deposits that an owner partition holds for commits; beyond it they are refused retryably.
    pub owner_deposits: usize,
    /// Bytes of their bodies: with it a few commits of large messages do not take all memory. One deposit always fits.
    pub owner_deposit_bytes: usize,
    /// Reads that a partition has at the store; further ones wait for their turn. More than the store answers while a commit
    /// syncs, so it is never idle for want of a question, and few enough that their answers, each of at most a window or a
    /// page, stay below 64 MiB.
    pub store_reads: usize,
    /// Messages in flight to one device.
    pub window_messages: usize,
    /// Bytes in flight to one device.
    pub window_bytes: usize,
    /// Users that one session may watch.
    pub watches: usize,
    /// Messages a second that one user may send, refilled continuously.
    pub sends_per_second: u32,
    /// Messages that one user may send at once after a silence.
    pub send_burst: u32,
    /// Bytes of operations in flight on a link: memory a link costs at most on each side.
    pub link_bytes: u64,
    /// Bytes a second at which a subscriber that is behind is given what it lacks, beside twice what is committed meanwhile;
    /// 0 for as fast as it goes.
    pub catch_up_bytes: u64,
    /// Presence records in one message of a link.
    pub presence_batch: usize,
    /// An edge gives up on a deposit after so many milliseconds and tells the sender `Unknown`.
    pub deposit_timeout_ms: u64,
    /// Between a retryable refusal and the next attempt, milliseconds.
    pub retry_ms: u64,
    /// An attach that is not answered is an error to the client after so many milliseconds.
    pub attach_timeout_ms: u64,
    /// An edge whose region serves no shard for so long is served by the nearest region that can, milliseconds; 0: never.
    pub fallback_ms: u64,
    /// A session that was moved here from another region waits so long at most for what that one took before, milliseconds.
    pub moved_timeout_ms: u64,
    /// Cursors are written at most so often, milliseconds (R14).
    pub cursor_ms: u64,
    /// Confirmations are logged at most so often, milliseconds (R8).
    pub confirm_ms: u64,
    /// A holder that confirmed nothing for so long is away, milliseconds: it may then be marked (R12).
    pub absent_ms: u64,
    /// Presence changes are sent in batches of so many milliseconds.
    pub presence_ms: u64,
    /// Regions compare what they have of presence so often, milliseconds: what was lost on the way is missing for two of
    /// these, and a link of 1,024 shards carries 3 KB/s for it.
    pub presence_repair_ms: u64,
    /// Links and lanes ping so often, milliseconds.
    pub ping_ms: u64,
    /// A link without an answer for so long is down, milliseconds; users there show as unreachable.
    pub link_timeout_ms: u64,
    /// With `durability = "geo"`: another region has so long to take a message, milliseconds. Below
    /// `deposit_timeout_ms` and `link_timeout_ms`, after which an edge takes the owner for lost.
    pub geo_timeout_ms: u64,
    /// Sessions that are missing from their edge's set end after so long, milliseconds.
    pub session_grace_ms: u64,
    /// A probed client has so long to answer, milliseconds; no answer ends its session.
    pub probe_ms: u64,
    /// A device that was not heard of in any region for so long expires, milliseconds; 0: none does (R19).
    pub device_expiry_ms: u64,
    /// Messages and devices expire so much later, milliseconds: clocks that agree are no further apart (R20).
    pub expiry_margin_ms: u64,
    /// Seconds of silence after which a client's connection ends.
    pub idle_seconds: u32,
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            max_body: 64 * 1024,
            sends_in_flight: 1024,
            edge_bytes: 256 * 1024 * 1024,
            sessions_per_second: 1_000,
            admit_ms: 2_000,
            lane_deposits: 16 * 1024,
            lane_bytes: 16 * 1024 * 1024,
            owner_deposits: 64 * 1024,
            owner_deposit_bytes: 256 * 1024 * 1024,
            store_reads: 64,
            window_messages: 256,
            window_bytes: 1024 * 1024,
            watches: 1000,
            sends_per_second: 20_000,
            send_burst: 40_000,
            link_bytes: 16 * 1024 * 1024,
            catch_up_bytes: 8 * 1024 * 1024,
            presence_batch: 512,
            deposit_timeout_ms: 10_000,
            retry_ms: 100,
            attach_timeout_ms: 10_000,
            fallback_ms: 0,
            moved_timeout_ms: 5_000,
            cursor_ms: 1_000,
            confirm_ms: 1_000,
            absent_ms: 60_000,
            presence_ms: 50,
            presence_repair_ms: 5_000,
            ping_ms: 1_000,
            link_timeout_ms: 5_000,
            geo_timeout_ms: 2_000,
            session_grace_ms: 3_000,
            probe_ms: 2_000,
            device_expiry_ms: 30 * 24 * 60 * 60 * 1000,
            expiry_margin_ms: EXPIRY_MARGIN_MS,
            idle_seconds: 300,
        }
    }
}

/// Milliseconds as a duration.
pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
