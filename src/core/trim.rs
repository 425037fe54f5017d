//! What leaves a store: logs that are stable (R9), and dedup records whose ids cannot come any more (R16).

use std::collections::BTreeMap;

use super::commit::{DAY_MS, ID_WINDOW_MS, Outcome, TIME_MARGIN_MS, TRIM_STEP, Work};
use super::defect::{self, Defect};
use super::expire::Expiry;
use super::ids::{Coord, Origin, Seq, UserId};
use super::op::{LogItem, kind};
use super::state::{Decision, Next, ShardState};
use super::time::MAX_DRIFT;

impl Work<'_> {
    pub(super) fn trim(&mut self) -> Outcome {
        let mut more = false;
        let origins: Vec<_> = self
            .row()
            .row
            .logs
            .iter()
            .map(|(origin, log)| (*origin, log.floor))
            .collect();
        for (origin, floor) in origins {
            let mut stable = self.row().row.trim_to(origin, &self.state.identity);
            if defect::on(Defect::TrimByTime) {
                stable = stable.max(self.aged(origin, floor));
            }
            more |= self.trim_log(origin, floor, stable);
        }
        Outcome::Done { more }
    }

    /// Trims one log to `stable` or a step's worth; says whether work is left.
    pub(super) fn trim_log(&mut self, origin: Origin, floor: Seq, stable: Seq) -> bool {
        let mut last = None;
        let mut bytes = 0;
        // Whose messages they are, and the first of each.
        let mut users: BTreeMap<UserId, Seq> = BTreeMap::new();
        let mut expiries = Vec::new();
        for (seq, hash, op) in trimmable(self.row(), origin, floor, stable) {
            last = Some((seq, hash));
            expiries.extend(op.op().and_then(|op| Expiry::of(op, Coord { origin, seq })));
            if op.kind() != kind::CONFIRM {
                bytes += op.len() as u64;
            }
            if let Some(user) = op.recipient()
                && !users.contains_key(user)
            {
                users.extend(UserId::new(user).map(|user| (user, seq)));
            }
        }
        let Some((to, hash)) = last else {
            let series = self.row().logs.get(&origin);
            return floor < stable && series.is_some_and(|log| log.next(floor) == Next::NotLoaded);
        };
        self.record(Decision::Trimmed {
            shard: self.shard,
            origin,
            to,
            hash,
            bytes,
        });
        for (user, first) in users {
            debug_assert!(
                self.row().users.contains_key(&user),
                "a row that `needs_more` does not name: what {user} consumed would stay for good"
            );
            self.remove(&user, &[(origin, first)]);
        }
        self.take_effect(expiries);
        to < stable
    }

    /// For a defect: the end of what is some seconds old.
    fn aged(&self, origin: Origin, floor: Seq) -> Seq {
        let old = |op: &LogItem| op.hlc().ms + 3_000 < self.now_ms;
        let entries = trimmable(self.row(), origin, floor, Seq::MAX);
        entries
            .take_while(|(_, _, op)| old(op))
            .last()
            .map_or(floor, |(seq, ..)| seq)
    }

    /// Drops what lies outside the window, with its margin (R20), and of which all is stable: up to `day`, or as many of the
    /// days before it as may go. Says whether days are left that time alone would let go.
    pub(super) fn drop_dedup(&mut self, day: u32) -> Outcome {
        let (identity, row) = (&self.state.identity, &self.row().row);
        let aged = droppable_before(self.now_ms).min(day.saturating_add(1));
        let logs = row.logs.iter();
        let needed = logs.filter_map(|(origin, log)| {
            let stable = row.agreed_to(*origin, identity);
            // What was trimmed without a holder that is away is not there any more to say from which day it was (R12).
            if stable < log.floor && !row.holding.marked.is_empty() {
                return Some(row.forgotten);
            }
            self.needed_from(*origin, stable.max(log.floor))
        });
        let before = match needed.min() {
            Some(needed) if !defect::on(Defect::DedupDroppedEarly) => needed.min(aged),
            _ => aged,
        };
        if before > row.forgotten {
            self.record(Decision::DedupDropped {
                shard: self.shard,
                day: before - 1,
            });
        }
        Outcome::Done { more: before < aged }
    }

    /// The first day of which a log may hold an id whose entry is not stable; `None` where all messages are.
    ///
    /// A message is accepted before its id leaves the window, and time rises along a log (R7): the first message that is
    /// not stable bounds those behind it. The last confirmations are never stable, and no record belongs to them.
    fn needed_from(&self, origin: Origin, stable: Seq) -> Option<u32> {
        let series = self.row().logs.get(&origin)?;
        let (mut after, mut reached) = (stable, 0);
        for _ in 0..TRIM_STEP {
            match series.next(after) {
                Next::End => return None,
                Next::NotLoaded => break,
                Next::Item(seq, (_, op)) => {
                    reached = op.hlc().ms;
                    after = seq;
                    if op.kind() == kind::APPEND {
                        break;
                    }
                }
            }
        }
        Some(first_day_within(reached.saturating_sub(ID_WINDOW_MS)))
    }

    /// The first UTC day that our clock, within its drift, lets the window of ids reach.
    pub(super) fn first_in_window(&self) -> u32 {
        let latest = self.now_ms.saturating_add(MAX_DRIFT.as_millis() as u64);
        first_day_within(latest.saturating_sub(ID_WINDOW_MS))
    }
}

/// Before this UTC day, counted from 1970, ids are so old that their records may be dropped where everything is stable: out
/// of the window by more than the margin (R16, R20).
pub fn droppable_before(now_ms: u64) -> u32 {
    if defect::on(Defect::DedupDroppedEarly) {
        return first_day_within(now_ms) + 1;
    }
    first_day_within(now_ms.saturating_sub(ID_WINDOW_MS + TIME_MARGIN_MS))
}

/// The day of the last millisecond before a time: all days before it have ended then.
fn first_day_within(ms: u64) -> u32 {
    (ms.saturating_sub(1) / DAY_MS) as u32
}

/// The loaded log entries above `floor` and at or below `stable`, at most [`TRIM_STEP`].
pub(super) fn trimmable(
    shard: &ShardState,
    origin: Origin,
    floor: Seq,
    stable: Seq,
) -> impl Iterator<Item = (Seq, u64, &LogItem)> {
    let series = shard.logs.get(&origin);
    let mut after = floor;
    std::iter::from_fn(move || match series?.next(after) {
        Next::Item(seq, (hash, op)) if seq <= stable => {
            after = seq;
            Some((seq, *hash, op))
        }
        _ => None,
    })
    .take(TRIM_STEP)
}
