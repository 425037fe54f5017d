//! `iris certs`: make certificates.

mod ca;
mod node;
mod operator;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};

/// Make certificates.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris certs ca --out secrets/ca
  iris certs node --region eu-west --name eu-west-core-1 --out eu-west-core-1 --ca secrets/ca
  iris certs server --host edge-1.example.com --out edge-1 --ca secrets/ca
  iris certs operator --name alice --out alice"
)]
pub struct Certs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ca(ca::Ca),
    Node(node::Node),
    Server(server::Server),
    Operator(operator::Operator),
}

impl Certs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Ca(verb) => verb.run(),
            Verb::Node(verb) => verb.run(),
            Verb::Server(verb) => verb.run(),
            Verb::Operator(verb) => verb.run(),
        }
    }
}

/// A key that is in use is not written over.
fn refuse_existing(files: &[PathBuf]) -> anyhow::Result<()> {
    match files.iter().find(|file| file.exists()) {
        Some(file) => bail!(
            "{} is there already: nothing was written; use another --out, or move it away first",
            file.display()
        ),
        None => Ok(()),
    }
}
