//! What owners send for clients, and what clients say beside sends: attaches answered, deliveries, acknowledgements,
//! probes, status, watches.

use std::collections::{BTreeMap, BTreeSet};

use super::{Edge, tell};
use crate::core::ids::{Coord, SessionId, ShardId, UserId};
use crate::core::limits::ms;
use crate::core::msg::{Delivery, ToOwner};
use crate::core::op::LoggedOp;
use crate::core::time::Now;
use crate::core::vector::Vector;
use crate::core::wire::{Code, Hole, PresenceEvent, ServerFrame, Status};

/// A user that some session here watches.
#[derive(Debug, Default)]
pub(super) struct Watched {
    sessions: BTreeSet<SessionId>,
    /// The latest that the owner told.
    latest: Option<PresenceEvent>,
}

impl Edge {
    pub(super) fn on_attached(
        &mut self,
        lane: u64,
        id: SessionId,
        connect_epoch: u64,
        stable: Vector,
        now: Now,
    ) {
        let Some(session) = self.served(lane, id) else {
            return;
        };
        session.connect_epoch = connect_epoch;
        let first = !session.welcomed;
        if std::mem::take(&mut session.attaching)
            && let Some(lane) = self.routing.lane_mut(lane)
        {
            lane.attaching -= 1;
        }
        if first {
            self.welcome(id, stable, now);
        }
    }

    pub(super) fn on_delivery(&mut self, lane: u64, delivery: Delivery) {
        let Some(session) = self
            .sessions
            .get_mut(&delivery.session)
            .filter(|s| s.lane == lane)
        else {
            self.stats.stale += 1;
            return;
        };
        let Ok(op) = LoggedOp::from_bytes(delivery.op) else {
            self.stats.damaged += 1;
            let detail = format!("the message at {} is damaged", delivery.at);
            return self.fail(delivery.session, Code::Internal, &detail);
        };
        // After a new attach the owner begins at what that told; what was under way then comes twice.
        if !session.given.raise(delivery.at.origin, delivery.at.seq) {
            self.stats.repeated += 1;
            return;
        }
        self.stats.deliveries += 1;
        let at = delivery.at;
        tell(
            &mut self.dirty,
            delivery.session,
            session,
            ServerFrame::Deliver { at, op },
        );
    }

    pub(super) fn on_hole(&mut self, lane: u64, id: SessionId, hole: Hole) {
        let Some(session) = self.served(lane, id) else {
            return;
        };
        if !session.given.raise(hole.origin, hole.to) {
            self.stats.repeated += 1;
            return;
        }
        self.stats.holes += 1;
        self.tell(id, ServerFrame::Hole(hole));
    }

    /// R14: an acknowledgement counts as far as this session was given.
    pub(super) fn on_ack(&mut self, id: SessionId, coords: &[Coord]) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        for at in coords {
            let seq = at.seq.min(session.given.of(at.origin));
            if seq == 0 {
                self.stats.acks_ignored += 1;
                continue;
            }
            self.stats.acks += 1;
            if !session.acked.raise(at.origin, seq) || session.lane == 0 {
                continue;
            }
            match session.acks_due.iter_mut().find(|due| due.origin == at.origin) {
                Some(due) => due.seq = seq,
                None => {
                    if session.acks_due.is_empty()
                        && let Some(lane) = self.routing.lane_mut(session.lane)
                    {
                        lane.acks_due(id);
                    }
                    session.acks_due.push(Coord {
                        origin: at.origin,
                        seq,
                    });
                }
            }
        }
    }

    pub(super) fn on_set_status(&mut self, id: SessionId, status: Status, text: String) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.status = status;
        session.text = text;
        session.counter += 1;
        if !session.status_due
            && let Some(lane) = self.routing.lane_mut(session.lane)
        {
            session.status_due = true;
            lane.status_due(id);
        }
    }

    pub(super) fn on_probe(&mut self, lane: u64, id: SessionId) {
        let until = self.mono + ms(self.config.limits.probe_ms);
        let nonce = self.next_probe;
        let Some(session) = self.served(lane, id) else {
            return;
        };
        if session.probe.is_some() {
            return;
        }
        session.probe = Some((nonce, until));
        self.next_probe += 1;
        self.stats.probes += 1;
        self.tell(id, ServerFrame::Probe { nonce });
        self.arm(id);
    }

    /// Asks a client that was told to leave for a sign of life, and waits for any.
    pub(super) fn look_for_life(&mut self, id: SessionId) {
        let until = self.mono + ms(self.config.limits.probe_ms);
        let nonce = self.next_probe;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.leave_by = Some(until);
        // An answer to this one is a frame like others: the owner did not ask.
        self.next_probe += 1;
        self.tell(id, ServerFrame::Probe { nonce });
        self.arm(id);
    }

    pub(super) fn on_probe_reply(&mut self, id: SessionId, nonce: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.probe.is_some_and(|(asked, _)| asked == nonce) {
            session.probe = None;
            self.answer_probe(id, true);
        }
    }

    pub(super) fn answer_probe(&mut self, id: SessionId, alive: bool) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        if let Some(lane) = self.routing.lane_mut(session.lane) {
            lane.probed(ToOwner::Probed {
                session: id,
                user: session.user.clone(),
                alive,
            });
        }
    }

    pub(super) fn on_watch(&mut self, id: SessionId, users: Vec<UserId>) {
        for user in users {
            let limit = self.config.limits.watches;
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            if session.watching.contains(&user) {
                continue;
            }
            if session.watching.len() >= limit {
                let detail = format!("a session may watch {limit} users");
                return self.fail(id, Code::TooManyWatches, &detail);
            }
            session.watching.insert(user.clone());
            let shard = self.config.sharding.of_user(&user);
            let watched = self.watched.entry((shard, user.clone())).or_default();
            if watched.sessions.is_empty() {
                self.stats.watched += 1;
                if let Some(lane) = self.routing.lane_of(shard) {
                    lane.watch(&user);
                }
            }
            watched.sessions.insert(id);
            if let Some(event) = &watched.latest {
                self.stats.presence += 1;
                let frame = ServerFrame::Presence(Box::new(event.clone()));
                tell(&mut self.dirty, id, session, frame);
            }
        }
    }

    pub(super) fn on_unwatch(&mut self, id: SessionId, users: Vec<UserId>) {
        for user in users {
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            if session.watching.remove(&user) {
                self.unwatch(id, &user);
            }
        }
    }

    /// A session does not watch a user any more; the last one ends the watch at the owner.
    pub(super) fn unwatch(&mut self, id: SessionId, user: &UserId) {
        let shard = self.config.sharding.of_user(user);
        let key = (shard, user.clone());
        let Some(watched) = self.watched.get_mut(&key) else {
            return;
        };
        watched.sessions.remove(&id);
        if !watched.sessions.is_empty() {
            return;
        }
        self.watched.remove(&key);
        self.stats.watched -= 1;
        if let Some(lane) = self.routing.lane_of(shard) {
            lane.unwatch(user);
        }
    }

    pub(super) fn on_presence(&mut self, lane: u64, event: PresenceEvent) {
        let shard = self.config.sharding.of_user(&event.user);
        if self.routing.number_of(shard) != lane {
            self.stats.stale += 1;
            return;
        }
        let Some(watched) = self.watched.get_mut(&(shard, event.user.clone())) else {
            self.stats.stale += 1;
            return;
        };
        // A new lane brings the state again: those who know it need not hear it.
        if watched.latest.as_ref() == Some(&event) {
            return;
        }
        for id in &watched.sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                self.stats.presence += 1;
                let frame = ServerFrame::Presence(Box::new(event.clone()));
                tell(&mut self.dirty, *id, session, frame);
            }
        }
        watched.latest = Some(event);
    }
}

/// Watched users of a shard.
pub(super) fn watched_of(
    watched: &BTreeMap<(ShardId, UserId), Watched>,
    shard: ShardId,
) -> impl Iterator<Item = &(ShardId, UserId)> {
    // Nothing sorts below a space: ids hold no control characters.
    let first = (shard, UserId::new(" ").expect("a space is an id"));
    watched
        .range(first..)
        .map(|(key, _)| key)
        .take_while(move |(at, _)| *at == shard)
}
