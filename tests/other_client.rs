//! A client on another QUIC stack, written from docs/protocol.md alone (`tests/python`), against a cluster: whoever reads the
//! page can write one.
//!
//! It needs Python with the packages of `tests/python/requirements.txt`: that of `IRIS_TEST_PYTHON`, else `python3`. Where they
//! are missing, these tests say so and test nothing; an interpreter that was named must have them.

mod common;

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{TestCluster, event, receive, regions, token, until_body, user, within};
use iris::client::{Client, ClientEvent};
use iris::core::wire::{Code, Status};
use iris::net::CloseCode;
use iris::server::dev::SERVER_NAME;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// A client in Python, as `drive.py` runs it.
struct Other {
    process: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    /// Messages that came while it was asked for something else.
    messages: VecDeque<Value>,
    /// Bodies of those that came again and went no further.
    dropped: Vec<Value>,
}

impl Other {
    /// A device of bob that knows of us-east alone, and remembers in a file where there is one.
    async fn start(python: &Path, cluster: &TestCluster, token: &str, memory: Option<&str>) -> Self {
        let folder = cluster.folder.path();
        let known = cluster.dev.info.regions.iter().find(|info| info.id == "us-east");
        let configuration = json!({
            "token": token,
            "device": "phone",
            "endpoints": {"us-east": known.unwrap().endpoints},
            "ca": folder.join("ca/ca.pem"),
            "server_name": SERVER_NAME,
            "memory": memory.map(|name| folder.join(name)),
        });
        let mut process = tokio::process::Command::new(python)
            // Its bytecode has no place among the sources.
            .arg("-B")
            .arg(here().join("drive.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut other = Self {
            stdin: process.stdin.take().unwrap(),
            stdout: BufReader::new(process.stdout.take().unwrap()).lines(),
            messages: VecDeque::new(),
            dropped: Vec::new(),
            process,
        };
        other.call(configuration).await;
        other
    }

    async fn call(&mut self, line: Value) {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    }

    async fn send(&mut self, body: &str) {
        let call = json!({"call": "send", "to": "alice", "body": body});
        self.call(call).await;
    }

    async fn event(&mut self, name: &str) -> Value {
        self.any(&[name]).await
    }

    /// The next event, which must be one of these: nothing is passed over but what tells of connections, presence, and what
    /// came again.
    async fn any(&mut self, names: &[&str]) -> Value {
        const PASSED: [&str; 4] = ["disconnected", "welcome", "presence", "dropped"];
        within(&names.join(" or "), async {
            loop {
                let line = self.stdout.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("it ended before {names:?}"));
                let event: Value = serde_json::from_str(&line).unwrap();
                let is = |name: &&str| event["event"] == **name;
                if is(&"dropped") {
                    self.dropped.push(event["body"].clone());
                }
                if names.iter().any(is) {
                    return event;
                }
                assert!(PASSED.iter().any(is), "{event} before {names:?}");
            }
        })
        .await
    }

    /// A session stands in this region. Where the machine is busy, there may have been others meanwhile.
    async fn welcome(&mut self, region: &str) {
        while self.event("welcome").await["region"] != region {}
    }

    async fn message(&mut self, body: &str) -> Value {
        let message = match self.messages.pop_front() {
            Some(message) => message,
            None => self.event("message").await,
        };
        assert_eq!(
            (&message["body"], &message["from"]),
            (&body.into(), &"alice".into())
        );
        message
    }

    async fn consume(&mut self, message: &Value) {
        let (origin, sequence) = (&message["origin"], &message["sequence"]);
        self.call(json!({"call": "consume", "origin": origin, "sequence": sequence}))
            .await;
        loop {
            let event = self.any(&["consumed", "message"]).await;
            if event["event"] == "consumed" {
                return;
            }
            self.messages.push_back(event);
        }
    }

    async fn close(mut self) {
        self.call(json!({"call": "close"})).await;
        self.event("closed").await;
        assert!(within("it ended", self.process.wait()).await.unwrap().success());
    }

    async fn kill(mut self) {
        within("killed", self.process.kill()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_sends_and_receives_in_order_and_resumes_where_it_was() {
    let Some(python) = python() else { return };
    let set = [
        ("limits.max_body", "4KiB"),
        // Far fewer than it sends at once: some are refused for now, and come again in order.
        ("limits.user_messages_per_second", "50"),
        ("limits.user_burst", "10"),
    ];
    let mut cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &set).await;
    let of_bob = token(cluster.folder.path(), "bob");

    let mut stranger = Other::start(&python, &cluster, "nonsense", None).await;
    let error = stranger.event("error").await;
    assert_eq!(error["code"], u16::from(Code::Unauthorized));
    assert_eq!(error["close_code"], CloseCode::UNAUTHENTICATED.0);
    stranger.event("closed").await;

    let alice = cluster.client("eu-west", "alice", "laptop").await;
    let mut bob = Other::start(&python, &cluster, &of_bob, Some("memory")).await;
    bob.welcome("us-east").await;

    // Each sees the other's status change, from another region.
    bob.call(json!({"call": "watch", "users": ["alice"]})).await;
    alice.watch([user("bob")]);
    alice.set_status(Status::Away, "lunch");
    loop {
        let seen = bob.event("presence").await;
        if (&seen["status"], &seen["text"]) == (&1.into(), &"lunch".into()) {
            assert_eq!(
                (&seen["user"], &seen["region"]),
                (&"alice".into(), &"eu-west".into())
            );
            break;
        }
    }
    bob.call(json!({"call": "status", "status": 2, "text": "busy"}))
        .await;
    event("bob is busy", &alice, |event| match event {
        ClientEvent::Presence(seen) => (seen.status == Status::Dnd && seen.text == "busy").then_some(()),
        _ => None,
    })
    .await;

    // What it sends arrives once and in order, also where much is refused for now; what is refused for good stops nothing.
    let sent: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    for body in &sent[..20] {
        bob.send(body).await;
    }
    bob.send(&"x".repeat(5_000)).await;
    for body in &sent[20..] {
        bob.send(body).await;
    }
    let (mut accepted, mut refusals, mut refused) = (Vec::new(), 0, Vec::new());
    while accepted.len() < sent.len() || refused.is_empty() {
        let event = bob.any(&["accepted", "rejected"]).await;
        match event["code"].as_u64() {
            None => accepted.push(event["id"].as_str().unwrap().to_owned()),
            Some(code) if code < 20 => refusals += 1,
            Some(code) => refused.push(code),
        }
    }
    assert_eq!(refused, [u64::from(u16::from(Code::TooLarge))]);
    assert!(refusals > 0, "the limit is above what it sends");
    for body in &sent {
        let message = receive(&alice).await;
        assert_eq!(message.body, body.as_bytes());
        assert!(accepted.contains(&message.id.to_string().replace('-', "")));
    }

    // It holds the second when its connection is lost: the third is what comes next.
    for body in ["one", "two"] {
        send(&alice, body).await;
    }
    let first = bob.message("one").await;
    bob.message("two").await;
    bob.consume(&first).await;
    bob.call(json!({"call": "cut"})).await;
    bob.welcome("us-east").await;
    send(&alice, "three").await;
    bob.message("three").await;
    assert!(bob.dropped.contains(&"two".into()), "{:?}", bob.dropped);
    // The process dies with both. Its next run has what it had not consumed, and no more.
    bob.kill().await;
    let mut bob = Other::start(&python, &cluster, &of_bob, Some("memory")).await;
    bob.welcome("us-east").await;
    for body in ["two", "three"] {
        let message = bob.message(body).await;
        bob.consume(&message).await;
    }
    // The next one is consumed, and dies before it could say so: the run after that says it in its first frame.
    send(&alice, "four").await;
    let message = bob.message("four").await;
    bob.call(json!({"call": "mute"})).await;
    bob.consume(&message).await;
    bob.kill().await;
    let mut bob = Other::start(&python, &cluster, &of_bob, Some("memory")).await;
    bob.welcome("us-east").await;
    send(&alice, "five").await;
    let message = bob.message("five").await;
    assert!(!bob.dropped.contains(&"four".into()), "{:?}", bob.dropped);
    bob.consume(&message).await;
    bob.close().await;
    // It was acknowledged, too: a run that remembers nothing is given what is new.
    let mut bob = Other::start(&python, &cluster, &of_bob, None).await;
    bob.welcome("us-east").await;
    send(&alice, "six").await;
    let message = bob.message("six").await;
    bob.consume(&message).await;

    // Its node stops, and tells it to go.
    within("stopped", cluster.stop_node("us-east-edge")).await;
    bob.welcome("eu-west").await;
    send(&alice, "seven").await;
    bob.message("seven").await;
    bob.close().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_to_a_region_that_it_was_told_of_and_what_it_sends_again_counts_once() {
    let Some(python) = python() else { return };
    let mut cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let of_bob = token(cluster.folder.path(), "bob");
    let alice = cluster.client("eu-west", "alice", "laptop").await;
    let mut bob = Other::start(&python, &cluster, &of_bob, Some("memory")).await;
    bob.welcome("us-east").await;

    // Accepted in us-east and known in eu-west, but no answer reaches it.
    bob.call(json!({"call": "deafen"})).await;
    let mut ids = Vec::new();
    for body in ["one", "two"] {
        bob.send(body).await;
        let message = receive(&alice).await;
        assert_eq!(message.body, body.as_bytes());
        ids.push(message.id.to_string().replace('-', ""));
    }
    // The region goes without a word, and what it sends then is known nowhere.
    within("gone", cluster.kill_node("us-east-edge")).await;
    within("gone", cluster.kill_node("us-east-core")).await;
    bob.send("three").await;
    bob.welcome("eu-west").await;
    let mut accepted = Vec::new();
    for _ in 0..3 {
        let event = bob.event("accepted").await;
        accepted.push((
            event["id"].as_str().unwrap().to_owned(),
            event["duplicate"].as_bool().unwrap(),
        ));
    }
    assert_eq!(accepted[..2], [(ids[0].clone(), true), (ids[1].clone(), true)]);
    assert!(!accepted[2].1, "{accepted:?}");
    bob.send("mark").await;
    bob.event("accepted").await;
    assert_eq!(until_body(&alice, b"mark").await, [b"three"]);

    send(&alice, "four").await;
    bob.message("four").await;
    bob.close().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leaves_a_region_that_is_evacuated_and_comes_home() {
    let Some(python) = python() else { return };
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let of_bob = token(cluster.folder.path(), "bob");
    let alice = cluster.client("eu-west", "alice", "laptop").await;
    let mut bob = Other::start(&python, &cluster, &of_bob, Some("memory")).await;
    bob.welcome("us-east").await;
    send(&alice, "one").await;
    bob.message("one").await;

    move_clients(&cluster, "evacuate").await;
    // It takes along what comes first in the other region, and what it holds is not given to it again.
    assert_ne!(bob.event("after").await["after"], json!({}));
    bob.welcome("eu-west").await;
    send(&alice, "two").await;
    bob.message("two").await;

    move_clients(&cluster, "restore").await;
    bob.event("after").await;
    bob.welcome("us-east").await;
    send(&alice, "three").await;
    bob.message("three").await;
    bob.send("four").await;
    bob.event("accepted").await;
    assert_eq!(receive(&alice).await.body.as_ref(), b"four");
    bob.close().await;
    cluster.stop().await;
}

/// An operator sends the clients of us-east away, or lets them come back.
async fn move_clients(cluster: &TestCluster, verb: &str) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_iris"));
    command
        .args(["region", verb, "us-east", "--output", "json"])
        .env("IRIS_DATA", cluster.folder.path())
        .stdin(Stdio::null());
    let done = within(verb, command.output()).await.unwrap();
    assert!(
        done.status.success(),
        "{verb}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

async fn send(alice: &Client, body: &str) {
    common::send(alice, "bob", body.to_owned()).await;
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python")
}

/// An interpreter that has what the client needs.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("IRIS_TEST_PYTHON");
    let python = PathBuf::from(named.clone().unwrap_or("python3".into()));
    let found = Command::new(&python)
        .args(["-c", "import aioquic, msgpack"])
        .output();
    let missing = match found {
        Ok(output) if output.status.success() => return Some(python),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let missing = format!(
        "{}: {}",
        python.display(),
        missing.lines().last().unwrap_or_default()
    );
    assert!(named.is_none(), "IRIS_TEST_PYTHON: {missing}");
    // Past the capture of a test that passes: who reads that it did must read this, too.
    let _ = writeln!(
        std::io::stderr(),
        "skipped: {missing}; pip install -r tests/python/requirements.txt, and name the interpreter in IRIS_TEST_PYTHON"
    );
    None
}
