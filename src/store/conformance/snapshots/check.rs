//! What must hold of the two stores: at any time, when the receiver has caught up, and in the end.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::kit::{S, user};
use super::{Life, Provider, Receiver, Run, Side, USERS};
use crate::core::commit::{Outcome, StoreOp};
use crate::core::ids::{Coord, DeviceId, Origin, UserId};
use crate::core::op::Envelope;
use crate::core::state::{DeviceRow, UserRow};
use crate::core::vector::Vector;
use crate::store::engine::{LogPage, Read, ReadReply};

impl Run<'_> {
    /// What is removed from the receiver's inboxes.
    pub(super) fn trimmed(&mut self) -> BTreeMap<UserId, Vector> {
        let users = USERS.iter().map(|name| user(name));
        users
            .map(|user| (user.clone(), self.receiver.user(&user).trimmed))
            .collect()
    }

    /// Notes what the receiver removed since.
    pub(super) fn note_removed(&mut self, before: &BTreeMap<UserId, Vector>) {
        for (user, after) in self.trimmed() {
            for (origin, to) in after
                .iter()
                .filter(|(origin, to)| before[&user].of(*origin) < *to)
            {
                self.removed.entry(user.clone()).or_default().raise(origin, to);
            }
        }
    }

    /// What holds of a store at any time.
    pub(super) fn check_shape(&mut self, side: Side) {
        for name in USERS {
            let user = user(name);
            let (row, inbox) = (self.node(side).user(&user), self.node(side).inbox(&user));
            let coords: BTreeSet<Coord> = inbox.iter().map(|entry| entry.at).collect();
            assert_eq!(coords.len(), inbox.len(), "a message waits twice");
            for entry in &inbox {
                let at = entry.at;
                let (envelope, op) = &self.messages[&at];
                assert_eq!((&envelope.to, op), (&user, &entry.op), "another message at {at}");
                assert!(!row.trimmed.covers(at), "{at} waits, and is gone");
                assert!(!in_gap(&row, at), "{at} waits, and is told to be gone");
                let copies = self.copies(at);
                let siblings = row.siblings.get(&at).into_iter().flatten();
                for sibling in siblings {
                    assert!(
                        copies.contains(sibling) && *sibling != at,
                        "{at} takes {sibling} for a copy"
                    );
                }
            }
            for ((origin, from), hole) in &row.timed.holes {
                let within = self.messages.iter().filter(|(at, (envelope, _))| {
                    envelope.to == user && at.origin == *origin && (*from..=hole.to).contains(&at.seq)
                });
                let within: Vec<Coord> = within.map(|(at, _)| *at).collect();
                // What is left of a hole that was removed in part says no number.
                assert!(
                    hole.count == 0 || within.len() as u64 == hole.count,
                    "{from} to {hole:?} of {origin:?}: {within:?}"
                );
                let mut next = row.timed.holes.range((*origin, *from)..=(*origin, hole.to));
                assert_eq!(
                    next.nth(1),
                    None,
                    "{from} to {hole:?} of {origin:?} reaches over another"
                );
                let mut gaps = row.gaps.range((*origin, 0)..=(*origin, hole.to));
                let gap = gaps.next_back().filter(|(_, to)| *to >= from);
                assert_eq!(gap, None, "{from} to {hole:?} of {origin:?} is a gap, too");
                for at in within {
                    assert_ne!(self.messages[&at].0.expires_ms, 0, "{at} does not expire");
                    assert!(!coords.contains(&at), "{at} waits, and is in a hole");
                    assert!(!row.trimmed.covers(at), "{at} is in a hole, and removed");
                }
            }
            let unread = inbox.iter().filter(|entry| !row.counted.covers(entry.at));
            let (count, bytes) =
                unread.fold((0, 0), |(n, bytes), entry| (n + 1, bytes + entry.op.len() as u64));
            assert_eq!((row.unread, row.unread_bytes), (count, bytes), "{user}: {row:?}");
        }
    }

    /// The coordinates of a message and of its copies.
    fn copies(&self, at: Coord) -> BTreeSet<Coord> {
        let (envelope, op) = &self.messages[&at];
        let same = self.messages.iter().filter(|(_, (other, theirs))| {
            (&other.to, &other.from, other.id) == (&envelope.to, &envelope.from, envelope.id)
                && op.body() == theirs.body()
        });
        same.map(|(at, _)| *at).collect()
    }

    /// Both know the same of each device. When the last device consumed a message, or a copy of it, each store lets the
    /// cursors pass it as it removes it, so they may differ by what was consumed as a copy.
    fn check_devices(&self, user: &UserId, there: &UserRow, here: &UserRow) {
        let rest = |row: &UserRow| -> Vec<(DeviceId, DeviceRow)> {
            let devices = row.devices.iter();
            let rest = devices.map(|(device, row)| {
                let cursor = Vector::new();
                (
                    device.clone(),
                    DeviceRow {
                        cursor,
                        ..row.clone()
                    },
                )
            });
            rest.collect()
        };
        assert_eq!(rest(there), rest(here), "{user}");
        for (device, theirs) in &there.devices {
            let (theirs, ours) = (&theirs.cursor, &here.devices[device].cursor);
            assert!(
                self.includes(user, ours, (theirs, &there.trimmed))
                    && self.includes(user, theirs, (ours, &here.trimmed)),
                "{user}/{device}: {theirs:?} and {ours:?}"
            );
        }
    }

    /// Whether a cursor covers all that another one does, which is from where so much was removed.
    fn includes(&self, user: &UserId, cursor: &Vector, (other, trimmed): (&Vector, &Vector)) -> bool {
        other.iter().all(|(origin, to)| {
            let passed = cursor.of(origin);
            let between = self.messages.iter().filter(|(at, (envelope, _))| {
                envelope.to == *user && at.origin == origin && at.seq > passed && at.seq <= to
            });
            let mut between = between.map(|(at, _)| self.copies(*at));
            let copied = |copies: BTreeSet<Coord>| copies.iter().any(|at| cursor.covers(*at));
            passed >= to || (trimmed.of(origin) >= to && between.all(copied))
        })
    }

    /// Nothing that waits for a device is missing, what is gone is told, and cursors and logs are where they belong.
    pub(super) fn check_caught_up(&mut self, known: &[(UserId, DeviceId, Vector)]) {
        let (theirs, ours) = (self.provider.shard(), self.receiver.shard());
        for (origin, log) in &theirs.logs {
            let here = &ours.logs[origin];
            assert!(here.seq >= log.seq, "{origin:?} to {}, not {}", here.seq, log.seq);
            assert!(
                here.seq > log.seq || here.hash == log.hash,
                "{origin:?} has other bytes"
            );
        }
        for origin in ours.logs.keys() {
            self.check_log(*origin);
        }
        let mut known = known.to_vec();
        known.extend(self.cursors());
        for (user, device, cursor) in known {
            let here = self.receiver.user(&user).devices[&device].cursor.clone();
            let there = self.provider.user(&user).trimmed;
            assert!(
                self.includes(&user, &here, (&cursor, &there)),
                "{user}/{device}: {here:?}, not {cursor:?}"
            );
        }
        let applied = ours.applied();
        for name in USERS {
            let user = user(name);
            let (there, here) = (self.provider.user(&user), self.receiver.user(&user));
            let inbox: BTreeSet<Coord> = self.receiver.inbox(&user).iter().map(|entry| entry.at).collect();
            for entry in self.provider.inbox(&user) {
                // Of a device that came only here the provider does not know yet.
                let consumed = there.all_consumed(entry.at) || here.all_consumed(entry.at);
                let consumed = consumed || self.removed[&user].covers(entry.at) || in_hole(&here, entry.at);
                assert!(
                    consumed || inbox.contains(&entry.at),
                    "{} of {user} is missing",
                    entry.at
                );
            }
            let messages = self.messages.iter().filter(|(at, (envelope, _))| {
                envelope.to == user && applied.covers(**at) && !inbox.contains(at)
            });
            for (at, _) in messages {
                let gone = there.trimmed.covers(*at) || here.all_consumed(*at);
                let gone = gone || self.removed[&user].covers(*at);
                let gone = gone || in_hole(&there, *at) || in_hole(&here, *at);
                assert!(gone, "{at} of {user} is missing");
                let told = here.trimmed.covers(*at) || in_gap(&here, *at) || here.all_consumed(*at);
                let told = told || in_hole(&here, *at);
                assert!(told, "{at} of {user} is gone, and nobody is told: {here:?}");
            }
        }
    }

    /// From its floor to its end a log is gapless, and its hashes lead to one another.
    fn check_log(&mut self, origin: Origin) {
        let log = self.receiver.shard().logs[&origin].clone();
        let read = Read::Log {
            shard: S,
            origin,
            after: log.floor,
            max_items: 1_000,
            max_bytes: usize::MAX,
        };
        let ReadReply::Log(LogPage::Run { before, entries, end }) = self.receiver.read(&read) else {
            panic!("trimmed above its floor");
        };
        let (mut seq, mut hash) = (log.floor, log.floor_hash);
        assert_eq!((before, end), (hash, true));
        for entry in entries {
            (seq, hash) = (seq + 1, entry.op.running_hash(hash));
            assert_eq!((entry.seq, entry.hash), (seq, hash));
        }
        assert_eq!((seq, hash), (log.seq, log.hash));
    }

    /// Once it is open, both become the same, and answer for the same messages.
    pub(super) fn check_equal(&mut self) {
        let before = self.trimmed();
        for _ in 0..4 {
            self.round();
        }
        for side in [Provider, Receiver] {
            for of in 0..USERS.len() as u8 {
                self.live(side, &Life::Expire(of));
            }
            self.check_shape(side);
        }
        self.note_removed(&before);
        assert_eq!(self.provider.shard().applied(), self.receiver.shard().applied());
        for name in USERS {
            let user = user(name);
            let (there, here) = (self.provider.user(&user), self.receiver.user(&user));
            self.check_devices(&user, &there, &here);
            let inbox: BTreeSet<Coord> = self.receiver.inbox(&user).iter().map(|entry| entry.at).collect();
            // What is due is replaced in both.
            for (at, (envelope, _)) in self.messages.iter().filter(|(at, _)| in_hole(&there, **at)) {
                let gone =
                    here.all_consumed(*at) || self.removed[&user].covers(*at) || here.trimmed.covers(*at);
                let other = envelope.to != user || gone;
                assert!(other || in_hole(&here, *at), "{at} of {user} is in no hole");
            }
            for entry in self.provider.inbox(&user) {
                let at = entry.at;
                assert_eq!(self.messages[&at].0.expires_ms, 0, "{at} is due, and waits");
                assert!(
                    here.all_consumed(at) || inbox.contains(&at) || self.removed[&user].covers(at),
                    "{at} of {user} is missing"
                );
                if inbox.contains(&at) {
                    assert_eq!(
                        there.siblings.get(&at),
                        here.siblings.get(&at),
                        "copies of {at} of {user}"
                    );
                }
            }
        }
        let applied = self.provider.shard().applied();
        let messages: Vec<(Coord, Envelope, Bytes)> = self
            .messages
            .iter()
            .filter(|(at, _)| applied.covers(**at))
            .map(|(at, (envelope, op))| (*at, envelope.clone(), op.body()))
            .collect();
        for (at, envelope, body) in messages {
            for side in [Provider, Receiver] {
                let op = StoreOp::Append {
                    shard: S,
                    epoch: self.node(side).epoch,
                    envelope: Box::new(envelope.clone()),
                    body: body.clone(),
                    seen_ms: 0,
                    known_only: true,
                };
                let copies: BTreeSet<Coord> = self
                    .copies(at)
                    .into_iter()
                    .filter(|at| applied.covers(*at))
                    .collect();
                match self.one(side, op) {
                    Outcome::Duplicate(coords) => {
                        let coords: BTreeSet<Coord> = coords.into_iter().collect();
                        assert_eq!(coords, copies, "{at} at the {side:?}");
                    }
                    other => panic!("{at} at the {side:?}: {other:?}"),
                }
            }
        }
    }

    /// When all devices consumed everything, nothing is kept for them.
    pub(super) fn check_emptied(&mut self) {
        let applied = self.receiver.shard().applied();
        for name in USERS {
            let user = user(name);
            for device in self.receiver.user(&user).devices.into_keys() {
                let op = StoreOp::Cursor {
                    shard: S,
                    epoch: self.receiver.epoch,
                    user: user.clone(),
                    device,
                    cursor: applied.clone(),
                };
                self.own(Receiver, op);
            }
        }
        for _ in 0..4 {
            self.round();
        }
        for side in [Provider, Receiver] {
            self.check_shape(side);
            for name in USERS {
                let user = user(name);
                let row = self.node(side).user(&user);
                if !row.devices.is_empty() {
                    let inbox = self.node(side).inbox(&user);
                    assert_eq!(inbox, Vec::new(), "{user} at the {side:?}: {row:?}");
                    assert!(row.timed.is_empty(), "{user} at the {side:?}: {row:?}");
                    assert_eq!(row.siblings, BTreeMap::new(), "{user} at the {side:?}");
                }
            }
        }
    }
}

fn in_hole(row: &UserRow, at: Coord) -> bool {
    row.timed.hole_at(at).is_some()
}

fn in_gap(row: &UserRow, at: Coord) -> bool {
    let mut before = row.gaps.range((at.origin, 0)..=(at.origin, at.seq));
    before.next_back().is_some_and(|(_, to)| at.seq <= *to)
}
