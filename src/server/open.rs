//! Opens the store that a configuration names: the embedded engine in the node's data folder.

use std::collections::BTreeSet;

use super::config::NodeConfig;
use super::folder::NodeFolder;
use super::node::{Create, Damage};
use crate::core::ids::{Origin, RegionId, ShardId, Sharding};
use crate::core::state::StoreIdentity;
use crate::store::embedded::{Options, folder as embedded};
use crate::store::engine::{Engine, Read, ReadReply};

/// What the store must be.
pub(super) struct Wanted {
    pub(super) cluster: u128,
    pub(super) sharding: Sharding,
    pub(super) region: RegionId,
    pub(super) holders: BTreeSet<RegionId>,
    /// A number never used before: each start logs under an origin of its own (R1).
    pub(super) origin: Origin,
}

/// Opens or makes it, away from the threads of the runtime: a journal may have to be replayed.
pub(super) async fn open(
    config: &NodeConfig,
    folder: &NodeFolder,
    wanted: Wanted,
    create: Create,
    damage: Damage,
) -> Result<Box<dyn Engine>, String> {
    let identity = StoreIdentity {
        cluster: wanted.cluster,
        region: wanted.region,
        origin: wanted.origin,
        holders: wanted.holders,
        sharding: wanted.sharding,
        limits: config.store_limits(),
        joining: create.joins(),
    };
    let options = Options {
        segment_bytes: config.store.segment_bytes,
        checkpoint_bytes: config.store.checkpoint_bytes,
        memory_bytes: usize::try_from(config.store.memory_bytes).unwrap_or(usize::MAX),
        cache_bytes: config.store.cache_bytes,
        cut_at_damage: damage == Damage::Cut,
        ..Options::default()
    };
    let path = folder.path().to_owned();
    let opened = tokio::task::spawn_blocking(move || -> Result<Box<dyn Engine>, String> {
        let exists = embedded::exists(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if !exists && create != Create::No {
            let engine = embedded::create(&path, identity, options).map_err(|error| error.to_string())?;
            return Ok(Box::new(engine));
        }
        let (engine, report) = embedded::open(&path, identity, options).map_err(|error| error.to_string())?;
        if let Some(tail) = &report.journal.tail {
            tracing::warn!(
                ?tail,
                "the journal's last record was not whole and was not acknowledged: it is dropped"
            );
        }
        if let Some(cut) = &report.journal.cut {
            tracing::error!(
                ?cut,
                "the journal was cut at its damage: what was committed behind it is lost here; other regions keep what they \
                 had of it"
            );
        }
        tracing::info!(
            covered = report.covered,
            replayed = report.journal.replayed,
            bytes = report.journal.bytes,
            "the store is open"
        );
        Ok(Box::new(engine))
    });
    opened
        .await
        .map_err(|error| format!("opening the store panicked: {error}"))?
}

/// Whether the files name every region that keeps a shard. A region that was removed runs on, so that the others get what
/// only it has (R13).
pub(super) fn check_holders(engine: &mut dyn Engine, files: &BTreeSet<&str>) -> Result<(), String> {
    let first = engine.identity().holders.clone();
    let (me, count) = (engine.identity().region.clone(), engine.identity().sharding.count);
    let mut removed = 0;
    for shard in (0..count).map(ShardId) {
        let row = match engine.read(&Read::Shard(shard)) {
            Ok(ReadReply::Shard(row)) => row,
            Ok(_) => return Err("the store answered another question".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        removed += u32::from(row.is_out(&me));
        let partners = row.partners(&first);
        let missing = partners
            .iter()
            .find(|region| **region != me && !files.contains(region.as_str()));
        if let Some(missing) = missing {
            return Err(format!(
                "region {missing} keeps shard {shard} as far as this store knows, and no file in the folder of regions says where \
                 it is: add its file. If the region was removed while this node was down (iris region list, at a node that runs), \
                 add it until this node has learned of that, and delete it then; else remove the region first (iris region \
                 remove {missing})"
            ));
        }
    }
    if removed > 0 {
        tracing::warn!(
            region = %me,
            shards = removed,
            "this region was removed from the cluster: it serves what others lack of it and takes no clients; to come back it \
             needs an empty store (--create) and iris region add"
        );
    }
    Ok(())
}
