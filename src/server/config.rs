//! The configuration of a node: defaults < its entry in the region's file < its file < `IRIS_` environment < flags.
//!
//! [`NodeConfig::load`] merges the layers with figment, checks every value, and knows for each where it
//! came from. Unknown keys are refused. An error names file and line (or variable, or flag), key, value and what was expected.

mod error;
mod layers;
mod model;
mod ranges;
mod source;
mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use figment::value::Value;

pub use error::{ConfigError, Place, Problem};
pub use layers::{ENV_PREFIX, is_setting};
pub use model::{
    ADMIN_SOCKET, AdminConfig, AdvertiseConfig, AuthConfig, ClientTls, ClusterConfig, FaultsConfig,
    JwtConfig, JwtKey, ListenConfig, LogConfig, LogFormat, NodeConfig, NodeIdentity, PeerTls, RegionsConfig,
    Secret, TlsConfig,
};
pub use ranges::{Devices, Intervals, Limits, StoreConfig, Timeouts};
pub use source::{MAX_FILE_BYTES, TomlText};
pub use units::{ClusterId, Seed, Setting};

use crate::core::limits::CoreLimits;
use crate::core::state::StoreLimits;
use crate::net::address::is_wildcard;
use crate::net::client::ClientLimits;

use super::regions::{Engine, NAME_EXPECTED, ONE_CORE, RegionFile, RegionNode, Regions, Role, is_name};
use super::token::{self, Algorithm};
use layers::Layers;

/// Keys of a token verifier: each unnamed one costs a signature check for every bad token.
pub const MAX_JWT_KEYS: usize = 16;

/// From where a configuration is read, beside the defaults.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The node's file. One that is missing is an error.
    pub file: Option<PathBuf>,
    /// Environment variables; those without our prefix are ignored.
    pub env: Vec<(String, String)>,
    /// Flags, the last one wins.
    pub flags: Vec<FlagValue>,
}

/// A setting from the command line.
#[derive(Debug, Clone)]
pub struct FlagValue {
    /// The flag, for errors: `--data`.
    pub flag: String,
    /// The key: `node.data`.
    pub key: String,
    /// The value as text.
    pub value: String,
}

/// A configuration with the regions that it belongs to.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The node's settings.
    pub config: NodeConfig,
    /// All regions of the cluster.
    pub regions: Regions,
    /// Where each setting that some layer sets came from, by its key.
    pub sources: BTreeMap<String, Place>,
}

impl LoadOptions {
    /// The file (where given) and this process's environment. Variables that are not UTF-8 cannot be settings and are left out.
    pub fn from_process(file: Option<PathBuf>) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            file,
            env: env::vars_os().filter_map(text).collect(),
            flags: Vec::new(),
        }
    }

    /// Adds a flag above all else.
    pub fn flag(mut self, flag: &str, key: &str, value: impl Into<String>) -> Self {
        self.flags.push(FlagValue {
            flag: flag.to_owned(),
            key: key.to_owned(),
            value: value.into(),
        });
        self
    }
}

impl NodeConfig {
    /// Reads, merges and checks a configuration. All problems that can be found together are reported together.
    pub fn load(options: LoadOptions) -> Result<Loaded, ConfigError> {
        let mut layers = Layers::new();
        let folder = options
            .file
            .as_deref()
            .and_then(Path::parent)
            .map(Path::to_owned)
            .unwrap_or_default();
        if let Some(file) = &options.file {
            layers.file(TomlText::read(file)?)?;
        }
        layers.env(&options.env);
        for flag in &options.flags {
            layers.flag(&flag.flag, &flag.key, &flag.value);
        }

        let regions_folder = layers.text_at("regions.folder").map(PathBuf::from);
        let regions_folder = regions_folder.map(|path| anchored(&layers, "regions.folder", &folder, path));
        let regions = Regions::load(regions_folder.as_deref())?;
        let name = layers.text_at("node.name").unwrap_or_default();
        if let Some(id) = layers.text_at("node.region") {
            // Without the right region the rest of the node cannot be judged.
            let Some(region) = regions.region(&id) else {
                let known = regions.ids().collect::<Vec<_>>().join(", ");
                return Err(layers
                    .problem("node.region", format!("expected one of: {known}"))
                    .into());
            };
            match regions.node(&name) {
                Some((other, _)) if other.id != id => {
                    let message = format!("the node {name} belongs to the region {} by its file", other.id);
                    return Err(layers.problem("node.region", message).into());
                }
                Some((_, node)) => layers.below(from_region(&regions, region, node)),
                None if !name.is_empty() && !is_name(&name) => {
                    return Err(layers.problem("node.name", NAME_EXPECTED).into());
                }
                None => layers.hint = format!("; the file of {id} has no node {name:?} that would say"),
            }
        }

        let mut config: NodeConfig = layers.extract()?;
        for (key, path) in config.paths() {
            *path = anchored(&layers, &key, &folder, std::mem::take(path));
        }
        let mut problems = Vec::new();
        config.check(&regions, &mut |key, message| {
            problems.push(layers.problem(key, message))
        });
        if !problems.is_empty() {
            return Err(ConfigError::Problems(problems));
        }
        let mut sources = BTreeMap::new();
        for (key, _) in config.flat() {
            if let Some(place) = layers.set_at(&key) {
                sources.insert(key, place);
            }
        }
        Ok(Loaded {
            config,
            regions,
            sources,
        })
    }

    /// A configuration for a node of a region's file, all else at its default, for callers that make the rest themselves.
    pub fn for_node(region: &RegionFile, node: &RegionNode, data: PathBuf, tls: TlsConfig) -> Self {
        Self {
            cluster: ClusterConfig::default(),
            node: NodeIdentity {
                name: node.name.clone(),
                region: region.id.clone(),
                roles: node.roles.clone(),
                data,
                partitions: 1,
            },
            regions: RegionsConfig::default(),
            listen: ListenConfig {
                client: node.client,
                peer: node.peer,
                admin_http: node.admin_http,
            },
            advertise: AdvertiseConfig::default(),
            admin: AdminConfig::default(),
            tls,
            auth: AuthConfig::default(),
            store: StoreConfig::default(),
            limits: Limits::default(),
            intervals: Intervals::default(),
            timeouts: Timeouts::default(),
            devices: Devices::default(),
            log: LogConfig::default(),
            faults: FaultsConfig::default(),
        }
    }

    /// Limits and intervals of the core's machines, of each partition.
    pub fn core_limits(&self) -> CoreLimits {
        let limits = self
            .limits
            .core_limits(&self.intervals, &self.timeouts, &self.devices);
        CoreLimits {
            sessions_per_second: limits.sessions_per_second.div_ceil(self.node.partitions.max(1)),
            ..limits
        }
    }

    /// Limits of the store's commits.
    pub fn store_limits(&self) -> StoreLimits {
        self.limits.store_limits(&self.devices)
    }

    /// Limits of the connections of clients.
    pub fn client_limits(&self) -> ClientLimits {
        self.limits.client_limits(&self.timeouts)
    }

    /// As TOML text that [`NodeConfig::load`] reads again, except for secrets, which become `***`.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every field is a table, text, number or list of them")
    }

    /// Every setting as (key, value), in the order of the sections; secrets are `***`.
    pub fn flat(&self) -> Vec<(String, toml::Value)> {
        let table =
            toml::Table::try_from(self).expect("every field is a table, text, number or list of them");
        let mut flat = Vec::new();
        flatten("", &toml::Value::Table(table), &mut flat);
        flat
    }

    /// Every path to a file or folder, with its key.
    pub fn paths(&mut self) -> Vec<(String, &mut PathBuf)> {
        let mut paths = vec![("node.data".to_owned(), &mut self.node.data)];
        let mut add = |key: &str, path| paths.push((key.to_owned(), path));
        if let Some(folder) = &mut self.regions.folder {
            add("regions.folder", folder);
        }
        if let Some(socket) = &mut self.admin.socket {
            add("admin.socket", socket);
        }
        add("tls.peer.ca", &mut self.tls.peer.ca);
        add("tls.peer.cert", &mut self.tls.peer.cert);
        add("tls.peer.key", &mut self.tls.peer.key);
        if let Some(client) = &mut self.tls.client {
            add("tls.client.cert", &mut client.cert);
            add("tls.client.key", &mut client.key);
        }
        for (i, key) in self.auth.jwt.keys.iter_mut().enumerate() {
            if let Some(file) = &mut key.public_key {
                add(&format!("auth.jwt.keys.{i}.public_key"), file);
            }
            if let Some(file) = &mut key.secret_file {
                add(&format!("auth.jwt.keys.{i}.secret_file"), file);
            }
        }
        paths
    }

    /// Reports every value that cannot be used as (key, what was expected).
    pub fn check(&self, regions: &Regions, wrong: &mut dyn FnMut(&str, String)) {
        self.check_node(regions, wrong);
        self.check_auth(wrong);
        if self.cluster.name.is_empty() || self.cluster.name.len() > 64 {
            wrong("cluster.name", "expected 1 to 64 bytes".to_owned());
        }
        if !(1..=65_536).contains(&self.cluster.shard_count) || !self.cluster.shard_count.is_power_of_two() {
            wrong(
                "cluster.shard_count",
                "expected a power of two from 1 to 65536".to_owned(),
            );
        }
        let known = regions.ids().count();
        if let Some(factor) = self.cluster.replication_factor
            && factor as usize != known
        {
            wrong(
                "cluster.replication_factor",
                format!(
                    "expected {known}, the number of regions: in this version every region keeps every shard; set it so, or leave \
                     it out"
                ),
            );
        }
        self.limits.check(wrong);
        self.store.check(wrong);
        self.intervals.check(wrong);
        self.timeouts.check(wrong);
        self.devices.check(wrong);
        if self.limits.inbox_bytes < self.limits.max_body {
            wrong(
                "limits.inbox_bytes",
                format!(
                    "expected at least limits.max_body, which is {}",
                    self.limits.max_body
                ),
            );
        }
        if self.timeouts.link <= self.intervals.link_ping {
            wrong(
                "timeouts.link",
                "expected more than intervals.link_ping, or every link is always lost".to_owned(),
            );
        }
        if self.timeouts.geo >= self.timeouts.deposit.min(self.timeouts.link) {
            wrong(
                "timeouts.geo",
                "expected less than timeouts.deposit and timeouts.link, after which an edge takes the owner for lost".to_owned(),
            );
        }
        if let Err(error) = self.client_limits().check() {
            wrong("limits", error.to_string());
        }
        if self.faults.wan && !self.faults.allowed {
            wrong(
                "faults.wan",
                "expected false where faults.allowed is false: set both for a cluster that is tried out, or leave both out"
                    .to_owned(),
            );
        }
        if let Err(error) = super::log::parse_filter(&self.log.level) {
            wrong("log.level", error.to_string());
        }
    }

    fn check_node(&self, regions: &Regions, wrong: &mut dyn FnMut(&str, String)) {
        let node = &self.node;
        if !is_name(&node.name) {
            wrong("node.name", NAME_EXPECTED.to_owned());
        }
        let edge = node.has(Role::Edge);
        if node.roles.is_empty() || node.roles.len() > 2 || node.roles.first() == node.roles.get(1) {
            wrong(
                "node.roles",
                "expected \"core\", \"edge\" or both, each once".to_owned(),
            );
        }
        if let Err(expected) = super::partition::partitions(node.partitions) {
            wrong("node.partitions", expected);
        }
        if edge && self.listen.client.is_none() {
            wrong(
                "listen.client",
                "an edge node needs the address for its clients".to_owned(),
            );
        }
        if edge && self.tls.client.is_none() {
            wrong(
                "tls.client",
                "an edge node needs `cert` and `key` for its clients".to_owned(),
            );
        }
        let same = |other: Option<SocketAddr>| {
            other.is_some_and(|other| other.port() != 0 && other == self.listen.peer)
        };
        if same(self.listen.client) {
            wrong(
                "listen.peer",
                "expected another address than listen.client".to_owned(),
            );
        }
        self.check_told(wrong);
        match regions.region(&node.region) {
            None => wrong("node.region", "expected a region that has a file".to_owned()),
            Some(region) if region.store.engine == Engine::Embedded && node.has(Role::Core) => {
                if let Some(other) = region.cores().find(|other| other.name != node.name) {
                    wrong(
                        "node.roles",
                        format!(
                            "{} is the core node of {} already; {ONE_CORE}",
                            other.name, region.id
                        ),
                    );
                }
            }
            Some(_) => {}
        }
        if let Some((region, _)) = regions
            .node(&node.name)
            .filter(|(region, _)| region.id != node.region)
        {
            wrong(
                "node.region",
                format!(
                    "the node {} belongs to the region {} by its file",
                    node.name, region.id
                ),
            );
        }
    }

    /// Nobody can connect to a wildcard, so nobody may be told one.
    fn check_told(&self, wrong: &mut dyn FnMut(&str, String)) {
        let listens = |who: &str, key: &str, example: &str| {
            format!(
                "{who} would be told this wildcard address and cannot connect to it; set {key} to where they reach \
                 this node, such as {example}, or listen on that address alone"
            )
        };
        let told = "expected an address that others connect to, not a wildcard".to_owned();
        let AdvertiseConfig { client, peer } = &self.advertise;
        match (client, self.listen.client) {
            _ if !self.node.has(Role::Edge) => {}
            (Some(client), _) if client.is_wildcard() => wrong("advertise.client", told.clone()),
            (None, Some(listen)) if is_wildcard(listen.ip()) => wrong(
                "listen.client",
                listens(
                    "clients",
                    "advertise.client",
                    "edge-1.example.com:7400 or 10.0.0.5:7400",
                ),
            ),
            _ => {}
        }
        match peer {
            Some(peer) if is_wildcard(peer.ip()) => wrong("advertise.peer", told),
            None if is_wildcard(self.listen.peer.ip()) => wrong(
                "listen.peer",
                listens("other nodes", "advertise.peer", "10.0.0.5:7410"),
            ),
            _ => {}
        }
    }

    fn check_auth(&self, wrong: &mut dyn FnMut(&str, String)) {
        let jwt = &self.auth.jwt;
        if self.node.has(Role::Edge) && jwt.keys.is_empty() {
            wrong(
                "auth.jwt.keys",
                "an edge node needs a key that verifies its clients' tokens".to_owned(),
            );
        }
        if jwt.keys.len() > MAX_JWT_KEYS {
            wrong(
                "auth.jwt.keys",
                format!("{} keys, expected at most {MAX_JWT_KEYS}", jwt.keys.len()),
            );
        }
        if jwt.audience.is_empty() {
            wrong(
                "auth.jwt.audience",
                "expected the text that `aud` of a token must have".to_owned(),
            );
        }
        if jwt.issuer.as_deref() == Some("") {
            wrong(
                "auth.jwt.issuer",
                "expected the text that `iss` of a token must have; leave it out to accept any".to_owned(),
            );
        }
        if !(Duration::from_secs(1)..=token::MAX_LIFE).contains(&jwt.max_life) {
            wrong("auth.jwt.max_life", "expected 1s to 24h".to_owned());
        }
        if jwt.leeway > token::MAX_LEEWAY {
            wrong("auth.jwt.leeway", "expected 0s to 5m".to_owned());
        }
        for (i, key) in jwt.keys.iter().enumerate() {
            let at = format!("auth.jwt.keys.{i}");
            let given = (
                key.public_key.is_some(),
                key.secret_file.is_some(),
                key.secret.is_some(),
            );
            match (key.algorithm, given) {
                (Algorithm::EdDSA, (true, false, false)) => {}
                (Algorithm::HS256, (false, true, false) | (false, false, true)) => {}
                (Algorithm::EdDSA, _) => wrong(
                    &at,
                    "an EdDSA key has `public_key`, a PEM file, and no secret".to_owned(),
                ),
                (Algorithm::HS256, _) => wrong(
                    &at,
                    "an HS256 key has either `secret_file` or `secret`".to_owned(),
                ),
            }
            if key
                .secret
                .as_ref()
                .is_some_and(|secret| secret.expose().len() < token::MIN_SECRET_BYTES)
            {
                wrong(
                    &format!("{at}.secret"),
                    format!("expected at least {} bytes", token::MIN_SECRET_BYTES),
                );
            }
        }
    }
}

/// A path of the node's file starts at that file's folder; others start where the process runs.
fn anchored(layers: &Layers, key: &str, folder: &Path, path: PathBuf) -> PathBuf {
    match layers.place(key) {
        Place::File(..) => joined(folder, &path),
        _ => path,
    }
}

/// The path from `folder` on. A `..` at its head is resolved where that cannot change what is meant (the folder's last
/// part is a folder, not a link), so that messages name a path as an operator would write it.
fn joined(folder: &Path, path: &Path) -> PathBuf {
    let (mut folder, mut rest) = (folder, path);
    while let Ok(below) = rest.strip_prefix("..") {
        let named = matches!(folder.components().next_back(), Some(Component::Normal(_)));
        let above = folder.parent().filter(|_| named);
        let Some(above) = above.filter(|_| fs::symlink_metadata(folder).is_ok_and(|it| it.is_dir())) else {
            break;
        };
        (folder, rest) = (above, below);
    }
    folder.join(rest)
}

/// What a region's file says of one of its nodes, as settings of the node.
fn from_region<'a>(
    regions: &Regions,
    region: &RegionFile,
    node: &RegionNode,
) -> Vec<(&'a str, Value, Place)> {
    let i = region
        .nodes
        .iter()
        .position(|other| other.name == node.name)
        .unwrap_or_default();
    let place = |field: &str| {
        regions
            .text(&region.id)
            .map_or(Place::Default, |text| text.place(&format!("nodes.{i}.{field}")))
    };
    let roles: Vec<Value> = node
        .roles
        .iter()
        .map(|role| Value::from(role.to_string()))
        .collect();
    let mut values = vec![
        ("node.roles", Value::from(roles), place("roles")),
        ("listen.peer", Value::from(node.peer.to_string()), place("peer")),
        (
            "listen.admin_http",
            Value::from(node.admin_http.to_string()),
            place("admin_http"),
        ),
    ];
    if let Some(client) = node.client {
        values.push(("listen.client", Value::from(client.to_string()), place("client")));
    }
    values
}

fn flatten(prefix: &str, value: &toml::Value, flat: &mut Vec<(String, toml::Value)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                flatten(&source::join(prefix, key), value, flat);
            }
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            for (i, item) in items.iter().enumerate() {
                flatten(&source::join(prefix, &i.to_string()), item, flat);
            }
        }
        value => flat.push((prefix.to_owned(), value.clone())),
    }
}

#[cfg(test)]
mod tests;
