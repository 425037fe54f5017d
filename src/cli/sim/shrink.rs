//! `iris sim shrink`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use super::source::One;
use super::summary::Failed;
use super::{Twists, failure};
use crate::cli::output::{self, Format, say};
use crate::sim::{self, shrink};

/// Make a failing case small, and write it to a file that `replay` takes.
///
/// Leaves out faults, messages, users, regions and nodes, and shortens the time, as long as the same promise breaks.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim shrink --seed 42 --out case.toml
  iris sim shrink region-cut-off --seed 7
  iris sim replay case.toml --trace")]
pub(super) struct Shrink {
    #[command(flatten)]
    one: One,
    /// Where the small case goes.
    #[arg(long, value_name = "FILE", default_value = "case.toml")]
    out: PathBuf,
    /// At most so many runs.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    runs: u64,
    /// The form of the result.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    twists: Twists,
}

/// What is left of the case.
#[derive(Debug, Serialize)]
struct Small {
    file: String,
    regions: usize,
    nodes: usize,
    users: usize,
    acts: usize,
    faults: usize,
    work_s: f64,
    failure: Option<Failed>,
}

impl Shrink {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut case = self.one.case()?;
        let options = self.twists.options();
        if let Some(engine) = options.engine {
            case.engine = engine;
        }
        let small = shrink::shrink(case, options, self.runs, |what| say!("{what}"));
        let Some(small) = small else {
            bail!("this case breaks no promise: there is nothing to shrink");
        };
        let text = toml::to_string(&small).context("the case cannot be written as TOML")?;
        let file = self.out.display();
        fs::write(&self.out, text).with_context(|| format!("cannot write {file}"))?;
        let report = sim::case_with_story(small, options);
        let replay = format!("iris sim replay {file}{} --trace", self.twists.flags());
        let case = &report.case;
        match self.output {
            Format::Json => output::print_json(&Small {
                file: file.to_string(),
                regions: case.places.len(),
                nodes: case.nodes.len(),
                users: case.users.len(),
                acts: case.acts.len(),
                faults: case.faults.len(),
                work_s: case.work as f64 / 1e6,
                failure: Failed::of(&report, &replay),
            })?,
            Format::Table => output::print(&failure(&report, &replay))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
