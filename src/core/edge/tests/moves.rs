//! Sessions that leave an evacuated region, and those that are told of the way home.

use super::*;

fn region(name: &str) -> RegionEndpoints {
    RegionEndpoints {
        region: RegionId::new(name).unwrap(),
        endpoints: vec![format!("{name}:1")],
    }
}

fn rig() -> Rig {
    let mut rig = Rig::standard();
    rig.edge
        .handle_endpoints(vec![region("here"), region("near"), region("far")]);
    rig
}

impl Rig {
    /// A welcomed session of a client that prefers another region.
    fn login_away(&mut self, conn: u64, name: &str) -> SessionId {
        let session = SessionId(conn + 100);
        let mut hello = hello("phone");
        hello.capabilities = AWAY;
        self.edge
            .handle_hello(ConnId(conn), user(name), hello, session, self.now);
        self.attached(session, 8);
        self.out();
        session
    }
}

/// The code of the `GoAway` and the regions that it names.
fn sent_away(frames: &[ServerFrame]) -> Option<(Code, Vec<&str>)> {
    frames.iter().find_map(|frame| match frame {
        ServerFrame::GoAway { code, regions } => {
            Some((*code, regions.iter().map(|told| told.region.as_str()).collect()))
        }
        _ => None,
    })
}

#[test]
fn a_pace_is_a_part_of_the_rate_and_never_faster() {
    for (rate, edges) in [
        (1, 1),
        (7, 3),
        (500, 2),
        (1000, 8),
        (100_000, 1),
        (u32::MAX, 1),
        (0, 0),
    ] {
        let pace = Pace::shared(rate, edges);
        let a_second = pace.sessions as f64 / pace.every.as_secs_f64();
        let share = f64::from(rate.max(1)) / f64::from(edges.max(1));
        assert!(a_second <= share + 1e-9, "{rate} / {edges}: {pace:?}");
        let floor = share.min(1_000_000.0) * 0.9;
        assert!(a_second >= floor, "{rate} / {edges}: {pace:?}");
    }
    assert_eq!(
        Pace::shared(500, 2),
        Pace {
            sessions: 12,
            every: Duration::from_millis(48)
        }
    );
}

#[test]
fn an_evacuated_region_tells_its_sessions_at_the_pace_where_to_go_and_takes_nobody() {
    let mut rig = rig();
    for conn in 1..=25 {
        rig.login(conn, &format!("u{conn}"));
    }
    rig.hello(26, "late");
    rig.edge.handle_evacuation(Some(Pace::shared(500, 2)), rig.now);
    let out = rig.out();
    assert_eq!(out.frames.len(), 12);
    assert_eq!(
        sent_away(out.of(1)),
        Some((Code::Draining, vec!["near", "far"])),
        "this region is not among those to go to"
    );
    assert!(matches!(out.of(1)[1], ServerFrame::Probe { .. }), "{out:?}");

    rig.hello(99, "new");
    let out = rig.out();
    assert_eq!(sent_away(out.of(99)), Some((Code::Draining, vec!["near", "far"])));
    assert_eq!(out.closed, [(ConnId(99), Code::Draining)].into());
    assert!(
        out.owners.is_empty(),
        "its user's owner hears nothing of it: {out:?}"
    );

    // Told again, as after a restart of whoever tells it: nothing begins anew.
    rig.edge.handle_evacuation(Some(Pace::shared(500, 2)), rig.now);
    rig.pass(47);
    assert!(rig.out().frames.is_empty());
    rig.pass(1);
    assert_eq!(rig.out().frames.len(), 12);
    rig.pass(48);
    let out = rig.out();
    // The one that no owner answered yet goes at once.
    assert_eq!(
        (out.frames.len(), out.closed),
        (2, [(ConnId(26), Code::Draining)].into())
    );
    assert_eq!(
        sent_away(out.frames.get(&ConnId(26)).unwrap()).unwrap().1[0],
        "near"
    );
}

#[test]
fn who_does_not_leave_an_evacuated_region_is_closed_in_the_end() {
    let mut rig = rig();
    for (conn, name) in [(1, "gone"), (2, "leaves"), (3, "stays")] {
        rig.login(conn, name);
    }
    rig.edge.handle_evacuation(Some(Pace::shared(1_000, 1)), rig.now);
    rig.out();
    rig.frame(2, ClientFrame::Bye);
    rig.frame(3, ClientFrame::Ping(1));
    assert_eq!(rig.out().closed, [(ConnId(2), GOODBYE)].into());
    rig.pass(2_000);
    assert_eq!(rig.out().closed, [(ConnId(1), Code::Draining)].into());
    rig.frame(3, ClientFrame::Ping(2));
    rig.pass(27_999);
    assert!(rig.out().closed.is_empty());
    rig.pass(1);
    let out = rig.out();
    assert_eq!(out.closed, [(ConnId(3), Code::Draining)].into());
    assert_eq!(
        out.detached(),
        [SessionId(103)],
        "its owner knows that it is gone"
    );
    for conn in 1..=3 {
        rig.edge.handle_closed(ConnId(conn), rig.now);
    }
    assert_empty(&rig.edge);
    assert_eq!(rig.edge.moves.poll_timeout(), None);
}

#[test]
fn a_restored_region_takes_sessions_and_closes_none_that_it_had_told() {
    let mut rig = rig();
    rig.login(1, "told");
    rig.login(2, "not told");
    let slow = Pace::shared(1, 1);
    rig.edge.handle_evacuation(Some(slow), rig.now);
    assert_eq!(rig.out().frames.len(), 1);
    for conn in [1, 2] {
        rig.frame(conn, ClientFrame::Ping(1));
    }
    rig.out();
    rig.edge.handle_evacuation(None, rig.now);
    assert!(!rig.edge.is_evacuated());
    rig.login(3, "new");
    rig.pass(40_000);
    let out = rig.out();
    assert!(out.closed.is_empty() && out.frames.is_empty(), "{out:?}");
    // And again: those that had been told are told again.
    rig.edge.handle_evacuation(Some(Pace::shared(1_000, 1)), rig.now);
    assert_eq!(rig.out().frames.len(), 3);
}

#[test]
fn another_pace_holds_at_once() {
    let mut rig = rig();
    for conn in 1..=40 {
        rig.login(conn, &format!("u{conn}"));
    }
    rig.edge.handle_evacuation(Some(Pace::shared(1, 1)), rig.now);
    assert_eq!(rig.out().frames.len(), 1);
    rig.edge.handle_evacuation(Some(Pace::shared(600, 1)), rig.now);
    rig.pass(50);
    assert_eq!(rig.out().frames.len(), 29);
    rig.pass(50);
    assert_eq!(rig.out().frames.len(), 10);
}

#[test]
fn those_who_are_away_are_told_once_that_a_region_is_restored() {
    let mut rig = rig();
    rig.login(1, "at home");
    for conn in 2..=4 {
        rig.login_away(conn, &format!("u{conn}"));
    }
    let far = RegionId::new("far").unwrap();
    rig.edge
        .handle_restored(far.clone(), Pace::shared(20, 1), rig.now);
    assert_eq!(rig.edge.returning(), 2);
    let out = rig.out();
    assert_eq!(out.frames.len(), 1);
    assert_eq!(
        sent_away(out.of(2)),
        Some((Code::Restored, vec!["far", "here", "near"]))
    );
    assert_eq!(out.of(2).len(), 1, "it may stay: nobody looks whether it leaves");
    // One that comes meanwhile was perhaps between two regions when the others were told.
    rig.login_away(5, "u5");
    rig.frame(3, ClientFrame::Bye);
    rig.out();
    rig.pass(1_000);
    let out = rig.out();
    assert_eq!(out.frames.keys().collect::<Vec<_>>(), [&ConnId(4), &ConnId(5)]);
    assert_eq!((rig.edge.returning(), rig.edge.moves.poll_timeout()), (0, None));
    rig.pass(60_000);
    assert_eq!(rig.edge.stats().sessions, 4);

    // The next time it is told, too, until the region is evacuated again.
    rig.edge
        .handle_restored(far.clone(), Pace::shared(20, 1), rig.now);
    assert_eq!(rig.out().frames.len(), 1);
    rig.edge.handle_evacuated(&far);
    rig.pass(1_000);
    assert!(rig.out().frames.is_empty());
    // Of the own region, and of one that nobody knows, nobody is told.
    for name in ["here", "nowhere"] {
        let region = RegionId::new(name).unwrap();
        rig.edge.handle_restored(region, Pace::shared(20, 1), rig.now);
        rig.pass(1_000);
        assert!(rig.out().frames.is_empty(), "{name}");
    }
}

#[test]
fn one_that_is_not_welcomed_yet_is_told_of_home_after_its_welcome() {
    let mut rig = rig();
    let session = SessionId(101);
    let mut hello = hello("phone");
    hello.capabilities = AWAY;
    rig.edge
        .handle_hello(ConnId(1), user("u"), hello, session, rig.now);
    let far = RegionId::new("far").unwrap();
    rig.edge.handle_restored(far, Pace::shared(10, 1), rig.now);
    rig.pass(300);
    assert!(rig.out().frames.is_empty());
    rig.attached(session, 8);
    rig.pass(100);
    let out = rig.out();
    assert!(
        matches!(
            out.of(1),
            [
                ServerFrame::Welcome(_),
                ServerFrame::GoAway {
                    code: Code::Restored,
                    ..
                }
            ]
        ),
        "{out:?}"
    );
}

impl Rig {
    /// A welcomed session whose client takes along what comes first in another region.
    fn login_in_order(&mut self, conn: u64, name: &str) -> SessionId {
        let session = SessionId(conn + 100);
        let mut hello = hello("phone");
        hello.capabilities = AWAY | MOVES_IN_ORDER;
        self.edge
            .handle_hello(ConnId(conn), user(name), hello, session, self.now);
        self.attached(session, 8);
        self.out();
        session
    }
}

#[test]
fn what_comes_first_elsewhere_is_asked_for_and_told_before_the_client_is_sent_away() {
    let far = RegionId::new("far").unwrap();
    for home in [false, true] {
        let mut rig = rig();
        let session = rig.login_in_order(1, "u");
        let pace = Pace::shared(10, 1);
        match home {
            true => rig.edge.handle_restored(far.clone(), pace, rig.now),
            false => rig.edge.handle_evacuation(Some(pace), rig.now),
        }
        let out = rig.out();
        let shard = SHARDING.of_user(&user("u"));
        let asked = out.each(|body| match body {
            ToOwner::Leave(leaving) => leaving.clone(),
            _ => Vec::new(),
        });
        assert_eq!(asked, [crate::core::msg::Leave { shard, session }]);
        assert!(out.frames.is_empty(), "{out:?}");
        let after: Vector = [(Origin(4), 17)].into_iter().collect();
        let position = || ToEdge::Position {
            session,
            after: after.clone(),
        };
        rig.owner(position());
        let out = rig.out();
        assert_eq!(out.of(1)[0], ServerFrame::After(after.clone()));
        let (code, regions) = sent_away(out.of(1)).unwrap();
        match home {
            true => assert_eq!((code, regions[0]), (Code::Restored, "far")),
            false => assert_eq!((code, regions), (Code::Draining, vec!["near", "far"])),
        }
        // Once.
        rig.owner(position());
        assert!(sent_away(rig.out().of(1)).is_none());
    }
}

#[test]
fn an_owner_that_does_not_say_what_comes_first_holds_nobody_up() {
    let mut rig = rig();
    rig.login_in_order(1, "u");
    rig.edge.handle_evacuation(Some(Pace::shared(10, 1)), rig.now);
    rig.pass(900);
    assert!(rig.out().frames.is_empty());
    rig.pass(200);
    let out = rig.out();
    assert!(matches!(out.of(1)[0], ServerFrame::GoAway { .. }), "{out:?}");
    // Nor does one that is not there.
    let mut rig = self::rig();
    rig.login_in_order(1, "u");
    rig.edge.handle_reachable(&node("one"), false, rig.now);
    rig.edge.handle_evacuation(Some(Pace::shared(10, 1)), rig.now);
    assert!(sent_away(rig.out().of(1)).is_some());
}
