//! Which node of a region owns a shard: rendezvous hashing.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ids::{NodeName, ShardId};

/// The owner of a shard among nodes: highest random weight (Thaler and Ravishankar, 1998), so that a node that comes or
/// goes moves only its own shards. `None` without nodes.
pub fn owner<'a>(shard: ShardId, nodes: &'a [NodeName], seed: u64) -> Option<&'a NodeName> {
    nodes.iter().max_by_key(|node| {
        let seed = xxh3_64_with_seed(&shard.0.to_be_bytes(), seed);
        (xxh3_64_with_seed(node.as_str().as_bytes(), seed), *node)
    })
}

/// The partition of a node that a shard belongs to.
pub fn partition(shard: ShardId, partitions: u8) -> u8 {
    (shard.0 % u32::from(partitions.max(1))) as u8
}
