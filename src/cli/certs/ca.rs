//! `iris certs ca`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::refuse_existing;
use crate::cli::output;
use crate::net::certs::{CA_CERT_FILE, CA_KEY_FILE, ClusterCa};

/// Make the CA of a new cluster: every certificate of its nodes and operators is signed by it.
///
/// Writes ca.pem, which every node has as tls.peer.ca, and ca.key (mode 0600), which belongs on no node: whoever has it can make
/// certificates of nodes and operators.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris certs ca --out secrets/ca")]
pub struct Ca {
    /// The folder to write to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Ca {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let files = [CA_CERT_FILE, CA_KEY_FILE].map(|name| self.out.join(name));
        refuse_existing(&files)?;
        ClusterCa::create()?.save(&self.out)?;
        let [cert, key] = files;
        output::print(&format!("{}\n{}\n", cert.display(), key.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
