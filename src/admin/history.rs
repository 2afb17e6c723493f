//! The last quarter of an hour, second by second, for the page.
//!
//! A ring of samples in memory, bounded by its length alone (classes and signals are as many as
//! the policy has): it answers "since when" at 3 a.m. without a Prometheus. Rates are exact
//! counts over the second, not averages, so that a burst shows as one.
//!
//! The whole ring is laid down at the start and written over from then on. Taken a sample at a time,
//! its pieces would lie for a quarter of an hour between what lives for a moment, and the heap would
//! grow around them.

use crate::core::admission::meter::Counts;
use crate::core::controller::ProxyReading;
use crate::core::controller::view::View;
use crate::core::event::LimitKind;
use crate::core::policy::Policy;
use crate::core::time::{Time, WallMs};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Between two samples.
pub const STEP: Duration = Duration::from_secs(1);

/// The rates in a state are counts of so long.
const LATELY: Duration = Duration::from_secs(10);

/// Latencies are told of so many samples together.
const LATENCY_SAMPLES: usize = 10;

/// Samples kept.
pub const SAMPLES_MAX: usize = 900;

/// The ring.
#[derive(Debug)]
pub struct History {
    classes: Vec<Arc<str>>,
    signals: Vec<Arc<str>>,
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    /// Always as many; what has not been seen yet is of no time.
    samples: VecDeque<Sample>,
    totals: Vec<Totals>,
    /// The totals of the last ten seconds.
    lately: VecDeque<(Time, Vec<Totals>)>,
    /// What each class's latencies were counted as, at each of the last samples.
    answers: VecDeque<Vec<Counts>>,
    at: Option<Time>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    offered: u64,
    admitted: u64,
    shed: u64,
    failed: u64,
    shadow_shed: u64,
    shared: u64,
}

#[derive(Clone, Debug)]
struct Sample {
    time_ms: u64,
    classes: Box<[Point]>,
    pressures: Box<[Option<f32>]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    offered: f32,
    admitted: f32,
    shed: f32,
    failed: f32,
    /// 50th, 95th and 99th percentile.
    latency_s: [Option<f32>; 3],
    in_flight: f32,
    waiting: f32,
    in_flight_limit: Option<f32>,
    rate_limit: Option<f32>,
    pressure: Option<f32>,
}

/// `GET /api/v1/history`: columns of equal length, oldest first.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "History")]
pub struct Columns {
    /// Seconds between two samples.
    pub step_s: f64,
    /// Wall times, in milliseconds since the Unix epoch.
    pub times_ms: Vec<u64>,
    /// By class.
    pub classes: BTreeMap<String, ClassColumns>,
    /// The reading divided by its target, by signal.
    pub signals: BTreeMap<String, Vec<Option<f32>>>,
}

/// One class over time.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ClassHistory")]
pub struct ClassColumns {
    /// Requests per second that came.
    pub offered: Vec<f32>,
    /// Requests per second sent on.
    pub admitted: Vec<f32>,
    /// Requests per second refused for load.
    pub shed: Vec<f32>,
    /// Requests per second that Ray failed.
    pub failed: Vec<f32>,
    /// Median time to the head of Ray's answer over the last ten seconds, in seconds; null without answers.
    pub latency_p50_s: Vec<Option<f32>>,
    /// Its 95th percentile.
    pub latency_p95_s: Vec<Option<f32>>,
    /// Its 99th percentile.
    pub latency_p99_s: Vec<Option<f32>>,
    /// Requests in flight.
    pub in_flight: Vec<f32>,
    /// Requests waiting.
    pub waiting: Vec<f32>,
    /// The limit on requests in flight.
    pub in_flight_limit: Vec<Option<f32>>,
    /// The limit on requests per second.
    pub rate_limit: Vec<Option<f32>>,
    /// The latency at the proxy divided by the objective.
    pub pressure: Vec<Option<f32>>,
}

impl History {
    /// Nothing seen yet.
    pub fn new(policy: &Policy) -> History {
        History {
            classes: policy.classes.iter().map(|class| Arc::clone(&class.name)).collect(),
            signals: policy.signals.iter().map(|signal| Arc::clone(&signal.name)).collect(),
            ring: Mutex::new(Ring {
                samples: (0..SAMPLES_MAX).map(|_| Sample::blank(policy)).collect(),
                totals: Vec::new(),
                lately: VecDeque::new(),
                answers: VecDeque::with_capacity(LATENCY_SAMPLES + 1),
                at: None,
            }),
        }
    }

    /// Takes a sample. The first one has nothing to count from and shows no rates.
    pub fn take(&self, view: &View, counts: &ProxyReading, now: Time, wall: WallMs) {
        let mut ring = self.ring.lock();
        let latency = ring.latency(counts);
        let elapsed_s = ring.at.map(|at| now.since(at).as_secs_f64());
        let totals: Vec<Totals> = view
            .classes
            .iter()
            .map(|class| Totals {
                offered: class.offered,
                admitted: class.admitted,
                shed: class.shed,
                failed: class.failed,
                shadow_shed: class.shadow_shed,
                shared: class.shared,
            })
            .collect();
        let before = std::mem::replace(&mut ring.totals, totals.clone());
        let per_s = |now: u64, before: u64| match elapsed_s {
            Some(elapsed_s) if elapsed_s > 0.0 => round(now.saturating_sub(before) as f64 / elapsed_s),
            _ => 0.0,
        };
        let point = |(at, class): (usize, &crate::core::controller::view::ClassView)| {
            let before = before.get(at).copied().unwrap_or(totals[at]);
            let limit =
                |kind| class.limits.iter().find(|limit| limit.limit == kind).map(|limit| round(limit.value));
            Point {
                offered: per_s(class.offered, before.offered),
                admitted: per_s(class.admitted, before.admitted),
                shed: per_s(class.shed, before.shed),
                failed: per_s(class.failed, before.failed),
                latency_s: latency.get(at).copied().unwrap_or_default(),
                in_flight: round(f64::from(class.in_flight)),
                waiting: round(f64::from(class.waiting)),
                in_flight_limit: limit(LimitKind::InFlight),
                rate_limit: limit(LimitKind::Rate),
                pressure: class.slo_pressure.map(round),
            }
        };
        ring.lately.push_back((now, totals.clone()));
        // One is kept that is older, to count from.
        while ring.lately.get(1).is_some_and(|(at, _)| now.since(*at) >= LATELY) {
            ring.lately.pop_front();
        }
        ring.samples.rotate_left(1);
        if let Some(oldest) = ring.samples.back_mut() {
            oldest.time_ms = wall.0;
            oldest.classes.fill(Point::default());
            oldest.pressures.fill(None);
            let points = view.classes.iter().enumerate().map(point);
            oldest.classes.iter_mut().zip(points).for_each(|(kept, seen)| *kept = seen);
            let pressures = view.signals.iter().map(|signal| signal.pressure.map(round));
            oldest.pressures.iter_mut().zip(pressures).for_each(|(kept, seen)| *kept = seen);
        }
        ring.at = Some(now);
    }

    /// Puts rates by exact counts of the last ten seconds into a view.
    pub fn tell_rates(&self, view: &mut View, now: Time) {
        let ring = self.ring.lock();
        let Some((at, before)) = ring.lately.front() else { return };
        let elapsed_s = now.since(*at).as_secs_f64();
        if elapsed_s <= 0.0 {
            return;
        }
        for (class, before) in view.classes.iter_mut().zip(before) {
            let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed_s;
            class.offered_per_s = per_s(class.offered, before.offered);
            class.admitted_per_s = per_s(class.admitted, before.admitted);
            class.shed_per_s = per_s(class.shed, before.shed);
            class.failed_per_s = per_s(class.failed, before.failed);
            class.shadow_shed_per_s = per_s(class.shadow_shed, before.shadow_shed);
            class.shared_per_s = per_s(class.shared, before.shared);
        }
    }

    /// What was seen after `after_ms`, of one class or of all.
    pub fn columns(&self, after_ms: u64, class: Option<&str>) -> Columns {
        let ring = self.ring.lock();
        let samples: Vec<&Sample> = ring.samples.iter().filter(|sample| sample.time_ms > after_ms).collect();
        let mut columns = Columns {
            step_s: STEP.as_secs_f64(),
            times_ms: samples.iter().map(|sample| sample.time_ms).collect(),
            ..Columns::default()
        };
        for (at, name) in self.classes.iter().enumerate() {
            if class.is_some_and(|wanted| *wanted != **name) {
                continue;
            }
            let points = || samples.iter().filter_map(|sample| sample.classes.get(at));
            let of = ClassColumns {
                offered: points().map(|point| point.offered).collect(),
                admitted: points().map(|point| point.admitted).collect(),
                shed: points().map(|point| point.shed).collect(),
                failed: points().map(|point| point.failed).collect(),
                latency_p50_s: points().map(|point| point.latency_s[0]).collect(),
                latency_p95_s: points().map(|point| point.latency_s[1]).collect(),
                latency_p99_s: points().map(|point| point.latency_s[2]).collect(),
                in_flight: points().map(|point| point.in_flight).collect(),
                waiting: points().map(|point| point.waiting).collect(),
                in_flight_limit: points().map(|point| point.in_flight_limit).collect(),
                rate_limit: points().map(|point| point.rate_limit).collect(),
                pressure: points().map(|point| point.pressure).collect(),
            };
            columns.classes.insert(name.to_string(), of);
        }
        for (at, name) in self.signals.iter().enumerate() {
            let pressures = samples.iter().map(|sample| sample.pressures.get(at).copied().flatten());
            columns.signals.insert(name.to_string(), pressures.collect());
        }
        columns
    }
}

impl Ring {
    /// Percentiles of what was answered within the last samples.
    fn latency(&mut self, counts: &ProxyReading) -> Vec<[Option<f32>; 3]> {
        self.answers.push_back(counts.iter().map(|reading| reading.counts.clone()).collect());
        if self.answers.len() > LATENCY_SAMPLES + 1 {
            self.answers.pop_front();
        }
        let Some((earliest, latest)) = self.answers.front().zip(self.answers.back()) else {
            return Vec::new();
        };
        let of = |(now, then): (&Counts, &Counts)| {
            let lately = now.since(then);
            [0.5, 0.95, 0.99].map(|quantile| lately.latency_quantile(quantile).map(round))
        };
        latest.iter().zip(earliest).map(of).collect()
    }
}

impl Sample {
    fn blank(policy: &Policy) -> Sample {
        Sample {
            time_ms: 0,
            classes: vec![Point::default(); policy.classes.len()].into(),
            pressures: vec![None; policy.signals.len()].into(),
        }
    }
}

/// To the thousandth, as small as a line on a screen can show.
#[expect(clippy::cast_possible_truncation, reason = "for drawing")]
fn round(value: f64) -> f32 {
    ((value * 1000.0).round() / 1000.0) as f32
}
