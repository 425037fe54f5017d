//! Past drills in the order of time.

use super::Report;
use super::tables::{rpo, worst};
use super::text::aligned;
use super::words::{date, grouped, maybe};

/// Past drills in the order of time, a line each.
pub fn trend<'a>(reports: impl IntoIterator<Item = &'a Report>) -> String {
    let mut reports: Vec<&Report> = reports.into_iter().collect();
    reports.sort_by_key(|report| (report.identity.started_ms, &report.identity.name));
    let rows: Vec<Vec<String>> = reports.iter().map(|report| row(report)).collect();
    let head = [
        "drill",
        "started",
        "target",
        "verdict",
        "RTO",
        "RPO",
        "lost",
        "accepted",
        "p99 handled",
        "converged",
    ];
    aligned(&head, &rows, "")
}

fn row(report: &Report) -> Vec<String> {
    let measures = &report.measures;
    vec![
        report.identity.name.clone(),
        date(report.identity.started_ms),
        report.identity.target.clone(),
        report.verdict().to_lowercase(),
        worst(&measures.rto),
        rpo(measures.rpo, measures.lost.count),
        grouped(measures.lost.count),
        grouped(measures.counts.accepted),
        maybe(measures.p99_handled()),
        maybe(measures.convergence),
    ]
}
