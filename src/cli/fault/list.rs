//! `iris fault list`

use std::process::ExitCode;

use clap::Args;

use super::table;
use crate::admin::data::{FaultList, Reply, Silent};
use crate::admin::request::Request;
use crate::cli::admin::{Look, View};

/// List the faults that were injected, at every node.
///
/// What `faults.wan` sets (`iris dev --wan`) lasts as long as the node, and is listed as such.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris fault list
  iris fault list --watch=1s
  iris fault list --output json | jq -r '.faults[] | select(.left_ms) | .fault.kind'")]
pub struct List {
    #[command(flatten)]
    look: Look,
}

impl List {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.look.run(Request::FaultList, |reply| match reply {
            Reply::Faults(list) => Some(list),
            _ => None,
        })
    }
}

impl View for FaultList {
    fn table(&self) -> String {
        if self.faults.is_empty() {
            return "no faults\n".to_owned();
        }
        table(&self.faults)
    }

    fn silent(&self) -> &[Silent] {
        &self.silent
    }
}
