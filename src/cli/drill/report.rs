//! `iris drill report`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{ReportsArg, read};
use crate::cli::admin::PARTIAL;
use crate::cli::output::{self, say};
use crate::drill::report::{Report, trend};

/// Show past drills in the order of their times, or one report.
///
/// Each drill leaves four files in the folder: NAME.json (all that was measured), NAME.log.json (what its clients saw), NAME.md and
/// NAME.html (a page with the timeline, which needs nothing else).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris drill report
  iris drill report --form json | jq -r '.[] | select(.passed | not) | .file'
  iris drill report drill-reports/region-lost-1795945016703.json
  iris drill report drill-reports/region-lost-1795945016703.json --form markdown")]
pub struct Show {
    /// The JSON file of one report; all of the folder in a list otherwise.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The form of one report, or of the list (text or JSON).
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

/// A report in the list; its file has the rest.
#[derive(Debug, Serialize)]
struct Line<'a> {
    file: &'a str,
    name: &'a str,
    target: &'a str,
    seed: u64,
    started_ms: u64,
    passed: bool,
    aborted: bool,
    rto_us: Option<u64>,
    rpo_us: Option<u64>,
    convergence_us: Option<u64>,
    accepted: u64,
    lost: u64,
    duplicates: u64,
    disorder: u64,
    p99_handled_us: Option<u64>,
}

impl<'a> Line<'a> {
    fn of(file: &'a str, report: &'a Report) -> Self {
        let (identity, measures) = (&report.identity, &report.measures);
        Self {
            file,
            name: &identity.name,
            target: &identity.target,
            seed: identity.seed,
            started_ms: identity.started_ms,
            passed: report.passed(),
            aborted: report.aborted.is_some(),
            rto_us: measures.rto.worst,
            rpo_us: measures.rpo,
            convergence_us: measures.convergence,
            accepted: measures.counts.accepted,
            lost: measures.lost.count,
            duplicates: measures.duplicates.count,
            disorder: measures.disorder.count,
            p99_handled_us: measures.p99_handled(),
        }
    }
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
        if self.form == Form::Markdown {
            bail!("--form markdown is for one report: name its file, or take --form json for the list");
        }
        let (mut reports, mut unreadable) = (Vec::new(), false);
        for file in files {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".json") && !name.ends_with(".log.json") {
                match read(&path) {
                    Ok(report) => reports.push((path.display().to_string(), report)),
                    Err(error) => {
                        unreadable = true;
                        say!("passed over: {error:#}");
                    }
                }
            }
        }
        reports.sort_by_key(|(_, report)| (report.identity.started_ms, report.identity.name.clone()));
        match self.form {
            Form::Json => {
                let lines: Vec<Line> = reports
                    .iter()
                    .map(|(file, report)| Line::of(file, report))
                    .collect();
                output::print_json(&lines)?;
            }
            Form::Text | Form::Markdown => output::print(&trend(reports.iter().map(|(_, report)| report)))?,
        }
        Ok(match unreadable {
            false => ExitCode::SUCCESS,
            true => ExitCode::from(PARTIAL),
        })
    }
}
