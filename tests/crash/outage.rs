//! A region whose processes are all killed while messages are sent, and which comes back later.

use std::time::{Duration, Instant};

use iris::client::{Client, ClientEvent};
use iris::core::wire::PresenceEvent;

use crate::common::members::{Load, Member};
use crate::common::{event, user};
use crate::processes::Site;

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
    let mut site = Site::start(&REGIONS, lines, &[]).await;
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
