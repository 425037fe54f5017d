//! How the clients of a drill get in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::crew::Place;
use super::log;
use crate::client::ClientConfig;
use crate::core::ids::RegionId;
use crate::net::connect::Connector;
use crate::server::token::Signer;

/// Tokens of the drill's clients live so long.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What clients of a cluster need.
pub struct Access {
    /// Makes their connections.
    pub connector: Connector,
    /// Makes their tokens.
    pub signer: Signer,
    /// The name in the servers' certificates, where it is not the endpoint's host.
    pub server_name: Option<String>,
    /// Where each region takes clients, `host:port`.
    pub regions: Vec<(RegionId, Vec<String>)>,
}

impl Access {
    /// The drill's clients: so many that prefer each region, and one in each that stays there. Their users are named by
    /// their regions, behind `prefix`: in a cluster that others use, too, they must be nobody else's. They enter their region at
    /// its nodes by turns, so that each node has some.
    ///
    /// # Errors
    /// Where no token can be made.
    pub fn places(&self, clients: u32, prefix: &str) -> anyhow::Result<Vec<Place>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.context("the system's clock is before 1970")?;
        let mut places = Vec::new();
        for (home, _) in &self.regions {
            for n in 0..=clients {
                let pinned = n == clients;
                let name = match pinned {
                    true => format!("{prefix}{home}-stays"),
                    false => format!("{prefix}{home}-{n}"),
                };
                let token = self.signer.mint(&name, now.as_secs(), TOKEN_LIFE)?;
                let mut config = ClientConfig::new(self.connector.clone(), token, "drill".parse()?);
                config.server_name.clone_from(&self.server_name);
                let mut regions: Vec<_> = self.regions.iter().collect();
                regions.sort_by_key(|(region, _)| region != home);
                let known = if pinned { 1 } else { regions.len() };
                for (region, endpoints) in regions.into_iter().take(known) {
                    let mut endpoints = endpoints.clone();
                    // Of the others it is told with its first session.
                    if region == home
                        && let Some(at) = (n as usize).checked_rem(endpoints.len())
                    {
                        endpoints = vec![endpoints.swap_remove(at)];
                    }
                    config.endpoints_of(region.clone(), endpoints);
                }
                config.tuning.stays = pinned;
                let client = log::Client {
                    name,
                    home: home.to_string(),
                    pinned,
                };
                places.push(Place { client, config });
            }
        }
        Ok(places)
    }
}
