//! Digests: equal exactly where the same is live, whatever happened before, and a way down to what differs.

use super::*;
use crate::core::presence::digest::At;

/// Everything that two tables differ in, looked for as two regions do: keys of items.
fn found(a: &Presence, b: &Presence, salt: u32) -> BTreeSet<u32> {
    let mut differing = BTreeSet::new();
    let mut nodes = vec![Node::ROOT];
    let (mut teller, mut hearer) = (a, b);
    while !nodes.is_empty() {
        let mut below = Vec::new();
        for node in nodes {
            match teller.tell(node, salt) {
                Told::Sums(sums) => below.extend(hearer.differing(node, &sums, salt)),
                Told::List(sum, items) => {
                    let _ = sum;
                    let theirs: BTreeSet<Item> = items.into_iter().collect();
                    let ours: BTreeSet<Item> = hearer.items_of(node).collect();
                    differing.extend(theirs.symmetric_difference(&ours).map(|item| item.key));
                }
            }
        }
        nodes = below;
        std::mem::swap(&mut teller, &mut hearer);
    }
    differing
}

fn live_of(presence: &Presence) -> BTreeSet<Vec<u8>> {
    let all = everything(presence);
    let live = all.iter().filter(|entry| entry.value().is_some());
    live.map(Entry::encode).collect()
}

prop_compose! {
    /// One of 300 users, of few versions.
    fn somebody()(user in 0..300_u16, epoch in 1..4_u64, session in 0..2_u64, counter in 0..3_u64, proved: bool) -> Entry {
        let user = UserId::new(&format!("user-{user}")).expect("a valid id");
        let device = DeviceId::new("d").expect("a valid id");
        let session = SessionId(session << 40);
        if counter == 2 {
            Entry::ended(user, device, epoch, session).expect("a valid epoch")
        } else {
            let live = live(1, Status::Online, 7);
            Entry::live(user, device, (epoch, session, counter, proved), live).expect("a valid epoch")
        }
    }
}

proptest! {
    #[test]
    fn digests_are_equal_exactly_where_the_same_is_live(
        a in vec(somebody(), 0..40), b in vec(somebody(), 0..40), salt: u32, swap: bool
    ) {
        let (one, other) = (merged(&a), if swap {
            let mut back = a.clone();
            back.reverse();
            merged(&back)
        } else {
            merged(&b)
        });
        let same = live_of(&one) == live_of(&other);
        prop_assert_eq!(one.digest().sum == other.digest().sum, same);
        let told = |presence: &Presence| presence.sum_of(Node::ROOT, salt);
        prop_assert!(!same || told(&one) == told(&other));
        prop_assert_eq!(one.digest().blank, a.is_empty());
        prop_assert!(!swap || same, "the order made a difference");
    }

    #[test]
    fn what_differs_is_found(
        common in vec(somebody(), 0..200), a in vec(somebody(), 0..20), b in vec(somebody(), 0..20), salt: u32
    ) {
        let (one, other) = (merged(&[common.clone(), a].concat()), merged(&[common, b].concat()));
        let items = |presence: &Presence| presence.items_of(Node::ROOT).collect::<BTreeSet<Item>>();
        let (ours, theirs) = (items(&one), items(&other));
        let expected: BTreeSet<u32> = ours.symmetric_difference(&theirs).map(|item| item.key).collect();
        prop_assert_eq!(&found(&one, &other, salt), &expected);
        prop_assert_eq!(&found(&other, &one, salt), &expected);
    }

    /// A sum that is kept with each change is the one that is made anew, also where ends are dropped.
    #[test]
    fn a_digest_is_kept_up(entries in vec(somebody(), 0..80)) {
        let kept = merged(&entries);
        let anew = merged(&everything(&kept));
        prop_assert_eq!(kept.digest(), anew.digest());
        let mut after: Option<At> = None;
        let mut pages = 0;
        loop {
            let page = kept.live_above(after.as_ref(), 7);
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            pages += page.len();
        }
        prop_assert_eq!(pages, live_of(&kept).len());
    }

    /// Which of two is the newer one follows from an item as from the record, but for the lower half of a session.
    #[test]
    fn an_item_is_judged_as_the_record(known in somebody(), other in somebody()) {
        let other = Entry::live(
            known.user().clone(),
            known.device().clone(),
            (other.version().connect_epoch, other.version().session, other.version().counter().unwrap_or(5), false),
            live(1, Status::Online, 7),
        ).expect("a valid epoch");
        let (mut here, there) = (merged(std::slice::from_ref(&known)), merged(std::slice::from_ref(&other)));
        let item = there.items_of(Node::ROOT).next().expect("it is live");
        let judged = here.judge(&item);
        let expected = match here.merge(other) {
            MergeOutcome::Newer => Judgement::Newer,
            MergeOutcome::Older if !known.version().is_proved() || known.version().counter() != Some(item.counter) => {
                Judgement::Older
            }
            _ => judged,
        };
        prop_assert_eq!(judged, expected);
        let stranger = Item { key: item.key ^ 1, ..item };
        prop_assert_eq!(here.judge(&stranger), Judgement::Newer);
    }
}

#[test]
fn a_session_attached_here_makes_no_other_digest_than_one_elsewhere() {
    let mut here = Presence::new(region(0));
    for n in 0..20 {
        here.admit(admission(&key(n, 0), 0, u64::from(n), 5, NEW))
            .expect("a new session");
    }
    let mut there = Presence::new(region(1));
    everything(&here).into_iter().for_each(|entry| {
        there.merge(entry);
    });
    assert_eq!(here.digest(), there.digest());
    let changed = (Status::Dnd, StatusText::lossy("busy"));
    here.set_status(&key(3, 0).0, &key(3, 0).1, SessionId(3), 1, changed);
    assert_ne!(here.digest(), there.digest());
    everything(&here).into_iter().for_each(|entry| {
        there.merge(entry);
    });
    assert_eq!(here.digest(), there.digest());
}

/// Ends beyond the limits are dropped, each region its own: digests do not see it.
#[test]
fn ends_that_are_dropped_change_nothing() {
    let mut presence = Presence::new(region(0));
    presence.merge(
        Entry::live(
            key(0, 0).0,
            key(0, 0).1,
            (1, SessionId(1), 0, false),
            live(1, Status::Away, 1),
        )
        .expect("valid"),
    );
    let before = presence.digest();
    for n in 0..MAX_TERMINALS_PER_USER as u64 + 10 {
        let device = DeviceId::new(&format!("gone-{n}")).expect("a valid id");
        presence.merge(Entry::ended(key(0, 0).0, device, 1, SessionId(n)).expect("valid"));
        assert_eq!(presence.digest(), before);
    }
    assert_eq!(presence.counters().evicted, 10);
    assert_eq!(
        presence
            .records_under(presence.items_of(Node::ROOT).next().expect("live").key)
            .count(),
        1
    );
}

#[test]
fn nodes_end_where_a_key_does() {
    let node = |raw: u64| {
        rmp_serde::from_slice::<Node>(&rmp_serde::to_vec(&raw).expect("encodes")).expect("a number")
    };
    let mut last = Node::ROOT;
    for _ in 0..16 {
        last = last.children().expect("not the end")[3];
    }
    assert_eq!(last, node((1 << 33) - 1));
    assert!(last.is_valid() && last.children().is_none());
    for wrong in [0, 2, 3, 1 << 33, 1 << 34, u64::MAX] {
        assert!(
            !node(wrong).is_valid() && node(wrong).children().is_none(),
            "{wrong}"
        );
        // Nothing to look at, and nothing breaks.
        let _ = Presence::new(region(0)).tell(node(wrong), 1);
    }
}
