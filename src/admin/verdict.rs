//! Whether a cluster is well, and why not: judged from what its nodes told and which did not.

use std::collections::BTreeMap;
use std::time::Duration;

use super::data::{Keeps, LinkRow, NodeRow, NodeState, Reason, ReasonCode, RegionRow, RegionState, Verdict};
use crate::core::ids::RegionId;
use crate::core::link::LinkState;

/// What waits longer than this for another region has fallen behind: shipping takes milliseconds.
pub const LAGS_AFTER: Duration = Duration::from_secs(10);
/// Clocks that differ by more are worth a look; from a minute on they are not believed (R7, R16).
pub const CLOCKS_DIFFER: Duration = Duration::from_secs(10);

/// Judges; the reasons are sorted, the worst first.
pub fn judge(regions: &[RegionRow], nodes: &[NodeRow], links: &[LinkRow]) -> (Verdict, Vec<Reason>) {
    let mut reasons = Vec::new();
    let states: BTreeMap<&RegionId, RegionState> = regions
        .iter()
        .map(|region| (&region.region, region.state))
        .collect();
    // One that is not added yet, or not any more, serves nobody and is to serve nobody.
    let takes_part = |region: &RegionId| {
        let row = regions.iter().find(|row| row.region == *region);
        row.is_none_or(|row| row.keeps == Keeps::Yes)
    };
    for region in regions {
        match region.keeps {
            Keeps::Yes => judge_region(region, nodes, &mut reasons),
            Keeps::No => {}
            Keeps::Coming | Keeps::Leaving => judge_moving(region, &mut reasons),
        }
    }
    judge_all_evacuated(regions, &mut reasons);
    let serves = |region: &&RegionRow| region.state != RegionState::Silent && region.keeps == Keeps::Yes;
    for region in regions.iter().filter(serves) {
        judge_copies(region, regions, links, &mut reasons);
    }
    for node in nodes.iter().filter(|node| takes_part(&node.node.region)) {
        // What is wrong with a whole region is said once.
        if states.get(&node.node.region) != Some(&RegionState::Silent) {
            judge_node(node, nodes, &mut reasons);
        }
        judge_faults(node, &mut reasons);
    }
    let between = |link: &&LinkRow| takes_part(&link.from.node.region) && takes_part(&link.to.node.region);
    for link in links.iter().filter(between) {
        let silent = |region| states.get(region) == Some(&RegionState::Silent);
        let to_silent = silent(&link.from.node.region) || silent(&link.to.node.region);
        judge_link(link, to_silent, nodes, &mut reasons);
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.severity));
    let verdict = reasons.first().map_or(Verdict::Healthy, |reason| reason.severity);
    (verdict, reasons)
}

fn judge_region(region: &RegionRow, nodes: &[NodeRow], reasons: &mut Vec<Reason>) {
    let mut critical = |code, text: String| {
        reasons.push(Reason {
            severity: Verdict::Critical,
            code,
            about: region.region.to_string(),
            text,
        });
    };
    let of_region = || nodes.iter().filter(|node| node.node.region == region.region);
    if region.state == RegionState::Silent {
        let since = match region.unreachable_ms {
            0 => String::new(),
            ms => format!("; the other regions have had no link to it for {}", seconds(ms)),
        };
        let text = format!(
            "region {}: none of its {} nodes answers: it is lost or cut off{since}; its clients go to other regions",
            region.region, region.nodes
        );
        critical(ReasonCode::RegionSilent, text);
        return judge_evacuated(region, reasons);
    }
    let first_why = |role: &str| {
        let mut of_role = of_region().filter(|node| node.roles.iter().any(|found| found == role));
        of_role
            .find(|node| node.state != NodeState::Ready)
            .map(|node| format!(" ({}: {})", node.node.node, told(node)))
            .unwrap_or_default()
    };
    if region.cores_ready == 0 {
        let text = format!(
            "region {}: no core node is ready, so its shards have no owner there{}",
            region.region,
            first_why("core")
        );
        critical(ReasonCode::NoCore, text);
    } else if region.edges_ready == 0 {
        // Without a core no edge is ready either: that is one reason.
        let text = format!(
            "region {}: no edge node is ready, so no client is served there{}",
            region.region,
            first_why("edge")
        );
        critical(ReasonCode::NoEdge, text);
    }
    judge_evacuated(region, reasons);
}

/// A region that is being added, or was removed.
/// With `durability = "geo"` a region needs another one that takes what it was given.
fn judge_copies(region: &RegionRow, regions: &[RegionRow], links: &[LinkRow], reasons: &mut Vec<Reason>) {
    let Some(fallback) = region.geo_fallback.as_deref() else {
        return;
    };
    let takes = |to: &RegionId| {
        let row = regions.iter().find(|row| row.region == *to);
        row.is_none_or(|row| matches!(row.keeps, Keeps::Yes | Keeps::Coming))
    };
    let mut of_it = links.iter().filter(|link| link.from.node.region == region.region);
    if of_it.any(|link| link.state == LinkState::Live && takes(&link.to.node.region)) {
        return;
    }
    let (severity, code, then) = match fallback {
        "refuse" => (
            Verdict::Critical,
            ReasonCode::AcceptsNothing,
            "accepts no message until one is back",
        ),
        _ => (
            Verdict::Degraded,
            ReasonCode::AcceptsAlone,
            "accepts messages as durable in itself alone",
        ),
    };
    let text = format!(
        "region {} has no live link to another region, and {then} (durability = \"geo\", geo_fallback = {fallback:?})",
        region.region
    );
    reasons.push(Reason {
        severity,
        code,
        about: region.region.to_string(),
        text,
    });
}

fn judge_moving(region: &RegionRow, reasons: &mut Vec<Reason>) {
    let id = &region.region;
    let (code, text) = if region.keeps == Keeps::Coming {
        let left =
            "its core node, started with an empty data folder and --create, takes a snapshot of every shard";
        (
            ReasonCode::RegionComes,
            format!("region {id} is being added: {left}"),
        )
    } else {
        let left =
            "the others wait until they have all that it took: leave its nodes running until it is out";
        (
            ReasonCode::RegionLeaves,
            format!("region {id} was removed: {left}"),
        )
    };
    reasons.push(Reason {
        severity: Verdict::Degraded,
        code,
        about: id.to_string(),
        text,
    });
}

fn judge_all_evacuated(regions: &[RegionRow], reasons: &mut Vec<Reason>) {
    let mut keep = regions
        .iter()
        .filter(|region| region.keeps == Keeps::Yes)
        .peekable();
    if let Some(first) = keep.peek().copied()
        && keep.all(|region| region.evacuated_ms.is_some())
    {
        let id = &first.region;
        reasons.push(Reason {
            severity: Verdict::Critical,
            code: ReasonCode::RegionEvacuated,
            about: id.to_string(),
            text: format!("every region is evacuated: no client is served anywhere; begin with `iris region restore {id}`"),
        });
    }
}

fn judge_evacuated(region: &RegionRow, reasons: &mut Vec<Reason>) {
    if region.evacuated_ms.is_none() {
        return;
    }
    let (id, sessions) = (&region.region, region.sessions);
    reasons.push(Reason {
        severity: Verdict::Degraded,
        code: ReasonCode::RegionEvacuated,
        about: id.to_string(),
        text: format!(
            "region {id} is evacuated: its clients go to other regions until `iris region restore {id}`; sessions left: \
             {sessions}"
        ),
    });
}

fn judge_node(node: &NodeRow, nodes: &[NodeRow], reasons: &mut Vec<Reason>) {
    let mut add = |severity, code, text: String| {
        reasons.push(Reason {
            severity,
            code,
            about: node.node.to_string(),
            text,
        });
    };
    let key = &node.node;
    let report = node.report.as_ref();
    match node.state {
        NodeState::Ready => {}
        NodeState::NoAnswer => {
            let text = format!("node {key} does not answer: {}", node.why);
            add(Verdict::Degraded, ReasonCode::NodeSilent, text);
        }
        NodeState::Draining => {
            let sessions = report.map_or(0, |report| report.sessions);
            let text = format!("node {key} drains and will stop; sessions left: {sessions}");
            add(Verdict::Degraded, ReasonCode::NodeDrains, text);
        }
        NodeState::NotReady => match report.and_then(|report| report.reasons.get("store")) {
            Some(why) => {
                let text = format!("the store of node {key} stopped: {why}");
                add(Verdict::Critical, ReasonCode::StoreStopped, text);
            }
            None => {
                let text = format!("node {key} is not ready: {}", node.why);
                add(Verdict::Degraded, ReasonCode::NodeNotReady, text);
            }
        },
    }
    if let Some(region) = report.and_then(|report| report.served_by.as_ref()) {
        let text = format!(
            "node {key} is served by region {region}, as no core node of its own region serves it: what its clients send is \
             durable there"
        );
        add(Verdict::Degraded, ReasonCode::ServedElsewhere, text);
    }
    let answers = |key: &crate::core::ids::NodeKey| {
        let other = nodes.iter().find(|node| node.node == *key);
        other.is_some_and(|node| node.report.is_some())
    };
    for seen in report.into_iter().flat_map(|report| &report.sees) {
        let Some(connection) = &seen.connection else {
            continue;
        };
        // Of one that does not answer it is no news.
        if connection.breaker != "closed" && answers(&seen.node) {
            let last = connection.last_error.as_deref().unwrap_or("no error was told");
            let text = format!(
                "node {key} cannot connect to {}, which answers here: {} attempts in a row failed, last: {last}",
                seen.node, connection.failures
            );
            add(Verdict::Degraded, ReasonCode::BreakerOpen, text);
        }
    }
}

/// What was injected on purpose; what lasts as long as the node belongs to it.
fn judge_faults(node: &NodeRow, reasons: &mut Vec<Reason>) {
    let faults = node.report.iter().flat_map(|report| &report.faults);
    let ending: Vec<_> = faults
        .filter_map(|row| Some((row.left_ms?, row.fault.to_string())))
        .collect();
    let Some(left_ms) = ending.iter().map(|(left_ms, _)| *left_ms).max() else {
        return;
    };
    let what: Vec<&str> = ending.iter().map(|(_, what)| what.as_str()).collect();
    reasons.push(Reason {
        severity: Verdict::Degraded,
        code: ReasonCode::FaultsInjected,
        about: node.node.to_string(),
        text: format!(
            "faults are injected into node {}: {}; the last one ends in {}",
            node.node,
            what.join("; "),
            seconds(left_ms)
        ),
    });
}

fn judge_link(link: &LinkRow, to_silent: bool, nodes: &[NodeRow], reasons: &mut Vec<Reason>) {
    let name = format!("{} -> {}", link.from, link.to);
    let mut add = |severity, code, text: String| {
        reasons.push(Reason {
            severity,
            code,
            about: name.clone(),
            text,
        });
    };
    let (taken, given) = (link.taken.as_ref(), link.given.as_ref());
    if let Some(taken) = taken.filter(|taken| taken.stopped > 0) {
        let why = taken
            .stopped_shards
            .first()
            .map(|first| format!(", such as {}: {}", first.shard, first.why));
        let text = format!(
            "link {name} takes no more of {} shards until someone acts{}",
            taken.stopped,
            why.unwrap_or_default()
        );
        add(Verdict::Critical, ReasonCode::LinkStopped, text);
    }
    let waits = given.map_or(String::new(), |given| {
        let lag = &given.lag;
        match lag.operations {
            0 => String::new(),
            operations => format!("; {operations} operations wait for it"),
        }
    });
    // A node that does not answer, or that is not ready, is a reason already, and takes its links with it.
    let ready = |addr: &crate::core::ids::Addr| {
        let node = nodes.iter().find(|node| node.node == addr.node);
        node.is_some_and(|node| node.state == NodeState::Ready)
    };
    if link.state != LinkState::Live {
        if !to_silent && ready(&link.from) && ready(&link.to) {
            let down = taken.map_or(0, |taken| taken.down_ms);
            let text = format!("link {name} is {} for {}{waits}", link.state, seconds(down));
            add(Verdict::Degraded, ReasonCode::LinkDown, text);
        }
    } else if let Some(given) = given.filter(|given| u128::from(given.lag_ms) > LAGS_AFTER.as_millis()) {
        let lag = &given.lag;
        let text = format!(
            "link {name} is {} behind: {} messages, {} bytes wait",
            seconds(given.lag_ms),
            lag.messages,
            lag.bytes
        );
        add(Verdict::Degraded, ReasonCode::LinkLags, text);
    }
    let ahead = taken.and_then(|taken| taken.clock_ahead_ms).unwrap_or(0);
    // A node that fell silent is believed no more about its clock.
    if link.state == LinkState::Live && u128::from(ahead.unsigned_abs()) > CLOCKS_DIFFER.as_millis() {
        let how = if ahead > 0 { "ahead of" } else { "behind" };
        let text = format!(
            "the clock of {} is {} {how} that of {}",
            link.from.node,
            seconds(ahead.unsigned_abs()),
            link.to.node
        );
        add(Verdict::Degraded, ReasonCode::ClockDiffers, text);
    }
}

fn told(node: &NodeRow) -> &str {
    match node.state {
        NodeState::Draining => "it drains",
        _ if node.why.is_empty() => "it is not there",
        _ => &node.why,
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::data::{FaultRow, NodeReport};
    use crate::core::ids::{Addr, NodeKey};
    use crate::core::inspect::{GivenFacts, StoppedFacts, TakenFacts};
    use crate::core::link::Lag;
    use crate::server::faults::Fault;

    fn key(region: &str, node: &str) -> NodeKey {
        NodeKey {
            region: region.parse().unwrap(),
            node: node.parse().unwrap(),
        }
    }

    fn node(region: &str, name: &str, role: &str, state: NodeState) -> NodeRow {
        let report = NodeReport {
            node: key(region, name),
            generation: 1,
            version: "1".to_owned(),
            roles: vec![role.to_owned()],
            uptime_ms: 1,
            ready: state == NodeState::Ready,
            reasons: BTreeMap::new(),
            draining: state == NodeState::Draining,
            sessions: 7,
            returning: 0,
            evacuations: Vec::new(),
            regions: Vec::new(),
            removed: 0,
            holders: None,
            partitions: 1,
            shards_open: 0,
            shards_recovering: 0,
            shards_unserved: 0,
            served_by: None,
            client: None,
            admin_http: String::new(),
            memory_bytes: None,
            store: None,
            sees: Vec::new(),
            faults: Vec::new(),
            faults_allowed: false,
            cannot_end: None,
            presence_repair_bytes: 0,
        };
        NodeRow {
            node: key(region, name),
            peer: String::new(),
            roles: vec![role.to_owned()],
            state,
            why: if state == NodeState::Ready {
                String::new()
            } else {
                "because".to_owned()
            },
            report: Some(report).filter(|_| state != NodeState::NoAnswer),
        }
    }

    fn region(id: &str, state: RegionState, cores: usize, edges: usize) -> RegionRow {
        RegionRow {
            region: id.parse().unwrap(),
            name: id.to_owned(),
            state,
            keeps: Keeps::Yes,
            nodes: 2,
            nodes_ready: cores + edges,
            cores_ready: cores,
            edges_ready: edges,
            sessions: 0,
            shards_open: 0,
            shards_recovering: 0,
            unreachable_ms: 12_300,
            evacuated_ms: None,
            geo_fallback: None,
        }
    }

    fn link(state: LinkState) -> LinkRow {
        let addr = |region, name| Addr {
            node: key(region, name),
            partition: 0,
        };
        LinkRow {
            from: addr("a", "a-core"),
            to: addr("b", "b-core"),
            state,
            taken: Some(TakenFacts {
                state,
                down_ms: 0,
                shards: 1,
                stopped: 0,
                stopped_shards: Vec::new(),
                carries: Vec::new(),
                applied_operations: 0,
                received_bytes: 0,
                held_bytes: 0,
                round_trip_us: None,
                clock_ahead_ms: Some(-5),
            }),
            given: Some(GivenFacts {
                open: true,
                shards: 1,
                lagging_shards: 0,
                lagging: Vec::new(),
                lag: Lag::default(),
                lag_ms: 0,
                in_flight_bytes: 0,
                shipped_operations: 0,
                shipped_bytes: 0,
                presence_waiting: 0,
            }),
        }
    }

    fn nodes() -> Vec<NodeRow> {
        vec![
            node("a", "a-core", "core", NodeState::Ready),
            node("a", "a-edge", "edge", NodeState::Ready),
            node("b", "b-core", "core", NodeState::Ready),
            node("b", "b-edge", "edge", NodeState::Ready),
        ]
    }

    fn codes(found: (Verdict, Vec<Reason>)) -> (Verdict, Vec<ReasonCode>) {
        (found.0, found.1.iter().map(|reason| reason.code).collect())
    }

    const READY: RegionState = RegionState::Ready;

    #[test]
    fn a_cluster_where_all_is_there_is_healthy() {
        let regions = [region("a", READY, 1, 1), region("b", READY, 1, 1)];
        let found = judge(&regions, &nodes(), &[link(LinkState::Live)]);
        assert_eq!(codes(found), (Verdict::Healthy, vec![]));
    }

    #[test]
    fn a_node_that_is_missing_is_degraded_and_a_region_without_a_core_critical() {
        let mut all = nodes();
        all[1] = node("a", "a-edge", "edge", NodeState::NoAnswer);
        all.push(node("a", "a-edge-2", "edge", NodeState::Draining));
        let regions = [region("a", RegionState::Degraded, 1, 1), region("b", READY, 1, 1)];
        let found = judge(&regions, &all, &[]);
        assert_eq!(
            codes(found),
            (
                Verdict::Degraded,
                vec![ReasonCode::NodeSilent, ReasonCode::NodeDrains]
            )
        );
        all[0] = node("a", "a-core", "core", NodeState::NotReady);
        let regions = [region("a", RegionState::Down, 0, 0), region("b", READY, 1, 1)];
        let (verdict, reasons) = judge(&regions, &all, &[link(LinkState::Down)]);
        assert_eq!(verdict, Verdict::Critical);
        assert!(
            reasons[0].text.contains("(a-core: because)"),
            "{}",
            reasons[0].text
        );
        // The link ends at a node that is known to be the cause.
        assert!(reasons.iter().all(|reason| reason.code != ReasonCode::LinkDown));
        // Its edges are not ready for the same reason.
        assert!(reasons.iter().all(|reason| reason.code != ReasonCode::NoEdge));
        all[0] = node("a", "a-core", "core", NodeState::Ready);
        let regions = [region("a", RegionState::Down, 1, 0), region("b", READY, 1, 1)];
        let (verdict, reasons) = judge(&regions, &all, &[]);
        assert_eq!(
            (verdict, reasons[0].code),
            (Verdict::Critical, ReasonCode::NoEdge)
        );
    }

    #[test]
    fn a_region_that_needs_another_one_says_what_it_does_without() {
        let mut regions = [region("a", READY, 1, 1), region("b", READY, 1, 1)];
        regions[0].geo_fallback = Some("refuse".to_owned());
        let found = judge(&regions, &nodes(), &[link(LinkState::Live)]);
        assert_eq!(codes(found), (Verdict::Healthy, vec![]));

        let (verdict, reasons) = judge(&regions, &nodes(), &[link(LinkState::Down)]);
        assert_eq!(
            (verdict, reasons[0].code),
            (Verdict::Critical, ReasonCode::AcceptsNothing)
        );
        assert!(
            reasons[0].text.contains("region a") && reasons[0].text.contains("accepts no message"),
            "{}",
            reasons[0].text
        );
        regions[0].geo_fallback = Some("region".to_owned());
        let found = judge(&regions, &nodes(), &[link(LinkState::Down)]);
        assert_eq!(
            codes(found),
            (
                Verdict::Degraded,
                vec![ReasonCode::AcceptsAlone, ReasonCode::LinkDown]
            )
        );

        // Nobody who was removed has a copy, and a region that is silent is said to be that.
        regions[1].keeps = Keeps::Leaving;
        let (_, reasons) = judge(&regions, &nodes(), &[link(LinkState::Live)]);
        assert!(
            reasons
                .iter()
                .any(|reason| reason.code == ReasonCode::AcceptsAlone),
            "{reasons:?}"
        );
        regions[0].state = RegionState::Silent;
        let (_, reasons) = judge(&regions, &nodes(), &[link(LinkState::Down)]);
        assert!(
            reasons
                .iter()
                .all(|reason| reason.code != ReasonCode::AcceptsAlone),
            "{reasons:?}"
        );
    }

    #[test]
    fn a_region_that_is_silent_is_one_reason() {
        let mut all = nodes();
        all[2] = node("b", "b-core", "core", NodeState::NoAnswer);
        all[3] = node("b", "b-edge", "edge", NodeState::NoAnswer);
        let regions = [region("a", READY, 1, 1), region("b", RegionState::Silent, 0, 0)];
        let (verdict, reasons) = judge(&regions, &all, &[link(LinkState::Down)]);
        assert_eq!((verdict, reasons.len()), (Verdict::Critical, 1));
        assert!(reasons[0].text.contains("for 12.3 s"), "{}", reasons[0].text);
    }

    #[test]
    fn a_region_that_is_evacuated_is_degraded_whatever_else_it_is() {
        let mut regions = [region("a", READY, 1, 1), region("b", READY, 1, 1)];
        regions[1].evacuated_ms = Some(5);
        let (verdict, reasons) = judge(&regions, &nodes(), &[link(LinkState::Live)]);
        assert_eq!((verdict, reasons.len()), (Verdict::Degraded, 1));
        assert_eq!(
            (reasons[0].code, reasons[0].about.as_str()),
            (ReasonCode::RegionEvacuated, "b")
        );
        assert!(
            reasons[0].text.contains("`iris region restore b`"),
            "{}",
            reasons[0].text
        );
        regions[1].state = RegionState::Silent;
        let found = judge(&regions, &nodes()[..2], &[]);
        assert_eq!(
            codes(found),
            (
                Verdict::Critical,
                vec![ReasonCode::RegionSilent, ReasonCode::RegionEvacuated]
            )
        );
    }

    #[test]
    fn faults_on_purpose_are_a_reason_and_what_lasts_as_long_as_the_node_is_none() {
        let mut all = nodes();
        let row = |id, left_ms: Option<u64>| FaultRow {
            node: key("a", "a-core"),
            id,
            fault: Fault::StoreSlow { ms: id },
            since_ms: 1,
            ends_ms: left_ms,
            left_ms,
        };
        let regions = [region("a", READY, 1, 1), region("b", READY, 1, 1)];
        let mut judged = |faults| {
            all[0].report.as_mut().unwrap().faults = faults;
            judge(&regions, &all, &[link(LinkState::Live)])
        };
        let found = judged(vec![row(1, None)]);
        assert_eq!(codes(found), (Verdict::Healthy, vec![]));
        let (verdict, reasons) = judged(vec![row(1, None), row(2, Some(1_500)), row(3, Some(20_000))]);
        assert_eq!(
            (verdict, reasons[0].code),
            (Verdict::Degraded, ReasonCode::FaultsInjected)
        );
        assert_eq!(
            reasons[0].text,
            "faults are injected into node a/a-core: store-slow by 2 ms a commit; store-slow by 3 ms a commit; the last one \
             ends in 20.0 s"
        );
    }

    #[test]
    fn links_that_stop_are_critical_and_those_that_lag_or_are_down_degraded() {
        let regions = [region("a", READY, 1, 1), region("b", READY, 1, 1)];
        let of = |change: &dyn Fn(&mut LinkRow)| {
            let mut link = link(LinkState::Live);
            change(&mut link);
            codes(judge(&regions, &nodes(), &[link]))
        };
        let stopped = of(&|link| {
            let taken = link.taken.as_mut().unwrap();
            taken.stopped = 1;
            taken.stopped_shards = vec![StoppedFacts {
                shard: 3,
                origin: crate::core::inspect::Hex(1),
                why: "diverged".to_owned(),
            }];
        });
        assert_eq!(stopped, (Verdict::Critical, vec![ReasonCode::LinkStopped]));
        assert_eq!(
            of(&|link| link.state = LinkState::Down),
            (Verdict::Degraded, vec![ReasonCode::LinkDown])
        );
        let lags = |ms| of(&|link| link.given.as_mut().unwrap().lag_ms = ms);
        assert_eq!(lags(10_000), (Verdict::Healthy, vec![]));
        assert_eq!(lags(10_001), (Verdict::Degraded, vec![ReasonCode::LinkLags]));
        let clock = |ms| of(&|link| link.taken.as_mut().unwrap().clock_ahead_ms = Some(ms));
        assert_eq!(clock(-10_000), (Verdict::Healthy, vec![]));
        assert_eq!(
            clock(-10_001),
            (Verdict::Degraded, vec![ReasonCode::ClockDiffers])
        );
    }
}
