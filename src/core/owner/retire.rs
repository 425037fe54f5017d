//! Looking for what old origins are needed for (R23): the commits judge, here is the looking in between.
//!
//! A commit says which origins are to be looked for ([`Retirement::look`]). The users of the shard are then read page by
//! page, one origin after the other and one page in flight. The first user who needs an origin ends its look, and is where the
//! next one begins: in the next interval in which something was committed to the shard. A whole pass without one is told to the
//! store. So a device that is away for months costs a row now and then, not passes over all users. What a store removes in its
//! own time is no commit to the owner, so who was found is looked at once more, an interval later.

use std::collections::BTreeMap;

use super::{Owner, OwnerOutput, Question, Shard, Tag};
use crate::core::commit::{Outcome, Refusal, StoreOp};
use crate::core::ids::{Epoch, Origin, Seq, SessionId, ShardId, UserId};
use crate::core::retire::{self, Retirement};
use crate::core::storage::{NeededPage, StoreError};
use crate::core::time::Now;

/// What is looked for in a shard.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// What is retired: vectors from outside that name it are not listened to.
    pub(super) retired: BTreeMap<Origin, Seq>,
    /// Where to begin, of origins that somebody needed.
    from: BTreeMap<Origin, UserId>,
    /// Whose turn comes behind the running one; `true` where only messages that are stored count.
    left: BTreeMap<Origin, bool>,
    /// Somebody needed them: looked at once more.
    again: BTreeMap<Origin, bool>,
    running: Option<Running>,
    /// It recovers, and what others have retired is to be let go of first.
    pub(super) told: bool,
}

#[derive(Debug)]
struct Running {
    number: u64,
    origin: Origin,
    stored: bool,
    /// A whole pass begins at the first user; one that began later needs another one.
    whole: bool,
    found: bool,
    /// The second look.
    again: bool,
}

impl Look {
    /// Whether somebody is to be looked at once more.
    pub(super) fn waits(&self) -> bool {
        !self.again.is_empty()
    }
}

impl Shard {
    /// Whether the store is to judge old origins: each region has one origin, so that more are old ones.
    fn has_old(&self, holders: usize) -> bool {
        self.look.told || self.applied.len() > holders
    }

    /// What is asked of the store in each interval in which something was committed.
    pub(super) fn retire_op(&self, id: ShardId, epoch: Epoch, holders: usize) -> Option<OwnerOutput> {
        self.has_old(holders).then(|| retire_op(id, epoch, Vec::new()))
    }
}

fn retire_op(shard: ShardId, epoch: Epoch, unneeded: Vec<Origin>) -> OwnerOutput {
    let op = StoreOp::Retire {
        shard,
        epoch,
        unneeded,
    };
    OwnerOutput::Commit(op, Tag::Retire(shard))
}

impl Owner {
    pub(super) fn retired(&mut self, id: ShardId, outcome: Result<Outcome, StoreError>, now: Now) {
        match outcome {
            Ok(Outcome::Retired(retirement)) => self.go_on_retiring(id, retirement),
            Ok(Outcome::Refused(Refusal::Fenced { .. })) => self.handle_fenced(id, now),
            _ => self.look_again(id),
        }
    }

    fn look_again(&mut self, id: ShardId) {
        if let Some(shard) = self.shards.get_mut(&id) {
            shard.dirty = true;
        }
    }

    fn go_on_retiring(&mut self, id: ShardId, retirement: Retirement) {
        let Retirement { retired, look } = retirement;
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        if !retired.is_empty() {
            let roomier = shard.forget_retired(&retired);
            // The next confirmation tells of it.
            shard.dirty = true;
            for session in roomier {
                self.read_on(id, session);
            }
            self.out.push_back(OwnerOutput::Retired(id, retired));
        }
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        shard.look.from.retain(|origin, _| look.contains_key(origin));
        shard.look.again.clear();
        shard.look.left = look;
        self.look_next(id, false);
    }

    /// Begins with the next origin, unless one is being looked for.
    fn look_next(&mut self, id: ShardId, again: bool) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        if shard.look.running.is_some() {
            return;
        }
        let Some((origin, stored)) = shard.look.left.pop_first() else {
            return;
        };
        self.looks += 1;
        let from = shard.look.from.remove(&origin);
        shard.look.running = Some(Running {
            number: self.looks,
            origin,
            stored,
            whole: from.is_none(),
            found: false,
            again,
        });
        self.look_on(id, from);
    }

    /// Nothing was committed since those who need something were found.
    pub(super) fn look_once_more(&mut self, id: ShardId) {
        if let Some(shard) = self.shards.get_mut(&id)
            && shard.look.running.is_none()
        {
            shard.look.left.append(&mut shard.look.again);
            self.look_next(id, true);
        }
    }

    fn look_on(&mut self, id: ShardId, from: Option<UserId>) {
        let Some(shard) = self.shards.get(&id) else {
            return;
        };
        if let Some(running) = &shard.look.running {
            self.out.push_back(OwnerOutput::Read(Question::Needed {
                shard: id,
                number: running.number,
                origin: running.origin,
                stored: running.stored,
                from,
            }));
        }
    }

    /// A page of users was looked at.
    pub(super) fn looked(&mut self, id: ShardId, number: u64, page: Option<NeededPage>) {
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let Some(running) = shard
            .look
            .running
            .as_mut()
            .filter(|running| running.number == number)
        else {
            return;
        };
        let (Some(page), Some(epoch)) = (page, shard.epoch) else {
            shard.look.running = None;
            shard.dirty = true;
            return;
        };
        let (origin, again) = (running.origin, running.again);
        running.found |= !page.users.is_empty();
        if running.stored {
            for (user, origins) in page.users {
                let op = StoreOp::Forgo {
                    shard: id,
                    epoch,
                    user,
                    origins,
                };
                self.out.push_back(OwnerOutput::Commit(op, Tag::Retire(id)));
            }
        } else if let Some((user, _)) = page.users.into_iter().next() {
            shard.look.from.insert(origin, user);
            shard.look.running = None;
            if !again {
                shard.look.again.insert(origin, false);
            }
            return self.look_next(id, again);
        }
        if page.next.is_some() {
            return self.look_on(id, page.next);
        }
        let (whole, found) = (running.whole, running.found);
        shard.look.running = None;
        shard.dirty = true;
        // What was found was let go of, and what lies before where it began was not needed earlier: both are looked at again.
        if whole && !found {
            self.out.push_back(retire_op(id, epoch, vec![origin]));
        }
        self.look_next(id, again);
    }
}

impl Shard {
    /// Gives the sessions that have room in their windows by that.
    fn forget_retired(&mut self, retired: &BTreeMap<Origin, Seq>) -> Vec<SessionId> {
        self.look.retired.extend(retired);
        retire::strip(&mut self.applied, retired);
        for said in self.stable.values_mut() {
            retire::strip(said, retired);
        }
        let mut roomier = Vec::new();
        for (session, attachment) in &mut self.sessions {
            if attachment.forget_retired(retired) {
                roomier.push(*session);
            }
        }
        roomier
    }
}
