//! Sends: limits, order, further attempts, giving up.

use super::*;

fn limited(change: impl FnOnce(&mut CoreLimits)) -> Rig {
    let mut limits = CoreLimits::default();
    change(&mut limits);
    let mut rig = Rig::new(limits);
    rig.login(1, "alice");
    rig
}

#[test]
fn an_envelope_is_made_from_what_was_authenticated() {
    let mut rig = limited(|_| {});
    let now = rig.now.wall_ms;
    for (seq, ttl_ms) in [(1, 0), (2, 1_000), (3, u64::MAX)] {
        let control = SendControl {
            to: user("bob"),
            kind: 2,
            ttl_ms,
            trace: vec![9],
        };
        let (id, body) = (message(1), Bytes::from_static(b"x"));
        rig.frame(
            1,
            ClientFrame::Send(Send {
                id,
                session_seq: seq,
                control,
                body,
            }),
        );
    }
    let deposits = rig.out().deposits();
    let expiries: Vec<u64> = deposits.iter().map(|d| d.envelope.expires_ms).collect();
    assert_eq!(expiries, [0, now + 1_000, u64::MAX]);
    let envelope = &deposits[0].envelope;
    assert_eq!(
        (envelope.from.as_str(), envelope.from_device.as_str()),
        ("alice", "phone")
    );
    assert_eq!(
        (envelope.session, envelope.connect_epoch, envelope.kind),
        (SessionId(101), 8, 2)
    );
    assert_eq!(
        (envelope.trace.as_slice(), deposits[0].body.as_ref()),
        (&[9][..], &b"x"[..])
    );
}

#[test]
fn answers_reach_the_sender_once() {
    let mut rig = limited(|_| {});
    rig.send(1, 1, 1, "bob");
    rig.send(1, 2, 2, "bob");
    let sent = rig.out().deposits();
    assert_eq!(
        (rig.edge.stats().deposits, rig.edge.stats().bytes),
        (2, 2 * (DEPOSIT_COST + 2))
    );
    assert_eq!(
        (rig.edge.stats().deposited, rig.edge.stats().deposit_messages),
        (2, 1)
    );
    rig.answer(&sent[1], refuse(Code::InboxFull));
    rig.answer(&sent[0], accept());
    rig.answer(&sent[0], accept());
    rig.answer(&sent[1], accept());
    let out = rig.out();
    assert_eq!(
        (out.accepted(1), out.rejected(1)),
        (vec![1], vec![(2, Code::InboxFull)])
    );
    assert_eq!(
        (
            rig.edge.stats().deposits,
            rig.edge.stats().bytes,
            rig.edge.stats().stale
        ),
        (0, 0, 2)
    );
    assert_eq!(rig.edge.routing.in_flight(), 0);
}

/// An owner whose queue is full says so of later deposits before the store has judged the earlier ones. Of those it says
/// once what is wrong, and if that got lost with each such refusal, the sender would never hear of it.
#[test]
fn a_final_refusal_counts_after_a_later_deposit_came_back() {
    let mut rig = limited(|_| {});
    rig.send(1, 1, 1, "bob");
    rig.send(1, 2, 2, "bob");
    let sent = rig.out().deposits();
    rig.answer(&sent[1], refuse(Code::Overloaded));
    rig.answer(&sent[0], refuse(Code::InboxFull));
    assert_eq!(rig.out().rejected(1), [(1, Code::InboxFull)]);
    assert_eq!(rig.edge.routing.in_flight(), 0);
    rig.pass(100);
    let again = rig.out();
    assert_eq!(again.tries(), [(2, 2)]);
    rig.answer(&sent[1], refuse(Code::Blocked));
    rig.answer(&again.deposits()[0], accept());
    assert_eq!(rig.out().accepted(1), [2]);
    // While it is in flight again, too.
    rig.send(1, 3, 3, "bob");
    rig.send(1, 4, 4, "bob");
    let sent = rig.out().deposits();
    rig.answer(&sent[1], refuse(Code::Overloaded));
    rig.pass(100);
    assert_eq!(rig.out().tries(), [(3, 3)]);
    rig.answer(&sent[0], refuse(Code::InboxFull));
    let out = rig.out();
    assert_eq!(
        (out.rejected(1), out.tries()),
        (vec![(3, Code::InboxFull)], vec![(4, 3)])
    );
    assert_eq!(rig.edge.routing.in_flight(), 1);
}

/// The next owner may accept what the last one refused.
#[test]
fn a_final_refusal_from_before_a_new_lane_does_not_count() {
    let mut rig = limited(|_| {});
    rig.send(1, 1, 1, "bob");
    let sent = rig.out().deposits();
    rig.owner(ToEdge::Reset);
    rig.pass(1_000);
    rig.answer(&sent[0], refuse(Code::InboxFull));
    assert_eq!(rig.out().rejected(1), []);
}

#[test]
fn bodies_and_sequences_hold_their_limits() {
    let mut rig = limited(|limits| limits.max_body = 10);
    rig.send_body(1, 1, 1, "bob", Bytes::from(vec![0; 10]));
    rig.send_body(1, 2, 2, "bob", Bytes::from(vec![0; 11]));
    rig.send(1, 2, 3, "bob");
    rig.send(1, 3, 3, "bob");
    let out = rig.out();
    assert_eq!(out.rejected(1), [(2, Code::TooLarge), (2, Code::OutOfOrder)]);
    assert_eq!(out.tries(), [(1, 1), (3, 1)]);
}

#[test]
fn a_retryable_refusal_sends_all_from_there_again_and_leaves_others_alone() {
    let mut rig = limited(|_| {});
    let (to, same, other) = same_and_other_shard();
    rig.send(1, 1, 1, &to);
    rig.send(1, 2, 2, &to);
    rig.send(1, 3, 3, &other);
    rig.send(1, 4, 4, &same);
    let sent = rig.out().deposits();
    let of = |seq: u64| sent.iter().find(|d| d.envelope.session_seq == seq).unwrap();
    rig.answer(of(1), accept());
    rig.answer(of(2), refuse(Code::Overloaded));
    rig.answer(of(4), refuse(Code::Blocked));
    rig.answer(of(3), accept());
    rig.send(1, 5, 5, &to);
    let out = rig.out();
    assert_eq!(
        (out.accepted(1), out.rejected(1), out.tries()),
        (vec![1, 3], vec![], vec![])
    );
    rig.pass(99);
    assert!(rig.out().owners.is_empty());
    rig.pass(1);
    let again = rig.out();
    assert_eq!(
        again.tries(),
        [(2, 2)],
        "the first alone, until the owner judged it"
    );
    rig.answer(of(4), refuse(Code::Blocked));
    rig.pass(200);
    assert!(
        rig.out().owners.is_empty(),
        "a refusal of an older attempt changes nothing"
    );
    rig.answer(of(4), accept());
    let rest = rig.out();
    assert_eq!(rest.accepted(1), [4], "accepted is true whatever the attempt");
    assert_eq!(rest.tries(), [(5, 2)]);
    rig.answer(&again.deposits()[0], refuse(Code::IdReused));
    rig.answer(&rest.deposits()[0], accept());
    let out = rig.out();
    assert_eq!(
        (out.rejected(1), out.accepted(1)),
        (vec![(2, Code::IdReused)], vec![5])
    );
    rig.send(1, 6, 6, &to);
    assert_eq!(rig.out().tries(), [(6, 2)], "an attempt is never taken back");
}

/// An owner may refuse for minutes, such as one that may not accept alone.
#[test]
fn while_refusals_go_on_one_deposit_asks_ever_more_seldom() {
    let mut rig = limited(|limits| limits.deposit_timeout_ms = 60_000);
    (1..=3).for_each(|seq| rig.send(1, seq, seq as u8, "bob"));
    let mut asked = rig.out().deposits();
    for (refusals, pause) in [100, 200, 400, 800, 1_600, 1_600].into_iter().enumerate() {
        rig.answer(&asked[0], refuse(Code::Overloaded));
        rig.send(1, 4 + refusals as u64, 4 + refusals as u8, "bob");
        rig.pass(pause - 1);
        assert!(rig.out().owners.is_empty(), "before {pause} ms");
        rig.pass(1);
        let out = rig.out();
        assert_eq!(out.tries(), [(1, 2 + refusals as u32)]);
        asked = out.deposits();
    }
    rig.answer(&asked[0], accept());
    let rest = rig.out();
    assert_eq!(
        rest.tries(),
        (2..=9).map(|seq| (seq, 7)).collect::<Vec<_>>(),
        "it takes messages again, so all go at once"
    );
    rig.answer(&rest.deposits()[0], refuse(Code::Overloaded));
    rig.pass(100);
    assert_eq!(rig.out().tries(), [(2, 8)], "the pause begins anew");
    rig.edge.handle_reachable(&node("one"), false, rig.now);
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    assert_eq!(rig.out().tries().len(), 8, "another lane may take more");
}

#[test]
fn after_a_refusal_at_the_edge_later_messages_to_that_recipient_wait_for_it() {
    let mut rig = limited(|limits| limits.sends_in_flight = 2);
    let (to, same, _) = same_and_other_shard();
    rig.send(1, 1, 1, &to);
    rig.send(1, 2, 2, &to);
    rig.send(1, 3, 3, &to);
    rig.send(1, 4, 4, &to);
    let out = rig.out();
    assert_eq!(out.rejected(1), [(3, Code::TooManyInFlight), (4, Code::Blocked)]);
    let sent = out.deposits();
    sent.iter().for_each(|deposit| rig.answer(deposit, accept()));
    rig.out();
    rig.send(1, 5, 5, &to);
    rig.send(1, 6, 4, &to);
    rig.send(1, 7, 6, &same);
    let out = rig.out();
    assert_eq!(out.rejected(1), [(5, Code::Blocked), (6, Code::Blocked)]);
    assert_eq!(out.tries(), [(7, 1)], "other recipients go on");
    rig.answer(&out.deposits()[0], accept());
    rig.send(1, 8, 3, &to);
    rig.send(1, 9, 4, &to);
    let out = rig.out();
    assert_eq!((out.rejected(1), out.tries()), (vec![], vec![(8, 1), (9, 1)]));
}

#[test]
fn a_session_that_never_goes_back_ends() {
    let mut rig = limited(|limits| limits.sends_in_flight = 3);
    (1..=3).for_each(|seq| rig.send(1, seq, 1, "bob"));
    (4..=6).for_each(|seq| rig.send(1, seq, 1, &format!("to{seq}")));
    (7..=9).for_each(|seq| rig.send(1, seq, 9, &format!("to{}", seq - 3)));
    assert!(rig.out().closed.is_empty());
    rig.send(1, 10, 1, "one more");
    assert_eq!(rig.out().closed, [(ConnId(1), Code::TooManyInFlight)].into());
}

#[test]
fn what_was_under_way_behind_a_second_refusal_does_not_pass_it() {
    let mut rig = limited(|limits| limits.sends_in_flight = 1);
    rig.send(1, 1, 1, "bob");
    let one = rig.out().deposits().remove(0);
    rig.send(1, 2, 2, "bob");
    rig.send(1, 3, 3, "bob");
    rig.send(1, 4, 2, "bob");
    rig.answer(&one, accept());
    rig.send(1, 5, 3, "bob");
    let out = rig.out();
    let codes = [
        Code::TooManyInFlight,
        Code::Blocked,
        Code::TooManyInFlight,
        Code::Blocked,
    ];
    assert_eq!(
        out.rejected(1),
        [2, 3, 4, 5].into_iter().zip(codes).collect::<Vec<_>>()
    );
    rig.send(1, 6, 2, "bob");
    assert_eq!(rig.out().tries(), [(6, 1)]);
}

#[test]
fn rates_and_bytes_are_limited() {
    let mut rig = limited(|limits| {
        limits.sends_per_second = 10;
        limits.send_burst = 3;
    });
    rig.login(2, "alice");
    (1..=2).for_each(|seq| rig.send(1, seq, seq as u8, "bob"));
    (1..=2).for_each(|seq| rig.send(2, seq, seq as u8 + 9, "bob"));
    let out = rig.out();
    assert_eq!(
        (out.rejected(1), out.rejected(2)),
        (vec![], vec![(2, Code::RateLimited)])
    );
    rig.pass(100);
    rig.send(2, 3, 11, "bob");
    assert_eq!(rig.out().tries(), [(3, 1)]);

    let mut rig = limited(|limits| limits.edge_bytes = 2 * DEPOSIT_COST + 5);
    (1..=3).for_each(|seq| rig.send(1, seq, seq as u8, "bob"));
    let out = rig.out();
    assert_eq!(out.rejected(1), [(3, Code::Overloaded)]);
    assert_eq!(rig.edge.stats().rejected, [(Code::Overloaded, 1)].into());
}

#[test]
fn a_lane_holds_its_window_and_is_fair() {
    let mut rig = limited(|limits| limits.lane_deposits = 100);
    rig.login(2, "bob");
    (1..=150).for_each(|seq| rig.send(1, seq, 1, "carol"));
    (1..=10).for_each(|seq| rig.send(2, seq, 1, "carol"));
    let sent = rig.out().deposits();
    assert_eq!(sent.len(), 100);
    let of = |session: u64, sent: &[Deposit]| {
        let own = sent.iter().filter(|d| d.envelope.session == SessionId(session));
        own.map(|d| d.envelope.session_seq).collect::<Vec<u64>>()
    };
    assert_eq!(of(102, &sent), (1..=10).collect::<Vec<_>>());
    assert_eq!(of(101, &sent), (1..=90).collect::<Vec<_>>());
    sent[..5].iter().for_each(|deposit| rig.answer(deposit, accept()));
    let more = rig.out().deposits();
    assert_eq!(of(101, &more), (91..=95).collect::<Vec<_>>());
    rig.edge.handle_closed(ConnId(1), rig.now);
    assert_eq!(rig.edge.routing.in_flight(), 10);
}

#[test]
fn a_lane_holds_its_bytes_also_when_everything_is_said_again() {
    let body = Bytes::from(vec![7; 10_000]);
    let most = 50_000;
    let cost = DEPOSIT_COST + body.len();
    let fit = most / cost + 1;
    let mut rig = limited(|limits| limits.lane_bytes = most);
    let mut owed: std::collections::VecDeque<Deposit> = Default::default();
    for seq in 1..=40 {
        rig.send_body(1, seq, seq as u8, "carol", body.clone());
        owed.extend(rig.out().deposits());
    }
    assert_eq!(owed.len(), fit);
    assert_eq!(rig.edge.routing.bytes_in_flight(), fit * cost);
    // A new lane begins with no more than that, and the answers bring the rest, in order.
    rig.edge.handle_reachable(&node("one"), false, rig.now);
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    let out = rig.out();
    rig.lane = out.owners[0].1;
    rig.attached(SessionId(101), 8);
    owed = out.deposits().into();
    assert_eq!(owed.len(), fit);
    let mut answered = Vec::new();
    while let Some(deposit) = owed.pop_front() {
        assert!(rig.edge.routing.bytes_in_flight() <= fit * cost);
        answered.push(deposit.envelope.session_seq);
        rig.answer(&deposit, accept());
        owed.extend(rig.out().deposits());
    }
    assert_eq!(answered, (1..=40).collect::<Vec<u64>>());
    assert_eq!(rig.edge.routing.bytes_in_flight(), 0);
}

#[test]
fn what_an_edge_takes_of_deliveries_is_told() {
    let mut rig = limited(|limits| limits.lane_bytes = 4_000);
    let cost = crate::core::owner::delivery_cost(&delivery(SessionId(101), 1, 1).op) as u64;
    let (mut told, mut given) = (0, 0);
    for seq in 1..=100 {
        // What comes for a session that is gone was under way, too.
        let session = SessionId(101 + u64::from(seq % 10 == 0));
        rig.owner(ToEdge::Deliver(vec![delivery(session, 1, seq)]));
        given += cost;
        let out = rig.out();
        told += out
            .each(|body| match body {
                ToOwner::Taken { bytes } => vec![*bytes],
                _ => Vec::new(),
            })
            .iter()
            .sum::<u64>();
        assert!(given - told < 1_000, "{given} were given and {told} told");
    }
}

#[test]
fn nothing_waits_for_ever_and_all_behind_it_is_given_up_with_it() {
    let mut rig = limited(|limits| limits.link_timeout_ms = 60_000);
    let (to, same, other) = same_and_other_shard();
    rig.send(1, 1, 1, &to);
    let first = rig.out().deposits().remove(0);
    rig.pass(6_000);
    rig.send(1, 2, 2, &same);
    rig.send(1, 3, 3, &other);
    rig.pass(4_000);
    let out = rig.out();
    assert_eq!(out.rejected(1), [(1, Code::Unknown), (2, Code::Unknown)]);
    rig.send(1, 4, 4, &to);
    rig.answer(&first, accept());
    let out = rig.out();
    assert_eq!(
        (out.rejected(1), out.accepted(1)),
        (vec![(4, Code::Blocked)], vec![])
    );
    rig.send(1, 5, 1, &to);
    rig.send(1, 6, 2, &same);
    assert_eq!(rig.out().tries(), [(5, 2), (6, 2)]);
    rig.pass(6_000);
    assert_eq!(rig.out().rejected(1), [(3, Code::Unknown)]);
    assert_eq!(rig.edge.routing.in_flight(), 2);
}

#[test]
fn what_is_given_up_says_why_the_owner_refused_it() {
    let mut rig = limited(|_| {});
    rig.send(1, 1, 1, "bob");
    let mut sent = rig.out().deposits();
    let refused = Verdict::Refused {
        code: Code::Overloaded,
        detail: "no other region has it".to_owned(),
        server_ms: 5,
    };
    rig.answer(&sent.remove(0), refused);
    rig.pass(10_000);
    let out = rig.out();
    let Some(ServerFrame::Rejected(rejected)) = out.of(1).last() else {
        panic!("{:?}", out.of(1));
    };
    assert_eq!(rejected.code, Code::Unknown);
    let why = "the owner last said Overloaded (no other region has it)";
    assert!(rejected.detail.contains(why), "{}", rejected.detail);
}

#[test]
fn deposits_wait_while_the_owner_is_away_and_go_again_in_order() {
    let mut rig = limited(|_| {});
    (1..=3).for_each(|seq| rig.send(1, seq, seq as u8, "bob"));
    let sent = rig.out().deposits();
    rig.answer(&sent[0], accept());
    rig.edge.handle_reachable(&node("one"), false, rig.now);
    rig.send(1, 4, 4, "bob");
    rig.answer(&sent[1], accept());
    let out = rig.out();
    assert_eq!((out.accepted(1), out.owners.len()), (vec![1], 0));
    rig.pass(3_000);
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    assert_eq!(rig.out().tries(), [(2, 2), (3, 2), (4, 2)]);
}
