//! Sessions, lanes, deliveries, acknowledgements, probes, watches.

use super::*;

fn ack(conn: u64, rig: &mut Rig, origin: u64, seq: u64) {
    let origin = Origin(origin);
    rig.frame(conn, ClientFrame::Ack(vec![Coord { origin, seq }]));
}

#[test]
fn a_session_is_attached_and_welcomed_once() {
    let mut rig = Rig::standard();
    let regions = vec![RegionEndpoints {
        region: RegionId::new("here").unwrap(),
        endpoints: vec!["a:1".into()],
    }];
    rig.edge.handle_endpoints(regions.clone());
    rig.hello(1, "alice");
    let out = rig.out();
    assert_eq!(out.kinds(), ["attach"]);
    let attach = &out.attaches()[0];
    assert_eq!(
        (attach.connect_epoch, attach.welcomed, attach.session),
        (7, false, SessionId(101))
    );
    assert_eq!((rig.edge.stats().sessions, rig.edge.stats().pending), (1, 1));
    rig.attached(SessionId(101), 9);
    let out = rig.out();
    let [ServerFrame::Welcome(welcome)] = out.of(1) else {
        panic!("{out:?}")
    };
    assert_eq!(
        (welcome.connect_epoch, welcome.session, &welcome.regions),
        (9, SessionId(101), &regions)
    );
    assert_eq!(rig.edge.stats().pending, 0);
    rig.owner(ToEdge::Reasserted {
        session: SessionId(101),
        connect_epoch: 12,
    });
    rig.pass(1_000);
    rig.owner(ToEdge::Reset);
    let out = rig.out();
    assert_eq!(out.kinds(), ["open", "attach", "synced"]);
    assert!(out.owners[0].1 > rig.lane);
    rig.lane = out.owners[0].1;
    let again = &out.attaches()[0];
    assert_eq!((again.welcomed, again.connect_epoch), (true, 12));
    rig.attached(SessionId(101), 12);
    assert!(rig.out().frames.is_empty());
}

#[test]
fn lanes_carry_the_generation_so_that_no_number_comes_twice() {
    let mut old = Edge::new(config(CoreLimits::default()));
    let mut new = Edge::new(EdgeConfig {
        generation: Generation(4),
        ..config(CoreLimits::default())
    });
    let now = Now {
        mono: Mono(1),
        wall_ms: 1,
    };
    let last = |edge: &mut Edge, resets: u64| {
        let mut last = 0;
        for generation in 1..=resets {
            edge.handle_placement(&all_on("edge", generation), now);
            while let Some(output) = edge.poll_output() {
                if let EdgeOutput::ToOwner { lane, .. } = output {
                    assert!(lane >= last);
                    last = lane;
                }
            }
        }
        last
    };
    let of_old = last(&mut old, 50);
    assert!(of_old > 0 && of_old < last(&mut new, 1));
}

#[test]
fn frames_out_of_turn_close_their_connection_only() {
    let mut rig = Rig::standard();
    rig.login(1, "alice");
    rig.frame(2, ClientFrame::Ping(1));
    rig.frame(2, ClientFrame::Ping(2));
    rig.hello(3, "bob");
    rig.send(3, 1, 1, "alice");
    rig.hello(4, "carol");
    rig.hello(4, "carol");
    let out = rig.out();
    assert_eq!(out.closed.keys().map(|c| c.0).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(out.closed.values().all(|code| *code == Code::Protocol));
    assert!(matches!(
        out.of(2),
        [ServerFrame::Error {
            code: Code::Protocol,
            ..
        }]
    ));
    assert_eq!(out.detached(), [SessionId(103), SessionId(104)]);
    rig.frame(1, ClientFrame::Ping(9));
    assert!(matches!(rig.out().of(1), [ServerFrame::Pong { nonce: 9, .. }]));
    for conn in 1..=4 {
        rig.edge.handle_closed(ConnId(conn), rig.now);
    }
    assert_empty(&rig.edge);
}

#[test]
fn a_hello_waits_for_its_owner_and_then_fails() {
    let mut rig = Rig::standard();
    rig.edge.handle_reachable(&node("one"), false, rig.now);
    rig.hello(1, "alice");
    rig.pass(5_000);
    rig.hello(2, "bob");
    rig.pass(5_000);
    let out = rig.out();
    assert_eq!(out.closed, [(ConnId(1), Code::Unavailable)].into());
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    let out = rig.out();
    assert_eq!(out.kinds(), ["open", "attach", "synced"]);
    rig.lane = out.owners[0].1;
    rig.attached(SessionId(102), 1);
    assert!(matches!(rig.out().of(2), [ServerFrame::Welcome(_)]));
}

#[test]
fn silence_ends_a_session_and_pings_keep_it() {
    let mut rig = Rig::standard();
    rig.login(1, "alice");
    rig.login(2, "bob");
    rig.pass(299_000);
    rig.frame(2, ClientFrame::Ping(1));
    rig.pass(2_000);
    let out = rig.out();
    assert_eq!(out.closed, [(ConnId(1), Code::Timeout)].into());
    assert_eq!(out.detached(), [SessionId(101)]);
    rig.pass(297_000);
    assert!(rig.out().closed.is_empty());
    rig.pass(2_000);
    assert_eq!(rig.out().closed, [(ConnId(2), Code::Timeout)].into());
}

#[test]
fn the_owner_ends_a_session_without_a_detach() {
    let mut rig = Rig::standard();
    let session = rig.login(1, "alice");
    rig.owner(ToEdge::Ended {
        session,
        code: Code::Superseded,
        detail: "newer".into(),
    });
    let out = rig.out();
    assert_eq!(out.closed, [(ConnId(1), Code::Superseded)].into());
    assert!(matches!(
        out.of(1),
        [ServerFrame::Error {
            code: Code::Superseded,
            ..
        }]
    ));
    assert!(out.owners.is_empty());
    rig.edge.handle_closed(ConnId(1), rig.now);
    assert_empty(&rig.edge);
}

#[test]
fn deliveries_are_forwarded_once_and_acknowledgements_clamped_and_coalesced() {
    let mut rig = Rig::standard();
    let session = rig.login(1, "alice");
    let some = vec![
        delivery(session, 4, 1),
        delivery(session, 4, 2),
        delivery(session, 6, 9),
    ];
    rig.owner(ToEdge::Deliver(some));
    assert_eq!(rig.out().of(1).len(), 3);
    rig.owner(ToEdge::Deliver(vec![delivery(session, 4, 2)]));
    assert!(rig.out().frames.is_empty());
    let hole = Hole {
        origin: Origin(4),
        from: 3,
        to: 5,
        reason: HoleReason::Expired,
        count: 2,
    };
    rig.owner(ToEdge::Hole {
        session,
        hole: hole.clone(),
    });
    assert_eq!(rig.out().of(1), [ServerFrame::Hole(hole)]);
    ack(1, &mut rig, 4, 1);
    ack(1, &mut rig, 4, 99);
    ack(1, &mut rig, 5, 3);
    ack(1, &mut rig, 4, 2);
    ack(1, &mut rig, 6, 9);
    let at = |origin, seq| SessionAck {
        shard: SHARDING.of_user(&user("alice")),
        session,
        at: Coord {
            origin: Origin(origin),
            seq,
        },
    };
    assert_eq!(rig.out().acks(), [at(4, 5), at(6, 9)]);
    ack(1, &mut rig, 4, 5);
    assert!(rig.out().owners.is_empty());
    rig.owner(ToEdge::Reset);
    rig.pass(200);
    let attach = rig.out().attaches().remove(0);
    assert_eq!(
        attach.given,
        [(Origin(4), 5), (Origin(6), 9)].into_iter().collect()
    );
    assert_eq!(attach.acked, attach.given);
    assert_eq!((rig.edge.stats().acks_ignored, rig.edge.stats().repeated), (1, 1));
}

#[test]
fn a_damaged_delivery_ends_its_session() {
    let mut rig = Rig::standard();
    let session = rig.login(1, "alice");
    let mut bad = delivery(session, 1, 1);
    bad.op = bad.op.slice(..5);
    rig.owner(ToEdge::Deliver(vec![bad, delivery(session, 1, 2)]));
    let out = rig.out();
    assert_eq!(out.closed, [(ConnId(1), Code::Internal)].into());
    assert_eq!((rig.edge.stats().damaged, rig.edge.stats().deliveries), (1, 0));
}

#[test]
fn bye_and_a_lost_connection_flush_acknowledgements_and_detach() {
    let mut rig = Rig::standard();
    for conn in [1, 2] {
        let session = rig.login(conn, "alice");
        rig.owner(ToEdge::Deliver(vec![delivery(session, 4, 1)]));
        rig.send(conn, 1, 1, "bob");
        rig.out();
        ack(conn, &mut rig, 4, 1);
        if conn == 1 {
            rig.frame(conn, ClientFrame::Bye);
        } else {
            rig.edge.handle_closed(ConnId(conn), rig.now);
        }
        let out = rig.out();
        assert_eq!(out.kinds(), ["ack", "detach"]);
        assert!(out.frames.is_empty());
        assert_eq!(
            out.closed.get(&ConnId(1)).copied(),
            (conn == 1).then_some(GOODBYE)
        );
    }
    rig.edge.handle_closed(ConnId(1), rig.now);
    rig.pass(10);
    assert_empty(&rig.edge);
}

#[test]
fn a_probe_asks_the_client() {
    let mut rig = Rig::standard();
    let session = rig.login(1, "alice");
    let probed = |out: Out| {
        out.each(|body| match body {
            ToOwner::Probed { alive, .. } => vec![*alive],
            _ => vec![],
        })
    };
    rig.owner(ToEdge::Probe { session });
    let out = rig.out();
    let [ServerFrame::Probe { nonce }] = out.of(1) else {
        panic!("{out:?}")
    };
    rig.frame(1, ClientFrame::ProbeReply(nonce + 1));
    assert!(rig.out().owners.is_empty());
    rig.frame(1, ClientFrame::ProbeReply(*nonce));
    rig.frame(1, ClientFrame::ProbeReply(*nonce));
    assert_eq!(probed(rig.out()), [true]);
    rig.owner(ToEdge::Probe { session });
    rig.pass(1_999);
    assert_eq!(probed(rig.out()), [] as [bool; 0]);
    rig.pass(1);
    assert_eq!(probed(rig.out()), [false]);
}

#[test]
fn status_changes_are_coalesced_and_stay_with_the_session() {
    let mut rig = Rig::standard();
    rig.login(1, "alice");
    for text in ["a", "b"] {
        let text = text.to_owned();
        let status = Status::Dnd;
        rig.frame(1, ClientFrame::SetStatus { status, text });
    }
    let changes = rig.out().each(|body| match body {
        ToOwner::SetStatus(some) => some.clone(),
        _ => vec![],
    });
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].counter, changes[0].text.as_str()), (2, "b"));
    rig.pass(500);
    rig.owner(ToEdge::Reset);
    let attach = rig.out().attaches().remove(0);
    assert_eq!(
        (attach.counter, attach.status, attach.text.as_str()),
        (2, Status::Dnd, "b")
    );
}

#[test]
fn watches_are_aggregated_cached_and_limited() {
    let limits = CoreLimits {
        watches: 2,
        ..CoreLimits::default()
    };
    let mut rig = Rig::new(limits);
    rig.login(1, "alice");
    rig.login(2, "bob");
    rig.frame(1, ClientFrame::Watch(vec![user("x"), user("x"), user("y")]));
    assert_eq!(rig.out().kinds(), ["watch"]);
    let event = presence("x", 5);
    rig.owner(ToEdge::Presence(vec![event.clone(), presence("nobody asked", 5)]));
    assert_eq!(rig.out().of(1), [ServerFrame::Presence(Box::new(event.clone()))]);
    rig.frame(2, ClientFrame::Watch(vec![user("x")]));
    let out = rig.out();
    assert!(out.owners.is_empty());
    assert_eq!(out.of(2), [ServerFrame::Presence(Box::new(event.clone()))]);

    rig.pass(1_000);
    rig.owner(ToEdge::Reset);
    let out = rig.out();
    assert!(out.kinds().contains(&"watch"));
    rig.lane = out.owners[0].1;
    rig.owner(ToEdge::Presence(vec![event]));
    assert!(rig.out().frames.is_empty(), "what is known is not told again");
    rig.owner(ToEdge::Presence(vec![presence("x", 6)]));
    assert_eq!(rig.out().frames.len(), 2);

    rig.frame(1, ClientFrame::Unwatch(vec![user("x"), user("z")]));
    assert!(rig.out().owners.is_empty());
    rig.frame(1, ClientFrame::Watch(vec![user("z")]));
    rig.frame(1, ClientFrame::Watch(vec![user("one too many")]));
    let out = rig.out();
    assert_eq!(out.closed, [(ConnId(1), Code::TooManyWatches)].into());
    rig.edge.handle_closed(ConnId(1), rig.now);
    rig.edge.handle_closed(ConnId(2), rig.now);
    assert_eq!(rig.out().kinds(), ["unwatch", "detach"]);
    assert_empty(&rig.edge);
}

#[test]
fn a_watch_that_returns_in_one_flush_asks_for_the_state_again() {
    let mut rig = Rig::standard();
    rig.login(1, "alice");
    rig.frame(1, ClientFrame::Watch(vec![user("x")]));
    rig.out();
    rig.frame(1, ClientFrame::Unwatch(vec![user("x")]));
    rig.frame(1, ClientFrame::Watch(vec![user("x")]));
    assert_eq!(rig.out().kinds(), ["unwatch", "watch"]);
    rig.frame(1, ClientFrame::Watch(vec![user("y")]));
    rig.frame(1, ClientFrame::Unwatch(vec![user("y")]));
    assert_eq!(rig.out().kinds(), ["unwatch"]);
}

#[test]
fn moved_shards_go_to_their_new_owner_and_the_old_one_is_ignored() {
    let mut rig = Rig::standard();
    rig.edge.handle_reachable(&node("two"), true, rig.now);
    let session = rig.login(1, "alice");
    let (to, _, _) = same_and_other_shard();
    rig.login(2, &to);
    rig.send(1, 1, 1, &to);
    rig.send(1, 2, 2, &to);
    let first = rig.out().deposits();
    let shard = SHARDING.of_user(&user("alice"));
    let moves = move |at: ShardId| at == shard || at == SHARDING.of_user(&user(&to));
    rig.edge
        .handle_placement(&placed(("one", 1), ("two", 1), moves), rig.now);
    let out = rig.out();
    assert!(
        out.owners
            .iter()
            .all(|(to, lane, _)| *to == addr("two") && *lane > rig.lane)
    );
    assert_eq!(out.kinds(), ["open", "attach", "synced", "deposit"]);
    assert_eq!(out.tries(), [(1, 2), (2, 2)]);
    rig.owner(ToEdge::Deliver(vec![delivery(session, 1, 1)]));
    rig.answer(&first[1], refuse(Code::InboxFull));
    assert!(rig.out().frames.is_empty());
    rig.answer(&first[0], accept());
    assert_eq!(rig.out().accepted(1), [1], "what is durable stays so");
    let (old, new) = (rig.lane, out.owners[0].1);
    rig.edge.handle_placement(&all_on("one", 1), rig.now);
    let out = rig.out();
    assert!(
        out.owners
            .iter()
            .all(|(to, lane, _)| *to == addr("one") && *lane > new && *lane > old)
    );
    assert_eq!(out.kinds(), ["open", "attach", "synced", "deposit"]);
    assert_eq!(out.tries(), [(2, 3)]);
    assert_eq!((rig.edge.stats().lanes, rig.edge.stats().lanes_lost), (1, 2));
}

#[test]
fn a_new_generation_of_the_owner_is_a_new_lane() {
    let mut rig = Rig::standard();
    rig.login(1, "alice");
    rig.edge.handle_placement(&all_on("one", 2), rig.now);
    let out = rig.out();
    assert_eq!(out.kinds(), ["open", "attach", "synced"]);
    rig.owner(ToEdge::Reset);
    assert_eq!((rig.out().owners.len(), rig.edge.stats().stale), (0, 1));
    rig.edge.handle_placement(&all_on("one", 2), rig.now);
    assert!(rig.out().owners.is_empty());
}

#[test]
fn not_owner_closes_its_shards_alone_and_later_begins_a_new_lane() {
    let mut rig = Rig::standard();
    let (to, _, other) = same_and_other_shard();
    rig.login(1, &to);
    rig.send(1, 1, 1, &to);
    rig.send(1, 2, 2, &other);
    let sent = rig.out().deposits();
    let closed = vec![sent[0].shard];
    rig.owner(ToEdge::NotOwner(closed.clone()));
    rig.owner(ToEdge::NotOwner(closed.clone()));
    rig.send(1, 3, 3, &to);
    rig.answer(&sent[1], accept());
    assert_eq!(rig.out().accepted(1), [2]);
    let mut lanes = vec![rig.lane];
    for wait in [100, 200, 400] {
        rig.pass(wait - 1);
        assert!(rig.out().owners.is_empty());
        rig.pass(1);
        let out = rig.out();
        assert_eq!(out.kinds(), ["open", "attach", "synced", "deposit"]);
        rig.lane = out.owners[0].1;
        lanes.push(rig.lane);
        assert_eq!(out.tries(), [(1, lanes.len() as u32), (3, lanes.len() as u32)]);
        rig.owner(ToEdge::NotOwner(closed.clone()));
    }
    assert!(lanes.is_sorted() && lanes.len() == 4);
    rig.pass(800);
    rig.lane = rig.out().owners[0].1;
    rig.attached(SessionId(101), 9);
    rig.pass(1_000);
    rig.owner(ToEdge::NotOwner(closed));
    rig.pass(100);
    assert_eq!(rig.out().kinds(), ["open", "attach", "synced", "deposit"]);
}

#[test]
fn a_silent_lane_is_replaced() {
    let mut rig = Rig::standard();
    rig.login(1, "alice");
    rig.pass(60_000);
    assert!(rig.out().owners.is_empty());
    rig.send(1, 1, 1, "bob");
    rig.out();
    rig.pass(4_999);
    assert!(rig.out().owners.is_empty());
    rig.pass(1);
    let out = rig.out();
    assert_eq!(out.kinds(), ["open", "attach", "synced", "deposit"]);
    assert_eq!(out.tries(), [(1, 2)]);
}

#[test]
fn resets_one_after_another_are_answered_slowly() {
    let mut rig = Rig::standard();
    rig.owner(ToEdge::Reset);
    assert!(rig.out().owners.is_empty());
    rig.pass(100);
    let out = rig.out();
    assert_eq!(out.kinds(), ["open", "synced"]);
    assert_eq!(rig.edge.stats().lanes_opened, 2);
}

#[test]
fn a_drain_tells_sessions_step_by_step_and_refuses_new_ones() {
    let mut rig = Rig::standard();
    for conn in 1..=70 {
        rig.login(conn, &format!("u{conn}"));
    }
    rig.hello(71, "late");
    rig.edge.handle_drain(rig.now);
    let out = rig.out();
    assert_eq!(out.frames.len(), 64);
    assert!(matches!(
        out.of(1),
        [
            ServerFrame::GoAway {
                code: Code::Draining,
                ..
            },
            ServerFrame::Probe { .. }
        ]
    ));
    rig.hello(99, "new");
    assert_eq!(rig.out().closed, [(ConnId(99), Code::Draining)].into());
    rig.pass(50);
    let out = rig.out();
    assert_eq!(
        (out.frames.len(), out.closed),
        (7, [(ConnId(71), Code::Draining)].into())
    );
    rig.pass(1_000);
    assert!(rig.out().frames.is_empty());
}

#[test]
fn a_drain_waits_for_clients_that_answer_and_not_for_those_that_are_gone() {
    let mut rig = Rig::standard();
    for (conn, name) in [(1, "gone"), (2, "here"), (3, "sends")] {
        rig.login(conn, name);
    }
    rig.edge.handle_drain(rig.now);
    let out = rig.out();
    let [_, ServerFrame::Probe { nonce }] = out.of(2) else {
        panic!("{out:?}");
    };
    rig.pass(1_000);
    rig.frame(2, ClientFrame::ProbeReply(*nonce));
    rig.send(3, 1, 1, "bob");
    rig.pass(999);
    assert!(rig.out().closed.is_empty());
    rig.pass(1);
    let out = rig.out();
    assert_eq!(out.closed, [(ConnId(1), Code::Draining)].into());
    assert_eq!(out.detached(), [SessionId(101)]);
    // The others may take the time that the node gives them.
    rig.pass(8_000);
    assert!(rig.out().closed.is_empty());
    assert_eq!(rig.edge.stats().sessions, 2);
}

#[test]
fn an_edge_says_which_shards_it_cannot_serve_and_why() {
    let mut rig = Rig::standard();
    let all = SHARDING.count;
    assert_eq!(
        (rig.edge.unserved().count(), rig.edge.unserved().shards),
        (0, all)
    );
    let version = rig.edge.routes_version();
    rig.owner(ToEdge::NotOwner(vec![ShardId(1)]));
    assert!(rig.edge.routes_version() > version);
    let unserved = rig.edge.unserved();
    assert_eq!(unserved.refused, [(node("one"), 1)].into());
    assert!(
        unserved.to_string().contains("here/one does not serve them yet"),
        "{unserved}"
    );
    let version = rig.edge.routes_version();
    rig.edge.handle_reachable(&node("one"), false, rig.now);
    assert!(rig.edge.routes_version() > version);
    let unserved = rig.edge.unserved();
    assert_eq!(
        (unserved.count(), &unserved.unreachable),
        (all, &[(node("one"), all)].into())
    );
    assert!(
        unserved.to_string().contains("here/one cannot be reached"),
        "{unserved}"
    );
    let version = rig.edge.routes_version();
    rig.edge.handle_placement(&BTreeMap::new(), rig.now);
    assert!(rig.edge.routes_version() > version);
    let unserved = rig.edge.unserved();
    assert_eq!((unserved.count(), unserved.ownerless), (all, all));
    rig.edge.handle_placement(&all_on("one", 1), rig.now);
    let version = rig.edge.routes_version();
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    assert!(rig.edge.routes_version() > version);
    assert_eq!(rig.edge.unserved().count(), 0);
}
