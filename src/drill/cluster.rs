//! A running cluster (`--target cluster`): struck through the admin interface of its nodes, which end every fault by themselves.
//!
//! What a drill does there others feel. So it begins only where the cluster is well and everything in its plan can be done, and
//! says otherwise what is in its way. A node that is to die is started again by whatever keeps it running; as it was told, it
//! stays away until the fault is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::bail;

use super::access::Access;
use super::crew::Place;
use super::nodes::{Node, Nodes};
use super::plan::Drill;
use super::target::{Asker, LagSeen, Reach, Repairs, SPARE, Target, ask, call, lag, repairs};
use crate::admin::data::{
    ClusterStatus, NodeList, NodeReport, NodeRow, PartReply, RegionDetail, Reply, Verdict,
};
use crate::admin::request::{Call, Change, Part, Request};
use crate::core::ids::{NodeName, RegionId};
use crate::server::faults::MAX_LIFE;
use crate::sim::fault::{Fault, Kind};

/// A node that ended is ready again within this, or the drill ends.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// A node that was told to end has begun to within this.
const TOLD_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks at whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A running cluster.
pub struct Cluster<R> {
    reach: R,
    nodes: Nodes,
    access: Access,
    prefix: String,
    asker: Asker,
    /// The incarnations of nodes that were to be told to end, and whether they were.
    ended: BTreeMap<NodeName, (u64, bool)>,
    /// How many faults were begun and not ended.
    open: u32,
}

/// What a cluster says of itself before a drill.
#[derive(Debug)]
pub struct Sight {
    /// Whether it is well.
    pub status: ClusterStatus,
    /// Its nodes.
    pub nodes: NodeList,
    /// Its regions.
    pub regions: Vec<RegionDetail>,
}

impl Sight {
    /// Asks a node for all of it.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub async fn of(client: &mut crate::admin::client::AdminClient) -> anyhow::Result<Self> {
        let another = "the node answered another question: it may be of another version";
        let Reply::ClusterStatus(status) = client.call(&Call::Cluster(Request::ClusterStatus)).await?? else {
            bail!(another);
        };
        let Reply::Nodes(nodes) = client.call(&Call::Cluster(Request::NodeList)).await?? else {
            bail!(another);
        };
        let mut regions = Vec::new();
        for row in &status.regions {
            let region = row.region.clone();
            let Reply::Region(detail) = client
                .call(&Call::Cluster(Request::RegionShow { region }))
                .await??
            else {
                bail!(another);
            };
            regions.push(*detail);
        }
        Ok(Self {
            status: *status,
            nodes,
            regions,
        })
    }

    /// The nodes.
    pub fn layout(&self) -> Nodes {
        Nodes::new(self.nodes.nodes.iter().map(|row| Node {
            region: row.node.region.clone(),
            name: row.node.node.clone(),
            core: row.roles.iter().any(|role| role == "core"),
        }))
    }

    /// What its regions accept a message by: `region`, `geo`, or both where they differ.
    pub fn durability(&self) -> String {
        let all: BTreeSet<&str> = self
            .regions
            .iter()
            .map(|region| region.durability.as_str())
            .collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Where each region takes clients, as its nodes say.
    pub fn endpoints(&self) -> Vec<(RegionId, Vec<String>)> {
        let mut regions: BTreeMap<RegionId, Vec<String>> = BTreeMap::new();
        for row in &self.nodes.nodes {
            let client = row.report.as_ref().and_then(|report| report.client.clone());
            // Where a region has edges clients go there.
            let edge = row.roles.iter().any(|role| role == "edge");
            if let Some(client) = client.filter(|_| edge) {
                regions.entry(row.node.region.clone()).or_default().push(client);
            }
        }
        regions.into_iter().collect()
    }

    /// What is in the way of a drill; nothing where it may begin.
    pub fn in_the_way(&self, drill: &Drill, faults: &[Fault]) -> Vec<String> {
        let mut why = Vec::new();
        if self.status.verdict != Verdict::Healthy {
            let reasons = self.status.reasons.iter();
            why.extend(reasons.map(|reason| format!("the cluster is not healthy: {}", reason.text)));
        }
        let nodes = self.layout();
        for region in &self.regions {
            // What holds with less holds with more.
            if drill.is_geo() && region.durability != "geo" {
                why.push(format!(
                    "region {} has durability = {:?}, and the drill is for \"geo\"",
                    region.row.region, region.durability
                ));
            }
        }
        if drill.scenario.regions().len() > 1 && nodes.regions().len() < 2 {
            why.push(format!(
                "the drill is for the regions {}, and this cluster has one: nobody could go elsewhere",
                drill.scenario.regions().join(", ")
            ));
        } else if nodes.regions().len() > 1 && nodes.leaves_nothing(faults) {
            why.push("no region would be left that is not struck".to_owned());
        }
        for (number, fault) in (1..).zip(faults) {
            if let Some(place) = nodes.unknown_place(fault) {
                why.push(format!(
                    "fault {number} ({}) is at {place}, where there is no node: {}; --region DRILL=REGION says which of its \
                     regions is meant by one of the drill's",
                    fault.kind.name(),
                    nodes.expected_places(place)
                ));
                continue;
            }
            match fault.kind {
                Kind::Evacuate | Kind::Rolling => {}
                Kind::Backup | Kind::Restore | Kind::DiskReplaced => why.push(format!(
                    "fault {number} is {}, for which hands are needed at the node: use --target dev",
                    fault.kind.name()
                )),
                _ => match nodes.injected(fault) {
                    Ok(injected) => {
                        for (node, _) in injected {
                            let row = self.nodes.nodes.iter().find(|row| row.node.node == node);
                            let report = row.and_then(|row| row.report.as_ref());
                            let allowed = report.is_some_and(|report| report.faults_allowed);
                            let text = match report.and_then(|report| report.cannot_end.clone()) {
                                _ if !allowed => format!("node {node} has faults.allowed = false"),
                                Some(why) if matches!(fault.kind, Kind::Crash | Kind::Pause) => {
                                    format!("fault {number} is {}: {why}", fault.kind.name())
                                }
                                _ => continue,
                            };
                            if !why.contains(&text) {
                                why.push(text);
                            }
                        }
                    }
                    Err(error) => why.push(format!("fault {number}: {error:#}")),
                },
            }
            let most = MAX_LIFE - SPARE;
            if fault
                .lasts
                .is_some_and(|lasts| Duration::from_micros(lasts) > most)
            {
                why.push(format!(
                    "fault {number} ({}) lasts longer than {most:?}, the longest that a node takes",
                    fault.kind.name()
                ));
            }
        }
        why.extend(nodes.clash(faults));
        why
    }

    /// Whether the regions that an operator says are meant by those of a drill are there.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_names(&self, drill: &Drill, names: &BTreeMap<String, String>) -> anyhow::Result<()> {
        let nodes = self.layout();
        let there: Vec<&str> = nodes.regions().into_iter().map(RegionId::as_str).collect();
        let meant = drill.scenario.regions();
        for (from, to) in names {
            if !meant.contains(from) {
                bail!(
                    "--region {from}={to}: the drill has no region {from}: expected one of {}",
                    meant.join(", ")
                );
            }
            if !there.contains(&to.as_str()) {
                bail!(
                    "--region {from}={to}: this cluster has no region {to}: expected one of {}",
                    there.join(", ")
                );
            }
        }
        Ok(())
    }
}

impl<R: Reach> Cluster<R> {
    /// A cluster as it was seen. `prefix` begins the names of the users of the drill's clients.
    pub fn new(reach: R, sight: &Sight, access: Access, prefix: String) -> Self {
        Self {
            reach,
            nodes: sight.layout(),
            access,
            prefix,
            asker: Asker::default(),
            ended: BTreeMap::new(),
            open: 0,
        }
    }

    /// A drill that somebody else began meanwhile is not mixed with this one.
    async fn refuse_others(&self) -> anyhow::Result<()> {
        for node in self.nodes.iter() {
            let asked = call(&self.reach, &node.name, Call::Cluster(Request::FaultList)).await;
            let Ok(Ok(Reply::Faults(list))) = asked else {
                continue;
            };
            let mut others = list.faults.iter().filter(|row| row.ends_ms.is_some());
            if let Some(row) = others.find(|row| !self.asker.has_injected(&row.node.node, row.id)) {
                bail!(
                    "somebody else injected {} into node {}: this drill would not measure its own faults alone",
                    row.fault,
                    row.node.node
                );
            }
            return Ok(());
        }
        Ok(())
    }

    /// Notes which incarnation of a node is about to end.
    async fn ends(&mut self, node: &NodeName) -> anyhow::Result<()> {
        let report = self.report(node).await?;
        self.ended.insert(node.clone(), (report.generation, false));
        Ok(())
    }

    /// It was told, and is waited for.
    fn was_told(&mut self, node: &NodeName) {
        if let Some((_, told)) = self.ended.get_mut(node) {
            *told = true;
        }
    }

    async fn report(&self, node: &NodeName) -> anyhow::Result<NodeReport> {
        let Reply::Part(part) = call(&self.reach, node, Call::Node(Part::Node)).await?? else {
            bail!("node {node} answered another question");
        };
        match *part {
            PartReply::Node(report, _) => Ok(*report),
            _ => bail!("node {node} answered another question"),
        }
    }

    /// Waits until a node is ready, in a later incarnation if it was told to end.
    async fn back(&mut self, node: &NodeName) -> anyhow::Result<()> {
        let began = Instant::now();
        let ended = self.ended.get(node).copied();
        loop {
            let seen = self.report(node).await;
            let why = match seen {
                Ok(report) if ended.is_some_and(|(ended, _)| report.generation <= ended) => {
                    let told = ended.is_some_and(|(_, told)| told) || report.draining;
                    if !told && report.ready && began.elapsed() > TOLD_WITHIN {
                        // The drill was broken off before it was told.
                        self.ended.remove(node);
                        return Ok(());
                    }
                    "it has not ended yet".to_owned()
                }
                Ok(report) if report.ready => {
                    self.ended.remove(node);
                    return Ok(());
                }
                Ok(report) => {
                    let reasons = report.reasons.iter().map(|(what, why)| format!("{what}: {why}"));
                    reasons.collect::<Vec<_>>().join("; ")
                }
                Err(error) => format!("{error:#}"),
            };
            if began.elapsed() > BACK_WITHIN {
                bail!(
                    "node {node} is not back {BACK_WITHIN:?} after its fault was over ({why}): it must be started again when it \
                     ends, by a service manager or the like"
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn all_back(&mut self, nodes: &[NodeName]) -> anyhow::Result<()> {
        for node in nodes {
            self.back(node).await?;
        }
        Ok(())
    }
}

impl<R: Reach> Target for Cluster<R> {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn places(&self, clients: u32) -> anyhow::Result<Vec<Place>> {
        self.access.places(clients, &self.prefix)
    }

    async fn strike(&mut self, fault: &Fault) -> anyhow::Result<()> {
        // While something is struck nodes may not answer.
        if self.open == 0 {
            self.refuse_others().await?;
        }
        self.open += 1;
        let names = self.nodes.struck(fault);
        match fault.kind {
            Kind::Crash => {
                for name in &names {
                    self.ends(name).await?;
                }
                let injected = self.asker.inject(&self.nodes, &self.reach, fault).await;
                for name in &names {
                    if self.asker.has_struck(name, fault) {
                        self.was_told(name);
                    }
                }
                injected
            }
            Kind::Rolling => {
                for node in names {
                    self.ends(&node).await?;
                    ask(&self.reach, &node, Change::NodeDrain { node: node.clone() }).await?;
                    self.was_told(&node);
                    self.back(&node).await?;
                }
                Ok(())
            }
            Kind::Evacuate => self.asker.evacuate(&self.nodes, &self.reach, fault).await,
            _ => self.asker.inject(&self.nodes, &self.reach, fault).await,
        }
    }

    async fn mend(&mut self, fault: &Fault) -> anyhow::Result<()> {
        self.open = self.open.saturating_sub(1);
        let names = self.nodes.struck(fault);
        match fault.kind {
            // They end by themselves.
            Kind::Crash | Kind::Pause | Kind::Rolling => self.all_back(&names).await,
            Kind::Evacuate => self.asker.restore(&self.nodes, &self.reach, fault).await,
            _ => self.asker.clear(&self.reach, fault).await,
        }
    }

    async fn lag(&self) -> Option<LagSeen> {
        lag(&self.nodes, &self.reach).await
    }

    async fn repairs(&self) -> Repairs {
        repairs(&self.nodes, &self.reach).await
    }
}

/// The same fault with the regions of its places renamed.
pub fn renamed(fault: &Fault, names: &BTreeMap<String, String>) -> Fault {
    let mut fault = fault.clone();
    for place in fault.on.iter_mut().chain(&mut fault.from).chain(&mut fault.to) {
        let (region, rest) = match place.split_once('/') {
            Some((region, rest)) => (region, Some(rest)),
            None => (place.as_str(), None),
        };
        if let Some(name) = names.get(region) {
            *place = match rest {
                Some(rest) => format!("{name}/{rest}"),
                None => name.clone(),
            };
        }
    }
    fault
}

/// Where a node is reached by other nodes and by operators, of all that are known.
pub fn peers(nodes: &[NodeRow]) -> BTreeMap<NodeName, String> {
    nodes
        .iter()
        .map(|row| (row.node.node.clone(), row.peer.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_renamed_wherever_a_fault_names_them() {
        let names = BTreeMap::from([("eu-west".to_owned(), "fra1".to_owned())]);
        let mut fault = Fault::new(0, Kind::Cut).on("eu-west/core").on("all");
        (fault.from, fault.to) = (vec!["eu-west".to_owned()], vec!["us-east/edge-1".to_owned()]);
        let fault = renamed(&fault, &names);
        assert_eq!(
            (fault.on, fault.from, fault.to),
            (
                vec!["fra1/core".to_owned(), "all".to_owned()],
                vec!["fra1".to_owned()],
                vec!["us-east/edge-1".to_owned()],
            )
        );
    }
}
