//! A drill in the simulator: the drill's own clients and load, in its scenario's regions, under virtual time.
//!
//! The clients are those of a drill with real processes ([`Crew`](super::crew::Crew)): as many that prefer each region, and one
//! more in each that stays there; they send and watch in the same way, and the library behaves as it does by default. Of the
//! scenario the regions, faults and limits are used, not its users and what they send.

use anyhow::{bail, ensure};

use super::log::{Client, Entry, Micros, Shown, Stream, What};
use super::measure::FaultSpan;
use super::plan::Drill;
use super::run::describe;
use super::target::{LagSeen, repaired};
use crate::core::ids::RegionId;
use crate::core::limits::CoreLimits;
use crate::server::config::Timeouts;
use crate::server::regions::Regions;
use crate::sim::case::{Act, Case, Clients, DevicePlan, MILLI, SECOND, StoreModel, UserPlan};
use crate::sim::fault::Fault;
use crate::sim::rng::SimRng;
use crate::sim::witness::{self, Noted};
use crate::sim::{self, Defect, Options, draw};

/// Nodes have so long before the first client comes.
const NODES_FIRST: Micros = 3 * SECOND;
/// Clients begin to connect within this.
const ARRIVALS: Micros = SECOND / 2;
/// From the first client that connects to the load, from which on the times of faults count.
pub const LEAD: Micros = 4 * SECOND;
/// Bytes of each message beyond its number: as much as with real processes.
const PADDING: u32 = 92;
/// Messages of a drill: more are a mistake.
const MAX_MESSAGES: u64 = 500_000;

/// What a drill in the simulator leaves.
#[derive(Debug)]
pub struct Done {
    /// Who took part.
    pub clients: Vec<Client>,
    /// What they saw.
    pub log: Vec<Entry>,
    /// The faults, in the order of their times.
    pub faults: Vec<FaultSpan>,
    /// What nodes would have said: shown, never judged.
    pub observed: Vec<(String, String)>,
    /// What became of the run.
    pub run: sim::Report,
}

impl Done {
    /// What the simulator's checkers found, if they found something.
    pub fn found(&self) -> Option<String> {
        let found = self.run.violation.as_ref()?;
        let at = found.at as f64 / 1e6 - NODES_FIRST as f64 / 1e6;
        Some(format!(
            "the simulator found at {at:.3} s, where the run ends, that a promise is broken: {}: {}",
            found.invariant, found.detail
        ))
    }
}

/// Runs a drill under a seed, with a deliberate defect if one is named.
///
/// # Errors
/// What keeps it from beginning.
pub fn run(drill: &Drill, regions: &Regions, seed: u64, defect: Option<Defect>) -> anyhow::Result<Done> {
    let (clients, case) = case(drill, regions, seed)?;
    let options = Options {
        defect,
        witness: true,
        ..Options::default()
    };
    let mut run = sim::case_with_story(case, options);
    let until = drill.terms.settle;
    let notes = std::mem::take(&mut run.notes);
    let log = log(&notes, &run.case, until);
    let faults = spans(&run.case);
    let observed = observed(&notes, &run.stats);
    Ok(Done {
        clients,
        log,
        faults,
        observed,
        run,
    })
}

fn observed(notes: &[Noted], stats: &sim::Stats) -> Vec<(String, String)> {
    let lag = |noted: &Noted| match noted.what {
        witness::What::Begins {
            fault,
            operations,
            oldest_ms,
        } => {
            let lag = LagSeen {
                operations,
                oldest_ms,
            };
            Some(LagSeen::observed(Some(lag), fault))
        }
        _ => None,
    };
    let mut observed: Vec<_> = notes.iter().filter_map(lag).collect();
    observed.push(repaired(stats.presence_repair_bytes, ""));
    observed
}

/// The drill's clients, and the case that they are in.
///
/// # Errors
/// What is wrong with the drill in these regions.
pub fn case(drill: &Drill, regions: &Regions, seed: u64) -> anyhow::Result<(Vec<Client>, Case)> {
    let mut case = drill.scenario.case(regions, seed)?;
    let mut rng = SimRng::stream(seed, draw::DRILL);
    let clients = clients(&case, drill.terms.clients);
    let begins = NODES_FIRST + LEAD;
    case.clients = Clients::AsShipped;
    if case.limits == CoreLimits::default() {
        // The default of a server, which knows of other regions.
        let fallback = Timeouts::default().fallback.as_millis();
        case.limits.fallback_ms = u64::try_from(fallback).unwrap_or(u64::MAX);
    }
    if case.store == StoreModel::default() {
        // A drill has the faults of its plan, and no others.
        case.store.stalls = 0;
    }
    let in_region = drill.terms.clients + 1;
    case.users = (0..in_region)
        .cycle()
        .zip(&clients)
        .map(|(enters, client)| user(client, enters, &clients, &mut rng))
        .collect::<Result<_, _>>()?;
    let (every, work) = (drill.terms.every.max(MILLI), case.work);
    let senders = clients.iter().filter(|client| !client.pinned).count() as u64;
    let messages = senders.saturating_mul(work / every);
    ensure!(
        messages <= MAX_MESSAGES,
        "{}: {messages} messages: expected at most {MAX_MESSAGES} (`work`, `clients` and `every` say how many)",
        drill.scenario.name
    );
    case.workload.clear();
    case.acts = load(&clients, every, work, &mut rng);
    for act in &mut case.acts {
        act.at += begins;
    }
    for fault in &mut case.faults {
        fault.at += begins;
        if let Some(name) = fault
            .devices
            .iter()
            .find(|name| case.users.iter().all(|user| user.name != **name))
        {
            let first = clients.first().map(|client| client.name.as_str());
            bail!(
                "{}: the fault {} is for {name}, which is no client of the drill: expected such as {}",
                drill.scenario.name,
                fault.words(),
                first.unwrap_or_default()
            );
        }
    }
    case.work = work + begins;
    if let Some((key, message)) = case.wrongs().first() {
        bail!("{}: {key}: {message}", drill.scenario.name);
    }
    Ok((clients, case))
}

/// So many that prefer each region, and one in each that stays there.
fn clients(case: &Case, count: u32) -> Vec<Client> {
    let homes = case.places.iter().map(|place| place.id.to_string());
    let of_region = |home: String| {
        (0..=count).map(move |n| Client {
            name: match n == count {
                true => format!("{home}-stays"),
                false => format!("{home}-{n}"),
            },
            home: home.clone(),
            pinned: n == count,
        })
    };
    homes.flat_map(of_region).collect()
}

fn user(client: &Client, enters: u32, all: &[Client], rng: &mut SimRng) -> anyhow::Result<UserPlan> {
    let pinned = all.iter().filter(|other| other.pinned && client.pinned);
    let others = pinned.filter(|other| other.name != client.name);
    let device = DevicePlan {
        arrives: Some(NODES_FIRST + rng.below(ARRIVALS)),
        home: None,
        watches: Some(others.map(|other| other.name.clone()).collect()),
        stays: client.pinned,
        enters: Some(enters),
    };
    Ok(UserPlan {
        name: client.name.clone(),
        home: RegionId::new(&client.home)?,
        devices: vec![device],
    })
}

/// Each that is not pinned sends to the next ones by turns, a message each `every`.
fn load(clients: &[Client], every: Micros, work: Micros, rng: &mut SimRng) -> Vec<Act> {
    let movable: Vec<&Client> = clients.iter().filter(|client| !client.pinned).collect();
    let count = movable.len();
    let mut acts = Vec::new();
    if count < 2 {
        return acts;
    }
    for (turn, from) in movable.iter().enumerate() {
        let first = every * turn as Micros / count as Micros + rng.below(every / count as Micros + 1);
        let times = (0..).map(|n| first + n * every).take_while(|at| *at < work);
        for (step, at) in times.enumerate() {
            let to = movable[(turn + 1 + step % (count - 1)) % count];
            acts.push(Act {
                at,
                device: format!("{}/device-0", from.name),
                to: Some(to.name.clone()),
                bytes: PADDING,
                copies: Vec::new(),
                twin: None,
                status: None,
                ttl: None,
            });
        }
    }
    acts.sort_by_key(|act| act.at);
    acts
}

/// The notes of a run as a drill's log, which ends so long after the load at the latest.
fn log(notes: &[Noted], case: &Case, settle: Micros) -> Vec<Entry> {
    let load_ends = notes.iter().find(|noted| noted.what == witness::What::LoadEnds);
    let until = load_ends.map_or(Micros::MAX, |noted| noted.at.saturating_add(settle));
    let within = notes.iter().take_while(|noted| noted.at <= until);
    within
        .map(|noted| Entry {
            at: noted.at.saturating_sub(NODES_FIRST),
            what: what(&noted.what, case),
        })
        .collect()
}

/// Each user has one device: their numbers are those of the drill's clients.
fn what(noted: &witness::What, case: &Case) -> What {
    use witness::What as Saw;
    match noted.clone() {
        Saw::Connected { device, region, node } => What::Connected {
            client: device,
            region,
            node,
        },
        Saw::Disconnected { device, why } => What::Disconnected { client: device, why },
        Saw::Sent { number, from, to } => What::Sent { number, from, to },
        Saw::Accepted {
            number,
            geo,
            duplicate,
        } => What::Accepted {
            number,
            geo,
            duplicate,
        },
        Saw::Rejected { number, why } => What::Rejected { number, why },
        Saw::Handled {
            number,
            device,
            session,
            origin,
        } => What::Handled {
            number,
            client: device,
            stream: Some(Stream { session, origin }),
        },
        Saw::Gone { device, count } => What::Gone {
            client: device,
            count,
        },
        Saw::Shown {
            device,
            user,
            devices,
            unreachable,
        } => What::Shown {
            watcher: device,
            client: user,
            status: match (unreachable, devices) {
                (true, _) => Shown::Unreachable,
                (false, 0) => Shown::Offline,
                (false, _) => Shown::Online,
            },
        },
        Saw::Begins { fault, .. } => What::Begins {
            fault,
            text: case.faults.get(fault).map(describe).unwrap_or_default(),
        },
        Saw::Ends { fault } => What::Ends { fault },
        Saw::LoadEnds => What::LoadEnds,
    }
}

/// The faults with the regions whose clients they are measured by: of a way that is cut or slow those at its beginning.
fn spans(case: &Case) -> Vec<FaultSpan> {
    let struck = |fault: &Fault| {
        let places = fault.on.iter().chain(&fault.from);
        let regions = places.flat_map(|place| case.regions_at(place));
        let mut regions: Vec<String> = regions.map(|region| case.places[region].id.to_string()).collect();
        regions.sort();
        regions.dedup();
        regions
    };
    let faults = case.faults.iter().enumerate();
    faults
        .map(|(n, fault)| FaultSpan {
            fault: n,
            struck: struck(fault),
            text: describe(fault),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::drill::plan;

    /// The built-in regions: those of every shipped drill.
    fn simulated(name: &str, seed: u64, defect: Option<Defect>) -> Done {
        run(&plan::find(name).unwrap(), &Regions::built_in(), seed, defect).unwrap()
    }

    #[test]
    fn the_clients_are_those_of_real_processes_and_the_pinned_ones_stay() {
        let done = simulated("region-lost", 1, None);
        assert_eq!(done.found(), None);
        let names: Vec<&str> = done.clients.iter().map(|client| client.name.as_str()).collect();
        assert_eq!(names.len(), 15);
        assert!(
            names.contains(&"eu-west-0") && names.contains(&"eu-west-3") && names.contains(&"eu-west-stays")
        );
        let (mut away, mut watch, mut send) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in &done.log {
            match &entry.what {
                What::Connected { client, region, .. } if *region != done.clients[*client].home => {
                    away.insert(*client);
                }
                What::Shown { watcher, client, .. } => {
                    watch.insert(*watcher);
                    assert_ne!(watcher, client);
                }
                What::Sent { from, to, .. } => {
                    send.insert(*from);
                    assert_ne!(from, to);
                }
                _ => {}
            }
        }
        let pinned = |of: bool| -> BTreeSet<usize> {
            let all = done.clients.iter().enumerate();
            all.filter(|(_, client)| client.pinned == of)
                .map(|(n, _)| n)
                .collect()
        };
        assert!(!away.is_empty() && away.is_disjoint(&pinned(true)), "{away:?}");
        assert_eq!(watch, pinned(true));
        assert_eq!(send, pinned(false));
    }

    #[test]
    fn the_load_begins_when_all_have_their_sessions_and_faults_count_from_there() {
        for drill in plan::shipped().unwrap() {
            let done = run(&drill, &Regions::built_in(), 3, None).unwrap();
            let name = &drill.scenario.name;
            assert!(done.log.is_sorted_by_key(|entry| entry.at), "{name}");
            let mut there = BTreeSet::new();
            for entry in &done.log {
                match &entry.what {
                    What::Connected { client, .. } => _ = there.insert(*client),
                    What::Sent { .. } => {
                        assert!(entry.at >= LEAD, "{name}");
                        break;
                    }
                    _ => {}
                }
            }
            assert_eq!(there.len(), done.clients.len(), "{name}");
            let begins = |fault: usize| {
                let begins =
                    |entry: &&Entry| matches!(entry.what, What::Begins { fault: n, .. } if n == fault);
                done.log.iter().find(begins).map(|entry| entry.at)
            };
            for (n, fault) in drill.scenario.faults().iter().enumerate() {
                assert_eq!(begins(n), Some(fault.at + LEAD), "{name}");
            }
            assert!(done.faults.iter().all(|fault| !fault.struck.is_empty()), "{name}");
        }
    }

    #[test]
    fn a_seed_is_a_run_and_others_are_others() {
        let [once, again, other] = [1, 1, 2].map(|seed| simulated("edge-crash", seed, None));
        assert_eq!((once.run.hash, &once.log), (again.run.hash, &again.log));
        assert_ne!(once.log, other.log);
        // Whether somebody notes it, or not.
        let (_, case) = case(&plan::find("edge-crash").unwrap(), &Regions::built_in(), 1).unwrap();
        assert_eq!(sim::run_case(case, Options::default()).hash, once.run.hash);
    }

    /// What clients see of a defect, and what the checkers do.
    #[test]
    fn a_defect_is_found() {
        for defect in [Defect::DeliverLost, Defect::DedupOff, Defect::DepositLost] {
            // Whether a run gives a defect its chance is up to its seed.
            let found = (1..=10).find_map(|seed| {
                let done = simulated("edge-crash", seed, Some(defect));
                Some((seed, done.found()?))
            });
            println!("{defect:?}: {found:?}");
            assert!(found.is_some(), "{defect:?}");
        }
    }

    #[test]
    fn a_fault_of_devices_must_name_clients_of_the_drill() {
        let text = "title = \"t\"\nregions = [\"us-east\"]\nwork = \"5s\"\n[[users]]\nname = \"user\"\n[[fault]]\nat = \"1s\"\nkind = \
                    \"disconnect\"\ndevices = [\"user\"]\n[drill]\nhypothesis = \"h\"\n";
        let text = crate::server::config::TomlText::new("mine.toml", text.to_owned()).unwrap();
        let error = run(&Drill::parse(text).unwrap(), &Regions::built_in(), 1, None).unwrap_err();
        assert!(error.to_string().contains("expected such as"), "{error}");
    }
}
