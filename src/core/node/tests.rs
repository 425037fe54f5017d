//! A partition over rows that can be rolled back under it (R3).

mod reads;

use bytes::Bytes;

use super::*;
use crate::core::commit::decide;
use crate::core::ids::{DeviceId, MessageId, NodeName};
use crate::core::members::Member;
use crate::core::msg::{Deposit, ToOwner, ToProvider};
use crate::core::op::Envelope;
use crate::core::owner::DurabilityPolicy;
use crate::core::state::{Decision, State, StoreIdentity, StoreLimits};
use crate::core::vector::Vector;

const SHARD: ShardId = ShardId(0);
const ORIGIN: Origin = Origin(7);
const NOW: Now = Now {
    mono: Mono(1_000_000),
    wall_ms: 1_700_000_000_000,
};

fn addr(region: &str, node: &str) -> Addr {
    let node = NodeKey {
        region: RegionId::new(region).unwrap(),
        node: NodeName::new(node).unwrap(),
    };
    Addr { node, partition: 0 }
}

fn holders() -> BTreeSet<RegionId> {
    ["a", "b"].map(|name| RegionId::new(name).unwrap()).into()
}

fn members(cores: &[Addr]) -> Members {
    Members::new(cores.iter().map(|addr| Member {
        key: addr.node.clone(),
        generation: Generation(1),
        partitions: 1,
        core: true,
        edge: true,
        ready: true,
        client: None,
    }))
}

struct Node {
    partition: Partition,
    state: State,
    stops: Vec<LinkAlarm>,
    outputs: usize,
    /// Of the other region's subscription.
    lane: u64,
}

impl Node {
    /// A core that has accepted a message.
    fn new() -> Self {
        let (me, sharding) = (addr("a", "core"), Sharding { count: 1, seed: 0 });
        let state = State::new(StoreIdentity {
            cluster: 1,
            region: me.node.region.clone(),
            origin: ORIGIN,
            holders: holders(),
            sharding,
            limits: StoreLimits::default(),
            joining: false,
        });
        let config = PartitionConfig {
            durability: DurabilityPolicy::Region,
            me: me.clone(),
            generation: Generation(1),
            sharding,
            holders: holders(),
            limits: CoreLimits::default(),
            core: true,
            edge: false,
        };
        let mut node = Self {
            partition: Partition::new(config, [1; 32], NOW),
            state,
            stops: Vec::new(),
            outputs: 0,
            lane: 0,
        };
        node.input(Input::Members(members(&[me, addr("b", "core")])));
        let up = true;
        node.input(Input::Reachable {
            node: addr("b", "core").node,
            up,
        });
        assert!(node.partition.owner().all_active());
        let generation = Generation(1);
        node.edge(ToOwner::Open { generation });
        node.deposit(1);
        assert_eq!(node.head(), 2, "a start and a message");
        node
    }

    fn edge(&mut self, body: ToOwner) {
        let message = Message::ToOwner { lane: 1, body };
        self.input(Input::Peer {
            from: addr("a", "edge"),
            message,
        });
    }

    fn deposit(&mut self, number: u64) {
        let envelope = Envelope {
            to: UserId::new("bob").unwrap(),
            from: UserId::new("alice").unwrap(),
            from_device: DeviceId::new("phone").unwrap(),
            connect_epoch: 1,
            session: SessionId(1),
            session_seq: number,
            id: MessageId::v7(NOW.wall_ms, [number as u8; 10]),
            kind: 0,
            expires_ms: 0,
            trace: Vec::new(),
        };
        self.edge(ToOwner::Deposit(vec![Deposit {
            shard: SHARD,
            attempt: 1,
            envelope,
            body: Bytes::from_static(b"x"),
        }]));
    }

    /// The other region subscribes and says that it has so much of this region's current origin.
    fn report(&mut self, has: Seq) {
        let body = ToProvider::Subscribe {
            first: true,
            holders: holders().into_iter().collect(),
            shards: vec![(SHARD, Vector::from_iter([(ORIGIN, has)]))],
            wanted: holders().into_iter().collect(),
            last: true,
        };
        self.lane += 1;
        let lane = self.lane;
        self.input(Input::Peer {
            from: addr("b", "core"),
            message: Message::ToProvider { lane, body },
        });
    }

    fn head(&self) -> Seq {
        self.state.shards[&SHARD].row.applied().of(ORIGIN)
    }

    fn input(&mut self, input: Input) {
        self.partition.handle(input, NOW);
        while let Some(output) = self.partition.poll_output() {
            self.outputs += 1;
            match output {
                Output::Commit { token, ops, now_ms } => {
                    let mut decisions = Vec::new();
                    let ops = ops.iter();
                    let outcomes = ops.map(|op| decide(&mut self.state, op, now_ms, &mut decisions));
                    let outcomes = outcomes.collect();
                    let logged = decisions.into_iter().filter_map(|decision| match decision {
                        Decision::Logged(logged) => Some(logged),
                        _ => None,
                    });
                    let result = Ok(Committed {
                        outcomes,
                        logged: logged.collect(),
                    });
                    self.partition.handle(Input::Committed { token, result }, NOW);
                }
                Output::Read {
                    token,
                    read: Read::Shard(shard),
                } => {
                    let row = Box::new(self.state.shards[&shard].row.clone());
                    let result = Ok(ReadReply::Shard(row));
                    self.partition.handle(Input::Answered { token, result }, NOW);
                }
                Output::Stop(alarm) => self.stops.push(alarm),
                _ => {}
            }
        }
    }
}

#[test]
fn a_rollback_that_a_peer_proves_stops_the_node() {
    let mut node = Node::new();
    let before = node.state.clone();
    node.deposit(2);
    node.deposit(3);
    assert_eq!(node.head(), 4);
    // The disk went back under the open store, and the shard is taken over anew.
    node.state = before;
    let (me, other) = (addr("a", "core"), addr("b", "core"));
    node.input(Input::Members(members(std::slice::from_ref(&other))));
    node.input(Input::Members(members(&[me, other])));
    assert_eq!(node.stops.len(), 0);
    assert_eq!(node.partition.owner().active_count(), 1);
    node.report(4);
    let [
        LinkAlarm::AheadOfUs {
            link,
            shard: SHARD,
            origin: ORIGIN,
            ours: 2,
            theirs: 4,
        },
    ] = &node.stops[..]
    else {
        panic!("{:?}", node.stops);
    };
    assert_eq!(*link, addr("b", "core"));
    // It says and does nothing any more, whatever happens.
    let said = node.outputs;
    node.deposit(4);
    node.report(9);
    node.partition.handle_timeout(Now {
        mono: Mono(3_600_000_000),
        ..NOW
    });
    assert!(node.partition.poll_output().is_none());
    assert_eq!((node.outputs, node.head()), (said, 2));
}

#[test]
fn a_report_of_what_is_durable_stops_nothing() {
    let mut node = Node::new();
    node.deposit(2);
    node.report(3);
    node.report(1);
    // A later head than this partition was told of: it is read after the report.
    node.deposit(3);
    assert_eq!((node.head(), node.stops.len()), (4, 0));

    // Another one committed it, and the answer is still on its way: nothing but the store counts.
    let mut ahead = Node::new();
    let op = StoreOp::Confirm {
        shard: SHARD,
        epoch: ahead.state.shards[&SHARD].row.epoch,
    };
    decide(&mut ahead.state, &op, NOW.wall_ms, &mut Vec::new());
    assert_eq!(ahead.head(), 3);
    ahead.report(3);
    assert!(ahead.stops.is_empty(), "{:?}", ahead.stops);
    ahead.report(4);
    assert_eq!(ahead.stops.len(), 1);
}
