//! `iris sim replay`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::source::One;
use super::summary::Failed;
use super::{Twists, failure};
use crate::cli::output::{self, Format};
use crate::sim::{self, Options, html};

/// Run one case again: a seed of the swarm, a scenario with a seed, or a case file.
///
/// With --trace everything that happens in it is printed; with --save the case is written as a file, with its faults and
/// acts as they were drawn, which runs the same again and can be edited.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim replay --seed 42 --trace > trace.txt
  iris sim replay region-cut-off --seed 7 --html run.html
  iris sim replay --seed 42 --save case.toml
  iris sim replay case.toml")]
pub(super) struct Replay {
    #[command(flatten)]
    one: One,
    /// Print everything that happens; to stderr where the result is JSON.
    #[arg(long)]
    trace: bool,
    /// Write the case, made concrete.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Write a page with a picture of the run.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The form of the result.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    twists: Twists,
}

/// What became of the run.
#[derive(Debug, Serialize)]
struct Done {
    case: String,
    seed: u64,
    hash: String,
    events: u64,
    simulated_s: f64,
    accepted: u64,
    handled: u64,
    rejected: u64,
    faults: u64,
    without_effect: u64,
    failure: Option<Failed>,
}

impl Replay {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let case = self.one.case()?;
        let options = Options {
            trace: self.trace,
            timeline: self.html.is_some(),
            ..self.twists.options()
        };
        let report = sim::case_with_story(case, options);
        if self.trace {
            super::tell(&report, self.output)?;
        }
        if let Some(file) = &self.save {
            let text = toml::to_string(&report.case).context("the case cannot be written as TOML")?;
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        if let Some(file) = &self.html {
            fs::write(file, html::page(&report))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let broken = report.violation.is_some();
        let replay = format!(
            "iris sim replay{}{} --trace",
            self.one.flags(),
            self.twists.flags()
        );
        let stats = &report.stats;
        match self.output {
            Format::Json => output::print_json(&Done {
                case: report.case.name.clone(),
                seed: report.seed,
                hash: format!("{:016x}", report.hash),
                events: report.events,
                simulated_s: report.time as f64 / 1e6,
                accepted: stats.accepted,
                handled: stats.handled,
                rejected: stats.rejected,
                faults: stats.faults,
                without_effect: stats.without_effect,
                failure: Failed::of(&report, &replay),
            })?,
            Format::Table if broken => output::print(&failure(&report, &replay))?,
            Format::Table => output::print(&format!(
                "seed {}: nothing broken in {} events, {:.1} s; {} accepted, {} handled; hash {:016x}\n",
                report.seed,
                report.events,
                report.time as f64 / 1e6,
                stats.accepted,
                stats.handled,
                report.hash
            ))?,
        }
        Ok(ExitCode::from(u8::from(broken)))
    }
}
