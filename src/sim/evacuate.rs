//! Regions that are evacuated and restored, and whether their clients go and come back.

use std::collections::{BTreeMap, BTreeSet};

use super::case::SECOND;
use super::trace::Micros;
use super::world::{Stage, World};
use crate::core::edge::{LEAVE_WITHIN, Pace};
use crate::core::node::Input;

/// Sessions a second that are told to go: few enough that it takes a while.
const RATE: u32 = 5;
/// The same when everything heals.
const AT_THE_END: u32 = 1_000;
/// Beside what it takes to tell all of them, and what the edge waits for a client: ways, and looking once a second.
const LATE: Micros = 5 * SECOND;

/// Which regions are evacuated.
#[derive(Debug, Default)]
pub(super) struct Evacuations {
    /// Since when.
    since: BTreeMap<usize, Micros>,
    /// When they were restored, until their clients were looked for.
    restored: BTreeMap<usize, Micros>,
}

impl Evacuations {
    /// Whether a region is evacuated.
    pub(super) fn has(&self, region: usize) -> bool {
        self.since.contains_key(&region)
    }
}

impl World {
    /// A region is evacuated, unless no other one would take clients.
    pub(super) fn evacuate(&mut self, region: usize) -> Result<(), &'static str> {
        if self.evacuations.has(region) {
            return Ok(());
        }
        let takes = |other: &usize| {
            *other != region && !self.evacuations.has(*other) && !self.wrong.gone.contains(other)
        };
        if !(0..self.plan.places.len()).any(|other| takes(&other)) {
            return Err("no other region takes clients");
        }
        let now = self.now;
        self.evacuations.since.insert(region, now);
        self.evacuations.restored.remove(&region);
        self.tell_of_evacuation(region);
        Ok(())
    }

    /// A region takes clients again.
    pub(super) fn end_evacuation(&mut self, region: usize) {
        if self.evacuations.since.remove(&region).is_some() {
            self.evacuations.restored.insert(region, self.now);
            self.tell_of_evacuation(region);
        }
    }

    fn tell_of_evacuation(&mut self, region: usize) {
        let evacuated = self.evacuations.has(region);
        let id = self.plan.places[region].id.clone();
        for node in 0..self.nodes.len() {
            let here = self.nodes[node].region;
            let pace = self.pace_of(node, region);
            let input = match here == region {
                true => Input::Evacuation(evacuated.then_some(pace)),
                false => Input::Elsewhere {
                    region: id.clone(),
                    restored: (!evacuated).then_some(pace),
                },
            };
            if self.nodes[node].process.is_none() {
                continue;
            }
            let endpoints = self.endpoints(here);
            for partition in 0..self.nodes[node].partitions {
                self.input(node, partition, Input::Endpoints(endpoints.clone()));
                self.input(node, partition, input.clone());
            }
        }
    }

    /// A node that starts in an evacuated region knows it before the first client comes.
    pub(super) fn start_evacuated(&mut self, node: usize) {
        let region = self.nodes[node].region;
        if !self.evacuations.has(region) {
            return;
        }
        let pace = self.pace_of(node, region);
        for partition in 0..self.nodes[node].partitions {
            self.input(node, partition, Input::Evacuation(Some(pace)));
        }
    }

    /// The part of a node's partition in what moves the clients of a region, away or back.
    fn pace_of(&self, node: usize, region: usize) -> Pace {
        let leave = self.evacuations.has(region);
        let counts = |at: usize| !leave || at == region;
        let edges = self.nodes.iter().filter(|node| node.edge && counts(node.region));
        let edges = edges.count() as u32 * u32::from(self.nodes[node].partitions);
        // The end, where nobody may move any more, is not to wait for it.
        let rate = if self.stage == Stage::Work {
            RATE
        } else {
            AT_THE_END
        };
        Pace::shared(rate, edges)
    }

    /// Nobody stays in an evacuated region for ever; and where a case says so, all go and come back in time.
    pub(super) fn look_for_stragglers(&mut self) {
        let told = self.devices.len() as Micros * SECOND / Micros::from(RATE);
        let longest = told + LEAVE_WITHIN.as_micros() as Micros + LATE;
        let expected = self.plan.expect.moved_within;
        let within = expected.unwrap_or(longest);
        for (region, since) in self.evacuations.since.clone() {
            if let Some(detail) = self.straggler(region, since + within) {
                return self.fail("an evacuated region has no clients", detail, Vec::new());
            }
        }
        let Some(within) = expected else { return };
        for (region, at) in self.evacuations.restored.clone() {
            if self.now <= at + within {
                continue;
            }
            self.evacuations.restored.remove(&region);
            if let Some(name) = self.not_at_home(region) {
                let id = self.region_name(region).clone();
                let detail = format!("{name} did not come back to {id} after it was restored");
                return self.fail("clients come home", detail, vec![name]);
            }
        }
    }

    /// A node of an evacuated region that has sessions after it should have none.
    fn straggler(&self, region: usize, until: Micros) -> Option<String> {
        let nodes = self.nodes.iter().filter(|node| node.region == region);
        nodes.into_iter().find_map(|node| {
            // One that stood still goes on from where it was.
            let until = until.max(node.started).max(node.paused_until + LATE);
            let tasks = &node.process.as_ref()?.tasks;
            let sessions: usize = tasks
                .iter()
                .map(|task| task.machine.edge().stats().sessions)
                .sum();
            let late = sessions > 0 && self.now > until;
            late.then(|| format!("{} has {sessions} sessions still", node.key))
        })
    }

    /// A device near a region whose session is elsewhere.
    fn not_at_home(&self, region: usize) -> Option<String> {
        let at_home: BTreeSet<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| self.nodes[client.node].region == region)
            .map(|(conn, _)| *conn)
            .collect();
        let mut devices = self.devices.iter();
        let away = devices.find(|device| {
            let conn = device.conn.filter(|_| device.is_live() && device.home == region);
            conn.is_some_and(|conn| !at_home.contains(&conn))
        });
        away.map(super::device::Device::name)
    }
}
