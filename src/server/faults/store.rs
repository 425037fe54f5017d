//! What a drill does to a store: its commits take longer, or fail.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::core::storage::StoreError;

/// Between two looks whether a commit is still to wait: a fault that ended lets it go on.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the store's thread looks at before each commit.
#[derive(Debug, Default)]
pub(in crate::server) struct StoreFaults {
    slow_ms: AtomicU64,
    /// A [`Failing`].
    failing: AtomicU8,
}

/// How commits fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failing {
    /// Not at all.
    #[default]
    No,
    /// For the time being.
    Retryably,
    /// There is no room.
    Full,
}

impl StoreFaults {
    pub(super) fn set(&self, slow_ms: u64, failing: Failing) {
        self.slow_ms.store(slow_ms, Relaxed);
        self.failing.store(failing as u8, Relaxed);
    }

    /// Waits as long as a commit is to take longer.
    ///
    /// # Errors
    /// With what it is to fail; the engine must not see it then.
    pub(in crate::server) fn before_commit(&self) -> Result<(), StoreError> {
        let started = Instant::now();
        loop {
            let slow = Duration::from_millis(self.slow_ms.load(Relaxed));
            let left = slow.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
        let failing = self.failing.load(Relaxed);
        if failing == Failing::Retryably as u8 {
            return Err(StoreError::Retryable("an injected fault: store-fail".to_owned()));
        }
        if failing == Failing::Full as u8 {
            return Err(StoreError::Full("an injected fault: store-full".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_wait_and_fail_as_long_as_they_are_to() {
        let faults = StoreFaults::default();
        assert_eq!(faults.before_commit(), Ok(()));
        faults.set(30, Failing::No);
        let started = Instant::now();
        assert_eq!(faults.before_commit(), Ok(()));
        assert!(started.elapsed() >= Duration::from_millis(30));
        faults.set(0, Failing::Retryably);
        assert!(matches!(faults.before_commit(), Err(StoreError::Retryable(_))));
        faults.set(0, Failing::Full);
        assert!(matches!(faults.before_commit(), Err(StoreError::Full(_))));
        // One that waits goes on when the fault ends.
        faults.set(3_600_000, Failing::No);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| faults.before_commit());
            faults.set(0, Failing::No);
            assert_eq!(waits.join().unwrap(), Ok(()));
        });
    }
}
