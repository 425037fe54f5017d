//! `iris session`: look at the sessions of clients.

mod list;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at the sessions of clients.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris session list
  iris session list --user bob"
)]
pub struct Session {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
}

impl Session {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(),
        }
    }
}
