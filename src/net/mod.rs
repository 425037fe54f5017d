//! Transports: what carries frames between clients, nodes and regions. The meaning of a frame is not known here.
//!
//! ```text
//! certs     the cluster's CA, certificates and keys from files
//! tls       rustls configurations          endpoint  sockets and quinn endpoints
//! address   hosts and ports, as others are told them
//! gate      a socket whose packets are cut, lost or delayed, for fault injection
//! gather    a socket on which the packets of many connections leave together
//! frame     length-delimited frames over any byte stream
//! client    the side that serves clients (ALPN iris/1): listener, a reader and a writer per connection
//! connect   the side that clients use to connect
//! peer      connections between nodes (ALPN iris-peer/1): dialling, hellos, classes of frames
//! gossip    membership of one region (chitchat) over peer connections
//! supervise what becomes of a long task that panics
//! ```
//!
//! Everything that was queued has a limit, every wait for the other side a deadline, and a fault of one
//! connection ends that connection alone.

pub mod address;
pub mod certs;
pub mod client;
pub mod connect;
pub mod endpoint;
pub mod frame;
pub mod gate;
mod gather;
pub mod gossip;
mod outbox;
mod packets;
pub mod peer;
mod session;
pub mod supervise;
pub mod tls;

use std::future::Future;

use tokio::sync::mpsc;

/// An event was not taken: its connection must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The receiver of events is gone: the server is stopping.
    #[error("the receiver of events is gone")]
    Closed,
    /// What came cannot be understood; what follows it must not be taken either.
    #[error("what came was refused: {0}")]
    Refused(CloseReason),
}

/// Where a transport puts its events. Waiting in `deliver` is the backpressure: the task that waits reads no
/// more from its connection, and QUIC's flow control slows that sender alone.
pub trait EventSink<E>: Clone + Send + Sync + 'static {
    /// Hands over one event, waiting for room.
    fn deliver(&self, event: E) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// A bounded channel of anything that an event turns into.
impl<E, T> EventSink<E> for mpsc::Sender<T>
where
    E: Send + 'static,
    T: From<E> + Send + 'static,
{
    async fn deliver(&self, event: E) -> Result<(), SinkError> {
        self.send(event.into()).await.map_err(|_| SinkError::Closed)
    }
}

/// An application error code with which a connection is closed, for clients and peers alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(pub u32);

impl CloseCode {
    /// Nothing went wrong.
    pub const NORMAL: Self = Self(0);
    /// A frame was longer than the limit.
    pub const FRAME_TOO_LONG: Self = Self(1);
    /// Bytes that are no frame, or a frame of an unknown version.
    pub const BAD_FRAME: Self = Self(2);
    /// The rules of the protocol were broken, for instance a stream too many.
    pub const PROTOCOL: Self = Self(3);
    /// Something expected did not come in time.
    pub const TOO_SLOW: Self = Self(4);
    /// A limit of this node is reached; another may have room.
    pub const OVERLOADED: Self = Self(5);
    /// This node stops.
    pub const SHUTDOWN: Self = Self(6);
    /// A fault on this side.
    pub const INTERNAL: Self = Self(7);
    /// No valid credentials.
    pub const UNAUTHENTICATED: Self = Self(8);
    /// A newer session of the same device took over.
    pub const SUPERSEDED: Self = Self(9);
    /// A peer of another cluster, region, node or protocol than expected.
    pub const REFUSED: Self = Self(10);
    /// Between nodes: a whole frame whose message cannot be decoded or has no receiver.
    pub const BAD_MESSAGE: Self = Self(11);

    /// From the number on the wire; numbers that do not fit become [`CloseCode::INTERNAL`].
    pub fn from_wire(code: quinn::VarInt) -> Self {
        u32::try_from(code.into_inner()).map_or(Self::INTERNAL, Self)
    }
}

impl From<CloseCode> for quinn::VarInt {
    fn from(code: CloseCode) -> Self {
        quinn::VarInt::from_u32(code.0)
    }
}

/// Why a connection is closed: a code for programs and words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// The code.
    pub code: CloseCode,
    /// At most [`CloseReason::MAX_TEXT`] bytes go over the wire.
    pub text: String,
}

impl CloseReason {
    /// The close frame must fit into one packet of 1,200 bytes beside others.
    pub const MAX_TEXT: usize = 256;

    /// A reason.
    pub fn new(code: CloseCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    pub(crate) fn close(&self, connection: &quinn::Connection) {
        let mut end = self.text.len().min(Self::MAX_TEXT);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        connection.close(self.code.into(), &self.text.as_bytes()[..end]);
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {}: {}", self.code.0, self.text)
    }
}
