//! `iris link`: look at links between regions.

pub(in crate::cli) mod list;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at links between regions.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris link list
  iris link list --region eu-west --watch"
)]
pub struct Link {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
}

impl Link {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(),
        }
    }
}
