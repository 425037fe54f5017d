//! A client whose session stands: answers, deliveries, presence, acknowledgements, signs of life.

use std::collections::BTreeSet;
use std::time::Duration;

use super::outbox::{Answered, Pauses};
use super::{Machine, Phase, Target};
use crate::client::event::{ClientEvent, CloseCause, DisconnectReason, Incoming, Ticket};
use crate::core::ids::{Coord, UserId};
use crate::core::op::LoggedOp;
use crate::core::time::Mono;
use crate::core::wire::{
    ClientFrame, ClientLimits, Code, MAX_WATCH_BATCH, RegionEndpoints, Rejected, ServerFrame,
};

/// What is known of a session that stands.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) target: Target,
    pub(super) limits: ClientLimits,
    pub(super) since: Mono,
    /// When a frame last came.
    heard: Mono,
    /// When a frame last went out.
    pub(super) said: Mono,
    /// A ping without an answer: its number, and until when.
    ping: Option<(u64, Mono)>,
    pings: u64,
    /// When the acknowledgements that gather go out.
    ack_at: Option<Mono>,
    /// Messages went out, so acknowledgements may go with them.
    sent: bool,
    /// Users that this session subscribed to.
    told: BTreeSet<UserId>,
    /// Asked to go elsewhere: why, and how long to wait for answers.
    pub(super) leaving: Option<(Code, Mono, Vec<RegionEndpoints>)>,
}

impl Live {
    pub(super) fn new(target: Target, limits: ClientLimits, now: Mono) -> Self {
        Self {
            target,
            limits,
            since: now,
            heard: now,
            said: now,
            ping: None,
            pings: 0,
            ack_at: None,
            sent: false,
            told: BTreeSet::new(),
            leaving: None,
        }
    }

    /// The server closes after `idle_seconds` of silence: a third of it leaves room for two losses.
    fn silence(&self) -> Duration {
        Duration::from_secs(u64::from(self.limits.idle_seconds.max(3))) / 3
    }
}

impl Machine {
    pub(super) fn live_frame(&mut self, frame: ServerFrame) {
        self.heard();
        match frame {
            ServerFrame::Accepted(accepted) => {
                let answered = self
                    .outbox
                    .settled(accepted.id, accepted.session_seq, self.now.mono);
                if let Some(ticket) = self.answered(answered) {
                    self.stats.accepted += 1;
                    self.stats.accepted_again += u64::from(accepted.duplicate);
                    self.event(ClientEvent::Accepted {
                        ticket,
                        id: accepted.id,
                        at: accepted.at,
                        duplicate: accepted.duplicate,
                        durability: accepted.durability,
                    });
                }
            }
            ServerFrame::Rejected(rejected) => self.rejected(rejected),
            ServerFrame::Deliver { at, op } => self.delivered(at, &op),
            ServerFrame::Hole(hole) => {
                if self.inbox.hole(hole.origin, hole.to) {
                    self.event(ClientEvent::Hole(hole));
                    self.check_unconsumed();
                } else {
                    self.stats.dropped += 1;
                    self.schedule_ack();
                }
            }
            ServerFrame::Presence(event) => {
                if self.watched.contains(&event.user) {
                    self.event(ClientEvent::Presence(*event));
                }
            }
            ServerFrame::Pong { nonce, server_ms } => {
                let Phase::Live(live) = &mut self.phase else {
                    return;
                };
                if live.ping.is_some_and(|(sent, _)| sent == nonce) {
                    live.ping = None;
                    self.set_clock(server_ms);
                }
            }
            ServerFrame::Welcome(_) => {
                self.lost(DisconnectReason::Protocol("a second welcome".to_owned()), true);
            }
            // Judged before this, in every phase with a connection.
            ServerFrame::GoAway { .. }
            | ServerFrame::After(_)
            | ServerFrame::Error { .. }
            | ServerFrame::Probe { .. } => {}
        }
        self.leave_if_done();
    }

    pub(super) fn heard(&mut self) {
        if let Phase::Live(live) = &mut self.phase {
            live.heard = self.now.mono;
        }
    }

    pub(super) fn go_away(&mut self, code: Code, regions: Vec<RegionEndpoints>) {
        let grace = self.now.mono + self.config.tuning.leave_grace;
        match &mut self.phase {
            Phase::Live(live) => {
                live.heard = self.now.mono;
                let to = regions.first().map(|first| &first.region);
                // The server cannot know which region this client prefers.
                let is_home = |to| !self.endpoints.is_away(to) && *to != live.target.region;
                if code != Code::Restored || to.is_some_and(is_home) {
                    live.leaving.get_or_insert((code, grace, regions));
                    self.leave_if_done();
                }
            }
            Phase::Greeting { target, .. } => {
                let target = target.clone();
                let pause = self.endpoints.sent_away(&target, regions, &mut self.rng);
                self.wait(target, DisconnectReason::GoAway(code), pause, Some(false));
            }
            _ => {}
        }
    }

    pub(super) fn live_timeout(&mut self) {
        let now = self.now.mono;
        self.outbox.handle_timeout(now);
        let (tuning, oldest) = (&self.config.tuning, self.outbox.oldest_in_flight());
        let Phase::Live(live) = &mut self.phase else {
            return;
        };
        if live.ping.is_some_and(|(_, until)| until <= now) {
            let after = tuning.pong_timeout;
            return self.lost(DisconnectReason::NoPong(after), true);
        }
        if oldest.is_some_and(|at| at + tuning.answer_timeout <= now) {
            let after = tuning.answer_timeout;
            return self.lost(DisconnectReason::NoAnswer(after), true);
        }
        let quiet = live.heard + tuning.ping_every <= now || live.said + live.silence() <= now;
        if quiet && live.ping.is_none() {
            live.pings += 1;
            live.ping = Some((live.pings, now + tuning.pong_timeout));
            let nonce = live.pings;
            self.say(ClientFrame::Ping(nonce));
        }
        if let Phase::Live(live) = &self.phase
            && live.ack_at.is_some_and(|at| at <= now)
        {
            self.send_acks();
        }
        self.leave_if_done();
    }

    pub(super) fn live_poll_timeout(&self, live: &Live) -> Option<Mono> {
        let tuning = &self.config.tuning;
        let ping = match live.ping {
            Some((_, until)) => until,
            None => (live.heard + tuning.ping_every).min(live.said + live.silence()),
        };
        [
            Some(ping),
            live.ack_at,
            live.leaving.as_ref().map(|(_, until, _)| *until),
            self.outbox.poll_timeout(),
            self.outbox
                .oldest_in_flight()
                .map(|at| at + tuning.answer_timeout),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn after_consumed(&mut self, changed: bool) {
        if changed {
            self.changed();
            self.schedule_ack();
        }
    }

    /// The next message that may go. Behind the last one go the acknowledgements that gather: a packet leaves anyway.
    pub(super) fn next_send(&mut self) -> Option<ClientFrame> {
        let Phase::Live(live) = &mut self.phase else {
            return None;
        };
        if live.leaving.is_some() {
            return None;
        }
        let now = self.now.mono;
        if let Some(send) = self.outbox.next(now, live.limits.sends_in_flight as usize) {
            live.said = now;
            live.sent = true;
            self.stats.transmissions += 1;
            return Some(ClientFrame::Send(send));
        }
        let sent = std::mem::take(&mut live.sent);
        (sent && live.ack_at.is_some()).then(|| self.take_acks())?
    }

    pub(super) fn send_acks(&mut self) {
        if let Some(frame) = self.take_acks() {
            self.say(frame);
        }
    }

    fn take_acks(&mut self) -> Option<ClientFrame> {
        let Phase::Live(live) = &mut self.phase else {
            return None;
        };
        live.ack_at = None;
        let acks = self.inbox.acks();
        self.stats.acks += acks.len() as u64;
        (!acks.is_empty()).then_some(ClientFrame::Ack(acks))
    }

    pub(super) fn watch(&mut self, users: Vec<UserId>) {
        self.watched.extend(users.iter().cloned());
        self.subscribe(users);
    }

    pub(super) fn unwatch(&mut self, users: Vec<UserId>) {
        for user in &users {
            self.watched.remove(user);
        }
        let Phase::Live(live) = &mut self.phase else {
            return;
        };
        let gone: Vec<UserId> = users.into_iter().filter(|user| live.told.remove(user)).collect();
        let waiting = self.watched.len() > live.told.len();
        self.say_users(&gone, ClientFrame::Unwatch);
        if waiting {
            self.subscribe_all();
        }
    }

    /// Subscribes to what is watched and not subscribed to, as far as the server allows: it ends a session that asks
    /// for more.
    pub(super) fn subscribe_all(&mut self) {
        let users = self.watched.iter().cloned().collect();
        self.subscribe(users);
    }

    fn subscribe(&mut self, mut users: Vec<UserId>) {
        let Phase::Live(live) = &mut self.phase else {
            return;
        };
        let limit = live.limits.watches as usize;
        users.retain(|user| live.told.len() < limit && live.told.insert(user.clone()));
        let (wanted, told) = (self.watched.len(), live.told.len());
        self.say_users(&users, ClientFrame::Watch);
        if wanted > told {
            self.event(ClientEvent::TooManyWatches { wanted, limit });
        }
    }

    fn rejected(&mut self, rejected: Rejected) {
        let (id, seq, now) = (rejected.id, rejected.session_seq, self.now.mono);
        if rejected.code.retryable() {
            let pauses = Pauses {
                min: self.config.tuning.retry_min,
                max: self.config.tuning.retry_max,
            };
            let answered = self.outbox.refused(id, seq, now, pauses, &mut self.rng);
            if answered == Answered::Again {
                self.stats.refusals += 1;
                self.last_refusal = Some(rejected);
            }
            self.answered(answered);
            return;
        }
        let answered = self.outbox.settled(id, seq, now);
        if let Some(ticket) = self.answered(answered) {
            self.stats.rejected += 1;
            self.event(ClientEvent::Rejected {
                ticket,
                id,
                code: rejected.code,
                detail: rejected.detail,
            });
        }
    }

    fn answered(&mut self, answered: Answered) -> Option<Ticket> {
        match answered {
            Answered::Done(ticket) => {
                self.changed();
                Some(ticket)
            }
            Answered::Again | Answered::Ignored => None,
            Answered::Mismatch => {
                let reason = "an answer whose id and sequence belong to different messages".to_owned();
                self.lost(DisconnectReason::Protocol(reason), true);
                None
            }
        }
    }

    fn delivered(&mut self, at: Coord, op: &LoggedOp) {
        let envelope = match op.envelope() {
            Ok(envelope) => envelope,
            Err(error) => {
                let reason = format!("the message at {at} does not decode: {error}");
                return self.lost(DisconnectReason::Protocol(reason), true);
            }
        };
        let body = op.body();
        if !self
            .inbox
            .deliver(at, &envelope.from, envelope.id, envelope.kind, &body)
        {
            self.stats.dropped += 1;
            self.changed();
            return self.schedule_ack();
        }
        self.stats.delivered += 1;
        self.event(ClientEvent::Message(Box::new(Incoming {
            at,
            from: envelope.from,
            from_device: envelope.from_device,
            id: envelope.id,
            kind: envelope.kind,
            sent_ms: op.hlc().ms,
            expires_ms: envelope.expires_ms,
            connect_epoch: envelope.connect_epoch,
            session: envelope.session,
            session_seq: envelope.session_seq,
            trace: envelope.trace,
            body,
        })));
        self.check_unconsumed();
    }

    fn check_unconsumed(&mut self) {
        let held = self.inbox.unconsumed();
        if held > self.config.tuning.unconsumed {
            self.stop(CloseCause::Unconsumed(held));
        }
    }

    fn schedule_ack(&mut self) {
        let Phase::Live(live) = &mut self.phase else {
            return;
        };
        match self.inbox.unacked() {
            Some(count) if count >= self.config.tuning.ack_every => self.send_acks(),
            Some(_) => {
                let at = self.now.mono + self.config.tuning.ack_delay;
                live.ack_at.get_or_insert(at);
            }
            None => {}
        }
    }

    /// Asked to go elsewhere, and nothing more to wait for: goes.
    fn leave_if_done(&mut self) {
        let Phase::Live(live) = &mut self.phase else {
            return;
        };
        let done = match &live.leaving {
            Some((_, until, _)) => self.outbox.in_flight() == 0 || *until <= self.now.mono,
            None => false,
        };
        if !done {
            return;
        }
        let Some((code, _, regions)) = live.leaving.take() else {
            return;
        };
        let target = live.target.clone();
        self.send_acks();
        self.say(ClientFrame::Bye);
        let pause = self.endpoints.sent_away(&target, regions, &mut self.rng);
        self.wait(target, DisconnectReason::GoAway(code), pause, Some(true));
    }

    fn say_users(&mut self, users: &[UserId], frame: impl Fn(Vec<UserId>) -> ClientFrame) {
        for batch in users.chunks(MAX_WATCH_BATCH) {
            self.say(frame(batch.to_vec()));
        }
    }
}
