//! `iris region show`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{Keeps, RegionDetail, RegionState, Reply};
use crate::admin::request::Request;
use crate::cli::admin::{Look, PARTIAL, View, ago, span};
use crate::cli::cluster::status::regions;
use crate::cli::link::list::links;
use crate::cli::node::list::nodes;
use crate::core::ids::RegionId;

/// Show one region with its nodes and links.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region show eu-west
  iris region show eu-west --output json | jq .links")]
pub struct Show {
    /// The region's id.
    #[arg(value_name = "REGION")]
    region: RegionId,
    #[command(flatten)]
    look: Look,
}

impl Show {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let request = Request::RegionShow { region: self.region };
        self.look.run(request, |reply| match reply {
            Reply::Region(detail) => Some(*detail),
            _ => None,
        })
    }
}

impl View for RegionDetail {
    fn table(&self) -> String {
        let mut text = regions(std::slice::from_ref(&self.row));
        text.push_str(&format!(
            "accepted is durable in: {}{}; at {:.2}, {:.2}\n",
            self.durability,
            match self.row.geo_fallback.as_deref() {
                None => "",
                Some("region") => " (in the region alone where no other takes it in time)",
                Some(_) => " (refused for the time being where no other takes it in time)",
            },
            self.latitude,
            self.longitude
        ));
        let keeps = match self.row.keeps {
            Keeps::Yes => "",
            Keeps::Coming => "it is being added: it serves clients once it has everything\n",
            Keeps::Leaving => {
                "it was removed, and the others wait for what it took: leave its nodes running\n"
            }
            Keeps::No => {
                "it does not keep the shards: `iris region add` adds it, and if it was removed its nodes can be stopped\n"
            }
        };
        text.push_str(keeps);
        if self.row.unreachable_ms > 0 {
            text.push_str(&format!(
                "no other region has had a link to it for {}\n",
                span(self.row.unreachable_ms)
            ));
        }
        if let Some(since) = self.row.evacuated_ms {
            text.push_str(&format!(
                "evacuated {}: its clients go to other regions until it is restored\n",
                ago(since)
            ));
        }
        format!("{text}\n{}\n{}", nodes(&self.members), links(&self.links))
    }

    fn code(&self) -> u8 {
        if self.row.state == RegionState::Ready && self.row.evacuated_ms.is_none() {
            0
        } else {
            PARTIAL
        }
    }
}
