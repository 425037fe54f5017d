//! What the machines ask of a store, and its answers: storage is an effect, these are its inputs and outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::commit::Outcome;
use super::expire::{DeviceLife, HoleRow};
use super::ids::{Coord, DeviceId, Origin, Seq, ShardId, UserId};
use super::op::{LogEntry, LoggedOp};
use super::retire::or_retired;
use super::snapshot::{Cut, SnapshotAt, SnapshotPage};
use super::state::{Logged, ShardRow, UserRow};
use super::vector::Vector;

/// Most inbox entries or log operations that one page holds.
pub const MAX_PAGE_ITEMS: usize = 1024;

/// The answer to a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// One for each operation, in order.
    pub outcomes: Vec<Outcome>,
    /// Every operation that was logged, own and applied ones, in order: the feed of delivery and shipping.
    pub logged: Vec<Logged>,
}

/// A question to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The head of a shard.
    Shard(ShardId),
    /// A user's row.
    User(ShardId, UserId),
    /// A user's messages above a position, in delivery order: each origin in sequence order, between origins the one
    /// whose next message has the lowest hybrid time.
    Inbox {
        /// The shard.
        shard: ShardId,
        /// The user.
        user: UserId,
        /// Above this, for each origin.
        after: Vector,
        /// At most so many, at most [`MAX_PAGE_ITEMS`].
        max_items: usize,
        /// At most so many bytes, but at least one message.
        max_bytes: usize,
    },
    /// A run of a log.
    Log {
        /// The shard.
        shard: ShardId,
        /// Whose log.
        origin: Origin,
        /// Above this.
        after: Seq,
        /// At most so many, at most [`MAX_PAGE_ITEMS`].
        max_items: usize,
        /// At most so many bytes, but at least one operation.
        max_bytes: usize,
    },
    /// What goes by time of some users of a shard, by length of their names and then by bytes.
    Users {
        /// The shard.
        shard: ShardId,
        /// Behind this one; `None` begins.
        after: Option<UserId>,
        /// At most so many, at most [`MAX_PAGE_ITEMS`].
        max_items: usize,
    },
    /// A page of a snapshot of a shard (R11). A page may be empty and yet not be the last: each read looks at a bounded
    /// part of the store.
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// As the first page told; `None` asks for that one.
        cut: Option<Arc<Cut>>,
        /// Behind this.
        after: SnapshotAt,
        /// At most so many items, at most [`SNAPSHOT_PAGE_ITEMS`](super::snapshot::SNAPSHOT_PAGE_ITEMS).
        max_items: usize,
        /// At most so many bytes, but at least one item.
        max_bytes: usize,
    },
    /// Which users need some of these origins (R23), among a bounded number of users: the first of them, or with `stored` all.
    Needed {
        /// The shard.
        shard: ShardId,
        /// The origins.
        origins: BTreeSet<Origin>,
        /// Only as far as messages of them wait.
        stored: bool,
        /// From this user on, by length and then by bytes; `None` from the first.
        from: Option<UserId>,
    },
}

/// The users that need origins, see [`Read::Needed`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NeededPage {
    /// Who does, and which.
    pub users: Vec<(UserId, BTreeSet<Origin>)>,
    /// Where to go on, from this user; `None` where all were looked at.
    pub next: Option<UserId>,
}

/// The answer to a [`Read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadReply {
    /// The head; the default row where the shard is new.
    Shard(Box<ShardRow>),
    /// The user's row; the default where the user is not known.
    User(Box<UserRow>),
    /// A page of messages.
    Inbox(InboxPage),
    /// A run of a log.
    Log(LogPage),
    /// Users; fewer than were asked for are the last.
    Users(Vec<UserTimes>),
    /// A page of a snapshot, and the cut that it belongs to.
    Snapshot(Arc<Cut>, Box<SnapshotPage>),
    /// Who needs origins.
    Needed(NeededPage),
}

/// A page of an inbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InboxPage {
    /// The messages in delivery order.
    pub entries: Vec<InboxEntry>,
    /// Whether nothing is left beyond them.
    pub end: bool,
    /// All holes above the position, also beyond the messages, by origin and sequence.
    pub holes: Vec<InboxHole>,
}

/// A hole as it waits in the place of messages (R18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxHole {
    /// The first that is gone.
    pub at: Coord,
    /// To where, how many, and why.
    pub row: HoleRow,
    /// Other coordinates of messages that it stands for, by sequence (R15).
    pub siblings: Vec<(Seq, Vec<Coord>)>,
}

impl InboxHole {
    /// The holes of a user above a position. What is retired is left out, and named as that among their copies (R23): a row
    /// may stand at either side of the retirement.
    pub fn above(row: &UserRow, after: &Vector, retired: &BTreeMap<Origin, Seq>) -> Vec<Self> {
        let holes = row.timed.holes.iter();
        let holes = holes.filter(|((origin, _), _)| !retired.contains_key(origin));
        let above = holes.filter(|((origin, _), hole)| hole.to > after.of(*origin));
        let hole = |((origin, seq), hole): (&(Origin, Seq), &HoleRow)| {
            let at = |seq| Coord { origin: *origin, seq };
            let siblings = row.siblings.range(at(*seq)..=at(hole.to));
            let siblings = siblings.map(|(at, others)| {
                let others: BTreeSet<Coord> = others.iter().map(|at| or_retired(*at, retired)).collect();
                (at.seq, others.into_iter().collect())
            });
            Self {
                at: at(*seq),
                row: *hole,
                siblings: siblings.collect(),
            }
        };
        above.map(hole).collect()
    }
}

/// What goes by time of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTimes {
    /// Who.
    pub user: UserId,
    /// No message that waits expires before this, unix milliseconds; 0: none expires.
    pub expires_ms: u64,
    /// The devices that did not expire, with what is known of their lives.
    pub devices: Vec<(DeviceId, DeviceLife)>,
}

impl UserTimes {
    /// Of a user's row.
    pub fn of(user: UserId, row: &UserRow) -> Self {
        let devices = row.devices.iter().filter(|(_, device)| !device.expired);
        Self {
            user,
            expires_ms: row.timed.from_ms,
            devices: devices.map(|(id, device)| (id.clone(), device.life)).collect(),
        }
    }
}

/// A message as it waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxEntry {
    /// Its coordinates.
    pub at: Coord,
    /// Other coordinates of the same message (R15).
    pub siblings: Vec<Coord>,
    /// The operation: envelope and body.
    pub op: LoggedOp,
}

/// A run of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPage {
    /// Operations from `after + 1` on; empty where there are none yet.
    Run {
        /// Running hash at `after`.
        before: u64,
        /// The operations.
        entries: Vec<LogEntry>,
        /// Whether nothing is left beyond them.
        end: bool,
    },
    /// What was asked for was trimmed: a snapshot is needed.
    Trimmed {
        /// The log begins above this.
        floor: Seq,
    },
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was changed; the same call may succeed later.
    #[error("store busy: {0}")]
    Retryable(String),
    /// No room; nothing was changed.
    #[error("store full: {0}")]
    Full(String),
    /// What is stored is damaged: names the place and the way out.
    #[error("store damaged: {0}")]
    Corrupt(String),
    /// The store stopped: what was not acknowledged may or may not be durable.
    #[error("store stopped: {0}")]
    Fatal(String),
}
