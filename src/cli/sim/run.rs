//! `iris sim run`

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::cli::output;
use crate::sim::{self, Defect, EngineKind, Options, Report};

/// Run seeds, and print those that break a promise with the command that replays them.
///
/// A seed decides everything: places, nodes, users, limits, faults and their times. The exit code is 1 where a promise was
/// broken.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim run --seeds 1000            seeds 0 to 999
  iris sim run --seeds 1000 --seed 5000
  iris sim run --seed 42               one seed, with the end of its story if it breaks something
  iris sim run --seed 42 --trace       everything that happens in it")]
pub struct Run {
    /// How many seeds, one after the other.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Go on after a seed that breaks a promise.
    #[arg(long)]
    keep_going: bool,
    /// Print a line for each seed.
    #[arg(long)]
    each: bool,
    /// Run with a deliberate defect, to see that it is found.
    #[arg(long, value_name = "NAME")]
    defect: Option<Defect>,
    /// The engine below the stores, instead of the one that each seed draws.
    #[arg(long, value_enum)]
    engine: Option<Engine>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Engine {
    Memory,
    Embedded,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let options = Options {
            defect: self.defect,
            engine: self.engine.map(|engine| match engine {
                Engine::Memory => EngineKind::Memory,
                Engine::Embedded => EngineKind::Embedded,
            }),
            trace: self.trace,
            timeline: false,
            chapter: None,
        };
        let (mut broken, mut ran) = (0, 0);
        for seed in self.seed..self.seed.saturating_add(self.seeds) {
            let report = sim::run_with_story(seed, options);
            ran += 1;
            if self.trace {
                output::print(&(report.story.join("\n") + "\n"))?;
            }
            if self.each || (self.seeds == 1 && report.violation.is_none()) {
                output::print(&line(&report))?;
            }
            if report.violation.is_some() {
                broken += 1;
                output::print(&format!("{report}\n"))?;
                if !self.keep_going {
                    break;
                }
            }
        }
        output::print(&format!("{ran} seeds, {broken} broke a promise\n"))?;
        Ok(ExitCode::from(u8::from(broken > 0)))
    }
}

fn line(report: &Report) -> String {
    let stats = &report.stats;
    format!(
        "seed {}: {} events in {:.1} s; {} sent, {} accepted, {} handled, {} sessions, {} commits, {} holes, settled in {:.1} s; hash {:016x}\n",
        report.seed,
        report.events,
        report.time as f64 / 1e6,
        stats.sent,
        stats.accepted,
        stats.handled,
        stats.sessions,
        stats.commits,
        stats.holes,
        stats.settled as f64 / 1e6,
        report.hash
    )
}
