//! The client without IO: what it does with inputs, time and random numbers. The driver and the simulator run it.
//!
//! ```text
//! Waiting --time--> Connecting --Connected--> Greeting (Hello) --Welcome--> Live --GoAway--> (leaving) --> Waiting
//!    ^                  | failed, late             | Error, late              | lost, Error, silence
//!    +------------------+--------------------------+--------------------------+        Closed: asked, superseded, refused
//! ```
//!
//! Inputs come by [`Machine::handle`], [`Machine::handle_timeout`] and [`Machine::send`]; then [`Machine::poll_output`] is
//! called until it is empty, [`Machine::poll_send`] while there is room to write, and [`Machine::poll_timeout`] says when
//! to come back. Sending is in `outbox`, receiving in `inbox`, where to connect in `endpoints`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod endpoints;
mod inbox;
mod live;
mod outbox;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use self::endpoints::Target;
use self::endpoints::{Endpoints, Was};
use self::inbox::Inbox;
use self::live::Live;
use self::outbox::{Outbox, cost};
use super::event::{ClientEvent, CloseCause, DisconnectReason, OutgoingMessage, SendError, Ticket};
use super::state::{SavedSend, SavedState};
use crate::core::ids::{Coord, DeviceId, MessageId, RegionId, UserId};
use crate::core::op::{MAX_BODY, MAX_TRACE};
use crate::core::time::{Mono, Now};
use crate::core::vector::Vector;
use crate::core::wire::{
    AWAY, ClientFrame, Code, Hello, MAX_AFTER, MAX_STATUS_TEXT, MOVES_IN_ORDER, RegionEndpoints, Rejected,
    SENDS_ONLY, ServerFrame, Status, Welcome,
};

/// An id made before the server's time was known may be off by so much: half of what servers take from the future.
const MAX_ID_SKEW_MS: u64 = 30 * 60 * 1000;

/// Limits and intervals of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Messages in the outbox: 16 full windows of a server with default limits.
    pub outbox_messages: usize,
    /// Bytes in the outbox, with about 256 for each message.
    pub outbox_bytes: usize,
    /// Consumed messages that are remembered against copies from another region, about 60 bytes each. Beyond it the
    /// oldest are forgotten: a copy of one could then be handed over again after a move to another region.
    pub remembered: usize,
    /// Messages handed over and not consumed; beyond it the client closes. Servers give far fewer.
    pub unconsumed: usize,
    /// Only the regions that the application gave are used, whatever servers tell: for one that is to show whether a region
    /// can be reached.
    pub stays: bool,
    /// For a connection.
    pub connect_timeout: Duration,
    /// From the connection to `Welcome`: more than the server takes to give up on an attach (10 s).
    pub greet_timeout: Duration,
    /// First pause after every endpoint failed.
    pub backoff_min: Duration,
    /// Longest pause between rounds over the endpoints.
    pub backoff_max: Duration,
    /// A session that lasted so long makes pauses small again.
    pub lasting: Duration,
    /// First pause after a message was refused for now.
    pub retry_min: Duration,
    /// Longest such pause.
    pub retry_max: Duration,
    /// An acknowledgement waits so long for others to go with it.
    pub ack_delay: Duration,
    /// So many consumed messages are acknowledged at once: well below a server's window.
    pub ack_every: usize,
    /// A ping after so long without a frame from the server.
    pub ping_every: Duration,
    /// A connection without an answer to a ping for so long is dead.
    pub pong_timeout: Duration,
    /// A connection that leaves a message unanswered for so long is dead: servers give up after 10 s.
    pub answer_timeout: Duration,
    /// When asked to go elsewhere, messages in flight have so long to be answered.
    pub leave_grace: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            outbox_messages: 16 * 1024,
            outbox_bytes: 64 * 1024 * 1024,
            remembered: 16 * 1024,
            unconsumed: 64 * 1024,
            stays: false,
            connect_timeout: Duration::from_secs(3),
            greet_timeout: Duration::from_secs(12),
            backoff_min: Duration::from_millis(250),
            backoff_max: Duration::from_secs(30),
            lasting: Duration::from_secs(5),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(5),
            ack_delay: Duration::from_millis(10),
            ack_every: 32,
            // A region that is lost is found out in less than six seconds, so that sessions stand elsewhere within ten.
            ping_every: Duration::from_secs(3),
            pong_timeout: Duration::from_millis(2_500),
            answer_timeout: Duration::from_secs(30),
            leave_grace: Duration::from_secs(2),
        }
    }
}

/// How a client is set up.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// A JWT; its `sub` is the user.
    pub token: String,
    /// Whether the application answers [`ClientEvent::TokenNeeded`] with [`Input::Token`].
    pub renews_token: bool,
    /// The device.
    pub device: DeviceId,
    /// Whether messages are to be delivered to it: see [`SENDS_ONLY`].
    pub receives: bool,
    /// Where to connect first; servers tell more.
    pub endpoints: Vec<RegionEndpoints>,
    /// The region to begin with; the first of `endpoints` otherwise.
    pub region: Option<RegionId>,
    /// First status.
    pub status: Status,
    /// First status text, at most [`MAX_STATUS_TEXT`] bytes.
    pub status_text: String,
    /// Name and version for the server's log, at most [`MAX_STATUS_TEXT`] bytes.
    pub agent: String,
    /// Limits and intervals.
    pub tuning: Tuning,
}

/// What happens to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The connection asked for by [`Output::Connect`] stands.
    Connected {
        /// As in the output; another one is late and ignored.
        attempt: u64,
    },
    /// It could not be made.
    ConnectFailed {
        /// As in the output.
        attempt: u64,
        /// For people.
        reason: String,
    },
    /// It was lost.
    Disconnected {
        /// As in the output.
        attempt: u64,
        /// For people.
        reason: String,
    },
    /// A frame from the server.
    Frame(ServerFrame),
    /// Bytes from the server that are no frame.
    BadFrame(String),
    /// The application handled what was delivered there.
    Consumed(Coord),
    /// The application handled everything of this origin to there.
    ConsumedThrough(Coord),
    /// Watch these users too.
    Watch(Vec<UserId>),
    /// Watch these no longer.
    Unwatch(Vec<UserId>),
    /// The own status; a text is cut at [`MAX_STATUS_TEXT`] bytes.
    SetStatus {
        /// The status.
        status: Status,
        /// Its text.
        text: String,
    },
    /// Another token, for this and later connections.
    Token(String),
    /// There is no other token, and why: the client closes.
    NoToken(String),
    /// End it in order.
    Close,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Connect, then say `Connected` or `ConnectFailed`.
    Connect {
        /// Names this attempt.
        attempt: u64,
        /// Where.
        target: Target,
    },
    /// Give the connection or the attempt up; with `flush` after the frames before this.
    Disconnect {
        /// Which.
        attempt: u64,
        /// Whether frames before this are worth waiting for.
        flush: bool,
    },
    /// Send this on the connection.
    Frame(ClientFrame),
    /// For the application.
    Event(ClientEvent),
    /// What [`Machine::state`] returns changed; comes again after the next call of it.
    SaveState,
}

/// Counters of a client since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientStats {
    /// Attempts to connect.
    pub attempts: u64,
    /// Sessions that stood.
    pub sessions: u64,
    /// Transmissions of messages.
    pub transmissions: u64,
    /// Messages accepted.
    pub accepted: u64,
    /// Of these, such that had been accepted before.
    pub accepted_again: u64,
    /// Messages refused for good.
    pub rejected: u64,
    /// Refusals after which a message is sent again.
    pub refusals: u64,
    /// Messages handed to the application.
    pub delivered: u64,
    /// Deliveries that were dropped as known.
    pub dropped: u64,
    /// Acknowledgements sent, one for each origin.
    pub acks: u64,
}

#[derive(Debug)]
enum Phase {
    Waiting { until: Mono },
    NeedsToken,
    Connecting { target: Target, until: Mono },
    Greeting { target: Target, until: Mono },
    Live(Box<Live>),
    Closed(CloseCause),
}

/// What the server's clock said, and when.
#[derive(Debug, Clone, Copy)]
struct ServerClock {
    ms: u64,
    at: Mono,
}

/// A client of one user's device.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    rng: ChaCha8Rng,
    now: Now,
    phase: Phase,
    attempt: u64,
    /// Whether the token was refused and no session stood since.
    token_refused: bool,
    connect_epoch: u64,
    /// Under which the server compares connect epochs. It goes with the seed of the state, which it does not betray.
    memory: u64,
    /// What is to come first in the region to which a server sends this client (R22).
    after: Vector,
    clock: Option<ServerClock>,
    /// Messages whose ids were made before the server's time was known; none of them went out.
    provisional: Vec<Ticket>,
    max_body: usize,
    endpoints: Endpoints,
    outbox: Outbox,
    inbox: Inbox,
    watched: BTreeSet<UserId>,
    out: VecDeque<Output>,
    dirty: bool,
    last_refusal: Option<Rejected>,
    /// The status changed when `Hello` had left: said again once the session stands.
    status_after_hello: bool,
    stats: ClientStats,
}

impl Machine {
    /// A client that connects at its first [`Machine::handle_timeout`]. `state` is what an earlier run saved; `rng` must
    /// be seeded differently for each client, since ids and pauses come from it.
    pub fn new(config: MachineConfig, state: SavedState, mut rng: ChaCha8Rng) -> Self {
        let tuning = &config.tuning;
        let mut outbox = Outbox::default();
        outbox.tickets_from(state.last_ticket);
        for saved in state.outbox {
            outbox.restore(Ticket(saved.ticket), saved.message);
        }
        let seed = state.seed.unwrap_or_else(|| rng.next_u64());
        let endpoints = Endpoints::new(
            config.endpoints.clone(),
            config.region.clone(),
            tuning.backoff_min,
            tuning.backoff_max,
        )
        .staying(tuning.stays);
        let mut machine = Self {
            inbox: Inbox::new(seed, state.cursor, state.remembered, tuning.remembered),
            rng,
            now: Now {
                mono: Mono(0),
                wall_ms: 0,
            },
            phase: Phase::Waiting { until: Mono(0) },
            attempt: 0,
            token_refused: false,
            connect_epoch: state.connect_epoch,
            memory: xxh3_64_with_seed(b"memory", seed).max(1),
            after: Vector::new(),
            clock: None,
            provisional: Vec::new(),
            max_body: MAX_BODY,
            endpoints,
            outbox,
            watched: BTreeSet::new(),
            out: VecDeque::new(),
            dirty: false,
            last_refusal: None,
            status_after_hello: false,
            stats: ClientStats::default(),
            config,
        };
        cut(&mut machine.config.status_text);
        cut(&mut machine.config.agent);
        if machine.endpoints.is_empty() {
            machine.close(CloseCause::NoEndpoint);
        }
        machine
    }

    /// Queues a message and makes its id, with the server's time, or with the own clock before the first session (where
    /// that turns out to be far off, an id that did not go out yet is made anew).
    ///
    /// # Errors
    /// [`SendError`]; the message is not queued then.
    pub fn send(&mut self, mut message: OutgoingMessage, now: Now) -> Result<Ticket, SendError> {
        self.now = now;
        self.check(&message)?;
        let given = message.id.is_some();
        if !given {
            let ms = self.server_ms().unwrap_or(now.wall_ms);
            message.id = Some(make_id(&mut self.rng, ms));
        }
        self.changed();
        let ticket = self.outbox.push(message);
        if !given && self.clock.is_none() {
            self.provisional.push(ticket);
        }
        Ok(ticket)
    }

    /// Whether [`Machine::send`] would take this message now.
    ///
    /// # Errors
    /// As [`Machine::send`].
    pub fn check(&self, message: &OutgoingMessage) -> Result<(), SendError> {
        if let Phase::Closed(cause) = &self.phase {
            return Err(SendError::Closed(cause.clone()));
        }
        let (len, max) = (message.body.len(), self.max_body);
        if len > max {
            return Err(SendError::TooLarge { len, max });
        }
        let (len, max) = (message.trace.len(), MAX_TRACE);
        if len > max {
            return Err(SendError::TraceTooLong { len, max });
        }
        if let Some(id) = message.id.filter(|id| id.unix_ms().is_none()) {
            return Err(SendError::BadId(id));
        }
        let (messages, bytes) = (self.outbox.len(), self.outbox.bytes());
        let tuning = &self.config.tuning;
        if messages >= tuning.outbox_messages || bytes + cost(message) > tuning.outbox_bytes {
            return Err(SendError::OutboxFull { messages, bytes });
        }
        Ok(())
    }

    /// Something happened.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.now = now;
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        match input {
            Input::Connected { attempt } if attempt == self.attempt => self.greet(),
            Input::ConnectFailed { attempt, reason } if attempt == self.attempt => {
                if matches!(self.phase, Phase::Connecting { .. }) {
                    self.lost(DisconnectReason::ConnectFailed(reason), false);
                }
            }
            Input::Disconnected { attempt, reason } if attempt == self.attempt => {
                if matches!(self.phase, Phase::Greeting { .. } | Phase::Live(_)) {
                    self.lost(DisconnectReason::Lost(reason), false);
                }
            }
            Input::Connected { .. } | Input::ConnectFailed { .. } | Input::Disconnected { .. } => {}
            Input::Frame(frame) => self.frame(frame),
            Input::BadFrame(reason) => {
                if matches!(self.phase, Phase::Greeting { .. } | Phase::Live(_)) {
                    self.lost(DisconnectReason::Protocol(reason), true);
                }
            }
            Input::Consumed(at) => {
                let changed = self.inbox.consumed(at);
                self.after_consumed(changed);
            }
            Input::ConsumedThrough(at) => {
                let changed = self.inbox.consumed_through(at);
                self.after_consumed(changed);
            }
            Input::Watch(users) => self.watch(users),
            Input::Unwatch(users) => self.unwatch(users),
            Input::SetStatus { status, mut text } => {
                cut(&mut text);
                self.config.status = status;
                self.config.status_text.clone_from(&text);
                match self.phase {
                    Phase::Live(_) => self.say(ClientFrame::SetStatus { status, text }),
                    Phase::Greeting { .. } => self.status_after_hello = true,
                    _ => {}
                }
            }
            Input::Token(token) => {
                self.config.token = token;
                if matches!(self.phase, Phase::NeedsToken) {
                    self.phase = Phase::Waiting { until: now.mono };
                }
            }
            Input::NoToken(reason) => self.stop(CloseCause::Unauthorized(reason)),
            Input::Close => self.leave_for_good(),
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        match &self.phase {
            Phase::Waiting { until } if *until <= now.mono => self.connect(),
            Phase::Connecting { until, .. } if *until <= now.mono => {
                let after = self.config.tuning.connect_timeout;
                self.lost(DisconnectReason::ConnectTimeout(after), true);
            }
            Phase::Greeting { until, .. } if *until <= now.mono => {
                let after = self.config.tuning.greet_timeout;
                self.lost(DisconnectReason::GreetTimeout(after), true);
            }
            Phase::Live(_) => self.live_timeout(),
            _ => {}
        }
    }

    /// When to call [`Machine::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Mono> {
        match &self.phase {
            Phase::Waiting { until } | Phase::Connecting { until, .. } | Phase::Greeting { until, .. } => {
                Some(*until)
            }
            Phase::Live(live) => self.live_poll_timeout(live),
            Phase::NeedsToken | Phase::Closed(_) => None,
        }
    }

    /// What to do, in order; messages to send come from [`Machine::poll_send`].
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// The next message to send on the connection, if one may go now, or what goes along with those that went. To be
    /// called when [`Machine::poll_output`] is empty and while there is room to write.
    pub fn poll_send(&mut self) -> Option<ClientFrame> {
        self.next_send()
    }

    /// What must survive a restart: the messages not accepted, the cursor, and what is remembered of consumed ones.
    pub fn state(&mut self) -> SavedState {
        self.dirty = false;
        SavedState {
            connect_epoch: self.connect_epoch,
            cursor: self.inbox.cursor().clone(),
            seed: Some(self.inbox.seed()),
            remembered: self.inbox.remembered().collect(),
            last_ticket: self.outbox.last_ticket(),
            outbox: self
                .outbox
                .iter()
                .map(|(ticket, message)| SavedSend {
                    ticket: ticket.0,
                    message: message.clone(),
                })
                .collect(),
        }
    }

    /// Messages that are not answered for good, and their cost in bytes.
    pub fn outbox(&self) -> (usize, usize) {
        (self.outbox.len(), self.outbox.bytes())
    }

    /// Most bytes of a body: as the last server said, or as the protocol allows.
    pub fn max_body(&self) -> usize {
        self.max_body
    }

    /// Most of both.
    pub fn outbox_limits(&self) -> (usize, usize) {
        let tuning = &self.config.tuning;
        (tuning.outbox_messages, tuning.outbox_bytes)
    }

    /// The messages that are not answered for good, in order: after a start, those of the run before.
    pub fn unanswered(&self) -> impl Iterator<Item = (Ticket, &OutgoingMessage)> {
        self.outbox.iter()
    }

    /// What was last refused for now, with the reason: it is sent again.
    pub fn last_refusal(&self) -> Option<&Rejected> {
        self.last_refusal.as_ref()
    }

    /// The id of a message that is not answered for good.
    pub fn id(&self, ticket: Ticket) -> Option<MessageId> {
        self.outbox.id(ticket)
    }

    /// Messages handed over and not consumed.
    pub fn unconsumed(&self) -> usize {
        self.inbox.unconsumed()
    }

    /// Whether a session stands.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live(_))
    }

    /// Why it stopped, once it did.
    pub fn closed(&self) -> Option<&CloseCause> {
        match &self.phase {
            Phase::Closed(cause) => Some(cause),
            _ => None,
        }
    }

    /// Counters.
    pub fn stats(&self) -> ClientStats {
        self.stats
    }

    fn connect(&mut self) {
        let Some(target) = self.endpoints.next(&mut self.rng) else {
            return self.close(CloseCause::NoEndpoint);
        };
        self.attempt += 1;
        self.stats.attempts += 1;
        self.out.push_back(Output::Connect {
            attempt: self.attempt,
            target: target.clone(),
        });
        let until = self.now.mono + self.config.tuning.connect_timeout;
        self.phase = Phase::Connecting { target, until };
    }

    fn greet(&mut self) {
        self.status_after_hello = false;
        let Phase::Connecting { target, .. } = &self.phase else {
            return;
        };
        let target = target.clone();
        let until = self.now.mono + self.config.tuning.greet_timeout;
        let mut capabilities = match self.config.receives {
            true => MOVES_IN_ORDER,
            false => SENDS_ONLY,
        };
        if self.endpoints.is_away(&target.region) {
            capabilities |= AWAY;
        }
        let hello = Hello {
            token: self.config.token.clone(),
            device: self.config.device.clone(),
            capabilities,
            cursor: self.inbox.claim(),
            connect_epoch: self.connect_epoch,
            status: self.config.status,
            text: self.config.status_text.clone(),
            agent: self.config.agent.clone(),
            memory: self.memory,
            after: self.after.clone(),
        };
        self.phase = Phase::Greeting { target, until };
        // The next one says more, so that a server knows which of two came later; also where this client ends before it is
        // welcomed and starts again.
        self.connect_epoch = self.connect_epoch.saturating_add(1);
        self.changed();
        self.out
            .push_back(Output::Frame(ClientFrame::Hello(Box::new(hello))));
    }

    fn frame(&mut self, frame: ServerFrame) {
        match (&mut self.phase, frame) {
            (Phase::Greeting { .. } | Phase::Live(_), ServerFrame::Error { code, detail }) => {
                self.server_error(code, detail);
            }
            (Phase::Greeting { .. } | Phase::Live(_), ServerFrame::GoAway { code, regions }) => {
                self.go_away(code, regions);
            }
            (Phase::Live(_), ServerFrame::After(after)) if after.len() <= MAX_AFTER => {
                self.heard();
                self.after = after;
            }
            (Phase::Greeting { .. } | Phase::Live(_), ServerFrame::Probe { nonce }) => {
                self.heard();
                self.say(ClientFrame::ProbeReply(nonce));
            }
            (Phase::Greeting { .. }, ServerFrame::Welcome(welcome)) => self.welcomed(*welcome),
            (Phase::Live(_), frame) => self.live_frame(frame),
            (Phase::Greeting { .. }, _) => {
                let reason = "a frame before its welcome".to_owned();
                self.lost(DisconnectReason::Protocol(reason), true);
            }
            // Late frames of a connection that was given up.
            _ => {}
        }
    }

    fn welcomed(&mut self, welcome: Welcome) {
        let Phase::Greeting { target, .. } = &self.phase else {
            return;
        };
        let target = target.clone();
        self.stats.sessions += 1;
        self.token_refused = false;
        self.set_clock(welcome.server_ms);
        self.settle_ids(welcome.server_ms);
        self.max_body = (welcome.limits.max_body as usize).min(MAX_BODY);
        self.connect_epoch = self.connect_epoch.max(welcome.connect_epoch);
        self.endpoints.welcomed(&welcome.region, welcome.regions);
        self.inbox.connected(&welcome.stable);
        // The server has it from the hello.
        self.after = Vector::new();
        self.phase = Phase::Live(Box::new(Live::new(target.clone(), welcome.limits, self.now.mono)));
        self.event(ClientEvent::Connected {
            region: welcome.region,
            node: welcome.node,
            endpoint: target.endpoint,
            session: welcome.session,
            connect_epoch: welcome.connect_epoch,
        });
        if std::mem::take(&mut self.status_after_hello) {
            let (status, text) = (self.config.status, self.config.status_text.clone());
            self.say(ClientFrame::SetStatus { status, text });
        }
        self.changed();
        self.subscribe_all();
    }

    fn server_error(&mut self, code: Code, detail: String) {
        match code {
            Code::Superseded => self.stop(CloseCause::Superseded),
            Code::Unauthorized if self.config.renews_token && !self.token_refused => {
                self.token_refused = true;
                self.lost(DisconnectReason::Server { code, detail }, true);
                self.phase = Phase::NeedsToken;
                self.event(ClientEvent::TokenNeeded);
            }
            Code::Unauthorized => self.stop(CloseCause::Unauthorized(detail)),
            Code::Overloaded => self.crowded(DisconnectReason::Server { code, detail }),
            Code::Version | Code::TooManyDevices => self.stop(CloseCause::Refused { code, detail }),
            _ => self.lost(DisconnectReason::Server { code, detail }, true),
        }
    }

    /// The server has no room now; where that was said instead of a welcome, its region is tried again for a while.
    fn crowded(&mut self, reason: DisconnectReason) {
        let Phase::Greeting { target, .. } = &self.phase else {
            return self.lost(reason, true);
        };
        let target = target.clone();
        let pause = self.endpoints.crowded(&target, &mut self.rng);
        self.wait(target, reason, pause, Some(false));
    }

    /// The connection or attempt is over; tries again after a pause.
    fn lost(&mut self, reason: DisconnectReason, give_up: bool) {
        let (target, was) = match &self.phase {
            Phase::Connecting { target, .. } | Phase::Greeting { target, .. } => {
                (target.clone(), Was::Nothing)
            }
            Phase::Live(live) if self.now.mono.since(live.since) >= self.config.tuning.lasting => {
                (live.target.clone(), Was::Lasting)
            }
            Phase::Live(live) => (live.target.clone(), Was::Short),
            _ => return,
        };
        let pause = self.endpoints.failed(&target, was, &mut self.rng);
        if matches!(reason, DisconnectReason::NoPong(_)) {
            self.endpoints.doubt(&target.region);
        }
        self.wait(target, reason, pause, give_up.then_some(false));
    }

    /// Ends the connection (`give_up`: asked of the driver, flushed or not) and waits.
    fn wait(&mut self, target: Target, reason: DisconnectReason, retry_in: Duration, give_up: Option<bool>) {
        if let Some(flush) = give_up {
            let attempt = self.attempt;
            self.out.push_back(Output::Disconnect { attempt, flush });
        }
        self.outbox.disconnected();
        let until = self.now.mono + retry_in;
        self.phase = Phase::Waiting { until };
        self.event(ClientEvent::Disconnected {
            endpoint: target.endpoint,
            reason,
            retry_in,
        });
    }

    /// The application asked to end.
    fn leave_for_good(&mut self) {
        if matches!(self.phase, Phase::Live(_)) {
            self.send_acks();
            self.say(ClientFrame::Bye);
        }
        self.stop(CloseCause::Asked);
    }

    /// Ends the connection, if there is one, and stops.
    fn stop(&mut self, cause: CloseCause) {
        if matches!(
            self.phase,
            Phase::Connecting { .. } | Phase::Greeting { .. } | Phase::Live(_)
        ) {
            self.out.push_back(Output::Disconnect {
                attempt: self.attempt,
                flush: matches!(self.phase, Phase::Live(_)) && cause == CloseCause::Asked,
            });
        }
        self.outbox.disconnected();
        self.close(cause);
    }

    fn close(&mut self, cause: CloseCause) {
        self.phase = Phase::Closed(cause.clone());
        self.event(ClientEvent::Closed(cause));
    }

    fn set_clock(&mut self, ms: u64) {
        let at = self.now.mono;
        self.clock = Some(ServerClock { ms, at });
    }

    fn server_ms(&self) -> Option<u64> {
        let clock = self.clock?;
        let passed = self.now.mono.since(clock.at).as_millis();
        Some(clock.ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)))
    }

    /// The first session tells the time: ids made by an own clock that is far off are made anew.
    fn settle_ids(&mut self, server_ms: u64) {
        for ticket in std::mem::take(&mut self.provisional) {
            let made = self.outbox.id(ticket).and_then(|id| id.unix_ms());
            if made.is_some_and(|ms| ms.abs_diff(server_ms) > MAX_ID_SKEW_MS) {
                self.outbox.set_id(ticket, make_id(&mut self.rng, server_ms));
            }
        }
    }

    fn say(&mut self, frame: ClientFrame) {
        if let Phase::Live(live) = &mut self.phase {
            live.said = self.now.mono;
        }
        self.out.push_back(Output::Frame(frame));
    }

    fn event(&mut self, event: ClientEvent) {
        self.out.push_back(Output::Event(event));
    }

    fn changed(&mut self) {
        if !std::mem::replace(&mut self.dirty, true) {
            self.out.push_back(Output::SaveState);
        }
    }
}

fn make_id(rng: &mut ChaCha8Rng, unix_ms: u64) -> MessageId {
    let mut random = [0; 10];
    rng.fill_bytes(&mut random);
    MessageId::v7(unix_ms, random)
}

/// Cuts a text that goes into a frame to what the frame may hold.
fn cut(text: &mut String) {
    if text.len() > MAX_STATUS_TEXT {
        let mut end = MAX_STATUS_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}
