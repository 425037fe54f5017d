//! `iris node`: look at nodes, and drain them.

mod drain;
pub(in crate::cli) mod list;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at nodes, and drain them.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris node list
  iris node show us-east-core-1
  iris node drain us-east-edge-1"
)]
pub struct Node {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
    Show(show::Show),
    Drain(drain::Drain),
}

impl Node {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(),
            Verb::Show(verb) => verb.run(),
            Verb::Drain(verb) => verb.run(),
        }
    }
}
