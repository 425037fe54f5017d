//! `iris sim`: whole regions in one process, under a seed.

mod run;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Simulate regions with faults, reproducibly, and check what Iris promises.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris sim run --seeds 1000
  iris sim run --seed 42 --trace"
)]
pub struct Sim {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Run),
}

impl Sim {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Run(verb) => verb.run(),
        }
    }
}
