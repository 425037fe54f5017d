//! Answers to reads, from any engine: the merge of an inbox over its origins, and the limits of a page.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::engine::{InboxEntry, InboxPage, LogPage, MAX_PAGE_ITEMS, StoreError};
use crate::core::commit::HOLDER_LOOK;
use crate::core::ids::{Coord, Origin, Seq};
use crate::core::op::{LogEntry, LogItem, LoggedOp, kind};
use crate::core::retire::or_retired;
use crate::core::state::{LogRow, Page, UserRow};
use crate::core::storage::InboxHole;
use crate::core::vector::Vector;

/// Counts what goes into a page: at most so many items and bytes, but at least one item.
#[derive(Debug)]
pub struct Room {
    items: usize,
    bytes: usize,
    empty: bool,
}

impl Room {
    /// A page of at most `max_items` (at least 1, at most [`MAX_PAGE_ITEMS`]) and `max_bytes`.
    pub fn new(max_items: usize, max_bytes: usize) -> Self {
        Self {
            items: max_items.clamp(1, MAX_PAGE_ITEMS),
            bytes: max_bytes,
            empty: true,
        }
    }

    /// Takes room for an item; says whether there was any.
    pub fn take(&mut self, bytes: usize) -> bool {
        if self.items == 0 || (!self.empty && bytes > self.bytes) {
            return false;
        }
        self.spend(bytes);
        true
    }

    /// Takes room for an item that is there already, however large.
    pub fn spend(&mut self, bytes: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.empty = false;
    }

    /// For at most so many items, one at least.
    pub fn at_most(self, items: usize) -> Self {
        Self {
            items: self.items.min(items.max(1)),
            ..self
        }
    }

    /// Whether not even a byte is left.
    pub fn is_full(&self) -> bool {
        !self.empty && self.bytes == 0
    }

    /// A page of what is left, for one item at least.
    pub fn rest(&self) -> Room {
        Room {
            items: self.items.max(1),
            bytes: self.bytes,
            empty: true,
        }
    }

    /// How many bytes still fit.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many items still fit.
    pub fn items(&self) -> usize {
        self.items
    }
}

/// Merges an inbox in delivery order: each origin in sequence order, between origins the one whose next message has
/// the lowest hybrid time, then the lowest coordinates.
///
/// `next` gives the first message of an origin above a sequence. What is retired is left out (R23).
///
/// # Errors
/// Those of `next`.
pub fn inbox_page(
    row: &UserRow,
    retired: &BTreeMap<Origin, Seq>,
    origins: impl IntoIterator<Item = Origin>,
    after: &Vector,
    mut room: Room,
    mut next: impl FnMut(Origin, Seq) -> Result<Option<(Seq, LoggedOp)>, StoreError>,
) -> Result<InboxPage, StoreError> {
    // What a hole replaced may still lie there.
    let mut next = |origin: Origin, after: Seq| {
        let mut after = after;
        loop {
            let Some((seq, op)) = next(origin, after)? else {
                return Ok(None);
            };
            match row.timed.hole_at(Coord { origin, seq }) {
                Some((_, hole)) => after = hole.to,
                None => return Ok(Some((seq, op))),
            }
        }
    };
    let mut heads = BinaryHeap::new();
    let mut ops = BTreeMap::new();
    for origin in origins.into_iter().filter(|origin| !retired.contains_key(origin)) {
        let from = after.of(origin).max(row.trimmed.of(origin));
        if let Some((seq, op)) = next(origin, from)? {
            heads.push(Reverse((op.hlc(), origin, seq)));
            ops.insert(origin, op);
        }
    }
    let mut page = InboxPage {
        holes: InboxHole::above(row, after, retired),
        ..InboxPage::default()
    };
    while let Some(Reverse((_, origin, seq))) = heads.pop() {
        let op = ops.remove(&origin).expect("each head has its operation");
        if !room.take(op.len()) {
            return Ok(page);
        }
        let at = Coord { origin, seq };
        let siblings = row.siblings.get(&at);
        page.entries.push(InboxEntry {
            at,
            siblings: siblings.map(|others| copies(others, retired)).unwrap_or_default(),
            op,
        });
        if let Some((seq, op)) = next(origin, seq)? {
            heads.push(Reverse((op.hlc(), origin, seq)));
            ops.insert(origin, op);
        }
    }
    page.end = true;
    Ok(page)
}

fn copies(others: &BTreeSet<Coord>, retired: &BTreeMap<Origin, Seq>) -> Vec<Coord> {
    let others: BTreeSet<Coord> = others.iter().map(|at| or_retired(*at, retired)).collect();
    others.into_iter().collect()
}

/// Which part of a series a commit needs: what lies above `after`, and at least a step's worth above `above`, up to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The page begins here (exclusive).
    pub after: Seq,
    /// The last of the needs begins here.
    pub above: Seq,
    /// Nothing beyond it is needed.
    pub to: Seq,
}

impl Window {
    /// The window of one need.
    pub fn of(after: Seq, to: Seq) -> Self {
        Self {
            after,
            above: after,
            to,
        }
    }

    /// Covers another need, too.
    pub fn add(&mut self, after: Seq, to: Seq) {
        self.after = self.after.min(after);
        self.above = self.above.max(after);
        self.to = self.to.max(to);
    }

    /// How many items it takes at most, by steps of so many.
    pub fn most(&self, step: usize) -> usize {
        match self.after == self.above {
            true => step,
            false => 4 * step,
        }
    }

    /// Begins the page; `behind` is where the series ends in the engine.
    pub fn page<T>(self, step: usize, behind: Seq) -> PageBuilder<T> {
        PageBuilder {
            window: self,
            step,
            above: 0,
            page: Page {
                after: self.after,
                to: behind.min(self.to).max(self.after),
                items: Vec::new(),
            },
        }
    }
}

/// Takes items in rising order until a window is full: `step` items above the last need, or four times as many in all,
/// so that needs far apart do not load what lies between (the page then ends before the last one, and the operation
/// says that more is to do).
#[derive(Debug)]
pub struct PageBuilder<T> {
    window: Window,
    step: usize,
    above: usize,
    page: Page<T>,
}

impl<T> PageBuilder<T> {
    /// Takes an item; says whether there is room for another one.
    pub fn push(&mut self, seq: Seq, item: T) -> bool {
        self.page.items.push((seq, item));
        self.above += usize::from(seq > self.window.above);
        let full = self.above == self.step || self.page.items.len() == 4 * self.step;
        if full {
            self.page.to = seq;
        }
        !full
    }

    /// The page; where items ended before the window was full, nothing lies between them and its end.
    pub fn finish(self) -> Page<T> {
        self.page
    }

    /// Takes all items that fit.
    ///
    /// # Errors
    /// Those of the items.
    pub fn fill(
        mut self,
        items: impl Iterator<Item = Result<(Seq, T), StoreError>>,
    ) -> Result<Page<T>, StoreError> {
        for item in items {
            let (seq, item) = item?;
            if !self.push(seq, item) {
                break;
            }
        }
        Ok(self.page)
    }
}

/// The page of a log from `after` to the first entry that is not a confirmation; at most [`HOLDER_LOOK`] entries, and nothing
/// beyond `behind`, where the log ends in the engine.
///
/// # Errors
/// Those of the items.
pub fn first_page(
    after: Seq,
    behind: Seq,
    items: impl Iterator<Item = Result<(Seq, (u64, LogItem)), StoreError>>,
) -> Result<Page<(u64, LogItem)>, StoreError> {
    let mut page = Page {
        after,
        to: behind,
        items: Vec::new(),
    };
    for item in items.take(HOLDER_LOOK) {
        let (seq, (hash, op)) = item?;
        let found = op.kind() != kind::CONFIRM;
        page.items.push((seq, (hash, op)));
        if found || page.items.len() == HOLDER_LOOK {
            page.to = seq;
            break;
        }
    }
    Ok(page)
}

/// A run of a log: `entry` gives the running hash and the operation of the first entry above a sequence.
///
/// # Errors
/// Those of `entry`; [`StoreError::Corrupt`] where the log has a gap.
pub fn log_page(
    row: Option<&LogRow>,
    after: Seq,
    mut room: Room,
    mut entry: impl FnMut(Seq) -> Result<Option<(Seq, u64, LoggedOp)>, StoreError>,
) -> Result<LogPage, StoreError> {
    let mut entries = Vec::new();
    let Some(row) = row else {
        return Ok(LogPage::Run {
            before: 0,
            entries,
            end: true,
        });
    };
    if after < row.floor {
        return Ok(LogPage::Trimmed { floor: row.floor });
    }
    let mut expect = |after: Seq| match entry(after)? {
        Some((seq, hash, op)) if seq == after + 1 => Ok((hash, op)),
        other => Err(StoreError::Corrupt(format!(
            "the log has {:?} after sequence {after}, expected {}",
            other.map(|(seq, ..)| seq),
            after + 1
        ))),
    };
    let before = match after {
        at if at == row.floor => row.floor_hash,
        at if at >= row.seq => row.hash,
        at => expect(at - 1)?.0,
    };
    let mut at = after;
    while at < row.seq {
        let (hash, op) = expect(at)?;
        if !room.take(op.len()) {
            break;
        }
        at += 1;
        entries.push(LogEntry { seq: at, hash, op });
    }
    Ok(LogPage::Run {
        before,
        entries,
        end: at >= row.seq,
    })
}
