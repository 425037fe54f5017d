//! Arguments that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::core::inspect::MAX_PAGE;
use crate::server::config::{LoadOptions, Loaded, NodeConfig, Setting as _};

/// The data folder where none is named.
pub const DATA: &str = "data";

/// The folder of `iris dev`.
#[derive(Debug, Args)]
pub struct DataArg {
    /// The data folder of `iris dev`: stores, certificates and keys.
    #[arg(long, value_name = "DIR", default_value = DATA, env = "IRIS_DATA")]
    pub data: PathBuf,
}

/// The configuration of a node.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The node's configuration file.
    #[arg(long = "config", value_name = "FILE", env = "IRIS_CONFIG")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    set: SetArg,
}

/// Settings above file and environment.
#[derive(Debug, Args)]
pub struct SetArg {
    /// A setting above file and environment, such as limits.max_body=32KiB; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

impl ConfigArgs {
    /// Loads and checks it.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        load(self.file.clone(), &self.set)
    }
}

/// Loads and checks the configuration in `file`, the environment and `set`.
pub fn load(file: Option<PathBuf>, set: &SetArg) -> anyhow::Result<Loaded> {
    let mut options = LoadOptions::from_process(file);
    for (key, value) in &set.set {
        options = options.flag("--set", key, value);
    }
    let what = match &options.file {
        Some(_) => "the configuration cannot be used",
        None => "the configuration cannot be used; no file was given: --config FILE, or IRIS_CONFIG",
    };
    NodeConfig::load(options).context(what)
}

/// For `value_parser`: a duration such as `90s` or `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    Duration::from_text(text).ok_or_else(|| format!("expected {}", Duration::EXPECTED))
}

/// For `value_parser`: how many rows an answer may have at most.
pub fn rows(text: &str) -> Result<usize, String> {
    let rows = text.parse().ok().filter(|rows| (1..=MAX_PAGE).contains(rows));
    rows.ok_or_else(|| format!("expected 1 to {MAX_PAGE}"))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as limits.max_body=32KiB".to_owned()),
    }
}
