//! Scenario files: the shipped ones in other regions and with other numbers, what is wrong with a file by line and key, and
//! runs that are the same in another process.

use std::path::Path;
use std::process::Command;

use iris::server::config::TomlText;
use iris::server::regions::Regions;
use iris::sim::rng::SimRng;
use iris::sim::scenario::Scenario;
use iris::sim::{self, Options, Report, draw, shipped, shrink, span};
use toml::Value;

/// Runs of changed scenarios in the test.
const CHANGED: u64 = 12;
/// A changed scenario is cut to this, so that the test stays short.
const LONGEST: u64 = 20_000_000;

#[test]
fn changed_scenarios_in_other_regions_run() {
    let folders = [1, 2, 3, 5].map(regions);
    let scenarios = shipped::scenarios();
    for seed in 0..CHANGED {
        let rng = &mut SimRng::new(7_000 + seed);
        let scenario = &scenarios[rng.index(scenarios.len())];
        let file = format!(
            "{}/simulations/{}.toml",
            env!("CARGO_MANIFEST_DIR"),
            scenario.name
        );
        let text = std::fs::read_to_string(file).expect("the repository has it");
        let mut table: toml::Table = text.parse().expect("shipped scenarios are TOML");
        change(rng, &mut table);
        let text = toml::to_string(&table).expect("what was read can be written");
        let regions = &folders[rng.index(folders.len())];
        let report = run(&scenario.name, &text, regions, seed);
        if let Some(violation) = &report.violation {
            // With other numbers less may happen than the scenario expects; promises hold all the same.
            assert!(violation.invariant.starts_with("expected:"), "{report}\n{text}");
        }
    }
}

/// Other times and other numbers, within what the keys take.
fn change(rng: &mut SimRng, table: &mut toml::Table) {
    table.remove("expect");
    let mut work = 0;
    for (key, value) in table.iter_mut() {
        if ["title", "regions", "engine", "clock", "inbox", "membership"].contains(&key.as_str()) {
            continue;
        }
        change_value(rng, key, value);
        if key == "work" {
            work = value.as_str().and_then(span::parse).unwrap_or(0).min(LONGEST);
            *value = Value::String(span::show(work));
        }
    }
    assert!(work > 0, "every scenario says how long it is");
    // What refusals are allowed stays: their causes stay too.
    if table.contains_key("inbox") {
        let mut expect = toml::Table::new();
        expect.insert("refused".to_owned(), Value::Array(vec!["inbox-full".into()]));
        table.insert("expect".to_owned(), Value::Table(expect));
    }
}

fn change_value(rng: &mut SimRng, key: &str, value: &mut Value) {
    let percent = [50, 80, 100, 130, 200][rng.index(5)];
    match value {
        Value::String(text) => {
            if let Some(span) = span::parse(text) {
                *text = span::show((span * percent / 100).max(100_000));
            }
        }
        Value::Integer(number) if ["count", "edges", "partitions", "shards", "devices"].contains(&key) => {
            let most = if key == "count" { 200 } else { 4 };
            *number = (*number * percent as i64 / 100).clamp(1, most);
        }
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
        Value::Array(items) => items.iter_mut().for_each(|item| change_value(rng, key, item)),
        Value::Table(table) => {
            for (key, value) in table.iter_mut() {
                // A user's number must go on to exist where devices are named by it.
                if !(table_is_users(key) || key == "name") {
                    change_value(rng, key, value);
                }
            }
        }
    }
}

fn table_is_users(key: &str) -> bool {
    ["count", "devices", "device_regions"].contains(&key)
}

fn run(name: &str, text: &str, regions: &Regions, seed: u64) -> Report {
    let scenario = TomlText::new(format!("{name}.toml"), text.to_owned()).and_then(Scenario::parse);
    let case = scenario.and_then(|scenario| scenario.case(regions, seed));
    let case = case.unwrap_or_else(|error| panic!("{name} with other numbers is refused: {error}\n{text}"));
    sim::case_with_story(case, Options::default())
}

/// A folder of so many regions, none of which a shipped scenario names, but in that of three.
fn regions(count: usize) -> Regions {
    if count == 3 {
        return Regions::built_in();
    }
    let text = |at: usize| {
        let port = 7000 + at * 100;
        let text = format!(
            "id = \"region-{at}\"\nname = \"Region {at}\"\n[place]\nlatitude = {}\nlongitude = {}\n\
             [[nodes]]\nname = \"r{at}-core\"\nroles = [\"core\", \"edge\"]\nclient = \"127.0.0.1:{port}\"\n\
             peer = \"127.0.0.1:{}\"\nadmin_http = \"127.0.0.1:{}\"\n\
             [[nodes]]\nname = \"r{at}-edge\"\nroles = [\"edge\"]\nclient = \"127.0.0.1:{}\"\npeer = \"127.0.0.1:{}\"\n\
             admin_http = \"127.0.0.1:{}\"\n",
            at * 15,
            at * 30,
            port + 1,
            port + 2,
            port + 3,
            port + 4,
            port + 5
        );
        TomlText::new(format!("region-{at}.toml"), text).expect("TOML")
    };
    Regions::from_texts(Path::new("made"), (1..=count).map(text).collect()).expect("regions that can be used")
}

#[test]
fn what_is_wrong_is_named_by_line_and_key() {
    let base = "title = \"t\"\nwork = \"10s\"\n[[users]]\nname = \"a\"\n";
    let refused = |rest: &str| {
        let text = TomlText::new("s.toml", format!("{base}{rest}"));
        let case = text
            .and_then(Scenario::parse)
            .and_then(|scenario| scenario.case(&Regions::built_in(), 0));
        case.expect_err("it is wrong").to_string()
    };
    for (rest, expected) in [
        (
            "[[fault]]\nat = \"1s\"\nkind = \"crash\"\non = [\"us-eats\"]\n",
            "s.toml:8: fault.0.on",
        ),
        ("[[fault]]\nat = \"1s\"\nkind = \"crash\"\n", "`on` is missing"),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"crush\"\n",
            "s.toml:7: fault.0.kind",
        ),
        ("[[fault]]\nat = \"soon\"\nkind = \"crash\"\n", "a span of time"),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"crash\"\non = [\"all\"]\nloss = 4\n",
            "s.toml:9: fault.0.loss = 4: crash has no such key",
        ),
        ("[[workload]]\nfrom = [\"b\"]\n", "s.toml:6: workload.0.from"),
        ("[[act]]\nat = \"1s\"\ndevice = \"a\"\nto = \"b\"\n", "act.0.to"),
        (
            "[network]\nloss = 1000\n",
            "s.toml:6: network.loss = 1000: expected 0 to 900",
        ),
        ("[nodes]\npartitions = 9\n", "expected 1 to 8"),
        ("colour = 1\n", "colour"),
    ] {
        let text = refused(rest);
        assert!(text.contains(expected), "{rest}\n{text}\nexpected: {expected}");
    }
}

#[test]
fn a_case_that_was_kept_runs_the_same_again() {
    for seed in [3, 11, 12] {
        let report = sim::run(seed, Options::default());
        let text = toml::to_string(&report.case).expect("a case can be written");
        let kept: sim::Case = toml::from_str(&text).expect("and read");
        assert_eq!(kept, report.case);
        let again = sim::run_case(kept, Options::default());
        assert_eq!(
            (again.hash, again.events),
            (report.hash, report.events),
            "seed {seed}"
        );
    }
}

#[test]
fn looking_changes_nothing_and_the_page_needs_nothing_else() {
    let case = shipped::scenarios()
        .iter()
        .find(|scenario| scenario.name == "one-way-partition")
        .expect("it is shipped")
        .case(&Regions::built_in(), 5)
        .expect("it is valid");
    let plain = sim::run_case(case.clone(), Options::default());
    let looked = Options {
        timeline: true,
        trace: true,
        ..Options::default()
    };
    let report = sim::run_case(case, looked);
    assert_eq!(plain.hash, report.hash);
    assert!(report.timeline.samples.len() > 50);
    let page = sim::html::page(&report);
    assert!(
        page.contains("<svg") && page.contains("one-way-partition"),
        "{page}"
    );
    for outside in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "the page asks for {outside}");
    }
}

#[test]
fn a_run_is_the_same_in_another_process() {
    let hash = || -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_iris"))
            .args(["sim", "run", "--seed", "21", "--output", "json"])
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        rows[0]["hash"].as_str().expect("a hash").to_owned()
    };
    let here = sim::run(21, Options::default()).hash;
    assert_eq!(hash(), format!("{here:016x}"));
    assert_eq!(hash(), hash());
}

#[test]
fn a_failing_case_shrinks_and_still_fails() {
    let options = Options {
        defect: Some(sim::Defect::DeliverLost),
        ..Options::default()
    };
    let seed = (0..50).find(|seed| sim::run(*seed, options).violation.is_some());
    let mut case = draw::draw(seed.expect("the defect is found"));
    draw::expand(&mut case);
    let small = shrink::shrink(case.clone(), options, 60, |_| {}).expect("it fails");
    let things = |case: &sim::Case| case.faults.len() + case.acts.len() + case.users.len() + case.nodes.len();
    assert!(things(&small) < things(&case));
    assert!(sim::run_case(small, options).violation.is_some());
}
