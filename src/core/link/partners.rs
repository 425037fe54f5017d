//! Regions that come and go while traffic flows (R13).
//!
//! A region that comes has links from the moment at which some shard counts it; it subscribes like any other, and gets what
//! it lacks as a snapshot. One that left has none; what is left of its logs is given to everybody who subscribes, since
//! nobody knows any more to ask for it.

use std::collections::BTreeSet;

use super::pull::Reach;
use super::{Links, PeerId};
use crate::core::holders::Partners;
use crate::core::ids::{RegionId, ShardId};
use crate::core::msg::ToSubscriber;
use crate::core::time::Now;

impl Links {
    /// The regions to have links with, as the shards that are owned here say.
    pub fn handle_regions(&mut self, told: &Partners, now: Now) {
        let Partners {
            all: regions,
            staying,
            change,
        } = told;
        self.begin(now);
        self.change = Some(change.clone());
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
        // What it left behind may be here alone, where it died. Who asks anew says what it has of that.
        for peer in 0..self.peers.len() {
            if let Some(lane) = self.drop_serve(peer) {
                self.tell_subscriber(peer, lane, ToSubscriber::Reset);
            }
        }
    }

    /// The answer to a subscriber of a region that this one has no links with, once that is known.
    pub(super) fn refusal(&self, region: &RegionId) -> Option<ToSubscriber> {
        let change = self.change.as_ref()?;
        let removed = change.clone().filter(|change| !change.set.contains(region));
        let detail = format!(
            "region {region} is not among the holders of region {}: an operator adds it there (iris region add)",
            self.config.region
        );
        Some(ToSubscriber::Refused { detail, removed })
    }

    /// Whether this region knows that it was removed.
    pub(super) fn is_removed(&self) -> bool {
        let change = self.change.as_ref().and_then(Option::as_ref);
        change.is_some_and(|change| !change.set.contains(&self.config.region))
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
