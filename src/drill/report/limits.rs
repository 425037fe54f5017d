//! What a drill allows, and whether it was kept.

use serde::{Deserialize, Serialize};

use super::words::{duration, grouped, ordinal};
use crate::drill::log::Micros;
use crate::drill::measure::Measures;
use crate::drill::measure::spread::Awaited;

/// What a drill allows; what is not given is not judged. A limit is kept when what was measured is at most as much. What
/// could not be measured is not kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// RTO in microseconds: [`Measures::rto`]. Not kept if a client never came back, or if of all clients of some fault
    /// nothing is known.
    pub rto_us: Option<Micros>,
    /// The longest that a client of a fault had a message waiting, in microseconds: [`Measures::outage`].
    pub outage_us: Option<Micros>,
    /// Accepted messages that nobody handled: [`Measures::lost`].
    pub lost: Option<u64>,
    /// RPO in microseconds: [`Measures::rpo`]. Not kept if a message is lost that was sent after its fault had begun.
    pub rpo_us: Option<Micros>,
    /// Duplicates in effect: [`Measures::duplicates`].
    pub duplicates: Option<u64>,
    /// Messages out of order: [`Measures::disorder`].
    pub disorder: Option<u64>,
    /// Messages neither accepted nor refused: [`Measures::never_answered`].
    pub never_answered: Option<u64>,
    /// Microseconds until the last watcher is told that clients of a struck region are unreachable:
    /// [`Measures::unreachable`].
    pub unreachable_us: Option<Micros>,
    /// Microseconds from a fault's end until the last watcher is shown them online again: [`Measures::back`].
    pub back_us: Option<Micros>,
    /// Microseconds until nothing is open: [`Measures::convergence`].
    pub convergence_us: Option<Micros>,
    /// The p99 of send to handled over the whole drill, faults included, in microseconds.
    pub p99_handled_us: Option<Micros>,
    /// At least so many messages must be accepted, so that the rest means something.
    pub accepted_at_least: Option<u64>,
    /// At least so many clients must lose a session by a fault, each counted with each fault: [`Measures::reconnect`].
    pub disconnected_at_least: Option<u64>,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Microseconds.
    Micros,
    /// Things.
    Count,
}

impl Unit {
    /// A number of them in words.
    pub(super) fn words(self, number: u64) -> String {
        match self {
            Self::Micros => duration(number),
            Self::Count => grouped(number),
        }
    }
}

/// Whether a limit was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which limit.
    pub name: String,
    /// What it counts.
    pub unit: Unit,
    /// It asks for at least so many, rather than at most.
    pub at_least: bool,
    /// The limit.
    pub limit: u64,
    /// What was measured, if it could be.
    pub measured: Option<u64>,
    /// Whether it was kept.
    pub kept: bool,
    /// What else is to be said: why nothing was measured, or which messages.
    pub note: Option<String>,
}

impl Verdict {
    /// The limit in words.
    pub(super) fn limit(&self) -> String {
        let sign = if self.at_least { "≥" } else { "≤" };
        format!("{sign} {}", self.unit.words(self.limit))
    }

    /// What was measured, in words.
    pub(super) fn measured(&self) -> String {
        self.measured
            .map_or_else(|| "not measured".to_owned(), |measured| self.unit.words(measured))
    }

    /// All of it in one line.
    pub(super) fn sentence(&self) -> String {
        let note = self.note.as_ref().map(|note| format!(" ({note})"));
        format!(
            "{}: {}, limit {}{}",
            self.name,
            self.measured(),
            self.limit(),
            note.unwrap_or_default()
        )
    }
}

impl Limits {
    /// Judges what was measured. That no message reaches anybody but its recipient is judged in every drill.
    ///
    /// Of a drill that was broken off only what cannot become right later: all else was cut short with it.
    pub fn judge(&self, measures: &Measures, broken_off: bool) -> Vec<Verdict> {
        let whole = if broken_off { Self::default() } else { *self };
        let lasting = Self {
            duplicates: self.duplicates,
            disorder: self.disorder,
            ..whole
        };
        lasting.judge_all(measures)
    }

    fn judge_all(&self, measures: &Measures) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let mut judge =
            |name: &str, unit, limit: Option<u64>, measured: Option<u64>, note: Option<String>| {
                verdicts.extend(limit.map(|limit| Verdict {
                    name: name.to_owned(),
                    unit,
                    at_least: false,
                    limit,
                    measured,
                    kept: measured.is_some_and(|measured| measured <= limit),
                    note,
                }));
            };
        let (micros, count) = (Unit::Micros, Unit::Count);
        let unknown = unknown_fault(measures);
        let rto = measures.rto.worst.filter(|_| unknown.is_none());
        let rto_note = awaited(&measures.rto, "clients came back").or(unknown);
        judge("RTO", micros, self.rto_us, rto, rto_note);
        let outage = &measures.outage;
        let outage_note = awaited(outage, "clients had all their messages answered");
        judge("outage", micros, self.outage_us, outage.worst, outage_note);
        let note = measures.rpo.is_none().then(|| unexplained(measures));
        judge("RPO", micros, self.rpo_us, measures.rpo, note);
        let found = [
            ("lost", self.lost, &measures.lost),
            ("duplicates in effect", self.duplicates, &measures.duplicates),
            ("out of order", self.disorder, &measures.disorder),
            ("never answered", self.never_answered, &measures.never_answered),
            ("misdelivered", Some(0), &measures.stray),
        ];
        for (name, limit, found) in found {
            judge(name, count, limit, Some(found.count), numbers(&found.numbers));
        }
        let unreachable = &measures.unreachable;
        let note = awaited(unreachable, "watchers were told");
        judge(
            "unreachable shown",
            micros,
            self.unreachable_us,
            unreachable.worst,
            note,
        );
        let back = &measures.back;
        let note = awaited(back, "watchers were told");
        judge("online again shown", micros, self.back_us, back.worst, note);
        let note = measures.convergence.is_none();
        let note = note.then(|| "some watcher is shown what is not so, or nothing ended".to_owned());
        judge(
            "convergence",
            micros,
            self.convergence_us,
            measures.convergence,
            note,
        );
        judge(
            "p99 send to handled",
            micros,
            self.p99_handled_us,
            measures.p99_handled(),
            None,
        );
        for (name, limit, measured) in [
            ("accepted", self.accepted_at_least, measures.counts.accepted),
            (
                "disconnected",
                self.disconnected_at_least,
                measures.reconnect.expected,
            ),
        ] {
            verdicts.extend(limit.map(|limit| Verdict {
                name: name.to_owned(),
                unit: Unit::Count,
                at_least: true,
                limit,
                measured: Some(measured),
                kept: measured >= limit,
                note: None,
            }));
        }
        verdicts
    }
}

/// Why something awaited has no time.
fn awaited(awaited: &Awaited, what: &str) -> Option<String> {
    match (awaited.expected, awaited.missing) {
        (0, _) => Some("there was nobody to measure it with".to_owned()),
        (_, 0) => None,
        (expected, missing) => Some(format!("only {} of {expected} {what}", expected - missing)),
    }
}

/// A fault of whose clients none sent anything: its RTO is unknown, whatever that of the others is.
fn unknown_fault(measures: &Measures) -> Option<String> {
    let mut faults = measures.faults.iter();
    let unknown =
        faults.find(|fault| fault.recovery.clients > 0 && fault.recovery.clients == fault.recovery.silent)?;
    Some(format!(
        "no client of fault {} sent anything after it began",
        ordinal(unknown.span.fault)
    ))
}

fn unexplained(measures: &Measures) -> String {
    format!(
        "{} lost, some of them sent after their fault had begun",
        grouped(measures.lost.count)
    )
}

/// The first few numbers of messages.
fn numbers(numbers: &[u64]) -> Option<String> {
    const FEW: usize = 5;
    let few: Vec<String> = numbers
        .iter()
        .take(FEW)
        .map(|number| format!("#{number}"))
        .collect();
    let more = if numbers.len() > FEW { ", …" } else { "" };
    (!few.is_empty()).then(|| format!("{}{more}", few.join(", ")))
}
