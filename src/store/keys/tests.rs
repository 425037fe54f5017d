use std::collections::BTreeSet;

use super::*;
use crate::core::expire::{DeviceLife, HoleRow, Timed};
use crate::core::holders::{HolderSet, HoldersChange, Holding, Leaving};
use crate::core::ids::{Coord, Epoch, SessionId};
use crate::core::op::{DeviceChange, Envelope, Op, OpError, kind};
use crate::core::retire::OldOrigins;
use crate::core::state::{ConfirmRow, DeviceRow, LogRow, Recovery};
use crate::core::time::Hlc;
use crate::core::wire::HoleReason;
use crate::store::conformance::kit::{
    HERE, Remote, T0, THERE, at, device, hex, id, region, unhex_lines, user, variants, vector,
};
use proptest::prelude::*;

fn key(recipient: &str, sender: &str, ms: u64, n: u64) -> DedupKey {
    DedupKey {
        id: id(ms, n),
        recipient: user(recipient),
        sender: user(sender),
    }
}

fn shard_row() -> ShardRow {
    let log = LogRow {
        region: region(HERE),
        seq: 9,
        hash: 8,
        floor: 7,
        floor_hash: 6,
        previous: Some(at(4, 3)),
        hlc: Hlc { ms: T0, logical: 1 },
    };
    let confirm = ConfirmRow {
        applied: vector(&[(10, 9)]),
        needed: vec![Origin(4)],
        at: (Hlc { ms: T0, logical: 1 }, Origin(10), 9),
        retired: None,
        stale: Vec::new(),
    };
    ShardRow {
        epoch: Epoch(5),
        origin: Origin(10),
        hlc: Hlc { ms: T0, logical: 2 },
        logs: [(Origin(10), log)].into(),
        confirmed: [(region(HERE), confirm)].into(),
        news: 3,
        confirms: 1,
        recovery: Recovery::Open,
        recovered_in: Origin(10),
        forgotten: 0,
        old: OldOrigins::default(),
        holding: Holding::default(),
    }
}

fn user_row() -> UserRow {
    let phone = DeviceRow {
        epoch: 1,
        cursor: vector(&[(10, 9)]),
        ..DeviceRow::default()
    };
    UserRow {
        devices: [(device("phone"), phone)].into(),
        trimmed: vector(&[(10, 2)]),
        consumed: vector(&[(10, 3)]),
        counted: vector(&[(10, 4)]),
        unread: 5,
        unread_bytes: 600,
        siblings: [(at(10, 5), [at(20, 6)].into())].into(),
        not_before: 0,
        gaps: [((Origin(20), 3), 4)].into(),
        ..UserRow::default()
    }
}

fn timed_row() -> UserRow {
    let row = |epoch, expired, seen_ms, expiry| DeviceRow {
        epoch,
        expired,
        cursor: vector(&[(10, 9)]),
        life: DeviceLife {
            seen_ms,
            expiry,
            objected_ms: 0,
        },
    };
    let hole = HoleRow {
        to: 8,
        count: 2,
        reason: HoleReason::Expired,
    };
    UserRow {
        devices: [
            (device("phone"), row(2, false, T0, Some(at(20, 7)))),
            (device("tablet"), row(1, true, T0 - 1, None)),
        ]
        .into(),
        past: true,
        timed: Timed {
            holes: [((Origin(20), 5), hole)].into(),
            from_ms: T0 + 1,
            new_ms: T0 + 2,
        },
        ..user_row()
    }
}

fn objected_row() -> UserRow {
    let mut row = timed_row();
    for device in row.devices.values_mut() {
        device.life.objected_ms = T0 + 3;
    }
    row
}

fn changed_row() -> ShardRow {
    let leaving = Leaving {
        version: 2,
        at: [at(10, 7)].into(),
    };
    let set = HolderSet {
        version: 2,
        new: [region(HERE)].into(),
        old: [region(THERE)].into(),
        at: [at(10, 7), at(20, 3)].into(),
        settled: false,
        leaving: [(region(THERE), leaving)].into(),
        gone: [region("ap-south")].into(),
    };
    ShardRow {
        holding: Holding {
            log_bytes: 600,
            marked: [(region(THERE), (Hlc { ms: T0, logical: 1 }, Origin(20), 2))].into(),
            whole: true,
            out: true,
            set: Some(set),
        },
        ..shard_row()
    }
}

/// Every key and value of format version 1. What is stored must stay readable: never change the bytes of a fixture, and add
/// one where rows get fields.
#[test]
fn the_formats_are_those_of_the_fixture() {
    let (s, bob) = (ShardId(3), user("bob"));
    let mut log = Remote::new(HERE, 10, None, T0);
    log.append(T0, "bob", 1);
    let dedup_row = DedupRow::from(vec![(7, at(10, 2)), (7, at(20, 5))]);
    let dedup_key = key("bob", "alice", T0, 1);
    let rows: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("shard", super::shard(s), encode(&shard_row())),
        ("user", super::user(s, &bob), encode(&user_row())),
        (
            "log start",
            super::log(s, Origin(10), 1),
            encode_log(log.hash(1), &LogValue::Inline(log.ops[0].clone())),
        ),
        (
            "log message",
            super::log(s, Origin(10), 2),
            encode_log(log.hash(2), &LogValue::Inbox(bob.clone())),
        ),
        (
            "inbox",
            super::inbox(s, &bob, Origin(10), 2),
            encode_inbox(&log.ops[1]),
        ),
        ("dedup", super::dedup(s, &dedup_key), encode(&dedup_row)),
        (
            "dedup in a day's table",
            super::dedup_in_day(s, &dedup_key),
            encode(&dedup_row),
        ),
        (
            "user whom time did something to",
            super::user(s, &user("carol")),
            encode(&timed_row()),
        ),
        (
            "user one of whose devices was to expire",
            super::user(s, &user("dave")),
            encode(&objected_row()),
        ),
        (
            "shard whose holders changed",
            super::shard(ShardId(4)),
            encode(&changed_row()),
        ),
        (
            "log message with its time and length",
            super::log(s, Origin(10), 2),
            encode_log(log.hash(2), &LogValue::Message(head(&log))),
        ),
    ];
    let text: String = rows
        .iter()
        .map(|(name, key, value)| format!("{name}\n  {}\n  {}\n", hex(key), hex(value)))
        .collect();
    let fixture = include_str!("../../../tests/fixtures/store-rows-v1-more.txt");
    assert_eq!(text, fixture, "now:\n{text}");

    // And read back, from the fixtures themselves: the first is of builds whose rows had fewer fields.
    for fixture in [include_str!("../../../tests/fixtures/store-rows-v1.txt"), fixture] {
        reads_back(fixture);
    }
}

fn head(log: &Remote) -> MessageHead {
    log.ops[1].message_head().expect("it is a message")
}

fn reads_back(fixture: &str) {
    let (s, bob) = (ShardId(3), user("bob"));
    let mut log = Remote::new(HERE, 10, None, T0);
    log.append(T0, "bob", 1);
    let dedup_row = DedupRow::from(vec![(7, at(10, 2)), (7, at(20, 5))]);
    let dedup_key = key("bob", "alice", T0, 1);
    let lines = unhex_lines(fixture);
    assert_eq!(decode_row::<ShardRow>(&lines[1]), Ok(shard_row()));
    assert_eq!(decode_row::<UserRow>(&lines[3]), Ok(user_row()));
    let start = (log.hash(1), LogValue::Inline(log.ops[0].clone()));
    assert_eq!(decode_log(&lines[5].clone().into()), Ok(start));
    let message = (log.hash(2), LogValue::Inbox(bob));
    assert_eq!(decode_log(&lines[7].clone().into()), Ok(message));
    assert_eq!(decode_inbox(&lines[9].clone().into()), Ok(log.ops[1].clone()));
    assert_eq!(dedup_of(&lines[10]), Ok((s, dedup_key)));
    assert_eq!(decode_row::<DedupRow>(&lines[11]), Ok(dedup_row));
    if let Some(timed) = lines.get(15) {
        assert_eq!(decode_row::<UserRow>(timed), Ok(timed_row()));
    }
    if let Some(objected) = lines.get(17) {
        assert_eq!(decode_row::<UserRow>(objected), Ok(objected_row()));
    }
    if let Some(changed) = lines.get(19) {
        assert_eq!(decode_row::<ShardRow>(changed), Ok(changed_row()));
    }
    if let Some(message) = lines.get(21) {
        let known = head(&log);
        assert_eq!(
            (known.len as usize, known.hlc),
            (log.ops[1].len(), log.ops[1].hlc())
        );
        assert_eq!(
            decode_log(&message.clone().into()),
            Ok((log.hash(2), LogValue::Message(known)))
        );
        assert!(decode_log(&message[..25].to_vec().into()).is_err());
    }
}

/// Operations of every kind, with every change of a device, and with all that each may hold.
fn ops() -> Vec<(&'static str, Op)> {
    let (bob, phone, cursor) = (user("bob"), device("phone"), vector(&[(10, 9), (20, 4)]));
    let change = |change| Op::Device {
        user: bob.clone(),
        device: phone.clone(),
        change,
    };
    let envelope = Envelope {
        to: bob.clone(),
        from: user("alice"),
        from_device: device("laptop"),
        connect_epoch: 2,
        session: SessionId(300),
        session_seq: 4,
        id: id(T0, 5),
        kind: 6,
        expires_ms: T0 + 7,
        trace: vec![8; 55],
    };
    vec![
        (
            "start",
            Op::Start {
                region: region(HERE),
                previous: None,
            },
        ),
        (
            "start after another origin",
            Op::Start {
                region: region(HERE),
                previous: Some(at(4, 3)),
            },
        ),
        ("append", Op::Append(envelope, Bytes::from_static(b"hello"))),
        (
            "cursor",
            Op::Cursor {
                user: bob.clone(),
                device: phone.clone(),
                cursor: cursor.clone(),
            },
        ),
        (
            "device registered",
            change(DeviceChange::Register {
                epoch: 1,
                cursor: cursor.clone(),
            }),
        ),
        ("device expired", change(DeviceChange::Expire { epoch: 1 })),
        ("device not expired", change(DeviceChange::Veto { epoch: 1 })),
        (
            "confirm",
            Op::Confirm {
                holder: region(HERE),
                applied: cursor.clone(),
                needed: vec![Origin(4), Origin(10)],
                retired: None,
            },
        ),
        (
            "confirm that knows of retired origins",
            Op::Confirm {
                holder: region(HERE),
                applied: cursor,
                needed: vec![Origin(10)],
                retired: Some(vec![at(4, 3)]),
            },
        ),
        (
            "holders",
            Op::Holders(HoldersChange {
                version: 2,
                set: [region(HERE)].into(),
                gone: [region(THERE)].into(),
            }),
        ),
    ]
}

/// Logged operations are stored and shipped as they are here. Never change these bytes; what is new is a new line.
#[test]
fn logged_operations_are_those_of_the_fixture() {
    let hlc = Hlc { ms: T0, logical: 1 };
    let ops = ops();
    let text: String = ops
        .iter()
        .map(|(name, op)| format!("{name}\n  {}\n", hex(LoggedOp::encode(op, hlc).bytes())))
        .collect();
    let fixture = include_str!("../../../tests/fixtures/store-ops-v1.txt");
    assert_eq!(text, fixture, "now:\n{text}");
    let stored = unhex_lines(fixture).into_iter();
    let stored: Vec<LoggedOp> = stored
        .map(|line| LoggedOp::from_bytes(line.into()).unwrap())
        .collect();
    for ((name, op), stored) in ops.iter().zip(&stored) {
        assert_eq!((stored.hlc(), stored.decode().as_ref()), (hlc, Ok(op)), "{name}");
    }

    // Every kind that is read has a line.
    let has_line: BTreeSet<u8> = stored.iter().map(LoggedOp::kind).collect();
    for kind in 0..=u8::MAX {
        let mut bytes = stored[0].bytes().to_vec();
        bytes[1] = kind;
        let read = LoggedOp::from_bytes(bytes.into()).unwrap().decode();
        assert_eq!(
            has_line.contains(&kind),
            read != Err(OpError::UnknownKind(kind)),
            "kind {kind}"
        );
    }
    assert!(has_line.contains(&kind::CONFIRM));
    let changes = ops.iter().filter_map(|(_, op)| match op {
        Op::Device { change, .. } => Some(match change {
            DeviceChange::Register { .. } => "Register",
            DeviceChange::Expire { .. } => "Expire",
            DeviceChange::Veto { .. } => "Veto",
        }),
        Op::Start { .. } | Op::Append(..) | Op::Cursor { .. } | Op::Confirm { .. } | Op::Holders(_) => None,
    });
    assert_eq!(changes.collect::<BTreeSet<_>>(), variants::<DeviceChange>());
}

#[test]
fn another_version_is_named() {
    let mut value = encode(&user_row());
    value[0] = 9;
    let error = decode_row::<UserRow>(&value).unwrap_err();
    assert_eq!(
        error,
        RowError::Version {
            what: "user row",
            found: 9
        }
    );
    assert!(decode_row::<UserRow>(&[]).is_err());
    assert!(dedup_of(b"d").is_err());
}

fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(0u8..3, 1..4)
        .prop_map(|v| v.into_iter().map(|b| char::from(b'a' + b)).collect())
}

proptest! {
    /// The order of keys is that of what they name: numbers numerically, and one user's entries stand together.
    #[test]
    fn the_order_of_keys_is_numeric(
        a in (0u32..3, name(), 0u64..3, any::<u64>()),
        b in (0u32..3, name(), 0u64..3, any::<u64>()),
    ) {
        let log = |x: &(u32, String, u64, u64)| super::log(ShardId(x.0), Origin(x.2), x.3);
        prop_assert_eq!(log(&a).cmp(&log(&b)), (a.0, a.2, a.3).cmp(&(b.0, b.2, b.3)));
        let inbox = |x: &(u32, String, u64, u64)| super::inbox(ShardId(x.0), &user(&x.1), Origin(x.2), x.3);
        let order = |x: &(u32, String, u64, u64)| (x.0, x.1.len(), x.1.clone(), x.2, x.3);
        prop_assert_eq!(inbox(&a).cmp(&inbox(&b)), order(&a).cmp(&order(&b)));
        let at = Coord { origin: Origin(a.2), seq: a.3 };
        prop_assert_eq!(seq_of(&inbox(&a)), Ok(at.seq));
        prop_assert_eq!(origin_of(&inbox(&a)), Ok(at.origin));
        let dedup = |x: &(u32, String, u64, u64)| super::dedup(ShardId(x.0), &key(&x.1, "s", x.3 >> 16, x.2));
        let (from, to) = dedup_day(ShardId(a.0), key(&a.1, "s", a.3 >> 16, a.2).day());
        prop_assert!(from <= dedup(&a) && dedup(&a) < to);
        let same = (a.0, a.3 >> 16) == (b.0, b.3 >> 16);
        prop_assert!(!same || (from <= dedup(&b) && dedup(&b) < to));
        prop_assert_eq!(dedup_of(&dedup(&a)), Ok((ShardId(a.0), key(&a.1, "s", a.3 >> 16, a.2))));
    }

    #[test]
    fn arbitrary_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
        let bytes = Bytes::from(raw);
        let _ = decode_log(&bytes);
        let _ = decode_inbox(&bytes);
        let _ = dedup_of(&bytes);
        let _ = decode_row::<ShardRow>(&bytes);
        let _ = (seq_of(&bytes), origin_of(&bytes), shard_of(&bytes));
    }
}
