//! A region is evacuated while its clients send and receive, stays so over a restart of its nodes, and is restored: nothing is
//! lost or comes twice, all clients are elsewhere in between, and back in the end. With the operators' commands.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::members::{Load, Member, all_in};
use common::{TestCluster, regions, until, within};
use iris::client::{Client, ClientEvent, DisconnectReason};
use iris::core::wire::Code;
use iris::server::regions::Regions;
use serde_json::Value;

/// Clients that prefer the region that is evacuated.
const CLIENTS: usize = 12;

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

async fn json(data: &Path, args: &[&str]) -> (i32, Value) {
    let done = iris(data, &[args, &["--output", "json"]].concat()).await;
    let value = serde_json::from_str(&done.stdout);
    (
        done.code,
        value.unwrap_or_else(|error| panic!("{error}: {}{}", done.stdout, done.stderr)),
    )
}

/// The lines of a command that prints its progress; the last one is the end.
async fn progress(data: &Path, args: &[&str]) -> (i32, Vec<Value>) {
    let done = iris(data, &[args, &["--output", "json"]].concat()).await;
    let lines = done.stdout.lines().map(serde_json::from_str);
    let lines: Result<Vec<Value>, _> = lines.collect();
    let lines = lines.unwrap_or_else(|error| panic!("{error}: {}{}", done.stdout, done.stderr));
    assert!(!lines.is_empty(), "{}", done.stderr);
    (done.code, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_evacuated_under_load_and_its_clients_come_back() {
    let mut cluster = TestCluster::start(&Regions::built_in(), &[]).await;
    let data = cluster.folder.path().to_owned();
    let data = data.as_path();
    let mut members = Vec::new();
    for n in 0..CLIENTS {
        let config = |name: &str| cluster.config("eu-west", name, "phone");
        members.push(Member::start(&format!("member-{n}"), config).await);
    }
    let load = Load::begin(&members);

    // Away: told at the rate, and all of them elsewhere in the end.
    let began = Instant::now();
    let (code, lines) = progress(data, &["region", "evacuate", "eu-west", "--rate", "12"]).await;
    let last = lines.last().unwrap();
    assert_eq!(
        (code, &last["done"], &last["sessions"], &last["region"]),
        (0, &true.into(), &0.into(), &"eu-west".into()),
        "{lines:?}"
    );
    // Two edges of one partition share the rate: one session in 166 ms each, and the first at once.
    let at_least = Duration::from_millis(166 * (CLIENTS as u64 / 2 - 2));
    assert!(began.elapsed() > at_least, "{:?}: {lines:?}", began.elapsed());
    let left: Vec<u64> = lines
        .iter()
        .map(|line| line["sessions"].as_u64().unwrap())
        .collect();
    assert!(left.len() > 2 && left.is_sorted_by(|a, b| a >= b), "{left:?}");
    all_in(&members, "all are elsewhere", |region| region != "eu-west").await;

    // Everybody sees it.
    for asked in ["us-east-edge-1", "eu-west-edge-2"] {
        let (code, status) = json(data, &["cluster", "status", "--node", asked]).await;
        let of = |of: &str| -> Vec<String> {
            let reasons = status["reasons"].as_array().unwrap().iter();
            reasons
                .map(|reason| reason[of].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            (code, of("code")),
            (3, vec!["region-evacuated".to_owned()]),
            "{status}"
        );
        assert_eq!(of("about"), ["eu-west"]);
        assert!(status["regions"][1]["evacuated_ms"].is_u64(), "{status}");
        assert_eq!(status["regions"][0]["evacuated_ms"], Value::Null);
    }
    assert_eq!(json(data, &["region", "show", "eu-west"]).await.0, 3);
    let table = iris(data, &["region", "list"]).await;
    assert!(table.stdout.contains("ready, evacuated"), "{}", table.stdout);
    // All clients are told, in whatever region they are, that this one comes last.
    until("the other regions know", async || {
        let token = common::token(data, "nosy");
        let mut raw = common::raw::Raw::start_at(&cluster, "us-east-edge-1", &token, "d").await;
        let welcome = raw.welcome().await;
        welcome.regions.last().unwrap().region.as_str() == "eu-west"
    })
    .await;
    // Again is fine.
    let again = iris(data, &["region", "evacuate", "eu-west"]).await;
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(
        again
            .stderr
            .contains("is evacuated already, at 12 sessions a second"),
        "{}",
        again.stderr
    );

    // Its nodes are started again, and it stays so: whoever comes is sent on.
    for name in ["eu-west-edge-1", "eu-west-core-1"] {
        cluster.stop_node(name).await;
        cluster.start_node(name).await;
    }
    cluster.ready().await;
    let late = Client::connect(cluster.config("eu-west", "late", "phone")).unwrap();
    let turned_away = |event: &ClientEvent| match event {
        ClientEvent::Disconnected { reason, .. } => Some(reason.clone()),
        ClientEvent::Connected { region, .. } => panic!("welcomed in {region}"),
        _ => None,
    };
    let reason = common::event("it is turned away", &late, turned_away).await;
    assert_eq!(reason, DisconnectReason::GoAway(Code::Draining));
    let elsewhere = |event: &ClientEvent| match event {
        ClientEvent::Connected { region, .. } => Some(region.to_string()),
        _ => None,
    };
    // The nearest one that takes clients.
    assert_eq!(common::event("elsewhere", &late, elsewhere).await, "us-east");

    // One more, and then none is left that could take clients.
    let (code, _) = progress(data, &["region", "evacuate", "us-east"]).await;
    assert_eq!(code, 0);
    all_in(&members, "all are in the last region", |region| {
        region == "ap-south"
    })
    .await;
    let refused = iris(data, &["region", "evacuate", "ap-south"]).await;
    assert_eq!(
        (refused.code, refused.stdout.as_str()),
        (6, ""),
        "{}",
        refused.stderr
    );
    assert!(
        refused
            .stderr
            .contains("ap-south is the only one that takes clients")
            && refused.stderr.contains("--force"),
        "{}",
        refused.stderr
    );
    let (code, _) = progress(data, &["region", "restore", "us-east"]).await;
    assert_eq!(code, 0);

    // Home again.
    let (code, lines) = progress(data, &["region", "restore", "eu-west", "--rate", "40"]).await;
    let last = lines.last().unwrap();
    assert_eq!(
        (code, &last["done"], &last["returning"], &last["unaware"]),
        (0, &true.into(), &0.into(), &0.into()),
        "{lines:?}"
    );
    all_in(&members, "all are back", |region| region == "eu-west").await;
    let not = iris(data, &["region", "restore", "eu-west"]).await;
    assert_eq!(not.code, 0, "{}", not.stderr);
    assert!(not.stderr.contains("is not evacuated"), "{}", not.stderr);
    until("healthy", async || {
        json(data, &["cluster", "status"]).await.0 == 0
    })
    .await;

    // Nothing lost, nothing twice.
    let took = load.settle(members).await;
    eprintln!("accepted during evacuations and restorations: {took}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_say_whom_to_ask_and_what_is_not_there() {
    let mut cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let data = cluster.folder.path().to_owned();
    let data = data.as_path();
    let socket = |name: &str| {
        let path = data.join("nodes").join(name).join("data/admin.sock");
        path.to_str().unwrap().to_owned()
    };
    for verb in ["evacuate", "restore"] {
        let unknown = iris(data, &["region", verb, "nope"]).await;
        assert_eq!(unknown.code, 5, "{}", unknown.stderr);
        assert!(
            unknown.stderr.contains("expected one of eu-west, us-east"),
            "{}",
            unknown.stderr
        );
        // A socket leads to one node only.
        let asked = socket("us-east-core");
        let wrong = iris(data, &["region", verb, "eu-west", "--socket", &asked]).await;
        assert_eq!(wrong.code, 6, "{}", wrong.stderr);
        let names = [
            "this is us-east/us-east-core",
            "eu-west-core (127.",
            "eu-west-edge (127.",
        ];
        assert!(
            names.iter().all(|name| wrong.stderr.contains(name)),
            "{}",
            wrong.stderr
        );
        let usage = iris(data, &["region", verb, "eu-west", "--rate", "0"]).await;
        assert_eq!(usage.code, 2, "{}", usage.stderr);
    }
    // With an operator's certificate the node that is named leads to one of the region.
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
    let addr = cluster.node("us-east-core").peer_addr().to_string();
    let connect = [
        "--connect",
        &addr,
        "--cert",
        cert.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ];
    let done = iris(
        data,
        &[&["region", "evacuate", "eu-west", "--no-wait"][..], &connect].concat(),
    )
    .await;
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
    assert!(
        done.stderr.contains("regions that take its clients: us-east"),
        "{}",
        done.stderr
    );

    // A node that is down hears of it when it is back, and the command says that it did not answer.
    cluster.stop_node("eu-west-edge").await;
    let (code, lines) = progress(data, &["region", "restore", "eu-west"]).await;
    let silent = &lines.last().unwrap()["silent"];
    assert_eq!(
        (code, &silent[0]["node"]),
        (3, &"eu-west-edge".into()),
        "{lines:?}"
    );
    let forced = iris(data, &["region", "evacuate", "us-east", "--wait", "30s"]).await;
    assert_eq!(forced.code, 6, "no edge of eu-west is ready: {}", forced.stderr);
    let forced = iris(data, &["region", "evacuate", "us-east", "--force"]).await;
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    assert!(
        forced.stderr.contains("take its clients: none"),
        "{}",
        forced.stderr
    );
    cluster.start_node("eu-west-edge").await;
    cluster.ready().await;
    until(
        "it heard that its region is restored, and the other one evacuated",
        async || {
            let (_, node) = json(data, &["node", "show", "eu-west-edge"]).await;
            let words = node["report"]["evacuations"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let said: Vec<_> = words
                .iter()
                .map(|word| (word["region"].as_str(), word["evacuated"].as_bool()))
                .collect();
            said == [(Some("eu-west"), Some(false)), (Some("us-east"), Some(true))]
        },
    )
    .await;
    cluster.stop().await;
}
