//! Connections between nodes: ALPN `iris-peer/1`, TLS in both directions against the cluster's CA.
//!
//! ```text
//! admin     connections of operators, and of nodes that ask for them, on the same address (ALPN `iris-admin/1`)
//! hello     what both sides tell first; what makes them refuse one another
//! link      one outgoing connection that is kept up: dial, hello, queues per class, back off, dial again
//! status    what can be seen of it: snapshots, breakers, counters
//! incoming  accepted connections: hello, one reader a stream, events with backpressure
//! ```
//!
//! Each node sends on the connections that it dialled and reads those that it accepted, so two nodes that dial each
//! other at once need no agreement. Traffic and gossip have connections of their own. A connection carries
//! one ordered stream for each class of frames, opened with the first frame of that class.
//!
//! Every established connection has an incarnation, a number that never comes again in this process. Whoever
//! sends names the incarnation that [`PeerEvent::Up`] gave; after a break everything queued is gone, the receiver of
//! events is told by [`PeerEvent::Lost`], and frames for the old incarnation are refused as stale. So a stream is
//! a prefix of what was sent under its incarnation, and never a mixture.
//!
//! Of two starts of one node the later one counts: the earlier one is refused, and learns from that, from the hello of the
//! later one or from membership that it is over ([`PeerPool::replaced`]).

pub mod admin;
mod hello;
mod incoming;
mod link;
mod status;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

pub use self::hello::{Lane, PEER_PROTOCOL, PeerHello, Refusal, RefusalCode};
pub use self::status::{Breaker, InboundStatus, LinkStatus, PeerCounters, PeerSnapshot};
use self::{
    incoming::{Inbound, Served, accept_loop},
    link::{Link, Target, run_link},
    status::Counters,
};
use super::{
    CloseCode, CloseReason, EventSink,
    address::is_wildcard,
    certs::{CertError, Identity, Roots},
    client::ClosedBy,
    endpoint::{ToAddress, WrapSocket, bind_udp, endpoint, stable_config},
    frame::{Frame, LENGTH_BYTES},
    outbox::CHUNK_COST,
    supervise::Supervisor,
    tls::{self, ADMIN_ALPN, PEER_ALPN},
};
use crate::core::{
    ids::{Generation, NodeKey},
    msg::MAX_PEER_MESSAGE,
};

/// Classes of one connection: each is a stream with a window and a queue of its own.
pub const MAX_CLASSES: usize = 64;
/// Receive window of one stream: a round trip of 200 ms at 20 MB/s.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// A connection's window below the sum of its streams' would let one unread stream block the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (MAX_CLASSES as u32 + 1);
/// Bytes that quinn holds until they are acknowledged, of all streams of a connection.
const SEND_WINDOW: u64 = 32 * 1024 * 1024;
/// Beside the largest message of the core: version, kind and what the core puts before a message.
const FRAME_ROOM: u32 = 1024;
/// Closing the endpoint waits this long for close frames to go out.
const WAIT_IDLE: Duration = Duration::from_secs(1);
/// Gossip links by address; the addresses come from members of the cluster, whose number this bounds.
const MAX_GOSSIP_LINKS: usize = 1024;
/// A gossip link that nothing was sent on for so long is given up.
const GOSSIP_LINK_IDLE: Duration = Duration::from_secs(60);
/// The only class of gossip connections.
const GOSSIP_CLASS: u16 = 0;
/// Gossip messages that wait to be taken; more are dropped, since the next round replaces them.
const GOSSIP_INBOX: usize = 256;
/// Gossip waiting for one peer: some full messages of 64 KB.
const GOSSIP_QUEUE_BYTES: usize = 512 * 1024;
/// Greatest length field of a gossip frame: chitchat's messages are below 64 KB.
const GOSSIP_MAX_FRAME: u32 = 128 * 1024;

/// Which stream of a connection frames go on. The core gives the numbers a meaning.
pub type StreamClass = u16;

/// Limits and times of connections between nodes.
#[derive(Debug, Clone)]
pub struct PeerLimits {
    /// Greatest length field of a frame from a peer.
    pub max_frame: u32,
    /// Bytes (with 64 for each chunk) that may wait for one class of one peer.
    pub queue_bytes: usize,
    /// From the first packet to the answered hello.
    pub connect_timeout: Duration,
    /// Sent when nothing else is, so that a silent peer is a dead one.
    pub keep_alive: Duration,
    /// A peer not heard of for so long is lost.
    pub idle_timeout: Duration,
    /// A stream that takes no byte for so long ends its connection.
    pub stall_timeout: Duration,
    /// First pause after a failed or lost connection; doubles with each failure, jittered by half.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Accepted connections, unfinished handshakes included.
    pub max_inbound: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            max_frame: MAX_PEER_MESSAGE as u32 + FRAME_ROOM,
            queue_bytes: 16 * 1024 * 1024,
            connect_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            max_inbound: 4096,
        }
    }
}

/// How a [`PeerPool`] is started.
#[derive(Clone)]
pub struct PeerConfig {
    /// Address to bind; port 0 takes a free one.
    pub bind: SocketAddr,
    /// This node. An address with port 0 is replaced by the bound one.
    pub hello: PeerHello,
    /// The node's certificate.
    pub identity: Identity,
    /// The cluster's CA.
    pub roots: Roots,
    /// Limits.
    pub limits: PeerLimits,
    /// Another socket under the endpoint, for fault injection.
    pub wrap_socket: Option<WrapSocket>,
    /// Watches over the tasks that accept and dial.
    pub supervisor: Supervisor,
}

/// The pool could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PeerStartError {
    /// The address cannot be bound.
    #[error("cannot bind UDP {addr} for peers: {source}; choose another address or port")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A limit makes no sense.
    #[error("peer limit {field} = {value}: expected {expected}")]
    Limit {
        /// The field of [`PeerLimits`].
        field: &'static str,
        /// Its value.
        value: usize,
        /// The rule.
        expected: String,
    },
    /// The certificate does not carry this node's name, or is not usable.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// Others could not reach this node at the address it would tell them.
    #[error(
        "peers cannot reach {0}, a wildcard: set advertise.peer to the address where they reach this node"
    )]
    Wildcard(SocketAddr),
    /// The certificate was made for another node.
    #[error("the certificate is not for node {node} ({detail}); issue one for it")]
    Identity {
        /// The node by its configuration.
        node: NodeKey,
        /// What is missing.
        detail: String,
    },
}

/// Which way a connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// This node dialled: it sends here.
    Out,
    /// The peer dialled: it sends here.
    In,
}

/// What happens on traffic connections. For one incarnation: `Up`, any number of `Frames` (inbound only), `Lost`.
#[derive(Debug)]
pub enum PeerEvent {
    /// A connection is established and both sides accepted the other's hello.
    Up {
        /// The peer, and what it told.
        hello: PeerHello,
        /// Who dialled.
        direction: Direction,
        /// Never used twice in a process.
        incarnation: u64,
    },
    /// Frames of one class in the order they were sent; at least one.
    Frames {
        /// The sender.
        from: NodeKey,
        /// Its generation.
        generation: Generation,
        /// The connection.
        incarnation: u64,
        /// The stream.
        class: StreamClass,
        /// What one read brought.
        frames: Vec<Frame>,
    },
    /// The connection is over; the last event of its incarnation.
    Lost {
        /// The peer.
        peer: NodeKey,
        /// Who dialled.
        direction: Direction,
        /// The connection.
        incarnation: u64,
        /// Why.
        reason: ClosedBy,
    },
    /// A dialled peer and this node do not fit together. Dialling goes on, with pauses.
    Refused {
        /// Who was to be reached.
        peer: NodeKey,
        /// Where.
        addr: SocketAddr,
        /// What does not fit.
        refusal: Refusal,
    },
}

/// A later start of this node was seen: whoever knows of it refuses this one, which can do nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a later start of {node} has taken its place: this one is generation {generation}, and {sign}. Where two processes run \
     under this name, end one of them, or give it a node.name and certificate of its own; where this is the only one, the \
     number in the file `generation` of its data folder is too low: write one above the later one"
)]
pub struct Replaced {
    /// This node.
    pub node: NodeKey,
    /// Of this start.
    pub generation: Generation,
    /// How it is known.
    pub sign: String,
}

/// Frames were not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerSendError {
    /// [`PeerPool::want`] was not called for this peer.
    #[error("no connection to {0} is wanted")]
    Unknown(NodeKey),
    /// Not connected now; an `Up` will come.
    #[error("not connected to the peer")]
    NotConnected,
    /// The connection was replaced; what was sent on the old one may be lost.
    #[error("incarnation {given} is over; the current one is {current}")]
    Stale {
        /// Named by the caller.
        given: u64,
        /// In use now.
        current: u64,
    },
    /// The class has no room now; the batch is given back.
    #[error("the queue of the class is full")]
    Full(Vec<Bytes>),
    /// The batch alone is above the queue's limit.
    #[error("a batch that costs {cost} bytes; a class takes at most {limit}: send it in parts")]
    TooLarge {
        /// Bytes and overhead.
        cost: usize,
        /// The limit.
        limit: usize,
    },
    /// More classes than a connection carries.
    #[error("class {class} would be one more than the {MAX_CLASSES} that a connection carries")]
    TooManyClasses {
        /// The class.
        class: StreamClass,
    },
}

/// A gossip message and the address at which its sender accepts peers.
type GossipMessage = (SocketAddr, Bytes);

struct Shared {
    hello: PeerHello,
    limits: PeerLimits,
    endpoint: Endpoint,
    client: ClientConfig,
    admin_client: ClientConfig,
    next_incarnation: AtomicU64,
    counters: Counters,
    links: Mutex<BTreeMap<NodeKey, Arc<Link>>>,
    gossip_links: Mutex<BTreeMap<SocketAddr, Arc<Link>>>,
    inbound: Mutex<BTreeMap<(NodeKey, Lane), Inbound>>,
    /// Highest generation of each node that proved its name, and where that start was: an earlier one never comes back,
    /// however long ago the later one was lost. Only members of the cluster add to it.
    generations: Mutex<BTreeMap<NodeKey, (Generation, SocketAddr)>>,
    /// A later start of this node was seen.
    replaced: watch::Sender<Option<Replaced>>,
    /// For tasks that are started by callers outside the runtime.
    runtime: tokio::runtime::Handle,
    gossip_inbox: mpsc::Sender<GossipMessage>,
    admin_inbox: mpsc::Sender<admin::AdminConnection>,
    stop: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl Shared {
    fn incarnation(&self) -> u64 {
        self.next_incarnation.fetch_add(1, Relaxed)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while let Some(ended) = tasks.try_join_next() {
            log_panic(ended);
        }
        tasks.spawn_on(task, &self.runtime);
    }

    fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Completes when the pool is shut down.
    async fn stopped(&self) {
        // An error would mean that the sender is gone, and it lives in `self`.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// A start of a peer showed up: earlier ones are refused from now on, and connections to them lead nowhere.
    fn saw_generation(&self, peer: &NodeKey, generation: Generation, addr: SocketAddr) {
        if *peer == self.hello.node {
            if generation > self.hello.generation {
                self.was_replaced(format!("generation {generation} runs at {addr}"));
            }
            return;
        }
        let newer = {
            let mut generations = lock(&self.generations);
            let highest = generations.entry(peer.clone()).or_insert((generation, addr));
            let newer = generation > highest.0;
            if newer {
                *highest = (generation, addr);
            }
            newer
        };
        if newer && let Some(link) = lock(&self.links).get(peer).cloned() {
            link.saw_generation(generation);
        }
    }

    /// Refuses a node of which a later start was seen.
    fn judge_generation(&self, hello: &PeerHello) -> Result<(), Refusal> {
        match lock(&self.generations).get(&hello.node) {
            Some((highest, addr)) if hello.generation < *highest => {
                let detail = format!("generation {}; {highest} was seen at {addr}", hello.generation);
                Err(Refusal::new(RefusalCode::OldGeneration, detail))
            }
            _ => Ok(()),
        }
    }

    /// Judges a hello of the other side and the certificate that it showed.
    fn judge(&self, other: &PeerHello, cert: &CertificateDer<'_>) -> Result<(), Refusal> {
        let judged = self.hello.judge(other, cert);
        if judged
            .as_ref()
            .is_err_and(|refusal| refusal.why == RefusalCode::EarlierStart)
        {
            self.saw_generation(&other.node, other.generation, other.addr);
        }
        judged
    }

    /// The other side refused this node.
    fn was_refused(&self, by: SocketAddr, refusal: &Refusal) {
        if refusal.why == RefusalCode::OldGeneration {
            self.was_replaced(format!("{by} refuses {}", refusal.detail));
        }
    }

    /// Only the first sign of it is kept.
    fn was_replaced(&self, sign: String) {
        self.replaced.send_if_modified(|replaced| {
            let first = replaced.is_none();
            if first {
                let PeerHello { node, generation, .. } = &self.hello;
                tracing::error!(%node, %generation, %sign, "a later start of this node has taken its place");
                *replaced = Some(Replaced {
                    node: node.clone(),
                    generation: *generation,
                    sign,
                });
            }
            first
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task of a peer connection panicked");
    }
}

type LinkTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// All connections of this node to others, alive until [`PeerPool::shutdown`]. Cheap to clone; its methods never
/// wait, except the shutdown.
#[derive(Clone)]
pub struct PeerPool {
    shared: Arc<Shared>,
    run_link: Arc<dyn Fn(Arc<Link>) -> LinkTask + Send + Sync>,
    gossip_inbox: Arc<Mutex<Option<mpsc::Receiver<GossipMessage>>>>,
    admin_inbox: Arc<Mutex<Option<mpsc::Receiver<admin::AdminConnection>>>>,
}

impl PeerPool {
    /// Binds and begins to accept. Must be called inside a tokio runtime; the other methods need not.
    ///
    /// # Errors
    /// [`PeerStartError`].
    pub fn start<S: EventSink<PeerEvent>>(config: PeerConfig, sink: S) -> Result<Self, PeerStartError> {
        check_identity(&config.hello.node, &config.identity)?;
        Self::start_as_claimed(config, sink)
    }

    /// Starts without a look at our own certificate, so that tests can lie to other nodes.
    fn start_as_claimed<S: EventSink<PeerEvent>>(
        config: PeerConfig,
        sink: S,
    ) -> Result<Self, PeerStartError> {
        check_limits(&config.limits)?;
        let failed = |source| PeerStartError::Bind {
            addr: config.bind,
            source,
        };
        let transport = Arc::new(transport(&config.limits)?);
        let mut server = ServerConfig::with_crypto(tls::server_config(
            &config.identity,
            Some(&config.roots),
            &[PEER_ALPN, ADMIN_ALPN],
        )?);
        server.transport_config(transport.clone());
        server.max_incoming(config.limits.max_inbound);
        let mut client = ClientConfig::new(tls::client_config(
            &config.roots,
            Some(&config.identity),
            PEER_ALPN,
        )?);
        client.transport_config(transport);
        let admin_client = admin::client_config(&config.roots, &config.identity)?;
        let socket = bind_udp(config.bind, false).map_err(failed)?;
        let addr = socket.local_addr().map_err(failed)?;
        let quic = stable_config(&config.identity, addr);
        let endpoint = endpoint(
            socket,
            quic,
            Some(server),
            ToAddress::One,
            config.wrap_socket.as_ref(),
        )
        .map_err(failed)?;
        let mut hello = config.hello;
        if is_wildcard(hello.addr.ip()) {
            return Err(PeerStartError::Wildcard(hello.addr));
        }
        if hello.addr.port() == 0 {
            hello.addr.set_port(addr.port());
        }
        let (gossip_sender, gossip_receiver) = mpsc::channel(GOSSIP_INBOX);
        let (admin_sender, admin_receiver) = mpsc::channel(admin::INBOX);
        let shared = Arc::new(Shared {
            hello,
            limits: config.limits,
            endpoint,
            client,
            admin_client,
            next_incarnation: AtomicU64::new(1),
            counters: Counters::default(),
            links: Mutex::default(),
            gossip_links: Mutex::default(),
            inbound: Mutex::default(),
            generations: Mutex::default(),
            replaced: watch::Sender::new(None),
            runtime: tokio::runtime::Handle::current(),
            gossip_inbox: gossip_sender,
            admin_inbox: admin_sender,
            stop: watch::Sender::new(false),
            tasks: Mutex::default(),
        });
        let supervisor = config.supervisor;
        shared.spawn({
            // Connections outlive a panic of the loop that accepts them.
            let (shared, sink, served) = (shared.clone(), sink.clone(), Served::default());
            let run = move || accept_loop(shared.clone(), sink.clone(), served.clone());
            supervisor
                .clone()
                .keep("peer_accept", "peer listener".to_owned(), run)
        });
        let run_link = {
            let shared = shared.clone();
            Arc::new(move |link: Arc<Link>| -> LinkTask {
                let (shared, sink, name) = (shared.clone(), sink.clone(), link.name());
                let run = move || run_link(shared.clone(), link.clone(), sink.clone());
                Box::pin(supervisor.clone().keep("peer_link", name, run))
            })
        };
        Ok(Self {
            shared,
            run_link,
            gossip_inbox: Arc::new(Mutex::new(Some(gossip_receiver))),
            admin_inbox: Arc::new(Mutex::new(Some(admin_receiver))),
        })
    }

    /// What this node tells its peers.
    pub fn hello(&self) -> &PeerHello {
        &self.shared.hello
    }

    /// The address that others reach this node at.
    pub fn addr(&self) -> SocketAddr {
        self.shared.hello.addr
    }

    /// From now on keeps a connection to `peer` at `addr`; a changed address counts at the next attempt, which then
    /// comes at once.
    pub fn want(&self, peer: &NodeKey, addr: SocketAddr) {
        let mut links = lock(&self.shared.links);
        if let Some(link) = links.get(peer) {
            link.set_addr(addr);
            return;
        }
        if self.shared.stopping() || *peer == self.shared.hello.node {
            return;
        }
        let link = Arc::new(Link::new(Target::Node(peer.clone()), Lane::Traffic, addr));
        links.insert(peer.clone(), link.clone());
        drop(links);
        self.shared.spawn((self.run_link)(link));
    }

    /// Closes the connection to `peer` and keeps it no longer. A `Lost` follows if it was up.
    pub fn unwant(&self, peer: &NodeKey) {
        if let Some(link) = lock(&self.shared.links).remove(peer) {
            link.stop();
        }
    }

    /// Peers that are wanted.
    pub fn wanted(&self) -> Vec<NodeKey> {
        lock(&self.shared.links).keys().cloned().collect()
    }

    /// Queues encoded frames for a class; either all or none. `incarnation` is that of the peer's last outgoing
    /// [`PeerEvent::Up`].
    ///
    /// # Errors
    /// [`PeerSendError`].
    pub fn send(
        &self,
        peer: &NodeKey,
        incarnation: u64,
        class: StreamClass,
        batch: Vec<Bytes>,
    ) -> Result<(), PeerSendError> {
        let link = lock(&self.shared.links)
            .get(peer)
            .cloned()
            .ok_or_else(|| PeerSendError::Unknown(peer.clone()))?;
        link.send(&self.shared, Some(incarnation), class, batch)
    }

    /// Queues one gossip message for whoever accepts peers at `addr`, dialling when needed; drops it when that
    /// cannot be done at once.
    pub fn send_gossip(&self, addr: SocketAddr, frame: Bytes) {
        let sent = self
            .gossip_link(addr)
            .is_some_and(|link| link.send(&self.shared, None, GOSSIP_CLASS, vec![frame]).is_ok());
        if !sent {
            self.shared.counters.gossip_dropped.fetch_add(1, Relaxed);
        }
    }

    /// The gossip that arrives; can be taken once.
    pub fn take_gossip(&self) -> Option<mpsc::Receiver<GossipMessage>> {
        lock(&self.gossip_inbox).take()
    }

    /// The connections of operators and of nodes that ask for them; can be taken once. Before, and without, each is turned
    /// away.
    pub fn take_admin(&self) -> Option<mpsc::Receiver<admin::AdminConnection>> {
        lock(&self.admin_inbox).take()
    }

    /// Connects to the admin interface of a node, as this node.
    ///
    /// # Errors
    /// For people: why not.
    pub async fn connect_admin(&self, node: &NodeKey, addr: SocketAddr) -> Result<Connection, String> {
        let shared = &self.shared;
        admin::connect(&shared.endpoint, shared.admin_client.clone(), addr, Some(node)).await
    }

    /// Tells that a start of `peer` with this generation was seen at `addr`: a connection to an earlier one is closed, and if
    /// that is this node, it was replaced.
    pub fn saw_generation(&self, peer: &NodeKey, generation: Generation, addr: SocketAddr) {
        self.shared.saw_generation(peer, generation, addr);
    }

    /// Completes when a later start of this node was seen.
    pub fn replaced(&self) -> impl Future<Output = Replaced> + Send + use<> {
        let mut replaced = self.shared.replaced.subscribe();
        async move {
            let seen = replaced.wait_for(Option::is_some).await.ok();
            match seen.and_then(|seen| seen.clone()) {
                Some(replaced) => replaced,
                // The pool is gone, and with it who could tell.
                None => std::future::pending().await,
            }
        }
    }

    /// The state of all connections.
    pub fn snapshot(&self) -> PeerSnapshot {
        let shared = &self.shared;
        let mut links: Vec<LinkStatus> = lock(&shared.links).values().map(|link| link.status()).collect();
        links.extend(lock(&shared.gossip_links).values().map(|link| link.status()));
        let inbound = lock(&shared.inbound)
            .iter()
            .map(|((peer, lane), inbound)| inbound.status(peer, *lane))
            .collect();
        let counters = shared.counters.read();
        PeerSnapshot {
            links,
            inbound,
            counters,
        }
    }

    /// Counters since the start.
    pub fn counters(&self) -> PeerCounters {
        self.shared.counters.read()
    }

    /// Flushes what is queued, tells every peer, and ends all tasks; what is not done by `deadline` from now is cut.
    pub async fn shutdown(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        self.shared.stop.send_replace(true);
        let mut tasks = std::mem::take(&mut *lock(&self.shared.tasks));
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                log_panic(ended);
            }
        };
        if timeout_at(end, all).await.is_err() {
            tasks.shutdown().await;
        }
        lock(&self.shared.links).clear();
        lock(&self.shared.gossip_links).clear();
        self.shared
            .endpoint
            .close(CloseCode::SHUTDOWN.into(), b"the node stops");
        let _ = timeout(WAIT_IDLE, self.shared.endpoint.wait_idle()).await;
    }

    fn gossip_link(&self, addr: SocketAddr) -> Option<Arc<Link>> {
        let mut links = lock(&self.shared.gossip_links);
        if let Some(link) = links.get(&addr) {
            link.touch();
            return Some(link.clone());
        }
        if self.shared.stopping() || addr == self.shared.hello.addr {
            return None;
        }
        links.retain(|_, link| {
            let keep = link.idle_for() < GOSSIP_LINK_IDLE;
            if !keep {
                link.stop();
            }
            keep
        });
        if links.len() >= MAX_GOSSIP_LINKS {
            return None;
        }
        let target = Target::Region(self.shared.hello.node.region.clone());
        let link = Arc::new(Link::new(target, Lane::Gossip, addr));
        links.insert(addr, link.clone());
        drop(links);
        self.shared.spawn((self.run_link)(link.clone()));
        Some(link)
    }
}

impl std::fmt::Debug for PeerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerPool")
            .field("hello", &self.shared.hello)
            .finish_non_exhaustive()
    }
}

fn check_limits(limits: &PeerLimits) -> Result<(), PeerStartError> {
    let cost = limits.max_frame as usize + LENGTH_BYTES + CHUNK_COST;
    if limits.queue_bytes < cost {
        return Err(PeerStartError::Limit {
            field: "queue_bytes",
            value: limits.queue_bytes,
            expected: format!("room for one frame: at least {cost}"),
        });
    }
    if limits.keep_alive * 2 > limits.idle_timeout {
        return Err(PeerStartError::Limit {
            field: "keep_alive (ms)",
            value: limits.keep_alive.as_millis() as usize,
            expected: format!("at most half of idle_timeout ({:?})", limits.idle_timeout),
        });
    }
    Ok(())
}

/// A node with another's certificate would be refused by every peer: better not to start.
/// Whether a certificate carries the names that other nodes ask of this one.
///
/// # Errors
/// [`PeerStartError::Identity`].
pub fn check_identity(node: &NodeKey, identity: &Identity) -> Result<(), PeerStartError> {
    let own = super::certs::node_dns_name(node.region.as_str(), node.node.as_str())?;
    let cert = &identity.chain()[0];
    for name in [own.as_str(), super::certs::PEER_NAME] {
        if !super::certs::cert_has_name(cert, name) {
            return Err(PeerStartError::Identity {
                node: node.clone(),
                detail: format!("{name} is not in it"),
            });
        }
    }
    Ok(())
}

fn transport(limits: &PeerLimits) -> Result<TransportConfig, PeerStartError> {
    let idle = limits
        .idle_timeout
        .try_into()
        .map_err(|_| PeerStartError::Limit {
            field: "idle_timeout (ms)",
            value: limits.idle_timeout.as_millis() as usize,
            expected: "less than 2^62 milliseconds".to_owned(),
        })?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(1u32.into())
        .max_concurrent_uni_streams((MAX_CLASSES as u32).into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .keep_alive_interval(Some(limits.keep_alive))
        .max_idle_timeout(Some(idle))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0);
    Ok(transport)
}

fn stop_reason() -> CloseReason {
    CloseReason::new(CloseCode::SHUTDOWN, "the node stops")
}

#[cfg(test)]
mod tests;
