//! New sessions are admitted at a limited rate, so that those who are in notice little of a storm of clients that come at once.
//!
//! Up to [`CoreLimits::sessions_per_second`](crate::core::limits::CoreLimits::sessions_per_second) are admitted, a quarter of a
//! second's worth of them at once after a silence. Further ones wait in the order in which they came, as many as can be
//! admitted within `admit_ms`; the others are told [`Code::Overloaded`] at once, and come back after a pause or go to another
//! endpoint.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Edge, EdgeOutput, GOODBYE};
use crate::core::ids::{ConnId, SessionId, UserId};
use crate::core::limits::{CoreLimits, ms};
use crate::core::time::{Mono, Now};
use crate::core::wire::{ClientFrame, Code, Hello, ServerFrame};

/// What is admitted at once after a silence: so much of a second's worth.
const BURST: Duration = Duration::from_millis(250);

/// Who said `Hello` and has no session yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) conn: ConnId,
    pub(super) user: UserId,
    pub(super) hello: Hello,
    pub(super) session: SessionId,
    until: Mono,
}

/// A bucket of admissions (GCRA: it holds the time at which the next one would be due at an even rate), and who waits.
#[derive(Debug)]
pub(super) struct Admission {
    each: Duration,
    wait: Duration,
    most: usize,
    next: Mono,
    queue: VecDeque<Waiting>,
    /// Those of the queue that are there still.
    conns: BTreeSet<ConnId>,
}

impl Admission {
    pub(super) fn new(limits: &CoreLimits) -> Self {
        let rate = limits.sessions_per_second.max(1);
        let most = u64::from(rate).saturating_mul(limits.admit_ms) / 1000;
        Self {
            each: Duration::from_secs(1) / rate,
            wait: ms(limits.admit_ms),
            most: usize::try_from(most).unwrap_or(usize::MAX),
            next: Mono::default(),
            queue: VecDeque::new(),
            conns: BTreeSet::new(),
        }
    }

    /// When the next one may be admitted.
    fn due(&self) -> Mono {
        let early = BURST.max(self.each).saturating_sub(self.each);
        Mono(self.next.0.saturating_sub(micros(early)))
    }

    fn admit(&mut self, now: Mono) {
        self.next = self.next.max(now) + self.each;
    }

    pub(super) fn poll_timeout(&self) -> Option<Mono> {
        let front = self.queue.front()?;
        Some(self.due().min(front.until))
    }

    pub(super) fn waiting(&self) -> usize {
        self.conns.len()
    }

    /// Whether it waited.
    pub(super) fn forget(&mut self, conn: ConnId) -> bool {
        let waited = self.conns.remove(&conn);
        while let Some(front) = self.queue.front()
            && !self.conns.contains(&front.conn)
        {
            self.queue.pop_front();
        }
        waited
    }
}

impl Edge {
    /// Clients that said `Hello` and wait to be admitted.
    pub fn waiting(&self) -> usize {
        self.admission.waiting()
    }

    /// Admits a client now, or lets it wait, or tells it to come back.
    pub(super) fn queue_hello(
        &mut self,
        conn: ConnId,
        user: UserId,
        hello: Hello,
        session: SessionId,
        now: Now,
    ) {
        let admission = &mut self.admission;
        let waiting = Waiting {
            conn,
            user,
            hello,
            session,
            until: now.mono + admission.wait,
        };
        if admission.conns.is_empty() && admission.due() <= now.mono {
            admission.admit(now.mono);
            return self.admitted(waiting, now);
        }
        // Those that went while they waited keep their places until it is their turn.
        if admission.queue.len() >= admission.most {
            return self.refuse(conn, Code::Overloaded, FULL);
        }
        admission.conns.insert(conn);
        admission.queue.push_back(waiting);
    }

    /// A frame of a client that waits. Says whether it does.
    pub(super) fn frame_of_waiting(&mut self, conn: ConnId, frame: &ClientFrame, now: Now) -> bool {
        if !self.admission.conns.contains(&conn) {
            return false;
        }
        match frame {
            ClientFrame::ProbeReply(_) => {}
            ClientFrame::Ping(nonce) => {
                let (nonce, server_ms) = (*nonce, now.wall_ms);
                let frames = vec![ServerFrame::Pong { nonce, server_ms }];
                self.ready.push_back(EdgeOutput::Client { conn, frames });
            }
            ClientFrame::Bye => {
                self.admission.forget(conn);
                self.close(conn, Vec::new(), GOODBYE, String::new());
            }
            _ => {
                self.admission.forget(conn);
                self.refuse(conn, Code::Protocol, super::EARLY);
            }
        }
        true
    }

    /// Admits those whose turn it is, and tells those to come back that waited too long.
    pub(super) fn admission_timeout(&mut self, now: Now) {
        while let Some(front) = self.admission.queue.front() {
            let (conn, late) = (front.conn, front.until <= now.mono);
            let gone = !self.admission.conns.contains(&conn);
            let due = self.admission.due() <= now.mono;
            if !gone && !late && !due {
                return;
            }
            let Some(waiting) = self.admission.queue.pop_front().filter(|_| !gone) else {
                continue;
            };
            self.admission.conns.remove(&conn);
            if due {
                self.admission.admit(now.mono);
                self.admitted(waiting, now);
            } else {
                self.refuse(conn, Code::Overloaded, FULL);
            }
        }
    }
}

/// For people.
const FULL: &str =
    "more clients come than this node admits a second: come back in some seconds, or go to another endpoint";

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
