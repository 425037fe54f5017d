//! Looking for what expires: messages whose time to live passed (R18), devices that nobody heard of for long (R19).
//!
//! ```text
//! a shard is due --> its users, a page at a time --> of each what is due --> Expire, ExpireDevice, Register
//! ```
//!
//! A shard is due when the earliest message that expires may, but not again within half the margin: with a time to live on
//! many messages something is always due, and all that waits for the round is room in the store. It is also due when its
//! devices were not looked at for a part of the time after which they expire. Rounds begin with taking a shard over, since
//! nothing is known of it then. One page is read at a time in a partition, so what a round costs is bounded by how often
//! that happens, however much there is to look at; nobody waits for it, because delivery judges by itself what is due.
//!
//! What is found is asked of the store, whose commit judges once more. Nothing expires while the clocks of the other
//! regions disagree with ours (R20); devices that are attached are registered again all the same.

use std::collections::BTreeSet;

use super::{Owner, OwnerOutput, Question, Shard, Tag, parts};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::defect::{self, Defect};
use crate::core::expire::{Looked, REFRESHES, earlier, is_stale};
use crate::core::ids::{DeviceId, Epoch, ShardId, UserId};
use crate::core::limits::ms;
use crate::core::op::{DeviceChange, LoggedOp, Op, kind};
use crate::core::storage::{StoreError, UserTimes};
use crate::core::time::{Clocks, Mono, Now};
use crate::core::vector::Vector;

/// Users in one page: their rows are a millisecond's work where they come from disk.
pub(super) const USERS_AT_ONCE: usize = 64;
/// Inboxes that are looked through at once; further ones wait for the next round.
const LOOKS_AT_ONCE: usize = USERS_AT_ONCE;
/// Rounds for devices are at most so far apart.
const DEVICES_MS: u64 = 24 * 60 * 60 * 1000;

/// What is under way in a partition.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// A page is being read.
    reading: bool,
    /// Whose inboxes are being looked through.
    looking: BTreeSet<(ShardId, UserId)>,
}

impl Sweeps {
    pub(super) fn ended(&mut self) {
        self.reading = false;
    }

    /// Whether to begin with an inbox: not twice at once, nor with more than are looked through at once.
    fn look(&mut self, shard: ShardId, user: &UserId) -> bool {
        self.looking.len() < LOOKS_AT_ONCE && self.looking.insert((shard, user.clone()))
    }
}

/// Where the rounds of a shard stand.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// A round is under way, and was behind this user.
    round: Option<Option<UserId>>,
    /// The next one begins no sooner, and for devices then.
    next: Mono,
    devices: Mono,
    /// Nothing that waits expires before this, unix milliseconds; 0: nothing does.
    from_ms: u64,
}

impl Sweep {
    /// A message was logged.
    pub(super) fn appended(&mut self, op: &LoggedOp) {
        self.expires(op.expires_ms());
    }

    fn expires(&mut self, expires_ms: u64) {
        self.from_ms = earlier(self.from_ms, expires_ms);
    }

    fn due(&self, now: Now, margin_ms: u64) -> bool {
        let messages = self.from_ms != 0 && self.from_ms.saturating_add(margin_ms) <= now.wall_ms;
        let due = self.devices <= now.mono || (messages && self.next <= now.mono);
        self.round.is_some() || due
    }
}

impl Owner {
    /// What the clocks of the other regions say by now.
    pub fn handle_clocks(&mut self, clocks: Clocks, now: Now) {
        self.clocks = clocks;
        self.expired_ms = match self.may_expire() {
            true => now.wall_ms.saturating_sub(self.config.limits.expiry_margin_ms),
            false => 0,
        };
    }

    /// Whether anything may go by time: while most clocks of the other regions show what ours does (R20).
    fn may_expire(&self) -> bool {
        self.clocks.agree || defect::on(Defect::ExpiresAlone)
    }

    /// Reads on for a shard of a part that is due.
    pub(super) fn sweep(&mut self, part: u32, now: Now) {
        if self.sweeps.reading {
            return;
        }
        let margin_ms = self.config.limits.expiry_margin_ms;
        let due = |(id, shard): &(&ShardId, &mut Shard)| {
            parts::of(**id) == part && shard.is_open() && shard.sweep.due(now, margin_ms)
        };
        // Whoever waits longest.
        let waits = self.shards.iter_mut().filter(due);
        let Some((id, shard)) = waits.min_by_key(|(id, shard)| (shard.sweep.next, **id)) else {
            return;
        };
        let sweep = &mut shard.sweep;
        if sweep.round.is_none() {
            sweep.round = Some(None);
            // What is found to be due later is told by the rows, and what comes meanwhile by the commits.
            sweep.from_ms = 0;
        }
        let after = sweep.round.clone().flatten();
        self.sweeps.reading = true;
        self.out.push_back(OwnerOutput::Read(Question::Sweep(*id, after)));
    }

    /// A page was read.
    pub(super) fn swept(&mut self, id: ShardId, users: Vec<UserTimes>, now: Now) {
        self.sweeps.ended();
        let limits = &self.config.limits;
        let (after_ms, margin_ms) = (limits.device_expiry_ms, limits.expiry_margin_ms);
        let (due_ms, may) = (now.wall_ms.saturating_sub(margin_ms), self.may_expire());
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let Some(epoch) = shard.open_epoch() else { return };
        let last = (users.len() == USERS_AT_ONCE).then(|| users.last().map(|last| last.user.clone()));
        for times in users {
            let user = times.user;
            shard.sweep.expires(times.expires_ms);
            let due = may && (1..=due_ms).contains(&times.expires_ms);
            if due && self.sweeps.look(id, &user) {
                self.out.push_back(expire(id, epoch, user.clone(), None));
            }
            for (device, life) in times.devices {
                let overdue = life.seen_ms == 0 || life.is_overdue((after_ms, margin_ms), now.wall_ms);
                let op = if shard.has_attached(&user, &device) {
                    if life.expiry.is_none() && !is_stale(life.seen_ms, after_ms, now.wall_ms) {
                        continue;
                    }
                    StoreOp::Register {
                        shard: id,
                        epoch,
                        user: user.clone(),
                        device,
                        claim: Vector::new(),
                    }
                } else if life.expiry.is_some() || (may && after_ms > 0 && overdue) {
                    StoreOp::ExpireDevice {
                        shard: id,
                        epoch,
                        user: user.clone(),
                        device,
                    }
                } else {
                    continue;
                };
                let tag = Tag::Remove(id, user.clone());
                self.out.push_back(OwnerOutput::Commit(op, tag));
            }
        }
        let sweep = &mut shard.sweep;
        sweep.round = last;
        if sweep.round.is_none() {
            sweep.next = now.mono + ms(margin_ms / 2);
            let devices = match after_ms {
                0 => DEVICES_MS,
                after_ms => (after_ms / (2 * REFRESHES)).clamp(1_000, DEVICES_MS),
            };
            sweep.devices = now.mono + ms(devices);
        }
    }

    /// A step over an inbox ended.
    pub(super) fn expired(
        &mut self,
        id: ShardId,
        user: UserId,
        outcome: Result<Outcome, StoreError>,
        now: Now,
    ) {
        match outcome {
            Ok(Outcome::Expired { next: Some(looked) }) => {
                if let Some(epoch) = self.open_epoch(id) {
                    self.out.push_back(expire(id, epoch, user, Some(looked)));
                    return;
                }
            }
            Ok(Outcome::Refused(Refusal::Fenced { .. })) => self.handle_fenced(id, now),
            // What could not be written is found by the next round.
            _ => {}
        }
        self.sweeps.looking.remove(&(id, user));
    }

    /// Of the devices that expire in these operations, those that are attached here: they must not (R19).
    pub fn attached_among(&self, id: ShardId, ops: &[LoggedOp]) -> Vec<(UserId, DeviceId)> {
        let Some(shard) = self.shards.get(&id) else {
            return Vec::new();
        };
        let devices = ops.iter().filter(|op| op.kind() == kind::DEVICE);
        let expire = devices.filter_map(|op| match op.decode() {
            Ok(Op::Device {
                user,
                device,
                change: DeviceChange::Expire { .. },
            }) => Some((user, device)),
            _ => None,
        });
        expire
            .filter(|(user, device)| shard.has_attached(user, device))
            .collect()
    }
}

impl Shard {
    fn has_attached(&self, user: &UserId, device: &DeviceId) -> bool {
        let sessions = self.users.get(user).into_iter().flatten();
        let mut attached = sessions.filter_map(|session| self.sessions.get(session));
        attached.any(|session| session.attach.receives && session.attach.device == *device)
    }
}

fn expire(shard: ShardId, epoch: Epoch, user: UserId, looked: Option<Looked>) -> OwnerOutput {
    let op = StoreOp::Expire {
        shard,
        epoch,
        user: user.clone(),
        looked,
    };
    OwnerOutput::Commit(op, Tag::Expire(shard, user))
}
