//! Faults of the whole process: it stands still, or ends.
//!
//! A process that stands still cannot wake itself. So a watcher, a process of its own and in a group of its own, is there first;
//! it stops this one and lets it go on, and only such a watcher stops it: a SIGCONT can never come before its SIGSTOP.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, io};

use rustix::process::{Signal, getpid, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::model::MAX_LIFE;
use crate::server::clock::system_ms;

/// In the data folder of a node that is to stay away: until when, unix milliseconds.
const AWAY: &str = "away-until";
/// Between the answer to whoever asked and what follows, so that it is still sent.
pub const GRACE: Duration = Duration::from_millis(200);
/// A watcher that has not begun by then is given up.
const START_WITHIN: Duration = Duration::from_secs(5);
/// What a watcher writes to its stdout once it watches.
pub const WATCHES: &[u8] = b"watches\n";

/// How a watcher is started: this program with these arguments, and then `--pid PID --for TIME`. It writes [`WATCHES`],
/// waits for [`GRACE`], stops its parent if that still is the process PID, and lets it go on after the time.
#[derive(Debug, Clone)]
pub struct Watcher {
    /// The program.
    pub program: PathBuf,
    /// What makes it a watcher.
    pub args: Vec<String>,
}

impl Watcher {
    /// Has this process stopped soon, for so long. Returns when the watcher is there.
    ///
    /// # Errors
    /// What the system says; nothing will happen then.
    pub(super) async fn pause(&self, lasts: Duration) -> io::Result<()> {
        let pid = getpid().as_raw_nonzero().to_string();
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .args(["--pid", &pid, "--for", &format!("{}ms", lasts.as_millis())])
            // It needs none of it, and takes no variable for a flag.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What is sent to the group of this process, as by Ctrl-C, must not end it.
            .process_group(0)
            .spawn()?;
        let mut said = vec![0; WATCHES.len()];
        let mut stdout = child.stdout.take();
        let listen = async {
            match &mut stdout {
                Some(stdout) => stdout.read_exact(&mut said).await,
                None => Err(io::ErrorKind::BrokenPipe.into()),
            }
        };
        let heard = timeout(START_WITHIN, listen).await;
        let watches = matches!(heard, Ok(Ok(_))) && said == WATCHES;
        if !watches {
            let _ = child.start_kill();
        }
        // Somebody has to take its exit code.
        tokio::spawn(async move { child.wait().await });
        match watches {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "the watcher {} did not begin within {START_WITHIN:?}",
                self.program.display()
            ))),
        }
    }
}

/// Whether this is the first process of its space of numbers: signals from within do not stop it.
pub(super) fn is_first() -> bool {
    getpid().is_init()
}

/// Ends this process as a crash would, once the answer is sent.
pub(super) fn crash() {
    tokio::spawn(async {
        sleep(GRACE).await;
        let _ = kill_process(getpid(), Signal::KILL);
    });
}

/// Has the next process of this node stay away for so long.
pub(super) fn keep_away(data: &Path, lasts: Duration) -> io::Result<()> {
    let until_ms = system_ms().saturating_add(u64::try_from((lasts + GRACE).as_millis()).unwrap_or(u64::MAX));
    // Nothing waits for the disk: SIGKILL leaves what the system holds.
    fs::write(data.join(AWAY), until_ms.to_string())
}

/// Waits, where a crash was injected that is to last: before a node starts whose data folder this is.
pub async fn stay_away(data: &Path, allowed: bool) {
    let path = data.join(AWAY);
    let Ok(text) = fs::read_to_string(&path) else {
        return;
    };
    let until_ms: u64 = text.trim().parse().unwrap_or_default();
    let left = Duration::from_millis(until_ms.saturating_sub(system_ms()));
    // More than can be asked for is the word of another clock.
    if allowed && !left.is_zero() && left <= MAX_LIFE + GRACE {
        tracing::warn!(
            ?left,
            "a crash was injected into this node that is to last: it stays away"
        );
        sleep(left).await;
    }
    if let Err(error) = fs::remove_file(&path) {
        tracing::warn!(%error, "{} cannot be removed", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_stays_away_once_and_only_where_faults_are_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(AWAY);
        stay_away(folder.path(), true).await;
        let (began, lasts) = (std::time::Instant::now(), Duration::from_millis(200));
        keep_away(folder.path(), lasts).unwrap();
        stay_away(folder.path(), true).await;
        assert!(began.elapsed() >= lasts && !file.exists());
        // Not where it may not be, and not for a clock that was set back, or a file that is none of ours: it would be an hour.
        keep_away(folder.path(), MAX_LIFE).unwrap();
        stay_away(folder.path(), false).await;
        assert!(!file.exists());
        for text in ["99999999999999", "soon"] {
            fs::write(&file, text).unwrap();
            stay_away(folder.path(), true).await;
            assert!(!file.exists());
        }
        assert!(began.elapsed() < MAX_LIFE);
    }
}
