//! Accepting a message only once another region has it too (`durability = "geo"`).
//!
//! A deposit that was committed waits until a holder said that the operation is durable there, on the link that it came by
//! ([`ToProvider::Copied`](crate::core::msg::ToProvider::Copied)); in the first store it is delivered meanwhile. What the
//! configuration says decides when that takes too long, or no other region can be reached.

use std::collections::{BTreeMap, BTreeSet};

use super::Owner;
use super::deposits::DepositTag;
use crate::core::defect::{self, Defect};
use crate::core::ids::{Coord, Origin, Seq, ShardId};
use crate::core::limits::ms;
use crate::core::msg::Verdict;
use crate::core::time::{Mono, Now};
use crate::core::wire::{Code, Durability};

/// Where a message must be durable before it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DurabilityPolicy {
    /// In the store of the region.
    #[default]
    Region,
    /// There and in at least one other region.
    Geo(WithoutCopy),
}

/// What happens to a message that no other region took within
/// [`CoreLimits::geo_timeout_ms`](crate::core::limits::CoreLimits::geo_timeout_ms), or can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WithoutCopy {
    /// It is refused, to be sent again under the same id.
    #[default]
    Refuse,
    /// It is accepted as durable in the region alone, and the answer says so.
    AcceptAsRegion,
}

/// Deposits that are committed here and not yet known to be elsewhere. They count as pending: see
/// [`CoreLimits::owner_deposits`](crate::core::limits::CoreLimits::owner_deposits).
#[derive(Default)]
pub(super) struct Waits {
    /// What waits for each operation.
    by_coord: BTreeMap<Place, Vec<Waiting>>,
    /// When each is answered in any case.
    due: BTreeSet<(Mono, Place)>,
}

/// Where an operation stands.
type Place = (ShardId, Origin, Seq);

struct Waiting {
    tag: DepositTag,
    duplicate: bool,
    until: Mono,
}

impl Owner {
    /// A message stands at `at` in the own store: answers now, or when another region has it.
    pub(super) fn accept(&mut self, tag: DepositTag, at: Coord, duplicate: bool, now: Now) {
        let durability = match self.config.durability {
            DurabilityPolicy::Region => Some(Durability::Region),
            DurabilityPolicy::Geo(_) if self.has_copy(tag.shard, at) => Some(Durability::Geo),
            DurabilityPolicy::Geo(WithoutCopy::AcceptAsRegion) if self.is_alone() => Some(Durability::Region),
            DurabilityPolicy::Geo(_) => None,
        };
        if let Some(durability) = durability {
            return self.answer_accepted(&tag, at, duplicate, durability);
        }
        let key = (tag.shard, at.origin, at.seq);
        let until = now.mono + ms(self.config.limits.geo_timeout_ms);
        self.waits.due.insert((until, key));
        self.waits.by_coord.entry(key).or_default().push(Waiting {
            tag,
            duplicate,
            until,
        });
    }

    /// Another region has an origin's log of a shard to here; it may be less than before, where one lost its store.
    pub fn handle_copied(&mut self, shard: ShardId, origin: Origin, seq: Seq) {
        if let Some(shard) = self.shards.get_mut(&shard) {
            shard.copied.insert(origin, seq);
        }
        // Nothing else is touched: a report costs what it answers.
        let copied = (shard, origin, 0)..=(shard, origin, seq);
        while let Some((&place, _)) = self.waits.by_coord.range(copied.clone()).next() {
            let at = Coord { origin, seq: place.2 };
            for waiting in self.waits.by_coord.remove(&place).unwrap_or_default() {
                self.waits.due.remove(&(waiting.until, place));
                self.answer_accepted(&waiting.tag, at, waiting.duplicate, Durability::Geo);
            }
        }
    }

    /// When a deposit that waits for another region is answered in any case.
    pub(super) fn copies_due(&self) -> Option<Mono> {
        self.waits.due.first().map(|(at, _)| *at)
    }

    /// Answers what waited long enough.
    pub(super) fn give_up_copies(&mut self, now: Now) {
        while let Some((_, place)) = self
            .waits
            .due
            .first()
            .copied()
            .filter(|(until, _)| *until <= now.mono)
        {
            self.waits.due.pop_first();
            let Some(waiting) = self.waits.by_coord.get_mut(&place) else {
                continue;
            };
            let given_up: Vec<Waiting> = waiting.extract_if(.., |each| each.until <= now.mono).collect();
            if waiting.is_empty() {
                self.waits.by_coord.remove(&place);
            }
            let (_, origin, seq) = place;
            let at = Coord { origin, seq };
            for Waiting { tag, duplicate, .. } in given_up {
                if self.config.durability == DurabilityPolicy::Geo(WithoutCopy::AcceptAsRegion) {
                    self.answer_accepted(&tag, at, duplicate, Durability::Region);
                    continue;
                }
                self.no_longer_pending(&tag);
                let why = "stored here, and no other region has it yet";
                self.answer_retry(&tag, Code::Unavailable, why, now);
            }
        }
    }

    /// Whether nothing may be taken because no other region can get it.
    pub(super) fn refuses_alone(&self) -> bool {
        self.config.durability == DurabilityPolicy::Geo(WithoutCopy::Refuse) && self.is_alone()
    }

    /// Whether no other region can be reached.
    fn is_alone(&self) -> bool {
        let mut others =
            (self.partners.staying.iter()).filter(|holder| **holder != self.config.me.node.region);
        others.all(|holder| self.unreachable.contains_key(holder))
    }

    fn has_copy(&self, shard: ShardId, at: Coord) -> bool {
        if defect::on(Defect::GeoEarly) {
            return true;
        }
        let Some(shard) = self.shards.get(&shard) else {
            return false;
        };
        // What another region accepted is in its store.
        !shard.own.contains(&at.origin) || shard.copied.get(&at.origin).is_some_and(|seq| *seq >= at.seq)
    }

    fn answer_accepted(&mut self, tag: &DepositTag, at: Coord, duplicate: bool, durability: Durability) {
        self.no_longer_pending(tag);
        let stats = &mut self.stats.deposits;
        match duplicate {
            true => stats.duplicates += 1,
            false => stats.accepted += 1,
        }
        let alone = durability == Durability::Region && self.config.durability != DurabilityPolicy::Region;
        stats.alone += u64::from(alone);
        let verdict = Verdict::Accepted {
            at,
            duplicate,
            durability,
        };
        self.answer(tag, verdict);
    }
}
