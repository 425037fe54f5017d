//! The bounded queue between whoever has frames for a stream and the task that writes them. Putting never waits;
//! taking takes everything, so that what queued up during one write goes out with the next.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::CloseReason;

/// Counted for each chunk beside its bytes, so that many tiny chunks cannot exceed the memory that the byte limit
/// promises (a `Bytes` is 32 bytes, its allocation has overhead too).
pub(crate) const CHUNK_COST: usize = 64;

/// A batch was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError {
    /// The queue has no room now; the batch is given back.
    #[error("the send queue of the connection is full")]
    Full(Vec<Bytes>),
    /// The batch alone is above the limit of the queue and can never be sent as one.
    #[error("a batch that costs {cost} bytes; the send queue takes at most {limit}: send it in parts")]
    TooLarge {
        /// Bytes and overhead of the batch.
        cost: usize,
        /// The limit.
        limit: usize,
    },
    /// The connection is closed or closing.
    #[error("the connection is closed")]
    Closed,
}

/// What a writer is to do next.
pub(crate) enum Next {
    Write(Vec<Bytes>),
    /// All is written: close with this reason.
    Close(CloseReason),
    /// The connection is gone.
    Gone,
}

#[derive(Debug)]
enum State {
    Open,
    Closing(CloseReason),
    Closed,
}

#[derive(Debug)]
struct Inner {
    chunks: Vec<Bytes>,
    queued: usize,
    writing: usize,
    state: State,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    limit: usize,
    /// Above this many queued bytes `wait_below_threshold` waits.
    threshold: usize,
    inner: Mutex<Inner>,
    /// Wakes the writer: something was queued, or the state changed.
    filled: Notify,
    /// Wakes the writer in the middle of a write: a close was asked for.
    closing: Notify,
    /// Wakes the reader: a write ended.
    drained: Notify,
}

impl Outbox {
    pub(crate) fn new(limit: usize, threshold: usize) -> Self {
        let inner = Inner {
            chunks: Vec::new(),
            queued: 0,
            writing: 0,
            state: State::Open,
        };
        Self {
            limit,
            threshold,
            inner: Mutex::new(inner),
            filled: Notify::new(),
            closing: Notify::new(),
            drained: Notify::new(),
        }
    }

    pub(crate) fn try_send(&self, batch: Vec<Bytes>) -> Result<(), TrySendError> {
        let cost = batch.iter().map(|chunk| chunk.len() + CHUNK_COST).sum();
        if cost > self.limit {
            return Err(TrySendError::TooLarge {
                cost,
                limit: self.limit,
            });
        }
        let mut inner = self.lock();
        if !matches!(inner.state, State::Open) {
            return Err(TrySendError::Closed);
        }
        if inner.queued + inner.writing + cost > self.limit {
            return Err(TrySendError::Full(batch));
        }
        inner.queued += cost;
        if inner.chunks.is_empty() {
            inner.chunks = batch;
        } else {
            inner.chunks.extend(batch);
        }
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Queued bytes with their overhead, those of a write under way included.
    pub(crate) fn cost(&self) -> usize {
        let inner = self.lock();
        inner.queued + inner.writing
    }

    /// Takes no more batches; the writer closes with `reason` once all is written. The first reason stays.
    pub(crate) fn close(&self, reason: CloseReason) {
        let mut inner = self.lock();
        if !matches!(inner.state, State::Open) {
            return;
        }
        inner.state = State::Closing(reason);
        drop(inner);
        self.filled.notify_one();
        self.closing.notify_one();
    }

    /// The connection is gone: forgets what is queued and wakes everybody.
    pub(crate) fn gone(&self) {
        let mut inner = self.lock();
        inner.state = State::Closed;
        inner.chunks = Vec::new();
        inner.queued = 0;
        inner.writing = 0;
        drop(inner);
        self.filled.notify_one();
        self.closing.notify_one();
        self.drained.notify_one();
    }

    /// For the one writer: the end of its last write, then everything queued since.
    pub(crate) async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.poll_next() {
                return next;
            }
            self.filled.notified().await;
        }
    }

    fn poll_next(&self) -> Option<Next> {
        let mut inner = self.lock();
        let was_above = inner.queued + inner.writing > self.threshold;
        inner.writing = 0;
        let is_below = inner.queued <= self.threshold;
        let next = match &inner.state {
            State::Closed => Some(Next::Gone),
            _ if !inner.chunks.is_empty() => {
                inner.writing = std::mem::take(&mut inner.queued);
                Some(Next::Write(std::mem::take(&mut inner.chunks)))
            }
            State::Closing(reason) => Some(Next::Close(reason.clone())),
            State::Open => None,
        };
        drop(inner);
        if was_above && is_below {
            self.drained.notify_one();
        }
        next
    }

    /// For the writer during a write: completes when a close was asked for or the connection is gone.
    pub(crate) async fn close_asked(&self) {
        self.closing.notified().await;
    }

    /// For the one reader: waits while more than the threshold is queued.
    pub(crate) async fn wait_below_threshold(&self) {
        while self.cost() > self.threshold {
            self.drained.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock can leave the queue half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::CloseCode;

    fn bytes(count: usize) -> Vec<Bytes> {
        vec![Bytes::from(vec![0; count])]
    }

    #[tokio::test]
    async fn the_limit_counts_what_is_being_written() {
        let outbox = Outbox::new(1000, 500);
        outbox.try_send(bytes(1000 - CHUNK_COST)).unwrap();
        let Next::Write(batch) = outbox.next().await else {
            panic!("a write was queued")
        };
        assert_eq!(batch.len(), 1);
        assert_eq!(outbox.try_send(bytes(1)), Err(TrySendError::Full(bytes(1))));
        assert_eq!(
            outbox.try_send(bytes(1001 - CHUNK_COST)),
            Err(TrySendError::TooLarge {
                cost: 1001,
                limit: 1000
            })
        );
        assert!(outbox.poll_next().is_none());
        outbox.try_send(bytes(1)).unwrap();
    }

    #[tokio::test]
    async fn the_reader_waits_above_the_threshold() {
        let outbox = std::sync::Arc::new(Outbox::new(1000, 500));
        outbox.try_send(bytes(501)).unwrap();
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.wait_below_threshold().await }
        });
        let Next::Write(_) = outbox.next().await else {
            panic!("a write was queued")
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(outbox.poll_next().is_none());
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_close_comes_after_what_was_queued() {
        let outbox = Outbox::new(1000, 500);
        outbox.try_send(bytes(10)).unwrap();
        outbox.close(CloseReason::new(CloseCode::NORMAL, "first"));
        outbox.close(CloseReason::new(CloseCode::INTERNAL, "second"));
        assert_eq!(outbox.try_send(bytes(1)), Err(TrySendError::Closed));
        assert!(matches!(outbox.next().await, Next::Write(_)));
        assert!(matches!(outbox.next().await, Next::Close(reason) if reason.text == "first"));
        outbox.gone();
        assert!(matches!(outbox.next().await, Next::Gone));
    }
}
