//! Repair of presence by digests: two regions find the records in which they differ, and tell each other only those.
//!
//! Both ends of a link are providers of presence, each on its own lane, and all of this is said there, within the credit of
//! presence. The region with the lesser name says its digests every `presence_repair_ms`; the other one compares:
//!
//! ```text
//!  lesser                                            greater
//!    | PresenceDigests  every shard                    |
//!    |------------------------------------------------>| equal: nothing is said
//!    |                 digests of nodes, lists of few  |
//!    |<-------------------------------- PresenceCompared one differs
//!    | those of the nodes below that differ            |
//!    |------------------------------------------------>|  ... until a node has few live records
//!    | what it lacks by a list: wants; what the list   |
//!    | lacks: its own items; what is newer: records    |
//!    |------------------------------------------------>|
//! ```
//!
//! A difference is found by going down from the shard to nodes with [few](crate::core::presence::digest) records, so its cost
//! grows with its own size, and with the shard only by some ten bytes for each doubling of the distance between two records
//! that differ. Who has nothing at all says so and is sent everything: so a link fills a region that lost its memory.
//!
//! # What is under way
//!
//! Changes are sent by the way, so digests of a busy shard mostly differ by what is under way. They are looked into when a
//! link or a shard on it is new; when both are what they were a round before, so that nothing was under way; and else after
//! [`BUSY_ROUNDS`]. What waits to be sent as a change is not sent as repair.
//!
//! # Bounds
//!
//! What is to be told or sent is remembered as nodes and keys, at most [`MAX_STEPS`] of each for a subscriber; what is more is
//! left out, and found again in the next round. A message holds at most [`MAX_PARTS`] parts, with shards and nodes in order, so that
//! none is gone through twice; one that holds more, or is not so, or speaks of nodes that there are not, ends the lane that
//! brought it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::{LinkOutput, Links, PeerId, PresenceSource};
use crate::core::defect::{self, Defect};
use crate::core::ids::ShardId;
use crate::core::limits::ms;
use crate::core::msg::{MAX_ITEMS, RecordEntry, ToSubscriber};
use crate::core::presence::digest::At;
use crate::core::presence::{Comparison, Digest, Judgement, Node, Presence, Told};
use crate::core::time::Mono;

/// Nodes and keys that wait to be told to one subscriber, and records that wait to be sent: a megabyte or two each.
const MAX_STEPS: usize = 64 * 1024;
/// Nodes and keys in one message: with all digests and items some 20 KB.
const STEPS: usize = 512;
/// Most that a message of another region may hold.
pub(super) const MAX_PARTS: usize = 64 * 1024;
/// Rounds in which the digests of a busy shard may differ before that is looked into.
const BUSY_ROUNDS: u32 = 6;

/// What is to be told of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// That there is nothing.
    Blank,
    /// A node: its children's digests, or its items.
    Node(Node),
    /// The items under a key, which the other side did not list.
    Item(u32),
    /// That the records under a key are wanted.
    Want(u32),
}

/// Digests that differed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Differing {
    ours: Digest,
    theirs: Digest,
    /// In so many rounds.
    rounds: u32,
}

/// What is to be compared with one subscriber, and what it is to be sent for it.
#[derive(Debug, Default)]
pub(super) struct Repair {
    /// Shards that are new on the link.
    pub fresh: BTreeSet<ShardId>,
    steps: BTreeSet<(ShardId, Step)>,
    /// Keys of records that it lacks.
    lacks: BTreeSet<(ShardId, u32)>,
    /// Shards of which it has nothing.
    whole: BTreeSet<ShardId>,
    /// The one that is being sent, and how far.
    paging: Option<(ShardId, Option<At>)>,
    /// Shards whose digests differed when they were compared last.
    differing: BTreeMap<ShardId, Differing>,
    /// Something was left out: what differs is looked into in the next round.
    left_out: bool,
    round_at: Option<Mono>,
    round_due: bool,
    /// What is new is to be compared now.
    soon: bool,
    salt: u32,
}

impl Repair {
    pub fn forget(&mut self, shard: ShardId) {
        self.fresh.remove(&shard);
        self.steps.retain(|(of, _)| *of != shard);
        self.lacks.retain(|(of, _)| *of != shard);
        self.whole.remove(&shard);
        self.paging.take_if(|(of, _)| *of == shard);
        self.differing.remove(&shard);
    }

    /// Changes were left out.
    pub fn overflowed(&mut self) {
        self.left_out = true;
    }

    pub fn due(&self) -> Option<Mono> {
        self.round_at
    }

    pub fn take_due(&mut self, now: Mono) -> bool {
        let due = self.round_at.take_if(|at| *at <= now).is_some();
        self.round_due |= due;
        due
    }

    fn step(&mut self, shard: ShardId, step: Step) {
        if self.steps.len() < MAX_STEPS {
            self.steps.insert((shard, step));
        } else {
            self.left_out = true;
        }
    }

    fn lacks(&mut self, shard: ShardId, key: u32) {
        if self.lacks.len() < MAX_STEPS {
            self.lacks.insert((shard, key));
        } else {
            self.left_out = true;
        }
    }

    fn whole(&mut self, shard: ShardId) {
        if self.paging.as_ref().is_none_or(|(of, _)| *of != shard) {
            self.whole.insert(shard);
        }
    }

    /// The other side told the digest of a shard: whether what differs is to be looked into now.
    fn compare(&mut self, shard: ShardId, ours: Digest, theirs: Digest, at_once: bool) -> bool {
        if ours.sum == theirs.sum {
            self.differing.remove(&shard);
            return false;
        }
        let before = self.differing.get(&shard);
        let still = before.is_some_and(|before| (before.ours, before.theirs) == (ours, theirs));
        let rounds = before.map_or(0, |before| before.rounds) + 1;
        let now = at_once || still || rounds > BUSY_ROUNDS;
        let rounds = if now { 0 } else { rounds };
        let differing = Differing { ours, theirs, rounds };
        self.differing.insert(shard, differing);
        now
    }

    /// Looks into a shard that differs.
    fn look_into(&mut self, shard: ShardId, ours: Digest, theirs: Digest) {
        if defect::on(Defect::RepairsWhole) {
            self.whole(shard);
            self.step(shard, Step::Blank);
        } else if theirs.blank {
            self.whole(shard);
        } else if ours.blank {
            self.step(shard, Step::Blank);
        } else {
            self.step(shard, Step::Node(Node::ROOT));
        }
    }

    /// What follows from what the other side told of a shard; false where it makes no sense.
    fn heard(&mut self, table: &Presence, salt: u32, told: &Comparison) -> bool {
        let shard = told.shard;
        let nodes = told.sums.iter().map(|(node, _)| node);
        if !nodes.is_sorted_by(|a, b| a < b) || !told.lists.is_sorted_by(|a, b| a.0 < b.0) {
            return false;
        }
        if told.blank {
            self.whole(shard);
        }
        for (node, sums) in &told.sums {
            if node.children().is_none() {
                return false;
            }
            for child in table.differing(*node, sums, salt) {
                self.step(shard, Step::Node(child));
            }
        }
        for (node, sum, items) in &told.lists {
            if !node.is_valid() {
                return false;
            }
            if table.sum_of(*node, salt) == *sum {
                continue;
            }
            let listed: BTreeSet<u32> = items.iter().map(|item| item.key).collect();
            let mut found = false;
            for item in items {
                found |= self.judge(shard, item.key, table.judge(item));
            }
            let own: BTreeSet<u32> = table.items_of(*node).map(|item| item.key).collect();
            for key in own.difference(&listed) {
                found = true;
                self.step(shard, Step::Item(*key));
            }
            if !found {
                // They differ in what an item does not tell.
                for key in own {
                    self.judge(shard, key, Judgement::Both);
                }
            }
        }
        for item in &told.items {
            self.judge(shard, item.key, table.judge(item));
        }
        told.wants.iter().for_each(|key| self.lacks(shard, *key));
        true
    }

    /// What follows from an item of the other side; whether anything does.
    fn judge(&mut self, shard: ShardId, key: u32, judgement: Judgement) -> bool {
        if matches!(judgement, Judgement::Older | Judgement::Both) {
            self.lacks(shard, key);
        }
        if matches!(judgement, Judgement::Newer | Judgement::Both) {
            self.step(shard, Step::Want(key));
        }
        judgement != Judgement::Same
    }

    /// The next message, if there is something to tell. `waits` says of a record whether it is to be sent as a change.
    pub fn next(
        &mut self,
        presence: &dyn PresenceSource,
        waits: &dyn Fn(ShardId, &RecordEntry) -> bool,
        batch: usize,
    ) -> Option<ToSubscriber> {
        if let Some(message) = self.next_steps(presence) {
            return Some(message);
        }
        let mut records: Vec<(ShardId, RecordEntry)> = Vec::new();
        while records.len() < batch
            && let Some((shard, key)) = self.lacks.pop_first()
        {
            let Some(table) = presence.table(shard) else {
                continue;
            };
            let found = table.records_under(key).filter(|record| !waits(shard, record));
            let room = batch - records.len();
            let found: Vec<RecordEntry> = found.take(room + 1).collect();
            if found.len() > room {
                // Several records under one key: they are found again.
                self.left_out = true;
            }
            records.extend(found.into_iter().take(room).map(|record| (shard, record)));
        }
        while records.len() < batch {
            let next = || self.whole.pop_first().map(|shard| (shard, None));
            let Some((shard, after)) = self.paging.take().or_else(next) else {
                break;
            };
            let Some(table) = presence.table(shard) else {
                continue;
            };
            let limit = batch - records.len();
            let page = table.live_above(after.as_ref(), limit);
            if page.len() >= limit {
                let last = page.last().map(|(at, _)| at.clone());
                self.paging = Some((shard, last));
            }
            let page = page.into_iter().map(|(_, record)| (shard, record));
            records.extend(page.filter(|(_, record)| !waits(shard, record)));
        }
        (!records.is_empty()).then_some(ToSubscriber::PresenceRepair(records))
    }

    fn next_steps(&mut self, presence: &dyn PresenceSource) -> Option<ToSubscriber> {
        self.salt = self.salt.wrapping_add(1);
        let salt = self.salt;
        let mut parts: Vec<Comparison> = Vec::new();
        let mut steps = 0;
        while steps < STEPS
            && let Some((shard, step)) = self.steps.pop_first()
        {
            let Some(table) = presence.table(shard) else {
                continue;
            };
            if parts.last().is_none_or(|part| part.shard != shard) {
                parts.push(Comparison {
                    shard,
                    ..Comparison::default()
                });
            }
            let Some(part) = parts.last_mut() else { continue };
            steps += 1;
            match step {
                Step::Blank => part.blank = true,
                Step::Node(node) => match table.tell(node, salt) {
                    Told::Sums(sums) => part.sums.push((node, sums)),
                    Told::List(sum, items) => part.lists.push((node, sum, items)),
                },
                Step::Item(key) => part.items.extend(table.items_under(key)),
                Step::Want(key) => part.wants.push(key),
            }
        }
        (!parts.is_empty()).then_some(ToSubscriber::PresenceCompared { salt, parts })
    }
}

/// What another region said of presence, until it can be compared.
#[derive(Debug)]
pub(super) enum Heard {
    Digests {
        at_once: bool,
        shards: Vec<(ShardId, Digest)>,
    },
    Compared {
        salt: u32,
        parts: Vec<Comparison>,
    },
}

impl Links {
    /// Its other half is new: all of a link is to be compared.
    pub(super) fn compare_all(&mut self, peer: PeerId) {
        if let Some(serve) = &mut self.peers[peer].serve {
            serve.exchange.repair.left_out = true;
        }
        self.compare_soon(peer);
    }

    /// Where a link stands both ways, the side that says digests does so at once.
    pub(super) fn compare_soon(&mut self, peer: PeerId) {
        let begins = self.config.region < self.peers[peer].addr.node.region;
        if !self.peers[peer].pull.is_live() || !begins {
            return;
        }
        if let Some(serve) = &mut self.peers[peer].serve
            && serve.exchange.is_open()
        {
            serve.exchange.repair.soon = true;
            self.touched.insert(peer);
        }
    }

    /// A provider said something of presence that is to be compared with what is here.
    pub(super) fn hear_presence(&mut self, peer: PeerId, heard: Heard) {
        let parts = match &heard {
            Heard::Digests { shards, .. } => shards.len(),
            Heard::Compared { parts, .. } => parts.iter().map(|part| 1 + part.parts()).sum(),
        };
        if parts > MAX_PARTS {
            return self.close_lane(peer, ms(self.config.limits.ping_ms));
        }
        self.peers[peer].heard.push(heard);
        self.touched.insert(peer);
    }

    pub(super) fn compare_heard(&mut self, peer: PeerId, presence: &dyn PresenceSource) {
        for heard in std::mem::take(&mut self.peers[peer].heard) {
            let owned = &self.owned;
            let table = |shard: &ShardId| presence.table(*shard).filter(|_| owned.contains_key(shard));
            // Without a lane to it nothing can be told: it is found again.
            let Some(serve) = self.peers[peer].serve.as_mut() else {
                continue;
            };
            if !serve.exchange.is_open() {
                continue;
            }
            let repair = &mut serve.exchange.repair;
            let mut sensible = true;
            match heard {
                Heard::Digests { at_once, shards } => {
                    let at_once = at_once | std::mem::take(&mut repair.left_out);
                    for (shard, theirs) in shards {
                        let Some(ours) = table(&shard).map(Presence::digest) else {
                            continue;
                        };
                        if repair.compare(shard, ours, theirs, at_once) && !defect::on(Defect::DigestsIgnored)
                        {
                            self.stats.presence_mismatches += 1;
                            repair.look_into(shard, ours, theirs);
                        }
                    }
                }
                Heard::Compared { salt, parts } => {
                    sensible = parts.is_sorted_by(|a, b| a.shard < b.shard)
                        && parts.iter().all(|part| {
                            table(&part.shard).is_none_or(|table| repair.heard(table, salt, part))
                        });
                }
            }
            if !sensible {
                self.close_lane(peer, ms(self.config.limits.ping_ms));
            }
        }
    }

    pub(super) fn say_digests(&mut self, peer: PeerId, presence: &dyn PresenceSource) {
        let begins = self.config.region < self.peers[peer].addr.node.region;
        let live = self.peers[peer].pull.is_live();
        let next = self.now.mono + ms(self.config.limits.presence_repair_ms);
        let owned = &self.owned;
        let Some(serve) = self.peers[peer].serve.as_mut() else {
            return;
        };
        let repair = &mut serve.exchange.repair;
        if !begins {
            repair.fresh.clear();
            return;
        }
        let (all, soon) = (
            std::mem::take(&mut repair.round_due),
            std::mem::take(&mut repair.soon),
        );
        if !all && !soon {
            return;
        }
        if all {
            repair.round_at = Some(next);
        }
        repair.round_at.get_or_insert(next);
        if !live {
            return;
        }
        let fresh = std::mem::take(&mut repair.fresh);
        let left_out = std::mem::take(&mut repair.left_out);
        let (new, known): (Vec<ShardId>, Vec<ShardId>) = serve
            .shards
            .keys()
            .partition(|shard| left_out || fresh.contains(shard));
        // Two rounds that follow each other closely would say nothing of what is under way.
        let known = if all { known } else { Vec::new() };
        let mut bodies = Vec::new();
        for (at_once, shards) in [(true, new), (false, known)] {
            let digests = shards.into_iter().filter(|shard| owned.contains_key(shard));
            let digests = digests.filter_map(|shard| Some((shard, presence.table(shard)?.digest())));
            let digests: Vec<(ShardId, Digest)> = digests.collect();
            for shards in digests.chunks(MAX_ITEMS) {
                let shards = shards.to_vec();
                bodies.push(ToSubscriber::PresenceDigests { at_once, shards });
            }
        }
        let lane = serve.lane;
        for body in bodies {
            self.count_repair(&body);
            self.tell_subscriber(peer, lane, body);
        }
    }

    pub(super) fn count_repair(&mut self, body: &ToSubscriber) {
        let bytes = || rmp_serde::to_vec(body).map_or(0, |bytes| bytes.len() as u64);
        match body {
            ToSubscriber::PresenceDigests { at_once: false, .. } => {
                self.stats.presence_digest_bytes += bytes();
            }
            ToSubscriber::PresenceDigests { .. } | ToSubscriber::PresenceCompared { .. } => {
                self.stats.presence_repair_bytes += bytes()
            }
            ToSubscriber::PresenceRepair(records) => {
                self.stats.presence_repaired += records.len() as u64;
                self.stats.presence_repair_bytes += bytes();
            }
            _ => {}
        }
    }

    /// Records of a provider are to be merged.
    pub(super) fn merge_records(&mut self, peer: PeerId, records: Vec<(ShardId, RecordEntry)>) {
        self.stats.presence_received += records.len() as u64;
        let from = self.peers[peer].addr.clone();
        self.outputs
            .push_back(LinkOutput::PresenceMerge { from, records });
    }
}
