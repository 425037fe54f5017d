//! What an owner holds for commits.

use super::*;

/// Bodies are bounded together, not only counted; one that is larger than the limit still gets through alone.
#[test]
fn deposits_are_bounded_by_bytes() {
    let mut script = Script::new();
    script.open(1);
    script.owner.config.limits.owner_deposit_bytes = 100;
    let mut send = |session: u64, bytes: usize| {
        let deposit = Deposit {
            shard: SHARD,
            attempt: 1,
            envelope: Envelope {
                session: SessionId(session),
                ..envelope(1)
            },
            body: Bytes::from(vec![0; bytes]),
        };
        let edge = addr("edge");
        script
            .owner
            .handle_edge(&edge, 1, ToOwner::Deposit(vec![deposit]), NOW);
        script.outputs()
    };
    let (first, _) = send(1, 500);
    assert_eq!(first.len(), 1, "alone it fits");
    let overloaded = |told: &[ToEdge]| {
        let ToEdge::Answers(answers) = &told[0] else {
            panic!("no answer: {told:?}");
        };
        matches!(
            answers[0].verdict,
            Verdict::Refused {
                code: Code::Overloaded,
                ..
            }
        )
    };
    let (none, told) = send(2, 1);
    assert!(none.is_empty() && overloaded(&told));
    let done = |script: &mut Script, tags: Vec<Tag>| {
        for tag in tags {
            let at = Coord {
                origin: ORIGIN,
                seq: 1,
            };
            script.owner.handle_outcome(tag, Ok(Outcome::Appended(at)), NOW);
        }
        script.outputs();
    };
    done(&mut script, first);
    assert_eq!(script.owner.stats().deposits.pending_bytes, 0);
    let mut send = |session: u64, bytes: usize| {
        let deposit = Deposit {
            shard: SHARD,
            attempt: 2,
            envelope: Envelope {
                session: SessionId(session),
                ..envelope(2)
            },
            body: Bytes::from(vec![0; bytes]),
        };
        let edge = addr("edge");
        script
            .owner
            .handle_edge(&edge, 1, ToOwner::Deposit(vec![deposit]), NOW);
        script.outputs()
    };
    assert_eq!(send(3, 60).0.len(), 1);
    assert_eq!(send(4, 40).0.len(), 1);
    let (none, told) = send(5, 1);
    assert!(none.is_empty() && overloaded(&told));
}
