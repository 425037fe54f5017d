//! Shards that recover (R4), over rows that outlive the owner.

use std::time::Duration;

use super::*;
use crate::core::commit::decide;
use crate::core::holders::HolderSet;
use crate::core::state::{State, StoreIdentity, StoreLimits};
use crate::core::storage::Read;

/// An owner, an edge, and the rows of a store.
struct Region {
    owner: Owner,
    state: State,
    now: Now,
    session: u64,
    /// What the edge was told.
    told: Vec<ToEdge>,
    /// What links were told of the shard.
    recovering: Vec<bool>,
    /// Whom links were told to know.
    partners: Vec<Partners>,
    /// The store does nothing that it is asked.
    broken: bool,
    /// It cannot read heads.
    blind: bool,
}

impl Region {
    fn new(joining: bool) -> Self {
        let region = RegionId::new("a").unwrap();
        let state = State::new(StoreIdentity {
            cluster: 1,
            region: region.clone(),
            origin: Origin(1),
            holders: BTreeSet::from([region]),
            sharding: Sharding { count: 1, seed: 0 },
            limits: StoreLimits::default(),
            joining,
        });
        let mut region = Self {
            owner: Owner::new(config(), NOW),
            state,
            now: NOW,
            session: 0,
            told: Vec::new(),
            recovering: Vec::new(),
            partners: Vec::new(),
            broken: false,
            blind: false,
        };
        region.begin();
        region
    }

    fn begin(&mut self) {
        self.owner.handle_placement(BTreeSet::from([SHARD]), self.now);
        self.run();
        let generation = Generation(self.state.identity.origin.0);
        let edge = Member {
            key: addr("edge").node,
            generation,
            partitions: 1,
            core: false,
            edge: true,
            ready: true,
            client: None,
        };
        self.owner.handle_members(&Members::new([edge]), self.now);
        self.owner
            .handle_edge(&addr("edge"), 1, ToOwner::Open { generation }, self.now);
    }

    /// The node ends and starts again: what is left is what the store holds.
    fn restart(&mut self) {
        self.state.identity.origin.0 += 1;
        self.owner = Owner::new(config(), self.now);
        self.begin();
    }

    fn run(&mut self) {
        while let Some(output) = self.owner.poll_output() {
            match output {
                OwnerOutput::Commit(_, tag) if self.broken => {
                    let busy = StoreError::Retryable("busy".to_owned());
                    self.owner.handle_outcome(tag, Err(busy), self.now);
                }
                OwnerOutput::Commit(op, tag) => {
                    let mut decisions = Vec::new();
                    let outcome = decide(&mut self.state, &op, self.now.wall_ms, &mut decisions);
                    let logged: Vec<Logged> = decisions
                        .into_iter()
                        .filter_map(|decision| match decision {
                            crate::core::state::Decision::Logged(logged) => Some(logged),
                            _ => None,
                        })
                        .collect();
                    self.owner.handle_committed(&logged);
                    self.owner.handle_outcome(tag, Ok(outcome), self.now);
                }
                OwnerOutput::Read(question) if self.blind => {
                    let busy = StoreError::Retryable("busy".to_owned());
                    self.owner.handle_answer(question, Err(busy), self.now);
                }
                OwnerOutput::Read(question) => {
                    let shard = &self.state.shards[&SHARD];
                    let reply = match question.read() {
                        Read::User(_, user) => {
                            let row = shard.users.get(&user).map(|user| user.row.clone());
                            ReadReply::User(Box::new(row.unwrap_or_default()))
                        }
                        Read::Inbox { .. } => ReadReply::Inbox(InboxPage {
                            end: true,
                            ..InboxPage::default()
                        }),
                        _ => ReadReply::Shard(Box::new(shard.row.clone())),
                    };
                    self.owner.handle_answer(question, Ok(reply), self.now);
                }
                OwnerOutput::ToEdge { body, .. } => self.told.push(body),
                OwnerOutput::Recovering(_, on) => self.recovering.push(on),
                OwnerOutput::Regions(partners) => self.partners.push(partners),
                _ => {}
            }
        }
    }

    /// Time enough for everything periodic.
    fn wait(&mut self) {
        for _ in 0..50 {
            self.now.mono = self.now.mono + Duration::from_millis(100);
            self.now.wall_ms += 100;
            self.owner.handle_timeout(self.now);
            self.run();
        }
    }

    /// Sends a message in a session of its own and says what became of it.
    fn deposit(&mut self) -> Result<Coord, Code> {
        self.send();
        self.run();
        self.verdict()
    }

    fn send(&mut self) {
        self.session += 1;
        let deposit = Deposit {
            shard: SHARD,
            attempt: 1,
            envelope: Envelope {
                session: SessionId(100 + self.session),
                ..envelope(self.session)
            },
            body: Bytes::from_static(b"x"),
        };
        self.owner
            .handle_edge(&addr("edge"), 1, ToOwner::Deposit(vec![deposit]), self.now);
    }

    fn verdict(&mut self) -> Result<Coord, Code> {
        let answers = std::mem::take(&mut self.told)
            .into_iter()
            .filter_map(|told| match told {
                ToEdge::Answers(answers) => Some(answers),
                _ => None,
            });
        let mut verdicts: Vec<Verdict> = answers.flatten().map(|answer| answer.verdict).collect();
        assert_eq!(verdicts.len(), 1, "{verdicts:?}");
        match verdicts.remove(0) {
            Verdict::Accepted { at, .. } => Ok(at),
            Verdict::Refused { code, .. } => Err(code),
        }
    }

    /// Bob attaches; `store` is what his edge was told before, where it was.
    fn attach(&mut self, store: Option<Origin>) -> Vec<ToEdge> {
        let attach = Attach {
            shard: SHARD,
            user: UserId::new("bob").unwrap(),
            device: DeviceId::new("phone").unwrap(),
            receives: true,
            session: SessionId(9),
            claim: Vector::new(),
            given: Vector::new(),
            acked: Vector::new(),
            connect_epoch: 0,
            hello_epoch: 0,
            memory: 0,
            welcomed: store.is_some(),
            since_ms: 1,
            status: Status::Online,
            text: String::new(),
            counter: 0,
            store: store.unwrap_or_default(),
            after: Vector::new(),
        };
        self.told.clear();
        self.owner
            .handle_edge(&addr("edge"), 1, ToOwner::Attach(vec![attach]), self.now);
        self.run();
        std::mem::take(&mut self.told)
    }

    fn row(&self) -> &ShardRow {
        &self.state.shards[&SHARD].row
    }
}

fn config() -> OwnerConfig {
    OwnerConfig {
        durability: DurabilityPolicy::Region,
        me: addr("core"),
        sharding: Sharding { count: 1, seed: 0 },
        holders: BTreeSet::from([RegionId::new("a").unwrap()]),
        limits: CoreLimits::default(),
    }
}

fn attached(told: &[ToEdge]) -> Option<Origin> {
    told.iter().find_map(|told| match told {
        ToEdge::Attached { store, .. } => Some(*store),
        _ => None,
    })
}

fn ended(told: &[ToEdge]) -> bool {
    told.iter().any(|told| {
        matches!(
            told,
            ToEdge::Ended {
                code: Code::Unavailable,
                ..
            }
        )
    })
}

#[test]
fn a_shard_that_recovers_takes_nothing_until_it_caught_up() {
    let mut region = Region::new(false);
    region.deposit().unwrap();
    assert_eq!(attached(&region.attach(None)), Some(Origin(0)));
    region.wait();
    let before = region.row().applied();

    region.owner.handle_lost(SHARD, region.now);
    region.told.clear();
    region.run();
    assert_eq!(region.recovering, [true]);
    assert!(ended(&region.told), "{:?}", region.told);
    assert!(!region.owner.all_active() && region.owner.recovers(SHARD));
    assert_eq!(region.deposit(), Err(Code::Unavailable));
    assert!(Code::Unavailable.retryable());
    let told = region.attach(None);
    assert_eq!(attached(&told), None, "{told:?}");
    // Nor does it confirm, register, or write cursors.
    region.wait();
    assert_eq!(region.row().applied(), before);

    region.owner.handle_caught_up(SHARD);
    region.run();
    assert_eq!(region.recovering, [true, false]);
    assert!(region.owner.all_active());
    region.deposit().unwrap();
    assert_eq!(attached(&region.attach(None)), Some(Origin(1)));
}

#[test]
fn what_was_on_its_way_to_the_store_is_refused_retryably() {
    let mut region = Region::new(false);
    region.send();
    let Some(OwnerOutput::Commit(op, tag)) = region.owner.poll_output() else {
        panic!("not handed to the store");
    };
    region.owner.handle_lost(SHARD, region.now);
    region.run();
    let outcome = decide(&mut region.state, &op, region.now.wall_ms, &mut Vec::new());
    assert_eq!(outcome, Outcome::Refused(Refusal::Recovering));
    region.told.clear();
    region.owner.handle_outcome(tag, Ok(outcome), region.now);
    region.run();
    assert_eq!(region.verdict(), Err(Code::Unavailable));
    // The same message again, under a higher attempt, when the shard is open.
    region.owner.handle_caught_up(SHARD);
    region.run();
    let deposit = Deposit {
        shard: SHARD,
        attempt: 2,
        envelope: Envelope {
            session: SessionId(100 + region.session),
            ..envelope(region.session)
        },
        body: Bytes::from_static(b"x"),
    };
    let again = ToOwner::Deposit(vec![deposit]);
    region.owner.handle_edge(&addr("edge"), 1, again, region.now);
    region.run();
    region.verdict().unwrap();
}

#[test]
fn a_restart_does_not_end_a_recovery() {
    let mut region = Region::new(false);
    region.deposit().unwrap();
    region.owner.handle_lost(SHARD, region.now);
    region.run();
    region.restart();
    assert!(region.owner.recovers(SHARD) && !region.owner.all_active());
    assert_eq!(region.deposit(), Err(Code::Unavailable));
    assert_eq!(attached(&region.attach(None)), None);
    region.wait();
    assert_eq!(region.deposit(), Err(Code::Unavailable));
    region.owner.handle_caught_up(SHARD);
    region.run();
    region.deposit().unwrap();
    // Once it has ended, it has.
    region.restart();
    assert!(region.owner.all_active());
    region.deposit().unwrap();
}

#[test]
fn a_store_that_joins_recovers_from_its_first_owner_on() {
    let mut region = Region::new(true);
    assert!(region.owner.recovers(SHARD));
    assert_eq!(region.deposit(), Err(Code::Unavailable));
    assert_eq!(attached(&region.attach(None)), None);
    region.owner.handle_caught_up(SHARD);
    region.run();
    region.deposit().unwrap();
}

#[test]
fn an_operator_opens_what_recovers_and_what_is_found_to() {
    let mut region = Region::new(true);
    region.owner.handle_end_recovery();
    region.run();
    assert_eq!(region.recovering, [false]);
    region.deposit().unwrap();

    // The word was given before the shard was taken over.
    let mut region = Region::new(true);
    region.state.identity.origin.0 += 1;
    region.owner = Owner::new(config(), region.now);
    region.owner.handle_end_recovery();
    region.begin();
    assert!(region.owner.all_active(), "found to recover, and opened");
    region.deposit().unwrap();
    // It is written: the next start needs no word.
    region.restart();
    region.deposit().unwrap();
}

#[test]
fn a_store_that_is_busy_neither_forgets_nor_ends_a_recovery() {
    let mut region = Region::new(false);
    region.deposit().unwrap();
    region.broken = true;
    region.owner.handle_lost(SHARD, region.now);
    region.run();
    assert_ne!(region.row().recovery, crate::core::state::Recovery::Recovering);
    assert_eq!(
        region.deposit(),
        Err(Code::Unavailable),
        "it stops before it is written"
    );
    region.broken = false;
    region.wait();
    assert_eq!(region.row().recovery, crate::core::state::Recovery::Recovering);

    // Written, but the head cannot be read: what is tried again must not open it.
    region.owner.handle_caught_up(SHARD);
    region.run();
    region.blind = true;
    region.owner.handle_lost(SHARD, region.now);
    region.run();
    region.wait();
    region.blind = false;
    region.wait();
    assert_eq!(region.row().recovery, crate::core::state::Recovery::Recovering);
    assert_eq!(region.deposit(), Err(Code::Unavailable));

    // And the other way round: caught up, but the store cannot write it yet.
    region.broken = true;
    region.owner.handle_caught_up(SHARD);
    region.run();
    assert_eq!(region.deposit(), Err(Code::Unavailable));
    region.broken = false;
    region.blind = true;
    region.wait();
    assert_eq!(
        region.deposit(),
        Err(Code::Unavailable),
        "open before it is known"
    );
    region.blind = false;
    region.wait();
    region.deposit().unwrap();
}

#[test]
fn a_session_does_not_outlive_the_store_of_its_region() {
    let mut region = Region::new(false);
    let before = attached(&region.attach(None)).unwrap();
    region.restart();
    // The node was away; the session is the same.
    let told = region.attach(Some(before));
    assert_eq!(attached(&told), Some(before));
    assert!(!ended(&told));
    region.owner.handle_lost(SHARD, region.now);
    region.run();
    region.owner.handle_caught_up(SHARD);
    region.run();
    let told = region.attach(Some(before));
    assert!(ended(&told) && attached(&told).is_none(), "{told:?}");
    // As a new session it stands.
    assert_eq!(attached(&region.attach(None)), Some(region.state.identity.origin));
}

/// What it lacks may be with a region that came since, and that region is refused as long as it is not known.
#[test]
fn who_recovers_takes_up_the_holders_that_a_snapshot_tells() {
    let mut region = Region::new(true);
    region.wait();
    region.partners.clear();
    let other = RegionId::new("b").unwrap();
    let set = HolderSet {
        version: 1,
        new: BTreeSet::from([RegionId::new("a").unwrap(), other.clone()]),
        old: BTreeSet::new(),
        at: BTreeSet::new(),
        settled: true,
        leaving: BTreeMap::new(),
        gone: BTreeSet::new(),
    };
    let shard = region.state.shards.get_mut(&SHARD).unwrap();
    shard.row.holding.set = Some(set);
    region.owner.handle_merged(SHARD);
    region.run();
    region.wait();
    let told = region.partners.last().expect("links are told");
    assert!(told.all.contains(&other));
    assert!(region.recovering.iter().all(|on| *on), "it recovers on");
}
