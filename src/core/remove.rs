//! What every device consumed leaves the inbox (R10).

use super::commit::{CONSUME_STEP, Work};
use super::defect::{self, Defect};
use super::expire::NextEntry;
use super::ids::{Coord, Origin, Seq, UserId};
use super::snapshot::Cut;
use super::state::{Decision, Recovery};

impl Work<'_> {
    /// Moves the mark of what every device consumed, at most [`CONSUME_STEP`] entries; says whether work is left.
    pub(super) fn consume(&mut self, user: &UserId) -> bool {
        let mut steps = CONSUME_STEP;
        let mut more = false;
        let origins = match self.row().users.get(user) {
            Some(known) if !known.row.devices.is_empty() || defect::on(Defect::TrimWithoutDevices) => {
                known.origins()
            }
            _ => return false,
        };
        for origin in origins {
            let known = &self.row().users[user];
            let mut to = known.row.consumed.of(origin);
            let counted = known.row.counted.of(origin);
            let (from, mut messages, mut bytes) = (to, 0, 0);
            loop {
                if steps == 0 {
                    more = true;
                    break;
                }
                match known.next_entry(origin, to) {
                    NextEntry::Item(seq, op) if known.row.all_consumed(Coord { origin, seq }) => {
                        to = seq;
                        steps -= 1;
                        if seq > counted {
                            messages += 1;
                            bytes += op.len() as u64;
                        }
                    }
                    // The messages of a hole left the count when it was made.
                    NextEntry::Hole(from, hole) if known.row.hole_consumed(origin, from, hole) => {
                        to = hole.to;
                        steps -= 1;
                    }
                    // Its page ended: another call begins with a new one.
                    NextEntry::NotLoaded => {
                        more = true;
                        break;
                    }
                    NextEntry::Item(..) | NextEntry::Hole(..) | NextEntry::End => break,
                }
            }
            if to > from {
                let user = user.clone();
                self.record(Decision::Consumed {
                    shard: self.shard,
                    user,
                    origin,
                    to,
                    messages,
                    bytes,
                });
            }
        }
        more
    }

    /// Removes what is consumed and stable (R10), once it was trimmed from the log: an entry of the log always finds
    /// its message in the inbox, so a body is stored once. What is trimmed was stable (R9). Where logs are trimmed for a
    /// snapshot that is not complete, nothing is removed but with the user's page of it ([`Recovery::Merging`]).
    pub(super) fn remove(&mut self, user: &UserId) {
        if self.row().row.recovery != Recovery::Merging {
            self.remove_below(user, None);
        }
    }

    /// As [`Work::remove`]; while a snapshot is merged also what lies below its cut, of logs of which nothing is kept here.
    pub(super) fn remove_below(&mut self, user: &UserId, cut: Option<&Cut>) {
        let shard = self.row();
        let Some(known) = shard.users.get(user) else {
            return;
        };
        let nobody = known.row.devices.values().all(|device| device.expired);
        if nobody && !defect::on(Defect::TrimWithoutDevices) {
            return;
        }
        let removable: Vec<(Origin, Seq)> = known
            .row
            .consumed
            .iter()
            .map(|(origin, seq)| {
                let (floor, end) = shard
                    .row
                    .logs
                    .get(&origin)
                    .map_or((0, 0), |log| (log.floor, log.seq));
                let below = cut.filter(|_| floor == end).map_or(0, |cut| cut.seq(origin));
                (origin, seq.min(floor.max(below)))
            })
            .filter(|(origin, to)| *to > known.row.trimmed.of(*origin))
            .collect();
        let any = !removable.is_empty();
        for (origin, to) in removable {
            self.record(Decision::Removed {
                shard: self.shard,
                user: user.clone(),
                origin,
                to,
            });
        }
        if any {
            self.nothing_expires(user);
        }
    }
}
