//! Compaction in small pieces: a thread that merges tables for half a second at a stretch takes a processor from those that
//! answer clients, whatever its priority, until the scheduler moves them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

/// Items between two looks at the clock: about half a millisecond.
const ITEMS: u32 = 256;
/// So long is worked at a stretch, and paused then. A checkpoint's tables are merged in a tenth of the time in which the
/// next one comes together, so half of it is enough.
const STRETCH: Duration = Duration::from_millis(2);

/// A filter that keeps everything, and pauses.
pub(super) fn assign(_keyspace: &str) -> Option<Arc<dyn Factory>> {
    Some(Arc::new(Pauses))
}

struct Pauses;

impl Factory for Pauses {
    fn name(&self) -> &str {
        "pauses"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Pausing {
            items: 0,
            since: Instant::now(),
        })
    }
}

struct Pausing {
    items: u32,
    since: Instant,
}

impl CompactionFilter for Pausing {
    fn filter_item(&mut self, _: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        self.items += 1;
        if self.items.is_multiple_of(ITEMS) && self.since.elapsed() >= STRETCH {
            thread::sleep(STRETCH);
            self.since = Instant::now();
        }
        Ok(Verdict::Keep)
    }
}
