//! `iris drill run`

mod simulate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::ReportsArg;
use crate::admin::client::AdminClient;
use crate::cli::admin::{self, REFUSED};
use crate::cli::output::{self, Format, say};
use crate::cli::serve::{self, Stops};
use crate::client::connector;
use crate::core::ids::{NodeName, RegionId};
use crate::drill::access::Access;
use crate::drill::cluster::{Cluster, Sight, peers, renamed};
use crate::drill::log::Entry;
use crate::drill::measure::{FaultSpan, Measures, measure};
use crate::drill::nodes::Nodes;
use crate::drill::plan::{self, Drill};
use crate::drill::report::{Identity, Report};
use crate::drill::run::{self, Done, describe};
use crate::drill::site::Site;
use crate::drill::target::{Reach, Target as _};
use crate::net::certs::{CA_CERT_FILE, Roots};
use crate::server::config::TomlText;
use crate::server::dev::{DevInfo, DevLock};
use crate::server::regions::{Durability, Regions};
use crate::server::token::{KeyFiles, Signer};
use crate::sim::Defect;
use crate::sim::fault::Fault;

/// The fact of a report that names it.
const DURABILITY: &str = "durability";

/// A folder can be removed within this after its nodes were killed.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);
/// Between two tries.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The folder of a drill's nodes begins with this, and with this where it is kept.
const FOLDER: &str = "iris-drill-";
/// See [`FOLDER`].
const KEPT: &str = "iris-kept-drill-";

/// Run a drill, and judge what its clients saw against the limits in its file.
///
/// The exit code is the verdict: 0 passed, 1 not passed or broken off, 6 not begun since something is in the way. Ctrl-C breaks it
/// off: what it struck is mended first. With --target dev the drill starts three regions of its own on loopback, each node a
/// process that ends with the drill. With --target cluster it strikes a cluster that runs, with clients of its own there; each
/// fault ends by itself, also where the drill is killed. It does not begin unless that cluster is healthy and its nodes have
/// `faults.allowed = true`. With --target sim it runs in the simulator, under virtual time and a seed, and the simulator's checkers
/// must find nothing either.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris drill run region-lost
  iris drill run core-crash --output json | jq .measures.rto
  iris drill run my-drill.toml --reports /tmp/reports
  iris drill run region-lost --target sim --seed 7
  iris drill run region-lost --target cluster                  the cluster of `iris dev --processes`
  iris drill run region-lost --target cluster --region eu-west=fra1 --connect 10.0.0.5:7110 \\
    --cert operator.pem --key operator.key --ca ca.pem --token-key token.key")]
pub struct Run {
    /// A drill of `iris drill list`, or the path of a file.
    #[arg(value_name = "DRILL")]
    drill: String,
    /// What is struck.
    #[arg(long, value_enum, default_value_t)]
    target: Target,
    /// Print the report as a text, or as JSON.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    /// Keep the folder of the drill's nodes, with their logs.
    #[arg(long)]
    keep: bool,
    /// The seed of a drill in the simulator (--target sim); 1 where it is not given.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Run with a deliberate defect, to see that it is found (--target sim).
    #[arg(long, value_name = "NAME")]
    defect: Option<Defect>,
    #[command(flatten)]
    reports: ReportsArg,
    #[command(flatten)]
    running: Running,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Target {
    /// Nodes of the drill's own, each a process.
    #[default]
    Dev,
    /// A cluster that runs.
    Cluster,
    /// The simulator: no process, no network, virtual time.
    Sim,
}

/// A cluster that runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --target cluster")]
struct Running {
    /// Which of its regions is meant by one of the drill's; may be repeated. The one of the same name where it is not given.
    #[arg(long = "region", value_name = "DRILL=REGION", value_parser = pair)]
    regions: Vec<(String, String)>,
    /// The private key of the cluster's tokens, for those of the drill's clients; keys/token.key of the data folder where it is
    /// not given.
    #[arg(long, value_name = "FILE")]
    token_key: Option<PathBuf>,
    /// The CA of the certificates that nodes show clients, PEM; that of the nodes where it is not given.
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// The name in those certificates, where it is not the host of the endpoint.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    #[command(flatten)]
    ask: admin::Target,
}

/// What is known when a drill is over.
struct Over {
    done: Done,
    spans: Vec<FaultSpan>,
    facts: Vec<(String, String)>,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let drill = plan::find(&self.drill)?;
        let running = &self.running;
        let named = [
            ("--region", !running.regions.is_empty()),
            ("--token-key", running.token_key.is_some()),
            ("--client-ca", running.client_ca.is_some()),
            ("--server-name", running.server_name.is_some()),
            ("--node, --socket or --connect", running.ask.names_one()),
            ("--data", running.ask.data_is_named()),
        ];
        if self.target != Target::Cluster
            && let Some((flag, _)) = named.into_iter().find(|(_, given)| *given)
        {
            bail!("{flag} is for a cluster that runs: add --target cluster, or leave it out");
        }
        if self.keep && self.target == Target::Cluster {
            bail!(
                "--keep is for nodes of the drill's own (--target dev): a cluster that runs keeps its folders"
            );
        }
        if self.target == Target::Sim {
            return self.simulate(&drill);
        }
        self.only_simulated()?;
        let faults = drill.real_faults()?.to_vec();
        let started_ms = now_ms();
        say!("{}: {}", drill.scenario.name, drill.scenario.title);
        let over = match self.target {
            Target::Dev => Some(self.on_dev(&drill, &faults, started_ms)?),
            Target::Cluster => self.on_cluster(&drill, &faults, started_ms)?,
            Target::Sim => return self.simulate(&drill),
        };
        let Some(Over { done, spans, facts }) = over else {
            return Ok(ExitCode::from(REFUSED));
        };
        let measures = measure(&done.clients, &spans, &done.log);
        let (report, log) = report(&drill, self.target.name(), facts, started_ms, done, measures);
        self.finish(report, &log)
    }

    /// Saves and prints the report; the exit code is its verdict.
    fn finish(&self, report: Report, log: &[Entry]) -> anyhow::Result<ExitCode> {
        let report = self.save(report, log)?;
        match self.output {
            Format::Table => output::print(&report.text())?,
            Format::Json => output::print(&(report.to_json()? + "\n"))?,
        }
        Ok(if report.passed() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// With nodes of its own.
    fn on_dev(&self, drill: &Drill, faults: &[Fault], started_ms: u64) -> anyhow::Result<Over> {
        let regions = regions(drill)?;
        remove_left(started_ms);
        let name = if self.keep { KEPT } else { FOLDER };
        let folder = std::env::temp_dir().join(format!("{name}{started_ms}-{}", std::process::id()));
        let lock = DevLock::take(&folder)?;
        let over = serve::run_to_end_with(async {
            let mut stops = Stops::new()?;
            let mut stop = async || stops.next().await;
            let mut tell = |line: &str| say!("{line}");
            tell(&format!("starting nodes in {}", folder.display()));
            let mut site = tokio::select! {
                site = Site::start(&folder, &regions) => site?,
                why = stop() => bail!("{why} before the drill began: nothing was struck"),
            };
            let spans = spans(faults, site.nodes());
            let done = run::on(drill, faults, &mut site, &mut stop, &mut tell).await;
            tell("stopping the nodes");
            tokio::select! {
                () = site.stop() => {}
                // They are killed with what holds them.
                _ = stop() => {}
            }
            Ok(Over {
                done: done?,
                spans,
                facts: vec![named(&regions)],
            })
        });
        if self.keep {
            say!("the nodes' folder is kept: {}", folder.display());
        } else {
            remove(&folder);
        }
        drop(lock);
        over
    }

    /// With a cluster that runs; none where something is in the way.
    fn on_cluster(&self, drill: &Drill, faults: &[Fault], started_ms: u64) -> anyhow::Result<Option<Over>> {
        let running = &self.running;
        if running.ask.asks_one() {
            bail!(
                "--target cluster asks every node itself: name its data folder with --data, or a node with --connect"
            );
        }
        let names: BTreeMap<String, String> = running.regions.iter().cloned().collect();
        let faults: Vec<Fault> = faults.iter().map(|fault| renamed(fault, &names)).collect();
        serve::run_to_end_with(async {
            let mut tell = |line: &str| say!("{line}");
            let mut stops = Stops::new()?;
            let sight = Sight::of(&mut running.ask.connect().await?).await?;
            sight.check_names(drill, &names)?;
            let why = sight.in_the_way(drill, &faults);
            if !why.is_empty() {
                tell(&format!(
                    "drill {} does not begin, and nothing was struck:",
                    drill.scenario.name
                ));
                why.iter().for_each(|why| tell(&format!("  {why}")));
                return Ok(None);
            }
            let access = running.access(&sight)?;
            let nodes = sight.layout();
            let facts = vec![
                ("cluster".to_owned(), sight.status.cluster.clone()),
                (
                    "regions".to_owned(),
                    nodes
                        .regions()
                        .into_iter()
                        .map(RegionId::as_str)
                        .collect::<Vec<_>>()
                        .join(", "),
                ),
                ("nodes".to_owned(), nodes.iter().count().to_string()),
                (DURABILITY.to_owned(), sight.durability()),
            ];
            let reach = Reached {
                ask: &running.ask,
                peers: peers(&sight.nodes.nodes),
            };
            let mut cluster = Cluster::new(reach, &sight, access, format!("drill-{started_ms}-"));
            let mut stop = async || stops.next().await;
            let done = run::on(drill, &faults, &mut cluster, &mut stop, &mut tell).await?;
            Ok(Some(Over {
                done,
                spans: spans(&faults, &nodes),
                facts,
            }))
        })
    }

    /// Writes the report's files.
    fn save(&self, mut report: Report, log: &[Entry]) -> anyhow::Result<Report> {
        let folder = &self.reports.folder;
        let stem = format!("{}-{}", report.identity.name, report.identity.started_ms);
        let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let (path, draft) = (folder.join(name), folder.join(format!("{name}.new")));
            std::fs::write(&draft, text)
                .and_then(|()| std::fs::rename(&draft, &path))
                .with_context(|| format!("{} cannot be written", path.display()))?;
            Ok(path)
        };
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let log_file = format!("{stem}.log.json");
        write(&log_file, &serde_json::to_string(log)?)?;
        report.log_file = Some(log_file);
        write(&format!("{stem}.json"), &report.to_json()?)?;
        write(&format!("{stem}.md"), &report.markdown())?;
        let page = write(&format!("{stem}.html"), &report.page(log))?;
        say!("the report's page: {}", page.display());
        Ok(report)
    }
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Cluster => "cluster",
            Self::Sim => "sim",
        }
    }
}

/// What was measured, judged; and the log.
pub(super) fn report(
    drill: &Drill,
    target: &str,
    facts: Vec<(String, String)>,
    started_ms: u64,
    done: Done,
    measures: Measures,
) -> (Report, Vec<Entry>) {
    let identity = identity(drill, target, facts, started_ms);
    let mut report = Report::new(identity, done.clients, measures, drill.limits(), done.aborted);
    report.observed = done.observed;
    (report, done.log)
}

/// Which drill it is, with facts of its target and of its load.
fn identity(drill: &Drill, target: &str, mut facts: Vec<(String, String)>, started_ms: u64) -> Identity {
    let told = facts.iter().any(|(what, _)| what == DURABILITY);
    let mut fact = |what: &str, fact: String| facts.push((what.to_owned(), fact));
    if !told {
        fact(
            DURABILITY,
            if drill.is_geo() { "geo" } else { "region" }.to_owned(),
        );
    }
    fact("clients of each region", drill.terms.clients.to_string());
    fact(
        "messages a second of each",
        format!("{:.1}", 1e6 / drill.terms.every.max(1) as f64),
    );
    Identity {
        name: drill.scenario.name.clone(),
        title: drill.scenario.title.clone(),
        hypothesis: drill.terms.hypothesis.clone(),
        commit: option_env!("BUILD_COMMIT").unwrap_or("unknown").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seed: 0,
        target: target.to_owned(),
        started_ms,
        configuration: facts,
    }
}

/// The regions, as a fact of an identity.
fn named(regions: &Regions) -> (String, String) {
    let names: Vec<&str> = regions.ids().collect();
    ("regions".to_owned(), names.join(", "))
}

impl Running {
    /// How clients get in.
    fn access(&self, sight: &Sight) -> anyhow::Result<Access> {
        let data = self.ask.data();
        let ca = match &self.client_ca {
            Some(file) => file.clone(),
            None => self
                .ask
                .ca()
                .unwrap_or_else(|| data.join("ca").join(CA_CERT_FILE)),
        };
        let roots = Roots::load(&ca).context("the clients' CA cannot be used; name it with --client-ca")?;
        let key = match &self.token_key {
            Some(file) => file.clone(),
            None => KeyFiles::in_data(data).private,
        };
        let signer = Signer::from_file(&key, None)
            .context("no tokens can be made for the drill's clients; name the key with --token-key")?;
        let known = || DevInfo::load(data).ok().map(|info| info.server_name);
        Ok(Access {
            connector: connector(&roots).context("no connection can be made")?,
            signer,
            server_name: self.server_name.clone().or_else(known),
            regions: sight.endpoints(),
        })
    }
}

/// Nodes at their sockets, or at their addresses.
struct Reached<'a> {
    ask: &'a admin::Target,
    peers: BTreeMap<NodeName, String>,
}

impl Reach for Reached<'_> {
    async fn reach(&self, node: &NodeName) -> anyhow::Result<AdminClient> {
        let peer = self.peers.get(node).context("there is no such node")?;
        self.ask.connect_node(node, peer).await
    }
}

/// Removes the folder of a drill. Nodes that were killed just now may still make files there for a moment.
fn remove(folder: &Path) {
    let began = Instant::now();
    while let Err(error) = std::fs::remove_dir_all(folder) {
        // What is left of it is in the system's folder for such things, and the next drill's to remove.
        if error.kind() == std::io::ErrorKind::NotFound || began.elapsed() > REMOVED_WITHIN {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Removes the folders of drills that were killed.
fn remove_left(now_ms: u64) {
    let left = std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten();
    for folder in left {
        let name = folder.file_name();
        let of_drill = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
        let Some((started_ms, _)) = of_drill.and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        // One that has just begun may not have locked it yet.
        let old = started_ms
            .parse::<u64>()
            .is_ok_and(|started_ms| now_ms.saturating_sub(started_ms) > 60_000);
        if let Some(Ok(_lock)) = old.then(|| DevLock::take(&folder.path())) {
            // Of somebody else, or the system's to remove.
            let _ = std::fs::remove_dir_all(folder.path());
        }
    }
}

pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err("expected DRILL=REGION, as in eu-west=fra1".to_owned()),
    }
}

/// The faults as the measures know them.
pub(super) fn spans(faults: &[Fault], nodes: &Nodes) -> Vec<FaultSpan> {
    let span = |(n, fault): (usize, &Fault)| FaultSpan {
        fault: n,
        struck: nodes
            .regions_struck(fault)
            .into_iter()
            .map(|region| region.to_string())
            .collect(),
        text: describe(fault),
    };
    faults.iter().enumerate().map(span).collect()
}

/// The built-in regions that the drill names, with its durability.
fn regions(drill: &Drill) -> anyhow::Result<Regions> {
    let mut texts = Vec::new();
    let origin = Path::new("built-in");
    for region in Regions::built_in().iter() {
        if !drill.scenario.regions().contains(&region.id) {
            continue;
        }
        let mut region = region.clone();
        if drill.is_geo() {
            region.durability = Durability::Geo;
        }
        let text = toml::to_string_pretty(&region).context("a region's file cannot be written")?;
        texts.push(TomlText::new(origin.join(format!("{}.toml", region.id)), text)?);
    }
    if texts.len() < drill.scenario.regions().len() || texts.is_empty() {
        let known: Vec<String> = Regions::built_in()
            .iter()
            .map(|region| region.id.clone())
            .collect();
        bail!(
            "{}: regions = {:?}: expected some of {}",
            drill.scenario.name,
            drill.scenario.regions(),
            known.join(", ")
        );
    }
    Ok(Regions::from_texts(origin, texts)?)
}
