//! One replica's part of the limit table: which limits are shared, what is used of each, and the
//! table as it may be used here.
//!
//! Shared are each class's concurrency, rate and bandwidth and each module's ceiling. Concurrency
//! is counted in whole permits, rates in millionths of a request per second (one an hour is 277 of
//! them), bandwidth in bytes per second.
//!
//! *Demand.* Of permits: the most under way since the last renewal and a tenth (chance must not
//! hold back a replica that has less than its share), those that wait, and those refused, by
//! Little's law. Of a rate: what was offered, averaged over a second. It falls by a tenth per
//! renewal, so that leases do not follow each gap in the traffic. A replica that winds up needs what
//! is under way and what waits, and not more.
//!
//! *Whose demand.* Where the replicas want more of a limit than there is, a replica asks for what lies
//! within the shares of its clients ([`super::identities`]). It looks who asks only while that
//! matters: in classes that were contended here or elsewhere in the last `WATCHED_FOR`, and in
//! those with ceilings per client, which several replicas would otherwise each grant anew.

use super::Timing;
use super::identities::{self, Demand, Share, Weights};
use super::lease_holder::{LeaseHolder, Standing};
use super::reported_demand::{ReportedDemand, SmoothedDemand};
use crate::admission::demand::ClassDemand;
use crate::admission::table::{LimitTable, permits};
use crate::controller::ProxyReading;
use crate::policy::{Kind, PerClientLimits, Policy, Treatment};
use crate::time::{Time, duration_from_secs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Grains in one request per second.
const RATE: f64 = 1e6;

/// How long a replica looks who asks for a class after it was contended.
pub(crate) const WATCHED_FOR: Duration = Duration::from_secs(5);

/// A limit that is shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shared {
    InFlight(usize),
    Rate(usize),
    Bytes(usize),
    Module(usize),
}

/// One replica's part of the replicas' limits.
#[derive(Clone, Debug)]
pub struct Quota {
    policy: Arc<Policy>,
    shared: Vec<Shared>,
    names: Vec<String>,
    /// What may be used.
    pub holder: LeaseHolder,
    /// What all clients together could use of each limit.
    wants: Vec<f64>,
    /// One for each class.
    watched: Vec<Watched>,
    shares: PublishedShares,
    before: ProxyReading,
    /// The most under way and waiting of each class since the last renewal.
    peaks: Vec<(u32, u32)>,
    looked_at: Time,
}

/// Who asks for a class here.
#[derive(Clone, Debug, Default)]
struct Watched {
    until: Time,
    smoothed: SmoothedDemand,
    told: Option<ReportedDemand>,
}

/// How the limits are shared among identities, as the leader has found.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PublishedShares {
    /// By limit: those of which more is wanted than there is.
    limits: BTreeMap<String, Share>,
    /// By class: what of its own ceilings a client has at each replica.
    ceilings: BTreeMap<String, Weights>,
}

/// What a replica tells of its demand, in the order of the leader's limits.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Wanted {
    /// In grains, of all clients together.
    pub wants: Vec<u64>,
    /// Who asks for a class, by its place.
    pub told: BTreeMap<usize, ReportedDemand>,
}

/// One shared limit, for people and metrics.
#[derive(Clone, PartialEq, Debug)]
pub struct Leased {
    /// The class, or the module.
    pub name: Arc<str>,
    /// `in_flight`, `rate`, `bytes_per_second` or `module_in_flight`.
    pub limit: &'static str,
    /// What may be used here, in the limit's own unit.
    pub value: f64,
}

impl Quota {
    /// Nothing held yet of the limits of `table`.
    pub fn new(policy: Arc<Policy>, table: &LimitTable, replicas: u32, timing: Timing, now: Time) -> Quota {
        let shared = shared(&policy);
        let limits = shared.iter().map(|of| grains(*of, table)).collect::<Vec<_>>();
        Quota {
            names: shared.iter().map(|of| name(*of, &policy)).collect(),
            holder: LeaseHolder::new(limits, replicas, timing),
            wants: vec![0.0; shared.len()],
            watched: vec![Watched::default(); policy.classes.len()],
            shares: PublishedShares::default(),
            shared,
            policy,
            before: ProxyReading::new(),
            peaks: Vec::new(),
            looked_at: now,
        }
    }

    /// The names of the shared limits, as the store knows them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The whole limits in grains.
    pub fn limits(&self, table: &LimitTable) -> Vec<u64> {
        self.shared.iter().map(|of| grains(*of, table)).collect()
    }

    /// Takes on a new policy: what is held of a limit stays held under its name.
    pub fn take_over(&mut self, policy: Arc<Policy>, table: &LimitTable) {
        let shared = shared(&policy);
        let names: Vec<String> = shared.iter().map(|of| name(*of, &policy)).collect();
        let places: Vec<Option<usize>> =
            names.iter().map(|name| self.names.iter().position(|old| old == name)).collect();
        let limits: Vec<u64> = shared.iter().map(|of| grains(*of, table)).collect();
        self.holder.rearrange(&places, &limits);
        self.wants = places.iter().map(|place| place.map_or(0.0, |at| self.wants[at])).collect();
        self.watched = vec![Watched::default(); policy.classes.len()];
        (self.shared, self.names, self.policy) = (shared, names, policy);
        self.before.clear();
        self.peaks.clear();
    }

    /// Notes how busy the replica is, between two renewals.
    pub fn observe(&mut self, replica: &ProxyReading) {
        self.peaks.resize(replica.len(), (0, 0));
        for (peak, seen) in self.peaks.iter_mut().zip(replica) {
            let busy = seen.in_flight.max(seen.in_flight_peak);
            *peak = (peak.0.max(busy), peak.1.max(seen.waiting));
        }
    }

    /// Takes in who has asked since the last renewal.
    pub fn hear(&mut self, class: usize, demand: &ClassDemand, places: &[(u64, u32)], now: Time) {
        let elapsed_s = self.elapsed_s(now);
        if let Some(watched) = self.watched.get_mut(class) {
            watched.smoothed.take_in(demand, elapsed_s);
            watched.smoothed.take_places(places);
        }
    }

    /// What is in use and what is asked for, of each shared limit: see the head of this file.
    pub fn loads(&mut self, replica: &ProxyReading, now: Time) -> Vec<(u64, u64)> {
        self.observe(replica);
        let used = self.use_of(replica, now);
        self.look_who_asks(replica, now);
        let leases = self.holder.caps(now);
        let wanted = if self.shares.limits.is_empty() { Wanted::default() } else { self.wanted() };
        let mut loads = Vec::with_capacity(self.shared.len());
        for (at, (used, lease)) in used.into_iter().zip(leases).enumerate() {
            let demand = if self.holder.is_leaving() {
                self.rest_of(at, replica, lease)
            } else {
                match self.shares.limits.get(&self.names[at]) {
                    Some(share) if self.is_told(at, &wanted) => {
                        self.demand(at, &wanted).within(share).min(self.wants[at])
                    }
                    // Clients that hold places and ask for none are not known.
                    _ => self.wants[at].ceil(),
                }
            };
            // To the nearest whole, or three replicas would together ask for up to three permits too many.
            loads.push((whole(used), whole(demand.round()).max(u64::from(demand > 0.0))));
        }
        self.peaks.clear();
        self.before.clone_from(replica);
        self.looked_at = now;
        loads
    }

    /// What could be used here of each limit, and who asks for it.
    pub fn wanted(&self) -> Wanted {
        let told = self.watched.iter().enumerate().filter_map(|(at, of)| Some((at, of.told.clone()?)));
        Wanted { wants: self.wants.iter().map(|want| whole(want.ceil())).collect(), told: told.collect() }
    }

    /// Whether to count who asks for a class.
    pub fn watches(&self, class: usize, now: Time) -> bool {
        self.watched.get(class).is_some_and(|watched| now < watched.until)
    }

    /// Shares out the whole limits among all clients of these replicas; for the leader.
    pub fn share_out(&self, limits: &[u64], reserved: &[u64], replicas: &[Wanted]) -> PublishedShares {
        let mut shares = PublishedShares::default();
        for (at, (limit, reserved)) in limits.iter().zip(reserved).enumerate() {
            let pool = super::max_min::spare_one_part(*limit, *reserved, replicas.len() as u64);
            let demands: Vec<Demand> = replicas.iter().map(|replica| self.demand(at, replica)).collect();
            if let Some(share) = identities::share(pool as f64, &demands) {
                shares.limits.insert(self.names[at].clone(), share);
            }
        }
        for (at, class) in self.policy.classes.iter().enumerate() {
            let PerClientLimits { rate, in_flight } = class.per_client;
            let told = |of: &dyn Fn(&ReportedDemand) -> Demand| -> Vec<Demand> {
                replicas.iter().filter_map(|replica| replica.told.get(&at).map(of)).collect()
            };
            let by_rate = rate.map(|(rate, _)| identities::hold_to(rate, &told(&ReportedDemand::requests)));
            let places = in_flight
                .map(|places| identities::hold_to(f64::from(places), &told(&ReportedDemand::places)));
            let parts = lesser(by_rate.into_iter().chain(places));
            if !parts.is_empty() {
                shares.ceilings.insert(class.name.to_string(), parts);
            }
        }
        shares
    }

    /// Takes in how the limits are shared out among identities; `None`: no leader says so.
    pub fn take_shares(&mut self, shares: Option<PublishedShares>) {
        self.shares = shares.unwrap_or_default();
    }

    /// The clients that weigh less than 1 in a class's queue here, and those that have less than all of their ceilings.
    pub fn weights(&self, class: usize) -> (Weights, Weights) {
        let Some(of) = self.policy.classes.get(class) else { return (Weights::new(), Weights::new()) };
        let limits = self.limits_of(class).filter_map(|at| self.shares.limits.get(&self.names[at]));
        let weights = lesser(limits.map(|share| share.weights.clone()));
        (weights, self.shares.ceilings.get(&*of.name).cloned().unwrap_or_default())
    }

    /// The demand for a limit at one replica, by who asks.
    fn demand(&self, at: usize, replica: &Wanted) -> Demand {
        let want = |at: usize| replica.wants.get(at).copied().unwrap_or(0) as f64;
        let by_class = |class: usize, want: f64| {
            replica.told.get(&class).map_or_else(|| Demand::of_one_unknown(want), |told| told.demand(want))
        };
        match self.shared[at] {
            Shared::InFlight(class) | Shared::Rate(class) | Shared::Bytes(class) => by_class(class, want(at)),
            Shared::Module(module) => Demand::join(self.shared.iter().enumerate().filter_map(|(at, of)| {
                let Shared::InFlight(class) = *of else { return None };
                (self.is_in(class, module) && want(at) > 0.0).then(|| by_class(class, want(at)))
            })),
        }
    }

    /// Whether anything is known of those who ask for a limit.
    fn is_told(&self, at: usize, replica: &Wanted) -> bool {
        match self.shared[at] {
            Shared::InFlight(class) | Shared::Rate(class) | Shared::Bytes(class) => {
                replica.told.contains_key(&class)
            }
            Shared::Module(module) => replica.told.keys().any(|class| self.is_in(*class, module)),
        }
    }

    /// The places of the limits that hold a class.
    fn limits_of(&self, class: usize) -> impl Iterator<Item = usize> {
        self.shared.iter().enumerate().filter_map(move |(at, of)| {
            let holds = match *of {
                Shared::InFlight(it) | Shared::Rate(it) | Shared::Bytes(it) => it == class,
                Shared::Module(module) => self.is_in(class, module),
            };
            holds.then_some(at)
        })
    }

    /// Whether a class counts towards a module's ceiling.
    fn is_in(&self, class: usize, module: usize) -> bool {
        let class = &self.policy.classes[class];
        class.module.index() == module && class.kind == Kind::Unary
    }

    /// Tells who asks for what is contended, here or elsewhere.
    fn look_who_asks(&mut self, replica: &ProxyReading, now: Time) {
        let fresh = self.before.len() == replica.len();
        for (at, seen) in replica.iter().enumerate().take(self.watched.len()) {
            let elsewhere = self.limits_of(at).any(|at| self.shares.limits.contains_key(&self.names[at]));
            let here = fresh && seen.counts.bound > self.before[at].counts.bound;
            let ceilings = self.policy.classes[at].per_client != PerClientLimits::default();
            let watched = &mut self.watched[at];
            let known = now < watched.until;
            if here || elsewhere || ceilings {
                watched.until = now + WATCHED_FOR;
            } else if !known {
                watched.smoothed = SmoothedDemand::default();
            }
            // What has just begun to be counted says nothing yet.
            watched.told = known.then(|| watched.smoothed.tell()).filter(ReportedDemand::is_something);
        }
    }

    /// What is in use of each limit; brings up to date what could be.
    fn use_of(&mut self, replica: &ProxyReading, now: Time) -> Vec<f64> {
        let elapsed_s = self.elapsed_s(now);
        let fresh = self.before.len() == replica.len();
        let wants: Vec<f64> = (0..replica.len())
            .map(|at| {
                let seen = &replica[at];
                let (refused, latency_s) = if fresh {
                    let counts = seen.counts.since(&self.before[at].counts);
                    (counts.shed_all() as f64, counts.latency_mean().unwrap_or(0.1))
                } else {
                    (0.0, 0.0)
                };
                let held = self.policy.classes[at].kind == Kind::Held;
                let turned_away = if held { refused } else { refused / elapsed_s * latency_s };
                let (peak, waiting) = self.peaks[at];
                1.1 * f64::from(peak) + f64::from(waiting) + turned_away
            })
            .collect();
        let weight = 1.0 - (-elapsed_s).exp();
        let mut use_of = Vec::with_capacity(self.shared.len());
        let mut now_wanted = Vec::with_capacity(self.shared.len());
        for (of, kept) in self.shared.iter().zip(&self.wants) {
            let (used, want) = match *of {
                Shared::InFlight(at) => (f64::from(replica[at].in_flight), wants[at]),
                Shared::Module(at) => (
                    self.sum_of(at, replica.len(), &|class| f64::from(replica[class].in_flight)),
                    self.sum_of(at, replica.len(), &|class| wants[class]),
                ),
                Shared::Rate(at) if fresh => {
                    let offered =
                        replica[at].counts.since(&self.before[at].counts).offered as f64 / elapsed_s;
                    let mean = *kept / 1.1 + weight * (offered * RATE - *kept / 1.1);
                    (0.0, (1.1 * mean).max(0.0))
                }
                Shared::Rate(_) => (0.0, 0.0),
                Shared::Bytes(at) => (0.0, if replica[at].in_flight > 0 { GRAINS_MAX } else { 0.0 }),
            };
            use_of.push(used);
            let fades = !matches!(of, Shared::Rate(_));
            now_wanted.push(if fades { want.max(*kept * 0.9 - 0.1) } else { want });
        }
        self.wants = now_wanted;
        use_of
    }

    /// What a replica that winds up still needs of a limit.
    fn rest_of(&self, at: usize, replica: &ProxyReading, lease: u64) -> f64 {
        let busy = |class: usize| f64::from(replica[class].in_flight + replica[class].waiting);
        match self.shared[at] {
            Shared::InFlight(class) => busy(class),
            Shared::Module(module) => self.sum_of(module, replica.len(), &busy),
            Shared::Rate(class) if replica[class].waiting > 0 => lease as f64,
            Shared::Bytes(class) if replica[class].in_flight > 0 => lease as f64,
            Shared::Rate(_) | Shared::Bytes(_) => 0.0,
        }
    }

    /// The sum over the classes of a module.
    fn sum_of(&self, module: usize, classes: usize, of: &dyn Fn(usize) -> f64) -> f64 {
        (0..classes).filter(|class| self.is_in(*class, module)).map(of).sum()
    }

    fn elapsed_s(&self, now: Time) -> f64 {
        now.since(self.looked_at).as_secs_f64().max(1e-3)
    }

    /// The table as this replica may use it at `now`.
    pub fn of(&self, table: &LimitTable, now: Time) -> LimitTable {
        let mut quota = table.clone();
        for (of, cap) in self.shared.iter().zip(self.holder.caps(now)) {
            match *of {
                Shared::InFlight(at) => {
                    let limit = &mut quota.classes[at].in_flight;
                    *limit = limit.min(cap as f64);
                }
                Shared::Rate(at) => {
                    if let Some(rate) = &mut quota.classes[at].rate {
                        *rate = rate.min(cap as f64 / RATE);
                    }
                }
                Shared::Bytes(at) => {
                    if let Some(bytes) = &mut quota.classes[at].bytes_per_second {
                        *bytes = bytes.min((cap as f64).max(1.0));
                    }
                }
                Shared::Module(at) => {
                    let limit = &mut quota.modules[at].in_flight;
                    *limit = limit.min(cap as f64);
                }
            }
        }
        quota
    }

    /// Every shared limit and what may be used of it at `now`.
    pub fn leased(&self, now: Time) -> Vec<Leased> {
        let class = |at: usize| Arc::clone(&self.policy.classes[at].name);
        self.shared
            .iter()
            .zip(self.holder.caps(now))
            .map(|(of, cap)| match *of {
                Shared::InFlight(at) => Leased { name: class(at), limit: "in_flight", value: cap as f64 },
                Shared::Rate(at) => Leased { name: class(at), limit: "rate", value: cap as f64 / RATE },
                Shared::Bytes(at) => Leased { name: class(at), limit: "bytes_per_second", value: cap as f64 },
                Shared::Module(at) => Leased {
                    name: Arc::clone(&self.policy.modules[at].name),
                    limit: "module_in_flight",
                    value: cap as f64,
                },
            })
            .collect()
    }

    /// On what this replica goes by.
    pub fn standing(&self, now: Time) -> Standing {
        self.holder.standing(now)
    }

    /// How old the leases are.
    pub fn age(&self, now: Time) -> Duration {
        self.holder.age(now).unwrap_or_else(|| duration_from_secs(now.as_secs_f64()))
    }
}

/// Of several weights of one client the least.
fn lesser(weights: impl Iterator<Item = Weights>) -> Weights {
    let mut least = Weights::new();
    for (digest, weight) in weights.flatten() {
        least.entry(digest).and_modify(|least: &mut f64| *least = least.min(weight)).or_insert(weight);
    }
    least
}

fn shared(policy: &Policy) -> Vec<Shared> {
    let mut shared = Vec::new();
    for (at, class) in policy.classes.iter().enumerate() {
        if class.treatment == Treatment::Limited {
            shared.push(Shared::InFlight(at));
            shared.extend(class.rate.map(|_| Shared::Rate(at)));
            shared.extend(class.bytes_per_second.map(|_| Shared::Bytes(at)));
        }
    }
    shared.extend((0..policy.modules.len()).map(Shared::Module));
    shared
}

fn name(of: Shared, policy: &Policy) -> String {
    match of {
        Shared::InFlight(at) => format!("{}/in_flight", policy.classes[at].name),
        Shared::Rate(at) => format!("{}/rate", policy.classes[at].name),
        Shared::Bytes(at) => format!("{}/bytes_per_second", policy.classes[at].name),
        Shared::Module(at) => format!("{}/module_in_flight", policy.modules[at].name),
    }
}

fn grains(of: Shared, table: &LimitTable) -> u64 {
    match of {
        Shared::InFlight(at) => u64::from(permits(table.classes[at].in_flight)),
        Shared::Rate(at) => whole(table.classes[at].rate.unwrap_or(0.0) * RATE),
        Shared::Bytes(at) => whole(table.classes[at].bytes_per_second.unwrap_or(0.0)),
        Shared::Module(at) => u64::from(permits(table.modules[at].in_flight)),
    }
}

/// No more than the store's script counts exactly.
const GRAINS_MAX: f64 = 1e13;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped; NaN becomes 0")]
fn whole(amount: f64) -> u64 {
    amount.clamp(0.0, GRAINS_MAX) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ClassReading;
    use crate::policy::plain::{class, policy};
    use crate::policy::{Bounds, RateBounds};

    const TIMING: Timing = Timing { period: Duration::from_millis(250), remember: Duration::from_mins(5) };

    fn quota() -> (Quota, LimitTable) {
        let mut submit = class("submit", 9.0);
        submit.rate = Some(RateBounds { per_second: Bounds::fixed(1.0 / 3600.0), burst: 1 });
        let policy = Arc::new(policy(vec![submit, class("list", 1.0)], 30.0));
        let table = LimitTable::initial(&policy);
        (Quota::new(policy, &table, 3, TIMING, Time::ZERO), table)
    }

    #[test]
    fn without_a_store_a_replica_has_its_even_share_of_every_limit() {
        let (mut quota, table) = quota();
        quota.holder.go_alone(Time::ZERO);
        let own = quota.of(&table, Time::ZERO);
        assert_eq!(permits(own.classes[0].in_flight), 3);
        assert_eq!(permits(own.classes[1].in_flight), 1, "never none");
        assert_eq!(permits(own.modules[0].in_flight), 10);
        assert!((own.classes[0].rate.unwrap() * 3.0 * 3600.0 - 1.0).abs() < 0.02);
    }

    #[test]
    fn a_lease_is_what_the_replica_may_use_and_a_reload_keeps_it_under_its_name() {
        let (mut quota, table) = quota();
        let renewal = quota.holder.renew(Time::ZERO, &[]);
        quota.holder.take(&renewal, &[7, 100, 1, 20], 3);
        assert_eq!(permits(quota.of(&table, Time::ZERO).classes[0].in_flight), 7);
        let after = Arc::new(policy(vec![class("new", 4.0), class("submit", 9.0)], 30.0));
        let table = LimitTable::initial(&after);
        quota.take_over(after, &table);
        let own = quota.of(&table, Time::ZERO);
        assert_eq!(permits(own.classes[1].in_flight), 7);
        assert_eq!(permits(own.classes[0].in_flight), 0, "nothing has been leased of it yet");
    }

    #[test]
    fn a_replica_that_winds_up_asks_for_what_it_still_serves_and_no_more() {
        let (mut quota, _) = quota();
        let renewal = quota.holder.renew(Time::ZERO, &[]);
        quota.holder.take(&renewal, &[7, 100, 1, 20], 3);
        let mut replica = vec![ClassReading::default(), ClassReading::default()];
        (replica[0].in_flight, replica[0].in_flight_peak, replica[0].waiting) = (3, 6, 1);
        replica[0].counts.offered = 10;
        quota.loads(&replica, Time::from_secs_f64(0.25));
        quota.holder.leave();
        assert_eq!(quota.loads(&replica, Time::from_secs_f64(0.5)), [(3, 4), (0, 100), (0, 0), (3, 4)]);
        replica[0].waiting = 0;
        let loads = quota.loads(&replica, Time::from_secs_f64(0.75));
        assert_eq!(loads, [(3, 3), (0, 0), (0, 0), (3, 3)], "no request waits for the rate any more");
        assert!(quota.holder.renew(Time::from_secs_f64(0.75), &loads).leaving);
    }

    #[test]
    fn waiting_and_refused_requests_are_demand() {
        let (mut quota, _) = quota();
        let mut replica = vec![ClassReading::default(), ClassReading::default()];
        quota.loads(&replica, Time::ZERO);
        replica[0].in_flight = 3;
        replica[0].in_flight_peak = 4;
        replica[0].waiting = 5;
        replica[0].counts.offered = 10;
        let loads = quota.loads(&replica, Time::from_secs_f64(1.0));
        assert_eq!(loads[0], (3, 10), "4.4 + 5, rounded up");
        assert!(loads[1].1 > 6_000_000, "most of ten a second: {}", loads[1].1);
        assert_eq!(loads[3], (3, 10), "the module's is its classes'");
        let later = quota.loads(&vec![ClassReading::default(); 2], Time::from_secs_f64(1.25));
        assert_eq!(later[0].1, 9, "forgotten slowly");
    }
}
