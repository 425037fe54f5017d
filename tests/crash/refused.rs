//! Folders that a node refuses to start with, each by name; and those that it recovers from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use iris::client::{Client, connector};
use iris::net::certs::Roots;
use iris::net::connect::Connector;
use iris::server::dev::{DevCluster, DevNode, Ports};
use iris::server::regions::Regions;

use crate::common::{PATIENCE, client_config, receive, regions, send, within};
use crate::processes::{Running, created, kill_9, serving};

/// As small as they may be: a few messages fill a segment.
const SMALL: [&str; 3] = [
    "store.segment_bytes=1MiB",
    "store.checkpoint_bytes=1MiB",
    "store.memory_bytes=1MiB",
];
/// So many fill a segment and make the tables cover the one before.
const SEGMENT_OF_MESSAGES: u64 = 20;
const BODY: usize = 60 * 1024;

/// One region of a core and an edge, started by hand.
struct Site {
    folder: tempfile::TempDir,
    dev: DevCluster,
    connector: Connector,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dev = DevCluster::prepare(folder.path(), &regions(&["us-east"]), Ports::Free).unwrap();
        let roots = Roots::load(&folder.path().join("ca/ca.pem")).unwrap();
        Self {
            dev,
            connector: connector(&roots).unwrap(),
            folder,
        }
    }

    fn core(&self) -> &DevNode {
        self.dev.nodes.iter().find(|node| node.client.is_none()).unwrap()
    }

    fn edge(&self) -> &DevNode {
        self.dev.nodes.iter().find(|node| node.client.is_some()).unwrap()
    }

    /// Journal or tables of the core.
    fn part(&self, name: &str) -> PathBuf {
        self.core().data.join("store").join(name)
    }

    /// Where a copy of that part is kept.
    fn kept(&self, name: &str) -> PathBuf {
        self.folder.path().join("kept").join(name)
    }

    fn keep(&self, name: &str) {
        copy(&self.part(name), &self.kept(name));
    }

    /// Puts the copy in the place of the part.
    fn put_back(&self, name: &str) {
        fs::remove_dir_all(self.part(name)).unwrap();
        copy(&self.kept(name), &self.part(name));
    }

    async fn client(&self, user: &str) -> Client {
        let client = Client::connect(client_config(
            &self.dev,
            &self.connector,
            "us-east",
            user,
            "phone",
        ))
        .unwrap();
        assert!(within("connected", client.connected()).await);
        client
    }

    /// Runs core and edge while `work` is done, then `kill -9`.
    async fn run<F: Future<Output = ()>>(&self, create: bool, work: impl FnOnce() -> F) {
        let core = start(self.core(), create).await;
        let edge = start(self.edge(), create).await;
        work().await;
        drop((core, edge));
    }

    async fn send(&self, numbers: std::ops::Range<u64>) {
        let alice = self.client("alice").await;
        for number in numbers {
            let mut body = vec![0; BODY];
            body[..8].copy_from_slice(&number.to_be_bytes());
            send(&alice, "bob", body).await;
        }
        alice.close().await;
    }

    /// Sends so many that the tables take over the journal's beginning, and waits until they have.
    async fn send_a_segment(&self, first: u64) {
        let journal = self.part("journal");
        let begun = segments(&journal).remove(0);
        self.send(first..SEGMENT_OF_MESSAGES * 6).await;
        let written_behind = async {
            while segments(&journal).contains(&begun) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        within("the oldest segment was written behind", written_behind).await;
    }

    async fn receive(&self, numbers: std::ops::Range<u64>) {
        let bob = self.client("bob").await;
        for number in numbers {
            assert_eq!(receive(&bob).await.body[..8], number.to_be_bytes());
        }
        bob.close().await;
    }

    /// Starts the core, which must end by itself, and gives what it said.
    fn refused(&self) -> String {
        ended(serve(self.core(), &[]))
    }
}

/// What a node says that does not start; one that runs is ended, and the test with it.
fn ended(mut command: std::process::Command) -> String {
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            break None;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    if status.is_none() {
        kill_9(child.id());
    }
    let said = child.wait_with_output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    let status = status.unwrap_or_else(|| panic!("it must not start, and runs after {PATIENCE:?}:\n{said}"));
    assert_eq!(status.code(), Some(1), "it must not start:\n{said}");
    said
}

async fn start(node: &DevNode, create: bool) -> Running {
    let args = if create { created(node) } else { &[] };
    let mut running = Running::start(serve(node, args));
    running.ready(node).await;
    running
}

fn serve(node: &DevNode, args: &[&str]) -> std::process::Command {
    let mut command = serving(node);
    command.args(args);
    for setting in SMALL {
        command.args(["--set", setting]);
    }
    command
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn segments(journal: &Path) -> Vec<String> {
    let names = fs::read_dir(journal).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name.ends_with(".seg"));
    names.sort();
    names
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "found: {text}\nnot {part:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_tables_is_made_up_from_the_journal_or_refused() {
    let site = Site::new();
    site.run(true, || site.send(0..3)).await;
    site.keep("tables");
    let begun = segments(&site.part("journal"));
    site.run(false, || site.send(3..6)).await;
    // The journal still has everything that these tables lack.
    assert_eq!(segments(&site.part("journal"))[0], begun[0]);
    site.put_back("tables");
    site.run(false, || site.send_a_segment(6)).await;
    let good = site.folder.path().join("good");
    copy(&site.part("tables"), &good);

    // Now it has not: what the tables lack was deleted, because newer tables had it.
    site.put_back("tables");
    let said = site.refused();
    assert_says(
        &said,
        &[
            "the journal begins at commit",
            "the index is older than the journal",
            "restore index and journal",
        ],
    );
    // The refusal changed nothing: with the right tables all is there.
    fs::remove_dir_all(site.part("tables")).unwrap();
    copy(&good, &site.part("tables"));
    site.run(false, || site.receive(0..SEGMENT_OF_MESSAGES * 6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_journal_is_refused() {
    let site = Site::new();
    site.run(true, || site.send(0..3)).await;
    site.keep("journal");
    site.run(false, || site.send_a_segment(3)).await;
    let good = site.folder.path().join("good");
    copy(&site.part("journal"), &good);
    site.put_back("journal");
    let said = site.refused();
    assert_says(
        &said,
        &[
            "the journal ends at commit",
            "the index is newer than the journal",
            "restore index and journal",
        ],
    );
    // Nor without any.
    fs::remove_dir_all(site.part("journal")).unwrap();
    assert_says(
        &site.refused(),
        &["no journal", "restore journal and tables from the same moment"],
    );

    copy(&good, &site.part("journal"));
    site.run(false, || site.receive(0..SEGMENT_OF_MESSAGES * 6)).await;
}

#[tokio::test]
async fn an_empty_folder_is_refused_without_the_word() {
    let site = Site::new();
    let said = site.refused();
    let data = site.core().data.display().to_string();
    assert_says(&said, &[data.as_str(), "missing or empty", "--create"]);
    fs::create_dir_all(&site.core().data).unwrap();
    assert_says(&site.refused(), &["missing or empty", "--create"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_made_once_and_says_who_its_holders_are() {
    let site = Site::new();
    site.run(true, || site.send(0..1)).await;
    let data = site.core().data.display().to_string();
    // Made a second time: the word is for new folders only.
    let said = ended(serve(site.core(), &["--create"]));
    assert_says(&said, &[data.as_str(), "start without --create"]);

    let folder = site.dev.data.join("regions");
    let more: Regions = regions(&["us-east", "eu-west"]);
    let text = toml::to_string_pretty(more.region("eu-west").unwrap()).unwrap();
    fs::write(folder.join("eu-west.toml"), text).unwrap();
    // A file alone makes no region a holder: the store says who is.
    site.run(false, || site.receive(0..1)).await;
    fs::remove_file(folder.join("eu-west.toml")).unwrap();
    // What was read may be gone by now.
    site.run(false, || site.send(1..2)).await;
}
