//! What a drill's log says: pure arithmetic, without a clock. All times are microseconds.
//!
//! | part | what it measures |
//! |---|---|
//! | [`spread`] | percentiles, and what had to happen to each of some |
//! | [`track`] | nothing yet: the log put in order by message, session and watcher |
//! | [`recovery`] | RTO and the phases of a fault: detect, drain, decide, reconnect, steady |
//! | [`messages`] | losses, late ones, duplicates, disorder, latencies by phase |
//! | [`presence`] | who was shown what was not so, and for how long |
//!
//! The log must end before the drill closes its clients: what it shows last counts as how things stayed.

pub mod messages;
pub mod presence;
pub mod recovery;
pub mod spread;
#[cfg(test)]
mod tests;
pub mod track;

use serde::{Deserialize, Serialize};

use self::messages::{Counts, Found, Late, Phase, PhaseName};
use self::presence::{Lie, Presence};
use self::recovery::{Measured, Recovery, Senders};
use self::spread::Awaited;
use self::track::{Track, Window};
use super::log::{Client, Entry, Micros, Stream, What};

/// A fault of the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSpan {
    /// Its number in the plan, as in [`What::Begins`] and [`What::Ends`], which say when it was.
    pub fault: usize,
    /// The regions whose clients are its clients; all of them if none is named.
    pub struck: Vec<String>,
    /// For people.
    pub text: String,
}

impl FaultSpan {
    /// Whether a region's clients are its clients.
    pub fn strikes(&self, region: &str) -> bool {
        self.struck.is_empty() || self.struck.iter().any(|struck| struck == region)
    }
}

/// What a log says, in total and for each fault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measures {
    /// The time of the log's last entry.
    pub end: Micros,
    /// When the load ended, if it did.
    pub load_ends: Option<Micros>,
    /// Why the drill was broken off, if it was.
    pub aborted: Option<String>,
    /// How many messages and sessions.
    pub counts: Counts,
    /// RPO: accepted and handled by nobody by the end of the log. None may be.
    pub lost: Found,
    /// How long before its fault the oldest lost message was accepted: the greatest of all faults, 0 if none is lost. None if one
    /// is lost that was sent after its fault had begun, or without any fault: no point in time explains that.
    pub rpo: Option<Micros>,
    /// Handled again by the same client: duplicates in effect. None may be.
    pub duplicates: Found,
    /// Handled after one that the same sender sent to the same recipient later, in one session and accepted in one region. None
    /// may be.
    pub disorder: Found,
    /// Handled after one that the same sender sent to the same recipient later, in another session or accepted in another
    /// region: no order is promised between those.
    #[serde(default)]
    pub overtaken: Found,
    /// Neither accepted nor refused.
    pub never_answered: Found,
    /// Handled by another client than the recipient, or answered or handled without having been sent. None may be.
    pub stray: Found,
    /// [`Recovery::rto`] of all faults.
    pub rto: Awaited,
    /// [`Recovery::outage`] of all faults.
    pub outage: Awaited,
    /// [`Recovery::reconnect`] of all faults.
    pub reconnect: Awaited,
    /// [`FaultMeasures::unreachable`] of all faults.
    pub unreachable: Awaited,
    /// [`FaultMeasures::back`] of all faults.
    pub back: Awaited,
    /// Presence that was not so.
    pub presence: Presence,
    /// From the last end of a fault or the end of the load, whichever is later, until every accepted message is handled, but
    /// those that are [lost](Self::lost), and every watcher shows what is so, and goes on to. None if that is not reached, if
    /// nothing ended, or if the drill was broken off.
    pub convergence: Option<Micros>,
    /// Latencies by phase: before, during and after each fault, and in total; messages belong where they were sent.
    pub phases: Vec<Phase>,
    /// Each fault of the plan, in its order.
    pub faults: Vec<FaultMeasures>,
}

impl Measures {
    /// The p99 from sending to handled over the whole drill, if anything was handled.
    pub fn p99_handled(&self) -> Option<Micros> {
        let total = self.phases.iter().find(|phase| phase.name == PhaseName::Total)?;
        Some(total.handled?.p99)
    }
}

/// What a log says of a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultMeasures {
    /// Which.
    #[serde(flatten)]
    pub span: FaultSpan,
    /// When it began; none if it never did.
    pub begins: Option<Micros>,
    /// When it had ended; none if it never did.
    pub ends: Option<Micros>,
    /// How its clients got over it.
    pub recovery: Recovery,
    /// Lost messages that are put down to it: accepted while it was under way, or before it and after the fault before.
    pub lost: Found,
    /// How long before its beginning the oldest of them was accepted; 0 if none is lost, none if one of them was sent after it.
    pub rpo: Option<Micros>,
    /// Accepted before it and handled only after its end: late, not lost.
    pub late: Late,
    /// From its beginning until a watcher elsewhere is told that a pinned client of a struck region is unreachable, for
    /// each such pair. None are awaited where the fault names no region.
    pub unreachable: Awaited,
    /// From its end until the watcher is shown the client online again, for each pair that was told unreachable.
    pub back: Awaited,
    /// From its end until all that was accepted before its end is handled, but what is lost, and for a moment at least every
    /// watcher shows what is so. None if that is not reached.
    pub settled: Option<Micros>,
}

/// What a log says. Entries must be in the order of their times.
pub fn measure(clients: &[Client], faults: &[FaultSpan], log: &[Entry]) -> Measures {
    let track = Track::of(clients, log);
    let senders = Senders::of(&track);
    let lies = presence::lies(&track);
    let mut windows: Vec<(usize, Window)> = faults
        .iter()
        .enumerate()
        .filter_map(|(place, span)| Some((place, track.window(span.fault)?)))
        .collect();
    windows.sort_by_key(|(_, window)| window.begins);
    let mut totals = Totals::default();
    let mut each: Vec<FaultMeasures> = faults
        .iter()
        .map(|span| match track.window(span.fault) {
            Some(window) => of_fault(&track, &senders, &lies, span, window, &mut totals),
            None => FaultMeasures {
                span: span.clone(),
                ..FaultMeasures::default()
            },
        })
        .collect();
    blame(&track, &windows, &mut each);
    let numbered: Vec<(usize, Window)> = windows
        .iter()
        .map(|(place, window)| (faults[*place].fault, *window))
        .collect();
    let (disorder, overtaken) = messages::disorder(&track, &first_handlings(&track, log));
    Measures {
        end: track.end,
        load_ends: track.load_ends,
        aborted: track.aborted.map(|(_, why)| why.to_owned()),
        counts: messages::counts(&track),
        lost: messages::which(&track, |message| message.lost()),
        rpo: rpo(&track, &windows, &each),
        duplicates: messages::duplicates(&track),
        disorder,
        overtaken,
        never_answered: messages::which(&track, |message| message.answered().is_none()),
        stray: track.stray.iter().copied().collect(),
        rto: Awaited::of(&totals.rto),
        outage: Awaited::of(&totals.outage),
        reconnect: Awaited::of(&totals.reconnect),
        unreachable: Awaited::of(&totals.unreachable),
        back: Awaited::of(&totals.back),
        presence: presence::presence(&track, &lies),
        convergence: convergence(&track, &lies),
        phases: messages::phases(&track, &numbered),
        faults: each,
    }
}

/// What a drill still waits for before its log may end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// Messages that were neither accepted nor refused.
    pub unanswered: u64,
    /// Messages that were accepted and not handled.
    pub unhandled: u64,
    /// Pairs of a watcher and a client of whom it is shown what is not so.
    pub wrong: u64,
}

/// What is still open at the end of a log: a drill waits until nothing is, or for as long as it may. A log that ends
/// earlier has no [`Measures::convergence`].
pub fn open(clients: &[Client], log: &[Entry]) -> Open {
    let track = Track::of(clients, log);
    Open {
        unanswered: messages::which(&track, |message| message.answered().is_none()).count,
        unhandled: messages::which(&track, |message| message.lost()).count,
        wrong: presence::lies(&track).iter().filter(|lie| lie.open).count() as u64,
    }
}

/// Of all faults together.
#[derive(Debug, Default)]
struct Totals {
    rto: Vec<Option<Micros>>,
    outage: Vec<Option<Micros>>,
    reconnect: Vec<Option<Micros>>,
    unreachable: Vec<Option<Micros>>,
    back: Vec<Option<Micros>>,
}

fn of_fault(
    track: &Track,
    senders: &Senders,
    lies: &[Lie],
    span: &FaultSpan,
    window: Window,
    totals: &mut Totals,
) -> FaultMeasures {
    let struck = recovery::struck(track, span, window.begins);
    let Measured {
        recovery,
        rto,
        outage,
        reconnect,
    } = recovery::recovery(track, senders, &struck, window);
    // Where all regions are struck, it is not said whom nobody can reach.
    let told = match span.struck.is_empty() {
        true => presence::Told::default(),
        false => presence::told(track, &struck, window),
    };
    let measures = FaultMeasures {
        span: span.clone(),
        begins: Some(window.begins),
        ends: window.ends,
        recovery,
        late: messages::late(track, window),
        unreachable: Awaited::of(&told.unreachable),
        back: Awaited::of(&told.back),
        settled: window.ends.and_then(|ends| settled(track, lies, ends)),
        rpo: Some(0),
        ..FaultMeasures::default()
    };
    totals.rto.extend(rto);
    totals.outage.extend(outage);
    totals.reconnect.extend(reconnect);
    totals.unreachable.extend(told.unreachable);
    totals.back.extend(told.back);
    measures
}

/// Puts each lost message down to a fault.
fn blame(track: &Track, windows: &[(usize, Window)], each: &mut [FaultMeasures]) {
    let mut lost = vec![Vec::new(); each.len()];
    for (number, message) in &track.messages {
        let Some(accepted) = message.accepted.filter(|_| message.lost()) else {
            continue;
        };
        let Some(place) = messages::blamed(windows, accepted) else {
            continue;
        };
        lost[place].push(*number);
        // What was sent before it and heard of as accepted after it was accepted around its beginning.
        let begins = each[place].begins.filter(|begins| message.sent < *begins);
        let age = begins.map(|begins| begins.saturating_sub(accepted));
        each[place].rpo = each[place].rpo.zip(age).map(|(most, age)| most.max(age));
    }
    for (fault, lost) in each.iter_mut().zip(lost) {
        fault.lost = lost.into_iter().collect();
    }
}

/// Of all faults that began.
fn rpo(track: &Track, windows: &[(usize, Window)], each: &[FaultMeasures]) -> Option<Micros> {
    if windows.is_empty() {
        let lost = track.messages.values().any(|message| message.lost());
        return (!lost).then_some(0);
    }
    let mut most = 0;
    for (place, _) in windows {
        most = most.max(each[*place].rpo?);
    }
    Some(most)
}

/// The numbers of messages in the order in which their recipients first handled them, and within what their order is promised.
fn first_handlings(track: &Track, log: &[Entry]) -> Vec<(u64, Option<Stream>)> {
    let mut seen = std::collections::BTreeSet::new();
    let mut numbers = Vec::new();
    for entry in log {
        if let What::Handled {
            number,
            client,
            stream,
        } = entry.what
            && track
                .messages
                .get(&number)
                .is_some_and(|message| message.to == client)
            && seen.insert(number)
        {
            numbers.push((number, stream));
        }
    }
    numbers
}

/// From the later of the last fault's and the load's end until nothing is open.
fn convergence(track: &Track, lies: &[Lie]) -> Option<Micros> {
    if track.aborted.is_some() {
        return None;
    }
    let from = track.ends.values().copied().chain(track.load_ends).max()?;
    let mut until = handled_until(track, from, Micros::MAX);
    for lie in lies {
        if lie.open {
            return None;
        }
        until = until.max(lie.to);
    }
    Some(until - from)
}

/// From a fault's end until what was accepted by then is handled, and nothing wrong is shown.
fn settled(track: &Track, lies: &[Lie], ends: Micros) -> Option<Micros> {
    let until = handled_until(track, presence::first_true(lies, ends)?, ends);
    Some(until - ends)
}

/// When the last of those was handled that were accepted until then, and not before a time. What is lost is counted as that.
fn handled_until(track: &Track, not_before: Micros, accepted: Micros) -> Micros {
    let all = track.messages.values();
    let those = all.filter(|message| message.accepted.is_some_and(|at| at <= accepted));
    let handled = those.filter_map(|message| message.handled.first().copied());
    handled.fold(not_before, Micros::max)
}
