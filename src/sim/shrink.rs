//! Makes a failing case small: leaves things out, and keeps what still fails (delta debugging: Zeller, Hildebrandt 2002).
//!
//! A smaller case draws its small chances otherwise, so each attempt is made under a few seeds. It must fail by the same
//! invariant: another failure is another story.

use super::case::{Case, SECOND};
use super::{Options, draw, run_case};

/// Seeds under which a smaller case is tried: more find smaller cases, and take longer.
const SEEDS: u64 = 3;

/// Makes `case` smaller, in at most `budget` runs. `told` gets each progress in words. `None` where it does not fail.
pub fn shrink(mut case: Case, options: Options, budget: u64, mut told: impl FnMut(&str)) -> Option<Case> {
    draw::expand(&mut case);
    let report = run_case(case.clone(), options);
    let invariant = report.violation?.invariant;
    let mut shrinker = Shrinker {
        best: case,
        options,
        invariant,
        left: budget,
    };
    loop {
        let before = shrinker.size();
        shrinker.round(&mut told);
        if shrinker.size() >= before || shrinker.left == 0 {
            return Some(shrinker.best);
        }
    }
}

struct Shrinker {
    best: Case,
    options: Options,
    invariant: &'static str,
    left: u64,
}

impl Shrinker {
    fn size(&self) -> u64 {
        let case = &self.best;
        let devices: usize = case.users.iter().map(|user| user.devices.len() + 1).sum();
        let things = case.faults.len() + case.acts.len() + devices + 3 * case.nodes.len();
        things as u64 * 100 + case.work / SECOND
    }

    fn round(&mut self, told: &mut impl FnMut(&str)) {
        self.list(told, "faults", |case| &mut case.faults);
        self.list(told, "acts", |case| &mut case.acts);
        self.regions();
        self.list(told, "users", |case| &mut case.users);
        self.devices();
        self.edges();
        self.simpler();
        self.shorter();
        told(&format!(
            "{} regions, {} nodes, {} users, {} acts, {} faults, {} s; {} runs left",
            self.best.places.len(),
            self.best.nodes.len(),
            self.best.users.len(),
            self.best.acts.len(),
            self.best.faults.len(),
            self.best.work / SECOND,
            self.left
        ));
    }

    /// Takes a smaller case where it fails the same way, under its own seed or one of a few others.
    fn take(&mut self, mut smaller: Case) -> bool {
        watch_who_is_there(&mut smaller);
        if !smaller.wrongs().is_empty() {
            return false;
        }
        for seed in 0..SEEDS {
            if self.left == 0 {
                return false;
            }
            self.left -= 1;
            let mut case = smaller.clone();
            case.seed = case.seed.wrapping_add(seed * 1_000_003) & (u64::MAX >> 1);
            let violation = run_case(case.clone(), self.options).violation;
            if violation.is_some_and(|violation| violation.invariant == self.invariant) {
                self.best = case;
                return true;
            }
        }
        false
    }

    /// Leaves parts of a list out: halves first, then smaller parts, down to single things.
    fn list<T: Clone>(
        &mut self,
        told: &mut impl FnMut(&str),
        what: &str,
        of: impl for<'a> Fn(&'a mut Case) -> &'a mut Vec<T>,
    ) {
        let begun = of(&mut self.best).len();
        let mut part = begun.div_ceil(2);
        while part > 0 && self.left > 0 {
            let mut at = 0;
            while at < of(&mut self.best).len() {
                let mut smaller = self.best.clone();
                let list = of(&mut smaller);
                let end = (at + part).min(list.len());
                list.drain(at..end);
                if !self.take(smaller) {
                    at += part;
                }
            }
            part /= 2;
        }
        let now = of(&mut self.best).len();
        if now < begun {
            told(&format!("{what}: {begun} to {now}"));
        }
    }

    /// Leaves whole regions out, with their nodes; their users move.
    fn regions(&mut self) {
        let mut at = 0;
        while self.best.places.len() > 1 && at < self.best.places.len() {
            let mut smaller = self.best.clone();
            let gone = smaller.places.remove(at).id;
            let other = smaller.places[0].id.clone();
            smaller.nodes.retain(|node| node.region != gone);
            for user in &mut smaller.users {
                let homes = user.devices.iter_mut().filter_map(|device| device.home.as_mut());
                for home in homes.chain([&mut user.home]) {
                    if *home == gone {
                        home.clone_from(&other);
                    }
                }
            }
            if !self.take(smaller) {
                at += 1;
            }
        }
    }

    fn devices(&mut self) {
        for user in 0..self.best.users.len() {
            while self.best.users[user].devices.len() > 1 {
                let mut smaller = self.best.clone();
                smaller.users[user].devices.pop();
                if !self.take(smaller) {
                    break;
                }
            }
        }
    }

    /// Leaves edges out; a region without one has its core be one.
    fn edges(&mut self) {
        let mut at = 0;
        while at < self.best.nodes.len() {
            if self.best.nodes[at].core {
                at += 1;
                continue;
            }
            let mut smaller = self.best.clone();
            let region = smaller.nodes.remove(at).region;
            let edges = smaller
                .nodes
                .iter()
                .any(|node| node.region == region && node.edge);
            for node in smaller.nodes.iter_mut().filter(|node| node.region == region) {
                node.edge |= !edges;
            }
            if !self.take(smaller) {
                at += 1;
            }
        }
    }

    /// The ordinary instead of the special, one thing at a time.
    fn simpler(&mut self) {
        let steps: [fn(&mut Case); 7] = [
            |case| case.limits = Default::default(),
            |case| case.network = Default::default(),
            |case| case.store = Default::default(),
            |case| case.shards = 1,
            |case| {
                for node in &mut case.nodes {
                    (node.clock_ms, node.drift_ppm) = (0, 0);
                }
            },
            |case| {
                for node in &mut case.nodes {
                    node.partitions = 1;
                }
            },
            |case| {
                for act in &mut case.acts {
                    act.bytes = 0;
                }
            },
        ];
        for step in steps {
            let mut smaller = self.best.clone();
            step(&mut smaller);
            if smaller != self.best {
                self.take(smaller);
            }
        }
    }

    fn shorter(&mut self) {
        loop {
            let mut smaller = self.best.clone();
            smaller.work = smaller.work / 4 * 3;
            smaller.faults.retain(|fault| fault.at < smaller.work);
            smaller.acts.retain(|act| act.at < smaller.work);
            if smaller.work < 2 * SECOND || !self.take(smaller) {
                return;
            }
        }
    }
}

/// Nobody watches users who were left out.
fn watch_who_is_there(case: &mut Case) {
    let mut watched: Vec<_> = case
        .users
        .iter_mut()
        .flat_map(|user| &mut user.devices)
        .map(|device| device.watches.take())
        .collect();
    for names in watched.iter_mut().flatten() {
        names.retain(|name| !case.users_named(name).is_empty());
    }
    let devices = case.users.iter_mut().flat_map(|user| &mut user.devices);
    for (device, watches) in devices.zip(watched) {
        device.watches = watches;
    }
}
