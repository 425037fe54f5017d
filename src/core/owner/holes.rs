//! Holes: what is gone of an inbox, told to a device in its place among the messages.
//!
//! Gone is what was removed when every device that was known then had consumed it: before a device registered, the beginning of
//! an origin's messages ([`UserRow::trimmed`]); and what a restored store had missed behind messages that it still keeps
//! ([`UserRow::gaps`]). Both are told as [`HoleReason::BeforeRegistration`]. Gone is also what was replaced by holes when its time
//! to live passed, as each page of the inbox tells; and what is in the inbox still and due by now (R18). A hole goes out before
//! the first message of its origin that lies beyond it, or when nothing waits any more. It takes a place in the window like a
//! message, and an acknowledgement of its last sequence moves the cursor over it; so a device that passed it is not told
//! again, and one that crashed before it acknowledged is. One that stands for messages of which the device consumed copies is
//! passed silently, as they would be (R15). What is gone with retired origins (R23) is told once, as one hole under
//! [`RETIRED`], when nothing waits any more.

use std::collections::BTreeMap;

use super::delivery::{Attachment, Mode};
use super::{LaneId, Owner, OwnerOutput, take_deliveries};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Coord, DeviceId, Origin, Seq, SessionId, ShardId};
use crate::core::msg::ToEdge;
use crate::core::retire::{CAME_LATER, KNOWS, RETIRED};
use crate::core::state::UserRow;
use crate::core::storage::InboxHole;
use crate::core::vector::Vector;
use crate::core::wire::{Hole, HoleReason};

/// Ranges that are gone: by origin and first sequence.
pub(super) type Gone = BTreeMap<(Origin, Seq), Range>;

/// What is gone with retired origins: no sequence of theirs is known any more.
const IN_RETIRED: (Origin, Seq) = (RETIRED, KNOWS);

/// A range that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    to: Seq,
    reason: HoleReason,
    /// How many messages, 0 where that is not known.
    count: u64,
    /// Other coordinates of messages in it.
    copies: Vec<(Seq, Vec<Coord>)>,
}

impl Range {
    fn removed(to: Seq) -> Self {
        Self {
            to,
            reason: HoleReason::BeforeRegistration,
            count: 0,
            copies: Vec::new(),
        }
    }
}

/// What is gone of a user's messages for a device but for holes, neighbours as one. Of a gap only as much as is `applied` here: what
/// lies beyond may still come by its log.
pub(super) fn gone(row: &UserRow, device: &DeviceId, applied: &Vector) -> Gone {
    let trimmed = row.trimmed.iter();
    let mut gone: Gone = trimmed
        .map(|(origin, to)| ((origin, 1), Range::removed(to)))
        .collect();
    let came = row.devices.get(device).map(|device| device.cursor.of(RETIRED));
    gone.extend((came == Some(CAME_LATER)).then(|| (IN_RETIRED, Range::removed(KNOWS))));
    if defect::on(Defect::GapUntold) {
        return gone;
    }
    for ((origin, from), to) in &row.gaps {
        let to = (*to).min(applied.of(*origin));
        if to < *from {
            continue;
        }
        let mut before = gone.range_mut((*origin, 0)..=(*origin, *from));
        match before.next_back() {
            Some((_, last)) if last.to.saturating_add(1) >= *from => last.to = last.to.max(to),
            _ => {
                gone.insert((*origin, *from), Range::removed(to));
            }
        }
    }
    gone
}

/// The holes of a page: one that is known may have grown since.
pub(super) fn add(gone: &mut Gone, holes: Vec<InboxHole>) {
    for hole in holes {
        let range = Range {
            to: hole.row.to,
            reason: hole.row.reason,
            count: hole.row.count,
            copies: hole.siblings,
        };
        gone.insert((hole.at.origin, hole.at.seq), range);
    }
}

/// What comes next of what is gone.
enum Next {
    Tell(Hole),
    /// The device consumed copies of all in it.
    Pass(Coord),
}

impl Attachment {
    /// What is gone of origins that are retired now is told as such (R23).
    pub(super) fn forget_holes(&mut self, retired: &BTreeMap<Origin, Seq>) {
        let mut untold = false;
        self.gone.retain(|(origin, _), range| {
            let goes = retired.contains_key(origin);
            untold |= goes && range.to > self.position.of(*origin).max(self.cursor.of(*origin));
            !goes
        });
        self.expired.retain(|origin, _| !retired.contains_key(origin));
        self.gone
            .extend(untold.then(|| (IN_RETIRED, Range::removed(KNOWS))));
    }

    /// The next hole of an origin before a message, or of any where there is none; what the device passed is left out.
    fn next_hole(&mut self, before: Option<Coord>) -> Option<Next> {
        loop {
            let next = match before {
                Some(at) => self.gone.range((at.origin, 0)..(at.origin, at.seq)).next(),
                None => self.gone.first_key_value(),
            };
            let (&(origin, from), range) = next?;
            let (to, count) = (range.to, range.count);
            let passed = self.position.of(origin).max(self.cursor.of(origin));
            if to <= passed {
                self.gone.remove(&(origin, from));
                continue;
            }
            let copied = |copies: &[Coord]| copies.iter().any(|copy| self.cursor.covers(*copy));
            let copies = range.copies.iter().filter(|(seq, _)| *seq > passed);
            let consumed = copies.filter(|(_, copies)| copied(copies)).count() as u64;
            if count > 0 && consumed >= count && !defect::on(Defect::AllCopies) {
                return Some(Next::Pass(Coord { origin, seq: to }));
            }
            return Some(Next::Tell(Hole {
                origin,
                from: from.max(passed + 1),
                to,
                reason: range.reason,
                // How many of them lie in the part that it passed nobody keeps.
                count: if passed < from {
                    count.saturating_sub(consumed)
                } else {
                    0
                },
            }));
        }
    }

    /// To here messages of an origin were found to be expired, and not told yet.
    pub(super) fn expired_through(&self, origin: Origin) -> Seq {
        self.expired.get(&origin).map_or(0, |hole| hole.to)
    }
}

impl Owner {
    /// Tells the holes of an origin that lie before a message, or all that are left where no message waits; `false` where
    /// the window is full: the session is behind then.
    pub(super) fn tell_holes(&mut self, id: ShardId, session: SessionId, before: Option<Coord>) -> bool {
        loop {
            let Some(attachment) = self.attachment(id, session) else {
                return false;
            };
            match attachment.next_hole(before) {
                None => return true,
                Some(Next::Pass(at)) => {
                    attachment.flight(at, 0, true);
                    let acked = attachment.cursor.of(at.origin);
                    attachment.settle(at.origin, acked);
                    if let Some(shard) = self.shards.get_mut(&id) {
                        shard.moved.insert(session);
                    }
                    self.stats.delivery.passed += 1;
                }
                Some(Next::Tell(hole)) => {
                    if !self.tell_hole(id, session, hole) {
                        return false;
                    }
                }
            }
        }
    }

    fn tell_hole(&mut self, id: ShardId, session: SessionId, hole: Hole) -> bool {
        let limit = self.config.limits.window_messages;
        let Some(attachment) = self.attachment(id, session) else {
            return false;
        };
        if attachment.owes() || attachment.window_messages >= limit {
            attachment.mode = Mode::Behind;
            return false;
        }
        let at = Coord {
            origin: hole.origin,
            seq: hole.to,
        };
        attachment.flight(at, 0, false);
        let lane = attachment.lane;
        self.stats.delivery.holes += 1;
        // The messages before it wait for the end of the round, and an edge takes what comes behind it for repeated.
        self.send_deliveries(lane);
        self.tell_edge(lane, ToEdge::Hole { session, hole });
        true
    }

    /// A message that comes next is expired: it is told together with those beside it. `false` where the window is full.
    pub(super) fn found_expired(&mut self, id: ShardId, session: SessionId, at: Coord) -> bool {
        let Some(attachment) = self.attachment(id, session) else {
            return false;
        };
        let through = attachment.expired_through(at.origin);
        let mut between = attachment.gone.range((at.origin, through)..(at.origin, at.seq));
        if through > 0 && between.next().is_some() && !self.tell_expired(id, session, Some(at.origin)) {
            return false;
        }
        if let Some(attachment) = self.attachment(id, session) {
            let hole = attachment.expired.entry(at.origin).or_insert(Hole {
                origin: at.origin,
                from: at.seq,
                to: at.seq,
                reason: HoleReason::Expired,
                count: 0,
            });
            hole.to = at.seq;
            hole.count += 1;
        }
        true
    }

    /// Tells what was found to be expired, of one origin or of all; `false` where the window is full: then it is read again.
    pub(super) fn tell_expired(&mut self, id: ShardId, session: SessionId, of: Option<Origin>) -> bool {
        loop {
            let Some(attachment) = self.attachment(id, session) else {
                return false;
            };
            if attachment.mode != Mode::Live {
                attachment.expired.clear();
                return false;
            }
            let found = match of {
                Some(origin) => attachment.expired.remove(&origin),
                None => attachment.expired.pop_first().map(|(_, hole)| hole),
            };
            let Some(hole) = found else {
                return true;
            };
            let at = Coord {
                origin: hole.origin,
                seq: hole.from,
            };
            // Where there is no room the session is behind, which ends this.
            if self.tell_holes(id, session, Some(at)) {
                self.tell_hole(id, session, hole);
            }
        }
    }

    fn send_deliveries(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        while !lane.deliveries.is_empty() {
            self.stats.delivery.messages += 1;
            self.out.push_back(OwnerOutput::ToEdge {
                to: lane.edge.clone(),
                lane: lane.number,
                body: ToEdge::Deliver(take_deliveries(&mut lane.deliveries)),
            });
        }
    }
}
