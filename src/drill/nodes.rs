//! The nodes that a drill can strike: which a plan's places are, and what its faults mean for each.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};

use crate::core::ids::{NodeName, RegionId};
use crate::server::faults::{Direction, Fault as Injected, Selector};
use crate::sim::fault::{Fault, Kind};

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Its region.
    pub region: RegionId,
    /// Its name, unique over all regions.
    pub name: NodeName,
    /// It has a store.
    pub core: bool,
}

/// All nodes of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// In any order.
    pub fn new(nodes: impl IntoIterator<Item = Node>) -> Self {
        let mut nodes: Vec<Node> = nodes.into_iter().collect();
        nodes.sort();
        Self(nodes)
    }

    /// In order of their regions and names.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.0.iter()
    }

    /// The regions, in order of their ids.
    pub fn regions(&self) -> BTreeSet<&RegionId> {
        self.0.iter().map(|node| &node.region).collect()
    }

    /// The nodes of a place, as scenarios name them ([`crate::sim::fault`]).
    pub fn of<'a>(&'a self, place: &'a str) -> impl Iterator<Item = &'a Node> {
        let (region, part) = match place.split_once('/') {
            None if ["all", "cores", "edges"].contains(&place) => (None, Some(place)),
            None => (Some(place), None),
            Some((region, part)) => (Some(region), Some(part)),
        };
        let mut edges: BTreeMap<&RegionId, u32> = BTreeMap::new();
        self.0.iter().filter(move |node| {
            let edge = edges.entry(&node.region).or_default();
            *edge += u32::from(!node.core);
            region.is_none_or(|region| node.region.as_str() == region)
                && match part {
                    None | Some("all") => true,
                    Some("core" | "cores") => node.core,
                    Some("edges") => !node.core,
                    Some(part) => {
                        part == node.name.as_str() || (!node.core && part == format!("edge-{edge}"))
                    }
                }
        })
    }

    /// The nodes that a fault is on, each once.
    pub fn struck(&self, fault: &Fault) -> Vec<NodeName> {
        let nodes = fault.on.iter().flat_map(|place| self.of(place));
        let names: BTreeSet<&Node> = nodes.collect();
        names.into_iter().map(|node| node.name.clone()).collect()
    }

    /// The regions whose clients a fault is measured by: of a way that is cut or slow those at its beginning.
    pub fn regions_struck(&self, fault: &Fault) -> Vec<RegionId> {
        let places = fault.on.iter().chain(&fault.from);
        let regions: BTreeSet<&RegionId> = places
            .flat_map(|place| self.of(place))
            .map(|node| &node.region)
            .collect();
        regions.into_iter().cloned().collect()
    }

    /// What is injected for a fault, and into which node.
    ///
    /// # Errors
    /// Where nodes have no such fault.
    pub fn injected(&self, fault: &Fault) -> anyhow::Result<Vec<(NodeName, Injected)>> {
        let kind = match fault.kind {
            Kind::Pause => Injected::Pause,
            Kind::Crash => Injected::Crash,
            Kind::StoreErrors => Injected::StoreFail,
            Kind::StoreFull => Injected::StoreFull,
            Kind::StoreSlow => Injected::StoreSlow {
                ms: fault.extra.unwrap_or_default() / 1_000,
            },
            Kind::Clock => Injected::Clock {
                ms: fault.step_ms.unwrap_or_default(),
            },
            Kind::Cut | Kind::Slow => return self.between(fault),
            kind => bail!("{} is not injected into a node", kind.name()),
        };
        let struck: BTreeSet<&Node> = fault.on.iter().flat_map(|place| self.of(place)).collect();
        let struck = struck.into_iter().filter(|node| !kind.is_of_store() || node.core);
        Ok(struck.map(|node| (node.name.clone(), kind.clone())).collect())
    }

    /// Faults of the ways between places.
    fn between(&self, fault: &Fault) -> anyhow::Result<Vec<(NodeName, Injected)>> {
        let mut injected = Vec::new();
        let mut ways = vec![(&fault.from, &fault.to)];
        if !fault.one_way {
            ways.push((&fault.to, &fault.from));
        }
        for (from, to) in ways {
            for node in from.iter().flat_map(|place| self.of(place)) {
                for with in self.selectors(to)? {
                    // Each side drops what leaves it: so a way is cut in one direction alone.
                    let direction = Direction::Out;
                    if fault.kind == Kind::Cut {
                        let with = with.clone();
                        injected.push((node.name.clone(), Injected::Cut { with, direction }));
                    }
                    if let Some(extra) = fault.extra {
                        let (with, ms, jitter_ms) = (with.clone(), extra / 1_000, 0);
                        injected.push((node.name.clone(), Injected::Delay { with, ms, jitter_ms }));
                    }
                    if let Some(loss) = fault.loss {
                        let percent = u8::try_from(loss.div_ceil(10)).unwrap_or(100);
                        let loss = Injected::Loss {
                            with,
                            percent,
                            direction,
                        };
                        injected.push((node.name.clone(), loss));
                    }
                }
            }
        }
        Ok(injected)
    }

    /// Places, as faults of nodes name them.
    fn selectors(&self, places: &[String]) -> anyhow::Result<Vec<Selector>> {
        let mut selectors = Vec::new();
        for place in places {
            match self.0.iter().find(|node| node.region.as_str() == place) {
                Some(node) => selectors.push(Selector::Region(node.region.clone())),
                None => {
                    let nodes = self.of(place).map(|node| Selector::Node(node.name.clone()));
                    selectors.extend(nodes);
                }
            }
        }
        if selectors.is_empty() {
            bail!("no node is at {}", places.join(", "));
        }
        Ok(selectors)
    }

    /// The nodes that must run for a fault to begin and to end.
    fn asked(&self, fault: &Fault) -> Vec<NodeName> {
        match fault.kind {
            Kind::Evacuate => {
                let regions = self.regions_struck(fault);
                let first = regions.iter().filter_map(|region| self.first_of(region).ok());
                first.cloned().collect()
            }
            _ => match self.injected(fault) {
                Ok(injected) => injected.into_iter().map(|(node, _)| node).collect(),
                Err(_) => self.struck(fault),
            },
        }
    }

    /// What keeps a plan from being gone through here, if something does.
    pub fn cannot(&self, faults: &[Fault]) -> Option<String> {
        for (number, fault) in (1..).zip(faults) {
            if let Some(place) = self.unknown_place(fault) {
                return Some(format!(
                    "fault {number} ({}) is at {place}, where there is no node: {}",
                    fault.kind.name(),
                    self.expected_places(place)
                ));
            }
        }
        self.clash(faults)
    }

    /// What could have been meant by a place.
    pub fn expected_places(&self, place: &str) -> String {
        let region = place.split('/').next().unwrap_or(place);
        let there: Vec<&str> = self.of(region).map(|node| node.name.as_str()).collect();
        match there.is_empty() {
            false => format!("that region has the nodes {}", there.join(", ")),
            true => {
                let known: Vec<&str> = self.regions().into_iter().map(RegionId::as_str).collect();
                format!("there are the regions {}", known.join(", "))
            }
        }
    }

    /// Whether at some time no region keeps a core and an edge that no fault stops.
    pub fn leaves_nothing(&self, faults: &[Fault]) -> bool {
        let mut times = faults.iter().map(|fault| fault.at);
        times.any(|at| self.left(faults, at).is_empty())
    }

    /// The regions that keep a core and an edge that no fault stops at a time.
    fn left(&self, faults: &[Fault], at: u64) -> BTreeSet<&RegionId> {
        let stops = [Kind::Crash, Kind::Pause, Kind::StoreErrors, Kind::StoreFull];
        let stopped = faults.iter().filter(|fault| {
            let until = fault
                .lasts
                .map_or(u64::MAX, |lasts| fault.at.saturating_add(lasts));
            stops.contains(&fault.kind) && (fault.at..until).contains(&at)
        });
        let stopped: BTreeSet<NodeName> = stopped.flat_map(|fault| self.struck(fault)).collect();
        let with = |core: bool| -> BTreeSet<&RegionId> {
            let nodes = self.iter().filter(|node| !stopped.contains(&node.name));
            let nodes = nodes.filter(|node| node.core == core);
            nodes.map(|node| &node.region).collect()
        };
        // Where a region has cores alone, these take clients, too.
        let (cores, edges) = (with(true), with(false));
        let alone = |region: &&RegionId| {
            let mut nodes = self.iter().filter(|node| node.region == **region);
            nodes.all(|node| node.core)
        };
        cores
            .into_iter()
            .filter(|region| edges.contains(region) || alone(region))
            .collect()
    }

    /// A fault that is to begin or to end at a node which another one has down then: that cannot be done.
    pub fn clash(&self, faults: &[Fault]) -> Option<String> {
        let found = |begins| {
            let mut pairs = (0..faults.len()).flat_map(|n| (0..faults.len()).map(move |m| (n, m)));
            pairs.find_map(|(n, m)| self.clash_of(faults, begins, n, m))
        };
        found(true).or_else(|| found(false))
    }

    /// Whether the first of two begins, or ends, while the second has one of its nodes down. Of steps at the same time ends come
    /// first, and then those of the fault that is named first.
    fn clash_of(&self, faults: &[Fault], begins: bool, n: usize, m: usize) -> Option<String> {
        let (fault, other) = (&faults[n], &faults[m]);
        let downs = [Kind::Crash, Kind::Pause, Kind::DiskReplaced, Kind::Restore];
        if n == m || !downs.contains(&other.kind) {
            return None;
        }
        let until = other.at.saturating_add(other.lasts?);
        let within = match begins {
            true => fault.at < until && (other.at, m) < (fault.at, n),
            false => {
                let ends = fault.at.saturating_add(fault.lasts?);
                other.at < ends && (ends, n) < (until, m)
            }
        };
        let down = self.struck(other);
        let node = self.asked(fault).into_iter().find(|node| down.contains(node));
        let node = node.filter(|_| within)?;
        Some(format!(
            "fault {} ({}) {} at node {node} while fault {} ({}) has it down: choose other times, or other nodes",
            n + 1,
            fault.kind.name(),
            if begins { "begins" } else { "ends" },
            m + 1,
            other.kind.name()
        ))
    }

    /// The first place of a fault where there is no node.
    pub fn unknown_place<'a>(&self, fault: &'a Fault) -> Option<&'a str> {
        let places = fault.on.iter().chain(&fault.from).chain(&fault.to);
        let mut unknown = places.filter(|place| self.of(place).next().is_none());
        unknown.next().map(String::as_str)
    }

    /// A region by its id.
    ///
    /// # Errors
    /// Where it has no node.
    pub fn first_of(&self, region: &RegionId) -> anyhow::Result<&NodeName> {
        let node = self.0.iter().find(|node| node.region == *region);
        Ok(&node.with_context(|| format!("region {region} has no node"))?.name)
    }
}

/// Three regions, each of a core and two edges.
#[cfg(test)]
pub(super) fn three_regions() -> Nodes {
    let node = |region: &str, name: &str| Node {
        region: region.parse().unwrap(),
        name: format!("{region}-{name}").parse().unwrap(),
        core: name == "core-1",
    };
    let regions = ["us-east", "eu-west", "ap-south"];
    Nodes::new(
        regions
            .into_iter()
            .flat_map(|region| ["core-1", "edge-1", "edge-2"].map(|name| node(region, name))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::plan;
    use crate::sim::trace::Micros;

    #[test]
    fn a_fault_at_a_node_that_another_one_has_down_is_found_before() {
        let nodes = three_regions();
        let at = |at: Micros, kind, on: &str, lasts| Fault::new(at, kind).on(on).lasting(lasts);
        let clash = |faults: &[Fault]| nodes.clash(faults);
        let core = |from, lasts| at(from, Kind::Crash, "us-east/core", lasts);
        let edge = |from, lasts| at(from, Kind::Pause, "us-east/edge-1", lasts);
        let cut = |from, lasts| {
            let mut cut = Fault::new(from, Kind::Cut).lasting(lasts);
            (cut.from, cut.to) = (vec!["us-east".to_owned()], vec!["eu-west".to_owned()]);
            cut
        };
        assert_eq!(clash(&[core(10, 10), edge(15, 10)]), None);
        assert_eq!(clash(&[core(10, 10), core(20, 10)]), None);
        assert_eq!(clash(&[core(10, 10), cut(20, 10)]), None);
        assert_eq!(clash(&[cut(5, 5), core(10, 10)]), None);
        // It begins before, and ends after.
        assert_eq!(clash(&[cut(5, 20), core(10, 10)]), None);
        for faults in [
            [core(10, 10), core(19, 10)],
            [core(10, 10), cut(10, 20)],
            [core(10, 10), cut(19, 20)],
            [at(10, Kind::Crash, "eu-west", 10), cut(19, 20)],
            [core(10, 10), at(12, Kind::Evacuate, "us-east", 20)],
        ] {
            let clash = clash(&faults).unwrap_or_default();
            assert!(clash.contains("fault 2") && clash.contains("begins"), "{clash}");
        }
        let clash = clash(&[cut(5, 6), core(10, 10)]).unwrap_or_default();
        assert!(clash.contains("fault 1 (cut) ends"), "{clash}");
    }

    #[test]
    fn what_cannot_be_gone_through_is_said_and_what_is_left_is_known() {
        let nodes = three_regions();
        let crash = |on: &str| Fault::new(0, Kind::Crash).on(on).lasting(1);
        assert_eq!(nodes.cannot(&[crash("us-east/edge-2")]), None);
        let why = nodes.cannot(&[crash("us-east/edge-9")]).unwrap_or_default();
        assert!(
            why.contains("us-east/edge-9") && why.contains("us-east-edge-2"),
            "{why}"
        );
        let left = |faults: &[Fault]| nodes.left(faults, 0).len();
        assert_eq!(left(&[]), 3);
        assert_eq!(left(&[crash("us-east/edge-1")]), 3);
        assert_eq!(left(&[crash("us-east/edges"), crash("eu-west/core")]), 1);
        let pause = Fault::new(0, Kind::Pause).on("cores").lasting(1);
        assert_eq!(left(&[pause]), 0);
        let cut = Fault::new(0, Kind::Cut).on("all").lasting(1);
        assert_eq!(left(&[cut]), 3);
        let all = |at| ["us-east", "eu-west", "ap-south"].map(|on| Fault { at, ..crash(on) });
        assert!(nodes.leaves_nothing(&all(7)));
        let [one, two, _] = all(7);
        let [.., three] = all(8);
        assert!(!nodes.leaves_nothing(&[one, two, three]), "one after the other");
    }

    #[test]
    fn no_shipped_drill_asks_a_node_that_it_has_down() {
        for drill in plan::shipped().unwrap() {
            assert_eq!(three_regions().clash(drill.real_faults().unwrap()), None);
        }
    }

    #[test]
    fn places_are_those_of_scenarios() {
        let nodes = three_regions();
        let names =
            |place: &str| -> Vec<String> { nodes.of(place).map(|node| node.name.to_string()).collect() };
        assert_eq!(names("all").len(), 9);
        assert_eq!(
            names("cores"),
            ["ap-south-core-1", "eu-west-core-1", "us-east-core-1"]
        );
        assert_eq!(names("edges").len(), 6);
        assert_eq!(
            names("us-east"),
            ["us-east-core-1", "us-east-edge-1", "us-east-edge-2"]
        );
        assert_eq!(names("us-east/core"), ["us-east-core-1"]);
        assert_eq!(names("eu-west/edges"), ["eu-west-edge-1", "eu-west-edge-2"]);
        assert_eq!(names("eu-west/edge-2"), ["eu-west-edge-2"]);
        assert_eq!(names("us-east/us-east-edge-1"), ["us-east-edge-1"]);
        assert!(names("mars").is_empty() && names("us-east/edge-3").is_empty());
        let mut fault = Fault::new(0, Kind::Crash).on("us-east/core").on("us-east");
        assert_eq!(nodes.struck(&fault).len(), 3);
        assert_eq!(nodes.unknown_place(&fault), None);
        fault.on.push("mars".to_owned());
        assert_eq!(nodes.unknown_place(&fault), Some("mars"));
    }

    #[test]
    fn a_way_is_cut_where_packets_leave() {
        let nodes = three_regions();
        let mut cut = Fault::new(0, Kind::Cut);
        (cut.from, cut.to) = (vec!["eu-west".to_owned()], vec!["us-east/core".to_owned()]);
        let both = nodes.injected(&cut).unwrap();
        assert_eq!(both.len(), 3 + 1);
        cut.one_way = true;
        let one = nodes.injected(&cut).unwrap();
        assert!(one.iter().all(|(node, _)| node.as_str().starts_with("eu-west")) && one.len() == 3);
        let with = Selector::Node("us-east-core-1".parse().unwrap());
        let direction = Direction::Out;
        assert!(one.iter().all(|(_, injected)| *injected
            == Injected::Cut {
                with: with.clone(),
                direction
            }));
        assert_eq!(nodes.regions_struck(&cut), ["eu-west".parse().unwrap()]);
        // A slow and lossy way is two faults.
        cut.kind = Kind::Slow;
        (cut.extra, cut.loss) = (Some(150_000), Some(45));
        let slow: Vec<Injected> = nodes
            .injected(&cut)
            .unwrap()
            .into_iter()
            .map(|(_, fault)| fault)
            .collect();
        assert_eq!(slow.len(), 6);
        assert!(
            slow.iter()
                .any(|fault| matches!(fault, Injected::Delay { ms: 150, .. }))
        );
        assert!(
            slow.iter()
                .any(|fault| matches!(fault, Injected::Loss { percent: 5, .. }))
        );
    }

    #[test]
    fn stores_fail_only_where_there_are_some() {
        let full = Fault::new(0, Kind::StoreFull).on("us-east");
        let injected = three_regions().injected(&full).unwrap();
        assert_eq!(
            injected,
            [("us-east-core-1".parse().unwrap(), Injected::StoreFull)]
        );
        assert!(
            three_regions()
                .injected(&Fault::new(0, Kind::Backup).on("us-east"))
                .is_err()
        );
    }
}
