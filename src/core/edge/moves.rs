//! Where the clients of a region are to be: sent to other regions while theirs is evacuated, and home again once it is
//! restored, each at a limited rate.
//!
//! **Evacuated.** Who says `Hello` is told `GoAway` with the endpoints of the other regions, and the connection is closed.
//! Sessions at hand are told the same one after the other. A client that is told and from which nothing is heard within
//! `probe_ms` is gone, as in a drain; one that is there and does not leave is closed after [`LEAVE_WITHIN`].
//!
//! **Home.** A session whose `Hello` says [`AWAY`](crate::core::wire::AWAY) is in another region than its client prefers.
//! When a region is restored, those that are away then, or come until those were told, are told `GoAway` with [`Code::Restored`] and that region first. The
//! client alone knows which region it prefers: it goes if it is this one, and stays otherwise. Each session is told at most
//! once for each restoration, so that a client which cannot reach its region does not go to and fro.
//!
//! **In order (R22).** Before a client is told to go, its user's owner is asked to where it took messages ([`ToOwner::Leave`]). The
//! client takes the answer along, and the owner in the other region gives it what is older first.
//!
//! [`ToOwner::Leave`]: crate::core::msg::ToOwner::Leave

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{Edge, EdgeOutput};
use crate::core::ids::{ConnId, RegionId, SessionId};
use crate::core::msg::Leave;
use crate::core::time::{Mono, Now};
use crate::core::vector::Vector;
use crate::core::wire::{Code, MAX_AFTER, RegionEndpoints, ServerFrame};

/// A client that was told to leave an evacuated region has so long: as much as a node that drains gives by default.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(30);
/// An owner that does not say within this what is to come first in another region is not waited for: it is on its way, too.
const ASKED: Duration = Duration::from_secs(1);
/// Sessions are told in steps no shorter than this: a timer for each of them would say no more.
const STEP: Duration = Duration::from_millis(50);

/// How many sessions are told in one step, and how long the steps are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub(super) sessions: usize,
    pub(super) every: Duration,
}

impl Pace {
    /// The part of one edge in `rate` sessions a second that `edges` of them share; 0 of either counts as 1. Never faster
    /// than that.
    pub fn shared(rate: u32, edges: u32) -> Self {
        let each = (1_000_000 * u64::from(edges.max(1))).div_ceil(u64::from(rate.max(1)));
        let step = u64::try_from(STEP.as_micros()).unwrap_or(u64::MAX);
        let sessions = (step / each).max(1);
        Self {
            sessions: usize::try_from(sessions).unwrap_or(usize::MAX),
            every: Duration::from_micros(sessions * each),
        }
    }
}

/// Sessions that wait for their turn to be told something.
#[derive(Debug)]
struct Turns {
    pace: Pace,
    /// When the next step is due.
    at: Mono,
    /// Those that have ended meanwhile are passed over.
    left: VecDeque<SessionId>,
}

impl Turns {
    /// Whose turn it is now, if a step is due.
    fn step(&mut self, now: Mono) -> Vec<SessionId> {
        if self.at > now || self.left.is_empty() {
            return Vec::new();
        }
        self.at = now + self.pace.every;
        let some = self.pace.sessions.min(self.left.len());
        self.left.drain(..some).collect()
    }

    fn poll_timeout(&self) -> Option<Mono> {
        (!self.left.is_empty()).then_some(self.at)
    }
}

/// Where a client is to be told to go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Going {
    /// This region is evacuated.
    Away,
    /// A region takes sessions again.
    Home(RegionId),
}

/// What an edge knows of where clients are to be.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// While this region is evacuated: those that are to leave and were not told.
    leave: Option<Turns>,
    /// Those that were told to leave, and until when they may stay.
    told: VecDeque<(Mono, SessionId)>,
    /// Those whose clients prefer another region.
    pub(super) away: BTreeSet<SessionId>,
    /// Those whose owner was asked what comes first in another region, until when that is waited for, and what they are to be
    /// told then.
    asked: BTreeMap<SessionId, (Mono, Going)>,
    /// By restored region: those to be told that were away when it was.
    home: BTreeMap<RegionId, Turns>,
}

impl Moves {
    /// A session began whose client prefers another region: it is told of those that are being restored, as one that was
    /// there before.
    pub(super) fn came_away(&mut self, id: SessionId) {
        self.away.insert(id);
        for turns in self.home.values_mut() {
            turns.left.push_back(id);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Mono> {
        let home = self.home.values().filter_map(Turns::poll_timeout);
        let leave = self.leave.as_ref().and_then(Turns::poll_timeout);
        let told = self.told.front().map(|(until, _)| *until);
        let asked = self.asked.values().map(|(until, _)| *until);
        home.chain(leave).chain(told).chain(asked).min()
    }
}

impl Edge {
    /// This region is evacuated at a pace, or takes sessions again. The same again changes nothing, another pace that alone.
    pub fn handle_evacuation(&mut self, pace: Option<Pace>, now: Now) {
        self.mono = now.mono;
        let Some(pace) = pace else {
            // Who was told leaves, or may as well stay.
            self.moves.leave = None;
            self.moves.told.clear();
            self.moves.asked.retain(|_, (_, going)| *going != Going::Away);
            return;
        };
        match &mut self.moves.leave {
            Some(turns) => {
                turns.pace = pace;
                turns.at = turns.at.min(now.mono + pace.every);
            }
            None => {
                self.moves.leave = Some(Turns {
                    pace,
                    at: now.mono,
                    left: self.sessions.keys().copied().collect(),
                });
                self.moves_timeout();
            }
        }
    }

    /// Another region takes sessions again: those that are away are told so, at a pace.
    pub fn handle_restored(&mut self, region: RegionId, pace: Pace, now: Now) {
        self.mono = now.mono;
        if region == self.config.me.node.region {
            return;
        }
        let turns = Turns {
            pace,
            at: now.mono,
            left: self.moves.away.iter().copied().collect(),
        };
        self.moves.home.insert(region, turns);
        self.moves_timeout();
    }

    /// Another region takes no sessions (any more): nobody is told to go there.
    pub fn handle_evacuated(&mut self, region: &RegionId) {
        self.moves.home.remove(region);
    }

    /// Whether this region is evacuated.
    pub fn is_evacuated(&self) -> bool {
        self.moves.leave.is_some()
    }

    /// Sessions that are not told yet that a region is restored which their clients may prefer.
    pub fn returning(&self) -> usize {
        self.moves.home.values().map(|turns| turns.left.len()).sum()
    }

    /// Where clients are told to go: everywhere, the own region first; while it is evacuated, the other regions alone.
    pub(super) fn told_regions(&self) -> Vec<RegionEndpoints> {
        let mut regions = self.endpoints.clone();
        if self.is_evacuated() {
            regions.retain(|region| region.region != self.config.me.node.region);
        }
        regions
    }

    /// Turns a connection away that has no session: this region is evacuated.
    pub(super) fn turn_away(&mut self, conn: ConnId) {
        let (code, regions) = (Code::Draining, self.told_regions());
        let frames = vec![ServerFrame::GoAway { code, regions }];
        self.ready.push_back(EdgeOutput::Client { conn, frames });
        self.refuse(conn, code, EVACUATED);
    }

    /// Does what is due.
    pub(super) fn moves_timeout(&mut self) {
        let now = self.mono;
        let leave = self.moves.leave.as_mut().map(|turns| turns.step(now));
        for id in leave.into_iter().flatten() {
            self.tell_to_leave(id);
        }
        while let Some((_, id)) = self.moves.told.pop_front_if(|(until, _)| *until <= now) {
            self.fail(id, Code::Draining, EVACUATED);
        }
        let home = self.moves.home.iter_mut();
        let told: Vec<(RegionId, Vec<SessionId>)> = home
            .map(|(region, turns)| (region.clone(), turns.step(now)))
            .collect();
        for (region, id) in told
            .iter()
            .flat_map(|(region, ids)| ids.iter().map(move |id| (region, *id)))
        {
            self.tell_of_home(region, id);
        }
        self.moves.home.retain(|_, turns| !turns.left.is_empty());
        let late = self.moves.asked.iter().filter(|(_, (until, _))| *until <= now);
        let late: Vec<SessionId> = late.map(|(id, _)| *id).collect();
        for id in late {
            if let Some((_, going)) = self.moves.asked.remove(&id) {
                self.tell_to_go(id, &going);
            }
        }
    }

    /// Asks what is to come first in another region, where the client takes that along; else it is told at once.
    fn send_off(&mut self, id: SessionId, going: Going) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let (shard, asks) = (session.shard, session.in_order && session.receives);
        match self.routing.lane_mut(session.lane).filter(|_| asks) {
            Some(lane) => {
                lane.out.leave.push(Leave { shard, session: id });
                self.moves.asked.insert(id, (self.mono + ASKED, going));
            }
            None => self.tell_to_go(id, &going),
        }
    }

    /// The owner says what is to come first in another region.
    pub(super) fn on_position(&mut self, id: SessionId, after: Vector) {
        if let Some((_, going)) = self.moves.asked.remove(&id) {
            if after.len() <= MAX_AFTER {
                self.tell(id, ServerFrame::After(after));
            }
            self.tell_to_go(id, &going);
        }
    }

    fn tell_to_go(&mut self, id: SessionId, going: &Going) {
        match going {
            Going::Away => {
                let (code, regions) = (Code::Draining, self.told_regions());
                self.moves.told.push_back((self.mono + LEAVE_WITHIN, id));
                self.tell(id, ServerFrame::GoAway { code, regions });
                self.look_for_life(id);
            }
            Going::Home(region) => {
                let (code, regions) = (Code::Restored, self.regions_from(region));
                self.tell(id, ServerFrame::GoAway { code, regions });
            }
        }
    }

    /// All regions, this one first.
    fn regions_from(&self, region: &RegionId) -> Vec<RegionEndpoints> {
        let mut regions = self.endpoints.clone();
        // Stable: the others stay in their order.
        regions.sort_by_key(|told| told.region != *region);
        regions
    }

    fn tell_to_leave(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let (code, regions) = (Code::Draining, self.told_regions());
        if !session.welcomed {
            self.tell(id, ServerFrame::GoAway { code, regions });
            return self.fail(id, code, EVACUATED);
        }
        self.send_off(id, Going::Away);
    }

    fn tell_of_home(&mut self, region: &RegionId, id: SessionId) {
        let regions = self.regions_from(region);
        let known = regions.first().is_some_and(|first| first.region == *region);
        let Some(session) = self.sessions.get(&id).filter(|_| known) else {
            return;
        };
        if session.welcomed {
            self.send_off(id, Going::Home(region.clone()));
        } else if let Some(turns) = self.moves.home.get_mut(region) {
            // A `GoAway` before `Welcome` would turn it away.
            turns.left.push_back(id);
        }
    }
}

/// For people.
const EVACUATED: &str = "this region is evacuated: connect to another one";
