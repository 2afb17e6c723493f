//! Identities without end: every request of a flood comes with a new token and a new address. What
//! the proxy keeps of them is bounded, a client that owes something still owes it, and clients
//! elsewhere are served as if there were no flood.
//!
//! Virtual time, the production classifier, identifier, admission and usage. Tens of thousands of
//! identities here; as many as one likes by hand:
//!
//! ```sh
//! RAYGUARD_IDENTITIES=10000000 cargo test --release --test identities -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

use rayguard::core::admission::controller::{AdmissionController, Ask, Decision, Grant, Permit, WaitId};
use rayguard::core::admission::meter::{Outcome, Reason};
use rayguard::core::admission::table::LimitTable;
use rayguard::core::policy::PerClientLimits;
use rayguard::core::request::catalogue::{self, Surface};
use rayguard::core::request::classify::Classifier;
use rayguard::core::request::facts::{Facts, Headers};
use rayguard::core::request::identify::Identifier;
use rayguard::core::time::Time;
use rayguard::core::usage::{RequestSummary, Usage, Verdict};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What Ray needs for one listing of jobs; the module does one at a time.
const SERVICE: Duration = Duration::from_millis(10);
/// Twenty times what the module can do.
const FLOOD_EVERY: Duration = Duration::from_micros(500);

struct Asked<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Asked<'_> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    }

    fn nth_back(&self, name: &str, n: usize) -> Option<&[u8]> {
        self.0.iter().rev().filter(|(known, _)| *known == name).nth(n).map(|(_, value)| value.as_bytes())
    }
}

/// A proxy without its wire, and a head that answers in its own time.
struct World {
    classifier: Classifier,
    identifier: Identifier,
    table: LimitTable,
    admission: AdmissionController<Who>,
    usage: Usage,
    pattern: Arc<str>,
    waiting: VecDeque<(Time, WaitId)>,
    served: VecDeque<(Time, Permit)>,
    free: Time,
    honest_served: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Forged,
    Honest,
}

impl World {
    fn new() -> World {
        let mut policy = catalogue::policy();
        for class in &mut policy.classes {
            class.per_client = PerClientLimits { rate: Some((1.0, 5)), in_flight: Some(8) };
        }
        let table = LimitTable::initial(&policy);
        World {
            classifier: Classifier::new(&policy, Surface::Dashboard, &[]).unwrap(),
            identifier: Identifier::new([1, 2], vec!["192.0.2.0/24".parse().unwrap()], Vec::new()),
            admission: AdmissionController::new(&policy, &table, Time::ZERO),
            usage: Usage::new(policy.classes.len(), Time::ZERO),
            table,
            pattern: "/api/jobs/".into(),
            waiting: VecDeque::new(),
            served: VecDeque::new(),
            free: Time::ZERO,
            honest_served: 0,
        }
    }

    fn ask(&self, address: IpAddr, token: &str, forwarded: &str) -> Ask {
        let lines = [("host", "head:8265"), ("authorization", token), ("x-forwarded-for", forwarded)];
        let headers = Asked(&lines);
        let facts = Facts {
            method: "GET",
            path: "/api/jobs/",
            query: "",
            address,
            headers: &headers,
            upgrade: false,
            grpc: false,
        };
        let matched = self.classifier.classify(&facts);
        Ask { class: matched.class, route: matched.route.0, client: self.identifier.identify(&facts) }
    }

    /// Whether it was refused by a ceiling of its own.
    fn arrive(&mut self, who: Who, ask: Ask, address: IpAddr, now: Time) -> bool {
        let mut granted = Vec::new();
        let decision = self
            .admission
            .decide(&self.table, ask, now, || who, &mut |who, grant| granted.push((who, grant)));
        let verdict = if matches!(decision, Decision::Shed(_)) { Verdict::Shed } else { Verdict::Admitted };
        let summary = RequestSummary { ask, address, pattern: &self.pattern, unlisted: None, in_flight: 0 };
        self.usage.note(&summary, verdict, now);
        match decision {
            Decision::Admit(permit) => granted.push((who, Grant::Go(permit))),
            Decision::Wait(id, deadline) => self.waiting.push_back((deadline, id)),
            Decision::Shed(_) => {}
        }
        self.begin(granted, now);
        verdict == Verdict::Shed
    }

    fn begin(&mut self, granted: Vec<(Who, Grant)>, now: Time) {
        for (who, grant) in granted {
            if let Grant::Go(permit) = grant {
                self.honest_served += u32::from(who == Who::Honest);
                self.free = self.free.max(now) + SERVICE;
                self.served.push_back((self.free, permit));
            }
        }
    }

    fn pass(&mut self, now: Time) {
        while self.served.front().is_some_and(|(at, _)| *at <= now) {
            let (at, permit) = self.served.pop_front().unwrap();
            let mut granted = Vec::new();
            self.admission.finish(&self.table, permit, Outcome::Served, at, &mut |who, grant| {
                granted.push((who, grant));
            });
            self.begin(granted, at);
        }
        while self.waiting.front().is_some_and(|(at, _)| *at <= now) {
            let (_, id) = self.waiting.pop_front().unwrap();
            self.admission.expire(id, Reason::QueueTimeout);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how many is said by hand")]
fn identities() -> u64 {
    std::env::var("RAYGUARD_IDENTITIES").map_or(30_000, |count| count.parse().expect("a whole number"))
}

#[test]
fn identities_without_end_cost_bounded_memory_and_no_client_elsewhere_a_request() {
    let mut world = World::new();
    let attacker = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    let honest: Vec<IpAddr> = (1..=4).map(|n| IpAddr::V4(Ipv4Addr::new(198, 51, 100, n))).collect();
    let debtor = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 99));
    let (mut honest_asked, mut forgiven, mut debts) = (0, 0, 0);
    let (mut settled, mut peak) = (None, 0_usize);
    let count = identities();
    for n in 0..count {
        let now = Time::ZERO + FLOOD_EVERY * u32::try_from(n).unwrap();
        world.pass(now);
        let scramble = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let forwarded = Ipv4Addr::from((scramble >> 32) as u32).to_string();
        let token = format!("Bearer {scramble:016x}");
        let ask = world.ask(attacker, &token, &forwarded);
        world.arrive(Who::Forged, ask, attacker, now);
        // Four people, one after another, together four times in five seconds.
        if n % 2500 == 1250 {
            let address = honest[usize::try_from(n / 2500 % 4).unwrap()];
            let ask = world.ask(address, "Bearer of the house", "");
            world.arrive(Who::Honest, ask, address, now);
            honest_asked += 1;
        }
        // One who has spent its five at once, and asks again within the second, again and again.
        if n % 10_000 < 6 {
            let ask = world.ask(debtor, "Bearer of debts", "");
            let refused = world.arrive(Who::Forged, ask, debtor, now);
            if n % 10_000 == 5 {
                debts += 1;
                forgiven += u32::from(!refused);
            }
        }
        if n % 1000 == 999 {
            let region = settled.get_or_insert_with(|| (n, Region::new(ALLOCATOR)));
            let change = region.1.change();
            peak = peak.max(change.bytes_allocated.saturating_sub(change.bytes_deallocated));
        }
    }
    println!(
        "{count} identities: {peak} bytes more than after the first thousand; honest {} of {honest_asked}; {forgiven} of {debts} debts forgotten",
        world.honest_served
    );
    assert!(peak < 4 << 20, "{peak} bytes for {count} identities");
    assert!(honest_asked > 10 && debts >= 3);
    // One may wait in the queue when the flood ends.
    assert!(
        f64::from(world.honest_served + 1) >= 0.995 * f64::from(honest_asked),
        "{} of {honest_asked}",
        world.honest_served
    );
    assert_eq!(forgiven, 0, "of {debts} debts");
}
