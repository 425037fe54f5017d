//! Regions that come and go while clients send and receive, with the operators' commands: one is added, another one is removed, and
//! comes back with an empty disk. Nothing is lost or comes twice.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{LOOK_EVERY, TestCluster, number_in, padded, regions, until, user, within};
use iris::client::{Client, ClientEvent};
use serde_json::Value;

/// Clients in each of the two regions that are there first.
const CLIENTS: usize = 4;
/// Between two messages of one of them.
const SEND_EVERY: Duration = Duration::from_millis(20);

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

/// A client that handles what it is given, and remembers where its sessions were.
struct Member {
    client: Client,
    name: String,
    handled: Arc<Mutex<Vec<u64>>>,
    regions: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Member {
    async fn start(cluster: &TestCluster, region: &str, name: String) -> Self {
        let client = Client::connect(cluster.config(region, &name, "phone")).unwrap();
        let handled = Arc::<Mutex<Vec<u64>>>::default();
        let regions = Arc::<Mutex<Vec<String>>>::default();
        let task = {
            let (client, handled, regions) = (client.clone(), handled.clone(), regions.clone());
            tokio::spawn(async move {
                while let Some(event) = client.next().await {
                    match event {
                        ClientEvent::Message(message) => {
                            handled.lock().unwrap().push(number_in(&message.body));
                            client.consumed(message.at);
                        }
                        ClientEvent::Connected { region, .. } => {
                            regions.lock().unwrap().push(region.to_string());
                        }
                        ClientEvent::Rejected { .. } | ClientEvent::Hole(_) => panic!("{event:?}"),
                        _ => {}
                    }
                }
            })
        };
        assert!(within("connected", client.connected()).await);
        Self {
            client,
            name,
            handled,
            regions,
            task,
        }
    }

    fn region(&self) -> String {
        self.regions.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

/// Sends numbered messages until told to stop; how many, and the longest time that one took to be accepted.
async fn load(client: Client, to: String, stop: Arc<AtomicBool>) -> (u64, Duration) {
    let mut longest = Duration::ZERO;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return (number, longest);
        }
        let began = Instant::now();
        let sent = client.send(user(&to), padded(number, 64)).unwrap();
        within("accepted", sent).await.unwrap();
        longest = longest.max(began.elapsed());
        tokio::time::sleep(SEND_EVERY).await;
    }
    unreachable!("the numbers do not end")
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
        members.push(Member::start(&cluster, region, format!("member-{n}")).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for (n, member) in members.iter().enumerate() {
        let to = members[(n + 1) % members.len()].name.clone();
        senders.push(tokio::spawn(load(member.client.clone(), to, stop.clone())));
    }

    // What cannot be is refused, by name.
    let unknown = iris(data, &["region", "add", "us-east"]).await;
    assert_eq!(unknown.code, 5, "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("expected one of ap-south, eu-west"),
        "{}",
        unknown.stderr
    );
    let there = iris(data, &["region", "add", "eu-west"]).await;
    assert_eq!(there.code, 6, "{}", there.stderr);
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
    until("every shard has it everywhere", async || {
        let again = iris(data, &["region", "add", "us-east"]).await;
        let (done, goes_on) = ("keeps the shards already", "the last change goes on");
        assert_eq!(again.code, 6, "{}", again.stderr);
        assert!(
            again.stderr.contains(done) || again.stderr.contains(goes_on),
            "{}",
            again.stderr
        );
        again.stderr.contains(done)
    })
    .await;
    cluster.ready().await;
    eprintln!("us-east added: ready after {:?}", began.elapsed());
    let newcomer = Member::start(&cluster, "us-east", "newcomer".to_owned()).await;
    until("it is there", async || newcomer.region() == "us-east").await;
    let (client, to) = (newcomer.client.clone(), newcomer.name.clone());
    senders.push(tokio::spawn(load(client, to, stop.clone())));

    // Another one is removed; whoever was there is elsewhere, and the others have all that it took.
    let (last, took) = change(data, &["region", "remove", "eu-west"]).await;
    eprintln!("eu-west removed: {took:?}");
    assert_eq!(names(&last["regions"]), ["ap-south", "us-east"], "{last}");
    until("nobody is left there", async || {
        members.iter().all(|member| member.region() != "eu-west")
    })
    .await;
    // With the store that it has it does not come back.
    let old = iris(data, &["region", "add", "eu-west"]).await;
    assert_eq!(old.code, 6, "{}", old.stderr);
    assert!(old.stderr.contains("empty data folder"), "{}", old.stderr);
    for name in ["eu-west-edge", "eu-west-core"] {
        cluster.stop_node(name).await;
    }
    let gone = iris(data, &["region", "remove", "eu-west"]).await;
    assert_eq!(gone.code, 6, "{}", gone.stderr);

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
    let returned = Member::start(&cluster, "eu-west", "returned".to_owned()).await;
    until("it is there", async || returned.region() == "eu-west").await;
    let (client, to) = (returned.client.clone(), returned.name.clone());
    senders.push(tokio::spawn(load(client, to, stop.clone())));
    until("messages arrive in the region that is back", async || {
        returned.handled.lock().unwrap().len() > 10
    })
    .await;

    // Nothing lost, nothing twice.
    stop.store(true, Ordering::Relaxed);
    let to_itself = members.len();
    members.extend([newcomer, returned]);
    let (mut longest, mut messages) = (Duration::ZERO, 0);
    for (n, sender) in senders.into_iter().enumerate() {
        let (count, waited) = within("it stops", sender).await.unwrap();
        longest = longest.max(waited);
        messages += count;
        let to = if n < to_itself { (n + 1) % to_itself } else { n };
        until("all that was accepted is handled", async || {
            members[to].handled.lock().unwrap().len() as u64 >= count
        })
        .await;
        let mut times: BTreeMap<u64, u32> = BTreeMap::new();
        for number in members[to].handled.lock().unwrap().iter() {
            *times.entry(*number).or_default() += 1;
        }
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{}: {twice:?}", members[to].name);
        assert_eq!(times.len() as u64, count, "{} lacks some", members[to].name);
    }
    // What would come twice had time to.
    tokio::time::sleep(10 * LOOK_EVERY).await;
    let handled: usize = members
        .iter()
        .map(|member| member.handled.lock().unwrap().len())
        .sum();
    assert_eq!(handled as u64, messages);
    eprintln!("{messages} messages; the longest was accepted after {longest:?}");
    for member in members {
        member.client.close().await;
        within("its events end", member.task).await.unwrap();
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
    cluster.stop().await;
}
