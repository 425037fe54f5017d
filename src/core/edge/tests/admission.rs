//! A storm of clients, and those who are in.

use super::*;

/// 20 sessions a second, 5 at once, and a second to wait.
fn rig() -> Rig {
    Rig::new(CoreLimits {
        sessions_per_second: 20,
        admit_ms: 1_000,
        ..CoreLimits::default()
    })
}

fn ended(out: &Out, code: Code) -> usize {
    out.closed.values().filter(|closed| **closed == code).count()
}

#[test]
fn a_storm_is_admitted_at_the_rate_and_those_for_whom_there_is_no_time_are_told_at_once() {
    let mut rig = rig();
    for conn in 1..=100 {
        rig.hello(conn, &format!("u{conn}"));
    }
    let out = rig.out();
    assert_eq!(out.attaches().len(), 5);
    assert_eq!((ended(&out, Code::Overloaded), rig.edge.waiting()), (75, 20));
    assert!(Code::Overloaded.retryable());
    assert!(
        matches!(out.of(26), [ServerFrame::Error { code: Code::Overloaded, detail }] if detail.contains("come back")),
        "{out:?}"
    );
    // In the order in which they came, evenly.
    for step in 0..20 {
        rig.pass(49);
        assert!(rig.out().attaches().is_empty(), "{step}");
        rig.pass(1);
        let out = rig.out();
        let sessions: Vec<SessionId> = out.attaches().iter().map(|attach| attach.session).collect();
        assert_eq!((sessions, out.closed.len()), (vec![SessionId(106 + step)], 0));
    }
    assert_eq!((rig.edge.waiting(), rig.edge.stats().sessions), (0, 25));
    // After a silence some are admitted at once again.
    rig.pass(1_000);
    for conn in 201..=206 {
        rig.hello(conn, "later");
    }
    assert_eq!((rig.out().attaches().len(), rig.edge.waiting()), (5, 1));
}

#[test]
fn those_who_are_in_are_answered_at_once_in_a_storm() {
    let mut rig = rig();
    let session = rig.login(1, "alice");
    for conn in 2..=200 {
        rig.hello(conn, &format!("u{conn}"));
    }
    rig.out();
    rig.send(1, 1, 1, "bob");
    rig.frame(1, ClientFrame::Ping(9));
    rig.owner(ToEdge::Deliver(vec![delivery(session, 1, 1)]));
    let out = rig.out();
    assert_eq!(out.deposits().len(), 1);
    assert!(
        matches!(
            out.of(1),
            [ServerFrame::Pong { nonce: 9, .. }, ServerFrame::Deliver { .. }]
        ),
        "{out:?}"
    );
    rig.pass(30_000);
    assert!(!rig.out().closed.contains_key(&ConnId(1)));
}

#[test]
fn who_waits_may_ping_and_leave_and_no_more() {
    let mut rig = rig();
    for conn in 1..=10 {
        rig.hello(conn, &format!("u{conn}"));
    }
    rig.out();
    assert_eq!(rig.edge.waiting(), 5);
    rig.frame(6, ClientFrame::Ping(3));
    rig.frame(7, ClientFrame::Bye);
    rig.send(8, 1, 1, "bob");
    rig.edge.handle_closed(ConnId(9), rig.now);
    rig.hello(10, "u10");
    let out = rig.out();
    assert!(
        matches!(out.of(6), [ServerFrame::Pong { nonce: 3, .. }]),
        "{out:?}"
    );
    assert_eq!(
        out.closed,
        [
            (ConnId(7), GOODBYE),
            (ConnId(8), Code::Protocol),
            (ConnId(10), Code::Protocol)
        ]
        .into()
    );
    assert_eq!(rig.edge.waiting(), 1);
    rig.pass(50);
    let out = rig.out();
    assert_eq!(out.attaches().len(), 1);
    assert_eq!(rig.edge.admission.poll_timeout(), None);
}

#[test]
fn a_drain_and_an_evacuation_turn_away_who_waits() {
    for evacuated in [false, true] {
        let mut rig = rig();
        for conn in 1..=8 {
            rig.hello(conn, &format!("u{conn}"));
        }
        rig.out();
        match evacuated {
            true => rig.edge.handle_evacuation(Some(Pace::shared(1_000, 1)), rig.now),
            false => rig.edge.handle_drain(rig.now),
        }
        rig.pass(200);
        let out = rig.out();
        assert_eq!((ended(&out, Code::Draining), rig.edge.waiting()), (8, 0));
        for conn in 1..=8 {
            rig.edge.handle_closed(ConnId(conn), rig.now);
        }
        assert_empty(&rig.edge);
    }
}

#[test]
fn the_rate_holds_over_time_and_a_timer_that_comes_late_refuses_nobody_whose_turn_it_was() {
    let mut rig = rig();
    for conn in 0..600 {
        rig.hello(conn + 1, &format!("u{conn}"));
        rig.pass(10);
        rig.out();
    }
    // Six seconds, and what was admitted at once.
    let sessions = rig.edge.stats().sessions;
    assert!((120..=125).contains(&sessions), "{sessions}");
    assert!(rig.edge.waiting() > 0);

    let mut rig = self::rig();
    for conn in 1..=15 {
        rig.hello(conn, &format!("u{conn}"));
    }
    rig.out();
    rig.now.mono = rig.now.mono + ms(2_000);
    rig.edge.handle_timeout(rig.now);
    let out = rig.out();
    assert_eq!((rig.edge.waiting(), rig.edge.stats().sessions), (0, 10));
    assert_eq!(ended(&out, Code::Overloaded), 5, "{out:?}");
}
