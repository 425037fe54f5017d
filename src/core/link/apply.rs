//! Runs that arrived: in order per shard and origin, one at a time to the store, and what follows from its answers.

use std::collections::BTreeSet;
use std::time::Duration;

use super::pull::Gap;
use super::report::StopReason;
use super::{ApplyToken, LinkOutput, Links, Log, PeerId};
use crate::core::commit::{Outcome, Stop};
use crate::core::ids::{Coord, Origin, RegionId, Seq, ShardId};
use crate::core::limits::ms;
use crate::core::msg::Run;
use crate::core::op::{LoggedOp, MAX_BODY, MAX_CONTROL};
use crate::core::storage::StoreError;
use crate::core::time::Mono;
use crate::core::vector::Vector;

/// Runs that continue each other go to the store as one, up to about so many bytes: many small commits cost more.
const APPLY_BYTES: u64 = 1024 * 1024;
/// And up to so many operations.
const APPLY_OPS: usize = 4096;
/// The store was busy or full: tried again after so long.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// What a provider may send beyond its credit: one operation, where the window is smaller than that.
const OVERRUN: u64 = (MAX_BODY + MAX_CONTROL + 64) as u64;

/// A run that waits for the store.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    pub peer: PeerId,
    pub origin: Origin,
    region: RegionId,
    first: Seq,
    before: u64,
    ops: Vec<LoggedOp>,
    bytes: u64,
    /// When it arrived.
    pub at: Mono,
}

impl Queued {
    fn end(&self) -> Seq {
        self.first + self.ops.len() as u64 - 1
    }
}

/// A run at the store.
#[derive(Debug)]
pub(super) struct Applying {
    token: ApplyToken,
    pub item: Queued,
}

/// An origin of which nothing can be applied before the one before it is further (R1).
#[derive(Debug)]
pub(super) struct Held {
    after: Coord,
    /// Asked for again at this time in any case.
    until: Mono,
    /// Who sent some of it meanwhile.
    peers: BTreeSet<PeerId>,
}

impl Links {
    pub(super) fn receive(&mut self, peer: PeerId, runs: Vec<Run>) {
        let lane = self.peers[peer].pull.lane();
        for run in runs {
            // The lane may have been closed by what came before in this message.
            if !self.peers[peer].pull.open_as(lane) {
                return;
            }
            let bytes = run.ops.iter().map(|op| op.len() as u64).sum();
            self.stats.ops_received += run.ops.len() as u64;
            if !self.hold_bytes(peer, bytes, OVERRUN) {
                self.stats.overruns += 1;
                self.release(peer, bytes);
                self.close_lane(peer, ms(self.config.limits.ping_ms));
                return;
            }
            if !self.take_run(peer, run, bytes) {
                self.release(peer, bytes);
            }
        }
    }

    /// The provider has not kept what we need next.
    pub(super) fn trimmed(&mut self, peer: PeerId, shard: ShardId, origin: Origin, floor: Seq) {
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        if owned.retired.contains_key(&origin) {
            self.tell_retired(peer, shard, origin);
            return;
        }
        let have = owned.logs.get(&origin).map_or(0, |log| log.applied);
        if have >= floor {
            // It came from elsewhere in the meantime.
            self.ask_again(peer, shard);
        } else {
            self.need_snapshot(peer, shard, have, floor);
        }
    }

    pub(super) fn applied(
        &mut self,
        token: ApplyToken,
        shard: ShardId,
        origin: Origin,
        outcome: Result<Outcome, StoreError>,
    ) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        let Some(Applying { item, .. }) = owned.applying.take_if(|applying| applying.token == token) else {
            return;
        };
        match outcome {
            Ok(Outcome::Applied { through, stopped }) => {
                if let Some(log) = owned.logs.get_mut(&origin) {
                    log.applied = log.applied.max(through);
                }
                let peer = item.peer;
                self.release(peer, item.bytes);
                self.peers[peer].pull.applied += (through + 1).saturating_sub(item.first);
                let source = self.peers[peer].addr.node.region.clone();
                self.known_in(&source, item.at, shard, origin, through);
                self.have_copy(shard, origin, through);
                match stopped {
                    None => {
                        self.peers[peer].pull.strikes.remove(&shard);
                    }
                    Some(stop) => self.not_applied(peer, shard, origin, stop),
                }
                self.wake_held(shard);
                self.look_whether_caught_up(shard);
            }
            // Fenced, busy or full: the operation left no trace.
            Ok(_) | Err(_) => {
                self.stats.apply_retries += 1;
                let at = self.now.mono + STORE_RETRY;
                owned.queue.push_front(item);
                owned.retry_at = Some(at);
                self.retries.insert((at, shard));
            }
        }
        self.start_apply(shard);
    }

    /// Something that was put off is due.
    pub(super) fn retry(&mut self, shard: ShardId) {
        let now = self.now.mono;
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        if owned.retry_at.is_some_and(|at| at <= now) {
            owned.retry_at = None;
        }
        self.wake_held(shard);
        self.start_apply(shard);
        self.merge_next(shard);
    }

    /// Asks again for origins whose turn has come.
    pub(super) fn wake_held(&mut self, shard: ShardId) {
        let now = self.now.mono;
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        if owned.held.is_empty() {
            return;
        }
        let (logs, retired) = (&owned.logs, &owned.retired);
        let ready = |held: &Held| {
            let after = held.after.origin;
            let applied = logs.get(&after).map_or(0, |log| log.applied);
            applied >= held.after.seq || retired.contains_key(&after) || held.until <= now
        };
        let origins: Vec<Origin> = owned
            .held
            .iter()
            .filter(|(_, held)| ready(held))
            .map(|(o, _)| *o)
            .collect();
        let mut peers = BTreeSet::new();
        for origin in origins {
            peers.extend(owned.held.remove(&origin).into_iter().flat_map(|held| held.peers));
        }
        for peer in peers {
            self.ask_again(peer, shard);
        }
    }

    /// Drops queued runs; what then does not fit any more is dropped too and asked for again.
    pub(super) fn drop_queued(&mut self, shard: ShardId, which: impl Fn(&Queued) -> bool) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        let mut dropped = Vec::new();
        let mut gapped = Vec::new();
        for log in owned.logs.values_mut() {
            log.queued = log.applied;
        }
        let in_flight = owned.applying.as_ref().map(|applying| &applying.item);
        if let Some(item) = in_flight
            && let Some(log) = owned.logs.get_mut(&item.origin)
        {
            log.queued = log.queued.max(item.end());
        }
        for item in std::mem::take(&mut owned.queue) {
            if which(&item) {
                dropped.push((item.peer, item.bytes));
                continue;
            }
            match owned.logs.get_mut(&item.origin) {
                Some(log) if item.first <= log.queued + 1 => {
                    log.queued = log.queued.max(item.end());
                    owned.queue.push_back(item);
                }
                _ => gapped.push((item.peer, item.bytes)),
            }
        }
        for (peer, bytes) in dropped.into_iter().chain(gapped.iter().copied()) {
            self.release(peer, bytes);
        }
        for (peer, _) in gapped {
            self.ask_again(peer, shard);
        }
    }

    /// The shard is not owned here any more.
    pub(super) fn disown(&mut self, shard: ShardId) {
        let Some(owned) = self.owned.get(&shard) else {
            return;
        };
        let regions: Vec<RegionId> = owned.remotes.keys().cloned().collect();
        for region in regions {
            self.set_provider(shard, &region, None);
        }
        let Some(owned) = self.owned.remove(&shard) else {
            return;
        };
        if let Some(taking) = owned.taking {
            self.release_taking(taking);
        }
        let in_flight = owned.applying.map(|applying| applying.item);
        for item in owned.queue.into_iter().chain(in_flight) {
            self.release(item.peer, item.bytes);
        }
    }

    /// Takes a run into the queue of its shard; `false` where nothing of it is kept.
    fn take_run(&mut self, peer: PeerId, run: Run, bytes: u64) -> bool {
        let Run {
            shard,
            origin,
            region,
            first,
            before,
            ops: raw,
            ..
        } = run;
        let pull = &self.peers[peer].pull;
        if !pull.shards.contains(&shard) || pull.stopped.contains_key(&shard) || raw.is_empty() {
            return false;
        }
        let gap = pull.gaps.get(&shard).copied();
        let Some(owned) = self.owned.get_mut(&shard) else {
            return false;
        };
        if owned.retired.contains_key(&origin) {
            self.stats.runs_known += 1;
            return false;
        }
        // A snapshot comes first: what does not come with it is asked for again after it.
        if owned.taking.is_some() {
            return false;
        }
        if let Some(held) = owned.held.get_mut(&origin) {
            held.peers.insert(peer);
            return false;
        }
        let known = owned.logs.get(&origin);
        let (queued, applied) = known.map_or((0, 0), |log| (log.queued, log.applied));
        let in_place = first > 0 && known.is_none_or(|log| log.region == region);
        let Some(end) = first.checked_add(raw.len() as u64 - 1).filter(|_| in_place) else {
            self.stop_shard(peer, shard, origin, StopReason::OutOfPlace { at: first });
            return false;
        };
        if end <= queued {
            self.stats.runs_known += 1;
            return false;
        }
        if self.own_origin == Some(origin) {
            let more = Vector::from_iter([(origin, end)]);
            self.look_for_loss(peer, shard, &more);
            return false;
        }
        if first > queued + 1 {
            self.stats.runs_gapped += 1;
            match gap {
                None => self.ask_again(peer, shard),
                Some(Gap::Due | Gap::Asked(_)) => {}
                Some(Gap::Answered) => {
                    let reason = StopReason::NeedsSnapshot {
                        have: applied,
                        floor: first - 1,
                    };
                    self.stop_shard(peer, shard, origin, reason);
                }
            }
            return false;
        }
        let mut ops = Vec::with_capacity(raw.len());
        for (at, op) in raw.into_iter().enumerate() {
            match LoggedOp::from_bytes(op) {
                Ok(op) => ops.push(op),
                Err(error) => {
                    let at = first + at as u64;
                    self.stop_shard(peer, shard, origin, StopReason::Unreadable { at, error });
                    return false;
                }
            }
        }
        let now = self.now.mono;
        let Some(owned) = self.owned.get_mut(&shard) else {
            return false;
        };
        let log = owned.logs.entry(origin).or_insert_with(|| Log {
            region: region.clone(),
            head: 0,
            hash: Some(0),
            applied: 0,
            queued: 0,
            trail: Default::default(),
        });
        log.queued = end;
        owned.queue.push_back(Queued {
            peer,
            origin,
            region,
            first,
            before,
            ops,
            bytes,
            at: now,
        });
        self.peers[peer].pull.gaps.remove(&shard);
        self.start_apply(shard);
        true
    }

    fn start_apply(&mut self, shard: ShardId) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        if owned.applying.is_some() || owned.retry_at.is_some() || owned.taking.is_some() {
            return;
        }
        let Some(mut item) = owned.queue.pop_front() else {
            return;
        };
        while let Some(next) = owned.queue.front()
            && next.peer == item.peer
            && next.origin == item.origin
            && next.first == item.end() + 1
            && item.bytes + next.bytes <= APPLY_BYTES
            && item.ops.len() + next.ops.len() <= APPLY_OPS
        {
            let Some(next) = owned.queue.pop_front() else {
                break;
            };
            item.ops.extend(next.ops);
            item.bytes += next.bytes;
        }
        self.tokens += 1;
        let token = ApplyToken(self.tokens);
        self.stats.applies += 1;
        self.outputs.push_back(LinkOutput::Apply {
            token,
            shard,
            origin: item.origin,
            region: item.region.clone(),
            first: item.first,
            before: item.before,
            ops: item.ops.clone(),
        });
        owned.applying = Some(Applying { token, item });
    }

    /// The store applied only part of a run, or nothing.
    fn not_applied(&mut self, peer: PeerId, shard: ShardId, origin: Origin, stop: Stop) {
        let reason = match stop {
            Stop::StartsAfter(after) => return self.hold(peer, shard, origin, after),
            Stop::Gap { have, first } => {
                let Some(log) = self.log(shard, origin) else {
                    return;
                };
                log.applied = have;
                log.queued = have;
                if self.peers[peer].pull.strikes.insert(shard) {
                    self.drop_queued(shard, |item| item.origin == origin);
                    return self.ask_again(peer, shard);
                }
                StopReason::NeedsSnapshot {
                    have,
                    floor: first.saturating_sub(1),
                }
            }
            Stop::Diverged { at, ours, theirs } => StopReason::Diverged { at, ours, theirs },
            Stop::OutOfPlace(at) => StopReason::OutOfPlace { at },
            Stop::Unreadable { at, error } => StopReason::Unreadable { at, error },
        };
        self.stop_shard(peer, shard, origin, reason);
        self.forget_unproved(shard, origin);
    }

    /// Nothing of an origin can be applied yet: what is queued of it would only hold up the one it waits for.
    fn hold(&mut self, peer: PeerId, shard: ShardId, origin: Origin, after: Coord) {
        let until = self.now.mono + ms(self.config.limits.link_timeout_ms);
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        let queued = owned.queue.iter().filter(|item| item.origin == origin);
        let mut peers: BTreeSet<PeerId> = queued.map(|item| item.peer).collect();
        peers.insert(peer);
        owned.held.insert(origin, Held { after, until, peers });
        self.retries.insert((until, shard));
        self.drop_queued(shard, |item| item.origin == origin);
        self.forget_unproved(shard, origin);
    }

    /// What was said of an origin that never began here was not proved: the next one may say otherwise.
    fn forget_unproved(&mut self, shard: ShardId, origin: Origin) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        let unproved = owned.logs.get(&origin).is_some_and(|log| log.queued == 0);
        if unproved {
            owned.logs.remove(&origin);
        }
    }

    fn log(&mut self, shard: ShardId, origin: Origin) -> Option<&mut Log> {
        self.owned.get_mut(&shard)?.logs.get_mut(&origin)
    }
}
