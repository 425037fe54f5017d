//! What became of runs, counted and written out.

use serde::Serialize;

use crate::cli::output;
use crate::sim::Report;

/// A row of the summary.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Row {
    /// What was run: a scenario, or the engine of seeds of the swarm.
    pub(super) scenario: String,
    pub(super) seeds: u64,
    pub(super) broken: u64,
    sent: u64,
    accepted: u64,
    pub(super) handled: u64,
    rejected: u64,
    /// Faults that struck, and those that found nothing to strike.
    faults: u64,
    without_effect: u64,
    /// What regions differed in of presence when links between them were new, and what repairing it cost, bytes of all runs.
    presence_differed_bytes: u64,
    presence_repair_bytes: u64,
    /// Slowest, seconds of virtual time from the healing on.
    settled_s: f64,
    /// Virtual seconds of all runs.
    pub(super) simulated_s: f64,
    /// Hash over the hashes of all runs.
    hash: String,
    failures: Vec<Failed>,
    #[serde(skip)]
    hashes: u64,
}

/// A run that broke a promise.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Failed {
    seed: u64,
    invariant: String,
    detail: String,
    /// Seconds of virtual time.
    at_s: f64,
    version: &'static str,
    /// Of which commit the program is built, where that is known.
    commit: Option<&'static str>,
    replay: String,
    /// The last events that have to do with it.
    events: Vec<String>,
}

impl Failed {
    /// What is to be said of a run, if it broke a promise.
    pub(super) fn of(report: &Report, replay: &str) -> Option<Self> {
        let violation = report.violation.as_ref()?;
        Some(Self {
            seed: report.seed,
            invariant: violation.invariant.to_owned(),
            detail: violation.detail.clone(),
            at_s: violation.at as f64 / 1e6,
            version: env!("CARGO_PKG_VERSION"),
            commit: super::COMMIT,
            replay: replay.to_owned(),
            events: report.relevant().into_iter().cloned().collect(),
        })
    }
}

impl Row {
    pub(super) fn named(scenario: impl Into<String>) -> Self {
        Self {
            scenario: scenario.into(),
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, report: &Report, replay: &str) {
        let stats = &report.stats;
        self.seeds += 1;
        self.sent += stats.sent;
        self.accepted += stats.accepted;
        self.handled += stats.handled;
        self.rejected += stats.rejected;
        self.faults += stats.faults;
        self.without_effect += stats.without_effect;
        self.presence_differed_bytes += stats.presence_differed;
        self.presence_repair_bytes += stats.presence_repair_bytes;
        self.settled_s = self.settled_s.max(stats.settled as f64 / 1e6);
        self.simulated_s += report.time as f64 / 1e6;
        self.hashes = self.hashes.rotate_left(1) ^ report.hash;
        self.hash = format!("{:016x}", self.hashes);
        if let Some(failed) = Failed::of(report, replay) {
            self.broken += 1;
            self.failures.push(failed);
        }
    }

    fn cells(&self) -> Vec<String> {
        let verdict = if self.broken == 0 { "passed" } else { "BROKEN" };
        vec![
            self.scenario.clone(),
            verdict.to_owned(),
            format!("{}/{}", self.seeds - self.broken, self.seeds),
            self.accepted.to_string(),
            self.handled.to_string(),
            self.rejected.to_string(),
            self.faults.to_string(),
            self.without_effect.to_string(),
            format!("{:.0} s", self.settled_s),
            format!("{:.0} s", self.simulated_s),
            self.hash.clone(),
        ]
    }
}

/// Prints rows under a heading for what they are of.
pub(super) fn table<'a>(of: &str, rows: impl IntoIterator<Item = &'a Row>) -> anyhow::Result<()> {
    let cells: Vec<Vec<String>> = rows.into_iter().map(Row::cells).collect();
    output::print_table(
        &[
            of,
            "VERDICT",
            "SEEDS",
            "ACCEPTED",
            "HANDLED",
            "REFUSED",
            "FAULTS",
            "NO EFFECT",
            "SETTLED",
            "SIMULATED",
            "HASH",
        ],
        &cells,
    )
}
