//! The figures as tables: made once, drawn as text, Markdown and HTML.

use super::Report;
use super::words::{NOTHING, date, duration, grouped, maybe, moment, ordinal};
use crate::drill::log::Micros;
use crate::drill::measure::FaultMeasures;
use crate::drill::measure::messages::{Phase, PhaseName};
use crate::drill::measure::presence::Wrong;
use crate::drill::measure::spread::{Awaited, Spread};

/// How a limit that was kept is marked, and one that was not: not by colour alone.
pub const KEPT: &str = "✓ kept";
/// See [`KEPT`].
pub const BROKEN: &str = "✗ BROKEN";

/// A table.
#[derive(Debug)]
pub struct Table {
    /// What it shows.
    pub title: &'static str,
    /// How it is to be read; may be empty.
    pub about: &'static str,
    /// Its columns.
    pub head: Vec<&'static str>,
    /// Its rows, each as long as the head.
    pub rows: Vec<Vec<String>>,
}

/// The most important in one line.
pub fn summary(report: &Report) -> String {
    let measures = &report.measures;
    let mut parts = Vec::new();
    // What was broken off was cut short: nothing is known of how it would have ended.
    if report.aborted.is_some() {
        return format!(
            "{} messages accepted, {} of them handled by then",
            grouped(measures.counts.accepted),
            grouped(measures.counts.accepted.saturating_sub(measures.lost.count))
        );
    }
    if measures.rto.expected > 0 {
        parts.push(format!("RTO {}", worst(&measures.rto)));
    }
    parts.push(format!("RPO {}", rpo(measures.rpo, measures.lost.count)));
    parts.push(format!(
        "{} of {} accepted messages lost",
        match measures.lost.count {
            0 => "none".to_owned(),
            lost => grouped(lost),
        },
        grouped(measures.counts.accepted)
    ));
    for (what, count) in [
        ("handled twice", measures.duplicates.count),
        ("out of order", measures.disorder.count),
        ("never answered", measures.never_answered.count),
        ("refused", measures.counts.rejected),
    ] {
        if count > 0 {
            parts.push(format!("{} {what}", grouped(count)));
        }
    }
    parts.push(match measures.convergence {
        Some(took) => format!("converged in {}", duration(took)),
        None => "did not converge".to_owned(),
    });
    parts.join(" · ")
}

/// Each limit.
pub fn limits(report: &Report) -> Table {
    let rows = report.verdicts.iter().map(|verdict| {
        vec![
            verdict.name.clone(),
            verdict.limit(),
            verdict.measured(),
            if verdict.kept { KEPT } else { BROKEN }.to_owned(),
            verdict.note.clone().unwrap_or_default(),
        ]
    });
    Table {
        title: "Limits",
        about: "",
        head: vec!["limit", "allowed", "measured", "verdict", ""],
        rows: rows.collect(),
    }
}

/// All figures, without what is empty.
pub fn figures(report: &Report) -> Vec<Table> {
    let mut tables = vec![
        faults(report),
        phases(report),
        recovery(report),
        latencies(report),
        messages(report),
        told(report),
        wrong(report),
    ];
    tables.push(pairs(
        "What the servers said",
        "For context; the verdict does not rest on it.",
        report.observed.clone(),
    ));
    tables.retain(|table| !table.rows.is_empty());
    tables
}

/// Which drill it was, and with what.
pub fn identity(report: &Report) -> Table {
    let identity = &report.identity;
    let commit = match identity.commit.as_str() {
        "" => NOTHING,
        commit => commit,
    };
    let pinned = report.clients.iter().filter(|client| client.pinned).count();
    let mut rows = vec![
        ("drill".to_owned(), identity.name.clone()),
        ("target".to_owned(), identity.target.clone()),
        ("started".to_owned(), date(identity.started_ms)),
        ("lasted".to_owned(), moment(report.measures.end)),
        ("seed".to_owned(), identity.seed.to_string()),
        ("version".to_owned(), identity.version.clone()),
        ("commit".to_owned(), commit.to_owned()),
        (
            "clients".to_owned(),
            format!(
                "{}, {pinned} of them pinned to their region",
                report.clients.len()
            ),
        ),
    ];
    rows.extend(report.identity.configuration.iter().cloned());
    rows.extend(
        report
            .log_file
            .iter()
            .map(|file| ("log".to_owned(), file.clone())),
    );
    pairs("Identity", "", rows)
}

fn pairs(title: &'static str, about: &'static str, rows: Vec<(String, String)>) -> Table {
    Table {
        title,
        about,
        head: vec!["", ""],
        rows: rows.into_iter().map(|(name, value)| vec![name, value]).collect(),
    }
}

fn faults(report: &Report) -> Table {
    let rows = report.measures.faults.iter().map(|fault| {
        let lasted = fault
            .begins
            .zip(fault.ends)
            .map(|(begins, ends)| duration(ends - begins));
        vec![
            ordinal(fault.span.fault).to_string(),
            fault.span.text.clone(),
            struck(fault),
            fault.begins.map_or_else(|| "never".to_owned(), moment),
            match fault.begins {
                Some(_) => lasted.unwrap_or_else(|| "to the end".to_owned()),
                None => NOTHING.to_owned(),
            },
            fault.recovery.clients.to_string(),
            fault.recovery.pinned.to_string(),
        ]
    });
    Table {
        title: "Faults",
        about: "Clients whose region it struck; the pinned ones cannot go elsewhere, and count for presence only.",
        head: vec!["#", "what", "struck", "began at", "lasted", "clients", "pinned"],
        rows: rows.collect(),
    }
}

fn struck(fault: &FaultMeasures) -> String {
    match fault.span.struck.is_empty() {
        true => "all".to_owned(),
        false => fault.span.struck.join(", "),
    }
}

fn begun(report: &Report) -> impl Iterator<Item = &FaultMeasures> {
    report
        .measures
        .faults
        .iter()
        .filter(|fault| fault.begins.is_some())
}

fn phases(report: &Report) -> Table {
    let rows = begun(report).map(|fault| {
        let of = &fault.recovery;
        let mut row = vec![
            ordinal(fault.span.fault).to_string(),
            maybe(of.detect),
            maybe(of.drain),
            maybe(of.decide),
        ];
        row.extend(spread(of.reconnect.spread).into_iter().take(3));
        row.push(worst(&of.reconnect));
        row.push(of.steady.map_or_else(
            || match of.steady_at {
                Some(_) => "not reached".to_owned(),
                None => NOTHING.to_owned(),
            },
            duration,
        ));
        row.push(match fault.ends {
            Some(_) => fault.settled.map_or_else(|| "not reached".to_owned(), duration),
            None => NOTHING.to_owned(),
        });
        row
    });
    Table {
        title: "Phases",
        about: "detect: until the first session ended; drain: until the last had; decide: from the first end until one was \
                back; reconnect: each client's time without a session; steady: from the last reconnect until p99 is at \
                most twice that before the fault; settled: from the fault's end until what was accepted by then is handled \
                and presence is right.",
        head: vec![
            "#",
            "detect",
            "drain",
            "decide",
            "reconnect p50",
            "p90",
            "p99",
            "max",
            "steady",
            "settled",
        ],
        rows: rows.collect(),
    }
}

fn recovery(report: &Report) -> Table {
    let row = |name: String, rto: &Awaited, outage: &Awaited, lost: u64, rpo: Option<Micros>| {
        let [p50, p90, ..] = spread(rto.spread);
        vec![
            name,
            format!("{} of {}", rto.expected - rto.missing, rto.expected),
            p50,
            p90,
            worst(rto),
            worst(outage),
            grouped(lost),
            self::rpo(rpo, lost),
        ]
    };
    let mut rows = Vec::new();
    for fault in begun(report) {
        let of = &fault.recovery;
        let mut row = row(
            ordinal(fault.span.fault).to_string(),
            &of.rto,
            &of.outage,
            fault.lost.count,
            fault.rpo,
        );
        row.push(grouped(fault.late.count));
        row.push(worst(&of.rto_pinned));
        rows.push(row);
    }
    if rows.len() > 1 {
        let of = &report.measures;
        let mut row = row("all".to_owned(), &of.rto, &of.outage, of.lost.count, of.rpo);
        row.extend([NOTHING.to_owned(), NOTHING.to_owned()]);
        rows.push(row);
    }
    Table {
        title: "Recovery",
        about: "RTO: from the fault until each client's first message sent afterwards is accepted; outage: the longest that \
                one of their messages waited for an answer; RPO: how long before the fault the oldest lost message was \
                accepted, 0 where none is lost; late: accepted before the fault, handled after its end; pinned: as RTO, for the clients that wait for \
                their region.",
        head: vec![
            "#",
            "came back",
            "RTO p50",
            "p90",
            "RTO",
            "outage",
            "lost",
            "RPO",
            "late",
            "pinned",
        ],
        rows,
    }
}

fn latencies(report: &Report) -> Table {
    let rows = report.measures.phases.iter().map(|phase| {
        let mut row = vec![phase_name(phase), grouped(phase.sent)];
        row.extend(spread(phase.accepted));
        row.extend(spread(phase.handled));
        row
    });
    Table {
        title: "Latency",
        about: "From sending to accepted, and from sending to handled by the recipient; by when messages were sent.",
        head: vec![
            "sent",
            "messages",
            "accepted p50",
            "p90",
            "p99",
            "max",
            "handled p50",
            "p90",
            "p99",
            "max",
        ],
        rows: rows.collect(),
    }
}

fn phase_name(phase: &Phase) -> String {
    match phase.name {
        PhaseName::Before => "before the first fault".to_owned(),
        PhaseName::During(fault) => format!("during fault {}", ordinal(fault)),
        PhaseName::After(fault) => format!("after fault {}", ordinal(fault)),
        PhaseName::Total => "in total".to_owned(),
    }
}

fn messages(report: &Report) -> Table {
    let of = &report.measures;
    let counts = &of.counts;
    let rows = [
        ("sent", counts.sent),
        ("accepted", counts.accepted),
        ("accepted, durable in another region, too", counts.geo),
        ("refused", counts.rejected),
        ("never answered", of.never_answered.count),
        ("handled", counts.handled),
        ("lost", of.lost.count),
        ("retries that the server recognised", counts.recognised),
        ("handled again (duplicates in effect)", of.duplicates.count),
        ("handled out of order", of.disorder.count),
        (
            "overtaken by what another region accepted, or another session sent",
            of.overtaken.count,
        ),
        ("misdelivered", of.stray.count),
        ("gone, as clients were told", counts.gone),
        ("sessions", counts.sessions),
    ];
    Table {
        title: "Messages",
        about: "",
        head: vec!["", "count"],
        rows: rows
            .map(|(name, count)| vec![name.to_owned(), grouped(count)])
            .to_vec(),
    }
}

fn told(report: &Report) -> Table {
    let mut rows = Vec::new();
    for fault in begun(report).filter(|fault| fault.unreachable.expected > 0) {
        let both = [("unreachable", &fault.unreachable), ("online again", &fault.back)];
        for (what, times) in both.into_iter().filter(|(_, times)| times.expected > 0) {
            let mut row = vec![ordinal(fault.span.fault).to_string(), what.to_owned()];
            row.push(format!(
                "{} of {}",
                times.expected - times.missing,
                times.expected
            ));
            row.extend(spread(times.spread).into_iter().take(2));
            // Many faults leave a region within reach: that nobody is told so is no news.
            row.push(match times.spread {
                None => "not shown".to_owned(),
                Some(_) => worst(times),
            });
            rows.push(row);
        }
    }
    Table {
        title: "What watchers were told of pinned clients",
        about: "Unreachable: from the fault's beginning; online again: from its end, where unreachable had been shown.",
        head: vec!["#", "shown", "told", "p50", "p90", "max"],
        rows,
    }
}

fn wrong(report: &Report) -> Table {
    let name = |client: usize| {
        let known = report.clients.get(client);
        known.map_or_else(|| format!("client {client}"), |client| client.name.clone())
    };
    let row = |what: &str, wrong: &Wrong| {
        let worst = wrong.worst.map(|worst| {
            format!(
                "{} as shown to {} at {}",
                name(worst.client),
                name(worst.watcher),
                moment(worst.at)
            )
        });
        vec![
            what.to_owned(),
            grouped(wrong.count),
            maybe(Some(wrong.longest).filter(|_| wrong.count > 0)),
            worst.unwrap_or_else(|| NOTHING.to_owned()),
        ]
    };
    let of = &report.measures.presence;
    Table {
        title: "Presence that was not so",
        about: "A change is late by as long as it takes to be told; what matters is the longest.",
        head: vec!["what", "times", "longest", "which"],
        rows: vec![
            row("ghosts (online without a session)", &of.ghosts),
            row("offline with a session", &of.false_offline),
            row("unreachable with a session", &of.false_unreachable),
        ],
    }
}

fn spread(spread: Option<Spread>) -> [String; 4] {
    let of = |of: fn(&Spread) -> Micros| maybe(spread.as_ref().map(of));
    [of(|s| s.p50), of(|s| s.p90), of(|s| s.p99), of(|s| s.max)]
}

/// An RPO, with so many messages lost.
pub fn rpo(rpo: Option<Micros>, lost: u64) -> String {
    match (rpo, lost) {
        (Some(rpo), _) => duration(rpo),
        // As a report of an earlier version has it.
        (None, 0) => duration(0),
        (None, _) => "unlimited (sent after the fault)".to_owned(),
    }
}

/// The time until it had happened to all.
pub fn worst(awaited: &Awaited) -> String {
    match (awaited.worst, awaited.missing) {
        (Some(worst), _) => duration(worst),
        (None, 0) => NOTHING.to_owned(),
        (None, missing) => format!("unlimited ({missing} never)"),
    }
}
