//! Delivery to attached sessions: one path for those who are online and those who come back.
//!
//! An attachment is *live* when it was given everything that is committed: then a new entry goes to it straight from the
//! commit. When its window is full it falls *behind*, and what it misses costs nothing but its place in the store; when
//! acknowledgements make room, a page is read from its position, until nothing is left and it is live again. An entry
//! committed while a page is being read makes that reading go on. What is gone is told in its place ([`super::holes`]).

use std::collections::{BTreeMap, VecDeque};

use super::credit::delivery_cost;
use super::holes::{self, Gone};
use super::{AttachId, LaneId, Owner, OwnerOutput, Question, Tag, parts, refusal_code};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::defect::{self, Defect};
use crate::core::ids::{Coord, DeviceId, Epoch, Origin, Seq, SessionId, ShardId, UserId};
use crate::core::msg::{Attach, Delivery, ToEdge};
use crate::core::op::LoggedOp;
use crate::core::retire;
use crate::core::state::{Logged, UserRow};
use crate::core::storage::{InboxPage, StoreError};
use crate::core::time::Now;
use crate::core::vector::{MAX_ORIGINS, Vector};
use crate::core::wire::{Code, Hole};

/// A page of the inbox holds at most so many messages, whatever the window.
const PAGE_ITEMS: usize = 256;

/// Counters of deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryStats {
    /// Messages given to sessions.
    pub given: u64,
    /// Messages to edges that carried those.
    pub messages: u64,
    /// Of those, straight from the commit.
    pub live: u64,
    /// Messages passed silently because another copy was consumed (R15).
    pub passed: u64,
    /// Messages that sessions acknowledged.
    pub acked: u64,
    /// Pages read for sessions.
    pub pages: u64,
    /// Holes told.
    pub holes: u64,
    /// Times that a session waited for room on the lane of its edge.
    pub waited: u64,
    /// Acknowledgements of what was never given, ignored.
    pub bad_acks: u64,
}

/// A session as its owner sees it.
pub(super) struct Attachment {
    id: AttachId,
    pub(super) lane: LaneId,
    pub(super) attach: Attach,
    /// What the device consumed, as far as known here: stored, claimed and acknowledged.
    pub(super) cursor: Vector,
    /// Origins of its claim that are retired.
    retired: Vec<Origin>,
    /// Given through here, or not to be given.
    pub(super) position: Vector,
    /// Given through here before this attachment: acknowledgements for it may still come.
    given_before: Vector,
    flights: BTreeMap<Origin, VecDeque<Flight>>,
    /// What is gone and not told yet.
    pub(super) gone: Gone,
    /// What was found to be expired since the last message that was given, by origin.
    pub(super) expired: BTreeMap<Origin, Hole>,
    pub(super) window_messages: usize,
    window_bytes: usize,
    pub(super) mode: Mode,
    /// Whether it stands among those that wait for room on their lane.
    pub(super) waits: bool,
    /// The cursor as last handed to the store.
    written: Vector,
    /// For a defect: read through here, by time.
    #[cfg(any(test, feature = "defects"))]
    read: crate::core::time::Hlc,
}

struct Flight {
    seq: Seq,
    bytes: usize,
    /// Nothing was sent for it: goes as soon as all before it went.
    passed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The registration is being committed, or the user's row read.
    Registering,
    /// A page is being read; whether something was committed since.
    Reading { more: bool },
    /// Given everything.
    Live,
    /// Something waits for room in the window.
    Behind,
    /// Was moved here from another region, and waits for what that one took before (R22).
    Held,
    /// Is given nothing: it has no device.
    Sends,
}

impl Attachment {
    /// Messages given and not acknowledged, and their bytes.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        (self.window_messages, self.window_bytes)
    }

    /// Whether acknowledgements of what was given before this attachment are still to come.
    pub(super) fn owes(&self) -> bool {
        !self.cursor.includes(&self.given_before)
    }

    /// Whether a defect takes an entry for read because a later one was.
    #[cfg(any(test, feature = "defects"))]
    fn passed_by_time(&mut self, op: &LoggedOp) -> bool {
        let earlier = op.hlc() < self.read;
        self.read = self.read.max(op.hlc());
        earlier && defect::on(Defect::OneReadPosition)
    }

    #[cfg(not(any(test, feature = "defects")))]
    fn passed_by_time(&mut self, _: &LoggedOp) -> bool {
        false
    }

    /// Nothing of these origins comes any more; says whether that made room in the window.
    pub(super) fn forget_retired(&mut self, retired: &BTreeMap<Origin, Seq>) -> bool {
        self.forget_holes(retired);
        for vector in [
            &mut self.cursor,
            &mut self.position,
            &mut self.given_before,
            &mut self.written,
        ] {
            retire::strip(vector, retired);
        }
        let gone = retired.keys().filter_map(|origin| self.flights.remove(origin));
        let gone: Vec<Flight> = gone.flatten().filter(|flight| !flight.passed).collect();
        self.window_messages -= gone.len();
        self.window_bytes -= gone.iter().map(|flight| flight.bytes).sum::<usize>();
        !gone.is_empty()
    }

    pub(super) fn flight(&mut self, at: Coord, bytes: usize, passed: bool) {
        self.position.raise(at.origin, at.seq);
        self.flights.entry(at.origin).or_default().push_back(Flight {
            seq: at.seq,
            bytes,
            passed,
        });
        if !passed {
            self.window_messages += 1;
            self.window_bytes += bytes;
        }
    }

    /// Moves the cursor over what was acknowledged and what was passed behind it.
    pub(super) fn settle(&mut self, origin: Origin, acked: Seq) -> u64 {
        let mut settled = 0;
        let Some(flights) = self.flights.get_mut(&origin) else {
            self.cursor.raise(origin, acked);
            return 0;
        };
        let mut to = acked;
        while let Some(flight) = flights.front() {
            let before_is_open = self.given_before.of(origin) > to.max(self.cursor.of(origin));
            if flight.seq > acked && (!flight.passed || before_is_open) {
                break;
            }
            to = to.max(flight.seq);
            if !flight.passed {
                self.window_messages -= 1;
                self.window_bytes -= flight.bytes;
                settled += 1;
            }
            flights.pop_front();
        }
        if flights.is_empty() {
            self.flights.remove(&origin);
        }
        self.cursor.raise(origin, to);
        settled
    }
}

impl Owner {
    pub(super) fn attach(&mut self, lane: LaneId, mut attach: Attach, now: Now) {
        let id = attach.shard;
        let Some(epoch) = self.open_epoch(id) else {
            return self.tell_edge(lane, ToEdge::NotOwner(vec![id]));
        };
        if self.outlived(lane, &attach) {
            return;
        }
        // Of retired origins nothing is left to consume (R23).
        let mut retired = Vec::new();
        if let Some(shard) = self.shards.get(&id) {
            let named = attach.claim.iter().map(|(origin, _)| origin);
            retired = named
                .filter(|origin| shard.look.retired.contains_key(origin))
                .collect();
            for vector in [
                &mut attach.claim,
                &mut attach.acked,
                &mut attach.given,
                &mut attach.after,
            ] {
                retire::strip(vector, &shard.look.retired);
            }
        }
        let (session, user) = (attach.session, attach.user.clone());
        let receives = attach.receives;
        let mut cursor = Vector::new();
        if receives {
            cursor.merge(&attach.claim);
            cursor.merge(&attach.acked);
        }
        if defect::on(Defect::ClaimClamped)
            && let Some(shard) = self.shards.get(&id)
        {
            cursor = cursor.min(&shard.applied);
        }
        let op = StoreOp::Register {
            shard: id,
            epoch,
            user: user.clone(),
            device: attach.device.clone(),
            claim: cursor.clone(),
        };
        let mut position = cursor.clone();
        position.merge(&attach.given);
        let at = AttachId {
            shard: id,
            session,
            number: self.next_attach,
        };
        self.next_attach += 1;
        let attachment = Attachment {
            id: at,
            lane,
            given_before: attach.given.clone(),
            attach,
            written: Vector::new(),
            cursor,
            retired,
            position,
            flights: BTreeMap::new(),
            gone: Gone::new(),
            expired: BTreeMap::new(),
            window_messages: 0,
            window_bytes: 0,
            waits: false,
            mode: if receives { Mode::Registering } else { Mode::Sends },
            #[cfg(any(test, feature = "defects"))]
            read: crate::core::time::Hlc::default(),
        };
        self.drop_attachment(id, session);
        if let Some(shard) = self.shards.get_mut(&id) {
            shard.sessions.insert(session, Box::new(attachment));
            shard.users.entry(user).or_default().insert(session);
        }
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.sessions.insert((id, session));
        }
        if receives {
            self.out.push_back(OwnerOutput::Commit(op, Tag::Register(at)));
        } else {
            self.welcome(id, session, now);
        }
    }

    /// Writes the session's presence and answers its attach; `false` where it may not stand.
    fn welcome(&mut self, id: ShardId, session: SessionId, now: Now) -> bool {
        let Some(shard) = self.shards.get(&id) else {
            return false;
        };
        let mut stable = shard.stable(&self.config.holders);
        // All of what is retired is stable, and no more of it comes: the client need not name it any more.
        let retired = shard.sessions.get(&session).map(|attachment| &attachment.retired);
        let room = MAX_ORIGINS.saturating_sub(stable.len());
        for origin in retired.into_iter().flatten().take(room) {
            stable.raise(*origin, Seq::MAX);
        }
        let store = shard.recovery.life;
        let lane = shard.sessions.get(&session).map(|attachment| attachment.lane);
        let (Some(lane), Some(connect_epoch)) = (lane, self.admit(id, session, now)) else {
            return false;
        };
        let attached = ToEdge::Attached {
            session,
            connect_epoch,
            stable,
            store,
        };
        self.tell_edge(lane, attached);
        true
    }

    pub(super) fn registered(&mut self, at: AttachId, outcome: Result<Outcome, StoreError>, now: Now) {
        let (id, session) = (at.shard, at.session);
        let Some(attachment) = self.attached(at) else {
            return;
        };
        match outcome {
            Ok(Outcome::Done { .. }) => {
                let user = attachment.attach.user.clone();
                self.out.push_back(OwnerOutput::Read(Question::User(at, user)));
            }
            Ok(Outcome::Refused(Refusal::Fenced { .. })) => self.handle_fenced(id, now),
            Ok(Outcome::Refused(refusal)) => {
                self.end_session(id, session, refusal_code(&refusal).0, &refusal.to_string(), now);
            }
            // The store could not. The client comes again, by its own pauses: to close the shard would make its edge begin
            // a new lane, and all sessions of this owner would be registered again at a store in trouble.
            Ok(other) => {
                let why = format!("the store answered {other:?}");
                self.end_session(id, session, Code::Unavailable, &why, now);
            }
            Err(why) => self.end_session(id, session, Code::Unavailable, &why.to_string(), now),
        }
    }

    pub(super) fn user_read(&mut self, at: AttachId, user: &UserId, row: &UserRow, now: Now) {
        let (id, session) = (at.shard, at.session);
        if self.attached(at).is_none() || !self.welcome(id, session, now) {
            return;
        }
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let Some(attachment) = shard.sessions.get_mut(&session) else {
            return;
        };
        attachment.gone = holes::gone(row, &attachment.attach.device, &shard.applied);
        if let Some(device) = row.devices.get(&attachment.attach.device) {
            attachment.cursor.merge(&device.cursor);
            attachment.position.merge(&device.cursor);
            attachment.written = device.cursor.clone();
        }
        // What the device claims beyond what is applied here is written as that advances (R17).
        let behind = !attachment.written.includes(&attachment.cursor);
        if behind {
            shard.moved.insert(session);
        }
        if !self.hold(at, now) {
            self.read_inbox(id, session, user.clone());
        }
    }

    pub(super) fn inbox_read(&mut self, at: AttachId, page: InboxPage) {
        if self.attached(at).is_none() {
            return;
        }
        let (id, session) = (at.shard, at.session);
        let Some(attachment) = self.attachment(id, session) else {
            return;
        };
        let Mode::Reading { more } = attachment.mode else {
            return;
        };
        attachment.mode = Mode::Live;
        holes::add(&mut attachment.gone, page.holes);
        for entry in page.entries {
            if !self.give(id, session, entry.at, &entry.siblings, &entry.op) {
                break;
            }
        }
        self.tell_expired(id, session, None);
        let live = |owner: &mut Self| {
            let attachment = owner.attachment(id, session);
            attachment.is_some_and(|attachment| attachment.mode == Mode::Live)
        };
        if page.end && live(self) {
            self.tell_holes(id, session, None);
        }
        let Some(attachment) = self.attachment(id, session) else {
            return;
        };
        if attachment.mode == Mode::Live && (more || !page.end) {
            let user = attachment.attach.user.clone();
            self.read_inbox(id, session, user);
        }
    }

    /// A message was committed: give it to those who are live.
    pub(super) fn appended(&mut self, logged: &Logged) {
        let Some(to) = logged.entry.op.recipient() else {
            return;
        };
        let id = logged.shard;
        let Some(sessions) = self.shards.get(&id).and_then(|shard| shard.users.get(to)) else {
            return;
        };
        for session in sessions.iter().copied().collect::<Vec<_>>() {
            let Some(attachment) = self.attachment(id, session) else {
                continue;
            };
            match &mut attachment.mode {
                Mode::Reading { more } => *more = true,
                Mode::Live => {
                    let given = self.give(id, session, logged.coord(), &logged.siblings, &logged.entry.op);
                    self.tell_expired(id, session, None);
                    if given {
                        self.stats.delivery.live += 1;
                    }
                }
                // What is committed before the row and the inbox are read will be found there.
                Mode::Registering | Mode::Behind | Mode::Held | Mode::Sends => {}
            }
        }
    }

    pub(super) fn ack(&mut self, id: ShardId, session: SessionId, at: Coord) {
        let Some(attachment) = self.attachment(id, session) else {
            return;
        };
        let given = attachment.position.of(at.origin);
        let seq = match defect::on(Defect::CursorJumps) {
            true => given,
            false => at.seq.min(given),
        };
        if seq < at.seq {
            self.stats.delivery.bad_acks += 1;
        }
        let Some(attachment) = self.attachment(id, session) else {
            return;
        };
        let settled = attachment.settle(at.origin, seq);
        let waits = attachment.waits;
        self.stats.delivery.acked += settled;
        if let Some(shard) = self.shards.get_mut(&id) {
            shard.moved.insert(session);
        }
        if !waits {
            self.read_on(id, session);
        }
    }

    /// Reads on for a session that is behind and has room in its window; says whether it is and has.
    pub(super) fn read_on(&mut self, id: ShardId, session: SessionId) -> bool {
        let Some(attachment) = self.attachment(id, session) else {
            return false;
        };
        let user = attachment.attach.user.clone();
        let behind = attachment.mode == Mode::Behind && !attachment.owes();
        let (messages, bytes) = (attachment.window_messages, attachment.window_bytes);
        // Half a window of room is worth a page.
        let limits = &self.config.limits;
        let reads = behind && messages <= limits.window_messages / 2 && bytes <= limits.window_bytes / 2;
        if reads {
            self.read_inbox(id, session, user);
        }
        reads
    }

    /// The same device consumed in another region.
    pub(super) fn consumed_elsewhere(
        &mut self,
        id: ShardId,
        user: &UserId,
        device: &DeviceId,
        cursor: &Vector,
    ) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let Some(sessions) = shard.users.get(user) else {
            return;
        };
        for session in sessions {
            let Some(attachment) = shard.sessions.get_mut(session) else {
                continue;
            };
            if attachment.attach.device == *device {
                attachment.written.merge(cursor);
                attachment.cursor.merge(cursor);
            }
        }
    }

    /// Writes the cursors of one part of the shards.
    pub(super) fn flush_cursors(&mut self, part: u32) {
        let unwritten = match part {
            0 => std::mem::take(&mut self.unwritten),
            _ => BTreeMap::new(),
        };
        for ((shard, user, device), cursor) in unwritten {
            // Without the shard its next owner learns the cursor from the device.
            if let Some(epoch) = self.open_epoch(shard) {
                let unwritten = Unwritten {
                    shard,
                    user,
                    device,
                    cursor,
                };
                self.out.push_back(unwritten.op(epoch));
            }
        }
        for (id, shard) in self.shards.iter_mut().filter(|(id, _)| parts::of(**id) == part) {
            let Some(epoch) = shard.open_epoch() else { continue };
            for session in std::mem::take(&mut shard.moved) {
                let Some(attachment) = shard.sessions.get_mut(&session) else {
                    continue;
                };
                if attachment.written.includes(&attachment.cursor) {
                    continue;
                }
                // What is beyond `applied` is clamped by the commit and comes again when that advanced (R17).
                let logged = retire::clamp(&attachment.cursor, &shard.applied);
                if !logged.includes(&attachment.cursor) {
                    shard.moved.insert(session);
                }
                if attachment.written.includes(&logged) {
                    continue;
                }
                attachment.written.merge(&logged);
                self.out.push_back(cursor_op(*id, epoch, attachment));
            }
        }
    }

    pub(super) fn detach(&mut self, id: ShardId, session: SessionId, now: Now) {
        self.end_presence(id, session, now);
        self.drop_attachment(id, session);
    }

    /// Ends a session from our side.
    pub(super) fn end_session(
        &mut self,
        id: ShardId,
        session: SessionId,
        code: Code,
        detail: &str,
        now: Now,
    ) {
        let lane = self
            .shards
            .get(&id)
            .and_then(|shard| shard.sessions.get(&session))
            .map(|a| a.lane);
        self.end_presence(id, session, now);
        self.drop_attachment(id, session);
        if let Some(lane) = lane {
            self.tell_edge(
                lane,
                ToEdge::Ended {
                    session,
                    code,
                    detail: detail.to_owned(),
                },
            );
        }
    }

    /// Forgets an attachment; what it consumed is written first.
    pub(super) fn drop_attachment(&mut self, id: ShardId, session: SessionId) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        shard.moved.remove(&session);
        let Some(attachment) = shard.sessions.remove(&session) else {
            return;
        };
        if let Some(sessions) = shard.users.get_mut(&attachment.attach.user) {
            sessions.remove(&session);
            if sessions.is_empty() {
                shard.users.remove(&attachment.attach.user);
            }
        }
        if let Some(lane) = self.lanes.get_mut(&attachment.lane) {
            lane.sessions.remove(&(id, session));
        }
        if let Some(epoch) = shard.epoch
            && !attachment
                .written
                .includes(&retire::clamp(&attachment.cursor, &shard.applied))
        {
            self.out.push_back(cursor_op(id, epoch, &attachment));
        }
    }

    pub(super) fn tell_edge(&mut self, lane: LaneId, body: ToEdge) {
        if let Some(lane) = self.lanes.get(&lane) {
            self.out.push_back(OwnerOutput::ToEdge {
                to: lane.edge.clone(),
                lane: lane.number,
                body,
            });
        }
    }

    /// The attachment that something was asked for, if it is still the one.
    pub(super) fn attached(&self, at: AttachId) -> Option<&Attachment> {
        let attachment = &**self.shards.get(&at.shard)?.sessions.get(&at.session)?;
        (attachment.id == at).then_some(attachment)
    }

    pub(super) fn attachment(&mut self, id: ShardId, session: SessionId) -> Option<&mut Attachment> {
        Some(&mut **self.shards.get_mut(&id)?.sessions.get_mut(&session)?)
    }

    pub(super) fn read_inbox(&mut self, id: ShardId, session: SessionId, user: UserId) {
        let (messages, bytes) = (
            self.config.limits.window_messages,
            self.config.limits.window_bytes,
        );
        let Some(attachment) = self.attachment(id, session) else {
            return;
        };
        attachment.mode = Mode::Reading { more: false };
        let question = Question::Inbox {
            at: attachment.id,
            user,
            after: attachment.position.clone(),
            max_items: messages
                .saturating_sub(attachment.window_messages)
                .clamp(1, PAGE_ITEMS),
            max_bytes: bytes.saturating_sub(attachment.window_bytes).max(1),
        };
        self.stats.delivery.pages += 1;
        self.out.push_back(OwnerOutput::Read(question));
    }

    /// Gives a message to a session; `false` where its window is full: it is behind then.
    fn give(
        &mut self,
        id: ShardId,
        session: SessionId,
        at: Coord,
        siblings: &[Coord],
        op: &LoggedOp,
    ) -> bool {
        let limits = (
            self.config.limits.window_messages,
            self.config.limits.window_bytes,
        );
        let (most, expired_ms) = (self.config.limits.lane_bytes, self.expired_ms);
        let Some(attachment) = self.attachment(id, session) else {
            return false;
        };
        if attachment.position.covers(at) || attachment.expired_through(at.origin) >= at.seq {
            return true;
        }
        let copied = siblings.iter().any(|other| attachment.cursor.covers(*other));
        let consumed = attachment.cursor.covers(at)
            || (copied && !defect::on(Defect::AllCopies))
            || attachment.passed_by_time(op);
        if !consumed && (1..=expired_ms).contains(&op.expires_ms()) {
            return self.found_expired(id, session, at);
        }
        let told = self.tell_expired(id, session, Some(at.origin));
        if !told || !self.tell_holes(id, session, Some(at)) {
            return false;
        }
        let Some(shard) = self.shards.get_mut(&id) else {
            return false;
        };
        let Some(attachment) = shard.sessions.get_mut(&session) else {
            return false;
        };
        if consumed {
            attachment.flight(at, 0, true);
            let acked = attachment.cursor.of(at.origin);
            attachment.settle(at.origin, acked);
            shard.moved.insert(session);
            self.stats.delivery.passed += 1;
            return true;
        }
        // One message always fits, however large. What the owner before gave still fills the window: by how much is not
        // known here, so that all of it must be acknowledged first.
        let full = attachment.owes()
            || attachment.window_messages >= limits.0
            || (attachment.window_messages > 0 && attachment.window_bytes + op.len() > limits.1);
        if full && !defect::on(Defect::WindowIgnored) {
            attachment.mode = Mode::Behind;
            return false;
        }
        let lane = self.lanes.get_mut(&attachment.lane);
        let no_room = lane.as_ref().is_some_and(|lane| lane.in_flight >= most);
        if no_room && !defect::on(Defect::RoomIgnored) {
            self.wait_for_room(id, session);
            return false;
        }
        attachment.flight(at, op.len(), false);
        self.stats.delivery.given += 1;
        if let Some(lane) = lane {
            lane.in_flight += delivery_cost(op.bytes());
            lane.deliveries.push(Delivery {
                session,
                at,
                op: op.bytes().clone(),
            });
        }
        true
    }
}

fn cursor_op(shard: ShardId, epoch: Epoch, attachment: &Attachment) -> OwnerOutput {
    let unwritten = Unwritten {
        shard,
        user: attachment.attach.user.clone(),
        device: attachment.attach.device.clone(),
        cursor: attachment.cursor.clone(),
    };
    unwritten.op(epoch)
}

/// A cursor on its way to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritten {
    /// The shard of the user.
    pub shard: ShardId,
    /// Whose device.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// What it consumed.
    pub cursor: Vector,
}

impl Unwritten {
    fn op(self, epoch: Epoch) -> OwnerOutput {
        let op = StoreOp::Cursor {
            shard: self.shard,
            epoch,
            user: self.user.clone(),
            device: self.device.clone(),
            cursor: self.cursor.clone(),
        };
        OwnerOutput::Commit(op, Tag::Cursor(self))
    }
}
