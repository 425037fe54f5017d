//! Which node of a region owns a shard, and which partition of that node runs it.
//!
//! Rendezvous (highest random weight) hashing: Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
//! 1998. Each node has a weight for each shard and the greatest owns it, so a node that joins or leaves moves only the
//! shards that it gains or had. Nodes need only agree on the set of nodes; no table is kept.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ids::{NodeName, ShardId};

/// The owner of a shard among a region's ready core nodes, with the seed of the sharding; `None` without nodes. The order
/// of `nodes` is of no account.
pub fn owner(shard: ShardId, nodes: &[NodeName], seed: u64) -> Option<&NodeName> {
    let seed = xxh3_64_with_seed(&shard.0.to_be_bytes(), seed);
    // Names are unique in a region; they decide in the unlikely case of equal weights.
    nodes
        .iter()
        .max_by_key(|node| (xxh3_64_with_seed(node.as_str().as_bytes(), seed), *node))
}

/// The partition of its owner that runs a shard, for a node of `partitions` (0 counts as 1).
pub fn partition(shard: ShardId, partitions: u8) -> u8 {
    (shard.0 % u32::from(partitions.max(1))) as u8
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::core::ids::DEFAULT_SHARDS;

    fn nodes(range: std::ops::Range<usize>) -> Vec<NodeName> {
        range
            .map(|i| NodeName::new(&format!("core-{i}")).expect("a valid name"))
            .collect()
    }

    fn placed(seed: u64, nodes: &[NodeName]) -> Vec<&NodeName> {
        (0..DEFAULT_SHARDS)
            .map(|shard| owner(ShardId(shard), nodes, seed).expect("there are nodes"))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn only_the_shards_of_a_node_that_leaves_move(seed: u64, count in 2..9_usize, gone in 0..9_usize) {
            let all = nodes(0..count);
            let gone = &all[gone % count];
            let rest: Vec<_> = all.iter().filter(|node| *node != gone).cloned().collect();
            let (before, after) = (placed(seed, &all), placed(seed, &rest));
            for (was, is) in before.iter().zip(&after) {
                // Read from right to left this is a node that joins: what moves, moves to it.
                prop_assert!(was == is || *was == gone);
            }
            let targets: BTreeSet<_> =
                before.iter().zip(&after).filter(|(was, _)| **was == gone).map(|(_, is)| *is).collect();
            prop_assert_eq!(targets.len(), rest.len(), "the shards of a lost node spread over all others");
        }

        #[test]
        fn shards_are_balanced(seed: u64, count in 1..9_usize) {
            let all = nodes(0..count);
            let mut owned: BTreeMap<&NodeName, f64> = BTreeMap::new();
            for node in placed(seed, &all) {
                *owned.entry(node).or_default() += 1.0;
            }
            let share = 1.0 / count as f64;
            let mean = f64::from(DEFAULT_SHARDS) * share;
            // Binomial: six standard deviations are left about once in 10^9 times.
            let bound = 6.0 * (mean * (1.0 - share)).sqrt() + 1e-9;
            for node in &all {
                let have = owned.get(node).copied().unwrap_or_default();
                prop_assert!((have - mean).abs() <= bound, "{node} owns {have} of a mean of {mean}");
            }
        }

        #[test]
        fn the_order_of_nodes_is_of_no_account(seed: u64, all in Just(nodes(0..7)).prop_shuffle()) {
            let sorted = nodes(0..7);
            prop_assert_eq!(placed(seed, &all), placed(seed, &sorted));
        }
    }

    #[test]
    fn owners_are_fixed_by_seed_and_names() {
        // Nodes of different builds must agree: a change here is a change of the format.
        let all = nodes(0..3);
        let owners: Vec<_> = (0..8)
            .map(|shard| owner(ShardId(shard), &all, 7).map(NodeName::as_str))
            .collect();
        let expected = [1, 0, 1, 2, 1, 1, 0, 2].map(|node: usize| Some(all[node].as_str()));
        assert_eq!(owners, expected);
        assert_eq!(owner(ShardId(0), &[], 7), None);
    }

    #[test]
    fn partitions_cover_all_shards_evenly() {
        assert_eq!(partition(ShardId(5), 0), 0);
        assert_eq!(partition(ShardId(5), 1), 0);
        assert_eq!(partition(ShardId(5), 2), 1);
        assert_eq!(partition(ShardId(u32::MAX), 255), (u32::MAX % 255) as u8);
    }
}
