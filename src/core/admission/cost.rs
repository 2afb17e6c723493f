//! What a request costs its module, learnt from the order of departures.
//!
//! A Ray module is one Python process. In a single server the true service time of a request
//! is the time between its own departure and the later of its arrival and the departure
//! before it: whatever lay earlier was spent on others. No probe, no configuration, and a
//! request that waited behind a heavy one is not billed for it.
//!
//! A module that gives way in the middle of a request (an `await`) may do a neighbour's work
//! between this one's arrival and departure, and the neighbour may depart later: its work is
//! then billed to the wrong one. So nothing is billed for more than it takes when it is let
//! alone: a low quantile of the route's own latency. What began while the module had nothing
//! else to do says it well, and moves it either way. What began among others says only that it
//! is not more: under a flood that lasts no request is ever alone, and a cheap poll whose latency
//! is the flood's doing must not be taken for an expensive one, or the bound on work keeps out
//! the very requests that cost nothing.
//!
//! In a module that works in parallel this reads too low by the degree of overlap, for all routes
//! alike; the concurrency limits, which do not depend on it, hold the rest. What each *client* is
//! charged there must not come of it: of several that end together the first would be billed for
//! them all, and as requests that are served together end together, it would be the same one
//! every time. There a request takes a permit for as long as it holds it, and is charged for that
//! ([`Costs::hold`]).
//!
//! A path that no route knows (a user's own API, Ray's next version) has a cost by its template and method, in one of
//! `TEMPLATES` places for each listener: a dear endpoint and a cheap one of the same class do not share a price.
//! Two templates may fall into one place, and then they do; however many paths are invented, there are no more.

use crate::time::Time;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// Places for the costs of paths that no route knows, for each listener.
pub(crate) const TEMPLATES: u16 = 128;

/// The key of the cost of a path that no route knows, whose listener's own number is `listener`.
pub fn of_template(listener: u16, method: &str, template: &str) -> u16 {
    let mut hasher = DefaultHasher::new();
    (method, template).hash(&mut hasher);
    let place = hasher.finish() % u64::from(TEMPLATES);
    FIRST_TEMPLATE + listener * TEMPLATES + u16::try_from(place).unwrap_or(0)
}

/// The route behind a key: itself, or the listener's own number.
pub fn route_of(key: u16) -> u16 {
    key.checked_sub(FIRST_TEMPLATE).map_or(key, |beyond| beyond / TEMPLATES)
}

/// Keys from here on are of templates; no configuration has so many routes.
const FIRST_TEMPLATE: u16 = 0xF000;

/// Routes with a cost of their own; those beyond share the last.
const ROUTES_MAX: usize = 512;

/// Share of a new observation in the estimate.
const LEARN: f64 = 0.1;

/// All costs: of routes, and of templates of three listeners.
const COSTS_MAX: usize = ROUTES_MAX + 3 * TEMPLATES as usize;

/// What one latency above the low quantile moves it by, as a share of the distance, when the
/// request found its module idle: with [`FALL`], one to four settles near the lowest fifth.
const RISE_ALONE: f64 = 0.05;
/// The same among others. Not zero: what grows dearer (a list, a log) while no request is
/// ever alone is found out after some thousands.
const RISE_AMONG_OTHERS: f64 = 0.000_2;
/// What one below moves it by.
const FALL: f64 = 0.2;

/// A cost that was written down and is not below this is none.
const RECALLED_MAX_S: f64 = 3600.0;

/// Learnt work per route, in seconds.
#[derive(Debug)]
pub struct Costs(Box<[Cost]>);

/// What is known of one route; bits of `f64` seconds, 0 while nothing is.
#[derive(Debug, Default)]
struct Cost {
    expected: AtomicU64,
    work: AtomicU64,
    alone: AtomicU64,
    calm: AtomicU64,
}

impl Default for Costs {
    fn default() -> Costs {
        Costs((0..COSTS_MAX).map(|_| Cost::default()).collect())
    }
}

impl Costs {
    /// The estimate for a route in seconds; until one has been seen what is expected of it, or zero.
    pub fn get(&self, route: u16) -> f64 {
        let cost = self.permit(route);
        match read(&cost.alone) {
            0.0 => read(&cost.expected),
            alone => read(&cost.work).min(alone),
        }
    }

    /// Says what a route is thought to cost, in seconds, for as long as no request of it has been seen: at the first
    /// start before a head that is flooded already, the first heavy requests are not let in together.
    pub fn expect(&self, route: u16, seconds: f64) {
        self.permit(route).expected.store(seconds.to_bits(), Ordering::Relaxed);
    }

    /// Forgets what routes were thought to cost: it was said of another Ray.
    pub fn expect_nothing(&self) {
        self.0.iter().for_each(|cost| cost.expected.store(0.0_f64.to_bits(), Ordering::Relaxed));
    }

    /// Forgets what was learnt, of another Ray too; what is expected stands for it until it is learnt anew.
    pub fn forget(&self) {
        let learnt = self.0.iter().flat_map(|cost| [&cost.work, &cost.alone, &cost.calm]);
        learnt.for_each(|seconds| seconds.store(0.0_f64.to_bits(), Ordering::Relaxed));
    }

    /// For how long a request of a route is thought to hold its permit, in seconds: a low quantile of
    /// its latency; zero until one has been seen.
    pub fn hold(&self, route: u16) -> f64 {
        read(&self.permit(route).alone)
    }

    /// What a request of a route took in calm, of which `now` is thought, but no less than half of that: a head that
    /// is busy makes every request dearer, and what was remembered of a client was cheap.
    pub(crate) fn in_calm(&self, route: u16, now: f64) -> f64 {
        match read(&self.permit(route).calm) {
            0.0 => now,
            calm => calm.max(now / 2.0),
        }
    }

    /// Learns what one request took while no other request wanted its place.
    pub(crate) fn learn_calm(&self, route: u16, took: f64) {
        if took.is_finite() && took > 0.0 {
            mix(&self.permit(route).calm, took, |_| LEARN);
        }
    }

    /// What has been learnt so far, in seconds: the work of each route, the low quantile of its latency, and what it
    /// took in calm.
    pub fn learnt(&self) -> impl Iterator<Item = (u16, [f64; 3])> {
        let of = |cost: &Cost| [read(&cost.work), read(&cost.alone), read(&cost.calm)];
        (0..)
            .zip(&self.0[..ROUTES_MAX])
            .map(move |(route, cost)| (route, of(cost)))
            .filter(|(_, cost)| cost[1] > 0.0)
    }

    /// Takes in what an earlier process has learnt of a route of which nothing is known yet.
    pub fn recall(&self, route: u16, [work, alone, calm]: [f64; 3]) {
        let sound = |seconds: f64| seconds > 0.0 && seconds < RECALLED_MAX_S;
        let cost = self.permit(route);
        if sound(work) && sound(alone) && read(&cost.alone) == 0.0 {
            cost.work.store(work.to_bits(), Ordering::Relaxed);
            cost.alone.store(alone.to_bits(), Ordering::Relaxed);
            if sound(calm) {
                cost.calm.store(calm.to_bits(), Ordering::Relaxed);
            }
        }
    }

    /// Learns from one exchange: the work it was billed and the whole of its latency, in
    /// seconds, and whether it found its module idle. Two at once may lose one: these are
    /// averages.
    pub fn learn(&self, route: u16, work: f64, latency: f64, alone: bool) {
        let cost = self.permit(route);
        if work.is_finite() && work >= 0.0 {
            mix(&cost.work, work, |_| LEARN);
        }
        if latency.is_finite() && latency > 0.0 {
            let rise = if alone { RISE_ALONE } else { RISE_AMONG_OTHERS };
            mix(&cost.alone, latency, |old| if latency > old { rise } else { FALL });
        }
    }

    fn permit(&self, route: u16) -> &Cost {
        let at = match route.checked_sub(FIRST_TEMPLATE) {
            Some(beyond) => (ROUTES_MAX + usize::from(beyond)).min(COSTS_MAX - 1),
            None => usize::from(route).min(ROUTES_MAX - 1),
        };
        &self.0[at]
    }
}

fn read(bits: &AtomicU64) -> f64 {
    f64::from_bits(bits.load(Ordering::Relaxed))
}

/// Moves an average towards `value` by the share that `weight` gives; the first value is taken whole.
fn mix(bits: &AtomicU64, value: f64, weight: impl Fn(f64) -> f64) {
    let old = read(bits);
    let new = if old == 0.0 { value } else { old + weight(old) * (value - old) };
    bits.store(new.to_bits(), Ordering::Relaxed);
}

/// A module's departures, in order.
#[derive(Debug, Default)]
pub struct Departures(AtomicU64);

impl Departures {
    /// The work of a request that arrived at `arrived` and departs `now`, in seconds.
    pub fn depart(&self, arrived: Time, now: Time) -> f64 {
        let before = Time(self.0.fetch_max(now.0, Ordering::AcqRel));
        now.since(before.max(arrived)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_no_route_knows_have_costs_of_their_own_and_are_told_by_their_listener() {
        let (dear, cheap) = (of_template(0, "GET", "/api/report"), of_template(0, "GET", "/api/ping"));
        assert_ne!(dear, cheap);
        assert_eq!([dear, cheap, of_template(2, "GET", "/x"), 7].map(route_of), [0, 0, 2, 7]);
        let costs = Costs::default();
        for _ in 0..100 {
            costs.learn(dear, 0.25, 0.25, true);
            costs.learn(cheap, 0.005, 0.005, true);
        }
        assert!(costs.get(dear) > 40.0 * costs.get(cheap), "{} {}", costs.get(dear), costs.get(cheap));
        for at in 0..10_000 {
            let key = of_template(2, "POST", &format!("/{at}"));
            assert!((FIRST_TEMPLATE..FIRST_TEMPLATE + 3 * TEMPLATES).contains(&key));
        }
    }

    #[test]
    fn a_single_server_bills_each_its_own_service_time() {
        let departures = Departures::default();
        let at = Time::from_secs_f64;
        // A heavy one (250 ms) and two light ones (5 ms) arrive together.
        assert!((departures.depart(at(0.0), at(0.250)) - 0.250).abs() < 1e-9);
        assert!((departures.depart(at(0.0), at(0.255)) - 0.005).abs() < 1e-9);
        assert!((departures.depart(at(0.0), at(0.260)) - 0.005).abs() < 1e-9);
        // After a pause the bill starts at the arrival.
        assert!((departures.depart(at(1.0), at(1.005)) - 0.005).abs() < 1e-9);
    }

    #[test]
    fn the_estimate_follows_and_ignores_nonsense() {
        let costs = Costs::default();
        costs.learn(3, 0.1, 0.5, true);
        costs.learn(3, f64::NAN, f64::NAN, true);
        costs.learn(3, -1.0, -1.0, true);
        assert!((costs.get(3) - 0.1).abs() < 1e-12);
        (0..200).for_each(|_| costs.learn(3, 0.2, 0.5, true));
        assert!((costs.get(3) - 0.2).abs() < 1e-6);
    }

    #[test]
    fn what_is_expected_holds_until_the_first_request_has_been_seen() {
        let costs = Costs::default();
        costs.expect(3, 0.5);
        assert!((costs.get(3) - 0.5).abs() < 1e-12 && costs.get(4) == 0.0);
        assert_eq!(costs.learnt().count(), 0, "it is not taken for learnt");
        costs.learn(3, 0.02, 0.03, true);
        assert!((costs.get(3) - 0.02).abs() < 1e-12);
    }

    #[test]
    fn what_was_learnt_is_forgotten_and_what_is_expected_stands_for_it_again() {
        let (costs, of_no_route) = (Costs::default(), of_template(0, "GET", "/api/report"));
        costs.expect(3, 0.5);
        for route in [3, of_no_route] {
            costs.learn(route, 0.02, 0.03, true);
            costs.learn_calm(route, 0.01);
        }
        costs.forget();
        assert!((costs.get(3) - 0.5).abs() < 1e-12 && costs.get(of_no_route) == 0.0);
        assert!(costs.hold(3) == 0.0 && (costs.in_calm(3, 0.7) - 0.7).abs() < 1e-12);
        costs.learn(3, 0.04, 0.05, true);
        assert!((costs.get(3) - 0.04).abs() < 1e-12, "the first is taken whole");
    }

    #[test]
    fn a_flood_of_neighbours_that_lasts_does_not_make_a_cheap_route_dear() {
        let costs = Costs::default();
        (0..50).for_each(|_| costs.learn(7, 0.002, 0.003, true));
        // Two minutes of 20 polls a second: billed 25 ms of the neighbours' work, and slow with it.
        (0..2400).for_each(|_| costs.learn(7, 0.025, 0.110, false));
        assert!(costs.get(7) < 0.050, "{}", costs.get(7));
        (0..300).for_each(|n| costs.learn(7, 0.025, if n % 20 == 0 { 0.004 } else { 0.110 }, false));
        assert!(costs.get(7) < 0.010, "one poll in twenty got through at once: {}", costs.get(7));
    }

    #[test]
    fn what_was_learnt_is_recalled_by_a_process_that_knows_nothing_yet_and_nonsense_is_not() {
        let (old, new) = (Costs::default(), Costs::default());
        old.learn(7, 0.02, 0.03, true);
        old.learn_calm(7, 0.01);
        let learnt: Vec<_> = old.learnt().collect();
        assert_eq!(learnt, [(7, [0.02, 0.03, 0.01])]);
        for (route, cost) in learnt {
            new.recall(route, cost);
        }
        assert!((new.get(7) - 0.02).abs() < 1e-12 && (new.hold(7) - 0.03).abs() < 1e-12);
        for nonsense in [[f64::NAN, 1.0], [1.0, f64::INFINITY], [-1.0, 1.0], [0.0, 0.0], [1e9, 1.0]] {
            let [work, alone] = nonsense;
            new.recall(8, [work, alone, 1.0]);
        }
        new.recall(9, [1.0, 1.0, f64::NAN]);
        assert!((new.in_calm(9, 0.5) - 0.5).abs() < 1e-12);
        new.recall(7, [9.0, 9.0, 9.0]);
        assert!(new.get(8) == 0.0 && new.get(7) < 0.03);
    }

    #[test]
    fn what_grows_dearer_is_found_out_at_once_when_alone_and_in_time_when_not() {
        let grown = |times: u32, alone: bool| {
            let costs = Costs::default();
            (0..50).for_each(|_| costs.learn(7, 0.002, 0.003, true));
            (0..times).for_each(|_| costs.learn(7, 0.100, 0.100, alone));
            costs.get(7)
        };
        assert!(grown(60, true) > 0.090);
        assert!(grown(20_000, false) > 0.090);
    }
}
