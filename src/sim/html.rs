//! A page for people: a run drawn over time, in one file that needs nothing else.

use std::fmt::Write as _;

use super::Report;
use super::fault::{Fault, Kind};
use super::timeline::{RegionSample, Sample, Timeline};
use super::trace::Micros;

/// A picture: its title, what it shows, and how that is read from a sample.
type Curve<S> = (&'static str, &'static str, fn(&S) -> u64);
/// A line of a picture: its name, and how it is read from a sample.
type Line<S> = (&'static str, fn(&S) -> u64);

/// Width of a drawing, and what stands left of it.
const WIDTH: f64 = 1100.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 20.0;
/// Height of a fault's band, of a region's strip, and of a curve.
const BAND: f64 = 16.0;
const STRIP: f64 = 34.0;
const CURVE: f64 = 110.0;
/// Most faults that get a band of their own.
const MAX_BANDS: usize = 80;
/// Lines of the story on the page.
const MAX_STORY: usize = 400;
/// Colours of regions, told apart by people who see colours differently too (Okabe, Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c00", "#666666",
];

const STYLE: &str = "\
:root{--paper:#fff;--ink:#1b1f24;--soft:#667;--rule:#dde;--cut:#d55e00;--down:#b00020}
@media(prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#e8eaee;--soft:#9aa;--rule:#333a44;--cut:#ff9a4d;--down:#ff6b7d}}
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:1140px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.05rem;margin:1.8rem 0 .3rem}p{margin:.3rem 0;color:var(--soft)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--ink);font:11px system-ui,sans-serif}svg .soft{fill:var(--soft)}
.ok{color:#0a7d4f;font-weight:600}.bad{color:var(--down);font-weight:600}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .9rem .15rem 0;text-align:left;font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:500}pre{overflow-x:auto;font-size:12px;line-height:1.45;border-top:1px solid var(--rule);padding-top:.5rem}
.key span{display:inline-block;margin-right:1.2rem}.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem;vertical-align:-1px}
";

/// The page of a run that kept its timeline.
pub fn page(report: &Report) -> String {
    let timeline = &report.timeline;
    let name = if report.case.name.is_empty() {
        format!("Seed {}", report.seed)
    } else {
        format!("{}, seed {}", report.case.name, report.seed)
    };
    let mut html = String::new();
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escape(&name)
    );
    verdict(&mut html, report);
    let axis = Axis {
        end: report.time.max(1),
    };
    key(&mut html, timeline);
    heading(
        &mut html,
        "Regions and faults",
        "Each region's strip is as high as the share of its nodes that run; orange above it: something of another region \
         does not reach it. Below, what went wrong, when.",
    );
    strips(&mut html, report, axis);
    let curves: [Curve<RegionSample>; 4] = [
        (
            "Replication lag",
            "Operations that some region has and this one has not applied.",
            |region| region.lag,
        ),
        (
            "Stored messages",
            "Messages in the inboxes of each region's store.",
            |region| region.stored,
        ),
        (
            "Presence that is not the truth",
            "Users whom a region shows otherwise than they are.",
            |region| region.wrong_presence.into(),
        ),
        (
            "Sessions",
            "Clients that are connected to each region.",
            |region| region.sessions.into(),
        ),
    ];
    let flight: [Line<Sample>; 2] = [
        ("no answer yet", |sample| sample.unanswered),
        ("stored, not handled", |sample| sample.waiting),
    ];
    heading(
        &mut html,
        "Messages under way",
        "Sent and not answered; durable and handled by no device yet.",
    );
    let lines: Vec<(String, &str, Vec<u64>)> = flight
        .iter()
        .enumerate()
        .map(|(at, (name, of))| {
            let values = timeline.samples.iter().map(of).collect();
            ((*name).to_owned(), COLOURS[at * 5], values)
        })
        .collect();
    curve(&mut html, timeline, axis, &lines);
    for (title, about, of) in curves {
        heading(&mut html, title, about);
        let lines: Vec<(String, &str, Vec<u64>)> = timeline
            .regions
            .iter()
            .enumerate()
            .map(|(region, name)| {
                let values = timeline.samples.iter().map(|sample| of(&sample.regions[region]));
                (name.clone(), colour(region), values.collect())
            })
            .collect();
        curve(&mut html, timeline, axis, &lines);
    }
    story(&mut html, report);
    html.push_str("</body></html>\n");
    html
}

fn verdict(html: &mut String, report: &Report) {
    match &report.violation {
        None => html.push_str("<p><span class=\"ok\">Every promise held.</span></p>\n"),
        Some(violation) => {
            let _ = writeln!(
                html,
                "<p><span class=\"bad\">Broken at {}: {}</span><br>{}</p>",
                seconds(violation.at),
                escape(violation.invariant),
                escape(&violation.detail)
            );
        }
    }
    let stats = &report.stats;
    let cells = [
        ("simulated", seconds(report.time)),
        ("sent", stats.sent.to_string()),
        ("accepted", stats.accepted.to_string()),
        ("handled", stats.handled.to_string()),
        ("refused", stats.rejected.to_string()),
        ("holes", stats.holes.to_string()),
        ("sessions", stats.sessions.to_string()),
        ("commits", stats.commits.to_string()),
        ("settled after", seconds(stats.settled)),
        ("trace hash", format!("{:016x}", report.hash)),
    ];
    html.push_str("<table><tr>");
    for (name, _) in &cells {
        let _ = write!(html, "<th>{name}</th>");
    }
    html.push_str("</tr><tr>");
    for (_, value) in &cells {
        let _ = write!(html, "<td>{value}</td>");
    }
    html.push_str("</tr></table>\n");
}

fn heading(html: &mut String, title: &str, about: &str) {
    let _ = writeln!(html, "<h2>{title}</h2><p>{about}</p>");
}

fn key(html: &mut String, timeline: &Timeline) {
    html.push_str("<p class=\"key\">");
    for (region, name) in timeline.regions.iter().enumerate() {
        let _ = write!(
            html,
            "<span><i style=\"background:{}\"></i>{}</span>",
            colour(region),
            escape(name)
        );
    }
    html.push_str("</p>\n");
}

/// Where moments stand on a drawing.
#[derive(Debug, Clone, Copy)]
struct Axis {
    end: Micros,
}

impl Axis {
    fn x(self, at: Micros) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * at.min(self.end) as f64 / self.end as f64
    }

    fn ticks(self, html: &mut String, height: f64) {
        let steps = [1, 2, 5, 10, 30, 60, 300, 600, 3600, 3 * 3600, 6 * 3600, 86_400];
        let total = self.end / 1_000_000;
        let step = steps
            .into_iter()
            .find(|step| total / step <= 12)
            .unwrap_or(86_400);
        let mut at = 0;
        while at <= total {
            let x = self.x(at * 1_000_000);
            let _ = write!(
                html,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{height:.1}\" stroke=\"var(--rule)\"/>\
                 <text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                height + 14.0,
                seconds(at * 1_000_000)
            );
            at += step;
        }
    }
}

fn strips(html: &mut String, report: &Report, axis: Axis) {
    let timeline = &report.timeline;
    let bands = bands(report);
    let regions = timeline.regions.len() as f64;
    let height = regions * STRIP + bands.len() as f64 * BAND + 10.0;
    open(html, height + 20.0, "Regions over time with faults as bands");
    axis.ticks(html, height);
    for (region, name) in timeline.regions.iter().enumerate() {
        let top = region as f64 * STRIP;
        let _ = write!(
            html,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            top + STRIP * 0.65,
            escape(name)
        );
        for (at, sample) in timeline.samples.iter().enumerate() {
            let end = timeline.samples.get(at + 1).map_or(report.time, |next| next.at);
            let (x, width) = (axis.x(sample.at), axis.x(end) - axis.x(sample.at) + 0.3);
            let of = &sample.regions[region];
            let share = f64::from(of.up.0) / f64::from(of.up.1.max(1));
            let full = STRIP - 12.0;
            let high = full * share;
            rect(
                html,
                (x, top + 8.0 + full - high, width, high),
                colour(region),
                0.55,
            );
            if !of.cut_from.is_empty() {
                rect(html, (x, top + 2.0, width, 5.0), "var(--cut)", 1.0);
            }
        }
    }
    for (row, (fault, end)) in bands.iter().enumerate() {
        let top = regions * STRIP + row as f64 * BAND + 4.0;
        let (x, width) = (axis.x(fault.at), (axis.x(*end) - axis.x(fault.at)).max(3.0));
        rect(html, (x, top + 2.0, width, BAND - 5.0), tint(fault.kind), 0.75);
        let words = escape(&fault.words());
        let late = x + width > WIDTH * 0.62;
        let (x, anchor) = match late {
            false => (x + width + 4.0, "start"),
            true if x > WIDTH * 0.5 => (x - 4.0, "end"),
            true => (x + width - 4.0, "end"),
        };
        let _ = write!(
            html,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{words}</text>",
            top + BAND - 5.0
        );
    }
    html.push_str("</svg>\n");
}

/// The faults that are drawn, each with its end.
fn bands(report: &Report) -> Vec<(&Fault, Micros)> {
    let healed = report.case.work;
    let faults = report.case.faults.iter().filter(|fault| fault.at <= report.time);
    let all: Vec<(&Fault, Micros)> = faults
        .map(|fault| {
            let end = match (fault.kind, fault.lasts) {
                (Kind::Lose, _) => report.time,
                (_, Some(lasts)) => (fault.at + lasts).min(healed),
                (Kind::Break | Kind::Disconnect | Kind::Forget | Kind::Move | Kind::StoreStop, None) => {
                    fault.at
                }
                (_, None) => healed,
            };
            (fault, end)
        })
        .collect();
    all.into_iter().take(MAX_BANDS).collect()
}

fn curve(html: &mut String, timeline: &Timeline, axis: Axis, lines: &[(String, &str, Vec<u64>)]) {
    let most = lines.iter().flat_map(|(.., values)| values).max().copied();
    let most = most.unwrap_or(0).max(1);
    let y = |value: u64| CURVE - 6.0 - (CURVE - 16.0) * value as f64 / most as f64;
    open(html, CURVE + 20.0, "Curves over time");
    axis.ticks(html, CURVE);
    for value in [0, most] {
        let _ = write!(
            html,
            "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            LEFT - 8.0,
            y(value) + 4.0
        );
    }
    for (row, (name, colour, values)) in lines.iter().enumerate() {
        let mut points = String::new();
        for (sample, value) in timeline.samples.iter().zip(values) {
            let _ = write!(points, "{:.1},{:.1} ", axis.x(sample.at), y(*value));
        }
        let _ = write!(
            html,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>\
             <text x=\"8\" y=\"{:.1}\" style=\"fill:{colour}\">{}</text>",
            16.0 + row as f64 * 14.0,
            escape(name)
        );
    }
    html.push_str("</svg>\n");
}

fn story(html: &mut String, report: &Report) {
    if report.story.is_empty() || report.violation.is_none() {
        return;
    }
    heading(
        html,
        "What led to it",
        "The lines of the story that have to do with it.",
    );
    html.push_str("<pre>");
    let lines = report.relevant();
    for line in &lines[lines.len().saturating_sub(MAX_STORY)..] {
        html.push_str(&escape(line));
        html.push('\n');
    }
    html.push_str("</pre>\n");
}

fn open(html: &mut String, height: f64, label: &str) {
    let _ = write!(
        html,
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{label}\">"
    );
}

fn rect(html: &mut String, (x, y, width, height): (f64, f64, f64, f64), fill: &str, opacity: f64) {
    if height > 0.0 {
        let _ = write!(
            html,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" \
             fill-opacity=\"{opacity}\"/>"
        );
    }
}

fn tint(kind: Kind) -> &'static str {
    match kind {
        Kind::Cut | Kind::Flap | Kind::Clog | Kind::Break | Kind::Slow | Kind::PresenceLost => "var(--cut)",
        Kind::Crash | Kind::Rolling | Kind::Pause | Kind::Lose | Kind::FalseDeath => "var(--down)",
        Kind::StoreStop | Kind::StoreErrors | Kind::StoreSlow | Kind::StoreFull => "#cc79a7",
        Kind::Clock => "#8c8c00",
        _ => "#0072b2",
    }
}

fn colour(region: usize) -> &'static str {
    COLOURS[region % COLOURS.len()]
}

fn seconds(at: Micros) -> String {
    let total = at as f64 / 1e6;
    if total >= 7200.0 {
        format!("{:.1} h", total / 3600.0)
    } else if total.fract() == 0.0 {
        format!("{total:.0} s")
    } else {
        format!("{total:.1} s")
    }
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}
