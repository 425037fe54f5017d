//! Scenario files: the shipped ones in other regions and with other numbers, what is wrong with a file by line and key, and
//! runs that are the same in another process.

use std::fs;
use std::path::Path;
use std::process::Command;

use iris::server::config::TomlText;
use iris::server::regions::Regions;
use iris::sim::rng::SimRng;
use iris::sim::scenario::Scenario;
use iris::sim::{self, EngineKind, Options, Report, draw, shipped, shrink, span};
use toml::Value;

/// Runs of changed scenarios in the test.
const CHANGED: u64 = 24;
/// A changed scenario works at most so long.
const LONGEST: u64 = 60_000_000;
/// Shipped scenarios work at most so long, those apart that run only where all are run as commands.
const WORK: u64 = 60_000_000;
const LONG: u64 = 600_000_000;
/// From the healing to the end: settling has a minute from the last message that is handled, leaving 40 s, then silence.
const REST: u64 = 180_000_000;

/// Every shipped scenario as it is, with one seed, in a folder of so many regions that it does not name.
fn every_scenario_holds(count: usize) {
    let regions = regions(count);
    for scenario in shipped::scenarios() {
        if scenario.work() >= LONG {
            continue;
        }
        assert!(scenario.work() <= WORK, "{} is too long", scenario.name);
        let case = scenario.case(&regions, 3);
        let case = case.unwrap_or_else(|error| panic!("{} in {count} regions: {error}", scenario.name));
        let report = sim::case_with_story(case, Options::default());
        assert!(report.violation.is_none(), "in {count} regions: {report}");
        let end = scenario.work() + REST;
        assert!(
            report.time <= end,
            "{} took {}",
            scenario.name,
            span::show(report.time)
        );
    }
}

#[test]
fn every_scenario_holds_in_one_region() {
    every_scenario_holds(1);
}

#[test]
fn every_scenario_holds_in_two_regions() {
    every_scenario_holds(2);
}

#[test]
fn every_scenario_holds_in_five_regions() {
    every_scenario_holds(5);
}

/// Cases of seeds that once broke a promise (`tests/regressions`): what they found is mended.
#[test]
fn cases_that_once_failed_hold() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/regressions");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the repository has them")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = TomlText::read(&file).expect("TOML");
        let case: sim::Case = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(case.wrongs(), [], "{}", file.display());
        let report = sim::case_with_story(case, Options::default());
        assert!(report.violation.is_none(), "{}: {report}", file.display());
    }
}

#[test]
fn changed_scenarios_in_other_regions_hold() {
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
        let text = fs::read_to_string(file).expect("the repository has it");
        let mut table: toml::Table = text.parse().expect("shipped scenarios are TOML");
        change(rng, scenario.work(), &mut table);
        let text = toml::to_string(&table).expect("what was read can be written");
        let regions = &folders[rng.index(folders.len())];
        let report = run(&scenario.name, &text, regions, seed);
        if let Some(violation) = &report.violation {
            // With other numbers less may happen than the scenario expects; promises hold all the same.
            assert!(violation.invariant.starts_with("expected:"), "{report}\n{text}");
        }
    }
}

/// Other numbers, within what the keys take, and another length: what happens at a time goes with it.
fn change(rng: &mut SimRng, work: u64, table: &mut toml::Table) {
    let percent = [50, 80, 100, 130, 200][rng.index(5)];
    let length = (work * percent / 100).min(LONGEST);
    for (key, value) in table.iter_mut() {
        if ![
            "title",
            "regions",
            "engine",
            "clock",
            "inbox",
            "membership",
            "expect",
        ]
        .contains(&key.as_str())
        {
            change_value(rng, key, value);
            move_times(value, key, (length, work));
        }
    }
}

/// What stands for a time of the run, or a part of it, moves as its length does.
fn move_times(value: &mut Value, key: &str, by: (u64, u64)) {
    match value {
        Value::String(text) if is_time(key) => {
            if let Some(span) = span::parse(text) {
                let moved = u128::from(span) * u128::from(by.0) / u128::from(by.1);
                *text = span::show(moved as u64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_times(item, key, by)),
        Value::Table(table) => table
            .iter_mut()
            .for_each(|(key, value)| move_times(value, key, by)),
        _ => {}
    }
}

fn is_time(key: &str) -> bool {
    [
        "work", "at", "lasts", "start", "stop", "arrives", "spread", "until",
    ]
    .contains(&key)
}

fn change_value(rng: &mut SimRng, key: &str, value: &mut Value) {
    let percent = [50, 80, 100, 130, 200][rng.index(5)];
    match value {
        Value::String(text) if !is_time(key) => {
            if let Some(span) = span::parse(text) {
                *text = span::show((span * percent / 100).max(100_000));
            }
        }
        Value::Integer(number) if ["count", "edges", "partitions", "shards", "devices"].contains(&key) => {
            let most = if key == "count" { 200 } else { 4 };
            *number = (*number * percent as i64 / 100).clamp(1, most);
        }
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
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
    let texts =
        (1..=count).map(|at| TomlText::new(format!("region-{at}.toml"), region_file(at)).expect("TOML"));
    Regions::from_texts(Path::new("made"), texts.collect()).expect("regions that can be used")
}

fn region_file(at: usize) -> String {
    let port = 7000 + at * 100;
    format!(
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
    )
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
        (
            "[nodes]\npartitions = 9\n",
            "s.toml:6: nodes.partitions = 9: expected 1 to 8",
        ),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"crash\"\non = [\"us-east/corre\"]\n",
            "s.toml:8: fault.0.on = [\"us-east/corre\"]: \"us-east/corre\" is no place here",
        ),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"crash\"\non = [\"us-east/edge-0\"]\n",
            "\"us-east/edge-0\" is no place here",
        ),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"crash\"\non = [\"us-east/eu-west-core-1\"]\n",
            "is no place here",
        ),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"crash\"\non = [\"cores/edge-1\"]\n",
            "is no place here",
        ),
        (
            "[[fault]]\nat = \"10s\"\nkind = \"crash\"\non = [\"all\"]\n",
            "s.toml:6: fault.0.at = \"10s\": expected less than `work`, 10s",
        ),
        (
            "[[act]]\nat = \"12s\"\ndevice = \"a\"\nto = \"a\"\n",
            "s.toml:6: act.0.at = \"12s\": expected less than `work`",
        ),
        (
            "[[act]]\nat = \"1s\"\ndevice = \"a\"\nto = \"a\"\ntwin = \"b\"\n",
            "act.0.twin = \"b\"",
        ),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"lose\"\non = [\"all\"]\n",
            "s.toml:8: fault.0.on = [\"all\"]: no region would be left",
        ),
        (
            "[[fault]]\nat = \"1s\"\nkind = \"lose\"\non = [\"us-east\"]\n\
             [[fault]]\nat = \"2s\"\nkind = \"lose\"\non = [\"eu-west\", \"ap-south\"]\n",
            "s.toml:12: fault.1.on = [\"eu-west\", \"ap-south\"]: no region would be left",
        ),
        (
            "[[users]]\nname = \"b\"\nwatches = [\"c\"]\n",
            "s.toml:7: users.1.watches = [\"c\"]: \"c\" is neither a user",
        ),
        (
            "[[users]]\nname = \"b/b\"\n",
            "s.toml:6: users.1.name = \"b/b\": expected a name of its own",
        ),
        (
            "[[clock]]\non = [\"us-east\"]\noffset_ms = 9223372036854775807\n",
            "s.toml:7: clock.0.offset_ms = 9223372036854775807: expected at most",
        ),
        (
            "[[clock]]\non = [\"us-east\"]\ndrift_ppm = 90000\n[[clock]]\non = [\"all\"]\ndrift_ppm = 90000\n",
            "expected 0 to 100000",
        ),
        (
            "[[workload]]\nstart = \"11s\"\n",
            "s.toml:6: workload.0.start = \"11s\": expected 0s to 10s",
        ),
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
    let case = scenario("one-way-partition")
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

/// A scenario for several regions runs where there is one: what it would take from the last one has no effect, and says so.
#[test]
fn what_a_lone_region_cannot_lose_is_told() {
    let options = Options {
        trace: true,
        ..Options::default()
    };
    for (name, what) in [
        ("disk-replaced", "no effect: disk-replaced region-1/core"),
        ("region-cut-off", "no effect: cut from region-1"),
        ("region-lost-for-good", "no effect: lose region-1"),
    ] {
        let case = scenario(name).case(&regions(1), 1).expect("it is valid");
        let report = sim::run_case(case, options);
        assert!(report.violation.is_none(), "{report}");
        assert_eq!(
            (report.stats.faults, report.stats.without_effect),
            (0, 1),
            "{name}"
        );
        assert!(
            report.story.iter().any(|line| line.contains(what)),
            "{name}: {what}"
        );
    }
}

fn scenario(name: &str) -> Scenario {
    let mut all = shipped::scenarios().into_iter();
    all.find(|scenario| scenario.name == name).expect("it is shipped")
}

/// `iris sim` in a folder: its exit code, and what it prints.
fn iris(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_iris"))
        .current_dir(folder)
        .arg("sim")
        .args(args)
        .output()
        .expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("it is not killed");
    (code, text(&output.stdout), text(&output.stderr))
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_folder_of_two_regions_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let mine = folder.path().join("mine");
    fs::create_dir(&mine).expect("a folder");
    for at in [1, 2] {
        fs::write(mine.join(format!("region-{at}.toml")), region_file(at)).expect("write");
    }
    let args = [
        "run",
        "region-lost-for-good",
        "three-way-split",
        "--regions",
        "mine",
    ];
    let (code, stdout, stderr) = iris(folder.path(), &[&args[..], &["--output", "json"]].concat());
    assert_eq!(code, 0, "{stdout}{stderr}");
    let rows = json(&stdout);
    assert_eq!(rows[0]["scenario"], "region-lost-for-good");
    assert_eq!(
        (&rows[0]["faults"], &rows[0]["without_effect"]),
        (&1.into(), &0.into())
    );
    let (code, stdout, stderr) = iris(folder.path(), &[&args[..], &["--trace"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("region-2/r2-edge starts"), "{stdout}");
}

/// A defect of the harness that every build has, and every seed finds soon.
const DEFECT: [&str; 2] = ["--defect", "deliver-lost"];

#[test]
fn what_a_swarm_finds_is_replayed_kept_and_made_small() {
    let folder = tempfile::tempdir().expect("a folder");
    let iris = |args: &[&str]| iris(folder.path(), &[args, &DEFECT].concat());
    let (code, stdout, _) = iris(&["swarm", "--seeds", "50", "--jobs", "2", "--output", "json"]);
    assert_eq!(code, 1, "{stdout}");
    let rows = json(&stdout);
    let mut failures = rows
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["failures"].get(0));
    let failure = failures.next().expect("a failure");
    let seed = failure["seed"].as_u64().expect("a seed").to_string();
    let invariant = failure["invariant"].as_str().expect("an invariant");
    assert!(
        !failure["events"].as_array().expect("events").is_empty(),
        "{failure}"
    );
    assert!(
        failure["commit"].is_string() || failure["commit"].is_null(),
        "{failure}"
    );
    let (code, stdout, _) = iris(&["swarm", "--seed", &seed, "--seeds", "1"]);
    assert_eq!(code, 1);
    for part in [
        "ENGINE",
        "BROKEN",
        invariant,
        &format!("iris sim replay --seed {seed} --defect deliver-lost --trace"),
        "1 seeds, 1 broke a promise",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, stderr) = iris(&[
        "replay",
        "--seed",
        &seed,
        "--save",
        "case.toml",
        "--output",
        "json",
    ]);
    let replayed = json(&stdout);
    assert_eq!(
        (code, replayed["failure"]["invariant"].as_str()),
        (1, Some(invariant)),
        "{stderr}"
    );
    let (code, stdout, _) = iris(&["replay", "case.toml", "--output", "json", "--trace"]);
    assert_eq!((code, &json(&stdout)["hash"]), (1, &replayed["hash"]));
    let (code, stdout, _) = iris(&[
        "shrink",
        "case.toml",
        "--runs",
        "40",
        "--out",
        "small.toml",
        "--output",
        "json",
    ]);
    let small = json(&stdout);
    assert_eq!((code, small["file"].as_str()), (0, Some("small.toml")));
    assert_eq!(small["failure"]["invariant"].as_str(), Some(invariant));
    let (code, stdout, _) = iris(&["replay", "small.toml"]);
    assert_eq!(code, 1);
    assert!(
        stdout.contains(invariant) && stdout.contains("build:     iris "),
        "{stdout}"
    );
}

#[test]
fn each_seed_twice_and_a_swarm_that_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let (code, stdout, stderr) = iris(folder.path(), &["run", "--seeds", "4", "--verify-determinism"]);
    assert_eq!(
        (code, stdout.as_str()),
        (0, "4 seeds, 0 broke a promise\n"),
        "{stderr}"
    );
    let (code, stdout, stderr) = iris(folder.path(), &["swarm", "--seeds", "4"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("all") && stdout.contains("4/4"), "{stdout}");
}

#[test]
fn a_story_makes_way_for_json_and_a_picture_says_of_which_run_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = [
        "run",
        "clogged-links",
        "--seeds",
        "2",
        "--output",
        "json",
        "--trace",
        "--html",
        "run.html",
    ];
    let (code, stdout, stderr) = iris(folder.path(), &args);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(json(&stdout)[0]["seeds"], 2);
    assert!(stderr.contains("everything heals"), "{stderr}");
    assert!(
        stderr.contains("the picture of clogged-links, seed 1, the last, is in run.html"),
        "{stderr}"
    );
    let page = fs::read_to_string(folder.path().join("run.html")).expect("a page");
    assert!(page.contains("<svg"), "{page}");
}

#[test]
fn a_run_is_the_same_in_another_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let hash = |engine: &str| -> String {
        let args = ["run", "--seed", "21", "--output", "json", "--engine", engine];
        let (code, stdout, stderr) = iris(folder.path(), &args);
        assert_eq!(code, 0, "{stdout}{stderr}");
        json(&stdout)[0]["hash"].as_str().expect("a hash").to_owned()
    };
    for (name, engine) in [
        ("memory", EngineKind::Memory),
        ("embedded", EngineKind::Embedded),
        ("shared", EngineKind::Shared),
    ] {
        let options = Options {
            engine: Some(engine),
            ..Options::default()
        };
        let report = sim::run(21, options);
        assert_eq!(report.case.engine, engine, "seed 21 has one core in each region");
        let here = format!("{:016x}", report.hash);
        assert_eq!([hash(name), hash(name)], [here.clone(), here], "{name}");
    }
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
