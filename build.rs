//! Says of which commit the program is built, for reports of failures: `BUILD_COMMIT` (no name of a setting: tests
//! and `cargo run` hand it on to what they start).
//!
//! A build from an archive, or without git, says nothing; whoever packages one may set `BUILD_COMMIT`. A commit that changes
//! no source does not build anything anew; release builds look at every commit.

use std::path::Path;
use std::process::Command;

/// What the program is made of.
const SOURCES: [&str; 6] = [
    "src",
    "regions",
    "simulations",
    "build.rs",
    "Cargo.toml",
    "Cargo.lock",
];

fn main() {
    println!("cargo::rerun-if-env-changed=BUILD_COMMIT");
    for source in SOURCES.iter().filter(|source| Path::new(source).exists()) {
        println!("cargo::rerun-if-changed={source}");
    }
    let named = std::env::var("BUILD_COMMIT").ok().filter(|name| !name.is_empty());
    if let Some(commit) = named.or_else(of_checkout) {
        println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    }
}

/// The commit of this checkout, and whether the sources are other than it has them.
fn of_checkout() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    // Sources that were unpacked inside another repository are not of that repository's commit.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
        if Path::new(&log).exists() {
            println!("cargo::rerun-if-changed={log}");
        }
    }
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let status = [&["status", "--porcelain", "--"], &SOURCES[..]].concat();
    let changed = git(&status).is_none_or(|status| !status.is_empty());
    Some(if changed {
        format!("{commit} with changes")
    } else {
        commit
    })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(args)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
