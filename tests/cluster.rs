//! Real servers in one process: several regions over QUIC on loopback, with the embedded store.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::members::{Load, Member};
use common::{
    TestCluster, event, get, receive, regions, regions_with, send, until, until_body, user, within,
};
use iris::client::{Client, ClientEvent};
use iris::core::ids::Sharding;
use iris::core::placement::partition;
use iris::core::wire::{Durability, Status};
use iris::server::node::PartitionStatus;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_waits_for_a_user_who_is_away_and_comes_online_elsewhere() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west", "ap-south"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let accepted = send(&alice, "bob", "hello from us-east").await;
    assert!(!accepted.duplicate);

    let bob = cluster.client("ap-south", "bob", "phone").await;
    let message = receive(&bob).await;
    assert_eq!(
        (message.from.as_str(), message.body.as_ref()),
        ("alice", b"hello from us-east".as_slice())
    );
    assert_eq!(message.id, accepted.id);
    // Once: what comes next is the next message.
    send(&alice, "bob", "second").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"second");

    // Presence of a user in eu-west, seen in us-east within a second. On a busy machine this process may itself be kept waiting
    // for longer now and then, so three of four changes must be that quick, and none far from it: what waited for a
    // timer or a round of some repair would be slow more often.
    const QUICK: Duration = Duration::from_secs(1);
    const NEVER: Duration = Duration::from_secs(10);
    alice.watch([user("carol")]);
    let shown = |status: Status| {
        move |event: &ClientEvent| match event {
            ClientEvent::Presence(seen) if seen.user.as_str() == "carol" && seen.status == status => Some(()),
            _ => None,
        }
    };
    event("carol offline", &alice, shown(Status::Offline)).await;
    let carol = cluster.client("eu-west", "carol", "laptop").await;
    let mut changed = Instant::now();
    event("carol online", &alice, shown(Status::Online)).await;
    let mut took = vec![changed.elapsed()];
    for status in [Status::Away, Status::Dnd, Status::Online].repeat(4) {
        changed = Instant::now();
        carol.set_status(status, "");
        event("another status", &alice, shown(status)).await;
        took.push(changed.elapsed());
    }
    changed = Instant::now();
    carol.close().await;
    event("carol offline again", &alice, shown(Status::Offline)).await;
    took.push(changed.elapsed());
    eprintln!("presence crossed regions in {took:?}");
    let slow = took.iter().filter(|took| **took >= QUICK).count();
    assert!(
        slow * 4 <= took.len(),
        "{slow} of {} are slow: {took:?}",
        took.len()
    );
    assert!(took.iter().all(|took| *took < NEVER), "{took:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_device_receives_and_resumes_from_its_own_cursor_anywhere() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let phone = cluster.client("us-east", "bob", "phone").await;
    // The tablet keeps its state: it claims its own cursor wherever it comes back (R17).
    let state = cluster.folder.path().join("tablet.state");
    let start = |region: &str| {
        let mut config = cluster.config(region, "bob", "tablet");
        config.state_file = Some(state.clone());
        Client::connect(config).unwrap()
    };
    let tablet = start("eu-west");
    assert!(common::within("tablet connected", tablet.connected()).await);
    send(&alice, "bob", "one").await;
    assert_eq!(receive(&phone).await.body.as_ref(), b"one");
    assert_eq!(receive(&tablet).await.body.as_ref(), b"one");
    tablet.close().await;

    // The phone reads on alone; the tablet loses nothing by it.
    for body in ["two", "three", "mark"] {
        send(&alice, "bob", body).await;
    }
    assert_eq!(
        until_body(&phone, b"mark").await,
        [b"two".to_vec(), b"three".to_vec()]
    );
    // The tablet comes back in the other region.
    let tablet = start("us-east");
    let bodies = until_body(&tablet, b"mark").await;
    assert_eq!(bodies, [b"two".to_vec(), b"three".to_vec()]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_was_stopped_catches_up_from_logs() {
    let mut cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    cluster.stop_node("eu-west-edge").await;
    cluster.stop_node("eu-west-core").await;
    for number in 0..500 {
        send(&alice, "bob", format!("{number}")).await;
    }
    cluster.start_node("eu-west-core").await;
    cluster.start_node("eu-west-edge").await;
    cluster.ready().await;
    let bob = cluster.client("eu-west", "bob", "phone").await;
    for number in 0..500 {
        assert_eq!(receive(&bob).await.body.as_ref(), format!("{number}").as_bytes());
    }
    cluster.stop().await;
}

/// What another region has outlives the region that accepted it, at once and for good.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_as_geo_outlives_its_region() {
    let all = regions_with(&["us-east", "eu-west", "ap-south"], "durability = \"geo\"\n");
    let mut cluster = TestCluster::start(&all, &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    for number in 0..100 {
        let accepted = send(&alice, "bob", format!("{number}")).await;
        assert_eq!(accepted.durability, Durability::Geo);
    }
    cluster.kill_node("us-east-core").await;
    cluster.kill_node("us-east-edge").await;
    let bob = cluster.client("eu-west", "bob", "phone").await;
    for number in 0..100 {
        assert_eq!(receive(&bob).await.body.as_ref(), format!("{number}").as_bytes());
    }
    cluster.stop().await;
}

/// With nobody to wait for, what is refused for the time being is accepted once, when another region is back.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_as_geo_while_no_other_region_is_there() {
    let all = regions_with(&["us-east", "eu-west"], "durability = \"geo\"\n");
    let mut cluster = TestCluster::start(&all, &[("timeouts.geo", "\"200ms\"")]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    cluster.stop_node("eu-west-edge").await;
    cluster.stop_node("eu-west-core").await;
    let (waiting, back) = tokio::join!(
        async {
            let accepted = send(&alice, "bob", "waits").await;
            (accepted, Instant::now())
        },
        async {
            let admin = cluster.node("us-east-core").admin_addr().unwrap();
            until("it is refused for the time being", async || {
                !get(admin, "/metrics")
                    .await
                    .unwrap()
                    .contains("iris_deposit_retried_total 0\n")
            })
            .await;
            let began = Instant::now();
            cluster.start_node("eu-west-core").await;
            cluster.start_node("eu-west-edge").await;
            began
        }
    );
    let (accepted, at) = waiting;
    assert_eq!(accepted.durability, Durability::Geo);
    assert!(at > back, "it was accepted before there was anybody to have it");
    let bob = cluster.client("eu-west", "bob", "phone").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"waits");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_fallback_is_the_region_its_sender_is_told() {
    let lines = "durability = \"geo\"\ngeo_fallback = \"region\"\n";
    let all = regions_with(&["us-east", "eu-west"], lines);
    let mut cluster = TestCluster::start(&all, &[("timeouts.geo", "\"200ms\"")]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    assert_eq!(send(&alice, "bob", "1").await.durability, Durability::Geo);
    cluster.stop_node("eu-west-edge").await;
    cluster.stop_node("eu-west-core").await;
    assert_eq!(send(&alice, "bob", "2").await.durability, Durability::Region);
    cluster.start_node("eu-west-core").await;
    cluster.start_node("eu-west-edge").await;
    within("another region", async {
        while send(&alice, "bob", "more").await.durability != Durability::Geo {}
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_two_partitions_serve_users_of_both() {
    let two = [("node.partitions", "2")];
    let mut cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &two).await;
    // A user for each partition of a core node, wherever the seed of this cluster's hash puts users.
    let settings = cluster.dev.config(&cluster.dev.nodes[0]).unwrap().cluster;
    let sharding = Sharding {
        count: settings.shard_count,
        seed: settings.hash_seed.unwrap().0,
    };
    let names = [0, 1].map(|number| {
        let mut names = (0..).map(|n| format!("user-{n}"));
        let found = names.find(|name| partition(sharding.of_user(&user(name)), 2) == number);
        found.unwrap()
    });

    // Two devices of each in each region. Connections take turns with the partitions of an edge.
    let mut clients = Vec::new();
    for region in ["us-east", "eu-west"] {
        for name in &names {
            for kind in ["phone", "laptop"] {
                let device = format!("{kind}-{region}");
                clients.push((
                    format!("{name}/{device}"),
                    cluster.client(region, name, &device).await,
                ));
            }
        }
    }
    for name in ["us-east-core", "us-east-edge", "eu-west-core", "eu-west-edge"] {
        let node = cluster.node(name);
        let partitions = node.partitions();
        let works = |status: &PartitionStatus| match node.client_addr() {
            Some(_) => status.sessions > 0,
            None => status.shards > 0,
        };
        assert!(
            partitions.len() == 2 && partitions.iter().all(works),
            "{name}: {partitions:?}"
        );
    }

    // Every device sends to both users, and every device of both receives all.
    for round in ["first", "after a restart"] {
        let body = |sender: &str| format!("{round}, from {sender}");
        for (sender, client) in &clients {
            for to in &names {
                send(client, to, body(sender)).await;
            }
        }
        let expected: BTreeSet<String> = clients.iter().map(|(sender, _)| body(sender)).collect();
        for (device, client) in &clients {
            let mut received = BTreeSet::new();
            while received.len() < expected.len() {
                let message = receive(client).await;
                let text = String::from_utf8(message.body.to_vec()).unwrap();
                assert!(expected.contains(&text), "{device}: {text}");
                assert!(received.insert(text), "twice to {device}: {message:?}");
            }
        }
        if round == "first" {
            cluster.stop_node("us-east-core").await;
            cluster.start_node("us-east-core").await;
            cluster.ready().await;
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_accepted() {
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    for number in 0..200 {
        send(&alice, "bob", format!("{number}")).await;
    }
    cluster.stop_node("us-east-core").await;
    cluster.start_node("us-east-core").await;
    cluster.ready().await;
    // The same client goes on: its edge attaches it again.
    send(&alice, "bob", "after").await;
    let bob = cluster.client("us-east", "bob", "phone").await;
    let bodies = until_body(&bob, b"after").await;
    assert_eq!(
        bodies,
        (0..200)
            .map(|number| number.to_string().into_bytes())
            .collect::<Vec<_>>()
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_loses_nothing() {
    let regions = iris::server::regions::Regions::built_in();
    let mut cluster = TestCluster::start(&regions, &[]).await;
    let mut members = Vec::new();
    for region in ["us-east", "eu-west", "ap-south"] {
        for n in 0..4 {
            let config = |name: &str| cluster.config(region, name, "phone");
            members.push(Member::start(&format!("{region}-{n}"), config).await);
        }
    }
    let load = Load::begin(&members);
    load.under_way().await;
    let names: Vec<String> = cluster.dev.nodes.iter().map(|node| node.name.clone()).collect();
    let began = Instant::now();
    for name in &names {
        cluster.stop_node(name).await;
        cluster.start_node(name).await;
        cluster.ready().await;
    }
    let restarted = began.elapsed();
    let took = load.settle(members).await;
    eprintln!(
        "{} nodes restarted in {restarted:?}; accepted meanwhile {took}",
        names.len()
    );
    cluster.stop().await;
}

/// The core node of a region is lost, its edges are not.
#[tokio::test(flavor = "multi_thread")]
async fn edges_without_a_core_of_their_region_are_served_by_another_region() {
    let regions = iris::server::regions::Regions::built_in();
    let mut cluster = TestCluster::start(&regions, &[("timeouts.fallback", "1s")]).await;
    let mut members = Vec::new();
    for (region, count) in [("us-east", 4), ("ap-south", 2)] {
        for n in 0..count {
            let config = |name: &str| cluster.config(region, name, "phone");
            members.push(Member::start(&format!("{region}-{n}"), config).await);
        }
    }
    let load = Load::begin(&members);
    load.under_way().await;
    let served_by = |cluster: &TestCluster| -> Vec<Option<String>> {
        let edges = ["us-east-edge-1", "us-east-edge-2"].map(|name| cluster.node(name).partitions());
        let edges = edges.iter().flatten();
        edges
            .map(|status| status.served_by.as_ref().map(ToString::to_string))
            .collect()
    };
    assert_eq!(served_by(&cluster), [None, None]);

    let killed = Instant::now();
    cluster.kill_node("us-east-core-1").await;
    until("the nearest region serves", async || {
        served_by(&cluster)
            .iter()
            .all(|region| region.as_deref() == Some("eu-west"))
    })
    .await;
    let served = killed.elapsed();
    until("its clients have sessions", async || {
        members[..4]
            .iter()
            .all(|member| member.session_after(killed).is_some())
    })
    .await;
    let resumed = killed.elapsed();
    let at_home = members[..4].iter().filter(|member| member.region() == "us-east");
    let at_home = at_home.count();
    let before = load.accepted();
    until("their messages are accepted", async || {
        let now = load.accepted();
        before.iter().zip(now).all(|(before, now)| now > before + 20)
    })
    .await;
    load.handled(&members, &before).await;

    cluster.start_node("us-east-core-1").await;
    cluster.ready().await;
    until("the own region serves", async || {
        served_by(&cluster).iter().all(Option::is_none)
    })
    .await;
    let took = load.settle(members).await;
    eprintln!(
        "served by another region after {served:?}, clients resumed after {resumed:?}, {at_home} of 4 at edges of their \
         region; accepted meanwhile {took}"
    );
    assert!(at_home > 0, "all clients went to other regions");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_does_not_hold_a_drain() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let config = cluster.config("us-east", "bob", "phone");
    // Nothing drives its tasks any more, as if its process had been killed: not even the end of its connection is told.
    let gone = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(async {
            let client = Client::connect(config).unwrap();
            assert!(client.connected().await);
            client
        });
        std::mem::forget((client, runtime));
    });
    common::within("the client is connected", gone).await.unwrap();
    let alice = cluster.client("us-east", "alice", "laptop").await;
    send(&alice, "bob", "you there?").await;
    let started = Instant::now();
    cluster.stop().await;
    let took = started.elapsed();
    eprintln!("drained in {took:?}");
    // Two seconds for a sign of life, and some for closing its connection; without that it is the 30 s of the drain.
    assert!(took < Duration::from_secs(20), "{took:?}");
}
