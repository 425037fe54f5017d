//! A report as a page: one HTML file that needs nothing else.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Report;
use super::picture::{Pictures, swatch, tint, words};
use super::tables::{BROKEN, KEPT, Table, figures, identity, limits, summary};
use super::text::rights;
use super::words::{date, escape};
use crate::drill::log::{Entry, Shown};
use crate::drill::measure::track::Track;

/// Colours of regions, of curves and of presence are none of one another's, and are told apart by people who see colours
/// differently, too (after Okabe and Ito).
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#5d6673;--rule:#e3e6ee;--panel:#f5f6f9;--good:#0a7d4f;--bad:#b00020;\
--fault:#d55e00;--shade:rgba(213,94,0,.10);--online:#009e73;--offline:#9aa3b0;--unreachable:#e69f00;\
--one:#0072b2;--two:#d97a00;--r0:#2f6fb5;--r1:#cc79a7;--r2:#8c8c00;--r3:#56b4e9;--r4:#7a4fb5;--r5:#a65628;--r6:#444b57;--r7:#b3a06a}
@media(prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#e8eaee;--soft:#9ca6b4;--rule:#2b3038;--panel:#1f2329;--good:#3fcf8e;\
--bad:#ff6b7d;--fault:#ff9a4d;--shade:rgba(255,154,77,.13);--online:#2bb88c;--offline:#6b7482;--unreachable:#f0b43c;\
--one:#4fb0ee;--two:#ffad4d;--r0:#4d8fd6;--r1:#dd93bb;--r2:#b5b53a;--r3:#8fd3f7;--r4:#a78be0;--r5:#c98358;--r6:#8d97a6;--r7:#d8c894}}
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:1140px;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .2rem}p{margin:.3rem 0}.soft{color:var(--soft)}
.verdict{border-left:8px solid var(--good);background:var(--panel);padding:.8rem 1.2rem;border-radius:4px}.verdict.bad{border-color:var(--bad)}
.verdict b{font-size:1.9rem;line-height:1.2;color:var(--good)}.verdict.bad b,.broken{color:var(--bad)}.broken,.kept{font-weight:600}\
.kept{color:var(--good)}.verdict ul{margin:.3rem 0;padding-left:1.2rem}.sum{font-size:1.1rem;font-weight:600}
svg{width:100%;min-width:760px;height:auto;display:block}svg rect{shape-rendering:crispEdges}svg text{fill:var(--ink);font:11px system-ui,sans-serif}svg .soft{fill:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.4rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.18rem 1.1rem .18rem 0;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top;white-space:nowrap}.long{white-space:normal;min-width:20rem}
th{color:var(--soft);font-weight:500}.r{text-align:right}
.key span{display:inline-block;margin-right:1.2rem}.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem;vertical-align:-1px}
";

/// Longer text in a table may take more than one line.
const LONG: usize = 40;

/// The page.
pub fn page(report: &Report, log: &[Entry]) -> String {
    let mut html = String::new();
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{}: {}</title><style>{STYLE}</style></head><body>\n",
        report.verdict(),
        escape(report.heading())
    );
    verdict(&mut html, report);
    table(&mut html, &limits(report));
    if !log.is_empty() {
        timeline(&mut html, report, &Track::of(&report.clients, log));
    }
    for figures in figures(report) {
        table(&mut html, &figures);
    }
    table(&mut html, &identity(report));
    html.push_str("</body></html>\n");
    html
}

fn verdict(html: &mut String, report: &Report) {
    let identity = &report.identity;
    let class = if report.passed() { "" } else { " bad" };
    let _ = write!(
        html,
        "<div class=\"verdict{class}\"><b>{}</b><h1>{}</h1><p class=\"sum\">{}</p>",
        report.verdict(),
        escape(report.heading()),
        escape(&summary(report))
    );
    if !report.reasons.is_empty() {
        html.push_str("<ul>");
        for reason in &report.reasons {
            let _ = write!(html, "<li class=\"broken\">{}</li>", escape(reason));
        }
        html.push_str("</ul>");
    }
    if !identity.hypothesis.is_empty() {
        let _ = write!(
            html,
            "<p><span class=\"soft\">Hypothesis:</span> {}</p>",
            escape(identity.hypothesis.trim())
        );
    }
    let _ = writeln!(
        html,
        "<p class=\"soft\">{} against {}, {}</p></div>",
        escape(&identity.name),
        escape(&identity.target),
        date(identity.started_ms)
    );
}

fn timeline(html: &mut String, report: &Report, track: &Track) {
    let faults: BTreeSet<usize> = report
        .measures
        .faults
        .iter()
        .map(|fault| fault.span.fault)
        .collect();
    let pictures = Pictures::of(track, &faults);
    heading(
        html,
        "What was done",
        "Shaded in all pictures below; the dashed line is the end of the load.",
    );
    pictures.faults(html);
    heading(
        html,
        "Sessions by region",
        "How many clients have a session, and where.",
    );
    pictures.key(html);
    pictures.sessions(html);
    heading(html, "Messages per second", "");
    pictures.rates(html);
    heading(
        html,
        "Latency, p99",
        "By when messages were sent; the scale is logarithmic.",
    );
    pictures.latencies(html);
    heading(
        html,
        "Sessions of each client",
        "Coloured by region; a red line is a client without a session. ⚲ stays in its region, come what may.",
    );
    let left = pictures.clients(html);
    more(html, left, "clients");
    if track.shown.is_empty() {
        return;
    }
    heading(
        html,
        "Presence shown to watchers",
        "Client to watcher. Underlined in red: shown to a watcher with a session while it was not so.",
    );
    html.push_str("<p class=\"key\">");
    for shown in [Shown::Online, Shown::Offline, Shown::Unreachable] {
        swatch(html, tint(shown), words(shown));
    }
    html.push_str("</p>\n");
    let left = pictures.presence(html);
    more(html, left, "pairs");
}

fn heading(html: &mut String, title: &str, about: &str) {
    let _ = writeln!(html, "<h2>{title}</h2>");
    if !about.is_empty() {
        let _ = writeln!(html, "<p class=\"soft\">{about}</p>");
    }
}

fn more(html: &mut String, left: usize, what: &str) {
    if left > 0 {
        let _ = writeln!(html, "<p class=\"soft\">{left} more {what} are not drawn.</p>");
    }
}

fn table(html: &mut String, table: &Table) {
    heading(html, table.title, table.about);
    html.push_str("<div class=\"wide\"><table>");
    let rights = rights(&table.head, &table.rows);
    if table.head.iter().any(|name| !name.is_empty()) {
        html.push_str("<tr>");
        for (name, right) in table.head.iter().zip(&rights) {
            let class = if *right { " class=\"r\"" } else { "" };
            let _ = write!(html, "<th{class}>{name}</th>");
        }
        html.push_str("</tr>");
    }
    for row in &table.rows {
        html.push_str("<tr>");
        for (cell, right) in row.iter().zip(&rights) {
            let class = match cell.as_str() {
                KEPT => " class=\"kept\"",
                BROKEN => " class=\"broken\"",
                _ if *right => " class=\"r\"",
                long if long.chars().count() > LONG => " class=\"long\"",
                _ => "",
            };
            let _ = write!(html, "<td{class}>{}</td>", escape(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>\n");
}
