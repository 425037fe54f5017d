//! `iris certs operator`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::refuse_existing;
use crate::cli::args::DataArg;
use crate::cli::output::{self, say};
use crate::net::certs::ClusterCa;

/// Make a certificate of the operator role, signed by the cluster's CA: whoever has it may ask any node anything with --connect.
///
/// Writes operator.pem and operator.key (mode 0600).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris certs operator --name alice --out alice
  iris certs operator --name alice --out alice --ca secrets/ca
  iris cluster status --connect 10.0.0.5:7110 --cert alice/operator.pem --key alice/operator.key --ca ca.pem")]
pub struct Operator {
    /// Who it is for: 1 to 32 of a-z, 0-9 and hyphen.
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

impl Operator {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let folder = self.ca.unwrap_or_else(|| self.data.data.join("ca"));
        let ca = ClusterCa::load(&folder).context("the CA cannot be used; name its folder with --ca")?;
        refuse_existing(&["operator.pem", "operator.key"].map(|name| self.out.join(name)))?;
        let identity = ca.issue_operator(&self.name).context("no certificate was made")?;
        let (cert, key) = identity.save(&self.out, "operator")?;
        output::print(&format!("{}\n{}\n", cert.display(), key.display()))?;
        say!(
            "nodes log this operator as certificate {}",
            identity.fingerprint()
        );
        Ok(ExitCode::SUCCESS)
    }
}
