//! The settings of one node, section by section.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::ranges::{Devices, Intervals, Limits, StoreConfig, Timeouts};
use super::units::{ClusterId, Seed};
use crate::core::ids::DEFAULT_SHARDS;
use crate::net::address::HostPort;
use crate::server::regions::Role;
use crate::server::token::Algorithm;

/// Name of the operators' socket in a node's data folder.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// The configuration of one node, checked. As it serialises it can be read again, except for secrets, which become `***`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// What all nodes of the cluster must agree on.
    #[serde(default)]
    pub cluster: ClusterConfig,
    /// Who this node is.
    pub node: NodeIdentity,
    /// Where the regions are described.
    #[serde(default)]
    pub regions: RegionsConfig,
    /// Where it listens. What is not set comes from the node's entry in its region's file.
    pub listen: ListenConfig,
    /// What clients and other nodes are told, where that is not where it listens.
    #[serde(default)]
    pub advertise: AdvertiseConfig,
    /// How operators reach it.
    #[serde(default)]
    pub admin: AdminConfig,
    /// Certificates and keys.
    pub tls: TlsConfig,
    /// How clients prove who they are.
    #[serde(default)]
    pub auth: AuthConfig,
    /// The store of a core node.
    #[serde(default)]
    pub store: StoreConfig,
    /// What one user, session, device or connection may take.
    #[serde(default)]
    pub limits: Limits,
    /// How often something happens by itself.
    #[serde(default)]
    pub intervals: Intervals,
    /// How long something may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Devices of users.
    #[serde(default)]
    pub devices: Devices,
    /// What is logged, and how.
    #[serde(default)]
    pub log: LogConfig,
    /// Faults that are injected on purpose.
    #[serde(default)]
    pub faults: FaultsConfig,
}

/// What all nodes of the cluster must agree on; a store that was made with other values refuses to open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster's name, for people.
    pub name: String,
    /// The cluster's id: a random number of up to 32 hex digits, chosen once, the same on every node. A node does not start
    /// without it; stores and other nodes that have another one are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<ClusterId>,
    /// Shards of users and rooms, fixed for the life of the cluster: a power of two, 1 to 65,536.
    pub shard_count: u32,
    /// How many regions keep each shard. Where it is not set, all of them; nothing else is possible yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<u32>,
    /// The seed of the hash that places users on shards: a random number, chosen once, the same on every node. A node does
    /// not start without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_seed: Option<Seed>,
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeIdentity {
    /// Its name, unique over all regions, and the name in its certificate.
    pub name: String,
    /// The id of its region.
    pub region: String,
    /// What it does. Where it is not set, as its entry in the region's file says.
    pub roles: Vec<Role>,
    /// The folder of its store and identity. A relative path starts at the file that names it.
    #[serde(default = "default_data")]
    pub data: PathBuf,
    /// Core tasks that share the node's shards and sessions: 1 to 4, and best no more than the machine has cores.
    #[serde(default = "default_partitions")]
    pub partitions: u32,
}

/// Where the regions are described.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegionsConfig {
    /// The folder with one file for each region; the shipped three where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

/// Where the node listens. Port 0 lets the system choose one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// For clients (QUIC, UDP); an edge needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// For other nodes (QUIC, UDP).
    pub peer: SocketAddr,
    /// For health and metrics (HTTP, TCP), without authentication: keep it on loopback or a private network.
    pub admin_http: SocketAddr,
}

/// Where clients and other nodes of the region are told to reach the node. A port 0 stands for the one that was bound. Clients
/// and nodes of other regions go by the node's entry in its region's file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvertiseConfig {
    /// For clients, a host or IP address and a port; `listen.client` where it is not set. An edge that listens on a wildcard
    /// (`0.0.0.0`, `[::]`) needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<HostPort>,
    /// For other nodes, an IP address and a port; `listen.peer` where it is not set. A node that listens on a wildcard needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
}

/// How operators reach the node. From elsewhere they connect to `listen.peer` with a certificate of the operator role.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// The Unix socket that operators on this machine use, mode 0600; `admin.sock` in `node.data` where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// Certificates and keys, PEM files. A relative path starts at the file that names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Between nodes: mutual authentication by certificates of the cluster's own CA.
    pub peer: PeerTls,
    /// For clients; an edge needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientTls>,
}

/// The certificates between nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTls {
    /// The CA that signs the certificates of all nodes.
    pub ca: PathBuf,
    /// This node's certificate, with the common name of the cluster's nodes and its own name and region.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The certificate that clients see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// The certificate, then the ones between it and the CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How clients prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// By tokens.
    pub jwt: JwtConfig,
}

/// Which tokens are accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// What `iss` must be; any or none is accepted where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// What `aud` must be or contain.
    pub audience: String,
    /// The keys, 1 to 16 on an edge; each has one algorithm.
    pub keys: Vec<JwtKey>,
    /// The longest time from `iat` to `exp`; at most 24 h.
    #[serde(with = "super::units::setting")]
    pub max_life: Duration,
    /// How far the clocks of issuer and node may differ; at most 5 min.
    #[serde(with = "super::units::setting")]
    pub leeway: Duration,
}

/// A key that verifies tokens. The key decides the algorithm, never the token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtKey {
    /// `EdDSA` (Ed25519), or `HS256` (HMAC with SHA-256: who verifies can also sign).
    pub algorithm: Algorithm,
    /// The key id that tokens name; any where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// For EdDSA: a PEM file with the public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<PathBuf>,
    /// For HS256: a file with the secret, 32 bytes or more; its last line end does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// For HS256: the secret itself, 32 bytes or more, where there is no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

/// Faults that are injected on purpose, for drills.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultsConfig {
    /// Whether operators may inject faults (`iris fault inject`). Each ends by itself; while it lasts, users feel it.
    pub allowed: bool,
    /// Whether what goes to other regions is delayed as light in cables between their places would be, for as long as the node
    /// runs: a cluster on one machine behaves as one around the world. Only with `faults.allowed`.
    pub wan: bool,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Lines for people, or one JSON object a line.
    pub format: LogFormat,
    /// A level (`info`), or levels by module: `info,iris::net=debug`. `IRIS_LOG` overrides it.
    pub level: String,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A value that is never printed, logged or serialised: it shows as `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Hand it to the code that needs it, never to a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str("***")
    }
}

impl JwtKey {
    /// The Ed25519 public key in this PEM file, for tokens with any key id.
    pub fn ed25519(public_key: PathBuf) -> Self {
        Self {
            algorithm: Algorithm::EdDSA,
            kid: None,
            public_key: Some(public_key),
            secret_file: None,
            secret: None,
        }
    }
}

impl NodeConfig {
    /// Where clients are told to reach the node that is bound at `bound`.
    pub fn client_address(&self, bound: SocketAddr) -> HostPort {
        match &self.advertise.client {
            Some(told) => told.clone().or_port(bound.port()),
            None => bound.into(),
        }
    }

    /// The Unix socket that operators use.
    pub fn admin_socket(&self) -> PathBuf {
        let given = self.admin.socket.clone();
        given.unwrap_or_else(|| self.node.data.join(ADMIN_SOCKET))
    }

    /// Where other nodes are told to reach it; a port 0 is to be replaced by the one that was bound.
    pub fn peer_address(&self) -> SocketAddr {
        self.advertise.peer.unwrap_or(self.listen.peer)
    }
}

impl NodeIdentity {
    /// Whether the node has this role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "iris".to_owned(),
            id: None,
            shard_count: DEFAULT_SHARDS,
            replication_factor: None,
            hash_seed: None,
        }
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: crate::server::token::AUDIENCE.to_owned(),
            keys: Vec::new(),
            max_life: crate::server::token::MAX_LIFE,
            leeway: Duration::from_secs(30),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".to_owned(),
        }
    }
}

fn default_data() -> PathBuf {
    PathBuf::from("data")
}

fn default_partitions() -> u32 {
    1
}
