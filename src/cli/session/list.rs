//! `iris session list`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{Reply, SessionList, SessionRow, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, View, ago, or_dash, size, span};
use crate::cli::args;
use crate::cli::output;
use crate::core::ids::{RegionId, UserId};
use crate::core::inspect::Digits;

/// List the sessions of clients, and how each is served.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris session list
  iris session list --user bob
  iris session list --region eu-west --limit 1024 --output json | jq -r '.sessions[].user'")]
pub struct List {
    /// Of this user only.
    #[arg(long, value_name = "USER")]
    user: Option<UserId>,
    /// At nodes of this region only.
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
    /// Begin above this session.
    #[arg(long, value_name = "SESSION")]
    after: Option<Digits>,
    /// At most so many, at most 1024.
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = args::rows)]
    limit: usize,
    #[command(flatten)]
    look: Look,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let request = Request::SessionList {
            user: self.user,
            region: self.region,
            after: self.after,
            limit: self.limit,
        };
        self.look.run(request, |reply| match reply {
            Reply::Sessions(list) => Some(list),
            _ => None,
        })
    }
}

impl View for SessionList {
    fn table(&self) -> String {
        let row = |row: &SessionRow| {
            let (facts, delivery) = (&row.facts, row.delivery.as_ref().map(|delivery| &delivery.facts));
            vec![
                facts.session.to_string(),
                facts.user.to_string(),
                facts.device.to_string(),
                row.node.to_string(),
                facts.status.to_string(),
                ago(facts.since_ms),
                span(facts.silent_ms),
                facts.unanswered.to_string(),
                facts.watching.to_string(),
                delivery.map_or_else(
                    || {
                        if facts.welcomed {
                            "no owner"
                        } else {
                            "waits for its owner"
                        }
                        .to_owned()
                    },
                    |delivery| delivery.mode.to_string(),
                ),
                or_dash(delivery.map(|delivery| {
                    format!(
                        "{}, {}",
                        delivery.in_flight_messages,
                        size(delivery.in_flight_bytes as u64)
                    )
                })),
            ]
        };
        let mut text = output::table(
            &[
                "SESSION",
                "USER",
                "DEVICE",
                "NODE",
                "STATUS",
                "SINCE",
                "SILENT",
                "SENDS",
                "WATCHES",
                "DELIVERY",
                "IN FLIGHT",
            ],
            &self.sessions.iter().map(row).collect::<Vec<_>>(),
        );
        if let Some(next) = self.next {
            text.push_str(&format!("more: --after {next}\n"));
        }
        text
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }
}
