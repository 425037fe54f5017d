//! Membership of one region: chitchat (scuttlebutt with a phi accrual failure detector) over peer connections.
//!
//! Only facts about nodes travel here: addresses, roles, readiness. Seeds are addresses; who lives there is learnt from
//! the hello of the connection, which also refuses nodes of other regions. A node that starts again shows up as
//! a second member with the same name: the highest generation ever seen of a name is the one that counts.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable,
    FailureDetectorConfig, NodeState, Serializable, spawn_chitchat,
    transport::{Socket, Transport},
};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{address::HostPort, frame::Frame, peer::PeerPool, supervise::Supervisor};
use crate::core::ids::{Generation, NodeName};

/// Kind of the frame that carries a message of chitchat.
const KIND_MESSAGE: u8 = 1;
/// Elapsed time over mean interval at which a node counts as dead.
const PHI_THRESHOLD: f64 = 8.0;
/// chitchat weighs its prior interval as five samples. With as few samples of its own, the prior keeps half of the
/// weight for ever, so that a quick network does not make the detector nervous.
const SAMPLES: usize = 5;
/// Intervals above this are no samples: the other half of the weight is bounded, and with it the time to detect.
const MAX_INTERVAL: Duration = Duration::from_millis(400);
/// A dead node is forgotten after this; until then its last state is kept out of digests' way.
const DEAD_NODE_GRACE: Duration = Duration::from_secs(600);
/// Deleted facts are remembered for so long.
const DELETED_GRACE: Duration = Duration::from_secs(600);
/// Stopping waits this long for the gossip loop.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Facts are small: all of a node must fit into one message beside those of many others.
const MAX_FACT_BYTES: usize = 512;

/// Fact: the address at which the node serves clients.
pub const FACT_CLIENT_ADDR: &str = "client_addr";
/// Fact: comma-separated roles, `edge` and `core`. A node without it is not listed.
pub const FACT_ROLES: &str = "roles";
/// Fact: number of partitions.
pub const FACT_PARTITIONS: &str = "partitions";
/// Fact: `true` when the node takes work.
pub const FACT_READY: &str = "ready";
/// Fact: the address of the admin HTTP port.
pub const FACT_ADMIN_ADDR: &str = "admin_addr";

/// How gossip is started.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// Addresses of some nodes of the region; this node's own may be among them.
    pub seeds: Vec<SocketAddr>,
    /// Time between rounds.
    pub interval: Duration,
    /// About how long after its last sign of life a node counts as dead; slow networks add up to 1.6 s.
    pub dead_after: Duration,
    /// Facts of this node to begin with.
    pub facts: Vec<(String, String)>,
    /// Watches over the tasks.
    pub supervisor: Supervisor,
}

impl GossipConfig {
    /// Rounds every 150 ms, death seen after about 3 s.
    pub fn new(seeds: Vec<SocketAddr>, facts: Vec<(String, String)>) -> Self {
        Self {
            seeds,
            interval: Duration::from_millis(150),
            dead_after: Duration::from_secs(3),
            facts,
            supervisor: Supervisor::default(),
        }
    }
}

/// Gossip could not be started, or a fact not be set.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// Another gossip runs on the same pool.
    #[error("gossip was already started on this pool of peers")]
    Taken,
    /// chitchat refused to start.
    #[error("gossip cannot start: {0}")]
    Start(String),
    /// A fact is too long.
    #[error("fact {key:?} of {len} bytes; at most {MAX_FACT_BYTES} for key and value together")]
    FactTooLong {
        /// The key.
        key: String,
        /// Bytes of key and value.
        len: usize,
    },
}

/// What is known of one live node. A node that died is not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub node: NodeName,
    /// Its latest start.
    pub generation: Generation,
    /// Where it accepts peers.
    pub peer_addr: SocketAddr,
    /// Where it serves clients.
    pub client_addr: Option<HostPort>,
    /// Where its admin HTTP port is.
    pub admin_addr: Option<SocketAddr>,
    /// Holds sessions.
    pub edge: bool,
    /// Owns shards.
    pub core: bool,
    /// Core tasks.
    pub partitions: u8,
    /// Takes work.
    pub ready: bool,
    /// Every fact as text, the above included.
    pub facts: BTreeMap<String, String>,
}

/// The membership of this node's region, until [`Gossip::stop`].
pub struct Gossip {
    handle: ChitchatHandle,
    nodes: watch::Receiver<Vec<NodeFacts>>,
    follower: JoinHandle<()>,
    /// Ends with this.
    watcher: JoinSet<()>,
}

impl Gossip {
    /// Starts to gossip over `pool`, whose node, generation and address are announced.
    ///
    /// # Errors
    /// [`GossipError`].
    pub async fn start(config: GossipConfig, pool: PeerPool) -> Result<Self, GossipError> {
        for (key, value) in &config.facts {
            check_fact(key, value)?;
        }
        let hello = pool.hello();
        let inbox = pool.take_gossip().ok_or(GossipError::Taken)?;
        let id = ChitchatId::new(hello.node.node.as_str(), hello.generation.0, pool.addr());
        let chitchat_config = ChitchatConfig {
            chitchat_id: id,
            cluster_id: format!("{:032x}/{}", hello.cluster_id, hello.node.region),
            gossip_interval: config.interval,
            listen_addr: pool.addr(),
            seed_nodes: config.seeds.iter().map(SocketAddr::to_string).collect(),
            failure_detector_config: detector(&config),
            marked_for_deletion_grace_period: DELETED_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let transport = PeerTransport {
            pool: pool.clone(),
            inbox: std::sync::Mutex::new(Some(inbox)),
        };
        let handle = spawn_chitchat(chitchat_config, config.facts, &transport)
            .await
            .map_err(|error| GossipError::Start(error.to_string()))?;
        let live = handle
            .with_chitchat(|chitchat| chitchat.live_nodes_watcher())
            .await;
        let own = handle.with_chitchat(own_facts).await;
        let (sender, nodes) = watch::channel(list(own.iter().cloned(), &mut BTreeMap::new()));
        let (sender, seen) = (Arc::new(sender), Arc::new(Mutex::default()));
        let run = move || {
            follow(
                live.clone(),
                own.clone(),
                sender.clone(),
                Arc::clone(&seen),
                pool.clone(),
            )
        };
        let supervisor = config.supervisor;
        let follower = tokio::spawn(
            supervisor
                .clone()
                .keep("gossip_view", "gossip view".to_owned(), run),
        );
        let ended = handle.termination_watcher();
        // Its socket went with it, so it cannot be started again.
        let mut watcher = JoinSet::new();
        watcher.spawn(async move {
            let why = ended.await.err();
            let why = why.map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            supervisor.ended("gossip", "gossip", &why);
        });
        Ok(Self {
            handle,
            nodes,
            follower,
            watcher,
        })
    }

    /// The live nodes of the region, this one included, sorted by name.
    pub fn nodes(&self) -> watch::Receiver<Vec<NodeFacts>> {
        self.nodes.clone()
    }

    /// Announces a fact of this node, or replaces its value.
    ///
    /// # Errors
    /// [`GossipError::FactTooLong`].
    pub async fn set_fact(&self, key: &str, value: &str) -> Result<(), GossipError> {
        self.announcer().set_fact(key, value).await
    }

    /// For tasks that announce facts by themselves.
    pub fn announcer(&self) -> Announcer {
        Announcer(self.handle.chitchat())
    }

    /// Stops gossiping; the others notice as with a death.
    pub async fn stop(self) {
        drop(self.watcher);
        self.follower.abort();
        if timeout(STOP_TIMEOUT, self.handle.shutdown()).await.is_err() {
            tracing::warn!("the gossip loop did not stop in time");
        }
    }
}

/// Announces facts of this node. Cheap to clone; without effect once gossip has stopped.
#[derive(Clone)]
pub struct Announcer(Arc<tokio::sync::Mutex<Chitchat>>);

impl Announcer {
    /// As [`Gossip::set_fact`].
    ///
    /// # Errors
    /// [`GossipError::FactTooLong`].
    pub async fn set_fact(&self, key: &str, value: &str) -> Result<(), GossipError> {
        check_fact(key, value)?;
        let mut chitchat = self.0.lock().await;
        let state = chitchat.self_node_state();
        if state.get(key) != Some(value) {
            state.set(key, value);
        }
        Ok(())
    }
}

fn own_facts(chitchat: &mut Chitchat) -> Option<NodeFacts> {
    let id = chitchat.self_chitchat_id().clone();
    facts(&id, chitchat.self_node_state())
}

fn check_fact(key: &str, value: &str) -> Result<(), GossipError> {
    let len = key.len() + value.len();
    if len > MAX_FACT_BYTES {
        return Err(GossipError::FactTooLong {
            key: key.to_owned(),
            len,
        });
    }
    Ok(())
}

/// Mean = half of the prior + half of the observed mean, which lies between 0 and `MAX_INTERVAL` and is usually
/// about half a round. Death is seen when the silence is `PHI_THRESHOLD` times that.
fn detector(config: &GossipConfig) -> FailureDetectorConfig {
    let usual = config.interval / 4;
    let prior = (config.dead_after.div_f64(PHI_THRESHOLD).saturating_sub(usual) * 2).max(config.interval);
    FailureDetectorConfig::new(PHI_THRESHOLD, SAMPLES, MAX_INTERVAL, prior, DEAD_NODE_GRACE)
}

async fn follow(
    mut live: watch::Receiver<BTreeMap<ChitchatId, NodeState>>,
    own: Option<NodeFacts>,
    sender: Arc<watch::Sender<Vec<NodeFacts>>>,
    seen: Arc<Mutex<BTreeMap<NodeName, Generation>>>,
    pool: PeerPool,
) {
    let region = pool.hello().node.region.clone();
    loop {
        let nodes = {
            let live = live.borrow_and_update();
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            // chitchat publishes its first set only after a first round.
            if live.is_empty() {
                list(own.iter().cloned(), &mut seen)
            } else {
                list(live.iter().filter_map(|(id, state)| facts(id, state)), &mut seen)
            }
        };
        for facts in &nodes {
            let peer = crate::core::ids::NodeKey {
                region: region.clone(),
                node: facts.node.clone(),
            };
            pool.saw_generation(&peer, facts.generation, facts.peer_addr);
        }
        sender.send_if_modified(|current| {
            let changed = *current != nodes;
            if changed {
                *current = nodes;
            }
            changed
        });
        if live.changed().await.is_err() {
            return;
        }
    }
}

/// One entry a name, of the highest generation that was ever seen of it.
fn list(live: impl Iterator<Item = NodeFacts>, seen: &mut BTreeMap<NodeName, Generation>) -> Vec<NodeFacts> {
    let mut nodes = BTreeMap::new();
    for facts in live {
        let highest = seen.entry(facts.node.clone()).or_insert(facts.generation);
        if facts.generation >= *highest {
            *highest = facts.generation;
            nodes.insert(facts.node.clone(), facts);
        }
    }
    nodes.into_values().collect()
}

fn facts(id: &ChitchatId, state: &NodeState) -> Option<NodeFacts> {
    let node = NodeName::new(&id.node_id).ok()?;
    let roles = state.get(FACT_ROLES)?;
    Some(NodeFacts {
        node,
        generation: Generation(id.generation_id),
        peer_addr: id.gossip_advertise_addr,
        client_addr: parsed(state, FACT_CLIENT_ADDR),
        admin_addr: parsed(state, FACT_ADMIN_ADDR),
        edge: roles.split(',').any(|role| role == "edge"),
        core: roles.split(',').any(|role| role == "core"),
        partitions: parsed(state, FACT_PARTITIONS).unwrap_or(1),
        ready: parsed(state, FACT_READY).unwrap_or(false),
        facts: state
            .key_values()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    })
}

fn parsed<T: FromStr>(state: &NodeState, key: &str) -> Option<T> {
    state.get(key)?.parse().ok()
}

struct PeerTransport {
    pool: PeerPool,
    inbox: std::sync::Mutex<Option<mpsc::Receiver<(SocketAddr, bytes::Bytes)>>>,
}

#[async_trait]
impl Transport for PeerTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let inbox = self
            .inbox
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let inbox = inbox.ok_or_else(|| anyhow::anyhow!("the gossip of this pool is already open"))?;
        Ok(Box::new(PeerSocket {
            pool: self.pool.clone(),
            inbox,
        }))
    }
}

struct PeerSocket {
    pool: PeerPool,
    inbox: mpsc::Receiver<(SocketAddr, bytes::Bytes)>,
}

#[async_trait]
impl Socket for PeerSocket {
    /// Never waits: it is awaited inside the gossip loop. What cannot be queued is dropped, as a datagram would be.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.pool
            .send_gossip(to, Frame::new(KIND_MESSAGE, message.serialize_to_vec()).encode());
        Ok(())
    }

    /// Cancel-safe: the one wait is on a channel.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let Some((from, payload)) = self.inbox.recv().await else {
                anyhow::bail!("the pool of peers is gone");
            };
            match ChitchatMessage::deserialize(&mut &payload[..]) {
                Ok(message) => return Ok((from, message)),
                Err(error) => tracing::warn!(%from, %error, "a gossip message that cannot be read"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        core::ids::{NodeKey, RegionId, Sharding},
        net::{
            certs::ClusterCa,
            gate::Gate,
            peer::{PeerConfig, PeerEvent, PeerHello, PeerLimits},
        },
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Node {
        pool: PeerPool,
        gossip: Gossip,
        gate: Gate,
        _events: mpsc::Receiver<PeerEvent>,
    }

    async fn start(ca: &ClusterCa, name: &str, generation: u64, seeds: &[SocketAddr]) -> Node {
        let node = NodeKey {
            region: RegionId::new("us").unwrap(),
            node: NodeName::new(name).unwrap(),
        };
        let bind = "127.0.0.1:0".parse().unwrap();
        let gate = Gate::new();
        let config = PeerConfig {
            bind,
            hello: PeerHello {
                cluster_id: 1,
                node,
                generation: Generation(generation),
                partitions: 1,
                sharding: Sharding { count: 16, seed: 5 },
                addr: bind,
            },
            identity: ca.issue_node("us", name).unwrap(),
            roots: ca.roots(),
            limits: PeerLimits::default(),
            wrap_socket: Some(gate.wrap()),
            supervisor: Supervisor::default(),
        };
        let (sink, events) = mpsc::channel::<PeerEvent>(64);
        let pool = PeerPool::start(config, sink).unwrap();
        let facts = vec![(FACT_ROLES.to_owned(), "edge,core".to_owned())];
        let gossip = Gossip::start(GossipConfig::new(seeds.to_vec(), facts), pool.clone())
            .await
            .unwrap();
        Node {
            pool,
            gossip,
            gate,
            _events: events,
        }
    }

    async fn sees(node: &Node, condition: impl FnMut(&Vec<NodeFacts>) -> bool) -> Vec<NodeFacts> {
        let mut nodes = node.gossip.nodes();
        let seen = timeout(PATIENCE, nodes.wait_for(condition)).await;
        seen.expect("the condition within the test's patience")
            .unwrap()
            .clone()
    }

    fn names(nodes: &[NodeFacts]) -> Vec<&str> {
        nodes.iter().map(|facts| facts.node.as_str()).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nodes_find_each_other_lose_the_dead_and_take_the_newer_start() {
        let ca = ClusterCa::create().unwrap();
        let a = start(&ca, "a", 1, &[]).await;
        let seeds = [a.pool.addr()];
        let b = start(&ca, "b", 1, &seeds).await;
        let c = start(&ca, "c", 1, &seeds).await;
        for node in [&a, &b, &c] {
            sees(node, |nodes| names(nodes) == ["a", "b", "c"]).await;
        }
        b.gossip.set_fact(FACT_READY, "true").await.unwrap();
        b.gossip.set_fact(FACT_CLIENT_ADDR, "10.0.0.1:99").await.unwrap();
        for node in [&a, &b, &c] {
            let nodes = sees(node, |nodes| nodes[1].ready && nodes[1].client_addr.is_some()).await;
            assert_eq!(nodes[1].client_addr, Some("10.0.0.1:99".parse().unwrap()));
            assert_eq!(
                (nodes[1].edge, nodes[1].core, nodes[1].peer_addr),
                (true, true, b.pool.addr())
            );
        }

        c.gate.cut_all();
        let begun = Instant::now();
        for node in [&a, &b] {
            sees(node, |nodes| names(nodes) == ["a", "b"]).await;
            let elapsed = begun.elapsed();
            assert!(
                elapsed > Duration::from_secs(1),
                "after {elapsed:?}: a short pause would look like a death"
            );
            assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
        }
        let again = start(&ca, "c", 2, &seeds).await;
        for node in [&a, &b, &again] {
            let nodes = sees(node, |nodes| names(nodes) == ["a", "b", "c"]).await;
            assert_eq!(
                (nodes[2].generation, nodes[2].peer_addr),
                (Generation(2), again.pool.addr())
            );
        }
        // The earlier start comes back, as a paused process would: it is heard and refused, and not listed again.
        let before = a.pool.counters().refused;
        c.gate.heal();
        let refused = async {
            while a.pool.counters().refused == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, refused)
            .await
            .expect("the earlier start is heard");
        let nodes = a.gossip.nodes().borrow().clone();
        assert_eq!(names(&nodes), ["a", "b", "c"]);
        assert_eq!(nodes[2].generation, Generation(2));
        for node in [a, b, c, again] {
            timeout(PATIENCE, async {
                node.gossip.stop().await;
                node.pool.shutdown(Duration::from_secs(1)).await;
            })
            .await
            .unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_quick_restart_replaces_a_start_that_still_counts_as_alive() {
        let ca = ClusterCa::create().unwrap();
        let a = start(&ca, "a", 1, &[]).await;
        let b = start(&ca, "b", 5, &[a.pool.addr()]).await;
        sees(&a, |nodes| names(nodes) == ["a", "b"]).await;
        b.gate.cut_all();
        let again = start(&ca, "b", 6, &[a.pool.addr()]).await;
        let nodes = sees(&a, |nodes| {
            nodes.len() == 2 && nodes[1].generation == Generation(6)
        })
        .await;
        assert_eq!(nodes[1].peer_addr, again.pool.addr());
    }

    #[test]
    fn an_earlier_start_never_stands_in_for_a_later_one() {
        let of = |name: &str, generation: u64| NodeFacts {
            node: NodeName::new(name).unwrap(),
            generation: Generation(generation),
            peer_addr: "127.0.0.1:1".parse().unwrap(),
            client_addr: None,
            admin_addr: None,
            edge: true,
            core: true,
            partitions: 1,
            ready: true,
            facts: BTreeMap::new(),
        };
        let mut seen = BTreeMap::new();
        let both = [of("a", 6), of("a", 5), of("b", 1)];
        assert_eq!(list(both.into_iter(), &mut seen), [of("a", 6), of("b", 1)]);
        assert_eq!(list([of("a", 5)].into_iter(), &mut seen), []);
        assert_eq!(list([of("a", 7)].into_iter(), &mut seen), [of("a", 7)]);
    }

    #[tokio::test]
    async fn facts_are_bounded() {
        let ca = ClusterCa::create().unwrap();
        let a = start(&ca, "a", 1, &[]).await;
        assert_eq!(names(&a.gossip.nodes().borrow()), ["a"]);
        assert!(
            a.gossip
                .set_fact("k", &"v".repeat(MAX_FACT_BYTES - 1))
                .await
                .is_ok()
        );
        let error = a
            .gossip
            .set_fact("k", &"v".repeat(MAX_FACT_BYTES))
            .await
            .unwrap_err();
        assert!(matches!(error, GossipError::FactTooLong { len: 513, .. }));
        let config = GossipConfig::new(Vec::new(), Vec::new());
        assert!(matches!(
            Gossip::start(config, a.pool.clone()).await,
            Err(GossipError::Taken)
        ));
    }
}
