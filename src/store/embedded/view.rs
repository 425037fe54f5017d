//! The state in memory over the tables: loading what commits need, and reading.
//!
//! In memory are all shard rows, the users and dedup records that were used lately, and of each log and inbox the newer
//! items. Older items lie behind, in the tables ([`Series::behind`](crate::core::state::Series)); a commit that needs
//! some of them gets a page, dropped after it. Of dedup, every record with an id time from `dedup_from_ms` on is in
//! memory, so an id that is new needs no look into the tables.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::checkpoint::Checkpoint;
use super::record::{DedupBlock, Extents, StoredDedup, StoredShard, StoredUser};
use super::snapshot::Source;
use super::tables::{Table, Tables};
use crate::core::commit::{CONSUME_STEP, HOLDER_LOOK, Need, StoreOp, TRIM_STEP, needs, needs_more};
use crate::core::ids::{Origin, Seq, ShardId, UserId};
use crate::core::op::{LogItem, LoggedOp, MessageHead};
use crate::core::snapshot::Cut;
use crate::core::state::{
    DEDUP_WEIGHT, DedupKey, Next, Series, ShardState, State, StoreIdentity, USER_WEIGHT, UserRow, UserState,
};
use crate::core::vector::Vector;
use crate::store::engine::{InboxPage, LogPage, Read, ReadReply, StoreError};
use crate::store::keys::{self, LogValue, RowError};
use crate::store::paging::{Room, Window, first_page, inbox_page, log_page};
use crate::store::snapshot;

/// Items that a read takes from the tables at once.
const CHUNK: usize = 128;
/// A user that has so many messages among those has them read in one go: to find the first takes about as long as some that are
/// looked up one by one.
const TOGETHER: usize = 4;

/// The state and what is known of the tables.
#[derive(Debug)]
pub(super) struct View<T> {
    pub(super) state: State,
    pub(super) tables: T,
    pub(super) marks: BTreeMap<ShardId, Marks>,
    /// Number of the last commit that was applied.
    pub(super) last: u64,
    pub(super) dedup: Recent,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Bytes written to the tables since their last flush began.
    pub(super) unflushed: usize,
    /// What the checkpoint under way, or the last one, took of the budgets of its slices, in bytes.
    pub(super) spent: u64,
    /// Pages and rows taken from the tables.
    pub(super) loads: u64,
    paged: Vec<Paged>,
}

/// Where the tables have items of a shard.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) logs: Extents,
    /// To which day dedup was dropped, with the commit: records of these days that were written before it count no more.
    /// More than one only while a journal is replayed.
    pub(super) dropped: BTreeMap<u32, u64>,
    /// Dropped days of which a record was written later.
    pub(super) revived: BTreeSet<u32>,
    /// Of users in memory; one without an entry has no items in the tables.
    pub(super) users: BTreeMap<UserId, Extents>,
    /// Messages that were replaced by holes and may still lie in the tables: from one sequence to another.
    pub(super) holes: BTreeMap<UserId, Vec<(Origin, Seq, Seq)>>,
}

impl Marks {
    /// All days to this one were dropped in a commit.
    pub(super) fn drop_through(&mut self, day: u32, commit: u64) {
        self.revived.retain(|revived| *revived > day);
        self.dropped.retain(|to, _| *to > day);
        self.dropped.insert(day, commit);
    }

    /// The last commit that dropped a day.
    pub(super) fn dropped_at(&self, day: u32) -> Option<u64> {
        self.dropped.range(day..).map(|(_, commit)| *commit).max()
    }

    /// Whether the shard has no record of a day in the tables that counts.
    pub(super) fn dropped_all(&self, day: u32) -> bool {
        self.dropped_at(day).is_some() && !self.revived.contains(&day)
    }
}

/// Which dedup records are in memory.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// All whose id has this time or a later one, unix milliseconds.
    pub(super) from_ms: u64,
    /// The latest time of an id in the tables.
    pub(super) newest_ms: u64,
    /// How many records were added, by time of their ids in units of [`Recent::BUCKET_MS`].
    pub(super) counts: BTreeMap<u64, usize>,
    /// So many of the ledger's records are in the counts: those that came since the last checkpoint began.
    pub(super) counted: usize,
    /// Blocks of records that the checkpoint under way, or the last one, wrote.
    pub(super) blocks: u32,
}

impl Recent {
    /// Width of a bucket: fine enough to keep a second's worth more or less.
    pub(super) const BUCKET_MS: u64 = 1024;
}

#[derive(Debug)]
enum Paged {
    Log(ShardId, Origin),
    Inbox(ShardId, UserId, Origin),
}

impl<T: Tables> View<T> {
    pub(super) fn new(identity: StoreIdentity, tables: T) -> Self {
        Self {
            state: State::new(identity),
            tables,
            marks: BTreeMap::new(),
            last: 0,
            dedup: Recent::default(),
            checkpoint: None,
            unflushed: 0,
            spent: 0,
            loads: 0,
            paged: Vec::new(),
        }
    }

    /// Loads every shard row; gives the last commit that each includes.
    pub(super) fn load_shards(&mut self) -> Result<BTreeMap<ShardId, u64>, StoreError> {
        let mut rows = Vec::new();
        let from = keys::shard(ShardId(0));
        let to = keys::shard(ShardId(u32::MAX));
        self.tables.range(Table::Shards, &from, &to, &mut |key, value| {
            let shard = keys::shard_of(key).map_err(|e| damaged(&e))?;
            rows.push((shard, decode::<StoredShard>("shard row", &value)?));
            Ok(true)
        })?;
        let mut as_of = BTreeMap::new();
        for (id, stored) in rows {
            let mut shard = ShardState::default();
            for (origin, log) in &stored.row.logs {
                shard.logs.insert(*origin, behind(log.seq));
            }
            shard.row = stored.row;
            self.state.shards.insert(id, shard);
            let marks = self.marks.entry(id).or_default();
            marks.logs = stored.logs;
            marks.dropped = stored.dropped;
            marks.revived = stored.revived;
            as_of.insert(id, stored.as_of);
        }
        Ok(as_of)
    }

    /// Loads all that a batch needs.
    pub(super) fn load(&mut self, ops: &[StoreOp]) -> Result<(), StoreError> {
        let first = needs(ops, &self.state);
        self.load_needs(first)?;
        let second = needs_more(ops, &self.state);
        self.load_needs(second)
    }

    /// Drops the pages that were loaded.
    pub(super) fn drop_pages(&mut self) {
        for paged in self.paged.drain(..) {
            match paged {
                Paged::Log(id, origin) => {
                    let shard = self.state.shards.get_mut(&id);
                    if let Some(series) = shard.and_then(|shard| shard.logs.get_mut(&origin)) {
                        series.drop_pages();
                    }
                }
                Paged::Inbox(id, user, origin) => {
                    let shard = self.state.shards.get_mut(&id);
                    let known = shard.and_then(|shard| shard.users.get_mut(&user));
                    if let Some(series) = known.and_then(|known| known.inbox.get_mut(&origin)) {
                        series.drop_pages();
                    }
                }
            }
        }
    }

    /// Loads a user where it is not in memory; gives the last commit that its stored row includes, if it was loaded.
    pub(super) fn load_user(&mut self, id: ShardId, user: &UserId) -> Result<Option<u64>, StoreError> {
        let shard = self.state.shards.entry(id).or_default();
        if shard.users.contains_key(user) {
            return Ok(None);
        }
        let Some(stored) = self.stored_user(id, user)? else {
            return Ok(None);
        };
        let mut known = UserState {
            row: stored.row,
            ..UserState::default()
        };
        for (origin, extent) in &stored.inbox {
            known.inbox.insert(*origin, behind(extent.hi));
        }
        if !stored.inbox.is_empty() {
            let marks = self.marks.entry(id).or_default();
            marks.users.insert(user.clone(), stored.inbox);
        }
        let shard = self.state.shards.entry(id).or_default();
        shard.users.insert(user.clone(), Box::new(known));
        self.state.ledger.resident += USER_WEIGHT;
        self.loads += 1;
        Ok(Some(stored.as_of))
    }

    /// Loads a dedup record where there is one that is not in memory.
    pub(super) fn load_dedup(&mut self, id: ShardId, key: DedupKey) -> Result<(), StoreError> {
        if key.id.unix_ms().unwrap_or(0) >= self.dedup.from_ms {
            return Ok(());
        }
        let known = self.state.shards.get(&id);
        if known.is_some_and(|shard| shard.dedup.contains_key(&key)) {
            return Ok(());
        }
        let day = key.day();
        let Some(stored) = self.stored_dedup(id, &key)? else {
            return Ok(());
        };
        let dropped = self.marks.get(&id).and_then(|marks| marks.dropped_at(day));
        if dropped.is_none_or(|at| stored.as_of >= at) {
            let shard = self.state.shards.entry(id).or_default();
            shard.dedup.insert(key, stored.row);
            self.state.ledger.resident += DEDUP_WEIGHT;
            self.loads += 1;
        }
        Ok(())
    }

    /// The record of a key in the tables: of the blocks that may have it the last one that does.
    fn stored_dedup(&self, id: ShardId, key: &DedupKey) -> Result<Option<StoredDedup>, StoreError> {
        let table = Table::Dedup(key.day());
        let from = keys::dedup_blocks_from(id, key.id);
        let to = keys::dedup_blocks_to(id, Some(key.id));
        let mut found = None;
        self.tables.range(table, &from, &to, &mut |raw, value| {
            let (first, last) = keys::dedup_block_ids(raw).map_err(|e| damaged(&e))?;
            if (first..=last).contains(&key.id) {
                let mut block = self.dedup_block(&value)?;
                if let Ok(at) = block.rows.binary_search_by(|(known, _)| known.cmp(key)) {
                    found = Some(StoredDedup {
                        as_of: block.as_of,
                        row: block.rows.swap_remove(at).1,
                    });
                }
            }
            Ok(true)
        })?;
        if found.is_none()
            && let Some(value) = self.tables.get(table, &keys::dedup_in_day(id, key))?
        {
            let stored: StoredDedup = decode("dedup record", &value)?;
            self.check_age(stored.as_of)?;
            found = Some(stored);
        }
        Ok(found)
    }

    pub(super) fn dedup_block(&self, value: &[u8]) -> Result<DedupBlock, StoreError> {
        let block: DedupBlock = decode("dedup block", value)?;
        self.check_age(block.as_of)?;
        Ok(block)
    }

    /// Answers a read.
    pub(super) fn read(&self, read: &Read) -> Result<ReadReply, StoreError> {
        let shard = |id: &ShardId| self.state.shards.get(id);
        Ok(match read {
            Read::Shard(id) => {
                let row = shard(id).map(|shard| shard.row.clone());
                ReadReply::Shard(Box::new(row.unwrap_or_default()))
            }
            Read::User(id, user) => {
                let known = shard(id).and_then(|shard| shard.users.get(user));
                let mut row = match known {
                    Some(known) => known.row.clone(),
                    None => self
                        .stored_user(*id, user)?
                        .map(|user| user.row)
                        .unwrap_or_default(),
                };
                if let Some(shard) = shard(id) {
                    row.strip(&shard.row.old.retired);
                }
                ReadReply::User(Box::new(row))
            }
            Read::Needed {
                shard,
                origins,
                stored,
                from,
            } => {
                let source = Source {
                    view: self,
                    shard: *shard,
                };
                ReadReply::Needed(snapshot::needed(&source, origins, *stored, from.as_ref())?)
            }
            Read::Inbox {
                shard: id,
                user,
                after,
                max_items,
                max_bytes,
            } => {
                let room = Room::new(*max_items, *max_bytes);
                ReadReply::Inbox(self.read_inbox(*id, user, after, None, room)?)
            }
            Read::Log {
                shard: id,
                origin,
                after,
                max_items,
                max_bytes,
            } => {
                let room = Room::new(*max_items, *max_bytes);
                ReadReply::Log(self.read_log(*id, *origin, *after, room)?)
            }
            Read::Users {
                shard,
                after,
                max_items,
            } => {
                let source = Source {
                    view: self,
                    shard: *shard,
                };
                ReadReply::Users(snapshot::times(&source, after.as_ref(), *max_items)?)
            }
            Read::Snapshot {
                shard,
                cut,
                after,
                max_items,
                max_bytes,
            } => {
                let source = Source {
                    view: self,
                    shard: *shard,
                };
                let (cut, page) = snapshot::page(&source, cut.as_ref(), after, *max_items, *max_bytes)?;
                ReadReply::Snapshot(cut, Box::new(page))
            }
        })
    }

    fn load_needs(&mut self, needs: Vec<Need>) -> Result<(), StoreError> {
        let mut logs: BTreeMap<(ShardId, Origin), Window> = BTreeMap::new();
        let mut firsts = Vec::new();
        let mut inboxes: BTreeMap<(ShardId, UserId, Origin), Window> = BTreeMap::new();
        for need in needs {
            match need {
                Need::User(id, user) => {
                    self.load_user(id, &user)?;
                }
                Need::Dedup(id, key) => self.load_dedup(id, key)?,
                Need::Log(id, origin, after, to) => {
                    let shard = self.state.shards.get(&id);
                    let series = shard.and_then(|shard| shard.logs.get(&origin));
                    if series.is_some_and(|series| after < series.behind) {
                        let window = logs.entry((id, origin));
                        window.or_insert(Window::of(after, to)).add(after, to);
                    }
                }
                Need::First(id, origin, after) => {
                    let shard = self.state.shards.get(&id);
                    let series = shard.and_then(|shard| shard.logs.get(&origin));
                    if series.is_some_and(|series| after < series.behind) {
                        firsts.push((id, origin, after));
                    }
                }
                Need::Inbox(id, user, origin, after) => {
                    let known = self
                        .state
                        .shards
                        .get(&id)
                        .and_then(|shard| shard.users.get(&user));
                    let series = known.and_then(|known| known.inbox.get(&origin));
                    if series.is_some_and(|series| after < series.behind) {
                        let window = inboxes.entry((id, user, origin));
                        window.or_insert(Window::of(after, Seq::MAX)).add(after, Seq::MAX);
                    }
                }
            }
        }
        for ((id, origin), window) in logs {
            let behind = self.state.shards[&id].logs[&origin].behind;
            let to = behind.min(window.to);
            let rows = self.log_rows(id, origin, window.after, to, window.most(TRIM_STEP), usize::MAX)?;
            let items = rows.into_iter().map(|row| self.log_item(id, origin, row));
            let page = window.page(TRIM_STEP, behind).fill(items)?;
            let shard = self.state.shards.get_mut(&id);
            if let Some(series) = shard.and_then(|shard| shard.logs.get_mut(&origin)) {
                series.page = Some(page);
                self.paged.push(Paged::Log(id, origin));
            }
            self.loads += 1;
        }
        for (id, origin, after) in firsts {
            let behind = self.state.shards[&id].logs[&origin].behind;
            let rows = self.log_rows(id, origin, after, behind, HOLDER_LOOK, usize::MAX)?;
            let items = rows.into_iter().map(|row| self.log_item(id, origin, row));
            let page = first_page(after, behind, items)?;
            let shard = self.state.shards.get_mut(&id);
            if let Some(series) = shard.and_then(|shard| shard.logs.get_mut(&origin)) {
                series.ahead.push(page);
                self.paged.push(Paged::Log(id, origin));
            }
            self.loads += 1;
        }
        for ((id, user, origin), window) in inboxes {
            let behind = self.state.shards[&id].users[&user].inbox[&origin].behind;
            let mut page = window.page(CONSUME_STEP, behind);
            self.visit_inbox(id, &user, origin, window.after, behind, |seq, op| {
                page.push(seq, op)
            })?;
            let shard = self.state.shards.get_mut(&id);
            let known = shard.and_then(|shard| shard.users.get_mut(&user));
            if let Some(series) = known.and_then(|known| known.inbox.get_mut(&origin)) {
                series.page = Some(page.finish());
                self.paged.push(Paged::Inbox(id, user, origin));
            }
            self.loads += 1;
        }
        Ok(())
    }

    /// `cut`: only messages below it.
    pub(super) fn read_inbox(
        &self,
        id: ShardId,
        user: &UserId,
        after: &Vector,
        cut: Option<&Cut>,
        room: Room,
    ) -> Result<InboxPage, StoreError> {
        let known = self.state.shards.get(&id).and_then(|shard| shard.users.get(user));
        let stored;
        let (row, series): (&UserRow, Inbox<'_>) = match known {
            Some(known) => {
                let series = known.inbox.iter();
                let series = series.map(|(origin, series)| (*origin, (series.behind, Some(series))));
                (&known.row, series.collect())
            }
            None => {
                let Some(row) = self.stored_user(id, user)? else {
                    return Ok(InboxPage {
                        end: true,
                        ..InboxPage::default()
                    });
                };
                stored = row;
                let extents = stored.inbox.iter();
                let series = extents.map(|(origin, extent)| (*origin, (extent.hi, None)));
                (&stored.row, series.collect())
            }
        };
        let chunk = CHUNK.min(room.items() + 1);
        let mut ahead: BTreeMap<Origin, VecDeque<(Seq, LoggedOp)>> = BTreeMap::new();
        let retired = self.state.shards.get(&id).map(|shard| &shard.row.old.retired);
        let none = BTreeMap::new();
        let retired = retired.unwrap_or(&none);
        inbox_page(
            row,
            retired,
            series.keys().copied(),
            after,
            room,
            |origin, after| {
                let (behind, series) = &series[&origin];
                let ahead = ahead.entry(origin).or_default();
                if ahead.is_empty() && after < *behind {
                    self.visit_inbox(id, user, origin, after, *behind, |seq, op| {
                        ahead.push_back((seq, op));
                        ahead.len() < chunk
                    })?;
                }
                let below = |seq: Seq| cut.is_none_or(|cut| seq <= cut.seq(origin));
                if let Some(item) = ahead.pop_front() {
                    return Ok(Some(item).filter(|(seq, _)| below(*seq)));
                }
                match series.map(|series| series.next(after.max(*behind))) {
                    Some(Next::Item(seq, op)) if below(seq) => Ok(Some((seq, op.clone()))),
                    _ => Ok(None),
                }
            },
        )
    }

    pub(super) fn read_log(
        &self,
        id: ShardId,
        origin: Origin,
        after: Seq,
        room: Room,
    ) -> Result<LogPage, StoreError> {
        let shard = self.state.shards.get(&id);
        let series = shard.and_then(|shard| shard.logs.get(&origin));
        let row = shard.and_then(|shard| shard.row.logs.get(&origin));
        let behind = series.map_or(0, |series| series.behind);
        // Of what is not in memory few are given at once: whoever commits meanwhile waits for it.
        let room = if after < behind { room.at_most(CHUNK) } else { room };
        let chunk = CHUNK.min(room.items() + 1);
        let bytes = room.bytes();
        let mut ahead: VecDeque<(Seq, u64, LoggedOp)> = VecDeque::new();
        log_page(row, after, room, |after| {
            if ahead.is_empty() && after < behind {
                let rows = self.log_rows(id, origin, after, behind, chunk, bytes)?;
                ahead = self.log_entries(id, origin, rows)?;
            }
            if let Some(entry) = ahead.pop_front() {
                return Ok(Some(entry));
            }
            match series.map(|series| series.next(after.max(behind))) {
                Some(Next::Item(seq, (hash, item))) => Ok(item.op().map(|op| (seq, *hash, op.clone()))),
                _ => Ok(None),
            }
        })
    }

    pub(super) fn stored_user(&self, id: ShardId, user: &UserId) -> Result<Option<StoredUser>, StoreError> {
        let Some(value) = self.tables.get(Table::Users, &keys::user(id, user))? else {
            return Ok(None);
        };
        let stored: StoredUser = decode("user row", &value)?;
        self.check_age(stored.as_of)?;
        Ok(Some(stored))
    }

    /// A row of a commit that the journal never had comes from newer tables than the journal.
    pub(super) fn check_age(&self, as_of: u64) -> Result<(), StoreError> {
        if as_of > self.last {
            return Err(StoreError::Corrupt(format!(
                "a row in {} includes commit {as_of}, the journal ends at {}: the tables are newer than the journal; \
                 restore both from the same moment",
                self.tables.location(),
                self.last
            )));
        }
        Ok(())
    }

    fn visit_inbox(
        &self,
        id: ShardId,
        user: &UserId,
        origin: Origin,
        after: Seq,
        to: Seq,
        mut visit: impl FnMut(Seq, LoggedOp) -> bool,
    ) -> Result<(), StoreError> {
        let from = keys::inbox(id, user, origin, after + 1);
        let to = keys::inbox(id, user, origin, to);
        self.tables.range(Table::Inbox, &from, &to, &mut |key, value| {
            let seq = keys::seq_of(key).map_err(|e| damaged(&e))?;
            Ok(visit(seq, keys::decode_inbox(&value).map_err(|e| damaged(&e))?))
        })
    }

    /// At most `max` entries in `(after, to]`, and none behind the one with which they have more than so many bytes.
    fn log_rows(
        &self,
        id: ShardId,
        origin: Origin,
        after: Seq,
        to: Seq,
        max: usize,
        max_bytes: usize,
    ) -> Result<Vec<LogRow>, StoreError> {
        let from = keys::log(id, origin, after + 1);
        let to = keys::log(id, origin, to);
        let mut rows = Vec::new();
        let mut bytes = 0_usize;
        self.tables.range(Table::Log, &from, &to, &mut |key, value| {
            let seq = keys::seq_of(key).map_err(|e| damaged(&e))?;
            let (hash, value) = keys::decode_log(&value).map_err(|e| damaged(&e))?;
            bytes += match &value {
                LogValue::Inline(op) => op.len(),
                LogValue::Message(head) => head.len as usize,
                LogValue::Inbox(_) => 0,
            };
            rows.push((seq, hash, value));
            Ok(rows.len() < max && bytes <= max_bytes)
        })?;
        Ok(rows)
    }

    /// An entry as a commit needs it.
    fn log_item(
        &self,
        id: ShardId,
        origin: Origin,
        (seq, hash, value): LogRow,
    ) -> Result<(Seq, (u64, LogItem)), StoreError> {
        let item = match value {
            LogValue::Inline(op) => LogItem::Op(op),
            LogValue::Message(head) => LogItem::Message(Box::new(head)),
            LogValue::Inbox(user) => LogItem::Op(self.message(id, &user, origin, seq)?),
        };
        Ok((seq, (hash, item)))
    }

    /// Entries with the bodies of their messages, which the tables have in the inboxes. Those of a user that has many among them
    /// stand together there, and are read at once.
    fn log_entries(
        &self,
        id: ShardId,
        origin: Origin,
        rows: Vec<LogRow>,
    ) -> Result<VecDeque<(Seq, u64, LoggedOp)>, StoreError> {
        let mut spans: BTreeMap<&UserId, (usize, Seq, Seq)> = BTreeMap::new();
        for (seq, _, value) in &rows {
            if let LogValue::Message(MessageHead { to: user, .. }) | LogValue::Inbox(user) = value {
                let span = spans.entry(user).or_insert((0, *seq, *seq));
                *span = (span.0 + 1, span.1, *seq);
            }
        }
        let mut found: BTreeMap<Seq, LoggedOp> = BTreeMap::new();
        for (user, (count, first, last)) in spans {
            if count < TOGETHER {
                continue;
            }
            self.visit_inbox(id, user, origin, first - 1, last, |seq, op| {
                found.insert(seq, op);
                true
            })?;
        }
        let entries = rows.into_iter().map(|(seq, hash, value)| {
            let op = match value {
                LogValue::Inline(op) => op,
                LogValue::Message(MessageHead { to: user, .. }) | LogValue::Inbox(user) => {
                    match found.remove(&seq) {
                        Some(op) => op,
                        None => self.message(id, &user, origin, seq)?,
                    }
                }
            };
            Ok((seq, hash, op))
        });
        entries.collect()
    }

    fn message(&self, id: ShardId, user: &UserId, origin: Origin, seq: Seq) -> Result<LoggedOp, StoreError> {
        let value = self
            .tables
            .get(Table::Inbox, &keys::inbox(id, user, origin, seq))?;
        let value = value.ok_or_else(|| {
            StoreError::Corrupt(format!(
                "log entry {origin:?}:{seq} of shard {id} has no message in the inbox of {user}"
            ))
        })?;
        keys::decode_inbox(&value).map_err(|e| damaged(&e))
    }
}

/// A log entry in the tables: sequence, running hash, and what stands there.
type LogRow = (Seq, u64, LogValue);
/// For each origin of a user where the part in the tables ends, and the part in memory.
type Inbox<'a> = BTreeMap<Origin, (Seq, Option<&'a Series<LoggedOp>>)>;

pub(super) fn damaged(error: &RowError) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

fn decode<'de, R: serde::Deserialize<'de>>(what: &'static str, value: &'de [u8]) -> Result<R, StoreError> {
    keys::decode(what, value).map_err(|e| damaged(&e))
}

fn behind<I>(seq: Seq) -> Series<I> {
    Series {
        behind: seq,
        ..Series::default()
    }
}
