//! The store's thread: everything that waits for a disk happens here, and nowhere else.
//!
//! Group commit has no timer: while one commit syncs, the next collects what all partitions queue up.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::http::Health;
use super::metrics::{Metrics, Queue, Reason};
use crate::core::commit::StoreOp;
use crate::core::ids::ShardId;
use crate::core::storage::{Committed, Read, ReadReply, StoreError};
use crate::net::supervise::Supervisor;
use crate::store::engine::Engine;

/// Operations that one group commit takes at most: a commit stays short, and the next follows at once.
const GROUP_OPS: usize = 32 * 1024;
/// The thread's name and kind to the supervisor.
pub(super) const KIND: &str = "store";
/// Between two looks at what could be written behind while nothing is asked.
const IDLE: Duration = Duration::from_millis(200);

/// A request of a partition. A partition has at most one commit in flight, and as many reads as it has sessions and links
/// that catch up: that bounds the queue.
pub(super) enum StoreRequest {
    /// Commit these.
    Commit {
        /// Who asks.
        partition: u8,
        /// To be given with the answer.
        token: u64,
        /// The operations.
        ops: Vec<StoreOp>,
        /// Wall clock.
        now_ms: u64,
    },
    /// Read this.
    Read {
        /// Who asks.
        partition: u8,
        /// To be given with the answer.
        token: u64,
        /// The question.
        read: Read,
    },
    /// Write behind and close.
    Close,
    /// Look whether a test asked for a panic.
    #[cfg(debug_assertions)]
    Wake,
}

/// An answer to a partition.
pub(super) enum StoreReply {
    /// To a commit.
    Committed(u64, Result<Committed, StoreError>),
    /// To a read.
    Answered(u64, Result<ReadReply, StoreError>),
}

/// The running store.
pub(super) struct StoreThread {
    requests: Sender<StoreRequest>,
    thread: Option<JoinHandle<()>>,
}

impl StoreThread {
    /// Starts the thread; partition `i` is answered on `replies[i]`.
    pub(super) fn start(
        engine: Box<dyn Engine>,
        replies: Vec<UnboundedSender<StoreReply>>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        supervisor: Supervisor,
    ) -> std::io::Result<Self> {
        let (requests, queue) = channel();
        health.set_ready("store", Ok(()));
        let worker = Worker {
            engine,
            replies,
            metrics,
            health,
            supervisor: supervisor.clone(),
            queue,
        };
        let thread = std::thread::Builder::new()
            .name("iris-store".to_owned())
            .spawn(move || supervisor.critical_thread(KIND, KIND, || worker.run()))?;
        Ok(Self {
            requests,
            thread: Some(thread),
        })
    }

    /// Where requests go.
    pub(super) fn requests(&self) -> Sender<StoreRequest> {
        self.requests.clone()
    }

    /// Lets the store write behind and close; waits for it.
    pub(super) fn close(mut self) {
        // If the thread is gone already there is nothing left to close.
        let _ = self.requests.send(StoreRequest::Close);
        if let Some(thread) = self.thread.take() {
            // A panic in it was told when it happened.
            let _ = thread.join();
        }
    }
}

struct Worker {
    engine: Box<dyn Engine>,
    replies: Vec<UnboundedSender<StoreReply>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    supervisor: Supervisor,
    queue: Receiver<StoreRequest>,
}

struct Group {
    /// Partition, token, and how many operations are its.
    members: Vec<(u8, u64, usize)>,
    ops: Vec<StoreOp>,
    now_ms: u64,
}

impl Worker {
    fn run(mut self) {
        let mut more = true;
        loop {
            let wait = if more { Duration::ZERO } else { IDLE };
            let first = match self.queue.recv_timeout(wait) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => {
                    more = self.idle();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => StoreRequest::Close,
            };
            let mut group = Group {
                members: Vec::new(),
                ops: Vec::new(),
                now_ms: 0,
            };
            let mut next = Some(first);
            while let Some(request) = next.take() {
                self.taken(&request);
                match request {
                    StoreRequest::Commit {
                        partition,
                        token,
                        ops,
                        now_ms,
                    } => {
                        group.members.push((partition, token, ops.len()));
                        group.ops.extend(ops);
                        group.now_ms = group.now_ms.max(now_ms);
                    }
                    StoreRequest::Read {
                        partition,
                        token,
                        read,
                    } => {
                        let reply = self.engine.read(&read);
                        self.watch(reply.as_ref().err());
                        self.reply(partition, StoreReply::Answered(token, reply));
                    }
                    StoreRequest::Close => {
                        self.commit(group);
                        if let Err(error) = self.engine.close() {
                            tracing::error!(%error, "the store did not close cleanly; nothing acknowledged is lost");
                        }
                        return;
                    }
                    #[cfg(debug_assertions)]
                    StoreRequest::Wake => {
                        assert!(
                            !self.supervisor.panic_is_due(KIND),
                            "a panic that a test asked for"
                        );
                    }
                }
                if group.ops.len() < GROUP_OPS {
                    next = self.queue.try_recv().ok();
                }
            }
            self.commit(group);
            more = true;
        }
    }

    fn taken(&self, request: &StoreRequest) {
        if matches!(request, StoreRequest::Commit { .. } | StoreRequest::Read { .. }) {
            self.metrics
                .queue_depth
                .get_or_create(&Queue { queue: "store" })
                .dec();
        }
    }

    fn commit(&mut self, group: Group) {
        if group.members.is_empty() {
            return;
        }
        let started = Instant::now();
        let count = group.ops.len();
        let shards: Vec<ShardId> = group.ops.iter().map(StoreOp::shard).collect();
        let result = self.engine.commit_now(group.ops, group.now_ms);
        self.metrics.commits.inc();
        self.metrics.commit_seconds.observe(started.elapsed());
        self.metrics.commit_operations.observe(count);
        self.watch(result.as_ref().err());
        match result {
            Ok(committed) if group.members.len() == 1 => {
                let (partition, token, _) = group.members[0];
                self.reply(partition, StoreReply::Committed(token, Ok(committed)));
            }
            Ok(committed) => {
                // A shard belongs to one partition, so what was logged is told apart by it.
                let mut outcomes = committed.outcomes.into_iter();
                let mut at = 0;
                for (partition, token, len) in &group.members {
                    let mine: std::collections::BTreeSet<ShardId> =
                        shards[at..at + len].iter().copied().collect();
                    at += len;
                    let logged = committed.logged.iter();
                    let part = Committed {
                        outcomes: outcomes.by_ref().take(*len).collect(),
                        logged: logged
                            .filter(|entry| mine.contains(&entry.shard))
                            .cloned()
                            .collect(),
                    };
                    self.reply(*partition, StoreReply::Committed(*token, Ok(part)));
                }
            }
            Err(error) => {
                for (partition, token, _) in group.members {
                    self.reply(partition, StoreReply::Committed(token, Err(error.clone())));
                }
            }
        }
        self.engine.after_commit();
    }

    fn idle(&mut self) -> bool {
        match self.engine.idle() {
            Ok(more) => more,
            Err(error) => {
                self.watch(Some(&error));
                false
            }
        }
    }

    fn watch(&self, error: Option<&StoreError>) {
        match error {
            Some(StoreError::Fatal(why) | StoreError::Corrupt(why)) => {
                if self.health.reasons().contains_key("store") {
                    return;
                }
                self.health.set_ready("store", Err(why.clone()));
                // What it holds is not known to be what is on disk: only a start finds out.
                self.supervisor.ended(KIND, KIND, why);
            }
            Some(error) => {
                let reason = match error {
                    StoreError::Full(_) => "full",
                    _ => "retryable",
                };
                self.metrics.store_errors.get_or_create(&Reason { reason }).inc();
                tracing::warn!(%error, "the store refused");
            }
            None => {}
        }
    }

    fn reply(&self, partition: u8, reply: StoreReply) {
        // A partition that is gone needs no answer.
        let _ = self.replies[usize::from(partition)].send(reply);
    }
}
