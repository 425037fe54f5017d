//! What became of the messages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spread::Spread;
use super::track::{Message, Track, Window};
use crate::drill::log::{Micros, Stream};

/// Most messages that are named where something is wrong with them.
pub const MAX_NUMBERS: usize = 100;

/// Messages of which something was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// How often.
    pub count: u64,
    /// The numbers of the first 100.
    pub numbers: Vec<u64>,
}

impl Found {
    /// One more.
    fn add(&mut self, number: u64) {
        self.count += 1;
        if self.numbers.len() < MAX_NUMBERS {
            self.numbers.push(number);
        }
    }
}

impl FromIterator<u64> for Found {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut found = Self::default();
        numbers.into_iter().for_each(|number| found.add(number));
        found
    }
}

/// How many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages that applications sent.
    pub sent: u64,
    /// Of them, accepted.
    pub accepted: u64,
    /// Of them, accepted and durable in another region, too.
    pub geo: u64,
    /// Refused for good.
    pub rejected: u64,
    /// Handled by their recipient at least once.
    pub handled: u64,
    /// Accepted with the remark that the server had accepted them before: what would be duplicates without dedup.
    pub recognised: u64,
    /// Times that a client was told that messages are gone.
    pub gone_told: u64,
    /// How many messages that were, where the server knew.
    pub gone: u64,
    /// Sessions that stood.
    pub sessions: u64,
}

/// Accepted before a fault, handled only after its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// How many.
    pub count: u64,
    /// The longest from accepted to handled, in microseconds.
    pub longest: Micros,
}

/// Which part of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "phase", content = "fault", rename_all = "kebab-case")]
pub enum PhaseName {
    /// Before the first fault.
    Before,
    /// From the beginning of this fault until its end.
    During(usize),
    /// From the end of this fault until something else begins.
    After(usize),
    /// All of it.
    Total,
}

/// The messages that were sent in a part of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Which part.
    #[serde(flatten)]
    pub name: PhaseName,
    /// From when, in microseconds.
    pub from: Micros,
    /// Until when, in microseconds.
    pub until: Micros,
    /// Messages that were sent in it.
    pub sent: u64,
    /// From sending to accepted, of those that were.
    pub accepted: Option<Spread>,
    /// From sending to first handled, of those that were.
    pub handled: Option<Spread>,
}

/// Counts of a log.
pub fn counts(track: &Track) -> Counts {
    let count =
        |of: fn(&Message) -> bool| track.messages.values().filter(|message| of(message)).count() as u64;
    let sessions = (0..track.clients.len()).map(|client| track.sessions(client).len() as u64);
    Counts {
        sent: count(|_| true),
        accepted: count(|message| message.accepted.is_some()),
        geo: count(|message| message.geo),
        rejected: count(|message| message.rejected.is_some()),
        handled: count(|message| !message.handled.is_empty()),
        recognised: count(|message| message.recognised),
        gone_told: track.gone.0,
        gone: track.gone.1,
        sessions: sessions.sum(),
    }
}

/// Messages of which something is so.
pub fn which(track: &Track, of: impl Fn(&Message) -> bool) -> Found {
    let those = track.messages.iter().filter(|(_, message)| of(message));
    those.map(|(number, _)| *number).collect()
}

/// Handled again by the same client: each time after the first.
pub fn duplicates(track: &Track) -> Found {
    let again = |(number, message): (&u64, &Message)| {
        let times = message.handled.len().saturating_sub(1);
        std::iter::repeat_n(*number, times)
    };
    track.messages.iter().flat_map(again).collect()
}

/// First handlings of a message after one that its sender sent to the same recipient later: where order is promised between
/// the two, and where it is not.
pub fn disorder(track: &Track, handled: &[(u64, Option<Stream>)]) -> (Found, Found) {
    let mut furthest: BTreeMap<(usize, usize), BTreeMap<Option<Stream>, usize>> = BTreeMap::new();
    let (mut disorder, mut overtaken) = (Found::default(), Found::default());
    for (number, stream) in handled {
        let Some(message) = track.messages.get(number) else {
            continue;
        };
        let streams = furthest.entry((message.from, message.to)).or_default();
        let passed = |last: Option<&usize>| last.is_some_and(|last| message.place < *last);
        if passed(streams.get(stream)) {
            disorder.add(*number);
        } else if passed(streams.values().max()) {
            overtaken.add(*number);
        }
        let last = streams.entry(*stream).or_insert(message.place);
        *last = (*last).max(message.place);
    }
    (disorder, overtaken)
}

/// Accepted before the fault, handled only after its end.
pub fn late(track: &Track, window: Window) -> Late {
    let mut late = Late::default();
    let Some(ends) = window.ends else {
        return late;
    };
    for message in track.messages.values() {
        let (Some(accepted), Some(handled)) = (message.accepted, message.handled.first()) else {
            continue;
        };
        if accepted < window.begins && *handled > ends {
            late.count += 1;
            late.longest = late.longest.max(handled - accepted);
        }
    }
    late
}

/// To which of the faults a lost message is put down: the one that was under way when it was accepted, or else the next,
/// or else the last.
pub fn blamed(windows: &[(usize, Window)], accepted: Micros) -> Option<usize> {
    let under_way =
        |window: &Window| window.begins <= accepted && window.ends.is_none_or(|ends| accepted <= ends);
    let during = windows.iter().rfind(|(_, window)| under_way(window));
    let next = || windows.iter().find(|(_, window)| window.begins > accepted);
    let found = during.or_else(next).or(windows.last());
    found.map(|(place, _)| *place)
}

/// The parts of a drill: windows in the order of their beginnings, each with its fault's number.
pub fn phases(track: &Track, windows: &[(usize, Window)]) -> Vec<Phase> {
    let mut spans = Vec::new();
    let first = windows.first().map(|(_, window)| window.begins);
    spans.extend(first.map(|begins| (PhaseName::Before, 0, begins)));
    for (fault, window) in windows {
        let ends = window.ends.unwrap_or(track.end);
        spans.push((PhaseName::During(*fault), window.begins, ends));
        if window.ends.is_some() {
            spans.push((PhaseName::After(*fault), ends, window.until));
        }
    }
    let mut phases: Vec<Phase> = spans
        .into_iter()
        .map(|(name, from, until)| phase(track, name, from, until, until))
        .collect();
    phases.push(phase(track, PhaseName::Total, 0, track.end, Micros::MAX));
    phases
}

fn phase(track: &Track, name: PhaseName, from: Micros, until: Micros, before: Micros) -> Phase {
    let all = track.messages.values();
    let sent = all.filter(|message| (from..before).contains(&message.sent));
    Phase {
        name,
        from,
        until,
        sent: sent.clone().count() as u64,
        accepted: Spread::of(sent.clone().filter_map(Message::until_accepted).collect()),
        handled: Spread::of(sent.filter_map(Message::until_handled).collect()),
    }
}
