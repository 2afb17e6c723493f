//! The world: clients, proxy, head, metrics and faults on one virtual time line.
//!
//! One heap holds what is scripted (clients, ticks, scrapes, faults), the plant knows what is
//! due in the head; whichever is earlier happens next. The proxy and the loop are the
//! production code, handed virtual time. Everything that happens is a function of scenario,
//! guard and seed: two runs of one seed give the same [`Run`] to the last byte.
//!
//! The network costs nothing here, and so does the proxy itself: a simulation judges decisions,
//! not nanoseconds.

use super::arrivals::{Agent, Group, agents};
use super::baselines::{self, Limiter};
use super::cluster::Brings;
use super::control_loop::{ControlLoop, Job};
use super::exposition::Pages;
use super::faults::{MetricsWeather, Scraped};
use super::head::{Effect, RouteId, Spec};
use super::heap::{EventHeap, Place};
use super::plant::{Demand, Event, Exchange, Plant, Step};
use super::policy::{pin, policy_under};
use super::proxy::{Rid, Sharing, SimProxy};
use super::recovery::Recovery;
use super::rng::Rng;
use super::scenario::{FaultKind, Guard, Retry, Scenario, ScenarioError};
use super::tally::{Ending, FeltTally, GroupTally, Latencies, Second};
use super::timeline::{Motion, Timeline};
use super::trace::Trace;
use rayguard_config::settings::Probe;
use rayguard_core::admission::controller::{Decision, Grant, Permit, WaitId};
use rayguard_core::admission::meter::Outcome;
use rayguard_core::control::job_starts::JobState;
use rayguard_core::policy::ClassId;
use rayguard_core::request::client_id::ClientId;
use rayguard_core::time::{Time, duration_from_secs};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// What a run leaves behind.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Run {
    /// What protected the head.
    pub guard: String,
    /// One per group of clients.
    pub groups: Vec<GroupTally>,
    /// What is drawn.
    pub timeline: Timeline,
    /// The measured part, `[from, to]`, seconds.
    pub measured: [f64; 2],
    /// The head's speed, as a share of what its scenario says.
    pub capacity: f64,
    /// Work that could have been done in the measured part, milliseconds of service: second by
    /// second what was asked for (further attempts not counted) or what the head could do,
    /// whichever is less.
    pub possible_ms: f64,
    /// Work done in time for a client, milliseconds of service, in the measured part.
    pub useful_ms: f64,
    /// Work that no client waited for.
    pub wasted_ms: f64,
    /// Requests that reached the head, by route, in the measured part.
    pub upstream: BTreeMap<String, u64>,
    /// How the watched limit moved.
    pub motion: Motion,
    /// How long after the last disturbance every polite group was served again.
    pub recovery: Recovery,
    /// The watched class in the late half of the measured part: exchanges that ended, and how
    /// many of them within its objective.
    pub within: (u64, u64),
    /// What the cluster's own work felt.
    pub felt: FeltTally,
    /// The head's memory in use at its highest, as a share of what there is.
    pub memory_max: f64,
    /// How often the head ran out of memory and was restarted.
    pub out_of_memory: u32,
    /// How often a limit of any class was lowered in the measured part.
    pub cuts: u64,
    /// Simulated requests, attempts and shared ones included.
    pub requests: u64,
}

/// Traces by the name under which a scenario asks for them.
pub type Traces = BTreeMap<String, Arc<Trace>>;

/// How often a waiting queue is looked after, as in production.
const PUMP: Duration = Duration::from_millis(20);
/// After so long a refused connection is known to be one.
const REFUSAL_TAKES: Duration = Duration::from_millis(1);
/// What a scrape takes on a healthy head.
const SCRAPE_TAKES: Duration = Duration::from_millis(30);
/// Tags of the plant from here on are probes.
const PROBES: u64 = 1 << 63;

#[derive(Debug)]
enum Happening {
    Wake(u32),
    /// The time of the first in a line of clocks is up.
    TimeUp(Clock),
    Again(Box<Retried>),
    /// A deadline that came out of turn.
    Deadline(Rid),
    Leave(Rid),
    Pump,
    Tick,
    Second,
    Scrape,
    /// Prometheus scrapes the head.
    Prometheus,
    /// The head has refused the connection of this request.
    Unconnected(Rid),
    Scraped(Box<(Scraped, Time)>),
    Probe,
    ProbeTimeout(u64),
    /// A job is asked whether it has started.
    AskJob,
    Fault(usize),
    FaultEnds(usize),
}

/// A demand on its way to another attempt.
#[derive(Clone, Copy, Debug)]
struct Retried {
    agent: u32,
    group: u16,
    route: RouteId,
    size: f64,
    client: ClientId,
    lasts: Option<Duration>,
    follows: bool,
    attempt: u32,
    first_sent: Time,
}

#[derive(Debug)]
struct Request {
    generation: u32,
    demand: Retried,
    sent: Time,
    cost_ms: f64,
    stage: Stage,
    /// The client is still there and has no answer yet.
    client: bool,
}

#[derive(Debug)]
enum Stage {
    Free,
    Shares,
    Waits(WaitId, u32),
    Upstream { exchange: Option<Exchange>, permit: Option<(Permit, u32)>, admitted: Time },
}

/// Whose time is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Clock {
    /// That of a group's clients until they give up.
    Patience(u16),
    /// That of a class's waiters until they are told.
    Queue(u8),
}

/// When the time of those is up who are all given as long: it ends in the order in which they came,
/// and the heap need know of the first alone.
#[derive(Debug, Default)]
struct TimeoutQueue {
    ends: VecDeque<(Time, Place, Rid)>,
    /// The heap knows of the first.
    armed: bool,
}

/// One run under way.
pub struct World<'a> {
    scenario: &'a Scenario,
    end: Time,
    measure: (Time, Time),
    now: Time,
    plant: Plant,
    events: Vec<Event>,
    proxy: Option<SimProxy>,
    guard: Guard,
    /// Signals that no class follows.
    without: Vec<String>,
    /// The watched class's concurrency is held here.
    pinned: Option<f64>,
    baseline: Option<Box<dyn Limiter>>,
    baseline_in_flight: u32,
    control_loop: Option<ControlLoop>,
    watched: ClassId,
    groups: Vec<Group>,
    /// How long the clients of each group wait.
    patience: Vec<Duration>,
    /// When each group's clients give up, and each class's waiters are told.
    patience_ends: Vec<TimeoutQueue>,
    queue_ends: Vec<TimeoutQueue>,
    agents: Vec<Agent>,
    requests: Vec<Request>,
    free: Vec<u32>,
    /// When each module last let something of each priority in.
    let_in: Vec<[Time; 10]>,
    heap: EventHeap<Happening>,
    pages: Pages,
    weather: MetricsWeather,
    capacity: f64,
    /// The part of it that a fault has left.
    capacity_left: f64,
    /// Servers there are, as a share of those there were.
    servers: f64,
    /// Work asked for in this second.
    asked_ms: f64,
    scrape_every: Duration,
    /// What Prometheus read last, and when.
    stored: Option<(String, String, Time)>,
    paused: bool,
    /// The head refuses connections.
    refuses: bool,
    /// The capacity's way to where a fault takes it: from, to, since, over seconds.
    drift: Option<(f64, f64, Time, f64)>,
    /// Submissions whose job has not ended: whose they are, and when they were first sent.
    jobs: BTreeMap<Rid, (u16, Time)>,
    probe: Option<Probe>,
    wall_offset_s: f64,
    probes: BTreeMap<u64, Time>,
    probe_next: u64,
    /// The job that is being asked for its state, since when, and the number of the question.
    asked: Option<(u64, Job, Time)>,
    /// Submissions whose job has not started, and how often the head has forgotten all jobs.
    starting: BTreeSet<Rid>,
    head_life: u32,
    pumping: bool,
    run: Run,
    /// The number of each polite group among them.
    polite: Vec<Option<usize>>,
    onlooker: Onlooker<'a>,
    /// Requests that reached the head in the measured part, by route.
    upstream: Vec<u64>,
    second: Second,
    /// Of what was served in this second.
    latencies: Latencies,
}

/// Who looks at a run while it goes on.
#[derive(Default)]
pub struct Onlooker<'a> {
    /// Where the adjustment log goes: one line of JSON per event of the loop and per second. A record that
    /// cannot be written ends there; the writer knows why.
    pub adjustment_log: Option<&'a mut dyn Write>,
    /// Called after each second of virtual time.
    pub step: Option<&'a dyn Fn()>,
}

/// What a run meets that its scenario does not say: the head it really is, and how well it is seen.
#[derive(Clone, PartialEq, Debug)]
pub struct Conditions {
    /// The head.
    pub spec: Spec,
    /// Speed of all its processes, as a share of what is specified.
    pub capacity: f64,
    /// Seconds between two scrapes.
    pub scrape_s: f64,
    /// Share of scrapes that are lost, 0..1.
    pub scrapes_lost: f64,
    /// Deviation of the logarithm of every gauge scraped.
    pub noise: f64,
    /// Signals that no class follows.
    pub without: Vec<String>,
    /// The watched class's concurrency is held here.
    pub pinned: Option<f64>,
}

impl Conditions {
    /// As the scenario says.
    #[must_use]
    pub fn of(scenario: &Scenario) -> Conditions {
        Conditions {
            spec: scenario.spec(),
            capacity: 1.0,
            scrape_s: scenario.scrape_s,
            scrapes_lost: 0.0,
            noise: 0.0,
            without: Vec::new(),
            pinned: None,
        }
    }
}

/// Runs a scenario under a guard.
///
/// # Errors
/// The scenario cannot be run: its configuration is wrong or a trace is missing.
pub fn run(scenario: &Scenario, guard: Guard, seed: u64, traces: &Traces) -> Result<Run, ScenarioError> {
    run_under(scenario, Conditions::of(scenario), guard, seed, traces, Onlooker::default())
}

/// Runs a scenario on another head than its own, or one that is seen less well, and tells an
/// onlooker of it as it goes.
///
/// # Errors
/// As [`run`].
pub fn run_under<'a>(
    scenario: &'a Scenario,
    conditions: Conditions,
    guard: Guard,
    seed: u64,
    traces: &Traces,
    onlooker: Onlooker<'a>,
) -> Result<Run, ScenarioError> {
    let mut world = World::new(scenario, conditions, guard, seed, traces)?;
    world.onlooker = onlooker;
    world.live();
    let routes = world.plant.spec().routes.iter().zip(&world.upstream);
    let reached = routes.filter(|(_, count)| **count > 0);
    world.run.upstream = reached.map(|(route, count)| (route.name.to_owned(), *count)).collect();
    Ok(world.run)
}

/// Runs a scenario with something wrong in its loop.
#[cfg(test)]
pub(super) fn run_defective(
    scenario: &Scenario,
    guard: Guard,
    seed: u64,
    defect: super::defects_tests::Defect,
) -> Result<Run, ScenarioError> {
    let mut world = World::new(scenario, Conditions::of(scenario), guard, seed, &Traces::new())?;
    if let Some(control_loop) = &mut world.control_loop {
        control_loop.defect = Some(defect);
    }
    world.live();
    Ok(world.run)
}

/// Runs a scenario behind a limiter of the caller's.
#[cfg(test)]
pub(super) fn run_behind(
    scenario: &Scenario,
    limiter: Box<dyn Limiter>,
    seed: u64,
) -> Result<Run, ScenarioError> {
    let mut world = World::new(scenario, Conditions::of(scenario), Guard::Off, seed, &Traces::new())?;
    world.baseline = Some(limiter);
    world.live();
    Ok(world.run)
}

impl<'a> World<'a> {
    fn new(
        scenario: &'a Scenario,
        conditions: Conditions,
        guard: Guard,
        seed: u64,
        traces: &Traces,
    ) -> Result<World<'a>, ScenarioError> {
        let Conditions { spec, capacity, scrape_s, scrapes_lost, noise, without, pinned } = conditions;
        let upstream = vec![0; spec.routes.len()];
        let end = Time::from_secs_f64(scenario.seconds);
        let [from, to] = scenario.measure.unwrap_or([0.0, scenario.seconds]);
        let controlled = matches!(guard, Guard::Rayguard | Guard::NoOuter | Guard::NoInner);
        let policy = |config: &str| scenario.policy_of(config).map(|(policy, _)| policy);
        let proxy = (controlled || guard == Guard::Still).then(|| {
            let mut policy = policy_under(&*policy(&scenario.config)?, guard, &without);
            if let Some(limit) = pinned {
                pin(&mut policy, &scenario.watch, limit);
            }
            let policy = Arc::new(policy);
            SimProxy::new(scenario, policy, &spec, Time::ZERO)
        });
        let mut proxy = proxy.transpose()?;
        let watched = proxy.as_ref().map_or(Ok(ClassId(0)), |proxy| watched(proxy, &scenario.watch))?;
        let control_loop =
            proxy.as_mut().filter(|_| controlled).map(|proxy| ControlLoop::new(proxy, &[], Time::ZERO));
        let mut world = World {
            scenario,
            end,
            measure: (Time::from_secs_f64(from), Time::from_secs_f64(to)),
            now: Time::ZERO,
            plant: Plant::new(spec, seed),
            events: Vec::new(),
            proxy,
            guard,
            without,
            pinned,
            baseline: baseline(guard),
            baseline_in_flight: 0,
            control_loop,
            watched,
            groups: Vec::new(),
            patience: Vec::new(),
            patience_ends: Vec::new(),
            queue_ends: (0..=u8::MAX).map(|_| TimeoutQueue::default()).collect(),
            agents: Vec::new(),
            requests: Vec::new(),
            free: Vec::new(),
            let_in: Vec::new(),
            heap: EventHeap::default(),
            pages: Pages::default(),
            weather: MetricsWeather::new(scrapes_lost, noise, Rng::new(seed, 0x5c7a)),
            capacity,
            capacity_left: 1.0,
            servers: 1.0,
            asked_ms: 0.0,
            scrape_every: duration_from_secs(scrape_s),
            stored: None,
            paused: false,
            refuses: false,
            drift: None,
            jobs: BTreeMap::new(),
            probe: scenario.probe(),
            wall_offset_s: 0.0,
            probes: BTreeMap::new(),
            probe_next: PROBES,
            asked: None,
            starting: BTreeSet::new(),
            head_life: 0,
            pumping: false,
            run: Run {
                guard: guard.label(),
                measured: [from, to],
                capacity,
                timeline: Timeline::new([from, to]),
                motion: Motion::new([from, to]),
                ..Run::default()
            },
            polite: Vec::new(),
            onlooker: Onlooker::default(),
            upstream,
            second: Second::default(),
            latencies: Latencies::default(),
        };
        world.plant.set_capacity(Time::ZERO, capacity);
        world.people(seed, traces)?;
        world.clocks();
        Ok(world)
    }

    fn people(&mut self, seed: u64, traces: &Traces) -> Result<(), ScenarioError> {
        for (at, client) in self.scenario.client.iter().enumerate() {
            let trace = match client.trace.as_str() {
                "" => None,
                name => Some(traces.get(name).ok_or_else(|| {
                    ScenarioError::Impossible(format!("client `{}`: there is no trace `{name}`", client.name))
                })?),
            };
            let cut = trace.map(|trace| Arc::new(trace.cut(client)));
            let mut group = Group::new(at, client, seed, self.end);
            let number = u16::try_from(at).unwrap_or(u16::MAX);
            for (when, agent) in agents(number, &mut group, self.plant.spec(), cut) {
                let id = u32::try_from(self.agents.len()).unwrap_or(u32::MAX);
                self.agents.push(agent);
                self.heap.push(when.0, Happening::Wake(id));
            }
            self.groups.push(group);
            self.patience.push(duration_from_secs(client.timeout_s));
            self.patience_ends.push(TimeoutQueue::default());
            self.run.groups.push(GroupTally::new(&client.name, client.polite));
            let polite = self.polite.iter().flatten().count();
            self.polite.push(client.polite.then_some(polite));
        }
        self.run.recovery = Recovery::new(self.scenario.calm_from_s(), self.polite.iter().flatten().count());
        Ok(())
    }

    fn clocks(&mut self) {
        self.heap.push(Time::from_secs_f64(1.0).0, Happening::Second);
        if let Some(control_loop) = &self.control_loop {
            self.heap.push((Time::ZERO + control_loop.period()).0, Happening::Tick);
            self.heap.push((Time::ZERO + ControlLoop::scrape_phase(self.scrape_every)).0, Happening::Scrape);
            if let Some(every) = self.scenario.prometheus_s {
                self.heap.push(Time::from_secs_f64(0.61 * every).0, Happening::Prometheus);
            }
            if let (Some(probe), Some(_)) = (&self.probe, self.plant.spec().route("gcs-healthz")) {
                self.heap.push((Time::ZERO + probe.interval).0, Happening::Probe);
            }
            if let (Some(probe), Some(_)) = (&self.probe, self.plant.spec().route("job-status")) {
                self.heap.push((Time::ZERO + probe.interval.mul_f64(0.43)).0, Happening::AskJob);
            }
        }
        for (at, fault) in self.scenario.fault.iter().enumerate() {
            self.heap.push(Time::from_secs_f64(fault.at_s).0, Happening::Fault(at));
            if let (Some(length), Some(every)) = (fault.for_s, fault.every_s) {
                let mut passed = every;
                while passed < length {
                    self.heap.push(Time::from_secs_f64(fault.at_s + passed).0, Happening::Fault(at));
                    passed += every;
                }
            } else if let Some(length) = fault.for_s {
                self.heap.push(Time::from_secs_f64(fault.at_s + length).0, Happening::FaultEnds(at));
            }
        }
    }

    fn live(&mut self) {
        loop {
            let scripted = self.heap.next_key().unwrap_or(u64::MAX);
            let due = self.plant.next_event().map_or(u64::MAX, |at| at.0);
            let next = Time(scripted.min(due));
            if next > self.end {
                break;
            }
            self.now = next;
            if due <= scripted {
                let mut events = std::mem::take(&mut self.events);
                self.plant.advance(next, &mut events);
                for event in events.drain(..) {
                    self.answered(&event);
                }
                self.events = events;
            } else if let Some((_, happening)) = self.heap.pop() {
                self.happen(happening);
            }
            self.tell_woken();
        }
        self.leave_open();
        self.run.recovery.end(whole_seconds(self.end));
    }

    /// Whose client has neither an answer nor given up when the run ends has not been decided: it counts as not asked.
    fn leave_open(&mut self) {
        let demands = self.requests.iter().filter(|request| request.client).map(|request| request.demand);
        let open: Vec<Retried> = demands.filter(|demand| self.measured(demand.first_sent)).collect();
        for demand in open {
            self.run.groups[usize::from(demand.group)].withdraw(demand.client.address);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(agent) => self.wake(agent),
            Happening::TimeUp(clock) => self.time_up(clock),
            Happening::Again(demand) => self.send(*demand),
            Happening::Deadline(rid) => self.queue_deadline(rid),
            Happening::Leave(rid) => self.leave(rid),
            Happening::Pump => self.pump(),
            Happening::Tick => self.tick(),
            Happening::Second => self.close_second(),
            Happening::Scrape => self.scrape(),
            Happening::Prometheus => self.prometheus(),
            Happening::Unconnected(rid) => {
                if self.alive(rid) {
                    self.finished(rid, 502);
                }
            }
            Happening::Scraped(scraped) => {
                let (pages, began) = *scraped;
                if let (Some(control_loop), false) = (&mut self.control_loop, self.paused) {
                    control_loop.on_scrape(&pages, began, self.now, self.wall_offset_s);
                }
            }
            Happening::Probe => self.probe(),
            Happening::ProbeTimeout(tag) => {
                if let (Some(began), Some(control_loop)) = (self.probes.remove(&tag), &mut self.control_loop)
                {
                    let waited = self.now.since(began);
                    control_loop.on_probe(Some(waited.as_secs_f64() * 1e3), began, self.now);
                }
            }
            Happening::AskJob => self.ask_job(),
            Happening::Fault(at) => self.fault(at),
            Happening::FaultEnds(at) => self.fault_ends(at),
        }
    }

    // --- clients ---------------------------------------------------------------------------

    fn wake(&mut self, id: u32) {
        let agent = &mut self.agents[id as usize];
        let number = agent.group;
        let wish = agent.wake(self.now, &mut self.groups[usize::from(number)]);
        if let Some(again) = wish.again {
            self.heap.push(again.0, Happening::Wake(id));
        }
        if let Some(route) = wish.route {
            self.send(Retried {
                agent: id,
                group: number,
                route,
                size: wish.size,
                client: wish.client,
                lasts: wish.lasts,
                follows: wish.follows,
                attempt: 1,
                first_sent: self.now,
            });
        }
    }

    fn send(&mut self, demand: Retried) {
        self.run.requests += 1;
        self.second.offered += 1;
        let measured = self.measured(demand.first_sent);
        let tally = &mut self.run.groups[usize::from(demand.group)];
        if measured {
            tally.attempt(demand.attempt == 1, demand.client.address);
        }
        if demand.attempt == 1 {
            if let Some(polite) = self.polite[usize::from(demand.group)] {
                self.run.recovery.send(polite, self.now);
            }
            self.asked_ms += self.plant.cost_ms(demand.route, demand.size);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.requests.push(Request::vacant(demand));
            u32::try_from(self.requests.len() - 1).unwrap_or(u32::MAX)
        });
        let request = &mut self.requests[slot as usize];
        request.demand = demand;
        request.sent = self.now;
        request.client = true;
        let rid = u64::from(request.generation) << 32 | u64::from(slot);
        let end = self.now + self.patience[usize::from(demand.group)];
        self.set(Clock::Patience(demand.group), end, rid);
        self.knock(rid);
    }

    fn line(&mut self, clock: Clock) -> &mut TimeoutQueue {
        match clock {
            Clock::Patience(group) => &mut self.patience_ends[usize::from(group)],
            Clock::Queue(class) => &mut self.queue_ends[usize::from(class)],
        }
    }

    /// Whether it still matters to this request.
    fn runs(&self, clock: Clock, rid: Rid) -> bool {
        let waits = || matches!(self.request(rid).stage, Stage::Waits(..));
        self.alive(rid) && (matches!(clock, Clock::Patience(_)) || waits())
    }

    /// Sets a request's clock.
    fn set(&mut self, clock: Clock, end: Time, rid: Rid) {
        let place = self.heap.reserve();
        let line = self.line(clock);
        if line.ends.back().is_some_and(|(last, _, _)| *last > end) {
            // A reload has made waits shorter.
            self.heap.push_at(end.0, place, Happening::Deadline(rid));
            return;
        }
        line.ends.push_back((end, place, rid));
        if !line.armed {
            self.arm(clock);
        }
    }

    /// Has the heap wake us when the time of the first to whom it still matters is up.
    fn arm(&mut self, clock: Clock) {
        let mut ends = std::mem::take(&mut self.line(clock).ends);
        while ends.front().is_some_and(|(_, _, rid)| !self.runs(clock, *rid)) {
            ends.pop_front();
        }
        if let Some((at, place, _)) = ends.front() {
            self.heap.push_at(at.0, *place, Happening::TimeUp(clock));
        }
        let line = self.line(clock);
        line.armed = !ends.is_empty();
        line.ends = ends;
    }

    fn time_up(&mut self, clock: Clock) {
        if let Some((_, _, rid)) = self.line(clock).ends.pop_front() {
            match clock {
                Clock::Patience(_) => self.give_up(rid),
                Clock::Queue(_) => self.queue_deadline(rid),
            }
        }
        self.arm(clock);
    }

    /// At the proxy.
    fn knock(&mut self, rid: Rid) {
        let Retried { route, client, follows, group, .. } = self.request(rid).demand;
        let unique = self.groups[usize::from(group)].spec.unique;
        if let Some(proxy) = &mut self.proxy {
            let sharing =
                if unique { Sharing::Alone } else { proxy.share(route, client, rid, follows, self.now) };
            match sharing {
                Sharing::Alone => {}
                Sharing::Follows => {
                    self.request_mut(rid).stage = Stage::Shares;
                    return;
                }
                Sharing::Answered => {
                    self.resolve(rid, Ending::Served);
                    self.release(rid);
                    return;
                }
            }
            match proxy.decide(route, client, rid, self.now) {
                Decision::Admit(permit) => {
                    let life = proxy.life;
                    self.forward(rid, Some((permit, life)));
                }
                Decision::Wait(id, deadline) => {
                    let (life, class) = (proxy.life, proxy.class(route));
                    self.request_mut(rid).stage = Stage::Waits(id, life);
                    let demand = self.request(rid).demand;
                    if self.measured(demand.first_sent) {
                        self.run.groups[usize::from(demand.group)].waited += 1;
                    }
                    self.set(Clock::Queue(class.0), deadline, rid);
                    self.keep_pumping();
                }
                Decision::Shed(shed) => self.refused(rid, shed.retry_after_s),
            }
        } else if let Some(baseline) = &mut self.baseline {
            if baseline.admit(self.now, self.baseline_in_flight) {
                self.baseline_in_flight += 1;
                self.forward(rid, None);
            } else {
                self.resolve(rid, Ending::Shed { retry_after_s: 1 });
                self.release(rid);
            }
        } else {
            self.forward(rid, None);
        }
    }

    fn forward(&mut self, rid: Rid, permit: Option<(Permit, u32)>) {
        let now = self.now;
        let demand = self.request(rid).demand;
        if let Some(proxy) = &self.proxy {
            let class = &proxy.policy.classes[proxy.class(demand.route).index()];
            let (module, priority) = (class.module.index(), usize::from(class.priority.0.min(9)));
            if self.let_in.len() <= module {
                self.let_in.resize(module + 1, [Time::ZERO; 10]);
            }
            self.let_in[module][priority] = now;
        }
        let spec = &self.groups[usize::from(demand.group)].spec;
        let lasts = demand.lasts.or(spec.lasts_s.map(duration_from_secs));
        let cost_ms = self.plant.cost_ms(demand.route, demand.size);
        let brings = Brings { tasks: spec.tasks, task_s: spec.task_s, infeasible: spec.infeasible };
        let asked = Demand { size: demand.size, lasts, brings, ..Demand::of(rid, demand.route) };
        if self.refuses {
            self.heap.push((now + REFUSAL_TAKES).0, Happening::Unconnected(rid));
            let request = self.request_mut(rid);
            request.cost_ms = 0.0;
            request.stage = Stage::Upstream { exchange: None, permit, admitted: now };
            return;
        }
        let exchange = Some(self.plant.arrive(now, &asked));
        if self.measured(now) {
            self.upstream[demand.route.index()] += 1;
        }
        let request = self.request_mut(rid);
        request.cost_ms = cost_ms;
        request.stage = Stage::Upstream { exchange, permit, admitted: now };
    }

    fn refused(&mut self, rid: Rid, retry_after_s: u32) {
        self.note_inversion(rid);
        self.pass_lead_on(rid);
        self.resolve(rid, Ending::Shed { retry_after_s });
        self.release(rid);
    }

    /// Was something less urgent let into this request's module while it was here?
    fn note_inversion(&mut self, rid: Rid) {
        let Some(proxy) = &self.proxy else { return };
        let Request { demand, sent, .. } = self.request(rid);
        let (demand, sent) = (*demand, *sent);
        let class = &proxy.policy.classes[proxy.class(demand.route).index()];
        let priority = usize::from(class.priority.0.min(9));
        let passed = self
            .let_in
            .get(class.module.index())
            .is_some_and(|last| last[..priority].iter().any(|at| *at > sent));
        if passed && self.measured(demand.first_sent) {
            self.run.groups[usize::from(demand.group)].inverted += 1;
        }
    }

    /// A leader that gets no answer leaves its followers to ask for themselves.
    fn pass_lead_on(&mut self, rid: Rid) {
        let Retried { route, client, .. } = self.request(rid).demand;
        let Some(proxy) = &mut self.proxy else { return };
        for follower in proxy.unshare(route, client, rid, false, self.now) {
            if self.alive(follower) && self.request(follower).client {
                self.knock(follower);
            }
        }
    }

    fn give_up(&mut self, rid: Rid) {
        if !self.alive(rid) || !self.request(rid).client {
            return;
        }
        let Retried { route, client, .. } = self.request(rid).demand;
        self.resolve(rid, Ending::TimedOut);
        let request = &self.requests[slot_of(rid)];
        match request.stage {
            Stage::Upstream { exchange: Some(exchange), .. } => {
                if let Some(wasted_ms) = self.plant.hang_up(self.now, exchange) {
                    self.run.wasted_ms += if self.measured(self.now) { wasted_ms } else { 0.0 };
                    self.give_back(rid, Outcome::Cancelled);
                    self.release(rid);
                }
            }
            Stage::Waits(id, life) => {
                let Some(proxy) = &mut self.proxy else { return };
                if !proxy.is_followed(route, client, rid) && proxy.cancel(id, life, self.now) {
                    proxy.unshare(route, client, rid, false, self.now);
                    self.release(rid);
                }
            }
            Stage::Shares => self.release(rid),
            Stage::Free | Stage::Upstream { .. } => {}
        }
    }

    fn queue_deadline(&mut self, rid: Rid) {
        if !self.alive(rid) {
            return;
        }
        if let (Stage::Waits(id, life), Some(proxy)) = (&self.requests[slot_of(rid)].stage, &mut self.proxy)
            && let Some(shed) = proxy.expire(*id, *life)
        {
            self.refused(rid, shed.retry_after_s);
        }
    }

    /// A tail's reader leaves.
    fn leave(&mut self, rid: Rid) {
        if self.alive(rid)
            && let Stage::Upstream { exchange: Some(exchange), .. } = self.request(rid).stage
        {
            _ = self.plant.hang_up(self.now, exchange);
        }
    }

    /// A client has its answer, its refusal, or has given up.
    fn resolve(&mut self, rid: Rid, ending: Ending) {
        let now = self.now;
        let request = self.request_mut(rid);
        if !std::mem::replace(&mut request.client, false) {
            return;
        }
        let (demand, sent) = (request.demand, request.sent);
        let measured = self.measured(demand.first_sent);
        let group = &mut self.groups[usize::from(demand.group)];
        let spec = &group.spec;
        let (retry, attempts) = (spec.retry, spec.attempts);
        let again = match (ending, retry) {
            (Ending::Served, _) | (_, Retry::Never) => None,
            _ if demand.attempt >= attempts => None,
            (Ending::Shed { retry_after_s }, Retry::Obedient) => {
                Some(f64::from(retry_after_s) + group.rng().uniform())
            }
            (_, Retry::Obedient) => Some(1.0),
            (_, Retry::Storm) => Some(group.rng().between(0.0, 0.1)),
        };
        self.second.note(ending);
        if ending == Ending::Served {
            self.latencies.record(now.since(sent));
        }
        if measured {
            let tally = &mut self.run.groups[usize::from(demand.group)];
            tally.end(ending, now.since(sent), demand.client.address);
        }
        let is_calm = |[from, to]: [f64; 2]| (from..to).contains(&demand.first_sent.as_secs_f64());
        if ending == Ending::Served && self.scenario.calm.is_some_and(is_calm) {
            self.run.groups[usize::from(demand.group)].calm(now.since(sent));
        }
        if let (Some(polite), None) = (self.polite[usize::from(demand.group)], again) {
            self.run.recovery.settle(polite, demand.first_sent, ending == Ending::Served);
        }
        if let Some(wait) = again {
            let next = Retried { attempt: demand.attempt + 1, ..demand };
            self.heap.push((now + duration_from_secs(wait)).0, Happening::Again(Box::new(next)));
        } else if let Some(when) = self.agents[demand.agent as usize].settled(now, ending == Ending::Served) {
            self.heap.push(when.0, Happening::Wake(demand.agent));
        }
    }

    // --- the head's side -------------------------------------------------------------------

    fn answered(&mut self, event: &Event) {
        if event.tag >= PROBES {
            if let Some((_, job, _)) = self.asked.take_if(|(tag, ..)| *tag == event.tag) {
                return self.job_answered(job, event.step == Step::Answered(200));
            }
            if let (Some(began), Some(control_loop)) =
                (self.probes.remove(&event.tag), &mut self.control_loop)
            {
                let latency = event.at.since(began).as_secs_f64() * 1e3;
                let ok = event.step == Step::Answered(200);
                control_loop.on_probe(ok.then_some(latency), began, self.now);
            }
            return;
        }
        let rid = event.tag;
        if matches!(event.step, Step::Begun | Step::Done) {
            return self.job_went_on(rid, event.step);
        }
        if !self.alive(rid) {
            return;
        }
        match event.step {
            Step::Begun | Step::Done => {}
            Step::Opened => {
                self.resolve(rid, Ending::Served);
                let group = usize::from(self.request(rid).demand.group);
                if let Some(stay) = self.groups[group].spec.stay_s {
                    self.heap.push((self.now + duration_from_secs(stay)).0, Happening::Leave(rid));
                }
            }
            Step::Closed => {
                self.give_back(rid, Outcome::Served);
                self.resolve(rid, Ending::Failed);
                self.release(rid);
            }
            Step::Answered(status) => self.finished(rid, status),
        }
    }

    fn finished(&mut self, rid: Rid, status: u16) {
        let request = self.request(rid);
        let (demand, client, cost_ms) = (request.demand, request.client, request.cost_ms);
        let ok = status < 400;
        let latency = match request.stage {
            Stage::Upstream { admitted, .. } => self.now.since(admitted),
            _ => Duration::ZERO,
        };
        let followers = match &mut self.proxy {
            Some(proxy) => proxy.unshare(demand.route, demand.client, rid, ok, self.now),
            None => Vec::new(),
        };
        let followers: Vec<Rid> =
            followers.into_iter().filter(|rid| self.alive(*rid) && self.request(*rid).client).collect();
        let wanted = client || !followers.is_empty();
        let submits = self.plant.spec().routes[demand.route.index()].effect == Effect::Submit;
        if ok && client && submits && self.measured(demand.first_sent) {
            self.jobs.insert(rid, (demand.group, demand.first_sent));
        }
        if ok && submits {
            self.starting.insert(rid);
            if let Some(control_loop) = &mut self.control_loop {
                control_loop.on_submitted((self.head_life, rid), self.now);
            }
        }
        let outcome = match (wanted, status < 500) {
            (_, false) => Outcome::Failed,
            (true, true) => Outcome::Served,
            (false, true) => Outcome::Abandoned,
        };
        if self.measured(self.now) {
            if wanted && ok {
                self.run.useful_ms += cost_ms;
            } else {
                self.run.wasted_ms += cost_ms;
            }
            self.run.groups[usize::from(demand.group)].upstream(latency);
        }
        self.second.finished += 1;
        self.note_objective(demand.route, latency);
        self.give_back(rid, outcome);
        let ending = if ok { Ending::Served } else { Ending::Failed };
        for follower in followers {
            self.resolve(follower, ending);
            self.release(follower);
        }
        self.resolve(rid, ending);
        self.release(rid);
    }

    /// The job of a submission has started, or is done.
    fn job_went_on(&mut self, rid: Rid, step: Step) {
        self.starting.remove(&rid);
        let Some((group, sent)) = self.jobs.get(&rid).copied() else { return };
        let tally = &mut self.run.groups[usize::from(group)];
        if step == Step::Begun {
            tally.begun(self.now.since(sent));
        } else {
            tally.done(self.now.since(sent));
            self.jobs.remove(&rid);
        }
    }

    /// Whether an exchange of the watched class kept its objective.
    fn note_objective(&mut self, route: RouteId, latency: Duration) {
        let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.class(route) == self.watched) else {
            return;
        };
        let [from, to] = self.run.measured;
        if (f64::midpoint(from, to)..to).contains(&self.now.as_secs_f64()) {
            self.run.within.0 += 1;
            self.run.within.1 += u64::from(latency <= proxy.policy.classes[self.watched.index()].slo.latency);
        }
    }

    fn give_back(&mut self, rid: Rid, outcome: Outcome) {
        let now = self.now;
        let request = &mut self.requests[slot_of(rid)];
        let Stage::Upstream { permit, admitted, .. } = &mut request.stage else { return };
        let latency = now.since(*admitted);
        match (permit.take(), &mut self.proxy, &mut self.baseline) {
            (Some((permit, life)), Some(proxy), _) => proxy.finish(permit, life, outcome, now),
            (_, _, Some(baseline)) => {
                baseline.finish(now, latency, self.baseline_in_flight, outcome != Outcome::Served);
                self.baseline_in_flight -= 1;
                let limit = baseline.limit();
                self.note_limit(limit);
            }
            _ => {}
        }
    }

    fn tell_woken(&mut self) {
        loop {
            let Some((rid, life, grant)) = self
                .proxy
                .as_mut()
                .and_then(|proxy| (!proxy.woken.is_empty()).then(|| proxy.woken.remove(0)))
            else {
                return;
            };
            match grant {
                Grant::Go(permit) => {
                    let gone = !self.alive(rid) || {
                        let Retried { route, client, .. } = self.request(rid).demand;
                        let followed =
                            self.proxy.as_ref().is_some_and(|proxy| proxy.is_followed(route, client, rid));
                        !self.request(rid).client && !followed
                    };
                    if gone {
                        if let Some(proxy) = &mut self.proxy {
                            proxy.finish(permit, life, Outcome::Unsent, self.now);
                        }
                        if self.alive(rid) {
                            self.release(rid);
                        }
                    } else {
                        self.forward(rid, Some((permit, life)));
                    }
                }
                Grant::Shed(shed) => {
                    if self.alive(rid) {
                        self.refused(rid, shed.retry_after_s);
                    }
                }
            }
        }
    }

    // --- clocks, loop and faults -----------------------------------------------------------

    fn keep_pumping(&mut self) {
        if !self.pumping {
            self.pumping = true;
            self.heap.push((self.now + PUMP).0, Happening::Pump);
        }
    }

    fn pump(&mut self) {
        self.pumping = false;
        let Some(proxy) = &mut self.proxy else { return };
        proxy.pump(self.now);
        if proxy.waiting() > 0 {
            self.keep_pumping();
        }
    }

    fn tick(&mut self) {
        let (Some(proxy), Some(control_loop)) = (&mut self.proxy, &mut self.control_loop) else { return };
        self.heap.push((self.now + control_loop.period()).0, Happening::Tick);
        if self.paused {
            #[cfg(test)]
            if control_loop.defect == Some(super::defects_tests::Defect::OpenWhileAway) {
                proxy.table = super::defects_tests::opened(&proxy.table);
            }
            return;
        }
        let changed = control_loop.tick(
            proxy,
            self.now,
            self.wall_offset_s,
            self.onlooker.adjustment_log.as_deref_mut(),
        );
        if changed {
            proxy.pump(self.now);
            let limit = proxy.table.class(self.watched).in_flight;
            self.note_limit(limit);
        }
    }

    fn note_limit(&mut self, limit: f64) {
        self.run.motion.tell(self.now, limit);
    }

    fn scrape(&mut self) {
        self.heap.push((self.now + self.scrape_every).0, Happening::Scrape);
        let read = match (self.scenario.prometheus_s, &self.stored) {
            // What Prometheus has is as old as its own last scrape.
            (Some(_), stored) => stored.clone().map(|(agent, dashboard, at)| ((agent, dashboard), at)),
            (None, _) => Some((self.pages(), self.now)),
        };
        let began = read.as_ref().map_or(self.now, |(_, at)| *at);
        let takes = self.weather.slow_s.map_or(SCRAPE_TAKES, duration_from_secs);
        // rayguard's own scrape time-out.
        let in_time = takes <= Duration::from_secs(4);
        let pages = match read {
            Some(((agent, dashboard), _)) if in_time => self.weather.pages(agent, dashboard),
            _ => (None, None),
        };
        self.heap.push((self.now + takes).0, Happening::Scraped(Box::new((pages, began))));
    }

    fn prometheus(&mut self) {
        let every = duration_from_secs(self.scenario.prometheus_s.unwrap_or(f64::INFINITY));
        self.heap.push((self.now + every).0, Happening::Prometheus);
        let (agent, dashboard) = self.pages();
        self.stored = Some((agent, dashboard, self.now));
    }

    /// The head's metrics as they stand.
    fn pages(&mut self) -> (String, String) {
        (self.pages.agent(&self.plant).to_owned(), self.pages.dashboard(&self.plant).to_owned())
    }

    fn probe(&mut self) {
        let Some(Probe { interval, timeout, .. }) = self.probe else { return };
        self.heap.push((self.now + interval).0, Happening::Probe);
        let Some(route) = self.plant.spec().route("gcs-healthz") else { return };
        let tag = self.probe_next;
        self.probe_next += 1;
        if self.refuses {
            if let Some(control_loop) = &mut self.control_loop {
                control_loop.on_probe(None, self.now, self.now);
            }
            return;
        }
        self.plant.arrive(self.now, &Demand::of(tag, route));
        self.probes.insert(tag, self.now);
        self.heap.push((self.now + timeout).0, Happening::ProbeTimeout(tag));
    }

    /// One of the jobs that were let in is asked whether it has started.
    fn ask_job(&mut self) {
        let Some(Probe { interval, timeout, .. }) = self.probe else { return };
        self.heap.push((self.now + interval).0, Happening::AskJob);
        self.asked.take_if(|(.., since)| self.now.since(*since) >= timeout);
        let Some(control_loop) = self.control_loop.as_mut().filter(|_| !self.paused) else { return };
        if self.refuses || self.asked.is_some() {
            return;
        }
        let (Some(route), Some(job)) =
            (self.plant.spec().route("job-status"), control_loop.job_to_ask(self.now))
        else {
            return;
        };
        let tag = self.probe_next;
        self.probe_next += 1;
        self.plant.arrive(self.now, &Demand::of(tag, route));
        self.asked = Some((tag, job, self.now));
    }

    fn job_answered(&mut self, job: Job, ok: bool) {
        let (life, submission) = job;
        let state = match (life == self.head_life, self.starting.contains(&submission)) {
            (false, _) => JobState::Gone,
            (true, true) => JobState::Waits,
            (true, false) => JobState::Started,
        };
        if let Some(control_loop) = self.control_loop.as_mut().filter(|_| ok && !self.paused) {
            control_loop.on_job_state(job, state, self.now);
        }
    }

    fn fault(&mut self, at: usize) {
        let fault = &self.scenario.fault[at];
        let pages = self.pages();
        self.weather.begin(fault, pages);
        match fault.kind {
            FaultKind::Capacity if fault.over_s > 0.0 => {
                self.drift = Some((self.capacity_left, fault.factor, self.now, fault.over_s));
            }
            FaultKind::Capacity => self.set_capacity(fault.factor),
            FaultKind::HeadRestart => self.head_restart(None),
            FaultKind::HeadReplaced => self.head_restart(Some(fault.factor)),
            FaultKind::HeadRefuses => self.refuses = true,
            FaultKind::ProxyRestart => self.proxy_restart(),
            FaultKind::ConfigReload => self.config_reload(fault.config.as_deref()),
            FaultKind::ControllerPause => self.paused = true,
            FaultKind::ClockJump => self.wall_offset_s += fault.factor,
            kind => self.burden(kind, fault.factor),
        }
    }

    /// What the users and the cluster ask of the head in addition to the API.
    fn burden(&mut self, kind: FaultKind, amount: f64) {
        let now = self.now;
        match kind {
            FaultKind::UserCores => self.plant.set_user_cores(now, amount),
            FaultKind::GcsNeed => self.plant.set_gcs_need(now, amount),
            FaultKind::RayletNeed => self.plant.set_raylet_need(now, amount),
            FaultKind::TaskSlots => self.plant.set_task_slots(now, amount),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
            FaultKind::PendingTasks => self.plant.set_pending(amount as u32),
            FaultKind::UserMemory => self.plant.set_user_mb(amount),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
            FaultKind::Servers => {
                self.servers = amount / f64::from(self.plant.spec().modules[0].servers.max(1));
                self.plant.set_servers(now, amount as u32);
            }
            _ => {}
        }
    }

    /// The head's processes are new; on a machine of so many cores, if that is another.
    fn head_restart(&mut self, cores: Option<f64>) {
        let mut events = Vec::new();
        match cores {
            Some(cores) => self.plant.replace(self.now, cores, &mut events),
            None => self.plant.restart(self.now, &mut events),
        }
        for event in events {
            self.answered(&event);
        }
        self.jobs.clear();
        self.starting.clear();
        self.head_life += 1;
    }

    fn set_capacity(&mut self, left: f64) {
        self.capacity_left = left;
        self.plant.set_capacity(self.now, self.capacity * left);
    }

    fn fault_ends(&mut self, at: usize) {
        let fault = &self.scenario.fault[at];
        self.weather.end(fault.kind);
        match fault.kind {
            FaultKind::Capacity => {
                self.drift = None;
                self.set_capacity(1.0);
            }
            FaultKind::ControllerPause => self.paused = false,
            FaultKind::ClockJump => self.wall_offset_s -= fault.factor,
            FaultKind::HeadRefuses => self.refuses = false,
            kind => {
                let spec = self.scenario.spec();
                let before = match kind {
                    FaultKind::UserCores => spec.user_cores,
                    FaultKind::GcsNeed => spec.gcs_need,
                    FaultKind::RayletNeed => spec.raylet_need,
                    FaultKind::TaskSlots => spec.jobs.task_slots,
                    FaultKind::PendingTasks => f64::from(spec.jobs.pending),
                    FaultKind::Servers => f64::from(spec.modules[0].servers),
                    _ => spec.memory.user_mb,
                };
                self.burden(kind, before);
            }
        }
    }

    /// Connections break: everybody at the proxy fails, the head goes on with what it has.
    fn proxy_restart(&mut self) {
        let Some(proxy) = &mut self.proxy else { return };
        proxy.restart(self.now);
        if let Some(control_loop) = &mut self.control_loop {
            let last_good = control_loop.last_good();
            #[cfg(test)]
            let defect = control_loop.defect;
            *control_loop = ControlLoop::new(proxy, &last_good, self.now);
            #[cfg(test)]
            {
                control_loop.defect = defect;
            }
        }
        for slot in 0..self.requests.len() {
            let generation = self.requests[slot].generation;
            let rid = u64::from(generation) << 32 | slot as u64;
            if matches!(self.requests[slot].stage, Stage::Free) {
                continue;
            }
            self.resolve(rid, Ending::Failed);
            match &self.requests[slot].stage {
                Stage::Upstream { exchange: Some(exchange), .. } => {
                    if self.plant.hang_up(self.now, *exchange).is_some() {
                        self.release(rid);
                    }
                }
                Stage::Upstream { .. } => {}
                _ => self.release(rid),
            }
        }
    }

    /// A new configuration, or the same once more; a wrong one was refused when the scenario was read.
    fn config_reload(&mut self, config: Option<&str>) {
        let Some(proxy) = &mut self.proxy else { return };
        let Ok((policy, _)) = self.scenario.policy_of(config.unwrap_or(&self.scenario.config)) else {
            return;
        };
        let mut policy = policy_under(&policy, self.guard, &self.without);
        if let Some(limit) = self.pinned {
            pin(&mut policy, &self.scenario.watch, limit);
        }
        let policy = Arc::new(policy);
        let ray = self.scenario.is_ray_head();
        if proxy.reload(Arc::clone(&policy), self.plant.spec(), ray, self.now).is_err() {
            return;
        }
        if let Some(control_loop) = &mut self.control_loop {
            control_loop.reload(proxy, policy, self.now);
        }
    }

    fn close_second(&mut self) {
        self.heap.push((self.now + Duration::from_secs(1)).0, Happening::Second);
        let asked_ms = std::mem::take(&mut self.asked_ms);
        if let Some((from, to, since, over_s)) = self.drift {
            let way = (self.now.since(since).as_secs_f64() / over_s).min(1.0);
            self.set_capacity(from + way * (to - from));
        }
        let measured = self.measured(self.now);
        let cuts = self.control_loop.as_mut().map_or(0, ControlLoop::take_cuts);
        self.run.cuts += if measured { cuts } else { 0 };
        for felt in self.plant.take_felt().filter(|_| measured) {
            self.run.felt.note(felt);
        }
        let memory = self.plant.memory_share();
        if memory >= 1.0 {
            self.run.out_of_memory += 1;
            self.head_restart(None);
        }
        if measured {
            self.run.memory_max = self.run.memory_max.max(memory);
            let able = self.scenario.capacity_ms_per_s().unwrap_or(f64::INFINITY);
            self.run.possible_ms += asked_ms.min(able * self.capacity * self.capacity_left * self.servers);
        }
        let gauges = self.plant.gauges();
        let mut second = std::mem::take(&mut self.second);
        second.at_s = self.now.as_secs_f64();
        second.node_cpu_pct = gauges.node_cpu_pct;
        second.latency_ms = self.latencies.take_p99_ms();
        second.pressure =
            self.control_loop.as_ref().map_or(0.0, |control_loop| control_loop.pressure(self.watched));
        second.backlog = self.plant.jobs().0;
        if let Some(proxy) = &self.proxy {
            let (in_flight, waiting) = proxy.admission.load(self.watched);
            second.in_flight = in_flight;
            second.waiting = waiting;
            second.limit = proxy.table.class(self.watched).in_flight;
        } else if let Some(baseline) = &self.baseline {
            second.in_flight = self.baseline_in_flight;
            second.limit = baseline.limit();
        }
        if let Some(step) = self.onlooker.step {
            step();
        }
        if let Some(adjustment_log) = &mut self.onlooker.adjustment_log {
            // The writer knows why it could not.
            let _ = adjustment_log.write_str(&second.line());
        }
        self.run.recovery.close(whole_seconds(self.now));
        self.run.motion.close(self.now, second.limit);
        self.run.timeline.push(second);
    }

    // --- requests --------------------------------------------------------------------------

    fn measured(&self, at: Time) -> bool {
        self.measure.0 <= at && at < self.measure.1
    }

    fn alive(&self, rid: Rid) -> bool {
        self.requests.get(slot_of(rid)).is_some_and(|request| {
            u64::from(request.generation) == rid >> 32 && !matches!(request.stage, Stage::Free)
                || u64::from(request.generation) == rid >> 32 && request.client
        })
    }

    fn request(&self, rid: Rid) -> &Request {
        &self.requests[slot_of(rid)]
    }

    fn request_mut(&mut self, rid: Rid) -> &mut Request {
        &mut self.requests[slot_of(rid)]
    }

    /// The request is over on both sides.
    fn release(&mut self, rid: Rid) {
        let request = self.request_mut(rid);
        request.stage = Stage::Free;
        request.client = false;
        request.generation = request.generation.wrapping_add(1) & 0x7fff_ffff;
        self.free.push(u32::try_from(slot_of(rid)).unwrap_or(u32::MAX));
    }
}

impl Request {
    fn vacant(demand: Retried) -> Request {
        Request { generation: 0, demand, sent: Time::ZERO, cost_ms: 0.0, stage: Stage::Free, client: false }
    }
}

fn whole_seconds(at: Time) -> usize {
    usize::try_from(at.0 / 1_000_000_000).unwrap_or(usize::MAX)
}

fn slot_of(rid: Rid) -> usize {
    usize::try_from(rid & 0xffff_ffff).unwrap_or(usize::MAX)
}

fn baseline(guard: Guard) -> Option<Box<dyn Limiter>> {
    match guard {
        Guard::Off | Guard::Rayguard | Guard::NoOuter | Guard::NoInner | Guard::Still => None,
        Guard::Fixed(limit) => Some(Box::new(baselines::Fixed(f64::from(limit)))),
        Guard::Vegas => Some(Box::<baselines::Vegas>::default()),
        Guard::Gradient2 => Some(Box::<baselines::Gradient2>::default()),
        Guard::Aimd => Some(Box::<baselines::Aimd>::default()),
        Guard::Codel => Some(Box::<baselines::CoDel>::default()),
        Guard::Breakwater => Some(Box::<baselines::Breakwater>::default()),
        Guard::EnvoyGradient => Some(Box::<baselines::EnvoyGradient>::default()),
    }
}

fn watched(proxy: &SimProxy, name: &str) -> Result<ClassId, ScenarioError> {
    if name.is_empty() {
        return Ok(ClassId(0));
    }
    let at = proxy.policy.classes.iter().position(|class| &*class.name == name);
    at.and_then(|at| u8::try_from(at).ok())
        .map(ClassId)
        .ok_or_else(|| ScenarioError::Impossible(format!("`watch`: there is no class `{name}`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = r#"
        question = "?"
        seconds = 60
        plant = { kind = "ray-head", tasks = 1000 }
        watch = "state-heavy"
        expect = { "abuser.shed" = [0.0, 1.0] }
        [[client]]
        name = "polite"
        kind = "open"
        polite = true
        route = "actors"
        per_second = 5
        timeout_s = 10
        [[client]]
        name = "abuser"
        kind = "open"
        route = "tasks"
        per_second = 20
        addresses = 64
        token = "each"
        from_s = 10
        until_s = 40
    "#;

    fn recorded(guard: Guard, seed: u64) -> (Run, String) {
        let scenario = Scenario::read(HEAD).expect("good");
        let (conditions, mut adjustment_log) = (Conditions::of(&scenario), String::new());
        let onlooker = Onlooker { adjustment_log: Some(&mut adjustment_log), ..Onlooker::default() };
        let run = run_under(&scenario, conditions, guard, seed, &Traces::new(), onlooker);
        (run.expect("runs"), adjustment_log)
    }

    fn ran(guard: Guard, seed: u64) -> Run {
        recorded(guard, seed).0
    }

    #[test]
    fn equal_seeds_give_equal_adjustment_logs_and_others_do_not() {
        let [one, again, other] = [1, 1, 2].map(|seed| recorded(Guard::Rayguard, seed));
        assert!(one.1.contains("\"event\":\"adjustment\""), "the loop has something to say");
        assert_eq!(one, again);
        assert_ne!(one.1, other.1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

        /// Of any seed.
        #[test]
        fn equal_seeds_give_equal_adjustment_logs(seed in any::<u64>()) {
            prop_assert_eq!(recorded(Guard::Rayguard, seed), recorded(Guard::Rayguard, seed));
        }
    }

    #[test]
    fn an_onlooker_is_told_of_each_second_and_changes_nothing() {
        let scenario = Scenario::read(HEAD).expect("good");
        let told = std::cell::Cell::new(0);
        let step = || told.set(told.get() + 1);
        let onlooker = Onlooker { adjustment_log: None, step: Some(&step) };
        let conditions = Conditions::of(&scenario);
        let run = run_under(&scenario, conditions, Guard::Rayguard, 1, &Traces::new(), onlooker);
        assert_eq!(told.get(), 60);
        assert_eq!(run.expect("runs"), ran(Guard::Rayguard, 1));
    }

    #[test]
    fn every_request_has_one_end() {
        for guard in [Guard::Off, Guard::Still, Guard::Rayguard, Guard::Fixed(4)] {
            for tally in ran(guard, 3).groups {
                let ends = tally.served + tally.shed + tally.timed_out + tally.failed;
                // Those under way when the run stops have none, and are not counted.
                assert_eq!(ends, tally.attempts, "{guard:?}: {tally:?}");
                assert!(tally.served <= tally.demands);
            }
        }
    }

    #[test]
    fn the_proxy_never_lets_more_into_the_head_than_it_says() {
        let run = ran(Guard::Rayguard, 1);
        for second in run.timeline.points().iter().map(|point| point.peak) {
            assert!(f64::from(second.in_flight) <= second.limit.max(4.0), "{second:?}");
        }
    }
}
