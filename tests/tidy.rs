//! House rules that no compiler checks: which way imports point, how long a file may be, what may not be left behind.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What each top module of the library may import besides itself. Imports point one way: the core knows nothing of the
/// rest, stores and networks know the core, the server knows them, and what people use sits on top.
const MAY_IMPORT: [(&str, &[&str]); 10] = [
    ("core", &[]),
    ("file_lock", &[]),
    ("store", &["core", "file_lock"]),
    ("net", &["core"]),
    ("server", &["core", "file_lock", "store", "net"]),
    ("client", &["core", "file_lock", "net"]),
    ("admin", &["core", "store", "net", "server"]),
    ("sim", &["core", "store", "server", "client"]),
    ("drill", &["core", "net", "server", "client", "admin", "sim"]),
    (
        "cli",
        &[
            "core", "store", "net", "server", "client", "admin", "sim", "drill",
        ],
    ),
];

/// What does input or output, or reads a clock: nothing for the deterministic core. Clippy denies some types and
/// functions there; this covers whole crates.
const NOT_IN_CORE: [&str; 22] = [
    "tokio::",
    "quinn::",
    "rustls::",
    "fjall::",
    "chitchat::",
    "hyper::",
    "rustix::",
    "socket2::",
    "tracing::",
    "std::net",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "std::sync::Mutex",
    "std::io::std",
    "ring::rand",
    "rand::",
    "getrandom::",
    "RandomState",
    "DefaultHasher",
    "SystemRandom",
];

/// A file longer than this holds a second thing that wants its own.
const MAX_LINES: usize = 1000;
/// From here on that is to be looked for.
const LONG: usize = 800;

#[test]
fn imports_point_one_way() {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).expect("there is a library");
    let mut found: Vec<String> = lib
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
        .filter(|module| MAY_IMPORT.iter().all(|(known, _)| known != module))
        .map(|module| {
            format!("src/lib.rs: module {module} has no place in the order: give it one in tests/tidy.rs")
        })
        .collect();
    each_source("src", &mut |path, text| found.extend(wrong_imports(path, text)));
    report(&found);
}

#[test]
fn the_core_does_no_io() {
    let mut found = Vec::new();
    each_source("src/core", &mut |path, text| {
        found.extend(lines_with(path, text, &NOT_IN_CORE, "pass it in as an input"));
        found.extend(grouped_with(path, text, &NOT_IN_CORE, "pass it in as an input"));
    });
    report(&found);
}

#[test]
fn files_are_of_a_readable_length() {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        each_source(folder, &mut |path, text| match text.lines().count() {
            lines if lines > MAX_LINES => found.push(format!("{path}: {lines} lines; at most {MAX_LINES}")),
            lines if lines > LONG => println!("{path}: {lines} lines: look for the second thing in it"),
            _ => {}
        });
    }
    report(&found);
}

#[test]
fn nothing_is_left_unfinished() {
    let macros = unfinished();
    let macros: Vec<&str> = macros.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    each_source("src", &mut |path, text| {
        found.extend(lines_with(path, text, &macros, "finish it"));
    });
    report(&found);
}

#[test]
fn every_allowed_lint_has_a_reason() {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        each_source(folder, &mut |path, text| {
            found.extend(allowed_without_reason(path, text))
        });
    }
    report(&found);
}

#[test]
fn no_file_names_a_place_on_one_machine() {
    let mut found = Vec::new();
    each_file(&root(), &mut |path| {
        // What is not text has no paths to read.
        if let Ok(text) = std::fs::read_to_string(path) {
            found.extend(machine_paths(&relative(path), &text));
        }
    });
    report(&found);
}

#[test]
fn the_rules_find_what_they_forbid() {
    let wrong = |path: &str, text: &str| wrong_imports(path, text).len();
    assert_eq!(wrong("src/core/ids.rs", "use crate::store::engine;"), 1);
    assert_eq!(
        wrong("src/core/ids.rs", "use crate::core::time; use super::time;"),
        0
    );
    assert_eq!(
        wrong("src/core/ids.rs", "/// See [`crate::server`].\n//! crate::net"),
        0
    );
    assert_eq!(
        wrong("src/core/deep/er.rs", "use super::super::super::net::frame;"),
        1
    );
    assert_eq!(wrong("src/core/deep/mod.rs", "use super::super::net::frame;"), 1);
    assert_eq!(wrong("src/core/deep/er.rs", "use super::super::net;"), 0);
    assert_eq!(
        wrong(
            "src/store/a.rs",
            "use crate::{\n    core::ids,\n    net::frame,\n};"
        ),
        1
    );
    assert_eq!(wrong("src/net/a.rs", "let x = crate::server::config::load();"), 1);
    assert_eq!(
        wrong(
            "src/cli/a.rs",
            "use crate::{core::ids, server, sim::{World, net}};"
        ),
        0
    );
    assert_eq!(wrong("src/main.rs", "use iris::cli;"), 0);
    assert_eq!(
        wrong("src/core.rs", "use super::net::frame; use crate::server;"),
        2
    );

    let lint = ["#[", "allow(dead_code)]"].concat();
    let inner = ["#![", "allow(\n    clippy::all,\n)]"].concat();
    let given = [
        "#[",
        "allow(\n    dead_code,\n    reason = \"it is (really) needed\"\n)]",
    ]
    .concat();
    let nested = ["#[cfg_attr(test, ", "expect(dead_code))]"].concat();
    let others = [
        "#[te",
        "st]\nfn expect(x: u8) {}\n#[error(\"a ] b\")]\nfn allow() {}",
    ]
    .concat();
    let text = [lint, inner, given, nested].join("\n");
    assert_eq!(allowed_without_reason("a.rs", &others).len(), 0);
    assert_eq!(allowed_without_reason("a.rs", &text).len(), 3);
    assert_eq!(
        allowed_without_reason("a.rs", "result.expect(\"fine\"); allow(x)").len(),
        0
    );

    let macros = unfinished();
    let text = format!("let a = 1;\n    {}()\n// {}\n", macros[0], macros[1]);
    let macros: Vec<&str> = macros.iter().map(String::as_str).collect();
    assert_eq!(lines_with("a.rs", &text, &macros, "").len(), 1);

    let grouped = |text: &str| grouped_with("a.rs", text, &NOT_IN_CORE, "").len();
    assert_eq!(grouped("use std::{fs, io};"), 1);
    assert_eq!(
        grouped(
            "pub use std::{\n    collections::BTreeMap,\n    sync::{Arc, Mutex},\n    {net::SocketAddr},\n};"
        ),
        2
    );
    assert_eq!(grouped("use {tokio::sync::{self, mpsc}, std::fmt};"), 2);
    assert_eq!(grouped("use tokio::{self};"), 1);
    assert_eq!(grouped("use std::{fmt, io, sync::Arc}; use super::{fs, net};"), 0);

    let place = ["/ho", "me/someone/x"].concat();
    assert_eq!(
        machine_paths("a.md", &format!("see {place}\nsee a{place}\n`{place}`")).len(),
        2
    );
}

/// The paths that `text` takes out of its own top module into one that it may not import.
fn wrong_imports(path: &str, text: &str) -> Vec<String> {
    let Some(inside) = path.strip_prefix("src/").and_then(|p| p.strip_suffix(".rs")) else {
        return Vec::new();
    };
    let modules: Vec<&str> = inside.split('/').filter(|part| *part != "mod").collect();
    let Some((_, may)) = MAY_IMPORT.iter().find(|(module, _)| *module == modules[0]) else {
        return Vec::new();
    };
    let code = without_comments(text);
    let climb = "super::".repeat(modules.len());
    let mut targets: Vec<(usize, String)> = Vec::new();
    for start in ["crate::", &climb] {
        for (at, _) in code.match_indices(start) {
            let begins = !code[..at].ends_with("super::") && !code[..at].ends_with(is_word);
            let rest = &code[at + start.len()..];
            if !begins || rest.starts_with("super::") {
                continue;
            }
            match rest.strip_prefix('{') {
                Some(rest) => targets.extend(first_names(rest).map(|name| (at, name))),
                None => targets.push((at, rest.chars().take_while(|c| is_word(*c)).collect())),
            }
        }
    }
    targets
        .into_iter()
        .filter(|(_, name)| name != modules[0] && !may.contains(&name.as_str()))
        .filter(|(_, name)| MAY_IMPORT.iter().any(|(module, _)| module == name))
        .map(|(at, name)| {
            let line = line_of(&code, at);
            format!(
                "{path}:{line}: {} may not know {name}; it may know {may:?}",
                modules[0]
            )
        })
        .collect()
}

/// The first name of each path in the group that `rest` begins with, behind its brace.
fn first_names(rest: &str) -> impl Iterator<Item = String> {
    let (mut depth, mut names, mut name) = (0_usize, Vec::new(), String::new());
    let mut in_first = true;
    for c in rest.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(std::mem::take(&mut name));
                in_first = true;
            }
            c if depth == 0 && in_first && is_word(c) => name.push(c),
            c if c.is_whitespace() => {}
            _ => in_first = false,
        }
    }
    names.push(name);
    names.into_iter()
}

/// The lines of code, comments left out, that hold one of `needles`.
fn lines_with(path: &str, text: &str, needles: &[&str], remedy: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in without_comments(text).lines().enumerate() {
        for needle in needles {
            let hits = line.match_indices(needle);
            if hits
                .into_iter()
                .any(|(at, _)| !line[..at].ends_with(|c| is_word(c) || c == ':'))
            {
                found.push(format!("{path}:{}: {needle}: {remedy}", number + 1));
            }
        }
    }
    found
}

/// Imports in groups, `use std::{fs, io};`, of paths that begin with one of `needles`.
fn grouped_with(path: &str, text: &str, needles: &[&str], remedy: &str) -> Vec<String> {
    let code = without_comments(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let tree = code[at + 4..].split(';').next().unwrap_or_default();
        if !tree.contains('{') {
            continue;
        }
        for import in expanded(tree) {
            // `use tokio::{self}` is all of it.
            let import = import.strip_suffix("self").unwrap_or(&import);
            for needle in needles.iter().filter(|needle| import.starts_with(**needle)) {
                found.push(format!("{path}:{}: {needle}: {remedy}", line_of(&code, at)));
            }
        }
    }
    found
}

/// Each path of a tree of imports, in full.
fn expanded(tree: &str) -> Vec<String> {
    let (mut depth, mut start, mut items) = (0_usize, 0, Vec::new());
    for (at, c) in tree.char_indices().chain([(tree.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                items.push(tree[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let mut paths = Vec::new();
    for item in items {
        match item.split_once('{') {
            Some((before, group)) => {
                let group = group.rsplit_once('}').map_or(group, |(group, _)| group);
                paths.extend(
                    expanded(group)
                        .iter()
                        .map(|path| format!("{}{path}", before.trim())),
                );
            }
            None => paths.push(item.to_owned()),
        }
    }
    paths
}

/// Attributes that allow or expect a lint and do not say why.
fn allowed_without_reason(path: &str, text: &str) -> Vec<String> {
    let code = without_comments(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices('#') {
        let attribute = &code[at..];
        let before = code[..at].rsplit('\n').next().unwrap_or_default();
        if !before.trim().is_empty() || !(attribute.starts_with("#[") || attribute.starts_with("#![")) {
            continue;
        }
        let attribute = &attribute[..end_of_brackets(attribute)];
        let lint = attribute
            .match_indices("allow(")
            .chain(attribute.match_indices("expect("));
        let mut lint = lint.filter(|(at, _)| !attribute[..*at].ends_with(|c| is_word(c) || c == '.'));
        if lint.next().is_some() && !attribute.contains("reason = ") {
            found.push(format!(
                "{path}:{}: a lint is allowed without a reason",
                line_of(&code, at)
            ));
        }
    }
    found
}

/// Where the brackets that `text` begins with are closed again; brackets in string literals do not count.
fn end_of_brackets(text: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted && depth == 1 => return at + 1,
            ']' if !quoted => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// Absolute paths of somebody's machine. The needles are put together here so that this file does not hold them.
fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let folders = [["ho", "me"], ["ro", "ot"], ["wo", "rk"], ["Us", "ers"]];
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for folder in folders.map(|halves| format!("/{}/", halves.concat())) {
            let mut hits = line.match_indices(&folder);
            if hits.any(|(at, _)| !line[..at].ends_with(|c| is_word(c) || ".-~/}>".contains(c))) {
                found.push(format!("{path}:{}: names {folder} of one machine", number + 1));
            }
        }
    }
    found
}

fn unfinished() -> [String; 3] {
    ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!"))
}

/// The code with its line comments blanked out; lines stay where they are.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        code.push_str(if line.trim_start().starts_with("//") {
            ""
        } else {
            line
        });
        code.push('\n');
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.to_string_lossy().replace('\\', "/")
}

/// Every Rust file under a folder of the repository, where there is that folder.
fn each_source(folder: &str, see: &mut dyn FnMut(&str, &str)) {
    each_file(&root().join(folder), &mut |path| {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).expect("sources are UTF-8");
            see(&relative(path), &text);
        }
    });
}

/// Every file under a folder, in order, without what is built, kept by tools or hidden (other than `.ci`).
fn each_file(folder: &Path, see: &mut dyn FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let built = ["target", "data", "proptest-regressions"].contains(&name.as_str());
        if built || (name.starts_with('.') && name != ".ci") {
            continue;
        }
        if path.is_dir() {
            each_file(&path, see);
        } else {
            see(&path);
        }
    }
}

fn report(found: &[String]) {
    let mut text = String::new();
    for line in found {
        writeln!(text, "  {line}").expect("writing to a string does not fail");
    }
    assert!(
        found.is_empty(),
        "{} against the house rules:\n{text}",
        found.len()
    );
}
