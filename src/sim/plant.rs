//! The plant: what a head does with the requests that reach it, as a pure state machine.
//!
//! `arrive` puts a request in, `next_event` says when something happens next, `advance` lets
//! it happen and tells what was answered. Time is an argument, chance comes from the seed; the
//! simulator drives it from the event heap, the emulator from the wall clock.
//!
//! A request stands in line at the parent's loop, then waits for one of its module's
//! connections, then takes its turns on the module's loop with waits between them. All busy
//! processes share the node's cores equally. That is processor sharing, and it is computed
//! with one clock: `work` is the CPU time a process that never paused would have had, it runs
//! at `min(1, cores / busy)`, and a service of `c` that begins at `w` ends when the clock
//! shows `w + c`, whatever happens to the speed meanwhile. So a change of load costs nothing,
//! and one heap holds all services in order (the virtual time of Parekh and Gallager, 1993).
//!
//! What Ray does and a tidy server would not: work for a client that left is still done
//! (`hang_up` changes nothing but what is reported); the queue in front of a module's
//! connections has no bound; a tail holds its connection until the job ends; every job is
//! accepted, and started when there is CPU for it.

use super::cluster::{Brings, Own, Workers};
use super::gauges::{DASHBOARD_BUCKETS_S, Durations, GCS_BUCKETS_MS, Gauges, bucket};
use super::head::{Cancels, Effect, Jobs, Link, Route, RouteId, Spec};
use super::heap::EventHeap;
use super::rng::Rng;
use rayguard_core::time::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// A request as the head sees it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Demand {
    /// The driver's own number; it comes back in every [`Event`].
    pub tag: u64,
    /// What is asked.
    pub route: RouteId,
    /// Payload: megabytes of a package or log, thousand tokens of a completion.
    pub size: f64,
    /// Tails and streams: how long until the job ends or the log grows. Submissions: how long
    /// the job will run. Delays and profiles: how long they take. `None`: the head's default.
    pub lasts: Option<Duration>,
    /// Submissions: what the job brings to the cluster.
    pub brings: Brings,
}

impl Demand {
    /// A request for `route`, with nothing more to it.
    #[must_use]
    pub fn of(tag: u64, route: RouteId) -> Demand {
        Demand { tag, route, size: 0.0, lasts: None, brings: Brings::default() }
    }
}

/// A request under way, for [`Plant::hang_up`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exchange {
    slot: u32,
    generation: u32,
}

/// Something the client of a request would see.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Event {
    /// The request's [`Demand::tag`].
    pub tag: u64,
    /// When.
    pub at: Time,
    /// What.
    pub step: Step,
    /// The client had left: the work was wasted.
    pub abandoned: bool,
}

/// What a client sees of its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The tail or stream is open.
    Opened,
    /// The answer, with its HTTP status.
    Answered(u16),
    /// The tail or stream ended at the head's side.
    Closed,
    /// The job of this submission, answered long ago, has started.
    Begun,
    /// It is done.
    Done,
}

/// How the cluster's own work fares, at one moment.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Felt {
    /// What one of its calls to the GCS takes, milliseconds.
    pub gcs_ms: f64,
    /// How late the raylet is with what the cluster needs of it, milliseconds.
    pub raylet_ms: f64,
}

/// The head's state.
#[derive(Clone, Debug)]
pub struct Plant {
    spec: Spec,
    now: Time,
    /// CPU time of a process that never paused, nanoseconds.
    work: f64,
    speed: f64,
    /// CPU time such a process would be billed for: crowded cores do less in it, not more.
    billed: f64,
    share: f64,
    /// Busy processes.
    busy: f64,
    /// Scales every process's speed; faults move it.
    capacity: f64,
    rng: Rng,
    /// The parent, the modules, the GCS, all other threads and agents, the job starters.
    stations: Vec<Station>,
    acceptors: Vec<Acceptor>,
    items: Vec<Item>,
    free: Vec<u32>,
    /// When requests of the last second came, where a link counts them.
    came: VecDeque<Time>,
    services: EventHeap<(u16, u32)>,
    timers: EventHeap<Timer>,
    cluster: Cluster,
    jobs: Vec<Job>,
    jobs_free: Vec<u32>,
    workers: Workers,
    gcs_own: Own,
    raylet: Own,
    felt: Vec<Felt>,
    meter: Meter,
    gauges: Gauges,
    durations: Vec<Durations>,
}

/// A process with its line.
#[derive(Clone, Debug, Default)]
struct Station {
    servers: u32,
    busy: u32,
    line: VecDeque<u32>,
    /// CPU time had until `since`, nanoseconds.
    done: f64,
    since: f64,
    /// `done` at the last refresh.
    reported: f64,
}

/// A module's connections.
#[derive(Clone, Debug, Default)]
struct Acceptor {
    open: u32,
    in_progress: u32,
    lobby: VecDeque<u32>,
}

#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts of a request that hold independently")]
struct Item {
    tag: u64,
    generation: u32,
    route: RouteId,
    passes_left: u8,
    abandoned: bool,
    held: bool,
    live: bool,
    /// Its service was stopped half-way.
    stopped: bool,
    size: f64,
    lasts: Option<Duration>,
    brings: Brings,
    arrived: Time,
    in_line: Time,
}

/// A submitted job that is not done.
#[derive(Clone, Copy, Debug)]
struct Job {
    tag: u64,
    runs: Duration,
    brings: Brings,
}

#[derive(Clone, Copy, Debug)]
enum Timer {
    Waited(u32),
    Unanswered(u32),
    HeldEnds(u32, u32),
    JobRuns(u32),
    JobEnds(u32),
    Feel,
    RefreshProcess,
    RefreshCluster,
}

/// Jobs, tasks and memory.
#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    listed: u32,
    alive: u32,
    destroyed: u32,
    ended_early: u32,
    /// Tasks of jobs that no node can run.
    infeasible: f64,
    sessions: u32,
    /// Of requests under way, megabytes.
    answers_mb: f64,
    packages_mb: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    calls: [u64; GCS_BUCKETS_MS.len()],
    /// Parts of a background call that are not counted yet.
    owed: f64,
    /// What stood in the GCS's line when that was last looked at.
    gcs_waits_ms: f64,
    polls: u64,
    parent_wait_s: f64,
    in_dashboard: u32,
}

const PARENT: usize = 0;
/// Keys of the service heap are sixteenths of a nanosecond of work.
const WORK_STEPS: f64 = 16.0;
/// GCS calls that happen whether or not anybody asks, per second.
const GCS_BACKGROUND_PER_S: f64 = 15.0;
/// Median-ish latency of a plain GCS call on an idle head, milliseconds.
const GCS_CALL_MS: f64 = 0.4;
/// What one of the cluster's own calls takes of the GCS's loop, seconds.
const GCS_OWN_CALL_S: f64 = 0.0005;
/// However busy the cluster keeps the GCS, the API's calls get this share of what it can do.
const GCS_SHARE_MIN: f64 = 0.05;
/// How often it is noted what the cluster's own work feels.
const FEEL_EVERY: Duration = Duration::from_millis(500);
/// A Ray Client's process outlives its client by so much.
const SESSION_GRACE: Duration = Duration::from_secs(30);
/// Event-loop tasks of an idle dashboard, and per request in it (500 -> 1280).
const LOOP_TASKS_IDLE: f64 = 14.0;
const LOOP_TASKS_PER_REQUEST: f64 = 2.4;

/// A non-negative finite float as a whole number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and NaN becomes 0")]
fn whole(value: f64) -> u64 {
    value as u64
}

/// The least whole number that is no less. (`f64::ceil` is a call on processors without SSE4.1.)
fn whole_above(value: f64) -> u64 {
    let below = whole(value);
    below.saturating_add(u64::from((below as f64) < value))
}

fn milliseconds(value: f64) -> f64 {
    value * 1e6
}

impl Plant {
    /// An idle head.
    #[must_use]
    pub fn new(spec: Spec, seed: u64) -> Plant {
        let mut stations = vec![Station { servers: 1, ..Station::default() }];
        stations.extend(spec.modules.iter().map(|m| Station { servers: m.servers, ..Station::default() }));
        stations.push(Station { servers: 1, ..Station::default() });
        stations.push(Station { servers: u32::MAX, ..Station::default() });
        stations.push(Station { servers: spec.jobs.starting_max, ..Station::default() });
        let mut rng = Rng::new(seed, 0x914a);
        let mut timers = EventHeap::default();
        timers.push(phase(&mut rng, spec.cadence.process), Timer::RefreshProcess);
        timers.push(phase(&mut rng, spec.cadence.cluster), Timer::RefreshCluster);
        if spec.has_cluster() {
            timers.push(whole(FEEL_EVERY.as_nanos() as f64), Timer::Feel);
        }
        let mut plant = Plant {
            now: Time::ZERO,
            work: 0.0,
            speed: 1.0,
            billed: 0.0,
            share: 1.0,
            busy: 0.0,
            capacity: 1.0,
            rng,
            stations,
            acceptors: vec![Acceptor::default(); spec.modules.len()],
            items: Vec::new(),
            free: Vec::new(),
            came: VecDeque::new(),
            services: EventHeap::default(),
            timers,
            cluster: Cluster { listed: spec.jobs.listed, destroyed: spec.jobs.actors, ..Cluster::default() },
            jobs: Vec::new(),
            jobs_free: Vec::new(),
            workers: Workers::new(spec.jobs.task_slots),
            gcs_own: Own::new(spec.gcs_need),
            raylet: Own::new(spec.raylet_need),
            felt: Vec::new(),
            meter: Meter::default(),
            gauges: Gauges { module_cpu_pct: vec![0.0; spec.modules.len()], ..Gauges::default() },
            durations: vec![Durations::default(); spec.routes.len()],
            spec,
        };
        plant.recount();
        plant.refresh_process();
        plant.refresh_cluster();
        plant
    }

    /// What the head is made of.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Puts a request in at `now`. Everything due until `now` must have been advanced over.
    pub fn arrive(&mut self, now: Time, demand: &Demand) -> Exchange {
        self.sync(now);
        let route = &self.spec.routes[demand.route.index()];
        let (passes, parent_ms) = (route.passes, route.parent_ms);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.items.push(Item::vacant());
            u32::try_from(self.items.len() - 1).unwrap_or(u32::MAX)
        });
        let generation = self.items[slot as usize].generation;
        self.items[slot as usize] = Item {
            tag: demand.tag,
            generation,
            route: demand.route,
            passes_left: passes,
            abandoned: false,
            held: false,
            live: true,
            stopped: false,
            size: demand.size,
            lasts: demand.lasts,
            brings: demand.brings,
            arrived: self.now,
            in_line: self.now,
        };
        self.meter.in_dashboard += 1;
        if parent_ms > 0.0 {
            self.stand_in_line(PARENT, slot);
        } else {
            self.knock(slot, None);
        }
        Exchange { slot, generation }
    }

    /// The client of this request left. Ray does not notice: the work goes on. But Serve takes out what waits for a
    /// replica, and stops what runs where its application can be stopped.
    /// The work that was wasted, milliseconds, where it was so taken out.
    pub fn hang_up(&mut self, now: Time, exchange: Exchange) -> Option<f64> {
        self.sync(now);
        let item = self.items.get_mut(exchange.slot as usize)?;
        if item.generation != exchange.generation || !item.live {
            return None;
        }
        if self.spec.cancels != Cancels::Nothing {
            item.abandoned = true;
            return Some(self.cancel(exchange.slot));
        }
        let already = std::mem::replace(&mut item.abandoned, true);
        let route = &self.spec.routes[item.route.index()];
        if !item.held || already {
            return None;
        }
        match route.effect {
            // A stream's connection is freed; its place among those in progress is not.
            Effect::Stream => self.release_connection(route.module),
            Effect::Session => {
                let ends = Timer::HeldEnds(exchange.slot, exchange.generation);
                self.timers.push((self.now + SESSION_GRACE).0, ends);
            }
            _ => {}
        }
        None
    }

    /// Takes a request out of its module's line, or stops it there.
    fn cancel(&mut self, slot: u32) -> f64 {
        let item = self.items[slot as usize];
        let at = self.spec.routes[item.route.index()].module + 1;
        if let Some(place) = self.stations[at].line.iter().position(|waits| *waits == slot) {
            self.stations[at].line.remove(place);
            self.leave(slot);
            return 0.0;
        }
        if self.spec.cancels == Cancels::All {
            // Its service is taken out of the plan when it comes up; the next in line has its place now.
            self.items[slot as usize].stopped = true;
            self.end_service(at);
            return self.now.since(item.in_line).as_secs_f64() * 1e3;
        }
        self.cost_ms(item.route, item.size)
    }

    /// When something happens next, if anything will.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        let done = self.workers.next().map(|at| at.max(self.now).0);
        let timer = match (self.timers.next_key(), done) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let service = self.services.next_key().and_then(|key| self.real(key));
        match (timer, service) {
            (Some(a), Some(b)) => Some(Time(a.min(b))),
            (a, b) => a.or(b).map(Time),
        }
    }

    /// Lets everything happen that is due until `now`; what clients see is added to `events`.
    pub fn advance(&mut self, now: Time, events: &mut Vec<Event>) {
        while let Some(at) = self.next_event().filter(|at| *at <= now) {
            self.sync(at);
            if self.timers.next_key().is_some_and(|key| key <= at.0) {
                if let Some((_, timer)) = self.timers.pop() {
                    self.ring(timer, events);
                }
            } else if self.workers.next().is_some_and(|done| done <= at) {
                if let Some(job) = self.workers.pop(at) {
                    self.job_ends(job, events);
                }
            } else if let Some((_, (station, occupant))) = self.services.pop() {
                self.complete(usize::from(station), occupant, events);
            }
        }
        self.sync(now);
    }

    /// Scales the speed of every process: 1 as specified, 0.5 half as fast, 0 stopped.
    pub fn set_capacity(&mut self, now: Time, capacity: f64) {
        self.sync(now);
        self.capacity = capacity.max(0.0);
        self.recount();
    }

    /// The users' own tasks on the head use so many cores from now on.
    pub(crate) fn set_user_cores(&mut self, now: Time, cores: f64) {
        self.sync(now);
        self.spec.user_cores = cores.max(0.0);
        self.recount();
    }

    /// The cluster's own calls need this share of the GCS from now on.
    pub(crate) fn set_gcs_need(&mut self, now: Time, need: f64) {
        self.sync(now);
        self.gcs_own.need = need.clamp(0.0, 1.0 - GCS_SHARE_MIN);
        self.recount();
    }

    /// The raylet needs this share of a core from now on.
    pub(crate) fn set_raylet_need(&mut self, now: Time, need: f64) {
        self.sync(now);
        self.raylet.need = need.clamp(0.0, 1.0);
        self.recount();
    }

    /// The cluster runs so many tasks at once from now on.
    pub(crate) fn set_task_slots(&mut self, now: Time, slots: f64) {
        self.workers.set_slots(now, slots.max(0.0));
        self.spec.jobs.task_slots = slots.max(0.0);
    }

    /// The first module works on so many requests at once from now on: replicas come and go. What is
    /// being worked on is finished.
    pub(crate) fn set_servers(&mut self, now: Time, servers: u32) {
        self.sync(now);
        let at = PARENT + 1;
        self.stations[at].servers = servers;
        while self.stations[at].busy < servers
            && let Some(next) = self.stations[at].line.pop_front()
        {
            self.serve(at, next);
        }
    }

    /// So many tasks are pending for good from now on, and the cluster works them off.
    pub(crate) fn set_pending(&mut self, tasks: u32) {
        self.spec.jobs.pending = tasks;
    }

    /// The users' own processes and objects hold so much of the head's memory from now on.
    pub(crate) fn set_user_mb(&mut self, megabytes: f64) {
        self.spec.memory.user_mb = megabytes.max(0.0);
    }

    /// Another machine takes the head's place: so many cores, and everything under way is lost.
    pub fn replace(&mut self, now: Time, cores: f64, events: &mut Vec<Event>) {
        self.restart(now, events);
        self.spec.cores = cores;
        let starters = self.starters();
        self.spec.jobs.starting_max = Jobs::starting_max(cores);
        self.stations[starters].servers = self.spec.jobs.starting_max;
        self.recount();
    }

    /// The head's processes die and come back empty: everything under way is cut (502), jobs
    /// and packages are gone.
    pub fn restart(&mut self, now: Time, events: &mut Vec<Event>) {
        self.sync(now);
        for slot in 0..self.items.len() {
            let item = self.items[slot];
            if item.live {
                let step = if item.held { Step::Closed } else { Step::Answered(502) };
                events.push(Event { tag: item.tag, at: self.now, step, abandoned: item.abandoned });
                self.vacate(u32::try_from(slot).unwrap_or(u32::MAX));
            }
        }
        for at in 0..self.stations.len() {
            self.settle(at);
            self.stations[at].busy = 0;
            self.stations[at].line.clear();
        }
        self.acceptors = vec![Acceptor::default(); self.acceptors.len()];
        self.services.clear();
        self.timers.clear();
        self.busy = 0.0;
        let spec = &self.spec;
        self.timers.push((self.now + spec.cadence.process).0, Timer::RefreshProcess);
        self.timers.push((self.now + spec.cadence.cluster).0, Timer::RefreshCluster);
        if spec.has_cluster() {
            self.timers.push((self.now + FEEL_EVERY).0, Timer::Feel);
        }
        self.cluster = Cluster { destroyed: spec.jobs.actors, ..Cluster::default() };
        self.jobs.clear();
        self.jobs_free.clear();
        self.workers = Workers::new(spec.jobs.task_slots);
        self.workers.sync(self.now);
        self.gcs_own = Own::new(self.gcs_own.need);
        self.raylet = Own::new(self.raylet.need);
        self.recount();
    }

    /// What Ray exports, as of the last refresh.
    #[must_use]
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// The dashboard's request histograms, by route.
    #[must_use]
    pub fn durations(&self) -> &[Durations] {
        &self.durations
    }

    /// Connections of a module in use and requests waiting for one.
    #[must_use]
    pub fn module_in_flight(&self, module: usize) -> (u32, usize) {
        self.acceptors.get(module).map_or((0, 0), |acceptor| (acceptor.open, acceptor.lobby.len()))
    }

    /// Jobs submitted that have not started; jobs running.
    #[must_use]
    pub fn jobs(&self) -> (usize, u32) {
        let starters = &self.stations[self.starters()];
        (starters.line.len() + starters.busy as usize, self.cluster.alive)
    }

    /// What one request of this route costs its module now, on average, milliseconds.
    #[must_use]
    pub fn cost_ms(&self, route: RouteId, size: f64) -> f64 {
        let route = &self.spec.routes[route.index()];
        route.base_ms
            + route.per_job_ms * f64::from(self.cluster.listed)
            + route.per_task_ms * self.tasks().min(10_000.0)
            + route.per_actor_ms * self.actors()
            + route.per_size_ms * size
    }

    /// What one request of this route costs the GCS, milliseconds.
    fn gcs_cost_ms(&self, route: &Route, size: f64) -> f64 {
        let grown = route.per_job_ms * f64::from(self.cluster.listed)
            + route.per_task_ms * self.tasks().min(10_000.0)
            + route.per_actor_ms * self.actors()
            + route.per_size_ms * size;
        route.gcs_ms + route.gcs_share * grown
    }

    /// How the cluster's own work fared since this was last asked.
    pub(crate) fn take_felt(&mut self) -> std::vec::Drain<'_, Felt> {
        self.felt.drain(..)
    }

    /// The head's memory in use, as a share of what it has.
    #[must_use]
    pub(crate) fn memory_share(&self) -> f64 {
        self.memory_mb() / self.spec.memory.total_mb
    }

    fn memory_mb(&self) -> f64 {
        let (starting, alive) = self.jobs();
        let processes = starting.min(self.spec.jobs.starting_max as usize) as f64 + f64::from(alive);
        let memory = &self.spec.memory;
        memory.base_mb
            + memory.user_mb
            + memory.per_job_mb * processes
            + memory.per_session_mb * f64::from(self.cluster.sessions)
            + memory.per_request_mb * f64::from(self.meter.in_dashboard)
            + self.cluster.answers_mb
            + self.cluster.packages_mb
    }

    fn gcs(&self) -> usize {
        self.stations.len() - 3
    }

    fn outside(&self) -> usize {
        self.stations.len() - 2
    }

    fn starters(&self) -> usize {
        self.stations.len() - 1
    }

    // --- the clock -------------------------------------------------------------------------

    fn sync(&mut self, now: Time) {
        if now > self.now {
            let span = (now.0 - self.now.0) as f64;
            self.work += span * self.speed;
            self.billed += span * self.share;
            self.raylet.pass(span / 1e9, self.speed);
            self.gcs_own.pass(span / 1e9, self.speed * (1.0 - GCS_SHARE_MIN));
            self.now = now;
        }
    }

    /// When the work clock will show `key`.
    fn real(&self, key: u64) -> Option<u64> {
        let ahead = (key as f64 / WORK_STEPS - self.work).max(0.0);
        (self.speed > 0.0).then(|| self.now.0.saturating_add(whole_above(ahead / self.speed)))
    }

    fn recount(&mut self) {
        let load = self.load();
        let cores = self.spec.cores;
        self.share = if load > cores { cores / load } else { 1.0 };
        let crowded = if cores > 1.0 { ((load - 1.0) / (cores - 1.0)).clamp(0.0, 1.0) } else { 0.0 };
        self.speed = self.capacity * self.share * (1.0 - self.spec.crowding * crowded);
    }

    /// Runnable processes beyond the cores.
    fn excess(&self) -> f64 {
        (self.load() - self.spec.cores).max(0.0)
    }

    /// Cores that would be used if there were enough.
    fn load(&self) -> f64 {
        let gcs = if self.stations[self.gcs()].busy > 0 { 0.0 } else { self.gcs_own.load() };
        self.spec.background_cores + self.spec.user_cores + self.raylet.load() + gcs + self.busy
    }

    fn settle(&mut self, at: usize) {
        let station = &mut self.stations[at];
        station.done += f64::from(station.busy) * (self.billed - station.since);
        station.since = self.billed;
    }

    // --- a request's way -------------------------------------------------------------------

    fn stand_in_line(&mut self, at: usize, occupant: u32) {
        if self.stations[at].busy < self.stations[at].servers {
            self.serve(at, occupant);
        } else {
            self.stations[at].line.push_back(occupant);
        }
    }

    fn serve(&mut self, at: usize, occupant: u32) {
        let mean = self.service_ms(at, occupant);
        let shape = if let Some(link) = &self.spec.link {
            let taken = self.items[occupant as usize].passes_left > 0;
            link.factor(if taken { self.acceptors[0].in_progress } else { 1 }, &mut self.rng)
        } else if self.spec.exponential {
            self.rng.exponential(1.0)
        } else {
            self.rng.jitter(self.spec.sigma)
        };
        if self.spec.cancels == Cancels::All {
            self.items[occupant as usize].in_line = self.now;
        }
        self.settle(at);
        self.stations[at].busy += 1;
        self.busy += 1.0;
        self.recount();
        let due = self.work + milliseconds(mean * shape);
        let station = u16::try_from(at).unwrap_or(u16::MAX);
        self.services.push(whole_above(due * WORK_STEPS), (station, occupant));
    }

    fn service_ms(&mut self, at: usize, occupant: u32) -> f64 {
        if at == self.starters() {
            return self.spec.jobs.start_ms;
        }
        let item = self.items[occupant as usize];
        let route = self.spec.routes[item.route.index()];
        if at == self.gcs() {
            return self.gcs_cost_ms(&route, item.size) / f64::from(route.passes.max(1)) * self.gcs_stretch();
        }
        if at == self.outside() {
            let whole_ms = route.outside_ms + route.outside_per_size_ms * item.size;
            return whole_ms / f64::from(route.passes.max(1));
        }
        if at == PARENT {
            self.meter.parent_wait_s = self.now.since(item.in_line).as_secs_f64();
            return route.parent_ms;
        }
        self.cost_ms(item.route, item.size) / f64::from(route.passes.max(1))
    }

    /// A server of the station is free for the next in line.
    fn end_service(&mut self, at: usize) {
        self.settle(at);
        self.stations[at].busy -= 1;
        self.busy -= 1.0;
        self.recount();
        if self.stations[at].busy < self.stations[at].servers
            && let Some(next) = self.stations[at].line.pop_front()
        {
            self.serve(at, next);
        }
    }

    fn complete(&mut self, at: usize, occupant: u32, events: &mut Vec<Event>) {
        if self.spec.cancels == Cancels::All && self.items[occupant as usize].stopped {
            return self.leave(occupant);
        }
        self.end_service(at);
        if at == self.starters() {
            self.job_started(occupant);
        } else if at == self.outside() {
            self.ask_gcs(occupant, events);
        } else if at == self.gcs() {
            self.pause(occupant, events);
        } else if at == PARENT {
            self.knock(occupant, Some(events));
        } else {
            self.turn_ends(occupant, events);
        }
    }

    /// A turn on the module's loop is over: on to the GCS if it is asked, else to the pause.
    fn turn_ends(&mut self, slot: u32, events: &mut Vec<Event>) {
        let item = &mut self.items[slot as usize];
        let route = &self.spec.routes[item.route.index()];
        if item.passes_left == 0 {
            let status = if self.spec.link.is_some() { 503 } else { 429 };
            return self.answer(slot, status, events);
        }
        item.passes_left -= 1;
        if route.outside_ms + route.outside_per_size_ms > 0.0 {
            let outside = self.outside();
            return self.stand_in_line(outside, slot);
        }
        self.ask_gcs(slot, events);
    }

    fn ask_gcs(&mut self, slot: u32, events: &mut Vec<Event>) {
        let item = &mut self.items[slot as usize];
        if self.spec.routes[item.route.index()].gcs_ms > 0.0 {
            item.in_line = self.now;
            let gcs = self.gcs();
            return self.stand_in_line(gcs, slot);
        }
        self.pause(slot, events);
    }

    /// How much longer the GCS takes over a call because the cluster's own stand in its line too:
    /// until a backlog is worked off, its own share of new ones has come too.
    fn gcs_stretch(&self) -> f64 {
        1.0 / (1.0 - self.gcs_own.need / self.speed.max(0.01)).max(GCS_SHARE_MIN)
    }

    /// At the module's connections: in, or into the lobby, which has no bound.
    fn knock(&mut self, slot: u32, events: Option<&mut Vec<Event>>) {
        let item = self.items[slot as usize];
        let module = self.spec.routes[item.route.index()].module;
        if item.passes_left == 0 {
            if let Some(events) = events {
                self.answer(slot, 200, events);
            }
            return;
        }
        if self.acceptors[module].open >= self.spec.modules[module].connections_max {
            self.acceptors[module].lobby.push_back(slot);
            return;
        }
        self.enter(slot, module);
    }

    fn enter(&mut self, slot: u32, module: usize) {
        self.cluster.answers_mb += self.answer_mb(slot);
        let acceptor = &mut self.acceptors[module];
        acceptor.open += 1;
        acceptor.in_progress += 1;
        let cap = self.spec.modules[module].in_progress_max.unwrap_or(u32::MAX);
        if acceptor.in_progress > cap {
            // Ray's own limit: a cheap 429 from the module.
            self.items[slot as usize].passes_left = 0;
        }
        if let Some(link) = self.spec.link
            && !self.link_takes(&link)
        {
            self.items[slot as usize].passes_left = 0;
            if link.drops {
                // It is not there for the service, which is as quick for the others.
                self.acceptors[module].in_progress -= 1;
                self.timers.push((self.now + Link::PATIENCE).0, Timer::Unanswered(slot));
                return;
            }
        }
        self.stand_in_line(module + 1, slot);
    }

    /// Whether the link takes the request that has just come.
    fn link_takes(&mut self, link: &Link) -> bool {
        let at_once = link.at_once_max.is_none_or(|max| self.acceptors[0].in_progress <= max);
        let Some(max) = link.per_second_max else { return at_once };
        let since = Time(self.now.0.saturating_sub(1_000_000_000));
        while self.came.front().is_some_and(|came| *came <= since) {
            self.came.pop_front();
        }
        self.came.push_back(self.now);
        at_once && self.came.len() <= max as usize
    }

    /// Between two turns on the module's loop, or after the last one.
    fn pause(&mut self, slot: u32, events: &mut Vec<Event>) {
        let item = self.items[slot as usize];
        let (route, lasts) = (self.spec.routes[item.route.index()], item.lasts);
        let asked = lasts.filter(|_| route.effect == Effect::None).map(|d| d.as_secs_f64() * 1e3);
        let mean = asked.unwrap_or(route.wait_ms) / f64::from(route.passes.max(1));
        let excess = self.excess();
        let mut wait = 0.0;
        if mean > 0.0 {
            wait += mean * self.rng.jitter(self.spec.sigma) / self.speed.clamp(0.05, 1.0);
        }
        wait += self.spec.turn_ms;
        if excess > 0.0 && self.spec.wake_up_ms > 0.0 {
            wait += self.rng.exponential(self.spec.wake_up_ms * excess.sqrt());
        }
        if wait > 0.0 {
            self.timers.push(self.now.0 + whole(milliseconds(wait)), Timer::Waited(slot));
        } else {
            self.resume(slot, events);
        }
    }

    fn resume(&mut self, slot: u32, events: &mut Vec<Event>) {
        let item = self.items[slot as usize];
        let route = self.spec.routes[item.route.index()];
        if item.passes_left > 0 {
            return self.stand_in_line(route.module + 1, slot);
        }
        self.note_gcs(route.gcs_calls, self.gcs_cost_ms(&route, item.size));
        match route.effect {
            Effect::Tail | Effect::Stream | Effect::Session => {
                self.items[slot as usize].held = true;
                self.cluster.sessions += u32::from(route.effect == Effect::Session);
                let until = self.now + item.lasts.unwrap_or(Duration::from_secs(60));
                self.timers.push(until.0, Timer::HeldEnds(slot, item.generation));
                events.push(Event {
                    tag: item.tag,
                    at: self.now,
                    step: Step::Opened,
                    abandoned: item.abandoned,
                });
                if item.abandoned && route.effect == Effect::Stream {
                    self.release_connection(route.module);
                }
                if item.abandoned && route.effect == Effect::Session {
                    let ends = Timer::HeldEnds(slot, item.generation);
                    self.timers.push((self.now + SESSION_GRACE).0, ends);
                }
                return;
            }
            Effect::Submit => self.submit(&item),
            Effect::Stop => self.stop(),
            Effect::Package => self.cluster.packages_mb += item.size,
            Effect::None => {}
        }
        self.answer(slot, 200, events);
    }

    fn answer(&mut self, slot: u32, status: u16, events: &mut Vec<Event>) {
        let item = self.items[slot as usize];
        let seconds = self.now.since(item.arrived).as_secs_f64();
        let durations = &mut self.durations[item.route.index()];
        if status == 200 {
            durations.ok[bucket(&DASHBOARD_BUCKETS_S, seconds)] += 1;
            durations.ok_sum_s += seconds;
        } else {
            durations.refused += 1;
        }
        events.push(Event {
            tag: item.tag,
            at: self.now,
            step: Step::Answered(status),
            abandoned: item.abandoned,
        });
        self.leave(slot);
    }

    /// Gives back what the request held in its module, and forgets it.
    fn leave(&mut self, slot: u32) {
        let item = self.items[slot as usize];
        let route = self.spec.routes[item.route.index()];
        if item.held && route.effect == Effect::Session {
            self.cluster.sessions -= 1;
        }
        if route.passes > 0 {
            self.cluster.answers_mb -= self.answer_mb(slot);
            self.acceptors[route.module].in_progress -= 1;
            let freed_before = item.held && item.abandoned && route.effect == Effect::Stream;
            if !freed_before {
                self.release_connection(route.module);
            }
        }
        self.vacate(slot);
    }

    fn vacate(&mut self, slot: u32) {
        let item = &mut self.items[slot as usize];
        item.live = false;
        item.generation = item.generation.wrapping_add(1);
        self.meter.in_dashboard -= 1;
        self.free.push(slot);
    }

    /// Memory that a request takes once its module has let it in, megabytes.
    fn answer_mb(&self, slot: u32) -> f64 {
        let item = &self.items[slot as usize];
        self.spec.routes[item.route.index()].memory_per_size * item.size
    }

    fn release_connection(&mut self, module: usize) {
        self.acceptors[module].open -= 1;
        if let Some(next) = self.acceptors[module].lobby.pop_front() {
            self.enter(next, module);
        }
    }

    // --- jobs ------------------------------------------------------------------------------

    fn submit(&mut self, item: &Item) {
        self.cluster.listed += 1;
        let runs = item.lasts.unwrap_or_else(|| Duration::from_secs_f64(self.spec.jobs.run_s));
        let job = Job { tag: item.tag, runs, brings: item.brings };
        let number = self.jobs_free.pop().unwrap_or_else(|| {
            self.jobs.push(job);
            u32::try_from(self.jobs.len() - 1).unwrap_or(u32::MAX)
        });
        self.jobs[number as usize] = job;
        let starters = self.starters();
        self.stand_in_line(starters, number);
    }

    fn job_started(&mut self, number: u32) {
        self.cluster.alive += 1;
        let wait = self.spec.jobs.start_wait_ms * self.rng.jitter(self.spec.sigma);
        self.timers.push(self.now.0 + whole(milliseconds(wait)), Timer::JobRuns(number));
    }

    fn job_runs(&mut self, number: u32, events: &mut Vec<Event>) {
        let Job { tag, runs, brings } = self.jobs[number as usize];
        events.push(Event { tag, at: self.now, step: Step::Begun, abandoned: false });
        if brings.tasks > 0 && !brings.infeasible {
            return self.workers.add(self.now, number, brings);
        }
        self.cluster.infeasible += f64::from(brings.tasks);
        self.timers.push((self.now + runs).0, Timer::JobEnds(number));
    }

    fn job_ends(&mut self, number: u32, events: &mut Vec<Event>) {
        let Job { tag, brings, .. } = self.jobs[number as usize];
        events.push(Event { tag, at: self.now, step: Step::Done, abandoned: false });
        if brings.infeasible {
            self.cluster.infeasible -= f64::from(brings.tasks);
        }
        self.jobs_free.push(number);
        if self.cluster.ended_early > 0 {
            self.cluster.ended_early -= 1;
        } else {
            self.cluster.alive = self.cluster.alive.saturating_sub(1);
            self.cluster.destroyed += 1;
        }
    }

    fn stop(&mut self) {
        let starters = self.starters();
        if let Some(number) = self.stations[starters].line.pop_back() {
            self.jobs_free.push(number);
            self.cluster.destroyed += 1;
        } else if self.cluster.alive > 0 {
            self.cluster.alive -= 1;
            self.cluster.destroyed += 1;
            self.cluster.ended_early += 1;
        }
    }

    fn tasks(&self) -> f64 {
        let jobs = &self.spec.jobs;
        let since = self.cluster.listed.saturating_sub(jobs.listed);
        f64::from(jobs.tasks) + jobs.tasks_per_job * f64::from(since)
    }

    fn actors(&self) -> f64 {
        f64::from(self.spec.jobs.actors + self.cluster.listed.saturating_sub(self.spec.jobs.listed))
    }

    // --- timers and what is exported -------------------------------------------------------

    fn ring(&mut self, timer: Timer, events: &mut Vec<Event>) {
        match timer {
            Timer::Waited(slot) => self.resume(slot, events),
            Timer::Unanswered(slot) => {
                self.acceptors[0].in_progress += 1; // what `leave` takes back
                self.answer(slot, 504, events);
            }
            Timer::HeldEnds(slot, generation) => {
                let item = self.items[slot as usize];
                if item.generation == generation && item.live {
                    events.push(Event {
                        tag: item.tag,
                        at: self.now,
                        step: Step::Closed,
                        abandoned: item.abandoned,
                    });
                    self.leave(slot);
                }
            }
            Timer::JobRuns(number) => self.job_runs(number, events),
            Timer::JobEnds(number) => self.job_ends(number, events),
            Timer::Feel => {
                self.feel();
                self.timers.push((self.now + FEEL_EVERY).0, Timer::Feel);
            }
            Timer::RefreshProcess => {
                self.refresh_process();
                self.timers.push((self.now + self.spec.cadence.process).0, Timer::RefreshProcess);
            }
            Timer::RefreshCluster => {
                self.refresh_cluster();
                self.timers.push((self.now + self.spec.cadence.cluster).0, Timer::RefreshCluster);
            }
        }
    }

    fn note_gcs(&mut self, calls: u8, cpu_ms: f64) {
        if calls == 0 {
            return;
        }
        let own = 2.0 * cpu_ms / f64::from(calls);
        for _ in 0..calls {
            let latency_ms = self.gcs_call_ms(own) + self.meter.gcs_waits_ms;
            self.meter.calls[bucket(&GCS_BUCKETS_MS, latency_ms)] += 1;
        }
    }

    /// What a call of this cost takes where no other stands in line.
    fn gcs_call_ms(&mut self, own_ms: f64) -> f64 {
        let mut latency = (GCS_CALL_MS + own_ms) * self.rng.jitter(0.7) / self.speed.clamp(0.05, 1.0);
        let excess = self.excess();
        if excess > 0.0 && self.spec.wake_up_ms > 0.0 {
            latency += self.rng.exponential(self.spec.wake_up_ms * excess.sqrt());
        }
        latency
    }

    /// What the cluster's own work feels now. Its calls come at random, so what they meet is what
    /// stands in the GCS's line at any moment (Wolff, 1982).
    fn feel(&mut self) {
        let gcs = self.gcs();
        let line: Vec<u32> = self.stations[gcs].line.iter().copied().collect();
        let standing_ms = line.into_iter().map(|slot| self.service_ms(gcs, slot)).sum::<f64>();
        let speed = self.speed.clamp(0.01, 1.0);
        let waits_ms = standing_ms / speed + 1e3 * self.gcs_own.late_s();
        let own_ms = if self.gcs_own.need > 0.0 { 1e3 * GCS_OWN_CALL_S * self.gcs_stretch() } else { 0.0 };
        let latency_ms = self.gcs_call_ms(0.0);
        let gcs_ms = latency_ms + own_ms + waits_ms;
        self.felt.push(Felt { gcs_ms, raylet_ms: 1e3 * self.raylet.late_s() });
        let per_s = GCS_BACKGROUND_PER_S + self.gcs_own.need / GCS_OWN_CALL_S;
        self.meter.owed += FEEL_EVERY.as_secs_f64() * per_s;
        let calls = whole(self.meter.owed);
        self.meter.owed -= calls as f64;
        self.meter.calls[bucket(&GCS_BUCKETS_MS, gcs_ms)] += calls;
        self.meter.gcs_waits_ms = waits_ms;
    }

    fn refresh_process(&mut self) {
        let span = self.now.since(self.gauges.process_at).as_secs_f64().max(1e-9);
        // The cluster's own work and the users' get their part of the cores as everybody does.
        let user_cores = self.spec.user_cores * self.share;
        let raylet_cores = self.raylet.load() * self.share;
        let mut all = self.spec.background_cores + user_cores + raylet_cores;
        let modules = self.spec.modules.len();
        for at in 0..self.stations.len() {
            self.settle(at);
            let station = &mut self.stations[at];
            let cores = (station.done - station.reported) / 1e9 / span;
            station.reported = station.done;
            all += cores;
            match at {
                PARENT => self.gauges.parent_cpu_pct = 100.0 * cores,
                _ if at <= modules => self.gauges.module_cpu_pct[at - 1] = 100.0 * cores,
                _ if at == modules + 1 => {
                    let own = self.gcs_own.load() * self.share * (1.0 - cores).max(0.0);
                    all += own;
                    self.gauges.gcs_cpu_pct = 0.9 + 100.0 * (cores + own);
                }
                _ if at == modules + 2 => self.gauges.agent_cpu_pct = 3.0 + 100.0 * cores,
                _ => self.gauges.starting_cpu_pct = 100.0 * cores,
            }
        }
        let servers = f64::from(self.stations[1].servers);
        let cores = if self.spec.cores.is_finite() { self.spec.cores } else { servers };
        self.gauges.node_cpu_pct = (100.0 * all / cores).min(100.0);
        let waiting = f64::from(self.meter.in_dashboard);
        self.gauges.event_loop_tasks = (LOOP_TASKS_IDLE + LOOP_TASKS_PER_REQUEST * waiting).round();
        self.gauges.event_loop_lag_s = 0.001 + std::mem::take(&mut self.meter.parent_wait_s);
        self.gauges.user_cpu_pct = 100.0 * user_cores;
        self.gauges.raylet_cpu_pct = 2.0 + 100.0 * raylet_cores;
        self.gauges.mem_used_bytes = self.memory_mb() * 1e6;
        self.gauges.mem_total_bytes = self.spec.memory.total_mb * 1e6;
        self.gauges.process_at = self.now;
    }

    fn refresh_cluster(&mut self) {
        let span = self.now.since(self.gauges.cluster_at).as_secs_f64();
        self.meter.polls += whole(GCS_BACKGROUND_PER_S * span / 5.0);
        self.workers.sync(self.now);
        let (running, queued) = self.workers.tasks();
        let (starting, alive) = self.jobs();
        let jobs = &self.spec.jobs;
        let starting = starting as f64;
        let gauges = &mut self.gauges;
        gauges.registered = starting;
        gauges.created = f64::from(alive);
        gauges.destroyed = f64::from(self.cluster.destroyed);
        gauges.waiting_for_workers = (starting - f64::from(jobs.starting_max)).max(0.0);
        let slots_full = if jobs.pending > 0 { jobs.task_slots } else { 0.0 };
        gauges.running_tasks = running.max(slots_full).round();
        gauges.waiting_for_resources = f64::from(jobs.pending) + queued.round();
        gauges.infeasible_tasks = f64::from(jobs.infeasible) + self.cluster.infeasible;
        gauges.pending_tasks = gauges.waiting_for_resources
            + gauges.infeasible_tasks
            + (jobs.pending_per_job * starting).round();
        gauges.gcs_calls = self.meter.calls;
        gauges.gcs_polls = self.meter.polls;
        gauges.cluster_at = self.now;
        let finished = self.tasks() + self.workers.finished() + slots_full * self.now.as_secs_f64();
        self.gauges.finished_tasks = finished.round();
    }
}

impl Item {
    fn vacant() -> Item {
        Item {
            tag: 0,
            generation: 0,
            route: RouteId(0),
            passes_left: 0,
            abandoned: false,
            held: false,
            live: false,
            stopped: false,
            size: 0.0,
            lasts: None,
            brings: Brings::default(),
            arrived: Time::ZERO,
            in_line: Time::ZERO,
        }
    }
}

fn phase(rng: &mut Rng, period: Duration) -> u64 {
    whole(rng.uniform() * period.as_nanos() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(plant: &Plant, route: &str, tag: u64) -> Demand {
        let route = plant.spec().route(route).expect("a route of the head");
        Demand::of(tag, route)
    }

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    /// Sends `per_second` requests for `seconds` and returns the answers until `until`.
    fn flood(plant: &mut Plant, route: &str, per_second: f64, seconds: f64, until: f64) -> Vec<Event> {
        let mut events = Vec::new();
        let count = whole(per_second * seconds);
        for n in 0..count {
            let now = at(n as f64 / per_second);
            plant.advance(now, &mut events);
            let demand = demand(plant, route, n);
            plant.arrive(now, &demand);
        }
        plant.advance(at(until), &mut events);
        events
    }

    #[test]
    fn eight_servers_of_100_ms_finish_eighty_a_second() {
        let mut plant = Plant::new(Spec::parallel(8, 100.0), 1);
        let events = flood(&mut plant, "work", 400.0, 60.0, 60.0);
        let rate = events.len() as f64 / 60.0;
        assert!((rate - 80.0).abs() < 2.5, "{rate} per second");
    }

    #[test]
    fn a_single_loop_finishes_work_that_no_client_waits_for() {
        let mut plant = Plant::new(Spec::single_loop(200.0, 50.0), 1);
        let mut events = Vec::new();
        let left: Vec<Exchange> = (0..400)
            .map(|tag| {
                let demand = demand(&plant, "cheap", tag);
                plant.arrive(Time::ZERO, &demand)
            })
            .collect();
        for exchange in left {
            plant.hang_up(Time::ZERO, exchange);
        }
        let last = demand(&plant, "cheap", 1000);
        plant.arrive(Time::ZERO, &last);
        plant.advance(at(10.0), &mut events);
        assert_eq!(events.iter().filter(|e| e.abandoned).count(), 400);
        let served = events.iter().find(|e| e.tag == 1000).expect("served at last");
        assert!((served.at.as_secs_f64() - 401.0 / 200.0).abs() < 1e-6);
    }

    #[test]
    fn serve_takes_out_what_its_clients_left_and_stops_what_runs_only_where_it_can_be_stopped() {
        for (stops, free_at, wasted_ms) in [(false, 1.0, 1_000.0), (true, 0.5, 500.0)] {
            let spec = Spec { sigma: 0.0, ..Spec::serve(1, 1_000.0, 0.0, stops) };
            let mut plant = Plant::new(spec, 1);
            let mut events = Vec::new();
            let [runs, waits, _] = [0, 1, 2].map(|tag| {
                let demand = demand(&plant, "completion", tag);
                plant.arrive(Time::ZERO, &demand)
            });
            plant.advance(at(0.5), &mut events);
            assert_eq!(plant.hang_up(at(0.5), waits), Some(0.0), "nothing was done for it");
            let wasted = plant.hang_up(at(0.5), runs).expect("Serve is told");
            assert!((wasted - wasted_ms).abs() < 1.0, "{wasted} ms");
            assert_eq!(plant.hang_up(at(0.5), waits), None, "once");
            plant.advance(at(10.0), &mut events);
            let last = events.iter().find(|event| event.tag == 2).expect("it is served");
            assert!((last.at.as_secs_f64() - free_at - 1.0).abs() < 0.01, "{last:?}");
        }
    }

    #[test]
    fn a_version_costs_a_third_of_a_millisecond_and_a_task_list_a_tenth_of_a_second() {
        for (route, low, high) in [("version", 0.2e-3, 0.6e-3), ("tasks", 0.1, 0.2)] {
            let mut plant = Plant::new(Spec::ray_head(), 3);
            let one = demand(&plant, route, 0);
            plant.arrive(Time::ZERO, &one);
            let mut events = Vec::new();
            plant.advance(at(5.0), &mut events);
            let seconds = events[0].at.as_secs_f64();
            assert!((low..high).contains(&seconds), "{route} took {seconds} s");
        }
    }

    #[test]
    fn a_state_flood_leaves_the_job_api_alone() {
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let mut events = Vec::new();
        for n in 0..400_u64 {
            let now = at(n as f64 / 20.0);
            plant.advance(now, &mut events);
            let (heavy, light) = (demand(&plant, "tasks", 2 * n), demand(&plant, "version", 2 * n + 1));
            plant.arrive(now, &heavy);
            plant.arrive(now, &light);
        }
        plant.advance(at(200.0), &mut events);
        let sent = |tag: u64| (tag / 2) as f64 / 20.0;
        let worst = |odd: u64| {
            events
                .iter()
                .filter(|e| e.tag % 2 == odd)
                .map(|e| e.at.as_secs_f64() - sent(e.tag))
                .fold(0.0, f64::max)
        };
        assert_eq!(events.len(), 800);
        assert!(worst(0) > 20.0, "the state API waits in line: {}", worst(0));
        assert!(worst(1) < 0.1, "the job API does not: {}", worst(1));
    }

    #[test]
    fn one_hundred_tails_wedge_the_job_api_until_the_job_ends_though_the_clients_left() {
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let mut events = Vec::new();
        let tails: Vec<Exchange> = (0..100)
            .map(|tag| {
                let tail = Demand { lasts: Some(Duration::from_mins(1)), ..demand(&plant, "log-tail", tag) };
                plant.arrive(Time::ZERO, &tail)
            })
            .collect();
        plant.advance(at(2.0), &mut events);
        assert_eq!(events.iter().filter(|e| e.step == Step::Opened).count(), 100);
        for tail in tails {
            plant.hang_up(at(2.0), tail);
        }
        let version = demand(&plant, "version", 999);
        plant.arrive(at(3.0), &version);
        let status = demand(&plant, "cluster-status", 998);
        plant.arrive(at(3.0), &status);
        plant.advance(at(59.0), &mut events);
        assert!(events.iter().any(|e| e.tag == 998), "other modules answer");
        assert!(!events.iter().any(|e| e.tag == 999), "the job API hangs");
        plant.advance(at(65.0), &mut events);
        assert!(events.iter().any(|e| e.tag == 999 && e.step == Step::Answered(200)));
    }

    #[test]
    fn abandoned_streams_make_the_state_api_answer_429_until_the_log_grows() {
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let mut events = Vec::new();
        for tag in 0..100 {
            let stream = Demand { lasts: Some(Duration::from_secs(80)), ..demand(&plant, "log-stream", tag) };
            let exchange = plant.arrive(Time::ZERO, &stream);
            plant.advance(at(1.0), &mut events);
            plant.hang_up(at(1.0), exchange);
        }
        for (tag, when) in [(998, 10.0), (999, 90.0)] {
            plant.advance(at(when), &mut events);
            let actors = demand(&plant, "actors", tag);
            plant.arrive(at(when), &actors);
        }
        plant.advance(at(95.0), &mut events);
        let step = |tag| events.iter().find(|e| e.tag == tag).map(|e| e.step);
        assert_eq!(step(998), Some(Step::Answered(429)));
        assert_eq!(step(999), Some(Step::Answered(200)));
    }

    #[test]
    fn every_job_is_accepted_and_they_start_at_about_one_a_second() {
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let accepted = flood(&mut plant, "job-submit", 3.0, 40.0, 42.0);
        let answers = accepted.iter().filter(|e| !matches!(e.step, Step::Begun | Step::Done));
        let accepted: Vec<&Event> = answers.collect();
        assert!(accepted.iter().all(|e| e.step == Step::Answered(200)));
        let (waiting, _) = plant.jobs();
        let per_second = (accepted.len() - waiting) as f64 / 42.0;
        assert!((0.8..1.5).contains(&per_second), "{per_second} starts a second");
        assert!(plant.gauges().node_cpu_pct > 95.0);
        assert!(plant.gauges().registered > 40.0);
    }

    #[test]
    fn users_tasks_take_the_cores_and_are_told_apart_from_the_heads_own() {
        let mut plant = Plant::new(Spec { user_cores: 2.0, ..Spec::ray_head() }, 1);
        plant.advance(at(30.0), &mut Vec::new());
        let gauges = plant.gauges();
        assert!(gauges.node_cpu_pct > 95.0, "{}", gauges.node_cpu_pct);
        assert!(gauges.user_cpu_pct > 150.0, "{}", gauges.user_cpu_pct);
        let own = gauges.parent_cpu_pct + gauges.gcs_cpu_pct + gauges.module_cpu_pct.iter().sum::<f64>();
        assert!(own < 10.0, "{own}");
    }

    #[test]
    fn a_job_that_brings_tasks_is_done_when_they_are_and_one_that_fits_nowhere_leaves_them_pending() {
        let mut spec = Spec::ray_head();
        spec.jobs.task_slots = 10.0;
        let mut plant = Plant::new(spec, 1);
        let submit = demand(&plant, "job-submit", 1);
        let brings = Brings { tasks: 600, task_s: 1.0, infeasible: false };
        plant.arrive(Time::ZERO, &Demand { brings, ..submit });
        let brings = Brings { tasks: 70, infeasible: true, ..brings };
        plant.arrive(Time::ZERO, &Demand { tag: 2, brings, lasts: Some(Duration::from_mins(5)), ..submit });
        let mut events = Vec::new();
        plant.advance(at(40.0), &mut events);
        let gauges = plant.gauges();
        assert!((gauges.infeasible_tasks - 70.0).abs() < 1e-9 && gauges.running_tasks > 9.0, "{gauges:?}");
        assert!((gauges.waiting_for_resources - 260.0).abs() < 130.0, "{}", gauges.waiting_for_resources);
        plant.advance(at(400.0), &mut events);
        let when =
            |tag, step| events.iter().find(|e| e.tag == tag && e.step == step).map(|e| e.at.as_secs_f64());
        assert!(when(1, Step::Begun).is_some_and(|at| at < 5.0));
        assert!(
            when(1, Step::Done).is_some_and(|at| (60.0..70.0).contains(&at)),
            "{:?}",
            when(1, Step::Done)
        );
        assert!(when(2, Step::Done).is_some_and(|at| (300.0..305.0).contains(&at)));
        assert!(plant.gauges().infeasible_tasks.abs() < 1e-9);
    }

    #[test]
    fn large_calls_keep_the_clusters_own_waiting_and_a_starved_raylet_falls_behind() {
        let mut spec = Spec { gcs_need: 0.6, raylet_need: 0.5, ..Spec::ray_head() };
        spec.jobs.listed = 2000;
        let worst = |per_second: f64| {
            let mut plant = Plant::new(spec.clone(), 1);
            let mut events = Vec::new();
            for n in 0..whole(per_second * 30.0) {
                let now = at(n as f64 / per_second);
                plant.advance(now, &mut events);
                let routes = ["job-list", "tasks", "nodes", "cluster-status"];
                let one = demand(&plant, routes[usize::try_from(n % 4).expect("small")], n);
                plant.arrive(now, &one);
            }
            plant.advance(at(30.0), &mut events);
            let worse = |a: Felt, b: Felt| Felt {
                gcs_ms: a.gcs_ms.max(b.gcs_ms),
                raylet_ms: a.raylet_ms.max(b.raylet_ms),
            };
            plant.take_felt().fold(Felt::default(), worse)
        };
        let (quiet, flooded) = (worst(0.2), worst(400.0));
        assert!(quiet.raylet_ms < 1.0 && flooded.raylet_ms > 1000.0, "{quiet:?} {flooded:?}");
        assert!(quiet.gcs_ms < flooded.gcs_ms && flooded.gcs_ms > 100.0, "{quiet:?} {flooded:?}");
    }

    #[test]
    fn a_ray_clients_process_outlives_its_client_by_its_grace_and_takes_memory() {
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let before = plant.memory_share();
        let session = Demand { lasts: Some(Duration::from_hours(1)), ..demand(&plant, "client-session", 1) };
        let exchange = plant.arrive(Time::ZERO, &session);
        let mut events = Vec::new();
        plant.advance(at(10.0), &mut events);
        assert!(events.iter().any(|e| e.step == Step::Opened));
        assert!(plant.memory_share() > before);
        plant.hang_up(at(10.0), exchange);
        plant.advance(at(39.0), &mut events);
        assert!(plant.memory_share() > before);
        plant.advance(at(41.0), &mut events);
        assert!(plant.memory_share() <= before);
    }

    #[test]
    fn gauges_stand_still_between_refreshes() {
        let mut plant = Plant::new(Spec::ray_head(), 5);
        let mut events = Vec::new();
        plant.advance(at(30.0), &mut events);
        let next = plant.next_event().expect("a refresh is always due");
        let before = plant.gauges().clone();
        let heavy = demand(&plant, "tasks", 0);
        plant.arrive(at(30.0), &heavy);
        plant.advance(Time(next.0 - 1), &mut events);
        assert_eq!(plant.gauges(), &before);
    }

    #[test]
    fn the_same_seed_gives_the_same_answers() {
        let run = |seed| flood(&mut Plant::new(Spec::ray_head(), seed), "job-list", 300.0, 5.0, 60.0);
        assert_eq!(run(4), run(4));
        assert_ne!(run(4), run(5));
    }

    #[test]
    fn half_the_capacity_takes_twice_the_time() {
        let mut plant = Plant::new(Spec::single_loop(200.0, 50.0), 1);
        plant.set_capacity(Time::ZERO, 0.5);
        let mut events = Vec::new();
        for tag in 0..100 {
            let cheap = demand(&plant, "cheap", tag);
            plant.arrive(Time::ZERO, &cheap);
        }
        plant.advance(at(0.5), &mut events);
        plant.set_capacity(at(0.5), 1.0);
        plant.advance(at(0.75), &mut events);
        assert_eq!(events.len(), 100);
    }

    #[test]
    fn a_restart_answers_everybody_and_starts_empty() {
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let mut events = Vec::new();
        for tag in 0..50 {
            let heavy = demand(&plant, "tasks", tag);
            plant.arrive(Time::ZERO, &heavy);
        }
        plant.advance(at(1.0), &mut events);
        plant.restart(at(1.0), &mut events);
        assert_eq!(events.len(), 50);
        let again = demand(&plant, "tasks", 99);
        plant.arrive(at(1.0), &again);
        plant.advance(at(2.0), &mut events);
        assert_eq!(events.len(), 51);
    }
}
