//! How far to trust the plant: recorded overloads of a real Ray head, replayed and laid
//! beside what was measured.
//!
//! Each case puts the recorded arrivals, second for second, into an unprotected plant and
//! compares what the clients saw. Fitted to the first three cases: [`Spec::crowding`],
//! [`Spec::wake_up_ms`], the CPU of a job's start, the clients' own share of the latency
//! (their HTTP library and a new connection each time, [`CLIENT_MS`]) and the cores taken by
//! other programs during a recording. The last case is kept out of the fit.

use super::head::Spec;
use super::heap::EventHeap;
use super::plant::{Demand, Event, Exchange, Plant, Step};
use super::trace::Trace;
use crate::core::time::{Time, duration_from_secs};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What the recording clients themselves add to every latency, milliseconds, *fitted*.
pub const CLIENT_MS: f64 = 1.3;

/// A recorded overload and how to set the plant up for it.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// Name of the recording, without its ending.
    pub name: &'static str,
    /// The head as it was.
    pub spec: Spec,
    /// The clients' time-out.
    pub timeout_s: f64,
    /// A closed loop beside the recorded arrivals: route, connections, from, to.
    pub closed: Option<(&'static str, u32, f64, f64)>,
    /// The windows that are compared: name, from, to.
    pub windows: &'static [(&'static str, f64, f64)],
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
    burst.jobs = super::head::Jobs { listed: 3, pending: 50, actors: 3, ..burst.jobs };
    let mut flood = head();
    flood.background_cores = 0.9;
    flood.jobs = super::head::Jobs { listed: 119, actors: 121, ..flood.jobs };
    const FLOOD: &[(&str, f64, f64)] = &[("before", 0.0, 9.5), ("flood", 11.0, 20.0), ("after", 24.0, 30.0)];
    vec![
        Case {
            name: "step_state",
            spec: state,
            timeout_s: 30.2,
            closed: None,
            windows: &[
                ("before", 2.0, 32.0),
                ("flood", 52.0, 72.0),
                ("draining", 72.0, 110.0),
                ("after", 160.0, 182.0),
            ],
            fitted: true,
        },
        Case {
            name: "job_burst",
            spec: burst,
            timeout_s: 30.2,
            closed: None,
            windows: &[("before", 2.0, 32.0), ("burst", 42.0, 72.0), ("draining", 72.0, 120.0)],
            fitted: true,
        },
        Case {
            name: "flood_job_list",
            spec: flood.clone(),
            timeout_s: 30.2,
            closed: Some(("job-list", 64, 10.0, 20.0)),
            windows: FLOOD,
            fitted: true,
        },
        Case {
            name: "flood_nodes",
            spec: flood,
            timeout_s: 30.2,
            closed: Some(("nodes", 128, 10.0, 20.0)),
            windows: FLOOD,
            fitted: false,
        },
    ]
}

/// What became of one replayed request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outcome {
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
    pub outcomes: Vec<Outcome>,
    /// Exported signals, once a second: the columns of the `_signals.csv` recordings.
    pub signals: Vec<[f64; SIGNALS.len()]>,
    /// Requests per second of the closed loop.
    pub closed_per_second: f64,
}

/// The columns of a recording's signals after `at_s`.
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
                let exchange = plant.arrive(now, &Demand { tag, route, size: 0.0, lasts: None });
                self.waiting.insert(tag, (now, exchange));
                script.push((now + duration_from_secs(self.case.timeout_s)).0, Next::GiveUp(index));
            }
            Next::GiveUp(index) => {
                if let Some((since, exchange)) = self.waiting.remove(&(index as u64)) {
                    plant.hang_up(now, exchange);
                    let latency_ms = now.since(since).as_secs_f64() * 1e3;
                    self.replay.outcomes.push(Outcome { arrival: index, latency_ms, ok: false });
                }
            }
            Next::Closed => {
                if let Some((route, _, _, to)) = self.case.closed
                    && now < Time::from_secs_f64(to)
                    && let Some(route) = plant.spec().route(route)
                {
                    plant.arrive(now, &Demand { tag: CLOSED, route, size: 0.0, lasts: None });
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
            self.replay.outcomes.push(Outcome { arrival, latency_ms, ok: status == 200 });
        }
    }
}

/// Measured beside simulated, for one route in one window.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    /// The window's name.
    pub window: &'static str,
    /// The plant's route.
    pub route: String,
    /// Requests in it.
    pub count: usize,
    /// Median latency, measured and simulated, milliseconds.
    pub p50_ms: (f64, f64),
    /// Share answered in time, measured and simulated.
    pub served: (f64, f64),
}

/// Lays a replay beside its recording.
#[must_use]
pub fn compare(case: &Case, trace: &Trace, replay: &Replay) -> Vec<Line> {
    let simulated: BTreeMap<usize, &Outcome> = replay.outcomes.iter().map(|o| (o.arrival, o)).collect();
    let mut lines = Vec::new();
    for &(window, from, to) in case.windows {
        let mut routes: BTreeMap<&str, [Vec<(f64, bool)>; 2]> = BTreeMap::new();
        for (index, arrival) in trace.arrivals.iter().enumerate() {
            let (Some(measured), Some(outcome)) = (arrival.measured, simulated.get(&index)) else { continue };
            if (from..to).contains(&arrival.at.as_secs_f64()) {
                let [real, model] = routes.entry(&arrival.route).or_default();
                real.push((measured.latency_ms, measured.status == 200));
                model.push((outcome.latency_ms, outcome.ok));
            }
        }
        for (route, [mut real, mut model]) in routes {
            let served =
                |all: &[(f64, bool)]| all.iter().filter(|(_, ok)| *ok).count() as f64 / all.len() as f64;
            lines.push(Line {
                window,
                route: route.to_owned(),
                count: real.len(),
                served: (served(&real), served(&model)),
                p50_ms: (median(&mut real), median(&mut model)),
            });
        }
    }
    lines
}

fn median(values: &mut [(f64, bool)]) -> f64 {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    values.get(values.len() / 2).map_or(f64::NAN, |value| value.0)
}

/// When the last request that arrived after `from` and failed, arrived: the end of an outage.
#[must_use]
pub fn outage_end_s(trace: &Trace, from: f64, failed: impl Fn(usize) -> bool) -> f64 {
    trace
        .arrivals
        .iter()
        .enumerate()
        .filter(|(index, arrival)| arrival.at.as_secs_f64() >= from && failed(*index))
        .map(|(_, arrival)| arrival.at.as_secs_f64())
        .fold(from, f64::max)
}

/// The comparison as text.
#[must_use]
pub fn report(case: &Case, lines: &[Line], replay: &Replay) -> String {
    let mut text = String::new();
    let fit = if case.fitted { "fitted" } else { "kept out of the fit" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} ({fit})", case.name);
    let _ = writeln!(
        text,
        "  {:<9} {:<15} {:>5} {:>11} {:>12} {:>6} {:>9} {:>9}",
        "window", "route", "n", "measured ms", "simulated ms", "ratio", "served", "simulated"
    );
    for line in lines {
        let (real, model) = line.p50_ms;
        let _ = writeln!(
            text,
            "  {:<9} {:<15} {:>5} {real:>11.1} {model:>12.1} {:>6.2} {:>8.0}% {:>8.0}%",
            line.window,
            line.route,
            line.count,
            model / real,
            line.served.0 * 100.0,
            line.served.1 * 100.0,
        );
    }
    if let Some((route, connections, _, _)) = case.closed {
        let rate = replay.closed_per_second;
        let _ = writeln!(text, "  closed loop of {connections} on {route}: {rate:.0} requests/s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::trace;

    fn recorded(name: &str) -> String {
        let path = format!("{}/simulations/recorded/{name}.csv", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn replayed(name: &str) -> (Case, Trace, Replay) {
        let case = cases().into_iter().find(|case| case.name == name).expect("a case");
        let trace = trace::read(&recorded(name)).expect("a trace");
        let replay = replay(&case, &trace, 1);
        (case, trace, replay)
    }

    /// The second in which a signal first passes `level`, in the recording and in the replay.
    fn rises(name: &str, replay: &Replay, signal: &str, level: f64) -> (f64, f64) {
        let column = SIGNALS.iter().position(|s| *s == signal).expect("a signal");
        let text = recorded(&format!("{name}_signals"));
        let measured = text
            .lines()
            .skip(1)
            .map(|line| line.split(',').map(|f| f.parse().unwrap_or(f64::NAN)).collect::<Vec<f64>>())
            // The recordings begin in the wake of whatever was done before.
            .find(|row| row[0] > 25.0 && row[column + 1] > level)
            .map_or(f64::NAN, |row| row[0]);
        let simulated = replay.signals.iter().enumerate().skip(25).find(|(_, row)| row[column] > level);
        (measured, simulated.map_or(f64::NAN, |(second, _)| second as f64))
    }

    #[test]
    fn medians_are_within_a_factor_of_two_of_what_was_measured() {
        for case in cases() {
            let (case, trace, replay) = replayed(case.name);
            let lines = compare(&case, &trace, &replay);
            println!("{}", report(&case, &lines, &replay));
            assert!(lines.len() > 15, "{} compares something", case.name);
            for line in lines.iter().filter(|line| line.count >= 20) {
                let ratio = line.p50_ms.1 / line.p50_ms.0;
                assert!((0.5..=2.0).contains(&ratio), "{}: {line:?} is off by {ratio:.2}", case.name);
                let served = (line.served.0 - line.served.1).abs();
                assert!(served < 0.1, "{}: {line:?}", case.name);
            }
        }
    }

    #[test]
    fn the_state_api_is_out_for_as_long_as_it_was() {
        let (_, trace, replay) = replayed("step_state");
        let failed: BTreeMap<usize, bool> = replay.outcomes.iter().map(|o| (o.arrival, !o.ok)).collect();
        let actors = |index: usize| &*trace.arrivals[index].route == "actors";
        let flood_ends = 72.0;
        let real = outage_end_s(&trace, flood_ends, |index| {
            actors(index) && trace.arrivals[index].measured.is_some_and(|m| m.status != 200)
        }) - flood_ends;
        let model = outage_end_s(&trace, flood_ends, |index| actors(index) && failed[&index]) - flood_ends;
        println!("outage after the flood: measured {real:.0} s, simulated {model:.0} s");
        assert!((model / real - 1.0).abs() < 0.3, "measured {real} s, simulated {model} s");
    }

    #[test]
    fn signals_rise_when_they_did_give_or_take_a_refresh() {
        for (name, signal, level, refresh) in [
            ("step_state", "state_head_cpu_pct", 40.0, 5.0),
            ("step_state", "node_cpu_pct", 40.0, 5.0),
            ("step_state", "event_loop_tasks", 100.0, 5.0),
            ("job_burst", "node_cpu_pct", 80.0, 5.0),
            ("job_burst", "registered", 10.0, 10.0),
            ("job_burst", "waiting_for_workers", 15.0, 10.0),
            ("job_burst", "pending_tasks", 70.0, 10.0),
        ] {
            let (_, _, replay) = replayed(name);
            let (measured, simulated) = rises(name, &replay, signal, level);
            println!("{name} {signal} > {level}: measured {measured:.0} s, simulated {simulated:.0} s");
            assert!((measured - simulated).abs() <= refresh + 1.0, "{name} {signal}: {measured} {simulated}");
        }
    }

    #[test]
    fn a_signal_that_stood_still_stands_still() {
        let (_, _, state) = replayed("step_state");
        assert!(state.signals.iter().all(|row| row[4] < 1.0), "a state flood submits nothing");
        let (_, _, burst) = replayed("job_burst");
        assert!(burst.signals.iter().all(|row| row[1] < 40.0), "a job burst leaves the StateHead idle");
    }
}
