//! What an operator relies on: tasks that panic, a node that cannot go on, messages between nodes that make no sense, figures.

mod common;

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{LOOK_EVERY, PATIENCE, TestCluster, get, receive, regions, send, token, until, within};
use iris::client::{Client, connector};
use iris::core::ids::{Generation, NodeKey, Sharding};
use iris::core::vector::Vector;
use iris::core::wire::{ClientFrame, Hello, ServerFrame, Status, Welcome};
use iris::net::CloseCode;
use iris::net::certs::{ClusterCa, Roots};
use iris::net::client::ClosedBy;
use iris::net::connect::Connector;
use iris::net::frame::Frame;
use iris::net::peer::{Direction, PeerConfig, PeerEvent, PeerHello, PeerLimits, PeerPool};
use iris::net::supervise::Supervisor;
use iris::server::config::{LoadOptions, NodeConfig, TomlText};
use iris::server::dev::{DevCluster, Ports, SERVER_NAME};
use iris::server::node::{Create, Node, NodeFailure};
use iris::server::regions::Regions;
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_is_started_again_and_the_rest_goes_on() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let (alice, bob) = (
        cluster.client("us-east", "alice", "laptop").await,
        cluster.client("us-east", "bob", "phone").await,
    );
    let edge = cluster.node("us-east-edge");
    let admin = edge.admin_addr().unwrap();
    let tasks = [
        ("members", "members"),
        ("shards", "shards"),
        ("gossip view", "gossip_view"),
        ("admin http", "admin_http"),
        ("client listener", "client_accept"),
        ("peer listener", "peer_accept"),
        ("peer link to us-east/us-east-core", "peer_link"),
    ];
    // The watch over the shards of a node without any ends at once.
    for (name, kind) in tasks.into_iter().filter(|(name, _)| *name != "shards") {
        edge.inject_panic(name);
        let line = format!("iris_task_restarts_total{{task=\"{kind}\"}} 1");
        until(&line, async || {
            get(admin, "/metrics")
                .await
                .is_ok_and(|text| text.contains(&line))
        })
        .await;
        send(&alice, "bob", name.as_bytes().to_vec()).await;
        assert_eq!(receive(&bob).await.body.as_ref(), name.as_bytes());
        assert!(
            edge.health().is_ready(),
            "after {name}: {:?}",
            edge.health().reasons()
        );
    }
    // Those who come later are admitted, too.
    let carol = cluster.client("us-east", "carol", "phone").await;
    send(&alice, "carol", "hello").await;
    assert_eq!(receive(&carol).await.body.as_ref(), b"hello");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_or_store_that_is_lost_makes_the_node_not_ready_and_says_why() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    for (node, task) in [("us-east-core", "store"), ("us-east-edge", "partition 0")] {
        let node = cluster.node(node);
        let admin = node.admin_addr().unwrap();
        let failed = node.failed();
        node.inject_panic(task);
        let ended = within("the node fails", failed).await;
        let NodeFailure::Task(ended) = ended else {
            panic!("{ended}")
        };
        assert_eq!(ended.task, task);
        assert!(ended.why.contains("a panic that a test asked for"), "{ended}");
        let answer = get(admin, "/readyz").await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 503")
                && answer.contains(&format!("{{\"task {task}\":\"it panicked")),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_its_core_is_not_ready_and_names_what_is_missing() {
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let admin = cluster.node("us-east-edge").admin_addr().unwrap();
    let status = async || get(admin, "/readyz").await.unwrap();
    assert!(status().await.starts_with("HTTP/1.1 200"));
    cluster.stop_node("us-east-core").await;
    until("the edge is not ready", async || {
        let answer = status().await;
        answer.starts_with("HTTP/1.1 503")
            && answer.contains("\"owners\"")
            && answer.contains("shards have no")
    })
    .await;
    let figures = get(admin, "/metrics").await.unwrap();
    assert!(!figures.contains("iris_edge_shards_unserved 0\n"), "{figures}");
    cluster.start_node("us-east-core").await;
    until("it is again", async || status().await.starts_with("HTTP/1.1 200")).await;
    let figures = get(admin, "/metrics").await.unwrap();
    assert!(figures.contains("iris_edge_shards_unserved 0\n"), "{figures}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_partition_is_lost_ends_with_an_error() {
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    cluster.stop_node("us-east-core").await;
    let core = cluster
        .dev
        .nodes
        .iter()
        .find(|node| node.client.is_none())
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_iris"))
        .args([
            "serve",
            "--stop-with-stdin",
            "--panic-in",
            "partition 0",
            "--config",
        ])
        .arg(&core.config)
        .env("IRIS_LOG", "error")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ended = None;
    until("the process ends", async || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.unwrap().code(), Some(1), "{said}");
    assert!(
        said.contains("node us-east-core failed; start it again")
            && said.contains("the task partition 0 ended and cannot be started again"),
        "{said}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_node_was_started_elsewhere_ends_and_says_so() {
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    cluster.stop_node("us-east-edge").await;
    let edge = cluster
        .dev
        .nodes
        .iter()
        .find(|node| node.client.is_some())
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_iris"))
        .args(["serve", "--stop-with-stdin", "--config"])
        .arg(&edge.config)
        .env("IRIS_LOG", "warn")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the first is ready", async || {
        get(edge.admin_http, "/readyz")
            .await
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .await;
    // The same node, with a data folder and ports of its own: as on another machine.
    let mut config = cluster.dev.config(edge).unwrap();
    config.node.data = cluster.folder.path().join("elsewhere");
    for addr in [&mut config.listen.peer, &mut config.listen.admin_http] {
        addr.set_port(0);
    }
    config.listen.client = Some((Ipv4Addr::LOCALHOST, 0).into());
    let second = Node::start(config, cluster.dev.regions.clone(), Create::Store)
        .await
        .unwrap();
    let mut ended = None;
    until("the first ends", async || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.unwrap().code(), Some(1), "{said}");
    for part in [
        "node us-east-edge was replaced",
        "a later start of us-east/us-east-edge has taken its place",
        &second.peer_addr().to_string(),
        "end one of them",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    assert!(
        !said.contains("connected to itself") && said.lines().count() < 20,
        "{said}"
    );
    within("the second is ready", second.ready()).await;
    within("stopped", second.stop()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_listen_everywhere_tell_clients_and_each_other_where_they_are_reached() {
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("../regions/us-east.toml").to_owned();
    let texts = vec![TomlText::new("us-east.toml", text).unwrap()];
    let regions = Regions::from_texts(Path::new("test"), texts).unwrap();
    let dev = DevCluster::prepare(folder.path(), &regions, Ports::Free).unwrap();
    let mut nodes = Vec::new();
    for node in &dev.nodes {
        let mut config = dev.config(node).unwrap();
        config.advertise.peer = Some(config.listen.peer);
        config.listen.peer.set_ip(Ipv4Addr::UNSPECIFIED.into());
        let host = if nodes.len() == 1 {
            "localhost"
        } else {
            "127.0.0.1"
        };
        config.advertise.client = Some(format!("{host}:0").parse().unwrap());
        // The system chooses the port, so that it is in no file.
        config.listen.client = Some((Ipv4Addr::UNSPECIFIED, 0).into());
        nodes.push(
            Node::start(config, dev.regions.clone(), node.create())
                .await
                .unwrap(),
        );
    }
    for node in &nodes {
        within(&format!("{} ready", node.key()), node.ready()).await;
    }
    let bound = |node: &Node| {
        let bound = node.client_addr().unwrap();
        assert!(bound.ip().is_unspecified() && bound.port() != 0, "{bound}");
        bound.port()
    };
    let ports = (bound(&nodes[1]), bound(&nodes[2]));
    let expected = [format!("localhost:{}", ports.0), format!("127.0.0.1:{}", ports.1)];
    // Each edge tells itself first, and the other one as gossip has it.
    let roots = Roots::load(&folder.path().join("ca/ca.pem")).unwrap();
    let (connector, token) = (connector(&roots).unwrap(), token(folder.path(), "alice"));
    for (port, own) in [(ports.0, 0), (ports.1, 1)] {
        until("both edges are told", async || {
            let welcome = welcome(&connector, port, &token).await;
            let told = &welcome.regions[0].endpoints;
            assert_eq!(told[0], expected[own]);
            assert!(told.iter().all(|one| expected.contains(one)), "{told:?}");
            told.len() == 2
        })
        .await;
    }
    for node in nodes.into_iter().rev() {
        within("stopped", node.stop()).await;
    }
}

/// What a server on this port of loopback answers to a `Hello`.
async fn welcome(connector: &Connector, port: u16, token: &str) -> Welcome {
    let addr = (Ipv4Addr::LOCALHOST, port).into();
    let stream = within("connected", connector.connect(addr, SERVER_NAME)).await;
    let mut stream = stream.unwrap();
    let mut hello = bytes::BytesMut::new();
    ClientFrame::Hello(Box::new(Hello {
        token: token.to_owned(),
        device: "laptop".parse().unwrap(),
        capabilities: 0,
        cursor: Vector::default(),
        connect_epoch: 0,
        status: Status::Online,
        text: String::new(),
        agent: "test".to_owned(),
        memory: 0,
        after: Vector::default(),
    }))
    .encode(&mut hello);
    within("sent", stream.send(vec![hello.freeze()])).await.unwrap();
    within("welcomed", async {
        loop {
            for frame in stream.recv().await.unwrap() {
                match ServerFrame::decode(frame.kind, frame.payload) {
                    Ok(ServerFrame::Welcome(welcome)) => return *welcome,
                    // The session before it may not have ended yet, and the two are rivals until then.
                    Ok(ServerFrame::Probe { .. }) => {}
                    other => panic!("expected Welcome: {other:?}"),
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_peer_that_cannot_be_decoded_ends_its_connection() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let core = cluster
        .dev
        .nodes
        .iter()
        .find(|node| node.client.is_none())
        .unwrap();
    let loaded = NodeConfig::load(LoadOptions::from_process(Some(core.config.clone()))).unwrap();
    let settings = loaded.config.cluster;
    let ca = ClusterCa::load(&cluster.folder.path().join("ca")).unwrap();
    let node = NodeKey {
        region: "us-east".parse().unwrap(),
        node: "us-east-odd".parse().unwrap(),
    };
    let local = "127.0.0.1:0".parse().unwrap();
    let config = PeerConfig {
        bind: local,
        identity: ca.issue_node("us-east", "us-east-odd").unwrap(),
        roots: ca.roots(),
        hello: PeerHello {
            cluster_id: settings.id.unwrap().0,
            node,
            generation: Generation(1),
            partitions: 1,
            sharding: Sharding {
                count: settings.shard_count,
                seed: settings.hash_seed.unwrap().0,
            },
            addr: local,
        },
        limits: PeerLimits::default(),
        wrap_socket: None,
        supervisor: Supervisor::default(),
    };
    let (sender, mut events) = mpsc::channel::<PeerEvent>(64);
    let pool = PeerPool::start(config, sender).unwrap();
    let target = cluster.node("us-east-core");
    pool.want(target.key(), target.peer_addr());
    // A message of no kind, a frame of no kind, a partition that is not there.
    let wrong = [(0, 16, &b"\xff\xff"[..]), (0, 99, b"x"), (4, 16, b"x")];
    for (class, kind, payload) in wrong {
        let incarnation = within("connected", async {
            loop {
                if let PeerEvent::Up {
                    direction: Direction::Out,
                    incarnation,
                    ..
                } = events.recv().await.unwrap()
                {
                    return incarnation;
                }
            }
        })
        .await;
        let frame = Frame::new(kind, bytes::Bytes::copy_from_slice(payload)).encode();
        pool.send(target.key(), incarnation, class, vec![frame]).unwrap();
        let reason = within("closed", async {
            loop {
                if let PeerEvent::Lost { reason, .. } = events.recv().await.unwrap() {
                    return reason;
                }
            }
        })
        .await;
        assert!(
            matches!(&reason, ClosedBy::Remote(reason) if reason.code == CloseCode::BAD_MESSAGE),
            "{reason}"
        );
    }
    let text = get(target.admin_addr().unwrap(), "/metrics").await.unwrap();
    for line in [
        "iris_peer_messages_refused_total{reason=\"undecodable\"} 2",
        "iris_peer_messages_refused_total{reason=\"no_partition\"} 1",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    pool.shutdown(Duration::from_secs(1)).await;
    // The others are not touched.
    let alice = cluster.client("us-east", "alice", "laptop").await;
    send(&alice, "alice", "still here").await;
    assert_eq!(receive(&alice).await.body.as_ref(), b"still here");
    cluster.stop().await;
}

/// The sum of a metric's samples over nodes.
async fn total(cluster: &TestCluster, nodes: &[&str], sample: &str) -> f64 {
    let mut total = 0.0;
    for node in nodes {
        let text = get(cluster.node(node).admin_addr().unwrap(), "/metrics")
            .await
            .unwrap();
        let value = |line: &str| line.strip_prefix(sample)?.rsplit(' ').next()?.parse::<f64>().ok();
        total += text.lines().filter_map(value).sum::<f64>();
    }
    total
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_follow_what_happens() {
    let set = [("limits.connections", "3"), ("limits.inbox_messages", "50")];
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &set).await;
    let nodes = ["us-east-core", "us-east-edge", "eu-west-core", "eu-west-edge"];
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let bob = cluster.client("eu-west", "bob", "phone").await;
    let carol = cluster.client("us-east", "carol", "desk").await;
    carol.watch([common::user("bob")]);
    for number in 0..20u8 {
        send(&alice, "bob", vec![number]).await;
        receive(&bob).await;
    }
    // Nobody acknowledges for dave, whose inbox is soon full.
    let mut refused = false;
    for number in 0..51u8 {
        refused |= within(
            "answered",
            alice.send(common::user("dave"), vec![number]).unwrap(),
        )
        .await
        .is_err();
    }
    assert!(refused);
    // The edge in us-east takes three connections.
    let eve = cluster.client("us-east", "eve", "desk").await;
    let mut one_too_many = cluster.config("us-east", "mallory", "desk");
    one_too_many
        .endpoints
        .retain(|endpoints| endpoints.region.as_str() == "us-east");
    let mallory = iris::client::Client::connect(one_too_many).unwrap();
    until("mallory is refused", async || {
        total(
            &cluster,
            &nodes,
            "iris_edge_connections_refused_total{reason=\"limit\"}",
        )
        .await
            > 0.0
    })
    .await;
    mallory.close().await;
    eve.close().await;
    for sample in [
        "iris_edge_connections ",
        "iris_edge_sessions ",
        "iris_edge_sessions_ended_total{reason=\"goodbye\"}",
        "iris_deposit_accepted_total",
        "iris_deposit_refused_total{reason=\"inbox_full\"}",
        "iris_deposit_duration_seconds_count",
        "iris_deposit_duration_seconds_sum",
        "iris_deposit_duration_seconds_bucket{le=\"+Inf\"}",
        "iris_delivery_delivered_total",
        "iris_delivery_acked_total",
        "iris_store_commits_total",
        "iris_store_commit_operations_count",
        "iris_store_commit_duration_seconds_count",
        "iris_link_up{region=\"us-east\"}",
        "iris_link_up{region=\"eu-west\"}",
        "iris_link_applied_operations_total{region=\"us-east\"}",
        "iris_link_applied_operations_total{region=\"eu-west\"}",
        "iris_presence_merges_total",
        "iris_presence_records",
    ] {
        until(sample, async || total(&cluster, &nodes, sample).await > 0.0).await;
    }
    // Nothing waits now, and what waits is told.
    let text = get(cluster.node("us-east-core").admin_addr().unwrap(), "/metrics")
        .await
        .unwrap();
    for queue in ["inputs", "store", "edge_deposits", "owner_deposits"] {
        assert!(
            text.contains(&format!("iris_queue_depth{{queue=\"{queue}\"}} ")),
            "{queue}:\n{text}"
        );
    }
    let breaker = "iris_peer_breaker_state{peer=\"eu-west/eu-west-core\"} 0\n";
    assert!(text.contains(breaker), "no {breaker} in\n{text}");
    until("nothing waits", async || {
        total(&cluster, &nodes, "iris_queue_depth{queue=\"edge_deposits\"}").await == 0.0
    })
    .await;
    let answered = total(&cluster, &nodes, "iris_deposit_duration_seconds_count").await;
    assert_eq!(answered, 71.0, "each message once");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_sends_holds_nothing_back_in_the_inbox() {
    let set = [("limits.inbox_messages", "5")];
    let cluster = TestCluster::start(&regions(&["us-east"]), &set).await;
    let bob = cluster.client("us-east", "bob", "phone").await;
    let sends_only = || {
        let mut config = cluster.config("us-east", "alice", "cli-send");
        config.receives = false;
        config
    };
    let sender = Client::connect(sends_only()).unwrap();
    assert!(within("connected", sender.connected()).await);
    send(&sender, "bob", "before").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"before");
    let laptop = cluster.client("us-east", "alice", "laptop").await;
    // Three times what the inbox holds: there is room again once the one device has acknowledged, about a second later.
    for number in 0..15u8 {
        until("the inbox has room", async || {
            let sent = bob.send(common::user("alice"), vec![number]).unwrap();
            within("answered", sent).await.is_ok()
        })
        .await;
        assert_eq!(receive(&laptop).await.body[..], [number]);
    }
    while let Some(event) = sender.try_next() {
        assert!(
            !matches!(event, iris::client::ClientEvent::Message(_)),
            "it was given {event:?}"
        );
    }
    sender.close().await;
    // It comes back and may send again, beside another one of the same name in no one's way.
    let again = Client::connect(sends_only()).unwrap();
    send(&again, "bob", "after").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"after");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_refused_and_cut_where_the_operator_says_so() {
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    cluster.stop_node("us-east-core").await;
    let core = cluster
        .dev
        .nodes
        .iter()
        .find(|node| node.client.is_none())
        .unwrap()
        .clone();
    let serve = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iris"));
        command.arg("serve").args(args).arg("--config").arg(&core.config);
        command
            .args(["--set", "store.segment_bytes=1MiB"])
            .env("IRIS_LOG", "error");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // The node of this process may let go of its sockets and its store a moment after it stopped.
    let since = Instant::now();
    let mut running = loop {
        let mut running = serve(&["--stop-with-stdin"]);
        match ready(&mut running, core.admin_http).await {
            Ok(()) => break running,
            Err(said) => assert!(since.elapsed() < PATIENCE, "{said}"),
        }
    };
    let alice = cluster.client("us-east", "alice", "laptop").await;
    for number in 0..10 {
        send(&alice, "bob", format!("message number {number}")).await;
    }
    alice.close().await;
    running.kill().unwrap();
    running.wait().unwrap();

    // A message in the middle: it was accepted before the next one was sent, so whole records follow its own, whatever the
    // node was writing when it was killed.
    let body = b"message number 5";
    let journal = std::fs::read_dir(core.data.join("store/journal")).unwrap();
    let found = journal.map(|entry| entry.unwrap().path()).find_map(|path| {
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(body.len()).position(|found| found == body)?;
        Some((path, bytes, at))
    });
    let (path, mut bytes, at) = found.expect("the message is in a segment");
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let refused = ended(serve(&[])).await;
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("iris serve --cut-journal-at-damage"), "{said}");

    let mut running = serve(&["--cut-journal-at-damage", "--stop-with-stdin"]);
    ready(&mut running, core.admin_http).await.unwrap();
    // It serves, and the next start needs no word.
    let alice = cluster.client("us-east", "alice", "laptop").await;
    send(&alice, "carol", "after the cut").await;
    drop(running.stdin.take());
    let ended = ended(running).await;
    assert!(ended.status.success(), "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("the journal was cut at its damage"), "{said}");
    cluster.start_node("us-east-core").await;
    cluster.ready().await;
    let carol = cluster.client("us-east", "carol", "phone").await;
    assert_eq!(receive(&carol).await.body.as_ref(), b"after the cut");
    // What was before the damage is kept.
    let bob = cluster.client("us-east", "bob", "phone").await;
    for number in 0..5 {
        let body = receive(&bob).await.body;
        assert_eq!(body, format!("message number {number}").as_bytes());
    }
    cluster.stop().await;
}

/// Waits until a process has ended by itself; one that does not is killed.
async fn ended(mut process: Child) -> Output {
    let since = Instant::now();
    while process.try_wait().unwrap().is_none() {
        if since.elapsed() > PATIENCE {
            process.kill().unwrap();
            let output = process.wait_with_output().unwrap();
            panic!("it did not end: {output:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    process.wait_with_output().unwrap()
}

/// Waits until a node's process is ready; what one said that ended instead.
async fn ready(process: &mut Child, admin: SocketAddr) -> Result<(), String> {
    let mut ended = None;
    until("the process is ready", async || {
        if let Some(status) = process.try_wait().unwrap() {
            let mut said = String::new();
            process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            ended = Some(format!("{status}: {said}"));
            return true;
        }
        get(admin, "/readyz")
            .await
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .await;
    ended.map_or(Ok(()), Err)
}
