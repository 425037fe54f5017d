//! Snapshots of shards over a link (R11): asked for where the provider's log begins too late.
//!
//! ```text
//! NeedsSnapshot --> Snapshot { number } --> pages, read and sent within the credit --> Merge, one after the other
//!                                           the last one's commit lets `applied` jump --> the shard is subscribed again
//! ```
//!
//! While one runs, no runs of the shard are applied: they are dropped and asked for again after it. A lane that dies ends
//! it; what was merged stays, and the next one begins anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::report::StopReason;
use super::{ApplyToken, LinkOutput, Links, Log, PeerId, ReadToken};
use crate::core::commit::Outcome;
use crate::core::ids::{Seq, ShardId};
use crate::core::msg::{SnapshotPiece, ToProvider, ToSubscriber};
use crate::core::op::{LoggedOp, MAX_BODY, MAX_CONTROL};
use crate::core::snapshot::{Cut, SNAPSHOT_PAGE_BYTES, SNAPSHOT_PAGE_ITEMS, SnapshotAt, SnapshotPage};
use crate::core::storage::StoreError;
use crate::core::time::Mono;

/// Snapshots that a partition takes at once; other shards wait. Their pages share the credit of their links.
const TAKING: usize = 8;
/// Snapshots that one subscriber may have asked for: more than any takes at once.
const SENDING: usize = 64;
/// Pages of snapshots that one subscriber has in flight from the store: commits and deliveries come between.
const READS: usize = 2;
/// The store was busy: tried again after so long.
const RETRY: Duration = Duration::from_millis(500);
/// What a page may be beyond the credit: one message, or one user's row with what it names.
const OVERRUN: u64 = (MAX_BODY + 4 * MAX_CONTROL) as u64;

/// A snapshot that is being taken.
#[derive(Debug)]
pub(super) struct Taking {
    pub peer: PeerId,
    number: u64,
    cut: Option<Arc<Cut>>,
    pages: VecDeque<(Arc<SnapshotPage>, u64)>,
    merging: Option<(ApplyToken, Arc<SnapshotPage>, u64)>,
    retry_at: Option<Mono>,
}

/// A snapshot that is being sent.
#[derive(Debug)]
pub(super) struct Sending {
    number: u64,
    cut: Option<Arc<Cut>>,
    at: SnapshotAt,
    /// The cut was sent.
    begun: bool,
}

/// A page on its way from the store.
#[derive(Debug)]
pub(super) struct PageReading {
    peer: PeerId,
    lane: u64,
    shard: ShardId,
    number: u64,
    reserved: u64,
}

impl Links {
    /// The provider has not kept what we need next.
    pub(super) fn need_snapshot(&mut self, peer: PeerId, shard: ShardId, have: Seq, floor: Seq) {
        let running = self.owned.values().filter(|owned| owned.taking.is_some()).count();
        let number = self.token();
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        if !owned.recovering {
            // Had we confirmed and lost it, that confirmation itself would be known there, and missing here.
            let why = format!(
                "{} has trimmed its log to {floor}, and here it ends at {have}: this region was away for long",
                self.peers[peer].addr
            );
            self.lost(shard, why, true);
        }
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        if owned.taking.is_some() {
            return;
        }
        if running >= TAKING {
            owned.awaits = Some(peer);
            return;
        }
        owned.awaits = None;
        owned.taking = Some(Taking {
            peer,
            number,
            cut: None,
            pages: VecDeque::new(),
            merging: None,
            retry_at: None,
        });
        self.stats.snapshots_asked += 1;
        self.drop_queued(shard, |_| true);
        // Asking for the shard again, if that was due, would come behind it and end it.
        let pull = &mut self.peers[peer].pull;
        pull.drop.remove(&shard);
        pull.add.remove(&shard);
        pull.gaps.remove(&shard);
        self.tell_provider(peer, ToProvider::Snapshot { shard, number });
    }

    pub(super) fn receive_piece(&mut self, peer: PeerId, piece: SnapshotPiece) {
        let bytes = piece.weight();
        self.stats.snapshot_pages += 1;
        if !self.hold_bytes(peer, bytes, OVERRUN) {
            self.stats.overruns += 1;
            self.release(peer, bytes);
            return self.close_lane(peer, crate::core::limits::ms(self.config.limits.ping_ms));
        }
        let SnapshotPiece {
            shard,
            number,
            cut,
            page,
        } = piece;
        let ours = |taking: &Taking| taking.peer == peer && taking.number == number;
        let current = self.owned.get(&shard).and_then(|owned| owned.taking.as_ref());
        let Some(begun) = current
            .filter(|taking| ours(taking))
            .map(|taking| taking.cut.is_some())
        else {
            return self.release(peer, bytes);
        };
        let sound = begun != cut.is_some() && cut.as_ref().is_none_or(|cut| self.fits_here(shard, cut));
        if let Some(reason) = unreadable(&page).or((!sound).then_some(StopReason::OutOfPlace { at: 0 })) {
            self.release(peer, bytes);
            let origin = cut
                .and_then(|cut| cut.logs.keys().next().copied())
                .unwrap_or_default();
            self.give_up_snapshot(shard);
            return self.stop_shard(peer, shard, origin, reason);
        }
        let Some(taking) = self.owned.get_mut(&shard).and_then(|owned| owned.taking.as_mut()) else {
            return self.release(peer, bytes);
        };
        if let Some(cut) = cut {
            taking.cut = Some(Arc::new(cut));
        }
        taking.pages.push_back((Arc::new(page), bytes));
        self.merge_next(shard);
    }

    pub(super) fn merged(&mut self, token: ApplyToken, shard: ShardId, outcome: Result<Outcome, StoreError>) {
        let now = self.now.mono;
        let Some(taking) = self.owned.get_mut(&shard).and_then(|owned| owned.taking.as_mut()) else {
            return;
        };
        let Some((_, page, bytes)) = taking.merging.take_if(|(merging, ..)| *merging == token) else {
            return;
        };
        let peer = taking.peer;
        match outcome {
            Ok(Outcome::Done { more: false }) => {
                let last = page.next.is_none();
                self.release(peer, bytes);
                if last {
                    return self.snapshot_taken(shard);
                }
            }
            Ok(Outcome::Done { more: true }) => taking.pages.push_front((page, bytes)),
            Ok(_) | Err(_) => {
                self.stats.apply_retries += 1;
                let at = now + RETRY;
                taking.pages.push_front((page, bytes));
                taking.retry_at = Some(at);
                self.retries.insert((at, shard));
            }
        }
        self.merge_next(shard);
    }

    /// Hands the next page to the store, if none is there.
    pub(super) fn merge_next(&mut self, shard: ShardId) {
        let now = self.now.mono;
        let token = ApplyToken(self.token());
        let Some(taking) = self.owned.get_mut(&shard).and_then(|owned| owned.taking.as_mut()) else {
            return;
        };
        taking.retry_at.take_if(|at| *at <= now);
        if taking.merging.is_some() || taking.retry_at.is_some() {
            return;
        }
        let Some(cut) = taking.cut.clone() else { return };
        let Some((page, bytes)) = taking.pages.pop_front() else {
            return;
        };
        taking.merging = Some((token, page.clone(), bytes));
        self.outputs.push_back(LinkOutput::Merge {
            token,
            shard,
            cut,
            page,
        });
    }

    /// Ends the snapshots that come from a link whose lane is dead.
    pub(super) fn give_up_snapshots(&mut self, peer: PeerId) {
        let of_peer = |taking: &Taking| taking.peer == peer;
        let shards = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.awaits == Some(peer) || owned.taking.as_ref().is_some_and(of_peer));
        let shards: Vec<ShardId> = shards.map(|(shard, _)| *shard).collect();
        for shard in shards {
            self.give_up_snapshot(shard);
        }
    }

    /// Ends the snapshot of a shard; what others would not ship meanwhile is asked for again.
    pub(super) fn give_up_snapshot(&mut self, shard: ShardId) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        owned.awaits = None;
        let peers: Vec<PeerId> = owned.remotes.values().copied().collect();
        let Some(taking) = owned.taking.take() else {
            return;
        };
        self.stats.snapshots_ended += 1;
        self.release_taking(taking);
        for peer in peers {
            self.ask_again(peer, shard);
        }
        self.take_waiting();
    }

    /// What a snapshot holds does not count any more.
    pub(super) fn release_taking(&mut self, taking: Taking) {
        let merging = taking.merging.map(|(_, page, bytes)| (page, bytes));
        for (_, bytes) in taking.pages.into_iter().chain(merging) {
            self.release(taking.peer, bytes);
        }
    }

    /// Begins the next snapshot that waits for its turn.
    fn take_waiting(&mut self) {
        let waiting = self
            .owned
            .iter_mut()
            .find_map(|(shard, owned)| Some((*shard, owned.awaits.take()?)));
        if let Some((shard, peer)) = waiting {
            self.ask_again(peer, shard);
        }
    }

    fn snapshot_taken(&mut self, shard: ShardId) {
        let Some(owned) = self.owned.get_mut(&shard) else {
            return;
        };
        let Some(taking) = owned.taking.take() else { return };
        let peers: Vec<PeerId> = owned.remotes.values().copied().collect();
        for (origin, seq) in taking.cut.iter().flat_map(|cut| &cut.retired) {
            if !owned.logs.contains_key(origin) {
                owned.retired.insert(*origin, *seq);
            }
        }
        for (origin, cut) in taking.cut.iter().flat_map(|cut| &cut.logs) {
            if owned.retired.contains_key(origin) {
                continue;
            }
            let log = owned.logs.entry(*origin).or_insert_with(|| Log {
                region: cut.region.clone(),
                head: 0,
                hash: Some(0),
                applied: 0,
                queued: 0,
                trail: Default::default(),
            });
            if log.head < cut.seq {
                log.region = cut.region.clone();
                log.head = cut.seq;
                log.hash = Some(cut.hash);
            }
            log.applied = log.applied.max(cut.seq);
            log.queued = log.queued.max(cut.seq);
        }
        self.stats.snapshots_taken += 1;
        self.wake_held(shard);
        for peer in peers {
            self.peers[peer].pull.strikes.remove(&shard);
            self.ask_again(peer, shard);
        }
        self.take_waiting();
        self.look_whether_caught_up(shard);
    }

    /// Whether the cut names the regions of what is known here.
    fn fits_here(&self, shard: ShardId, cut: &Cut) -> bool {
        let Some(owned) = self.owned.get(&shard) else {
            return false;
        };
        cut.logs.iter().all(|(origin, log)| {
            let known = owned.logs.get(origin);
            known.is_none_or(|known| known.region == log.region)
        })
    }

    /// A subscriber asks for a snapshot; `false` where it asks for too many.
    pub(super) fn asked_for_snapshot(&mut self, peer: PeerId, shard: ShardId, number: u64) -> bool {
        let Some(serve) = &mut self.peers[peer].serve else {
            return true;
        };
        if serve.sending.len() >= SENDING {
            return false;
        }
        let Some(served) = serve.shards.get_mut(&shard) else {
            return true;
        };
        served.stopped = true;
        let sending = Sending {
            number,
            cut: None,
            at: SnapshotAt::Start,
            begun: false,
        };
        serve.sending.insert(shard, sending);
        if !serve.turns.contains(&shard) {
            serve.turns.push_back(shard);
        }
        self.touched.insert(peer);
        true
    }

    /// Asks the store for the next pages, as far as credit and turns allow.
    pub(super) fn read_snapshots(&mut self, peer: PeerId) {
        loop {
            let token = ReadToken(self.token());
            let Some(serve) = &mut self.peers[peer].serve else {
                return;
            };
            let room = serve.available().saturating_sub(serve.window / 4);
            if room == 0 || serve.page_reads >= READS || serve.pause_until.is_some() {
                return;
            }
            let Some(shard) = serve.turns.pop_front() else {
                return;
            };
            // Where it is not owned here it is taken up when it is.
            let Some(sending) = serve
                .sending
                .get(&shard)
                .filter(|_| self.owned.contains_key(&shard))
            else {
                continue;
            };
            let reserved = room.min(SNAPSHOT_PAGE_BYTES as u64);
            serve.page_reads += 1;
            serve.reserved += reserved;
            let reading = PageReading {
                peer,
                lane: serve.lane,
                shard,
                number: sending.number,
                reserved,
            };
            self.outputs.push_back(LinkOutput::ReadSnapshot {
                token,
                shard,
                cut: sending.cut.clone(),
                after: sending.at.clone(),
                max_items: SNAPSHOT_PAGE_ITEMS,
                max_bytes: reserved as usize,
            });
            self.page_reads.insert(token, reading);
        }
    }

    /// A page was read: it is sent, and the next one has its turn.
    pub(super) fn snapshot_read(
        &mut self,
        token: ReadToken,
        page: Result<(Arc<Cut>, Box<SnapshotPage>), StoreError>,
    ) {
        let Some(reading) = self.page_reads.remove(&token) else {
            return;
        };
        let PageReading {
            peer,
            lane,
            shard,
            number,
            reserved,
        } = reading;
        let Some(serve) = self.peers[peer].serve.as_mut().filter(|serve| serve.lane == lane) else {
            return;
        };
        self.touched.insert(peer);
        serve.page_reads -= 1;
        serve.reserved -= reserved;
        let Some(sending) = serve
            .sending
            .get_mut(&shard)
            .filter(|sending| sending.number == number)
        else {
            return;
        };
        let (cut, page) = match page {
            Ok(page) => page,
            Err(_) => {
                serve.pause_until = Some(self.now.mono + RETRY);
                serve.turns.push_back(shard);
                return;
            }
        };
        let first = !std::mem::replace(&mut sending.begun, true);
        let sent = (first).then(|| Cut::clone(&cut));
        sending.cut = Some(cut);
        match &page.next {
            Some(next) => {
                sending.at = next.clone();
                serve.turns.push_back(shard);
            }
            None => {
                serve.sending.remove(&shard);
            }
        }
        let nothing = page.dedup.is_empty() && page.users.is_empty() && page.next.is_some();
        if nothing && !first {
            return;
        }
        let piece = SnapshotPiece {
            shard,
            number,
            cut: sent,
            page: *page,
        };
        serve.spend(piece.weight());
        self.stats.snapshot_pages_sent += 1;
        self.tell_subscriber(peer, lane, ToSubscriber::Snapshot(Box::new(piece)));
    }
}

/// The first message of a page that is none, or is not for its user.
fn unreadable(page: &SnapshotPage) -> Option<StopReason> {
    let mut entries = page
        .users
        .iter()
        .flat_map(|user| user.entries.iter().map(move |entry| (&user.user, entry)));
    entries.find_map(|(user, entry)| {
        let at = entry.at.seq;
        match LoggedOp::from_bytes(entry.op.clone()).and_then(|op| op.envelope()) {
            Ok(envelope) if envelope.to == *user => None,
            Ok(_) => Some(StopReason::OutOfPlace { at }),
            Err(error) => Some(StopReason::Unreadable { at, error }),
        }
    })
}
