//! Where to connect: regions and their endpoints, tried one after the other, with growing pauses between rounds.

use std::collections::VecDeque;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use crate::core::ids::RegionId;
use crate::core::wire::RegionEndpoints;

/// Regions that a list from a server may name; more are left out.
const MAX_REGIONS: usize = 64;
/// Endpoints of one region that are kept.
const MAX_ENDPOINTS: usize = 64;
/// Longest `host:port` that is kept, in bytes: a DNS name has at most 253.
const MAX_ENDPOINT_LEN: usize = 260;
/// Spread of attempts that follow a failure at once: the clients of a dead node do not arrive elsewhere together.
const SPREAD: Duration = Duration::from_millis(100);
/// A home region without room is asked so often, with growing pauses: ten seconds or so by default.
const CROWDED: u32 = 6;

/// An endpoint of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The region.
    pub region: RegionId,
    /// `host:port`.
    pub endpoint: String,
}

/// What it was that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Was {
    /// No session came about.
    Nothing,
    /// A session that ended soon.
    Short,
    /// A session that lasted for a while.
    Lasting,
}

/// The endpoints that are known, and which of them comes next.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// As given by the application; stays at the end of what servers tell.
    given: Vec<RegionEndpoints>,
    /// Only regions that were given are used.
    stays: bool,
    known: Vec<RegionEndpoints>,
    /// Where the application wants to be: the region that it named, or the first that it gave.
    preferred: Option<RegionId>,
    /// Region to begin a round with: the one that served last, or the preferred one.
    home: Option<RegionId>,
    /// What is left of this round.
    round: VecDeque<Target>,
    /// Rounds that failed since the last lasting connection.
    failed_rounds: u32,
    /// Times that a server asked to go elsewhere since the last session.
    turned_away: u32,
    /// Times that the home region had no room since a session stood.
    crowded: u32,
    min: Duration,
    max: Duration,
}

impl Endpoints {
    pub(super) fn new(
        given: Vec<RegionEndpoints>,
        home: Option<RegionId>,
        min: Duration,
        max: Duration,
    ) -> Self {
        let given = sane(given);
        let first = given.first().map(|first| first.region.clone());
        Self {
            known: given.clone(),
            given,
            stays: false,
            preferred: home.clone().or(first),
            home,
            round: VecDeque::new(),
            failed_rounds: 0,
            turned_away: 0,
            crowded: 0,
            min,
            max,
        }
    }

    /// Whether only regions that were given are used, whatever servers tell.
    pub(super) fn staying(self, stays: bool) -> Self {
        Self { stays, ..self }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.iter().all(|region| region.endpoints.is_empty())
    }

    /// Whether this is another region than the application wants to be in.
    pub(super) fn is_away(&self, region: &RegionId) -> bool {
        self.preferred
            .as_ref()
            .is_some_and(|preferred| preferred != region)
    }

    /// A session stands there; the server told what it knows.
    pub(super) fn welcomed(&mut self, at: &RegionId, told: Vec<RegionEndpoints>) {
        self.turned_away = 0;
        self.crowded = 0;
        self.home = Some(at.clone());
        self.round.clear();
        self.learn(told);
    }

    /// The server at `from` asks to go elsewhere, and says where if it can; returns the pause before
    /// [`Endpoints::next`].
    pub(super) fn sent_away(
        &mut self,
        from: &Target,
        told: Vec<RegionEndpoints>,
        rng: &mut ChaCha8Rng,
    ) -> Duration {
        if let Some(first) = told.first() {
            self.home = Some(first.region.clone());
        }
        self.learn(told);
        self.begin_round(Some(from), rng);
        // Servers that send it from one to the other must not be called in a tight loop.
        self.turned_away = self.turned_away.saturating_add(1);
        match self.turned_away {
            1 => self.spread(rng),
            times => backoff(self.min, self.max, times - 2, rng),
        }
    }

    /// The connection or attempt at `at` ended; returns the pause before [`Endpoints::next`].
    pub(super) fn failed(&mut self, at: &Target, was: Was, rng: &mut ChaCha8Rng) -> Duration {
        match was {
            Was::Lasting => {
                self.failed_rounds = 0;
                self.begin_round(Some(at), rng);
                return self.spread(rng);
            }
            // A server that welcomes and then ends sessions must not be called in a tight loop.
            Was::Short => self.begin_round(Some(at), rng),
            Was::Nothing if !self.round.is_empty() => return self.spread(rng),
            Was::Nothing => self.begin_round(None, rng),
        }
        self.failed_rounds = self.failed_rounds.saturating_add(1);
        backoff(self.min, self.max, self.failed_rounds - 1, rng)
    }

    /// A node of a region ended without a word, and perhaps its whole region: of that one more endpoint is tried before the
    /// others.
    pub(super) fn doubt(&mut self, region: &RegionId) {
        let round = std::mem::take(&mut self.round);
        let (of_it, others): (VecDeque<_>, VecDeque<_>) =
            round.into_iter().partition(|target| target.region == *region);
        let mut of_it = of_it.into_iter();
        self.round.extend(of_it.next());
        self.round.extend(others);
        self.round.extend(of_it);
    }

    /// The server at `at` has no room for a session now, as where many clients come back at once; returns the pause before
    /// [`Endpoints::next`]. The home region is asked [`CROWDED`] times before others are tried: who goes to another one stays.
    pub(super) fn crowded(&mut self, at: &Target, rng: &mut ChaCha8Rng) -> Duration {
        let is_home = self.home.as_ref().is_none_or(|home| *home == at.region);
        if !is_home || self.crowded >= CROWDED {
            return self.failed(at, Was::Nothing, rng);
        }
        self.crowded += 1;
        self.begin_round(Some(at), rng);
        backoff(self.min, self.max, self.crowded - 1, rng)
    }

    /// The endpoint to try now.
    pub(super) fn next(&mut self, rng: &mut ChaCha8Rng) -> Option<Target> {
        if self.round.is_empty() {
            self.begin_round(None, rng);
        }
        self.round.pop_front()
    }

    fn learn(&mut self, told: Vec<RegionEndpoints>) {
        let mut told = sane(told);
        if self.stays {
            told.retain(|told| self.given.iter().any(|given| given.region == told.region));
        }
        if told.is_empty() {
            return;
        }
        self.known = told;
        for given in &self.given {
            match self.known.iter_mut().find(|known| known.region == given.region) {
                Some(known) => {
                    for endpoint in &given.endpoints {
                        if !known.endpoints.contains(endpoint) {
                            known.endpoints.push(endpoint.clone());
                        }
                    }
                }
                None => self.known.push(given.clone()),
            }
        }
    }

    /// The home region first, each region's endpoints from a random one on, `last` at the end of its region.
    fn begin_round(&mut self, last: Option<&Target>, rng: &mut ChaCha8Rng) {
        self.round.clear();
        let is_home = |region: &&RegionEndpoints| Some(&region.region) == self.home.as_ref();
        let home = self.known.iter().filter(is_home);
        let others = self.known.iter().filter(|region| !is_home(region));
        for region in home.chain(others) {
            let count = region.endpoints.len();
            if count == 0 {
                continue;
            }
            let start = rng.next_u64() as usize % count;
            let rotated = (0..count).map(|i| &region.endpoints[(start + i) % count]);
            let is_last = |endpoint: &&String| {
                last.is_some_and(|last| last.region == region.region && last.endpoint == **endpoint)
            };
            let (at_end, first): (Vec<_>, Vec<_>) = rotated.partition(is_last);
            for endpoint in first.into_iter().chain(at_end) {
                self.round.push_back(Target {
                    region: region.region.clone(),
                    endpoint: endpoint.clone(),
                });
            }
        }
    }

    fn spread(&self, rng: &mut ChaCha8Rng) -> Duration {
        SPREAD.mul_f64(unit(rng))
    }
}

/// `min * 2^tries` up to `max`, of which a random part between a half and the whole.
pub(super) fn backoff(min: Duration, max: Duration, tries: u32, rng: &mut ChaCha8Rng) -> Duration {
    let full = min.saturating_mul(1 << tries.min(20)).min(max);
    full.mul_f64(0.5 + unit(rng) / 2.0)
}

/// A number from 0 to below 1.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
}

fn sane(mut list: Vec<RegionEndpoints>) -> Vec<RegionEndpoints> {
    list.truncate(MAX_REGIONS);
    for region in &mut list {
        region
            .endpoints
            .retain(|endpoint| endpoint.len() <= MAX_ENDPOINT_LEN);
        region.endpoints.truncate(MAX_ENDPOINTS);
    }
    list.retain(|region| !region.endpoints.is_empty());
    list
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    fn region(name: &str, endpoints: &[&str]) -> RegionEndpoints {
        RegionEndpoints {
            region: RegionId::new(name).unwrap(),
            endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(),
        }
    }

    fn endpoints(home: &str) -> Endpoints {
        Endpoints::new(
            vec![region("a", &["a1", "a2"]), region("b", &["b1"])],
            Some(RegionId::new(home).unwrap()),
            Duration::from_millis(200),
            Duration::from_secs(10),
        )
    }

    #[test]
    fn of_a_region_in_doubt_one_more_is_tried_before_the_others() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut endpoints = endpoints("a");
        let dead = Target {
            region: RegionId::new("a").unwrap(),
            endpoint: "a1".to_owned(),
        };
        endpoints.failed(&dead, Was::Lasting, &mut rng);
        endpoints.doubt(&dead.region);
        let tried = [(); 3].map(|()| endpoints.next(&mut rng).unwrap().endpoint);
        assert_eq!(tried, ["a2", "b1", "a1"]);
    }

    #[test]
    fn a_round_goes_through_the_home_region_first_and_pauses_grow_after_it() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut endpoints = endpoints("b");
        let mut longest = Duration::ZERO;
        for round in 0..12u32 {
            let mut names = Vec::new();
            for left in (0..3).rev() {
                let target = endpoints.next(&mut rng).unwrap();
                let pause = endpoints.failed(&target, Was::Nothing, &mut rng);
                names.push(target.endpoint);
                if left > 0 {
                    assert!(pause < SPREAD);
                } else {
                    let full = Duration::from_millis(200 << round).min(Duration::from_secs(10));
                    assert!(
                        pause >= full / 2 && pause <= full,
                        "round {round}: {pause:?} of {full:?}"
                    );
                    longest = longest.max(pause);
                }
            }
            assert_eq!(names[0], "b1");
            names.sort();
            assert_eq!(names, ["a1", "a2", "b1"]);
        }
        assert!(longest > Duration::from_secs(4));
    }

    #[test]
    fn after_a_lost_session_the_other_endpoints_of_its_region_come_first() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..20 {
            let mut endpoints = endpoints("a");
            let target = endpoints.next(&mut rng).unwrap();
            endpoints.welcomed(&target.region, vec![]);
            let pause = endpoints.failed(&target, Was::Lasting, &mut rng);
            assert!(pause < SPREAD);
            let other = endpoints.next(&mut rng).unwrap();
            assert_eq!(other.region, target.region);
            assert_ne!(other.endpoint, target.endpoint);
            assert_eq!(endpoints.next(&mut rng), Some(target));
        }
    }

    #[test]
    fn what_a_server_tells_is_bounded_and_comes_before_what_was_given() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut endpoints = endpoints("a");
        let long = "x".repeat(MAX_ENDPOINT_LEN + 1);
        let mut told: Vec<_> = (0..MAX_REGIONS + 5)
            .map(|i| region(&format!("r{i}"), &["e", &long]))
            .collect();
        told.insert(0, region("a", &["a9"]));
        endpoints.welcomed(&RegionId::new("a").unwrap(), told);
        let from = Target {
            region: RegionId::new("a").unwrap(),
            endpoint: "a9".into(),
        };
        endpoints.sent_away(&from, vec![], &mut rng);
        let all: Vec<_> = std::iter::from_fn(|| endpoints.round.pop_front()).collect();
        assert_eq!(all.len(), MAX_REGIONS - 1 + 3 + 1);
        assert_eq!(all[2], from);
        assert!(all.iter().all(|t| t.endpoint.len() <= MAX_ENDPOINT_LEN));
    }

    #[test]
    fn one_that_stays_learns_of_no_other_region() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let home = RegionId::new("home").unwrap();
        let told = vec![region("home", &["h1", "h2"]), region("far", &["f1"])];
        for stays in [true, false] {
            let given = vec![region("home", &["h1"])];
            let mut endpoints = Endpoints::new(given, None, min, max).staying(stays);
            endpoints.welcomed(&home, told.clone());
            let next = (0..6).map(|_| endpoints.next(&mut rng).unwrap().endpoint);
            let tried: std::collections::BTreeSet<String> = next.collect();
            assert!(tried.contains("h2"), "{tried:?}");
            assert_eq!(tried.contains("f1"), !stays, "{tried:?}");
        }
    }

    #[test]
    fn a_crowded_home_is_asked_again_for_a_while() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let given = vec![region("home", &["h1", "h2"]), region("far", &["f1"])];
        let mut endpoints = Endpoints::new(given, None, min, max);
        endpoints.welcomed(&RegionId::new("home").unwrap(), Vec::new());
        let mut at = endpoints.next(&mut rng).unwrap();
        for times in 0..CROWDED {
            let pause = endpoints.crowded(&at, &mut rng);
            let full = min * (1 << times);
            assert!(pause >= full / 2 && pause <= full, "{pause:?} after {times}");
            let next = endpoints.next(&mut rng).unwrap();
            assert_eq!(next.region.as_str(), "home");
            assert_ne!(next.endpoint, at.endpoint, "by turns");
            at = next;
        }
        endpoints.crowded(&at, &mut rng);
        let rest: Vec<_> = (0..2).map(|_| endpoints.next(&mut rng).unwrap().region).collect();
        assert!(rest.iter().any(|region| region.as_str() == "far"), "{rest:?}");
        endpoints.welcomed(&RegionId::new("home").unwrap(), Vec::new());
        let at = endpoints.next(&mut rng).unwrap();
        assert!(endpoints.crowded(&at, &mut rng) <= min, "a session stood: anew");
    }
}
