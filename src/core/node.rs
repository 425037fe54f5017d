//! A partition of a node: the edge, the owner and the links of one task, composed.
//!
//! The driver reads `now` once for a batch of inputs, hands them over with [`Partition::handle`], calls
//! [`Partition::handle_timeout`] when [`Partition::poll_timeout`] is due, then takes every output. Messages between
//! machines of one partition never leave it. One commit is in flight at a time; the next takes all that queued up since.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::commit::{Outcome, Refusal, StoreOp};
use super::defect::{self, Defect};
use super::edge::{Edge, EdgeConfig, EdgeOutput, Pace};
use super::holders::{HoldersChange, Partners};
use super::ids::{
    Addr, ConnId, Generation, NodeKey, Origin, RegionId, Seq, SessionId, ShardId, Sharding, UserId,
};
use super::limits::CoreLimits;
use super::link::{ApplyToken, LinkAlarm, LinkConfig, LinkOutput, Links, ReadToken};
use super::members::Members;
use super::msg::Message;
use super::owner::{DurabilityPolicy, HoldersStatus, Owner, OwnerConfig, OwnerOutput, Question, Tag};
use super::state::ShardRow;
use super::storage::{Committed, Read, ReadReply, StoreError};
use super::time::{Mono, Now};
use super::wire::{ClientFrame, Code, Hello, RegionEndpoints, ServerFrame};

/// What a partition is told once.
#[derive(Debug, Clone)]
pub struct PartitionConfig {
    /// This partition.
    pub me: Addr,
    /// Incarnation of this node.
    pub generation: Generation,
    /// How users are spread.
    pub sharding: Sharding,
    /// The regions that keep every shard.
    pub holders: BTreeSet<RegionId>,
    /// Limits.
    pub limits: CoreLimits,
    /// When a message is accepted.
    pub durability: DurabilityPolicy,
    /// Whether it owns shards.
    pub core: bool,
    /// Whether it holds sessions.
    pub edge: bool,
}

/// What happens to a partition.
#[derive(Debug, Clone)]
pub enum Input {
    /// A client whose token was verified said hello.
    Hello {
        /// Its connection.
        conn: ConnId,
        /// Who it is, as the token says.
        user: UserId,
        /// What it said.
        hello: Box<Hello>,
    },
    /// A frame of a client after its hello.
    Client {
        /// Its connection.
        conn: ConnId,
        /// The frame.
        frame: ClientFrame,
    },
    /// A client's connection is gone.
    Closed {
        /// Which.
        conn: ConnId,
    },
    /// The nodes of every region, whenever they changed; this node too.
    Members(Members),
    /// The connection to a node came up, or broke: then everything in flight both ways may be lost.
    Reachable {
        /// The node.
        node: NodeKey,
        /// Whether it is there.
        up: bool,
    },
    /// Where clients may go, the own region first.
    Endpoints(Vec<RegionEndpoints>),
    /// A message of another partition.
    Peer {
        /// Which.
        from: Addr,
        /// What.
        message: Message,
    },
    /// The answer to [`Output::Commit`].
    Committed {
        /// As given.
        token: u64,
        /// What became of it.
        result: Result<Committed, StoreError>,
    },
    /// The answer to [`Output::Read`].
    Answered {
        /// As given.
        token: u64,
        /// The reply.
        result: Result<ReadReply, StoreError>,
    },
    /// A question of someone who looks in from outside; answered with [`Output::Told`]. Whoever asks limits how many wait.
    Ask {
        /// To be given with the answer.
        id: u64,
        /// The question.
        read: Read,
    },
    /// An operator's word: the holders are to be these (R13). See [`Partition::holders`].
    Holders(HoldersChange),
    /// An operator's word: what recovers now, or is found to when it is taken over, is open with what it has (R4).
    EndRecovery,
    /// Let the sessions go, at a limited rate, and take no more.
    Drain,
    /// This region is evacuated, at this pace; or takes sessions again.
    Evacuation(Option<Pace>),
    /// Another region is evacuated; or takes sessions again, and those who prefer it are told so at this pace.
    Elsewhere {
        /// Which.
        region: RegionId,
        /// None while it is evacuated.
        restored: Option<Pace>,
    },
    /// Take no more deposits; those that are being committed are answered: see [`Partition::settled`].
    Finish,
}

/// What a partition wants done.
#[derive(Debug, Clone)]
pub enum Output {
    /// Frames for a client, in order.
    Client {
        /// Its connection.
        conn: ConnId,
        /// The frames.
        frames: Vec<ServerFrame>,
    },
    /// Close a client's connection once what was sent before has left.
    Close {
        /// Its connection.
        conn: ConnId,
        /// Why.
        code: Code,
        /// For people.
        detail: String,
    },
    /// A message for another partition. Those to one partition keep their order or are lost together with all that follow
    /// until [`Input::Reachable`] says so.
    Peer {
        /// Which.
        to: Addr,
        /// What.
        message: Message,
    },
    /// Operations for the store, in order; at most one is in flight.
    Commit {
        /// To be given with the answer.
        token: u64,
        /// The operations.
        ops: Vec<StoreOp>,
        /// This node's wall clock, unix milliseconds.
        now_ms: u64,
    },
    /// A question to the store; it sees every commit answered before. At most [`CoreLimits::store_reads`] are not answered.
    Read {
        /// To be given with the answer.
        token: u64,
        /// The question.
        read: Read,
    },
    /// The answer to [`Input::Ask`].
    Told {
        /// As given.
        id: u64,
        /// The reply.
        result: Result<ReadReply, StoreError>,
    },
    /// Something that an operator must see.
    Alarm(LinkAlarm),
    /// A shard begins to recover, or is open (R4).
    Recovery {
        /// The shard.
        shard: ShardId,
        /// Whether it recovers.
        recovering: bool,
        /// For people: why.
        detail: String,
    },
    /// The regions that this one has links with are these from now on: those that keep some shard, and those that leave
    /// (R13).
    Regions(BTreeSet<RegionId>),
    /// The node must stop at once, with an error, and be started again: its store was rolled back while it was open (R3).
    /// Nothing is said after it.
    Stop(LinkAlarm),
}

/// What an operation in a commit was for.
enum CommitTag {
    Owner(Tag),
    Link {
        token: ApplyToken,
        shard: ShardId,
        origin: Origin,
    },
    Merge(ApplyToken, ShardId),
}

/// What a question was for.
enum ReadTag {
    Owner(Question),
    Link(ReadToken),
    Snapshot(ReadToken),
    Asked(u64),
    /// Whether a report of another region proves a rollback.
    Head {
        link: Addr,
        shard: ShardId,
        origin: Origin,
        theirs: Seq,
    },
}

/// A partition of a node.
pub struct Partition {
    config: PartitionConfig,
    edge: Edge,
    owner: Owner,
    links: Links,
    members: Members,
    /// The regions that this one has links with, itself included.
    regions: BTreeSet<RegionId>,
    rng: ChaCha8Rng,
    now: Now,
    /// Operations that wait for the commit in flight; bounded by what owners and links may have pending.
    queued: Vec<(StoreOp, CommitTag)>,
    in_flight: Option<(u64, Vec<CommitTag>)>,
    reads: BTreeMap<u64, ReadTag>,
    /// Reads that wait for their turn at the store: at most one of each attached session, and a few of each link.
    waiting_reads: VecDeque<(u64, Read)>,
    next_token: u64,
    /// It said [`Output::Stop`].
    stopped: bool,
    out: VecDeque<Output>,
}

impl Partition {
    /// A partition that knows nobody yet. `seed` makes its random numbers.
    pub fn new(config: PartitionConfig, seed: [u8; 32], now: Now) -> Self {
        let edge = Edge::new(EdgeConfig {
            me: config.me.clone(),
            generation: config.generation,
            sharding: config.sharding,
            limits: config.limits.clone(),
            node: config.me.node.node.to_string(),
        });
        let owner = Owner::new(
            OwnerConfig {
                me: config.me.clone(),
                sharding: config.sharding,
                holders: config.holders.clone(),
                limits: config.limits.clone(),
                durability: config.durability,
            },
            now,
        );
        let links = Links::new(LinkConfig {
            me: config.me.clone(),
            region: config.me.node.region.clone(),
            holders: config.holders.clone(),
            limits: config.limits.clone(),
            generation: config.generation,
            report_copies: config.durability != DurabilityPolicy::Region,
        });
        Self {
            edge,
            owner,
            links,
            members: Members::default(),
            regions: config.holders.clone(),
            rng: ChaCha8Rng::from_seed(seed),
            now,
            queued: Vec::new(),
            in_flight: None,
            reads: BTreeMap::new(),
            waiting_reads: VecDeque::new(),
            next_token: 1,
            stopped: false,
            out: VecDeque::new(),
            config,
        }
    }

    /// Sessions of this partition.
    pub fn edge(&self) -> &Edge {
        &self.edge
    }

    /// Shards of this partition.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Replication of this partition.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// How far a change of the holders is, over the shards of this partition.
    pub fn holders(&self) -> HoldersStatus {
        self.owner.holders_status()
    }

    /// Whether it takes no more deposits and has answered all that it took. The answers are among the outputs by then.
    pub fn settled(&self) -> bool {
        self.owner.is_settled()
    }

    /// Operations that wait for a commit, and those in one.
    pub fn store_queue(&self) -> (usize, usize) {
        (
            self.queued.len(),
            self.in_flight.as_ref().map_or(0, |(_, tags)| tags.len()),
        )
    }

    /// Takes an input. Outputs are made when they are polled, so that a batch of inputs is answered together.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.now = now;
        if self.stopped {
            return;
        }
        match input {
            Input::Hello { conn, user, hello } => {
                // 0 stands for "none" where sessions are shown.
                let session = SessionId(self.rng.next_u64().max(1));
                self.edge.handle_hello(conn, user, *hello, session, now);
            }
            Input::Client { conn, frame } => self.edge.handle_frame(conn, frame, now),
            Input::Closed { conn } => self.edge.handle_closed(conn, now),
            Input::Members(members) => self.members_changed(members, now),
            Input::Reachable { node, up } => {
                self.edge.handle_reachable(&node, up, now);
                self.owner.handle_reachable(&node, up, now);
                self.links.handle_reachable(&node, up, now);
            }
            Input::Endpoints(regions) => self.edge.handle_endpoints(regions),
            Input::Peer { from, message } => self.deliver(&from, message, now),
            Input::Committed { token, result } => self.committed(token, result, now),
            Input::Answered { token, result } => self.answered(token, result, now),
            Input::Ask { id, read } => self.read(read, ReadTag::Asked(id)),
            Input::Holders(change) => self.owner.handle_holders(change, now),
            Input::EndRecovery => self.owner.handle_end_recovery(),
            Input::Drain => self.edge.handle_drain(now),
            Input::Evacuation(pace) => self.edge.handle_evacuation(pace, now),
            Input::Elsewhere { region, restored } => match restored {
                Some(pace) => self.edge.handle_restored(region, pace, now),
                None => self.edge.handle_evacuated(&region),
            },
            Input::Finish => self.owner.handle_finish(),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        if self.stopped {
            return;
        }
        self.edge.handle_timeout(now);
        self.owner.handle_clocks(self.links.clocks(now), now);
        self.owner.handle_timeout(now);
        self.links.handle_timeout(now);
    }

    /// When [`Partition::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Mono> {
        let due = [
            self.edge.poll_timeout(),
            self.owner.poll_timeout(),
            self.links.poll_timeout(),
        ];
        due.into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.out.is_empty() && !self.stopped {
            self.pump();
        }
        self.out.pop_front()
    }

    fn members_changed(&mut self, members: Members, now: Now) {
        let region = &self.config.me.node.region;
        let owners = members.owners(region, &self.config.sharding);
        if self.config.core {
            let mine = owners
                .iter()
                .filter(|(_, owner)| owner.addr == self.config.me)
                .map(|(s, _)| *s);
            self.owner.handle_placement(mine.collect(), now);
            for other in self.regions.iter().filter(|holder| *holder != region) {
                let theirs = members.owners(other, &self.config.sharding);
                self.links.handle_placement(other, &theirs, now);
            }
        }
        self.owner.handle_members(&members, now);
        let mut of_regions = BTreeMap::from([(region.clone(), owners)]);
        // A node that is a core, too, serves its sessions itself.
        if !self.config.core && self.config.limits.fallback_ms > 0 {
            for other in members.regions.keys().filter(|other| *other != region) {
                of_regions.insert(other.clone(), members.owners(other, &self.config.sharding));
            }
        }
        self.edge.handle_owners(of_regions, now);
        self.members = members;
    }

    fn regions_changed(&mut self, told: Partners, now: Now) {
        self.links.handle_regions(&told, now);
        let regions = told.all;
        for new in regions.difference(&self.regions) {
            let owners = self.members.owners(new, &self.config.sharding);
            self.links.handle_placement(new, &owners, now);
        }
        self.regions = regions.clone();
        self.out.push_back(Output::Regions(regions));
    }

    fn deliver(&mut self, from: &Addr, message: Message, now: Now) {
        match message {
            Message::ToOwner { lane, body } => self.owner.handle_edge(from, lane, body, now),
            Message::ToEdge { lane, body } => self.edge.handle_owner(from, lane, body, now),
            Message::ToProvider { lane, body } => self.links.handle_to_provider(from, lane, body, now),
            Message::ToSubscriber { lane, body } => self.links.handle_to_subscriber(from, lane, body, now),
        }
    }

    /// Moves outputs between the machines until nothing moves, then hands the next commit over.
    fn pump(&mut self) {
        let now = self.now;
        loop {
            let mut moved = false;
            while let Some(output) = self.edge.poll_output() {
                moved = true;
                match output {
                    EdgeOutput::Client { conn, frames } => {
                        self.out.push_back(Output::Client { conn, frames })
                    }
                    EdgeOutput::Close { conn, code, detail } => {
                        self.out.push_back(Output::Close { conn, code, detail });
                    }
                    EdgeOutput::ToOwner { to, lane, body } => self.send(to, Message::ToOwner { lane, body }),
                }
            }
            while let Some(output) = self.owner.poll_output() {
                moved = true;
                self.owner_output(output, now);
            }
            while let Some(output) = self.links.poll_output(&self.owner) {
                moved = true;
                self.link_output(output, now);
            }
            if !moved {
                break;
            }
        }
        if self.in_flight.is_none() && !self.queued.is_empty() {
            let token = self.token();
            let (ops, tags) = std::mem::take(&mut self.queued).into_iter().unzip();
            self.in_flight = Some((token, tags));
            self.out.push_back(Output::Commit {
                token,
                ops,
                now_ms: now.wall_ms,
            });
        }
    }

    fn owner_output(&mut self, output: OwnerOutput, now: Now) {
        match output {
            OwnerOutput::ToEdge { to, lane, body } => self.send(to, Message::ToEdge { lane, body }),
            OwnerOutput::Commit(op, tag) => self.queued.push((op, CommitTag::Owner(tag))),
            OwnerOutput::Read(question) => {
                let read = question.read();
                self.read(read, ReadTag::Owner(question));
            }
            OwnerOutput::Owned(shard, None) => self.links.handle_owned(shard, None, now),
            OwnerOutput::Owned(shard, Some(row)) => {
                let logs = row.logs.iter();
                let logs = logs.map(|(origin, log)| (*origin, log.region.clone(), log.seq));
                self.links.handle_owned(shard, Some(logs.collect()), now);
                self.links.handle_retired(shard, &row.old.retired, now);
                if row.recovery.recovers() {
                    match row.holding.whole {
                        true => self.links.handle_behind(shard, now),
                        false => self.links.handle_recovering(shard, true, now),
                    }
                    let detail = "it begins with less than the other regions may have".to_owned();
                    self.tell_recovery(shard, true, detail);
                }
            }
            OwnerOutput::Recovering(shard, recovering) => {
                self.links.handle_recovering(shard, recovering, now);
                if !recovering {
                    self.tell_recovery(shard, false, "it has what the other regions have".to_owned());
                }
            }
            OwnerOutput::Behind(shard) => self.links.handle_behind(shard, now),
            OwnerOutput::Regions(told) => self.regions_changed(told, now),
            OwnerOutput::Retired(shard, retired) => self.links.handle_retired(shard, &retired, now),
            OwnerOutput::PresenceChanged {
                shard,
                user,
                device,
                from,
            } => {
                self.links
                    .handle_presence_changed(shard, &user, &device, from.as_ref(), now);
            }
        }
    }

    fn link_output(&mut self, output: LinkOutput, now: Now) {
        match output {
            LinkOutput::ToPeer { to, message } => self.send(to, message),
            LinkOutput::Apply {
                token,
                shard,
                origin,
                region,
                first,
                before,
                ops,
            } => match self.owner.epoch(shard) {
                Some(epoch) => {
                    let attached = self.owner.attached_among(shard, &ops);
                    let op = StoreOp::ApplyRemote {
                        shard,
                        epoch,
                        origin,
                        region,
                        first,
                        before,
                        ops,
                        attached,
                    };
                    self.queued.push((op, CommitTag::Link { token, shard, origin }));
                }
                None => {
                    let why = StoreError::Retryable(format!("shard {shard} is not active here"));
                    self.links.handle_applied(token, shard, origin, Err(why), now);
                }
            },
            LinkOutput::ReadLog {
                token,
                shard,
                origin,
                after,
                max_items,
                max_bytes,
            } => {
                let read = Read::Log {
                    shard,
                    origin,
                    after,
                    max_items,
                    max_bytes,
                };
                self.read(read, ReadTag::Link(token));
            }
            LinkOutput::Merge {
                token,
                shard,
                cut,
                page,
            } => match self.owner.epoch(shard) {
                Some(epoch) => {
                    let op = StoreOp::Merge {
                        shard,
                        epoch,
                        cut,
                        page,
                    };
                    self.queued.push((op, CommitTag::Merge(token, shard)));
                }
                None => {
                    let why = StoreError::Retryable(format!("shard {shard} is not active here"));
                    self.links.handle_merged(token, shard, Err(why), now);
                }
            },
            LinkOutput::ReadSnapshot {
                token,
                shard,
                cut,
                after,
                max_items,
                max_bytes,
            } => {
                let read = Read::Snapshot {
                    shard,
                    cut,
                    after,
                    max_items,
                    max_bytes,
                };
                self.read(read, ReadTag::Snapshot(token));
            }
            LinkOutput::Lost { shard, why, whole } => {
                let news = !self.owner.recovers(shard);
                if !whole {
                    self.owner.handle_lost(shard, now);
                } else if news {
                    self.owner.handle_behind(shard, now);
                }
                if news {
                    self.tell_recovery(shard, true, why);
                }
            }
            LinkOutput::Copied { shard, origin, seq } => self.owner.handle_copied(shard, origin, seq),
            LinkOutput::CaughtUp { shard } => self.owner.handle_caught_up(shard),
            LinkOutput::VerifyHead {
                link,
                shard,
                origin,
                theirs,
            } => {
                let tag = ReadTag::Head {
                    link,
                    shard,
                    origin,
                    theirs,
                };
                self.read(Read::Shard(shard), tag);
            }
            LinkOutput::PresenceMerge { from, records } => {
                for (shard, entry) in records {
                    self.owner.merge_presence(shard, entry, &from, now);
                }
            }
            LinkOutput::RegionReach {
                region,
                reachable,
                since_ms,
            } => {
                self.owner.handle_reach(&region, (!reachable).then_some(since_ms));
            }
            LinkOutput::Removed(change) => self.owner.handle_holders(change, now),
            LinkOutput::Alarm(alarm) => self.out.push_back(Output::Alarm(alarm)),
        }
    }

    fn send(&mut self, to: Addr, message: Message) {
        if to == self.config.me {
            let now = self.now;
            self.deliver(&to, message, now);
        } else {
            self.out.push_back(Output::Peer { to, message });
        }
    }

    fn tell_recovery(&mut self, shard: ShardId, recovering: bool, detail: String) {
        self.out.push_back(Output::Recovery {
            shard,
            recovering,
            detail,
        });
    }

    /// The head was read after the report: below it, the store lost what had left it.
    fn head_verified(&mut self, link: Addr, shard: ShardId, origin: Origin, theirs: Seq, row: &ShardRow) {
        let ours = row.logs.get(&origin).map_or(0, |log| log.seq);
        if ours < theirs {
            self.stopped = true;
            self.out.clear();
            self.out.push_back(Output::Stop(LinkAlarm::AheadOfUs {
                link,
                shard,
                origin,
                ours,
                theirs,
            }));
        }
    }

    fn read(&mut self, read: Read, tag: ReadTag) {
        let token = self.token();
        self.reads.insert(token, tag);
        self.waiting_reads.push_back((token, read));
        self.ask_next();
    }

    /// Asks what waits, as far as the store may be asked at once.
    fn ask_next(&mut self) {
        let at_once = match defect::on(Defect::ReadsAtOnce) {
            true => usize::MAX,
            false => self.config.limits.store_reads,
        };
        while self.reads.len() - self.waiting_reads.len() < at_once {
            let Some((token, read)) = self.waiting_reads.pop_front() else {
                return;
            };
            self.out.push_back(Output::Read { token, read });
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn committed(&mut self, token: u64, result: Result<Committed, StoreError>, now: Now) {
        if defect::on(Defect::ShipBeforeCommit)
            && let Ok(Committed { outcomes, logged }) = &result
            && outcomes.is_empty()
        {
            // The simulator tells what a commit will hold before it ends.
            return self.links.handle_committed(logged, now);
        }
        self.owner.handle_clocks(self.links.clocks(now), now);
        if result.is_err() {
            // What came with this input in one batch waits behind the failed commit, too.
            self.pump();
        }
        let Some((expected, tags)) = self.in_flight.take() else {
            return;
        };
        if expected != token {
            self.in_flight = Some((expected, tags));
            return;
        }
        match result {
            Ok(Committed { outcomes, logged }) => {
                // Senders are answered before recipients are served only within this batch: both leave together.
                self.owner.handle_committed(&logged);
                self.links.handle_committed(&logged, now);
                for (tag, outcome) in tags.into_iter().zip(outcomes) {
                    match tag {
                        CommitTag::Owner(tag) => self.owner.handle_outcome(tag, Ok(outcome), now),
                        CommitTag::Link { token, shard, origin } => {
                            let fenced = is_fenced(&outcome);
                            self.links.handle_applied(token, shard, origin, Ok(outcome), now);
                            self.lose_fenced(fenced, shard, now);
                        }
                        CommitTag::Merge(token, shard) => {
                            let fenced = is_fenced(&outcome);
                            self.links.handle_merged(token, shard, Ok(outcome), now);
                            self.owner.handle_merged(shard);
                            self.lose_fenced(fenced, shard, now);
                        }
                    }
                }
            }
            Err(error) => {
                // What waits behind must not overtake what failed (R21), so it fails with it.
                let behind = std::mem::take(&mut self.queued).into_iter().map(|(_, tag)| tag);
                for tag in tags.into_iter().chain(behind) {
                    match tag {
                        CommitTag::Owner(tag) => {
                            self.owner.handle_outcome(tag, Err(error.clone()), now);
                        }
                        CommitTag::Link { token, shard, origin } => {
                            self.links
                                .handle_applied(token, shard, origin, Err(error.clone()), now);
                        }
                        CommitTag::Merge(token, shard) => {
                            self.links.handle_merged(token, shard, Err(error.clone()), now);
                        }
                    }
                }
            }
        }
    }

    /// Another node took over a shard that a link of ours still applied to.
    fn lose_fenced(&mut self, fenced: bool, shard: ShardId, now: Now) {
        if fenced {
            self.owner.handle_fenced(shard, now);
        }
    }

    fn answered(&mut self, token: u64, result: Result<ReadReply, StoreError>, now: Now) {
        let tag = self.reads.remove(&token);
        self.ask_next();
        match tag {
            Some(ReadTag::Owner(question)) => self.owner.handle_answer(question, result, now),
            Some(ReadTag::Link(token)) => {
                let page = match result {
                    Ok(ReadReply::Log(page)) => Ok(page),
                    Ok(_) => Err(StoreError::Fatal(
                        "the store answered another question".to_owned(),
                    )),
                    Err(error) => Err(error),
                };
                self.links.handle_log(token, page, now);
            }
            Some(ReadTag::Snapshot(token)) => {
                let page = match result {
                    Ok(ReadReply::Snapshot(cut, page)) => Ok((cut, page)),
                    Ok(_) => Err(StoreError::Fatal(
                        "the store answered another question".to_owned(),
                    )),
                    Err(error) => Err(error),
                };
                self.links.handle_snapshot(token, page, now);
            }
            Some(ReadTag::Asked(id)) => self.out.push_back(Output::Told { id, result }),
            Some(ReadTag::Head {
                link,
                shard,
                origin,
                theirs,
            }) => {
                // Where it cannot be read the store has stopped by itself, or the link says it again.
                if let Ok(ReadReply::Shard(row)) = result {
                    self.head_verified(link, shard, origin, theirs, &row);
                }
            }
            None => {}
        }
    }
}

fn is_fenced(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(Refusal::Fenced { .. }))
}
