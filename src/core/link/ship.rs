//! Shipping: from memory right after a commit, or from pages of the log, shards taking turns, until a position is level.
//!
//! Nothing is shipped before its commit came back (R5), and nothing goes back to the region that it came from.

use std::time::Duration;

use super::pace::Pace;
use super::trail::Trail;
use super::{LinkOutput, Links, Log, PeerId, PresenceSource, ReadToken};
use crate::core::ids::{Origin, RegionId, Seq, ShardId};
use crate::core::msg::{Message, ToSubscriber};
use crate::core::op::LogEntry;
use crate::core::state::Logged;
use crate::core::storage::{LogPage, MAX_PAGE_ITEMS, StoreError};
use crate::core::time::Mono;

/// Bytes of one page read to catch up.
const READ_BYTES: u64 = 256 * 1024;
/// Pages that one subscriber has in flight from the store: keeps the disk busy without crowding out others.
const READS: usize = 4;
/// After a failed read, the next one waits so long.
const READ_RETRY: Duration = Duration::from_millis(500);

/// A page on its way from the store.
#[derive(Debug)]
pub(super) struct Reading {
    peer: PeerId,
    lane: u64,
    shard: ShardId,
    origin: Origin,
    after: Seq,
    reserved: u64,
    /// The most bytes that were asked for.
    asked: u64,
}

impl Links {
    /// An operation was committed: ships it to whom it continues, and marks the others as behind.
    pub(super) fn committed(&mut self, logged: &Logged) {
        let Logged {
            shard,
            origin,
            region,
            own,
            entry,
            ..
        } = logged;
        if *own {
            self.own_origin = Some(*origin);
        } else if *region != self.config.region && entry.op.hlc().beyond_drift(self.now.wall_ms) {
            self.stats.drifted += 1;
        }
        let Some(owned) = self.owned.get_mut(shard) else {
            return;
        };
        let source = owned.applying.as_ref().map(|applying| &applying.item);
        let source = source.filter(|item| !own && item.origin == *origin);
        let source = source.map(|item| (self.peers[item.peer].addr.node.region.clone(), item.at));
        let log = owned.logs.entry(*origin).or_insert_with(|| Log {
            region: region.clone(),
            head: 0,
            hash: Some(0),
            applied: 0,
            queued: 0,
            trail: Trail::default(),
        });
        if entry.seq <= log.head {
            return;
        }
        self.committed_bytes += entry.op.len() as u64;
        let before = log.hash.filter(|_| log.head + 1 == entry.seq);
        log.head = entry.seq;
        log.hash = Some(entry.hash);
        log.applied = log.applied.max(entry.seq);
        log.queued = log.queued.max(entry.seq);
        log.trail.committed(entry, self.now.wall_ms);
        let wake = !owned.held.is_empty();
        if let Some(subscribers) = self.subscribers.get(shard) {
            for id in subscribers {
                let peer = &mut self.peers[*id];
                let Some(serve) = &mut peer.serve else { continue };
                let came = source.as_ref().filter(|(from, _)| *from == peer.addr.node.region);
                if came.is_some_and(|(_, at)| serve.knew(*at)) {
                    serve.raise(*shard, *origin, entry.seq);
                } else if serve.wanted.contains(region) {
                    let full = serve.offer(*shard, owned, *origin, region, before, entry, &mut self.stats);
                    self.touched.insert(*id);
                    if full {
                        self.stats.messages_shipped += 1;
                        let lane = serve.lane;
                        let runs = std::mem::take(&mut serve.batch).runs;
                        let to = peer.addr.clone();
                        let body = ToSubscriber::Ops(runs);
                        let message = Message::ToSubscriber { lane, body };
                        self.outputs.push_back(LinkOutput::ToPeer { to, message });
                    }
                }
            }
        }
        if wake {
            self.wake_held(*shard);
        }
    }

    /// A region had an origin's log to here at this time: it is not shipped there.
    pub(super) fn known_in(&mut self, region: &RegionId, at: Mono, shard: ShardId, origin: Origin, seq: Seq) {
        for id in self.subscribers.get(&shard).into_iter().flatten() {
            let peer = &mut self.peers[*id];
            if peer.addr.node.region == *region
                && let Some(serve) = peer.serve.as_mut().filter(|serve| serve.knew(at))
            {
                serve.raise(shard, origin, seq);
            }
        }
    }

    pub(super) fn page_read(&mut self, token: ReadToken, page: Result<LogPage, StoreError>) {
        let Some(reading) = self.reads.remove(&token) else {
            return;
        };
        let Reading {
            peer,
            lane,
            shard,
            origin,
            after,
            reserved,
            asked,
        } = reading;
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        if serve.lane != lane {
            return;
        }
        self.touched.insert(peer);
        serve.reads -= 1;
        serve.reserved -= reserved;
        if let Some(pace) = &mut serve.pace {
            let entries = match &page {
                Ok(LogPage::Run { entries, .. }) => entries.as_slice(),
                _ => &[],
            };
            pace.was(asked, entries.iter().map(|entry| entry.op.len() as u64).sum());
        }
        let Some(served) = serve.shards.get_mut(&shard) else {
            return;
        };
        let Some(position) = served.positions.get_mut(&origin) else {
            return;
        };
        if position.reading != Some(token) {
            return;
        }
        position.reading = None;
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        let Some(log) = owned.logs.get(&origin) else {
            return;
        };
        let wanted = serve.wanted.contains(&log.region);
        let moved = position.seq != after;
        match page {
            // It moved on while the page was read, or the store was busy: looked at again.
            _ if moved => serve.enqueue(shard, origin),
            Err(_) => {
                serve.pause_until = Some(self.now.mono + READ_RETRY);
                serve.enqueue(shard, origin);
            }
            // The link took it over that this origin comes by.
            Ok(LogPage::Trimmed { .. }) if !wanted => {}
            Ok(LogPage::Trimmed { floor }) => {
                served.stopped = true;
                self.tell_subscriber(peer, lane, ToSubscriber::NeedsSnapshot { shard, origin, floor });
            }
            Ok(LogPage::Run { before, entries, .. }) => {
                if entries.is_empty() && log.head > after {
                    serve.pause_until = Some(self.now.mono + READ_RETRY);
                }
                let region = log.region.clone();
                self.stats.pages_read += 1;
                self.ship_page(peer, shard, origin, &region, before, &entries);
            }
        }
    }

    /// Sends what is gathered, reads on for what is behind, and tells presence.
    pub(super) fn flush_serve(&mut self, peer: PeerId, presence: &dyn PresenceSource) {
        self.flush_batch(peer);
        self.flush_have(peer);
        self.read_on(peer);
        self.read_snapshots(peer);
        self.flush_presence(peer, presence);
    }

    /// Queues every position of a shard that is behind.
    pub(super) fn catch_up(&mut self, peer: PeerId, shard: ShardId) {
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        let Some(served) = serve.shards.get(&shard) else {
            return;
        };
        let behind = owned
            .logs
            .iter()
            .filter(|(origin, log)| serve.wanted.contains(&log.region) && served.seq(**origin) < log.head);
        let behind: Vec<Origin> = behind.map(|(origin, _)| *origin).collect();
        for origin in behind {
            serve.enqueue(shard, origin);
        }
        self.touched.insert(peer);
    }

    fn ship_page(
        &mut self,
        peer: PeerId,
        shard: ShardId,
        origin: Origin,
        region: &RegionId,
        mut before: u64,
        entries: &[LogEntry],
    ) {
        for entry in entries {
            let Some(serve) = &mut self.peers[peer].serve else {
                return;
            };
            let Some(owned) = self.owned.get(&shard) else {
                return;
            };
            let len = entry.op.len() as u64;
            if serve.must_wait(shard, owned, origin, entry) {
                return;
            }
            if !serve.fits(len) {
                serve.need = len;
                let Some(served) = serve.shards.get_mut(&shard) else {
                    return;
                };
                served.positions.entry(origin).or_default().queued = true;
                serve.behind.push_front((shard, origin));
                return;
            }
            let full = serve.ship(shard, origin, region, before, entry);
            before = entry.hash;
            self.stats.ops_shipped += 1;
            self.stats.bytes_shipped += len;
            if full {
                self.flush_batch(peer);
            }
        }
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        let Some(log) = self.owned.get(&shard).and_then(|owned| owned.logs.get(&origin)) else {
            return;
        };
        let Some(served) = serve.shards.get(&shard) else {
            return;
        };
        if served.seq(origin) < log.head {
            serve.enqueue(shard, origin);
        }
        serve.wake(shard);
    }

    pub(super) fn flush_batch(&mut self, peer: PeerId) {
        let Some(serve) = &mut self.peers[peer].serve else {
            return;
        };
        if serve.batch.runs.is_empty() {
            return;
        }
        let lane = serve.lane;
        let runs = std::mem::take(&mut serve.batch).runs;
        self.stats.messages_shipped += 1;
        self.tell_subscriber(peer, lane, ToSubscriber::Ops(runs));
    }

    /// Asks the store for the next pages, as far as credit and turns allow.
    fn read_on(&mut self, peer: PeerId) {
        loop {
            let token = ReadToken(self.token());
            let Some(serve) = &mut self.peers[peer].serve else {
                return;
            };
            let available = serve.available();
            // Part of the window stays free for what is committed meanwhile.
            let spare = serve.window / 4;
            let room = if serve.need > 0 {
                available >= serve.need.min(serve.window)
            } else {
                available > spare
            };
            if !room || serve.reads >= READS || serve.pause_until.is_some() {
                return;
            }
            if serve.behind.is_empty() {
                // It begins anew with the next time that something is behind.
                serve.pace = serve.pace.take().filter(|_| serve.reads > 0);
                return;
            }
            let (rate, committed, now) = (
                self.config.limits.catch_up_bytes,
                self.committed_bytes,
                self.now.mono,
            );
            let pace = serve.pace.get_or_insert_with(|| Pace::new(rate, committed, now));
            let allowed = match pace.allows(rate, committed, now) {
                Ok(bytes) => bytes,
                Err(wait) => {
                    serve.pause_until = Some(now + wait);
                    return;
                }
            };
            let Some((shard, origin)) = serve.behind.pop_front() else {
                return;
            };
            let need = std::mem::take(&mut serve.need);
            let Some(served) = serve.shards.get_mut(&shard) else {
                continue;
            };
            let stopped = served.stopped;
            let Some(position) = served.positions.get_mut(&origin) else {
                continue;
            };
            position.queued = false;
            let log = self.owned.get(&shard).and_then(|owned| owned.logs.get(&origin));
            let Some(log) = log.filter(|log| log.head > position.seq) else {
                continue;
            };
            let idle = position.reading.is_none() && position.waits.is_none();
            if stopped || !idle || !serve.wanted.contains(&log.region) {
                continue;
            }
            let reserved = if need > 0 {
                need.max(READ_BYTES).min(available)
            } else {
                READ_BYTES.min(available - spare)
            };
            let asked = reserved.min(allowed);
            if let Some(pace) = &mut serve.pace {
                pace.took(asked);
            }
            let after = position.seq;
            position.reading = Some(token);
            serve.reads += 1;
            serve.reserved += reserved;
            let lane = serve.lane;
            let reading = Reading {
                peer,
                lane,
                shard,
                origin,
                after,
                reserved,
                asked,
            };
            self.reads.insert(token, reading);
            self.outputs.push_back(LinkOutput::ReadLog {
                token,
                shard,
                origin,
                after,
                max_items: MAX_PAGE_ITEMS,
                max_bytes: asked as usize,
            });
        }
    }
}
