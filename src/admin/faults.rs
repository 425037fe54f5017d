//! Injecting faults into a node, ending and listing them.

use std::time::Duration;

use super::data::{FaultList, FaultRow, Reply};
use super::wire::{AdminError, Answer, ErrorCode};
use crate::core::ids::NodeKey;
use crate::server::faults::{DEFAULT_LIFE, Fault, FaultError, Injected};
use crate::server::inspect::Inspector;

impl From<FaultError> for AdminError {
    fn from(error: FaultError) -> Self {
        let code = match error {
            FaultError::NotFound(_) => ErrorCode::NotFound,
            FaultError::System { .. } => ErrorCode::Unavailable,
            _ => ErrorCode::Refused,
        };
        AdminError::new(code, error.to_string())
    }
}

/// The faults of this node.
pub(super) fn rows(node: &Inspector) -> Vec<FaultRow> {
    let list = node.faults().list().into_iter();
    list.map(|injected| row(node.key(), injected)).collect()
}

pub(super) async fn inject(node: &Inspector, fault: Fault, lasts_ms: Option<u64>) -> Answer {
    let unsaid = match fault {
        Fault::Crash => Duration::ZERO,
        _ => DEFAULT_LIFE,
    };
    let lasts = lasts_ms.map_or(unsaid, Duration::from_millis);
    let injected = node.faults().inject(node, fault, lasts).await?;
    Ok(Reply::Injected(Box::new(row(node.key(), injected))))
}

pub(super) fn clear(node: &Inspector, id: Option<u64>) -> Answer {
    let ended = node.faults().clear(node, id)?.into_iter();
    Ok(Reply::Faults(FaultList {
        faults: ended.map(|injected| row(node.key(), injected)).collect(),
        silent: Vec::new(),
    }))
}

fn row(node: &NodeKey, injected: Injected) -> FaultRow {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let lasts = injected.lasts.map(ms);
    FaultRow {
        node: node.clone(),
        id: injected.id,
        since_ms: injected.since_ms,
        ends_ms: lasts.map(|lasts| injected.since_ms.saturating_add(lasts)),
        left_ms: injected.left().map(ms),
        fault: injected.fault,
    }
}
