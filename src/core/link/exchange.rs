//! Presence to subscribers: what changed, in batches.
//!
//! The provider sends, the subscriber merges; each region is both, so one direction is enough. What waits is keys, not
//! records: a record that changes often is sent once, as it is then. What a subscriber has not got by changes, because it was
//! not there, or because too many keys waited, `repair` finds by digests. At most [`IN_FLIGHT`] messages are on their way to a
//! subscriber that has not merged them.

use std::collections::BTreeSet;

use super::repair::Repair;
use super::{DeviceKey, Links, PeerId, PresenceSource};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Addr, DeviceId, ShardId, UserId};
use crate::core::limits::ms;
use crate::core::msg::{MAX_ITEMS, RecordEntry, ToSubscriber};
use crate::core::time::Mono;

/// Messages of presence that were sent and not yet merged: two round trips' worth at one each `presence_ms`.
pub const IN_FLIGHT: usize = 8;
/// Of those, messages of repair: changes keep half of the room.
const REPAIRS_IN_FLIGHT: usize = 4;
/// Keys that wait for one subscriber, some 10 MB; beyond it they are found again by digests.
const MAX_WAITING: usize = 64 * 1024;

/// Presence on its way to one subscriber.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    dirty: BTreeSet<(ShardId, DeviceKey)>,
    flush_at: Option<Mono>,
    flush_due: bool,
    /// The subscription is complete.
    opened: bool,
    in_flight: usize,
    pub repair: Repair,
}

impl Exchange {
    /// A shard is subscribed, or owned here from now on: what the two sides have of it is to be compared.
    pub fn ask(&mut self, shard: ShardId) {
        self.repair.fresh.insert(shard);
    }

    /// A shard is not subscribed any more.
    pub fn forget(&mut self, shard: ShardId) {
        self.repair.forget(shard);
    }

    pub fn open(&mut self) {
        self.opened = true;
    }

    pub fn is_open(&self) -> bool {
        self.opened
    }

    pub fn credit(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub fn waiting(&self) -> usize {
        self.dirty.len()
    }

    pub fn due(&self) -> Option<Mono> {
        self.flush_at.into_iter().chain(self.repair.due()).min()
    }

    pub fn take_due(&mut self, now: Mono) -> bool {
        let due = self.flush_at.take_if(|at| *at <= now).is_some();
        self.flush_due |= due;
        self.repair.take_due(now) || due
    }

    /// The next message, if there is one to send now.
    fn next(&mut self, presence: &dyn PresenceSource, batch: usize) -> Option<ToSubscriber> {
        if !self.opened {
            return None;
        }
        let mut records: Vec<(ShardId, RecordEntry)> = Vec::new();
        let uncounted = defect::on(Defect::PresenceUncredited);
        if self.flush_due && (self.in_flight < IN_FLIGHT || uncounted) {
            while records.len() < batch
                && let Some((shard, (user, device))) = self.dirty.pop_first()
            {
                let table = presence.table(shard);
                let record = table.and_then(|table| table.record(&user, &device));
                records.extend(record.map(|record| (shard, record)));
            }
            self.flush_due = !self.dirty.is_empty();
        }
        if !records.is_empty() {
            self.in_flight += 1;
            return Some(ToSubscriber::Presence(records));
        }
        if self.in_flight >= REPAIRS_IN_FLIGHT && !uncounted {
            return None;
        }
        let dirty = &self.dirty;
        let waits = |shard: ShardId, entry: &RecordEntry| {
            let key = (entry.user().clone(), entry.device().clone());
            dirty.contains(&(shard, key))
        };
        let message = self.repair.next(presence, &waits, batch)?;
        self.in_flight += 1;
        Some(message)
    }
}

impl Links {
    pub(super) fn presence_changed(
        &mut self,
        shard: ShardId,
        user: &UserId,
        device: &DeviceId,
        from: Option<&Addr>,
    ) {
        let at = self.now.mono + ms(self.config.limits.presence_ms);
        for id in self.subscribers.get(&shard).into_iter().flatten() {
            let peer = &mut self.peers[*id];
            let Some(serve) = &mut peer.serve else { continue };
            if from == Some(&peer.addr) {
                continue;
            }
            let exchange = &mut serve.exchange;
            if exchange.dirty.len() >= MAX_WAITING {
                self.stats.presence_overflows += 1;
                exchange.dirty.clear();
                exchange.repair.overflowed();
            }
            exchange.dirty.insert((shard, (user.clone(), device.clone())));
            if !exchange.flush_due {
                exchange.flush_at.get_or_insert(at);
            }
        }
    }

    pub(super) fn flush_presence(&mut self, peer: PeerId, presence: &dyn PresenceSource) {
        self.compare_heard(peer, presence);
        self.say_digests(peer, presence);
        let batch = self.config.limits.presence_batch.clamp(1, MAX_ITEMS);
        loop {
            let Some(serve) = &mut self.peers[peer].serve else {
                return;
            };
            let Some(body) = serve.exchange.next(presence, batch) else {
                return;
            };
            self.count_repair(&body);
            if let ToSubscriber::Presence(records) | ToSubscriber::PresenceRepair(records) = &body {
                self.stats.presence_sent += records.len() as u64;
            }
            let lane = serve_lane(&self.peers[peer]);
            self.tell_subscriber(peer, lane, body);
        }
    }
}

fn serve_lane(peer: &super::Peer) -> u64 {
    peer.serve.as_ref().map_or(0, |serve| serve.lane)
}
