//! Which provider is asked for which region's origins (R6).
//!
//! A region's origins come from its own link. Where that has been silent for a while, other regions relay: at first every
//! live one is asked, and after a while only one of those that ask us for nothing of it, which have it from elsewhere.
//! That one is kept until it is gone or asks us itself. Asked for at once, narrowed down late: what we ask is all that
//! others know about our link, and regions that cut down as soon as they saw each other ask less would go round in a
//! circle for ever. Our own region's origins are wanted from everyone: what a lost disk or a restored backup took from us
//! comes back that way.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Links, PeerId};
use crate::core::defect::{self, Defect};
use crate::core::ids::RegionId;
use crate::core::limits::ms;
use crate::core::time::Mono;

impl Links {
    /// Chooses what is wanted from each provider. Walks all owned shards: called when a link's state or the placement
    /// changed, and each tick while a region is out of reach.
    pub(super) fn choose_providers(&mut self) {
        let now = self.now.mono;
        let patience = ms(self.config.limits.link_timeout_ms);
        let mut desired: BTreeMap<PeerId, BTreeMap<RegionId, Mono>> = BTreeMap::new();
        for (id, peer) in self.peers.iter().enumerate() {
            if !peer.pull.shards.is_empty() {
                let base = [peer.addr.node.region.clone(), self.config.region.clone()];
                desired.insert(id, base.map(|region| (region, now)).into());
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
                for id in self.relays(&live, region, patience) {
                    desired.entry(*id).or_default().insert(region.clone(), now);
                }
            }
        }
        for (id, mut desired) in desired {
            let pull = &mut self.peers[id].pull;
            for (region, since) in &mut desired {
                *since = pull.desired.get(region).copied().unwrap_or(now);
            }
            if !pull.desired.keys().eq(desired.keys()) {
                pull.desired = desired;
                self.touched.insert(id);
            }
        }
    }

    /// Which of the live ones are asked for a region that is out of reach.
    fn relays<'a>(&self, live: &'a [PeerId], region: &RegionId, patience: Duration) -> &'a [PeerId] {
        let now = self.now.mono;
        let since = |id: &PeerId| self.peers[*id].pull.desired.get(region);
        // One that asks us for this region has no link to it either.
        let in_touch = |id: &PeerId| {
            let serve = self.peers[*id].serve.as_ref();
            serve.is_none_or(|serve| !serve.wants(region))
        };
        let mut asked = live.iter().enumerate().filter(|(_, id)| since(id).is_some());
        if let (Some((at, id)), None) = (asked.next(), asked.next())
            && in_touch(id)
        {
            return &live[at..=at];
        }
        // By then everyone noticed what we noticed, and asked us if it has to.
        let settled = |id: &PeerId| {
            let serve = self.peers[*id].serve.as_ref();
            let changed = serve.map_or(Mono(0), |serve| serve.want_changed);
            since(id).is_some_and(|since| now.since((*since).max(changed)) >= patience * 2)
        };
        match live.iter().position(|id| in_touch(id) && settled(id)) {
            Some(at) => &live[at..=at],
            None => live,
        }
    }
}
