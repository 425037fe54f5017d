//! Nodes of the drill's own (`--target dev`): each a process that ends with the drill, whatever ends that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::crew::Place;
use super::log;
use crate::admin::client::AdminClient;
use crate::admin::request::{Call, Change};
use crate::client::{ClientConfig, connector};
use crate::core::ids::RegionId;
use crate::net::certs::Roots;
use crate::net::connect::Connector;
use crate::server::dev::{DevCluster, DevNode, Ports};
use crate::server::faults::{Direction, Fault as Injected, Selector};
use crate::server::regions::{Regions, Role};
use crate::server::token::{KeyFiles, Signer};
use crate::sim::fault::{Fault, Kind};

/// A node is ready within this after its start, or the drill ends.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A node that was told to stop has drained within this, or is killed.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at `/readyz`.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// An answer of the admin interface takes less.
const ADMIN_WITHIN: Duration = Duration::from_secs(15);
/// A fault that the drill ends lasts so much longer by itself, milliseconds.
const SPARE_MS: u64 = 2_000;
/// Tokens of the drill's clients live so long.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How a node is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The cluster begins.
    First,
    /// Its data folder is empty, in a cluster that is there.
    Empty,
    /// As it was.
    Again,
}

/// A cluster of the drill's own.
pub struct Site {
    program: PathBuf,
    dev: DevCluster,
    connector: Connector,
    nodes: BTreeMap<String, Child>,
    /// Copies of data folders, by node.
    backups: BTreeMap<String, PathBuf>,
}

impl Site {
    /// Makes a cluster of these regions in an empty folder, and starts its nodes.
    ///
    /// # Errors
    /// What keeps a node from being ready.
    pub async fn start(folder: &Path, regions: &Regions) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program is not known")?;
        let dev = DevCluster::prepare(folder, regions, Ports::Free)?;
        let roots = Roots::load(&dev.data.join("ca").join("ca.pem"))?;
        let mut site = Self {
            program,
            connector: connector(&roots)?,
            dev,
            nodes: BTreeMap::new(),
            backups: BTreeMap::new(),
        };
        let all: Vec<String> = site.dev.nodes.iter().map(|node| node.name.clone()).collect();
        site.run(&all, How::First).await?;
        Ok(site)
    }

    /// The drill's clients: so many that prefer each region, and one in each that stays there.
    ///
    /// # Errors
    /// Where no token can be made.
    pub fn places(&self, clients: u32) -> anyhow::Result<Vec<Place>> {
        let signer = Signer::from_file(&KeyFiles::in_data(&self.dev.data).private, None)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let mut places = Vec::new();
        for home in &self.dev.info.regions {
            for n in 0..=clients {
                let pinned = n == clients;
                let name = match pinned {
                    true => format!("{}-stays", home.id),
                    false => format!("{}-{n}", home.id),
                };
                let token = signer.mint(&name, now.as_secs(), TOKEN_LIFE)?;
                let mut config = ClientConfig::new(self.connector.clone(), token, "drill".parse()?);
                config.server_name = Some(self.dev.info.server_name.clone());
                let mut regions: Vec<_> = self.dev.info.regions.iter().collect();
                regions.sort_by_key(|region| region.id != home.id);
                let known = if pinned { 1 } else { regions.len() };
                for region in regions.into_iter().take(known) {
                    config.endpoints_of(region.id.parse()?, region.endpoints.clone());
                }
                let client = log::Client {
                    name,
                    home: home.id.clone(),
                    pinned,
                };
                places.push(Place { client, config });
            }
        }
        Ok(places)
    }

    /// The regions of places.
    pub fn regions_of(&self, places: &[String]) -> BTreeSet<String> {
        let nodes = places.iter().flat_map(|place| self.nodes_of(place));
        nodes.map(|node| node.region.clone()).collect()
    }

    /// The nodes of a place, as scenarios name them.
    fn nodes_of<'a>(&'a self, place: &'a str) -> impl Iterator<Item = &'a DevNode> {
        let (region, part) = match place.split_once('/') {
            None if ["all", "cores", "edges"].contains(&place) => (None, Some(place)),
            None => (Some(place), None),
            Some((region, part)) => (Some(region), Some(part)),
        };
        let mut edges: BTreeMap<&str, u32> = BTreeMap::new();
        self.dev.nodes.iter().filter(move |node| {
            let core = node.roles.contains(&Role::Core);
            let edge = edges.entry(&node.region).or_default();
            *edge += u32::from(!core);
            region.is_none_or(|region| node.region == region)
                && match part {
                    None | Some("all") => true,
                    Some("core" | "cores") => core,
                    Some("edges") => !core,
                    Some(part) => part == node.name || (!core && part == format!("edge-{edge}")),
                }
        })
    }

    fn names_of(&self, places: &[String]) -> Vec<String> {
        let nodes = places.iter().flat_map(|place| self.nodes_of(place));
        let names: BTreeSet<String> = nodes.map(|node| node.name.clone()).collect();
        names.into_iter().collect()
    }

    /// Begins a fault; one that is a course of steps is gone through to its end.
    ///
    /// # Errors
    /// What could not be done.
    pub async fn strike(&mut self, fault: &Fault) -> anyhow::Result<()> {
        let names = self.names_of(&fault.on);
        match fault.kind {
            Kind::Crash | Kind::DiskReplaced | Kind::Restore => {
                names.iter().try_for_each(|name| self.kill(name))
            }
            Kind::Pause
            | Kind::Cut
            | Kind::Slow
            | Kind::StoreErrors
            | Kind::StoreSlow
            | Kind::StoreFull
            | Kind::Clock => self.inject(fault).await,
            Kind::Rolling => {
                for name in names {
                    self.drain(&name).await?;
                    self.run(&[name], How::Again).await?;
                }
                Ok(())
            }
            Kind::Backup => {
                for name in names {
                    self.drain(&name).await?;
                    self.back_up(&name)?;
                    self.run(&[name], How::Again).await?;
                }
                Ok(())
            }
            Kind::Evacuate => self.each_region(fault, evacuate).await,
            kind => bail!("{} is for the simulator alone (iris sim run)", kind.name()),
        }
    }

    /// Ends a fault: when this returns what it broke is ready again.
    ///
    /// # Errors
    /// What could not be done.
    pub async fn mend(&mut self, fault: &Fault) -> anyhow::Result<()> {
        let names = self.names_of(&fault.on);
        match fault.kind {
            Kind::Crash => self.run(&names, How::Again).await,
            // It goes on by itself.
            Kind::Pause => {
                for name in &names {
                    self.ready(name).await?;
                }
                Ok(())
            }
            Kind::Cut | Kind::Slow | Kind::StoreErrors | Kind::StoreSlow | Kind::StoreFull | Kind::Clock => {
                for (name, _) in self.injected(fault)? {
                    let node = name.parse()?;
                    self.ask(&name, Change::FaultClear { node, id: None }).await?;
                }
                Ok(())
            }
            Kind::DiskReplaced => {
                for name in &names {
                    let data = self.node(name)?.data.clone();
                    fs::remove_dir_all(&data)
                        .with_context(|| format!("{} cannot be removed", data.display()))?;
                }
                self.run(&names, How::Empty).await
            }
            Kind::Restore => {
                for name in &names {
                    self.restore(name)?;
                }
                self.run(&names, How::Again).await
            }
            Kind::Evacuate => self.each_region(fault, restore).await,
            _ => Ok(()),
        }
    }

    async fn each_region(&self, fault: &Fault, change: fn(RegionId) -> Change) -> anyhow::Result<()> {
        for region in self.regions_of(&fault.on) {
            let node = self.dev.nodes.iter().find(|node| node.region == region);
            let node = node.with_context(|| format!("region {region} has no node"))?;
            self.ask(&node.name, change(region.parse()?)).await?;
        }
        Ok(())
    }

    /// Asks a node for a change.
    async fn ask(&self, name: &str, change: Change) -> anyhow::Result<()> {
        let socket = self.node(name)?.data.join("admin.sock");
        let mut client = AdminClient::unix(&socket, ADMIN_WITHIN).await?;
        match client.call(&Call::Change(change)).await? {
            Ok(_) => Ok(()),
            Err(error) => bail!("node {name}: {error}"),
        }
    }

    /// Injects a fault into the nodes that it strikes. Each ends it by itself, also where this process is gone.
    async fn inject(&self, fault: &Fault) -> anyhow::Result<()> {
        let lasts = fault
            .lasts
            .with_context(|| format!("{}: expected `lasts`", fault.kind.name()))?;
        let spare = if fault.kind == Kind::Pause { 0 } else { SPARE_MS };
        for (name, injected) in self.injected(fault)? {
            let change = Change::FaultInject {
                node: name.parse()?,
                fault: injected,
                lasts_ms: Some(lasts / 1_000 + spare),
            };
            self.ask(&name, change).await?;
        }
        Ok(())
    }

    /// What is injected, and where.
    fn injected(&self, fault: &Fault) -> anyhow::Result<Vec<(String, Injected)>> {
        let kind = match fault.kind {
            Kind::Pause => Injected::Pause,
            Kind::StoreErrors => Injected::StoreFail,
            Kind::StoreFull => Injected::StoreFull,
            Kind::StoreSlow => Injected::StoreSlow {
                ms: fault.extra.unwrap_or_default() / 1_000,
            },
            Kind::Clock => Injected::Clock {
                ms: fault.step_ms.unwrap_or_default(),
            },
            _ => return self.between(fault),
        };
        let store = matches!(fault.kind, Kind::StoreErrors | Kind::StoreFull | Kind::StoreSlow);
        let struck = fault.on.iter().flat_map(|place| self.nodes_of(place));
        let struck = struck.filter(|node| !store || node.roles.contains(&Role::Core));
        Ok(struck.map(|node| (node.name.clone(), kind.clone())).collect())
    }

    /// Faults of the ways between places.
    fn between(&self, fault: &Fault) -> anyhow::Result<Vec<(String, Injected)>> {
        let mut injected = Vec::new();
        let mut ways = vec![(&fault.from, &fault.to)];
        if !fault.one_way {
            ways.push((&fault.to, &fault.from));
        }
        for (from, to) in ways {
            for node in from.iter().flat_map(|place| self.nodes_of(place)) {
                for with in self.selectors(to)? {
                    // Each side drops what leaves it: so a way is cut in one direction alone.
                    let direction = Direction::Out;
                    if fault.kind == Kind::Cut {
                        let with = with.clone();
                        injected.push((node.name.clone(), Injected::Cut { with, direction }));
                    }
                    if let Some(extra) = fault.extra {
                        let (with, ms, jitter_ms) = (with.clone(), extra / 1_000, 0);
                        injected.push((node.name.clone(), Injected::Delay { with, ms, jitter_ms }));
                    }
                    if let Some(loss) = fault.loss {
                        let percent = u8::try_from(loss.div_ceil(10)).unwrap_or(100);
                        let loss = Injected::Loss {
                            with,
                            percent,
                            direction,
                        };
                        injected.push((node.name.clone(), loss));
                    }
                }
            }
        }
        Ok(injected)
    }

    /// Places, as faults of nodes name them.
    fn selectors(&self, places: &[String]) -> anyhow::Result<Vec<Selector>> {
        let mut selectors = Vec::new();
        for place in places {
            if self.dev.info.regions.iter().any(|region| region.id == *place) {
                selectors.push(Selector::Region(place.parse()?));
                continue;
            }
            for node in self.nodes_of(place) {
                selectors.push(Selector::Node(node.name.parse()?));
            }
        }
        Ok(selectors)
    }

    fn node(&self, name: &str) -> anyhow::Result<&DevNode> {
        let node = self.dev.nodes.iter().find(|node| node.name == name);
        node.with_context(|| format!("there is no node {name}"))
    }

    /// Starts nodes, and waits until all are ready.
    async fn run(&mut self, names: &[String], how: How) -> anyhow::Result<()> {
        for name in names {
            let node = self.node(name)?;
            let log = fs::File::options()
                .create(true)
                .append(true)
                .open(self.dev.data.join(format!("{name}.log")))?;
            let mut command = Command::new(&self.program);
            command.arg("serve").arg("--config").arg(&node.config);
            match how {
                How::First if node.begins => _ = command.arg("--new-cluster"),
                How::First | How::Empty => _ = command.arg("--create"),
                How::Again => {}
            }
            // It drains when this process is gone: its stdin ends.
            command
                .arg("--stop-with-stdin")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(log)
                .kill_on_drop(true);
            let child = command
                .spawn()
                .with_context(|| format!("node {name} cannot be started"))?;
            self.nodes.insert(name.clone(), child);
        }
        for name in names {
            self.ready(name).await?;
        }
        Ok(())
    }

    async fn ready(&mut self, name: &str) -> anyhow::Result<()> {
        let (addr, began) = (self.node(name)?.admin_http, Instant::now());
        let log = self.dev.data.join(format!("{name}.log"));
        while !is_ready(addr).await {
            if let Some(child) = self.nodes.get_mut(name)
                && let Some(status) = child.try_wait()?
            {
                bail!("node {name} ended ({status}): {} says why", log.display());
            }
            if began.elapsed() > READY_WITHIN {
                bail!(
                    "node {name} is not ready after {READY_WITHIN:?}: {} may say why",
                    log.display()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let child = self
            .nodes
            .get(name)
            .with_context(|| format!("node {name} does not run"))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.with_context(|| format!("node {name} has ended"))?;
        kill_process(pid, signal).with_context(|| format!("node {name} cannot be signalled"))
    }

    /// As by `kill -9`.
    fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::KILL)?;
        self.nodes.remove(name);
        Ok(())
    }

    /// As by SIGTERM; waits for the end.
    async fn drain(&mut self, name: &str) -> anyhow::Result<()> {
        self.signal(name, Signal::TERM)?;
        let Some(mut child) = self.nodes.remove(name) else {
            return Ok(());
        };
        match tokio::time::timeout(DRAINED_WITHIN, child.wait()).await {
            Ok(status) => _ = status?,
            Err(_) => child.kill().await?,
        }
        Ok(())
    }

    fn back_up(&mut self, name: &str) -> anyhow::Result<()> {
        let from = self.node(name)?.data.clone();
        let to = self.dev.data.join(format!("{name}.backup"));
        copy_folder(&from, &to)?;
        self.backups.insert(name.to_owned(), to);
        Ok(())
    }

    fn restore(&self, name: &str) -> anyhow::Result<()> {
        let to = self.node(name)?.data.clone();
        let from = self.backups.get(name);
        let from =
            from.with_context(|| format!("no backup of node {name} was made before it is restored"))?;
        fs::remove_dir_all(&to).with_context(|| format!("{} cannot be removed", to.display()))?;
        copy_folder(from, &to)
    }

    /// Drains all nodes.
    pub async fn stop(mut self) {
        for child in self.nodes.values_mut() {
            drop(child.stdin.take());
        }
        for (_, mut child) in std::mem::take(&mut self.nodes) {
            if tokio::time::timeout(DRAINED_WITHIN, child.wait()).await.is_err() {
                // Its data is thrown away.
                let _ = child.kill().await;
            }
        }
    }
}

fn evacuate(region: RegionId) -> Change {
    Change::RegionEvacuate {
        region,
        rate: None,
        force: false,
    }
}

fn restore(region: RegionId) -> Change {
    Change::RegionRestore { region, rate: None }
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// What `/readyz` says.
async fn is_ready(addr: SocketAddr) -> bool {
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(addr).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.take(64 * 1024).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(2), asked).await,
        Ok(Ok(true))
    )
}
