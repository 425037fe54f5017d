//! The checkers: they read what stores hold and what applications were handed, never what the product says of itself.
//!
//! | invariant | when |
//! |---|---|
//! | accepted => durable at that instant | each `Accepted`, at the owner and at the edge |
//! | accepted as geo => another region had it at that instant, and nothing is lost with one region | each `Accepted` at the owner; the end |
//! | what was durable stays so | each start of a store |
//! | once in effect; in order (R21) | each message that an application handled |
//! | logs contiguous, HLC rising, equal coordinates equal bytes, one epoch | each commit |
//! | shipped => durable at its origin (R5) | each applied operation |
//! | removed => stable, a device, consumed by all (R9, R10) | after commits, by reading rows |
//! | a hole has a cause (R18) | each `Hole`; where a store makes one: nothing expires while clocks disagree (R20) |
//!
//! Order is in [`super::order`], what goes by time in [`super::expiry`], what is read from stores beside commits in
//! [`super::stored`], queues are in [`super::queues`], what must hold in the end is in [`super::settle`].

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use super::case::{Accepts, Case};
use super::device::Device;
use super::expiry::Lives;
use super::moved::Moved;
use super::order::{Blind, Handled};
use super::trace::Micros;
use super::world::{Stage, World};
use crate::client::event::{Incoming, Ticket};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::ids::{Coord, Epoch, MessageId, Origin, RegionId, Seq, ShardId, UserId};
use crate::core::msg::{Message, ToEdge, ToProvider, ToSubscriber, Verdict};
use crate::core::op::{DeviceChange, LoggedOp, Op, kind};
use crate::core::snapshot::Cut;
use crate::core::state::Logged;
use crate::core::storage::{Committed, LogPage, Read, ReadReply};
use crate::core::vector::Vector;
use crate::core::wire::{ClientFrame, Code, Durability, Hole, ServerFrame};

/// A message that an application gave to its client.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    /// The devices that sent it, all of one user.
    pub(super) senders: Vec<usize>,
    pub(super) to: UserId,
    pub(super) at: Micros,
    pub(super) id: Option<MessageId>,
    /// What became of it, as each sender knows; none while its client still tries.
    pub(super) fates: BTreeMap<usize, Fate>,
    /// Where it stands, in every region's log that holds it.
    pub(super) coords: BTreeSet<Coord>,
    /// Whether a sender was told that more than one region has it.
    pub(super) geo: bool,
}

/// What became of a message, as its sender knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Told to be durable.
    Accepted,
    /// Refused for good.
    Rejected(Code),
    /// The device forgot it.
    Abandoned,
}

/// What is durable in a region, as learned from its commits and its starts.
#[derive(Debug, Clone, Default)]
pub(super) struct Durable {
    pub(super) applied: BTreeMap<(ShardId, Origin), Seq>,
    pub(super) floors: BTreeMap<(ShardId, Origin), Seq>,
    pub(super) trimmed: BTreeMap<(UserId, Origin), Seq>,
    pub(super) epochs: BTreeMap<ShardId, Epoch>,
    /// Retired as a snapshot said, and listed here with less (R23).
    pub(super) told: BTreeMap<(ShardId, Origin), Seq>,
    /// Messages for which holes stand, or stood.
    pub(super) holes: BTreeMap<(UserId, Origin), BTreeSet<Seq>>,
}

/// An operation as it was first made durable.
#[derive(Debug)]
pub(super) struct Entry {
    hash: u64,
    /// When it was logged.
    pub(super) logged: Micros,
    pub(super) op: LoggedOp,
    pub(super) number: Option<u64>,
}

impl Entry {
    /// The operation, if it is a confirmation.
    pub(super) fn confirm(&self) -> Option<Op> {
        let confirms = self.op.kind() == kind::CONFIRM;
        self.op.decode().ok().filter(|_| confirms)
    }
}

/// What a device's application saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When its first session stood.
    pub(super) welcomed: Option<Micros>,
    /// Everything it ever handled.
    pub(super) consumed: BTreeSet<u64>,
    /// What it handled since it last forgot everything.
    since: BTreeSet<u64>,
    /// What it handled last of each session since then.
    pub(super) order: Handled,
    pub(super) holes: Vec<Hole>,
}

impl Seen {
    /// Whether it was told that what stands there is gone.
    pub(super) fn told(&self, at: Coord) -> bool {
        let mut holes = self.holes.iter();
        holes.any(|hole| hole.origin == at.origin && (hole.from..=hole.to).contains(&at.seq))
    }
}

/// All that the checkers know.
#[derive(Debug)]
pub(super) struct Checker {
    pub(super) sent: Vec<Sent>,
    pending: BTreeMap<(usize, Ticket), u64>,
    /// What a store refused for good, for a reason that the case may bring about.
    refused: BTreeSet<u64>,
    /// Messages by id: one may go to several users, as several messages.
    ids: BTreeMap<MessageId, BTreeSet<u64>>,
    /// The latest connection on which each device's messages came to an edge.
    came: BTreeMap<(usize, MessageId), u64>,
    pub(super) stores: Vec<Durable>,
    pub(super) ledger: BTreeMap<(ShardId, Origin, Seq), Entry>,
    pub(super) inboxes: BTreeMap<(UserId, Origin), BTreeMap<Seq, u64>>,
    /// Days of dedup records that each region dropped of a shard since all is settled: each once (R16).
    dropped: BTreeSet<(usize, ShardId, u32)>,
    /// What each region ever had: disks are lost, what was confirmed stays so.
    pub(super) ever: Vec<BTreeMap<(ShardId, Origin), Seq>>,
    /// What was lost with disks: above the first sequence, to the second, unless some region turns out to have it.
    pub(super) lost: BTreeMap<(ShardId, Origin), Seq>,
    pub(super) lost_to: BTreeMap<(ShardId, Origin), Seq>,
    /// When regions lost a store, or were lost.
    pub(super) losses: Vec<(Micros, usize)>,
    /// Where backups ended that were restored, of the origins of their own regions.
    pub(super) forgotten: BTreeMap<(ShardId, Origin), Seq>,
    /// What was accepted without knowledge of what was forgotten.
    pub(super) blind: Blind,
    /// What some region retired (R23).
    pub(super) retired: BTreeSet<(ShardId, Origin)>,
    /// By region and shard the holders that are marked, where any ever was (R12).
    pub(super) marked: BTreeMap<(usize, ShardId), BTreeSet<RegionId>>,
    /// Holders that any region ever marked.
    pub(super) ever_marked: BTreeSet<(ShardId, RegionId)>,
    /// By device, what a plan that moved it is to bring first.
    pub(super) moved: BTreeMap<usize, Moved>,
    pub(super) origins: BTreeMap<Origin, RegionId>,
    pub(super) seen: Vec<Seen>,
    /// To where each device is known to have consumed all, or been told.
    pub(super) cursors: Vec<Vector>,
    pub(super) lives: Lives,
    pub(super) users: BTreeMap<ShardId, Vec<UserId>>,
    plan: Case,
    pub(super) stats: super::Stats,
}

impl Checker {
    pub(super) fn new(plan: &Case, devices: &[Device]) -> Self {
        let mut users: BTreeMap<ShardId, Vec<UserId>> = BTreeMap::new();
        for user in &plan.users {
            let user = UserId::new(&user.name).expect("a plain name is valid");
            users
                .entry(plan.sharding().of_user(&user))
                .or_default()
                .push(user);
        }
        Self {
            sent: Vec::new(),
            pending: BTreeMap::new(),
            refused: BTreeSet::new(),
            ids: BTreeMap::new(),
            came: BTreeMap::new(),
            stores: plan.places.iter().map(|_| Durable::default()).collect(),
            dropped: BTreeSet::new(),
            ledger: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            ever: plan.places.iter().map(|_| BTreeMap::new()).collect(),
            lost: BTreeMap::new(),
            lost_to: BTreeMap::new(),
            losses: Vec::new(),
            forgotten: BTreeMap::new(),
            blind: Blind::new(),
            retired: BTreeSet::new(),
            marked: BTreeMap::new(),
            ever_marked: BTreeSet::new(),
            moved: BTreeMap::new(),
            origins: BTreeMap::new(),
            seen: devices.iter().map(|_| Seen::default()).collect(),
            cursors: devices.iter().map(|_| Vector::new()).collect(),
            lives: Lives::default(),
            users,
            plan: plan.clone(),
            stats: super::Stats::default(),
        }
    }

    /// The number of the next message, which stands in its body.
    pub(super) fn next_number(&self) -> u64 {
        self.sent.len() as u64
    }

    /// A device sends message `number`, which others may have sent before under the same id.
    pub(super) fn sent(&mut self, from: usize, to: UserId, ticket: Ticket, at: Micros, number: u64) {
        self.stats.sent += 1;
        self.pending.insert((from, ticket), number);
        if let Some(sent) = self.sent.get_mut(number as usize) {
            sent.senders.push(from);
            return;
        }
        self.sent.push(Sent {
            senders: vec![from],
            to,
            at,
            id: None,
            fates: BTreeMap::new(),
            coords: BTreeSet::new(),
            geo: false,
        });
    }

    /// A message comes to an edge: behind itself, where its client sent it again on a later connection.
    pub(super) fn came(&mut self, device: usize, id: MessageId, conn: u64) {
        let latest = self.came.entry((device, id)).or_default();
        self.stats.doubled += u64::from(*latest > conn);
        *latest = (*latest).max(conn);
    }

    /// A device forgot everything: what it had not sent is lost, and it may be handed again what it had.
    pub(super) fn forgot(&mut self, device: usize) {
        let gone: Vec<(usize, Ticket)> = self
            .pending
            .range((device, Ticket(0))..=(device, Ticket(u64::MAX)))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            if let Some(number) = self.pending.remove(&key) {
                self.sent[number as usize].fates.insert(device, Fate::Abandoned);
            }
        }
        self.seen[device].since.clear();
        self.seen[device].order.clear();
    }

    /// Messages that are durable somewhere and that no device has handled.
    pub(super) fn waiting(&self) -> u64 {
        let mut handled: BTreeSet<u64> = BTreeSet::new();
        for seen in &self.seen {
            handled.extend(&seen.consumed);
        }
        let numbers = self.sent.iter().enumerate();
        let waits =
            numbers.filter(|(number, sent)| !sent.coords.is_empty() && !handled.contains(&(*number as u64)));
        waits.count() as u64
    }

    pub(super) fn words(&self, number: u64) -> Vec<String> {
        let sent = &self.sent[number as usize];
        let mut words = vec![format!("#{number} ")];
        words.extend(sent.id.map(|id| id.to_string()));
        words.extend(sent.coords.iter().map(Coord::to_string));
        words
    }

    pub(super) fn shard_of(&self, number: u64) -> ShardId {
        self.plan.sharding().of_user(&self.sent[number as usize].to)
    }

    pub(super) fn is_durable(&self, region: usize, shard: ShardId, at: Coord) -> bool {
        let applied = self.stores[region].applied.get(&(shard, at.origin));
        applied.is_some_and(|seq| *seq >= at.seq)
    }

    /// Whether a region has it or had it before it lost its disk.
    pub(super) fn was_durable(&self, region: usize, shard: ShardId, at: Coord) -> bool {
        let ever = self.ever[region].get(&(shard, at.origin));
        ever.is_some_and(|seq| *seq >= at.seq)
    }

    pub(super) fn now_durable(&mut self, region: usize, shard: ShardId, at: Coord) -> Seq {
        let ever = self.ever[region].entry((shard, at.origin)).or_default();
        *ever = (*ever).max(at.seq);
        self.stores[region]
            .applied
            .insert((shard, at.origin), at.seq)
            .unwrap_or(0)
    }
}

/// The number of a message, from its body.
pub(super) fn number_of(op: &LoggedOp) -> Option<u64> {
    let body = op.body();
    (op.kind() == kind::APPEND).then(|| number_in(&body)).flatten()
}

fn number_in(body: &[u8]) -> Option<u64> {
    body.first_chunk().map(|raw| u64::from_be_bytes(*raw))
}

impl World {
    /// A client sends a message under its id.
    pub(super) fn check_send(&mut self, device: usize, frame: &ClientFrame) {
        let ClientFrame::Send(send) = frame else {
            return;
        };
        let Some(number) = number_in(&send.body) else {
            return;
        };
        let known = self.check.sent[number as usize].id.replace(send.id);
        self.check.ids.entry(send.id).or_default().insert(number);
        let (now, name) = (self.now, self.devices[device].name());
        self.trace.tell(now, || {
            format!("{name} sends #{number} as {} ({})", send.id, send.session_seq)
        });
        if known.is_some_and(|known| known != send.id) {
            let detail = format!("message #{number} of {name} changed its id to {}", send.id);
            self.fail("client ids", detail, self.check.words(number));
        }
    }

    /// A message between partitions leaves: an acceptance in it must be durable here.
    pub(super) fn check_message(&mut self, node: usize, message: &Message) {
        if self.stage == Stage::Silence && !is_ping(message) {
            let detail = format!(
                "{} says {}",
                self.nodes[node].key,
                super::report::message(message)
            );
            self.fail("silence", detail, Vec::new());
        }
        let Message::ToEdge {
            body: ToEdge::Answers(answers),
            ..
        } = message
        else {
            return;
        };
        let region = self.nodes[node].region;
        for answer in answers {
            if let Verdict::Accepted { at, durability, .. } = answer.verdict {
                self.check_durable(region, answer.id, at);
                self.check_durability(region, answer.shard, answer.id, at, durability);
            }
        }
    }

    /// A frame leaves for a client.
    pub(super) fn check_frame(&mut self, node: usize, device: usize, frame: &ServerFrame) {
        if let ServerFrame::Accepted(accepted) = frame {
            let region = self.nodes[node].region;
            // It may have been under way when the disk was lost; and an edge may have been served by another region, which took
            // the message for one of several recipients.
            let numbers = self.check.ids.get(&accepted.id);
            let (regions, most) = match self.plan.limits.fallback_ms {
                0 => (region..region + 1, 1),
                _ => (0..self.stores.len(), usize::MAX),
            };
            let shards = numbers.into_iter().flatten().take(most);
            let mut shards = shards.map(|number| self.check.shard_of(*number));
            let durable = |shard| {
                regions
                    .clone()
                    .any(|region| self.check.was_durable(region, shard, accepted.at))
            };
            if !shards.any(durable) {
                self.check_durable(region, accepted.id, accepted.at);
            }
        }
        self.check_moved(device, frame);
        let quiet = matches!(frame, ServerFrame::Pong { .. });
        if self.stage == Stage::Silence && !quiet {
            let detail = format!(
                "to {}: {}",
                self.devices[device].name(),
                super::report::server_frame(frame)
            );
            self.fail("silence", detail, Vec::new());
        }
    }

    /// A frame of a client leaves.
    pub(super) fn check_client_frame(&mut self, conn: u64, frame: &ClientFrame) {
        if self.stage == Stage::Silence && !matches!(frame, ClientFrame::Ping(_)) {
            let what = super::report::client_frame(frame);
            self.fail("silence", format!("a client says on {conn}: {what}"), Vec::new());
        }
    }

    /// An acceptance says how far the message is safe, and says no more and no less than it may.
    fn check_durability(
        &mut self,
        region: usize,
        shard: ShardId,
        id: MessageId,
        at: Coord,
        durability: Durability,
    ) {
        let name = self.region_name(region).clone();
        let may = match self.plan.accepts {
            Accepts::Region => durability == Durability::Region,
            Accepts::Geo => durability == Durability::Geo,
            Accepts::GeoOrRegion => true,
        };
        if !may {
            let detail = format!("{id} is accepted in {name} at {at} as {durability:?}");
            return self.fail("geo", detail, vec![at.to_string()]);
        }
        let elsewhere =
            (0..self.stores.len()).any(|other| other != region && self.check.was_durable(other, shard, at));
        if durability == Durability::Geo && !elsewhere {
            let detail =
                format!("{id} is accepted in {name} at {at} as Geo, and no other region ever had it");
            self.fail("geo", detail, vec![at.to_string()]);
        }
    }

    fn check_durable(&mut self, region: usize, id: MessageId, at: Coord) {
        let stands = |number: &u64| {
            let shard = self.check.shard_of(*number);
            let entry = self.check.ledger.get(&(shard, at.origin, at.seq));
            entry.is_some_and(|entry| entry.number == Some(*number))
        };
        let numbers = self.check.ids.get(&id);
        let number =
            numbers.and_then(|numbers| numbers.iter().find(|number| stands(number)).or(numbers.first()));
        let Some(number) = number.copied() else {
            return self.fail(
                "durability",
                format!("{id} is accepted, and nobody sent it"),
                Vec::new(),
            );
        };
        let shard = self.check.shard_of(number);
        let name = self.region_name(region).clone();
        let mut words = self.check.words(number);
        words.push(at.to_string());
        if !self.check.is_durable(region, shard, at) {
            let detail = format!("#{number} {id} is accepted in {name} at {at}, which is not durable there");
            return self.fail("durability", detail, words);
        }
        let stored = self
            .check
            .ledger
            .get(&(shard, at.origin, at.seq))
            .and_then(|entry| entry.number);
        if stored != Some(number) {
            let detail = format!("#{number} {id} is accepted in {name} at {at}, where {stored:?} stands");
            return self.fail("durability", detail, words);
        }
        let read = Read::Log {
            shard,
            origin: at.origin,
            after: at.seq - 1,
            max_items: 1,
            max_bytes: 1,
        };
        let Some(engine) = self.engine(region) else {
            return;
        };
        let found = match engine.read(&read) {
            Ok(ReadReply::Log(LogPage::Run { entries, .. })) => match entries.first() {
                Some(entry) => number_of(&entry.op) == Some(number),
                None => self
                    .shard_row(region, shard)
                    .is_some_and(|row| row.retired(at.origin).is_some()),
            },
            // Trimmed: every region has it, which the check of floors proves.
            Ok(ReadReply::Log(LogPage::Trimmed { floor })) => floor >= at.seq,
            _ => false,
        };
        if !found {
            let detail =
                format!("#{number} {id} is accepted in {name} at {at}, and the store does not show it");
            self.fail("durability", detail, words);
        }
    }

    pub(super) fn check_accepted(
        &mut self,
        device: usize,
        ticket: Ticket,
        id: MessageId,
        at: Coord,
        durability: Durability,
    ) {
        let Some(number) = self.check.pending.remove(&(device, ticket)) else {
            let detail = format!(
                "{} hears of {ticket:?} {id} at {at} a second time",
                self.devices[device].name()
            );
            return self.fail("client answers", detail, vec![id.to_string()]);
        };
        self.check.stats.accepted += 1;
        let sent = &mut self.check.sent[number as usize];
        sent.geo |= durability == Durability::Geo;
        sent.fates.insert(device, Fate::Accepted);
    }

    pub(super) fn check_rejected(&mut self, device: usize, ticket: Ticket, code: Code, detail: &str) {
        let Some(number) = self.check.pending.remove(&(device, ticket)) else {
            let detail = format!(
                "{} hears of {ticket:?} a second time",
                self.devices[device].name()
            );
            return self.fail("client answers", detail, Vec::new());
        };
        self.check.stats.rejected += 1;
        self.check.sent[number as usize]
            .fates
            .insert(device, Fate::Rejected(code));
        // The answer to a refusal may be lost with its lane, and what is judged stays so (R21).
        let before = code == Code::OutOfOrder && self.check.refused.contains(&number);
        if before || self.plan.may_refuse(code) {
            return;
        }
        let words = self.check.words(number);
        // Nothing that these clients send deserves a final refusal: ids are fresh, bodies small, inboxes large.
        let detail = format!("#{number} was refused for good: {code:?} {detail}");
        self.fail("refusals have a cause", detail, words);
    }

    /// A message is refused for good for a reason that this case may bring about.
    fn note_refusal(&mut self, op: &StoreOp, outcome: &Outcome) {
        let (StoreOp::Append { body, .. }, Outcome::Refused(refusal)) = (op, outcome) else {
            return;
        };
        let code = match refusal {
            Refusal::IdReused => Code::IdReused,
            Refusal::IdTooOld { .. } => Code::IdTooOld,
            Refusal::IdInFuture { .. } => Code::IdInFuture,
            Refusal::InboxFull { .. } => Code::InboxFull,
            _ => return,
        };
        if self.plan.may_refuse(code) {
            self.check.refused.extend(number_in(body));
        }
    }

    /// An edge closes a connection.
    pub(super) fn check_close(&mut self, device: usize, code: Code, detail: &str) {
        if matches!(
            code,
            Code::Protocol | Code::Unauthorized | Code::TooManyDevices | Code::Internal
        ) {
            let name = self.devices[device].name();
            let detail = format!("{name} is told {code:?}: {detail}");
            self.fail("clients obey the protocol", detail, vec![name]);
        }
    }

    pub(super) fn check_welcome(&mut self, device: usize, region: &RegionId) {
        let now = self.now;
        self.check.stats.sessions += 1;
        self.check.seen[device].welcomed.get_or_insert(now);
        let (node, live) = match self.devices[device].conn.and_then(|conn| self.clients.get(&conn)) {
            Some(client) => (client.node, true),
            None => (0, false),
        };
        let elsewhere = live && self.served_elsewhere(node).is_some();
        self.check.stats.served_elsewhere += u64::from(elsewhere);
        if live && self.region_name(self.nodes[node].region) != region {
            let detail = format!(
                "{} is welcomed by {region} elsewhere",
                self.devices[device].name()
            );
            self.fail("welcome", detail, Vec::new());
        }
    }

    /// The application of a device handled a message.
    pub(super) fn check_consumed(&mut self, device: usize, incoming: &Incoming) {
        let raw = incoming.body.get(..8).and_then(|raw| raw.try_into().ok());
        let name = self.devices[device].name();
        let Some(number) = raw
            .map(u64::from_be_bytes)
            .filter(|number| *number < self.check.next_number())
        else {
            return self.fail(
                "bodies",
                format!("{name} gets a message that nobody sent"),
                vec![name],
            );
        };
        let (now, at) = (self.now, incoming.at);
        self.trace
            .tell(now, || format!("{name} handles #{number} at {at}"));
        self.check.stats.handled += 1;
        let mut words = self.check.words(number);
        words.push(at.to_string());
        let sent = &self.check.sent[number as usize];
        let from = &self.devices[sent.senders[0]].user;
        if sent.to != self.devices[device].user || *from != incoming.from {
            let detail = format!("{name} gets #{number}, which {from} sent to {}", sent.to);
            return self.fail("addresses", detail, words);
        }
        let region = self.check.origins.get(&at.origin).cloned();
        let Some(region) = region else {
            let detail = format!("{name} gets #{number} at {at}, an origin that never became durable");
            return self.fail("ship after commit", detail, words);
        };
        let given_up = self.was_given_up(number);
        let seen = &mut self.check.seen[device];
        seen.consumed.insert(number);
        if !seen.since.insert(number) {
            // It was read in a region that was removed by force, and sent to another: nobody there can know.
            if given_up {
                return;
            }
            let detail = format!("{name} handles #{number} a second time, at {at}");
            return self.fail("once in effect", detail, words);
        }
        self.check_order(device, incoming, number, &region, words);
    }

    /// Whether a shard drops a day of dedup records for the first time. That has its own time, once a day or later where
    /// something was not stable then: it is no answer to anything, and comes to an end.
    fn drops_a_day(&mut self, region: usize, op: &StoreOp, outcome: &Outcome) -> bool {
        match (op, outcome) {
            (StoreOp::DropDedup { shard, day, .. }, Outcome::Done { more: false }) => {
                self.check.dropped.insert((region, *shard, *day))
            }
            _ => false,
        }
    }

    /// A commit is durable.
    pub(super) fn check_commit(&mut self, region: usize, ops: &[StoreOp], committed: &Committed) {
        self.check.stats.commits += 1;
        let mut said: Vec<_> = Vec::new();
        if self.stage == Stage::Silence {
            // What becomes a hole is not told to anybody.
            let quiet = |op: &StoreOp| matches!(op, StoreOp::Expire { .. });
            let all = ops.iter().zip(&committed.outcomes);
            said.extend(all.filter(|(op, outcome)| !quiet(op) && !self.drops_a_day(region, op, outcome)));
        }
        if !said.is_empty() {
            let name = self.region_name(region).clone();
            let what: Vec<String> = said
                .into_iter()
                .map(|(op, outcome)| super::report::commit(op, outcome))
                .collect();
            self.fail(
                "silence",
                format!("{name} commits {}", what.join("; ")),
                Vec::new(),
            );
        }
        for logged in &committed.logged {
            if logged.own && logged.entry.op.kind() == kind::START {
                self.check_start(region, logged);
            }
            self.check_logged(region, logged);
        }
        for (op, outcome) in ops.iter().zip(&committed.outcomes) {
            if let (StoreOp::Merge { shard, cut, page, .. }, Outcome::Done { more: false }) = (op, outcome)
                && page.next.is_none()
            {
                self.check_jumped(region, *shard, cut);
            }
            // Logs are trimmed with the first of its pages.
            if let (StoreOp::Merge { shard, .. }, Outcome::Done { .. }) = (op, outcome) {
                self.note_jumped_floors(region, *shard);
            }
        }
        for (op, outcome) in ops.iter().zip(&committed.outcomes) {
            if let Outcome::Retired(retirement) = outcome {
                self.check_retired(region, op.shard(), &retirement.retired);
            }
            if let Outcome::Marked { marked, .. } = outcome {
                self.note_marked(region, op.shard(), marked);
            }
            self.check_epoch(region, op, outcome);
            self.note_refusal(op, outcome);
        }
        for op in ops {
            match op {
                StoreOp::Expire { shard, user, .. } => self.check_expired(region, *shard, user),
                StoreOp::ApplyRemote { attached, .. } if !attached.is_empty() => {
                    self.check_objected(region, attached, &committed.logged);
                }
                _ => {}
            }
        }
        for logged in &committed.logged {
            if logged.entry.op.kind() == kind::HOLDERS {
                self.note_floors(region, logged.shard);
            }
        }
        // What is stored goes by these operations; reading every row after every commit would be most of a run.
        let mut shards: BTreeMap<ShardId, u64> = BTreeMap::new();
        for op in ops {
            let goes = matches!(op, StoreOp::Trim { .. } | StoreOp::Remove { .. });
            let share = shards.entry(op.shard()).or_default();
            *share = (*share).max(if goes { 500 } else { 20 });
        }
        for (shard, share) in shards {
            if self.rng.chance(share) {
                self.check_removed(region, shard);
            }
        }
    }

    fn check_epoch(&mut self, region: usize, op: &StoreOp, outcome: &Outcome) {
        let epochs = &mut self.check.stores[region].epochs;
        let current = epochs.entry(op.shard()).or_default();
        let wrong = match (op, outcome) {
            (StoreOp::Bump { .. }, Outcome::Bumped { epoch }) => {
                let wrong = *epoch <= *current;
                *current = *epoch;
                wrong
            }
            (_, Outcome::Refused(Refusal::Fenced { .. })) | (StoreOp::Bump { .. }, _) => false,
            (op, _) => op.epoch() != Some(*current),
        };
        if wrong {
            let detail = format!(
                "{} under epoch {}",
                super::report::commit(op, outcome),
                self.check.stores[region].epochs[&op.shard()]
            );
            self.fail("one owner", detail, Vec::new());
        }
    }

    fn check_start(&mut self, region: usize, logged: &Logged) {
        let name = self.region_name(region).clone();
        let wrong = self
            .check
            .wrong_start(region, &name, logged.shard, &logged.entry.op);
        if let Some(detail) = wrong {
            self.fail("HLC rises", detail, vec![logged.coord().to_string()]);
        }
    }

    pub(super) fn check_logged(&mut self, region: usize, logged: &Logged) {
        let (shard, at) = (logged.shard, logged.coord());
        let name = self.region_name(region).clone();
        let number = number_of(&logged.entry.op);
        let mut words = vec![at.to_string()];
        words.extend(number.into_iter().flat_map(|number| self.check.words(number)));
        let before = self.check.now_durable(region, shard, at);
        if before + 1 != at.seq {
            let detail = format!("{name} logs {at} of shard {shard} after {before}");
            return self.fail("contiguous logs", detail, words);
        }
        let hash = xxh3_64(logged.entry.op.bytes());
        let key = (shard, at.origin, at.seq);
        match self.check.ledger.get(&key) {
            Some(_) if logged.own => {
                let detail = format!("{name} gives {at} of shard {shard} a second time");
                return self.fail("equal coordinates, equal bytes", detail, words);
            }
            Some(known) if known.hash != hash => {
                let detail = format!("{name} has other bytes at {at} of shard {shard}");
                return self.fail("equal coordinates, equal bytes", detail, words);
            }
            None if !logged.own => {
                let detail =
                    format!("{name} applies {at} of shard {shard}, which its origin never made durable");
                return self.fail("ship after commit", detail, words);
            }
            Some(_) => return,
            None => {}
        }
        let last = self.check.time_before(shard, at, &logged.entry.op);
        if let Some(last) = last.filter(|last| *last >= logged.entry.op.hlc()) {
            let detail = format!("{name} logs {at} at {:?} after {last:?}", logged.entry.op.hlc());
            return self.fail("HLC rises", detail, words);
        }
        let entry = Entry {
            hash,
            logged: self.now,
            op: logged.entry.op.clone(),
            number,
        };
        self.check.lives.logged(&entry.op);
        self.check.ledger.insert(key, entry);
        self.check
            .origins
            .entry(at.origin)
            .or_insert_with(|| name.clone());
        if let Some(number) = number {
            self.check_appended(region, shard, at, number, words);
        }
        match logged.entry.op.decode() {
            Ok(Op::Cursor { user, device, cursor })
            | Ok(Op::Device {
                user,
                device,
                change: DeviceChange::Register { cursor, .. },
            }) => self.check_cursor(region, at, (&user, &device), &cursor),
            _ => {}
        }
    }

    /// A snapshot was merged: what it covers is as good as applied, and was so at its origin.
    fn check_jumped(&mut self, region: usize, shard: ShardId, cut: &Cut) {
        for (origin, log) in &cut.logs {
            let at = Coord {
                origin: *origin,
                seq: log.seq,
            };
            if !self.check.ledger.contains_key(&(shard, *origin, log.seq)) {
                let name = self.region_name(region);
                let detail =
                    format!("{name} takes a snapshot of shard {shard} to {at}, which was never durable");
                return self.fail("ship after commit", detail, vec![at.to_string()]);
            }
            if !self.check.is_durable(region, shard, at) {
                self.check.now_durable(region, shard, at);
            }
            let floor = self.check.stores[region]
                .floors
                .entry((shard, *origin))
                .or_default();
            *floor = (*floor).max(log.seq);
        }
        self.note_told(region, shard, &cut.retired);
        self.check_confirmed(region, shard, cut);
    }

    fn check_appended(&mut self, region: usize, shard: ShardId, at: Coord, number: u64, words: Vec<String>) {
        let Some(sent) = self.check.sent.get(number as usize) else {
            return self.fail("bodies", format!("{at} is a message that nobody sent"), words);
        };
        let (to, coords) = (sent.to.clone(), sent.coords.clone());
        let twice = coords
            .iter()
            .find(|other| self.check.is_durable(region, shard, **other))
            .copied();
        let name = self.region_name(region).clone();
        self.check.note_blind(region, &name, shard, at);
        let inbox = self.check.inboxes.entry((to, at.origin)).or_default();
        inbox.insert(at.seq, number);
        self.check.sent[number as usize].coords.insert(at);
        if let Some(other) = twice {
            let detail = format!(
                "{} accepts #{number} at {at}, and has it at {other}",
                self.region_name(region)
            );
            self.fail("dedup (R16)", detail, words);
        }
    }
}

/// Whether a message is only a sign of life: digests are said in any case, and answered only where they differ.
fn is_ping(message: &Message) -> bool {
    matches!(
        message,
        Message::ToProvider {
            body: ToProvider::Ping { .. },
            ..
        } | Message::ToSubscriber {
            body: ToSubscriber::Pong { .. } | ToSubscriber::PresenceDigests { .. },
            ..
        }
    )
}

/// The user, device or recipient that an operation is about, for the story.
pub(super) fn about(op: &LoggedOp) -> String {
    match op.decode() {
        Ok(Op::Append(envelope, _)) => format!(
            "#{} {} to {} ({:x}.{})",
            number_of(op).unwrap_or_default(),
            envelope.id,
            envelope.to,
            envelope.session.0,
            envelope.session_seq
        ),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    }
}
