//! Token buckets per user, as the generic cell rate algorithm (ITU-T I.371, annex A): one time per bucket, in integers.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::UserId;
use crate::core::time::Mono;

/// Buckets of the users that have a session here, and of those that left with a bucket that is not full yet.
#[derive(Debug)]
pub(super) struct Buckets {
    cost_ns: u64,
    burst_ns: u64,
    slots: Vec<Bucket>,
    free: Vec<usize>,
    by_user: BTreeMap<UserId, usize>,
    idle: BTreeSet<(Mono, usize)>,
}

/// A place in [`Buckets`], held by each session of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(usize);

#[derive(Debug)]
struct Bucket {
    user: UserId,
    sessions: u32,
    /// Theoretical arrival time in nanoseconds: the bucket is full from then on.
    full_at_ns: u64,
}

impl Bucket {
    fn full_at(&self) -> Mono {
        Mono(self.full_at_ns.div_ceil(1_000))
    }
}

impl Buckets {
    /// Buckets that refill at `per_second` and hold `burst`; both count as at least 1.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let cost_ns = 1_000_000_000 / u64::from(per_second.max(1));
        Self {
            cost_ns,
            burst_ns: cost_ns * u64::from(burst.max(1)),
            slots: Vec::new(),
            free: Vec::new(),
            by_user: BTreeMap::new(),
            idle: BTreeSet::new(),
        }
    }

    /// The bucket of a user for one more session.
    pub(super) fn hold(&mut self, user: &UserId) -> Slot {
        if let Some(&slot) = self.by_user.get(user) {
            let bucket = &mut self.slots[slot];
            if bucket.sessions == 0 {
                self.idle.remove(&(bucket.full_at(), slot));
            }
            bucket.sessions += 1;
            return Slot(slot);
        }
        let bucket = Bucket {
            user: user.clone(),
            sessions: 1,
            full_at_ns: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = bucket;
                slot
            }
            None => {
                self.slots.push(bucket);
                self.slots.len() - 1
            }
        };
        self.by_user.insert(user.clone(), slot);
        Slot(slot)
    }

    /// Takes one token; false where there is none.
    pub(super) fn take(&mut self, slot: Slot, now: Mono) -> bool {
        let now_ns = now.0.saturating_mul(1_000);
        let bucket = &mut self.slots[slot.0];
        let full_at_ns = bucket.full_at_ns.max(now_ns).saturating_add(self.cost_ns);
        if full_at_ns - now_ns > self.burst_ns {
            return false;
        }
        bucket.full_at_ns = full_at_ns;
        true
    }

    /// A session ended. The bucket outlives the last one until it is full, so that reconnecting does not refill it.
    pub(super) fn release(&mut self, slot: Slot, now: Mono) {
        let bucket = &mut self.slots[slot.0];
        bucket.sessions -= 1;
        if bucket.sessions > 0 {
            return;
        }
        let full_at = bucket.full_at();
        if full_at <= now {
            self.drop_bucket(slot.0);
        } else {
            self.idle.insert((full_at, slot.0));
        }
    }

    /// Drops what is full and unused.
    pub(super) fn handle_timeout(&mut self, now: Mono) {
        while let Some(&(at, slot)) = self.idle.first().filter(|(at, _)| *at <= now) {
            self.idle.remove(&(at, slot));
            self.drop_bucket(slot);
        }
    }

    /// When the next unused bucket is full.
    pub(super) fn poll_timeout(&self) -> Option<Mono> {
        self.idle.first().map(|(at, _)| *at)
    }

    /// How many users have one.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_user.len()
    }

    fn drop_bucket(&mut self, slot: usize) {
        self.by_user.remove(&self.slots[slot].user);
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_over_all_sessions_of_a_user() {
        let mut buckets = Buckets::new(1_000, 5);
        let alice = UserId::new("alice").unwrap();
        let (one, two) = (buckets.hold(&alice), buckets.hold(&alice));
        assert_eq!(one, two);
        let now = Mono(50_000);
        let taken = (0..10).filter(|_| buckets.take(one, now)).count();
        assert_eq!(taken, 5);
        assert!(!buckets.take(two, Mono(50_999)));
        assert!(buckets.take(two, Mono(51_000)));
        assert!(!buckets.take(one, Mono(51_000)));
        let later = (0..100).filter(|_| buckets.take(one, Mono(900_000))).count();
        assert_eq!(later, 5);
    }

    #[test]
    fn reconnecting_does_not_refill_and_full_buckets_go() {
        let mut buckets = Buckets::new(1_000, 2);
        let alice = UserId::new("alice").unwrap();
        let slot = buckets.hold(&alice);
        assert!(buckets.take(slot, Mono(0)) && buckets.take(slot, Mono(0)));
        buckets.release(slot, Mono(0));
        let slot = buckets.hold(&alice);
        assert!(!buckets.take(slot, Mono(1)));
        buckets.release(slot, Mono(1));
        assert_eq!(buckets.poll_timeout(), Some(Mono(2_000)));
        buckets.handle_timeout(Mono(2_000));
        assert_eq!((buckets.len(), buckets.poll_timeout()), (0, None));
        let slot = buckets.hold(&alice);
        buckets.release(slot, Mono(3_000));
        assert_eq!(buckets.len(), 0);
    }
}
