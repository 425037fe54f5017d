//! Pages of a snapshot of a shard (R11), from any engine: what is read in which order, filtered to the cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::engine::{InboxPage, MAX_PAGE_ITEMS, StoreError};
use super::paging::Room;
use crate::core::ids::{Origin, Seq, UserId};
use crate::core::retire::NEEDED_STEP;
use crate::core::snapshot::{Cut, SNAPSHOT_PAGE_ITEMS, SnapshotAt, SnapshotEntry, SnapshotPage, UserPage};
use crate::core::state::{DedupKey, DedupRow, Series, ShardRow, UserRow, UserState};
use crate::core::storage::{NeededPage, UserTimes};
use crate::core::vector::Vector;

/// What an engine gives of a shard.
pub trait Source {
    /// The head.
    ///
    /// # Errors
    /// [`StoreError`].
    fn head(&self) -> Result<ShardRow, StoreError>;

    /// The running hash of a log at a sequence above its floor.
    ///
    /// # Errors
    /// [`StoreError`].
    fn hash_at(&self, origin: Origin, seq: Seq) -> Result<u64, StoreError>;

    /// Dedup records behind a key, at most `limit`, and where to go on; `None` where nothing is left. It looks at a
    /// bounded part of the store, so that it may give less, or nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn dedup(
        &self,
        after: Option<&DedupKey>,
        limit: usize,
    ) -> Result<(DedupRows, Option<DedupKey>), StoreError>;

    /// Users behind one, by length and then by bytes, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, StoreError>;

    /// The row of a user.
    ///
    /// # Errors
    /// [`StoreError`].
    fn user(&self, user: &UserId) -> Result<UserRow, StoreError>;

    /// The last message of a user that is in the store, for each origin of which there may be one.
    ///
    /// # Errors
    /// [`StoreError`].
    fn inbox_ends(&self, user: &UserId) -> Result<BTreeMap<Origin, Seq>, StoreError>;

    /// The user's messages above a position and below a cut.
    ///
    /// # Errors
    /// [`StoreError`].
    fn inbox(&self, user: &UserId, after: &Vector, cut: &Cut, room: Room) -> Result<InboxPage, StoreError>;
}

/// Dedup records with their keys.
pub type DedupRows = Vec<(DedupKey, DedupRow)>;

/// Looks for users that need origins (R23): for the first of a page, or for all of whom something is stored.
///
/// # Errors
/// Those of the source.
pub fn needed(
    source: &impl Source,
    origins: &BTreeSet<Origin>,
    stored: bool,
    from: Option<&UserId>,
) -> Result<NeededPage, StoreError> {
    let mut page = NeededPage::default();
    let behind = source.users(from, NEEDED_STEP)?;
    let whole = behind.len() < NEEDED_STEP;
    page.next = behind.last().cloned().filter(|_| !whole);
    for user in from.cloned().into_iter().chain(behind) {
        let mut known = UserState {
            row: source.user(&user)?,
            ..UserState::default()
        };
        for (origin, end) in source.inbox_ends(&user)? {
            let series = Series {
                behind: end,
                ..Series::default()
            };
            known.inbox.insert(origin, series);
        }
        let needs = origins
            .iter()
            .copied()
            .filter(|origin| known.needs(*origin, stored));
        let needs: BTreeSet<Origin> = needs.collect();
        if !needs.is_empty() {
            page.users.push((user, needs));
            // One is enough where nothing is to be done about it.
            if !stored {
                break;
            }
        }
    }
    Ok(page)
}

/// The order of users in a snapshot.
pub fn order(user: &UserId) -> (usize, &str) {
    (user.as_str().len(), user.as_str())
}

/// Reads a page.
///
/// # Errors
/// Those of the source.
pub fn page(
    source: &impl Source,
    cut: Option<&Arc<Cut>>,
    after: &SnapshotAt,
    max_items: usize,
    max_bytes: usize,
) -> Result<(Arc<Cut>, SnapshotPage), StoreError> {
    let cut = match cut {
        Some(cut) => cut.clone(),
        None => Arc::new(Cut::of(&source.head()?, |origin, seq| {
            source.hash_at(origin, seq)
        })?),
    };
    let mut page = SnapshotPage::default();
    let items = max_items.clamp(1, SNAPSHOT_PAGE_ITEMS);
    let start = match after {
        SnapshotAt::Start => Some(None),
        SnapshotAt::Dedup(key) => Some(Some(key)),
        _ => None,
    };
    if let Some(after) = start {
        let (rows, next) = source.dedup(after, items)?;
        for (key, row) in rows {
            let bodies = row.bodies().filter(|(_, at)| cut.tells(*at));
            let bodies: Vec<_> = bodies.collect();
            if !bodies.is_empty() {
                page.dedup.push((key, bodies));
            }
        }
        page.next = Some(next.map_or(SnapshotAt::Users, SnapshotAt::Dedup));
        return Ok((cut, page));
    }
    page.next = read_users(source, &cut, after, Room::new(items, max_bytes), &mut page.users)?;
    Ok((cut, page))
}

/// What goes by time of some users behind one, in the order of a snapshot; fewer than `max_items` are the last.
///
/// # Errors
/// Those of the source.
pub fn times(
    source: &impl Source,
    after: Option<&UserId>,
    max_items: usize,
) -> Result<Vec<UserTimes>, StoreError> {
    let users = source.users(after, max_items.clamp(1, MAX_PAGE_ITEMS))?;
    let mut out = Vec::with_capacity(users.len());
    for user in users {
        let row = source.user(&user)?;
        out.push(UserTimes::of(user, &row));
    }
    Ok(out)
}

fn read_users(
    source: &impl Source,
    cut: &Cut,
    after: &SnapshotAt,
    mut room: Room,
    out: &mut Vec<UserPage>,
) -> Result<Option<SnapshotAt>, StoreError> {
    let mut last = match after {
        SnapshotAt::Inbox(user, _) | SnapshotAt::User(user) => Some(user.clone()),
        _ => None,
    };
    if let SnapshotAt::Inbox(user, position) = after
        && let Some(position) = read_user(source, cut, user, position.clone(), &mut room, out)?
    {
        return Ok(Some(SnapshotAt::Inbox(user.clone(), position)));
    }
    loop {
        let limit = room.items();
        if limit == 0 {
            return Ok(last.map(SnapshotAt::User));
        }
        let users = source.users(last.as_ref(), limit)?;
        let whole = users.len() < limit;
        for user in users {
            if room.items() == 0 || room.is_full() {
                return Ok(last.map(SnapshotAt::User));
            }
            if let Some(position) = read_user(source, cut, &user, Vector::new(), &mut room, out)? {
                return Ok(Some(SnapshotAt::Inbox(user, position)));
            }
            last = Some(user);
        }
        if whole {
            return Ok(None);
        }
    }
}

/// Reads a user from a position on; gives the position where messages are left.
fn read_user(
    source: &impl Source,
    cut: &Cut,
    user: &UserId,
    mut position: Vector,
    room: &mut Room,
    out: &mut Vec<UserPage>,
) -> Result<Option<Vector>, StoreError> {
    let row = source.user(user)?;
    let mut page = UserPage::of(user.clone(), &row, cut);
    room.spend(page.weight() as usize);
    let before = position.clone();
    let inbox = source.inbox(user, &position, cut, room.rest())?;
    for entry in inbox.entries {
        room.spend(entry.op.len());
        position.raise(entry.at.origin, entry.at.seq);
        page.entries.push(SnapshotEntry {
            at: entry.at,
            op: entry.op.bytes().clone(),
        });
    }
    // A hole comes in its place among the messages: one that came before those that it stands behind could be taken for
    // consumed, and they with it.
    page.holes.retain(|(origin, _), hole| {
        let next = hole.to > before.of(*origin);
        next && (inbox.end || hole.to <= position.of(*origin))
    });
    out.push(page);
    Ok((!inbox.end).then_some(position))
}
