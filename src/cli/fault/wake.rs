//! `iris fault wake`: the watcher of a process that is to stand still for a while.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, kill_process};

use crate::cli::{args, output};
use crate::server::faults::{GRACE, WATCHES};

/// What makes the program a watcher.
pub const ARGS: [&str; 2] = ["fault", "wake"];

/// Stop the parent process, and let it go on after a time. A node that is to be paused starts it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris fault wake --pid 4711 --for 5s")]
pub struct Wake {
    /// The parent.
    #[arg(long)]
    pid: i32,
    /// For how long.
    #[arg(long = "for", value_parser = args::duration)]
    lasts: Duration,
}

impl Wake {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let parent = Pid::from_raw(self.pid).context("--pid: expected the number of a process")?;
        // A parent that died leaves its number to others.
        let is_there = || getppid() == Some(parent);
        ensure!(is_there(), "--pid {}: that is not the parent", self.pid);
        output::print(std::str::from_utf8(WATCHES).context("it is text")?)?;
        std::thread::sleep(GRACE);
        if !is_there() {
            return Ok(ExitCode::SUCCESS);
        }
        kill_process(parent, Signal::STOP).context("the parent cannot be stopped")?;
        std::thread::sleep(self.lasts);
        if is_there() {
            kill_process(parent, Signal::CONT).context("the parent cannot be let go on")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
