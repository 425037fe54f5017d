//! What the embedded engine needs of the key-value store behind its journal, and one in memory for tests.
//!
//! Writes are atomic batches, visible at once, durable after a flush; a crash may lose any part of what was written
//! since the last flush, and keep any other part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::store::engine::StoreError;

/// A table. Keys are those of [`keys`](crate::store::keys).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// What the tables cover.
    Meta,
    /// Shard rows.
    Shards,
    /// User rows.
    Users,
    /// Log entries.
    Log,
    /// Messages.
    Inbox,
    /// Dedup records of a UTC day.
    Dedup(u32),
}

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub table: Table,
    /// The key.
    pub key: Vec<u8>,
    /// The value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

/// Takes a key and its value and says whether to go on.
pub type Visit<'a> = dyn FnMut(&[u8], Bytes) -> Result<bool, StoreError> + 'a;

/// Ordered tables of keys and values.
pub trait Tables: Send {
    /// How messages name the place.
    fn location(&self) -> String;

    /// The value of a key.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where a checksum does not match, [`StoreError::Fatal`] where reading fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Visits keys and values from `from` through `to`, both included, in order, until `visit` says `false`.
    ///
    /// # Errors
    /// As for [`Tables::get`], and those of `visit`.
    fn range(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// Writes a batch, leaving `batch` empty.
    ///
    /// # Errors
    /// [`StoreError::Fatal`]: the tables must be opened again.
    fn write(&mut self, batch: &mut Vec<Change>) -> Result<(), StoreError>;

    /// The days of which there are dedup records.
    fn dedup_days(&self) -> Vec<u32>;

    /// Drops all dedup records of a day, at once.
    ///
    /// # Errors
    /// As for [`Tables::write`].
    fn drop_dedup(&mut self, day: u32) -> Result<(), StoreError>;

    /// Begins to make all that was written durable.
    ///
    /// # Errors
    /// As for [`Tables::write`].
    fn begin_flush(&mut self) -> Result<(), StoreError>;

    /// Whether the flush that was begun last is over; with `wait` only then does it return.
    ///
    /// # Errors
    /// As for [`Tables::write`].
    fn flushed(&mut self, wait: bool) -> Result<bool, StoreError>;
}

/// Tables in memory. Clones are handles to the same tables, so that one outlives the engine that used them.
#[derive(Debug, Clone, Default)]
pub struct MemTables(Arc<Mutex<Shared>>);

#[derive(Debug, Clone, Default)]
struct Shared {
    rows: Rows,
    /// What each key held before it was written, since the flush that was begun last.
    undo: Undo,
    /// The same for what that flush covers, until it is over.
    flushing: Undo,
    /// Questions whether it is over that a flush takes.
    slow: u32,
    left: u32,
    /// Batches and flushes that succeed before every one fails.
    fail_after: Option<u64>,
    written: u64,
    flushes: u64,
}

type Undo = BTreeMap<(Table, Vec<u8>), Option<Bytes>>;
type Rows = BTreeMap<(Table, Vec<u8>), Bytes>;

impl MemTables {
    /// Empty ones.
    pub fn new() -> Self {
        Self::default()
    }

    /// Each flush takes so many questions whether it is over.
    pub fn slow_flush(&self, questions: u32) {
        self.lock().slow = questions;
    }

    /// `after` more batches and flushes succeed, then every one fails until a crash.
    pub fn fail_after(&self, after: u64) {
        self.lock().fail_after = Some(after);
    }

    /// The power fails: of each change since the last flush that is over, `keep` decides whether it survives.
    pub fn crash(&self, mut keep: impl FnMut() -> bool) {
        let mut shared = self.lock();
        let mut kept = BTreeSet::new();
        let newest = std::mem::take(&mut shared.undo);
        let before = std::mem::take(&mut shared.flushing);
        for (key, old) in newest.into_iter().chain(before) {
            if kept.contains(&key) || keep() {
                kept.insert(key);
                continue;
            }
            match old {
                Some(value) => shared.rows.insert(key, value),
                None => shared.rows.remove(&key),
            };
        }
        shared.fail_after = None;
        shared.left = 0;
    }

    /// Tables of their own with the same content: an older copy to restore.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Number of keys in a kind of table: all days of dedup together.
    pub fn count(&self, table: Table) -> usize {
        let shared = self.lock();
        let same = |(of, _): &&(Table, Vec<u8>)| match (of, table) {
            (Table::Dedup(_), Table::Dedup(_)) => true,
            (a, b) => *a == b,
        };
        shared.rows.keys().filter(same).count()
    }

    /// Changes written so far, and flushes.
    pub fn written(&self) -> (u64, u64) {
        let shared = self.lock();
        (shared.written, shared.flushes)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn set(&mut self, key: (Table, Vec<u8>), value: Option<Bytes>) {
        let old = match value {
            Some(value) => self.rows.insert(key.clone(), value),
            None => self.rows.remove(&key),
        };
        self.undo.entry(key).or_insert(old);
    }

    fn may_fail(&mut self) -> Result<(), StoreError> {
        match &mut self.fail_after {
            None => Ok(()),
            Some(0) => Err(StoreError::Fatal("injected: the tables fail".to_owned())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl Tables for MemTables {
    fn location(&self) -> String {
        "tables in memory".to_owned()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.lock().rows.get(&(table, key.to_vec())).cloned())
    }

    fn range(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let shared = self.lock();
        for ((_, key), value) in shared.rows.range((table, from.to_vec())..=(table, to.to_vec())) {
            if !visit(key, value.clone())? {
                break;
            }
        }
        Ok(())
    }

    fn write(&mut self, batch: &mut Vec<Change>) -> Result<(), StoreError> {
        let mut shared = self.lock();
        shared.may_fail()?;
        shared.written += batch.len() as u64;
        for Change { table, key, value } in batch.drain(..) {
            shared.set((table, key), value.map(Bytes::from));
        }
        Ok(())
    }

    fn dedup_days(&self) -> Vec<u32> {
        let shared = self.lock();
        let mut days = Vec::new();
        for (table, _) in shared.rows.keys() {
            if let Table::Dedup(day) = table
                && days.last() != Some(day)
            {
                days.push(*day);
            }
        }
        days
    }

    fn drop_dedup(&mut self, day: u32) -> Result<(), StoreError> {
        let mut shared = self.lock();
        shared.may_fail()?;
        let gone = shared
            .rows
            .keys()
            .filter(|(table, _)| *table == Table::Dedup(day));
        for key in gone.cloned().collect::<Vec<_>>() {
            shared.set(key, None);
        }
        Ok(())
    }

    fn begin_flush(&mut self) -> Result<(), StoreError> {
        let mut shared = self.lock();
        shared.may_fail()?;
        shared.left = shared.slow;
        // A flush before this one that was not over is over no sooner than this one.
        let begun = std::mem::take(&mut shared.undo);
        for (key, old) in begun {
            shared.flushing.entry(key).or_insert(old);
        }
        Ok(())
    }

    fn flushed(&mut self, wait: bool) -> Result<bool, StoreError> {
        let mut shared = self.lock();
        if shared.left > 0 && !wait {
            shared.left -= 1;
            return Ok(false);
        }
        shared.left = 0;
        shared.flushes += 1;
        shared.flushing.clear();
        Ok(true)
    }
}
