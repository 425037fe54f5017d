//! What a configuration must hold before a node starts with it. Nothing but the files that it names is touched, so that
//! `iris config check` judges as `iris serve` does.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use super::config::{JwtKey, NodeConfig, Place, Problem};
use super::node::StartError;
use super::partition::partitions;
use super::regions::{Regions, Role};
use super::token::{Verifier, VerifyingKey};
use crate::core::ids::{NodeKey, NodeName, RegionId, Sharding};
use crate::net::certs::{Identity, Roots};
use crate::net::peer::check_identity;

const CA: &str = "name the PEM file with the certificate of the CA that signs those of the nodes";
const NODE_CERTIFICATE: &str = "name the PEM files that the cluster's CA issued for this node";
const CLIENT_CERTIFICATE: &str = "name the PEM files of the certificate that clients see";
const PUBLIC_KEY: &str = "name the PEM file with the public key of who issues the tokens";
const SECRET: &str = "name a file with the secret of who issues the tokens, 32 bytes or more";

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
        let jwt = &config.auth.jwt;
        let keys = jwt.keys.iter().enumerate();
        let keys = keys.map(token_key).collect::<Result<_, _>>()?;
        let verifier = Arc::new(Verifier::with_keys(keys, jwt));
        let peer = &config.tls.peer;
        let roots = Roots::load(&peer.ca).map_err(|error| file("tls.peer.ca", &peer.ca, &error, CA))?;
        let identity = load_identity("tls.peer", &peer.cert, &peer.key)?;
        check_identity(&key, &identity)
            .map_err(|error| file("tls.peer.cert", &peer.cert, &error, NODE_CERTIFICATE))?;
        let client = match &config.tls.client {
            _ if !config.node.has(Role::Edge) => None,
            Some(tls) => Some(load_identity("tls.client", &tls.cert, &tls.key)?),
            None => Some(identity.clone()),
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

fn load_identity(table: &str, cert: &Path, key: &Path) -> Result<Identity, StartError> {
    let advice = if table == "tls.client" {
        CLIENT_CERTIFICATE
    } else {
        NODE_CERTIFICATE
    };
    Identity::load(cert, key).map_err(|error| {
        let (field, path) = match error.file() {
            Some(file) if file == key => ("key", key),
            _ => ("cert", cert),
        };
        file(&format!("{table}.{field}"), path, &error, advice)
    })
}

fn token_key((i, key): (usize, &JwtKey)) -> Result<VerifyingKey, StartError> {
    VerifyingKey::from_config(key).map_err(|error| {
        let at = |field| format!("auth.jwt.keys.{i}.{field}");
        match (&key.public_key, &key.secret_file) {
            (Some(path), _) => file(&at("public_key"), path, &error, PUBLIC_KEY),
            (None, Some(path)) => file(&at("secret_file"), path, &error, SECRET),
            (None, None) => error.into(),
        }
    })
}

/// A file that a setting names cannot be used.
fn file(key: &str, path: &Path, error: &dyn Display, advice: &str) -> StartError {
    StartError::Setting(Problem {
        place: Place::Default,
        key: key.to_owned(),
        value: Some(format!("{path:?}")),
        message: format!("{error}; {advice}"),
    })
}
