//! What was committed to a log of late: how many messages and bytes, and when. So it is known how far a subscriber is behind
//! in messages, bytes and time, without a look at the log.
//!
//! Stretches of about a second; when there are too many, neighbours become one, so that a long lag is told less exactly than
//! a short one, at the same cost of memory.

use std::collections::VecDeque;

use super::report::Lag;
use crate::core::ids::Seq;
use crate::core::op::{LogEntry, kind};

/// Stretches that are kept for a log: under a kilobyte.
const STRETCHES: usize = 16;
/// Length of a new stretch, in milliseconds.
const STRETCH_MS: u64 = 1_000;

/// What was committed to one log since it is owned here.
#[derive(Debug, Default)]
pub(super) struct Trail(VecDeque<Stretch>);

/// Operations that follow each other.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    first: Seq,
    last: Seq,
    first_ms: u64,
    last_ms: u64,
    messages: u64,
    bytes: u64,
}

impl Trail {
    /// An operation was committed.
    pub fn committed(&mut self, entry: &LogEntry, now_ms: u64) {
        let message = u64::from(entry.op.kind() == kind::APPEND);
        let bytes = entry.op.len() as u64;
        if let Some(last) = self.0.back_mut()
            && last.last + 1 == entry.seq
            && now_ms.saturating_sub(last.first_ms) < STRETCH_MS
        {
            last.last = entry.seq;
            last.last_ms = last.last_ms.max(now_ms);
            last.messages += message;
            last.bytes += bytes;
            return;
        }
        if self.0.len() >= STRETCHES {
            self.halve();
        }
        self.0.push_back(Stretch {
            first: entry.seq,
            last: entry.seq,
            first_ms: now_ms,
            last_ms: now_ms,
            messages: message,
            bytes,
        });
    }

    /// What lies above `position`, up to `head`.
    pub fn behind(&self, position: Seq, head: Seq) -> Lag {
        let mut behind = Lag {
            operations: head.saturating_sub(position),
            ..Lag::default()
        };
        if behind.operations == 0 {
            return behind;
        }
        let mut known = 0;
        for stretch in self.0.iter().rev().take_while(|stretch| stretch.last > position) {
            let all = stretch.last - stretch.first + 1;
            let part = all.min(stretch.last - position);
            known += part;
            // Within a stretch operations are taken for equally long and evenly spread.
            let share =
                |of: u64| u64::try_from(u128::from(of) * u128::from(part) / u128::from(all)).unwrap_or(of);
            behind.messages += share(stretch.messages);
            behind.bytes += share(stretch.bytes);
            behind.since_ms = Some(stretch.last_ms - share(stretch.last_ms.saturating_sub(stretch.first_ms)));
        }
        behind.at_least = known < behind.operations;
        behind
    }

    /// Makes one of each two neighbours.
    fn halve(&mut self) {
        let mut halved = VecDeque::with_capacity(STRETCHES);
        while let Some(first) = self.0.pop_front() {
            let mut one = first;
            if let Some(second) = self.0.pop_front() {
                one.last = second.last;
                one.last_ms = second.last_ms;
                one.messages += second.messages;
                one.bytes += second.bytes;
            }
            halved.push_back(one);
        }
        self.0 = halved;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::RegionId;
    use crate::core::op::{LoggedOp, Op};
    use crate::core::time::Hlc;
    use crate::core::vector::Vector;

    fn entry(seq: Seq) -> LogEntry {
        let op = Op::Confirm {
            holder: RegionId::new("r").unwrap(),
            applied: Vector::new(),
            needed: Vec::new(),
            retired: None,
        };
        LogEntry {
            seq,
            hash: 0,
            op: LoggedOp::encode(&op, Hlc::default()),
        }
    }

    #[test]
    fn what_is_behind_is_known_in_operations_bytes_and_time() {
        let mut trail = Trail::default();
        let len = entry(1).op.len() as u64;
        for seq in 11..=20 {
            trail.committed(&entry(seq), 1_000 + (seq - 11) * 10);
        }
        assert_eq!(trail.behind(20, 20), Lag::default());
        let all = trail.behind(10, 20);
        assert_eq!((all.operations, all.bytes, all.messages), (10, 10 * len, 0));
        assert_eq!((all.since_ms, all.at_least), (Some(1_000), false));
        let half = trail.behind(15, 20);
        assert_eq!((half.operations, half.bytes), (5, 5 * len));
        assert!(
            half.since_ms.is_some_and(|ms| (1_040..=1_060).contains(&ms)),
            "{half:?}"
        );
        // Older than what is known of the log.
        let more = trail.behind(2, 20);
        assert_eq!((more.operations, more.bytes, more.at_least), (18, 10 * len, true));
        assert_eq!(Trail::default().behind(0, 7).since_ms, None);
    }

    #[test]
    fn a_long_lag_costs_no_more_and_is_still_told() {
        let mut trail = Trail::default();
        let len = entry(1).op.len() as u64;
        for seq in 1..=100_000 {
            trail.committed(&entry(seq), seq * 50);
        }
        assert!(trail.0.len() <= STRETCHES);
        let all = trail.behind(0, 100_000);
        assert_eq!((all.operations, all.bytes), (100_000, 100_000 * len));
        assert_eq!((all.since_ms, all.at_least), (Some(50), false));
        let last = trail.behind(99_999, 100_000);
        assert_eq!((last.operations, last.at_least), (1, false));
        let since = last.since_ms.expect("it is known");
        assert!(5_000_000 - since <= 1_000, "{since}");
    }
}
