//! `iris region evacuate` and `iris region restore`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use crate::admin::client::AdminClient;
use crate::admin::data::{NodeRow, Reply, Silent};
use crate::admin::request::{Call, Change, Request};
use crate::cli::admin::{PARTIAL, Target, refused};
use crate::cli::output::{self, Format, say};
use crate::cli::{args, serve};
use crate::core::ids::RegionId;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Send a region's clients to the other regions, at a limited rate, and take no new ones there until it is restored.
///
/// Only clients move: the region's core nodes go on replicating. It stays evacuated when its nodes are started again. Asked again it
/// waits on, at another rate where one is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region evacuate eu-west
  iris region evacuate eu-west --rate 200
  iris region evacuate eu-west --no-wait
  iris region evacuate eu-west --for 30m
  iris region evacuate eu-west --output json | jq .sessions
  iris region evacuate eu-west --connect 10.0.0.5:7110 --cert operator.pem --key operator.key --ca ca.pem")]
pub struct Evacuate {
    /// Also where no other region takes clients: they then find none.
    #[arg(long)]
    force: bool,
    /// Let the clients come back by themselves after this, 100ms to 1h: the node that is asked sees to it, as long as it runs.
    #[arg(long = "for", value_name = "TIME", value_parser = args::duration)]
    lasts: Option<Duration>,
    #[command(flatten)]
    moves: Moves,
}

/// Let clients come back to a region that was evacuated: those that prefer it are told so at a limited rate.
///
/// A client prefers the region that its application named. Each is told once; one that cannot reach the region stays elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region restore eu-west
  iris region restore eu-west --rate 200
  iris region restore eu-west --no-wait")]
pub struct Restore {
    #[command(flatten)]
    moves: Moves,
}

/// What both take.
#[derive(Debug, Args)]
struct Moves {
    /// The region's id.
    #[arg(value_name = "REGION")]
    region: RegionId,
    /// Sessions a second that are told to go, over all edges together: 500 where none is given.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Do not wait until all were moved.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait at most; it goes on all the same.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = args::duration)]
    wait: Duration,
    /// Progress for people on stderr, or JSON, one object a line, whose fields docs/operating.md describes.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    target: Target,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Progress {
    region: RegionId,
    evacuated: bool,
    /// At the region's nodes.
    sessions: usize,
    /// Everywhere else: not told yet that a region is restored.
    returning: usize,
    /// Nodes that have not heard of the command yet.
    unaware: usize,
    /// Nodes that it depends on and that do not answer.
    silent: Vec<Silent>,
    elapsed_ms: u64,
    done: bool,
}

impl Evacuate {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let change = Change::RegionEvacuate {
            region: self.moves.region.clone(),
            rate: self.moves.rate,
            force: self.force,
            lasts_ms: self
                .lasts
                .map(|lasts| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX)),
        };
        self.moves.run(change, true)
    }
}

impl Restore {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let change = Change::RegionRestore {
            region: self.moves.region.clone(),
            rate: self.moves.rate,
        };
        self.moves.run(change, false)
    }
}

impl Moves {
    fn run(self, change: Change, evacuated: bool) -> anyhow::Result<ExitCode> {
        serve::run_to_end(async {
            let started = Instant::now();
            let mut client = self.target.connect_in(&self.region).await?;
            match client.call(&Call::Change(change)).await? {
                Ok(Reply::Changed(changed)) => say!("{}", changed.text),
                Ok(_) => bail!("the node answered another question"),
                Err(error) => return refused(&error),
            }
            if self.no_wait {
                return Ok(ExitCode::SUCCESS);
            }
            let mut told: Option<Progress> = None;
            loop {
                let progress = self.look(&mut client, evacuated, started).await?;
                let same = |told: &Progress| {
                    let figures =
                        |of: &Progress| (of.sessions, of.returning, of.unaware, of.silent.clone(), of.done);
                    figures(told) == figures(&progress)
                };
                if !told.as_ref().is_some_and(same) {
                    self.tell(&progress)?;
                }
                if progress.done {
                    return Ok(ExitCode::from(if progress.silent.is_empty() {
                        0
                    } else {
                        PARTIAL
                    }));
                }
                let left = progress.left();
                told = Some(progress);
                if started.elapsed() > self.wait {
                    return Err(anyhow::anyhow!(left)).with_context(|| {
                        format!(
                            "region {}: not done within {:?}; it goes on",
                            self.region, self.wait
                        )
                    });
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
    }

    async fn look(
        &self,
        client: &mut AdminClient,
        evacuated: bool,
        started: Instant,
    ) -> anyhow::Result<Progress> {
        let nodes = match client.call(&Call::Cluster(Request::NodeList)).await? {
            Ok(Reply::Nodes(list)) => list.nodes,
            Ok(_) => bail!("the node answered another question"),
            Err(error) => return Err(error.into()),
        };
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(judge(&self.region, evacuated, &nodes, elapsed_ms))
    }

    fn tell(&self, progress: &Progress) -> anyhow::Result<()> {
        if self.output == Format::Json {
            let line = serde_json::to_string(progress).context("cannot write JSON")?;
            return output::print(&(line + "\n"));
        }
        for silent in &progress.silent {
            say!("no answer from {}: {}", silent.node, silent.why);
        }
        if !progress.done {
            say!("{}", progress.left());
            return Ok(());
        }
        let took = Duration::from_millis(progress.elapsed_ms).as_secs_f64();
        let (region, sessions) = (&self.region, progress.sessions);
        output::print(&match progress.evacuated {
            true => format!("region {region} has no clients any more after {took:.1} s\n"),
            false => format!("all were told after {took:.1} s; sessions in region {region}: {sessions}\n"),
        })
    }
}

impl Progress {
    fn left(&self) -> String {
        let left = match self.evacuated {
            true => format!("sessions left: {}", self.sessions),
            false => format!(
                "sessions to be told: {}; sessions in region {}: {}",
                self.returning, self.region, self.sessions
            ),
        };
        match self.unaware {
            0 => left,
            unaware => format!("{left}; nodes that have not heard of it yet: {unaware}"),
        }
    }
}

/// How far it is, from what the nodes tell. Where a region is evacuated its own nodes count, where it is restored all: each
/// must have heard of it, and have nobody left who is to go or to be told.
fn judge(region: &RegionId, evacuated: bool, nodes: &[NodeRow], elapsed_ms: u64) -> Progress {
    let own = |row: &&NodeRow| row.node.region == *region;
    let reports = || nodes.iter().filter_map(|row| row.report.as_ref());
    let said = |row: &NodeRow| {
        let report = row.report.as_ref()?;
        report
            .evacuations
            .iter()
            .find(|word| word.region == *region)
            .cloned()
    };
    let latest = nodes.iter().filter_map(said).max_by_key(|word| word.version);
    let counts: Vec<&NodeRow> = nodes.iter().filter(|row| !evacuated || own(row)).collect();
    let answers = counts.iter().filter(|row| row.report.is_some());
    let unaware = answers.filter(|row| said(row) != latest).count();
    let silent = counts.iter().filter(|row| row.report.is_none());
    let in_region = nodes.iter().filter(own).filter_map(|row| row.report.as_ref());
    let sessions = in_region.map(|report| report.sessions).sum();
    let returning = reports().map(|report| report.returning).sum();
    let left = if evacuated { sessions } else { returning };
    Progress {
        region: region.clone(),
        evacuated,
        sessions,
        returning,
        unaware,
        silent: silent
            .map(|row| Silent {
                node: row.node.clone(),
                why: row.why.clone(),
            })
            .collect(),
        elapsed_ms,
        done: left == 0 && unaware == 0,
    }
}
