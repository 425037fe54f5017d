//! What a seed draws: a whole case for the swarm, and the faults and acts that a case leaves to chance.
//!
//! Each seed draws its own mixture (swarm testing: Groce et al., 2012): most have few kinds of faults, so that the rare
//! combinations get their turn undisturbed.

use std::collections::BTreeMap;

use super::case::{
    Accepts, Act, Case, Clients, DevicePlan, EngineKind, Expect, InboxLimits, MILLI, Membership, Network,
    NodePlan, Place, Random, Refused, SECOND, StoreModel, UserPlan, Workload,
};
use super::fault::{Fault, Kind};
use super::faults::keeps;
use super::rng::SimRng;
use super::trace::Micros;
use crate::core::ids::{NodeName, RegionId};
use crate::core::limits::CoreLimits;
use crate::core::wire::Status;

/// Regions of the swarm: name, degrees north, degrees east.
const REGIONS: [(&str, f64, f64); 5] = [
    ("us-east", 38.9, -77.0),
    ("eu-west", 53.3, -6.3),
    ("ap-south", 19.1, 72.9),
    ("sa-east", -23.5, -46.6),
    ("ap-southeast", -33.9, 151.2),
];

/// Streams of a seed, so that one kind of draw does not move another.
pub(super) const CASE: u64 = 1;
const FAULTS: u64 = 2;
const ACTS: u64 = 3;
const ACCEPTS: u64 = 4;
const EXPIRY: u64 = 5;
const LIVES: u64 = 6;
const HOLDERS: u64 = 7;
const FALLBACK: u64 = 8;
const PACE: u64 = 9;
/// The stream of what a drill adds to its scenario.
pub const DRILL: u64 = 10;
/// The stream of what a run leaves to chance in small.
pub(super) const RUN: u64 = 0;

/// First faults come when most nodes and some devices are there.
const FIRST_FAULT: Micros = 2 * SECOND;
/// How long some seeds work.
const LONG_WORK: Micros = 60 * SECOND;
/// Of which the last part is calm: longer than noticing a fault and getting over it may take.
const CALM_WORK: Micros = 35 * SECOND;
/// An id may lie so far in the future (R16).
const FAR_MS: u64 = 3_600_000;
/// Longest padding of a body in the swarm; few are that long.
const LONG_BODY: u32 = 3000;

/// The case of a seed.
pub fn draw(seed: u64) -> Case {
    let rng = &mut SimRng::stream(seed, CASE);
    let regions = [1, 2, 2, 2, 2, 3, 3, 3, 4, 5][rng.index(10)];
    let places: Vec<Place> = REGIONS[..regions]
        .iter()
        .map(|(name, latitude, longitude)| Place {
            id: RegionId::new(name).expect("a plain name is valid"),
            latitude: *latitude,
            longitude: *longitude,
        })
        .collect();
    let random = match rng.below(8) {
        0 => None,
        1..=4 => Some(rng.between(2, 6) * SECOND),
        _ => Some(rng.between(500, 2000) * MILLI),
    };
    // A tenth works on for a while after its last fault, so that watchers are looked at in a calm world.
    let long = rng.chance(100);
    let work = match long {
        true => LONG_WORK,
        false => rng.between(5, 15) * SECOND,
    };
    let engine = match rng.below(10) {
        0..=3 => EngineKind::Embedded,
        4..=7 => EngineKind::Memory,
        _ => EngineKind::Shared,
    };
    let inbox = draw_inbox(rng);
    let small = inbox != InboxLimits::default();
    let mut case = Case {
        name: String::new(),
        seed,
        work,
        engine,
        accepts: draw_accepts(seed, regions),
        clients: Clients::default(),
        shards: [1, 2, 4, 8][rng.index(4)],
        shard_seed: rng.bits() >> 1,
        nodes: draw_nodes(rng, &places, engine),
        users: draw_users(rng, &places),
        limits: draw_limits(rng),
        inbox,
        network: Network {
            delay_percent: [20, 100, 100, 100, 300][rng.index(5)],
            jitter: [0, 1, 5, 30][rng.index(4)] * MILLI,
            loss: [0, 0, 10, 50][rng.index(4)],
            bandwidth: [0, 0, 0, 20_000_000, 500_000][rng.index(5)],
            idle: rng.between(2, 6) * SECOND,
        },
        membership: draw_membership(rng),
        store: StoreModel {
            latency: [1, 4, 15, 80][rng.index(4)] * MILLI,
            errors: [0, 0, 5, 30][rng.index(4)],
            stalls: [0, 3, 3, 20][rng.index(4)],
            ..StoreModel::default()
        },
        workload: vec![Workload {
            every: [5, 20, 50, 150][rng.index(4)] * MILLI,
            count: rng.between(20, 400),
            copies: [0, 0, 50][rng.index(3)],
            twins: [0, 0, 0, 30][rng.index(4)],
            ..Workload::default()
        }],
        random: random.map(|every| Random {
            every,
            until: long.then_some(LONG_WORK - CALM_WORK),
            weights: draw_weights(rng),
        }),
        faults: Vec::new(),
        acts: Vec::new(),
        later: Vec::new(),
        expect: Expect {
            // Inboxes that are small are full where somebody does not handle what comes.
            may_refuse: if small {
                vec![Refused::InboxFull]
            } else {
                Vec::new()
            },
            ..Expect::default()
        },
        places,
    };
    draw_expiry(seed, &mut case);
    draw_holders(&mut case);
    draw_fallback(&mut case);
    draw_pace(&mut case);
    case
}

/// In some cases messages expire, in some devices do, within the run, from numbers of its own: where clocks are right, with a margin of what they may
/// still be off. Where they are not, the margin is the product's, so that nothing expires here.
fn draw_expiry(seed: u64, case: &mut Case) {
    let rng = &mut SimRng::stream(seed, EXPIRY);
    let wrong = case
        .nodes
        .iter()
        .any(|node| (node.clock_ms, node.drift_ppm) != (0, 0));
    let jumps = case
        .random
        .iter()
        .any(|random| random.weights.contains_key(&Kind::Clock));
    if wrong || jumps {
        return;
    }
    case.limits.expiry_margin_ms = rng.between(500, 2_000);
    if rng.chance(400) {
        for workload in &mut case.workload {
            workload.expiring = [100, 500][rng.index(2)];
            workload.ttl = rng.between(200, 8_000) * MILLI;
        }
    }
    if rng.chance(250) {
        case.limits.device_expiry_ms = rng.between(3_000, 9_000);
    }
}

/// From numbers of its own, so that a seed draws the rest as it did before there was a choice.
fn draw_accepts(seed: u64, regions: usize) -> Accepts {
    let mut rng = SimRng::stream(seed, ACCEPTS);
    match rng.below(6) {
        0 if regions > 1 => Accepts::Geo,
        1 if regions > 1 => Accepts::GeoOrRegion,
        _ => Accepts::Region,
    }
}

/// Some cases have regions that come and go, and holders that may not be away for long.
fn draw_holders(case: &mut Case) {
    let rng = &mut SimRng::stream(case.seed, HOLDERS);
    if rng.chance(150) {
        case.store.absent_log_bytes = u64::from(case.shards) * rng.between(1, 20) * 1024;
        case.limits.absent_ms = rng.between(1_000, 4_000);
    }
    let last = case.places.len() - 1;
    if last == 0 || case.engine == EngineKind::Shared {
        return;
    }
    // One region alone would accept nothing.
    if last == 1 && case.accepts != Accepts::Region {
        return;
    }
    let region = case.places[last].id.clone();
    let at = rng.between(2_500, 6_000) * MILLI;
    match rng.below(12) {
        0 => {
            case.later.push(region.clone());
            case.faults
                .push(Fault::new(at, Kind::RegionAdd).on(region.to_string()));
        }
        1 => {
            let back = at + rng.between(500, 6_000) * MILLI;
            case.faults
                .push(Fault::new(at, Kind::RegionRemove).on(region.to_string()));
            case.faults
                .push(Fault::new(back, Kind::RegionAdd).on(region.to_string()));
        }
        2 if last > 1 => {
            case.faults
                .push(Fault::new(at, Kind::RegionRemove).on(region.to_string()));
        }
        // Cut off, it does not hear of it before it is heard of again.
        3 if last > 1 => {
            let cut = Fault::new(at - SECOND, Kind::Cut).lasting(rng.between(0, 4_000) * MILLI);
            let others = case.places[..last].iter().map(|place| place.id.to_string());
            case.faults.push(Fault {
                from: vec![region.to_string()],
                to: others.collect(),
                ..cut
            });
            case.faults
                .push(Fault::new(at, Kind::RegionForceOut).on(region.to_string()));
        }
        4 if last > 1 => {
            let rivals = [case.places[last - 1].id.clone(), region];
            let mut fault = Fault::new(at, Kind::RegionRivals);
            fault.on = rivals.iter().map(ToString::to_string).collect();
            case.faults.push(fault);
        }
        _ => {}
    }
}

/// In some cases edges are served by another region while their own does not.
fn draw_fallback(case: &mut Case) {
    let rng = &mut SimRng::stream(case.seed, FALLBACK);
    let edge = case.nodes.iter().any(|node| node.edge && !node.core);
    if edge && case.places.len() > 1 && rng.chance(300) {
        case.limits.fallback_ms = rng.between(500, 3_000);
    }
}

/// In some cases what regions lack is given at a limited rate.
fn draw_pace(case: &mut Case) {
    let rng = &mut SimRng::stream(case.seed, PACE);
    if rng.chance(250) {
        case.limits.catch_up_bytes = rng.between(2, 64) * 1024;
    }
}

/// Draws what a case leaves to chance in large: its faults and acts, in the order of their times.
pub fn expand(case: &mut Case) {
    if let Some(random) = case.random.take() {
        let mut rng = SimRng::stream(case.seed, FAULTS);
        let drawn = draw_faults(&mut rng, case, &random);
        // Clients take the time from their edge: ids that a clock far ahead made are refused by those who know better.
        let far = |fault: &Fault| fault.step_ms.is_some_and(|step| step.unsigned_abs() > FAR_MS);
        if drawn.iter().any(far) {
            case.expect.may_refuse.push(Refused::IdInFuture);
        }
        case.faults.extend(drawn);
    }
    let mut rng = SimRng::stream(case.seed, ACTS);
    let mut lives = SimRng::stream(case.seed, LIVES);
    for workload in std::mem::take(&mut case.workload) {
        let mut drawn = draw_acts(&mut rng, case, &workload);
        draw_lives(&mut lives, &workload, &mut drawn);
        case.acts.extend(drawn);
    }
    case.faults.sort_by_key(|fault| fault.at);
    case.acts.sort_by_key(|act| act.at);
}

fn draw_nodes(rng: &mut SimRng, places: &[Place], engine: EngineKind) -> Vec<NodePlan> {
    let skewed = rng.chance(300);
    let mut nodes = Vec::new();
    for place in places {
        let edges = rng.below(3) as usize;
        let core_is_edge = edges == 0 || rng.chance(300);
        let cores = match engine {
            EngineKind::Shared => rng.between(1, 3) as usize,
            _ => 1,
        };
        for at in 0..cores + edges {
            let name = match at.checked_sub(cores) {
                None => format!("core-{}", at + 1),
                Some(edge) => format!("edge-{}", edge + 1),
            };
            let clock_ms = match (skewed, rng.below(8)) {
                (false, _) => 0,
                (true, 0) => rng.between(0, 120_000) as i64,
                (true, 1) => -(rng.between(0, 120_000) as i64),
                (true, _) => rng.between(0, 400) as i64 - 200,
            };
            nodes.push(NodePlan {
                region: place.id.clone(),
                name: NodeName::new(&name).expect("a plain name is valid"),
                core: at < cores,
                edge: at >= cores || core_is_edge,
                partitions: 1 + rng.below(2) as u8,
                clock_ms,
                drift_ppm: if skewed {
                    rng.between(0, 2000) as i32 - 1000
                } else {
                    0
                },
            });
        }
    }
    nodes
}

fn draw_users(rng: &mut SimRng, places: &[Place]) -> Vec<UserPlan> {
    (0..rng.between(2, 10))
        .map(|at| {
            let devices = match rng.below(20) {
                0 => 0,
                1..=12 => 1,
                13..=17 => 2,
                _ => 3,
            };
            UserPlan {
                name: format!("user-{at}"),
                home: places[rng.index(places.len())].id.clone(),
                devices: (0..devices).map(|_| draw_device(rng, places)).collect(),
            }
        })
        .collect()
}

fn draw_device(rng: &mut SimRng, places: &[Place]) -> DevicePlan {
    let arrives = match rng.below(10) {
        0 => None,
        1 | 2 => Some(rng.between(3, 12) * SECOND),
        _ => Some(rng.between(100, 2500) * MILLI),
    };
    let elsewhere = rng.chance(200);
    DevicePlan {
        arrives,
        home: elsewhere.then(|| places[rng.index(places.len())].id.clone()),
        watches: None,
        stays: false,
        enters: None,
    }
}

/// Half of the seeds have the product's limits; the others tiny ones, so that each limit is met.
fn draw_limits(rng: &mut SimRng) -> CoreLimits {
    let defaults = CoreLimits::default();
    if rng.chance(500) {
        return defaults;
    }
    let limits = CoreLimits {
        sends_in_flight: rng.between(2, 16) as u32,
        lane_deposits: rng.between(2, 32) as usize,
        owner_deposits: rng.between(4, 64) as usize,
        window_messages: rng.between(1, 8) as usize,
        window_bytes: rng.between(1, 8) as usize * 1024,
        link_bytes: rng.between(2, 32) * 1024,
        presence_batch: rng.between(1, 8) as usize,
        edge_bytes: rng.between(8, 64) as usize * 1024,
        deposit_timeout_ms: rng.between(2_000, 10_000),
        ..defaults
    };
    CoreLimits {
        // Some windows together exceed it.
        lane_bytes: 2 * limits.window_bytes,
        ..limits
    }
}

/// Most seeds have the product's inboxes; the others such that fill up while somebody does not handle what comes.
fn draw_inbox(rng: &mut SimRng) -> InboxLimits {
    let defaults = InboxLimits::default();
    match rng.below(8) {
        0 => InboxLimits {
            messages: rng.between(3, 60),
            ..defaults
        },
        1 => InboxLimits {
            bytes: rng.between(4, 64) * 1024,
            ..defaults
        },
        _ => defaults,
    }
}

/// Deaths are noticed at once, in half the grace of a session, or long after everything else.
fn draw_membership(rng: &mut SimRng) -> Membership {
    let defaults = Membership::default();
    let death_max = [300, 1000, 4000, 4000, 10_000][rng.index(5)] * MILLI;
    Membership {
        death_min: defaults.death_min.min(death_max / 4),
        death_max,
        ..defaults
    }
}

/// How often the swarm chooses each kind, where a seed has it at all.
const WEIGHTS: [(Kind, u32); 25] = [
    (Kind::Crash, 12),
    (Kind::Rolling, 2),
    (Kind::Pause, 5),
    (Kind::Lose, 1),
    (Kind::Cut, 14),
    (Kind::Flap, 3),
    (Kind::Clog, 4),
    (Kind::Break, 8),
    (Kind::Slow, 5),
    (Kind::Disconnect, 10),
    (Kind::Move, 10),
    (Kind::Forget, 4),
    (Kind::StallRead, 4),
    (Kind::StallApp, 4),
    (Kind::Leave, 8),
    (Kind::FalseDeath, 4),
    (Kind::StoreStop, 3),
    (Kind::Backup, 5),
    (Kind::Restore, 4),
    (Kind::DiskReplaced, 3),
    (Kind::StoreErrors, 2),
    (Kind::StoreSlow, 2),
    (Kind::StoreFull, 2),
    (Kind::Clock, 2),
    (Kind::Retry, 6),
];

fn draw_weights(rng: &mut SimRng) -> BTreeMap<Kind, u32> {
    let mut weights = BTreeMap::new();
    for (kind, weight) in WEIGHTS {
        // A region that is lost is not there for what comes after it.
        let share = if kind == Kind::Lose { 80 } else { 400 };
        if rng.chance(share) {
            weights.insert(kind, weight);
        }
    }
    weights
}

fn draw_faults(rng: &mut SimRng, case: &Case, random: &Random) -> Vec<Fault> {
    let total: u64 = random.weights.values().map(|weight| u64::from(*weight)).sum();
    let until = random.until.unwrap_or(case.work).min(case.work);
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = FIRST_FAULT;
    while total > 0 && at < until {
        let mut chosen = rng.below(total);
        for (kind, weight) in &random.weights {
            let weight = u64::from(*weight);
            if chosen < weight {
                faults.extend(draw_fault(rng, case, at, *kind));
                break;
            }
            chosen -= weight;
        }
        at += rng.between(random.every / 4, 2 * random.every).max(1);
    }
    if random.until.is_some() {
        for fault in &mut faults {
            let most = until - fault.at;
            fault.lasts = match fault.lasts {
                Some(lasts) => Some(lasts.min(most)),
                None => keeps(fault.kind).then_some(most),
            };
        }
    }
    // What the others of two lost regions need might be lost with them.
    let mut lost = case.faults.iter().any(|fault| fault.kind == Kind::Lose);
    faults.retain(|fault| fault.kind != Kind::Lose || !std::mem::replace(&mut lost, true));
    faults
}

/// How long something lasts: mostly short, sometimes beyond every timeout.
fn lasts(rng: &mut SimRng) -> Micros {
    if rng.chance(600) {
        rng.between(100, 2500) * MILLI
    } else {
        rng.between(2, 12) * SECOND
    }
}

/// A fault of this kind on targets that it draws; none where the case has no such targets.
fn draw_fault(rng: &mut SimRng, case: &Case, at: Micros, kind: Kind) -> Option<Fault> {
    let lasts = lasts(rng);
    let fault = Fault::new(at, kind);
    Some(match kind {
        Kind::Crash => {
            let region = a_region(rng, case);
            let fault = fault.lasting(lasts);
            match rng.below(8) {
                0 | 1 => fault.on(region),
                2 => fault.on(format!("{region}/core")).on(format!("{region}/edge-1")),
                _ => fault.on(a_node(rng, case)),
            }
        }
        Kind::Rolling => {
            let mut fault = fault.on(a_region(rng, case));
            fault.every = Some(rng.between(500, 3000) * MILLI);
            fault.lasting(rng.between(100, 1500) * MILLI)
        }
        Kind::Pause => fault.on(a_node(rng, case)).lasting(lasts),
        Kind::Lose if case.places.len() > 1 => fault.on(a_region(rng, case)),
        Kind::Lose => return None,
        Kind::Cut | Kind::Flap | Kind::Clog | Kind::Slow | Kind::PresenceLost => {
            let (from, to) = if kind == Kind::Cut && rng.chance(300) {
                two_nodes(rng, case)?
            } else {
                two_regions(rng, case)?
            };
            let mut fault = fault.between(from, to).lasting(lasts);
            fault.one_way = rng.chance(350);
            match kind {
                Kind::Cut => fault.clients = !fault.one_way && rng.chance(700),
                Kind::Flap => fault.every = Some(rng.between(200, 3000) * MILLI),
                Kind::Slow => {
                    fault.loss = Some([0, 50, 300][rng.index(3)]);
                    fault.factor = Some([1, 3, 10][rng.index(3)]);
                    fault.extra = Some(rng.between(0, 200) * MILLI);
                    fault.bandwidth = rng.chance(300).then(|| rng.between(20_000, 500_000));
                }
                _ => {}
            }
            fault
        }
        Kind::Break => {
            let (from, to) = match rng.chance(500) {
                true => two_nodes(rng, case),
                false => two_regions(rng, case),
            }?;
            fault.between(from, to)
        }
        Kind::Disconnect | Kind::Forget => fault.device(a_device(rng, case)?),
        Kind::Move => {
            let mut fault = fault.device(a_device(rng, case)?);
            fault.to.push(a_region(rng, case));
            fault.lasting(rng.between(1, 1500) * MILLI)
        }
        Kind::Retry => fault
            .device(a_device(rng, case)?)
            .lasting(rng.between(1, 5) * SECOND),
        Kind::StallRead | Kind::StallApp => fault.device(a_device(rng, case)?).lasting(lasts),
        Kind::Leave => {
            let mut fault = fault.device(a_device(rng, case)?);
            fault.told = rng.chance(500);
            fault.lasting(rng.between(100, 6000) * MILLI)
        }
        Kind::FalseDeath => {
            let (from, to) = two_nodes(rng, case)?;
            fault.between(from, to).lasting(rng.between(300, 4000) * MILLI)
        }
        Kind::StoreStop | Kind::Backup => fault.on(a_region(rng, case)),
        Kind::Restore | Kind::DiskReplaced => fault.on(a_region(rng, case)).lasting(lasts.min(4 * SECOND)),
        Kind::StoreErrors => {
            let mut fault = fault.on(a_region(rng, case)).lasting(lasts);
            fault.loss = Some([100, 500, 1000][rng.index(3)]);
            fault
        }
        Kind::StoreSlow => {
            let mut fault = fault.on(a_region(rng, case)).lasting(lasts);
            fault.extra = Some(rng.between(50, 1500) * MILLI);
            fault
        }
        Kind::StoreFull | Kind::Evacuate => fault.on(a_region(rng, case)).lasting(lasts),
        Kind::RegionAdd | Kind::RegionRemove | Kind::RegionForceOut | Kind::RegionRivals => {
            fault.on(a_region(rng, case))
        }
        Kind::Clock => {
            let mut fault = fault.on(a_node(rng, case));
            let day = 86_400_000;
            fault.step_ms = Some(match rng.below(4) {
                0 => day,
                1 => -day,
                _ => rng.between(0, 60_000) as i64 - 30_000,
            });
            match rng.chance(300) {
                true => fault.lasting(lasts),
                false => fault,
            }
        }
    })
}

fn a_region(rng: &mut SimRng, case: &Case) -> String {
    let places = case.places.len();
    case.places[rng.index(places)].id.to_string()
}

fn a_node(rng: &mut SimRng, case: &Case) -> String {
    case.nodes[rng.index(case.nodes.len())].key().to_string()
}

fn two_regions(rng: &mut SimRng, case: &Case) -> Option<(String, String)> {
    let places = case.places.len();
    if places < 2 {
        return None;
    }
    let from = rng.index(places);
    let to = (from + 1 + rng.index(places - 1)) % places;
    Some((case.places[from].id.to_string(), case.places[to].id.to_string()))
}

/// Two nodes of one region.
fn two_nodes(rng: &mut SimRng, case: &Case) -> Option<(String, String)> {
    let from = &case.nodes[rng.index(case.nodes.len())];
    let others: Vec<&NodePlan> = case
        .nodes
        .iter()
        .filter(|other| other.region == from.region && other.name != from.name)
        .collect();
    let to = rng.pick(&others)?;
    Some((from.key().to_string(), to.key().to_string()))
}

fn a_device(rng: &mut SimRng, case: &Case) -> Option<String> {
    rng.pick(&case.devices_named("all"))
        .map(|device| device_name(case, *device))
}

fn device_name(case: &Case, (user, device): (usize, usize)) -> String {
    format!("{}/device-{device}", case.users[user].name)
}

fn draw_acts(rng: &mut SimRng, case: &Case, workload: &Workload) -> Vec<Act> {
    let named = |names: &[String]| -> Vec<String> {
        if names.is_empty() {
            vec!["all".to_owned()]
        } else {
            names.to_vec()
        }
    };
    let devices: Vec<(usize, usize)> = named(&workload.from)
        .iter()
        .flat_map(|name| case.devices_named(name))
        .collect();
    let users: Vec<usize> = named(&workload.to)
        .iter()
        .flat_map(|name| case.users_named(name))
        .collect();
    let stop = workload.stop.unwrap_or(case.work).min(case.work);
    let mut acts = Vec::new();
    let (mut at, mut sent) = (workload.start, 0);
    while !devices.is_empty() && !users.is_empty() {
        at += rng.between(1, (2 * workload.every).max(1));
        if at >= stop || sent >= workload.count {
            break;
        }
        let device = devices[rng.index(devices.len())];
        if rng.chance(workload.statuses.into()) {
            acts.push(Act {
                status: Some([Status::Away, Status::Dnd, Status::Online][rng.index(3)]),
                ..act(at, device_name(case, device))
            });
            continue;
        }
        let burst = if rng.chance(workload.bursts.into()) {
            rng.between(2, 8)
        } else {
            1
        };
        let to = users[rng.index(users.len())];
        for _ in 0..burst.min(workload.count - sent) {
            let to = if rng.chance(850) {
                to
            } else {
                users[rng.index(users.len())]
            };
            acts.push(draw_send(rng, case, workload, (at, device, to)));
            sent += 1;
        }
    }
    acts
}

fn draw_send(
    rng: &mut SimRng,
    case: &Case,
    workload: &Workload,
    (at, device, to): (Micros, (usize, usize), usize),
) -> Act {
    let longest = if rng.chance(20) {
        workload.bytes.max(LONG_BODY)
    } else {
        workload.bytes
    };
    let mut act = Act {
        to: Some(case.users[to].name.clone()),
        bytes: rng.below(u64::from(longest) + 1) as u32,
        ..act(at, device_name(case, device))
    };
    if rng.chance(workload.copies.into()) {
        let others = (0..case.users[device.0].devices.len()).filter(|other| *other != device.1);
        act.copies = others.map(|other| device_name(case, (device.0, other))).collect();
    } else if rng.chance(workload.twins.into()) {
        let other = rng.index(case.users.len());
        act.twin = (other != to).then(|| case.users[other].name.clone());
    }
    act
}

/// How long messages live, from numbers of its own: the same messages are sent at the same times, whether they expire or not.
fn draw_lives(rng: &mut SimRng, workload: &Workload, acts: &mut [Act]) {
    for act in acts.iter_mut().filter(|act| act.to.is_some()) {
        if workload.expiring > 0 && rng.chance(workload.expiring.into()) {
            act.ttl = Some(rng.between(1, (workload.ttl / MILLI).max(1)) * MILLI);
        }
    }
}

fn act(at: Micros, device: String) -> Act {
    Act {
        at,
        device,
        to: None,
        bytes: 0,
        copies: Vec::new(),
        twin: None,
        status: None,
        ttl: None,
    }
}
