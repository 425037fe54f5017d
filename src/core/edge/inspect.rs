//! Sessions as an operator is shown them.

use std::ops::Bound;

use super::Edge;
use super::session::Session;
use crate::core::ids::{SessionId, UserId};
use crate::core::inspect::{Digits, SessionFacts};
use crate::core::time::Now;

impl Edge {
    /// Up to `limit` sessions above `after`, of one user or of all.
    pub fn session_facts(
        &self,
        user: Option<&UserId>,
        after: Option<SessionId>,
        limit: usize,
        now: Now,
    ) -> Vec<SessionFacts> {
        let facts = |(id, session): (&SessionId, &Session)| SessionFacts {
            session: Digits(id.0),
            user: session.user.clone(),
            device: session.device.clone(),
            partition: self.config.me.partition,
            conn: session.conn.0,
            shard: session.shard.0,
            receives: session.receives,
            welcomed: session.welcomed,
            attached: session.lane != 0 && !session.attaching,
            since_ms: session.since_ms,
            silent_ms: u64::try_from(now.mono.since(session.heard).as_millis()).unwrap_or(u64::MAX),
            status: session.status.into(),
            unanswered: session.unanswered,
            watching: session.watching.len(),
        };
        let after = after.unwrap_or(SessionId(0));
        match user {
            Some(user) => {
                // Those of one shard, which are few.
                let shard = self.config.sharding.of_user(user);
                let ids = (
                    Bound::Excluded((shard, after)),
                    Bound::Included((shard, SessionId(u64::MAX))),
                );
                let sessions = self
                    .by_shard
                    .range(ids)
                    .filter_map(|(_, id)| Some((id, self.sessions.get(id)?.as_ref())));
                let theirs = sessions.filter(|(_, session)| session.user == *user);
                theirs.take(limit).map(facts).collect()
            }
            None => {
                let above = (Bound::Excluded(after), Bound::Unbounded);
                let sessions = self.sessions.range(above).take(limit);
                sessions.map(|(id, session)| facts((id, session))).collect()
            }
        }
    }
}
