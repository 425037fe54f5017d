//! `iris fault inject`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::{Asked, table};
use crate::admin::data::{FaultList, NodeRow};
use crate::admin::request::Change;
use crate::admin::wire::{AdminError, ErrorCode};
use crate::cli::admin::{Target, refused};
use crate::cli::output::{self, Format};
use crate::cli::{args, serve};
use crate::core::ids::{NodeName, RegionId};
use crate::server::faults::{Direction, Fault, Selector, check_life};

/// Inject a fault into a node, or into every node of a region; it ends by itself.
///
/// Where it is injected stands before the kind of fault, what it is about behind it. Each node is asked itself, at its socket or
/// with --connect, and must have `faults.allowed = true`, as those of `iris dev` have. With --region at each node that it can
/// be injected into: store-* at those with a store, --clients at those with clients.
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "KIND",
    subcommand_help_heading = "Kinds",
    // No node is hit because it happened to answer first.
    group = ArgGroup::new("where").required(true).multiple(true).args(["ask", "region", "socket", "connect"]),
    after_help = "\
Examples:
  iris fault inject --node us-east-core-1 cut --region eu-west --for 30s
  iris fault inject --region us-east cut --region eu-west --direction out
  iris fault inject --region us-east loss --clients --percent 5 --for 5m
  iris fault inject --node us-east-core-1 store-slow --by 50ms
  iris fault inject --node us-east-core-1 pause --for 10s
  iris fault inject --region us-east --connect 10.0.0.5:7110 --cert operator.pem --key operator.key --ca ca.pem crash"
)]
pub struct Inject {
    /// Into every node of this region.
    #[arg(long, value_name = "REGION", conflicts_with_all = ["ask", "socket"])]
    region: Option<RegionId>,
    /// What was injected as a table, or JSON whose fields docs/operating.md describes.
    #[arg(long, value_enum, default_value_t, global = true)]
    output: Format,
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Packets to and from others vanish.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 cut --region eu-west --for 30s
  iris fault inject --node us-east-core-1 cut --peer eu-west-core-1 --direction in")]
    Cut {
        #[command(flatten)]
        with: With,
        /// Which packets, as the node sees them.
        #[arg(long, value_enum, default_value_t)]
        direction: Way,
        #[command(flatten)]
        life: Life,
    },
    /// Packets to others leave later.
    #[command(after_help = "\
Examples:
  iris fault inject --region us-east delay --region eu-west --by 200ms --jitter 50ms")]
    Delay {
        #[command(flatten)]
        with: With,
        /// By so much, at most 10 s.
        #[arg(long, value_name = "TIME", value_parser = args::duration)]
        by: Duration,
        /// And by a random time of at most this, drawn for each packet: they overtake each other.
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = args::duration)]
        jitter: Duration,
        #[command(flatten)]
        life: Life,
    },
    /// Some packets to and from others vanish.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 loss --region eu-west --percent 10")]
    Loss {
        #[command(flatten)]
        with: With,
        /// So many of a hundred.
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=100))]
        percent: u8,
        /// Which packets, as the node sees them.
        #[arg(long, value_enum, default_value = "out")]
        direction: Way,
        #[command(flatten)]
        life: Life,
    },
    /// The process stands still (SIGSTOP), and goes on by itself. Not in `iris dev` without --processes.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 pause --for 10s")]
    Pause {
        #[command(flatten)]
        life: Life,
    },
    /// The process ends at once (SIGKILL). Not in `iris dev` without --processes, which starts it again.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 crash
  iris fault inject --node us-east-core-1 crash --for 15s")]
    Crash {
        /// How long the node stays away, although it is started again: 100ms to 1h. Not at all where it is not given.
        #[arg(long = "for", value_name = "TIME", value_parser = life)]
        lasts: Option<Duration>,
    },
    /// Each commit takes longer.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 store-slow --by 50ms")]
    StoreSlow {
        /// By so much, at most 10 s.
        #[arg(long, value_name = "TIME", value_parser = args::duration)]
        by: Duration,
        #[command(flatten)]
        life: Life,
    },
    /// Each commit fails for the time being: senders are told to try again.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 store-fail --for 5s")]
    StoreFail {
        #[command(flatten)]
        life: Life,
    },
    /// Each commit fails as with a full disk.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 store-full")]
    StoreFull {
        #[command(flatten)]
        life: Life,
    },
    /// The wall clock is wrong, by at most an hour. What it stamps stays: times that are ahead are the latest until they have
    /// come.
    #[command(after_help = "\
Examples:
  iris fault inject --node us-east-core-1 clock --ahead 30s
  iris fault inject --node us-east-core-1 clock --behind 5m --for 2m")]
    Clock {
        #[command(flatten)]
        shift: Shift,
        #[command(flatten)]
        life: Life,
    },
}

/// With whom.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct With {
    /// The other nodes of this region.
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
    /// This other node.
    #[arg(long, visible_alias = "peer", value_name = "NODE")]
    node: Option<NodeName>,
    /// The clients of the node.
    #[arg(long)]
    clients: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Shift {
    /// So far ahead.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    ahead: Option<Duration>,
    /// So far behind.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    behind: Option<Duration>,
}

#[derive(Debug, Args)]
struct Life {
    /// For how long, from 100ms to 1h.
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = life)]
    lasts: Duration,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Way {
    /// Both ways.
    #[default]
    Both,
    /// Those that arrive.
    In,
    /// Those that leave.
    Out,
}

impl Inject {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (fault, lasts) = self.kind.fault()?;
        serve::run_to_end(async {
            let reached = match &self.region {
                Some(region) => {
                    let has = |row: &NodeRow, role: &str| row.roles.iter().any(|held| held == role);
                    let takes = |row: &NodeRow| {
                        row.node.region == *region
                            && (!fault.is_of_store() || has(row, "core"))
                            && (fault.selector() != Some(&Selector::Clients) || has(row, "edge"))
                    };
                    self.target.connect_each(takes).await?
                }
                None => {
                    let (node, client) = self.target.connect_one().await?;
                    vec![(node, Ok(client))]
                }
            };
            if reached.is_empty() {
                let region = self.region.as_ref().map_or("", |region| region.as_str());
                let detail = format!(
                    "no node of a region {region} can have the fault {}: see `iris node list`",
                    fault.kind()
                );
                return refused(&AdminError::new(ErrorCode::NotFound, detail));
            }
            let asked = Asked::ask(reached, |node| Change::FaultInject {
                node: node.node.clone(),
                fault: fault.clone(),
                lasts_ms: lasts.and_then(|lasts| u64::try_from(lasts.as_millis()).ok()),
            })
            .await?;
            let code = asked.code()?;
            let list = FaultList {
                faults: asked.faults,
                silent: Vec::new(),
            };
            match self.output {
                Format::Json => output::print_json(&list)?,
                Format::Table if list.faults.is_empty() => {}
                Format::Table => output::print(&table(&list.faults))?,
            }
            Ok(code)
        })
    }
}

impl Kind {
    /// The fault, and how long it lasts.
    fn fault(&self) -> anyhow::Result<(Fault, Option<Duration>)> {
        let (fault, life) = match self {
            Self::Cut {
                with,
                direction,
                life,
            } => (
                Fault::Cut {
                    with: with.selector()?,
                    direction: (*direction).into(),
                },
                Some(life),
            ),
            Self::Delay {
                with,
                by,
                jitter,
                life,
            } => (
                Fault::Delay {
                    with: with.selector()?,
                    ms: millis(*by),
                    jitter_ms: millis(*jitter),
                },
                Some(life),
            ),
            Self::Loss {
                with,
                percent,
                direction,
                life,
            } => (
                Fault::Loss {
                    with: with.selector()?,
                    percent: *percent,
                    direction: (*direction).into(),
                },
                Some(life),
            ),
            Self::Pause { life } => (Fault::Pause, Some(life)),
            Self::Crash { lasts } => return Ok((Fault::Crash, *lasts)),
            Self::StoreSlow { by, life } => (Fault::StoreSlow { ms: millis(*by) }, Some(life)),
            Self::StoreFail { life } => (Fault::StoreFail, Some(life)),
            Self::StoreFull { life } => (Fault::StoreFull, Some(life)),
            Self::Clock { shift, life } => (Fault::Clock { ms: shift.ms()? }, Some(life)),
        };
        Ok((fault, life.map(|life| life.lasts)))
    }
}

impl With {
    fn selector(&self) -> anyhow::Result<Selector> {
        let region = self.region.clone().map(Selector::Region);
        let node = self.node.clone().map(Selector::Node);
        let clients = self.clients.then_some(Selector::Clients);
        region.or(node).or(clients).context("it is not said with whom")
    }
}

impl Shift {
    fn ms(&self) -> anyhow::Result<i64> {
        let signed = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let behind = self.behind.map(|time| -signed(time));
        self.ahead
            .map(signed)
            .or(behind)
            .context("it is not said how far")
    }
}

impl From<Way> for Direction {
    fn from(way: Way) -> Self {
        match way {
            Way::Both => Self::Both,
            Way::In => Self::In,
            Way::Out => Self::Out,
        }
    }
}

fn life(text: &str) -> Result<Duration, String> {
    let lasts = args::duration(text)?;
    check_life(lasts).map_err(|error| error.to_string())?;
    Ok(lasts)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
