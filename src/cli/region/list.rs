//! `iris region list`

use std::process::ExitCode;

use clap::Args;

use crate::admin::data::{RegionList, Reply, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, View};
use crate::cli::cluster::status::regions;

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
        regions(&self.regions)
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }
}
