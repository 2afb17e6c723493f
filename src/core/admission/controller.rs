//! The admission controller: every counter, clock and queue of the proxy, and the one decision about a request.
//!
//! The order: blocked, exempt, the client's own ceiling, then the class's concurrency, its pause, its work under way,
//! what modules of one process share, the module's ceiling, the jobs not started and the class's rate; a
//! request that finds no room waits its turn in the class's fair queue, and one that would wait in vain is shed.
//!
//! The admission controller holds no limits. Each call is handed the limit table of that moment; what is
//! counted here outlives every table, so a changed limit resets nothing.
//!
//! While no request waits a decision takes no lock: a handful of atomic operations. Once a request
//! waits in a module, all requests to it pass through the module's queue under its mutex, because
//! then their order matters. A permit is never lost between the two: a request that leaves counts
//! itself out first and then looks for waiters; one that waits makes itself known first and then
//! looks for room.
//!
//! `W` is whatever the driver needs to reach a waiter: a channel in production, an event in
//! simulation. The admission controller hands it back through `wake` together with the verdict.

mod dispatch;
mod module_queue;
pub mod multi_cost;
mod preflight;

pub use super::ask::Ask;
use crate::admission::client_limits::{ClientLimits, ClientPermit};
use crate::admission::controller::module_queue::ModuleQueue;
use crate::admission::cost::{Costs, Departures};
use crate::admission::demand::ClassDemand;
use crate::admission::flow::Flow;
use crate::admission::history::{Claim, History};
use crate::admission::in_flight::InFlight;
use crate::admission::meter::{ClassReading, Counts, Meter, Outcome, Reason};
use crate::admission::pause::{self, Pause, URGENT_FOR};
use crate::admission::rate::Rate;
use crate::admission::shared_credential::SharedCredential;
use crate::admission::table::{LimitTable, Mode, permits};
use crate::admission::tiers::TierPlace;
use crate::policy::{ClassId, Kind, ModuleId, NEEDED, PerClientLimits, Policy, Priority, Treatment};
use crate::request::client_id::ClientId;
use crate::time::{Time, duration_from_secs};
use parking_lot::{Mutex, MutexGuard};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// A request under way. It must be given back to [`AdmissionController::finish`], once.
#[derive(Debug)]
#[must_use = "a permit that is not finished is held for ever"]
pub struct Permit {
    /// What was asked.
    pub ask: Ask,
    /// When it was admitted.
    pub admitted: Time,
    /// How long it waited before.
    pub waited: Duration,
    /// The refusal that shadow mode did not carry out.
    pub would_shed: Option<Reason>,
    /// How long its client's line has been awaited since: time that Ray did not spend.
    pub kept: Duration,
    stage: Stage,
    /// Since when Ray can work on it: the request is whole.
    asked: Time,
    counted: bool,
    /// Its module had nothing else under way when it was admitted.
    alone: bool,
    work_us: u64,
    /// What others of its module had been billed for the work of third ones when it was admitted.
    stalled_us: u64,
    /// The same, where it counts in what several modules of one process have under way.
    shared_us: u64,
    /// What its client was charged when its turn came; none was where it did not have to wait.
    charged: Option<f64>,
    /// Its claim to go before strangers, if it had to wait and is known.
    claim: Option<Claim>,
    of_client: Option<ClientPermit>,
}

/// What a request is beside the others of its class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rank {
    /// It has a claim: it does not wait for pauses that strangers made.
    Known,
    /// It leaves room in the class for so many known ones.
    Stranger { kept: u32 },
    /// There is no other request to compare it with.
    Even,
}

/// Whose turn it is in an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The client's: its request is not whole yet.
    Uploading,
    /// Ray's: it has been asked.
    Asked,
    /// Ray has begun to answer.
    Answered,
}

/// A refusal, and what to tell the client.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shed {
    /// Of which class.
    pub class: ClassId,
    /// Why.
    pub reason: Reason,
    /// When to try again, in whole seconds; spread so that not all come back at once.
    pub retry_after_s: u32,
}

/// Where a waiter waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitId {
    class: ClassId,
    place: TierPlace,
}

/// What keeps requests waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[repr(u8)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// The class's limit on requests in flight.
    InFlight,
    /// The class's limit on work in flight.
    Work,
    /// The class's rate.
    Rate,
    /// The jobs that Ray has not started yet.
    Backlog,
    /// The module's limit on requests in flight.
    Module,
    /// The limit on work in flight of all modules that share a process.
    Process,
}

impl HeldBy {
    /// All of them, in order.
    pub const ALL: [HeldBy; 6] =
        [HeldBy::InFlight, HeldBy::Work, HeldBy::Rate, HeldBy::Backlog, HeldBy::Module, HeldBy::Process];

    /// As shown.
    pub fn label(self) -> &'static str {
        match self {
            HeldBy::InFlight => "in_flight",
            HeldBy::Work => "work",
            HeldBy::Rate => "rate",
            HeldBy::Backlog => "backlog",
            HeldBy::Module => "module",
            HeldBy::Process => "process",
        }
    }

    /// The reason that it gives to a request it refuses.
    fn reason(self) -> Reason {
        match self {
            HeldBy::InFlight | HeldBy::Work => Reason::ClassInFlight,
            HeldBy::Module | HeldBy::Process => Reason::ModuleInFlight,
            HeldBy::Rate => Reason::ClassRate,
            HeldBy::Backlog => Reason::ClassBacklog,
        }
    }
}

/// The verdict on a request.
#[derive(Debug)]
pub enum Decision {
    /// Send it on.
    Admit(Permit),
    /// It waits; its waiter is woken with a [`Grant`], at `deadline` at the latest if the
    /// driver calls [`AdmissionController::expire`] then.
    Wait(WaitId, Time),
    /// Refuse it.
    Shed(Shed),
}

/// What a waiter is woken with.
#[derive(Debug)]
pub enum Grant {
    /// Its turn has come.
    Go(Permit),
    /// It had to give way, or its time is up.
    Shed(Shed),
}

/// Every counter, clock and queue of the proxy.
#[derive(Debug)]
pub struct AdmissionController<W> {
    classes: Box<[ClassAdmission]>,
    modules: Box<[ModuleAdmission<W>]>,
    costs: Arc<Costs>,
    shared_credential: Arc<SharedCredential>,
    /// What clients used in calm, and whether it counts.
    history: Arc<History>,
    uses_history: bool,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is the answer to a question of its own")]
struct ClassAdmission {
    name: Arc<str>,
    module: ModuleId,
    priority: Priority,
    kind: Kind,
    queue_len_max: u32,
    queue_wait_max: Duration,
    work_us_max: u64,
    /// Its work counts in what several modules of one process have under way.
    shares: bool,
    /// Its dear requests leave gaps for what operators need.
    leaves_gaps: bool,
    /// Its requests are done side by side, not one after another in one loop.
    side_by_side: bool,
    /// By what its seconds are divided to be those of all that it has: the permits that it began with, where a request
    /// takes a permit for a time.
    room: f64,
    /// What its requests leave behind is bounded: what is scarce is their number.
    is_gated: bool,
    rate: Option<(u32, Arc<Rate>)>,
    /// The rate that its burst is meant for.
    rate_initial: f64,
    client_limits: Option<(PerClientLimits, Arc<ClientLimits>)>,
    /// What is counted outlives this admission controller: see [`AdmissionController::reconfigure`].
    tally: Arc<ClassState>,
}

/// What a class has under way and has done.
#[derive(Debug, Default)]
struct ClassState {
    in_flight: InFlight,
    work_us: AtomicU64,
    /// Admissions counted against the table's `admitted_max`.
    allowance_used: AtomicU64,
    /// When something last was answered or finished, or was asked after a pause.
    progress: AtomicU64,
    /// How many of those in flight do not wait for the head of Ray's answer.
    away: AtomicU32,
    /// After the last request, where the limit is a share of time.
    pause: Pause,
    /// The limit that last had no room for it, by its place in [`HeldBy::ALL`].
    full: AtomicU8,
    flow: Arc<Flow>,
    meter: Meter,
    waiting: AtomicU32,
    /// Over how many seconds refusals are spread (0 counts as 1), and how many there have been.
    spread_s: AtomicU32,
    sheds: AtomicU32,
    /// Whether `demand` counts which clients ask.
    watched: AtomicBool,
    demand: Mutex<ClassDemand>,
}

/// What a module has under way, and its last departure.
#[derive(Debug, Default)]
struct ModuleTally {
    in_flight: InFlight,
    departures: Departures,
    /// Work under way of all classes that share a process, and when the last of it was let in.
    shared_us: AtomicU64,
    shared_at: AtomicU64,
    /// What has been billed for beyond what it takes by itself: the work of those in whose middle it came.
    stalled_us: AtomicU64,
    /// When somebody last asked for what operators need.
    urgent_at: AtomicU64,
}

#[derive(Debug)]
struct ModuleAdmission<W> {
    name: Arc<str>,
    /// It works in parallel: a request takes a permit for a time, not a part of one process's.
    parallel: bool,
    /// How much work the classes that share a process may have under way together.
    shared_us_max: u64,
    tally: Arc<ModuleTally>,
    line: Arc<ModuleWaiters<W>>,
    /// The next admission controller has the line, and serves it under limits that this one does not know.
    has_left: AtomicBool,
}

/// The requests that wait before a module.
#[derive(Debug)]
struct ModuleWaiters<W> {
    waiting: AtomicU32,
    queue: Mutex<ModuleQueue<W>>,
}

/// What is charged for a route nothing is known of yet, in seconds.
const COST_MIN_S: f64 = 1e-4;

/// Below so many requests per second a rate is charged as this one: a debt must not outlive the limit
/// that it was made under by more than an hour.
const RATE_MIN: f64 = 1.0 / 3600.0;

/// After so long what a shared process has under way is thought to wait for others: one more request may come.
const SHARED_PATIENCE: Duration = Duration::from_millis(500);

/// There is no room.
#[derive(Clone, Copy, Debug)]
struct Full {
    limit: HeldBy,
    /// Until there is, as far as a rate tells.
    wait: Duration,
}

impl Full {
    fn by(limit: HeldBy) -> Full {
        Full { limit, wait: Duration::ZERO }
    }
}

impl Permit {
    /// Whether it holds a place; what is exempt holds none.
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    fn uncounted(ask: Ask, now: Time) -> Permit {
        Permit {
            ask,
            admitted: now,
            waited: Duration::ZERO,
            would_shed: None,
            kept: Duration::ZERO,
            stage: Stage::Asked,
            asked: now,
            counted: false,
            alone: false,
            work_us: 0,
            stalled_us: 0,
            shared_us: 0,
            charged: None,
            claim: None,
            of_client: None,
        }
    }
}

impl<W> AdmissionController<W> {
    /// An empty admission controller for this policy, at the rates of `table`.
    pub fn new(policy: &Policy, table: &LimitTable, now: Time) -> AdmissionController<W> {
        AdmissionController::build(policy, table, now, None)
    }

    /// The admission controller of a new policy, for requests from now on. Classes and modules of the same name
    /// go on with the counters of this one, so that nothing under way is forgotten and no change
    /// hands out a permit or a burst twice. A module's line goes on too, with everyone's place in it and what each
    /// client has had, where it is of the same classes under the same numbers; else the requests that wait
    /// here are still served here.
    #[must_use]
    pub fn reconfigure(&self, policy: &Policy, table: &LimitTable, now: Time) -> AdmissionController<W> {
        AdmissionController::build(policy, table, now, Some(self))
    }

    fn build(
        policy: &Policy,
        table: &LimitTable,
        now: Time,
        before: Option<&AdmissionController<W>>,
    ) -> AdmissionController<W> {
        let classes = policy.classes.iter().zip(&table.classes).map(|(class, limits)| {
            let old =
                before.and_then(|admission| admission.classes.iter().find(|old| old.name == class.name));
            let rate = class.rate.map(|rate| {
                let per_second = limits.rate.unwrap_or(rate.per_second.initial);
                let kept = old.and_then(|old| old.rate.as_ref()).filter(|(burst, _)| *burst == rate.burst);
                let limiter = match (kept, old) {
                    (Some((_, limiter)), _) => Arc::clone(limiter),
                    (None, Some(_)) => Arc::new(Rate::empty(per_second, rate.burst, now)),
                    (None, None) => Arc::new(Rate::new(per_second, rate.burst, now)),
                };
                (rate.burst, limiter)
            });
            let client_limits = match old.and_then(|old| old.client_limits.as_ref()) {
                Some((limits, client_limits)) if *limits == class.per_client => {
                    Some(Arc::clone(client_limits))
                }
                Some((_, client_limits)) => Some(Arc::new(client_limits.reconfigure(class.per_client, now))),
                None => ClientLimits::new(class.per_client, now).map(Arc::new),
            };
            let client_limits = client_limits.map(|client_limits| (class.per_client, client_limits));
            let tally = old.map_or_else(
                || Arc::new(ClassState { progress: AtomicU64::new(now.0), ..ClassState::default() }),
                |old| Arc::clone(&old.tally),
            );
            tally.flow.set_limit(limits.bytes_per_second, now);
            let module = &policy.modules[class.module.index()];
            // It can wait, and keeps its process for itself while it does not.
            let yields = !class.awaits && class.priority.0 <= ORDINARY;
            ClassAdmission {
                name: Arc::clone(&class.name),
                module: class.module,
                priority: class.priority,
                kind: class.kind,
                queue_len_max: class.queue.len_max,
                queue_wait_max: class.queue.wait_max,
                work_us_max: module
                    .work
                    .map_or(u64::MAX, |work| micros(work.as_secs_f64() * work_factor(class.priority))),
                // A connection that is held cannot wait: it would be refused for a moment's work of others.
                shares: module.shared && yields && class.kind == Kind::Unary,
                leaves_gaps: module.is_one_process() && yields,
                side_by_side: class.awaits || !module.is_one_process(),
                room: if module.is_one_process() { 1.0 } else { class.in_flight.initial.max(1.0) },
                is_gated: class.backlog.is_some(),
                rate,
                rate_initial: class.rate.map_or(0.0, |rate| rate.per_second.initial),
                client_limits,
                tally,
            }
        });
        let modules = policy.modules.iter().enumerate().map(|(at, module)| {
            let old =
                before.and_then(|admission| admission.modules.iter().find(|old| old.name == module.name));
            let line = old.and_then(|old| old.hand_on(policy, at)).unwrap_or_else(|| {
                let queue = Mutex::new(ModuleQueue::of(policy, at));
                Arc::new(ModuleWaiters { waiting: AtomicU32::new(0), queue })
            });
            ModuleAdmission {
                name: Arc::clone(&module.name),
                parallel: !module.is_one_process(),
                shared_us_max: module.work.map_or(u64::MAX, |work| micros(work.as_secs_f64())),
                tally: old.map_or_else(Arc::default, |old| Arc::clone(&old.tally)),
                line,
                has_left: AtomicBool::new(false),
            }
        });
        // Routes are numbered alike in every configuration but for the operator's own.
        let costs = before.map_or_else(Arc::default, |admission| Arc::clone(&admission.costs));
        let shared_credential =
            before.map_or_else(Arc::default, |admission| Arc::clone(&admission.shared_credential));
        let history = before.map_or_else(Arc::default, |admission| Arc::clone(&admission.history));
        let (classes, modules) = (classes.collect(), modules.collect());
        AdmissionController {
            classes,
            modules,
            costs,
            shared_credential,
            history,
            uses_history: policy.history,
        }
    }

    /// The same with what an earlier admission knows of clients.
    #[must_use]
    pub fn with_history(self, history: Arc<History>) -> AdmissionController<W> {
        AdmissionController { history, ..self }
    }

    /// What clients used in calm.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Whether that counts.
    pub fn uses_history(&self) -> bool {
        self.uses_history
    }

    /// A client as it counts here, without a credential that is everybody's.
    pub fn judge(&self, client: ClientId) -> ClientId {
        self.shared_credential.judge(client)
    }

    /// Decides about one request. `waiter` is called only if it must wait; `wake` is called for
    /// every other waiter whose fate this decision settles.
    pub fn decide(
        &self,
        table: &LimitTable,
        ask: Ask,
        now: Time,
        waiter: impl FnOnce() -> W,
        wake: &mut impl FnMut(W, Grant),
    ) -> Decision {
        let class = self.class(ask.class);
        let limits = table.class(ask.class);
        class.tally.meter.offer();
        match limits.treatment {
            Treatment::Blocked => {
                return self.shed_or_shadow(table, ask, Reason::Blocked, Duration::ZERO, now);
            }
            Treatment::Exempt => {
                class.tally.meter.admit(0);
                return Decision::Admit(Permit::uncounted(ask, now));
            }
            Treatment::Limited => {}
        }
        if class.priority >= NEEDED {
            self.module(class.module).tally.urgent_at.store(now.0, Ordering::Relaxed);
        }
        let shown = ask.client;
        let ask = Ask { client: self.shared_credential.judge(shown), ..ask };
        if class.tally.watched.load(Ordering::Relaxed) {
            class.tally.demand.lock().note(ask.client, self.price(table, ask.class, self.takes(ask)));
        }
        let of_client = match class
            .client_limits
            .as_ref()
            .map(|(_, client_limits)| client_limits.enter(ask.client, now))
            .transpose()
        {
            Ok(of_client) => of_client,
            Err((reason, wait)) => return self.shed_or_shadow(table, ask, reason, wait, now),
        };
        let queues = class.queue_len_max > 0 && class.kind == Kind::Unary && limits.mode == Mode::Enforce;
        if queues && self.module(class.module).line.waiting.load(Ordering::SeqCst) > 0 {
            // Others wait: their turn comes first.
            let decision = self.wait_in_line(table, ask, of_client, now, waiter, wake);
            if let Decision::Admit(_) = &decision {
                self.shared_credential.see(shown, now);
            }
            return decision;
        }
        let full = match self.try_enter(table, ask, now, Rank::Even) {
            Ok(permit) => {
                self.shared_credential.see(shown, now);
                return Decision::Admit(Permit { of_client, ..permit });
            }
            Err(full) => full,
        };
        if limits.mode == Mode::Shadow {
            return Decision::Admit(self.admit_in_shadow(ask, of_client, full.limit.reason(), now));
        }
        if !queues {
            self.leave_client_limits(ask.class, of_client);
            return Decision::Shed(self.refuse(ask.class, full.limit.reason(), full.wait));
        }
        self.wait_in_line(table, ask, of_client, now, waiter, wake)
    }

    /// Lets a request pass that Ray has answered before it was whole: nothing can be decided about
    /// it any more.
    pub fn let_by(&self, ask: Ask, now: Time) -> Permit {
        let meter = &self.class(ask.class).tally.meter;
        meter.offer();
        meter.admit(0);
        Permit::uncounted(ask, now)
    }

    /// The turn in an exchange has changed. Latency runs from the request being whole to the head
    /// of its answer; an exchange that is not at that stage cannot be late.
    pub fn turn(&self, permit: &mut Permit, stage: Stage, now: Time) {
        if permit.stage == stage {
            return;
        }
        let tally = &self.class(permit.ask.class).tally;
        if permit.counted {
            match (permit.stage, stage) {
                (Stage::Asked, _) => _ = tally.away.fetch_add(1, Ordering::Relaxed),
                (_, Stage::Asked) => _ = tally.away.fetch_sub(1, Ordering::Relaxed),
                _ => {}
            }
            tally.progress.store(now.0, Ordering::Relaxed);
        }
        permit.stage = stage;
        match stage {
            Stage::Answered => tally.meter.answer(now.since(permit.asked)),
            Stage::Uploading | Stage::Asked => permit.asked = now,
        }
    }

    /// An admitted exchange has ended: its permit is free for the next in line.
    #[expect(clippy::needless_pass_by_value, reason = "a permit is given back, not shown")]
    pub fn finish(
        &self,
        table: &LimitTable,
        permit: Permit,
        outcome: Outcome,
        now: Time,
        wake: &mut impl FnMut(W, Grant),
    ) {
        let class = self.class(permit.ask.class);
        let module = self.module(class.module);
        // What Ray spent: while the client's line was awaited it spent nothing.
        let spent = now.since(permit.admitted).saturating_sub(permit.kept);
        // What failed or was never sent says nothing of what an answer costs.
        let answered = matches!(outcome, Outcome::Served | Outcome::Abandoned);
        let work = if permit.counted && class.kind == Kind::Unary && answered {
            let seconds = spent.as_secs_f64();
            let work = module.tally.departures.depart(permit.admitted, now).min(seconds);
            self.costs.learn(permit.ask.route, work, seconds, permit.alone);
            work
        } else {
            0.0
        };
        // What it waited for others in the middle was their work, or an agent's.
        let own = work.min(self.costs.get(permit.ask.route));
        let tells = class.tally.meter.end(outcome, duration_from_secs(own));
        if tells && permit.stage == Stage::Asked {
            class.tally.meter.answer(now.since(permit.asked));
        }
        let is_left = matches!(outcome, Outcome::Cancelled | Outcome::Abandoned);
        // After a longer wait in the queue than at the head it is not the head that was waited for.
        if is_left && spent >= permit.waited {
            class.tally.meter.leave_head(spent);
        }
        self.leave_client_limits(permit.ask.class, permit.of_client);
        if !permit.counted {
            return;
        }
        if self.uses_history && answered && class.kind == Kind::Unary {
            self.remember(&permit, work, spent, now);
        }
        if class.leaves_gaps || table.class(permit.ask.class).in_flight < 1.0 {
            // What hung held no process; what failed took what such requests take.
            let failed = || duration_from_secs(self.costs.get(permit.ask.route)).min(spent);
            // Those that it let through between its turns on the loop were billed for the turn before theirs.
            let stalled_us = module.tally.stalled_us.load(Ordering::Relaxed);
            let others = stalled_us.saturating_sub(permit.stalled_us) as f64 / 1e6;
            let took = (work + others).min(work.max(self.costs.hold(permit.ask.route)));
            let of_stranger = permit.charged.is_some() && permit.claim.is_none();
            let took = if answered { duration_from_secs(took) } else { failed() };
            class.tally.pause.begin(took, of_stranger, now);
        }
        if work > own {
            module.tally.stalled_us.fetch_add(micros(work - own), Ordering::Relaxed);
        }
        class.give_back(permit.work_us);
        module.tally.shared_us.fetch_sub(permit.shared_us, Ordering::AcqRel);
        if permit.stage != Stage::Asked {
            class.tally.away.fetch_sub(1, Ordering::Relaxed);
        }
        class.tally.progress.store(now.0, Ordering::Relaxed);
        if class.kind == Kind::Unary {
            module.tally.in_flight.leave();
        }
        if module.line.waiting.load(Ordering::SeqCst) > 0 {
            let mut woken = Vec::new();
            {
                let mut queue = self.lock(class.module);
                // An exchange that ended unseen costs its estimate.
                let estimate = permit.charged.filter(|_| outcome != Outcome::Unseen);
                if let Some(own) = queue.class_mut(permit.ask.class) {
                    if let Some(estimate) = estimate {
                        let took = if module.parallel && class.kind == Kind::Unary {
                            // What it held while no request waited was taken from no other client.
                            spent.min(own.fair.contended(now)).as_secs_f64()
                        } else {
                            work
                        };
                        let price = self.price(table, permit.ask.class, took);
                        own.fair.charge(permit.ask.client, price - estimate, permit.claim);
                    }
                    if is_left {
                        own.fair.left_under_way(permit.claim, permit.waited + spent, now);
                    }
                }
                self.dispatch(table, &mut queue, now, &mut woken);
            }
            for (waiter, grant) in woken {
                wake(waiter, grant);
            }
        }
    }

    /// Serves the waiting requests that have room now: to be called when limits were raised, and regularly
    /// (some tens of milliseconds) while a rate-limited class has waiters.
    pub fn pump(&self, table: &LimitTable, now: Time, wake: &mut impl FnMut(W, Grant)) {
        for (class, limits) in self.classes.iter().zip(&table.classes) {
            if let (Some((_, rate)), Some(per_second)) = (&class.rate, limits.rate) {
                rate.follow(per_second, class.rate_initial, now);
            }
            class.tally.flow.set_limit(limits.bytes_per_second, now);
        }
        let mut woken = Vec::new();
        for module in self.modules.iter().filter(|module| module.waiting() > 0) {
            let mut queue = module.lock();
            self.dispatch(table, &mut queue, now, &mut woken);
        }
        for (waiter, grant) in woken {
            wake(waiter, grant);
        }
    }

    /// How many waiters there are that this admission controller serves, in all modules.
    pub fn waiting(&self) -> u32 {
        self.modules.iter().map(ModuleAdmission::waiting).sum()
    }

    /// Refuses a request for a reason of the driver's (upstream down, no API key).
    pub fn refuse(&self, id: ClassId, reason: Reason, wait: Duration) -> Shed {
        let class = self.class(id);
        class.tally.meter.shed(reason);
        Shed { class: id, reason, retry_after_s: class.retry_after(wait) }
    }

    /// The client of an admitted request was told that Ray took too long.
    pub fn late(&self, id: ClassId) {
        self.class(id).tally.meter.late();
    }

    /// The bandwidth of a class, where the table limits it.
    pub fn flow(&self, table: &LimitTable, id: ClassId) -> Option<Arc<Flow>> {
        table.class(id).bytes_per_second.map(|_| Arc::clone(&self.class(id).tally.flow))
    }

    /// Sets over how many seconds the class's refusals are spread (see `controller`).
    pub fn spread(&self, id: ClassId, seconds: u32) {
        self.class(id).tally.spread_s.store(seconds.max(1), Ordering::Relaxed);
    }

    /// The totals of a class.
    pub fn counts(&self, id: ClassId) -> Counts {
        self.class(id).tally.meter.read()
    }

    /// The totals of a class and the state of its counters; takes the peak.
    pub fn reading(&self, id: ClassId, now: Time) -> ClassReading {
        let class = self.class(id);
        let in_flight = class.tally.in_flight.count();
        ClassReading {
            counts: class.tally.meter.read(),
            in_flight,
            in_flight_peak: class.tally.meter.take_peak(self.at_work(class)),
            waiting: class.tally.waiting.load(Ordering::Relaxed),
            stalled_s: if in_flight <= class.tally.away.load(Ordering::Relaxed) {
                0.0
            } else {
                now.since(Time(class.tally.progress.load(Ordering::Relaxed))).as_secs_f64()
            },
        }
    }

    /// Under way in a class, and waiting.
    pub fn load(&self, id: ClassId) -> (u32, u32) {
        let class = self.class(id);
        (class.tally.in_flight.count(), class.tally.waiting.load(Ordering::Relaxed))
    }

    /// Which limit keeps requests of a class waiting: the one that last had no room; `None` while none waits.
    pub fn held_by(&self, id: ClassId) -> Option<HeldBy> {
        let class = self.class(id);
        (class.tally.waiting.load(Ordering::Relaxed) > 0).then(|| class.tally.last_full()).flatten()
    }

    /// Learnt work of a class under way, in seconds of its module's time, and how much of it may be: a limit beside
    /// that on requests, where the module is one process.
    pub fn work(&self, id: ClassId) -> (f64, Option<f64>) {
        let class = self.class(id);
        let seconds = |micros: u64| micros as f64 / 1e6;
        let most = (class.work_us_max < u64::MAX).then(|| seconds(class.work_us_max));
        (seconds(class.tally.work_us.load(Ordering::Relaxed)), most)
    }

    /// Under way in a module.
    pub fn module_in_flight(&self, id: ModuleId) -> u32 {
        self.module(id).tally.in_flight.count()
    }

    /// Admissions so far, as `admitted_max` counts them.
    pub(crate) fn allowance_used(&self, id: ClassId) -> u64 {
        self.class(id).tally.allowance_used.load(Ordering::Acquire)
    }

    /// Begins or ceases to count which clients ask for this class.
    pub fn watch(&self, id: ClassId, on: bool) {
        let tally = &self.class(id).tally;
        if tally.watched.swap(on, Ordering::Relaxed) && !on {
            *tally.demand.lock() = ClassDemand::default();
        }
    }

    /// Which clients have asked for this class since the last call; `None` while it is not watched.
    pub fn asked(&self, id: ClassId) -> Option<ClassDemand> {
        let tally = &self.class(id).tally;
        tally.watched.load(Ordering::Relaxed).then(|| std::mem::take(&mut *tally.demand.lock()))
    }

    /// What each client of a class with places per client has under way, and was refused since the
    /// last call.
    pub fn places_wanted(&self, id: ClassId) -> Vec<(u64, u32)> {
        let client_limits =
            self.class(id).client_limits.as_ref().filter(|(limits, _)| limits.in_flight.is_some());
        client_limits.map_or_else(Vec::new, |(_, client_limits)| client_limits.places_wanted())
    }

    /// From now on these clients have so much of a share in the class's queue, and of their own
    /// ceilings; everybody else has all of it.
    pub fn weigh(&self, id: ClassId, weights: &BTreeMap<u64, f64>, parts: &BTreeMap<u64, f64>) {
        let class = self.class(id);
        if let Some(line) = self.lock(class.module).class_mut(id) {
            line.fair.weigh(weights);
        }
        if let Some((_, client_limits)) = &class.client_limits {
            client_limits.part(parts);
        }
    }

    /// What a request is thought to take, in seconds of its module's time or, where that works in
    /// parallel, of a permit's.
    fn takes(&self, ask: Ask) -> f64 {
        self.thought(ask).max(COST_MIN_S)
    }

    /// What is known of a request that is to be remembered, in the same seconds; zero until one of its route was seen.
    fn thought(&self, ask: Ask) -> f64 {
        let parallel = self.module(self.class(ask.class).module).parallel;
        if parallel { self.costs.hold(ask.route) } else { self.costs.get(ask.route) }
    }

    /// What a request that has to wait must have been saved up for: what its like took in calm.
    fn claims(&self, ask: Ask) -> f64 {
        let seconds = self.costs.in_calm(ask.route, self.thought(ask));
        if seconds > 0.0 { seconds / self.class(ask.class).room } else { COST_MIN_S }
    }

    /// Whether a request would wait among those who come before strangers.
    #[must_use]
    pub fn comes_first(&self, ask: Ask, now: Time) -> bool {
        self.uses_past(ask) && self.history.may_claim(ask.client, self.claims(ask), now)
    }

    /// A habit is of work: it says nothing of a rate, which all share alike.
    fn uses_past(&self, ask: Ask) -> bool {
        self.uses_history && self.class(ask.class).rate.is_none()
    }

    /// An answered request becomes a part of its client's past if no other request wanted its place, and one that
    /// was cheaper than its claim gives back the rest. What it took for others in the middle was theirs (see
    /// [`Costs`]), at its claim and now alike.
    fn remember(&self, permit: &Permit, work: f64, spent: Duration, now: Time) {
        let (ask, thought) = (permit.ask, self.thought(permit.ask));
        let class = self.class(ask.class);
        let took = if self.module(class.module).parallel { spent.as_secs_f64() } else { work }.min(thought);
        if let Some(claim) = permit.claim {
            if thought > 0.0 {
                self.history.refund(ask.client, claim, 1.0 - took / thought);
            }
        } else if permit.charged.is_none() && permit.would_shed.is_none() {
            self.costs.learn_calm(ask.route, took);
            self.history.earn(ask.client, took / class.room, now);
        }
    }

    /// What a client is charged in its class's queue for a request that takes so much: the greatest part
    /// it has of anything the class may be short of, in seconds of all of that. Otherwise a client that
    /// asks for what is refused after a millisecond would get the most of a rate (Ghodsi et al., "Dominant
    /// Resource Fairness", 2011).
    fn price(&self, table: &LimitTable, id: ClassId, takes: f64) -> f64 {
        let (class, limits) = (self.class(id), table.class(id));
        if class.is_gated {
            return 1.0;
        }
        let of_rate = limits.rate.map_or(0.0, |per_second| 1.0 / per_second.max(RATE_MIN));
        let parallel = self.module(class.module).parallel;
        let of_room = if parallel { takes / f64::from(permits(limits.in_flight).max(1)) } else { takes };
        of_room.max(of_rate)
    }

    /// What has been learnt of all routes.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// The learnt cost of a route, in seconds of its module's time.
    pub fn cost(&self, route: u16) -> f64 {
        self.costs.get(route)
    }

    fn class(&self, id: ClassId) -> &ClassAdmission {
        &self.classes[id.index()]
    }

    fn module(&self, id: ModuleId) -> &ModuleAdmission<W> {
        &self.modules[id.index()]
    }

    /// How many of a class Ray is at work on, as far as can be told: a module of the dashboard has made its answer
    /// when it begins it, whatever the client's line makes of that; others may work on while they answer.
    fn at_work(&self, class: &ClassAdmission) -> u32 {
        let under_way = class.tally.in_flight.count();
        if class.kind == Kind::Unary && !self.module(class.module).parallel {
            under_way.saturating_sub(class.tally.away.load(Ordering::Relaxed))
        } else {
            under_way
        }
    }

    fn lock(&self, id: ModuleId) -> MutexGuard<'_, ModuleQueue<W>> {
        self.module(id).lock()
    }

    /// Enters class, work, module and rate, or none of them, as what its place in the queue makes of it.
    fn try_enter(&self, table: &LimitTable, ask: Ask, now: Time, rank: Rank) -> Result<Permit, Full> {
        self.enter_all(table, ask, now, rank)
            .inspect_err(|full| self.class(ask.class).tally.note_full(full.limit))
    }

    fn enter_all(&self, table: &LimitTable, ask: Ask, now: Time, rank: Rank) -> Result<Permit, Full> {
        let class = self.class(ask.class);
        let limits = table.class(ask.class);
        let module = self.module(class.module);
        let kept = match rank {
            Rank::Stranger { kept } => kept,
            Rank::Known | Rank::Even => 0,
        };
        if !class.tally.in_flight.try_enter(permits(limits.in_flight).saturating_sub(kept)) {
            return Err(Full::by(HeldBy::InFlight));
        }
        let urgent = class.leaves_gaps && module.is_wanted(now);
        let asks = pause::Asks { limit: limits.in_flight, urgent, known: rank == Rank::Known };
        if !class.tally.pause.is_over(asks, now) {
            class.tally.in_flight.leave();
            return Err(Full::by(HeldBy::InFlight));
        }
        let Some(work_us) = class.try_take_work(self.costs.get(ask.route), kept.min(1)) else {
            class.tally.in_flight.leave();
            return Err(Full::by(HeldBy::Work));
        };
        let shared_us = if class.shares { work_us } else { 0 };
        if class.shares && !module.try_share(work_us, now) {
            class.give_back(work_us);
            return Err(Full::by(HeldBy::Process));
        }
        let leave = || {
            class.give_back(work_us);
            module.tally.shared_us.fetch_sub(shared_us, Ordering::AcqRel);
        };
        // Held connections have a cap of their own: they would starve the others of the ceiling.
        let unary = class.kind == Kind::Unary;
        if unary && !module.tally.in_flight.try_enter(permits(table.module(class.module).in_flight)) {
            leave();
            return Err(Full::by(HeldBy::Module));
        }
        if !class.try_use_allowance(limits.admitted_max) {
            leave();
            if unary {
                module.tally.in_flight.leave();
            }
            return Err(Full::by(HeldBy::Backlog));
        }
        if let Some((_, rate)) = &class.rate
            && let Err(wait) = rate.take(now)
        {
            class.tally.allowance_used.fetch_sub(1, Ordering::AcqRel);
            leave();
            if unary {
                module.tally.in_flight.leave();
            }
            return Err(Full { limit: HeldBy::Rate, wait });
        }
        class.tally.pause.end(limits.in_flight, now);
        let under_way = class.tally.in_flight.count();
        if under_way <= class.tally.away.load(Ordering::Relaxed) + 1 {
            class.tally.progress.store(now.0, Ordering::Relaxed);
        }
        class.tally.meter.admit(self.at_work(class));
        let alone = module.tally.in_flight.count() <= 1;
        let stalled_us = module.tally.stalled_us.load(Ordering::Relaxed);
        Ok(Permit { counted: true, alone, work_us, stalled_us, shared_us, ..Permit::uncounted(ask, now) })
    }

    /// Counts it as if it had been refused, and lets it through beyond every limit.
    fn admit_in_shadow(
        &self,
        ask: Ask,
        of_client: Option<ClientPermit>,
        reason: Reason,
        now: Time,
    ) -> Permit {
        let class = self.class(ask.class);
        class.tally.meter.shed_in_shadow();
        class.tally.in_flight.enter();
        class.tally.allowance_used.fetch_add(1, Ordering::AcqRel);
        if class.kind == Kind::Unary {
            self.module(class.module).tally.in_flight.enter();
        }
        class.tally.meter.admit(self.at_work(class));
        Permit { counted: true, would_shed: Some(reason), of_client, ..Permit::uncounted(ask, now) }
    }

    fn shed_or_shadow(
        &self,
        table: &LimitTable,
        ask: Ask,
        reason: Reason,
        wait: Duration,
        now: Time,
    ) -> Decision {
        if table.class(ask.class).mode == Mode::Shadow {
            return Decision::Admit(self.admit_in_shadow(ask, None, reason, now));
        }
        Decision::Shed(self.refuse(ask.class, reason, wait))
    }

    fn leave_client_limits(&self, id: ClassId, of_client: Option<ClientPermit>) {
        if let (Some(of_client), Some((_, client_limits))) = (of_client, &self.class(id).client_limits) {
            client_limits.leave(of_client);
        }
    }
}

impl ClassState {
    fn note_full(&self, limit: HeldBy) {
        self.full.store(limit as u8, Ordering::Relaxed);
    }

    fn last_full(&self) -> Option<HeldBy> {
        HeldBy::ALL.get(usize::from(self.full.load(Ordering::Relaxed))).copied()
    }
}

impl<W> ModuleAdmission<W> {
    fn lock(&self) -> MutexGuard<'_, ModuleQueue<W>> {
        // A panic elsewhere must not close the proxy: the queue's state is valid at every await-free step.
        self.line.queue.lock()
    }

    /// How many wait whom this admission controller serves.
    fn waiting(&self) -> u32 {
        if self.has_left.load(Ordering::SeqCst) { 0 } else { self.line.waiting.load(Ordering::SeqCst) }
    }

    /// The line for the module at this place of a new policy, if it is one of the same classes.
    fn hand_on(&self, policy: &Policy, at: usize) -> Option<Arc<ModuleWaiters<W>>> {
        self.lock().reconfigure(policy, at).then(|| {
            self.has_left.store(true, Ordering::SeqCst);
            Arc::clone(&self.line)
        })
    }

    /// Whether somebody has asked for what operators need a moment ago.
    fn is_wanted(&self, now: Time) -> bool {
        let at = self.tally.urgent_at.load(Ordering::Relaxed);
        at > 0 && now.since(Time(at)) < URGENT_FOR
    }

    /// Takes so much of what its classes may have under way together: if it stays within the bound, if it is the only
    /// one, or if nothing was let in for so long that what is there must be waiting for others.
    fn try_share(&self, own: u64, now: Time) -> bool {
        let (work, at) = (&self.tally.shared_us, &self.tally.shared_at);
        let stuck = now.since(Time(at.load(Ordering::Relaxed))) >= SHARED_PATIENCE;
        let room = |work: u64| {
            let sum = work.saturating_add(own);
            (work == 0 || stuck || sum <= self.shared_us_max).then_some(sum)
        };
        let took = work.fetch_update(Ordering::AcqRel, Ordering::Relaxed, room).is_ok();
        if took {
            at.store(now.0, Ordering::Relaxed);
        }
        took
    }
}

impl ClassAdmission {
    /// Takes `cost` seconds of work if that, and as much again for each of `kept`, stays within the class's bound, or
    /// if it is the only one; returns what was taken.
    fn try_take_work(&self, cost: f64, kept: u32) -> Option<u64> {
        let own = micros(cost);
        self.tally
            .work_us
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |work| {
                let sum = work.saturating_add(own);
                let all = sum.saturating_add(own.saturating_mul(u64::from(kept)));
                (work == 0 || all <= self.work_us_max).then_some(sum)
            })
            .ok()
            .map(|_| own)
    }

    /// Counts one more admission if that stays within the running total allowed.
    fn try_use_allowance(&self, admitted_max: Option<u64>) -> bool {
        let max = admitted_max.unwrap_or(u64::MAX);
        self.tally
            .allowance_used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < max).then_some(used + 1))
            .is_ok()
    }

    /// Undoes an entry: one less under way, its work taken back.
    fn give_back(&self, work_us: u64) {
        self.tally.work_us.fetch_sub(work_us, Ordering::AcqRel);
        self.tally.in_flight.leave();
    }

    /// When to come back: after `wait`, plus a place in the spread that differs from the
    /// refusal before (multiplicative hashing of a counter: even and without randomness).
    fn retry_after(&self, wait: Duration) -> u32 {
        let turn = self.tally.sheds.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9) >> 8;
        let seconds = u32::try_from(wait.min(RETRY_AFTER_MAX).as_secs()).unwrap_or(u32::MAX);
        let spread = self.tally.spread_s.load(Ordering::Relaxed).max(1);
        (seconds + 1 + turn % spread).min(u32::try_from(RETRY_AFTER_MAX.as_secs()).unwrap_or(u32::MAX))
    }
}

/// No client is sent away for longer than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// How many times a module's bound on work a class may have under way. The bound is there for
/// requests that wait behind a class in the module; none waits with more right than the most
/// urgent, so the more urgent a class, the less it is held back on behalf of others.
fn work_factor(priority: Priority) -> f64 {
    f64::from(priority.0.clamp(ORDINARY, 9) - ORDINARY + 1)
}

/// Classes up to this priority have the bound itself.
const ORDINARY: u8 = 5;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as-casts of f64 saturate; negatives become zero"
)]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

#[cfg(test)]
mod tests;
