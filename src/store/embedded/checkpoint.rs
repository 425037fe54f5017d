//! Write-behind: what changed since the last checkpoint goes to the tables in slices, then memory is given back.
//!
//! ```text
//! begin at commit C --> slices: dirty users, dedup records, logs, shard rows --> flush --> meta: covered = C --> flush
//!                         ^--(a flush now and then bounds what is not flushed)--/
//!   --> journal segments through C are deleted --> memory is given back down to its limit
//! ```
//!
//! Commits go on between slices. A row is written as it is at that moment, with the number of the last commit that it
//! includes; what changes later is dirty again for the next checkpoint. Nothing that a checkpoint wrote counts before
//! `covered` says so (see [`replay`](super::replay)), so slices need no order among each other, with one exception: a
//! log entry of a message names its inbox entry for the body, so logs are written up to where they stood when the checkpoint
//! began, after the messages of all dirty users of the shard.
//!
//! Only what is live is written: rows and items that came and went between two checkpoints never reach the tables. Of
//! what was written and then removed, the extents of a series say where to look for keys to delete.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{DedupBlock, Extent, Meta, StoredShard, StoredUser};
use super::tables::{Change, Table, Tables};
use super::view::{Marks, Recent, View};
use crate::core::ids::{Coord, Origin, Seq, ShardId, UserId};
use crate::core::op::{LogItem, kind};
use crate::core::state::{
    DEDUP_WEIGHT, Decision, DedupKey, DedupRow, Pieces, Series, ShardState, USER_WEIGHT,
};
use crate::store::engine::StoreError;
use crate::store::keys::{self, LogValue};

/// What a change costs of a slice's budget beside its bytes.
const CHANGE_COST: usize = 64;
/// Pieces of a thousand dedup records that are sorted in one step: less than a millisecond.
const SORT_PIECES: usize = 2;
/// Dedup records in a block, at most: 20 KB or so, which a look for one of them reads.
const BLOCK_RECORDS: usize = 256;
/// New dedup records that are looked at in one step of giving memory back: less than a millisecond, and more than come
/// between two steps.
const LOOK_RECORDS: usize = 16 * 1024;
/// Part of the memory limit that dedup records may keep after a checkpoint: the rest is for messages.
const DEDUP_SHARE: usize = 4;

/// What a checkpoint has to write, by shard.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    shards: BTreeMap<ShardId, DirtyShard>,
    /// Records that are not with their shards yet: far too many to be sorted between two commits.
    dedup: Pieces<(ShardId, DedupKey)>,
}

impl Dirty {
    /// Gives some records to their shards; says whether more are left.
    fn sort(&mut self) -> bool {
        for (id, key) in (0..SORT_PIECES).map_while(|_| self.dedup.take_piece()).flatten() {
            self.shards.entry(id).or_default().dedup.push(key);
        }
        !self.dedup.is_empty()
    }
}

/// What changed in a shard. Its row always did.
#[derive(Debug, Default)]
struct DirtyShard {
    users: Vec<UserId>,
    dedup: Vec<DedupKey>,
    /// When the checkpoint began, the logs went to here.
    logs: BTreeMap<Origin, Seq>,
}

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// Covers the commits through this one.
    pub(super) covered: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Writing(Dirty),
    /// With what is left to write.
    Flushing(Option<Dirty>),
    /// The word that it is complete is being flushed.
    Sealing,
    Evicting(Evicting),
}

/// Giving memory back.
#[derive(Debug, Default)]
struct Evicting {
    next: ShardId,
    /// Old dedup records that are not written yet: few, and only of messages that were long under way.
    fresh: BTreeSet<(ShardId, DedupKey)>,
    /// So many of the ledger's records were looked at for them.
    looked: usize,
}

/// What a step of a checkpoint came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more to write.
    More,
    /// The tables are flushing.
    Waiting,
    /// Commits through this one are covered, durably: the journal may drop them.
    Covered(u64),
    /// Over.
    Done,
}

/// What a checkpoint may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Bytes that one slice writes, roughly.
    pub(super) slice: usize,
    /// Bytes after which the tables are flushed in between: while they are, nothing is written.
    pub(super) flush: usize,
    /// Bytes in memory after it.
    pub(super) memory: usize,
    /// Wait for flushes.
    pub(super) wait: bool,
}

impl<T: Tables> View<T> {
    /// Notes what else applied decisions did; what they touched is in the ledger, until a checkpoint takes it.
    pub(super) fn absorb(&mut self, decisions: &[Decision]) {
        for decision in decisions {
            match decision {
                Decision::DedupDropped { shard, day } => {
                    let marks = self.marks.entry(*shard).or_default();
                    marks.drop_through(*day, self.last);
                }
                Decision::Expired { shard, user, hole } => {
                    let holes = &mut self.marks.entry(*shard).or_default().holes;
                    let of_user = holes.entry(user.clone()).or_default();
                    of_user.push((hole.origin, hole.from, hole.to));
                }
                _ => {}
            }
        }
        let noted = &self.state.ledger.dedup;
        for (_, key) in noted.since(std::mem::replace(&mut self.dedup.counted, noted.len())) {
            let bucket = key.id.unix_ms().unwrap_or(0) / Recent::BUCKET_MS;
            *self.dedup.counts.entry(bucket).or_default() += 1;
        }
    }

    /// Begins to give memory back that needs no writing, unless a checkpoint is under way.
    pub(super) fn begin_evicting(&mut self) {
        if self.checkpoint.is_none() {
            self.checkpoint = Some(Checkpoint {
                covered: self.last,
                phase: Phase::Evicting(Evicting::default()),
            });
        }
    }

    /// Begins a checkpoint of everything through the last commit, unless one is under way.
    pub(super) fn begin_checkpoint(&mut self) {
        if self.checkpoint.is_some() {
            return;
        }
        let ledger = &mut self.state.ledger;
        ledger.round += 1;
        self.dedup.counted = 0;
        self.dedup.blocks = 0;
        self.spent = 0;
        let mut dirty = Dirty::default();
        for id in ledger.shards.drain(..) {
            dirty.shards.entry(id).or_default();
        }
        for (id, user) in ledger.users.drain(..) {
            dirty.shards.entry(id).or_default().users.push(user);
        }
        dirty.dedup = std::mem::take(&mut ledger.dedup);
        for (id, shard) in &mut dirty.shards {
            if let Some(state) = self.state.shards.get(id) {
                let logs = state.row.logs.iter();
                shard.logs = logs.map(|(origin, log)| (*origin, log.seq)).collect();
            }
        }
        self.checkpoint = Some(Checkpoint {
            covered: self.last,
            phase: Phase::Writing(dirty),
        });
    }

    /// Whether a checkpoint has something to write now.
    pub(super) fn writes(&self) -> bool {
        let checkpoint = self.checkpoint.as_ref();
        checkpoint.is_some_and(|checkpoint| matches!(checkpoint.phase, Phase::Writing(_)))
    }

    /// Goes on with the checkpoint under way; `meta` is what to say when it is complete.
    pub(super) fn step_checkpoint(
        &mut self,
        budget: Budget,
        meta: impl FnOnce(u64, u64) -> Meta,
    ) -> Result<Step, StoreError> {
        let Some(Checkpoint { covered, phase }) = self.checkpoint.take() else {
            return Ok(Step::Done);
        };
        let (phase, step) = match phase {
            Phase::Writing(mut dirty) => {
                if dirty.sort() {
                    self.checkpoint = Some(Checkpoint {
                        covered,
                        phase: Phase::Writing(dirty),
                    });
                    return Ok(Step::More);
                }
                self.unflushed += self.write_slice(&mut dirty, covered, budget.slice)?;
                let rest = (!dirty.shards.is_empty()).then_some(dirty);
                match rest {
                    Some(dirty) if self.unflushed < budget.flush => (Phase::Writing(dirty), Step::More),
                    rest => {
                        self.tables.begin_flush()?;
                        self.unflushed = 0;
                        (Phase::Flushing(rest), Step::Waiting)
                    }
                }
            }
            Phase::Flushing(Some(dirty)) if self.tables.flushed(budget.wait)? => {
                (Phase::Writing(dirty), Step::More)
            }
            Phase::Flushing(None) if self.tables.flushed(budget.wait)? => {
                let value = meta(covered, self.dedup.newest_ms).encode();
                let mut batch = vec![Change {
                    table: Table::Meta,
                    key: keys::meta(),
                    value: Some(value),
                }];
                self.tables.write(&mut batch)?;
                self.tables.begin_flush()?;
                (Phase::Sealing, Step::Waiting)
            }
            Phase::Flushing(rest) => (Phase::Flushing(rest), Step::Waiting),
            Phase::Sealing if self.tables.flushed(budget.wait)? => {
                self.drop_days()?;
                self.forget_dedup(budget.memory / DEDUP_SHARE);
                (Phase::Evicting(Evicting::default()), Step::Covered(covered))
            }
            Phase::Sealing => (Phase::Sealing, Step::Waiting),
            Phase::Evicting(mut evicting) => {
                if self.evict_slice(&mut evicting, budget) {
                    return Ok(Step::Done);
                }
                (Phase::Evicting(evicting), Step::More)
            }
        };
        self.checkpoint = Some(Checkpoint { covered, phase });
        Ok(step)
    }

    /// Writes about `budget` bytes; gives how many.
    fn write_slice(&mut self, dirty: &mut Dirty, covered: u64, budget: usize) -> Result<usize, StoreError> {
        let mut slice = Slice {
            batch: Vec::new(),
            left: budget.max(1),
        };
        while let Some(mut entry) = dirty.shards.first_entry() {
            let id = *entry.key();
            self.write_shard(id, entry.get_mut(), covered, &mut slice)?;
            if slice.left == 0 {
                break;
            }
            entry.remove();
        }
        let size = |change: &Change| change.key.len() + change.value.as_ref().map_or(0, Vec::len);
        let written = slice.batch.iter().map(size).sum();
        self.spent += (written + slice.batch.len() * CHANGE_COST) as u64;
        self.tables.write(&mut slice.batch)?;
        Ok(written)
    }

    /// Writes what is dirty of a shard, as far as the slice goes: it is done when the slice has something left.
    fn write_shard(
        &mut self,
        id: ShardId,
        dirty: &mut DirtyShard,
        covered: u64,
        slice: &mut Slice,
    ) -> Result<(), StoreError> {
        while let Some(user) = dirty.users.last() {
            self.write_user(id, user, slice)?;
            if slice.left == 0 {
                return Ok(());
            }
            dirty.users.pop();
        }
        while !dirty.dedup.is_empty() {
            self.write_dedup(id, &mut dirty.dedup, covered, slice);
            if slice.left == 0 {
                return Ok(());
            }
        }
        self.write_head(id, &dirty.logs, slice)
    }

    /// The records of some keys, in blocks: there is one for each message, and a row of its own costs the tables as much as
    /// the message cost its commit.
    fn write_dedup(&mut self, id: ShardId, keys: &mut Vec<DedupKey>, covered: u64, slice: &mut Slice) {
        let mut some = keys.split_off(keys.len().saturating_sub(BLOCK_RECORDS));
        some.sort_unstable();
        some.dedup();
        let shard = self.state.shards.entry(id).or_default();
        let marks = self.marks.entry(id).or_default();
        let unit = |key: &DedupKey| key.id.unix_ms().unwrap_or(0) / keys::DEDUP_BLOCK_MS;
        for run in some.chunk_by(|a, b| unit(a) == unit(b)) {
            let known = |key: &DedupKey| Some((key.clone(), shard.dedup.get(key)?.clone()));
            let rows: Vec<(DedupKey, DedupRow)> = run.iter().filter_map(known).collect();
            let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) else {
                continue;
            };
            let day = first.day();
            if marks.dropped_at(day).is_some() {
                marks.revived.insert(day);
            }
            let newest = last.id.unix_ms().unwrap_or(0);
            self.dedup.newest_ms = self.dedup.newest_ms.max(newest);
            let key = keys::dedup_block(id, covered, self.dedup.blocks, first.id, last.id);
            self.dedup.blocks += 1;
            let block = DedupBlock {
                as_of: self.last,
                rows,
            };
            slice.put(Table::Dedup(day), key, keys::encode(&block));
        }
    }

    /// Messages, deletions, then the row.
    fn write_user(&mut self, id: ShardId, user: &UserId, slice: &mut Slice) -> Result<(), StoreError> {
        let marks = self.marks.entry(id).or_default();
        let Some(known) = self.state.shards.get(&id).and_then(|shard| shard.users.get(user)) else {
            return Ok(());
        };
        let mut extents = marks.users.remove(user).unwrap_or_default();
        for (origin, series) in &known.inbox {
            slice.put_items(
                Table::Inbox,
                extents.entry(*origin).or_default(),
                series,
                Seq::MAX,
                |seq, op| (keys::inbox(id, user, *origin, seq), keys::encode_inbox(op)),
            );
        }
        let retired = &self.state.shards[&id].row.old.retired;
        for (origin, extent) in &mut extents {
            let key = |seq| keys::inbox(id, user, *origin, seq);
            let gone = match retired.contains_key(origin) {
                true => extent.hi,
                false => known.row.trimmed.of(*origin),
            };
            slice.delete(&self.tables, Table::Inbox, extent, gone, key)?;
        }
        let mut holes = marks.holes.remove(user).unwrap_or_default();
        while let Some((origin, from, to)) = holes.last().copied() {
            let key = |seq| keys::inbox(id, user, origin, seq);
            let mut within = Extent { lo: from - 1, hi: to };
            slice.delete(&self.tables, Table::Inbox, &mut within, to, key)?;
            if slice.left == 0 {
                break;
            }
            holes.pop();
        }
        if !holes.is_empty() {
            marks.holes.insert(user.clone(), holes);
        }
        extents.retain(|_, extent| extent.lo < extent.hi);
        let stored = StoredUser {
            as_of: self.last,
            inbox: extents,
            row: known.row.clone(),
        };
        if slice.left > 0 {
            slice.put(Table::Users, keys::user(id, user), keys::encode(&stored));
            slice.left = slice.left.max(1);
        }
        if !stored.inbox.is_empty() {
            marks.users.insert(user.clone(), stored.inbox);
        }
        Ok(())
    }

    /// Log entries, deletions, then the row.
    fn write_head(
        &mut self,
        id: ShardId,
        logs: &BTreeMap<Origin, Seq>,
        slice: &mut Slice,
    ) -> Result<(), StoreError> {
        let shard = self.state.shards.entry(id).or_default();
        let marks = self.marks.entry(id).or_default();
        let tables = &self.tables;
        for (origin, to) in logs {
            let Some(series) = shard.logs.get(origin) else {
                continue;
            };
            let extent = marks.logs.entry(*origin).or_default();
            slice.put_items(Table::Log, extent, series, *to, |seq, (hash, op)| {
                let op = match op {
                    LogItem::Op(op) => op,
                    // Not in the newer part, of which this is.
                    LogItem::Message(head) => {
                        let value = LogValue::Message(head.as_ref().clone());
                        return (keys::log(id, *origin, seq), keys::encode_log(*hash, &value));
                    }
                };
                let value = match op.kind() {
                    kind::APPEND => {
                        let head = op.message_head();
                        // What a snapshot brought before and was removed is not there to be named (R11).
                        let at = Coord { origin: *origin, seq };
                        let kept = |user: &UserId| match shard.users.get(user) {
                            Some(known) => known.keeps(at),
                            None => {
                                let key = keys::inbox(id, user, *origin, seq);
                                tables.get(Table::Inbox, &key).is_ok_and(|value| value.is_some())
                            }
                        };
                        head.filter(|head| kept(&head.to)).map(LogValue::Message)
                    }
                    _ => None,
                };
                let value = value.unwrap_or_else(|| LogValue::Inline(op.clone()));
                (keys::log(id, *origin, seq), keys::encode_log(*hash, &value))
            });
        }
        for (origin, extent) in &mut marks.logs {
            let floor = match shard.row.logs.get(origin) {
                None if shard.row.retired(*origin).is_some() => extent.hi,
                log => log.map_or(0, |log| log.floor),
            };
            let key = |seq| keys::log(id, *origin, seq);
            slice.delete(&self.tables, Table::Log, extent, floor, key)?;
        }
        marks.logs.retain(|_, extent| extent.lo < extent.hi);
        if slice.left > 0 {
            let stored = StoredShard {
                as_of: self.last,
                logs: marks.logs.clone(),
                dropped: marks.dropped.clone(),
                revived: marks.revived.clone(),
                row: shard.row.clone(),
            };
            slice.put(Table::Shards, keys::shard(id), keys::encode(&stored));
            slice.left = slice.left.max(1);
        }
        Ok(())
    }

    /// Drops the tables of dedup days that every shard dropped, unless a newer record of such a day is still to come.
    fn drop_days(&mut self) -> Result<(), StoreError> {
        for day in self.tables.dedup_days() {
            let gone = self.state.shards.iter().all(|(id, shard)| {
                self.marks.get(id).is_some_and(|marks| marks.dropped_all(day)) && !shard.has_dedup_of(day)
            });
            if gone {
                self.tables.drop_dedup(day)?;
            }
        }
        Ok(())
    }

    /// Moves the time from which all dedup records are in memory, so that what stays weighs at most `limit`, beside what
    /// came since the checkpoint began: that is not in the tables yet.
    fn forget_dedup(&mut self, limit: usize) {
        let limit = limit + self.dedup.counted * DEDUP_WEIGHT;
        let mut weight = 0;
        let mut from = self.dedup.from_ms / Recent::BUCKET_MS;
        for (bucket, count) in self.dedup.counts.iter().rev() {
            weight += count * DEDUP_WEIGHT;
            if weight > limit {
                from = from.max(bucket + 1);
                break;
            }
        }
        self.dedup.from_ms = self.dedup.from_ms.max(from * Recent::BUCKET_MS);
        self.dedup.counts = self.dedup.counts.split_off(&from);
    }

    /// Gives memory back, some shards at a time; says whether it is done.
    fn evict_slice(&mut self, evicting: &mut Evicting, budget: Budget) -> bool {
        let mut work = 0;
        let ledger = &mut self.state.ledger;
        let from_ms = self.dedup.from_ms;
        let old = |key: &DedupKey| key.id.unix_ms().unwrap_or(0) < from_ms;
        let Evicting { next, fresh, looked } = evicting;
        let new = ledger.dedup.since(*looked).take(LOOK_RECORDS);
        fresh.extend(new.filter(|(_, key)| old(key)).cloned());
        *looked = ledger.dedup.len().min(*looked + LOOK_RECORDS);
        if *looked < ledger.dedup.len() {
            return false;
        }
        for (id, shard) in self.state.shards.range_mut(*next..) {
            // Looking at a row costs about as much as writing a small one.
            if work > budget.slice / CHANGE_COST {
                *next = *id;
                return false;
            }
            work += shard.dedup.len() + shard.users.len();
            if shard.dedup.first_key_value().is_some_and(|(key, _)| old(key)) {
                let before = shard.dedup.len();
                shard
                    .dedup
                    .retain(|key, _| !old(key) || fresh.contains(&(*id, key.clone())));
                ledger.drop((before - shard.dedup.len()) * DEDUP_WEIGHT);
            }
            if ledger.resident > budget.memory {
                let freed = evict(shard, self.marks.entry(*id).or_default(), ledger.round);
                ledger.drop(freed);
            }
        }
        true
    }
}

/// Leaves to the tables what they have: items of logs and inboxes, and users that did not change in this round.
fn evict(shard: &mut ShardState, marks: &mut Marks, round: u64) -> usize {
    let mut freed = 0;
    for (origin, series) in &mut shard.logs {
        if let Some(extent) = marks.logs.get(origin) {
            freed += series.leave_behind(extent.hi);
        }
    }
    shard.users.retain(|user, known| {
        if let Some(extents) = marks.users.get(user) {
            for (origin, series) in &mut known.inbox {
                if let Some(extent) = extents.get(origin) {
                    freed += series.leave_behind(extent.hi);
                }
            }
        }
        let stays = known.noted == round || known.inbox.values().any(|series| !series.tail.is_empty());
        if !stays {
            marks.users.remove(user);
            freed += USER_WEIGHT;
        }
        stays
    });
    freed
}

/// A batch for the tables and what may still go into it; 0 left means stop.
struct Slice {
    batch: Vec<Change>,
    left: usize,
}

impl Slice {
    fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.left = self.left.saturating_sub(key.len() + value.len() + CHANGE_COST);
        self.batch.push(Change {
            table,
            key,
            value: Some(value),
        });
    }

    /// Puts the items of a series that are above its extent and at or below `to`.
    fn put_items<I>(
        &mut self,
        table: Table,
        extent: &mut Extent,
        series: &Series<I>,
        to: Seq,
        row: impl Fn(Seq, &I) -> (Vec<u8>, Vec<u8>),
    ) {
        let from = series.tail.partition_point(|(seq, _)| *seq <= extent.hi);
        for (seq, item) in series.tail.range(from..) {
            if self.left == 0 || *seq > to {
                return;
            }
            let (key, value) = row(*seq, item);
            self.put(table, key, value);
            if extent.lo >= extent.hi {
                extent.lo = seq - 1;
            }
            extent.hi = *seq;
        }
    }

    /// Deletes what the tables have of a series at or below `to`.
    fn delete(
        &mut self,
        tables: &impl Tables,
        table: Table,
        extent: &mut Extent,
        to: Seq,
        key: impl Fn(Seq) -> Vec<u8>,
    ) -> Result<(), StoreError> {
        if to <= extent.lo || self.left == 0 {
            return Ok(());
        }
        let mut at = to;
        tables.range(table, &key(extent.lo + 1), &key(to), &mut |key, _| {
            self.left = self.left.saturating_sub(key.len() + CHANGE_COST);
            self.batch.push(Change {
                table,
                key: key.to_vec(),
                value: None,
            });
            if self.left == 0 {
                at = keys::seq_of(key).map_err(|e| super::view::damaged(&e))?;
            }
            Ok(self.left > 0)
        })?;
        extent.lo = at;
        Ok(())
    }
}
