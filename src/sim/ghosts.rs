//! Ghosts and false offlines, looked for all along: in a calm part of the world nobody shows as online who has no session,
//! and nobody as offline or unreachable who has had one.
//!
//! **Calm** is a region that nothing has struck for as long as noticing it and getting over it may take: a death is seen, its
//! sessions are missed for a grace, edges attach again, links find out who is out of reach. An edge that dies, or comes, is got
//! over sooner: nothing but its own sessions is concerned. **Steady** is what has been so for as long as telling it may take:
//! probes of a contest, messages that were lost and come again. Faults of nodes, ways and stores disturb the regions at their
//! ends; what devices do is the truth itself and disturbs nothing.
//!
//! Two regions that are **apart** must show each other's users as unreachable, while they are: this is looked for in a region
//! that is calm within.
//!
//! The end of a run compares more ([`super::settle`]), but only what is left by then.

use std::collections::{BTreeMap, BTreeSet};

use super::case::{Case, MILLI, SECOND};
use super::fault::Kind;
use super::span;
use super::trace::Micros;
use super::world::{Event, Stage, World};
use crate::core::ids::UserId;
use crate::core::wire::Status;

/// Which promise is broken, how, and words of the story.
type Found = (&'static str, String, Vec<String>);

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

/// What is disturbed by something that strikes a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disturbed {
    /// Everything in it, and what others know of it.
    All,
    /// Only what it and other regions know of each other.
    Ways,
    /// The sessions of one edge.
    Edge,
}

/// Since when things are as they are.
#[derive(Debug)]
pub(super) struct Calm {
    /// When each region is calm again, if nothing strikes it until then.
    from: Vec<Micros>,
    /// The same, but for its ways to other regions.
    within: Vec<Micros>,
    /// Sessions that stand, and take in what they are told: by connection, since when.
    sessions: BTreeMap<usize, (u64, Micros)>,
    /// What is true of each user, since when.
    users: BTreeMap<UserId, (Truth, Micros)>,
    /// Regions in which a user ever was.
    places: BTreeMap<UserId, BTreeSet<usize>>,
    calm: Micros,
    edge: Micros,
    steady: Micros,
    unreachable: Micros,
}

impl Calm {
    pub(super) fn new(plan: &Case) -> Self {
        let (limits, members, network) = (&plan.limits, &plan.membership, &plan.network);
        let ms = |ms: u64| ms.saturating_mul(MILLI);
        let sum = |spans: &[Micros]| {
            spans
                .iter()
                .fold(0, |sum: Micros, span| sum.saturating_add(*span))
        };
        let places = 0..plan.places.len();
        let ways = places
            .clone()
            .flat_map(|from| places.clone().map(move |to| plan.delay(from, to)));
        let round = ways.max().unwrap_or(0).saturating_mul(4);
        // Lost messages come again within the time in which a silent connection is given up.
        let loses = network.loss > 0 || network.bandwidth > 0;
        let gray = plan.faults.iter().any(|fault| fault.kind == Kind::Slow);
        let again = if loses || gray { network.idle } else { 0 };
        let late = sum(&[again, round, network.jitter.saturating_mul(10), 2 * SECOND]);
        let noticed = members.death_max.max(members.seen_max.saturating_mul(3));
        let ended = sum(&[noticed, ms(limits.session_grace_ms), ms(limits.presence_ms)]);
        // An edge asks an owner that does not serve it yet after pauses that double.
        let opened = ms(limits.retry_ms).saturating_mul(64);
        let attached = ms(limits.attach_timeout_ms).max(ms(limits.link_timeout_ms));
        let reached = sum(&[ms(limits.link_timeout_ms), ms(limits.ping_ms)]);
        Self {
            from: vec![0; plan.places.len()],
            within: vec![0; plan.places.len()],
            sessions: BTreeMap::new(),
            users: BTreeMap::new(),
            places: BTreeMap::new(),
            calm: sum(&[ended, attached.max(opened), network.idle, late]),
            edge: sum(&[ended, late]),
            steady: sum(&[
                ms(limits.probe_ms).saturating_mul(2),
                ms(limits.presence_ms),
                late,
            ]),
            unreachable: sum(&[reached, ms(limits.presence_ms), late]),
        }
    }

    fn disturb(&mut self, region: usize, now: Micros, what: Disturbed) {
        let lasts = match what {
            Disturbed::Edge => self.edge,
            Disturbed::All | Disturbed::Ways => self.calm,
        };
        let again = now.saturating_add(lasts);
        self.from[region] = self.from[region].max(again);
        if what != Disturbed::Ways {
            self.within[region] = self.within[region].max(again);
        }
    }
}

impl World {
    /// Looks for the first time.
    pub(super) fn begin_to_look_for_ghosts(&mut self) {
        self.at(EVERY, Event::Ghosts);
    }

    /// Something happens to a node, or to what it reaches.
    pub(super) fn disturb(&mut self, node: usize, what: Disturbed) {
        let (region, now) = (self.nodes[node].region, self.now);
        self.calm.disturb(region, now, what);
    }

    /// A node starts or dies: one that is only an edge concerns nobody but its clients.
    pub(super) fn disturb_by_life(&mut self, node: usize) {
        let what = match self.nodes[node].core {
            true => Disturbed::All,
            false => Disturbed::Edge,
        };
        self.disturb(node, what);
    }

    /// A connection between nodes comes up or breaks, as one of them sees it. That of an edge which died, or came, is a
    /// consequence of that.
    pub(super) fn disturb_by_reach(&mut self, node: usize, other: usize, up: bool) {
        let edge = |node: &usize| !self.nodes[*node].core;
        let runs = |node: &usize| self.nodes[*node].process.is_some();
        let ends = [node, other];
        let far = self.nodes[node].region != self.nodes[other].region;
        let what = match ends.iter().find(|node| edge(node)) {
            Some(edge) if !runs(edge) => return,
            // Only one that is served from there is concerned, and that is looked for.
            Some(_) if far => return,
            Some(_) if up => Disturbed::Edge,
            None if far && ends.iter().all(runs) => Disturbed::Ways,
            _ => Disturbed::All,
        };
        self.disturb(node, what);
        self.disturb(other, what);
    }

    /// Something goes wrong at these places, or ends.
    pub(super) fn disturb_places(&mut self, fault: usize) {
        let fault = &self.plan.faults[fault];
        let regions = |places: &[String]| -> BTreeSet<usize> {
            places
                .iter()
                .flat_map(|place| self.plan.regions_at(place))
                .collect()
        };
        let (on, from, to) = (regions(&fault.on), regions(&fault.from), regions(&fault.to));
        let what = match fault.kind {
            // What becomes of the nodes says more, and devices are the truth itself.
            Kind::Crash | Kind::Rolling | Kind::Move => return,
            Kind::Cut | Kind::Flap | Kind::Clog | Kind::Slow | Kind::PresenceLost | Kind::Break
                if from.is_disjoint(&to) =>
            {
                Disturbed::Ways
            }
            _ => Disturbed::All,
        };
        let now = self.now;
        for region in on.into_iter().chain(from).chain(to) {
            self.calm.disturb(region, now, what);
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
            let away = self.nodes[node].process.is_none() && self.nodes[node].core;
            if away || self.nodes[node].paused_until > self.now {
                self.disturb(node, Disturbed::All);
            }
        }
        // What watchers there see, and of whom, is of two regions.
        for node in 0..self.nodes.len() {
            let serving = self.served_elsewhere(node);
            if let Some(serving) = serving.and_then(|region| self.plan.region(region)) {
                self.disturb(node, Disturbed::All);
                self.calm.disturb(serving, self.now, Disturbed::All);
            }
        }
        self.look_for_stragglers();
        self.note_sessions();
        self.note_apart();
        let (found, compared) = self.ghost();
        self.check.stats.compared += compared;
        if let Some((invariant, detail, words)) = found {
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

    /// A watcher who has been wrong about somebody for too long, and how often somebody's view was compared with the truth.
    fn ghost(&self) -> (Option<Found>, u64) {
        let Calm {
            steady, unreachable, ..
        } = self.calm;
        let is_calm = |region: &usize| self.now >= self.calm.from[*region];
        let is_steady = |since: Micros| self.now >= since.saturating_add(steady);
        let mut compared = 0;
        for (watcher, (conn, since)) in &self.calm.sessions {
            let Some(client) = self.clients.get(conn) else {
                continue;
            };
            let here = self.nodes[client.node].region;
            if !is_steady(*since) || self.now < self.calm.within[here] {
                continue;
            }
            let device = &self.devices[*watcher];
            for user in device.watched() {
                let places = self.calm.places.get(user);
                let mut places = places.into_iter().flatten().peekable();
                let seen = device.seen.get(user);
                let online = seen.is_some_and(|seen| {
                    seen.status != Status::Offline && seen.unreachable_since_ms.is_none()
                });
                let beyond = |region: &usize| self.apart_for(here, *region) > unreachable;
                let (what, truth, since) = if places.peek().is_some() && places.clone().all(beyond) {
                    let what = online.then_some("out of reach is told");
                    (what, None, None)
                } else {
                    let Some((truth, since)) = self.calm.users.get(user) else {
                        continue;
                    };
                    if !is_calm(&here) || !is_steady(*since) || !places.all(is_calm) {
                        continue;
                    }
                    let what = match truth {
                        Truth::Away if online => Some("no ghosts"),
                        Truth::There(_) if !online => Some("no false offlines"),
                        _ => None,
                    };
                    (what, Some(truth), Some(since))
                };
                compared += 1;
                if let Some(what) = what {
                    let lasts = since.map_or(unreachable, |since| self.now - since);
                    let detail = format!(
                        "{} sees {user} as {seen:?}; for {} the truth has been {truth:?}",
                        device.name(),
                        span::show(lasts),
                    );
                    let words = vec![device.name(), user.to_string()];
                    return (Some((what, detail, words)), compared);
                }
            }
        }
        (None, compared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::fault::Fault;
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
        let seeds: Vec<u64> = cases(away).map(|case| case.seed).collect();
        println!("seeds {seeds:?}, away for {away} us, {defect:?}: {runs:?}");
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

    /// Nothing is compared in a region that is never calm: some seeds of the swarm must have their calm.
    #[test]
    fn the_swarm_is_looked_at() {
        let reports: Vec<_> = (0..40)
            .map(|seed| crate::sim::run(seed, Options::default()))
            .collect();
        let looked = reports.iter().filter(|report| report.stats.compared > 0).count();
        let compared: u64 = reports.iter().map(|report| report.stats.compared).sum();
        println!("{compared} comparisons in {looked} of {} seeds", reports.len());
        assert!(looked >= 4 && compared > 100, "{compared} in {looked}");
    }

    /// An edge that dies takes its users with it, and regions that are cut off are out of reach, while the rest goes on.
    #[test]
    fn watchers_are_looked_at_while_things_are_wrong() {
        let cut = |mut case: Case| {
            let (here, there) = (case.places[0].id.to_string(), case.places[1].id.to_string());
            case.network.loss = 0;
            case.work = 40 * SECOND;
            case.faults = vec![
                Fault::new(8 * SECOND, Kind::Cut)
                    .between(here, there)
                    .lasting(30 * SECOND),
            ];
            case
        };
        for case in cases(3 * SECOND).map(cut) {
            let seed = case.seed;
            let report = run_case(case, Options::default());
            assert!(report.violation.is_none(), "{report}");
            assert!(report.stats.compared > 0, "seed {seed}");
        }
    }
}
