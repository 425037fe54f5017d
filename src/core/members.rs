//! Who is there: the nodes of each region as gossip and other regions tell, and which partition owns a shard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::{Addr, Generation, NodeKey, NodeName, RegionId, ShardId, Sharding};
use super::placement;

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which node.
    pub key: NodeKey,
    /// Its incarnation.
    pub generation: Generation,
    /// How many partitions it runs.
    pub partitions: u8,
    /// Owns shards.
    pub core: bool,
    /// Holds sessions.
    pub edge: bool,
    /// Fit to be given work.
    pub ready: bool,
    /// Where clients reach it, `host:port`.
    pub client: Option<String>,
}

/// A partition that owns shards, and the incarnation of its node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The partition.
    pub addr: Addr,
    /// The incarnation of its node.
    pub generation: Generation,
}

/// Every node of every region.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// By region, then by name.
    pub regions: BTreeMap<RegionId, BTreeMap<NodeName, Member>>,
}

impl Members {
    /// Members from a list; of two with one name the higher generation counts.
    pub fn new(list: impl IntoIterator<Item = Member>) -> Self {
        let mut regions: BTreeMap<RegionId, BTreeMap<NodeName, Member>> = BTreeMap::new();
        for member in list {
            let nodes = regions.entry(member.key.region.clone()).or_default();
            let known = nodes.get(&member.key.node);
            if known.is_none_or(|known| known.generation < member.generation) {
                nodes.insert(member.key.node.clone(), member);
            }
        }
        Self { regions }
    }

    /// A node, if it is there.
    pub fn node(&self, key: &NodeKey) -> Option<&Member> {
        self.regions.get(&key.region)?.get(&key.node)
    }

    /// The owner of every shard in a region: rendezvous hashing over its ready core nodes.
    pub fn owners(&self, region: &RegionId, sharding: &Sharding) -> BTreeMap<ShardId, Owner> {
        let Some(nodes) = self.regions.get(region) else {
            return BTreeMap::new();
        };
        let names: Vec<NodeName> = nodes
            .values()
            .filter(|m| m.core && m.ready)
            .map(|m| m.key.node.clone())
            .collect();
        let mut owners = BTreeMap::new();
        for shard in (0..sharding.count).map(ShardId) {
            let Some(name) = placement::owner(shard, &names, sharding.seed) else {
                continue;
            };
            let Some(member) = nodes.get(name) else { continue };
            let partition = placement::partition(shard, member.partitions);
            let addr = Addr {
                node: member.key.clone(),
                partition,
            };
            owners.insert(
                shard,
                Owner {
                    addr,
                    generation: member.generation,
                },
            );
        }
        owners
    }
}
