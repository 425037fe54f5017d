//! Whether a shard has what the other regions have (R4), and proofs that our store lost something (R3).
//!
//! A provider says what it has of a shard when it is subscribed ([`Have`]), and again when it has recovered itself. From
//! that follow three things:
//!
//! - It has more of an *older* origin of our region than we: our store was replaced or restored. The shard recovers.
//! - It has more of our *current* origin: the store was rolled back while it was open. Our head is read once more, after
//!   the report, and if that is so the node stops, so that its next start takes a new origin.
//! - A shard that recovers has caught up when it has what every region within reach had, of which at least one does not
//!   recover itself. A region is out of reach when its link has not been live for the time limit of links.

use super::{LinkOutput, Links, PeerId};
use crate::core::ids::{Origin, RegionId, Seq, ShardId};
use crate::core::limits::ms;
use crate::core::msg::{Have, MAX_ITEMS, ToSubscriber};
use crate::core::time::Now;
use crate::core::vector::Vector;

/// Positions that one message carries at most, as in subscriptions.
const POSITIONS: usize = 16 * 1024;

/// What a region said that it has of a shard.
#[derive(Debug)]
pub(super) struct Has {
    peer: PeerId,
    /// On this lane: what it said before may not be true any more.
    lane: u64,
    applied: Vector,
    recovering: bool,
}

impl Links {
    /// A shard that is owned here begins to recover for a snapshot, and lost nothing (R12).
    pub fn handle_behind(&mut self, shard: ShardId, now: Now) {
        if let Some(owned) = self.owned.get_mut(&shard) {
            owned.whole = true;
        }
        self.recovers(shard, true, now);
    }

    /// A shard that is owned here begins to recover, or is open again.
    pub fn handle_recovering(&mut self, shard: ShardId, recovering: bool, now: Now) {
        if let Some(owned) = self.owned.get_mut(&shard) {
            owned.whole = false;
        }
        self.recovers(shard, recovering, now);
    }

    fn recovers(&mut self, shard: ShardId, recovering: bool, now: Now) {
        self.begin(now);
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        owned.recovering = recovering;
        owned.caught_up = false;
        for id in self.subscribers.get(&shard).into_iter().flatten() {
            if let Some(serve) = &mut self.peers[*id].serve {
                serve.have_due.insert(shard);
                self.touched.insert(*id);
            }
        }
        if recovering {
            self.look_whether_caught_up(shard);
        } else {
            // Somebody may have come meanwhile who has more.
            let owned = &self.owned[&shard];
            let told: Vec<(PeerId, Vector)> = owned
                .has
                .values()
                .map(|has| (has.peer, has.applied.clone()))
                .collect();
            for (peer, theirs) in told {
                self.look_for_loss(peer, shard, &theirs);
            }
        }
    }

    /// Tells a subscriber what is due of what we have.
    pub(super) fn flush_have(&mut self, peer: PeerId) {
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        if serve.have_due.is_empty() {
            return;
        }
        let lane = serve.lane;
        let due = std::mem::take(&mut serve.have_due);
        let region = self.peers[peer].addr.node.region.clone();
        let mut list = Vec::new();
        let mut positions = 0;
        for shard in due {
            let Some(owned) = self.owned.get(&shard) else {
                continue;
            };
            let heads = owned.logs.iter().filter(|(_, log)| log.head > 0);
            let yours = heads.clone().filter(|(_, log)| log.region == region);
            let have = Have {
                shard,
                recovering: owned.recovering && !owned.whole,
                applied: heads.map(|(origin, log)| (*origin, log.head)).collect(),
                yours: yours.map(|(origin, log)| (*origin, log.head)).collect(),
            };
            positions += have.applied.len() + have.yours.len() + 1;
            list.push(have);
            if positions >= POSITIONS || list.len() >= MAX_ITEMS {
                positions = 0;
                let body = ToSubscriber::Have(std::mem::take(&mut list));
                self.tell_subscriber(peer, lane, body);
            }
        }
        if !list.is_empty() {
            self.tell_subscriber(peer, lane, ToSubscriber::Have(list));
        }
    }

    pub(super) fn have(&mut self, peer: PeerId, list: Vec<Have>) {
        let lane = self.peers[peer].pull.lane();
        let region = self.peers[peer].addr.node.region.clone();
        for have in list {
            let Have {
                shard,
                recovering,
                applied,
                yours,
            } = have;
            let Some(owned) = self.owned.get_mut(&shard) else {
                continue;
            };
            if owned.remotes.get(&region) != Some(&peer) {
                continue;
            }
            let has = Has {
                peer,
                lane,
                applied,
                recovering,
            };
            owned.has.insert(region.clone(), has);
            self.look_for_loss(peer, shard, &yours);
            self.look_whether_caught_up(shard);
        }
    }

    /// More of our origins elsewhere than is durable here: of older ones our store lost it (R4), of the current one it was
    /// rolled back while it is open (R3). Of other regions' origins nothing follows.
    pub(super) fn look_for_loss(&mut self, peer: PeerId, shard: ShardId, theirs: &Vector) {
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        let ours = |origin| owned.reached(origin);
        let known_as_other = |origin: Origin| {
            let log = owned.logs.get(&origin);
            log.is_some_and(|log| log.region != self.config.region)
        };
        let more: Vec<(Origin, Seq, Seq)> = theirs
            .iter()
            .filter(|(origin, _)| !known_as_other(*origin))
            .map(|(origin, theirs)| (origin, ours(origin), theirs))
            .filter(|(_, ours, theirs)| theirs > ours)
            .collect();
        for (origin, ours, theirs) in more {
            let link = self.peers[peer].addr.clone();
            if self.own_origin == Some(origin) {
                self.outputs.push_back(LinkOutput::VerifyHead {
                    link,
                    shard,
                    origin,
                    theirs,
                });
            } else if !self.owned[&shard].recovering || self.owned[&shard].whole {
                let why = format!(
                    "{link} has origin {:016x} of this region to {theirs}, here it ends at {ours}",
                    origin.0
                );
                self.lost(shard, why, false);
            }
        }
    }

    /// The shard lacks what it once had: it recovers, as soon as its owner says so.
    /// `whole`: only because it was away.
    pub(super) fn lost(&mut self, shard: ShardId, why: String, whole: bool) {
        self.stats.losses += u64::from(!whole);
        self.outputs.push_back(LinkOutput::Lost { shard, why, whole });
    }

    /// More than we have of a current origin of ours came from a subscriber, who names origins without their regions.
    pub(super) fn look_for_rollback(&mut self, peer: PeerId, shards: &[(ShardId, Vector)]) {
        let Some(origin) = self.own_origin else { return };
        for (shard, applied) in shards {
            let current = Vector::from_iter([(origin, applied.of(origin))]);
            self.look_for_loss(peer, *shard, &current);
        }
    }

    /// Time alone may put a region out of reach.
    pub(super) fn tick_recovery(&mut self) {
        let recovering = self.owned.iter().filter(|(_, owned)| owned.recovering);
        let recovering: Vec<ShardId> = recovering.map(|(shard, _)| *shard).collect();
        for shard in recovering {
            self.look_whether_caught_up(shard);
        }
    }

    pub(super) fn look_whether_caught_up(&mut self, shard: ShardId) {
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        if !owned.recovering || owned.caught_up || owned.taking.is_some() || owned.awaits.is_some() {
            return;
        }
        let mut sound = false;
        for region in self.reach.keys() {
            match self.has_all_of(shard, region) {
                Compared::Behind => return,
                Compared::OutOfReach => {}
                Compared::Level { recovering } => sound |= !recovering,
            }
        }
        if !sound {
            return;
        }
        if let Some(owned) = self.owned.get_mut(&shard) {
            owned.caught_up = true;
        }
        self.outputs.push_back(LinkOutput::CaughtUp { shard });
    }

    fn has_all_of(&self, shard: ShardId, region: &RegionId) -> Compared {
        let now = self.now.mono;
        let patience = ms(self.config.limits.link_timeout_ms);
        let owned = &self.owned[&shard];
        let out_of_reach = match owned.remotes.get(region) {
            None => now.since(owned.since) >= patience,
            Some(peer) => {
                let down = self.peers[*peer].pull.down_for(now);
                down >= patience && now.since(owned.since) >= patience
            }
        };
        if out_of_reach {
            return Compared::OutOfReach;
        }
        let Some(has) = owned.has.get(region) else {
            return Compared::Behind;
        };
        let peer = &self.peers[has.peer];
        if owned.remotes.get(region) != Some(&has.peer) || !peer.pull.open_as(has.lane) {
            return Compared::Behind;
        }
        let ours = |origin| owned.reached(origin);
        if has.applied.iter().any(|(origin, theirs)| theirs > ours(origin)) {
            return Compared::Behind;
        }
        Compared::Level {
            recovering: has.recovering,
        }
    }
}

enum Compared {
    /// It has more, or has not said yet what it has.
    Behind,
    Level {
        recovering: bool,
    },
    OutOfReach,
}
