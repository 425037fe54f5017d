//! What a configuration must hold before a node starts with it. Nothing but the files that it names is touched, so that
//! `iris config check` judges as `iris serve` does.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::config::NodeConfig;
use super::node::StartError;
use super::partition::partitions;
use super::regions::{Regions, Role};
use super::token::Verifier;
use crate::core::ids::{NodeKey, NodeName, RegionId, Sharding};
use crate::net::certs::{Identity, Roots};
use crate::net::peer::check_identity;

/// A configuration with all that it names read and judged.
pub struct Prepared {
    pub(super) key: NodeKey,
    pub(super) cluster: u128,
    pub(super) sharding: Sharding,
    pub(super) partitions: u8,
    pub(super) holders: BTreeSet<RegionId>,
    pub(super) verifier: Arc<Verifier>,
    pub(super) roots: Roots,
    pub(super) identity: Identity,
    /// What clients see; an edge has it.
    pub(super) client: Option<Identity>,
}

impl Prepared {
    /// Judges a configuration that was loaded.
    ///
    /// # Errors
    /// [`StartError`], as the node's start would give it.
    pub fn of(config: &NodeConfig, regions: &Regions) -> Result<Self, StartError> {
        let key = NodeKey {
            region: RegionId::new(&config.node.region)?,
            node: NodeName::new(&config.node.name)?,
        };
        let cluster = config.cluster.id.ok_or(StartError::Missing {
            key: "cluster.id",
            advice: "all nodes of the cluster need the same; take a random number of up to 32 hex digits, once and for all",
        })?;
        let seed = config.cluster.hash_seed.ok_or(StartError::Missing {
            key: "cluster.hash_seed",
            advice: "all nodes of the cluster need the same; take a random number, once and for all",
        })?;
        let partitions = partitions(config.node.partitions)
            .map_err(|expected| StartError::Partitions(config.node.partitions, expected))?;
        let sharding = Sharding {
            count: config.cluster.shard_count,
            seed: seed.0,
        };
        let holders = regions.ids().map(RegionId::new).collect::<Result<_, _>>()?;
        let verifier = Arc::new(Verifier::from_config(&config.auth.jwt)?);
        let roots = Roots::load(&config.tls.peer.ca)?;
        let identity = Identity::load(&config.tls.peer.cert, &config.tls.peer.key)?;
        check_identity(&key, &identity)?;
        let client = match &config.tls.client {
            _ if !config.node.has(Role::Edge) => None,
            Some(tls) => Some(Identity::load(&tls.cert, &tls.key)?),
            None => Some(Identity::load(&config.tls.peer.cert, &config.tls.peer.key)?),
        };
        Ok(Self {
            key,
            cluster: cluster.0,
            sharding,
            partitions,
            holders,
            verifier,
            roots,
            identity,
            client,
        })
    }
}
