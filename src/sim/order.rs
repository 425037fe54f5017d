//! What must come before what: messages of a session (R21), and the origins of a region in time (R7).
//!
//! A restored store accepts until it learns that it had forgotten something. What it accepts by then is accepted *blind* to
//! that, and may be handled before it; nothing else may.

use std::collections::BTreeMap;

use super::check::Checker;
use super::world::World;
use crate::client::event::Incoming;
use crate::core::ids::{Coord, Origin, RegionId, Seq, SessionId, ShardId, UserId};
use crate::core::op::{LoggedOp, Op};
use crate::core::time::Hlc;

/// What an application handled last of each (sender, session, accepting region), for each origin of that region.
pub(super) type Handled = BTreeMap<(UserId, SessionId, RegionId), BTreeMap<Origin, (u64, Seq)>>;

/// Of messages that were accepted while their region lacked something of its own older origins: how far it had those.
pub(super) type Blind = BTreeMap<(ShardId, Coord), BTreeMap<Origin, Seq>>;

impl Checker {
    /// A region accepts a message: notes what of its own older origins it has not at this moment.
    pub(super) fn note_blind(&mut self, region: usize, name: &RegionId, shard: ShardId, at: Coord) {
        let origins = (shard, Origin(0))..=(shard, Origin(u64::MAX));
        let lacking: BTreeMap<Origin, Seq> = self
            .forgotten
            .range(origins)
            .filter(|((_, origin), _)| self.origins.get(origin) == Some(name))
            .map(|((_, origin), _)| *origin)
            .filter_map(|origin| {
                let has = |known: &BTreeMap<(ShardId, Origin), Seq>| known.get(&(shard, origin)).copied();
                let have = has(&self.stores[region].applied).unwrap_or(0);
                (have < has(&self.ever[region]).unwrap_or(0)).then_some((origin, have))
            })
            .collect();
        if !lacking.is_empty() {
            self.blind.insert((shard, at), lacking);
        }
    }

    /// Whether a message was accepted without knowledge of an earlier one.
    fn was_blind(&self, shard: ShardId, later: Coord, to: Coord) -> bool {
        let lacking = self.blind.get(&(shard, later));
        lacking
            .and_then(|lacking| lacking.get(&to.origin))
            .is_some_and(|have| to.seq > *have)
    }

    /// The time of an operation that was durable somewhere.
    pub(super) fn time_of(&self, shard: ShardId, at: Coord) -> Option<Hlc> {
        let entry = self.ledger.get(&(shard, at.origin, at.seq))?;
        Some(entry.op.hlc())
    }

    /// The time that an operation must be above: that of the one before it in its log, or of what its `Start` names.
    pub(super) fn time_before(&self, shard: ShardId, at: Coord, op: &LoggedOp) -> Option<Hlc> {
        match op.decode() {
            Ok(Op::Start { previous, .. }) => self.time_of(shard, previous?),
            _ => {
                let seq = at.seq.checked_sub(1)?;
                self.time_of(shard, Coord { seq, ..at })
            }
        }
    }

    /// An origin of `region` that starts now must be above all that its store knows of the region's earlier ones; what it
    /// has forgotten it cannot know. What is wrong, if anything is.
    pub(super) fn wrong_start(
        &self,
        region: usize,
        name: &RegionId,
        shard: ShardId,
        op: &LoggedOp,
    ) -> Option<String> {
        let origins = (shard, Origin(0))..=(shard, Origin(u64::MAX));
        let known = self.stores[region].applied.range(origins);
        // Of one that is retired nothing is left that could be passed, and a tombstone has no time.
        let known = known.filter(|((_, origin), _)| {
            self.origins.get(origin) == Some(name) && !self.retired.contains(&(shard, *origin))
        });
        known
            .map(|((_, origin), seq)| Coord {
                origin: *origin,
                seq: *seq,
            })
            .find_map(|at| {
                let time = self.time_of(shard, at)?;
                (time >= op.hlc()).then(|| {
                    format!(
                        "{name} starts an origin of shard {shard} at {:?}, and has {at} at {time:?}",
                        op.hlc()
                    )
                })
            })
    }
}

impl World {
    /// The application of a device handled message `number`, which `region` accepted.
    pub(super) fn check_order(
        &mut self,
        device: usize,
        incoming: &Incoming,
        number: u64,
        region: &RegionId,
        words: Vec<String>,
    ) {
        let at = incoming.at;
        let shard = self.check.shard_of(number);
        let key = (incoming.from.clone(), incoming.session, region.clone());
        let handled = self.check.seen[device].order.entry(key).or_default().clone();
        let passed = handled.iter().find(|(origin, (last, seq))| {
            let later = Coord {
                origin: **origin,
                seq: *seq,
            };
            *last >= incoming.session_seq && !self.check.was_blind(shard, later, at)
        });
        if let Some((origin, (last, seq))) = passed {
            let detail = format!(
                "{} handles #{number} at {at}, {} of session {:x} of {} accepted in {region}, after {last} at {origin:?}:{seq}",
                self.devices[device].name(),
                incoming.session_seq,
                incoming.session.0,
                incoming.from
            );
            return self.fail("order (R21)", detail, words);
        }
        let key = (incoming.from.clone(), incoming.session, region.clone());
        let handled = self.check.seen[device].order.entry(key).or_default();
        handled.insert(at.origin, (incoming.session_seq, at.seq));
    }
}
