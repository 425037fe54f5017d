//! `iris certs`: make certificates.

mod operator;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Make certificates.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris certs operator --name alice --out alice"
)]
pub struct Certs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Operator(operator::Operator),
}

impl Certs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Operator(verb) => verb.run(),
        }
    }
}
