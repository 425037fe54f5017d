//! The owner with a scripted store and edge.

mod copies;
mod deposits;
mod forget;
mod holders;
mod holes;
mod moved;
mod recovery;
mod sweep;

use bytes::Bytes;

use super::*;
use crate::core::ids::Origin;
use crate::core::ids::{Coord, MessageId, NodeName};
use crate::core::msg::{Attach, Deposit, Leave, Verdict};
use crate::core::op::{Envelope, LogEntry, LoggedOp};
use crate::core::state::{ShardRow, UserRow};
use crate::core::storage::{InboxEntry, InboxPage};
use crate::core::time::Hlc;
use crate::core::wire::Status;

const SHARD: ShardId = ShardId(0);
const ORIGIN: Origin = Origin(7);
const NOW: Now = Now {
    mono: Mono(0),
    wall_ms: 1_700_000_000_000,
};

fn addr(node: &str) -> Addr {
    let node = NodeKey {
        region: RegionId::new("a").unwrap(),
        node: NodeName::new(node).unwrap(),
    };
    Addr { node, partition: 0 }
}

fn envelope(seq: u64) -> Envelope {
    Envelope {
        to: UserId::new("bob").unwrap(),
        from: UserId::new("alice").unwrap(),
        from_device: DeviceId::new("phone").unwrap(),
        connect_epoch: 1,
        session: SessionId(1),
        session_seq: seq,
        id: MessageId::v7(NOW.wall_ms, [seq as u8; 10]),
        kind: 0,
        expires_ms: 0,
        trace: Vec::new(),
    }
}

fn message(seq: u64) -> LoggedOp {
    timed(seq, 0)
}

fn timed(seq: u64, expires_ms: u64) -> LoggedOp {
    let envelope = Envelope {
        expires_ms,
        ..envelope(seq)
    };
    LoggedOp::encode(&Op::Append(envelope, Bytes::new()), Hlc { ms: seq, logical: 0 })
}

/// The session of Bob's phone, on a lane of its edge.
fn attach(lane: u64) -> Attach {
    Attach {
        shard: SHARD,
        user: UserId::new("bob").unwrap(),
        device: DeviceId::new("phone").unwrap(),
        receives: true,
        session: SessionId(9),
        claim: Vector::new(),
        given: Vector::new(),
        acked: Vector::new(),
        connect_epoch: lane - 1,
        hello_epoch: 0,
        memory: 1,
        welcomed: lane > 1,
        since_ms: 1,
        status: Status::Online,
        text: String::new(),
        counter: 0,
        store: Origin(0),
        after: Vector::new(),
    }
}

struct Script {
    owner: Owner,
    given: Vec<u64>,
    ended: Vec<(SessionId, Code)>,
    asked: Vec<SessionId>,
}

impl Script {
    fn new() -> Self {
        Self::limited(|_| {})
    }

    fn limited(change: impl FnOnce(&mut CoreLimits)) -> Self {
        let mut limits = CoreLimits::default();
        change(&mut limits);
        let config = OwnerConfig {
            durability: DurabilityPolicy::Region,
            me: addr("core"),
            sharding: Sharding { count: 1, seed: 0 },
            holders: BTreeSet::from([RegionId::new("a").unwrap()]),
            limits,
        };
        let mut script = Self {
            owner: Owner::new(config, NOW),
            given: Vec::new(),
            ended: Vec::new(),
            asked: Vec::new(),
        };
        script.owner.handle_placement(BTreeSet::from([SHARD]), NOW);
        script.run();
        assert!(script.owner.all_active());
        script
    }

    /// Answers all that is asked, but for pages of inboxes, which are given back.
    fn run(&mut self) -> Vec<Question> {
        let mut pages = Vec::new();
        while let Some(output) = self.owner.poll_output() {
            match output {
                OwnerOutput::Commit(StoreOp::Bump { .. }, tag) => {
                    self.owner
                        .handle_outcome(tag, Ok(Outcome::Bumped { epoch: Epoch(1) }), NOW);
                }
                OwnerOutput::Commit(_, tag) => {
                    self.owner
                        .handle_outcome(tag, Ok(Outcome::Done { more: false }), NOW);
                }
                OwnerOutput::Read(question @ Question::Head(..)) => {
                    let row = ReadReply::Shard(Box::<ShardRow>::default());
                    self.owner.handle_answer(question, Ok(row), NOW);
                }
                OwnerOutput::Read(question @ Question::User(..)) => {
                    let row = ReadReply::User(Box::<UserRow>::default());
                    self.owner.handle_answer(question, Ok(row), NOW);
                }
                OwnerOutput::Read(question @ Question::Sweep(..)) => {
                    let users = ReadReply::Users(Vec::new());
                    self.owner.handle_answer(question, Ok(users), NOW);
                }
                OwnerOutput::Read(question) => pages.push(question),
                OwnerOutput::ToEdge {
                    body: ToEdge::Deliver(deliveries),
                    ..
                } => {
                    self.given
                        .extend(deliveries.iter().map(|delivery| delivery.at.seq));
                }
                OwnerOutput::ToEdge {
                    body: ToEdge::Ended { session, code, .. },
                    ..
                } => self.ended.push((session, code)),
                OwnerOutput::ToEdge {
                    body: ToEdge::Probe { session },
                    ..
                } => self.asked.push(session),
                _ => {}
            }
        }
        pages
    }

    /// Two sessions of Bob's phone: what the edge of the first is told when the second comes.
    fn beaten(first: Attach, second: Attach) -> Code {
        let (first, mut script) = Self::contest(first, second);
        assert!(script.asked.is_empty());
        script.only_end_of(first)
    }

    /// The same where nobody can say which is the older one: only if the second's client is there it is for good.
    fn beaten_if_there(first: &Attach, second: &Attach) {
        let expected = [(true, Code::Superseded), (false, Code::Unavailable)];
        for (alive, code) in expected {
            let (first, mut script) = Self::contest(first.clone(), second.clone());
            assert_eq!(
                (&script.asked[..], &script.ended[..]),
                (&[second.session][..], &[][..])
            );
            let (session, user) = (second.session, second.user.clone());
            script.say(1, ToOwner::Probed { session, user, alive });
            script.ended.retain(|(session, _)| *session == first);
            assert_eq!(script.only_end_of(first), code);
        }
    }

    fn contest(first: Attach, second: Attach) -> (SessionId, Self) {
        let mut script = Script::new();
        script.open(1);
        let session = first.session;
        for attach in [first, second] {
            script.say(1, ToOwner::Attach(vec![attach]));
        }
        (session, script)
    }

    fn only_end_of(&mut self, first: SessionId) -> Code {
        match self.ended[..] {
            [(session, code)] if session == first => code,
            _ => panic!("one end was expected, of the first: {:?}", self.ended),
        }
    }

    /// Bob's session is attached on a new lane.
    fn attach(&mut self, lane: u64) -> Vec<Question> {
        self.open(lane);
        self.say_attach(lane);
        self.run()
    }

    fn open(&mut self, lane: u64) {
        let edge = addr("edge");
        self.owner.handle_edge(
            &edge,
            lane,
            ToOwner::Open {
                generation: Generation(1),
            },
            NOW,
        );
    }

    fn say_attach(&mut self, lane: u64) {
        self.owner
            .handle_edge(&addr("edge"), lane, ToOwner::Attach(vec![attach(lane)]), NOW);
    }

    fn say(&mut self, lane: u64, body: ToOwner) -> Vec<Question> {
        self.owner.handle_edge(&addr("edge"), lane, body, NOW);
        self.run()
    }

    fn deposit(&mut self, lane: u64, seq: u64) {
        let deposit = Deposit {
            shard: SHARD,
            attempt: 1,
            envelope: envelope(seq),
            body: bytes::Bytes::new(),
        };
        self.owner
            .handle_edge(&addr("edge"), lane, ToOwner::Deposit(vec![deposit]), NOW);
    }

    /// What is put out, nothing of it answered: commits, and what edges are told.
    fn outputs(&mut self) -> (Vec<Tag>, Vec<ToEdge>) {
        let (mut commits, mut told) = (Vec::new(), Vec::new());
        while let Some(output) = self.owner.poll_output() {
            match output {
                OwnerOutput::Commit(_, tag) => commits.push(tag),
                OwnerOutput::ToEdge { body, .. } => told.push(body),
                _ => {}
            }
        }
        (commits, told)
    }

    fn page(&mut self, question: Question, seqs: &[u64]) -> Vec<Question> {
        let entry = |seq: &u64| InboxEntry {
            at: Coord {
                origin: ORIGIN,
                seq: *seq,
            },
            siblings: Vec::new(),
            op: message(*seq),
        };
        let page = InboxPage {
            entries: seqs.iter().map(entry).collect(),
            end: true,
            ..InboxPage::default()
        };
        self.owner
            .handle_answer(question, Ok(ReadReply::Inbox(page)), NOW);
        self.run()
    }

    fn commit(&mut self, seq: u64) -> Vec<Question> {
        let logged = Logged {
            shard: SHARD,
            origin: ORIGIN,
            region: RegionId::new("a").unwrap(),
            own: true,
            entry: LogEntry {
                seq,
                hash: 0,
                op: message(seq),
            },
            hlc: Hlc::default(),
            siblings: Vec::new(),
            merged: false,
        };
        self.owner.handle_committed(&[logged]);
        self.run()
    }
}

#[test]
fn a_page_for_an_earlier_attachment_is_not_taken_for_the_present_one() {
    let mut script = Script::new();
    let first = script.attach(1).remove(0);
    // The lane died before the page came; the session is attached again, and the late page says "nothing there".
    let second = script.attach(2).remove(0);
    assert!(script.page(first, &[]).is_empty());
    assert!(script.commit(5).is_empty());
    let third = script.page(second, &[3, 4]).remove(0);
    script.page(third, &[5]);
    assert_eq!(script.given, [3, 4, 5]);
}

#[test]
fn what_is_committed_while_a_page_is_read_comes_after_it() {
    let mut script = Script::new();
    let page = script.attach(1).remove(0);
    script.commit(2);
    assert!(script.given.is_empty());
    let next = script.page(page, &[1, 2]).remove(0);
    script.page(next, &[]);
    // From here on straight from the commit.
    script.commit(3);
    assert_eq!(script.given, [1, 2, 3]);
}

/// A session of Bob's phone: its number, which memory its client has, and the count of its tries there.
fn came(session: u64, memory: u64, hello_epoch: u64) -> Attach {
    Attach {
        session: SessionId(session),
        connect_epoch: hello_epoch,
        hello_epoch,
        memory,
        ..attach(1)
    }
}

#[test]
fn a_client_that_forgot_its_epoch_wins_over_the_session_before() {
    // The second was installed anew, or runs in another folder: it knows nothing of the first one's count.
    for tries in 0..3 {
        Script::beaten_if_there(&came(1, 7, 5), &came(2, 8, tries));
    }
    // A client that does not tell its memory has none at its first try.
    Script::beaten_if_there(&came(1, 0, 5), &came(2, 0, 0));
    // An edge that has not noticed that its client went brings it to the next owner, behind the new one's first try there.
    let brought = Attach {
        welcomed: true,
        connect_epoch: 1,
        ..came(3, 7, 0)
    };
    Script::beaten_if_there(&came(2, 8, 0), &brought);
}

#[test]
fn a_client_that_is_not_there_when_it_is_asked_in_time_gives_the_other_one_way() {
    let (first, mut script) = Script::contest(came(1, 7, 5), came(2, 8, 0));
    let late = Now {
        mono: NOW.mono + ms(CoreLimits::default().probe_ms),
        ..NOW
    };
    script.owner.handle_timeout(late);
    script.run();
    assert!(
        script.ended.contains(&(first, Code::Unavailable)),
        "{:?}",
        script.ended
    );
}

#[test]
fn an_older_try_of_a_client_that_comes_late_does_not_win() {
    // Its `Hello` was on its way for long.
    for memory in [0, 7] {
        let late = Script::beaten(came(1, memory, 6), came(2, memory, 5));
        assert_eq!(late, Code::Unavailable, "memory {memory}");
    }
    let first_of_all = Script::beaten(came(1, 7, 1), came(2, 7, 0));
    assert_eq!(first_of_all, Code::Unavailable);
    let next = Script::beaten(came(1, 7, 5), came(2, 7, 6));
    assert_eq!(next, Code::Superseded);
}

#[test]
fn deliveries_wait_for_room_on_their_lane_and_come_in_order_when_the_edge_took_the_others() {
    let cost = delivery_cost(message(1).bytes()) as u64;
    let mut script = Script::limited(|limits| limits.lane_bytes = 4 * cost as usize);
    let page = script.attach(1).remove(0);
    script.page(page, &[]);
    for seq in 1..=9 {
        assert!(script.commit(seq).is_empty());
    }
    assert_eq!(script.given, [1, 2, 3, 4]);
    // Less than half of it is no turn yet.
    assert!(script.say(1, ToOwner::Taken { bytes: cost }).is_empty());
    let page = script.say(1, ToOwner::Taken { bytes: cost }).remove(0);
    // The page holds more than there is room for.
    assert!(script.page(page, &[5, 6, 7, 8, 9]).is_empty());
    assert_eq!(script.given, [1, 2, 3, 4, 5, 6]);
    let page = script.say(1, ToOwner::Taken { bytes: 4 * cost }).remove(0);
    script.page(page, &[7, 8, 9]);
    assert_eq!(script.given, (1..=9).collect::<Vec<u64>>());
    // A new lane begins with all of its room.
    script.say(1, ToOwner::Taken { bytes: 3 * cost });
    (10..=12).for_each(|seq| drop(script.commit(seq)));
    assert_eq!(script.given, (1..=12).collect::<Vec<u64>>());
}

#[test]
fn a_session_whose_turn_brings_nothing_does_not_hold_up_the_next() {
    let cost = delivery_cost(message(1).bytes()) as u64;
    let mut script = Script::limited(|limits| {
        limits.lane_bytes = 2 * cost as usize;
        limits.window_bytes = 4 * cost as usize;
    });
    let page = script.attach(1).remove(0);
    script.page(page, &[]);
    let other = Attach {
        session: SessionId(10),
        device: DeviceId::new("laptop").unwrap(),
        ..attach(1)
    };
    let page = script.say(1, ToOwner::Attach(vec![other])).remove(0);
    script.page(page, &[]);
    // Both are given the first, and both wait with the second.
    script.commit(1);
    script.commit(2);
    assert_eq!(script.given, [1, 1]);
    let pages = script.say(1, ToOwner::Taken { bytes: 2 * cost });
    assert_eq!(pages.len(), 1, "one at a time");
    let empty = pages.into_iter().next().unwrap();
    assert!(script.page(empty, &[]).is_empty());
    let later = Now {
        mono: Mono(10_000_000),
        ..NOW
    };
    script.owner.handle_timeout(later);
    let page = script.run().remove(0);
    script.page(page, &[2]);
    assert_eq!(script.given, [1, 1, 2]);
}

#[test]
fn an_owner_that_finishes_answers_what_it_took_and_takes_no_more() {
    let mut script = Script::new();
    script.open(1);
    script.deposit(1, 1);
    let (mut commits, told) = script.outputs();
    assert!(commits.len() == 1 && told.is_empty());
    script.owner.handle_finish();
    assert!(!script.owner.is_settled(), "one is in the commit");
    script.deposit(1, 2);
    let (more, told) = script.outputs();
    assert!(more.is_empty());
    let code = |told: &[ToEdge]| match told {
        [ToEdge::Answers(answers)] => match &answers[0].verdict {
            Verdict::Refused { code, .. } => Some(*code),
            Verdict::Accepted { .. } => None,
        },
        _ => panic!("{told:?}"),
    };
    assert!(code(&told).is_some_and(Code::retryable));

    let at = Coord {
        origin: ORIGIN,
        seq: 1,
    };
    let accepted = Ok(Outcome::Appended(at));
    script.owner.handle_outcome(commits.remove(0), accepted, NOW);
    assert!(script.owner.is_settled());
    assert_eq!(code(&script.outputs().1), None, "it is told that it was accepted");
}

#[test]
fn a_session_that_the_store_cannot_register_ends_alone() {
    let mut script = Script::new();
    script.open(1);
    script.say_attach(1);
    let (mut commits, _) = script.outputs();
    let failed = Err(StoreError::Full("the disk is full".to_owned()));
    script.owner.handle_outcome(commits.remove(0), failed, NOW);
    let (_, told) = script.outputs();
    let ended = matches!(
        &told[..],
        [ToEdge::Ended {
            session: SessionId(9),
            code: Code::Unavailable,
            ..
        }]
    );
    assert!(ended, "{told:?}");
    // It comes again and is served.
    script.say_attach(1);
    assert_eq!(script.run().len(), 1);
}

#[test]
fn a_fenced_registration_gives_the_shard_up() {
    let mut script = Script::new();
    script.open(1);
    script.say_attach(1);
    let (mut commits, _) = script.outputs();
    let fenced = Outcome::Refused(Refusal::Fenced { current: Epoch(2) });
    script.owner.handle_outcome(commits.remove(0), Ok(fenced), NOW);
    let (_, told) = script.outputs();
    assert!(
        matches!(&told[..], [ToEdge::NotOwner(shards)] if shards[..] == [SHARD]),
        "{told:?}"
    );
    assert!(!script.owner.all_active());
}

#[test]
fn a_session_that_its_edge_lost_ends_although_the_edge_was_out_of_sight_when_that_was_looked_for() {
    let mut script = Script::new();
    let (bob, phone) = (UserId::new("bob").unwrap(), DeviceId::new("phone").unwrap());
    let member = |there: bool| {
        let edge = there.then(|| Member {
            key: addr("edge").node,
            generation: Generation(1),
            partitions: 1,
            core: false,
            edge: true,
            ready: true,
            client: None,
        });
        Members::new(edge)
    };
    let at = |ms: u64| Now {
        mono: Mono(ms * 1_000),
        wall_ms: NOW.wall_ms + ms,
    };
    let grace = script.owner.config.limits.session_grace_ms;
    script.owner.handle_members(&member(true), NOW);
    script.attach(1);
    script.run();
    let live = |script: &Script| {
        script
            .owner
            .presence(SHARD)
            .unwrap()
            .record(&bob, &phone)
            .unwrap()
    };
    assert!(!live(&script).version().is_terminal());

    // The edge comes back on another lane without the session; then it is out of sight, and in sight again.
    let edge = addr("edge");
    script.owner.handle_edge(
        &edge,
        2,
        ToOwner::Open {
            generation: Generation(1),
        },
        at(10),
    );
    script
        .owner
        .handle_edge(&edge, 2, ToOwner::Synced(vec![SHARD]), at(10));
    script.owner.handle_members(&member(false), at(grace - 500));
    script.owner.handle_timeout(at(grace + 100));
    script.owner.handle_members(&member(true), at(grace + 200));
    script.run();
    for round in 2..5 {
        script.owner.handle_timeout(at(round * (grace + 200)));
        script.run();
    }
    assert!(
        live(&script).version().is_terminal(),
        "a ghost: {:?}",
        live(&script)
    );
}

/// An edge of another region that is served here: no gossip tells of it, its connection does.
#[test]
fn the_sessions_of_a_guest_end_with_its_connection_or_when_it_left() {
    let at = |ms: u64| Now {
        mono: Mono(ms * 1_000),
        wall_ms: NOW.wall_ms + ms,
    };
    let guest = Addr {
        node: NodeKey {
            region: RegionId::new("elsewhere").unwrap(),
            node: NodeName::new("edge").unwrap(),
        },
        partition: 0,
    };
    let generation = Generation(4);
    let attached = || {
        let mut script = Script::new();
        script.owner.handle_reachable(&guest.node, true, NOW);
        let owner = &mut script.owner;
        owner.handle_edge(&guest, 7, ToOwner::Open { generation }, NOW);
        owner.handle_edge(&guest, 7, ToOwner::Attach(vec![attach(1)]), NOW);
        owner.handle_edge(&guest, 7, ToOwner::Synced(vec![SHARD]), NOW);
        script.run();
        script
    };
    let (bob, phone) = (UserId::new("bob").unwrap(), DeviceId::new("phone").unwrap());
    let record = |script: &Script| {
        let presence = script.owner.presence(SHARD).unwrap();
        presence.record(&bob, &phone).unwrap()
    };
    let pass = |script: &mut Script, from: u64| {
        let grace = script.owner.config.limits.session_grace_ms;
        for round in 1..4 {
            script.owner.handle_timeout(at(from + round * (grace + 100)));
            script.run();
        }
    };

    let mut script = attached();
    pass(&mut script, 0);
    let seen = record(&script);
    let live = seen.value().expect("it is there as long as the edge is");
    assert_eq!(live.region, script.owner.config.me.node.region, "written here");
    assert_eq!(live.edge.node, guest.node);
    script.owner.handle_reachable(&guest.node, false, at(20_000));
    pass(&mut script, 20_000);
    assert!(record(&script).version().is_terminal(), "a ghost");

    // It is back in time, with its sessions.
    let mut script = attached();
    script.owner.handle_reachable(&guest.node, false, at(100));
    script.owner.handle_reachable(&guest.node, true, at(200));
    let owner = &mut script.owner;
    owner.handle_edge(&guest, 8, ToOwner::Open { generation }, at(300));
    owner.handle_edge(&guest, 8, ToOwner::Attach(vec![attach(1)]), at(300));
    owner.handle_edge(&guest, 8, ToOwner::Synced(vec![SHARD]), at(300));
    script.run();
    pass(&mut script, 300);
    assert!(!record(&script).version().is_terminal());

    // Its own region serves it again: it says here that it has none.
    let owner = &mut script.owner;
    owner.handle_edge(&guest, 9, ToOwner::Open { generation }, at(20_000));
    owner.handle_edge(&guest, 9, ToOwner::Synced(vec![SHARD]), at(20_000));
    script.run();
    pass(&mut script, 20_000);
    assert!(record(&script).version().is_terminal(), "a ghost");
}

/// Sends deposits as (session, sequence, attempt) and gives for each whether it was handed to a commit.
fn deposits(owner: &mut Owner, now: Now, sent: &[(u64, u64, u32)]) -> Vec<bool> {
    let edge = addr("edge");
    sent.iter()
        .map(|(session, session_seq, attempt)| {
            let deposit = Deposit {
                shard: SHARD,
                attempt: *attempt,
                envelope: Envelope {
                    session: SessionId(*session),
                    session_seq: *session_seq,
                    ..envelope(1)
                },
                body: Bytes::from_static(b"x"),
            };
            owner.handle_edge(&edge, 1, ToOwner::Deposit(vec![deposit]), now);
            let mut taken = false;
            while let Some(output) = owner.poll_output() {
                taken |= matches!(output, OwnerOutput::Commit(StoreOp::Append { .. }, _));
            }
            taken
        })
        .collect()
}

#[test]
fn senders_beyond_the_limit_are_refused_and_keep_their_order_when_there_is_room() {
    let mut script = Script::new();
    script.attach(1);
    let owner = &mut script.owner;
    owner.senders.limit = 1;
    assert_eq!(deposits(owner, NOW, &[(1, 1, 1), (2, 1, 3)]), [true, false]);
    // The first is forgotten; what the second had sent behind the refused one must not be taken before it.
    owner.senders.limit = 2;
    assert_eq!(
        deposits(owner, NOW, &[(2, 2, 3), (2, 1, 4), (2, 2, 4)]),
        [false, true, true]
    );
    owner.senders.limit = 3;
    // Who is new is refused once more, and then taken.
    assert_eq!(deposits(owner, NOW, &[(3, 1, 1), (3, 1, 2)]), [false, true]);
    let later = Now {
        mono: NOW.mono + std::time::Duration::from_secs(601),
        ..NOW
    };
    owner.senders.forget_idle(later.mono);
    assert_eq!(deposits(owner, later, &[(4, 1, 1)]), [true]);
}

/// What is still on its way under the epoch before may fail: what was sent behind it must not be taken under the next one.
#[test]
fn what_is_sent_behind_a_message_of_the_epoch_before_is_sent_again() {
    let mut script = Script::new();
    script.attach(1);
    assert_eq!(deposits(&mut script.owner, NOW, &[(1, 1, 1)]), [true]);
    script.owner.handle_placement(BTreeSet::new(), NOW);
    script.owner.handle_placement(BTreeSet::from([SHARD]), NOW);
    script.run();
    assert!(script.owner.all_active());
    let sent = [(1, 2, 1), (2, 1, 1), (1, 1, 2), (1, 2, 2)];
    assert_eq!(deposits(&mut script.owner, NOW, &sent), [false, true, true, true]);
}

#[test]
fn a_full_store_is_told_as_that() {
    let mut script = Script::new();
    script.attach(1);
    let edge = addr("edge");
    let deposit = Deposit {
        shard: SHARD,
        attempt: 1,
        envelope: envelope(1),
        body: Bytes::from_static(b"x"),
    };
    let owner = &mut script.owner;
    owner.handle_edge(&edge, 1, ToOwner::Deposit(vec![deposit]), NOW);
    let mut codes = Vec::new();
    while let Some(output) = owner.poll_output() {
        match output {
            OwnerOutput::Commit(StoreOp::Append { .. }, tag) => {
                owner.handle_outcome(tag, Err(StoreError::Full("no room".to_owned())), NOW);
            }
            OwnerOutput::ToEdge {
                body: ToEdge::Answers(answers),
                ..
            } => codes.extend(answers.into_iter().map(|answer| answer.verdict)),
            _ => {}
        }
    }
    assert!(
        matches!(
            &codes[..],
            [Verdict::Refused {
                code: Code::StoreFull,
                ..
            }]
        ),
        "{codes:?}"
    );
}
