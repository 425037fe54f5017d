//! The bytes of records and stored rows. What is stored must stay readable: never change a fixture, and
//! add one where rows get fields.

use std::collections::BTreeMap;

use super::*;
use crate::core::expire::{DeviceLife, Expired, HoleRow};
use crate::core::holders::{HolderSet, Leaving};
use crate::core::ids::{Epoch, Origin, ShardId};
use crate::core::op::LogEntry;
use crate::core::snapshot::{Cut, CutLog, MergedUser};
use crate::core::state::{ConfirmRow, DedupKey, DedupRow, DeviceRow, Logged, ShardRow, UserRow};
use crate::core::time::Hlc;
use crate::core::wire::HoleReason;
use crate::store::conformance::kit::{
    HERE, Remote, T0, THERE, at, device, hex, id, identity, region, unhex_lines, user, variants, vector,
};
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
    let stored = unhex_lines(fixture);
    assert_eq!(decode_decisions(&stored[0]), Ok(decisions()));
    assert_eq!(Meta::decode(&stored[1]).as_ref(), Ok(meta));
    assert_eq!(keys::decode("shard", &stored[2]).as_ref(), Ok(shard));
    assert_eq!(keys::decode("user", &stored[3]).as_ref(), Ok(bob));
    assert_eq!(keys::decode("dedup", &stored[4]).as_ref(), Ok(dedup));
}

/// The decisions of a shard that recovers, with all that each may hold.
fn recovery() -> Vec<(&'static str, Decision)> {
    let mut log = Remote::new(HERE, 10, None, T0);
    log.append(T0, "bob", 1);
    let shard = ShardId(3);
    let bob = user("bob");
    let began = |began| Decision::Recovery { shard, began };
    let key = DedupKey {
        id: id(T0, 1),
        recipient: bob.clone(),
        sender: user("alice"),
    };
    let row = |expired| DeviceRow {
        epoch: 1,
        expired,
        cursor: vector(&[(10, 2)]),
        ..DeviceRow::default()
    };
    let merged = MergedUser {
        devices: [(device("phone"), row(false)), (device("tablet"), row(true))].into(),
        trimmed: vector(&[(10, 2), (20, 3)]),
        gaps: [((Origin(20), 5), 6)].into(),
        siblings: [(at(10, 2), [at(20, 5)].into())].into(),
        not_before: 4,
        ..MergedUser::default()
    };
    let past = MergedUser {
        past: true,
        ..MergedUser::default()
    };
    let cut_log = |previous| CutLog {
        region: region(HERE),
        seq: 2,
        hash: log.hash(2),
        previous,
        hlc: Hlc { ms: T0, logical: 1 },
    };
    let confirm = ConfirmRow {
        applied: vector(&[(10, 2)]),
        needed: vec![Origin(4)],
        at: (Hlc { ms: T0, logical: 1 }, Origin(10), 2),
        retired: None,
        stale: Vec::new(),
    };
    let says_retired = ConfirmRow {
        retired: Some(vec![at(4, 3)]),
        stale: vec![Origin(5)],
        ..confirm.clone()
    };
    let jumped = |forgotten, confirm: &ConfirmRow, retired| Decision::Jumped {
        shard,
        cut: Box::new(Cut {
            logs: [(Origin(10), cut_log(Some(at(4, 3)))), (Origin(20), cut_log(None))].into(),
            confirmed: [(region(HERE), confirm.clone())].into(),
            forgotten,
            retired,
            holders: None,
        }),
        hlc: Hlc { ms: T0, logical: 2 },
    };
    vec![
        ("recovery begins", began(Some(Origin(10)))),
        ("recovery ends", began(None)),
        (
            "dedup merged",
            Decision::DedupMerged {
                shard,
                key,
                bodies: vec![(7, at(10, 2)), (u128::MAX, at(20, 5))],
            },
        ),
        (
            "user merged",
            Decision::UserMerged {
                shard,
                user: bob.clone(),
                merged: Box::new(merged),
            },
        ),
        (
            "merged",
            Decision::Merged {
                shard,
                user: bob,
                at: at(10, 2),
                op: log.ops[1].clone(),
                siblings: vec![at(20, 5)],
            },
        ),
        ("jumped", jumped(0, &confirm, BTreeMap::new())),
        (
            "jumped, dedup of past days forgotten",
            jumped(19_675, &confirm, BTreeMap::new()),
        ),
        ("merging", Decision::Merging { shard }),
        (
            "user merged, origins retired",
            Decision::UserMerged {
                shard,
                user: user("carol"),
                merged: Box::new(past),
            },
        ),
        (
            "jumped, origins retired",
            jumped(0, &says_retired, [(Origin(4), 3)].into()),
        ),
    ]
}

/// Decisions about old origins.
fn retirement() -> Vec<(&'static str, Decision)> {
    let (shard, origin) = (ShardId(3), Origin(4));
    let needed = |needed| Decision::Needed {
        shard,
        origin,
        needed,
    };
    vec![
        ("needed", needed(true)),
        ("not needed", needed(false)),
        (
            "retired",
            Decision::Retired {
                shard,
                origin,
                seq: 3,
            },
        ),
    ]
}

/// Decisions about what goes by time.
fn expiry() -> Vec<(&'static str, Decision)> {
    let (shard, user) = (ShardId(3), user("bob"));
    let hole = HoleRow {
        to: 8,
        count: 2,
        reason: HoleReason::Expired,
    };
    let phone = DeviceRow {
        epoch: 2,
        expired: false,
        cursor: vector(&[(10, 2)]),
        life: DeviceLife {
            seen_ms: T0,
            expiry: Some(at(20, 7)),
            objected_ms: 0,
        },
    };
    let merged = MergedUser {
        devices: [(device("phone"), phone)].into(),
        holes: [((Origin(20), 5), hole)].into(),
        ..MergedUser::default()
    };
    let expired = Expired {
        origin: Origin(20),
        from: 5,
        to: 8,
        count: 2,
        messages: 1,
        bytes: 300,
    };
    let decisions = [
        (
            "messages expired",
            Decision::Expired {
                shard,
                user: user.clone(),
                hole: expired,
            },
        ),
        (
            "messages expire",
            Decision::Expires {
                shard,
                user: user.clone(),
                from_ms: T0,
            },
        ),
        (
            "device expired",
            Decision::DeviceExpired {
                shard,
                user: user.clone(),
                device: device("phone"),
                epoch: 2,
            },
        ),
        (
            "user merged, holes and a device to expire",
            Decision::UserMerged {
                shard,
                user,
                merged: Box::new(merged),
            },
        ),
    ];
    decisions.into()
}

/// Decisions about who keeps a shard, and who is away.
fn holders() -> Vec<(&'static str, Decision)> {
    let shard = ShardId(3);
    let confirm = (Hlc { ms: T0, logical: 1 }, Origin(20), 2);
    let marked = |at| Decision::Marked {
        shard,
        region: region(THERE),
        at,
    };
    let set = HolderSet {
        version: 2,
        new: [region(HERE)].into(),
        old: [region(THERE)].into(),
        at: [at(10, 2)].into(),
        settled: false,
        leaving: [(
            region(THERE),
            Leaving {
                version: 2,
                at: [at(10, 2)].into(),
            },
        )]
        .into(),
        gone: [region("ap-south")].into(),
    };
    vec![
        ("marked", marked(Some(confirm))),
        ("not marked", marked(None)),
        (
            "behind",
            Decision::Behind {
                shard,
                began: Origin(10),
            },
        ),
        (
            "trimmed, bytes",
            Decision::Trimmed {
                shard,
                origin: Origin(10),
                to: 2,
                hash: 7,
                bytes: 90,
            },
        ),
        (
            "jumped, holders changed",
            Decision::Jumped {
                shard,
                cut: Box::new(Cut {
                    logs: [].into(),
                    confirmed: [].into(),
                    forgotten: 0,
                    retired: [].into(),
                    holders: Some(set),
                }),
                hlc: Hlc { ms: T0, logical: 2 },
            },
        ),
    ]
}

#[test]
fn the_decisions_of_a_recovery_are_those_of_the_fixture() {
    let one = |decision: Decision| {
        let mut record = Vec::new();
        encode_decisions(&[decision], &mut record);
        record
    };
    let decisions = || {
        recovery()
            .into_iter()
            .chain(retirement())
            .chain(expiry())
            .chain(holders())
    };
    let text: String = decisions()
        .map(|(name, decision)| format!("{name}\n  {}\n", hex(&one(decision))))
        .collect();
    let fixture = include_str!("../../../../tests/fixtures/store-recovery-v1-more.txt");
    assert_eq!(text, fixture, "now:\n{text}");
    // The first is of builds whose rows had fewer fields; what came later is behind what it has.
    for fixture in [
        include_str!("../../../../tests/fixtures/store-recovery-v1.txt"),
        fixture,
    ] {
        for ((name, decision), stored) in decisions().zip(&unhex_lines(fixture)) {
            assert_eq!(decode_decisions(stored), Ok(vec![decision]), "{name}");
        }
    }
}

#[test]
fn every_decision_is_in_a_fixture() {
    let later = recovery()
        .into_iter()
        .chain(retirement())
        .chain(expiry())
        .chain(holders());
    let later = later.map(|(_, decision)| decision);
    let found = decisions()
        .into_iter()
        .chain(later)
        .map(|decision| match decision {
            Decision::Epoch { .. } => "Epoch",
            Decision::Logged(_) => "Logged",
            Decision::Consumed { .. } => "Consumed",
            Decision::Removed { .. } => "Removed",
            Decision::Trimmed { .. } => "Trimmed",
            Decision::DedupDropped { .. } => "DedupDropped",
            Decision::Recovery { .. } => "Recovery",
            Decision::DedupMerged { .. } => "DedupMerged",
            Decision::UserMerged { .. } => "UserMerged",
            Decision::Merged { .. } => "Merged",
            Decision::Jumped { .. } => "Jumped",
            Decision::Merging { .. } => "Merging",
            Decision::Needed { .. } => "Needed",
            Decision::Retired { .. } => "Retired",
            Decision::Expired { .. } => "Expired",
            Decision::Expires { .. } => "Expires",
            Decision::DeviceExpired { .. } => "DeviceExpired",
            Decision::Marked { .. } => "Marked",
            Decision::Behind { .. } => "Behind",
        });
    assert_eq!(found.collect::<BTreeSet<_>>(), variants::<Decision>());
}

#[test]
fn damaged_records_are_refused() {
    let mut record = Vec::new();
    let later = recovery()
        .into_iter()
        .chain(retirement())
        .chain(expiry())
        .chain(holders());
    let later = later.map(|(_, decision)| decision);
    let all: Vec<Decision> = decisions().into_iter().chain(later).collect();
    encode_decisions(&all, &mut record);
    for cut in 0..record.len() {
        assert!(decode_decisions(&record[..cut]).is_err(), "cut at {cut}");
    }
    record[0] = 9;
    let error = decode_decisions(&record).unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
}
