//! `iris sim bench`

use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::source::Places;
use super::{Engine, Twists, failure};
use crate::cli::output::{self, Format};
use crate::server::config::TomlText;
use crate::sim;
use crate::sim::scenario::Scenario;

/// How fast is the simulator: simulated seconds for each second, on one processor.
///
/// Runs the given regions (three of three nodes, as shipped) with clients that send, in a world where nothing goes wrong.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris sim bench
  iris sim bench --clients 1000 --every 2ms --output json")]
pub(super) struct Bench {
    /// Clients, each of a user of its own.
    #[arg(long, value_name = "N", default_value_t = 300)]
    clients: u32,
    /// How many simulated seconds messages are sent.
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u32,
    /// Mean pause between messages of all clients together.
    #[arg(long, value_name = "SPAN", default_value = "10ms")]
    every: String,
    /// The form of the result.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    twists: Twists,
}

#[derive(Debug, Serialize)]
struct Speed {
    nodes: usize,
    clients: u32,
    simulated_s: f64,
    wall_s: f64,
    times_real_time: f64,
    events: u64,
    events_per_s: f64,
    handled: u64,
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let text = format!(
            "title = \"speed\"\nwork = \"{}s\"\nengine = \"{}\"\n[[users]]\nname = \"user\"\ncount = {}\nspread = \"3s\"\n\
             [[workload]]\nevery = \"{}\"\n",
            self.seconds,
            match self.twists.engine {
                Some(Engine::Embedded) => "embedded",
                Some(Engine::Shared) => "shared",
                _ => "memory",
            },
            self.clients,
            self.every
        );
        let scenario = Scenario::parse(TomlText::new("bench", text)?)?;
        let case = scenario.case(&self.places.regions()?, 1)?;
        let nodes = case.nodes.len();
        let begun = Instant::now();
        let report = sim::run_case(case, self.twists.options());
        let wall_s = begun.elapsed().as_secs_f64();
        if report.violation.is_some() {
            bail!("{}", failure(&report, "iris sim bench"));
        }
        let simulated_s = report.time as f64 / 1e6;
        let speed = Speed {
            nodes,
            clients: self.clients,
            simulated_s,
            wall_s,
            times_real_time: simulated_s / wall_s,
            events: report.events,
            events_per_s: report.events as f64 / wall_s,
            handled: report.stats.handled,
        };
        match self.output {
            Format::Json => output::print_json(&speed)?,
            Format::Table => output::print(&format!(
                "{nodes} nodes, {} clients: {simulated_s:.1} s simulated in {wall_s:.2} s, {:.0} times real time; {:.0} events a \
                 second; {} messages handled\n",
                self.clients, speed.times_real_time, speed.events_per_s, speed.handled
            ))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
