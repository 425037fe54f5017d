//! How long a fault kept its clients from working, phase by phase.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FaultSpan;
use super::spread::{Awaited, percentile};
use super::track::{Message, SECOND, Track, Window};
use crate::drill::log::Micros;

/// How much slower than before the fault the steady phase may be.
const STEADY_FACTOR: Micros = 2;

/// How the clients of a fault got over it. Its clients are those of the regions that it struck: whose last session before
/// it began there, or who prefer that region and never had one. Those of them that are pinned are asked apart: they cannot
/// go elsewhere, and come back when their region does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// How many clients are its clients and not pinned.
    pub clients: u64,
    /// How many of its clients are pinned.
    pub pinned: u64,
    /// How many of `clients` sent nothing after it began and have a session at the end: of them nothing is known.
    pub silent: u64,
    /// From the beginning until the first message that a client sent afterwards was accepted, or where it works at first
    /// and is cut off later, the longest that one of its messages then waited: the longer of both, for each of `clients`
    /// that is not silent. `worst` is the RTO, and `missing` the clients that never came back.
    pub rto: Awaited,
    /// The same for the pinned ones.
    pub rto_pinned: Awaited,
    /// The longest that a message of each of `clients` waited for an answer, from the beginning of the fault or its sending
    /// on: also finds clients that work at first and are cut off later. `missing` are those with a message never answered.
    pub outage: Awaited,
    /// From the beginning until the first session of its clients, pinned or not, ended, in microseconds; none if none did.
    pub detect: Option<Micros>,
    /// From the first session that ended until the last client's (its first) had, in microseconds.
    pub drain: Option<Micros>,
    /// From the first session that ended until one of those clients had a session again, in microseconds.
    pub decide: Option<Micros>,
    /// From the end of the session of each of `clients` that lost one until its next stood: 0 if another took its place at
    /// once.
    pub reconnect: Awaited,
    /// From the beginning until the last of `clients` that came back had a session again, in microseconds.
    pub reconnected: Option<Micros>,
    /// The p99 of send to handled that counts as steady, in microseconds: twice that of the messages sent between the
    /// end of the fault before (or the log's beginning) and this one.
    pub steady_at: Option<Micros>,
    /// From the last reconnect (or the fault's beginning, if no session ended) until the first whole second whose
    /// messages have a p99 of send to handled within `steady_at`, in microseconds. A message that was sent then and
    /// never handled counts as for ever; messages from and for its pinned clients do not count. None if that was not
    /// reached before the next fault.
    pub steady: Option<Micros>,
}

/// What all faults have in common.
#[derive(Debug)]
pub struct Senders<'a> {
    /// Each client's own messages as sent.
    own: BTreeMap<usize, Vec<&'a Message>>,
}

impl<'a> Senders<'a> {
    /// Of a log.
    pub fn of(track: &'a Track) -> Self {
        let mut own: BTreeMap<usize, Vec<&Message>> = BTreeMap::new();
        for message in track.messages.values() {
            own.entry(message.from).or_default().push(message);
        }
        own.values_mut()
            .for_each(|messages| messages.sort_by_key(|message| (message.sent, message.place)));
        Self { own }
    }

    fn by(&self, client: usize) -> &[&'a Message] {
        self.own.get(&client).map_or(&[], Vec::as_slice)
    }
}

/// What is measured of one fault; the lists go into the totals of all.
#[derive(Debug, Default)]
pub struct Measured {
    /// In numbers.
    pub recovery: Recovery,
    /// For each client that is not silent.
    pub rto: Vec<Option<Micros>>,
    /// For each client that had a message waiting.
    pub outage: Vec<Option<Micros>>,
    /// For each client that lost a session.
    pub reconnect: Vec<Option<Micros>>,
}

/// The clients of a fault.
pub fn struck(track: &Track, span: &FaultSpan, begins: Micros) -> Vec<usize> {
    let all = 0..track.clients.len();
    all.filter(|client| span.strikes(track.region_at(*client, begins)))
        .collect()
}

/// How a fault's clients got over it.
pub fn recovery(track: &Track, senders: &Senders, struck: &[usize], window: Window) -> Measured {
    let is_pinned = |client: &usize| track.clients.get(*client).is_some_and(|client| client.pinned);
    let (pinned, clients): (Vec<usize>, Vec<usize>) = struck.iter().partition(|client| is_pinned(client));
    let back = |client: &usize| {
        let own = senders.by(*client);
        let back = back(track, own, *client, window)?;
        // The first message may pass before the fault is felt: a process stands still a moment after it was told to.
        let waited = longest_wait(own, window).flatten();
        Some(back.map(|back| back.max(waited.unwrap_or(0))))
    };
    let rto: Vec<Option<Micros>> = clients.iter().filter_map(back).collect();
    let rto_pinned: Vec<Option<Micros>> = pinned.iter().filter_map(back).collect();
    let outage = clients
        .iter()
        .filter_map(|client| longest_wait(senders.by(*client), window));
    let outage: Vec<Option<Micros>> = outage.collect();
    let losses = losses(track, struck, window);
    let lost = losses.iter().map(|loss| loss.lost);
    let (first_lost, last_lost) = (lost.clone().min(), lost.max());
    let first_back = losses.iter().filter_map(|loss| loss.back).min();
    let moved: Vec<&Loss> = losses
        .iter()
        .filter(|loss| clients.contains(&loss.client))
        .collect();
    let last_back = moved.iter().filter_map(|loss| loss.back).max();
    let reconnect: Vec<Option<Micros>> = moved.iter().map(|loss| Some(loss.back? - loss.lost)).collect();
    let steady_at = before(track, senders, window.begins).map(|p99| p99.saturating_mul(STEADY_FACTOR));
    let quiet = last_back.or(Some(window.begins).filter(|_| moved.is_empty()));
    let steady = steady_at.zip(quiet).and_then(|(p99, from)| {
        let counts = |message: &&Message| !pinned.contains(&message.from) && !pinned.contains(&message.to);
        steady(track.messages.values().filter(counts), p99, from, window.until)
    });
    let recovery = Recovery {
        clients: clients.len() as u64,
        pinned: pinned.len() as u64,
        silent: (clients.len() - rto.len()) as u64,
        rto: Awaited::of(&rto),
        rto_pinned: Awaited::of(&rto_pinned),
        outage: Awaited::of(&outage),
        detect: first_lost.map(|at| at - window.begins),
        drain: first_lost.zip(last_lost).map(|(first, last)| last - first),
        decide: first_lost
            .zip(first_back)
            .map(|(lost, back)| back.saturating_sub(lost)),
        reconnect: Awaited::of(&reconnect),
        reconnected: last_back.map(|at| at - window.begins),
        steady_at,
        steady,
    };
    Measured {
        recovery,
        rto,
        outage,
        reconnect,
    }
}

/// From a fault's beginning until a client works again: none if nothing is known of it, `Some(None)` if it never does.
fn back(track: &Track, own: &[&Message], client: usize, window: Window) -> Option<Option<Micros>> {
    match first_accepted(own, window.begins) {
        // One that sends nothing because it is cut off must not pass for one that had nothing to send.
        None if track.session_at(client, track.end).is_some() => None,
        None => Some(None),
        Some(at) => Some(at.map(|at| at - window.begins)),
    }
}

/// When the first message sent from then on was accepted: none if nothing was sent, `Some(None)` if none was accepted.
fn first_accepted(own: &[&Message], begins: Micros) -> Option<Option<Micros>> {
    let later = &own[own.partition_point(|message| message.sent < begins)..];
    let mut best: Option<Micros> = None;
    later.first()?;
    for message in later {
        if best.is_some_and(|best| best < message.sent) {
            break;
        }
        best = match (best, message.accepted) {
            (Some(best), Some(accepted)) => Some(best.min(accepted)),
            (best, accepted) => best.or(accepted),
        };
    }
    Some(best)
}

/// The longest that one of the messages waited for its answer within the fault's time: none if none did, `Some(None)` if
/// one was never answered.
fn longest_wait(own: &[&Message], window: Window) -> Option<Option<Micros>> {
    let mut longest: Option<Micros> = None;
    for message in own.iter().take_while(|message| message.sent < window.until) {
        let Some(answered) = message.answered() else {
            return Some(None);
        };
        if answered >= window.begins {
            let waited = answered - message.sent.max(window.begins).min(answered);
            longest = longest.max(Some(waited));
        }
    }
    longest.map(Some)
}

/// A session that a client of a fault lost.
struct Loss {
    client: usize,
    lost: Micros,
    back: Option<Micros>,
}

fn losses(track: &Track, struck: &[usize], window: Window) -> Vec<Loss> {
    let first = |client: &usize| {
        let place = track.session_at(*client, window.begins)?;
        let sessions = track.sessions(*client);
        let lost = sessions[place].to.filter(|to| *to <= window.until)?;
        let back = sessions.get(place + 1).map(|next| next.from);
        Some(Loss {
            client: *client,
            lost,
            back,
        })
    };
    struck.iter().filter_map(first).collect()
}

/// The p99 of send to handled between the end of the fault before and a time.
fn before(track: &Track, senders: &Senders, begins: Micros) -> Option<Micros> {
    let earlier = track.ends.values().filter(|ends| **ends <= begins);
    let from = earlier.max().copied().unwrap_or(0);
    let all = senders.own.values().flatten();
    let then = all.filter(|message| (from..begins).contains(&message.sent));
    let mut took: Vec<Micros> = then.filter_map(|message| message.until_handled()).collect();
    took.sort_unstable();
    percentile(&took, 99)
}

/// From a time until the first whole second whose messages are as fast as they should be.
fn steady<'a>(
    messages: impl Iterator<Item = &'a Message>,
    p99: Micros,
    from: Micros,
    until: Micros,
) -> Option<Micros> {
    let whole = from.div_ceil(SECOND)..until / SECOND;
    let mut seconds: BTreeMap<Micros, Vec<Micros>> = BTreeMap::new();
    for message in messages.filter(|message| message.rejected.is_none()) {
        let second = message.sent / SECOND;
        if whole.contains(&second) {
            let took = message.until_handled().unwrap_or(Micros::MAX);
            seconds.entry(second).or_default().push(took);
        }
    }
    let fast = |took: &mut Vec<Micros>| {
        took.sort_unstable();
        percentile(took, 99).is_some_and(|took| took <= p99)
    };
    let found = seconds
        .iter_mut()
        .find_map(|(second, took)| fast(took).then_some(*second));
    found.map(|second| second * SECOND - from)
}
