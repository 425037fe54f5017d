//! Crashes and failing disks: every record whose append returned is there afterwards.

use super::*;
use std::io::ErrorKind;

/// Runs a workload that the power cuts at random moments, and checks after each that every record whose append
/// returned is replayed. `Ok` says how many there were, `Err` what was lost.
fn survives(seed: u64, mode: CrashMode, ignore_sync: bool) -> Result<usize, String> {
    let disk = SimDisk::new(seed);
    disk.set_ignore_sync(ignore_sync);
    let mut random = seed;
    let mut draw = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut promised: Vec<Vec<u8>> = Vec::new();
    let mut covered = 0;
    for round in 0..6 {
        disk.power_off_after(draw(60));
        let opened = if promised.is_empty() && !Journal::exists(&disk).unwrap_or(true) {
            Journal::create(disk.clone(), identity(), small(), 1)
        } else {
            open_and_compare(&disk, &mut promised, covered)?
        };
        if let Ok(mut journal) = opened {
            loop {
                let bytes = payload(journal.next_commit() + round, draw(3000) as usize);
                match journal.append(0, &[&bytes]) {
                    Ok(done) if done.commit == promised.len() as u64 + 1 => promised.push(bytes),
                    Ok(done) => return Err(format!("commit {} after {}", done.commit, promised.len())),
                    Err(_) => break,
                }
                if draw(3) == 0 && journal.prepare_next(draw(3000)).is_err() {
                    break;
                }
                if draw(10) == 0 {
                    covered = covered.max(draw(journal.next_commit()));
                    if journal.delete_before(covered + 1).is_err() {
                        break;
                    }
                }
            }
        }
        disk.crash(mode);
        // Without any promise the journal may be half created, that is, not be there.
        if !promised.is_empty() || Journal::exists(&disk).unwrap() {
            let opened = open_and_compare(&disk, &mut promised, covered)?;
            opened.map_err(|error| format!("seed {seed}: {error}"))?;
            // What an opened journal showed is durable as well.
            disk.crash(CrashMode::LoseAll);
        }
    }
    Ok(promised.len())
}

/// Opens the journal, under a power that may fail (`Ok(Err(_))`). `Err` if a promised record is missing or another.
/// What was written and not acknowledged may be there too: once it was seen it is promised.
fn open_and_compare(
    disk: &SimDisk,
    promised: &mut Vec<Vec<u8>>,
    covered: u64,
) -> Result<Result<Journal<SimDisk>, JournalError>, String> {
    match open_from(disk.clone(), small(), covered + 1) {
        Ok((journal, _, replayed)) => {
            let found: Vec<Vec<u8>> = replayed.into_iter().map(|(_, _, bytes)| bytes).collect();
            let kept = &promised[covered as usize..];
            if !found.starts_with(kept) || found.len() > kept.len() + 1 {
                return Err(format!(
                    "{} records from {} on, {} promised",
                    found.len(),
                    covered + 1,
                    kept.len()
                ));
            }
            let more = found[kept.len()..].to_vec();
            promised.extend(more);
            Ok(Ok(journal))
        }
        Err(error @ JournalError::Io(_)) => Ok(Err(error)),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_crash_at_any_moment_keeps_every_acknowledged_record() {
    let mut kept = 0;
    for seed in 0..300 {
        for mode in [CrashMode::LoseAll, CrashMode::Random, CrashMode::KeepAll] {
            kept += survives(seed, mode, false).unwrap();
        }
    }
    assert!(kept > 10_000, "{kept} records: too few to show anything");
}

#[test]
fn without_the_sync_the_same_crashes_lose_records() {
    let noticed = |mode| {
        (0..100)
            .filter(|seed| survives(*seed, mode, true).is_err())
            .count()
    };
    assert!(noticed(CrashMode::LoseAll) > 90);
    assert!(noticed(CrashMode::Random) > 90);
}

#[test]
fn a_torn_last_record_is_dropped_and_reported() {
    let mut torn = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let mut journal = create(&disk);
        for commit in 1..=3 {
            journal.append(0, &[&payload(commit, 300)]).unwrap();
        }
        disk.power_off_after(1);
        journal.append(0, &[&payload(4, 1200)]).unwrap_err();
        disk.crash(CrashMode::Random);
        let (_, report, replayed) = reopen(&disk).unwrap();
        assert!(replayed.len() >= 3);
        if let Some(tail) = report.tail {
            assert_eq!(
                (tail.file, tail.offset, tail.commit),
                (segment_name(1), 512 * 4, 4)
            );
            assert!(tail.bytes <= 1232);
            assert_eq!(replayed.len(), 3);
            torn += 1;
        }
        disk.crash(CrashMode::LoseAll);
        let (_, report, again) = reopen(&disk).unwrap();
        assert_eq!(
            (report.tail, again.len()),
            (None, replayed.len()),
            "the end is durable"
        );
    }
    assert!(torn > 30, "{torn}");
}

#[test]
fn a_failed_sync_poisons_and_what_opening_shows_then_is_durable() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    journal.append(0, &[b"one"]).unwrap();
    disk.fail_sync_after(0);
    journal.append(0, &[b"two"]).unwrap_err();
    let error = journal.append(0, &[b"three"]).unwrap_err();
    assert!(
        matches!(&error, JournalError::Poisoned { commit: 2, reason } if reason.contains("sync")),
        "{error}"
    );
    assert!(matches!(
        journal.prepare_next(1).unwrap_err(),
        JournalError::Poisoned { .. }
    ));
    assert!(matches!(
        journal.delete_before(1).unwrap_err(),
        JournalError::Poisoned { .. }
    ));
    drop(journal);
    // The kernel still shows the bytes that the failed sync dropped.
    assert_eq!(reopen(&disk).unwrap().2.len(), 2);
    disk.crash(CrashMode::LoseAll);
    assert_eq!(reopen(&disk).unwrap().2.len(), 2);
}

#[test]
fn a_segment_whose_name_was_not_synced_is_durable_once_opened() {
    let disk = SimDisk::new(1);
    let mut journal = create(&disk);
    for commit in 1..=7 {
        journal.append(0, &[&payload(commit, 10)]).unwrap();
    }
    journal.prepare_next(u64::MAX).unwrap();
    disk.fail_sync_after(1);
    let error = journal.append(0, &[b"x"]).unwrap_err();
    assert!(error.to_string().contains("the folder"), "{error}");
    drop(journal);
    let (mut journal, _, _) = reopen(&disk).unwrap();
    assert_eq!(journal.segments().len(), 2);
    journal.append(0, &[b"x"]).unwrap();
    disk.crash(CrashMode::LoseAll);
    assert_eq!(reopen(&disk).unwrap().2.len(), 8);
}

#[test]
fn a_failed_write_poisons() {
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        let disk = SimDisk::new(1);
        let mut journal = create(&disk);
        journal.append(0, &[b"one"]).unwrap();
        disk.fail_write_after(0, kind);
        journal.append(0, &[&payload(2, 400)]).unwrap_err();
        assert!(journal.poisoned().is_some());
        assert!(matches!(
            journal.append(0, &[b"two"]).unwrap_err(),
            JournalError::Poisoned { .. }
        ));
        assert_eq!(reopen(&disk).unwrap().2.len(), 1);
    }
}

#[test]
fn a_full_disk_refuses_a_new_segment_and_goes_on_when_there_is_space() {
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(2 * 4096 + 100));
    let mut journal = create(&disk);
    for commit in 1..=14 {
        journal.append(0, &[&payload(commit, 10)]).unwrap();
    }
    assert!(matches!(
        journal.prepare_next(1).unwrap_err(),
        JournalError::Full { bytes: 4096, .. }
    ));
    let error = journal.append(0, &[b"x"]).unwrap_err();
    assert!(matches!(error, JournalError::Full { .. }), "{error}");
    assert_eq!(journal.poisoned(), None);
    assert_eq!(disk.list().unwrap().len(), 2, "nothing is left over");
    disk.set_capacity(None);
    assert_eq!(journal.append(0, &[b"x"]).unwrap().commit, 15);
    disk.crash(CrashMode::LoseAll);
    assert_eq!(reopen(&disk).unwrap().2.len(), 15);
}

#[test]
fn a_failed_sync_during_a_roll_poisons_and_loses_nothing() {
    for after in 0..4 {
        let disk = SimDisk::new(1);
        let mut journal = create(&disk);
        for commit in 1..=7 {
            journal.append(0, &[&payload(commit, 10)]).unwrap();
        }
        disk.fail_sync_after(after);
        journal.append(0, &[b"x"]).unwrap_err();
        assert!(journal.poisoned().is_some());
        drop(journal);
        disk.crash(CrashMode::LoseAll);
        let (mut journal, _, replayed) = reopen(&disk).unwrap();
        assert_eq!(replayed.len(), 7);
        assert_eq!(journal.append(0, &[b"x"]).unwrap().commit, 8);
    }
}
