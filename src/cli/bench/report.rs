//! What a run found, as a table or as JSON.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::load::Totals;
use super::observe::{Meanwhile, Sight};

/// Why figures of the servers are missing.
const RESTARTED: &str = "a node ended or was started again meanwhile: CPU, memory and counters of the servers could not be measured";

/// The result of a run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// What was asked for.
    pub(super) load: BTreeMap<&'static str, String>,
    /// Seconds that were measured.
    pub(super) seconds: f64,
    pub(super) accepted_per_s: f64,
    pub(super) delivered_per_s: f64,
    /// By the servers' count; none where their metrics cannot be read.
    pub(super) acknowledged_per_s: Option<f64>,
    /// Milliseconds.
    pub(super) send_to_accepted: Latency,
    pub(super) send_to_delivered: Latency,
    pub(super) check: Check,
    pub(super) batches: Batches,
    /// None where their processes cannot be seen, or one of them did not run all the time.
    pub(super) server: Option<Server>,
    /// CPU microseconds of the load generator for each accepted message.
    pub(super) bench_cpu_us: f64,
    pub(super) idle: Option<Idle>,
    /// What went wrong, the first few.
    pub(super) notes: Vec<String>,
}

/// Percentiles in milliseconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    pub(super) max: f64,
}

/// Whether everything accepted was delivered once.
#[derive(Debug, Default, Serialize)]
pub(super) struct Check {
    pub(super) passed: bool,
    /// Why not.
    pub(super) failed: Vec<&'static str>,
    pub(super) sent: u64,
    /// Messages of an open loop that were due and not sent before the end: the client could not keep up.
    pub(super) not_sent: u64,
    pub(super) accepted: u64,
    pub(super) accepted_again: u64,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) unanswered: u64,
    pub(super) expected: u64,
    pub(super) delivered: u64,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    pub(super) wrong_recipient: u64,
    pub(super) holes: u64,
    pub(super) disconnects: u64,
}

/// Mean sizes of batches on the way.
#[derive(Debug, Default, Serialize)]
pub(super) struct Batches {
    /// Messages queued in one call.
    pub(super) send: f64,
    /// Frames written at once by a client, and read at once.
    pub(super) client_write: f64,
    pub(super) client_read: f64,
    /// Deposits in a message from an edge to an owner; like all that follow, over all nodes, and none where nothing went.
    pub(super) edge_deposits: Option<f64>,
    /// Messages for sessions in a message from an owner to an edge.
    pub(super) owner_deliveries: Option<f64>,
    /// Operations in a message from a region to another.
    pub(super) link_operations: Option<f64>,
    /// Messages in a write to another node.
    pub(super) peer_write: Option<f64>,
    /// Operations in a group commit.
    pub(super) commit_operations: Option<f64>,
    pub(super) commits_per_s: Option<f64>,
    /// Milliseconds of a group commit.
    pub(super) commit_ms: Option<f64>,
}

/// The processes of the servers.
#[derive(Debug, Default, Serialize)]
pub(super) struct Server {
    pub(super) pids: Vec<u32>,
    /// CPU microseconds for each accepted message.
    pub(super) cpu_us: f64,
    /// The same by thread name.
    pub(super) cpu_us_by_thread: BTreeMap<String, f64>,
    /// CPU cores in use.
    pub(super) cores: f64,
    pub(super) rss_mib: f64,
}

/// Idle connections.
#[derive(Debug, Default, Serialize)]
pub(super) struct Idle {
    pub(super) connections: usize,
    /// Resident bytes of the servers for each, if those can be seen.
    pub(super) bytes_each: Option<f64>,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

impl Report {
    /// What the connections counted.
    pub(super) fn of(totals: &Totals, lost: u64, seconds: f64) -> Self {
        let per_s = |count: u64| count as f64 / seconds;
        let unanswered = totals.sent - totals.answered();
        let reasons = [
            (totals.accepted == 0, "nothing was accepted"),
            (lost > 0, "accepted messages were not delivered"),
            (totals.duplicates > 0, "messages were delivered twice"),
            (totals.wrong > 0, "messages came to the wrong recipient"),
            (totals.holes > 0, "there were holes"),
        ];
        let failed: Vec<&str> = reasons
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, why)| *why)
            .collect();
        Self {
            seconds,
            accepted_per_s: per_s(totals.measured.accepted),
            delivered_per_s: per_s(totals.measured.delivered),
            send_to_accepted: Latency::of(&totals.accept_us),
            send_to_delivered: Latency::of(&totals.deliver_us),
            check: Check {
                passed: failed.is_empty(),
                failed,
                sent: totals.sent,
                not_sent: 0,
                accepted: totals.accepted,
                accepted_again: totals.accepted_again,
                refused: totals.rejected.clone(),
                unanswered,
                expected: totals.expected,
                delivered: totals.delivered,
                lost,
                duplicates: totals.duplicates,
                wrong_recipient: totals.wrong,
                holes: totals.holes,
                disconnects: totals.disconnects,
            },
            notes: totals.notes(),
            ..Self::default()
        }
    }

    /// Adds what the servers showed at the beginning and the end of the time that was measured.
    pub(super) fn servers(&mut self, pids: &[u32], before: &Sight, after: &Sight, accepted: u64) {
        if after.since(before) == Meanwhile::Restarted {
            self.notes.push(RESTARTED.to_owned());
            return;
        }
        if let (Some(before), Some(after)) = (before.metrics, after.metrics) {
            let commits = after.commits - before.commits;
            let operations = after.commit_operations - before.commit_operations;
            let time = after.commit_seconds - before.commit_seconds;
            self.acknowledged_per_s = Some((after.acked - before.acked) / self.seconds);
            self.batches.edge_deposits = after.deposits.mean_since(before.deposits);
            self.batches.owner_deliveries = after.deliveries.mean_since(before.deliveries);
            self.batches.link_operations = after.link.mean_since(before.link);
            self.batches.peer_write = after.peer.mean_since(before.peer);
            self.batches.commits_per_s = Some(commits / self.seconds);
            self.batches.commit_operations = Some(operations / commits.max(1.0));
            self.batches.commit_ms = Some(time * 1000.0 / commits.max(1.0));
        }
        if pids.is_empty() {
            return;
        }
        let each =
            |before: u64, after: u64| after.saturating_sub(before) as f64 * 1000.0 / accepted.max(1) as f64;
        let mut by_thread: BTreeMap<String, f64> = BTreeMap::new();
        for (name, ms) in &after.threads {
            let us = each(before.threads.get(name).copied().unwrap_or(0), *ms);
            if us > 0.0 {
                by_thread.insert(name.clone(), us);
            }
        }
        self.server = Some(Server {
            pids: pids.to_vec(),
            cpu_us: each(before.cpu_ms, after.cpu_ms),
            cpu_us_by_thread: by_thread,
            cores: after.cpu_ms.saturating_sub(before.cpu_ms) as f64 / 1000.0 / self.seconds,
            rss_mib: after.rss as f64 / 1024.0 / 1024.0,
        });
    }

    /// Rows of name and value.
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
        let maybe = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "not seen".to_owned(), |value| format!("{value:.digits$}"))
        };
        for (name, value) in &self.load {
            row(name, value.clone());
        }
        if let Some(idle) = &self.idle {
            row("idle connections", idle.connections.to_string());
            let each = idle.bytes_each.map(|bytes| bytes / 1024.0);
            row("server memory for each (KiB)", maybe(each, 1));
        }
        if self.seconds > 0.0 {
            row("accepted/s", format!("{:.0}", self.accepted_per_s));
            row("delivered/s", format!("{:.0}", self.delivered_per_s));
            row("acknowledged/s", maybe(self.acknowledged_per_s, 0));
            for (name, latency) in [
                ("send to accepted (ms)", &self.send_to_accepted),
                ("send to delivered (ms)", &self.send_to_delivered),
            ] {
                let Latency {
                    p50,
                    p90,
                    p99,
                    p99_9,
                    max,
                    ..
                } = latency;
                let text =
                    format!("p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p99_9:.2}  max {max:.2}");
                row(name, text);
            }
            self.batch_rows(&mut row, &maybe);
            self.check_rows(&mut row);
        }
        for note in &self.notes {
            row("note", note.clone());
        }
        rows
    }

    fn batch_rows(&self, row: &mut impl FnMut(&str, String), maybe: &impl Fn(Option<f64>, usize) -> String) {
        let batches = &self.batches;
        let text = format!(
            "send {:.1}  client write {:.1}  client read {:.1}  commit {}",
            batches.send,
            batches.client_write,
            batches.client_read,
            maybe(batches.commit_operations, 1)
        );
        row("mean batch", text);
        let text = format!(
            "edge to owner {}  owner to edge {}  between regions {}  peer write {}",
            maybe(batches.edge_deposits, 1),
            maybe(batches.owner_deliveries, 1),
            maybe(batches.link_operations, 1),
            maybe(batches.peer_write, 1)
        );
        row("mean batch of servers", text);
        let text = format!(
            "{} of {} ms",
            maybe(batches.commits_per_s, 0),
            maybe(batches.commit_ms, 2)
        );
        row("commits/s", text);
        match &self.server {
            None if self.notes.iter().any(|note| note == RESTARTED) => {
                row(
                    "server CPU",
                    "not measured: a node ended or was started again".to_owned(),
                );
            }
            None => row("server CPU", "not seen: name the processes with --pid".to_owned()),
            Some(server) => {
                let text = format!("{:.2} ({:.2} cores)", server.cpu_us, server.cores);
                row("server CPU (us/message)", text);
                for (name, us) in &server.cpu_us_by_thread {
                    row(&format!("  {name}"), format!("{us:.2}"));
                }
                row("server memory (MiB)", format!("{:.0}", server.rss_mib));
            }
        }
        row("bench CPU (us/message)", format!("{:.2}", self.bench_cpu_us));
    }

    fn check_rows(&self, row: &mut impl FnMut(&str, String)) {
        let check = &self.check;
        let text = format!(
            "{} sent, {} accepted, {} unanswered, {} not sent in time",
            check.sent, check.accepted, check.unanswered, check.not_sent
        );
        row("messages", text);
        let text = format!(
            "{} of {}: {} lost, {} twice, {} to the wrong recipient, {} holes",
            check.delivered, check.expected, check.lost, check.duplicates, check.wrong_recipient, check.holes
        );
        row("deliveries", text);
        for (code, count) in &check.refused {
            row(&format!("refused {code}"), count.to_string());
        }
        if check.disconnects > 0 {
            row("disconnects", check.disconnects.to_string());
        }
        let passed = if check.passed {
            "every accepted message was delivered once".to_owned()
        } else {
            format!("FAILED: {}", check.failed.join("; "))
        };
        row("check", passed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Plan, Shape};
    use super::*;

    fn totals() -> Totals {
        let shape = Shape {
            run: 1,
            regions: 1,
            users: 2,
            devices: 1,
            away: 0,
            away_share: 0.0,
            cross: false,
            return_home: true,
        };
        Totals::new(&Plan::new(shape).unwrap(), 2)
    }

    #[test]
    fn a_run_in_which_nothing_was_accepted_fails_with_the_reason() {
        let mut totals = totals();
        let report = Report::of(&totals, 0, 1.0);
        assert!(!report.check.passed);
        assert_eq!(report.check.failed, ["nothing was accepted"]);
        totals.accepted = 1;
        totals.sent = 1;
        assert!(Report::of(&totals, 0, 1.0).check.passed);
        assert!(!Report::of(&totals, 1, 1.0).check.passed);
    }

    #[test]
    fn what_is_noted_again_is_counted() {
        let mut totals = totals();
        for text in ["lost", "slow", "lost", "lost"] {
            totals.note(text.to_owned());
        }
        assert_eq!(Report::of(&totals, 0, 1.0).notes, ["lost (3 times)", "slow"]);
    }

    #[test]
    fn the_counts_of_a_server_that_was_started_again_are_not_shown() {
        let sight = |generation, acked| Sight {
            metrics: Some(super::super::observe::Counters {
                acked,
                ..Default::default()
            }),
            generations: vec![Some(7), Some(generation)],
            ..Sight::default()
        };
        let mut report = Report::of(&totals(), 0, 2.0);
        report.servers(&[7], &sight(1, 100.0), &sight(2, 165.0), 1);
        assert_eq!((report.acknowledged_per_s, report.notes.len()), (None, 1));
        assert!(report.server.is_none());
        let rows = report.rows();
        let cpu = rows.iter().find(|row| row[0] == "server CPU").unwrap();
        assert_eq!(cpu[1], "not measured: a node ended or was started again");
        let mut report = Report::of(&totals(), 0, 2.0);
        report.servers(&[], &sight(1, 100.0), &sight(1, 700.0), 1);
        assert_eq!(report.acknowledged_per_s, Some(300.0));
    }
}
