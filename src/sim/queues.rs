//! Every queue within its limit, counted from what goes into a partition and what comes out of it.
//!
//! A partition's own gauges are not asked. What it holds follows from the conversation: what it was given and has not
//! answered, what it sent and was not told the end of. Each bound is the one that `docs/architecture.md` names, exactly: where
//! one item more may be there (a window takes one message however large, a lane the deposit that reaches its limit), the last
//! one does not count, or a single one may be alone.
//!
//! What an edge and an owner in one partition tell each other never leaves it, so that lanes are seen between partitions only;
//! the windows and sends of sessions are seen at the client's connection, and all of them are.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::commit::StoreOp;
use crate::core::edge::{DEPOSIT_COST, Edge};
use crate::core::ids::{Addr, ConnId, Coord, Seq, SessionId, ShardId};
use crate::core::limits::CoreLimits;
use crate::core::link::PRESENCE_IN_FLIGHT;
use crate::core::msg::{Answer, Deposit, Message, ToEdge, ToOwner, ToProvider, ToSubscriber, Verdict};
use crate::core::node::{Input, Output};
use crate::core::owner::delivery_cost;
use crate::core::wire::{ClientFrame, ServerFrame};

use super::check::number_of;
use super::world::World;

/// A queue beyond its limit: what, how much, at most how much.
type Over = (String, u64, u64);

/// What a partition holds, as its inputs and outputs tell.
#[derive(Debug, Default)]
pub(super) struct Queues {
    commits: BTreeSet<u64>,
    reads: BTreeSet<u64>,
    sessions: BTreeMap<ConnId, Session>,
    /// Bytes of unanswered sends of all sessions.
    send_bytes: usize,
    /// Sessions that something was given to, or that sent something, in this turn.
    touched: BTreeSet<ConnId>,
    deposits: BTreeMap<(SessionId, u64), InFlight>,
    deposited: u64,
    edges: BTreeMap<Addr, EdgeLane>,
    subscribers: BTreeMap<Addr, Serve>,
    /// What providers may still send: on which lane, how much.
    providers: BTreeMap<Addr, (u64, i128)>,
    /// What was said beyond what may be.
    over: Option<Over>,
}

/// A client's session at its edge.
#[derive(Debug, Default)]
struct Session {
    /// As `Welcome` says.
    id: Option<SessionId>,
    /// Unanswered sends by session sequence, with their bytes.
    sends: BTreeMap<u64, usize>,
    given: BTreeMap<Coord, Given>,
}

/// A message, or a hole, that a session was given and did not acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    /// Where it stands; the end of a hole.
    pub(super) at: Coord,
    /// The message; a hole has none.
    pub(super) number: Option<u64>,
    bytes: usize,
}

/// A deposit that an edge sent and has no answer for.
#[derive(Debug)]
struct InFlight {
    lane: u64,
    shard: ShardId,
    attempt: u32,
    cost: usize,
    /// Numbers what was sent.
    order: u64,
}

/// A lane of an edge, at the owner.
#[derive(Debug, Default)]
struct EdgeLane {
    number: u64,
    /// Deposits without an answer, by session, sequence and attempt, with the bytes of their bodies.
    deposits: BTreeMap<(SessionId, u64, u32), usize>,
    /// Bytes of deliveries that the edge did not take.
    given: usize,
    /// Of those the last delivery.
    last: usize,
}

/// A subscriber of a link, at its provider.
#[derive(Debug, Default)]
struct Serve {
    lane: u64,
    /// What it may still be sent; below zero where one item was larger than the window.
    credit: i128,
    /// The most that it ever was: so much again means that nothing is in flight.
    window: i128,
    /// Messages of presence without an answer.
    presence: usize,
    /// What was sent last was a page of a snapshot.
    page: bool,
}

impl Queues {
    /// The partition takes an input.
    pub(super) fn took(&mut self, input: &Input) {
        match input {
            Input::Hello { conn, .. } => {
                self.sessions.entry(*conn).or_default();
            }
            Input::Client { conn, frame } => self.client_said(*conn, frame),
            Input::Closed { conn } => self.closed(*conn),
            Input::Reachable { node, up: false } => {
                self.edges.retain(|edge, _| edge.node != *node);
                self.subscribers.retain(|subscriber, _| subscriber.node != *node);
                self.providers.retain(|provider, _| provider.node != *node);
            }
            Input::Peer { from, message } => match message {
                Message::ToOwner { lane, body } => self.edge_said(from, *lane, body),
                Message::ToEdge { body, .. } => self.owner_said(body),
                Message::ToProvider { lane, body } => self.subscriber_said(from, *lane, body),
                Message::ToSubscriber { lane, body } => self.provider_said(from, *lane, body),
            },
            Input::Committed { token, .. } => {
                self.commits.remove(token);
            }
            Input::Answered { token, .. } => {
                self.reads.remove(token);
            }
            _ => {}
        }
    }

    /// The partition says something.
    pub(super) fn said(&mut self, output: &Output, limits: &CoreLimits) {
        match output {
            Output::Client { conn, frames } => {
                frames.iter().for_each(|frame| self.told_client(*conn, frame));
            }
            Output::Close { conn, .. } => self.closed(*conn),
            Output::Peer { to, message } => match message {
                Message::ToOwner {
                    lane,
                    body: ToOwner::Deposit(deposits),
                } => deposits.iter().for_each(|deposit| self.deposit(*lane, deposit)),
                Message::ToOwner { .. } => {}
                Message::ToEdge { lane, body } => self.told_edge(to, *lane, body),
                Message::ToProvider { lane, body } => self.told_provider(to, *lane, body),
                Message::ToSubscriber { lane, body } => self.told_subscriber(to, *lane, body, limits),
            },
            Output::Commit { token, ops, .. } => {
                self.commits.insert(*token);
                self.committing(ops, limits);
            }
            Output::Read { token, .. } => {
                self.reads.insert(*token);
            }
            _ => {}
        }
    }

    /// The first queue that is beyond its limit at the end of a turn.
    pub(super) fn over(&mut self, limits: &CoreLimits, edge: &Edge) -> Option<Over> {
        let counts = |what: &str, have: usize, most: usize| {
            (have > most).then(|| (what.to_owned(), have as u64, most as u64))
        };
        self.over
            .take()
            .or_else(|| counts("commits at the store", self.commits.len(), 1))
            .or_else(|| counts("reads at the store", self.reads.len(), limits.store_reads))
            .or_else(|| {
                counts(
                    "bytes of unanswered messages at the edge",
                    self.send_bytes,
                    limits.edge_bytes,
                )
            })
            .or_else(|| {
                let most = limits.sends_in_flight as usize;
                let mut touched = self.touched.iter().filter_map(|conn| self.sessions.get(conn));
                touched
                    .find_map(|session| counts("unanswered messages of a session", session.sends.len(), most))
            })
            .or_else(|| self.over_lanes(limits, edge))
            .or_else(|| self.over_owner(limits))
            .or_else(|| {
                let most = i128::from(limits.link_bytes);
                let mut credit = self.providers.values().map(|(_, credit)| *credit);
                let over = credit.find(|credit| *credit > most)?;
                Some((
                    "bytes that a provider may send".to_owned(),
                    over as u64,
                    limits.link_bytes,
                ))
            })
    }

    /// Sessions to which something was given in this turn, and what they did not acknowledge. What their device handled does
    /// not count: it may have acknowledged it in another session, and a device's cursor frees the windows of all of them.
    pub(super) fn windows(&mut self) -> Vec<(ConnId, Vec<Given>)> {
        let touched = std::mem::take(&mut self.touched);
        let sessions = touched
            .into_iter()
            .filter_map(|conn| Some((conn, self.sessions.get(&conn)?)));
        sessions
            .map(|(conn, session)| (conn, session.given.values().copied().collect()))
            .collect()
    }

    fn client_said(&mut self, conn: ConnId, frame: &ClientFrame) {
        // Of a connection that is told to close nothing is taken any more.
        let Some(session) = self.sessions.get_mut(&conn) else {
            return;
        };
        match frame {
            ClientFrame::Send(send) => {
                let cost = DEPOSIT_COST + send.body.len();
                self.send_bytes += cost;
                self.send_bytes -= session.sends.insert(send.session_seq, cost).unwrap_or(0);
                self.touched.insert(conn);
            }
            ClientFrame::Ack(coords) => {
                for at in coords {
                    let covered = (at.origin, Seq::MIN)..=(at.origin, at.seq);
                    session
                        .given
                        .retain(|given, _| !covered.contains(&(given.origin, given.seq)));
                }
            }
            _ => {}
        }
    }

    fn told_client(&mut self, conn: ConnId, frame: &ServerFrame) {
        let Some(session) = self.sessions.get_mut(&conn) else {
            return;
        };
        let answered = match frame {
            ServerFrame::Welcome(welcome) => {
                session.id = Some(welcome.session);
                return;
            }
            ServerFrame::Deliver { at, op } => {
                let given = Given {
                    at: *at,
                    number: number_of(op),
                    bytes: op.len(),
                };
                session.given.insert(*at, given);
                self.touched.insert(conn);
                return;
            }
            ServerFrame::Hole(hole) => {
                let at = Coord {
                    origin: hole.origin,
                    seq: hole.to,
                };
                let given = Given {
                    at,
                    number: None,
                    bytes: 0,
                };
                session.given.insert(at, given);
                self.touched.insert(conn);
                return;
            }
            ServerFrame::Accepted(accepted) => accepted.session_seq,
            ServerFrame::Rejected(rejected) => rejected.session_seq,
            _ => return,
        };
        self.send_bytes -= session.sends.remove(&answered).unwrap_or(0);
        if let Some(id) = session.id {
            self.deposits.remove(&(id, answered));
        }
    }

    fn closed(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.remove(&conn) else {
            return;
        };
        self.send_bytes -= session.sends.values().sum::<usize>();
        if let Some(id) = session.id {
            self.deposits.retain(|(session, _), _| *session != id);
        }
    }

    fn deposit(&mut self, lane: u64, deposit: &Deposit) {
        self.deposited += 1;
        let in_flight = InFlight {
            lane,
            shard: deposit.shard,
            attempt: deposit.attempt,
            cost: DEPOSIT_COST + deposit.body.len(),
            order: self.deposited,
        };
        let envelope = &deposit.envelope;
        self.deposits
            .insert((envelope.session, envelope.session_seq), in_flight);
    }

    /// An owner answers: a refusal for now voids all that its session has in flight to the shard, which goes again.
    fn owner_said(&mut self, body: &ToEdge) {
        let ToEdge::Answers(answers) = body else { return };
        for answer in answers {
            let Answer { session, shard, .. } = *answer;
            let key = (session, answer.session_seq);
            let current = self
                .deposits
                .get(&key)
                .is_some_and(|some| some.attempt == answer.attempt);
            match &answer.verdict {
                Verdict::Accepted { .. } => {
                    self.deposits.remove(&key);
                }
                Verdict::Refused { .. } if !current => {}
                Verdict::Refused { code, .. } if code.retryable() => {
                    let of_stream =
                        |key: &(SessionId, u64), some: &InFlight| key.0 == session && some.shard == shard;
                    self.deposits.retain(|key, some| !of_stream(key, some));
                }
                Verdict::Refused { .. } => {
                    self.deposits.remove(&key);
                }
            }
        }
    }

    /// Deposits on each lane. Which lane serves a shard the edge is asked: when placement moves a shard, or its lane dies, what
    /// was under way is void, and no message says so.
    fn over_lanes(&mut self, limits: &CoreLimits, edge: &Edge) -> Option<Over> {
        self.deposits
            .retain(|_, some| edge.lane_serving(some.shard) == some.lane);
        let mut lanes: BTreeMap<u64, (usize, usize, (u64, usize))> = BTreeMap::new();
        for some in self.deposits.values() {
            let (count, bytes, last) = lanes.entry(some.lane).or_default();
            *count += 1;
            *bytes += some.cost;
            *last = (*last).max((some.order, some.cost));
        }
        for (count, bytes, (_, last)) in lanes.into_values() {
            // One always goes.
            let most = limits.lane_deposits.max(1);
            if count > most {
                return Some(("deposits on a lane".to_owned(), count as u64, most as u64));
            }
            // The one that reaches the limit goes, too.
            if bytes - last >= limits.lane_bytes.max(1) {
                let what = "bytes of deposits on a lane before the last".to_owned();
                return Some((what, (bytes - last) as u64, limits.lane_bytes as u64));
            }
        }
        None
    }

    fn edge_said(&mut self, from: &Addr, number: u64, body: &ToOwner) {
        if let ToOwner::Open { .. } = body
            && self.edges.get(from).is_none_or(|lane| lane.number < number)
        {
            let lane = EdgeLane {
                number,
                ..EdgeLane::default()
            };
            self.edges.insert(from.clone(), lane);
        }
        let Some(lane) = self.edges.get_mut(from).filter(|lane| lane.number == number) else {
            return;
        };
        match body {
            ToOwner::Deposit(deposits) => {
                for deposit in deposits {
                    let envelope = &deposit.envelope;
                    let key = (envelope.session, envelope.session_seq, deposit.attempt);
                    lane.deposits.insert(key, deposit.body.len());
                }
            }
            ToOwner::Taken { bytes } => {
                lane.given = lane
                    .given
                    .saturating_sub(usize::try_from(*bytes).unwrap_or(usize::MAX));
            }
            _ => {}
        }
    }

    fn told_edge(&mut self, to: &Addr, number: u64, body: &ToEdge) {
        let Some(lane) = self.edges.get_mut(to).filter(|lane| lane.number == number) else {
            return;
        };
        match body {
            ToEdge::Answers(answers) => {
                for answer in answers {
                    let key = (answer.session, answer.session_seq, answer.attempt);
                    lane.deposits.remove(&key);
                }
            }
            ToEdge::Deliver(deliveries) => {
                for delivery in deliveries {
                    lane.last = delivery_cost(&delivery.op);
                    lane.given += lane.last;
                }
            }
            _ => {}
        }
    }

    fn over_owner(&self, limits: &CoreLimits) -> Option<Over> {
        let deposits = || self.edges.values().flat_map(|lane| lane.deposits.values());
        let (count, bytes) = (deposits().count(), deposits().sum::<usize>());
        if count > limits.owner_deposits {
            let what = "unanswered deposits at an owner".to_owned();
            return Some((what, count as u64, limits.owner_deposits as u64));
        }
        if count > 1 && bytes > limits.owner_deposit_bytes {
            let what = "bytes of unanswered deposits at an owner".to_owned();
            return Some((what, bytes as u64, limits.owner_deposit_bytes as u64));
        }
        // The one that reaches the limit is given, too.
        let given = |lane: &EdgeLane| lane.given.saturating_sub(lane.last);
        let given = self.edges.values().map(given).max().unwrap_or(0);
        (given >= limits.lane_bytes.max(1)).then(|| {
            let what = "bytes of deliveries on a lane before the last".to_owned();
            (what, given as u64, limits.lane_bytes as u64)
        })
    }

    /// All deposits that wait are in the next commit.
    fn committing(&mut self, ops: &[StoreOp], limits: &CoreLimits) {
        let bodies = || {
            ops.iter().filter_map(|op| match op {
                StoreOp::Append { body, .. } => Some(body.len()),
                _ => None,
            })
        };
        let (count, bytes) = (bodies().count(), bodies().sum::<usize>());
        if count > limits.owner_deposits {
            let what = "deposits in a commit".to_owned();
            self.found(what, count as u64, limits.owner_deposits as u64);
        }
        if count > 1 && bytes > limits.owner_deposit_bytes {
            let what = "bytes of deposits in a commit".to_owned();
            self.found(what, bytes as u64, limits.owner_deposit_bytes as u64);
        }
    }

    fn found(&mut self, what: String, have: u64, most: u64) {
        self.over.get_or_insert((what, have, most));
    }

    fn subscriber_said(&mut self, from: &Addr, number: u64, body: &ToProvider) {
        if let ToProvider::Subscribe { first: true, .. } = body
            && self.subscribers.get(from).is_none_or(|serve| serve.lane < number)
        {
            let serve = Serve {
                lane: number,
                ..Serve::default()
            };
            self.subscribers.insert(from.clone(), serve);
        }
        let Some(serve) = self
            .subscribers
            .get_mut(from)
            .filter(|serve| serve.lane == number)
        else {
            return;
        };
        match body {
            ToProvider::Credit(bytes) => {
                serve.credit += i128::from(*bytes);
                serve.window = serve.window.max(serve.credit);
            }
            ToProvider::PresenceCredit => serve.presence = serve.presence.saturating_sub(1),
            _ => {}
        }
    }

    fn told_subscriber(&mut self, to: &Addr, number: u64, body: &ToSubscriber, limits: &CoreLimits) {
        let Some(serve) = self.subscribers.get_mut(to).filter(|serve| serve.lane == number) else {
            return;
        };
        let mut over = None;
        match body {
            ToSubscriber::Ops(runs) => {
                for op in runs.iter().flat_map(|run| &run.ops) {
                    let len = op.len() as i128;
                    // One that is larger than the window goes when nothing is in flight.
                    if serve.credit < len && (serve.credit < serve.window || serve.window == 0) {
                        over = Some((
                            "bytes of an operation beyond the credit of a link",
                            len,
                            serve.credit,
                        ));
                    }
                    serve.credit -= len;
                    serve.page = false;
                }
            }
            ToSubscriber::Snapshot(piece) => {
                let weight = i128::from(piece.weight());
                // A page is read for what there is credit for, and may be one item more; two are on their way from the store.
                if serve.credit <= 0 && !serve.page {
                    over = Some((
                        "bytes of a snapshot beyond the credit of a link",
                        weight,
                        serve.credit,
                    ));
                }
                serve.page = serve.credit > 0;
                serve.credit -= weight;
            }
            ToSubscriber::Presence(_)
            | ToSubscriber::PresenceRepair(_)
            | ToSubscriber::PresenceCompared { .. } => {
                serve.presence += 1;
                if serve.presence > PRESENCE_IN_FLIGHT {
                    let most = PRESENCE_IN_FLIGHT as i128;
                    over = Some((
                        "messages of presence to a subscriber",
                        serve.presence as i128,
                        most,
                    ));
                }
                let records = match body {
                    ToSubscriber::Presence(records) | ToSubscriber::PresenceRepair(records) => records.len(),
                    _ => 0,
                };
                if records > limits.presence_batch.max(1) {
                    let most = limits.presence_batch as i128;
                    over = Some(("records in a message of presence", records as i128, most));
                }
            }
            _ => {}
        }
        if let Some((what, have, most)) = over {
            self.found(what.to_owned(), have as u64, most.max(0) as u64);
        }
    }

    fn told_provider(&mut self, to: &Addr, lane: u64, body: &ToProvider) {
        match body {
            ToProvider::Subscribe { first: true, .. } => {
                self.providers.insert(to.clone(), (lane, 0));
            }
            ToProvider::Credit(bytes) => {
                if let Some((_, credit)) = self.providers.get_mut(to).filter(|(known, _)| *known == lane) {
                    *credit += i128::from(*bytes);
                }
            }
            _ => {}
        }
    }

    fn provider_said(&mut self, from: &Addr, lane: u64, body: &ToSubscriber) {
        let Some((_, credit)) = self.providers.get_mut(from).filter(|(known, _)| *known == lane) else {
            return;
        };
        let bytes = match body {
            ToSubscriber::Ops(runs) => runs
                .iter()
                .flat_map(|run| &run.ops)
                .map(|op| op.len() as u64)
                .sum(),
            ToSubscriber::Snapshot(piece) => piece.weight(),
            _ => 0,
        };
        *credit -= i128::from(bytes);
    }
}

impl World {
    /// What waits in a partition stays within its limits.
    pub(super) fn check_limits(&mut self, node: usize, partition: u8) {
        let limits = self.plan.limits.clone();
        let Some(task) = self.task(node, partition) else {
            return;
        };
        let over = task.queues.over(&limits, task.machine.edge());
        let windows = task.queues.windows();
        if let Some((what, have, most)) = over {
            let detail = format!("{}: {have} {what}, at most {most}", self.addr(node, partition));
            return self.fail("bounded queues", detail, Vec::new());
        }
        for (conn, mut given) in windows {
            let Some(client) = self.clients.get(&conn.0) else {
                continue;
            };
            let device = client.device;
            let seen = &self.check.seen[device];
            given.retain(|given| match given.number {
                Some(number) => !seen.consumed.contains(&number),
                None => !seen.told(given.at),
            });
            if let Some((what, have, most)) = over_window(&given, &limits) {
                let name = self.devices[device].name();
                let detail = format!("{have} {what} wait for {name}, at most {most}");
                return self.fail("bounded queues", detail, vec![name]);
            }
        }
    }
}

/// What of a window is beyond its limit: of what a session was given and its device neither acknowledged nor handled.
fn over_window(held: &[Given], limits: &CoreLimits) -> Option<(&'static str, usize, usize)> {
    let most = limits.window_messages.max(1);
    if held.len() > most {
        return Some(("messages", held.len(), most));
    }
    // One message always fits, and a hole has no bytes.
    let bodies = held.iter().filter(|given| given.bytes > 0);
    let (count, bytes) = bodies.fold((0, 0), |(count, bytes), given| (count + 1, bytes + given.bytes));
    (count > 1 && bytes > limits.window_bytes).then_some(("bytes", bytes, limits.window_bytes))
}
