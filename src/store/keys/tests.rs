use super::*;
use crate::core::ids::{Coord, Epoch};
use crate::core::state::{ConfirmRow, DeviceRow, LogRow, Recovery};
use crate::core::time::Hlc;
use crate::store::conformance::kit::{HERE, Remote, T0, at, device, id, region, user, vector};
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

/// Every key and value of format version 1. What is stored must stay readable: never change these bytes.
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
    ];
    let text: String = rows
        .iter()
        .map(|(name, key, value)| format!("{name}\n  {}\n  {}\n", hex(key), hex(value)))
        .collect();
    let fixture = include_str!("../../../tests/fixtures/store-rows-v1.txt");
    assert_eq!(text, fixture, "now:\n{text}");

    // And read back, from the fixture itself.
    let lines: Vec<Vec<u8>> = fixture
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(unhex)
        .collect();
    assert_eq!(decode_row::<ShardRow>(&lines[1]), Ok(shard_row()));
    assert_eq!(decode_row::<UserRow>(&lines[3]), Ok(user_row()));
    let start = (log.hash(1), LogValue::Inline(log.ops[0].clone()));
    assert_eq!(decode_log(&lines[5].clone().into()), Ok(start));
    let message = (log.hash(2), LogValue::Inbox(bob));
    assert_eq!(decode_log(&lines[7].clone().into()), Ok(message));
    assert_eq!(decode_inbox(&lines[9].clone().into()), Ok(log.ops[1].clone()));
    assert_eq!(dedup_of(&lines[10]), Ok((s, dedup_key)));
    assert_eq!(decode_row::<DedupRow>(&lines[11]), Ok(dedup_row));
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
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
