//! The machine by hand, step by step; `world` runs it at random against two regions that enforce the protocol.

mod world;

use bytes::Bytes;
use rand_core::SeedableRng;

use super::*;
use crate::core::ids::{Origin, SessionId};
use crate::core::op::{Envelope, LoggedOp, Op};
use crate::core::time::Hlc;
use crate::core::vector::Vector;
use crate::core::wire::{Accepted, ClientLimits, Durability, Rejected};

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn region(name: &str, endpoints: &[&str]) -> RegionEndpoints {
    RegionEndpoints {
        region: RegionId::new(name).unwrap(),
        endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(),
    }
}

fn config() -> MachineConfig {
    MachineConfig {
        token: "token".into(),
        renews_token: false,
        device: DeviceId::new("phone").unwrap(),
        receives: true,
        endpoints: vec![region("a", &["a1", "a2"]), region("b", &["b1"])],
        region: None,
        status: Status::Online,
        status_text: String::new(),
        agent: "test".into(),
        tuning: Tuning::default(),
    }
}

fn limits() -> ClientLimits {
    ClientLimits {
        max_body: 100,
        sends_in_flight: 8,
        watches: 3,
        idle_seconds: 300,
    }
}

fn message(at: Coord, from: &str, id: MessageId, body: &[u8]) -> ServerFrame {
    let envelope = Envelope {
        to: user("me"),
        from: user(from),
        from_device: DeviceId::new("d").unwrap(),
        connect_epoch: 1,
        session: SessionId(1),
        session_seq: at.seq,
        id,
        kind: 0,
        expires_ms: 0,
        trace: vec![],
    };
    let op = LoggedOp::encode(
        &Op::Append(envelope, Bytes::copy_from_slice(body)),
        Hlc::default(),
    );
    ServerFrame::Deliver { at, op }
}

/// A machine and what it put out.
struct Rig {
    machine: Machine,
    now: Now,
}

impl Rig {
    fn new(config: MachineConfig) -> Self {
        let now = Now {
            mono: Mono(0),
            wall_ms: 1_000_000_000_000,
        };
        let machine = Machine::new(config, SavedState::default(), ChaCha8Rng::seed_from_u64(1));
        Self { machine, now }
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.machine.handle(input, self.now);
        self.outputs()
    }

    fn frame(&mut self, frame: ServerFrame) -> Vec<Output> {
        self.input(Input::Frame(frame))
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.machine.poll_output())
            .filter(|output| *output != Output::SaveState)
            .collect()
    }

    fn sends(&mut self) -> Vec<ClientFrame> {
        std::iter::from_fn(|| self.machine.poll_send()).collect()
    }

    /// To the next timeout; how long that was.
    fn wait(&mut self) -> (Duration, Vec<Output>) {
        let at = self.machine.poll_timeout().expect("a timeout").max(self.now.mono);
        let passed = at.since(self.now.mono);
        self.now.mono = at;
        self.machine.handle_timeout(self.now);
        (passed, self.outputs())
    }

    /// Connects at the first timeout; the outputs of `Welcome`.
    fn live(&mut self) -> Vec<Output> {
        self.wait();
        let attempt = self.machine.attempt;
        assert!(matches!(
            &self.input(Input::Connected { attempt })[..],
            [Output::Frame(ClientFrame::Hello(_))]
        ));
        self.welcome(Vector::new())
    }

    fn welcome(&mut self, stable: Vector) -> Vec<Output> {
        self.welcome_at("a", stable)
    }

    fn welcome_at(&mut self, at: &str, stable: Vector) -> Vec<Output> {
        self.frame(ServerFrame::Welcome(Box::new(Welcome {
            session: SessionId(5),
            connect_epoch: 9,
            server_ms: 1_700_000_000_000,
            region: RegionId::new(at).unwrap(),
            node: "edge-1".into(),
            limits: limits(),
            regions: vec![region("a", &["a1", "a2"])],
            stable,
        })))
    }
}

fn at(seq: u64) -> Coord {
    Coord {
        origin: Origin(1),
        seq,
    }
}

fn disconnected(outputs: &[Output]) -> &DisconnectReason {
    let event = outputs.iter().find_map(|output| match output {
        Output::Event(ClientEvent::Disconnected { reason, .. }) => Some(reason),
        _ => None,
    });
    event.unwrap_or_else(|| panic!("no disconnect in {outputs:?}"))
}

fn closed(outputs: &[Output]) -> &CloseCause {
    match outputs.last() {
        Some(Output::Event(ClientEvent::Closed(cause))) => cause,
        _ => panic!("not closed: {outputs:?}"),
    }
}

#[test]
fn ids_carry_the_servers_time_and_stay() {
    let mut rig = Rig::new(config());
    let early = rig
        .machine
        .send(OutgoingMessage::new(user("bob"), "1"), rig.now)
        .unwrap();
    let own: MessageId = "01890000-0000-7000-8000-000000000001".parse().unwrap();
    let given = OutgoingMessage {
        id: Some(own),
        ..OutgoingMessage::new(user("bob"), "2")
    };
    let given = rig.machine.send(given, rig.now).unwrap();
    rig.live();
    // The own clock was 22 years off: the id that was made by it is made anew, before it went out.
    assert_eq!(rig.machine.id(early).unwrap().unix_ms(), Some(1_700_000_000_000));
    assert_eq!(rig.machine.id(given), Some(own));
    rig.now.mono = rig.now.mono + Duration::from_secs(3);
    let later = rig
        .machine
        .send(OutgoingMessage::new(user("bob"), "3"), rig.now)
        .unwrap();
    assert_eq!(rig.machine.id(later).unwrap().unix_ms(), Some(1_700_000_003_000));
    let ids: Vec<_> = rig
        .sends()
        .into_iter()
        .map(|f| match f {
            ClientFrame::Send(send) => send.id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [early, given, later].map(|t| rig.machine.id(t).unwrap()));
}

#[test]
fn what_cannot_be_sent_is_refused_with_its_limit() {
    let mut config = config();
    config.tuning.outbox_messages = 2;
    let mut rig = Rig::new(config);
    rig.live();
    let mut send = |message| rig.machine.send(message, rig.now);
    let body = |len: usize| OutgoingMessage::new(user("bob"), vec![0; len]);
    assert_eq!(send(body(101)), Err(SendError::TooLarge { len: 101, max: 100 }));
    assert!(send(body(100)).is_ok());
    let trace = OutgoingMessage {
        trace: vec![0; MAX_TRACE + 1],
        ..body(1)
    };
    assert!(matches!(send(trace), Err(SendError::TraceTooLong { .. })));
    let bad = OutgoingMessage {
        id: Some(MessageId([0; 16])),
        ..body(1)
    };
    assert!(matches!(send(bad), Err(SendError::BadId(_))));
    assert!(send(body(1)).is_ok());
    assert!(matches!(
        send(body(1)),
        Err(SendError::OutboxFull { messages: 2, .. })
    ));
    rig.input(Input::Close);
    assert_eq!(
        rig.machine.send(body(1), rig.now),
        Err(SendError::Closed(CloseCause::Asked))
    );
}

#[test]
fn answers_reach_the_application_with_ticket_and_id() {
    let mut rig = Rig::new(config());
    rig.live();
    let ticket = rig
        .machine
        .send(OutgoingMessage::new(user("bob"), "1"), rig.now)
        .unwrap();
    let second = rig
        .machine
        .send(OutgoingMessage::new(user("bob"), "2"), rig.now)
        .unwrap();
    let id = rig.machine.id(ticket).unwrap();
    let second_id = rig.machine.id(second).unwrap();
    assert_eq!(rig.sends().len(), 2);
    let accepted = Accepted {
        id,
        session_seq: 1,
        at: at(4),
        duplicate: false,
        durability: Durability::Region,
    };
    let event = ClientEvent::Accepted {
        ticket,
        id,
        at: at(4),
        duplicate: false,
        durability: Durability::Region,
    };
    assert_eq!(
        rig.frame(ServerFrame::Accepted(accepted.clone())),
        [Output::Event(event)]
    );
    assert_eq!(rig.frame(ServerFrame::Accepted(accepted)), []);
    let rejected = Rejected {
        id: second_id,
        session_seq: 2,
        code: Code::InboxFull,
        detail: "full".into(),
        server_ms: 0,
    };
    let event = ClientEvent::Rejected {
        ticket: second,
        id: second_id,
        code: Code::InboxFull,
        detail: "full".into(),
    };
    assert_eq!(rig.frame(ServerFrame::Rejected(rejected)), [Output::Event(event)]);
    assert_eq!(rig.machine.outbox(), (0, 0));
}

#[test]
fn acknowledgements_wait_for_the_application_and_go_together() {
    let mut rig = Rig::new(config());
    rig.live();
    for seq in 1..=3 {
        let frame = message(at(seq), "bob", MessageId::v7(seq, [0; 10]), b"x");
        assert!(matches!(
            &rig.frame(frame)[..],
            [Output::Event(ClientEvent::Message(_))]
        ));
    }
    assert_eq!(rig.input(Input::Consumed(at(1))), []);
    assert_eq!(rig.input(Input::Consumed(at(2))), []);
    let (passed, outputs) = rig.wait();
    assert_eq!(passed, config().tuning.ack_delay);
    assert_eq!(outputs, [Output::Frame(ClientFrame::Ack(vec![at(2)]))]);
    rig.input(Input::Consumed(at(3)));
    let outputs = rig.input(Input::Close);
    assert_eq!(
        outputs[..2],
        [
            Output::Frame(ClientFrame::Ack(vec![at(3)])),
            Output::Frame(ClientFrame::Bye)
        ]
    );
    assert_eq!(closed(&outputs), &CloseCause::Asked);
}

#[test]
fn acknowledgements_that_gather_go_with_what_is_sent() {
    let mut rig = Rig::new(config());
    rig.live();
    for seq in 1..=2 {
        rig.frame(message(at(seq), "bob", MessageId::v7(seq, [0; 10]), b"x"));
    }
    assert_eq!(rig.input(Input::Consumed(at(1))), []);
    assert_eq!(rig.machine.poll_send(), None, "nothing is sent, so they wait");
    rig.machine
        .send(OutgoingMessage::new(user("bob"), "1"), rig.now)
        .unwrap();
    let sends = rig.sends();
    assert!(matches!(sends[0], ClientFrame::Send(_)));
    assert_eq!(sends[1..], [ClientFrame::Ack(vec![at(1)])]);
    assert_eq!(rig.input(Input::Consumed(at(2))), []);
    let (passed, outputs) = rig.wait();
    assert_eq!(passed, config().tuning.ack_delay);
    assert_eq!(outputs, [Output::Frame(ClientFrame::Ack(vec![at(2)]))]);
}

#[test]
fn a_half_window_of_consumed_messages_is_acknowledged_at_once() {
    let mut rig = Rig::new(config());
    rig.live();
    let every = config().tuning.ack_every as u64;
    for seq in 1..=every {
        rig.frame(message(at(seq), "bob", MessageId::v7(seq, [0; 10]), b"x"));
    }
    assert_eq!(
        rig.input(Input::ConsumedThrough(at(every))),
        [Output::Frame(ClientFrame::Ack(vec![at(every)]))]
    );
}

#[test]
fn silence_is_asked_about_and_then_given_up() {
    let mut rig = Rig::new(config());
    rig.live();
    let tuning = config().tuning;
    let (passed, outputs) = rig.wait();
    assert_eq!(passed, tuning.ping_every);
    assert_eq!(outputs, [Output::Frame(ClientFrame::Ping(1))]);
    let server_ms = 1_800_000_000_000;
    rig.frame(ServerFrame::Pong { nonce: 1, server_ms });
    let ticket = rig
        .machine
        .send(OutgoingMessage::new(user("bob"), "1"), rig.now)
        .unwrap();
    assert_eq!(rig.machine.id(ticket).unwrap().unix_ms(), Some(server_ms));
    let (_, outputs) = rig.wait();
    assert_eq!(outputs, [Output::Frame(ClientFrame::Ping(2))]);
    let (passed, outputs) = rig.wait();
    assert_eq!(passed, tuning.pong_timeout);
    assert_eq!(
        disconnected(&outputs),
        &DisconnectReason::NoPong(tuning.pong_timeout)
    );
    assert!(outputs.contains(&Output::Disconnect {
        attempt: 1,
        flush: false
    }));
}

#[test]
fn a_message_that_stays_unanswered_ends_the_connection() {
    let mut rig = Rig::new(config());
    rig.live();
    rig.machine
        .send(OutgoingMessage::new(user("bob"), "1"), rig.now)
        .unwrap();
    assert_eq!(rig.sends().len(), 1);
    let start = rig.now.mono;
    loop {
        let (_, outputs) = rig.wait();
        if let [Output::Frame(ClientFrame::Ping(nonce))] = outputs[..] {
            rig.frame(ServerFrame::Pong { nonce, server_ms: 1 });
            continue;
        }
        let after = config().tuning.answer_timeout;
        assert_eq!(disconnected(&outputs), &DisconnectReason::NoAnswer(after));
        assert_eq!(rig.now.mono.since(start), after);
        break;
    }
}

#[test]
fn the_last_refusal_is_told_to_who_asks() {
    let mut rig = Rig::new(config());
    rig.live();
    rig.machine
        .send(OutgoingMessage::new(user("bob"), "1"), rig.now)
        .unwrap();
    let sent = rig.sends();
    let [ClientFrame::Send(send)] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!(rig.machine.last_refusal(), None);
    let rejected = Rejected {
        id: send.id,
        session_seq: send.session_seq,
        code: Code::Unknown,
        detail: "the owner last said why".to_owned(),
        server_ms: 1,
    };
    rig.frame(ServerFrame::Rejected(rejected.clone()));
    assert_eq!(rig.machine.last_refusal(), Some(&rejected));
}

#[test]
fn deadlines_hold_for_connecting_and_greeting() {
    let mut rig = Rig::new(config());
    rig.wait();
    let (passed, outputs) = rig.wait();
    assert_eq!(passed, config().tuning.connect_timeout);
    assert!(matches!(
        disconnected(&outputs),
        DisconnectReason::ConnectTimeout(_)
    ));
    assert_eq!(
        rig.input(Input::Connected { attempt: 1 }),
        [],
        "late, of an attempt that was given up"
    );
    rig.wait();
    rig.input(Input::Connected { attempt: 2 });
    let (passed, outputs) = rig.wait();
    assert_eq!(passed, config().tuning.greet_timeout);
    assert!(matches!(
        disconnected(&outputs),
        DisconnectReason::GreetTimeout(_)
    ));
}

#[test]
fn go_away_waits_for_answers_and_then_moves_to_where_it_was_told() {
    let mut rig = Rig::new(config());
    rig.live();
    let ticket = rig
        .machine
        .send(OutgoingMessage::new(user("bob"), "1"), rig.now)
        .unwrap();
    assert_eq!(rig.sends().len(), 1);
    let regions = vec![region("c", &["c1"])];
    let code = Code::Draining;
    assert_eq!(rig.frame(ServerFrame::GoAway { code, regions }), []);
    rig.machine
        .send(OutgoingMessage::new(user("bob"), "2"), rig.now)
        .unwrap();
    assert_eq!(rig.sends(), [], "nothing new goes out");
    let accepted = Accepted {
        id: rig.machine.id(ticket).unwrap(),
        session_seq: 1,
        at: at(4),
        duplicate: false,
        durability: Durability::Region,
    };
    let outputs = rig.frame(ServerFrame::Accepted(accepted));
    assert!(matches!(outputs[0], Output::Event(ClientEvent::Accepted { .. })));
    assert_eq!(outputs[1], Output::Frame(ClientFrame::Bye));
    assert_eq!(
        outputs[2],
        Output::Disconnect {
            attempt: 1,
            flush: true
        }
    );
    assert_eq!(disconnected(&outputs), &DisconnectReason::GoAway(code));
    let (_, outputs) = rig.wait();
    assert!(matches!(&outputs[..], [Output::Connect { target, .. }] if target.endpoint == "c1"));
}

#[test]
fn a_client_that_is_away_says_so_and_goes_home_when_its_region_is_restored() {
    let mut rig = Rig::new(config());
    rig.live();
    // Nobody told it to leave home.
    let restored = |name: &str| ServerFrame::GoAway {
        code: Code::Restored,
        regions: vec![region(name, &["x"])],
    };
    assert_eq!(rig.frame(restored("b")), []);
    let regions = vec![region("b", &["b1"])];
    let code = Code::Draining;
    rig.frame(ServerFrame::GoAway { code, regions });
    let (_, outputs) = rig.wait();
    assert!(matches!(&outputs[..], [Output::Connect { target, .. }] if target.endpoint == "b1"));
    let attempt = 2;
    let outputs = rig.input(Input::Connected { attempt });
    let [Output::Frame(ClientFrame::Hello(hello))] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    assert_eq!(hello.capabilities, AWAY | MOVES_IN_ORDER);
    rig.welcome_at("b", Vector::new());
    // Another region than its own is nothing to it.
    assert_eq!(rig.frame(restored("c")), []);
    let outputs = rig.frame(restored("a"));
    assert_eq!(disconnected(&outputs), &DisconnectReason::GoAway(Code::Restored));
    let (_, outputs) = rig.wait();
    assert!(
        matches!(&outputs[..], [Output::Connect { target, .. }] if target.region.as_str() == "a"),
        "{outputs:?}"
    );
    let outputs = rig.input(Input::Connected { attempt: 3 });
    assert!(
        matches!(&outputs[..], [Output::Frame(ClientFrame::Hello(hello))] if hello.capabilities == MOVES_IN_ORDER),
        "{outputs:?}"
    );
}

#[test]
fn a_client_that_is_turned_away_everywhere_pauses_longer_and_longer() {
    let mut rig = Rig::new(config());
    rig.wait();
    let mut longest = Duration::ZERO;
    for attempt in 1..=8 {
        rig.input(Input::Connected { attempt });
        let (code, regions) = (Code::Draining, vec![region("b", &["b1"])]);
        let outputs = rig.frame(ServerFrame::GoAway { code, regions });
        assert_eq!(disconnected(&outputs), &DisconnectReason::GoAway(code));
        let (passed, _) = rig.wait();
        assert!(attempt > 1 || passed < Duration::from_millis(100), "{passed:?}");
        longest = longest.max(passed);
    }
    assert!(longest > Duration::from_secs(5), "{longest:?}");
}

#[test]
fn codes_decide_whether_it_comes_back() {
    for (code, cause) in [
        (Code::Superseded, Some(CloseCause::Superseded)),
        (Code::Unauthorized, Some(CloseCause::Unauthorized("x".into()))),
        (
            Code::TooManyDevices,
            Some(CloseCause::Refused {
                code: Code::TooManyDevices,
                detail: "x".into(),
            }),
        ),
        (Code::SessionLost, None),
        (Code::Unavailable, None),
        (Code::Other(999), None),
    ] {
        let mut rig = Rig::new(config());
        rig.live();
        let outputs = rig.frame(ServerFrame::Error {
            code,
            detail: "x".into(),
        });
        match cause {
            Some(cause) => {
                assert_eq!(closed(&outputs), &cause);
                assert_eq!(rig.machine.poll_timeout(), None);
            }
            None => {
                assert!(matches!(disconnected(&outputs), DisconnectReason::Server { .. }));
                let (_, outputs) = rig.wait();
                assert!(matches!(&outputs[..], [Output::Connect { .. }]));
            }
        }
    }
}

#[test]
fn a_try_is_saved_before_it_is_made() {
    let mut rig = Rig::new(config());
    rig.wait();
    let attempt = rig.machine.attempt;
    rig.machine.handle(Input::Connected { attempt }, rig.now);
    let outputs: Vec<Output> = std::iter::from_fn(|| rig.machine.poll_output()).collect();
    let [Output::SaveState, Output::Frame(ClientFrame::Hello(hello))] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    // A client that ends here and starts again says more than this one did.
    assert_eq!(rig.machine.state().connect_epoch, hello.connect_epoch + 1);
}

#[test]
fn a_token_that_can_be_renewed_is_asked_for_once() {
    let mut rig = Rig::new(MachineConfig {
        renews_token: true,
        ..config()
    });
    rig.live();
    let refuse = || ServerFrame::Error {
        code: Code::Unauthorized,
        detail: "expired".into(),
    };
    let outputs = rig.frame(refuse());
    assert_eq!(outputs.last(), Some(&Output::Event(ClientEvent::TokenNeeded)));
    assert_eq!(rig.machine.poll_timeout(), None);
    rig.input(Input::Token("new".into()));
    rig.wait();
    let attempt = rig.machine.attempt;
    let outputs = rig.input(Input::Connected { attempt });
    assert!(
        matches!(&outputs[..], [Output::Frame(ClientFrame::Hello(hello))] if hello.token == "new" && hello.connect_epoch == 9)
    );
    assert!(matches!(
        closed(&rig.frame(refuse())),
        CloseCause::Unauthorized(_)
    ));
}

#[test]
fn watches_stay_within_the_limit_and_come_again_after_a_reconnect() {
    let users = |names: &[&str]| names.iter().map(|n| user(n)).collect::<Vec<_>>();
    let watch = |names: &[&str]| Output::Frame(ClientFrame::Watch(users(names)));
    let warning = |wanted| Output::Event(ClientEvent::TooManyWatches { wanted, limit: 3 });
    let mut rig = Rig::new(config());
    assert_eq!(rig.input(Input::Watch(users(&["a", "b"]))), []);
    assert!(rig.live().contains(&watch(&["a", "b"])));
    assert_eq!(rig.input(Input::Watch(users(&["b", "c"]))), [watch(&["c"])]);
    assert_eq!(rig.input(Input::Watch(users(&["d"]))), [warning(4)]);
    assert_eq!(
        rig.input(Input::Unwatch(users(&["a", "x"]))),
        [Output::Frame(ClientFrame::Unwatch(users(&["a"]))), watch(&["d"])]
    );
    rig.input(Input::Disconnected {
        attempt: 1,
        reason: "x".into(),
    });
    assert!(rig.live().contains(&watch(&["b", "c", "d"])));
}

#[test]
fn the_first_status_is_in_hello_and_changes_are_told() {
    let mut rig = Rig::new(config());
    rig.live();
    let text = "é".repeat(MAX_STATUS_TEXT);
    let outputs = rig.input(Input::SetStatus {
        status: Status::Away,
        text,
    });
    let cut = "é".repeat(MAX_STATUS_TEXT / 2);
    assert_eq!(
        outputs,
        [Output::Frame(ClientFrame::SetStatus {
            status: Status::Away,
            text: cut.clone()
        })]
    );
    rig.input(Input::Disconnected {
        attempt: 1,
        reason: "x".into(),
    });
    rig.wait();
    let outputs = rig.input(Input::Connected { attempt: 2 });
    assert!(
        matches!(&outputs[..], [Output::Frame(ClientFrame::Hello(hello))] if hello.status == Status::Away && hello.text == cut)
    );
}

#[test]
fn an_application_that_consumes_nothing_is_stopped_at_the_limit() {
    let mut config = config();
    config.tuning.unconsumed = 2;
    let mut rig = Rig::new(config);
    rig.live();
    for seq in 1..=2 {
        rig.frame(message(at(seq), "bob", MessageId::v7(seq, [0; 10]), b"x"));
    }
    let outputs = rig.frame(message(at(3), "bob", MessageId::v7(3, [0; 10]), b"x"));
    assert_eq!(closed(&outputs), &CloseCause::Unconsumed(3));
}

#[test]
fn frames_out_of_turn_end_the_connection() {
    let mut rig = Rig::new(config());
    rig.wait();
    rig.input(Input::Connected { attempt: 1 });
    let outputs = rig.frame(message(at(1), "bob", MessageId::v7(1, [0; 10]), b"x"));
    assert!(matches!(disconnected(&outputs), DisconnectReason::Protocol(_)));
    let mut rig = Rig::new(config());
    rig.live();
    assert!(matches!(
        disconnected(&rig.welcome(Vector::new())),
        DisconnectReason::Protocol(_)
    ));
}

#[test]
fn probes_are_answered_at_once() {
    let mut rig = Rig::new(config());
    rig.live();
    assert_eq!(
        rig.frame(ServerFrame::Probe { nonce: 7 }),
        [Output::Frame(ClientFrame::ProbeReply(7))]
    );
}

#[test]
fn no_endpoint_is_said_at_once() {
    let mut rig = Rig::new(MachineConfig {
        endpoints: vec![region("a", &[])],
        ..config()
    });
    assert_eq!(closed(&rig.outputs()), &CloseCause::NoEndpoint);
}
