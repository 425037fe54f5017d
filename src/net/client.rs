//! The side that serves clients: ALPN `iris/1`, one bidirectional stream a connection, frames both ways.
//!
//! ```text
//! accept loop (one per endpoint) -> task of a connection: handshake, stream, then
//!     reader: chunks -> frames -> EventSink (waits when full)      -> core
//!     writer: Outbox (bounded, never waits when put) -> the stream <- core
//! ```
//!
//! A reader does not read while its connection's outbox is above a threshold: a client that sends requests and
//! does not read the answers stops itself. Under load, addresses are validated by QUIC Retry (RFC 9000, 8.1.2)
//! before anything is spent on them.

pub(crate) mod conn;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use quinn::{ConnectionError, Endpoint, Incoming, ServerConfig, TransportConfig};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

pub use self::conn::ConnHandle;
use self::conn::serve;
pub use super::outbox::TrySendError;
use super::{
    CloseCode, CloseReason, EventSink,
    certs::{CertError, Identity},
    endpoint::{ToAddress, WrapSocket, ack_frequency, bind_udp, endpoint, stable_config},
    frame::{Frame, FrameError},
    outbox::CHUNK_COST,
    supervise::Supervisor,
    tls::{self, CLIENT_ALPN},
};

/// Closing the endpoint waits this long for close frames to go out.
const WAIT_IDLE: Duration = Duration::from_secs(2);

/// Limits of the client side. The defaults keep an idle connection near 30 KB.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// Connections beyond this many are refused: memory is 30 KB idle and up to the windows and queues when busy.
    pub max_connections: usize,
    /// Unfinished handshakes beyond this many are refused: each costs 300 us and can be had for one packet.
    pub max_handshakes: usize,
    /// With more unfinished handshakes than this, an address must first prove by Retry that it is real.
    pub retry_above: usize,
    /// From the first packet to the whole first frame, the handshake and the opening of the stream included: nobody holds
    /// a place for longer without a `Hello`.
    pub handshake_timeout: Duration,
    /// A connection without a packet for so long is over. A client may announce a shorter time, which then holds; one that
    /// announces none gets this. Keep-alives count as packets.
    pub idle_timeout: Duration,
    /// Greatest length field of a frame from a client.
    pub max_frame: u32,
    /// Receive window of the stream and the connection: unread bytes that one client can make us hold.
    pub receive_window: u32,
    /// Bytes that quinn keeps until the client acknowledged them.
    pub send_window: u32,
    /// Bytes (with 64 for each chunk) that may wait in the outbox of one connection.
    pub queue_bytes: usize,
    /// No more is read from a client while more than this waits in its outbox.
    pub pause_reading_above: usize,
    /// After a close was asked for, what is queued has this long to go out.
    pub flush_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            max_handshakes: 2_000,
            retry_above: 200,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            max_frame: 256 * 1024,
            receive_window: 32 * 1024,
            send_window: 128 * 1024,
            queue_bytes: 1024 * 1024,
            pause_reading_above: 256 * 1024,
            flush_timeout: Duration::from_secs(3),
        }
    }
}

impl ClientLimits {
    pub(crate) fn check(&self) -> Result<(), ListenError> {
        let bad = |field, value: u128, expected: String| {
            Err(ListenError::Limit {
                field,
                value,
                expected,
            })
        };
        let cost = self.max_frame as usize + super::frame::LENGTH_BYTES + CHUNK_COST;
        if self.queue_bytes < cost {
            return bad(
                "queue_bytes",
                self.queue_bytes as u128,
                format!("room for one frame: at least {cost}"),
            );
        }
        if self.pause_reading_above >= self.queue_bytes {
            return bad(
                "pause_reading_above",
                self.pause_reading_above as u128,
                format!("less than queue_bytes ({})", self.queue_bytes),
            );
        }
        if self.receive_window < 4096 {
            return bad(
                "receive_window",
                self.receive_window.into(),
                "at least 4096".to_owned(),
            );
        }
        if self.max_frame < 2 {
            return bad("max_frame", self.max_frame.into(), "at least 2".to_owned());
        }
        if quinn::IdleTimeout::try_from(self.idle_timeout).is_err() {
            return bad(
                "idle_timeout",
                self.idle_timeout.as_millis(),
                "less than 2^62 milliseconds".to_owned(),
            );
        }
        Ok(())
    }

    fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(1u32.into())
            .max_concurrent_uni_streams(0u32.into())
            .stream_receive_window(self.receive_window.into())
            .receive_window(self.receive_window.into())
            .send_window(self.send_window.into())
            .max_idle_timeout(Some(self.idle_timeout.try_into().expect("checked before")))
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0)
            .mtu_discovery_config(None)
            .ack_frequency_config(Some(ack_frequency()));
        transport
    }
}

/// The listener could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be bound.
    #[error("cannot bind UDP {addr} for clients: {source}; choose another address or port")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A limit makes no sense.
    #[error("limit {field} = {value}: expected {expected}")]
    Limit {
        /// The field of [`ClientLimits`].
        field: &'static str,
        /// Its value.
        value: u128,
        /// The rule.
        expected: String,
    },
    /// The certificate or key is not usable.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// What happens on client connections. For one connection: `Opened`, any number of `Frames`, `Closed`.
#[derive(Debug)]
pub enum ClientEvent {
    /// A client finished the handshake and sent its first bytes.
    Opened {
        /// Never used twice in a process.
        conn: u64,
        /// Where it comes from.
        remote: SocketAddr,
        /// For answers.
        handle: ConnHandle,
    },
    /// Frames in the order they were sent; at least one.
    Frames {
        /// The connection.
        conn: u64,
        /// What one read brought.
        frames: Vec<Frame>,
    },
    /// The connection is over; its last event.
    Closed {
        /// The connection.
        conn: u64,
        /// Why.
        reason: ClosedBy,
    },
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClosedBy {
    /// The other side closed, or ended its stream.
    Remote(CloseReason),
    /// This side closed.
    Local(CloseReason),
    /// Nothing was heard for the idle timeout.
    TimedOut,
    /// The other side sent bytes that are no frames.
    Frame(FrameError),
    /// Another fault of the transport.
    Transport(String),
}

impl std::fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Remote(reason) => write!(f, "closed by the other side ({reason})"),
            Self::Local(reason) => write!(f, "closed by this side ({reason})"),
            Self::TimedOut => f.write_str("nothing heard within the idle timeout"),
            Self::Frame(error) => write!(f, "bad frame: {error}"),
            Self::Transport(error) => write!(f, "transport fault: {error}"),
        }
    }
}

impl From<ConnectionError> for ClosedBy {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self::Remote(CloseReason::new(
                CloseCode::from_wire(close.error_code),
                String::from_utf8_lossy(&close.reason),
            )),
            ConnectionError::LocallyClosed => Self::Local(CloseReason::new(CloseCode::NORMAL, "")),
            ConnectionError::TimedOut => Self::TimedOut,
            other => Self::Transport(other.to_string()),
        }
    }
}

/// Counters since the start, and what is open now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ClientStats {
    /// Connections whose stream is open.
    pub open: u64,
    /// Handshakes under way.
    pub handshakes: u64,
    /// Connections whose stream was opened.
    pub opened: u64,
    /// Attempts refused by a limit.
    pub refused: u64,
    /// Attempts answered with Retry.
    pub retried: u64,
    /// Handshakes that failed or took too long, and connections without a whole first frame in time.
    pub failed: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Reads that brought frames; `frames_in` divided by this is the mean batch.
    pub batches_in: u64,
    /// Bytes received on streams.
    pub bytes_in: u64,
    /// Bytes given to quinn.
    pub bytes_out: u64,
    /// Writes of a whole queue.
    pub batches_out: u64,
}

#[derive(Debug, Default)]
struct Counters {
    opened: AtomicU64,
    refused: AtomicU64,
    retried: AtomicU64,
    failed: AtomicU64,
    frames_in: AtomicU64,
    batches_in: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    batches_out: AtomicU64,
}

struct Shared {
    limits: ClientLimits,
    next_conn: AtomicU64,
    handshakes: AtomicUsize,
    /// Connections with a finished or unfinished handshake.
    held: AtomicUsize,
    open: Mutex<BTreeMap<u64, ConnHandle>>,
    counters: Counters,
    stop: watch::Sender<bool>,
}

impl Shared {
    fn stats(&self) -> ClientStats {
        let counters = &self.counters;
        ClientStats {
            open: self.open().len() as u64,
            handshakes: self.handshakes.load(Relaxed) as u64,
            opened: counters.opened.load(Relaxed),
            refused: counters.refused.load(Relaxed),
            retried: counters.retried.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            frames_in: counters.frames_in.load(Relaxed),
            batches_in: counters.batches_in.load(Relaxed),
            bytes_in: counters.bytes_in.load(Relaxed),
            bytes_out: counters.bytes_out.load(Relaxed),
            batches_out: counters.batches_out.load(Relaxed),
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, ConnHandle>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a [`ClientListener`] is started.
#[derive(Clone)]
pub struct ClientListenerConfig {
    /// Address to bind; port 0 takes a free one.
    pub addr: SocketAddr,
    /// The client-facing certificate.
    pub identity: Identity,
    /// Limits.
    pub limits: ClientLimits,
    /// Sockets that share the address (SO_REUSEPORT): one socket has one driver, which one core can saturate.
    pub endpoints: usize,
    /// Another socket under the endpoint, for fault injection.
    pub wrap_socket: Option<WrapSocket>,
    /// Watches over the tasks that accept.
    pub supervisor: Supervisor,
}

impl ClientListenerConfig {
    /// One socket, default limits.
    pub fn new(addr: SocketAddr, identity: Identity) -> Self {
        Self {
            addr,
            identity,
            limits: ClientLimits::default(),
            endpoints: 1,
            wrap_socket: None,
            supervisor: Supervisor::default(),
        }
    }
}

/// Accepts clients until it is shut down or dropped.
pub struct ClientListener {
    addr: SocketAddr,
    endpoints: Vec<Endpoint>,
    shared: Arc<Shared>,
    accepting: JoinSet<()>,
}

impl ClientListener {
    /// Binds and begins to accept. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind<S: EventSink<ClientEvent>>(
        config: ClientListenerConfig,
        sink: S,
    ) -> Result<Self, ListenError> {
        config.limits.check()?;
        let server = server_config(&config.identity, &config.limits)?;
        let bind_failed = |source| ListenError::Bind {
            addr: config.addr,
            source,
        };
        let count = config.endpoints.max(1);
        let shared = Arc::new(Shared {
            limits: config.limits,
            next_conn: AtomicU64::new(1),
            handshakes: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            open: Mutex::default(),
            counters: Counters::default(),
            stop: watch::Sender::new(false),
        });
        let mut addr = config.addr;
        let mut endpoints = Vec::with_capacity(count);
        let mut accepting = JoinSet::new();
        for _ in 0..count {
            let socket = bind_udp(addr, count > 1).map_err(bind_failed)?;
            addr = socket.local_addr().map_err(bind_failed)?;
            // All sockets of the address share the key: a client whose address changed, and whose packets now reach
            // another of them, is told at once that its connection is unknown there.
            let quic = stable_config(&config.identity, addr);
            let endpoint = endpoint(
                socket,
                quic,
                Some(server.clone()),
                ToAddress::Many,
                config.wrap_socket.as_ref(),
            )
            .map_err(bind_failed)?;
            endpoints.push(endpoint.clone());
            // Connections outlive a panic of the loop that accepts them.
            let (shared, sink, served) = (shared.clone(), sink.clone(), Served::default());
            let run = move || accept_loop(endpoint.clone(), shared.clone(), sink.clone(), served.clone());
            let name = "client listener".to_owned();
            accepting.spawn(config.supervisor.clone().keep("client_accept", name, run));
        }
        Ok(Self {
            addr,
            endpoints,
            shared,
            accepting,
        })
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Counters.
    pub fn stats(&self) -> ClientStats {
        self.shared.stats()
    }

    /// Reads the counters, also when the listener is held elsewhere.
    pub fn reader(&self) -> impl Fn() -> ClientStats + Send + Sync + Clone + use<> {
        let shared = self.shared.clone();
        move || shared.stats()
    }

    /// Uses another certificate for connections from now on.
    ///
    /// # Errors
    /// [`CertError`] when it is not usable; the old one stays then.
    pub fn replace_certificate(&self, identity: &Identity) -> Result<(), CertError> {
        let server = server_config(identity, &self.shared.limits)?;
        for endpoint in &self.endpoints {
            endpoint.set_server_config(Some(server.clone()));
        }
        Ok(())
    }

    /// Accepts no more connections; those that are open go on.
    pub fn stop_accepting(&self) {
        for endpoint in &self.endpoints {
            endpoint.set_server_config(None);
        }
    }

    /// Stops accepting, closes every connection after what is queued was written, and ends all tasks; what is not
    /// done by `deadline` from now is cut.
    pub async fn shutdown(mut self, deadline: Duration) {
        let end = Instant::now() + deadline;
        self.stop_accepting();
        let reason = CloseReason::new(CloseCode::SHUTDOWN, "the node stops");
        let open: Vec<ConnHandle> = self.shared.open().values().cloned().collect();
        for handle in open {
            handle.close_after_flush(reason.clone());
        }
        self.shared.stop.send_replace(true);
        let all = async { while self.accepting.join_next().await.is_some() {} };
        if timeout_at(end, all).await.is_err() {
            self.accepting.shutdown().await;
        }
        for endpoint in &self.endpoints {
            endpoint.close(reason.code.into(), reason.text.as_bytes());
            let _ = timeout(WAIT_IDLE, endpoint.wait_idle()).await;
        }
    }
}

impl Drop for ClientListener {
    fn drop(&mut self) {
        for endpoint in &self.endpoints {
            endpoint.close(CloseCode::SHUTDOWN.into(), b"the node stops");
        }
    }
}

fn server_config(identity: &Identity, limits: &ClientLimits) -> Result<ServerConfig, CertError> {
    let mut server = ServerConfig::with_crypto(tls::lean_server_config(identity, &[CLIENT_ALPN])?);
    server.transport_config(Arc::new(limits.transport()));
    server.max_incoming(limits.max_handshakes.max(1));
    Ok(server)
}

/// The tasks of connections; held by the loop that runs.
type Served = Arc<tokio::sync::Mutex<JoinSet<()>>>;

async fn accept_loop<S: EventSink<ClientEvent>>(
    endpoint: Endpoint,
    shared: Arc<Shared>,
    sink: S,
    served: Served,
) {
    let mut tasks = served.lock().await;
    let mut stop = shared.stop.subscribe();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => admit(incoming, &shared, &sink, &mut tasks),
                None => break,
            },
            Some(ended) = tasks.join_next() => log_panic(ended),
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    while let Some(ended) = tasks.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "the task of a client connection panicked");
    }
}

fn admit<S: EventSink<ClientEvent>>(
    incoming: Incoming,
    shared: &Arc<Shared>,
    sink: &S,
    tasks: &mut JoinSet<()>,
) {
    let limits = &shared.limits;
    let pending = shared.handshakes.load(Relaxed);
    if pending >= limits.max_handshakes || shared.held.load(Relaxed) >= limits.max_connections {
        shared.counters.refused.fetch_add(1, Relaxed);
        incoming.refuse();
        return;
    }
    if pending >= limits.retry_above && !incoming.remote_address_validated() && incoming.may_retry() {
        shared.counters.retried.fetch_add(1, Relaxed);
        // Cannot fail: `may_retry` was asked.
        let _ = incoming.retry();
        return;
    }
    let ticket = Ticket::new(shared.clone());
    tasks.spawn(serve(incoming, ticket, sink.clone()));
}

/// Counts a connection from its admission on, whatever way its task ends.
struct Ticket {
    shared: Arc<Shared>,
    in_handshake: bool,
}

impl Ticket {
    fn new(shared: Arc<Shared>) -> Self {
        shared.handshakes.fetch_add(1, Relaxed);
        shared.held.fetch_add(1, Relaxed);
        Self {
            shared,
            in_handshake: true,
        }
    }

    fn handshake_done(&mut self) {
        if std::mem::take(&mut self.in_handshake) {
            self.shared.handshakes.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.handshake_done();
        self.shared.held.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
