//! `iris presence`: look at who is online, and why.

mod explain;
mod get;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at who is online, and why.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris presence get bob
  iris presence explain bob"
)]
pub struct Presence {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Get(get::Get),
    Explain(explain::Explain),
}

impl Presence {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Get(verb) => verb.run(),
            Verb::Explain(verb) => verb.run(),
        }
    }
}
