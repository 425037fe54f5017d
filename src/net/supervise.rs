//! Supervision of long tasks: each has a kind (a label of metrics), a name, and a rule for what becomes of it when it panics.
//!
//! A task that can begin anew is started again after a pause that doubles; one that does so again and again counts as failing
//! until it lasts. One whose state is lost with it is *critical*: its end is told once, and whoever runs the node ends the
//! process. Neither touches any other task.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{CloseCode, CloseReason};

/// When a task that panicked is started again.
#[derive(Debug, Clone, Copy)]
pub struct Restarts {
    /// Before the first restart; doubles with each that follows soon.
    pub first: Duration,
    /// Longest pause: the cause may be gone by itself, and a log line every ten seconds can be read.
    pub longest: Duration,
    /// A run of this length has lasted: the next panic counts as the first.
    pub lasted: Duration,
    /// Restarts in a row from which on the task counts as failing.
    pub failing: u32,
}

impl Default for Restarts {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(10),
            lasted: Duration::from_secs(30),
            failing: 3,
        }
    }
}

/// What happened to a supervised task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEvent<'a> {
    /// It panicked and is started again.
    Restarted,
    /// It is started again and again: what it does is not done.
    Failing(&'a str),
    /// A run lasted after it was failing.
    Lasts,
    /// It is over and cannot be started again.
    Ended(&'a str),
}

/// A critical task that is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the task {task} ended and cannot be started again: {why}")]
pub struct TaskEnded {
    /// Its name.
    pub task: String,
    /// The words of its panic, or what else ended it.
    pub why: String,
}

type Report = dyn Fn(&'static str, &str, TaskEvent<'_>) + Send + Sync;

/// Watches over the tasks of one node. Cheap to clone; the default reports to the log alone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    report: Box<Report>,
    restarts: Restarts,
    ended: watch::Sender<Option<TaskEnded>>,
    /// A task to make panic, for tests. Each asks once.
    inject: Mutex<Option<String>>,
    injected: watch::Sender<u64>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new(Restarts::default(), |_, _, _| {})
    }
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor")
            .field("ended", &*self.0.ended.borrow())
            .finish_non_exhaustive()
    }
}

impl Supervisor {
    /// `report` is called with kind and name of a task and what happened to it, from the task's own place: it must not wait.
    pub fn new(
        restarts: Restarts,
        report: impl Fn(&'static str, &str, TaskEvent<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            report: Box::new(report),
            restarts,
            ended: watch::Sender::new(None),
            inject: Mutex::default(),
            injected: watch::Sender::new(0),
        }))
    }

    /// Runs what `make` makes until a run ends by itself; after a panic it is made and run again.
    pub async fn keep<F: Future<Output = ()>>(
        self,
        kind: &'static str,
        name: String,
        mut make: impl FnMut() -> F,
    ) {
        let rule = self.0.restarts;
        let mut in_a_row: u32 = 0;
        loop {
            let mut run = Box::pin(caught(self.injectable(&name, make())));
            let ended = match timeout(rule.lasted, &mut run).await {
                Ok(ended) => ended,
                Err(_) => {
                    if in_a_row >= rule.failing {
                        tracing::info!(task = %name, "a task lasts again");
                        self.report(kind, &name, TaskEvent::Lasts);
                    }
                    in_a_row = 0;
                    run.await
                }
            };
            let Err(why) = ended else {
                if in_a_row >= rule.failing {
                    self.report(kind, &name, TaskEvent::Lasts);
                }
                return;
            };
            in_a_row = in_a_row.saturating_add(1);
            let pause = rule
                .first
                .saturating_mul(1 << (in_a_row - 1).min(16))
                .min(rule.longest);
            tracing::error!(task = %name, %why, in_a_row, ?pause, "a task panicked and is started again");
            self.report(kind, &name, TaskEvent::Restarted);
            if in_a_row >= rule.failing {
                self.report(kind, &name, TaskEvent::Failing(&why));
            }
            sleep(pause).await;
        }
    }

    /// Runs a task that cannot begin anew: a panic is its end.
    pub async fn critical(self, kind: &'static str, name: String, task: impl Future<Output = ()>) {
        if let Err(why) = caught(self.injectable(&name, task)).await {
            self.ended(kind, &name, &format!("it panicked: {why}"));
        }
    }

    /// As [`Supervisor::critical`], for a thread's work.
    pub fn critical_thread(&self, kind: &'static str, name: &str, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.ended(kind, name, &format!("it panicked: {}", words(&*panic)));
        }
    }

    /// A critical task is over, for this reason. Only the first is kept.
    pub fn ended(&self, kind: &'static str, name: &str, why: &str) {
        tracing::error!(task = %name, %why, "a task ended that the node cannot do without");
        self.report(kind, name, TaskEvent::Ended(why));
        self.0.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(TaskEnded {
                    task: name.to_owned(),
                    why: why.to_owned(),
                });
            }
            first
        });
    }

    /// Completes when a critical task is over.
    pub fn failed(&self) -> impl Future<Output = TaskEnded> + Send + use<> {
        let mut ended = self.0.ended.subscribe();
        async move {
            loop {
                if let Some(ended) = ended.borrow_and_update().clone() {
                    return ended;
                }
                if ended.changed().await.is_err() {
                    // No task can end that nobody watches any more.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Makes the task of this name panic at once, or when it next runs. For tests: builds without debug assertions ignore it.
    #[doc(hidden)]
    pub fn inject_panic(&self, name: &str) {
        *self.0.inject.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
        self.0.injected.send_modify(|count| *count += 1);
    }

    /// Whether a panic was asked of this task; once.
    #[doc(hidden)]
    pub fn panic_is_due(&self, name: &str) -> bool {
        let mut inject = self.0.inject.lock().unwrap_or_else(PoisonError::into_inner);
        let due = inject.as_deref() == Some(name);
        if due {
            *inject = None;
        }
        due
    }

    fn report(&self, kind: &'static str, name: &str, event: TaskEvent<'_>) {
        (self.0.report)(kind, name, event);
    }

    /// `task`, which panics where a test asks for it.
    async fn injectable<F: Future<Output = ()>>(&self, name: &str, task: F) {
        if !cfg!(debug_assertions) {
            return task.await;
        }
        let mut injected = self.0.injected.subscribe();
        let panics = async {
            loop {
                assert!(!self.panic_is_due(name), "a panic that a test asked for");
                // The sender lives in `self`.
                let _ = injected.changed().await;
            }
        };
        tokio::select! {
            biased;
            () = panics => {}
            () = task => {}
        }
    }
}

/// Runs a future; a panic in it becomes an error with its words.
async fn caught<F: Future<Output = ()>>(task: F) -> Result<(), String> {
    let mut task = Box::pin(task);
    poll_fn(
        |context| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Err(panic) => Poll::Ready(Err(words(&*panic))),
        },
    )
    .await
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no words".to_owned())
}

/// Closes a connection when the task that holds this panics: without its reader or writer it would look healthy.
pub(crate) struct CloseOnPanic(pub(crate) quinn::Connection);

impl Drop for CloseOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            CloseReason::new(CloseCode::INTERNAL, "a task of the connection panicked").close(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    type Events = Arc<Mutex<Vec<String>>>;

    fn supervisor() -> (Supervisor, Events) {
        let events = Events::default();
        let seen = events.clone();
        let rule = Restarts {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(2),
            lasted: Duration::from_millis(20),
            failing: 2,
        };
        let supervisor = Supervisor::new(rule, move |kind, name, event| {
            seen.lock().unwrap().push(format!("{kind} {name} {event:?}"));
        });
        (supervisor, events)
    }

    #[tokio::test]
    async fn a_task_is_started_again_and_counts_as_failing_until_it_lasts() {
        let (supervisor, events) = supervisor();
        let runs = AtomicU32::new(0);
        let (stop, stopped) = watch::channel(false);
        let kept = supervisor.clone().keep("view", "members".to_owned(), || {
            let run = runs.fetch_add(1, SeqCst);
            let mut stopped = stopped.clone();
            async move {
                assert!(run >= 3, "run {run}");
                let _ = stopped.wait_for(|stop| *stop).await;
            }
        });
        let watch = async {
            while !events
                .lock()
                .unwrap()
                .iter()
                .any(|event| event.ends_with("Lasts"))
            {
                tokio::task::yield_now().await;
            }
            stop.send_replace(true);
        };
        tokio::join!(kept, watch);
        assert_eq!(
            *events.lock().unwrap(),
            [
                "view members Restarted",
                "view members Restarted",
                "view members Failing(\"run 1\")",
                "view members Restarted",
                "view members Failing(\"run 2\")",
                "view members Lasts",
            ]
        );
    }

    #[tokio::test]
    async fn the_end_of_a_critical_task_is_told_once_and_touches_no_other() {
        let (supervisor, events) = supervisor();
        let failed = supervisor.failed();
        supervisor
            .clone()
            .critical("partition", "partition 0".to_owned(), async { panic!("lost") })
            .await;
        supervisor.critical_thread("store", "store", || panic!("{}", "later"));
        let first = failed.await;
        assert_eq!(
            first.to_string(),
            "the task partition 0 ended and cannot be started again: it panicked: lost"
        );
        assert_eq!(supervisor.failed().await, first);
        assert_eq!(events.lock().unwrap().len(), 2);
        let done = AtomicU32::new(0);
        let other = async {
            done.fetch_add(1, SeqCst);
        };
        supervisor
            .critical("partition", "partition 1".to_owned(), other)
            .await;
        assert_eq!(done.load(SeqCst), 1);
    }
}
