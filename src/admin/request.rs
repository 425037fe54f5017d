//! What can be asked.

use serde::{Deserialize, Serialize};

use crate::core::ids::{NodeName, RegionId, UserId};
use crate::core::inspect::{Digits, Hex};
use crate::server::faults::Fault;

/// A request to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// About the cluster: the node asks all others.
    Cluster(Request),
    /// About this node alone. Nodes may ask this of each other, and nothing else.
    Node(Part),
    /// A change.
    Change(Change),
}

/// Looks at the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Request {
    /// Whether it is well, and why not.
    ClusterStatus,
    /// Every node.
    NodeList,
    /// One node.
    NodeShow {
        /// Its name, unique over all regions.
        node: NodeName,
    },
    /// Every region.
    RegionList,
    /// One region.
    RegionShow {
        /// Which.
        region: RegionId,
    },
    /// Every link between regions.
    LinkList {
        /// Only those from or to this region.
        #[serde(default)]
        region: Option<RegionId>,
    },
    /// Shards at their owners.
    ShardList {
        /// Of this region; of the node that is asked where it is not given.
        #[serde(default)]
        region: Option<RegionId>,
        /// Above this shard.
        #[serde(default)]
        after: Option<u32>,
        /// At most so many, at most [`MAX_PAGE`](crate::core::inspect::MAX_PAGE).
        limit: usize,
    },
    /// One shard in every region.
    ShardShow {
        /// Which.
        of: ShardOf,
    },
    /// Sessions in order of their numbers.
    SessionList {
        /// Of this user only.
        #[serde(default)]
        user: Option<UserId>,
        /// At nodes of this region only.
        #[serde(default)]
        region: Option<RegionId>,
        /// Above this session.
        #[serde(default)]
        after: Option<Digits>,
        /// At most so many, at most [`MAX_PAGE`](crate::core::inspect::MAX_PAGE).
        limit: usize,
    },
    /// A user's presence, as each region sees it and why.
    Presence {
        /// Whose.
        user: UserId,
    },
    /// Messages that wait for a user.
    InboxShow {
        /// Whose.
        user: UserId,
        /// As this region's store has them; the region of the node that is asked where it is not given.
        #[serde(default)]
        region: Option<RegionId>,
        /// Above these; where every device has read to where it is not given.
        #[serde(default)]
        after: Option<Vec<Place>>,
        /// At most so many, at most [`MAX_PAGE`](crate::core::inspect::MAX_PAGE).
        limit: usize,
    },
    /// How many messages wait for a user, in each region's store.
    InboxCount {
        /// Whose.
        user: UserId,
    },
    /// The faults that were injected, at every node.
    FaultList,
}

/// Names a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShardOf {
    /// By its number.
    Shard(u32),
    /// The shard of a user.
    User(UserId),
}

/// A place in the log of an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The origin.
    pub origin: Hex,
    /// The sequence.
    pub seq: u64,
}

/// Looks at one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Part {
    /// The node and its links.
    Node,
    /// Its shards.
    Shards {
        /// Above this.
        #[serde(default)]
        after: Option<u32>,
        /// At most so many.
        limit: usize,
    },
    /// One shard.
    Shard {
        /// Which.
        shard: u32,
    },
    /// Its sessions, and those attached to its shards.
    Sessions {
        /// Of this user only.
        #[serde(default)]
        user: Option<UserId>,
        /// Above this.
        #[serde(default)]
        after: Option<Digits>,
        /// At most so many.
        limit: usize,
    },
    /// The presence of a user, if the user's shard is its.
    Presence {
        /// Whose.
        user: UserId,
    },
    /// Which regions are evacuated, as far as it knows.
    Evacuations,
    /// Which regions keep its shards, and how far their last change is.
    Holders,
    /// The faults that were injected into it.
    Faults,
    /// The inbox of a user, if it has a store.
    Inbox {
        /// Whose.
        user: UserId,
        /// Above these.
        #[serde(default)]
        after: Option<Vec<Place>>,
        /// At most so many messages; 0 for the counts alone.
        limit: usize,
    },
}

/// Changes something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Change {
    /// Drain this node and stop it. It is asked itself: no node changes another.
    NodeDrain {
        /// Its name, so that no other is drained by mistake.
        node: NodeName,
    },
    /// Make a region a holder of all shards. A core node of another region is asked: every region learns of it from the
    /// logs.
    RegionAdd {
        /// Which.
        region: RegionId,
    },
    /// Let a region go: it holds nothing any more. A core node of another region is asked.
    RegionRemove {
        /// Which.
        region: RegionId,
        /// Also where it does not answer, so that what only it has is given up.
        #[serde(default)]
        force: bool,
    },
    /// Send a region's clients to the others, at a limited rate. A node of that region is asked: no node changes another,
    /// and the others of the region learn of it.
    RegionEvacuate {
        /// Which.
        region: RegionId,
        /// Sessions a second, of the whole region; as the node decides where it is not given.
        #[serde(default)]
        rate: Option<u32>,
        /// Also where no other region takes clients.
        #[serde(default)]
        force: bool,
        /// The clients may come back by themselves after this, 100 to 3,600,000 milliseconds: the node that is asked sees to
        /// it, as long as it runs. Until the region is restored where it is not given.
        #[serde(default)]
        lasts_ms: Option<u64>,
    },
    /// Let clients come back to a region, at a limited rate. A node of that region is asked.
    RegionRestore {
        /// Which.
        region: RegionId,
        /// Sessions a second, of all other regions together; as the node decides where it is not given.
        #[serde(default)]
        rate: Option<u32>,
    },
    /// Inject a fault into this node. It is asked itself: no node changes another.
    FaultInject {
        /// Its name, so that no other is hit by mistake.
        node: NodeName,
        /// What.
        fault: Fault,
        /// For how long, 100 to 3,600,000 milliseconds; a minute where it is not given. After a crash the node stays away for so
        /// long, although it is started again; not at all where it is not given.
        #[serde(default)]
        lasts_ms: Option<u64>,
    },
    /// End faults of this node. It is asked itself.
    FaultClear {
        /// Its name.
        node: NodeName,
        /// Which; all that would end by themselves where it is not given.
        #[serde(default)]
        id: Option<u64>,
    },
}
