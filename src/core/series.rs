//! Items in the order of their sequences, of which an engine keeps the older part.

use std::collections::VecDeque;

use super::ids::Seq;
use super::op::{LogItem, LoggedOp};

/// A sequence of items of which the older part may lie in the engine only.
///
/// Items above `behind` are in `tail`. Of those at or below it, the engine may load a window into `page`.
#[derive(Debug, Clone)]
pub struct Series<T> {
    /// Items at or below this sequence are not in `tail`.
    pub behind: Seq,
    /// A loaded window: every item in `(after, to]`.
    pub page: Option<Page<T>>,
    /// Further ones, for who needs what lies further on, and not what lies between.
    pub ahead: Vec<Page<T>>,
    /// Items in rising order.
    pub tail: VecDeque<(Seq, T)>,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self {
            behind: 0,
            page: None,
            ahead: Vec::new(),
            tail: VecDeque::new(),
        }
    }
}

/// A window of a [`Series`] that was loaded from the engine: every item in `(after, to]`.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// Where it begins (exclusive).
    pub after: Seq,
    /// Where it ends (inclusive).
    pub to: Seq,
    /// The items.
    pub items: Vec<(Seq, T)>,
}

/// The answer of [`Series::next`].
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a, T> {
    /// The next item.
    Item(Seq, &'a T),
    /// There is none.
    End,
    /// It lies in a part that is not loaded.
    NotLoaded,
}

/// What an item weighs in memory.
pub trait Weigh {
    /// Bytes, roughly.
    fn weight(&self) -> usize;
}

/// What an item costs beside the bytes of its operation: its place in the queue and the allocation's header.
const ITEM_WEIGHT: usize = 64;
impl Weigh for LoggedOp {
    fn weight(&self) -> usize {
        self.len() + ITEM_WEIGHT
    }
}

impl Weigh for (u64, LogItem) {
    fn weight(&self) -> usize {
        self.1.len() + ITEM_WEIGHT
    }
}

impl<T: Weigh> Series<T> {
    /// The first item above `after`.
    pub fn next(&self, after: Seq) -> Next<'_, T> {
        let mut after = after;
        if after < self.behind {
            match self.loaded(after) {
                Some(page) => {
                    let from = page.items.partition_point(|(seq, _)| *seq <= after);
                    if let Some((seq, item)) = page.items.get(from) {
                        return Next::Item(*seq, item);
                    }
                    if page.to < self.behind {
                        return Next::NotLoaded;
                    }
                    after = self.behind;
                }
                None => return Next::NotLoaded,
            }
        }
        match self.tail.get(self.tail.partition_point(|(seq, _)| *seq <= after)) {
            Some((seq, item)) => Next::Item(*seq, item),
            None => Next::End,
        }
    }

    /// The page that tells what follows a sequence.
    fn loaded(&self, after: Seq) -> Option<&Page<T>> {
        let mut pages = self.page.iter().chain(&self.ahead);
        pages.find(|page| page.after <= after && after < page.to)
    }

    fn pages_mut(&mut self) -> impl Iterator<Item = &mut Page<T>> {
        self.page.iter_mut().chain(&mut self.ahead)
    }

    /// Drops what was loaded.
    pub fn drop_pages(&mut self) {
        (self.page, self.ahead) = (None, Vec::new());
    }

    /// No item has a higher sequence.
    pub fn last(&self) -> Seq {
        self.tail.back().map_or(self.behind, |(seq, _)| *seq)
    }

    /// Adds an item above all others; gives its weight.
    pub fn push(&mut self, seq: Seq, item: T) -> usize {
        debug_assert!(self.tail.back().is_none_or(|(last, _)| *last < seq));
        let weight = item.weight();
        self.tail.push_back((seq, item));
        weight
    }

    /// Drops every item at or below `to`; gives the weight of what was in the tail.
    pub fn drop_to(&mut self, to: Seq) -> usize {
        let mut weight = 0;
        while let Some((_, item)) = self.tail.pop_front_if(|(seq, _)| *seq <= to) {
            weight += item.weight();
        }
        for page in self.pages_mut() {
            page.items.retain(|(seq, _)| *seq > to);
        }
        weight
    }

    /// Drops every item from `from` to `to`; gives the weight of what was in the tail.
    pub fn drop_range(&mut self, from: Seq, to: Seq) -> usize {
        let first = self.tail.partition_point(|(seq, _)| *seq < from);
        let end = self.tail.partition_point(|(seq, _)| *seq <= to);
        let dropped = self.tail.drain(first..end.max(first));
        let weight = dropped.map(|(_, item)| item.weight()).sum();
        for page in self.pages_mut() {
            page.items.retain(|(seq, _)| !(from..=to).contains(seq));
        }
        weight
    }

    /// Leaves every item at or below `to` to the engine, which must have it; gives the weight of what was in the tail.
    pub fn leave_behind(&mut self, to: Seq) -> usize {
        self.behind = self.behind.max(to);
        self.drop_to(to)
    }
}

/// A list that grows without moving what it holds: to make room in a `Vec` of half a million records once more takes tens
/// of milliseconds, in which no commit goes on.
#[derive(Debug, Clone)]
pub struct Pieces<T> {
    pieces: VecDeque<Vec<T>>,
    /// Items in all pieces but the last.
    before: usize,
}

/// Items in a piece: small enough to be made and taken at once.
const PIECE: usize = 1024;

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self {
            pieces: VecDeque::new(),
            before: 0,
        }
    }
}

impl<T> Pieces<T> {
    /// Adds an item at the end.
    pub fn push(&mut self, item: T) {
        match self.pieces.back_mut() {
            Some(last) if last.len() < PIECE => last.push(item),
            last => {
                self.before += last.map_or(0, |full| full.len());
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(item);
                self.pieces.push_back(piece);
            }
        }
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.before + self.pieces.back().map_or(0, Vec::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The items from a position on; only of a list of which no piece was taken.
    pub fn since(&self, from: usize) -> impl Iterator<Item = &T> {
        let pieces = self.pieces.iter().skip(from / PIECE);
        pieces.flatten().skip(from % PIECE)
    }

    /// Takes the oldest items, some at a time.
    pub fn take_piece(&mut self) -> Option<Vec<T>> {
        let piece = self.pieces.pop_front()?;
        // With the last piece nothing is before it.
        self.before = self.before.saturating_sub(piece.len());
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_items_in_order() {
        let mut pieces = Pieces::default();
        assert!(pieces.is_empty());
        let count = 2 * PIECE + 3;
        (0..count).for_each(|item| pieces.push(item));
        assert_eq!(pieces.len(), count);
        for from in [0, 1, PIECE - 1, PIECE, PIECE + 7, count - 1, count] {
            assert!(pieces.since(from).copied().eq(from..count), "from {from}");
        }
        let mut taken = Vec::new();
        while let Some(piece) = pieces.take_piece() {
            taken.extend(piece);
            assert_eq!(pieces.len(), count - taken.len());
        }
        assert!(taken.into_iter().eq(0..count));
    }

    impl Weigh for &str {
        fn weight(&self) -> usize {
            self.len()
        }
    }

    #[test]
    fn a_series_reads_across_its_page_and_its_tail() {
        let mut series: Series<&str> = Series {
            behind: 10,
            ..Series::default()
        };
        series.push(12, "twelve");
        assert_eq!(series.next(0), Next::NotLoaded);
        assert_eq!(series.next(10), Next::Item(12, &"twelve"));
        series.page = Some(Page {
            after: 0,
            to: 10,
            items: vec![(3, "three"), (7, "seven")],
        });
        assert_eq!(series.next(0), Next::Item(3, &"three"));
        assert_eq!(series.next(3), Next::Item(7, &"seven"));
        assert_eq!(series.next(7), Next::Item(12, &"twelve"));
        assert_eq!(series.next(12), Next::End);
        series.page = Some(Page {
            after: 0,
            to: 5,
            items: vec![(3, "three")],
        });
        assert_eq!(series.next(3), Next::NotLoaded);
        // What lies further on, without what lies between.
        series.ahead.push(Page {
            after: 6,
            to: 8,
            items: vec![(7, "seven"), (8, "eight")],
        });
        assert_eq!(series.next(6), Next::Item(7, &"seven"));
        assert_eq!(series.next(7), Next::Item(8, &"eight"));
        assert_eq!(series.next(8), Next::NotLoaded);
        assert_eq!(series.next(5), Next::NotLoaded);
        assert_eq!(series.next(0), Next::Item(3, &"three"));
        series.drop_to(7);
        assert_eq!(series.next(6), Next::Item(8, &"eight"));
        series.drop_pages();
        assert_eq!(series.next(6), Next::NotLoaded);
        series.page = Some(Page {
            after: 0,
            to: 5,
            items: vec![(3, "three")],
        });
        series.push(13, "thirteen");
        assert_eq!(series.drop_range(4, 12), "twelve".len());
        assert_eq!(series.next(3), Next::NotLoaded);
        assert_eq!(series.next(10), Next::Item(13, &"thirteen"));
        series.drop_to(13);
        assert_eq!(series.next(10), Next::End);
    }
}
