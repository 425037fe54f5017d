//! A case: all that is decided before anything happens. A scenario is read into one, a seed draws one, a run keeps one.
//!
//! What a case leaves to chance in large (`random`, `workload`) is drawn into concrete faults and acts before the run
//! ([`super::draw::expand`]), each from a generator of its own: a case with these kept runs the same to the bit. What is
//! left to chance in small (jitter, when a death is noticed, what a crash keeps) follows from the case's seed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Kind};
use super::span;
use super::trace::Micros;
use crate::core::ids::{NodeKey, NodeName, RegionId, Sharding, UserId};
use crate::core::limits::CoreLimits;
use crate::core::owner::{DurabilityPolicy, WithoutCopy};
use crate::core::state::StoreLimits;
use crate::core::wire::{Code, Status};
use crate::server::regions::Location;

/// A second of virtual time.
pub const SECOND: Micros = 1_000_000;
/// A millisecond of virtual time.
pub const MILLI: Micros = 1_000;
/// Where devices expire no sooner, nobody notices it in a run.
const DEVICES_REST_MS: u64 = 24 * 60 * 60 * 1000;

/// All that a run follows from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it is called; empty where a seed drew it.
    #[serde(default)]
    pub name: String,
    /// The seed of what is left to chance; below 2^63.
    pub seed: u64,
    /// When everything heals. All times of a case count from its start.
    #[serde(with = "span")]
    pub work: Micros,
    /// The engine below the stores.
    pub engine: EngineKind,
    /// When a message is accepted, in every region.
    #[serde(default, skip_serializing_if = "Accepts::is_default")]
    pub accepts: Accepts,
    /// How clients behave.
    #[serde(default, skip_serializing_if = "Clients::is_default")]
    pub clients: Clients,
    /// Number of shards.
    pub shards: u32,
    /// How users are spread over them.
    #[serde(default)]
    pub shard_seed: u64,
    /// The regions.
    #[serde(rename = "region")]
    pub places: Vec<Place>,
    /// The nodes.
    #[serde(rename = "node")]
    pub nodes: Vec<NodePlan>,
    /// The users.
    #[serde(rename = "user")]
    pub users: Vec<UserPlan>,
    /// Limits of the machines; those that are not named are the product's.
    #[serde(default)]
    pub limits: CoreLimits,
    /// Limits of inboxes and devices.
    #[serde(default)]
    pub inbox: InboxLimits,
    /// Ways between nodes and to clients.
    #[serde(default)]
    pub network: Network,
    /// How nodes learn of each other.
    #[serde(default)]
    pub membership: Membership,
    /// The stores.
    #[serde(default)]
    pub store: StoreModel,
    /// Regions that keep no shards before they are added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<RegionId>,
    /// What is to be sent, drawn before the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workload: Vec<Workload>,
    /// What is to go wrong at random, drawn before the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<Random>,
    /// What goes wrong, when.
    #[serde(default, rename = "fault", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    /// What users do, when.
    #[serde(default, rename = "act", skip_serializing_if = "Vec::is_empty")]
    pub acts: Vec<Act>,
    /// What must hold beside the invariants.
    #[serde(default)]
    pub expect: Expect,
}

/// Which engine the regions' stores run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The key layer over an ordered map.
    Memory,
    /// The journal over a simulated disk, tables in memory.
    Embedded,
    /// A store beside the nodes that outlives them all, for several core nodes in a region: the key layer over an ordered
    /// map. Commits under way when their node dies may still go through.
    Shared,
}

/// When a message is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accepts {
    /// When it is durable in the region.
    #[default]
    Region,
    /// When it is durable in another region too.
    Geo,
    /// Then, or in the region alone where no other has it in time.
    GeoOrRegion,
}

impl Accepts {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The policy of owners.
    pub fn policy(self) -> DurabilityPolicy {
        match self {
            Accepts::Region => DurabilityPolicy::Region,
            Accepts::Geo => DurabilityPolicy::Geo(WithoutCopy::Refuse),
            Accepts::GeoOrRegion => DurabilityPolicy::Geo(WithoutCopy::AcceptAsRegion),
        }
    }
}

/// How clients behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clients {
    /// They wait less than the library does by default, and notice within seconds that their node died.
    #[default]
    Hasty,
    /// As the library is by default. Nobody tells them that a node is dead, or that nobody answers: they find out.
    AsShipped,
}

impl Clients {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a region lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Its name.
    pub id: RegionId,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePlan {
    /// Its region.
    pub region: RegionId,
    /// Its name within the region.
    pub name: NodeName,
    /// Owns shards and a store.
    #[serde(default)]
    pub core: bool,
    /// Holds sessions.
    #[serde(default)]
    pub edge: bool,
    /// Its partitions.
    pub partitions: u8,
    /// How far its wall clock is off, milliseconds.
    #[serde(default)]
    pub clock_ms: i64,
    /// How fast its wall clock drifts away, millionths.
    #[serde(default)]
    pub drift_ppm: i32,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserPlan {
    /// Name.
    pub name: String,
    /// Region where the devices prefer to be.
    pub home: RegionId,
    /// Its devices, `device-0` onwards.
    #[serde(default)]
    pub devices: Vec<DevicePlan>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePlan {
    /// When it comes first; without it when all is healed.
    #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
    pub arrives: Option<Micros>,
    /// The region that it prefers, where that is not its user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<RegionId>,
    /// Whose presence it watches; without it, it draws some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watches: Option<Vec<String>>,
    /// It goes to no other region, come what may.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stays: bool,
    /// Of its home's edges it knows this one at first, counted from 0 and around; without it, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enters: Option<u32>,
}

/// Limits of the stores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InboxLimits {
    /// Messages that some device has not consumed.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Devices of one user.
    pub devices: usize,
}

/// Ways between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Delays by geography, times so much, in hundredths.
    pub delay_percent: u32,
    /// Jitter of a message, at most.
    #[serde(with = "span")]
    pub jitter: Micros,
    /// Of a thousand messages so many are lost and come by a retransmission.
    pub loss: u32,
    /// Bytes a second between two nodes of different regions, each way; 0 = no limit.
    pub bandwidth: u64,
    /// A connection between nodes that hears nothing for so long is down.
    #[serde(with = "span")]
    pub idle: Micros,
}

/// How nodes learn of each other: each observer at its own time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Membership {
    /// A start in the own region is seen after at least.
    #[serde(with = "span")]
    pub seen_min: Micros,
    /// And at most; in another region it takes three times as long.
    #[serde(with = "span")]
    pub seen_max: Micros,
    /// A death is seen after at least.
    #[serde(with = "span")]
    pub death_min: Micros,
    /// And at most.
    #[serde(with = "span")]
    pub death_max: Micros,
}

/// How stores behave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreModel {
    /// Slowest ordinary commit.
    #[serde(with = "span")]
    pub latency: Micros,
    /// Of a thousand commits so many fail retryably: transient errors, conflicts.
    pub errors: u32,
    /// Bytes of a region's logs that an absent holder pins at most.
    pub absent_log_bytes: u64,
    /// And for how long.
    #[serde(with = "span")]
    pub absent_log: Micros,
    /// Of a thousand commits so many take a second.
    pub stalls: u32,
}

/// Messages that are sent at random.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workload {
    /// Users who send, by name or group; all where none is named.
    pub from: Vec<String>,
    /// Users who receive; all where none is named.
    pub to: Vec<String>,
    /// Mean pause between sendings.
    #[serde(with = "span")]
    pub every: Micros,
    /// From this moment on.
    #[serde(with = "span")]
    pub start: Micros,
    /// To this one; without it until everything heals.
    #[serde(with = "span::option", skip_serializing_if = "Option::is_none")]
    pub stop: Option<Micros>,
    /// At most so many messages.
    pub count: u64,
    /// Of a thousand sendings so many are bursts of 2 to 8.
    pub bursts: u32,
    /// Longest body in bytes.
    pub bytes: u32,
    /// Of a thousand sendings so many are a change of status instead.
    pub statuses: u32,
    /// Of a thousand messages so many are sent by another device of the same user too, under the same id.
    pub copies: u32,
    /// Of a thousand messages so many go to a second user under the same id.
    pub twins: u32,
    /// Of a thousand messages so many have a time to live.
    pub expiring: u32,
    /// The longest time to live.
    #[serde(with = "span")]
    pub ttl: Micros,
}

/// Faults that are drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// Mean pause between them.
    #[serde(with = "span")]
    pub every: Micros,
    /// The last one begins before then, and none lasts longer; without it they go on until everything heals.
    #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
    pub until: Option<Micros>,
    /// How often each kind is chosen.
    pub weights: BTreeMap<Kind, u32>,
}

/// What a user does at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// When.
    #[serde(with = "span")]
    pub at: Micros,
    /// The device that acts: `user/device-0`.
    pub device: String,
    /// Sends a message to this user; without it the status changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Bytes of the body beyond its number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u32,
    /// Other devices of the same user, which send the same message under the same id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<String>,
    /// Another user, to whom another message goes under the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<String>,
    /// The status that it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// How long the message lives; without it for good.
    #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Micros>,
}

/// What must hold in the end beside the invariants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// At least so many messages are accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    /// At least so many are handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled: Option<u64>,
    /// These final refusals may happen, and each must.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// These may happen, and need not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub may_refuse: Vec<Refused>,
    /// Users of a region show as unreachable this long after every way to it was cut.
    #[serde(with = "span::option", skip_serializing_if = "Option::is_none")]
    pub unreachable_within: Option<Micros>,
    /// The clients of a region have left this long after it was evacuated, and are back this long after it was restored.
    #[serde(with = "span::option", skip_serializing_if = "Option::is_none")]
    pub moved_within: Option<Micros>,
    /// All is settled this long after everything healed.
    #[serde(with = "span::option", skip_serializing_if = "Option::is_none")]
    pub settled_within: Option<Micros>,
    /// At least so many holes are told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holes: Option<u64>,
    /// Faults of these kinds have an effect; not asked where there is one region only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub struck: Vec<Kind>,
    /// At least so many snapshots are taken in; not asked where there is one region only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
    /// At least so many times a core takes over a shard that had an owner before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takeovers: Option<u64>,
    /// At least so many sessions of clients that were moved have something to come first, and it does (R22); for cases in which
    /// nothing expires and no store is lost; not asked where there is one region only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_in_order: Option<u64>,
    /// At least so many sessions begin at edges that another region serves; not asked where there is one region only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_elsewhere: Option<u64>,
    /// At least so many commits find the disk full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_full: Option<u64>,
    /// At least so many messages are replaced by holes, in all stores together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<u64>,
    /// What regions differ in of presence is repaired for at most so many hundredths of its bytes; and they do differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair_percent: Option<u64>,
    /// At least so many devices expire, and nobody objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices_expired: Option<u64>,
}

/// A final refusal that a scenario may bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// The inbox of the recipient is full.
    InboxFull,
    /// The id's time is too old.
    IdTooOld,
    /// The id's time lies ahead.
    IdInFuture,
    /// The body is too long.
    TooLarge,
}

impl Case {
    /// The regions that keep the shards at first.
    pub fn holders(&self) -> BTreeSet<RegionId> {
        let all = self.places.iter().map(|place| place.id.clone());
        all.filter(|region| !self.later.contains(region)).collect()
    }

    /// The region in which the cluster is begun.
    pub fn begins_in(&self) -> usize {
        let mut places = self.places.iter();
        places
            .position(|place| !self.later.contains(&place.id))
            .unwrap_or(0)
    }

    /// How users are spread.
    pub fn sharding(&self) -> Sharding {
        Sharding {
            count: self.shards,
            seed: self.shard_seed,
        }
    }

    /// Limits of the stores.
    pub fn store_limits(&self) -> StoreLimits {
        StoreLimits {
            inbox_messages: self.inbox.messages,
            inbox_bytes: self.inbox.bytes,
            devices: self.inbox.devices,
            device_expiry_ms: self.limits.device_expiry_ms,
            expiry_margin_ms: self.limits.expiry_margin_ms,
            absent_log_bytes: self.store.absent_log_bytes,
            absent_log_ms: self.store.absent_log / MILLI,
        }
    }

    /// Whether devices may expire while it runs: then what is attached is registered again and again, and nothing is ever
    /// quite at rest.
    pub fn devices_expire(&self) -> bool {
        (1..DEVICES_REST_MS).contains(&self.limits.device_expiry_ms)
    }

    /// The index of a region.
    pub fn region(&self, id: &RegionId) -> Option<usize> {
        self.places.iter().position(|place| place.id == *id)
    }

    /// One-way delay between two regions: see [`Location::one_way_us`].
    pub fn delay(&self, from: usize, to: usize) -> Micros {
        if from == to {
            return 200;
        }
        let at = |place: &Place| Location {
            latitude: place.latitude,
            longitude: place.longitude,
        };
        let geography = at(&self.places[from]).one_way_us(&at(&self.places[to]));
        geography * Micros::from(self.network.delay_percent) / 100
    }

    /// The nodes that a place means: see [`super::fault`].
    pub fn nodes_at(&self, place: &str) -> Vec<usize> {
        let (region, part) = match place.split_once('/') {
            Some((region, part)) => (Some(region), part),
            None => match place {
                "all" | "cores" | "edges" => (None, place),
                region => (Some(region), "all"),
            },
        };
        let within = |node: &NodePlan| region.is_none_or(|region| node.region.as_str() == region);
        let mut edges = BTreeMap::new();
        let mut found = Vec::new();
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| within(node)) {
            if !node.core {
                *edges.entry(&node.region).or_insert(0) += 1;
            }
            let nth = edges.get(&node.region).copied().unwrap_or(0);
            let meant = match part {
                "all" => true,
                "core" | "cores" => node.core,
                "edges" => node.edge,
                part => node.name.as_str() == part || (!node.core && part == format!("edge-{nth}")),
            };
            if meant {
                found.push(index);
            }
        }
        found
    }

    /// The regions that a place has nodes in.
    pub fn regions_at(&self, place: &str) -> Vec<usize> {
        let nodes = self.nodes_at(place);
        let regions: BTreeSet<usize> = nodes
            .into_iter()
            .filter_map(|node| self.region(&self.nodes[node].region))
            .collect();
        regions.into_iter().collect()
    }

    /// The users that a name means: `all`, one user, or a group (`reader` means `reader-1`, `reader-2`, ...).
    pub fn users_named(&self, name: &str) -> Vec<usize> {
        let member = |user: &str| {
            let number = user.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        };
        let users = self.users.iter().enumerate();
        users
            .filter(|(_, user)| name == "all" || user.name == name || member(&user.name))
            .map(|(index, _)| index)
            .collect()
    }

    /// The devices that a name means, as (user, device): `user/device-0`, or all devices of the users that it means.
    pub fn devices_named(&self, name: &str) -> Vec<(usize, usize)> {
        let (users, device) = match name.split_once('/') {
            Some((user, device)) => (self.users_named(user), Some(device)),
            None => (self.users_named(name), None),
        };
        let mut found = Vec::new();
        for user in users {
            for at in 0..self.users[user].devices.len() {
                if device.is_none_or(|device| device == format!("device-{at}")) {
                    found.push((user, at));
                }
            }
        }
        found
    }

    /// The final refusals that this case may bring about.
    pub fn may_refuse(&self, code: Code) -> bool {
        let mut all = self.expect.refused.iter().chain(&self.expect.may_refuse);
        all.any(|refused| refused.code() == code)
    }
}

impl NodePlan {
    /// Its name, with its region.
    pub fn key(&self) -> NodeKey {
        NodeKey {
            region: self.region.clone(),
            node: self.name.clone(),
        }
    }
}

impl UserPlan {
    /// Its name as an id; a name that cannot be one is cut and cleaned.
    pub fn user_id(&self) -> UserId {
        let clean = || -> String {
            let kept = self.name.chars().filter(char::is_ascii_graphic);
            "x".chars().chain(kept.take(200)).collect()
        };
        UserId::new(&self.name)
            .or_else(|_| UserId::new(&clean()))
            .expect("1 to 201 plain characters are valid")
    }
}

impl Refused {
    /// The code that a client is told.
    pub fn code(self) -> Code {
        match self {
            Refused::InboxFull => Code::InboxFull,
            Refused::IdTooOld => Code::IdTooOld,
            Refused::IdInFuture => Code::IdInFuture,
            Refused::TooLarge => Code::TooLarge,
        }
    }
}

impl Default for InboxLimits {
    fn default() -> Self {
        let limits = StoreLimits::default();
        Self {
            messages: limits.inbox_messages,
            bytes: limits.inbox_bytes,
            devices: limits.devices,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            delay_percent: 100,
            jitter: MILLI,
            loss: 0,
            bandwidth: 0,
            idle: 4 * SECOND,
        }
    }
}

impl Default for Membership {
    fn default() -> Self {
        Self {
            seen_min: 50 * MILLI,
            seen_max: 700 * MILLI,
            death_min: SECOND,
            death_max: 4 * SECOND,
        }
    }
}

impl Default for StoreModel {
    fn default() -> Self {
        Self {
            latency: 4 * MILLI,
            errors: 0,
            absent_log_bytes: StoreLimits::default().absent_log_bytes,
            absent_log: StoreLimits::default().absent_log_ms * MILLI,
            stalls: 3,
        }
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            from: Vec::new(),
            to: Vec::new(),
            every: 50 * MILLI,
            start: SECOND,
            stop: None,
            count: 1_000_000,
            bursts: 200,
            bytes: 60,
            statuses: 30,
            copies: 0,
            twins: 0,
            expiring: 0,
            ttl: 10 * SECOND,
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(is: &bool) -> bool {
    !is
}
