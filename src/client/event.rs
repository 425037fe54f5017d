//! What the library and the application tell each other.

use std::time::Duration;

use bytes::Bytes;

use crate::core::ids::{Coord, DeviceId, MessageId, RegionId, SessionId, UserId};
use crate::core::wire::{Code, Durability, Hole, PresenceEvent};

/// Names a message from the moment it was queued: rises with each send of a client, over restarts where state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// Recipient.
    pub to: UserId,
    /// The application's kind of content.
    pub kind: u16,
    /// Milliseconds that it is worth delivering; 0 = no limit.
    pub ttl_ms: u64,
    /// Trace context (W3C `traceparent`), at most [`crate::core::op::MAX_TRACE`] bytes.
    pub trace: Vec<u8>,
    /// An id of the application's own (UUIDv7), so that its own retries collapse; `None` has one made.
    pub id: Option<MessageId>,
    /// The body, at most what [`crate::core::wire::ClientLimits::max_body`] allows.
    pub body: Bytes,
}

impl OutgoingMessage {
    /// A message of kind 0 without limit in time.
    pub fn new(to: UserId, body: impl Into<Bytes>) -> Self {
        Self {
            to,
            kind: 0,
            ttl_ms: 0,
            trace: Vec::new(),
            id: None,
            body: body.into(),
        }
    }
}

/// A message that was not even queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The outbox holds as much as it may: wait for answers.
    #[error("the outbox is full ({messages} messages, {bytes} bytes wait); wait until some are accepted")]
    OutboxFull {
        /// Messages that wait, answers not taken included.
        messages: usize,
        /// Bytes that wait.
        bytes: usize,
    },
    /// The body is longer than the server or the protocol allows.
    #[error("a body of {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The trace context is too long.
    #[error("a trace context of {len} bytes; at most {max} are allowed")]
    TraceTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The id is not one that a server accepts.
    #[error("{0} is not a UUIDv7: leave the id out, or make one with the time of now")]
    BadId(MessageId),
    /// The client is closed.
    #[error("the client is closed: {0}")]
    Closed(CloseCause),
}

/// A message for this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Its coordinates: what is said to be consumed.
    pub at: Coord,
    /// The sender, as authenticated.
    pub from: UserId,
    /// The sender's device.
    pub from_device: DeviceId,
    /// Made by the sender; the same message never comes with another one.
    pub id: MessageId,
    /// The application's kind of content.
    pub kind: u16,
    /// When it was logged, unix milliseconds.
    pub sent_ms: u64,
    /// Unix milliseconds after which it need not be shown; 0 = never.
    pub expires_ms: u64,
    /// With [`Self::session`] and [`Self::session_seq`]: the order in which the sender sent.
    pub connect_epoch: u64,
    /// The sender's session.
    pub session: SessionId,
    /// Rises within a session.
    pub session_seq: u64,
    /// Trace context.
    pub trace: Vec<u8>,
    /// The body, often a slice of up to 64 KiB that were received together: copy what is kept for long.
    pub body: Bytes,
}

/// What a client tells its application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A session stands.
    Connected {
        /// The region that serves.
        region: RegionId,
        /// The node that serves.
        node: String,
        /// The endpoint.
        endpoint: String,
        /// The session.
        session: SessionId,
        /// The connect epoch in force.
        connect_epoch: u64,
    },
    /// A connection or an attempt ended; the client tries again.
    Disconnected {
        /// The endpoint.
        endpoint: String,
        /// Why.
        reason: DisconnectReason,
        /// Until the next attempt.
        retry_in: Duration,
    },
    /// The token was refused and the application said that it can give another.
    TokenNeeded,
    /// A message is durable.
    Accepted {
        /// As returned by the send.
        ticket: Ticket,
        /// Its id.
        id: MessageId,
        /// Where it stands in the recipient's log.
        at: Coord,
        /// Whether it had been accepted before.
        duplicate: bool,
        /// How durable it is.
        durability: Durability,
    },
    /// A message was refused for good.
    Rejected {
        /// As returned by the send.
        ticket: Ticket,
        /// Its id.
        id: MessageId,
        /// Why.
        code: Code,
        /// For people.
        detail: String,
    },
    /// A message; say `consumed` when it was handled.
    Message(Box<Incoming>),
    /// Messages are gone; say `consumed` of its last coordinate when that was handled.
    Hole(Hole),
    /// Presence of a watched user.
    Presence(PresenceEvent),
    /// More users are watched than the server allows; those beyond are not told.
    TooManyWatches {
        /// How many are wanted.
        wanted: usize,
        /// The limit.
        limit: usize,
    },
    /// The state file could not be written; it is tried again.
    StateNotSaved(String),
    /// The client stopped; the last event.
    Closed(CloseCause),
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    ConnectFailed(String),
    /// Nothing in time while connecting.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// No `Welcome` in time.
    #[error("no welcome within {0:?}")]
    GreetTimeout(Duration),
    /// The connection was lost.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The server said why.
    #[error("the server ended it: {code:?}: {detail}")]
    Server {
        /// The code.
        code: Code,
        /// For people.
        detail: String,
    },
    /// The server asked to go elsewhere.
    #[error("asked to go elsewhere: {0:?}")]
    GoAway(Code),
    /// No answer to a ping.
    #[error("no answer to a ping within {0:?}")]
    NoPong(Duration),
    /// No answer to a message.
    #[error("no answer to a message within {0:?}")]
    NoAnswer(Duration),
    /// The server broke the rules.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

/// Why a client stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseCause {
    /// The application asked for it.
    #[error("closed by the application")]
    Asked,
    /// A newer session of the same device took over.
    #[error("a newer session of this device took over")]
    Superseded,
    /// The token was refused, for a reason that says what to do.
    #[error("the token was refused: {0}")]
    Unauthorized(String),
    /// The server will not have this client, now or later.
    #[error("refused by the server: {code:?}: {detail}")]
    Refused {
        /// Why.
        code: Code,
        /// For people.
        detail: String,
    },
    /// The application took messages and consumed none of so many.
    #[error("{0} messages were handed over and not consumed; say `consumed` of each that was handled")]
    Unconsumed(usize),
    /// No endpoint is known.
    #[error("no endpoint to connect to: give at least one")]
    NoEndpoint,
    /// The driver ended, for instance because its runtime was shut down.
    #[error("the client's task ended")]
    Stopped,
}
