//! Faults that an operator injects into a running node, for drills: packets cut, lost or delayed, a process that stands still or
//! ends, a store that is slow or fails, a clock that is wrong.
//!
//! ```text
//! operator --> admin interface of the node itself --> Faults --+--> gates under the endpoints for peers and for clients
//!                                                              +--> the store's thread, before each commit
//!      watch_faults: what ends, which address a node has  -----+--> the wall clock of the node
//!                                                              +--> a watcher process, or SIGKILL
//! ```
//!
//! Each fault ends by itself, by the monotonic clock of the node: whoever injected it need not be there any more. Only what
//! `faults.wan` sets lasts as long as the node. With `faults.allowed = false` every one is refused.
//!
//! Nodes dial from the socket that they listen on, so packets of a connection carry the addresses by which nodes know each other,
//! whoever dialled: that of a region's file or of gossip. Where they do not (an address is translated on the way) the address of
//! the connection that stands is used, too.

mod model;
mod process;
mod store;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::clock::{Wall, system_ms};
use super::config::FaultsConfig;
use super::inspect::Inspector;
use super::regions::Regions;
use crate::core::ids::{NodeKey, RegionId};
use crate::net::gate::{Gate, Rule, Rules};

pub use model::{
    DEFAULT_LIFE, Direction, Fault, FaultError, MAX_CLOCK_MS, MAX_DELAY_MS, MAX_LIFE, MIN_LIFE, Selector,
    check_life,
};
pub use process::{GRACE, WATCHES, Watcher, stay_away};
pub(super) use store::StoreFaults;

use store::Failing;

/// Faults that a node has at a time, those of `faults.wan` left out.
pub const MAX_FAULTS: usize = 64;
/// While packets of other nodes are concerned, their addresses are looked up so often: one that restarts elsewhere, or that
/// connects from an address that nobody knew, is met within this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A fault that a node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// Its number, which no other fault of this start of the node has.
    pub id: u64,
    /// What it is.
    pub fault: Fault,
    /// Since when, unix milliseconds by the system's clock.
    pub since_ms: u64,
    /// For how long; none where it lasts as long as the node.
    pub lasts: Option<Duration>,
    /// When it ends, then.
    ends: Option<Instant>,
}

impl Injected {
    /// How long it lasts from now on.
    pub fn left(&self) -> Option<Duration> {
        let ends = self.ends?;
        Some(ends.saturating_duration_since(Instant::now()))
    }
}

/// What of a node can fail.
#[derive(Debug, Clone)]
pub(super) struct Here {
    pub(super) node: NodeKey,
    /// Its data folder.
    pub(super) data: PathBuf,
    /// It has a store.
    pub(super) store: bool,
    /// It serves clients.
    pub(super) clients: bool,
}

/// The faults of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: FaultsConfig,
    here: Here,
    peers: Gate,
    clients: Gate,
    store: Arc<StoreFaults>,
    wall: Wall,
    /// Where the process is this node's alone: what stops it.
    watcher: OnceLock<Watcher>,
    held: Mutex<Held>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    /// The last number that was given.
    last: u64,
    /// In order of their numbers.
    faults: Vec<Injected>,
}

/// The addresses that packets of other nodes carry.
type Addresses = BTreeSet<(NodeKey, SocketAddr)>;

impl Faults {
    pub(super) fn new(config: &FaultsConfig, here: Here, regions: &Regions) -> Self {
        let faults = Self(Arc::new(Inner {
            config: config.clone(),
            here,
            peers: Gate::new(),
            clients: Gate::new(),
            store: Arc::default(),
            wall: Wall::default(),
            watcher: OnceLock::new(),
            held: Mutex::default(),
            changed: Notify::new(),
        }));
        faults.lay_wan(regions);
        faults
    }

    /// Under the endpoint for other nodes.
    pub(super) fn peers(&self) -> &Gate {
        &self.0.peers
    }

    /// Under the endpoint for clients.
    pub(super) fn clients(&self) -> &Gate {
        &self.0.clients
    }

    pub(super) fn store(&self) -> Arc<StoreFaults> {
        self.0.store.clone()
    }

    /// The clock that may be shifted.
    pub(super) fn wall(&self) -> &Wall {
        &self.0.wall
    }

    /// The word of whoever runs the process that the node is alone in it: it may be stopped and killed then.
    pub fn own_process(&self, watcher: Watcher) {
        // Nobody says it twice.
        let _ = self.0.watcher.set(watcher);
    }

    /// The faults that there are, in order of their numbers.
    pub fn list(&self) -> Vec<Injected> {
        self.held().faults.clone()
    }

    /// Whether any may be injected.
    pub fn allowed(&self) -> bool {
        self.0.config.allowed
    }

    /// Why this node can be neither paused nor crashed, if it cannot.
    pub fn cannot_end(&self) -> Option<String> {
        let node = &self.0.here.node;
        if self.0.watcher.get().is_none() {
            return Some(format!(
                "the process of node {node} may be shared by others, and must not stop for one: start `iris dev` with \
                 --processes, or each node with `iris serve`"
            ));
        }
        process::is_first().then(|| {
            format!(
                "the process of node {node} is number 1 of its container, which the system does not let be stopped from within: \
                 start it below an init (docker run --init)"
            )
        })
    }

    /// Injects a fault. It is in force when this returns, but for one of the process: that follows in a moment. A node that
    /// crashes stays away for `lasts`, which may be none at all.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn inject(
        &self,
        node: &Inspector,
        fault: Fault,
        lasts: Duration,
    ) -> Result<Injected, FaultError> {
        self.judge(node, &fault, lasts)?;
        match (&fault, self.0.watcher.get()) {
            (Fault::Pause, Some(watcher)) => {
                watcher.pause(lasts).await.map_err(|error| FaultError::System {
                    what: "pause",
                    why: error.to_string(),
                })?;
            }
            (Fault::Crash, Some(_)) => {
                if !lasts.is_zero() {
                    process::keep_away(&self.0.here.data, lasts).map_err(|error| FaultError::System {
                        what: "crash",
                        why: error.to_string(),
                    })?;
                }
                process::crash();
            }
            _ => {}
        }
        let injected = {
            let mut held = self.held();
            held.last += 1;
            let injected = Injected {
                id: held.last,
                fault,
                since_ms: system_ms(),
                lasts: Some(lasts),
                ends: Some(Instant::now() + lasts),
            };
            held.faults.push(injected.clone());
            injected
        };
        tracing::warn!(id = injected.id, fault = %injected.fault, ?lasts, "a fault is injected");
        self.apply(node);
        self.0.changed.notify_one();
        Ok(injected)
    }

    /// Ends one fault, or all that would end by themselves. Returns them. A process that stands still goes on when its time
    /// is over.
    ///
    /// # Errors
    /// [`FaultError::NotFound`], [`FaultError::NotHere`].
    pub fn clear(&self, node: &Inspector, id: Option<u64>) -> Result<Vec<Injected>, FaultError> {
        let ended: Vec<Injected> = {
            let mut held = self.held();
            if let Some(id) = id {
                let found = held.faults.iter().find(|fault| fault.id == id);
                let name = &self.0.here.node.node;
                let found = found.ok_or_else(|| {
                    FaultError::NotFound(format!(
                        "there is no fault {name}/{id}: it may have ended, see `iris fault list`"
                    ))
                })?;
                if found.ends.is_none() {
                    return Err(FaultError::NotHere(format!(
                        "{name}/{id} lasts as long as the node: start it without faults.wan, or `iris dev` without --wan"
                    )));
                }
            }
            let goes = |fault: &mut Injected| fault.ends.is_some() && id.is_none_or(|id| fault.id == id);
            held.faults.extract_if(.., goes).collect()
        };
        for fault in &ended {
            tracing::warn!(id = fault.id, fault = %fault.fault, "a fault was ended by an operator");
        }
        self.apply(node);
        self.0.changed.notify_one();
        Ok(ended)
    }

    fn judge(&self, node: &Inspector, fault: &Fault, lasts: Duration) -> Result<(), FaultError> {
        let here = &self.0.here;
        if !self.0.config.allowed {
            return Err(FaultError::NotAllowed(here.node.node.clone()));
        }
        if *fault != Fault::Crash || !lasts.is_zero() {
            check_life(lasts)?;
        }
        fault.check()?;
        match fault.selector() {
            Some(Selector::Clients) if !here.clients => {
                let why = format!(
                    "{}: node {} has no clients: choose an edge node",
                    fault.kind(),
                    here.node
                );
                return Err(FaultError::NotHere(why));
            }
            Some(Selector::Node(name)) if *name == here.node.node => {
                let why = format!("{}: {name} is this node itself: choose another one", fault.kind());
                return Err(FaultError::NotHere(why));
            }
            Some(Selector::Node(name)) if node.nodes().keys().all(|key| key.node != *name) => {
                return Err(FaultError::NotFound(format!("there is no node {name}")));
            }
            Some(Selector::Region(region)) if node.regions().region(region.as_str()).is_none() => {
                let known = node.regions().ids().collect::<Vec<_>>().join(", ");
                return Err(FaultError::NotFound(format!(
                    "there is no region {region}: expected one of {known}"
                )));
            }
            _ => {}
        }
        if fault.is_of_store() && !here.store {
            let why = format!(
                "{}: node {} has no store: choose a core node",
                fault.kind(),
                here.node
            );
            return Err(FaultError::NotHere(why));
        }
        if matches!(fault, Fault::Pause | Fault::Crash)
            && let Some(why) = self.cannot_end()
        {
            return Err(FaultError::NotHere(format!("{}: {why}", fault.kind())));
        }
        let held = self.held();
        let pauses = held.faults.iter().any(|held| held.fault == Fault::Pause);
        if *fault == Fault::Pause && pauses {
            // The first to end would let it go on.
            let why = format!("pause: node {} is paused already: wait for its end", here.node);
            return Err(FaultError::NotHere(why));
        }
        if held.faults.iter().filter(|held| held.ends.is_some()).count() >= MAX_FAULTS {
            let why = format!(
                "node {} has {MAX_FAULTS} faults, and takes no more: end some with `iris fault clear`",
                here.node
            );
            return Err(FaultError::NotHere(why));
        }
        Ok(())
    }

    /// With `faults.wan`: a delay to each other region, for as long as the node runs.
    fn lay_wan(&self, regions: &Regions) {
        let own = &self.0.here.node.region;
        let place = regions.region(own.as_str()).map(|file| file.place);
        let Some(place) = place.filter(|_| self.0.config.wan) else {
            return;
        };
        let mut held = self.held();
        for file in regions.iter().filter(|file| file.id != own.as_str()) {
            let Ok(region) = RegionId::new(&file.id) else {
                continue;
            };
            let with = Selector::Region(region);
            let laid = |held: &Injected| held.ends.is_none() && held.fault.selector() == Some(&with);
            if held.faults.iter().any(laid) {
                continue;
            }
            // Rounded, as all that people read of delays.
            let ms = place.one_way_us(&file.place).div_ceil(1000);
            held.last += 1;
            let injected = Injected {
                id: held.last,
                fault: Fault::Delay {
                    with,
                    ms,
                    jitter_ms: 0,
                },
                since_ms: system_ms(),
                lasts: None,
                ends: None,
            };
            held.faults.push(injected);
        }
    }

    /// Ends what is due. Says when the next one is.
    fn end(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut held = self.held();
        let due = |fault: &mut Injected| fault.ends.is_some_and(|ends| ends <= now);
        let ended: Vec<Injected> = held.faults.extract_if(.., due).collect();
        for fault in ended {
            tracing::warn!(id = fault.id, fault = %fault.fault, "an injected fault has ended");
        }
        held.faults.iter().filter_map(|fault| fault.ends).min()
    }

    /// Whether packets of other nodes are concerned.
    fn concerns_nodes(&self) -> bool {
        let of_nodes = |with: &Selector| *with != Selector::Clients;
        let held = self.held();
        held.faults
            .iter()
            .any(|held| held.fault.selector().is_some_and(of_nodes))
    }

    /// Puts in force what there is, and nothing else.
    fn apply(&self, node: &Inspector) {
        let addresses = if self.concerns_nodes() {
            addresses(node)
        } else {
            Addresses::new()
        };
        // Held until all is set: of two that apply, the one that saw more comes last.
        let held = self.held();
        let (mut peers, mut clients) = (Rules::default(), Rules::default());
        let (mut slow_ms, mut failing, mut ahead_ms) = (0, Failing::No, 0);
        for injected in &held.faults {
            let fault = &injected.fault;
            match (fault.selector(), rule(fault)) {
                (Some(Selector::Clients), Some(rule)) => clients.add(rule),
                (Some(with), Some(rule)) => {
                    for (_, addr) in addresses.iter().filter(|(key, _)| with.has(key)) {
                        peers.add_for(*addr, rule);
                    }
                }
                _ => {}
            }
            match fault {
                Fault::StoreSlow { ms } => slow_ms += ms,
                Fault::StoreFail => failing = failing.max(Failing::Retryably),
                Fault::StoreFull => failing = failing.max(Failing::Full),
                Fault::Clock { ms } => ahead_ms += ms,
                _ => {}
            }
        }
        self.0.peers.set(peers);
        self.0.clients.set(clients);
        self.0.store.set(slow_ms, failing);
        self.0.wall.set_ahead(ahead_ms);
        drop(held);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a fault does to packets.
fn rule(fault: &Fault) -> Option<Rule> {
    match fault {
        Fault::Cut { direction, .. } => Some(Rule {
            cut_in: direction.is_in(),
            cut_out: direction.is_out(),
            ..Rule::default()
        }),
        Fault::Delay { ms, jitter_ms, .. } => Some(Rule {
            delay: Duration::from_millis(*ms),
            jitter: Duration::from_millis(*jitter_ms),
            ..Rule::default()
        }),
        Fault::Loss {
            percent, direction, ..
        } => Some(Rule {
            loss_in: if direction.is_in() { *percent } else { 0 },
            loss_out: if direction.is_out() { *percent } else { 0 },
            ..Rule::default()
        }),
        _ => None,
    }
}

fn addresses(node: &Inspector) -> Addresses {
    let snapshot = node.pool().snapshot();
    let mut found: Addresses = node.nodes().into_iter().collect();
    let links = snapshot.links.into_iter();
    found.extend(links.filter_map(|link| Some((link.peer?, link.addr))));
    found.extend(
        snapshot
            .inbound
            .into_iter()
            .map(|inbound| (inbound.peer, inbound.remote)),
    );
    found.retain(|(key, _)| key != node.key());
    found
}

/// Ends faults when their time is over, and follows the addresses of other nodes, until stopped.
pub(super) async fn watch_faults(node: Inspector, mut stop: watch::Receiver<bool>) {
    let faults = node.faults().clone();
    loop {
        faults.lay_wan(&node.regions());
        let next = faults.end();
        faults.apply(&node);
        let look = faults.concerns_nodes().then(|| Instant::now() + LOOK_EVERY);
        let wake = next.into_iter().chain(look).min();
        let sleep = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = faults.0.changed.notified() => {}
            _ = stop.changed() => return,
        }
    }
}

#[cfg(test)]
mod tests;
