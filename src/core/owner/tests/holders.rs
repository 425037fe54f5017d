//! Changes of the holders (R13), and holders that are away (R12).

use super::*;
use crate::core::holders::{HolderSet, HoldersChange};

fn region(id: &str) -> RegionId {
    RegionId::new(id).unwrap()
}

fn at(ms: u64) -> Now {
    Now {
        mono: Mono(ms * 1_000),
        wall_ms: NOW.wall_ms + ms,
    }
}

/// An owner of two shards in one of three regions.
fn owner() -> Owner {
    Owner::new(
        OwnerConfig {
            durability: DurabilityPolicy::Region,
            me: addr("core"),
            sharding: Sharding { count: 2, seed: 0 },
            holders: ["a", "b", "c"].map(region).into(),
            limits: CoreLimits::default(),
        },
        NOW,
    )
}

/// Answers heads with these rows; gives every other output.
fn take_over(owner: &mut Owner, rows: &BTreeMap<ShardId, ShardRow>, now: Now) -> Vec<OwnerOutput> {
    let mut rest = Vec::new();
    while let Some(output) = owner.poll_output() {
        match output {
            OwnerOutput::Commit(StoreOp::Bump { .. }, tag) => {
                owner.handle_outcome(tag, Ok(Outcome::Bumped { epoch: Epoch(1) }), now);
            }
            OwnerOutput::Commit(StoreOp::Holders { .. }, _) => rest.push(output),
            OwnerOutput::Commit(_, tag) => {
                owner.handle_outcome(tag, Ok(Outcome::Done { more: false }), now);
            }
            OwnerOutput::Read(question) => {
                let row = match question {
                    Question::Head(shard, ..) => rows.get(&shard).cloned().unwrap_or_default(),
                    _ => continue,
                };
                owner.handle_answer(question, Ok(ReadReply::Shard(Box::new(row))), now);
            }
            output => rest.push(output),
        }
    }
    rest
}

/// Without the region that is gone nobody could end the waiting for it, were it forgotten where a node starts again.
#[test]
fn a_change_that_did_not_come_to_every_shard_goes_on_after_a_start_with_who_is_gone() {
    let set = HolderSet {
        version: 2,
        new: ["a", "b"].map(region).into(),
        old: BTreeSet::new(),
        at: BTreeSet::from([Coord {
            origin: Origin(3),
            seq: 8,
        }]),
        settled: true,
        leaving: BTreeMap::new(),
        gone: BTreeSet::from([region("c")]),
    };
    let mut changed = ShardRow::default();
    changed.holding.set = Some(set);
    let rows = BTreeMap::from([(ShardId(1), changed)]);
    let mut owner = owner();
    owner.handle_placement(BTreeSet::from([ShardId(0), ShardId(1)]), NOW);
    take_over(&mut owner, &rows, NOW);
    assert!(owner.all_active());

    let (mut told, mut proposed) = (Vec::new(), Vec::new());
    for second in 1..20 {
        owner.handle_timeout(at(second * 1_000));
        for output in take_over(&mut owner, &rows, at(second * 1_000)) {
            match output {
                OwnerOutput::Regions(partners) => told.push(partners),
                OwnerOutput::Commit(StoreOp::Holders { shard, change, .. }, _) => {
                    proposed.push((shard, change));
                }
                _ => {}
            }
        }
    }
    let change = HoldersChange {
        version: 2,
        set: ["a", "b"].map(region).into(),
        gone: BTreeSet::from([region("c")]),
    };
    assert_eq!(proposed.first(), Some(&(ShardId(0), change.clone())));
    // Links know once who takes part, and by which change: the region that went counts in the other shard still.
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].change, Some(change));
    assert!(told[0].all.contains(&region("c")) && !told[0].staying.contains(&region("c")));
}

/// What a full shard refuses is logged by nobody, and nothing else would have anybody look whether it was trimmed.
#[test]
fn a_full_shard_is_looked_at_although_nothing_happens() {
    let looks = |full: bool| {
        let mut owner = owner();
        owner.handle_placement(BTreeSet::from([SHARD]), NOW);
        take_over(&mut owner, &BTreeMap::new(), NOW);
        owner.shards.get_mut(&SHARD).unwrap().holders.full = full;
        let mut looks = 0;
        for second in 1..10 {
            owner.handle_timeout(at(second * 1_000));
            while let Some(output) = owner.poll_output() {
                if let OwnerOutput::Commit(StoreOp::Mark { .. }, tag) = output {
                    looks += 1;
                    let (marked, full) = (BTreeSet::new(), false);
                    owner.handle_outcome(tag, Ok(Outcome::Marked { marked, full }), NOW);
                }
            }
        }
        looks
    };
    assert_eq!(looks(true), 1);
    assert_eq!(looks(false), 0);
}

/// An edge without sessions learns in no other way that nobody serves a shard here.
#[test]
fn an_edge_that_has_told_all_hears_which_shards_are_not_served_here() {
    let mut script = Script::new();
    script.open(1);
    script.outputs();
    script
        .owner
        .handle_edge(&addr("edge"), 1, ToOwner::Synced(vec![SHARD, ShardId(5)]), NOW);
    let (_, told) = script.outputs();
    assert_eq!(told, [ToEdge::NotOwner(vec![ShardId(5)])]);
}
