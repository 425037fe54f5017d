//! `iris region`: look at regions, and change them.

mod change;
mod evacuate;
mod list;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Look at regions, and change them.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris region list
  iris region show eu-west
  iris region add ap-south
  iris region remove ap-south
  iris region evacuate eu-west
  iris region restore eu-west"
)]
pub struct Region {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
    Show(show::Show),
    Add(change::Add),
    Remove(change::Remove),
    Evacuate(evacuate::Evacuate),
    Restore(evacuate::Restore),
}

impl Region {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(),
            Verb::Show(verb) => verb.run(),
            Verb::Add(verb) => verb.run(),
            Verb::Remove(verb) => verb.run(),
            Verb::Evacuate(verb) => verb.run(),
            Verb::Restore(verb) => verb.run(),
        }
    }
}
