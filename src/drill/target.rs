//! What a drill strikes, and what both kinds of clusters have in common: their nodes are asked by the admin interface.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::crew::Place;
use super::nodes::Nodes;
use crate::admin::client::AdminClient;
use crate::admin::data::{LinkList, PartReply, Reply};
use crate::admin::request::{Call, Change, Part, Request};
use crate::admin::wire::ErrorCode;
use crate::core::ids::{NodeName, RegionId};
use crate::sim::fault::{Fault, Kind};

/// A fault that the drill ends lasts so much longer by itself.
pub(super) const SPARE: Duration = Duration::from_secs(2);

/// A cluster of real nodes.
pub trait Target {
    /// Its nodes.
    fn nodes(&self) -> &Nodes;

    /// The drill's clients: so many that prefer each region, and one in each that stays there.
    ///
    /// # Errors
    /// Where no token can be made.
    fn places(&self, clients: u32) -> anyhow::Result<Vec<Place>>;

    /// Begins a fault; one that is a course of steps is gone through to its end.
    ///
    /// # Errors
    /// What could not be done.
    fn strike(&mut self, fault: &Fault) -> impl Future<Output = anyhow::Result<()>>;

    /// Ends a fault: when this returns what it broke is ready again. Also of one whose beginning was broken off.
    ///
    /// # Errors
    /// What could not be done.
    fn mend(&mut self, fault: &Fault) -> impl Future<Output = anyhow::Result<()>>;

    /// What waits on links between regions, as nodes that answer say.
    fn lag(&self) -> impl Future<Output = Option<LagSeen>>;

    /// What the nodes that answer sent to repair presence.
    fn repairs(&self) -> impl Future<Output = Repairs>;
}

/// Bytes that each node sent to other regions to repair presence, and in which incarnation.
pub type Repairs = BTreeMap<NodeName, (u64, u64)>;

/// Connects to nodes for [`Asker`].
pub trait Reach {
    /// To this one.
    ///
    /// # Errors
    /// Why not.
    fn reach(&self, node: &NodeName) -> impl Future<Output = anyhow::Result<AdminClient>>;
}

/// What waits on links between regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LagSeen {
    /// Operations that wait on all links together.
    pub operations: u64,
    /// For how long the oldest of them does.
    pub oldest_ms: u64,
}

impl LagSeen {
    /// As a line of a report: of the moment when a fault of this number began.
    pub(super) fn observed(lag: Option<Self>, fault: usize) -> (String, String) {
        let not_known = || "not known: no node answered in time".to_owned();
        let lag = lag.map_or_else(not_known, |lag| lag.to_string());
        (format!("lag as fault {} began", fault + 1), lag)
    }
}

/// As a line of a report.
pub(super) fn repaired(bytes: u64, but: &str) -> (String, String) {
    let sent =
        format!("{bytes} bytes were sent between regions to find and repair what differed in presence{but}");
    ("repair".to_owned(), sent)
}

/// What was sent between two looks; of a node that was started meanwhile, since then.
pub(super) fn repaired_between(before: &Repairs, after: &Repairs) -> (String, String) {
    let mut but = "";
    let of = |(node, (incarnation, bytes)): (&NodeName, &(u64, u64))| match before.get(node) {
        Some((same, earlier)) if same == incarnation => bytes.saturating_sub(*earlier),
        _ => {
            but = ", without what nodes had sent that were started again";
            *bytes
        }
    };
    let bytes = after.iter().map(of).sum();
    repaired(bytes, but)
}

impl std::fmt::Display for LagSeen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.operations {
            0 => f.write_str("nothing waited on links between regions"),
            operations => write!(
                f,
                "{operations} operations waited on links between regions, the oldest for {} ms",
                self.oldest_ms
            ),
        }
    }
}

/// Asks nodes for changes, and knows which faults it put where.
#[derive(Debug, Default)]
pub struct Asker {
    injected: Vec<(Fault, NodeName, u64)>,
}

impl Asker {
    /// Injects a fault into the nodes that it strikes. Each ends it by itself, also where this process is gone.
    ///
    /// # Errors
    /// What a node says.
    pub async fn inject(&mut self, nodes: &Nodes, reach: &impl Reach, fault: &Fault) -> anyhow::Result<()> {
        // What a process does to itself is over when it is over.
        let by_itself = matches!(fault.kind, Kind::Pause | Kind::Crash);
        let lasts = lasts(fault)? + if by_itself { Duration::ZERO } else { SPARE };
        for (node, injected) in nodes.injected(fault)? {
            let change = Change::FaultInject {
                node: node.clone(),
                fault: injected,
                lasts_ms: Some(millis(lasts)),
            };
            if let Reply::Injected(row) = ask(reach, &node, change).await? {
                self.injected.push((fault.clone(), node, row.id));
            }
        }
        Ok(())
    }

    /// Whether a fault was injected into a node.
    pub fn has_struck(&self, node: &NodeName, fault: &Fault) -> bool {
        self.injected.iter().any(|(of, at, _)| of == fault && at == node)
    }

    /// Whether it injected the fault of this number into a node.
    pub fn has_injected(&self, node: &NodeName, id: u64) -> bool {
        self.injected
            .iter()
            .any(|(_, at, injected)| at == node && *injected == id)
    }

    /// Ends what was injected for a fault.
    ///
    /// # Errors
    /// What a node says; all are asked before.
    pub async fn clear(&mut self, reach: &impl Reach, fault: &Fault) -> anyhow::Result<()> {
        let mut failed = Ok(());
        for (_, node, id) in self.injected.extract_if(.., |(of, ..)| of == fault) {
            let change = Change::FaultClear {
                node: node.clone(),
                id: Some(id),
            };
            let cleared = call(reach, &node, Call::Change(change)).await;
            match cleared {
                Ok(Ok(_)) => {}
                // It ended by itself, or with a start of its node.
                Ok(Err(error)) if error.code == ErrorCode::NotFound => {}
                Ok(Err(error)) => failed = Err(anyhow::Error::new(error).context(format!("node {node}"))),
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    /// Sends the clients of the regions of a fault to others. They come back by themselves where this process is gone.
    ///
    /// # Errors
    /// What a node says.
    pub async fn evacuate(&self, nodes: &Nodes, reach: &impl Reach, fault: &Fault) -> anyhow::Result<()> {
        let lasts_ms = Some(millis(lasts(fault)? + SPARE));
        let change = |region| Change::RegionEvacuate {
            region,
            rate: None,
            force: false,
            lasts_ms,
        };
        self.each_region(nodes, reach, fault, change).await
    }

    /// Lets them come back.
    ///
    /// # Errors
    /// What a node says.
    pub async fn restore(&self, nodes: &Nodes, reach: &impl Reach, fault: &Fault) -> anyhow::Result<()> {
        let change = |region| Change::RegionRestore { region, rate: None };
        self.each_region(nodes, reach, fault, change).await
    }

    async fn each_region(
        &self,
        nodes: &Nodes,
        reach: &impl Reach,
        fault: &Fault,
        change: impl Fn(RegionId) -> Change,
    ) -> anyhow::Result<()> {
        for region in nodes.regions_struck(fault) {
            ask(reach, nodes.first_of(&region)?, change(region.clone())).await?;
        }
        Ok(())
    }
}

/// How long a fault lasts.
///
/// # Errors
/// Where its plan does not say so: nodes end it by themselves only where they are told when.
fn lasts(fault: &Fault) -> anyhow::Result<Duration> {
    let lasts = fault
        .lasts
        .with_context(|| format!("{}: expected `lasts`", fault.kind.name()))?;
    Ok(Duration::from_micros(lasts))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Asks a node for a change.
///
/// # Errors
/// Where it cannot be asked, or refuses.
pub async fn ask(reach: &impl Reach, node: &NodeName, change: Change) -> anyhow::Result<Reply> {
    match call(reach, node, Call::Change(change)).await? {
        Ok(reply) => Ok(reply),
        Err(error) => bail!("node {node}: {error}"),
    }
}

/// Asks a node.
///
/// # Errors
/// Where it cannot be asked.
pub async fn call(
    reach: &impl Reach,
    node: &NodeName,
    call: Call,
) -> anyhow::Result<crate::admin::wire::Answer> {
    let asked = async { anyhow::Ok(reach.reach(node).await?.call(&call).await?) };
    asked
        .await
        .with_context(|| format!("node {node} cannot be asked"))
}

/// What waits on links, as the first node says that answers.
pub async fn lag(nodes: &Nodes, reach: &impl Reach) -> Option<LagSeen> {
    for node in nodes.iter().filter(|node| node.core) {
        let request = Call::Cluster(Request::LinkList { region: None });
        if let Ok(Ok(Reply::Links(list))) = call(reach, &node.name, request).await {
            return Some(seen(&list));
        }
    }
    None
}

/// What cores sent to repair presence, of those that answer.
pub async fn repairs(nodes: &Nodes, reach: &impl Reach) -> Repairs {
    let mut repairs = Repairs::new();
    for node in nodes.iter().filter(|node| node.core) {
        if let Ok(Ok(Reply::Part(part))) = call(reach, &node.name, Call::Node(Part::Node)).await
            && let PartReply::Node(report, _) = *part
        {
            let sent = (report.generation, report.presence_repair_bytes);
            repairs.insert(node.name.clone(), sent);
        }
    }
    repairs
}

fn seen(list: &LinkList) -> LagSeen {
    let given = list.links.iter().filter_map(|link| link.given.as_ref());
    given.fold(LagSeen::default(), |seen, given| LagSeen {
        operations: seen.operations + given.lag.operations,
        oldest_ms: seen.oldest_ms.max(given.lag_ms),
    })
}
