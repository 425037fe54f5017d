//! What a seed means: places, nodes, users, limits, and how much goes wrong.
//!
//! Each seed draws its own mixture (swarm testing: Groce et al., 2012): most have few kinds of faults, so that the rare
//! combinations get their turn undisturbed.

use std::collections::BTreeSet;

use super::rng::SimRng;
use super::trace::Micros;
use crate::core::ids::{NodeKey, NodeName, RegionId, Sharding};
use crate::core::limits::CoreLimits;
use crate::core::state::StoreLimits;

/// A second of virtual time.
pub const SECOND: Micros = 1_000_000;
/// A millisecond of virtual time.
pub const MILLI: Micros = 1_000;

/// Where a region lies.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub region: RegionId,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

/// A node of the plan.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its name.
    pub key: NodeKey,
    /// Index of its region.
    pub region: usize,
    /// Owns shards and a store.
    pub core: bool,
    /// Holds sessions.
    pub edge: bool,
    /// Its partitions.
    pub partitions: u8,
    /// How far its wall clock is off, milliseconds.
    pub wall_offset: i64,
}

/// A user of the plan.
#[derive(Debug, Clone)]
pub struct UserPlan {
    /// Name.
    pub name: String,
    /// Region where the devices prefer to be.
    pub home: usize,
    /// When each device comes first; `None` comes when all is healed.
    pub devices: Vec<Option<Micros>>,
}

/// Which engine the regions' stores run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// The key layer over an ordered map.
    Memory,
    /// The journal over a simulated disk, tables in memory.
    Embedded,
}

/// How often each kind of fault is chosen; 0 = never.
#[derive(Debug, Clone, Default)]
pub struct FaultMix {
    /// A node dies and starts again.
    pub crash: u64,
    /// Every node of a region dies and starts again.
    pub crash_region: u64,
    /// A node stands still for a while.
    pub pause: u64,
    /// Two regions do not reach each other.
    pub cut_regions: u64,
    /// One region does not reach another; the other way works.
    pub cut_one_way: u64,
    /// Two nodes of a region do not reach each other.
    pub cut_nodes: u64,
    /// A connection between nodes breaks, nothing else.
    pub flap: u64,
    /// A client's connection breaks.
    pub disconnect: u64,
    /// A client goes to another edge or region.
    pub relocate: u64,
    /// A client loses all that it remembers.
    pub amnesia: u64,
    /// A client reads nothing for a while.
    pub stall_read: u64,
    /// An application handles nothing for a while.
    pub stall_app: u64,
    /// A device goes away, and comes back later.
    pub leave: u64,
    /// An observer takes a living node for dead.
    pub false_death: u64,
    /// The store dies under a commit.
    pub store_fatal: u64,
    /// A wall clock jumps.
    pub clock: u64,
}

/// All that follows from a seed before anything happens.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The regions.
    pub places: Vec<Place>,
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// The users.
    pub users: Vec<UserPlan>,
    /// Limits of the machines.
    pub limits: CoreLimits,
    /// Limits of the stores.
    pub store_limits: StoreLimits,
    /// How users are spread.
    pub sharding: Sharding,
    /// The engine.
    pub engine: EngineKind,
    /// How long messages are sent and things go wrong.
    pub work: Micros,
    /// Messages sent at most.
    pub sends: u64,
    /// Mean pause between messages.
    pub send_gap: Micros,
    /// Mean pause between faults; 0 = none.
    pub fault_gap: Micros,
    /// Which faults.
    pub faults: FaultMix,
    /// A connection between nodes that hears nothing for so long is down.
    pub peer_idle: Micros,
    /// Jitter of a message, at most.
    pub jitter: Micros,
    /// Of a thousand messages so many are late by a retransmission.
    pub late: u64,
    /// Of a thousand commits so many fail retryably.
    pub store_retryable: u64,
    /// Slowest ordinary commit.
    pub commit_latency: Micros,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(rng: &mut SimRng) -> Plan {
        let regions = [1, 2, 2, 2, 3, 3][rng.index(6)];
        let names = [
            ("us-east", 38.9, -77.0),
            ("eu-west", 53.3, -6.3),
            ("ap-south", 19.1, 72.9),
        ];
        let places: Vec<Place> = names[..regions]
            .iter()
            .map(|(name, latitude, longitude)| Place {
                region: RegionId::new(name).expect("a plain name is valid"),
                latitude: *latitude,
                longitude: *longitude,
            })
            .collect();
        let nodes = draw_nodes(rng, &places);
        let fault_gap = match rng.below(8) {
            0 => 0,
            1..=4 => rng.between(2, 6) * SECOND,
            _ => rng.between(500, 2000) * MILLI,
        };
        Plan {
            nodes,
            users: draw_users(rng, regions),
            limits: draw_limits(rng),
            store_limits: StoreLimits::default(),
            sharding: Sharding {
                count: [1, 2, 4, 8][rng.index(4)],
                seed: rng.bits(),
            },
            engine: if rng.chance(400) {
                EngineKind::Embedded
            } else {
                EngineKind::Memory
            },
            work: rng.between(4, 14) * SECOND,
            sends: rng.between(20, 400),
            send_gap: [5, 20, 50, 150][rng.index(4)] * MILLI,
            fault_gap,
            faults: draw_faults(rng),
            peer_idle: rng.between(2, 6) * SECOND,
            jitter: [0, 1, 5, 30][rng.index(4)] * MILLI,
            late: [0, 0, 10, 50][rng.index(4)],
            store_retryable: [0, 0, 5, 30][rng.index(4)],
            commit_latency: [1, 4, 15, 80][rng.index(4)] * MILLI,
            places,
        }
    }

    /// The regions' names.
    pub fn holders(&self) -> BTreeSet<RegionId> {
        self.places.iter().map(|place| place.region.clone()).collect()
    }

    /// One-way delay between two regions: the great circle at two thirds of the speed of light, and half as much again
    /// for the way that cables take.
    pub fn delay(&self, from: usize, to: usize) -> Micros {
        if from == to {
            return 200;
        }
        let (a, b) = (&self.places[from], &self.places[to]);
        let (lat_a, lat_b) = (a.latitude.to_radians(), b.latitude.to_radians());
        let half_lat = (lat_b - lat_a) / 2.0;
        let half_lon = (b.longitude - a.longitude).to_radians() / 2.0;
        let chord = half_lat.sin().powi(2) + lat_a.cos() * lat_b.cos() * half_lon.sin().powi(2);
        let kilometres = 2.0 * 6371.0 * chord.sqrt().asin();
        (kilometres * 1.5 / 200_000.0 * 1e6) as Micros
    }
}

fn draw_nodes(rng: &mut SimRng, places: &[Place]) -> Vec<NodePlan> {
    let skewed = rng.chance(300);
    let mut nodes = Vec::new();
    for (region, place) in places.iter().enumerate() {
        let edges = rng.below(3) as usize;
        let core_is_edge = edges == 0 || rng.chance(300);
        for at in 0..=edges {
            let name = if at == 0 {
                "core-1".to_owned()
            } else {
                format!("edge-{at}")
            };
            let wall_offset = match (skewed, rng.below(8)) {
                (false, _) => 0,
                (true, 0) => rng.between(0, 120_000) as i64,
                (true, 1) => -(rng.between(0, 120_000) as i64),
                (true, _) => rng.between(0, 400) as i64 - 200,
            };
            nodes.push(NodePlan {
                key: NodeKey {
                    region: place.region.clone(),
                    node: NodeName::new(&name).expect("a plain name is valid"),
                },
                region,
                core: at == 0,
                edge: at > 0 || core_is_edge,
                partitions: 1 + rng.below(2) as u8,
                wall_offset,
            });
        }
    }
    nodes
}

fn draw_users(rng: &mut SimRng, regions: usize) -> Vec<UserPlan> {
    (0..rng.between(2, 10))
        .map(|at| {
            let devices = match rng.below(20) {
                0 => Vec::new(),
                1..=12 => vec![arrival(rng)],
                13..=17 => vec![arrival(rng), arrival(rng)],
                _ => vec![arrival(rng), arrival(rng), arrival(rng)],
            };
            UserPlan {
                name: format!("user-{at}"),
                home: rng.index(regions),
                devices,
            }
        })
        .collect()
}

fn arrival(rng: &mut SimRng) -> Option<Micros> {
    match rng.below(10) {
        0 => None,
        1 | 2 => Some(rng.between(3, 12) * SECOND),
        _ => Some(rng.between(100, 2500) * MILLI),
    }
}

/// Half of the seeds have the product's limits; the others tiny ones, so that each limit is met.
fn draw_limits(rng: &mut SimRng) -> CoreLimits {
    let defaults = CoreLimits::default();
    if rng.chance(500) {
        return defaults;
    }
    CoreLimits {
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
    }
}

fn draw_faults(rng: &mut SimRng) -> FaultMix {
    let mut weight = |often: u64| if rng.chance(400) { often } else { 0 };
    FaultMix {
        crash: weight(10),
        crash_region: weight(3),
        pause: weight(5),
        cut_regions: weight(8),
        cut_one_way: weight(5),
        cut_nodes: weight(5),
        flap: weight(8),
        disconnect: weight(10),
        relocate: weight(10),
        amnesia: weight(4),
        stall_read: weight(4),
        stall_app: weight(4),
        leave: weight(8),
        false_death: weight(3),
        store_fatal: weight(3),
        clock: weight(2),
    }
}
