//! Presence to subscribers: what changed, in batches; and everything, in pages, when a shard is subscribed.
//!
//! The provider sends, the subscriber merges; each region is both, so one direction is enough. What waits is keys, not
//! records: a record that changes often is sent once, as it is then. Where too many keys wait, a full exchange replaces
//! them. At most [`IN_FLIGHT`] messages are on their way to a subscriber that has not merged them.

use std::collections::BTreeSet;

use super::{DeviceKey, Links, PeerId, PresenceSource};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Addr, DeviceId, ShardId, UserId};
use crate::core::limits::ms;
use crate::core::msg::{MAX_ITEMS, RecordEntry, ToSubscriber};
use crate::core::time::Mono;

/// Messages of presence that were sent and not yet merged: two round trips' worth at one each `presence_ms`.
pub const IN_FLIGHT: usize = 8;
/// Of those, pages of a full exchange: changes keep half of the room.
const PAGES_IN_FLIGHT: usize = 4;
/// Keys that wait for one subscriber, some 10 MB; beyond it a full exchange costs less.
const MAX_WAITING: usize = 64 * 1024;

/// Presence on its way to one subscriber.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    dirty: BTreeSet<(ShardId, DeviceKey)>,
    flush_at: Option<Mono>,
    flush_due: bool,
    /// Shards to be sent in full.
    todo: BTreeSet<ShardId>,
    /// The one that is being sent, and how far.
    paging: Option<(ShardId, Option<DeviceKey>)>,
    syncing: bool,
    /// The subscription is complete.
    opened: bool,
    in_flight: usize,
}

impl Exchange {
    /// A shard is to be sent in full.
    pub fn ask(&mut self, shard: ShardId) {
        self.syncing = true;
        self.todo.insert(shard);
    }

    /// A shard is not subscribed any more.
    pub fn forget(&mut self, shard: ShardId) {
        self.todo.remove(&shard);
        self.paging.take_if(|(paging, _)| *paging == shard);
    }

    pub fn open(&mut self) {
        self.opened = true;
    }

    pub fn credit(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub fn waiting(&self) -> usize {
        self.dirty.len()
    }

    pub fn due(&self) -> Option<Mono> {
        self.flush_at
    }

    pub fn take_due(&mut self, now: Mono) -> bool {
        let due = self.flush_at.take_if(|at| *at <= now).is_some();
        self.flush_due |= due;
        due
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
                records.extend(
                    presence
                        .record(shard, &user, &device)
                        .map(|record| (shard, record)),
                );
            }
            self.flush_due = !self.dirty.is_empty();
        }
        if records.is_empty() && (self.in_flight < PAGES_IN_FLIGHT || uncounted) {
            while records.len() < batch {
                let next = || self.todo.pop_first().map(|shard| (shard, None));
                let Some((shard, after)) = self.paging.take().or_else(next) else {
                    break;
                };
                let limit = batch - records.len();
                let page = presence.page(shard, after.as_ref(), limit);
                if page.len() >= limit {
                    let last = page.last().map(|(key, _)| key.clone());
                    self.paging = Some((shard, last));
                }
                records.extend(page.into_iter().map(|(_, record)| (shard, record)));
            }
        }
        if !records.is_empty() {
            self.in_flight += 1;
            return Some(ToSubscriber::Presence(records));
        }
        let done = self.todo.is_empty() && self.paging.is_none();
        (done && std::mem::take(&mut self.syncing)).then_some(ToSubscriber::PresenceSynced)
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
                exchange.todo = serve.shards.keys().copied().collect();
                exchange.paging = None;
                exchange.syncing = true;
                self.touched.insert(*id);
                continue;
            }
            exchange.dirty.insert((shard, (user.clone(), device.clone())));
            if !exchange.flush_due {
                exchange.flush_at.get_or_insert(at);
            }
        }
    }

    pub(super) fn flush_presence(&mut self, peer: PeerId, presence: &dyn PresenceSource) {
        let batch = self.config.limits.presence_batch.clamp(1, MAX_ITEMS);
        loop {
            let Some(serve) = &mut self.peers[peer].serve else {
                return;
            };
            let Some(body) = serve.exchange.next(presence, batch) else {
                return;
            };
            if let ToSubscriber::Presence(records) = &body {
                self.stats.presence_sent += records.len() as u64;
            }
            let lane = serve.lane;
            self.tell_subscriber(peer, lane, body);
        }
    }
}
