//! What an owner asks of the store, and what for.

use std::collections::BTreeSet;

use super::{AttachId, delivery, deposits, sweep};
use crate::core::ids::{Epoch, Origin, ShardId, UserId};
use crate::core::storage::Read;
use crate::core::vector::Vector;

/// What an operation was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tag {
    /// Taking a shard over.
    Bump(ShardId),
    /// A deposit.
    Deposit(deposits::DepositTag),
    /// Registering the device of a session.
    Register(AttachId),
    /// Writing a cursor.
    Cursor(delivery::Unwritten),
    /// Work whose outcome matters only if it is not done.
    Remove(ShardId, UserId),
    /// Periodic work of a shard.
    Upkeep(ShardId),
    /// Dropping dedup records.
    Forget(ShardId, u32),
    /// Replacing what expired of a user's messages.
    Expire(ShardId, UserId),
    /// Beginning to recover, or opening.
    Recover(ShardId, bool),
    /// Retiring old origins.
    Retire(ShardId),
    /// Marking holders that are away.
    Mark(ShardId),
    /// Beginning to recover after having been away.
    Behind(ShardId),
    /// Changing the holders.
    Holders(ShardId),
}

/// A question to the store and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The head of a shard, to become active under this epoch.
    Head(ShardId, Epoch),
    /// Whether a shard is still ours under this epoch (R2).
    Verify(ShardId, Epoch),
    /// The head of a shard that began to recover or has recovered.
    Recovered(ShardId),
    /// Users that need an origin (R23).
    Needed {
        /// The shard.
        shard: ShardId,
        /// Which look.
        number: u64,
        /// The origin.
        origin: Origin,
        /// Only as far as messages of it wait.
        stored: bool,
        /// From this user on.
        from: Option<UserId>,
    },
    /// Some users of a shard, to see what expires.
    Sweep(ShardId, Option<UserId>),
    /// The row of a user, for a session.
    User(AttachId, UserId),
    /// Messages for a session.
    Inbox {
        /// For which attachment.
        at: AttachId,
        /// Whose.
        user: UserId,
        /// Above this.
        after: Vector,
        /// At most so many.
        max_items: usize,
        /// At most so many bytes.
        max_bytes: usize,
    },
}

impl Question {
    /// What to ask the store.
    pub fn read(&self) -> Read {
        match self {
            Question::Head(shard, _) | Question::Verify(shard, _) | Question::Recovered(shard) => {
                Read::Shard(*shard)
            }
            Question::Needed {
                shard,
                origin,
                stored,
                from,
                ..
            } => Read::Needed {
                shard: *shard,
                origins: BTreeSet::from([*origin]),
                stored: *stored,
                from: from.clone(),
            },
            Question::Sweep(shard, after) => Read::Users {
                shard: *shard,
                after: after.clone(),
                max_items: sweep::USERS_AT_ONCE,
            },
            Question::User(at, user) => Read::User(at.shard, user.clone()),
            Question::Inbox {
                at,
                user,
                after,
                max_items,
                max_bytes,
                ..
            } => Read::Inbox {
                shard: at.shard,
                user: user.clone(),
                after: after.clone(),
                max_items: *max_items,
                max_bytes: *max_bytes,
            },
        }
    }
}
