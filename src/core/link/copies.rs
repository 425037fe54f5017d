//! What other regions have of our operations, told at once where messages are accepted only then (`durability = "geo"`).
//!
//! A provider asks for it on each lane ([`ToSubscriber::ReportCopies`]). From then on the subscriber tells of each commit of
//! operations of the provider's region, however they came, with one message for all that was committed together. Nothing is
//! trimmed by it: that takes logged confirmations (R8).

use std::collections::{BTreeMap, BTreeSet};

use super::{LinkOutput, Links, PeerId};
use crate::core::ids::{Origin, RegionId, Seq, ShardId};
use crate::core::msg::{MAX_ITEMS, ToProvider, ToSubscriber};
use crate::core::vector::Vector;

impl Links {
    /// Asks a subscriber to report, where that is wanted.
    pub(super) fn ask_for_copies(&mut self, peer: PeerId) {
        let lane = self.peers[peer].serve.as_ref().map(|serve| serve.lane);
        if let (Some(lane), true) = (lane, self.config.report_copies) {
            self.tell_subscriber(peer, lane, ToSubscriber::ReportCopies);
        }
    }

    /// A subscriber said what it has of shards.
    pub(super) fn subscribed_with(&mut self, peer: PeerId, shards: &[(ShardId, Vector)]) {
        if !self.config.report_copies {
            return;
        }
        let region = self.peers[peer].addr.node.region.clone();
        for (shard, applied) in shards {
            let Some(owned) = self.owned.get(shard) else {
                continue;
            };
            let own = owned
                .logs
                .iter()
                .filter(|(_, log)| log.region == self.config.region);
            let own: Vec<Origin> = own.map(|(origin, _)| *origin).collect();
            for origin in own {
                self.copied(&region, *shard, origin, applied.of(origin));
            }
        }
    }

    /// A subscriber reports.
    pub(super) fn reported(&mut self, peer: PeerId, copies: Vec<(ShardId, Origin, Seq)>) {
        let region = self.peers[peer].addr.node.region.clone();
        for (shard, origin, seq) in copies {
            self.copied(&region, shard, origin, seq);
        }
    }

    /// A region has an origin of ours to here, be it less than before.
    fn copied(&mut self, region: &RegionId, shard: ShardId, origin: Origin, seq: Seq) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        let copies = owned.copies.entry(origin).or_default();
        let before = furthest(copies, &self.staying);
        copies.insert(region.clone(), seq);
        let seq = furthest(copies, &self.staying);
        if seq != before {
            self.outputs.push_back(LinkOutput::Copied { shard, origin, seq });
        }
    }

    /// What other regions have is a copy in these alone from now on: one that is removed will not keep it (R13).
    pub(super) fn copies_with(&mut self, staying: &BTreeSet<RegionId>) {
        let before = std::mem::replace(&mut self.staying, staying.clone());
        for (shard, owned) in &self.owned {
            for (origin, copies) in &owned.copies {
                let seq = furthest(copies, &self.staying);
                if seq != furthest(copies, &before) {
                    let (shard, origin) = (*shard, *origin);
                    self.outputs.push_back(LinkOutput::Copied { shard, origin, seq });
                }
            }
        }
    }

    /// The provider wants reports from now on: begins with what is here already.
    pub(super) fn report_from_now(&mut self, peer: PeerId) {
        let region = &self.peers[peer].addr.node.region;
        let mut have = Vec::new();
        for shard in &self.peers[peer].pull.shards {
            let logs = self.owned.get(shard).into_iter().flat_map(|owned| &owned.logs);
            let theirs = logs.filter(|(_, log)| log.region == *region && log.applied > 0);
            have.extend(theirs.map(|(origin, log)| ((*shard, *origin), log.applied)));
        }
        let pull = &mut self.peers[peer].pull;
        pull.reports = true;
        pull.copies.extend(have);
        self.touched.insert(peer);
    }

    /// Operations of a region became durable here.
    pub(super) fn have_copy(&mut self, shard: ShardId, origin: Origin, seq: Seq) {
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        let region = owned.logs.get(&origin).map(|log| &log.region);
        let Some(peer) = region.and_then(|region| owned.remotes.get(region)).copied() else {
            return;
        };
        let pull = &mut self.peers[peer].pull;
        if pull.reports {
            pull.copies.insert((shard, origin), seq);
            self.touched.insert(peer);
        }
    }

    /// Sends what is to be reported.
    pub(super) fn flush_copies(&mut self, peer: PeerId) {
        let pull = &mut self.peers[peer].pull;
        if pull.copies.is_empty() {
            return;
        }
        let copies: Vec<_> = std::mem::take(&mut pull.copies)
            .into_iter()
            .map(|((shard, origin), seq)| (shard, origin, seq))
            .collect();
        for chunk in copies.chunks(MAX_ITEMS) {
            self.tell_provider(peer, ToProvider::Copied(chunk.to_vec()));
        }
    }
}

/// How far the furthest of some regions is.
fn furthest(copies: &BTreeMap<RegionId, Seq>, of: &BTreeSet<RegionId>) -> Seq {
    let known = copies.iter().filter(|(region, _)| of.contains(*region));
    known.map(|(_, seq)| *seq).max().unwrap_or(0)
}
