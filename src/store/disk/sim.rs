//! A deterministic disk in memory that knows what was made durable.
//!
//! Each file has its live content, which reads see, and its durable content, which a crash goes back to. Unsynced
//! writes are kept as a set of dirty sectors, unsynced changes of the folder as a list; [`SimDisk::crash`] decides,
//! under the seed, which of them reached the platter. No clock and no other randomness.

use super::{Disk, DiskFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a crash does with writes and folder changes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashMode {
    /// The process dies, the machine lives: nothing is lost, and nothing became durable by it.
    KeepAll,
    /// The power fails: everything that was not synced is lost.
    LoseAll,
    /// The power fails: each unsynced sector, length and folder change survives or not, at random. Writes are torn.
    Random,
}

/// A simulated disk. Clones are handles to the same disk, so that one outlives the process that used it.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// A file of a [`SimDisk`]. Handles from before a crash fail.
#[derive(Debug)]
pub struct SimFile {
    state: Arc<Mutex<State>>,
    id: u64,
    name: String,
    boot: u64,
}

impl SimDisk {
    /// The unit of torn writes that most devices promise to write whole or not at all, in bytes.
    pub const SECTOR: usize = 512;

    /// An empty disk. Two disks with one seed and the same calls behave the same.
    pub fn new(seed: u64) -> Self {
        Self::with_sector(seed, Self::SECTOR)
    }

    /// An empty disk whose torn writes have pieces of `sector` bytes (at least 1).
    pub fn with_sector(seed: u64, sector: usize) -> Self {
        let state = State {
            random: seed,
            sector: sector.max(1),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Crashes: drops what `mode` says, makes every open file handle stale, and lifts injected failures (not
    /// `ignore_sync`, nor the capacity).
    pub fn crash(&self, mode: CrashMode) {
        lock(&self.state).crash(mode);
    }

    /// A disk of `bytes` in all (the sum of file lengths); growing beyond is `StorageFull`. `None` is unlimited.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        lock(&self.state).capacity = bytes;
    }

    /// Test-only defect: syncs of files and of the folder return `Ok` and make nothing durable.
    pub fn set_ignore_sync(&self, ignore: bool) {
        lock(&self.state).ignore_sync = ignore;
    }

    /// `after` more syncs succeed, then one fails, and what it should have made durable never will be (as Linux does).
    pub fn fail_sync_after(&self, after: u64) {
        lock(&self.state).fail_sync = Some(after);
    }

    /// `after` more writes succeed, then one fails with `kind`, half of it done.
    pub fn fail_write_after(&self, after: u64, kind: ErrorKind) {
        lock(&self.state).fail_write = Some((after, kind));
    }

    /// `after` more calls that change anything (syncs too) succeed, then every call fails until [`SimDisk::crash`].
    pub fn power_off_after(&self, after: u64) {
        lock(&self.state).power = Some(after);
    }

    /// Flips the bits of `mask` in one byte, in what reads see and in what is durable: rot.
    ///
    /// `NotFound` without such a file, `UnexpectedEof` beyond its end.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = lock(&self.state);
        let id = state.id(name)?;
        let file = state
            .files
            .get_mut(&id)
            .ok_or_else(|| failure(ErrorKind::NotFound, "flip a byte of", name))?;
        let at = to_usize(offset)?;
        let byte = file
            .live
            .get_mut(at)
            .ok_or_else(|| failure(ErrorKind::UnexpectedEof, "flip a byte of", name))?;
        *byte ^= mask;
        if let Some(byte) = file.durable.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }

    /// A disk of its own with the same content, durable and not: to try many ways to damage one content.
    pub fn fork(&self) -> Self {
        Self {
            state: Arc::new(Mutex::new(lock(&self.state).clone())),
        }
    }

    /// Number of syncs of files and of the folder so far that returned `Ok`.
    pub fn syncs(&self) -> u64 {
        lock(&self.state).syncs
    }

    /// Number of calls so far that changed anything (syncs too): the range for [`SimDisk::power_off_after`].
    pub fn changes(&self) -> u64 {
        lock(&self.state).changes
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let state = lock(&self.state);
        state.powered("list", "the folder")?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = lock(&self.state);
        state.change("create", name)?;
        if state.names.contains_key(name) {
            return Err(failure(ErrorKind::AlreadyExists, "create", name));
        }
        let id = state.next_id;
        state.next_id += 1;
        state.files.insert(id, Content::default());
        state.names.insert(name.to_owned(), id);
        state.unsynced.push(FolderChange::Create(name.to_owned(), id));
        Ok(self.handle(&state, id, name))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let state = lock(&self.state);
        state.powered("open", name)?;
        let id = state.id(name)?;
        Ok(self.handle(&state, id, name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.change("remove", name)?;
        state.id(name)?;
        state.names.remove(name);
        state.unsynced.push(FolderChange::Remove(name.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.change("rename", from)?;
        let id = state.id(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), id);
        state
            .unsynced
            .push(FolderChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.change("sync", "the folder")?;
        if state.sync_fails() {
            return Err(failure(ErrorKind::Other, "sync (injected failure)", "the folder"));
        }
        if !state.ignore_sync {
            state.unsynced.clear();
            state.durable_names = state.names.clone();
            state.forget_removed();
        }
        Ok(())
    }

    fn location(&self) -> String {
        "a simulated disk".to_owned()
    }
}

impl SimDisk {
    fn handle(&self, state: &State, id: u64, name: &str) -> SimFile {
        SimFile {
            state: Arc::clone(&self.state),
            id,
            name: name.to_owned(),
            boot: state.boot,
        }
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let mut state = lock(&self.state);
        state.powered("read the length of", &self.name)?;
        Ok(self.content(&mut state)?.live.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.powered("read", &self.name)?;
        let at = to_usize(offset)?;
        let content = self.content(&mut state)?;
        let end = at.saturating_add(buffer.len());
        let bytes = content
            .live
            .get(at..end)
            .ok_or_else(|| failure(ErrorKind::UnexpectedEof, "read", &self.name))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.change("write", &self.name)?;
        let (sector, at) = (state.sector, to_usize(offset)?);
        let failing = match &mut state.fail_write {
            Some((0, kind)) => Some(*kind),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        if failing.is_some() {
            state.fail_write = None;
        }
        let room = state.room();
        let content = self.content(&mut state)?;
        let growth = (at + bytes.len()).saturating_sub(content.live.len()) as u64;
        let (bytes, error) = match failing {
            Some(kind) => (&bytes[..bytes.len() / 2], Some(kind)),
            None if growth > room => {
                let fits = bytes.len()
                    - usize::try_from(growth - room)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                (&bytes[..fits], Some(ErrorKind::StorageFull))
            }
            None => (bytes, None),
        };
        content.write(bytes, at, sector);
        error.map_or(Ok(()), |kind| Err(failure(kind, "write", &self.name)))
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.change("allocate space for", &self.name)?;
        let room = state.room();
        let content = self.content(&mut state)?;
        let length = to_usize(length)?;
        let growth = length.saturating_sub(content.live.len());
        if growth as u64 > room {
            return Err(failure(ErrorKind::StorageFull, "allocate space for", &self.name));
        }
        if growth > 0 {
            content.live.resize(length, 0);
        }
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.change("set the length of", &self.name)?;
        let (sector, length) = (state.sector, to_usize(length)?);
        let content = self.content(&mut state)?;
        content.live.resize(length, 0);
        // What lay beyond the cut must not come back from the durable content if the file grows again.
        content
            .dirty
            .extend(length / sector..content.durable.len().div_ceil(sector));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.change("sync", &self.name)?;
        let (sector, ignore, fails) = (state.sector, state.ignore_sync, state.sync_fails());
        let content = self.content(&mut state)?;
        if fails {
            content.dirty.clear();
            return Err(failure(ErrorKind::Other, "sync (injected failure)", &self.name));
        }
        if !ignore {
            content.durable.resize(content.live.len(), 0);
            for index in std::mem::take(&mut content.dirty) {
                content.persist(index, sector);
            }
        }
        Ok(())
    }
}

impl SimFile {
    fn content<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Content> {
        if state.boot != self.boot {
            return Err(failure(
                ErrorKind::Other,
                "use after a crash the old handle of",
                &self.name,
            ));
        }
        state
            .files
            .get_mut(&self.id)
            .ok_or_else(|| failure(ErrorKind::NotFound, "find", &self.name))
    }
}

#[derive(Debug, Clone, Default)]
struct State {
    random: u64,
    sector: usize,
    /// Grows at each crash: a handle of an earlier boot is stale.
    boot: u64,
    next_id: u64,
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced: Vec<FolderChange>,
    capacity: Option<u64>,
    ignore_sync: bool,
    fail_sync: Option<u64>,
    fail_write: Option<(u64, ErrorKind)>,
    power: Option<u64>,
    syncs: u64,
    changes: u64,
}

#[derive(Debug, Clone, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors in which `live` may differ from `durable` and would be written by a sync.
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum FolderChange {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
}

impl State {
    fn crash(&mut self, mode: CrashMode) {
        self.boot += 1;
        (self.power, self.fail_sync, self.fail_write) = (None, None, None);
        if mode == CrashMode::KeepAll {
            return;
        }
        for change in std::mem::take(&mut self.unsynced) {
            if mode == CrashMode::Random && self.coin() {
                self.apply(change);
            }
        }
        self.names = self.durable_names.clone();
        let ids: Vec<u64> = self.files.keys().copied().collect();
        for id in ids {
            self.crash_file(id, mode);
        }
        self.forget_removed();
    }

    fn crash_file(&mut self, id: u64, mode: CrashMode) {
        let Some(mut content) = self.files.remove(&id) else {
            return;
        };
        if mode == CrashMode::Random {
            if content.live.len() != content.durable.len() && self.coin() {
                content.durable.resize(content.live.len(), 0);
            }
            for index in std::mem::take(&mut content.dirty) {
                if self.coin() {
                    content.persist(index, self.sector);
                }
            }
        }
        content.dirty.clear();
        content.live.clone_from(&content.durable);
        self.files.insert(id, content);
    }

    fn apply(&mut self, change: FolderChange) {
        match change {
            FolderChange::Create(name, id) => {
                self.durable_names.insert(name, id);
            }
            FolderChange::Remove(name) => {
                self.durable_names.remove(&name);
            }
            FolderChange::Rename(from, to) => {
                if let Some(id) = self.durable_names.remove(&from) {
                    self.durable_names.insert(to, id);
                }
            }
        }
    }

    /// Drops contents that no name leads to, now or after a crash, so that a long simulation stays small.
    fn forget_removed(&mut self) {
        let kept: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .collect();
        self.files.retain(|id, _| kept.contains(id));
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| failure(ErrorKind::NotFound, "open", name))
    }

    fn powered(&self, tried: &str, name: &str) -> io::Result<()> {
        if self.power == Some(0) {
            Err(failure(
                ErrorKind::Other,
                "(no power)",
                &format!("{tried} {name}"),
            ))
        } else {
            Ok(())
        }
    }

    fn change(&mut self, tried: &str, name: &str) -> io::Result<()> {
        self.powered(tried, name)?;
        if let Some(left) = &mut self.power {
            *left -= 1;
        }
        self.changes += 1;
        Ok(())
    }

    /// Counts a sync, and tells whether it is the one to fail.
    fn sync_fails(&mut self) -> bool {
        match &mut self.fail_sync {
            Some(0) => {
                self.fail_sync = None;
                return true;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.syncs += 1;
        false
    }

    fn room(&self) -> u64 {
        let used: u64 = self
            .names
            .values()
            .filter_map(|id| self.files.get(id))
            .map(|c| c.live.len() as u64)
            .sum();
        self.capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(used))
    }

    fn coin(&mut self) -> bool {
        split_mix(&mut self.random) & 1 == 1
    }
}

impl Content {
    fn write(&mut self, bytes: &[u8], at: usize, sector: usize) {
        let end = at + bytes.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[at..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(at / sector..end.div_ceil(sector));
        }
    }

    /// Copies one sector from live to durable, as far as both reach.
    fn persist(&mut self, index: usize, sector: usize) {
        let end = ((index + 1) * sector)
            .min(self.live.len())
            .min(self.durable.len());
        let start = (index * sector).min(end);
        self.durable[start..end].copy_from_slice(&self.live[start..end]);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic elsewhere does not make the simulated bytes wrong.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure(kind: ErrorKind, tried: &str, name: &str) -> io::Error {
    io::Error::new(
        kind,
        format!("cannot {tried} {name} on the simulated disk: {kind}"),
    )
}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value)
        .map_err(|_| failure(ErrorKind::InvalidInput, "reach the offset", &value.to_string()))
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(disk: &SimDisk, name: &str) -> Vec<u8> {
        let file = disk.open(name).unwrap();
        let mut bytes = vec![0; usize::try_from(file.length().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_drops_the_rest() {
        let disk = SimDisk::new(1);
        let file = disk.create("a").unwrap();
        file.write_at(b"first", 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_folder().unwrap();
        file.write_at(b"FIRST and more", 0).unwrap();
        disk.create("b").unwrap().sync_data().unwrap();
        disk.crash(CrashMode::LoseAll);
        assert_eq!(disk.list().unwrap(), ["a"], "the entry of b was not synced");
        assert_eq!(bytes(&disk, "a"), b"first");
        assert!(file.write_at(b"x", 0).is_err(), "a handle from before the crash");
    }

    #[test]
    fn a_killed_process_loses_nothing_until_the_power_fails() {
        let disk = SimDisk::new(1);
        disk.create("a").unwrap().write_at(b"first", 0).unwrap();
        disk.crash(CrashMode::KeepAll);
        assert_eq!(bytes(&disk, "a"), b"first");
        disk.crash(CrashMode::LoseAll);
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn ignored_syncs_make_nothing_durable() {
        let disk = SimDisk::new(1);
        disk.set_ignore_sync(true);
        let file = disk.create("a").unwrap();
        file.sync_data().unwrap();
        disk.sync_folder().unwrap();
        disk.crash(CrashMode::LoseAll);
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn a_random_crash_tears_writes_at_sectors_the_same_way_for_a_seed() {
        let run = |seed| {
            let disk = SimDisk::new(seed);
            let file = disk.create("a").unwrap();
            file.allocate(64 * 512).unwrap();
            file.sync_data().unwrap();
            disk.sync_folder().unwrap();
            file.write_at(&[7; 64 * 512], 0).unwrap();
            disk.crash(CrashMode::Random);
            bytes(&disk, "a")
        };
        let torn = run(3);
        assert_eq!(torn, run(3));
        assert_ne!(torn, run(4));
        let sectors: Vec<&[u8]> = torn.chunks(512).collect();
        assert!(
            sectors.iter().all(|s| s.iter().all(|b| *b == s[0])),
            "a sector is written whole or not"
        );
        assert!(sectors.iter().any(|s| s[0] == 0) && sectors.iter().any(|s| s[0] == 7));
    }

    #[test]
    fn a_removal_that_was_not_synced_comes_back() {
        let disk = SimDisk::new(1);
        disk.create("a").unwrap();
        disk.sync_folder().unwrap();
        disk.remove("a").unwrap();
        assert!(disk.open("a").is_err());
        disk.crash(CrashMode::LoseAll);
        disk.open("a").unwrap();
    }

    #[test]
    fn injected_failures() {
        let disk = SimDisk::new(1);
        let file = disk.create("a").unwrap();
        disk.sync_folder().unwrap();
        disk.set_capacity(Some(4));
        assert_eq!(
            file.write_at(b"123456", 0).unwrap_err().kind(),
            ErrorKind::StorageFull
        );
        assert_eq!(bytes(&disk, "a"), b"1234");
        assert_eq!(file.allocate(5).unwrap_err().kind(), ErrorKind::StorageFull);
        disk.set_capacity(None);

        disk.fail_write_after(1, ErrorKind::Other);
        file.write_at(b"abcd", 0).unwrap();
        file.write_at(b"efgh", 0).unwrap_err();
        assert_eq!(bytes(&disk, "a"), b"efcd");

        disk.fail_sync_after(0);
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        disk.crash(CrashMode::LoseAll);
        assert_ne!(
            bytes(&disk, "a"),
            b"efcd",
            "what a failed sync dropped stays dropped"
        );

        disk.power_off_after(1);
        disk.create("b").unwrap();
        disk.create("c").unwrap_err();
        disk.list().unwrap_err();
        disk.crash(CrashMode::LoseAll);
        disk.list().unwrap();
    }
}
