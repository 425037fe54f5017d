//! From rows in bytes to the state that a commit judges.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::disk::Rows;
use crate::core::commit::{CONSUME_STEP, Need, TRIM_STEP};
use crate::core::ids::{Origin, Seq, ShardId, UserId};
use crate::core::op::{LogItem, LoggedOp};
use crate::core::snapshot::Cut;
use crate::core::state::{DedupKey, Series, ShardRow, ShardState, State, UserRow, UserState};
use crate::core::vector::Vector;
use crate::store::engine::{InboxPage, StoreError};
use crate::store::keys::{self, LogValue, Row, RowError};
use crate::store::paging::{Room, Window, first_page, inbox_page};
use crate::store::snapshot;

/// A row, or the default where there is none.
pub(super) fn row<T: Row + Default>(rows: &Rows, key: &[u8]) -> Result<T, StoreError> {
    match rows.get(key) {
        Some(value) => keys::decode_row(value).map_err(|e| damaged(&e)),
        None => Ok(T::default()),
    }
}

/// Loads the head of a shard, unless it is loaded. Its logs are then known, but none of their entries.
pub(super) fn shard(state: &mut State, rows: &Rows, shard: ShardId) -> Result<(), StoreError> {
    if state.shards.contains_key(&shard) {
        return Ok(());
    }
    let mut loaded = ShardState {
        row: row(rows, &keys::shard(shard))?,
        ..ShardState::default()
    };
    for (origin, log) in &loaded.row.logs {
        loaded.logs.insert(*origin, behind(log.seq));
    }
    state.shards.insert(shard, loaded);
    Ok(())
}

/// Loads the rows that a commit needs; those that are loaded already stay as they are, pages are replaced.
pub(super) fn needs(state: &mut State, rows: &Rows, needs: Vec<Need>) -> Result<(), StoreError> {
    let mut logs: BTreeMap<(ShardId, Origin), Window> = BTreeMap::new();
    let mut firsts = Vec::new();
    let mut inboxes: BTreeMap<(ShardId, UserId, Origin), Window> = BTreeMap::new();
    for need in needs {
        match need {
            Need::User(id, user) => load_user(state, rows, id, user)?,
            Need::Dedup(id, key) => {
                let dedup = &mut loaded(state, id).dedup;
                if dedup.contains_key(&key) {
                    continue;
                }
                if let Some(value) = rows.get(&keys::dedup(id, &key)) {
                    let row = keys::decode_row(value).map_err(|e| damaged(&e))?;
                    dedup.insert(key, row);
                }
            }
            Need::Log(id, origin, after, to) => {
                let window = logs.entry((id, origin));
                window.or_insert(Window::of(after, to)).add(after, to);
            }
            Need::First(id, origin, after) => firsts.push((id, origin, after)),
            Need::Inbox(id, user, origin, after) => {
                let window = inboxes.entry((id, user, origin));
                window.or_insert(Window::of(after, Seq::MAX)).add(after, Seq::MAX);
            }
        }
    }
    for ((id, origin), window) in logs {
        if let Some(series) = loaded(state, id).logs.get_mut(&origin) {
            let items = log_items(rows, id, origin, window.after, window.to);
            series.page = Some(window.page(TRIM_STEP, series.behind).fill(items)?);
        }
    }
    for (id, origin, after) in firsts {
        if let Some(series) = loaded(state, id).logs.get_mut(&origin)
            && after < series.behind
        {
            let items = log_items(rows, id, origin, after, series.behind);
            series.ahead.push(first_page(after, series.behind, items)?);
        }
    }
    for ((id, user, origin), window) in inboxes {
        let known = loaded(state, id).users.get_mut(&user);
        if let Some(series) = known.and_then(|known| known.inbox.get_mut(&origin)) {
            let items = inbox(rows, id, &user, origin, window.after);
            series.page = Some(window.page(CONSUME_STEP, series.behind).fill(items)?);
        }
    }
    Ok(())
}

/// The log entries above a sequence, and at or below another one, in order.
pub(super) fn log(
    rows: &Rows,
    shard: ShardId,
    origin: Origin,
    after: Seq,
    to: Seq,
) -> impl Iterator<Item = Result<(Seq, (u64, LoggedOp)), StoreError>> {
    log_values(rows, shard, origin, after, to).map(move |entry| {
        let (seq, hash, value) = entry?;
        let op = match value {
            LogValue::Inline(op) => op,
            LogValue::Message(head) => message(rows, shard, &head.to, origin, seq)?,
            LogValue::Inbox(user) => message(rows, shard, &user, origin, seq)?,
        };
        Ok((seq, (hash, op)))
    })
}

/// The same without the bodies of messages.
fn log_items(
    rows: &Rows,
    shard: ShardId,
    origin: Origin,
    after: Seq,
    to: Seq,
) -> impl Iterator<Item = Result<(Seq, (u64, LogItem)), StoreError>> {
    log_values(rows, shard, origin, after, to).map(move |entry| {
        let (seq, hash, value) = entry?;
        let item = match value {
            LogValue::Inline(op) => LogItem::Op(op),
            LogValue::Message(head) => LogItem::Message(Box::new(head)),
            LogValue::Inbox(user) => LogItem::Op(message(rows, shard, &user, origin, seq)?),
        };
        Ok((seq, (hash, item)))
    })
}

fn log_values(
    rows: &Rows,
    shard: ShardId,
    origin: Origin,
    after: Seq,
    to: Seq,
) -> impl Iterator<Item = Result<(Seq, u64, LogValue), StoreError>> {
    let from = keys::log(shard, origin, after.saturating_add(1));
    let to = keys::log(shard, origin, to.max(after.saturating_add(1)));
    rows.range(from..=to).map(|(key, value)| {
        let seq = keys::seq_of(key).map_err(|e| damaged(&e))?;
        let (hash, value) = keys::decode_log(value).map_err(|e| damaged(&e))?;
        Ok((seq, hash, value))
    })
}

fn message(
    rows: &Rows,
    shard: ShardId,
    user: &UserId,
    origin: Origin,
    seq: Seq,
) -> Result<LoggedOp, StoreError> {
    let value = rows.get(&keys::inbox(shard, user, origin, seq));
    let value = value.ok_or_else(|| {
        StoreError::Corrupt(format!(
            "log entry {origin:?}:{seq} has no message in the inbox of {user}"
        ))
    })?;
    keys::decode_inbox(value).map_err(|e| damaged(&e))
}

/// The messages of a user and an origin above a sequence, in order.
pub(super) fn inbox(
    rows: &Rows,
    shard: ShardId,
    user: &UserId,
    origin: Origin,
    after: Seq,
) -> impl Iterator<Item = Result<(Seq, LoggedOp), StoreError>> {
    let from = keys::inbox(shard, user, origin, after.saturating_add(1));
    let to = keys::inbox(shard, user, origin, Seq::MAX);
    rows.range(from..=to).map(|(key, value): (&Vec<u8>, &Bytes)| {
        let seq = keys::seq_of(key).map_err(|e| damaged(&e))?;
        Ok((seq, keys::decode_inbox(value).map_err(|e| damaged(&e))?))
    })
}

/// The origins of which a user has messages: one look for each.
pub(super) fn inbox_origins(rows: &Rows, shard: ShardId, user: &UserId) -> Result<Vec<Origin>, StoreError> {
    let mut out = Vec::new();
    let mut from = keys::inbox(shard, user, Origin(0), 0);
    let to = keys::inbox(shard, user, Origin(u64::MAX), Seq::MAX);
    while let Some((key, _)) = rows.range(from..=to.clone()).next() {
        let origin = keys::origin_of(key).map_err(|e| damaged(&e))?;
        out.push(origin);
        if origin.0 == u64::MAX {
            break;
        }
        from = keys::inbox(shard, user, Origin(origin.0 + 1), 0);
    }
    Ok(out)
}

/// What a snapshot reads.
pub(super) struct Source<'a> {
    pub(super) rows: &'a Rows,
    pub(super) shard: ShardId,
}

impl snapshot::Source for Source<'_> {
    fn head(&self) -> Result<ShardRow, StoreError> {
        row(self.rows, &keys::shard(self.shard))
    }

    fn hash_at(&self, origin: Origin, seq: Seq) -> Result<u64, StoreError> {
        match log(self.rows, self.shard, origin, seq - 1, seq)
            .next()
            .transpose()?
        {
            Some((at, (hash, _))) if at == seq => Ok(hash),
            _ => Err(StoreError::Corrupt(format!(
                "the log of {origin:?} has no entry {seq}"
            ))),
        }
    }

    fn dedup(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(snapshot::DedupRows, Option<DedupKey>), StoreError> {
        let (first, _) = keys::dedup_day(self.shard, 0);
        let (_, end) = keys::dedup_day(self.shard, u32::MAX);
        let from = match after {
            Some(key) => Bound::Excluded(keys::dedup(self.shard, key)),
            None => Bound::Included(first),
        };
        let mut out = Vec::new();
        for (key, value) in self.rows.range((from, Bound::Excluded(end))).take(limit) {
            let (_, key) = keys::dedup_of(key).map_err(|e| damaged(&e))?;
            out.push((key, keys::decode_row(value).map_err(|e| damaged(&e))?));
        }
        let next = (out.len() == limit)
            .then(|| out.last().map(|(key, _)| key.clone()))
            .flatten();
        Ok((out, next))
    }

    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, StoreError> {
        let (first, end) = keys::users(self.shard);
        let from = match after {
            Some(user) => Bound::Excluded(keys::user(self.shard, user)),
            None => Bound::Included(first),
        };
        let users = self.rows.range((from, Bound::Excluded(end))).take(limit);
        users
            .map(|(key, _)| keys::user_of(key).map_err(|e| damaged(&e)))
            .collect()
    }

    fn user(&self, user: &UserId) -> Result<UserRow, StoreError> {
        row(self.rows, &keys::user(self.shard, user))
    }

    fn inbox_ends(&self, user: &UserId) -> Result<BTreeMap<Origin, Seq>, StoreError> {
        let origins = inbox_origins(self.rows, self.shard, user)?.into_iter();
        let end = |origin| Ok((origin, inbox_end(self.rows, self.shard, user, origin)?));
        origins.map(end).collect()
    }

    fn inbox(&self, user: &UserId, after: &Vector, cut: &Cut, room: Room) -> Result<InboxPage, StoreError> {
        let row = self.user(user)?;
        let origins = inbox_origins(self.rows, self.shard, user)?;
        inbox_page(&row, &cut.retired, origins, after, room, |origin, after| {
            let next = inbox(self.rows, self.shard, user, origin, after)
                .next()
                .transpose()?;
            Ok(next.filter(|(seq, _)| *seq <= cut.seq(origin)))
        })
    }
}

/// The last message of a user and an origin; 0 where there is none.
fn inbox_end(rows: &Rows, shard: ShardId, user: &UserId, origin: Origin) -> Result<Seq, StoreError> {
    let from = keys::inbox(shard, user, origin, 0);
    let to = keys::inbox(shard, user, origin, Seq::MAX);
    let last = rows.range(from..=to).next_back();
    let last = last.map(|(key, _)| keys::seq_of(key));
    Ok(last.transpose().map_err(|e| damaged(&e))?.unwrap_or(0))
}

fn load_user(state: &mut State, rows: &Rows, id: ShardId, user: UserId) -> Result<(), StoreError> {
    let shard = loaded(state, id);
    if shard.users.contains_key(&user) {
        return Ok(());
    }
    let Some(value) = rows.get(&keys::user(id, &user)) else {
        return Ok(());
    };
    let row: UserRow = keys::decode_row(value).map_err(|e| damaged(&e))?;
    let mut known = UserState {
        row,
        ..UserState::default()
    };
    for origin in inbox_origins(rows, id, &user)? {
        // A snapshot that is being merged brings messages beyond what is applied.
        let seq = inbox_end(rows, id, &user, origin)?;
        known.inbox.insert(origin, behind(seq));
    }
    shard.users.insert(user, Box::new(known));
    Ok(())
}

fn loaded(state: &mut State, id: ShardId) -> &mut ShardState {
    state
        .shards
        .get_mut(&id)
        .expect("the shards of a batch are loaded before their needs are asked for")
}

fn behind<T>(seq: Seq) -> Series<T> {
    Series {
        behind: seq,
        ..Series::default()
    }
}

fn damaged(error: &RowError) -> StoreError {
    StoreError::Corrupt(error.to_string())
}
