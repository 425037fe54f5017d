//! What is gone is told in its place: against a store that answers pages as an engine does.

use proptest::prelude::*;

use super::*;
use crate::core::msg::SessionAck;
use crate::core::retire::{CAME_LATER, KNOWS, RETIRED, Retirement};
use crate::core::state::{DeviceRow, LogRow};
use crate::core::storage::InboxHole;

const OTHER: Origin = Origin(8);
/// What is applied of each origin.
const APPLIED: u64 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Message(Origin, u64),
    Hole(Origin, u64, u64),
}

use Told::{Hole, Message};

impl Told {
    fn end(self) -> Coord {
        let (Message(origin, seq) | Hole(origin, _, seq)) = self;
        Coord { origin, seq }
    }
}

/// An owner over a store that holds an inbox, and what its edge was told, in order.
struct Rig {
    owner: Owner,
    head: ShardRow,
    row: UserRow,
    kept: Vec<(Origin, u64)>,
    siblings: BTreeMap<Coord, Vec<Coord>>,
    /// When messages expire.
    expires: BTreeMap<Coord, u64>,
    told: Vec<(SessionId, Told)>,
    /// As the last session that stands was told.
    stable: Vector,
    /// How many messages each hole stood for.
    counts: Vec<u64>,
    lane: u64,
}

impl Rig {
    fn new(window: usize, kept: &[(Origin, u64)], gaps: &[(Origin, u64, u64)]) -> Self {
        let log = |origin| {
            let log = LogRow {
                region: RegionId::new("a").unwrap(),
                seq: APPLIED,
                hash: 0,
                floor: 0,
                floor_hash: 0,
                previous: None,
                hlc: Hlc::default(),
            };
            (origin, log)
        };
        let config = OwnerConfig {
            durability: DurabilityPolicy::Region,
            me: addr("core"),
            sharding: Sharding { count: 1, seed: 0 },
            holders: BTreeSet::from([RegionId::new("a").unwrap()]),
            limits: CoreLimits {
                window_messages: window,
                ..CoreLimits::default()
            },
        };
        let mut rig = Self {
            owner: Owner::new(config, NOW),
            head: ShardRow {
                logs: [log(ORIGIN), log(OTHER)].into(),
                ..ShardRow::default()
            },
            row: UserRow {
                gaps: gaps
                    .iter()
                    .map(|(origin, from, to)| ((*origin, *from), *to))
                    .collect(),
                ..UserRow::default()
            },
            kept: kept.to_vec(),
            siblings: BTreeMap::new(),
            expires: BTreeMap::new(),
            told: Vec::new(),
            stable: Vector::new(),
            counts: Vec::new(),
            lane: 0,
        };
        rig.owner.handle_placement(BTreeSet::from([SHARD]), NOW);
        rig.run();
        rig
    }

    fn run(&mut self) {
        while let Some(output) = self.owner.poll_output() {
            match output {
                OwnerOutput::Commit(op, tag) => {
                    let outcome = match op {
                        StoreOp::Bump { .. } => Outcome::Bumped { epoch: Epoch(1) },
                        _ => Outcome::Done { more: false },
                    };
                    self.owner.handle_outcome(tag, Ok(outcome), NOW);
                }
                OwnerOutput::Read(question) => {
                    let answer = match &question {
                        Question::User(..) => ReadReply::User(Box::new(self.row.clone())),
                        Question::Inbox { after, max_items, .. } => {
                            ReadReply::Inbox(self.page(after, *max_items))
                        }
                        _ => ReadReply::Shard(Box::new(self.head.clone())),
                    };
                    self.owner.handle_answer(question, Ok(answer), NOW);
                }
                OwnerOutput::ToEdge { body, .. } => match body {
                    ToEdge::Deliver(deliveries) => {
                        let told = deliveries
                            .iter()
                            .map(|delivery| (delivery.session, Message(delivery.at.origin, delivery.at.seq)));
                        self.told.extend(told);
                    }
                    ToEdge::Attached { stable, .. } => self.stable = stable,
                    ToEdge::Hole { session, hole } => {
                        self.counts.push(hole.count);
                        self.told.push((session, Hole(hole.origin, hole.from, hole.to)));
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }

    fn page(&self, after: &Vector, max_items: usize) -> InboxPage {
        let mut waiting: Vec<Coord> = self
            .kept
            .iter()
            .map(|(origin, seq)| Coord {
                origin: *origin,
                seq: *seq,
            })
            .filter(|at| !after.covers(*at) && !self.row.trimmed.covers(*at))
            .collect();
        waiting.sort_by_key(|at| (at.seq, at.origin));
        let end = waiting.len() <= max_items;
        waiting.truncate(max_items);
        let entry = |at: Coord| InboxEntry {
            at,
            siblings: self.siblings.get(&at).cloned().unwrap_or_default(),
            op: timed(at.seq, self.expires.get(&at).copied().unwrap_or(0)),
        };
        InboxPage {
            entries: waiting.into_iter().map(entry).collect(),
            end,
            holes: InboxHole::above(&self.row, after, &BTreeMap::new()),
        }
    }

    /// A session attaches on a lane that begins with it; gives what it is told.
    fn attach(&mut self, attach: Attach) -> Vec<Told> {
        self.lane += 1;
        let (edge, lane) = (addr("edge"), self.lane);
        let open = ToOwner::Open {
            generation: Generation(1),
        };
        self.owner.handle_edge(&edge, lane, open, NOW);
        self.also(attach)
    }

    /// A session attaches on the lane that there is.
    fn also(&mut self, mut attach: Attach) -> Vec<Told> {
        attach.connect_epoch = self.lane - 1;
        attach.welcomed = self.lane > 1;
        let session = attach.session;
        let body = ToOwner::Attach(vec![attach]);
        self.owner.handle_edge(&addr("edge"), self.lane, body, NOW);
        self.run();
        self.heard(session)
    }

    /// What a session was told since this was last asked.
    fn heard(&mut self, session: SessionId) -> Vec<Told> {
        let (heard, told) = std::mem::take(&mut self.told)
            .into_iter()
            .partition(|(to, _)| *to == session);
        self.told = told;
        let heard: Vec<(SessionId, Told)> = heard;
        heard.into_iter().map(|(_, told)| told).collect()
    }

    fn ack(&mut self, session: SessionId, at: Coord) -> Vec<Told> {
        let ack = SessionAck {
            shard: SHARD,
            session,
            at,
        };
        self.owner
            .handle_edge(&addr("edge"), self.lane, ToOwner::Ack(vec![ack]), NOW);
        self.run();
        self.heard(session)
    }

    fn cursor(&self, session: SessionId) -> Vector {
        self.owner.shards[&SHARD].sessions[&session].cursor.clone()
    }
}

fn phone() -> Attach {
    attach(1)
}

fn of(origin: Origin, told: &[Told]) -> Vec<Told> {
    told.iter()
        .copied()
        .filter(|told| told.end().origin == origin)
        .collect()
}

mod expired;

#[test]
fn holes_come_in_their_place_first_in_the_middle_and_last() {
    let mut rig = Rig::new(
        100,
        &[(ORIGIN, 3), (ORIGIN, 4), (OTHER, 5), (ORIGIN, 9)],
        &[(ORIGIN, 1, 2), (ORIGIN, 5, 7), (ORIGIN, 12, 14), (OTHER, 6, 8)],
    );
    let told = rig.attach(phone());
    let (this, that) = (of(ORIGIN, &told), of(OTHER, &told));
    assert_eq!(
        this,
        [
            Hole(ORIGIN, 1, 2),
            Message(ORIGIN, 3),
            Message(ORIGIN, 4),
            Hole(ORIGIN, 5, 7),
            Message(ORIGIN, 9),
            Hole(ORIGIN, 12, 14)
        ]
    );
    assert_eq!(that, [Message(OTHER, 5), Hole(OTHER, 6, 8)]);
}

#[test]
fn an_inbox_of_which_all_is_gone_is_told() {
    let mut rig = Rig::new(100, &[], &[(ORIGIN, 2, 3), (OTHER, 4, 4)]);
    assert_eq!(rig.attach(phone()), [Hole(ORIGIN, 2, 3), Hole(OTHER, 4, 4)]);
}

#[test]
fn holes_take_a_place_in_the_window_and_pages_end_anywhere() {
    let kept: Vec<(Origin, u64)> = [2, 3, 8, 9, 12].map(|seq| (ORIGIN, seq)).into();
    let gaps = [(ORIGIN, 4, 6), (ORIGIN, 10, 10), (ORIGIN, 13, 20)];
    let all = [
        Message(ORIGIN, 2),
        Message(ORIGIN, 3),
        Hole(ORIGIN, 4, 6),
        Message(ORIGIN, 8),
        Message(ORIGIN, 9),
        Hole(ORIGIN, 10, 10),
        Message(ORIGIN, 12),
        Hole(ORIGIN, 13, 20),
    ];
    for window in 1..=9 {
        let mut rig = Rig::new(window, &kept, &gaps);
        let mut told = rig.attach(phone());
        let mut acked = 0;
        while acked < told.len() {
            assert!(told.len() - acked <= window, "window {window}: {told:?}");
            let more = rig.ack(SessionId(9), told[acked].end());
            told.extend(more);
            acked += 1;
        }
        assert_eq!(told, all, "window {window}");
        assert_eq!(rig.cursor(SessionId(9)).of(ORIGIN), 20);
    }
}

#[test]
fn each_device_is_told_what_it_has_not_passed() {
    let mut rig = Rig::new(100, &[(ORIGIN, 2), (ORIGIN, 9)], &[(ORIGIN, 4, 6), (OTHER, 3, 5)]);
    let row = DeviceRow {
        epoch: 1,
        cursor: [(ORIGIN, 5), (OTHER, 5)].into_iter().collect(),
        ..DeviceRow::default()
    };
    rig.row.devices.insert(DeviceId::new("tablet").unwrap(), row);
    let tablet = Attach {
        device: DeviceId::new("tablet").unwrap(),
        session: SessionId(10),
        ..phone()
    };
    assert_eq!(
        rig.attach(phone()),
        [
            Message(ORIGIN, 2),
            Hole(ORIGIN, 4, 6),
            Message(ORIGIN, 9),
            Hole(OTHER, 3, 5)
        ]
    );
    assert_eq!(rig.also(tablet), [Hole(ORIGIN, 6, 6), Message(ORIGIN, 9)]);
}

#[test]
fn what_was_not_acknowledged_is_told_again_to_a_new_session_and_what_was_is_not() {
    let gaps = [(ORIGIN, 4, 6), (OTHER, 3, 5)];
    let mut rig = Rig::new(100, &[(ORIGIN, 9)], &gaps);
    let all = [Hole(ORIGIN, 4, 6), Message(ORIGIN, 9), Hole(OTHER, 3, 5)];
    assert_eq!(rig.attach(phone()), all);
    // The edge died, too: it knows nothing.
    assert_eq!(rig.attach(phone()), all);
    assert!(rig.ack(SessionId(9), all[0].end()).is_empty());
    // It lives, and tells what it gave: everything; then with what was acknowledged, a crash of it behind that.
    let given: Vector = [(ORIGIN, 9), (OTHER, 5)].into_iter().collect();
    let acked: Vector = [(ORIGIN, 6)].into_iter().collect();
    let known = Attach {
        given: given.clone(),
        acked: acked.clone(),
        ..phone()
    };
    assert_eq!(rig.attach(known), []);
    let claimed = Attach {
        claim: acked,
        session: SessionId(11),
        ..phone()
    };
    assert_eq!(rig.attach(claimed), all[1..]);
}

#[test]
fn what_is_gone_with_retired_origins_is_told_once_to_a_device_that_came_later() {
    let mut rig = Rig::new(100, &[(ORIGIN, 2)], &[]);
    let row = |cursor| DeviceRow {
        epoch: 1,
        cursor,
        ..DeviceRow::default()
    };
    let phone_came = |seq| row([(RETIRED, seq)].into_iter().collect());
    let device = phone().device;
    rig.row.devices.insert(device.clone(), row(Vector::new()));
    assert_eq!(rig.attach(phone()), [Message(ORIGIN, 2)]);
    rig.row.devices.insert(device.clone(), phone_came(CAME_LATER));
    let all = [Message(ORIGIN, 2), Hole(RETIRED, KNOWS, KNOWS)];
    assert_eq!(rig.attach(phone()), all);
    rig.ack(SessionId(9), all[1].end());
    assert_eq!(rig.cursor(SessionId(9)).of(RETIRED), KNOWS);
    rig.row.devices.insert(device, phone_came(KNOWS));
    assert_eq!(rig.attach(phone()), [Message(ORIGIN, 2)]);
}

#[test]
fn holes_of_an_origin_that_is_retired_are_told_of_retired_ones() {
    let mut rig = Rig::new(1, &[(ORIGIN, 2)], &[(OTHER, 3, 5)]);
    assert_eq!(rig.attach(phone()), [Message(ORIGIN, 2)]);
    let retirement = Retirement {
        retired: [(OTHER, APPLIED)].into(),
        ..Retirement::default()
    };
    rig.owner
        .handle_outcome(Tag::Retire(SHARD), Ok(Outcome::Retired(retirement)), NOW);
    let rest = rig.ack(SessionId(9), Message(ORIGIN, 2).end());
    assert_eq!(rest, [Hole(RETIRED, KNOWS, KNOWS)]);
}

#[test]
fn a_client_is_told_what_of_its_cursor_is_retired() {
    let mut rig = Rig::new(100, &[], &[]);
    rig.head.old.retired.insert(Origin(4), 9);
    rig.owner.handle_placement(BTreeSet::new(), NOW);
    rig.owner.handle_placement(BTreeSet::from([SHARD]), NOW);
    rig.run();
    let claim: Vector = [(Origin(4), 7), (ORIGIN, 3)].into_iter().collect();
    rig.attach(Attach { claim, ..phone() });
    assert_eq!(rig.stable, [(Origin(4), u64::MAX)].into_iter().collect());
    assert_eq!(rig.cursor(SessionId(9)), [(ORIGIN, 3)].into_iter().collect());
}

#[test]
fn what_is_not_applied_yet_may_still_come() {
    let mut rig = Rig::new(
        100,
        &[],
        &[
            (ORIGIN, APPLIED - 1, APPLIED + 2),
            (OTHER, APPLIED + 1, APPLIED + 2),
        ],
    );
    assert_eq!(rig.attach(phone()), [Hole(ORIGIN, APPLIED - 1, APPLIED)]);
}

#[test]
fn neighbours_are_one_hole() {
    let mut rig = Rig::new(100, &[(ORIGIN, 9)], &[(ORIGIN, 4, 6), (ORIGIN, 8, 8)]);
    rig.row.trimmed.raise(ORIGIN, 3);
    assert_eq!(
        rig.attach(phone()),
        [Hole(ORIGIN, 1, 6), Hole(ORIGIN, 8, 8), Message(ORIGIN, 9)]
    );
}

/// The copy is passed silently, the hole before it is not: the cursor must not jump over it.
#[test]
fn a_copy_behind_a_hole_does_not_hide_it() {
    let mut rig = Rig::new(100, &[(ORIGIN, 9)], &[(ORIGIN, 4, 6)]);
    let at = |origin, seq| Coord { origin, seq };
    rig.siblings.insert(at(ORIGIN, 9), vec![at(OTHER, 7)]);
    let claimed = Attach {
        claim: [(OTHER, 7)].into_iter().collect(),
        ..phone()
    };
    assert_eq!(rig.attach(claimed), [Hole(ORIGIN, 4, 6)]);
    assert_eq!(rig.cursor(SessionId(9)).of(ORIGIN), 0);
    rig.ack(SessionId(9), at(ORIGIN, 6));
    assert_eq!(rig.cursor(SessionId(9)).of(ORIGIN), 9);
}

/// A message, a hole, or another user's message at each sequence of each origin.
fn streams() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(0..3u8, 0..12), 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the window and however often the session comes again, a device passes each message and each range that
    /// is gone, in order, and nothing twice in a session.
    #[test]
    fn a_device_passes_everything_in_order(
        streams in streams(),
        window in 1..6usize,
        again in prop::collection::vec(any::<bool>(), 40),
    ) {
        let mut expected = Vec::new();
        for (origin, stream) in [ORIGIN, OTHER].into_iter().zip(&streams) {
            for (kind, seq) in stream.iter().zip(1u64..) {
                match (kind, expected.last_mut()) {
                    (1, _) => expected.push(Message(origin, seq)),
                    (2, Some(Hole(of, _, to))) if *of == origin && *to + 1 == seq => *to = seq,
                    (2, _) => expected.push(Hole(origin, seq, seq)),
                    _ => {}
                }
            }
        }
        let kept: Vec<(Origin, u64)> = expected
            .iter()
            .filter(|told| matches!(told, Message(..)))
            .map(|told| (told.end().origin, told.end().seq))
            .collect();
        let gaps: Vec<(Origin, u64, u64)> = expected
            .iter()
            .filter_map(|told| match told {
                Hole(origin, from, to) => Some((*origin, *from, *to)),
                Message(..) => None,
            })
            .collect();
        let mut rig = Rig::new(window, &kept, &gaps);
        let mut passed: Vec<Told> = Vec::new();
        let mut waits: std::collections::VecDeque<Told> = rig.attach(phone()).into();
        let mut again = again.into_iter();
        while let Some(next) = waits.pop_front() {
            passed.push(next);
            prop_assert!(waits.len() < window);
            let more = rig.ack(SessionId(9), next.end());
            waits.extend(more);
            if again.next() == Some(true) {
                let claim = rig.cursor(SessionId(9));
                waits = rig.attach(Attach { claim, ..phone() }).into();
            }
        }
        for origin in [ORIGIN, OTHER] {
            prop_assert_eq!(of(origin, &passed), of(origin, &expected));
        }
    }
}
