//! What commands share that ask a running cluster: whom to ask, in which form to print, what the exit code says.
//!
//! Exit codes: 0 all is well; 1 nobody could be asked, or the answer is an error; 2 wrong usage; 3 degraded, or some nodes did
//! not answer; 4 critical; 5 what was named is not there; 6 refused: not allowed, not by this node, not as
//! things are, or not by this build.

use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use super::args::{self, DATA, DataArg};
use super::output::{self, Format};
use super::serve;
use crate::admin::client::{AdminClient, AskError};
use crate::admin::data::{NodeRow, PartReply, Reply, Silent};
use crate::admin::request::{Call, Change, Part, Request};
use crate::admin::socket;
use crate::admin::wire::{AdminError, ErrorCode};
use crate::core::ids::{NodeKey, NodeName, RegionId};
use crate::net::certs::{Identity, Roots};

/// Some nodes did not answer, or the cluster is degraded.
pub const PARTIAL: u8 = 3;
/// The cluster is in a critical state.
pub const CRITICAL: u8 = 4;
/// A node that is one of several is passed over when it has not answered by then.
const PROBE: Duration = Duration::from_secs(2);
/// What was named is not there.
const NOT_FOUND: u8 = 5;
/// Not allowed, or not possible here.
pub const REFUSED: u8 = 6;

/// Whom to ask. Without any of it the sockets below the data folder are tried: of `iris dev`, or of one node.
#[derive(Debug, Args)]
pub struct Target {
    #[command(flatten)]
    data: DataArg,
    /// Ask this node of the data folder, instead of the first that answers.
    #[arg(long = "node", value_name = "NAME", conflicts_with_all = ["socket", "connect"])]
    ask: Option<String>,
    /// Ask at this socket: `admin.socket` of a node, `admin.sock` in its data folder.
    /// IRIS_ADMIN_SOCKET names one where none of --socket, --node and --connect is given.
    #[arg(long, value_name = "FILE", conflicts_with = "connect")]
    socket: Option<PathBuf>,
    /// Ask a node at its address for nodes, with a certificate of the operator role.
    #[arg(long, value_name = "HOST:PORT", requires = "cert", requires = "key")]
    connect: Option<String>,
    /// The operator's certificate, PEM, for --connect.
    #[arg(long, value_name = "FILE", requires = "connect")]
    cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "connect")]
    key: Option<PathBuf>,
    /// The cluster's CA, PEM, for --connect; ca/ca.pem of the data folder where it is not given.
    #[arg(long, value_name = "FILE", requires = "connect")]
    ca: Option<PathBuf>,
    /// How long an answer may take.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = args::duration)]
    timeout: Duration,
}

/// How a command that looks prints what it finds.
#[derive(Debug, Args)]
pub struct Look {
    #[command(flatten)]
    target: Target,
    /// A table for people, or JSON whose fields docs/operating.md describes.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    /// Look again and again, every two seconds where no time is given; with JSON one object a line.
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s",
        value_parser = watch_every
    )]
    watch: Option<Duration>,
}

/// Each look asks every node: more often than that says nothing new.
fn watch_every(text: &str) -> Result<Duration, String> {
    let pause = args::duration(text)?;
    if pause < Duration::from_millis(100) {
        return Err("expected at least 100ms".to_owned());
    }
    Ok(pause)
}

/// An answer that can be printed.
pub trait View: Serialize {
    /// For people; ends with a line end.
    fn table(&self) -> String;

    /// Nodes that did not answer.
    fn silent(&self) -> &[Silent] {
        &[]
    }

    /// The exit code.
    fn code(&self) -> u8 {
        if self.silent().is_empty() { 0 } else { PARTIAL }
    }
}

impl Target {
    /// Connects.
    pub async fn connect(&self) -> anyhow::Result<AdminClient> {
        self.connect_to(self.ask.as_deref()).await
    }

    /// The socket of a flag, or of the environment where no flag says whom to ask.
    fn named_socket(&self) -> Option<PathBuf> {
        let from_env = || std::env::var_os("IRIS_ADMIN_SOCKET").map(PathBuf::from);
        let named = self.ask.is_some() || self.connect.is_some();
        self.socket.clone().or_else(|| from_env().filter(|_| !named))
    }

    /// Connects to the node of this name, where sockets of a data folder are looked for.
    pub async fn connect_to(&self, node: Option<&str>) -> anyhow::Result<AdminClient> {
        if let Some(connect) = &self.connect {
            return self.connect_quic(connect).await;
        }
        if let Some(path) = self.named_socket() {
            return Ok(AdminClient::unix(&path, self.timeout).await?);
        }
        let data = &self.data.data;
        let mut found = socket::in_folder(data);
        if let Some(node) = node {
            let named = |name: &Option<String>| name.as_deref().is_none_or(|name| name == node);
            if !found.is_empty() && !found.iter().any(|(name, _)| named(name)) {
                let names: Vec<&str> = found.iter().filter_map(|(name, _)| name.as_deref()).collect();
                return Err(anyhow::Error::new(NoSuchNode {
                    node: node.to_owned(),
                    below: data.clone(),
                    expected: names.join(", "),
                }));
            }
            found.retain(|(name, _)| name.as_deref().is_none_or(|name| name == node));
        }
        let mut failed = Vec::new();
        // All at once, and the first of them counts that answers: several may stand still.
        let others = found.len() > 1;
        let asked = found
            .iter()
            .map(|(_, path)| tokio::spawn(answering(path.clone(), others, self.timeout)));
        for asked in asked.collect::<Vec<_>>() {
            match asked.await.context("a task that asks a node ended")? {
                Ok(client) => return Ok(client),
                Err(error) => failed.push(error.to_string()),
            }
        }
        let of = node.map(|node| format!(" of node {node}")).unwrap_or_default();
        if failed.is_empty() {
            bail!(
                "no socket{of} is below {}: is `iris dev` or the node running? Name its data folder with --data, a socket with \
                 --socket, or a node with --connect",
                data.display()
            );
        }
        bail!(
            "no node{of} answers at its socket below {}:\n{}",
            data.display(),
            failed.join("\n")
        )
    }

    /// Connects to a node of this region: the one that is named, or another that the same folder or certificate leads to. Where
    /// none of them answers, to the one that is named, which says so when it is asked for a change.
    pub async fn connect_in(&self, region: &RegionId) -> anyhow::Result<AdminClient> {
        let mut client = self.connect().await?;
        if let Ok(Reply::Part(part)) = client.call(&Call::Node(Part::Node)).await?
            && let PartReply::Node(report, _) = *part
            && report.node.region == *region
        {
            return Ok(client);
        }
        let request = Request::RegionShow {
            region: region.clone(),
        };
        let Ok(Reply::Region(detail)) = client.call(&Call::Cluster(request)).await? else {
            return Ok(client);
        };
        let answers = detail.members.iter().filter(|member| member.report.is_some());
        for member in answers.filter(|_| self.named_socket().is_none()) {
            let connected = self.connect_node(&member.node.node, &member.peer).await;
            if let Ok(client) = connected {
                return Ok(client);
            }
        }
        Ok(client)
    }

    /// Connects to a core node of another region than this one: the one that is named, or another that the same folder or
    /// certificate leads to. Where none of them answers, to the one that is named, which says so when it is asked for a change.
    pub async fn connect_to_core(&self, but: &RegionId) -> anyhow::Result<AdminClient> {
        let mut client = self.connect().await?;
        if let Ok(Reply::Part(part)) = client.call(&Call::Node(Part::Node)).await?
            && let PartReply::Node(report, _) = *part
            && report.node.region != *but
            && report.store.is_some()
        {
            return Ok(client);
        }
        if self.ask.is_some() || self.named_socket().is_some() {
            return Ok(client);
        }
        let Ok(Reply::Nodes(list)) = client.call(&Call::Cluster(Request::NodeList)).await? else {
            return Ok(client);
        };
        let core = |row: &&NodeRow| {
            let report = row.report.as_ref();
            row.node.region != *but && report.is_some_and(|report| report.store.is_some())
        };
        for row in list.nodes.iter().filter(core) {
            let connected = self.connect_node(&row.node.node, &row.peer).await;
            if let Ok(client) = connected {
                return Ok(client);
            }
        }
        Ok(client)
    }

    /// Connects to a node: with --connect at its address, else at its socket.
    pub async fn connect_node(&self, node: &NodeName, peer: &str) -> anyhow::Result<AdminClient> {
        match &self.connect {
            Some(_) => self.connect_quic(peer).await,
            None => self.connect_to(Some(node.as_str())).await,
        }
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data.data
    }

    /// The cluster's CA, where it is named.
    pub fn ca(&self) -> Option<PathBuf> {
        self.ca.clone()
    }

    /// Whether it names one node, and not just one that leads to the others.
    pub fn names_node(&self) -> bool {
        self.ask.is_some() || self.socket.is_some()
    }

    /// Whether no other node than the one that is named can be asked.
    pub fn asks_one(&self) -> bool {
        self.ask.is_some() || self.named_socket().is_some()
    }

    /// Whether a node is named, in whatever way.
    pub fn names_one(&self) -> bool {
        self.ask.is_some() || self.socket.is_some() || self.connect.is_some()
    }

    /// Whether a data folder is named on the command line, and another one than everybody's.
    pub fn data_is_named(&self) -> bool {
        let data = self.data();
        data != Path::new(DATA) && std::env::var_os("IRIS_DATA").is_none_or(|given| given != data)
    }

    /// Connects to the node that is named, and gives its key.
    pub async fn connect_one(&self) -> anyhow::Result<(NodeKey, AdminClient)> {
        let mut client = self.connect().await?;
        match client.call(&Call::Node(Part::Node)).await? {
            Ok(Reply::Part(part)) => match *part {
                PartReply::Node(report, _) => Ok((report.node, client)),
                _ => bail!("the node answered another question"),
            },
            Ok(_) => bail!("the node answered another question"),
            Err(error) => Err(error.into()),
        }
    }

    /// Connects to each node that `which` takes, also to those that the node which is asked for them cannot reach: with
    /// --connect at their addresses, else at their sockets.
    pub async fn connect_each(
        &self,
        which: impl Fn(&NodeRow) -> bool,
    ) -> anyhow::Result<Vec<(NodeKey, anyhow::Result<AdminClient>)>> {
        let mut client = self.connect().await?;
        let list = match client.call(&Call::Cluster(Request::NodeList)).await? {
            Ok(Reply::Nodes(list)) => list,
            Ok(_) => bail!("the node answered another question"),
            Err(error) => return Err(error.into()),
        };
        let mut connected = Vec::new();
        for row in list.nodes.into_iter().filter(which) {
            let client = self.connect_node(&row.node.node, &row.peer).await;
            connected.push((row.node, client));
        }
        Ok(connected)
    }

    async fn connect_quic(&self, connect: &str) -> anyhow::Result<AdminClient> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            bail!("--connect needs --cert and --key");
        };
        let identity = Identity::load(cert, key).context("the operator's certificate cannot be used")?;
        let ca = self
            .ca
            .clone()
            .unwrap_or_else(|| self.data.data.join("ca").join("ca.pem"));
        let roots = Roots::load(&ca).context("the cluster's CA cannot be used; name it with --ca")?;
        let addr: SocketAddr = connect
            .to_socket_addrs()
            .with_context(|| format!("--connect {connect}: expected HOST:PORT"))?
            .next()
            .with_context(|| format!("--connect {connect}: the name has no address"))?;
        Ok(AdminClient::quic(addr, &roots, &identity, self.timeout).await?)
    }

    /// Asks for a change, and prints what follows.
    pub fn change(&self, change: Change) -> anyhow::Result<ExitCode> {
        serve::run_to_end(async {
            let mut client = self.connect().await?;
            match client.call(&Call::Change(change)).await? {
                Ok(Reply::Changed(changed)) => {
                    output::print(&(changed.text + "\n"))?;
                    Ok(ExitCode::SUCCESS)
                }
                Ok(_) => bail!("the node answered another question"),
                Err(error) => refused(&error),
            }
        })
    }
}

impl Look {
    /// Asks and prints, once or again and again; `take` gives the part of the reply that belongs to the request.
    pub fn run<V: View>(
        &self,
        request: Request,
        take: impl Fn(Reply) -> Option<V>,
    ) -> anyhow::Result<ExitCode> {
        let call = Call::Cluster(request);
        serve::run_to_end(async {
            loop {
                let asked = self.ask(&call, &take).await;
                let Some(pause) = self.watch else {
                    return asked.map(|(code, _)| code);
                };
                match asked {
                    Ok((_, true)) => {}
                    Ok((code, false)) => return Ok(code),
                    // It may be there again the next time.
                    Err(error) => drop(output::report(&error)),
                }
                tokio::time::sleep(pause).await;
            }
        })
    }

    /// The exit code, and whether somebody still reads what is printed.
    async fn ask<V: View>(
        &self,
        call: &Call,
        take: &impl Fn(Reply) -> Option<V>,
    ) -> anyhow::Result<(ExitCode, bool)> {
        let mut client = self.target.connect().await?;
        let view = match client.call(call).await? {
            Ok(reply) => {
                take(reply).context("the node answered another question: it may be of another version")?
            }
            Err(error) => return Ok((refused(&error)?, true)),
        };
        let text = match (self.output, self.watch) {
            (Format::Table, None) => with_silent(&view),
            (Format::Table, Some(_)) if std::io::stdout().is_terminal() => {
                // Home, print, clear what is left of the time before.
                format!("\x1b[H\x1b[J{}", with_silent(&view))
            }
            (Format::Table, Some(_)) => with_silent(&view) + "\n",
            (Format::Json, None) => serde_json::to_string_pretty(&view).context("cannot write JSON")? + "\n",
            (Format::Json, Some(_)) => serde_json::to_string(&view).context("cannot write JSON")? + "\n",
        };
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok((ExitCode::from(view.code()), true)),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                Ok((ExitCode::from(view.code()), false))
            }
            Err(error) => Err(error).context("cannot write to stdout"),
        }
    }
}

/// Connects to a socket; where there are others to try, only if the node answers soon: one that stands still takes connections
/// all the same.
async fn answering(path: PathBuf, others: bool, timeout: Duration) -> Result<AdminClient, AskError> {
    if others {
        let mut probe = AdminClient::unix(&path, PROBE.min(timeout)).await?;
        // Any answer will do.
        let _ = probe.call(&Call::Node(Part::Node)).await?;
    }
    AdminClient::unix(&path, timeout).await
}

/// No node of the name that was given.
#[derive(Debug, thiserror::Error)]
#[error("no socket of a node {node} is below {}: expected one of {expected}", below.display())]
struct NoSuchNode {
    node: String,
    below: PathBuf,
    expected: String,
}

/// The exit code of an error: that of what is not there, or of failure.
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<NoSuchNode>() {
        Some(_) => ExitCode::from(NOT_FOUND),
        None => ExitCode::FAILURE,
    }
}

/// An error of the node, on stderr, and its exit code.
pub fn refused(error: &AdminError) -> anyhow::Result<ExitCode> {
    let code = match error.code {
        ErrorCode::NotFound => NOT_FOUND,
        ErrorCode::Forbidden
        | ErrorCode::Unsupported
        | ErrorCode::WrongNode
        | ErrorCode::Refused
        | ErrorCode::UnknownRequest => REFUSED,
        _ => return Err(error.clone().into()),
    };
    // Nothing is left to do when stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "error: {error}");
    Ok(ExitCode::from(code))
}

fn with_silent<V: View>(view: &V) -> String {
    let mut text = view.table();
    if !view.silent().is_empty() {
        text.push('\n');
    }
    for silent in view.silent() {
        text.push_str(&format!("no answer from {}: {}\n", silent.node, silent.why));
    }
    text
}

/// How long ago, for people.
pub fn ago(ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    span(now.saturating_sub(ms)) + " ago"
}

/// A length of time in the two units that matter.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut shown = bytes as f64;
    while shown >= 1024.0 && unit + 1 < UNITS.len() {
        shown /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{shown:.1} {}", UNITS[unit])
    }
}

/// Microseconds as milliseconds.
pub fn trip(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1000.0))
}

/// What is not there is a dash.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let spans = [0, 999, 1_000, 61_500, 3_700_000, 90_000_000].map(span);
        assert_eq!(
            spans,
            ["0 ms", "999 ms", "1.0 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]
        );
        let sizes = [0, 1023, 1024, 1_572_864].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]);
        assert_eq!(
            (trip(Some(1_250)), trip(None)),
            ("1.2 ms".to_owned(), "-".to_owned())
        );
    }
}
