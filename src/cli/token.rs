//! `iris token`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;

use super::{args, output};
use crate::server::token::{AUDIENCE, Audience, Claims, KeyFiles, Signer};

/// Mint a token for a client.
///
/// The token goes to stdout. It says who the client is: keep it as secret as the key's owner would want.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris token --user alice                                   with the key of `iris dev` in ./data
  iris token --user alice --ttl 10m --data /tmp/iris
  iris token --user alice --key token.key --kid 2026-01     with a key of your own
  openssl genpkey -algorithm ed25519 -out token.key         makes such a key
  openssl pkey -in token.key -pubout -out token.pub         and what the nodes verify with")]
pub struct Token {
    /// The user that the token is for.
    #[arg(long, value_name = "ID")]
    user: String,
    /// How long it is valid, 1s to 24h.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = args::duration)]
    ttl: Duration,
    /// The key, instead of that of the data folder: an Ed25519 private key in PEM, or a file with an HS256 secret.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The key id that the token names.
    #[arg(long, value_name = "ID")]
    kid: Option<String>,
    /// The issuer that the token names, where the nodes' configuration asks for one.
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// The audience, as in the nodes' configuration.
    #[arg(long, value_name = "NAME", default_value = AUDIENCE)]
    audience: String,
    #[command(flatten)]
    data: args::DataArg,
}

impl Token {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let signer = match &self.key {
            Some(file) => Signer::from_file(file, self.kid.clone()).context("the key cannot be used")?,
            None => {
                let file = KeyFiles::in_data(&self.data.data).private;
                Signer::from_file(&file, self.kid.clone()).context(
                    "there is no usable key in the data folder; start `iris dev` once with the same --data, or name a key with --key",
                )?
            }
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the system's clock is before 1970")?;
        let mut claims = Claims::new(&self.user, now.as_secs(), self.ttl).context("no token was made")?;
        claims.aud = Some(Audience::One(self.audience));
        claims.iss = self.issuer;
        let token = signer.sign(&claims).context("no token was made")?;
        output::print(&(token + "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
