//! What a run looked like over time: samples of regions, faults and lag, for a picture. Looking changes nothing.

use std::collections::BTreeMap;

use serde::Serialize;

use super::trace::Micros;
use super::world::World;
use crate::core::ids::{Seq, UserId};
use crate::core::vector::Vector;

/// Most samples of a run; beyond it every second one is dropped and they are taken half as often.
const MAX_SAMPLES: usize = 1200;

/// A run over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Timeline {
    /// The regions' names.
    pub regions: Vec<String>,
    /// Samples in the order of their times.
    pub samples: Vec<Sample>,
    #[serde(skip)]
    pub(super) every: Micros,
    #[serde(skip)]
    pub(super) wanted: bool,
}

/// How things stood at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// When.
    pub at: Micros,
    /// Messages that have no answer yet.
    pub unanswered: u64,
    /// Messages that were accepted and that no device of the recipient has handled.
    pub waiting: u64,
    /// Each region.
    pub regions: Vec<RegionSample>,
}

/// How a region stood at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct RegionSample {
    /// Nodes that run, of all.
    pub up: (u32, u32),
    /// Sessions that stand there, as clients know.
    pub sessions: u32,
    /// Operations of other regions that it has not applied.
    pub lag: u64,
    /// Messages that its store holds in inboxes.
    pub stored: u64,
    /// Users whom it shows otherwise than they are.
    pub wrong_presence: u32,
    /// The other regions from which nothing reaches it.
    pub cut_from: Vec<u32>,
}

impl Timeline {
    /// One that is kept, or not.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            ..Self::default()
        }
    }

    /// Whether it is kept.
    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    fn push(&mut self, sample: Sample) {
        let due = self
            .samples
            .last()
            .is_none_or(|last| sample.at >= last.at + self.every);
        if !due {
            return;
        }
        self.samples.push(sample);
        if self.samples.len() > MAX_SAMPLES {
            let mut odd = false;
            self.samples.retain(|_| {
                odd = !odd;
                odd
            });
            let span = self.samples.last().map_or(0, |last| last.at);
            self.every = span * 2 / MAX_SAMPLES as Micros;
        }
    }
}

impl World {
    /// Takes a sample where a picture is wanted.
    pub(super) fn sample(&mut self) {
        if !self.timeline.wanted() {
            return;
        }
        let lags = self.lags();
        let stored = self.in_inboxes();
        let wrong = self.wrong_presence();
        let mut regions = Vec::new();
        for region in 0..self.plan.places.len() {
            let nodes = self.nodes.iter().filter(|node| node.region == region);
            let all = nodes.clone().count() as u32;
            let up = nodes.filter(|node| node.process.is_some()).count() as u32;
            let core = self.core_of(region);
            let sessions = self.devices.iter().filter(|device| device.is_live());
            let here = sessions.filter(|device| {
                let client = device.conn.and_then(|conn| self.clients.get(&conn));
                client.is_some_and(|client| self.nodes[client.node].region == region)
            });
            let others = (0..self.plan.places.len()).filter(|other| *other != region);
            regions.push(RegionSample {
                up: (up, all),
                sessions: here.count() as u32,
                lag: lags[region],
                stored: stored[region],
                wrong_presence: wrong[region],
                cut_from: others
                    .filter(|other| self.wrong.cut(self.core_of(*other), core))
                    .map(|other| other as u32)
                    .collect(),
            });
        }
        let answered = |sent: &&super::check::Sent| sent.fates.len() >= sent.senders.len();
        let sent = &self.check.sent;
        let sample = Sample {
            at: self.now,
            unanswered: (sent.len() - sent.iter().filter(answered).count()) as u64,
            waiting: self.check.waiting(),
            regions,
        };
        self.timeline.push(sample);
    }

    fn lags(&self) -> Vec<u64> {
        let mut best: BTreeMap<_, Seq> = BTreeMap::new();
        for store in &self.check.stores {
            for (key, seq) in &store.applied {
                let known = best.entry(*key).or_default();
                *known = (*known).max(*seq);
            }
        }
        let behind = |store: &super::check::Durable| {
            best.iter()
                .map(|(key, seq)| seq - store.applied.get(key).copied().unwrap_or(0))
                .sum()
        };
        self.check.stores.iter().map(behind).collect()
    }

    fn in_inboxes(&mut self) -> Vec<u64> {
        let keys: Vec<_> = self.check.inboxes.keys().cloned().collect();
        let mut stored = vec![0; self.check.stores.len()];
        for (region, stored) in stored.iter_mut().enumerate() {
            let mut rows: BTreeMap<UserId, Option<Vector>> = BTreeMap::new();
            for key @ (user, origin) in &keys {
                let shard = self.plan.sharding().of_user(user);
                let row = rows
                    .entry(user.clone())
                    .or_insert_with(|| self.user_row(region, shard, user).map(|row| row.trimmed));
                let store = &self.check.stores[region];
                let applied = store.applied.get(&(shard, *origin)).copied().unwrap_or(0);
                // While its node does not run, what was seen of it last.
                let trimmed = match row {
                    Some(trimmed) => trimmed.of(*origin),
                    None => store.trimmed.get(key).copied().unwrap_or(0),
                };
                if applied > trimmed {
                    *stored += self.check.inboxes[key].range(trimmed + 1..=applied).count() as u64;
                }
            }
        }
        stored
    }

    fn wrong_presence(&self) -> Vec<u32> {
        let truth = self.truth();
        let nobody = BTreeMap::new();
        (0..self.plan.places.len())
            .map(|region| {
                let Some(process) = &self.nodes[self.core_of(region)].process else {
                    return 0;
                };
                let mut wrong = 0;
                for (shard, users) in &self.check.users {
                    let table = process
                        .tasks
                        .iter()
                        .find_map(|task| task.machine.owner().presence(*shard));
                    let Some(table) = table else {
                        continue;
                    };
                    for user in users {
                        let shown = super::settle::shown(table, user);
                        wrong += u32::from(shown != *truth.get(user).unwrap_or(&nobody));
                    }
                }
                wrong
            })
            .collect()
    }
}
