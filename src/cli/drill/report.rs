//! `iris drill report`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::{ReportsArg, read};
use crate::cli::output;
use crate::drill::report::trend;

/// Show past drills in the order of their times, or one report.
///
/// Each drill leaves four files in the folder: NAME.json (all that was measured), NAME.log.json (what its clients saw), NAME.md and
/// NAME.html (a page with the timeline, which needs nothing else).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris drill report
  iris drill report drill-reports/region-lost-1795945016703.json
  iris drill report drill-reports/region-lost-1795945016703.json --form markdown")]
pub struct Show {
    /// The JSON file of one report; all of the folder in a list otherwise.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The form of one report.
    #[arg(long, value_enum, default_value_t)]
    form: Form,
    #[command(flatten)]
    reports: ReportsArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Form {
    /// For a terminal.
    #[default]
    Text,
    /// Markdown.
    Markdown,
    /// JSON.
    Json,
}

impl Show {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(file) = &self.file {
            let report = read(file)?;
            output::print(&match self.form {
                Form::Text => report.text(),
                Form::Markdown => report.markdown(),
                Form::Json => report.to_json()? + "\n",
            })?;
            return Ok(if report.passed() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        let folder = &self.reports.folder;
        let files = std::fs::read_dir(folder).with_context(|| {
            format!(
                "{} cannot be read: `iris drill run` makes it, or name another folder with --reports",
                folder.display()
            )
        })?;
        let mut reports = Vec::new();
        for file in files {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".json") && !name.ends_with(".log.json") {
                reports.push(read(&path)?);
            }
        }
        output::print(&trend(&reports))?;
        Ok(ExitCode::SUCCESS)
    }
}
