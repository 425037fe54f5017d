//! Old origins (R23): none is retired that some region still has more of, and in the end none is left that nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use super::world::World;
use crate::core::ids::{Coord, Origin, RegionId, Seq, ShardId};
use crate::core::op::Op;
use crate::core::retire::{OldOrigins, RETIRED};
use crate::core::storage::{Read, ReadReply};
use crate::core::time::Hlc;
use crate::core::wire::Hole;

impl World {
    /// A region retired origins: nobody ever had more of them, and every region has or had all of it.
    pub(super) fn check_retired(&mut self, region: usize, shard: ShardId, retired: &BTreeMap<Origin, Seq>) {
        for (origin, seq) in retired {
            if self.check.retired.insert((shard, *origin)) {
                let at = Coord {
                    origin: *origin,
                    seq: *seq,
                };
                self.check_agreed(region, shard, at);
            }
            // What was lost with a disk nobody has.
            let key = (shard, *origin);
            let of = |known: &BTreeMap<(ShardId, Origin), Seq>| known.get(&key).copied().unwrap_or(0);
            let stores = self.check.ever.iter().zip(&self.check.stores);
            let had: Vec<(Seq, Seq)> = stores.map(|(ever, now)| (of(ever), of(&now.applied))).collect();
            let mut regions = had.iter().enumerate();
            let wrong = regions.find(|(other, (ever, now))| {
                // What only a region has that was removed by force is given up.
                let more = now > seq && !self.parts.given_up.contains(other);
                // Whoever learned by snapshot that it is retired never had it.
                (self.counts(*other) && ever.max(now) < seq) || more
            });
            let wrong = wrong.map(|(other, _)| other);
            if let Some(other) = wrong {
                let detail = format!(
                    "{} retires {origin:?} of shard {shard} at {seq}, of which {} had and has {:?}",
                    self.region_name(region),
                    self.region_name(other),
                    had[other]
                );
                return self.fail("retired when all have all of it (R23)", detail, Vec::new());
            }
            // What would still be stored goes with it.
            for user in self.check.users.get(&shard).cloned().unwrap_or_default() {
                let trimmed = &self.check.stores[region].trimmed;
                let removed = trimmed.get(&(user.clone(), *origin)).copied().unwrap_or(0);
                if removed < *seq {
                    self.check_gone(region, shard, &user, *origin, (removed, *seq), false);
                }
            }
            self.note_retired(region, shard, *origin, *seq);
        }
    }

    /// A snapshot told of retired origins. Who does not list one has retired it by that. Who lists less of it, as an old backup
    /// does, has no more than that until it retires it, which it does before it is open again: what it keeps of it goes first.
    /// What is durable meanwhile is the word.
    pub(super) fn note_told(&mut self, region: usize, shard: ShardId, retired: &BTreeMap<Origin, Seq>) {
        for (origin, seq) in retired {
            let key = (shard, *origin);
            let store = &mut self.check.stores[region];
            match store.applied.get(&key) {
                Some(have) if have < seq => {
                    store.told.insert(key, *seq);
                }
                Some(_) => {}
                None => self.note_retired(region, shard, *origin, *seq),
            }
        }
    }

    /// A retired origin counts as applied to its end: of what was not, nothing will come.
    fn note_retired(&mut self, region: usize, shard: ShardId, origin: Origin, seq: Seq) {
        self.check.stores[region].told.remove(&(shard, origin));
        let at = Coord { origin, seq };
        if !self.check.is_durable(region, shard, at) {
            self.check.now_durable(region, shard, at);
        }
    }

    /// A store was opened: it knows what is retired, and what it was told of that. A crash may have kept a retirement that
    /// nobody heard of.
    pub(super) fn check_retired_opened(&mut self, region: usize, shard: ShardId, old: &OldOrigins) {
        let unheard = old.retired.iter().filter(|(origin, seq)| {
            let (origin, seq) = (**origin, **seq);
            let here = self.check.is_durable(region, shard, Coord { origin, seq });
            !here || !self.check.retired.contains(&(shard, origin))
        });
        let unheard = unheard.map(|(origin, seq)| (*origin, *seq)).collect();
        self.check_retired(region, shard, &unheard);
        let of_shard = (shard, Origin(0))..=(shard, Origin(u64::MAX));
        let mut told = self.check.stores[region].told.range(of_shard);
        let forgot = told.find(|((_, origin), seq)| old.told.get(origin) != Some(*seq));
        if let Some(((_, origin), seq)) = forgot {
            let name = self.region_name(region);
            let detail = format!(
                "{name} was told that {origin:?} of shard {shard} is retired at {seq}, and forgot it"
            );
            self.fail("durability", detail, Vec::new());
        }
    }

    /// The first to retire an origin: each holder's last confirmation, as far as that region may know it, lists all of it
    /// and does not name it as needed.
    fn check_agreed(&mut self, region: usize, shard: ShardId, at: Coord) {
        let mut last: BTreeMap<RegionId, (Hlc, bool)> = BTreeMap::new();
        let of_shard = (shard, Origin(0), 0)..=(shard, Origin(u64::MAX), Seq::MAX);
        for ((_, origin, seq), entry) in self.check.ledger.range(of_shard) {
            let Some(Op::Confirm {
                holder,
                applied,
                needed,
                ..
            }) = entry.confirm()
            else {
                continue;
            };
            // One that does not list it is from after its retirement: that a holder never had it is told elsewhere.
            if applied.of(at.origin) == 0 {
                continue;
            }
            let (origin, seq) = (*origin, *seq);
            let agrees = applied.of(at.origin) == at.seq && !needed.contains(&at.origin);
            let known = self.check.is_durable(region, shard, Coord { origin, seq });
            let hlc = entry.op.hlc();
            let (latest, agreed) = last.entry(holder).or_default();
            // A snapshot may bring one from beyond its cut.
            if (known || agrees) && hlc >= *latest {
                (*latest, *agreed) = (hlc, agrees);
            }
        }
        let holders = (0..self.stores.len()).filter(|holder| self.counts(*holder));
        let holders = holders.map(|holder| self.region_name(holder));
        let mut disagrees = holders.filter(|holder| !last.get(*holder).is_some_and(|(_, agreed)| *agreed));
        if let Some(holder) = disagrees.next().cloned() {
            let name = self.region_name(region);
            let detail = format!("{name} retires shard {shard} {at}, and {holder} last said otherwise");
            self.fail("retired when nobody needs it (R23)", detail, vec![at.to_string()]);
        }
    }

    /// A device is told that something is gone with retired origins: only of what was sent before it was known.
    pub(super) fn check_past(&mut self, device: usize, hole: &Hole) {
        let user = self.devices[device].user.clone();
        let shard = self.plan.sharding().of_user(&user);
        let retired = self
            .check
            .retired
            .range((shard, Origin(0))..=(shard, Origin(u64::MAX)));
        let entries = retired.filter_map(|(_, origin)| self.check.inboxes.get(&(user.clone(), *origin)));
        let mut sent = entries.flat_map(|entries| entries.values());
        if !sent.any(|number| self.came_after(device, *number)) {
            let name = self.devices[device].name();
            let detail =
                format!("{name} is told of {hole:?}, and nothing that was sent before it came is retired");
            self.fail("holes have a cause", detail, vec![name]);
        }
    }

    /// Whether a device came when a message had been sent, or may have expired and come back since.
    fn came_after(&self, device: usize, number: u64) -> bool {
        let came = self.check.seen[device].welcomed;
        came.is_none_or(|came| came >= self.check.sent[number as usize].at) || self.lapsed(device)
    }

    /// Whether a device was told that a message is gone: in its place, or with the retired origins that stood before it
    /// came (R23).
    pub(super) fn told_gone(&self, device: usize, number: u64) -> bool {
        let seen = &self.check.seen[device];
        let sent = &self.check.sent[number as usize];
        let shard = self.plan.sharding().of_user(&sent.to);
        let unknown = self.came_after(device, number) || self.may_forget_devices(shard);
        let past = unknown && seen.holes.iter().any(|hole| hole.origin == RETIRED);
        let mut coords = sent.coords.iter();
        coords.any(|at| seen.told(*at) || (past && self.check.retired.contains(&(shard, at.origin))))
    }

    /// An old origin that is listed although no region needs it.
    pub(super) fn unretired(&mut self, regions: &[usize], shard: ShardId) -> Option<String> {
        let mut old: BTreeMap<Origin, usize> = BTreeMap::new();
        for region in regions.iter().copied() {
            let row = self.shard_row(region, shard)?;
            let listed = row.logs.keys().filter(|origin| row.is_old(**origin));
            old.extend(listed.map(|origin| (*origin, region)));
        }
        for (origin, by) in old {
            let needed = regions
                .iter()
                .any(|region| self.needs_origin(*region, shard, origin));
            if !needed {
                let name = self.region_name(by);
                return Some(format!(
                    "{name} lists the old {origin:?} in shard {shard}, and nobody needs it"
                ));
            }
        }
        None
    }

    fn needs_origin(&mut self, region: usize, shard: ShardId, origin: Origin) -> bool {
        let mut from = None;
        loop {
            let read = Read::Needed {
                shard,
                origins: BTreeSet::from([origin]),
                stored: false,
                from,
            };
            let Some(Ok(ReadReply::Needed(page))) = self.engine(region).map(|engine| engine.read(&read))
            else {
                return true;
            };
            if !page.users.is_empty() {
                return true;
            }
            if page.next.is_none() {
                return false;
            }
            from = page.next;
        }
    }
}
