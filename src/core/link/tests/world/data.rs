//! What a region of the tests keeps: presence as a version for each device, and pages of its logs.

use std::collections::BTreeMap;

use super::super::super::*;
use super::{Region, region_id};
use crate::core::ids::{Coord, SessionId};
use crate::core::op::LogEntry;
use crate::core::snapshot::{SnapshotEntry, UserPage};
use crate::core::state::{Decision, Next};

pub type Table = BTreeMap<(ShardId, DeviceKey), u64>;

impl PresenceSource for Table {
    fn record(&self, shard: ShardId, user: &UserId, device: &DeviceId) -> Option<RecordEntry> {
        let key = (user.clone(), device.clone());
        Some(record(&key, *self.get(&(shard, key.clone()))?))
    }

    fn page(&self, shard: ShardId, after: Option<&DeviceKey>, limit: usize) -> Vec<(DeviceKey, RecordEntry)> {
        let all = self
            .iter()
            .filter(|((s, key), _)| *s == shard && after.is_none_or(|after| key > after));
        all.take(limit)
            .map(|((_, key), version)| (key.clone(), record(key, *version)))
            .collect()
    }
}

/// What the tests keep of presence: a version for each device.
fn record(key: &DeviceKey, version: u64) -> RecordEntry {
    RecordEntry::ended(key.0.clone(), key.1.clone(), version, SessionId(1)).unwrap()
}

pub fn parse(entry: &RecordEntry) -> (DeviceKey, u64) {
    let key = (entry.user().clone(), entry.device().clone());
    (key, entry.version().connect_epoch)
}

impl Region {
    pub fn page(
        &self,
        (shard, origin, after, max_items, max_bytes): (ShardId, Origin, Seq, usize, usize),
    ) -> LogPage {
        let state = &self.state.shards[&shard];
        let row = &state.row.logs[&origin];
        if after < row.floor {
            return LogPage::Trimmed { floor: row.floor };
        }
        let series = &state.logs[&origin];
        let mut before = row.floor_hash;
        let mut at = row.floor;
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Next::Item(seq, (hash, op)) = series.next(at) {
            at = seq;
            if seq <= after {
                before = *hash;
                continue;
            }
            bytes += op.len();
            if !entries.is_empty() && (entries.len() >= max_items || bytes > max_bytes) {
                return LogPage::Run {
                    before,
                    entries,
                    end: false,
                };
            }
            entries.push(LogEntry {
                seq,
                hash: *hash,
                op: op.clone(),
            });
        }
        LogPage::Run {
            before,
            entries,
            end: true,
        }
    }

    /// Trims an origin's log to `to`, whatever others have.
    /// A snapshot in two pages: dedup records, then everything else.
    pub fn snapshot(
        &self,
        id: ShardId,
        cut: Option<Arc<Cut>>,
        after: &SnapshotAt,
    ) -> (Arc<Cut>, Box<SnapshotPage>) {
        let state = &self.state.shards[&id];
        let hash = |origin, seq: Seq| match state.logs[&origin].next(seq - 1) {
            Next::Item(_, (hash, _)) => Ok::<u64, ()>(*hash),
            other => panic!("{other:?}"),
        };
        let cut = cut.unwrap_or_else(|| Arc::new(Cut::of(&state.row, hash).unwrap()));
        let mut page = SnapshotPage::default();
        if *after == SnapshotAt::Start {
            let rows = state.dedup.iter();
            let rows = rows.map(|(key, row)| {
                (
                    key.clone(),
                    row.bodies().filter(|(_, at)| cut.covers(*at)).collect(),
                )
            });
            page.dedup = rows.collect();
            page.next = Some(SnapshotAt::Users);
            return (cut, Box::new(page));
        }
        for (user, known) in &state.users {
            let mut part = UserPage::of(user.clone(), &known.row, &cut);
            for (origin, series) in &known.inbox {
                let mut last = 0;
                while let Next::Item(seq, op) = series.next(last) {
                    last = seq;
                    let at = Coord { origin: *origin, seq };
                    if cut.covers(at) {
                        let op = op.bytes().clone();
                        part.entries.push(SnapshotEntry { at, op });
                    }
                }
            }
            page.users.push(part);
        }
        (cut, Box::new(page))
    }

    pub fn trim(&mut self, shard: u32, of: usize, to: Seq) {
        let shard = ShardId(shard);
        let state = &self.state.shards[&shard];
        let logs = state.row.logs.iter();
        let (origin, _) = logs.rev().find(|(_, log)| log.region == region_id(of)).unwrap();
        let Next::Item(_, (hash, _)) = state.logs[origin].next(to - 1) else {
            panic!("nothing at {to}")
        };
        let decision = Decision::Trimmed {
            shard,
            origin: *origin,
            to,
            hash: *hash,
            bytes: 0,
        };
        self.state.apply(&decision);
    }
}
