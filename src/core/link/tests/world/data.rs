//! What a region of the tests keeps: presence as its owners have it, and pages of its logs.

use std::collections::BTreeMap;

use super::super::super::*;
use super::{Region, region_id};
use crate::core::ids::{Coord, NodeName, SessionId};
use crate::core::op::LogEntry;
use crate::core::presence::{Edge, Live, MergeOutcome, StatusText};
use crate::core::snapshot::{SnapshotEntry, UserPage};
use crate::core::state::{Decision, Next};
use crate::core::wire::Status;

/// The presence of a region, as of all its owners.
#[derive(Clone, Default)]
pub struct Table(BTreeMap<ShardId, Presence>);

impl Table {
    /// Merges a record; whether it was newer.
    pub fn merge(&mut self, shard: ShardId, entry: RecordEntry) -> bool {
        let new = || Presence::new(region_id(0));
        self.0.entry(shard).or_insert_with(new).merge(entry) == MergeOutcome::Newer
    }

    /// What is live, by version.
    pub fn live(&self) -> BTreeMap<(ShardId, DeviceKey), u64> {
        let tables = self.0.iter();
        let records = tables.flat_map(|(shard, table)| {
            let all = table.live_above(None, usize::MAX).into_iter();
            all.map(|(_, entry)| {
                let key = (entry.user().clone(), entry.device().clone());
                ((*shard, key), entry.version().connect_epoch)
            })
        });
        records.collect()
    }
}

impl PresenceSource for Table {
    fn table(&self, shard: ShardId) -> Option<&Presence> {
        static NONE: std::sync::LazyLock<Presence> = std::sync::LazyLock::new(|| Presence::new(region_id(0)));
        Some(self.0.get(&shard).unwrap_or(&NONE))
    }
}

/// A live record; nobody's session here.
pub fn record(key: &DeviceKey, version: u64) -> RecordEntry {
    let elsewhere = RegionId::new("elsewhere").unwrap();
    let live = Live {
        status: Status::Online,
        text: StatusText::default(),
        region: elsewhere.clone(),
        edge: Edge {
            node: NodeKey {
                region: elsewhere,
                node: NodeName::new("edge-1").unwrap(),
            },
            generation: Generation(1_780_000_000_000),
        },
        since_ms: 1_780_000_000_000,
    };
    let session = SessionId(0x1234_5678_9abc_def0);
    RecordEntry::live(key.0.clone(), key.1.clone(), (version, session, 0, false), live).unwrap()
}

/// The end of its session.
pub fn ended(key: &DeviceKey, version: u64) -> RecordEntry {
    let session = SessionId(0x1234_5678_9abc_def0);
    RecordEntry::ended(key.0.clone(), key.1.clone(), version, session).unwrap()
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
        while let Next::Item(seq, (hash, item)) = series.next(at) {
            at = seq;
            let op = item.op().expect("all of it is in memory");
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
