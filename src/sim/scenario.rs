//! Scenario files (`simulations/*.toml`): a case for any regions, read, checked and made concrete.
//!
//! A scenario names the regions that it speaks of. Where the regions given to it have other names, each name that they
//! lack stands for the next region that is not named; where they are fewer, what is aimed at a missing one has no
//! effect. All regions given take part. `docs/simulations.md` has every key.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::case::{
    Accepts, Act, Case, Clients, DevicePlan, EngineKind, Expect, InboxLimits, Membership, Network, NodePlan,
    Place, Random, SECOND, StoreModel, UserPlan, Workload,
};
use super::fault::{Fault, Kind};
use super::rng::SimRng;
use super::trace::Micros;
use super::validate::{MAX_CLOCK_MS, MAX_DRIFT_PPM};
use super::{draw, span};
use crate::core::ids::{NodeName, RegionId};
use crate::core::limits::CoreLimits;
use crate::server::config::{ConfigError, Problem, TomlText};
use crate::server::regions::{RegionFile, Regions, Role};

/// Shards of a scenario that does not say: some on each partition, few enough to look at all of them.
const SHARDS: u32 = 8;
/// Places in all regions.
const SPECIAL: [&str; 3] = ["all", "cores", "edges"];

/// A scenario, as its file has it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The file's name without its ending.
    pub name: String,
    /// What it is about, in a line.
    pub title: String,
    text: TomlText,
    file: File,
}

/// The keys of a scenario file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    later: Vec<String>,
    #[serde(with = "span")]
    work: Micros,
    #[serde(default)]
    engine: Option<EngineKind>,
    #[serde(default)]
    accepts: Accepts,
    #[serde(default = "shards")]
    shards: u32,
    #[serde(default)]
    nodes: Nodes,
    #[serde(default)]
    limits: CoreLimits,
    #[serde(default)]
    inbox: InboxLimits,
    #[serde(default)]
    network: Network,
    #[serde(default)]
    membership: Membership,
    #[serde(default)]
    store: StoreModel,
    #[serde(default)]
    random: Option<Random>,
    #[serde(default)]
    expect: Expect,
    #[serde(default)]
    clock: Vec<Clock>,
    #[serde(default)]
    users: Vec<Users>,
    #[serde(default)]
    workload: Vec<Workload>,
    #[serde(default)]
    fault: Vec<Fault>,
    #[serde(default)]
    act: Vec<Act>,
    #[serde(default)]
    drill: Option<Terms>,
}

/// What a drill has beside its scenario: on what terms it counts as passed, and the load that it brings on real processes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// What is believed to happen, in a sentence or two.
    pub hypothesis: String,
    /// Clients that prefer each region.
    #[serde(default = "clients")]
    pub clients: u32,
    /// Between two messages of each of them.
    #[serde(default = "every", with = "span")]
    pub every: Micros,
    /// How long everything may take to come to an end once the load has ended.
    #[serde(default = "settle", with = "span")]
    pub settle: Micros,
    /// What must hold.
    #[serde(default)]
    pub limits: TermLimits,
}

/// Limits of a drill; what is not named is measured and not judged.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TermLimits {
    /// The longest that a client of a region that is struck has nothing accepted.
    #[serde(with = "span::option")]
    pub rto: Option<Micros>,
    /// The longest that one of their messages waits for its answer.
    #[serde(with = "span::option")]
    pub outage: Option<Micros>,
    /// Messages that were accepted and that nobody got.
    pub lost: Option<u64>,
    /// How long before the fault a message may have been accepted that nobody got.
    #[serde(with = "span::option")]
    pub rpo: Option<Micros>,
    /// Messages that an application was given twice.
    pub duplicates: Option<u64>,
    /// Messages that overtook earlier ones of their sender.
    pub disorder: Option<u64>,
    /// Messages without an answer at the end.
    pub never_answered: Option<u64>,
    /// Until users of a region that is struck are shown as unreachable.
    #[serde(with = "span::option")]
    pub unreachable: Option<Micros>,
    /// From the end of the fault until they are shown as they are.
    #[serde(with = "span::option")]
    pub back: Option<Micros>,
    /// From the end of the last fault until everything accepted is handled and all presence is right.
    #[serde(with = "span::option")]
    pub convergence: Option<Micros>,
    /// From sending to handling, of 99 in 100 messages of the whole drill.
    #[serde(with = "span::option")]
    pub p99_handled: Option<Micros>,
    /// Messages that the drill is to get accepted: with fewer it shows nothing.
    pub accepted_at_least: Option<u64>,
    /// Clients that are to lose a session by a fault: where none does the fault shows nothing.
    pub disconnected_at_least: Option<u64>,
}

fn clients() -> u32 {
    4
}

fn every() -> Micros {
    50_000
}

fn settle() -> Micros {
    30 * SECOND
}

/// The nodes of each region, where they are not those of its file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Nodes {
    cores: Option<u32>,
    edges: Option<u32>,
    partitions: Option<u8>,
}

/// Clocks that are off from the start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    on: Vec<String>,
    #[serde(default)]
    offset_ms: i64,
    #[serde(default)]
    drift_ppm: i32,
}

/// A group of users.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Users {
    name: String,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    devices: Option<u32>,
    #[serde(default)]
    device_regions: Vec<String>,
    #[serde(default, with = "span::option")]
    arrives: Option<Micros>,
    #[serde(default, with = "span::option")]
    spread: Option<Micros>,
    #[serde(default)]
    late: bool,
    #[serde(default)]
    watches: Option<Vec<String>>,
}

fn shards() -> u32 {
    SHARDS
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// All that is wrong with it, by file, line and key.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(TomlText::read(file)?)
    }

    /// Reads a scenario from its text.
    ///
    /// # Errors
    /// All that is wrong with it, by file, line and key.
    pub fn parse(text: TomlText) -> Result<Self, ConfigError> {
        let file: File = text.parse()?;
        let name = text.file().file_stem().unwrap_or_default();
        let scenario = Self {
            name: name.to_string_lossy().into_owned(),
            title: file.title.clone(),
            file,
            text,
        };
        let problems = scenario.wrong_users();
        if problems.is_empty() {
            Ok(scenario)
        } else {
            Err(ConfigError::Problems(problems))
        }
    }

    /// Its terms, where it is a drill.
    pub fn terms(&self) -> Option<&Terms> {
        self.file.drill.as_ref()
    }

    /// The regions that it names.
    pub fn regions(&self) -> &[String] {
        &self.file.regions
    }

    /// What goes wrong.
    pub fn faults(&self) -> &[Fault] {
        &self.file.fault
    }

    /// When regions accept a message.
    pub fn accepts(&self) -> Accepts {
        self.file.accepts
    }

    /// When everything heals, microseconds of virtual time.
    pub fn work(&self) -> Micros {
        self.file.work
    }

    /// The case of a seed, in these regions.
    ///
    /// # Errors
    /// All that is wrong with it in these regions, by file, line and key.
    pub fn case(&self, regions: &Regions, seed: u64) -> Result<Case, ConfigError> {
        let file = &self.file;
        let names = self.names(regions);
        let mut problems = self.wrong_places(regions);
        let rng = &mut SimRng::stream(seed, draw::CASE);
        let places: Vec<Place> = regions.iter().map(place).collect();
        let mut case = Case {
            name: self.name.clone(),
            seed,
            work: file.work,
            engine: file.engine.unwrap_or_else(|| {
                if rng.chance(500) {
                    EngineKind::Embedded
                } else {
                    EngineKind::Memory
                }
            }),
            // One region alone has no other that could have a message.
            accepts: if places.len() > 1 {
                file.accepts
            } else {
                Accepts::Region
            },
            clients: Clients::default(),
            shards: file.shards,
            shard_seed: rng.bits() >> 1,
            nodes: regions.iter().flat_map(|region| file.nodes.of(region)).collect(),
            users: Vec::new(),
            limits: file.limits.clone(),
            inbox: file.inbox.clone(),
            network: file.network.clone(),
            membership: file.membership.clone(),
            store: file.store.clone(),
            later: places
                .iter()
                .map(|place| place.id.clone())
                .filter(|id| {
                    file.later
                        .iter()
                        .any(|name| substitute(name, &names) == id.as_str())
                })
                .collect(),
            workload: file.workload.clone(),
            random: file.random.clone(),
            faults: file.fault.iter().map(|fault| renamed(fault, &names)).collect(),
            acts: file.act.clone(),
            expect: file.expect.clone(),
            places,
        };
        for clock in &file.clock {
            for place in &clock.on {
                for node in case.nodes_at(&substitute(place, &names)) {
                    let node = &mut case.nodes[node];
                    node.clock_ms = node.clock_ms.saturating_add(clock.offset_ms);
                    node.drift_ppm = node.drift_ppm.saturating_add(clock.drift_ppm);
                }
            }
        }
        // The group that each user is of.
        let mut groups = Vec::new();
        for (group, users) in file.users.iter().enumerate() {
            let made = users.make(rng, &case, &names);
            groups.resize(groups.len() + made.len(), group);
            case.users.extend(made);
        }
        let wrongs = case.wrongs().into_iter();
        problems.extend(wrongs.map(|(key, message)| self.text.problem(&key_of_file(&key, &groups), message)));
        problems.extend(self.wrong_names(&case));
        if problems.is_empty() {
            Ok(case)
        } else {
            Err(ConfigError::Problems(problems))
        }
    }

    /// The regions that stand for the names of the file.
    fn names(&self, regions: &Regions) -> BTreeMap<String, String> {
        let named = &self.file.regions;
        let mut free = regions.ids().filter(|id| !named.iter().any(|name| name == id));
        let mut names = BTreeMap::new();
        for name in named {
            if regions.region(name).is_some() {
                names.insert(name.clone(), name.clone());
            } else if let Some(other) = free.next() {
                names.insert(name.clone(), other.to_owned());
            }
        }
        names
    }

    fn wrong_users(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (at, users) in self.file.users.iter().enumerate() {
            let key = |name: &str| format!("users.{at}.{name}");
            if users.count.is_some_and(|count| count > 2000) {
                problems.push(self.text.problem(&key("count"), "expected at most 2000"));
            }
            if users.devices.is_some_and(|devices| devices > 100) {
                problems.push(self.text.problem(&key("devices"), "expected at most 100"));
            }
            if users.late && users.arrives.is_some() {
                let text = "a user who comes `late` comes when all is healed: name one of both";
                problems.push(self.text.problem(&key("arrives"), text));
            }
        }
        if self.file.nodes.edges.is_some_and(|edges| edges > 32) {
            problems.push(self.text.problem("nodes.edges", "expected at most 32"));
        }
        for (at, clock) in self.file.clock.iter().enumerate() {
            if clock.offset_ms.unsigned_abs() > MAX_CLOCK_MS {
                let text = format!("expected at most {MAX_CLOCK_MS}, twenty years, either way");
                problems.push(self.text.problem(&format!("clock.{at}.offset_ms"), text));
            }
            if clock.drift_ppm.unsigned_abs() > MAX_DRIFT_PPM {
                let text = format!("expected at most {MAX_DRIFT_PPM} either way");
                problems.push(self.text.problem(&format!("clock.{at}.drift_ppm"), text));
            }
        }
        for (at, fault) in self.file.fault.iter().enumerate() {
            let everywhere = |place: &&String| SPECIAL.contains(&place.as_str());
            if fault.kind == Kind::Lose && fault.on.iter().any(|place| everywhere(&place)) {
                let text = "no region would be left; name the regions that are lost";
                problems.push(self.text.problem(&format!("fault.{at}.on"), text));
            }
        }
        problems
    }

    /// Places must name a region of the file or of the folder, and a part that regions have: a slip must not be a fault
    /// without effect.
    fn wrong_places(&self, regions: &Regions) -> Vec<Problem> {
        let mut problems = Vec::new();
        let names = self.names(regions);
        let of_region = |name: &str| {
            self.file.regions.iter().any(|named| named == name) || regions.region(name).is_some()
        };
        let node_there = |region: &str, node: &str| {
            let region = names.get(region).map_or(region, String::as_str);
            // A name of the file that no region stands for has no nodes: those of any region are no slips.
            let mut there = regions
                .iter()
                .filter(|file| regions.region(region).is_none() || file.id == region);
            there.any(|file| {
                self.file
                    .nodes
                    .of(file)
                    .iter()
                    .any(|plan| plan.name.as_str() == node)
            })
        };
        let known = |place: &str, whole: bool| match place.split_once('/') {
            None if whole => of_region(place),
            None => SPECIAL.contains(&place) || of_region(place),
            Some(_) if whole => false,
            Some((region, part)) => of_region(region) && (is_part(part) || node_there(region, part)),
        };
        let mut check = |key: String, place: &str, whole: bool| {
            if !known(place, whole) {
                let all: Vec<&str> = regions.ids().collect();
                let message = format!(
                    "{place:?} is no place here; expected a region (of `regions` in this file, or {}){}",
                    all.join(", "),
                    match whole {
                        true => "",
                        false => {
                            ", REGION/core, REGION/edges, REGION/edge-2, REGION/NODE, all, cores or edges"
                        }
                    }
                );
                problems.push(self.text.problem(&key, message));
            }
        };
        for (at, fault) in self.file.fault.iter().enumerate() {
            for (name, places) in [("on", &fault.on), ("from", &fault.from), ("to", &fault.to)] {
                for place in places {
                    check(format!("fault.{at}.{name}"), place, false);
                }
            }
        }
        for (at, clock) in self.file.clock.iter().enumerate() {
            for place in &clock.on {
                check(format!("clock.{at}.on"), place, false);
            }
        }
        for (at, users) in self.file.users.iter().enumerate() {
            for region in users.region.iter() {
                check(format!("users.{at}.region"), region, true);
            }
            for region in &users.device_regions {
                check(format!("users.{at}.device_regions"), region, true);
            }
        }
        problems
    }

    fn wrong_names(&self, case: &Case) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |key: String, name: &str, what: &str| {
            let groups: Vec<&str> = self.file.users.iter().map(|users| users.name.as_str()).collect();
            let message = format!("{name:?} is no {what} here; the users are {}", groups.join(", "));
            problems.push(self.text.problem(&key, message));
        };
        for (at, fault) in self.file.fault.iter().enumerate() {
            for name in &fault.devices {
                if case.devices_named(name).is_empty() {
                    wrong(format!("fault.{at}.devices"), name, "device");
                }
            }
        }
        for (at, act) in self.file.act.iter().enumerate() {
            let devices = act.copies.iter().map(|name| ("copies", name));
            for (key, name) in [("device", &act.device)].into_iter().chain(devices) {
                if case.devices_named(name).is_empty() {
                    wrong(format!("act.{at}.{key}"), name, "device");
                }
            }
            let twin = act.twin.iter().map(|name| ("twin", name));
            for (key, name) in act.to.iter().map(|name| ("to", name)).chain(twin) {
                if case.users_named(name).is_empty() {
                    wrong(format!("act.{at}.{key}"), name, "user");
                }
            }
        }
        problems
    }
}

impl Nodes {
    fn of(&self, region: &RegionFile) -> Vec<NodePlan> {
        let id = region_id(region);
        let plan = |name: &str, core, edge| NodePlan {
            region: id.clone(),
            name: NodeName::new(name).expect("names of region files are checked"),
            core,
            edge,
            partitions: self.partitions.unwrap_or(1),
            clock_ms: 0,
            drift_ppm: 0,
        };
        match (self.cores, self.edges) {
            (Some(_), _) | (_, Some(_)) => {
                let (cores, edges) = (self.cores.unwrap_or(1), self.edges.unwrap_or(2));
                let cores = (1..=cores).map(|at| plan(&format!("core-{at}"), true, edges == 0));
                let others = (1..=edges).map(|at| plan(&format!("edge-{at}"), false, true));
                cores.chain(others).collect()
            }
            (None, None) => {
                let alone = region.edges().count() == 0;
                let nodes = region.nodes.iter();
                nodes
                    .map(|node| {
                        let core = node.has(Role::Core);
                        plan(&node.name, core, node.has(Role::Edge) || alone)
                    })
                    .collect()
            }
        }
    }
}

impl Users {
    fn make(&self, rng: &mut SimRng, case: &Case, names: &BTreeMap<String, String>) -> Vec<UserPlan> {
        let region = |name: &String| {
            let name = substitute(name, names);
            let found = case.places.iter().find(|place| place.id.as_str() == name);
            found.map(|place| place.id.clone())
        };
        let already = case.users.len();
        let home = self.region.as_ref().and_then(region);
        let devices = self.devices.unwrap_or(1).max(self.device_regions.len() as u32);
        let mut users = Vec::new();
        for at in 0..self.count.unwrap_or(1) {
            let spread = |at: usize| case.places[at % case.places.len()].id.clone();
            let home = home.clone().unwrap_or_else(|| spread(already + at as usize));
            let mut planned = Vec::new();
            for device in 0..devices as usize {
                let begins = self.arrives.unwrap_or(SECOND / 10);
                let arrives = begins + rng.below(self.spread.unwrap_or(SECOND / 2) + 1);
                planned.push(DevicePlan {
                    arrives: (!self.late).then_some(arrives),
                    home: self.device_regions.get(device).and_then(region),
                    watches: self.watches.clone(),
                    stays: false,
                    enters: None,
                });
            }
            users.push(UserPlan {
                name: match self.count {
                    Some(_) => format!("{}-{}", self.name, at + 1),
                    None => self.name.clone(),
                },
                home,
                devices: planned,
            });
        }
        users
    }
}

fn place(region: &RegionFile) -> Place {
    Place {
        id: region_id(region),
        latitude: region.place.latitude,
        longitude: region.place.longitude,
    }
}

fn region_id(region: &RegionFile) -> RegionId {
    RegionId::new(&region.id).expect("names of region files are checked")
}

/// A place with the region that stands for the one it names.
fn substitute(place: &str, names: &BTreeMap<String, String>) -> String {
    let (region, part) = match place.split_once('/') {
        Some((region, part)) => (region, Some(part)),
        None => (place, None),
    };
    let region = names.get(region).map_or(region, String::as_str);
    match part {
        Some(part) => format!("{region}/{part}"),
        None => region.to_owned(),
    }
}

fn renamed(fault: &Fault, names: &BTreeMap<String, String>) -> Fault {
    let mut fault = fault.clone();
    for places in [&mut fault.on, &mut fault.from, &mut fault.to] {
        for place in places {
            *place = substitute(place, names);
        }
    }
    fault
}

/// Whether it is a part that a region may have, many or few as its nodes are.
fn is_part(part: &str) -> bool {
    let nth = part.strip_prefix("edge-").and_then(|nth| nth.parse::<u32>().ok());
    ["all", "core", "cores", "edges"].contains(&part) || nth.is_some_and(|nth| nth > 0)
}

/// The key of a scenario's file that a key of its case comes from. Each user is of one of the file's `groups`.
fn key_of_file(key: &str, groups: &[usize]) -> String {
    let mut parts = key.splitn(3, '.');
    let (first, index, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    match first {
        "user" => {
            let user = index.and_then(|index| index.parse::<usize>().ok());
            let Some(group) = user.and_then(|user| groups.get(user)) else {
                return "users".to_owned();
            };
            match rest {
                Some("home") => format!("users.{group}.region"),
                Some(rest) if rest.ends_with("watches") => format!("users.{group}.watches"),
                Some(rest) => format!("users.{group}.{rest}"),
                None => format!("users.{group}"),
            }
        }
        "node" if matches!(rest, Some("clock_ms" | "drift_ppm")) => "clock".to_owned(),
        "node" if rest == Some("partitions") => "nodes.partitions".to_owned(),
        "node" | "region" => "nodes".to_owned(),
        _ => key.to_owned(),
    }
}

/// The kinds of faults, for messages and the documentation.
pub fn kinds() -> String {
    let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    names.join(", ")
}
