//! A region whose processes are all killed while messages are sent, and which comes back later.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iris::client::{Client, ClientConfig, ClientEvent, connector};
use iris::core::wire::PresenceEvent;
use iris::net::certs::Roots;
use iris::net::connect::Connector;
use iris::server::dev::{DevCluster, Ports, SERVER_NAME};

use crate::common::members::{Load, Member};
use crate::common::{client_config, event, regions_with, token, user};
use crate::processes::{Running, created, serving};

const REGIONS: [&str; 3] = ["us-east", "eu-west", "ap-south"];
/// The one that goes.
const LOST: &str = "eu-west";
/// Clients that prefer each region.
const CLIENTS: usize = 4;
/// How long it is away, unless the environment says another time.
const AWAY_SECS: u64 = 8;
/// Clients of the region have a session elsewhere within this.
const RESUMED: Duration = Duration::from_secs(10);
/// Users of the region show as unreachable within this.
const UNREACHABLE: Duration = Duration::from_secs(8);

struct Site {
    dev: DevCluster,
    connector: Connector,
    nodes: BTreeMap<String, Running>,
    _folder: tempfile::TempDir,
}

impl Site {
    async fn start(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let regions = regions_with(&REGIONS, lines);
        let dev = DevCluster::prepare(folder.path(), &regions, Ports::Free).unwrap();
        let roots = Roots::load(&folder.path().join("ca/ca.pem")).unwrap();
        let mut site = Self {
            dev,
            connector: connector(&roots).unwrap(),
            nodes: BTreeMap::new(),
            _folder: folder,
        };
        site.run(|_| true, true).await;
        site
    }

    /// Starts the nodes of regions, and waits until they are ready.
    async fn run(&mut self, is: impl Fn(&str) -> bool, create: bool) {
        let nodes: Vec<_> = self.dev.nodes.iter().filter(|node| is(&node.region)).collect();
        for node in &nodes {
            let mut command = serving(node);
            command.args(if create { created(node) } else { &[] });
            self.nodes.insert(node.name.clone(), Running::start(command));
        }
        for node in nodes {
            let running = self.nodes.get_mut(&node.name).expect("it was started");
            running.ready(node).await;
        }
    }

    /// `kill -9` of all nodes of a region.
    fn kill(&mut self, region: &str) {
        let nodes = self.dev.nodes.iter().filter(|node| node.region == region);
        let killed: Vec<Running> = nodes.filter_map(|node| self.nodes.remove(&node.name)).collect();
        assert!(!killed.is_empty());
    }

    fn config(&self, region: &str, user: &str) -> ClientConfig {
        client_config(&self.dev, &self.connector, region, user, "phone")
    }

    /// A client that knows no other region.
    fn pinned(&self, region: &str, user: &str) -> ClientConfig {
        let token = token(&self.dev.data, user);
        let mut config = ClientConfig::new(self.connector.clone(), token, "phone".parse().unwrap());
        config.server_name = Some(SERVER_NAME.to_owned());
        let of = self
            .dev
            .info
            .regions
            .iter()
            .find(|info| info.id == region)
            .unwrap();
        config.endpoints_of(region.parse().unwrap(), of.endpoints.clone());
        config
    }
}

/// The next that a watcher is told of somebody, where it is of this kind.
async fn shown(what: &str, watcher: &Client, is: impl Fn(&PresenceEvent) -> bool) -> Instant {
    event(what, watcher, |event| match event {
        ClientEvent::Presence(presence) if is(presence) => Some(Instant::now()),
        _ => None,
    })
    .await
}

/// `IRIS_TEST_OUTAGE_SECS=600 cargo test --test crash outage -- --nocapture` is the long run.
async fn outage(lines: &str, keeps_all: bool) {
    let away = std::env::var("IRIS_TEST_OUTAGE_SECS").map_or(AWAY_SECS, |text| text.parse().unwrap());
    let mut site = Site::start(lines).await;
    let mut members = Vec::new();
    for region in REGIONS {
        for n in 0..CLIENTS {
            let config = |name: &str| site.config(region, name);
            members.push(Member::start(&format!("{region}-{n}"), config).await);
        }
    }
    let watcher = Client::connect(site.config("us-east", "watcher")).unwrap();
    watcher.watch([user("stays")]);
    let stays = Client::connect(site.pinned(LOST, "stays")).unwrap();
    shown("somebody is there", &watcher, |told| {
        told.devices > 0 && told.unreachable_since_ms.is_none()
    })
    .await;
    let load = Load::begin(&members);
    load.under_way().await;

    // What was told while links came to stand says nothing of what follows.
    while watcher.try_next().is_some() {}
    let accepted = load.accepted();
    site.kill(LOST);
    let lost = Instant::now();
    let unreachable = shown("unreachable", &watcher, |told| {
        told.unreachable_since_ms.is_some()
    })
    .await
        - lost;
    let of_lost = || members.iter().filter(|member| member.name.starts_with(LOST));
    let mut resumed = Vec::new();
    for member in of_lost() {
        let session = async || loop {
            if let Some(at) = member.session_after(lost) {
                return at - lost;
            }
            tokio::time::sleep(crate::common::LOOK_EVERY).await;
        };
        resumed.push(crate::common::within("a session elsewhere", session()).await);
        assert_ne!(member.region(), LOST);
    }
    resumed.sort_unstable();
    if keeps_all {
        // What was accepted is elsewhere, whatever becomes of the region.
        load.handled(&members, &accepted).await;
    }
    tokio::time::sleep(Duration::from_secs(away).saturating_sub(lost.elapsed())).await;

    let began = Instant::now();
    site.run(|region| region == LOST, false).await;
    let ready = began.elapsed();
    let back = shown("back", &watcher, |told| {
        told.devices > 0 && told.unreachable_since_ms.is_none()
    })
    .await;
    let took = load.settle(members).await;
    eprintln!(
        "{LOST} was away for {:?}{}: its clients had a session elsewhere after {:?} to {:?}, its users showed as unreachable \
         after {unreachable:?}; its nodes were ready {ready:?} after their start, the user who stayed there was shown {:?} after \
         it; accepted meanwhile {took}",
        began - lost,
        if keeps_all { ", with geo" } else { "" },
        resumed[0],
        resumed[resumed.len() - 1],
        back - began,
    );
    assert!(resumed.iter().all(|took| *took < RESUMED), "{resumed:?}");
    assert!(unreachable < UNREACHABLE, "{unreachable:?}");
    for client in [watcher, stays] {
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_a_region_loses_nothing_once_it_is_back() {
    outage("", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_a_region_loses_nothing_with_geo() {
    outage("durability = \"geo\"\n", true).await;
}
