//! Where a subscriber stands: a position for each shard and origin, moved on by shipping, and the credit it has left.
//!
//! Of one region's origins the older goes before the newer: a log that begins after another one waits for it (R1).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::exchange::Exchange;
use super::pace::Pace;
use super::snapshot::Sending;
use super::{LinkStats, Owned, ReadToken};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Coord, Origin, RegionId, Seq, ShardId};
use crate::core::msg::{MAX_ITEMS, Run};
use crate::core::op::{LogEntry, LoggedOp, Op, kind};
use crate::core::time::Mono;

/// Bytes of operations in one message: enough that headers cost nothing, little enough that pings are not held up.
const MESSAGE_BYTES: u64 = 256 * 1024;

/// What one partition of another region takes from us.
#[derive(Debug)]
pub(super) struct Serve {
    pub lane: u64,
    pub wanted: BTreeSet<RegionId>,
    /// When that last changed.
    pub want_changed: Mono,
    pub shards: BTreeMap<ShardId, Served>,
    /// Bytes that may be shipped.
    pub credit: u64,
    /// Bytes that were shipped beyond it, as one operation or item may be that is larger than the window: what comes back of
    /// them is no credit, or the window would grow by them.
    owed: u64,
    /// Of those, set aside for pages on their way from the store.
    pub reserved: u64,
    /// The most credit there ever was on this lane: so much again means that nothing is in flight.
    pub window: u64,
    /// An operation of this size found no room: nothing else is shipped from memory before it.
    pub need: u64,
    /// Positions to be caught up, in turn.
    pub behind: VecDeque<(ShardId, Origin)>,
    /// Pages on their way from the store.
    pub reads: usize,
    pub pause_until: Option<Mono>,
    /// How fast it is given what it lacks; none before the first page.
    pub pace: Option<Pace>,
    pub batch: Batch,
    /// When its lane was opened.
    opened: Mono,
    pub heard: Mono,
    pub exchange: Exchange,
    /// Shards of which it is to be told what we have.
    pub have_due: BTreeSet<ShardId>,
    /// Snapshots that it asked for.
    pub sending: BTreeMap<ShardId, Sending>,
    /// Those whose next page is to be read, in turn.
    pub turns: VecDeque<ShardId>,
    /// Pages of snapshots on their way from the store.
    pub page_reads: usize,
    /// Operations shipped on this lane, and their bytes.
    pub shipped: (u64, u64),
}

/// A subscribed shard.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub positions: BTreeMap<Origin, Position>,
    /// Nothing is shipped until it is subscribed again: it needs a snapshot.
    pub stopped: bool,
    /// Positions that wait for another origin.
    pub waiting: usize,
}

/// How far one origin's log of a shard was shipped.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// Shipped, or known there.
    pub seq: Seq,
    /// It stands in [`Serve::behind`].
    pub queued: bool,
    /// The page that is on its way for it.
    pub reading: Option<ReadToken>,
    /// Its log begins after this, which is to be shipped first.
    pub waits: Option<Coord>,
}

/// Runs for the next message.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub runs: Vec<Run>,
    pub index: BTreeMap<(ShardId, Origin), usize>,
    pub bytes: u64,
    pub ops: usize,
}

impl Batch {
    /// Adds an operation; says whether the message is full.
    fn push(
        &mut self,
        shard: ShardId,
        origin: Origin,
        region: &RegionId,
        before: u64,
        entry: &LogEntry,
    ) -> bool {
        let bytes = entry.op.bytes().clone();
        self.bytes += bytes.len() as u64;
        self.ops += 1;
        let known = self.index.get(&(shard, origin)).map(|at| &mut self.runs[*at]);
        match known.filter(|run| run.first + run.ops.len() as u64 == entry.seq) {
            Some(run) => run.ops.push(bytes),
            None => {
                self.index.insert((shard, origin), self.runs.len());
                self.runs.push(Run {
                    shard,
                    origin,
                    region: region.clone(),
                    first: entry.seq,
                    before,
                    ops: vec![bytes],
                    count: 0,
                });
            }
        }
        self.bytes >= MESSAGE_BYTES || self.ops >= MAX_ITEMS
    }
}

impl Serve {
    pub fn new(lane: u64, now: Mono) -> Self {
        Self {
            lane,
            wanted: BTreeSet::new(),
            want_changed: now,
            shards: BTreeMap::new(),
            credit: 0,
            owed: 0,
            reserved: 0,
            window: 0,
            need: 0,
            behind: VecDeque::new(),
            reads: 0,
            pause_until: None,
            pace: None,
            batch: Batch::default(),
            opened: now,
            heard: now,
            exchange: Exchange::default(),
            have_due: BTreeSet::new(),
            sending: BTreeMap::new(),
            turns: VecDeque::new(),
            page_reads: 0,
            shipped: (0, 0),
        }
    }

    /// Whether it wants origins of a region from us.
    pub fn wants(&self, region: &RegionId) -> bool {
        self.wanted.contains(region)
    }

    pub fn due(&self) -> Option<Mono> {
        self.exchange.due().into_iter().chain(self.pause_until).min()
    }

    pub fn take_due(&mut self, now: Mono) -> bool {
        let resumed = self.pause_until.take_if(|at| *at <= now).is_some();
        self.exchange.take_due(now) || resumed
    }

    /// The subscriber may be sent so much more.
    pub fn grant(&mut self, bytes: u64) {
        let paid = self.owed.min(bytes);
        self.owed -= paid;
        self.credit = self.credit.saturating_add(bytes - paid);
        self.window = self.window.max(self.credit);
    }

    /// So much was shipped.
    pub fn spend(&mut self, bytes: u64) {
        let paid = self.credit.min(bytes);
        self.credit -= paid;
        self.owed = self.owed.saturating_add(bytes - paid);
    }

    /// Credit that is not set aside.
    pub fn available(&self) -> u64 {
        self.credit.saturating_sub(self.reserved)
    }

    /// Whether an operation of this size may go now; one that is larger than the window goes when nothing is in flight.
    pub fn fits(&self, len: u64) -> bool {
        let available = self.available();
        defect::on(Defect::CreditIgnored) || available >= len || (self.window > 0 && available >= self.window)
    }

    /// Queues a position to be caught up, unless it is under way or must wait.
    pub fn enqueue(&mut self, shard: ShardId, origin: Origin) {
        let Some(served) = self.shards.get_mut(&shard) else {
            return;
        };
        let position = served.positions.entry(origin).or_default();
        if !position.queued && position.reading.is_none() && position.waits.is_none() {
            position.queued = true;
            self.behind.push_back((shard, origin));
        }
    }

    /// Queues what waited in a shard and need not any more.
    pub fn wake(&mut self, shard: ShardId) {
        let Some(served) = self.shards.get_mut(&shard) else {
            return;
        };
        if served.waiting == 0 {
            return;
        }
        let ready = served.positions.iter().filter(|(_, position)| {
            let after = position.waits;
            after.is_some_and(|after| position.seq > 0 || served.seq(after.origin) >= after.seq)
        });
        let ready: Vec<Origin> = ready.map(|(origin, _)| *origin).collect();
        served.waiting -= ready.len();
        for origin in &ready {
            served.positions.entry(*origin).or_default().waits = None;
        }
        for origin in ready {
            self.enqueue(shard, origin);
        }
    }

    /// Ships one operation: it must be the next of its position, and fit.
    pub fn ship(
        &mut self,
        shard: ShardId,
        origin: Origin,
        region: &RegionId,
        before: u64,
        entry: &LogEntry,
    ) -> bool {
        self.spend(entry.op.len() as u64);
        self.shipped.0 += 1;
        self.shipped.1 += entry.op.len() as u64;
        let Some(served) = self.shards.get_mut(&shard) else {
            return false;
        };
        served.positions.entry(origin).or_default().seq = entry.seq;
        self.batch.push(shard, origin, region, before, entry)
    }

    /// Whether the subscriber still has what it had at this time. A lane that it opened since says itself what it has, which
    /// may be less: its disk was lost, or an old backup restored.
    pub fn knew(&self, at: Mono) -> bool {
        self.opened < at
    }

    /// The subscriber has an origin's log to here.
    pub fn raise(&mut self, shard: ShardId, origin: Origin, seq: Seq) {
        let Some(served) = self.shards.get_mut(&shard) else {
            return;
        };
        let position = served.positions.entry(origin).or_default();
        position.seq = position.seq.max(seq);
        self.wake(shard);
    }

    /// Ships a new operation if it continues the position and fits, else marks the position as behind. Says whether the
    /// message is full.
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one logged operation, and counters"
    )]
    pub fn offer(
        &mut self,
        shard: ShardId,
        owned: &Owned,
        origin: Origin,
        region: &RegionId,
        before: Option<u64>,
        entry: &LogEntry,
        stats: &mut LinkStats,
    ) -> bool {
        let len = entry.op.len() as u64;
        let room = self.need == 0 && self.fits(len);
        let Some(served) = self.shards.get_mut(&shard) else {
            return false;
        };
        let position = served.positions.entry(origin).or_default();
        if served.stopped || position.seq >= entry.seq {
            return false;
        }
        let next = position.seq + 1 == entry.seq && position.reading.is_none() && position.waits.is_none();
        match before {
            Some(before) if next && room => {
                if self.must_wait(shard, owned, origin, entry) {
                    return false;
                }
                let full = self.ship(shard, origin, region, before, entry);
                stats.ops_shipped += 1;
                stats.ops_shipped_hot += 1;
                stats.bytes_shipped += len;
                self.wake(shard);
                full
            }
            _ => {
                self.enqueue(shard, origin);
                false
            }
        }
    }

    /// A log that begins after another one waits until that one was shipped, if we can ship it.
    pub fn must_wait(&mut self, shard: ShardId, owned: &Owned, origin: Origin, entry: &LogEntry) -> bool {
        let Some(previous) = starts_after(&entry.op, entry.seq) else {
            return false;
        };
        let Some(served) = self.shards.get_mut(&shard) else {
            return false;
        };
        let ours = owned.logs.get(&previous.origin);
        let can = ours.is_some_and(|log| log.head >= previous.seq && self.wanted.contains(&log.region));
        if !can || served.seq(previous.origin) >= previous.seq {
            return false;
        }
        let position = served.positions.entry(origin).or_default();
        if position.waits.replace(previous).is_none() {
            served.waiting += 1;
        }
        true
    }
}

impl Served {
    pub fn seq(&self, origin: Origin) -> Seq {
        self.positions.get(&origin).map_or(0, |position| position.seq)
    }
}

fn starts_after(op: &LoggedOp, seq: Seq) -> Option<Coord> {
    if seq != 1 || op.kind() != kind::START {
        return None;
    }
    match op.decode() {
        Ok(Op::Start { previous, .. }) => previous,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_beyond_the_window_does_not_widen_it() {
        let mut serve = Serve::new(1, Mono(0));
        serve.grant(2_000);
        assert!(serve.fits(3_000));
        serve.spend(3_000);
        assert!(!serve.fits(1));
        serve.grant(500);
        assert!(!serve.fits(1), "half of it is still owed");
        serve.grant(2_500);
        assert_eq!((serve.credit, serve.window), (2_000, 2_000));
    }
}
