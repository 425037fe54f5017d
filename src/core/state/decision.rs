//! The durable steps of a commit.

use serde::{Deserialize, Serialize};

use super::DedupKey;
use crate::core::expire::Expired;
use crate::core::holders::ConfirmAt;
use crate::core::ids::{Coord, DeviceId, Epoch, Origin, RegionId, Seq, ShardId, UserId};
use crate::core::op::{LogEntry, LoggedOp};
use crate::core::snapshot::{Cut, MergedUser};
use crate::core::time::Hlc;

/// One durable step. Applying it needs no judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// A new owner.
    Epoch {
        /// The shard.
        shard: ShardId,
        /// Its new epoch.
        epoch: Epoch,
    },
    /// An operation was logged: an own one, or one applied from another origin's log.
    Logged(Logged),
    /// Every device consumed a user's entries of an origin to here.
    Consumed {
        /// The shard.
        shard: ShardId,
        /// The user.
        user: UserId,
        /// The origin.
        origin: Origin,
        /// To this sequence.
        to: Seq,
        /// Messages that leave the count of unread ones.
        messages: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A user's entries of an origin to here are removed (R10).
    Removed {
        /// The shard.
        shard: ShardId,
        /// The user.
        user: UserId,
        /// The origin.
        origin: Origin,
        /// To this sequence.
        to: Seq,
    },
    /// An origin's log to here is trimmed (R9).
    Trimmed {
        /// The shard.
        shard: ShardId,
        /// The origin.
        origin: Origin,
        /// To this sequence.
        to: Seq,
        /// The running hash there.
        hash: u64,
        /// Bytes of what was trimmed, without confirmations.
        #[serde(default, skip_serializing_if = "is_zero")]
        bytes: u64,
    },
    /// Dedup records of the UTC days to this one are dropped (R16).
    DedupDropped {
        /// The shard.
        shard: ShardId,
        /// The last day, counted from 1970.
        day: u32,
    },
    /// The shard begins to recover, or is open (R4).
    Recovery {
        /// The shard.
        shard: ShardId,
        /// The origin under which it begins to recover; `None` where it is open.
        began: Option<Origin>,
    },
    /// A snapshot knew of an id (R11).
    DedupMerged {
        /// The shard.
        shard: ShardId,
        /// The message.
        key: DedupKey,
        /// Digests and coordinates that are new.
        bodies: Vec<(u128, Coord)>,
    },
    /// A snapshot knew of a user.
    UserMerged {
        /// The shard.
        shard: ShardId,
        /// The user.
        user: UserId,
        /// What.
        merged: Box<MergedUser>,
    },
    /// A snapshot brought a message.
    Merged {
        /// The shard.
        shard: ShardId,
        /// The recipient.
        user: UserId,
        /// Its coordinates.
        at: Coord,
        /// The operation.
        op: LoggedOp,
        /// Other coordinates of the same message (R15).
        siblings: Vec<Coord>,
    },
    /// A snapshot is complete: everything to its cut is applied.
    Jumped {
        /// The shard.
        shard: ShardId,
        /// The logs that go further than ours did, and what the holders confirmed.
        cut: Box<Cut>,
        /// Our hybrid time after it.
        hlc: Hlc,
    },
    /// Logs are trimmed for a snapshot: see [`Recovery::Merging`](crate::core::state::Recovery::Merging).
    Merging {
        /// The shard.
        shard: ShardId,
    },
    /// A holder does not hold logs back any more, or does again (R12).
    Marked {
        /// The shard.
        shard: ShardId,
        /// The holder.
        region: RegionId,
        /// The last confirmation known of it; `None` takes the mark away.
        at: Option<ConfirmAt>,
    },
    /// The shard begins to recover because it was away, and lost nothing (R12).
    Behind {
        /// The shard.
        shard: ShardId,
        /// The origin under which it begins.
        began: Origin,
    },
    /// Whether an old origin is needed here (R23).
    Needed {
        /// The shard.
        shard: ShardId,
        /// The origin.
        origin: Origin,
        /// Whether it is.
        needed: bool,
    },
    /// An origin is retired (R23).
    Retired {
        /// The shard.
        shard: ShardId,
        /// The origin.
        origin: Origin,
        /// Its last sequence.
        seq: Seq,
    },
    /// Messages of a user are replaced by a hole (R18).
    Expired {
        /// The shard.
        shard: ShardId,
        /// The user.
        user: UserId,
        /// The hole.
        hole: Expired,
    },
    /// A look through a user's inbox began or ended: no message that waits expires before this.
    Expires {
        /// The shard.
        shard: ShardId,
        /// The user.
        user: UserId,
        /// Unix milliseconds; 0: none expires.
        from_ms: u64,
    },
    /// The expiry of a device takes effect (R19).
    DeviceExpired {
        /// The shard.
        shard: ShardId,
        /// Whose device.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// Its registration.
        epoch: u32,
    },
}

/// An operation that was logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// The shard.
    pub shard: ShardId,
    /// The origin whose log it stands in.
    pub origin: Origin,
    /// The region of that origin.
    pub region: RegionId,
    /// Logged by this store, not applied from another log: the origin is our current one.
    pub own: bool,
    /// Sequence, running hash, operation.
    pub entry: LogEntry,
    /// Our hybrid time after it.
    pub hlc: Hlc,
    /// For a message: other coordinates of the same one (R15).
    pub siblings: Vec<Coord>,
    /// For a message: a snapshot brought it before, so that it waits here already, or is gone already (R11).
    pub merged: bool,
}

impl Logged {
    /// Its coordinates.
    pub fn coord(&self) -> Coord {
        Coord {
            origin: self.origin,
            seq: self.entry.seq,
        }
    }
}

impl Decision {
    /// The shard it belongs to.
    pub fn shard(&self) -> ShardId {
        match self {
            Decision::Logged(logged) => logged.shard,
            Decision::Epoch { shard, .. }
            | Decision::Consumed { shard, .. }
            | Decision::Removed { shard, .. }
            | Decision::Trimmed { shard, .. }
            | Decision::DedupDropped { shard, .. }
            | Decision::Recovery { shard, .. }
            | Decision::DedupMerged { shard, .. }
            | Decision::UserMerged { shard, .. }
            | Decision::Merged { shard, .. }
            | Decision::Jumped { shard, .. }
            | Decision::Marked { shard, .. }
            | Decision::Behind { shard, .. }
            | Decision::Needed { shard, .. }
            | Decision::Retired { shard, .. }
            | Decision::Merging { shard }
            | Decision::Expired { shard, .. }
            | Decision::Expires { shard, .. }
            | Decision::DeviceExpired { shard, .. } => *shard,
        }
    }
}

/// For fields that came after their format and stand at its end.
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}
