//! What the application's handles and the client's task share: the machine behind a lock that nobody holds while waiting.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::event::{ClientEvent, CloseCause, OutgoingMessage, SendError, Ticket};
use super::machine::{Input, Machine};
use super::queue::EventQueue;
use super::{Accepted, SendFailed, clock};

/// How frames of a client were batched since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoStats {
    /// Reads from the connection.
    pub reads: u64,
    /// Frames in them.
    pub frames_read: u64,
    /// Writes to the connection.
    pub writes: u64,
    /// Frames in them.
    pub frames_written: u64,
}

#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    /// Wakes the task.
    pub(super) wake: Notify,
    /// Wakes who waits for an event.
    pub(super) events: Notify,
    /// Wakes all who wait for room in the outbox, a session, or the end.
    pub(super) changes: Notify,
    pub(super) base: Instant,
    /// Results that wait in the event queue count here too.
    capacity: usize,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) machine: Machine,
    pub(super) events: EventQueue,
    /// Sends whose result somebody waits for.
    waiters: BTreeMap<Ticket, oneshot::Sender<Result<Accepted, SendFailed>>>,
    /// The task was woken and has not looked yet.
    pub(super) wake_pending: bool,
    /// Last frames on their way out on a connection that was given up.
    pub(super) flushing: Option<JoinHandle<()>>,
    pub(super) finished: bool,
    pub(super) io: IoStats,
}

impl Shared {
    pub(super) fn new(machine: Machine, base: Instant, capacity: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                machine,
                events: EventQueue::default(),
                waiters: BTreeMap::new(),
                wake_pending: false,
                flushing: None,
                finished: false,
                io: IoStats::default(),
            }),
            wake: Notify::new(),
            events: Notify::new(),
            changes: Notify::new(),
            base,
            capacity,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock ends the client's task, which is seen as `Stopped`; the queues stay readable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message, with somebody who waits for its result or not.
    pub(super) fn send(
        &self,
        inner: &mut Inner,
        message: OutgoingMessage,
        waiter: Option<oneshot::Sender<Result<Accepted, SendFailed>>>,
    ) -> Result<Ticket, SendError> {
        self.room(inner)?;
        let ticket = inner.machine.send(message, clock(self.base))?;
        if let Some(waiter) = waiter {
            inner.waiters.insert(ticket, waiter);
        }
        self.wake(inner);
        Ok(ticket)
    }

    /// Whether the outbox, with results that nobody took, has room.
    pub(super) fn room(&self, inner: &Inner) -> Result<(), SendError> {
        if inner.finished {
            return Err(SendError::Closed(inner.cause()));
        }
        let (messages, bytes) = inner.machine.outbox();
        let messages = messages + inner.events.answers();
        if messages >= self.capacity {
            return Err(SendError::OutboxFull { messages, bytes });
        }
        Ok(())
    }

    /// An input from the application.
    pub(super) fn input(&self, input: Input) {
        let mut inner = self.lock();
        inner.machine.handle(input, clock(self.base));
        self.wake(&mut inner);
    }

    /// Wakes the task once, however often it is asked before it looks.
    pub(super) fn wake(&self, inner: &mut Inner) {
        if !std::mem::replace(&mut inner.wake_pending, true) {
            self.wake.notify_one();
        }
    }

    /// Something was put where the application looks.
    pub(super) fn tell(&self) {
        self.events.notify_one();
        self.changes.notify_waiters();
    }

    pub(super) fn finished(&self) {
        let mut inner = self.lock();
        if inner.machine.closed().is_none() {
            inner.events.push(ClientEvent::Closed(CloseCause::Stopped));
        }
        inner.finished = true;
        inner.waiters.clear();
        drop(inner);
        self.events.notify_waiters();
        self.tell();
    }
}

impl Inner {
    /// An event of the machine, to whoever waits for it; says whether the application has something to see.
    pub(super) fn tell(&mut self, event: ClientEvent) -> bool {
        let ticket = match &event {
            ClientEvent::Accepted { ticket, .. } | ClientEvent::Rejected { ticket, .. } => Some(*ticket),
            _ => None,
        };
        if let Some(waiter) = ticket.and_then(|ticket| self.waiters.remove(&ticket)) {
            let result = match event {
                ClientEvent::Accepted {
                    id,
                    at,
                    duplicate,
                    durability,
                    ..
                } => Ok(Accepted {
                    id,
                    at,
                    duplicate,
                    durability,
                }),
                ClientEvent::Rejected { id, code, detail, .. } => {
                    Err(SendFailed::Rejected { id, code, detail })
                }
                _ => return false,
            };
            // Nobody to hear it: the handle was dropped, and with it the wish to know.
            let _ = waiter.send(result);
            return true;
        }
        self.events.push(event);
        true
    }

    /// Why it ended.
    pub(super) fn cause(&self) -> CloseCause {
        self.machine.closed().cloned().unwrap_or(CloseCause::Stopped)
    }
}
