//! What was delivered: handed over once, acknowledged when it was consumed.
//!
//! Per origin a queue of what was handed over and is not consumed up to there. Its consumed beginning moves the cursor,
//! and the session acknowledges the cursor, clamped to what this session gave (R14): an acknowledgement never runs ahead
//! of the application, also where it consumes out of order.
//!
//! A message that was accepted in two regions comes under two coordinates (R15). The second is not handed over; it counts
//! as consumed once the first is. What was consumed is remembered by a fingerprint of (sender, id, content) until every
//! region has applied it, so that the other copy is dropped in a region that cannot know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::core::ids::{Coord, MAX_USER_LEN, MessageId, Origin, Seq, UserId};
use crate::core::vector::Vector;

/// Retired origins that stay in the cursor: each is a pair of numbers in every `Hello`.
const KEPT_RETIRED: usize = 64;

/// What a message is recognised by: a hash with the device's secret seed, so that no sender can aim at a collision.
pub(super) type Fingerprint = u128;

/// The fingerprint of a message; two with the same id and different contents are two messages (R15).
pub(super) fn fingerprint(seed: u64, from: &UserId, id: MessageId, kind: u16, body: &[u8]) -> Fingerprint {
    let mut key = [0; MAX_USER_LEN + 1 + 16 + 2 + 16];
    let from = from.as_str().as_bytes();
    key[..16].copy_from_slice(&id.0);
    key[16..32].copy_from_slice(&xxh3_128_with_seed(body, seed).to_be_bytes());
    key[32..34].copy_from_slice(&kind.to_be_bytes());
    key[34] = from.len() as u8;
    key[35..35 + from.len()].copy_from_slice(from);
    xxh3_128_with_seed(&key[..35 + from.len()], seed)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// With the application.
    Handed,
    /// A copy of one that is with the application.
    Copy,
    Done,
}

#[derive(Debug)]
struct Pending {
    seq: Seq,
    /// `None` for a hole.
    print: Option<Fingerprint>,
    state: State,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    seed: u64,
    /// Consumed to here.
    cursor: Vector,
    /// What this session delivered.
    given: Vector,
    /// What this session was told, `Hello` included.
    acked: Vector,
    pending: BTreeMap<Origin, VecDeque<Pending>>,
    /// Handed over and not consumed.
    handed: BTreeSet<Fingerprint>,
    /// Copies that wait for one of `handed`.
    copies: BTreeMap<Fingerprint, Vec<Coord>>,
    remembered: Remembered,
    /// Origins whose cursor may be ahead of what was acknowledged.
    touched: BTreeSet<Origin>,
    unacked: usize,
    unconsumed: usize,
}

impl Inbox {
    pub(super) fn new(
        seed: u64,
        cursor: Vector,
        remembered: Vec<(Fingerprint, Coord)>,
        max_remembered: usize,
    ) -> Self {
        let mut inbox = Self {
            seed,
            acked: cursor.clone(),
            cursor,
            remembered: Remembered {
                max: max_remembered,
                ..Remembered::default()
            },
            ..Self::default()
        };
        for (print, at) in remembered {
            inbox.remembered.insert(print, at);
        }
        inbox
    }

    /// A message came; says whether it is new and goes to the application.
    pub(super) fn deliver(
        &mut self,
        at: Coord,
        from: &UserId,
        id: MessageId,
        kind: u16,
        body: &[u8],
    ) -> bool {
        self.given(at);
        if at.seq <= self.last_handed(at.origin) {
            return false;
        }
        let print = fingerprint(self.seed, from, id, kind, body);
        let state = if self.remembered.contains(print) {
            State::Done
        } else if self.handed.insert(print) {
            self.unconsumed += 1;
            State::Handed
        } else {
            self.copies.entry(print).or_default().push(at);
            State::Copy
        };
        self.append(at, Some(print), state);
        state == State::Handed
    }

    /// A hole came; says whether it is new.
    pub(super) fn hole(&mut self, origin: Origin, to: Seq) -> bool {
        let at = Coord { origin, seq: to };
        self.given(at);
        if to <= self.last_handed(origin) {
            return false;
        }
        self.unconsumed += 1;
        self.append(at, None, State::Handed);
        true
    }

    /// The application handled what stands there; says whether anything changed.
    pub(super) fn consumed(&mut self, at: Coord) -> bool {
        let Some(queue) = self.pending.get_mut(&at.origin) else {
            return false;
        };
        let Ok(index) = queue.binary_search_by_key(&at.seq, |p| p.seq) else {
            return false;
        };
        self.finish(at.origin, index)
    }

    /// The application handled everything of this origin to there.
    pub(super) fn consumed_through(&mut self, at: Coord) -> bool {
        let mut changed = false;
        // What is done at the front leaves the queue: the index moves only past what stays.
        let mut index = 0;
        while let Some(item) = self.pending.get(&at.origin).and_then(|queue| queue.get(index)) {
            if item.seq > at.seq {
                break;
            }
            if item.state == State::Handed {
                let before = self.pending.get(&at.origin).map_or(0, VecDeque::len);
                self.finish(at.origin, index);
                changed = true;
                let after = self.pending.get(&at.origin).map_or(0, VecDeque::len);
                index = if after < before { 0 } else { index + 1 };
            } else {
                index += 1;
            }
        }
        changed
    }

    /// What to acknowledge now; the caller sends it.
    pub(super) fn acks(&mut self) -> Vec<Coord> {
        self.unacked = 0;
        let mut acks = Vec::new();
        for origin in std::mem::take(&mut self.touched) {
            let seq = self.cursor.of(origin).min(self.given.of(origin));
            if self.acked.raise(origin, seq) {
                acks.push(Coord { origin, seq });
            }
        }
        acks
    }

    /// Whether there may be something to acknowledge, and how many messages it covers.
    pub(super) fn unacked(&self) -> Option<usize> {
        (!self.touched.is_empty()).then_some(self.unacked)
    }

    /// A session begins, with the cursor as told in `Hello`.
    pub(super) fn connected(&mut self, stable: &Vector) {
        self.given = Vector::new();
        self.touched.clear();
        self.unacked = 0;
        // What was consumed since `Hello` is not known to the server yet: it may still send the copy.
        self.remembered.forget_stable(stable, &self.acked);
        self.forget_retired(stable);
    }

    /// An origin that is stable to its very end is retired: no region has anything of it. A store that was put back to an
    /// earlier state has, until the others tell it, so as many stay in the cursor as cost little.
    fn forget_retired(&mut self, stable: &Vector) {
        let named = self.cursor.iter().map(|(origin, _)| origin);
        let retired =
            named.filter(|origin| stable.of(*origin) == Seq::MAX && !self.pending.contains_key(origin));
        let retired: Vec<Origin> = retired.collect();
        let surplus = retired.len().saturating_sub(KEPT_RETIRED);
        for origin in retired.into_iter().take(surplus) {
            self.cursor.remove(origin);
            self.acked.remove(origin);
        }
    }

    /// What `Hello` says; a later acknowledgement is above it.
    pub(super) fn claim(&mut self) -> Vector {
        self.acked = self.cursor.clone();
        self.cursor.clone()
    }

    pub(super) fn cursor(&self) -> &Vector {
        &self.cursor
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn remembered(&self) -> impl Iterator<Item = (Fingerprint, Coord)> + '_ {
        self.remembered.order.iter().copied()
    }

    /// Handed over and not consumed.
    pub(super) fn unconsumed(&self) -> usize {
        self.unconsumed
    }

    fn given(&mut self, at: Coord) {
        self.given.raise(at.origin, at.seq);
        // Consumed before this session gave it: only now may it be acknowledged.
        if at.seq <= self.cursor.of(at.origin) && self.acked.of(at.origin) < at.seq {
            self.touched.insert(at.origin);
        }
    }

    fn last_handed(&self, origin: Origin) -> Seq {
        let in_queue = self.pending.get(&origin).and_then(VecDeque::back);
        in_queue.map_or(self.cursor.of(origin), |pending| pending.seq)
    }

    fn append(&mut self, at: Coord, print: Option<Fingerprint>, state: State) {
        let seq = at.seq;
        self.pending
            .entry(at.origin)
            .or_default()
            .push_back(Pending { seq, print, state });
        if state == State::Done {
            self.advance(at.origin);
        }
    }

    fn finish(&mut self, origin: Origin, index: usize) -> bool {
        let queue = self.pending.get_mut(&origin).expect("the caller found it");
        let item = &mut queue[index];
        if item.state != State::Handed {
            return false;
        }
        item.state = State::Done;
        self.unconsumed -= 1;
        let (seq, print) = (item.seq, item.print);
        if let Some(print) = print {
            self.handed.remove(&print);
            self.remembered.insert(print, Coord { origin, seq });
            for copy in self.copies.remove(&print).unwrap_or_default() {
                if let Some(queue) = self.pending.get_mut(&copy.origin)
                    && let Ok(index) = queue.binary_search_by_key(&copy.seq, |p| p.seq)
                {
                    queue[index].state = State::Done;
                }
                if copy.origin != origin {
                    self.advance(copy.origin);
                }
            }
        }
        self.advance(origin);
        true
    }

    /// Moves the cursor over the consumed beginning of a queue.
    fn advance(&mut self, origin: Origin) {
        let Some(queue) = self.pending.get_mut(&origin) else {
            return;
        };
        let mut last = None;
        while queue.front().is_some_and(|front| front.state == State::Done) {
            last = queue.pop_front().map(|done| done.seq);
            self.unacked += 1;
        }
        if queue.is_empty() {
            self.pending.remove(&origin);
        }
        if let Some(seq) = last {
            self.cursor.raise(origin, seq);
            self.touched.insert(origin);
        }
    }
}

/// What was consumed and may come again under other coordinates, oldest first.
#[derive(Debug, Default)]
struct Remembered {
    max: usize,
    order: VecDeque<(Fingerprint, Coord)>,
    prints: BTreeSet<Fingerprint>,
}

impl Remembered {
    fn contains(&self, print: Fingerprint) -> bool {
        self.prints.contains(&print)
    }

    fn insert(&mut self, print: Fingerprint, at: Coord) {
        if self.max == 0 || !self.prints.insert(print) {
            return;
        }
        if self.order.len() >= self.max
            && let Some((oldest, _)) = self.order.pop_front()
        {
            self.prints.remove(&oldest);
        }
        self.order.push_back((print, at));
    }

    /// What every region has applied and the server was told of needs no memory: its copies are known as such there.
    fn forget_stable(&mut self, stable: &Vector, told: &Vector) {
        let prints = &mut self.prints;
        self.order.retain(|(print, at)| {
            let keep = !(stable.covers(*at) && told.covers(*at));
            if !keep {
                prints.remove(print);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(origin: u64, seq: Seq) -> Coord {
        Coord {
            origin: Origin(origin),
            seq,
        }
    }

    fn deliver(inbox: &mut Inbox, origin: u64, seq: Seq, message: u8) -> bool {
        let from = UserId::new("alice").unwrap();
        inbox.deliver(
            at(origin, seq),
            &from,
            MessageId::v7(1, [message; 10]),
            0,
            &[message],
        )
    }

    fn inbox() -> Inbox {
        Inbox::new(7, Vector::new(), Vec::new(), 100)
    }

    #[test]
    fn acknowledgements_follow_the_consumed_beginning() {
        let mut inbox = inbox();
        for seq in 1..=4 {
            assert!(deliver(&mut inbox, 1, seq * 10, seq as u8));
        }
        assert!(inbox.consumed(at(1, 20)));
        assert_eq!(inbox.acks(), []);
        assert!(inbox.consumed(at(1, 10)));
        assert_eq!(inbox.unacked(), Some(2));
        assert_eq!(inbox.acks(), [at(1, 20)]);
        assert!(!inbox.consumed(at(1, 10)));
        assert!(inbox.consumed_through(at(1, 40)));
        assert_eq!(inbox.acks(), [at(1, 40)]);
        assert_eq!(inbox.unconsumed(), 0);
    }

    #[test]
    fn consuming_through_skips_what_was_consumed_and_waits_for_copies() {
        let mut inbox = inbox();
        assert!(deliver(&mut inbox, 1, 1, 9));
        assert!(deliver(&mut inbox, 2, 1, 1));
        assert!(!deliver(&mut inbox, 2, 2, 9));
        assert!(deliver(&mut inbox, 2, 3, 3));
        assert!(deliver(&mut inbox, 2, 4, 4));
        inbox.consumed(at(2, 3));
        assert!(inbox.consumed_through(at(2, 4)));
        // The copy at 2:2 stands for 1:1, which the application has not consumed.
        assert_eq!(inbox.acks(), [at(2, 1)]);
        inbox.consumed(at(1, 1));
        assert_eq!(inbox.acks(), [at(1, 1), at(2, 4)]);
    }

    #[test]
    fn what_is_delivered_again_is_dropped_and_acknowledged_when_this_session_gave_it() {
        let mut inbox = inbox();
        assert!(deliver(&mut inbox, 1, 5, 1));
        assert!(deliver(&mut inbox, 1, 6, 2));
        inbox.claim();
        inbox.connected(&Vector::new());
        inbox.consumed(at(1, 5));
        assert_eq!(inbox.acks(), [], "this session gave nothing yet");
        assert!(!deliver(&mut inbox, 1, 5, 1));
        assert_eq!(inbox.acks(), [at(1, 5)]);
        assert!(!deliver(&mut inbox, 1, 6, 2));
        assert_eq!(inbox.acks(), []);
        inbox.consumed(at(1, 6));
        assert_eq!(inbox.acks(), [at(1, 6)]);
    }

    #[test]
    fn a_consumed_copy_is_dropped_until_the_first_is_stable() {
        let mut inbox = inbox();
        deliver(&mut inbox, 1, 5, 1);
        deliver(&mut inbox, 1, 6, 2);
        inbox.consumed(at(1, 5));
        inbox.claim();
        inbox.consumed(at(1, 6));
        inbox.connected(&[(Origin(1), 6)].into_iter().collect());
        assert_eq!(inbox.remembered().count(), 1, "consumed since the claim");
        inbox.claim();
        inbox.connected(&[(Origin(1), 5)].into_iter().collect());
        assert!(!deliver(&mut inbox, 2, 1, 2));
        assert_eq!(inbox.acks(), [at(2, 1)]);
        assert_eq!(inbox.remembered().count(), 1);
        // The first was stable: a region that still sends its copy would not be telling the truth.
        assert!(deliver(&mut inbox, 2, 2, 1));
    }

    #[test]
    fn of_retired_origins_only_so_many_stay_in_the_cursor() {
        let mut inbox = inbox();
        let retired = KEPT_RETIRED as u64 + 3;
        for origin in 1..=retired + 1 {
            deliver(&mut inbox, origin, 6, origin as u8);
            assert!(inbox.consumed(at(origin, 6)));
        }
        assert_eq!(inbox.claim().len(), retired as usize + 1);
        let all_of = |origin| (Origin(origin), Seq::MAX);
        let stable = |last: u64| -> Vector { (1..=last).map(all_of).collect() };
        inbox.connected(&stable(KEPT_RETIRED as u64));
        assert_eq!(inbox.claim().len(), retired as usize + 1, "just as many as stay");
        inbox.connected(&stable(retired));
        let left = inbox.claim();
        assert_eq!((left.len(), left.of(Origin(3))), (KEPT_RETIRED + 1, 0));
        assert_eq!(left.of(Origin(retired + 1)), 6, "the last one is not retired");
    }

    #[test]
    fn the_same_id_with_another_body_is_another_message() {
        let mut inbox = inbox();
        let from = UserId::new("alice").unwrap();
        let id = MessageId::v7(1, [1; 10]);
        assert!(inbox.deliver(at(1, 1), &from, id, 0, b"one"));
        assert!(inbox.deliver(at(2, 1), &from, id, 0, b"two"));
        assert!(inbox.deliver(at(3, 1), &from, id, 1, b"one"));
        assert!(!inbox.deliver(at(4, 1), &from, id, 0, b"one"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut inbox = Inbox::new(7, Vector::new(), Vec::new(), 3);
        for n in 1..=4 {
            deliver(&mut inbox, 1, n, n as u8);
            inbox.consumed(at(1, n));
        }
        assert!(deliver(&mut inbox, 2, 1, 1), "the oldest was forgotten");
        assert!(!deliver(&mut inbox, 2, 2, 4));
    }

    #[test]
    fn holes_are_told_once_and_acknowledged() {
        let mut inbox = inbox();
        assert!(inbox.hole(Origin(1), 9));
        inbox.connected(&Vector::new());
        assert!(!inbox.hole(Origin(1), 9));
        inbox.consumed(at(1, 9));
        assert_eq!(inbox.acks(), [at(1, 9)]);
    }
}
