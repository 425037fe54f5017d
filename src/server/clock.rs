//! The clocks of a node: monotonic time since it started, and the wall clock, which a drill may shift ([`super::faults`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::core::time::{Mono, Now};

/// The wall clock of a node. Cheap to clone; all clones show the same.
#[derive(Debug, Clone, Default)]
pub struct Wall(Arc<AtomicI64>);

impl Wall {
    /// Unix milliseconds, as this node takes them to be.
    pub fn ms(&self) -> u64 {
        system_ms().saturating_add_signed(self.0.load(Relaxed))
    }

    /// How far it is ahead of the system's, milliseconds.
    pub fn ahead_ms(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// From now on it is so far ahead of the system's.
    pub(super) fn set_ahead(&self, ms: i64) {
        self.0.store(ms, Relaxed);
    }
}

/// The two clocks of a node.
#[derive(Debug, Clone)]
pub struct Clock {
    started: Instant,
    wall: Wall,
}

impl Clock {
    /// Monotonic time counts from now.
    pub fn start(wall: Wall) -> Self {
        Self {
            started: Instant::now(),
            wall,
        }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now {
            mono: Mono(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)),
            wall_ms: self.wall.ms(),
        }
    }

    pub(super) fn until(&self, at: Mono) -> Duration {
        at.since(self.now().mono)
    }
}

/// The system's wall clock, unix milliseconds.
pub(super) fn system_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}
