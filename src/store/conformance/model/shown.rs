//! What a store shows of an inbox, against the reference.

use std::collections::{BTreeMap, BTreeSet};

use super::{Device, Message, Model};
use crate::core::ids::{Coord, Origin, UserId};
use crate::core::retire::IN_RETIRED;
use crate::core::storage::InboxHole;
use crate::store::engine::InboxEntry;

impl Model {
    /// Checks an inbox: nothing is missing that may not be, everything has the right bytes and stands in order.
    pub(crate) fn check_inbox(&self, user: &UserId, inbox: &[InboxEntry], holes: &[InboxHole]) {
        let present: BTreeSet<Coord> = inbox.iter().map(|entry| entry.at).collect();
        assert_eq!(present.len(), inbox.len(), "an entry comes twice");
        let mut told = BTreeSet::new();
        for hole in holes {
            let within = self.within(user, hole);
            let count = within.clone().count() as u64;
            assert_eq!(count, hole.row.count, "{hole:?} stands for other messages (R18)");
            for message in within {
                assert!(message.expired, "{} is in {hole:?}, and not due", message.at);
                assert!(told.insert(message.at), "{} is in two holes", message.at);
                let copies = hole.siblings.iter().filter(|(seq, _)| *seq == message.at.seq);
                let known: BTreeSet<Coord> = copies.flat_map(|(_, copies)| copies.clone()).collect();
                let mut copies = self.copies(message);
                copies.remove(&message.at);
                let remembered = |at: &Coord| self.messages.iter().any(|m| m.at == *at && m.remembered);
                let all = message.remembered && copies.iter().all(remembered);
                let copies = self.named(copies);
                assert!(known.is_subset(&copies), "siblings that are none");
                assert!(!all || known == copies, "{hole:?} forgot copies (R15, R18)");
            }
        }
        for message in self.messages.iter().filter(|m| m.to == *user) {
            let is = present.contains(&message.at);
            let stands = is || told.contains(&message.at);
            assert!(stands || message.may_go, "{} is gone (R10)", message.at);
            assert!(!(is && message.expired), "{} is due, and still there", message.at);
        }
        for entry in inbox {
            let message = self.messages.iter().find(|m| m.at == entry.at);
            let message = message.expect("what is in an inbox was logged");
            assert_eq!((&message.to, &message.op), (user, &entry.op));
            let mut copies = self.copies(message);
            copies.remove(&message.at);
            let copies = self.named(copies);
            let siblings: BTreeSet<Coord> = entry.siblings.iter().copied().collect();
            assert!(siblings.is_subset(&copies), "siblings that are none");
        }
        // Each origin in its order; between origins the lowest hybrid time among the heads.
        let mut rest: BTreeMap<Origin, Vec<&InboxEntry>> = BTreeMap::new();
        for entry in inbox {
            rest.entry(entry.at.origin).or_default().push(entry);
        }
        for entries in rest.values_mut() {
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.at.seq));
        }
        for entry in inbox {
            let heads = rest.values().filter_map(|entries| entries.last());
            let first = heads.min_by_key(|entry| (entry.op.hlc(), entry.at.origin));
            let first = first.expect("as many heads as entries").at;
            assert_eq!(entry.at, first, "delivery order");
            rest.get_mut(&first.origin).and_then(Vec::pop);
        }
    }

    /// Copies, those in retired origins as one that stands for them.
    fn named(&self, copies: BTreeSet<Coord>) -> BTreeSet<Coord> {
        let listed = copies.into_iter().map(|at| match self.lists(at.origin) {
            true => at,
            false => IN_RETIRED,
        });
        listed.collect()
    }

    /// The messages of a user that lie in a hole.
    fn within<'a>(&'a self, user: &'a UserId, hole: &InboxHole) -> impl Iterator<Item = &'a Message> + Clone {
        let (origin, range) = (hole.at.origin, hole.at.seq..=hole.row.to);
        let messages = self.messages.iter();
        messages.filter(move |m| m.to == *user && m.at.origin == origin && range.contains(&m.at.seq))
    }

    /// After all was trimmed and removed: nothing consumed and stable is left, of each origin in its order.
    pub(crate) fn check_settled(&self, user: &UserId, inbox: &[InboxEntry], holes: &[InboxHole]) {
        let mut seen = BTreeSet::new();
        let mut entries: Vec<Coord> = inbox.iter().map(|entry| entry.at).collect();
        entries.extend(holes.iter().map(|hole| hole.at));
        entries.sort_unstable();
        for at in entries {
            if !seen.insert(at.origin) {
                continue;
            }
            if let Some(hole) = holes.iter().find(|hole| hole.at == at) {
                assert!(
                    !self.hole_consumed(user, hole),
                    "{hole:?} of {user} is consumed, and still there"
                );
                continue;
            }
            let index = self.messages.iter().position(|m| m.at == at).expect("logged");
            let stable = at.seq <= self.stable(at.origin);
            assert!(
                !(stable && self.consumed(index) && self.knows_copies(index)),
                "{at} of {user} is stable and consumed, and still there"
            );
        }
    }

    /// Whether there is a device and each passed the hole, or consumed a copy of each message in it.
    fn hole_consumed(&self, user: &UserId, hole: &InboxHole) -> bool {
        let of_user = self.devices.iter();
        let of_user = of_user.filter(|((of, _), device)| of == user && !device.expired);
        let mut devices = of_user.map(|(_, device)| device).peekable();
        let end = Coord {
            seq: hole.row.to,
            ..hole.at
        };
        let copied = |device: &Device| {
            let copied = |m: &Message| {
                let mut copies = self.copies(m);
                copies.remove(&m.at);
                m.remembered && copies.iter().any(|at| self.covers(device, *at))
            };
            !device.covers(hole.at) && self.within(user, hole).all(copied)
        };
        devices.peek().is_some() && devices.all(|device| device.covers(end) || copied(device))
    }

    /// Copies that were logged when the id was forgotten do not know each other.
    fn knows_copies(&self, index: usize) -> bool {
        let message = &self.messages[index];
        let alone = self.copies(message).len() == 1;
        alone || message.remembered
    }
}
