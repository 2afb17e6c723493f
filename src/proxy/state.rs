//! The proxy's state: the table everybody reads, the admission controller everybody passes, the way to Ray.

use crate::client_body::Budget;
use crate::clock::Clock;
use crate::coalesce::Coalescer;
use crate::connections::Connections;
use crate::id::Ids;
use crate::log_fanout::LogFanouts;
use crate::permit_guard::PermitGuard;
use crate::ratelimit::tally::AnswerCounts;
use crate::routing::Routing;
use crate::sessions::Sessions;
use crate::slow_reader::SlowReaders;
use crate::submitted::SubmittedJobs;
use crate::tasks::Tasks;
use crate::trace::{Note, Passed, TraceSender};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::{Mutex, MutexGuard};
use rayguard_core::admission::controller::{AdmissionController, Ask, Decision, Grant, Permit, Shed};
use rayguard_core::admission::cost::route_of;
use rayguard_core::admission::flow::Flow;
use rayguard_core::admission::meter::{Outcome, Reason};
use rayguard_core::admission::parked::Parked;
use rayguard_core::admission::table::{LimitTable, Mode};
use rayguard_core::event::Via;
use rayguard_core::policy::{Class, ClassId, Kind, Module, Policy, Treatment};
use rayguard_core::request::classify::Match;
use rayguard_core::request::identify::Identifier;
use rayguard_core::time::{Time, duration_from_secs};
use rayguard_core::traffic_trace::Ending;
use rayguard_core::usage::{RequestSummary, Unlisted, Usage, Verdict};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// How often the requests that wait at a proxy that a reload has replaced are looked at.
const PUMP: Duration = Duration::from_millis(20);

/// Single refusals noted for the adjustment log per second; its summaries have them all.
const SHED_NOTES_PER_S: u64 = 20;

/// How a waiter is reached: with a permit of its own, or with the refusal.
pub type Waker = oneshot::Sender<Result<PermitGuard, Shed>>;

/// What a listener needs for one request; swapped whole when the configuration is reloaded, so
/// that no request sees half of one and half of another.
#[derive(Debug)]
pub struct ListenerState {
    /// Limits, counters, identities.
    pub proxy: Arc<ProxyState>,
    /// Routes and upstream.
    pub routing: Arc<Routing>,
}

/// A refusal worth a line in the adjustment log, with the request's id.
#[derive(Clone, Debug)]
pub struct ShedNote {
    /// The request's id.
    pub id: String,
    /// What was refused.
    pub shed: Shed,
    /// The route's pattern.
    pub route: Arc<str>,
    /// Digest of the client's address.
    pub client: u64,
    /// Which way it came.
    pub via: Via,
    /// How long it waited before it was refused.
    pub waited: Duration,
}

/// How many refusals of this second have been noted for the adjustment log.
#[derive(Debug, Default)]
struct ShedNotes(AtomicU64);

impl ShedNotes {
    /// Whether one more is worth a line. Under a flood hardly any is, and then there is nothing to be made of it.
    fn take(&self, now: Time) -> bool {
        let before = now.0 / 1_000_000_000 * (SHED_NOTES_PER_S + 1);
        let one_more = |notes: u64| {
            let notes = notes.max(before);
            (notes < before + SHED_NOTES_PER_S).then_some(notes + 1)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }
}

/// The proxy.
#[derive(Debug)]
pub struct ProxyState {
    /// The policy in force.
    pub policy: Arc<Policy>,
    /// The limits as they stand: one atomic load per request, never held across an await.
    pub table: ArcSwap<LimitTable>,
    /// Counters, clocks and queues.
    pub admission: AdmissionController<Waker>,
    /// Tells which client asks.
    pub identifier: Identifier,
    /// Equal requests under way.
    pub coalescer: Coalescer,
    /// Time.
    pub clock: Clock,
    /// Tasks.
    pub tasks: Tasks,
    /// Refusals for the adjustment log; bounded, and what does not fit is counted by the meters anyway.
    pub sheds: mpsc::Sender<ShedNote>,
    shed_notes: Arc<ShedNotes>,
    /// Ray Client sessions that are alive.
    pub sessions: Sessions,
    /// Jobs that were let in and are not known to have started.
    pub submitted: SubmittedJobs,
    /// Classes that know of each other.
    pub linked: Linked,
    /// Logs that are read as they grow.
    pub tails: LogFanouts,
    /// Clients that are being answered.
    pub readers: SlowReaders,
    /// Transfers that wait for their clients' lines.
    pub parked: Arc<Parked>,
    /// Bytes of short bodies that are being read.
    pub gathered: Arc<Budget>,
    /// Uploads of each class that may stand in its line at once, once they have come whole.
    pub turns: Arc<[Semaphore]>,
    /// Clients that are connected, over every listener.
    pub connections: Arc<Connections>,
    /// The contact for users that every refusal names.
    pub contact: Arc<ArcSwapOption<String>>,
    /// Request ids: unique within a run, and between runs by the prefix.
    pub ids: Arc<Ids>,
    /// Which client asked for what; locked for as long as it takes to count one request.
    usage: Arc<Mutex<Usage>>,
    /// The writer of the traffic trace, if there is one.
    pub trace_writer: Arc<ArcSwapOption<TraceSender>>,
    /// What the rate-limit service has answered.
    pub ratelimit: Arc<AnswerCounts>,
    /// Counts the policies of this run: class and route numbers are this one's.
    pub generation: u32,
    /// The policy and the limits in force, whichever proxy's they are.
    in_force: Arc<ArcSwap<(Arc<Policy>, Arc<LimitTable>)>>,
    /// Whether another proxy has taken its place, and whether a task serves the requests that wait at this one.
    replaced: AtomicBool,
    served_out: AtomicBool,
}

/// Classes that know of each other, by the names the catalogue gives them; `None` where the
/// policy has no such class.
#[derive(Clone, Copy, Debug)]
pub struct Linked {
    /// Submissions: uploads are their first half, and a job that begins changes the list.
    pub submit: Option<ClassId>,
    /// Uploads.
    pub packages: Option<ClassId>,
    /// Stopping and deleting, which change the list too.
    pub control: Option<ClassId>,
    /// New Ray Client sessions.
    pub newcomer: Option<ClassId>,
    /// Calls of Ray Client sessions that are alive.
    pub call: Option<ClassId>,
    /// Ray Client sessions, and those that come back.
    pub sessions: [Option<ClassId>; 2],
}

fn turns(policy: &Policy) -> Arc<[Semaphore]> {
    let of = |class: &Class| Semaphore::new((class.queue.len_max as usize / 2).max(1));
    policy.classes.iter().map(of).collect()
}

impl Linked {
    fn of(policy: &Policy) -> Linked {
        let find = |name: &str| {
            let place = policy.classes.iter().position(|class| &*class.name == name)?;
            u8::try_from(place).ok().map(ClassId)
        };
        Linked {
            submit: find("job-submit"),
            packages: find("packages"),
            control: find("job-control"),
            newcomer: find("ray-client"),
            call: find("ray-client-call"),
            sessions: [find("ray-client-session"), find("ray-client-resume")],
        }
    }
}

impl ListenerState {
    /// A state that may be swapped under live traffic.
    pub fn new(proxy: Arc<ProxyState>, routing: Arc<Routing>) -> Arc<ArcSwap<ListenerState>> {
        Arc::new(ArcSwap::from_pointee(ListenerState { proxy, routing }))
    }
}

impl ProxyState {
    /// A proxy at the policy's initial limits. `sheds` takes the refusals worth a line.
    pub fn new(
        policy: Arc<Policy>,
        identifier: Identifier,
        clock: Clock,
        tasks: Tasks,
        sheds: mpsc::Sender<ShedNote>,
    ) -> Arc<ProxyState> {
        let table = LimitTable::initial(&policy);
        let admission = AdmissionController::new(&policy, &table, clock.now());
        admission.history().set_clock(clock.now(), clock.wall());
        let table = Arc::new(table);
        Arc::new(ProxyState {
            admission,
            in_force: Arc::new(ArcSwap::from_pointee((Arc::clone(&policy), Arc::clone(&table)))),
            table: ArcSwap::from(table),
            linked: Linked::of(&policy),
            turns: turns(&policy),
            usage: Arc::new(Mutex::new(Usage::new(policy.classes.len(), clock.now()))),
            policy,
            identifier,
            coalescer: Coalescer::default(),
            replaced: AtomicBool::default(),
            served_out: AtomicBool::default(),
            tails: LogFanouts::default(),
            readers: SlowReaders::new(clock, tasks.clone()),
            parked: Arc::default(),
            gathered: Arc::default(),
            clock,
            tasks,
            sheds,
            shed_notes: Arc::default(),
            sessions: Sessions::default(),
            submitted: SubmittedJobs::default(),
            connections: Arc::default(),
            contact: Arc::default(),
            ids: Arc::new(Ids::new(clock.wall().0)),
            trace_writer: Arc::default(),
            ratelimit: Arc::default(),
            generation: 0,
        })
    }

    /// The proxy of a new policy, with this one's counters; see [`AdmissionController::reconfigure`].
    pub fn reconfigure(
        self: &Arc<Self>,
        policy: Arc<Policy>,
        identifier: Identifier,
        table: Arc<LimitTable>,
    ) -> Arc<ProxyState> {
        let admission = self.admission.reconfigure(&policy, &table, self.clock.now());
        let names = |policy: &Policy| policy.classes.iter().map(|class| Arc::clone(&class.name)).collect();
        let (old, new): (Vec<_>, Vec<_>) = (names(&self.policy), names(&policy));
        let usage = if old == new {
            Arc::clone(&self.usage)
        } else {
            Arc::new(Mutex::new(Usage::new(new.len(), self.clock.now())))
        };
        self.in_force.store(Arc::new((Arc::clone(&policy), Arc::clone(&table))));
        let lines = |policy: &Policy| policy.classes.iter().map(|class| class.queue.len_max).collect();
        let (before, after): (Vec<_>, Vec<_>) = (lines(&self.policy), lines(&policy));
        let turns = if old == new && before == after { Arc::clone(&self.turns) } else { turns(&policy) };
        self.replaced.store(true, Ordering::SeqCst);
        self.serve_out();
        Arc::new(ProxyState {
            admission,
            usage,
            in_force: Arc::clone(&self.in_force),
            table: ArcSwap::from(table),
            linked: Linked::of(&policy),
            turns,
            policy,
            identifier,
            coalescer: self.coalescer.reconfigure(),
            replaced: AtomicBool::default(),
            served_out: AtomicBool::default(),
            clock: self.clock,
            tasks: self.tasks.clone(),
            sheds: self.sheds.clone(),
            shed_notes: Arc::clone(&self.shed_notes),
            sessions: self.sessions.clone(),
            submitted: Arc::clone(&self.submitted),
            tails: self.tails.clone(),
            readers: self.readers.clone(),
            parked: Arc::clone(&self.parked),
            gathered: Arc::clone(&self.gathered),
            connections: Arc::clone(&self.connections),
            contact: Arc::clone(&self.contact),
            ids: Arc::clone(&self.ids),
            trace_writer: Arc::clone(&self.trace_writer),
            ratelimit: Arc::clone(&self.ratelimit),
            generation: self.generation.wrapping_add(1),
        })
    }

    /// Requests that still wait at a proxy that a reload has replaced, in a line that the new proxy has not taken
    /// over, are served there under the limits in force, until none waits.
    fn serve_out(self: &Arc<Self>) {
        if self.served_out.swap(true, Ordering::SeqCst) {
            return;
        }
        let proxy = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                while proxy.admission.waiting() > 0 {
                    proxy.table.store(proxy.table_in_force());
                    proxy.pump();
                    tokio::time::sleep(PUMP).await;
                }
                proxy.served_out.store(false, Ordering::SeqCst);
                // One may have begun to wait since.
                if proxy.admission.waiting() == 0 || proxy.served_out.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    }

    /// The limits in force, as this proxy's policy numbers them.
    fn table_in_force(&self) -> Arc<LimitTable> {
        let in_force = self.in_force.load();
        Arc::new(in_force.1.under(&in_force.0, &self.policy))
    }

    /// Asks the admission controller, at the time that it is, and, if need be, waits in line. A client that leaves while it waits takes
    /// its place in the line with it.
    pub async fn admit(self: &Arc<Self>, ask: Ask, now: Time) -> Result<PermitGuard, Shed> {
        self.admit_within(ask, Duration::MAX, now).await
    }

    /// The same for one who waits no longer than `patience`, whatever its class allows.
    pub(crate) async fn admit_within(
        self: &Arc<Self>,
        ask: Ask,
        patience: Duration,
        now: Time,
    ) -> Result<PermitGuard, Shed> {
        match self.decide(ask, now) {
            (Decision::Admit(permit), _) => {
                self.record_opening(&permit);
                Ok(PermitGuard::new(Arc::clone(self), permit))
            }
            (Decision::Shed(shed), _) => Err(shed),
            (Decision::Wait(id, deadline), Some(receiver)) => {
                let deadline = deadline.min(now + patience);
                let leaving = Leaving { proxy: self, id, ask, since: now };
                Box::pin(self.wait(leaving, receiver, deadline)).await
            }
            (Decision::Wait(id, _), None) => {
                // The admission controller takes the waiter it was offered whenever it says `Wait`.
                let _ = self.admission.cancel(id, self.clock.now());
                Err(self.admission.refuse(ask.class, Reason::QueueTimeout, Duration::ZERO))
            }
        }
    }

    /// Waits for a turn in line.
    async fn wait(
        self: &Arc<Self>,
        leaving: Leaving<'_>,
        mut receiver: oneshot::Receiver<Result<PermitGuard, Shed>>,
        deadline: Time,
    ) -> Result<PermitGuard, Shed> {
        let (id, class) = (leaving.id, leaving.ask.class);
        let too_late = || self.admission.refuse(class, Reason::QueueTimeout, Duration::ZERO);
        // One that has followed another request may come here late.
        if self.replaced.load(Ordering::SeqCst) {
            self.serve_out();
        }
        let verdict = tokio::select! {
            biased;
            verdict = &mut receiver => Ok(verdict),
            () = tokio::time::sleep_until(self.clock.instant(deadline)) => Err(Reason::QueueTimeout),
            () = self.tasks.last_call() => Err(Reason::Draining),
        };
        std::mem::forget(leaving);
        match verdict {
            Ok(Ok(verdict)) => verdict,
            // Dropped senders do not happen; were one dropped, the head is not at fault.
            Ok(Err(_)) => Err(too_late()),
            Err(reason) => match self.admission.expire(id, reason) {
                Some((_, shed)) => Err(shed),
                // The verdict was on its way when the time was up.
                None => receiver.await.unwrap_or_else(|_| Err(too_late())),
            },
        }
    }

    fn decide(
        self: &Arc<Self>,
        ask: Ask,
        now: Time,
    ) -> (Decision, Option<oneshot::Receiver<Result<PermitGuard, Shed>>>) {
        let mut receiver = None;
        let decision = self.admission.decide(
            &self.table.load(),
            ask,
            now,
            || {
                let (sender, waiting) = oneshot::channel();
                receiver = Some(waiting);
                sender
            },
            &mut |waker, grant| self.wake(waker, grant),
        );
        (decision, receiver)
    }

    /// Gives a permit back and hands its place to the next in line. What no route knows is charged
    /// to its pattern.
    pub fn finish(proxy: &Arc<ProxyState>, permit: Permit, outcome: Outcome, unlisted: Option<&Unlisted>) {
        let (ask, now) = (permit.ask, proxy.clock.now());
        proxy.admission.finish(&proxy.table.load(), permit, outcome, now, &mut |waker, grant| {
            proxy.wake(waker, grant);
        });
        if outcome == Outcome::Failed {
            proxy.usage().fail(ask, unlisted, now);
        }
        let answered = matches!(outcome, Outcome::Served | Outcome::Abandoned);
        if answered && proxy.policy.classes[ask.class.index()].kind == Kind::Unary {
            let work = duration_from_secs(proxy.admission.cost(ask.route));
            proxy.usage().charge(ask, unlisted, work, now);
        }
    }

    /// Counts a request that has been decided on.
    pub fn count(&self, summary: &RequestSummary, verdict: Verdict, now: Time) {
        self.usage().note(summary, verdict, now);
    }

    /// Which client asked for what.
    pub fn usage(&self) -> MutexGuard<'_, Usage> {
        // A panic while counting leaves a count short; the proxy goes on.
        self.usage.lock()
    }

    /// Puts a new table in force and serves the waiting requests that it has room for.
    pub fn set_table(self: &Arc<Self>, table: Arc<LimitTable>) {
        self.in_force.store(Arc::new((Arc::clone(&self.policy), Arc::clone(&table))));
        self.table.store(table);
        self.pump();
    }

    /// Serves the waiting requests that can be served now.
    pub fn pump(self: &Arc<Self>) {
        self.admission
            .pump(&self.table.load(), self.clock.now(), &mut |waker, grant| self.wake(waker, grant));
    }

    /// A waiter that has gone meanwhile drops its permit, which gives it straight back.
    fn wake(self: &Arc<Self>, waker: Waker, grant: Grant) {
        let verdict = match grant {
            Grant::Go(permit) => Ok(PermitGuard::new(Arc::clone(self), permit)),
            Grant::Shed(shed) => Err(shed),
        };
        drop(waker.send(verdict));
    }

    /// Gives the trace writer an exchange that did not pass, or not by itself: it arrived at `since` and
    /// ends now. Lengths: asked, answered.
    pub fn record(&self, ask: Ask, ending: Ending, since: Time, bytes: (u64, u64)) {
        if let Some(trace_writer) = &*self.trace_writer.load() {
            let now = self.clock.now();
            let shared = ending == Ending::Shared;
            let passed = Passed {
                generation: self.generation,
                class: ask.class,
                route: route_of(ask.route),
                client: ask.client,
                ending,
                would_shed: None,
                // Another's answer takes time of Ray's; a refusal only ever waits.
                admitted: if shared { since } else { now },
                waited: if shared { Duration::ZERO } else { now.since(since) },
                asked_bytes: bytes.0,
                answered_bytes: bytes.1,
            };
            trace_writer.note(now, Note::Passed(passed));
        }
    }

    /// The same for one that passed and has ended.
    pub(crate) fn record_end(&self, permit: &Permit, outcome: Outcome, bytes: (u64, u64)) {
        if let Some(trace_writer) = &*self.trace_writer.load() {
            let passed = self.passed(permit, outcome.into(), bytes);
            trace_writer.note(self.clock.now(), Note::Passed(passed));
        }
    }

    /// A connection that is held may outlast the trace: its beginning is a line of its own.
    fn record_opening(&self, permit: &Permit) {
        if self.policy.classes[permit.ask.class.index()].kind == Kind::Held
            && let Some(trace_writer) = &*self.trace_writer.load()
        {
            trace_writer.note(permit.admitted, Note::Opened(self.passed(permit, Ending::Open, (0, 0))));
        }
    }

    fn passed(&self, permit: &Permit, ending: Ending, bytes: (u64, u64)) -> Passed {
        Passed {
            generation: self.generation,
            class: permit.ask.class,
            route: route_of(permit.ask.route),
            client: permit.ask.client,
            ending,
            would_shed: permit.would_shed,
            admitted: permit.admitted,
            waited: permit.waited,
            asked_bytes: bytes.0,
            answered_bytes: bytes.1,
        }
    }

    /// Notes a refusal for the adjustment log, unless this second has had enough of them.
    pub fn note(&self, now: Time, note: impl FnOnce() -> ShedNote) {
        if self.shed_notes.take(now) {
            // A full channel loses the single line, not the count: the meters have it.
            let _ = self.sheds.try_send(note());
        }
    }

    /// Whether a class is in shadow mode, and its bandwidth where that is limited and not in shadow.
    pub(crate) fn conduct(&self, id: ClassId) -> (bool, Option<Arc<Flow>>) {
        let table = self.table.load();
        let shadow = table.class(id).mode == Mode::Shadow;
        (shadow, if shadow { None } else { self.admission.flow(&table, id) })
    }

    /// Whether requests of this class need an API key: those of a class that requires one, and
    /// uploads for submissions that do. Whatever is blocked is blocked for all.
    pub(crate) fn asks_for_key(&self, id: ClassId) -> bool {
        let class = &self.policy.classes[id.index()];
        let submits = || self.linked.submit.is_some_and(|id| self.policy.classes[id.index()].require_key);
        class.treatment != Treatment::Blocked
            && (class.require_key || (Some(id) == self.linked.packages && submits()))
    }

    /// The module that a class's requests are worked on in.
    pub fn module(&self, id: ClassId) -> &Module {
        &self.policy.modules[self.policy.classes[id.index()].module.index()]
    }

    /// The class's name.
    pub fn class_name(&self, id: ClassId) -> &Arc<str> {
        &self.policy.classes[id.index()].name
    }
}

/// Takes a waiter out of the line when its client leaves.
struct Leaving<'a> {
    proxy: &'a Arc<ProxyState>,
    id: rayguard_core::admission::controller::WaitId,
    ask: Ask,
    since: Time,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let now = self.proxy.clock.now();
        drop(self.proxy.admission.cancel(self.id, now));
        self.proxy.usage().leave(self.ask, now);
        self.proxy.record(self.ask, Ending::Left, self.since, (0, 0));
    }
}

/// A request the proxy has recognised.
#[derive(Clone, Copy, Debug)]
pub struct Recognised {
    /// Its class and route.
    pub matched: Match,
    /// What to ask the admission controller.
    pub ask: Ask,
}
