//! Clients that a plan moves to another region are given what their region took before, first (R22). Looked for where a
//! scenario expects it: what expires, or is removed, or comes as a copy, would have to be left out.

use std::collections::BTreeSet;

use super::world::World;
use crate::core::ids::Coord;
use crate::core::vector::Vector;
use crate::core::wire::ServerFrame;

/// What a device is to be given first.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// As the server said that told it to go.
    told: Vector,
    /// In the session at hand.
    after: Vector,
    /// What was given in the session at hand.
    given: BTreeSet<Coord>,
}

impl World {
    /// A frame leaves for a client.
    pub(super) fn check_moved(&mut self, device: usize, frame: &ServerFrame) {
        if self.plan.expect.moved_in_order.is_none() {
            return;
        }
        match frame {
            ServerFrame::After(after) => self.check.moved.entry(device).or_default().told = after.clone(),
            ServerFrame::Welcome(_) => {
                let moved = self.check.moved.entry(device).or_default();
                moved.after = std::mem::take(&mut moved.told);
                moved.given.clear();
                self.check.stats.moved += u64::from(!moved.after.is_empty());
            }
            ServerFrame::Deliver { at, .. } => self.check_first(device, *at),
            _ => {}
        }
    }

    fn check_first(&mut self, device: usize, at: Coord) {
        let user = self.devices[device].user.clone();
        let Some(moved) = self.check.moved.get_mut(&device) else {
            return;
        };
        moved.given.insert(at);
        let moved = &self.check.moved[&device];
        if moved.after.of(at.origin) > 0 {
            return;
        }
        let seen = &self.check.seen[device];
        let shard = self.plan.sharding().of_user(&user);
        let time = self.check.time_of(shard, at);
        let older = moved.after.iter().find_map(|(origin, to)| {
            let entries = self.check.inboxes.get(&(user.clone(), origin))?;
            let mut entries = entries.range(..=to);
            entries.find_map(|(seq, number)| {
                let first = Coord { origin, seq: *seq };
                let came = moved.given.contains(&first) || seen.consumed.contains(number);
                let older = self.check.time_of(shard, first) < time;
                (!came && older).then_some((first, *number))
            })
        });
        if let Some((first, number)) = older {
            let name = self.devices[device].name();
            let detail = format!(
                "{name} is given {at} before #{number} at {first}, which its region took before it was sent away"
            );
            let mut words = self.check.words(number);
            words.push(name);
            self.fail("what is older comes first after a move (R22)", detail, words);
        }
    }
}
