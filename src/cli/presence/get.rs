//! `iris presence get`

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::admin::data::{PresenceAt, PresenceReport, Reply, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, View, ago, or_dash};
use crate::cli::output;
use crate::core::ids::UserId;

/// Show a user as watchers in each region see it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris presence get bob
  iris presence get bob --watch=1s
  iris presence get bob --output json | jq -r '.regions[] | [.owner.region, .status] | @tsv'")]
pub struct Get {
    /// The user.
    #[arg(value_name = "USER")]
    user: UserId,
    #[command(flatten)]
    look: Look,
}

impl Get {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.look
            .run(Request::Presence { user: self.user }, |reply| match reply {
                Reply::Presence(report) => Some(Seen(report)),
                _ => None,
            })
    }
}

/// The same answer as that of `explain`, of which the table shows less.
#[derive(Serialize)]
#[serde(transparent)]
struct Seen(PresenceReport);

impl View for Seen {
    fn table(&self) -> String {
        let row = |at: &PresenceAt| {
            let facts = &at.facts;
            let text = if facts.text.is_empty() {
                "-".to_owned()
            } else {
                facts.text.clone()
            };
            vec![
                at.owner.region.to_string(),
                facts.status.to_string(),
                or_dash(facts.region.as_ref()),
                or_dash(facts.since_ms.map(ago)),
                or_dash(facts.unreachable_since_ms.map(ago)),
                facts
                    .records
                    .iter()
                    .filter(|record| !record.ended)
                    .count()
                    .to_string(),
                text,
            ]
        };
        output::table(
            &[
                "SEEN IN",
                "STATUS",
                "KNOWN BY",
                "SINCE",
                "UNREACHABLE SINCE",
                "DEVICES",
                "TEXT",
            ],
            &self.0.regions.iter().map(row).collect::<Vec<_>>(),
        )
    }

    fn silent(&self) -> &[Silent] {
        &self.0.silent
    }
}
