//! `iris sim list`

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::cli::output::{self, Format};
use crate::sim::scenario::Scenario;
use crate::sim::shipped;

/// List the scenarios: those of ./simulations, or the shipped ones.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim list
  iris sim list --output json")]
pub struct List {
    /// The form of the list.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    title: String,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let folder = Path::new("simulations");
        let scenarios: Vec<Scenario> = if folder.is_dir() {
            let found = super::source::scenarios("simulations")?;
            found.into_iter().map(|(scenario, _)| scenario).collect()
        } else {
            shipped::scenarios()
        };
        let lines = scenarios.into_iter().map(|scenario| Line {
            name: scenario.name,
            title: scenario.title,
        });
        let lines: Vec<Line> = lines.collect();
        match self.output {
            Format::Json => output::print_json(&lines)?,
            Format::Table => {
                let rows: Vec<Vec<String>> = lines
                    .into_iter()
                    .map(|line| vec![line.name, line.title])
                    .collect();
                output::print_table(&["SCENARIO", "WHAT IT IS ABOUT"], &rows)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
