//! `iris drill run`

mod simulate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::ReportsArg;
use crate::cli::output::{self, Format};
use crate::cli::serve;
use crate::drill::log::Entry;
use crate::drill::measure::{FaultSpan, measure};
use crate::drill::plan::{self, Drill};
use crate::drill::report::{Identity, Report};
use crate::drill::run::{self, describe};
use crate::drill::site::Site;
use crate::server::config::TomlText;
use crate::server::regions::{Durability, Regions};
use crate::sim::Defect;
use crate::sim::fault::Fault;

/// Run a drill, and judge what its clients saw against the limits in its file.
///
/// The exit code is the verdict: 0 passed, 1 not passed or broken off. Ctrl-C breaks it off: what it struck is mended first.
/// With --target dev the drill starts three regions of its own on loopback, each node a process that ends with the drill.
/// With --target sim it runs in the simulator, under virtual time and a seed, and the simulator's checkers must find nothing either.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris drill run region-lost
  iris drill run core-crash --output json | jq .measures.rto
  iris drill run region-lost --target sim --seed 7
  iris drill run my-drill.toml --reports /tmp/reports")]
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Target {
    /// Nodes of the drill's own, each a process.
    #[default]
    Dev,
    /// The simulator: no process, no network, virtual time.
    Sim,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let drill = plan::find(&self.drill)?;
        if self.target == Target::Sim {
            return self.simulate(&drill);
        }
        self.only_simulated()?;
        let faults = drill.real_faults()?.to_vec();
        let started_ms = now_ms();
        let folder = std::env::temp_dir().join(format!("iris-drill-{}-{started_ms}", std::process::id()));
        let regions = regions(&drill)?;
        let done = serve::run_to_end_with(async {
            let mut tell = |line: &str| eprintln!("{line}");
            tell(&format!("{}: {}", drill.scenario.name, drill.scenario.title));
            tell(&format!("starting nodes in {}", folder.display()));
            let stop = serve::stop_signal(false)?;
            let mut site = Site::start(&folder, &regions).await?;
            let spans: Vec<FaultSpan> = (faults.iter().enumerate())
                .map(|(n, fault)| FaultSpan {
                    fault: n,
                    struck: site.regions_of(&struck(fault)).into_iter().collect(),
                    text: describe(fault),
                })
                .collect();
            let done = run::on_site(&drill, &mut site, stop, &mut tell).await;
            tell("stopping the nodes");
            site.stop().await;
            Ok((done?, spans))
        });
        if self.keep {
            eprintln!("the nodes' folder is kept: {}", folder.display());
        } else {
            // What is left of it is in the system's folder for such things.
            let _ = std::fs::remove_dir_all(&folder);
        }
        let (done, spans) = done?;
        let measures = measure(&done.clients, &spans, &done.log);
        let identity = identity(&drill, &regions, started_ms);
        let report = Report::new(identity, done.clients, measures, drill.limits(), done.aborted);
        self.finish(report, &done.log)
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

    /// Writes the report's files.
    fn save(&self, mut report: Report, log: &[Entry]) -> anyhow::Result<Report> {
        let folder = &self.reports.folder;
        let stem = format!("{}-{}", report.identity.name, report.identity.started_ms);
        let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
            Ok(path)
        };
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let log_file = format!("{stem}.log.json");
        write(&log_file, &serde_json::to_string(log)?)?;
        report.log_file = Some(log_file);
        write(&format!("{stem}.json"), &report.to_json()?)?;
        write(&format!("{stem}.md"), &report.markdown())?;
        let page = write(&format!("{stem}.html"), &report.page(log))?;
        eprintln!("the report's page: {}", page.display());
        Ok(report)
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
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

fn identity(drill: &Drill, regions: &Regions, started_ms: u64) -> Identity {
    let names: Vec<&str> = regions.ids().collect();
    let fact = |what: &str, fact: String| (what.to_owned(), fact);
    Identity {
        name: drill.scenario.name.clone(),
        title: drill.scenario.title.clone(),
        hypothesis: drill.terms.hypothesis.clone(),
        commit: option_env!("BUILD_COMMIT").unwrap_or("unknown").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seed: 0,
        target: "dev".to_owned(),
        started_ms,
        configuration: vec![
            fact("regions", names.join(", ")),
            fact(
                "durability",
                if drill.is_geo() { "geo" } else { "region" }.to_owned(),
            ),
            fact("clients of each region", drill.terms.clients.to_string()),
            fact(
                "messages a second of each",
                format!("{:.1}", 1e6 / drill.terms.every.max(1) as f64),
            ),
        ],
    }
}

/// The places whose clients a fault is measured by: of a way that is cut or slow those at its beginning.
fn struck(fault: &Fault) -> Vec<String> {
    fault.on.iter().chain(&fault.from).cloned().collect()
}
