//! Which rows a batch of operations needs, in two rounds: what they name, and what the rows of the first named.

use std::collections::BTreeSet;

use super::{StoreOp, TRIM_READS};
use crate::core::defect::{self, Defect};
use crate::core::expire::{self, Expiry};
use crate::core::holders;
use crate::core::ids::{Coord, DeviceId, Origin, RegionId, Seq, ShardId, UserId};
use crate::core::op::{Envelope, LoggedOp, Op, kind};
use crate::core::snapshot;
use crate::core::state::{DedupKey, ShardRow, ShardState, State, StoreIdentity, UserState};
use crate::core::trim::trimmable;

/// A row that an operation needs beside the heads of its shard, which are always loaded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The row of a user.
    User(ShardId, UserId),
    /// A dedup record.
    Dedup(ShardId, DedupKey),
    /// Up to [`TRIM_STEP`](super::TRIM_STEP) log entries above a sequence and at or below another one, as a page where they are
    /// not in memory.
    Log(ShardId, Origin, Seq, Seq),
    /// Log entries above a sequence to the first that is not a confirmation, up to [`HOLDER_LOOK`](super::HOLDER_LOOK), as a page
    /// of their own where they are not in memory.
    First(ShardId, Origin, Seq),
    /// Up to [`CONSUME_STEP`](super::CONSUME_STEP) inbox entries above a sequence, likewise.
    Inbox(ShardId, UserId, Origin, Seq),
}

/// The rows that operations need, first round. The shard rows must be loaded.
pub fn needs(ops: &[StoreOp], state: &State) -> Vec<Need> {
    let mut out = Vec::new();
    let mut trim_reads = TRIM_READS;
    for (index, op) in ops.iter().enumerate() {
        let shard = op.shard();
        match op {
            StoreOp::Append { envelope, .. } => {
                out.push(Need::User(shard, envelope.to.clone()));
                out.push(Need::Dedup(shard, DedupKey::of(envelope)));
            }
            StoreOp::Cursor { user, .. }
            | StoreOp::Register { user, .. }
            | StoreOp::Forgo { user, .. }
            | StoreOp::Remove { user, .. }
            | StoreOp::Expire { user, .. }
            | StoreOp::ExpireDevice { user, .. } => {
                out.push(Need::User(shard, user.clone()));
            }
            StoreOp::ApplyRemote { ops, .. } => {
                for op in ops {
                    match op.decode() {
                        Ok(Op::Append(envelope, _)) => {
                            out.push(Need::User(shard, envelope.to.clone()));
                            out.push(Need::Dedup(shard, DedupKey::of(&envelope)));
                        }
                        Ok(Op::Cursor { user, .. } | Op::Device { user, .. }) => {
                            out.push(Need::User(shard, user));
                        }
                        _ => {}
                    }
                }
            }
            StoreOp::Trim { .. } => {
                if let Some(known) = state.shards.get(&shard) {
                    let reach = Reach::after(&ops[..index], shard, known, &state.identity);
                    for (origin, log) in &known.row.logs {
                        let mut to = reach.of(*origin, &known.row, &state.identity);
                        let behind = known.logs.get(origin).map_or(log.floor, |series| series.behind);
                        let reads = to.min(behind).saturating_sub(log.floor);
                        if reads > trim_reads {
                            to = log.floor + trim_reads;
                        }
                        trim_reads -= reads.min(trim_reads);
                        // A log that nothing leaves now is not read.
                        if to > log.floor {
                            out.push(Need::Log(shard, *origin, log.floor, to));
                        }
                    }
                }
            }
            StoreOp::DropDedup { .. } => {
                if let Some(known) = state.shards.get(&shard) {
                    // Below its floor a log is not there, though confirmations say less where it was retired elsewhere.
                    let logs = known.row.logs.iter().map(|(origin, log)| {
                        let stable = known.row.agreed_to(*origin, &state.identity);
                        Need::Log(shard, *origin, stable.max(log.floor), Seq::MAX)
                    });
                    out.extend(logs);
                }
            }
            StoreOp::Merge { cut, page, .. } => {
                if let Some(known) = state.shards.get(&shard) {
                    let logs = snapshot::covered(&known.row, cut);
                    out.extend(logs.map(|(origin, floor, to)| Need::Log(shard, origin, floor, to)));
                }
                for (key, _) in &page.dedup {
                    out.push(Need::Dedup(shard, key.clone()));
                }
                for user in &page.users {
                    out.push(Need::User(shard, user.user.clone()));
                    let ops = user.entries.iter();
                    let ops = ops.filter_map(|entry| LoggedOp::from_bytes(entry.op.clone()).ok());
                    let keys = ops.filter_map(|op| Some(DedupKey::of(&op.envelope().ok()?)));
                    out.extend(keys.map(|key| Need::Dedup(shard, key)));
                }
            }
            StoreOp::Mark { absent, .. } => {
                if let Some(known) = state.shards.get(&shard) {
                    let logs = absent
                        .iter()
                        .flat_map(|holder| holders::waits_from(known, holder));
                    out.extend(logs.map(|(origin, after)| Need::First(shard, origin, after)));
                }
            }
            StoreOp::Bump { .. }
            | StoreOp::Confirm { .. }
            | StoreOp::Retire { .. }
            | StoreOp::Behind { .. }
            | StoreOp::Holders { .. }
            | StoreOp::Recover { .. } => {}
        }
    }
    out
}

/// The rows that operations need, second round: what the rows of the first named.
pub fn needs_more(ops: &[StoreOp], state: &State) -> Vec<Need> {
    let mut out = Vec::new();
    // A device that expires earlier in the batch may return later in it.
    let mut changed = BTreeSet::new();
    for (index, op) in ops.iter().enumerate() {
        let Some(shard) = state.shards.get(&op.shard()) else {
            continue;
        };
        let id = op.shard();
        match op {
            StoreOp::Cursor { user, device, .. } | StoreOp::Register { user, device, .. } => {
                let device = (!changed.contains(&(id, user.clone()))).then_some(device);
                inbox_needs(id, shard, user, From::Device(device), &mut out);
            }
            StoreOp::Remove { user, .. } | StoreOp::Forgo { user, .. } => {
                inbox_needs(id, shard, user, From::Consumed, &mut out);
            }
            StoreOp::Expire { user, looked, .. } => {
                let parts = expire::looked_at(shard, user, looked.map(|looked| looked.to));
                out.extend(parts.map(|(origin, after)| Need::Inbox(id, user.clone(), origin, after)));
            }
            StoreOp::ExpireDevice { user, .. } => {
                inbox_needs(id, shard, user, From::Device(None), &mut out);
            }
            StoreOp::ApplyRemote {
                origin, first, ops, ..
            } => {
                for (op, seq) in ops.iter().zip(*first..) {
                    match op.decode() {
                        Ok(Op::Cursor { user, device, .. }) => {
                            let device = (!changed.contains(&(id, user.clone()))).then_some(&device);
                            inbox_needs(id, shard, &user, From::Device(device), &mut out);
                        }
                        Ok(Op::Device { user, .. }) => {
                            inbox_needs(id, shard, &user, From::Device(None), &mut out);
                            changed.insert((id, user));
                        }
                        Ok(Op::Append(envelope, _)) => {
                            let at = Coord { origin: *origin, seq };
                            if may_consume(shard, &envelope, at) {
                                inbox_needs(id, shard, &envelope.to, From::Consumed, &mut out);
                            }
                        }
                        _ => {}
                    }
                }
            }
            StoreOp::Trim { .. } => {
                let reach = Reach::after(&ops[..index], id, shard, &state.identity);
                for (origin, log) in &shard.row.logs {
                    let to = reach.of(*origin, &shard.row, &state.identity);
                    let mut users = BTreeSet::new();
                    for (seq, _, op) in trimmable(shard, *origin, log.floor, to) {
                        users.extend(op.recipient());
                        let at = Coord { origin: *origin, seq };
                        let expiry = op.op().and_then(|op| Expiry::of(op, at));
                        out.extend(expiry.map(|expiry| Need::User(id, expiry.user())));
                    }
                    let users = users.into_iter().filter_map(|user| UserId::new(user).ok());
                    out.extend(users.map(|user| Need::User(id, user)));
                }
            }
            StoreOp::Merge { cut, page, .. } => {
                for (origin, floor, to) in snapshot::covered(&shard.row, cut) {
                    for (_, _, op) in trimmable(shard, origin, floor, to) {
                        let to = op.recipient().and_then(|to| UserId::new(to).ok());
                        out.extend(to.map(|to| Need::User(id, to)));
                    }
                }
                // Whoever has a message here that is known there under another coordinate.
                let known = page.dedup.iter().filter(|(key, _)| shard.dedup.contains_key(key));
                out.extend(known.map(|(key, _)| Need::User(id, key.recipient.clone())));
                for user in &page.users {
                    inbox_needs(id, shard, &user.user, From::Device(None), &mut out);
                }
            }
            _ => {}
        }
    }
    out
}

/// To where logs may be trimmed at most once the earlier operations of a batch are done.
#[derive(Debug)]
enum Reach {
    /// Nobody can tell: where origins are retired elsewhere, each operation that logs something may let one go (R23), a change of
    /// the holders may be complete, and a snapshot says what holders confirmed.
    Any,
    /// These holders may have confirmed everything by then, or be marked; the others say what they say now.
    Without(BTreeSet<RegionId>),
}

impl Reach {
    fn after(earlier: &[StoreOp], id: ShardId, shard: &ShardState, identity: &StoreIdentity) -> Self {
        let mut earlier = earlier.iter().filter(|earlier| earlier.shard() == id).peekable();
        let changing = shard.row.holding.set.as_ref().is_some_and(|set| !set.is_done());
        let unclear = changing || shard.row.is_told();
        if defect::on(Defect::TrimByTime) || (unclear && earlier.peek().is_some()) {
            return Reach::Any;
        }
        let mut without = BTreeSet::new();
        for op in earlier {
            match op {
                StoreOp::Confirm { .. } => {
                    without.insert(identity.region.clone());
                }
                StoreOp::Mark { absent, .. } => without.extend(absent.iter().cloned()),
                StoreOp::Holders { .. } | StoreOp::Merge { .. } => return Reach::Any,
                StoreOp::ApplyRemote { ops, .. } => {
                    for op in ops {
                        match op.kind() {
                            kind::CONFIRM => match op.decode() {
                                Ok(Op::Confirm { holder, retired, .. }) => {
                                    let named = retired.iter().flatten();
                                    if shard.row.lists_any(named.map(|at| &at.origin)) {
                                        return Reach::Any;
                                    }
                                    without.insert(holder);
                                }
                                _ => return Reach::Any,
                            },
                            kind::HOLDERS => return Reach::Any,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Reach::Without(without)
    }

    fn of(&self, origin: Origin, row: &ShardRow, identity: &StoreIdentity) -> Seq {
        match self {
            Reach::Any => Seq::MAX,
            Reach::Without(nobody) if nobody.is_empty() => row.trim_to(origin, identity),
            Reach::Without(them) => row.released_without(origin, &identity.holders, them),
        }
    }
}

/// Where an operation begins to look for entries that became consumed.
enum From<'a> {
    /// Where it ended before.
    Consumed,
    /// With a device that did not count until now, at the first entry that is kept (R17); `None` may be such a device.
    Device(Option<&'a DeviceId>),
}

/// The entries that may become consumed.
fn inbox_needs(id: ShardId, shard: &ShardState, user: &UserId, from: From<'_>, out: &mut Vec<Need>) {
    let Some(UserState { row, inbox, .. }) = shard.users.get(user).map(Box::as_ref) else {
        return;
    };
    let counts = |device: &DeviceId| row.devices.get(device).is_some_and(|known| !known.expired);
    let from = match from {
        From::Consumed => &row.consumed,
        From::Device(Some(device)) if counts(device) => &row.consumed,
        From::Device(_) => &row.trimmed,
    };
    let needs = inbox
        .keys()
        .map(|origin| Need::Inbox(id, user.clone(), *origin, from.of(*origin)));
    out.extend(needs);
}

/// Whether a message from another log could be consumed as it arrives, or make an earlier one so (R15).
fn may_consume(shard: &ShardState, envelope: &Envelope, at: Coord) -> bool {
    let Some(user) = shard.users.get(&envelope.to) else {
        return false;
    };
    let mut devices = user.row.devices.values();
    devices.any(|device| device.cursor.covers(at))
        || (!user.row.devices.is_empty() && shard.dedup.contains_key(&DedupKey::of(envelope)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::holders::{HolderSet, HoldersChange};
    use crate::core::ids::{Epoch, RegionId, Sharding};
    use crate::core::state::{ConfirmRow, LogRow, StoreIdentity, StoreLimits};
    use crate::core::time::Hlc;
    use crate::core::vector::Vector;

    const SHARD: ShardId = ShardId(3);
    const LOG: Origin = Origin(10);

    /// A log that was trimmed to 5 and goes to 2,000, of which the other holder has as much as it says.
    fn confirmed_to(seq: Seq) -> State {
        let region = |name| RegionId::new(name).expect("a plain name is valid");
        let holders = BTreeSet::from([region("eu-west"), region("us-east")]);
        let mut state = State::new(StoreIdentity {
            cluster: 1,
            region: region("us-east"),
            origin: LOG,
            holders: holders.clone(),
            sharding: Sharding { count: 8, seed: 1 },
            limits: StoreLimits::default(),
            joining: false,
        });
        let log = LogRow {
            region: region("us-east"),
            seq: 2_000,
            hash: 0,
            floor: 5,
            floor_hash: 0,
            previous: None,
            hlc: Hlc::default(),
        };
        let said = |applied| ConfirmRow {
            applied: Vector::from_iter([(LOG, applied)]),
            needed: Vec::new(),
            at: (Hlc::default(), LOG, 1),
            retired: None,
            stale: Vec::new(),
        };
        let mut shard = ShardState::default();
        shard.row.logs = [(LOG, log)].into();
        shard.row.confirmed = [(region("us-east"), said(2_000)), (region("eu-west"), said(seq))].into();
        state.shards.insert(SHARD, shard);
        state
    }

    #[test]
    fn a_trim_reads_no_more_of_a_log_than_can_go() {
        let (shard, epoch) = (SHARD, Epoch(1));
        let trim = StoreOp::Trim { shard, epoch };
        let alone = |to| needs(std::slice::from_ref(&trim), &confirmed_to(to));
        assert_eq!(alone(5), []);
        assert_eq!(alone(6), [Need::Log(SHARD, LOG, 5, 6)]);
        assert_eq!(alone(1_999), [Need::Log(SHARD, LOG, 5, 1_999)]);
        // Of what is not in memory a batch reads so much, whatever its operations are.
        let cold = |to, behind| {
            let mut state = confirmed_to(to);
            let shard = state.shards.get_mut(&SHARD).expect("it is there");
            shard.logs.entry(LOG).or_default().behind = behind;
            state
        };
        assert_eq!(
            needs(std::slice::from_ref(&trim), &cold(5 + TRIM_READS, 2_000)),
            [Need::Log(SHARD, LOG, 5, 5 + TRIM_READS)]
        );
        assert_eq!(
            needs(std::slice::from_ref(&trim), &cold(1_999, 2_000)),
            [Need::Log(SHARD, LOG, 5, 5 + TRIM_READS)]
        );
        assert_eq!(
            needs(std::slice::from_ref(&trim), &cold(1_999, 5 + TRIM_READS)),
            [Need::Log(SHARD, LOG, 5, 1_999)]
        );
        let twice = [trim.clone(), trim.clone()];
        assert_eq!(
            needs(&twice, &cold(1_999, 2_000)),
            [Need::Log(SHARD, LOG, 5, 5 + TRIM_READS)]
        );
        // What stands before it in the batch may let more go, but not what somebody lacks of whom it does not speak.
        let confirm = StoreOp::Confirm { shard, epoch };
        let confirmed = |to| needs(&[confirm.clone(), trim.clone()], &confirmed_to(to));
        assert_eq!(confirmed(5), []);
        assert_eq!(confirmed(9), [Need::Log(SHARD, LOG, 5, 9)]);
        let region = |name| RegionId::new(name).expect("a plain name is valid");
        let said = |holder, retired: Option<Vec<Coord>>| {
            let confirm = Op::Confirm {
                holder: region(holder),
                applied: Vector::new(),
                needed: Vec::new(),
                retired,
            };
            let apply = StoreOp::ApplyRemote {
                shard,
                epoch,
                region: region(holder),
                origin: Origin(8),
                first: 1,
                before: 0,
                ops: vec![LoggedOp::encode(&confirm, Hlc::default())],
                attached: Vec::new(),
            };
            needs(&[apply, trim.clone()], &confirmed_to(9))
        };
        assert_eq!(said("us-east", None), [Need::Log(SHARD, LOG, 5, 9)]);
        assert_eq!(said("eu-west", None), [Need::Log(SHARD, LOG, 5, 2_000)]);
        let retired = vec![Coord { origin: LOG, seq: 3 }];
        assert_eq!(
            said("us-east", Some(retired)),
            [Need::Log(SHARD, LOG, 5, Seq::MAX)]
        );
        let absent = vec![region("eu-west")];
        let mark = StoreOp::Mark {
            shard,
            epoch,
            absent,
            by_time: true,
        };
        let marked = needs(&[mark, trim.clone()], &confirmed_to(9));
        assert_eq!(marked.last(), Some(&Need::Log(SHARD, LOG, 5, 2_000)));
        let any = [Need::Log(SHARD, LOG, 5, Seq::MAX)];
        let mut leaving = confirmed_to(9);
        let row = &mut leaving.shards.get_mut(&SHARD).expect("it is there").row;
        let change = HoldersChange {
            version: 1,
            set: [region("us-east")].into(),
            gone: BTreeSet::new(),
        };
        let first = [region("us-east"), region("eu-west")].into();
        let at = Coord { origin: LOG, seq: 1 };
        assert!(HolderSet::change(&mut row.holding.set, &first, &change, at));
        assert_eq!(needs(&[confirm.clone(), trim.clone()], &leaving), any);
        let mut told = confirmed_to(9);
        let row = &mut told.shards.get_mut(&SHARD).expect("it is there").row;
        row.old.told.insert(LOG, 3);
        assert_eq!(needs(&[confirm, trim], &told), any);
    }

    #[test]
    fn who_is_away_is_judged_by_the_first_entry_that_waits() {
        let (shard, epoch) = (SHARD, Epoch(1));
        let mark = |absent: &[&str]| StoreOp::Mark {
            shard,
            epoch,
            absent: absent
                .iter()
                .map(|name| RegionId::new(name).expect("a plain name is valid"))
                .collect(),
            by_time: true,
        };
        assert_eq!(needs(&[mark(&[])], &confirmed_to(7)), []);
        assert_eq!(
            needs(&[mark(&["eu-west"])], &confirmed_to(7)),
            [Need::First(SHARD, LOG, 7)]
        );
    }
}
