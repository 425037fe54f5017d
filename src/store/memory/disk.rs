//! A durable map in memory that can crash and fail.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// The storage of a [`MemoryEngine`](super::MemoryEngine). Clones are handles to the same storage, so that one
/// outlives the engine that used it.
///
/// Commits are numbered from 1. They are durable when they return, unless [`MemoryDisk::hold`] is on: then they stay
/// volatile until [`MemoryDisk::make_durable`], and [`MemoryDisk::crash`] loses those that are.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Shared>>);

/// How the next commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing is changed; the same call may succeed later.
    Retryable,
    /// Nothing is changed; there is no room.
    Full,
    /// The caller cannot know: a fatal error after which the store must be opened again.
    Unknown {
        /// Whether the commit took place.
        applied: bool,
    },
}

impl MemoryDisk {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether commits stay volatile until the caller makes them durable.
    pub fn hold(&self, hold: bool) {
        self.lock().hold = hold;
    }

    /// Number of the last commit that changed anything; 0 before the first.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Makes commits through this number durable.
    pub fn make_durable(&self, through: u64) {
        let mut shared = self.lock();
        while shared.undo.front().is_some_and(|undo| undo.commit <= through) {
            shared.undo.pop_front();
        }
    }

    /// The machine crashes: what is not durable is lost, every open engine is dead, injected failures are lifted.
    pub fn crash(&self) {
        let mut shared = self.lock();
        while let Some(undo) = shared.undo.pop_back() {
            shared.commits = undo.commit - 1;
            for (key, value) in undo.before.into_iter().rev() {
                match value {
                    Some(value) => shared.rows.insert(key, value),
                    None => shared.rows.remove(&key),
                };
            }
        }
        shared.failures.clear();
        shared.boot += 1;
    }

    /// Fails a coming commit: the first call means the next commit, the second the one after it, and so on; `None`
    /// lets one succeed.
    pub fn fail(&self, failure: Option<Failure>) {
        self.lock().failures.push_back(failure);
    }

    /// A disk of its own with the same content, durable and not: a backup to restore later.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Number of rows and their bytes, keys and values.
    pub fn size(&self) -> (usize, usize) {
        let shared = self.lock();
        let bytes = shared.rows.iter().map(|(key, value)| key.len() + value.len());
        (shared.rows.len(), bytes.sum())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rows, as commits see them.
pub(super) type Rows = BTreeMap<Vec<u8>, Bytes>;

#[derive(Debug, Clone, Default)]
pub(super) struct Shared {
    pub(super) rows: Rows,
    pub(super) boot: u64,
    pub(super) failures: VecDeque<Option<Failure>>,
    commits: u64,
    hold: bool,
    /// What to put back for each commit that is not durable.
    undo: VecDeque<Undo>,
}

#[derive(Debug, Clone)]
struct Undo {
    commit: u64,
    before: Vec<(Vec<u8>, Option<Bytes>)>,
}

/// One change of the rows.
#[derive(Debug)]
pub(super) enum Write {
    Put(Vec<u8>, Bytes),
    /// From (inclusive) to (exclusive).
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl Shared {
    /// One commit, unless there is nothing to write.
    pub(super) fn write(&mut self, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        let mut before = Vec::new();
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let old = self.rows.insert(key.clone(), value);
                    before.push((key, old));
                }
                Write::DeleteRange(from, to) => {
                    let gone: Vec<Vec<u8>> = self.rows.range(from..to).map(|(key, _)| key.clone()).collect();
                    for key in gone {
                        let old = self.rows.remove(&key);
                        before.push((key, old));
                    }
                }
            }
        }
        self.commits += 1;
        if self.hold {
            let commit = self.commits;
            self.undo.push_back(Undo { commit, before });
        }
    }

    pub(super) fn make_all_durable(&mut self) {
        self.undo.clear();
    }
}
