//! The regions' files, read again while a node runs: so a region is added to a cluster without a restart.
//!
//! A file that came is a region to connect to; what it does in the cluster, an operator says (`super::holders`). Of one that
//! went nothing is kept, unless its region keeps shards or is this node's own: then what is there is not taken over, and a
//! warning says so. The same goes for files that cannot be used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::inspect::Inspector;
use super::regions::Regions;
use crate::core::ids::RegionId;

/// The folder is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks at the folder until stopped.
pub(super) async fn watch_files(node: Inspector, folder: PathBuf, mut stopped: watch::Receiver<bool>) {
    let mut told = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let path = folder.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || read(&path)).await else {
            continue;
        };
        let mut needed = node.holders();
        needed.insert(node.key().region.clone());
        let known = node.regions();
        let problem = match judge(&known, read, &needed) {
            Ok(None) => None,
            Ok(Some(files)) => {
                let names: Vec<&str> = files.ids().collect();
                tracing::info!(regions = %names.join(", "), "the files of the regions changed, and are read again");
                node.set_regions(Arc::new(files));
                None
            }
            Err(problem) => Some(problem),
        };
        if problem != told
            && let Some(problem) = &problem
        {
            tracing::warn!(folder = %folder.display(), %problem, "the files of the regions changed, and are not taken over");
        }
        told = problem;
    }
}

fn read(folder: &Path) -> Result<Regions, String> {
    Regions::load_folder(folder).map_err(|error| error.to_string())
}

/// What to take over, if anything, or why not.
fn judge(
    known: &Regions,
    read: Result<Regions, String>,
    needed: &BTreeSet<RegionId>,
) -> Result<Option<Regions>, String> {
    let read = read?;
    if read.same_as(known) {
        return Ok(None);
    }
    let missing = needed
        .iter()
        .find(|region| read.region(region.as_str()).is_none());
    match missing {
        Some(region) => Err(format!(
            "region {region} keeps shards, and its file is not there any more"
        )),
        None => Ok(Some(read)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::config::TomlText;

    fn regions(ids: &[&str]) -> Regions {
        let built_in = Regions::built_in();
        let texts = ids.iter().map(|id| {
            let text = built_in.text(id).expect("a shipped region").clone();
            let file = format!("{id}.toml");
            TomlText::new(
                file,
                toml::to_string(built_in.region(id).unwrap()).unwrap_or_default(),
            )
            .unwrap_or(text)
        });
        Regions::from_texts(Path::new("regions"), texts.collect()).expect("shipped regions")
    }

    #[test]
    fn a_region_comes_and_goes_unless_it_is_needed() {
        let (two, three) = (regions(&["eu-west", "us-east"]), Regions::built_in());
        let here = |ids: &[&str]| ids.iter().map(|id| RegionId::new(id).unwrap()).collect();
        let taken = |known: &Regions, read: &Regions, needed: &BTreeSet<RegionId>| {
            judge(known, Ok(read.clone()), needed).map(|files| files.map(|files| files.ids().count()))
        };
        assert_eq!(taken(&two, &three, &here(&["us-east"])), Ok(Some(3)));
        assert_eq!(taken(&three, &two, &here(&["us-east", "eu-west"])), Ok(Some(2)));
        assert_eq!(taken(&two, &two, &here(&["us-east"])), Ok(None));
        let missing = taken(&three, &two, &here(&["ap-south"])).unwrap_err();
        assert!(missing.contains("ap-south"), "{missing}");
        let broken = judge(&two, Err("broken".to_owned()), &here(&[]));
        assert_eq!(broken.map(|_| ()), Err("broken".to_owned()));
    }
}
