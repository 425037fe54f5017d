//! How the periodic work of many shards goes to the store.

use super::*;

const SHARDS: u32 = 1024;
/// Those of the first part.
const PART: usize = SHARDS.div_ceil(PARTS) as usize;

fn at(ms: u64) -> Now {
    Now {
        mono: Mono(ms * 1000),
        ..NOW
    }
}

/// An owner of many shards, each with something to do.
fn busy() -> Owner {
    let config = OwnerConfig {
        durability: DurabilityPolicy::Region,
        me: addr("core"),
        sharding: Sharding {
            count: SHARDS,
            seed: 0,
        },
        holders: BTreeSet::from([RegionId::new("a").unwrap()]),
        limits: CoreLimits::default(),
    };
    let mut owner = Owner::new(config, NOW);
    owner.handle_placement((0..SHARDS).map(ShardId).collect(), NOW);
    while let Some(output) = owner.poll_output() {
        match output {
            OwnerOutput::Commit(_, tag) => {
                owner.handle_outcome(tag, Ok(Outcome::Bumped { epoch: Epoch(1) }), NOW);
            }
            OwnerOutput::Read(question) => {
                let row = ReadReply::Shard(Box::<ShardRow>::default());
                owner.handle_answer(question, Ok(row), NOW);
            }
            _ => {}
        }
    }
    assert!(owner.all_active());
    owner
}

/// What one commit would hold now: the tags of the periodic work.
fn batch(owner: &mut Owner) -> Vec<Tag> {
    let outputs = std::iter::from_fn(|| owner.poll_output());
    let tags = outputs.filter_map(|output| match output {
        OwnerOutput::Commit(_, tag @ Tag::Upkeep(_)) => Some(tag),
        _ => None,
    });
    tags.collect()
}

fn shards(tags: &[Tag]) -> BTreeSet<ShardId> {
    let shards = tags.iter().map(|tag| match tag {
        Tag::Upkeep(shard) => *shard,
        other => panic!("{other:?}"),
    });
    shards.collect()
}

#[test]
fn a_part_goes_to_the_store_a_few_shards_at_a_time() {
    let mut owner = busy();
    let step = CoreLimits::default().confirm_ms / u64::from(PARTS);
    owner.handle_timeout(at(step));
    let mut seen = BTreeSet::new();
    loop {
        let tags = batch(&mut owner);
        if tags.is_empty() {
            break;
        }
        let these = shards(&tags);
        assert!(these.len() <= PART / 3, "{} shards in one commit", these.len());
        for (left, tag) in tags
            .into_iter()
            .enumerate()
            .map(|(n, tag)| (2 * these.len() - n - 1, tag))
        {
            owner.handle_outcome(tag, Ok(Outcome::Done { more: false }), at(step));
            // Nothing more goes before all of it is done.
            assert!(left == 0 || batch(&mut owner).is_empty());
        }
        assert!(
            these.iter().all(|shard| seen.insert(*shard)),
            "{these:?} once more"
        );
    }
    assert_eq!(seen.len(), PART);
    assert!(seen.iter().all(|shard| shard.0 % PARTS == 0));
}

#[test]
fn a_slow_store_is_given_more_at_once_and_each_shard_once() {
    let mut owner = busy();
    let interval = CoreLimits::default().confirm_ms;
    // Nothing is answered for three intervals.
    for now in (0..=3 * interval).step_by(10) {
        owner.handle_timeout(at(now));
    }
    let (mut commits, mut seen) = (0, BTreeSet::new());
    loop {
        let tags = batch(&mut owner);
        if tags.is_empty() {
            break;
        }
        commits += 1;
        assert!(shards(&tags).iter().all(|shard| seen.insert(*shard)));
        for tag in tags {
            owner.handle_outcome(tag, Ok(Outcome::Done { more: false }), at(3 * interval));
        }
    }
    assert_eq!(seen.len(), SHARDS as usize);
    assert!(commits < 32, "{commits} commits");
}

#[test]
fn what_failed_is_tried_again_in_the_next_interval() {
    let mut owner = busy();
    let interval = CoreLimits::default().confirm_ms;
    let step = interval / u64::from(PARTS);
    owner.handle_timeout(at(step));
    for now in [at(step), at(step + interval)] {
        owner.handle_timeout(now);
        let mut seen = BTreeSet::new();
        loop {
            let tags = batch(&mut owner);
            seen.extend(shards(&tags).into_iter().filter(|shard| shard.0 % PARTS == 0));
            if tags.is_empty() {
                break;
            }
            for tag in tags {
                owner.handle_outcome(tag, Err(StoreError::Full("no room".to_owned())), now);
            }
        }
        assert_eq!(seen.len(), PART);
    }
}
