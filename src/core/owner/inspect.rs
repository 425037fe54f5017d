//! Shards, attached sessions and presence as an operator is shown them.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::delivery::Mode;
use super::{Owner, Shard};
use crate::core::ids::{SessionId, ShardId, UserId};
use crate::core::inspect::{AttachmentFacts, DeliveryMode, Digits, PresenceFacts, ShardFacts, ShardState};
use crate::core::presence::VisibleStatus;

impl Owner {
    /// Up to `limit` shards above `after`.
    pub fn shard_facts(&self, after: Option<ShardId>, limit: usize) -> Vec<ShardFacts> {
        let above = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let shards = self.shards.range(above).take(limit);
        shards
            .map(|(id, shard)| {
                let stable = shard.stable(&self.config.holders);
                let unconfirmed = shard.applied.iter();
                ShardFacts {
                    shard: id.0,
                    state: state(shard),
                    epoch: shard.epoch.map(|epoch| epoch.0),
                    sessions: shard.sessions.len(),
                    presence_records: shard.presence.records(),
                    logs: shard.applied.len(),
                    applied: shard.applied.iter().map(|(_, seq)| seq).sum(),
                    unconfirmed: unconfirmed
                        .map(|(origin, seq)| seq.saturating_sub(stable.of(origin)))
                        .sum(),
                }
            })
            .collect()
    }

    /// Up to `limit` attached sessions above `after`, of one user or of all.
    pub fn attachment_facts(
        &self,
        user: Option<&UserId>,
        after: Option<SessionId>,
        limit: usize,
    ) -> Vec<AttachmentFacts> {
        let above = || (Bound::Excluded(after.unwrap_or(SessionId(0))), Bound::Unbounded);
        let mut found = BTreeSet::new();
        match user {
            Some(user) => {
                let id = self.config.sharding.of_user(user);
                let sessions = self.shards.get(&id).and_then(|shard| shard.users.get(user));
                let sessions = sessions.into_iter().flat_map(|sessions| sessions.range(above()));
                found.extend(sessions.take(limit).map(|session| (*session, id)));
            }
            None => {
                for (id, shard) in &self.shards {
                    let sessions = shard.sessions.range(above()).take(limit);
                    found.extend(sessions.map(|(session, _)| (*session, *id)));
                    while found.len() > limit {
                        found.pop_last();
                    }
                }
            }
        }
        let facts = found.into_iter().filter_map(|(session, id)| {
            let attachment = self.shards.get(&id)?.sessions.get(&session)?;
            let (messages, bytes) = attachment.in_flight();
            Some(AttachmentFacts {
                session: Digits(session.0),
                edge: self.lanes.get(&attachment.lane)?.edge.clone(),
                mode: match attachment.mode {
                    Mode::Registering => DeliveryMode::Registering,
                    Mode::Reading { .. } => DeliveryMode::Reading,
                    Mode::Live => DeliveryMode::Live,
                    Mode::Behind => DeliveryMode::Behind,
                    Mode::Held => DeliveryMode::Held,
                    Mode::Sends => DeliveryMode::SendsOnly,
                },
                in_flight_messages: messages,
                in_flight_bytes: bytes,
            })
        });
        facts.collect()
    }

    /// What is known of a user's presence; `None` where the user's shard is not owned here.
    pub fn presence_facts(&self, user: &UserId) -> Option<PresenceFacts> {
        let id = self.config.sharding.of_user(user);
        let shard = self.shards.get(&id)?;
        let visible = shard.presence.visible(user, &self.unreachable);
        Some(PresenceFacts {
            shard: id.0,
            status: visible.status.into(),
            text: visible.text.as_str().to_owned(),
            since_ms: visible.region.is_some().then_some(visible.since_ms),
            region: visible.region,
            unreachable_since_ms: match visible.status {
                VisibleStatus::Unreachable { since_ms } => Some(since_ms),
                _ => None,
            },
            watchers: shard.watchers.get(user).map_or(0, BTreeSet::len),
            records: shard.presence.explain(user, &self.unreachable),
        })
    }
}

fn state(shard: &Shard) -> ShardState {
    match shard.epoch {
        None => ShardState::TakingOver,
        Some(_) if shard.is_open() => ShardState::Open,
        Some(_) => ShardState::Recovering,
    }
}
