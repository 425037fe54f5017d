//! Each limit just inside and just beyond, what never passes, the forms of a report, and a drill made up to look real.

use super::words::{date, duration, grouped};
use super::*;
use crate::drill::log::{Micros, Shown, What};
use crate::drill::measure::messages::{Found, Phase, PhaseName};
use crate::drill::measure::spread::{Awaited, Spread};
use crate::drill::measure::{FaultMeasures, FaultSpan, measure};

const SECOND: Micros = 1_000_000;

fn spread(max: Micros) -> Option<Spread> {
    Some(Spread {
        count: 1,
        p50: max,
        p90: max,
        p99: max,
        max,
    })
}

/// Figures of which each is the number that the limit below names.
fn figures() -> Measures {
    let found = |count: u64| Found {
        count,
        numbers: (0..count).collect(),
    };
    let mut measures = Measures {
        rto: Awaited::of(&[Some(11)]),
        outage: Awaited::of(&[Some(12)]),
        lost: found(13),
        rpo: Some(22),
        duplicates: found(14),
        disorder: found(15),
        never_answered: found(16),
        unreachable: Awaited::of(&[Some(17)]),
        back: Awaited::of(&[Some(18)]),
        convergence: Some(19),
        phases: vec![Phase {
            name: PhaseName::Total,
            from: 0,
            until: 100,
            sent: 1,
            accepted: spread(1),
            handled: spread(20),
        }],
        ..Measures::default()
    };
    measures.counts.accepted = 21;
    measures
}

#[test]
fn each_limit_is_kept_at_it_and_not_beyond() {
    /// A limit's name, what is measured of it, and where it is set.
    type Limit = (&'static str, u64, fn(&mut Limits) -> &mut Option<u64>);
    let limits: [Limit; 11] = [
        ("RTO", 11, |limits| &mut limits.rto_us),
        ("outage", 12, |limits| &mut limits.outage_us),
        ("lost", 13, |limits| &mut limits.lost),
        ("RPO", 22, |limits| &mut limits.rpo_us),
        ("duplicates in effect", 14, |limits| &mut limits.duplicates),
        ("out of order", 15, |limits| &mut limits.disorder),
        ("never answered", 16, |limits| &mut limits.never_answered),
        ("unreachable shown", 17, |limits| &mut limits.unreachable_us),
        ("online again shown", 18, |limits| &mut limits.back_us),
        ("convergence", 19, |limits| &mut limits.convergence_us),
        ("p99 send to handled", 20, |limits| &mut limits.p99_handled_us),
    ];
    for (name, measured, of) in limits {
        for (allowed, kept) in [(measured, true), (measured - 1, false)] {
            let mut limits = Limits::default();
            *of(&mut limits) = Some(allowed);
            let report = report(figures(), limits);
            let verdict = report.verdicts.iter().find(|verdict| verdict.name == name);
            let verdict = verdict.unwrap_or_else(|| panic!("{name} is judged"));
            assert_eq!(verdict.measured, Some(measured), "{name}");
            assert_eq!(verdict.kept, kept, "{name} of {allowed}");
            assert_eq!(report.passed(), kept, "{name} of {allowed}: {:?}", report.reasons);
            assert_eq!(report.reasons.len(), usize::from(!kept));
        }
    }
    for (least, kept) in [(21, true), (22, false)] {
        let limits = Limits {
            accepted_at_least: Some(least),
            ..Limits::default()
        };
        assert_eq!(report(figures(), limits).passed(), kept);
        let mut figures = figures();
        figures.reconnect = Awaited::of(&[Some(1); 21]);
        let limits = Limits {
            disconnected_at_least: Some(least),
            ..Limits::default()
        };
        assert_eq!(report(figures, limits).passed(), kept);
    }
}

#[test]
fn what_was_not_measured_is_not_kept() {
    let most = Some(Micros::MAX);
    let limits = [
        Limits {
            rto_us: most,
            ..Limits::default()
        },
        Limits {
            outage_us: most,
            ..Limits::default()
        },
        Limits {
            rpo_us: most,
            ..Limits::default()
        },
        Limits {
            unreachable_us: most,
            ..Limits::default()
        },
        Limits {
            back_us: most,
            ..Limits::default()
        },
        Limits {
            convergence_us: most,
            ..Limits::default()
        },
        Limits {
            p99_handled_us: most,
            ..Limits::default()
        },
    ];
    let nobody = Awaited::default();
    let one_missing = Awaited::of(&[Some(1), None]);
    for limits in limits {
        assert!(report(figures(), limits).passed());
        for awaited in [&nobody, &one_missing] {
            let mut measures = figures();
            measures.rto = awaited.clone();
            measures.outage = awaited.clone();
            measures.unreachable = awaited.clone();
            measures.back = awaited.clone();
            measures.convergence = None;
            measures.rpo = None;
            measures.phases.clear();
            let report = report(measures, limits);
            assert!(!report.passed(), "{limits:?}");
            assert!(report.reasons[0].contains("not measured"), "{:?}", report.reasons);
        }
    }
}

#[test]
fn a_fault_of_whose_clients_nothing_is_known_has_no_rto() {
    let limits = Limits {
        rto_us: Some(SECOND),
        ..Limits::default()
    };
    let mut fault = FaultMeasures {
        begins: Some(5),
        ..FaultMeasures::default()
    };
    fault.recovery.clients = 2;
    fault.recovery.silent = 1;
    let with = |fault: &FaultMeasures| {
        let mut measures = figures();
        measures.faults.push(fault.clone());
        report(measures, limits).passed()
    };
    assert!(with(&fault));
    fault.recovery.silent = 2;
    assert!(!with(&fault));
    // A fault that strikes nobody leaves nothing unknown.
    (fault.recovery.clients, fault.recovery.silent) = (0, 0);
    assert!(with(&fault));
}

#[test]
fn some_drills_never_pass() {
    assert!(report(figures(), Limits::default()).passed());
    let aborted = Report::new(
        Identity::default(),
        Vec::new(),
        figures(),
        Limits::default(),
        Some("Ctrl-C".to_owned()),
    );
    assert!(!aborted.passed());
    assert!(aborted.text().starts_with("ABORTED"));
    // What was cut short is not judged; what cannot become right later is.
    let none = Some(0);
    let limits = Limits {
        lost: none,
        duplicates: none,
        disorder: none,
        convergence_us: none,
        accepted_at_least: Some(u64::MAX),
        ..Limits::default()
    };
    let aborted = Report::new(
        Identity::default(),
        Vec::new(),
        figures(),
        limits,
        Some("Ctrl-C".to_owned()),
    );
    let names: Vec<&str> = aborted
        .verdicts
        .iter()
        .map(|verdict| verdict.name.as_str())
        .collect();
    assert_eq!(names, ["duplicates in effect", "out of order", "misdelivered"]);
    assert_eq!(aborted.reasons.len(), 3, "{:?}", aborted.reasons);
    let changes: [fn(&mut Measures); 4] = [
        |measures| measures.aborted = Some("the log says so".to_owned()),
        |measures| measures.counts.accepted = 0,
        |measures| measures.faults.push(FaultMeasures::default()),
        |measures| measures.stray = [7].into_iter().collect(),
    ];
    for change in changes {
        let mut measures = figures();
        change(&mut measures);
        let report = report(measures, Limits::default());
        assert!(!report.passed());
        assert_eq!(report.reasons.len(), 1, "{:?}", report.reasons);
    }
}

#[test]
fn a_report_is_the_same_after_json() {
    let (log, report) = region_lost(4);
    let json = report.to_json().expect("a report becomes JSON");
    assert_eq!(Report::from_json(&json).expect("and comes back"), report);
    for entry in &log {
        let json = serde_json::to_string(entry).expect("an entry becomes JSON");
        let back: Entry = serde_json::from_str(&json).expect("and comes back");
        assert_eq!(&back, entry);
    }
    let other = json.replacen("\"format\": 1", "\"format\": 2", 1);
    assert!(matches!(Report::from_json(&other), Err(Unreadable::Format(2))));
    assert!(matches!(Report::from_json("{}"), Err(Unreadable::Malformed(_))));
}

#[test]
fn limits_are_read_strictly() {
    let limits: Limits = serde_json::from_str(r#"{"rto_us": 5}"#).expect("one is enough");
    assert_eq!(limits.rto_us, Some(5));
    assert!(serde_json::from_str::<Limits>(r#"{"rto": 5}"#).is_err());
}

#[test]
fn the_terminal_hears_the_verdict_first_and_then_why() {
    let (_, report) = region_lost(4);
    let text = report.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "PASSED: Region lost");
    assert!(
        lines[1].contains("RTO") && lines[1].contains("none of"),
        "{}",
        lines[1]
    );
    let limits = Limits {
        lost: Some(0),
        ..Limits::default()
    };
    let failed = self::report(figures(), limits);
    let text = failed.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("FAILED: "));
    assert_eq!(
        lines.next(),
        Some("  ✗ lost: 13, limit ≤ 0 (#0, #1, #2, #3, #4, …)")
    );
    let columns: Vec<Option<usize>> = text
        .lines()
        .skip_while(|line| *line != "Limits")
        .skip(1)
        .take(2)
        .map(|line| line.find("allowed").or(line.find('≤')))
        .collect();
    assert_eq!(columns[0], columns[1]);
}

#[test]
fn every_row_is_as_long_as_its_head() {
    let (_, report) = region_lost(6);
    let mut all = tables::figures(&report);
    all.extend([tables::limits(&report), tables::identity(&report)]);
    assert!(all.len() > 6);
    for table in all {
        for row in &table.rows {
            assert_eq!(row.len(), table.head.len(), "{}: {row:?}", table.title);
        }
    }
}

#[test]
fn markdown_keeps_foreign_text_in_its_cell() {
    let mut measures = figures();
    measures.faults.push(FaultMeasures {
        span: FaultSpan {
            text: "a | b\n# c <i>".to_owned(),
            ..FaultSpan::default()
        },
        begins: Some(1),
        ..FaultMeasures::default()
    });
    let text = report(measures, Limits::default()).markdown();
    assert!(text.contains("| 1 | a \\| b \\# c \\<i> | all |"), "{text}");
}

#[test]
fn the_page_needs_nothing_else_and_takes_text_as_text() {
    let (log, mut report) = region_lost(4);
    let page = report.page(&log);
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("src="));
    assert!(page.contains("PASSED") && page.contains("prefers-color-scheme:dark"));
    assert!(!page.contains("NaN") && !page.contains("inf"));
    let evil = "</title><script>alert('x')</script>";
    report.identity.title = evil.to_owned();
    report.identity.hypothesis = evil.to_owned();
    report
        .identity
        .configuration
        .push((evil.to_owned(), evil.to_owned()));
    report.reasons.push(evil.to_owned());
    report.clients[0].name = evil.to_owned();
    report.clients[0].home = evil.to_owned();
    let begins = What::Begins {
        fault: 7,
        text: evil.to_owned(),
    };
    let connected = What::Connected {
        client: 0,
        region: evil.to_owned(),
        node: evil.to_owned(),
    };
    let mut log = log;
    let at = log.last().expect("there are entries").at;
    log.extend([begins, connected].map(|what| Entry { at, what }));
    let page = report.page(&log);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
}

#[test]
fn a_page_of_little_or_nothing_is_still_a_page() {
    let report = report(figures(), Limits::default());
    assert!(report.page(&[]).ends_with("</html>\n"));
    let entry = Entry {
        at: 0,
        what: What::LoadEnds,
    };
    let page = report.page(&[entry]);
    assert!(page.ends_with("</html>\n") && !page.contains("NaN"));
}

#[test]
fn the_trend_is_in_the_order_of_time() {
    let at = |started_ms: u64, name: &str, lost: Option<u64>| {
        let mut report = report(
            figures(),
            Limits {
                lost,
                ..Limits::default()
            },
        );
        report.identity.started_ms = started_ms;
        report.identity.name = name.to_owned();
        report
    };
    let text = trend(&[at(86_400_000, "second", Some(0)), at(5_000, "first", None)]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].starts_with("first") && lines[1].contains("1970-01-01 00:00:05 UTC"));
    assert!(lines[1].contains("passed") && lines[2].contains("failed"));
    assert_eq!(lines[0].find("target"), lines[1].find("UTC").map(|at| at + 5));
}

#[test]
fn words_for_numbers() {
    assert_eq!(duration(0), "0 s");
    assert_eq!(duration(850), "0.85 ms");
    assert_eq!(duration(42_000), "42.0 ms");
    assert_eq!(duration(4_210_000), "4.21 s");
    assert_eq!(duration(125 * SECOND), "2 min 5 s");
    assert_eq!(grouped(0), "0");
    assert_eq!(grouped(999), "999");
    assert_eq!(grouped(1_234_567), "1,234,567");
    assert_eq!(date(951_782_400_000), "2000-02-29 00:00:00 UTC");
    assert_eq!(date(1_735_689_599_000), "2024-12-31 23:59:59 UTC");
}

/// Writes the page and the other forms of a drill that looks real to where `IRIS_TEST_DRILL_PAGE` names a path.
#[test]
#[ignore = "writes files for people to look at"]
fn a_page_to_look_at() {
    let path = std::env::var("IRIS_TEST_DRILL_PAGE").expect("IRIS_TEST_DRILL_PAGE names a path");
    let (log, mut report) = region_lost(12);
    report.observed = vec![
        (
            "replication lag at the cut".to_owned(),
            "14 operations".to_owned(),
        ),
        ("bytes of repair".to_owned(), "48,112".to_owned()),
    ];
    report.log_file = Some("region-lost.log.jsonl".to_owned());
    std::fs::write(&path, report.page(&log)).expect("the page is written");
    std::fs::write(format!("{path}.md"), report.markdown()).expect("the Markdown is written");
    std::fs::write(format!("{path}.txt"), report.text()).expect("the text is written");
    let strict = Limits {
        rto_us: Some(2 * SECOND),
        ..report.limits
    };
    // One message lost and one doubled.
    let mut log = log;
    let lost = log
        .iter()
        .rposition(|entry| matches!(entry.what, What::Handled { .. }) && entry.at < 19 * SECOND);
    let mut again = log.remove(lost.expect("something is handled"));
    if let What::Handled { number, client, .. } = &mut again.what {
        (*number, *client) = log
            .iter()
            .find_map(|entry| match entry.what {
                What::Handled { number, client, .. } => Some((number, client)),
                _ => None,
            })
            .expect("something is handled");
    }
    log.push(Entry {
        at: log.last().map_or(0, |last| last.at),
        ..again
    });
    let faults: Vec<FaultSpan> = report
        .measures
        .faults
        .iter()
        .map(|fault| fault.span.clone())
        .collect();
    let measures = measure(&report.clients, &faults, &log);
    let failed = Report::new(report.identity, report.clients, measures, strict, None);
    std::fs::write(format!("{path}.failed.html"), failed.page(&log)).expect("the page is written");
    std::fs::write(format!("{path}.failed.txt"), failed.text()).expect("the text is written");
}

fn report(measures: Measures, limits: Limits) -> Report {
    Report::new(Identity::default(), Vec::new(), measures, limits, None)
}

/// A generator good enough for pictures.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A minute of clients in three regions: one region is lost from 20 s to 40 s, a link is slow from 48 s to 54 s.
fn region_lost(clients: usize) -> (Vec<Entry>, Report) {
    const REGIONS: [&str; 3] = ["eu-central", "us-east", "ap-south"];
    let names = [
        "ada", "bruno", "chidi", "dora", "emeka", "fatima", "goran", "hana", "ivo", "june", "kofi", "lena",
    ];
    let clients: Vec<Client> = names
        .iter()
        .take(clients)
        .enumerate()
        .map(|(number, name)| Client {
            name: (*name).to_owned(),
            home: REGIONS[number % 3].to_owned(),
            pinned: (3..6).contains(&number),
        })
        .collect();
    let mut dice = Dice(42);
    let mut log = Vec::new();
    let mut add = |at: Micros, what: What| log.push(Entry { at, what });
    let fault = |fault, text: &str| What::Begins {
        fault,
        text: text.to_owned(),
    };
    let lost = "eu-central is lost: SIGKILL of all its processes";
    let slow = "the link between us-east and ap-south is 150 ms slower";
    let (cut, healed) = (20 * SECOND, 40 * SECOND);
    add(cut, fault(0, lost));
    add(healed, What::Ends { fault: 0 });
    add(48 * SECOND, fault(1, slow));
    add(54 * SECOND, What::Ends { fault: 1 });
    add(60 * SECOND, What::LoadEnds);
    // When each client can work: from, until.
    let mut able: Vec<Vec<(Micros, Micros)>> = Vec::new();
    for (client, of) in clients.iter().enumerate() {
        let stand = |region: &str, node: u64| What::Connected {
            client,
            region: region.to_owned(),
            node: format!("{region}-{node}"),
        };
        let start = 200_000 + dice.below(600_000);
        add(start, stand(&of.home, dice.below(2)));
        if of.home != REGIONS[0] {
            able.push(vec![(start, Micros::MAX)]);
            continue;
        }
        let gone = cut + 1_500_000 + dice.below(900_000);
        let why = "timed out".to_owned();
        add(gone, What::Disconnected { client, why });
        let back = match of.pinned {
            true => healed + 300_000 + dice.below(500_000),
            false => gone + 400_000 + dice.below(2_000_000),
        };
        add(back, stand(if of.pinned { &of.home } else { REGIONS[1] }, 1));
        if !of.pinned {
            // Home again, without an interruption.
            add(healed + 3 * SECOND + dice.below(SECOND), stand(&of.home, 0));
        }
        able.push(vec![(start, cut), (back, Micros::MAX)]);
    }
    let from = |client: usize, at: Micros| {
        let spans = able[client].iter();
        spans
            .filter(|(_, until)| *until > at)
            .map(|(from, _)| (*from).max(at))
            .min()
            .unwrap_or(at)
    };
    let mut last = std::collections::BTreeMap::new();
    let mut number = 0;
    for at in (SECOND..60 * SECOND).step_by(12_500) {
        let at = at + dice.below(12_000);
        let sender = dice.below(clients.len() as u64) as usize;
        let to = (sender + 1 + dice.below(clients.len() as u64 - 1) as usize) % clients.len();
        // Pinned clients of the lost region do not send while they cannot: they have nobody to ask.
        if clients[sender].pinned && from(sender, at) > at {
            continue;
        }
        let slow = if (48 * SECOND..54 * SECOND).contains(&at) && !sender.is_multiple_of(3) {
            150_000
        } else {
            0
        };
        let accepted = from(sender, at) + 38_000 + dice.below(25_000) + slow;
        let handled = from(to, accepted) + 4_000 + dice.below(60_000) + slow;
        let handled = handled.max(last.get(&(sender, to)).copied().unwrap_or(0) + 10);
        last.insert((sender, to), handled);
        add(
            at,
            What::Sent {
                number,
                from: sender,
                to,
            },
        );
        add(
            accepted,
            What::Accepted {
                number,
                geo: true,
                duplicate: accepted - at > SECOND && dice.below(4) == 0,
            },
        );
        add(
            handled,
            What::Handled {
                number,
                client: to,
                stream: None,
            },
        );
        number += 1;
    }
    for (client, spans) in able.iter().enumerate() {
        for watcher in (0..clients.len()).filter(|watcher| *watcher != client) {
            let mut show = |at: Micros, status| {
                add(
                    from(watcher, at),
                    What::Shown {
                        watcher,
                        client,
                        status,
                    },
                )
            };
            show(850_000 + dice.below(90_000), Shown::Online);
            if spans.len() == 1 {
                continue;
            }
            let told = cut + 2_600_000 + dice.below(400_000);
            show(told, Shown::Unreachable);
            show(spans[1].0.max(told) + 60_000 + dice.below(90_000), Shown::Online);
        }
    }
    log.sort_by_key(|entry| entry.at);
    let faults = [
        FaultSpan {
            fault: 0,
            struck: vec![REGIONS[0].to_owned()],
            text: lost.to_owned(),
        },
        FaultSpan {
            fault: 1,
            struck: vec![REGIONS[1].to_owned(), REGIONS[2].to_owned()],
            text: slow.to_owned(),
        },
    ];
    let measures = measure(&clients, &faults, &log);
    let identity = Identity {
        name: "region-lost".to_owned(),
        title: "Region lost".to_owned(),
        hypothesis: "When all processes of a region die under load, its clients work again elsewhere within ten seconds, and \
                     nothing that was accepted is lost."
            .to_owned(),
        commit: "3c839cf".to_owned(),
        version: "0.1.0".to_owned(),
        seed: 42,
        target: "dev".to_owned(),
        started_ms: 1_767_323_045_000,
        configuration: vec![
            ("regions".to_owned(), REGIONS.join(", ")),
            ("processes per region".to_owned(), "1 core, 2 edges".to_owned()),
            ("durability".to_owned(), "geo".to_owned()),
        ],
    };
    let limits = Limits {
        rto_us: Some(10 * SECOND),
        lost: Some(0),
        duplicates: Some(0),
        disorder: Some(0),
        never_answered: Some(0),
        unreachable_us: None,
        convergence_us: Some(15 * SECOND),
        accepted_at_least: Some(100),
        ..Limits::default()
    };
    (log, Report::new(identity, clients, measures, limits, None))
}
