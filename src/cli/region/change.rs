//! `iris region add|remove|evacuate|restore`

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

/// Send a region's clients to the others, at a limited rate.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region evacuate eu-west
  iris region evacuate eu-west --rate 500")]
pub struct Evacuate {
    /// The region's id.
    #[arg(value_name = "REGION")]
    region: RegionId,
    /// Clients a second.
    #[arg(long, value_name = "NUMBER")]
    rate: Option<u32>,
    #[command(flatten)]
    target: Target,
}

/// Let clients come back to a region that was evacuated.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris region restore eu-west")]
pub struct Restore {
    /// The region's id.
    #[arg(value_name = "REGION")]
    region: RegionId,
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

impl Evacuate {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.target.change(Change::RegionEvacuate {
            region: self.region,
            rate: self.rate,
        })
    }
}

impl Restore {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.target.change(Change::RegionRestore { region: self.region })
    }
}
