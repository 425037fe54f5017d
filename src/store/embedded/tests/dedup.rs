//! Dedup records in the tables: in blocks, and as earlier builds wrote them, in blocks of another order and by themselves.

use super::*;
use crate::core::commit::Outcome;
use crate::core::ids::{Coord, ShardId};
use crate::core::snapshot::SnapshotAt;
use crate::core::state::{DedupKey, DedupRow};
use crate::store::conformance::kit::{HERE, S, Store, T0, at, hex, id, identity, unhex_lines, user};
use crate::store::embedded::record::{DedupBlock, StoredDedup};
use crate::store::embedded::tables::{Change, Table, Tables};
use crate::store::engine::{Read, ReadReply};
use crate::store::keys;

type Sim = EmbeddedEngine<SimDisk, MemTables>;

/// The keys and blocks in the tables, of either order.
pub(super) fn blocks(tables: &MemTables) -> Vec<(Table, Vec<u8>, DedupBlock)> {
    let mut blocks = Vec::new();
    for day in tables.dedup_days() {
        let table = Table::Dedup(day);
        let (from, to) = keys::dedup_blocks_by_shard(S, 0, u64::MAX);
        for (from, to) in [(from, to), (vec![b't'], keys::dedup_blocks_end())] {
            let note = &mut |key: &[u8], value: bytes::Bytes| {
                if keys::dedup_block_place(key).is_none_or(|(_, shard)| shard == S) {
                    blocks.push((table, key.to_vec(), keys::decode("dedup block", &value).unwrap()));
                }
                Ok(true)
            };
            tables.range(table, &from, &to, note).unwrap();
        }
    }
    blocks
}

/// The records that a snapshot has, by pages of so many items.
fn shown(store: &mut Store, max_items: usize) -> Vec<(DedupKey, Vec<Coord>)> {
    let (mut cut, mut after, mut shown) = (None, SnapshotAt::Start, Vec::new());
    loop {
        let read = Read::Snapshot {
            shard: S,
            cut,
            after,
            max_items,
            max_bytes: usize::MAX,
        };
        let ReadReply::Snapshot(known, page) = store.engine.read(&read).unwrap() else {
            panic!("a page was asked for");
        };
        assert!(page.dedup.len() <= max_items);
        let coords = |bodies: Vec<(u128, Coord)>| bodies.into_iter().map(|(_, at)| at).collect();
        shown.extend(page.dedup.into_iter().map(|(key, bodies)| (key, coords(bodies))));
        match page.next {
            Some(next @ (SnapshotAt::Start | SnapshotAt::Dedup(_))) => (cut, after) = (Some(known), next),
            _ => return shown,
        }
    }
}

/// How a block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    /// As now.
    Block,
    /// With the shard first.
    ByShard,
    /// Record by record.
    Records,
}

/// Stores blocks as earlier builds would have.
fn store_as(tables: &MemTables, form: impl Fn(usize) -> As) {
    for (i, (table, key, block)) in blocks(tables).into_iter().enumerate() {
        let form = form(i);
        let mut batch = vec![Change {
            table,
            key: key.clone(),
            value: None,
        }];
        match form {
            As::Block => continue,
            As::ByShard => {
                let (first, last) = keys::dedup_block_ids(&key).unwrap();
                let covered = u64::from_be_bytes(key[13..21].try_into().unwrap());
                let number = u32::from_be_bytes(key[21..25].try_into().unwrap());
                batch.push(Change {
                    table,
                    key: keys::dedup_block_by_shard(S, covered, number, first, last),
                    value: Some(keys::encode(&block)),
                });
            }
            As::Records => batch.extend(block.rows.into_iter().map(|(key, row)| Change {
                table,
                key: keys::dedup_in_day(S, &key),
                value: Some(keys::encode(&StoredDedup {
                    as_of: block.as_of,
                    row,
                })),
            })),
        }
        tables.clone().write(&mut batch).unwrap();
    }
}

const MESSAGES: u64 = 600;

/// Message `n`, and who gets it: ids of three times four seconds, of two days.
fn message(store: &Store, n: u64) -> StoreOp {
    let to = ["bob", "carol", "d"][n as usize % 3];
    let midnight = T0 - T0 % 86_400_000;
    store.append_op(to, id(midnight - 3_000 + n * 13, n / 2), &format!("message {n}"))
}

fn open(disk: &SimDisk, tables: &MemTables, origin: u64, options: &Options) -> Store {
    let opened = Sim::open(
        disk.clone(),
        tables.clone(),
        identity(origin, &[HERE]),
        options.clone(),
    );
    Store::own(Box::new(opened.unwrap().0))
}

#[test]
fn records_are_found_in_blocks_and_by_themselves() {
    for (slice_bytes, per_checkpoint) in [(700, 5), (64 * 1024, 100), (64 * 1024, MESSAGES)] {
        let options = Options {
            segment_bytes: 256 * 1024,
            checkpoint_bytes: 1,
            memory_bytes: 2 * 1024,
            slice_bytes,
            ..Options::default()
        };
        let (disk, tables) = (SimDisk::new(3), MemTables::new());
        let engine = Sim::create(
            disk.clone(),
            tables.clone(),
            identity(100, &[HERE]),
            options.clone(),
        );
        let mut store = Store::own(Box::new(engine.unwrap()));
        let mut accepted = vec![at(0, 0); MESSAGES as usize];
        for turn in 0..MESSAGES / per_checkpoint {
            let some = turn * per_checkpoint..(turn + 1) * per_checkpoint;
            // Not in the order of their ids.
            let numbers: Vec<u64> = some.map(|n| n * 77 % MESSAGES).collect();
            let ops = numbers.iter().map(|n| message(&store, *n)).collect();
            for (n, outcome) in numbers.iter().zip(store.commit(ops).outcomes) {
                match outcome {
                    Outcome::Appended(at) => accepted[*n as usize] = at,
                    other => panic!("{other:?}"),
                }
            }
            store.engine.idle().unwrap();
        }
        // A snapshot tells of what its provider trimmed.
        store.confirm();
        while store.trim() == (Outcome::Done { more: true }) {}
        store.engine.close().unwrap();
        let written = blocks(&tables);
        let records = written
            .iter()
            .map(|(_, _, block)| block.rows.len())
            .sum::<usize>();
        assert!(records >= MESSAGES as usize - 100, "{records} in the tables");
        if per_checkpoint > 5 {
            assert!(written.len() * 8 < records, "{records} in {}", written.len());
        }
        for origin in 101.. {
            let mut store = open(&disk, &tables, origin, &options);
            for max_items in [3, 64, 10_000] {
                let mut expected: Vec<_> = (0..MESSAGES)
                    .map(|n| match message(&store, n) {
                        StoreOp::Append { envelope, .. } => {
                            (DedupKey::of(&envelope), vec![accepted[n as usize]])
                        }
                        _ => unreachable!(),
                    })
                    .collect();
                let mut shown = shown(&mut store, max_items);
                assert!(shown.is_sorted_by_key(|(key, _)| key.id));
                expected.sort_by(|(a, _), (b, _)| a.cmp(b));
                shown.sort_by(|(a, _), (b, _)| a.cmp(b));
                assert_eq!(shown, expected, "pages of {max_items}");
            }
            for n in 0..MESSAGES {
                let again = store.one(message(&store, n));
                assert_eq!(again, Outcome::Duplicate(vec![accepted[n as usize]]), "{n}");
            }
            store.engine.close().unwrap();
            match origin {
                // All three together, then what the last two builds left, then what the first did.
                101 => store_as(&tables, |i| [As::Block, As::ByShard, As::Records][i % 3]),
                102 => store_as(&tables, |_| As::ByShard),
                103 => store_as(&tables, |_| As::Records),
                _ => {
                    assert!(blocks(&tables).is_empty());
                    break;
                }
            }
        }
    }
}

#[test]
fn a_snapshot_finds_its_shard_among_the_blocks_of_others() {
    let options = Options {
        segment_bytes: 256 * 1024,
        checkpoint_bytes: 1,
        memory_bytes: 2 * 1024,
        ..Options::default()
    };
    let (disk, tables) = (SimDisk::new(3), MemTables::new());
    let engine = Sim::create(
        disk.clone(),
        tables.clone(),
        identity(100, &[HERE]),
        options.clone(),
    );
    let mut store = Store::own(Box::new(engine.unwrap()));
    // Every fortieth unit of time, of two days, has some of the shard's.
    let midnight = T0 - T0 % 86_400_000;
    let of_unit = |unit: u64| midnight + unit * keys::DEDUP_BLOCK_MS - 300 * keys::DEDUP_BLOCK_MS;
    let mut expected = Vec::new();
    for unit in (0..600).step_by(40) {
        for n in 0..5 {
            let op = store.append_op("bob", id(of_unit(unit) + n * 700, n), "text");
            let StoreOp::Append { envelope, .. } = &op else {
                unreachable!()
            };
            let key = DedupKey::of(envelope);
            match store.one(op) {
                Outcome::Appended(at) => expected.push((key, vec![at])),
                other => panic!("{other:?}"),
            }
        }
        store.engine.idle().unwrap();
    }
    store.confirm();
    while store.trim() == (Outcome::Done { more: true }) {}
    store.engine.close().unwrap();
    // Others have some in nearly every unit; a look into them would fail.
    let mut others = Vec::new();
    for unit in (0..600).filter(|unit| unit % 7 != 0) {
        for shard in [ShardId(0), ShardId(S.0 + 1), ShardId(u32::MAX)] {
            let (first, last) = (id(of_unit(unit), 0), id(of_unit(unit) + 3_999, 9));
            let day = first.unix_ms().unwrap() / 86_400_000;
            let table = Table::Dedup(day as u32);
            for key in [
                keys::dedup_block(shard, 1, 0, first, last),
                keys::dedup_block_by_shard(shard, 1, 0, first, last),
            ] {
                others.push(Change {
                    table,
                    key,
                    value: Some(b"nothing".to_vec()),
                });
            }
        }
    }
    tables.clone().write(&mut others).unwrap();
    for (origin, every) in [(101, 0), (102, 2), (103, 1)] {
        let earlier = |i: usize| every > 0 && i.is_multiple_of(every);
        store_as(&tables, |i| if earlier(i) { As::ByShard } else { As::Block });
        let mut store = open(&disk, &tables, origin, &options);
        for max_items in [3, 64, 10_000] {
            let shown = shown(&mut store, max_items);
            assert_eq!(shown, expected, "pages of {max_items}, origin {origin}");
        }
        store.engine.close().unwrap();
    }
}

#[test]
fn the_format_of_a_block_is_that_of_the_fixture() {
    let key = |to: &str, number| DedupKey {
        id: id(T0, number),
        recipient: user(to),
        sender: user("alice"),
    };
    let (first, last) = (key("bob", 1), key("carol", 2));
    let block = DedupBlock {
        as_of: 80,
        rows: vec![
            (first.clone(), DedupRow::from(vec![(7, at(10, 2))])),
            (
                last.clone(),
                DedupRow::from(vec![(7, at(10, 3)), (u128::MAX, at(20, 5))]),
            ),
        ],
    };
    for (key, place, fixture) in [
        (
            keys::dedup_block_by_shard(S, 77, 5, first.id, last.id),
            None,
            include_str!("../../../../tests/fixtures/store-dedup-v1.txt"),
        ),
        (
            keys::dedup_block(S, 77, 5, first.id, last.id),
            Some((T0 / keys::DEDUP_BLOCK_MS, S)),
            include_str!("../../../../tests/fixtures/store-dedup-v2.txt"),
        ),
    ] {
        let value = hex(&keys::encode(&block));
        let text = format!("key\n  {}\nvalue\n  {value}\n", hex(&key));
        assert_eq!(text, fixture, "now:\n{text}");
        let stored = unhex_lines(fixture);
        assert_eq!(keys::dedup_block_place(&stored[0]), place);
        assert_eq!(keys::dedup_block_ids(&stored[0]), Ok((first.id, last.id)));
        assert_eq!(keys::decode("dedup block", &stored[1]).as_ref(), Ok(&block));
        for bad in [&stored[0][..56], &[&stored[0][..], b"x"].concat()] {
            assert_eq!(
                keys::dedup_block_ids(bad),
                Err(keys::RowError::Key("dedup block"))
            );
        }
    }
}
