//! The answers. Their fields are what `--output json` prints, documented in `docs/operating.md`, and stable: fields are added,
//! not renamed or removed. Times are unix milliseconds (`_ms`) unless the name says otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::request::Place;
use crate::core::ids::{Addr, DeviceId, NodeKey, RegionId, UserId};
use crate::core::inspect::{
    AttachmentFacts, GivenFacts, Hex, LinkFacts, PresenceFacts, SessionFacts, ShardFacts, TakenFacts,
};
use crate::core::link::LinkState;
use crate::server::faults::Fault;

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To `ClusterStatus`.
    ClusterStatus(Box<ClusterStatus>),
    /// To `NodeList`.
    Nodes(NodeList),
    /// To `NodeShow`.
    Node(Box<NodeRow>),
    /// To `RegionList`.
    Regions(RegionList),
    /// To `RegionShow`.
    Region(Box<RegionDetail>),
    /// To `LinkList`.
    Links(LinkList),
    /// To `ShardList`.
    Shards(ShardList),
    /// To `ShardShow`.
    Shard(ShardDetail),
    /// To `SessionList`.
    Sessions(SessionList),
    /// To `Presence`.
    Presence(PresenceReport),
    /// To `InboxShow`.
    Inbox(Box<InboxReport>),
    /// To `InboxCount`.
    InboxCount(InboxCount),
    /// To `FaultList`; to `FaultClear`, those that were ended.
    Faults(FaultList),
    /// To `FaultInject`.
    Injected(Box<FaultRow>),
    /// To another change.
    Changed(Changed),
    /// To a question about one node.
    Part(Box<PartReply>),
}

/// What one node answers about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartReply {
    /// The node, and the links of each partition.
    Node(Box<NodeReport>, Vec<(u8, LinkFacts)>),
    /// Its shards, with their partition.
    Shards(Vec<(u8, ShardFacts)>),
    /// One shard.
    Shard(Box<ShardPart>),
    /// Sessions at its edges, and sessions attached to its shards.
    Sessions(Vec<SessionFacts>, Vec<AttachmentFacts>),
    /// The presence of a user, if it owns the shard.
    Presence(Option<Box<PresenceFacts>>),
    /// The inbox of a user, if it has a store.
    Inbox(Option<Box<InboxFacts>>),
    /// What operators said about regions.
    Evacuations(Vec<EvacuationRow>),
    /// The regions that keep its shards.
    Holders(HoldersReport),
    /// The faults that were injected.
    Faults(Vec<FaultRow>),
}

/// The regions that keep the shards of a node, and how far their last change is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldersReport {
    /// Of the last change; 0 where there was none.
    pub version: u64,
    /// Shards of the cluster.
    pub total: usize,
    /// Of those, shards that the node owns.
    pub shards: usize,
    /// Of those, shards that have the change.
    pub changed: usize,
    /// Of those, shards in which every region that stays has confirmed it, and all of every region that leaves is there.
    pub settled: usize,
    /// Regions that some shard counts, or waits for.
    pub regions: Vec<RegionId>,
    /// Of those, regions that are being added.
    #[serde(default)]
    pub coming: Vec<RegionId>,
    /// Of those, regions that were removed and of which something may be missing.
    pub leaving: Vec<RegionId>,
    /// Regions that were away beyond the limits of the logs, and come back by snapshot.
    pub marked: Vec<MarkedRow>,
}

/// A region that needs a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedRow {
    /// Which.
    pub region: RegionId,
    /// In so many shards.
    pub shards: usize,
}

/// A node that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Which.
    #[serde(flatten)]
    pub node: NodeKey,
    /// Why not.
    pub why: String,
}

/// How a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing to do.
    Healthy,
    /// Users are served; something is missing that has to come back.
    Degraded,
    /// Users of a region are not served by it, or something stands still until someone acts.
    Critical,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// How bad it is: `degraded` or `critical`.
    pub severity: Verdict,
    /// What kind of thing, for scripts.
    pub code: ReasonCode,
    /// The region, node or link that it is about.
    pub about: String,
    /// For people.
    pub text: String,
}

/// Kinds of what can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonCode {
    /// No node of a region answers.
    RegionSilent,
    /// A region has no ready core node: nobody owns its shards.
    NoCore,
    /// A region has no ready edge node: its clients go elsewhere.
    NoEdge,
    /// A region accepts no message, because no other one can take it.
    AcceptsNothing,
    /// A region accepts messages as durable in itself alone, because no other one can take them.
    AcceptsAlone,
    /// A link takes no more of some shards until someone acts.
    LinkStopped,
    /// The store of a node stopped.
    StoreStopped,
    /// A node does not answer.
    NodeSilent,
    /// A node is not ready.
    NodeNotReady,
    /// Another region serves an edge, as its own does not.
    ServedElsewhere,
    /// A node drains.
    NodeDrains,
    /// A region is being added.
    RegionComes,
    /// A region was removed, and the others wait for what it took.
    RegionLeaves,
    /// An operator sent the clients of a region to the others.
    RegionEvacuated,
    /// A link is not live.
    LinkDown,
    /// A link has fallen behind.
    LinkLags,
    /// Connections between two nodes that both answer fail.
    BreakerOpen,
    /// The clocks of two regions differ.
    ClockDiffers,
    /// An operator injected faults.
    FaultsInjected,
}

/// How the cluster is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// In one word.
    pub verdict: Verdict,
    /// Why, the worst first; empty where it is healthy.
    pub reasons: Vec<Reason>,
    /// The cluster's name.
    pub cluster: String,
    /// The node that asked all others.
    pub answered_by: NodeKey,
    /// By its clock.
    pub now_ms: u64,
    /// Nodes that there should be.
    pub nodes: usize,
    /// Of them, those that answered and are ready.
    pub nodes_ready: usize,
    /// Sessions of clients at all nodes that answered.
    pub sessions: usize,
    /// Links between regions, each direction for itself.
    pub links: usize,
    /// Of them, those that are live.
    pub links_live: usize,
    /// The regions.
    pub regions: Vec<RegionRow>,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// Every node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeList {
    /// In order of region and name.
    pub nodes: Vec<NodeRow>,
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It answers and is ready.
    Ready,
    /// It answers and is not.
    NotReady,
    /// It drains and will stop.
    Draining,
    /// It did not answer.
    NoAnswer,
}

/// A node, whether it answered or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Which.
    #[serde(flatten)]
    pub node: NodeKey,
    /// Where other nodes, and operators from elsewhere, reach it.
    pub peer: String,
    /// `core`, `edge`: as it says, or as its region's file does.
    pub roles: Vec<String>,
    /// How it is.
    pub state: NodeState,
    /// Why it is not ready, or did not answer; empty where it is.
    pub why: String,
    /// What it tells of itself, where it answered.
    pub report: Option<NodeReport>,
}

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Which.
    #[serde(flatten)]
    pub node: NodeKey,
    /// Its incarnation: grows at each start.
    pub generation: u64,
    /// Version of the program.
    pub version: String,
    /// `core`, `edge`.
    pub roles: Vec<String>,
    /// How long it has run.
    pub uptime_ms: u64,
    /// Whether it is fit to serve.
    pub ready: bool,
    /// What is not, and why.
    pub reasons: BTreeMap<String, String>,
    /// Whether it drains.
    pub draining: bool,
    /// Sessions of clients.
    pub sessions: usize,
    /// Of them, those that are not told yet that a region is restored which their clients may prefer.
    #[serde(default)]
    pub returning: usize,
    /// What operators last said about regions, as far as it knows.
    #[serde(default)]
    pub evacuations: Vec<EvacuationRow>,
    /// The regions whose files it has.
    #[serde(default)]
    pub regions: Vec<RegionId>,
    /// Its shards that its region does not keep any more, since it was removed.
    #[serde(default)]
    pub removed: usize,
    /// Of a core node: the regions that keep its shards, and how far their last change is.
    #[serde(default)]
    pub holders: Option<HoldersReport>,
    /// Partitions that it runs.
    pub partitions: usize,
    /// Shards that are open here.
    pub shards_open: usize,
    /// Shards that recover.
    pub shards_recovering: usize,
    /// Shards whose owner this edge cannot reach.
    pub shards_unserved: u32,
    /// Of an edge: the other region that serves its sessions, while no core node of its own does.
    #[serde(default)]
    pub served_by: Option<RegionId>,
    /// Where clients are told to reach it.
    pub client: Option<String>,
    /// Where its health and metrics are.
    pub admin_http: String,
    /// Memory of the process in bytes, where the system tells; nodes of one process share it.
    pub memory_bytes: Option<u64>,
    /// Its store, where it has one.
    pub store: Option<StoreReport>,
    /// The other nodes, as it sees them.
    pub sees: Vec<SeenNode>,
    /// The faults that were injected into it.
    #[serde(default)]
    pub faults: Vec<FaultRow>,
    /// Whether it takes any: `faults.allowed`.
    #[serde(default)]
    pub faults_allowed: bool,
    /// Why it can be neither paused nor crashed, if it cannot.
    #[serde(default)]
    pub cannot_end: Option<String>,
    /// Bytes that it sent to other regions to repair presence, since its start.
    #[serde(default)]
    pub presence_repair_bytes: u64,
}

/// What an operator last said about where the clients of a region are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvacuationRow {
    /// The region.
    pub region: RegionId,
    /// When, unix milliseconds; one more than the time before where the clock of the node that was asked had gone back.
    pub version: u64,
    /// Whether they are to be in other regions.
    pub evacuated: bool,
    /// Sessions a second that are told to go.
    pub rate: u32,
}

/// The store of a core node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReport {
    /// Group commits since the start.
    pub commits: u64,
    /// When the last one came back; none since the start.
    pub last_commit_ms: Option<u64>,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// What messages, users and dedup records weigh in memory.
    pub resident_bytes: u64,
    /// Checkpoints completed since the start.
    pub checkpoints: u64,
}

/// A node as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenNode {
    /// Which.
    #[serde(flatten)]
    pub node: NodeKey,
    /// Whether it is among the members; one of another region is once it was reached.
    pub member: bool,
    /// Its incarnation, where it is known.
    pub generation: Option<u64>,
    /// Whether it says that it takes work.
    pub ready: bool,
    /// The connection that is kept to it, if one is wanted.
    pub connection: Option<SeenConnection>,
}

/// A connection that is kept to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenConnection {
    /// Whether it is up.
    pub up: bool,
    /// `closed` (it is tried), `half-open` (one attempt decides), `open` (nothing is tried for a while).
    pub breaker: String,
    /// Failed attempts in a row.
    pub failures: u32,
    /// Smoothed round trip, microseconds.
    pub round_trip_us: Option<u64>,
    /// The last failure or loss.
    pub last_error: Option<String>,
}

/// Every region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionList {
    /// In order of their ids.
    pub regions: Vec<RegionRow>,
    /// Who keeps the shards, and how far the last change of that is, as the core node says that is furthest; null where none
    /// answers.
    #[serde(default)]
    pub holders: Option<HoldersReport>,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionRow {
    /// Its id.
    pub region: RegionId,
    /// The name people read.
    pub name: String,
    /// How it is.
    pub state: RegionState,
    /// Whether it keeps the shards.
    #[serde(default)]
    pub keeps: Keeps,
    /// Nodes that there should be.
    pub nodes: usize,
    /// Of them, those that answered and are ready.
    pub nodes_ready: usize,
    /// Core nodes that are ready.
    pub cores_ready: usize,
    /// Edge nodes that are ready.
    pub edges_ready: usize,
    /// Sessions of clients.
    pub sessions: usize,
    /// Shards that are open at its owners.
    pub shards_open: usize,
    /// Shards that recover.
    pub shards_recovering: usize,
    /// For how long no region had a live link to it, as the longest of those that answered says; 0 where one has.
    pub unreachable_ms: u64,
    /// Since when it is evacuated, unix milliseconds; null where it takes clients.
    #[serde(default)]
    pub evacuated_ms: Option<u64>,
    /// Where an accepted message is durable in another region too, as its file says: what becomes of one that no other region
    /// takes in time, `refuse` or `region`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub geo_fallback: Option<String>,
}

/// Whether a region keeps the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeps {
    /// It does.
    #[default]
    Yes,
    /// It is being added.
    Coming,
    /// It was removed, and the others wait for what it took.
    Leaving,
    /// It was not added yet, or was removed: there is only its file.
    No,
}

/// How a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionState {
    /// All its nodes are ready.
    Ready,
    /// It serves, with less than all.
    Degraded,
    /// It has no ready core or no ready edge.
    Down,
    /// None of its nodes answers: it is lost or cut off.
    Silent,
}

/// One region with its nodes and links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionDetail {
    /// The region.
    #[serde(flatten)]
    pub row: RegionRow,
    /// Where an accepted message is durable, as its file says.
    pub durability: String,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Its nodes.
    pub members: Vec<NodeRow>,
    /// Links from and to it.
    pub links: Vec<LinkRow>,
}

/// Every link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkList {
    /// In order of their ends.
    pub links: Vec<LinkRow>,
    /// Nodes that did not answer: what only they know of links is missing.
    pub silent: Vec<Silent>,
}

/// One direction of replication between two partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRow {
    /// The provider.
    pub from: Addr,
    /// The subscriber.
    pub to: Addr,
    /// As the subscriber says; where it does not answer, `live` or `down` as the provider sees it.
    pub state: LinkState,
    /// What the subscriber says.
    pub taken: Option<TakenFacts>,
    /// What the provider says.
    pub given: Option<GivenFacts>,
}

/// Shards of a region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardList {
    /// The region.
    pub region: RegionId,
    /// In order of their numbers.
    pub shards: Vec<ShardRow>,
    /// The last of them, to go on from, where there are more.
    pub next: Option<u32>,
    /// Nodes of the region that did not answer.
    pub silent: Vec<Silent>,
}

/// A shard at its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRow {
    /// The owner.
    pub owner: Addr,
    /// What it tells.
    #[serde(flatten)]
    pub facts: ShardFacts,
}

/// One shard in every region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardDetail {
    /// Its number.
    pub shard: u32,
    /// In every region whose store could be asked.
    pub regions: Vec<ShardAt>,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// A shard in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardAt {
    /// The node whose store was asked.
    #[serde(flatten)]
    pub node: NodeKey,
    /// What it has.
    #[serde(flatten)]
    pub part: ShardPart,
}

/// A shard as one node has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardPart {
    /// The partition that owns it here.
    pub partition: Option<u8>,
    /// What the owner tells.
    pub owner: Option<ShardFacts>,
    /// What the store has.
    pub stored: Option<ShardStored>,
}

/// The head of a shard in a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStored {
    /// Fencing number.
    pub epoch: u64,
    /// The origin of its last own operation; zeros before the first.
    pub origin: Hex,
    /// `unset`, `recovering`, `open` or `merging`.
    pub recovery: String,
    /// The origin under which it last began to recover; zeros where it never did.
    pub recovered_in: Hex,
    /// Hybrid time of the last operation.
    pub hlc_ms: u64,
    /// Dedup records of ids from before this UTC day (counted from 1970) were dropped; 0: none.
    pub forgotten_day: u32,
    /// The log of each origin.
    pub logs: Vec<LogRow>,
    /// What each region confirmed.
    pub confirmed: Vec<ConfirmRow>,
}

/// One origin's log of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRow {
    /// The origin.
    pub origin: Hex,
    /// Its region.
    pub region: RegionId,
    /// Applied here to this sequence.
    pub applied: u64,
    /// Every region confirmed it to this one.
    pub stable: u64,
    /// Trimmed to this one.
    pub floor: u64,
    /// What it follows.
    pub previous: Option<Place>,
    /// Hybrid time of its last operation.
    pub last_ms: u64,
}

/// What a region confirmed of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRow {
    /// The region.
    pub region: RegionId,
    /// Hybrid time of the confirmation.
    pub at_ms: u64,
    /// Operations applied here that it did not confirm.
    pub behind: u64,
}

/// Sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionList {
    /// In order of their numbers.
    pub sessions: Vec<SessionRow>,
    /// The last of them, to go on from, where there are more.
    pub next: Option<crate::core::inspect::Digits>,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// The node that holds it.
    #[serde(flatten)]
    pub node: NodeKey,
    /// What that node tells.
    #[serde(flatten)]
    pub facts: SessionFacts,
    /// How it is served.
    pub delivery: Option<SessionDelivery>,
}

/// How the owner of the user's shard serves a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDelivery {
    /// The owner.
    pub owner: NodeKey,
    /// What it tells.
    #[serde(flatten)]
    pub facts: AttachmentFacts,
}

/// A user's presence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PresenceReport {
    /// Whose.
    pub user: UserId,
    /// Whether all regions that answered show the same status.
    pub agreed: bool,
    /// As each region has it.
    pub regions: Vec<PresenceAt>,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// A user's presence in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceAt {
    /// The owner of the user's shard there.
    pub owner: NodeKey,
    /// What it has.
    #[serde(flatten)]
    pub facts: PresenceFacts,
}

/// Messages that wait for a user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InboxReport {
    /// The node whose store was asked.
    #[serde(flatten)]
    pub node: NodeKey,
    /// What it has.
    #[serde(flatten)]
    pub inbox: InboxFacts,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// The inbox of a user in one store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxFacts {
    /// Whose.
    pub user: UserId,
    /// The user's shard.
    pub shard: u32,
    /// Messages that some device has not read; with no device, all.
    pub unread: u64,
    /// Their bytes.
    pub unread_bytes: u64,
    /// The devices that must read before a message goes.
    pub devices: Vec<DeviceRow>,
    /// Messages of this page, in delivery order.
    pub entries: Vec<EntryRow>,
    /// Messages that are gone behind some that wait.
    pub gaps: Vec<GapRow>,
    /// Where to go on from, where there are more.
    pub next: Option<Vec<Place>>,
}

/// A device of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Which.
    pub device: DeviceId,
    /// Whether it expired and need not read.
    pub expired: bool,
    /// What it has read, for each origin.
    pub cursor: Vec<Place>,
    /// Messages of this page that it has not read.
    pub waiting: usize,
}

/// A message that waits. Its body is not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRow {
    /// Where it stands.
    #[serde(flatten)]
    pub at: Place,
    /// Its id.
    pub id: String,
    /// The sender.
    pub from: UserId,
    /// The sender's device.
    pub from_device: DeviceId,
    /// When it was accepted, by hybrid time.
    pub accepted_ms: u64,
    /// When it need not be delivered any more; 0: never.
    pub expires_ms: u64,
    /// Application's kind of content.
    pub kind: u16,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// Other places of the same message.
    pub copies: Vec<Place>,
    /// Devices that have not read it.
    pub waits_for: Vec<DeviceId>,
}

/// Messages that are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRow {
    /// The origin.
    pub origin: Hex,
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

/// How many messages wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InboxCount {
    /// For whom.
    pub user: UserId,
    /// In each region's store.
    pub regions: Vec<InboxCountAt>,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// How many messages wait in one store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxCountAt {
    /// The node whose store was asked.
    #[serde(flatten)]
    pub node: NodeKey,
    /// Messages that some device has not read.
    pub unread: u64,
    /// Their bytes.
    pub unread_bytes: u64,
    /// Devices.
    pub devices: usize,
}

/// Faults, of one node or of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultList {
    /// In order of their nodes and numbers.
    pub faults: Vec<FaultRow>,
    /// Nodes that did not answer.
    pub silent: Vec<Silent>,
}

/// A fault that was injected into a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRow {
    /// The node.
    #[serde(flatten)]
    pub node: NodeKey,
    /// Its number at this start of the node.
    pub id: u64,
    /// What it is.
    pub fault: Fault,
    /// Since when.
    pub since_ms: u64,
    /// When it ends by itself; none where it lasts as long as the node.
    pub ends_ms: Option<u64>,
    /// For how long it still lasts.
    pub left_ms: Option<u64>,
}

/// A change was taken up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// For people: what happens now.
    pub text: String,
}
