//! What `iris dev --processes` does with nodes that it cannot start.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use iris::client::Client;
use iris::server::dev::{DevCluster, Ports, single_region};
use iris::server::regions::Regions;

use crate::common::{client_config, receive, regions_with, send, within};
use crate::processes::{Processes, iris, kill_9};

/// `iris dev --processes` that writes what it says to a file.
struct Dev {
    child: Child,
    log: std::path::PathBuf,
}

impl Dev {
    fn start(mut program: Command, data: &Path) -> Self {
        let log = data.join("said");
        let child = program
            .args(["dev", "--processes", "--stop-with-stdin", "--data"])
            .arg(data)
            .arg("--regions")
            .arg(data.join("regions"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn says(&self, what: &str) {
        until(&format!("it says {what:?}"), || self.said().contains(what)).await;
    }

    async fn end(&mut self) -> ExitStatus {
        until("it ends", || self.child.try_wait().unwrap().is_some()).await;
        self.child.wait().unwrap()
    }
}

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let met = async {
        while !met() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(what, met).await;
}

fn pid(data: &Path) -> u32 {
    let text = std::fs::read(data.join("pids.json")).unwrap();
    let pids: std::collections::BTreeMap<String, u32> = serde_json::from_slice(&text).unwrap();
    pids["local-1"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_started_again_is_reported_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (data, program) = (folder.path().join("data"), folder.path().join("iris"));
    DevCluster::prepare(&data, &single_region(), Ports::Free).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_iris"), &program).unwrap();
    let command = Command::new(&program);

    let mut dev = Dev::start(command, &data);
    dev.says("the node is ready after").await;
    let away = folder.path().join("away");
    std::fs::rename(&program, &away).unwrap();
    let old = pid(&data);
    kill_9(old);
    dev.says("node local-1 cannot be started").await;
    assert!(dev.child.try_wait().unwrap().is_none(), "{}", dev.said());
    std::fs::rename(&away, &program).unwrap();
    dev.says("local-1 is ready again").await;
    assert_ne!(pid(&data), old);
    drop(dev.child.stdin.take());
    assert!(dev.end().await.success(), "{}", dev.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_of_another_cluster_are_not_taken_for_ours() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    DevCluster::prepare(&first, &single_region(), Ports::Free).unwrap();
    let mut theirs = Dev::start(iris(), &first);
    theirs.says("the node is ready after").await;
    let regions = Regions::load_folder(&first.join("regions")).unwrap();
    DevCluster::prepare(&second, &regions, Ports::AsFiled).unwrap();
    let mut ours = Dev::start(iris(), &second);
    let status = ours.end().await;
    let said = ours.said();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        !said.contains("ready after") && !said.contains("is ready"),
        "{said}"
    );
    assert!(said.contains("ended before all nodes were ready"), "{said}");
    assert!(said.contains("--ports free with another --data"), "{said}");
    drop(theirs.child.stdin.take());
    let ended = within("the first cluster stops", theirs.end()).await;
    assert!(ended.success(), "{}", theirs.said());
}

/// A node that begins the cluster does so once: what it is told to begin anew, it would open empty, though the other region has
/// what was on its disk.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_the_first_node_is_lost_and_comes_from_the_other_region() {
    let regions = regions_with(&["us-east", "eu-west"], "durability = \"geo\"\n");
    let cluster = Processes::start(&regions, &[]).await;
    let first = cluster.dev.nodes.iter().find(|node| node.begins).unwrap();
    let (name, region) = (first.name.clone(), first.region.clone());
    let config = |user: &str| client_config(&cluster.dev, &cluster.connector, &region, user, "phone");
    let alice = Client::connect(config("alice")).unwrap();
    for number in 0..20 {
        send(&alice, "bob", format!("message {number}")).await;
    }
    alice.close().await;

    let data = cluster.path().join("nodes").join(&name).join("data");
    std::fs::rename(&data, cluster.path().join("lost")).unwrap();
    let old = cluster.kill(&name);
    cluster.ready_under_another_pid(&name, Some(old)).await;
    // Said to begin the cluster, it would have been open at once, and what others have of it come later or never.
    assert_eq!(
        std::fs::read_to_string(data.join("begun")).unwrap().trim(),
        "create"
    );
    let bob = Client::connect(config("bob")).unwrap();
    for number in 0..20 {
        let message = receive(&bob).await;
        assert_eq!(&message.body[..], format!("message {number}").as_bytes());
        bob.consumed(message.at);
    }
    bob.close().await;
    cluster.stop().await;
}
