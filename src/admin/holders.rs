//! Adding a region to those that keep the shards, and removing one (R13). A core node of another region is asked, which begins
//! the change; every region learns of it from the logs.

use super::cluster;
use super::data::{Changed, HoldersReport, MarkedRow, NodeReport, Reply};
use super::wire::{AdminError, Answer, ErrorCode};
use crate::core::ids::RegionId;
use crate::core::owner::HoldersStatus;
use crate::server::holders::HoldersError;
use crate::server::inspect::Inspector;

impl From<HoldersError> for AdminError {
    fn from(error: HoldersError) -> Self {
        let code = match error {
            HoldersError::Silent(error) => return error.into(),
            HoldersError::NoFile(_) => ErrorCode::NotFound,
            HoldersError::Itself(_) => ErrorCode::WrongNode,
            _ => ErrorCode::Refused,
        };
        AdminError::new(code, error.to_string())
    }
}

/// Begins to add a region. Refused where it could not work: a node that does not know where the region is, or a store from
/// before it was removed.
pub(super) async fn add(node: &Inspector, region: RegionId) -> Answer {
    cluster::region_file(node, &region)?;
    let nodes = cluster::reports(node).await;
    let without: Vec<String> = nodes
        .iter()
        .filter(|(key, report)| key.region != region && !report.regions.contains(&region))
        .map(|(key, _)| key.to_string())
        .collect();
    if !without.is_empty() {
        let detail = format!(
            "no file {region}.toml in the folder of regions of {}: put it on every node first, it is read within seconds",
            without.join(", ")
        );
        return Err(AdminError::new(ErrorCode::Refused, detail));
    }
    let of_region = || nodes.iter().filter(|(key, _)| key.region == region);
    let status = node.holders_status().await?;
    if status.regions.contains(&region) && !status.leaving.contains(&region) {
        return said(format!(
            "region {region} keeps the shards already, or is being added"
        ));
    }
    // One that is open and does not keep the shards was removed by force, and has yet to hear of it.
    let old = |report: &NodeReport| report.removed > 0 || report.shards_open > 0;
    if let Some((key, _)) = of_region().find(|(_, report)| old(report)) {
        let detail = format!(
            "node {key} has the store that it had when region {region} was removed: stop it, and start it with an empty data \
             folder and --create"
        );
        return Err(AdminError::new(ErrorCode::Refused, detail));
    }
    let version = node.add_region(&region).await?;
    let there = of_region().any(|(_, report)| report.store.is_some());
    let next = match there {
        true => "its core node answers, and takes a snapshot now",
        false => "its core node does not answer yet: start it with an empty data folder and --create",
    };
    said(format!(
        "region {region} is added, with version {version} of the holders; {next}"
    ))
}

/// Begins to remove a region. What only one that does not answer has is given up only with `force`.
pub(super) async fn remove(node: &Inspector, region: RegionId, force: bool) -> Answer {
    if !node.holders().contains(&region) {
        cluster::region_file(node, &region)?;
    }
    let status = node.holders_status().await?;
    let (holds, leaves) = (status.regions.contains(&region), status.leaving.contains(&region));
    if status.shards > 0 && !force && (!holds || leaves) {
        let how = if leaves {
            "is being removed"
        } else {
            "does not keep the shards"
        };
        return said(format!("region {region} {how} already"));
    }
    let answers = cluster::reports(node).await;
    let there = answers
        .iter()
        .any(|(key, report)| key.region == region && report.store.is_some());
    if !there && !force {
        let detail = format!(
            "no core node of region {region} answers here, so that the others would wait for what only it has. Start it, or use \
             --force: what no other region has of it is given up then"
        );
        return Err(AdminError::new(ErrorCode::Refused, detail));
    }
    let version = node.remove_region(&region, !there).await?;
    let next = match there {
        true => "it takes no clients any more; stop its nodes when this is done",
        false => {
            "nobody waits for what only it has; do not start its nodes again with the store that they have"
        }
    };
    said(format!(
        "region {region} is removed, with version {version} of the holders; {next}"
    ))
}

/// How far the last change is at this node.
pub(super) async fn report(node: &Inspector) -> Result<HoldersReport, AdminError> {
    let HoldersStatus {
        target,
        shards,
        changed,
        settled,
        regions,
        coming,
        leaving,
        marked,
    } = node.holders_status().await?;
    let marked = marked.into_iter();
    Ok(HoldersReport {
        version: target.version,
        total: node.sharding().count as usize,
        shards,
        changed,
        settled,
        regions: regions.into_iter().collect(),
        coming: coming.into_iter().collect(),
        leaving: leaving.into_iter().collect(),
        marked: marked
            .map(|(region, shards)| MarkedRow { region, shards })
            .collect(),
    })
}

fn said(text: String) -> Answer {
    Ok(Reply::Changed(Changed { text }))
}
