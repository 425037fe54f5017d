//! What can go wrong with a journal, and what to do then.

use std::io;

/// Why a journal cannot be opened, written or read. Where `open` returns one of these, the files are as they were.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder has no segment. A lost disk or a wrong mount must not pass for a new store.
    #[error("there is no journal in {location}: mount the right folder, or create a new store explicitly")]
    Missing {
        /// The folder.
        location: String,
    },
    /// A new journal was to be created where there is one.
    #[error("{location} has a journal already ({file}): open it, or choose an empty folder")]
    Exists {
        /// The folder.
        location: String,
        /// A segment in it.
        file: String,
    },
    /// A setting is out of its range.
    #[error("the journal's {field} is {value}, expected {expected}")]
    Setting {
        /// Which setting.
        field: &'static str,
        /// What it was.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// A file ends like a segment and is not named like one.
    #[error("{file} in the journal's folder is no segment's name (20 digits and .seg): move it away")]
    Name {
        /// The file.
        file: String,
    },
    /// The header of a segment is damaged. Headers are durable before a segment is used: no crash does this.
    #[error("the header of {file} is damaged: {what}; {WAY_OUT}")]
    Header {
        /// The segment.
        file: String,
        /// What was found.
        what: String,
    },
    /// A segment is of another format.
    #[error(
        "{file} has format version {found}, this program knows {}: use the version of iris that wrote it",
        super::FORMAT_VERSION
    )]
    Version {
        /// The segment.
        file: String,
        /// Its version.
        found: u32,
    },
    /// A segment belongs to another store.
    #[error("{file} has the {field} {stored}, expected {expected}: is this the folder of another store?")]
    Identity {
        /// The segment.
        file: String,
        /// The field that differs.
        field: &'static str,
        /// What the segment says.
        stored: String,
        /// What the caller asked for.
        expected: String,
    },
    /// A segment is shorter or longer than it was made. The length is durable before a segment is used.
    #[error("{file} has {length} bytes, its header says {expected}: it was cut or copied badly; {WAY_OUT}")]
    Length {
        /// The segment.
        file: String,
        /// Its length in bytes.
        length: u64,
        /// The length in its header.
        expected: u64,
    },
    /// Damage before a good record.
    #[error("{file} is damaged at offset {offset}, where commit {commit} was expected: {what}; {WAY_OUT}")]
    Corrupt {
        /// The segment.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// The number of the first commit that is lost.
        commit: u64,
        /// What was found there, and which good record or segment shows that it is not the end.
        what: String,
    },
    /// The journal begins after what is asked for: an older copy of the index folder under a newer journal, or
    /// segments that were removed too early.
    #[error(
        "the journal begins at commit {have}, commit {need} is needed: the index is older than the journal \
         (was an old copy restored?) or segments are missing; restore index and journal from the same moment"
    )]
    Gap {
        /// The first commit in the journal.
        have: u64,
        /// The first commit needed.
        need: u64,
    },
    /// The journal ends before what is asked for: the index is newer than the journal.
    #[error(
        "the journal ends at commit {last}, the index covers up to {}: the index is newer than the journal \
         (was an old copy of the journal restored?){}; restore index and journal from the same moment",
        need - 1,
        damage.as_ref().map_or_else(String::new, |d| format!(" ({d})"))
    )]
    Behind {
        /// The last commit in the journal.
        last: u64,
        /// The first commit needed.
        need: u64,
        /// Damage at the journal's end that may be the cause.
        damage: Option<super::TailDamage>,
    },
    /// The caller's `visit` refused a record.
    #[error("cannot replay commit {commit} from {file} at offset {offset}: {source}")]
    Replay {
        /// The segment.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// The commit.
        commit: u64,
        /// The caller's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The payload is longer than [`super::MAX_RECORD`]. Nothing was written.
    #[error(
        "a record of {length} bytes is longer than the limit of {}: commit less at once",
        super::MAX_RECORD
    )]
    TooLarge {
        /// Its length in bytes.
        length: usize,
    },
    /// No space for a new segment. Nothing was written; the journal goes on when there is space.
    #[error("no space for a new segment of {bytes} bytes in {location}: free some ({source})")]
    Full {
        /// The folder.
        location: String,
        /// What was wanted.
        bytes: u64,
        /// What the disk said.
        source: io::Error,
    },
    /// A position whose segment was deleted, or of another journal.
    #[error("commit position {position:?} is in no segment of the journal: it was deleted")]
    Deleted {
        /// The position.
        position: super::Position,
    },
    /// The bytes at a position are not the record that was written there.
    #[error("the record in {file} at offset {offset} is damaged: its checksum does not match; {WAY_OUT}")]
    Unreadable {
        /// The segment.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// An earlier write or sync failed. What it wrote may or may not be durable, and nothing can be written after it:
    /// open the journal again.
    #[error("the journal stopped at commit {commit}: {reason}; restart the store")]
    Poisoned {
        /// The commit that failed.
        commit: u64,
        /// What happened.
        reason: String,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(super) const WAY_OUT: &str = "the ways out: restore the folder from a copy, open with \
    `iris serve --cut-journal-at-damage` to give up this and all later commits, or begin a new store that fetches from the other regions";
