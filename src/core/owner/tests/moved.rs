//! Sessions that a plan moved here.

use super::*;

fn at(ms: u64) -> Now {
    Now {
        mono: Mono(ms * 1_000),
        wall_ms: NOW.wall_ms + ms,
    }
}

/// Bob's session, which was in a region of this origin.
fn moved(from: Origin, seq: u64) -> Script {
    let mut script = Script::new();
    script.open(1);
    let attach = Attach {
        after: [(from, seq)].into_iter().collect(),
        ..attach(1)
    };
    let pages = script.say(1, ToOwner::Attach(vec![attach]));
    assert!(pages.is_empty(), "it waits: {pages:?}");
    script
}

fn inboxes(pages: &[Question]) -> usize {
    let inbox = |question: &&Question| matches!(question, Question::Inbox { .. });
    pages.iter().filter(inbox).count()
}

fn applied(script: &mut Script, origin: Origin, seq: u64) {
    let logged = Logged {
        shard: SHARD,
        origin,
        region: RegionId::new("far").unwrap(),
        own: false,
        hlc: Hlc::default(),
        merged: false,
        entry: LogEntry {
            seq,
            hash: 0,
            op: message(seq),
        },
        siblings: Vec::new(),
    };
    script.owner.handle_committed(&[logged]);
}

#[test]
fn it_is_given_nothing_until_what_its_region_took_is_here() {
    let far = Origin(40);
    let mut script = moved(far, 2);
    applied(&mut script, far, 1);
    script.owner.handle_timeout(at(100));
    assert_eq!((inboxes(&script.run()), &script.given[..]), (0, &[][..]));
    applied(&mut script, far, 2);
    script.owner.handle_timeout(at(200));
    assert_eq!(inboxes(&script.run()), 1);
    script.owner.handle_timeout(at(300));
    assert_eq!(inboxes(&script.run()), 0, "once");
}

#[test]
fn it_does_not_wait_for_ever_for_a_region_that_was_lost() {
    let mut script = moved(Origin(40), 2);
    let limit = script.owner.config.limits.moved_timeout_ms;
    script.owner.handle_timeout(at(limit - 1));
    assert_eq!(inboxes(&script.run()), 0);
    script.owner.handle_timeout(at(limit + 100));
    assert_eq!(inboxes(&script.run()), 1);
}

#[test]
fn one_of_which_all_is_here_does_not_wait_and_where_it_was_the_position_is_told() {
    let far = Origin(40);
    let mut script = Script::new();
    script.open(1);
    applied(&mut script, far, 3);
    let attach = Attach {
        after: [(far, 3)].into_iter().collect(),
        ..attach(1)
    };
    let session = attach.session;
    assert_eq!(inboxes(&script.say(1, ToOwner::Attach(vec![attach]))), 1);
    let leave = Leave {
        shard: SHARD,
        session,
    };
    let edge = addr("edge");
    script
        .owner
        .handle_edge(&edge, 1, ToOwner::Leave(vec![leave]), NOW);
    let (_, told) = script.outputs();
    let after = Vector::new();
    assert!(
        told.contains(&ToEdge::Position { session, after }),
        "of its own origins alone: {told:?}"
    );
}
