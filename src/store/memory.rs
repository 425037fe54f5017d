//! The engine over an ordered map: for tests and for the simulator.
//!
//! ```text
//! commit --> rows of the shards --> needs --> load --> needs_more --> load --> decide --> rows touched, written back
//! ```
//!
//! Each commit loads the rows that it needs from their bytes into a fresh state and writes back what it touched, as an
//! engine over a remote key space does; the layout is that of [`keys`]. Nothing is kept in between, so several engines
//! may share one [`MemoryDisk`], and fencing decides which of them commits.
//!
//! The disk models durability: it can hold commits back until the caller makes them durable, lose those at a crash,
//! and fail on demand.

mod disk;
mod load;

use std::collections::BTreeSet;

use super::engine::{Committed, Engine, Read, ReadReply, StoreError};
use super::keys::{self, LogValue};
use super::opening::{OpenError, StoredIdentity};
use super::paging::{Room, inbox_page, log_page};
use super::snapshot;
use crate::core::commit::{Outcome, StoreOp, decide, needs, needs_more};
use crate::core::ids::{Origin, Seq, ShardId, UserId};
use crate::core::op::Op;
use crate::core::state::{Decision, DedupKey, Logged, ShardRow, State, StoreIdentity, UserRow};
use disk::{Rows, Write};

pub use disk::{Failure, MemoryDisk};

/// How often one commit goes on with a user of whom a bounded step left entries to mark; the rest comes with later
/// commits.
const UNFINISHED_ROUNDS: usize = 4;

/// An engine over a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryEngine {
    disk: MemoryDisk,
    boot: u64,
    /// Empty between commits, but for the users left to finish.
    state: State,
    stopped: Option<String>,
}

impl MemoryEngine {
    /// Creates a store on an empty disk.
    ///
    /// # Errors
    /// [`OpenError::Exists`].
    pub fn create(disk: MemoryDisk, identity: StoreIdentity) -> Result<Self, OpenError> {
        let mut shared = disk.lock();
        if shared.rows.contains_key(&keys::meta()) {
            return Err(OpenError::Exists {
                location: LOCATION.to_owned(),
            });
        }
        let meta = StoredIdentity::of(&identity).encode();
        shared.write(vec![Write::Put(keys::meta(), meta.into())]);
        shared.make_all_durable();
        let boot = shared.boot;
        drop(shared);
        Ok(Self {
            disk,
            boot,
            state: State::new(identity),
            stopped: None,
        })
    }

    /// Opens the store on a disk. Each start of a store takes a new origin (R1), unless it stands for an engine whose
    /// storage outlives its processes.
    ///
    /// # Errors
    /// [`OpenError::Missing`], [`OpenError::Mismatch`], [`OpenError::Corrupt`].
    pub fn open(disk: MemoryDisk, identity: StoreIdentity) -> Result<Self, OpenError> {
        let shared = disk.lock();
        let Some(meta) = shared.rows.get(&keys::meta()) else {
            return Err(OpenError::Missing {
                location: LOCATION.to_owned(),
            });
        };
        let stored = StoredIdentity::decode(meta).map_err(|e| OpenError::Corrupt {
            location: LOCATION.to_owned(),
            reason: e.to_string(),
        })?;
        stored.check(&identity, LOCATION)?;
        let identity = stored.applied_to(identity);
        let boot = shared.boot;
        drop(shared);
        Ok(Self {
            disk,
            boot,
            state: State::new(identity),
            stopped: None,
        })
    }

    /// The disk below.
    pub fn disk(&self) -> &MemoryDisk {
        &self.disk
    }

    fn check(&self, boot: u64) -> Result<(), StoreError> {
        match &self.stopped {
            Some(reason) => Err(StoreError::Fatal(reason.clone())),
            None if boot != self.boot => Err(StoreError::Fatal("the machine under it crashed".to_owned())),
            None => Ok(()),
        }
    }

    fn run(
        &mut self,
        rows: &Rows,
        ops: &[StoreOp],
        now_ms: u64,
    ) -> Result<(Vec<Outcome>, Vec<Decision>), StoreError> {
        let mut decisions = Vec::new();
        self.load(rows, ops)?;
        let state = &mut self.state;
        let outcomes = ops.iter().map(|op| decide(state, op, now_ms, &mut decisions));
        let outcomes = outcomes.collect();
        for _ in 0..UNFINISHED_ROUNDS {
            let left = std::mem::take(&mut self.state.unfinished);
            if left.is_empty() {
                break;
            }
            self.finish(rows, left, now_ms, &mut decisions)?;
        }
        Ok((outcomes, decisions))
    }

    /// Goes on marking what the users consumed, with new pages.
    fn finish(
        &mut self,
        rows: &Rows,
        users: BTreeSet<(ShardId, UserId)>,
        now_ms: u64,
        decisions: &mut Vec<Decision>,
    ) -> Result<(), StoreError> {
        for (shard, user) in users {
            load::shard(&mut self.state, rows, shard)?;
            let epoch = self.state.shards[&shard].row.epoch;
            let op = StoreOp::Remove {
                shard,
                epoch,
                user: user.clone(),
            };
            self.load(rows, std::slice::from_ref(&op))?;
            let outcome = decide(&mut self.state, &op, now_ms, decisions);
            if outcome == (Outcome::Done { more: true }) {
                self.state.unfinished.insert((shard, user));
            }
        }
        Ok(())
    }

    fn load(&mut self, rows: &Rows, ops: &[StoreOp]) -> Result<(), StoreError> {
        for op in ops {
            load::shard(&mut self.state, rows, op.shard())?;
        }
        let first = needs(ops, &self.state);
        load::needs(&mut self.state, rows, first)?;
        let second = needs_more(ops, &self.state);
        load::needs(&mut self.state, rows, second)
    }

    /// The rows that the decisions touched, as they are now.
    fn touched(&self, decisions: &[Decision]) -> Vec<Write> {
        let mut touched = Touched::default();
        for decision in decisions {
            touched.add(decision, &self.state);
        }
        let mut writes = touched.writes;
        let shards = &self.state.shards;
        let row = |key, value: Vec<u8>| Write::Put(key, value.into());
        for shard in touched.shards {
            writes.push(row(keys::shard(shard), keys::encode(&shards[&shard].row)));
        }
        for (shard, user) in touched.users {
            if let Some(known) = shards[&shard].users.get(&user) {
                writes.push(row(keys::user(shard, &user), keys::encode(&known.row)));
            }
        }
        for (shard, key) in touched.dedup {
            if let Some(known) = shards[&shard].dedup.get(&key) {
                writes.push(row(keys::dedup(shard, &key), keys::encode(known)));
            }
        }
        writes
    }
}

impl Engine for MemoryEngine {
    fn identity(&self) -> &StoreIdentity {
        &self.state.identity
    }

    fn commit_now(&mut self, ops: Vec<StoreOp>, now_ms: u64) -> Result<Committed, StoreError> {
        let disk = self.disk.clone();
        let mut shared = disk.lock();
        self.check(shared.boot)?;
        let lost = match shared.failures.pop_front().flatten() {
            None => None,
            Some(Failure::Retryable) => return Err(StoreError::Retryable("injected".to_owned())),
            Some(Failure::Full) => return Err(StoreError::Full("injected".to_owned())),
            Some(Failure::Unknown { applied }) => Some(applied),
        };
        let decided = self.run(&shared.rows, &ops, now_ms);
        if let (Ok((_, decisions)), true) = (&decided, lost != Some(false)) {
            shared.write(self.touched(decisions));
        }
        self.state.clear();
        let (outcomes, decisions) = decided?;
        if lost.is_some() {
            let reason = "injected: the result of a commit is not known".to_owned();
            self.stopped = Some(reason.clone());
            return Err(StoreError::Fatal(reason));
        }
        let logged = decisions.into_iter().filter_map(|decision| match decision {
            Decision::Logged(logged) => Some(logged),
            _ => None,
        });
        Ok(Committed {
            outcomes,
            logged: logged.collect(),
        })
    }

    fn read(&mut self, read: &Read) -> Result<ReadReply, StoreError> {
        let shared = self.disk.lock();
        self.check(shared.boot)?;
        let rows = &shared.rows;
        Ok(match read {
            Read::Shard(shard) => ReadReply::Shard(Box::new(load::row(rows, &keys::shard(*shard))?)),
            Read::User(shard, user) => {
                let mut row: UserRow = load::row(rows, &keys::user(*shard, user))?;
                let head: ShardRow = load::row(rows, &keys::shard(*shard))?;
                row.strip(&head.old.retired);
                ReadReply::User(Box::new(row))
            }
            Read::Needed {
                shard,
                origins,
                stored,
                from,
            } => {
                let source = load::Source { rows, shard: *shard };
                ReadReply::Needed(snapshot::needed(&source, origins, *stored, from.as_ref())?)
            }
            Read::Inbox {
                shard,
                user,
                after,
                max_items,
                max_bytes,
            } => {
                let row = load::row(rows, &keys::user(*shard, user))?;
                let head: ShardRow = load::row(rows, &keys::shard(*shard))?;
                let retired = &head.old.retired;
                let origins = load::inbox_origins(rows, *shard, user)?;
                let room = Room::new(*max_items, *max_bytes);
                let page = inbox_page(&row, retired, origins, after, room, |origin, after| {
                    load::inbox(rows, *shard, user, origin, after).next().transpose()
                });
                ReadReply::Inbox(page?)
            }
            Read::Log {
                shard,
                origin,
                after,
                max_items,
                max_bytes,
            } => {
                let row: ShardRow = load::row(rows, &keys::shard(*shard))?;
                let room = Room::new(*max_items, *max_bytes);
                let page = log_page(row.logs.get(origin), *after, room, |after| {
                    let entry = load::log(rows, *shard, *origin, after, Seq::MAX)
                        .next()
                        .transpose()?;
                    Ok(entry.map(|(seq, (hash, op))| (seq, hash, op)))
                });
                ReadReply::Log(page?)
            }
            Read::Users {
                shard,
                after,
                max_items,
            } => {
                let source = load::Source { rows, shard: *shard };
                ReadReply::Users(snapshot::times(&source, after.as_ref(), *max_items)?)
            }
            Read::Snapshot {
                shard,
                cut,
                after,
                max_items,
                max_bytes,
            } => {
                let source = load::Source { rows, shard: *shard };
                let (cut, page) = snapshot::page(&source, cut.as_ref(), after, *max_items, *max_bytes)?;
                ReadReply::Snapshot(cut, Box::new(page))
            }
        })
    }

    fn idle(&mut self) -> Result<bool, StoreError> {
        if self.state.unfinished.is_empty() {
            return Ok(false);
        }
        self.commit(Vec::new(), 0)?;
        Ok(!self.state.unfinished.is_empty())
    }
}

/// How messages name the place.
const LOCATION: &str = "memory";

/// What a commit wrote: entries at once, rows when all decisions are known.
#[derive(Default)]
struct Touched {
    writes: Vec<Write>,
    shards: BTreeSet<ShardId>,
    users: BTreeSet<(ShardId, UserId)>,
    dedup: BTreeSet<(ShardId, DedupKey)>,
}

impl Touched {
    fn add(&mut self, decision: &Decision, state: &State) {
        let shard = decision.shard();
        self.shards.insert(shard);
        let to_key = |key: fn(ShardId, Origin, Seq) -> Vec<u8>, origin, to: Seq| {
            Write::DeleteRange(key(shard, origin, 0), key(shard, origin, to.saturating_add(1)))
        };
        match decision {
            Decision::Epoch { .. } => {}
            Decision::Logged(logged) => self.add_logged(logged, state),
            Decision::Recovery { .. }
            | Decision::Jumped { .. }
            | Decision::Marked { .. }
            | Decision::Behind { .. }
            | Decision::Needed { .. }
            | Decision::Retired { .. }
            | Decision::Merging { .. } => {}
            Decision::DedupMerged { key, .. } => {
                self.dedup.insert((shard, key.clone()));
            }
            Decision::UserMerged { user, .. }
            | Decision::Expires { user, .. }
            | Decision::DeviceExpired { user, .. } => {
                self.users.insert((shard, user.clone()));
            }
            Decision::Expired { user, hole, .. } => {
                let from = keys::inbox(shard, user, hole.origin, hole.from);
                let to = keys::inbox(shard, user, hole.origin, hole.to.saturating_add(1));
                self.writes.push(Write::DeleteRange(from, to));
                self.users.insert((shard, user.clone()));
            }
            Decision::Merged { user, at, op, .. } => {
                let key = keys::inbox(shard, user, at.origin, at.seq);
                self.writes.push(Write::Put(key, keys::encode_inbox(op).into()));
                self.users.insert((shard, user.clone()));
                if let Ok(envelope) = op.envelope() {
                    self.dedup.insert((shard, DedupKey::of(&envelope)));
                }
            }
            Decision::Consumed { user, .. } => {
                self.users.insert((shard, user.clone()));
            }
            Decision::Removed { user, origin, to, .. } => {
                let from = keys::inbox(shard, user, *origin, 0);
                let to = keys::inbox(shard, user, *origin, to.saturating_add(1));
                self.writes.push(Write::DeleteRange(from, to));
                self.users.insert((shard, user.clone()));
            }
            Decision::Trimmed { origin, to, .. } => self.writes.push(to_key(keys::log, *origin, *to)),
            Decision::DedupDropped { day, .. } => {
                let (from, _) = keys::dedup_day(shard, 0);
                let (_, to) = keys::dedup_day(shard, *day);
                self.writes.push(Write::DeleteRange(from, to));
            }
        }
    }

    fn add_logged(&mut self, logged: &Logged, state: &State) {
        let Logged {
            shard, origin, entry, ..
        } = logged;
        let (shard, seq, op) = (*shard, entry.seq, &entry.op);
        let value = match op.decode() {
            Ok(Op::Append(envelope, _)) => {
                let key = keys::inbox(shard, &envelope.to, *origin, seq);
                let known = state.shards.get(&shard);
                let known = known.and_then(|known| known.users.get(&envelope.to));
                let gone = logged.merged && !known.is_some_and(|known| known.keeps(logged.coord()));
                let value = if gone {
                    LogValue::Inline(op.clone())
                } else {
                    self.writes.push(Write::Put(key, keys::encode_inbox(op).into()));
                    match op.message_head() {
                        Some(head) => LogValue::Message(head),
                        None => LogValue::Inbox(envelope.to.clone()),
                    }
                };
                self.users.insert((shard, envelope.to.clone()));
                self.dedup.insert((shard, DedupKey::of(&envelope)));
                value
            }
            Ok(Op::Cursor { user, .. } | Op::Device { user, .. }) => {
                self.users.insert((shard, user));
                LogValue::Inline(op.clone())
            }
            Ok(Op::Start { .. } | Op::Confirm { .. } | Op::Holders(_)) | Err(_) => {
                LogValue::Inline(op.clone())
            }
        };
        let key = keys::log(shard, *origin, seq);
        let value = keys::encode_log(entry.hash, &value);
        self.writes.push(Write::Put(key, value.into()));
    }
}

#[cfg(test)]
pub(crate) mod tests;
