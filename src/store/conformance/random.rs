//! Random operations against several engines at once: every outcome and every read must be the same, and as the model
//! has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::Harness;
use super::kit::{HERE, Remote, S, T0, THERE, device, envelope, id, identity, user, vector};
use super::model::Model;
use crate::core::commit::{Outcome, StoreOp};
use crate::core::ids::{Coord, Epoch, MessageId, Origin, Seq, UserId};
use crate::core::op::{DeviceChange, Envelope, Op};
use crate::core::retire::Retirement;
use crate::core::snapshot::{Cut, SnapshotAt};
use crate::core::state::{DedupKey, ShardRow, StoreIdentity};
use crate::core::storage::InboxHole;
use crate::core::vector::Vector;
use crate::store::engine::{Engine, InboxEntry, LogPage, Read, ReadReply};
use crate::store::snapshot::order;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const HOUR_MS: u64 = 60 * 60 * 1000;
const USERS: [&str; 3] = ["bob", "carol", "dave"];
const DEVICES: [&str; 3] = ["phone", "tablet", "laptop"];
const SENDERS: [&str; 2] = ["alice", "erin"];

/// What happens next; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// A message: to, from, number of its id, body, days since the id was made, judged before.
    Append(u8, u8, u8, bool, u8, bool),
    /// A device acknowledged an origin's log to so many from its end.
    Cursor(u8, u8, u8, u8),
    Register(u8, u8, u8, u8),
    Confirm,
    Trim,
    Remove(u8),
    /// What is due of a user becomes holes.
    Expire(u8),
    /// A device that was not heard of for long expires.
    ExpireDevice(u8, u8),
    Bump,
    DropDedup(u8),
    /// An operation under an old epoch.
    Fenced(u8),
    /// The other region logs something.
    There(There),
    /// A run of its log arrives: how many it repeats, how many come, whether a gap is before it, or other bytes.
    Apply(u8, u8, bool, bool),
    /// The other region's store starts again.
    ThereRestarts,
    /// Time passes: hours.
    Wait(u16),
    /// What is collected so far is committed.
    Commit,
    Idle,
    /// Everything is trimmed and removed, as far as it may be.
    Settle,
    /// The store ends and starts again.
    Restart,
    /// The shard begins to recover, or is open.
    Recover(bool),
    /// Old origins are looked for, and retired where they may be.
    Retire,
    /// Everything is read.
    Look(u8),
}

/// What the other region logs.
#[derive(Debug, Clone)]
pub(crate) enum There {
    Append(u8, u8, u8, bool),
    Cursor(u8, u8, u8, u8),
    Register(u8, u8),
    Expire(u8, u8),
    Veto(u8, u8),
    Confirm(u8),
    /// A confirmation by which an old origin is retired there.
    Retired(u8),
}

pub(crate) fn acts(most: usize) -> impl Strategy<Value = Vec<Act>> {
    let there = prop_oneof![
        4 => (any::<u8>(), any::<u8>(), 0u8..12, any::<bool>()).prop_map(|(a, b, c, d)| There::Append(a, b, c, d)),
        2 => (any::<u8>(), any::<u8>(), any::<u8>(), 0u8..4).prop_map(|(a, b, c, d)| There::Cursor(a, b, c, d)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| There::Register(a, b)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| There::Expire(a, b)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| There::Veto(a, b)),
        3 => (0u8..4).prop_map(There::Confirm),
        1 => any::<u8>().prop_map(There::Retired),
    ];
    let append = (any::<u8>(), any::<u8>(), 0u8..12, any::<bool>(), 0u8..40, 0u8..20);
    let act = prop_oneof![
        12 => append.prop_map(|(a, b, c, d, e, f)| Act::Append(a, b, c, d, e, f == 0)),
        6 => (any::<u8>(), any::<u8>(), any::<u8>(), 0u8..4).prop_map(|(a, b, c, d)| Act::Cursor(a, b, c, d)),
        3 => (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(a, b, c, d)| Act::Register(a, b, c, d)),
        4 => Just(Act::Confirm),
        3 => Just(Act::Trim),
        2 => any::<u8>().prop_map(Act::Remove),
        4 => any::<u8>().prop_map(Act::Expire),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Act::ExpireDevice(a, b)),
        1 => Just(Act::Bump),
        1 => (0u8..30).prop_map(Act::DropDedup),
        1 => any::<u8>().prop_map(Act::Fenced),
        10 => there.prop_map(Act::There),
        8 => (0u8..4, 0u8..6, 0u8..12, 0u8..20).prop_map(|(a, b, c, d)| Act::Apply(a, b, c == 0, d == 0)),
        1 => Just(Act::ThereRestarts),
        1 => (0u16..100).prop_map(Act::Wait),
        20 => Just(Act::Commit),
        3 => Just(Act::Idle),
        2 => Just(Act::Settle),
        1 => Just(Act::Restart),
        1 => prop::bool::weighted(0.3).prop_map(Act::Recover),
        4 => Just(Act::Retire),
        3 => (1u8..6).prop_map(Act::Look),
    ];
    proptest::collection::vec(act, 1..most)
}

/// The engines under test, the model, and the other region.
struct Run<'a> {
    harnesses: Vec<&'a mut dyn Harness>,
    engines: Vec<Box<dyn Engine>>,
    model: Model,
    now: u64,
    batch: Vec<StoreOp>,
    logs: Vec<Remote>,
    /// What the other region confirmed.
    confirmed: Vector,
    origins: u64,
}

/// Runs the acts. The first act is always that an owner takes over.
pub(crate) fn drive(mut harnesses: Vec<&mut dyn Harness>, acts: &[Act], both: bool) {
    let mut first = identity(1_000, if both { &[HERE, THERE] } else { &[HERE] });
    first.limits.inbox_messages = 5;
    first.limits.devices = 2;
    first.limits.device_expiry_ms = DAY_MS;
    let engines = harnesses.iter_mut().map(|harness| harness.create(first.clone()));
    let engines = engines.collect();
    let mut run = Run {
        harnesses,
        engines,
        model: Model::new(first),
        now: T0,
        batch: vec![StoreOp::Bump { shard: S }],
        logs: vec![Remote::new(THERE, 500, None, T0)],
        confirmed: Vector::new(),
        origins: 0,
    };
    run.commit();
    for act in acts {
        run.act(act);
    }
    run.act(&Act::Restart);
    run.act(&Act::Settle);
    run.act(&Act::Look(3));
}

impl Run<'_> {
    fn epoch(&self) -> Epoch {
        // Operations behind a take-over in the same batch know its epoch.
        let bumps = self.batch.iter().filter(|op| matches!(op, StoreOp::Bump { .. }));
        Epoch(self.model.epoch.0 + bumps.count() as u64)
    }

    fn act(&mut self, act: &Act) {
        let epoch = self.epoch();
        let shard = S;
        match act {
            Act::Append(to, from, number, odd, age, known_only) => {
                // Most ids are new; a few lie out of the window.
                let age = if *age < 30 { 0 } else { u64::from(*age) - 30 };
                let id = id((self.now - age * DAY_MS) / DAY_MS * DAY_MS, u64::from(*number));
                let body = if *odd { "odd" } else { "even" };
                self.batch.push(StoreOp::Append {
                    shard,
                    epoch,
                    envelope: Box::new(self.envelope(*to, *from, id)),
                    body: Bytes::from_static(body.as_bytes()),
                    seen_ms: if *from > 250 { self.now + DAY_MS } else { 0 },
                    known_only: *known_only,
                });
            }
            Act::Cursor(of, with, origin, back) => {
                let cursor = self.position(*origin, *back);
                self.batch.push(StoreOp::Cursor {
                    shard,
                    epoch,
                    user: user(pick(&USERS, *of)),
                    device: device(pick(&DEVICES, *with)),
                    cursor,
                });
            }
            Act::Register(of, with, origin, back) => {
                let claim = if *back % 2 == 0 {
                    Vector::new()
                } else {
                    self.position(*origin, *back / 2)
                };
                self.batch.push(StoreOp::Register {
                    shard,
                    epoch,
                    user: user(pick(&USERS, *of)),
                    device: device(pick(&DEVICES, *with)),
                    claim,
                });
            }
            Act::Confirm => self.batch.push(StoreOp::Confirm { shard, epoch }),
            Act::Trim => {
                self.batch.push(StoreOp::Trim { shard, epoch });
                // What a device that expires held back is looked at when the batch ends.
                self.commit();
            }
            Act::Expire(of) => self.batch.push(StoreOp::Expire {
                shard,
                epoch,
                user: user(pick(&USERS, *of)),
                looked: None,
            }),
            Act::ExpireDevice(of, with) => self.batch.push(StoreOp::ExpireDevice {
                shard,
                epoch,
                user: user(pick(&USERS, *of)),
                device: device(pick(&DEVICES, *with)),
            }),
            Act::Remove(of) => self.batch.push(StoreOp::Remove {
                shard,
                epoch,
                user: user(pick(&USERS, *of)),
            }),
            Act::Bump => self.batch.push(StoreOp::Bump { shard }),
            Act::DropDedup(back) => {
                // A log may be trimmed and its origin then be called retired in one batch: what is stable says less by then.
                self.commit();
                self.model.old.floors = self.floors();
                let day = (self.now / DAY_MS - u64::from(*back)) as u32;
                self.batch.push(StoreOp::DropDedup { shard, epoch, day });
            }
            Act::Fenced(other) => self.batch.push(StoreOp::Confirm {
                shard,
                epoch: Epoch(epoch.0 + 1 + u64::from(*other)),
            }),
            Act::There(what) => self.there(what),
            Act::Apply(repeat, count, gap, other) => self.apply(*repeat, *count, *gap, *other),
            Act::ThereRestarts => {
                let last = self.logs.last().expect("there is always one");
                let previous = super::kit::at(last.origin.0, last.ops.len() as Seq);
                // Origins are random: the order of their numbers says nothing.
                let origin = 500 + (self.logs.len() as u64 * 7_919) % 997;
                self.logs
                    .push(Remote::new(THERE, origin, Some(previous), self.now));
            }
            Act::Wait(hours) => self.now += u64::from(*hours) * 60 * 60 * 1000 + 17,
            Act::Commit => {
                self.commit();
            }
            Act::Idle => {
                for engine in &mut self.engines {
                    engine.idle().unwrap();
                }
            }
            Act::Settle => self.settle(),
            Act::Restart => self.restart(),
            Act::Recover(recovering) => self.batch.push(StoreOp::Recover {
                shard,
                epoch,
                recovering: *recovering,
            }),
            Act::Retire => self.retire(),
            Act::Look(page) => {
                self.commit();
                self.look(usize::from(*page));
            }
        }
    }

    fn commit(&mut self) -> Vec<Outcome> {
        let ops = std::mem::take(&mut self.batch);
        self.now += 3;
        let mut results = Vec::new();
        for engine in &mut self.engines {
            results.push(engine.commit(ops.clone(), self.now).unwrap());
        }
        for result in &results[1..] {
            assert_eq!(*result, results[0], "the engines differ");
        }
        let committed = &results[0];
        assert_eq!(committed.outcomes.len(), ops.len());
        let mut logged = committed.logged.iter();
        for (op, outcome) in ops.iter().zip(&committed.outcomes) {
            self.model.step(op, self.now, outcome, &mut logged);
        }
        assert_eq!(logged.next(), None, "more was logged than was asked for");
        let outcomes = committed.outcomes.clone();
        self.model.remember();
        outcomes
    }

    /// A message: some have a time to live, of hours or of days.
    fn envelope(&self, to: u8, from: u8, id: MessageId) -> Envelope {
        let lives = [0, 0, HOUR_MS, 3 * DAY_MS][usize::from(id.0[15]) % 4];
        Envelope {
            expires_ms: if lives == 0 { 0 } else { self.now + lives },
            ..envelope(pick(&USERS, to), pick(&SENDERS, from), id)
        }
    }

    fn settle(&mut self) {
        self.commit();
        let (shard, epoch) = (S, self.epoch());
        self.batch.push(StoreOp::Trim { shard, epoch });
        for name in USERS {
            let user = user(name);
            self.batch.push(StoreOp::Remove { shard, epoch, user });
        }
        self.commit();
        for name in USERS {
            let user = user(name);
            let (inbox, holes) = (self.inbox(&user, 100), self.holes(&user));
            self.model.check_inbox(&user, &inbox, &holes);
            self.model.check_settled(&user, &inbox, &holes);
        }
        let ReadReply::Shard(row) = self.read(&Read::Shard(S)) else {
            panic!("not a shard");
        };
        for (origin, log) in &row.logs {
            // A stable vector may name what is not here yet.
            let stable = self.model.stable(*origin).min(log.seq);
            assert!(
                log.floor >= stable,
                "stable to {stable}, trimmed to {}",
                log.floor
            );
        }
    }

    fn floors(&mut self) -> Vector {
        let ReadReply::Shard(row) = self.read(&Read::Shard(S)) else {
            panic!("not a shard");
        };
        let logs = row.logs.iter();
        logs.map(|(origin, log)| (*origin, log.floor)).collect()
    }

    /// What an owner does in between: see `core::owner::retire`.
    fn retire(&mut self) {
        self.commit();
        let mut claims = Vec::new();
        for _ in 0..3 {
            let ReadReply::Shard(row) = self.read(&Read::Shard(S)) else {
                panic!("not a shard");
            };
            let rests = row.logs.iter().filter(|(_, log)| log.floor == log.seq);
            self.model.old.rests = rests.map(|(origin, _)| *origin).collect();
            let gone = row.old.unneeded.iter().chain(&claims);
            let gone: BTreeSet<Origin> = gone.copied().collect();
            self.model.old.forget_claims(&gone);
            let (shard, epoch) = (S, self.epoch());
            let unneeded = std::mem::take(&mut claims);
            self.batch.push(StoreOp::Retire {
                shard,
                epoch,
                unneeded,
            });
            let Some(Outcome::Retired(Retirement { look, .. })) = self.commit().pop() else {
                panic!("not retired");
            };
            for (origin, stored) in look {
                claims.extend(self.look_for(origin, stored));
            }
        }
    }

    /// Looks for users who need an origin, and lets go of what waits where it is retired elsewhere.
    fn look_for(&mut self, origin: Origin, stored: bool) -> Option<Origin> {
        let needed = Read::Needed {
            shard: S,
            origins: BTreeSet::from([origin]),
            stored,
            from: None,
        };
        let ReadReply::Needed(page) = self.read(&needed) else {
            panic!("not who needs");
        };
        let first = page.users.first().map(|(who, _)| who.clone());
        for name in USERS {
            let user = user(name);
            let waits = self
                .inbox(&user, 100)
                .into_iter()
                .any(|entry| entry.at.origin == origin);
            let needs = page.users.iter().any(|(who, _)| *who == user);
            let behind = first.as_ref().is_some_and(|first| order(first) < order(&user));
            assert!(needs || behind || !waits, "{name} has messages of {origin:?}");
            // A hole at the end of what was kept stands where messages were: who reads no messages cannot tell it from one.
            let mut ends_in_hole = || {
                let ReadReply::User(row) = self.read(&Read::User(S, user.clone())) else {
                    panic!("not a user");
                };
                row.timed.last_of(origin) > row.trimmed.of(origin)
            };
            assert!(!stored || needs == waits || (needs && ends_in_hole()));
        }
        if stored {
            let (shard, epoch) = (S, self.epoch());
            for (user, origins) in &page.users {
                self.batch.push(StoreOp::Forgo {
                    shard,
                    epoch,
                    user: user.clone(),
                    origins: origins.clone(),
                });
            }
            self.batch.push(StoreOp::Trim { shard, epoch });
            self.commit();
        }
        page.users.is_empty().then_some(origin)
    }

    fn restart(&mut self) {
        self.commit();
        self.origins += 1;
        let origin = Origin((self.origins * 104_729) % 10_007 + 2_000);
        let identity = StoreIdentity {
            origin,
            ..self.model.identity.clone()
        };
        self.model.identity = identity.clone();
        // The origin of before may have been called retired: from now on that counts.
        self.model.remember();
        let old = std::mem::take(&mut self.engines);
        for (harness, engine) in self.harnesses.iter_mut().zip(old) {
            self.engines.push(harness.reopen(engine, identity.clone()));
        }
        self.batch.push(StoreOp::Bump { shard: S });
        self.commit();
        self.look(4);
    }

    fn look(&mut self, page: usize) {
        let ReadReply::Shard(row) = self.read(&Read::Shard(S)) else {
            panic!("not a shard");
        };
        assert_eq!(row.applied(), self.model.applied());
        assert_eq!(row.epoch, self.model.epoch);
        for name in USERS {
            let user = user(name);
            self.read(&Read::User(S, user.clone()));
            let (inbox, holes) = (self.inbox(&user, page), self.holes(&user));
            self.model.check_inbox(&user, &inbox, &holes);
        }
        self.read(&Read::Users {
            shard: S,
            after: page.is_multiple_of(2).then(|| user(USERS[0])),
            max_items: page,
        });
        for (origin, log) in &row.logs {
            self.check_log(*origin, log.floor, page);
        }
        self.check_snapshot(&row, page);
    }

    /// A snapshot in pages of this size holds of each user what waits below the cut, and each id that is remembered there.
    fn check_snapshot(&mut self, row: &ShardRow, page: usize) {
        let engines = self.engines.iter_mut();
        let mut found = engines.map(|engine| snapshot(engine.as_mut(), page));
        let (cut, dedup, messages) = found.next().expect("an engine");
        for other in found {
            assert_eq!(
                other,
                (cut.clone(), dedup.clone(), messages.clone()),
                "the engines differ"
            );
        }
        for (origin, log) in &row.logs {
            assert!(cut.seq(*origin) >= log.floor && cut.seq(*origin) <= log.seq);
        }
        for name in USERS {
            let user = user(name);
            let waits = self.inbox(&user, 100).into_iter().map(|entry| entry.at);
            let below: BTreeSet<Coord> = waits.filter(|at| cut.covers(*at)).collect();
            assert_eq!(messages.get(&user).cloned().unwrap_or_default(), below);
        }
        assert!(dedup.values().flatten().all(|(_, at)| cut.tells(*at)));
        let ids: BTreeSet<DedupKey> = dedup.into_keys().collect();
        assert_eq!(ids, self.model.remembered(&cut));
    }

    fn check_log(&mut self, origin: Origin, floor: Seq, page: usize) {
        let log = self.model.logs[&origin].clone();
        let told = self.model.old.told.contains(&origin);
        assert!(floor <= log.was_stable || told, "trimmed above stable (R9)");
        if floor > 0 {
            let read = log_read(origin, floor - 1, page);
            assert_eq!(self.read(&read), ReadReply::Log(LogPage::Trimmed { floor }));
        }
        let (mut after, mut hash) = (floor, None);
        loop {
            let ReadReply::Log(LogPage::Run { before, entries, end }) =
                self.read(&log_read(origin, after, page))
            else {
                panic!("trimmed above its floor");
            };
            assert!(hash.is_none_or(|hash| hash == before));
            let mut running = before;
            for entry in entries {
                after += 1;
                running = entry.op.running_hash(running);
                assert_eq!((entry.seq, entry.hash), (after, running));
                assert_eq!(entry.op, log.ops[after as usize - 1]);
            }
            hash = Some(running);
            if end {
                break;
            }
        }
        assert_eq!(after, log.ops.len() as Seq);
    }

    fn inbox(&mut self, user: &UserId, page: usize) -> Vec<InboxEntry> {
        let mut after = Vector::new();
        let mut out = Vec::new();
        loop {
            let read = Read::Inbox {
                shard: S,
                user: user.clone(),
                after: after.clone(),
                max_items: page,
                max_bytes: 300 * page,
            };
            let ReadReply::Inbox(page) = self.read(&read) else {
                panic!("not an inbox");
            };
            for entry in page.entries {
                after.raise(entry.at.origin, entry.at.seq);
                out.push(entry);
            }
            if page.end {
                return out;
            }
        }
    }

    fn holes(&mut self, user: &UserId) -> Vec<InboxHole> {
        let read = Read::Inbox {
            shard: S,
            user: user.clone(),
            after: Vector::new(),
            max_items: 1,
            max_bytes: 1,
        };
        match self.read(&read) {
            ReadReply::Inbox(page) => page.holes,
            _ => panic!("not an inbox"),
        }
    }

    /// The same from every engine.
    fn read(&mut self, read: &Read) -> ReadReply {
        let mut replies = self.engines.iter_mut().map(|engine| engine.read(read).unwrap());
        let first = replies.next().expect("an engine");
        for reply in replies {
            assert_eq!(reply, first, "the engines differ: {read:?}");
        }
        first
    }

    fn there(&mut self, what: &There) {
        let now = self.now;
        let known = self.model.applied();
        let model = self.model.clone();
        let epoch = |of: &u8, with: &u8| {
            let at = (user(pick(&USERS, *of)), device(pick(&DEVICES, *with)));
            model.devices.get(&at).map_or(1, |known| known.epoch.max(1))
        };
        let made = match what {
            There::Append(to, from, number, _) => {
                Some(self.envelope(*to, *from, id(now / DAY_MS * DAY_MS, u64::from(*number))))
            }
            _ => None,
        };
        let log = self.logs.last_mut().expect("there is always one");
        let change = |of: &u8, with: &u8, change| Op::Device {
            user: user(pick(&USERS, *of)),
            device: device(pick(&DEVICES, *with)),
            change,
        };
        let op = match what {
            There::Append(.., odd) => {
                let body = if *odd { "odd" } else { "even" };
                let envelope = made.expect("a message was made");
                Op::Append(envelope, Bytes::from_static(body.as_bytes()))
            }
            There::Cursor(of, with, origin, back) => {
                // A cursor there may cover what is not here yet.
                let mut origins: Vec<(u64, Seq)> = known.iter().map(|(o, seq)| (o.0, seq)).collect();
                origins.push((log.origin.0, log.ops.len() as Seq));
                let (origin, seq) = origins[usize::from(*origin) % origins.len()];
                Op::Cursor {
                    user: user(pick(&USERS, *of)),
                    device: device(pick(&DEVICES, *with)),
                    cursor: vector(&[(origin, seq.saturating_sub(u64::from(*back)).max(1))]),
                }
            }
            There::Register(of, with) => {
                let cursor = Vector::new();
                let epoch = epoch(of, with);
                change(of, with, DeviceChange::Register { epoch, cursor })
            }
            There::Expire(of, with) => {
                let epoch = epoch(of, with);
                change(of, with, DeviceChange::Expire { epoch })
            }
            There::Veto(of, with) => {
                let epoch = epoch(of, with);
                change(of, with, DeviceChange::Veto { epoch })
            }
            There::Confirm(back) => {
                let back = u64::from(*back);
                let mut applied: Vector = known
                    .iter()
                    .map(|(origin, seq)| (origin, seq.saturating_sub(back)))
                    .collect();
                applied.raise(log.origin, log.ops.len() as Seq);
                // What a holder has confirmed it keeps.
                self.confirmed.merge(&applied);
                let applied = self.confirmed.clone();
                Op::Confirm {
                    holder: log.region.clone(),
                    applied,
                    needed: Vec::new(),
                    retired: Some(Vec::new()),
                }
            }
            There::Retired(which) => {
                let mut applied = known.clone();
                applied.raise(log.origin, log.ops.len() as Seq);
                self.confirmed.merge(&applied);
                let mut applied = self.confirmed.clone();
                let old: Vec<(Origin, Seq)> = known.iter().filter(|(o, _)| *o != log.origin).collect();
                let mut retired = Vec::new();
                if let Some((origin, seq)) = old.get(usize::from(*which) % old.len().max(1)) {
                    // An origin of ours that we go on under is none: it is not believed.
                    applied.remove(*origin);
                    self.confirmed.remove(*origin);
                    retired.push(super::kit::at(origin.0, *seq));
                }
                Op::Confirm {
                    holder: log.region.clone(),
                    applied,
                    needed: Vec::new(),
                    retired: Some(retired),
                }
            }
        };
        log.push(now, &op);
    }

    fn apply(&mut self, repeat: u8, count: u8, gap: bool, other: bool) {
        let applied = self.model.applied();
        let behind = |log: &&Remote| applied.of(log.origin) < log.ops.len() as Seq;
        let log = self.logs.iter().find(behind).or(self.logs.last());
        let mut log = log.expect("there is always one").clone();
        let have = applied.of(log.origin);
        let last = log.ops.len() as Seq;
        let first = if gap {
            have + 2
        } else {
            (have + 1).saturating_sub(u64::from(repeat)).max(1)
        };
        let first = first.min(last);
        let to = (first + u64::from(repeat) + u64::from(count)).min(last);
        if other && first > 1 {
            // Another history before the run.
            log.ops.swap(0, first as usize - 2);
        }
        let mut run = log.run(self.epoch(), first, to);
        if let StoreOp::ApplyRemote { attached, .. } = &mut run
            && repeat == 1
        {
            let all = USERS
                .iter()
                .flat_map(|of| DEVICES.iter().map(|with| (user(of), device(with))));
            attached.extend(all);
        }
        self.batch.push(run);
    }

    /// A position in one of the logs that are here, or behind their end.
    fn position(&self, origin: u8, back: u8) -> Vector {
        let applied: Vec<(Origin, Seq)> = self.model.applied().iter().collect();
        let Some((origin, seq)) = applied.get(usize::from(origin) % applied.len().max(1)) else {
            return Vector::new();
        };
        let seq = match back {
            3 => seq + 5,
            back => seq.saturating_sub(u64::from(back)).max(1),
        };
        vector(&[(origin.0, seq)])
    }
}

type Bodies = BTreeMap<DedupKey, Vec<(u128, Coord)>>;

/// A whole snapshot in pages of this size: dedup records, and each user's messages.
fn snapshot(engine: &mut dyn Engine, page: usize) -> (Arc<Cut>, Bodies, BTreeMap<UserId, BTreeSet<Coord>>) {
    let (mut cut, mut at) = (None, Some(SnapshotAt::Start));
    let (mut dedup, mut messages) = (Bodies::new(), BTreeMap::<UserId, BTreeSet<Coord>>::new());
    while let Some(after) = at {
        let read = Read::Snapshot {
            shard: S,
            cut: cut.clone(),
            after,
            max_items: page,
            max_bytes: 300 * page,
        };
        let ReadReply::Snapshot(of, found) = engine.read(&read).unwrap() else {
            panic!("not a snapshot");
        };
        assert!(cut.is_none_or(|cut| cut == of), "the cut moves");
        for (key, bodies) in found.dedup {
            assert_eq!(dedup.insert(key, bodies), None, "a record comes twice");
        }
        for user in found.users {
            let known = messages.entry(user.user).or_default();
            for entry in user.entries {
                assert!(known.insert(entry.at), "a message comes twice");
            }
        }
        at = found.next;
        cut = Some(of);
    }
    (cut.expect("at least one page"), dedup, messages)
}

fn log_read(origin: Origin, after: Seq, page: usize) -> Read {
    Read::Log {
        shard: S,
        origin,
        after,
        max_items: page,
        max_bytes: 300 * page,
    }
}

fn pick<'a>(names: &[&'a str], number: u8) -> &'a str {
    names[usize::from(number) % names.len()]
}
