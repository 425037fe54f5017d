//! Origins that are retired here (R23), and others that are not so far.
//!
//! Who has not retired an origin yet takes a region that does not list it for one that never had it, and offers a snapshot.
//! It is then told, once, that all of it is known here.

use std::collections::BTreeMap;

use super::{Links, Owned, PeerId};
use crate::core::ids::{Coord, Origin, Seq, ShardId};
use crate::core::time::Now;
use crate::core::vector::Vector;

impl Links {
    /// Origins of an owned shard are retired, with their last sequences: nothing of them is asked for, given or taken any
    /// more.
    pub fn handle_retired(&mut self, shard: ShardId, retired: &BTreeMap<Origin, Seq>, now: Now) {
        self.begin(now);
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        for (origin, seq) in retired {
            owned.retired.insert(*origin, *seq);
            owned.logs.remove(origin);
            owned.held.remove(origin);
        }
        for peer in self.subscribers.get(&shard).into_iter().flatten() {
            let Some(serve) = self.peers[*peer].serve.as_mut() else {
                continue;
            };
            let Some(served) = serve.shards.get_mut(&shard) else {
                continue;
            };
            for origin in retired.keys() {
                if served
                    .positions
                    .remove(origin)
                    .is_some_and(|known| known.waits.is_some())
                {
                    served.waiting -= 1;
                }
            }
            // What begins after a retired origin has nothing to wait for any more: all of that is everywhere.
            let mut freed = Vec::new();
            for (origin, position) in &mut served.positions {
                let waits = |previous: &mut Coord| retired.contains_key(&previous.origin);
                if position.waits.take_if(waits).is_some() {
                    served.waiting -= 1;
                    freed.push(*origin);
                }
            }
            for origin in freed {
                serve.enqueue(shard, origin);
                self.touched.insert(*peer);
            }
        }
        self.wake_held(shard);
        self.look_whether_caught_up(shard);
    }

    /// A provider that still has an origin which is retired here is told that all of it is known; `false` where it is not.
    pub(super) fn tell_retired(&mut self, peer: PeerId, shard: ShardId, origin: Origin) -> bool {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return false;
        };
        let Some(seq) = owned.retired.get(&origin) else {
            return false;
        };
        owned.say.insert(origin, *seq);
        self.ask_again(peer, shard);
        true
    }
}

impl Owned {
    /// What is there of an origin; of a retired one all that there was.
    pub(super) fn reached(&self, origin: Origin) -> Seq {
        let log = self.logs.get(&origin).map(|log| log.head);
        log.or(self.retired.get(&origin).copied()).unwrap_or(0)
    }

    /// What is said to be applied here when the shard is subscribed.
    pub(super) fn applied(&self) -> Vector {
        let logs = self.logs.iter().map(|(origin, log)| (*origin, log.applied));
        logs.chain(self.say.iter().map(|(origin, seq)| (*origin, *seq)))
            .collect()
    }
}
