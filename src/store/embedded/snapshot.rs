//! What a snapshot reads of the state in memory and the tables below it (R11).
//!
//! Users and dedup records lie in both. Each page merges the next of the tables with the next in memory, which is newer;
//! what moves from memory to the tables between two pages is found there, and what comes to be in between lies above the
//! cut.

use std::collections::BTreeMap;

use super::record::{StoredDedup, StoredUser};
use super::tables::{Table, Tables};
use super::view::{View, damaged};
use crate::core::ids::{MessageId, Origin, Seq, ShardId, UserId};
use crate::core::snapshot::Cut;
use crate::core::state::{DedupKey, DedupRow, ShardRow, UserRow};
use crate::core::vector::Vector;
use crate::store::engine::{InboxPage, LogPage, StoreError};
use crate::store::keys;
use crate::store::paging::Room;
use crate::store::snapshot::{self, DedupRows, order};

/// Dedup records that one page looks at: a day's table holds those of all shards, so most are others'. A commit waits for
/// a page, and this takes a few milliseconds.
const SCAN: usize = 8 * 1024;

/// A shard to be read.
pub(super) struct Source<'a, T> {
    pub(super) view: &'a View<T>,
    pub(super) shard: ShardId,
}

impl<T: Tables> snapshot::Source for Source<'_, T> {
    fn head(&self) -> Result<ShardRow, StoreError> {
        let shard = self.view.state.shards.get(&self.shard);
        Ok(shard.map(|shard| shard.row.clone()).unwrap_or_default())
    }

    fn hash_at(&self, origin: Origin, seq: Seq) -> Result<u64, StoreError> {
        match self.view.read_log(self.shard, origin, seq, Room::new(1, 1))? {
            LogPage::Run { before, .. } => Ok(before),
            LogPage::Trimmed { floor } => Err(StoreError::Corrupt(format!(
                "the log of {origin:?} is trimmed to {floor}, and its row says that it has {seq}"
            ))),
        }
    }

    fn dedup(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(DedupRows, Option<DedupKey>), StoreError> {
        let (mut found, bound) = self.single_dedup(after, limit)?;
        let (newer, newer_bound) = self.dedup_blocks(after, limit)?;
        found.extend(newer);
        let bounds = [bound, newer_bound].into_iter().flatten();
        let mut bound = bounds.min_by_key(place);
        if let Some(bound) = &bound {
            let last = place(bound);
            found.retain(|at, _| *at <= last);
        }
        if found.len() > limit {
            found = found.into_iter().take(limit).collect();
            bound = found.last_key_value().map(|(_, (key, _))| key.clone());
        }
        let behind = |key: &DedupKey| after.is_none_or(|after| place(key) > place(after));
        let before = |key: &DedupKey| bound.as_ref().is_none_or(|bound| place(key) <= place(bound));
        let first = DedupKey {
            id: after.map_or(MessageId([0; 16]), |after| after.id),
            ..DedupKey::first_of(0)
        };
        if let Some(shard) = self.view.state.shards.get(&self.shard) {
            let mut last: Option<MessageId> = None;
            for (key, row) in shard.dedup.range(first..) {
                // Keys of one id may stand in another order here than in the tables: they are taken together.
                let full = found.len() >= 2 * limit && last != Some(key.id);
                if full || bound.as_ref().is_some_and(|bound| key.id > bound.id) {
                    break;
                }
                if behind(key) && before(key) {
                    found.insert(place(key), (key.clone(), row.clone()));
                }
                last = Some(key.id);
            }
        }
        let more = found.len() > limit;
        let rows: DedupRows = found.into_values().take(limit).collect();
        let next = if more {
            rows.last().map(|(key, _)| key.clone())
        } else {
            bound
        };
        Ok((rows, next))
    }

    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, StoreError> {
        let (mut from, to) = keys::users(self.shard);
        if let Some(after) = after {
            from = keys::user(self.shard, after);
        }
        let mut found: Vec<UserId> = Vec::new();
        self.view.tables.range(Table::Users, &from, &to, &mut |key, _| {
            let user = keys::user_of(key).map_err(|e| damaged(&e))?;
            if Some(&user) != after {
                found.push(user);
            }
            Ok(found.len() < limit)
        })?;
        if let Some(shard) = self.view.state.shards.get(&self.shard) {
            let behind = |user: &&UserId| after.is_none_or(|after| order(user) > order(after));
            let bound = found.last().filter(|_| found.len() == limit).cloned();
            let before = |user: &&UserId| bound.as_ref().is_none_or(|bound| order(user) <= order(bound));
            let users = shard.users.keys().filter(behind).filter(before);
            found.extend(users.cloned());
        }
        found.sort_unstable_by(|a, b| order(a).cmp(&order(b)));
        found.dedup();
        found.truncate(limit);
        Ok(found)
    }

    fn user(&self, user: &UserId) -> Result<UserRow, StoreError> {
        let shard = self.view.state.shards.get(&self.shard);
        if let Some(known) = shard.and_then(|shard| shard.users.get(user)) {
            return Ok(known.row.clone());
        }
        let stored = self.view.stored_user(self.shard, user)?;
        Ok(stored.map(|StoredUser { row, .. }| row).unwrap_or_default())
    }

    fn inbox_ends(&self, user: &UserId) -> Result<BTreeMap<Origin, Seq>, StoreError> {
        let shard = self.view.state.shards.get(&self.shard);
        if let Some(known) = shard.and_then(|shard| shard.users.get(user)) {
            let inbox = known.inbox.iter();
            return Ok(inbox.map(|(origin, series)| (*origin, series.last())).collect());
        }
        let stored = self.view.stored_user(self.shard, user)?;
        let extents = stored.into_iter().flat_map(|user| user.inbox);
        Ok(extents.map(|(origin, extent)| (origin, extent.hi)).collect())
    }

    fn inbox(&self, user: &UserId, after: &Vector, cut: &Cut, room: Room) -> Result<InboxPage, StoreError> {
        self.view.read_inbox(self.shard, user, after, Some(cut), room)
    }
}

type Place = (MessageId, usize, UserId, usize, UserId);
type Found = BTreeMap<Place, (DedupKey, DedupRow)>;

/// The order of the tables.
fn place(key: &DedupKey) -> Place {
    let len = |user: &UserId| user.as_str().len();
    let (recipient, sender) = (&key.recipient, &key.sender);
    (
        key.id,
        len(recipient),
        recipient.clone(),
        len(sender),
        sender.clone(),
    )
}

impl<T: Tables> Source<'_, T> {
    /// Records in the blocks of the tables, and the last key that was looked at; `None` where nothing lies behind.
    ///
    /// The blocks of a unit of time may have anything of it, in any order: a page ends between two units, or where it is
    /// full with what comes first.
    fn dedup_blocks(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(Found, Option<DedupKey>), StoreError> {
        let mut found = Found::new();
        let mut cut = false;
        let last = |found: &Found| found.last_key_value().map(|(_, (key, _))| key.clone());
        let start = after.map_or(MessageId([0; 16]), |after| after.id);
        let mut days = self.view.tables.dedup_days();
        days.sort_unstable();
        let first_day = after.map_or(0, DedupKey::day);
        for day in days.into_iter().filter(|day| *day >= first_day) {
            let marks = self.view.marks.get(&self.shard);
            if marks.is_some_and(|marks| marks.dropped_all(day)) {
                continue;
            }
            let dropped = marks.and_then(|marks| marks.dropped_at(day));
            let from = keys::dedup_blocks_from(self.shard, start);
            let to = keys::dedup_blocks_to(self.shard, None);
            let (mut unit, mut looked, mut stopped) = (None, 0, false);
            self.view
                .tables
                .range(Table::Dedup(day), &from, &to, &mut |raw, value| {
                    let (low, high) = keys::dedup_block_ids(raw).map_err(|e| damaged(&e))?;
                    let enough = cut || found.len() >= limit || (looked >= SCAN && !found.is_empty());
                    let of = low.unix_ms().unwrap_or(0) / keys::DEDUP_BLOCK_MS;
                    if enough && unit.replace(of).is_some_and(|unit| unit != of) {
                        stopped = true;
                        return Ok(false);
                    }
                    unit = Some(of);
                    let beyond = cut && found.last_key_value().is_some_and(|(place, _)| low > place.0);
                    if high < start || beyond {
                        return Ok(true);
                    }
                    let block = self.view.dedup_block(&value)?;
                    looked += block.rows.len();
                    if dropped.is_none_or(|at| block.as_of >= at) {
                        let rows = block.rows.into_iter();
                        let behind =
                            rows.filter(|(key, _)| after.is_none_or(|after| place(key) > place(after)));
                        found.extend(behind.map(|(key, row)| (place(&key), (key, row))));
                    }
                    while found.len() > limit {
                        found.pop_last();
                        cut = true;
                    }
                    Ok(true)
                })?;
            if stopped || cut || found.len() >= limit {
                let bound = last(&found);
                return Ok((found, bound));
            }
        }
        Ok((found, None))
    }

    /// The same of records by themselves, of builds before blocks.
    fn single_dedup(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(Found, Option<DedupKey>), StoreError> {
        let mut found = Found::new();
        let mut looked = 0;
        let first_day = after.map_or(0, DedupKey::day);
        let mut days = self.view.tables.dedup_days();
        days.sort_unstable();
        for day in days.into_iter().filter(|day| *day >= first_day) {
            let marks = self.view.marks.get(&self.shard);
            if marks.is_some_and(|marks| marks.dropped_all(day)) {
                continue;
            }
            let dropped = marks.and_then(|marks| marks.dropped_at(day));
            let from = match after {
                Some(after) if after.day() == day => keys::dedup_in_day(ShardId(u32::MAX), after),
                _ => vec![b'd'],
            };
            let mut stopped = None;
            self.view
                .tables
                .range(Table::Dedup(day), &from, b"e", &mut |raw, value| {
                    looked += 1;
                    let (shard, key) = keys::dedup_in_day_of(raw).map_err(|e| damaged(&e))?;
                    let full = looked >= SCAN || found.len() + 1 >= limit;
                    if full {
                        stopped = Some(key.clone());
                    }
                    if shard != self.shard {
                        return Ok(!full);
                    }
                    let stored: StoredDedup =
                        keys::decode("dedup record", &value).map_err(|e| damaged(&e))?;
                    self.view.check_age(stored.as_of)?;
                    if dropped.is_none_or(|at| stored.as_of >= at) {
                        found.insert(place(&key), (key, stored.row));
                    }
                    Ok(!full)
                })?;
            if stopped.is_some() {
                return Ok((found, stopped));
            }
        }
        Ok((found, None))
    }
}
