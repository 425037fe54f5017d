//! What an operator may look at in a running node: a handle that outlives nothing and changes nothing but the wish to drain.
//!
//! The admin interface is built on it. Every question has a limit of time, and goes to the partitions as an event like
//! any other, so that it is answered between two turns.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::evacuation::{Evacuations, Word, Words};
use super::faults::Faults;
use super::folder::FolderError;
use super::http::Health;
use super::partition::{Event, PartitionStatus};
use super::regions::{Regions, Role};
use super::store::StoreSeen;
use crate::core::ids::{Generation, NodeKey, NodeName, RegionId, Sharding};
use crate::core::inspect::{Answer, Query};
use crate::core::members::Members;
use crate::core::storage::{Read, ReadReply, StoreError};
use crate::net::gossip::NodeFacts;
use crate::net::peer::PeerPool;
use crate::net::supervise::Supervisor;
use crate::store::engine::Figures;

/// A partition answers within this, or is too busy to be asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Questions to the store that wait in one partition at a time.
const MAX_ASKED: usize = 64;

/// Why a question was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// The partition had no time.
    #[error("partition {0} did not answer within {ANSWER_WITHIN:?}")]
    Late(usize),
    /// The partition is gone.
    #[error("partition {0} has ended")]
    Gone(usize),
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drain {
    /// Nobody asked for one.
    #[default]
    No,
    /// An operator asked, and whoever runs the node has not begun.
    Asked,
    /// The node drains, and stops then.
    Runs,
}

/// What is known of the store of a core node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFacts {
    /// What it tells of itself.
    pub figures: Figures,
    /// When a commit last came back, unix milliseconds; none since the start.
    pub last_commit_ms: Option<u64>,
}

/// A look into a running node. Cheap to clone.
#[derive(Clone)]
pub struct Inspector(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) key: NodeKey,
    pub(super) generation: Generation,
    pub(super) cluster: String,
    pub(super) roles: Vec<Role>,
    pub(super) sharding: Sharding,
    pub(super) started: Instant,
    pub(super) socket: PathBuf,
    pub(super) client: Option<String>,
    pub(super) admin_http: SocketAddr,
    pub(super) regions: watch::Sender<Arc<Regions>>,
    pub(super) health: Arc<Health>,
    pub(super) pool: PeerPool,
    pub(super) events: Vec<mpsc::Sender<Event>>,
    pub(super) status: Vec<watch::Receiver<PartitionStatus>>,
    pub(super) members: watch::Receiver<Members>,
    pub(super) nodes: watch::Receiver<Vec<NodeFacts>>,
    pub(super) store: Option<Arc<Mutex<StoreSeen>>>,
    pub(super) drain: watch::Sender<Drain>,
    pub(super) evacuations: Evacuations,
    pub(super) supervisor: Supervisor,
    pub(super) faults: Faults,
}

impl Inspector {
    /// Which node it is.
    pub fn key(&self) -> &NodeKey {
        &self.0.key
    }

    /// Its incarnation.
    pub fn generation(&self) -> Generation {
        self.0.generation
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.0.cluster
    }

    /// What it does.
    pub fn roles(&self) -> &[Role] {
        &self.0.roles
    }

    /// How users are spread.
    pub fn sharding(&self) -> Sharding {
        self.0.sharding
    }

    /// How long it has run.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Where operators on this machine reach it.
    pub fn socket(&self) -> &PathBuf {
        &self.0.socket
    }

    /// What clients are told.
    pub fn client_addr(&self) -> Option<&str> {
        self.0.client.as_deref()
    }

    /// Where health and metrics are.
    pub fn admin_http(&self) -> SocketAddr {
        self.0.admin_http
    }

    /// The regions as their files were read last.
    pub fn regions(&self) -> Arc<Regions> {
        self.0.regions.borrow().clone()
    }

    pub(super) fn set_regions(&self, regions: Arc<Regions>) {
        self.0.regions.send_replace(regions);
    }

    /// Its health.
    pub fn health(&self) -> &Health {
        &self.0.health
    }

    /// Its connections to other nodes.
    pub fn pool(&self) -> &PeerPool {
        &self.0.pool
    }

    /// Who watches over its tasks.
    pub fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// What a drill breaks in it.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Its clock, unix milliseconds.
    pub fn wall_ms(&self) -> u64 {
        self.0.faults.wall().ms()
    }

    /// Who is there, as this node sees it.
    pub fn members(&self) -> Members {
        self.0.members.borrow().clone()
    }

    /// What each partition tells.
    pub fn status(&self) -> Vec<PartitionStatus> {
        self.0
            .status
            .iter()
            .map(|status| status.borrow().clone())
            .collect()
    }

    /// Its store, if it has one.
    pub fn store(&self) -> Option<StoreFacts> {
        let seen = *self
            .0
            .store
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Some(StoreFacts {
            figures: seen.figures,
            last_commit_ms: Some(seen.last_commit_ms).filter(|ms| *ms > 0),
        })
    }

    /// Every node of the cluster with the address where peers reach it: those of the regions' files, and those of this
    /// region that gossip knows.
    pub fn nodes(&self) -> BTreeMap<NodeKey, SocketAddr> {
        let mut nodes = BTreeMap::new();
        for region in self.regions().iter() {
            for node in &region.nodes {
                if let (Ok(region), Ok(name)) = (RegionId::new(&region.id), NodeName::new(&node.name)) {
                    nodes.insert(NodeKey { region, node: name }, node.peer);
                }
            }
        }
        for facts in self.0.nodes.borrow().iter() {
            let key = NodeKey {
                region: self.0.key.region.clone(),
                node: facts.node.clone(),
            };
            nodes.insert(key, facts.peer_addr);
        }
        nodes.insert(self.0.key.clone(), self.0.pool.addr());
        nodes
    }

    /// Asks one partition about what it has in memory.
    ///
    /// # Errors
    /// [`InspectError`].
    pub async fn query(&self, partition: usize, query: Query) -> Result<Answer, InspectError> {
        self.event(partition, |reply| Event::Inspect { query, reply })
            .await
    }

    /// Asks every partition, in order.
    ///
    /// # Errors
    /// The first [`InspectError`].
    pub async fn query_all(&self, query: &Query) -> Result<Vec<Answer>, InspectError> {
        let mut answers = Vec::new();
        for partition in 0..self.0.events.len() {
            answers.push(self.query(partition, query.clone()).await?);
        }
        Ok(answers)
    }

    /// Asks the store.
    ///
    /// # Errors
    /// [`InspectError`]; a node without a store answers [`StoreError::Retryable`].
    pub async fn read(&self, read: Read) -> Result<ReadReply, InspectError> {
        Ok(self.event(0, |reply| Event::Ask { read, reply }).await??)
    }

    pub(super) async fn event<T>(
        &self,
        partition: usize,
        make: impl FnOnce(oneshot::Sender<T>) -> Event,
    ) -> Result<T, InspectError> {
        let gone = || InspectError::Gone(partition);
        let events = self.0.events.get(partition).ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            events.send(make(reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())
        };
        timeout(ANSWER_WITHIN, asked)
            .await
            .map_err(|_| InspectError::Late(partition))?
    }

    /// How far a drain has come.
    pub fn drain(&self) -> Drain {
        *self.0.drain.borrow()
    }

    /// Asks whoever runs the node to drain and stop it.
    pub fn ask_to_drain(&self) {
        self.0.drain.send_if_modified(|drain| {
            let first = *drain == Drain::No;
            if first {
                *drain = Drain::Asked;
            }
            first
        });
    }

    /// What operators last said about each region, as far as this node knows.
    pub fn evacuations(&self) -> Words {
        self.0.evacuations.words().borrow().clone()
    }

    /// What a node of another region knows of that.
    pub async fn heard_evacuations(&self, words: &Words) {
        self.0.evacuations.heard(words, self.wall_ms()).await;
    }

    /// Evacuates this node's region, or lets clients come back, `rate` sessions a second. Durable at this node when this
    /// returns; the others learn of it.
    ///
    /// # Errors
    /// [`FolderError`]; nothing was changed then.
    pub async fn order_evacuation(&self, evacuated: bool, rate: u32) -> Result<Word, FolderError> {
        let region = self.0.key.region.clone();
        let now_ms = self.wall_ms();
        self.0.evacuations.order(region, evacuated, rate, now_ms).await
    }

    /// Completes when an operator asked for a drain.
    pub fn drain_asked(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut drain = self.0.drain.subscribe();
        async move {
            if drain.wait_for(|drain| *drain != Drain::No).await.is_err() {
                // Nobody is left who could ask.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn drains(&self) {
        self.0.drain.send_replace(Drain::Runs);
    }
}

/// Questions to the store that wait for their answers.
#[derive(Default)]
pub(super) struct Asked {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Result<ReadReply, StoreError>>>,
}

impl Asked {
    /// A number for a question; none where it is refused, which whoever asked was told.
    pub(super) fn take(
        &mut self,
        reply: oneshot::Sender<Result<ReadReply, StoreError>>,
        has_store: bool,
    ) -> Option<u64> {
        self.waiting.retain(|_, reply| !reply.is_closed());
        let why = match (has_store, self.waiting.len() < MAX_ASKED) {
            (true, true) => {
                self.next += 1;
                self.waiting.insert(self.next, reply);
                return Some(self.next);
            }
            (false, _) => "this node has no store",
            (true, false) => "too many questions wait for the store",
        };
        let _ = reply.send(Err(StoreError::Retryable(why.to_owned())));
        None
    }

    pub(super) fn told(&mut self, id: u64, result: Result<ReadReply, StoreError>) {
        if let Some(reply) = self.waiting.remove(&id) {
            // Whoever asked may have given up.
            let _ = reply.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_to_the_store_are_bounded_and_those_given_up_make_room() {
        let mut asked = Asked::default();
        let mut waiting = Vec::new();
        for _ in 0..MAX_ASKED {
            let (reply, answer) = oneshot::channel();
            assert!(asked.take(reply, true).is_some());
            waiting.push(answer);
        }
        let (reply, mut answer) = oneshot::channel();
        assert!(asked.take(reply, true).is_none());
        assert!(matches!(answer.try_recv(), Ok(Err(StoreError::Retryable(_)))));
        waiting.pop();
        let (reply, _answer) = oneshot::channel();
        assert!(asked.take(reply, true).is_some());
        let (reply, mut answer) = oneshot::channel();
        assert!(asked.take(reply, false).is_none());
        assert!(matches!(answer.try_recv(), Ok(Err(StoreError::Retryable(_)))));
    }
}
