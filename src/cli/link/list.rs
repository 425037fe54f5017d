//! `iris link list`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{LinkList, LinkRow, Reply, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, PARTIAL, View, or_dash, size, span, trip};
use crate::cli::output;
use crate::core::ids::RegionId;
use crate::core::link::LinkState;

/// List the links between regions, each direction for itself, with how far the receiving side is behind.
///
/// A link that is down counts what has waited since it broke. A `+` says that the number is the least that it can be.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris link list
  iris link list --region eu-west --watch
  iris link list --output json | jq '.links[] | {from: .from.node.region, to: .to.node.region, lag: .given.lag}'")]
pub struct List {
    /// Only those from or to this region.
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
    #[command(flatten)]
    look: Look,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let request = Request::LinkList { region: self.region };
        self.look.run(request, |reply| match reply {
            Reply::Links(list) => Some(list),
            _ => None,
        })
    }
}

impl View for LinkList {
    fn table(&self) -> String {
        let mut text = links(&self.links);
        for link in &self.links {
            for stopped in link.taken.iter().flat_map(|taken| &taken.stopped_shards) {
                text.push_str(&format!(
                    "{} -> {}: shard {} of origin {} stopped: {}\n",
                    link.from, link.to, stopped.shard, stopped.origin, stopped.why
                ));
            }
        }
        text
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }

    fn code(&self) -> u8 {
        let all = self.links.iter().all(|link| {
            let stopped = link.taken.as_ref().is_some_and(|taken| taken.stopped > 0);
            link.state == LinkState::Live && !stopped
        });
        if all && self.silent.is_empty() { 0 } else { PARTIAL }
    }
}

/// Links as a table.
pub fn links(rows: &[LinkRow]) -> String {
    let row = |row: &LinkRow| {
        let (taken, given) = (row.taken.as_ref(), row.given.as_ref());
        let lag = given.map(|given| {
            let more = if given.lag.at_least { "+" } else { "" };
            [
                given.lag.operations.to_string(),
                format!("{}{more}", given.lag.messages),
                format!("{}{more}", size(given.lag.bytes)),
                span(given.lag_ms),
            ]
        });
        let mut cells = vec![
            row.from.to_string(),
            row.to.to_string(),
            row.state.to_string(),
            or_dash(
                taken
                    .filter(|taken| taken.down_ms > 0)
                    .map(|taken| span(taken.down_ms)),
            ),
            trip(taken.and_then(|taken| taken.round_trip_us)),
        ];
        cells.extend(lag.unwrap_or_else(|| [(); 4].map(|()| "-".to_owned())));
        cells.push(or_dash(given.map(|given| size(given.in_flight_bytes))));
        cells.push(or_dash(given.map(|given| size(given.shipped_bytes))));
        cells.push(or_dash(taken.map(|taken| size(taken.received_bytes))));
        cells.push(or_dash(taken.map(|taken| taken.stopped)));
        cells
    };
    output::table(
        &[
            "FROM",
            "TO",
            "STATE",
            "DOWN FOR",
            "ROUND TRIP",
            "WAITING",
            "MESSAGES",
            "BYTES",
            "BEHIND",
            "IN FLIGHT",
            "SENT",
            "RECEIVED",
            "STOPPED",
        ],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}
