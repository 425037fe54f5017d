//! Taking shards over, under an epoch of one's own, and giving them up.

use super::holders::Holders;
use super::recovery::Recovery;
use super::{Owner, OwnerOutput, Shard, Tag};
use crate::core::commit::StoreOp;
use crate::core::ids::{Epoch, ShardId};
use crate::core::limits::ms;
use crate::core::msg::ToEdge;
use crate::core::state::ShardRow;
use crate::core::time::Now;

impl Owner {
    pub(super) fn take_over(&mut self, shard: ShardId) {
        self.stats.takeovers += 1;
        let region = &self.config.me.node.region;
        self.shards.entry(shard).or_insert_with(|| Shard::new(region));
        self.out
            .push_back(OwnerOutput::Commit(StoreOp::Bump { shard }, Tag::Bump(shard)));
    }

    pub(super) fn activate(&mut self, id: ShardId, epoch: Epoch, row: &ShardRow) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        if shard.is_open() {
            self.active -= 1;
        }
        // It may have been taken over twice at once.
        if shard.epoch.is_some_and(|before| before != epoch) {
            self.senders.shard_given_up(id);
        }
        shard.epoch = Some(epoch);
        shard.recovery = Recovery::of(row);
        shard.holders = Holders::of(row, &self.config.me.node.region);
        if shard.is_open() {
            self.active += 1;
        }
        shard.learn(row, &self.config.me.node.region);
        // What was pending when the owner before went away is taken up by the first upkeep.
        shard.dirty = true;
        self.aim_of(row);
        let row = Some(Box::new(row.clone()));
        self.out.push_back(OwnerOutput::Owned(id, row));
        if self.end_recovery {
            self.handle_caught_up(id);
        }
    }

    pub(super) fn give_up(&mut self, id: ShardId) {
        let Some(shard) = self.shards.remove(&id) else {
            return;
        };
        for lane in self.lanes.values_mut() {
            lane.sessions.retain(|(of, _)| *of != id);
            let (to, number) = (lane.edge.clone(), lane.number);
            self.out.push_back(OwnerOutput::ToEdge {
                to,
                lane: number,
                body: ToEdge::NotOwner(vec![id]),
            });
        }
        self.senders.shard_given_up(id);
        self.active -= usize::from(shard.is_open());
        if shard.epoch.is_some() {
            self.out.push_back(OwnerOutput::Owned(id, None));
        }
    }

    /// Another owner took the shard; if placement still gives it to us, we take it back with a higher epoch.
    pub fn handle_fenced(&mut self, shard: ShardId, now: Now) {
        if self.epoch(shard).is_some() {
            self.give_up(shard);
            self.retry_at = Some(now.mono + ms(self.config.limits.retry_ms));
        }
    }
}
