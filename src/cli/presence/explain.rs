//! `iris presence explain`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{PresenceReport, Reply, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, View, ago, or_dash};
use crate::cli::output;
use crate::core::ids::UserId;
use crate::core::inspect::RecordFacts;

/// Show each device record of a user in each region, its version, who wrote it, and why the user is seen as it is.
///
/// A version is connect epoch, session, and counter; `ended` beats every counter of its session, `p` says that the epoch was
/// taken after the client answered a probe. The greater version wins everywhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris presence explain bob
  iris presence explain bob --output json | jq '.regions[].records'")]
pub struct Explain {
    /// The user.
    #[arg(value_name = "USER")]
    user: UserId,
    #[command(flatten)]
    look: Look,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.look
            .run(Request::Presence { user: self.user }, |reply| match reply {
                Reply::Presence(report) => Some(report),
                _ => None,
            })
    }
}

impl View for PresenceReport {
    fn table(&self) -> String {
        let mut text = match self.agreed {
            true => format!("{}: all regions that answered show the same\n", self.user),
            false => format!("{}: regions differ\n", self.user),
        };
        for at in &self.regions {
            let facts = &at.facts;
            let unreachable = facts.unreachable_since_ms.map(|since| {
                format!(
                    ", because {} went out of reach {}",
                    or_dash(facts.region.as_ref()),
                    ago(since)
                )
            });
            text.push_str(&format!(
                "\n{} (shard {} at {}): {}{}; edges that watch: {}\n",
                at.owner.region,
                facts.shard,
                at.owner,
                facts.status,
                unreachable.unwrap_or_default(),
                facts.watchers
            ));
            let row = |record: &RecordFacts| {
                let stage = match record.counter {
                    Some(counter) => format!("{counter}{}", if record.proved { "p" } else { "" }),
                    None => "ended".to_owned(),
                };
                vec![
                    record.device.to_string(),
                    record.shown.to_string(),
                    or_dash(record.chosen),
                    format!("{}.{}.{stage}", record.connect_epoch, record.session),
                    or_dash(record.written_by.as_ref()),
                    or_dash(record.edge.as_ref()),
                    or_dash(record.since_ms.map(ago)),
                    if record.decides { "decides; " } else { "" }.to_owned() + &record.why,
                ]
            };
            if facts.records.is_empty() {
                text.push_str("no record: the user was never seen there since its owner started\n");
                continue;
            }
            let rows: Vec<Vec<String>> = facts.records.iter().map(row).collect();
            text.push_str(&output::table(
                &[
                    "DEVICE",
                    "SHOWN",
                    "CHOSEN",
                    "VERSION",
                    "WRITTEN BY",
                    "CONNECTED TO",
                    "SINCE",
                    "WHY",
                ],
                &rows,
            ));
        }
        text
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }
}
