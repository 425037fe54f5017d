//! Changing the regions that keep the shards, while the node runs (R13): what an operator's commands call.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::oneshot;

use super::node::Node;
use super::partition::Event;
use super::regions::Regions;
use crate::core::holders::HoldersChange;
use crate::core::ids::RegionId;
use crate::core::node::Input;
use crate::core::owner::HoldersStatus;

/// Why the holders are not changed. Nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldersError {
    /// The node owns no shards.
    #[error("this node has not the role core: ask one that owns shards")]
    NotCore,
    /// Not all shards are owned here yet.
    #[error("{owned} of {shards} shards are active here: try again when all are")]
    NotReady {
        /// That are.
        owned: usize,
        /// Of so many.
        shards: usize,
    },
    /// The change before goes on.
    #[error("the last change goes on: {settled} of {shards} shards have it everywhere")]
    Running {
        /// Shards in which it is settled.
        settled: usize,
        /// Of so many.
        shards: usize,
    },
    /// A region that is to keep shards has no file.
    #[error("region {0} has no file in the folder of regions: add it on every node first")]
    NoFile(RegionId),
    /// It would change nothing.
    #[error("the holders are these already")]
    Unchanged,
    /// This region cannot remove itself, nor can all be removed.
    #[error("a region is removed by another one that stays")]
    Itself,
    /// The node stops.
    #[error("the node stops")]
    Stopping,
}

impl Node {
    /// How far the last change of the holders is, over the shards that this node owns.
    ///
    /// # Errors
    /// [`HoldersError::Stopping`].
    pub async fn holders_status(&self) -> Result<HoldersStatus, HoldersError> {
        let mut all = HoldersStatus::default();
        for events in self.events() {
            let (answer, answered) = oneshot::channel();
            events
                .send(Event::HoldersStatus(answer))
                .await
                .map_err(|_| HoldersError::Stopping)?;
            let one = answered.await.map_err(|_| HoldersError::Stopping)?;
            if all.target < one.target {
                all.target = one.target;
            }
            all.shards += one.shards;
            all.changed += one.changed;
            all.settled += one.settled;
            all.regions.extend(one.regions);
            for (region, shards) in one.marked {
                *all.marked.entry(region).or_default() += shards;
            }
        }
        Ok(all)
    }

    /// Begins to change the holders to `set`; of those that this removes, `gone` will not come back, and nobody waits for what
    /// they had. Gives the version of the change; [`Node::holders_status`] says how far it is. To be asked of one node of one
    /// region: the others learn of it from the logs. A region that is added must have its file on every node first
    /// ([`Node::reload_regions`]), and is started with an empty store that joins once the change began.
    ///
    /// # Errors
    /// [`HoldersError`].
    pub async fn change_holders(
        &self,
        set: BTreeSet<RegionId>,
        gone: BTreeSet<RegionId>,
    ) -> Result<u64, HoldersError> {
        let status = self.holders_status().await?;
        let shards = self.shards();
        if status.shards < shards {
            let owned = status.shards;
            return Err(match self.is_core() {
                true => HoldersError::NotReady { owned, shards },
                false => HoldersError::NotCore,
            });
        }
        if status.settled < shards {
            let settled = status.settled;
            return Err(HoldersError::Running { settled, shards });
        }
        if !set.contains(&self.key().region) {
            return Err(HoldersError::Itself);
        }
        if set == status.regions {
            return Err(HoldersError::Unchanged);
        }
        let known: BTreeSet<String> = self.regions().ids().map(str::to_owned).collect();
        if let Some(missing) = set.iter().find(|region| !known.contains(region.as_str())) {
            return Err(HoldersError::NoFile(missing.clone()));
        }
        let version = status.target.version + 1;
        let change = HoldersChange { version, set, gone };
        tracing::warn!(version, set = ?change.set, gone = ?change.gone, "the regions that keep the shards change, by an operator's word");
        for events in self.events() {
            events
                .send(Event::Core(Input::Holders(change.clone())))
                .await
                .map_err(|_| HoldersError::Stopping)?;
        }
        Ok(version)
    }

    /// Takes the files of the regions as they are by now: a region that came is connected to, of one that is not in them any
    /// more nothing is kept. Those that hold shards must stay.
    ///
    /// # Errors
    /// [`HoldersError::NoFile`] names one that holds shards and has no file; nothing changes then.
    pub async fn reload_regions(&self, regions: Regions) -> Result<(), HoldersError> {
        let status = self.holders_status().await?;
        let known: BTreeMap<&str, ()> = regions.ids().map(|id| (id, ())).collect();
        let missing = status.regions.iter().find(|region| !known.contains_key(region.as_str()));
        if let Some(missing) = missing {
            return Err(HoldersError::NoFile(missing.clone()));
        }
        self.set_regions(regions);
        Ok(())
    }
}
