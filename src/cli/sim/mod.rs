//! `iris sim`: whole regions in one process, under a seed.

mod bench;
mod jobs;
mod list;
mod replay;
mod run;
mod shrink;
mod source;
mod summary;
mod swarm;

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::output::{self, Format};
use crate::sim::{Defect, EngineKind, Options, Report};

/// Simulate regions with faults, reproducibly, and check what Iris promises.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris sim list
  iris sim run region-cut-off
  iris sim swarm --minutes 5 --jobs 2
  iris sim replay --seed 42 --trace"
)]
pub struct Sim {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Bench(bench::Bench),
    List(list::List),
    Replay(replay::Replay),
    Run(run::Run),
    Shrink(shrink::Shrink),
    Swarm(swarm::Swarm),
}

impl Sim {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Bench(verb) => verb.run(),
            Verb::List(verb) => verb.run(),
            Verb::Replay(verb) => verb.run(),
            Verb::Run(verb) => verb.run(),
            Verb::Shrink(verb) => verb.run(),
            Verb::Swarm(verb) => verb.run(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Memory,
    Embedded,
    Shared,
}

/// What changes a run beside its case.
#[derive(Debug, Clone, Copy, Args)]
struct Twists {
    /// Run with a deliberate defect, to see that it is found.
    #[arg(long, value_name = "NAME")]
    defect: Option<Defect>,
    /// The engine below the stores, instead of the one that the case has; a case with several cores in a region keeps its own.
    #[arg(long, value_enum)]
    engine: Option<Engine>,
}

impl Twists {
    fn options(self) -> Options {
        Options {
            defect: self.defect,
            engine: self.engine.map(|engine| match engine {
                Engine::Memory => EngineKind::Memory,
                Engine::Embedded => EngineKind::Embedded,
                Engine::Shared => EngineKind::Shared,
            }),
            ..Options::default()
        }
    }

    /// As they stand on a command line, each with a space before it.
    fn flags(self) -> String {
        let mut flags = String::new();
        if let Some(defect) = self.defect {
            flags.push_str(&format!(" --defect {}", defect.name()));
        }
        match self.engine {
            Some(Engine::Memory) => flags.push_str(" --engine memory"),
            Some(Engine::Embedded) => flags.push_str(" --engine embedded"),
            Some(Engine::Shared) => flags.push_str(" --engine shared"),
            None => {}
        }
        flags
    }
}

/// Of which commit the program is built, where that is known (`build.rs`).
const COMMIT: Option<&str> = option_env!("BUILD_COMMIT");

/// A failure in words: the invariant, the seed, the build, the command that replays it, and the last events that matter.
fn failure(report: &Report, replay: &str) -> String {
    format!(
        "{report}  build:     iris {}{}\n  replay:    {replay}\n",
        env!("CARGO_PKG_VERSION"),
        COMMIT
            .map(|commit| format!(", commit {commit}"))
            .unwrap_or_default()
    )
}

/// The story of a run; it makes way where stdout is for JSON.
fn tell(report: &Report, form: Format) -> anyhow::Result<()> {
    let story = report.story.join("\n") + "\n";
    match form {
        Format::Table => output::print(&story),
        Format::Json => output::print_aside(&story),
    }
}
