//! What every device consumed leaves the inbox (R10).

use super::commit::{CONSUME_STEP, Work};
use super::defect::{self, Defect};
use super::expire::NextEntry;
use super::ids::{Coord, Origin, Seq, UserId};
use super::snapshot::Cut;
use super::state::{Decision, Recovery};

/// What [`Work::consume`] did.
#[derive(Debug, Default)]
pub(super) struct Consumed {
    /// Whether work is left for another call.
    pub(super) more: bool,
    /// The first message of each origin that it went over, or hole in the place of some.
    pub(super) first: Vec<(Origin, Seq)>,
}

impl Work<'_> {
    /// Moves the mark of what every device consumed, at most [`CONSUME_STEP`] entries.
    pub(super) fn consume(&mut self, user: &UserId) -> Consumed {
        let mut steps = CONSUME_STEP;
        let mut consumed = Consumed::default();
        let origins = match self.row().users.get(user) {
            Some(known) if !known.row.devices.is_empty() || defect::on(Defect::TrimWithoutDevices) => {
                known.origins()
            }
            _ => return consumed,
        };
        for origin in origins {
            let known = &self.row().users[user];
            let mut to = known.row.consumed.of(origin);
            let counted = known.row.counted.of(origin);
            let (from, mut messages, mut bytes) = (to, 0, 0);
            loop {
                if steps == 0 {
                    consumed.more = true;
                    break;
                }
                match known.next_entry(origin, to) {
                    NextEntry::Item(seq, op) if known.row.all_consumed(Coord { origin, seq }) => {
                        if to == from {
                            consumed.first.push((origin, seq));
                        }
                        to = seq;
                        steps -= 1;
                        if seq > counted {
                            messages += 1;
                            bytes += op.len() as u64;
                        }
                    }
                    // The messages of a hole left the count when it was made.
                    NextEntry::Hole(begins, hole) if known.row.hole_consumed(origin, begins, hole) => {
                        if to == from {
                            consumed.first.push((origin, begins.max(to + 1)));
                        }
                        to = hole.to;
                        steps -= 1;
                    }
                    // Its page ended: another call begins with a new one.
                    NextEntry::NotLoaded => {
                        consumed.more = true;
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
        consumed
    }

    /// Removes what is consumed and stable (R10), once it was trimmed from the log: an entry of the log always finds
    /// its message in the inbox, so a body is stored once. What is trimmed was stable (R9). Where logs are trimmed for a
    /// snapshot that is not complete, nothing is removed but with the user's page of it ([`Recovery::Merging`]).
    ///
    /// `first` is the first message of an origin that the operation at hand consumed or trimmed: what was so before it is
    /// removed already, as far as it may. Where that lies higher nothing is to be removed, and nothing is said to be: a device
    /// that comes would be told of a hole where no message was. The mark of what is consumed is a message by itself.
    pub(super) fn remove(&mut self, user: &UserId, first: &[(Origin, Seq)]) {
        if self.row().row.recovery != Recovery::Merging {
            self.remove_below(user, first, None);
        }
    }

    /// As [`Work::remove`]; while a snapshot is merged also what lies below its cut, of logs of which nothing is kept here.
    pub(super) fn remove_below(&mut self, user: &UserId, first: &[(Origin, Seq)], cut: Option<&Cut>) {
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
            .map(|(origin, consumed)| {
                let (floor, end) = shard
                    .row
                    .logs
                    .get(&origin)
                    .map_or((0, 0), |log| (log.floor, log.seq));
                let below = cut.filter(|_| floor == end).map_or(0, |cut| cut.seq(origin));
                (origin, consumed, consumed.min(floor.max(below)))
            })
            .filter(|(origin, consumed, to)| {
                let some = to == consumed || first.iter().any(|(of, seq)| of == origin && seq <= to);
                some && *to > known.row.trimmed.of(*origin)
            })
            .map(|(origin, _, to)| (origin, to))
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
