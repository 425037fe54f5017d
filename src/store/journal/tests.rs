mod crash;
mod damage;

use super::*;
use crate::store::disk::{CrashMode, RealDisk, SimDisk};
use proptest::prelude::*;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn identity() -> Identity {
    Identity {
        cluster: 7,
        region: "us-east".to_owned(),
        store: 0x5eed,
        shards: 1024,
        seed: 99,
    }
}

/// Segments of 4 KiB with blocks of 512 B: 7 small records each.
fn small() -> Options {
    Options {
        segment_bytes: 4096,
        block_bytes: 512,
        ..Options::default()
    }
}

fn create(disk: &SimDisk) -> Journal<SimDisk> {
    Journal::create(disk.clone(), identity(), small(), 1).unwrap()
}

type Replayed = Vec<(u64, u8, Vec<u8>)>;

fn open_from<D: Disk>(
    disk: D,
    options: Options,
    from: u64,
) -> Result<(Journal<D>, Report, Replayed), JournalError> {
    let mut replayed = Vec::new();
    let (journal, report) = Journal::open(disk, identity(), options, from, |record| {
        replayed.push((record.commit, record.tag, record.payload.to_vec()));
        Ok(())
    })?;
    Ok((journal, report, replayed))
}

fn reopen(disk: &SimDisk) -> Result<(Journal<SimDisk>, Report, Replayed), JournalError> {
    open_from(disk.clone(), small(), 1)
}

fn payload(commit: u64, length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (commit as usize * 31 + i * 7 + 1) as u8)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_appended_is_read_and_replayed_over_rolls_and_reopenings(
        sizes in prop::collection::vec(0usize..6000, 1..40),
        reopen_every in 1usize..20,
        prepare in 0u64..3000,
        from in 1u64..40,
    ) {
        let disk = SimDisk::new(1);
        let mut journal = create(&disk);
        let mut appended = Vec::new();
        for (i, size) in sizes.iter().enumerate() {
            let commit = i as u64 + 1;
            let bytes = payload(commit, *size);
            let (front, back) = bytes.split_at(size / 3);
            let done = journal.append(i as u8, &[front, back]).unwrap();
            prop_assert_eq!(done.commit, commit);
            appended.push(done.position);
            journal.prepare_next(prepare).unwrap();
            if i % reopen_every == 0 {
                drop(journal);
                journal = reopen(&disk).unwrap().0;
            }
        }
        for (i, position) in appended.iter().enumerate() {
            let expected = payload(i as u64 + 1, sizes[i]);
            prop_assert_eq!(&journal.read(*position).unwrap(), &expected);
            let mut part = vec![0; sizes[i] / 2];
            journal.read_part(*position, (sizes[i] / 4) as u32, &mut part).unwrap();
            prop_assert_eq!(&part, &expected[sizes[i] / 4..][..sizes[i] / 2]);
        }
        let from = from.min(sizes.len() as u64 + 1);
        let (_, report, replayed) = open_from(disk.clone(), small(), from).unwrap();
        let expected: Replayed = (from..=sizes.len() as u64)
            .map(|c| (c, (c - 1) as u8, payload(c, sizes[c as usize - 1])))
            .collect();
        prop_assert_eq!(replayed, expected);
        prop_assert_eq!(report.records, sizes.len() as u64);
        prop_assert!(report.tail.is_none() && report.cut.is_none());
    }
}

#[test]
fn one_append_is_one_sync_and_positions_are_those_of_replay() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    let before = disk.syncs();
    let done = journal.append(3, &[b"abc", b"", b"def"]).unwrap();
    assert_eq!(disk.syncs(), before + 1);
    let mut positions = Vec::new();
    Journal::open(disk, identity(), small(), 1, |record| {
        assert_eq!((record.tag, record.payload), (3, &b"abcdef"[..]));
        positions.push(record.position);
        Ok(())
    })
    .unwrap();
    assert_eq!(positions, [done.position]);
}

#[test]
fn a_prepared_segment_makes_the_roll_quick() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    for _ in 0..7 {
        journal.append(0, &[b"x"]).unwrap();
    }
    assert!(!journal.prepare_next(1000).unwrap());
    assert!(!journal.is_next_prepared());
    while !journal.prepare_next(1000).unwrap() {}
    assert!(journal.is_next_prepared());
    let changes = disk.changes();
    journal.append(0, &[b"x"]).unwrap();
    assert_eq!(
        disk.changes() - changes,
        2 + 2 + 2,
        "header, sync, rename, sync of the folder; write, sync"
    );
    assert_eq!((journal.stats().rolls, journal.stats().stalled_rolls), (2, 0));
    for _ in 0..7 {
        journal.append(0, &[b"x"]).unwrap();
    }
    assert_eq!((journal.stats().rolls, journal.stats().stalled_rolls), (3, 1));
    assert_eq!(
        journal.segments().map(|s| (s.first, s.last)).collect::<Vec<_>>(),
        [(1, Some(7)), (8, Some(14)), (15, Some(15))]
    );
}

#[test]
fn a_record_longer_than_a_segment_gets_one_of_its_own() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    let long = payload(1, 20_000);
    let first = journal.append(0, &[&long]).unwrap();
    journal.append(0, &[b"short"]).unwrap();
    journal.prepare_next(u64::MAX).unwrap();
    let third = journal.append(0, &[&long]).unwrap();
    let (journal, _, replayed) = reopen(&disk).unwrap();
    assert_eq!(replayed.len(), 3);
    assert_eq!(journal.read(first.position).unwrap(), long);
    assert_eq!(journal.read(third.position).unwrap(), long);
    assert_eq!(journal.segments().map(|s| s.first).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn the_limit_of_a_record_is_just_inside_and_just_beyond() {
    let mut journal = Journal::create(SimDisk::new(1), identity(), small(), 1).unwrap();
    let most = vec![1; MAX_RECORD];
    let error = journal.append(0, &[&most, b"x"]).unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { length } if length == MAX_RECORD + 1));
    assert_eq!(journal.append(0, &[&most]).unwrap().commit, 1);
    assert_eq!(journal.append(0, &[b"x"]).unwrap().commit, 2);
}

#[test]
fn covered_segments_are_deleted_and_the_rest_stays_readable() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    let positions: Vec<Position> = (1..=30u64)
        .map(|c| journal.append(0, &[&payload(c, 10)]).unwrap().position)
        .collect();
    assert_eq!(journal.delete_before(1).unwrap(), 0);
    assert_eq!(
        journal.delete_before(7).unwrap(),
        0,
        "commit 7 is in the first segment"
    );
    assert_eq!(journal.delete_before(8).unwrap(), 1);
    assert_eq!(journal.delete_before(1000).unwrap(), 3, "never the active one");
    assert_eq!(journal.first_commit(), 29);
    assert_eq!(journal.bytes_on_disk(), 4096);
    assert!(matches!(
        journal.read(positions[0]),
        Err(JournalError::Deleted { .. })
    ));
    assert_eq!(journal.read(positions[29]).unwrap(), payload(30, 10));
    disk.crash(CrashMode::LoseAll);
    let (journal, _, replayed) = open_from(disk, small(), 30).unwrap();
    assert_eq!(replayed.iter().map(|r| r.0).collect::<Vec<_>>(), [30]);
    assert_eq!(journal.next_commit(), 31);
}

#[test]
fn an_older_index_and_a_newer_index_are_refused_by_name() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    for _ in 0..20 {
        journal.append(0, &[b"x"]).unwrap();
    }
    journal.delete_before(8).unwrap();
    let gap = open_from(disk.clone(), small(), 7).unwrap_err();
    assert!(matches!(gap, JournalError::Gap { have: 8, need: 7 }), "{gap}");
    assert!(gap.to_string().contains("index is older"), "{gap}");
    let behind = open_from(disk.clone(), small(), 22).unwrap_err();
    assert!(
        matches!(
            behind,
            JournalError::Behind {
                last: 20,
                need: 22,
                damage: None
            }
        ),
        "{behind}"
    );
    assert!(open_from(disk.clone(), small(), 8).is_ok());
    assert_eq!(open_from(disk, small(), 21).unwrap().2, []);
}

#[test]
fn another_stores_journal_is_refused_with_the_field_that_differs() {
    let disk = SimDisk::new(1);
    create(&disk);
    let me = identity();
    let others = [
        (
            "cluster id",
            Identity {
                cluster: 8,
                ..me.clone()
            },
        ),
        (
            "region",
            Identity {
                region: "eu-west".to_owned(),
                ..me.clone()
            },
        ),
        (
            "store id",
            Identity {
                store: 1,
                ..me.clone()
            },
        ),
        (
            "shard count",
            Identity {
                shards: 512,
                ..me.clone()
            },
        ),
        (
            "hash seed",
            Identity {
                seed: 1,
                ..me.clone()
            },
        ),
    ];
    for (named, other) in others {
        let error = Journal::open(disk.clone(), other, small(), 1, |_| Ok(())).unwrap_err();
        assert!(
            matches!(&error, JournalError::Identity { field, .. } if *field == named),
            "{error}"
        );
    }
    let error = Journal::open(disk.clone(), identity(), small(), 1, |_| Ok(())).map(|_| ());
    assert!(error.is_ok());
    let region = "r".repeat(33);
    let error = Journal::create(SimDisk::new(1), Identity { region, ..me }, small(), 1).unwrap_err();
    assert!(
        matches!(error, JournalError::Setting { field: "region", .. }),
        "{error}"
    );
}

#[test]
fn an_unknown_format_version_is_refused() {
    let disk = SimDisk::new(1);
    create(&disk);
    disk.flip(&segment_name(1), 11, 1 ^ 2).unwrap();
    let error = reopen(&disk).unwrap_err();
    assert!(matches!(error, JournalError::Version { found: 2, .. }), "{error}");
}

#[test]
fn a_journal_is_created_once_and_opened_only_where_there_is_one() {
    let disk = SimDisk::new(1);
    assert!(!Journal::exists(&disk).unwrap());
    assert!(matches!(reopen(&disk).unwrap_err(), JournalError::Missing { .. }));
    let journal = Journal::create(disk.clone(), identity(), small(), 42).unwrap();
    assert_eq!((journal.next_commit(), journal.last_commit()), (42, None));
    assert!(Journal::exists(&disk).unwrap());
    let error = Journal::create(disk.clone(), identity(), small(), 1).unwrap_err();
    assert!(matches!(error, JournalError::Exists { .. }));
    disk.create("12.seg").unwrap();
    let error = open_from(disk, small(), 42).unwrap_err();
    assert!(
        matches!(&error, JournalError::Name { file } if file == "12.seg"),
        "{error}"
    );
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |segment_bytes, block_bytes| {
        let options = Options {
            segment_bytes,
            block_bytes,
            ..Options::default()
        };
        matches!(
            Journal::create(SimDisk::new(1), identity(), options, 1),
            Err(JournalError::Setting { .. })
        )
    };
    assert!(!refused(1024, 512));
    assert!(refused(512, 512));
    assert!(refused(4096 + 512, 4096));
    assert!(refused(4096, 4096));
    assert!(refused(8192, 256));
    assert!(refused(8192, 1000));
    assert!(refused(2 * 1024 * 1024 * 1024, 512));
}

#[test]
fn a_visitor_that_refuses_stops_the_opening() {
    let disk = SimDisk::new(1);
    create(&disk).append(0, &[b"x"]).unwrap();
    let error = Journal::open(
        disk,
        identity(),
        small(),
        1,
        |_| Err("unknown operation 9".into()),
    )
    .unwrap_err();
    assert!(
        matches!(
            &error,
            JournalError::Replay {
                commit: 1,
                offset: 512,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("unknown operation 9"), "{error}");
}

#[test]
fn real_files_survive_a_writer_that_is_gone_and_refuse_a_second_one() {
    let temp = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 64 * 1024,
        ..Options::default()
    };
    let disk = RealDisk::create(temp.path().join("journal")).unwrap();
    let mut journal = Journal::create(disk, identity(), options.clone(), 1).unwrap();
    for commit in 1..=60u64 {
        journal.append(1, &[&payload(commit, 3000)]).unwrap();
        journal.prepare_next(16 * 1024).unwrap();
    }
    assert!(
        RealDisk::open(temp.path().join("journal"))
            .unwrap_err()
            .to_string()
            .contains("in use")
    );
    drop(journal);
    let disk = RealDisk::open(temp.path().join("journal")).unwrap();
    let (journal, report, replayed) = open_from(disk, options, 1).unwrap();
    assert_eq!(replayed.len(), 60);
    assert!(
        replayed
            .iter()
            .all(|(commit, tag, bytes)| *tag == 1 && *bytes == payload(*commit, 3000))
    );
    assert_eq!((report.segments, report.tail), (4, None));
    assert_eq!(
        journal.bytes_on_disk(),
        4 * 64 * 1024,
        "what was being prepared is removed"
    );
}

/// Names the folder to the process that [`a_killed_process_leaves_all_that_it_acknowledged`] starts.
const CHILD_FOLDER: &str = "IRIS_TEST_JOURNAL_FOLDER";

#[test]
fn a_killed_process_leaves_all_that_it_acknowledged() {
    let temp = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 64 * 1024,
        ..Options::default()
    };
    let mut acknowledged = 0u64;
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::journal::tests::append_until_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD_FOLDER, temp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let commits = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("commit ")?.parse().ok());
        acknowledged = commits.take(7 * round).last().unwrap();
        assert!(
            RealDisk::open(temp.path())
                .unwrap_err()
                .to_string()
                .contains(&child.id().to_string())
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let (journal, _, replayed) =
            open_from(RealDisk::open(temp.path()).unwrap(), options.clone(), 1).unwrap();
        assert!(journal.next_commit() > acknowledged);
        assert!(
            replayed
                .iter()
                .all(|(commit, _, bytes)| *bytes == payload(*commit, 3000))
        );
    }
    assert!(acknowledged >= 7 * 15);
}

/// Goes on with the journal in the folder that the environment names, and prints what is durable.
#[test]
#[ignore = "the part of another test that runs in a process of its own"]
fn append_until_killed() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else {
        return;
    };
    let options = Options {
        segment_bytes: 64 * 1024,
        ..Options::default()
    };
    let disk = RealDisk::open(folder).unwrap();
    let mut journal = if Journal::exists(&disk).unwrap() {
        open_from(disk, options, 1).unwrap().0
    } else {
        Journal::create(disk, identity(), options, 1).unwrap()
    };
    // Bounded, so that it ends where nobody kills it.
    for _ in 0..100_000 {
        let bytes = payload(journal.next_commit(), 3000);
        println!("commit {}", journal.append(0, &[&bytes]).unwrap().commit);
        journal.prepare_next(16 * 1024).unwrap();
    }
}
