//! The operators' commands against a real cluster: in good health, with a node down, with a region lost. What is checked is
//! the JSON, and that the page for operators describes all of it.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{PATIENCE, TestCluster, regions, send, until, within};
use iris::admin::client::{AdminClient, AskError};
use iris::admin::data::{PartReply, Reply};
use iris::admin::request::{Call, Change, Part, Request};
use iris::admin::wire::ErrorCode;
use iris::client::Client;
use iris::net::certs::{ClusterCa, Identity, Roots};
use iris::server::regions::Regions;
use serde_json::Value;

/// What a command did.
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

async fn iris(data: &Path, args: &[&str]) -> Done {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_iris"));
    command.args(args).env("IRIS_DATA", data).stdin(Stdio::null());
    let output = within(&args.join(" "), command.output()).await.unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The exit code and the JSON of a command; each field of it must be described.
async fn json(data: &Path, args: &[&str], described: &BTreeSet<String>) -> (i32, Value) {
    let done = iris(data, &[args, &["--output", "json"]].concat()).await;
    let value: Value = serde_json::from_str(&done.stdout)
        .unwrap_or_else(|error| panic!("{args:?}: {error}: {}{}", done.stdout, done.stderr));
    let mut fields = BTreeSet::new();
    names(&value, &mut fields);
    let missing: Vec<&String> = fields.difference(described).collect();
    assert!(
        missing.is_empty(),
        "{args:?}: docs/operating.md does not describe {missing:?}"
    );
    (done.code, value)
}

/// As [`json`], again and again until the exit code is as it should be. A loaded machine may let a node miss its two seconds once; what is
/// not so in the end is for the caller to find.
async fn settled(data: &Path, args: &[&str], described: &BTreeSet<String>, expected: i32) -> (i32, Value) {
    let started = Instant::now();
    loop {
        let (code, value) = json(data, args, described).await;
        if code == expected || started.elapsed() > PATIENCE {
            return (code, value);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The names of all fields. Those of `reasons` of a node are parts of it, not fields.
fn names(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                into.insert(name.clone());
                if name != "reasons" || value.is_array() {
                    names(value, into);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, into)),
        _ => {}
    }
}

/// What stands in backticks in the first column of a table of the page.
fn described() -> BTreeSet<String> {
    let page = std::fs::read_to_string(page()).unwrap();
    let cells = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    let names = cells.flat_map(|cell| cell.split('`').map(str::to_owned).collect::<Vec<_>>());
    names.collect()
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md")
}

/// A device on a thread of its own, which can be made to stand still: it then says nothing more, not even that it goes.
struct Device {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Device {
    async fn start(cluster: &TestCluster, region: &str, user: &str) -> Self {
        let config = cluster.config(region, user, "laptop");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, connected) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let client = runtime.block_on(async {
                let client = Client::connect(config).unwrap();
                assert!(client.connected().await);
                ready.send(()).unwrap();
                let _ = stopped.await;
                client
            });
            // Whoever drops it lets it say goodbye.
            std::mem::forget((client, runtime));
        });
        within("a client", connected).await.unwrap();
        Self { stop, thread }
    }

    async fn stand_still(self) {
        drop(self.stop);
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join());
        within("it stands still", joined).await.unwrap().unwrap();
    }
}

fn codes(status: &Value) -> Vec<&str> {
    let reasons = status["reasons"].as_array().unwrap();
    reasons
        .iter()
        .map(|reason| reason["code"].as_str().unwrap())
        .collect()
}

/// `cluster status` with exactly these reasons, whatever else a loaded machine gave cause for on the way.
async fn status_for(data: &Path, described: &BTreeSet<String>, reasons: &[&str]) -> (i32, Value) {
    let started = Instant::now();
    loop {
        let (code, status) = json(data, &["cluster", "status"], described).await;
        if codes(&status) == reasons || started.elapsed() > PATIENCE {
            return (code, status);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_tells_how_the_cluster_is() {
    let described = described();
    let mut cluster = TestCluster::start(&Regions::built_in(), &[]).await;
    let data = cluster.folder.path().to_owned();
    let data = data.as_path();
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let carol = Device::start(&cluster, "eu-west", "carol").await;
    for body in ["one", "two", "three"] {
        send(&alice, "bob", body).await;
    }

    // In good health. What was sent arrives in the other regions a moment later.
    let started = Instant::now();
    loop {
        let (code, count) = settled(data, &["inbox", "count", "bob"], &described, 0).await;
        assert_eq!(code, 0);
        let of: Vec<&Value> = count["regions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|at| &at["unread"])
            .collect();
        if of == [3, 3, 3] {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{count}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (code, status) = status_for(data, &described, &[]).await;
    assert_eq!(
        (code, status["verdict"].as_str()),
        (0, Some("healthy")),
        "{status}"
    );
    assert_eq!(
        (&status["nodes_ready"], &status["sessions"]),
        (&9.into(), &2.into())
    );
    assert_eq!((&status["links"], &status["links_live"]), (&6.into(), &6.into()));
    assert_eq!(status["regions"][0]["shards_open"], 1024);

    // An edge answers for the cluster as well as a core does.
    let (code, list) = settled(data, &["node", "list", "--node", "eu-west-edge-2"], &described, 0).await;
    assert_eq!((code, list["nodes"].as_array().unwrap().len()), (0, 9));
    assert!(
        list["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .all(|node| node["state"] == "ready")
    );
    let (code, node) = settled(data, &["node", "show", "us-east-core-1"], &described, 0).await;
    assert_eq!((code, node["report"]["roles"].as_array().unwrap().len()), (0, 1));
    assert!(node["report"]["store"]["commits"].as_u64() > Some(0), "{node}");
    assert_eq!(node["report"]["sees"].as_array().unwrap().len(), 8);

    let (code, list) = settled(data, &["region", "list"], &described, 0).await;
    assert_eq!((code, &list["regions"][1]["state"]), (0, &"ready".into()));
    let (code, region) = settled(data, &["region", "show", "eu-west"], &described, 0).await;
    assert_eq!((code, region["members"].as_array().unwrap().len()), (0, 3));
    assert_eq!(region["links"].as_array().unwrap().len(), 4);

    // Every region logs, and so ships, within a second or so: its devices, or that it has what others logged.
    let started = Instant::now();
    loop {
        let (code, list) = settled(data, &["link", "list"], &described, 0).await;
        assert_eq!(code, 0);
        let links = list["links"].as_array().unwrap();
        for link in links {
            assert_eq!(link["state"], "live");
            assert_eq!(link["taken"]["shards"], 1024);
            assert!(link["given"]["lag"]["operations"].is_u64(), "{link}");
        }
        let shipped = |link: &Value| link["given"]["shipped_operations"].as_u64() > Some(0);
        if links.iter().all(shipped) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{list}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, list) = json(data, &["link", "list", "--region", "eu-west"], &described).await;
    assert_eq!(list["links"].as_array().unwrap().len(), 4);

    let (code, list) = settled(
        data,
        &["shard", "list", "--region", "eu-west", "--limit", "3"],
        &described,
        0,
    )
    .await;
    assert_eq!((code, &list["next"]), (0, &2.into()));
    let shards: Vec<&Value> = list["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["shard"])
        .collect();
    assert_eq!(shards, [0, 1, 2]);
    let (_, list) = json(
        data,
        &["shard", "list", "--after", "1021", "--limit", "3"],
        &described,
    )
    .await;
    assert_eq!(
        (list["shards"].as_array().unwrap().len(), &list["next"]),
        (2, &Value::Null)
    );
    let (code, shard) = settled(data, &["shard", "show", "--user", "bob"], &described, 0).await;
    assert_eq!((code, shard["regions"].as_array().unwrap().len()), (0, 3));
    for at in shard["regions"].as_array().unwrap() {
        assert_eq!(
            (&at["owner"]["state"], &at["owner"]["epoch"]),
            (&"open".into(), &at["stored"]["epoch"])
        );
        assert!(!at["stored"]["logs"].as_array().unwrap().is_empty(), "{at}");
    }

    let (code, list) = settled(data, &["session", "list"], &described, 0).await;
    let users: BTreeSet<&str> = list["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["user"].as_str().unwrap())
        .collect();
    assert_eq!((code, users), (0, BTreeSet::from(["alice", "carol"])));
    let (_, list) = json(data, &["session", "list", "--user", "carol"], &described).await;
    let session = &list["sessions"][0];
    assert_eq!(
        (&session["region"], &session["delivery"]["mode"]),
        (&"eu-west".into(), &"live".into()),
        "{list}"
    );
    // Page by page it is the same.
    let (_, first) = json(data, &["session", "list", "--limit", "1"], &described).await;
    let next = first["next"].as_str().unwrap();
    let (_, second) = json(
        data,
        &["session", "list", "--limit", "1", "--after", next],
        &described,
    )
    .await;
    assert_ne!(first["sessions"][0]["user"], second["sessions"][0]["user"]);

    for verb in ["get", "explain"] {
        let (code, presence) = settled(data, &["presence", verb, "carol"], &described, 0).await;
        assert_eq!((code, &presence["agreed"]), (0, &true.into()), "{presence}");
        let seen = &presence["regions"][2];
        assert_eq!(
            (&seen["owner"]["region"], &seen["status"]),
            (&"us-east".into(), &"online".into())
        );
        let record = &seen["records"][0];
        assert_eq!(
            (&record["written_by"], &record["decides"]),
            (&"eu-west".into(), &true.into())
        );
        assert_eq!(record["session"], session["session"]);
    }

    let (code, inbox) = settled(data, &["inbox", "show", "bob", "--limit", "2"], &described, 0).await;
    assert_eq!(
        (code, &inbox["unread"], inbox["entries"].as_array().unwrap().len()),
        (0, &3.into(), 2)
    );
    let next = &inbox["next"][0];
    let after = format!("{}:{}", next["origin"].as_str().unwrap(), next["seq"]);
    let (_, rest) = json(data, &["inbox", "show", "bob", "--after", &after], &described).await;
    assert_eq!(
        (rest["entries"].as_array().unwrap().len(), &rest["next"]),
        (1, &Value::Null),
        "{rest}"
    );
    assert_eq!(
        (&rest["entries"][0]["from"], &rest["entries"][0]["body_bytes"]),
        (&"alice".into(), &5.into())
    );

    // What is not there, and what cannot be done.
    for (args, code) in [
        (["node", "show", "nope"].as_slice(), 5),
        (&["region", "show", "nope"], 5),
        (&["shard", "show", "1024"], 5),
        (&["link", "list", "--region", "nope"], 5),
        (&["region", "remove", "nope"], 5),
        (&["region", "add", "nope"], 5),
        (&["region", "evacuate", "nope"], 5),
        (&["region", "restore", "nope"], 5),
        (&["inbox", "show", "bob", "--after", "x"], 2),
        (&["session", "list", "--limit", "0"], 2),
        (&["shard", "list", "--limit", "1025"], 2),
        (&["node", "drain", "nope"], 5),
        (&["node", "list", "--node", "nope"], 5),
        (&["node", "list", "--data", "nowhere"], 1),
    ] {
        let done = iris(data, args).await;
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (code, ""),
            "{args:?}: {}",
            done.stderr
        );
        assert!(done.stderr.starts_with("error: "), "{args:?}: {}", done.stderr);
    }

    // A node down: degraded, and it is named.
    cluster.stop_node("us-east-edge-2").await;
    let (code, status) = status_for(data, &described, &["node-silent"]).await;
    assert_eq!((code, codes(&status)), (3, vec!["node-silent"]), "{status}");
    assert_eq!(status["reasons"][0]["about"], "us-east/us-east-edge-2");
    assert_eq!(status["regions"][2]["state"], "degraded");
    let (code, list) = settled(data, &["node", "list"], &described, 3).await;
    let down = list["nodes"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (code, &down["state"], &down["report"]),
        (3, &"no-answer".into(), &Value::Null),
        "{down}"
    );
    let (code, node) = settled(data, &["node", "show", "us-east-edge-2"], &described, 3).await;
    assert_eq!((code, &node["state"]), (3, &"no-answer".into()));
    let (code, list) = settled(data, &["session", "list"], &described, 3).await;
    assert_eq!((code, &list["silent"][0]["node"]), (3, &"us-east-edge-2".into()));
    // Nobody asks it about shards.
    let (code, _) = settled(data, &["shard", "show", "0"], &described, 0).await;
    assert_eq!(code, 0);

    // A region lost: critical, in one reason; what it knew of carol is not taken for true any more.
    carol.stand_still().await;
    for name in ["eu-west-core-1", "eu-west-edge-1", "eu-west-edge-2"] {
        cluster.kill_node(name).await;
    }
    let started = Instant::now();
    let status = loop {
        let (code, status) = status_for(data, &described, &["region-silent", "node-silent"]).await;
        assert_eq!(code, 4, "{status}");
        let (_, presence) = json(
            data,
            &["presence", "get", "carol", "--node", "us-east-core-1"],
            &described,
        )
        .await;
        let shown: BTreeSet<&str> = presence["regions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|at| at["status"].as_str().unwrap())
            .collect();
        if shown == BTreeSet::from(["unreachable"]) {
            let seen = &presence["regions"][0];
            assert!(seen["unreachable_since_ms"].is_u64(), "{seen}");
            break status;
        }
        assert!(started.elapsed() < PATIENCE, "{presence}");
    };
    assert_eq!(codes(&status), ["region-silent", "node-silent"], "{status}");
    assert_eq!(status["regions"][1]["state"], "silent");
    assert!(
        status["regions"][1]["unreachable_ms"].as_u64() > Some(1_000),
        "{status}"
    );

    // What is sent meanwhile waits for the region, and the lag says how much and for how long.
    send(&alice, "bob", "four").await;
    let (code, list) = settled(data, &["link", "list"], &described, 3).await;
    assert_eq!(code, 3);
    let to_lost = |link: &&Value| {
        link["from"]["node"]["region"] == "us-east" && link["to"]["node"]["region"] == "eu-west"
    };
    let link = list["links"].as_array().unwrap().iter().find(to_lost).unwrap();
    assert_eq!(
        (&link["state"], &link["taken"]),
        (&"down".into(), &Value::Null),
        "{link}"
    );
    let lag = &link["given"]["lag"];
    assert_eq!(lag["messages"], 1, "{link}");
    let shards = link["given"]["lagging"].as_array().unwrap();
    assert!(
        shards
            .iter()
            .any(|shard| shard["messages"] == 1 && shard["bytes"] == lag["bytes"]),
        "{link}"
    );
    assert!(
        lag["bytes"].as_u64() > Some(0) && lag["since_ms"].is_u64(),
        "{link}"
    );
    let (code, region) = settled(data, &["region", "show", "eu-west"], &described, 3).await;
    assert_eq!((code, &region["state"]), (3, &"silent".into()));
    let (code, count) = settled(data, &["inbox", "count", "bob"], &described, 3).await;
    assert_eq!(
        (code, count["regions"].as_array().unwrap().len()),
        (3, 2),
        "{count}"
    );
    assert_eq!(count["silent"][0]["node"], "eu-west-core-1");

    // It comes back, and is given what it missed.
    for name in [
        "eu-west-core-1",
        "eu-west-edge-1",
        "eu-west-edge-2",
        "us-east-edge-2",
    ] {
        cluster.start_node(name).await;
    }
    cluster.ready().await;
    let started = Instant::now();
    loop {
        let (code, status) = json(data, &["cluster", "status"], &described).await;
        let (_, count) = json(data, &["inbox", "count", "bob"], &described).await;
        let there = count["regions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|at| at["unread"] == 4);
        if code == 0 && there {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{status} {count}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_says_what_its_owner_may_ask() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let data = cluster.folder.path();
    let addr = cluster.node("us-east-core").peer_addr();
    let ca = ClusterCa::load(&data.join("ca")).unwrap();
    let ask = |identity: Identity, call: Call| {
        let roots = ca.roots();
        async move {
            let mut client = AdminClient::quic(addr, &roots, &identity, PATIENCE).await?;
            client.call(&call).await
        }
    };
    let status = || Call::Cluster(Request::ClusterStatus);
    let drain = || {
        Call::Change(Change::NodeDrain {
            node: "us-east-core".parse().unwrap(),
        })
    };

    let operator = ca.issue_operator("alice").unwrap();
    let answer = ask(operator.clone(), status()).await.unwrap().unwrap();
    assert!(matches!(answer, Reply::ClusterStatus(status) if status.nodes_ready == 4));

    let node = ca.issue_node("eu-west", "eu-west-core").unwrap();
    let answer = ask(node.clone(), Call::Node(Part::Node)).await.unwrap().unwrap();
    assert!(
        matches!(&answer, Reply::Part(part) if matches!(**part, PartReply::Node(..))),
        "{answer:?}"
    );
    for call in [status(), drain()] {
        let error = ask(node.clone(), call).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::Forbidden);
    }

    // What clients see of a server, and an operator of another cluster.
    let server = ca.issue_server(&["localhost".to_owned()], &[]).unwrap();
    let stranger = ClusterCa::create().unwrap().issue_operator("mallory").unwrap();
    for identity in [server, stranger] {
        let refused = ask(identity, Call::Node(Part::Node)).await;
        assert!(
            matches!(refused, Err(AskError::Closed(_) | AskError::Connect { .. })),
            "{refused:?}"
        );
    }

    // With the command.
    let out = data.join("alice");
    let made = iris(
        data,
        &[
            "certs",
            "operator",
            "--name",
            "alice",
            "--out",
            out.to_str().unwrap(),
        ],
    )
    .await;
    assert_eq!(made.code, 0, "{}", made.stderr);
    let (cert, key) = (out.join("operator.pem"), out.join("operator.key"));
    assert!(Identity::load(&cert, &key).is_ok() && Roots::load(&data.join("ca/ca.pem")).is_ok());
    let addr = addr.to_string();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let args = [
        "cluster",
        "status",
        "--connect",
        &addr,
        "--cert",
        cert,
        "--key",
        key,
    ];
    let done = iris(data, &args).await;
    assert_eq!(
        (done.code, done.stdout.starts_with("healthy: 4 of 4")),
        (0, true),
        "{}",
        done.stderr
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drains_when_it_is_asked_itself() {
    let mut cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let data = cluster.folder.path().to_owned();
    let bob = cluster.client("us-east", "bob", "phone").await;
    let socket = |name: &str| data.join("nodes").join(name).join("data/admin.sock");
    let other = iris(
        &data,
        &[
            "node",
            "drain",
            "us-east-edge",
            "--socket",
            socket("us-east-core").to_str().unwrap(),
        ],
    )
    .await;
    assert_eq!(other.code, 6, "{}", other.stderr);
    assert!(
        other.stderr.contains("no node changes another"),
        "{}",
        other.stderr
    );

    let asked = cluster.node("us-east-edge").drain_asked();
    let command = {
        let data = data.clone();
        tokio::spawn(async move { iris(&data, &["node", "drain", "us-east-edge"]).await })
    };
    within("the drain was asked for", asked).await;
    let mut client = AdminClient::unix(&socket("us-east-edge"), PATIENCE)
        .await
        .unwrap();
    let answer = client.call(&Call::Node(Part::Node)).await.unwrap().unwrap();
    assert!(
        matches!(&answer, Reply::Part(part) if matches!(&**part, PartReply::Node(report, _) if report.draining)),
        "{answer:?}"
    );
    bob.close().await;
    cluster.stop_node("us-east-edge").await;
    let done = within("the command ends", command).await.unwrap();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stdout.starts_with("node us-east-edge has stopped after"),
        "{}",
        done.stdout
    );
    cluster.stop().await;
}

/// Writes what commands print into `docs/operating.md`, behind the comments that name them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes documentation: cargo test --test admin -- --ignored the_page"]
async fn the_page_for_operators_is_written() {
    let mut cluster = TestCluster::start(&Regions::built_in(), &[]).await;
    let data = cluster.folder.path().to_owned();
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let phone = cluster.client("ap-south", "bob", "phone").await;
    for body in ["one", "two"] {
        send(&alice, "bob", body).await;
        common::receive(&phone).await;
    }
    phone.close().await;
    for body in ["see you at noon", "or later"] {
        send(&alice, "bob", body).await;
    }
    let carol = Device::start(&cluster, "eu-west", "carol").await;
    // Read positions are shipped by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(page()).unwrap();
    let text = filled(text, "healthy", &data).await;

    cluster.stop_node("us-east-edge-2").await;
    let text = filled(text, "node", &data).await;
    cluster.start_node("us-east-edge-2").await;
    cluster.stop_node("us-east-core-1").await;
    let text = filled(text, "core", &data).await;
    let served_elsewhere = |cluster: &TestCluster| {
        let edges = ["us-east-edge-1", "us-east-edge-2"].map(|name| cluster.node(name).partitions());
        let edges = edges.iter().flatten();
        edges.filter(|status| status.served_by.is_some()).count()
    };
    until("another region serves the edges", async || {
        served_elsewhere(&cluster) == 2
    })
    .await;
    let text = filled(text, "core-later", &data).await;
    cluster.start_node("us-east-core-1").await;
    cluster.ready().await;
    until("the edges are at home again", async || {
        served_elsewhere(&cluster) == 0
    })
    .await;
    within("alice is back", alice.connected()).await;

    let text = filled(text, "moves", &data).await;
    cluster.stop_node("eu-west-edge-2").await;
    let text = filled(text, "moves-node", &data).await;
    cluster.start_node("eu-west-edge-2").await;
    cluster.ready().await;
    let done = iris(&data, &["region", "restore", "eu-west"]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);

    carol.stand_still().await;
    for name in ["eu-west-core-1", "eu-west-edge-1", "eu-west-edge-2"] {
        cluster.kill_node(name).await;
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    for number in 0..20 {
        send(&alice, "bob", format!("message {number}")).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let text = filled(text, "region", &data).await;

    let text = filled(text, "removed", &data).await;
    for node in cluster.dev.nodes.iter().filter(|node| node.region == "eu-west") {
        std::fs::remove_dir_all(&node.data).unwrap();
    }
    for name in ["eu-west-core-1", "eu-west-edge-1", "eu-west-edge-2"] {
        cluster.start_node(name).await;
    }
    let text = filled(text, "added", &data).await;
    cluster.ready().await;
    let asked = cluster.node("us-east-edge-2").drain_asked();
    let (text, ()) = tokio::join!(filled(text, "drained", &data), async {
        within("the drain was asked for", asked).await;
        cluster.stop_node("us-east-edge-2").await;
    });
    std::fs::write(page(), text).unwrap();
    cluster.stop().await;
}

/// The page with the blocks of one state of the cluster printed anew.
async fn filled(text: String, state: &str, data: &Path) -> String {
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let command = line.strip_prefix(&format!("<!-- {state}: "));
        let Some(command) = command.and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        // What was printed before goes.
        if lines.peek() == Some(&"```console") {
            while lines.next().is_some_and(|line| line != "```") {}
        }
        let args: Vec<&str> = command.split(' ').collect();
        // The same node answers all along, but where it must be another one.
        let at: &[&str] = match args[..2] {
            ["region", "add" | "remove"] => &["--node", "us-east-core-1"],
            ["node", "drain"] => &[],
            _ => &["--node", "us-east-edge-1"],
        };
        let asked = [&args[..], at].concat();
        let done = iris(data, &asked).await;
        // Commands that wait tell how far it is, and then that it is done.
        let waits = ["evacuate", "restore", "add", "remove", "drain"].contains(&args[1]);
        let (first, then) = match waits {
            true => (&done.stderr, &done.stdout),
            false => (&done.stdout, &done.stderr),
        };
        out.push_str(&format!("```console\n$ iris {command}\n{first}"));
        let code = match done.code {
            0 => String::new(),
            code => format!("$ echo $?\n{code}\n"),
        };
        out.push_str(&format!("{then}{code}```\n"));
    }
    out
}
