//! Presence of sessions: admission, ends, probes, and what watchers see.
//!
//! The records themselves and all judgement about them are in [`crate::core::presence`]; here is who calls it when. A
//! session ends when its edge says so, when its edge's incarnation is gone for longer than the grace, or when its edge
//! has attached its whole set without it. Ending is always judged by what is there now, never by an event alone, so a
//! close that was lost together with an owner is made up for.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{LaneId, Owner, OwnerOutput};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Addr, DeviceId, Generation, NodeKey, RegionId, SessionId, ShardId, UserId};
use crate::core::limits::ms;
use crate::core::link::PresenceSource;
use crate::core::msg::{self, Attach, ToEdge};
use crate::core::presence::{
    Admission, AdmitError, Claim, Edge, Effect, Entry, MergeOutcome, Presence, StatusText,
};
use crate::core::time::{Mono, Now};
use crate::core::wire::{Code, PresenceEvent};

/// A client that was asked whether it is there.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    shard: ShardId,
    user: UserId,
    device: DeviceId,
    until: Mono,
}

/// A session that gave way to another of its device, while it is asked whether the client of that one is there.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    session: SessionId,
    lane: LaneId,
}

/// The client's own count of its tries to connect.
#[derive(Debug, Clone, Copy)]
struct Tries {
    memory: u64,
    hello_epoch: u64,
}

impl Tries {
    fn of(attach: &Attach) -> Self {
        Self {
            memory: attach.memory,
            hello_epoch: attach.hello_epoch,
        }
    }

    /// Which of two sessions of a device is the newer, if the client can say: not after it lost its count, as when it was
    /// installed anew. Of a client that does not tell its memory, nothing but an epoch of 0 says that it has none.
    fn order(self, other: Self) -> Option<Ordering> {
        let told = self.memory != 0 || (self.hello_epoch != 0 && other.hello_epoch != 0);
        let order = self.hello_epoch.cmp(&other.hello_epoch);
        (told && self.memory == other.memory && order.is_ne()).then_some(order)
    }
}

impl PresenceSource for Owner {
    fn table(&self, shard: ShardId) -> Option<&Presence> {
        self.presence(shard)
    }
}

impl Owner {
    /// A record of another region, or of this one before it lost its memory. `from` is who told it.
    pub fn merge_presence(&mut self, id: ShardId, entry: Entry, from: &Addr, now: Now) {
        let grace = now.mono + ms(self.config.limits.session_grace_ms);
        let ours = entry
            .value()
            .is_some_and(|live| live.region == self.config.me.node.region);
        let (user, device) = (entry.user().clone(), entry.device().clone());
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let outcome = shard.presence.merge(entry);
        if matches!(
            outcome,
            MergeOutcome::Newer | MergeOutcome::Invalid { replaced: true }
        ) {
            if ours {
                shard.check_missing.get_or_insert(grace);
            }
            let from = Some(from.clone());
            self.out.push_back(OwnerOutput::PresenceChanged {
                shard: id,
                user,
                device,
                from,
            });
        }
        self.presence_touched(id, now);
    }

    /// A region went out of reach at a time in unix milliseconds, or came back.
    pub fn handle_reach(&mut self, region: &RegionId, unreachable_since_ms: Option<u64>) {
        let changed = match unreachable_since_ms {
            Some(since) => self.unreachable.insert(region.clone(), since) != Some(since),
            None => self.unreachable.remove(region).is_some(),
        };
        if changed {
            let watched: Vec<(ShardId, UserId)> = self
                .shards
                .iter()
                .flat_map(|(id, shard)| shard.watchers.keys().map(|user| (*id, user.clone())))
                .collect();
            watched
                .into_iter()
                .for_each(|(shard, user)| self.tell_watchers(shard, &user));
        }
    }

    /// The regions out of reach, each since a time in unix milliseconds.
    pub fn unreachable(&self) -> &std::collections::BTreeMap<RegionId, u64> {
        &self.unreachable
    }

    /// Writes the session's record; `None` where it may not stand: it was ended then.
    pub(super) fn admit(&mut self, id: ShardId, session: SessionId, now: Now) -> Option<u64> {
        let shard = self.shards.get_mut(&id)?;
        let attachment = shard.sessions.get(&session)?;
        let lane = self.lanes.get(&attachment.lane)?;
        let attach = &attachment.attach;
        let admission = Admission {
            user: attach.user.clone(),
            device: attach.device.clone(),
            session,
            edge: Edge {
                node: lane.edge.node.clone(),
                generation: lane.generation,
            },
            since_ms: attach.since_ms,
            counter: attach.counter,
            status: attach.status,
            // The edge checked it; a text that does not pass is not worth a session.
            text: StatusText::new(&attach.text).unwrap_or_default(),
            claim: if attach.welcomed {
                Claim::Resume {
                    connect_epoch: attach.connect_epoch,
                }
            } else {
                Claim::New {
                    remembered: attach.connect_epoch,
                }
            },
        };
        let admitted = shard.presence.admit(admission);
        self.presence_touched(id, now);
        match admitted {
            Ok(connect_epoch) => Some(connect_epoch),
            Err(AdmitError::Superseded { by, .. }) => {
                self.give_way(id, session, by, now);
                None
            }
            Err(error @ AdmitError::Devices { .. }) => {
                self.end_session(id, session, Code::TooManyDevices, &error.to_string(), now);
                None
            }
        }
    }

    pub(super) fn end_presence(&mut self, id: ShardId, session: SessionId, now: Now) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let Some(attachment) = shard.sessions.get(&session) else {
            return;
        };
        let (user, device) = (attachment.attach.user.clone(), attachment.attach.device.clone());
        shard.presence.end(&user, &device, session);
        self.probes.remove(&session);
        self.settle_doubts(session, false);
        self.presence_touched(id, now);
    }

    pub(super) fn set_status(&mut self, change: msg::SetStatus, now: Now) {
        let id = change.shard;
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let Some(attachment) = shard.sessions.get_mut(&change.session) else {
            return;
        };
        let attach = &mut attachment.attach;
        if change.counter > attach.counter {
            (attach.counter, attach.status, attach.text) =
                (change.counter, change.status, change.text.clone());
        }
        let (user, device) = (attach.user.clone(), attach.device.clone());
        let shown = (change.status, StatusText::new(&change.text).unwrap_or_default());
        shard
            .presence
            .set_status(&user, &device, change.session, change.counter, shown);
        self.presence_touched(id, now);
    }

    pub(super) fn synced(&mut self, lane_id: LaneId, shards: &[ShardId], now: Now) {
        let grace = now.mono + ms(self.config.limits.session_grace_ms);
        let Some(lane) = self.lanes.get_mut(&lane_id) else {
            return;
        };
        lane.synced.extend(shards.iter().copied());
        for id in shards {
            if let Some(shard) = self.shards.get_mut(id) {
                shard.check_missing.get_or_insert(grace);
            }
        }
        // An edge without sessions of a shard learns in no other way that nobody serves it here.
        let closed = shards.iter().filter(|id| self.open_epoch(**id).is_none());
        let closed: Vec<ShardId> = closed.copied().collect();
        if !closed.is_empty() {
            self.tell_edge(lane_id, ToEdge::NotOwner(closed));
        }
    }

    pub(super) fn watch(&mut self, lane: LaneId, user: UserId) {
        let id = self.config.sharding.of_user(&user);
        let Some(shard) = self.shards.get_mut(&id) else {
            return self.tell_edge(lane, ToEdge::NotOwner(vec![id]));
        };
        shard.watchers.entry(user.clone()).or_default().insert(lane);
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.watches.insert(user.clone());
        }
        let event = self.seen(id, &user);
        if let (Some(lane), Some(event)) = (self.lanes.get_mut(&lane), event) {
            lane.presence.insert(user, event);
        }
    }

    pub(super) fn unwatch(&mut self, lane_id: LaneId, user: &UserId) {
        let id = self.config.sharding.of_user(user);
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.watches.remove(user);
            lane.presence.remove(user);
        }
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        if let Some(watchers) = shard.watchers.get_mut(user) {
            watchers.remove(&lane_id);
            if watchers.is_empty() {
                shard.watchers.remove(user);
            }
        }
    }

    pub(super) fn probed(&mut self, session: SessionId, alive: bool, now: Now) {
        let Some(probe) = self.probes.remove(&session) else {
            return;
        };
        self.settle_doubts(session, alive);
        let Some(shard) = self.shards.get_mut(&probe.shard) else {
            return;
        };
        if alive {
            shard.presence.probe_answered(&probe.user, &probe.device, session);
        } else {
            shard
                .presence
                .probe_unanswered(&probe.user, &probe.device, session);
            self.end_session(
                probe.shard,
                session,
                Code::Timeout,
                "the client did not answer",
                now,
            );
        }
        self.presence_touched(probe.shard, now);
    }

    /// Tells links and watchers what changed, and ends what is due.
    pub(super) fn presence_tick(&mut self, now: Now) {
        self.release(now);
        for id in std::mem::take(&mut self.touched) {
            let Some(shard) = self.shards.get_mut(&id) else {
                continue;
            };
            let mut users = BTreeSet::new();
            for ((user, device), source) in shard.presence.take_changed() {
                users.insert(user.clone());
                // Merged ones were handed on when they came.
                if source == crate::core::presence::Source::Local {
                    self.out.push_back(OwnerOutput::PresenceChanged {
                        shard: id,
                        user,
                        device,
                        from: None,
                    });
                }
            }
            users.iter().for_each(|user| self.tell_watchers(id, user));
        }
        let late: Vec<SessionId> = self
            .probes
            .iter()
            .filter(|(_, probe)| probe.until <= now.mono)
            .map(|(id, _)| *id)
            .collect();
        late.into_iter()
            .for_each(|session| self.probed(session, false, now));
        self.end_the_dead(now);
    }

    fn end_the_dead(&mut self, now: Now) {
        let due: Vec<ShardId> = self
            .shards
            .iter()
            .filter(|(_, shard)| shard.check_missing.is_some_and(|at| at <= now.mono))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let Some(shard) = self.shards.get_mut(&id) else {
                continue;
            };
            shard.check_missing = None;
            let edges: Vec<Edge> = shard.presence.edges().cloned().collect();
            for edge in edges {
                let known = self.members.get(&edge.node);
                let forgotten = known.is_some() && defect::on(Defect::GenerationForgotten);
                if known == Some(&edge.generation) || forgotten {
                    self.end_missing(id, &edge, now);
                } else if !defect::on(Defect::DeathIsAnEvent) {
                    let grace = now.mono + ms(self.config.limits.session_grace_ms);
                    self.dead_edges
                        .entry(edge.node)
                        .or_insert((edge.generation, grace));
                    // It may have been out of sight only: then it is back by the next look.
                    if let Some(shard) = self.shards.get_mut(&id) {
                        shard.check_missing = Some(grace);
                    }
                }
            }
        }
        let dead: Vec<(NodeKey, Generation)> = self
            .dead_edges
            .iter()
            .filter(|(_, (_, at))| *at <= now.mono)
            .map(|(node, (generation, _))| (node.clone(), *generation))
            .collect();
        for (node, generation) in dead {
            self.dead_edges.remove(&node);
            let shards: Vec<ShardId> = self.shards.keys().copied().collect();
            for id in shards {
                let Some(shard) = self.shards.get_mut(&id) else {
                    continue;
                };
                let ended = shard.presence.end_all_of(&node, Generation(generation.0 + 1));
                for at in &ended {
                    // The edge may live on, out of sight for a while: it must not take the session for attached.
                    let lane = self.attachment(id, at.session).map(|attachment| attachment.lane);
                    self.drop_attachment(id, at.session);
                    if let Some(lane) = lane {
                        let body = ToEdge::Ended {
                            session: at.session,
                            code: Code::Unavailable,
                            detail: format!("{node} was out of sight for too long"),
                        };
                        self.tell_edge(lane, body);
                    }
                }
                if !ended.is_empty() {
                    self.presence_touched(id, now);
                }
            }
        }
    }

    /// Ends the sessions of an edge that it did not attach, once every lane of it has attached its whole set.
    fn end_missing(&mut self, id: ShardId, edge: &Edge, now: Now) {
        let lanes = || {
            let of_edge =
                |lane: &&super::Lane| lane.edge.node == edge.node && lane.generation == edge.generation;
            self.lanes.values().filter(of_edge)
        };
        let whole = lanes().next().is_some() && lanes().all(|lane| lane.synced.contains(&id));
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        if !whole {
            // The edge is there but has not said everything: look again.
            shard.check_missing = Some(now.mono + ms(self.config.limits.session_grace_ms));
            return;
        }
        let set: BTreeSet<SessionId> = shard.sessions.keys().copied().collect();
        if !shard.presence.end_missing(edge, &set).is_empty() {
            self.presence_touched(id, now);
        }
    }

    /// After any call that changed presence: carries out what it asks for, and remembers to tell others.
    pub(super) fn presence_touched(&mut self, id: ShardId, now: Now) {
        self.touched.insert(id);
        while let Some(effect) = self
            .shards
            .get_mut(&id)
            .and_then(|shard| shard.presence.poll_effect())
        {
            match effect {
                Effect::Reasserted { at, connect_epoch } => {
                    let Some(attachment) = self.attachment(id, at.session) else {
                        continue;
                    };
                    attachment.attach.connect_epoch = connect_epoch;
                    let lane = attachment.lane;
                    self.tell_edge(
                        lane,
                        ToEdge::Reasserted {
                            session: at.session,
                            connect_epoch,
                        },
                    );
                }
                Effect::Probe { at } => self.probe(id, at.session, now),
                Effect::Superseded { at, by } => {
                    self.stats.superseded += 1;
                    self.give_way(id, at.session, by, now);
                }
            }
        }
    }

    fn probe(&mut self, id: ShardId, session: SessionId, now: Now) {
        let until = now.mono + ms(self.config.limits.probe_ms);
        let Some(attachment) = self.attachment(id, session) else {
            return;
        };
        let lane = attachment.lane;
        let probe = Probe {
            shard: id,
            user: attachment.attach.user.clone(),
            device: attachment.attach.device.clone(),
            until,
        };
        self.probes.insert(session, probe);
        self.tell_edge(lane, ToEdge::Probe { session });
    }

    /// Detaches a session that lost its device to session `by`, and tells it whether it may come back. An older session may
    /// come late: it waited at its edge, the `Hello` of a connection that was given up did on its way, or an edge that has
    /// not noticed that its client went brings it to the next owner. Then the newer one must try again, not give up for
    /// good. Where the client's count does not say which is which, it is for good only if the other one's client is there.
    fn give_way(&mut self, id: ShardId, session: SessionId, by: SessionId, now: Now) {
        let Some(beaten) = self.attachment(id, session) else {
            return;
        };
        let (lane, tries) = (beaten.lane, Tries::of(&beaten.attach));
        self.drop_attachment(id, session);
        let doubt = Doubt { session, lane };
        let winner = self.attachment(id, by).map(|winner| Tries::of(&winner.attach));
        match winner.map(|winner| winner.order(tries)) {
            // In another region: both were asked already.
            None => self.tell_beaten(doubt, by, true),
            Some(Some(order)) => self.tell_beaten(doubt, by, order.is_gt()),
            Some(None) => {
                self.doubts.entry(by).or_default().push(doubt);
                self.probe(id, by, now);
            }
        }
    }

    /// It is known whether the client of session `by` is there.
    fn settle_doubts(&mut self, by: SessionId, alive: bool) {
        for doubt in self.doubts.remove(&by).unwrap_or_default() {
            self.tell_beaten(doubt, by, alive);
        }
    }

    fn tell_beaten(&mut self, Doubt { session, lane }: Doubt, by: SessionId, for_good: bool) {
        let (code, detail) = if for_good {
            let detail = format!("session {by} of the same device took over");
            (Code::Superseded, detail)
        } else {
            let detail = format!("session {by} of the same device was attached late: connect again");
            (Code::Unavailable, detail)
        };
        let body = ToEdge::Ended {
            session,
            code,
            detail,
        };
        self.tell_edge(lane, body);
    }

    fn tell_watchers(&mut self, id: ShardId, user: &UserId) {
        let Some(watchers) = self.shards.get(&id).and_then(|shard| shard.watchers.get(user)) else {
            return;
        };
        let watchers: Vec<LaneId> = watchers.iter().copied().collect();
        let Some(event) = self.seen(id, user) else { return };
        for lane in watchers {
            if let Some(lane) = self.lanes.get_mut(&lane) {
                lane.presence.insert(user.clone(), event.clone());
            }
        }
    }

    fn seen(&self, id: ShardId, user: &UserId) -> Option<PresenceEvent> {
        let shard = self.shards.get(&id)?;
        Some(
            shard
                .presence
                .visible(user, &self.unreachable)
                .event(user.clone()),
        )
    }
}
