//! Evacuating a region and restoring it. A node of the region is asked; the others learn of it by themselves
//! ([`crate::server::evacuation`]), those of other regions from their core nodes, which ask.

use std::time::Duration;

use tokio::sync::watch;

use super::cluster;
use super::data::{Changed, Reply};
use super::wire::{AdminError, Answer, ErrorCode};
use crate::core::ids::RegionId;
use crate::server::evacuation::{DEFAULT_RATE, Word};
use crate::server::faults::check_life;
use crate::server::inspect::Inspector;

/// Core nodes ask those of other regions so often.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Sessions a second: above it there is no limit worth the name.
const MAX_RATE: u32 = 1_000_000;

/// Sends the clients of this node's region to the others; where `lasts` is given, until then.
pub(super) async fn evacuate(
    node: &Inspector,
    region: RegionId,
    rate: Option<u32>,
    force: bool,
    lasts: Option<Duration>,
) -> Answer {
    of_this_region(node, &region, "evacuated")?;
    if let Some(lasts) = lasts {
        check_life(lasts)?;
    }
    let known = node.evacuations().get(&region).copied();
    let already = known.filter(|word| word.evacuated);
    let rate = checked(rate.unwrap_or(already.map_or(DEFAULT_RATE, |word| word.rate)))?;
    if let Some(word) = already {
        if word.rate == rate {
            restore_after(node, word, lasts);
            return said(format!(
                "region {region} is evacuated already, at {rate} sessions a second"
            ));
        }
        let word = order(node, true, rate).await?;
        restore_after(node, word, lasts);
        return said(format!(
            "region {region} is evacuated already; from now on at {rate} sessions a second"
        ));
    }
    let others = cluster::other_regions_that_take_clients(node, &region).await;
    if others.is_empty() && !force {
        let detail = format!(
            "region {region} is the only one that takes clients: every other one is evacuated, down or does not answer here. \
             Restore one first, or use --force: clients then find no region"
        );
        return Err(AdminError::new(ErrorCode::Refused, detail));
    }
    let word = order(node, true, rate).await?;
    restore_after(node, word, lasts);
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    let to = match others.is_empty() {
        true => "none".to_owned(),
        false => others.join(", "),
    };
    said(format!(
        "region {region} is evacuated at {rate} sessions a second; regions that take its clients: {to}"
    ))
}

/// Lets clients come back to this node's region.
pub(super) async fn restore(node: &Inspector, region: RegionId, rate: Option<u32>) -> Answer {
    of_this_region(node, &region, "restored")?;
    let rate = checked(rate.unwrap_or(DEFAULT_RATE))?;
    let known = node.evacuations().get(&region).copied();
    if !known.is_some_and(|word| word.evacuated) {
        return said(format!("region {region} is not evacuated: it takes clients"));
    }
    order(node, false, rate).await?;
    said(format!(
        "region {region} takes clients again; those that prefer it are told so, {rate} sessions a second"
    ))
}

/// Learns from the core nodes of other regions which regions are evacuated, until stopped.
pub(super) async fn listen(node: Inspector, mut stopped: watch::Receiver<bool>) {
    loop {
        let asked = async {
            let words = cluster::evacuations_elsewhere(&node).await;
            node.heard_evacuations(&words).await;
            tokio::time::sleep(ASK_EVERY).await;
        };
        tokio::select! {
            () = asked => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

fn of_this_region(node: &Inspector, region: &RegionId, what: &str) -> Result<(), AdminError> {
    cluster::region_file(node, region)?;
    if node.key().region == *region {
        return Ok(());
    }
    let nodes = node.nodes().into_iter().filter(|(key, _)| key.region == *region);
    let nodes: Vec<String> = nodes
        .map(|(key, addr)| format!("{} ({addr})", key.node))
        .collect();
    let detail = format!(
        "region {region} is {what} by one of its own nodes, and this is {}: ask one of {}, by its socket or with --connect",
        node.key(),
        nodes.join(", ")
    );
    Err(AdminError::new(ErrorCode::WrongNode, detail))
}

fn checked(rate: u32) -> Result<u32, AdminError> {
    if (1..=MAX_RATE).contains(&rate) {
        return Ok(rate);
    }
    let detail = format!("a rate of {rate} sessions a second; expected 1 to {MAX_RATE}");
    Err(AdminError::new(ErrorCode::Malformed, detail))
}

/// Lets the clients of this node's region come back after a while, unless an operator says something else before.
fn restore_after(node: &Inspector, word: Word, lasts: Option<Duration>) {
    let Some(lasts) = lasts else { return };
    let node = node.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(lasts) => {}
            // A node that drains has nobody to tell any more.
            () = node.drain_asked() => return,
        }
        if node.evacuations().get(&node.key().region) != Some(&word) {
            return;
        }
        if let Err(error) = order(&node, false, word.rate).await {
            tracing::error!(%error, "the region stays evacuated, although its time is over: restore it");
        }
    });
}

async fn order(node: &Inspector, evacuated: bool, rate: u32) -> Result<Word, AdminError> {
    let ordered = node.order_evacuation(evacuated, rate).await;
    ordered.map_err(|error| {
        let detail = format!("nothing was changed, since it could not be kept: {error}");
        AdminError::new(ErrorCode::Unavailable, detail)
    })
}

fn said(text: String) -> Answer {
    Ok(Reply::Changed(Changed { text }))
}
