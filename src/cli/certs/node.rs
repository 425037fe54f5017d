//! `iris certs node`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::refuse_existing;
use crate::cli::args::DataArg;
use crate::cli::output;
use crate::net::certs::ClusterCa;

/// Make a node's certificate for connections between nodes, signed by the cluster's CA.
///
/// Writes node.pem and node.key (mode 0600), for tls.peer.cert and tls.peer.key. What clients see (tls.client) comes from a CA that
/// they trust, or is made with `iris certs server`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris certs node --region eu-west --name eu-west-core-1 --out eu-west-core-1
  iris certs node --region eu-west --name eu-west-edge-1 --out eu-west-edge-1 --ca secrets/ca")]
pub struct Node {
    /// The region's id, as its file has it.
    #[arg(long, value_name = "REGION")]
    region: String,
    /// The node's name, as its region's file has it.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The folder to write to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The folder with ca.pem and ca.key; ca in the data folder where it is not given.
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    data: DataArg,
}

impl Node {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let folder = self.ca.unwrap_or_else(|| self.data.data.join("ca"));
        let ca = ClusterCa::load(&folder).context("the CA cannot be used; name its folder with --ca")?;
        refuse_existing(&["node.pem", "node.key"].map(|name| self.out.join(name)))?;
        let identity = ca
            .issue_node(&self.region, &self.name)
            .context("no certificate was made")?;
        let (cert, key) = identity.save(&self.out, "node")?;
        output::print(&format!("{}\n{}\n", cert.display(), key.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
