//! A session, and its streams of deposits: one for each shard that it has unanswered messages to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::bucket::Slot;
use crate::core::ids::{ConnId, Coord, DeviceId, MessageId, Origin, SessionId, ShardId, UserId};
use crate::core::msg::{Attach, Deposit};
use crate::core::op::Envelope;
use crate::core::time::Mono;
use crate::core::vector::Vector;
use crate::core::wire::{Code, ServerFrame, Status};

#[derive(Debug)]
pub(super) struct Session {
    pub(super) conn: ConnId,
    pub(super) user: UserId,
    pub(super) device: DeviceId,
    /// Whether messages are delivered to it.
    pub(super) receives: bool,
    /// The user's shard.
    pub(super) shard: ShardId,
    pub(super) claim: Vector,
    pub(super) given: Vector,
    pub(super) acked: Vector,
    pub(super) connect_epoch: u64,
    /// As the client said.
    pub(super) hello_epoch: u64,
    /// The same.
    pub(super) memory: u64,
    pub(super) welcomed: bool,
    /// Its client takes along what comes first in another region (R22).
    pub(super) in_order: bool,
    /// As its `Hello` said.
    pub(super) after: Vector,
    /// The life of the shard in its store, as the owner told; see [`Attach::store`].
    pub(super) store: Origin,
    pub(super) since_ms: u64,
    pub(super) status: Status,
    pub(super) text: String,
    pub(super) counter: u64,
    /// When something last came from the client.
    pub(super) heard: Mono,
    /// Until when the owner must have answered the first attach.
    pub(super) attach_by: Option<Mono>,
    /// Nonce, and until when the client must have answered.
    pub(super) probe: Option<(u64, Mono)>,
    /// Told to go elsewhere, and nothing heard since: until when that is waited for.
    pub(super) leave_by: Option<Mono>,
    /// When the ages of unanswered deposits are looked at next.
    pub(super) deposits_by: Option<Mono>,
    /// The entry of this session among the timers.
    pub(super) wake: Mono,
    /// The lane on which it was attached last; 0 = none that lives.
    pub(super) lane: u64,
    /// Attached on that lane, without an answer yet.
    pub(super) attaching: bool,
    pub(super) last_seq: u64,
    /// Attempt at which new streams begin: the highest of those that are gone, so that none is ever taken back.
    pub(super) attempt: u32,
    pub(super) unanswered: u32,
    pub(super) streams: BTreeMap<ShardId, Stream>,
    /// For each recipient the message that was refused and must come again before others: see the module head.
    pub(super) first: BTreeMap<UserId, MessageId>,
    pub(super) bucket: Slot,
    pub(super) watching: BTreeSet<UserId>,
    /// Acknowledged and not yet told to the owner: the highest per origin.
    pub(super) acks_due: Vec<Coord>,
    /// Whether the owner must be told the status.
    pub(super) status_due: bool,
    /// For the client, at the next flush.
    pub(super) frames: Vec<ServerFrame>,
}

impl Session {
    pub(super) fn attach(&self, session: SessionId) -> Attach {
        Attach {
            shard: self.shard,
            user: self.user.clone(),
            device: self.device.clone(),
            receives: self.receives,
            session,
            claim: self.claim.clone(),
            given: self.given.clone(),
            acked: self.acked.clone(),
            connect_epoch: self.connect_epoch,
            hello_epoch: self.hello_epoch,
            memory: self.memory,
            welcomed: self.welcomed,
            since_ms: self.since_ms,
            status: self.status,
            text: self.text.clone(),
            counter: self.counter,
            store: self.store,
            after: self.after.clone(),
        }
    }

    /// The lane is gone: the next attach tells all that was due on it.
    pub(super) fn leave_lane(&mut self) {
        self.lane = 0;
        self.attaching = false;
        self.acks_due.clear();
        self.status_due = false;
        self.probe = None;
    }

    /// Drops a stream that holds nothing, and keeps its attempt.
    pub(super) fn drop_idle(&mut self, shard: ShardId) {
        if let Some(stream) = self.streams.get(&shard)
            && stream.items.is_empty()
        {
            self.attempt = self.attempt.max(stream.attempt);
            self.streams.remove(&shard);
        }
    }
}

/// Unanswered deposits of one session to one shard, in order.
#[derive(Debug)]
pub(super) struct Stream {
    /// R21: all in `items[..sent]` went out under it.
    pub(super) attempt: u32,
    /// All attempts from this one on went to one owner, on one lane.
    pub(super) since: u32,
    pub(super) items: VecDeque<Item>,
    /// How many of them are in flight on the shard's lane.
    pub(super) sent: usize,
    /// Whether it stands in its lane's queue.
    pub(super) queued: bool,
    /// Nothing goes out before this, after a retryable refusal.
    pub(super) paused: Option<Mono>,
    /// Retryable refusals since the owner last judged a deposit of it: while there are any, only the first goes out.
    pub(super) refusals: u32,
    /// The last retryable refusal of the owner, for the detail of a later `Unknown`.
    pub(super) last_refusal: Option<(Code, String)>,
}

impl Stream {
    pub(super) fn new(attempt: u32) -> Self {
        Self {
            attempt,
            since: attempt,
            items: VecDeque::new(),
            sent: 0,
            queued: false,
            paused: None,
            refusals: 0,
            last_refusal: None,
        }
    }

    /// Position of an unanswered deposit; nearly always the first.
    pub(super) fn position(&self, session_seq: u64) -> Option<usize> {
        if self.items.front()?.envelope.session_seq == session_seq {
            return Some(0);
        }
        self.items
            .binary_search_by_key(&session_seq, |item| item.envelope.session_seq)
            .ok()
    }

    /// What was in flight must go again, under a higher attempt. Says how much that was.
    pub(super) fn rewind(&mut self) -> InFlight {
        self.queued = false;
        let was = self.in_flight();
        if std::mem::take(&mut self.sent) > 0 {
            self.attempt += 1;
        }
        was
    }

    /// The same where the lane is gone: what its owner still says of it is of no use, and another may take more.
    pub(super) fn rewind_for_another_lane(&mut self) -> InFlight {
        let was = self.rewind();
        self.refusals = 0;
        self.since = self.attempt;
        was
    }

    /// How many of them may go out now, beyond those in flight.
    pub(super) fn may_send(&self) -> usize {
        let most = if self.refusals > 0 { 1 } else { self.items.len() };
        most.saturating_sub(self.sent)
    }

    pub(super) fn in_flight(&self) -> InFlight {
        InFlight {
            count: self.sent,
            bytes: self.items.range(..self.sent).map(Item::cost).sum(),
        }
    }
}

/// Deposits on a lane that have no answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InFlight {
    pub(super) count: usize,
    /// By [`Item::cost`].
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) envelope: Envelope,
    pub(super) body: Bytes,
    pub(super) deadline: Mono,
}

/// What an unanswered deposit costs beside its body in the count of bytes: envelope, ids and the places in queues.
pub const DEPOSIT_COST: usize = 320;

impl Item {
    pub(super) fn cost(&self) -> usize {
        DEPOSIT_COST + self.body.len()
    }

    pub(super) fn deposit(&self, shard: ShardId, attempt: u32) -> Deposit {
        Deposit {
            shard,
            attempt,
            envelope: self.envelope.clone(),
            body: self.body.clone(),
        }
    }
}
