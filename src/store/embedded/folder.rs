//! The embedded engine on a folder: journal files and fjall tables.
//!
//! ```text
//! <folder>/store/journal/   segments of the journal
//! <folder>/store/tables/    fjall
//! ```
//!
//! A store is built under `store.new` and renamed when it is whole, so a folder holds a store or none.
//!
//! Of fjall only what was flushed to its tables counts: its own journal is not relied on, and kept small. One thread
//! writes plain batches; flushing and compaction run on fjall's worker, and a thread of ours starts a flush and waits
//! for it, because both take locks under which fjall syncs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::pauses;
use super::tables::{Change, Table, Tables, Visit};
use super::{EmbeddedEngine, OpenReport, Options};
use crate::core::state::StoreIdentity;
use crate::store::background;
use crate::store::disk::{Locked, RealDisk};
use crate::store::engine::StoreError;
use crate::store::keys;
use crate::store::opening::OpenError;

/// The least that fjall allows for its own journal, in bytes: we do not rely on it.
const FJALL_JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// A table's part in memory before fjall flushes it by itself, in bytes: beyond what a checkpoint writes between two
/// flushes, because fjall syncs its journal before each, and a write would wait for that.
const MEMTABLE_BYTES: u64 = 256 * 1024 * 1024;
/// Length of a table that compaction writes, in bytes. It is synced at once when it is complete: the journal waits for the
/// disk meanwhile.
const TABLE_BYTES: u64 = 8 * 1024 * 1024;
/// Flushing and compaction: commits must not wait for them, nor should they take more than a core.
const WORKERS: usize = 1;
/// How often to look whether a flush that is waited for is over.
const FLUSH_POLL: Duration = Duration::from_millis(1);
/// For so long no compaction may run before a flush stops waiting for those that it asked for: there are none to come.
const COMPACTIONS_REST: Duration = Duration::from_millis(200);
/// Names of the keyspaces that hold a day of dedup records begin with this. Behind the day stands the part of it.
const DEDUP_PREFIX: &str = "dedup-";
/// Parts of a day of dedup blocks that have a keyspace each. fjall compares each pair of a level's tables when one is moved
/// there, under a lock: at 25,000 messages a second some 5,000 come together in three hours, and a model of it took 32 ms
/// with 2,800.
const DEDUP_PARTS: u64 = 8;

/// The engine that a region with one core node runs.
pub type FolderEngine = EmbeddedEngine<RealDisk, FjallTables>;

/// Creates a store in a folder, which must hold none. `identity` carries its first origin.
///
/// # Errors
/// [`OpenError`].
pub fn create(folder: &Path, identity: StoreIdentity, options: Options) -> Result<FolderEngine, OpenError> {
    let place = Place::of(folder);
    let store = &place.store;
    if store.try_exists().map_err(|e| place.io(&e))? {
        return Err(OpenError::Exists {
            location: place.text(),
        });
    }
    let building = folder.join("store.new");
    match std::fs::remove_dir_all(&building) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(place.io(&e)),
        _ => {}
    }
    let disk = RealDisk::create(building.join("journal")).map_err(|e| place.disk(&e))?;
    let tables = FjallTables::open(&building.join("tables"), &options).map_err(|e| place.fjall(&e))?;
    drop(EmbeddedEngine::create(
        disk,
        tables,
        identity.clone(),
        options.clone(),
    )?);
    std::fs::rename(&building, store).map_err(|e| place.io(&e))?;
    sync_folder(folder).map_err(|e| place.io(&e))?;
    Ok(open(folder, identity, options)?.0)
}

/// Opens the store in a folder. `identity` carries a new origin (R1).
///
/// # Errors
/// [`OpenError`]; without a store there it is [`OpenError::Missing`].
pub fn open(
    folder: &Path,
    identity: StoreIdentity,
    options: Options,
) -> Result<(FolderEngine, OpenReport), OpenError> {
    let place = Place::of(folder);
    if !exists(folder).map_err(|e| place.io(&e))? {
        return Err(OpenError::Missing {
            location: place.text(),
        });
    }
    let disk = RealDisk::open(place.store.join("journal")).map_err(|e| place.disk(&e))?;
    let tables = place.store.join("tables");
    if !tables.try_exists().map_err(|e| place.io(&e))? {
        let reason = "it has a journal and no tables: restore both from the same moment".to_owned();
        return Err(OpenError::Corrupt {
            location: place.text(),
            reason,
        });
    }
    let tables = FjallTables::open(&tables, &options).map_err(|e| place.fjall(&e))?;
    EmbeddedEngine::open(disk, tables, identity, options)
}

/// Whether a folder holds a store.
///
/// # Errors
/// Those of the file system.
pub fn exists(folder: &Path) -> io::Result<bool> {
    folder.join("store").try_exists()
}

struct Place {
    folder: PathBuf,
    store: PathBuf,
}

impl Place {
    fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            store: folder.join("store"),
        }
    }

    fn text(&self) -> String {
        self.folder.display().to_string()
    }

    fn io(&self, error: &io::Error) -> OpenError {
        OpenError::Io {
            location: self.text(),
            reason: error.to_string(),
        }
    }

    fn disk(&self, error: &io::Error) -> OpenError {
        let (location, reason) = (self.text(), error.to_string());
        let locked = error.get_ref().is_some_and(|inner| inner.is::<Locked>());
        match error.kind() {
            _ if locked => OpenError::Locked { location, reason },
            io::ErrorKind::NotFound => OpenError::Corrupt {
                location,
                reason: format!(
                    "it has no journal ({reason}): restore journal and tables from the same moment"
                ),
            },
            _ => OpenError::Io { location, reason },
        }
    }

    fn fjall(&self, error: &fjall::Error) -> OpenError {
        let (location, reason) = (self.text(), format!("tables: {error}"));
        match error {
            fjall::Error::Locked => OpenError::Locked { location, reason },
            fjall::Error::Io(_) => OpenError::Io { location, reason },
            _ => OpenError::Corrupt {
                location,
                reason: format!("{reason}; restore journal and tables from the same moment"),
            },
        }
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Tables in fjall keyspaces: one for each kind, and some for each day of dedup.
pub struct FjallTables {
    location: String,
    db: Database,
    meta: Keyspace,
    shards: Keyspace,
    users: Keyspace,
    log: Keyspace,
    inbox: Keyspace,
    /// By day and part of it; what earlier builds wrote of a day has part 0.
    dedup: BTreeMap<(u32, u64), Keyspace>,
    flush: Option<JoinHandle<fjall::Result<()>>>,
}

impl FjallTables {
    /// Opens them, creating what is missing.
    fn open(folder: &Path, options: &Options) -> fjall::Result<Self> {
        // fjall's threads have the priority of the one that opens it.
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| {
                background::yield_to_commits();
                Self::open_here(folder, options)
            });
            let panicked = || fjall::Error::Io(io::Error::other("opening the tables panicked"));
            opening.join().unwrap_or_else(|_| Err(panicked()))
        })
    }

    fn open_here(folder: &Path, options: &Options) -> fjall::Result<Self> {
        let open = || {
            Database::builder(folder)
                .cache_size(options.cache_bytes)
                .max_journaling_size(FJALL_JOURNAL_BYTES)
                .manual_journal_persist(true)
                .worker_threads(WORKERS)
                .with_compaction_filter_factories(Arc::new(pauses::assign))
                .open()
        };
        let db = match open() {
            // Torn by a power failure, or damaged: what counts was flushed, the rest is in our journal.
            Err(fjall::Error::JournalRecovery(error)) => {
                tracing::warn!(folder = %folder.display(), %error, "fjall's own journal is set aside");
                set_journals_aside(folder)?;
                open()?
            }
            opened => opened?,
        };
        let mut dedup = BTreeMap::new();
        for name in db.list_keyspace_names() {
            if let Some(part) = name.strip_prefix(DEDUP_PREFIX).and_then(dedup_part_of_name) {
                dedup.insert(part, db.keyspace(&name, keyspace_options)?);
            }
        }
        Ok(Self {
            location: folder.display().to_string(),
            meta: db.keyspace("meta", keyspace_options)?,
            shards: db.keyspace("shards", keyspace_options)?,
            users: db.keyspace("users", keyspace_options)?,
            log: db.keyspace("log", keyspace_options)?,
            inbox: db.keyspace("inbox", keyspace_options)?,
            dedup,
            flush: None,
            db,
        })
    }

    /// `None` for a day, or part of it, without records.
    fn keyspace(&self, table: Table, key: &[u8]) -> Option<&Keyspace> {
        Some(match table {
            Table::Meta => &self.meta,
            Table::Shards => &self.shards,
            Table::Users => &self.users,
            Table::Log => &self.log,
            Table::Inbox => &self.inbox,
            Table::Dedup(day) => return self.dedup.get(&(day, dedup_part(day, key))),
        })
    }

    fn keyspaces(&self) -> impl Iterator<Item = &Keyspace> {
        let fixed = [&self.meta, &self.shards, &self.users, &self.log, &self.inbox];
        fixed.into_iter().chain(self.dedup.values())
    }

    fn error(&self, error: &fjall::Error) -> StoreError {
        let text = format!("tables in {}: {error}", self.location);
        match error {
            fjall::Error::Storage(fjall::LsmError::Io(_)) => StoreError::Fatal(text),
            fjall::Error::Storage(_) => {
                StoreError::Corrupt(format!("{text}; restore journal and tables from the same moment"))
            }
            _ => StoreError::Fatal(text),
        }
    }
}

/// Renames fjall's journal files and leaves an empty one, so that it takes its sequence numbers from the tables.
fn set_journals_aside(folder: &Path) -> io::Result<()> {
    let mut newest = None;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if path.extension().is_some_and(|extension| extension == "jnl") {
            std::fs::rename(&path, path.with_extension("jnl-damaged"))?;
            newest = newest.max(number);
        }
    }
    let empty = folder.join(format!("{}.jnl", newest.unwrap_or(0)));
    std::fs::File::create_new(empty)?.sync_all()?;
    sync_folder(folder)
}

fn keyspace_options() -> KeyspaceCreateOptions {
    let compaction = Leveled::default().with_table_target_size(TABLE_BYTES);
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE_BYTES)
        .compaction_strategy(Arc::new(compaction))
}

impl Tables for FjallTables {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(keyspace) = self.keyspace(table, key) else {
            return Ok(None);
        };
        let value = keyspace.get(key).map_err(|e| self.error(&e))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn range(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let keyspaces: Vec<&Keyspace> = match table {
            Table::Dedup(day) => {
                let parts = (day, dedup_part(day, from))..=(day, dedup_part(day, to));
                self.dedup.range(parts).map(|(_, keyspace)| keyspace).collect()
            }
            table => self.keyspace(table, from).into_iter().collect(),
        };
        for keyspace in keyspaces {
            for item in keyspace.range(from..=to) {
                let (key, value) = item.into_inner().map_err(|e| self.error(&e))?;
                if !visit(&key, Bytes::copy_from_slice(&value))? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, batch: &mut Vec<Change>) -> Result<(), StoreError> {
        let mut writes = self.db.batch();
        for Change { table, key, value } in batch.drain(..) {
            let keyspace = match table {
                Table::Dedup(day) => {
                    let part = dedup_part(day, &key);
                    if !self.dedup.contains_key(&(day, part)) {
                        let made = self.db.keyspace(&dedup_name(day, part), keyspace_options);
                        let made = made.map_err(|e| self.error(&e))?;
                        self.dedup.insert((day, part), made);
                    }
                    &self.dedup[&(day, part)]
                }
                table => match self.keyspace(table, &key) {
                    Some(keyspace) => keyspace,
                    None => continue, // only a day of dedup, made above
                },
            };
            match value {
                Some(value) => writes.insert(keyspace, key, value),
                None => writes.remove(keyspace, key),
            }
        }
        writes.commit().map_err(|e| self.error(&e))
    }

    fn dedup_days(&self) -> Vec<u32> {
        let mut days: Vec<u32> = self.dedup.keys().map(|(day, _)| *day).collect();
        days.dedup();
        days
    }

    fn drop_dedup(&mut self, day: u32) -> Result<(), StoreError> {
        let parts = self.dedup.range((day, 0)..=(day, u64::MAX));
        let parts: Vec<(u32, u64)> = parts.map(|(part, _)| *part).collect();
        for part in parts {
            if let Some(keyspace) = self.dedup.remove(&part) {
                let deleted = self.db.delete_keyspace(keyspace);
                deleted.map_err(|e| self.error(&e))?;
            }
        }
        Ok(())
    }

    fn begin_flush(&mut self) -> Result<(), StoreError> {
        self.flushed(true)?;
        let keyspaces: Vec<Keyspace> = self.keyspaces().cloned().collect();
        let db = self.db.clone();
        let flush = std::thread::Builder::new()
            .name("iris-flush".to_owned())
            .spawn(move || {
                background::yield_to_commits();
                flush(&db, &keyspaces)
            });
        self.flush = Some(flush.map_err(|e| self.error(&fjall::Error::Io(e)))?);
        Ok(())
    }

    fn flushed(&mut self, wait: bool) -> Result<bool, StoreError> {
        if self
            .flush
            .as_ref()
            .is_some_and(|flush| !wait && !flush.is_finished())
        {
            return Ok(false);
        }
        match self.flush.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(true),
            Some(Ok(Err(error))) => Err(self.error(&error)),
            Some(Err(_)) => Err(StoreError::Fatal(format!(
                "tables in {}: a flush panicked",
                self.location
            ))),
        }
    }
}

impl Drop for FjallTables {
    /// The folder is free again only when the flush is over.
    fn drop(&mut self) {
        if let Some(flush) = self.flush.take() {
            // What it says does not matter any more.
            let _ = flush.join();
        }
    }
}

/// Moves what is in memory into tables, synced, and waits for the compactions that this asks for: each syncs a list of
/// tables under the lock that a write takes, so nothing is to be written meanwhile.
fn flush(db: &Database, keyspaces: &[Keyspace]) -> fjall::Result<()> {
    let mut compactions = db.compactions_completed();
    for keyspace in keyspaces {
        compactions += usize::from(keyspace.rotate_memtable()?);
    }
    while keyspaces
        .iter()
        .any(|keyspace| keyspace.sealed_memtable_count() > 0)
    {
        // The only way to learn that a flush failed, after which none ends.
        db.persist(PersistMode::Buffer)?;
        std::thread::sleep(FLUSH_POLL);
    }
    let mut ran = Instant::now();
    while db.compactions_completed() < compactions && ran.elapsed() < COMPACTIONS_REST {
        db.persist(PersistMode::Buffer)?;
        std::thread::sleep(FLUSH_POLL);
        if db.active_compactions() > 0 {
            ran = Instant::now();
        }
    }
    Ok(())
}

/// In which part of its day a key of dedup lies: from 1 on by time, 0 for keys of earlier builds.
fn dedup_part(day: u32, key: &[u8]) -> u64 {
    let units = 86_400_000 / keys::DEDUP_BLOCK_MS;
    keys::dedup_block_place(key).map_or(0, |(unit, _)| {
        let of_day = unit.saturating_sub(u64::from(day) * units);
        1 + of_day.min(units - 1) * DEDUP_PARTS / units
    })
}

fn dedup_name(day: u32, part: u64) -> String {
    match part {
        0 => format!("{DEDUP_PREFIX}{day}"),
        part => format!("{DEDUP_PREFIX}{day}-{part}"),
    }
}

/// The day and the part in a name, without what all begin with.
fn dedup_part_of_name(name: &str) -> Option<(u32, u64)> {
    match name.split_once('-') {
        None => Some((name.parse().ok()?, 0)),
        Some((day, part)) => Some((day.parse().ok()?, part.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{MessageId, ShardId};
    use crate::store::conformance::kit::{T0, id};

    const DAY_MS: u64 = 86_400_000;

    fn rows(tables: &FjallTables, day: u32, from: &[u8], to: &[u8]) -> Vec<Vec<u8>> {
        let mut rows = Vec::new();
        let visit = &mut |key: &[u8], _| {
            rows.push(key.to_vec());
            Ok(true)
        };
        tables.range(Table::Dedup(day), from, to, visit).unwrap();
        rows
    }

    #[test]
    fn a_day_of_dedup_lies_in_parts_beside_what_earlier_builds_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let day = (T0 / DAY_MS) as u32;
        let midnight = u64::from(day) * DAY_MS;
        let at = |ms: u64| -> MessageId { id(midnight + ms, 1) };
        let of = |ms| keys::dedup_block(ShardId(2), 1, 0, at(ms), at(ms));
        let blocks: Vec<Vec<u8>> = (0..24)
            .map(|hour| of(hour * 3_600_000))
            .chain([of(DAY_MS - 1)])
            .collect();
        let earlier = keys::dedup_block_by_shard(ShardId(2), 1, 0, at(0), at(0));
        let mut tables = FjallTables::open(folder.path(), &Options::default()).unwrap();
        let mut batch: Vec<Change> = blocks
            .iter()
            .chain([&earlier])
            .map(|key| Change {
                table: Table::Dedup(day),
                key: key.clone(),
                value: Some(b"x".to_vec()),
            })
            .collect();
        batch.push(Change {
            table: Table::Dedup(day + 1),
            ..batch[0].clone()
        });
        tables.write(&mut batch).unwrap();
        tables.begin_flush().unwrap();
        assert!(tables.flushed(true).unwrap());
        drop(tables);

        let mut tables = FjallTables::open(folder.path(), &Options::default()).unwrap();
        let parts: Vec<u64> = tables
            .dedup
            .keys()
            .filter(|(of, _)| *of == day)
            .map(|(_, part)| *part)
            .collect();
        assert_eq!(parts, (0..=DEDUP_PARTS).collect::<Vec<_>>());
        assert_eq!(tables.dedup_days(), [day, day + 1]);
        let all = rows(
            &tables,
            day,
            &keys::dedup_blocks(0, ShardId(0)).0,
            &keys::dedup_blocks_end(),
        );
        assert_eq!(all, blocks);
        assert_eq!(rows(&tables, day, &blocks[2], &blocks[7]), blocks[2..=7]);
        let (from, to) = keys::dedup_blocks_by_shard(ShardId(2), 0, u64::MAX);
        assert_eq!(rows(&tables, day, &from, &to), std::slice::from_ref(&earlier));
        for key in [&blocks[24], &earlier] {
            assert_eq!(
                tables.get(Table::Dedup(day), key).unwrap().as_deref(),
                Some(&b"x"[..])
            );
        }
        tables.drop_dedup(day).unwrap();
        assert_eq!(tables.dedup_days(), [day + 1]);
        assert_eq!(tables.get(Table::Dedup(day), &earlier).unwrap(), None);
    }

    #[test]
    fn names_of_parts_are_read_back() {
        for part in [(0, 0), (20_000, 0), (20_000, 1), (u32::MAX, DEDUP_PARTS)] {
            let name = dedup_name(part.0, part.1);
            let rest = name.strip_prefix(DEDUP_PREFIX).unwrap();
            assert_eq!(dedup_part_of_name(rest), Some(part));
        }
        for other in ["", "x", "1-", "1-x", "-1", "1-2-3"] {
            assert_eq!(dedup_part_of_name(other), None, "{other}");
        }
    }
}
