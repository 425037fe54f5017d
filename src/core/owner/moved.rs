//! Sessions that a plan moved here from another region (R22): what that one took before is given first.
//!
//! A client that is told to go takes along to where its region took messages ([`ToEdge::Position`]). Here it is welcomed as any
//! other, and is given nothing until the log of that region was applied to there, or for `moved_timeout_ms` at most: the region
//! may be lost by then, and a crash keeps no order.

use super::delivery::Mode;
use super::{AttachId, LaneId, Owner};
use crate::core::defect::{self, Defect};
use crate::core::limits::ms;
use crate::core::msg::{Leave, ToEdge};
use crate::core::time::{Mono, Now};
use crate::core::vector::Vector;

/// A session that waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    at: AttachId,
    until: Mono,
}

impl Owner {
    /// A client is to be told to go to another region: says to where this one took messages.
    pub(super) fn leave(&mut self, lane: LaneId, leave: Leave) {
        let Some(shard) = self.shards.get(&leave.shard).filter(|shard| shard.is_open()) else {
            return;
        };
        let own = shard
            .own
            .iter()
            .map(|origin| (*origin, shard.applied.of(*origin)));
        let after = own.filter(|(_, seq)| *seq > 0).collect();
        let session = leave.session;
        self.tell_edge(lane, ToEdge::Position { session, after });
    }

    /// Whether a session is to wait before it is given anything.
    pub(super) fn hold(&mut self, at: AttachId, now: Now) -> bool {
        let until = now.mono + ms(self.config.limits.moved_timeout_ms);
        if until <= now.mono || self.came(at) || defect::on(Defect::MovedAtOnce) {
            return false;
        }
        if let Some(attachment) = self.attachment(at.shard, at.session) {
            attachment.mode = Mode::Held;
            self.held.push(Held { at, until });
        }
        true
    }

    /// Gives those what waits for them that need not wait any more.
    pub(super) fn release(&mut self, now: Now) {
        for held in std::mem::take(&mut self.held) {
            let at = held.at;
            let Some(attachment) = self.attached(at) else {
                continue;
            };
            let user = attachment.attach.user.clone();
            if held.until > now.mono && !self.came(at) {
                self.held.push(held);
                continue;
            }
            if let Some(attachment) = self.attachment(at.shard, at.session) {
                attachment.attach.after = Vector::new();
            }
            self.read_inbox(at.shard, at.session, user);
        }
    }

    /// Whether all that another region took before it sent a session here was applied.
    fn came(&mut self, at: AttachId) -> bool {
        let Some(shard) = self.shards.get(&at.shard) else {
            return true;
        };
        let after = shard.sessions.get(&at.session).map(|known| &known.attach.after);
        after.is_none_or(|after| {
            let mut origins = after.iter();
            origins.all(|(origin, seq)| {
                shard.look.retired.contains_key(&origin) || shard.applied.of(origin) >= seq
            })
        })
    }
}
