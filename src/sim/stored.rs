//! What stores hold: looked at after commits, and when they are opened.

use std::collections::BTreeMap;

use super::device::Device;
use super::world::World;
use crate::core::ids::{Coord, DeviceId, Origin, RegionId, Seq, ShardId, UserId};
use crate::core::op::Op;
use crate::core::snapshot::Cut;
use crate::core::state::{DeviceRow, Logged};
use crate::core::storage::{LogPage, Read, ReadReply};
use crate::core::time::Hlc;
use crate::core::vector::Vector;
use crate::store::engine::Engine;

impl World {
    /// What left the store may have: stable, and handled by every device that was known.
    pub(super) fn check_removed(&mut self, region: usize, shard: ShardId) {
        let users = self.check.users.get(&shard).cloned().unwrap_or_default();
        let Some(engine) = self.engine(region) else {
            return;
        };
        let Ok(ReadReply::Shard(row)) = engine.read(&Read::Shard(shard)) else {
            return;
        };
        let mut rows = Vec::new();
        for user in users {
            if let Ok(ReadReply::User(row)) = engine.read(&Read::User(shard, user.clone())) {
                rows.push((user, row));
            }
        }
        let name = self.region_name(region).clone();
        for (origin, log) in &row.logs {
            let floor = self.check.stores[region]
                .floors
                .entry((shard, *origin))
                .or_default();
            if std::mem::replace(floor, log.floor) >= log.floor {
                continue;
            }
            let at = Coord {
                origin: *origin,
                seq: log.floor,
            };
            let waited = (0..self.stores.len()).filter(|other| self.waits_for(region, &row, *other));
            let missing = waited
                .into_iter()
                .find(|other| !self.check.was_durable(*other, shard, at));
            if let Some(missing) = missing {
                let detail = format!(
                    "{name} trims the log of shard {shard} to {at}, which {} has not",
                    self.region_name(missing)
                );
                return self.fail(
                    "nothing above stable is trimmed (R9)",
                    detail,
                    vec![at.to_string()],
                );
            }
        }
        for (user, row) in rows {
            for (origin, to) in row.trimmed.iter() {
                let trimmed = self.check.stores[region]
                    .trimmed
                    .entry((user.clone(), origin))
                    .or_default();
                let before = std::mem::replace(trimmed, to);
                if before < to {
                    // It may have been removed before the last device expired.
                    let expired = |device: &DeviceRow| device.expired && !self.plan.devices_expire();
                    let alone = row.devices.values().all(expired);
                    self.check_gone(region, shard, &user, origin, (before, to), alone);
                }
            }
        }
    }

    /// A snapshot was merged: of each holder the last confirmation that its cut covers counts here (R11). Nothing else would
    /// tell: a holder's last confirmation is never stable, so that the log brings it later.
    pub(super) fn check_confirmed(&mut self, region: usize, shard: ShardId, cut: &Cut) {
        let Some(row) = self.shard_row(region, shard) else {
            return;
        };
        let mut confirmed: BTreeMap<RegionId, (Hlc, Origin, Seq)> = BTreeMap::new();
        for (origin, log) in &cut.logs {
            let covered = (shard, *origin, 1)..=(shard, *origin, log.seq);
            for ((_, origin, seq), entry) in self.check.ledger.range(covered) {
                if let Ok(Op::Confirm { holder, .. }) = entry.op.decode() {
                    let known = confirmed.entry(holder).or_default();
                    *known = (*known).max((entry.op.hlc(), *origin, *seq));
                }
            }
        }
        for (holder, at) in confirmed {
            let here = row.confirmed.get(&holder).map(|row| row.at);
            if here.is_none_or(|here| here < at) {
                let name = self.region_name(region);
                let detail = format!(
                    "{name} took a snapshot of shard {shard} with {at:?} of {holder} below its cut, and knows {here:?}"
                );
                return self.fail("a snapshot is complete (R11)", detail, Vec::new());
            }
        }
    }

    pub(super) fn check_gone(
        &mut self,
        region: usize,
        shard: ShardId,
        user: &UserId,
        origin: Origin,
        (before, to): (Seq, Seq),
        alone: bool,
    ) {
        let name = self.region_name(region).clone();
        let gone: Vec<(Seq, u64)> = match self.check.inboxes.get(&(user.clone(), origin)) {
            Some(entries) => entries
                .range(before + 1..=to)
                .map(|(seq, number)| (*seq, *number))
                .collect(),
            None => Vec::new(),
        };
        for (seq, number) in gone {
            let at = Coord { origin, seq };
            let words = self.check.words(number);
            let counts = |other: &usize| self.counts(*other) && !self.was_marked(shard, *other);
            let counting = (0..self.stores.len()).filter(counts);
            let other = counting
                .into_iter()
                .find(|other| !self.check.was_durable(*other, shard, at));
            if let Some(other) = other {
                let detail = format!(
                    "{name} removes #{number} at {at}, which {} has not",
                    self.region_name(other)
                );
                return self.fail("nothing above stable is removed (R10)", detail, words);
            }
            if alone {
                let detail = format!("{name} removes #{number} at {at} of {user}, who has no device");
                return self.fail("nothing is removed without a device (R10)", detail, words);
            }
            // The first that removed it was judged by what it knew; from it others learn by snapshot.
            let learned = self.ever_marked(shard) && self.is_removed_elsewhere(region, user, at);
            let sent = self.check.sent[number as usize].at;
            let missing = (0..self.devices.len()).find(|device| {
                let seen = &self.check.seen[*device];
                self.devices[*device].user == *user
                    && seen.welcomed.is_some_and(|welcomed| welcomed < sent)
                    && !seen.consumed.contains(&number)
                    && !self.told_gone(*device, number)
                    && !self.lapsed(*device)
                    && self.knows_device(region, shard, *device, at)
            });
            if let Some(device) = missing.filter(|_| !learned) {
                let device = self.devices[device].name();
                let detail = format!("{name} removes #{number} at {at}, which {device} has not handled");
                return self.fail("consumed by every device (R10)", detail, words);
            }
        }
    }

    fn is_removed_elsewhere(&self, region: usize, user: &UserId, at: Coord) -> bool {
        let mut others = (0..self.stores.len()).filter(|other| *other != region);
        others.any(|other| {
            let trimmed = &self.check.stores[other].trimmed;
            trimmed
                .get(&(user.clone(), at.origin))
                .is_some_and(|to| *to >= at.seq)
        })
    }

    /// A cursor covers what its device's application handled, here or as another copy, or was told to be gone (R14, R17).
    pub(super) fn check_cursor(
        &mut self,
        region: usize,
        at: Coord,
        (user, device): (&UserId, &DeviceId),
        cursor: &Vector,
    ) {
        let of_device = |other: &Device| other.user == *user && other.device == *device;
        let Some(index) = self.devices.iter().position(of_device) else {
            return;
        };
        let (seen, known) = (&self.check.seen[index], &self.check.cursors[index]);
        let unread = cursor.iter().find_map(|(origin, to)| {
            let from = known.of(origin) + 1;
            let entries = self.check.inboxes.get(&(user.clone(), origin))?;
            let mut new = entries.range(from..=to.max(from)).filter(|(seq, _)| **seq <= to);
            new.find(|(_, number)| {
                let told = || {
                    let coords = &self.check.sent[**number as usize].coords;
                    coords.iter().any(|at| seen.told(*at))
                };
                !seen.consumed.contains(number) && !told()
            })
            .map(|(seq, number)| (Coord { origin, seq: *seq }, *number))
        });
        if let Some((entry, number)) = unread {
            let (name, device) = (self.region_name(region).clone(), self.devices[index].name());
            let mut words = self.check.words(number);
            words.extend([device.clone(), at.to_string()]);
            let detail = format!(
                "{name} logs at {at} that {device} consumed to {cursor:?}; #{number} at {entry} it neither handled nor was told"
            );
            return self.fail("a cursor covers what was consumed (R14)", detail, words);
        }
        self.check.cursors[index].merge(cursor);
    }

    /// A store was opened: all that was durable is there, and what a crash kept beyond is learned.
    pub(super) fn check_opened(&mut self, region: usize, engine: &mut dyn Engine) {
        let name = self.region_name(region).clone();
        for shard in (0..self.plan.shards).map(ShardId) {
            let row = match engine.read(&Read::Shard(shard)) {
                Ok(ReadReply::Shard(row)) => row,
                other => {
                    let detail = format!("{name} cannot read shard {shard}: {other:?}");
                    return self.fail("durability", detail, Vec::new());
                }
            };
            self.check.stores[region].epochs.insert(shard, row.epoch);
            let known: Vec<(Origin, Seq)> = self.check.stores[region]
                .applied
                .range((shard, Origin(0))..=(shard, Origin(u64::MAX)))
                .map(|((_, origin), seq)| (*origin, *seq))
                .collect();
            for (origin, seq) in known {
                let found = row.reached(origin);
                if found < seq {
                    let at = Coord { origin, seq };
                    let detail = format!("{name} lost {at} of shard {shard}: its log ends at {found}");
                    return self.fail("durability", detail, vec![at.to_string()]);
                }
            }
            for (origin, log) in &row.logs {
                self.learn(region, engine, shard, *origin, log.seq, &log.region);
            }
            self.check_retired_opened(region, shard, &row.old);
        }
    }

    fn learn(
        &mut self,
        region: usize,
        engine: &mut dyn Engine,
        shard: ShardId,
        origin: Origin,
        to: Seq,
        of: &RegionId,
    ) {
        let applied = self.check.stores[region].applied.get(&(shard, origin)).copied();
        let mut after = applied.unwrap_or(0);
        while after < to && self.violation.is_none() {
            let read = Read::Log {
                shard,
                origin,
                after,
                max_items: 256,
                max_bytes: usize::MAX,
            };
            let page = engine.read(&read);
            if let Ok(ReadReply::Log(LogPage::Trimmed { floor })) = &page
                && *floor > after
                && *floor <= to
            {
                // The crash kept a commit that logged and trimmed at once, as in a region that is alone.
                after = *floor;
                self.check.stores[region].applied.insert((shard, origin), after);
                continue;
            }
            let Ok(ReadReply::Log(LogPage::Run { entries, .. })) = page else {
                let detail = format!("the log of {origin:?} in shard {shard} has no {}", after + 1);
                return self.fail("durability", detail, Vec::new());
            };
            if entries.is_empty() {
                let detail = format!("the log of {origin:?} in shard {shard} ends at {after}, not {to}");
                return self.fail("durability", detail, Vec::new());
            }
            for entry in entries {
                after = entry.seq;
                // What came back to a lost disk just before the crash is in the ledger: only its bytes are compared.
                let known = self.check.ledger.contains_key(&(shard, origin, entry.seq));
                let own = of == self.region_name(region) && !known;
                let hlc = entry.op.hlc();
                self.check_logged(
                    region,
                    &Logged {
                        shard,
                        origin,
                        region: of.clone(),
                        own,
                        entry,
                        hlc,
                        siblings: Vec::new(),
                        merged: false,
                    },
                );
            }
        }
    }
}
