//! `iris inbox show`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{DeviceRow, EntryRow, InboxReport, Reply, Silent};
use crate::admin::request::{Place, Request};
use crate::cli::admin::{Look, View, ago, size};
use crate::cli::args;
use crate::cli::output;
use crate::core::ids::{RegionId, UserId};

/// Show the messages that wait for a user, without their bodies, and what each device has read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris inbox show bob
  iris inbox show bob --region eu-west --limit 1024
  iris inbox show bob --output json | jq -r '.entries[] | [.id, .from, .body_bytes] | @tsv'")]
pub struct Show {
    /// The user.
    #[arg(value_name = "USER")]
    user: UserId,
    /// As this region's store has them; the region of the node that is asked, or the next that answers, where it is not given.
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
    /// Begin above these, as a page before told: ORIGIN:SEQUENCE, several with commas.
    #[arg(long, value_name = "PLACES", value_delimiter = ',', value_parser = place)]
    after: Option<Vec<Place>>,
    /// At most so many messages, at most 1024.
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = args::rows)]
    limit: usize,
    #[command(flatten)]
    look: Look,
}

impl Show {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let request = Request::InboxShow {
            user: self.user,
            region: self.region,
            after: self.after,
            limit: self.limit,
        };
        self.look.run(request, |reply| match reply {
            Reply::Inbox(report) => Some(*report),
            _ => None,
        })
    }
}

/// For `value_parser`: a place in a log.
fn place(text: &str) -> Result<Place, String> {
    let bad = || format!("{text:?}: expected ORIGIN:SEQUENCE, such as 00f3a1b2c3d4e5f6:17");
    let (origin, seq) = text.split_once(':').ok_or_else(bad)?;
    Ok(Place {
        origin: origin.parse().map_err(|_| bad())?,
        seq: seq.parse().map_err(|_| bad())?,
    })
}

fn places(places: &[Place]) -> String {
    let places = places.iter().map(|at| format!("{}:{}", at.origin, at.seq));
    places.collect::<Vec<_>>().join(",")
}

impl View for InboxReport {
    fn table(&self) -> String {
        let inbox = &self.inbox;
        let mut text = format!(
            "{}: messages that wait: {}, {} (shard {}, as {} has them)\n\n",
            inbox.user,
            inbox.unread,
            size(inbox.unread_bytes),
            inbox.shard,
            self.node
        );
        if inbox.devices.is_empty() {
            text.push_str("no device: everything waits for the first\n");
        } else {
            let row = |row: &DeviceRow| {
                let cursor = if row.cursor.is_empty() {
                    "-".to_owned()
                } else {
                    places(&row.cursor)
                };
                vec![
                    row.device.to_string(),
                    if row.expired { "expired" } else { "reads" }.to_owned(),
                    row.waiting.to_string(),
                    cursor,
                ]
            };
            let rows: Vec<Vec<String>> = inbox.devices.iter().map(row).collect();
            text.push_str(&output::table(&["DEVICE", "STATE", "WAITING", "HAS READ"], &rows));
        }
        for gap in &inbox.gaps {
            text.push_str(&format!("gone: {}:{} to {}\n", gap.origin, gap.from, gap.to));
        }
        if !inbox.entries.is_empty() {
            let row = |row: &EntryRow| {
                let devices: Vec<String> = row.waits_for.iter().map(ToString::to_string).collect();
                vec![
                    format!("{}:{}", row.at.origin, row.at.seq),
                    row.id.clone(),
                    format!("{}/{}", row.from, row.from_device),
                    ago(row.accepted_ms),
                    size(row.body_bytes as u64),
                    devices.join(","),
                ]
            };
            let rows: Vec<Vec<String>> = inbox.entries.iter().map(row).collect();
            text.push('\n');
            text.push_str(&output::table(
                &["AT", "ID", "FROM", "ACCEPTED", "BODY", "WAITS FOR"],
                &rows,
            ));
        }
        if let Some(next) = &inbox.next {
            text.push_str(&format!("more: --after {}\n", places(next)));
        }
        text
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }
}
