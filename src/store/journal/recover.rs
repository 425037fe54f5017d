//! Opening: what is verified, what ends a journal, what is refused.
//!
//! A crash leaves at most one unsynced record, the last one in the last segment. So a place where no record reads is
//! the end if nothing good follows: no valid record in the rest of the file, no further segment. If something good
//! follows, acknowledged commits are lost, and that is refused. Files are changed only after all checks passed.
//!
//! What no journal can notice by itself: a disk that shows whole records at the very end as zeros again, or that lost
//! the newest segments altogether. The index's commit number finds some of it ([`JournalError::Behind`]), the new
//! origin at each start keeps the rest from doing harm (R1, R3).

use super::format::{self, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader};
use super::{
    Disk, DiskFile, Journal, JournalError, MAX_RECORD, Position, SEGMENT_BYTES, Segment, write_zeros,
};
use std::fmt;
use std::io;

/// Why a caller's `visit` refuses a record.
pub type VisitError = Box<dyn std::error::Error + Send + Sync>;

/// A record at replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The commit's number.
    pub commit: u64,
    /// The tag given to [`Journal::append`].
    pub tag: u8,
    /// What was appended.
    pub payload: &'a [u8],
    /// Where it is.
    pub position: Position,
}

/// What [`Journal::open`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments read.
    pub segments: usize,
    /// Records verified.
    pub records: u64,
    /// Of these, records handed to `visit`.
    pub replayed: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damage at the end, which was dropped.
    pub tail: Option<TailDamage>,
    /// What was cut off because [`super::Options::cut_at_damage`] asked for it.
    pub cut: Option<Cut>,
}

/// The journal ended in something that is no record: what a crash left of an unacknowledged one, or a last record
/// that the disk damaged; these cannot be told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailDamage {
    /// The segment.
    pub file: String,
    /// Where in it the journal now ends, in bytes.
    pub offset: u64,
    /// Bytes from there to the last one that was not zero.
    pub bytes: u64,
    /// The number of the commit that would have been there.
    pub commit: u64,
    /// What was found.
    pub what: String,
}

impl fmt::Display for TailDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            offset,
            bytes,
            commit,
            what,
        } = self;
        write!(
            f,
            "{file} ends at offset {offset} before commit {commit}, {bytes} bytes behind it dropped: {what}"
        )
    }
}

/// What was given up by an operator's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment that is now the last.
    pub file: String,
    /// Where in it the journal now ends, in bytes.
    pub offset: u64,
    /// The first commit that was given up.
    pub commit: u64,
    /// What was found there.
    pub reason: String,
    /// The files in which the rest was set aside.
    pub set_aside: Vec<String>,
}

/// Fills a fresh `journal` from its folder.
pub(super) fn recover<D: Disk>(
    journal: &mut Journal<D>,
    from: u64,
    visit: &mut dyn FnMut(Record<'_>) -> Result<(), VisitError>,
) -> Result<Report, JournalError> {
    let names = segment_names(&journal.disk)?;
    let Some((first, _)) = names.first() else {
        return Err(JournalError::Missing {
            location: journal.disk.location(),
        });
    };
    let mut scan = Scan {
        from,
        next: *first,
        visit,
        report: Report::default(),
        data: Vec::new(),
    };
    let mut cut = None;
    for (index, (first, name)) in names.iter().enumerate() {
        let follows = names.get(index + 1).map(|(_, name)| name.as_str());
        match scan.segment(journal, *first, name, follows) {
            Ok(()) => {}
            Err(error)
                if journal.options.cut_at_damage && error.is_damage() && !journal.segments.is_empty() =>
            {
                cut = Some(error.to_string());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let Scan {
        next,
        mut report,
        data,
        ..
    } = scan;
    journal.next = next;
    if next < from {
        return Err(JournalError::Behind {
            last: next - 1,
            need: from,
            damage: report.tail,
        });
    }
    if let Some(reason) = cut {
        report.tail = None;
        report.cut = Some(set_aside(journal, &names, reason)?);
    }
    settle(journal, data)?;
    Ok(report)
}

/// Makes what was read the durable state: zeros behind the end, and the last record and the names of the files synced.
fn settle<D: Disk>(journal: &mut Journal<D>, mut data: Vec<u8>) -> Result<(), JournalError> {
    journal.remove_leftover()?;
    let next = journal.next;
    let active = journal.active_mut();
    read_whole(&active.file, active.header.capacity, &mut data)?;
    let end = usize::try_from(active.end).expect("the file was read into memory");
    let until = end + used(&data[end..]);
    write_zeros(&active.file, active.end, until as u64)?;
    // The last writer may have died between write and sync, or its sync failed: then the kernel can show bytes that it
    // never writes. What replay saw must stay, so it is written once more; the bytes are the same, a torn write is harmless.
    let last = last_record(&data[..end], active, next);
    active.file.write_at(&data[last..end], last as u64)?;
    active.file.sync_data()?;
    journal.stats.syncs += 1;
    journal.sync_folder()
}

/// Where the last record in `data` begins; the header if there is none.
fn last_record<F>(data: &[u8], segment: &Segment<F>, next: u64) -> usize {
    let block = segment.header.block as usize;
    let mut offset = block;
    let mut commit = segment.header.first_commit;
    while commit + 1 < next && offset + RECORD_HEADER <= data.len() {
        let length = RecordHeader::parse(&data[offset..]).length as usize;
        offset += (RECORD_HEADER + length).next_multiple_of(block);
        commit += 1;
    }
    if commit < next { offset.min(data.len()) } else { 0 }
}

struct Scan<'v> {
    from: u64,
    /// The commit expected next.
    next: u64,
    visit: &'v mut dyn FnMut(Record<'_>) -> Result<(), VisitError>,
    report: Report,
    /// The content of the segment at hand.
    data: Vec<u8>,
}

impl Scan<'_> {
    /// Verifies one segment and adds it to the journal. Where it is damaged with something good behind (`follows` is
    /// the next segment), it is added as far as it is good, and an error is returned.
    fn segment<D: Disk>(
        &mut self,
        journal: &mut Journal<D>,
        first: u64,
        name: &str,
        follows: Option<&str>,
    ) -> Result<(), JournalError> {
        let file = journal.disk.open(name)?;
        let length = file.length()?;
        let header = read_header(journal, &file, length, first, name)?;
        if journal.segments.is_empty() && first > self.from {
            return Err(JournalError::Gap {
                have: first,
                need: self.from,
            });
        }
        if journal.segments.is_empty() {
            // What came before the oldest segment was deleted: its word is taken.
            journal.hash = header.previous;
        }
        self.joins(journal, &header, name)?;
        read_whole(&file, length, &mut self.data)?;
        self.report.segments += 1;
        self.report.bytes += length;

        let key = format::record_key(&journal.identity, first);
        let mut segment = Segment {
            file,
            header,
            key,
            end: u64::from(header.block),
        };
        let stopped = self.records(&mut segment, &mut journal.hash, name)?;
        let end = segment.end;
        journal.segments.push(segment);
        if length != header.capacity {
            return Err(JournalError::Length {
                file: name.to_owned(),
                length,
                expected: header.capacity,
            });
        }
        if follows.is_some() {
            // The next header tells whether this is where the segment was meant to end.
            return Ok(());
        }
        self.end_of_journal(&header, key, end, name, stopped)
    }

    /// Refuses a segment that does not go on where the one before it ended.
    fn joins<D: Disk>(
        &self,
        journal: &Journal<D>,
        header: &SegmentHeader,
        name: &str,
    ) -> Result<(), JournalError> {
        let Some(before) = journal.segments.last() else {
            return Ok(());
        };
        let (first, previous) = (header.first_commit, header.previous);
        let what = if first != self.next {
            format!(
                "no record reads there, and {name} goes on with commit {first}: damage, or a file is missing"
            )
        } else if previous != journal.hash {
            format!(
                "{name} goes on from a record with the hash {previous:016x}, the last one before it has {:016x}",
                journal.hash
            )
        } else {
            return Ok(());
        };
        let file = format::segment_name(before.header.first_commit);
        Err(JournalError::Corrupt {
            file,
            offset: before.end,
            commit: self.next,
            what,
        })
    }

    /// Reads records up to the first place where there is none, and says what is there if not zeros.
    fn records<F>(
        &mut self,
        segment: &mut Segment<F>,
        hash: &mut u64,
        name: &str,
    ) -> Result<Option<String>, JournalError> {
        loop {
            let offset = usize::try_from(segment.end).expect("the file was read into memory");
            let Some(rest) = self.data.get(offset..).filter(|rest| rest.len() >= RECORD_HEADER) else {
                return Ok(None);
            };
            if rest[..RECORD_HEADER].iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = RecordHeader::parse(rest);
            let length = header.length as usize;
            let Some(record) = rest
                .get(..RECORD_HEADER + length)
                .filter(|_| length <= MAX_RECORD)
            else {
                return Ok(Some(format!("a record length of {length} bytes")));
            };
            if !format::is_sealed(record, segment.key) {
                return Ok(Some(format!(
                    "the checksum {:016x} does not match",
                    header.checksum
                )));
            }
            if header.commit != self.next || header.previous != *hash {
                return Ok(Some(format!(
                    "a record of commit {} that does not continue the chain",
                    header.commit
                )));
            }
            let position = Position {
                segment: segment.header.first_commit,
                offset: u32::try_from(offset).expect("read_header bounds the file"),
                len: header.length,
            };
            if header.commit >= self.from {
                let payload = &record[RECORD_HEADER..];
                let visited = Record {
                    commit: header.commit,
                    tag: header.tag,
                    payload,
                    position,
                };
                (self.visit)(visited).map_err(|source| JournalError::Replay {
                    file: name.to_owned(),
                    offset: segment.end,
                    commit: header.commit,
                    source,
                })?;
                self.report.replayed += 1;
            }
            self.report.records += 1;
            self.next += 1;
            *hash = header.checksum;
            segment.end += format::record_space(length, segment.header.block);
        }
    }

    /// Judges what lies behind the last record of the last segment.
    fn end_of_journal(
        &mut self,
        header: &SegmentHeader,
        key: u64,
        end: u64,
        name: &str,
        stopped: Option<String>,
    ) -> Result<(), JournalError> {
        let from = usize::try_from(end)
            .expect("the file was read into memory")
            .min(self.data.len());
        let what = stopped.unwrap_or_else(|| "bytes in space that was never written".to_owned());
        if let Some((offset, commit)) = valid_record(&self.data, from, header, key) {
            let what = format!("{what}, but the good record of commit {commit} follows at offset {offset}");
            return Err(JournalError::Corrupt {
                file: name.to_owned(),
                offset: end,
                commit: self.next,
                what,
            });
        }
        let bytes = used(&self.data[from..]) as u64;
        if bytes > 0 {
            let (file, commit) = (name.to_owned(), self.next);
            self.report.tail = Some(TailDamage {
                file,
                offset: end,
                bytes,
                commit,
                what,
            });
        }
        Ok(())
    }
}

impl JournalError {
    /// Whether this is damage that cutting the journal there gets over.
    fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Header { .. } | Self::Length { .. } | Self::Corrupt { .. }
        )
    }
}

/// Keeps the segments that were read, the last as far as it is good, and sets all else aside under other names.
fn set_aside<D: Disk>(
    journal: &mut Journal<D>,
    names: &[(u64, String)],
    reason: String,
) -> Result<Cut, JournalError> {
    let commit = journal.next;
    let kept = journal.segments.len();
    let active = journal.active_mut();
    let (offset, capacity) = (active.end, active.header.capacity);
    // A file that was cut short gets its length back, one that grew loses what is not its own.
    active.file.allocate(capacity)?;
    active.file.truncate(capacity)?;
    let mut data = Vec::new();
    read_whole(&active.file, capacity, &mut data)?;
    let tail = &data[usize::try_from(offset).expect("the file was read into memory")..];
    let tail = &tail[..used(tail)];

    let file = names[kept - 1].1.clone();
    let mut set_aside = Vec::new();
    if !tail.is_empty() {
        let name = format!("{file}.{offset}.cut");
        match journal.disk.remove(&name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        let copy = journal.disk.create(&name)?;
        copy.write_at(tail, 0)?;
        copy.sync_data()?;
        set_aside.push(name);
    }
    for (_, name) in names[kept..].iter().rev() {
        let aside = format!("{name}.cut");
        journal.disk.rename(name, &aside)?;
        set_aside.push(aside);
    }
    journal.sync_folder()?;
    Ok(Cut {
        file,
        offset,
        commit,
        reason,
        set_aside,
    })
}

fn segment_names<D: Disk>(disk: &D) -> Result<Vec<(u64, String)>, JournalError> {
    let mut names = Vec::new();
    for name in disk.list()? {
        if let Some(first) = format::parse_segment_name(&name) {
            names.push((first?, name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn read_header<D: Disk>(
    journal: &Journal<D>,
    file: &D::File,
    length: u64,
    first: u64,
    name: &str,
) -> Result<SegmentHeader, JournalError> {
    let damaged = |what: String| JournalError::Header {
        file: name.to_owned(),
        what,
    };
    if length < SEGMENT_HEADER as u64 {
        return Err(damaged(format!(
            "the file has {length} bytes, a header has {SEGMENT_HEADER}"
        )));
    }
    let mut bytes = [0; SEGMENT_HEADER];
    file.read_at(&mut bytes, 0)?;
    let header = SegmentHeader::decode(&bytes, name, &journal.identity)?;
    if header.first_commit != first {
        return Err(damaged(format!(
            "it is of the segment that begins with commit {}",
            header.first_commit
        )));
    }
    if first == 0 || first > u64::MAX / 2 {
        return Err(damaged(format!(
            "{first} is not a commit number that is ever reached"
        )));
    }
    // Before the content is read into memory.
    let largest = *SEGMENT_BYTES.end();
    if header.capacity > largest || length > largest {
        return Err(damaged(format!(
            "a segment of {} bytes is longer than the limit of {largest}",
            header.capacity.max(length)
        )));
    }
    Ok(header)
}

fn read_whole<F: DiskFile>(file: &F, length: u64, data: &mut Vec<u8>) -> io::Result<()> {
    data.clear();
    data.resize(usize::try_from(length).expect("read_header bounds the file"), 0);
    file.read_at(data, 0)
}

/// The first valid record of this segment at or behind `from`: its offset and commit.
fn valid_record(data: &[u8], from: usize, header: &SegmentHeader, key: u64) -> Option<(usize, u64)> {
    let block = header.block as usize;
    // So many commits at most fit into the segment: a cheap test before the checksum of a long payload.
    let commits = header.first_commit..header.first_commit.saturating_add((data.len() / block) as u64);
    (from..data.len().saturating_sub(RECORD_HEADER - 1))
        .step_by(block)
        .find_map(|offset| {
            let rest = &data[offset..];
            let record = RecordHeader::parse(rest);
            let length = record.length as usize;
            if !commits.contains(&record.commit) || length > MAX_RECORD {
                return None;
            }
            let bytes = rest.get(..RECORD_HEADER + length)?;
            format::is_sealed(bytes, key).then_some((offset, record.commit))
        })
}

/// Bytes up to and with the last one that is not zero.
fn used(data: &[u8]) -> usize {
    // Whole chunks first: most of a segment is zeros, and this form is fast.
    let chunk = 4096;
    let mut end = data.len();
    while end > 0 {
        let start = (end - 1) / chunk * chunk;
        if let Some(last) = data[start..end].iter().rposition(|byte| *byte != 0) {
            return start + last + 1;
        }
        end = start;
    }
    0
}
