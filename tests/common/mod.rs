//! A whole cluster in one test process: real servers, sockets, stores.
#![allow(dead_code, reason = "each test binary uses its part of this")]

pub mod members;
pub mod raw;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iris::admin::server::AdminServer;
use iris::client::{Client, ClientConfig, ClientEvent, Incoming, OutgoingMessage, connector};
use iris::core::ids::UserId;
use iris::net::certs::Roots;
use iris::net::connect::Connector;
use iris::server::config::TomlText;
use iris::server::dev::{DevCluster, Ports, SERVER_NAME};
use iris::server::node::Node;
use iris::server::regions::Regions;
use iris::server::token::{KeyFiles, Signer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Long enough for a loaded machine; a test that needs it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at what is waited for.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Regions of one core and one edge node each.
pub fn regions(ids: &[&str]) -> Regions {
    regions_with(ids, "")
}

/// Regions whose files have these lines too.
pub fn regions_with(ids: &[&str], lines: &str) -> Regions {
    let texts = ids.iter().enumerate().map(|(i, id)| {
        let text = format!(
            "id = \"{id}\"\nname = \"{id}\"\n{lines}[place]\nlatitude = {i}.0\nlongitude = 0.0\n\
             [[nodes]]\nname = \"{id}-core\"\nroles = [\"core\"]\npeer = \"127.0.0.1:{}\"\nadmin_http = \"127.0.0.1:{}\"\n\
             [[nodes]]\nname = \"{id}-edge\"\nroles = [\"edge\"]\nclient = \"127.0.0.1:{}\"\npeer = \"127.0.0.1:{}\"\nadmin_http = \"127.0.0.1:{}\"\n",
            1000 + i, 1100 + i, 1200 + i, 1300 + i, 1400 + i,
        );
        TomlText::new(format!("{id}.toml"), text).unwrap()
    });
    Regions::from_texts(Path::new("test"), texts.collect()).unwrap()
}

/// A running cluster in a folder of its own.
pub struct TestCluster {
    pub dev: DevCluster,
    pub folder: tempfile::TempDir,
    nodes: BTreeMap<String, Node>,
    /// The operators' interfaces, by node.
    admin: BTreeMap<String, AdminServer>,
    pub connector: Connector,
    /// Changes of every node's configuration, as `--set` would make them.
    set: Vec<(String, String)>,
}

impl TestCluster {
    pub async fn start(regions: &Regions, set: &[(&str, &str)]) -> Self {
        let mut cluster = Self::prepare(regions, set);
        cluster.start_regions(|_| true).await;
        cluster
    }

    /// With one of the regions not there yet: its nodes are prepared and do not run, and its file lies aside.
    pub async fn start_without(regions: &Regions, without: &str, set: &[(&str, &str)]) -> Self {
        let mut cluster = Self::prepare(regions, set);
        cluster.take_file(without);
        cluster.start_regions(|region| region != without).await;
        cluster
    }

    /// A region's file is put into the folder of regions.
    pub fn put_file(&mut self, region: &str) {
        let (there, aside) = self.file(region);
        std::fs::rename(aside, there).unwrap();
        self.dev.regions = Regions::load_folder(&self.dev.data.join("regions")).unwrap();
    }

    /// And taken from it.
    pub fn take_file(&mut self, region: &str) {
        let (there, aside) = self.file(region);
        std::fs::rename(there, aside).unwrap();
        self.dev.regions = Regions::load_folder(&self.dev.data.join("regions")).unwrap();
    }

    fn file(&self, region: &str) -> (std::path::PathBuf, std::path::PathBuf) {
        let name = format!("{region}.toml");
        (
            self.dev.data.join("regions").join(&name),
            self.dev.data.join(name),
        )
    }

    /// Starts all nodes of some regions, and waits until all that run are ready.
    async fn start_regions(&mut self, which: impl Fn(&str) -> bool) {
        let nodes = self.dev.nodes.iter().filter(|node| which(&node.region));
        let names: Vec<String> = nodes.map(|node| node.name.clone()).collect();
        for name in &names {
            self.start_node(name).await;
        }
        self.ready().await;
    }

    fn prepare(regions: &Regions, set: &[(&str, &str)]) -> Self {
        if let Ok(filter) = std::env::var("IRIS_LOG") {
            // The first test of the process sets it up.
            let _ = iris::server::log::init(&iris::server::config::LogConfig::default(), Some(&filter));
        }
        let folder = tempfile::tempdir().unwrap();
        let dev = DevCluster::prepare(folder.path(), regions, Ports::Free).unwrap();
        let roots = Roots::load(&folder.path().join("ca/ca.pem")).unwrap();
        let set = set
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        Self {
            dev,
            folder,
            nodes: BTreeMap::new(),
            admin: BTreeMap::new(),
            connector: connector(&roots).unwrap(),
            set,
        }
    }

    pub async fn start_node(&mut self, name: &str) {
        let node = self.dev.nodes.iter().find(|node| node.name == name).unwrap();
        let create = node.create();
        let mut options = iris::server::config::LoadOptions::from_process(Some(node.config.clone()));
        for (key, value) in &self.set {
            options = options.flag("--set", key, value);
        }
        let config = iris::server::config::NodeConfig::load(options).unwrap().config;
        // The socket or the store of the run before may be let go a moment after it stopped.
        let started = std::time::Instant::now();
        let node = loop {
            match Node::start(config.clone(), self.dev.regions.clone(), create).await {
                Ok(node) => break node,
                Err(error) if started.elapsed() > PATIENCE => panic!("{name} does not start: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let admin = AdminServer::start(node.inspector()).await.unwrap();
        self.admin.insert(name.to_owned(), admin);
        self.nodes.insert(name.to_owned(), node);
    }

    pub async fn ready(&self) {
        for node in self.nodes.values() {
            within(&format!("{} ready", node.key()), node.ready()).await;
        }
    }

    pub fn node(&self, name: &str) -> &Node {
        &self.nodes[name]
    }

    pub async fn stop_node(&mut self, name: &str) {
        let node = self.nodes.remove(name).unwrap();
        within(&format!("{name} stopped"), node.stop()).await;
        self.admin.remove(name).unwrap().stop().await;
    }

    /// Ends a node as if its process died: nobody is told that its sessions end.
    pub async fn kill_node(&mut self, name: &str) {
        let node = self.nodes.remove(name).unwrap();
        // Its socket stays behind, as it would.
        drop(self.admin.remove(name));
        within(&format!("{name} gone"), node.abandon()).await;
    }

    pub async fn stop(mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        // Edges end first: their clients are told to go.
        let (cores, edges): (Vec<_>, Vec<_>) =
            nodes.into_values().partition(|node| node.client_addr().is_none());
        for node in edges.into_iter().chain(cores) {
            within("stopped", node.stop()).await;
        }
        for admin in std::mem::take(&mut self.admin).into_values() {
            admin.stop().await;
        }
    }

    pub fn config(&self, region: &str, user: &str, device: &str) -> ClientConfig {
        client_config(&self.dev, &self.connector, region, user, device)
    }

    pub async fn client(&self, region: &str, user: &str, device: &str) -> Client {
        let client = Client::connect(self.config(region, user, device)).unwrap();
        assert!(
            within(&format!("{user}/{device} connected"), client.connected()).await,
            "closed"
        );
        client
    }
}

/// A token as the cluster's issuer makes it.
pub fn token(folder: &Path, user: &str) -> String {
    let signer = Signer::from_file(&KeyFiles::in_data(folder).private, None).unwrap();
    signer.mint(user, unix_secs(), Duration::from_secs(3600)).unwrap()
}

pub fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A device of a user that prefers `region` and knows the others.
pub fn client_config(
    dev: &DevCluster,
    connector: &Connector,
    region: &str,
    user: &str,
    device: &str,
) -> ClientConfig {
    let token = token(&dev.data, user);
    let mut config = ClientConfig::new(connector.clone(), token, device.parse().unwrap());
    config.server_name = Some(SERVER_NAME.to_owned());
    let mut regions: Vec<_> = dev.info.regions.iter().collect();
    regions.sort_by_key(|info| info.id != region);
    for info in regions {
        config.endpoints_of(info.id.parse().unwrap(), info.endpoints.clone());
    }
    config
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

pub fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

pub async fn send(client: &Client, to: &str, body: impl Into<bytes::Bytes>) -> iris::client::Accepted {
    let handle = client.send(user(to), body).unwrap();
    within("accepted", handle).await.unwrap()
}

/// The next message, acknowledged.
pub async fn receive(client: &Client) -> Incoming {
    let message = within("a message", client.next_message()).await.expect("closed");
    client.consumed(message.at);
    message
}

/// Messages that are there now, after everything sent before `marker` must have arrived.
pub async fn until_body(client: &Client, marker: &[u8]) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    loop {
        let message = receive(client).await;
        if message.body.as_ref() == marker {
            return bodies;
        }
        bodies.push(message.body.to_vec());
    }
}

/// The next event that `pick` takes; others are dropped.
pub async fn event<T>(what: &str, client: &Client, mut pick: impl FnMut(&ClientEvent) -> Option<T>) -> T {
    within(what, async {
        loop {
            let event = client.next().await.expect("closed");
            if let Some(value) = pick(&event) {
                return value;
            }
        }
    })
    .await
}

/// A body of `len` bytes that begins with its number.
pub fn padded(number: u64, len: usize) -> Vec<u8> {
    let mut body = vec![0; len];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body
}

/// The number of such a body.
pub fn number_in(body: &[u8]) -> u64 {
    u64::from_be_bytes(body[..8].try_into().unwrap())
}

/// Sends a message of each number to each, in turns and at the pace of the answers.
pub async fn send_all(from: &Client, to: &[&str], numbers: Range<u64>, len: usize) {
    let numbers = numbers.flat_map(|number| to.iter().map(move |to| (number, *to)));
    let mut messages: VecDeque<OutgoingMessage> = numbers
        .map(|(number, to)| OutgoingMessage::new(user(to), padded(number, len)))
        .collect();
    let mut answers = messages.len();
    while answers > 0 {
        if !messages.is_empty() {
            from.send_batch(&mut messages);
        }
        let accepted = |event: &ClientEvent| match event {
            ClientEvent::Accepted { .. } => Some(()),
            ClientEvent::Rejected { .. } => panic!("{event:?}"),
            _ => None,
        };
        event("accepted", from, accepted).await;
        answers -= 1;
    }
}

/// The answer to a request of the admin port: head and body.
pub async fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Looks until it is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !is_so().await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await;
}
