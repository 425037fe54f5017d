//! `iris dev`

mod processes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use super::{args, output, serve};
use crate::admin::server::AdminServer;
use crate::cli::output::{aside, say};
use crate::server::config::LogConfig;
use crate::server::dev::{DevCluster, DevLock, DevNode, Ports, single_region};
use crate::server::node::Node;
use crate::server::regions::{Regions, Role};

/// A node that is not ready by then says what it waits for.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Run a whole cluster on this machine: every node a real server with its own sockets and store.
///
/// Certificates, keys and stores are made at the first start and kept in the data folder, so that the next start finds
/// every message that was accepted. At the first start that folder must be missing or empty, but for lost+found. Ctrl-C drains and stops; a second one ends at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris dev                        the regions of ./regions, or the three that are built in
  iris dev --processes            each node a process of its own, started again when it dies
  iris dev --single               one region with one node
  iris dev --wan                  what goes to other regions takes as long as it would around the world
  iris dev --data /tmp/iris --ports free")]
pub struct Dev {
    #[command(flatten)]
    data: args::DataArg,
    /// The folder with a file for each region; ./regions where that exists, else the regions that are built in.
    #[arg(long, value_name = "DIR", conflicts_with = "single")]
    regions: Option<PathBuf>,
    /// One region with one node that is core and edge.
    #[arg(long)]
    single: bool,
    /// Run each node as its own process; one that dies is started again.
    #[arg(long)]
    processes: bool,
    /// Delay what goes to other regions as the way between their places would, for as long as the nodes run.
    #[arg(long)]
    wan: bool,
    /// Ports as in the regions' files, or free ones that are chosen once and kept in the data folder.
    #[arg(long, value_enum, default_value = "filed")]
    ports: PortChoice,
    /// Stop when stdin ends.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PortChoice {
    Filed,
    Free,
}

impl Dev {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let filter = std::env::var("IRIS_LOG").unwrap_or_else(|_| "warn".to_owned());
        crate::server::log::init(&LogConfig::default(), Some(&filter)).context("logging cannot start")?;
        let folder = self
            .regions
            .clone()
            .or_else(|| Some(PathBuf::from("regions")).filter(|path| path.is_dir()));
        let regions = if self.single {
            single_region()
        } else {
            Regions::load(folder.as_deref()).context("the regions cannot be used")?
        };
        let ports = match self.ports {
            PortChoice::Filed => Ports::AsFiled,
            PortChoice::Free => Ports::Free,
        };
        let data = &self.data.data;
        say!("preparing {}", data.display());
        let unusable = || format!("the data folder {} cannot be used", data.display());
        let _lock = DevLock::take(data).with_context(unusable)?;
        let cluster = DevCluster::prepare(data, &regions, ports).with_context(unusable)?;
        if self.wan {
            say!("{}", around_the_world(&cluster));
        }
        serve::run_to_end(async {
            let signal = serve::stop_signal(self.stop_with_stdin)?;
            if self.processes {
                processes::run(&cluster, data, self.wan, signal).await
            } else {
                in_process(&cluster, data, self.wan, signal).await
            }
        })
    }
}

async fn in_process(
    cluster: &DevCluster,
    data: &Path,
    wan: bool,
    signal: impl Future<Output = &'static str>,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let taken = taken(cluster);
    let mut running = Vec::new();
    tokio::pin!(signal);
    tokio::select! {
        done = start_all(cluster, &taken, wan, &mut running) => {
            if let Err(error) = done {
                stop_all(running).await?;
                return Err(error);
            }
        }
        why = &mut signal => {
            let again = serve::interrupts()?;
            say!("\n{why}: draining what had started; {}", serve::AGAIN);
            serve::drain(again, stop_all(running)).await??;
            say!("stopped; everything accepted is in {}", data.display());
            return Ok(ExitCode::SUCCESS);
        }
    }
    say!("{}", all_ready(running.len(), started.elapsed()));
    let pids: Vec<(String, u32)> = cluster
        .nodes
        .iter()
        .map(|node| (node.name.clone(), std::process::id()))
        .collect();
    processes::write_pids(data, &pids)?;
    welcome(cluster, data, &[])?;
    let (mut failures, mut drains) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    for (node, _) in &running {
        let (key, failed) = (node.key().clone(), node.failed());
        failures.spawn(async move { (key, failed.await) });
        let (key, asked) = (node.key().clone(), node.drain_asked());
        drains.spawn(async move {
            asked.await;
            key
        });
    }
    let mut stopping = tokio::task::JoinSet::new();
    let again = loop {
        tokio::select! {
            why = &mut signal => {
                let again = serve::interrupts()?;
                say!("{why}: draining; {}", serve::AGAIN);
                break again;
            }
            Some(Ok((key, ended))) = failures.join_next() => {
                for (node, _) in running {
                    node.abandon().await;
                }
                let outcome = ended.outcome();
                return Err(anyhow::Error::new(ended).context(format!("node {key} {outcome}")));
            }
            Some(Ok(key)) = drains.join_next() => {
                say!("an operator drains {key}; it stays stopped until the next start");
                if let Some(at) = running.iter().position(|(node, _)| *node.key() == key) {
                    stopping.spawn(stop(running.swap_remove(at)));
                }
            }
        }
    };
    let stopped = async {
        while let Some(stopped) = stopping.join_next().await {
            stopped.context("a node panicked while it stopped")?;
        }
        stop_all(running).await
    };
    serve::drain(again, stopped).await??;
    say!("stopped; everything accepted is in {}", data.display());
    Ok(ExitCode::SUCCESS)
}

/// That it is on, and how far regions are apart.
fn around_the_world(cluster: &DevCluster) -> String {
    let regions: Vec<_> = cluster.regions.iter().collect();
    let mut ways = Vec::new();
    for (i, from) in regions.iter().enumerate() {
        for to in &regions[i + 1..] {
            let ms = from.place.one_way_us(&to.place).div_ceil(1000);
            ways.push(format!("{} - {} {ms} ms", from.id, to.id));
        }
    }
    format!(
        "--wan: what goes to another region takes, each way: {}",
        ways.join(", ")
    )
}

fn all_ready(nodes: usize, after: Duration) -> String {
    let who = match nodes {
        1 => "the node is".to_owned(),
        _ => format!("all {nodes} nodes are"),
    };
    format!("{who} ready after {:.1} s", after.as_secs_f64())
}

/// By node, an address that somebody had before any was started.
type Taken = BTreeMap<String, SocketAddr>;

fn taken(cluster: &DevCluster) -> Taken {
    let of = |node: &DevNode| Some((node.name.clone(), node.taken()?));
    cluster.nodes.iter().filter_map(of).collect()
}

/// What to do where a node did not start and an address of it was taken; empty where none was.
fn advice(taken: &Taken, node: &str) -> String {
    let advice = |addr| {
        format!(
            ": {addr} is in use, perhaps by an `iris dev` with another data folder: end that, or give --ports free with another --data"
        )
    };
    taken.get(node).map(advice).unwrap_or_default()
}

/// A node and its admin interface.
type Running = (Node, AdminServer);

/// The interface answers until the node has stopped.
async fn stop((node, admin): Running) {
    node.stop().await;
    admin.stop().await;
}

/// Starts every node and waits until all are ready; what runs is in `running` also where this fails or is dropped.
async fn start_all(
    cluster: &DevCluster,
    taken: &Taken,
    wan: bool,
    running: &mut Vec<Running>,
) -> anyhow::Result<()> {
    for node in &cluster.nodes {
        aside(format_args!("starting {} ... ", node.name));
        let mut config = cluster.config(node)?;
        if wan {
            (config.faults.allowed, config.faults.wan) = (true, true);
        }
        let node = Node::start(config, cluster.regions.clone(), node.create())
            .await
            .with_context(|| format!("node {} cannot start{}", node.name, advice(taken, &node.name)))?;
        let admin = AdminServer::start(node.inspector()).await;
        let admin = admin.with_context(|| format!("node {} cannot start", node.key()))?;
        say!("listens");
        running.push((node, admin));
    }
    say!("waiting until all are ready; new stores fill from the first region's");
    for (node, _) in running {
        if tokio::time::timeout(READY_TIMEOUT, node.ready()).await.is_err() {
            let reasons: Vec<String> = node
                .health()
                .reasons()
                .into_iter()
                .map(|(what, why)| format!("{what}: {why}"))
                .collect();
            anyhow::bail!(
                "node {} is not ready after {READY_TIMEOUT:?}: {}",
                node.key(),
                reasons.join("; ")
            );
        }
    }
    Ok(())
}

/// Edges first: their clients are told to go, and what is in flight is answered before the cores close.
async fn stop_all(running: Vec<Running>) -> anyhow::Result<()> {
    let (cores, edges): (Vec<_>, Vec<_>) = running
        .into_iter()
        .partition(|(node, _)| node.client_addr().is_none());
    for nodes in [edges, cores] {
        let stopping: Vec<_> = nodes.into_iter().map(|node| tokio::spawn(stop(node))).collect();
        for node in stopping {
            node.await.context("a node panicked while it stopped")?;
        }
    }
    Ok(())
}

/// What runs where, and what to try.
fn welcome(cluster: &DevCluster, data: &Path, pids: &[(String, u32)]) -> anyhow::Result<()> {
    let row = |node: &DevNode| {
        let roles: Vec<&str> = node
            .roles
            .iter()
            .map(|role| if *role == Role::Core { "core" } else { "edge" })
            .collect();
        let pid = pids
            .iter()
            .find(|(name, _)| *name == node.name)
            .map(|(_, pid)| pid.to_string());
        vec![
            node.region.clone(),
            node.name.clone(),
            roles.join("+"),
            node.client
                .map_or_else(|| "-".to_owned(), |addr| addr.to_string()),
            format!("http://{}/metrics", node.admin_http),
            pid.unwrap_or_else(|| std::process::id().to_string()),
        ]
    };
    let mut rows: Vec<Vec<String>> = cluster.nodes.iter().map(row).collect();
    rows.sort();
    output::print_table(
        &["REGION", "NODE", "ROLES", "CLIENTS (QUIC)", "METRICS", "PID"],
        &rows,
    )?;
    let program = quoted(&std::env::args().next().unwrap_or_else(|| "iris".to_owned()));
    let data = if data == Path::new("data") {
        String::new()
    } else {
        format!(" --data {}", quoted(&data.to_string_lossy()))
    };
    let ids: Vec<&str> = cluster.regions.ids().collect();
    let first = ids.iter().find(|id| **id == "us-east").unwrap_or(&ids[0]);
    let last = ids
        .iter()
        .find(|id| **id == "ap-south")
        .unwrap_or(&ids[ids.len() - 1]);
    let middle = ids.iter().find(|id| **id == "eu-west").unwrap_or(&ids[0]);
    say!(
        "
Try it in other terminals:

  # a message to someone who is away, accepted once it is durable in {first}
  {program} client send{data} --region {first} --as alice --to bob \"hello from {first}\"
  # bob comes online in {last} and receives it
  {program} client listen{data} --region {last} --as bob --device phone
  # who is online, seen from {first}
  {program} client watch{data} --region {first} --as alice bob carol
  {program} client listen{data} --region {middle} --as carol --device laptop
  # is the cluster well?
  {program} cluster status{data}

Ctrl-C drains and stops."
    );
    Ok(())
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_between_regions_are_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = DevCluster::prepare(folder.path(), &Regions::built_in(), Ports::Free).unwrap();
        assert_eq!(
            around_the_world(&cluster),
            "--wan: what goes to another region takes, each way: ap-south - eu-west 58 ms, ap-south - us-east 97 ms, \
             eu-west - us-east 41 ms"
        );
    }

    #[test]
    fn one_node_is_not_all_of_them() {
        let after = Duration::from_millis(1234);
        assert_eq!(all_ready(1, after), "the node is ready after 1.2 s");
        assert_eq!(all_ready(9, after), "all 9 nodes are ready after 1.2 s");
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_split_or_change_them() {
        for plain in ["data", "../a-b/c_d.e", "target/release/iris", "daten/ü"] {
            assert_eq!(quoted(plain), plain);
        }
        assert_eq!(quoted("my data"), "'my data'");
        assert_eq!(quoted("$HOME/it's"), r"'$HOME/it'\''s'");
        assert_eq!(quoted("~/iris"), "'~/iris'");
        assert_eq!(quoted(""), "''");
    }
}
