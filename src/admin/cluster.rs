//! One node answers for the cluster: it asks every node at once, each within a deadline, and puts together what came back.
//! Those that do not answer are shown with the reason.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::exchange;
use super::data::{
    ClusterStatus, FaultList, HoldersReport, InboxCount, InboxCountAt, InboxReport, Keeps, LinkList, LinkRow,
    NodeList, NodeReport, NodeRow, NodeState, PartReply, PresenceAt, PresenceReport, RegionDetail,
    RegionList, RegionRow, RegionState, Reply, SessionDelivery, SessionList, SessionRow, ShardAt,
    ShardDetail, ShardList, ShardRow, Silent,
};
use super::request::{Call, Part, Request, ShardOf};
use super::verdict::judge;
use super::wire::{AdminError, Answer, ErrorCode};
use super::{local, wire};
use crate::core::ids::{Addr, NodeKey, RegionId};
use crate::core::inspect::{LinkFacts, MAX_PAGE};
use crate::core::link::LinkState;
use crate::server::evacuation::{Word, Words};
use crate::server::inspect::Inspector;
use crate::server::regions::{Durability, GeoFallback, RegionFile, Role};

/// A node answers within this, or is shown as silent.
const NODE_DEADLINE: Duration = Duration::from_secs(2);

/// What each node answered, or why it did not.
type Answers<T> = BTreeMap<NodeKey, Result<T, String>>;

/// What a node tells of itself, and of the links of each partition.
type About = (Box<NodeReport>, Vec<(u8, LinkFacts)>);

/// Answers a question about the cluster.
pub(super) async fn answer(me: &Inspector, request: Request) -> Answer {
    match request {
        Request::ClusterStatus => Ok(Reply::ClusterStatus(Box::new(overview(me).await.status(me)))),
        Request::NodeList => Ok(Reply::Nodes(NodeList {
            nodes: overview(me).await.nodes,
        })),
        Request::NodeShow { node } => {
            let known = || me.nodes().into_keys().find(|key| key.node == node);
            let key = known().ok_or_else(|| {
                let names: Vec<String> = me.nodes().into_keys().map(|key| key.node.to_string()).collect();
                not_found(format!(
                    "there is no node {node}: expected one of {}",
                    names.join(", ")
                ))
            })?;
            let answers = ask(me, &Part::Node, |of| *of == key, about_node).await;
            let rows = node_rows(me, &answers);
            let row = rows.into_iter().find(|row| row.node == key);
            row.map(|row| Reply::Node(Box::new(row)))
                .ok_or_else(|| not_found(format!("node {node} left meanwhile")))
        }
        Request::RegionList => {
            let overview = overview(me).await;
            Ok(Reply::Regions(RegionList {
                silent: overview.silent(),
                holders: said_of_holders(&overview.nodes),
                regions: overview.regions,
            }))
        }
        Request::RegionShow { region } => {
            let file = region_file(me, &region)?.clone();
            let overview = overview(me).await;
            let row = overview.regions.iter().find(|row| row.region == region).cloned();
            let row = row.ok_or_else(|| not_found(format!("there is no region {region}")))?;
            let ends = |link: &LinkRow| link.from.node.region == region || link.to.node.region == region;
            Ok(Reply::Region(Box::new(RegionDetail {
                row,
                durability: match file.durability {
                    Durability::Region => "region".to_owned(),
                    Durability::Geo => "geo".to_owned(),
                },
                latitude: file.place.latitude,
                longitude: file.place.longitude,
                links: overview.links.iter().filter(|link| ends(link)).cloned().collect(),
                members: overview
                    .nodes
                    .into_iter()
                    .filter(|row| row.node.region == region)
                    .collect(),
            })))
        }
        Request::LinkList { region } => {
            if let Some(region) = &region {
                region_file(me, region)?;
            }
            let mut overview = overview(me).await;
            if let Some(region) = region {
                let ends = |link: &LinkRow| link.from.node.region == region || link.to.node.region == region;
                overview.links.retain(ends);
            }
            Ok(Reply::Links(LinkList {
                silent: overview.silent(),
                links: overview.links,
            }))
        }
        Request::ShardList { region, after, limit } => shards(me, region, after, limit).await,
        Request::ShardShow { of } => shard(me, of).await,
        Request::SessionList {
            user,
            region,
            after,
            limit,
        } => {
            if let Some(region) = &region {
                region_file(me, region)?;
            }
            sessions(me, Part::Sessions { user, after, limit }, region, limit).await
        }
        Request::Presence { user } => {
            let part = Part::Presence { user: user.clone() };
            let answers = ask(
                me,
                &part,
                |key| is_core(me, key),
                |reply| match reply {
                    PartReply::Presence(facts) => Some(facts),
                    _ => None,
                },
            );
            let answers = answers.await;
            let silent = silent(&answers);
            let found = answers.into_iter().filter_map(|(owner, answer)| {
                let facts = *answer.ok()??;
                Some(PresenceAt { owner, facts })
            });
            let mut regions: Vec<PresenceAt> = found.collect();
            // One that does not keep the shards hears of nothing.
            let holders = me.holders();
            regions.retain(|at| holders.is_empty() || holders.contains(&at.owner.region));
            Ok(Reply::Presence(PresenceReport {
                user,
                agreed: regions
                    .windows(2)
                    .all(|two| two[0].facts.status == two[1].facts.status),
                regions,
                silent,
            }))
        }
        Request::InboxShow {
            user,
            region,
            after,
            limit,
        } => {
            if let Some(region) = &region {
                region_file(me, region)?;
            }
            let limit = limit.max(1);
            let part = Part::Inbox { user, after, limit };
            let wanted = |key: &NodeKey| {
                is_core(me, key) && region.as_ref().is_none_or(|region| key.region == *region)
            };
            let answers = ask(me, &part, wanted, inboxes).await;
            let silent = silent(&answers);
            // The own region's is the nearest, and any other's is as good.
            let mut found: Vec<_> = answers
                .into_iter()
                .filter_map(|(key, answer)| Some((key, *answer.ok()??)))
                .collect();
            found.sort_by_key(|(key, _)| key.region != me.key().region);
            match found.into_iter().next() {
                Some((node, inbox)) => Ok(Reply::Inbox(Box::new(InboxReport { node, inbox, silent }))),
                None => Err(no_core(&silent)),
            }
        }
        Request::InboxCount { user } => {
            let part = Part::Inbox {
                user: user.clone(),
                after: None,
                limit: 0,
            };
            let answers = ask(me, &part, |key| is_core(me, key), inboxes).await;
            let silent = silent(&answers);
            let counts = answers.into_iter().filter_map(|(node, answer)| {
                let facts = answer.ok()??;
                Some(InboxCountAt {
                    node,
                    unread: facts.unread,
                    unread_bytes: facts.unread_bytes,
                    devices: facts.devices.len(),
                })
            });
            Ok(Reply::InboxCount(InboxCount {
                user,
                regions: counts.collect(),
                silent,
            }))
        }
        Request::FaultList => {
            let answers = ask(
                me,
                &Part::Faults,
                |_| true,
                |reply| match reply {
                    PartReply::Faults(rows) => Some(rows),
                    _ => None,
                },
            );
            let answers = answers.await;
            Ok(Reply::Faults(FaultList {
                silent: silent(&answers),
                faults: answers.into_values().flatten().flatten().collect(),
            }))
        }
    }
}

fn inboxes(reply: PartReply) -> Option<Option<Box<super::data::InboxFacts>>> {
    match reply {
        PartReply::Inbox(facts) => Some(facts),
        _ => None,
    }
}

fn about_node(reply: PartReply) -> Option<About> {
    match reply {
        PartReply::Node(report, links) => Some((report, links)),
        _ => None,
    }
}

/// Asks those nodes that are wanted, all at once.
async fn ask<T: Send + 'static>(
    me: &Inspector,
    part: &Part,
    wanted: impl Fn(&NodeKey) -> bool,
    take: fn(PartReply) -> Option<T>,
) -> Answers<T> {
    let mut asked = JoinSet::new();
    for (key, addr) in me.nodes().into_iter().filter(|(key, _)| wanted(key)) {
        let (me, part) = (me.clone(), part.clone());
        asked.spawn(async move {
            let answer = timeout(NODE_DEADLINE, ask_one(&me, &key, addr, part)).await;
            let answer =
                answer.unwrap_or_else(|_| Err(format!("nothing came back within {NODE_DEADLINE:?}")));
            let other = || "it answered another question: it may be of another version".to_owned();
            (key, answer.and_then(|reply| take(reply).ok_or_else(other)))
        });
    }
    // A task that panicked is a node without an answer, which is told by what is missing.
    let mut answers: Answers<T> = BTreeMap::new();
    while let Some(answered) = asked.join_next().await {
        if let Ok((key, answer)) = answered {
            answers.insert(key, answer);
        }
    }
    answers
}

async fn ask_one(me: &Inspector, node: &NodeKey, addr: SocketAddr, part: Part) -> Result<PartReply, String> {
    if node == me.key() {
        return local::answer(me, part).await.map_err(|error| error.detail);
    }
    let connection = me.pool().connect_admin(node, addr).await?;
    let answer = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
        let answer = exchange(&mut send, &mut recv, &Call::Node(part)).await;
        match answer.map_err(|error: wire::FrameError| error.to_string())? {
            Ok(Reply::Part(reply)) => Ok(*reply),
            Ok(_) => Err("it answered another question".to_owned()),
            Err(error) => Err(error.detail),
        }
    };
    let answer = answer.await;
    connection.close(0u32.into(), b"");
    answer
}

fn silent<T>(answers: &Answers<T>) -> Vec<Silent> {
    let silent = answers.iter().filter_map(|(node, answer)| {
        Some(Silent {
            node: node.clone(),
            why: answer.as_ref().err()?.clone(),
        })
    });
    silent.collect()
}

/// What all nodes told of themselves.
struct Overview {
    nodes: Vec<NodeRow>,
    regions: Vec<RegionRow>,
    links: Vec<LinkRow>,
}

/// Regions that clients of `region` can be sent to: that answer, have ready edges and cores, and are not evacuated.
pub(super) async fn other_regions_that_take_clients(me: &Inspector, region: &RegionId) -> Vec<RegionId> {
    let regions = overview(me).await.regions.into_iter();
    let takes = |row: &RegionRow| {
        let serves = matches!(row.state, RegionState::Ready | RegionState::Degraded);
        row.region != *region && serves && row.evacuated_ms.is_none()
    };
    regions.filter(takes).map(|row| row.region).collect()
}

/// What the core nodes of other regions know of their own: nobody else's word on a region is asked for.
pub(super) async fn evacuations_elsewhere(me: &Inspector) -> Words {
    let part = Part::Evacuations;
    let wanted = |key: &NodeKey| key.region != me.key().region && is_core(me, key);
    let answers = ask(me, &part, wanted, |reply| match reply {
        PartReply::Evacuations(rows) => Some(rows),
        _ => None,
    });
    let mut words = Words::new();
    for (of, row) in answers.await.into_iter().flat_map(|(key, rows)| {
        rows.into_iter()
            .flatten()
            .map(move |row| (key.region.clone(), row))
    }) {
        if row.region != of {
            continue;
        }
        let word = Word {
            version: row.version,
            evacuated: row.evacuated,
            rate: row.rate,
        };
        let known = words.entry(row.region).or_insert(word);
        *known = word.max(*known);
    }
    words
}

/// What each node that answers says of itself.
pub(super) async fn reports(me: &Inspector) -> Vec<(NodeKey, NodeReport)> {
    let answers = ask(me, &Part::Node, |_| true, about_node).await;
    let answers = answers.into_iter();
    let said = answers.filter_map(|(key, answer)| answer.ok().map(|(report, _)| (key, *report)));
    said.collect()
}

async fn overview(me: &Inspector) -> Overview {
    let answers = ask(me, &Part::Node, |_| true, about_node).await;
    let nodes = node_rows(me, &answers);
    let links = link_rows(&answers);
    let files = me.regions();
    let holders = said_of_holders(&nodes);
    let regions = files
        .iter()
        .filter_map(|file| region_row(file, &nodes, &links, holders.as_ref()))
        .collect();
    Overview {
        nodes,
        regions,
        links,
    }
}

impl Overview {
    fn silent(&self) -> Vec<Silent> {
        let silent = self.nodes.iter().filter(|row| row.state == NodeState::NoAnswer);
        silent
            .map(|row| Silent {
                node: row.node.clone(),
                why: row.why.clone(),
            })
            .collect()
    }

    fn status(self, me: &Inspector) -> ClusterStatus {
        let (verdict, reasons) = judge(&self.regions, &self.nodes, &self.links);
        ClusterStatus {
            verdict,
            reasons,
            cluster: me.cluster().to_owned(),
            answered_by: me.key().clone(),
            now_ms: me.wall_ms(),
            nodes: self.nodes.len(),
            nodes_ready: self
                .nodes
                .iter()
                .filter(|row| row.state == NodeState::Ready)
                .count(),
            sessions: self.regions.iter().map(|region| region.sessions).sum(),
            links: self.links.len(),
            links_live: self
                .links
                .iter()
                .filter(|link| link.state == LinkState::Live)
                .count(),
            silent: self.silent(),
            regions: self.regions,
        }
    }
}

fn node_rows(me: &Inspector, answers: &Answers<About>) -> Vec<NodeRow> {
    let files = me.regions();
    let addrs = me.nodes();
    let rows = answers.iter().map(|(key, answer)| {
        let (state, why, report) = match answer {
            Err(why) => (NodeState::NoAnswer, why.clone(), None),
            Ok((report, _)) if report.draining => (NodeState::Draining, String::new(), Some(report)),
            Ok((report, _)) if report.ready => (NodeState::Ready, String::new(), Some(report)),
            Ok((report, _)) => {
                let reasons = report.reasons.iter().map(|(what, why)| format!("{what}: {why}"));
                let why = reasons.collect::<Vec<_>>().join("; ");
                (NodeState::NotReady, why, Some(report))
            }
        };
        let filed = || {
            let roles = files.node(key.node.as_str()).map(|(_, node)| &node.roles);
            roles.into_iter().flatten().map(ToString::to_string).collect()
        };
        NodeRow {
            node: key.clone(),
            peer: addrs.get(key).map(ToString::to_string).unwrap_or_default(),
            roles: report.map_or_else(filed, |report| report.roles.clone()),
            state,
            why,
            report: report.map(|report| (**report).clone()),
        }
    });
    rows.collect()
}

fn link_rows(answers: &Answers<About>) -> Vec<LinkRow> {
    let mut rows: BTreeMap<(Addr, Addr), LinkRow> = BTreeMap::new();
    for (key, answer) in answers {
        let Ok((_, links)) = answer else { continue };
        for (partition, facts) in links {
            let here = Addr {
                node: key.clone(),
                partition: *partition,
            };
            let mut row = |from: &Addr, to: &Addr, set: &mut dyn FnMut(&mut LinkRow)| {
                let row = rows.entry((from.clone(), to.clone())).or_insert_with(|| LinkRow {
                    from: from.clone(),
                    to: to.clone(),
                    state: LinkState::Down,
                    taken: None,
                    given: None,
                });
                set(row);
            };
            if let Some(taken) = &facts.taken {
                row(&facts.other, &here, &mut |row| row.taken = Some(taken.clone()));
            }
            if let Some(given) = &facts.given {
                row(&here, &facts.other, &mut |row| row.given = Some(given.clone()));
            }
        }
    }
    let mut rows: Vec<LinkRow> = rows.into_values().collect();
    for row in &mut rows {
        row.state = match (&row.taken, &row.given) {
            (Some(taken), _) => taken.state,
            (None, Some(given)) if given.open => LinkState::Live,
            (None, _) => LinkState::Down,
        };
    }
    rows
}

/// Who keeps the shards, as the node says whose change of that is furthest. One whose region was removed may know no better.
fn said_of_holders(nodes: &[NodeRow]) -> Option<HoldersReport> {
    let reports = nodes.iter().filter_map(|row| row.report.as_ref());
    let said = reports.filter(|report| report.removed == 0);
    let said = said.filter_map(|report| report.holders.clone().filter(|holders| holders.shards > 0));
    said.max_by_key(|holders| (holders.version, holders.settled, holders.changed))
}

fn region_row(
    file: &RegionFile,
    nodes: &[NodeRow],
    links: &[LinkRow],
    holders: Option<&HoldersReport>,
) -> Option<RegionRow> {
    let region = RegionId::new(&file.id).ok()?;
    let of_region: Vec<&NodeRow> = nodes.iter().filter(|row| row.node.region == region).collect();
    let reports = || of_region.iter().filter_map(|row| row.report.as_ref());
    let ready = |role: &str| {
        let ready = of_region.iter().filter(|row| row.state == NodeState::Ready);
        ready
            .filter(|row| row.roles.iter().any(|found| found == role))
            .count()
    };
    let (cores_ready, edges_ready) = (ready("core"), ready("edge"));
    let nodes_ready = of_region
        .iter()
        .filter(|row| row.state == NodeState::Ready)
        .count();
    let state = if reports().next().is_none() {
        RegionState::Silent
    } else if cores_ready == 0 || edges_ready == 0 {
        RegionState::Down
    } else if nodes_ready < of_region.len() {
        RegionState::Degraded
    } else {
        RegionState::Ready
    };
    let from_it = links.iter().filter(|link| link.from.node.region == region);
    let down = from_it.filter_map(|link| Some(link.taken.as_ref()?.down_ms));
    let down: Vec<u64> = down.collect();
    // One live link is a way to it.
    let unreachable_ms = if down.contains(&0) {
        0
    } else {
        down.into_iter().max().unwrap_or(0)
    };
    let said = nodes.iter().filter_map(|row| row.report.as_ref());
    let said = said.flat_map(|report| report.evacuations.iter().filter(|row| row.region == region));
    // The latest word, wherever it is known.
    let said = said.max_by_key(|row| (row.version, row.evacuated));
    Some(RegionRow {
        evacuated_ms: said.filter(|row| row.evacuated).map(|row| row.version),
        keeps: match holders {
            Some(holders) if holders.leaving.contains(&region) => Keeps::Leaving,
            Some(holders) if !holders.regions.contains(&region) => Keeps::No,
            Some(holders) if holders.coming.contains(&region) => Keeps::Coming,
            _ => Keeps::Yes,
        },
        name: file.name.clone(),
        state,
        nodes: of_region.len(),
        nodes_ready,
        cores_ready,
        edges_ready,
        sessions: reports().map(|report| report.sessions).sum(),
        shards_open: reports().map(|report| report.shards_open).sum(),
        shards_recovering: reports().map(|report| report.shards_recovering).sum(),
        unreachable_ms,
        geo_fallback: match (file.durability, file.geo_fallback.unwrap_or_default()) {
            (Durability::Region, _) => None,
            (_, GeoFallback::Refuse) => Some("refuse".to_owned()),
            (_, GeoFallback::Region) => Some("region".to_owned()),
        },
        region,
    })
}

async fn shards(me: &Inspector, region: Option<RegionId>, after: Option<u32>, limit: usize) -> Answer {
    let region = region.unwrap_or_else(|| me.key().region.clone());
    region_file(me, &region)?;
    let limit = limit.clamp(1, MAX_PAGE);
    let part = Part::Shards { after, limit };
    let wanted = |key: &NodeKey| key.region == region && is_core(me, key);
    let answers = ask(me, &part, wanted, |reply| match reply {
        PartReply::Shards(shards) => Some(shards),
        _ => None,
    });
    let answers = answers.await;
    let silent = silent(&answers);
    let mut shards = Vec::new();
    for (node, answer) in answers {
        let found = answer.unwrap_or_default().into_iter();
        shards.extend(found.map(|(partition, facts)| ShardRow {
            owner: Addr {
                node: node.clone(),
                partition,
            },
            facts,
        }));
    }
    shards.sort_by_key(|row| row.facts.shard);
    shards.truncate(limit);
    let last = shards.last().map(|row| row.facts.shard);
    Ok(Reply::Shards(ShardList {
        region,
        next: last.filter(|last| shards.len() == limit && last + 1 < me.sharding().count),
        shards,
        silent,
    }))
}

async fn shard(me: &Inspector, of: ShardOf) -> Answer {
    let shard = match of {
        ShardOf::Shard(shard) if shard >= me.sharding().count => {
            let last = me.sharding().count - 1;
            return Err(not_found(format!(
                "there is no shard {shard}: they are numbered 0 to {last}"
            )));
        }
        ShardOf::Shard(shard) => shard,
        ShardOf::User(user) => me.sharding().of_user(&user).0,
    };
    let part = Part::Shard { shard };
    let answers = ask(
        me,
        &part,
        |key| is_core(me, key),
        |reply| match reply {
            PartReply::Shard(part) => Some(part),
            _ => None,
        },
    );
    let answers = answers.await;
    let silent = silent(&answers);
    let found = answers.into_iter().filter_map(|(node, answer)| {
        let part = *answer.ok()?;
        Some(ShardAt { node, part })
    });
    Ok(Reply::Shard(ShardDetail {
        shard,
        regions: found.collect(),
        silent,
    }))
}

async fn sessions(me: &Inspector, part: Part, region: Option<RegionId>, limit: usize) -> Answer {
    let limit = limit.clamp(1, MAX_PAGE);
    let wanted = |key: &NodeKey| region.as_ref().is_none_or(|region| key.region == *region);
    let answers = ask(me, &part, wanted, |reply| match reply {
        PartReply::Sessions(sessions, attached) => Some((sessions, attached)),
        _ => None,
    });
    let answers = answers.await;
    let silent = silent(&answers);
    let (mut rows, mut served) = (Vec::new(), BTreeMap::new());
    for (node, answer) in answers {
        let Ok((sessions, attached)) = answer else {
            continue;
        };
        rows.extend(sessions.into_iter().map(|facts| SessionRow {
            node: node.clone(),
            facts,
            delivery: None,
        }));
        served.extend(attached.into_iter().map(|facts| {
            let owner = node.clone();
            (facts.session, SessionDelivery { owner, facts })
        }));
    }
    rows.sort_by_key(|row| row.facts.session);
    let more = rows.len() >= limit;
    rows.truncate(limit);
    for row in &mut rows {
        row.delivery = served.remove(&row.facts.session);
    }
    Ok(Reply::Sessions(SessionList {
        next: rows.last().map(|row| row.facts.session).filter(|_| more),
        sessions: rows,
        silent,
    }))
}

/// Whether a node is, or may be, a core: one that no region's file names may be.
fn is_core(me: &Inspector, key: &NodeKey) -> bool {
    let files = me.regions();
    let filed = files.node(key.node.as_str());
    filed.is_none_or(|(_, node)| node.has(Role::Core))
}

pub(super) fn region_file(me: &Inspector, region: &RegionId) -> Result<RegionFile, AdminError> {
    let files = me.regions();
    files.region(region.as_str()).cloned().ok_or_else(|| {
        let ids: Vec<&str> = files.ids().collect();
        not_found(format!(
            "there is no region {region}: expected one of {}",
            ids.join(", ")
        ))
    })
}

fn not_found(detail: String) -> AdminError {
    AdminError::new(ErrorCode::NotFound, detail)
}

fn no_core(silent: &[Silent]) -> AdminError {
    let why: Vec<String> = silent
        .iter()
        .map(|silent| format!("{}: {}", silent.node, silent.why))
        .collect();
    AdminError::new(
        ErrorCode::Unavailable,
        format!("no core node that could be asked answered: {}", why.join("; ")),
    )
}
