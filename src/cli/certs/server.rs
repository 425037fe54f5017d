//! `iris certs server`

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::refuse_existing;
use crate::cli::args::DataArg;
use crate::cli::output;
use crate::net::certs::ClusterCa;

/// Make a certificate that clients see, signed by the cluster's CA, which they must trust then.
///
/// Writes client.pem and client.key (mode 0600), for tls.client.cert and tls.client.key. For clients that trust public CAs, use a
/// certificate of one of those instead.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris certs server --host edge-1.example.com --out edge-1
  iris certs server --host edge-1.example.com --ip 192.0.2.7 --out edge-1 --ca secrets/ca")]
pub struct Server {
    /// A host name that clients connect to; may be given several times.
    #[arg(long = "host", value_name = "NAME", required_unless_present = "ips")]
    hosts: Vec<String>,
    /// An address that clients connect to; may be given several times.
    #[arg(long = "ip", value_name = "ADDRESS")]
    ips: Vec<IpAddr>,
    /// The folder to write to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The folder with ca.pem and ca.key; ca in the data folder where it is not given.
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    data: DataArg,
}

impl Server {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let folder = self.ca.unwrap_or_else(|| self.data.data.join("ca"));
        let ca = ClusterCa::load(&folder).context("the CA cannot be used; name its folder with --ca")?;
        refuse_existing(&["client.pem", "client.key"].map(|name| self.out.join(name)))?;
        let identity = ca
            .issue_server(&self.hosts, &self.ips)
            .context("no certificate was made")?;
        let (cert, key) = identity.save(&self.out, "client")?;
        output::print(&format!("{}\n{}\n", cert.display(), key.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
