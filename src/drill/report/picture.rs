//! The timeline of a drill as pictures that stand one below the other, over one axis of time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::words::{duration, escape, moment, ordinal};
use crate::drill::log::{Micros, Shown};
use crate::drill::measure::presence::{Lie, lies};
use crate::drill::measure::spread::percentile;
use crate::drill::measure::track::{SECOND, Track, common};

/// Width of a drawing, and what stands beside it.
const WIDTH: f64 = 1100.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 20.0;
/// Height of a fault's band, of a row of a strip, and of a curve.
const BAND: f64 = 26.0;
const ROW: f64 = 15.0;
const CURVE: f64 = 120.0;
/// Below each drawing: the times.
const FOOT: f64 = 18.0;
/// Most rows of clients, and of watchers.
const MAX_CLIENTS: usize = 64;
const MAX_PAIRS: usize = 40;
/// Most points of a curve.
const MAX_POINTS: Micros = 600;
/// Longest name beside a strip, in characters.
const MAX_NAME: usize = 26;
/// Colours of regions that the page's style knows.
const COLOURS: usize = 8;

/// What was shown that was not so, of each client to each watcher: from, until, what.
type Seen = BTreeMap<(usize, usize), Vec<(Micros, Micros, Shown)>>;

/// All pictures of a drill.
#[derive(Debug)]
pub struct Pictures<'a> {
    track: &'a Track<'a>,
    regions: Vec<&'a str>,
    /// The faults and steps: from, until, number, text.
    bands: Vec<(Micros, Micros, usize, &'a str)>,
    end: Micros,
}

impl<'a> Pictures<'a> {
    /// Of a log. What begins and is none of these faults is a step, and has no length.
    pub fn of(track: &'a Track<'a>, faults: &BTreeSet<usize>) -> Self {
        let homes = track.clients.iter().map(|client| client.home.as_str());
        let all = (0..track.clients.len()).flat_map(|client| track.sessions(client));
        let regions: BTreeSet<&str> = homes.chain(all.map(|session| session.region)).collect();
        let bands = track.begins.iter().map(|(fault, (begins, text))| {
            let ended = track.ends.get(fault).copied();
            let lasting = if faults.contains(fault) {
                track.end
            } else {
                *begins
            };
            (*begins, ended.unwrap_or(lasting).max(*begins), *fault, *text)
        });
        let mut bands: Vec<_> = bands.collect();
        bands.sort_unstable();
        Self {
            track,
            regions: regions.into_iter().collect(),
            bands,
            end: track.end.max(1),
        }
    }

    /// The regions' colours.
    pub fn key(&self, html: &mut String) {
        html.push_str("<p class=\"key\">");
        for region in &self.regions {
            swatch(html, &self.colour(region), region);
        }
        html.push_str("</p>\n");
    }

    /// What was done, when.
    pub fn faults(&self, html: &mut String) {
        let height = (self.bands.len() as f64 * BAND).max(BAND);
        self.open(html, height, "Faults over time");
        for (row, (from, until, fault, text)) in self.bands.iter().enumerate() {
            let top = row as f64 * BAND;
            let (x, width) = (self.x(*from), (self.x(*until) - self.x(*from)).max(3.0));
            let words = format!("{}: {text}", ordinal(*fault));
            let about = format!("{words}, {} to {}", moment(*from), moment(*until));
            bar(html, (x, top + 16.0, width, 7.0), "var(--fault)", &about);
            // Above the band, towards the side on which there is more room.
            let (x, anchor) = match x < WIDTH * 0.5 {
                true => (x, "start"),
                false => (x + width, "end"),
            };
            let _ = write!(
                html,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                top + 12.0,
                escape(&words)
            );
        }
        html.push_str("</svg></div>\n");
    }

    /// How many clients have a session in each region: one upon the other.
    pub fn sessions(&self, html: &mut String) {
        let most = self.track.clients.len().max(1);
        let mut changes: BTreeMap<Micros, BTreeMap<&str, i64>> = BTreeMap::from([(0, BTreeMap::new())]);
        for client in 0..self.track.clients.len() {
            for session in self.track.sessions(client) {
                *changes
                    .entry(session.from)
                    .or_default()
                    .entry(session.region)
                    .or_default() += 1;
                if let Some(to) = session.to {
                    *changes.entry(to).or_default().entry(session.region).or_default() -= 1;
                }
            }
        }
        self.open(html, CURVE, "Sessions by region over time");
        let unit = (CURVE - 14.0) / most as f64;
        let floor = CURVE - 4.0;
        self.level(html, floor, "0");
        self.level(html, floor - unit * most as f64, &most.to_string());
        let mut now: BTreeMap<&str, i64> = BTreeMap::new();
        let times: Vec<Micros> = changes.keys().copied().chain([self.end]).collect();
        for (at, until) in times.iter().zip(times.iter().skip(1)) {
            for (region, change) in changes.get(at).into_iter().flatten() {
                *now.entry(region).or_default() += change;
            }
            let mut y = floor;
            for region in &self.regions {
                let count = now.get(region).copied().unwrap_or(0);
                let height = unit * count.max(0) as f64;
                y -= height;
                let (x, width) = (self.x(*at), self.x(*until) - self.x(*at));
                if height > 0.0 && width > 0.0 {
                    let about = format!("{region}: {count} from {} to {}", moment(*at), moment(*until));
                    bar(html, (x, y, width + 0.2, height), &self.colour(region), &about);
                }
            }
        }
        html.push_str("</svg></div>\n");
    }

    /// Messages sent, accepted and handled, per second.
    pub fn rates(&self, html: &mut String) {
        let width = self.bucket();
        // The last one is drawn if most of it has passed: a shorter one would look like a fall.
        let buckets = ((self.end + width / 2) / width).max(1);
        let mut counts = vec![[0_u64; 3]; buckets as usize];
        let mut count = |at: Micros, which: usize| {
            if let Some(bucket) = counts.get_mut((at / width) as usize) {
                bucket[which] += 1;
            }
        };
        for message in self.track.messages.values() {
            count(message.sent, 0);
            message.accepted.iter().for_each(|at| count(*at, 1));
            message.handled.iter().for_each(|at| count(*at, 2));
        }
        let per_second = |count: u64| count as f64 * SECOND as f64 / width as f64;
        let most = counts.iter().flatten().max().copied().unwrap_or(0).max(1);
        let y = |count: u64| CURVE - 4.0 - (CURVE - 18.0) * count as f64 / most as f64;
        self.open(html, CURVE, "Messages per second over time");
        self.level(html, y(0), "0");
        self.level(html, y(most), &format!("{:.0}/s", per_second(most)));
        let lines = [
            ("sent", "var(--soft)"),
            ("accepted", "var(--one)"),
            ("handled", "var(--two)"),
        ];
        for (which, (name, colour)) in lines.iter().enumerate() {
            let points = counts
                .iter()
                .enumerate()
                .map(|(bucket, counts)| Some((self.middle(bucket, width), y(counts[which]))));
            line(html, points, colour);
            legend(html, which, name, colour);
        }
        html.push_str("</svg></div>\n");
    }

    /// The p99 of latencies by the second of sending, on a logarithmic scale.
    pub fn latencies(&self, html: &mut String) {
        let width = self.bucket();
        let mut took: Vec<[Vec<Micros>; 2]> = vec![Default::default(); (self.end / width + 1) as usize];
        let mut open = BTreeSet::new();
        for message in self.track.messages.values() {
            let bucket = (message.sent / width) as usize;
            if let Some(took) = took.get_mut(bucket) {
                took[0].extend(message.until_accepted());
                took[1].extend(message.until_handled());
            }
            if message.handled.is_empty() && message.rejected.is_none() {
                open.insert(bucket);
            }
        }
        let p99: Vec<[Option<Micros>; 2]> = took
            .into_iter()
            .map(|of| {
                of.map(|mut took| {
                    took.sort_unstable();
                    percentile(&took, 99)
                })
            })
            .collect();
        let all = || p99.iter().flatten().flatten().map(|took| (*took).max(100));
        let low = all().min().unwrap_or(1000).ilog10();
        let high = (all().max().unwrap_or(1000).ilog10() + 1).max(low + 1);
        let share = |took: Micros| (took.max(1) as f64).log10() - f64::from(low);
        let y = |took: Micros| CURVE - 4.0 - (CURVE - 22.0) * share(took).max(0.0) / f64::from(high - low);
        self.open(html, CURVE, "Latency over time");
        for decade in low..=high {
            let at = 10_u64.pow(decade);
            self.level(html, y(at), &round(at));
        }
        let lines = [("until accepted", "var(--one)"), ("until handled", "var(--two)")];
        for (which, (name, colour)) in lines.iter().enumerate() {
            let points = p99
                .iter()
                .enumerate()
                .map(|(bucket, p99)| Some((self.middle(bucket, width), y(p99[which]?))));
            line(html, points, colour);
            legend(html, which, name, colour);
        }
        if !open.is_empty() {
            legend(html, 2, "▼ some never handled", "var(--bad)");
        }
        for bucket in open {
            let _ = write!(
                html,
                "<text x=\"{:.1}\" y=\"12\" text-anchor=\"middle\" style=\"fill:var(--bad)\">▼</text>",
                self.middle(bucket, width)
            );
        }
        html.push_str("</svg></div>\n");
    }

    /// Each client's sessions; answers how many clients are not drawn.
    pub fn clients(&self, html: &mut String) -> usize {
        let rows = self.track.clients.len().min(MAX_CLIENTS);
        self.open(html, rows as f64 * ROW + 4.0, "Sessions of each client over time");
        for client in 0..rows {
            let top = client as f64 * ROW + 2.0;
            let name = self.track.name(client);
            let pinned = self.track.clients.get(client).is_some_and(|client| client.pinned);
            self.name(
                html,
                top,
                &format!("{}{}", short(&name), if pinned { " ⚲" } else { "" }),
            );
            let _ = write!(
                html,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"var(--bad)\" stroke-width=\"2\"/>",
                self.x(0),
                self.x(self.end),
                top + ROW / 2.0 - 1.0
            );
            for session in self.track.sessions(client) {
                let to = session.to.unwrap_or(self.end);
                let about = format!(
                    "{name}: {}, node {}, {} to {} ({})",
                    session.region,
                    session.node,
                    moment(session.from),
                    moment(to),
                    duration(to.saturating_sub(session.from))
                );
                let width = (self.x(to) - self.x(session.from) - 0.6).max(0.8);
                bar(
                    html,
                    (self.x(session.from), top, width, ROW - 3.0),
                    &self.colour(session.region),
                    &about,
                );
            }
        }
        html.push_str("</svg></div>\n");
        self.track.clients.len() - rows
    }

    /// What watchers were shown, with what was not so underlined; answers how many pairs are not drawn.
    pub fn presence(&self, html: &mut String) -> usize {
        let lies = self.seen(&lies(self.track));
        let pairs = self.pairs(&lies);
        let height = pairs.len() as f64 * ROW + 4.0;
        self.open(html, height, "Presence shown over time");
        for (row, (client, watcher)) in pairs.iter().enumerate() {
            let top = row as f64 * ROW + 2.0;
            let (of, by) = (self.track.name(*client), self.track.name(*watcher));
            self.name(html, top, &short(&format!("{of} to {by}")));
            let told = &self.track.shown[&(*watcher, *client)];
            for (place, (from, shown)) in told.iter().enumerate() {
                let to = told.get(place + 1).map_or(self.end, |(at, _)| *at);
                let about = format!(
                    "{of} shown to {by}: {}, {} to {}",
                    words(*shown),
                    moment(*from),
                    moment(to)
                );
                let width = (self.x(to) - self.x(*from)).max(0.8);
                bar(html, (self.x(*from), top, width, ROW - 6.0), tint(*shown), &about);
            }
            for (from, to, shown) in lies.get(&(*client, *watcher)).into_iter().flatten() {
                let about = format!(
                    "not so: {of} shown to {by} as {} for {}",
                    words(*shown),
                    duration(to - from)
                );
                let width = (self.x(*to) - self.x(*from)).max(0.8);
                bar(
                    html,
                    (self.x(*from), top + ROW - 6.0, width, 3.0),
                    "var(--bad)",
                    &about,
                );
            }
        }
        html.push_str("</svg></div>\n");
        self.track.shown.len() - pairs.len()
    }

    /// The lies of each client and watcher, within what the watcher could see.
    fn seen(&self, lies: &[Lie]) -> Seen {
        let mut seen = Seen::new();
        for lie in lies {
            let of = seen.entry((lie.client, lie.watcher)).or_default();
            for (from, to) in common(&[(lie.from, lie.to)], &self.track.standing(lie.watcher)) {
                of.push((from, to, lie.shown));
            }
        }
        seen
    }

    /// The pairs of client and watcher that are drawn: those of which most is to be seen. What changed comes before what
    /// did not, then what was wrong the longest, then pinned clients.
    fn pairs(&self, lies: &Seen) -> Vec<(usize, usize)> {
        let told = self.track.shown.iter();
        let mut pairs: Vec<_> = told
            .map(|((watcher, client), told)| {
                let pair = (*client, *watcher);
                let all = lies.get(&pair).into_iter().flatten();
                let longest = all.map(|(from, to, _)| to - from).max().unwrap_or(0);
                let pinned = self
                    .track
                    .clients
                    .get(*client)
                    .is_some_and(|client| client.pinned);
                (told.len() < 2, Reverse(longest), !pinned, pair)
            })
            .collect();
        pairs.sort_unstable();
        let mut pairs: Vec<(usize, usize)> = pairs.into_iter().map(|(.., pair)| pair).collect();
        pairs.truncate(MAX_PAIRS);
        pairs.sort_unstable();
        pairs
    }

    fn x(&self, at: Micros) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * at.min(self.end) as f64 / self.end as f64
    }

    /// How long a point of a curve is: whole seconds.
    fn bucket(&self) -> Micros {
        (self.end / SECOND).div_ceil(MAX_POINTS).max(1) * SECOND
    }

    fn middle(&self, bucket: usize, width: Micros) -> f64 {
        self.x(bucket as Micros * width + width / 2)
    }

    fn colour(&self, region: &str) -> String {
        let place = self.regions.iter().position(|known| *known == region);
        format!("var(--r{})", place.unwrap_or(0) % COLOURS)
    }

    /// Begins a drawing: faults as shades, and the times.
    fn open(&self, html: &mut String, height: f64, label: &str) {
        let _ = write!(
            html,
            "<div class=\"wide\"><svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{label}\">",
            height + FOOT
        );
        for (from, until, ..) in &self.bands {
            let width = (self.x(*until) - self.x(*from)).max(1.0);
            let _ = write!(
                html,
                "<rect x=\"{:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"var(--shade)\"/>",
                self.x(*from)
            );
        }
        self.ticks(html, height);
        let marks = [
            (self.track.load_ends, "var(--soft)"),
            (self.track.aborted.map(|(at, _)| at), "var(--bad)"),
        ];
        for (at, colour) in marks {
            if let Some(at) = at {
                let _ = write!(
                    html,
                    "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{height:.1}\" stroke=\"{colour}\" \
                     stroke-dasharray=\"4 3\"/>",
                    self.x(at)
                );
            }
        }
    }

    fn ticks(&self, html: &mut String, height: f64) {
        let steps = [1, 2, 5, 10, 30, 60, 300, 600, 3600, 3 * 3600, 6 * 3600, 86_400];
        let total = self.end / SECOND;
        let step = steps.into_iter().find(|step| total / step <= 12);
        let step = step.unwrap_or(total / 12 + 1);
        let mut at = 0;
        while at <= total {
            let _ = write!(
                html,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{height:.1}\" stroke=\"var(--rule)\"/>\
                 <text class=\"soft\" x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"middle\">{2}</text>",
                self.x(at * SECOND),
                height + 13.0,
                moment(at * SECOND)
            );
            at += step;
        }
    }

    /// A horizontal line with what it means.
    fn level(&self, html: &mut String, y: f64, text: &str) {
        let _ = write!(
            html,
            "<line x1=\"{LEFT:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"var(--rule)\"/>\
             <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            self.x(self.end),
            LEFT - 6.0,
            y + 4.0
        );
    }

    fn name(&self, html: &mut String, top: f64, name: &str) {
        let _ = write!(
            html,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            top + ROW - 5.0,
            escape(name)
        );
    }
}

/// A colour and its meaning.
pub fn swatch(html: &mut String, colour: &str, name: &str) {
    let _ = write!(
        html,
        "<span><i style=\"background:{colour}\"></i>{}</span>",
        escape(name)
    );
}

/// What presence looks like.
pub fn tint(shown: Shown) -> &'static str {
    match shown {
        Shown::Online => "var(--online)",
        Shown::Offline => "var(--offline)",
        Shown::Unreachable => "var(--unreachable)",
    }
}

/// Presence in a word.
pub fn words(shown: Shown) -> &'static str {
    match shown {
        Shown::Online => "online",
        Shown::Offline => "offline",
        Shown::Unreachable => "unreachable",
    }
}

fn bar(html: &mut String, (x, y, width, height): (f64, f64, f64, f64), fill: &str, about: &str) {
    let _ = write!(
        html,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\">\
         <title>{}</title></rect>",
        escape(about)
    );
}

/// A curve with gaps where there is no point, and dots where a point stands alone.
fn line(html: &mut String, points: impl Iterator<Item = Option<(f64, f64)>>, colour: &str) {
    let mut path = String::new();
    let mut drawn = false;
    for point in points {
        if let Some((x, y)) = point {
            // A line of no length with round ends is a dot.
            let _ = match drawn {
                true => write!(path, "L{x:.1} {y:.1}"),
                false => write!(path, "M{x:.1} {y:.1}h0"),
            };
        }
        drawn = point.is_some();
    }
    let _ = write!(
        html,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-linecap=\"round\" \
         stroke-linejoin=\"round\"/>"
    );
}

fn legend(html: &mut String, row: usize, name: &str, colour: &str) {
    let _ = write!(
        html,
        "<text x=\"0\" y=\"{:.1}\" style=\"fill:{colour};font-weight:600\">{name}</text>",
        30.0 + row as f64 * 15.0
    );
}

/// A round time.
fn round(micros: Micros) -> String {
    match micros {
        0..1000 => format!("{} ms", micros as f64 / 1e3),
        1000..1_000_000 => format!("{} ms", micros / 1000),
        _ => format!("{} s", micros / 1_000_000),
    }
}

fn short(name: &str) -> String {
    match name.chars().count() > MAX_NAME {
        true => name.chars().take(MAX_NAME - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}
