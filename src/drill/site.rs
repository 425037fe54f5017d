//! Nodes of the drill's own (`--target dev`): each a process that ends with the drill, whatever ends that.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::access::Access;
use super::crew::Place;
use super::nodes::{Node, Nodes};
use super::target::{Asker, LagSeen, Reach, Repairs, Target, lag, repairs};
use crate::admin::client::AdminClient;
use crate::client::connector;
use crate::core::ids::NodeName;
use crate::net::certs::Roots;
use crate::server::dev::{DevCluster, DevNode, Ports};
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
/// How a node is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The cluster begins, or goes on where it was left.
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
    nodes: Nodes,
    access: Access,
    prefix: String,
    sockets: Sockets,
    asker: Asker,
    running: BTreeMap<NodeName, Child>,
    /// Copies of data folders, by node.
    backups: BTreeMap<NodeName, PathBuf>,
}

/// The admin sockets of its nodes.
struct Sockets(BTreeMap<NodeName, PathBuf>);

impl Reach for Sockets {
    async fn reach(&self, node: &NodeName) -> anyhow::Result<AdminClient> {
        let socket = self.0.get(node).context("there is no such node")?;
        Ok(AdminClient::unix(socket, ADMIN_WITHIN).await?)
    }
}

impl Site {
    /// Makes a cluster of these regions in a folder, or goes on with the one that it made there, and starts its nodes.
    ///
    /// # Errors
    /// What keeps a node from being ready.
    pub async fn start(folder: &Path, regions: &Regions) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program is not known")?;
        let dev = DevCluster::prepare(folder, regions, Ports::Free)?;
        let mut nodes = Vec::new();
        for node in &dev.nodes {
            nodes.push(Node {
                region: node.region.parse()?,
                name: node.name.parse()?,
                core: node.roles.contains(&Role::Core),
            });
        }
        let mut entries = Vec::new();
        for region in &dev.info.regions {
            entries.push((region.id.parse()?, region.endpoints.clone()));
        }
        let access = Access {
            connector: connector(&Roots::load(&dev.data.join("ca").join("ca.pem"))?)?,
            signer: Signer::from_file(&KeyFiles::in_data(&dev.data).private, None)?,
            server_name: Some(dev.info.server_name.clone()),
            regions: entries,
        };
        let named = |node: &DevNode| anyhow::Ok((node.name.parse()?, node.data.join("admin.sock")));
        let sockets = dev.nodes.iter().map(named).collect::<anyhow::Result<_>>()?;
        let mut site = Self {
            program,
            dev,
            nodes: Nodes::new(nodes),
            access,
            prefix: String::new(),
            sockets: Sockets(sockets),
            asker: Asker::default(),
            running: BTreeMap::new(),
            backups: BTreeMap::new(),
        };
        let all: Vec<NodeName> = site.nodes.iter().map(|node| node.name.clone()).collect();
        site.run(&all, How::First).await?;
        Ok(site)
    }

    /// What the names of the clients' users begin with from now on: one drill after another on the same cluster.
    pub fn set_prefix(&mut self, prefix: String) {
        self.prefix = prefix;
    }

    /// Starts those that do not run.
    async fn run_again(&mut self, names: &[NodeName]) -> anyhow::Result<()> {
        let missing = names.iter().filter(|name| !self.running.contains_key(*name));
        let missing: Vec<NodeName> = missing.cloned().collect();
        self.run(&missing, How::Again).await
    }

    fn node(&self, name: &NodeName) -> anyhow::Result<&DevNode> {
        let node = self.dev.nodes.iter().find(|node| node.name == name.as_str());
        node.with_context(|| format!("there is no node {name}"))
    }

    /// Starts nodes, and waits until all are ready.
    async fn run(&mut self, names: &[NodeName], how: How) -> anyhow::Result<()> {
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
                How::First if !node.fresh => {}
                How::First | How::Empty => _ = command.arg("--create"),
                How::Again => {}
            }
            // It drains when this process is gone: its stdin ends.
            command
                .arg("--stop-with-stdin")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(log)
                // Ctrl-C goes to the whole group of a terminal: it is the drill that ends its nodes.
                .process_group(0)
                .kill_on_drop(true);
            let child = command
                .spawn()
                .with_context(|| format!("node {name} cannot be started"))?;
            self.running.insert(name.clone(), child);
        }
        for name in names {
            self.ready(name).await?;
        }
        Ok(())
    }

    async fn ready(&mut self, name: &NodeName) -> anyhow::Result<()> {
        let (addr, began) = (self.node(name)?.admin_http, Instant::now());
        let log = self.dev.data.join(format!("{name}.log"));
        while !is_ready(addr).await {
            if let Some(child) = self.running.get_mut(name)
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

    fn signal(&self, name: &NodeName, signal: Signal) -> anyhow::Result<()> {
        let child = self
            .running
            .get(name)
            .with_context(|| format!("node {name} does not run"))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.with_context(|| format!("node {name} has ended"))?;
        kill_process(pid, signal).with_context(|| format!("node {name} cannot be signalled"))
    }

    /// As by `kill -9`, all at once.
    async fn kill(&mut self, names: &[NodeName]) -> anyhow::Result<()> {
        for name in names {
            self.signal(name, Signal::KILL)?;
        }
        for name in names {
            // Its ports are free when it is gone.
            if let Some(mut child) = self.running.remove(name) {
                child.wait().await?;
            }
        }
        Ok(())
    }

    /// As by SIGTERM; waits for the end.
    async fn drain(&mut self, name: &NodeName) -> anyhow::Result<()> {
        self.signal(name, Signal::TERM)?;
        let Some(mut child) = self.running.remove(name) else {
            return Ok(());
        };
        match tokio::time::timeout(DRAINED_WITHIN, child.wait()).await {
            Ok(status) => _ = status?,
            Err(_) => child.kill().await?,
        }
        Ok(())
    }

    fn back_up(&mut self, name: &NodeName) -> anyhow::Result<()> {
        let from = self.node(name)?.data.clone();
        let to = self.dev.data.join(format!("{name}.backup"));
        copy_folder(&from, &to)?;
        self.backups.insert(name.clone(), to);
        Ok(())
    }

    fn restore(&self, name: &NodeName) -> anyhow::Result<()> {
        let to = self.node(name)?.data.clone();
        let from = self.backups.get(name);
        let from =
            from.with_context(|| format!("no backup of node {name} was made before it is restored"))?;
        fs::remove_dir_all(&to).with_context(|| format!("{} cannot be removed", to.display()))?;
        copy_folder(from, &to)
    }

    /// Drains all nodes.
    pub async fn stop(mut self) {
        for child in self.running.values_mut() {
            drop(child.stdin.take());
        }
        for (_, mut child) in std::mem::take(&mut self.running) {
            if tokio::time::timeout(DRAINED_WITHIN, child.wait()).await.is_err() {
                // Its data is thrown away.
                let _ = child.kill().await;
            }
        }
    }
}

impl Target for Site {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn places(&self, clients: u32) -> anyhow::Result<Vec<Place>> {
        self.access.places(clients, &self.prefix)
    }

    async fn strike(&mut self, fault: &Fault) -> anyhow::Result<()> {
        let names = self.nodes.struck(fault);
        match fault.kind {
            Kind::Crash | Kind::DiskReplaced | Kind::Restore => self.kill(&names).await,
            Kind::Pause
            | Kind::Cut
            | Kind::Slow
            | Kind::StoreErrors
            | Kind::StoreSlow
            | Kind::StoreFull
            | Kind::Clock => self.asker.inject(&self.nodes, &self.sockets, fault).await,
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
            Kind::Evacuate => self.asker.evacuate(&self.nodes, &self.sockets, fault).await,
            kind => bail!("{} is for the simulator alone (iris sim run)", kind.name()),
        }
    }

    async fn mend(&mut self, fault: &Fault) -> anyhow::Result<()> {
        let names = self.nodes.struck(fault);
        match fault.kind {
            Kind::Crash | Kind::Rolling | Kind::Backup => self.run_again(&names).await,
            // It goes on by itself.
            Kind::Pause => {
                for name in &names {
                    self.ready(name).await?;
                }
                Ok(())
            }
            Kind::Cut | Kind::Slow | Kind::StoreErrors | Kind::StoreSlow | Kind::StoreFull | Kind::Clock => {
                self.asker.clear(&self.sockets, fault).await
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
            Kind::Evacuate => self.asker.restore(&self.nodes, &self.sockets, fault).await,
            _ => Ok(()),
        }
    }

    async fn lag(&self) -> Option<LagSeen> {
        lag(&self.nodes, &self.sockets).await
    }

    async fn repairs(&self) -> Repairs {
        repairs(&self.nodes, &self.sockets).await
    }
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
