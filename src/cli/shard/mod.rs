//! `iris shard`: look at shards.

mod list;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at shards.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris shard list
  iris shard show 17
  iris shard show --user bob"
)]
pub struct Shard {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
    Show(show::Show),
}

impl Shard {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(),
            Verb::Show(verb) => verb.run(),
        }
    }
}
