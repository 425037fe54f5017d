//! Regions that come and go while traffic flows (R13).
//!
//! A region that comes has links from the moment at which some shard counts it; it subscribes like any other, and gets what
//! it lacks as a snapshot. One that left has none; what is left of its logs is given to everybody who subscribes, since
//! nobody knows any more to ask for it.

use std::collections::BTreeSet;

use super::pull::Reach;
use super::{Links, PeerId};
use crate::core::ids::{RegionId, ShardId};
use crate::core::time::Now;

impl Links {
    /// The regions to have links with, this one included; what `staying` ones have is a copy.
    pub fn handle_regions(&mut self, regions: &BTreeSet<RegionId>, staying: &BTreeSet<RegionId>, now: Now) {
        self.begin(now);
        let others = regions.iter().filter(|region| **region != self.config.region);
        let new: Vec<RegionId> = others
            .filter(|region| !self.reach.contains_key(*region))
            .cloned()
            .collect();
        let left = self.reach.keys().filter(|region| !regions.contains(*region));
        let left: Vec<RegionId> = left.cloned().collect();
        for region in new {
            let mut reach = Reach::default();
            if !self.owned.is_empty() {
                reach.begin(now);
            }
            self.reach.insert(region, reach);
        }
        for region in left {
            self.part(&region);
        }
        self.copies_with(staying);
        self.choose = true;
    }

    fn part(&mut self, region: &RegionId) {
        let shards: Vec<ShardId> = self.owned.keys().copied().collect();
        for shard in shards {
            self.set_provider(shard, region, None);
        }
        self.placement.remove(region);
        let peers: Vec<PeerId> = (0..self.peers.len())
            .filter(|peer| self.peers[*peer].addr.node.region == *region)
            .collect();
        for peer in peers {
            self.close_lane(peer, std::time::Duration::ZERO);
            self.drop_serve(peer);
        }
        self.reach.remove(region);
        // It comes back, if at all, with an empty store.
        for owned in self.owned.values_mut() {
            owned.has.remove(region);
            for copies in owned.copies.values_mut() {
                copies.remove(region);
            }
        }
        for peer in &mut self.peers {
            if let Some(serve) = &mut peer.serve {
                serve.wanted.insert(region.clone());
            }
        }
    }

    /// The regions that this one has links with, itself included.
    pub(super) fn partners(&self) -> impl Iterator<Item = &RegionId> {
        self.reach.keys().chain([&self.config.region])
    }

    /// What a subscriber is given: what it wants, and what regions left behind.
    pub(super) fn given(&self, wanted: impl IntoIterator<Item = RegionId>) -> BTreeSet<RegionId> {
        let logs = self.owned.values().flat_map(|owned| owned.logs.values());
        let behind = logs.map(|log| &log.region);
        let behind =
            behind.filter(|region| **region != self.config.region && !self.reach.contains_key(*region));
        let mut given: BTreeSet<RegionId> = behind.cloned().collect();
        given.extend(wanted);
        given
    }
}
