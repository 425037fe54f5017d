//! Rot, cuts and missing files: what is recovered, what is refused.

use super::*;

/// Length of a segment in [`five`].
const LENGTH: u64 = 2560;

/// Where the last record begins in the second segment of [`five`].
const LAST: u64 = 1536;

/// Five records over two segments, some of more than a block.
fn five() -> (SimDisk, Vec<Vec<u8>>) {
    let disk = SimDisk::new(1);
    let options = Options {
        segment_bytes: LENGTH,
        ..small()
    };
    let mut journal = Journal::create(disk.clone(), identity(), options, 1).unwrap();
    let payloads: Vec<Vec<u8>> = [600, 0, 40, 500, 13]
        .iter()
        .zip(1..)
        .map(|(n, c)| payload(c, *n))
        .collect();
    let places: Vec<Position> = payloads
        .iter()
        .map(|p| journal.append(0, &[p]).unwrap().position)
        .collect();
    assert_eq!(
        places.iter().map(|p| p.segment).collect::<Vec<_>>(),
        [1, 1, 1, 4, 4]
    );
    assert_eq!(u64::from(places[4].offset), LAST);
    drop(journal);
    (disk, payloads)
}

/// Opens a damaged copy of [`five`]. It must have all records, or all but the last and say so, or be refused by name.
/// Returns how many it has.
fn check(disk: &SimDisk, payloads: &[Vec<u8>], damaged: &str) -> Option<usize> {
    match reopen(disk) {
        Ok((mut journal, report, replayed)) => {
            let found: Vec<&Vec<u8>> = replayed.iter().map(|r| &r.2).collect();
            let count = found.len();
            assert!(count + 1 >= payloads.len(), "{count} records only: {report:?}");
            assert_eq!(found, payloads[..count].iter().collect::<Vec<_>>());
            if count < payloads.len() {
                let tail = report.tail.expect("a lost record is reported");
                assert_eq!((tail.file.as_str(), tail.commit), (damaged, count as u64 + 1));
            }
            // What follows is safe again: nothing of the damage comes back.
            journal.append(0, &[b"after"]).unwrap();
            let (_, again, replayed) = reopen(disk).unwrap();
            assert_eq!((replayed.len(), again.tail), (count + 1, None));
            Some(count)
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(damaged), "{text}");
            None
        }
    }
}

#[test]
fn every_flipped_byte_loses_no_earlier_record() {
    let (disk, payloads) = five();
    for first in [1, 4] {
        let name = segment_name(first);
        let (mut refused, mut recovered, mut whole) = (0, 0, 0);
        for offset in 0..LENGTH {
            for mask in [0x01, 0x80, 0xff] {
                let copy = disk.fork();
                copy.flip(&name, offset, mask).unwrap();
                match check(&copy, &payloads, &name) {
                    None => refused += 1,
                    Some(4) => recovered += 1,
                    Some(_) => whole += 1,
                }
            }
        }
        // Headers of 512 bytes, records of 32 and their payloads; only padding and free space may change unnoticed.
        let (record_bytes, last) = if first == 1 {
            (3 * 32 + 600 + 40, 0)
        } else {
            (32 + 500, 32 + 13)
        };
        assert_eq!((refused, recovered), (3 * (512 + record_bytes), 3 * last));
        assert_eq!(whole, 3 * LENGTH - refused - recovered);
    }
}

#[test]
fn every_truncation_is_refused() {
    let (disk, payloads) = five();
    for first in [1, 4] {
        let name = segment_name(first);
        for length in 0..LENGTH {
            let copy = disk.fork();
            copy.open(&name).unwrap().truncate(length).unwrap();
            assert_eq!(check(&copy, &payloads, &name), None, "cut to {length}");
        }
    }
}

#[test]
fn every_tail_of_zeros_ends_in_the_last_record_or_is_refused() {
    // A file that kept its length and lost its end.
    let (disk, payloads) = five();
    let zeroed = |first, from: u64| {
        let copy = disk.fork();
        let zeros = vec![0; (LENGTH - from) as usize];
        copy.open(&segment_name(first))
            .unwrap()
            .write_at(&zeros, from)
            .unwrap();
        copy
    };
    for from in 0..LENGTH {
        check(&zeroed(1, from), &payloads, &segment_name(1));
    }
    // Zeros from the start of a record in the last segment on leave nothing that could be noticed.
    for from in (0..135).chain(LAST + 1..LENGTH) {
        check(&zeroed(4, from), &payloads, &segment_name(4));
    }
}

#[test]
fn damage_before_a_good_record_names_the_place() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    for commit in 1..=3 {
        journal.append(0, &[&payload(commit, 100)]).unwrap();
    }
    disk.flip(&segment_name(1), 1024 + 50, 1).unwrap();
    let error = reopen(&disk).unwrap_err();
    let JournalError::Corrupt {
        file,
        offset,
        commit,
        what,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (file.as_str(), *offset, *commit),
        ("00000000000000000001.seg", 1024, 2)
    );
    assert!(
        what.contains("good record of commit 3 follows at offset 1536"),
        "{what}"
    );
    assert!(error.to_string().contains("--cut-journal-at-damage"), "{error}");
    reopen(&disk).expect_err("refusing changes nothing");
}

#[test]
fn a_last_record_is_not_dropped_where_the_next_segment_proves_it() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    for commit in 1..=8 {
        journal.append(0, &[&payload(commit, 100)]).unwrap();
    }
    drop(journal);
    // The second segment as a crash right after the roll leaves it: a header, no record.
    disk.open(&segment_name(8))
        .unwrap()
        .write_at(&[0; 512], 512)
        .unwrap();
    assert_eq!(reopen(&disk.fork()).unwrap().2.len(), 7);
    disk.flip(&segment_name(1), 7 * 512, 1).unwrap();
    let error = reopen(&disk).unwrap_err();
    assert!(
        matches!(
            &error,
            JournalError::Corrupt {
                commit: 7,
                offset: 3584,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_missing_or_exchanged_segment_is_refused() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    for commit in 1..=21 {
        journal.append(0, &[&payload(commit, 100)]).unwrap();
    }
    let copy = disk.fork();
    copy.remove(&segment_name(8)).unwrap();
    let error = reopen(&copy).unwrap_err();
    assert!(
        matches!(&error, JournalError::Corrupt { commit: 8, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("goes on with commit 15"), "{error}");

    let copy = disk.fork();
    copy.remove(&segment_name(1)).unwrap();
    assert!(matches!(
        reopen(&copy).unwrap_err(),
        JournalError::Gap { have: 8, need: 1 }
    ));

    let copy = disk.fork();
    copy.rename(&segment_name(8), &segment_name(9)).unwrap();
    assert!(matches!(reopen(&copy).unwrap_err(), JournalError::Header { .. }));

    // The same commits of a store whose history differs: only the chain tells.
    let other = SimDisk::new(2);
    let mut journal = create(&other);
    for commit in 1..=21 {
        journal.append(0, &[&payload(commit + 1, 100)]).unwrap();
    }
    let (from, to) = (
        other.open(&segment_name(8)).unwrap(),
        disk.open(&segment_name(8)).unwrap(),
    );
    let mut bytes = vec![0; 4096];
    from.read_at(&mut bytes, 0).unwrap();
    to.write_at(&bytes, 0).unwrap();
    let error = reopen(&disk).unwrap_err();
    assert!(
        matches!(&error, JournalError::Corrupt { commit: 8, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("hash"), "{error}");
}

#[test]
fn an_exchanged_record_breaks_the_chain() {
    let (disk, other) = (SimDisk::new(1), SimDisk::new(2));
    let (mut journal, mut others) = (create(&disk), create(&other));
    for commit in 1..=2 {
        journal.append(0, &[&payload(commit, 100)]).unwrap();
        others.append(0, &[&payload(commit + 1, 100)]).unwrap();
    }
    let mut record = [0; 512];
    other
        .open(&segment_name(1))
        .unwrap()
        .read_at(&mut record, 1024)
        .unwrap();
    disk.open(&segment_name(1))
        .unwrap()
        .write_at(&record, 1024)
        .unwrap();
    let error = reopen(&disk).unwrap_err();
    assert!(
        matches!(
            &error,
            JournalError::Corrupt {
                commit: 2,
                offset: 1024,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("does not continue the chain"),
        "{error}"
    );
}

#[test]
fn a_record_within_a_payload_is_not_taken_for_one() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    let mut forged = vec![0; RECORD_HEADER + 10];
    let other_key = record_key(
        &Identity {
            store: 1,
            ..identity()
        },
        1,
    );
    format::seal(&mut forged, other_key, 0, 2, 0);
    let mut bytes = vec![1; 512 - RECORD_HEADER];
    bytes.extend_from_slice(&forged);
    journal.append(0, &[&bytes]).unwrap();
    disk.flip(&segment_name(1), 600, 1).unwrap();
    let (_, report, replayed) = reopen(&disk).unwrap();
    assert!(replayed.is_empty());
    assert_eq!(report.tail.map(|t| (t.offset, t.commit)), Some((512, 1)));
}

#[test]
fn cutting_at_the_damage_keeps_what_is_before_and_sets_the_rest_aside() {
    let cutting = || Options {
        cut_at_damage: true,
        ..small()
    };
    let whole = SimDisk::new(1);
    let mut journal = create(&whole);
    for commit in 1..=21 {
        journal.append(0, &[&payload(commit, 100)]).unwrap();
    }
    drop(journal);
    type Damage<'a> = (&'a str, u64, &'a dyn Fn(&SimDisk));
    let damages: [Damage; 4] = [
        ("a record", 10, &|disk| {
            disk.flip(&segment_name(8), 3 * 512 + 40, 1).unwrap()
        }),
        ("a header", 8, &|disk| disk.flip(&segment_name(8), 30, 1).unwrap()),
        ("a cut", 11, &|disk| {
            disk.open(&segment_name(8))
                .unwrap()
                .truncate(512 * 4 + 10)
                .unwrap()
        }),
        ("a missing file", 8, &|disk| {
            disk.remove(&segment_name(8)).unwrap()
        }),
    ];
    for (name, lost, damage) in damages {
        let disk = whole.fork();
        damage(&disk);
        disk.sync_folder().unwrap();
        reopen(&disk).expect_err(name);
        let behind = open_from(disk.clone(), cutting(), 15).unwrap_err();
        assert!(matches!(behind, JournalError::Behind { .. }), "{name}: {behind}");
        let (mut journal, report, replayed) = open_from(disk.clone(), cutting(), 1).unwrap();
        assert_eq!(replayed.len() as u64, lost - 1, "{name}");
        let cut = report.cut.unwrap();
        assert_eq!(cut.commit, lost, "{name}");
        assert!(
            cut.set_aside.contains(&format!("{}.cut", segment_name(15))),
            "{name}: {cut:?}"
        );
        for commit in lost..lost + 20 {
            assert_eq!(journal.append(0, &[b"new"]).unwrap().commit, commit, "{name}");
        }
        disk.crash(CrashMode::LoseAll);
        let (_, report, replayed) = reopen(&disk).unwrap();
        assert_eq!((replayed.len() as u64, report.tail), (lost + 19, None), "{name}");
    }
}

#[test]
fn a_damaged_record_is_not_read() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    let position = journal.append(0, &[&payload(1, 100)]).unwrap().position;
    disk.flip(&segment_name(1), 600, 1).unwrap();
    assert!(matches!(
        journal.read(position),
        Err(JournalError::Unreadable { offset: 512, .. })
    ));
    let wrong = Position { len: 99, ..position };
    assert!(matches!(
        journal.read(wrong),
        Err(JournalError::Unreadable { .. })
    ));
    let beyond = Position {
        offset: 4000,
        ..position
    };
    assert!(matches!(journal.read(beyond), Err(JournalError::Deleted { .. })));
    assert!(journal.read_part(position, 90, &mut [0; 11]).is_err());
}

#[test]
fn the_files_of_format_version_1_stay_readable() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/journal-v1");
    let disk = SimDisk::new(1);
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        disk.create(&name)
            .unwrap()
            .write_at(&std::fs::read(entry.path()).unwrap(), 0)
            .unwrap();
    }
    let (journal, report, replayed) = reopen(&disk).unwrap();
    assert_eq!((report.segments, report.tail), (2, None));
    let expected: Replayed = (1..=9u8)
        .map(|c| (c.into(), c, payload(c.into(), usize::from(c) * 10)))
        .collect();
    assert_eq!(replayed, expected);
    assert_eq!(journal.next_commit(), 10);
}

/// Writes the fixture of this format version, where there is none yet: fixtures are never changed.
#[test]
#[ignore = "writes tests/fixtures"]
fn write_the_fixture_of_this_format_version() {
    let folder = format!(
        "{}/tests/fixtures/journal-v{FORMAT_VERSION}",
        env!("CARGO_MANIFEST_DIR")
    );
    assert!(
        !std::path::Path::new(&folder).exists(),
        "{folder} exists: fixtures are not changed"
    );
    let mut journal = Journal::create(RealDisk::create(&folder).unwrap(), identity(), small(), 1).unwrap();
    for commit in 1..=9u8 {
        journal
            .append(commit, &[&payload(commit.into(), usize::from(commit) * 10)])
            .unwrap();
    }
    std::fs::remove_file(format!("{folder}/lock")).unwrap();
}
