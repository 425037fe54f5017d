//! Regions that are really apart: node processes in network namespaces, between which packets are dropped by nft, both ways, one
//! way, or some of them.
//!
//! | part | what it does |
//! |---|---|
//! | `wan` | the namespaces, and what is dropped between them |
//! | `crew` of the library's drills | clients that send to each other, watch each other, and note what they see |
//! | `measure` of them | what was lost, doubled, out of order or never answered, and who was told what |
//!
//! It needs Linux, root, `ip` and `nft` (Debian: iproute2, nftables). Where they are missing, these tests say so and test nothing;
//! with `IRIS_TEST_NAMESPACES=1` they fail.
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "the tests that kill processes use the rest")]
#[path = "../crash/processes.rs"]
mod processes;
mod wan;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{PATIENCE, client_config, within};
use iris::client::{ClientConfig, connector};
use iris::drill::crew::{Crew, Place};
use iris::drill::log::{Client, Entry, Micros, Shown, What};
use iris::drill::measure::track::{Message, Track};
use iris::drill::measure::{FaultSpan, Measures, Open, measure, open};
use iris::net::certs::Roots;
use iris::server::config::TomlText;
use iris::server::dev::{DevCluster, Ports};
use iris::server::regions::Regions;
use processes::{Running, created, serving};
use wan::{CLIENTS, Harm, Wan};

/// The regions, each with its core node and its edge.
const REGIONS: [(&str, &[&str]); 3] = [
    ("us-east", &["us-east-core", "us-east-edge"]),
    ("eu-west", &["eu-west-core", "eu-west-edge"]),
    ("ap-south", &["ap-south-core", "ap-south-edge"]),
];
/// Clients of each region that send; one more watches.
const SENDERS: usize = 2;
/// Each sends so often, to the others by turns.
const SEND_EVERY: Duration = Duration::from_millis(100);
/// Harm lasts at least so long: connections between nodes give up after 5 s of silence.
const HARM_LASTS: Duration = Duration::from_secs(10);
/// Messages of each kind that must go through while packets are dropped.
const ENOUGH: usize = 10;
/// What comes twice has so long to come.
const TWICE_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks at what the clients noted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is done to the ways between regions.
struct Scenario {
    text: &'static str,
    harm: Harm,
    ways: &'static [(&'static str, &'static str)],
    /// Each of these groups of regions cannot be reached by those that are not in it.
    apart: &'static [&'static [&'static str]],
}

const SCENARIOS: [Scenario; 3] = [
    Scenario {
        text: "nothing gets into eu-west, and nothing out of it",
        harm: Harm::Cut,
        ways: &[
            ("eu-west", "us-east"),
            ("us-east", "eu-west"),
            ("eu-west", "ap-south"),
            ("ap-south", "eu-west"),
        ],
        apart: &[&["eu-west"], &["us-east", "ap-south"]],
    },
    Scenario {
        text: "nothing gets out of eu-west",
        harm: Harm::Cut,
        ways: &[("eu-west", "us-east"), ("eu-west", "ap-south")],
        apart: &[&["eu-west"]],
    },
    Scenario {
        text: "30 % of all packets between us-east and eu-west are lost",
        harm: Harm::Lossy,
        ways: &[("us-east", "eu-west"), ("eu-west", "us-east")],
        apart: &[],
    },
];

impl Scenario {
    fn harms(&self, from: &str, to: &str) -> bool {
        self.ways.contains(&(from, to))
    }

    /// Whether messages from one region to another are to arrive all the while. What gets there on a way without a way back is
    /// not said: its receipt does not get back.
    fn flows(&self, from: &str, to: &str) -> bool {
        self.harm == Harm::Lossy || !(self.harms(from, to) || self.harms(to, from))
    }

    /// What the log is asked for: those whom others cannot reach.
    fn spans(&self, fault: usize) -> Vec<FaultSpan> {
        let span = |struck: &[&str]| FaultSpan {
            fault,
            struck: struck.iter().map(ToString::to_string).collect(),
            text: self.text.to_owned(),
        };
        match self.apart {
            [] => vec![span(&[])],
            apart => apart.iter().map(|regions| span(regions)).collect(),
        }
    }
}

#[test]
fn regions_that_are_really_cut_off_go_on_and_nothing_is_lost_or_doubled() {
    let Some(wan) = wan() else { return };
    wan.inside(CLIENTS, || {
        // Its threads are made here, and so are the sockets of the clients.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.unwrap().block_on(all_scenarios(&wan));
    });
}

#[test]
fn nothing_is_left_of_the_namespaces_when_a_test_fails() {
    let Some(wan) = wan() else { return };
    let names = wan.names().to_vec();
    let there = |name: &String| wan::named().contains(name);
    assert_eq!(names.len(), 8);
    assert!(names.iter().all(there));
    let failing = std::panic::AssertUnwindSafe(move || {
        let fails = || std::panic::resume_unwind(Box::new("as an assertion would"));
        wan.inside(CLIENTS, fails)
    });
    let failed: std::thread::Result<()> = std::panic::catch_unwind(failing);
    assert!(failed.is_err());
    assert!(!names.iter().any(there));
}

/// The namespaces, where they can be had.
fn wan() -> Option<Wan> {
    let missing = match Wan::start(&REGIONS) {
        Ok(wan) => return Some(wan),
        Err(missing) => missing,
    };
    let demanded = std::env::var_os("IRIS_TEST_NAMESPACES").is_some_and(|value| value == "1");
    assert!(!demanded, "IRIS_TEST_NAMESPACES: {missing}");
    // Past the capture of a test that passes: who reads that it did must read this, too.
    let _ = writeln!(
        std::io::stderr(),
        "skipped: {missing}; IRIS_TEST_NAMESPACES=1 makes that a failure"
    );
    None
}

async fn all_scenarios(wan: &Wan) {
    let folder = tempfile::tempdir().unwrap();
    let dev = DevCluster::prepare(folder.path(), &regions(wan), Ports::AsFiled).unwrap();
    let nodes = start(wan, &dev).await;
    let mut crew = crew(&dev);
    crew.connected(PATIENCE).await.unwrap();
    until_log(&crew, |log| unseen(crew.clients(), log)).await;
    crew.send(SEND_EVERY);
    for (fault, scenario) in SCENARIOS.iter().enumerate() {
        harm(wan, &crew, fault, scenario).await;
    }
    crew.quiet().await;
    let quiet = Instant::now();
    until_log(&crew, |log| {
        let left = open(crew.clients(), log);
        let is = left == Open::default() && quiet.elapsed() >= TWICE_WITHIN;
        (!is).then(|| format!("{left:?}")).into_iter().collect()
    })
    .await;
    let (clients, log) = within("closed", crew.close()).await;
    drop(nodes);
    let measures = measured(&clients, &log, SCENARIOS.len());
    judge(&clients, &log, &measures);
}

/// The files of the regions, with the addresses that the nodes have in their namespaces.
fn regions(wan: &Wan) -> Regions {
    let texts = REGIONS.iter().enumerate().map(|(n, (id, nodes))| {
        let mut text = format!("id = \"{id}\"\nname = \"{id}\"\n[place]\nlatitude = {n}.0\nlongitude = 0.0\n");
        for name in *nodes {
            let addr = wan.addr_of(name);
            let (role, client) = match name.ends_with("core") {
                true => ("core", String::new()),
                false => ("edge", format!("client = \"{addr}:7100\"\n")),
            };
            text += &format!(
                "[[nodes]]\nname = \"{name}\"\nroles = [\"{role}\"]\n{client}peer = \"{addr}:7110\"\nadmin_http = \"{addr}:7120\"\n"
            );
        }
        TomlText::new(format!("{id}.toml"), text).unwrap()
    });
    Regions::from_texts(Path::new("test"), texts.collect()).unwrap()
}

/// Starts all nodes, each in its namespace, and waits until they are ready.
async fn start(wan: &Wan, dev: &DevCluster) -> Vec<Running> {
    let mut nodes = Vec::new();
    for node in &dev.nodes {
        let mut command = serving(node);
        command.args(created(node));
        nodes.push(wan.inside(&node.name, || Running::start(command)));
    }
    for (node, running) in dev.nodes.iter().zip(&mut nodes) {
        running.ready(node).await;
    }
    nodes
}

/// The clients. None knows another region before it is told of one; those that watch stay, whatever they are told.
fn crew(dev: &DevCluster) -> Crew {
    let roots = Roots::load(&dev.data.join("ca/ca.pem")).unwrap();
    let connector = connector(&roots).unwrap();
    let mut places = Vec::new();
    for (home, _) in REGIONS {
        for n in 0..=SENDERS {
            let pinned = n == SENDERS;
            let name = if pinned {
                format!("{home}-watches")
            } else {
                format!("{home}-{n}")
            };
            let config: ClientConfig = client_config(dev, &connector, home, &name, "phone");
            let home = home.to_owned();
            places.push(Place {
                client: Client { name, home, pinned },
                config,
            });
        }
    }
    Crew::start(places).unwrap()
}

/// One scenario, from the first dropped packet until nothing shows that there was one.
async fn harm(wan: &Wan, crew: &Crew, fault: usize, scenario: &Scenario) {
    let Scenario { text, harm, ways, .. } = *scenario;
    let recorder = crew.recorder();
    let pairs = || {
        REGIONS
            .iter()
            .flat_map(|(from, _)| REGIONS.iter().map(move |(to, _)| (*from, *to)))
    };
    assert_eq!(unlike(wan, |_, _| true), Vec::<String>::new());
    let dropped = wan.dropped(harm);
    recorder.note(What::Begins {
        fault,
        text: text.to_owned(),
    });
    wan.begin(harm, ways);
    let (began, stands) = (Instant::now(), recorder.now());
    if harm == Harm::Cut {
        assert_eq!(
            unlike(wan, |from, to| !scenario.harms(from, to)),
            Vec::<String>::new()
        );
    }
    until_log(crew, |log| {
        let track = Track::of(crew.clients(), log);
        let mut missing = Vec::new();
        for (from, to) in pairs() {
            let (accepted, handled) = counts(&track, from, to, stands);
            if accepted < ENOUGH || (handled < ENOUGH && scenario.flows(from, to)) {
                missing.push(format!("{from} to {to}: {accepted} accepted, {handled} handled"));
            }
        }
        for measures in measured(crew.clients(), log, fault + 1).faults {
            let told = &measures.unreachable;
            if measures.span.fault == fault
                && !scenario.apart.is_empty()
                && (told.expected == 0 || told.missing > 0)
            {
                missing.push(format!("{:?} unreachable: {told:?}", measures.span.struck));
            }
        }
        let left = HARM_LASTS.saturating_sub(began.elapsed());
        if !left.is_zero() {
            missing.push(format!("{left:?}"));
        }
        missing
    })
    .await;
    let dropped = wan.dropped(harm) - dropped;
    assert!(dropped > 0, "{text}: no packet was dropped");
    let heals = recorder.now();
    let log = recorder.log();
    wan.heal(harm);
    assert_eq!(unlike(wan, |_, _| true), Vec::<String>::new());
    recorder.note(What::Ends { fault });

    let track = Track::of(crew.clients(), &log);
    let mut through = Vec::new();
    for (from, to) in pairs() {
        let (accepted, handled) = counts(&track, from, to, stands);
        assert!(
            handled == 0 || harm != Harm::Cut || !scenario.harms(from, to),
            "{text}: {handled} messages from {from} got to {to}"
        );
        through.push(format!("{from} to {to} {handled} of {accepted}"));
    }
    until_log(crew, |log| {
        let faults = measured(crew.clients(), log, fault + 1).faults;
        let of_this = faults.iter().filter(|measures| measures.span.fault == fault);
        let open = of_this.filter(|measures| measures.settled.is_none() || measures.back.missing > 0);
        let open =
            open.map(|measures| format!("{text}: settled {:?}, back {:?}", measures.settled, measures.back));
        // What nobody handled yet would count as lost, and not as unsettled.
        let track = Track::of(crew.clients(), log);
        let ways = pairs().map(|(from, to)| (from, to, counts(&track, from, to, stands)));
        let waits = ways.filter(|(.., (accepted, handled))| handled < accepted);
        let waits = waits.map(|(from, to, counts)| {
            format!("{from} to {to}: of {} accepted {} handled", counts.0, counts.1)
        });
        open.chain(waits).collect()
    })
    .await;
    eprintln!(
        "{text}: {dropped} packets dropped in {:.1} s; handled meanwhile, of what was accepted meanwhile: {}",
        seconds(heals - stands),
        through.join(", ")
    );
}

/// Looks at what the clients noted until nothing is missing.
async fn until_log(crew: &Crew, mut missing: impl FnMut(&[Entry]) -> Vec<String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let missing = missing(&crew.recorder().log());
        if missing.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not within {PATIENCE:?}: {}",
            missing.join("; ")
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ways on which a datagram fares otherwise than it should. A datagram is enough where all are dropped or none.
fn unlike(wan: &Wan, passes: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut unlike = Vec::new();
    for (from, senders) in REGIONS {
        for (to, receivers) in REGIONS {
            // From the edge to the core: no node is on a way of its own.
            let (sender, receiver) = (senders[1], receivers[0]);
            let passed = wan.passes(sender, receiver);
            if passed != passes(from, to) {
                let how = if passed { "passes" } else { "does not pass" };
                unlike.push(format!("a datagram from {sender} to {receiver} {how}"));
            }
        }
    }
    unlike
}

/// Of the messages that were sent from a time on, from clients of one region to those of another: accepted, and of them handled.
fn counts(track: &Track, from: &str, to: &str, since: Micros) -> (usize, usize) {
    let home = |client: usize| track.clients[client].home.as_str();
    let of_these = |message: &&Message| {
        home(message.from) == from
            && home(message.to) == to
            && message.sent >= since
            && message.accepted.is_some()
    };
    let accepted = track.messages.values().filter(of_these);
    (
        accepted.clone().count(),
        accepted.filter(|message| !message.handled.is_empty()).count(),
    )
}

/// Watchers that have not been shown all others.
fn unseen(clients: &[Client], log: &[Entry]) -> Vec<String> {
    let track = Track::of(clients, log);
    let watchers: Vec<usize> = (0..clients.len()).filter(|n| clients[*n].pinned).collect();
    let mut unseen = Vec::new();
    for watcher in &watchers {
        for other in watchers.iter().filter(|other| *other != watcher) {
            let told = track.shown.get(&(*watcher, *other)).and_then(|told| told.last());
            if told.is_none_or(|(_, shown)| *shown != Shown::Online) {
                unseen.push(format!(
                    "{} shows {} as {told:?}",
                    track.name(*watcher),
                    track.name(*other)
                ));
            }
        }
    }
    unseen
}

/// What the log says of the first scenarios.
fn measured(clients: &[Client], log: &[Entry], scenarios: usize) -> Measures {
    let scenarios = SCENARIOS.iter().take(scenarios).enumerate();
    let spans: Vec<FaultSpan> = scenarios
        .flat_map(|(fault, scenario)| scenario.spans(fault))
        .collect();
    measure(clients, &spans, log)
}

fn judge(clients: &[Client], log: &[Entry], measures: &Measures) {
    let counts = &measures.counts;
    let after = |micros: Option<Micros>| match micros {
        Some(micros) => format!("{:.1} s after", seconds(micros)),
        None => "never after".to_owned(),
    };
    for fault in &measures.faults {
        let FaultSpan { text, struck, .. } = &fault.span;
        if !struck.is_empty() {
            eprintln!(
                "{text}: users of {} unreachable to all others {} the beginning, online again {} the end",
                struck.join(" and "),
                after(fault.unreachable.worst),
                after(fault.back.worst),
            );
        }
        eprintln!("{text}: all as it should be {} the end", after(fault.settled));
    }
    eprintln!(
        "{} messages sent, {} accepted, {} handled; {} recognised as sent again",
        counts.sent, counts.accepted, counts.handled, counts.recognised
    );
    for (what, found) in [
        ("lost", &measures.lost),
        ("handled twice", &measures.duplicates),
        ("handled out of order", &measures.disorder),
        ("never answered", &measures.never_answered),
        ("not sent, or another's", &measures.stray),
    ] {
        assert_eq!(found.count, 0, "{what}: {found:?}");
    }
    assert_eq!((counts.rejected, counts.gone_told), (0, 0), "{counts:?}");
    assert_eq!(counts.accepted, counts.sent);
    assert!(measures.convergence.is_some(), "{:?}", measures.presence);
    let track = Track::of(clients, log);
    for (n, client) in clients.iter().enumerate() {
        // What is between regions is nothing to clients: they have their region's edge all the while.
        for session in track.sessions(n) {
            assert_eq!(session.region, client.home, "{}", client.name);
        }
    }
    // And nobody who is there is ever shown to be gone, as is said of those who left.
    for ((watcher, client), told) in &track.shown {
        let began = told.iter().position(|(_, shown)| *shown == Shown::Online);
        let after = &told[began.expect("it was waited for")..];
        let offline = after.iter().find(|(_, shown)| *shown == Shown::Offline);
        assert_eq!(
            offline,
            None,
            "{} of {}",
            track.name(*watcher),
            track.name(*client)
        );
    }
}

fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}
