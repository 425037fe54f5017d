//! The edge: holds the sessions of clients and speaks for them with the owners of shards, in its region as long as it can.
//!
//! ```text
//! client --ClientFrame--> session --stream per (session, shard)--> lane --ToOwner--> owner of the recipient's shard
//! client <--ServerFrame-- session <---------- Answers ------------ lane <--ToEdge--- owner of the recipient's shard
//!                            ^----- Attached, Deliver, Ended ----- lane <----------- owner of the user's shard
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | `session` | a session; its streams of unanswered deposits |
//! | `lanes` | which lane serves a shard; opening, loss, and re-opening of lanes; what goes out at a flush |
//! | `sends` | judges sends, settles answers, tries again, gives up |
//! | `inbound` | deliveries, acknowledgements, probes, watches |
//! | `bucket` | rate limits per user |
//! | `admission` | the rate at which new sessions are admitted |
//! | `fallback` | owners of another region, while the own region has none that serve |
//! | `moves` | an evacuated region, and the way home |
//! | `inspect` | sessions as an operator is shown them |
//!
//! **Lanes.** One for each owner partition (address and generation of its node) that can be reached, also while there is
//! no session: its `Synced` tells the owner which sessions this edge does not have. A lane is numbered above the edge's
//! generation, so that no number comes twice. It dies when the node becomes unreachable, when its generation or the
//! placement changes, on `Reset`, and when it owes an answer for `link_timeout_ms`. What it served is *closed*: sessions
//! are unattached, streams rewound. Closed shards are *opened* on the next lane: `Attach` of their sessions, `Synced`,
//! `Watch`, then the unanswered deposits in order. `NotOwner` closes shards for `retry_ms`, doubled while it goes on. A
//! shard that was closed on a lane does not open on it again, but on the next one, to which all shards of that owner go. A
//! message of another lane than the one that serves its session or shard is ignored, except for `Accepted`: what is
//! durable stays so.
//!
//! **Order at the owner (R21).** Each (session, shard) has a stream with an attempt. A retryable refusal of the current
//! attempt, or the loss of what was in flight, raises the attempt and sends all that is unanswered again, in order, after
//! `retry_ms`, doubled while refusals go on, or on the new lane. After a refusal only the first goes out until the owner
//! judged it. Refusals of older attempts are ignored. A stream is dropped when it is empty; the next
//! one of that session begins at the highest attempt of those dropped. What waits longer than `deposit_timeout_ms` is
//! answered `Unknown` (`StoreFull` where that was the owner's last word) together with all behind it in its stream.
//!
//! **Order at the edge.** When the edge itself answers a send with a retryable code (`Overloaded`, `TooManyInFlight`,
//! `RateLimited`, `Unknown`, `StoreFull`), messages to the same recipient that the client had sent behind it must not pass it. So the
//! session remembers, for each recipient, the id that was refused first, and refuses all others as `Blocked` until that id
//! comes again and is taken. A client *goes back* to the refused message: it sends that one and all later ones to that
//! recipient again that are not accepted, in order, under new session sequences and the same ids, before anything new.
//! Then whatever copy of the refused one is taken, what follows it on the connection follows it in order: safe; and it
//! comes: live. A client that does not want it any more ends the session. (A later one that comes again does not show that
//! the client gave the first one up, nor even that it knows of its refusal: it may have gone back for another one. The
//! model in the tests finds the order broken if later ones are let in; and if this were kept by shard, which clients do
//! not know.) Recipients that wait so are at most `sends_in_flight`, else the session ends.
//!
//! **What ends a session.** The connection or `Bye`; the owner's `Ended`; a frame out of turn (anything but `Ping`,
//! `ProbeReply` and `Bye` before `Welcome`, a second `Hello`); more watches than allowed (`TooManyWatches`); silence
//! (`Timeout`); no owner within `attach_timeout_ms` (`Unavailable`); refused messages to too many recipients
//! (`TooManyInFlight`); a damaged delivery (`Internal`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::ids::{Addr, ConnId, Generation, SessionId, ShardId, Sharding, UserId};
use super::limits::{CoreLimits, ms};
use super::msg::{Detach, ToOwner};
use super::time::{Mono, Now};
use super::vector::Vector;
use super::wire::{
    AWAY, ClientFrame, ClientLimits, Code, Hello, MOVES_IN_ORDER, RegionEndpoints, SENDS_ONLY, ServerFrame,
    Welcome,
};

mod admission;
mod bucket;
mod fallback;
mod inbound;
mod inspect;
mod lanes;
mod moves;
mod sends;
mod session;
mod stats;
#[cfg(test)]
mod tests;

use admission::{Admission, Waiting};
use bucket::Buckets;
use fallback::Serving;
use inbound::Watched;
use lanes::Routing;
pub use lanes::Unserved;
use moves::Moves;
pub use moves::{LEAVE_WITHIN, Pace};
pub use session::DEPOSIT_COST;
use session::Session;
pub use stats::{Durations, EdgeStats};

/// The code of a [`EdgeOutput::Close`] after `Bye`: nothing is wrong.
pub const GOODBYE: Code = Code::Other(0);
/// For people.
const EARLY: &str = "only Ping and Bye may come between Hello and Welcome";
/// Sessions that are told to go elsewhere in one step of a drain.
const DRAIN_BATCH: usize = 64;
/// Between two steps of a drain: 1,280 sessions a second, about a third of the handshakes a core can do, so that the
/// nodes they go to keep up.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// Who an edge is and what it may use.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// The partition that this is.
    pub me: Addr,
    /// The incarnation of its node.
    pub generation: Generation,
    /// How users are spread over shards.
    pub sharding: Sharding,
    /// Limits.
    pub limits: CoreLimits,
    /// Name of the node in `Welcome`.
    pub node: String,
}

/// What the edge wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeOutput {
    /// Frames to write to a client, in order.
    Client {
        /// Its connection.
        conn: ConnId,
        /// The frames.
        frames: Vec<ServerFrame>,
    },
    /// Close a connection after what was written before; [`Edge::handle_closed`] must still be called for it.
    Close {
        /// The connection.
        conn: ConnId,
        /// Why; [`GOODBYE`] where the client asked for it.
        code: Code,
        /// For people.
        detail: String,
    },
    /// A message to an owner.
    ToOwner {
        /// The partition.
        to: Addr,
        /// On this lane.
        lane: u64,
        /// What.
        body: ToOwner,
    },
}

/// The edge machine of one partition. See the module's head.
///
/// Every `handle_*` may leave outputs, which [`Edge::poll_output`] hands out until `None`, and may change
/// [`Edge::poll_timeout`].
#[derive(Debug)]
pub struct Edge {
    config: EdgeConfig,
    mono: Mono,
    endpoints: Vec<RegionEndpoints>,
    /// Boxed, since nodes of a map are half empty.
    sessions: BTreeMap<SessionId, Box<Session>>,
    conns: BTreeMap<ConnId, SessionId>,
    /// Connections that were told to close and are not gone yet.
    closing: BTreeSet<ConnId>,
    /// Sessions by their user's shard.
    by_shard: BTreeSet<(ShardId, SessionId)>,
    watched: BTreeMap<(ShardId, UserId), Watched>,
    routing: Routing,
    serving: Serving,
    buckets: Buckets,
    wakes: BTreeSet<(Mono, SessionId)>,
    /// Streams that go on after a retryable refusal.
    retries: BTreeSet<(Mono, SessionId, ShardId)>,
    draining: Option<Drain>,
    moves: Moves,
    admission: Admission,
    next_probe: u64,
    /// Sessions that have frames for their client.
    dirty: Vec<SessionId>,
    ready: VecDeque<EdgeOutput>,
    stats: EdgeStats,
}

#[derive(Debug)]
struct Drain {
    /// When the next step is due; `None` when all were told.
    at: Option<Mono>,
    /// Who was told last.
    after: Option<SessionId>,
}

impl Edge {
    /// An edge without sessions, that reaches no node but its own and knows no owners.
    pub fn new(config: EdgeConfig) -> Self {
        Self {
            mono: Mono::default(),
            endpoints: Vec::new(),
            sessions: BTreeMap::new(),
            conns: BTreeMap::new(),
            closing: BTreeSet::new(),
            by_shard: BTreeSet::new(),
            watched: BTreeMap::new(),
            routing: Routing::new(&config),
            serving: Serving::new(&config),
            buckets: Buckets::new(config.limits.sends_per_second, config.limits.send_burst),
            wakes: BTreeSet::new(),
            retries: BTreeSet::new(),
            draining: None,
            moves: Moves::default(),
            admission: Admission::new(&config.limits),
            next_probe: 0,
            dirty: Vec::new(),
            ready: VecDeque::new(),
            stats: EdgeStats::default(),
            config,
        }
    }

    /// A client said `Hello` and its token was verified: it is `user`. `session` is a random number.
    pub fn handle_hello(&mut self, conn: ConnId, user: UserId, hello: Hello, session: SessionId, now: Now) {
        self.mono = now.mono;
        if self.closing.contains(&conn) {
            return;
        }
        self.stats.hellos += 1;
        if let Some(&first) = self.conns.get(&conn) {
            return self.fail(first, Code::Protocol, "a second Hello on one connection");
        }
        if self.admission.forget(conn) {
            return self.refuse(conn, Code::Protocol, "a second Hello on one connection");
        }
        if !self.takes_sessions(conn) {
            return;
        }
        self.queue_hello(conn, user, hello, session, now);
    }

    /// Whether new sessions are taken; a connection that wants one is told if not.
    fn takes_sessions(&mut self, conn: ConnId) -> bool {
        if self.is_evacuated() {
            self.turn_away(conn);
            return false;
        }
        if self.draining.is_some() {
            let detail = "this node drains: connect to another endpoint";
            self.refuse(conn, Code::Draining, detail);
            return false;
        }
        true
    }

    /// A client's turn has come.
    fn admitted(&mut self, waiting: Waiting, now: Now) {
        let Waiting {
            conn,
            user,
            hello,
            session,
            ..
        } = waiting;
        if !self.takes_sessions(conn) {
            return;
        }
        if self.sessions.contains_key(&session) {
            return self.refuse(
                conn,
                Code::Unavailable,
                "the session number is in use: connect again",
            );
        }
        let limits = &self.config.limits;
        let attach_by = now.mono + ms(limits.attach_timeout_ms);
        let wake = attach_by.min(now.mono + self.idle());
        let shard = self.config.sharding.of_user(&user);
        let state = Session {
            conn,
            first: BTreeMap::new(),
            bucket: self.buckets.hold(&user),
            user,
            device: hello.device,
            receives: hello.capabilities & SENDS_ONLY == 0,
            shard,
            claim: hello.cursor,
            given: Vector::new(),
            acked: Vector::new(),
            connect_epoch: hello.connect_epoch,
            hello_epoch: hello.connect_epoch,
            memory: hello.memory,
            welcomed: false,
            in_order: hello.capabilities & MOVES_IN_ORDER != 0,
            after: hello.after,
            store: crate::core::ids::Origin(0),
            since_ms: now.wall_ms,
            status: hello.status,
            text: hello.text,
            counter: 0,
            heard: now.mono,
            attach_by: Some(attach_by),
            probe: None,
            leave_by: None,
            deposits_by: None,
            wake,
            lane: 0,
            attaching: false,
            last_seq: 0,
            attempt: 1,
            unanswered: 0,
            streams: BTreeMap::new(),
            watching: BTreeSet::new(),
            acks_due: Vec::new(),
            status_due: false,
            frames: Vec::new(),
        };
        if hello.capabilities & AWAY != 0 {
            self.moves.came_away(session);
        }
        self.conns.insert(conn, session);
        self.by_shard.insert((shard, session));
        self.wakes.insert((wake, session));
        self.sessions.insert(session, Box::new(state));
        self.stats.sessions += 1;
        self.stats.pending += 1;
        self.attach(session);
    }

    /// A frame of a client, other than its first `Hello`.
    pub fn handle_frame(&mut self, conn: ConnId, frame: ClientFrame, now: Now) {
        self.mono = now.mono;
        let Some(&id) = self.conns.get(&conn) else {
            if !self.closing.contains(&conn) && !self.frame_of_waiting(conn, &frame, now) {
                self.refuse(conn, Code::Protocol, "the first frame must be Hello");
            }
            return;
        };
        let session = self
            .sessions
            .get_mut(&id)
            .expect("a connection names a session that is held");
        session.heard = now.mono;
        session.leave_by = None;
        let early_is_fine = matches!(
            frame,
            ClientFrame::Hello(_) | ClientFrame::Ping(_) | ClientFrame::ProbeReply(_) | ClientFrame::Bye
        );
        if !session.welcomed && !early_is_fine {
            return self.fail(id, Code::Protocol, EARLY);
        }
        match frame {
            ClientFrame::Send(send) => self.on_send(id, send, now),
            ClientFrame::Ack(coords) => self.on_ack(id, &coords),
            ClientFrame::Ping(nonce) => {
                let server_ms = now.wall_ms;
                self.tell(id, ServerFrame::Pong { nonce, server_ms });
            }
            ClientFrame::ProbeReply(nonce) => self.on_probe_reply(id, nonce),
            ClientFrame::SetStatus { status, text } => self.on_set_status(id, status, text),
            ClientFrame::Watch(users) => self.on_watch(id, users),
            ClientFrame::Unwatch(users) => self.on_unwatch(id, users),
            ClientFrame::Bye => self.end(id, true, Some((GOODBYE, String::new()))),
            ClientFrame::Hello(_) => self.fail(id, Code::Protocol, "a second Hello on one connection"),
        }
    }

    /// A connection is gone: also one that [`EdgeOutput::Close`] asked to close.
    pub fn handle_closed(&mut self, conn: ConnId, now: Now) {
        self.mono = now.mono;
        self.closing.remove(&conn);
        self.admission.forget(conn);
        if let Some(&session) = self.conns.get(&conn) {
            self.end(session, true, None);
        }
    }

    /// The endpoints for `Welcome` and `GoAway`, the own region first.
    pub fn handle_endpoints(&mut self, regions: Vec<RegionEndpoints>) {
        self.endpoints = regions;
    }

    /// Refuses new sessions from now on and tells those at hand, a few at a time, to go elsewhere. Who answers is not closed.
    ///
    /// A client from which nothing is heard within `probe_ms` after that is gone: it must not hold up the drain.
    pub fn handle_drain(&mut self, now: Now) {
        self.mono = now.mono;
        if self.draining.is_none() {
            self.draining = Some(Drain {
                at: Some(now.mono),
                after: None,
            });
            self.drain_step();
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.mono = now.mono;
        while let Some(&(at, session)) = self.wakes.first().filter(|(at, _)| *at <= now.mono) {
            self.wakes.remove(&(at, session));
            self.wake(session);
        }
        while let Some(&(at, session, shard)) = self.retries.first().filter(|(at, _, _)| *at <= now.mono) {
            self.retries.remove(&(at, session, shard));
            self.retry(session, shard);
        }
        self.lanes_timeout();
        self.buckets.handle_timeout(now.mono);
        let drain = self.draining.as_ref().and_then(|drain| drain.at);
        if drain.is_some_and(|at| at <= now.mono) {
            self.drain_step();
        }
        self.moves_timeout();
        self.admission_timeout(now);
    }

    /// When [`Edge::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Mono> {
        [
            self.wakes.first().map(|(at, _)| *at),
            self.retries.first().map(|(at, _, _)| *at),
            self.routing.poll_timeout(&self.config.limits),
            self.serving.poll_timeout(self.config.limits.fallback_ms),
            self.buckets.poll_timeout(),
            self.draining.as_ref().and_then(|drain| drain.at),
            self.moves.poll_timeout(),
            self.admission.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next output. What came together since the last `None` goes out together, in few large messages.
    pub fn poll_output(&mut self) -> Option<EdgeOutput> {
        if self.ready.is_empty() {
            self.flush_clients();
            self.flush_lanes();
        }
        self.ready.pop_front()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> &EdgeStats {
        &self.stats
    }

    /// The sessions, each with its connection and the shard of its user.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, ConnId, ShardId)> + '_ {
        let sessions = self.sessions.iter();
        sessions.map(|(id, session)| (*id, session.conn, session.shard))
    }

    /// The lane on which a shard is served; 0 where none is.
    pub fn lane_serving(&self, shard: ShardId) -> u64 {
        self.routing.number_of(shard)
    }

    fn tell(&mut self, id: SessionId, frame: ServerFrame) {
        if let Some(session) = self.sessions.get_mut(&id) {
            tell(&mut self.dirty, id, session, frame);
        }
    }

    fn flush_clients(&mut self) {
        for id in self.dirty.drain(..) {
            if let Some(session) = self.sessions.get_mut(&id)
                && !session.frames.is_empty()
            {
                let frames = std::mem::take(&mut session.frames);
                let conn = session.conn;
                self.ready.push_back(EdgeOutput::Client { conn, frames });
            }
        }
    }

    fn welcome(&mut self, id: SessionId, stable: Vector, now: Now) {
        let limits = &self.config.limits;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.welcomed = true;
        session.attach_by = None;
        self.stats.pending -= 1;
        self.stats.welcomed += 1;
        let welcome = Welcome {
            session: id,
            connect_epoch: session.connect_epoch,
            server_ms: now.wall_ms,
            region: self.config.me.node.region.clone(),
            node: self.config.node.clone(),
            limits: ClientLimits {
                max_body: limits.max_body,
                sends_in_flight: limits.sends_in_flight,
                watches: u32::try_from(limits.watches).unwrap_or(u32::MAX),
                idle_seconds: limits.idle_seconds,
            },
            regions: self.endpoints.clone(),
            stable,
        };
        tell(
            &mut self.dirty,
            id,
            session,
            ServerFrame::Welcome(Box::new(welcome)),
        );
    }

    /// Ends a session with an error to its client, and tells its owner.
    fn fail(&mut self, id: SessionId, code: Code, detail: &str) {
        self.end(id, true, Some((code, detail.to_owned())));
    }

    /// Turns a connection away that has no session.
    fn refuse(&mut self, conn: ConnId, code: Code, detail: &str) {
        stats::count(&mut self.stats.ended, code);
        self.close(conn, Vec::new(), code, detail.to_owned());
    }

    fn close(&mut self, conn: ConnId, mut frames: Vec<ServerFrame>, code: Code, detail: String) {
        if code != GOODBYE {
            let detail = detail.clone();
            frames.push(ServerFrame::Error { code, detail });
        }
        if !frames.is_empty() {
            self.ready.push_back(EdgeOutput::Client { conn, frames });
        }
        self.ready.push_back(EdgeOutput::Close { conn, code, detail });
        self.closing.insert(conn);
    }

    /// Forgets a session. `detach`: its owner is told, after the acknowledgements that are due. `close`: its connection
    /// is there and is closed with this.
    fn end(&mut self, id: SessionId, detach: bool, close: Option<(Code, String)>) {
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        self.conns.remove(&session.conn);
        self.moves.away.remove(&id);
        self.by_shard.remove(&(session.shard, id));
        self.wakes.remove(&(session.wake, id));
        self.buckets.release(session.bucket, self.mono);
        self.stats.sessions -= 1;
        self.stats.pending -= usize::from(!session.welcomed);
        for (shard, stream) in &session.streams {
            self.stats.deposits -= stream.items.len();
            self.stats.forgotten += stream.items.len() as u64;
            self.stats.bytes -= stream.items.iter().map(session::Item::cost).sum::<usize>();
            if let Some(at) = stream.paused {
                self.retries.remove(&(at, id, *shard));
            }
            self.routing.answered(*shard, stream.in_flight());
        }
        for user in std::mem::take(&mut session.watching) {
            self.unwatch(id, &user);
        }
        let shard = session.shard;
        if let Some(lane) = self.routing.lane_mut(session.lane) {
            lane.attaching -= usize::from(session.attaching);
            self.stats.acks_forwarded += lane.out.take_acks(id, &mut session);
            if detach {
                lane.out.detach.push(Detach { shard, session: id });
            }
        }
        match close {
            Some((code, detail)) => {
                stats::count(&mut self.stats.ended, code);
                self.close(session.conn, session.frames, code, detail);
            }
            None => self.stats.closed += 1,
        }
    }

    /// Looks at everything that may be due for one session.
    fn wake(&mut self, id: SessionId) {
        let now = self.mono;
        let idle = self.idle();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.heard + idle <= now {
            return self.fail(
                id,
                Code::Timeout,
                "nothing was heard for longer than Welcome allows",
            );
        }
        if session.leave_by.is_some_and(|at| at <= now) {
            let detail = "this node drains, and nothing was heard since it said so";
            return self.fail(id, Code::Draining, detail);
        }
        if session.attach_by.is_some_and(|at| at <= now) {
            let detail = "the owner of this user's shard did not answer: connect again, or elsewhere";
            return self.fail(id, Code::Unavailable, detail);
        }
        if session.probe.is_some_and(|(_, at)| at <= now) {
            session.probe = None;
            self.stats.probes_unanswered += 1;
            self.answer_probe(id, false);
        }
        self.check_deposits(id);
        self.arm(id);
    }

    /// Puts a session among the timers where it belongs now.
    fn arm(&mut self, id: SessionId) {
        let idle = self.idle();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let due = [
            Some(session.heard + idle),
            session.attach_by,
            session.probe.map(|(_, at)| at),
            session.leave_by,
            session.deposits_by,
        ];
        let wake = due.into_iter().flatten().min().unwrap_or(self.mono);
        self.wakes.remove(&(session.wake, id));
        session.wake = wake;
        self.wakes.insert((wake, id));
    }

    fn idle(&self) -> Duration {
        Duration::from_secs(self.config.limits.idle_seconds.max(1).into())
    }

    fn drain_step(&mut self) {
        let Some(drain) = &mut self.draining else { return };
        let from = drain
            .after
            .map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let some: Vec<(SessionId, bool)> = self
            .sessions
            .range((from, std::ops::Bound::Unbounded))
            .take(DRAIN_BATCH)
            .map(|(id, session)| (*id, session.welcomed))
            .collect();
        drain.after = some.last().map(|(id, _)| *id).or(drain.after);
        drain.at = (some.len() == DRAIN_BATCH).then(|| self.mono + DRAIN_STEP);
        for (id, welcomed) in some {
            if welcomed {
                let regions = self.told_regions();
                let code = Code::Draining;
                self.tell(id, ServerFrame::GoAway { code, regions });
                self.look_for_life(id);
            } else {
                self.fail(
                    id,
                    Code::Draining,
                    "this node drains: connect to another endpoint",
                );
            }
        }
    }
}

/// Puts a frame behind the others of a session.
fn tell(dirty: &mut Vec<SessionId>, id: SessionId, session: &mut Session, frame: ServerFrame) {
    if session.frames.is_empty() {
        dirty.push(id);
    }
    session.frames.push(frame);
}
