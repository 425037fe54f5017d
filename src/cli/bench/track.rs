//! What became of every message: bits by sender and sequence, dropped in blocks once everything in one is settled.
//!
//! A block with a message that was refused stays, two bits for each of its messages and those after it.

use std::collections::VecDeque;

/// Messages in a block: 512 bytes of bits for each kind.
const BLOCK: u64 = 4096;
const WORDS: usize = (BLOCK / 64) as usize;

type Bits = Box<[u64; WORDS]>;

/// The messages of one sender.
#[derive(Debug)]
pub(super) struct Track {
    devices: usize,
    /// Sequences below are settled.
    base: u64,
    blocks: VecDeque<Block>,
}

#[derive(Debug)]
struct Block {
    accepted: Bits,
    /// How many are.
    answered: u32,
    /// Deliveries that the accepted ones call for.
    expected: u64,
    delivered: Vec<Bits>,
    /// Bits that are set there.
    seen: u64,
}

/// What a delivery was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The first to this device.
    First,
    /// One more to this device.
    Again,
}

impl Track {
    pub(super) fn new(devices: usize) -> Self {
        Self {
            devices,
            base: 0,
            blocks: VecDeque::new(),
        }
    }

    /// A message was accepted, to be delivered to so many devices of its recipient.
    pub(super) fn accepted(&mut self, seq: u64, copies: u32) {
        if let Some((block, word, bit)) = self.block(seq)
            && block.accepted[word] & bit == 0
        {
            block.accepted[word] |= bit;
            block.answered += 1;
            block.expected += u64::from(copies);
            self.drop_settled();
        }
    }

    /// A message was handed to the application on a device of its recipient.
    pub(super) fn delivered(&mut self, seq: u64, device: usize) -> Seen {
        let Some((block, word, bit)) = self.block(seq) else {
            return Seen::Again;
        };
        let Some(bits) = block.delivered.get_mut(device) else {
            return Seen::Again;
        };
        if bits[word] & bit != 0 {
            return Seen::Again;
        }
        bits[word] |= bit;
        block.seen += 1;
        self.drop_settled();
        Seen::First
    }

    /// Deliveries that are missing: accepted, and not delivered to some of `copies` devices of the recipient.
    pub(super) fn missing(&self, copies: impl Fn(u64) -> u32) -> u64 {
        let mut missing = 0;
        for (at, block) in self.blocks.iter().enumerate() {
            let first = self.base + at as u64 * BLOCK;
            for offset in 0..BLOCK {
                let (word, bit) = place(offset);
                if block.accepted[word] & bit != 0 {
                    let devices = copies(first + offset) as usize;
                    let absent = |bits: &&Bits| bits[word] & bit == 0;
                    missing += block.delivered.iter().take(devices).filter(absent).count() as u64;
                }
            }
        }
        missing
    }

    /// The block of a sequence that is not settled, made where it is missing.
    fn block(&mut self, seq: u64) -> Option<(&mut Block, usize, u64)> {
        let offset = seq.checked_sub(self.base)?;
        let at = usize::try_from(offset / BLOCK).ok()?;
        while self.blocks.len() <= at {
            let zero = || Box::new([0; WORDS]);
            self.blocks.push_back(Block {
                accepted: zero(),
                answered: 0,
                expected: 0,
                delivered: (0..self.devices).map(|_| zero()).collect(),
                seen: 0,
            });
        }
        let (word, bit) = place(offset % BLOCK);
        Some((&mut self.blocks[at], word, bit))
    }

    fn drop_settled(&mut self) {
        while let Some(first) = self.blocks.front()
            && u64::from(first.answered) == BLOCK
            && first.expected == first.seen
        {
            self.blocks.pop_front();
            self.base += BLOCK;
        }
    }
}

fn place(offset: u64) -> (usize, u64) {
    ((offset / 64) as usize, 1 << (offset % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_dropped_and_still_known() {
        let mut track = Track::new(2);
        for seq in 0..BLOCK * 3 {
            track.accepted(seq, 2);
            assert_eq!(track.delivered(seq, 0), Seen::First);
        }
        assert_eq!((track.base, track.missing(|_| 2)), (0, BLOCK * 3));
        for seq in 0..BLOCK * 3 {
            assert_eq!(track.delivered(seq, 1), Seen::First);
        }
        assert_eq!((track.base, track.blocks.len()), (BLOCK * 3, 0));
        assert_eq!(track.delivered(5, 0), Seen::Again);
        assert_eq!(track.missing(|_| 2), 0);
    }

    #[test]
    fn losses_and_duplicates_are_found() {
        let mut track = Track::new(1);
        // Delivered before the sender heard of it, no answer, accepted and lost, accepted for somebody who stays away.
        assert_eq!(track.delivered(0, 0), Seen::First);
        track.accepted(0, 1);
        track.accepted(2, 1);
        track.accepted(3, 0);
        assert_eq!(track.missing(|seq| u32::from(seq != 3)), 1);
        assert_eq!(track.delivered(0, 0), Seen::Again);
        assert_eq!(track.delivered(2, 0), Seen::First);
        assert_eq!(track.missing(|seq| u32::from(seq != 3)), 0);
    }
}
