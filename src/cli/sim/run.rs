//! `iris sim run`

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;

use super::source::{self, Places};
use super::summary::{Row, table};
use super::swarm::PROGRESS;
use super::{Twists, failure, jobs};
use crate::cli::output::{self, Format, say};
use crate::sim::case::SECOND;
use crate::sim::scenario::Scenario;
use crate::sim::trace::Micros;
use crate::sim::{self, Case, Options, Report, draw, html};

/// A scenario longer than this runs with one seed where it is one of several.
const LONG: Micros = 3600 * SECOND;

/// Run scenarios, or seeds of the swarm, and print what broke with the command that replays it.
///
/// Of several scenarios those longer than an hour run with the first seed only. Without a scenario each seed draws
/// everything: places, nodes, users, limits, faults and their times. The exit code is 1 where a promise was broken.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim run region-cut-off                   a scenario by name
  iris sim run simulations --seeds 20 --jobs 2  all scenarios of a folder, 20 seeds each
  iris sim run my.toml --regions my-regions     a scenario of your own in your regions
  iris sim run rolling-restart --html run.html  with a picture of the run
  iris sim run --seeds 1000                     seeds 0 to 999 of the swarm")]
pub(super) struct Run {
    /// Scenarios: names, files or folders.
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// How many seeds each.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Threads; as many as there are processors where it is not given.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Print everything that happens; to stderr where the summary is JSON.
    #[arg(long)]
    trace: bool,
    /// Go on after a seed that breaks a promise.
    #[arg(long)]
    keep_going: bool,
    /// Print a line for each run.
    #[arg(long)]
    each: bool,
    /// Run each seed twice, and compare.
    #[arg(long)]
    verify_determinism: bool,
    /// Write a page with a picture of the run; of several that of the last that broke a promise, or of the last one.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The form of the summary.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    twists: Twists,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut scenarios: Vec<(Option<Scenario>, String)> = Vec::new();
        for what in &self.scenarios {
            let found = source::scenarios(what)?;
            scenarios.extend(found.into_iter().map(|(scenario, name)| (Some(scenario), name)));
        }
        if scenarios.is_empty() {
            scenarios.push((None, String::new()));
        }
        let regions = self.places.regions()?;
        let last = self
            .seed
            .checked_add(self.seeds)
            .filter(|last| *last <= i64::MAX as u64);
        ensure!(
            last.is_some(),
            "--seed {} is too large: seeds lie below 2^63",
            self.seed
        );
        let runs = self.runs(&scenarios);
        let case = |job: u64| -> anyhow::Result<Case> {
            let (at, seed) = runs[job as usize];
            match &scenarios[at].0 {
                Some(scenario) => Ok(scenario.case(&regions, seed)?),
                None => Ok(draw::draw(seed)),
            }
        };
        let all = runs.len() as u64;
        let alone = all == 1;
        let options = Options {
            trace: self.trace,
            timeline: self.html.is_some(),
            // A single run of a scenario tells its story as it goes.
            chapter: (alone && scenarios[0].0.is_some()).then_some(tell as fn(&str)),
            ..self.twists.options()
        };
        let mut rows: BTreeMap<usize, Row> = BTreeMap::new();
        let mut page = None;
        let work = |job: u64| -> anyhow::Result<(Report, bool)> {
            let case = case(job)?;
            let same = !self.verify_determinism || {
                let once = sim::run_case(
                    case.clone(),
                    Options {
                        chapter: None,
                        ..options
                    },
                );
                let twice = sim::run_case(
                    case.clone(),
                    Options {
                        chapter: None,
                        ..options
                    },
                );
                (once.hash, once.events) == (twice.hash, twice.events)
            };
            Ok((sim::case_with_story(case, options), same))
        };
        let mut different = 0;
        let (mut shown, mut ended, mut bad) = (Instant::now(), 0, 0);
        let see = |job: u64, done: anyhow::Result<(Report, bool)>| -> anyhow::Result<bool> {
            let (report, same) = done?;
            let at = runs[job as usize].0;
            let (scenario, name) = &scenarios[at];
            let replay = self.replay(scenario.is_some().then_some(name), report.seed);
            let row = rows.entry(at).or_insert_with(|| Row::named(&report.case.name));
            row.add(&report, &replay);
            if self.trace {
                super::tell(&report, self.output)?;
            }
            let broken = report.violation.is_some();
            (ended, bad) = (ended + 1, bad + u64::from(broken));
            if shown.elapsed() > PROGRESS {
                shown = Instant::now();
                say!("{ended} of {all} runs, {bad} broke a promise");
            }
            let talks = self.output == Format::Table;
            if talks && (self.each || (alone && !broken)) {
                output::print(&line(&report))?;
            }
            if !same {
                different += 1;
                say!("seed {} ran differently the second time: {replay}", report.seed);
            }
            if broken && talks {
                output::print(&(failure(&report, &replay) + "\n"))?;
            }
            let failed = page
                .as_ref()
                .is_some_and(|page: &Report| page.violation.is_some());
            if self.html.is_some() && (broken || !failed) {
                page = Some(report);
            }
            Ok(self.keep_going || !broken)
        };
        let threads = if alone { 1 } else { jobs::threads(self.jobs) };
        let ran = jobs::each(threads, jobs::Until::Jobs(all), work, see)?;
        if let (Some(file), Some(report)) = (&self.html, page) {
            fs::write(file, html::page(&report))
                .with_context(|| format!("cannot write {}", file.display()))?;
            let which = match (&report.violation, alone) {
                (Some(_), false) => ", the last that broke a promise,",
                (None, false) => ", the last,",
                (_, true) => "",
            };
            let of = match report.case.name.as_str() {
                "" => String::new(),
                name => format!("{name}, "),
            };
            let (seed, file) = (report.seed, file.display());
            say!("the picture of {of}seed {seed}{which} is in {file}");
        }
        let rows: Vec<Row> = rows.into_values().collect();
        let broken: u64 = rows.iter().map(|row| row.broken).sum();
        match self.output {
            Format::Json => output::print_json(&rows)?,
            Format::Table if scenarios[0].0.is_some() => table("SCENARIO", &rows)?,
            Format::Table => output::print(&format!("{ran} seeds, {broken} broke a promise\n"))?,
        }
        Ok(ExitCode::from(u8::from(broken + different > 0)))
    }

    /// Which scenario runs with which seed, the long ones first: they would be what the others wait for.
    fn runs(&self, scenarios: &[(Option<Scenario>, String)]) -> Vec<(usize, u64)> {
        let long = |at: &usize| {
            let scenario = scenarios[*at].0.as_ref();
            scenarios.len() > 1 && scenario.is_some_and(|scenario| scenario.work() > LONG)
        };
        let (first, then): (Vec<usize>, Vec<usize>) = (0..scenarios.len()).partition(long);
        let first = first.into_iter().map(|at| (at, self.seed));
        let seeds = self.seed..self.seed + self.seeds;
        let then = then
            .into_iter()
            .flat_map(|at| seeds.clone().map(move |seed| (at, seed)));
        first.chain(then).collect()
    }

    fn replay(&self, scenario: Option<&String>, seed: u64) -> String {
        let scenario = scenario.map(|name| format!(" {name}")).unwrap_or_default();
        let (places, twists) = (self.places.flags(), self.twists.flags());
        format!("iris sim replay{scenario} --seed {seed}{places}{twists} --trace")
    }
}

fn tell(line: &str) {
    say!("{line}");
}

fn line(report: &Report) -> String {
    let stats = &report.stats;
    format!(
        "seed {}: {} events in {:.1} s; {} sent, {} accepted, {} handled, {} sessions, {} commits, {} holes, {} faults and {} \
         without effect, settled in {:.1} s; hash {:016x}\n",
        report.seed,
        report.events,
        report.time as f64 / 1e6,
        stats.sent,
        stats.accepted,
        stats.handled,
        stats.sessions,
        stats.commits,
        stats.holes,
        stats.faults,
        stats.without_effect,
        stats.settled as f64 / 1e6,
        report.hash
    )
}
