//! What does a trace say of the head it was made at?
//!
//! Three things can be had from how long answers took, without a single request of our own:
//!
//! - **Service time** of a route: the median latency of exchanges that had their module to
//!   themselves from beginning to end. Without such, the lowest tenth of all is an upper bound.
//! - **Capacity** of a module, as work per second: `sum(service time of what ended) / length`
//!   of windows in which work stood in line: in the module (more than one and a half under way on
//!   average, and answers half as slow again as alone), or at the proxy while the module was hardly
//!   ever idle. 1 is one process that is never idle, which is what
//!   Ray's modules are; more means that requests wait for others and let the next one work.
//! - **Dead time** of signals: how old readings were when they came, and how often they were new.
//!
//! What a trace cannot show, it does not tell: a module that was never saturated has a
//! capacity of *at least* what it did, and [`Identified::unknown`] says so in words. Routes that
//! were not asked, cores, the start of jobs and the size of the cluster stay those of the
//! calibrated head ([`Spec::ray_head`]), to which what was found is laid over ([`Identified::spec`]).

use rayguard_core::admission::meter::Reason;
use rayguard_core::time::Time;
use rayguard_core::traffic_trace::{Ending, TrafficTrace};
use rayguard_sim::head::{RouteId, Spec};
use rayguard_sim::plant::{Demand, Plant};
use rayguard_sim::trace::Guide;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Length of the windows in which saturation is looked for.
const WINDOW_S: f64 = 5.0;
/// Windows it takes to speak of a capacity.
const WINDOWS_MIN: usize = 3;
/// Exchanges alone it takes to speak of a service time.
const ALONE_MIN: usize = 5;
/// Exchanges of any kind it takes for an upper bound.
const ANY_MIN: usize = 20;

/// A route's service time.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RouteFit {
    /// The trace's name of it.
    pub route: String,
    /// Its class.
    pub class: String,
    /// Its module.
    pub module: String,
    /// The plant's name of it.
    pub plant: Option<String>,
    /// Exchanges that Ray answered.
    pub answered: usize,
    /// Of these, alone in their module.
    pub alone: usize,
    /// Median latency of those alone, milliseconds; without enough of them, an upper bound.
    pub service_ms: Option<f64>,
}

/// A module's capacity.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ModuleFit {
    /// Its name.
    pub module: String,
    /// The most under way at once.
    pub in_flight_max: u32,
    /// Seconds in which work stood in line.
    pub saturated_s: f64,
    /// Work per second, in seconds of service time: median of the windows in which it was saturated.
    pub capacity: Option<f64>,
    /// The most it did in any window.
    pub busiest: f64,
}

/// A signal's age and cadence.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SignalFit {
    /// Its name.
    pub signal: String,
    /// Its target at the time.
    pub target: f64,
    /// Its unit.
    pub unit: String,
    /// Readings.
    pub readings: usize,
    /// Median age when it came, seconds.
    pub age_s: f64,
    /// Median time between two readings, seconds.
    pub every_s: f64,
    /// 95 % quantile while nothing was saturated and nothing refused.
    pub calm_p95: Option<f64>,
    /// The highest of all.
    pub max: f64,
}

/// What a class costs, and how long it takes while nothing stands in line.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ClassFit {
    /// Its name.
    pub class: String,
    /// Its module.
    pub module: String,
    /// Answers while its module was not saturated.
    pub calm: usize,
    /// Their latency at the quantile of the class's objective, milliseconds.
    pub calm_ms: Option<f64>,
    /// Mean service time of what was asked, milliseconds.
    pub service_ms: Option<f64>,
}

/// What was found.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Identified {
    /// Service times.
    pub routes: Vec<RouteFit>,
    /// Capacities.
    pub modules: Vec<ModuleFit>,
    /// Classes.
    pub classes: Vec<ClassFit>,
    /// Dead times.
    pub signals: Vec<SignalFit>,
    /// What the trace cannot show, in words.
    pub unknown: Vec<String>,
}

/// One answered exchange of a module.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: f64,
    to: f64,
    route: u16,
}

/// Finds what can be found.
#[must_use]
pub fn identify(trace: &TrafficTrace, guide: &Guide) -> Identified {
    let mut found = Identified::default();
    let mut saturated: Vec<(f64, f64)> = Vec::new();
    for (module, spans) in by_module(trace) {
        let services = services(trace, guide, &module, &spans, &mut found.routes);
        let mut own = Vec::new();
        let at_proxy = line_at_proxy(trace, &module);
        found.modules.push(capacity(module.clone(), &spans, &services, &at_proxy, &mut own));
        classes(trace, &module, &services, &own, &mut found.classes);
        saturated.append(&mut own);
    }
    signals(trace, &saturated, &mut found.signals);
    say_what_is_unknown(trace, &mut found);
    found
}

/// What Ray worked on, by module, in order of admission. Held connections do not work.
fn by_module(trace: &TrafficTrace) -> BTreeMap<String, Vec<Span>> {
    let mut modules: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for arrival in &trace.arrivals {
        let it = &arrival.exchange;
        let class = &trace.head.classes[usize::from(it.class)];
        let answered = matches!(it.ending, Ending::Served | Ending::Failed | Ending::Abandoned);
        if answered && !class.held {
            let from = arrival.at.as_secs_f64() + it.waited_us as f64 / 1e6;
            let to = (from + it.latency_us as f64 / 1e6).min(trace.until.as_secs_f64()).max(from);
            let span = Span { from, to, route: it.route };
            modules.entry(class.module.clone()).or_default().push(span);
        }
    }
    for spans in modules.values_mut() {
        spans.sort_by(|a, b| a.from.total_cmp(&b.from));
    }
    modules
}

fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let at = (q * sorted.len() as f64) as usize;
    sorted.get(at.min(sorted.len().checked_sub(1)?)).copied()
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Service times of a module's routes, seconds.
fn services(
    trace: &TrafficTrace,
    guide: &Guide,
    module: &str,
    spans: &[Span],
    fits: &mut Vec<RouteFit>,
) -> BTreeMap<u16, f64> {
    let mut all: BTreeMap<u16, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let mut busy_until = f64::NEG_INFINITY;
    for (at, span) in spans.iter().enumerate() {
        let next = spans.get(at + 1).map_or(f64::INFINITY, |next| next.from);
        let (lengths, alone) = all.entry(span.route).or_default();
        lengths.push(span.to - span.from);
        if busy_until <= span.from && span.to <= next {
            alone.push(span.to - span.from);
        }
        busy_until = busy_until.max(span.to);
    }
    let class_of = |route: u16| {
        let class = trace.arrivals.iter().find(|it| it.exchange.route == route)?.exchange.class;
        Some(trace.head.classes.get(usize::from(class))?.name.clone())
    };
    let mut services = BTreeMap::new();
    for (route, (lengths, alone)) in all {
        let (answered, alone) = (lengths.len(), sorted(alone));
        let service = if alone.len() >= ALONE_MIN {
            quantile(&alone, 0.5)
        } else if answered >= ANY_MIN {
            quantile(&sorted(lengths), 0.1)
        } else {
            None
        };
        if let Some(service) = service {
            services.insert(route, service);
        }
        let label = trace.head.routes.get(usize::from(route)).cloned().unwrap_or_default();
        let class = class_of(route).unwrap_or_default();
        fits.push(RouteFit {
            plant: guide.plant_route(&label, &class, module).map(str::to_owned),
            route: label,
            class,
            module: module.to_owned(),
            answered,
            alone: alone.len(),
            service_ms: service.map(|seconds| 1e3 * seconds),
        });
    }
    services
}

/// When somebody stood in line at the proxy for a module, or was refused for want of room in it.
fn line_at_proxy(trace: &TrafficTrace, module: &str) -> Vec<f64> {
    /// A shorter wait is a queue that works, not a line.
    const WAITED_US: u64 = 50_000;
    let stood = trace.arrivals.iter().filter(|it| {
        let class = &trace.head.classes[usize::from(it.exchange.class)];
        let refused = matches!(
            it.exchange.ending,
            Ending::Shed(
                Reason::ClassInFlight | Reason::ModuleInFlight | Reason::ClientShare | Reason::QueueTimeout
            )
        );
        class.module == module && (refused || it.exchange.waited_us > WAITED_US)
    });
    stood.map(|it| it.at.as_secs_f64()).collect()
}

/// What a module did in windows in which work stood in line.
fn capacity(
    module: String,
    spans: &[Span],
    services: &BTreeMap<u16, f64>,
    at_proxy: &[f64],
    saturated: &mut Vec<(f64, f64)>,
) -> ModuleFit {
    /// Of one window: in-flight seconds, work, latencies, endings.
    #[derive(Default)]
    struct Bin {
        in_flight: f64,
        work: f64,
        latency: f64,
        ended: f64,
    }
    let begin = spans.first().map_or(0.0, |span| span.from);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a day has 17,280 windows")]
    let bin = |at: f64| ((at - begin) / WINDOW_S).max(0.0) as usize;
    let mut bins: BTreeMap<usize, Bin> = BTreeMap::new();
    let lines: BTreeSet<usize> = at_proxy.iter().map(|at| bin(*at)).collect();
    for span in spans {
        for at in bin(span.from)..=bin(span.to) {
            let (low, high) = (begin + at as f64 * WINDOW_S, begin + (at + 1) as f64 * WINDOW_S);
            bins.entry(at).or_default().in_flight += (span.to.min(high) - span.from.max(low)).max(0.0);
        }
        if let Some(service) = services.get(&span.route) {
            let ended = bins.entry(bin(span.to)).or_default();
            ended.work += service;
            ended.latency += span.to - span.from;
            ended.ended += 1.0;
        }
    }
    let mut loads = Vec::new();
    let mut busiest: f64 = 0.0;
    for (at, bin) in &bins {
        let load = bin.work / WINDOW_S;
        busiest = busiest.max(load);
        let (under_way, waits) = (bin.in_flight / WINDOW_S, bin.latency > 1.5 * bin.work);
        let in_line = under_way > 1.5 && waits || under_way > 0.9 && lines.contains(at);
        if in_line && bin.ended >= 1.0 {
            loads.push(load);
            let from = begin + *at as f64 * WINDOW_S;
            saturated.push((from, from + WINDOW_S));
        }
    }
    ModuleFit {
        module,
        in_flight_max: in_flight_max(spans),
        saturated_s: loads.len() as f64 * WINDOW_S,
        capacity: (loads.len() >= WINDOWS_MIN).then(|| quantile(&sorted(loads), 0.5)).flatten(),
        busiest,
    }
}

/// A module's classes, by what they cost and how long they take in calm.
fn classes(
    trace: &TrafficTrace,
    module: &str,
    services: &BTreeMap<u16, f64>,
    saturated: &[(f64, f64)],
    fits: &mut Vec<ClassFit>,
) {
    for (number, head) in trace.head.classes.iter().enumerate().filter(|(_, head)| head.module == module) {
        let own = trace.arrivals.iter().filter(|it| usize::from(it.exchange.class) == number);
        let served: Vec<_> = own.filter(|it| it.exchange.ending == Ending::Served).collect();
        if served.is_empty() {
            continue;
        }
        let calm = served.iter().filter(|it| {
            let at = it.at.as_secs_f64();
            !saturated.iter().any(|(from, to)| (*from..*to).contains(&at))
        });
        let calm = sorted(calm.map(|it| it.exchange.latency_us as f64 / 1e3).collect());
        let costs: Vec<f64> =
            served.iter().filter_map(|it| services.get(&it.exchange.route)).map(|s| 1e3 * s).collect();
        fits.push(ClassFit {
            class: head.name.clone(),
            module: module.to_owned(),
            calm: calm.len(),
            calm_ms: (calm.len() >= ANY_MIN)
                .then(|| quantile(&calm, head.slo_quantile.clamp(0.0, 1.0)))
                .flatten(),
            service_ms: (!costs.is_empty()).then(|| costs.iter().sum::<f64>() / costs.len() as f64),
        });
    }
}

fn in_flight_max(spans: &[Span]) -> u32 {
    let mut edges: Vec<(f64, i32)> = spans.iter().flat_map(|span| [(span.from, 1), (span.to, -1)]).collect();
    edges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut most) = (0_i32, 0_i32);
    for (_, step) in edges {
        now += step;
        most = most.max(now);
    }
    u32::try_from(most).unwrap_or(0)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn whole_s(seconds: f64) -> u64 {
    seconds as u64
}

fn signals(trace: &TrafficTrace, saturated: &[(f64, f64)], fits: &mut Vec<SignalFit>) {
    // After a saturated window or a refusal, a signal needs a while to come down.
    const SETTLE_S: u64 = 30;
    let refused = trace.arrivals.iter().filter(|it| matches!(it.exchange.ending, Ending::Shed(_)));
    let mut unquiet: BTreeSet<u64> = refused.map(|it| whole_s(it.at.as_secs_f64())).collect();
    for (from, to) in saturated {
        unquiet.extend(whole_s(*from)..=whole_s(*to));
    }
    let calm = |at: u64| unquiet.range(at.saturating_sub(SETTLE_S)..=at).next().is_none();
    for (number, head) in trace.head.signals.iter().enumerate() {
        let readings: Vec<_> = trace.signals.iter().filter(|it| usize::from(it.signal) == number).collect();
        let Some(last) = readings.last() else { continue };
        let gaps = readings.windows(2).map(|pair| pair[1].at.since(pair[0].at).as_secs_f64());
        let ages = readings.iter().map(|it| it.age.as_secs_f64());
        let quiet = readings.iter().filter(|it| calm(whole_s(it.at.as_secs_f64()))).map(|it| it.value);
        let quiet = sorted(quiet.collect());
        fits.push(SignalFit {
            signal: head.name.clone(),
            target: head.target,
            unit: head.unit.clone(),
            readings: readings.len(),
            age_s: quantile(&sorted(ages.collect()), 0.5).unwrap_or(0.0),
            every_s: quantile(&sorted(gaps.collect()), 0.5).unwrap_or(0.0),
            calm_p95: (quiet.len() >= ALONE_MIN).then(|| quantile(&quiet, 0.95)).flatten(),
            max: readings.iter().map(|it| it.value).fold(last.value, f64::max),
        });
    }
}

fn say_what_is_unknown(trace: &TrafficTrace, found: &mut Identified) {
    let mut say = |words: String| found.unknown.push(words);
    for module in found.modules.iter().filter(|module| module.capacity.is_none()) {
        say(format!(
            "{} was never saturated ({} under way at most): it can do at least {:.2} s of work a second; \
                the maximum is unknown",
            module.module, module.in_flight_max, module.busiest
        ));
    }
    for route in found.routes.iter().filter(|route| route.service_ms.is_none()) {
        say(format!("{}: {} answers are too few for a service time", route.route, route.answered));
    }
    for route in found.routes.iter().filter(|route| route.service_ms.is_some() && route.alone < ALONE_MIN) {
        say(format!("{}: almost never alone in its module; its service time is an upper bound", route.route));
    }
    for name in trace.head.signals.iter().map(|signal| &signal.name) {
        if !found.signals.iter().any(|signal| signal.signal == *name) {
            say(format!("{name}: never read"));
        }
    }
    for signal in found.signals.iter().filter(|signal| signal.unit == "%") {
        if let Some(calm) = signal.calm_p95.filter(|calm| *calm > 0.95 * signal.target.max(90.0)) {
            say(format!(
                "{} was at {calm:.0} % while no request waited: something else uses the node, and no \
                    target can correct that",
                signal.signal
            ));
        }
    }
    say("the cores of the node, how fast jobs start and how many tasks there are: not in a trace".to_owned());
    if trace.lost > 0 || trace.beheaded || trace.unreadable > 0 {
        say(format!(
            "{} lines were lost, {} cannot be read{}",
            trace.lost,
            trace.unreadable,
            if trace.beheaded { ", and the beginning was overwritten" } else { "" }
        ));
    }
}

impl Identified {
    /// The calibrated head on so many cores, with the service times and capacities that were
    /// found laid over it.
    #[must_use]
    pub fn spec(&self, cores: f64) -> Spec {
        let mut spec = Spec { cores, ..Spec::ray_head() };
        for fit in &self.routes {
            let (Some(name), Some(service_ms)) = (&fit.plant, fit.service_ms) else { continue };
            let Some(route) = spec.route(name) else { continue };
            let capacity = self.modules.iter().find(|module| module.module == fit.module);
            let capacity = capacity.and_then(|module| module.capacity);
            fit_route(&mut spec, route, service_ms, capacity);
        }
        spec
    }
}

/// Scales a route's costs until it takes so long alone; what its module can do beside sets how
/// much of that is work and how much waiting.
fn fit_route(spec: &mut Spec, id: RouteId, service_ms: f64, capacity: Option<f64>) {
    for _ in 0..4 {
        let now_ms = alone_ms(spec, id);
        if now_ms <= 0.0 {
            return;
        }
        let factor = (service_ms / now_ms).clamp(0.05, 20.0);
        let route = &mut spec.routes[id.index()];
        for cost in [
            &mut route.base_ms,
            &mut route.per_job_ms,
            &mut route.per_task_ms,
            &mut route.per_actor_ms,
            &mut route.wait_ms,
            &mut route.outside_ms,
            &mut route.gcs_ms,
        ] {
            *cost *= factor;
        }
    }
    let Some(capacity) = capacity.filter(|capacity| *capacity > 0.0) else { return };
    let work_ms = Plant::new(spec.clone(), 1).cost_ms(id, 0.0);
    let whole_ms = work_ms + spec.routes[id.index()].wait_ms;
    if work_ms > 0.0 {
        // One process: what does not wait works.
        let wanted_ms = (whole_ms / capacity.max(1.0)).min(whole_ms);
        let route = &mut spec.routes[id.index()];
        let factor = wanted_ms / work_ms;
        for cost in
            [&mut route.base_ms, &mut route.per_job_ms, &mut route.per_task_ms, &mut route.per_actor_ms]
        {
            *cost *= factor;
        }
        route.wait_ms = whole_ms - wanted_ms;
    }
}

/// What a route takes on an idle head: the median of a few.
fn alone_ms(spec: &Spec, route: RouteId) -> f64 {
    let mut plant = Plant::new(spec.clone(), 7);
    let mut events = Vec::new();
    let mut lengths = Vec::new();
    for tag in 0..15_u64 {
        let at = Time::from_secs_f64(20.0 * tag as f64);
        plant.advance(at, &mut events);
        plant.arrive(at, &Demand { lasts: Some(Duration::from_millis(1)), ..Demand::of(tag, route) });
        events.clear();
        plant.advance(at + Duration::from_secs(19), &mut events);
        let answer = events.iter().find(|event| event.tag == tag);
        lengths.extend(answer.map(|event| event.at.since(at).as_secs_f64() * 1e3));
    }
    quantile(&sorted(lengths), 0.5).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayguard_core::traffic_trace::{Arrival, ClassHead, Exchange, TraceHead};

    /// A trace of one route: arrivals in seconds and how long each took.
    fn trace(spans: &[(f64, f64)]) -> TrafficTrace {
        let exchange = |seconds: f64| Exchange {
            class: 0,
            route: 0,
            address: 1,
            credential: None,
            ending: Ending::Served,
            would_shed: None,
            waited_us: 0,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's length")]
            latency_us: (seconds * 1e6) as u64,
            asked_bytes: 0,
            answered_bytes: 0,
        };
        TrafficTrace {
            head: TraceHead {
                classes: vec![ClassHead {
                    name: "state-heavy".into(),
                    module: "StateHead".into(),
                    ..ClassHead::default()
                }],
                routes: vec!["GET /api/v0/tasks".into()],
                ..TraceHead::default()
            },
            arrivals: spans
                .iter()
                .map(|(at, length)| Arrival { at: Time::from_secs_f64(*at), exchange: exchange(*length) })
                .collect(),
            until: Time::from_secs_f64(100.0),
            ..TrafficTrace::default()
        }
    }

    /// One server that takes 200 ms: alone for a while, then four times as much as it can do.
    fn saturated() -> TrafficTrace {
        let mut spans: Vec<(f64, f64)> = (0..20).map(|n| (f64::from(n), 0.2)).collect();
        for n in 0..200 {
            let arrives = 30.0 + 0.05 * f64::from(n);
            spans.push((arrives, 30.0 + 0.2 * f64::from(n + 1) - arrives));
        }
        trace(&spans)
    }

    #[test]
    fn one_server_of_200_ms_is_found_out() {
        let found = identify(&saturated(), &Guide::new());
        let route = &found.routes[0];
        assert!(route.service_ms.is_some_and(|ms| (ms - 200.0).abs() < 2.0), "{route:?}");
        assert_eq!((route.alone, route.plant.as_deref()), (20, Some("tasks")));
        let module = &found.modules[0];
        assert!(module.capacity.is_some_and(|capacity| (capacity - 1.0).abs() < 0.05), "{module:?}");
        assert!(!found.unknown.iter().any(|words| words.contains("never saturated")), "{:?}", found.unknown);
    }

    #[test]
    fn a_module_that_was_never_saturated_is_said_to_be_unknown() {
        let calm: Vec<(f64, f64)> = (0..50).map(|n| (f64::from(n), 0.2)).collect();
        let found = identify(&trace(&calm), &Guide::new());
        assert_eq!(found.modules[0].capacity, None);
        assert!(
            found.unknown[0].contains("StateHead was never saturated (1 under way at most)"),
            "{:?}",
            found.unknown
        );
    }

    #[test]
    fn a_module_kept_busy_by_a_limit_of_one_is_saturated_while_others_are_refused() {
        let mut spans: Vec<(f64, f64)> = (0..20).map(|n| (f64::from(n), 0.2)).collect();
        spans.extend((0..200).map(|n| (30.0 + 0.2 * f64::from(n), 0.2)));
        let mut busy = trace(&spans);
        let served = busy.arrivals[0].exchange;
        let shed = Exchange { ending: Ending::Shed(Reason::ClassInFlight), latency_us: 0, ..served };
        let refused = |n: i32| Arrival { at: Time::from_secs_f64(30.0 + 0.4 * f64::from(n)), exchange: shed };
        busy.arrivals.extend((0..100).map(refused));
        let found = identify(&busy, &Guide::new());
        let capacity = found.modules[0].capacity;
        assert!(capacity.is_some_and(|capacity| (capacity - 1.0).abs() < 0.05), "{:?}", found.modules);
        busy.arrivals.retain(|it| it.exchange.ending == Ending::Served);
        assert_eq!(identify(&busy, &Guide::new()).modules[0].capacity, None, "busy, and no request in line");
    }

    #[test]
    fn the_plant_takes_as_long_as_the_trace_says() {
        let spec = identify(&saturated(), &Guide::new()).spec(4.0);
        let route = spec.route("tasks").unwrap();
        let ms = alone_ms(&spec, route);
        assert!((180.0..220.0).contains(&ms), "{ms}");
        let work = Plant::new(spec.clone(), 1).cost_ms(route, 0.0);
        assert!(work > 170.0, "one server: it works rather than waits, {work}");
    }
}
