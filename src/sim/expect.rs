//! What a scenario expects beside the invariants: looked at while it runs, and in the end.

use std::collections::{BTreeMap, BTreeSet};

use super::case::MILLI;
use super::check::Fate;
use super::fault::Kind;
use super::span;
use super::trace::Micros;
use super::world::{Event, Stage, World};
use crate::core::ids::UserId;

/// How often somebody looks.
pub(super) const LOOK: Micros = 250 * MILLI;

/// Since when things are as they are.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// Regions are cut off from each other, both ways.
    cut: BTreeMap<(usize, usize), Micros>,
    /// The edges of these regions have connections of a user, and no others.
    homes: BTreeMap<UserId, (BTreeSet<usize>, Micros)>,
}

impl World {
    /// Looks at what is expected while the run goes on, and samples it where a picture is wanted.
    pub(super) fn look(&mut self) {
        if self.stage == Stage::Done {
            return;
        }
        self.after(LOOK, Event::Look);
        self.sample();
        let Some(within) = self.plan.expect.unreachable_within else {
            return;
        };
        self.note_apart();
        self.note_homes();
        if let Some((detail, words)) = self.shown_across_a_cut(within) {
            self.fail("expected: unreachable in time", detail, words);
        }
    }

    pub(super) fn note_apart(&mut self) {
        let now = self.now;
        let mut cores: Vec<Vec<usize>> = vec![Vec::new(); self.plan.places.len()];
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.core) {
            cores[node.region].push(index);
        }
        for (a, here) in cores.iter().enumerate() {
            for (b, there) in cores.iter().enumerate() {
                let cut = |x: usize, y: usize| self.wrong.cut(x, y) && self.wrong.cut(y, x);
                let mut ways = here.iter().flat_map(|x| there.iter().map(move |y| (*x, *y)));
                let runs = here.iter().all(|node| self.nodes[*node].process.is_some());
                if a != b && runs && ways.all(|(x, y)| cut(x, y)) {
                    self.apart.cut.entry((a, b)).or_insert(now);
                } else {
                    self.apart.cut.remove(&(a, b));
                }
            }
        }
    }

    /// An edge has a connection until it notices that the client is gone: so long its word about the user stands.
    fn note_homes(&mut self) {
        let mut homes: BTreeMap<UserId, BTreeSet<usize>> = BTreeMap::new();
        for client in self.clients.values() {
            let node = &self.nodes[client.node];
            if client.server && client.greeted && node.boot == client.boot {
                let user = self.devices[client.device].user.clone();
                homes.entry(user).or_default().insert(node.region);
            }
        }
        let before = std::mem::take(&mut self.apart.homes);
        let noted = homes.into_iter().map(|(user, regions)| {
            let same = before.get(&user).filter(|(known, _)| *known == regions);
            let since = same.map_or(self.now, |(_, since)| *since);
            (user, (regions, since))
        });
        self.apart.homes = noted.collect();
    }

    /// For how long a region has been cut off from another one.
    pub(super) fn apart_for(&self, here: usize, there: usize) -> Micros {
        let since = self.apart.cut.get(&(here, there));
        since.map_or(0, |since| self.now - since)
    }

    /// A watcher who sees somebody as reachable all of whose sessions are beyond a cut that has lasted.
    fn shown_across_a_cut(&self, within: Micros) -> Option<(String, Vec<String>)> {
        for device in self.devices.iter().filter(|device| device.is_live()) {
            let client = device.conn.and_then(|conn| self.clients.get(&conn));
            let Some(here) = client.map(|client| self.nodes[client.node].region) else {
                continue;
            };
            for user in device.watched() {
                let settled = |(_, since): &&(BTreeSet<usize>, Micros)| self.now > since + within;
                let Some((regions, _)) = self.apart.homes.get(user).filter(settled) else {
                    continue;
                };
                let lasted = |region: &usize| {
                    let since = self.apart.cut.get(&(here, *region));
                    since.is_some_and(|since| self.now > since + within)
                };
                let Some(seen) = device.seen.get(user).filter(|_| regions.iter().all(lasted)) else {
                    continue;
                };
                if seen.devices > 0 && seen.unreachable_since_ms.is_none() {
                    let detail = format!(
                        "{} sees {user} {:?} on {} devices, whose region has been cut off for more than {}",
                        device.name(),
                        seen.status,
                        seen.devices,
                        span::show(within)
                    );
                    return Some((detail, vec![device.name(), user.to_string()]));
                }
            }
        }
        None
    }

    /// Whether the end is as expected.
    pub(super) fn check_expected(&mut self) {
        let expect = self.plan.expect.clone();
        let stats = self.check.stats;
        // Nobody could give a lone region what it lost: the faults that need others have no effect there. And a store that
        // the nodes of a region share is nothing that a node can lose.
        let several = self.plan.places.len() > 1;
        let disks = [Kind::Backup, Kind::Restore, Kind::DiskReplaced, Kind::StoreStop];
        let shared = self.is_shared();
        let least = [
            ("accepted", expect.accepted, stats.accepted),
            ("handled", expect.handled, stats.handled),
            ("holes", expect.holes, stats.holes),
            (
                "snapshots",
                expect.snapshots.filter(|_| several && !shared),
                stats.snapshots,
            ),
            ("takeovers", expect.takeovers, stats.takeovers),
            (
                "sessions moved in order",
                expect.moved_in_order.filter(|_| several),
                stats.moved,
            ),
            (
                "sessions served by another region",
                expect.served_elsewhere.filter(|_| several),
                stats.served_elsewhere,
            ),
            ("commits on a full disk", expect.store_full, stats.store_full),
            ("messages expired", expect.expired, stats.expired),
            (
                "devices expired",
                expect.devices_expired,
                self.check.lives.expired(),
            ),
        ];
        for (what, least, have) in least {
            if let Some(least) = least.filter(|least| have < *least) {
                let detail = format!("{have} {what}, expected at least {least}");
                return self.fail("expected: enough happens", detail, Vec::new());
            }
        }
        let mut idle = expect
            .struck
            .iter()
            .filter(|kind| !self.struck.contains(kind))
            .filter(|kind| !shared || !disks.contains(kind));
        if let Some(kind) = idle.next().filter(|_| several) {
            let detail = format!("no {} had an effect", kind.name());
            return self.fail("expected: faults strike", detail, Vec::new());
        }
        for refused in expect.refused {
            let code = refused.code();
            let fates = self.check.sent.iter().flat_map(|sent| sent.fates.values());
            if !fates.into_iter().any(|fate| *fate == Fate::Rejected(code)) {
                let detail = format!("no message was refused as {code:?}");
                return self.fail("expected: refusals", detail, Vec::new());
            }
        }
        let (differed, spent) = (stats.presence_differed, stats.presence_repair_bytes);
        self.trace.chapter(self.now, || {
            format!("of presence {differed} bytes differed on new links; {spent} were sent to repair it")
        });
        let dear = |percent: &u64| differed == 0 || spent * 100 > differed * percent;
        if let Some(percent) = expect.repair_percent.filter(dear).filter(|_| several) {
            let detail = format!(
                "{spent} bytes were sent to repair {differed} bytes of presence, expected at most {percent} %"
            );
            return self.fail("expected: repair costs little", detail, Vec::new());
        }
        if let Some(within) = expect.settled_within.filter(|within| stats.settled > *within) {
            let detail = format!(
                "all was settled {} after everything healed, expected within {}",
                span::show(stats.settled),
                span::show(within)
            );
            self.fail("expected: settled in time", detail, Vec::new());
        }
    }
}
