//! What watchers were shown, beside what was so.

use serde::{Deserialize, Serialize};

use super::track::{Track, Window, common, complement};
use crate::drill::log::{Micros, Shown};

/// How long watchers were shown what was not so. Only time in which the watcher itself had a session counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// How often.
    pub count: u64,
    /// The longest, in microseconds.
    pub longest: Micros,
    /// Which was the longest.
    pub worst: Option<Worst>,
}

/// A time at which a watcher was shown what was not so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worst {
    /// Who was shown it.
    pub watcher: usize,
    /// Of whom.
    pub client: usize,
    /// Since when, in microseconds.
    pub at: Micros,
}

/// Presence that was not so, over the whole drill. Each change is late by as long as it takes to be told: counts are
/// normal, and the longest is what matters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Shown online without a session.
    pub ghosts: Wrong,
    /// Shown offline while a session stood.
    pub false_offline: Wrong,
    /// Shown unreachable while a session stood: while its region was cut off, that is as it should be.
    pub false_unreachable: Wrong,
}

/// A span in which a watcher was shown what was not so, whether or not it had a session itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lie {
    /// Who was shown it.
    pub watcher: usize,
    /// Of whom.
    pub client: usize,
    /// What was shown.
    pub shown: Shown,
    /// From when.
    pub from: Micros,
    /// Until when.
    pub to: Micros,
    /// It still is so at the log's end.
    pub open: bool,
}

/// All spans in which something was shown that was not so, in the order of watchers, clients and times.
pub fn lies(track: &Track) -> Vec<Lie> {
    let mut lies = Vec::new();
    for ((watcher, client), told) in &track.shown {
        let standing = track.standing(*client);
        let absent = complement(&standing);
        for (place, (from, shown)) in told.iter().enumerate() {
            let to = told.get(place + 1).map_or(Micros::MAX, |(at, _)| *at);
            let otherwise = match shown {
                Shown::Online => &absent,
                Shown::Offline | Shown::Unreachable => &standing,
            };
            for (from, to) in common(&[(*from, to)], otherwise) {
                lies.push(Lie {
                    watcher: *watcher,
                    client: *client,
                    shown: *shown,
                    from,
                    to: to.min(track.end),
                    open: to == Micros::MAX,
                });
            }
        }
    }
    lies
}

/// What that says of the drill.
pub fn presence(track: &Track, lies: &[Lie]) -> Presence {
    let mut presence = Presence::default();
    for lie in lies {
        let of = match lie.shown {
            Shown::Online => &mut presence.ghosts,
            Shown::Offline => &mut presence.false_offline,
            Shown::Unreachable => &mut presence.false_unreachable,
        };
        for (from, to) in common(&[(lie.from, lie.to)], &track.standing(lie.watcher)) {
            of.count += 1;
            if to - from > of.longest {
                of.longest = to - from;
                of.worst = Some(Worst {
                    watcher: lie.watcher,
                    client: lie.client,
                    at: from,
                });
            }
        }
    }
    presence
}

/// Times until watchers were told of what happened to pinned clients.
#[derive(Debug, Default)]
pub struct Told {
    /// From the beginning until told unreachable, for each watcher elsewhere and each pinned client of a struck region.
    pub unreachable: Vec<Option<Micros>>,
    /// From the end until shown online again, for each pair that was told unreachable.
    pub back: Vec<Option<Micros>>,
}

/// Who was told what of a fault's pinned clients. Watchers that the fault struck themselves are not asked.
pub fn told(track: &Track, struck: &[usize], window: Window) -> Told {
    let mut found = Told::default();
    let within = |at: Micros| (window.begins..=window.until).contains(&at);
    for ((watcher, client), told) in &track.shown {
        let pinned = track.clients.get(*client).is_some_and(|client| client.pinned);
        let knew = told.first().is_some_and(|(at, _)| *at < window.begins);
        if !pinned || !knew || !struck.contains(client) || struck.contains(watcher) {
            continue;
        }
        let unreachable = told
            .iter()
            .find(|(at, shown)| within(*at) && *shown == Shown::Unreachable);
        found
            .unreachable
            .push(unreachable.map(|(at, _)| at - window.begins));
        if let (Some(_), Some(ends)) = (unreachable, window.ends) {
            found.back.push(online_from(told, ends, window.until));
        }
    }
    found
}

/// From a time until online is shown, at most until another.
fn online_from(told: &[(Micros, Shown)], from: Micros, until: Micros) -> Option<Micros> {
    let before = told.iter().rfind(|(at, _)| *at <= from);
    if before.is_some_and(|(_, shown)| *shown == Shown::Online) {
        return Some(0);
    }
    let then = |(at, shown): &&(Micros, Shown)| (from..=until).contains(at) && *shown == Shown::Online;
    told.iter().find(then).map(|(at, _)| at - from)
}

/// The first moment from a time on at which nothing wrong is shown.
pub fn first_true(lies: &[Lie], from: Micros) -> Option<Micros> {
    let mut spans: Vec<(Micros, Micros, bool)> = lies
        .iter()
        .filter(|lie| lie.open || lie.to > from)
        .map(|lie| (lie.from, lie.to, lie.open))
        .collect();
    spans.sort_unstable();
    let mut at = from;
    for (from, to, open) in spans {
        if from > at {
            break;
        }
        if open {
            return None;
        }
        at = at.max(to);
    }
    Some(at)
}
