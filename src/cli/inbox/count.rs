//! `iris inbox count`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{InboxCount, InboxCountAt, Reply, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, View, size};
use crate::cli::output;
use crate::core::ids::UserId;

/// Count the messages that wait for a user, in each region's store.
///
/// The regions show the same once everything was shipped and read positions, which follow after about a second, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris inbox count bob
  iris inbox count bob --output json | jq '.regions[0].unread'")]
pub struct Count {
    /// The user.
    #[arg(value_name = "USER")]
    user: UserId,
    #[command(flatten)]
    look: Look,
}

impl Count {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.look
            .run(Request::InboxCount { user: self.user }, |reply| match reply {
                Reply::InboxCount(count) => Some(count),
                _ => None,
            })
    }
}

impl View for InboxCount {
    fn table(&self) -> String {
        let row = |at: &InboxCountAt| {
            vec![
                at.node.region.to_string(),
                at.unread.to_string(),
                size(at.unread_bytes),
                at.devices.to_string(),
            ]
        };
        output::table(
            &["REGION", "MESSAGES", "BYTES", "DEVICES"],
            &self.regions.iter().map(row).collect::<Vec<_>>(),
        )
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }
}
