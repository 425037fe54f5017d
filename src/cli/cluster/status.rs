//! `iris cluster status`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{ClusterStatus, Keeps, RegionRow, RegionState, Reply, Silent, Verdict};
use crate::admin::request::Request;
use crate::cli::admin::{CRITICAL, Look, PARTIAL, View};
use crate::cli::output;

/// Say whether the cluster is well, and if not, why.
///
/// The exit code is the verdict: 0 healthy, 3 degraded, 4 critical; 1 where no node could be asked.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris cluster status
  iris cluster status --watch
  iris cluster status --output json | jq -r '.reasons[].text'
  iris cluster status --connect 10.0.0.5:7110 --cert alice/operator.pem --key alice/operator.key --ca ca.pem")]
pub struct Status {
    #[command(flatten)]
    look: Look,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.look.run(Request::ClusterStatus, |reply| match reply {
            Reply::ClusterStatus(status) => Some(*status),
            _ => None,
        })
    }
}

impl View for ClusterStatus {
    fn table(&self) -> String {
        let mut text = format!(
            "{}: {} of {} nodes ready, {} of {} links live, regions: {}, sessions: {} (cluster {}, answered by {})\n",
            word(self.verdict),
            self.nodes_ready,
            self.nodes,
            self.links_live,
            self.links,
            self.regions.len(),
            self.sessions,
            self.cluster,
            self.answered_by
        );
        for reason in &self.reasons {
            text.push_str(&format!("  {}: {}\n", word(reason.severity), reason.text));
        }
        text.push('\n');
        text + &regions(&self.regions)
    }

    /// They are among the reasons.
    fn silent(&self) -> &[Silent] {
        &[]
    }

    fn code(&self) -> u8 {
        match self.verdict {
            Verdict::Healthy => 0,
            Verdict::Degraded => PARTIAL,
            Verdict::Critical => CRITICAL,
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Healthy => "healthy",
        Verdict::Degraded => "degraded",
        Verdict::Critical => "CRITICAL",
    }
}

/// Regions as a table.
pub fn regions(rows: &[RegionRow]) -> String {
    let row = |row: &RegionRow| {
        let state = match row.state {
            _ if row.keeps == Keeps::No => "out",
            _ if row.keeps == Keeps::Coming => "joins",
            _ if row.keeps == Keeps::Leaving => "leaves",
            RegionState::Ready => "ready",
            RegionState::Degraded => "degraded",
            RegionState::Down => "DOWN",
            RegionState::Silent => "NO ANSWER",
        };
        vec![
            row.region.to_string(),
            match row.evacuated_ms {
                None => state.to_owned(),
                Some(_) => format!("{state}, evacuated"),
            },
            format!("{} of {}", row.nodes_ready, row.nodes),
            row.cores_ready.to_string(),
            row.edges_ready.to_string(),
            row.sessions.to_string(),
            row.shards_open.to_string(),
            row.shards_recovering.to_string(),
            row.name.clone(),
        ]
    };
    output::table(
        &[
            "REGION",
            "STATE",
            "NODES",
            "CORES",
            "EDGES",
            "SESSIONS",
            "SHARDS",
            "RECOVERING",
            "NAME",
        ],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}
