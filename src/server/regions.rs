//! The regions of a cluster, one TOML file each (`regions/us-east.toml`): place, store, durability, nodes and their addresses.
//!
//! The server, the simulator (delays from geography) and Terraform read the same files. The set of files is the set of
//! holders with which a cluster is begun; from then on operators add and remove regions (`super::holders`), and a file that
//! is there without its region being a holder does nothing. Checked on reading: each file alone, then names and addresses across files. Errors name file, line, key, value
//! and what was expected.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::ids::NodeName;
use crate::core::owner::{DurabilityPolicy, WithoutCopy};
use crate::net::address::is_wildcard;

use super::config::{ConfigError, Problem, TomlText};

/// Regions of one cluster. Each link between two of them costs a connection and a share of every commit's shipping.
pub const MAX_REGIONS: usize = 64;

/// Nodes of one region: chitchat sends a digest of all of them each round.
pub const MAX_NODES: usize = 256;

/// The shipped region files, for use outside a checkout: file name and text.
const BUILT_IN: [(&str, &str); 3] = [
    ("us-east.toml", include_str!("../../regions/us-east.toml")),
    ("eu-west.toml", include_str!("../../regions/eu-west.toml")),
    ("ap-south.toml", include_str!("../../regions/ap-south.toml")),
];

/// All regions of a cluster, by id. Not empty.
#[derive(Debug, Clone)]
pub struct Regions {
    regions: BTreeMap<String, (RegionFile, TomlText)>,
}

/// One region, as its file describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionFile {
    /// The region's id, which is also the file's name: `us-east`.
    pub id: String,
    /// The name people read: `US East (Northern Virginia)`.
    pub name: String,
    /// Where an accepted message is durable.
    #[serde(default)]
    pub durability: Durability,
    /// With `durability = "geo"`, what becomes of a message that no other region takes within `timeouts.geo`, or can take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub geo_fallback: Option<GeoFallback>,
    /// Peer addresses that a starting node, or a link of another region, asks first; the core nodes where none are named.
    #[serde(default)]
    pub seeds: Vec<SocketAddr>,
    /// Where it stands; the simulator derives delays from it.
    pub place: Location,
    /// Its store.
    #[serde(default)]
    pub store: RegionStore,
    /// Its nodes.
    pub nodes: Vec<RegionNode>,
}

/// A place on earth, in degrees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// North is positive, -90 to 90.
    pub latitude: f64,
    /// East is positive, -180 to 180.
    pub longitude: f64,
}

/// Where a message must be durable before it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// In the store of the region that accepts it.
    #[default]
    Region,
    /// In at least one other region too: it outlives the loss of any one region.
    Geo,
}

/// What becomes of a message that should be durable in another region too, and is not in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GeoFallback {
    /// It is refused, to be sent again: clients do so by themselves until another region can be reached.
    #[default]
    Refuse,
    /// It is accepted as durable in the region alone, and its sender is told so.
    Region,
}

/// The store of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionStore {
    /// The engine.
    #[serde(default)]
    pub engine: Engine,
}

/// A store engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A journal and tables in the data folder of the region's only core node.
    #[default]
    Embedded,
    /// A FoundationDB cluster for any number of core nodes. Parsed, and refused: it is not built into this binary.
    FoundationDb,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns shards and talks to the store.
    Core,
    /// Holds the sessions of clients.
    Edge,
}

/// One node of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionNode {
    /// Its name, unique over all regions: `us-east-edge-1`.
    pub name: String,
    /// What it does, one or both.
    pub roles: Vec<Role>,
    /// Where clients reach it (QUIC, UDP). Needed by an edge; a node that is only core does not listen there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// Where other nodes reach it (QUIC, UDP).
    pub peer: SocketAddr,
    /// Where its health and metrics are served (HTTP, TCP).
    pub admin_http: SocketAddr,
}

impl Regions {
    /// Reads every `*.toml` of `folder`. No such file is an error.
    pub fn load_folder(folder: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read {
            file: folder.to_owned(),
            source,
            hint: "name a folder with one file for each region",
        };
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            }
        }
        files.sort();
        let texts = files
            .iter()
            .map(|file| TomlText::read(file))
            .collect::<Result<_, _>>()?;
        Self::from_texts(folder, texts)
    }

    /// The three regions that are shipped, from copies inside the program.
    pub fn built_in() -> Self {
        let text = |(name, text): (&str, &str)| TomlText::new(format!("built-in/{name}"), text.to_owned());
        let texts = BUILT_IN.into_iter().map(text).collect::<Result<_, _>>();
        texts
            .and_then(|texts| Self::from_texts(Path::new("built-in"), texts))
            .expect("the shipped region files are valid: a test reads them")
    }

    /// The regions of `folder`, or the shipped ones where none is named.
    pub fn load(folder: Option<&Path>) -> Result<Self, ConfigError> {
        folder.map_or_else(|| Ok(Self::built_in()), Self::load_folder)
    }

    /// The regions that `texts` describe; `origin` stands for all of them in errors.
    pub fn from_texts(origin: &Path, texts: Vec<TomlText>) -> Result<Self, ConfigError> {
        if texts.is_empty() || texts.len() > MAX_REGIONS {
            return Err(Problem {
                place: super::config::Place::File(origin.to_owned(), None),
                key: String::new(),
                value: None,
                message: format!(
                    "{} region files (*.toml), expected 1 to {MAX_REGIONS}",
                    texts.len()
                ),
            }
            .into());
        }
        let mut problems = Vec::new();
        let mut read = Vec::new();
        for text in texts {
            match RegionFile::parse(&text) {
                Ok(region) => read.push((region, text)),
                Err(ConfigError::Problems(more)) => problems.extend(more),
                Err(other) => return Err(other),
            }
        }
        problems.extend(check_across(&read));
        if problems.is_empty() {
            Ok(Self {
                regions: read
                    .into_iter()
                    .map(|entry| (entry.0.id.clone(), entry))
                    .collect(),
            })
        } else {
            Err(ConfigError::Problems(problems))
        }
    }

    /// The region with this id.
    pub fn region(&self, id: &str) -> Option<&RegionFile> {
        self.regions.get(id).map(|(region, _)| region)
    }

    /// All regions, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &RegionFile> {
        self.regions.values().map(|(region, _)| region)
    }

    /// The ids of all regions, in order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.regions.keys().map(String::as_str)
    }

    /// Whether these are the same regions, as far as their files say anything.
    pub fn same_as(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }

    /// The node with this name, and its region.
    pub fn node(&self, name: &str) -> Option<(&RegionFile, &RegionNode)> {
        self.iter().find_map(|region| Some((region, region.node(name)?)))
    }

    /// The text of a region's file, which knows the line of each key.
    pub fn text(&self, id: &str) -> Option<&TomlText> {
        self.regions.get(id).map(|(_, text)| text)
    }
}

impl RegionFile {
    /// Reads one region's file and checks all that can be checked without the others.
    pub fn parse(text: &TomlText) -> Result<Self, ConfigError> {
        let region: Self = text.parse()?;
        let problems = check_alone(&region, text);
        if problems.is_empty() {
            Ok(region)
        } else {
            Err(ConfigError::Problems(problems))
        }
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&RegionNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The nodes that own shards.
    pub fn cores(&self) -> impl Iterator<Item = &RegionNode> {
        self.nodes.iter().filter(|node| node.has(Role::Core))
    }

    /// The nodes that hold sessions.
    pub fn edges(&self) -> impl Iterator<Item = &RegionNode> {
        self.nodes.iter().filter(|node| node.has(Role::Edge))
    }

    /// Where clients may connect: the client addresses of the edges.
    pub fn client_endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.edges().filter_map(|node| node.client)
    }

    /// When its owners accept a message.
    pub fn policy(&self) -> DurabilityPolicy {
        match (self.durability, self.geo_fallback.unwrap_or_default()) {
            (Durability::Region, _) => DurabilityPolicy::Region,
            (Durability::Geo, GeoFallback::Refuse) => DurabilityPolicy::Geo(WithoutCopy::Refuse),
            (Durability::Geo, GeoFallback::Region) => DurabilityPolicy::Geo(WithoutCopy::AcceptAsRegion),
        }
    }

    /// Peer addresses to ask first: the seeds, or the core nodes where the file names none.
    pub fn seed_addresses(&self) -> Vec<SocketAddr> {
        if self.seeds.is_empty() {
            self.cores().map(|node| node.peer).collect()
        } else {
            self.seeds.clone()
        }
    }
}

impl RegionNode {
    /// Whether the node has this role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

impl Location {
    /// The distance along the surface, in kilometres (haversine, on a sphere of 6,371 km).
    pub fn distance_km(&self, other: &Location) -> f64 {
        let (lat1, lat2) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_lat = (lat2 - lat1) / 2.0;
        let half_lon = (other.longitude - self.longitude).to_radians() / 2.0;
        let a = half_lat.sin().powi(2) + lat1.cos() * lat2.cos() * half_lon.sin().powi(2);
        2.0 * 6_371.0 * a.sqrt().min(1.0).asin()
    }

    /// How long what is sent takes to the other place, in microseconds: the great circle at two thirds of the speed of light,
    /// and half as much again for the way that cables take.
    pub fn one_way_us(&self, other: &Location) -> u64 {
        (self.distance_km(other) * 1.5 / 200_000.0 * 1e6) as u64
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Core => "core",
            Role::Edge => "edge",
        })
    }
}

/// Whether `name` may be the name of a region or node: `[a-z0-9-]{1,32}`.
pub fn is_name(name: &str) -> bool {
    NodeName::new(name).is_ok()
}

/// What a name must look like, for errors.
pub(crate) const NAME_EXPECTED: &str = "expected 1 to 32 of a-z, 0-9 and -";

/// The only engine of this binary needs one core node; said the same way wherever it is found.
pub(crate) const ONE_CORE: &str = "the engine \"embedded\" keeps its store in one node, so a region has one core node with it; \
     for more core nodes use engine = \"foundationdb\"";

fn check_alone(region: &RegionFile, text: &TomlText) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut wrong = |key: &str, message: String| problems.push(text.problem(key, message));
    if !is_name(&region.id) {
        wrong("id", NAME_EXPECTED.to_owned());
    } else if text
        .file()
        .file_stem()
        .is_none_or(|stem| stem != region.id.as_str())
    {
        wrong(
            "id",
            format!(
                "expected the file to be named {}.toml, or the id to be the file's name",
                region.id
            ),
        );
    }
    if region.name.trim().is_empty() || region.name.len() > 100 || region.name.chars().any(char::is_control) {
        wrong(
            "name",
            "expected 1 to 100 bytes of text that people read".to_owned(),
        );
    }
    if !(-90.0..=90.0).contains(&region.place.latitude) {
        wrong(
            "place.latitude",
            "expected degrees from -90 (south) to 90 (north)".to_owned(),
        );
    }
    if !(-180.0..=180.0).contains(&region.place.longitude) {
        wrong(
            "place.longitude",
            "expected degrees from -180 (west) to 180 (east)".to_owned(),
        );
    }
    if region.durability == Durability::Region && region.geo_fallback.is_some() {
        wrong(
            "geo_fallback",
            "it counts with durability = \"geo\" only; set that, or leave this out".to_owned(),
        );
    }
    if region.store.engine == Engine::FoundationDb {
        wrong(
            "store.engine",
            "this binary is built without FoundationDB; use \"embedded\" with one core node".to_owned(),
        );
    }
    if region.nodes.len() > MAX_NODES {
        wrong(
            "nodes",
            format!("{} nodes, expected at most {MAX_NODES}", region.nodes.len()),
        );
    }
    match (region.cores().count(), region.store.engine) {
        (0, _) => wrong(
            "nodes",
            "no node has the role \"core\", expected at least one".to_owned(),
        ),
        (2.., Engine::Embedded) => {
            let core = |node: &&RegionNode| node.has(Role::Core);
            let second = region
                .nodes
                .iter()
                .enumerate()
                .filter(|(_, node)| core(node))
                .nth(1);
            let key = second.map_or("nodes".to_owned(), |(i, _)| format!("nodes.{i}.roles"));
            wrong(&key, ONE_CORE.to_owned());
        }
        _ => {}
    }
    for (i, node) in region.nodes.iter().enumerate() {
        if !is_name(&node.name) {
            wrong(&format!("nodes.{i}.name"), NAME_EXPECTED.to_owned());
        }
        if node.roles.is_empty() || node.roles.len() > 2 || node.roles.first() == node.roles.get(1) {
            wrong(
                &format!("nodes.{i}.roles"),
                "expected \"core\", \"edge\" or both, each once".to_owned(),
            );
        }
        if node.has(Role::Edge) && node.client.is_none() {
            wrong(
                &format!("nodes.{i}"),
                "an edge node needs `client`, the address for its clients".to_owned(),
            );
        }
        for (what, address) in node.addresses() {
            if address.port() == 0 {
                wrong(
                    &format!("nodes.{i}.{what}"),
                    "port 0 cannot be reached; name a port".to_owned(),
                );
            }
            if what != "admin_http" && is_wildcard(address.ip()) {
                wrong(&format!("nodes.{i}.{what}"), wildcard_in_region(what));
            }
        }
    }
    for (i, seed) in region.seeds.iter().enumerate() {
        if is_wildcard(seed.ip()) {
            wrong(
                &format!("seeds.{i}"),
                "nobody can connect to a wildcard address; name the peer address of a node".to_owned(),
            );
        }
    }
    problems
}

fn wildcard_in_region(what: &str) -> String {
    format!(
        "others are told this address and cannot connect to a wildcard; name the one where they reach the node. To listen \
         on all addresses, set listen.{what} and advertise.{what} in the node's own file"
    )
}

impl RegionNode {
    fn addresses(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let client = self.client.map(|address| ("client", address));
        client
            .into_iter()
            .chain([("peer", self.peer), ("admin_http", self.admin_http)])
    }
}

/// Names of regions and nodes, and addresses, are unique over all files. An address is compared with its transport: the
/// HTTP port is TCP, the others are UDP.
fn check_across(regions: &[(RegionFile, TomlText)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut ids = BTreeMap::new();
    let mut names = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for (region, text) in regions {
        if region.durability == Durability::Geo && regions.len() == 1 {
            problems.push(text.problem(
                "durability",
                "there is no other region that a message could be durable in; add the file of one, or use \"region\""
                    .to_owned(),
            ));
        }
        if let Some(first) = ids.insert(&region.id, text.place("id")) {
            problems.push(text.problem(
                "id",
                format!("{first} has the same id, expected one file a region"),
            ));
        }
        for (i, node) in region.nodes.iter().enumerate() {
            let key = format!("nodes.{i}.name");
            if let Some(first) = names.insert(&node.name, text.place(&key)) {
                problems.push(text.problem(
                    &key,
                    format!("{first} has the same name, expected a name once over all regions"),
                ));
            }
            for (what, address) in node.addresses() {
                let key = format!("nodes.{i}.{what}");
                let transport = if what == "admin_http" { "TCP" } else { "UDP" };
                if let Some(first) = addresses.insert((transport, address), text.place(&key)) {
                    problems.push(text.problem(
                        &key,
                        format!("{first} has the same {transport} address, expected another"),
                    ));
                }
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::MAX_NAME_LEN;

    const ONE: &str = r#"
id = "north"
name = "North"
[place]
latitude = 60.0
longitude = 10.0
[[nodes]]
name = "north-1"
roles = ["core", "edge"]
client = "127.0.0.1:7000"
peer = "127.0.0.1:7001"
admin_http = "127.0.0.1:7002"
"#;

    fn read(text: &str) -> Result<RegionFile, String> {
        let text = TomlText::new("north.toml", text.to_owned()).map_err(|error| error.to_string())?;
        RegionFile::parse(&text).map_err(|error| error.to_string())
    }

    /// Replaces `from` by `to` in a good file and expects this error.
    fn refused(from: &str, to: &str, error: &str) {
        assert!(ONE.contains(from), "{from}");
        let found = read(&ONE.replacen(from, to, 1)).expect_err(to);
        assert!(
            found.contains(error),
            "for {to}:\n  found {found}\n  not   {error}"
        );
    }

    #[test]
    fn geo_needs_another_region() {
        let text = |name: &str, text: &str| TomlText::new(format!("{name}.toml"), text.to_owned()).unwrap();
        let geo = ONE.replacen(
            "name =",
            "durability = \"geo\"\ngeo_fallback = \"region\"\nname =",
            1,
        );
        let alone = Regions::from_texts(Path::new("regions"), vec![text("north", &geo)]);
        let error = alone.unwrap_err().to_string();
        let expected = "north.toml:3: durability = \"geo\": there is no other region";
        assert!(error.contains(expected), "{error}");
        let other = ONE
            .replace("north", "south")
            .replace("127.0.0.1:70", "127.0.0.1:71");
        let both = vec![text("north", &geo), text("south", &other)];
        let both = Regions::from_texts(Path::new("regions"), both).unwrap();
        let policy = |id| both.region(id).unwrap().policy();
        assert_eq!(
            policy("north"),
            DurabilityPolicy::Geo(WithoutCopy::AcceptAsRegion)
        );
        assert_eq!(policy("south"), DurabilityPolicy::Region);
    }

    #[test]
    fn the_shipped_regions_are_valid() {
        let regions = Regions::built_in();
        assert_eq!(
            regions.ids().collect::<Vec<_>>(),
            ["ap-south", "eu-west", "us-east"]
        );
        for region in regions.iter() {
            assert_eq!(
                (region.cores().count(), region.edges().count()),
                (1, 2),
                "{}",
                region.id
            );
            assert_eq!(region.client_endpoints().count(), 2);
            assert_eq!(
                region.seed_addresses(),
                region.cores().map(|node| node.peer).collect::<Vec<_>>()
            );
            let mut addresses = region
                .nodes
                .iter()
                .flat_map(|node| node.addresses().map(|(_, address)| address));
            assert!(addresses.all(|address| address.ip().is_loopback() && address.port() < 32_768));
        }
        let (region, node) = regions.node("eu-west-edge-2").expect("a shipped node");
        assert_eq!(
            (region.id.as_str(), node.roles.as_slice()),
            ("eu-west", [Role::Edge].as_slice())
        );
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regions");
        let from_folder = Regions::load_folder(&folder).expect("the shipped folder");
        assert!(from_folder.iter().eq(regions.iter()));
    }

    #[test]
    fn distances_are_those_of_the_map() {
        let regions = Regions::built_in();
        let place = |id: &str| regions.region(id).expect("shipped").place;
        let dublin_virginia = place("eu-west").distance_km(&place("us-east"));
        assert!((5_300.0..5_600.0).contains(&dublin_virginia), "{dublin_virginia}");
        assert_eq!(place("eu-west").distance_km(&place("eu-west")), 0.0);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        assert!(read(ONE).is_ok());
        refused(
            "id = \"north\"",
            "id = \"North\"",
            "north.toml:2: id = \"North\": expected 1 to 32 of a-z",
        );
        refused(
            "id = \"north\"",
            "id = \"south\"",
            "expected the file to be named south.toml",
        );
        refused(
            "60.0",
            "90.5",
            "north.toml:5: place.latitude = 90.5: expected degrees",
        );
        refused("10.0", "nan", "place.longitude = nan: expected degrees");
        refused("10.0", "-180.5", "place.longitude = -180.5: expected degrees");
        refused(
            "name = \"North\"",
            "geo_fallback = \"region\"\nname = \"N\"",
            "it counts with durability = \"geo\" only",
        );
        refused(
            "name = \"North\"",
            "durability = \"global\"\nname = \"N\"",
            "unknown variant",
        );
        refused(
            "[place]",
            "[store]\nengine = \"foundationdb\"\n[place]",
            "built without FoundationDB",
        );
        refused(
            "[place]",
            "[store]\nengine = \"redis\"\n[place]",
            "north.toml:5: store.engine = \"redis\": unknown variant",
        );
        refused(
            "\"core\", ",
            "",
            "north.toml:7: nodes: no node has the role \"core\"",
        );
        refused(
            "\"core\", \"edge\"",
            "\"core\", \"core\"",
            "north.toml:9: nodes.0.roles = [\"core\", \"core\"]: expected",
        );
        refused("client = \"127.0.0.1:7000\"\n", "", "an edge node needs `client`");
        refused(":7001", ":0", "nodes.0.peer = \"127.0.0.1:0\": port 0");
        refused(
            "127.0.0.1:7000",
            "0.0.0.0:7000",
            "north.toml:10: nodes.0.client = \"0.0.0.0:7000\": others are told this address",
        );
        refused(
            "127.0.0.1:7001",
            "[::]:7001",
            "set listen.peer and advertise.peer",
        );
        refused(
            "[place]",
            "seeds = [\"0.0.0.0:7001\"]\n[place]",
            "nobody can connect to a wildcard address; name the peer address",
        );
        refused(
            ":7001",
            "",
            "north.toml:11: nodes.0.peer = \"127.0.0.1\": expected an IP address and a port",
        );
        refused(
            "latitude",
            "lattitude",
            "north.toml:5: place.lattitude = 60.0: unknown field `lattitude`",
        );
        refused(
            "60.0",
            "\"far\"",
            "north.toml:5: place.latitude = \"far\": invalid type",
        );
        refused(
            "7002\"",
            "7002\"\nname = \"b\"",
            "north.toml:13: this is not TOML",
        );
    }

    #[test]
    fn the_largest_and_smallest_places_are_accepted() {
        for (latitude, longitude) in [("90.0", "180.0"), ("-90.0", "-180.0"), ("0", "0")] {
            let text = ONE.replace("60.0", latitude).replace("10.0", longitude);
            assert!(read(&text).is_ok(), "{latitude} {longitude}");
        }
        let name = "n".repeat(MAX_NAME_LEN);
        assert!(is_name(&name) && !is_name(&format!("{name}n")) && !is_name(""));
    }

    #[test]
    fn a_second_core_asks_for_foundationdb() {
        let second = "[[nodes]]\nname = \"north-2\"\nroles = [\"core\"]\npeer = \"127.0.0.1:7011\"\nadmin_http = \"127.0.0.1:7012\"\n";
        let error = read(&format!("{ONE}{second}")).expect_err("two cores");
        assert!(
            error.contains("nodes.1.roles = [\"core\"]") && error.contains("foundationdb"),
            "{error}"
        );
    }

    #[test]
    fn names_and_addresses_are_unique_over_files() {
        let north = TomlText::new("north.toml", ONE.to_owned()).expect("TOML");
        let south = |text: &str| {
            TomlText::new("south.toml", text.replace("id = \"north\"", "id = \"south\"")).expect("TOML")
        };
        let both = |text: &str| Regions::from_texts(Path::new("regions"), vec![north.clone(), south(text)]);
        let error = both(ONE).expect_err("all the same").to_string();
        assert!(
            error.contains("south.toml:8: nodes.0.name = \"north-1\": north.toml:8 has the same name"),
            "{error}"
        );
        assert!(
            error.contains("nodes.0.client = \"127.0.0.1:7000\": north.toml:10 has the same UDP address"),
            "{error}"
        );
        assert!(error.contains("nodes.0.admin_http"), "{error}");
        assert!(
            both(
                &ONE.replace("north-1", "south-1")
                    .replace("127.0.0.1", "127.0.0.2")
            )
            .is_ok()
        );
        assert!(Regions::from_texts(Path::new("regions"), vec![]).is_err());
        assert!(Regions::load_folder(Path::new("/nonexistent/iris")).is_err());
    }
}
