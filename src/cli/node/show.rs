//! `iris node show`

use std::process::ExitCode;

use clap::Args;

use super::list::word;
use crate::admin::data::{NodeRow, NodeState, Reply, SeenNode};
use crate::admin::request::Request;
use crate::cli::admin::{Look, PARTIAL, View, ago, or_dash, size, span, trip};
use crate::cli::output;
use crate::core::ids::NodeName;

/// Show one node: its state, its store, and the other nodes as it sees them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris node show us-east-core-1
  iris node show us-east-core-1 --output json | jq .report.store")]
pub struct Show {
    /// The node's name.
    #[arg(value_name = "NODE")]
    name: NodeName,
    #[command(flatten)]
    look: Look,
}

impl Show {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let request = Request::NodeShow { node: self.name };
        self.look.run(request, |reply| match reply {
            Reply::Node(row) => Some(*row),
            _ => None,
        })
    }
}

impl View for NodeRow {
    fn table(&self) -> String {
        let mut text = format!("{} is {}", self.node, word(self.state));
        if !self.why.is_empty() {
            text.push_str(&format!(": {}", self.why));
        }
        text.push('\n');
        let Some(report) = &self.report else { return text };
        let mut facts = vec![
            ("roles", report.roles.join(", ")),
            ("version", report.version.clone()),
            ("generation", report.generation.to_string()),
            ("up", span(report.uptime_ms)),
            ("peers reach it at", self.peer.clone()),
            ("clients reach it at", or_dash(report.client.as_ref())),
            ("health and metrics", format!("http://{}", report.admin_http)),
            ("sessions", report.sessions.to_string()),
            ("partitions", report.partitions.to_string()),
            (
                "shards",
                format!(
                    "{} open, {} recover",
                    report.shards_open, report.shards_recovering
                ),
            ),
            ("memory of its process", or_dash(report.memory_bytes.map(size))),
        ];
        if report.roles.iter().any(|role| role == "edge") {
            facts.push(("shards out of its reach", report.shards_unserved.to_string()));
            let served = report.served_by.as_ref().map(|region| format!("region {region}"));
            facts.push(("served by", served.unwrap_or_else(|| "its own region".to_owned())));
        }
        if let Some(store) = &report.store {
            facts.push(("last commit", or_dash(store.last_commit_ms.map(ago))));
            facts.push(("commits", store.commits.to_string()));
            facts.push(("journal", size(store.journal_bytes)));
            facts.push(("store in memory", size(store.resident_bytes)));
            facts.push(("checkpoints", store.checkpoints.to_string()));
        }
        for (what, fact) in facts {
            text.push_str(&format!("  {what:<24}{fact}\n"));
        }
        let row = |seen: &SeenNode| {
            let connection = seen.connection.as_ref();
            vec![
                seen.node.to_string(),
                if seen.member { "yes" } else { "no" }.to_owned(),
                or_dash(seen.generation),
                match connection {
                    None => "not wanted".to_owned(),
                    Some(connection) if connection.up => "up".to_owned(),
                    Some(connection) => format!("down, breaker {}", connection.breaker),
                },
                trip(connection.and_then(|connection| connection.round_trip_us)),
                or_dash(
                    connection
                        .filter(|seen| !seen.up)
                        .and_then(|seen| seen.last_error.as_ref()),
                ),
            ]
        };
        let rows: Vec<Vec<String>> = report.sees.iter().map(row).collect();
        text.push('\n');
        text + &output::table(
            &[
                "SEES",
                "MEMBER",
                "GENERATION",
                "CONNECTION",
                "ROUND TRIP",
                "LAST ERROR",
            ],
            &rows,
        )
    }

    fn code(&self) -> u8 {
        if self.state == NodeState::Ready {
            0
        } else {
            PARTIAL
        }
    }
}
