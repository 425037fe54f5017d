//! `iris shard show`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{LogRow, Reply, ShardAt, ShardDetail, Silent};
use crate::admin::request::{Request, ShardOf};
use crate::cli::admin::{Look, PARTIAL, View, ago};
use crate::cli::output;
use crate::core::ids::UserId;
use crate::core::inspect::ShardState;

/// Show one shard in every region: owner, epoch, and the log of each origin.
///
/// APPLIED, STABLE and FLOOR are sequences: what this region has, what every region confirmed that it has, and to where the log
/// was trimmed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris shard show 17
  iris shard show --user bob
  iris shard show 17 --output json | jq '.regions[].stored.logs'")]
pub struct Show {
    /// Its number.
    #[arg(
        value_name = "SHARD",
        required_unless_present = "user",
        conflicts_with = "user"
    )]
    shard: Option<u32>,
    /// The shard of this user.
    #[arg(long, value_name = "USER")]
    user: Option<UserId>,
    #[command(flatten)]
    look: Look,
}

impl Show {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let of = match (self.shard, self.user) {
            (_, Some(user)) => ShardOf::User(user),
            (shard, None) => ShardOf::Shard(shard.unwrap_or_default()),
        };
        self.look.run(Request::ShardShow { of }, |reply| match reply {
            Reply::Shard(detail) => Some(detail),
            _ => None,
        })
    }
}

impl View for ShardDetail {
    fn table(&self) -> String {
        let mut text = format!("shard {}\n", self.shard);
        for at in &self.regions {
            let owner = match (&at.part.owner, at.part.partition) {
                (Some(owner), Some(partition)) => format!(
                    "{}, epoch {}, owned by partition {partition}; sessions: {}, presence records: {}, operations unconfirmed: {}",
                    owner.state,
                    owner.epoch.unwrap_or_default(),
                    owner.sessions,
                    owner.presence_records,
                    owner.unconfirmed
                ),
                _ => "not owned there".to_owned(),
            };
            text.push_str(&format!("\n{}: {owner}\n", at.node));
            let Some(stored) = &at.part.stored else { continue };
            text.push_str(&format!(
                "stored: {}, last own origin {}, last operation {}\n",
                stored.recovery,
                stored.origin,
                if stored.hlc_ms == 0 {
                    "never".to_owned()
                } else {
                    ago(stored.hlc_ms)
                }
            ));
            let row = |log: &LogRow| {
                vec![
                    log.origin.to_string(),
                    log.region.to_string(),
                    log.applied.to_string(),
                    log.stable.to_string(),
                    log.floor.to_string(),
                    log.previous
                        .map_or_else(|| "-".to_owned(), |at| format!("{}:{}", at.origin, at.seq)),
                ]
            };
            let rows: Vec<Vec<String>> = stored.logs.iter().map(row).collect();
            text.push_str(&output::table(
                &["ORIGIN", "REGION", "APPLIED", "STABLE", "FLOOR", "FOLLOWS"],
                &rows,
            ));
            for confirmed in &stored.confirmed {
                text.push_str(&format!(
                    "{} confirmed {}; operations that are here and that it did not name: {}\n",
                    confirmed.region,
                    ago(confirmed.at_ms),
                    confirmed.behind
                ));
            }
        }
        text
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }

    fn code(&self) -> u8 {
        let open = |at: &ShardAt| {
            at.part
                .owner
                .as_ref()
                .is_none_or(|owner| owner.state == ShardState::Open)
        };
        let owned = self.regions.iter().any(|at| at.part.owner.is_some());
        if self.silent.is_empty() && owned && self.regions.iter().all(open) {
            0
        } else {
            PARTIAL
        }
    }
}
