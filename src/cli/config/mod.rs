//! `iris config`: a node's configuration, without starting it.

mod check;
mod print;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Check or print the configuration of a node.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris config check node.toml
  iris config print --config node.toml --output json"
)]
pub struct Config {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Check),
    Print(print::Print),
}

impl Config {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Check(verb) => verb.run(),
            Verb::Print(verb) => verb.run(),
        }
    }
}
