//! The outer loop: Ray's own readings move rates and ceilings, one step per fresh reading.
//!
//! A class follows the signals its policy names; the worst of the fresh ones is its pressure.
//! It steps when one of them has brought something new, and no sooner than the outer period:
//! deciding twice on the same reading is deciding blind. Where several classes follow the
//! worst signal and it is above its target, the need to cut is divided among them by the work
//! each does, so that the class that burdens the head is cut and its neighbours are not.
//!
//! When every signal a class follows has gone stale, its limit does what the operator chose:
//! hold, decay to `initial`, or go there. It never opens.

use crate::control::budget::{Claim, apportion_cut, weight};
use crate::control::law::Observation;
use crate::control::regulator::Move;
use crate::control::stability::Timing;
use crate::engine::{ClassReading, DoorReading, Engine, Loop, Reasons};
use crate::journal::{Apportioned, Derivation, Event, LimitKind, SignalHealth, SignalSeen};
use crate::limit::meter::Reason;
use crate::limit::table::slots;
use crate::policy::{OnStale, SignalId};
use crate::time::Time;
use std::time::Duration;

/// A gauge of Ray's may have been true this long before it is published anew (facts 4), and
/// so long before it is scraped.
const REFRESH: Duration = Duration::from_secs(10);

impl Engine {
    pub(super) fn step_outer(&mut self, door: &DoorReading, now: Time, events: &mut Vec<Event>) {
        for (class, seen) in door.iter().enumerate().take(self.classes.len()) {
            let Some(mut of) = self.classes[class].outer.take() else { continue };
            of.peak = of.peak.max(seen.in_flight_peak);
            self.step_limit(class, &mut of, seen, now, events);
            self.classes[class].outer = Some(of);
        }
    }

    fn step_limit(
        &mut self,
        class: usize,
        of: &mut Loop,
        seen: &ClassReading,
        now: Time,
        events: &mut Vec<Event>,
    ) {
        let elapsed = now.since(of.since);
        if elapsed < self.policy.control.outer_period {
            return;
        }
        let ids = self.policy.classes[class].signals.clone();
        let readings = self.board.seen(&self.policy, &ids, now);
        if readings.is_empty() {
            let stale = ids.iter().any(|id| self.health(*id) == Some(SignalHealth::Stale));
            if stale {
                self.step_stale(class, of, &ids, elapsed, now, events);
            }
            return;
        }
        let Some(worst) = readings.iter().max_by(|a, b| a.pressure.total_cmp(&b.pressure)).cloned() else {
            return;
        };
        if !self.any_news(&ids, of.since) {
            return;
        }
        if seen.counts.offered == of.counts.offered {
            // Nobody asked: the pressure is not this class's doing, and a cut would only meet the
            // next one who asks. A head may well be busy with what it is there for.
            of.since = now;
            return;
        }
        let apportioned = self.apportion(class, &worst);
        let pressure = match &apportioned {
            Some(share) if share.seen > 1.0 => share.seen,
            Some(_) => worst.pressure.min(1.0),
            None => worst.pressure,
        };
        let observation = self.observe(class, of, seen, Some(pressure), elapsed, now);
        let before = Box::new(of.regulator);
        let step = of.regulator.step(of.limit, &observation);
        conclude(of, seen, &step, now);
        if step.is_change() {
            let derivation = Derivation::Law { before, observation };
            events.push(self.record(
                class,
                of,
                Reasons { signals: readings, apportioned, derivation },
                &step,
            ));
        }
    }

    fn step_stale(
        &mut self,
        class: usize,
        of: &mut Loop,
        ids: &[SignalId],
        elapsed: Duration,
        now: Time,
        events: &mut Vec<Event>,
    ) {
        // The most careful wish of the signals that are gone.
        let wish = |id: &SignalId| self.policy.signals[id.index()].on_stale;
        let on_stale = if ids.iter().any(|id| wish(id) == OnStale::Static) {
            OnStale::Static
        } else if ids.iter().any(|id| wish(id) == OnStale::Decay) {
            OnStale::Decay
        } else {
            OnStale::Hold
        };
        let last = if self.crew.is_some() { &self.last_whole } else { &self.last_door };
        let seen = last[class].clone();
        let observation = self.observe(class, of, &seen, None, elapsed, now);
        let before = Box::new(of.regulator);
        let step = of.regulator.step_stale(of.limit, on_stale, &observation);
        conclude(of, &seen, &step, now);
        if step.is_change() {
            let derivation = Derivation::Stale { before, observation, on_stale };
            events.push(self.record(
                class,
                of,
                Reasons { signals: Vec::new(), apportioned: None, derivation },
                &step,
            ));
        }
    }

    fn observe(
        &self,
        class: usize,
        of: &mut Loop,
        seen: &ClassReading,
        pressure: Option<f64>,
        elapsed: Duration,
        now: Time,
    ) -> Observation {
        let counts = seen.counts.since(&of.counts);
        let length = elapsed.as_secs_f64().max(1e-3);
        let (binding, demand) = if of.kind == LimitKind::Rate {
            let admitted_per_s = counts.admitted as f64 / length;
            let held_back = counts.shed[Reason::ClassRate as usize] > 0 || admitted_per_s >= 0.9 * of.limit;
            (held_back, counts.offered as f64 / length)
        } else {
            let latency_s = counts.latency_mean().unwrap_or(0.0);
            let refused = counts.shed_all() as f64 / length * latency_s;
            (of.peak >= slots(of.limit), f64::from(of.peak) + f64::from(seen.waiting) + refused)
        };
        of.binding = binding;
        let timing = self.timing(class);
        Observation {
            now,
            period: elapsed.min(timing.step() * 2),
            dead_time: timing.dead_time(),
            pressure,
            binding,
            demand,
            latency: None,
            noise: 0.0,
        }
        .clean()
    }

    /// When a class's outer loop acts and on what: as configured or, where that is worse, as the
    /// slowest of its signals is seen to come.
    fn timing(&self, class: usize) -> Timing {
        let configured = Timing::of_signals(&self.policy.control, Duration::ZERO);
        let posted = self.policy.classes[class].signals.iter().filter_map(|id| self.board.get(*id));
        posted
            .map(|posted| posted.cadence.timing(&configured))
            .max_by_key(Timing::dead_time)
            .unwrap_or(configured)
    }

    /// Whether any of these signals has brought something new since `since`.
    fn any_news(&self, ids: &[SignalId], since: Time) -> bool {
        ids.iter().any(|id| self.board.get(*id).is_some_and(|posted| posted.fresh_since(since)))
    }

    fn health(&self, id: SignalId) -> Option<SignalHealth> {
        Some(self.board.get(id)?.health())
    }

    /// Divides the need to cut among all classes that follow the worst signal.
    fn apportion(&self, class: usize, worst: &SignalSeen) -> Option<Apportioned> {
        if worst.pressure <= 1.0 {
            return None;
        }
        let follows = |at: &usize| {
            self.classes[*at].outer.is_some() || *at == class // its own loop is in the caller's hands
        };
        let mut claims = Vec::new();
        let mut index = None;
        for at in (0..self.classes.len()).filter(follows) {
            let spec = &self.policy.classes[at];
            if !spec.signals.iter().any(|id| *self.policy.signals[id.index()].name == *worst.name) {
                continue;
            }
            if at == class {
                index = Some(claims.len());
            }
            claims.push(Claim {
                want: self.classes[at].recent.work_per_s,
                weight: weight(spec.priority),
                floor: 0.0,
            });
        }
        let index = index.filter(|_| claims.len() > 1)?;
        let blame = *apportion_cut(worst.pressure, &claims).get(index)?;
        Some(Apportioned {
            module: "the head".to_owned(),
            pressure: worst.pressure,
            claims,
            index,
            allotted: blame.allotted,
            seen: blame.pressure,
        })
    }

    /// The submission gate follows its own signal, every fresh reading at once.
    pub(super) fn step_backlog(&mut self, door: &DoorReading, now: Time) {
        let doors = self.crew.as_ref().map_or(1, crate::engine::crew::Crew::replicas);
        for (class, loops) in self.classes.iter_mut().enumerate() {
            let Some(backlog) = &mut loops.backlog else { continue };
            backlog.share_among(doors);
            let total = door[class].counts.admitted;
            let id = backlog.signal();
            let reach = REFRESH * 3;
            backlog.on_admitted(total, now, reach);
            if let Some(posted) = self.board.get(id)
                && posted.health() == SignalHealth::Fresh
                && let Some(reading) = &posted.reading
            {
                let target = self.policy.signals[id.index()].target;
                let age =
                    posted.cadence.interval().unwrap_or_default().clamp(Duration::from_secs(1), REFRESH);
                backlog.on_reading(reading.value, target, reading.fresh, reading.at - age, now);
            }
            backlog.tick(total, now);
        }
    }
}

/// The limit stands as the step left it, and the next window begins.
fn conclude(of: &mut Loop, seen: &ClassReading, step: &Move, now: Time) {
    of.limit = step.new;
    of.oscillation.observe(now, step.new);
    of.since = now;
    of.counts.clone_from(&seen.counts);
    of.peak = seen.in_flight;
}
