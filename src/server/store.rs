//! The store's thread: everything that waits for a disk happens here, and nowhere else.
//!
//! Group commit has no timer: while one commit syncs, the next collects what all partitions queue up. Reads come after what is
//! collected, some at a time, so that a commit waits for a few of them and not for all.
//!
//! The queue is bounded by what partitions ask at once: each has one commit and
//! [`store_reads`](crate::core::limits::CoreLimits::store_reads) reads under way, and what more it has waits in its core, where
//! deposits are refused retryably by number and by bytes.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::faults::StoreFaults;
use super::http::Health;
use super::metrics::{Metrics, Queue, Reason};
use crate::core::commit::StoreOp;
use crate::core::ids::ShardId;
use crate::core::storage::{Committed, Read, ReadReply, StoreError};
use crate::net::supervise::Supervisor;
use crate::store::engine::{Engine, Figures};

/// Operations that one group commit takes at most: a commit stays short, and the next follows at once.
const GROUP_OPS: usize = 32 * 1024;
/// Reads that are answered before what is collected is committed: most take some 50 us from memory, so a message waits for
/// them less than for the disk.
const READS_BEFORE_COMMIT: usize = 16;
/// Those of what is not in memory take longer: none is begun after so long.
const READS_FOR: Duration = Duration::from_millis(1);
/// Room for [`StoreRequest::Close`] and a test's [`StoreRequest::Wake`] beside what partitions ask.
const QUEUE_SPARE: usize = 2;
/// The thread's name and kind to the supervisor.
pub(super) const KIND: &str = "store";
/// Between two looks at what could be written behind while nothing is asked.
const IDLE: Duration = Duration::from_millis(200);
/// The same while there is something to write: under load commits come in between, and the engine spreads its work over
/// them.
const BREATH: Duration = Duration::from_millis(10);

/// A request of a partition. A partition has at most one commit in flight, and
/// [`store_reads`](crate::core::limits::CoreLimits::store_reads) reads: that bounds the queue.
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

impl StoreRequest {
    /// The answer where there is no room for it; `None` where nobody waits for one.
    pub(super) fn refused(self) -> Option<StoreReply> {
        let why = StoreError::Retryable("the queue of the store is full".to_owned());
        match self {
            StoreRequest::Commit { token, .. } => Some(StoreReply::Committed(token, Err(why))),
            StoreRequest::Read { token, .. } => Some(StoreReply::Answered(token, Err(why))),
            _ => None,
        }
    }
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
    requests: SyncSender<StoreRequest>,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Mutex<StoreSeen>>,
}

/// What was last seen of the store.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StoreSeen {
    /// What it tells of itself.
    pub(super) figures: Figures,
    /// When a commit last came back, unix milliseconds; 0 before the first.
    pub(super) last_commit_ms: u64,
}

impl StoreThread {
    /// Starts the thread; partition `i` is answered on `replies[i]`, and has at most `reads` questions under way. What waits
    /// for a partition is what it asked, so its queue is bounded by the same.
    pub(super) fn start(
        engine: Box<dyn Engine>,
        replies: Vec<UnboundedSender<StoreReply>>,
        reads: usize,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        supervisor: Supervisor,
        faults: Arc<StoreFaults>,
    ) -> std::io::Result<Self> {
        let (requests, queue) = sync_channel(replies.len() * (reads + 1) + QUEUE_SPARE);
        health.set_ready("store", Ok(()));
        let seen = Arc::new(Mutex::new(StoreSeen {
            figures: engine.figures(),
            last_commit_ms: 0,
        }));
        let worker = Worker {
            engine,
            seen: seen.clone(),
            replies,
            metrics,
            health,
            supervisor: supervisor.clone(),
            queue,
            reads: VecDeque::new(),
            closing: false,
            faults,
        };
        let thread = std::thread::Builder::new()
            .name("iris-store".to_owned())
            .spawn(move || supervisor.critical_thread(KIND, KIND, || worker.run()))?;
        Ok(Self {
            requests,
            thread: Some(thread),
            seen,
        })
    }

    /// Where what is seen of the store is put down.
    pub(super) fn seen(&self) -> Arc<Mutex<StoreSeen>> {
        self.seen.clone()
    }

    /// Where requests go.
    pub(super) fn requests(&self) -> SyncSender<StoreRequest> {
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
    seen: Arc<Mutex<StoreSeen>>,
    replies: Vec<UnboundedSender<StoreReply>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    supervisor: Supervisor,
    queue: Receiver<StoreRequest>,
    /// Taken from the queue and not answered; what partitions may ask bounds them.
    reads: VecDeque<(u8, u64, Read)>,
    closing: bool,
    faults: Arc<StoreFaults>,
}

#[derive(Default)]
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
            let mut group = Group::default();
            if self.reads.is_empty() {
                let wait = if more { BREATH } else { IDLE };
                match self.queue.recv_timeout(wait) {
                    Ok(request) => self.take(request, &mut group),
                    Err(RecvTimeoutError::Timeout) => {
                        more = self.idle();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => self.closing = true,
                }
            }
            self.round(group);
            if self.closing {
                while !self.reads.is_empty() {
                    self.answer_reads();
                }
                if let Err(error) = self.engine.close() {
                    tracing::error!(%error, "the store did not close cleanly; nothing acknowledged is lost");
                }
                return;
            }
            more = true;
        }
    }

    /// Takes all that came, answers some reads, and commits.
    fn round(&mut self, mut group: Group) {
        while group.ops.len() < GROUP_OPS && !self.closing {
            let Ok(request) = self.queue.try_recv() else { break };
            self.take(request, &mut group);
        }
        self.answer_reads();
        self.commit(group);
    }

    fn take(&mut self, request: StoreRequest, group: &mut Group) {
        match request {
            StoreRequest::Commit {
                partition,
                token,
                ops,
                now_ms,
            } => {
                self.taken();
                group.members.push((partition, token, ops.len()));
                group.ops.extend(ops);
                group.now_ms = group.now_ms.max(now_ms);
            }
            StoreRequest::Read {
                partition,
                token,
                read,
            } => self.reads.push_back((partition, token, read)),
            StoreRequest::Close => self.closing = true,
            #[cfg(debug_assertions)]
            StoreRequest::Wake => {
                assert!(
                    !self.supervisor.panic_is_due(KIND),
                    "a panic that a test asked for"
                );
            }
        }
    }

    fn answer_reads(&mut self) {
        let began = Instant::now();
        for _ in 0..READS_BEFORE_COMMIT {
            if began.elapsed() > READS_FOR {
                return;
            }
            let Some((partition, token, read)) = self.reads.pop_front() else {
                return;
            };
            self.taken();
            let reply = self.engine.read(&read);
            self.watch(reply.as_ref().err());
            self.reply(partition, StoreReply::Answered(token, reply));
        }
    }

    fn taken(&self) {
        self.metrics
            .queue_depth
            .get_or_create(&Queue { queue: "store" })
            .dec();
    }

    fn commit(&mut self, group: Group) {
        if group.members.is_empty() {
            return;
        }
        let started = Instant::now();
        let count = group.ops.len();
        let shards: Vec<ShardId> = group.ops.iter().map(StoreOp::shard).collect();
        let result = match self.faults.before_commit() {
            Ok(()) => self.engine.commit_now(group.ops, group.now_ms),
            Err(injected) => Err(injected),
        };
        let committed = result.is_ok();
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
        self.see(committed);
    }

    fn see(&self, committed: bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.figures = self.engine.figures();
        if committed {
            seen.last_commit_ms = super::clock::system_ms();
        }
    }

    fn idle(&mut self) -> bool {
        let idle = self.engine.idle();
        self.see(false);
        match idle {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::mpsc::TrySendError;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::core::state::StoreIdentity;
    use crate::net::supervise::Restarts;
    use crate::store::conformance::kit::{HERE, identity};

    /// What was done, in order.
    type Done = Arc<Mutex<Vec<&'static str>>>;

    /// Notes what it is asked, and lets the test say when a read ends.
    struct Noting {
        identity: StoreIdentity,
        done: Done,
        gate: mpsc::Receiver<()>,
    }

    impl Engine for Noting {
        fn identity(&self) -> &StoreIdentity {
            &self.identity
        }

        fn commit_now(&mut self, ops: Vec<StoreOp>, _now_ms: u64) -> Result<Committed, StoreError> {
            self.done.lock().unwrap().push("commit");
            assert!(ops.is_empty());
            Ok(Committed {
                outcomes: Vec::new(),
                logged: Vec::new(),
            })
        }

        fn read(&mut self, _read: &Read) -> Result<ReadReply, StoreError> {
            let _ = self.gate.recv();
            self.done.lock().unwrap().push("read");
            Ok(ReadReply::Shard(Box::default()))
        }
    }

    struct Rig {
        store: StoreThread,
        gate: mpsc::Sender<()>,
        done: Done,
        metrics: Arc<Metrics>,
        replies: UnboundedReceiver<StoreReply>,
    }

    fn rig(reads: usize) -> Rig {
        let (gate, behind) = mpsc::channel();
        let done = Done::default();
        let engine = Noting {
            identity: identity(1, &[HERE]),
            done: done.clone(),
            gate: behind,
        };
        let (sender, replies) = unbounded_channel();
        let metrics = Arc::new(Metrics::new("r", "n"));
        let health = Arc::new(Health::new("n".to_owned(), 1));
        let supervisor = Supervisor::new(Restarts::default(), |_, _, _| {});
        let engine = Box::new(engine);
        let faults = Arc::default();
        let store = StoreThread::start(
            engine,
            vec![sender],
            reads,
            metrics.clone(),
            health,
            supervisor,
            faults,
        )
        .unwrap();
        Rig {
            store,
            gate,
            done,
            metrics,
            replies,
        }
    }

    fn read(token: u64) -> StoreRequest {
        StoreRequest::Read {
            partition: 0,
            token,
            read: Read::Shard(ShardId(0)),
        }
    }

    fn commit(token: u64) -> StoreRequest {
        StoreRequest::Commit {
            partition: 0,
            token,
            ops: Vec::new(),
            now_ms: 1,
        }
    }

    #[test]
    fn a_commit_waits_for_a_few_reads_only() {
        const READS: usize = 10 * READS_BEFORE_COMMIT;
        let mut rig = rig(READS);
        let depth = rig
            .metrics
            .queue_depth
            .get_or_create(&Queue { queue: "store" })
            .clone();
        let ask = |request| {
            depth.inc();
            rig.store.requests().try_send(request).expect("there is room");
        };
        for token in 0..READS as u64 {
            ask(read(token));
        }
        ask(commit(1000));
        for _ in 0..READS {
            rig.gate.send(()).unwrap();
        }
        for _ in 0..=READS {
            rig.replies.blocking_recv().expect("each is answered");
        }
        let before = rig.done.lock().unwrap().iter().position(|what| *what == "commit");
        // The round that had begun when it came, and its own.
        let before = before.expect("it was committed");
        assert!(before <= 2 * READS_BEFORE_COMMIT, "after {before} reads");
        rig.store.close();
        assert_eq!(depth.get(), 0);
    }

    #[test]
    fn a_full_queue_refuses_at_once_and_what_it_took_is_answered() {
        let mut rig = rig(4);
        let requests = rig.store.requests();
        let (mut taken, mut token) = (0, 0);
        // The store stands still in its first read: some were taken from the queue before, then nothing is.
        let refused = loop {
            token += 1;
            match requests.try_send(read(token)) {
                Ok(()) => taken += 1,
                Err(TrySendError::Full(request)) => break request,
                Err(TrySendError::Disconnected(_)) => panic!("the store is gone"),
            }
            assert!(taken < 1000, "there is no limit");
        };
        let reply = refused.refused().expect("somebody waits for it");
        assert!(matches!(
            reply,
            StoreReply::Answered(of, Err(StoreError::Retryable(_))) if of == token
        ));
        for _ in 0..taken {
            rig.gate.send(()).unwrap();
        }
        for expected in 1..=taken {
            match rig.replies.blocking_recv() {
                Some(StoreReply::Answered(token, Ok(_))) => assert_eq!(token, expected),
                _ => panic!("{expected} is not answered"),
            }
        }
        assert!(matches!(
            commit(7).refused(),
            Some(StoreReply::Committed(7, Err(StoreError::Retryable(_))))
        ));
        rig.store.close();
    }
}
