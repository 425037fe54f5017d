//! `iris drill list`

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::cli::output::{self, Format};
use crate::drill::plan;
use crate::sim::span;

/// List the drills that are shipped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris drill list
  iris drill list --output json | jq -r '.[].name'")]
pub struct List {
    /// The form of the list.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    title: String,
    hypothesis: String,
    /// How long its load lasts.
    work_us: u64,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let lines = plan::shipped()?.into_iter().map(|drill| Line {
            name: drill.scenario.name.clone(),
            title: drill.scenario.title.clone(),
            hypothesis: drill.terms.hypothesis.clone(),
            work_us: drill.scenario.work(),
        });
        let lines: Vec<Line> = lines.collect();
        match self.output {
            Format::Json => output::print_json(&lines)?,
            Format::Table => {
                let rows = lines
                    .into_iter()
                    .map(|line| vec![line.name, span::show(line.work_us), line.title]);
                output::print_table(&["DRILL", "LOAD", "WHAT HAPPENS"], &rows.collect::<Vec<_>>())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
