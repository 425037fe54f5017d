//! What partitions tell each other: edges and owners within a region, owners and owners between regions.
//!
//! Both conversations run on *lanes*. A lane is opened under a number by the side that asks (the edge; the subscriber of
//! a link) and every message on it carries that number. When either side sees its connection break, or the other restart,
//! the lane is dead: the asking side opens the next one and says again all that still matters; what is late from an older
//! lane is ignored. So a message is never missing in the middle of a conversation.
//!
//! Encoded as: kind-free MessagePack of the message without bodies, the lengths of the bodies, then the bodies as raw
//! bytes, in the order in which the message names them; bodies are sliced, not copied, when decoded.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::holders::HoldersChange;
use super::ids::{Coord, DeviceId, Generation, MessageId, Origin, RegionId, Seq, SessionId, ShardId, UserId};
use super::op::Envelope;
use super::presence::{Comparison, Digest};
use super::snapshot::{Cut, SnapshotPage};
use super::vector::Vector;
use super::wire::{Code, Durability, Hole, PresenceEvent, Status};

/// Largest message between partitions in bytes.
pub const MAX_PEER_MESSAGE: usize = 8 * 1024 * 1024;
/// Most items in one message.
pub const MAX_ITEMS: usize = 4096;

/// A presence record as it travels.
pub type RecordEntry = super::presence::Entry;

/// A message between partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Edge to owner.
    ToOwner {
        /// The lane, numbered by the edge.
        lane: u64,
        /// What.
        body: ToOwner,
    },
    /// Owner to edge.
    ToEdge {
        /// The lane, as the edge numbered it.
        lane: u64,
        /// What.
        body: ToEdge,
    },
    /// Subscriber to provider of a link.
    ToProvider {
        /// The lane, numbered by the subscriber.
        lane: u64,
        /// What.
        body: ToProvider,
    },
    /// Provider to subscriber of a link.
    ToSubscriber {
        /// The lane, as the subscriber numbered it.
        lane: u64,
        /// What.
        body: ToSubscriber,
    },
}

/// From an edge to an owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToOwner {
    /// First on a lane: all that the owner holds of older lanes of this edge is void.
    Open {
        /// The edge's generation.
        generation: Generation,
    },
    /// Sessions of users of the owner's shards.
    Attach(Vec<Attach>),
    /// Every session that this edge has for these shards was attached on this lane: others of this edge have ended.
    Synced(Vec<ShardId>),
    /// Messages to accept, in order per session.
    Deposit(Vec<Deposit>),
    /// What sessions consumed, cumulative per origin.
    Ack(Vec<SessionAck>),
    /// The edge took so many bytes of deliveries off this lane: that much more may be under way.
    Taken {
        /// As [`crate::core::owner::delivery_cost`] counts them.
        bytes: u64,
    },
    /// Sessions that ended.
    Detach(Vec<Detach>),
    /// Sessions whose clients are to be told to go to another region: up to where may they be given what is here? Each is
    /// answered with [`ToEdge::Position`].
    Leave(Vec<Leave>),
    /// Status changes.
    SetStatus(Vec<SetStatus>),
    /// The edge wants the presence of these users, and changes.
    Watch(Vec<UserId>),
    /// It does not any more.
    Unwatch(Vec<UserId>),
    /// Answer to [`ToEdge::Probe`]: the client of this session answered (or did not).
    Probed {
        /// The session.
        session: SessionId,
        /// Its user.
        user: UserId,
        /// Whether its client is there.
        alive: bool,
    },
}

/// A session at an edge, told to the owner of its user's shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The user's shard.
    pub shard: ShardId,
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// Whether it is given messages; otherwise it is not registered.
    pub receives: bool,
    /// The session.
    pub session: SessionId,
    /// The cursor of `Hello`.
    pub claim: Vector,
    /// What the edge delivered in this session.
    pub given: Vector,
    /// What was acknowledged in this session.
    pub acked: Vector,
    /// For a new session, what the client remembers; for a known one, the epoch in force.
    pub connect_epoch: u64,
    /// The epoch of its `Hello`: a client raises it with each, so that the later of two is known as such.
    pub hello_epoch: u64,
    /// The memory of its `Hello`, under which that counts; 0 = not told.
    pub memory: u64,
    /// Whether the session was welcomed already: its epoch stays.
    pub welcomed: bool,
    /// Unix milliseconds at which it connected.
    pub since_ms: u64,
    /// Its status.
    pub status: Status,
    /// Its status text.
    pub text: String,
    /// How often the status changed in this session.
    pub counter: u64,
    /// As the owner told with [`ToEdge::Attached`], 0 before: a session does not outlive its region's store (R4).
    pub store: Origin,
    /// Of a session that was moved here from another region: what that one took, which is given first (R22).
    pub after: Vector,
}

/// A session whose client is to be told to go to another region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// The user's shard.
    pub shard: ShardId,
    /// The session.
    pub session: SessionId,
}

/// A message on its way to the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// The recipient's shard.
    pub shard: ShardId,
    /// Which try of this session at this shard (R21).
    pub attempt: u32,
    /// Envelope; `session_seq` is the number that R21 judges by.
    pub envelope: Envelope,
    /// The body.
    #[serde(skip)]
    pub body: Bytes,
}

/// What a session consumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAck {
    /// The user's shard.
    pub shard: ShardId,
    /// The session.
    pub session: SessionId,
    /// Consumed through here.
    pub at: Coord,
}

/// A session that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// The user's shard.
    pub shard: ShardId,
    /// The session.
    pub session: SessionId,
}

/// A status change of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetStatus {
    /// The user's shard.
    pub shard: ShardId,
    /// The session.
    pub session: SessionId,
    /// Grows with each change of this session.
    pub counter: u64,
    /// The status.
    pub status: Status,
    /// Its text.
    pub text: String,
}

/// From an owner to an edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToEdge {
    /// The owner lost what it knew of this lane: open the next one.
    Reset,
    /// The session stands.
    Attached {
        /// The session.
        session: SessionId,
        /// The epoch in force for it.
        connect_epoch: u64,
        /// To here every region applied the user's log.
        stable: Vector,
        /// Names the life of the shard in its region's store: the origin under which it last began to recover.
        store: Origin,
    },
    /// The session may not stand, or no longer.
    Ended {
        /// The session.
        session: SessionId,
        /// Why.
        code: Code,
        /// For people.
        detail: String,
    },
    /// The epoch of a session was raised, because a terminal record had overtaken it.
    Reasserted {
        /// The session.
        session: SessionId,
        /// The epoch now in force.
        connect_epoch: u64,
    },
    /// Ask the client of this session whether it is there; answer within 2 s with [`ToOwner::Probed`].
    Probe {
        /// The session.
        session: SessionId,
    },
    /// These shards are not served here (any more, or not yet): attach and deposit elsewhere, or here on a new lane. From
    /// then on the edge ignores what this lane says of them, except for what was accepted. An owner that does not answer
    /// each deposit by R21 must not take deposits for them on this lane any more either, when it comes to own them.
    NotOwner(Vec<ShardId>),
    /// What became of deposits.
    Answers(Vec<Answer>),
    /// Messages for sessions, in order.
    Deliver(Vec<Delivery>),
    /// Messages that are gone.
    Hole {
        /// For this session.
        session: SessionId,
        /// Which.
        hole: Hole,
    },
    /// Answer to [`ToOwner::Leave`]: the last of each origin of this region, in the session's shard.
    Position {
        /// The session.
        session: SessionId,
        /// To here this region took messages.
        after: Vector,
    },
    /// Presence of watched users.
    Presence(Vec<PresenceEvent>),
}

/// What became of a deposit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The sender's session.
    pub session: SessionId,
    /// The recipient's shard.
    pub shard: ShardId,
    /// As deposited.
    pub session_seq: u64,
    /// As deposited.
    pub attempt: u32,
    /// The message.
    pub id: MessageId,
    /// What.
    pub verdict: Verdict,
}

/// What an owner says of a deposit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Durable.
    Accepted {
        /// At these coordinates.
        at: Coord,
        /// Whether it had been accepted before.
        duplicate: bool,
        /// What was reached.
        durability: Durability,
    },
    /// Refused; a retryable code asks the edge to send again under a higher attempt, from here on.
    Refused {
        /// Why.
        code: Code,
        /// For people.
        detail: String,
        /// Unix milliseconds at the owner.
        server_ms: u64,
    },
}

/// A message for a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The session.
    pub session: SessionId,
    /// Its coordinates.
    pub at: Coord,
    /// The encoded operation.
    #[serde(skip)]
    pub op: Bytes,
}

/// From the subscriber of a link to its provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToProvider {
    /// First on a lane, in as many messages as it takes: ship these shards from behind what is applied. Later on the
    /// lane it adds shards, widens what is wanted, and raises the positions of shards that it names again.
    Subscribe {
        /// Whether this opens the lane.
        first: bool,
        /// The subscriber's holder set: a different one is refused.
        holders: Vec<RegionId>,
        /// Shards and what is applied of each origin.
        shards: Vec<(ShardId, Vector)>,
        /// Ship only origins of these regions; the others come from elsewhere.
        wanted: Vec<RegionId>,
        /// Whether this is the last message of the subscription.
        last: bool,
    },
    /// Ship nothing more of these shards, and forget their positions.
    Unsubscribe(Vec<ShardId>),
    /// More may be in flight, in bytes of operations.
    Credit(u64),
    /// Only origins of these regions are wanted from now on (a direct link is back); widening takes a `Subscribe`, which
    /// says what is applied by now.
    Want(Vec<RegionId>),
    /// One message of presence records was merged, or of parts compared: another may be in flight.
    PresenceCredit,
    /// What the log no longer has is to come as a snapshot (R11). It ends with its last page, with the lane, or when the
    /// shard is subscribed again.
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// Told again with each page: those of an earlier request may still come.
        number: u64,
    },
    /// Round trip: the other side answers with [`ToSubscriber::Pong`].
    Ping {
        /// As sent back.
        nonce: u64,
        /// The sender's wall clock, unix milliseconds.
        wall_ms: u64,
    },
    /// What is durable here by now of origins of the provider's region, to a provider that said [`ToSubscriber::ReportCopies`].
    /// It counts for accepting messages, never for trimming (R8).
    Copied(Vec<(ShardId, Origin, Seq)>),
}

/// From the provider of a link to its subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSubscriber {
    /// The provider lost what it knew of this lane: open the next one.
    Reset,
    /// The subscription is refused.
    Refused {
        /// Why, for people.
        detail: String,
        /// The change that removed the subscriber's region, where one did: it may not have heard of it, and nobody pulls it any
        /// more (R13).
        removed: Option<HoldersChange>,
    },
    /// Operations, contiguous per shard and origin.
    Ops(Vec<Run>),
    /// What is wanted of this log begins above a floor: a snapshot is needed (R11).
    NeedsSnapshot {
        /// The shard.
        shard: ShardId,
        /// The origin.
        origin: Origin,
        /// The log begins above this.
        floor: Seq,
    },
    /// What the provider has of shards: when they are subscribed first, and when it has recovered (R4).
    Have(Vec<Have>),
    /// A page of a snapshot, in order.
    Snapshot(Box<SnapshotPiece>),
    /// Presence records that changed.
    Presence(Vec<(ShardId, RecordEntry)>),
    /// What the teller's presence comes to. Where it differs from the other side's, they compare further, each on its own lane
    /// as a provider. Not answered with a credit.
    PresenceDigests {
        /// Whether a difference is looked into at once: a link, or a shard on it, is new.
        at_once: bool,
        /// Shards and their digests.
        shards: Vec<(ShardId, Digest)>,
    },
    /// Parts of shards whose digests differ.
    PresenceCompared {
        /// Of the digests in it.
        salt: u32,
        /// What the teller has, by shard.
        parts: Vec<Comparison>,
    },
    /// Presence records that the other side was found to lack.
    PresenceRepair(Vec<(ShardId, RecordEntry)>),
    /// Answer to [`ToProvider::Ping`].
    Pong {
        /// As asked.
        nonce: u64,
        /// The answerer's wall clock, unix milliseconds.
        wall_ms: u64,
    },
    /// On this lane, say at once with [`ToProvider::Copied`] what became durable of origins of the provider's region: it
    /// accepts messages only then.
    ReportCopies,
}

/// What a provider has of a shard, at the time when it says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// The shard.
    pub shard: ShardId,
    /// Whether it recovers itself: then others have more.
    pub recovering: bool,
    /// Applied there.
    pub applied: Vector,
    /// Of that the origins of the subscriber's own region: where it lacks some of it, its store lost it.
    pub yours: Vector,
}

/// A page of a snapshot on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPiece {
    /// The shard.
    pub shard: ShardId,
    /// As asked.
    pub number: u64,
    /// With the first page: what the snapshot goes to.
    pub cut: Option<Cut>,
    /// The page.
    pub page: SnapshotPage,
}

impl SnapshotPiece {
    /// What it counts against the credit of a link, in bytes.
    pub fn weight(&self) -> u64 {
        self.page.weight() + self.cut.as_ref().map_or(0, Cut::weight)
    }
}

/// A run of one origin's log of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The shard.
    pub shard: ShardId,
    /// Whose log.
    pub origin: Origin,
    /// The region of that origin.
    pub region: RegionId,
    /// Sequence of the first operation.
    pub first: Seq,
    /// Running hash before it (R3).
    pub before: u64,
    /// The encoded operations.
    #[serde(skip)]
    pub ops: Vec<Bytes>,
    /// How many they are: kept for decoding.
    pub count: u32,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Shorter than the lengths in it say, or longer.
    #[error("message of {0} bytes does not match the lengths in it")]
    Length(usize),
    /// The control part does not decode.
    #[error("message does not decode: {0}")]
    Malformed(String),
    /// More items than one message may hold.
    #[error("message of {0} items; expected at most {MAX_ITEMS}")]
    TooMany(usize),
}

impl Message {
    /// Encodes into a buffer: control length u32, control, bodies.
    pub fn encode(&mut self) -> Bytes {
        if let Message::ToSubscriber {
            body: ToSubscriber::Ops(runs),
            ..
        } = self
        {
            runs.iter_mut().for_each(|run| run.count = run.ops.len() as u32);
        }
        let mut lengths: Vec<u32> = Vec::new();
        let mut total = 0;
        self.for_each_body(&mut |body| {
            lengths.push(body.len() as u32);
            total += body.len();
        });
        let mut out = BytesMut::with_capacity(total + 64 * lengths.len() + 256);
        out.put_u32(0);
        let mut writer = (&mut out).writer();
        rmp_serde::encode::write(&mut writer, &(&*self, &lengths)).expect("writing to memory does not fail");
        let control = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&control.to_be_bytes());
        self.for_each_body(&mut |body| out.put_slice(body));
        out.freeze()
    }

    /// Decodes; bodies are slices of `bytes`.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &Bytes) -> Result<Message, MessageError> {
        let wrong = || MessageError::Length(bytes.len());
        let control = bytes.get(..4).ok_or_else(wrong)?;
        let control_end = 4 + u32::from_be_bytes(control.try_into().expect("4 bytes")) as usize;
        let control = bytes.get(4..control_end).ok_or_else(wrong)?;
        let (mut message, lengths): (Message, Vec<u32>) =
            rmp_serde::from_slice(control).map_err(|e| MessageError::Malformed(e.to_string()))?;
        if lengths.len() > MAX_ITEMS {
            return Err(MessageError::TooMany(lengths.len()));
        }
        // A run says how many operations it has; the bodies at hand bound that before anything is allocated.
        let claimed: u64 = message.runs().iter().map(|run| u64::from(run.count)).sum();
        if claimed > lengths.len() as u64 {
            return Err(wrong());
        }
        if let Message::ToSubscriber {
            body: ToSubscriber::Ops(runs),
            ..
        } = &mut message
        {
            for run in runs {
                run.ops = vec![Bytes::new(); run.count as usize];
            }
        }
        let mut at = control_end;
        let mut next = lengths.iter();
        let mut bad = false;
        message.for_each_body(&mut |body| match next.next() {
            Some(len) if at + *len as usize <= bytes.len() => {
                *body = bytes.slice(at..at + *len as usize);
                at += *len as usize;
            }
            _ => bad = true,
        });
        if bad || next.next().is_some() || at != bytes.len() {
            Err(wrong())
        } else {
            Ok(message)
        }
    }

    fn runs(&self) -> &[Run] {
        match self {
            Message::ToSubscriber {
                body: ToSubscriber::Ops(runs),
                ..
            } => runs,
            _ => &[],
        }
    }

    fn for_each_body(&mut self, visit: &mut dyn FnMut(&mut Bytes)) {
        match self {
            Message::ToOwner {
                body: ToOwner::Deposit(items),
                ..
            } => {
                items.iter_mut().for_each(|item| visit(&mut item.body));
            }
            Message::ToEdge {
                body: ToEdge::Deliver(items),
                ..
            } => {
                items.iter_mut().for_each(|item| visit(&mut item.op));
            }
            Message::ToSubscriber {
                body: ToSubscriber::Ops(runs),
                ..
            } => {
                runs.iter_mut().flat_map(|run| run.ops.iter_mut()).for_each(visit);
            }
            Message::ToSubscriber {
                body: ToSubscriber::Snapshot(piece),
                ..
            } => {
                let entries = piece
                    .page
                    .users
                    .iter_mut()
                    .flat_map(|user| user.entries.iter_mut());
                entries.for_each(|entry| visit(&mut entry.op));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::presence::digest::Sums;
    use crate::core::presence::{Item, Node};

    fn round_trip(mut message: Message) {
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Ok(message));
        for cut in 0..bytes.len() {
            assert!(Message::decode(&bytes.slice(..cut)).is_err());
        }
    }

    #[test]
    fn bodies_travel_behind_the_control_part() {
        let delivery = |n: u64, op: &'static [u8]| Delivery {
            session: SessionId(n),
            at: Coord {
                origin: Origin(7),
                seq: n,
            },
            op: Bytes::from_static(op),
        };
        round_trip(Message::ToEdge {
            lane: 3,
            body: ToEdge::Deliver(vec![delivery(1, b"one"), delivery(2, b""), delivery(3, b"three")]),
        });
        let run = |ops: &[&'static [u8]]| Run {
            shard: ShardId(4),
            origin: Origin(9),
            region: RegionId::new("eu-west").unwrap(),
            first: 5,
            before: 77,
            ops: ops.iter().map(|op| Bytes::from_static(op)).collect(),
            count: ops.len() as u32,
        };
        round_trip(Message::ToSubscriber {
            lane: 1,
            body: ToSubscriber::Ops(vec![run(&[b"a", b"bc"]), run(&[])]),
        });
        round_trip(Message::ToOwner {
            lane: 1,
            body: ToOwner::Open {
                generation: Generation(4),
            },
        });
    }

    fn compared() -> Message {
        let item = |key| Item {
            key,
            epoch: 300,
            session: 0x8000_0001,
            counter: 2,
        };
        let [node, ..] = Node::ROOT.children().unwrap();
        Message::ToSubscriber {
            lane: 5,
            body: ToSubscriber::PresenceCompared {
                salt: 77,
                parts: vec![Comparison {
                    shard: ShardId(1000),
                    blank: false,
                    sums: vec![(Node::ROOT, Sums::new([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))],
                    lists: vec![(node, 5, vec![item(7)])],
                    items: vec![item(u32::MAX)],
                    wants: vec![1, 70_000],
                }],
            },
        }
    }

    fn hex(message: &mut Message) -> String {
        message
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// These bytes are what nodes of this version say to each other: others need another `PEER_PROTOCOL`.
    #[test]
    fn presence_is_compared_in_these_bytes() {
        let digests = Message::ToSubscriber {
            lane: 5,
            body: ToSubscriber::PresenceDigests {
                at_once: true,
                shards: vec![(
                    ShardId(3),
                    Digest {
                        sum: 0x0102_0304_0506_0708,
                        blank: false,
                    },
                )],
            },
        };
        let (user, device) = (UserId::new("bob").unwrap(), DeviceId::new("phone").unwrap());
        let record = RecordEntry::ended(user, device, 3, SessionId(9)).unwrap();
        let repair = Message::ToSubscriber {
            lane: 5,
            body: ToSubscriber::PresenceRepair(vec![(ShardId(3), record)]),
        };
        for (mut message, bytes) in [(digests, DIGESTS), (compared(), COMPARED), (repair, REPAIR)] {
            assert_eq!(hex(&mut message), bytes);
            round_trip(message);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..200, flip: u8) {
            let _ = Message::decode(&raw.into());
            let mut bytes = compared().encode().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let _ = Message::decode(&bytes.into());
        }
    }

    const DIGESTS: &str = "000000339281ac546f53756273637269626572920581af50726573656e63654469676573747392c391920392cf0102030405060708c290";
    const COMPARED: &str = "000000649281ac546f53756273637269626572920581b050726573656e6365436f6d7061726564924d9196cd03e8c2919201c40c0102030405060708090a0b0c91930405919407cd012cce80000001029194ceffffffffcd012cce80000001029201ce0001117090";
    const REPAIR: &str = "000000339281ac546f53756273637269626572920581ae50726573656e636552657061697291920395a3626f62a570686f6e650309c090";

    #[test]
    fn a_run_cannot_claim_more_operations_than_bodies_follow() {
        let mut message = Message::ToSubscriber {
            lane: 1,
            body: ToSubscriber::Ops(vec![Run {
                shard: ShardId(0),
                origin: Origin(1),
                region: RegionId::new("a").unwrap(),
                first: 1,
                before: 0,
                ops: Vec::new(),
                count: 0,
            }]),
        };
        let honest = message.encode();
        let mut lying = honest.to_vec();
        // The count is the last field of the run, before the empty list of lengths.
        let at = lying.len() - 2;
        assert_eq!(lying[at], 0);
        lying[at] = 127;
        assert!(Message::decode(&lying.into()).is_err());
    }
}
