//! `iris region list`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{Keeps, RegionList, RegionRow, RegionState, Reply, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, PARTIAL, View};
use crate::cli::cluster::status::regions;
use crate::cli::region::change::left;

/// List the regions.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region list
  iris region list --output json | jq '.regions[] | {region, state, unreachable_ms}'")]
pub struct List {
    #[command(flatten)]
    look: Look,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.look.run(Request::RegionList, |reply| match reply {
            Reply::Regions(list) => Some(list),
            _ => None,
        })
    }
}

impl View for RegionList {
    fn table(&self) -> String {
        let mut text = regions(&self.regions);
        if let Some(holders) = self
            .holders
            .as_ref()
            .filter(|holders| holders.settled < holders.total)
        {
            text.push_str(&format!(
                "\nthe regions that keep the shards change: {}\n",
                left(holders)
            ));
        }
        text
    }

    fn code(&self) -> u8 {
        let well = |row: &RegionRow| match row.keeps {
            Keeps::Yes => row.state == RegionState::Ready && row.evacuated_ms.is_none(),
            Keeps::No => true,
            Keeps::Coming | Keeps::Leaving => false,
        };
        if self.silent.is_empty() && self.regions.iter().all(well) {
            0
        } else {
            PARTIAL
        }
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }
}
