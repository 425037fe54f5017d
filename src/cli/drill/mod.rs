//! `iris drill`: planned failures, measured.

mod list;
mod report;
mod run;
mod soak;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::drill::report::Report;

/// Where reports are kept unless another folder is named.
const REPORTS: &str = "drill-reports";

/// Rehearse a failure, and read off RTO, RPO, losses and what came twice.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris drill list
  iris drill run region-lost
  iris drill report"
)]
pub struct Drill {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
    Run(Box<run::Run>),
    Report(report::Show),
    Soak(soak::Soak),
}

impl Drill {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(),
            Verb::Run(verb) => verb.run(),
            Verb::Report(verb) => verb.run(),
            Verb::Soak(verb) => verb.run(),
        }
    }
}

/// The folder of reports.
#[derive(Debug, Args)]
struct ReportsArg {
    /// The folder of reports.
    #[arg(long = "reports", value_name = "DIR", default_value = REPORTS)]
    folder: PathBuf,
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Report::from_json(&text).with_context(|| format!("{} is no report of a drill", path.display()))
}
