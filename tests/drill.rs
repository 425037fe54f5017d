//! Drills with real processes: one passes, one with a limit that cannot be kept does not, and one that is broken off leaves nothing.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{PATIENCE, within};
use rustix::process::{Pid, Signal, kill_process};
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris"));
    command.args(["drill", "run", "--output", "json", "--reports"]);
    command.arg(reports).arg(plan).stdin(Stdio::null());
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
    let (code, stdout, stderr) = ended("the drill", drill(&fails, &reports)).await;
    assert_eq!(code, 1, "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["passed"], false, "{report}");

    // Both are in the list, with their verdicts.
    let list = Command::new(env!("CARGO_BIN_EXE_iris"))
        .args(["drill", "report", "--reports"])
        .arg(&reports)
        .output();
    let list = within("the list", list).await.unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.contains("edge-dies") && list.contains("too-much"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_is_broken_off_mends_what_it_struck_and_ends_its_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let reports = folder.path().join("reports");
    let long = plan(folder.path(), "long", "10m", "lost = 0\n");
    let mut child = drill(&long, &reports);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut nodes = None;
    let struck = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some(folder) = line.strip_prefix("starting nodes in ") {
                nodes = Some(PathBuf::from(folder));
            }
            if line.starts_with("crash on us-east/edge-1") {
                return;
            }
        }
        panic!("it ended before its fault");
    };
    within("the fault", struck).await;
    let nodes = nodes.unwrap();
    assert!(nodes.is_dir());
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let mut said = Vec::new();
    let rest = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            said.push(line);
        }
        let mut stdout = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .await
            .unwrap();
        (child.wait().await.unwrap(), stdout)
    };
    let (status, stdout) = tokio::time::timeout(PATIENCE * 2, rest).await.unwrap();
    assert_eq!(status.code(), Some(1), "{said:?}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert!(
        report["aborted"].is_string() && report["passed"] == false,
        "{report}"
    );
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
