//! Threads whose work can wait: flushing, compaction and deletion behind the commits.

#[cfg(target_os = "linux")]
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// Gives this thread, and the threads that it starts, what others leave of the processors.
///
/// On Linux that is `SCHED_IDLE`: other threads are put on a processor that runs nothing else as if it had nothing to do
/// (sched(7)). Where all are taken it goes on slowly, and what waits for it in the end is what loads them: the store
/// takes no commits once its journal is four checkpoints long.
pub fn yield_to_commits() {
    #[cfg(target_os = "linux")]
    {
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let set = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy);
        if let Err(error) = set {
            tracing::debug!(?error, "a background thread keeps its priority");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    /// The policy of this thread, as the kernel says: see proc_pid_stat(5).
    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(38).unwrap().to_owned()
    }

    #[test]
    fn threads_behind_the_commits_and_those_they_start_are_idle() {
        let policies = std::thread::spawn(|| {
            super::yield_to_commits();
            [policy(), std::thread::spawn(policy).join().unwrap()]
        });
        let idle = "5";
        assert_eq!(policies.join().unwrap(), [idle, idle]);
        assert_ne!(policy(), idle);
    }
}
