//! Sends and what becomes of them: judging, answers, further attempts, giving up.

use super::session::{DEPOSIT_COST, InFlight, Item, Stream};
use super::{Edge, stats, tell};
use crate::core::ids::{MessageId, SessionId, ShardId};
use crate::core::limits::ms;
use crate::core::msg::{Answer, Verdict};
use crate::core::op::Envelope;
use crate::core::time::Now;
use crate::core::wire::{Accepted, Code, Rejected, Send, ServerFrame};

/// The pause after a retryable refusal doubles so often at most, to 1.6 s by default: an owner may refuse for minutes, and
/// what it refuses costs it and the network as much as what it takes.
const MAX_DOUBLINGS: u32 = 4;

impl Edge {
    /// A message of a client: judged, and put behind the others of its stream or refused.
    pub(super) fn on_send(&mut self, id: SessionId, send: Send, now: Now) {
        self.stats.sends += 1;
        let limits = &self.config.limits;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let len = send.body.len();
        let rises = send.session_seq > session.last_seq;
        session.last_seq = session.last_seq.max(send.session_seq);
        if len > limits.max_body as usize {
            let detail = format!(
                "the body has {len} bytes; at most {} are allowed",
                limits.max_body
            );
            return self.reject(id, send.id, send.session_seq, Code::TooLarge, detail, now.wall_ms);
        }
        if !rises {
            let detail = format!(
                "session sequence {} does not rise above {}",
                send.session_seq, session.last_seq
            );
            return self.reject(
                id,
                send.id,
                send.session_seq,
                Code::OutOfOrder,
                detail,
                now.wall_ms,
            );
        }
        let shard = self.config.sharding.of_user(&send.control.to);
        let first = session.first.get(&send.control.to);
        if let Some(first) = first.filter(|first| **first != send.id) {
            let detail = format!("{first} was refused before: send again from there, in order");
            return self.reject(id, send.id, send.session_seq, Code::Blocked, detail, now.wall_ms);
        }
        let cost = DEPOSIT_COST + len;
        let refused = if session.unanswered >= limits.sends_in_flight {
            let detail = format!("{} messages wait for an answer already", session.unanswered);
            Some((Code::TooManyInFlight, detail))
        } else if self.stats.bytes + cost > limits.edge_bytes {
            let detail = "this node holds as many unanswered messages as it may".to_owned();
            Some((Code::Overloaded, detail))
        } else if !self.buckets.take(session.bucket, now.mono) {
            let detail = format!("this user may send {} messages a second", limits.sends_per_second);
            Some((Code::RateLimited, detail))
        } else {
            None
        };
        if let Some((code, detail)) = refused {
            session.first.insert(send.control.to, send.id);
            if session.first.len() > limits.sends_in_flight as usize {
                let detail = "messages to too many recipients were refused and did not come again";
                return self.fail(id, Code::TooManyInFlight, detail);
            }
            return self.reject(id, send.id, send.session_seq, code, detail, now.wall_ms);
        }
        session.first.remove(&send.control.to);
        let attempt = session.attempt;
        let stream = session
            .streams
            .entry(shard)
            .or_insert_with(|| Stream::new(attempt));
        let ttl = send.control.ttl_ms;
        stream.items.push_back(Item {
            envelope: Envelope {
                to: send.control.to,
                from: session.user.clone(),
                from_device: session.device.clone(),
                connect_epoch: session.connect_epoch,
                session: id,
                session_seq: send.session_seq,
                id: send.id,
                kind: send.control.kind,
                expires_ms: if ttl == 0 {
                    0
                } else {
                    now.wall_ms.saturating_add(ttl)
                },
                trace: send.control.trace,
            },
            body: send.body,
            deadline: now.mono + ms(limits.deposit_timeout_ms),
        });
        session.unanswered += 1;
        self.stats.deposits += 1;
        self.stats.bytes += cost;
        self.routing.enqueue(id, shard, stream);
        if session.deposits_by.is_none() {
            session.deposits_by = Some(now.mono + ms(limits.deposit_timeout_ms));
            self.arm(id);
        }
    }

    /// What an owner says of a deposit.
    pub(super) fn on_answer(&mut self, answer: Answer, now: Now) {
        let (id, shard) = (answer.session, answer.shard);
        let Some(session) = self.sessions.get_mut(&id) else {
            self.stats.stale += 1;
            return;
        };
        let found = session.streams.get_mut(&shard).and_then(|stream| {
            let at = stream.position(answer.session_seq)?;
            (stream.items[at].envelope.id == answer.id).then_some((stream, at))
        });
        let Some((stream, at)) = found else {
            self.stats.stale += 1;
            return;
        };
        match &answer.verdict {
            Verdict::Accepted { .. } => {}
            // Not in flight under this attempt: the one that is, or will be, gets an answer of its own.
            Verdict::Refused { code, .. }
                if code.retryable() && (answer.attempt != stream.attempt || at >= stream.sent) =>
            {
                self.stats.stale += 1;
                return;
            }
            Verdict::Refused { code, detail, .. } if code.retryable() => {
                stream.last_refusal = Some((*code, detail.clone()));
                let wait = ms(self.config.limits.retry_ms << stream.refusals.min(MAX_DOUBLINGS));
                let retry_at = now.mono + wait;
                stream.refusals = stream.refusals.saturating_add(1);
                self.routing.answered(shard, stream.rewind());
                stream.paused = Some(retry_at);
                self.retries.insert((retry_at, id, shard));
                self.stats.retries += 1;
                return;
            }
            Verdict::Refused { .. } if answer.attempt < stream.since => {
                self.stats.stale += 1;
                return;
            }
            // For good, under whatever attempt: an owner does not judge a number twice. Where its queue overflows it says so
            // of later deposits before the store has judged the earlier ones, with every attempt.
            Verdict::Refused { .. } => {}
        }
        if at < stream.sent {
            stream.sent -= 1;
            let bytes = stream.items[at].cost();
            self.routing.answered(shard, InFlight { count: 1, bytes });
        }
        let item = stream.items.remove(at).expect("the position was just found");
        let left = item.deadline.since(now.mono);
        self.stats
            .answered
            .add(ms(self.config.limits.deposit_timeout_ms).saturating_sub(left));
        session.unanswered -= 1;
        self.stats.deposits -= 1;
        self.stats.bytes -= item.cost();
        stream.refusals = 0;
        self.routing.enqueue(id, shard, stream);
        if stream.items.is_empty() {
            if let Some(at) = stream.paused.take() {
                self.retries.remove(&(at, id, shard));
            }
            session.drop_idle(shard);
        }
        let session_seq = answer.session_seq;
        match answer.verdict {
            Verdict::Accepted {
                at,
                duplicate,
                durability,
            } => {
                self.stats.accepted += 1;
                let accepted = Accepted {
                    id: answer.id,
                    session_seq,
                    at,
                    duplicate,
                    durability,
                };
                tell(&mut self.dirty, id, session, ServerFrame::Accepted(accepted));
            }
            Verdict::Refused {
                code,
                detail,
                server_ms,
            } => self.reject(id, answer.id, session_seq, code, detail, server_ms),
        }
    }

    /// A stream's pause after a retryable refusal is over.
    pub(super) fn retry(&mut self, id: SessionId, shard: ShardId) {
        let Some(stream) = self
            .sessions
            .get_mut(&id)
            .and_then(|session| session.streams.get_mut(&shard))
        else {
            return;
        };
        stream.paused = None;
        self.routing.enqueue(id, shard, stream);
    }

    /// Gives up on streams whose first deposit waits for too long.
    pub(super) fn check_deposits(&mut self, id: SessionId) {
        let now = self.mono;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.deposits_by.is_none_or(|at| at > now) {
            return;
        }
        let oldest = |stream: &Stream| stream.items.front().map(|item| item.deadline);
        let late: Vec<ShardId> = session
            .streams
            .iter()
            .filter(|(_, stream)| oldest(stream).is_some_and(|at| at <= now))
            .map(|(shard, _)| *shard)
            .collect();
        late.into_iter().for_each(|shard| self.give_up(id, shard));
        if let Some(session) = self.sessions.get_mut(&id) {
            session.deposits_by = session.streams.values().filter_map(oldest).min();
        }
    }

    /// Answers all of a stream as `Unknown`, in order: what comes later must not pass what may have been lost.
    fn give_up(&mut self, id: SessionId, shard: ShardId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(stream) = session.streams.get_mut(&shard) else {
            return;
        };
        self.routing.answered(shard, stream.rewind());
        if let Some(at) = stream.paused.take() {
            self.retries.remove(&(at, id, shard));
        }
        let items = std::mem::take(&mut stream.items);
        // Backwards: what stays is the first for each recipient. It came before what may have been refused since.
        for item in items.iter().rev() {
            session.first.insert(item.envelope.to.clone(), item.envelope.id);
        }
        let seconds = self.config.limits.deposit_timeout_ms as f64 / 1e3;
        let refusal = stream.last_refusal.take();
        // Both say: send it again with the same id.
        let code = match refusal {
            Some((Code::StoreFull, _)) => Code::StoreFull,
            _ => Code::Unknown,
        };
        let detail = match refusal {
            Some((code, why)) => format!(
                "not accepted within {seconds} s; the owner last said {code:?} ({why}): send again with the same id"
            ),
            None => format!("no answer within {seconds} s: send again with the same id"),
        };
        session.unanswered -= items.len() as u32;
        session.drop_idle(shard);
        self.stats.deposits -= items.len();
        for item in items {
            let left = item.deadline.since(self.mono);
            self.stats
                .answered
                .add(ms(self.config.limits.deposit_timeout_ms).saturating_sub(left));
            self.stats.bytes -= item.cost();
            let Envelope {
                id: message,
                session_seq,
                ..
            } = item.envelope;
            self.reject(id, message, session_seq, code, detail.clone(), 0);
        }
    }

    fn reject(
        &mut self,
        id: SessionId,
        message: MessageId,
        session_seq: u64,
        code: Code,
        detail: String,
        server_ms: u64,
    ) {
        stats::count(&mut self.stats.rejected, code);
        let rejected = Rejected {
            id: message,
            session_seq,
            code,
            detail,
            server_ms,
        };
        self.tell(id, ServerFrame::Rejected(rejected));
    }
}
