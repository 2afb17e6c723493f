//! How far to trust the plant: recorded overloads of a real Ray head, replayed and laid
//! beside what was measured.
//!
//! Each case puts the recorded arrivals, second for second, into an unprotected plant; what the
//! clients saw and what the signals showed is judged in [`super::model_fit`]. `FITTED` names
//! what was fitted to the first three cases. The last case is kept out of the fit.

use rayguard_core::time::{Time, duration_from_secs};
use rayguard_sim::head::Spec;
use rayguard_sim::heap::EventHeap;
use rayguard_sim::plant::{Demand, Event, Exchange, Plant, Step};
use rayguard_sim::trace::Trace;
use std::collections::BTreeMap;

/// What the trace clients themselves add to every latency, milliseconds, *fitted*.
pub(crate) const CLIENT_MS: f64 = 1.3;

/// Parameters of the plant that no measurement gives: they were chosen so that the fitted cases
/// come out as recorded. Everything else in [`Spec`] was measured.
pub(crate) const FITTED: [(&str, &str); 7] = [
    ("crowding", "0.15: speed lost when every core is busy"),
    ("wake_up_ms", "2.2 ms per root of runnable processes beyond the cores, at each turn"),
    ("turn_ms", "0.3 ms to wake a process up on an idle node"),
    ("jobs.start_ms", "1250 ms of CPU to start a job: 0.9 starts a second on 2 busy cores"),
    ("gcs_share", "what the GCS pays of a list: 0.3 for jobs, 0.05 for tasks"),
    ("client_ms", "1.3 ms: the trace clients' own share of a latency"),
    ("background_cores", "0.3 to 0.9 by case: other programs on the node during the trace"),
];

/// What a process does in addition to its requests is no part of the model: pauses of its memory management, its own
/// reports, its turn on a core after other programs. They are the slowest hundredth wherever a median is a few
/// milliseconds.
const PAUSES: &str = "pauses are not modelled";

/// A recorded overload and how to set the plant up for it.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// Name of the trace, without its ending.
    pub name: &'static str,
    /// The head as it was.
    pub spec: Spec,
    /// The clients' time-out.
    pub timeout_s: f64,
    /// A closed loop beside the recorded arrivals: route, connections, from, to.
    pub closed: Option<(&'static str, u32, f64, f64)>,
    /// Requests per second of that loop, as measured alone (`wrk`).
    pub closed_per_second: f64,
    /// The windows that are compared: name, from, to.
    pub windows: &'static [(&'static str, f64, f64)],
    /// When each signal must rise: column, level it passes, its refresh in seconds.
    pub rises: &'static [(&'static str, f64, f64)],
    /// Signals that must stay: column, level they never pass.
    pub stays: &'static [(&'static str, f64)],
    /// The outage that outlasts the flood: route, when the flood ended.
    pub outage: Option<(&'static str, f64)>,
    /// Which p99 are further from the recorded ones than a factor 2 (how `window: route` begins), and why.
    pub unlike: &'static [(&'static str, &'static str)],
    /// Whether the plant was fitted to it.
    pub fitted: bool,
}

/// The recorded overloads.
#[must_use]
pub fn cases() -> Vec<Case> {
    let head = Spec::ray_head;
    let mut state = head();
    state.background_cores = 0.3;
    state.jobs.pending = 50;
    let mut burst = head();
    burst.background_cores = 0.4;
    burst.jobs = rayguard_sim::head::Jobs { listed: 3, pending: 50, actors: 3, ..burst.jobs };
    let mut flood = head();
    flood.background_cores = 0.9;
    flood.jobs = rayguard_sim::head::Jobs { listed: 119, actors: 121, ..flood.jobs };
    const FLOOD: &[(&str, f64, f64)] = &[("before", 0.0, 9.5), ("flood", 11.0, 20.0), ("after", 24.0, 30.0)];
    vec![
        Case {
            name: "step_state",
            spec: state,
            timeout_s: 30.2,
            closed: None,
            closed_per_second: f64::NAN,
            rises: &[
                ("state_head_cpu_pct", 40.0, 5.0),
                ("node_cpu_pct", 40.0, 5.0),
                ("event_loop_tasks", 100.0, 5.0),
            ],
            stays: &[
                ("job_head_cpu_pct", 20.0),
                ("registered", 1.0),
                ("waiting_for_workers", 1.0),
                ("pending_tasks", 51.0),
            ],
            outage: Some(("actors", 72.0)),
            windows: &[
                ("before", 2.0, 32.0),
                ("flood", 52.0, 72.0),
                ("draining", 72.0, 110.0),
                ("after", 160.0, 182.0),
            ],
            unlike: &[
                ("before:", PAUSES),
                ("flood: cluster-status", PAUSES),
                ("flood: job-list", PAUSES),
                ("flood: version", PAUSES),
                ("draining: cluster-status", PAUSES),
                ("draining: version", PAUSES),
                ("after: actors", PAUSES),
                ("after: cluster-status", PAUSES),
                ("after: job", PAUSES),
            ],
            fitted: true,
        },
        Case {
            name: "job_burst",
            spec: burst,
            timeout_s: 30.2,
            closed: None,
            closed_per_second: f64::NAN,
            rises: &[
                ("node_cpu_pct", 80.0, 5.0),
                ("job_head_cpu_pct", 8.0, 5.0),
                ("registered", 10.0, 10.0),
                ("waiting_for_workers", 15.0, 10.0),
                ("pending_tasks", 70.0, 10.0),
            ],
            // The loop's tasks do rise, 21 to 40 and 77 at most, and in the model to 33: less than any alarm.
            stays: &[("state_head_cpu_pct", 40.0), ("event_loop_tasks", 100.0)],
            outage: None,
            windows: &[("before", 2.0, 32.0), ("burst", 42.0, 72.0), ("draining", 72.0, 120.0)],
            unlike: &[("before:", PAUSES), ("burst: cluster-status", PAUSES), ("burst: version", PAUSES)],
            fitted: true,
        },
        Case {
            name: "flood_job_list",
            spec: flood.clone(),
            timeout_s: 30.2,
            closed: Some(("job-list", 64, 10.0, 20.0)),
            closed_per_second: 47.0,
            rises: &[],
            stays: &[],
            outage: None,
            windows: FLOOD,
            unlike: &[],
            fitted: true,
        },
        Case {
            name: "flood_nodes",
            spec: flood,
            timeout_s: 30.2,
            closed: Some(("nodes", 128, 10.0, 20.0)),
            closed_per_second: 2000.0,
            rises: &[],
            stays: &[],
            outage: None,
            windows: FLOOD,
            unlike: &[],
            fitted: false,
        },
    ]
}

/// What became of one replayed request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ReplayedAnswer {
    /// Index into the trace.
    pub arrival: usize,
    /// What the client saw, its own share included.
    pub latency_ms: f64,
    /// Answered in time.
    pub ok: bool,
}

/// A replayed case.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Replay {
    /// One per recorded request.
    pub outcomes: Vec<ReplayedAnswer>,
    /// Exported signals, once a second: the columns of the `_signals.csv` traffic traces.
    pub signals: Vec<[f64; SIGNALS.len()]>,
    /// Requests per second of the closed loop.
    pub closed_per_second: f64,
}

/// The columns of a trace's signals after `at_s`.
pub const SIGNALS: [&str; 7] = [
    "node_cpu_pct",
    "state_head_cpu_pct",
    "job_head_cpu_pct",
    "event_loop_tasks",
    "registered",
    "waiting_for_workers",
    "pending_tasks",
];

#[derive(Clone, Copy)]
enum Next {
    Recorded(usize),
    GiveUp(usize),
    Closed,
    Sample,
}

/// Tags from here on belong to the closed loop.
const CLOSED: u64 = 1 << 40;

/// Replays a case without protection.
#[must_use]
pub fn replay(case: &Case, trace: &Trace, seed: u64) -> Replay {
    let mut plant = Plant::new(case.spec.clone(), seed);
    let mut script = EventHeap::default();
    for (index, arrival) in trace.arrivals.iter().enumerate() {
        script.push(arrival.at.0, Next::Recorded(index));
    }
    let end = trace.arrivals.last().map_or(Time::ZERO, |a| a.at) + duration_from_secs(case.timeout_s);
    let mut second = 0.0;
    while Time::from_secs_f64(second) < end {
        script.push(Time::from_secs_f64(second).0, Next::Sample);
        second += 1.0;
    }
    if let Some((_, connections, from, _)) = case.closed {
        for _ in 0..connections {
            script.push(Time::from_secs_f64(from).0, Next::Closed);
        }
    }
    let mut run = Run { case, trace, waiting: BTreeMap::new(), replay: Replay::default() };
    let mut events: Vec<Event> = Vec::new();
    loop {
        let (scripted, due) =
            (script.next_key().unwrap_or(u64::MAX), plant.next_event().map_or(u64::MAX, |t| t.0));
        let now = Time(scripted.min(due));
        if now > end {
            break;
        }
        if due <= scripted {
            plant.advance(now, &mut events);
        } else if let Some((_, next)) = script.pop() {
            run.step(next, now, &mut plant, &mut script);
        }
        for event in events.drain(..) {
            run.answered(&event, &mut script);
        }
    }
    if let Some((_, _, from, to)) = case.closed {
        run.replay.closed_per_second /= to - from;
    }
    run.replay
}

struct Run<'a> {
    case: &'a Case,
    trace: &'a Trace,
    waiting: BTreeMap<u64, (Time, Exchange)>,
    replay: Replay,
}

impl Run<'_> {
    fn step(&mut self, next: Next, now: Time, plant: &mut Plant, script: &mut EventHeap<Next>) {
        match next {
            Next::Recorded(index) => {
                let name = &self.trace.arrivals[index].route;
                let Some(route) = plant.spec().route(name) else { return };
                let tag = index as u64;
                let exchange = plant.arrive(now, &Demand::of(tag, route));
                self.waiting.insert(tag, (now, exchange));
                script.push((now + duration_from_secs(self.case.timeout_s)).0, Next::GiveUp(index));
            }
            Next::GiveUp(index) => {
                if let Some((since, exchange)) = self.waiting.remove(&(index as u64)) {
                    plant.hang_up(now, exchange);
                    let latency_ms = now.since(since).as_secs_f64() * 1e3;
                    self.replay.outcomes.push(ReplayedAnswer { arrival: index, latency_ms, ok: false });
                }
            }
            Next::Closed => {
                if let Some((route, _, _, to)) = self.case.closed
                    && now < Time::from_secs_f64(to)
                    && let Some(route) = plant.spec().route(route)
                {
                    plant.arrive(now, &Demand::of(CLOSED, route));
                }
            }
            Next::Sample => {
                let gauges = plant.gauges();
                self.replay.signals.push([
                    gauges.node_cpu_pct,
                    gauges.module_cpu_pct[1],
                    gauges.module_cpu_pct[0],
                    gauges.event_loop_tasks,
                    gauges.registered,
                    gauges.waiting_for_workers,
                    gauges.pending_tasks,
                ]);
            }
        }
    }

    fn answered(&mut self, event: &Event, script: &mut EventHeap<Next>) {
        if event.tag >= CLOSED {
            self.replay.closed_per_second += 1.0;
            script.push(event.at.0, Next::Closed);
        } else if let (Some((since, _)), Step::Answered(status)) =
            (self.waiting.remove(&event.tag), event.step)
        {
            let latency_ms = event.at.since(since).as_secs_f64() * 1e3 + CLIENT_MS;
            let arrival = usize::try_from(event.tag).unwrap_or(usize::MAX);
            self.replay.outcomes.push(ReplayedAnswer { arrival, latency_ms, ok: status == 200 });
        }
    }
}
