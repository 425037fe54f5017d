//! Snapshots of a shard: what a provider reads, and how it merges into what is there (R11).
//!
//! ```text
//! provider   cut V --> pages: dedup records, then users with their messages, filtered to V --> the log above V
//! receiver   trims what V covers --> merges page by page --> the last page's commit lets `applied` jump to V
//! ```
//!
//! **The cut** is where the provider's logs begin: what lies below is stable, so every region had it, and what lies above
//! comes as ordinary runs. It is closed: with an origin it holds all that the origin's `Start` names (R1). Devices, cursors
//! and confirmations may be ahead of it, since they merge by maximum.
//!
//! **Merging is idempotent**, and a snapshot that was given up leaves nothing to clean: another one, or the log itself, may
//! follow. What makes that so: of a user and an origin the messages above `trimmed` are a gapless part of the log, on every
//! provider and here, so a message at or below the last one that is here is known, and one at or below `trimmed` is gone.
//! A message that comes by log and was merged before is neither stored nor counted again ([`Logged::merged`]).
//!
//! **What is gone there and not known here**: where nothing older of the user waits here, `trimmed` rises, and a device
//! whose cursor is below is told of a hole as always. Where something older waits, the range is noted as a gap of the user
//! ([`UserRow::gaps`]), and delivery tells it in its place.
//!
//! [`Logged::merged`]: super::state::Logged::merged

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::commit::{Outcome, Refusal, Work};
use super::defect::{self, Defect};
use super::expire::HoleRow;
use super::holders::HolderSet;
use super::ids::{Coord, DeviceId, Origin, RegionId, Seq, UserId};
use super::op::{self, LoggedOp, Op};
use super::retire::or_retired;
use super::state::{
    ConfirmRow, Decision, DedupKey, DeviceRow, LogRow, Recovery, ShardRow, UserRow, UserState,
};
use super::time::Hlc;
use super::vector::Vector;

/// Largest snapshot page in bytes of messages that a provider reads, unless one message is larger.
pub const SNAPSHOT_PAGE_BYTES: usize = 256 * 1024;
/// Most dedup records, or users and messages, in one page.
pub const SNAPSHOT_PAGE_ITEMS: usize = 1024;
/// What an item of a page counts beside its bytes: a dedup record, a user's row.
const ITEM_BYTES: u64 = 128;
/// What one position of a vector counts.
const POSITION_BYTES: u64 = 16;

/// Where a snapshot stands in each log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cut {
    /// Each origin of which something lies below the cut.
    pub logs: BTreeMap<Origin, CutLog>,
    /// What the holders confirmed, as the provider knows.
    pub confirmed: BTreeMap<RegionId, ConfirmRow>,
    /// Dedup records of ids from before this UTC day are not in it (R16).
    #[serde(default)]
    pub forgotten: u32,
    /// Tombstones of retired origins, with their last sequences (R23).
    #[serde(default)]
    pub retired: BTreeMap<Origin, Seq>,
    /// The set of holders, where it was ever changed (R13).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holders: Option<HolderSet>,
}

/// One origin's log at a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutLog {
    /// The region of the origin.
    pub region: RegionId,
    /// Everything to here belongs to the snapshot.
    pub seq: Seq,
    /// Running hash there.
    pub hash: u64,
    /// What its `Start` named.
    pub previous: Option<Coord>,
    /// No operation to here has a later hybrid time.
    pub hlc: Hlc,
}

impl Cut {
    /// The cut of a shard: where its logs begin, and what their `Start`s name. `hash_at` gives the running hash of an
    /// origin's log at a sequence that lies between its floor and its end.
    ///
    /// # Errors
    /// Those of `hash_at`.
    pub fn of<E>(row: &ShardRow, mut hash_at: impl FnMut(Origin, Seq) -> Result<u64, E>) -> Result<Cut, E> {
        let mut at: BTreeMap<Origin, Seq> = row
            .logs
            .iter()
            .map(|(origin, log)| (*origin, log.floor))
            .collect();
        loop {
            let named = row.logs.iter().filter(|(origin, _)| at[*origin] > 0);
            let named = named.filter_map(|(_, log)| log.previous);
            // What is applied here began after all that its start names.
            let missing = named.filter_map(|named| {
                let to = named.seq.min(row.logs.get(&named.origin)?.seq);
                (at[&named.origin] < to).then_some((named.origin, to))
            });
            let missing: Vec<(Origin, Seq)> = missing.collect();
            if missing.is_empty() {
                break;
            }
            at.extend(missing);
        }
        let mut logs = BTreeMap::new();
        for (origin, seq) in at.into_iter().filter(|(_, seq)| *seq > 0) {
            let log = &row.logs[&origin];
            let hash = match seq {
                floor if floor == log.floor => log.floor_hash,
                end if end == log.seq => log.hash,
                between => hash_at(origin, between)?,
            };
            let log = CutLog {
                region: log.region.clone(),
                seq,
                hash,
                previous: log.previous,
                hlc: log.hlc,
            };
            logs.insert(origin, log);
        }
        let mut confirmed = row.confirmed.clone();
        for said in confirmed.values_mut() {
            // What the provider has retired beyond the holder.
            said.stale.clear();
        }
        Ok(Cut {
            logs,
            confirmed,
            forgotten: row.forgotten,
            retired: row.old.retired.clone(),
            holders: row.holding.set.clone(),
        })
    }

    /// The sequence of an origin; 0 where nothing of it lies below the cut.
    pub fn seq(&self, origin: Origin) -> Seq {
        self.logs.get(&origin).map_or(0, |log| log.seq)
    }

    /// Whether a coordinate lies below it.
    pub fn covers(&self, at: Coord) -> bool {
        at.seq <= self.seq(at.origin)
    }

    /// Whether a snapshot tells of a coordinate as another one's copy: of retired origins nothing else is left.
    pub fn tells(&self, at: Coord) -> bool {
        self.covers(at) || self.retired.contains_key(&at.origin)
    }

    fn clamp(&self, vector: &Vector) -> Vector {
        let clamped = vector
            .iter()
            .map(|(origin, seq)| (origin, seq.min(self.seq(origin))));
        clamped.filter(|(_, seq)| *seq > 0).collect()
    }

    /// What it counts against the credit of a link, in bytes.
    pub fn weight(&self) -> u64 {
        let confirmed = self
            .confirmed
            .values()
            .map(|row| row.applied.len() as u64 * POSITION_BYTES);
        let positions = self.retired.len() as u64 * POSITION_BYTES;
        self.logs.len() as u64 * ITEM_BYTES + confirmed.sum::<u64>() + positions
    }
}

/// How far the reading of a snapshot has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SnapshotAt {
    /// Nothing was read.
    #[default]
    Start,
    /// Dedup records to this one were.
    Dedup(DedupKey),
    /// All dedup records were.
    Users,
    /// Users to this one were; the order of users is by length, then by bytes, as tables have it.
    User(UserId),
    /// Of this user the messages to here were.
    Inbox(UserId, Vector),
}

/// A piece of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SnapshotPage {
    /// Dedup records: digests of bodies and coordinates.
    pub dedup: Vec<(DedupKey, Vec<(u128, Coord)>)>,
    /// Users. One whose messages do not fit comes again, with its row as it is by then.
    pub users: Vec<UserPage>,
    /// Where to go on; `None` in the last one.
    pub next: Option<SnapshotAt>,
}

/// A user in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPage {
    /// Who.
    pub user: UserId,
    /// The devices with their cursors.
    pub devices: BTreeMap<DeviceId, DeviceRow>,
    /// Removed from the inbox, as far as it lies below the cut.
    pub trimmed: Vector,
    /// See [`UserRow::gaps`].
    pub gaps: BTreeMap<(Origin, Seq), Seq>,
    /// Other coordinates of the same message, where both lie below the cut.
    pub siblings: BTreeMap<Coord, BTreeSet<Coord>>,
    /// See [`UserRow::not_before`].
    pub not_before: u64,
    /// Messages below the cut, of each origin in sequence order.
    pub entries: Vec<SnapshotEntry>,
    /// See [`UserRow::past`].
    #[serde(default)]
    pub past: bool,
    /// Holes below the cut: see [`Timed::holes`](super::expire::Timed::holes).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holes: BTreeMap<(Origin, Seq), HoleRow>,
}

/// A message in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// Its coordinates.
    pub at: Coord,
    /// The encoded operation.
    #[serde(skip)]
    pub op: Bytes,
}

impl UserPage {
    /// A user as far as it lies below a cut, without messages.
    pub fn of(user: UserId, row: &UserRow, cut: &Cut) -> Self {
        let gaps = row
            .gaps
            .iter()
            .filter(|((origin, from), _)| *from <= cut.seq(*origin));
        let gaps = gaps.map(|((origin, from), to)| ((*origin, *from), (*to).min(cut.seq(*origin))));
        let siblings = row.siblings.iter().filter(|(at, _)| cut.covers(**at));
        let siblings = siblings.map(|(at, others)| {
            let others = others.iter().copied().filter(|other| cut.tells(*other));
            (*at, others.collect::<BTreeSet<Coord>>())
        });
        // What was replaced is not in the log any more, so it lies below the cut.
        let below = |((origin, _), hole): &(&(Origin, Seq), &HoleRow)| hole.to <= cut.seq(*origin);
        let mut page = Self {
            user,
            devices: row.devices.clone(),
            trimmed: cut.clamp(&row.trimmed),
            gaps: gaps.collect(),
            siblings: siblings.filter(|(_, others)| !others.is_empty()).collect(),
            not_before: row.not_before,
            entries: Vec::new(),
            past: row.has_past(&cut.retired),
            holes: row
                .timed
                .holes
                .iter()
                .filter(below)
                .map(|(at, hole)| (*at, *hole))
                .collect(),
        };
        page.strip(&cut.retired);
        page
    }

    /// What it counts against the credit of a link, in bytes.
    pub fn weight(&self) -> u64 {
        let cursors = self.devices.values().map(|device| device.cursor.len() as u64);
        let positions =
            cursors.sum::<u64>() + (self.trimmed.len() + self.gaps.len() + self.holes.len()) as u64;
        let siblings = self.siblings.values().map(|others| others.len() as u64 + 1);
        let entries = self.entries.iter().map(|entry| entry.op.len() as u64);
        ITEM_BYTES + (positions + siblings.sum::<u64>()) * POSITION_BYTES + entries.sum::<u64>()
    }
}

impl SnapshotPage {
    /// What it counts against the credit of a link, in bytes.
    pub fn weight(&self) -> u64 {
        self.dedup.len() as u64 * ITEM_BYTES + self.users.iter().map(UserPage::weight).sum::<u64>()
    }
}

/// What a user's row becomes by a merge: judged, so that applying it needs no other row.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MergedUser {
    /// To be merged with those that are known.
    pub devices: BTreeMap<DeviceId, DeviceRow>,
    /// To here everything is gone, and nothing older waits.
    pub trimmed: Vector,
    /// What is gone behind something that waits.
    pub gaps: BTreeMap<(Origin, Seq), Seq>,
    /// Other coordinates of messages that wait here.
    pub siblings: BTreeMap<Coord, BTreeSet<Coord>>,
    /// The later one counts.
    pub not_before: u64,
    /// Messages of origins that are retired were removed (R23).
    #[serde(default)]
    pub past: bool,
    /// Messages that were replaced there and never came here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holes: BTreeMap<(Origin, Seq), HoleRow>,
}

impl Work<'_> {
    pub(super) fn merge(&mut self, cut: &Cut, page: &SnapshotPage) -> Outcome {
        if !self.row().row.recovery.recovers() {
            return Outcome::Refused(Refusal::NotRecovering);
        }
        if self.trim_covered(cut) {
            return Outcome::Done { more: true };
        }
        let ours = &self.row().row.old.retired;
        if !ours.is_empty() {
            // What the provider has not retired yet.
            let (mut cut, mut page) = (cut.clone(), page.clone());
            cut.strip(ours);
            page.users.iter_mut().for_each(|user| user.strip(ours));
            return self.merge_stripped(&cut, &page);
        }
        self.merge_stripped(cut, page)
    }

    fn merge_stripped(&mut self, cut: &Cut, page: &SnapshotPage) -> Outcome {
        for (key, bodies) in &page.dedup {
            let known = self.row().dedup.get(key);
            let new = bodies.iter().filter(|(digest, at)| {
                !known.is_some_and(|row| row.coords(*digest).any(|coord| coord == *at))
            });
            let new: Vec<(u128, Coord)> = new.copied().collect();
            if !new.is_empty() {
                let learned = self.learned(key, &new);
                self.record(Decision::DedupMerged {
                    shard: self.shard,
                    key: key.clone(),
                    bodies: new,
                });
                self.learn_copies(&key.recipient, learned);
            }
        }
        for user in &page.users {
            self.merge_user(cut, user);
        }
        if page.next.is_none() {
            self.jump(cut);
        }
        Outcome::Done { more: false }
    }

    /// What waits here and turns out to be a copy of messages that may be gone by now: the copies learn of each other as if
    /// these came by log (R15). What is consumed by that is marked with the user's page, which comes later.
    fn learned(&self, key: &DedupKey, new: &[(u128, Coord)]) -> BTreeMap<Coord, BTreeSet<Coord>> {
        let shard = self.row();
        let mut learned: BTreeMap<Coord, BTreeSet<Coord>> = BTreeMap::new();
        let (Some(known), Some(user)) = (shard.dedup.get(key), shard.users.get(&key.recipient)) else {
            return learned;
        };
        for (digest, at) in new {
            let at = or_retired(*at, &shard.row.old.retired);
            for ours in known.coords(*digest).filter(|ours| user.stands(*ours)) {
                learned.entry(ours).or_default().insert(at);
            }
        }
        learned
    }

    fn learn_copies(&mut self, user: &UserId, siblings: BTreeMap<Coord, BTreeSet<Coord>>) {
        if siblings.is_empty() || defect::on(Defect::SnapshotWithoutSiblings) {
            return;
        }
        let merged = MergedUser {
            siblings,
            ..MergedUser::default()
        };
        self.record(Decision::UserMerged {
            shard: self.shard,
            user: user.clone(),
            merged: Box::new(merged),
        });
    }

    /// Our own logs of what the cut goes beyond are trimmed first, in bounded steps: it is stable (R9), and a message may
    /// then be removed wherever it stands, but only with the page that tells of the user's devices. Says whether work is left.
    fn trim_covered(&mut self, cut: &Cut) -> bool {
        let logs = covered(&self.row().row, cut);
        let logs: Vec<(Origin, Seq, Seq)> = logs.collect();
        if !logs.is_empty() && self.row().row.recovery == Recovery::Recovering {
            self.record(Decision::Merging { shard: self.shard });
        }
        let mut more = false;
        for (origin, floor, to) in logs {
            more |= self.trim_log(origin, floor, to);
        }
        more
    }

    fn merge_user(&mut self, cut: &Cut, page: &UserPage) {
        self.strip_user(&page.user);
        let merged = self.judge_user(page);
        self.record(Decision::UserMerged {
            shard: self.shard,
            user: page.user.clone(),
            merged: Box::new(merged),
        });
        for entry in &page.entries {
            let at = entry.at;
            if self.known(&page.user, at) || self.applied(at.origin) >= at.seq {
                continue;
            }
            let Ok(op) = LoggedOp::from_bytes(entry.op.clone()) else {
                continue;
            };
            let Ok(Op::Append(envelope, body)) = op.decode() else {
                continue;
            };
            let known = self.row().dedup.get(&DedupKey::of(&envelope));
            let digest = op::digest(envelope.kind, &body);
            let mut siblings: BTreeSet<Coord> =
                known.into_iter().flat_map(|row| row.coords(digest)).collect();
            siblings.extend(page.siblings.get(&at).into_iter().flatten());
            siblings.remove(&at);
            let retired = &self.row().row.old.retired;
            let mut siblings: BTreeSet<Coord> =
                siblings.into_iter().map(|at| or_retired(at, retired)).collect();
            if defect::on(Defect::SnapshotWithoutSiblings) {
                siblings.clear();
            }
            self.record(Decision::Merged {
                shard: self.shard,
                user: page.user.clone(),
                at,
                op,
                siblings: siblings.into_iter().collect(),
            });
        }
        let consumed = self.consume(&page.user);
        if consumed.more {
            let unfinished = (self.shard, page.user.clone());
            self.state.unfinished.insert(unfinished);
        }
        self.remove_below(&page.user, &consumed.first, Some(cut));
        self.look_for_needs(&page.user);
    }

    fn judge_user(&self, page: &UserPage) -> MergedUser {
        let known = self.row().users.get(&page.user);
        let ours = |origin| known.map_or(0, |known| known.row.trimmed.of(origin));
        // The last message that came here: a hole may tell of later ones, from a page that went on.
        let last = |origin: Origin| {
            let series = known.and_then(|known| known.inbox.get(&origin));
            series.map_or(0, |series| series.last())
        };
        let waits = |origin: Origin| known.is_some_and(|known| known.last(origin) > ours(origin));
        // A page that comes again may have consumed what waited before the gap that it told of.
        let told = |at: Coord, to: Seq| {
            let gap = known.and_then(|known| known.row.gap_at(at));
            gap.is_some_and(|(_, end)| to <= end)
        };
        let mut trimmed = Vector::new();
        let mut gaps = BTreeMap::new();
        for (origin, gone) in page.trimmed.iter() {
            let has = self.applied(origin).max(ours(origin)).max(last(origin));
            if gone <= has {
                continue;
            }
            let seq = has + 1;
            if waits(origin) {
                gaps.insert((origin, seq), gone);
            } else if !told(Coord { origin, seq }, gone) {
                trimmed.raise(origin, gone);
            }
        }
        for ((origin, from), to) in &page.gaps {
            let has = self.applied(*origin).max(ours(*origin)).max(last(*origin));
            let from = (*from).max(has + 1).max(trimmed.of(*origin) + 1);
            if from <= *to {
                gaps.insert((*origin, from), *to);
            }
        }
        // What came here expires here by itself, and what was removed there is in no hole.
        let mut holes: BTreeMap<(Origin, Seq), HoleRow> = BTreeMap::new();
        for ((origin, from), hole) in &page.holes {
            let has = self.applied(*origin).max(ours(*origin)).max(last(*origin));
            let has = has.max(page.trimmed.of(*origin));
            if hole.to <= has {
                continue;
            }
            let (mut first, mut hole) = (*from, *hole);
            if first <= has {
                let here = match known {
                    _ if first <= page.trimmed.of(*origin) => None,
                    Some(known) => known.count_within(*origin, first, has),
                    None => Some(0),
                };
                hole.count = here.map_or(0, |here| hole.count.saturating_sub(here));
                first = has + 1;
            }
            // A page that told of it before, of another region perhaps, may have known more.
            let at = Coord {
                origin: *origin,
                seq: first,
            };
            let before = known.and_then(|known| known.row.timed.hole_at(at));
            if let Some((begins, told)) = before.filter(|(begins, _)| *begins > has) {
                let mut between = gaps.range((*origin, begins)..=(*origin, first));
                if between.next().is_none() && (begins < first || told.to > hole.to) {
                    hole.count = if told.to >= hole.to { told.count } else { 0 };
                    hole.to = told.to.max(hole.to);
                    first = begins;
                }
            }
            holes.insert((*origin, first), hole);
        }
        // Of what is gone here, or never comes, nothing would ever remove them again.
        let comes = |at: &Coord| {
            let new = page.entries.iter().any(|entry| entry.at == *at);
            let mut before = holes.range((at.origin, 0)..=(at.origin, at.seq));
            let hole = before.next_back().is_some_and(|(_, hole)| at.seq <= hole.to);
            hole || (new && self.applied(at.origin) < at.seq)
        };
        let without = defect::on(Defect::SnapshotWithoutSiblings);
        let stays = |at: &Coord| !without && (known.is_some_and(|known| known.stands(*at)) || comes(at));
        let siblings = page.siblings.iter().filter(|(at, _)| stays(at));
        let siblings = siblings.map(|(at, others)| (*at, others.clone())).collect();
        MergedUser {
            devices: page.devices.clone(),
            trimmed,
            gaps,
            siblings,
            not_before: page.not_before,
            past: page.past,
            holes,
        }
    }

    fn jump(&mut self, cut: &Cut) {
        let me = self.state.identity.region.clone();
        let ahead = cut
            .logs
            .iter()
            .filter(|(origin, log)| log.seq > self.applied(**origin));
        let logs: BTreeMap<Origin, CutLog> = ahead.map(|(origin, log)| (*origin, log.clone())).collect();
        let mut hlc = self.row().row.hlc;
        for log in logs.values() {
            // Our own region's time never goes back (R7), whatever our clock says of it.
            hlc = if log.region == me {
                hlc.max(log.hlc)
            } else {
                hlc.observe(log.hlc, self.now_ms)
            };
        }
        let confirmed = match defect::on(Defect::SnapshotWithoutConfirmations) {
            true => BTreeMap::new(),
            false => cut.confirmed.clone(),
        };
        self.record(Decision::Jumped {
            shard: self.shard,
            cut: Box::new(Cut {
                logs,
                confirmed,
                // A clock far ahead there must not make us refuse what is in the window here.
                forgotten: cut.forgotten.min(self.first_in_window()),
                retired: cut.retired.clone(),
                holders: cut.holders.clone(),
            }),
            hlc,
        });
    }

    /// Whether a message is in the inbox, or was removed from it: as a snapshot brings it before its log does.
    pub(super) fn known(&self, user: &UserId, at: Coord) -> bool {
        let Some(known) = self.row().users.get(user) else {
            return false;
        };
        let stored = known
            .inbox
            .get(&at.origin)
            .is_some_and(|series| series.last() >= at.seq);
        stored || known.row.timed.hole_at(at).is_some() || known.row.trimmed.covers(at)
    }

    fn applied(&self, origin: Origin) -> Seq {
        self.row().row.reached(origin)
    }
}

/// The logs that a cut goes beyond and of which something is kept: from where to where they are to be trimmed.
pub(super) fn covered(row: &ShardRow, cut: &Cut) -> impl Iterator<Item = (Origin, Seq, Seq)> {
    let logs = row.logs.iter();
    let logs = logs.filter(|(origin, log)| cut.seq(**origin) > log.seq && log.floor < log.seq);
    logs.map(|(origin, log)| (*origin, log.floor, log.seq))
}

impl ShardRow {
    pub(super) fn apply_jump(&mut self, cut: &Cut, hlc: Hlc) {
        for (origin, log) in &cut.logs {
            let row = LogRow {
                region: log.region.clone(),
                seq: log.seq,
                hash: log.hash,
                floor: log.seq,
                floor_hash: log.hash,
                previous: log.previous,
                hlc: log.hlc,
            };
            self.logs.insert(*origin, row);
        }
        for (holder, theirs) in &cut.confirmed {
            let ours = self.confirmed.get(holder);
            if ours.is_none_or(|ours| ours.at < theirs.at) {
                self.confirmed.insert(holder.clone(), theirs.clone());
            }
        }
        for (origin, seq) in &cut.retired {
            if !self.logs.contains_key(origin) {
                self.old.retired.insert(*origin, *seq);
            } else if !defect::on(Defect::WordForgotten) {
                self.old.told.insert(*origin, *seq);
            }
        }
        for said in self.confirmed.values_mut() {
            said.strip(&self.old.retired);
        }
        self.merge_holders(cut.holders.as_ref());
        if self.recovery == Recovery::Merging {
            self.recovery = Recovery::Recovering;
        }
        self.hlc = hlc;
        self.forgotten = self.forgotten.max(cut.forgotten);
        self.news += 1;
    }
}

impl UserRow {
    pub(super) fn apply_merge(&mut self, merged: &MergedUser) {
        for (device, theirs) in &merged.devices {
            if self.device(device).merge(theirs) {
                self.consumed = self.trimmed.clone();
            }
        }
        for (origin, to) in merged.trimmed.iter() {
            self.trimmed.raise(origin, to);
            self.consumed.raise(origin, to);
            self.counted.raise(origin, to);
            self.lose(origin, 1, to);
            self.gaps.retain(|(of, _), end| *of != origin || *end > to);
        }
        for ((origin, from), to) in &merged.gaps {
            let known = self.gaps.entry((*origin, *from)).or_default();
            *known = (*known).max(*to);
            self.lose(*origin, *from, *to);
        }
        for ((origin, from), hole) in &merged.holes {
            // A page that told of it before may have known less.
            self.timed.cut(*origin, *from, hole.to);
            self.timed.holes.insert((*origin, *from), *hole);
            self.cut_gaps(*origin, *from, hole.to);
        }
        for (at, others) in &merged.siblings {
            if !self.trimmed.covers(*at) {
                self.siblings.entry(*at).or_default().extend(others);
            }
        }
        self.not_before = self.not_before.max(merged.not_before);
        self.past |= merged.past;
    }

    /// What is gone is in no hole, and no copy is learned for it: nothing would ever remove that.
    fn lose(&mut self, origin: Origin, from: Seq, to: Seq) {
        self.timed.cut(origin, from, to);
        let lost = |at: &Coord| at.origin == origin && (from..=to).contains(&at.seq);
        self.siblings.retain(|at, _| !lost(at));
    }

    /// Whether a message is known to be gone from the inbox, or never to come to it.
    pub(super) fn gone(&self, at: Coord) -> bool {
        self.gap_at(at).is_some() || self.trimmed.covers(at)
    }

    /// The gap that a coordinate lies in.
    fn gap_at(&self, at: Coord) -> Option<(Seq, Seq)> {
        let mut before = self.gaps.range((at.origin, 0)..=(at.origin, at.seq));
        let ((_, from), to) = before.next_back()?;
        (at.seq <= *to).then_some((*from, *to))
    }

    /// What was taken for gone is in a hole.
    fn cut_gaps(&mut self, origin: Origin, from: Seq, to: Seq) {
        let reach = self.gaps.range((origin, 0)..=(origin, to));
        let reach = reach.filter(|(_, end)| **end >= from);
        let reach: Vec<(Seq, Seq)> = reach.map(|((_, first), end)| (*first, *end)).collect();
        for (first, end) in reach {
            self.gaps.remove(&(origin, first));
            if first < from {
                self.gaps.insert((origin, first), from - 1);
            }
            if to < end {
                self.gaps.insert((origin, to + 1), end);
            }
        }
    }

    /// What was taken for gone comes after all.
    pub(super) fn fill_gap(&mut self, at: Coord) {
        let Some((from, to)) = self.gap_at(at) else {
            return;
        };
        self.gaps.remove(&(at.origin, from));
        if at.seq < to {
            self.gaps.insert((at.origin, at.seq + 1), to);
        }
    }
}

impl UserState {
    /// Whether a message that was logged or merged is in the inbox.
    pub fn keeps(&self, at: Coord) -> bool {
        let stored = self
            .inbox
            .get(&at.origin)
            .is_some_and(|series| series.last() >= at.seq);
        stored && self.row.timed.hole_at(at).is_none() && !self.row.gone(at)
    }
}

impl ShardRow {
    pub(super) fn apply_recovery(&mut self, began: Option<Origin>) {
        match began {
            Some(origin) => {
                self.recovery = Recovery::Recovering;
                self.recovered_in = origin;
                self.holding.whole = false;
            }
            None => {
                self.recovery = Recovery::Open;
                self.holding.whole = false;
                // What the others were told of us before may be more than we have, or less: they are told again.
                self.news += 1;
            }
        }
    }

    /// The last origin of a region as far as it is known here: the one that no other continues (R1). Where a restored
    /// store went on beside what it had forgotten there are several, and the latest counts.
    pub fn last_origin(&self, region: &RegionId) -> Option<Coord> {
        let ours = self.logs.iter().filter(|(_, log)| log.region == *region);
        let continued: BTreeSet<Origin> = ours
            .clone()
            .filter_map(|(_, log)| log.previous.map(|previous| previous.origin))
            .collect();
        let heads = ours.filter(|(origin, _)| !continued.contains(origin));
        let last = heads.max_by_key(|(origin, log)| (log.hlc, **origin));
        last.map(|(origin, log)| Coord {
            origin: *origin,
            seq: log.seq,
        })
    }
}
