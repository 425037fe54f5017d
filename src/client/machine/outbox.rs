//! What is to be sent: every message keeps its id until it is accepted or refused for good.
//!
//! Messages to one recipient form a lane. A lane is open (its messages go out as they come), closed (a retryable refusal:
//! nothing goes out until a pause has passed and everything in flight of it was answered) or trying (its first message
//! went out again alone; the others follow, in order, once that one is answered). So a later message never passes an
//! earlier one that was refused (R21), and other lanes go on. Each transmission has a new session sequence, and a message
//! has at most one transmission that is not answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;

use super::endpoints::backoff;
use crate::client::event::{OutgoingMessage, Ticket};
use crate::core::ids::{MessageId, UserId};
use crate::core::time::Mono;
use crate::core::wire::{Send, SendControl};

/// Bytes counted for a message beside its body: about what its entries in the maps take.
pub(super) const MESSAGE_COST: usize = 256;

#[derive(Debug)]
enum Gate {
    Open,
    Closed { until: Mono },
    Trying(Ticket),
}

#[derive(Debug)]
struct Lane {
    /// Unanswered messages in the order in which they were queued.
    tickets: VecDeque<Ticket>,
    in_flight: usize,
    gate: Gate,
    /// Refusals since the last acceptance.
    tries: u32,
}

/// Pauses before a refused message is sent again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pauses {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

/// What an answer meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// The message is done.
    Done(Ticket),
    /// It will be sent again.
    Again,
    /// Late, or for a message that is done.
    Ignored,
    /// The server answered a sequence with another message's id.
    Mismatch,
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    entries: BTreeMap<Ticket, OutgoingMessage>,
    lanes: BTreeMap<UserId, Lane>,
    /// What may go out now, in order.
    ready: BTreeSet<Ticket>,
    /// Transmissions that are not answered, by session sequence; when they went out.
    in_flight: BTreeMap<u64, (Ticket, Mono)>,
    /// Closed lanes by the end of their pause.
    due: BTreeSet<(Mono, UserId)>,
    last_ticket: u64,
    last_seq: u64,
    bytes: usize,
}

impl Outbox {
    /// Queues a message, which has an id. The caller judged the limits.
    pub(super) fn push(&mut self, message: OutgoingMessage) -> Ticket {
        let ticket = Ticket(self.last_ticket + 1);
        self.restore(ticket, message);
        ticket
    }

    /// Queues a message of an earlier run under its ticket.
    pub(super) fn restore(&mut self, ticket: Ticket, message: OutgoingMessage) {
        self.last_ticket = self.last_ticket.max(ticket.0);
        self.bytes += cost(&message);
        match self.lanes.get_mut(&message.to) {
            Some(lane) => {
                lane.tickets.push_back(ticket);
                if matches!(lane.gate, Gate::Open) {
                    self.ready.insert(ticket);
                }
            }
            None => {
                let lane = Lane {
                    tickets: VecDeque::from([ticket]),
                    in_flight: 0,
                    gate: Gate::Open,
                    tries: 0,
                };
                self.lanes.insert(message.to.clone(), lane);
                self.ready.insert(ticket);
            }
        }
        self.entries.insert(ticket, message);
    }

    /// Gives a message that never went out another id.
    pub(super) fn set_id(&mut self, ticket: Ticket, id: MessageId) {
        if let Some(message) = self.entries.get_mut(&ticket) {
            message.id = Some(id);
        }
    }

    /// The next message to send, unless `max_in_flight` are unanswered.
    pub(super) fn next(&mut self, now: Mono, max_in_flight: usize) -> Option<Send> {
        if self.in_flight.len() >= max_in_flight {
            return None;
        }
        let ticket = self.ready.pop_first()?;
        let message = self.entries.get(&ticket)?;
        self.last_seq += 1;
        self.in_flight.insert(self.last_seq, (ticket, now));
        if let Some(lane) = self.lanes.get_mut(&message.to) {
            lane.in_flight += 1;
        }
        Some(Send {
            id: message.id?,
            session_seq: self.last_seq,
            control: SendControl {
                to: message.to.clone(),
                kind: message.kind,
                ttl_ms: message.ttl_ms,
                trace: message.trace.clone(),
            },
            body: message.body.clone(),
        })
    }

    /// The server accepted, or refused for good (`Answered::Done`).
    pub(super) fn settled(&mut self, id: MessageId, seq: u64, now: Mono) -> Answered {
        let Some((ticket, _)) = self.in_flight.get(&seq).copied() else {
            return Answered::Ignored;
        };
        let Some(message) = self.entries.get(&ticket) else {
            return Answered::Ignored;
        };
        if message.id != Some(id) {
            return Answered::Mismatch;
        }
        self.in_flight.remove(&seq);
        let message = self.entries.remove(&ticket).expect("it was found above");
        self.bytes -= cost(&message);
        self.ready.remove(&ticket);
        let to = message.to;
        let lane = self.lanes.get_mut(&to).expect("a message has a lane");
        lane.in_flight -= 1;
        if let Some(at) = lane.tickets.iter().position(|t| *t == ticket) {
            lane.tickets.remove(at);
        }
        if lane.tickets.is_empty() {
            if let Gate::Closed { until } = lane.gate {
                self.due.remove(&(until, to.clone()));
            }
            self.lanes.remove(&to);
            return Answered::Done(ticket);
        }
        match lane.gate {
            Gate::Trying(tried) if tried == ticket => {
                lane.gate = Gate::Open;
                lane.tries = 0;
                self.ready.extend(lane.tickets.iter().copied());
            }
            Gate::Open => lane.tries = 0,
            _ => self.open_if_due(&to, now),
        }
        Answered::Done(ticket)
    }

    /// The server refused for now: the lane closes.
    pub(super) fn refused(
        &mut self,
        id: MessageId,
        seq: u64,
        now: Mono,
        pauses: Pauses,
        rng: &mut ChaCha8Rng,
    ) -> Answered {
        let Some((ticket, _)) = self.in_flight.get(&seq).copied() else {
            return Answered::Ignored;
        };
        let Some(message) = self.entries.get(&ticket) else {
            return Answered::Ignored;
        };
        if message.id != Some(id) {
            return Answered::Mismatch;
        }
        self.in_flight.remove(&seq);
        let to = message.to.clone();
        let lane = self.lanes.get_mut(&to).expect("a message has a lane");
        lane.in_flight -= 1;
        if !matches!(lane.gate, Gate::Closed { .. }) {
            let until = now + backoff(pauses.min, pauses.max, lane.tries, rng);
            lane.tries = lane.tries.saturating_add(1);
            lane.gate = Gate::Closed { until };
            self.due.insert((until, to.clone()));
            for later in &lane.tickets {
                self.ready.remove(later);
            }
        }
        self.open_if_due(&to, now);
        Answered::Again
    }

    /// Opens lanes whose pause is over.
    pub(super) fn handle_timeout(&mut self, now: Mono) {
        while let Some((until, to)) = self.due.first().cloned() {
            if until > now {
                break;
            }
            self.due.remove(&(until, to.clone()));
            self.open_if_due(&to, now);
        }
    }

    /// When a pause ends.
    pub(super) fn poll_timeout(&self) -> Option<Mono> {
        self.due.first().map(|(until, _)| *until)
    }

    /// The session is over: everything goes out again in the next one.
    pub(super) fn disconnected(&mut self) {
        self.in_flight.clear();
        self.due.clear();
        for lane in self.lanes.values_mut() {
            lane.in_flight = 0;
            lane.tries = 0;
            lane.gate = Gate::Open;
        }
        self.ready.extend(self.entries.keys().copied());
    }

    /// Transmissions that are not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// When the oldest of them went out.
    pub(super) fn oldest_in_flight(&self) -> Option<Mono> {
        self.in_flight.values().next().map(|(_, at)| *at)
    }

    /// Messages that are not answered for good.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Their cost in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, &OutgoingMessage)> {
        self.entries.iter().map(|(ticket, message)| (*ticket, message))
    }

    /// The id of a message, once it has one.
    pub(super) fn id(&self, ticket: Ticket) -> Option<MessageId> {
        self.entries.get(&ticket).and_then(|message| message.id)
    }

    /// The highest ticket given.
    pub(super) fn last_ticket(&self) -> u64 {
        self.last_ticket
    }

    /// Continues the tickets of an earlier run.
    pub(super) fn tickets_from(&mut self, last: u64) {
        self.last_ticket = self.last_ticket.max(last);
    }

    fn open_if_due(&mut self, to: &UserId, now: Mono) {
        let Some(lane) = self.lanes.get_mut(to) else {
            return;
        };
        let Gate::Closed { until } = lane.gate else {
            return;
        };
        if until > now || lane.in_flight > 0 {
            return;
        }
        self.due.remove(&(until, to.clone()));
        if let Some(first) = lane.tickets.front() {
            lane.gate = Gate::Trying(*first);
            self.ready.insert(*first);
        }
    }
}

/// What a message counts in the limit of bytes.
pub(super) fn cost(message: &OutgoingMessage) -> usize {
    message.body.len() + message.trace.len() + MESSAGE_COST
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    const PAUSES: Pauses = Pauses {
        min: Duration::from_millis(100),
        max: Duration::from_secs(1),
    };

    struct Rig {
        outbox: Outbox,
        now: Mono,
        ids: u8,
        rng: ChaCha8Rng,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                outbox: Outbox::default(),
                now: Mono(0),
                ids: 0,
                rng: ChaCha8Rng::seed_from_u64(1),
            }
        }
        fn push(&mut self, to: &str, body: &'static [u8]) -> Ticket {
            self.ids += 1;
            self.outbox.push(OutgoingMessage {
                id: Some(MessageId::v7(1, [self.ids; 10])),
                ..OutgoingMessage::new(UserId::new(to).unwrap(), body)
            })
        }
        fn sent(&mut self) -> Vec<Send> {
            let mut sent = Vec::new();
            while let Some(send) = self.outbox.next(self.now, 100) {
                sent.push(send);
            }
            sent
        }
        fn refuse(&mut self, send: &Send) -> Answered {
            self.outbox
                .refused(send.id, send.session_seq, self.now, PAUSES, &mut self.rng)
        }
        fn accept(&mut self, send: &Send) -> Answered {
            self.outbox.settled(send.id, send.session_seq, self.now)
        }
        fn wait(&mut self) {
            self.now = self.outbox.poll_timeout().expect("a pause");
            self.outbox.handle_timeout(self.now);
        }
    }

    fn bodies(sent: &[Send]) -> Vec<&[u8]> {
        sent.iter().map(|s| &s.body[..]).collect()
    }

    #[test]
    fn a_refused_message_holds_back_its_lane_alone_and_keeps_its_id() {
        let mut rig = Rig::new();
        rig.push("bob", b"b1");
        rig.push("bob", b"b2");
        rig.push("carol", b"c1");
        let first = rig.sent();
        assert_eq!(bodies(&first), [b"b1", b"b2", b"c1"]);
        assert_eq!(rig.refuse(&first[0]), Answered::Again);
        rig.push("bob", b"b3");
        rig.push("carol", b"c2");
        assert_eq!(bodies(&rig.sent()), [b"c2"]);
        // The pause ends, but b2 is still unanswered: its answer decides who is first.
        rig.wait();
        assert!(rig.sent().is_empty());
        rig.refuse(&first[1]);
        let again = rig.sent();
        assert_eq!(bodies(&again), [b"b1"]);
        assert_eq!(again[0].id, first[0].id);
        assert!(again[0].session_seq > first[1].session_seq);
        assert!(matches!(rig.accept(&again[0]), Answered::Done(_)));
        let rest = rig.sent();
        assert_eq!(bodies(&rest), [b"b2", b"b3"]);
        assert_eq!(rest[0].id, first[1].id);
    }

    #[test]
    fn pauses_grow_until_one_is_accepted() {
        let mut rig = Rig::new();
        rig.push("bob", b"b1");
        rig.push("bob", b"b2");
        let mut last = rig.sent().remove(0);
        for tries in 0..6 {
            let before = rig.now;
            rig.refuse(&last);
            if tries == 0 {
                let blocked = Send {
                    session_seq: last.session_seq + 1,
                    id: MessageId::v7(1, [2; 10]),
                    ..last.clone()
                };
                rig.refuse(&blocked);
            }
            rig.wait();
            let full = Duration::from_millis(100 << tries).min(PAUSES.max);
            assert!(rig.now.since(before) >= full / 2 && rig.now.since(before) <= full);
            last = rig.sent().remove(0);
        }
        rig.accept(&last);
        let last = rig.sent().remove(0);
        let before = rig.now;
        rig.refuse(&last);
        rig.wait();
        assert!(rig.now.since(before) <= PAUSES.min);
    }

    #[test]
    fn a_disconnect_sends_everything_again_in_order_with_the_same_ids() {
        let mut rig = Rig::new();
        for body in [b"1", b"2", b"3"] {
            rig.push("bob", body);
        }
        let first = rig.sent();
        rig.refuse(&first[0]);
        rig.outbox.disconnected();
        assert_eq!(rig.outbox.poll_timeout(), None);
        let again = rig.sent();
        assert_eq!(bodies(&again), [b"1", b"2", b"3"]);
        assert!(first.iter().zip(&again).all(|(a, b)| a.id == b.id));
        assert_eq!(rig.accept(&first[1]), Answered::Ignored);
        for send in &again {
            assert!(matches!(rig.accept(send), Answered::Done(_)));
        }
        assert_eq!((rig.outbox.len(), rig.outbox.bytes()), (0, 0));
        assert!(rig.outbox.lanes.is_empty() && rig.outbox.in_flight.is_empty());
    }

    #[test]
    fn an_answer_that_mixes_up_messages_is_noticed() {
        let mut rig = Rig::new();
        rig.push("bob", b"1");
        rig.push("bob", b"2");
        let sent = rig.sent();
        assert_eq!(
            rig.outbox.settled(sent[0].id, sent[1].session_seq, rig.now),
            Answered::Mismatch
        );
    }
}
