//! Drills with real processes: one passes, one with a limit that cannot be kept does not, and one that is broken off leaves nothing,
//! neither of its own nodes nor in a cluster that runs.

mod common;
#[allow(dead_code, reason = "the tests that kill processes use the rest")]
#[path = "crash/processes.rs"]
mod processes;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{PATIENCE, regions, until, within};
use processes::Processes;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// An edge dies and comes back, under load.
fn plan(folder: &Path, name: &str, work: &str, limits: &str) -> PathBuf {
    let path = folder.join(format!("{name}.toml"));
    let text = format!(
        "title = \"An edge dies\"\nregions = [\"us-east\", \"eu-west\"]\nwork = \"{work}\"\n\n\
         [[fault]]\nat = \"2s\"\nkind = \"crash\"\non = [\"us-east/edge-1\"]\nlasts = \"1s\"\n\n\
         [drill]\nhypothesis = \"its clients go to another edge\"\nclients = 2\n\n[drill.limits]\n{limits}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn drill(plan: &Path, reports: &Path) -> Child {
    drill_at(plan, reports, &[])
}

fn drill_at(plan: &Path, reports: &Path, args: &[&str]) -> Child {
    let mut command = Command::from(processes::iris());
    command.args(["drill", "run", "--output", "json", "--reports"]);
    command.arg(reports).arg(plan).args(args).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Its exit code, what it printed, and its words.
async fn ended(what: &str, child: Child) -> (i32, String, String) {
    let output = tokio::time::timeout(PATIENCE * 2, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{what} does not end")).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_is_judged_by_what_its_clients_saw() {
    let folder = tempfile::tempdir().unwrap();
    let reports = folder.path().join("reports");
    let sane = "rto = \"20s\"\nlost = 0\nduplicates = 0\ndisorder = 0\nnever_answered = 0\naccepted_at_least = 100\n";
    let passes = plan(folder.path(), "edge-dies", "6s", sane);
    let (code, stdout, stderr) = ended("the drill", drill(&passes, &reports)).await;
    assert_eq!(code, 0, "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&report["passed"], &report["identity"]["name"]),
        (&true.into(), &"edge-dies".into())
    );
    assert_eq!(report["measures"]["lost"]["count"], 0, "{report}");
    assert!(
        report["measures"]["counts"]["accepted"].as_u64() > Some(100),
        "{report}"
    );
    // Its pieces are in the folder, and the page needs nothing else.
    let mut kinds = Vec::new();
    for file in std::fs::read_dir(&reports).unwrap() {
        let path = file.unwrap().path();
        kinds.push(path.extension().unwrap().to_string_lossy().into_owned());
        if kinds.last().is_some_and(|kind| kind == "html") {
            let page = std::fs::read_to_string(&path).unwrap();
            assert!(page.contains("its clients go to another edge") && !page.contains("http"));
        }
    }
    kinds.sort();
    assert_eq!(kinds, ["html", "json", "json", "md"]);

    // A limit that cannot be kept.
    let fails = plan(folder.path(), "too-much", "4s", "accepted_at_least = 1000000\n");
    let mut child = drill(&fails, &reports);
    // Nobody listens to how it goes, which is no reason to end.
    drop(child.stderr.take());
    let (code, stdout, _) = ended("the drill", child).await;
    assert_eq!(code, 1, "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["passed"], false, "{report}");

    // Both are in the list, with their verdicts.
    let list = async |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iris"));
        command
            .args(["drill", "report", "--reports"])
            .arg(&reports)
            .args(more);
        let list = within("the list", command.output()).await.unwrap();
        String::from_utf8(list.stdout).unwrap()
    };
    let text = list(&[]).await;
    assert!(text.contains("edge-dies") && text.contains("too-much"), "{text}");
    let rows: Value = serde_json::from_str(&list(&["--form", "json"]).await).unwrap();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["rpo_us"]),
        (&"edge-dies".into(), &0.into())
    );
    assert_eq!(
        (&rows[1]["name"], &rows[1]["passed"]),
        (&"too-much".into(), &false.into())
    );
}

/// A drill of its own group, as a terminal starts it, that gets a signal once it says something; what it printed, and the folder of
/// its nodes.
async fn broken_off(
    plan: &Path,
    reports: &Path,
    when: &str,
    signal: Signal,
) -> (i32, String, Vec<String>, PathBuf) {
    let mut command = Command::from(processes::iris());
    command.args(["drill", "run", "--output", "json", "--reports"]);
    command
        .arg(reports)
        .arg(plan)
        .stdin(Stdio::null())
        .process_group(0);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut said, mut nodes) = (Vec::new(), None);
    let told = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some(folder) = line.strip_prefix("starting nodes in ") {
                nodes = Some(PathBuf::from(folder));
            }
            let now = line.contains(when);
            said.push(line);
            if now {
                return;
            }
        }
        panic!("it ended before it said {when:?}: {said:?}");
    };
    within(when, told).await;
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    // Ctrl-C of a terminal goes to all of its group.
    kill_process_group(pid, signal).unwrap();
    let rest = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            said.push(line);
        }
        let (mut stdout, mut out) = (String::new(), child.stdout.take().unwrap());
        out.read_to_string(&mut stdout).await.unwrap();
        (child.wait().await.unwrap().code().unwrap_or(-1), stdout)
    };
    let rest = tokio::time::timeout(PATIENCE * 2, rest).await;
    let (code, stdout) = rest.expect("it ends");
    (code, stdout, said, nodes.expect("it names its folder"))
}

/// The end of a terminal; SIGTERM where this runs under `nohup`, which a drill heeds.
fn hangup() -> Signal {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    match ignored.is_some_and(|mask| mask & 1 == 1) {
        true => Signal::TERM,
        false => Signal::HUP,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_is_broken_off_mends_what_it_struck_and_ends_its_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let reports = folder.path().join("reports");
    let long = plan(
        folder.path(),
        "long",
        "10m",
        "lost = 0\naccepted_at_least = 1000000\n",
    );
    for (when, signal) in [
        ("the load begins", hangup()),
        ("crash on us-east/edge-1", Signal::INT),
    ] {
        let (code, stdout, said, nodes) = broken_off(&long, &reports, when, signal).await;
        assert_eq!(code, 1, "{said:?}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert!(
            report["aborted"].is_string() && report["passed"] == false,
            "{report}"
        );
        // What was cut short is not judged.
        assert_eq!(report["reasons"].as_array().unwrap().len(), 1, "{report}");
        assert!(
            said.iter().any(|line| line.contains("what was struck is mended")),
            "{said:?}"
        );
        assert!(
            !said.iter().any(|line| line.contains("cannot be mended")),
            "{said:?}"
        );
        assert!(!nodes.exists(), "its folder is left");
    }
    // Before anything is struck there is nothing to report.
    let (code, stdout, said, nodes) = broken_off(&long, &reports, "starting nodes", Signal::TERM).await;
    assert_eq!((code, stdout.as_str()), (1, ""), "{said:?}");
    assert!(
        said.iter()
            .any(|line| line.contains("SIGTERM before the drill began")),
        "{said:?}"
    );
    assert!(!nodes.exists(), "its folder is left");
}

/// What an operator is told of a cluster.
async fn told(data: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::from(processes::iris());
    command
        .args(args)
        .arg("--data")
        .arg(data)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped());
    let (code, stdout, _) = ended(&args.join(" "), command.spawn().unwrap()).await;
    (code, stdout)
}

async fn healthy(data: &Path) {
    until("the cluster is healthy", async || {
        told(data, &["cluster", "status"]).await.0 == 0
    })
    .await;
}

fn fault(kind: &str, places: &str, at: &str, lasts: &str) -> String {
    format!("\n[[fault]]\nat = \"{at}\"\nkind = \"{kind}\"\n{places}\nlasts = \"{lasts}\"\n")
}

fn plan_of(folder: &Path, name: &str, work: &str, faults: &[String]) -> PathBuf {
    let path = folder.join(format!("{name}.toml"));
    let text = format!(
        "title = \"{name}\"\nregions = [\"us-east\", \"eu-west\"]\nwork = \"{work}\"\n{}\n[drill]\nhypothesis = \"it is as \
         before\"\nclients = 2\n\n[drill.limits]\nlost = 0\nduplicates = 0\ndisorder = 0\nnever_answered = 0\n\
         accepted_at_least = 50\n",
        faults.concat()
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cluster_is_struck_only_where_it_is_well_and_is_as_before_afterwards() {
    let cluster = Processes::start(&regions(&["us-east", "eu-west"]), &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let reports = folder.path().join("reports");
    let data = cluster.path();
    let running = ["--target", "cluster", "--data", data.to_str().unwrap()];
    healthy(data).await;

    // Every kind of step that there is for a running cluster: a node that dies and stays away, one that is drained, a way
    // that is cut, clients that are moved.
    let each = [
        fault("crash", "on = [\"us-east/edge-1\"]", "1s", "2s"),
        fault("cut", "from = [\"us-east\"]\nto = [\"eu-west\"]", "4s", "2s"),
        fault("pause", "on = [\"eu-west/edge-1\"]", "5s", "500ms"),
        fault("rolling", "on = [\"eu-west/edge-1\"]", "7s", "1s"),
        fault("evacuate", "on = [\"eu-west\"]", "9s", "2s"),
    ];
    let passes = plan_of(folder.path(), "each-kind", "13s", &each);
    let (code, stdout, stderr) = ended("the drill", drill_at(&passes, &reports, &running)).await;
    assert_eq!(code, 0, "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&report["passed"], &report["identity"]["target"]),
        (&true.into(), &"cluster".into())
    );
    let faults = report["measures"]["faults"].as_array().unwrap();
    assert!(
        faults.len() == 5 && faults.iter().all(|fault| fault["ends"].is_u64()),
        "{report}"
    );
    // The node that died stayed away, although it was started again at once.
    let away = faults[0]["ends"].as_u64().unwrap() - faults[0]["begins"].as_u64().unwrap();
    assert!(away >= 2_000_000, "{away}");
    // One begins while another lasts; and what repair took.
    let observed = report["observed"].as_array().unwrap();
    assert_eq!(observed.len(), 5, "{report}");
    assert_eq!(observed[4][0], "repair", "{report}");
    healthy(data).await;

    // Hands are needed for this one, and this cluster has no such region.
    let hands = [
        fault("disk-replaced", "on = [\"us-east/core\"]", "1s", "1s"),
        fault("crash", "on = [\"ap-south\"]", "1s", "1s"),
    ];
    let hands = plan_of(folder.path(), "hands", "3s", &hands);
    let (code, _, stderr) = ended("the drill", drill_at(&hands, &reports, &running)).await;
    assert_eq!(code, 6, "{stderr}");
    assert!(
        stderr.contains("hands are needed") && stderr.contains("--region DRILL=REGION"),
        "{stderr}"
    );

    // It is killed while it has a way cut and a region evacuated: both end by themselves.
    let long = [
        fault("evacuate", "on = [\"eu-west\"]", "500ms", "5s"),
        fault("cut", "from = [\"us-east\"]\nto = [\"eu-west\"]", "1s", "5s"),
    ];
    let long = plan_of(folder.path(), "long", "10m", &long);
    let mut child = drill_at(&long, &reports, &running);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let struck = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("cut from us-east") {
                return;
            }
        }
        panic!("it ended before its fault");
    };
    within("the faults", struck).await;
    until("the way is cut", async || {
        told(data, &["fault", "list", "--output", "json"])
            .await
            .1
            .contains("cut")
    })
    .await;
    child.kill().await.unwrap();
    let (_, status) = told(data, &["cluster", "status", "--output", "json"]).await;
    assert!(
        status.contains("faults-injected") && status.contains("region-evacuated"),
        "{status}"
    );

    // Another one does not begin meanwhile.
    let (code, _, stderr) = ended("the drill", drill_at(&passes, &reports, &running)).await;
    assert_eq!(code, 6, "{stderr}");
    assert!(
        stderr.contains("does not begin") && stderr.contains("not healthy"),
        "{stderr}"
    );
    healthy(data).await;
    let (_, faults) = told(data, &["fault", "list", "--output", "json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&faults).unwrap()["faults"],
        serde_json::json!([])
    );
    cluster.stop().await;
}

/// `cargo test --release --test drill -- --ignored the_example` writes the report that the documentation shows.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it writes docs/drills"]
async fn the_example_is_written() {
    let reports = tempfile::tempdir().unwrap();
    let child = drill(Path::new("region-lost"), reports.path());
    let (code, _, stderr) = ended("the drill", child).await;
    assert_eq!(code, 0, "{stderr}");
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/drills");
    std::fs::create_dir_all(&docs).unwrap();
    for file in std::fs::read_dir(reports.path()).unwrap() {
        let path = file.unwrap().path();
        if let Some(kind) = path.extension().filter(|kind| *kind == "md" || *kind == "html") {
            std::fs::copy(&path, docs.join("region-lost").with_extension(kind)).unwrap();
        }
    }
}
