//! `iris sim swarm`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::summary::{Row, table};
use super::{Twists, failure, jobs};
use crate::cli::output::{self, Format, say};
use crate::sim::{self, EngineKind, draw};

/// How often progress is shown.
pub(super) const PROGRESS: Duration = Duration::from_secs(5);

/// Run many seeds, each with its own places, nodes, limits, workload and faults.
///
/// A failure prints the invariant, the seed, the build, the command that replays it, and the last events that matter. The
/// exit code is 1 where a promise was broken. The summary has a row for each engine that seeds draw.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim swarm --seeds 10000
  iris sim swarm --minutes 30 --jobs 2 --seed 1000000
  iris sim swarm --seeds 200 --defect dedup-off    is this defect found?")]
pub(super) struct Swarm {
    /// How many seeds.
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "minutes",
        value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// How long, instead.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Threads; as many as there are processors where it is not given.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Go on after a seed that breaks a promise.
    #[arg(long)]
    keep_going: bool,
    /// The form of the summary.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    twists: Twists,
}

impl Swarm {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let until = match self.minutes {
            Some(minutes) => jobs::Until::Time(Duration::from_secs_f64(minutes.clamp(0.0, 1e6) * 60.0)),
            None => jobs::Until::Jobs(self.seeds),
        };
        let options = self.twists.options();
        let begun = Instant::now();
        let mut shown = begun;
        let mut all = Row::named("all");
        let engines = ["memory", "embedded", "shared"];
        let mut rows = engines.map(Row::named);
        let seed_of = |job: u64| self.seed.wrapping_add(job) & (u64::MAX >> 1);
        let work = |job: u64| sim::case_with_story(draw::draw(seed_of(job)), options);
        let see = |job: u64, report: sim::Report| {
            let replay = format!(
                "iris sim replay --seed {}{} --trace",
                report.seed,
                self.twists.flags()
            );
            let row = match report.case.engine {
                EngineKind::Memory => 0,
                EngineKind::Embedded => 1,
                EngineKind::Shared => 2,
            };
            rows[row].add(&report, &replay);
            all.add(&report, &replay);
            if report.violation.is_some() && self.output == Format::Table {
                output::print(&(failure(&report, &replay) + "\n"))?;
            }
            if shown.elapsed() > PROGRESS {
                shown = Instant::now();
                let seconds = begun.elapsed().as_secs_f64();
                say!(
                    "{} seeds in {seconds:.0} s, {} broke a promise; {:.0} s simulated, {:.0} times real time",
                    job + 1,
                    all.broken,
                    all.simulated_s,
                    all.simulated_s / seconds
                );
            }
            Ok(self.keep_going || report.violation.is_none())
        };
        let ran = jobs::each(jobs::threads(self.jobs), until, work, see)?;
        let rows = rows.iter().filter(|row| row.seeds > 0);
        match self.output {
            Format::Json => output::print_json(&rows.collect::<Vec<_>>())?,
            Format::Table => {
                table("ENGINE", rows.chain([&all]))?;
                output::print(&format!(
                    "{ran} seeds, {} broke a promise; {} messages handled in {:.0} simulated seconds\n",
                    all.broken, all.handled, all.simulated_s
                ))?;
            }
        }
        Ok(ExitCode::from(u8::from(all.broken > 0)))
    }
}
