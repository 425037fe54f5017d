use super::*;
use crate::core::op::Envelope;
use crate::core::retire::or_retired;
use crate::core::state::UserRow;
use crate::core::storage::InboxHole;
use crate::core::time::Hlc;
use crate::core::vector::Vector;

const O: Origin = Origin(1);

fn at(seq: Seq) -> Coord {
    Coord { origin: O, seq }
}

fn hole(to: Seq, count: u64) -> HoleRow {
    HoleRow {
        to,
        count,
        reason: HoleReason::Expired,
    }
}

fn timed(holes: &[(Seq, Seq, u64)]) -> Timed {
    let holes = holes
        .iter()
        .map(|(from, to, count)| ((O, *from), hole(*to, *count)));
    Timed {
        holes: holes.chain([((Origin(2), 1), hole(100, 3))]).collect(),
        ..Timed::default()
    }
}

#[test]
fn holes_are_found_by_what_lies_in_them() {
    let timed = timed(&[(3, 5, 2), (8, 8, 1)]);
    let inside: Vec<Seq> = (0..12).filter(|seq| timed.hole_at(at(*seq)).is_some()).collect();
    assert_eq!(inside, [3, 4, 5, 8]);
    let above = |after| timed.hole_above(O, after).map(|(from, _)| from);
    assert_eq!([0, 2, 3, 4].map(above), [Some(3); 4]);
    assert_eq!([5, 7].map(above), [Some(8); 2]);
    assert_eq!([8, 9].map(above), [None; 2]);
    assert_eq!((timed.last_of(O), timed.last_of(Origin(3))), (8, 0));
}

/// A row is rid of what is retired when it is used next, and one engine uses it earlier than another.
#[test]
fn holes_are_shown_the_same_before_and_after_a_row_is_rid_of_what_is_retired() {
    let of = |origin| Coord {
        origin: Origin(origin),
        seq: 2,
    };
    let mut row = UserRow {
        timed: timed(&[(3, 5, 2)]),
        siblings: [(at(4), [of(2), of(3)].into())].into(),
        ..UserRow::default()
    };
    let retired = [(Origin(2), 9)].into();
    let before = InboxHole::above(&row, &Vector::new(), &retired);
    row.strip(&retired);
    assert_eq!(InboxHole::above(&row, &Vector::new(), &retired), before);
    let expected = InboxHole {
        at: at(3),
        row: hole(5, 2),
        siblings: vec![(4, vec![or_retired(of(2), &retired), of(3)])],
    };
    assert_eq!(before, [expected]);
}

#[test]
fn what_comes_after_all_leaves_its_hole() {
    let mut timed = timed(&[(3, 9, 3)]);
    timed.fill(at(3));
    assert_eq!(timed.holes[&(O, 4)], hole(9, 2));
    timed.fill(at(7));
    assert_eq!(timed.holes[&(O, 8)], hole(9, 1));
    timed.fill(at(9));
    timed.fill(at(20));
    assert_eq!(timed.holes.len(), 1);
}

#[test]
fn the_earliest_expiry_counts_and_none_does_not() {
    let mut timed = Timed::default();
    for (expires_ms, from_ms) in [(0, 0), (7, 7), (9, 7), (0, 7), (5, 5)] {
        timed.expires(expires_ms);
        assert_eq!(timed.from_ms, from_ms);
    }
}

#[test]
fn messages_and_holes_take_turns() {
    let message = |n: u64| {
        let envelope = Envelope {
            to: UserId::new("bob").unwrap(),
            from: UserId::new("alice").unwrap(),
            from_device: DeviceId::new("phone").unwrap(),
            connect_epoch: 1,
            session: crate::core::ids::SessionId(1),
            session_seq: n,
            id: Default::default(),
            kind: 0,
            expires_ms: 0,
            trace: Vec::new(),
        };
        LoggedOp::encode(&Op::Append(envelope, Default::default()), Hlc::default())
    };
    let mut user = UserState::default();
    user.row.timed = timed(&[(3, 5, 2), (8, 8, 1)]);
    let series = user.inbox.entry(O).or_default();
    // What was replaced may still lie there.
    for seq in [2, 3, 5, 6, 8, 9] {
        series.push(seq, message(seq));
    }
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        match user.next_entry(O, after) {
            NextEntry::Item(seq, _) => {
                seen.push((seq, seq));
                after = seq;
            }
            NextEntry::Hole(from, hole) => {
                seen.push((from, hole.to));
                after = hole.to;
            }
            NextEntry::End => break,
            NextEntry::NotLoaded => panic!("all is loaded"),
        }
    }
    assert_eq!(seen, [(2, 2), (3, 5), (6, 6), (8, 8), (9, 9)]);
    assert_eq!(user.count_within(O, 1, 9), Some(6));
    assert_eq!(user.count_within(O, 6, 8), Some(2));
    assert_eq!(user.origins().len(), 2);
    // A hole at once behind needs no look; one that lies further on does.
    user.inbox.get_mut(&O).unwrap().leave_behind(9);
    assert!(matches!(user.next_entry(O, 2), NextEntry::Hole(3, _)));
    assert_eq!(user.next_entry(O, 0), NextEntry::NotLoaded);
}

#[test]
fn what_is_gone_for_another_reason_is_cut_out() {
    for (from, to, left) in [
        (1, 4, &[(5, 9, 5), (12, 14, 2)][..]),
        (1, 6, &[(7, 9, 0), (12, 14, 2)]),
        (6, 7, &[(5, 5, 0), (8, 9, 0), (12, 14, 2)]),
        (9, 12, &[(5, 8, 0), (13, 14, 0)]),
        (5, 20, &[]),
    ] {
        let mut holes = timed(&[(5, 9, 5), (12, 14, 2)]);
        holes.cut(O, from, to);
        assert_eq!(holes, timed(left), "{from} to {to}");
    }
}
