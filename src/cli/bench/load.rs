//! The connections: one task each, which sends as the pace says and takes what comes, many at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};
use hdrhistogram::Histogram;

use super::plan::Plan;
use super::track::{Seen, Track};
use crate::client::event::CloseCause;
use crate::client::{Client, ClientEvent, Incoming, OutgoingMessage, SendError};
use crate::core::ids::Coord;

/// Bytes of a body that the check needs: run, sender, sequence, intended instant.
pub(super) const MIN_SIZE: usize = 24;
/// Events that are taken in one go.
const TAKE: usize = 1024;
/// Messages made in one go, so that a sender that is behind still looks at what arrives.
const MAKE: usize = 1024;
/// Bodies are cut from pieces of so many bytes, one allocation each.
const PIECE: usize = 64 * 1024;
/// Latencies are recorded up to a minute, in microseconds.
const MAX_LATENCY_US: u64 = 60_000_000;
/// The first of these texts of what went wrong are kept.
const MAX_NOTES: usize = 8;
/// Marks an answered message among the instants.
const ANSWERED: u64 = u64::MAX;

/// When messages are sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// As long as fewer than so many are unanswered on a connection.
    Closed(usize),
    /// One in so many nanoseconds on each connection, answered or not.
    Open(f64),
}

/// Instants of a run, nanoseconds after `base`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) base: Instant,
    /// Sending starts.
    pub(super) start: u64,
    /// What is sent before this is checked and not measured.
    pub(super) measure: u64,
    /// Sending ends.
    pub(super) end: u64,
}

impl Times {
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn instant(&self, at: u64) -> tokio::time::Instant {
        (self.base + Duration::from_nanos(at)).into()
    }
}

/// What all connections count.
#[derive(Debug)]
pub(super) struct Totals {
    pub(super) tracks: Vec<Track>,
    /// Messages queued, by sender.
    queued: Vec<u64>,
    pub(super) sent: u64,
    pub(super) accepted: u64,
    /// Accepted, and had been accepted before.
    pub(super) accepted_again: u64,
    pub(super) rejected: BTreeMap<String, u64>,
    /// Deliveries that the accepted messages call for.
    pub(super) expected: u64,
    /// First deliveries to a device.
    pub(super) delivered: u64,
    pub(super) duplicates: u64,
    /// Deliveries to somebody else, or of what nobody sent.
    pub(super) wrong: u64,
    pub(super) holes: u64,
    pub(super) disconnects: u64,
    /// Within the time that is measured.
    pub(super) measured: Measured,
    /// Turns of the connections that found messages, and messages in them.
    pub(super) takes: u64,
    /// Calls that queued messages.
    pub(super) batches: u64,
    /// What went wrong, and how often.
    notes: Vec<(String, u64)>,
    pub(super) accept_us: Histogram<u64>,
    pub(super) deliver_us: Histogram<u64>,
}

/// Counters of the time that is measured.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measured {
    pub(super) sent: u64,
    pub(super) accepted: u64,
    pub(super) delivered: u64,
}

impl Totals {
    pub(super) fn new(plan: &Plan, connections: usize) -> Self {
        let histogram =
            || Histogram::new_with_max(MAX_LATENCY_US, 3).expect("the bounds are fixed and valid");
        let devices = plan.shape().devices;
        Self {
            tracks: (0..connections).map(|_| Track::new(devices)).collect(),
            queued: vec![0; connections],
            sent: 0,
            accepted: 0,
            accepted_again: 0,
            rejected: BTreeMap::new(),
            expected: 0,
            delivered: 0,
            duplicates: 0,
            wrong: 0,
            holes: 0,
            disconnects: 0,
            measured: Measured::default(),
            takes: 0,
            batches: 0,
            notes: Vec::new(),
            accept_us: histogram(),
            deliver_us: histogram(),
        }
    }

    pub(super) fn answered(&self) -> u64 {
        self.accepted + self.rejected.values().sum::<u64>()
    }

    /// Deliveries that are missing of what was accepted.
    pub(super) fn missing(&self, plan: &Plan) -> u64 {
        let of =
            |(sender, track): (usize, &Track)| track.missing(|seq| plan.copies(plan.recipient(sender, seq)));
        self.tracks.iter().enumerate().map(of).sum()
    }

    pub(super) fn note(&mut self, text: String) {
        match self.notes.iter().position(|(known, _)| *known == text) {
            Some(at) => self.notes[at].1 += 1,
            None if self.notes.len() < MAX_NOTES => self.notes.push((text, 1)),
            None => {}
        }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let say = |(text, times): &(String, u64)| match times {
            1 => text.clone(),
            _ => format!("{text} ({times} times)"),
        };
        self.notes.iter().map(say).collect()
    }

    fn record(&mut self, plan: &Plan, times: &Times, receiver: Receiver, message: &Incoming, now: u64) {
        let Some(head) = Head::read(&message.body, plan.shape().run) else {
            self.wrong += 1;
            return self.note(format!(
                "{} received a body that is not of this run",
                plan.id(receiver.user)
            ));
        };
        let (sender, seq) = (head.sender as usize, head.seq);
        let known = self.queued.get(sender).is_some_and(|queued| seq < *queued);
        if !known
            || plan.recipient(sender, seq) != receiver.user
            || *plan.id(plan.user(sender)) != message.from
        {
            self.wrong += 1;
            return self.note(format!(
                "{} received message {seq} of connection {sender}, which was not for it",
                plan.id(receiver.user)
            ));
        }
        if self.tracks[sender].delivered(seq, receiver.device) == Seen::Again {
            self.duplicates += 1;
            return self.note(format!(
                "message {seq} of connection {sender} came again to {}",
                plan.id(receiver.user)
            ));
        }
        self.delivered += 1;
        if now >= times.measure && now < times.end {
            self.measured.delivered += 1;
        }
        // How long somebody was away is no latency.
        if head.at >= times.measure && receiver.user < plan.shape().users {
            self.deliver_us
                .saturating_record(now.saturating_sub(head.at) / 1000);
        }
    }
}

/// What connections share.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) plan: Arc<Plan>,
    pub(super) totals: Arc<Mutex<Totals>>,
    pub(super) times: Times,
    pub(super) pace: Pace,
    pub(super) size: usize,
}

/// Who receives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Receiver {
    pub(super) user: usize,
    pub(super) device: usize,
}

impl Load {
    pub(super) fn totals(&self) -> MutexGuard<'_, Totals> {
        // A panic while counting ends its task, which is reported; the counters stay readable.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends and receives on a connection until its client is closed.
    pub(super) async fn run(self, client: Client, connection: usize, connections: usize) {
        let receiver = Receiver {
            user: self.plan.user(connection),
            device: self.plan.device(connection),
        };
        let phase = connection as f64 / connections as f64;
        let mut sender = Sender {
            load: self.clone(),
            connection,
            phase,
            next: 0,
            queue: VecDeque::new(),
            first: 0,
            at: VecDeque::new(),
            unanswered: 0,
            bodies: BytesMut::new(),
        };
        let mut events = Vec::with_capacity(TAKE);
        tokio::time::sleep_until(self.times.instant(self.times.start)).await;
        loop {
            let due = sender.send(&client);
            tokio::select! {
                () = client.next_batch(&mut events, TAKE) => {}
                () = tokio::time::sleep_until(self.times.instant(due.unwrap_or(0))), if due.is_some() => continue,
            }
            if events.is_empty() {
                return;
            }
            self.take(&client, receiver, &mut events, Some(&mut sender));
        }
    }

    /// Receives for one who was away, until its client is closed.
    pub(super) async fn receive(self, client: Client, receiver: Receiver) {
        let mut events = Vec::with_capacity(TAKE);
        loop {
            client.next_batch(&mut events, TAKE).await;
            if events.is_empty() {
                return;
            }
            self.take(&client, receiver, &mut events, None);
        }
    }

    fn take(
        &self,
        client: &Client,
        receiver: Receiver,
        events: &mut Vec<ClientEvent>,
        mut sender: Option<&mut Sender>,
    ) {
        let now = self.times.now();
        let mut consumed: Vec<Coord> = Vec::new();
        let mut consume = |at: Coord| match consumed.iter_mut().find(|known| known.origin == at.origin) {
            Some(known) => *known = at,
            None => consumed.push(at),
        };
        let mut totals = self.totals();
        totals.takes += 1;
        for event in events.drain(..) {
            match event {
                ClientEvent::Message(message) => {
                    totals.record(&self.plan, &self.times, receiver, &message, now);
                    consume(message.at);
                }
                ClientEvent::Accepted {
                    ticket, duplicate, ..
                } => {
                    totals.accepted_again += u64::from(duplicate);
                    if let Some(sender) = &mut sender {
                        sender.accepted(&mut totals, ticket.0 - 1, now);
                    }
                }
                ClientEvent::Rejected {
                    ticket, code, detail, ..
                } => {
                    *totals.rejected.entry(format!("{code:?}")).or_default() += 1;
                    totals.note(format!("refused: {code:?}: {detail}"));
                    if let Some(sender) = &mut sender {
                        sender.answered(ticket.0 - 1);
                    }
                }
                ClientEvent::Hole(hole) => {
                    totals.holes += 1;
                    consume(Coord {
                        origin: hole.origin,
                        seq: hole.to,
                    });
                }
                ClientEvent::Disconnected { endpoint, reason, .. } => {
                    totals.disconnects += 1;
                    totals.note(format!("{endpoint}: {reason}"));
                }
                ClientEvent::Closed(cause) if cause != CloseCause::Asked => {
                    totals.note(format!("a client closed: {cause}"));
                }
                _ => {}
            }
        }
        drop(totals);
        for at in consumed {
            client.consumed_through(at);
        }
    }
}

/// The sending side of a connection.
#[derive(Debug)]
struct Sender {
    load: Load,
    connection: usize,
    /// Where in the interval of an open loop this connection sends, 0 to 1.
    phase: f64,
    /// Sequence of the next message, which is also the number of messages made.
    next: u64,
    /// Made, and not taken by the client's outbox yet.
    queue: VecDeque<OutgoingMessage>,
    /// The sequence of the first of `at`.
    first: u64,
    /// When the unanswered ones were to be sent.
    at: VecDeque<u64>,
    unanswered: usize,
    bodies: BytesMut,
}

impl Sender {
    /// Sends what is due; says when the next is, where that is a matter of time.
    fn send(&mut self, client: &Client) -> Option<u64> {
        let times = self.load.times;
        let now = times.now();
        let mut due = None;
        let mut made = 0;
        while self.queue.is_empty() || made > 0 {
            let at = match self.load.pace {
                Pace::Closed(window) if self.unanswered < window => now,
                Pace::Closed(_) => break,
                Pace::Open(every) => times.start + ((self.next as f64 + self.phase) * every) as u64,
            };
            if at >= times.end {
                break;
            }
            if at > now || made == MAKE {
                due = Some(at);
                break;
            }
            self.make(at);
            made += 1;
        }
        if self.queue.is_empty() {
            return due;
        }
        let mut totals = self.load.totals();
        totals.queued[self.connection] = self.next;
        totals.sent += made as u64;
        totals.batches += 1;
        if now >= times.measure {
            totals.measured.sent += made as u64;
        }
        drop(totals);
        match client.send_batch(&mut self.queue).1 {
            // What was not taken goes with the next answers.
            Some(SendError::OutboxFull { .. }) => None,
            Some(error) => {
                self.load.totals().note(format!("not queued: {error}"));
                None
            }
            None => due,
        }
    }

    fn make(&mut self, at: u64) {
        let load = &self.load;
        let to = load
            .plan
            .id(load.plan.recipient(self.connection, self.next))
            .clone();
        if self.bodies.capacity() < load.size {
            self.bodies = BytesMut::with_capacity(PIECE.max(load.size));
        }
        let head = Head {
            run: load.plan.shape().run,
            sender: self.connection as u32,
            seq: self.next,
            at,
        };
        head.write(&mut self.bodies);
        self.bodies.put_bytes(b'.', load.size - MIN_SIZE);
        self.queue
            .push_back(OutgoingMessage::new(to, self.bodies.split().freeze()));
        self.at.push_back(at);
        self.unanswered += 1;
        self.next += 1;
    }

    fn accepted(&mut self, totals: &mut Totals, seq: u64, now: u64) {
        let Some(at) = self.answered(seq) else {
            return;
        };
        let plan = &self.load.plan;
        let copies = plan.copies(plan.recipient(self.connection, seq));
        totals.accepted += 1;
        totals.expected += u64::from(copies);
        totals.tracks[self.connection].accepted(seq, copies);
        let times = &self.load.times;
        if now >= times.measure && now < times.end {
            totals.measured.accepted += 1;
        }
        if at >= times.measure {
            totals.accept_us.saturating_record(now.saturating_sub(at) / 1000);
        }
    }

    /// The first answer to a message: when that was to be sent.
    fn answered(&mut self, seq: u64) -> Option<u64> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        let at = std::mem::replace(self.at.get_mut(index)?, ANSWERED);
        while self.at.front() == Some(&ANSWERED) {
            self.at.pop_front();
            self.first += 1;
        }
        (at != ANSWERED).then(|| {
            self.unanswered -= 1;
            at
        })
    }
}

/// The first bytes of each body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    run: u32,
    sender: u32,
    seq: u64,
    at: u64,
}

impl Head {
    fn write(&self, to: &mut BytesMut) {
        to.put_u32(self.run);
        to.put_u32(self.sender);
        to.put_u64(self.seq);
        to.put_u64(self.at);
    }

    fn read(body: &[u8], run: u32) -> Option<Self> {
        use bytes::Buf as _;
        let mut body = body.get(..MIN_SIZE)?;
        let head = Self {
            run: body.get_u32(),
            sender: body.get_u32(),
            seq: body.get_u64(),
            at: body.get_u64(),
        };
        (head.run == run).then_some(head)
    }
}
