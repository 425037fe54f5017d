//! The client protocol `iris/1`: frames between a client and its edge.
//!
//! A frame on the stream is: length u32 (of what follows), version u8, kind u8, payload. The payload is the fixed header
//! of its kind, the length of the control part u32, the control part in MessagePack (array form), then the body as raw
//! bytes. Integers are big-endian. A [`ServerFrame::Deliver`] carries the stored operation verbatim behind its header, so
//! that the path from sender to recipient neither decodes nor copies a body. `docs/protocol.md` is the page for people.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ids::{Coord, DeviceId, MessageId, Origin, RegionId, Seq, SessionId, UserId};
use super::op::{LoggedOp, MAX_BODY, MAX_TRACE, OpError};
use super::vector::Vector;

/// Version of frames.
pub const WIRE_VERSION: u8 = 1;
/// Largest control part of a client's frame in bytes: a `Hello` whose cursor names `MAX_ORIGINS` origins fits.
pub const MAX_CLIENT_CONTROL: usize = 128 * 1024;
/// Largest frame either side may send, in bytes behind the length: a body, a control part and headers.
pub const MAX_CLIENT_FRAME: usize = MAX_BODY + MAX_CLIENT_CONTROL + 1024;
/// Longest token in bytes.
pub const MAX_TOKEN: usize = 4096;
/// Most users that one `Watch` or `Unwatch` may name.
pub const MAX_WATCH_BATCH: usize = 256;
/// Longest status text in bytes.
pub const MAX_STATUS_TEXT: usize = 256;

/// Kinds of frames.
pub mod kind {
    /// First frame of a client.
    pub const HELLO: u8 = 1;
    /// A message to send.
    pub const SEND: u8 = 2;
    /// What the application consumed.
    pub const ACK: u8 = 3;
    /// Change of the own status.
    pub const SET_STATUS: u8 = 4;
    /// Subscribe to users' presence.
    pub const WATCH: u8 = 5;
    /// End such subscriptions.
    pub const UNWATCH: u8 = 6;
    /// Round trip.
    pub const PING: u8 = 7;
    /// Orderly end of a session.
    pub const BYE: u8 = 8;
    /// Answer to `PROBE`.
    pub const PROBE_REPLY: u8 = 9;
    /// Answer to `HELLO`.
    pub const WELCOME: u8 = 65;
    /// A message is durable.
    pub const ACCEPTED: u8 = 66;
    /// A message was refused, or its fate is not known.
    pub const REJECTED: u8 = 67;
    /// A message for this device.
    pub const DELIVER: u8 = 68;
    /// Messages that are gone.
    pub const HOLE: u8 = 69;
    /// A watched user's presence.
    pub const PRESENCE: u8 = 70;
    /// Go to another endpoint.
    pub const GO_AWAY: u8 = 71;
    /// Answer to `PING`.
    pub const PONG: u8 = 72;
    /// Why the connection ends.
    pub const ERROR: u8 = 73;
    /// Is the client there?
    pub const PROBE: u8 = 74;
    /// What comes before what another region has.
    pub const AFTER: u8 = 75;
}

/// Why a frame does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A version that this build does not speak.
    #[error("frame version {0}; expected {WIRE_VERSION}")]
    Version(u8),
    /// A kind that the receiving side does not know.
    #[error("frame kind {0} is not known")]
    Kind(u8),
    /// Shorter than its headers.
    #[error("frame kind {kind} of {len} bytes is cut short")]
    Short {
        /// The kind.
        kind: u8,
        /// Bytes at hand.
        len: usize,
    },
    /// A part is over its limit.
    #[error("{what} of {len} bytes is over its limit of {max}")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The control part does not decode.
    #[error("control part of frame kind {kind} does not decode: {reason}")]
    Malformed {
        /// The kind.
        kind: u8,
        /// What the decoder said.
        reason: String,
    },
    /// Bytes stand behind the end of a frame that has no body.
    #[error("frame kind {kind} has {len} bytes behind its end")]
    Trailing {
        /// The kind.
        kind: u8,
        /// How many.
        len: usize,
    },
    /// A delivered operation is damaged.
    #[error(transparent)]
    Op(#[from] OpError),
}

/// Capability of a session that sends and watches and receives nothing: its device is not registered, holds nothing back in
/// the user's inbox, and is given no messages.
pub const SENDS_ONLY: u64 = 1;
/// Capability of a session in another region than its client prefers: it may be told by [`ServerFrame::GoAway`] with
/// [`Code::Restored`] that a region takes sessions again, and goes there if it is the one.
pub const AWAY: u64 = 2;
/// Capability of a session whose client takes [`ServerFrame::After`] along when it is told to go to another region (R22).
pub const MOVES_IN_ORDER: u64 = 4;
/// Origins in [`Hello::after`] at most: those of one region, which are few.
pub const MAX_AFTER: usize = 64;

/// Why a message was refused, a session ended, or a connection closed. The number goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u16", from = "u16")]
pub enum Code {
    /// The fate of the message is not known: send it again with the same id.
    Unknown,
    /// Try again later, same id.
    Overloaded,
    /// The part that must decide cannot be reached or is recovering: try again, same id.
    Unavailable,
    /// An earlier message of this session to this recipient was refused retryably: send again in order.
    Blocked,
    /// The id was used for another message.
    IdReused,
    /// The time in the id lies before the window of 7 days.
    IdTooOld,
    /// The time in the id lies over an hour ahead.
    IdInFuture,
    /// The id is not a UUIDv7.
    IdMalformed,
    /// The recipient's inbox is full.
    InboxFull,
    /// The body is longer than `Welcome` allows.
    TooLarge,
    /// The session sequence does not rise.
    OutOfOrder,
    /// More messages in flight than `Welcome` allows: try again, same id.
    TooManyInFlight,
    /// Faster than the limit for this user: try again later, same id.
    RateLimited,
    /// The token is malformed, wrongly signed, expired, or not for this service.
    Unauthorized,
    /// The frame is malformed or comes out of turn.
    Protocol,
    /// Protocol or frame version not spoken here.
    Version,
    /// The user has as many devices as allowed.
    TooManyDevices,
    /// More watches than allowed.
    TooManyWatches,
    /// A newer session of the same device took over; do not reconnect by yourself.
    Superseded,
    /// The node drains or stops, or its region is evacuated: go elsewhere.
    Draining,
    /// No `Hello`, or nothing at all, for too long.
    Timeout,
    /// The session ended because its region's store was lost or restored. Reserved: no server sends it yet.
    SessionLost,
    /// The store of the region is full.
    StoreFull,
    /// Something failed inside; details are in the server's log.
    Internal,
    /// A region takes sessions again, the first of those named. Only for sessions that are [`AWAY`]: one whose client
    /// prefers that region goes there, others stay.
    Restored,
    /// A code of a later version.
    Other(u16),
}

const CODES: [(Code, u16); 25] = [
    (Code::Unknown, 1),
    (Code::Overloaded, 2),
    (Code::Unavailable, 3),
    (Code::Blocked, 4),
    (Code::StoreFull, 5),
    (Code::TooManyInFlight, 6),
    (Code::RateLimited, 7),
    (Code::IdReused, 20),
    (Code::IdTooOld, 21),
    (Code::IdInFuture, 22),
    (Code::IdMalformed, 23),
    (Code::InboxFull, 24),
    (Code::TooLarge, 25),
    (Code::OutOfOrder, 26),
    (Code::Unauthorized, 40),
    (Code::Protocol, 41),
    (Code::Version, 42),
    (Code::TooManyDevices, 43),
    (Code::TooManyWatches, 44),
    (Code::Superseded, 60),
    (Code::Draining, 61),
    (Code::Timeout, 62),
    (Code::SessionLost, 63),
    (Code::Internal, 64),
    (Code::Restored, 65),
];

impl From<Code> for u16 {
    fn from(code: Code) -> u16 {
        if let Code::Other(number) = code {
            return number;
        }
        CODES
            .iter()
            .find(|(known, _)| *known == code)
            .map_or(0, |(_, number)| *number)
    }
}

impl From<u16> for Code {
    fn from(number: u16) -> Code {
        CODES
            .iter()
            .find(|(_, known)| *known == number)
            .map_or(Code::Other(number), |(code, _)| *code)
    }
}

impl Code {
    /// Whether the same message may be sent again with the same id (numbers below 20).
    pub fn retryable(self) -> bool {
        u16::from(self) < 20 && u16::from(self) != 0
    }

    /// Every code and its number.
    pub fn all() -> impl Iterator<Item = (Code, u16)> {
        CODES.iter().copied()
    }
}

/// What a user is, as far as a device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Status {
    /// Not connected.
    Offline,
    /// Connected, not at the device.
    Away,
    /// Connected, not to be disturbed.
    Dnd,
    /// Connected and there.
    #[default]
    Online,
}

impl From<Status> for u8 {
    fn from(status: Status) -> u8 {
        status as u8
    }
}

impl TryFrom<u8> for Status {
    type Error = String;
    fn try_from(number: u8) -> Result<Status, String> {
        [Status::Offline, Status::Away, Status::Dnd, Status::Online]
            .get(usize::from(number))
            .copied()
            .ok_or_else(|| format!("{number} is not a status; expected 0 to 3"))
    }
}

/// First frame of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// A JWT; its `sub` is the user.
    pub token: String,
    /// The device.
    pub device: DeviceId,
    /// Bits of optional features: [`SENDS_ONLY`], [`AWAY`], [`MOVES_IN_ORDER`]. Others are ignored.
    pub capabilities: u64,
    /// What this device consumed, as far as it remembers (R17).
    pub cursor: Vector,
    /// The last connect epoch that it remembers; 0 = none.
    pub connect_epoch: u64,
    /// Initial status.
    pub status: Status,
    /// Initial status text, at most [`MAX_STATUS_TEXT`] bytes.
    pub text: String,
    /// Name and version of the client library, for logs.
    pub agent: String,
    /// A random number made together with what the client remembers, and lost with it; 0 = not told, as by clients that
    /// leave the field out. Only under the same number are two connect epochs those of one count.
    #[serde(default)]
    pub memory: u64,
    /// As a server said with [`ServerFrame::After`] before it told the client to go: what is older comes first (R22). At most
    /// [`MAX_AFTER`] origins; left out where it is empty.
    #[serde(default, skip_serializing_if = "Vector::is_empty")]
    pub after: Vector,
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Made by the sender, UUIDv7 with the server's time.
    pub id: MessageId,
    /// Rises within a session; a retry takes a new one.
    pub session_seq: u64,
    /// The rest.
    pub control: SendControl,
    /// The body.
    pub body: Bytes,
}

/// The control part of [`Send`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendControl {
    /// Recipient.
    pub to: UserId,
    /// Application's kind of content.
    pub kind: u16,
    /// Milliseconds it is worth delivering, from when the edge takes it; 0 = no limit (R18).
    pub ttl_ms: u64,
    /// Trace context, at most [`MAX_TRACE`] bytes.
    #[serde(with = "serde_bytes")]
    pub trace: Vec<u8>,
}

/// A frame from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// First frame.
    Hello(Box<Hello>),
    /// A message.
    Send(Send),
    /// Consumed, cumulative per origin, in delivery order (R14).
    Ack(Vec<Coord>),
    /// New status of this session.
    SetStatus {
        /// The status.
        status: Status,
        /// At most [`MAX_STATUS_TEXT`] bytes.
        text: String,
    },
    /// Subscribe.
    Watch(Vec<UserId>),
    /// Unsubscribe.
    Unwatch(Vec<UserId>),
    /// Round trip.
    Ping(u64),
    /// Orderly end.
    Bye,
    /// Answer to [`ServerFrame::Probe`], at once and with its nonce.
    ProbeReply(u64),
}

/// What a server allows this session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLimits {
    /// Largest body in bytes.
    pub max_body: u32,
    /// Messages sent and not yet answered.
    pub sends_in_flight: u32,
    /// Watched users.
    pub watches: u32,
    /// Seconds without a frame of the client after which the server closes the session, with [`Code::Timeout`].
    pub idle_seconds: u32,
}

/// The endpoints of a region for clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionEndpoints {
    /// The region.
    pub region: RegionId,
    /// `host:port` each.
    pub endpoints: Vec<String>,
}

/// Answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The session.
    pub session: SessionId,
    /// To be remembered and given with the next `Hello`.
    pub connect_epoch: u64,
    /// Unix milliseconds at the server: ids are made with this clock.
    pub server_ms: u64,
    /// The region that serves.
    pub region: RegionId,
    /// The node that serves.
    pub node: String,
    /// What is allowed.
    pub limits: ClientLimits,
    /// Where to go when this endpoint fails, the own region first.
    pub regions: Vec<RegionEndpoints>,
    /// To here every region has applied the user's log: what the client remembers of consumed messages at or below may
    /// be forgotten (R15).
    pub stable: Vector,
}

/// How durable a message was when it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// In the store of the region.
    Region,
    /// There and in at least one other region.
    Geo,
}

/// A message is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The message.
    pub id: MessageId,
    /// As sent.
    pub session_seq: u64,
    /// Where it stands in the recipient's log.
    pub at: Coord,
    /// Whether it had been accepted before.
    pub duplicate: bool,
    /// What was reached.
    pub durability: Durability,
}

/// A message was refused, or its fate is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The message.
    pub id: MessageId,
    /// As sent.
    pub session_seq: u64,
    /// Why.
    pub code: Code,
    /// For people.
    pub detail: String,
    /// Unix milliseconds at the server, for ids out of the window.
    pub server_ms: u64,
}

/// Why messages are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HoleReason {
    /// They were removed once every device that was known then had consumed them.
    BeforeRegistration,
    /// Their time to live passed.
    Expired,
    /// The inbox overflowed.
    Overflow,
}

/// Messages that are gone (R18).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// Of this origin.
    pub origin: Origin,
    /// From this sequence.
    pub from: Seq,
    /// To this one, inclusive.
    pub to: Seq,
    /// Why.
    pub reason: HoleReason,
    /// How many messages, 0 where that is not known.
    pub count: u64,
}

/// A watched user's presence, over all devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceEvent {
    /// The user.
    pub user: UserId,
    /// The best over devices that can be told.
    pub status: Status,
    /// Text of that device.
    pub text: String,
    /// Unix milliseconds: when that device's session began; 0 where there is none.
    pub since_ms: u64,
    /// The region of that device, where there is one.
    pub region: Option<RegionId>,
    /// Set where the only devices not offline are in a region out of reach: since when, unix milliseconds.
    pub unreachable_since_ms: Option<u64>,
    /// Devices that are not offline.
    pub devices: u32,
}

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    /// The session stands.
    Welcome(Box<Welcome>),
    /// A message is durable.
    Accepted(Accepted),
    /// A message is refused or its fate not known.
    Rejected(Rejected),
    /// A message.
    Deliver {
        /// Its coordinates.
        at: Coord,
        /// Envelope and body.
        op: LoggedOp,
    },
    /// Messages are gone.
    Hole(Hole),
    /// Presence of a watched user.
    Presence(Box<PresenceEvent>),
    /// Comes before [`ServerFrame::GoAway`], to sessions that announce [`MOVES_IN_ORDER`]: to here this region took messages for
    /// the user's shard. A region in which the client names it is to give it what is older first (R22).
    After(Vector),
    /// Go to another endpoint.
    GoAway {
        /// Why.
        code: Code,
        /// Where to.
        regions: Vec<RegionEndpoints>,
    },
    /// Answer to `Ping`.
    Pong {
        /// As sent.
        nonce: u64,
        /// Unix milliseconds at the server.
        server_ms: u64,
    },
    /// The connection ends.
    Error {
        /// Why.
        code: Code,
        /// For people.
        detail: String,
    },
    /// Is the client there? It answers with [`ClientFrame::ProbeReply`] within 2 s, or its session may end.
    Probe {
        /// To be sent back.
        nonce: u64,
    },
}

impl ClientFrame {
    /// Appends the whole frame, length included.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            ClientFrame::Hello(hello) => frame(out, kind::HELLO, &[], hello, &[]),
            ClientFrame::Send(send) => {
                let mut header = [0; 24];
                header[..16].copy_from_slice(&send.id.0);
                header[16..].copy_from_slice(&send.session_seq.to_be_bytes());
                frame(out, kind::SEND, &header, &send.control, &send.body);
            }
            ClientFrame::Ack(coords) => frame(out, kind::ACK, &[], coords, &[]),
            ClientFrame::SetStatus { status, text } => {
                frame(out, kind::SET_STATUS, &[], &(status, text), &[])
            }
            ClientFrame::Watch(users) => frame(out, kind::WATCH, &[], users, &[]),
            ClientFrame::Unwatch(users) => frame(out, kind::UNWATCH, &[], users, &[]),
            ClientFrame::Ping(nonce) => frame(out, kind::PING, &nonce.to_be_bytes(), &(), &[]),
            ClientFrame::Bye => frame(out, kind::BYE, &[], &(), &[]),
            ClientFrame::ProbeReply(nonce) => frame(out, kind::PROBE_REPLY, &nonce.to_be_bytes(), &(), &[]),
        }
    }

    /// Decodes what stands behind the length: `kind` and `payload` as the framing layer split them.
    ///
    /// # Errors
    /// [`WireError`]; limits are judged before anything is allocated.
    pub fn decode(kind: u8, payload: Bytes) -> Result<ClientFrame, WireError> {
        Ok(match kind {
            kind::HELLO => {
                let hello: Hello = Parts::split(kind, payload, 0)?.only_control()?;
                limit("token", hello.token.len(), MAX_TOKEN)?;
                limit("status text", hello.text.len(), MAX_STATUS_TEXT)?;
                limit("agent", hello.agent.len(), MAX_STATUS_TEXT)?;
                limit("positions of another region", hello.after.len(), MAX_AFTER)?;
                ClientFrame::Hello(Box::new(hello))
            }
            kind::SEND => {
                let parts = Parts::split(kind, payload, 24)?;
                let control: SendControl = parts.control()?;
                limit("trace context", control.trace.len(), MAX_TRACE)?;
                limit("body", parts.body.len(), MAX_BODY)?;
                ClientFrame::Send(Send {
                    id: MessageId(parts.header[..16].try_into().expect("16 bytes")),
                    session_seq: parts.number(16),
                    control,
                    body: parts.body,
                })
            }
            kind::ACK => {
                let coords: Vec<Coord> = Parts::split(kind, payload, 0)?.only_control()?;
                limit("acknowledgements", coords.len(), super::vector::MAX_ORIGINS)?;
                ClientFrame::Ack(coords)
            }
            kind::SET_STATUS => {
                let (status, text): (Status, String) = Parts::split(kind, payload, 0)?.only_control()?;
                limit("status text", text.len(), MAX_STATUS_TEXT)?;
                ClientFrame::SetStatus { status, text }
            }
            kind::WATCH | kind::UNWATCH => {
                let users: Vec<UserId> = Parts::split(kind, payload, 0)?.only_control()?;
                limit("list of users", users.len(), MAX_WATCH_BATCH)?;
                if kind == kind::WATCH {
                    ClientFrame::Watch(users)
                } else {
                    ClientFrame::Unwatch(users)
                }
            }
            kind::PING => ClientFrame::Ping(nonce(kind, payload)?),
            kind::BYE => {
                Parts::split(kind, payload, 0)?.only_control::<()>()?;
                ClientFrame::Bye
            }
            kind::PROBE_REPLY => ClientFrame::ProbeReply(nonce(kind, payload)?),
            other => return Err(WireError::Kind(other)),
        })
    }
}

impl ServerFrame {
    /// Appends the whole frame, length included. The bytes of a delivered operation are copied once, into the buffer
    /// that is written to the connection.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            ServerFrame::Welcome(welcome) => frame(out, kind::WELCOME, &[], welcome, &[]),
            ServerFrame::Accepted(accepted) => {
                let mut header = [0; 42];
                header[..16].copy_from_slice(&accepted.id.0);
                header[16..24].copy_from_slice(&accepted.session_seq.to_be_bytes());
                header[24..32].copy_from_slice(&accepted.at.origin.0.to_be_bytes());
                header[32..40].copy_from_slice(&accepted.at.seq.to_be_bytes());
                header[40] = u8::from(accepted.duplicate);
                header[41] = match accepted.durability {
                    Durability::Region => 0,
                    Durability::Geo => 1,
                };
                frame(out, kind::ACCEPTED, &header, &(), &[]);
            }
            ServerFrame::Rejected(rejected) => {
                let mut header = [0; 24];
                header[..16].copy_from_slice(&rejected.id.0);
                header[16..].copy_from_slice(&rejected.session_seq.to_be_bytes());
                let control = (rejected.code, &rejected.detail, rejected.server_ms);
                frame(out, kind::REJECTED, &header, &control, &[]);
            }
            ServerFrame::Deliver { at, op } => {
                let len = 2 + 16 + op.len();
                out.reserve(4 + len);
                out.put_u32(len as u32);
                out.put_u8(WIRE_VERSION);
                out.put_u8(kind::DELIVER);
                out.put_u64(at.origin.0);
                out.put_u64(at.seq);
                out.put_slice(op.bytes());
            }
            ServerFrame::Hole(hole) => frame(out, kind::HOLE, &[], hole, &[]),
            ServerFrame::Presence(event) => frame(out, kind::PRESENCE, &[], event, &[]),
            ServerFrame::After(after) => frame(out, kind::AFTER, &[], after, &[]),
            ServerFrame::GoAway { code, regions } => frame(out, kind::GO_AWAY, &[], &(code, regions), &[]),
            ServerFrame::Pong { nonce, server_ms } => {
                let mut header = [0; 16];
                header[..8].copy_from_slice(&nonce.to_be_bytes());
                header[8..].copy_from_slice(&server_ms.to_be_bytes());
                frame(out, kind::PONG, &header, &(), &[]);
            }
            ServerFrame::Error { code, detail } => frame(out, kind::ERROR, &[], &(code, detail), &[]),
            ServerFrame::Probe { nonce } => frame(out, kind::PROBE, &nonce.to_be_bytes(), &(), &[]),
        }
    }

    /// Decodes what stands behind the length: `kind` and `payload` as the framing layer split them.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(kind: u8, payload: Bytes) -> Result<ServerFrame, WireError> {
        Ok(match kind {
            kind::WELCOME => ServerFrame::Welcome(Parts::split(kind, payload, 0)?.only_control()?),
            kind::ACCEPTED => {
                let parts = Parts::split(kind, payload, 42)?;
                let accepted = Accepted {
                    id: MessageId(parts.header[..16].try_into().expect("16 bytes")),
                    session_seq: parts.number(16),
                    at: Coord {
                        origin: Origin(parts.number(24)),
                        seq: parts.number(32),
                    },
                    duplicate: parts.header[40] != 0,
                    durability: if parts.header[41] == 0 {
                        Durability::Region
                    } else {
                        Durability::Geo
                    },
                };
                parts.only_control::<()>()?;
                ServerFrame::Accepted(accepted)
            }
            kind::REJECTED => {
                let parts = Parts::split(kind, payload, 24)?;
                let id = MessageId(parts.header[..16].try_into().expect("16 bytes"));
                let session_seq = parts.number(16);
                let (code, detail, server_ms) = parts.only_control()?;
                ServerFrame::Rejected(Rejected {
                    id,
                    session_seq,
                    code,
                    detail,
                    server_ms,
                })
            }
            kind::DELIVER => {
                if payload.len() < 16 {
                    return Err(WireError::Short {
                        kind,
                        len: payload.len(),
                    });
                }
                let number = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("8 bytes"));
                let at = Coord {
                    origin: Origin(number(0)),
                    seq: number(8),
                };
                ServerFrame::Deliver {
                    at,
                    op: LoggedOp::from_bytes(payload.slice(16..))?,
                }
            }
            kind::HOLE => ServerFrame::Hole(Parts::split(kind, payload, 0)?.only_control()?),
            kind::PRESENCE => ServerFrame::Presence(Parts::split(kind, payload, 0)?.only_control()?),
            kind::AFTER => ServerFrame::After(Parts::split(kind, payload, 0)?.only_control()?),
            kind::GO_AWAY => {
                let (code, regions) = Parts::split(kind, payload, 0)?.only_control()?;
                ServerFrame::GoAway { code, regions }
            }
            kind::PONG => {
                let parts = Parts::split(kind, payload, 16)?;
                let (nonce, server_ms) = (parts.number(0), parts.number(8));
                parts.only_control::<()>()?;
                ServerFrame::Pong { nonce, server_ms }
            }
            kind::ERROR => {
                let (code, detail) = Parts::split(kind, payload, 0)?.only_control()?;
                ServerFrame::Error { code, detail }
            }
            kind::PROBE => ServerFrame::Probe {
                nonce: nonce(kind, payload)?,
            },
            other => return Err(WireError::Kind(other)),
        })
    }
}

struct Parts {
    kind: u8,
    header: Bytes,
    control: Bytes,
    body: Bytes,
}

impl Parts {
    fn split(kind: u8, payload: Bytes, header_len: usize) -> Result<Parts, WireError> {
        let short = WireError::Short {
            kind,
            len: payload.len(),
        };
        let Some(length) = payload.get(header_len..header_len + 4) else {
            return Err(short);
        };
        let control_len = u32::from_be_bytes(length.try_into().expect("4 bytes")) as usize;
        limit("control part", control_len, MAX_CLIENT_CONTROL)?;
        let control_at = header_len + 4;
        if payload.len() < control_at + control_len {
            return Err(short);
        }
        Ok(Parts {
            kind,
            header: payload.slice(..header_len),
            control: payload.slice(control_at..control_at + control_len),
            body: payload.slice(control_at + control_len..),
        })
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.header[at..at + 8].try_into().expect("8 bytes"))
    }

    fn control<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        rmp_serde::from_slice(&self.control).map_err(|e| WireError::Malformed {
            kind: self.kind,
            reason: e.to_string(),
        })
    }

    fn only_control<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        if !self.body.is_empty() {
            return Err(WireError::Trailing {
                kind: self.kind,
                len: self.body.len(),
            });
        }
        self.control()
    }
}

/// A frame that holds nothing but a nonce in its header.
fn nonce(kind: u8, payload: Bytes) -> Result<u64, WireError> {
    let parts = Parts::split(kind, payload, 8)?;
    parts.only_control::<()>()?;
    Ok(parts.number(0))
}

fn limit(what: &'static str, len: usize, max: usize) -> Result<(), WireError> {
    if len > max {
        Err(WireError::TooLong { what, len, max })
    } else {
        Ok(())
    }
}

fn frame<T: Serialize>(out: &mut BytesMut, kind: u8, header: &[u8], control: &T, body: &[u8]) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(WIRE_VERSION);
    out.put_u8(kind);
    out.put_slice(header);
    let control_at = out.len();
    out.put_u32(0);
    let mut writer = out.writer();
    rmp_serde::encode::write(&mut writer, control).expect("writing to memory does not fail");
    let control_len = (out.len() - control_at - 4) as u32;
    out[control_at..control_at + 4].copy_from_slice(&control_len.to_be_bytes());
    out.put_slice(body);
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(frame: &ClientFrame) -> Result<ClientFrame, WireError> {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let bytes = out.freeze();
        assert_eq!(
            u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize,
            bytes.len() - 4
        );
        assert_eq!(bytes[4], WIRE_VERSION);
        ClientFrame::decode(bytes[5], bytes.slice(6..))
    }

    fn send(body: Bytes, trace: Vec<u8>) -> ClientFrame {
        let to = UserId::new("bob").unwrap();
        ClientFrame::Send(Send {
            id: MessageId::v7(1, [2; 10]),
            session_seq: 3,
            control: SendControl {
                to,
                kind: 4,
                ttl_ms: 5,
                trace,
            },
            body,
        })
    }

    #[test]
    fn a_send_holds_its_limits() {
        let frame = send(Bytes::from(vec![1; MAX_BODY]), vec![0; MAX_TRACE]);
        assert_eq!(client(&frame), Ok(frame));
        assert!(matches!(
            client(&send(Bytes::from(vec![1; MAX_BODY + 1]), vec![])),
            Err(WireError::TooLong { .. })
        ));
        assert!(matches!(
            client(&send(Bytes::new(), vec![0; MAX_TRACE + 1])),
            Err(WireError::TooLong { .. })
        ));
    }

    #[test]
    fn probes_round_trip() {
        let reply = ClientFrame::ProbeReply(u64::MAX - 1);
        assert_eq!(client(&reply), Ok(reply));
        let probe = ServerFrame::Probe { nonce: 7 };
        let mut out = BytesMut::new();
        probe.encode(&mut out);
        let bytes = out.freeze();
        assert_eq!(ServerFrame::decode(bytes[5], bytes.slice(6..)), Ok(probe));
        assert!(ServerFrame::decode(kind::PROBE, bytes.slice(6..13)).is_err());
    }

    #[test]
    fn codes_are_distinct_and_round_trip() {
        for (code, number) in Code::all() {
            assert_eq!(Code::from(number), code);
            assert_eq!(u16::from(code), number);
        }
        assert_eq!(Code::from(9_999), Code::Other(9_999));
        assert!(Code::Blocked.retryable() && !Code::InboxFull.retryable());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in any::<u8>(), raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ClientFrame::decode(kind, raw.clone().into());
            let _ = ServerFrame::decode(kind, raw.into());
        }

        #[test]
        fn delivered_bytes_are_the_logged_ones(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let envelope = crate::core::op::Envelope {
                to: UserId::new("bob").unwrap(),
                from: UserId::new("alice").unwrap(),
                from_device: DeviceId::new("phone").unwrap(),
                connect_epoch: 1,
                session: SessionId(2),
                session_seq: 3,
                id: MessageId::v7(1, [2; 10]),
                kind: 0,
                expires_ms: 0,
                trace: vec![],
            };
            let op = LoggedOp::encode(&crate::core::op::Op::Append(envelope, body.into()), Default::default());
            let frame = ServerFrame::Deliver { at: Coord { origin: Origin(1), seq: 2 }, op };
            let mut out = BytesMut::new();
            frame.encode(&mut out);
            let bytes = out.freeze();
            prop_assert_eq!(ServerFrame::decode(bytes[5], bytes.slice(6..)), Ok(frame));
        }
    }
}
