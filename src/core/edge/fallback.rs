//! Which region's owners serve this edge: its own region's, or while those do not, the nearest other region's that can.
//!
//! ```text
//! home --no shard served for `fallback_ms`--> the nearest region whose owners are all reached
//!   ^                                             |                       |
//!   +-- home's owners reached, and none refused --+    no shard served ---+--> the next one, or home
//!       a shard for a while
//! ```
//!
//! A session does not move with it: it belongs to the store that it was attached to. An owner of another region ends it
//! retryably, and its client comes back to this edge, or goes elsewhere, and is resumed from what it consumed (R17).
//! What was unanswered goes to the owners at hand; where the old ones had taken it, it is a copy (R15).
//!
//! That home can be reached does not say that it serves: it may recover for minutes. So its owners are told, twice in that while,
//! that this edge has no sessions there, and whoever refuses a shard then is waited for. Where home was taken up again and did
//! not serve all the same, the wait before the next try doubles.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::lanes::SERVED;
use super::{Edge, EdgeConfig, EdgeOutput};
use crate::core::ids::{Addr, NodeKey, RegionId, ShardId};
use crate::core::limits::ms;
use crate::core::members::Owner;
use crate::core::msg::{ToEdge, ToOwner};
use crate::core::time::{Mono, Now};

/// A region that did not serve is not asked again for so long, while there are others.
const AVOIDED: Duration = Duration::from_secs(30);
/// The wait before home is taken up again doubles so often at most.
const MAX_RELAPSES: u32 = 5;
/// Home served for so many times `fallback_ms`: what comes then is not a relapse.
const LASTED: u32 = 10;

type Owners = BTreeMap<ShardId, Owner>;

/// Whose owners are used, and why.
#[derive(Debug)]
pub(super) struct Serving {
    home: RegionId,
    region: RegionId,
    /// The owners in each region, as told last.
    owners: BTreeMap<RegionId, Owners>,
    /// Since when no shard is served.
    idle_since: Option<Mono>,
    /// Since when all of home's owners can be reached and none refused a shard, while another region serves.
    home_since: Option<Mono>,
    /// The lanes on which home was told last that no session is there, and when.
    asked: BTreeSet<u64>,
    asked_at: Mono,
    /// When home was taken up again last.
    returned: Mono,
    /// How often in a row it did not serve then.
    relapses: u32,
    avoided: BTreeMap<RegionId, Mono>,
    /// Owners of the other region that serves: they may have sessions of this edge, also once they are not told as owners any more.
    visited: BTreeSet<Addr>,
    /// What is due before this was looked at.
    looked: Mono,
}

impl Serving {
    pub(super) fn new(config: &EdgeConfig) -> Self {
        let home = config.me.node.region.clone();
        Self {
            region: home.clone(),
            home,
            owners: BTreeMap::new(),
            idle_since: None,
            home_since: None,
            asked: BTreeSet::new(),
            asked_at: Mono::default(),
            returned: Mono::default(),
            relapses: 0,
            avoided: BTreeMap::new(),
            visited: BTreeSet::new(),
            looked: Mono::default(),
        }
    }

    fn is_home(&self) -> bool {
        self.region == self.home
    }

    fn return_wait(&self, after: Duration) -> Duration {
        after / 2 * (1 << self.relapses)
    }

    /// When something is due that no event announces; `after` 0: never.
    pub(super) fn poll_timeout(&self, fallback_ms: u64) -> Option<Mono> {
        let after = ms(fallback_ms);
        let idle = self.idle_since.map(|since| since + after);
        let home = self.home_since.map(|since| since + self.return_wait(after));
        let ask = self
            .home_since
            .map(|_| self.asked_at + self.return_wait(after) / 2);
        let waits = idle.into_iter().chain(home).chain(ask);
        let waits = waits.chain(self.avoided.values().copied());
        waits.filter(|at| fallback_ms > 0 && *at > self.looked).min()
    }
}

impl Edge {
    /// Who owns the shards in each region; the own one may be missing: then nobody does.
    pub fn handle_owners(&mut self, mut owners: BTreeMap<RegionId, Owners>, now: Now) {
        self.mono = now.mono;
        owners.entry(self.serving.home.clone()).or_default();
        self.serving.owners = owners;
        self.place();
        self.review_serving();
    }

    /// Who owns the shards in the own region, which is the only one.
    #[cfg(test)]
    pub fn handle_placement(&mut self, owners: &Owners, now: Now) {
        let home = self.serving.home.clone();
        self.handle_owners(BTreeMap::from([(home, owners.clone())]), now);
    }

    /// The region whose owners serve this edge.
    pub fn served_by(&self) -> &RegionId {
        &self.serving.region
    }

    /// Gives the routes the owners of the region that serves.
    fn place(&mut self) {
        let owners = self.serving.owners.get(&self.serving.region);
        let owners = owners.cloned().unwrap_or_default();
        if !self.serving.is_home() {
            let addrs = owners.values().map(|owner| owner.addr.clone());
            self.serving.visited.extend(addrs);
        }
        self.place_owners(&owners);
    }

    /// Looks whether another region is to serve.
    pub(super) fn review_serving(&mut self) {
        let limits = &self.config.limits;
        if limits.fallback_ms == 0 {
            return;
        }
        let (now, after) = (self.mono, ms(limits.fallback_ms));
        let lasts = ms(SERVED * limits.retry_ms);
        let serves = self.routing.serves(now, lasts);
        let serving = &mut self.serving;
        serving.looked = now;
        serving.avoided.retain(|_, until| *until > now);
        match serves {
            true => serving.idle_since = None,
            false => {
                serving.idle_since.get_or_insert(now);
            }
        }
        if !serving.is_home() {
            let home = serving.home.clone();
            let there = self.reaches_owners(&home);
            let serving = &mut self.serving;
            let wait = serving.return_wait(after);
            if !there {
                serving.home_since = None;
                serving.asked.clear();
            } else if serving.home_since.is_none() || serving.asked_at + wait / 2 <= now {
                serving.home_since.get_or_insert(now);
                serving.asked_at = now;
                // It may have heard from other regions of sessions that it had here, and would wait for word of them, too.
                self.serving.asked = self.leave(&home);
            }
            let serving = &mut self.serving;
            if serving.home_since.is_some_and(|since| since + wait <= now) {
                return self.serve_from(home);
            }
        }
        if self.serving.idle_since.is_none_or(|since| since + after > now) {
            return;
        }
        let next = self.next_region();
        let serving = &mut self.serving;
        if serving.is_home() {
            let Some(next) = next else { return };
            serving.relapses = match serving.returned + after * LASTED > now {
                true if serving.returned > Mono::default() => (serving.relapses + 1).min(MAX_RELAPSES),
                _ => 0,
            };
            self.serve_from(next);
        } else {
            serving.avoided.insert(serving.region.clone(), now + AVOIDED);
            let home = serving.home.clone();
            self.serve_from(next.unwrap_or(home));
        }
    }

    /// The nearest other region that can serve, as far as known.
    fn next_region(&self) -> Option<RegionId> {
        let serving = &self.serving;
        let others = self.endpoints.iter().map(|other| &other.region);
        let mut others = others.filter(|region| {
            **region != serving.home && **region != serving.region && !serving.avoided.contains_key(*region)
        });
        others.find(|region| self.reaches_owners(region)).cloned()
    }

    /// Whether a region has an owner for every shard, and all can be reached.
    fn reaches_owners(&self, region: &RegionId) -> bool {
        let Some(owners) = self.serving.owners.get(region) else {
            return false;
        };
        let nodes: BTreeSet<&NodeKey> = owners.values().map(|owner| &owner.addr.node).collect();
        owners.len() == self.config.sharding.count as usize
            && nodes.into_iter().all(|node| self.routing.reaches(node))
    }

    fn serve_from(&mut self, region: RegionId) {
        let now = self.mono;
        let before = std::mem::replace(&mut self.serving.region, region);
        let serving = &mut self.serving;
        (serving.idle_since, serving.home_since) = (None, None);
        serving.asked.clear();
        if serving.is_home() {
            serving.returned = now;
        }
        self.stats.fallbacks += u64::from(!self.serving.is_home());
        self.place();
        if before != self.serving.home {
            let visited = &mut self.serving.visited;
            let left: Vec<Addr> = visited
                .extract_if(.., |addr| addr.node.region == before)
                .collect();
            self.say_none(left);
        }
        // Home may be within reach all along, and nothing else would be heard of it.
        self.review_serving();
    }

    /// An owner answers on a lane that is no route. Whether it is one of home that was asked; if it refuses a shard of its own,
    /// home does not serve yet.
    pub(super) fn home_answers(&mut self, from: &Addr, lane: u64, body: &ToEdge) -> bool {
        let serving = &mut self.serving;
        let asked = serving.asked.contains(&lane);
        if let (true, ToEdge::NotOwner(shards)) = (asked, body) {
            let owners = serving.owners.get(&serving.home);
            let its = |shard: &ShardId| {
                owners
                    .and_then(|owners| owners.get(shard))
                    .map(|owner| &owner.addr)
                    == Some(from)
            };
            if serving.home_since.is_some() && shards.iter().any(its) {
                serving.home_since = Some(self.mono);
            }
        }
        asked
    }

    /// Tells the owners of a region that this edge has no sessions there.
    fn leave(&mut self, region: &RegionId) -> BTreeSet<u64> {
        let owners = self.serving.owners.get(region);
        let addrs = owners.into_iter().flat_map(Owners::values);
        let addrs: BTreeSet<Addr> = addrs.map(|owner| owner.addr.clone()).collect();
        self.say_none(addrs)
    }

    /// Tells owners that this edge has no sessions there: an empty set on a lane of its own, whose number is given.
    fn say_none(&mut self, owners: impl IntoIterator<Item = Addr>) -> BTreeSet<u64> {
        let mut lanes = BTreeSet::new();
        for to in owners {
            if !self.routing.reaches(&to.node) {
                continue;
            }
            let lane = self.routing.new_number();
            let generation = self.config.generation;
            // Of all shards: it may come to own others.
            let shards = (0..self.config.sharding.count).map(ShardId).collect();
            for body in [ToOwner::Open { generation }, ToOwner::Synced(shards)] {
                let to = to.clone();
                self.ready.push_back(EdgeOutput::ToOwner { to, lane, body });
            }
            lanes.insert(lane);
        }
        lanes
    }
}
