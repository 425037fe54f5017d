//! Whether a case makes sense, before it runs: what is wrong is named by its key.

use std::collections::BTreeSet;

use super::case::{Accepts, Case, EngineKind, MILLI, SECOND};
use super::fault::{Fault, Kind};
use super::span;
use super::trace::Micros;
use crate::core::ids::{NodeName, UserId};
use crate::core::op::MAX_BODY;

/// Most regions: each pair of them has links of each partition with each.
pub const MAX_REGIONS: usize = 16;
/// Most nodes: a run holds every machine of all of them.
pub const MAX_NODES: usize = 128;
/// Most devices: each is a client with a connection.
pub const MAX_DEVICES: usize = 5_000;
/// Longest work: a run of days is a mistake.
pub const MAX_WORK: Micros = 3 * 86_400 * SECOND;
/// Furthest that a clock jumps or is off, milliseconds: twenty years, as of a board whose clock starts at its epoch.
pub const MAX_CLOCK_MS: u64 = 20 * 365 * 86_400_000;
/// Most that a clock drifts, millionths: a tenth.
pub const MAX_DRIFT_PPM: u32 = 100_000;
/// Most acts that a workload may draw: they are kept in memory.
pub const MAX_ACTS: u64 = 1_000_000;
/// Most shards: checkers look at all of them.
pub const MAX_SHARDS: u32 = 256;

/// What is wrong with a case: the key, and what was expected.
pub type Wrongs = Vec<(String, String)>;

impl Case {
    /// All that is wrong with it; nothing, and it can run.
    pub fn wrongs(&self) -> Wrongs {
        let mut wrongs = Wrongs::new();
        self.wrong_sizes(&mut wrongs);
        self.wrong_nodes(&mut wrongs);
        self.wrong_users(&mut wrongs);
        for (at, fault) in self.faults.iter().enumerate() {
            self.wrong_time(&mut wrongs, format!("fault.{at}.at"), fault.at);
            wrong_fault(&format!("fault.{at}"), fault, &mut wrongs);
        }
        self.wrong_losses(&mut wrongs);
        self.wrong_workload(&mut wrongs);
        wrongs
    }

    /// What begins when everything heals, or later, never happens.
    fn wrong_time(&self, wrongs: &mut Wrongs, key: String, at: Micros) {
        if at >= self.work {
            let text = format!("expected less than `work`, {}", span::show(self.work));
            wrongs.push((key, text));
        }
    }

    /// Somebody must be left. Where there is one region only, losing it has no effect, so that a scenario for several runs
    /// there too.
    fn wrong_losses(&self, wrongs: &mut Wrongs) {
        let mut lost = BTreeSet::new();
        for (at, fault) in self.faults.iter().enumerate() {
            if fault.kind != Kind::Lose || self.places.len() < 2 {
                continue;
            }
            let before = lost.len();
            lost.extend(fault.on.iter().flat_map(|place| self.regions_at(place)));
            if before < lost.len() && lost.len() == self.places.len() {
                let text = "no region would be left; leave one out".to_owned();
                wrongs.push((format!("fault.{at}.on"), text));
            }
        }
    }

    fn wrong_sizes(&self, wrongs: &mut Wrongs) {
        within(wrongs, "work", self.work, SECOND, MAX_WORK);
        number(wrongs, "shards", self.shards.into(), 1, MAX_SHARDS.into());
        number(wrongs, "seed", self.seed, 0, i64::MAX as u64);
        let network = &self.network;
        number(
            wrongs,
            "network.delay_percent",
            network.delay_percent.into(),
            1,
            10_000,
        );
        number(wrongs, "network.loss", network.loss.into(), 0, 900);
        within(wrongs, "network.jitter", network.jitter, 0, 10 * SECOND);
        within(wrongs, "network.idle", network.idle, 500 * MILLI, 60 * SECOND);
        if network.bandwidth > 0 {
            number(wrongs, "network.bandwidth", network.bandwidth, 10_000, u64::MAX);
        }
        let store = &self.store;
        within(wrongs, "store.latency", store.latency, 0, 10 * SECOND);
        number(wrongs, "store.errors", store.errors.into(), 0, 1000);
        number(wrongs, "store.stalls", store.stalls.into(), 0, 1000);
        let members = &self.membership;
        for (key, min, max) in [
            ("membership.seen_max", members.seen_min, members.seen_max),
            ("membership.death_max", members.death_min, members.death_max),
        ] {
            within(wrongs, key, max, min, 60 * SECOND);
        }
        number(wrongs, "inbox.messages", self.inbox.messages, 1, u64::MAX);
        number(wrongs, "inbox.bytes", self.inbox.bytes, 1, u64::MAX);
        number(wrongs, "inbox.devices", self.inbox.devices as u64, 1, 1000);
        self.wrong_limits(wrongs);
    }

    /// A limit of nothing would stand still for ever, and a timer of nothing would never rest.
    fn wrong_limits(&self, wrongs: &mut Wrongs) {
        let limits = &self.limits;
        let least = [
            ("max_body", u64::from(limits.max_body), 64),
            ("sends_in_flight", limits.sends_in_flight.into(), 1),
            ("edge_bytes", limits.edge_bytes as u64, 4096),
            ("sessions_per_second", limits.sessions_per_second.into(), 1),
            ("lane_deposits", limits.lane_deposits as u64, 1),
            ("lane_bytes", limits.lane_bytes as u64, 1024),
            ("owner_deposits", limits.owner_deposits as u64, 1),
            ("owner_deposit_bytes", limits.owner_deposit_bytes as u64, 1),
            ("store_reads", limits.store_reads as u64, 1),
            ("window_messages", limits.window_messages as u64, 1),
            ("window_bytes", limits.window_bytes as u64, 1),
            ("sends_per_second", limits.sends_per_second.into(), 1),
            ("send_burst", limits.send_burst.into(), 1),
            ("link_bytes", limits.link_bytes, 1024),
            ("presence_batch", limits.presence_batch as u64, 1),
            ("deposit_timeout_ms", limits.deposit_timeout_ms, 500),
            ("retry_ms", limits.retry_ms, 10),
            ("attach_timeout_ms", limits.attach_timeout_ms, 500),
            ("cursor_ms", limits.cursor_ms, 10),
            ("confirm_ms", limits.confirm_ms, 10),
            ("presence_ms", limits.presence_ms, 1),
            ("presence_repair_ms", limits.presence_repair_ms, 100),
            ("ping_ms", limits.ping_ms, 100),
            ("link_timeout_ms", limits.link_timeout_ms, 2 * limits.ping_ms),
            ("session_grace_ms", limits.session_grace_ms, 100),
            ("probe_ms", limits.probe_ms, 100),
            ("idle_seconds", limits.idle_seconds.into(), 10),
        ];
        for (key, value, least) in least {
            number(wrongs, &format!("limits.{key}"), value, least, u64::MAX);
        }
    }

    fn wrong_nodes(&self, wrongs: &mut Wrongs) {
        number(wrongs, "region", self.places.len() as u64, 1, MAX_REGIONS as u64);
        number(wrongs, "node", self.nodes.len() as u64, 1, MAX_NODES as u64);
        if self.places.len() == 1 && self.accepts != Accepts::Region {
            let text = "expected \"region\": one region alone has no other that could have a message";
            wrongs.push(("accepts".to_owned(), text.to_owned()));
        }
        let mut names = BTreeSet::new();
        for (at, place) in self.places.iter().enumerate() {
            let key = format!("region.{at}");
            if !names.insert(&place.id) {
                wrongs.push((format!("{key}.id"), "expected each region once".to_owned()));
            }
            let there = || self.nodes.iter().filter(|node| node.region == place.id);
            let cores = there().filter(|node| node.core).count();
            let shared = self.engine == EngineKind::Shared;
            if cores == 0 || (cores > 1 && !shared) {
                let text = match shared {
                    true => "expected a node of this region to be a core",
                    false => {
                        "expected one node of this region to be its core; several need `engine = \"shared\"`"
                    }
                };
                wrongs.push((key.clone(), text.to_owned()));
            }
            if !there().any(|node| node.edge) {
                let text = "expected a node of this region to be an edge".to_owned();
                wrongs.push((key.clone(), text));
            }
            let on_earth =
                (-90.0..=90.0).contains(&place.latitude) && (-180.0..=180.0).contains(&place.longitude);
            if !on_earth {
                let text = "expected a latitude of -90 to 90 and a longitude of -180 to 180".to_owned();
                wrongs.push((key, text));
            }
        }
        let mut keys = BTreeSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let key = format!("node.{at}");
            if self.region(&node.region).is_none() {
                wrongs.push((
                    format!("{key}.region"),
                    "expected a region of this case".to_owned(),
                ));
            }
            if !keys.insert(node.key()) || NodeName::new(node.name.as_str()).is_err() {
                wrongs.push((format!("{key}.name"), "expected a name of its own".to_owned()));
            }
            number(wrongs, &format!("{key}.partitions"), node.partitions.into(), 1, 8);
            let (off, drift) = (node.clock_ms.unsigned_abs(), node.drift_ppm.unsigned_abs());
            number(wrongs, &format!("{key}.clock_ms"), off, 0, MAX_CLOCK_MS);
            number(
                wrongs,
                &format!("{key}.drift_ppm"),
                drift.into(),
                0,
                MAX_DRIFT_PPM.into(),
            );
        }
    }

    fn wrong_users(&self, wrongs: &mut Wrongs) {
        let mut names = BTreeSet::new();
        let mut strangers = BTreeSet::new();
        let mut devices = 0;
        for (at, user) in self.users.iter().enumerate() {
            let key = format!("user.{at}");
            devices += user.devices.len();
            let plain = !user.name.contains('/') && user.name != "all";
            if UserId::new(&user.name).is_err() || !names.insert(&user.name) || !plain {
                let text = "expected a name of its own, of 1 to 255 bytes, without /, not \"all\"".to_owned();
                wrongs.push((format!("{key}.name"), text));
            }
            let homes = user.devices.iter().filter_map(|device| device.home.as_ref());
            if homes.chain([&user.home]).any(|home| self.region(home).is_none()) {
                wrongs.push((format!("{key}.home"), "expected a region of this case".to_owned()));
            }
            for (device, planned) in user.devices.iter().enumerate() {
                let unknown = |name: &&String| self.users_named(name).is_empty();
                let unknown = planned.watches.iter().flatten().find(unknown);
                if let Some(name) = unknown.filter(|name| strangers.insert(*name)) {
                    let text = format!("{name:?} is neither a user nor a group of users here");
                    wrongs.push((format!("{key}.devices.{device}.watches"), text));
                }
            }
            let most = self.inbox.devices as u64;
            number(
                wrongs,
                &format!("{key}.devices"),
                user.devices.len() as u64,
                0,
                most,
            );
        }
        number(wrongs, "user", devices as u64, 0, MAX_DEVICES as u64);
    }

    fn wrong_workload(&self, wrongs: &mut Wrongs) {
        for (at, workload) in self.workload.iter().enumerate() {
            let key = |name: &str| format!("workload.{at}.{name}");
            within(wrongs, &key("every"), workload.every, 100, MAX_WORK);
            number(
                wrongs,
                &key("bytes"),
                workload.bytes.into(),
                0,
                (MAX_BODY - 8) as u64,
            );
            for (name, share) in [
                ("bursts", workload.bursts),
                ("statuses", workload.statuses),
                ("copies", workload.copies),
                ("twins", workload.twins),
                ("expiring", workload.expiring),
            ] {
                number(wrongs, &key(name), share.into(), 0, 1000);
            }
            within(wrongs, &key("start"), workload.start, 0, self.work);
            within(wrongs, &key("ttl"), workload.ttl, MILLI, MAX_WORK);
            let stop = workload.stop.unwrap_or(self.work).min(self.work);
            let drawn = stop.saturating_sub(workload.start) / workload.every.max(1) * 5;
            if drawn.min(workload.count) > MAX_ACTS {
                let text = format!("about {drawn} messages; expected at most {MAX_ACTS}: send less often");
                wrongs.push((key("every"), text));
            }
            for (name, users) in [("from", &workload.from), ("to", &workload.to)] {
                self.known_users(wrongs, &key(name), users);
            }
        }
        if let Some(random) = &self.random {
            within(wrongs, "random.every", random.every, 10 * MILLI, MAX_WORK);
            if let Some(until) = random.until {
                within(wrongs, "random.until", until, 0, self.work);
            }
        }
        for (at, act) in self.acts.iter().enumerate() {
            number(
                wrongs,
                &format!("act.{at}.bytes"),
                act.bytes.into(),
                0,
                (MAX_BODY - 8) as u64,
            );
            self.wrong_time(wrongs, format!("act.{at}.at"), act.at);
            if act.to.is_none() == act.status.is_none() {
                let text = "expected either `to`, for a message, or `status`".to_owned();
                wrongs.push((format!("act.{at}"), text));
            }
        }
    }

    fn known_users(&self, wrongs: &mut Wrongs, key: &str, names: &[String]) {
        for name in names {
            if self.devices_named(name).is_empty() && self.users_named(name).is_empty() {
                let text = format!("{name:?} is neither a user nor a group of users here");
                wrongs.push((key.to_owned(), text));
            }
        }
    }
}

/// What is wrong with a fault that stands at `key`.
fn wrong_fault(key: &str, fault: &Fault, wrongs: &mut Wrongs) {
    let (needed, other) = fault.kind.keys();
    let (kind, given) = (fault.kind.name(), fault.given());
    for missing in needed.iter().filter(|name| !given.contains(name)) {
        wrongs.push((key.to_owned(), format!("`{missing}` is missing: {kind} needs it")));
    }
    for name in given {
        if !needed.contains(&name) && !other.contains(&name) {
            let takes = [needed, other].concat().join(", ");
            let text = format!("{kind} has no such key; it takes {takes}");
            wrongs.push((format!("{key}.{name}"), text));
        }
    }
    if let Some(every) = fault.every {
        within(wrongs, &format!("{key}.every"), every, 10 * MILLI, MAX_WORK);
    }
    if let Some(loss) = fault.loss {
        number(wrongs, &format!("{key}.loss"), loss.into(), 0, 1000);
    }
    if let Some(factor) = fault.factor {
        number(wrongs, &format!("{key}.factor"), factor.into(), 1, 1000);
    }
    if let Some(extra) = fault.extra {
        within(wrongs, &format!("{key}.extra"), extra, 0, 60 * SECOND);
    }
    if let Some(bandwidth) = fault.bandwidth {
        number(wrongs, &format!("{key}.bandwidth"), bandwidth, 1000, u64::MAX);
    }
    if let Some(step) = fault.step_ms {
        number(
            wrongs,
            &format!("{key}.step_ms"),
            step.unsigned_abs(),
            0,
            MAX_CLOCK_MS,
        );
    }
}

fn within(wrongs: &mut Wrongs, key: &str, span: Micros, least: Micros, most: Micros) {
    if !(least..=most).contains(&span) {
        let text = format!("expected {} to {}", span::show(least), span::show(most));
        wrongs.push((key.to_owned(), text));
    }
}

fn number(wrongs: &mut Wrongs, key: &str, value: u64, least: u64, most: u64) {
    if !(least..=most).contains(&value) {
        let text = if most == u64::MAX {
            format!("expected at least {least}")
        } else {
            format!("expected {least} to {most}")
        };
        wrongs.push((key.to_owned(), text));
    }
}
