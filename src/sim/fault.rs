//! What can go wrong, as data: the same descriptions stand in scenarios, are drawn by a seed, and are kept of a run.
//!
//! A fault names its targets. A *place* is a region (`us-east`), its core or its edges (`us-east/core`,
//! `us-east/edges`), its n-th edge (`us-east/edge-2`), a node by its name (`us-east/us-east-edge-1`), or `all`, `cores`,
//! `edges` everywhere. *Devices* are named `user`, `user/device-0`, or by a group of users. A target that is not there
//! leaves the fault without effect.

use serde::{Deserialize, Serialize};

use super::span;
use super::trace::Micros;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nodes die and start again after `lasts`.
    Crash,
    /// Nodes die and start again one after the other, `every` so often, each away for `lasts`.
    Rolling,
    /// Nodes stand still for `lasts`.
    Pause,
    /// Regions are gone for good.
    Lose,
    /// Nothing gets from one place to another, and back unless `one_way`; clients `near` the one may lose the other too.
    Cut,
    /// The same, on and off, `every` so often.
    Flap,
    /// What is sent between places comes after `lasts` only; connections stand.
    Clog,
    /// Connections between places break, nothing else.
    Break,
    /// Ways between places are slower by `factor` and `extra`, lose `loss` of a thousand, carry `bandwidth`.
    Slow,
    /// Changes of presence are lost on the way between places, and nobody knows.
    PresenceLost,
    /// Clients' connections break.
    Disconnect,
    /// What clients send is under way for `lasts`; meanwhile they give the connection up, and send it again on another one.
    Retry,
    /// Clients go away without a word and come back near the region `to`.
    Move,
    /// Clients lose all that they remember.
    Forget,
    /// Clients read nothing.
    StallRead,
    /// Applications handle nothing.
    StallApp,
    /// Devices go away, and come back after `lasts`.
    Leave,
    /// Nodes of one place take those of another for dead.
    FalseDeath,
    /// Stores stop under their nodes.
    StoreStop,
    /// Commits fail retryably, `loss` of a thousand.
    StoreErrors,
    /// Commits take `extra` longer.
    StoreSlow,
    /// Disks are full.
    StoreFull,
    /// The stores of regions are copied.
    Backup,
    /// The last copy is put back in place of the store; the region's core node is away for `lasts`.
    Restore,
    /// Disks are replaced by empty ones; the regions' core nodes are away for `lasts`.
    DiskReplaced,
    /// Wall clocks are off by `step_ms` more.
    Clock,
    /// The clients of regions are sent to others, and home again after `lasts`.
    Evacuate,
    /// Regions are added to those that keep shards; their nodes start with empty stores.
    RegionAdd,
    /// Regions are removed from those that keep shards; their nodes end when all is settled, and their disks are wiped.
    RegionRemove,
    /// Regions are removed that live and are taken for lost: what only they have is given up. Their nodes end once they know.
    RegionForceOut,
    /// Two operators remove one of two regions each, at once: one of them stays.
    RegionRivals,
}

impl Kind {
    /// All kinds, in the order of their names in the documentation.
    pub const ALL: [Kind; 31] = [
        Kind::Crash,
        Kind::Rolling,
        Kind::Pause,
        Kind::Lose,
        Kind::Cut,
        Kind::Flap,
        Kind::Clog,
        Kind::Break,
        Kind::Slow,
        Kind::PresenceLost,
        Kind::Disconnect,
        Kind::Retry,
        Kind::Move,
        Kind::Forget,
        Kind::StallRead,
        Kind::StallApp,
        Kind::Leave,
        Kind::FalseDeath,
        Kind::StoreStop,
        Kind::StoreErrors,
        Kind::StoreSlow,
        Kind::StoreFull,
        Kind::Backup,
        Kind::Restore,
        Kind::DiskReplaced,
        Kind::Clock,
        Kind::Evacuate,
        Kind::RegionAdd,
        Kind::RegionRemove,
        Kind::RegionForceOut,
        Kind::RegionRivals,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Crash => "crash",
            Kind::Rolling => "rolling",
            Kind::Pause => "pause",
            Kind::Lose => "lose",
            Kind::Cut => "cut",
            Kind::Flap => "flap",
            Kind::Clog => "clog",
            Kind::Break => "break",
            Kind::Slow => "slow",
            Kind::PresenceLost => "presence-lost",
            Kind::Disconnect => "disconnect",
            Kind::Retry => "retry",
            Kind::Move => "move",
            Kind::Forget => "forget",
            Kind::StallRead => "stall-read",
            Kind::StallApp => "stall-app",
            Kind::Leave => "leave",
            Kind::FalseDeath => "false-death",
            Kind::StoreStop => "store-stop",
            Kind::StoreErrors => "store-errors",
            Kind::StoreSlow => "store-slow",
            Kind::StoreFull => "store-full",
            Kind::Backup => "backup",
            Kind::Restore => "restore",
            Kind::DiskReplaced => "disk-replaced",
            Kind::Clock => "clock",
            Kind::Evacuate => "evacuate",
            Kind::RegionAdd => "region-add",
            Kind::RegionRemove => "region-remove",
            Kind::RegionForceOut => "region-force-out",
            Kind::RegionRivals => "region-rivals",
        }
    }

    /// The keys that it takes beside `at` and `kind`; the first group is needed.
    pub fn keys(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Kind::Crash
            | Kind::Pause
            | Kind::StoreFull
            | Kind::Restore
            | Kind::DiskReplaced
            | Kind::Evacuate => (&["on"], &["lasts"]),
            Kind::Rolling => (&["on"], &["lasts", "every", "told"]),
            Kind::Lose
            | Kind::StoreStop
            | Kind::Backup
            | Kind::RegionAdd
            | Kind::RegionRemove
            | Kind::RegionForceOut
            | Kind::RegionRivals => (&["on"], &[]),
            Kind::Cut => (&["from", "to"], &["lasts", "one_way", "clients"]),
            Kind::Flap => (&["from", "to", "every"], &["lasts", "one_way"]),
            Kind::Clog | Kind::PresenceLost => (&["from", "to"], &["lasts", "one_way"]),
            Kind::Break => (&["from", "to"], &[]),
            Kind::Slow => (
                &["from", "to"],
                &["lasts", "one_way", "loss", "factor", "extra", "bandwidth"],
            ),
            Kind::Disconnect | Kind::Forget => (&["devices"], &[]),
            Kind::Move => (&["devices", "to"], &["lasts"]),
            Kind::Retry | Kind::StallRead | Kind::StallApp => (&["devices"], &["lasts"]),
            Kind::Leave => (&["devices"], &["lasts", "told"]),
            Kind::FalseDeath => (&["from", "to"], &["lasts"]),
            Kind::StoreErrors => (&["on", "loss"], &["lasts"]),
            Kind::StoreSlow => (&["on", "extra"], &["lasts"]),
            Kind::Clock => (&["on", "step_ms"], &["lasts"]),
        }
    }
}

/// One thing that goes wrong at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When, from the start of the case.
    #[serde(with = "span")]
    pub at: Micros,
    /// What.
    pub kind: Kind,
    /// How long; without it until everything heals.
    #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Micros>,
    /// The places that it strikes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// One end of the ways that it strikes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// The other end, or where devices go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// The devices that it strikes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Only from `from` to `to`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_way: bool,
    /// The clients whose homes are in the regions of `from` lose those of `to` too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub clients: bool,
    /// The other side is told; of nodes that are restarted, their clients.
    #[serde(default, skip_serializing_if = "is_false")]
    pub told: bool,
    /// How often it changes, or the next is struck.
    #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
    pub every: Option<Micros>,
    /// Of a thousand so many are lost, or fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<u32>,
    /// So many times as slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<u32>,
    /// Slower by so much.
    #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
    pub extra: Option<Micros>,
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// Milliseconds that a clock jumps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_ms: Option<i64>,
}

impl Fault {
    /// A fault of a kind, without targets.
    pub fn new(at: Micros, kind: Kind) -> Self {
        Self {
            at,
            kind,
            lasts: None,
            on: Vec::new(),
            from: Vec::new(),
            to: Vec::new(),
            devices: Vec::new(),
            one_way: false,
            clients: false,
            told: false,
            every: None,
            loss: None,
            factor: None,
            extra: None,
            bandwidth: None,
            step_ms: None,
        }
    }

    /// For so long.
    pub fn lasting(mut self, lasts: Micros) -> Self {
        self.lasts = Some(lasts);
        self
    }

    /// On a place.
    pub fn on(mut self, place: impl Into<String>) -> Self {
        self.on.push(place.into());
        self
    }

    /// Between two places.
    pub fn between(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.from.push(from.into());
        self.to.push(to.into());
        self
    }

    /// On a device.
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.devices.push(device.into());
        self
    }

    /// The keys that it has beside `at` and `kind`.
    pub fn given(&self) -> Vec<&'static str> {
        let given = [
            ("lasts", self.lasts.is_some()),
            ("on", !self.on.is_empty()),
            ("from", !self.from.is_empty()),
            ("to", !self.to.is_empty()),
            ("devices", !self.devices.is_empty()),
            ("one_way", self.one_way),
            ("clients", self.clients),
            ("told", self.told),
            ("every", self.every.is_some()),
            ("loss", self.loss.is_some()),
            ("factor", self.factor.is_some()),
            ("extra", self.extra.is_some()),
            ("bandwidth", self.bandwidth.is_some()),
            ("step_ms", self.step_ms.is_some()),
        ];
        given
            .into_iter()
            .filter_map(|(key, is)| is.then_some(key))
            .collect()
    }

    /// In a few words, for the story.
    pub fn words(&self) -> String {
        let mut words = self.kind.name().to_owned();
        let mut add = |before: &str, names: &[String]| {
            if !names.is_empty() {
                words.push_str(before);
                words.push_str(&names.join(", "));
            }
        };
        add(" ", &self.on);
        add(" ", &self.devices);
        add(" from ", &self.from);
        add(" to ", &self.to);
        if self.one_way {
            words.push_str(", one way");
        }
        let numbers = [
            ("loss", self.loss.map(u64::from)),
            ("factor", self.factor.map(u64::from)),
            ("bandwidth", self.bandwidth),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                words.push_str(&format!(", {name} {number}"));
            }
        }
        if let Some(extra) = self.extra {
            words.push_str(&format!(", {} more", span::show(extra)));
        }
        if let Some(step) = self.step_ms {
            words.push_str(&format!(", by {step} ms"));
        }
        if let Some(every) = self.every {
            words.push_str(&format!(", every {}", span::show(every)));
        }
        if let Some(lasts) = self.lasts {
            words.push_str(&format!(", for {}", span::show(lasts)));
        }
        words
    }
}

fn is_false(is: &bool) -> bool {
    !is
}
