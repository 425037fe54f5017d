//! Regions that come and go while clients send and receive, with the operators' commands: one is added, another one is removed, and
//! comes back with an empty disk. Nothing is lost or comes twice.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::members::{Load, Member, all_in};
use common::{TestCluster, regions, until, within};
use serde_json::Value;

/// Clients in each of the two regions that are there first.
const CLIENTS: usize = 4;

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

/// A change of the regions, to its end; the last line of its progress, and how long it took.
async fn change(data: &Path, args: &[&str]) -> (Value, Duration) {
    let began = Instant::now();
    let done = iris(data, &[args, &["--output", "json"]].concat()).await;
    assert_eq!(done.code, 0, "{args:?}: {}{}", done.stdout, done.stderr);
    let last = done.stdout.lines().last().unwrap_or_default();
    let last: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {}", done.stdout));
    assert_eq!(last["done"], true, "{last}");
    assert_eq!(last["settled"], last["shards"], "{last}");
    (last, began.elapsed())
}

fn names(of: &Value) -> Vec<&str> {
    of.as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

/// A client that sends to itself in a region.
async fn alone(cluster: &TestCluster, region: &str, name: &str) -> (Vec<Member>, Load) {
    let member = Member::start(name, |name| cluster.config(region, name, "phone")).await;
    let members = vec![member];
    all_in(&members, "it is there", |there| there == region).await;
    let load = Load::begin(&members);
    load.under_way().await;
    load.handled(&members, &load.accepted()).await;
    (members, load)
}

/// Puts an empty disk into a region, whose nodes have stopped.
fn wipe(cluster: &TestCluster, region: &str) {
    for node in cluster.dev.nodes.iter().filter(|node| node.region == region) {
        std::fs::remove_dir_all(&node.data).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_come_and_go_under_load() {
    let all = regions(&["ap-south", "eu-west", "us-east"]);
    let mut cluster = TestCluster::start_without(&all, "us-east", &[]).await;
    let data = cluster.folder.path().to_owned();
    let data = data.as_path();
    let mut members = Vec::new();
    for n in 0..2 * CLIENTS {
        let region = ["ap-south", "eu-west"][n % 2];
        let config = |name: &str| cluster.config(region, name, "phone");
        members.push(Member::start(&format!("member-{n}"), config).await);
    }
    let load = Load::begin(&members);
    load.under_way().await;

    // What cannot be is refused, by name.
    let unknown = iris(data, &["region", "add", "us-east"]).await;
    assert_eq!(unknown.code, 5, "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("expected one of ap-south, eu-west"),
        "{}",
        unknown.stderr
    );
    let there = iris(data, &["region", "add", "eu-west"]).await;
    assert_eq!(there.code, 0, "{}", there.stderr);
    assert!(
        there.stderr.contains("keeps the shards already"),
        "{}",
        there.stderr
    );

    // Its file is put there, its nodes are started with empty folders, and it is added.
    cluster.put_file("us-east");
    for name in ["us-east-core", "us-east-edge"] {
        cluster.start_node(name).await;
    }
    until("every node has read the file", async || {
        let begun = iris(data, &["region", "add", "us-east", "--no-wait"]).await;
        let waits =
            begun.stderr.contains("no file us-east.toml") || begun.stderr.contains("no region us-east");
        assert!(begun.code == 0 || waits, "{}", begun.stderr);
        begun.code == 0
    })
    .await;
    let began = Instant::now();
    // Asked again it goes on to wait.
    change(data, &["region", "add", "us-east"]).await;
    cluster.ready().await;
    eprintln!("us-east added: ready after {:?}", began.elapsed());
    let newcomer = alone(&cluster, "us-east", "newcomer").await;

    // Another one is removed; whoever was there is elsewhere, and the others have all that it took.
    let (last, took) = change(data, &["region", "remove", "eu-west"]).await;
    eprintln!("eu-west removed: {took:?}");
    assert_eq!(names(&last["regions"]), ["ap-south", "us-east"], "{last}");
    // With the store that it has it does not come back.
    let old = iris(data, &["region", "add", "eu-west"]).await;
    assert_eq!(old.code, 6, "{}", old.stderr);
    assert!(old.stderr.contains("empty data folder"), "{}", old.stderr);
    for name in ["eu-west-edge", "eu-west-core"] {
        cluster.stop_node(name).await;
    }
    all_in(&members, "nobody is left there", |region| region != "eu-west").await;
    change(data, &["region", "remove", "eu-west"]).await;
    // It is to serve nobody: that nothing of it answers is as it should be, and nothing waits for it.
    until("the cluster is well without it", async || {
        let status = iris(data, &["cluster", "status", "--output", "json"]).await;
        let status: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        let keeps = |region: &Value| region["region"] == "eu-west" && region["keeps"] == "no";
        status["verdict"] == "healthy" && status["regions"].as_array().unwrap().iter().any(keeps)
    })
    .await;
    let links = iris(data, &["link", "list", "--output", "json"]).await;
    let links: Value = serde_json::from_str(&links.stdout).unwrap();
    for link in links["links"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|link| link["state"] == "live")
    {
        assert!(link["given"]["lag_ms"].as_u64() < Some(5_000), "{link}");
    }

    // And back with an empty disk, under a new origin.
    wipe(&cluster, "eu-west");
    for name in ["eu-west-core", "eu-west-edge"] {
        cluster.start_node(name).await;
    }
    let (last, took) = change(data, &["region", "add", "eu-west"]).await;
    eprintln!("eu-west added again, with an empty disk: {took:?}");
    assert_eq!(
        names(&last["regions"]),
        ["ap-south", "eu-west", "us-east"],
        "{last}"
    );
    cluster.ready().await;
    let returned = alone(&cluster, "eu-west", "returned").await;

    // Nothing lost, nothing twice.
    eprintln!(
        "of those who were there, accepted: {}",
        load.settle(members).await
    );
    for (members, load) in [newcomer, returned] {
        load.settle(members).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_does_not_answer_is_removed_by_force_alone() {
    let mut cluster = TestCluster::start(&regions(&["ap-south", "eu-west", "us-east"]), &[]).await;
    let data = cluster.folder.path().to_owned();
    let data = data.as_path();
    let sender = cluster.client("ap-south", "alice", "phone").await;
    for name in ["us-east-edge", "us-east-core"] {
        cluster.kill_node(name).await;
    }
    let refused = iris(data, &["region", "remove", "us-east"]).await;
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    // Nobody is asked to remove itself.
    let socket = data.join("nodes/ap-south-core/data/admin.sock");
    let socket = socket.to_str().unwrap();
    let itself = iris(data, &["region", "remove", "ap-south", "--socket", socket]).await;
    assert_eq!(itself.code, 6, "{}", itself.stderr);
    assert!(
        itself.stderr.contains("one of another region"),
        "{}",
        itself.stderr
    );
    let (last, took) = change(data, &["region", "remove", "us-east", "--force"]).await;
    eprintln!("us-east removed by force: {took:?}");
    assert_eq!(names(&last["regions"]), ["ap-south", "eu-west"], "{last}");
    common::send(&sender, "bob", b"on".to_vec()).await;

    // It lives after all, with the store that it had: the others tell it, and it closes itself.
    cluster.start_node("us-east-core").await;
    let old = iris(data, &["region", "add", "us-east", "--no-wait"]).await;
    assert_eq!(old.code, 6, "{}", old.stderr);
    assert!(old.stderr.contains("empty data folder"), "{}", old.stderr);
    until("it has closed itself", async || {
        let shown = iris(data, &["node", "show", "us-east-core", "--output", "json"]).await;
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        shown["report"]["removed"] == last["total"]
    })
    .await;
    let socket_there = data.join("nodes/us-east-core/data/admin.sock");
    let itself = iris(
        data,
        &[
            "region",
            "remove",
            "eu-west",
            "--socket",
            socket_there.to_str().unwrap(),
        ],
    )
    .await;
    assert_eq!(itself.code, 6, "{}", itself.stderr);
    assert!(
        itself.stderr.contains("was removed from the cluster"),
        "{}",
        itself.stderr
    );
    cluster.kill_node("us-east-core").await;

    // One that is added and never comes does not keep the others from going on without it.
    let begun = iris(data, &["region", "add", "us-east", "--no-wait"]).await;
    assert_eq!(begun.code, 0, "{}", begun.stderr);
    let refused = iris(data, &["region", "remove", "us-east"]).await;
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    let (last, _) = change(data, &["region", "remove", "us-east", "--force"]).await;
    assert_eq!(names(&last["regions"]), ["ap-south", "eu-west"], "{last}");
    common::send(&sender, "bob", b"and on".to_vec()).await;
    cluster.stop().await;
}
