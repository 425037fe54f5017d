//! Subscribers and their lanes: who takes which shards from us, and what they say.

use super::position::Serve;
use super::report::{Lag, LinkAlarm, ServeStatus};
use super::{Left, LinkOutput, Links, Peer, PeerId};
use crate::core::ids::{Addr, RegionId, ShardId};
use crate::core::limits::ms;
use crate::core::msg::{Message, ToProvider, ToSubscriber};
use crate::core::vector::Vector;

/// Shards that one subscriber may name: more than any cluster has.
const MAX_SHARDS: usize = 64 * 1024;

impl Links {
    pub(super) fn serve_message(&mut self, from: &Addr, lane: u64, body: ToProvider) {
        let Some(id) = self.peer(from) else {
            self.stats.stale += 1;
            if matches!(body, ToProvider::Subscribe { first: true, .. })
                && let Some(body) = self.refusal(&from.node.region)
            {
                let message = Message::ToSubscriber { lane, body };
                let to = from.clone();
                self.outputs.push_back(LinkOutput::ToPeer { to, message });
            }
            return;
        };
        if !self.is_up(id) {
            // What we would answer could be lost: it hears of us when its node is known to be reachable.
            let peer = &mut self.peers[id];
            peer.lost_lane = peer.lost_lane.max(Some(lane));
            self.stats.stale += 1;
            return;
        }
        let current = self.peers[id].serve.as_ref().map(|serve| serve.lane);
        if current == Some(lane) {
            self.on_lane(id, lane, body);
            return;
        }
        let newer = lane > self.peers[id].served_lane;
        match body {
            ToProvider::Subscribe { first: true, .. } if newer => {
                self.open_serve(id, lane);
                self.on_lane(id, lane, body);
            }
            // It believes in a lane that we do not know.
            ToProvider::Subscribe { first: false, .. } | ToProvider::Ping { .. }
                if newer || current.is_none() =>
            {
                self.tell_subscriber(id, lane, ToSubscriber::Reset);
            }
            _ => self.stats.stale += 1,
        }
    }

    /// Tells a subscriber whose node can be reached again that its lane is gone.
    pub(super) fn serve_reachable(&mut self, peer: PeerId) {
        if let Some(lane) = self.peers[peer].lost_lane.take() {
            self.tell_subscriber(peer, lane, ToSubscriber::Reset);
        }
    }

    /// The connection to a subscriber broke.
    pub(super) fn lose_serve(&mut self, peer: PeerId) {
        if let Some(lane) = self.drop_serve(peer) {
            self.peers[peer].lost_lane = Some(lane);
        }
        // Nothing of an older lane arrives over the next connection, and a node that lost its disk may number lower.
        self.peers[peer].served_lane = 0;
    }

    /// A shard is owned here from now on: whoever subscribed it is served.
    pub(super) fn serve_owned(&mut self, shard: ShardId) {
        for peer in self.subscribers.get(&shard).cloned().unwrap_or_default() {
            let mut asks = false;
            if let Some(serve) = &mut self.peers[peer].serve {
                serve.exchange.ask(shard);
                asks = true;
                serve.have_due.insert(shard);
                if serve.sending.contains_key(&shard) && !serve.turns.contains(&shard) {
                    serve.turns.push_back(shard);
                }
            }
            if asks {
                self.compare_soon(peer);
            }
            self.catch_up(peer, shard);
            // What it had when it subscribed was told before we owned the shard.
            self.ask_for_copies(peer);
        }
    }

    /// Forgets subscribers that fell silent: a living one that hears so opens the next lane.
    pub(super) fn tick_serves(&mut self) {
        let patience = ms(self.config.limits.link_timeout_ms) * 2;
        let now = self.now.mono;
        for peer in 0..self.peers.len() {
            let serve = self.peers[peer].serve.as_ref();
            if serve.is_some_and(|serve| now.since(serve.heard) >= patience) {
                self.drop_serve(peer);
            }
        }
    }

    /// What a subscriber takes; of one whose lane is gone, what waits for it since.
    pub(super) fn serve_status(&self, peer: &Peer) -> Option<ServeStatus> {
        let (mut lag, mut behind) = (Vec::new(), Lag::default());
        let mut add = |shard: ShardId, more: &mut dyn Iterator<Item = Lag>| {
            let mut of_shard = Lag::default();
            more.for_each(|more| of_shard.add(&more));
            if of_shard.operations > 0 {
                behind.add(&of_shard);
                lag.push((shard, of_shard));
            }
        };
        let Some(serve) = &peer.serve else {
            let left = peer.left.as_ref()?;
            let region = &peer.addr.node.region;
            let mut shards = 0;
            for (shard, positions) in &left.positions {
                let Some(owned) = self.owned.get(shard) else {
                    continue;
                };
                let theirs = owned.remotes.get(region).map(|id| &self.peers[*id].addr);
                if theirs != Some(&peer.addr) {
                    continue;
                }
                shards += 1;
                let wanted = owned
                    .logs
                    .iter()
                    .filter(|(_, log)| left.wanted.contains(&log.region));
                let seq = |origin| positions.get(origin).copied().unwrap_or_default();
                add(
                    *shard,
                    &mut wanted.map(|(origin, log)| log.trail.behind(seq(origin), log.head)),
                );
            }
            return Some(ServeStatus {
                open: false,
                shards,
                lag,
                behind,
                in_flight_bytes: 0,
                shipped: peer.shipped.0,
                shipped_bytes: peer.shipped.1,
                presence_waiting: 0,
            });
        };
        for (shard, served) in &serve.shards {
            let Some(owned) = self.owned.get(shard) else {
                continue;
            };
            let wanted = owned
                .logs
                .iter()
                .filter(|(_, log)| serve.wanted.contains(&log.region));
            add(
                *shard,
                &mut wanted.map(|(origin, log)| log.trail.behind(served.seq(*origin), log.head)),
            );
        }
        Some(ServeStatus {
            open: true,
            shards: serve.shards.len(),
            lag,
            behind,
            in_flight_bytes: serve.window.saturating_sub(serve.credit),
            shipped: peer.shipped.0 + serve.shipped.0,
            shipped_bytes: peer.shipped.1 + serve.shipped.1,
            presence_waiting: serve.exchange.waiting(),
        })
    }

    fn open_serve(&mut self, peer: PeerId, lane: u64) {
        self.drop_serve(peer);
        self.stats.lanes_served += 1;
        let now = self.now.mono;
        let peer = &mut self.peers[peer];
        peer.served_lane = lane;
        peer.lost_lane = None;
        peer.left = None;
        peer.serve = Some(Serve::new(lane, now));
    }

    pub(super) fn drop_serve(&mut self, peer: PeerId) -> Option<u64> {
        let serve = self.peers[peer].serve.take()?;
        let positions = serve.shards.iter().map(|(shard, served)| {
            let positions = served.positions.iter();
            (
                *shard,
                positions
                    .map(|(origin, position)| (*origin, position.seq))
                    .collect(),
            )
        });
        self.peers[peer].left = Some(Left {
            positions: positions.collect(),
            wanted: serve.wanted.clone(),
        });
        let (ops, bytes) = &mut self.peers[peer].shipped;
        *ops += serve.shipped.0;
        *bytes += serve.shipped.1;
        for shard in serve.shards.keys() {
            self.unsubscribe(peer, *shard);
        }
        // Whom we ask for which region depends on what the others ask us for.
        self.choose = true;
        Some(serve.lane)
    }

    fn unsubscribe(&mut self, peer: PeerId, shard: ShardId) {
        if let Some(subscribers) = self.subscribers.get_mut(&shard) {
            subscribers.remove(&peer);
            if subscribers.is_empty() {
                self.subscribers.remove(&shard);
            }
        }
    }

    fn on_lane(&mut self, id: PeerId, lane: u64, body: ToProvider) {
        let now = self.now.mono;
        let Some(serve) = &mut self.peers[id].serve else {
            return;
        };
        serve.heard = now;
        match body {
            ToProvider::Subscribe {
                holders,
                shards,
                wanted,
                last,
                ..
            } => self.subscribed(id, holders, shards, wanted, last),
            ToProvider::Unsubscribe(shards) => {
                for shard in &shards {
                    serve.shards.remove(shard);
                    serve.sending.remove(shard);
                    serve.exchange.forget(*shard);
                }
                for shard in shards {
                    self.unsubscribe(id, shard);
                }
            }
            ToProvider::Credit(bytes) => {
                serve.grant(bytes);
                self.touched.insert(id);
            }
            ToProvider::Want(wanted) => {
                let wanted = self.given(wanted);
                let Some(serve) = &mut self.peers[id].serve else {
                    return;
                };
                serve.wanted = wanted;
                serve.want_changed = now;
                self.choose = true;
            }
            ToProvider::PresenceCredit => {
                serve.exchange.credit();
                self.touched.insert(id);
            }
            ToProvider::Snapshot { shard, number } => {
                if !self.asked_for_snapshot(id, shard, number) {
                    self.drop_serve(id);
                    self.tell_subscriber(id, lane, ToSubscriber::Reset);
                }
            }
            ToProvider::Copied(copies) => self.reported(id, copies),
            ToProvider::Ping { nonce, wall_ms } => {
                self.peers[id].wall = Some((wall_ms, now));
                // What was shipped before must arrive before.
                self.flush_batch(id);
                let wall_ms = self.now.wall_ms;
                self.tell_subscriber(id, lane, ToSubscriber::Pong { nonce, wall_ms });
            }
        }
    }

    fn subscribed(
        &mut self,
        id: PeerId,
        holders: Vec<RegionId>,
        shards: Vec<(ShardId, Vector)>,
        wanted: Vec<RegionId>,
        last: bool,
    ) {
        let wanted = self.given(wanted);
        let Some(serve) = &mut self.peers[id].serve else {
            return;
        };
        let lane = serve.lane;
        let differ = !holders.contains(&self.config.region);
        let too_many = serve.shards.len() + shards.len() > MAX_SHARDS;
        if differ || too_many {
            let detail = if differ {
                let names: Vec<&str> = holders.iter().take(64).map(RegionId::as_str).collect();
                format!(
                    "the subscriber's holders are [{}], without {}: give both regions the files of all",
                    names.join(", "),
                    self.config.region
                )
            } else {
                format!("a subscription names over {MAX_SHARDS} shards")
            };
            self.drop_serve(id);
            let link = self.peers[id].addr.clone();
            self.tell_subscriber(
                id,
                lane,
                ToSubscriber::Refused {
                    detail: detail.clone(),
                    removed: None,
                },
            );
            let alarm = LinkAlarm::Refused { link, detail };
            self.outputs.push_back(LinkOutput::Alarm(alarm));
            return;
        }
        if serve.wanted != wanted {
            serve.wanted = wanted;
            serve.want_changed = self.now.mono;
            self.choose = true;
        }
        let named: Vec<ShardId> = shards.iter().map(|(shard, _)| *shard).collect();
        let mut new = false;
        for (shard, applied) in &shards {
            if !serve.shards.contains_key(shard) {
                serve.exchange.ask(*shard);
                new = true;
                serve.have_due.insert(*shard);
            }
            let served = serve.shards.entry(*shard).or_default();
            for (origin, seq) in applied.iter() {
                let position = served.positions.entry(origin).or_default();
                position.seq = position.seq.max(seq);
            }
            self.subscribers.entry(*shard).or_default().insert(id);
        }
        for shard in named {
            self.catch_up(id, shard);
            if let Some(serve) = &mut self.peers[id].serve {
                serve.wake(shard);
            }
        }
        self.look_for_rollback(id, &shards);
        self.subscribed_with(id, &shards);
        if last && let Some(serve) = &mut self.peers[id].serve {
            serve.exchange.open();
            self.ask_for_copies(id);
        }
        if new {
            self.compare_soon(id);
        }
        self.touched.insert(id);
    }
}
