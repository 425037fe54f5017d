//! `iris cluster`: look at a whole cluster.

pub(in crate::cli) mod status;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at a whole cluster.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris cluster status
  iris cluster status --output json"
)]
pub struct Cluster {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Status(status::Status),
}

impl Cluster {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Status(verb) => verb.run(),
        }
    }
}
