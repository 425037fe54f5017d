//! What an operator may look at inside a partition: plain data, made on request, read-only and bounded.
//!
//! [`Partition::inspect`] is called between two turns. What is in memory is answered at once, in pages; what only the store
//! has is asked with [`Input::Ask`](super::node::Input::Ask), as any other read.
//!
//! Numbers that may lie above 2^53 (sessions, origins) are texts, since readers of JSON would round them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::ids::{Addr, DeviceId, NodeKey, Origin, RegionId, SessionId, ShardId, UserId};
use super::link::{Lag, LinkState, LinkStatus, PullStatus, ServeStatus};
use super::node::Partition;
use super::time::Now;
use super::wire::Status;

/// Most items of one page.
pub const MAX_PAGE: usize = 1024;
/// Stopped shards that one link names; the rest is counted.
/// Shards that a link names of which something waits for it: those of which most does.
pub const MAX_LAGGING: usize = 16;
const MAX_STOPPED: usize = 16;

/// A number in decimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digits(pub u64);

/// A number as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for Digits {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| "expected decimal digits".to_owned())
    }
}

impl std::str::FromStr for Hex {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| "expected up to 16 hexadecimal digits".to_owned())
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

as_text!(Digits);
as_text!(Hex);

/// A status as people are shown it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shown {
    /// There.
    Online,
    /// Do not disturb.
    Dnd,
    /// Idle.
    Away,
    /// Was there when its region went out of reach.
    Unreachable,
    /// Not there, or hidden.
    Offline,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shown::Online => "online",
            Shown::Dnd => "dnd",
            Shown::Away => "away",
            Shown::Unreachable => "unreachable",
            Shown::Offline => "offline",
        })
    }
}

impl From<Status> for Shown {
    fn from(status: Status) -> Self {
        match status {
            Status::Online => Shown::Online,
            Status::Dnd => Shown::Dnd,
            Status::Away => Shown::Away,
            Status::Offline => Shown::Offline,
        }
    }
}

/// A question to a partition. Pages hold at most [`MAX_PAGE`] items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Its links.
    Links,
    /// Shards that it owns above one.
    Shards {
        /// Above this.
        after: Option<ShardId>,
        /// At most so many.
        limit: usize,
    },
    /// Sessions at its edge and sessions attached to its shards, by their number.
    Sessions {
        /// Of this user only.
        user: Option<UserId>,
        /// Above this.
        after: Option<SessionId>,
        /// At most so many of each.
        limit: usize,
    },
    /// The presence of a user, if it owns the user's shard.
    Presence(UserId),
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To [`Query::Links`].
    Links(Vec<LinkFacts>),
    /// To [`Query::Shards`].
    Shards(Vec<ShardFacts>),
    /// To [`Query::Sessions`].
    Sessions(Vec<SessionFacts>, Vec<AttachmentFacts>),
    /// To [`Query::Presence`].
    Presence(Option<Box<PresenceFacts>>),
}

/// Both directions between a partition and one of another region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFacts {
    /// The other side.
    pub other: Addr,
    /// What is taken from it.
    pub taken: Option<TakenFacts>,
    /// What is given to it.
    pub given: Option<GivenFacts>,
}

/// What a subscriber has of its provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenFacts {
    /// Where it stands.
    pub state: LinkState,
    /// For how long it has not been live, milliseconds; 0 where it is.
    pub down_ms: u64,
    /// Shards taken from there.
    pub shards: usize,
    /// Shards of which no more is taken until someone acts.
    pub stopped: usize,
    /// Some of them.
    pub stopped_shards: Vec<StoppedFacts>,
    /// Regions whose operations come this way.
    pub carries: Vec<RegionId>,
    /// Operations applied, since the start.
    pub applied_operations: u64,
    /// Bytes of operations that arrived, since the start.
    pub received_bytes: u64,
    /// Of them, bytes that are not applied yet.
    pub held_bytes: u64,
    /// The last round trip, microseconds.
    pub round_trip_us: Option<u64>,
    /// How far the other side's clock is ahead of ours, milliseconds.
    pub clock_ahead_ms: Option<i64>,
}

/// A shard of which a link takes no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedFacts {
    /// The shard.
    pub shard: u32,
    /// Whose log.
    pub origin: Hex,
    /// Why.
    pub why: String,
}

/// What waits of a shard for a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLag {
    /// The shard.
    pub shard: u32,
    /// How much.
    #[serde(flatten)]
    pub lag: Lag,
    /// Since when, in milliseconds; 0 where that was before the shard was owned here.
    pub lag_ms: u64,
}

/// What a provider knows of its subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenFacts {
    /// Whether it is connected; while it is not, the lag counts from where it had come.
    pub open: bool,
    /// Shards that it takes.
    pub shards: usize,
    /// Shards of which something waits.
    pub lagging_shards: usize,
    /// Of those, the ones of which most waits, at most [`MAX_LAGGING`].
    #[serde(default)]
    pub lagging: Vec<ShardLag>,
    /// What waits.
    pub lag: Lag,
    /// How long the first of it has waited, milliseconds; 0 where nothing does.
    pub lag_ms: u64,
    /// Bytes shipped and not applied there yet.
    pub in_flight_bytes: u64,
    /// Operations shipped, since the start.
    pub shipped_operations: u64,
    /// Their bytes.
    pub shipped_bytes: u64,
    /// Presence records that wait.
    pub presence_waiting: usize,
}

/// What a shard is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShardState {
    /// It takes messages and sessions.
    Open,
    /// It lacks something that other regions have, and waits for it.
    Recovering,
    /// Its owner takes it over.
    TakingOver,
}

impl fmt::Display for ShardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ShardState::Open => "open",
            ShardState::Recovering => "recovering",
            ShardState::TakingOver => "taking-over",
        })
    }
}

/// A shard at its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFacts {
    /// The shard.
    pub shard: u32,
    /// What it is doing.
    pub state: ShardState,
    /// The owner's fencing number; none while it is taken over.
    pub epoch: Option<u64>,
    /// Sessions attached.
    pub sessions: usize,
    /// Presence records.
    pub presence_records: usize,
    /// Origins of which something is applied.
    pub logs: usize,
    /// Operations applied of all of them.
    pub applied: u64,
    /// Operations applied that some region has not confirmed.
    pub unconfirmed: u64,
}

/// A session at its edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFacts {
    /// Its number.
    pub session: Digits,
    /// Whose.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// The partition of its node.
    pub partition: u8,
    /// Its connection, counted from the node's start.
    pub conn: u64,
    /// The user's shard.
    pub shard: u32,
    /// Whether messages are delivered to it.
    pub receives: bool,
    /// Whether it was welcomed.
    pub welcomed: bool,
    /// Whether its owner has it.
    pub attached: bool,
    /// When it began, unix milliseconds.
    pub since_ms: u64,
    /// How long nothing came from the client, milliseconds.
    pub silent_ms: u64,
    /// Its status.
    pub status: Shown,
    /// Sends that wait for an answer.
    pub unanswered: u32,
    /// Users that it watches.
    pub watching: usize,
}

/// How the owner of the user's shard serves a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentFacts {
    /// The session.
    pub session: Digits,
    /// Its edge.
    pub edge: Addr,
    /// Where it stands.
    pub mode: DeliveryMode,
    /// Messages given and not acknowledged.
    pub in_flight_messages: usize,
    /// Their bytes.
    pub in_flight_bytes: usize,
}

/// How a session is delivered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryMode {
    /// Its device is being registered.
    Registering,
    /// Its inbox is being read.
    Reading,
    /// It was given everything.
    Live,
    /// Something waits for room in its window.
    Behind,
    /// It was moved here from another region, and waits for what that one took before.
    Held,
    /// It has no device and is given nothing.
    SendsOnly,
}

impl fmt::Display for DeliveryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeliveryMode::Registering => "registering",
            DeliveryMode::Reading => "reading",
            DeliveryMode::Live => "live",
            DeliveryMode::Behind => "behind",
            DeliveryMode::Held => "held",
            DeliveryMode::SendsOnly => "sends-only",
        })
    }
}

/// The presence of a user at the owner of its shard in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceFacts {
    /// The user's shard.
    pub shard: u32,
    /// What watchers in this region see.
    pub status: Shown,
    /// The line that goes with it.
    pub text: String,
    /// When the session began that decides, unix milliseconds.
    pub since_ms: Option<u64>,
    /// The region that wrote the record that decides.
    pub region: Option<RegionId>,
    /// Since when that region is out of reach, unix milliseconds.
    pub unreachable_since_ms: Option<u64>,
    /// Partitions of edges that watch the user.
    pub watchers: usize,
    /// The record of each device.
    pub records: Vec<RecordFacts>,
}

/// The presence record of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordFacts {
    /// The device.
    pub device: DeviceId,
    /// First part of its version: grows with each connect.
    pub connect_epoch: u64,
    /// Second part: its session.
    pub session: Digits,
    /// Third part: the edge's count of changes; none where the session ended.
    pub counter: Option<u64>,
    /// Last part: whether the epoch was taken after the client answered a probe.
    pub proved: bool,
    /// Whether the session ended.
    pub ended: bool,
    /// The status that the client chose.
    pub chosen: Option<Shown>,
    /// What it comes to here.
    pub shown: Shown,
    /// The line that goes with it.
    pub text: String,
    /// The region that admitted the session, the only writer of the record.
    pub written_by: Option<RegionId>,
    /// Where the session is connected.
    pub edge: Option<NodeKey>,
    /// The incarnation of that node.
    pub edge_generation: Option<u64>,
    /// When the session began, unix milliseconds.
    pub since_ms: Option<u64>,
    /// Whether a session of the device is attached to this region's owner.
    pub attached_here: bool,
    /// Whether that session is another one than the record's.
    pub contested: bool,
    /// Whether the user is shown as this record says.
    pub decides: bool,
    /// Why it is shown so.
    pub why: String,
}

impl Partition {
    /// Answers a question from memory; changes nothing.
    pub fn inspect(&self, query: &Query, now: Now) -> Answer {
        match query {
            Query::Links => {
                let links = self.links().snapshot(now);
                Answer::Links(links.into_iter().map(|link| LinkFacts::of(link, now)).collect())
            }
            Query::Shards { after, limit } => {
                Answer::Shards(self.owner().shard_facts(*after, (*limit).min(MAX_PAGE)))
            }
            Query::Sessions { user, after, limit } => {
                let limit = (*limit).min(MAX_PAGE);
                let sessions = self.edge().session_facts(user.as_ref(), *after, limit, now);
                let attached = self.owner().attachment_facts(user.as_ref(), *after, limit);
                Answer::Sessions(sessions, attached)
            }
            Query::Presence(user) => Answer::Presence(self.owner().presence_facts(user).map(Box::new)),
        }
    }
}

impl LinkFacts {
    fn of(link: LinkStatus, now: Now) -> Self {
        Self {
            other: link.link,
            taken: link.pull.map(|pull| TakenFacts::of(pull, now)),
            given: link.serve.map(|serve| GivenFacts::of(serve, now)),
        }
    }
}

impl TakenFacts {
    fn of(pull: PullStatus, now: Now) -> Self {
        let stopped = pull.stopped.iter().take(MAX_STOPPED);
        let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        // What the clock there shows was read half a round trip ago, and moved on since: as good as this gets.
        let ahead =
            |theirs: u64| i64::try_from(i128::from(theirs) - i128::from(now.wall_ms)).unwrap_or(i64::MAX);
        Self {
            state: pull.state,
            down_ms: ms(pull.down_for),
            shards: pull.shards,
            stopped: pull.stopped.len(),
            stopped_shards: stopped
                .map(|(shard, Origin(origin), why)| StoppedFacts {
                    shard: shard.0,
                    origin: Hex(*origin),
                    why: why.to_string(),
                })
                .collect(),
            carries: pull.wanted,
            applied_operations: pull.applied,
            received_bytes: pull.received_bytes,
            held_bytes: pull.held_bytes,
            round_trip_us: pull
                .round_trip
                .map(|trip| u64::try_from(trip.as_micros()).unwrap_or(u64::MAX)),
            clock_ahead_ms: pull.remote_wall_ms.map(ahead),
        }
    }
}

impl ShardLag {
    /// Those of which most waits, the worst first.
    fn worst(mut lag: Vec<(ShardId, Lag)>, now: Now) -> Vec<Self> {
        lag.sort_by_key(|(shard, lag)| (std::cmp::Reverse(lag.operations), *shard));
        let worst = lag.into_iter().take(MAX_LAGGING);
        let worst = worst.map(|(shard, lag)| Self {
            shard: shard.0,
            lag,
            lag_ms: lag.since_ms.map_or(0, |since| now.wall_ms.saturating_sub(since)),
        });
        worst.collect()
    }
}

impl GivenFacts {
    fn of(serve: ServeStatus, now: Now) -> Self {
        Self {
            open: serve.open,
            shards: serve.shards,
            lagging_shards: serve.lag.len(),
            lagging: ShardLag::worst(serve.lag, now),
            lag: serve.behind,
            lag_ms: serve
                .behind
                .since_ms
                .map_or(0, |since| now.wall_ms.saturating_sub(since)),
            in_flight_bytes: serve.in_flight_bytes,
            shipped_operations: serve.shipped,
            shipped_bytes: serve.shipped_bytes,
            presence_waiting: serve.presence_waiting,
        }
    }
}
