//! The journal: one record per group commit, durable when [`Journal::append`] returns.
//!
//! A journal is a sequence of preallocated segment files in one folder ([`Disk`]), laid out as `journal/format.rs` says. Commit
//! numbers are gap-free and each record carries the hash of the one before, so that a missing, doubled or exchanged
//! record or file is found. Record N + 1 is written only after the sync of N returned, therefore a crash can damage
//! only the very last record: [`Journal::open`] ends the journal there and says so, and refuses damage anywhere else.
//!
//! ```text
//! append --> fits? --no--> roll: finish the prepared file, write its header, sync, rename, sync the folder
//!               \--yes--> one write, one fdatasync, at whole blocks: what was once durable is never written again
//! idle   --> prepare_next: zeros into the next file, a piece at a time
//! start  --> open: headers, every record's checksum and chain, replay, the end; zeros behind the end
//! later  --> delete_before: whole segments whose commits are covered elsewhere
//! ```
//!
//! Writing zeros ahead and whole 4 KiB blocks is what makes `fdatasync` cheap: it then flushes data only. Measured on
//! ext4 with two cores, lower quartile of write and sync, for a record of 18 kB: 117 us; with records not aligned 160 us;
//! with `fallocate` and no zeros 192 us; growing a file 254 us. It costs at most a block per commit.

mod error;
mod format;
mod recover;
#[cfg(test)]
mod tests;

pub use error::JournalError;
pub use format::{FORMAT_VERSION, MAX_REGION};
pub use recover::{Cut, Record, Report, TailDamage, VisitError};

use super::disk::{Disk, DiskFile};
use format::{RECORD_HEADER, RecordHeader, SegmentHeader, record_key, record_space, segment_name};
use std::io;

/// Longest payload of a record in bytes: bounds the memory for one commit, at writing, replay and reading.
pub const MAX_RECORD: usize = 64 * 1024 * 1024;

/// Smallest and largest [`Options::segment_bytes`]: below, a segment holds next to nothing; above, opening would need
/// that much memory at once.
pub const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1024..=1024 * 1024 * 1024;

/// What is kept of the write buffer after a large record, in bytes: more than a usual group commit.
const KEEP_BUFFER: usize = 4 * 1024 * 1024;

/// How many zeros are written at once into a file that is being prepared, in bytes.
const ZEROS: usize = 256 * 1024;

/// The next segment before it has a name. Left over from a crash, it is removed.
const PREPARED: &str = "prepared.tmp";

/// Whose journal this is. Each segment carries it, and [`Journal::open`] refuses any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The region's name, at most [`MAX_REGION`] bytes.
    pub region: String,
    /// This store: a random number given when it was created.
    pub store: u64,
    /// Number of shards.
    pub shards: u32,
    /// Seed of the hash from users to shards.
    pub seed: u64,
}

/// How a journal is laid out and opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Length of new segments in bytes, within [`SEGMENT_BYTES`]; a larger record gets a segment of its own length.
    pub segment_bytes: u64,
    /// Records of new segments start at multiples of this many bytes: a power of two from 512 to 65,536. Less than
    /// what the device writes at once puts acknowledged records at risk when the power fails.
    pub block_bytes: u32,
    /// An operator's word to [`Journal::open`] that commits may be lost: where it would refuse damage it keeps what is
    /// before it, sets the rest aside in files named `*.cut`, and says what it did in [`Report::cut`].
    pub cut_at_damage: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            block_bytes: 4096,
            cut_at_damage: false,
        }
    }
}

/// Where a record is. Valid until its segment is deleted, across restarts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment, by its first commit.
    pub segment: u64,
    /// Where the record begins in the file, in bytes.
    pub offset: u32,
    /// Length of the payload in bytes.
    pub len: u32,
}

/// A record that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its commit number.
    pub commit: u64,
    /// Where it is.
    pub position: Position,
}

/// One segment, as [`Journal::segments`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its file.
    pub file: String,
    /// Its first commit.
    pub first: u64,
    /// Its last commit. `None` while it has no record.
    pub last: Option<u64>,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Of these, in use by the header and records.
    pub used: u64,
}

/// What a journal did since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records appended.
    pub appends: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Bytes written for them, with headers and padding.
    pub record_bytes: u64,
    /// Zeros written ahead, in bytes.
    pub prepared_bytes: u64,
    /// Syncs of files and of the folder that were asked for.
    pub syncs: u64,
    /// Segments begun.
    pub rolls: u64,
    /// Segments begun that had not been fully prepared ahead: such an append was slow.
    pub stalled_rolls: u64,
    /// Segments deleted.
    pub deleted: u64,
}

/// A journal in a folder of its own. One thread appends; an append returns when the record is durable.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    disk: D,
    identity: Identity,
    options: Options,
    /// In order of their first commit; never empty once open. The last is the active one.
    segments: Vec<Segment<D::File>>,
    prepared: Option<Prepared<D::File>>,
    /// Number of the next commit.
    next: u64,
    /// Hash of the last record.
    hash: u64,
    buffer: Vec<u8>,
    poisoned: Option<(u64, String)>,
    stats: Stats,
}

#[derive(Debug)]
struct Segment<F> {
    file: F,
    header: SegmentHeader,
    /// Seed of its records' checksums.
    key: u64,
    /// Where the next record would begin.
    end: u64,
}

#[derive(Debug)]
struct Prepared<F> {
    file: F,
    capacity: u64,
    /// Zeros up to here are written and durable.
    zeroed: u64,
}

impl<D: Disk> Journal<D> {
    /// Whether the folder has any segment: whether to [`Journal::open`] or to [`Journal::create`].
    pub fn exists(disk: &D) -> Result<bool, JournalError> {
        Ok(first_segment(disk)?.is_some())
    }

    /// Begins a journal in a folder without segments; its first record will have the number `first_commit` (at least
    /// 1). Durable when it returns. Refuses with [`JournalError::Exists`] and [`JournalError::Setting`].
    pub fn create(
        disk: D,
        identity: Identity,
        options: Options,
        first_commit: u64,
    ) -> Result<Self, JournalError> {
        if let Some(file) = first_segment(&disk)? {
            return Err(JournalError::Exists {
                location: disk.location(),
                file,
            });
        }
        let first = first_commit.max(1);
        let mut journal = Self::assemble(disk, identity, options, first)?;
        journal.remove_leftover()?;
        journal.roll(0)?;
        Ok(journal)
    }

    /// Opens a journal, verifies all of it, and hands the records from `from_commit` on (at least 1) to `visit`, in
    /// order.
    ///
    /// Every segment is read and every checksum verified, also of records before `from_commit`. If the last record is
    /// damaged, as a crash does, the journal ends before it, durably, and [`Report::tail`] says so: a record that was
    /// never acknowledged, unless the disk itself lost it. Any other damage, gap or mismatch is refused, with the
    /// files left as they are; then forget what `visit` was given.
    pub fn open(
        disk: D,
        identity: Identity,
        options: Options,
        from_commit: u64,
        mut visit: impl FnMut(Record<'_>) -> Result<(), VisitError>,
    ) -> Result<(Self, Report), JournalError> {
        let mut journal = Self::assemble(disk, identity, options, 1)?;
        let report = recover::recover(&mut journal, from_commit.max(1), &mut visit)?;
        Ok((journal, report))
    }

    /// Appends one record of the concatenated `parts`, with one write and one `fdatasync`. When it returns `Ok` the
    /// record is durable. `tag` is for the caller's use and comes back in replay.
    ///
    /// [`JournalError::TooLarge`] and [`JournalError::Full`] leave the journal as it was. Any other error leaves it
    /// unknown whether the record is durable: the journal is poisoned, every later append fails, and only opening it
    /// again tells.
    pub fn append(&mut self, tag: u8, parts: &[&[u8]]) -> Result<Appended, JournalError> {
        self.check_sound()?;
        let length = parts
            .iter()
            .fold(0usize, |sum, part| sum.saturating_add(part.len()));
        if length > MAX_RECORD {
            return Err(JournalError::TooLarge { length });
        }
        self.make_room(length)?;

        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(RECORD_HEADER, 0);
        parts.iter().for_each(|part| buffer.extend_from_slice(part));
        let written = self.write(tag, &mut buffer);
        buffer.clear();
        buffer.shrink_to(KEEP_BUFFER);
        self.buffer = buffer;

        let (hash, space) = written.map_err(|error| self.poison(error))?;
        let active = self.active_mut();
        let position = Position {
            segment: active.header.first_commit,
            offset: u32::try_from(active.end).expect("SEGMENT_BYTES and MAX_RECORD keep offsets below 4 GiB"),
            len: u32::try_from(length).expect("MAX_RECORD fits in 32 bits"),
        };
        active.end += space;
        let commit = self.next;
        self.next += 1;
        self.hash = hash;
        self.stats.appends += 1;
        self.stats.payload_bytes += length as u64;
        self.stats.record_bytes += space;
        Ok(Appended { commit, position })
    }

    /// Prepares the next segment by up to `bytes` of zeros, so that rolling over does not stall an append, and tells
    /// whether it is ready. Call it between appends with at least as many bytes as were appended since the last call,
    /// and with more while there is time; 1 MiB takes a millisecond, and several where others write, too.
    ///
    /// After an error the unfinished file is given up and the next call starts anew; appends go on as long as the
    /// active segment has room: [`JournalError::Full`] is an early warning.
    pub fn prepare_next(&mut self, bytes: u64) -> Result<bool, JournalError> {
        self.check_sound()?;
        let capacity = self.options.segment_bytes;
        if self.prepared.as_ref().is_some_and(|p| p.zeroed == p.capacity) {
            return Ok(true);
        }
        self.prepare(capacity, bytes)
    }

    /// Prepares a piece of the next segment where it is less ready than the active one is full, twice over: between
    /// appends without a pause this spreads the zeros over the first half of a segment. Errors as for
    /// [`Journal::prepare_next`].
    pub fn prepare_ahead(&mut self, piece: u64) -> Result<(), JournalError> {
        let ready = self.prepared.as_ref().map_or(0, |next| next.zeroed);
        let used = self.segments.last().map_or(0, |active| active.end);
        if self.is_next_prepared() || ready >= used.saturating_mul(2) {
            return Ok(());
        }
        self.prepare_next(piece).map(drop)
    }

    /// Whether a payload of `length` fits without a new segment, or into one that is prepared: appending it will not
    /// find the disk full.
    pub fn has_room(&self, length: usize) -> bool {
        let fits = |end: u64, block: u32, capacity: u64| end + record_space(length, block) <= capacity;
        let block = self.options.block_bytes;
        let active = self.segments.last();
        active.is_some_and(|active| fits(active.end, active.header.block, active.header.capacity))
            || (self.is_next_prepared()
                && (self.prepared.as_ref()).is_some_and(|next| fits(u64::from(block), block, next.capacity)))
    }

    /// Whether the next segment is ready, so that rolling over is quick.
    pub fn is_next_prepared(&self) -> bool {
        self.prepared.as_ref().is_some_and(|p| p.zeroed == p.capacity)
    }

    /// The payload of a record, its checksum verified.
    pub fn read(&self, position: Position) -> Result<Vec<u8>, JournalError> {
        let mut record = Vec::new();
        self.read_into(position, &mut record)?;
        Ok(record)
    }

    /// Like [`Journal::read`], into a buffer to be used again. Its content is replaced, also by an error.
    pub fn read_into(&self, position: Position, payload: &mut Vec<u8>) -> Result<(), JournalError> {
        let segment = self.segment_of(position)?;
        payload.clear();
        payload.resize(RECORD_HEADER + position.len as usize, 0);
        segment.file.read_at(payload, u64::from(position.offset))?;
        let header = RecordHeader::parse(payload);
        if header.length != position.len || !format::is_sealed(payload, segment.key) {
            payload.clear();
            return Err(JournalError::Unreadable {
                file: segment_name(position.segment),
                offset: u64::from(position.offset),
            });
        }
        payload.drain(..RECORD_HEADER);
        Ok(())
    }

    /// Fills `part` from byte `at` of a record's payload, without reading the rest: the checksum is *not* verified,
    /// the caller has a hash of its own for what it reads.
    pub fn read_part(&self, position: Position, at: u32, part: &mut [u8]) -> Result<(), JournalError> {
        let segment = self.segment_of(position)?;
        let end = u64::from(at) + part.len() as u64;
        if end > u64::from(position.len) {
            let what = format!("bytes {at} to {end} of a record of {} bytes", position.len);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what).into());
        }
        let offset = u64::from(position.offset) + RECORD_HEADER as u64 + u64::from(at);
        Ok(segment.file.read_at(part, offset)?)
    }

    /// Deletes the segments whose records are all below `commit`, oldest first; never the active one. Returns how
    /// many. A disk may do so in the background: until then a crash leaves them, which is harmless. What is deleted
    /// must be durable elsewhere, synced, by then.
    pub fn delete_before(&mut self, commit: u64) -> Result<usize, JournalError> {
        self.check_sound()?;
        let mut files = Vec::new();
        while self.segments.len() > 1 && self.segments[1].header.first_commit <= commit {
            let segment = self.segments.remove(0);
            files.push(segment_name(segment.header.first_commit));
        }
        let deleted = files.len();
        if deleted > 0 {
            self.stats.syncs += deleted as u64;
            self.stats.deleted += deleted as u64;
            // In order: removals that become durable in another one would leave a gap in the middle.
            self.disk
                .remove_in_order(files)
                .map_err(|error| self.poison(error.into()))?;
        }
        Ok(deleted)
    }

    /// Number of the next commit.
    pub fn next_commit(&self) -> u64 {
        self.next
    }

    /// The last commit in the journal. `None` if it has no record.
    pub fn last_commit(&self) -> Option<u64> {
        (self.next > self.first_commit()).then(|| self.next - 1)
    }

    /// The first commit that the journal still has, or will have if it has no record.
    pub fn first_commit(&self) -> u64 {
        self.segments[0].header.first_commit
    }

    /// The segments, oldest first; the last is the active one.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = SegmentInfo> + '_ {
        self.segments.iter().enumerate().map(|(i, segment)| {
            let after = self
                .segments
                .get(i + 1)
                .map_or(self.next, |next| next.header.first_commit);
            let first = segment.header.first_commit;
            SegmentInfo {
                file: segment_name(first),
                first,
                last: (after > first).then(|| after - 1),
                bytes: segment.header.capacity,
                used: segment.end,
            }
        })
    }

    /// Bytes of all files: segments and the one being prepared.
    pub fn bytes_on_disk(&self) -> u64 {
        let prepared = self.prepared.as_ref().map_or(0, |p| p.capacity);
        self.segments.iter().map(|s| s.header.capacity).sum::<u64>() + prepared
    }

    /// What was done since the journal was opened.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whose journal this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Why the journal takes no more records, if so.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_ref().map(|(_, reason)| reason.as_str())
    }

    fn assemble(disk: D, identity: Identity, options: Options, next: u64) -> Result<Self, JournalError> {
        identity.check()?;
        options.check()?;
        Ok(Self {
            disk,
            identity,
            options,
            segments: Vec::new(),
            prepared: None,
            next,
            hash: 0,
            buffer: Vec::new(),
            poisoned: None,
            stats: Stats::default(),
        })
    }

    fn active_mut(&mut self) -> &mut Segment<D::File> {
        self.segments
            .last_mut()
            .expect("create and open leave at least one segment")
    }

    /// Begins a new segment if a payload of `length` does not fit into the active one.
    fn make_room(&mut self, length: usize) -> Result<(), JournalError> {
        let active = self.active_mut();
        if active.end + record_space(length, active.header.block) <= active.header.capacity {
            return Ok(());
        }
        self.roll(length).map_err(|error| match error {
            full @ JournalError::Full { .. } => full,
            error => self.poison(error),
        })
    }

    /// Seals the record in `buffer` and writes it at the end of the active segment, which has room. Returns its hash
    /// and its space on disk.
    fn write(&mut self, tag: u8, buffer: &mut Vec<u8>) -> Result<(u64, u64), JournalError> {
        let (commit, previous) = (self.next, self.hash);
        let active = self.active_mut();
        let hash = format::seal(buffer, active.key, tag, commit, previous);
        let space = record_space(buffer.len() - RECORD_HEADER, active.header.block);
        buffer.resize(usize::try_from(space).expect("a record fits in memory"), 0);
        active.file.write_at(buffer, active.end)?;
        active.file.sync_data()?;
        self.stats.syncs += 1;
        Ok((hash, space))
    }

    /// Begins a new segment that has room for a payload of `length`. An active segment without any record, which is
    /// too small, is replaced.
    fn roll(&mut self, length: usize) -> Result<(), JournalError> {
        let block = self.options.block_bytes;
        let need = u64::from(block) + record_space(length, block);
        let capacity = self.options.segment_bytes.max(need);
        let fits = self.prepared.as_ref().is_some_and(|p| p.capacity >= need);
        let ready = fits && self.is_next_prepared();
        if !self.segments.is_empty() && !ready {
            self.stats.stalled_rolls += 1;
        }
        self.prepare(capacity, u64::MAX)?;
        let Some(prepared) = self.prepared.take() else {
            unreachable!("prepare without a limit leaves a prepared file or an error")
        };

        let header = SegmentHeader {
            first_commit: self.next,
            previous: self.hash,
            capacity: prepared.capacity,
            block,
        };
        prepared.file.write_at(&header.encode(&self.identity), 0)?;
        prepared.file.sync_data()?;
        let name = segment_name(self.next);
        self.disk.rename(PREPARED, &name)?;
        self.stats.syncs += 1;
        self.sync_folder()?;
        self.stats.rolls += 1;
        if self
            .segments
            .last()
            .is_some_and(|active| active.header.first_commit == self.next)
        {
            self.segments.pop();
        }
        let key = record_key(&self.identity, self.next);
        self.segments.push(Segment {
            file: prepared.file,
            header,
            key,
            end: u64::from(block),
        });
        Ok(())
    }

    /// Makes or continues the prepared file, by at most `budget` bytes, so that it has at least `capacity` bytes.
    /// A failure gives the file up.
    fn prepare(&mut self, capacity: u64, budget: u64) -> Result<bool, JournalError> {
        if self.prepared.as_ref().is_some_and(|p| p.capacity < capacity) {
            self.prepared = None;
        }
        match self.try_prepare(capacity, budget) {
            Ok(ready) => Ok(ready),
            Err(source) => {
                self.prepared = None;
                // The space is worth more than this second error, which would come again at the next attempt.
                let _ = self.disk.remove(PREPARED);
                if source.kind() == io::ErrorKind::StorageFull {
                    return Err(JournalError::Full {
                        location: self.disk.location(),
                        bytes: capacity,
                        source,
                    });
                }
                Err(source.into())
            }
        }
    }

    fn try_prepare(&mut self, capacity: u64, budget: u64) -> io::Result<bool> {
        if self.prepared.is_none() {
            match self.disk.remove(PREPARED) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let file = self.disk.create(PREPARED)?;
            file.allocate(capacity)?;
            self.prepared = Some(Prepared {
                file,
                capacity,
                zeroed: 0,
            });
        }
        let Some(prepared) = &mut self.prepared else {
            return Ok(false);
        };
        let until = prepared.capacity.min(prepared.zeroed.saturating_add(budget));
        if until > prepared.zeroed {
            write_zeros(&prepared.file, prepared.zeroed, until)?;
            // Each piece by itself: all at once would hold up the syncs of the appends in between.
            prepared.file.sync_data()?;
            self.stats.syncs += 1;
            self.stats.prepared_bytes += until - prepared.zeroed;
            prepared.zeroed = until;
        }
        Ok(prepared.zeroed == prepared.capacity)
    }

    fn remove_leftover(&mut self) -> Result<(), JournalError> {
        match self.disk.remove(PREPARED) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn sync_folder(&mut self) -> Result<(), JournalError> {
        self.disk.sync_folder()?;
        self.stats.syncs += 1;
        Ok(())
    }

    fn segment_of(&self, position: Position) -> Result<&Segment<D::File>, JournalError> {
        let found = self
            .segments
            .binary_search_by_key(&position.segment, |s| s.header.first_commit);
        let segment = found.ok().map(|i| &self.segments[i]);
        let end = u64::from(position.offset) + RECORD_HEADER as u64 + u64::from(position.len);
        segment
            .filter(|s| end <= s.end)
            .ok_or(JournalError::Deleted { position })
    }

    fn check_sound(&self) -> Result<(), JournalError> {
        match &self.poisoned {
            Some((commit, reason)) => Err(JournalError::Poisoned {
                commit: *commit,
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    fn poison(&mut self, error: JournalError) -> JournalError {
        self.poisoned = Some((self.next, error.to_string()));
        error
    }
}

impl Identity {
    fn check(&self) -> Result<(), JournalError> {
        if self.region.len() > MAX_REGION {
            return Err(JournalError::Setting {
                field: "region",
                value: format!("{:?} of {} bytes", self.region, self.region.len()),
                expected: format!("at most {MAX_REGION} bytes"),
            });
        }
        Ok(())
    }
}

impl Options {
    fn check(&self) -> Result<(), JournalError> {
        if !format::is_block(self.block_bytes) {
            return Err(JournalError::Setting {
                field: "block_bytes",
                value: self.block_bytes.to_string(),
                expected: format!(
                    "a power of two from {} to {}",
                    format::SEGMENT_HEADER,
                    format::MAX_BLOCK
                ),
            });
        }
        let block = u64::from(self.block_bytes);
        let whole = self.segment_bytes.is_multiple_of(block) && self.segment_bytes >= 2 * block;
        if !whole || !SEGMENT_BYTES.contains(&self.segment_bytes) {
            let (least, most) = ((*SEGMENT_BYTES.start()).max(2 * block), *SEGMENT_BYTES.end());
            return Err(JournalError::Setting {
                field: "segment_bytes",
                value: self.segment_bytes.to_string(),
                expected: format!("a multiple of {block} from {least} to {most}"),
            });
        }
        Ok(())
    }
}

fn first_segment<D: Disk>(disk: &D) -> Result<Option<String>, JournalError> {
    Ok(disk
        .list()?
        .into_iter()
        .find(|name| format::parse_segment_name(name).is_some()))
}

fn write_zeros<F: DiskFile>(file: &F, from: u64, until: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS];
    let mut at = from;
    while at < until {
        let count = usize::try_from(until - at).unwrap_or(ZEROS).min(ZEROS);
        file.write_at(&zeros[..count], at)?;
        at += count as u64;
    }
    Ok(())
}
