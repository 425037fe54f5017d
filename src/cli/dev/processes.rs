//! `iris dev --processes`: each node a process, started again when it dies.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{READY_TIMEOUT, welcome};
use crate::server::dev::{DevCluster, DevNode};

/// Between two looks at a node's `/readyz`.
const READY_EVERY: Duration = Duration::from_millis(50);
/// A node that died is started again after this, doubled while it does not last.
const RESTART_AFTER: Duration = Duration::from_millis(200);
/// A node that ran for so long did not die of its start.
const LASTED: Duration = Duration::from_secs(1);
/// Longest pause before a restart.
const RESTART_AT_MOST: Duration = Duration::from_secs(10);

pub(super) async fn run(
    cluster: &DevCluster,
    data: &Path,
    signal: impl Future<Output = &'static str>,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let (stop, stopped) = watch::channel(false);
    let (pids, mut pid_seen) = mpsc::unbounded_channel();
    let mut nodes = JoinSet::new();
    for node in &cluster.nodes {
        nodes.spawn(supervise(node.clone(), pids.clone(), stopped.clone()));
    }
    drop(pids);
    let mut known: Vec<(String, u32)> = Vec::new();
    let ready = async {
        for node in &cluster.nodes {
            until_ready(node).await?;
            eprintln!("{} is ready", node.name);
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ready = tokio::time::timeout(READY_TIMEOUT, ready) => {
            ready.context("the nodes are not all ready in time; their logs are above")??;
            while let Ok(pid) = pid_seen.try_recv() {
                note_pid(&mut known, pid);
            }
            write_pids(data, &known)?;
            eprintln!("all {} nodes are ready after {:.1} s", known.len(), started.elapsed().as_secs_f64());
            welcome(cluster, data, &known)?;
        }
        ended = nodes.join_next() => {
            let why = ended.context("no node runs")?.context("a supervisor panicked")?;
            stop.send_replace(true);
            while nodes.join_next().await.is_some() {}
            return why.map(|()| ExitCode::FAILURE);
        }
    }
    tokio::pin!(signal);
    loop {
        tokio::select! {
            why = &mut signal => {
                eprintln!("{why}: draining");
                break;
            }
            pid = pid_seen.recv() => {
                if let Some(pid) = pid {
                    note_pid(&mut known, pid);
                    write_pids(data, &known)?;
                }
            }
        }
    }
    stop.send_replace(true);
    while let Some(ended) = nodes.join_next().await {
        ended.context("a supervisor panicked")??;
    }
    eprintln!("stopped; everything accepted is in {}", data.display());
    Ok(ExitCode::SUCCESS)
}

async fn supervise(
    node: DevNode,
    pids: mpsc::UnboundedSender<(String, u32)>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut fresh = node.fresh;
    let mut pause = RESTART_AFTER;
    loop {
        let born = Instant::now();
        let mut child = start(&node, fresh)?;
        // Waiting would close it, which tells the node to stop.
        let stdin = child.stdin.take();
        if let Some(pid) = child.id() {
            let _ = pids.send((node.name.clone(), pid));
        }
        let status = tokio::select! {
            status = child.wait() => status.with_context(|| format!("node {}", node.name))?,
            _ = stop.changed() => {
                // The end of its stdin tells it to drain.
                drop(stdin);
                child.wait().await.with_context(|| format!("node {}", node.name))?;
                return Ok(());
            }
        };
        if fresh && status.code().is_some() {
            anyhow::bail!(
                "node {} ended at its first start: {status}; its log is above",
                node.name
            );
        }
        fresh = node.is_fresh();
        pause = if born.elapsed() > LASTED {
            RESTART_AFTER
        } else {
            pause
        };
        eprintln!(
            "node {} ended ({status}): starting it again in {pause:?}",
            node.name
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.changed() => return Ok(()),
        }
        pause = (pause * 2).min(RESTART_AT_MOST);
    }
}

fn start(node: &DevNode, fresh: bool) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let mut command = Command::new(program);
    command
        .arg("serve")
        .arg("--config")
        .arg(&node.config)
        .arg("--stop-with-stdin");
    if fresh {
        command.arg(if node.begins { "--new-cluster" } else { "--create" });
    }
    if std::env::var_os("IRIS_LOG").is_none() {
        command.env("IRIS_LOG", "warn");
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command
        .spawn()
        .with_context(|| format!("node {} cannot be started", node.name))
}

async fn until_ready(node: &DevNode) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    loop {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(node.admin_http).await {
            let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            let mut answer = Vec::new();
            let asked = async {
                stream.write_all(request).await?;
                stream.read_to_end(&mut answer).await
            };
            if tokio::time::timeout(Duration::from_secs(1), asked).await.is_ok()
                && answer.starts_with(b"HTTP/1.1 200")
            {
                return Ok(());
            }
        }
        tokio::time::sleep(READY_EVERY).await;
    }
}

fn note_pid(known: &mut Vec<(String, u32)>, (name, pid): (String, u32)) {
    known.retain(|(other, _)| *other != name);
    known.push((name, pid));
}

/// `pids.json`: which process is which node, for those who want to see one die.
pub(super) fn write_pids(data: &Path, known: &[(String, u32)]) -> anyhow::Result<()> {
    let map: std::collections::BTreeMap<&str, u32> =
        known.iter().map(|(name, pid)| (name.as_str(), *pid)).collect();
    let path = data.join("pids.json");
    let draft = data.join("pids.json.new");
    std::fs::write(&draft, serde_json::to_string_pretty(&map).context("pids.json")?)
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("{} cannot be written", path.display()))
}
