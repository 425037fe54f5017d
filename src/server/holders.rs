//! Changing the regions that keep the shards, while the node runs (R13): what an operator's commands call.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inspect::{InspectError, Inspector};
use super::partition::{Event, PartitionStatus};
use super::regions::Durability;
use crate::core::holders::HoldersChange;
use crate::core::ids::RegionId;
use crate::core::node::Input;
use crate::core::owner::HoldersStatus;

/// The first shard has a change within so long, or something is wrong: a commit takes milliseconds.
const LOGGED_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why the holders are not changed. Nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldersError {
    /// Not all shards are owned here yet, or none ever is.
    #[error(
        "{owned} of {shards} shards are active here: a core node is asked, once all its shards are active"
    )]
    NotReady {
        /// That are.
        owned: usize,
        /// Of so many.
        shards: usize,
    },
    /// The change before goes on.
    #[error(
        "the last change goes on: {settled} of {shards} shards have it everywhere, and the regions that it concerns are {regions}"
    )]
    Running {
        /// Shards in which it is settled.
        settled: usize,
        /// Of so many.
        shards: usize,
        /// Those that count or are waited for.
        regions: String,
    },
    /// A region that is to keep shards has no file.
    #[error(
        "region {0} has no file in the folder of regions of this node: put it there, it is read within seconds"
    )]
    NoFile(RegionId),
    /// It would change nothing.
    #[error("region {0} keeps the shards already")]
    Holds(RegionId),
    /// It would change nothing.
    #[error("region {0} does not keep the shards")]
    HoldsNot(RegionId),
    /// A region cannot remove itself.
    #[error("this is a node of region {0}: a region is removed by one of another region, which stays")]
    Itself(RegionId),
    /// A message is to be accepted in two regions.
    #[error(
        "region {0} alone would be left, and accepts messages only once another region has them (durability = \"geo\")"
    )]
    Alone(RegionId),
    /// This node's region was removed: nobody takes what it says.
    #[error("region {0} was removed from the cluster, and changes it no more: ask a node of one that stays")]
    Out(RegionId),
    /// Another operator's change of the same version won, or a later one.
    #[error(
        "not done: another change of the regions counts, version {version} with {regions}; look at it (iris region list), and \
         ask again"
    )]
    Lost {
        /// Of the change that counts.
        version: u64,
        /// Its regions.
        regions: String,
    },
    /// The first shard did not have it in time.
    #[error(
        "no shard has the change of the regions to version {version} after {waited:?}; it may still come: look at iris region \
         list before asking again"
    )]
    Unsure {
        /// Of the change.
        version: u64,
        /// So long.
        waited: Duration,
    },
    /// A partition did not answer.
    #[error(transparent)]
    Silent(#[from] InspectError),
}

impl Inspector {
    /// How far the last change of the holders is, over the shards that this node owns.
    ///
    /// # Errors
    /// [`InspectError`].
    pub async fn holders_status(&self) -> Result<HoldersStatus, InspectError> {
        let mut all = HoldersStatus::default();
        for partition in 0..self.0.events.len() {
            let one = self.event(partition, Event::HoldersStatus).await?;
            if all.target < one.target {
                all.target = one.target;
            }
            all.shards += one.shards;
            all.changed += one.changed;
            all.settled += one.settled;
            all.regions.extend(one.regions);
            all.coming.extend(one.coming);
            all.leaving.extend(one.leaving);
            for (region, shards) in one.marked {
                *all.marked.entry(region).or_default() += shards;
            }
        }
        Ok(all)
    }

    /// The regions that keep shards, or whose last operations are waited for, as far as this node knows; none where it owns
    /// no shards.
    pub fn holders(&self) -> BTreeSet<RegionId> {
        let status = self.status();
        // A partition without shards knows only what the store was begun with.
        let owns = |status: &PartitionStatus| status.shards + status.removed > 0;
        let any = status.iter().any(owns);
        let told = status.iter().filter(|status| !any || owns(status));
        let regions = told.flat_map(|status| status.holders.iter());
        regions.cloned().collect()
    }

    /// Begins to add a region to those that keep the shards. Gives the version of the change; [`Self::holders_status`] says how
    /// far it is. To be asked of one node of one region: the others learn of it from the logs. The region's file must be
    /// there; its core node is started with an empty store that joins, before or after.
    ///
    /// # Errors
    /// [`HoldersError`].
    pub async fn add_region(&self, region: &RegionId) -> Result<u64, HoldersError> {
        let status = self.changeable(None).await?;
        if self.regions().region(region.as_str()).is_none() {
            return Err(HoldersError::NoFile(region.clone()));
        }
        let mut set = status.regions;
        if !set.insert(region.clone()) {
            return Err(HoldersError::Holds(region.clone()));
        }
        self.change(status.target.version + 1, set, BTreeSet::new()).await
    }

    /// Begins to remove a region; if it is `gone`, nobody waits for what only it has. Also of one that another change already
    /// removes, and that turns out to be gone.
    ///
    /// # Errors
    /// [`HoldersError`].
    pub async fn remove_region(&self, region: &RegionId, gone: bool) -> Result<u64, HoldersError> {
        if self.0.key.region == *region {
            return Err(HoldersError::Itself(region.clone()));
        }
        let status = self.changeable(gone.then_some(region)).await?;
        let mut set = status.regions;
        set.retain(|holder| !status.leaving.contains(holder));
        let holds = set.remove(region);
        let leaves = gone && status.leaving.contains(region);
        if !holds && !leaves {
            return Err(HoldersError::HoldsNot(region.clone()));
        }
        if let (Some(last), 1) = (set.first(), set.len()) {
            let files = self.regions();
            let geo = files.region(last.as_str()).map(|file| file.durability);
            if geo == Some(Durability::Geo) {
                return Err(HoldersError::Alone(last.clone()));
            }
        }
        let gone = if gone {
            BTreeSet::from([region.clone()])
        } else {
            BTreeSet::new()
        };
        self.change(status.target.version + 1, set, gone).await
    }

    /// Whether another change may begin; the one before may go on where it waits for `gone` alone.
    async fn changeable(&self, gone: Option<&RegionId>) -> Result<HoldersStatus, HoldersError> {
        let status = self.holders_status().await?;
        let shards = self.0.sharding.count as usize;
        let (owned, settled) = (status.shards, status.settled);
        let me = &self.0.key.region;
        if status.target.version > 0 && !status.target.set.contains(me) {
            return Err(HoldersError::Out(me.clone()));
        }
        if owned < shards {
            return Err(HoldersError::NotReady { owned, shards });
        }
        // Of one that is gone the change before may wait for ever, in whichever way it counts there.
        let waits_for_it = gone.is_some_and(|region| status.regions.contains(region));
        if settled < shards && !waits_for_it {
            let regions = names(&status.regions);
            return Err(HoldersError::Running {
                settled,
                shards,
                regions,
            });
        }
        Ok(status)
    }

    async fn change(
        &self,
        version: u64,
        set: BTreeSet<RegionId>,
        gone: BTreeSet<RegionId>,
    ) -> Result<u64, HoldersError> {
        let change = HoldersChange { version, set, gone };
        tracing::warn!(version, set = ?change.set, gone = ?change.gone, "the regions that keep the shards change, by an operator's word");
        for (partition, events) in self.0.events.iter().enumerate() {
            events
                .send(Event::Core(Input::Holders(change.clone())))
                .await
                .map_err(|_| InspectError::Gone(partition))?;
        }
        self.logged(&change).await
    }

    /// Waits until a shard has a change durably: from there all others get it, also where this node dies.
    async fn logged(&self, change: &HoldersChange) -> Result<u64, HoldersError> {
        let (version, began) = (change.version, Instant::now());
        loop {
            let status = self.holders_status().await?;
            let target = &status.target;
            if target.rank() > change.rank() {
                let regions = names(&target.set);
                let version = target.version;
                return Err(HoldersError::Lost { version, regions });
            }
            if target.rank() == change.rank() && status.changed > 0 {
                return Ok(version);
            }
            let waited = began.elapsed();
            if waited > LOGGED_WITHIN {
                return Err(HoldersError::Unsure { version, waited });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn names(regions: &BTreeSet<RegionId>) -> String {
    let names: Vec<&str> = regions.iter().map(RegionId::as_str).collect();
    names.join(", ")
}

/// The regions as a partition's status tells them.
pub(super) type Holders = Arc<BTreeSet<RegionId>>;
