//! `iris dev --processes`: each node a process, started again when it dies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::process::{Child, Command};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{READY_TIMEOUT, Taken, advice, all_ready, taken, welcome};
use crate::cli::output::say;
use crate::cli::serve;
use crate::server::dev::{DevCluster, DevNode};

/// Between two looks at a node's `/readyz`.
const READY_EVERY: Duration = Duration::from_millis(50);
/// Bytes of an answer of `/readyz` that are read: it names a node and the reasons why it is not ready.
const MAX_ANSWER: u64 = 64 * 1024;
/// A node that died is started again after this, doubled while it does not last.
const RESTART_AFTER: Duration = Duration::from_millis(200);
/// A node that ran for so long did not die of its start.
const LASTED: Duration = Duration::from_secs(1);
/// Longest pause before a restart.
const RESTART_AT_MOST: Duration = Duration::from_secs(10);

/// What supervisors told and was not looked at; beyond it they wait.
const TOLD: usize = 16;

/// What a supervisor of a node tells.
#[derive(Debug)]
enum Told {
    /// A process of the node was started.
    Runs(u32),
    /// The process with this number is ready.
    Ready(u32),
    /// The process ended by itself, not by a signal.
    Exited(ExitStatus),
}

pub(super) async fn run(
    cluster: &DevCluster,
    data: &Path,
    wan: bool,
    signal: impl Future<Output = &'static str>,
) -> anyhow::Result<ExitCode> {
    // Looked up once: a program that is replaced while it runs has another name for the system.
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let (stop, stopped) = watch::channel(false);
    let (tell, told) = mpsc::channel(TOLD);
    let taken = taken(cluster);
    let mut nodes = JoinSet::new();
    for node in &cluster.nodes {
        let supervisor = Supervisor {
            program: program.clone(),
            node: node.clone(),
            wan,
            tell: tell.clone(),
            stop: stopped.clone(),
        };
        nodes.spawn(supervisor.run());
    }
    drop(tell);
    let ended = watch_nodes(cluster, data, &taken, told, &mut nodes, signal).await;
    let (again, ended) = match ended {
        Ok(again) => (again, Ok(())),
        Err(error) => (serve::interrupts()?, Err(error)),
    };
    // Whatever the reason, every node drains before this process ends; what does not when Ctrl-C is pressed again is killed.
    stop.send_replace(true);
    serve::drain(again, async {
        while let Some(node) = nodes.join_next().await {
            if let Err(error) = node {
                say!("a supervisor of a node was lost: {error}");
            }
        }
    })
    .await?;
    ended?;
    say!("stopped; everything accepted is in {}", data.display());
    Ok(ExitCode::SUCCESS)
}

/// Until the signal, or until something makes going on useless. Gives what hears the next Ctrl-C.
async fn watch_nodes(
    cluster: &DevCluster,
    data: &Path,
    taken: &Taken,
    mut told: mpsc::Receiver<(String, Told)>,
    nodes: &mut JoinSet<()>,
    signal: impl Future<Output = &'static str>,
) -> anyhow::Result<Signal> {
    let started = Instant::now();
    let (mut known, mut ready) = (Vec::new(), BTreeSet::new());
    let mut waiting = true;
    tokio::pin!(signal);
    let late = tokio::time::sleep(READY_TIMEOUT);
    tokio::pin!(late);
    loop {
        tokio::select! {
            why = &mut signal => {
                let again = serve::interrupts()?;
                say!("{why}: draining; {}", serve::AGAIN);
                return Ok(again);
            }
            () = &mut late, if waiting => {
                let missing: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).filter(|name| !ready.contains(*name)).collect();
                anyhow::bail!("not ready after {READY_TIMEOUT:?}: {}; the logs are above", missing.join(", "));
            }
            Some((name, told)) = told.recv() => match told {
                Told::Runs(pid) => {
                    note_pid(&mut known, (name, pid));
                    // Also of a cluster that never gets ready someone may want to see the processes.
                    write_pids(data, &known)?;
                }
                Told::Ready(pid) if waiting => {
                    say!("{name} is ready");
                    note_pid(&mut known, (name.clone(), pid));
                    ready.insert(name);
                    if ready.len() == cluster.nodes.len() {
                        waiting = false;
                        say!("{}", all_ready(ready.len(), started.elapsed()));
                        welcome(cluster, data, &known)?;
                    }
                }
                Told::Ready(pid) => say!("{name} is ready again, as process {pid}"),
                Told::Exited(status) if waiting => {
                    let advice = advice(taken, &name);
                    anyhow::bail!("node {name} ended before all nodes were ready: {status}; its log is above{advice}");
                }
                Told::Exited(_) => {}
            },
            ended = nodes.join_next() => {
                // They go on until they are stopped.
                let why = match ended {
                    Some(Err(error)) => error.to_string(),
                    _ => "it ended".to_owned(),
                };
                anyhow::bail!("a supervisor of a node was lost: {why}");
            }
        }
    }
}

/// Keeps one node running.
struct Supervisor {
    program: PathBuf,
    node: DevNode,
    wan: bool,
    tell: mpsc::Sender<(String, Told)>,
    stop: watch::Receiver<bool>,
}

impl Supervisor {
    async fn run(mut self) {
        let name = self.node.name.clone();
        let mut fresh = self.node.fresh;
        let mut pause = RESTART_AFTER;
        while !*self.stop.borrow() {
            let born = Instant::now();
            let why = match start(&self.program, &self.node, fresh, self.wan) {
                Ok(child) => match self.attend(child).await {
                    Some(status) => format!("ended ({status})"),
                    None => return,
                },
                Err(error) => format!("cannot be started ({}: {error})", self.program.display()),
            };
            fresh = self.node.is_fresh();
            self.node.begins &= fresh;
            if born.elapsed() > LASTED {
                pause = RESTART_AFTER;
            }
            say!("node {name} {why}: trying again in {pause:?}");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.stop.changed() => return,
            }
            pause = (pause * 2).min(RESTART_AT_MOST);
        }
    }

    /// Until the process ends, then its status; or until it drained, since it was told to stop.
    async fn attend(&mut self, mut child: Child) -> Option<ExitStatus> {
        // Waiting would close it, which tells the node to stop.
        let stdin = child.stdin.take();
        let pid = child.id().unwrap_or_default();
        self.tell(Told::Runs(pid)).await;
        let node = self.node.clone();
        let ready = until_ready(&node, pid);
        tokio::pin!(ready);
        let mut waiting = true;
        loop {
            tokio::select! {
                status = child.wait() => match status {
                    Ok(status) => {
                        if status.code().is_some() {
                            self.tell(Told::Exited(status)).await;
                        }
                        return Some(status);
                    }
                    Err(error) => {
                        say!("node {}: its process cannot be waited for: {error}", self.node.name);
                        // Dropping it kills it.
                        return Some(ExitStatus::default());
                    }
                },
                () = &mut ready, if waiting => {
                    waiting = false;
                    // From here on an empty disk is one that was lost: what was on it is with the other regions.
                    self.node.begins = false;
                    self.tell(Told::Ready(pid)).await;
                }
                _ = self.stop.changed() => {
                    // The end of its stdin tells it to drain.
                    drop(stdin);
                    if let Err(error) = child.wait().await {
                        say!("node {}: its process cannot be waited for: {error}", self.node.name);
                    }
                    return None;
                }
            }
        }
    }

    async fn tell(&self, told: Told) {
        // Nobody listens any more when all are told to stop.
        let _ = self.tell.send((self.node.name.clone(), told)).await;
    }
}

fn start(program: &Path, node: &DevNode, fresh: bool, wan: bool) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command
        .arg("serve")
        .arg("--config")
        .arg(&node.config)
        .arg("--stop-with-stdin");
    if fresh {
        command.arg(if node.begins { "--new-cluster" } else { "--create" });
    }
    if wan {
        command.args(["--set", "faults.allowed=true", "--set", "faults.wan=true"]);
    }
    if std::env::var_os("IRIS_LOG").is_none() {
        command.env("IRIS_LOG", "warn");
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command.spawn()
}

/// Until the node is ready in this process: another cluster may hold its port.
async fn until_ready(node: &DevNode, pid: u32) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let key = format!("{}/{}", node.region, node.name);
    loop {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(node.admin_http).await {
            let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            let mut answer = Vec::new();
            let asked = async {
                stream.write_all(request).await?;
                stream.take(MAX_ANSWER).read_to_end(&mut answer).await
            };
            if tokio::time::timeout(Duration::from_secs(1), asked).await.is_ok()
                && is_ready_as(&answer, &key, pid)
            {
                return;
            }
        }
        tokio::time::sleep(READY_EVERY).await;
    }
}

/// Whether an answer of `/readyz` says that this node is ready in this process.
fn is_ready_as(answer: &[u8], key: &str, pid: u32) -> bool {
    let body = answer
        .windows(4)
        .position(|at| at == b"\r\n\r\n")
        .map(|at| &answer[at + 4..]);
    let body: serde_json::Value = body
        .and_then(|body| serde_json::from_slice(body).ok())
        .unwrap_or_default();
    answer.starts_with(b"HTTP/1.1 200") && body["node"] == key && body["pid"] == pid
}

fn note_pid(known: &mut Vec<(String, u32)>, (name, pid): (String, u32)) {
    known.retain(|(other, _)| *other != name);
    known.push((name, pid));
}

/// `pids.json`: which process is which node, for those who want to see one die.
pub(super) fn write_pids(data: &Path, known: &[(String, u32)]) -> anyhow::Result<()> {
    let map: BTreeMap<&str, u32> = known.iter().map(|(name, pid)| (name.as_str(), *pid)).collect();
    let path = data.join("pids.json");
    let draft = data.join("pids.json.new");
    std::fs::write(&draft, serde_json::to_string_pretty(&map).context("pids.json")?)
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_that_was_started_is_ready() {
        let answer = |status, body| format!("HTTP/1.1 {status}\r\nx: y\r\n\r\n{body}\n").into_bytes();
        let good = r#"{"node":"us-east/a","pid":7,"ready":true,"reasons":{}}"#;
        assert!(is_ready_as(&answer("200 OK", good), "us-east/a", 7));
        assert!(!is_ready_as(
            &answer("503 Service Unavailable", good),
            "us-east/a",
            7
        ));
        assert!(!is_ready_as(&answer("200 OK", good), "us-east/b", 7));
        assert!(!is_ready_as(&answer("200 OK", good), "us-east/a", 8));
        assert!(!is_ready_as(&answer("200 OK", "welcome"), "us-east/a", 7));
        assert!(!is_ready_as(b"", "us-east/a", 7));
    }
}
