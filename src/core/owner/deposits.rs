//! Judging deposits: order within a session (R21), and the answers.
//!
//! For each session and shard the owner remembers the attempt, the highest session sequence that it handed to a commit,
//! and from which sequence on it refuses since a retryable refusal. A sequence at or below the highest is answered only
//! if it is a duplicate: accepting it now would put it behind a later one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{LaneId, Owner, OwnerOutput, Tag, refusal_code};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::defect::{self, Defect};
use crate::core::ids::{MessageId, SessionId, ShardId};
use crate::core::msg::{Answer, Deposit, Verdict};
use crate::core::storage::StoreError;
use crate::core::time::{Mono, Now};
use crate::core::wire::Code;

/// A sender that sent nothing for so long is forgotten: its edge gave up on anything older long before.
const SENDER_IDLE: Duration = Duration::from_secs(600);

/// Counters of deposits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DepositStats {
    /// Accepted for the first time.
    pub accepted: u64,
    /// Answered with the coordinates of an earlier acceptance.
    pub duplicates: u64,
    /// Of all accepted, those that are durable in this region alone because no other one took them in time.
    pub alone: u64,
    /// Refused for good.
    pub refused: u64,
    /// Refused, to be sent again.
    pub retried: u64,
    /// Of those, because too many waited for commits already.
    pub overloaded: u64,
    /// Handed to a commit and not yet answered.
    pub pending: u64,
    /// Bytes of their bodies.
    pub pending_bytes: u64,
}

/// Finds the way back from a commit to the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepositTag {
    lane: LaneId,
    pub(super) shard: ShardId,
    session: SessionId,
    session_seq: u64,
    attempt: u32,
    id: MessageId,
    /// Of its body.
    bytes: u64,
}

/// Senders that are remembered, about 100 bytes each: 26 MB. A session is one for each shard that it sends to. Beyond it
/// those who are not known are refused as `Overloaded`, retryably, until others were silent for [`SENDER_IDLE`].
const MAX_SENDERS: usize = 262_144;

/// What is remembered of senders.
///
/// Who is refused for want of room leaves no record, and what it sent behind that must be refused as well, also when room was
/// made meanwhile. So each shard remembers the highest attempt that it refused so: of who is not known, nothing up
/// to it is taken, and who comes again has a higher one, or gets a record and one more refusal.
pub(super) struct Senders {
    known: BTreeMap<(ShardId, SessionId), Sender>,
    /// At most as many as shards.
    crowded: BTreeMap<ShardId, Crowded>,
    /// [`MAX_SENDERS`], less in tests.
    pub(super) limit: usize,
}

struct Crowded {
    attempt: u32,
    /// When somebody was refused for want of room last.
    at: Mono,
}

impl Default for Senders {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            crowded: BTreeMap::new(),
            limit: MAX_SENDERS,
        }
    }
}

#[derive(Default)]
struct Sender {
    attempt: u32,
    judged: u64,
    refused_from: Option<u64>,
    used: Mono,
}

impl Senders {
    pub(super) fn forget_idle(&mut self, now: Mono) {
        self.known
            .retain(|_, sender| now.since(sender.used) < SENDER_IDLE);
        self.crowded
            .retain(|_, crowded| now.since(crowded.at) < SENDER_IDLE);
    }

    /// The record of a sender, made where there is room.
    fn of(&mut self, tag: &DepositTag, now: Mono) -> Option<&mut Sender> {
        let key = (tag.shard, tag.session);
        if !self.known.contains_key(&key) {
            let crowded = self.crowded.get(&tag.shard).map_or(0, |crowded| crowded.attempt);
            if self.known.len() >= self.limit {
                let attempt = crowded.max(tag.attempt);
                self.crowded.insert(tag.shard, Crowded { attempt, at: now });
                return None;
            }
            let sender = Sender {
                attempt: tag.attempt,
                refused_from: (tag.attempt <= crowded).then_some(tag.session_seq),
                ..Sender::default()
            };
            self.known.insert(key, sender);
        }
        let sender = self.known.get_mut(&key)?;
        sender.used = now;
        Some(sender)
    }

    /// What waits for a commit is under an epoch that may be over: it may fail where a later one, under the next epoch, would not
    /// (R21). So nothing more of these attempts is taken; edges are told, and send again.
    pub(super) fn shard_given_up(&mut self, shard: ShardId) {
        let of_shard = (shard, SessionId(0))..=(shard, SessionId(u64::MAX));
        for (_, sender) in self.known.range_mut(of_shard) {
            let next = sender.judged.saturating_add(1);
            sender.refused_from = Some(sender.refused_from.map_or(next, |from| from.min(next)));
        }
    }

    /// Refuses this sequence and all later ones of the attempt, and forgets that they were judged.
    fn refuse_from(&mut self, shard: ShardId, session: SessionId, attempt: u32, session_seq: u64) {
        let sender = self.known.entry((shard, session)).or_default();
        if sender.attempt == attempt {
            let from = sender
                .refused_from
                .map_or(session_seq, |from| from.min(session_seq));
            sender.refused_from = Some(from);
        }
        sender.judged = sender.judged.min(session_seq.saturating_sub(1));
    }
}

impl Owner {
    pub(super) fn deposit(&mut self, lane: LaneId, deposit: Deposit, now: Now) {
        let Deposit {
            shard,
            attempt,
            envelope,
            body,
        } = deposit;
        let tag = DepositTag {
            lane,
            shard,
            session: envelope.session,
            session_seq: envelope.session_seq,
            attempt,
            id: envelope.id,
            bytes: body.len() as u64,
        };
        let full = self.is_full(tag.bytes);
        let alone = self.refuses_alone();
        let pinned = self.shards.get(&shard).is_some_and(|shard| shard.holders.full);
        let Some(sender) = self.senders.of(&tag, now.mono) else {
            self.stats.deposits.overloaded += 1;
            let why = "too many sessions sent to this owner lately";
            return self.answer_retry(&tag, Code::Overloaded, why, now);
        };
        if attempt > sender.attempt {
            sender.attempt = attempt;
            sender.refused_from = None;
        }
        let blocked = sender.refused_from.is_some_and(|from| tag.session_seq >= from);
        if attempt < sender.attempt || (blocked && !defect::on(Defect::LaterPasses)) {
            return self.answer_retry(&tag, Code::Blocked, "an earlier message was refused", now);
        }
        let epoch = self.shards.get(&shard).and_then(super::Shard::open_epoch);
        let epoch = epoch.filter(|_| !self.finishing);
        if full && defect::on(Defect::DropsWhenFull) {
            return;
        }
        let (Some(epoch), false) = (epoch, full || alone || pinned) else {
            sender.refused_from = Some(tag.session_seq);
            let (code, why) = match epoch {
                None if self.finishing => (Code::Unavailable, "this node stops"),
                None => (
                    Code::Unavailable,
                    "the shard is not active at this node, or recovers",
                ),
                Some(_) if alone => (
                    Code::Unavailable,
                    "no other region can be reached, and a message is accepted only once another one has it",
                ),
                Some(_) if full => (Code::Overloaded, "too many messages wait to be stored"),
                Some(_) => (
                    Code::StoreFull,
                    "the log of the shard is too long: a region that is away has yet to get it",
                ),
            };
            self.stats.deposits.overloaded += u64::from(full);
            return self.answer_retry(&tag, code, why, now);
        };
        let known_only = tag.session_seq <= sender.judged;
        sender.judged = sender.judged.max(tag.session_seq);
        self.stats.deposits.pending += 1;
        self.stats.deposits.pending_bytes += tag.bytes;
        let seen_ms = self.clocks.latest_ms;
        let op = StoreOp::Append {
            shard,
            epoch,
            envelope: Box::new(envelope),
            body,
            seen_ms,
            known_only,
        };
        self.out.push_back(OwnerOutput::Commit(op, Tag::Deposit(tag)));
    }

    pub(super) fn deposited(&mut self, tag: DepositTag, outcome: Result<Outcome, StoreError>, now: Now) {
        match &outcome {
            Ok(Outcome::Appended(at)) => return self.accept(tag, *at, false, now),
            Ok(Outcome::Duplicate(coords)) if !coords.is_empty() => {
                return self.accept(tag, coords[0], true, now);
            }
            _ => self.no_longer_pending(&tag),
        }
        let verdict = match outcome {
            // The commit that it was judged by failed meanwhile: it was not judged after all.
            Ok(Outcome::Refused(Refusal::AlreadyJudged)) if self.forgotten(&tag) => {
                return self.refuse_retryably(&tag, Code::Blocked, "an earlier try failed", now);
            }
            Ok(Outcome::Refused(refusal @ (Refusal::Recovering | Refusal::Removed))) => {
                return self.refuse_retryably(&tag, Code::Unavailable, &refusal.to_string(), now);
            }
            Ok(Outcome::Refused(refusal)) => {
                if let Refusal::Fenced { .. } = refusal {
                    self.refuse_retryably(&tag, Code::Unavailable, "another node owns the shard", now);
                    return self.handle_fenced(tag.shard, now);
                }
                self.stats.deposits.refused += 1;
                let (code, server_ms) = refusal_code(&refusal);
                let server_ms = if server_ms == 0 { now.wall_ms } else { server_ms };
                Verdict::Refused {
                    code,
                    detail: refusal.to_string(),
                    server_ms,
                }
            }
            Ok(other) => {
                let why = format!("the store answered {other:?}");
                return self.refuse_retryably(&tag, Code::Unavailable, &why, now);
            }
            Err(error) => {
                let code = match error {
                    StoreError::Full(_) => Code::StoreFull,
                    _ => Code::Unavailable,
                };
                return self.refuse_retryably(&tag, code, &error.to_string(), now);
            }
        };
        self.answer(&tag, verdict);
    }

    /// A deposit is answered.
    pub(super) fn no_longer_pending(&mut self, tag: &DepositTag) {
        let stats = &mut self.stats.deposits;
        stats.pending = stats.pending.saturating_sub(1);
        stats.pending_bytes = stats.pending_bytes.saturating_sub(tag.bytes);
    }

    /// Whether one more with so many bytes is too much; a single one never is.
    fn is_full(&self, bytes: u64) -> bool {
        let (limits, stats) = (&self.config.limits, &self.stats.deposits);
        if defect::on(Defect::NeverFull) {
            return false;
        }
        let heavy = stats.pending_bytes.saturating_add(bytes) > limits.owner_deposit_bytes as u64;
        stats.pending >= limits.owner_deposits as u64 || (heavy && stats.pending > 0)
    }

    fn forgotten(&self, tag: &DepositTag) -> bool {
        let sender = self.senders.known.get(&(tag.shard, tag.session));
        sender.is_none_or(|sender| sender.judged < tag.session_seq)
    }

    fn refuse_retryably(&mut self, tag: &DepositTag, code: Code, why: &str, now: Now) {
        self.senders
            .refuse_from(tag.shard, tag.session, tag.attempt, tag.session_seq);
        self.answer_retry(tag, code, why, now);
    }

    pub(super) fn answer_retry(&mut self, tag: &DepositTag, code: Code, why: &str, now: Now) {
        self.stats.deposits.retried += 1;
        self.answer(
            tag,
            Verdict::Refused {
                code,
                detail: why.to_owned(),
                server_ms: now.wall_ms,
            },
        );
    }

    pub(super) fn answer(&mut self, tag: &DepositTag, verdict: Verdict) {
        let Some(lane) = self.lanes.get_mut(&tag.lane) else {
            return;
        };
        lane.answers.push(Answer {
            session: tag.session,
            shard: tag.shard,
            session_seq: tag.session_seq,
            attempt: tag.attempt,
            id: tag.id,
            verdict,
        });
    }
}
