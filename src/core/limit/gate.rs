//! The gate: every counter, clock and queue of the door, and the one decision about a request.
//!
//! The order is design 4's: blocked, exempt, the party's own ceiling, then the class's
//! concurrency, its work under way, the module's ceiling and the class's rate; whoever finds
//! no room waits its turn in the class's fair queue, and whoever would wait in vain is told.
//!
//! The gate holds no limits. Each call is handed the limit table of that moment; what is
//! counted here outlives every table, so a changed limit resets nothing.
//!
//! While nobody waits a decision takes no lock: a handful of atomic operations. Once somebody
//! waits in a module, its requests pass through the module's queue under its mutex, because
//! then their order matters. A slot is never lost between the two: whoever leaves first counts
//! itself out and then looks for waiters; whoever waits first makes itself known and then
//! looks for room.
//!
//! `W` is whatever the driver needs to reach a waiter: a channel in production, an event in
//! simulation. The gate hands it back through `wake` together with the verdict.

mod hits;

pub use hits::Left;

use crate::core::limit::common::Common;
use crate::core::limit::cost::{Costs, Departures};
use crate::core::limit::flow::Flow;
use crate::core::limit::in_flight::InFlight;
use crate::core::limit::meter::{Counts, Meter, Outcome, Reading, Reason};
use crate::core::limit::queue::{FairQueue, Joined, Place, Waiting};
use crate::core::limit::rate::Rate;
use crate::core::limit::share::{Shares, SlotId};
use crate::core::limit::table::{LimitTable, Mode, slots};
use crate::core::policy::{ClassId, Kind, ModuleId, PartyLimits, Policy, Priority, Treatment};
use crate::core::request::party::Party;
use crate::core::time::{Time, duration_from_secs};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Classes of this priority and above are served before all others, whatever their share.
const STRICT: Priority = Priority(9);

/// What is asked of the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The request's class.
    pub class: ClassId,
    /// Its route, the key of its learnt cost.
    pub route: u16,
    /// Who asks.
    pub party: Party,
}

/// A request under way. It must be given back to [`Gate::finish`], once.
#[derive(Debug)]
#[must_use = "a ticket that is not finished holds its slot for ever"]
pub struct Ticket {
    /// What was asked.
    pub ask: Ask,
    /// When it was admitted.
    pub admitted: Time,
    /// How long it waited before.
    pub waited: Duration,
    /// The refusal that shadow mode did not carry out.
    pub would_shed: Option<Reason>,
    counted: bool,
    /// Its module had nothing else under way when it was admitted.
    alone: bool,
    work_us: u64,
    charged: Option<f64>,
    slot: Option<SlotId>,
}

/// A refusal, and what to tell the caller.
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
    place: Place,
}

/// The verdict on a request.
#[derive(Debug)]
pub enum Decision {
    /// Send it on.
    Admit(Ticket),
    /// It waits; its waiter is woken with a [`Grant`], at `deadline` at the latest if the
    /// driver calls [`Gate::expire`] then.
    Wait(WaitId, Time),
    /// Refuse it.
    Shed(Shed),
}

/// What a waiter is woken with.
#[derive(Debug)]
pub enum Grant {
    /// Its turn has come.
    Go(Ticket),
    /// It had to give way, or its time is up.
    Shed(Shed),
}

/// Every counter, clock and queue of the door.
#[derive(Debug)]
pub struct Gate<W> {
    classes: Box<[ClassGate]>,
    modules: Box<[ModuleGate<W>]>,
    costs: Arc<Costs>,
    common: Arc<Common>,
}

#[derive(Debug)]
struct ClassGate {
    name: Arc<str>,
    module: ModuleId,
    priority: Priority,
    kind: Kind,
    queue_len_max: u32,
    queue_wait_max: Duration,
    work_us_max: u64,
    rate: Option<(u32, Arc<Rate>)>,
    shares: Option<(PartyLimits, Arc<Shares>)>,
    waiting: AtomicU32,
    spread_s: AtomicU32,
    sheds: AtomicU32,
    /// What is counted outlives this gate: see [`Gate::succeed`].
    tally: Arc<Tally>,
}

/// What a class has under way and has done.
#[derive(Debug, Default)]
struct Tally {
    in_flight: InFlight,
    work_us: AtomicU64,
    /// Admissions counted against the table's `admitted_max`.
    allowance_used: AtomicU64,
    /// When something last finished, or began after a pause.
    progress: AtomicU64,
    flow: Arc<Flow>,
    meter: Meter,
}

/// What a module has under way, and its last departure.
#[derive(Debug, Default)]
struct ModuleTally {
    in_flight: InFlight,
    departures: Departures,
}

#[derive(Debug)]
struct ModuleGate<W> {
    name: Arc<str>,
    tally: Arc<ModuleTally>,
    waiting: AtomicU32,
    queue: Mutex<ModuleQueue<W>>,
}

#[derive(Debug)]
struct ModuleQueue<W> {
    classes: Vec<ClassQueue<W>>,
    virtual_time: f64,
}

#[derive(Debug)]
struct ClassQueue<W> {
    id: ClassId,
    fair: FairQueue<Waiter<W>>,
    /// The class's own tag among the classes of its module, in work / weight.
    tag: f64,
}

#[derive(Debug)]
struct Waiter<W> {
    waiter: W,
    slot: Option<SlotId>,
}

/// Work charged for a route nothing is known of yet, in seconds.
const COST_MIN_S: f64 = 1e-4;

/// Why there is no room.
enum Full {
    Class,
    Module,
    Rate(Duration),
    Backlog,
}

impl Full {
    fn reason(&self) -> Reason {
        match self {
            Full::Class => Reason::ClassInFlight,
            Full::Module => Reason::ModuleInFlight,
            Full::Rate(_) => Reason::ClassRate,
            Full::Backlog => Reason::ClassBacklog,
        }
    }

    fn wait(&self) -> Duration {
        if let Full::Rate(wait) = self { *wait } else { Duration::ZERO }
    }
}

impl Ticket {
    /// Whether it holds a place; what is exempt holds none.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    fn uncounted(ask: Ask, now: Time) -> Ticket {
        Ticket {
            ask,
            admitted: now,
            waited: Duration::ZERO,
            would_shed: None,
            counted: false,
            alone: false,
            work_us: 0,
            charged: None,
            slot: None,
        }
    }
}

impl<W> Gate<W> {
    /// An empty gate for this policy, at the rates of `table`.
    #[must_use]
    pub fn new(policy: &Policy, table: &LimitTable, now: Time) -> Gate<W> {
        Gate::build(policy, table, now, None)
    }

    /// The gate of a new policy, for requests from now on. Classes and modules of the same name
    /// go on with the counters of this one, so that nothing under way is forgotten and no change
    /// hands out a slot or a burst twice; whoever waits here is still served here.
    #[must_use]
    pub fn succeed(&self, policy: &Policy, table: &LimitTable, now: Time) -> Gate<W> {
        Gate::build(policy, table, now, Some(self))
    }

    fn build(policy: &Policy, table: &LimitTable, now: Time, before: Option<&Gate<W>>) -> Gate<W> {
        let classes = policy.classes.iter().zip(&table.classes).map(|(class, limits)| {
            let old = before.and_then(|gate| gate.classes.iter().find(|old| old.name == class.name));
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
            let shares = old
                .and_then(|old| old.shares.clone())
                .filter(|(limits, _)| *limits == class.per_party)
                .or_else(|| Some((class.per_party, Arc::new(Shares::new(class.per_party, now)?))));
            let tally = old.map_or_else(
                || Arc::new(Tally { progress: AtomicU64::new(now.0), ..Tally::default() }),
                |old| Arc::clone(&old.tally),
            );
            tally.flow.set_limit(limits.bytes_per_second, now);
            ClassGate {
                name: Arc::clone(&class.name),
                module: class.module,
                priority: class.priority,
                kind: class.kind,
                queue_len_max: class.queue.len_max,
                queue_wait_max: class.queue.wait_max,
                work_us_max: policy.modules[class.module.index()]
                    .work
                    .map_or(u64::MAX, |work| micros(work.as_secs_f64() * work_factor(class.priority))),
                rate,
                shares,
                waiting: AtomicU32::new(0),
                spread_s: AtomicU32::new(1),
                sheds: AtomicU32::new(0),
                tally,
            }
        });
        let modules = policy.modules.iter().enumerate().map(|(at, module)| {
            let old = before.and_then(|gate| gate.modules.iter().find(|old| old.name == module.name));
            ModuleGate {
                name: Arc::clone(&module.name),
                tally: old.map_or_else(Arc::default, |old| Arc::clone(&old.tally)),
                waiting: AtomicU32::new(0),
                queue: Mutex::new(ModuleQueue::of(policy, at)),
            }
        });
        // Routes are numbered alike in every configuration but for the operator's own.
        let costs = before.map_or_else(Arc::default, |gate| Arc::clone(&gate.costs));
        let common = before.map_or_else(Arc::default, |gate| Arc::clone(&gate.common));
        Gate { classes: classes.collect(), modules: modules.collect(), costs, common }
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
                return Decision::Shed(self.refuse(ask.class, Reason::Blocked, Duration::ZERO));
            }
            Treatment::Exempt => {
                class.tally.meter.admit(0);
                return Decision::Admit(Ticket::uncounted(ask, now));
            }
            Treatment::Limited => {}
        }
        let shown = ask.party;
        let ask = Ask { party: self.common.judge(shown), ..ask };
        let slot = match class.shares.as_ref().map(|(_, shares)| shares.enter(ask.party, now)).transpose() {
            Ok(slot) => slot,
            Err((reason, wait)) => return self.shed_or_shadow(table, ask, reason, wait, now),
        };
        let queues = class.queue_len_max > 0 && class.kind == Kind::Unary && limits.mode == Mode::Enforce;
        if queues && self.module(class.module).waiting.load(Ordering::SeqCst) > 0 {
            // Others wait: their turn comes first.
            return self.wait_in_line(table, ask, slot, now, waiter, wake);
        }
        let full = match self.try_enter(table, ask, now) {
            Ok(ticket) => {
                self.common.see(shown, now);
                return Decision::Admit(Ticket { slot, ..ticket });
            }
            Err(full) => full,
        };
        if limits.mode == Mode::Shadow {
            return Decision::Admit(self.admit_in_shadow(ask, slot, full.reason(), now));
        }
        if !queues {
            self.leave_share(ask.class, slot);
            return Decision::Shed(self.refuse(ask.class, full.reason(), full.wait()));
        }
        self.wait_in_line(table, ask, slot, now, waiter, wake)
    }

    /// An admitted exchange has ended: its slot is free for the next in line.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is given back, not shown")]
    pub fn finish(
        &self,
        table: &LimitTable,
        ticket: Ticket,
        outcome: Outcome,
        now: Time,
        wake: &mut impl FnMut(W, Grant),
    ) {
        let class = self.class(ticket.ask.class);
        let module = self.module(class.module);
        let latency = now.since(ticket.admitted);
        // What failed or was never sent says nothing of what an answer costs.
        let answered = matches!(outcome, Outcome::Served | Outcome::Abandoned);
        let work = if ticket.counted && class.kind == Kind::Unary && answered {
            let work = module.tally.departures.depart(ticket.admitted, now);
            self.costs.learn(ticket.ask.route, work, latency.as_secs_f64(), ticket.alone);
            work
        } else {
            0.0
        };
        class.tally.meter.finish(outcome, latency, duration_from_secs(work));
        self.leave_share(ticket.ask.class, ticket.slot);
        if !ticket.counted {
            return;
        }
        class.give_back(ticket.work_us);
        class.tally.progress.store(now.0, Ordering::Relaxed);
        if class.kind == Kind::Unary {
            module.tally.in_flight.leave();
        }
        if module.waiting.load(Ordering::SeqCst) > 0 {
            let mut woken = Vec::new();
            {
                let mut queue = self.lock(class.module);
                // What nobody saw costs what was thought.
                let estimate = ticket.charged.filter(|_| outcome != Outcome::Unseen);
                if let (Some(estimate), Some(own)) = (estimate, queue.class_mut(ticket.ask.class)) {
                    own.fair.charge(ticket.ask.party, work - estimate);
                }
                self.dispatch(table, &mut queue, now, &mut woken);
            }
            for (waiter, grant) in woken {
                wake(waiter, grant);
            }
        }
    }

    /// A waiter's client has left. Returns its waiter if it was still waiting.
    pub fn cancel(&self, id: WaitId, now: Time) -> Option<W> {
        let waiter = self.take_out(id, Some(now))?;
        self.class(id.class).tally.meter.leave();
        Some(waiter)
    }

    /// A waiter's time is up: it is taken out and the refusal returned; `None` if its verdict
    /// is already on the way.
    pub fn expire(&self, id: WaitId) -> Option<(W, Shed)> {
        let waiter = self.take_out(id, None)?;
        Some((waiter, self.refuse(id.class, Reason::QueueTimeout, Duration::ZERO)))
    }

    /// Serves whoever can be served now: to be called when limits were raised, and regularly
    /// (some tens of milliseconds) while a rate-limited class has waiters.
    pub fn pump(&self, table: &LimitTable, now: Time, wake: &mut impl FnMut(W, Grant)) {
        for (class, limits) in self.classes.iter().zip(&table.classes) {
            if let (Some((_, rate)), Some(per_second)) = (&class.rate, limits.rate) {
                rate.set_rate(per_second, now);
            }
            class.tally.flow.set_limit(limits.bytes_per_second, now);
        }
        let mut woken = Vec::new();
        for module in self.modules.iter().filter(|module| module.waiting.load(Ordering::SeqCst) > 0) {
            let mut queue = module.queue.lock().unwrap_or_else(PoisonError::into_inner);
            self.dispatch(table, &mut queue, now, &mut woken);
        }
        for (waiter, grant) in woken {
            wake(waiter, grant);
        }
    }

    /// How many waiters there are, in all modules.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.modules.iter().map(|module| module.waiting.load(Ordering::Relaxed)).sum()
    }

    /// Refuses a request for a reason of the driver's (upstream down, no API key).
    pub fn refuse(&self, id: ClassId, reason: Reason, wait: Duration) -> Shed {
        let class = self.class(id);
        class.tally.meter.shed(reason);
        Shed { class: id, reason, retry_after_s: class.retry_after(wait) }
    }

    /// Refuses a request that is not to ask at all; `None` where sheds are only counted.
    pub fn refuse_at_sight(
        &self,
        table: &LimitTable,
        id: ClassId,
        reason: Reason,
        wait: Duration,
    ) -> Option<Shed> {
        let meter = &self.class(id).tally.meter;
        if table.class(id).mode == Mode::Shadow {
            meter.shed_in_shadow();
            return None;
        }
        meter.offer();
        Some(self.refuse(id, reason, wait))
    }

    /// Why a request of this class from this party would be refused if it came now, and for how
    /// long; `None` if it may hope. It may as long as it could wait in line for its turn: it is
    /// turned away where the party's own ceiling is reached, where nothing can pass at all, where
    /// the class's next free cell is further away than anyone may wait, and where the line is
    /// full and the party stands in it already. (One that does not would take the place of
    /// somebody who asks for more than its share.)
    #[must_use]
    pub fn would_turn_away(
        &self,
        table: &LimitTable,
        id: ClassId,
        party: Party,
        now: Time,
    ) -> Option<(Reason, Duration)> {
        let (class, limits) = (self.class(id), table.class(id));
        if limits.treatment != Treatment::Limited || limits.mode != Mode::Enforce {
            return None;
        }
        let party = self.common.judge(party);
        if let Some(over) = class.shares.as_ref().and_then(|(_, shares)| shares.would_refuse(party, 1, now)) {
            return Some(over);
        }
        let waiting = class.waiting.load(Ordering::Relaxed);
        let cell = class.rate.as_ref().map_or(Duration::ZERO, |(_, rate)| rate.wait(waiting, now));
        let queues = class.queue_len_max > 0 && class.kind == Kind::Unary;
        let patience = if queues { class.queue_wait_max } else { Duration::ZERO };
        if cell > patience {
            return Some((Reason::ClassRate, cell));
        }
        let [of_class, of_module] = [limits.in_flight, table.module(class.module).in_flight].map(slots);
        let now_or_never = |count: u32, room: u32| room == 0 || (!queues && count >= room);
        if now_or_never(class.tally.in_flight.count(), of_class) {
            return Some((Reason::ClassInFlight, Duration::ZERO));
        }
        let of_module_used = self.module(class.module).tally.in_flight.count();
        if class.kind == Kind::Unary && now_or_never(of_module_used, of_module) {
            return Some((Reason::ModuleInFlight, Duration::ZERO));
        }
        let used = class.tally.allowance_used.load(Ordering::Acquire);
        if !queues && limits.admitted_max.is_some_and(|max| used >= max) {
            return Some((Reason::ClassBacklog, Duration::ZERO));
        }
        let stands_in_it =
            || self.lock(class.module).class_mut(id).is_some_and(|line| line.fair.waiting(party) > 0);
        (queues && waiting >= class.queue_len_max && stands_in_it())
            .then_some((Reason::PartyShare, Duration::ZERO))
    }

    /// The bandwidth of a class, where the table limits it.
    #[must_use]
    pub fn flow(&self, table: &LimitTable, id: ClassId) -> Option<Arc<Flow>> {
        table.class(id).bytes_per_second.map(|_| Arc::clone(&self.class(id).tally.flow))
    }

    /// Sets over how many seconds the class's refusals are spread (see `engine`).
    pub fn spread(&self, id: ClassId, seconds: u32) {
        self.class(id).spread_s.store(seconds.max(1), Ordering::Relaxed);
    }

    /// The totals of a class.
    #[must_use]
    pub fn counts(&self, id: ClassId) -> Counts {
        self.class(id).tally.meter.read()
    }

    /// The totals of a class and the state of its counters; takes the peak.
    #[must_use]
    pub fn reading(&self, id: ClassId, now: Time) -> Reading {
        let class = self.class(id);
        let in_flight = class.tally.in_flight.count();
        Reading {
            counts: class.tally.meter.read(),
            in_flight,
            in_flight_peak: class.tally.meter.take_peak(in_flight),
            waiting: class.waiting.load(Ordering::Relaxed),
            stalled_s: if in_flight == 0 {
                0.0
            } else {
                now.since(Time(class.tally.progress.load(Ordering::Relaxed))).as_secs_f64()
            },
        }
    }

    /// Under way in a class, and waiting.
    #[must_use]
    pub fn load(&self, id: ClassId) -> (u32, u32) {
        let class = self.class(id);
        (class.tally.in_flight.count(), class.waiting.load(Ordering::Relaxed))
    }

    /// Under way in a module.
    #[must_use]
    pub fn module_in_flight(&self, id: ModuleId) -> u32 {
        self.module(id).tally.in_flight.count()
    }

    /// Admissions so far, as `admitted_max` counts them.
    #[must_use]
    pub fn allowance_used(&self, id: ClassId) -> u64 {
        self.class(id).tally.allowance_used.load(Ordering::Acquire)
    }

    /// The learnt cost of a route, in seconds of its module's time.
    #[must_use]
    pub fn cost(&self, route: u16) -> f64 {
        self.costs.get(route)
    }

    fn class(&self, id: ClassId) -> &ClassGate {
        &self.classes[id.index()]
    }

    fn module(&self, id: ModuleId) -> &ModuleGate<W> {
        &self.modules[id.index()]
    }

    fn lock(&self, id: ModuleId) -> MutexGuard<'_, ModuleQueue<W>> {
        // A panic elsewhere must not close the door: the queue's state is valid at every await-free step.
        self.module(id).queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters class, work, module and rate, or none of them.
    fn try_enter(&self, table: &LimitTable, ask: Ask, now: Time) -> Result<Ticket, Full> {
        let class = self.class(ask.class);
        let limits = table.class(ask.class);
        let module = self.module(class.module);
        if !class.tally.in_flight.try_enter(slots(limits.in_flight)) {
            return Err(Full::Class);
        }
        let Some(work_us) = class.try_take_work(self.costs.get(ask.route)) else {
            class.tally.in_flight.leave();
            return Err(Full::Class);
        };
        // Held connections have a cap of their own: they would starve the others of the ceiling.
        let unary = class.kind == Kind::Unary;
        if unary && !module.tally.in_flight.try_enter(slots(table.module(class.module).in_flight)) {
            class.give_back(work_us);
            return Err(Full::Module);
        }
        if !class.try_use_allowance(limits.admitted_max) {
            class.give_back(work_us);
            if unary {
                module.tally.in_flight.leave();
            }
            return Err(Full::Backlog);
        }
        if let Some((_, rate)) = &class.rate
            && let Err(wait) = rate.take(now)
        {
            class.tally.allowance_used.fetch_sub(1, Ordering::AcqRel);
            class.give_back(work_us);
            if unary {
                module.tally.in_flight.leave();
            }
            return Err(Full::Rate(wait));
        }
        let under_way = class.tally.in_flight.count();
        if under_way <= 1 {
            class.tally.progress.store(now.0, Ordering::Relaxed);
        }
        class.tally.meter.admit(under_way);
        let alone = module.tally.in_flight.count() <= 1;
        Ok(Ticket { counted: true, alone, work_us, ..Ticket::uncounted(ask, now) })
    }

    /// Counts it as if it had been refused, and lets it through beyond every limit.
    fn admit_in_shadow(&self, ask: Ask, slot: Option<SlotId>, reason: Reason, now: Time) -> Ticket {
        let class = self.class(ask.class);
        class.tally.meter.shed_in_shadow();
        class.tally.in_flight.enter();
        class.tally.allowance_used.fetch_add(1, Ordering::AcqRel);
        if class.kind == Kind::Unary {
            self.module(class.module).tally.in_flight.enter();
        }
        class.tally.meter.admit(class.tally.in_flight.count());
        Ticket { counted: true, would_shed: Some(reason), slot, ..Ticket::uncounted(ask, now) }
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

    /// Joins the class's queue, then serves whoever is next (perhaps this very request).
    fn wait_in_line(
        &self,
        table: &LimitTable,
        ask: Ask,
        slot: Option<SlotId>,
        now: Time,
        waiter: impl FnOnce() -> W,
        wake: &mut impl FnMut(W, Grant),
    ) -> Decision {
        let class = self.class(ask.class);
        let module = self.module(class.module);
        let deadline = now + class.queue_wait_max;
        let request = Waiting {
            waiter: Waiter { waiter: waiter(), slot },
            party: ask.party,
            route: ask.route,
            cost: self.costs.get(ask.route).max(COST_MIN_S),
            since: now,
            deadline,
        };
        let mut woken = Vec::new();
        let joined = {
            let mut queue = self.lock(class.module);
            // Made known before anyone looks for room (see the head of this file).
            module.waiting.fetch_add(1, Ordering::SeqCst);
            class.waiting.fetch_add(1, Ordering::SeqCst);
            let joined = queue.join(ask.class, request, class.queue_len_max);
            self.dispatch(table, &mut queue, now, &mut woken);
            joined
        };
        let decision = match joined {
            Joined::Waits(place) => Decision::Wait(WaitId { class: ask.class, place }, deadline),
            Joined::Displaced(place, displaced) => {
                let shed = self.turn_away(ask.class, displaced.waiter.slot);
                wake(displaced.waiter.waiter, Grant::Shed(shed));
                Decision::Wait(WaitId { class: ask.class, place }, deadline)
            }
            Joined::Refused(request) => Decision::Shed(self.turn_away(ask.class, request.waiter.slot)),
        };
        for (waiter, grant) in woken {
            wake(waiter, grant);
        }
        decision
    }

    /// Counts out one who must give way.
    fn turn_away(&self, id: ClassId, slot: Option<SlotId>) -> Shed {
        self.leave_share(id, slot);
        self.uncount(id);
        self.refuse(id, Reason::PartyShare, Duration::ZERO)
    }

    /// Serves waiters of a module while there is room. The woken are told after the lock is
    /// free: a waiter that has gone meanwhile gives its ticket straight back.
    fn dispatch(
        &self,
        table: &LimitTable,
        queue: &mut ModuleQueue<W>,
        now: Time,
        woken: &mut Vec<(W, Grant)>,
    ) {
        let mut without_room: u64 = 0; // classes, by position
        while let Some(at) = self.next_class(queue, without_room) {
            let virtual_time = queue.virtual_time;
            let ClassQueue { id, fair, tag } = &mut queue.classes[at];
            let class = self.class(*id);
            if class.tally.in_flight.count() >= slots(table.class(*id).in_flight) {
                // Who would be next need not be known; a full class is the rule under overload.
                without_room |= 1 << at.min(63);
                continue;
            }
            let Some(next) = fair.peek(now) else { break };
            let ask = Ask { class: *id, route: next.route, party: next.party };
            let ticket = match self.try_enter(table, ask, now) {
                Ok(ticket) => ticket,
                Err(Full::Module) => break,
                Err(Full::Class | Full::Rate(_) | Full::Backlog) => {
                    without_room |= 1 << at.min(63);
                    continue;
                }
            };
            let Some(request) = fair.pop(now) else { break };
            let start = tag.max(virtual_time);
            *tag = start + request.cost / weight(class.priority);
            queue.virtual_time = start;
            self.uncount(ask.class);
            let waited = now.since(request.since);
            class.tally.meter.queue();
            class.tally.meter.wait(waited);
            let ticket = Ticket { slot: request.waiter.slot, waited, charged: Some(request.cost), ..ticket };
            woken.push((request.waiter.waiter, Grant::Go(ticket)));
        }
    }

    /// The class to serve next: strict ones first, then the smallest tag.
    fn next_class(&self, queue: &ModuleQueue<W>, without_room: u64) -> Option<usize> {
        queue
            .classes
            .iter()
            .enumerate()
            .filter(|(at, class)| without_room & (1 << (*at).min(63)) == 0 && !class.fair.is_empty())
            .min_by(|(_, a), (_, b)| {
                let ordinary = |class: &ClassQueue<W>| self.class(class.id).priority < STRICT;
                ordinary(a).cmp(&ordinary(b)).then(a.tag.total_cmp(&b.tag))
            })
            .map(|(at, _)| at)
    }

    fn take_out(&self, id: WaitId, left_at: Option<Time>) -> Option<W> {
        let class = self.class(id.class);
        let removed = {
            let mut queue = self.lock(class.module);
            let fair = &mut queue.class_mut(id.class)?.fair;
            match left_at {
                Some(now) => fair.leave(id.place, now)?,
                None => fair.remove(id.place)?,
            }
        };
        self.leave_share(id.class, removed.waiter.slot);
        self.uncount(id.class);
        Some(removed.waiter.waiter)
    }

    fn leave_share(&self, id: ClassId, slot: Option<SlotId>) {
        if let (Some(slot), Some((_, shares))) = (slot, &self.class(id).shares) {
            shares.leave(slot);
        }
    }

    fn uncount(&self, id: ClassId) {
        let class = self.class(id);
        class.waiting.fetch_sub(1, Ordering::SeqCst);
        self.module(class.module).waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<W> ModuleQueue<W> {
    fn of(policy: &Policy, module: usize) -> ModuleQueue<W> {
        let classes = policy.classes.iter().enumerate().filter(|(_, class)| class.module.index() == module);
        let classes = classes.filter_map(|(at, _)| {
            let id = ClassId(u8::try_from(at).ok()?);
            Some(ClassQueue { id, fair: FairQueue::default(), tag: 0.0 })
        });
        ModuleQueue { classes: classes.collect(), virtual_time: 0.0 }
    }

    fn class_mut(&mut self, id: ClassId) -> Option<&mut ClassQueue<W>> {
        self.classes.iter_mut().find(|class| class.id == id)
    }

    fn join(&mut self, id: ClassId, request: Waiting<Waiter<W>>, len_max: u32) -> Joined<Waiter<W>> {
        let virtual_time = self.virtual_time;
        match self.class_mut(id) {
            Some(class) => {
                if class.fair.is_empty() {
                    class.tag = class.tag.max(virtual_time);
                }
                class.fair.join(request, len_max)
            }
            None => Joined::Refused(request),
        }
    }
}

impl ClassGate {
    /// Takes `cost` seconds of work if that stays within the class's bound, or if it is the
    /// only one; returns what was taken.
    fn try_take_work(&self, cost: f64) -> Option<u64> {
        let own = micros(cost);
        self.tally
            .work_us
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |work| {
                let sum = work.saturating_add(own);
                (work == 0 || sum <= self.work_us_max).then_some(sum)
            })
            .ok()
            .map(|_| own)
    }

    /// Counts one more admission if that stays within the running total allowed.
    fn try_use_allowance(&self, admitted_max: Option<u64>) -> bool {
        let max = admitted_max.unwrap_or(u64::MAX);
        self.tally
            .allowance_used
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < max).then_some(used + 1))
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
        let turn = self.sheds.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9) >> 8;
        let seconds = u32::try_from(wait.min(RETRY_AFTER_MAX).as_secs()).unwrap_or(u32::MAX);
        let spread = self.spread_s.load(Ordering::Relaxed).max(1);
        (seconds + 1 + turn % spread).min(u32::try_from(RETRY_AFTER_MAX.as_secs()).unwrap_or(u32::MAX))
    }
}

/// No caller is sent away for longer than this.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(2);

/// A class's weight among those of its module.
fn weight(priority: Priority) -> f64 {
    f64::from(1u32 << u32::from(priority.0.min(9)))
}

/// How many times a module's bound on work a class may have under way. The bound is there for
/// those who wait behind a class in the module; nobody waits with more right than the most
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
mod tests {
    use super::*;
    use crate::core::limit::table::ClassLimits;
    use crate::core::policy::plain::{self, policy};
    use crate::core::policy::{Bounds, Class, Queue, RateBounds};
    use proptest::prelude::*;
    use std::cell::RefCell;

    fn class(name: &str, priority: u8, in_flight: f64) -> Class {
        Class { priority: Priority(priority), ..plain::class(name, in_flight) }
    }

    struct Rig {
        gate: Gate<u32>,
        table: LimitTable,
        woken: RefCell<Vec<(u32, Grant)>>,
        next: u32,
    }

    impl Rig {
        fn new(policy: &Policy) -> Rig {
            let table = LimitTable::initial(policy);
            Rig { gate: Gate::new(policy, &table, Time::ZERO), table, woken: RefCell::default(), next: 0 }
        }
        fn ask(&mut self, class: u8, address: u64, now: Time) -> (u32, Decision) {
            self.next += 1;
            let ask = Ask {
                class: ClassId(class),
                route: u16::from(class),
                party: Party { address, credential: None },
            };
            let id = self.next;
            let decision = self
                .gate
                .decide(&self.table, ask, now, || id, &mut |w, g| self.woken.borrow_mut().push((w, g)));
            (id, decision)
        }
        fn finish(&self, ticket: Ticket, now: Time) {
            self.gate.finish(&self.table, ticket, Outcome::Served, now, &mut |w, g| {
                self.woken.borrow_mut().push((w, g));
            });
        }
        fn granted(&self) -> Option<(u32, Ticket)> {
            let mut woken = self.woken.borrow_mut();
            let at = woken.iter().position(|(_, grant)| matches!(grant, Grant::Go(_)))?;
            match woken.remove(at) {
                (waiter, Grant::Go(ticket)) => Some((waiter, ticket)),
                (_, Grant::Shed(_)) => None,
            }
        }
    }

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    fn ticket(decision: Decision) -> Ticket {
        match decision {
            Decision::Admit(ticket) => ticket,
            other => panic!("not admitted: {other:?}"),
        }
    }

    #[test]
    fn a_slot_that_is_given_back_goes_to_the_one_who_waits() {
        let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
        let first = ticket(rig.ask(0, 1, at(0.0)).1);
        let (waiter, decision) = rig.ask(0, 2, at(0.1));
        assert!(matches!(decision, Decision::Wait(..)));
        rig.finish(first, at(0.5));
        let (woken, second) = rig.granted().unwrap();
        assert_eq!((woken, second.ask.party.address), (waiter, 2));
        assert_eq!(second.waited, Duration::from_millis(400));
        rig.finish(second, at(0.6));
        assert_eq!(rig.gate.load(ClassId(0)), (0, 0));
    }

    #[test]
    fn a_client_that_left_is_never_granted_a_slot() {
        let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
        let first = ticket(rig.ask(0, 1, at(0.0)).1);
        let (_, Decision::Wait(id, _)) = rig.ask(0, 2, at(0.1)) else { panic!("should wait") };
        assert!(rig.gate.cancel(id, at(0.2)).is_some());
        assert!(rig.gate.cancel(id, at(0.2)).is_none(), "once only");
        rig.finish(first, at(0.5));
        assert!(rig.granted().is_none());
        assert_eq!(rig.gate.counts(ClassId(0)).left, 1);
    }

    #[test]
    fn a_newcomer_is_next_after_a_flooder_with_a_full_queue() {
        let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
        let mut held = Some(ticket(rig.ask(0, 1, at(0.0)).1));
        for _ in 0..100 {
            let _ = rig.ask(0, 1, at(0.0));
        }
        let (polite, decision) = rig.ask(0, 2, at(0.0));
        assert!(matches!(decision, Decision::Wait(..)), "{decision:?}");
        let mut served = Vec::new();
        for _ in 0..2 {
            rig.finish(held.take().unwrap(), at(0.1));
            let (waiter, next) = rig.granted().unwrap();
            served.push(waiter);
            held = Some(next);
        }
        assert!(served.contains(&polite), "served within two: {served:?}");
        rig.finish(held.unwrap(), at(0.2));
    }

    #[test]
    fn the_most_urgent_class_is_served_before_all_others() {
        let mut rig = Rig::new(&policy(vec![class("list", 5, 8.0), class("control", 9, 8.0)], 1.0));
        let first = ticket(rig.ask(0, 1, at(0.0)).1);
        for _ in 0..10 {
            let _ = rig.ask(0, 1, at(0.0));
        }
        let (stop, _) = rig.ask(1, 1, at(0.0));
        rig.finish(first, at(0.1));
        let (woken, ticket) = rig.granted().unwrap();
        assert_eq!(woken, stop);
        rig.finish(ticket, at(0.2));
    }

    #[test]
    fn a_class_without_room_does_not_hold_up_another_of_its_module() {
        let mut rig = Rig::new(&policy(vec![class("heavy", 5, 1.0), class("light", 5, 8.0)], 8.0));
        let _heavy = ticket(rig.ask(0, 1, at(0.0)).1);
        let _ = rig.ask(0, 1, at(0.0));
        let (light, decision) = rig.ask(1, 2, at(0.0));
        assert!(matches!(decision, Decision::Wait(..)), "it passes through the queue");
        assert_eq!(rig.granted().unwrap().0, light, "... and straight out of it");
    }

    /// How many requests of 20 ms a class of this priority has under way at once, of ten.
    fn under_way_at_50_ms_of_work(priority: u8) -> usize {
        let mut policy = policy(vec![class("a", priority, 50.0)], 50.0);
        policy.modules[0].work = Some(Duration::from_millis(50));
        let mut rig = Rig::new(&policy);
        let mut now = 0.0;
        for _ in 0..100 {
            let ticket = ticket(rig.ask(0, 1, at(now)).1);
            now += 0.02; // each takes 20 ms alone
            rig.finish(ticket, at(now));
        }
        let held: Vec<_> = (0..10).map(|_| rig.ask(0, 1, at(now)).1).collect();
        held.iter().filter(|decision| matches!(decision, Decision::Admit(_))).count()
    }

    #[test]
    fn work_under_way_is_bounded_but_one_may_always_go() {
        assert_eq!(under_way_at_50_ms_of_work(5), 2, "2 x 20 ms fit");
        assert_eq!(under_way_at_50_ms_of_work(2), 2, "no less for what can wait");
    }

    #[test]
    fn what_operators_need_is_held_back_less_than_what_waits_behind_it() {
        assert_eq!(under_way_at_50_ms_of_work(8), 10, "200 ms of work");
    }

    #[test]
    fn shadow_counts_what_it_would_shed_and_lets_it_through_at_once() {
        let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
        rig.table.classes[0] = ClassLimits { mode: Mode::Shadow, ..rig.table.classes[0] };
        let first = ticket(rig.ask(0, 1, at(0.0)).1);
        let second = ticket(rig.ask(0, 1, at(0.0)).1);
        assert_eq!(second.would_shed, Some(Reason::ClassInFlight));
        rig.finish(first, at(0.1));
        rig.finish(second, at(0.1));
        let counts = rig.gate.counts(ClassId(0));
        assert_eq!((counts.shadow_shed, counts.shed_all(), counts.served), (1, 0, 2));
        assert_eq!(rig.gate.load(ClassId(0)), (0, 0));
    }

    #[test]
    fn a_rate_limited_class_waits_for_its_cell() {
        let mut submit = class("submit", 7, 8.0);
        submit.rate = Some(RateBounds { per_second: Bounds::fixed(2.0), burst: 1 });
        let mut rig = Rig::new(&policy(vec![submit], 8.0));
        let _first = ticket(rig.ask(0, 1, at(0.0)).1);
        let (waiter, _) = rig.ask(0, 1, at(0.0));
        rig.gate.pump(&rig.table, at(0.3), &mut |w, g| rig.woken.borrow_mut().push((w, g)));
        assert!(rig.granted().is_none());
        rig.gate.pump(&rig.table, at(0.51), &mut |w, g| rig.woken.borrow_mut().push((w, g)));
        assert_eq!(rig.granted().unwrap().0, waiter);
    }

    #[test]
    fn what_would_be_turned_away_is_known_before_it_is_sent() {
        let who = |address| Party { address, credential: None };
        let would = |rig: &Rig, address, seconds| {
            rig.gate.would_turn_away(&rig.table, ClassId(0), who(address), at(seconds))
        };
        let reason = |turned: Option<(Reason, Duration)>| turned.map(|(reason, _)| reason);
        let one_an_hour = |len_max, wait_s| {
            let mut submit = class("submit", 7, 8.0);
            submit.rate = Some(RateBounds { per_second: Bounds::fixed(1.0 / 3600.0), burst: 1 });
            submit.queue = Queue { len_max, wait_max: Duration::from_secs(wait_s) };
            Rig::new(&policy(vec![submit], 8.0))
        };
        for (len_max, wait_s) in [(0, 1), (64, 10)] {
            let mut rig = one_an_hour(len_max, wait_s);
            assert_eq!(would(&rig, 1, 0.0), None, "the burst is there");
            let _first = ticket(rig.ask(0, 1, at(0.0)).1);
            let (why, wait) = would(&rig, 1, 0.0).unwrap();
            assert_eq!((why, wait.as_millis().div_ceil(1000)), (Reason::ClassRate, 3600));
            assert_eq!(would(&rig, 1, 3601.0), None, "an hour later");
        }
        let mut rig = one_an_hour(64, 3600);
        let _first = ticket(rig.ask(0, 1, at(0.0)).1);
        assert_eq!(would(&rig, 1, 1.0), None, "worth waiting for");
        let _ = rig.ask(0, 1, at(1.0));
        assert_eq!(reason(would(&rig, 1, 1.0)), Some(Reason::ClassRate), "not behind another");

        let mut without_line = class("a", 5, 1.0);
        without_line.queue.len_max = 0;
        let mut rig = Rig::new(&policy(vec![without_line], 8.0));
        let first = ticket(rig.ask(0, 1, at(0.0)).1);
        assert_eq!(reason(would(&rig, 2, 0.0)), Some(Reason::ClassInFlight));
        rig.finish(first, at(0.1));
        assert_eq!(would(&rig, 2, 0.1), None);
        rig.table.classes[0].mode = Mode::Shadow;
        rig.table.classes[0].in_flight = 0.0;
        assert_eq!(would(&rig, 2, 0.1), None, "nobody is turned away in shadow mode");
    }

    #[test]
    fn retry_after_is_spread() {
        let mut rig = Rig::new(&policy(vec![class("a", 5, 0.0)], 10.0));
        rig.gate.spread(ClassId(0), 10);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            if let Decision::Shed(shed) = rig.ask(0, 1, at(0.0)).1 {
                seen.insert(shed.retry_after_s);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    }

    #[test]
    fn a_successor_goes_on_counting_what_is_under_way() {
        let mut submit = class("submit", 7, 2.0);
        submit.rate = Some(RateBounds { per_second: Bounds::fixed(0.001), burst: 5 });
        let before = policy(vec![submit.clone(), class("gone", 5, 1.0)], 8.0);
        let mut rig = Rig::new(&before);
        let held = ticket(rig.ask(0, 1, at(0.0)).1);
        let mut after = policy(vec![class("new", 5, 1.0), submit.clone()], 8.0);
        after.classes[1].rate = Some(RateBounds { per_second: Bounds::fixed(0.001), burst: 9 });
        let old = std::mem::replace(&mut rig, Rig::new(&after));
        rig.gate = old.gate.succeed(&after, &rig.table, at(1.0));
        assert_eq!(rig.gate.load(ClassId(1)).0, 1, "by name, not by place");
        assert!(
            matches!(rig.ask(1, 1, at(1.0)).1, Decision::Wait(..)),
            "a larger burst is not handed out at once"
        );
        old.finish(held, at(2.0));
        assert_eq!(rig.gate.load(ClassId(1)).0, 0, "given back to the old gate, counted out of both");
    }

    proptest! {
        /// Design 10: a ticket is released exactly once, in-flight never above the limit that
        /// admitted, and nothing is left at the end.
        #[test]
        fn whatever_happens_the_counters_end_at_zero_and_never_exceed_their_limit(
            steps in prop::collection::vec((0u8..6, 0u8..2, 0u64..4, 0u32..6), 1..300),
        ) {
            let mut rig = Rig::new(&policy(vec![class("a", 5, 3.0), class("b", 6, 3.0)], 4.0));
            let mut held: Vec<Ticket> = Vec::new();
            let mut waits: Vec<WaitId> = Vec::new();
            let mut now = 0.0;
            for (step, which, address, limit) in steps {
                now += 0.01;
                match step {
                    0..=2 => match rig.ask(which, address, at(now)).1 {
                        Decision::Admit(ticket) => held.push(ticket),
                        Decision::Wait(id, _) => waits.push(id),
                        Decision::Shed(_) => {}
                    },
                    3 => if let Some(ticket) = held.pop() { rig.finish(ticket, at(now)); },
                    4 => if let Some(id) = waits.pop() { let _ = rig.gate.cancel(id, at(now)); },
                    _ => {
                        let before = rig.gate.load(ClassId(which)).0;
                        rig.table.classes[usize::from(which)].in_flight = f64::from(limit);
                        rig.gate.pump(&rig.table, at(now), &mut |w, g| rig.woken.borrow_mut().push((w, g)));
                        prop_assert!(rig.gate.load(ClassId(which)).0 <= before.max(limit));
                    }
                }
                while let Some((_, ticket)) = rig.granted() {
                    held.push(ticket);
                }
                prop_assert!(rig.gate.module_in_flight(ModuleId(0)) <= 4);
                prop_assert_eq!(held.len(), rig.gate.module_in_flight(ModuleId(0)) as usize);
            }
            for id in waits { let _ = rig.gate.cancel(id, at(now)); }
            while let Some(ticket) = held.pop() {
                rig.finish(ticket, at(now));
                while let Some((_, ticket)) = rig.granted() { held.push(ticket); }
            }
            prop_assert_eq!(rig.gate.waiting(), 0);
            prop_assert_eq!(rig.gate.module_in_flight(ModuleId(0)), 0);
        }

        /// Design 10: at demand below the limit nothing is shed, and nobody waits, whoever asks.
        #[test]
        fn at_demand_below_the_limit_nothing_is_shed(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u32..2000), 1..300),
            limit in 1u8..9,
        ) {
            let mut rig = Rig::new(&policy(vec![class("a", 5, f64::from(limit))], f64::from(limit)));
            let mut held = Vec::new();
            let mut now = 0.0;
            for (arrives, address, pause_ms) in steps {
                now += f64::from(pause_ms) / 1e3;
                if arrives && held.len() < usize::from(limit) {
                    match rig.ask(0, address, at(now)).1 {
                        Decision::Admit(ticket) => held.push(ticket),
                        other => prop_assert!(false, "{other:?} with {} of {limit} under way", held.len()),
                    }
                } else if let Some(ticket) = held.pop() {
                    rig.finish(ticket, at(now));
                }
            }
        }
    }
}
