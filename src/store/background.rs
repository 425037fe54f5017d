//! Threads whose work can wait: flushing, compaction and deletion behind the commits.

/// How much nicer they are than what answers clients: about a tenth of its share of a core where both want it.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Lowers the priority of this thread, and of the threads that it starts.
pub fn yield_to_commits() {
    // On Linux, unlike in POSIX, the value is of the thread (setpriority(2)).
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}
