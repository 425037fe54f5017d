//! `iris region add` and `iris region remove`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use crate::admin::client::AdminClient;
use crate::admin::data::{HoldersReport, PartReply, Reply};
use crate::admin::request::{Call, Change, Part};
use crate::admin::wire::{AdminError, ErrorCode};
use crate::cli::admin::{Target, refused};
use crate::cli::output::{self, Format, say};
use crate::cli::{args, serve};
use crate::core::ids::RegionId;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Add a region to those that keep all users and messages, while traffic flows.
///
/// First put its file into the folder of regions of every node; running nodes read it within seconds. Its nodes have certificates of
/// the cluster's CA, and its core node is started with an empty data folder and `iris serve --create`, before this or after: it takes
/// a snapshot of every shard, and serves clients when it has all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region add ap-south
  iris region add ap-south --no-wait
  iris region add ap-south --output json | jq .settled
  iris region add ap-south --connect 10.0.0.5:7110 --cert operator.pem --key operator.key --ca ca.pem")]
pub struct Add {
    #[command(flatten)]
    how: How,
}

/// Remove a region from those that keep users and messages, while traffic flows.
///
/// It takes nothing more from the moment at which it hears of this, its clients go to other regions (`iris region evacuate` before
/// this moves them slowly), and the others wait until they have all that it took. Then its nodes can be stopped and its file deleted.
/// It comes back with an empty data folder and `iris region add`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region remove ap-south
  iris region remove ap-south --force      it does not answer and will not: what only it has is given up")]
pub struct Remove {
    /// Also where it does not answer: what no other region has of it is given up.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    how: How,
}

/// What both take.
#[derive(Debug, Args)]
struct How {
    /// The region's id.
    #[arg(value_name = "REGION")]
    region: RegionId,
    /// Do not wait until it is done.
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

/// How far it is, as the node has it that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Progress {
    region: RegionId,
    /// Added, or removed.
    added: bool,
    #[serde(flatten)]
    holders: HoldersReport,
    elapsed_ms: u64,
    done: bool,
}

impl Add {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let region = self.how.region.clone();
        self.how.run(Change::RegionAdd { region }, true)
    }
}

impl Remove {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let region = self.how.region.clone();
        let force = self.force;
        self.how.run(Change::RegionRemove { region, force }, false)
    }
}

impl How {
    fn run(self, change: Change, added: bool) -> anyhow::Result<ExitCode> {
        serve::run_to_end(async {
            let started = Instant::now();
            let mut client = self.target.connect_to_core(&self.region).await?;
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
                let progress = self.look(&mut client, added, started).await?;
                let same = |told: &Progress| told.holders == progress.holders;
                if progress.done || !told.as_ref().is_some_and(same) {
                    self.tell(&progress)?;
                }
                if progress.done {
                    return Ok(ExitCode::SUCCESS);
                }
                if progress.is_over() {
                    return refused(&progress.lost());
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
        added: bool,
        started: Instant,
    ) -> anyhow::Result<Progress> {
        let holders = match client.call(&Call::Node(Part::Holders)).await? {
            Ok(Reply::Part(part)) => match *part {
                PartReply::Holders(holders) => holders,
                _ => bail!("the node answered another question"),
            },
            Ok(_) => bail!("the node answered another question"),
            Err(error) => return Err(error.into()),
        };
        Ok(Progress {
            region: self.region.clone(),
            added,
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            // It owns no shards for a moment where it was started again.
            done: holders.settled == holders.total && holders.regions.contains(&self.region) == added,
            holders,
        })
    }

    fn tell(&self, progress: &Progress) -> anyhow::Result<()> {
        if self.output == Format::Json {
            let line = serde_json::to_string(progress).context("cannot write JSON")?;
            return output::print(&(line + "\n"));
        }
        if !progress.done {
            say!("{}", progress.left());
            return Ok(());
        }
        let took = Duration::from_millis(progress.elapsed_ms).as_secs_f64();
        let region = &self.region;
        output::print(&match progress.added {
            true => format!("region {region} keeps all shards after {took:.1} s\n"),
            false => format!(
                "region {region} keeps nothing any more after {took:.1} s: its nodes can be stopped\n"
            ),
        })
    }
}

impl Progress {
    /// Every shard has the last change everywhere. Since the node has said that this one is logged, that is another one, where
    /// it does not do what was asked.
    fn is_over(&self) -> bool {
        self.holders.settled == self.holders.total
    }

    fn lost(&self) -> AdminError {
        let names: Vec<&str> = self.holders.regions.iter().map(RegionId::as_str).collect();
        let detail = format!(
            "region {} was not {}: another change was asked for at the same time, and counts: version {} of the holders, with \
             {}. Ask again",
            self.region,
            if self.added { "added" } else { "removed" },
            self.holders.version,
            names.join(", ")
        );
        AdminError::new(ErrorCode::Refused, detail)
    }

    fn left(&self) -> String {
        left(&self.holders)
    }
}

/// How far a change is, for people.
pub fn left(holders: &HoldersReport) -> String {
    let HoldersReport {
        shards,
        changed,
        settled,
        leaving,
        ..
    } = holders;
    let left = format!("shards that know: {changed} of {shards}; done: {settled}");
    if leaving.is_empty() {
        return left;
    }
    let names: Vec<&str> = leaving.iter().map(RegionId::as_str).collect();
    format!("{left}; waits for what {} took", names.join(", "))
}
