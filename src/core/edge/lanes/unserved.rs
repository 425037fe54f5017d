//! Shards that an edge cannot serve at the moment, and why: an edge is fit for clients only where there are none.

use std::collections::BTreeMap;
use std::fmt;

use super::Routing;
use crate::core::edge::Edge;
use crate::core::ids::NodeKey;

/// How many shards have no open lane to an owner, by what is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unserved {
    /// All shards of the cluster.
    pub shards: u32,
    /// No core node of the region is known that could own them.
    pub ownerless: u32,
    /// By the owner that no connection reaches.
    pub unreachable: BTreeMap<NodeKey, u32>,
    /// By the owner that is reached and does not serve them, as while they recover or are taken over.
    pub refused: BTreeMap<NodeKey, u32>,
}

impl Unserved {
    /// How many in all.
    pub fn count(&self) -> u32 {
        self.ownerless + self.unreachable.values().sum::<u32>() + self.refused.values().sum::<u32>()
    }
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.shards;
        let mut reasons = Vec::new();
        if self.ownerless > 0 {
            let count = self.ownerless;
            reasons.push(format!(
                "{count} of {all} shards have no owner: no core node of the region is ready"
            ));
        }
        for (node, count) in &self.unreachable {
            reasons.push(format!(
                "{count} of {all} shards have no lane: their owner {node} cannot be reached"
            ));
        }
        for (node, count) in &self.refused {
            reasons.push(format!(
                "{count} of {all} shards have no lane: their owner {node} does not serve them yet"
            ));
        }
        f.write_str(&reasons.join("; "))
    }
}

impl Edge {
    /// Changes with every change of [`Edge::unserved`], which looks at all shards.
    pub fn routes_version(&self) -> u64 {
        self.routing.version
    }

    /// The shards that no lane serves now.
    pub fn unserved(&self) -> Unserved {
        self.routing.unserved()
    }
}

impl Routing {
    fn unserved(&self) -> Unserved {
        let mut unserved = Unserved {
            shards: self.routes.len() as u32,
            ..Unserved::default()
        };
        for route in self.routes.iter().filter(|route| route.lane == 0) {
            let Some(owner) = &route.owner else {
                unserved.ownerless += 1;
                continue;
            };
            let node = &owner.addr.node;
            let by_node = if self.reaches(node) {
                &mut unserved.refused
            } else {
                &mut unserved.unreachable
            };
            *by_node.entry(node.clone()).or_default() += 1;
        }
        unserved
    }
}
