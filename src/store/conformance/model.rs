//! A naive reference, written from the rules of replication and not from the code: whole histories in lists and sets,
//! no marks, no counters, nothing removed. It says what an operation must come to, and which of the things that a store
//! shows may be missing.

mod shown;

use std::collections::{BTreeMap, BTreeSet};

use crate::core::commit::{ID_FUTURE_MS, ID_WINDOW_MS, Outcome, Refusal, Stop, StoreOp, TIME_MARGIN_MS};
use crate::core::ids::{Coord, DeviceId, Epoch, MessageId, Origin, RegionId, Seq, UserId};
use crate::core::op::{DeviceChange, LoggedOp, Op, digest, kind};
use crate::core::retire::{CAME_LATER, RETIRED};
use crate::core::snapshot::Cut;
use crate::core::state::{DedupKey, Logged, StoreIdentity};
use crate::core::time::Hlc;
use crate::core::vector::Vector;

/// Clocks that agree are no further apart.
const MARGIN_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// One shard, as the rules have it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) identity: StoreIdentity,
    pub(crate) epoch: Epoch,
    /// It says nothing of its own (R4).
    recovers: bool,
    pub(crate) logs: BTreeMap<Origin, Log>,
    pub(crate) messages: Vec<Message>,
    pub(crate) devices: BTreeMap<(UserId, DeviceId), Device>,
    /// What each holder confirmed, with the operation that said so.
    confirmed: BTreeMap<RegionId, Said>,
    /// Highest hybrid time logged or seen.
    hlc: Hlc,
    /// The origin of the last own operation.
    own: Option<Origin>,
    /// Ids of before this day are forgotten.
    forgotten: u32,
    /// Of each user and origin, the furthest to which every message was consumed at some moment: what limits do not
    /// count any more.
    prefixes: BTreeMap<(UserId, Origin), Seq>,
    /// The same where those that may be gone hold nothing back: the model does not know when a message is removed, and one
    /// that was is not in the way when a device comes that has not consumed it.
    furthest: BTreeMap<(UserId, Origin), Seq>,
    /// Operations since our last confirmation: other than confirmations, and confirmations of others.
    since: (u64, u64),
    /// What we list or need changed since then, or somebody listed what is retired.
    changed: bool,
    pub(crate) old: Old,
}

/// Old origins (R23).
#[derive(Debug, Clone, Default)]
pub(crate) struct Old {
    /// Tombstones.
    pub(crate) retired: BTreeMap<Origin, Seq>,
    /// Found not to be needed here, at some time.
    claimed: BTreeSet<Origin>,
    /// Retired elsewhere, as was ever said and believed: their logs may go.
    pub(crate) told: BTreeSet<Origin>,
    /// Of those, the ones that the store still takes for that, and the logs that are trimmed to their ends: read from it
    /// before it is asked to retire.
    pub(crate) rests: BTreeSet<Origin>,
    /// To where logs are trimmed, read before days are dropped: what is retired elsewhere may be beyond what is stable.
    pub(crate) floors: Vector,
}

impl Old {
    /// What a device that came, or a late copy, needs again.
    pub(crate) fn forget_claims(&mut self, but: &BTreeSet<Origin>) {
        self.claimed.retain(|origin| but.contains(origin));
    }
}

/// What a holder last said.
#[derive(Debug, Clone)]
struct Said {
    at: (Hlc, Origin, Seq),
    applied: Vector,
    needed: Vec<Origin>,
    retired: Option<Vec<Coord>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) ops: Vec<LoggedOp>,
    /// Highest sequence that ever was stable.
    pub(crate) was_stable: Seq,
    /// To here it was trimmed.
    floor: Seq,
}

#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) at: Coord,
    pub(crate) to: UserId,
    from: UserId,
    id: MessageId,
    digest: u128,
    op: LoggedOp,
    /// Whether the store may still answer for its id.
    remembered: bool,
    /// Whether it ever was stable and consumed by every device, so that it may be gone.
    may_go: bool,
    /// A hole stands for it.
    expired: bool,
}

/// What a commit says that it logged.
pub(crate) type Reported<'a> = std::slice::Iter<'a, Logged>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Device {
    pub(crate) epoch: u32,
    expired: bool,
    cursor: BTreeMap<Origin, Seq>,
    /// When it was heard of last, and when somebody objected last that it expires.
    seen: u64,
    objected: u64,
    /// Expiries of its epoch that have no effect yet.
    pending: Vec<Coord>,
    /// What may have been removed when it expired: until then it counted as consumed by it, too.
    removed: BTreeMap<Origin, Seq>,
}

impl Model {
    pub(crate) fn new(identity: StoreIdentity) -> Self {
        Self {
            identity,
            epoch: Epoch(0),
            recovers: false,
            logs: BTreeMap::new(),
            messages: Vec::new(),
            devices: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            hlc: Hlc::default(),
            own: None,
            forgotten: 0,
            prefixes: BTreeMap::new(),
            furthest: BTreeMap::new(),
            since: (0, 0),
            changed: false,
            old: Old::default(),
        }
    }

    pub(crate) fn applied(&self) -> Vector {
        let logs = self.logs.iter().filter(|(origin, _)| self.lists(**origin));
        logs.map(|(origin, log)| (*origin, log.ops.len() as Seq))
            .collect()
    }

    fn lists(&self, origin: Origin) -> bool {
        !self.old.retired.contains_key(&origin)
    }

    fn reached(&self, origin: Origin) -> Seq {
        let retired = self.old.retired.get(&origin).copied();
        retired.unwrap_or_else(|| self.applied().of(origin))
    }

    /// The lowest of what the holders confirmed (R8).
    pub(crate) fn stable(&self, origin: Origin) -> Seq {
        let holders = self.identity.holders.iter();
        let each = holders.map(|holder| {
            self.confirmed
                .get(holder)
                .map_or(0, |said| said.applied.of(origin))
        });
        each.min().unwrap_or(0)
    }

    /// Checks what became of an operation; takes what it logged from `logged`.
    pub(crate) fn step(&mut self, op: &StoreOp, now: u64, outcome: &Outcome, logged: &mut Reported<'_>) {
        let fenced = Outcome::Refused(Refusal::Fenced { current: self.epoch });
        let epoch = match op {
            StoreOp::Bump { .. } => self.epoch,
            op => op.epoch().expect("all others have one"),
        };
        if epoch != self.epoch {
            assert_eq!(*outcome, fenced);
            return;
        }
        let own = matches!(
            op,
            StoreOp::Append { .. }
                | StoreOp::Cursor { .. }
                | StoreOp::Register { .. }
                | StoreOp::Confirm { .. }
                | StoreOp::ExpireDevice { .. }
        );
        if own && self.recovers {
            assert_eq!(*outcome, Outcome::Refused(Refusal::Recovering));
            return;
        }
        self.old.told.extend(self.told().keys());
        match op {
            StoreOp::Recover { recovering, .. } => {
                if self.recovers && !recovering {
                    // What it confirmed before may be more than it has: that is news.
                    self.since.0 += 1;
                }
                self.recovers = *recovering;
                assert_eq!(*outcome, Outcome::Done { more: false });
            }
            StoreOp::Mark { .. } | StoreOp::Behind { .. } | StoreOp::Holders { .. } => {
                unreachable!("told case by case: conformance::holders")
            }
            StoreOp::Retire { unneeded, .. } => self.retire(unneeded, outcome),
            StoreOp::Forgo { user, origins, .. } => {
                self.forgo(user, origins);
                assert_eq!(*outcome, Outcome::Done { more: false });
            }
            StoreOp::Merge { .. } => {
                unreachable!("the model knows one store: conformance::snapshots compares two")
            }
            StoreOp::Bump { .. } => {
                self.epoch = Epoch(self.epoch.0 + 1);
                assert_eq!(*outcome, Outcome::Bumped { epoch: self.epoch });
            }
            StoreOp::Append {
                envelope,
                body,
                seen_ms,
                known_only,
                ..
            } => {
                let same = |m: &&Message| {
                    m.remembered && m.id == envelope.id && m.to == envelope.to && m.from == envelope.from
                };
                let known: Vec<&Message> = self.messages.iter().filter(same).collect();
                let body_digest = digest(envelope.kind, body);
                let copies = known.iter().filter(|m| m.digest == body_digest);
                let copies: Vec<Coord> = copies.map(|m| m.at).collect();
                let forgotten = match self.forgotten {
                    0 => 0,
                    day => u64::from(day) * DAY_MS + ID_WINDOW_MS,
                };
                let server_ms = now.max(self.hlc.ms).max(*seen_ms).max(forgotten);
                let refusal = match envelope.id.unix_ms() {
                    _ if !copies.is_empty() => {
                        assert_eq!(*outcome, Outcome::Duplicate(copies));
                        return;
                    }
                    _ if !known.is_empty() => Some(Refusal::IdReused),
                    _ if *known_only => Some(Refusal::AlreadyJudged),
                    None => Some(Refusal::IdMalformed),
                    Some(ms) if ms + ID_WINDOW_MS < server_ms => Some(Refusal::IdTooOld { server_ms }),
                    Some(ms) if ms > server_ms + ID_FUTURE_MS => Some(Refusal::IdInFuture { server_ms }),
                    Some(_) => None,
                };
                if let Some(refusal) = refusal {
                    assert_eq!(*outcome, Outcome::Refused(refusal));
                    return;
                }
                let limit = self.identity.limits.inbox_messages as usize;
                let of_user = || self.messages.iter().filter(|m| m.to == envelope.to);
                let behind = |marks: &BTreeMap<(UserId, Origin), Seq>| -> Vec<Coord> {
                    let waits = |m: &&Message| !m.expired && m.at.seq > mark(marks, &m.to, m.at.origin);
                    of_user().filter(waits).map(|m| m.at).collect()
                };
                let (most, least) = (behind(&self.prefixes), behind(&self.furthest));
                if let Outcome::Refused(Refusal::InboxFull { messages, .. }) = outcome {
                    let range = least.len()..=most.len();
                    assert!(range.contains(&(*messages as usize)), "{messages}, not {most:?}");
                    assert!(most.len() >= limit, "full with {most:?}");
                    return;
                }
                assert!(least.len() < limit, "accepted though {least:?} wait");
                let expected = Op::Append((**envelope).clone(), body.clone());
                let at = self.take_own(now, &expected, logged);
                assert_eq!(*outcome, Outcome::Appended(at));
            }
            StoreOp::Cursor {
                user, device, cursor, ..
            } => {
                let cursor = clamp(cursor, &self.applied());
                let known = self.devices.get(&(user.clone(), device.clone()));
                if known.is_none_or(|known| !known.covers_all(&cursor)) {
                    let (user, device) = (user.clone(), device.clone());
                    self.take_claim(now, &Op::Cursor { user, device, cursor }, logged);
                }
                assert_eq!(*outcome, Outcome::Done { more: false });
            }
            StoreOp::Register {
                user, device, claim, ..
            } => {
                let mut cursor = clamp(claim, &self.applied());
                let known = self.devices.get(&(user.clone(), device.clone()));
                let mut of_user = self.messages.iter().filter(|m| m.to == *user);
                let mut past = of_user.any(|m| !self.lists(m.at.origin));
                past &= known.is_none_or(|known| known.expired);
                if past {
                    cursor.raise(RETIRED, CAME_LATER);
                }
                let after = self.identity.limits.device_expiry_ms;
                let fresh = |known: &Device| after == 0 || known.seen + after / 4 > now;
                let expires = known.is_some_and(|known| known.expired || !known.pending.is_empty());
                let renews = expires || !known.is_some_and(fresh);
                if renews || !known.is_some_and(|known| known.covers_all(&cursor)) {
                    let live = self.devices.iter();
                    let live = live.filter(|((of, _), known)| of == user && !known.expired);
                    let limit = self.identity.limits.devices;
                    if known.is_none_or(|known| known.expired) && live.count() >= limit {
                        let limit = limit as u64;
                        assert_eq!(*outcome, Outcome::Refused(Refusal::TooManyDevices { limit }));
                        return;
                    }
                    let epoch = known.map_or(1, |known| known.epoch.max(1) + u32::from(expires));
                    let (user, device) = (user.clone(), device.clone());
                    let change = DeviceChange::Register { epoch, cursor };
                    let op = Op::Device { user, device, change };
                    match renews {
                        true => _ = self.take_own(now, &op, logged),
                        false => self.take_claim(now, &op, logged),
                    }
                }
                assert_eq!(*outcome, Outcome::Done { more: false });
            }
            StoreOp::Confirm { .. } => {
                let due = self.since.0 > 0 || self.changed;
                if due || self.since.1 >= 8.max(self.identity.holders.len() as u64) {
                    // The start of a new origin is applied when the confirmation is made.
                    self.take_start(now, logged);
                    let applied = self.applied();
                    let named = self.named_retired();
                    let entry = logged.next().expect("a confirmation is reported");
                    let Ok(Op::Confirm {
                        holder,
                        applied: told,
                        needed,
                        retired,
                    }) = entry.entry.op.decode()
                    else {
                        panic!("not a confirmation");
                    };
                    assert_eq!((holder, told), (self.identity.region.clone(), applied));
                    assert_eq!(retired, Some(named));
                    self.check_needed(&needed);
                    self.record(entry);
                }
                assert_eq!(*outcome, Outcome::Done { more: false });
            }
            StoreOp::ApplyRemote {
                origin,
                region,
                first,
                before,
                ops,
                attached,
                ..
            } => self.apply_remote(*origin, region, *first, *before, (ops, attached), outcome, logged),
            StoreOp::Trim { .. } => {
                assert_eq!(*outcome, Outcome::Done { more: false });
                self.trim();
            }
            StoreOp::Remove { .. } => assert_eq!(*outcome, Outcome::Done { more: false }),
            StoreOp::Expire { user, .. } => {
                assert_eq!(*outcome, Outcome::Expired { next: None });
                if !self.recovers {
                    self.expire(user, now);
                }
            }
            StoreOp::ExpireDevice { user, device, .. } => {
                assert_eq!(*outcome, Outcome::Done { more: false });
                let after = self.identity.limits.device_expiry_ms;
                let known = self.devices.get(&(user.clone(), device.clone()));
                let known = known.filter(|known| !known.expired && known.pending.is_empty() && after > 0);
                let asks = |known: &&Device| known.seen.max(known.objected) + after + MARGIN_MS <= now;
                if let Some(known) = known.filter(|known| known.seen == 0 || asks(known)) {
                    let change = match known.seen {
                        0 => DeviceChange::Register {
                            epoch: known.epoch.max(1),
                            cursor: Vector::new(),
                        },
                        _ => DeviceChange::Expire { epoch: known.epoch },
                    };
                    let (user, device) = (user.clone(), device.clone());
                    self.take_own(now, &Op::Device { user, device, change }, logged);
                }
            }
            StoreOp::DropDedup { day, .. } => {
                let left_window = |day: u32| (u64::from(day) + 1) * DAY_MS + ID_WINDOW_MS;
                let old = |day: &u32| now > left_window(*day) + TIME_MARGIN_MS;
                let stable = |day: &u32| {
                    let mut logs = self.logs.iter().filter(|(origin, _)| self.lists(**origin));
                    logs.all(|(origin, log)| {
                        let floor = self.old.floors.of(*origin);
                        let stable = match self.told().contains_key(origin) {
                            true => log.ops.len(),
                            false => self.stable(*origin).max(floor) as usize,
                        };
                        let mut rest = log.ops.get(stable..).unwrap_or_default().iter();
                        rest.all(|op| op.kind() != kind::APPEND || op.hlc().ms > left_window(*day))
                    })
                };
                let aged = (0..=*day).rev().find(old);
                let gone = aged.and_then(|aged| (0..=aged).rev().find(stable));
                if let Some(gone) = gone.filter(|gone| *gone >= self.forgotten) {
                    self.forgotten = gone + 1;
                    for message in &mut self.messages {
                        message.remembered &= message.id.unix_ms().unwrap_or(0) / DAY_MS > u64::from(gone);
                    }
                }
                let more = gone < aged;
                assert_eq!(*outcome, Outcome::Done { more });
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one operation")]
    fn apply_remote(
        &mut self,
        origin: Origin,
        region: &RegionId,
        first: Seq,
        before: u64,
        (ops, attached): (&[LoggedOp], &[(UserId, DeviceId)]),
        outcome: &Outcome,
        logged: &mut Reported<'_>,
    ) {
        if let Some(through) = self.old.retired.get(&origin).copied() {
            let stopped = None;
            return assert_eq!(*outcome, Outcome::Applied { through, stopped });
        }
        let have = self.logs.get(&origin).map_or(0, |log| log.ops.len() as Seq);
        let expect = |through, stopped| {
            assert_eq!(*outcome, Outcome::Applied { through, stopped });
        };
        if first == 0 || first > have + 1 {
            return expect(have, Some(Stop::Gap { have, first }));
        }
        let overlap = (have + 1 - first) as usize;
        if ops.len() >= overlap {
            let theirs = ops[..overlap]
                .iter()
                .fold(before, |hash, op| op.running_hash(hash));
            let ours = self
                .logs
                .get(&origin)
                .map_or(0, |log| log.ops.iter().fold(0, |hash, op| op.running_hash(hash)));
            if ours != theirs {
                let at = have;
                return expect(have, Some(Stop::Diverged { at, ours, theirs }));
            }
        }
        let mut through = have;
        for op in ops.iter().skip(overlap) {
            let seq = through + 1;
            let stop = match op.decode() {
                Err(error) => Some(Stop::Unreadable { at: seq, error }),
                Ok(Op::Start {
                    region: owner,
                    previous,
                }) => {
                    let missing = previous.filter(|at| self.reached(at.origin) < at.seq);
                    if seq != 1 || owner != *region {
                        Some(Stop::OutOfPlace(seq))
                    } else {
                        missing.map(Stop::StartsAfter)
                    }
                }
                Ok(_) if seq == 1 => Some(Stop::OutOfPlace(seq)),
                Ok(_) => None,
            };
            if stop.is_some() {
                return expect(through, stop);
            }
            let entry = logged.next().expect("an applied operation is reported");
            assert_eq!((entry.origin, entry.entry.seq, entry.own), (origin, seq, false));
            assert_eq!(entry.entry.op, *op);
            self.record(entry);
            self.take_veto(op, attached, logged);
            through = seq;
        }
        expect(through, None);
    }

    /// A device that is attached here, or was heard of later than the other region knew, is said to stay (R19).
    fn take_veto(&mut self, op: &LoggedOp, attached: &[(UserId, DeviceId)], logged: &mut Reported<'_>) {
        let Ok(Op::Device {
            user,
            device,
            change: DeviceChange::Expire { epoch },
        }) = op.decode()
        else {
            return;
        };
        let key = (user, device);
        let known = &self.devices[&key];
        let lately = known.seen + self.identity.limits.device_expiry_ms > op.hlc().ms;
        let objects = lately || self.identity.limits.device_expiry_ms == 0 || attached.contains(&key);
        if known.epoch == epoch && !known.pending.is_empty() && objects && !self.recovers {
            let (user, device) = key;
            let change = DeviceChange::Veto { epoch };
            self.take_own(0, &Op::Device { user, device, change }, logged);
        }
    }

    /// Logs lose what is stable; expiries of devices among it take effect, since every holder has them and none objected.
    fn trim(&mut self) {
        let told = self.told();
        let to = |(origin, log): (&Origin, &Log)| match told.contains_key(origin) {
            true => (*origin, log.ops.len() as Seq),
            false => (*origin, self.stable(*origin)),
        };
        let floors: BTreeMap<Origin, Seq> = self.logs.iter().map(to).collect();
        for (origin, log) in &mut self.logs {
            log.floor = log.floor.max(floors[origin]);
        }
        for ((user, _), device) in &mut self.devices {
            let stable = |at: &Coord| at.seq <= floors.get(&at.origin).copied().unwrap_or(0);
            if device.pending.iter().any(stable) {
                device.expired = true;
                device.pending.clear();
                let to = |(origin, log): (&Origin, &Log)| {
                    (*origin, log.was_stable.min(mark(&self.furthest, user, *origin)))
                };
                device.removed = self.logs.iter().map(to).collect();
            }
        }
    }

    /// What is due and left the log becomes a hole (R18).
    fn expire(&mut self, user: &UserId, now: u64) {
        for message in self.messages.iter_mut().filter(|m| m.to == *user) {
            let expires = message.op.envelope().map_or(0, |envelope| envelope.expires_ms);
            let due = expires != 0 && expires + MARGIN_MS <= now;
            message.expired |= due && message.at.seq <= self.logs[&message.at.origin].floor;
        }
    }

    /// The next logged operations are this one, after a start where the origin is new.
    fn take_own(&mut self, now: u64, expected: &Op, logged: &mut Reported<'_>) -> Coord {
        self.take_start(now, logged);
        self.take_here(expected, logged)
    }

    /// The next logged operation is this one, unless all that it claims was removed before: that counts as consumed by the
    /// devices which were known then, without a word in the log (R10).
    fn take_claim(&mut self, now: u64, expected: &Op, logged: &mut Reported<'_>) {
        let (Op::Cursor { user, device, cursor }
        | Op::Device {
            user,
            device,
            change: DeviceChange::Register { cursor, .. },
        }) = expected
        else {
            panic!("claims nothing: {expected:?}");
        };
        let starts = |next: &&Logged| next.own && next.entry.op.kind() == kind::START;
        let mut following = logged.as_slice().iter().skip_while(starts);
        let is_next = following
            .next()
            .is_some_and(|next| next.own && next.entry.op.decode().as_ref() == Ok(expected));
        if is_next {
            self.take_own(now, expected, logged);
            return;
        }
        let key = (user.clone(), device.clone());
        let known = self.devices.get(&key);
        let removed = |known: &Device, origin: Origin, seq: Seq| match known.expired {
            true => known.removed.get(&origin).is_some_and(|to| seq <= *to),
            false => {
                let stable = self.logs.get(&origin).map_or(0, |log| log.was_stable);
                seq <= stable.min(mark(&self.furthest, user, origin))
            }
        };
        let passed = known.is_some_and(|known| {
            let mut claims = cursor.iter();
            claims.all(|(origin, seq)| known.covers(Coord { origin, seq }) || removed(known, origin, seq))
        });
        assert!(passed, "an own operation is not reported: {expected:?}");
        self.devices.entry(key).or_default().merge(cursor);
    }

    fn take_start(&mut self, _now: u64, logged: &mut Reported<'_>) {
        let origin = self.identity.origin;
        if self.own == Some(origin) {
            return;
        }
        let region = self.identity.region.clone();
        // The last one that is listed: the one before may have been retired on a word.
        let mut ours: Vec<Origin> = self.logs.keys().copied().collect();
        ours.retain(|origin| self.lists(*origin) && self.region_of(*origin) == region);
        let last = ours
            .into_iter()
            .max_by_key(|origin| self.logs[origin].ops[0].hlc());
        let previous = last.map(|origin| Coord {
            origin,
            seq: self.logs[&origin].ops.len() as Seq,
        });
        self.take_here(&Op::Start { region, previous }, logged);
        self.own = Some(origin);
    }

    fn take_here(&mut self, expected: &Op, logged: &mut Reported<'_>) -> Coord {
        let entry = logged.next().expect("an own operation is reported");
        let seq = self.applied().of(self.identity.origin) + 1;
        let at = Coord {
            origin: self.identity.origin,
            seq,
        };
        assert_eq!((entry.coord(), entry.own), (at, true));
        assert_eq!(entry.entry.op.decode().as_ref(), Ok(expected));
        assert!(entry.entry.op.hlc() > self.hlc, "hybrid time does not rise (R7)");
        self.record(entry);
        at
    }

    fn record(&mut self, logged: &Logged) {
        let (at, op) = (logged.coord(), &logged.entry.op);
        let log = self.logs.entry(at.origin).or_insert_with(|| Log {
            ops: Vec::new(),
            was_stable: 0,
            floor: 0,
        });
        assert_eq!(at.seq, log.ops.len() as Seq + 1, "sequences are contiguous");
        log.ops.push(op.clone());
        self.hlc = self.hlc.max(logged.hlc);
        let decoded = op.decode().unwrap();
        if !matches!(decoded, Op::Confirm { .. }) {
            self.since.0 += 1;
        } else if logged.region != self.identity.region {
            self.since.1 += 1;
        }
        match decoded {
            Op::Start { .. } | Op::Holders(_) => {}
            Op::Append(envelope, body) => self.messages.push(Message {
                at,
                to: envelope.to,
                from: envelope.from,
                id: envelope.id,
                digest: digest(envelope.kind, &body),
                op: op.clone(),
                remembered: true,
                may_go: false,
                expired: false,
            }),
            Op::Cursor { user, device, cursor } => {
                let device = self.devices.entry((user, device)).or_default();
                device.merge(&cursor);
                device.seen = device.seen.max(op.hlc().ms);
            }
            Op::Device { user, device, change } => {
                let device = self.devices.entry((user, device)).or_default();
                match change {
                    DeviceChange::Register { epoch, cursor } => {
                        device.raise(epoch);
                        device.merge(&cursor);
                        device.seen = device.seen.max(op.hlc().ms);
                    }
                    DeviceChange::Expire { epoch } => {
                        device.raise(epoch);
                        if device.epoch == epoch && !device.expired {
                            device.pending.push(at);
                        }
                    }
                    DeviceChange::Veto { epoch } => {
                        device.raise(epoch + 1);
                        device.objected = device.objected.max(op.hlc().ms);
                    }
                }
            }
            Op::Confirm {
                holder,
                applied,
                needed,
                retired,
            } => {
                let at = (op.hlc(), at.origin, at.seq);
                let own = holder == self.identity.region;
                if own {
                    self.since = (0, 0);
                    self.changed = false;
                }
                let known = self.confirmed.get(&holder);
                if known.is_none_or(|known| known.at < at) {
                    let stale = applied.iter().any(|(origin, _)| !self.lists(origin));
                    self.changed |= !own && stale;
                    let said = Said {
                        at,
                        applied,
                        needed,
                        retired,
                    };
                    self.confirmed.insert(holder, said);
                }
            }
        }
        self.remember();
    }

    /// Notes what is stable and consumed at this moment.
    pub(crate) fn remember(&mut self) {
        self.old.told.extend(self.told().keys());
        let stable: BTreeMap<Origin, Seq> = self.logs.keys().map(|o| (*o, self.stable(*o))).collect();
        for (origin, log) in &mut self.logs {
            log.was_stable = log.was_stable.max(stable[origin]);
        }
        for index in 0..self.messages.len() {
            let at = self.messages[index].at;
            let consumed = self.consumed(index);
            let stable = at.seq <= self.logs[&at.origin].was_stable || self.old.told.contains(&at.origin);
            self.messages[index].may_go |= consumed && stable;
        }
        let (mut ended, mut blocked) = (BTreeSet::new(), BTreeSet::new());
        for index in 0..self.messages.len() {
            let Message { at, to, may_go, .. } = self.messages[index].clone();
            let key = (to, at.origin);
            let consumed = self.consumed(index);
            if !consumed {
                ended.insert(key.clone());
            }
            if !consumed && !may_go {
                blocked.insert(key.clone());
            }
            for (marks, ended) in [(&mut self.prefixes, &ended), (&mut self.furthest, &blocked)] {
                if !ended.contains(&key) {
                    let mark = marks.entry(key.clone()).or_default();
                    *mark = (*mark).max(at.seq);
                }
            }
        }
    }

    /// Whether there is a device and each has consumed the message, or a copy of it (R10, R15).
    fn consumed(&self, index: usize) -> bool {
        let message = &self.messages[index];
        let of_user = self.devices.iter();
        let of_user = of_user.filter(|((user, _), device)| *user == message.to && !device.expired);
        let devices: Vec<&Device> = of_user.map(|(_, device)| device).collect();
        let copies = self.copies(message);
        let covers = |device: &Device| copies.iter().any(|at| self.covers(device, *at));
        !devices.is_empty() && devices.into_iter().all(covers)
    }

    /// Whether a device consumed a copy. One in a retired origin was consumed by every device that was known then, and
    /// those that come later are told once that something is gone (R23).
    fn covers(&self, device: &Device, at: Coord) -> bool {
        device.covers(at) || !self.lists(at.origin)
    }

    /// The coordinates of a message and its copies.
    fn copies(&self, message: &Message) -> BTreeSet<Coord> {
        let same = |m: &&Message| {
            (&m.to, &m.from, m.id, m.digest) == (&message.to, &message.from, message.id, message.digest)
        };
        self.messages.iter().filter(same).map(|m| m.at).collect()
    }

    /// The ids that must still be answered for, of messages below a cut.
    pub(crate) fn remembered(&self, cut: &Cut) -> BTreeSet<DedupKey> {
        let below = self.messages.iter().filter(|m| m.remembered && cut.tells(m.at));
        let keys = below.map(|m| DedupKey {
            id: m.id,
            recipient: m.to.clone(),
            sender: m.from.clone(),
        });
        keys.collect()
    }

    /// Retired origins that some holder's last confirmation lists.
    fn named_retired(&self) -> Vec<Coord> {
        let listed = |origin: &Origin| {
            let mut said = self.confirmed.values();
            said.any(|said| said.applied.of(*origin) > 0)
        };
        let named = self.old.retired.iter().filter(|(origin, _)| listed(origin));
        named
            .map(|(origin, seq)| Coord {
                origin: *origin,
                seq: *seq,
            })
            .collect()
    }

    /// Of regions with several origins, at least those must be named that nobody ever looked for in vain.
    fn check_needed(&self, needed: &[Origin]) {
        let region = |origin: &Origin| self.region_of(*origin);
        let listed: Vec<Origin> = self.applied().iter().map(|(origin, _)| origin).collect();
        for origin in &listed {
            let others = listed.iter().filter(|other| region(other) == region(origin));
            let several = others.count() > 1;
            let named = needed.contains(origin);
            assert!(!named || several, "{origin:?} is its region's only one");
            assert!(
                named || !several || self.old.claimed.contains(origin),
                "{origin:?} is not needed, and nobody looked"
            );
        }
    }

    fn region_of(&self, origin: Origin) -> RegionId {
        match self.logs[&origin].ops[0].decode() {
            Ok(Op::Start { region, .. }) => region,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the region of an origin confirmed, in a later one, that it has it; gives that one.
    fn later(&self, origin: Origin) -> Option<Origin> {
        let said = self.confirmed.get(&self.region_of(origin))?;
        let later = said.at.1;
        let both = said.applied.of(origin) > 0 && said.applied.of(later) > 0;
        (both && later != origin && self.lists(later)).then_some(later)
    }

    /// What is retired elsewhere, by the word of those who had no more than we have.
    fn told(&self) -> BTreeMap<Origin, Seq> {
        let has = |said: &&Said| {
            let mut applied = said.applied.iter();
            // What is retired here is known to its end, whatever somebody lists of it.
            applied.all(|(origin, seq)| !self.lists(origin) || self.reached(origin) >= seq)
        };
        let said = self.confirmed.values().filter(has);
        let named = said.filter_map(|said| said.retired.as_ref()).flatten();
        let named = named.map(|at| (at.origin, at.seq));
        let mut told: BTreeMap<Origin, Seq> = named.collect();
        told.retain(|origin, _| self.lists(*origin) && self.identity.origin != *origin);
        told
    }

    fn retire(&mut self, unneeded: &[Origin], outcome: &Outcome) {
        let Outcome::Retired(found) = outcome else {
            panic!("{outcome:?}");
        };
        let told = self.told();
        for origin in unneeded.iter().filter(|origin| self.old.rests.contains(origin)) {
            if self.old.claimed.insert(*origin) {
                self.changed = true;
            }
        }
        let mut expected = BTreeMap::new();
        let listed: Vec<(Origin, Seq)> = self.applied().iter().collect();
        for (origin, end) in listed {
            if !self.old.rests.contains(&origin) || !self.old.claimed.contains(&origin) {
                continue;
            }
            let agrees = |later: Origin, holder: &RegionId| {
                self.confirmed.get(holder).is_some_and(|said| {
                    said.applied.of(later) > 0
                        && said.applied.of(origin) == end
                        && said.retired.is_some()
                        && !said.needed.contains(&origin)
                })
            };
            let mut holders = self.identity.holders.iter();
            let judged = self
                .later(origin)
                .is_some_and(|later| holders.all(|holder| agrees(later, holder)));
            if let Some(end) = told.get(&origin) {
                expected.insert(origin, *end);
            } else if judged && !self.recovers {
                expected.insert(origin, end);
            }
        }
        let unknown = told.iter().filter(|(origin, _)| !self.logs.contains_key(origin));
        expected.extend(unknown);
        assert_eq!(found.retired, expected);
        self.changed |= !expected.is_empty();
        self.old.retired.extend(expected);
    }

    fn forgo(&mut self, user: &UserId, origins: &BTreeSet<Origin>) {
        let told = self.told();
        for message in self.messages.iter_mut().filter(|m| m.to == *user) {
            let origin = message.at.origin;
            if origins.contains(&origin) && told.contains_key(&origin) {
                let devices = self.devices.iter_mut();
                for (_, device) in devices.filter(|((of, _), device)| of == user && !device.expired) {
                    device.merge(&Vector::from_iter([(origin, message.at.seq)]));
                    message.may_go = true;
                }
            }
        }
        self.remember();
    }
}

impl Device {
    fn covers(&self, at: Coord) -> bool {
        self.cursor.get(&at.origin).is_some_and(|seq| *seq >= at.seq)
    }

    fn covers_all(&self, cursor: &Vector) -> bool {
        cursor
            .iter()
            .all(|(origin, seq)| self.covers(Coord { origin, seq }))
    }

    /// Registered under a later epoch: what was of the one before is over.
    fn raise(&mut self, epoch: u32) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.expired = false;
            self.pending.clear();
        }
    }

    fn merge(&mut self, cursor: &Vector) {
        for (origin, seq) in cursor.iter() {
            let known = self.cursor.entry(origin).or_default();
            *known = (*known).max(seq);
        }
    }
}

fn mark(marks: &BTreeMap<(UserId, Origin), Seq>, user: &UserId, origin: Origin) -> Seq {
    marks.get(&(user.clone(), origin)).copied().unwrap_or(0)
}

fn clamp(cursor: &Vector, applied: &Vector) -> Vector {
    let items = cursor
        .iter()
        .map(|(origin, seq)| (origin, seq.min(applied.of(origin))));
    items.filter(|(_, seq)| *seq > 0).collect()
}
