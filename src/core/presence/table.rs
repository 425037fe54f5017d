//! The registers of a shard: merge, what changed, pages, the index by edge, and tombstones.
//!
//! # Tombstones
//!
//! Terminal records are kept without any regard to time: at most [`MAX_TERMINALS_PER_USER`] of a user and
//! [`MAX_TERMINALS_PER_SHARD`] of a shard, and beyond that the one written or merged longest ago goes. If a region still
//! holds the live record of a session whose tombstone went, it can come back, but only until it reaches the region that
//! wrote it: there no edge has that session, so its owner ends it again. Regions may so differ in which tombstones they
//! keep beyond these limits, never for long in what is visible.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crdts::{CvRDT, LWWReg};
use serde::{Deserialize, Serialize};

use super::digest::{self, Places};
use super::local::{Effect, Local, SessionRef};
use super::record::{Delta, Edge, Entry, Live, Version};
use super::{MAX_DELTA_RECORDS, MAX_TERMINALS_PER_SHARD, MAX_TERMINALS_PER_USER};
use crate::core::defect::{self, Defect};
use crate::core::ids::{DeviceId, Generation, NodeKey, RegionId, SessionId, UserId};

/// A device's record; `None` holds the value of a terminal version, and of the version 0 before the first.
pub type Register = LWWReg<Option<Arc<Live>>, Version>;
/// Whose record.
pub type Key = (UserId, DeviceId);

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeOutcome {
    /// It was newer: the register holds it, unless a local session re-asserted itself at once.
    Newer,
    /// The register holds just that.
    Same,
    /// The register holds something newer.
    Older,
    /// The same version with another value, which a writer must never make. The greater value stays in every region, so
    /// that they converge even then; it is counted, and is a defect or an attack to look into.
    Invalid {
        /// Whether the incoming value was the greater.
        replaced: bool,
    },
}

/// Where a change came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Merged from another region, which tells the others itself.
    Merged,
    /// Written here.
    Local,
}

/// What happened since this owner began; exported by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Merged records that were newer.
    pub merged_newer: u64,
    /// Merged records that were known.
    pub merged_same: u64,
    /// Merged records that were older.
    pub merged_older: u64,
    /// Records with a known version and another value.
    pub invalid: u64,
    /// Sessions admitted or attached again.
    pub admitted: u64,
    /// Sessions refused at the limit of live devices.
    pub refused: u64,
    /// Claimed connect epochs that were cut.
    pub epochs_cut: u64,
    /// Status changes written.
    pub status_changes: u64,
    /// Terminal records written.
    pub ended: u64,
    /// Sessions that re-asserted themselves under a new connect epoch.
    pub reasserted: u64,
    /// Probes asked for.
    pub probes: u64,
    /// Probes that were not answered.
    pub unanswered: u64,
    /// Sessions closed as superseded.
    pub superseded: u64,
    /// Tombstones dropped beyond a limit.
    pub evicted: u64,
}

/// What is known of one device.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) register: Register,
    /// The session attached to this owner; its record is the register's unless it lost a merge.
    pub(super) local: Option<Box<Local>>,
    /// For a tombstone, its place in [`Presence::terminals`].
    tick: Option<u64>,
}

impl Slot {
    fn is_vacant(&self) -> bool {
        self.register.marker == Version::default() && self.local.is_none()
    }

    pub(super) fn is_live(&self) -> bool {
        self.register.val.is_some() || self.local.is_some()
    }
}

/// What a change of a slot touches beside it.
pub(super) struct Context<'a> {
    pub(super) region: &'a RegionId,
    pub(super) counters: &'a mut Counters,
    pub(super) effects: &'a mut VecDeque<Effect>,
    /// Set where something was written rather than merged.
    pub(super) source: Source,
}

/// The presence of a shard's users at its owner in one region.
#[derive(Debug, Clone)]
pub struct Presence {
    region: RegionId,
    /// Boxed, because a map takes room for eleven at once and nearly every user has one device.
    users: BTreeMap<UserId, BTreeMap<DeviceId, Box<Slot>>>,
    /// This region's live records and attached sessions by their edge.
    edges: BTreeMap<Edge, BTreeSet<Key>>,
    /// Tombstones in the order in which they came.
    terminals: BTreeMap<u64, Key>,
    next_tick: u64,
    /// What digests are made of.
    pub(super) places: Places,
    changed: BTreeMap<Key, Source>,
    effects: VecDeque<Effect>,
    counters: Counters,
}

impl Presence {
    /// Nothing known yet, at an owner in `region`.
    pub fn new(region: RegionId) -> Self {
        Self {
            region,
            users: BTreeMap::new(),
            edges: BTreeMap::new(),
            terminals: BTreeMap::new(),
            next_tick: 0,
            places: Places::default(),
            changed: BTreeMap::new(),
            effects: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// The region of this owner.
    pub fn region(&self) -> &RegionId {
        &self.region
    }

    /// Merges a record of another region (or of an earlier owner of this one).
    pub fn merge(&mut self, entry: Entry) -> MergeOutcome {
        let (user, device, marker, val) = entry.into_parts();
        self.with_slot((user.clone(), device.clone()), |slot, context| {
            let outcome = merge_register(&mut slot.register, Register { val, marker });
            match outcome {
                MergeOutcome::Newer => context.counters.merged_newer += 1,
                MergeOutcome::Same => context.counters.merged_same += 1,
                MergeOutcome::Older => context.counters.merged_older += 1,
                MergeOutcome::Invalid { .. } => context.counters.invalid += 1,
            }
            slot.settle(&user, &device, context);
            outcome
        })
    }

    /// What to do about sessions, in order. At most a few per call of another method: drain it after each.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The keys whose register changed since the last call: for the links to other regions and for watchers. Never more
    /// than there are records.
    pub fn take_changed(&mut self) -> BTreeMap<Key, Source> {
        std::mem::take(&mut self.changed)
    }

    /// Takes up to `limit` keys (at most [`MAX_DELTA_RECORDS`]) off a link's dirty set and gives their records.
    pub fn take_delta(&self, dirty: &mut BTreeSet<Key>, limit: usize) -> Delta {
        let mut delta = Delta::default();
        while delta.records.len() < limit.min(MAX_DELTA_RECORDS) {
            let Some(key) = dirty.pop_first() else { break };
            delta.records.extend(self.record(&key.0, &key.1));
        }
        delta
    }

    /// A page of all records in order of key, from after `after`: up to `limit` (at most [`MAX_DELTA_RECORDS`]); an empty
    /// page ends it.
    pub fn all_records(&self, after: Option<&Key>, limit: usize) -> Delta {
        let start = after.map_or(Bound::Unbounded, |(user, _)| Bound::Included(user));
        let records = self
            .users
            .range::<UserId, _>((start, Bound::Unbounded))
            .flat_map(|(user, devices)| devices.iter().map(move |(device, slot)| (user, device, slot)))
            .filter(|(user, device, _)| after.is_none_or(|(u, d)| (*user, *device) > (u, d)))
            .filter(|(_, _, slot)| slot.register.marker.connect_epoch > 0)
            .take(limit.min(MAX_DELTA_RECORDS))
            .map(|(user, device, slot)| entry_of(user, device, slot))
            .collect();
        Delta { records }
    }

    /// The record of one device.
    pub fn record(&self, user: &UserId, device: &DeviceId) -> Option<Entry> {
        let slot = self.slot(user, device)?;
        Some(entry_of(user, device, slot))
    }

    /// The records of a user, tombstones too, in order of device.
    pub fn records_of(&self, user: &UserId) -> impl Iterator<Item = Entry> {
        self.users
            .get_key_value(user)
            .into_iter()
            .flat_map(|(user, devices)| {
                devices
                    .iter()
                    .map(move |(device, slot)| entry_of(user, device, slot))
            })
    }

    /// Users with a live record written by `region`: whose visible status changes when it goes out of reach or comes back.
    /// Looks at every record.
    pub fn users_in(&self, region: &RegionId) -> impl Iterator<Item = &UserId> {
        self.users
            .iter()
            .filter(move |(_, devices)| {
                devices.values().any(|slot| {
                    slot.register
                        .val
                        .as_ref()
                        .is_some_and(|live| live.region == *region)
                })
            })
            .map(|(user, _)| user)
    }

    /// The edges with sessions of this region, live here as far as known.
    pub fn edges(&self) -> impl Iterator<Item = &Edge> {
        self.edges.keys()
    }

    /// This region's sessions on an edge, and whether the edge has attached each to this owner.
    pub fn sessions_on(&self, edge: &Edge) -> impl Iterator<Item = (SessionRef, bool)> {
        let keys = self.edges.get(edge).into_iter().flatten();
        keys.filter_map(|key| Some((key, self.slot(&key.0, &key.1)?)))
            .flat_map(|((user, device), slot)| {
                slot.own_sessions(&self.region)
                    .into_iter()
                    .flatten()
                    .map(move |(session, edge, attached)| {
                        let at = SessionRef {
                            user: user.clone(),
                            device: device.clone(),
                            session,
                            edge: edge.clone(),
                        };
                        (at, attached)
                    })
            })
            .filter(move |(at, _)| at.edge == *edge)
    }

    /// Ends all sessions of this region on earlier incarnations of `node` than `below`; gives those ended.
    pub fn end_all_of(&mut self, node: &NodeKey, below: Generation) -> Vec<SessionRef> {
        let first = |generation| Edge {
            node: node.clone(),
            generation,
        };
        let dead: Vec<Edge> = self
            .edges
            .range(first(Generation(0))..first(below))
            .map(|(edge, _)| edge.clone())
            .collect();
        dead.iter()
            .flat_map(|edge| self.end_missing(edge, &BTreeSet::new()))
            .collect()
    }

    /// Ends the sessions of this region on `edge` that are not in its set; gives those ended. For use once the edge has
    /// attached its whole set and the grace passed.
    pub fn end_missing(&mut self, edge: &Edge, set: &BTreeSet<SessionId>) -> Vec<SessionRef> {
        let missing: Vec<SessionRef> = self
            .sessions_on(edge)
            .map(|(at, _)| at)
            .filter(|at| !set.contains(&at.session))
            .collect();
        for at in &missing {
            self.end(&at.user, &at.device, at.session);
        }
        missing
    }

    /// Users with at least one record.
    pub fn users(&self) -> impl Iterator<Item = &UserId> {
        self.users.keys()
    }

    /// Records held, tombstones too. Walks all users.
    pub fn records(&self) -> usize {
        self.users.values().map(BTreeMap::len).sum()
    }

    /// Tombstones kept.
    pub fn tombstones(&self) -> usize {
        self.terminals.len()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn slot(&self, user: &UserId, device: &DeviceId) -> Option<&Slot> {
        self.users.get(user)?.get(device).map(|slot| &**slot)
    }

    pub(super) fn slots_of(&self, user: &UserId) -> impl Iterator<Item = (&DeviceId, &Slot)> {
        let slots = self.users.get(user).into_iter().flatten();
        slots.map(|(device, slot)| (device, &**slot))
    }

    pub(super) fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Changes a slot (a vacant one if there was none) and keeps the indexes, tombstones and changes in step.
    pub(super) fn with_slot<R>(
        &mut self,
        key: Key,
        change: impl FnOnce(&mut Slot, &mut Context<'_>) -> R,
    ) -> R {
        let slot = self
            .users
            .entry(key.0.clone())
            .or_default()
            .entry(key.1.clone())
            .or_default()
            .as_mut();
        let mut context = Context {
            region: &self.region,
            counters: &mut self.counters,
            effects: &mut self.effects,
            source: Source::Merged,
        };
        let before = (
            slot.register.clone(),
            slot.local.as_ref().map(|local| local.live.clone()),
        );
        let result = change(slot, &mut context);
        let source = context.source;

        let old = own_edges(&self.region, &before.0, before.1.as_deref());
        let new = own_edges(
            &self.region,
            &slot.register,
            slot.local.as_ref().map(|local| &*local.live),
        );
        if old != new {
            for edge in old
                .into_iter()
                .flatten()
                .filter(|edge| !new.contains(&Some(edge)))
            {
                if let Some(keys) = self.edges.get_mut(edge) {
                    keys.remove(&key);
                    if keys.is_empty() {
                        self.edges.remove(edge);
                    }
                }
            }
            for edge in new
                .into_iter()
                .flatten()
                .filter(|edge| !old.contains(&Some(edge)))
            {
                self.edges.entry(edge.clone()).or_default().insert(key.clone());
            }
        }
        if slot.is_vacant() {
            self.remove(&key);
        } else if slot.register != before.0 {
            self.places
                .set(&key, digest::hash_of(&entry_of(&key.0, &key.1, slot)));
            if let Some(tick) = slot.tick.take() {
                self.terminals.remove(&tick);
            }
            if slot.register.marker.is_terminal() {
                slot.tick = Some(self.next_tick);
                self.terminals.insert(self.next_tick, key.clone());
                self.next_tick += 1;
                self.evict(&key.0);
            }
            let known = self.changed.entry(key).or_insert(source);
            *known = source.max(*known);
        }
        result
    }

    /// Drops tombstones beyond the limits, those that came first.
    fn evict(&mut self, user: &UserId) {
        let devices = self.users.get(user).into_iter().flat_map(BTreeMap::values);
        let (count, first) = devices
            .filter_map(|slot| slot.tick)
            .fold((0, u64::MAX), |(count, first), tick| (count + 1, first.min(tick)));
        let over_user = (count > MAX_TERMINALS_PER_USER).then_some(first);
        let over_shard = (self.terminals.len() > MAX_TERMINALS_PER_SHARD)
            .then(|| self.terminals.first_key_value().map(|(tick, _)| *tick))
            .flatten();
        if let Some(key) = over_user
            .or(over_shard)
            .and_then(|tick| self.terminals.remove(&tick))
        {
            self.counters.evicted += 1;
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        self.places.remove(key);
        let (user, device) = key;
        if let Some(devices) = self.users.get_mut(user) {
            devices.remove(device);
            if devices.is_empty() {
                self.users.remove(user);
            }
        }
    }
}

/// Merges, and chooses the same winner everywhere where one version comes with two values (`LWWReg` would keep its own).
pub(super) fn merge_register(register: &mut Register, incoming: Register) -> MergeOutcome {
    if register.validate_merge(&incoming).is_err() {
        let replaced = incoming.val > register.val && !defect::on(Defect::KeepsOwn);
        if replaced {
            *register = incoming;
        }
        return MergeOutcome::Invalid { replaced };
    }
    match incoming.marker.cmp(&register.marker) {
        std::cmp::Ordering::Less => MergeOutcome::Older,
        std::cmp::Ordering::Equal => MergeOutcome::Same,
        std::cmp::Ordering::Greater => {
            register.merge(incoming);
            MergeOutcome::Newer
        }
    }
}

fn entry_of(user: &UserId, device: &DeviceId, slot: &Slot) -> Entry {
    Entry::of(user, device, slot.register.marker, slot.register.val.clone())
}

/// The edges under which a slot is indexed: that of the register where it is this region's, and the attached session's.
fn own_edges<'a>(
    region: &RegionId,
    register: &'a Register,
    local: Option<&'a Live>,
) -> [Option<&'a Edge>; 2] {
    let own = register.val.as_deref().filter(|live| live.region == *region);
    [own.map(|live| &live.edge), local.map(|live| &live.edge)]
}
