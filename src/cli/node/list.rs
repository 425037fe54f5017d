//! `iris node list`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{NodeList, NodeRow, NodeState, Reply};
use crate::admin::request::Request;
use crate::cli::admin::{Look, PARTIAL, View, or_dash, size, span};
use crate::cli::output;

/// List every node of every region, also those that do not answer.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris node list
  iris node list --watch=5s
  iris node list --output json | jq -r '.nodes[] | select(.state != \"ready\") | .node'")]
pub struct List {
    #[command(flatten)]
    look: Look,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.look.run(Request::NodeList, |reply| match reply {
            Reply::Nodes(list) => Some(list),
            _ => None,
        })
    }
}

impl View for NodeList {
    fn table(&self) -> String {
        nodes(&self.nodes)
    }

    fn code(&self) -> u8 {
        let all = self.nodes.iter().all(|row| row.state == NodeState::Ready);
        if all { 0 } else { PARTIAL }
    }
}

/// A state in a word.
pub fn word(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::NotReady => "not ready",
        NodeState::Draining => "draining",
        NodeState::NoAnswer => "NO ANSWER",
    }
}

/// Nodes as a table.
pub fn nodes(rows: &[NodeRow]) -> String {
    let row = |row: &NodeRow| {
        let report = row.report.as_ref();
        vec![
            row.node.region.to_string(),
            row.node.node.to_string(),
            word(row.state).to_owned(),
            row.roles.join("+"),
            or_dash(report.map(|report| report.sessions)),
            or_dash(report.map(|report| report.shards_open)),
            or_dash(report.map(|report| span(report.uptime_ms))),
            or_dash(report.and_then(|report| report.memory_bytes).map(size)),
            row.peer.clone(),
            row.why.clone(),
        ]
    };
    output::table(
        &[
            "REGION", "NODE", "STATE", "ROLES", "SESSIONS", "SHARDS", "UP", "MEMORY", "PEER", "WHY",
        ],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}
