//! Dropping dedup records of ids that cannot come any more (R16).
//!
//! Once a day there is another day whose ids have left the window by more than the margin. The owner then asks the store to
//! drop what each shard has of it, some shards at a time, unless the clocks of the other regions disagree with ours (R20): a
//! clock that was set forward must not make a region forget what its senders may send again. The commit judges once more,
//! and keeps what is not stable.
//!
//! A record that comes later under an older id, from a region that was cut off, goes with the next day's.

use super::{Owner, OwnerOutput, Shard, Tag, parts};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::defect::{self, Defect};
use crate::core::ids::ShardId;
use crate::core::limits::ms;
use crate::core::state::ShardRow;
use crate::core::storage::StoreError;
use crate::core::time::{Mono, Now};
use crate::core::trim::droppable_before;

/// Shards of a part that are asked for in one interval: the records of a day leave memory in the commit, and for each origin
/// a page of the log may be read. A thousand shards take 13 intervals, once a day.
const AT_ONCE: usize = 4;

/// What is not stable yet, or could not be written, is asked for again after so long: an absent region may hold it up for
/// days, and each question may read a page for each of its origins.
const AGAIN_MS: u64 = 60_000;

/// What a shard forgot.
#[derive(Debug, Default)]
pub(super) struct Forget {
    /// Records of ids from before this day are dropped, or are being dropped.
    before: u32,
    /// Not to be asked for earlier.
    at: Mono,
}

impl Forget {
    pub(super) fn of(row: &ShardRow) -> Self {
        Self {
            before: row.forgotten,
            at: Mono::default(),
        }
    }

    fn due(&self, before: u32, now: Mono) -> bool {
        self.before < before && self.at <= now
    }
}

impl Owner {
    /// Asks for what is due in a part of the shards, where the clocks agree.
    pub(super) fn forget(&mut self, part: u32, now: Now) {
        if !self.clocks.agree && !defect::on(Defect::DedupDroppedEarly) {
            return;
        }
        let before = droppable_before(now.wall_ms);
        let due = |(id, shard): &(&ShardId, &mut Shard)| {
            let due = match defect::on(Defect::DedupDroppedEarly) {
                true => shard.dirty,
                false => shard.forget.due(before, now.mono),
            };
            parts::of(**id) == part && shard.is_open() && due
        };
        for (id, shard) in self.shards.iter_mut().filter(due).take(AT_ONCE) {
            let Some(epoch) = shard.epoch else { continue };
            shard.forget.before = before;
            let op = StoreOp::DropDedup {
                shard: *id,
                epoch,
                day: before - 1,
            };
            self.out
                .push_back(OwnerOutput::Commit(op, Tag::Forget(*id, before)));
        }
    }

    pub(super) fn forgot(
        &mut self,
        id: ShardId,
        before: u32,
        outcome: Result<Outcome, StoreError>,
        now: Now,
    ) {
        match outcome {
            Ok(Outcome::Done { more: false }) => {}
            Ok(Outcome::Refused(Refusal::Fenced { .. })) => self.handle_fenced(id, now),
            _ => {
                // It may have been taken over again meanwhile; asking once more changes nothing then.
                if let Some(shard) = self.shards.get_mut(&id)
                    && shard.forget.before == before
                {
                    shard.forget.before = before - 1;
                    shard.forget.at = now.mono + ms(AGAIN_MS);
                }
            }
        }
    }
}
