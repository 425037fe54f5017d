//! Rounds of random failures on real processes (`iris drill soak`): bout after bout on one cluster that goes on, each a drill whose
//! faults are drawn by the seed.
//!
//! A round is a node killed, a region killed, a node that stands still, or a way between regions that is cut, and its end; some
//! begin before the one before is over. After each bout the load ends, and everything that was accepted must have come, once
//! and in order. What was done is kept, so that the next call goes on with the next bout on the same disks.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::nodes::{Node, Nodes};
use super::plan::{Drill, PlanError};
use crate::server::config::TomlText;
use crate::sim::rng::SimRng;
use crate::sim::span;
use crate::sim::trace::Micros;

/// Rounds of a bout.
pub const ROUNDS: u32 = 25;
/// Before the first fault, and after the last one.
const QUIET: Micros = 2_000_000;
/// How long a fault lasts, at least and at most.
const LASTS: (Micros, Micros) = (200_000, 2_500_000);
/// How long one lasts that others are to notice by the silence, which takes them up to six seconds.
const SILENT: (Micros, Micros) = (7_000_000, 10_000_000);
/// Of a thousand nodes that stand still, or ways that are cut, so many do so for long.
const SILENCES: u64 = 250;
/// Between the end of one and the beginning of the next one.
const GAP: (Micros, Micros) = (100_000, 1_500_000);
/// Of a thousand rounds so many begin before the one before is over.
const OVERLAPS: u64 = 300;

/// What was done so far; kept beside the nodes' data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Soaked {
    /// Of the rounds' random choices.
    pub seed: u64,
    /// Bouts that are over.
    pub bouts: u32,
    /// Their rounds.
    pub rounds: u32,
    /// Nodes killed, by a round each.
    pub crashes: u32,
    /// Regions killed.
    pub regions: u32,
    /// Nodes that stood still.
    pub pauses: u32,
    /// Ways cut.
    pub cuts: u32,
    /// Of the nodes that stood still, and of the ways that were cut, those for so long that others noticed the silence.
    #[serde(default)]
    pub silences: u32,
    /// Messages accepted, all of which were handled.
    pub accepted: u64,
    /// The longest time from the end of a bout's load until everything was handled and shown as it is.
    pub longest_convergence: Micros,
    /// The longest that a client had nothing accepted after a fault.
    pub longest_rto: Micros,
    /// How long it took, without pauses between calls.
    pub took: Micros,
}

/// A bout: the plan, as the text of a drill's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bout {
    /// The text.
    pub text: String,
    /// What is in it.
    pub counts: Soaked,
}

impl Bout {
    /// The bout of this number, with so many rounds. There must be two regions at least.
    pub fn draw(seed: u64, number: u32, rounds: u32, nodes: &Nodes) -> Self {
        let mut rng = SimRng::stream(seed, u64::from(number));
        let regions: Vec<&str> = nodes
            .regions()
            .into_iter()
            .map(|region| region.as_str())
            .collect();
        let mut counts = Soaked {
            rounds,
            ..Soaked::default()
        };
        let mut faults = String::new();
        let (mut at, mut until) = (QUIET, QUIET);
        // The nodes of faults that are not over: each is struck once at a time, and answers when it is to be.
        let mut busy: BTreeSet<&Node> = BTreeSet::new();
        for _ in 0..rounds {
            let mut lasts = rng.between(LASTS.0, LASTS.1);
            let mut idle = idle_regions(nodes, &busy);
            if at >= until || idle.len() < 2 || !rng.chance(OVERLAPS) {
                at = until + rng.between(GAP.0, GAP.1);
                busy.clear();
                idle = idle_regions(nodes, &busy);
            }
            let free: Vec<&Node> = nodes.iter().filter(|node| !busy.contains(node)).collect();
            let region = idle[rng.index(idle.len())];
            let node = free[rng.index(free.len())];
            let choice = rng.below(10);
            // A node that died is noticed at once, by what its system says.
            if choice >= 5 && rng.chance(SILENCES) {
                lasts = rng.between(SILENT.0, SILENT.1);
                counts.silences += 1;
            }
            let (kind, places, struck) = match choice {
                0..4 => {
                    counts.crashes += 1;
                    ("crash", on(&format!("{}/{}", node.region, node.name)), vec![node])
                }
                4 => {
                    counts.regions += 1;
                    ("crash", on(region), nodes.of(region).collect())
                }
                5..7 => {
                    counts.pauses += 1;
                    ("pause", on(&format!("{}/{}", node.region, node.name)), vec![node])
                }
                _ => {
                    counts.cuts += 1;
                    let others: Vec<&str> = idle.into_iter().filter(|other| *other != region).collect();
                    // From all others, or from one.
                    let to = match rng.chance(400) {
                        true => others,
                        false => vec![others[rng.index(others.len())]],
                    };
                    let ends = to.iter().copied().chain([region]);
                    let struck = ends.flat_map(|region| nodes.of(region)).collect();
                    ("cut", cut(region, &to, rng.chance(400)), struck)
                }
            };
            busy.extend(struck);
            let _ = write!(
                faults,
                "\n[[fault]]\nat = \"{}us\"\nkind = \"{kind}\"\n{places}lasts = \"{lasts}us\"\n",
                at
            );
            until = until.max(at + lasts);
            // Where the next one overlaps, it begins somewhere within this one.
            at += rng.between(LASTS.0 / 2, lasts.min(LASTS.1));
        }
        let text = format!(
            "title = \"Bout {number} of seed {seed}: {rounds} random failures\"\nregions = {regions:?}\nwork = \"{}us\"\n{faults}\n\
             [drill]\nhypothesis = \"nothing that was accepted is lost, and nothing comes twice\"\nclients = 3\nevery = \"30ms\"\n\
             settle = \"60s\"\n\n[drill.limits]\nlost = 0\nduplicates = 0\ndisorder = 0\nnever_answered = 0\nconvergence = \"{}\"\n\
             accepted_at_least = 500\n",
            until + QUIET,
            span::show(60_000_000),
        );
        Self { text, counts }
    }

    /// As a drill.
    ///
    /// # Errors
    /// None, as a test says.
    pub fn drill(&self, number: u32) -> Result<Drill, PlanError> {
        Drill::parse(TomlText::new(format!("bout-{number}.toml"), self.text.clone())?)
    }
}

fn on(place: &str) -> String {
    format!("on = [{place:?}]\n")
}

fn cut(from: &str, to: &[&str], one_way: bool) -> String {
    let one_way = if one_way { "one_way = true\n" } else { "" };
    format!("from = [{from:?}]\nto = {to:?}\n{one_way}")
}

/// The regions of which no node is busy.
fn idle_regions<'a>(nodes: &'a Nodes, busy: &BTreeSet<&Node>) -> Vec<&'a str> {
    let regions = nodes.regions().into_iter().map(|region| region.as_str());
    regions
        .filter(|region| !busy.iter().any(|node| node.region.as_str() == *region))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::nodes::three_regions;
    use crate::sim::fault::Kind;

    #[test]
    fn bouts_are_drawn_by_the_seed_and_kill_no_process_twice_at_once() {
        let nodes = three_regions();
        let mut kinds = BTreeSet::new();
        let mut overlaps = 0;
        for number in 0..50 {
            let bout = Bout::draw(7, number, ROUNDS, &nodes);
            assert_eq!(bout, Bout::draw(7, number, ROUNDS, &nodes));
            assert_ne!(bout, Bout::draw(8, number, ROUNDS, &nodes));
            let drill = bout.drill(number).unwrap();
            let faults = drill.real_faults().unwrap();
            assert_eq!(nodes.clash(faults), None);
            assert_eq!(faults.len(), ROUNDS as usize);
            let mut away: Vec<(Micros, String)> = Vec::new();
            for fault in faults {
                assert_eq!(nodes.unknown_place(fault), None);
                kinds.insert(fault.kind);
                let until = fault.at + fault.lasts.unwrap();
                assert!(until <= drill.scenario.work());
                overlaps += usize::from(away.iter().any(|(until, _)| *until > fault.at));
                for node in nodes.struck(fault) {
                    let name = node.to_string();
                    let clash = away
                        .iter()
                        .find(|(until, other)| *other == name && *until > fault.at);
                    assert_eq!(clash, None, "bout {number}: {fault:?}");
                    away.push((until, name));
                }
            }
        }
        assert_eq!(kinds, BTreeSet::from([Kind::Crash, Kind::Pause, Kind::Cut]));
        assert!(overlaps > 100, "{overlaps}");
    }
}
