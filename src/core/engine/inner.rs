//! The inner loop: the door's own latency moves concurrency, class by class.
//!
//! A class steps when it has finished [`SAMPLES`] exchanges since its last step, or when
//! [`PATIENCE`] has passed and there is anything to tell at all. Its pressure is latency over
//! objective, at the objective's quantile or the highest one that so few samples can tell
//! (`1 - 2/n`: the largest of twenty is an outlier, not a p99). Exchanges that never end do not
//! show in latencies; if nothing has ended for longer, that time stands in.
//!
//! Where the worst class of a module is above its objective, the module's need to cut is
//! divided by who causes it ([`crate::core::control::budget`]) before any law sees it: a class
//! within its share sees pressure 1 and holds, however slow its own answers are.

use crate::core::control::budget::{Claim, apportion_cut, weight};
use crate::core::control::law::Observation;
use crate::core::engine::{ClassReading, DoorReading, Engine, Reasons};
use crate::core::journal::{Apportioned, Derivation, Event, SignalSeen};
use crate::core::limit::meter::Counts;
use crate::core::limit::table::slots;
use crate::core::policy::Treatment;
use crate::core::time::{Time, duration_from_secs};
use std::time::Duration;

/// So many exchanges tell a latency. More would tell it better and find new room later: at 200
/// the limit of a steady overload swings by 7 % instead of 29 %, and takes a minute instead of
/// ten seconds to follow a head that has got its capacity back.
pub(super) const SAMPLES: u64 = 20;

/// After so long, fewer must do.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What one class has to say this tick.
struct Due {
    class: usize,
    counts: Counts,
    elapsed: Duration,
    latency: Option<f64>,
    pressure: Option<f64>,
}

impl Engine {
    pub(super) fn step_inner(&mut self, door: &DoorReading, now: Time, events: &mut Vec<Event>) {
        let due: Vec<Due> =
            (0..self.classes.len()).filter_map(|class| self.due(class, &door[class], now)).collect();
        for module in 0..self.policy.modules.len() {
            let of_module: Vec<&Due> =
                due.iter().filter(|due| self.policy.classes[due.class].module.index() == module).collect();
            if of_module.is_empty() {
                continue;
            }
            let worst = of_module.iter().filter_map(|due| due.pressure).fold(0.0, f64::max);
            let blame = (worst > 1.0).then(|| self.blame(module, worst));
            for due in of_module {
                self.step_class(due, &door[due.class], blame.as_ref(), now, events);
            }
        }
    }

    /// What a class can tell since its last inner step, if it is time to.
    fn due(&mut self, class: usize, seen: &ClassReading, now: Time) -> Option<Due> {
        let spec = &self.policy.classes[class];
        let of = self.classes[class].inner.as_mut()?;
        of.peak = of.peak.max(seen.in_flight_peak);
        let counts = seen.counts.since(&of.counts);
        let elapsed = now.since(of.since);
        let ended = counts.finished();
        if elapsed < self.policy.control.inner_period || (ended < SAMPLES && elapsed < PATIENCE) {
            return None;
        }
        let telling = (1.0 - 2.0 / ended.max(1) as f64).max(0.5);
        let finished = counts.latency_quantile(spec.slo.quantile.min(telling));
        let stalled = (seen.in_flight > 0 && seen.stalled_s > 0.0).then_some(seen.stalled_s);
        let latency = match (finished, stalled) {
            (Some(finished), Some(stalled)) => Some(finished.max(stalled)),
            (latency, stalled) => latency.or(stalled),
        };
        let pressure = latency.map(|latency| latency / spec.slo.latency.as_secs_f64());
        self.classes[class].pressure = pressure;
        Some(Due { class, counts, elapsed, latency, pressure })
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
            claims.push(Claim { want: recent.work_per_s, weight: weight(class.priority), floor: 0.0 });
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
        of.binding = of.peak >= slots(of.limit);
        let observation = Observation {
            now,
            period: due.elapsed,
            // A changed limit shows once a window of exchanges that began under it has ended.
            dead_time: due.elapsed + duration_from_secs(latency_s.min(60.0)),
            pressure,
            binding: of.binding,
            demand: f64::from(of.peak) + f64::from(seen.waiting) + refused_per_s * latency_s,
            latency: due.latency.filter(|_| !innocent),
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
                name: "door_latency".into(),
                value: latency_s,
                target: spec.slo.latency.as_secs_f64(),
                pressure: own,
                age_ms: 0,
                source: "door".into(),
                unit: "s".into(),
            });
            let derivation = Derivation::Law { before, observation };
            let reasons = Reasons { signals: signals.into_iter().collect(), apportioned, derivation };
            events.push(self.record(due.class, &of, reasons, &step));
        }
        self.classes[due.class].inner = Some(of);
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
