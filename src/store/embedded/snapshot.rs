//! What a snapshot reads of the state in memory and the tables below it (R11).
//!
//! Users and dedup records lie in both. Each page merges the next of the tables with the next in memory, which is newer;
//! what moves from memory to the tables between two pages is found there, and what comes to be in between lies above the
//! cut.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::record::{DedupBlock, StoredDedup, StoredUser};
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
/// Units of time in which one page looks for blocks of its shard, each at the cost of finding a place in a table.
const SEEKS: usize = 128;
const UNITS_PER_DAY: u64 = 86_400_000 / keys::DEDUP_BLOCK_MS;

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
        let (earlier, earlier_bound) = self.dedup_blocks_by_shard(after, limit)?;
        found.extend(earlier);
        let (newer, newer_bound) = self.dedup_blocks(after, limit)?;
        found.extend(newer);
        let bounds = [bound, earlier_bound, newer_bound].into_iter().flatten();
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

/// What a page has of the blocks so far.
///
/// The blocks of a unit of time may have anything of it, in any order: a page ends between two units, or where it is full
/// with what comes first.
struct Gathering<'a> {
    after: Option<&'a DedupKey>,
    limit: usize,
    found: Found,
    /// There was more than the limit: what lies behind the last one was left out.
    cut: bool,
    /// Records looked at.
    looked: usize,
}

impl<'a> Gathering<'a> {
    fn new(after: Option<&'a DedupKey>, limit: usize) -> Self {
        Self {
            after,
            limit,
            found: Found::new(),
            cut: false,
            looked: 0,
        }
    }

    fn enough(&self) -> bool {
        self.cut || self.found.len() >= self.limit || self.looked >= SCAN
    }

    /// Whether a block may have some of the page.
    fn wants(&self, (low, high): (MessageId, MessageId)) -> bool {
        let beyond = |(place, _): (&Place, _)| low > place.0;
        let passed = |after: &DedupKey| high < after.id;
        let last = self.found.last_key_value().filter(|_| self.cut);
        !self.after.is_some_and(passed) && !last.is_some_and(beyond)
    }

    fn take(&mut self, block: DedupBlock, dropped: Option<u64>) {
        self.looked += block.rows.len();
        if dropped.is_none_or(|at| block.as_of >= at) {
            let behind = |key: &DedupKey| self.after.is_none_or(|after| place(key) > place(after));
            let rows = block.rows.into_iter().filter(|(key, _)| behind(key));
            self.found
                .extend(rows.map(|(key, row)| (place(&key), (key, row))));
        }
        while self.found.len() > self.limit {
            self.found.pop_last();
            self.cut = true;
        }
    }

    /// With up to where it is complete: where it was cut, else before the first unit of time that was not looked at.
    fn end(self, not_looked_at: Option<u64>) -> (Found, Option<DedupKey>) {
        let last = self.found.last_key_value().map(|(_, (key, _))| key.clone());
        let bound = if self.cut {
            last
        } else {
            not_looked_at.map(last_before)
        };
        (self.found, bound)
    }
}

/// A key with the last id before a unit of time. Others of that id may stand behind it: a page that begins here looks at
/// the unit before once more.
fn last_before(unit: u64) -> DedupKey {
    let mut id = [u8::MAX; 16];
    let ms = (unit * keys::DEDUP_BLOCK_MS).saturating_sub(1);
    id[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    (id[6], id[8]) = (0x8f, 0xbf); // the highest that has a time
    DedupKey {
        id: MessageId(id),
        ..DedupKey::first_of(0)
    }
}

impl<T: Tables> Source<'_, T> {
    /// Days of which the shard may have records in the tables, from where a page begins: each with the first unit of time
    /// to look at and the last commit that dropped it.
    fn days(&self, after: Option<&DedupKey>) -> Vec<(u32, u64, Option<u64>)> {
        let start = after.map_or(0, |after| keys::dedup_unit(after.id));
        let marks = self.view.marks.get(&self.shard);
        let mut days = self.view.tables.dedup_days();
        days.sort_unstable();
        let dropped = |day| marks.is_some_and(|marks| marks.dropped_all(day));
        days.retain(|day| after.is_none_or(|after| *day >= after.day()) && !dropped(*day));
        let known = |day| {
            let start = start.max(u64::from(day) * UNITS_PER_DAY);
            (day, start, marks.and_then(|marks| marks.dropped_at(day)))
        };
        days.into_iter().map(known).collect()
    }

    /// Records in the blocks of the tables, and up to where they are complete; `None` where nothing lies behind.
    ///
    /// Blocks of all shards stand unit by unit: this seeks the shard's in each unit that exists.
    fn dedup_blocks(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(Found, Option<DedupKey>), StoreError> {
        let mut page = Gathering::new(after, limit);
        let end = keys::dedup_blocks_end();
        let mut seeks = 0;
        for (day, start, dropped) in self.days(after) {
            let mut next = Some(start);
            while let Some(unit) = next.take() {
                if page.enough() || seeks >= SEEKS {
                    return Ok(page.end(Some(unit)));
                }
                seeks += 1;
                let (from, _) = keys::dedup_blocks(unit, self.shard);
                let visit = &mut |raw: &[u8], value: Bytes| {
                    let (of, shard) = keys::dedup_block_place(raw)
                        .ok_or_else(|| damaged(&keys::RowError::Key("dedup block")))?;
                    if (of, shard) != (unit, self.shard) {
                        // In that unit the shard's blocks stand behind this one, or there are none.
                        next = Some(if shard > self.shard { of + 1 } else { of });
                        return Ok(false);
                    }
                    if page.wants(keys::dedup_block_ids(raw).map_err(|e| damaged(&e))?) {
                        page.take(self.view.dedup_block(&value)?, dropped);
                    }
                    Ok(true)
                };
                self.view.tables.range(Table::Dedup(day), &from, &end, visit)?;
            }
        }
        Ok(page.end(None))
    }

    /// The same of blocks of earlier builds, in which those of a shard stand together.
    fn dedup_blocks_by_shard(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(Found, Option<DedupKey>), StoreError> {
        let mut page = Gathering::new(after, limit);
        for (day, start, dropped) in self.days(after) {
            let (from, to) = keys::dedup_blocks_by_shard(self.shard, start, u64::MAX);
            let (mut unit, mut stopped) = (start, None);
            let visit = &mut |raw: &[u8], value: Bytes| {
                let ids = keys::dedup_block_ids(raw).map_err(|e| damaged(&e))?;
                let of = keys::dedup_unit(ids.0);
                if of != unit && page.enough() {
                    stopped = Some(of);
                    return Ok(false);
                }
                unit = of;
                if page.wants(ids) {
                    page.take(self.view.dedup_block(&value)?, dropped);
                }
                Ok(true)
            };
            self.view.tables.range(Table::Dedup(day), &from, &to, visit)?;
            if stopped.is_some() || page.cut {
                return Ok(page.end(stopped));
            }
        }
        Ok(page.end(None))
    }

    /// The same of records by themselves, of builds before blocks.
    fn single_dedup(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(Found, Option<DedupKey>), StoreError> {
        let mut found = Found::new();
        let mut looked = 0;
        for (day, _, dropped) in self.days(after) {
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
