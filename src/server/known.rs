//! What hellos told of other nodes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::core::ids::{NodeKey, RegionId};
use crate::net::peer::{Direction, PeerHello};

/// What hellos told of other nodes.
#[derive(Default)]
pub(super) struct Known {
    hellos: Mutex<BTreeMap<NodeKey, PeerHello>>,
    /// The connections that other nodes dialled and that stand.
    dialled: Mutex<BTreeMap<NodeKey, u64>>,
    pub(super) changed: tokio::sync::Notify,
}

impl Known {
    /// A connection to a node is there.
    pub(super) fn saw(&self, hello: PeerHello, direction: Direction, incarnation: u64) {
        if direction == Direction::In {
            locked(&self.dialled).insert(hello.node.clone(), incarnation);
        }
        locked(&self.hellos).insert(hello.node.clone(), hello);
        self.changed.notify_one();
    }

    /// A connection to a node is over.
    pub(super) fn lost(&self, node: &NodeKey, direction: Direction, incarnation: u64) {
        let mut dialled = locked(&self.dialled);
        if direction == Direction::In && dialled.get(node) == Some(&incarnation) {
            dialled.remove(node);
            self.changed.notify_one();
        }
    }

    pub(super) fn of(&self, node: &NodeKey) -> Option<PeerHello> {
        locked(&self.hellos).get(node).cloned()
    }

    /// Nodes of other regions that keep a connection to this one.
    pub(super) fn guests(&self, region: &RegionId) -> Vec<PeerHello> {
        let dialled: Vec<NodeKey> = locked(&self.dialled).keys().cloned().collect();
        let guests = dialled.iter().filter(|node| node.region != *region);
        guests.filter_map(|node| self.of(node)).collect()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
