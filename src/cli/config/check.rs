//! `iris config check`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::cli::output::say;
use crate::cli::{args, output};
use crate::server::config::TomlText;
use crate::server::log;
use crate::server::prepare::Prepared;
use crate::server::regions::{RegionFile, Regions};

/// Check a node's configuration file, or a folder of region files.
///
/// The IRIS_ variables of the environment count, as they do when the node starts. The certificates and keys that it names are
/// read, so this is for the node's own machine. Addresses and the store are not tried.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris config check node.toml
  iris config check regions/
  IRIS_LIMITS__MAX_BODY=32KiB iris config check node.toml")]
pub struct Check {
    /// The file of a node, or the folder with the files of all regions.
    file: PathBuf,
    #[command(flatten)]
    set: args::SetArg,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if self.file.is_dir() {
            let regions = Regions::load_folder(&self.file).context("the region files cannot be used")?;
            let ids: Vec<&str> = regions.ids().collect();
            output::print(&format!("{} is good: {}\n", self.file.display(), ids.join(", ")))?;
            return Ok(ExitCode::SUCCESS);
        }
        self.is_of_a_node()?;
        let loaded = args::load(Some(self.file.clone()), &self.set)?;
        let filter = std::env::var(log::ENV).ok();
        log::check(&loaded.config.log, filter.as_deref())
            .with_context(|| format!("a node cannot start with {}", self.file.display()))?;
        Prepared::of(&loaded.config, &loaded.regions)
            .map_err(|error| error.placed(&loaded.sources))
            .with_context(|| format!("a node cannot start with {}", self.file.display()))?;
        let node = &loaded.config.node;
        let roles: Vec<String> = node.roles.iter().map(ToString::to_string).collect();
        let (file, roles) = (self.file.display(), roles.join(" and "));
        output::print(&format!(
            "{file} is good: the {roles} node {} of {}\n",
            node.name, node.region
        ))?;
        if !node.data.join("generation").exists() {
            let data = node.data.display();
            say!(
                "note: node.data = {data} holds no node yet: its first start needs --create, that of a cluster --new-cluster"
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    /// A region's file alone says little: what is to be unique over all regions, nobody could judge.
    fn is_of_a_node(&self) -> anyhow::Result<()> {
        let of_a_region = TomlText::read(&self.file).and_then(|text| text.parse::<RegionFile>());
        if of_a_region.is_ok() {
            let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty());
            let (file, folder) = (self.file.display(), folder.unwrap_or(Path::new(".")).display());
            bail!(
                "{file} is the file of a region, not of a node: check it with its folder, as iris config check {folder}"
            );
        }
        Ok(())
    }
}
