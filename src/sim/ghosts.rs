//! Ghosts and false offlines, looked for all along: in a calm part of the world nobody shows as online who has no session,
//! and nobody as offline or unreachable who has had one.
//!
//! **Calm** is a region that nothing has struck for as long as noticing it and getting over it may take: a death is seen, its
//! sessions are missed for a grace, edges attach again, links find out who is out of reach. **Steady** is what has been so
//! for as long as telling it may take: probes of a contest, messages that were lost and come again. Faults of nodes, ways
//! and stores disturb the regions at their ends; what devices do is the truth itself and disturbs nothing.
//!
//! The end of a run compares more ([`super::settle`]), but only what is left by then.

use std::collections::{BTreeMap, BTreeSet};

use super::case::{Case, MILLI, SECOND};
use super::span;
use super::trace::Micros;
use super::world::{Event, Stage, World};
use crate::core::ids::UserId;
use crate::core::wire::Status;

/// How often somebody looks.
const EVERY: Micros = SECOND;

/// What the truth is of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    /// No edge has a connection of any device.
    Away,
    /// A session stands, as its client and its edge know; by this connection.
    There(u64),
}

/// Since when things are as they are.
#[derive(Debug)]
pub(super) struct Calm {
    /// When each region was last disturbed.
    disturbed: Vec<Micros>,
    /// Sessions that stand, and take in what they are told: by connection, since when.
    sessions: BTreeMap<usize, (u64, Micros)>,
    /// What is true of each user, since when.
    users: BTreeMap<UserId, (Truth, Micros)>,
    /// Regions in which a user ever was.
    places: BTreeMap<UserId, BTreeSet<usize>>,
    calm: Micros,
    steady: Micros,
}

impl Calm {
    pub(super) fn new(plan: &Case) -> Self {
        let (limits, members) = (&plan.limits, &plan.membership);
        let ms = |ms: u64| ms * MILLI;
        // Lost messages come again within the time in which a silent connection is given up.
        let late = plan.network.idle + 10 * plan.network.jitter + 2 * SECOND;
        let noticed = members.death_max.max(3 * members.seen_max);
        let calm = noticed
            + ms(limits.session_grace_ms)
            + ms(limits.attach_timeout_ms).max(ms(limits.link_timeout_ms))
            + late;
        let steady = 2 * ms(limits.probe_ms) + ms(limits.presence_ms) + late;
        Self {
            disturbed: vec![0; plan.places.len()],
            sessions: BTreeMap::new(),
            users: BTreeMap::new(),
            places: BTreeMap::new(),
            calm,
            steady,
        }
    }
}

impl World {
    /// Looks for the first time.
    pub(super) fn begin_to_look_for_ghosts(&mut self) {
        self.at(EVERY, Event::Ghosts);
    }

    /// Something happens to a node, or to what it reaches.
    pub(super) fn disturb(&mut self, node: usize) {
        let region = self.nodes[node].region;
        self.calm.disturbed[region] = self.now;
    }

    /// Something goes wrong at these places, or ends.
    pub(super) fn disturb_places(&mut self, fault: usize) {
        let fault = &self.plan.faults[fault];
        let places = fault.on.iter().chain(&fault.from).chain(&fault.to);
        let regions: BTreeSet<usize> = places.flat_map(|place| self.plan.regions_at(place)).collect();
        for region in regions {
            self.calm.disturbed[region] = self.now;
        }
    }

    /// Looks at what every watcher sees.
    pub(super) fn look_for_ghosts(&mut self) {
        if self.stage >= Stage::Silence {
            return;
        }
        self.after(EVERY, Event::Ghosts);
        for fault in self.wrong.lasting() {
            self.disturb_places(fault);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].process.is_none() || self.nodes[node].paused_until > self.now {
                self.disturb(node);
            }
        }
        self.note_sessions();
        if let Some((invariant, detail, words)) = self.ghost() {
            self.fail(invariant, detail, words);
        }
    }

    fn note_sessions(&mut self) {
        let now = self.now;
        let mut connected: BTreeSet<UserId> = BTreeSet::new();
        for client in self.clients.values().filter(|client| client.server) {
            let (user, region) = (&self.devices[client.device].user, self.nodes[client.node].region);
            connected.insert(user.clone());
            self.calm.places.entry(user.clone()).or_default().insert(region);
        }
        let mut there: BTreeMap<UserId, u64> = BTreeMap::new();
        for index in 0..self.devices.len() {
            let device = &self.devices[index];
            let stands = |conn: &u64| {
                let client = self.clients.get(conn);
                device.is_live()
                    && client.is_some_and(|client| client.server && client.client)
                    && client
                        .is_some_and(|client| !self.wrong.client_cut(index, self.nodes[client.node].region))
                    && !self.wrong.reads_nothing(index)
            };
            match device.conn.filter(stands) {
                Some(conn) => {
                    there.entry(device.user.clone()).or_insert(conn);
                    let known = self.calm.sessions.entry(index).or_insert((conn, now));
                    if known.0 != conn {
                        *known = (conn, now);
                    }
                }
                None => {
                    self.calm.sessions.remove(&index);
                }
            }
        }
        let users: BTreeSet<UserId> = self.devices.iter().map(|device| device.user.clone()).collect();
        for user in users {
            let truth = match there.get(&user) {
                Some(conn) => Some(Truth::There(*conn)),
                None => (!connected.contains(&user)).then_some(Truth::Away),
            };
            match truth {
                Some(truth) => {
                    let known = self.calm.users.entry(user).or_insert((truth, now));
                    if known.0 != truth {
                        *known = (truth, now);
                    }
                }
                None => {
                    self.calm.users.remove(&user);
                }
            }
        }
    }

    /// A watcher who has been wrong about somebody for too long.
    fn ghost(&self) -> Option<(&'static str, String, Vec<String>)> {
        let Calm { calm, steady, .. } = self.calm;
        let is_calm = |region: &usize| self.now >= self.calm.disturbed[*region] + calm;
        let is_steady = |since: Micros| self.now >= since + steady;
        for (watcher, (conn, since)) in &self.calm.sessions {
            let here = self.nodes[self.clients.get(conn)?.node].region;
            if !is_steady(*since) || !is_calm(&here) {
                continue;
            }
            let device = &self.devices[*watcher];
            for user in device.watched() {
                let Some((truth, since)) = self.calm.users.get(user) else {
                    continue;
                };
                let mut places = self.calm.places.get(user).into_iter().flatten();
                if !is_steady(*since) || !places.all(is_calm) {
                    continue;
                }
                let seen = device.seen.get(user);
                let online = seen.is_some_and(|seen| {
                    seen.status != Status::Offline && seen.unreachable_since_ms.is_none()
                });
                let what = match truth {
                    Truth::Away if online => "no ghosts",
                    Truth::There(_) if !online => "no false offlines",
                    _ => continue,
                };
                let detail = format!(
                    "{} sees {user} as {seen:?}; for {} it has been {truth:?}",
                    device.name(),
                    span::show(self.now - since),
                );
                return Some((what, detail, vec![device.name(), user.to_string()]));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::fault::{Fault, Kind};
    use crate::sim::{Defect, Options, draw, run_case};

    /// Everybody watches everybody; somebody leaves for so long, and is back when everything is compared.
    fn cases(away: Micros) -> impl Iterator<Item = Case> {
        let of_several = |case: &Case| {
            let place = |at: usize| case.places.get(at).map(|place| &place.id);
            let at = |region| {
                case.users
                    .iter()
                    .any(|user| Some(&user.home) == place(region) && !user.devices.is_empty())
            };
            at(0) && at(1)
        };
        (0..60)
            .map(draw::draw)
            .filter(of_several)
            .take(3)
            .map(move |mut case| {
                let gone = case.users.iter().find(|user| !user.devices.is_empty());
                let gone = gone.expect("filtered").name.clone();
                for device in case.users.iter_mut().flat_map(|user| &mut user.devices) {
                    device.watches = Some(vec!["all".to_owned()]);
                    device.arrives = Some(2 * SECOND);
                    device.home = None;
                }
                let mut fault = Fault::new(5 * SECOND, Kind::Leave).device(gone).lasting(away);
                fault.told = true;
                case.work = 5 * SECOND + away + 10 * SECOND;
                case.random = None;
                case.faults = vec![fault];
                case.workload.iter_mut().for_each(|workload| workload.count = 30);
                case
            })
    }

    fn violations(away: Micros, defect: Option<Defect>) -> Vec<Option<&'static str>> {
        let options = Options {
            defect,
            ..Options::default()
        };
        let runs = cases(away).map(|case| run_case(case, options).violation);
        let runs: Vec<_> = runs
            .map(|violation| violation.map(|violation| violation.invariant))
            .collect();
        assert_eq!(runs.len(), 3);
        runs
    }

    #[test]
    fn what_comes_late_is_found_while_it_is_missing() {
        let long = 50 * SECOND;
        assert_eq!(violations(long, None), [None; 3]);
        assert!(violations(long, Some(Defect::TerminalLate)).contains(&Some("no ghosts")));
        let offline = violations(long, Some(Defect::OnlineLate));
        assert!(offline.contains(&Some("no false offlines")), "{offline:?}");
    }

    #[test]
    fn what_is_made_up_for_in_time_is_not_a_ghost_and_the_end_does_not_find_it() {
        assert_eq!(violations(3 * SECOND, Some(Defect::TerminalLate)), [None; 3]);
    }
}
