//! The embedded engine: a journal of our own, and tables behind it for what ages.
//!
//! ```text
//! commit --> load what is not in memory --> decide --> one record, one fdatasync --> outcomes
//!                                              |
//!                              state in memory, dirty rows --(slices between commits)--> tables, flushed
//!                                                                                    --> journal segments deleted
//! start  --> tables: shard rows, covered = C --> journal: replay C + 1 ... --> ready
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`record`] | what is written into the journal, and rows in the tables |
//! | [`tables`] | what is needed of the tables; tables in memory for tests |
//! | `view` | state in memory over the tables: loading, reading |
//! | `checkpoint` | write-behind in slices, giving memory back |
//! | `replay` | start |
//! | [`folder`] | the engine on a folder: [`RealDisk`](super::disk::RealDisk) and fjall |
//!
//! **What makes a crash harmless.** An outcome is returned after its decisions are durable in the journal. The tables
//! count only through `covered`, which is written after all that it covers was flushed; the journal keeps every later
//! commit. What an unfinished checkpoint wrote may be there in part or not at all: a row says which commit it includes
//! and skips the decisions through that one, and items of logs and inboxes are taken from the journal (see `replay`).
//!
//! Online traffic is accepted, delivered, acknowledged and trimmed between two checkpoints, and costs the tables its
//! dedup records and one row for each user and shard that was touched.

mod checkpoint;
pub mod folder;
mod pauses;
pub mod record;
mod replay;
mod snapshot;
pub mod tables;
mod tempo;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::engine::{Committed, Engine, Figures, Read, ReadReply, StoreError};
use super::journal::{self, Journal, JournalError, MAX_RECORD};
use super::keys;
use super::opening::{OpenError, StoredIdentity};
use crate::core::commit::{Outcome, StoreOp, decide};
use crate::core::defect::{self, Defect};
use crate::core::ids::{ShardId, UserId};
use crate::core::state::{Decision, ShardState, StoreIdentity, USER_WEIGHT};
use checkpoint::{Budget, Step};
use record::Meta;
use replay::Replay;
use tables::{Change, Table, Tables};
use tempo::Tempo;
use view::View;

/// A batch is committed in parts of about this many bytes of operations: bounds the buffer of a record, and stays far
/// below what the journal takes.
const PART_BYTES: usize = 16 * 1024 * 1024;
/// What an operation may add to a record beside its own bytes: decisions about users and logs, names.
const OP_OVERHEAD: usize = 512;
/// What trimming a shard may add to a record: up to a thousand users and all origins.
const TRIM_OVERHEAD: usize = 256 * 1024;
/// Zeros written into the next segment at once, in bytes, unless more than a third of it was committed: about a millisecond, for
/// which the next commit waits.
const PREPARE_PIECE: u64 = 256 * 1024;
/// The same after a large commit.
const PREPARE_MOST: u64 = 8 * 1024 * 1024;
/// Part of the memory limit at which a checkpoint begins, in percent. It gives back what exceeds [`KEEP_PERCENT`], while
/// about [`tempo::SPREAD_PERCENT`] of that comes in again.
const BEGIN_PERCENT: usize = 62;
const KEEP_PERCENT: usize = 50;
/// How often one commit goes on with a user of whom a bounded step left entries to mark; the rest comes with later
/// commits.
const UNFINISHED_ROUNDS: usize = 4;

/// How the engine spends disk and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Length of a journal segment in bytes.
    pub segment_bytes: u64,
    /// A checkpoint begins after so many bytes of journal: bounds disk and the time to start.
    pub checkpoint_bytes: u64,
    /// What messages, users and dedup records may weigh in memory, in bytes; what is beyond lies in the tables. Under
    /// load it is exceeded by what one checkpoint takes.
    pub memory_bytes: usize,
    /// What one slice of a checkpoint writes between two commits, in bytes, unless the last commits were larger than half
    /// of it: bounds how long a commit waits for it. 16 KiB of small rows take about half a millisecond, and several times that where
    /// others want the processors, too.
    pub slice_bytes: usize,
    /// What a checkpoint writes between two flushes of the tables, in bytes: bounds what they keep in memory, and for how
    /// long the journal shares the disk with a flush.
    pub flush_bytes: usize,
    /// Cache of the tables in bytes.
    pub cache_bytes: u64,
    /// An operator's word that commits may be lost: see [`journal::Options::cut_at_damage`].
    pub cut_at_damage: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            checkpoint_bytes: 256 * 1024 * 1024,
            memory_bytes: 512 * 1024 * 1024,
            slice_bytes: 16 * 1024,
            flush_bytes: 4 * 1024 * 1024,
            cache_bytes: 32 * 1024 * 1024,
            cut_at_damage: false,
        }
    }
}

/// What an engine did since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Group commits that were written.
    pub commits: u64,
    /// Operations in them.
    pub ops: u64,
    /// Decisions in them.
    pub decisions: u64,
    /// Most operations in one commit.
    pub largest: u64,
    /// Bytes of the records.
    pub record_bytes: u64,
    /// Bytes of the journal's files now.
    pub journal_bytes: u64,
    /// Checkpoints that were completed.
    pub checkpoints: u64,
    /// Slices that they were written in.
    pub slices: u64,
    /// Rows and pages taken from the tables.
    pub loads: u64,
    /// What messages, users and dedup records weigh in memory now, in bytes.
    pub resident_bytes: u64,
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The tables covered the commits through this one.
    pub covered: u64,
    /// What the journal said.
    pub journal: journal::Report,
}

/// The engine. One thread calls it.
pub struct EmbeddedEngine<D: Disk, T: Tables> {
    view: View<T>,
    journal: Journal<D>,
    options: Options,
    /// The store's number.
    store: u64,
    record: Vec<u8>,
    /// Bytes of records since the last checkpoint began.
    since: u64,
    /// Bytes of records that no slice of a checkpoint was matched to yet.
    unmatched: usize,
    tempo: Tempo,
    /// What had been loaded when memory was last given back.
    loads_seen: u64,
    stats: Stats,
    stopped: Option<StoreError>,
}

impl<D: Disk, T: Tables> EmbeddedEngine<D, T> {
    /// Creates a store on an empty disk and empty tables. Its number is the origin given.
    ///
    /// # Errors
    /// [`OpenError::Exists`], [`OpenError::Io`].
    pub fn create(
        disk: D,
        mut tables: T,
        identity: StoreIdentity,
        options: Options,
    ) -> Result<Self, OpenError> {
        options.check()?;
        let location = tables.location();
        if read_meta(&tables)?.is_some() {
            return Err(OpenError::Exists { location });
        }
        let store = identity.origin.0;
        let journal = Journal::create(
            disk,
            options.journal_identity(&identity, store),
            options.journal(),
            1,
        )
        .map_err(|e| open_error(&location, &e))?;
        let meta = Meta {
            identity: StoredIdentity::of(&identity),
            store,
            covered: 0,
            newest_id_ms: 0,
        };
        let mut batch = vec![Change {
            table: Table::Meta,
            key: keys::meta(),
            value: Some(meta.encode()),
        }];
        tables
            .write(&mut batch)
            .and_then(|()| tables.begin_flush())
            .and_then(|()| tables.flushed(true))
            .map_err(|e| tables_error(&location, &e))?;
        Ok(Self::assemble(
            View::new(identity, tables),
            journal,
            options,
            store,
        ))
    }

    /// Opens a store. `identity` carries a new origin (R1).
    ///
    /// # Errors
    /// [`OpenError`]: nothing was changed.
    pub fn open(
        disk: D,
        tables: T,
        identity: StoreIdentity,
        options: Options,
    ) -> Result<(Self, OpenReport), OpenError> {
        options.check()?;
        let location = tables.location();
        let Some(meta) = read_meta(&tables)? else {
            return Err(OpenError::Missing { location });
        };
        meta.identity.check(&identity, &location)?;
        let origin = identity.origin;
        let identity = meta.identity.applied_to(identity);
        let mut view = View::new(identity, tables);
        view.dedup.from_ms = meta.newest_id_ms.saturating_add(1);
        view.dedup.newest_ms = meta.newest_id_ms;
        let shards = view.load_shards().map_err(|e| tables_error(&location, &e))?;
        view.last = meta.covered;

        let journal_identity = options.journal_identity(&view.state.identity, meta.store);
        let mut replay = Replay::new(&mut view, shards);
        let mut since = 0;
        let from = meta.covered + 1;
        let opened = Journal::open(disk, journal_identity, options.journal(), from, |record| {
            since += record.payload.len() as u64;
            replay.record(record.commit, record.payload)
        });
        let (journal, report) = opened.map_err(|e| open_error(&location, &e))?;
        let newest = replay.newest_row();
        if newest > view.last {
            let reason = format!(
                "a row includes commit {newest}, the journal ends at {}: the tables are newer than the journal; \
                 restore both from the same moment",
                view.last
            );
            return Err(OpenError::Corrupt { location, reason });
        }
        let used = |shard: &ShardState| {
            let known = shard.row.logs.contains_key(&origin) || shard.row.retired(origin).is_some();
            known && !defect::on(Defect::OriginReused)
        };
        if origin.0 == 0 || view.state.shards.values().any(used) {
            let origin = origin.0;
            return Err(OpenError::OriginUsed { location, origin });
        }
        let mut engine = Self::assemble(view, journal, options, meta.store);
        engine.since = since;
        let report = OpenReport {
            covered: meta.covered,
            journal: report,
        };
        Ok((engine, report))
    }

    /// What it did since it was opened.
    pub fn stats(&self) -> Stats {
        Stats {
            journal_bytes: self.journal.bytes_on_disk(),
            loads: self.view.loads,
            resident_bytes: self.view.state.ledger.resident as u64,
            ..self.stats
        }
    }

    /// The tables.
    pub fn tables(&self) -> &T {
        &self.view.tables
    }

    /// Writes behind everything that was committed, and waits for it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.sound()?;
        let mut rounds = 0;
        // One may be under way that covers less.
        while rounds < 2 {
            if self.view.checkpoint.is_none() {
                self.begin_checkpoint();
                rounds = 2;
            }
            while self.view.checkpoint.is_some() {
                self.step(usize::MAX, true)?;
            }
            rounds += 1;
        }
        Ok(())
    }

    fn assemble(view: View<T>, journal: Journal<D>, options: Options, store: u64) -> Self {
        Self {
            view,
            journal,
            options,
            store,
            record: Vec::new(),
            since: 0,
            unmatched: 0,
            tempo: Tempo::default(),
            loads_seen: 0,
            stats: Stats::default(),
            stopped: None,
        }
    }

    fn sound(&self) -> Result<(), StoreError> {
        self.stopped.clone().map_or(Ok(()), Err)
    }

    /// Remembers an error after which the state in memory is not what is durable.
    fn stop<R>(&mut self, result: Result<R, StoreError>) -> Result<R, StoreError> {
        if let Err(error) = &result {
            self.stopped = Some(error.clone());
        }
        result
    }

    /// Commits one part of a batch: nothing happened if it fails before the decisions are made.
    fn commit_part(&mut self, ops: &[StoreOp], now_ms: u64, out: &mut Committed) -> Result<(), StoreError> {
        let size: usize = ops.iter().map(size_of_op).sum();
        if size > MAX_RECORD / 2 {
            return Err(StoreError::Full(format!(
                "an operation of {size} bytes is over the limit of {}: send less at once",
                MAX_RECORD / 2
            )));
        }
        self.make_room(size)?;
        let loaded = self.view.load(ops);
        self.stop(loaded)?;
        let mut decisions = Vec::with_capacity(ops.len() + 8);
        for op in ops {
            let outcome = decide(&mut self.view.state, op, now_ms, &mut decisions);
            out.outcomes.push(outcome);
        }
        let finished = self.finish_users(now_ms, &mut decisions);
        self.stop(finished)?;
        self.view.drop_pages();
        if decisions.is_empty() {
            return Ok(());
        }
        record::encode_decisions(&decisions, &mut self.record);
        let appended = self.journal.append(record::TAG_DECISIONS, &[&self.record]);
        // The state has the decisions, the journal perhaps not: only a new start can tell.
        let appended = appended.map_err(|e| StoreError::Fatal(e.to_string()));
        let appended = self.stop(appended)?;
        self.view.last = appended.commit;
        self.view.absorb(&decisions);
        self.since += self.record.len() as u64;
        self.unmatched += self.record.len();
        self.stats.commits += 1;
        self.stats.decisions += decisions.len() as u64;
        self.stats.record_bytes += self.record.len() as u64;
        let logged = decisions.into_iter().filter_map(|decision| match decision {
            Decision::Logged(logged) => Some(logged),
            _ => None,
        });
        out.logged.extend(logged);
        Ok(())
    }

    /// Goes on marking what users consumed, where a bounded step left some.
    fn finish_users(&mut self, now_ms: u64, decisions: &mut Vec<Decision>) -> Result<(), StoreError> {
        for _ in 0..UNFINISHED_ROUNDS {
            let left: BTreeSet<(ShardId, UserId)> = std::mem::take(&mut self.view.state.unfinished);
            for (shard, user) in left {
                let state = self.view.state.shards.get(&shard);
                let op = StoreOp::Remove {
                    shard,
                    epoch: state.map(|state| state.row.epoch).unwrap_or_default(),
                    user: user.clone(),
                };
                self.view.load(std::slice::from_ref(&op))?;
                let outcome = decide(&mut self.view.state, &op, now_ms, decisions);
                if outcome == (Outcome::Done { more: true }) {
                    self.view.state.unfinished.insert((shard, user));
                }
            }
        }
        Ok(())
    }

    /// Refuses while nothing has happened yet, where the disk has no room for the record.
    fn make_room(&mut self, size: usize) -> Result<(), StoreError> {
        if self.journal.has_room(size) {
            return Ok(());
        }
        match self.journal.prepare_next(u64::MAX) {
            Ok(_) => Ok(()),
            Err(full @ JournalError::Full { .. }) => Err(StoreError::Full(full.to_string())),
            Err(error) => {
                let error = Err(StoreError::Fatal(error.to_string()));
                self.stop(error)
            }
        }
    }

    fn begin_checkpoint(&mut self) {
        self.view.begin_checkpoint();
        self.tempo.begin(self.since);
        self.since = 0;
    }

    /// Whether the journal or memory asks for write-behind, and begins it.
    fn trigger(&mut self) -> bool {
        if self.view.checkpoint.is_some() {
            return true;
        }
        let options = &self.options;
        let heavy = self.heavy(BEGIN_PERCENT);
        // Each checkpoint costs flushes, so memory alone asks for one only after some traffic.
        let some = options.checkpoint_bytes.min(options.memory_bytes as u64) / 8;
        let loaded = (self.view.loads - self.loads_seen) as usize * USER_WEIGHT;
        if self.since >= options.checkpoint_bytes || (heavy && self.since >= some) {
            self.begin_checkpoint();
        } else if heavy && loaded > options.memory_bytes / 8 {
            self.view.begin_evicting();
        } else {
            return false;
        }
        true
    }

    /// One step of the checkpoint under way.
    fn step(&mut self, slice: usize, wait: bool) -> Result<Step, StoreError> {
        let budget = Budget {
            slice,
            flush: self.options.flush_bytes,
            memory: self.options.memory_bytes / 100 * KEEP_PERCENT,
            wait,
        };
        let identity = StoredIdentity::of(&self.view.state.identity);
        let store = self.store;
        let step = self.view.step_checkpoint(budget, |covered, newest_id_ms| Meta {
            identity,
            store,
            covered,
            newest_id_ms,
        });
        let step = self.stop(step)?;
        self.stats.slices += u64::from(step == Step::More);
        match step {
            Step::Covered(commit) => {
                let deleted = self.journal.delete_before(commit + 1);
                let deleted = deleted.map_err(|e| StoreError::Fatal(e.to_string()));
                self.stop(deleted)?;
                self.stats.checkpoints += 1;
                self.tempo.end(self.view.spent);
            }
            Step::Done => self.loads_seen = self.view.loads,
            Step::More | Step::Waiting => {}
        }
        Ok(step)
    }

    /// What has to go on between commits.
    fn write_behind(&mut self, committed: usize) -> Result<(), StoreError> {
        // An early warning only: appends refuse by themselves when the time comes.
        let piece = (3 * committed as u64).clamp(PREPARE_PIECE, PREPARE_MOST);
        let _ = self.journal.prepare_ahead(piece);
        if self.trigger() {
            let options = &self.options;
            let late = self.since > 4 * options.checkpoint_bytes;
            let full = options.slice_bytes.max(2 * committed);
            let hurry = self.since > options.checkpoint_bytes || self.heavy(100) || !self.view.writes();
            let slice = match (late, hurry) {
                (true, _) => Some(usize::MAX),
                (_, true) => Some(full),
                _ => self.tempo.slice(committed, options.slice_bytes / 4, full),
            };
            if let Some(slice) = slice {
                self.step(slice, late)?;
            }
        }
        Ok(())
    }

    /// Whether this part of the memory limit is exceeded.
    fn heavy(&self, percent: usize) -> bool {
        self.view.state.ledger.resident > self.options.memory_bytes / 100 * percent
    }
}

impl<D: Disk, T: Tables> Engine for EmbeddedEngine<D, T> {
    fn identity(&self) -> &StoreIdentity {
        &self.view.state.identity
    }

    fn figures(&self) -> Figures {
        let stats = self.stats();
        Figures {
            commits: stats.commits,
            journal_bytes: stats.journal_bytes,
            resident_bytes: stats.resident_bytes,
            checkpoints: stats.checkpoints,
        }
    }

    fn commit_now(&mut self, ops: Vec<StoreOp>, now_ms: u64) -> Result<Committed, StoreError> {
        self.sound()?;
        let mut out = Committed {
            outcomes: Vec::with_capacity(ops.len()),
            logged: Vec::with_capacity(ops.len()),
        };
        let mut rest = &ops[..];
        let mut first = true;
        while first || !rest.is_empty() {
            let (part, after) = rest.split_at(part_of(rest));
            rest = after;
            let done = self.commit_part(part, now_ms, &mut out);
            // Once a part is durable, a later one that fails leaves the caller with an unknown result.
            match done {
                Err(error) if !first => {
                    let error = Err(StoreError::Fatal(error.to_string()));
                    return self.stop(error);
                }
                done => done?,
            }
            first = false;
        }
        self.stats.ops += ops.len() as u64;
        self.stats.largest = self.stats.largest.max(ops.len() as u64);
        Ok(out)
    }

    fn after_commit(&mut self) {
        let committed = std::mem::take(&mut self.unmatched);
        if self.stopped.is_some() {
            return;
        }
        // The commit is durable: what fails here stops the engine at the next call.
        let _ = self.write_behind(committed);
    }

    fn read(&mut self, read: &Read) -> Result<ReadReply, StoreError> {
        self.sound()?;
        self.view.read(read)
    }

    fn idle(&mut self) -> Result<bool, StoreError> {
        self.sound()?;
        if !self.view.state.unfinished.is_empty() {
            self.commit(Vec::new(), 0)?;
        }
        // Only a warning here, see above.
        let prepared = self.journal.prepare_next(PREPARE_PIECE).unwrap_or(true);
        let mut busy = !prepared || !self.view.state.unfinished.is_empty();
        if self.trigger() {
            let step = self.step(self.options.slice_bytes, false)?;
            busy |= matches!(step, Step::More | Step::Covered(_));
        }
        Ok(busy)
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.checkpoint()
    }
}

impl Options {
    fn check(&self) -> Result<(), OpenError> {
        let setting = |field, value: String, expected: &str| {
            Err(OpenError::Setting {
                field,
                value,
                expected: expected.to_owned(),
            })
        };
        if self.memory_bytes == 0 {
            return setting("memory_bytes", self.memory_bytes.to_string(), "at least 1");
        }
        if self.checkpoint_bytes == 0 {
            return setting(
                "checkpoint_bytes",
                self.checkpoint_bytes.to_string(),
                "at least 1",
            );
        }
        Ok(())
    }

    fn journal(&self) -> journal::Options {
        journal::Options {
            segment_bytes: self.segment_bytes,
            cut_at_damage: self.cut_at_damage,
            ..journal::Options::default()
        }
    }

    fn journal_identity(&self, identity: &StoreIdentity, store: u64) -> journal::Identity {
        journal::Identity {
            cluster: identity.cluster,
            region: identity.region.to_string(),
            store,
            shards: identity.sharding.count,
            seed: identity.sharding.seed,
        }
    }
}

/// How many of the operations go into one record.
fn part_of(ops: &[StoreOp]) -> usize {
    let mut size = 0;
    let fits = ops.iter().position(|op| {
        size += size_of_op(op);
        size > PART_BYTES
    });
    match fits {
        None => ops.len(),
        Some(at) => at.max(1),
    }
}

/// What an operation may put into a record, at most.
fn size_of_op(op: &StoreOp) -> usize {
    OP_OVERHEAD
        + match op {
            StoreOp::Append { body, envelope, .. } => body.len() + envelope.trace.len(),
            StoreOp::ApplyRemote { ops, .. } => ops.iter().map(|op| op.len() + OP_OVERHEAD).sum(),
            StoreOp::Trim { .. }
            | StoreOp::Confirm { .. }
            | StoreOp::Forgo { .. }
            | StoreOp::Expire { .. } => TRIM_OVERHEAD,
            StoreOp::Cursor { cursor, .. } => 64 * cursor.len(),
            StoreOp::Register { claim, .. } => 64 * claim.len(),
            StoreOp::Merge { cut, page, .. } => TRIM_OVERHEAD + 4 * (page.weight() + cut.weight()) as usize,
            StoreOp::Bump { .. }
            | StoreOp::Mark { .. }
            | StoreOp::Behind { .. }
            | StoreOp::Holders { .. }
            | StoreOp::Retire { .. }
            | StoreOp::Remove { .. }
            | StoreOp::DropDedup { .. }
            | StoreOp::Recover { .. }
            | StoreOp::ExpireDevice { .. } => 0,
        }
}

fn read_meta(tables: &impl Tables) -> Result<Option<Meta>, OpenError> {
    let location = tables.location();
    let value = tables.get(Table::Meta, &keys::meta());
    let value = value.map_err(|e| tables_error(&location, &e))?;
    let meta = value.map(|value| Meta::decode(&value)).transpose();
    meta.map_err(|e| OpenError::Corrupt {
        location,
        reason: e.to_string(),
    })
}

fn tables_error(location: &str, error: &StoreError) -> OpenError {
    let (location, reason) = (location.to_owned(), error.to_string());
    match error {
        StoreError::Corrupt(_) => OpenError::Corrupt { location, reason },
        _ => OpenError::Io { location, reason },
    }
}

fn open_error(location: &str, error: &JournalError) -> OpenError {
    let (location, reason) = (location.to_owned(), error.to_string());
    match error {
        JournalError::Exists { .. } => OpenError::Exists { location },
        JournalError::Setting {
            field,
            value,
            expected,
        } => OpenError::Setting {
            field,
            value: value.clone(),
            expected: expected.clone(),
        },
        JournalError::Full { .. } | JournalError::Io(_) => OpenError::Io { location, reason },
        // Journal and tables, which of the two it is nobody knows.
        JournalError::Behind { .. } => OpenError::Corrupt { location, reason },
        _ => {
            let journal = Path::new(&location).with_file_name("journal");
            let location = journal.display().to_string();
            OpenError::Journal { location, reason }
        }
    }
}
