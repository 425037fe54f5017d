//! What goes by time: every hole has a cause, nothing goes while clocks disagree, and what is attached stays (R18-R20).

use std::collections::{BTreeMap, BTreeSet};

use super::case::SECOND;
use super::trace::Micros;
use super::world::World;
use crate::core::ids::{Coord, DeviceId, Origin, Seq, ShardId, UserId};
use crate::core::op::{DeviceChange, LoggedOp, Op, kind};
use crate::core::retire::{IN_RETIRED, RETIRED};
use crate::core::state::{Logged, UserRow};
use crate::core::storage::{InboxHole, Read, ReadReply};
use crate::core::vector::Vector;
use crate::core::wire::{Hole, HoleReason};

/// Clocks that are told over links are as old as that, and a jump is heard of as late.
const STALE: Micros = 7 * SECOND;

/// What was logged of the lives of devices, by epoch.
#[derive(Debug, Default)]
pub(super) struct Lives {
    expiries: BTreeMap<(UserId, DeviceId), BTreeSet<u32>>,
    /// Vetoed, or registered again before.
    void: BTreeMap<(UserId, DeviceId), BTreeSet<u32>>,
    /// When a clock jumped last.
    jumped: Option<Micros>,
}

impl Lives {
    pub(super) fn logged(&mut self, op: &LoggedOp) {
        if op.kind() != kind::DEVICE {
            return;
        }
        let Ok(Op::Device { user, device, change }) = op.decode() else {
            return;
        };
        let at = (user, device);
        match change {
            DeviceChange::Expire { epoch } => {
                self.expiries.entry(at).or_default().insert(epoch);
            }
            DeviceChange::Veto { epoch } => {
                self.void.entry(at).or_default().insert(epoch);
            }
            DeviceChange::Register { .. } => {}
        }
    }

    /// Whether a device may have expired.
    pub(super) fn lapsed(&self, user: &UserId, device: &DeviceId) -> bool {
        let at = (user.clone(), device.clone());
        let void = self.void.get(&at);
        let mut expiries = self.expiries.get(&at).into_iter().flatten();
        expiries.any(|epoch| !void.is_some_and(|void| void.contains(epoch)))
    }

    /// How many devices may have expired.
    pub(super) fn expired(&self) -> u64 {
        let devices = self.expiries.keys();
        devices.filter(|(user, device)| self.lapsed(user, device)).count() as u64
    }

    pub(super) fn clock_jumped(&mut self, now: Micros) {
        self.jumped = Some(now);
    }
}

impl World {
    /// Whether a device may have expired.
    pub(super) fn lapsed(&self, device: usize) -> bool {
        let device = &self.devices[device];
        self.check.lives.lapsed(&device.user, &device.device)
    }

    /// When the message at a coordinate expires, as every region has it; 0: never.
    pub(super) fn expires_ms(&self, shard: ShardId, at: Coord) -> u64 {
        let entry = self.check.ledger.get(&(shard, at.origin, at.seq));
        entry.map_or(0, |entry| entry.op.expires_ms())
    }

    /// Whether a message may be gone in a region because its time to live passed: most of the other regions' clocks must
    /// say so (R20).
    pub(super) fn is_due(&self, region: usize, expires_ms: u64) -> bool {
        if expires_ms == 0 {
            return false;
        }
        let others = (0..self.stores.len()).filter(|other| *other != region);
        let clocks: Vec<u64> = others
            .map(|other| self.nodes[self.core_of(other)].wall_ms(self.now))
            .collect();
        let jumped = self.check.lives.jumped.is_some_and(|at| self.now < at + STALE);
        let slack = self.plan.limits.expiry_margin_ms;
        let late = clocks
            .iter()
            .filter(|wall_ms| **wall_ms + slack >= expires_ms)
            .count();
        jumped || clocks.is_empty() || 2 * late > clocks.len()
    }

    /// A device is told that messages are gone: because they were sent before it was known, or expired, or it did.
    pub(super) fn check_hole(&mut self, device: usize, hole: &Hole) {
        self.check.stats.holes += 1;
        self.check.seen[device].holes.push(hole.clone());
        if hole.origin == RETIRED {
            return self.check_past(device, hole);
        }
        let name = self.devices[device].name();
        let welcomed = self.check.seen[device].welcomed;
        let user = self.devices[device].user.clone();
        let shard = self.plan.sharding().of_user(&user);
        let region = self.devices[device].conn.and_then(|conn| self.clients.get(&conn));
        let region = region.map_or(0, |client| self.nodes[client.node].region);
        let entries = self.check.inboxes.get(&(user, hole.origin));
        let entries: Vec<(Seq, u64)> = entries
            .into_iter()
            .flat_map(|entries| entries.range(hole.from..=hole.to))
            .map(|(seq, number)| (*seq, *number))
            .collect();
        let lapsed = self.lapsed(device);
        let wronged = entries.iter().find(|(seq, number)| {
            let at = Coord {
                origin: hole.origin,
                seq: *seq,
            };
            let before = welcomed.is_none_or(|welcomed| welcomed >= self.check.sent[*number as usize].at);
            let consumed = self.check.seen[device].consumed.contains(number);
            let cause = match hole.reason {
                HoleReason::Expired => self.is_due(region, self.expires_ms(shard, at)),
                // A region that was away beyond the limits of the logs was the only one that knew of the device (R12).
                _ => before || lapsed || self.may_forget_devices(shard),
            };
            !cause && !consumed
        });
        if let Some((_, number)) = wronged {
            let detail = format!("{name} is told that #{number} is gone ({hole:?}), which has no cause");
            return self.fail("holes have a cause", detail, self.check.words(*number));
        }
        if hole.reason == HoleReason::Expired && hole.count > entries.len() as u64 {
            let detail = format!(
                "{name} is told of {hole:?}, where {} messages stood",
                entries.len()
            );
            self.fail("holes have a cause", detail, Vec::new());
        }
    }

    /// A store looked through an inbox: what it replaced was due.
    pub(super) fn check_expired(&mut self, region: usize, shard: ShardId, user: &UserId) {
        let Some(holes) = self.holes(region, shard, user) else {
            return;
        };
        let name = self.region_name(region).clone();
        for InboxHole { at, row, .. } in holes {
            let entries = self.check.inboxes.get(&(user.clone(), at.origin));
            let entries = entries
                .into_iter()
                .flat_map(|entries| entries.range(at.seq..=row.to));
            let entries: Vec<(Seq, u64)> = entries.map(|(seq, number)| (*seq, *number)).collect();
            let known = self.check.stores[region]
                .holes
                .entry((user.clone(), at.origin))
                .or_default();
            let new: Vec<(Seq, u64)> = entries
                .iter()
                .filter(|(seq, _)| known.insert(*seq))
                .copied()
                .collect();
            self.check.stats.expired += new.len() as u64;
            if row.count > 0 && row.count != entries.len() as u64 {
                let detail = format!("{name}: {row:?} of {user} at {at}, where {entries:?} stood");
                return self.fail("holes have a cause", detail, vec![user.to_string()]);
            }
            let early = new.into_iter().find(|(seq, _)| {
                let at = Coord {
                    origin: at.origin,
                    seq: *seq,
                };
                !self.is_due(region, self.expires_ms(shard, at))
            });
            if let Some((seq, number)) = early {
                let at = Coord {
                    origin: at.origin,
                    seq,
                };
                let detail = format!("{name} replaces #{number} at {at}, which most clocks do not call due");
                let words = self.check.words(number);
                return self.fail("nothing expires while clocks disagree (R20)", detail, words);
            }
        }
    }

    /// Expiries were applied of devices that are attached in the region: it objected in the same commit (R19).
    pub(super) fn check_objected(
        &mut self,
        region: usize,
        attached: &[(UserId, DeviceId)],
        logged: &[Logged],
    ) {
        let applied = logged.iter().filter(|logged| !logged.own);
        let expiries = applied.filter_map(|logged| match logged.entry.op.decode() {
            Ok(Op::Device {
                user,
                device,
                change: DeviceChange::Expire { .. },
            }) => Some((logged.shard, (user, device))),
            _ => None,
        });
        let expiries: Vec<(ShardId, (UserId, DeviceId))> =
            expiries.filter(|(_, at)| attached.contains(at)).collect();
        for (shard, (user, device)) in expiries {
            let recovers = self
                .shard_row(region, shard)
                .is_none_or(|row| row.recovery.recovers());
            let row = self.user_row(region, shard, &user);
            let row = row.and_then(|row| row.devices.get(&device).cloned());
            let Some(row) = row.filter(|row| row.expired || row.life.expiry.is_some()) else {
                continue;
            };
            if !recovers {
                let name = self.region_name(region);
                let detail = format!("{name} lets {user}/{device} expire, which is attached there: {row:?}");
                return self.fail(
                    "devices that are attached stay (R19)",
                    detail,
                    vec![user.to_string()],
                );
            }
        }
    }

    /// The holes of a user in a region's store.
    pub(super) fn holes(&mut self, region: usize, shard: ShardId, user: &UserId) -> Option<Vec<InboxHole>> {
        let read = Read::Inbox {
            shard,
            user: user.clone(),
            after: Vector::new(),
            max_items: 1,
            max_bytes: 1,
        };
        match self.engine(region)?.read(&read) {
            Ok(ReadReply::Inbox(page)) => Some(page.holes),
            _ => None,
        }
    }

    /// The messages that a user's holes stand for.
    pub(super) fn in_holes(&self, user: &UserId, holes: &[InboxHole]) -> BTreeSet<Coord> {
        let mut out = BTreeSet::new();
        for hole in holes {
            let origin: Origin = hole.at.origin;
            let entries = self.check.inboxes.get(&(user.clone(), origin));
            let entries = entries.into_iter();
            let inside = entries.flat_map(|entries| entries.range(hole.at.seq..=hole.row.to));
            out.extend(inside.map(|(seq, _)| Coord { origin, seq: *seq }));
        }
        out
    }

    /// A device that has a session did not expire.
    pub(super) fn expired_though_attached(&self, user: &UserId, row: &UserRow) -> Option<String> {
        let devices = self.devices.iter();
        let mut live = devices.filter(|device| device.user == *user && device.is_live());
        let expired = live.find(|device| row.devices.get(&device.device).is_some_and(|row| row.expired));
        expired.map(super::device::Device::name)
    }
}

/// Devices, without what changes all the time where they expire soon.
pub(super) fn at_rest(row: &mut UserRow) {
    for device in row.devices.values_mut() {
        device.life.seen_ms = 0;
        device.life.objected_ms = 0;
        // Of several words the first that a region applied counts there, until one is stable: never, where a region is lost.
        device.life.expiry = device.life.expiry.map(|_| IN_RETIRED);
    }
}
