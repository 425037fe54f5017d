//! What to run: scenarios by name, file or folder; cases by seed or file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::server::config::TomlText;
use crate::server::regions::Regions;
use crate::sim::scenario::Scenario;
use crate::sim::{Case, draw, shipped};

/// Where regions and scenarios are looked for.
#[derive(Debug, Clone, Args)]
pub(super) struct Places {
    /// The region files; those that are shipped where none is named.
    #[arg(long, value_name = "DIR")]
    regions: Option<PathBuf>,
}

impl Places {
    pub(super) fn regions(&self) -> anyhow::Result<Regions> {
        // A checkout's own files win over the copies inside the program.
        let own = Path::new("regions");
        let folder = self.regions.as_deref().or(own.is_dir().then_some(own));
        Regions::load(folder).context("the region files cannot be used")
    }

    /// As they stand on a command line, with a space before.
    pub(super) fn flags(&self) -> String {
        self.regions
            .as_ref()
            .map(|folder| format!(" --regions {}", folder.display()))
            .unwrap_or_default()
    }
}

/// The scenarios that a name, a file or a folder means, each with what replays it.
pub(super) fn scenarios(what: &str) -> anyhow::Result<Vec<(Scenario, String)>> {
    let path = Path::new(what);
    if path.is_dir() {
        let mut files = Vec::new();
        for entry in fs::read_dir(path).with_context(|| format!("cannot read {what}"))? {
            let file = entry.with_context(|| format!("cannot read {what}"))?.path();
            if file.extension().is_some_and(|extension| extension == "toml") {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            bail!("{what} has no scenario (*.toml)");
        }
        return files.iter().map(|file| read(file)).collect();
    }
    if path.is_file() {
        return Ok(vec![read(path)?]);
    }
    let own = PathBuf::from(format!("simulations/{what}.toml"));
    if own.is_file() {
        return Ok(vec![(Scenario::read(&own)?, what.to_owned())]);
    }
    if let Some(scenario) = shipped::scenarios()
        .into_iter()
        .find(|scenario| scenario.name == what)
    {
        return Ok(vec![(scenario, what.to_owned())]);
    }
    let names: Vec<String> = shipped::scenarios()
        .into_iter()
        .map(|scenario| scenario.name)
        .collect();
    bail!(
        "{what:?} is neither a scenario's name, nor a file, nor a folder; the shipped scenarios are {}",
        names.join(", ")
    )
}

fn read(file: &Path) -> anyhow::Result<(Scenario, String)> {
    Ok((Scenario::read(file)?, file.display().to_string()))
}

/// One case: a file that a run wrote, a scenario with a seed, or what a seed draws.
#[derive(Debug, Clone, Args)]
pub(super) struct One {
    /// A case that a run wrote, or a scenario by name or file; without it what the seed draws.
    #[arg(value_name = "CASE")]
    what: Option<String>,
    /// The seed; a case file has its own.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    #[command(flatten)]
    places: Places,
}

impl One {
    pub(super) fn case(&self) -> anyhow::Result<Case> {
        let Some(what) = &self.what else {
            let seed = self
                .seed
                .context("name a case file or a scenario, or give --seed for a case of the swarm")?;
            return Ok(draw::draw(seed));
        };
        let path = Path::new(what);
        let kept = path.is_file().then(|| TomlText::read(path)).transpose()?;
        if let Some(text) = kept.filter(|text| text.value("seed").is_some()) {
            let mut case: Case = text.parse()?;
            case.seed = self.seed.unwrap_or(case.seed);
            let wrongs = case.wrongs();
            if let Some((key, message)) = wrongs.first() {
                bail!("{}", text.problem(key, message.as_str()));
            }
            return Ok(case);
        }
        let mut found = scenarios(what)?;
        if found.len() != 1 {
            bail!("{what} is a folder; name one scenario");
        }
        let (scenario, _) = found.remove(0);
        Ok(scenario.case(&self.places.regions()?, self.seed.unwrap_or(0))?)
    }

    /// As it stands on a command line, each part with a space before it.
    pub(super) fn flags(&self) -> String {
        let mut flags = String::new();
        if let Some(what) = &self.what {
            flags.push_str(&format!(" {what}"));
        }
        if let Some(seed) = self.seed {
            flags.push_str(&format!(" --seed {seed}"));
        }
        flags + &self.places.flags()
    }
}
