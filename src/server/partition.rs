//! The task of one partition: it drives a [`Partition`] of the core and never waits for anything but its inputs.
//!
//! Up to [`BATCH`] inputs are handed over, then every output is carried out: frames to the queues of connections, messages
//! to the queues of peers, operations to the store's thread. Nothing here awaits a send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender as StoreSender, TrySendError as StoreSendError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, error::TrySendError};
use tokio::sync::{oneshot, watch};

use super::clock::Clock;
use super::holders::Holders;
use super::inspect::Asked;
use super::meters::Meters;
use super::metrics::{LinkReason, Queue, Reason, code_name};
use super::store::{StoreReply, StoreRequest};
use crate::core::edge::Unserved;
use crate::core::ids::{Addr, ConnId, NodeKey, RegionId, UserId};
use crate::core::inspect::{Answer, Query};
use crate::core::link::{LinkAlarm, StopReason};
use crate::core::msg::Message;
use crate::core::node::{Input, Output, Partition};
use crate::core::owner::HoldersStatus;
use crate::core::storage::{Read, ReadReply, StoreError};

use crate::core::wire::{ClientFrame, Code, Hello, ServerFrame};
use crate::net::client::ConnHandle;
use crate::net::frame::Frame;
use crate::net::peer::{PeerPool, PeerSendError};
use crate::net::supervise::Supervisor;
use crate::net::{CloseCode, CloseReason};

/// Inputs that are handed to the core before its outputs are carried out.
const BATCH: usize = 256;
/// Most partitions of a node: each pair of partitions has a stream of its own for each conversation.
pub const MAX_PARTITIONS: u8 = 4;
/// A number of partitions that a node can have.
///
/// # Errors
/// What was expected.
pub(super) fn partitions(number: u32) -> Result<u8, String> {
    let number = u8::try_from(number).ok();
    number
        .filter(|number| (1..=MAX_PARTITIONS).contains(number))
        .ok_or_else(|| format!("expected 1 to {MAX_PARTITIONS}"))
}

/// Kind of the frames that carry messages between partitions.
pub(super) const KIND_MESSAGE: u8 = 16;
/// Messages that wait for another partition of this node, which is a task like this one.
pub(super) const SIBLING_QUEUE: usize = 4096;
/// Messages of one partition that wait for a sibling whose queue is full. Lanes and credit keep them far below; a sibling that
/// lets so many wait takes nothing any more, and the partition ends, which ends the process: none may be left out.
const MAX_WAITING: usize = 16 * SIBLING_QUEUE;
/// Server frames are packed into buffers of about this size.
const CLIENT_BUFFER: usize = 16 * 1024;

/// While many connections bring a message or two at a time, what they send is taken so long after it was last taken: what comes
/// meanwhile is decided, committed and written together. That saves most of what packets, wake-ups and commits of one
/// message cost, for which a busy node has no time.
const PACE: Duration = Duration::from_millis(4);
/// From so many reads of clients' connections a second on. Where each brings many messages, which large windows do, there
/// are fewer.
const PACED_ABOVE: u32 = 15_000;
/// Reads are counted over so long.
const PACE_PERIOD: Duration = Duration::from_millis(10);

/// Room made for each frame ahead: a delivery of a short message fits, so that buffers do not grow by copying.
const USUAL_FRAME: usize = 256;

/// What a partition's task is told.
pub(super) enum Event {
    /// A client's connection is there.
    Opened { conn: ConnId, handle: ConnHandle },
    /// What a client sent, decoded; its token is verified.
    Client { conn: ConnId, frames: Vec<ClientInput> },
    /// A client's connection is gone.
    Closed { conn: ConnId },
    /// Messages of another node's partition.
    Peer { from: Addr, messages: Vec<Message> },
    /// A connection to send on.
    PeerUp { node: NodeKey, incarnation: u64 },
    /// A connection broke, either way.
    PeerLost {
        node: NodeKey,
        outgoing: bool,
        incarnation: u64,
    },
    /// Anything that the core takes as it is.
    Core(Input),
    /// An operator looks at what is in memory.
    Inspect {
        query: Query,
        reply: oneshot::Sender<Answer>,
    },
    /// An operator looks at what is in the store.
    Ask {
        read: Read,
        reply: oneshot::Sender<Result<ReadReply, StoreError>>,
    },
    /// How far a change of the holders is.
    HoldersStatus(oneshot::Sender<HoldersStatus>),
    /// Report when every session has gone, for a drain.
    Drain,
    /// Report when every deposit that was taken is answered, and take no more.
    Finish,
}

/// A frame of a client, judged as far as it can be without the core.
pub(super) enum ClientInput {
    /// A hello whose token is good.
    Hello { user: UserId, hello: Box<Hello> },
    /// Any other frame.
    Frame(ClientFrame),
    /// The connection must end.
    Bad { code: Code, detail: String },
}

/// What others may know of a partition, updated after each batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Sessions.
    pub sessions: usize,
    /// Of them, those that are not told yet that a region is restored which their clients may prefer.
    pub returning: usize,
    /// Whether every shard that is placed here is active.
    pub active: bool,
    /// Active shards.
    pub shards: usize,
    /// Whether deposits are refused since the node stops, and all that were taken are answered.
    pub settled: bool,
    /// Shards that recover (R4).
    pub recovering: usize,
    /// How many began to, since the node started.
    pub began_recovery: usize,
    /// Why the last one did.
    pub recovery_why: Arc<str>,
    /// Shards that clients at this node are not served, by what is missing.
    pub unserved: Unserved,
    /// The other region that serves this edge while its own does not.
    pub served_by: Option<RegionId>,
    /// The regions that keep shards here, or are waited for (R13); none where no shards are owned.
    pub holders: Holders,
    /// Shards that this region does not keep any more.
    pub removed: usize,
    /// Bytes sent to other regions to repair presence, since the node started.
    pub presence_repair_bytes: u64,
}

/// What a partition's task works with.
pub(super) struct PartitionTask {
    pub(super) core: Partition,
    pub(super) me: Addr,
    pub(super) pool: PeerPool,
    /// The queues of this node's partitions, this one's too.
    pub(super) siblings: Vec<Sender<Event>>,
    pub(super) store: Option<StoreSender<StoreRequest>>,
    pub(super) clock: Clock,
    pub(super) events: Receiver<Event>,
    pub(super) replies: UnboundedReceiver<StoreReply>,
    pub(super) status: watch::Sender<PartitionStatus>,
    pub(super) peer_addrs: watch::Receiver<BTreeMap<NodeKey, std::net::SocketAddr>>,
    pub(super) meters: Meters,
    /// Of the routes that the status was made from; any number that is none at first.
    pub(super) routes_version: u64,
    /// Told where the node must end.
    pub(super) supervisor: Supervisor,
    /// How many shards began to recover, and why the last one did.
    pub(super) recovered: (usize, Arc<str>),
    /// The regions that keep shards here, or are waited for; none where no shards are owned.
    pub(super) holders: Holders,
    /// Questions of operators that the store has not answered.
    pub(super) asked: Asked,
}

/// The stream class for messages of a partition to another: one for each conversation and pair.
pub(super) fn class(from: u8, to: u8, message: &Message) -> u16 {
    let conversation = match message {
        Message::ToOwner { .. } => 0,
        Message::ToEdge { .. } => 1,
        Message::ToProvider { .. } => 2,
        Message::ToSubscriber { .. } => 3,
    };
    conversation + 4 * (u16::from(to) + u16::from(MAX_PARTITIONS) * u16::from(from))
}

/// The partitions that a class is between: from, to.
pub(super) fn partitions_of(class: u16) -> (u8, u8) {
    let pair = class / 4;
    (
        (pair / u16::from(MAX_PARTITIONS)) as u8,
        (pair % u16::from(MAX_PARTITIONS)) as u8,
    )
}

/// When what clients send is left to gather: see [`PACE`].
struct Pace {
    taken: Instant,
    counted_from: Instant,
    reads: u32,
    busy: bool,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            taken: now,
            counted_from: now,
            reads: 0,
            busy: false,
        }
    }

    /// When events may be taken, if that is not at once.
    fn next(&self) -> Option<Instant> {
        self.busy.then(|| self.taken + PACE)
    }

    /// Events were taken, so many of them reads of clients' connections.
    fn took(&mut self, now: Instant, reads: u32) {
        self.taken = now;
        self.reads += reads;
        let counted = now - self.counted_from;
        if counted >= PACE_PERIOD {
            self.busy = f64::from(self.reads) >= f64::from(PACED_ABOVE) * counted.as_secs_f64();
            (self.counted_from, self.reads) = (now, 0);
        }
    }
}

struct Connections {
    clients: BTreeMap<ConnId, ConnHandle>,
    /// Outgoing incarnation of each peer that is up.
    peers: BTreeMap<NodeKey, u64>,
    /// Peers for which something was dropped since their connection came up, or before one did. As many as nodes.
    missed: BTreeSet<NodeKey>,
    /// Messages of this round for each peer and class.
    outgoing: BTreeMap<(NodeKey, u16), Vec<Bytes>>,
    /// Messages of this partition to itself, handed over in the turn that made them.
    own: Vec<Message>,
    /// Messages that a sibling had no room for; they keep their order.
    waiting: BTreeMap<u8, Vec<Message>>,
}

impl Connections {
    /// A connection to a peer is there. Whether something that was said to it before is lost: then it must be said again,
    /// since nothing may be missing before what follows.
    fn came_up(&mut self, node: &NodeKey, incarnation: u64) -> bool {
        let before = self.peers.insert(node.clone(), incarnation);
        self.missed.remove(node) || before.is_some()
    }
}

impl PartitionTask {
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut connections = Connections {
            clients: BTreeMap::new(),
            peers: BTreeMap::new(),
            missed: BTreeSet::new(),
            outgoing: BTreeMap::new(),
            own: Vec::new(),
            waiting: BTreeMap::new(),
        };
        let mut events = Vec::with_capacity(BATCH);
        let mut pace = Pace::new(Instant::now());
        loop {
            let hold = pace.next().filter(|_| self.events.len() < BATCH);
            let mut take = hold.is_none();
            let held = tokio::time::sleep_until(hold.unwrap_or_else(Instant::now).into());
            let due = self.core.poll_timeout().map(|at| self.clock.until(at));
            let timer = tokio::time::sleep(due.unwrap_or(Duration::from_secs(3600)));
            tokio::select! {
                biased;
                // A node without a store has nobody on the other end.
                reply = self.replies.recv(), if self.store.is_some() => {
                    match reply {
                        Some(reply) => {
                            self.stored(reply);
                            while let Ok(reply) = self.replies.try_recv() {
                                self.stored(reply);
                            }
                        }
                        // The thread told why it ended, and whoever runs the node ends it.
                        None => self.store = None,
                    }
                }
                () = held, if hold.is_some() => take = true,
                count = self.events.recv_many(&mut events, BATCH), if hold.is_none() => {
                    if count == 0 {
                        return;
                    }
                }
                () = timer => {}
                _ = stop.changed() => return,
            }
            while take && events.len() < BATCH {
                let Ok(event) = self.events.try_recv() else { break };
                events.push(event);
            }
            if take {
                let read = |event: &&Event| matches!(event, Event::Client { .. });
                pace.took(Instant::now(), events.iter().filter(read).count() as u32);
            }
            for event in events.drain(..) {
                self.event(&mut connections, event);
            }
            let now = self.clock.now();
            if self.core.poll_timeout().is_some_and(|at| at <= now.mono) {
                self.core.handle_timeout(now);
            }
            self.outputs(&mut connections);
            while !connections.own.is_empty() {
                for message in std::mem::take(&mut connections.own) {
                    let from = self.me.clone();
                    self.core.handle(Input::Peer { from, message }, now);
                }
                self.outputs(&mut connections);
            }
            self.meters.export(&self.core, self.events.len(), now);
            self.report();
        }
    }

    fn stored(&mut self, reply: StoreReply) {
        let now = self.clock.now();
        self.core.handle(
            match reply {
                StoreReply::Committed(token, result) => Input::Committed { token, result },
                StoreReply::Answered(token, result) => Input::Answered { token, result },
            },
            now,
        );
    }

    fn event(&mut self, connections: &mut Connections, event: Event) {
        let now = self.clock.now();
        match event {
            Event::Opened { conn, handle } => {
                self.meters.metrics.connections.inc();
                connections.clients.insert(conn, handle);
            }
            Event::Client { conn, frames } => {
                for frame in frames {
                    match frame {
                        ClientInput::Hello { user, hello } => {
                            self.core.handle(Input::Hello { conn, user, hello }, now);
                        }
                        ClientInput::Frame(frame) => self.core.handle(Input::Client { conn, frame }, now),
                        ClientInput::Bad { code, detail } => {
                            self.meters
                                .metrics
                                .frames_refused
                                .get_or_create(&Reason {
                                    reason: code_name(code),
                                })
                                .inc();
                            let error = ServerFrame::Error {
                                code,
                                detail: detail.clone(),
                            };
                            self.client_frames(connections, conn, &[error]);
                            close_client(connections, conn, code, detail);
                            return;
                        }
                    }
                }
            }
            Event::Closed { conn } => {
                if connections.clients.remove(&conn).is_some() {
                    self.meters.metrics.connections.dec();
                }
                self.core.handle(Input::Closed { conn }, now);
            }
            Event::Peer { from, messages } => {
                for message in messages {
                    self.core.handle(
                        Input::Peer {
                            from: from.clone(),
                            message,
                        },
                        now,
                    );
                }
            }
            Event::PeerUp { node, incarnation } => {
                if connections.came_up(&node, incarnation) {
                    // A node that dials us is heard before we can answer it. The core must not take answers that were
                    // dropped for given, when later ones arrive.
                    let node = node.clone();
                    self.core.handle(Input::Reachable { node, up: false }, now);
                }
                self.core.handle(Input::Reachable { node, up: true }, now);
            }
            Event::PeerLost {
                node,
                outgoing,
                incarnation,
            } => {
                let known = connections.peers.get(&node).copied();
                if outgoing && known == Some(incarnation) {
                    connections.peers.remove(&node);
                }
                let still = connections.peers.contains_key(&node);
                if known.is_some() {
                    self.core.handle(
                        Input::Reachable {
                            node: node.clone(),
                            up: false,
                        },
                        now,
                    );
                }
                // What was lost on the way in must be said again, although the way out is still there.
                if still {
                    self.core.handle(Input::Reachable { node, up: true }, now);
                }
            }
            Event::Core(input) => self.core.handle(input, now),
            Event::Inspect { query, reply } => {
                // Whoever asked may have given up.
                let _ = reply.send(self.core.inspect(&query, now));
            }
            Event::Ask { read, reply } => {
                if let Some(id) = self.asked.take(reply, self.store.is_some()) {
                    self.core.handle(Input::Ask { id, read }, now);
                }
            }
            Event::HoldersStatus(answer) => {
                // Who asked may be gone.
                let _ = answer.send(self.core.holders());
            }
            Event::Drain => self.core.handle(Input::Drain, now),
            Event::Finish => self.core.handle(Input::Finish, now),
        }
    }

    fn outputs(&mut self, connections: &mut Connections) {
        for (partition, messages) in std::mem::take(&mut connections.waiting) {
            for message in messages {
                self.to_sibling(connections, partition, message);
            }
        }
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Client { conn, frames } => self.client_frames(connections, conn, &frames),
                Output::Close { conn, code, detail } => close_client(connections, conn, code, detail),
                Output::Peer { to, message } if to == self.me => connections.own.push(message),
                Output::Peer { to, message } if to.node == self.me.node => {
                    self.to_sibling(connections, to.partition, message);
                }
                Output::Peer { to, mut message } => {
                    let class = class(self.me.partition, to.partition, &message);
                    let frame = Frame::new(KIND_MESSAGE, message.encode()).encode();
                    connections
                        .outgoing
                        .entry((to.node, class))
                        .or_default()
                        .push(frame);
                }
                Output::Commit { token, ops, now_ms } => {
                    let partition = self.me.partition;
                    self.ask(StoreRequest::Commit {
                        partition,
                        token,
                        ops,
                        now_ms,
                    });
                }
                Output::Read { token, read } => {
                    let partition = self.me.partition;
                    self.ask(StoreRequest::Read {
                        partition,
                        token,
                        read,
                    });
                }
                Output::Told { id, result } => self.asked.told(id, result),
                Output::Alarm(alarm) => self.alarm(&alarm),
                Output::Recovery {
                    shard,
                    recovering,
                    detail,
                } => {
                    tracing::debug!(%shard, recovering, why = %detail, "a shard begins to recover, or is open again");
                    if recovering {
                        self.recovered.0 += 1;
                        self.recovered.1 = detail.into();
                    }
                }
                Output::Regions(regions) => {
                    let names: Vec<&str> = regions.iter().map(RegionId::as_str).collect();
                    tracing::info!(regions = %names.join(", "), "the regions that keep the shards are these from now on");
                    self.holders = Arc::new(regions);
                }
                Output::Stop(alarm) => {
                    self.alarm(&alarm);
                    let name = format!("partition {}", self.me.partition);
                    self.supervisor.ended("partition", &name, &alarm.to_string());
                }
            }
        }
        for ((node, class), batch) in std::mem::take(&mut connections.outgoing) {
            self.to_peer(connections, node, class, batch);
        }
    }

    /// A node without a store owns no shards, so its core asks nothing of one.
    fn ask(&mut self, request: StoreRequest) {
        let Some(store) = &self.store else { return };
        let depth = self
            .meters
            .metrics
            .queue_depth
            .get_or_create(&Queue { queue: "store" })
            .clone();
        depth.inc();
        match store.try_send(request) {
            Ok(()) => {}
            // The thread is gone only when the node stops.
            Err(StoreSendError::Disconnected(_)) => {
                depth.dec();
            }
            // It has room for all that partitions ask at once. If that is ever not so, the core must hear of it: it refuses
            // what it can, and asks again for the rest.
            Err(StoreSendError::Full(request)) => {
                depth.dec();
                self.queue_full("store");
                if let Some(reply) = request.refused() {
                    self.stored(reply);
                }
            }
        }
    }

    fn client_frames(&self, connections: &mut Connections, conn: ConnId, frames: &[ServerFrame]) {
        let Some(handle) = connections.clients.get(&conn) else {
            return;
        };
        let mut chunks = Vec::new();
        let mut buffer = BytesMut::with_capacity((frames.len() * USUAL_FRAME).min(CLIENT_BUFFER));
        for frame in frames {
            frame.encode(&mut buffer);
            if buffer.len() >= CLIENT_BUFFER {
                chunks.push(buffer.split().freeze());
            }
        }
        if !buffer.is_empty() {
            chunks.push(buffer.freeze());
        }
        if let Err(error) = handle.try_send(chunks) {
            self.queue_full("client");
            tracing::debug!(conn = conn.0, %error, "a client's queue took no more: the connection is closed");
            let reason = CloseReason::new(CloseCode::OVERLOADED, "the client does not read");
            handle.close_now(reason);
        }
    }

    fn to_sibling(&self, connections: &mut Connections, partition: u8, message: Message) {
        let waiting = connections.waiting.entry(partition).or_default();
        let Some(sender) = self.siblings.get(usize::from(partition)) else {
            return;
        };
        assert!(
            waiting.len() < MAX_WAITING,
            "partition {partition} of this node takes no messages: {MAX_WAITING} wait for it"
        );
        if !waiting.is_empty() {
            return waiting.push(message);
        }
        let event = Event::Peer {
            from: self.me.clone(),
            messages: vec![message],
        };
        if let Err(TrySendError::Full(Event::Peer { messages, .. })) = sender.try_send(event) {
            self.queue_full("partition");
            waiting.extend(messages);
        }
    }

    fn to_peer(&self, connections: &mut Connections, node: NodeKey, class: u16, batch: Vec<Bytes>) {
        // What is dropped here is said again once there is a connection: see `Connections::came_up`.
        let Some(incarnation) = connections.peers.get(&node).copied() else {
            connections.missed.insert(node);
            return;
        };
        match self.pool.send(&node, incarnation, class, batch) {
            Ok(()) => {}
            Err(PeerSendError::NotConnected | PeerSendError::Stale { .. } | PeerSendError::Unknown(_)) => {
                connections.missed.insert(node);
            }
            Err(error) => {
                connections.missed.insert(node.clone());
                self.queue_full("peer");
                // A stream must not lose a message in its middle: the connection is given up and made again.
                tracing::warn!(peer = %node, %error, "the queue to a peer took no more: reconnecting");
                let addr = self.peer_addrs.borrow().get(&node).copied();
                self.pool.unwant(&node);
                if let Some(addr) = addr {
                    self.pool.want(&node, addr);
                }
            }
        }
    }

    fn queue_full(&self, queue: &'static str) {
        self.meters
            .metrics
            .queue_refused
            .get_or_create(&Queue { queue })
            .inc();
    }

    fn alarm(&self, alarm: &LinkAlarm) {
        tracing::error!(%alarm, "a link stopped for a shard: someone must look");
        let (link, reason) = match alarm {
            LinkAlarm::Stopped { link, reason, .. } => {
                let reason = match reason {
                    StopReason::NeedsSnapshot { .. } => "needs_snapshot",
                    StopReason::Diverged { .. } => "diverged",
                    StopReason::Unreadable { .. } => "unreadable",
                    StopReason::OutOfPlace { .. } => "out_of_place",
                };
                (link, reason)
            }
            LinkAlarm::Refused { link, .. } => (link, "refused"),
            LinkAlarm::AheadOfUs { link, .. } => (link, "ahead_of_us"),
        };
        let reason = LinkReason {
            region: link.node.region.to_string(),
            reason,
        };
        self.meters.metrics.link_stopped.get_or_create(&reason).inc();
    }

    fn report(&mut self) {
        let owner = self.core.owner();
        let status = PartitionStatus {
            sessions: self.core.edge().stats().sessions,
            returning: self.core.edge().returning(),
            active: owner.all_active(),
            shards: owner.active_count(),
            settled: self.core.settled(),
            recovering: owner.recovering_count(),
            began_recovery: self.recovered.0,
            recovery_why: self.recovered.1.clone(),
            holders: self.holders.clone(),
            removed: owner.removed_count(),
            presence_repair_bytes: self.core.links().stats().presence_repair_bytes,
            served_by: self.served_elsewhere(),
            unserved: match self.core.edge().routes_version() {
                same if same == self.routes_version => self.status.borrow().unserved.clone(),
                new => {
                    self.routes_version = new;
                    self.core.edge().unserved()
                }
            },
        };
        self.status.send_if_modified(|old| {
            if old.served_by != status.served_by {
                match &status.served_by {
                    Some(region) => tracing::warn!(
                        %region,
                        "no core node of this region serves: this edge's sessions begin again, served by another region"
                    ),
                    None => tracing::info!("the own region serves this edge again"),
                }
            }
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    fn served_elsewhere(&self) -> Option<RegionId> {
        let region = self.core.edge().served_by();
        (*region != self.me.node.region).then(|| region.clone())
    }
}

fn close_client(connections: &Connections, conn: ConnId, code: Code, detail: String) {
    let Some(handle) = connections.clients.get(&conn) else {
        return;
    };
    let close = match code {
        Code::Unauthorized => CloseCode::UNAUTHENTICATED,
        Code::Protocol | Code::Version => CloseCode::PROTOCOL,
        Code::Superseded => CloseCode::SUPERSEDED,
        Code::Draining => CloseCode::SHUTDOWN,
        Code::Timeout => CloseCode::TOO_SLOW,
        Code::Overloaded | Code::TooManyWatches | Code::TooManyDevices => CloseCode::OVERLOADED,
        _ => CloseCode::INTERNAL,
    };
    handle.close_after_flush(CloseReason::new(close, detail));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{NodeName, RegionId};

    #[test]
    fn turns_are_paced_only_while_many_reads_bring_a_few_messages_each() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.next(), None);
        let just = u32::try_from(u128::from(PACED_ABOVE) * PACE_PERIOD.as_millis() / 1000).unwrap();
        let mut now = start + PACE_PERIOD;
        pace.took(now, just - 1);
        assert_eq!(pace.next(), None, "just below");
        pace.took(now, just);
        assert_eq!(pace.next(), None, "the time is not over");
        now += PACE_PERIOD;
        pace.took(now, 0);
        assert_eq!(pace.next(), Some(now + PACE));
        now += PACE_PERIOD * 100;
        pace.took(now, 1);
        assert_eq!(pace.next(), None, "quiet again");
    }

    #[test]
    fn what_was_dropped_before_a_connection_came_up_counts_as_lost_once() {
        let node = NodeKey {
            region: RegionId::new("us-east").unwrap(),
            node: NodeName::new("us-east-edge").unwrap(),
        };
        let mut connections = Connections {
            clients: BTreeMap::new(),
            peers: BTreeMap::new(),
            missed: BTreeSet::from([node.clone()]),
            outgoing: BTreeMap::new(),
            own: Vec::new(),
            waiting: BTreeMap::new(),
        };
        assert!(connections.came_up(&node, 1), "something was dropped before");
        connections.peers.clear();
        assert!(
            !connections.came_up(&node, 2),
            "its end was told, nothing was dropped"
        );
        assert!(
            connections.came_up(&node, 3),
            "the end of the one before was not told"
        );
    }
}
