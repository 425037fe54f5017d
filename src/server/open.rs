//! Opens the store that a configuration names.

use std::collections::BTreeSet;

use super::config::NodeConfig;
use super::folder::NodeFolder;
use super::node::Create;
use crate::core::ids::{Origin, RegionId, Sharding};
use crate::core::state::StoreIdentity;
use crate::store::engine::Engine;
use crate::store::memory::{MemoryDisk, MemoryEngine};

pub(super) async fn open(
    config: &NodeConfig,
    _folder: &NodeFolder,
    cluster: u128,
    sharding: Sharding,
    region: &RegionId,
    holders: &BTreeSet<RegionId>,
    _create: Create,
) -> Result<Box<dyn Engine>, String> {
    let identity = StoreIdentity {
        cluster,
        region: region.clone(),
        origin: Origin(7),
        holders: holders.clone(),
        sharding,
        limits: config.store_limits(),
    };
    let engine = MemoryEngine::create(MemoryDisk::default(), identity).map_err(|error| error.to_string())?;
    Ok(Box::new(engine))
}
