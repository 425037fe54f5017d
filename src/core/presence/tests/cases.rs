//! Single stories: ghosts, contests, limits, and what is visible.

use super::*;

fn at(key: &Key, region_index: usize, session: u64) -> SessionRef {
    SessionRef {
        user: key.0.clone(),
        device: key.1.clone(),
        session: SessionId(session),
        edge: edge(region_index, "edge-1", 1),
    }
}

fn effects(presence: &mut Presence) -> Vec<Effect> {
    std::iter::from_fn(|| presence.poll_effect()).collect()
}

fn record(presence: &Presence, key: &Key) -> Entry {
    presence.record(&key.0, &key.1).expect("a record")
}

fn exchange(from: &Presence, to: &mut Presence) {
    for entry in everything(from) {
        to.merge(entry);
    }
}

fn shown(presence: &Presence, key: &Key) -> VisibleStatus {
    presence.visible(&key.0, &BTreeMap::new()).status
}

fn ended(key: &Key, epoch: u64, session: u64) -> Entry {
    Entry::ended(key.0.clone(), key.1.clone(), epoch, SessionId(session)).expect("a valid epoch")
}

fn alive(key: &Key, epoch: u64, session: u64, counter: u64, live: Live) -> Entry {
    let version = (epoch, SessionId(session), counter, false);
    Entry::live(key.0.clone(), key.1.clone(), version, live).expect("a valid epoch")
}

#[test]
fn the_end_of_a_session_beats_each_of_its_counters_and_no_later_session() {
    let session = SessionId(5);
    assert!(Version::ended(3, session) > Version::live(3, session, u64::MAX, false));
    assert!(Version::ended(3, session) < Version::live(3, SessionId(6), 0, false));
    assert!(Version::ended(3, SessionId(u64::MAX)) < Version::live(4, SessionId(0), 0, false));
    assert!(Version::default() < Version::live(1, SessionId(0), 0, false));
}

#[test]
fn a_reconnect_before_the_death_is_noticed_leaves_no_ghost() {
    let key = key(0, 0);
    let mut owner = Presence::new(region(0));
    assert_eq!(owner.admit(admission(&key, 0, 9, 100, NEW)), Ok(1));
    // The same device comes again on another connection: the newest wins at once.
    assert_eq!(owner.admit(admission(&key, 0, 4, 200, NEW)), Ok(2));
    assert_eq!(
        effects(&mut owner),
        [Effect::Superseded {
            at: at(&key, 0, 9),
            by: SessionId(4)
        }]
    );
    // The end of the old one comes late, and does not touch the new one.
    assert!(!owner.end(&key.0, &key.1, SessionId(9)));
    assert_eq!(
        record(&owner, &key).version(),
        Version::live(2, SessionId(4), 0, false)
    );
    assert_eq!(shown(&owner, &key), VisibleStatus::Online);
    assert!(owner.end(&key.0, &key.1, SessionId(4)));
    assert_eq!(record(&owner, &key).version(), Version::ended(2, SessionId(4)));
    assert_eq!(record(&owner, &key).value(), None);
    assert!(!owner.end(&key.0, &key.1, SessionId(4)));
    assert_eq!(shown(&owner, &key), VisibleStatus::Offline);
    assert!(!owner.end(&UserId::new("nobody").expect("valid"), &key.1, SessionId(4)));
    assert_eq!(owner.users().count(), 1);
}

#[test]
fn a_reconnect_in_another_region_leaves_no_ghost() {
    let key = key(0, 0);
    let (mut old, mut new) = (Presence::new(region(0)), Presence::new(region(1)));
    old.admit(admission(&key, 0, 9, 100, NEW)).expect("room");
    // The new region has never heard of the device; the client remembers.
    assert_eq!(
        new.admit(admission(&key, 1, 4, 200, Claim::New { remembered: 1 })),
        Ok(2)
    );
    exchange(&new, &mut old);
    assert_eq!(effects(&mut old), [Effect::Probe { at: at(&key, 0, 9) }]);
    assert_eq!(
        record(&old, &key).version(),
        Version::live(2, SessionId(4), 0, false)
    );
    assert!(old.probe_unanswered(&key.0, &key.1, SessionId(9)));
    assert_eq!(
        record(&old, &key).version(),
        Version::live(2, SessionId(4), 0, false)
    );
    exchange(&old, &mut new);
    assert_eq!(effects(&mut new), []);
    assert_eq!(everything(&old), everything(&new));
}

#[test]
fn a_live_session_that_loses_to_an_end_re_asserts_itself() {
    let key = key(0, 0);
    let mut owner = Presence::new(region(0));
    owner.admit(admission(&key, 0, 9, 100, NEW)).expect("room");
    // Ended by an earlier owner of this region, and by a session with a far greater epoch.
    for (epoch, session) in [(1, 9), (70_000, 2)] {
        assert_eq!(owner.merge(ended(&key, epoch, session)), MergeOutcome::Newer);
        let connect_epoch = epoch + 1;
        assert_eq!(
            record(&owner, &key).version(),
            Version::live(connect_epoch, SessionId(9), 0, false)
        );
        assert_eq!(
            effects(&mut owner),
            [Effect::Reasserted {
                at: at(&key, 0, 9),
                connect_epoch
            }]
        );
    }
    assert_eq!(owner.counters().reasserted, 2);
    assert_eq!(
        owner.take_changed().into_values().collect::<Vec<_>>(),
        [Source::Local]
    );
}

#[test]
fn of_two_that_answer_the_lesser_gives_way() {
    let key = key(0, 0);
    let (mut a, mut b) = (Presence::new(region(0)), Presence::new(region(1)));
    a.admit(admission(&key, 0, 1, 100, NEW)).expect("room");
    b.admit(admission(&key, 1, 2, 200, NEW)).expect("room");
    exchange(&b, &mut a);
    assert_eq!(effects(&mut a), [Effect::Probe { at: at(&key, 0, 1) }]);
    // It is the lesser, but that the other is alive is not known yet: it challenges.
    a.probe_answered(&key.0, &key.1, SessionId(1));
    assert!(matches!(
        effects(&mut a)[..],
        [Effect::Reasserted { connect_epoch: 2, .. }]
    ));
    exchange(&a, &mut b);
    assert_eq!(effects(&mut b), [Effect::Probe { at: at(&key, 1, 2) }]);
    b.probe_answered(&key.0, &key.1, SessionId(2));
    assert!(matches!(
        effects(&mut b)[..],
        [Effect::Reasserted { connect_epoch: 3, .. }]
    ));
    exchange(&b, &mut a);
    assert_eq!(
        effects(&mut a),
        [Effect::Superseded {
            at: at(&key, 0, 1),
            by: SessionId(2)
        }]
    );
    assert!(!a.is_attached(&key.0, &key.1, SessionId(1)));
    assert_eq!(everything(&a), everything(&b));
}

#[test]
fn a_ghost_with_a_fast_clock_does_not_close_a_live_session() {
    let key = key(0, 0);
    let (mut ghost, mut owner) = (Presence::new(region(0)), Presence::new(region(1)));
    ghost
        .admit(admission(&key, 0, 1, 9_999, Claim::New { remembered: 7 }))
        .expect("room");
    owner.admit(admission(&key, 1, 2, 200, NEW)).expect("room");
    exchange(&ghost, &mut owner);
    owner.probe_answered(&key.0, &key.1, SessionId(2));
    exchange(&owner, &mut ghost);
    assert!(ghost.probe_unanswered(&key.0, &key.1, SessionId(1)));
    exchange(&ghost, &mut owner);
    assert!(owner.is_attached(&key.0, &key.1, SessionId(2)));
    assert_eq!(shown(&ghost, &key), VisibleStatus::Online);
    assert_eq!(everything(&ghost), everything(&owner));
}

#[test]
fn the_greater_of_two_re_asserts_itself_each_time() {
    let key = key(0, 0);
    let mut owner = Presence::new(region(0));
    owner.admit(admission(&key, 0, 1, 300, NEW)).expect("room");
    owner.merge(alive(&key, 5, 2, 0, live(1, Status::Online, 200)));
    owner.probe_answered(&key.0, &key.1, SessionId(1));
    // The rival is alive and challenges; it is the lesser, so its own owner will close it.
    let proved = (7, SessionId(2), 0, true);
    let rival = Entry::live(key.0.clone(), key.1.clone(), proved, live(1, Status::Online, 200));
    owner.merge(rival.expect("a valid epoch"));
    assert_eq!(
        record(&owner, &key).version(),
        Version::live(8, SessionId(1), 0, true)
    );
    assert!(owner.is_attached(&key.0, &key.1, SessionId(1)));
}

#[test]
fn no_region_ends_a_session_of_another() {
    let key = key(0, 0);
    let mut owner = Presence::new(region(0));
    owner.merge(alive(&key, 1, 2, 0, live(1, Status::Online, 200)));
    assert!(!owner.end(&key.0, &key.1, SessionId(2)));
    assert!(!owner.probe_unanswered(&key.0, &key.1, SessionId(2)));
    assert_eq!(
        record(&owner, &key).version(),
        Version::live(1, SessionId(2), 0, false)
    );
}

#[test]
fn a_ghost_that_survives_a_third_session_proves_nothing_by_it() {
    let key = key(0, 0);
    let (mut ghost, mut owner) = (Presence::new(region(0)), Presence::new(region(1)));
    // The ghost's edge has a fast clock, so it is the greater; the live session has lost to it and its client answered.
    ghost
        .admit(admission(&key, 0, 1, 9_999, Claim::New { remembered: 7 }))
        .expect("room");
    owner.admit(admission(&key, 1, 2, 200, NEW)).expect("room");
    exchange(&ghost, &mut owner);
    owner.probe_answered(&key.0, &key.1, SessionId(2));
    // The end of a third session overtakes both; the ghost re-asserts itself as every live session does.
    ghost.merge(ended(&key, 20, 3));
    assert_eq!(
        record(&ghost, &key).version(),
        Version::live(21, SessionId(1), 0, false)
    );
    exchange(&ghost, &mut owner);
    assert!(owner.is_attached(&key.0, &key.1, SessionId(2)));
    assert_eq!(
        record(&owner, &key).version(),
        Version::live(22, SessionId(2), 0, true)
    );
    exchange(&owner, &mut ghost);
    assert!(ghost.probe_unanswered(&key.0, &key.1, SessionId(1)));
    assert_eq!(shown(&ghost, &key), VisibleStatus::Online);
}

#[test]
fn a_new_owner_that_does_not_know_of_a_proof_writes_no_version_twice() {
    let key = key(0, 0);
    let (mut old, mut new) = (Presence::new(region(0)), Presence::new(region(0)));
    old.admit(admission(&key, 0, 1, 300, NEW)).expect("room");
    old.merge(alive(&key, 5, 2, 0, live(1, Status::Online, 200)));
    old.probe_answered(&key.0, &key.1, SessionId(1));
    new.admit(admission(&key, 0, 1, 300, Claim::Resume { connect_epoch: 6 }))
        .expect("attached");
    assert_eq!(new.merge(record(&old, &key)), MergeOutcome::Newer);
    assert_eq!(everything(&old), everything(&new));
    let away = (Status::Away, StatusText::default());
    assert_eq!(
        new.set_status(&key.0, &key.1, SessionId(1), 1, away),
        StatusOutcome::Written
    );
    assert_eq!(
        record(&new, &key).version(),
        Version::live(6, SessionId(1), 1, true)
    );
}

#[test]
fn a_status_changed_during_a_contest_is_kept() {
    let key = key(0, 0);
    let mut owner = Presence::new(region(0));
    owner.admit(admission(&key, 0, 1, 300, NEW)).expect("room");
    owner.merge(alive(&key, 5, 2, 0, live(1, Status::Online, 200)));
    let away = || (Status::Away, StatusText::new("lunch").expect("short"));
    assert_eq!(
        owner.set_status(&key.0, &key.1, SessionId(1), 1, away()),
        StatusOutcome::Held
    );
    assert_eq!(
        owner.set_status(&key.0, &key.1, SessionId(1), 1, away()),
        StatusOutcome::Stale
    );
    assert_eq!(
        owner.set_status(&key.0, &key.1, SessionId(2), 1, away()),
        StatusOutcome::NoSession
    );
    owner.probe_answered(&key.0, &key.1, SessionId(1));
    assert_eq!(
        record(&owner, &key).version(),
        Version::live(6, SessionId(1), 1, true)
    );
    let visible = owner.visible(&key.0, &BTreeMap::new());
    assert_eq!(
        (visible.status, visible.text.as_str()),
        (VisibleStatus::Away, "lunch")
    );
}

#[test]
fn a_claimed_epoch_is_cut() {
    assert_eq!(next_connect_epoch(0, 0), (1, false));
    assert_eq!(next_connect_epoch(65_536, 0), (65_537, false));
    assert_eq!(next_connect_epoch(65_537, 0), (65_537, true));
    assert_eq!(next_connect_epoch(3, 9), (10, false));
    assert_eq!(next_connect_epoch(u64::MAX, 9), (9 + 65_536 + 1, true));
    let mut owner = Presence::new(region(0));
    let claim = Claim::New { remembered: u64::MAX };
    assert_eq!(owner.admit(admission(&key(0, 0), 0, 1, 1, claim)), Ok(65_537));
    assert_eq!(owner.counters().epochs_cut, 1);
}

#[test]
fn a_new_owner_writes_what_the_old_one_wrote() {
    let key = key(0, 0);
    let mut old = Presence::new(region(0));
    old.admit(admission(&key, 0, 1, 100, NEW)).expect("room");
    let mut new = Presence::new(region(0));
    let resume = Claim::Resume { connect_epoch: 1 };
    assert_eq!(new.admit(admission(&key, 0, 1, 100, resume)), Ok(1));
    assert_eq!(everything(&old), everything(&new));
    // An older session of the same device, attached after it, gives way; a newer one replaces it.
    assert!(matches!(
        new.admit(admission(&key, 0, 0, 50, resume)),
        Err(AdmitError::Superseded { by: SessionId(1), .. })
    ));
    let newer = Claim::Resume { connect_epoch: 2 };
    assert_eq!(new.admit(admission(&key, 0, 0, 150, newer)), Ok(2));
    assert!(matches!(
        effects(&mut new)[..],
        [Effect::Superseded { by: SessionId(0), .. }]
    ));
}

#[test]
fn a_new_owner_takes_over_what_the_old_one_re_asserted() {
    let key = key(0, 0);
    let mut new = Presence::new(region(0));
    let mut attach = admission(&key, 0, 1, 100, Claim::Resume { connect_epoch: 1 });
    (attach.counter, attach.status) = (3, Status::Dnd);
    new.admit(attach).expect("attached");
    // The old owner's last words, of which the edge never heard: a greater epoch with an earlier status.
    new.merge(alive(&key, 4, 1, 2, live(0, Status::Online, 100)));
    assert!(matches!(
        effects(&mut new)[..],
        [Effect::Reasserted { connect_epoch: 4, .. }]
    ));
    assert_eq!(
        record(&new, &key).version(),
        Version::live(4, SessionId(1), 3, false)
    );
    assert_eq!(shown(&new, &key), VisibleStatus::Dnd);
}

#[test]
fn sessions_are_found_and_ended_by_their_edge() {
    let mut owner = Presence::new(region(0));
    for device in 0..4 {
        let mut admission = admission(&key(0, device), 0, u64::from(device) + 1, 1, NEW);
        admission.edge.generation = Generation(u64::from(device));
        owner.admit(admission).expect("room");
    }
    // A record of this region that no edge has attached, and one of another region: the latter is not ours to end.
    owner.merge(alive(&key(1, 0), 1, 50, 0, live(0, Status::Online, 1)));
    owner.merge(alive(&key(1, 1), 1, 51, 0, live(1, Status::Online, 1)));
    let sessions = |owner: &Presence, generation| -> Vec<_> {
        let edge = edge(0, "edge-1", generation);
        owner
            .sessions_on(&edge)
            .map(|(at, attached)| (at.session.0, attached))
            .collect()
    };
    assert_eq!(sessions(&owner, 1), [(2, true), (50, false)]);
    assert_eq!(owner.edges().count(), 4);

    let gone = owner.end_missing(&edge(0, "edge-1", 1), &BTreeSet::from([SessionId(2)]));
    assert_eq!(gone, [at(&key(1, 0), 0, 50)]);
    assert_eq!(sessions(&owner, 1), [(2, true)]);
    let gone = owner.end_all_of(&edge(0, "edge-1", 0).node, Generation(3));
    assert_eq!(gone.iter().map(|at| at.session.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(sessions(&owner, 3), [(4, true)]);
    assert_eq!(owner.edges().count(), 1);
    assert_eq!(shown(&owner, &key(1, 1)), VisibleStatus::Online);
    assert_eq!(owner.users_in(&region(1)).count(), 1);
    assert_eq!(owner.tombstones(), 4);
}

#[test]
fn a_dead_edge_ends_a_session_whose_record_has_lost() {
    let key = key(0, 0);
    let mut owner = Presence::new(region(0));
    owner.admit(admission(&key, 0, 1, 300, NEW)).expect("room");
    owner.merge(alive(&key, 5, 2, 0, live(1, Status::Online, 200)));
    assert_eq!(
        owner.end_all_of(&edge(0, "edge-1", 1).node, Generation(2)).len(),
        1
    );
    assert!(!owner.is_attached(&key.0, &key.1, SessionId(1)));
    assert_eq!(
        record(&owner, &key).version(),
        Version::live(5, SessionId(2), 0, false)
    );
    assert_eq!(owner.edges().count(), 0);
}

#[test]
fn devices_are_limited() {
    let mut owner = Presence::new(region(0));
    for device in 0..MAX_LIVE_DEVICES as u8 {
        owner
            .admit(admission(&key(0, device), 0, u64::from(device), 1, NEW))
            .expect("within the limit");
    }
    let refused = owner.admit(admission(&key(0, 99), 0, 99, 1, NEW));
    assert!(matches!(
        refused,
        Err(AdmitError::Devices {
            live: MAX_LIVE_DEVICES,
            ..
        })
    ));
    assert_eq!(owner.record(&key(0, 99).0, &key(0, 99).1), None);
    // A device that is live may come again, and the end of one makes room.
    owner
        .admit(admission(&key(0, 3), 0, 98, 1, NEW))
        .expect("live already");
    owner.end(&key(0, 5).0, &key(0, 5).1, SessionId(5));
    owner
        .admit(admission(&key(0, 99), 0, 99, 1, NEW))
        .expect("room again");
}

#[test]
fn tombstones_of_a_user_are_limited_and_the_oldest_goes() {
    let mut presence = Presence::new(region(0));
    for device in 0..=MAX_TERMINALS_PER_USER as u8 {
        assert_eq!(presence.tombstones(), usize::from(device));
        // The latest has the least version: it must not go, or no other region would hear of that end.
        presence.merge(ended(&key(0, device), 1000 - u64::from(device), 1));
    }
    assert_eq!(presence.tombstones(), MAX_TERMINALS_PER_USER);
    let (user, first) = key(0, 0);
    assert_eq!(presence.record(&user, &first), None);
    assert!(presence.record(&user, &key(0, 64).1).is_some());
    assert_eq!(presence.counters().evicted, 1);
}

#[test]
fn tombstones_of_a_shard_are_limited() {
    let mut presence = Presence::new(region(0));
    let user = |i: usize| UserId::new(&format!("u{i}")).expect("valid");
    let device = key(0, 0).1;
    for i in 0..=MAX_TERMINALS_PER_SHARD {
        presence.merge(ended(&(user(i), device.clone()), 1, 1));
    }
    assert_eq!(presence.tombstones(), MAX_TERMINALS_PER_SHARD);
    assert_eq!(presence.users().count(), MAX_TERMINALS_PER_SHARD);
    assert_eq!(presence.record(&user(0), &device), None);
    // A device that comes back is no tombstone any more.
    presence.merge(alive(
        &(user(1), device.clone()),
        2,
        1,
        0,
        live(1, Status::Online, 1),
    ));
    assert_eq!(presence.tombstones(), MAX_TERMINALS_PER_SHARD - 1);
}

#[test]
fn what_is_seen_is_the_best_of_the_devices() {
    let user = key(0, 0).0;
    let mut presence = Presence::new(region(0));
    let none = BTreeMap::new();
    let lost = BTreeMap::from([(region(1), 777)]);
    let unreachable = VisibleStatus::Unreachable { since_ms: 777 };
    let mut put = |device, region_index, status, since_ms| {
        presence.merge(alive(
            &key(0, device),
            1,
            1,
            0,
            live(region_index, status, since_ms),
        ));
        (presence.visible(&user, &none), presence.visible(&user, &lost))
    };
    let (seen, _) = put(0, 1, Status::Offline, 5);
    assert_eq!(
        (seen.status, seen.since_ms, seen.devices.len()),
        (VisibleStatus::Offline, 0, 0)
    );
    let (seen, cut) = put(1, 1, Status::Online, 20);
    assert_eq!((seen.status, seen.since_ms), (VisibleStatus::Online, 20));
    // Never silently online; and the hidden device is not given away.
    assert_eq!((cut.status, cut.devices.len()), (unreachable, 1));
    let (seen, cut) = put(2, 0, Status::Away, 10);
    assert_eq!(
        (seen.status, cut.status),
        (VisibleStatus::Online, VisibleStatus::Away)
    );
    let (_, cut) = put(3, 2, Status::Dnd, 10);
    assert_eq!(cut.status, VisibleStatus::Dnd);
    let (_, cut) = put(4, 2, Status::Online, 30);
    assert_eq!(
        (cut.status, cut.since_ms, cut.devices.len()),
        (VisibleStatus::Online, 30, 4)
    );
    assert_eq!(cut.devices[0].status, unreachable);
}

#[test]
fn watchers_are_told_what_is_seen() {
    let (user, device) = key(0, 0);
    let mut presence = Presence::new(region(0));
    presence.merge(alive(&(user.clone(), device), 1, 1, 0, live(1, Status::Dnd, 9)));
    let told = |unreachable| presence.visible(&user, &unreachable).event(user.clone());
    let event = told(BTreeMap::new());
    assert_eq!(
        (event.status, event.unreachable_since_ms, event.devices),
        (Status::Dnd, None, 1)
    );
    assert_eq!((event.since_ms, event.region), (9, Some(region(1))));
    let event = told(BTreeMap::from([(region(1), 777)]));
    assert_eq!(
        (event.status, event.unreachable_since_ms, event.devices),
        (Status::Offline, Some(777), 1)
    );
}

#[test]
fn what_travels_is_limited() {
    assert!(StatusText::new(&"é".repeat(128)).is_ok());
    assert_eq!(
        StatusText::new(&"a".repeat(257)),
        Err(PresenceError::TextLength { len: 257 })
    );
    assert_eq!(
        StatusText::new("a\x1b[2J"),
        Err(PresenceError::TextCharacter { found: '\x1b' })
    );
    assert_eq!(StatusText::lossy("a\x1b[2J").as_str(), "a [2J");
    assert_eq!(
        StatusText::lossy(&format!("a{}", "é".repeat(200))).as_str().len(),
        255
    );
    let (user, device) = key(0, 0);
    for epoch in [0, MAX_CONNECT_EPOCH + 1] {
        let refused = Entry::ended(user.clone(), device.clone(), epoch, SessionId(1));
        assert_eq!(refused, Err(PresenceError::ConnectEpoch { found: epoch }));
    }

    let name = "n".repeat(32);
    let longest = Live {
        status: Status::Online,
        text: StatusText::new(&"t".repeat(MAX_STATUS_TEXT)).expect("at its limit"),
        region: RegionId::new(&name).expect("at its limit"),
        edge: Edge {
            node: NodeKey {
                region: RegionId::new(&name).expect("at its limit"),
                node: NodeName::new(&name).expect("at its limit"),
            },
            generation: Generation(u64::MAX),
        },
        since_ms: u64::MAX,
    };
    let whose = (
        UserId::new(&"u".repeat(255)).expect("at its limit"),
        DeviceId::new(&"d".repeat(64)).expect("at its limit"),
    );
    let entry = Entry::live(
        whose.0,
        whose.1,
        (MAX_CONNECT_EPOCH, SessionId(u64::MAX), u64::MAX, true),
        longest,
    )
    .expect("at its limits");
    let full = Delta {
        records: vec![entry.clone(); MAX_DELTA_RECORDS],
    };
    let bytes = full.encode();
    assert!(bytes.len() <= MAX_DELTA_BYTES, "{} bytes", bytes.len());
    assert_eq!(Delta::decode(&bytes), Ok(full.clone()));

    let mut more = full;
    more.records.push(ended(&key(0, 0), 1, 1));
    assert!(matches!(
        Delta::decode(&more.encode()),
        Err(PresenceError::Malformed { .. })
    ));
    let huge = vec![0; MAX_DELTA_BYTES + 1];
    assert!(matches!(Delta::decode(&huge), Err(PresenceError::Length { .. })));
    assert!(matches!(Entry::decode(&huge), Err(PresenceError::Length { .. })));
    assert!(entry.encode().len() <= MAX_ENTRY_BYTES);
    // An array that claims four billion records allocates nothing and is refused.
    assert!(Delta::decode(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
    let mut followed = Delta::default().encode();
    followed.push(0);
    assert!(Delta::decode(&followed).is_err());
}

#[test]
fn records_have_a_fixed_encoding() {
    // Regions run different builds during an upgrade: a change here is a change of the wire format.
    let records = vec![
        alive(&key(1, 2), 3, 4, 5, live(0, Status::Away, 6)),
        ended(&key(1, 3), 3, 4),
    ];
    let hex: String = Delta { records }
        .encode()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let expected = "9295a6757365722d31a86465766963652d3203049305c29501a0a261709292a26170a6656467652d310106\
                    95a6757365722d31a86465766963652d330304c0";
    assert_eq!(hex, expected);
}

#[test]
fn one_version_with_two_values_converges_and_is_counted() {
    let key = key(0, 0);
    let one = alive(&key, 1, 1, 1, live(1, Status::Online, 1));
    let other = alive(&key, 1, 1, 1, live(1, Status::Away, 1));
    let (mut a, mut b) = (
        merged(std::slice::from_ref(&one)),
        merged(std::slice::from_ref(&other)),
    );
    assert_eq!(a.merge(other), MergeOutcome::Invalid { replaced: false });
    assert_eq!(b.merge(one), MergeOutcome::Invalid { replaced: true });
    assert_eq!(everything(&a), everything(&b));
    assert_eq!((a.counters().invalid, b.counters().invalid), (1, 1));
}

#[test]
fn a_dirty_set_is_worked_off_in_pages() {
    let mut presence = Presence::new(region(0));
    for device in 0..5 {
        presence
            .admit(admission(&key(0, device), 0, 1, 1, NEW))
            .expect("room");
    }
    let mut dirty: BTreeSet<Key> = presence.take_changed().into_keys().collect();
    assert!(presence.take_changed().is_empty());
    dirty.insert(key(9, 9));
    let sizes: Vec<_> = (0..4)
        .map(|_| presence.take_delta(&mut dirty, 2).records.len())
        .collect();
    assert_eq!(sizes, [2, 2, 1, 0]);
    assert_eq!(presence.records_of(&key(0, 0).0).count(), 5);
}
