//! `iris fault clear`

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::bail;
use clap::Args;

use super::{Asked, table};
use crate::admin::data::{FaultList, NodeRow};
use crate::admin::request::Change;
use crate::admin::wire::{AdminError, ErrorCode};
use crate::cli::admin::{Target, refused};
use crate::cli::output::{self, Format, say};
use crate::cli::serve;
use crate::core::ids::{NodeName, RegionId};

/// End faults before their time.
///
/// Each node is asked itself, at its socket or with --connect. A process that is paused goes on when its time is over.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris fault clear us-east-core-1/3
  iris fault clear --all
  iris fault clear --all --region us-east
  iris fault clear --all --node us-east-core-1
  iris fault clear --all --connect 10.0.0.5:7110 --cert operator.pem --key operator.key --ca ca.pem")]
pub struct Clear {
    /// The fault, as `iris fault list` names it.
    #[arg(
        value_name = "NODE/NUMBER",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    fault: Option<FaultName>,
    /// All faults of all nodes, but for what lasts as long as a node.
    #[arg(long)]
    all: bool,
    /// With --all: those of the nodes of this region.
    #[arg(long, value_name = "REGION", requires = "all", conflicts_with_all = ["ask", "socket"])]
    region: Option<RegionId>,
    /// What was ended as a table, or JSON whose fields docs/operating.md describes.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    target: Target,
}

/// A fault by its node and number.
#[derive(Debug, Clone)]
struct FaultName {
    node: NodeName,
    id: u64,
}

impl FromStr for FaultName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected NODE/NUMBER, such as us-east-core-1/3".to_owned();
        let (node, id) = text.split_once('/').ok_or_else(expected)?;
        Ok(Self {
            node: node.parse().map_err(|_| expected())?,
            id: id.parse().map_err(|_| expected())?,
        })
    }
}

impl Clear {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        serve::run_to_end(async {
            let is_meant = |row: &NodeRow| match (&self.fault, &self.region) {
                (Some(fault), _) => row.node.node == fault.node,
                (None, Some(region)) => row.node.region == *region,
                (None, None) => true,
            };
            let reached = match self.fault.is_none() && self.target.names_node() {
                true => {
                    let (node, client) = self.target.connect_one().await?;
                    vec![(node, Ok(client))]
                }
                false => self.target.connect_each(is_meant).await?,
            };
            if reached.is_empty() {
                let what = match (&self.fault, &self.region) {
                    (Some(fault), _) => format!("node {}", fault.node),
                    (None, Some(region)) => format!("node of a region {region}"),
                    (None, None) => bail!("no node is known"),
                };
                return refused(&AdminError::new(
                    ErrorCode::NotFound,
                    format!("there is no {what}"),
                ));
            }
            let asked = Asked::ask(reached, |node| Change::FaultClear {
                node: node.node.clone(),
                id: self.fault.as_ref().map(|fault| fault.id),
            })
            .await?;
            let code = asked.code()?;
            let list = FaultList {
                faults: asked.faults,
                silent: Vec::new(),
            };
            match self.output {
                Format::Json => output::print_json(&list)?,
                Format::Table if list.faults.is_empty() => say!("there was nothing to end"),
                Format::Table => output::print(&format!("ended:\n{}", table(&list.faults)))?,
            }
            Ok(code)
        })
    }
}
