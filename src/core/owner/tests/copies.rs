//! Messages that are accepted only once another region has them.

use super::*;
use crate::core::limits::ms;
use crate::core::wire::Durability;

fn script(without: WithoutCopy) -> Script {
    let mut script = Script::new();
    script.open(1);
    script.owner.config.durability = DurabilityPolicy::Geo(without);
    let holders: BTreeSet<RegionId> = ["a", "b", "c"].map(|id| RegionId::new(id).unwrap()).into();
    script.owner.config.holders = holders.clone();
    script.owner.partners.staying = holders;
    script.owner.shards.get_mut(&SHARD).unwrap().own.insert(ORIGIN);
    script
}

fn at(seq: Seq) -> Coord {
    Coord { origin: ORIGIN, seq }
}

/// Deposits one message in an attempt; its commit, and what the edge is told.
fn deposit(script: &mut Script, seq: u64, attempt: u32) -> (Vec<Tag>, Vec<ToEdge>) {
    let deposit = Deposit {
        shard: SHARD,
        attempt,
        envelope: envelope(seq),
        body: Bytes::new(),
    };
    let edge = addr("edge");
    script
        .owner
        .handle_edge(&edge, 1, ToOwner::Deposit(vec![deposit]), NOW);
    script.outputs()
}

fn verdicts(told: Vec<ToEdge>) -> Vec<Verdict> {
    let answers = told.into_iter().filter_map(|told| match told {
        ToEdge::Answers(answers) => Some(answers),
        _ => None,
    });
    answers.flatten().map(|answer| answer.verdict).collect()
}

fn accepted(seq: Seq, duplicate: bool, durability: Durability) -> Verdict {
    Verdict::Accepted {
        at: at(seq),
        duplicate,
        durability,
    }
}

/// Commits what was deposited, as far as the own store goes.
fn stored(script: &mut Script, tags: Vec<Tag>, outcome: &Outcome) -> Vec<Verdict> {
    for tag in tags {
        script.owner.handle_outcome(tag, Ok(outcome.clone()), NOW);
    }
    verdicts(script.outputs().1)
}

fn copied(script: &mut Script, seq: Seq) -> Vec<Verdict> {
    script.owner.handle_copied(SHARD, ORIGIN, seq);
    verdicts(script.outputs().1)
}

/// Time goes on to when copies are given up, or to just before.
fn pass(script: &mut Script, more_us: i64) -> Vec<Verdict> {
    let after = ms(script.owner.config.limits.geo_timeout_ms);
    let later = Now {
        mono: Mono((NOW.mono + after).0.saturating_add_signed(more_us)),
        ..NOW
    };
    script.owner.handle_timeout(later);
    verdicts(script.outputs().1)
}

fn unavailable(verdicts: &[Verdict]) -> bool {
    matches!(
        verdicts,
        [Verdict::Refused {
            code: Code::Unavailable,
            ..
        }]
    )
}

fn cut_off(script: &mut Script, regions: &[&str]) {
    for region in regions {
        script
            .owner
            .handle_reach(&RegionId::new(region).unwrap(), Some(NOW.wall_ms));
    }
    script.outputs();
}

#[test]
fn a_message_is_accepted_when_another_region_has_it() {
    let mut script = script(WithoutCopy::Refuse);
    let (tags, _) = deposit(&mut script, 1, 1);
    assert_eq!(stored(&mut script, tags, &Outcome::Appended(at(5))), []);
    assert_eq!(script.owner.stats().deposits.pending, 1);
    assert_eq!(copied(&mut script, 4), [], "the copy ends before it");
    assert_eq!(copied(&mut script, 5), [accepted(5, false, Durability::Geo)]);
    assert_eq!(script.owner.stats().deposits.pending, 0);
    // What is there already is answered at once.
    let (tags, _) = deposit(&mut script, 2, 1);
    let answers = stored(&mut script, tags, &Outcome::Duplicate(vec![at(3)]));
    assert_eq!(answers, [accepted(3, true, Durability::Geo)]);
    // A region that lost its store has less: nothing more counts as copied.
    assert_eq!(copied(&mut script, 0), []);
    let (tags, _) = deposit(&mut script, 3, 1);
    assert_eq!(stored(&mut script, tags, &Outcome::Duplicate(vec![at(3)])), []);
    assert_eq!(copied(&mut script, 9), [accepted(3, true, Durability::Geo)]);
    assert_eq!(pass(&mut script, 0), [], "each is answered once");
}

#[test]
fn a_message_that_no_other_region_takes_in_time_is_to_be_sent_again() {
    let mut script = script(WithoutCopy::Refuse);
    let (tags, _) = deposit(&mut script, 1, 1);
    assert_eq!(stored(&mut script, tags, &Outcome::Appended(at(5))), []);
    assert_eq!(pass(&mut script, -1), []);
    assert!(unavailable(&pass(&mut script, 0)));
    assert_eq!(script.owner.stats().deposits.pending, 0);
    // It comes again, is known, and waits once more.
    let (tags, _) = deposit(&mut script, 1, 2);
    assert_eq!(stored(&mut script, tags, &Outcome::Duplicate(vec![at(5)])), []);
    assert_eq!(copied(&mut script, 5), [accepted(5, true, Durability::Geo)]);
}

#[test]
fn where_no_other_region_can_be_reached_nothing_is_taken() {
    let mut script = script(WithoutCopy::Refuse);
    cut_off(&mut script, &["b"]);
    assert_eq!(deposit(&mut script, 1, 1).0.len(), 1, "one of two is enough");
    cut_off(&mut script, &["c"]);
    let (tags, told) = deposit(&mut script, 2, 1);
    assert!(tags.is_empty() && unavailable(&verdicts(told)));
}

#[test]
fn what_is_accepted_in_the_region_alone_says_so() {
    let mut script = script(WithoutCopy::AcceptAsRegion);
    let (tags, _) = deposit(&mut script, 1, 1);
    assert_eq!(stored(&mut script, tags, &Outcome::Appended(at(5))), []);
    assert_eq!(pass(&mut script, 0), [accepted(5, false, Durability::Region)]);
    // With nobody to wait for there is no wait.
    cut_off(&mut script, &["b", "c"]);
    let (tags, _) = deposit(&mut script, 2, 1);
    let answers = stored(&mut script, tags, &Outcome::Appended(at(6)));
    assert_eq!(answers, [accepted(6, false, Durability::Region)]);
    assert_eq!(script.owner.stats().deposits.alone, 2);
}
