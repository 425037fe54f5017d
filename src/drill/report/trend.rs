//! Past drills in the order of time.

use super::Report;
use super::tables::worst;
use super::text::aligned;
use super::words::{date, grouped, maybe};
use crate::drill::measure::messages::PhaseName;

/// Past drills in the order of time, a line each.
pub fn trend(reports: &[Report]) -> String {
    let mut reports: Vec<&Report> = reports.iter().collect();
    reports.sort_by_key(|report| (report.identity.started_ms, &report.identity.name));
    let rows: Vec<Vec<String>> = reports.iter().map(|report| row(report)).collect();
    let head = [
        "drill",
        "started",
        "target",
        "verdict",
        "RTO",
        "lost",
        "accepted",
        "p99 handled",
        "converged",
    ];
    aligned(&head, &rows, "")
}

fn row(report: &Report) -> Vec<String> {
    let measures = &report.measures;
    let total = measures
        .phases
        .iter()
        .find(|phase| phase.name == PhaseName::Total);
    let p99 = total.and_then(|phase| phase.handled).map(|handled| handled.p99);
    vec![
        report.identity.name.clone(),
        date(report.identity.started_ms),
        report.identity.target.clone(),
        report.verdict().to_lowercase(),
        worst(&measures.rto),
        grouped(measures.lost.count),
        grouped(measures.counts.accepted),
        maybe(p99),
        maybe(measures.convergence),
    ]
}
