//! Served by another region while the own one does not serve.

use super::*;

const AFTER: u64 = 2_000;

fn far(region: &str) -> NodeKey {
    NodeKey {
        region: RegionId::new(region).unwrap(),
        node: NodeName::new("core").unwrap(),
    }
}

fn owners_at(node: &NodeKey) -> BTreeMap<ShardId, Owner> {
    let owner = Owner {
        addr: Addr {
            node: node.clone(),
            partition: 0,
        },
        generation: Generation(1),
    };
    (0..SHARDS).map(|shard| (ShardId(shard), owner.clone())).collect()
}

/// Owners of the own region, if it has any, and of two others, of which `near` is the nearer one.
fn tell(rig: &mut Rig, home: bool) {
    let mut owners: BTreeMap<RegionId, BTreeMap<ShardId, Owner>> = ["near", "off"]
        .map(|region| (RegionId::new(region).unwrap(), owners_at(&far(region))))
        .into();
    if home {
        owners.insert(RegionId::new("here").unwrap(), all_on("one", 1));
    }
    rig.edge.handle_owners(owners, rig.now);
}

fn rig(reached: &[&str]) -> Rig {
    let limits = CoreLimits {
        fallback_ms: AFTER,
        ..CoreLimits::default()
    };
    let mut rig = Rig::new(limits);
    let endpoints = ["here", "near", "off"].map(|region| RegionEndpoints {
        region: RegionId::new(region).unwrap(),
        endpoints: Vec::new(),
    });
    rig.edge.handle_endpoints(endpoints.into());
    for region in reached {
        rig.edge.handle_reachable(&far(region), true, rig.now);
    }
    tell(&mut rig, true);
    assert!(rig.out().owners.is_empty(), "the own region serves");
    rig
}

fn lose_home(rig: &mut Rig) {
    rig.edge.handle_reachable(&node("one"), false, rig.now);
    tell(rig, false);
}

fn told(out: &Out, region: &str) -> Vec<&'static str> {
    assert!(
        out.owners
            .iter()
            .all(|(to, ..)| to.node.region.as_str() == region),
        "{out:?}"
    );
    out.kinds()
}

#[test]
fn the_nearest_region_serves_after_a_while_and_home_again_after_another() {
    let mut rig = rig(&["off", "near"]);
    rig.login(1, "alice");
    lose_home(&mut rig);
    rig.pass(AFTER - 1);
    assert!(rig.out().owners.is_empty());
    rig.pass(1);
    assert_eq!(rig.edge.served_by().as_str(), "near");
    let out = rig.out();
    assert_eq!(told(&out, "near"), ["open", "attach", "synced"]);
    let lane = out.owners[0].1;
    // It does not know the store of the session.
    let ended = ToEdge::Ended {
        session: SessionId(101),
        code: Code::Unavailable,
        detail: String::new(),
    };
    let from = out.owners[0].0.clone();
    rig.edge.handle_owner(&from, lane, ended, rig.now);
    assert_eq!(rig.out().closed, [(ConnId(1), Code::Unavailable)].into());
    rig.edge.handle_closed(ConnId(1), rig.now);
    rig.hello(2, "alice");
    assert_eq!(told(&rig.out(), "near"), ["attach"]);
    // Home is there again, and is taken up once it has been so for a while.
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    tell(&mut rig, true);
    let all: Vec<ShardId> = (0..SHARDS).map(ShardId).collect();
    let generation = Generation(3);
    let nothing = [ToOwner::Open { generation }, ToOwner::Synced(all)];
    let bodies = |out: &Out, at: &NodeKey| -> Vec<ToOwner> {
        let bodies = out.owners.iter().filter(|(to, ..)| to.node == *at);
        bodies.map(|(_, _, body)| body.clone()).collect()
    };
    assert_eq!(
        bodies(&rig.out(), &node("one")),
        nothing,
        "it may think that it has some there"
    );
    rig.pass(AFTER / 4);
    assert_eq!(
        bodies(&rig.out(), &node("one")),
        nothing,
        "whether it refuses a shard"
    );
    rig.pass(AFTER / 4 - 1);
    assert!(rig.out().owners.is_empty());
    rig.pass(1);
    assert_eq!(rig.edge.served_by().as_str(), "here");
    let out = rig.out();
    assert_eq!(bodies(&out, &far("near")), nothing);
    let mut left = out.owners.iter().filter(|(to, ..)| to.node == far("near"));
    assert!(left.all(|(_, number, _)| *number > lane));
    let home = bodies(&out, &node("one"));
    assert!(home.iter().any(|body| matches!(body, ToOwner::Attach(_))));
}

#[test]
fn a_region_that_is_not_told_of_any_more_is_told_that_nothing_is_there() {
    let mut rig = rig(&["off", "near"]);
    rig.login(1, "alice");
    lose_home(&mut rig);
    rig.pass(AFTER);
    let lane = rig.out().owners[0].1;
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    tell(&mut rig, true);
    rig.pass(AFTER / 4);
    rig.out();
    // Its core started again, which the members do not know yet. The connection stands.
    let owners = BTreeMap::from([(RegionId::new("here").unwrap(), all_on("one", 1))]);
    rig.edge.handle_owners(owners, rig.now);
    rig.pass(AFTER / 4);
    assert_eq!(rig.edge.served_by().as_str(), "here");
    let out = rig.out();
    let left: Vec<_> = out
        .owners
        .iter()
        .filter(|(to, number, body)| {
            to.node == far("near") && *number > lane && matches!(body, ToOwner::Synced(_))
        })
        .collect();
    assert_eq!(left.len(), 1, "{out:?}");
}

#[test]
fn one_that_is_not_reached_or_does_not_serve_is_passed_over() {
    let mut rig = rig(&["off"]);
    lose_home(&mut rig);
    rig.pass(AFTER);
    assert_eq!(rig.edge.served_by().as_str(), "off");
    let lane = rig.out().owners[0].1;
    let from = Addr {
        node: far("off"),
        partition: 0,
    };
    let all: Vec<ShardId> = (0..SHARDS).map(ShardId).collect();
    rig.edge.handle_owner(&from, lane, ToEdge::NotOwner(all), rig.now);
    rig.edge.handle_reachable(&far("near"), true, rig.now);
    rig.out();
    rig.edge.handle_reachable(&far("off"), false, rig.now);
    rig.pass(AFTER);
    assert_eq!(rig.edge.served_by().as_str(), "near");
    assert_eq!(told(&rig.out(), "near"), ["open", "synced"]);
    // Whoever served after another one is left, too.
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    tell(&mut rig, true);
    rig.pass(AFTER / 4);
    rig.out();
    rig.pass(AFTER / 4);
    assert_eq!(rig.edge.served_by().as_str(), "here");
    let out = rig.out();
    let left = out
        .owners
        .iter()
        .filter(|(to, _, body)| to.node == far("near") && matches!(body, ToOwner::Synced(_)));
    assert_eq!(left.count(), 1, "{out:?}");
}

#[test]
fn nobody_to_fall_back_to_is_looked_for_until_there_is_somebody() {
    let mut rig = rig(&[]);
    lose_home(&mut rig);
    rig.pass(10 * AFTER);
    assert_eq!(rig.edge.served_by().as_str(), "here");
    rig.edge.handle_reachable(&far("near"), true, rig.now);
    assert_eq!(rig.edge.served_by().as_str(), "near");
}

/// Home can be reached, and recovers: it is not taken up before it serves, and soon after.
#[test]
fn a_home_that_recovers_is_waited_for() {
    let mut rig = rig(&["near"]);
    lose_home(&mut rig);
    rig.pass(AFTER);
    assert_eq!(rig.edge.served_by().as_str(), "near");
    rig.out();
    rig.edge.handle_reachable(&node("one"), true, rig.now);
    tell(&mut rig, true);
    let mut refusals = 0;
    for round in 0..100 {
        assert_eq!(rig.edge.served_by().as_str(), "near", "round {round}");
        for (to, lane, body) in rig.out().owners {
            if to.node == node("one") && matches!(body, ToOwner::Synced(_)) {
                refusals += 1;
                let some = ToEdge::NotOwner(vec![ShardId(0)]);
                rig.edge.handle_owner(&to, lane, some, rig.now);
            }
        }
        rig.pass(AFTER / 8);
    }
    assert!(refusals > 10, "{refusals}");
    assert_eq!(rig.edge.stats().stale, 0);
    // Nothing is refused any more.
    rig.pass(AFTER);
    assert_eq!(rig.edge.served_by().as_str(), "here");
}

/// Home can be reached all the time, refuses whatever it is asked for, and does not say so before: it is tried less and less often.
#[test]
fn a_home_that_only_refuses_is_taken_up_less_and_less_often() {
    let mut rig = rig(&["near"]);
    let all: Vec<ShardId> = (0..SHARDS).map(ShardId).collect();
    let mut tries = Vec::new();
    let began = rig.now.mono;
    while rig.now.mono.since(began) < ms(100 * AFTER) {
        let before = rig.edge.served_by().clone();
        rig.pass(10);
        let home = *rig.edge.served_by() != before && rig.edge.served_by().as_str() == "here";
        if home {
            tries.push(rig.now.mono.since(began).as_millis() as u64 / AFTER);
        }
        let here = rig.edge.served_by().as_str() == "here";
        for (to, lane, body) in rig.out().owners {
            if here && to.node == node("one") && matches!(body, ToOwner::Open { .. }) {
                rig.edge
                    .handle_owner(&to, lane, ToEdge::NotOwner(all.clone()), rig.now);
            }
        }
        if rig.lane != 0 {
            let lane = std::mem::take(&mut rig.lane);
            rig.edge
                .handle_owner(&addr("one"), lane, ToEdge::NotOwner(all.clone()), rig.now);
        }
    }
    let gaps: Vec<u64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(tries.len() >= 4 && tries.len() <= 9, "{tries:?}");
    assert!(gaps.is_sorted() && gaps[gaps.len() - 1] >= 8, "{tries:?}");
}

#[test]
fn without_the_limit_the_own_region_alone_counts() {
    let mut rig = Rig::standard();
    rig.edge.handle_reachable(&far("near"), true, rig.now);
    lose_home(&mut rig);
    rig.pass(60_000);
    assert_eq!(rig.edge.served_by().as_str(), "here");
    assert!(rig.out().owners.is_empty());
}
