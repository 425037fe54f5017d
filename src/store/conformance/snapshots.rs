//! Two stores, of which one loses something and takes it back from the other (R4, R11): each on several engines at once,
//! of which every outcome and every read must be the same.
//!
//! Both live and ship their logs to each other. Then the receiver is put back to an earlier state, or to nothing, may go on
//! for a while without knowing, recovers, and takes logs and pages of snapshots in whatever order a plan says. In the end
//! it must have all that the provider has.

mod check;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use node::{Node, Past};

use super::Harness;
use super::kit::{HERE, S, T0, THERE, device, envelope, id, identity, region, user};
use crate::core::commit::{Outcome, Refusal, Stop, StoreOp};
use crate::core::expire::EXPIRY_MARGIN_MS;
use crate::core::ids::{Coord, DeviceId, Epoch, Origin, Seq, UserId};
use crate::core::op::{Envelope, LoggedOp, Op};
use crate::core::snapshot::{Cut, SnapshotAt, SnapshotPage};
use crate::core::state::StoreIdentity;
use crate::core::vector::Vector;
use crate::store::engine::{LogPage, Read, ReadReply};

const USERS: [&str; 3] = ["bob", "carol", "erin-marie"];
const DEVICES: [&str; 3] = ["phone", "tablet", "laptop"];
const SENDERS: [&str; 2] = ["alice", "dave"];
const DUE: u64 = T0 - EXPIRY_MARGIN_MS;

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
    /// What is due of a user becomes holes.
    Expire(u8),
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
            3 => any::<u8>().prop_map(Life::Expire),
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
    /// What the receiver removed by itself, and not as it merged: a device that registers elsewhere meanwhile finds what is
    /// still there (R17).
    removed: BTreeMap<UserId, Vector>,
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
        removed: BTreeMap::new(),
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
    run.removed = run.trimmed();
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
            Life::Expire(of) => {
                let op = StoreOp::Expire {
                    shard,
                    epoch,
                    user: user(pick(&USERS, *of)),
                    looked: None,
                };
                assert_eq!(self.one(side, op), Outcome::Expired { next: None });
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
                    attached: Vec::new(),
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
                let before = self.trimmed();
                self.ship(Provider, usize::from(*most));
                self.note_removed(&before);
            }
            Step::Live(Receiver, Life::Ship(_) | Life::Round) | Step::Live(Provider, Life::Round) => {}
            Step::Live(side, life) => {
                let before = self.trimmed();
                self.live(*side, life);
                self.note_removed(&before);
            }
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
            let before = self.trimmed();
            let needs = self.ship(Provider, 1_000);
            self.note_removed(&before);
            if !needs {
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
}

fn append(epoch: Epoch, to: &str, from: &str, number: u8, odd: bool) -> StoreOp {
    StoreOp::Append {
        shard: S,
        epoch,
        envelope: Box::new(Envelope {
            // Some are due as soon as the log does not need them.
            expires_ms: if number.is_multiple_of(3) { DUE } else { 0 },
            ..envelope(to, from, id(T0, u64::from(number)))
        }),
        body: Bytes::from_static(if odd { b"odd" } else { b"even" }),
        seen_ms: 0,
        known_only: false,
    }
}

fn pick<'a>(names: &[&'a str], number: u8) -> &'a str {
    names[usize::from(number) % names.len()]
}
