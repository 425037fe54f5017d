//! `iris drill run --target sim`

use std::process::ExitCode;

use anyhow::ensure;

use super::{Run, identity, named, now_ms, regions};
use crate::cli::output::{aside, say};
use crate::drill::measure::measure;
use crate::drill::plan::Drill;
use crate::drill::report::{Identity, Report};
use crate::drill::simulated::{self, Done};

/// The seed where none is given.
const SEED: u64 = 1;

impl Run {
    /// Runs the drill in the simulator.
    pub(super) fn simulate(&self, drill: &Drill) -> anyhow::Result<ExitCode> {
        ensure!(
            !self.keep,
            "--keep is for nodes that are processes: a drill in the simulator (--target sim) has no folder"
        );
        let seed = self.seed.unwrap_or(SEED);
        let started_ms = now_ms();
        say!(
            "{}: {}, in the simulator with seed {seed}",
            drill.scenario.name,
            drill.scenario.title
        );
        let regions = regions(drill)?;
        let done = simulated::run(drill, &regions, seed, self.defect)?;
        if done.run.violation.is_some() {
            aside(format_args!("{}", done.run));
        }
        let measures = measure(&done.clients, &done.faults, &done.log);
        let identity = identity(drill, "sim", vec![named(&regions)], started_ms);
        let identity = of_run(identity, &done);
        let found = done.found();
        let mut report = Report::new(identity, done.clients, measures, drill.limits(), None);
        report.observed = done.observed;
        if let Some(found) = found {
            report.fail(found);
        }
        self.finish(report, &done.log)
    }

    /// What is for the simulator alone is not passed over elsewhere.
    pub(super) fn only_simulated(&self) -> anyhow::Result<()> {
        ensure!(
            self.seed.is_none(),
            "--seed is for --target sim: processes have none"
        );
        ensure!(
            self.defect.is_none(),
            "--defect is for --target sim: processes have no deliberate defects"
        );
        Ok(())
    }
}

/// The identity of a run in the simulator.
fn of_run(identity: Identity, done: &Done) -> Identity {
    let mut configuration = identity.configuration;
    let mut add = |what: &str, fact: String| configuration.push((what.to_owned(), fact));
    add("engine", format!("{:?}", done.run.case.engine).to_lowercase());
    add("events", done.run.events.to_string());
    add("hash of the run", format!("{:016x}", done.run.hash));
    Identity {
        seed: done.run.seed,
        configuration,
        ..identity
    }
}
