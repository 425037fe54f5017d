//! How much an edge is sent before it took what came before.
//!
//! The window of a session bounds what its device has not acknowledged; an edge has thousands of them, and together they
//! are far more than a connection may queue. So what is under way on a lane is bounded too: the edge says how many bytes it
//! took off, and sessions that found no room wait in turn. What they wait for stays in the store.

use super::delivery::Mode;
use super::{LaneId, Owner};
use crate::core::ids::{SessionId, ShardId};

/// What a delivery costs beside its operation: ids, coordinates and places in queues.
const DELIVERY_COST: usize = 64;

/// Deliveries that an edge took are told to the owner in steps of about this many bytes, and of a quarter of the bytes
/// that may be under way where that is less: a lane at its limit then always has a step to hear of.
pub const TAKEN_STEP: usize = 16 * 1024;

/// What a delivery counts on its lane, at both ends.
pub fn delivery_cost(op: &[u8]) -> usize {
    DELIVERY_COST + op.len()
}

impl Owner {
    /// The edge of a lane took so many bytes of deliveries.
    pub(super) fn taken(&mut self, id: LaneId, bytes: u64) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            lane.in_flight = lane.in_flight.saturating_sub(bytes);
        }
        self.use_room(id);
    }

    /// For sessions whose turn brought nothing onto their lane, so that no `Taken` follows for the next ones.
    pub(super) fn use_all_room(&mut self) {
        let waited = self.lanes.iter().filter(|(_, lane)| !lane.waiting.is_empty());
        let waited: Vec<LaneId> = waited.map(|(id, _)| *id).collect();
        waited.into_iter().for_each(|id| self.use_room(id));
    }

    /// The session found no room on its lane: it has a turn when there is some.
    pub(super) fn wait_for_room(&mut self, shard: ShardId, session: SessionId) {
        let Some(attachment) = self.attachment(shard, session) else {
            return;
        };
        attachment.mode = Mode::Behind;
        let (id, waits) = (attachment.lane, std::mem::replace(&mut attachment.waits, true));
        if let Some(lane) = self.lanes.get_mut(&id)
            && !waits
        {
            lane.waiting.push_back((shard, session));
            self.stats.delivery.waited += 1;
        }
    }

    /// Lets waiting sessions read as many pages as there is room for, once that is half of all.
    fn use_room(&mut self, id: LaneId) {
        let limits = &self.config.limits;
        let (most, window) = (limits.lane_bytes, limits.window_bytes.max(1));
        let Some(room) = self
            .lanes
            .get(&id)
            .map(|lane| most.saturating_sub(lane.in_flight))
        else {
            return;
        };
        if room < most / 2 {
            return;
        }
        let mut turns = (room / window).max(1);
        while turns > 0
            && let Some((shard, session)) = self.lanes.get_mut(&id).and_then(|lane| lane.waiting.pop_front())
        {
            let Some(attachment) = self.attachment(shard, session) else {
                continue;
            };
            // One that was attached anew on another lane waits there, if at all.
            if attachment.lane == id && std::mem::take(&mut attachment.waits) {
                turns -= usize::from(self.read_on(shard, session));
            }
        }
    }
}
