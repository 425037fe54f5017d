//! Two stores, of which one loses something and takes it back from the other (R4, R11): each on several engines at once,
//! of which every outcome and every read must be the same.
//!
//! Both live and ship their logs to each other. Then the receiver is put back to an earlier state, or to nothing, may go on
//! for a while without knowing, recovers, and takes logs and pages of snapshots in whatever order a plan says. In the end
//! it must have all that the provider has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::Harness;
use super::kit::{HERE, S, T0, THERE, device, envelope, id, identity, region, user};
use crate::core::commit::{Outcome, Refusal, Stop, StoreOp};
use crate::core::ids::{Coord, DeviceId, Epoch, Origin, Seq, UserId};
use crate::core::op::{Envelope, LoggedOp, Op};
use crate::core::snapshot::{Cut, CutLog, SnapshotAt, SnapshotPage};
use crate::core::state::{ShardRow, StoreIdentity, UserRow};
use crate::core::time::Hlc;
use crate::core::vector::Vector;
use crate::store::engine::{Committed, Engine, InboxEntry, LogPage, Read, ReadReply};

const USERS: [&str; 3] = ["bob", "carol", "erin-marie"];
const DEVICES: [&str; 3] = ["phone", "tablet", "laptop"];
const SENDERS: [&str; 2] = ["alice", "dave"];

/// Which of the two stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Provider,
    Receiver,
}

use Side::{Provider, Receiver};

/// What a store does; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
pub(crate) enum Life {
    /// A message: to, from, number of its id, body.
    Append(u8, u8, u8, bool),
    /// A device acknowledged an origin's log to so many from its end.
    Cursor(u8, u8, u8, u8),
    Register(u8, u8),
    Confirm,
    Trim,
    Idle,
    /// It crashes and opens again.
    Restart,
    /// Its logs go to the other, so many operations of each.
    Ship(u8),
    /// Both confirm what they have, ship it, and trim.
    Round,
}

/// What happens while the receiver recovers.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The next page of the snapshot, of at most so many items and bytes.
    Page(usize, usize),
    /// The next two, the later one first, where that is permitted.
    Swapped(usize, usize),
    /// The last page once more.
    Again,
    /// Another snapshot, from its beginning.
    Anew,
    /// Runs of logs.
    Log(u8),
    /// The stores live on, the receiver as far as it may.
    Live(Side, Life),
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    before: Vec<(Side, Life)>,
    /// So many hundredths of what the receiver did are left to it; with 0 its disk is replaced.
    left: u8,
    /// It does not know yet.
    unknowing: Vec<(Side, Life)>,
    steps: Vec<Step>,
}

pub(crate) fn plans() -> impl Strategy<Value = Plan> {
    let life = || {
        prop_oneof![
            10 => (any::<u8>(), any::<u8>(), 0u8..10, prop::bool::weighted(0.2)).prop_map(|(a, b, c, d)| Life::Append(a, b, c, d)),
            5 => (any::<u8>(), any::<u8>(), any::<u8>(), 0u8..4).prop_map(|(a, b, c, d)| Life::Cursor(a, b, c, d)),
            3 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Life::Register(a, b)),
            2 => Just(Life::Confirm),
            2 => Just(Life::Trim),
            2 => Just(Life::Idle),
            1 => Just(Life::Restart),
            5 => (1u8..12).prop_map(Life::Ship),
            4 => Just(Life::Round),
        ]
    };
    let side = || prop_oneof![Just(Provider), Just(Receiver)];
    let page = || (1usize..8, prop_oneof![1usize..400, Just(100_000usize)]);
    let step = prop_oneof![
        10 => page().prop_map(|(items, bytes)| Step::Page(items, bytes)),
        3 => page().prop_map(|(items, bytes)| Step::Swapped(items, bytes)),
        3 => Just(Step::Again),
        1 => Just(Step::Anew),
        2 => (1u8..12).prop_map(Step::Log),
        5 => (side(), life()).prop_map(|(side, life)| Step::Live(side, life)),
    ];
    let lives = |most| proptest::collection::vec((side(), life()), 0..most);
    let left = prop_oneof![1 => Just(0u8), 3 => 0u8..=100];
    (lives(60), left, lives(12), proptest::collection::vec(step, 0..40)).prop_map(
        |(before, left, unknowing, steps)| Plan {
            before,
            left,
            unknowing,
            steps,
        },
    )
}

/// Something that a store did, to do it again.
enum Past {
    Commit(Vec<StoreOp>, u64),
    Open(StoreIdentity),
}

/// One store, on several engines.
struct Node<'a> {
    harnesses: Vec<&'a mut dyn Harness>,
    engines: Vec<Box<dyn Engine>>,
    identity: StoreIdentity,
    epoch: Epoch,
    recovers: bool,
    turns: usize,
    past: Vec<Past>,
}

/// A snapshot that is being taken.
#[derive(Default)]
struct Taking {
    cut: Option<Arc<Cut>>,
    at: SnapshotAt,
    /// The last page that was merged, with its cut.
    last: Option<(Arc<Cut>, Arc<SnapshotPage>)>,
}

struct Run<'a> {
    provider: Node<'a>,
    receiver: Node<'a>,
    now: u64,
    origins: u64,
    /// Every message that ever was durable anywhere.
    messages: BTreeMap<Coord, (Envelope, LoggedOp)>,
    taking: Taking,
}

/// Runs a plan; the stores are of [`THERE`] and of [`HERE`].
pub(crate) fn drive<'a>(provider: Vec<&'a mut dyn Harness>, receiver: Vec<&'a mut dyn Harness>, plan: &Plan) {
    let there = StoreIdentity {
        region: region(THERE),
        ..identity(500, &[HERE, THERE])
    };
    let mut run = Run {
        provider: Node::create(provider, there),
        receiver: Node::create(receiver, identity(1_000, &[HERE, THERE])),
        now: T0,
        origins: 0,
        messages: BTreeMap::new(),
        taking: Taking::default(),
    };
    run.bump(Provider);
    run.bump(Receiver);
    for (side, life) in &plan.before {
        run.live(*side, life);
    }
    run.lose(plan.left);
    if !run.receiver.recovers {
        for (side, life) in &plan.unknowing {
            run.live(*side, life);
        }
        run.recover(true);
    }
    let known = run.cursors();
    for step in &plan.steps {
        run.step(step);
        run.check_shape(Receiver);
    }
    run.catch_up();
    run.check_caught_up(&known);
    run.recover(false);
    run.check_equal();
    run.check_emptied();
}

impl<'a> Node<'a> {
    fn create(mut harnesses: Vec<&'a mut dyn Harness>, identity: StoreIdentity) -> Self {
        let engines = harnesses
            .iter_mut()
            .map(|harness| harness.create(identity.clone()));
        let engines = engines.collect();
        Self {
            harnesses,
            engines,
            identity,
            epoch: Epoch(0),
            recovers: false,
            turns: 0,
            past: Vec::new(),
        }
    }

    fn commit(&mut self, ops: Vec<StoreOp>, now: u64) -> Committed {
        let engines = self.engines.iter_mut();
        let mut results = engines.map(|engine| engine.commit(ops.clone(), now).unwrap());
        let first = results.next().expect("an engine");
        for result in results {
            assert_eq!(result, first, "the engines differ: {ops:?}");
        }
        self.past.push(Past::Commit(ops, now));
        first
    }

    /// Ends as in a crash, and opens under another origin (R1).
    fn open(&mut self, identity: StoreIdentity) {
        self.identity = identity.clone();
        let old = std::mem::take(&mut self.engines);
        for (harness, engine) in self.harnesses.iter_mut().zip(old) {
            self.engines.push(harness.reopen(engine, identity.clone()));
        }
        self.past.push(Past::Open(identity));
    }

    fn read(&mut self, read: &Read) -> ReadReply {
        let mut replies = self.engines.iter_mut().map(|engine| engine.read(read).unwrap());
        let first = replies.next().expect("an engine");
        for reply in replies {
            assert_eq!(reply, first, "the engines differ: {read:?}");
        }
        first
    }

    fn shard(&mut self) -> ShardRow {
        match self.read(&Read::Shard(S)) {
            ReadReply::Shard(row) => *row,
            other => panic!("{other:?}"),
        }
    }

    fn user(&mut self, name: &UserId) -> UserRow {
        match self.read(&Read::User(S, name.clone())) {
            ReadReply::User(row) => *row,
            other => panic!("{other:?}"),
        }
    }

    fn inbox(&mut self, user: &UserId) -> Vec<InboxEntry> {
        let read = Read::Inbox {
            shard: S,
            user: user.clone(),
            after: Vector::new(),
            max_items: 1_000,
            max_bytes: usize::MAX,
        };
        match self.read(&read) {
            ReadReply::Inbox(page) if page.end => page.entries,
            other => panic!("{other:?}"),
        }
    }

    /// A page from one of the engines, each in its turn: where one of them ended another goes on. How far dedup records of
    /// a page go is their own affair.
    fn page(
        &mut self,
        cut: Option<Arc<Cut>>,
        after: SnapshotAt,
        items: usize,
        bytes: usize,
    ) -> (Arc<Cut>, SnapshotPage) {
        let read = Read::Snapshot {
            shard: S,
            cut,
            after,
            max_items: items,
            max_bytes: bytes,
        };
        let engines = self.engines.iter_mut();
        let mut found: Vec<(Arc<Cut>, SnapshotPage)> = engines
            .map(|engine| match engine.read(&read).unwrap() {
                ReadReply::Snapshot(cut, page) => (cut, *page),
                other => panic!("{other:?}"),
            })
            .collect();
        let longest = found
            .iter()
            .map(|(_, page)| &page.dedup)
            .max_by_key(|dedup| dedup.len());
        let longest = longest.expect("an engine").clone();
        for (cut, page) in &found {
            assert_eq!(
                (cut, &page.users),
                (&found[0].0, &found[0].1.users),
                "the engines differ: {read:?}"
            );
            assert_eq!(
                page.dedup,
                longest[..page.dedup.len()],
                "the engines differ: {read:?}"
            );
        }
        self.turns += 1;
        let turn = self.turns % found.len();
        found.swap_remove(turn)
    }

    /// Every row but the counts that only say when the next confirmation is due.
    fn everything(&mut self) -> (ShardRow, Vec<UserRow>, SnapshotPage) {
        let mut row = self.shard();
        (row.news, row.confirms) = (0, 0);
        let all = |origin: &Origin, region: &_| {
            let log = CutLog {
                region: Clone::clone(region),
                seq: Seq::MAX,
                hash: 0,
                previous: None,
                hlc: Hlc::default(),
            };
            (*origin, log)
        };
        let logs = row.logs.iter().map(|(origin, log)| all(origin, &log.region));
        let cut = Arc::new(Cut {
            logs: logs.collect(),
            confirmed: BTreeMap::new(),
        });
        let mut pages = SnapshotPage::default();
        let mut at = Some(SnapshotAt::Start);
        while let Some(after) = at {
            let (_, page) = self.page(Some(cut.clone()), after, 1_000, usize::MAX);
            at = page.next;
            pages.dedup.extend(page.dedup);
            pages.users.extend(page.users);
        }
        let users = USERS.iter().map(|name| self.user(&user(name))).collect();
        (row, users, pages)
    }
}

impl<'a> Run<'a> {
    fn node(&mut self, side: Side) -> &mut Node<'a> {
        match side {
            Provider => &mut self.provider,
            Receiver => &mut self.receiver,
        }
    }

    fn commit(&mut self, side: Side, ops: Vec<StoreOp>) -> Vec<Outcome> {
        self.now += 3;
        let now = self.now;
        let committed = self.node(side).commit(ops, now);
        for logged in &committed.logged {
            if let Ok(Op::Append(envelope, _)) = logged.entry.op.decode() {
                let message = (envelope, logged.entry.op.clone());
                let known = self
                    .messages
                    .entry(logged.coord())
                    .or_insert_with(|| message.clone());
                assert_eq!(*known, message, "other bytes at {}", logged.coord());
            }
        }
        committed.outcomes
    }

    fn one(&mut self, side: Side, op: StoreOp) -> Outcome {
        self.commit(side, vec![op]).remove(0)
    }

    fn bump(&mut self, side: Side) {
        match self.one(side, StoreOp::Bump { shard: S }) {
            Outcome::Bumped { epoch } => self.node(side).epoch = epoch,
            other => panic!("{other:?}"),
        }
    }

    /// An operation of a store itself, which one that recovers refuses.
    fn own(&mut self, side: Side, op: StoreOp) {
        let outcome = self.one(side, op);
        let refused = Outcome::Refused(Refusal::Recovering);
        assert_eq!(outcome == refused, self.node(side).recovers, "{outcome:?}");
    }

    fn live(&mut self, side: Side, life: &Life) {
        let (shard, epoch) = (S, self.node(side).epoch);
        match life {
            Life::Append(to, from, number, odd) => {
                let op = append(epoch, pick(&USERS, *to), pick(&SENDERS, *from), *number, *odd);
                self.own(side, op);
            }
            Life::Cursor(of, with, origin, back) => {
                let applied = self.node(side).shard().applied();
                let applied: Vec<(Origin, Seq)> = applied.iter().collect();
                let Some((origin, seq)) = applied.get(usize::from(*origin) % applied.len().max(1)) else {
                    return;
                };
                let seq = seq.saturating_sub(u64::from(*back)).max(1);
                let op = StoreOp::Cursor {
                    shard,
                    epoch,
                    user: user(pick(&USERS, *of)),
                    device: device(pick(&DEVICES, *with)),
                    cursor: Vector::from_iter([(*origin, seq)]),
                };
                self.own(side, op);
            }
            Life::Register(of, with) => {
                let op = StoreOp::Register {
                    shard,
                    epoch,
                    user: user(pick(&USERS, *of)),
                    device: device(pick(&DEVICES, *with)),
                    claim: Vector::new(),
                };
                self.own(side, op);
            }
            Life::Confirm => self.own(side, StoreOp::Confirm { shard, epoch }),
            Life::Trim => {
                self.one(side, StoreOp::Trim { shard, epoch });
            }
            Life::Idle => {
                for engine in &mut self.node(side).engines {
                    engine.idle().unwrap();
                }
            }
            Life::Restart => self.restart(side),
            Life::Ship(most) => {
                self.ship(side, usize::from(*most));
            }
            Life::Round => self.round(),
        }
    }

    fn restart(&mut self, side: Side) {
        let before = self.node(side).everything();
        let identity = self.fresh(side);
        self.node(side).open(identity);
        assert_eq!(self.node(side).everything(), before, "a crash lost something");
        self.bump(side);
    }

    fn fresh(&mut self, side: Side) -> StoreIdentity {
        self.origins += 1;
        let origin = Origin((self.origins * 104_729) % 10_007 + 2_000);
        StoreIdentity {
            origin,
            ..self.node(side).identity.clone()
        }
    }

    /// Applies what one store logged at the other; says whether that needs a snapshot for some log.
    fn ship(&mut self, from: Side, most: usize) -> bool {
        let to = if from == Provider { Receiver } else { Provider };
        let mut needs = false;
        loop {
            let (theirs, ours) = (self.node(from).shard(), self.node(to).shard());
            let mut moved = false;
            for (origin, log) in &theirs.logs {
                let have = ours.logs.get(origin).map_or(0, |log| log.seq);
                if have >= log.seq {
                    continue;
                }
                let read = Read::Log {
                    shard: S,
                    origin: *origin,
                    after: have,
                    max_items: most,
                    max_bytes: usize::MAX,
                };
                let (before, entries) = match self.node(from).read(&read) {
                    ReadReply::Log(LogPage::Run { before, entries, .. }) => (before, entries),
                    ReadReply::Log(LogPage::Trimmed { .. }) => {
                        assert_eq!(to, Receiver, "only one store lost something");
                        needs = true;
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                let op = StoreOp::ApplyRemote {
                    shard: S,
                    epoch: self.node(to).epoch,
                    origin: *origin,
                    region: log.region.clone(),
                    first: have + 1,
                    before,
                    ops: entries.into_iter().map(|entry| entry.op).collect(),
                };
                match self.one(to, op) {
                    Outcome::Applied {
                        through,
                        stopped: None,
                    } => {
                        assert!(through > have);
                        moved = true;
                    }
                    Outcome::Applied {
                        stopped: Some(Stop::StartsAfter(_)),
                        ..
                    } => {}
                    other => panic!("a log does not continue: {other:?}"),
                }
            }
            if !moved || most < 1_000 {
                return needs;
            }
        }
    }

    /// Both confirm what they have, ship it, and trim: what is stable and consumed goes.
    fn round(&mut self) {
        for side in [Provider, Receiver] {
            self.live(side, &Life::Confirm);
            self.ship(side, 1_000);
        }
        for side in [Provider, Receiver] {
            self.live(side, &Life::Trim);
        }
    }

    /// Puts the receiver back to what it was after a part of what it did.
    fn lose(&mut self, left: u8) {
        let past = std::mem::take(&mut self.receiver.past);
        let begun = StoreIdentity {
            joining: left == 0,
            ..identity(1_000, &[HERE, THERE])
        };
        let harnesses = std::mem::take(&mut self.receiver.harnesses);
        let mut node = Node::create(harnesses, begun);
        let kept = match left {
            0 => 0,
            left => (past.len() * usize::from(left) / 100).max(1),
        };
        for what in past.into_iter().take(kept) {
            match what {
                Past::Commit(ops, now) => {
                    node.commit(ops, now);
                }
                Past::Open(identity) => node.open(identity),
            }
        }
        node.recovers = left == 0;
        self.receiver = node;
        let identity = self.fresh(Receiver);
        self.receiver.open(identity);
        self.bump(Receiver);
    }

    fn recover(&mut self, recovering: bool) {
        let (shard, epoch) = (S, self.receiver.epoch);
        let op = StoreOp::Recover {
            shard,
            epoch,
            recovering,
        };
        assert_eq!(self.one(Receiver, op), Outcome::Done { more: false });
        self.receiver.recovers = recovering;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Page(items, bytes) => {
                let page = self.next_page(*items, *bytes);
                self.merge(&page);
            }
            Step::Swapped(items, bytes) => {
                let first = self.next_page(*items, *bytes);
                if first.next.is_none() {
                    return self.merge(&first);
                }
                let second = self.next_page(*items, *bytes);
                let users: BTreeSet<&UserId> = first.users.iter().map(|user| &user.user).collect();
                let shared = second.users.iter().any(|user| users.contains(&user.user));
                let permitted = second.next.is_some() && !shared;
                let order = if permitted {
                    [&second, &first]
                } else {
                    [&first, &second]
                };
                for page in order {
                    self.merge(page);
                }
            }
            Step::Again => {
                let Some((cut, page)) = self.taking.last.clone() else {
                    return;
                };
                let before = self.receiver.everything();
                self.merge_one(&cut, &page);
                assert_eq!(
                    self.receiver.everything(),
                    before,
                    "a page changed something twice"
                );
            }
            Step::Anew => self.taking = Taking::default(),
            Step::Log(most) => {
                self.ship(Provider, usize::from(*most));
            }
            Step::Live(Receiver, Life::Ship(_) | Life::Round) | Step::Live(Provider, Life::Round) => {}
            Step::Live(side, life) => self.live(*side, life),
        }
    }

    fn next_page(&mut self, items: usize, bytes: usize) -> Arc<SnapshotPage> {
        let Taking { cut, at, .. } = &self.taking;
        let (cut, page) = self.provider.page(cut.clone(), at.clone(), items, bytes);
        self.taking.cut = Some(cut);
        self.taking.at = page.next.clone().unwrap_or_default();
        Arc::new(page)
    }

    fn merge(&mut self, page: &Arc<SnapshotPage>) {
        let Some(cut) = self.taking.cut.clone() else {
            panic!("a page has a cut");
        };
        let before = self.receiver.shard().applied();
        self.merge_one(&cut, page);
        let after = self.receiver.shard().applied();
        if page.next.is_some() {
            assert_eq!(before, after, "only the last page lets the logs jump");
        } else {
            for (origin, log) in &cut.logs {
                assert_eq!(after.of(*origin), before.of(*origin).max(log.seq));
            }
            self.taking = Taking::default();
        }
        self.taking.last = Some((cut, page.clone()));
    }

    fn merge_one(&mut self, cut: &Arc<Cut>, page: &Arc<SnapshotPage>) {
        for _ in 0..10 {
            let op = StoreOp::Merge {
                shard: S,
                epoch: self.receiver.epoch,
                cut: cut.clone(),
                page: page.clone(),
            };
            match self.one(Receiver, op) {
                Outcome::Done { more: false } => return,
                Outcome::Done { more: true } => {}
                other => panic!("{other:?}"),
            }
        }
        panic!("a page is never merged");
    }

    /// Takes logs and snapshots until the receiver has what the provider has.
    fn catch_up(&mut self) {
        for _ in 0..4 {
            if !self.ship(Provider, 1_000) {
                return;
            }
            loop {
                let page = self.next_page(5, 600);
                self.merge(&page);
                self.check_shape(Receiver);
                if page.next.is_none() {
                    break;
                }
            }
        }
        panic!("snapshots do not lead to the logs");
    }

    /// The cursors of all devices, as far as either store knows.
    fn cursors(&mut self) -> Vec<(UserId, DeviceId, Vector)> {
        let mut out = Vec::new();
        for side in [Provider, Receiver] {
            for name in USERS {
                let user = user(name);
                let devices = self.node(side).user(&user).devices;
                out.extend(
                    devices
                        .into_iter()
                        .map(|(device, row)| (user.clone(), device, row.cursor)),
                );
            }
        }
        out
    }

    /// What holds of a store at any time.
    fn check_shape(&mut self, side: Side) {
        for name in USERS {
            let user = user(name);
            let (row, inbox) = (self.node(side).user(&user), self.node(side).inbox(&user));
            let coords: BTreeSet<Coord> = inbox.iter().map(|entry| entry.at).collect();
            assert_eq!(coords.len(), inbox.len(), "a message waits twice");
            for entry in &inbox {
                let at = entry.at;
                let (envelope, op) = &self.messages[&at];
                assert_eq!((&envelope.to, op), (&user, &entry.op), "another message at {at}");
                assert!(!row.trimmed.covers(at), "{at} waits, and is gone");
                assert!(!in_gap(&row, at), "{at} waits, and is told to be gone");
                let copies = self.copies(at);
                let siblings = row.siblings.get(&at).into_iter().flatten();
                for sibling in siblings {
                    assert!(
                        copies.contains(sibling) && *sibling != at,
                        "{at} takes {sibling} for a copy"
                    );
                }
            }
            let unread = inbox.iter().filter(|entry| !row.counted.covers(entry.at));
            let (count, bytes) =
                unread.fold((0, 0), |(n, bytes), entry| (n + 1, bytes + entry.op.len() as u64));
            assert_eq!((row.unread, row.unread_bytes), (count, bytes), "{user}: {row:?}");
        }
    }

    /// The coordinates of a message and of its copies.
    fn copies(&self, at: Coord) -> BTreeSet<Coord> {
        let (envelope, op) = &self.messages[&at];
        let same = self.messages.iter().filter(|(_, (other, theirs))| {
            (&other.to, &other.from, other.id) == (&envelope.to, &envelope.from, envelope.id)
                && op.body() == theirs.body()
        });
        same.map(|(at, _)| *at).collect()
    }

    /// Nothing that waits for a device is missing, what is gone is told, and cursors and logs are where they belong.
    fn check_caught_up(&mut self, known: &[(UserId, DeviceId, Vector)]) {
        let (theirs, ours) = (self.provider.shard(), self.receiver.shard());
        for (origin, log) in &theirs.logs {
            let here = &ours.logs[origin];
            assert!(here.seq >= log.seq, "{origin:?} to {}, not {}", here.seq, log.seq);
            assert!(
                here.seq > log.seq || here.hash == log.hash,
                "{origin:?} has other bytes"
            );
        }
        for origin in ours.logs.keys() {
            self.check_log(*origin);
        }
        let mut known = known.to_vec();
        known.extend(self.cursors());
        for (user, device, cursor) in known {
            let row = self.receiver.user(&user);
            let here = &row.devices[&device].cursor;
            assert!(
                here.includes(&cursor),
                "{user}/{device}: {here:?}, not {cursor:?}"
            );
        }
        let applied = ours.applied();
        for name in USERS {
            let user = user(name);
            let (there, here) = (self.provider.user(&user), self.receiver.user(&user));
            let inbox: BTreeSet<Coord> = self.receiver.inbox(&user).iter().map(|entry| entry.at).collect();
            for entry in self.provider.inbox(&user) {
                let consumed = there.all_consumed(entry.at);
                assert!(
                    consumed || inbox.contains(&entry.at),
                    "{} of {user} is missing",
                    entry.at
                );
            }
            let messages = self.messages.iter().filter(|(at, (envelope, _))| {
                envelope.to == user && applied.covers(**at) && !inbox.contains(at)
            });
            for (at, _) in messages {
                let gone = there.trimmed.covers(*at) || here.all_consumed(*at);
                assert!(gone, "{at} of {user} is missing");
                let told = here.trimmed.covers(*at) || in_gap(&here, *at) || here.all_consumed(*at);
                assert!(told, "{at} of {user} is gone, and nobody is told: {here:?}");
            }
        }
    }

    /// From its floor to its end a log is gapless, and its hashes lead to one another.
    fn check_log(&mut self, origin: Origin) {
        let log = self.receiver.shard().logs[&origin].clone();
        let read = Read::Log {
            shard: S,
            origin,
            after: log.floor,
            max_items: 1_000,
            max_bytes: usize::MAX,
        };
        let ReadReply::Log(LogPage::Run { before, entries, end }) = self.receiver.read(&read) else {
            panic!("trimmed above its floor");
        };
        let (mut seq, mut hash) = (log.floor, log.floor_hash);
        assert_eq!((before, end), (hash, true));
        for entry in entries {
            (seq, hash) = (seq + 1, entry.op.running_hash(hash));
            assert_eq!((entry.seq, entry.hash), (seq, hash));
        }
        assert_eq!((seq, hash), (log.seq, log.hash));
    }

    /// Once it is open, both become the same, and answer for the same messages.
    fn check_equal(&mut self) {
        for _ in 0..4 {
            self.round();
        }
        assert_eq!(self.provider.shard().applied(), self.receiver.shard().applied());
        for name in USERS {
            let user = user(name);
            let (there, here) = (self.provider.user(&user), self.receiver.user(&user));
            assert_eq!(there.devices, here.devices, "{user}");
            let inbox: BTreeSet<Coord> = self.receiver.inbox(&user).iter().map(|entry| entry.at).collect();
            for entry in self.provider.inbox(&user) {
                let at = entry.at;
                assert!(
                    here.all_consumed(at) || inbox.contains(&at),
                    "{at} of {user} is missing"
                );
                if inbox.contains(&at) {
                    assert_eq!(
                        there.siblings.get(&at),
                        here.siblings.get(&at),
                        "copies of {at} of {user}"
                    );
                }
            }
        }
        let applied = self.provider.shard().applied();
        let messages: Vec<(Coord, Envelope, Bytes)> = self
            .messages
            .iter()
            .filter(|(at, _)| applied.covers(**at))
            .map(|(at, (envelope, op))| (*at, envelope.clone(), op.body()))
            .collect();
        for (at, envelope, body) in messages {
            for side in [Provider, Receiver] {
                let op = StoreOp::Append {
                    shard: S,
                    epoch: self.node(side).epoch,
                    envelope: Box::new(envelope.clone()),
                    body: body.clone(),
                    seen_ms: 0,
                    known_only: true,
                };
                let copies: BTreeSet<Coord> = self
                    .copies(at)
                    .into_iter()
                    .filter(|at| applied.covers(*at))
                    .collect();
                match self.one(side, op) {
                    Outcome::Duplicate(coords) => {
                        let coords: BTreeSet<Coord> = coords.into_iter().collect();
                        assert_eq!(coords, copies, "{at} at the {side:?}");
                    }
                    other => panic!("{at} at the {side:?}: {other:?}"),
                }
            }
        }
    }

    /// When all devices consumed everything, nothing is kept for them.
    fn check_emptied(&mut self) {
        let applied = self.receiver.shard().applied();
        for name in USERS {
            let user = user(name);
            for device in self.receiver.user(&user).devices.into_keys() {
                let op = StoreOp::Cursor {
                    shard: S,
                    epoch: self.receiver.epoch,
                    user: user.clone(),
                    device,
                    cursor: applied.clone(),
                };
                self.own(Receiver, op);
            }
        }
        for _ in 0..4 {
            self.round();
        }
        for side in [Provider, Receiver] {
            self.check_shape(side);
            for name in USERS {
                let user = user(name);
                let row = self.node(side).user(&user);
                if !row.devices.is_empty() {
                    let inbox = self.node(side).inbox(&user);
                    assert_eq!(inbox, Vec::new(), "{user} at the {side:?}: {row:?}");
                    assert_eq!(row.siblings, BTreeMap::new(), "{user} at the {side:?}");
                }
            }
        }
    }
}

fn append(epoch: Epoch, to: &str, from: &str, number: u8, odd: bool) -> StoreOp {
    StoreOp::Append {
        shard: S,
        epoch,
        envelope: Box::new(envelope(to, from, id(T0, u64::from(number)))),
        body: Bytes::from_static(if odd { b"odd" } else { b"even" }),
        seen_ms: 0,
        known_only: false,
    }
}

fn in_gap(row: &UserRow, at: Coord) -> bool {
    let mut before = row.gaps.range((at.origin, 0)..=(at.origin, at.seq));
    before.next_back().is_some_and(|(_, to)| at.seq <= *to)
}

fn pick<'a>(names: &[&'a str], number: u8) -> &'a str {
    names[usize::from(number) % names.len()]
}
