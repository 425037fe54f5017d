//! The servers from outside: CPU time and memory of their processes from `/proc`, counters from their `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::server::metrics::names;
use crate::server::regions::Regions;

/// Linux counts the CPU time that it shows to users in hundredths of a second, whatever the kernel's own clock.
const TICK_MS: u64 = 10;
/// One scrape of a node.
const SCRAPE: Duration = Duration::from_secs(2);
/// More than the metrics of a node take.
const MAX_SCRAPE: u64 = 4 * 1024 * 1024;

/// The servers that can be seen from here.
#[derive(Debug, Default)]
pub(super) struct Servers {
    pub(super) pids: Vec<u32>,
    admin: Vec<SocketAddr>,
}

/// What was seen at one instant.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    /// The processes, by number, with the kernel's time of their start: a number may come again. None where it is gone.
    pub(super) processes: BTreeMap<u32, Option<u64>>,
    /// CPU milliseconds of all processes.
    pub(super) cpu_ms: u64,
    /// CPU milliseconds by thread name.
    pub(super) threads: BTreeMap<String, u64>,
    /// Resident bytes of all processes.
    pub(super) rss: u64,
    /// Counters summed over nodes and labels; none where not every node answered.
    pub(super) metrics: Option<Counters>,
    /// Incarnations of the nodes, in their order, up to the first that did not answer: those that started again count from 0.
    pub(super) generations: Vec<Option<u64>>,
}

/// What can be said of the servers between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// The same ones ran all the time.
    Ran,
    /// One ended or was started again: neither its CPU time nor its counters go on from where they were.
    Restarted,
}

impl Sight {
    pub(super) fn since(&self, before: &Self) -> Meanwhile {
        let mut generations = before.generations.iter().zip(&self.generations);
        let again = generations.any(|(before, after)| before.is_some() && after.is_some() && before != after);
        let gone = self.processes.values().any(Option::is_none);
        if again || gone || self.processes != before.processes {
            Meanwhile::Restarted
        } else {
            Meanwhile::Ran
        }
    }
}

/// The metrics that are read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) acked: f64,
    pub(super) commits: f64,
    pub(super) commit_operations: f64,
    pub(super) commit_seconds: f64,
    pub(super) deposits: Hop,
    pub(super) deliveries: Hop,
    pub(super) link: Hop,
    pub(super) peer: Hop,
}

/// What went over a hop between servers, and in how many batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Hop {
    pub(super) entries: f64,
    pub(super) batches: f64,
}

impl Hop {
    /// The mean size of a batch since `before`; none where nothing went over it.
    pub(super) fn mean_since(self, before: Self) -> Option<f64> {
        let batches = self.batches - before.batches;
        (batches > 0.0).then(|| (self.entries - before.entries) / batches)
    }
}

impl Servers {
    /// Those of a data folder of `iris dev`, with the processes named or those that it noted.
    pub(super) fn find(data: &Path, pids: &[u32]) -> Self {
        let mut pids = pids.to_vec();
        if pids.is_empty() {
            let noted = std::fs::read(data.join("pids.json")).ok();
            let noted: BTreeMap<String, u32> = noted
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default();
            pids.extend(noted.into_values().filter(|pid| is_iris(*pid)));
        }
        pids.sort_unstable();
        pids.dedup();
        let admin = Regions::load_folder(&data.join("regions")).map_or_else(
            |_| Vec::new(),
            |regions| {
                let nodes = regions.iter().flat_map(|region| &region.nodes);
                nodes.map(|node| node.admin_http).collect()
            },
        );
        Self { pids, admin }
    }

    pub(super) async fn look(&self) -> Sight {
        let mut sight = Sight::default();
        for pid in &self.pids {
            sight.processes.insert(*pid, born(*pid));
            sight.cpu_ms += cpu_ms(&format!("/proc/{pid}/stat")).unwrap_or(0);
            sight.rss += rss(*pid).unwrap_or(0);
            for (name, ms) in threads(*pid) {
                *sight.threads.entry(name).or_default() += ms;
            }
        }
        let mut counters = Counters::default();
        for addr in &self.admin {
            let asked = async {
                std::io::Result::Ok((scrape(*addr, "/metrics").await?, scrape(*addr, "/readyz").await?))
            };
            let Ok(Ok((text, ready))) = tokio::time::timeout(SCRAPE, asked).await else {
                return sight;
            };
            counters.add(&text);
            sight.generations.push(generation(&ready));
        }
        if !self.admin.is_empty() {
            sight.metrics = Some(counters);
        }
        sight
    }
}

/// CPU milliseconds of this process.
pub(super) fn own_cpu_ms() -> u64 {
    cpu_ms("/proc/self/stat").unwrap_or(0)
}

impl Counters {
    fn add(&mut self, text: &str) {
        let sum = |name: &str| -> f64 {
            let of = |line: &str| {
                let rest = line.strip_prefix(name)?;
                let value = match rest.strip_prefix('{') {
                    Some(labels) => labels.split_once("} ")?.1,
                    None => rest.strip_prefix(' ')?,
                };
                value.parse::<f64>().ok()
            };
            text.lines().filter_map(of).sum()
        };
        self.acked += sum(&format!("{}_total", names::DELIVERY_ACKED));
        self.commits += sum(&format!("{}_count", names::STORE_COMMIT_OPERATIONS));
        self.commit_operations += sum(&format!("{}_sum", names::STORE_COMMIT_OPERATIONS));
        self.commit_seconds += sum(&format!("{}_sum", names::STORE_COMMIT_SECONDS));
        for (hop, entries, batches) in [
            (
                &mut self.deposits,
                names::EDGE_DEPOSITS,
                names::EDGE_DEPOSIT_BATCHES,
            ),
            (
                &mut self.deliveries,
                names::DELIVERY_DELIVERED,
                names::DELIVERY_BATCHES,
            ),
            (&mut self.link, names::LINK_SHIPPED, names::LINK_BATCHES),
            (&mut self.peer, names::PEER_MESSAGES, names::PEER_WRITES),
        ] {
            hop.entries += sum(&format!("{entries}_total"));
            hop.batches += sum(&format!("{batches}_total"));
        }
    }
}

/// What an answer of `/readyz` says of the node's incarnation.
fn generation(ready: &str) -> Option<u64> {
    let body = ready.split_once("\r\n\r\n")?.1;
    serde_json::from_str::<serde_json::Value>(body).ok()?["generation"].as_u64()
}

async fn scrape(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.take(MAX_SCRAPE).read_to_string(&mut text).await?;
    Ok(text)
}

/// A process id that was noted may belong to something else by now.
fn is_iris(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("iris"))
}

fn cpu_ms(stat: &str) -> Option<u64> {
    // User and system time.
    Some((stat_field(stat, 11)? + stat_field(stat, 12)?) * TICK_MS)
}

/// When a process was started, as the kernel counts since it booted; none where it is gone or only waits to be buried.
fn born(pid: u32) -> Option<u64> {
    rss(pid)?;
    stat_field(&format!("/proc/{pid}/stat"), 19)
}

/// A number in a `stat` file of `/proc`, counted from 0 after the name, which may hold anything.
fn stat_field(stat: &str, at: usize) -> Option<u64> {
    let text = std::fs::read_to_string(stat).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    fields.nth(at)?.parse().ok()
}

fn rss(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn threads(pid: u32) -> BTreeMap<String, u64> {
    let mut by_name = BTreeMap::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return by_name;
    };
    for task in tasks.flatten() {
        let name = std::fs::read_to_string(task.path().join("comm"));
        let ms = task.path().join("stat").to_str().and_then(cpu_ms);
        if let (Ok(name), Some(ms)) = (name, ms) {
            *by_name.entry(name.trim_end().to_owned()).or_default() += ms;
        }
    }
    by_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_they_are_served() {
        let metrics = crate::server::metrics::Metrics::new("a", "b");
        metrics.acked.inc_by(5);
        metrics.commit_operations.observe(8);
        metrics.commit_operations.observe(2);
        metrics.edge_deposits.inc_by(12);
        metrics.edge_deposit_batches.inc_by(3);
        metrics.peer_messages.inc_by(9);
        metrics.peer_writes.inc_by(2);
        let mut counters = Counters::default();
        counters.add(&metrics.encode());
        assert_eq!(counters.deposits.mean_since(Hop::default()), Some(4.0));
        assert_eq!(counters.peer.mean_since(Hop::default()), Some(4.5));
        assert_eq!(counters.peer.mean_since(counters.peer), None, "nothing since");
        assert_eq!(counters.link.mean_since(Hop::default()), None);
        counters.add("iris_delivery_acked_total{region=\"x\"} 2\niris_delivery_acked_totals 9\n");
        assert_eq!((counters.acked, counters.commits), (7.0, 2.0));
        assert!((counters.commit_operations - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_server_that_ended_or_was_started_again_is_seen() {
        let sight = |born, generations: &[Option<u64>]| Sight {
            processes: BTreeMap::from([(7, born)]),
            generations: generations.to_vec(),
            ..Sight::default()
        };
        let before = sight(Some(100), &[Some(1), Some(2)]);
        for (born, generations, expected) in [
            (Some(100), [Some(1), Some(2)].as_slice(), Meanwhile::Ran),
            (Some(100), &[Some(1)], Meanwhile::Ran),
            (Some(100), &[Some(1), None], Meanwhile::Ran),
            (Some(100), &[Some(1), Some(3)], Meanwhile::Restarted),
            (Some(101), &[Some(1), Some(2)], Meanwhile::Restarted),
            (None, &[Some(1)], Meanwhile::Restarted),
        ] {
            let after = sight(born, generations);
            assert_eq!(after.since(&before), expected, "{after:?}");
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let running = born(child.id());
        assert!(running.is_some() && running == born(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(born(child.id()), None);
    }

    #[test]
    fn a_process_can_be_seen() {
        let pid = std::process::id();
        assert!(rss(pid).unwrap() > 100_000);
        assert!(cpu_ms("/proc/self/stat").is_some() && !threads(pid).is_empty());
    }
}
