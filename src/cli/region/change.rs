//! `iris region add|remove`

use std::process::ExitCode;

use clap::Args;

use crate::admin::request::Change;
use crate::cli::admin::Target;
use crate::core::ids::RegionId;

/// Make a region a holder of all shards.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region add ap-south")]
pub struct Add {
    /// The region's id.
    #[arg(value_name = "REGION")]
    region: RegionId,
    #[command(flatten)]
    target: Target,
}

/// Let a region go: it holds nothing any more, and nobody waits for it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region remove ap-south
  iris region remove ap-south --force      what only it has is given up")]
pub struct Remove {
    /// The region's id.
    #[arg(value_name = "REGION")]
    region: RegionId,
    /// Also where what only that region has may be lost.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

impl Add {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.target.change(Change::RegionAdd { region: self.region })
    }
}

impl Remove {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.target.change(Change::RegionRemove {
            region: self.region,
            force: self.force,
        })
    }
}
