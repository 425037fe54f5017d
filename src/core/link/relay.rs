//! Which provider is asked for which region's origins (R6).
//!
//! A region's origins come from its own link. Where that has been silent for a while, another region that is live and
//! itself in touch with it relays; where none is, every live one is asked, for what passes through two of them. Our own
//! region's origins are wanted from everyone: what a lost disk or a restored backup took from us comes back that way.

use std::collections::{BTreeMap, BTreeSet};

use super::{Links, PeerId};
use crate::core::defect::{self, Defect};
use crate::core::ids::RegionId;
use crate::core::limits::ms;

impl Links {
    /// Chooses what is wanted from each provider. Walks all owned shards: called when a link's state or the placement
    /// changed, and each tick while a region is out of reach.
    pub(super) fn choose_providers(&mut self) {
        let now = self.now.mono;
        let patience = ms(self.config.limits.link_timeout_ms);
        let mut desired: BTreeMap<PeerId, BTreeSet<RegionId>> = BTreeMap::new();
        for (id, peer) in self.peers.iter().enumerate() {
            if !peer.pull.shards.is_empty() {
                let base = [peer.addr.node.region.clone(), self.config.region.clone()];
                desired.insert(id, base.into());
            }
        }
        for (shard, owned) in &self.owned {
            for region in self.reach.keys() {
                let direct = owned.remotes.get(region).map(|id| &self.peers[*id].pull);
                let patient = match direct {
                    Some(pull) => {
                        pull.gives(*shard)
                            || (!pull.stopped.contains_key(shard) && pull.down_for(now) < patience)
                    }
                    None => now.since(owned.since) < patience,
                };
                if patient || defect::on(Defect::NoRelay) {
                    continue;
                }
                let live = owned
                    .remotes
                    .iter()
                    .filter(|(other, id)| *other != region && self.peers[**id].pull.gives(*shard))
                    .map(|(_, id)| *id);
                let live: Vec<PeerId> = live.collect();
                // One that asks us for this region has no link to it either.
                let in_touch = |id: &&PeerId| {
                    let serve = self.peers[**id].serve.as_ref();
                    serve.is_none_or(|serve| !serve.wants(region))
                };
                let asked = match live.iter().find(in_touch) {
                    Some(id) => std::slice::from_ref(id),
                    None => &live[..],
                };
                for id in asked {
                    desired.entry(*id).or_default().insert(region.clone());
                }
            }
        }
        for (id, desired) in desired {
            let pull = &mut self.peers[id].pull;
            if pull.desired != desired {
                pull.desired = desired;
                self.touched.insert(id);
            }
        }
    }
}
