//! `iris client`: send, receive and watch from the command line.

mod connection;
mod listen;
mod print;
mod send;
mod watch;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Send and receive messages, watch presence.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris client send --as alice --to bob 'see you at noon'
  iris client listen --as bob --device phone
  iris client watch --as alice bob carol"
)]
pub struct Client {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Send(send::Send),
    Listen(listen::Listen),
    Watch(watch::Watch),
}

impl Client {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Send(verb) => verb.run(),
            Verb::Listen(verb) => verb.run(),
            Verb::Watch(verb) => verb.run(),
        }
    }
}
