//! Faults of the whole process: it stands still, or ends.
//!
//! A process that stands still cannot wake itself. So a watcher, a process of its own and in a group of its own, is there first;
//! it stops this one and lets it go on, and only such a watcher stops it: a SIGCONT can never come before its SIGSTOP.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

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
