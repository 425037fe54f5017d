//! `iris inbox`: look at messages that wait.

mod count;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at messages that wait.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris inbox show bob
  iris inbox count bob"
)]
pub struct Inbox {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Show(show::Show),
    Count(count::Count),
}

impl Inbox {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Show(verb) => verb.run(),
            Verb::Count(verb) => verb.run(),
        }
    }
}
