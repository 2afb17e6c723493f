//! The inner loop: the proxy's own latency moves concurrency, class by class.
//!
//! *When it steps.* Twenty exchanges tell a latency to +-20 %, four hundred to +-5 %. A limit that
//! moves on twenty swings with their chance; one that waits for four hundred finds out too late.
//! So a class steps when there is *evidence*: as soon as its latency lies further from the
//! objective than chance explains ([`EVIDENCE`] times its standard error, which the exchanges
//! themselves tell), however few they are; otherwise when [`SAMPLES`] have ended or [`PATIENCE`]
//! has passed, and then what may be chance moves nothing (the deadband is no narrower than the
//! error). This is a sequential test in the manner of Wald (1945): large errors are told by few
//! exchanges, small ones by many, and each step is as sure as the last.
//!
//! Pressure is latency over objective, at the objective's quantile or the highest one that so
//! few exchanges can tell (`1 - 2/n`: the largest of twenty is an outlier, not a p99). A lower
//! quantile above the objective proves it missed; below, it proves nothing, so growth waits.
//! Exchanges that never end do not show in latencies; if nothing has ended for longer, that time
//! stands in.
//!
//! *Who must give way* (law 4). Where the worst class of a module is above its objective, the
//! module's need to cut is divided by who causes it ([`crate::control::budget`]) before any law
//! sees it: a class within its share sees pressure 1 and holds, however slow its own answers are. A
//! neighbour is blamed only on evidence that it stands in the way:
//!
//! - the module is *full*: its classes' learnt work makes up [`FULL`] of its time or more;
//! - they stand in one line: in a single process all wait alike, so a class that is answered in a
//!   small part ([`ALIKE`]) of the sufferer's time proves that the sufferer waits for something else
//!   (an agent, a disk), however slow it is;
//! - and a class that meets its own objective gives way only to one of higher priority. What operators
//!   need (priority [`NEEDED`] and above) is set aside first.
//!
//! A neighbour's need stands for [`HEARSAY`] after it was last told: a class that no client asks for
//! any more does not suffer.

use crate::admission::meter::{Counts, upper_bound_secs};
use crate::admission::table::permits;
use crate::control::budget::{Claim, apportion_cut, weight};
use crate::control::futile::Sample;
use crate::control::law::{Observation, Spread};
use crate::control::stability::Timing;
use crate::control::wasted::Ended;
use crate::controller::{ClassReading, Controller, PATIENCE, ProxyReading, Reasons};
use crate::event::{Apportioned, Derivation, Event, SignalSeen};
use crate::policy::{Class, NEEDED, Treatment};
use crate::time::{Time, duration_from_secs};
use std::time::Duration;

/// Fewer exchanges than this prove nothing.
const SAMPLES_MIN: u64 = 20;

/// So many tell a latency as well as is needed.
const SAMPLES: u64 = 400;

/// This many standard errors above the objective are no chance, though looked at again and again.
const EVIDENCE: f64 = 2.5;

/// Below it, growth asks for a little less: it is the step that is taken back most easily.
const EVIDENCE_OF_ROOM: f64 = 1.75;

/// A module whose classes' work takes up less of its time is not full.
const FULL: f64 = 0.5;

/// A class that is answered in less than this part of a neighbour's time does not stand in its way.
const ALIKE: f64 = 0.25;

/// What a class last told of its latency counts for so long.
const HEARSAY: Duration = Duration::from_secs(30);

/// What one class has to say this tick.
struct Due {
    class: usize,
    counts: Counts,
    elapsed: Duration,
    latency: Option<f64>,
    pressure: Option<f64>,
    noise: f64,
}

/// A latency, and how well it is told.
struct Told {
    seconds: f64,
    /// Standard error of its logarithm.
    noise: f64,
    /// At the objective's own quantile, not a lower one.
    whole: bool,
}

impl Controller {
    pub(super) fn step_inner(&mut self, proxy: &ProxyReading, now: Time, events: &mut Vec<Event>) {
        let due: Vec<Due> =
            (0..self.classes.len()).filter_map(|class| self.due(class, &proxy[class], now)).collect();
        for module in 0..self.policy.modules.len() {
            let of_module: Vec<&Due> =
                due.iter().filter(|due| self.policy.classes[due.class].module.index() == module).collect();
            if of_module.is_empty() {
                continue;
            }
            let worst = self.sufferer(module, now);
            for due in of_module {
                let theirs = worst.filter(|(at, _)| *at == due.class || self.is_in_the_way(due, *at));
                let need = theirs.map(|(_, pressure)| pressure).or(due.pressure);
                let blame =
                    need.filter(|pressure| *pressure > 1.0).map(|pressure| self.blame(module, pressure));
                self.step_class(due, &proxy[due.class], blame.as_ref(), now, events);
            }
        }
    }

    /// The class of a module that is furthest above its objective. Classes are due at different times:
    /// the need of each stands for a while.
    fn sufferer(&self, module: usize, now: Time) -> Option<(usize, f64)> {
        let classes = (0..self.classes.len()).filter(|at| self.policy.classes[*at].module.index() == module);
        let told = classes.filter_map(|at| {
            let of = &self.classes[at];
            let is_heard = of.inner.as_ref().is_some_and(|inner| now.since(inner.since) <= HEARSAY);
            of.pressure.filter(|pressure| is_heard && *pressure > 1.0).map(|pressure| (at, pressure))
        });
        told.max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// Whether a class may be cut for a neighbour's sake.
    fn is_in_the_way(&self, due: &Due, sufferer: usize) -> bool {
        let (own, other) = (&self.policy.classes[due.class], &self.policy.classes[sufferer]);
        let (Some(pressure), Some(theirs)) = (due.pressure, self.classes[sufferer].pressure) else {
            return false;
        };
        let module = own.module;
        let work: f64 = self.policy.classes.iter().zip(&self.classes).fold(0.0, |sum, (class, of)| {
            if class.module == module { sum + of.recent.work_per_s } else { sum }
        });
        // What works in parallel is not told by work.
        let is_full = work >= FULL || !self.policy.modules[module.index()].is_one_process();
        let latency_s = |pressure: f64, class: &Class| pressure * class.slo.latency.as_secs_f64();
        let waits_alike = latency_s(pressure, own) >= ALIKE * latency_s(theirs, other);
        is_full && waits_alike && (pressure > 1.0 || own.priority < other.priority)
    }

    /// What a class can tell since its last inner step, if it is time to.
    fn due(&mut self, class: usize, seen: &ClassReading, now: Time) -> Option<Due> {
        let spec = &self.policy.classes[class];
        let of = self.classes[class].inner.as_mut()?;
        of.peak = of.peak.max(seen.in_flight_peak);
        let elapsed = now.since(of.since);
        let ended = seen.counts.answers().saturating_sub(of.counts.answers());
        let patient = elapsed < PATIENCE;
        if elapsed < self.policy.control.inner_period || (ended < SAMPLES_MIN && patient) {
            return None;
        }
        let counts = seen.counts.since(&of.counts);
        let told = tell(&counts, seen, spec.slo.quantile);
        let objective = spec.slo.latency.as_secs_f64();
        if ended < SAMPLES && patient && !told.as_ref().is_some_and(|told| told.is_evidence(objective)) {
            return None;
        }
        let (latency, noise) = told.map(|told| (told.seconds, told.noise)).unzip();
        let pressure = latency.map(|latency| latency / objective);
        self.classes[class].pressure = pressure;
        Some(Due { class, counts, elapsed, latency, pressure, noise: noise.unwrap_or(0.0) })
    }

    /// Who causes a module's pressure: each class's work since its last inner step.
    fn blame(&self, module: usize, pressure: f64) -> Blame {
        let mut classes = Vec::new();
        let mut claims = Vec::new();
        for (at, class) in self.policy.classes.iter().enumerate() {
            if class.module.index() != module || class.treatment != Treatment::Limited {
                continue;
            }
            let recent = self.classes[at].recent;
            classes.push(at);
            let floor = if class.priority >= NEEDED { recent.work_per_s } else { 0.0 };
            claims.push(Claim { want: recent.work_per_s, weight: weight(class.priority), floor });
        }
        let seen = apportion_cut(pressure, &claims);
        Blame {
            module,
            pressure,
            classes,
            claims,
            seen: seen.iter().map(|blame| (blame.allotted, blame.pressure)).collect(),
        }
    }

    fn step_class(
        &mut self,
        due: &Due,
        seen: &ClassReading,
        blame: Option<&Blame>,
        now: Time,
        events: &mut Vec<Event>,
    ) {
        let spec = &self.policy.classes[due.class];
        let apportioned =
            blame.and_then(|blame| blame.of(due.class, &self.policy.modules[blame.module].name));
        let pressure = match (&apportioned, due.pressure) {
            (Some(share), Some(own)) => Some(if share.seen > 1.0 { share.seen } else { own.min(1.0) }),
            (_, own) => own,
        };
        // An innocent class holds: neither the module's pressure nor its own latency, which is
        // others' doing, may move it.
        let innocent = apportioned.as_ref().is_some_and(|share| share.seen <= 1.0);
        let Some(mut of) = self.classes[due.class].inner.take() else { return };
        let latency_s = due.latency.unwrap_or(0.0);
        let refused_per_s = due.counts.shed_all() as f64 / due.elapsed.as_secs_f64().max(1e-3);
        of.binding = of.peak >= permits(of.limit);
        // Where few are answered it takes more than one step until their spread is told.
        let spread = spread(&seen.counts.since(&of.spread_since));
        if spread.is_some() {
            of.spread_since.clone_from(&seen.counts);
        }
        let observation = Observation {
            now,
            period: due.elapsed,
            dead_time: Timing::of_proxy(due.elapsed, duration_from_secs(latency_s.min(60.0))).dead_time(),
            pressure,
            binding: of.binding,
            demand: f64::from(of.peak) + f64::from(seen.waiting) + refused_per_s * latency_s,
            latency: due.latency.filter(|_| !innocent),
            slo_pressure: due.pressure,
            spread,
            sample: Some(sample(&due.counts)),
            ended: Some(Ended {
                answered: (due.counts.served + due.counts.failed) as f64,
                left: due.counts.left_at_head as f64,
                under_way: f64::from(of.peak),
                left_s: due.counts.left_at_head_us as f64 / 1e6,
                quickest_s: due.counts.latency_quantile(0.1).unwrap_or(0.0),
            }),
            not_below: None,
            used: None,
            backlog: None,
            // A need that comes from a neighbour's latency has been told by the neighbour.
            noise: if blame.is_some_and(|blame| Some(blame.pressure) != due.pressure) {
                0.0
            } else {
                due.noise
            },
        }
        .clean();
        let before = Box::new(of.regulator);
        let step = of.regulator.step(of.limit, &observation);
        of.limit = step.new;
        of.oscillation.observe(now, step.new);
        of.since = now;
        of.counts.clone_from(&seen.counts);
        of.peak = seen.in_flight;
        if step.is_change() {
            let signals = due.pressure.map(|own| SignalSeen {
                name: "proxy_latency".into(),
                value: latency_s,
                target: spec.slo.latency.as_secs_f64(),
                pressure: own,
                forecast: None,
                age_ms: 0,
                source: "proxy".into(),
                unit: "s".into(),
            });
            let derivation = Derivation::Law { before, observation };
            let reasons = Reasons { signals: signals.into_iter().collect(), apportioned, derivation };
            events.push(self.record(due.class, &of, reasons, &step));
        }
        self.classes[due.class].inner = Some(of);
    }
}

/// So many answers say how latencies spread.
const ENOUGH: u64 = 20;

fn spread(counts: &Counts) -> Option<Spread> {
    let (quickest, mean) = counts.latency_quantile(0.1).zip(counts.latency_mean())?;
    (counts.answers() >= ENOUGH).then_some(Spread { quickest, mean })
}

/// The latencies, as far as their mean and its error need them. Squares are read from the buckets.
fn sample(counts: &Counts) -> Sample {
    let squares = counts.buckets.iter().enumerate().map(|(at, in_bucket)| {
        let middle = upper_bound_secs(at) * 2f64.powf(-1.0 / 8.0);
        *in_bucket as f64 * middle * middle
    });
    Sample { count: counts.answers() as f64, seconds: counts.latency_us as f64 / 1e6, squares: squares.sum() }
}

/// The latency that these exchanges tell, at `quantile` or as near to it as so few can.
fn tell(counts: &Counts, seen: &ClassReading, quantile: f64) -> Option<Told> {
    let telling = (1.0 - 2.0 / counts.answers().max(1) as f64).max(0.5).min(quantile);
    let finished = counts.latency_quantile(telling).zip(counts.latency_noise(telling));
    let finished =
        finished.map(|(seconds, noise)| Told { seconds, noise, whole: telling >= quantile - f64::EPSILON });
    let stalled = (seen.in_flight > 0 && seen.stalled_s > 0.0).then_some(seen.stalled_s);
    match (finished, stalled) {
        (Some(finished), Some(stalled)) if finished.seconds >= stalled => Some(finished),
        (_, Some(seconds)) => Some(Told { seconds, noise: 0.0, whole: true }),
        (finished, None) => finished,
    }
}

impl Told {
    fn is_evidence(&self, objective_s: f64) -> bool {
        let error = (self.seconds / objective_s).ln();
        error > EVIDENCE * self.noise || (self.whole && error < -EVIDENCE_OF_ROOM * self.noise)
    }
}

/// A module's need to cut, divided.
struct Blame {
    module: usize,
    pressure: f64,
    classes: Vec<usize>,
    claims: Vec<Claim>,
    seen: Vec<(f64, f64)>,
}

impl Blame {
    fn of(&self, class: usize, module: &str) -> Option<Apportioned> {
        let index = self.classes.iter().position(|at| *at == class)?;
        let (allotted, seen) = *self.seen.get(index)?;
        Some(Apportioned {
            module: module.to_owned(),
            pressure: self.pressure,
            claims: self.claims.clone(),
            index,
            allotted,
            seen,
        })
    }
}
