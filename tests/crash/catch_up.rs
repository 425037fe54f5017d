//! A region that was away while a long backlog came together, and takes it while others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use iris::client::{Client, ClientEvent};
use serde_json::Value;

use crate::common::members::{Load, Member};
use crate::common::{number_in, send_all, within};
use crate::processes::{Site, iris};

const REGIONS: [&str; 3] = ["us-east", "eu-west", "ap-south"];
/// The one that is away.
const AWAY: &str = "eu-west";
/// Messages that come together, unless the environment says another number.
const MESSAGES: u64 = 20_000;
/// Their recipients. Each has far less than an inbox holds.
const RECIPIENTS: u64 = 100;
/// Clients that send the backlog.
const SENDERS: u64 = 8;
/// Clients of each of the other regions that go on, unless the environment says another number.
const CLIENTS: usize = 3;
/// How long they send before the region is lost, to compare with.
const USUAL: Duration = Duration::from_secs(10);
/// Between two looks at what waits: each is a process of its own, and asks every node.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The most memory that processes used, looked at all along.
struct Memory(BTreeMap<String, u64>);

impl Memory {
    fn look(&mut self, site: &Site) {
        for region in REGIONS {
            let name = format!("{region}-core");
            let status = std::fs::read_to_string(format!("/proc/{}/status", site.pid(&name)));
            let status = status.unwrap_or_default();
            let mut lines = status.lines().filter_map(|line| line.strip_prefix("VmRSS:"));
            let kib: u64 = lines
                .next()
                .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
                .unwrap_or(0);
            let most = self.0.entry(name).or_default();
            *most = (*most).max(kib);
        }
    }

    fn told(&self) -> String {
        let each = self.0.iter();
        let each: Vec<String> = each
            .map(|(name, kib)| format!("{name} {} MiB", kib / 1024))
            .collect();
        each.join(", ")
    }
}

/// What waits in the region that stayed for the one that was away: operations, as the operators' command says; `None` where
/// nobody takes it.
async fn waits(data: &Path) -> Option<u64> {
    let mut command = tokio::process::Command::from(iris());
    command
        .args(["link", "list", "--output", "json", "--node", "us-east-core"])
        .env("IRIS_DATA", data);
    let output = within("link list", command.output()).await.unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).ok()?;
    let links = list["links"].as_array()?.iter();
    let mut of_it = links
        .filter(|link| link["from"]["node"]["region"] == "us-east" && link["to"]["node"]["region"] == AWAY);
    let given = &of_it.next()?["given"];
    (given["open"] == true).then(|| given["lag"]["operations"].as_u64())?
}

fn clients() -> usize {
    std::env::var("IRIS_TEST_CATCH_UP_CLIENTS").map_or(CLIENTS, |text| text.parse().unwrap())
}

/// The threads of the region that takes the backlog get of the processors what the others leave, about as if it had its own.
fn give_way(site: &Site) {
    for node in ["core", "edge"] {
        let tasks = format!("/proc/{}/task", site.pid(&format!("{AWAY}-{node}")));
        let threads = std::fs::read_dir(tasks).unwrap();
        let threads = threads.map(|thread| thread.unwrap().file_name());
        let mut renice = std::process::Command::new("renice");
        let done = renice.args(["-n", "19", "-p"]).args(threads).output();
        assert!(done.is_ok_and(|done| done.status.success()), "`renice` is needed");
    }
}

/// The stores of the region that takes the backlog lie in memory, so that they do not share a disk with those of the others; gone
/// with what is returned.
fn own_disk(site: &Site) -> tempfile::TempDir {
    let disk = tempfile::tempdir_in("/dev/shm").unwrap();
    let nodes = std::fs::read_dir(site.path().join("nodes")).unwrap();
    for node in nodes.map(|node| node.unwrap()) {
        let name = node.file_name().into_string().unwrap();
        if !name.starts_with(AWAY) {
            continue;
        }
        let to = disk.path().join(&name);
        let mut copy = std::process::Command::new("cp");
        let done = copy.arg("-a").arg(node.path()).arg(&to).status();
        assert!(done.is_ok_and(|done| done.success()), "`cp` is needed");
        std::fs::remove_dir_all(node.path()).unwrap();
        std::os::unix::fs::symlink(&to, node.path()).unwrap();
    }
    disk
}

async fn members(site: &Site, word: &str) -> Vec<Member> {
    let mut members = Vec::new();
    for region in REGIONS.into_iter().filter(|region| *region != AWAY) {
        for n in 0..clients() {
            let config = |name: &str| site.config(region, name);
            members.push(Member::start(&format!("{word}-{region}-{n}"), config).await);
        }
    }
    members
}

/// All that waits for a user is there, once, in order for each sender.
async fn read(client: Client, expected: u64) {
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < expected {
        match within("a message of the backlog", client.next()).await {
            Some(ClientEvent::Message(message)) => {
                let number = number_in(&message.body);
                assert!(seen.insert(number), "{number} comes twice");
                client.consumed(message.at);
            }
            Some(ClientEvent::Rejected { .. } | ClientEvent::Hole(_)) | None => {
                panic!("after {}", seen.len())
            }
            Some(_) => {}
        }
    }
    assert_eq!(seen.last(), Some(&(expected - 1)));
    client.close().await;
}

/// `IRIS_TEST_CATCH_UP=1000000 cargo test --release --test crash catch_up -- --nocapture` is the long run; with
/// `IRIS_TEST_CATCH_UP_RATE=2MiB` at another rate than the default, with `IRIS_TEST_CATCH_UP_CLIENTS=12` beside more of others, and with
/// `IRIS_TEST_CATCH_UP_APART=1` the region that takes it is about as if it were on another machine: its stores are in memory
/// (`/dev/shm`), its threads give way to the others (`renice`). That shows what is the others' own work.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_takes_a_backlog_while_others_go_on() {
    let messages = std::env::var("IRIS_TEST_CATCH_UP").map_or(MESSAGES, |text| text.parse().unwrap());
    let each = messages / RECIPIENTS / SENDERS;
    assert!(each > 0, "at least {} messages", RECIPIENTS * SENDERS);
    let messages = each * RECIPIENTS * SENDERS;
    let rate = std::env::var("IRIS_TEST_CATCH_UP_RATE");
    let settings: Vec<_> = rate
        .map(|rate| ("IRIS_LIMITS__CATCH_UP_BYTES", rate))
        .into_iter()
        .collect();
    // Declared first, so that it goes when no node uses it any more.
    let mut apart = None;
    let mut site = Site::start(&REGIONS, "", &settings).await;
    let usual_load = {
        let members = members(&site, "before").await;
        let load = Load::begin(&members);
        load.under_way().await;
        tokio::time::sleep(USUAL).await;
        load.settle(members).await
    };

    site.kill(AWAY);
    if std::env::var_os("IRIS_TEST_CATCH_UP_APART").is_some() {
        apart = Some(own_disk(&site));
    }
    let recipients: Vec<String> = (0..RECIPIENTS).map(|n| format!("waits-{n}")).collect();
    let began = Instant::now();
    let senders = (0..SENDERS).map(|n| {
        let client = Client::connect(site.config("us-east", &format!("fills-{n}"))).unwrap();
        let recipients = recipients.clone();
        async move {
            let to: Vec<&str> = recipients.iter().map(String::as_str).collect();
            send_all(&client, &to, n * each..(n + 1) * each, 100).await;
            client.close().await;
        }
    });
    let sending: Vec<_> = senders.map(tokio::spawn).collect();
    for sender in sending {
        sender.await.unwrap();
    }
    let filled = began.elapsed();

    let members = members(&site, "during").await;
    let began = Instant::now();
    site.run(|region| region == AWAY, false).await;
    let ready = began.elapsed();
    if apart.is_some() {
        give_way(&site);
    }
    let load = Load::begin(&members);
    load.under_way().await;
    let mut memory = Memory(BTreeMap::new());
    let mut most = 0;
    // Live messages are under way all the time: so little is none.
    let taken = async {
        loop {
            memory.look(&site);
            match waits(site.path()).await {
                Some(operations) if operations < 200 => return began.elapsed(),
                Some(operations) => most = most.max(operations),
                None => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let taken = tokio::time::timeout(Duration::from_secs(600), taken)
        .await
        .unwrap();
    let live = load.settle(members).await;
    let accounts = recipients.iter().map(|name| site.pinned(AWAY, name));
    let began = Instant::now();
    for some in accounts.collect::<Vec<_>>().chunks(10) {
        let clients = some.iter().map(|config| Client::connect(config.clone()).unwrap());
        let reading: Vec<_> = clients
            .map(|client| tokio::spawn(read(client, SENDERS * each)))
            .collect();
        for reader in reading {
            reader.await.unwrap();
        }
    }
    eprintln!(
        "{messages} messages came together in {filled:?}; {AWAY} was ready {ready:?} after its start and had taken them after \
         {taken:?} (up to {most} waited when looked at); most memory meanwhile: {}; read there in {:?}; others, before: \
         {usual_load}; meanwhile: {live}",
        memory.told(),
        began.elapsed(),
    );
}
