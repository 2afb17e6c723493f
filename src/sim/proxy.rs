//! The production proxy under virtual time: the very admission, table and classifier that `run`
//! uses, driven from the event heap.
//!
//! What the proxy does around the admission controller and what matters to a head is here too: equal reads
//! under way share one upstream call, and a client that leaves takes its place in the line
//! with it.

use super::head::{RAY_CLIENT, Route, RouteId, Spec};
use super::scenario::{Scenario, ScenarioError};
use rayguard_core::admission::controller::{AdmissionController, Ask, Decision, Grant, Permit, Shed, WaitId};
use rayguard_core::admission::meter::{Outcome, Reason};
use rayguard_core::admission::table::LimitTable;
use rayguard_core::policy::{ClassId, Kind, ModuleId, Policy};
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::classify::Classifier;
use rayguard_core::request::client_id::ClientId;
use rayguard_core::request::facts::{Facts, Headers};
use rayguard_core::time::Time;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// A request's number in the simulation.
pub(crate) type Rid = u64;

/// A waiter of the admission controller: the request that waits, and which life of the proxy it belongs to.
pub(crate) type Waiter = Rid;

/// The proxy.
#[derive(Debug)]
pub(crate) struct SimProxy {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The limits as they stand.
    pub table: Arc<LimitTable>,
    /// Counters, clocks and queues.
    pub admission: AdmissionController<Waiter>,
    /// Counts the admission controllers there have been: permits and waiters go back to their own.
    pub life: u32,
    /// Admission controllers replaced by a reload that numbers classes anew; waiters there are still served there.
    replaced: BTreeMap<u32, (Arc<Policy>, AdmissionController<Waiter>)>,
    /// Class and route of the admission controller for each route of the plant.
    places: Vec<(ClassId, u16)>,
    /// Waiters woken and not yet told, with the life of their admission.
    pub woken: Vec<(Waiter, u32, Grant)>,
    shared: BTreeMap<(u8, Option<u64>), Shared>,
}

/// One shared upstream call, or its answer while it is still handed on.
#[derive(Clone, Debug)]
struct Shared {
    leader: Option<Rid>,
    followers: Vec<Rid>,
    good_until: Time,
}

/// What becomes of a request that may be shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    /// It goes its own way (and others may join it).
    Alone,
    /// It waits for the leader's answer.
    Follows,
    /// A recent answer is handed on.
    Answered,
}

struct NoHeaders;

impl Headers for NoHeaders {
    fn get(&self, _: &str) -> Option<&[u8]> {
        None
    }
    fn nth_back(&self, _: &str, _: usize) -> Option<&[u8]> {
        None
    }
}

/// What the production classifier is shown for a route of the plant.
pub(super) fn facts(route: &Route) -> Facts<'static> {
    Facts {
        method: route.asks.0,
        path: route.asks.1,
        query: "",
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        headers: &NoHeaders,
        upgrade: route.name == "log-tail",
        grpc: route.endpoint.is_empty(),
    }
}

/// Class and admission route of every route of the plant, as the production classifier says.
fn places(policy: &Policy, spec: &Spec, ray: bool) -> Result<Vec<(ClassId, u16)>, ScenarioError> {
    if !ray {
        let numbered = (0..spec.routes.len()).map(|at| (ClassId(0), u16::try_from(at).unwrap_or(u16::MAX)));
        return Ok(numbered.collect());
    }
    let classifier = |surface| {
        Classifier::new(policy, surface, &[]).map_err(|faults| {
            ScenarioError::Impossible(format!("{} routes do not fit the policy", faults.len()))
        })
    };
    let (dashboard, client) = (classifier(Surface::Dashboard)?, classifier(Surface::RayClient)?);
    let found = spec.routes.iter().map(|route| {
        let of_client = spec.modules[route.module].name == RAY_CLIENT;
        if of_client { &client } else { &dashboard }.classify(&facts(route))
    });
    Ok(found.map(|found| (found.class, found.route.0)).collect())
}

impl SimProxy {
    /// The proxy of a scenario, as it starts.
    ///
    /// # Errors
    /// The scenario's configuration is wrong.
    pub(crate) fn new(
        scenario: &Scenario,
        policy: Arc<Policy>,
        spec: &Spec,
        now: Time,
    ) -> Result<SimProxy, ScenarioError> {
        let table = LimitTable::initial(&policy);
        let ray = scenario.is_ray_head();
        Ok(SimProxy {
            places: places(&policy, spec, ray)?,
            admission: AdmissionController::new(&policy, &table, now),
            table: Arc::new(table),
            policy,
            life: 0,
            replaced: BTreeMap::new(),
            woken: Vec::new(),
            shared: BTreeMap::new(),
        })
    }

    /// The proxy restarts: counters, clocks and queues are new, the limits are the last good ones, and clients
    /// have the past that they had.
    pub(crate) fn restart(&mut self, now: Time) {
        // What clients used in calm is kept, and what was learnt of routes, as in production.
        let history = Arc::clone(self.admission.history());
        let admission = AdmissionController::new(&self.policy, &self.table, now).with_history(history);
        self.admission.costs().learnt().for_each(|(route, cost)| admission.costs().recall(route, cost));
        self.admission = admission;
        self.life += 1;
        self.replaced.clear();
        self.woken.clear();
        self.shared.clear();
    }

    /// A new configuration, as a reload brings it in: counters go on under the same names.
    ///
    /// # Errors
    /// Its routes do not fit it.
    pub(crate) fn reload(
        &mut self,
        policy: Arc<Policy>,
        spec: &Spec,
        ray: bool,
        now: Time,
    ) -> Result<(), ScenarioError> {
        self.places = places(&policy, spec, ray)?;
        let names = |policy: &Policy| -> Vec<(Arc<str>, ModuleId)> {
            policy.classes.iter().map(|class| (Arc::clone(&class.name), class.module)).collect()
        };
        let is_renumbered = names(&self.policy) != names(&policy);
        if is_renumbered {
            self.table = Arc::new(self.table.under(&self.policy, &policy));
        }
        let next = self.admission.reconfigure(&policy, &self.table, now);
        let old = (Arc::clone(&self.policy), std::mem::replace(&mut self.admission, next));
        // Where classes have the same numbers all that is under way is the new one's as well.
        if is_renumbered {
            self.replaced.insert(self.life, old);
            self.life += 1;
        }
        self.policy = policy;
        Ok(())
    }

    fn admission_of(&self, life: u32) -> Option<&AdmissionController<Waiter>> {
        if life == self.life {
            return Some(&self.admission);
        }
        self.replaced.get(&life).map(|(_, admission)| admission)
    }

    /// The limits in force, as they are numbered there.
    fn table_of(&self, life: u32) -> Arc<LimitTable> {
        let table = |(policy, _): &(Arc<Policy>, _)| Arc::new(self.table.under(&self.policy, policy));
        self.replaced.get(&life).map_or_else(|| Arc::clone(&self.table), table)
    }

    /// The class of a route of the plant.
    #[must_use]
    pub(crate) fn class(&self, route: RouteId) -> ClassId {
        self.places[route.index()].0
    }

    /// Whether a request is shared with another under way, or answered from memory; one that
    /// does not follow may still lead.
    pub(crate) fn share(
        &mut self,
        route: RouteId,
        client: ClientId,
        rid: Rid,
        follows: bool,
        now: Time,
    ) -> Sharing {
        let class = &self.policy.classes[self.class(route).index()];
        // A route stands for many logs: whose tails are shared is not modelled.
        if class.coalesce.is_none() || class.kind == Kind::Held {
            return Sharing::Alone;
        }
        let shared = self.shared.entry((route.0, client.credential)).or_insert_with(|| Shared {
            leader: None,
            followers: Vec::new(),
            good_until: Time::ZERO,
        });
        if !follows && (now < shared.good_until || shared.leader.is_some()) {
            return Sharing::Alone;
        }
        if now < shared.good_until {
            return Sharing::Answered;
        }
        if shared.leader.is_some() {
            shared.followers.push(rid);
            return Sharing::Follows;
        }
        shared.leader = Some(rid);
        Sharing::Alone
    }

    /// Whether somebody else waits for this leader's answer.
    #[must_use]
    pub(crate) fn is_followed(&self, route: RouteId, client: ClientId, rid: Rid) -> bool {
        self.shared
            .get(&(route.0, client.credential))
            .is_some_and(|shared| shared.leader == Some(rid) && !shared.followers.is_empty())
    }

    /// A leader has its answer (`ok`) or none: those who followed it.
    pub(crate) fn unshare(
        &mut self,
        route: RouteId,
        client: ClientId,
        rid: Rid,
        ok: bool,
        now: Time,
    ) -> Vec<Rid> {
        let Some(shared) = self.shared.get_mut(&(route.0, client.credential)) else { return Vec::new() };
        if shared.leader != Some(rid) {
            return Vec::new();
        }
        shared.leader = None;
        let class = self.policy.classes[self.places[route.index()].0.index()].coalesce;
        if let (true, Some(coalesce)) = (ok, class) {
            shared.good_until = now + coalesce.ttl;
        }
        std::mem::take(&mut shared.followers)
    }

    /// Asks the admission controller.
    pub(crate) fn decide(&mut self, route: RouteId, client: ClientId, rid: Rid, now: Time) -> Decision {
        let (class, route) = self.places[route.index()];
        let (woken, life) = (&mut self.woken, self.life);
        let ask = Ask { class, route, client };
        let wake = &mut |waiter, grant| woken.push((waiter, life, grant));
        self.admission.decide(&self.table, ask, now, || rid, wake)
    }

    /// Gives a permit back to the admission controller it is of; one of an earlier process is forgotten.
    pub(crate) fn finish(&mut self, permit: Permit, life: u32, outcome: Outcome, now: Time) {
        let mut woken = Vec::new();
        if let Some(admission) = self.admission_of(life) {
            admission.finish(&self.table_of(life), permit, outcome, now, &mut |waiter, grant| {
                woken.push((waiter, life, grant));
            });
        }
        self.woken.append(&mut woken);
    }

    /// Serves every waiter that can be served now.
    pub(crate) fn pump(&mut self, now: Time) {
        let (woken, life) = (&mut self.woken, self.life);
        self.admission.pump(&self.table, now, &mut |waiter, grant| woken.push((waiter, life, grant)));
        for (life, (policy, admission)) in &self.replaced {
            let table = self.table.under(&self.policy, policy);
            admission.pump(&table, now, &mut |waiter, grant| woken.push((waiter, *life, grant)));
        }
    }

    /// How many wait, wherever.
    #[must_use]
    pub(crate) fn waiting(&self) -> u32 {
        self.admission.waiting()
            + self.replaced.values().map(|(_, admission)| admission.waiting()).sum::<u32>()
    }

    /// A waiter's client left.
    pub(crate) fn cancel(&mut self, id: WaitId, life: u32, now: Time) -> bool {
        self.admission_of(life).is_some_and(|admission| admission.cancel(id, now).is_some())
    }

    /// A waiter's time is up.
    pub(crate) fn expire(&self, id: WaitId, life: u32) -> Option<Shed> {
        self.admission_of(life)?.expire(id, Reason::QueueTimeout).map(|(_, shed)| shed)
    }
}
