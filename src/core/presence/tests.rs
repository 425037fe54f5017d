//! Properties of presence: merge laws over versions that collide, and convergence of three regions under faults.

mod cases;
mod digest;

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::core::ids::{DeviceId, Generation, NodeKey, NodeName, RegionId, SessionId, UserId};
use crate::core::wire::{MAX_STATUS_TEXT, Status};

const REGIONS: [&str; 3] = ["ap", "eu", "us"];

fn region(index: usize) -> RegionId {
    RegionId::new(REGIONS[index]).expect("a valid name")
}

fn edge(region_index: usize, node: &str, generation: u64) -> Edge {
    Edge {
        node: NodeKey {
            region: region(region_index),
            node: NodeName::new(node).expect("a valid name"),
        },
        generation: Generation(generation),
    }
}

fn key(user: u8, device: u8) -> Key {
    (
        UserId::new(&format!("user-{user}")).expect("a valid id"),
        DeviceId::new(&format!("device-{device}")).expect("a valid id"),
    )
}

fn live(region_index: usize, status: Status, since_ms: u64) -> Live {
    Live {
        status,
        text: StatusText::default(),
        region: region(region_index),
        edge: edge(region_index, "edge-1", 1),
        since_ms,
    }
}

fn admission(key: &Key, region_index: usize, session: u64, since_ms: u64, claim: Claim) -> Admission {
    Admission {
        user: key.0.clone(),
        device: key.1.clone(),
        session: SessionId(session),
        edge: edge(region_index, "edge-1", 1),
        since_ms,
        counter: 0,
        status: Status::Online,
        text: StatusText::default(),
        claim,
    }
}

const NEW: Claim = Claim::New { remembered: 0 };

fn everything(presence: &Presence) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let after: Option<Key> = all.last().map(|e: &Entry| (e.user().clone(), e.device().clone()));
        let page = presence.all_records(after.as_ref(), 3).records;
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

fn merged(entries: &[Entry]) -> Presence {
    let mut presence = Presence::new(region(0));
    for entry in entries {
        presence.merge(entry.clone());
    }
    presence
}

fn union(a: &Presence, b: &Presence) -> Presence {
    let mut both = a.clone();
    for entry in everything(b) {
        both.merge(entry);
    }
    both
}

prop_compose! {
    /// Two epochs, two sessions, two counters, two values: most versions meet themselves, with and without the same value.
    fn colliding()(device in 0..2_u8, epoch in 1..3_u64, session in 0..2_u64, counter in 0..3_u64, proved: bool, value in 0..2_u64)
        -> Entry
    {
        let (user, device) = key(0, device);
        if counter == 2 {
            Entry::ended(user, device, epoch, SessionId(session)).expect("a valid epoch")
        } else {
            let live = live(1, Status::Online, value);
            Entry::live(user, device, (epoch, SessionId(session), counter, proved), live).expect("a valid epoch")
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn merge_is_commutative_associative_and_idempotent(
        a in vec(colliding(), 0..8), b in vec(colliding(), 0..8), c in vec(colliding(), 0..8),
    ) {
        let (a, b, c) = (merged(&a), merged(&b), merged(&c));
        prop_assert_eq!(everything(&union(&a, &b)), everything(&union(&b, &a)));
        prop_assert_eq!(everything(&union(&union(&a, &b), &c)), everything(&union(&a, &union(&b, &c))));
        prop_assert_eq!(everything(&union(&a, &a)), everything(&a));
    }

    #[test]
    fn a_register_is_the_maximum_of_what_it_was_given(entries in vec(colliding(), 1..12)) {
        let presence = merged(&entries);
        for record in everything(&presence) {
            let best = entries
                .iter()
                .filter(|e| e.device() == record.device())
                .map(|e| {
                    let v = e.version();
                    (v.connect_epoch, v.session, v.is_terminal(), v.counter(), v.is_proved(), e.value().cloned())
                })
                .max();
            let v = record.version();
            let have = (v.connect_epoch, v.session, v.is_terminal(), v.counter(), v.is_proved(), record.value().cloned());
            prop_assert_eq!(best, Some(have));
        }
    }

    #[test]
    fn outcomes_tell_what_a_merge_did(entries in vec(colliding(), 1..12)) {
        let mut presence = Presence::new(region(0));
        for entry in entries {
            let before = presence.record(entry.user(), entry.device());
            let outcome = presence.merge(entry.clone());
            let after = presence.record(entry.user(), entry.device());
            let expected = match &before {
                Some(b) if b.version() == entry.version() && *b == entry => MergeOutcome::Same,
                Some(b) if b.version() == entry.version() => {
                    MergeOutcome::Invalid { replaced: entry.value() > b.value() }
                }
                Some(b) if b.version() > entry.version() => MergeOutcome::Older,
                _ => MergeOutcome::Newer,
            };
            prop_assert_eq!(outcome, expected);
            let changed = presence.take_changed();
            prop_assert_eq!(changed.len(), usize::from(before != after));
        }
        let c = presence.counters();
        prop_assert!(c.invalid + c.merged_newer + c.merged_older + c.merged_same > 0);
    }

    #[test]
    fn deltas_round_trip(records in vec(colliding(), 0..20)) {
        for record in &records {
            prop_assert_eq!(Entry::decode(&record.encode()), Ok(record.clone()));
        }
        let delta = Delta { records };
        let bytes = delta.encode();
        prop_assert_eq!(Delta::decode(&bytes), Ok(delta));
        for len in 0..bytes.len() {
            prop_assert!(Delta::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn no_bytes_panic_the_decoder(bytes in vec(any::<u8>(), 0..200), at: prop::sample::Index, value: u8) {
        let _ = Delta::decode(&bytes);
        let (user, device) = key(1, 1);
        let entry = Entry::live(user, device, (1, SessionId(2), 3, true), live(1, Status::Dnd, 4)).expect("valid");
        let mut bytes = Delta { records: vec![entry] }.encode();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = Delta::decode(&bytes);
    }
}

/// A client session as it truly is.
#[derive(Debug, Clone)]
struct Truth {
    key: Key,
    region: usize,
    /// Whether its client is there. A ghost is not, but its edge has not noticed.
    present: bool,
    status: Status,
    counter: u64,
    since_ms: u64,
    connect_epoch: u64,
}

#[derive(Debug, Clone)]
enum Step {
    /// A client comes in a region. It leaves the device's earlier session as a ghost, or lets it live on (a clone of the
    /// client); it remembers its epoch or not; its edge's clock is off.
    Connect {
        device: u8,
        region: usize,
        clone: bool,
        remembers: bool,
        skew: u64,
    },
    /// A client goes; its edge notices now, or not yet.
    Disconnect {
        pick: usize,
        noticed: bool,
    },
    /// An edge notices that a client is gone.
    Notice {
        pick: usize,
    },
    Change {
        pick: usize,
        status: u8,
    },
    /// A record, perhaps an old one, arrives.
    Exchange {
        from: usize,
        to: usize,
        count: usize,
        lost: bool,
        twice: bool,
    },
    /// A probe that is under way ends.
    Probe {
        pick: usize,
    },
    /// A region's owner is another and knows nothing; edges attach what they hold.
    NewOwner {
        region: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0..1000_usize;
    prop_oneof![
        3 => (0..3_u8, 0..3_usize, any::<[bool; 2]>(), 0..40_u64).prop_map(|(device, region, [clone, remembers], skew)|
            Step::Connect { device, region, clone, remembers, skew }),
        2 => (pick.clone(), any::<bool>()).prop_map(|(pick, noticed)| Step::Disconnect { pick, noticed }),
        2 => pick.clone().prop_map(|pick| Step::Notice { pick }),
        2 => (pick.clone(), 0..4_u8).prop_map(|(pick, status)| Step::Change { pick, status }),
        6 => (0..3_usize, 0..3_usize, 1..5_usize, prop::bool::weighted(0.3), any::<bool>()).prop_map(
            |(from, to, count, lost, twice)| Step::Exchange { from, to, count, lost, twice }),
        2 => pick.prop_map(|pick| Step::Probe { pick }),
        1 => (0..3_usize).prop_map(|region| Step::NewOwner { region }),
    ]
}

struct World {
    owners: Vec<Presence>,
    sessions: BTreeMap<SessionId, Truth>,
    /// What each region's device client remembers.
    remembered: BTreeMap<Key, u64>,
    dirty: BTreeMap<(usize, usize), BTreeSet<Key>>,
    probes: Vec<SessionRef>,
    /// When each session began and when its client was last there.
    seen: BTreeMap<SessionId, (u64, u64)>,
    clock: u64,
}

impl World {
    fn new() -> Self {
        Self {
            owners: (0..3).map(|index| Presence::new(region(index))).collect(),
            sessions: BTreeMap::new(),
            remembered: BTreeMap::new(),
            dirty: BTreeMap::new(),
            probes: Vec::new(),
            seen: BTreeMap::new(),
            clock: 1000,
        }
    }

    /// What a driver does after each call of an owner.
    fn drive(&mut self, at: usize) {
        while let Some(effect) = self.owners[at].poll_effect() {
            match effect {
                Effect::Probe { at } => self.probes.push(at),
                Effect::Reasserted { at, connect_epoch } => {
                    if let Some(session) = self.sessions.get_mut(&at.session) {
                        session.connect_epoch = connect_epoch;
                    }
                }
                Effect::Superseded { at, by } => {
                    self.superseded(at.session, by);
                }
            }
        }
        for (key, source) in self.owners[at].take_changed() {
            if source == Source::Local {
                for to in (0..3).filter(|to| *to != at) {
                    self.dirty.entry((at, to)).or_default().insert(key.clone());
                }
            }
        }
    }

    /// A client that is there may only give way to one that was there after it came: it will not reconnect by itself.
    fn superseded(&mut self, session: SessionId, by: SessionId) {
        let Some(truth) = self.sessions.remove(&session) else {
            return;
        };
        let (began, rival_seen) = (self.seen[&session].0, self.seen[&by].1);
        let rival_present = self.sessions.get(&by).is_some_and(|rival| rival.present);
        assert!(
            !truth.present || rival_present || rival_seen >= began,
            "{truth:?} gave way to the ghost {by}"
        );
    }

    fn picked(&self, pick: usize, present: bool) -> Option<SessionId> {
        let of: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, t)| t.present == present)
            .map(|(s, _)| *s)
            .collect();
        (!of.is_empty()).then(|| of[pick % of.len()])
    }

    fn end(&mut self, session: SessionId) {
        let Some(truth) = self.sessions.remove(&session) else {
            return;
        };
        self.owners[truth.region].end(&truth.key.0, &truth.key.1, session);
        self.drive(truth.region);
    }

    fn attach(&mut self, session: SessionId, claim: Claim) {
        let truth = &self.sessions[&session];
        let (at, mut admission) = (
            truth.region,
            admission(&truth.key, truth.region, session.0, truth.since_ms, claim),
        );
        (admission.status, admission.counter) = (truth.status, truth.counter);
        match self.owners[at].admit(admission) {
            Ok(epoch) => {
                let truth = self.sessions.get_mut(&session).expect("just looked at");
                truth.connect_epoch = epoch;
                if truth.present {
                    let known = self.remembered.entry(truth.key.clone()).or_default();
                    *known = epoch.max(*known);
                }
            }
            Err(AdmitError::Superseded { by, .. }) => {
                self.superseded(session, by);
            }
            Err(other) => panic!("{other}"),
        }
        self.drive(at);
    }

    fn probe(&mut self, at: SessionRef) {
        let Some(truth) = self.sessions.get(&at.session).cloned() else {
            return;
        };
        if truth.present {
            self.owners[truth.region].probe_answered(&at.user, &at.device, at.session);
        } else {
            self.owners[truth.region].probe_unanswered(&at.user, &at.device, at.session);
            self.sessions.remove(&at.session);
        }
        self.drive(truth.region);
    }

    fn step(&mut self, step: Step) {
        self.clock += 10;
        for session in self.sessions.iter().filter(|(_, t)| t.present).map(|(s, _)| s) {
            self.seen.get_mut(session).expect("seen since it began").1 = self.clock - 1;
        }
        match step {
            Step::Connect {
                device,
                region,
                clone,
                remembers,
                skew,
            } => {
                let key = key(0, device);
                if !clone {
                    for truth in self.sessions.values_mut().filter(|truth| truth.key == key) {
                        truth.present = false;
                    }
                }
                let remembered = if remembers {
                    self.remembered.get(&key).copied().unwrap_or(0)
                } else {
                    0
                };
                // Sessions are random numbers: neither rising nor unlike each other in order.
                let session = SessionId(self.clock.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let truth = Truth {
                    key,
                    region,
                    present: true,
                    status: Status::Online,
                    counter: 0,
                    since_ms: self.clock + skew,
                    connect_epoch: 0,
                };
                self.sessions.insert(session, truth);
                self.seen.insert(session, (self.clock, self.clock));
                self.attach(session, Claim::New { remembered });
            }
            Step::Disconnect { pick, noticed } => {
                let Some(session) = self.picked(pick, true) else {
                    return;
                };
                self.sessions.get_mut(&session).expect("picked").present = false;
                if noticed {
                    self.end(session);
                }
            }
            Step::Notice { pick } => {
                if let Some(session) = self.picked(pick, false) {
                    self.end(session);
                }
            }
            Step::Change { pick, status } => {
                let Some(session) = self.picked(pick, true) else {
                    return;
                };
                let truth = self.sessions.get_mut(&session).expect("picked");
                truth.status = Status::try_from(status).expect("a status");
                truth.counter += 1;
                let truth = truth.clone();
                let change = (truth.status, StatusText::default());
                let owner = &mut self.owners[truth.region];
                let outcome = owner.set_status(&truth.key.0, &truth.key.1, session, truth.counter, change);
                assert!(matches!(outcome, StatusOutcome::Written | StatusOutcome::Held));
                self.drive(truth.region);
            }
            Step::Exchange {
                from,
                to,
                count,
                lost,
                twice,
            } => {
                let Some(dirty) = self.dirty.get_mut(&(from, to)) else {
                    return;
                };
                let delta = self.owners[from].take_delta(dirty, count);
                for _ in 0..usize::from(!lost) + usize::from(!lost && twice) {
                    self.deliver(to, &delta);
                }
            }
            Step::Probe { pick } => {
                if !self.probes.is_empty() {
                    let at = self.probes.remove(pick % self.probes.len());
                    self.probe(at);
                }
            }
            Step::NewOwner { region: index } => {
                self.owners[index] = Presence::new(region(index));
                self.probes
                    .retain(|at| self.sessions.get(&at.session).is_some_and(|t| t.region != index));
                let held: Vec<_> = self
                    .sessions
                    .iter()
                    .filter(|(_, t)| t.region == index)
                    .map(|(s, t)| (*s, t.connect_epoch))
                    .collect();
                for (session, connect_epoch) in held {
                    self.attach(session, Claim::Resume { connect_epoch });
                }
            }
        }
    }

    fn deliver(&mut self, to: usize, delta: &Delta) {
        let delta = Delta::decode(&delta.encode()).expect("what was encoded decodes");
        for record in delta.records {
            let outcome = self.owners[to].merge(record);
            assert!(
                !matches!(outcome, MergeOutcome::Invalid { .. }),
                "one writer made one version twice"
            );
            self.drive(to);
        }
    }

    /// Links are up: full exchanges, probes end, owners end what no edge holds; until nothing changes.
    fn heal(&mut self) {
        for round in 0.. {
            let before: Vec<_> = self.owners.iter().map(everything).collect();
            for (from, to) in (0..9).map(|i| (i / 3, i % 3)).filter(|(from, to)| from != to) {
                let records = everything(&self.owners[from]);
                self.deliver(to, &Delta { records });
            }
            for at in std::mem::take(&mut self.probes) {
                self.probe(at);
            }
            for index in 0..3 {
                let held: BTreeSet<_> = self
                    .sessions
                    .iter()
                    .filter(|(_, t)| t.region == index)
                    .map(|(s, _)| *s)
                    .collect();
                let edges: Vec<_> = self.owners[index].edges().cloned().collect();
                for edge in edges {
                    self.owners[index].end_missing(&edge, &held);
                    self.drive(index);
                }
            }
            let after: Vec<_> = self.owners.iter().map(everything).collect();
            if before == after && self.probes.is_empty() {
                return;
            }
            assert!(round < 20, "no rest after {round} full exchanges: {after:#?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Random writes by the one-writer rule at three regions, exchanged in any order with loss and duplicates. After heal
    /// all regions hold the same, no device has two live sessions, and what is visible is what is true.
    #[test]
    fn regions_converge_on_the_truth(steps in vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.heal();
        let mut ghosts: Vec<_> = world.sessions.iter().filter(|(_, t)| !t.present).map(|(s, _)| *s).collect();
        while let Some(session) = ghosts.pop() {
            world.end(session);
            world.heal();
            ghosts.retain(|ghost| world.sessions.contains_key(ghost));
        }

        let all: Vec<_> = world.owners.iter().map(everything).collect();
        prop_assert_eq!(&all[0], &all[1]);
        prop_assert_eq!(&all[1], &all[2]);
        for device in 0..3 {
            let key = key(0, device);
            let present: Vec<_> = world.sessions.iter().filter(|(_, t)| t.key == key).collect();
            prop_assert!(present.len() <= 1, "two live sessions of one device: {present:?}");
            let record = all[0].iter().find(|e| *e.device() == key.1);
            let shown = record.and_then(|e| Some((e.version().session, e.value()?.status)));
            let truth = present.first().map(|(session, t)| (**session, t.status));
            prop_assert_eq!(shown, truth, "device {}", device);
        }
        let visible = world.owners[0].visible(&key(0, 0).0, &BTreeMap::new());
        let best = world.sessions.values().map(|t| t.status).max().unwrap_or(Status::Offline);
        let expected = match best {
            Status::Offline => VisibleStatus::Offline,
            Status::Away => VisibleStatus::Away,
            Status::Dnd => VisibleStatus::Dnd,
            Status::Online => VisibleStatus::Online,
        };
        prop_assert_eq!(visible.status, expected);
    }
}
