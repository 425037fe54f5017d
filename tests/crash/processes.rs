//! `iris dev --processes` as a child of the test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iris::client::{ClientConfig, connector};
use iris::net::certs::Roots;
use iris::net::connect::Connector;
use iris::server::dev::{DevCluster, DevNode, Ports, SERVER_NAME};
use iris::server::regions::Regions;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{PATIENCE, client_config, regions_with, token};

/// Between two looks at something outside of this process.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The program, without the variables that it would take for settings.
pub fn iris() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("IRIS_") && name != "IRIS_LOG" {
            command.env_remove(name.as_ref());
        }
    }
    command
}

/// A running cluster, each node a process. Its supervisor ends with it: stdin closes.
pub struct Processes {
    pub dev: DevCluster,
    pub connector: Connector,
    supervisor: Child,
    folder: tempfile::TempDir,
}

impl Processes {
    /// Starts the regions with `settings` from the environment; returns when every node is ready.
    pub async fn start(regions: &Regions, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // What `iris dev` would do first; here, so that the test knows the ports.
        let dev = DevCluster::prepare(folder.path(), regions, Ports::Free).unwrap();
        let roots = Roots::load(&folder.path().join("ca/ca.pem")).unwrap();
        let supervisor = iris()
            .args([
                "dev",
                "--processes",
                "--stop-with-stdin",
                "--ports",
                "free",
                "--data",
            ])
            .arg(folder.path())
            .arg("--regions")
            .arg(folder.path().join("regions"))
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let cluster = Self {
            dev,
            connector: connector(&roots).unwrap(),
            supervisor,
            folder,
        };
        for node in &cluster.dev.nodes {
            cluster.ready_under_another_pid(&node.name, None).await;
        }
        cluster
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn node(&self, name: &str) -> &DevNode {
        self.dev.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// The process that runs a node now, as far as its supervisor has written.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let text = std::fs::read(self.path().join("pids.json")).ok()?;
        let pids: BTreeMap<String, u32> = serde_json::from_slice(&text).unwrap();
        pids.get(name).copied()
    }

    /// `kill -9`; gives the pid that is no more.
    pub fn kill(&self, name: &str) -> u32 {
        let pid = self.pid(name).unwrap();
        kill_9(pid);
        pid
    }

    /// Waits until the node is ready in another process than `old`.
    pub async fn ready_under_another_pid(&self, name: &str, old: Option<u32>) {
        let deadline = Instant::now() + PATIENCE;
        let addr = self.node(name).admin_http;
        loop {
            let started = self.pid(name).is_some_and(|pid| Some(pid) != old);
            if started && is_ready(addr).await {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{name} is not ready again within {PATIENCE:?}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Drains and stops.
    pub async fn stop(mut self) {
        drop(self.supervisor.stdin.take());
        let ended = tokio::task::spawn_blocking(move || (self.supervisor.wait().unwrap(), self.folder));
        let (status, _) = crate::common::within("the supervisor ends", ended).await.unwrap();
        assert!(status.success(), "iris dev: {status}");
    }
}

/// A node in a process of its own; dropping it is `kill -9`.
pub struct Running(Child);

impl Running {
    pub fn start(mut command: Command) -> Self {
        let child = command.arg("--stop-with-stdin").stdin(Stdio::piped()).spawn();
        Self(child.unwrap())
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self, node: &DevNode) {
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(node.admin_http).await {
            if let Some(status) = self.0.try_wait().unwrap() {
                panic!("{} ended: {status}", node.name);
            }
            assert!(
                Instant::now() < deadline,
                "{} is not ready within {PATIENCE:?}",
                node.name
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            kill_9(self.0.id());
        }
        let _ = self.0.wait();
    }
}

/// Nodes that the test starts and kills by itself, each a process.
pub struct Site {
    pub dev: DevCluster,
    connector: Connector,
    nodes: BTreeMap<String, Running>,
    settings: Vec<(&'static str, String)>,
    folder: tempfile::TempDir,
}

impl Site {
    /// These regions, with lines more in their files, and variables for their nodes.
    pub async fn start(regions: &[&str], lines: &str, settings: &[(&'static str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let regions = regions_with(regions, lines);
        let dev = DevCluster::prepare(folder.path(), &regions, Ports::Free).unwrap();
        let roots = Roots::load(&folder.path().join("ca/ca.pem")).unwrap();
        let mut site = Self {
            dev,
            connector: connector(&roots).unwrap(),
            nodes: BTreeMap::new(),
            settings: settings.to_vec(),
            folder,
        };
        site.run(|_| true, true).await;
        site
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The process of a node.
    pub fn pid(&self, name: &str) -> u32 {
        self.nodes[name].0.id()
    }

    /// Starts the nodes of regions, and waits until they are ready.
    pub async fn run(&mut self, is: impl Fn(&str) -> bool, create: bool) {
        let nodes: Vec<_> = self.dev.nodes.iter().filter(|node| is(&node.region)).collect();
        for node in &nodes {
            let mut command = serving(node);
            command.envs(self.settings.iter().map(|(name, value)| (name, value)));
            command.args(if create { created(node) } else { &[] });
            self.nodes.insert(node.name.clone(), Running::start(command));
        }
        for node in nodes {
            let running = self.nodes.get_mut(&node.name).expect("it was started");
            running.ready(node).await;
        }
    }

    /// `kill -9` of all nodes of a region.
    pub fn kill(&mut self, region: &str) {
        let nodes = self.dev.nodes.iter().filter(|node| node.region == region);
        let killed: Vec<Running> = nodes.filter_map(|node| self.nodes.remove(&node.name)).collect();
        assert!(!killed.is_empty());
    }

    /// A client of a region.
    pub fn config(&self, region: &str, user: &str) -> ClientConfig {
        client_config(&self.dev, &self.connector, region, user, "phone")
    }

    /// A client that knows no other region.
    pub fn pinned(&self, region: &str, user: &str) -> ClientConfig {
        let token = token(&self.dev.data, user);
        let mut config = ClientConfig::new(self.connector.clone(), token, "phone".parse().unwrap());
        config.server_name = Some(SERVER_NAME.to_owned());
        let of = self
            .dev
            .info
            .regions
            .iter()
            .find(|info| info.id == region)
            .unwrap();
        config.endpoints_of(region.parse().unwrap(), of.endpoints.clone());
        config
    }
}

/// `iris serve` for a node.
pub fn serving(node: &DevNode) -> Command {
    let mut command = iris();
    command.arg("serve").arg("--config").arg(&node.config);
    command.env("IRIS_LOG", "warn").stdout(Stdio::null());
    command
}

/// What a node is told that starts for the first time.
pub fn created(node: &DevNode) -> &'static [&'static str] {
    if node.begins {
        &["--new-cluster"]
    } else {
        &["--create"]
    }
}

/// Ends a process as a crash would.
pub fn kill_9(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// What `/readyz` says.
pub async fn is_ready(addr: SocketAddr) -> bool {
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(2), asked).await,
        Ok(Ok(true))
    )
}
