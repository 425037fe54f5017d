//! What a shard's owner asks of a store, whatever the engine.
//!
//! One thread (or, in the simulator, one machine) calls [`Engine::commit`] with all that queued up since the last call;
//! when it returns, the decisions are durable. Reads see everything committed and nothing else.

use crate::core::commit::StoreOp;
use crate::core::state::StoreIdentity;

pub use crate::core::storage::{
    Committed, InboxEntry, InboxPage, LogPage, MAX_PAGE_ITEMS, Read, ReadReply, StoreError,
};

/// What a store tells of itself; 0 where an engine does not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Group commits since it was opened.
    pub commits: u64,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// What messages, users and dedup records weigh in memory, in bytes.
    pub resident_bytes: u64,
    /// Checkpoints completed since it was opened.
    pub checkpoints: u64,
}

/// A store of one region: commits and reads.
pub trait Engine: Send {
    /// Who this store is.
    fn identity(&self) -> &StoreIdentity;

    /// Decides the operations in order, makes the decisions durable, and tells what became of each.
    ///
    /// `now_ms` is the wall clock, unix milliseconds. [`Engine::after_commit`] must follow.
    ///
    /// # Errors
    /// [`StoreError`]: nothing of the batch is then acknowledged. After `Fatal` or `Corrupt` every call fails.
    fn commit_now(&mut self, ops: Vec<StoreOp>, now_ms: u64) -> Result<Committed, StoreError>;

    /// What a commit leaves to be done: bounded work that those who wait for its outcomes need not wait for.
    fn after_commit(&mut self) {}

    /// [`Engine::commit_now`] and what follows it.
    ///
    /// # Errors
    /// As there.
    fn commit(&mut self, ops: Vec<StoreOp>, now_ms: u64) -> Result<Committed, StoreError> {
        let committed = self.commit_now(ops, now_ms)?;
        self.after_commit();
        Ok(committed)
    }

    /// Reads what is committed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&mut self, read: &Read) -> Result<ReadReply, StoreError>;

    /// What it tells of itself.
    fn figures(&self) -> Figures {
        Figures::default()
    }

    /// Called when there is nothing to commit: a chance to write behind. Says whether more is to do soon.
    ///
    /// # Errors
    /// [`StoreError`].
    fn idle(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Writes behind everything that would speed up the next start, then closes.
    ///
    /// # Errors
    /// [`StoreError`]; what was acknowledged is durable all the same.
    fn close(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}
