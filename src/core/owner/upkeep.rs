//! The periodic work of shards: trimming what is stable (R9), confirming what was applied (R8), marking and retiring.
//!
//! A part of the shards is due at a time ([`Parts`]), and of those a few go to the store at once; the next ones go when
//! these are done. A message that comes meanwhile waits for a few shards' work, not for that of the whole part: after a
//! backlog each shard has a lot to trim, of rows that have left memory.

use std::collections::VecDeque;

use super::asked::{Question, Tag};
use super::parts::{self, Parts};
use super::{Owner, OwnerOutput};
use crate::core::commit::StoreOp;
#[cfg(any(test, feature = "defects"))]
use crate::core::defect::{self, Defect};
use crate::core::ids::ShardId;
use crate::core::time::{Mono, Now};

/// So many shards' work goes into one commit, where no more wait than a part holds.
const AT_ONCE: usize = 8;
/// One in so many of those that wait goes along, if that is more: a store that takes a second for each commit would
/// fall behind otherwise.
const SHARE: usize = 4;

/// Whose periodic work is due.
pub(super) struct Upkeep {
    pub(super) parts: Parts,
    waiting: VecDeque<ShardId>,
    /// Operations that the store has not answered.
    under_way: usize,
}

impl Upkeep {
    /// For a machine that begins now, with every shard's turn once in `interval_ms`.
    pub(super) fn new(now: Mono, interval_ms: u64) -> Self {
        Self {
            parts: Parts::new(now, interval_ms),
            waiting: VecDeque::new(),
            under_way: 0,
        }
    }

    /// Those that go to the store now.
    fn next(&mut self) -> Vec<ShardId> {
        if self.under_way > 0 {
            return Vec::new();
        }
        let waiting = self.waiting.len();
        let count = AT_ONCE.max(waiting / SHARE).min(waiting);
        self.waiting.drain(..count).collect()
    }
}

impl Owner {
    /// The work of a part that is due.
    pub(super) fn begin_upkeep(&mut self, part: u32, now: Now) {
        self.forget(part, now);
        self.sweep(part, now);
        let mut again = Vec::new();
        let due = self.shards.iter_mut().filter(|(id, _)| parts::of(**id) == part);
        for (id, shard) in due {
            if let Some(output) = shard.recovery.overdue(*id, shard.epoch) {
                self.out.push_back(output);
            }
            let Some(epoch) = shard.epoch else { continue };
            // Who commits learns it from that; who does not would keep sessions that are given nothing any more.
            if self.shared {
                self.out
                    .push_back(OwnerOutput::Read(Question::Verify(*id, epoch)));
            }
            // What recovers says nothing of its own (R4).
            if shard.recovery.on && !shard.look.told {
                continue;
            }
            if !shard.dirty && !shard.holders.looks_due(now.mono) {
                if shard.look.waits() {
                    again.push(*id);
                }
                continue;
            }
            if !std::mem::replace(&mut shard.in_turn, true) {
                self.upkeep.waiting.push_back(*id);
            }
        }
        for id in again {
            self.look_once_more(id);
        }
        if part == 0 {
            self.senders.forget_idle(now.mono);
        }
        #[cfg(any(test, feature = "defects"))]
        if part == 0 && defect::on(Defect::LeaseIsAWrite) {
            for (id, shard) in &mut self.shards {
                shard.presence.refresh();
                self.touched.insert(*id);
            }
        }
        self.go_on_with_upkeep(now);
    }

    /// The store answered an operation of this work.
    pub(super) fn upkeep_answered(&mut self, now: Now) {
        self.upkeep.under_way = self.upkeep.under_way.saturating_sub(1);
        self.go_on_with_upkeep(now);
    }

    fn go_on_with_upkeep(&mut self, now: Now) {
        loop {
            let turn = self.upkeep.next();
            if turn.is_empty() {
                return;
            }
            turn.into_iter().for_each(|shard| self.keep_up(shard, now));
        }
    }

    /// Hands the work of one shard to the store.
    fn keep_up(&mut self, id: ShardId, now: Now) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        shard.in_turn = false;
        let Some(epoch) = shard.epoch else { return };
        if shard.recovery.on && !shard.look.told {
            return;
        }
        shard.dirty = false;
        let (first, me) = (&self.config.holders, &self.config.me.node.region);
        let limits = (self.config.limits.absent_ms, self.clocks.agree);
        if !shard.recovery.on {
            self.out
                .extend(shard.mark_op(id, epoch, (first, me), limits, now));
        }
        let holders = shard.holders.counting(first).len();
        let retire = shard.retire_op(id, epoch, holders);
        // A region that is removed confirms all the same: the others wait for that.
        let confirms = !shard.recovery.on;
        let shard = id;
        // Trimmed is what earlier confirmations made stable: nothing is logged and trimmed in one commit, and no entry is
        // looked at before it can go.
        let trim = OwnerOutput::Commit(StoreOp::Trim { shard, epoch }, Tag::Upkeep(shard));
        self.out.push_back(trim);
        self.upkeep.under_way += 1;
        self.out.extend(retire);
        if confirms {
            let confirm = OwnerOutput::Commit(StoreOp::Confirm { shard, epoch }, Tag::Upkeep(shard));
            self.out.push_back(confirm);
            self.upkeep.under_way += 1;
        }
    }
}
