//! What is known of a user beside the messages, and how operations change it.
//!
//! Devices, cursors and the copies of messages merge by maximum and by union, in any order, so that regions that have the
//! same logs have the same rows. When a device expires, and which messages are replaced by holes, is in [`super::expire`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::defect::{self, Defect};
use super::expire::{DeviceLife, HoleRow, Timed};
use super::ids::{Coord, DeviceId, Origin, Seq};
use super::op::DeviceChange;
use super::vector::Vector;

/// A device that must consume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Its registration.
    pub epoch: u32,
    /// Expired under that epoch: need not consume (R19).
    pub expired: bool,
    /// What it consumed.
    pub cursor: Vector,
    /// When it was heard of last, and whether it is to expire.
    #[serde(default, skip_serializing_if = "DeviceLife::is_unknown")]
    pub life: DeviceLife,
}

/// What is known of a user beside the messages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserRow {
    /// The devices.
    pub devices: BTreeMap<DeviceId, DeviceRow>,
    /// Per origin the highest sequence removed from the inbox.
    pub trimmed: Vector,
    /// Per origin the sequence to which every device consumed; goes back when a device registers or returns.
    pub consumed: Vector,
    /// The furthest that `consumed` ever was: to here `unread` has been counted down.
    pub counted: Vector,
    /// Messages that some device has not consumed.
    pub unread: u64,
    /// Their bytes.
    pub unread_bytes: u64,
    /// Other coordinates of the same message, for the few entries that have any (R15).
    pub siblings: BTreeMap<Coord, BTreeSet<Coord>>,
    /// Tokens issued before this unix second are refused; reserved.
    pub not_before: u64,
    /// Entries that are gone behind some that wait: by origin and first sequence, to the last (R11).
    pub gaps: BTreeMap<(Origin, Seq), Seq>,
    /// Messages of origins that are retired were removed (R23).
    #[serde(default)]
    pub past: bool,
    /// What time did to the messages, or will do (R18).
    #[serde(default, skip_serializing_if = "Timed::is_empty")]
    pub timed: Timed,
}

impl UserRow {
    /// Whether a cursor covers an entry or any of its siblings (R15).
    pub fn covered(&self, cursor: &Vector, at: Coord) -> bool {
        cursor.covers(at) || self.copy_covered(cursor, at)
    }

    /// Whether a cursor covers another coordinate of an entry (R15).
    pub fn copy_covered(&self, cursor: &Vector, at: Coord) -> bool {
        let copies = self.siblings.get(&at);
        let covered = copies.is_some_and(|others| others.iter().any(|other| cursor.covers(*other)));
        covered && !defect::on(Defect::AllCopies)
    }

    /// Whether there is a device and every one has consumed the entry (R10).
    pub fn all_consumed(&self, at: Coord) -> bool {
        self.by_all(|cursor| self.covered(cursor, at))
    }

    /// Whether there is a device and every one has consumed a hole: passed it, or consumed a copy of each message that it
    /// stands for.
    pub fn hole_consumed(&self, origin: Origin, from: Seq, hole: &HoleRow) -> bool {
        self.by_all(|cursor| {
            let passed = cursor.of(origin);
            passed >= hole.to
                || (passed < from
                    && hole.count > 0
                    && self.copies_covered(cursor, origin, from, hole) >= hole.count)
        })
    }

    /// Of how many messages that a hole stands for a cursor covers a copy.
    pub fn copies_covered(&self, cursor: &Vector, origin: Origin, from: Seq, hole: &HoleRow) -> u64 {
        let at = |seq| Coord { origin, seq };
        let inside = self.siblings.range(at(from)..=at(hole.to));
        inside.filter(|(at, _)| self.copy_covered(cursor, **at)).count() as u64
    }

    fn by_all(&self, covers: impl Fn(&Vector) -> bool) -> bool {
        let mut any = defect::on(Defect::TrimWithoutDevices);
        for device in self.devices.values().filter(|device| !device.expired) {
            any = true;
            if !covers(&device.cursor) {
                return false;
            }
        }
        any
    }

    /// Everything of an origin to here is about to be removed. Every device consumed it, perhaps as copies: its cursor says so
    /// from now on, or it would be told of a hole (R10, R15). One that has yet to be told that something before is gone is
    /// told of all together.
    pub(super) fn pass_removed(&mut self, origin: Origin, to: Seq) {
        let trimmed = self.trimmed.of(origin);
        let (gaps, devices) = (&self.gaps, &mut self.devices);
        for device in devices.values_mut().filter(|device| !device.expired) {
            let passed = device.cursor.of(origin);
            if passed >= trimmed && !is_gap_between(gaps, origin, passed, to.saturating_add(1)) {
                device.cursor.raise(origin, to);
            }
        }
    }

    pub(super) fn apply_append(&mut self, at: Coord, op: (usize, u64), siblings: &[Coord], known: bool) {
        let (bytes, expires_ms) = op;
        if !known {
            self.fill_gap(at);
            self.timed.fill(at);
            self.unread += 1;
            self.unread_bytes += bytes as u64;
            self.timed.expires(expires_ms);
        }
        if siblings.is_empty() {
            return;
        }
        for sibling in siblings {
            if !self.gone(*sibling) {
                self.siblings.entry(*sibling).or_default().insert(at);
            }
        }
        if !self.gone(at) {
            let known = self.siblings.entry(at).or_default();
            known.extend(siblings.iter().copied());
        }
    }

    /// `at` and `hlc_ms` say which operation it is: where it stands, when its region logged it.
    pub(super) fn apply_change(&mut self, device: &DeviceId, change: &DeviceChange, at: Coord, hlc_ms: u64) {
        let row = self.device(device);
        let before = row.expired;
        match change {
            DeviceChange::Register { epoch, cursor } => {
                row.raise(*epoch);
                row.cursor.merge(cursor);
                row.life.seen(hlc_ms);
            }
            DeviceChange::Expire { epoch } => {
                // Its registration under that epoch may come later, from another log.
                row.raise(*epoch);
                if *epoch == row.epoch && !row.expired {
                    row.life.expiry.get_or_insert(at);
                }
            }
            DeviceChange::Veto { epoch } => {
                row.raise(epoch.saturating_add(1));
                row.life.objected(hlc_ms);
            }
        }
        if before && !row.expired {
            self.consumed = self.trimmed.clone();
        }
    }

    /// The expiry of a device takes effect, unless it was registered again.
    pub(super) fn apply_expiry(&mut self, device: &DeviceId, epoch: u32) {
        if let Some(row) = self.devices.get_mut(device).filter(|row| row.epoch == epoch) {
            row.expired = true;
            row.life.expiry = None;
        }
    }

    /// The row of a device; one that was not known starts here, and what it has not seen is unread again.
    pub(super) fn device(&mut self, device: &DeviceId) -> &mut DeviceRow {
        self.devices.entry(device.clone()).or_insert_with(|| {
            self.consumed = self.trimmed.clone();
            DeviceRow::default()
        })
    }
}

impl DeviceRow {
    /// A registration under a later epoch: what was to expire, or did, was the one before.
    fn raise(&mut self, epoch: u32) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.expired = false;
            self.life.expiry = None;
        }
    }

    /// What another region knows of the device; says whether it must consume again.
    pub(super) fn merge(&mut self, theirs: &DeviceRow) -> bool {
        let before = self.expired;
        let vetoed = theirs.epoch > self.epoch && !theirs.expired;
        if !(vetoed && defect::on(Defect::SnapshotWithoutVetoes)) {
            self.raise(theirs.epoch);
        }
        if theirs.epoch == self.epoch {
            self.expired |= theirs.expired;
            self.life.expiry = self.life.expiry.or(theirs.life.expiry).filter(|_| !self.expired);
        }
        self.life.seen(theirs.life.seen_ms);
        self.life.objected(theirs.life.objected_ms);
        self.cursor.merge(&theirs.cursor);
        before && !self.expired
    }
}

/// Whether something is gone between two sequences of an origin: see [`UserRow::gaps`].
pub(super) fn is_gap_between(
    gaps: &BTreeMap<(Origin, Seq), Seq>,
    origin: Origin,
    after: Seq,
    before: Seq,
) -> bool {
    let mut gaps = gaps.range((origin, 0)..(origin, before));
    gaps.next_back().is_some_and(|(_, to)| *to > after)
}
