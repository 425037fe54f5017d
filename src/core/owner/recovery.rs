//! Shards that lack what other regions have (R4): after a disk was replaced or a backup restored.
//!
//! Links know what others have, and say when a shard lacks something and when it has caught up. Here is what follows: a
//! shard that recovers refuses deposits and attachments retryably, says nothing of its own, and its sessions end, because
//! a session does not outlive its region's store.

use super::holders::Holders;
use super::{LaneId, Owner, OwnerOutput, Question, Shard, Tag};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::ids::{Epoch, Origin, RegionId, SessionId, ShardId};
use crate::core::msg::{Attach, ToEdge};
use crate::core::state::{self, ShardRow};
use crate::core::storage::StoreError;
use crate::core::time::Now;
use crate::core::wire::Code;

/// Where a shard stands.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// It recovers.
    pub on: bool,
    /// The origin under which it last began to.
    pub life: Origin,
    /// What is to be written, where the store could not.
    due: Option<bool>,
    /// What was written last.
    written: bool,
    /// It recovers because it was away, and lost nothing (R12).
    pub whole: bool,
}

impl Recovery {
    pub fn of(row: &ShardRow) -> Self {
        Self {
            on: row.recovery.recovers(),
            life: row.recovered_in,
            due: None,
            written: false,
            whole: row.holding.whole,
        }
    }

    /// What is to be tried again.
    pub fn overdue(&mut self, shard: ShardId, epoch: Option<Epoch>) -> Option<OwnerOutput> {
        let epoch = epoch?;
        let recovering = self.due.take()?;
        Some(commit(shard, epoch, recovering))
    }
}

impl Shard {
    /// The epoch, where it takes deposits and sessions.
    pub(super) fn open_epoch(&self) -> Option<Epoch> {
        self.epoch.filter(|_| self.is_open())
    }

    /// What the head says of logs and holders.
    pub(super) fn learn(&mut self, row: &ShardRow, region: &RegionId) {
        self.applied = row.applied();
        let own = row.logs.iter().filter(|(_, log)| log.region == *region);
        self.own = own.map(|(origin, _)| *origin).collect();
        let confirmed = row.confirmed.iter();
        let confirmed = confirmed.map(|(holder, row)| (holder.clone(), row.applied.clone()));
        self.stable = confirmed.collect();
        self.forget = super::forget::Forget::of(row);
        self.look.retired = row.old.retired.clone();
    }
}

impl Owner {
    /// The epoch of a shard that takes deposits and sessions here.
    pub(super) fn open_epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.shards.get(&shard)?.open_epoch()
    }

    /// Whether a shard is owned here and recovers.
    pub fn recovers(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(|shard| shard.recovery.on)
    }

    /// How many shards recover here. Costs nothing where all are open: a node asks after each of its turns.
    pub fn recovering_count(&self) -> usize {
        if self.all_active() {
            return 0;
        }
        self.shards.values().filter(|shard| shard.recovery.on).count()
    }

    /// Another region has what this shard once had, and has not any more: it stops at once.
    pub fn handle_lost(&mut self, id: ShardId, now: Now) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        if let (true, Some(epoch)) = (shard.recovery.on && shard.recovery.whole, shard.epoch) {
            // It turns out that something is lost, too.
            shard.recovery.whole = false;
            self.out.push_back(OwnerOutput::Recovering(id, true));
            return self.out.push_back(commit(id, epoch, true));
        }
        let (true, Some(epoch)) = (shard.is_open(), shard.epoch) else {
            return;
        };
        self.out.push_back(commit(id, epoch, true));
        let why = "the region's store lost something and recovers: connect again";
        self.close_for_recovery(id, false, why, now);
    }

    /// The others have not kept what this shard lacks, because this region was away for long (R12). It takes a snapshot, and
    /// as what that brings is not pushed to sessions, they end and begin again.
    pub fn handle_behind(&mut self, id: ShardId, now: Now) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let (true, Some(epoch)) = (shard.is_open(), shard.epoch) else {
            return;
        };
        let op = StoreOp::Behind { shard: id, epoch };
        self.out.push_back(OwnerOutput::Commit(op, Tag::Behind(id)));
        let why = "this region was away for long and takes a snapshot: connect again";
        self.close_for_recovery(id, true, why, now);
    }

    fn close_for_recovery(&mut self, id: ShardId, whole: bool, why: &str, now: Now) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        shard.recovery.on = true;
        shard.recovery.whole = whole;
        self.active -= 1;
        self.out.push_back(match whole {
            true => OwnerOutput::Behind(id),
            false => OwnerOutput::Recovering(id, true),
        });
        let sessions: Vec<SessionId> = self.shards[&id].sessions.keys().copied().collect();
        for session in sessions {
            self.end_session(id, session, Code::Unavailable, why, now);
        }
        let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
        for lane in lanes {
            self.tell_edge(lane, ToEdge::NotOwner(vec![id]));
        }
    }

    /// The shard has what every region within reach has, or an operator says that it is enough.
    pub fn handle_caught_up(&mut self, id: ShardId) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        if let (true, Some(epoch)) = (shard.recovery.on, shard.epoch) {
            shard.recovery.due = None;
            self.out.push_back(commit(id, epoch, false));
        }
    }

    /// An operator's word that what is here is enough.
    pub fn handle_end_recovery(&mut self) {
        self.end_recovery = true;
        let recovering = self.shards.iter().filter(|(_, shard)| shard.recovery.on);
        let recovering: Vec<ShardId> = recovering.map(|(id, _)| *id).collect();
        for shard in recovering {
            self.handle_caught_up(shard);
        }
    }

    pub(super) fn recovery_written(
        &mut self,
        id: ShardId,
        on: bool,
        outcome: Result<Outcome, StoreError>,
        now: Now,
    ) {
        match outcome {
            // What others have retired is let go of first.
            Ok(Outcome::Done { more: true }) => {
                if let Some(shard) = self.shards.get_mut(&id) {
                    shard.recovery.due = Some(on);
                    shard.look.told = true;
                    shard.dirty = true;
                }
            }
            Ok(Outcome::Done { .. }) => {
                if let Some(shard) = self.shards.get_mut(&id) {
                    shard.recovery.written = on;
                }
                self.out.push_back(OwnerOutput::Read(Question::Recovered(id)));
            }
            Ok(Outcome::Refused(Refusal::Fenced { .. })) => self.handle_fenced(id, now),
            _ => {
                if let Some(shard) = self.shards.get_mut(&id) {
                    shard.recovery.due = Some(on);
                }
            }
        }
    }

    pub(super) fn behind_written(&mut self, id: ShardId, outcome: Result<Outcome, StoreError>, now: Now) {
        match outcome {
            Ok(Outcome::Done { .. }) => {
                self.out.push_back(OwnerOutput::Read(Question::Recovered(id)));
            }
            Ok(Outcome::Refused(Refusal::Fenced { .. })) => self.handle_fenced(id, now),
            // As if something were lost: that is written until it is.
            _ => {
                if let Some(shard) = self.shards.get_mut(&id) {
                    shard.recovery.due = Some(true);
                }
            }
        }
    }

    pub(super) fn recovery_read(&mut self, id: ShardId, row: &ShardRow) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        shard.recovery.life = row.recovered_in;
        shard.learn(row, &self.config.me.node.region);
        if shard.recovery.on && row.recovery == state::Recovery::Open {
            shard.recovery.on = false;
            shard.recovery.whole = false;
            shard.holders = Holders::of(row, &self.config.me.node.region);
            shard.look.told = false;
            shard.dirty = true;
            self.active += usize::from(self.shards[&id].is_open());
            self.out.push_back(OwnerOutput::Recovering(id, false));
            self.aim_of(row);
        } else if shard.recovery.on && row.holding.set.is_some() {
            shard.holders.named = row.partners(&self.config.holders);
            self.regions_due = true;
        }
    }

    /// A part of a snapshot was taken: it may know of other holders.
    pub fn handle_merged(&mut self, id: ShardId) {
        if self.shards.get(&id).is_some_and(|shard| shard.recovery.on) {
            self.out.push_back(OwnerOutput::Read(Question::Recovered(id)));
        }
    }

    /// The head could not be read: what was written is written once more, which changes nothing but leads here again.
    pub(super) fn recovery_failed(&mut self, id: ShardId) {
        if let Some(shard) = self.shards.get_mut(&id) {
            shard.recovery.due.get_or_insert(shard.recovery.written);
        }
    }

    /// Ends a session that was attached in an earlier life of the store, or in another region; its client attaches again with what it consumed
    /// (R17).
    pub(super) fn outlived(&mut self, lane: LaneId, attach: &Attach) -> bool {
        let Some(shard) = self.shards.get_mut(&attach.shard) else {
            return false;
        };
        if !attach.welcomed || attach.store == shard.recovery.life {
            return false;
        }
        shard.presence.end(&attach.user, &attach.device, attach.session);
        self.touched.insert(attach.shard);
        let body = ToEdge::Ended {
            session: attach.session,
            code: Code::Unavailable,
            detail: "the store that served it was replaced or restored, or another region serves here now: connect again"
                .to_owned(),
        };
        self.tell_edge(lane, body);
        true
    }
}

fn commit(shard: ShardId, epoch: Epoch, recovering: bool) -> OwnerOutput {
    let op = StoreOp::Recover {
        shard,
        epoch,
        recovering,
    };
    OwnerOutput::Commit(op, Tag::Recover(shard, recovering))
}
