//! What is due is told as a hole in its place, whether it was replaced already or not (R18, R20).

use super::*;
use crate::core::expire::{EXPIRY_MARGIN_MS, HoleRow};
use crate::core::time::Clocks;
use crate::core::wire::HoleReason;

const DUE: u64 = NOW.wall_ms - EXPIRY_MARGIN_MS;

fn at(seq: u64) -> Coord {
    Coord { origin: ORIGIN, seq }
}

/// A rig whose clock agrees with the others, or not; `due` are the messages that are.
fn rig(window: usize, kept: &[u64], due: &[u64], agree: bool) -> Rig {
    let kept: Vec<(Origin, u64)> = kept.iter().map(|seq| (ORIGIN, *seq)).collect();
    let mut rig = Rig::new(window, &kept, &[]);
    for (_, seq) in kept {
        let late = if due.contains(&seq) { 0 } else { 1 };
        rig.expires.insert(at(seq), DUE + late);
    }
    let latest_ms = NOW.wall_ms;
    rig.owner.handle_clocks(Clocks { latest_ms, agree }, NOW);
    rig
}

fn hole(rig: &mut Rig, from: u64, to: u64, count: u64) {
    let reason = HoleReason::Expired;
    let holes = &mut rig.row.timed.holes;
    holes.insert((ORIGIN, from), HoleRow { to, count, reason });
}

#[test]
fn what_is_due_is_told_in_its_place_and_neighbours_as_one() {
    let mut rig = rig(100, &[1, 2, 4, 6, 7, 9], &[2, 4, 7, 9], true);
    assert_eq!(
        rig.attach(phone()),
        [
            Message(ORIGIN, 1),
            Hole(ORIGIN, 2, 4),
            Message(ORIGIN, 6),
            Hole(ORIGIN, 7, 9)
        ]
    );
    assert_eq!(rig.counts, [2, 2]);
    for seq in [1, 4, 6, 9] {
        rig.ack(SessionId(9), at(seq));
    }
    assert_eq!(rig.cursor(SessionId(9)).of(ORIGIN), 9);
}

#[test]
fn nothing_is_due_while_the_clocks_disagree() {
    let mut rig = rig(100, &[1, 2], &[1, 2], false);
    assert_eq!(rig.attach(phone()), [Message(ORIGIN, 1), Message(ORIGIN, 2)]);
}

#[test]
fn what_was_replaced_is_told_with_how_many_it_was() {
    let mut rig = rig(100, &[5, 12], &[12], true);
    hole(&mut rig, 2, 3, 2);
    hole(&mut rig, 7, 10, 3);
    let told = rig.attach(phone());
    let expected = [
        Hole(ORIGIN, 2, 3),
        Message(ORIGIN, 5),
        Hole(ORIGIN, 7, 10),
        Hole(ORIGIN, 12, 12),
    ];
    assert_eq!((&told[..], &rig.counts[..]), (&expected[..], &[2, 3, 1][..]));
}

#[test]
fn holes_of_every_kind_fit_every_window() {
    let all = [
        Message(ORIGIN, 1),
        Hole(ORIGIN, 2, 4),
        Hole(ORIGIN, 5, 6),
        Message(ORIGIN, 7),
        Hole(ORIGIN, 8, 8),
        Hole(ORIGIN, 9, 11),
    ];
    for window in 1..=7 {
        let mut rig = rig(window, &[1, 5, 6, 7, 8], &[5, 6, 8], true);
        hole(&mut rig, 2, 4, 2);
        hole(&mut rig, 9, 11, 2);
        let mut told = rig.attach(phone());
        let mut acked = 0;
        while acked < told.len() {
            let more = rig.ack(SessionId(9), told[acked].end());
            told.extend(more);
            acked += 1;
        }
        // Where a page ends neighbours are told one by one.
        let mut passed = 0;
        for told in &told {
            let inside = all.iter().any(|all| match (all, told) {
                (Hole(_, from, to), Hole(_, first, last)) => from <= first && last <= to,
                (all, told) => all == told,
            });
            assert!(inside && told.end().seq > passed, "window {window}: {told:?}");
            passed = told.end().seq;
        }
        assert_eq!(
            rig.cursor(SessionId(9)).of(ORIGIN),
            11,
            "window {window}: {told:?}"
        );
    }
}

#[test]
fn a_hole_of_which_copies_were_consumed_is_passed() {
    let copy = |seq| Coord { origin: OTHER, seq };
    let mut rig = rig(100, &[1, 6, 8], &[6], true);
    hole(&mut rig, 2, 4, 2);
    rig.row.siblings.insert(at(2), BTreeSet::from([copy(5)]));
    rig.row.siblings.insert(at(4), BTreeSet::from([copy(6)]));
    rig.siblings.insert(at(6), vec![copy(7)]);
    let claiming = |seq| Attach {
        claim: [(OTHER, seq)].into_iter().collect(),
        ..phone()
    };
    // One of two: the other is told.
    let told = rig.attach(claiming(5));
    assert_eq!(
        told,
        [
            Message(ORIGIN, 1),
            Hole(ORIGIN, 2, 4),
            Hole(ORIGIN, 6, 6),
            Message(ORIGIN, 8)
        ]
    );
    assert_eq!(rig.counts, [1, 1]);
    // All of them, in the hole and behind it.
    let told = rig.attach(claiming(7));
    assert_eq!(told, [Message(ORIGIN, 1), Message(ORIGIN, 8)]);
    rig.ack(SessionId(9), at(1));
    assert_eq!(rig.cursor(SessionId(9)).of(ORIGIN), 6);
}

#[test]
fn what_is_due_when_it_comes_is_told_at_once() {
    let mut rig = rig(100, &[], &[], true);
    assert_eq!(rig.attach(phone()), []);
    for (seq, expires_ms) in [(21, DUE), (22, DUE + 1), (23, DUE)] {
        let logged = Logged {
            shard: SHARD,
            origin: ORIGIN,
            region: RegionId::new("a").unwrap(),
            own: true,
            entry: LogEntry {
                seq,
                hash: 0,
                op: timed(seq, expires_ms),
            },
            hlc: Hlc::default(),
            siblings: Vec::new(),
            merged: false,
        };
        rig.owner.handle_committed(&[logged]);
        rig.run();
    }
    let told = rig.heard(SessionId(9));
    assert_eq!(
        told,
        [Hole(ORIGIN, 21, 21), Message(ORIGIN, 22), Hole(ORIGIN, 23, 23)]
    );
}

#[test]
fn of_a_hole_that_was_passed_in_part_the_rest_is_told_without_a_number() {
    let mut rig = rig(100, &[1, 6], &[], true);
    hole(&mut rig, 2, 4, 2);
    let claiming = Attach {
        claim: [(ORIGIN, 3)].into_iter().collect(),
        ..phone()
    };
    assert_eq!(rig.attach(claiming), [Hole(ORIGIN, 4, 4), Message(ORIGIN, 6)]);
    assert_eq!(rig.counts, [0]);
}
