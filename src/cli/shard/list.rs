//! `iris shard list`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{Reply, ShardList, ShardRow, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, PARTIAL, View, or_dash};
use crate::cli::args;
use crate::cli::output;
use crate::core::ids::RegionId;
use crate::core::inspect::ShardState;

/// List the shards of a region at their owners.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris shard list
  iris shard list --region eu-west --limit 1024
  iris shard list --output json | jq '[.shards[] | select(.state != \"open\")] | length'")]
pub struct List {
    /// The region; that of the node that is asked where it is not given.
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
    /// Begin above this shard.
    #[arg(long, value_name = "SHARD")]
    after: Option<u32>,
    /// At most so many, at most 1024.
    #[arg(long, value_name = "NUMBER", default_value_t = 32, value_parser = args::rows)]
    limit: usize,
    #[command(flatten)]
    look: Look,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let request = Request::ShardList {
            region: self.region,
            after: self.after,
            limit: self.limit,
        };
        self.look.run(request, |reply| match reply {
            Reply::Shards(list) => Some(list),
            _ => None,
        })
    }
}

impl View for ShardList {
    fn table(&self) -> String {
        let row = |row: &ShardRow| {
            let facts = &row.facts;
            vec![
                facts.shard.to_string(),
                facts.state.to_string(),
                row.owner.to_string(),
                or_dash(facts.epoch),
                facts.sessions.to_string(),
                facts.presence_records.to_string(),
                facts.logs.to_string(),
                facts.applied.to_string(),
                facts.unconfirmed.to_string(),
            ]
        };
        let mut text = output::table(
            &[
                "SHARD",
                "STATE",
                "OWNER",
                "EPOCH",
                "SESSIONS",
                "PRESENCE",
                "LOGS",
                "APPLIED",
                "UNCONFIRMED",
            ],
            &self.shards.iter().map(row).collect::<Vec<_>>(),
        );
        if let Some(next) = self.next {
            text.push_str(&format!("more: --after {next}\n"));
        }
        text
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }

    fn code(&self) -> u8 {
        let open = self.shards.iter().all(|row| row.facts.state == ShardState::Open);
        if open && self.silent.is_empty() {
            0
        } else {
            PARTIAL
        }
    }
}
