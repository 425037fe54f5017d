//! What a node answers about itself.

use std::collections::{BTreeMap, BTreeSet};

use super::data::{
    ConfirmRow, DeviceRow, EntryRow, EvacuationRow, GapRow, InboxFacts, LogRow, NodeReport, PartReply,
    SeenConnection, SeenNode, ShardPart, ShardStored, StoreReport,
};
use super::request::{Part, Place};
use super::wire::{AdminError, ErrorCode};
use super::{faults, holders};
use crate::core::ids::{Coord, NodeKey, Origin, RegionId, SessionId, ShardId, UserId};
use crate::core::inspect::{Answer, Digits, Hex, LinkFacts, MAX_PAGE, Query};
use crate::core::state::{Recovery, ShardRow, UserRow};
use crate::core::storage::{InboxEntry, Read, ReadReply};
use crate::core::vector::Vector;
use crate::net::peer::{Breaker, Lane};
use crate::server::inspect::{Drain, InspectError, Inspector};

/// Bytes of messages that one page of an inbox reads.
const INBOX_PAGE_BYTES: usize = 4 * 1024 * 1024;

impl From<InspectError> for AdminError {
    fn from(error: InspectError) -> Self {
        let code = match error {
            InspectError::Late(_) => ErrorCode::Late,
            InspectError::Gone(_) | InspectError::Store(_) => ErrorCode::Unavailable,
        };
        AdminError::new(code, error.to_string())
    }
}

/// Answers a question about this node.
pub(super) async fn answer(node: &Inspector, part: Part) -> Result<PartReply, AdminError> {
    match part {
        Part::Node => {
            let mut report = report(node);
            if node.store().is_some() {
                report.holders = Some(holders::report(node).await?);
            }
            Ok(PartReply::Node(Box::new(report), links(node).await?))
        }
        Part::Shards { after, limit } => {
            let after = after.map(ShardId);
            let limit = limit.min(MAX_PAGE);
            let mut shards = Vec::new();
            for (partition, answer) in all(node, &Query::Shards { after, limit }).await? {
                if let Answer::Shards(facts) = answer {
                    shards.extend(facts.into_iter().map(|facts| (partition, facts)));
                }
            }
            shards.sort_by_key(|(_, facts)| facts.shard);
            shards.truncate(limit);
            Ok(PartReply::Shards(shards))
        }
        Part::Shard { shard } => Ok(PartReply::Shard(Box::new(one_shard(node, shard).await?))),
        Part::Sessions { user, after, limit } => {
            let after = after.map(|Digits(after)| SessionId(after));
            let limit = limit.min(MAX_PAGE);
            let (mut sessions, mut attached) = (Vec::new(), Vec::new());
            for (_, answer) in all(node, &Query::Sessions { user, after, limit }).await? {
                if let Answer::Sessions(some, more) = answer {
                    sessions.extend(some);
                    attached.extend(more);
                }
            }
            sessions.sort_by_key(|facts| facts.session);
            sessions.truncate(limit);
            attached.sort_by_key(|facts| facts.session);
            attached.truncate(limit);
            Ok(PartReply::Sessions(sessions, attached))
        }
        Part::Presence { user } => {
            let mut found = None;
            for (_, answer) in all(node, &Query::Presence(user)).await? {
                if let Answer::Presence(Some(facts)) = answer {
                    found = Some(facts);
                }
            }
            Ok(PartReply::Presence(found))
        }
        Part::Holders => Ok(PartReply::Holders(holders::report(node).await?)),
        Part::Faults => Ok(PartReply::Faults(faults::rows(node))),
        Part::Evacuations => Ok(PartReply::Evacuations(evacuations(node))),
        Part::Inbox { user, after, limit } => {
            if node.store().is_none() {
                return Ok(PartReply::Inbox(None));
            }
            Ok(PartReply::Inbox(Some(Box::new(
                inbox(node, user, after, limit).await?,
            ))))
        }
    }
}

async fn all(node: &Inspector, query: &Query) -> Result<Vec<(u8, Answer)>, AdminError> {
    let answers = node.query_all(query).await?;
    Ok((0..=u8::MAX).zip(answers).collect())
}

async fn links(node: &Inspector) -> Result<Vec<(u8, LinkFacts)>, AdminError> {
    let mut links = Vec::new();
    for (partition, answer) in all(node, &Query::Links).await? {
        if let Answer::Links(facts) = answer {
            links.extend(facts.into_iter().map(|facts| (partition, facts)));
        }
    }
    Ok(links)
}

fn report(node: &Inspector) -> NodeReport {
    let status = node.status();
    let sum = |of: fn(&crate::server::PartitionStatus) -> usize| status.iter().map(of).sum::<usize>();
    let reasons = node.health().reasons();
    NodeReport {
        node: node.key().clone(),
        generation: node.generation().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        roles: node.roles().iter().map(ToString::to_string).collect(),
        uptime_ms: u64::try_from(node.uptime().as_millis()).unwrap_or(u64::MAX),
        ready: reasons.is_empty(),
        reasons,
        draining: node.drain() != Drain::No,
        sessions: sum(|status| status.sessions),
        returning: sum(|status| status.returning),
        evacuations: evacuations(node),
        regions: node
            .regions()
            .ids()
            .filter_map(|id| RegionId::new(id).ok())
            .collect(),
        removed: sum(|status| status.removed),
        holders: None,
        partitions: status.len(),
        shards_open: sum(|status| status.shards),
        shards_recovering: sum(|status| status.recovering),
        shards_unserved: status
            .iter()
            .map(|status| status.unserved.count())
            .max()
            .unwrap_or(0),
        served_by: status.iter().find_map(|status| status.served_by.clone()),
        client: node.client_addr().map(str::to_owned),
        admin_http: node.admin_http().to_string(),
        memory_bytes: process_memory(),
        store: node.store().map(|store| StoreReport {
            commits: store.figures.commits,
            last_commit_ms: store.last_commit_ms,
            journal_bytes: store.figures.journal_bytes,
            resident_bytes: store.figures.resident_bytes,
            checkpoints: store.figures.checkpoints,
        }),
        sees: seen(node),
        faults: faults::rows(node),
        faults_allowed: node.faults().allowed(),
        cannot_end: node.faults().cannot_end(),
        presence_repair_bytes: status.iter().map(|status| status.presence_repair_bytes).sum(),
    }
}

fn evacuations(node: &Inspector) -> Vec<EvacuationRow> {
    let words = node.evacuations().into_iter();
    let rows = words.map(|(region, word)| EvacuationRow {
        region,
        version: word.version,
        evacuated: word.evacuated,
        rate: word.rate,
    });
    rows.collect()
}

/// The other nodes: members, and those that a connection is kept to.
fn seen(node: &Inspector) -> Vec<SeenNode> {
    let members = node.members();
    let mut connections = BTreeMap::new();
    for link in node.pool().snapshot().links {
        let (Lane::Traffic, Some(peer)) = (link.lane, link.peer) else {
            continue;
        };
        let connection = SeenConnection {
            up: link.incarnation.is_some(),
            breaker: match link.breaker {
                Breaker::Closed => "closed",
                Breaker::HalfOpen => "half-open",
                Breaker::Open => "open",
            }
            .to_owned(),
            failures: link.failures,
            round_trip_us: link
                .rtt
                .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            last_error: link.last_error,
        };
        connections.insert(peer, connection);
    }
    let keys: BTreeSet<NodeKey> = node
        .nodes()
        .into_keys()
        .chain(connections.keys().cloned())
        .collect();
    let others = keys.into_iter().filter(|key| key != node.key());
    others
        .map(|key| {
            let member = members.node(&key);
            SeenNode {
                member: member.is_some(),
                generation: member.map(|member| member.generation.0),
                ready: member.is_some_and(|member| member.ready),
                connection: connections.remove(&key),
                node: key,
            }
        })
        .collect()
}

async fn one_shard(node: &Inspector, shard: u32) -> Result<ShardPart, AdminError> {
    if shard >= node.sharding().count {
        let detail = format!(
            "there is no shard {shard}: they are numbered 0 to {}",
            node.sharding().count - 1
        );
        return Err(AdminError::new(ErrorCode::NotFound, detail));
    }
    let mut part = ShardPart::default();
    let query = Query::Shards {
        after: shard.checked_sub(1).map(ShardId),
        limit: 1,
    };
    for (partition, answer) in all(node, &query).await? {
        if let Answer::Shards(facts) = answer
            && let Some(facts) = facts.into_iter().find(|facts| facts.shard == shard)
        {
            part.partition = Some(partition);
            part.owner = Some(facts);
        }
    }
    if node.store().is_some()
        && let ReadReply::Shard(row) = node.read(Read::Shard(ShardId(shard))).await?
    {
        part.stored = Some(stored(&row, &node.holders()));
    }
    Ok(part)
}

fn stored(row: &ShardRow, holders: &BTreeSet<RegionId>) -> ShardStored {
    let applied = row.applied();
    ShardStored {
        epoch: row.epoch.0,
        origin: Hex(row.origin.0),
        recovery: match row.recovery {
            Recovery::Unset => "unset",
            Recovery::Recovering => "recovering",
            Recovery::Open => "open",
            Recovery::Merging => "merging",
        }
        .to_owned(),
        recovered_in: Hex(row.recovered_in.0),
        hlc_ms: row.hlc.ms,
        forgotten_day: row.forgotten,
        logs: row
            .logs
            .iter()
            .map(|(origin, log)| LogRow {
                origin: Hex(origin.0),
                region: log.region.clone(),
                applied: log.seq,
                stable: row.stable(*origin, holders),
                floor: log.floor,
                previous: log.previous.map(place),
                last_ms: log.hlc.ms,
            })
            .collect(),
        confirmed: row
            .confirmed
            .iter()
            .map(|(region, confirmed)| ConfirmRow {
                region: region.clone(),
                at_ms: confirmed.at.0.ms,
                behind: applied
                    .iter()
                    .map(|(origin, seq)| seq.saturating_sub(confirmed.applied.of(origin)))
                    .sum(),
            })
            .collect(),
    }
}

async fn inbox(
    node: &Inspector,
    user: UserId,
    after: Option<Vec<Place>>,
    limit: usize,
) -> Result<InboxFacts, AdminError> {
    let shard = node.sharding().of_user(&user);
    let ReadReply::User(row) = node.read(Read::User(shard, user.clone())).await? else {
        return Err(other_answer());
    };
    let mut facts = InboxFacts {
        user: user.clone(),
        shard: shard.0,
        unread: row.unread,
        unread_bytes: row.unread_bytes,
        devices: row
            .devices
            .iter()
            .map(|(device, row)| DeviceRow {
                device: device.clone(),
                expired: row.expired,
                cursor: places(&row.cursor),
                waiting: 0,
            })
            .collect(),
        entries: Vec::new(),
        gaps: row
            .gaps
            .iter()
            .map(|((origin, from), to)| GapRow {
                origin: Hex(origin.0),
                from: *from,
                to: *to,
            })
            .collect(),
        next: None,
    };
    if limit == 0 {
        return Ok(facts);
    }
    let mut position = match after {
        Some(after) => after.iter().map(|at| (Origin(at.origin.0), at.seq)).collect(),
        None => row.consumed.clone(),
    };
    let read = Read::Inbox {
        shard,
        user,
        after: position.clone(),
        max_items: limit.min(MAX_PAGE),
        max_bytes: INBOX_PAGE_BYTES,
    };
    let ReadReply::Inbox(page) = node.read(read).await? else {
        return Err(other_answer());
    };
    for entry in page.entries {
        position.raise(entry.at.origin, entry.at.seq);
        let entry = entry_row(&row, &entry)?;
        for device in facts.devices.iter_mut() {
            device.waiting += usize::from(entry.waits_for.contains(&device.device));
        }
        facts.entries.push(entry);
    }
    facts.next = (!page.end).then(|| places(&position));
    Ok(facts)
}

fn entry_row(row: &UserRow, entry: &InboxEntry) -> Result<EntryRow, AdminError> {
    let envelope = entry.op.envelope().map_err(|error| {
        let detail = format!("the message at {} cannot be read: {error}", entry.at);
        AdminError::new(ErrorCode::Unavailable, detail)
    })?;
    let waiting = row.devices.iter().filter(|(_, device)| {
        let covered = |at: &Coord| device.cursor.covers(*at);
        !device.expired && !covered(&entry.at) && !entry.siblings.iter().any(covered)
    });
    Ok(EntryRow {
        at: place(entry.at),
        id: envelope.id.to_string(),
        from: envelope.from,
        from_device: envelope.from_device,
        accepted_ms: entry.op.hlc().ms,
        expires_ms: envelope.expires_ms,
        kind: envelope.kind,
        body_bytes: entry.op.body().len(),
        copies: entry.siblings.iter().copied().map(place).collect(),
        waits_for: waiting.map(|(device, _)| device.clone()).collect(),
    })
}

fn other_answer() -> AdminError {
    AdminError::new(ErrorCode::Unavailable, "the store answered another question")
}

fn place(at: Coord) -> Place {
    Place {
        origin: Hex(at.origin.0),
        seq: at.seq,
    }
}

fn places(vector: &Vector) -> Vec<Place> {
    vector
        .iter()
        .map(|(origin, seq)| place(Coord { origin, seq }))
        .collect()
}

/// Memory of this process in bytes, where the system tells it the way Linux does.
fn process_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
