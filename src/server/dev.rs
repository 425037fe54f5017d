//! The folder of a development cluster: regions, certificates, keys, a configuration for each node.
//!
//! ```text
//! ca/             the cluster's CA: ca.pem (trust this), ca.key
//! keys/           the key that signs tokens, and its public half
//! regions/        the regions as started: the given files, with other ports where asked for
//! config/NODE.toml   what `iris serve --config` reads
//! nodes/NODE/     certificates, generation and store of each node
//! dev.json        endpoints and names for clients on this machine
//! dev.lock        held by the `iris dev` that runs
//! ```
//!
//! Made once and kept: starting again finds the same cluster with everything that it stored, also where the folder was moved:
//! the configurations name files relative to themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::config::{
    ClientTls, ClusterId, ConfigError, JwtKey, LoadOptions, NodeConfig, PeerTls, RegionsConfig, Seed,
    TlsConfig, TomlText,
};
use super::folder::foreign_entry;
use super::node::Create;
use super::regions::{RegionFile, Regions, Role};
use super::token::{KeyError, KeyFiles};
use crate::file_lock::{FileLock, FileLockError};
use crate::net::certs::{CertError, ClusterCa, server_dns_name};

/// What clients on this machine read. A folder with it is one of ours.
const INFO: &str = "dev.json";
/// What is in a folder that was not made to the end, or that only had its keys made.
const BEFORE_INFO: [&str; 5] = [LOCK, "regions.new", "regions", "ca", "keys"];
/// Locked by the `iris dev` that uses the folder, and contains its process id.
const LOCK: &str = "dev.lock";

/// Name in the certificates that clients on this machine check.
pub const SERVER_NAME: &str = "localhost";

/// Which ports the nodes listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// As the regions' files say.
    AsFiled,
    /// Free ones, chosen when the folder is made and kept with it.
    Free,
}

/// Why a development folder cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The regions.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The CA or a certificate.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The key for tokens.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The regions differ from those that the folder was made with.
    #[error(
        "{folder} was made for the regions {stored}, and now {given} are asked for: use another folder with --data, or \
         remove this one if what it stores may go"
    )]
    Regions {
        /// The folder.
        folder: PathBuf,
        /// What it was made with.
        stored: String,
        /// What is asked for.
        given: String,
    },
    /// Somebody else's files.
    #[error(
        "{folder} holds {entry:?}, and `iris dev` did not make it: name a folder that is missing or empty with --data, or one \
         that an earlier `iris dev` made"
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// One of its entries.
        entry: String,
    },
    /// Two would start the same nodes.
    #[error(
        "another `iris dev`, process {pid}, uses {folder}: end that one, or for a second cluster name another folder, as in \
         --data data-2 --ports free"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who uses it, as it noted.
        pid: String,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// What clients on this machine need to know, as stored in `dev.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevInfo {
    /// The cluster's id, hexadecimal.
    pub cluster: String,
    /// The seed of the hash that places users.
    pub hash_seed: String,
    /// Name to check in the servers' certificates.
    pub server_name: String,
    /// The regions and where clients enter.
    pub regions: Vec<DevRegion>,
}

/// A region for clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevRegion {
    /// Its id.
    pub id: String,
    /// `host:port` of each edge.
    pub endpoints: Vec<String>,
}

/// A node of a development cluster.
#[derive(Debug, Clone)]
pub struct DevNode {
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// What it does.
    pub roles: Vec<Role>,
    /// Where clients reach it.
    pub client: Option<SocketAddr>,
    /// Where other nodes reach it.
    pub peer: SocketAddr,
    /// Where health and metrics are.
    pub admin_http: SocketAddr,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its data folder.
    pub data: PathBuf,
    /// Whether it must be told to make its data folder.
    pub fresh: bool,
    /// Whether the cluster begins with its store: nothing was there when it was prepared, and it is the first region's.
    pub begins: bool,
}

impl DevNode {
    /// How to start it in this process.
    pub fn create(&self) -> Create {
        if self.begins {
            Create::ClusterIfMissing
        } else {
            Create::IfMissing
        }
    }

    /// An address of it that somebody has now. For words only: it may be taken or let go at any time.
    pub fn taken(&self) -> Option<SocketAddr> {
        let in_use =
            |bound: std::io::Result<()>| bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        let udp = |addr: &SocketAddr| in_use(UdpSocket::bind(addr).map(drop));
        let tcp = |addr: &SocketAddr| in_use(TcpListener::bind(addr).map(drop));
        let over_udp = self.client.into_iter().chain([self.peer]).find(udp);
        over_udp.or(Some(self.admin_http).filter(tcp))
    }

    /// Whether it must be told to make its data folder, as of now.
    pub fn is_fresh(&self) -> bool {
        is_fresh(&self.data, self.roles.contains(&Role::Core))
    }
}

fn is_fresh(data: &Path, core: bool) -> bool {
    !data.join(if core { "store" } else { "generation" }).exists()
}

/// The folder of the one `iris dev` that uses it; the kernel lets it go with the process.
#[derive(Debug)]
pub struct DevLock {
    _file: FileLock,
}

impl DevLock {
    /// Makes the folder where it is missing, and keeps others out of it.
    ///
    /// # Errors
    /// [`DevError::InUse`], or as [`DevCluster::prepare`].
    pub fn take(data: &Path) -> Result<Self, DevError> {
        let data = absolute(data)?;
        refuse_foreign(&data)?;
        make_folder(&data)?;
        let path = data.join(LOCK);
        let io = |source| DevError::Io {
            path: path.clone(),
            source,
        };
        let file = match FileLock::take(&path) {
            Ok(file) => file,
            Err(FileLockError::Held { pid }) => {
                return Err(DevError::InUse {
                    folder: data,
                    // Who has just begun has not noted itself yet.
                    pid: pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string()),
                });
            }
            Err(FileLockError::Io { source, .. }) => return Err(io(source)),
        };
        Ok(Self { _file: file })
    }
}

/// A development cluster, ready to be started.
#[derive(Debug, Clone)]
pub struct DevCluster {
    /// The folder.
    pub data: PathBuf,
    /// The regions as started.
    pub regions: Regions,
    /// Every node, cores first.
    pub nodes: Vec<DevNode>,
    /// What clients need.
    pub info: DevInfo,
}

impl DevCluster {
    /// Makes what is missing in `data` and keeps what is there.
    ///
    /// # Errors
    /// [`DevError`].
    pub fn prepare(data: &Path, given: &Regions, ports: Ports) -> Result<DevCluster, DevError> {
        let data = &absolute(data)?;
        refuse_foreign(data)?;
        make_folder(data)?;
        let regions = stored_regions(data, given, ports)?;
        let ca_folder = data.join("ca");
        let ca = if ca_folder.join("ca.pem").exists() {
            ClusterCa::load(&ca_folder)?
        } else {
            make_folder(&ca_folder)?;
            let ca = ClusterCa::create()?;
            ca.save(&ca_folder)?;
            ca
        };
        let keys = KeyFiles::in_data(data);
        keys.create_or_keep()?;
        let info = stored_info(data, &regions)?;
        let mut nodes = Vec::new();
        for region in regions.iter() {
            for node in &region.nodes {
                nodes.push(prepare_node(data, &ca, &keys, &info, region, &node.name)?);
            }
        }
        nodes.sort_by_key(|node| !node.roles.contains(&Role::Core));
        let new = nodes.iter().all(|node| node.fresh);
        if let Some(first) = nodes.first_mut() {
            first.begins = new && first.roles.contains(&Role::Core);
        }
        Ok(DevCluster {
            data: data.clone(),
            regions,
            nodes,
            info,
        })
    }

    /// The configuration of a node, read back from its file as `iris serve` would.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn config(&self, node: &DevNode) -> Result<NodeConfig, ConfigError> {
        NodeConfig::load(LoadOptions::from_process(Some(node.config.clone()))).map(|loaded| loaded.config)
    }
}

impl DevInfo {
    /// Reads it from a folder that `iris dev` made.
    ///
    /// # Errors
    /// [`DevError`].
    pub fn load(data: &Path) -> Result<Self, DevError> {
        let path = data.join(INFO);
        let text = fs::read(&path).map_err(|source| DevError::Io {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|error| DevError::Other(format!("{}: {error}", path.display())))
    }
}

/// One region with one node of both roles, for measuring and for trying things out.
pub fn single_region() -> Regions {
    let text = "\
id = \"local\"
name = \"One node\"

[place]
latitude = 50.1
longitude = 8.7

[[nodes]]
name = \"local-1\"
roles = [\"core\", \"edge\"]
client = \"127.0.0.1:7400\"
peer = \"127.0.0.1:7410\"
admin_http = \"127.0.0.1:7420\"
";
    let origin = Path::new("built-in/single");
    TomlText::new(origin.join("local.toml"), text.to_owned())
        .and_then(|text| Regions::from_texts(origin, vec![text]))
        .expect("a test reads it")
}

/// A folder is taken where it is missing or empty, or where it was made for this: nothing is put among the files of others.
fn refuse_foreign(data: &Path) -> Result<(), DevError> {
    if data.join(INFO).exists() {
        return Ok(());
    }
    let entry = foreign_entry(data, &BEFORE_INFO).map_err(|source| DevError::Io {
        path: data.to_owned(),
        source,
    })?;
    entry.map_or(Ok(()), |entry| {
        let folder = data.to_owned();
        Err(DevError::Foreign { folder, entry })
    })
}

/// Whether a region's file says something else than when the folder was made, the addresses apart, which may be others there.
fn differs(stored: &RegionFile, given: &RegionFile) -> bool {
    let mut given = given.clone();
    given.seeds.clone_from(&stored.seeds);
    for (node, stored) in given.nodes.iter_mut().zip(&stored.nodes) {
        (node.peer, node.client, node.admin_http) = (stored.peer, stored.client, stored.admin_http);
    }
    given != *stored
}

fn stored_regions(data: &Path, given: &Regions, ports: Ports) -> Result<Regions, DevError> {
    let folder = data.join("regions");
    if folder.is_dir() {
        let stored = Regions::load_folder(&folder)?;
        let names = |regions: &Regions| {
            let of = |region: &RegionFile| {
                let nodes: Vec<_> = region.nodes.iter().map(|node| node.name.as_str()).collect();
                format!("{} ({})", region.id, nodes.join(", "))
            };
            regions.iter().map(of).collect::<Vec<_>>().join("; ")
        };
        if names(&stored) != names(given) {
            let (stored, given) = (names(&stored), names(given));
            return Err(DevError::Regions {
                folder: data.to_owned(),
                stored,
                given,
            });
        }
        for given in given.iter() {
            let stored = stored.region(&given.id);
            if stored.is_some_and(|stored| differs(stored, given)) {
                eprintln!(
                    "the file of region {0} was changed since {1} was made: what is in {1}/{0}.toml counts; change that, or begin \
                     with another --data",
                    given.id,
                    folder.display()
                );
            }
        }
        return Ok(stored);
    }
    let mut used = BTreeSet::new();
    let draft = data.join("regions.new");
    make_folder(&draft)?;
    for region in given.iter() {
        let mut region = region.clone();
        if ports == Ports::Free {
            for node in &mut region.nodes {
                let addrs = [
                    Some(&mut node.peer),
                    Some(&mut node.admin_http),
                    node.client.as_mut(),
                ];
                for addr in addrs.into_iter().flatten() {
                    *addr = free_addr(&mut used)?;
                }
            }
            region.seeds = region.cores().map(|node| node.peer).collect();
        }
        let text = toml::to_string_pretty(&region).map_err(|error| DevError::Other(error.to_string()))?;
        write(&draft.join(format!("{}.toml", region.id)), &text)?;
    }
    fs::rename(&draft, &folder).map_err(|source| DevError::Io {
        path: folder.clone(),
        source,
    })?;
    Ok(Regions::load_folder(&folder)?)
}

/// A port that nobody has now, on UDP and TCP; another process could take it before it is used. Below those that the
/// kernel hands out by itself, or a client's socket could take it at any time.
fn free_addr(used: &mut BTreeSet<u16>) -> Result<SocketAddr, DevError> {
    let random = SystemRandom::new();
    for _ in 0..1000 {
        let mut bytes = [0; 2];
        random
            .fill(&mut bytes)
            .map_err(|_| DevError::Other("the system refused randomness".to_owned()))?;
        let port = 10_000 + u16::from_be_bytes(bytes) % 22_000;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if UdpSocket::bind(addr).is_ok() && TcpListener::bind(addr).is_ok() && used.insert(port) {
            return Ok(addr);
        }
    }
    Err(DevError::Other(
        "no port that is free for UDP and TCP was found in 1000 tries".to_owned(),
    ))
}

fn stored_info(data: &Path, regions: &Regions) -> Result<DevInfo, DevError> {
    if data.join(INFO).exists() {
        return DevInfo::load(data);
    }
    let mut random = [0; 24];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| DevError::Other("the system refused randomness".to_owned()))?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let info = DevInfo {
        cluster: hex(&random[..16]),
        hash_seed: hex(&random[16..]),
        server_name: SERVER_NAME.to_owned(),
        regions: regions
            .iter()
            .map(|region| DevRegion {
                id: region.id.clone(),
                endpoints: region.client_endpoints().map(|addr| addr.to_string()).collect(),
            })
            .collect(),
    };
    let text = serde_json::to_string_pretty(&info).map_err(|error| DevError::Other(error.to_string()))?;
    write(&data.join(INFO), &text)?;
    Ok(info)
}

fn prepare_node(
    data: &Path,
    ca: &ClusterCa,
    keys: &KeyFiles,
    info: &DevInfo,
    region: &RegionFile,
    name: &str,
) -> Result<DevNode, DevError> {
    let node = region
        .node(name)
        .ok_or_else(|| DevError::Other(format!("no node {name}")))?;
    let folder = data.join("nodes").join(name);
    let certs = folder.join("certs");
    make_folder(&certs)?;
    let issue = |stem: &str, identity: &dyn Fn() -> Result<_, CertError>| {
        let files = (
            certs.join(format!("{stem}.pem")),
            certs.join(format!("{stem}.key")),
        );
        if files.0.exists() && files.1.exists() {
            Ok(files)
        } else {
            save(identity()?, &certs, stem)
        }
    };
    let (cert, key) = issue("peer", &|| ca.issue_node(&region.id, name))?;
    let names = [SERVER_NAME.to_owned(), server_dns_name(&region.id, name)?];
    let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let (client_cert, client_key) = issue("client", &|| ca.issue_server(&names, &ips))?;
    // Paths in the file start at the file, so that a folder that is moved or copied uses what is in it.
    let beside = |path: &Path| match path.strip_prefix(data) {
        Ok(within) => Path::new("..").join(within),
        Err(_) => path.to_owned(),
    };
    let tls = TlsConfig {
        peer: PeerTls {
            ca: beside(&data.join("ca").join("ca.pem")),
            cert: beside(&cert),
            key: beside(&key),
        },
        client: Some(ClientTls {
            cert: beside(&client_cert),
            key: beside(&client_key),
        }),
    };
    let store = folder.join("data");
    let fresh = is_fresh(&store, node.has(Role::Core));
    let path = data.join("config").join(format!("{name}.toml"));
    if !path.exists() {
        make_folder(&data.join("config"))?;
        let mut config = NodeConfig::for_node(region, node, beside(&store), tls);
        // What it is made for is trying things out.
        config.faults.allowed = true;
        config.cluster.name = "dev".to_owned();
        config.cluster.id = Some(parse_hex(&info.cluster).map(ClusterId)?);
        let seed = parse_hex(&info.hash_seed)?;
        config.cluster.hash_seed = Some(Seed(u64::try_from(seed).unwrap_or_default()));
        config.regions = RegionsConfig {
            folder: Some(beside(&data.join("regions"))),
        };
        config.auth.jwt.keys = vec![JwtKey::ed25519(beside(&keys.public))];
        write(&path, &config.to_toml())?;
    }
    Ok(DevNode {
        name: name.to_owned(),
        region: region.id.clone(),
        roles: node.roles.clone(),
        client: node.client.filter(|_| node.has(Role::Edge)),
        peer: node.peer,
        admin_http: node.admin_http,
        config: path,
        data: store,
        fresh,
        begins: false,
    })
}

fn save(
    identity: crate::net::certs::Identity,
    folder: &Path,
    stem: &str,
) -> Result<(PathBuf, PathBuf), CertError> {
    identity.save(folder, stem)
}

fn parse_hex(text: &str) -> Result<u128, DevError> {
    u128::from_str_radix(text, 16)
        .map_err(|_| DevError::Other(format!("dev.json holds {text:?}; expected hexadecimal digits")))
}

fn absolute(path: &Path) -> Result<PathBuf, DevError> {
    std::path::absolute(path).map_err(|source| DevError::Io {
        path: path.to_owned(),
        source,
    })
}

fn make_folder(path: &Path) -> Result<(), DevError> {
    fs::create_dir_all(path).map_err(|source| DevError::Io {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), DevError> {
    fs::write(path, text).map_err(|source| DevError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let made = DevCluster::prepare(folder.path(), &Regions::built_in(), Ports::Free).unwrap();
        assert_eq!(made.nodes.len(), 9);
        let again = DevCluster::prepare(folder.path(), &Regions::built_in(), Ports::Free).unwrap();
        assert_eq!(made.info, again.info);
        let config = again.config(&again.nodes[0]).unwrap();
        assert!(config.cluster.id.is_some() && config.node.has(Role::Core));
        let other = DevCluster::prepare(folder.path(), &single_region(), Ports::Free);
        assert!(matches!(other, Err(DevError::Regions { .. })));
    }

    #[test]
    fn a_folder_with_files_of_others_is_refused_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let prepare = || DevCluster::prepare(folder.path(), &single_region(), Ports::Free);
        fs::write(folder.path().join("thesis.txt"), "").unwrap();
        let error = prepare().unwrap_err();
        assert!(
            matches!(&error, DevError::Foreign { entry, .. } if entry == "thesis.txt"),
            "{error}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::remove_file(folder.path().join("thesis.txt")).unwrap();

        // A fresh mount, keys that were made before, what an interrupted start left; and in a folder of ours, anything.
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        KeyFiles::in_data(folder.path()).create_or_keep().unwrap();
        prepare().unwrap();
        fs::remove_file(folder.path().join(INFO)).unwrap();
        fs::remove_dir_all(folder.path().join("config")).unwrap();
        fs::remove_dir_all(folder.path().join("nodes")).unwrap();
        prepare().unwrap();
        fs::write(folder.path().join("note.txt"), "").unwrap();
        prepare().unwrap();
    }

    #[test]
    fn a_folder_is_used_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let first = DevLock::take(&data).unwrap();
        DevCluster::prepare(&data, &single_region(), Ports::Free).unwrap();
        match DevLock::take(&data) {
            Err(DevError::InUse { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(first);
        DevLock::take(&data).unwrap();
    }

    #[test]
    fn an_address_that_somebody_has_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = DevCluster::prepare(folder.path(), &single_region(), Ports::Free).unwrap();
        let node = &cluster.nodes[0];
        assert_eq!(node.taken(), None);
        let held = UdpSocket::bind(node.peer).unwrap();
        assert_eq!(node.taken(), Some(node.peer));
        drop(held);
        let _held = TcpListener::bind(node.admin_http).unwrap();
        assert_eq!(node.taken(), Some(node.admin_http));
    }

    #[test]
    fn a_folder_that_is_moved_uses_only_what_is_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let (old, new) = (parent.path().join("old"), parent.path().join("new"));
        DevCluster::prepare(&old, &single_region(), Ports::Free).unwrap();
        fs::rename(&old, &new).unwrap();
        let moved = DevCluster::prepare(&new, &single_region(), Ports::Free).unwrap();
        let mut config = moved.config(&moved.nodes[0]).unwrap();
        let new = new.canonicalize().unwrap();
        for (key, path) in config.paths() {
            fs::create_dir_all(&moved.nodes[0].data).unwrap();
            let real = path
                .canonicalize()
                .unwrap_or_else(|error| panic!("{key}: {error}"));
            assert!(real.starts_with(&new), "{key} = {}", real.display());
        }
        assert_eq!(
            config.node.data.canonicalize().unwrap(),
            moved.nodes[0].data.canonicalize().unwrap()
        );
    }
}
