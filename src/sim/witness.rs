//! What the clients of a run saw, and what was done to it, with times: what drills measure. Noting changes nothing.
//!
//! A fault ends when what it broke is whole again: its span is over, and the nodes that it stopped run and serve, as an
//! operator would see. Everything else comes from the clients alone. The log ends when all is settled, before the first
//! client is made to leave.

use std::collections::BTreeMap;

use super::case::SECOND;
use super::fault::{Fault, Kind};
use super::faults::{DRAIN, RESTART, ROLL, keeps};
use super::trace::Micros;
use super::world::World;
use crate::client::event::{ClientEvent, Incoming, Ticket};
use crate::core::wire::Durability;

/// Something that happened at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// When; notes are in the order of their times.
    pub at: Micros,
    /// What.
    pub what: What,
}

/// What happened. Devices are numbered over all users, in the order of the case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A session of a device stands.
    Connected {
        /// Whose.
        device: usize,
        /// The region that serves.
        region: String,
        /// The node.
        node: String,
    },
    /// A connection, or an attempt to make one, ended.
    Disconnected {
        /// Whose.
        device: usize,
        /// Why.
        why: String,
    },
    /// An application gave a message to its client.
    Sent {
        /// Which.
        number: u64,
        /// By whom.
        from: usize,
        /// For which user, by its place in the case.
        to: usize,
    },
    /// A client was told that a message is accepted.
    Accepted {
        /// Which.
        number: u64,
        /// Another region has it, too.
        geo: bool,
        /// It had been accepted before.
        duplicate: bool,
    },
    /// A message was refused for good.
    Rejected {
        /// Which.
        number: u64,
        /// Why.
        why: String,
    },
    /// An application handled a message.
    Handled {
        /// Which.
        number: u64,
        /// By whom.
        device: usize,
        /// The session of its sender.
        session: u64,
        /// The origin of the region that accepted it.
        origin: u64,
    },
    /// An application was told that messages are gone.
    Gone {
        /// Who.
        device: usize,
        /// How many, where that is known; 0 otherwise.
        count: u64,
    },
    /// A watcher was told of a user's presence.
    Shown {
        /// Who was told.
        device: usize,
        /// Of which user, by its place in the case.
        user: usize,
        /// Devices that are not offline.
        devices: u32,
        /// They are out of reach.
        unreachable: bool,
    },
    /// A fault had an effect.
    Begins {
        /// Its place in the case.
        fault: usize,
        /// Operations that waited on links between regions as it began, by the nodes that ran.
        operations: u64,
        /// For how long the oldest of them did, by its node's clock.
        oldest_ms: u64,
    },
    /// What a fault broke is whole.
    Ends {
        /// Its place in the case.
        fault: usize,
    },
    /// Everything heals, and nothing more is sent.
    LoadEnds,
}

/// Keeps notes, where they are wanted.
#[derive(Debug, Default)]
pub(super) struct Witness {
    wanted: bool,
    notes: Vec<Noted>,
    /// Messages that wait for their answer.
    waiting: BTreeMap<(usize, Ticket), u64>,
    /// Faults that strike and are over, and not yet got over.
    open: BTreeMap<usize, Open>,
}

/// What is waited for until a fault has ended.
#[derive(Debug)]
struct Open {
    /// It lasts so long at least.
    until: Micros,
    /// The nodes that it stopped.
    nodes: Vec<usize>,
}

impl Witness {
    /// One that notes, or does not.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            ..Self::default()
        }
    }

    /// All notes.
    pub(super) fn into_notes(self) -> Vec<Noted> {
        self.notes
    }

    fn note(&mut self, at: Micros, what: What) {
        if self.wanted {
            self.notes.push(Noted { at, what });
        }
    }
}

impl World {
    /// An application gave a message to its client, and it was taken.
    pub(super) fn witness_sent(&mut self, (from, to): (usize, usize), ticket: Ticket, number: u64) {
        if self.witness.wanted {
            self.witness.waiting.insert((from, ticket), number);
            self.witness.note(self.now, What::Sent { number, from, to });
        }
    }

    /// A client tells its application something.
    pub(super) fn witness_event(&mut self, device: usize, event: &ClientEvent) {
        if !self.witness.wanted {
            return;
        }
        let what = match event {
            ClientEvent::Connected { region, node, .. } => Some(What::Connected {
                device,
                region: region.to_string(),
                node: node.clone(),
            }),
            ClientEvent::Disconnected { reason, .. } => Some(What::Disconnected {
                device,
                why: reason.to_string(),
            }),
            ClientEvent::Accepted {
                ticket,
                duplicate,
                durability,
                ..
            } => self.answered(device, *ticket).map(|number| What::Accepted {
                number,
                geo: *durability == Durability::Geo,
                duplicate: *duplicate,
            }),
            ClientEvent::Rejected {
                ticket, code, detail, ..
            } => self.answered(device, *ticket).map(|number| What::Rejected {
                number,
                why: format!("{code:?}: {detail}"),
            }),
            ClientEvent::Presence(event) => {
                let user = self.named_users.get(event.user.as_str());
                user.map(|user| What::Shown {
                    device,
                    user: *user,
                    devices: event.devices,
                    unreachable: event.unreachable_since_ms.is_some(),
                })
            }
            _ => None,
        };
        if let Some(what) = what {
            self.witness.note(self.now, what);
        }
    }

    fn answered(&mut self, device: usize, ticket: Ticket) -> Option<u64> {
        self.witness.waiting.remove(&(device, ticket))
    }

    /// An application handles a message.
    pub(super) fn witness_handled(&mut self, device: usize, incoming: &Incoming) {
        if let Some(raw) = incoming.body.first_chunk() {
            let number = u64::from_be_bytes(*raw);
            let (session, origin) = (incoming.session.0, incoming.at.origin.0);
            let what = What::Handled {
                number,
                device,
                session,
                origin,
            };
            self.witness.note(self.now, what);
        }
    }

    /// An application handles that messages are gone.
    pub(super) fn witness_gone(&mut self, device: usize, count: u64) {
        self.witness.note(self.now, What::Gone { device, count });
    }

    /// A fault had an effect.
    pub(super) fn witness_begins(&mut self, index: usize) {
        if !self.witness.wanted {
            return;
        }
        let (operations, oldest_ms) = self.waits();
        let begins = What::Begins {
            fault: index,
            operations,
            oldest_ms,
        };
        self.witness.note(self.now, begins);
        let fault = &self.plan.faults[index];
        if !keeps(fault.kind) {
            let nodes = self.stopped_by(fault);
            let until = self.now.saturating_add(lasts(fault, nodes.len()));
            self.witness.open.insert(index, Open { until, nodes });
        }
    }

    /// What waits on links between regions: how many operations, and for how many milliseconds the oldest.
    fn waits(&self) -> (u64, u64) {
        let (mut operations, mut oldest) = (0, 0);
        for (number, node) in self.nodes.iter().enumerate() {
            let now = self.clocks(number);
            let tasks = node.process.iter().flat_map(|process| &process.tasks);
            let links = tasks.flat_map(|task| task.machine.links().snapshot(now));
            for behind in links.filter_map(|link| Some(link.serve?.behind)) {
                operations += behind.operations;
                let since = behind
                    .since_ms
                    .map_or(0, |since| now.wall_ms.saturating_sub(since));
                oldest = oldest.max(since);
            }
        }
        (operations, oldest)
    }

    /// A fault that holds until it ends has ended.
    pub(super) fn witness_ends(&mut self, fault: usize) {
        self.witness.note(self.now, What::Ends { fault });
    }

    /// Everything heals.
    pub(super) fn witness_heals(&mut self) {
        self.witness.note(self.now, What::LoadEnds);
    }

    /// Clients are made to leave, and what they see does not count any more.
    pub(super) fn witness_leaves(&mut self) {
        self.witness.wanted = false;
        self.witness.open.clear();
    }

    /// Whether what strikes and is over has been got over by now.
    pub(super) fn witness_looks(&mut self) {
        if self.witness.open.is_empty() {
            return;
        }
        let open = self.witness.open.iter();
        let whole = open.filter(|(_, open)| {
            self.now >= open.until && open.nodes.iter().all(|node| self.is_serving(*node))
        });
        let whole: Vec<usize> = whole.map(|(fault, _)| *fault).collect();
        for fault in whole {
            self.witness.open.remove(&fault);
            self.witness_ends(fault);
        }
    }

    /// The nodes that a fault stops, or whose stores.
    fn stopped_by(&self, fault: &Fault) -> Vec<usize> {
        let nodes = fault.on.iter().flat_map(|place| self.plan.nodes_at(place));
        match fault.kind {
            Kind::Crash | Kind::Rolling | Kind::Pause | Kind::Lose => nodes.collect(),
            Kind::StoreStop | Kind::Restore | Kind::DiskReplaced => {
                let regions = fault.on.iter().flat_map(|place| self.plan.regions_at(place));
                regions.map(|region| self.core_of(region)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// As `/readyz` has it: it runs, and a core owns what is placed there.
    fn is_serving(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        let runs = node.process.is_some() && node.paused_until <= self.now;
        runs && (!node.core || self.is_whole(node.region))
    }
}

/// How long a fault that strikes and is over keeps its nodes away at least.
fn lasts(fault: &Fault, nodes: usize) -> Micros {
    match fault.kind {
        Kind::Rolling => {
            let before = nodes.saturating_sub(1) as Micros;
            let away = fault.lasts.unwrap_or(RESTART);
            let drains = if fault.told { DRAIN } else { 0 };
            let all = before.saturating_mul(fault.every.unwrap_or(ROLL));
            all.saturating_add(drains).saturating_add(away)
        }
        // Its node follows it within this.
        Kind::StoreStop => 2 * SECOND,
        _ => fault.lasts.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Options, Report, draw, run};

    fn watched(seed: u64) -> Report {
        let options = Options {
            witness: true,
            ..Options::default()
        };
        run(seed, options)
    }

    #[test]
    fn a_run_is_the_same_whether_it_is_noted_or_not() {
        for seed in 0..12 {
            let (seen, unseen) = (watched(seed), run(seed, Options::default()));
            assert_eq!(
                (seen.hash, seen.events, seen.time),
                (unseen.hash, unseen.events, unseen.time)
            );
            assert!(!seen.notes.is_empty() && unseen.notes.is_empty(), "seed {seed}");
        }
    }

    /// Against what the checkers counted: all notes are made, and none after the log's end.
    #[test]
    fn notes_are_in_order_and_lack_nothing() {
        for seed in 0..12 {
            let report = watched(seed);
            let count =
                |of: fn(&What) -> bool| report.notes.iter().filter(|noted| of(&noted.what)).count() as u64;
            assert!(report.notes.is_sorted_by_key(|noted| noted.at));
            let load_ends = report.notes.iter().find(|noted| noted.what == What::LoadEnds);
            assert_eq!(
                load_ends.map(|noted| noted.at),
                Some(report.case.work),
                "seed {seed}"
            );
            let last = report.notes.last().map_or(0, |noted| noted.at);
            assert!(last <= report.case.work + report.stats.settled, "seed {seed}");
            let begun = count(|what| matches!(what, What::Begins { .. }));
            assert_eq!(begun, report.stats.faults, "seed {seed}");
            let answered = count(|what| matches!(what, What::Accepted { .. } | What::Rejected { .. }));
            assert_eq!(
                answered,
                report.stats.accepted + report.stats.rejected,
                "seed {seed}"
            );
            let handled = count(|what| matches!(what, What::Handled { .. }));
            assert_eq!(handled, report.stats.handled, "seed {seed}");
        }
    }

    #[test]
    fn a_crash_ends_when_its_nodes_serve_again() {
        let mut ended = 0;
        for seed in 0..30 {
            let mut case = draw::draw(seed);
            let region = case.places[0].id.to_string();
            let at = 4 * SECOND;
            (case.random, case.work) = (None, 15 * SECOND);
            case.faults = vec![Fault::new(at, Kind::Crash).on(region).lasting(2 * SECOND)];
            let options = Options {
                witness: true,
                ..Options::default()
            };
            let report = crate::sim::run_case(case, options);
            let ends = report
                .notes
                .iter()
                .find(|noted| noted.what == What::Ends { fault: 0 });
            if let Some(ends) = ends {
                ended += 1;
                assert!(ends.at >= at + 2 * SECOND, "seed {seed}: {}", ends.at);
            }
        }
        assert!(ended > 20, "{ended} of 30");
    }
}
