//! Who connects, where to, and what it trusts: from the folder of `iris dev`, or as given.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::cli::args::DataArg;
use crate::client::state::token_subject;
use crate::client::{ClientConfig, connector};
use crate::core::ids::{DeviceId, RegionId, UserId};
use crate::core::wire::{RegionEndpoints, Status};
use crate::net::address::HostPort;
use crate::net::certs::Roots;
use crate::server::dev::DevInfo;
use crate::server::token::{KeyFiles, Signer};

/// Life of the tokens that are minted here; a new one is made when it ends.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Largest token file in bytes; the wire takes tokens of 4,096.
const MAX_TOKEN_FILE: u64 = 16 * 1024;

/// Who connects and where to.
#[derive(Debug, Args)]
pub struct Connection {
    /// The user. Its token is signed with the key in the data folder, unless one is given.
    #[arg(long = "as", value_name = "USER", required_unless_present_any = ["token", "token_file"])]
    user: Option<UserId>,
    /// The region to enter; the first of the data folder otherwise.
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
    /// Where to connect, instead of the endpoints in the data folder; may be repeated.
    #[arg(long = "endpoint", value_name = "HOST:PORT")]
    endpoints: Vec<String>,
    /// The name that the servers' certificates must have; the host of the endpoint, or as the data folder says.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// The CA to trust, in PEM, instead of that of the data folder.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The token to present. It can be seen in the list of processes: better give a file, or IRIS_TOKEN.
    #[arg(
        long,
        value_name = "JWT",
        env = "IRIS_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// A file with the token to present; read again when the token is refused.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    data: DataArg,
}

impl Connection {
    /// The configuration of a client as `device`. Inside a runtime only.
    pub(super) fn config(&self, device: DeviceId, status: Status) -> anyhow::Result<ClientConfig> {
        let (endpoints, server_name) = self.servers()?;
        let roots = self.roots()?;
        let (token, renew) = self.token()?;
        if let (Some(user), Some(subject)) = (&self.user, token_subject(&token))
            && *user != subject
        {
            bail!("the token is for {subject}, not for {user}: leave --as out, or give a token for {user}");
        }
        let connector = connector(&roots).context("no connection can be made")?;
        let mut config = ClientConfig::new(connector, token, device);
        config.agent = concat!("iris/", env!("CARGO_PKG_VERSION")).to_owned();
        config.renew = renew;
        config.server_name = server_name;
        config.endpoints = endpoints;
        config.status = status;
        Ok(config)
    }

    /// Where a device keeps its state: the same for all regions, so that it resumes in any.
    pub(super) fn state_file(&self, config: &ClientConfig) -> PathBuf {
        let user = token_subject(&config.token).or_else(|| self.user.clone());
        let user = user.as_ref().map_or("unknown", |user| user.as_str());
        let name = format!("{}@{}.state", plain(user), plain(config.device.as_str()));
        self.data.data.join("clients").join(name)
    }

    fn servers(&self) -> anyhow::Result<(Vec<RegionEndpoints>, Option<String>)> {
        if !self.endpoints.is_empty() {
            for endpoint in &self.endpoints {
                check_endpoint(endpoint)?;
            }
            let name = self.region.as_ref().map_or("given", |region| region.as_str());
            let regions = vec![RegionEndpoints {
                region: RegionId::new(name)?,
                endpoints: self.endpoints.clone(),
            }];
            return Ok((regions, self.server_name.clone()));
        }
        let data = self.in_data("dev.json", "--endpoint, --ca and --token")?;
        let info = DevInfo::load(data).context("the data folder cannot be used")?;
        let mut regions = Vec::new();
        for region in info.regions {
            regions.push(RegionEndpoints {
                region: RegionId::new(&region.id)?,
                endpoints: region.endpoints,
            });
        }
        if let Some(wanted) = &self.region {
            let known: Vec<String> = regions.iter().map(|known| known.region.to_string()).collect();
            regions.retain(|known| known.region == *wanted);
            if regions.is_empty() {
                bail!(
                    "there is no region {wanted} in {}: expected one of {}",
                    data.display(),
                    known.join(", ")
                );
            }
        }
        Ok((regions, self.server_name.clone().or(Some(info.server_name))))
    }

    fn roots(&self) -> anyhow::Result<Roots> {
        match &self.ca {
            Some(file) => Roots::load(file).context("the CA cannot be used"),
            None => {
                let file = self.in_data("ca/ca.pem", "--ca")?.join("ca/ca.pem");
                Roots::load(&file).context("the CA of the data folder cannot be used")
            }
        }
    }

    /// The token, and what gives another one.
    fn token(&self) -> anyhow::Result<(String, Option<crate::client::Renew>)> {
        if let Some(token) = &self.token {
            return Ok((token.trim().to_owned(), None));
        }
        let source: Arc<dyn Fn() -> anyhow::Result<String> + Send + Sync> = match &self.token_file {
            Some(file) => {
                let file = file.clone();
                Arc::new(move || read_token(&file))
            }
            None => {
                let user = self.user.clone().context("no user: give --as or a token")?;
                let key = KeyFiles::in_data(self.in_data("keys/token.key", "--token or --token-file")?);
                let signer = Signer::from_file(&key.private, None)
                    .context("the key of the data folder cannot be used; give --token or --token-file")?;
                Arc::new(move || {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH);
                    let now = now.context("the system's clock is before 1970")?;
                    signer
                        .mint(user.as_str(), now.as_secs(), TOKEN_LIFE)
                        .context("no token was made")
                })
            }
        };
        let token = source()?;
        let renew: crate::client::Renew = Arc::new(move || {
            let token = source().map_err(|error| format!("{error:#}"));
            Box::pin(std::future::ready(token))
        });
        Ok((token, Some(renew)))
    }

    /// The data folder, if that file is in it; otherwise what to do.
    fn in_data(&self, file: &str, instead: &str) -> anyhow::Result<&Path> {
        let data = &self.data.data;
        if !data.join(file).exists() {
            bail!(
                "there is no {}: start `iris dev` with the same --data, name its folder with --data, or give {instead}",
                data.join(file).display()
            );
        }
        Ok(data)
    }
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let size = std::fs::metadata(file)
        .with_context(|| format!("token file {}", file.display()))?
        .len();
    if size > MAX_TOKEN_FILE {
        bail!(
            "token file {} has {size} bytes; expected a token of at most {MAX_TOKEN_FILE}",
            file.display()
        );
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("token file {}", file.display()))?;
    Ok(text.trim().to_owned())
}

fn check_endpoint(endpoint: &str) -> anyhow::Result<()> {
    match endpoint.parse::<HostPort>() {
        Ok(_) => Ok(()),
        Err(expected) => bail!("--endpoint {endpoint:?}: {expected}"),
    }
}

/// A name for files: what is not plain is written as its bytes in hexadecimal digits, so that no two names collide.
fn plain(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02x}")),
        }
    }
    // A file name has at most 255 bytes on common systems; the hash tells long names apart.
    if out.len() > 100 {
        let hash = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        out.truncate(80);
        out.push_str(&format!("%{hash:016x}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain_and_differ() {
        assert_eq!(plain("bob-1_x"), "bob-1_x");
        assert_eq!(plain("../B"), "%2e%2e%2f%42");
        let long = ["x".repeat(255), "x".repeat(254), "é".repeat(127)];
        let names: std::collections::BTreeSet<_> = long.iter().map(|name| plain(name)).collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| name.len() < 110));
    }

    #[test]
    fn endpoints_are_checked() {
        assert!(check_endpoint("localhost:1").is_ok() && check_endpoint("[::1]:7101").is_ok());
        for bad in ["localhost", ":1", "a:70000", "a:b"] {
            assert!(check_endpoint(bad).is_err(), "{bad}");
        }
    }
}
