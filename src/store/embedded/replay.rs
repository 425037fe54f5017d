//! Start: from the tables and the journal to the state.
//!
//! The tables hold everything that commits through `covered` did, and any part of what a checkpoint that was not
//! completed wrote later. Replay applies the decisions of every later commit. What makes that come out right:
//!
//! - A row carries the last commit that it includes, and leaves out the decisions of commits through that one. Rows do
//!   not depend on each other when a decision is applied, so each may stand at a commit of its own.
//! - Items of logs and inboxes are taken from the journal, whatever the tables may have of them: the part that lies
//!   behind ends before the first one that is replayed. Removals and trimming are applied again.
//! - A dedup record is a set that grows, so adding to it again changes nothing.
//!
//! Nothing is decided again.

use std::collections::BTreeMap;

use super::record::{Extent, decode_decisions};
use super::tables::Tables;
use super::view::View;
use crate::core::ids::{Coord, Seq, ShardId, UserId};
use crate::core::op::Op;
use crate::core::state::{Decision, DedupKey, Logged, Parts};
use crate::store::engine::StoreError;
use crate::store::journal::VisitError;

/// Applies journal records to a view.
pub(super) struct Replay<'a, T> {
    view: &'a mut View<T>,
    shards: BTreeMap<ShardId, u64>,
    /// Only of users whose row includes a commit that is replayed.
    users: BTreeMap<(ShardId, UserId), u64>,
}

impl<'a, T: Tables> Replay<'a, T> {
    /// `shards` are the commits that the shard rows include.
    pub(super) fn new(view: &'a mut View<T>, shards: BTreeMap<ShardId, u64>) -> Self {
        Self {
            view,
            shards,
            users: BTreeMap::new(),
        }
    }

    pub(super) fn record(&mut self, commit: u64, payload: &[u8]) -> Result<(), VisitError> {
        let decisions = decode_decisions(payload)?;
        // A row may include commits that are still to come: not newer than the journal is checked at the end.
        self.view.last = u64::MAX;
        for decision in &decisions {
            let parts = self.prepare(commit, decision)?;
            self.view.state.apply_parts(decision, parts);
        }
        self.view.last = commit;
        self.view.absorb(&decisions);
        Ok(())
    }

    /// The highest commit that any row includes.
    pub(super) fn newest_row(&self) -> u64 {
        let rows = self.shards.values().chain(self.users.values());
        rows.copied().max().unwrap_or(0)
    }

    /// Loads what the decision touches and says which rows lack it.
    fn prepare(&mut self, commit: u64, decision: &Decision) -> Result<Parts, StoreError> {
        let id = decision.shard();
        let shard = self.shards.get(&id).is_none_or(|as_of| commit > *as_of);
        let user = match decision {
            Decision::Logged(logged) => self.prepare_logged(commit, logged)?,
            Decision::Consumed { user, .. } => self.lacks(commit, id, user)?,
            Decision::Removed { user, origin, to, .. } => {
                let lacks = self.lacks(commit, id, user)?;
                let extents = self.view.marks.entry(id).or_default().users.entry(user.clone());
                let extent = extents.or_default().entry(*origin).or_default();
                extent.lo = 0;
                extent.hi = extent.hi.max(*to);
                lacks
            }
            Decision::Trimmed { origin, to, .. } => {
                let extents = &mut self.view.marks.entry(id).or_default().logs;
                let extent = extents.entry(*origin).or_default();
                extent.lo = 0;
                extent.hi = extent.hi.max(*to);
                false
            }
            Decision::UserMerged { user, .. }
            | Decision::Expired { user, .. }
            | Decision::Expires { user, .. }
            | Decision::DeviceExpired { user, .. } => self.lacks(commit, id, user)?,
            Decision::Merged { user, at, op, .. } => {
                if let Ok(envelope) = op.envelope() {
                    self.view.load_dedup(id, DedupKey::of(&envelope))?;
                }
                let lacks = self.lacks(commit, id, user)?;
                self.end_before(id, user, *at);
                lacks
            }
            Decision::DedupMerged { key, .. } => {
                self.view.load_dedup(id, key.clone())?;
                false
            }
            Decision::Epoch { .. }
            | Decision::DedupDropped { .. }
            | Decision::Recovery { .. }
            | Decision::Jumped { .. }
            | Decision::Marked { .. }
            | Decision::Behind { .. }
            | Decision::Needed { .. }
            | Decision::Retired { .. }
            | Decision::Merging { .. } => false,
        };
        Ok(Parts { shard, user })
    }

    fn prepare_logged(&mut self, commit: u64, logged: &Logged) -> Result<bool, StoreError> {
        let (id, at) = (logged.shard, logged.coord());
        let shard = self.view.state.shards.entry(id).or_default();
        let series = shard.logs.entry(at.origin).or_default();
        if series.tail.is_empty() {
            series.behind = series.behind.min(at.seq - 1);
            let marks = self.view.marks.entry(id).or_default();
            end_extent(marks.logs.entry(at.origin).or_default(), at.seq - 1);
        }
        match logged.entry.op.decode() {
            Ok(Op::Append(envelope, _)) => {
                self.view.load_dedup(id, DedupKey::of(&envelope))?;
                let lacks = self.lacks(commit, id, &envelope.to)?;
                if !logged.merged {
                    self.end_before(id, &envelope.to, at);
                }
                Ok(lacks)
            }
            Ok(Op::Cursor { user, .. } | Op::Device { user, .. }) => self.lacks(commit, id, &user),
            Ok(Op::Start { .. } | Op::Confirm { .. } | Op::Holders(_)) => Ok(false),
            Err(e) => Err(StoreError::Corrupt(format!("operation {at}: {e}"))),
        }
    }

    /// What lies behind ends before this message.
    fn end_before(&mut self, id: ShardId, user: &UserId, at: Coord) {
        let before: Seq = at.seq - 1;
        let known = self.view.state.shards.get_mut(&id);
        let known = known.and_then(|shard| shard.users.get_mut(user));
        if let Some(series) = known.and_then(|known| known.inbox.get_mut(&at.origin)) {
            if !series.tail.is_empty() {
                return;
            }
            series.behind = series.behind.min(before);
        }
        let users = &mut self.view.marks.entry(id).or_default().users;
        let extents = users.entry(user.clone()).or_default();
        end_extent(extents.entry(at.origin).or_default(), before);
    }

    fn lacks(&mut self, commit: u64, id: ShardId, user: &UserId) -> Result<bool, StoreError> {
        if let Some(as_of) = self.view.load_user(id, user)?
            && as_of >= commit
        {
            self.users.insert((id, user.clone()), as_of);
        }
        let as_of = self.users.get(&(id, user.clone()));
        Ok(as_of.is_none_or(|as_of| commit > *as_of))
    }
}

/// The tables may have anything to here that is still to be removed, and hold no later item for sure.
fn end_extent(extent: &mut Extent, to: Seq) {
    if extent.hi == 0 || to < extent.hi {
        extent.hi = to;
    }
    extent.lo = 0;
}
