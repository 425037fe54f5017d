//! Reads that wait for their turn at the store.

use super::*;
use crate::core::ids::{Epoch, NodeName};
use crate::core::members::Member;
use crate::core::owner::DurabilityPolicy;

const NOW: Now = Now {
    mono: Mono(0),
    wall_ms: 1_700_000_000_000,
};

fn tokens(partition: &mut Partition) -> (Vec<(u64, usize)>, Vec<u64>) {
    let (mut commits, mut reads) = (Vec::new(), Vec::new());
    while let Some(output) = partition.poll_output() {
        match output {
            Output::Commit { token, ops, .. } => commits.push((token, ops.len())),
            Output::Read { token, .. } => reads.push(token),
            _ => {}
        }
    }
    (commits, reads)
}

/// A store that is asked much at once has a bounded queue: the rest waits here, in order, and nothing is left out.
#[test]
fn reads_wait_for_their_turn() {
    const SHARDS: u32 = 20;
    const AT_ONCE: usize = 3;
    let node = NodeKey {
        region: RegionId::new("a").unwrap(),
        node: NodeName::new("core").unwrap(),
    };
    let config = PartitionConfig {
        durability: DurabilityPolicy::Region,
        me: Addr {
            node: node.clone(),
            partition: 0,
        },
        generation: Generation(1),
        sharding: Sharding {
            count: SHARDS,
            seed: 0,
        },
        holders: [node.region.clone()].into(),
        limits: CoreLimits {
            store_reads: AT_ONCE,
            ..CoreLimits::default()
        },
        core: true,
        edge: false,
    };
    let mut partition = Partition::new(config, [0; 32], NOW);
    let member = Member {
        key: node,
        generation: Generation(1),
        partitions: 1,
        core: true,
        edge: false,
        ready: true,
        client: None,
    };
    partition.handle(Input::Members(Members::new([member])), NOW);
    let (commits, reads) = tokens(&mut partition);
    assert!(reads.is_empty());
    let (token, ops) = commits[0];
    let outcomes = vec![Outcome::Bumped { epoch: Epoch(1) }; ops];
    let result = Ok(Committed {
        outcomes,
        logged: Vec::new(),
    });
    partition.handle(Input::Committed { token, result }, NOW);
    // The head of each shard is asked for.
    let (mut open, mut asked) = (VecDeque::new(), 0);
    loop {
        let (_, reads) = tokens(&mut partition);
        asked += reads.len();
        open.extend(reads);
        assert!(open.len() <= AT_ONCE, "{} at once", open.len());
        assert!(open.len() == AT_ONCE || asked == SHARDS as usize);
        let Some(token) = open.pop_front() else { break };
        let result = Ok(ReadReply::Shard(Box::default()));
        partition.handle(Input::Answered { token, result }, NOW);
    }
    assert!(partition.owner().all_active());
    assert_eq!(partition.owner().active_count(), SHARDS as usize);
}
