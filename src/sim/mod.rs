//! The simulator: whole regions in one process, under one seed, one queue of events and virtual time.
//!
//! ```text
//! seed or scenario -> case -> world { queue of events, nodes, stores, connections, devices } -> report { hash, violation }
//! ```
//!
//! The machines are the product's own: [`core::node::Partition`](crate::core::node::Partition) on the nodes,
//! [`client::machine::Machine`](crate::client::machine::Machine) on the devices, an engine of [`crate::store`] below the
//! stores. Everything that they say goes through the codecs. First things go wrong and messages are sent (safety is
//! checked all along); then everything heals, and within a bound of virtual time all must be delivered, equal, and silent.
//!
//! | module | what it holds |
//! |---|---|
//! | [`case`], [`fault`], [`draw`] | all that is decided before anything happens, as data; what a seed draws |
//! | `world` | the queue, the events, a partition's turn |
//! | `nodes` | starts, deaths, membership as each observer sees it |
//! | `network`, `clients` | connections between nodes, and of clients, over delay, jitter and cuts |
//! | `storage` | engines below an effect with latency, crashes |
//! | `device` | the client machine and an application above it; the workload |
//! | `faults`, `loss`, `spoil` | how faults strike and end; lost disks and restored backups; deliberate defects |
//! | `check`, `order`, `stored`, `expiry`, `queues`, `ghosts`, `repairs`, `settle`, `expect` | what must hold all along, and in the end |
//! | [`scenario`], [`validate`] | scenario files; whether a case makes sense |
//! | [`trace`], [`timeline`], `report` | the hash of a run, its story, its picture |
//! | [`witness`] | what its clients saw: for drills |
//!
//! A run is bit-for-bit reproducible: one seed has one hash. A failure prints the seed and the command that replays it.

pub mod case;
mod check;
mod clients;
mod defect;
#[cfg(test)]
mod defect_tests;
mod device;
pub mod draw;
mod evacuate;
mod expect;
mod expiry;
pub mod fault;
mod faults;
mod ghosts;
mod holders;
pub mod html;
mod loss;
mod moved;
mod network;
mod nodes;
mod order;
mod queues;
mod repairs;
mod report;
mod retired;
pub mod rng;
pub mod scenario;
mod settle;
pub mod shipped;
pub mod shrink;
pub mod span;
mod spoil;
mod storage;
mod stored;
pub mod timeline;
pub mod trace;
pub mod validate;
pub mod witness;
mod world;

pub use case::{Case, EngineKind};
pub use defect::Defect;
pub use world::Violation;

use std::fmt;

use timeline::Timeline;
use trace::Micros;
use witness::Noted;
use world::World;

/// Lines of the story that a failure prints.
const STORY: usize = 50;

/// How to run a seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// With this deliberate defect.
    pub defect: Option<Defect>,
    /// On this engine instead of the one that the seed draws, unless it draws several core nodes in a region.
    pub engine: Option<EngineKind>,
    /// Keep the story.
    pub trace: bool,
    /// Keep what the run looked like over time.
    pub timeline: bool,
    /// Keep what its clients saw.
    pub witness: bool,
    /// Is told the main lines of the story as they happen.
    pub chapter: Option<fn(&str)>,
}

/// What happened in a run, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages that applications gave to their clients.
    pub sent: u64,
    /// Messages that were accepted.
    pub accepted: u64,
    /// Messages that were refused for good.
    pub rejected: u64,
    /// Messages that applications handled.
    pub handled: u64,
    /// Holes that devices were told.
    pub holes: u64,
    /// Messages that stores replaced by holes.
    pub expired: u64,
    /// Sessions that stood.
    pub sessions: u64,
    /// Messages that came to an edge on one connection after their client had sent them again on another.
    pub doubled: u64,
    /// How often what somebody sees of another one's presence was compared with the truth, while things went wrong.
    pub compared: u64,
    /// Commits of all stores.
    pub commits: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Faults that found nothing to strike; the story says why.
    pub without_effect: u64,
    /// Snapshots that a region took in whole.
    pub snapshots: u64,
    /// Times that a core took over a shard that had an owner before, under a new epoch.
    pub takeovers: u64,
    /// Sessions that began at edges that another region served.
    pub served_elsewhere: u64,
    /// Sessions of clients that were moved, and were to be given something first.
    pub moved: u64,
    /// Commits that found the disk full.
    pub store_full: u64,
    /// Bytes of presence in which regions differed when a link between them was new.
    pub presence_differed: u64,
    /// Bytes that regions sent to find and repair what differs of presence.
    pub presence_repair_bytes: u64,
    /// Records among that.
    pub presence_repaired: u64,
    /// Bytes of digests that they said in any case.
    pub presence_digest_bytes: u64,
    /// From the healing to the end of all work, microseconds of virtual time.
    pub settled: Micros,
}

/// What became of a seed.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash over every event: equal for equal runs.
    pub hash: u64,
    /// Number of events.
    pub events: u64,
    /// Virtual time at the end, microseconds.
    pub time: Micros,
    /// Counts.
    pub stats: Stats,
    /// The broken promise, if there is one.
    pub violation: Option<Violation>,
    /// The story, if it was asked for.
    pub story: Vec<String>,
    /// What it looked like over time, if that was asked for.
    pub timeline: Timeline,
    /// What its clients saw, if that was asked for.
    pub notes: Vec<Noted>,
    /// The case, with its faults and acts as they were: it runs the same again.
    pub case: Case,
}

/// Runs a seed.
pub fn run(seed: u64, options: Options) -> Report {
    run_case(draw::draw(seed), options)
}

/// Runs a case; what it leaves to chance follows from its seed.
pub fn run_case(mut case: Case, options: Options) -> Report {
    let cores = case.nodes.iter().filter(|node| node.core).count();
    if let Some(engine) = options.engine.filter(|_| cores == case.places.len()) {
        case.engine = engine;
    }
    draw::expand(&mut case);
    let seed = case.seed;
    #[cfg(any(test, feature = "defects"))]
    crate::core::defect::set(options.defect.and_then(Defect::of_core));
    let mut world = World::new(case, options);
    world.run();
    Report {
        seed,
        hash: world.trace.hash(),
        events: world.trace.events(),
        time: world.now,
        stats: world.check.stats,
        violation: world.violation,
        story: world.trace.into_lines(),
        timeline: Timeline {
            regions: world
                .plan
                .places
                .iter()
                .map(|place| place.id.to_string())
                .collect(),
            ..world.timeline
        },
        notes: world.witness.into_notes(),
        case: world.plan,
    }
}

/// Runs a seed; one that breaks a promise is run again for its story.
pub fn run_with_story(seed: u64, options: Options) -> Report {
    case_with_story(draw::draw(seed), options)
}

/// Runs a case; one that breaks a promise is run again for its story.
pub fn case_with_story(case: Case, options: Options) -> Report {
    let report = run_case(case, options);
    if report.violation.is_none() || options.trace {
        return report;
    }
    let told = Options {
        trace: true,
        chapter: None,
        ..options
    };
    run_case(report.case, told)
}

impl Report {
    /// The end of the story, as far as it has to do with the violation.
    pub fn relevant(&self) -> Vec<&String> {
        let words = self
            .violation
            .as_ref()
            .map_or(&[][..], |violation| &violation.subjects);
        let about = |line: &&String| {
            let signs_of_life = ["body: Ping {", "body: Pong {", " sees "];
            !signs_of_life.iter().any(|sign| line.contains(sign))
                && (words.is_empty()
                    || words.iter().any(|word| line.contains(word.as_str()))
                    || ["fault", "starts", "dies", "heals", "VIOLATION"]
                        .iter()
                        .any(|word| line.contains(word)))
        };
        let lines: Vec<&String> = self.story.iter().filter(about).collect();
        let from = lines.len().saturating_sub(STORY);
        lines[from..].to_vec()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(violation) = &self.violation else {
            return write!(f, "seed {}: nothing broken in {} events", self.seed, self.events);
        };
        writeln!(
            f,
            "{}seed {} broke a promise at {:.6} s",
            if self.case.name.is_empty() {
                String::new()
            } else {
                format!("{}, ", self.case.name)
            },
            self.seed,
            violation.at as f64 / 1e6
        )?;
        writeln!(f, "  invariant: {}", violation.invariant)?;
        writeln!(f, "  {}", violation.detail)?;
        if !self.story.is_empty() {
            writeln!(f, "  what led to it:")?;
            for line in self.relevant() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}
