//! The bytes of records and stored rows. What is stored must stay readable: never change the fixture.

use super::*;
use crate::core::ids::{Epoch, Origin, ShardId};
use crate::core::op::LogEntry;
use crate::core::state::{DedupRow, Logged, ShardRow, UserRow};
use crate::core::time::Hlc;
use crate::store::conformance::kit::{HERE, Remote, T0, at, identity, region, user};
use crate::store::embedded::record::{
    Extent, StoredDedup, StoredShard, StoredUser, decode_decisions, encode_decisions,
};

fn decisions() -> Vec<Decision> {
    let mut log = Remote::new(HERE, 10, None, T0);
    log.append(T0, "bob", 1);
    let shard = ShardId(3);
    let (bob, origin) = (user("bob"), Origin(10));
    vec![
        Decision::Epoch {
            shard,
            epoch: Epoch(4),
        },
        Decision::Logged(Logged {
            merged: false,
            shard,
            origin,
            region: region(HERE),
            own: true,
            entry: LogEntry {
                seq: 2,
                hash: log.hash(2),
                op: log.ops[1].clone(),
            },
            hlc: Hlc { ms: T0, logical: 1 },
            siblings: vec![at(20, 5)],
        }),
        Decision::Consumed {
            shard,
            user: bob.clone(),
            origin,
            to: 2,
            messages: 1,
            bytes: 90,
        },
        Decision::Removed {
            shard,
            user: bob,
            origin,
            to: 2,
        },
        Decision::Trimmed {
            shard,
            origin,
            to: 2,
            hash: log.hash(2),
            bytes: 0,
        },
        Decision::DedupDropped { shard, day: 19_675 },
    ]
}

#[test]
fn the_formats_are_those_of_the_fixture() {
    let mut record = Vec::new();
    encode_decisions(&decisions(), &mut record);
    let meta = Meta {
        identity: StoredIdentity::of(&identity(10, &[HERE])),
        store: 10,
        covered: 77,
        newest_id_ms: T0,
    };
    let extents = [(Origin(10), Extent { lo: 1, hi: 2 })];
    let shard = StoredShard {
        as_of: 78,
        logs: extents.into(),
        dropped: [(19_675, 70)].into(),
        revived: [19_675].into(),
        row: ShardRow::default(),
    };
    let bob = StoredUser {
        as_of: 79,
        inbox: extents.into(),
        row: UserRow::default(),
    };
    let dedup = StoredDedup {
        as_of: 80,
        row: DedupRow::from(vec![(7, at(10, 2))]),
    };
    let rows = [
        ("record", record),
        ("meta", meta.encode()),
        ("shard", keys::encode(&shard)),
        ("user", keys::encode(&bob)),
        ("dedup", keys::encode(&dedup)),
    ];
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let text: String = rows
        .iter()
        .map(|(name, bytes)| format!("{name}\n  {}\n", hex(bytes)))
        .collect();
    let fixture = include_str!("../../../../tests/fixtures/store-embedded-v1-more.txt");
    assert_eq!(text, fixture, "now:\n{text}");
    // The first is of builds whose rows had fewer fields.
    for fixture in [
        include_str!("../../../../tests/fixtures/store-embedded-v1.txt"),
        fixture,
    ] {
        reads_back(fixture, &meta, &shard, &bob, &dedup);
    }
}

fn reads_back(fixture: &str, meta: &Meta, shard: &StoredShard, bob: &StoredUser, dedup: &StoredDedup) {
    let stored: Vec<Vec<u8>> = fixture
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(|line| {
            let digits = (0..line.len()).step_by(2);
            digits
                .map(|i| u8::from_str_radix(&line[i..i + 2], 16).unwrap())
                .collect()
        })
        .collect();
    assert_eq!(decode_decisions(&stored[0]), Ok(decisions()));
    assert_eq!(Meta::decode(&stored[1]).as_ref(), Ok(meta));
    assert_eq!(keys::decode("shard", &stored[2]).as_ref(), Ok(shard));
    assert_eq!(keys::decode("user", &stored[3]).as_ref(), Ok(bob));
    assert_eq!(keys::decode("dedup", &stored[4]).as_ref(), Ok(dedup));
}

#[test]
fn damaged_records_are_refused() {
    let mut record = Vec::new();
    encode_decisions(&decisions(), &mut record);
    for cut in 0..record.len() {
        assert!(decode_decisions(&record[..cut]).is_err(), "cut at {cut}");
    }
    record[0] = 9;
    let error = decode_decisions(&record).unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
}
