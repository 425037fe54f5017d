//! Holes: what is gone of an inbox, told to a device in its place among the messages.
//!
//! Gone is what was removed when every device that was known then had consumed it: before a device registered, the beginning of
//! an origin's messages ([`UserRow::trimmed`]); and what a restored store had missed behind messages that it still keeps
//! ([`UserRow::gaps`]). Both are told as [`HoleReason::BeforeRegistration`]. A hole goes out before the
//! first message of its origin that lies beyond it, or when nothing waits any more. It takes a place in the window like a
//! message, and an acknowledgement of its last sequence moves the cursor over it; so a device that passed it is not told
//! again, and one that crashed before it acknowledged is. What is gone with retired origins (R23) is told once, as one hole under
//! [`RETIRED`], when nothing waits any more.

use std::collections::BTreeMap;

use super::delivery::{Attachment, Mode};
use super::{LaneId, Owner, OwnerOutput, take_deliveries};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Coord, DeviceId, Origin, Seq, SessionId, ShardId};
use crate::core::msg::ToEdge;
use crate::core::retire::{CAME_LATER, KNOWS, RETIRED};
use crate::core::state::UserRow;
use crate::core::vector::Vector;
use crate::core::wire::{Hole, HoleReason};

/// Ranges that are gone: by origin and first sequence, to the last.
pub(super) type Gone = BTreeMap<(Origin, Seq), Seq>;

/// What is gone with retired origins: no sequence of theirs is known any more.
const IN_RETIRED: ((Origin, Seq), Seq) = ((RETIRED, KNOWS), KNOWS);

/// What is gone of a user's messages for a device, neighbours as one. Of a gap only as much as is `applied` here: what lies beyond may
/// still come by its log.
pub(super) fn gone(row: &UserRow, device: &DeviceId, applied: &Vector) -> Gone {
    let mut gone: Gone = row.trimmed.iter().map(|(origin, to)| ((origin, 1), to)).collect();
    let came = row.devices.get(device).map(|device| device.cursor.of(RETIRED));
    gone.extend((came == Some(CAME_LATER)).then_some(IN_RETIRED));
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
            Some((_, last)) if last.saturating_add(1) >= *from => *last = (*last).max(to),
            _ => {
                gone.insert((*origin, *from), to);
            }
        }
    }
    gone
}

impl Attachment {
    /// What is gone of origins that are retired now is told as such (R23).
    pub(super) fn forget_holes(&mut self, retired: &BTreeMap<Origin, Seq>) {
        let mut untold = false;
        self.gone.retain(|(origin, _), to| {
            let goes = retired.contains_key(origin);
            untold |= goes && *to > self.position.of(*origin).max(self.cursor.of(*origin));
            !goes
        });
        self.gone.extend(untold.then_some(IN_RETIRED));
    }

    /// The next hole of an origin before a message, or of any where there is none; what the device passed is left out.
    fn next_hole(&mut self, before: Option<Coord>) -> Option<Hole> {
        loop {
            let next = match before {
                Some(at) => self.gone.range((at.origin, 0)..(at.origin, at.seq)).next(),
                None => self.gone.first_key_value(),
            };
            let (&(origin, from), &to) = next?;
            let passed = self.position.of(origin).max(self.cursor.of(origin));
            if to > passed {
                return Some(Hole {
                    origin,
                    from: from.max(passed + 1),
                    to,
                    reason: HoleReason::BeforeRegistration,
                    count: 0,
                });
            }
            self.gone.remove(&(origin, from));
        }
    }
}

impl Owner {
    /// Tells the holes of an origin that lie before a message, or all that are left where no message waits; `false` where
    /// the window is full: the session is behind then.
    pub(super) fn tell_holes(&mut self, id: ShardId, session: SessionId, before: Option<Coord>) -> bool {
        let limit = self.config.limits.window_messages;
        loop {
            let Some(attachment) = self.attachment(id, session) else {
                return false;
            };
            let Some(hole) = attachment.next_hole(before) else {
                return true;
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
