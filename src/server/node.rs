//! A running node: its store, its connections, its partitions, from start to drain.
//!
//! ```text
//! clients --> reader tasks (decode, verify the token) --> partition tasks --> store thread
//! peers   --> reader tasks (decode)                   -->      |
//! gossip, hellos of other regions --> who is there    -->      +--> writer tasks of clients and peers
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::clock::Clock;
use super::config::{NodeConfig, Place, Problem};
use super::evacuation::{Carrier, Evacuations, Words};
use super::faults::{Faults, Here, watch_faults};
use super::folder::{FolderError, NodeFolder};
use super::http::{AdminHttp, Health};
use super::inspect::{Asked, Drain, Inner, Inspector};
use super::intake::{ClientSink, PeerSink};
use super::known::Known;
use super::meters::{LinkStates, Meters, watch_network};
use super::metrics::{Metrics, Task};
use super::open::{self, Wanted};
use super::partition::{Event, PartitionTask, SIBLING_QUEUE};
use super::prepare::Prepared;
use super::region_files::watch_files;
use super::regions::{RegionFile, Regions, Role};
use super::shards::{Watched, futures_any, watch_shards};
use super::store::StoreThread;
use super::token::KeyError;
use crate::core::ids::{Addr, Generation, IdError, NodeKey, NodeName, Origin, RegionId};
use crate::core::members::{Member, Members};
use crate::core::node::{Input, Partition, PartitionConfig};
use crate::core::wire::RegionEndpoints;
use crate::net::address::HostPort;
use crate::net::certs::CertError;
use crate::net::client::{ClientListener, ClientListenerConfig, ListenError};
use crate::net::gossip::{
    FACT_ADMIN_ADDR, FACT_CLIENT_ADDR, FACT_PARTITIONS, FACT_READY, FACT_ROLES, Gossip, GossipConfig,
    GossipError, NodeFacts,
};
use crate::net::peer::{PeerConfig, PeerHello, PeerLimits, PeerPool, PeerStartError, Replaced};
use crate::net::supervise::{Restarts, Supervisor, TaskEnded, TaskEvent};

pub use super::partition::PartitionStatus;

/// Events that wait for a partition; each is a batch. More would only add latency: readers wait, and QUIC slows senders.
const EVENT_QUEUE: usize = 1024;
/// Bytes that wait for one stream to a peer: above what the core keeps in flight on a lane or a link.
const PEER_QUEUE_BYTES: usize = 128 * 1024 * 1024;
/// A node that failed tells clients and peers within this.
const ABANDON_DEADLINE: Duration = Duration::from_secs(1);
/// Closing connections waits so long for what is queued.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// Whether a store may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// The folder must hold a store.
    No,
    /// The folder may be empty: another region has begun the cluster.
    Store,
    /// The folder may be empty: the cluster begins here.
    Cluster,
    /// Whatever is there or not, as `iris dev` does it; what is made is one of [`Create::Store`].
    IfMissing,
    /// The same, and what is made is one of [`Create::Cluster`].
    ClusterIfMissing,
}

impl Create {
    /// Whether a store that is made begins with less than other regions have, and recovers first (R4).
    pub(super) fn joins(self) -> bool {
        !matches!(self, Create::Cluster | Create::ClusterIfMissing)
    }
}

/// What becomes of a journal that is damaged before its last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The node does not start; the error names the place.
    Refuse,
    /// The operator's word: the damaged record and all behind it are given up.
    Cut,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name or id in the configuration.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Something that must be set is not.
    #[error("{key} is not set: {advice}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// What a setting names cannot be used.
    #[error("{0}")]
    Setting(Problem),
    /// More partitions than this build runs.
    #[error("node.partitions = {0}: {1}")]
    Partitions(u32, String),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A cluster is begun by a store.
    #[error("a cluster is begun at a core node, and {0} is an edge: start it with --create")]
    NotCore(String),
    /// The store.
    #[error("{0}")]
    Store(String),
    /// A certificate or key.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// A key for tokens.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The address for peers.
    #[error(transparent)]
    Peer(#[from] PeerStartError),
    /// Membership.
    #[error(transparent)]
    Gossip(#[from] GossipError),
    /// The address for clients.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin port.
    #[error("cannot listen on admin_http {addr}: {source}")]
    Admin {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A thread or the system's randomness.
    #[error("the system refused {what}: {why}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

impl StartError {
    /// The same, with the place of the setting where that is known (see [`super::config::Loaded::sources`]).
    pub fn placed(mut self, sources: &BTreeMap<String, Place>) -> Self {
        if let Self::Setting(problem) = &mut self
            && let Some(place) = sources.get(&problem.key)
        {
            problem.place = place.clone();
        }
        self
    }
}

/// Why a node that ran cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeFailure {
    /// A task is gone that it cannot do without and that cannot be started again: a partition, the store, gossip. The next
    /// start of the process makes it anew.
    #[error(transparent)]
    Task(#[from] TaskEnded),
    /// Another start of the node took its place, and a start of this one would take it back: somebody must choose.
    #[error(transparent)]
    Replaced(#[from] Replaced),
}

impl NodeFailure {
    /// What became of the node, in a few words.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Task(_) => "failed; start it again",
            Self::Replaced(_) => "was replaced",
        }
    }
}

/// A running node. Dropping it without [`Node::stop`] is like a crash: nothing acknowledged is lost.
pub struct Node {
    key: NodeKey,
    generation: Generation,
    admin: Option<AdminHttp>,
    listener: Option<ClientListener>,
    gossip: Option<Gossip>,
    pool: PeerPool,
    store: Option<StoreThread>,
    events: Vec<mpsc::Sender<Event>>,
    status: Vec<watch::Receiver<PartitionStatus>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    supervisor: Supervisor,
    inspector: Inspector,
    drain: Duration,
}

impl Node {
    /// Starts a node; returns when it listens. Shards become active soon after: see [`Node::ready`].
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn start(config: NodeConfig, regions: Regions, create: Create) -> Result<Node, StartError> {
        Self::start_with(config, regions, create, Damage::Refuse).await
    }

    /// As [`Node::start`], with a word about a damaged journal.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn start_with(
        config: NodeConfig,
        regions: Regions,
        create: Create,
        damage: Damage,
    ) -> Result<Node, StartError> {
        let Prepared {
            key,
            cluster,
            sharding,
            partitions,
            mut holders,
            verifier,
            roots,
            identity,
            client: client_identity,
        } = Prepared::of(&config, &regions)?;
        let region = key.region.clone();
        // A region without a file is refused before.
        let durability = regions
            .region(region.as_str())
            .map_or_else(Default::default, RegionFile::policy);
        if create == Create::Cluster && !config.node.has(Role::Core) {
            return Err(StartError::NotCore(config.node.name));
        }
        let folder = NodeFolder::open(&config.node.data, create)?;
        let generation = folder.next_generation()?;
        let evacuations = Evacuations::open(folder.clone())?;
        let metrics = Arc::new(Metrics::new(region.as_str(), key.node.as_str()));
        let health = Arc::new(Health::new(key.to_string(), generation.0));
        let supervisor = supervisor(metrics.clone(), health.clone());
        let is_core = config.node.has(Role::Core);
        let here = Here {
            node: key.clone(),
            data: config.node.data.clone(),
            store: is_core,
            clients: config.node.has(Role::Edge),
        };
        let faults = Faults::new(&config.faults, here, &regions);

        // The store comes first: a node that cannot open it must not be seen by others.
        let (mut reply_senders, mut reply_queues) = (Vec::new(), Vec::new());
        for _ in 0..partitions {
            // Answers only: a partition has at most one commit and `store_reads` reads under way, and the store must not wait.
            let (sender, queue) = mpsc::unbounded_channel();
            reply_senders.push(sender);
            reply_queues.push(queue);
        }
        let starting = || Err("the node has just started".to_owned());
        health.set_ready("shards", starting());
        if config.node.has(Role::Edge) {
            health.set_ready("owners", starting());
        }
        let store = if is_core {
            let wanted = Wanted {
                cluster,
                sharding,
                region: region.clone(),
                holders: holders.clone(),
                // 0 stands for "none yet".
                origin: Origin(u64::from_be_bytes(random()?).max(1)),
            };
            let mut engine = open::open(&config, &folder, wanted, create, damage)
                .await
                .map_err(StartError::Store)?;
            let known: BTreeSet<&str> = regions.ids().collect();
            open::check_holders(engine.as_mut(), &known).map_err(StartError::Store)?;
            // What the store was begun with counts, and what its shards say of changes since.
            holders = engine.identity().holders.clone();
            let (metrics, health) = (metrics.clone(), health.clone());
            let reads = config.limits.store_reads as usize;
            let (supervisor, faults) = (supervisor.clone(), faults.store());
            let thread =
                StoreThread::start(engine, reply_senders, reads, metrics, health, supervisor, faults);
            Some(thread.map_err(|error| StartError::System {
                what: "a thread",
                why: error.to_string(),
            })?)
        } else {
            None
        };

        let (mut events, mut queues) = (Vec::new(), Vec::new());
        for _ in 0..partitions {
            let (sender, queue) = mpsc::channel(EVENT_QUEUE.max(SIBLING_QUEUE));
            events.push(sender);
            queues.push(queue);
        }
        let known = Arc::new(Known::default());
        let hello = PeerHello {
            cluster_id: cluster,
            node: key.clone(),
            generation,
            partitions,
            sharding,
            addr: config.peer_address(),
        };
        let limits = PeerLimits {
            max_frame: (crate::core::msg::MAX_PEER_MESSAGE + 1024) as u32,
            queue_bytes: PEER_QUEUE_BYTES,
            connect_timeout: config.timeouts.connect,
            ..PeerLimits::default()
        };
        let peer_config = PeerConfig {
            bind: config.listen.peer,
            hello,
            identity,
            roots,
            limits,
            wrap_socket: Some(faults.peers().wrap()),
            supervisor: supervisor.clone(),
        };
        let sink = PeerSink::new(events.clone(), known.clone(), metrics.clone());
        let pool = PeerPool::start(peer_config, sink)?;

        let (stop, stopped) = watch::channel(false);
        let (peer_addrs, peer_addrs_seen) = watch::channel(BTreeMap::new());
        let mut tasks = JoinSet::new();
        let mut status = Vec::new();
        let link_states = LinkStates::default();
        let clock = Clock::start(faults.wall().clone());
        for (index, (queue, replies)) in queues.into_iter().zip(reply_queues).enumerate() {
            let me = Addr {
                node: key.clone(),
                partition: index as u8,
            };
            let core = Partition::new(
                PartitionConfig {
                    me: me.clone(),
                    generation,
                    sharding,
                    holders: holders.clone(),
                    limits: config.core_limits(),
                    durability,
                    core: is_core,
                    edge: config.node.has(Role::Edge),
                },
                random()?,
                clock.now(),
            );
            let (status_sender, status_seen) = watch::channel(PartitionStatus::default());
            status.push(status_seen);
            let task = PartitionTask {
                core,
                me,
                pool: pool.clone(),
                siblings: events.clone(),
                store: store.as_ref().map(StoreThread::requests),
                clock: clock.clone(),
                events: queue,
                replies,
                status: status_sender,
                peer_addrs: peer_addrs_seen.clone(),
                meters: Meters::new(metrics.clone(), link_states.clone(), index as u8),
                routes_version: u64::MAX,
                supervisor: supervisor.clone(),
                recovered: (0, "".into()),
                holders: Arc::new(if is_core { holders.clone() } else { BTreeSet::new() }),
                asked: Asked::default(),
            };
            let name = format!("partition {index}");
            // What it knew went with it, and others count on it.
            tasks.spawn(
                supervisor
                    .clone()
                    .critical("partition", name, task.run(stopped.clone())),
            );
        }

        let carrier = Carrier {
            region: region.clone(),
            regions: regions.clone(),
            events: events.clone(),
            known: evacuations.clone(),
            wall: faults.wall().clone(),
        };
        let told = Arc::new(tokio::sync::Mutex::new(carrier.begin()));

        let listener = match config.listen.client.zip(client_identity) {
            Some((addr, identity)) => {
                let mut listen = ClientListenerConfig::new(addr, identity);
                listen.limits = config.client_limits();
                listen.supervisor = supervisor.clone();
                listen.wrap_socket = Some(faults.clients().wrap());
                let sink = ClientSink::new(events.clone(), verifier, faults.wall().clone());
                Some(ClientListener::bind(listen, sink)?)
            }
            None => None,
        };
        let client_addr = listener
            .as_ref()
            .map(|listener| config.client_address(listener.local_addr()));
        let stats = listener.as_ref().map(ClientListener::reader);
        let (peers, figures, mut stopping) = (pool.clone(), metrics.clone(), stopped.clone());
        let run = move || watch_network(peers.clone(), stats.clone(), figures.clone());
        let kept = supervisor.clone().keep("figures", "figures".to_owned(), run);
        tasks.spawn(async move {
            tokio::select! {
                () = kept => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        });
        let addr = config.listen.admin_http;
        let admin = AdminHttp::bind(addr, health.clone(), metrics.clone(), supervisor.clone())
            .await
            .map_err(|source| StartError::Admin { addr, source })?;

        let facts = facts(&config, client_addr.as_ref(), admin.addr(), partitions, is_core);
        let seeds = regions
            .region(region.as_str())
            .map(|r| r.seed_addresses())
            .unwrap_or_default();
        let mut gossip_config = GossipConfig::new(seeds, facts);
        gossip_config.interval = config.intervals.gossip;
        gossip_config.supervisor = supervisor.clone();
        let gossip = Gossip::start(gossip_config, pool.clone()).await?;

        let known_regions = watch::Sender::new(Arc::new(regions));
        let (members, members_seen) = watch::channel(Members::default());
        let inspector = Inspector(Arc::new(Inner {
            key: key.clone(),
            generation,
            cluster: config.cluster.name.clone(),
            roles: config.node.roles.clone(),
            sharding,
            started: Instant::now(),
            socket: config.admin_socket(),
            client: client_addr.as_ref().map(ToString::to_string),
            admin_http: admin.addr(),
            regions: known_regions.clone(),
            health: health.clone(),
            pool: pool.clone(),
            events: events.clone(),
            status: status.clone(),
            members: members_seen,
            nodes: gossip.nodes(),
            store: store.as_ref().map(StoreThread::seen),
            drain: watch::Sender::new(Drain::No),
            evacuations: evacuations.clone(),
            supervisor: supervisor.clone(),
            faults,
        }));
        let view = View {
            me: Member {
                key: key.clone(),
                generation,
                partitions,
                core: is_core,
                edge: client_addr.is_some(),
                ready: true,
                client: client_addr.map(|addr| addr.to_string()),
            },
            my_addr: pool.addr(),
            regions: known_regions.subscribe(),
            region,
            is_core,
            falls_back: config.core_limits().fallback_ms > 0,
            known,
            pool: pool.clone(),
            events: events.clone(),
            peer_addrs,
            members,
            evacuated: evacuations.words(),
        };
        let (announcer, nodes, stopping) = (gossip.announcer(), gossip.nodes(), stopped.clone());
        let run = move || {
            let (told, announcer) = (told.clone(), announcer.clone());
            carrier
                .clone()
                .run(told, announcer, nodes.clone(), stopping.clone())
        };
        tasks.spawn(
            supervisor
                .clone()
                .keep("evacuations", "evacuations".to_owned(), run),
        );
        if let Some(folder) = config.regions.folder.clone() {
            let (watcher, stopping) = (inspector.clone(), stopped.clone());
            let run = move || watch_files(watcher.clone(), folder.clone(), stopping.clone());
            tasks.spawn(
                supervisor
                    .clone()
                    .keep("region files", "region files".to_owned(), run),
            );
        }
        let (watcher, stopping) = (inspector.clone(), stopped.clone());
        let run = move || watch_faults(watcher.clone(), stopping.clone());
        tasks.spawn(supervisor.clone().keep("faults", "faults".to_owned(), run));
        let (view, nodes, stopping) = (Arc::new(view), gossip.nodes(), stopped.clone());
        let run = move || view.clone().run(nodes.clone(), stopping.clone());
        tasks.spawn(supervisor.clone().keep("members", "members".to_owned(), run));
        let shards = {
            let (status, health, metrics) = (status.clone(), health.clone(), metrics.clone());
            let watched = Watched {
                core: is_core,
                edge: config.node.has(Role::Edge),
                fresh: folder.is_fresh(),
            };
            move || {
                watch_shards(
                    watched,
                    status.clone(),
                    health.clone(),
                    metrics.clone(),
                    stopped.clone(),
                )
            }
        };
        tasks.spawn(supervisor.clone().keep("shards", "shards".to_owned(), shards));
        tracing::info!(node = %key, generation = generation.0, peer = %pool.addr(), "the node runs");
        Ok(Node {
            key,
            generation,
            admin: Some(admin),
            listener,
            gossip: Some(gossip),
            pool,
            store,
            events,
            status,
            stop,
            tasks,
            health,
            metrics,
            supervisor,
            inspector,
            drain: config.timeouts.drain,
        })
    }

    /// Which node this is.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// Its incarnation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Where it listens for clients.
    pub fn client_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(ClientListener::local_addr)
    }

    /// Where its health and metrics are.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminHttp::addr)
    }

    /// Where peers reach it.
    pub fn peer_addr(&self) -> SocketAddr {
        self.pool.addr()
    }

    /// Its health.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Its metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A look into it, for operators.
    pub fn inspector(&self) -> Inspector {
        self.inspector.clone()
    }

    /// Completes when an operator asked for this node to be drained: call [`Node::stop`] then.
    pub fn drain_asked(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inspector.drain_asked()
    }

    /// Sessions at this node.
    pub fn sessions(&self) -> usize {
        self.status.iter().map(|status| status.borrow().sessions).sum()
    }

    /// What each of its partitions has.
    pub fn partitions(&self) -> Vec<PartitionStatus> {
        self.status.iter().map(|status| status.borrow().clone()).collect()
    }

    /// Waits until the node is fit to serve.
    pub async fn ready(&self) {
        let mut status = self.status.clone();
        while !self.health.is_ready() {
            let changed = status.iter_mut().map(|status| Box::pin(status.changed()));
            // Health follows the status by a moment, so this looks again soon in any case.
            let _ = tokio::time::timeout(Duration::from_millis(50), futures_any(changed)).await;
        }
    }

    /// Completes when the node cannot go on. It is not ready then; end the process after [`Node::abandon`].
    pub fn failed(&self) -> impl Future<Output = NodeFailure> + Send + use<> {
        let (task, replaced) = (self.supervisor.failed(), self.pool.replaced());
        async {
            tokio::select! {
                ended = task => ended.into(),
                replaced = replaced => replaced.into(),
            }
        }
    }

    /// An operator's word that what this region's store has is enough (R4): its shards are open, although no region that
    /// does not recover itself can be asked, or not everything that the others have was caught up with.
    pub async fn end_recovery(&self) {
        tracing::error!(
            "recovery is ended by an operator's word: what only other regions have is missing here until they can be reached"
        );
        for events in &self.events {
            let _ = events.send(Event::Core(Input::EndRecovery)).await;
        }
    }

    /// Ends a node that failed, without a drain: clients and peers are told at once, and go elsewhere. Nothing accepted is
    /// lost: the store is left as by a crash.
    pub async fn abandon(mut self) {
        self.stop.send_replace(true);
        if let Some(listener) = self.listener.take() {
            listener.shutdown(ABANDON_DEADLINE).await;
        }
        self.pool.shutdown(ABANDON_DEADLINE).await;
    }

    /// Makes a task of the node panic, by its name. For tests; builds without debug assertions ignore it.
    #[doc(hidden)]
    pub fn inject_panic(&self, task: &str) {
        self.supervisor.inject_panic(task);
        #[cfg(debug_assertions)]
        if let Some(store) = &self.store {
            // A thread has to be woken to look.
            let _ = store.requests().try_send(super::store::StoreRequest::Wake);
        }
    }

    /// Drains and stops: not ready, clients told to go elsewhere, what is in flight finished, the store closed.
    pub async fn stop(mut self) {
        self.health.set_ready("node", Err("the node drains".to_owned()));
        self.inspector.drains();
        if let Some(gossip) = &self.gossip {
            // Others must not count on a node that leaves; a full gossip queue only delays what its end will tell.
            let _ = gossip.set_fact(FACT_READY, "draining").await;
        }
        if let Some(listener) = &self.listener {
            listener.stop_accepting();
        }
        for events in &self.events {
            let _ = events.send(Event::Drain).await;
        }
        let deadline = tokio::time::Instant::now() + self.drain;
        let gone = async {
            for status in &mut self.status {
                let _ = status.wait_for(|status| status.sessions == 0).await;
            }
        };
        if tokio::time::timeout_at(deadline, gone).await.is_err() {
            tracing::warn!(
                sessions = self.sessions(),
                "sessions were left when the time to drain was over"
            );
        }
        // What edges of other nodes deposited is answered while they can still be told.
        for events in &self.events {
            let _ = events.send(Event::Finish).await;
        }
        let answered = async {
            for status in &mut self.status {
                let _ = status.wait_for(|status| status.settled).await;
            }
        };
        let at_least = deadline.max(tokio::time::Instant::now() + CLOSE_DEADLINE);
        if tokio::time::timeout_at(at_least, answered).await.is_err() {
            tracing::warn!(
                "messages were left in the commit: their senders are answered when they try again"
            );
        }
        if let Some(listener) = self.listener.take() {
            listener.shutdown(CLOSE_DEADLINE).await;
        }
        if let Some(gossip) = self.gossip.take() {
            gossip.stop().await;
        }
        self.pool.shutdown(CLOSE_DEADLINE).await;
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        if let Some(store) = self.store.take() {
            // Closing waits for the disk, so not on a thread of the runtime.
            let _ = tokio::task::spawn_blocking(move || store.close()).await;
        }
        if let Some(admin) = self.admin.take() {
            admin.stop().await;
        }
        tracing::info!(node = %self.key, "the node stopped");
    }
}

/// Tasks that panic are counted, and those that keep failing or are gone make the node not ready.
fn supervisor(metrics: Arc<Metrics>, health: Arc<Health>) -> Supervisor {
    Supervisor::new(Restarts::default(), move |kind, name, event| {
        let component = format!("task {name}");
        match event {
            TaskEvent::Restarted => {
                metrics.task_restarts.get_or_create(&Task { task: kind }).inc();
            }
            TaskEvent::Failing(why) => {
                health.set_ready(&component, Err(format!("panics again and again, last: {why}")));
            }
            TaskEvent::Lasts => health.set_ready(&component, Ok(())),
            TaskEvent::Ended(why) => health.set_ready(&component, Err(why.to_owned())),
        }
    })
}

/// An edge keeps connections to the core nodes of so many other regions, the nearest ones, to be served by one of them when its
/// own does not: the first may be away, too.
const FALLBACK_REGIONS: usize = 2;

/// Keeps who is there: gossip tells of this region, the regions' files and hellos of the others.
struct View {
    me: Member,
    my_addr: SocketAddr,
    regions: watch::Receiver<Arc<Regions>>,
    region: RegionId,
    is_core: bool,
    /// Another region may serve its sessions.
    falls_back: bool,
    known: Arc<Known>,
    pool: PeerPool,
    events: Vec<mpsc::Sender<Event>>,
    peer_addrs: watch::Sender<BTreeMap<NodeKey, SocketAddr>>,
    members: watch::Sender<Members>,
    evacuated: watch::Receiver<Words>,
}

impl View {
    async fn run(
        self: Arc<Self>,
        mut nodes: watch::Receiver<Vec<NodeFacts>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut told = None;
        let mut evacuated = self.evacuated.clone();
        let mut regions = self.regions.clone();
        loop {
            regions.mark_unchanged();
            let facts = nodes.borrow_and_update().clone();
            let words = evacuated.borrow_and_update().clone();
            let (members, addrs) = self.look(&facts);
            for (node, addr) in &addrs {
                self.pool.want(node, *addr);
            }
            for gone in self
                .pool
                .wanted()
                .into_iter()
                .filter(|node| !addrs.contains_key(node))
            {
                self.pool.unwant(&gone);
            }
            self.peer_addrs.send_replace(addrs);
            let seen = (Members::new(members), self.endpoints(&facts, &words));
            if told.as_ref() != Some(&seen) {
                let (members, endpoints) = seen.clone();
                told = Some(seen);
                self.members.send_replace(members.clone());
                for events in &self.events {
                    let _ = events.send(Event::Core(Input::Members(members.clone()))).await;
                    let _ = events
                        .send(Event::Core(Input::Endpoints(endpoints.clone())))
                        .await;
                }
            }
            tokio::select! {
                changed = nodes.changed() => if changed.is_err() { return },
                changed = regions.changed() => if changed.is_err() { return },
                () = self.known.changed.notified() => {}
                changed = evacuated.changed() => if changed.is_err() { return },
                _ = stop.changed() => return,
            }
        }
    }

    /// Members, and the peers that this node keeps a connection to.
    fn look(&self, facts: &[NodeFacts]) -> (Vec<Member>, BTreeMap<NodeKey, SocketAddr>) {
        let mut members = vec![self.me.clone()];
        let mut addrs = BTreeMap::new();
        for node in facts {
            let key = NodeKey {
                region: self.region.clone(),
                node: node.node.clone(),
            };
            if key == self.me.key {
                continue;
            }
            // Edges talk to cores and cores to edges; two edges have nothing to say to each other.
            if node.core || self.is_core {
                addrs.insert(key.clone(), node.peer_addr);
                self.pool.saw_generation(&key, node.generation, node.peer_addr);
            }
            members.push(Member {
                key,
                generation: node.generation,
                partitions: node.partitions.max(1),
                core: node.core,
                edge: node.edge,
                ready: node.ready,
                client: node.client_addr.as_ref().map(HostPort::to_string),
            });
        }
        let regions = self.regions.borrow();
        if self.is_core {
            let others = regions.iter().filter(|region| region.id != self.region.as_str());
            others.for_each(|region| self.look_at_cores(region, &mut members, &mut addrs));
            // Edges that another region serves while their own does not: they are answered on a connection of ours.
            for guest in self.known.guests(&self.region) {
                let file = regions.region(guest.node.region.as_str());
                let name = guest.node.node.as_str();
                if file.is_some_and(|file| file.cores().all(|core| core.name != name)) {
                    self.pool
                        .saw_generation(&guest.node, guest.generation, guest.addr);
                    addrs.insert(guest.node, guest.addr);
                }
            }
        } else if self.falls_back {
            let near = self.nearest(&regions);
            for (_, region) in near.into_iter().take(FALLBACK_REGIONS) {
                self.look_at_cores(region, &mut members, &mut addrs);
            }
        }
        addrs.retain(|_, addr| *addr != self.my_addr);
        (members, addrs)
    }

    /// The core nodes of another region, to be connected to.
    fn look_at_cores(
        &self,
        region: &RegionFile,
        members: &mut Vec<Member>,
        addrs: &mut BTreeMap<NodeKey, SocketAddr>,
    ) {
        for node in region.cores() {
            let (Ok(id), Ok(name)) = (RegionId::new(&region.id), NodeName::new(&node.name)) else {
                continue;
            };
            let key = NodeKey {
                region: id,
                node: name,
            };
            addrs.insert(key.clone(), node.peer);
            // Until it was reached once nothing is known of it that placement could use.
            if let Some(hello) = self.known.of(&key) {
                members.push(Member {
                    key,
                    generation: hello.generation,
                    partitions: hello.partitions.max(1),
                    core: true,
                    edge: node.client.is_some(),
                    ready: true,
                    client: node.client.map(|addr| addr.to_string()),
                });
            }
        }
    }

    /// The other regions by distance.
    fn nearest<'a>(&self, files: &'a Regions) -> Vec<(f64, &'a RegionFile)> {
        let here = files.region(self.region.as_str()).map(|file| file.place);
        let others = files.iter().filter(|file| file.id != self.region.as_str());
        let km = |file: &RegionFile| here.map_or(0.0, |here| here.distance_km(&file.place));
        let mut others: Vec<_> = others.map(|file| (km(file), file)).collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        others
    }

    /// Where clients may go: live edges of this region, then what the other regions' files say, the nearest region first and
    /// those that are evacuated last.
    fn endpoints(&self, facts: &[NodeFacts], words: &Words) -> Vec<RegionEndpoints> {
        let mut own: Vec<String> = self.me.client.iter().cloned().collect();
        let others = facts
            .iter()
            .filter(|node| node.node != self.me.key.node && node.ready && node.edge);
        own.extend(
            others
                .filter_map(|node| node.client_addr.as_ref())
                .map(HostPort::to_string),
        );
        let mut regions = vec![RegionEndpoints {
            region: self.region.clone(),
            endpoints: own,
        }];
        let files = self.regions.borrow();
        let others = self.nearest(&files).into_iter().filter_map(|(_, file)| {
            let region = RegionId::new(&file.id).ok()?;
            let evacuated = words.get(&region).is_some_and(|word| word.evacuated);
            Some((evacuated, region, file))
        });
        let mut others: Vec<_> = others.collect();
        others.sort_by_key(|(evacuated, ..)| *evacuated);
        regions.extend(others.into_iter().map(|(_, region, file)| RegionEndpoints {
            region,
            endpoints: file.client_endpoints().map(|addr| addr.to_string()).collect(),
        }));
        regions
    }
}

fn facts(
    config: &NodeConfig,
    client: Option<&HostPort>,
    admin: SocketAddr,
    partitions: u8,
    is_core: bool,
) -> Vec<(String, String)> {
    let mut roles = Vec::new();
    if is_core {
        roles.push("core");
    }
    if config.node.has(Role::Edge) {
        roles.push("edge");
    }
    let mut facts = vec![
        (FACT_ROLES.to_owned(), roles.join(",")),
        (FACT_PARTITIONS.to_owned(), partitions.to_string()),
        (FACT_READY.to_owned(), "true".to_owned()),
        (FACT_ADMIN_ADDR.to_owned(), admin.to_string()),
    ];
    if let Some(client) = client {
        facts.push((FACT_CLIENT_ADDR.to_owned(), client.to_string()));
    }
    facts
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|error| StartError::System {
            what: "randomness",
            why: error.to_string(),
        })?;
    Ok(bytes)
}
