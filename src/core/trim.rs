//! What leaves a store: logs that are stable (R9), and dedup records whose ids cannot come any more (R16).

use std::collections::BTreeSet;

use super::commit::{DAY_MS, ID_WINDOW_MS, Outcome, TIME_MARGIN_MS, TRIM_STEP, Work};
use super::defect::{self, Defect};
use super::ids::{Origin, Seq, UserId};
use super::op::LoggedOp;
use super::state::{Decision, Next, ShardState};

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
            let mut stable = self.row().row.stable(origin, &self.state.identity.holders);
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
        let mut users: BTreeSet<UserId> = BTreeSet::new();
        for (seq, hash, op) in trimmable(self.row(), origin, floor, stable) {
            last = Some((seq, hash));
            if let Some(user) = op.recipient()
                && !users.contains(user)
            {
                users.extend(UserId::new(user));
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
        });
        for user in users {
            self.remove(&user);
        }
        to < stable
    }

    /// For a defect: the end of what is some seconds old.
    fn aged(&self, origin: Origin, floor: Seq) -> Seq {
        let old = |op: &LoggedOp| op.hlc().ms + 3_000 < self.now_ms;
        let entries = trimmable(self.row(), origin, floor, Seq::MAX);
        entries
            .take_while(|(_, _, op)| old(op))
            .last()
            .map_or(floor, |(seq, ..)| seq)
    }

    /// What is dropped was accepted before its ids left the window, so all of it is stable if nothing unstable was
    /// logged before then (the last confirmations are never stable, and need not be).
    pub(super) fn drop_dedup(&mut self, day: u32) -> Outcome {
        let left_window = ((u64::from(day) + 1) * DAY_MS).saturating_add(ID_WINDOW_MS);
        let old = self.now_ms > left_window.saturating_add(TIME_MARGIN_MS);
        let shard = self.row();
        let unstable = shard.row.logs.keys().any(|origin| {
            let stable = shard.row.stable(*origin, &self.state.identity.holders);
            match shard.logs.get(origin).map(|log| log.next(stable)) {
                Some(Next::Item(_, (_, op))) => op.hlc().ms <= left_window,
                Some(Next::NotLoaded) => true,
                Some(Next::End) | None => false,
            }
        });
        if old && !unstable {
            self.record(Decision::DedupDropped {
                shard: self.shard,
                day,
            });
        }
        Outcome::Done {
            more: old && unstable,
        }
    }
}

/// The loaded log entries above `floor` and at or below `stable`, at most [`TRIM_STEP`].
pub(super) fn trimmable(
    shard: &ShardState,
    origin: Origin,
    floor: Seq,
    stable: Seq,
) -> impl Iterator<Item = (Seq, u64, &LoggedOp)> {
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
