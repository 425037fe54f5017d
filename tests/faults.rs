//! Faults on purpose: what each does to real nodes, that it ends by itself, and that nothing is lost or doubled by it.

mod common;
#[allow(dead_code, reason = "the tests that kill processes use the rest")]
#[path = "crash/processes.rs"]
mod processes;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{TestCluster, get, receive, regions, send, unix_secs, until, until_body, within};
use iris::server::faults::{Direction, Fault, FaultError, Selector};
use iris::server::node::Node;
use processes::{Processes, is_ready};
use serde_json::Value;

/// Longer than any of these tests takes: what is injected for so long is ended by the test.
const LONG: Duration = Duration::from_secs(600);

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

/// `iris fault`, or another command, beside a cluster.
async fn iris(data: &Path, args: &[&str]) -> Done {
    let mut command = tokio::process::Command::from(processes::iris());
    command.args(args).env("IRIS_DATA", data);
    command.stdin(std::process::Stdio::null());
    let output = within(&args.join(" "), command.output()).await.unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Each field of it must be in the page for operators.
fn is_described(value: &Value) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut waiting = vec![value];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    assert!(page.contains(&format!("`{name}`")), "{name} is not described");
                    waiting.push(value);
                }
            }
            Value::Array(items) => waiting.extend(items),
            _ => {}
        }
    }
}

async fn inject(node: &Node, fault: Fault, lasts: Duration) -> Result<u64, FaultError> {
    let inspector = node.inspector();
    let injected = inspector.faults().inject(&inspector, fault, lasts).await?;
    Ok(injected.id)
}

fn clear(node: &Node) {
    let inspector = node.inspector();
    inspector.faults().clear(&inspector, None).unwrap();
}

fn is_over(node: &Node) -> bool {
    node.inspector().faults().list().is_empty()
}

fn cut(region: &str, direction: Direction) -> Fault {
    Fault::Cut {
        with: region_of(region),
        direction,
    }
}

fn region_of(region: &str) -> Selector {
    Selector::Region(region.parse().unwrap())
}

/// What a node counts under this name and labels.
async fn counted(node: &Node, line: &str) -> u64 {
    let text = get(node.admin_addr().unwrap(), "/metrics").await.unwrap();
    let found = text.lines().find_map(|found| found.strip_prefix(line));
    found.map_or(0, |number| number.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_no_faults_unless_it_is_allowed() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[("faults.allowed", "false")]).await;
    let data = cluster.folder.path();
    let done = iris(data, &["fault", "inject", "--node", "us-east-core", "store-fail"]).await;
    assert_eq!(done.code, 6, "{}", done.stderr);
    assert!(done.stderr.contains("faults.allowed = false"), "{}", done.stderr);
    assert_eq!(iris(data, &["fault", "list"]).await.stdout, "no faults\n");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let (core, edge) = (cluster.node("us-east-core"), cluster.node("us-east-edge"));
    let step = Duration::from_millis(1);
    for lasts in [
        Duration::from_millis(100) - step,
        Duration::from_secs(3600) + step,
    ] {
        assert_eq!(
            inject(core, Fault::StoreFail, lasts).await,
            Err(FaultError::Life(lasts))
        );
    }
    for lasts in [Duration::from_millis(100), Duration::from_secs(3600)] {
        inject(core, Fault::StoreSlow { ms: 1 }, lasts).await.unwrap();
    }
    clear(core);
    // They share this process.
    for fault in [Fault::Pause, Fault::Crash] {
        let error = inject(core, fault, LONG).await.unwrap_err();
        assert!(error.to_string().contains("may be shared by others"), "{error}");
        assert!(error.to_string().contains("--processes"), "{error}");
    }
    let not_here = [
        inject(edge, Fault::StoreFull, LONG).await,
        inject(
            core,
            Fault::Cut {
                with: Selector::Clients,
                direction: Direction::Both,
            },
            LONG,
        )
        .await,
        inject(
            core,
            Fault::Cut {
                with: Selector::Node("us-east-core".parse().unwrap()),
                direction: Direction::Both,
            },
            LONG,
        )
        .await,
    ];
    for refused in not_here {
        assert!(matches!(refused, Err(FaultError::NotHere(_))), "{refused:?}");
    }
    for with in [region_of("nowhere"), Selector::Node("nobody".parse().unwrap())] {
        let fault = Fault::Cut {
            with,
            direction: Direction::Both,
        };
        let refused = inject(core, fault, LONG).await;
        assert!(matches!(refused, Err(FaultError::NotFound(_))), "{refused:?}");
    }
    let loss = |percent| Fault::Loss {
        with: Selector::Clients,
        percent,
        direction: Direction::Out,
    };
    assert!(matches!(
        inject(edge, loss(101), LONG).await,
        Err(FaultError::Value { .. })
    ));
    assert!(is_over(core) && is_over(edge));

    // There is a limit to how many a node has.
    for _ in 0..iris::server::faults::MAX_FAULTS {
        inject(core, Fault::StoreSlow { ms: 1 }, LONG).await.unwrap();
    }
    let refused = inject(core, Fault::StoreFail, LONG).await;
    assert!(matches!(refused, Err(FaultError::NotHere(_))), "{refused:?}");
    clear(core);
    inject(core, Fault::StoreSlow { ms: 1 }, LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_while_regions_are_cut_arrives_once_the_cut_has_ended() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let data = cluster.folder.path();
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let bob = cluster.client("eu-west", "bob", "phone").await;
    send(&alice, "bob", "before").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"before");

    let args = [
        "fault",
        "inject",
        "--node",
        "us-east-core",
        "cut",
        "--region",
        "eu-west",
    ];
    let done = iris(data, &[&args[..], &["--for", "8s", "--output", "json"]].concat()).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    let row = &done.json()["faults"][0];
    assert_eq!(
        (
            &row["node"],
            &row["fault"]["kind"],
            &row["fault"]["with"]["region"]
        ),
        (&"us-east-core".into(), &"cut".into(), &"eu-west".into())
    );
    assert!(row["left_ms"].as_u64().unwrap() <= 8_000);
    let core = cluster.node("us-east-core");
    assert!(!is_over(core), "the machine is too slow for this test");
    for body in ["one", "two", "three"] {
        send(&alice, "bob", body).await;
    }
    // It cannot have come on another way.
    assert_eq!(receive(&bob).await.body.as_ref(), b"one");
    assert!(is_over(core), "it came through the cut");
    send(&alice, "bob", "after").await;
    assert_eq!(
        until_body(&bob, b"after").await,
        [b"two".to_vec(), b"three".to_vec()]
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_of_what_arrives_lets_through_what_leaves() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let bob = cluster.client("eu-west", "bob", "phone").await;
    // Connections stand, and whole rounds have been made.
    send(&alice, "bob", "there").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"there");
    send(&bob, "alice", "and back").await;
    assert_eq!(receive(&alice).await.body.as_ref(), b"and back");

    let core = cluster.node("us-east-core");
    inject(core, cut("eu-west", Direction::In), LONG).await.unwrap();
    send(&alice, "bob", "this way").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"this way");
    send(&bob, "alice", "not that way").await;
    let came = tokio::time::timeout(Duration::from_secs(2), alice.next_message()).await;
    assert!(came.is_err(), "it came through the cut");
    clear(core);
    assert_eq!(receive(&alice).await.body.as_ref(), b"not that way");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_for_a_region_are_late_and_others_are_not() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let bob = cluster.client("eu-west", "bob", "phone").await;
    let near = cluster.client("us-east", "carol", "phone").await;
    let core = cluster.node("us-east-core");
    let delay = Fault::Delay {
        with: region_of("eu-west"),
        ms: 700,
        jitter_ms: 0,
    };
    inject(core, delay.clone(), LONG).await.unwrap();
    // Two add up.
    inject(core, delay, LONG).await.unwrap();
    let sent = Instant::now();
    send(&alice, "bob", "far").await;
    send(&alice, "carol", "near").await;
    receive(&near).await;
    let near = sent.elapsed();
    receive(&bob).await;
    assert!(
        sent.elapsed() >= Duration::from_millis(1400),
        "{:?}",
        sent.elapsed()
    );
    assert!(near < sent.elapsed());
    // Some are lost, too: QUIC sends them again.
    let loss = Fault::Loss {
        with: region_of("eu-west"),
        percent: 20,
        direction: Direction::Both,
    };
    clear(core);
    inject(core, loss, LONG).await.unwrap();
    for i in 0..50_u64 {
        send(&alice, "bob", i.to_be_bytes().to_vec()).await;
    }
    for i in 0..50_u64 {
        assert_eq!(receive(&bob).await.body.as_ref(), i.to_be_bytes());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_cut_off_go_on_when_the_cut_has_ended() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let bob = cluster.client("us-east", "bob", "phone").await;
    let edge = cluster.node("us-east-edge");
    let fault = Fault::Cut {
        with: Selector::Clients,
        direction: Direction::Both,
    };
    inject(edge, fault, Duration::from_secs(3)).await.unwrap();
    send(&alice, "bob", "hello").await;
    assert!(is_over(edge), "it came through the cut");
    assert_eq!(receive(&bob).await.body.as_ref(), b"hello");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_is_tried_again_until_it_does_not() {
    let cluster = TestCluster::start(&regions(&["us-east"]), &[]).await;
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let bob = cluster.client("us-east", "bob", "phone").await;
    let core = cluster.node("us-east-core");
    for (fault, reason, body) in [
        (Fault::StoreFail, "retryable", "one"),
        (Fault::StoreFull, "full", "two"),
    ] {
        let line = format!("iris_store_errors_total{{reason=\"{reason}\"}} ");
        assert_eq!(counted(core, &line).await, 0);
        let retried = counted(core, "iris_deposit_retried_total ").await;
        inject(core, fault, Duration::from_secs(3)).await.unwrap();
        let sent = Instant::now();
        send(&alice, "bob", body).await;
        assert!(is_over(core), "it was accepted after {:?}", sent.elapsed());
        assert!(counted(core, &line).await > 0);
        until("it was answered for now, and sent again", async || {
            counted(core, "iris_deposit_retried_total ").await > retried
        })
        .await;
    }
    send(&alice, "bob", "end").await;
    assert_eq!(until_body(&bob, b"end").await, [b"one".to_vec(), b"two".to_vec()]);
    assert!(core.health().is_ready(), "{:?}", core.health().reasons());

    inject(core, Fault::StoreSlow { ms: 500 }, LONG).await.unwrap();
    let sent = Instant::now();
    send(&alice, "bob", "slow").await;
    assert!(
        sent.elapsed() >= Duration::from_millis(500),
        "{:?}",
        sent.elapsed()
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_noticed_by_the_others_and_right_again() {
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let data = cluster.folder.path();
    let core = cluster.node("us-east-core");
    let args = ["fault", "inject", "--node", "us-east-core", "clock"];
    let done = iris(data, &[&args[..], &["--ahead", "30s", "--for", "10m"]].concat()).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    let ahead_s = || (core.inspector().wall_ms() / 1000).abs_diff(unix_secs());
    assert!((29..=31).contains(&ahead_s()), "{} s", ahead_s());
    until("the clocks differ", async || {
        let status = iris(data, &["cluster", "status", "--output", "json"])
            .await
            .json();
        let reasons = status["reasons"].as_array().unwrap();
        let has = |code: &str| reasons.iter().any(|reason| reason["code"] == code);
        has("clock-differs") && has("faults-injected")
    })
    .await;
    // A message from there is delivered here all the same.
    let alice = cluster.client("us-east", "alice", "laptop").await;
    let bob = cluster.client("eu-west", "bob", "phone").await;
    send(&alice, "bob", "from the future").await;
    assert_eq!(receive(&bob).await.body.as_ref(), b"from the future");
    clear(core);
    assert!(ahead_s() <= 1, "{} s", ahead_s());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_listed_and_ended_and_the_way_around_the_world_stays() {
    let set = [("faults.allowed", "true"), ("faults.wan", "true")];
    let cluster = TestCluster::start(&regions(&["us-east", "eu-west"]), &set).await;
    let data = cluster.folder.path();
    let ids = |done: &Done| -> Vec<String> {
        let rows = done.json()["faults"].as_array().unwrap().clone();
        let of = |row: &Value| format!("{}/{}", row["node"].as_str().unwrap(), row["id"]);
        rows.iter()
            .filter(|row| !row["left_ms"].is_null())
            .map(of)
            .collect()
    };
    let list = async || iris(data, &["fault", "list", "--output", "json"]).await;
    let done = list().await;
    assert_eq!(
        done.json()["faults"].as_array().unwrap().len(),
        4,
        "{}",
        done.stdout
    );
    assert!(ids(&done).is_empty());
    is_described(&done.json());
    let table = iris(data, &["fault", "list"]).await.stdout;
    assert!(
        table.contains("us-east-core/1") && table.contains("with the node"),
        "{table}"
    );
    let done = iris(data, &["cluster", "status"]).await;
    assert!(!done.stdout.contains("faults are injected"), "{}", done.stdout);

    // At every node of a region that can have it.
    let slow = [
        "fault",
        "inject",
        "--region",
        "us-east",
        "store-slow",
        "--by",
        "1ms",
    ];
    let done = iris(data, &[&slow[..], &["--for", "1h", "--output", "json"]].concat()).await;
    assert_eq!(
        (done.code, ids(&done)),
        (0, vec!["us-east-core/2".to_owned()]),
        "{}",
        done.stderr
    );
    let loss = [
        "fault",
        "inject",
        "--region",
        "us-east",
        "loss",
        "--clients",
        "--percent",
        "1",
    ];
    let done = iris(data, &[&loss[..], &["--output", "json"]].concat()).await;
    assert_eq!(
        (done.code, ids(&done)),
        (0, vec!["us-east-edge/2".to_owned()]),
        "{}",
        done.stderr
    );
    let cut = [
        "fault", "inject", "--region", "us-east", "cut", "--region", "eu-west",
    ];
    let done = iris(
        data,
        &[&cut[..], &["--direction", "out", "--output", "json"]].concat(),
    )
    .await;
    assert_eq!(
        (done.code, ids(&done)),
        (0, vec!["us-east-core/3".to_owned(), "us-east-edge/3".to_owned()]),
        "{}",
        done.stderr
    );
    // The others see nodes that do not answer.
    let done = iris(data, &["cluster", "status", "--node", "us-east-core"]).await;
    assert_ne!(done.code, 0);
    assert!(
        done.stdout
            .contains("faults are injected into node us-east/us-east-core"),
        "{}",
        done.stdout
    );

    let done = iris(data, &["fault", "clear", "us-east-core/2", "--output", "json"]).await;
    assert_eq!(
        (done.code, ids(&done)),
        (0, vec!["us-east-core/2".to_owned()]),
        "{}",
        done.stderr
    );
    for (fault, code, says) in [
        ("us-east-core/2", 5, "it may have ended"),
        ("us-east-core/1", 6, "lasts as long as the node"),
        ("us-north-core/1", 5, "there is no node us-north-core"),
        ("us-east-core", 2, "expected NODE/NUMBER"),
    ] {
        let done = iris(data, &["fault", "clear", fault]).await;
        assert_eq!(done.code, code, "{fault}: {}", done.stderr);
        assert!(done.stderr.contains(says), "{fault}: {}", done.stderr);
    }
    let done = iris(data, &["fault", "clear", "--all", "--output", "json"]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(ids(&done).len(), 3, "{}", done.stdout);
    // The others answer again once connections stand.
    until("only the way is left", async || {
        let done = list().await;
        done.code == 0 && ids(&done).is_empty() && done.json()["faults"].as_array().unwrap().len() == 4
    })
    .await;
    for wrong in [
        vec!["fault", "inject", "cut", "--region", "eu-west"],
        vec![
            "fault",
            "inject",
            "--region",
            "us-east",
            "--node",
            "us-east-core",
            "store-fail",
        ],
        vec![
            "fault",
            "inject",
            "--node",
            "us-east-core",
            "pause",
            "--for",
            "99ms",
        ],
        vec!["fault", "inject", "--node", "us-east-core", "cut"],
        vec!["fault", "clear"],
    ] {
        let done = iris(data, &wrong).await;
        assert_eq!(done.code, 2, "{wrong:?}: {}", done.stderr);
    }
    cluster.stop().await;
}

/// The state of a process, as the system tells it: `T` where it is stopped.
#[cfg(target_os = "linux")]
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_process_stands_still_and_goes_on_by_itself_and_one_that_crashed_is_started_again() {
    let cluster = Processes::start(&regions(&["us-east"]), &[]).await;
    let data = cluster.path();
    let pid = cluster.pid("us-east-core").unwrap();
    let pause = [
        "fault",
        "inject",
        "--node",
        "us-east-core",
        "pause",
        "--for",
        "3s",
    ];
    let done = iris(data, &pause).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    until("it stands still", async || state(pid) == Some('T')).await;
    let began = Instant::now();
    let done = iris(data, &["fault", "list", "--node", "us-east-edge"]).await;
    assert_eq!(done.code, 3, "{}{}", done.stdout, done.stderr);
    until("it goes on", async || {
        state(pid).is_some_and(|state| state != 'T')
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let addr = cluster.node("us-east-core").admin_http;
    until("it serves again", async || is_ready(addr).await).await;
    assert_eq!(cluster.pid("us-east-core"), Some(pid));
    until("it is over", async || {
        iris(data, &["fault", "list"]).await.stdout == "no faults\n"
    })
    .await;

    let done = iris(data, &["fault", "inject", "--node", "us-east-core", "crash"]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    cluster.ready_under_another_pid("us-east-core", Some(pid)).await;
    cluster.stop().await;
}
