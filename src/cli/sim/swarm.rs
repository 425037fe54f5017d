//! `iris sim swarm`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Twists, failure, jobs};
use crate::cli::output;
use crate::sim::{self, draw};

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(5);

/// Run many seeds, each with its own places, nodes, limits, workload and faults.
///
/// A failure prints the invariant, the seed, the build, the command that replays it, and the last events that matter. The
/// exit code is 1 where a promise was broken.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim swarm --seeds 10000
  iris sim swarm --minutes 30 --jobs 2 --seed 1000000
  iris sim swarm --seeds 200 --defect dedup-off    is this defect found?")]
pub(super) struct Swarm {
    /// How many seeds.
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "minutes")]
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
        let (mut shown, mut broken, mut simulated, mut handled) = (begun, 0_u64, 0.0, 0);
        let seed_of = |job: u64| self.seed.wrapping_add(job) & (u64::MAX >> 1);
        let work = |job: u64| sim::case_with_story(draw::draw(seed_of(job)), options);
        let see = |job: u64, report: sim::Report| {
            simulated += report.time as f64 / 1e6;
            handled += report.stats.handled;
            if report.violation.is_some() {
                broken += 1;
                let replay = format!(
                    "iris sim replay --seed {}{} --trace",
                    report.seed,
                    self.twists.flags()
                );
                output::print(&(failure(&report, &replay) + "\n"))?;
            }
            if shown.elapsed() > PROGRESS {
                shown = Instant::now();
                let seconds = begun.elapsed().as_secs_f64();
                eprintln!(
                    "{} seeds in {seconds:.0} s, {broken} broke a promise; {:.0} s simulated, {:.0} times real time",
                    job + 1,
                    simulated,
                    simulated / seconds
                );
            }
            Ok(self.keep_going || report.violation.is_none())
        };
        let ran = jobs::each(jobs::threads(self.jobs), until, work, see)?;
        output::print(&format!(
            "{ran} seeds, {broken} broke a promise; {handled} messages handled in {simulated:.0} simulated seconds\n"
        ))?;
        Ok(ExitCode::from(u8::from(broken > 0)))
    }
}
