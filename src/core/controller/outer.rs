//! The outer loop: Ray's own readings move rates and ceilings, one step per fresh reading.
//!
//! *Which signal decides.* The worst of those that a class follows, for a limit is as safe as the
//! scarcest of what it uses. A step is taken only on news of that one (law 7): another that is read
//! more often tells nothing of it, and deciding twice on the same reading is deciding blind.
//!
//! *When it cuts.* When a reading is above its target, and from what is used of the limit (law 3): a limit that is
//! lowered and still not reached gives the head nothing, and would meet the next client. What is used is a rate, a
//! mean in flight, or of a process that works on one request after another the share of its time, since calls that
//! each meet their objective may together leave the head no core. The need to cut is divided among all classes that
//! follow the signal by the work each does (law 1), and whatever the reading was caused by, the cut is a trial (law 2,
//! [`crate::control::trial`]). Below one request a limit is a share of time ([`crate::admission`], law 6).
//!
//! *What gathers* (tasks that wait, memory that is held) follows a rate by its slope: its level says too late what is
//! coming, and goes on rising after a cut that was right. It is judged by where it is going
//! ([`crate::policy::Signal::forecast`]): a proportional and a derivative part in one, without which the integral law
//! before an integrating plant would swing.
//!
//! *When it grows.* Only while every signal of the class is fresh (law 7): one that is lost counts as
//! one at its target. When it has gone stale, the limit holds or does what the operator chose: decay to
//! `initial`, or go there. It never opens. A signal that a trial has shown to be none of this class's
//! doing rests, and keeps no limit from growing either.
//!
//! *A backlog* is no level but a sum: a rate follows it by a law of its own
//! ([`crate::control::backlog`]), and the lesser of the two rates holds. It is read of Ray and asked of the jobs
//! themselves ([`crate::control::job_starts`]).

use crate::admission::meter::Reason;
use crate::admission::table::permits;
use crate::control::backlog::Backlogged;
use crate::control::budget::{Claim, apportion_cut, weight};
use crate::control::guardrails::Guardrail;
use crate::control::job_starts::Waiting;
use crate::control::law::Observation;
use crate::control::regulator::Move;
use crate::control::stability::Timing;
use crate::control::trial::TrialVerdict;
use crate::controller::backlog::{Promise, backlog_followed};
use crate::controller::signal_store::Posted;
use crate::controller::{ClassReading, Controller, Loop, ProxyReading, Reasons};
use crate::event::{Apportioned, Derivation, Event, LimitKind, SignalHealth, SignalSeen};
use crate::policy::{OnStale, Signal, SignalId};
use crate::time::Time;
use std::time::Duration;

/// A gauge of Ray's may have been true this long before it is published anew, and
/// so long before it is scraped.
const REFRESH: Duration = Duration::from_secs(10);

/// Of what a head starts that is behind, so much is let in before its next reading.
const BEHIND: f64 = 0.5;

/// A rate that follows a backlog moves by no less: each reading says a little more or less.
const WORTH_A_MOVE: f64 = 0.02;

/// A stock that is going to grow by no more than this factor stands.
const STANDS: f64 = 1.05;

impl Controller {
    pub(super) fn step_outer(&mut self, proxy: &ProxyReading, now: Time, events: &mut Vec<Event>) {
        for (class, seen) in proxy.iter().enumerate().take(self.classes.len()) {
            if let Some(mut of) = self.classes[class].outer.take() {
                of.peak = of.peak.max(seen.in_flight_peak);
                self.step_limit(class, &mut of, seen, now, events);
                self.classes[class].outer = Some(of);
            }
            if let Some(mut of) = self.classes[class].drain.take() {
                self.step_drain(class, &mut of, seen, now, events);
                self.classes[class].drain = Some(of);
            }
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
        if now.since(of.since) < self.policy.control.outer_period
            || self.judge_trial(class, of, seen, now, events)
        {
            return;
        }
        let ids = self.levels(class);
        let mut readings = self.signal_store.seen(&self.policy, &ids, now);
        let all_fresh = readings.len() == ids.len();
        let rests = |id: SignalId| of.trials.rests(id, now);
        let gathers = |id: SignalId| self.policy.signals[id.index()].gathers();
        readings.retain(|(id, _)| !rests(*id) || (gathers(*id) && of.trials.is_in_doubt(*id)));
        for (id, seen) in &mut readings {
            // What gathered once and is worked off as fast as it comes is no class's doing now (law 1).
            let stands = seen.forecast.is_some_and(|of| of.value <= seen.value * STANDS);
            if rests(*id) || (stands && !of.trials.is_proven(*id)) {
                seen.pressure = seen.pressure.min(1.0);
            }
        }
        let worst = readings.iter().max_by(|(_, a), (_, b)| a.pressure.total_cmp(&b.pressure)).cloned();
        let is_over = worst.as_ref().is_some_and(|(_, worst)| worst.pressure > 1.0);
        if !is_over && !all_fresh {
            if ids.iter().any(|id| self.health(*id) == Some(SignalHealth::Stale)) {
                self.step_stale(class, of, &ids, seen, now, events);
            }
            return;
        }
        let Some((id, worst)) = worst.filter(|(id, _)| self.is_news(*id, of.since)) else { return };
        // A signal that has come to its target has answered.
        if of.trials.on_trial() == Some(id)
            && worst.pressure <= 1.0 + self.policy.control.deadband
            && let Some(posted) = self.signal_store.get(id)
        {
            of.trials.on_target(&posted.trend);
        }
        if seen.counts.offered == of.counts.offered {
            // No client asked: the pressure is not this class's doing.
            of.since = now;
            return;
        }
        let readings = readings.into_iter().map(|(_, seen)| seen).collect();
        self.step_on(class, of, (id, &worst), readings, seen, now, events);
    }

    /// One step on the signal that decides.
    #[expect(clippy::too_many_arguments, reason = "the step, what decides it and what it is recorded with")]
    fn step_on(
        &mut self,
        class: usize,
        of: &mut Loop,
        (id, worst): (SignalId, &SignalSeen),
        readings: Vec<SignalSeen>,
        seen: &ClassReading,
        now: Time,
        events: &mut Vec<Event>,
    ) {
        let apportioned = self.apportion(class, worst);
        let pressure = match &apportioned {
            Some(share) if share.seen > 1.0 => share.seen,
            Some(_) => worst.pressure.min(1.0),
            None => worst.pressure,
        };
        let timing = self.timing(id);
        let used = self.used(class, of, seen, now);
        let observed = Observation {
            pressure: Some(pressure),
            used: Some(used),
            ..Controller::observe(of, seen, &timing, now)
        };
        let from = observed.cut_from(of.limit, self.policy.control.deadband);
        let gathers = self.policy.signals[id.index()].gathers();
        let observation = Observation { not_below: Some(of.trials.lowest(id, gathers, from)), ..observed };
        let before = Box::new(of.regulator);
        let step = of.regulator.step(of.limit, &observation);
        let wait = timing.dead_time() + self.policy.control.window;
        if (step.new < step.old || step.guardrail == Some(Guardrail::Floor))
            && let Some(posted) = self.signal_store.get(id)
        {
            of.trials.on_cut(id, step.old, from, step.new, (&posted.trend, gathers), now, wait);
        }
        conclude(of, seen, &step, now);
        if step.is_change() {
            let derivation = Derivation::Law { before, observation };
            let reasons = Reasons { signals: readings, apportioned, derivation };
            events.push(self.record(class, of, reasons, &step));
        }
    }

    /// Gives back a cut that did not help; whether it did.
    fn judge_trial(
        &mut self,
        class: usize,
        of: &mut Loop,
        seen: &ClassReading,
        now: Time,
        events: &mut Vec<Event>,
    ) -> bool {
        let trend = |id: SignalId| {
            let posted = self.signal_store.get(id)?;
            (posted.health() == SignalHealth::Fresh).then_some(posted.trend)
        };
        let Some(TrialVerdict::Futile { trial, expected, seen: reads, rest }) = of.trials.judge(trend, now)
        else {
            return false;
        };
        let before = Box::new(of.regulator);
        let step = of.regulator.restore(of.limit, trial.limit);
        conclude(of, seen, &step, now);
        if step.is_change() {
            let signal = &self.policy.signals[trial.signal.index()];
            let derivation = Derivation::Restored {
                before,
                to: trial.limit,
                signal: signal.name.to_string(),
                unit: signal.unit.to_string(),
                expected,
                seen: reads,
                rest_ms: u64::try_from(rest.as_millis()).unwrap_or(u64::MAX),
            };
            let signals = self.signal_store.seen(&self.policy, &[trial.signal], now);
            let signals = signals.into_iter().map(|(_, seen)| seen).collect();
            events.push(self.record(class, of, Reasons { signals, apportioned: None, derivation }, &step));
        }
        true
    }

    fn step_stale(
        &mut self,
        class: usize,
        of: &mut Loop,
        ids: &[SignalId],
        seen: &ClassReading,
        now: Time,
        events: &mut Vec<Event>,
    ) {
        // The most careful wish of the signals that are gone.
        let gone = ids.iter().filter(|id| self.health(**id) == Some(SignalHealth::Stale));
        let wishes: Vec<OnStale> = gone.map(|id| self.policy.signals[id.index()].on_stale).collect();
        let on_stale = if wishes.contains(&OnStale::Static) {
            OnStale::Static
        } else if wishes.contains(&OnStale::Decay) {
            OnStale::Decay
        } else {
            OnStale::Hold
        };
        let timing = Timing::of_signals(&self.policy.control, Duration::ZERO);
        let observation = Controller::observe(of, seen, &timing, now);
        let before = Box::new(of.regulator);
        let step = of.regulator.step_stale(of.limit, on_stale, &observation);
        conclude(of, seen, &step, now);
        if step.is_change() {
            let derivation = Derivation::Stale { before, observation, on_stale };
            let reasons = Reasons { signals: Vec::new(), apportioned: None, derivation };
            events.push(self.record(class, of, reasons, &step));
        }
    }

    /// The rate of a class whose requests leave a backlog, once per reading of it.
    fn step_drain(
        &mut self,
        class: usize,
        of: &mut Loop,
        seen: &ClassReading,
        now: Time,
        events: &mut Vec<Event>,
    ) {
        let Some(id) = self.counts(class) else { return };
        let Some(posted) = self.signal_store.get(id) else { return };
        let counted = counted(posted, self.job_starts, self.proxies());
        let (reading, is_stale) = match (&counted, &posted.reading) {
            (Some(counted), _) if counted.known_at > of.since => (counted.jobs, false),
            (None, Some(reading)) => (reading.value, true),
            _ => return,
        };
        let is_asked = counted.as_ref().is_some_and(|counted| counted.is_asked);
        if now.since(of.since) < self.policy.control.outer_period {
            return;
        }
        if seen.counts.offered == of.counts.offered {
            // No client asked: what is left is not this class's doing.
            of.since = now;
            return;
        }
        let spec = &self.policy.classes[class];
        let drain = &self.classes[class].measured;
        let target = drain.target(spec.starts_within, self.policy.signals[id.index()].target);
        let configured = Timing::of_signals(&self.policy.control, Duration::ZERO);
        let timing = if is_asked { configured } else { self.timing(id) };
        let observed = Controller::observe(of, seen, &timing, now);
        // A signal that is lost counts as one at its target, and nothing is gathered on it.
        let reading = if is_stale { reading.max(target) } else { reading };
        if !observed.binding && reading <= target {
            // A rate that is not reached keeps no client waiting, and says nothing of a higher one.
            (of.since, of.counts) = (now, seen.counts.clone());
            return;
        }
        let initial = of.regulator.guardrails.bounds.initial;
        let drain_per_s = drain.assumed(initial, of.limit, reading / target);
        let backlog = Backlogged {
            reading,
            target,
            drain_per_s: if is_stale { drain_per_s.min(of.limit) } else { drain_per_s },
        };
        let period = if is_stale { Duration::ZERO } else { observed.period };
        let observation = Observation { backlog: Some(backlog), period, ..observed };
        let before = Box::new(of.regulator);
        let step = of.regulator.step(of.limit, &observation);
        // The law says where the rate belongs; what is nearly there stays, and every move stands in the log.
        let is_move = (step.new / step.old).ln().abs() > WORTH_A_MOVE;
        conclude(of, seen, &Move { new: if is_move { step.new } else { step.old }, ..step }, now);
        if is_move {
            let signals = match counted.filter(|_| is_asked) {
                Some(counted) => vec![(id, counted.seen(&self.policy.signals[id.index()], now))],
                None => self.signal_store.seen(&self.policy, &[id], now),
            };
            let held_to = |seen: SignalSeen| SignalSeen { target, pressure: seen.value / target, ..seen };
            let signals = signals.into_iter().map(|(_, seen)| held_to(seen)).collect();
            let derivation = Derivation::Law { before, observation };
            events.push(self.record(class, of, Reasons { signals, apportioned: None, derivation }, &step));
        }
    }

    fn observe(of: &mut Loop, seen: &ClassReading, timing: &Timing, now: Time) -> Observation {
        let elapsed = now.since(of.since);
        let counts = seen.counts.since(&of.counts);
        let length = elapsed.as_secs_f64().max(1e-3);
        let (binding, demand) = if of.kind == LimitKind::Rate {
            let admitted_per_s = counts.admitted as f64 / length;
            let held_back = counts.shed[Reason::ClassRate as usize] > 0 || admitted_per_s >= 0.9 * of.limit;
            (held_back, counts.offered as f64 / length)
        } else {
            let latency_s = counts.latency_mean().unwrap_or(0.0);
            let refused = counts.shed_all() as f64 / length * latency_s;
            (of.peak >= permits(of.limit), f64::from(of.peak) + f64::from(seen.waiting) + refused)
        };
        of.binding = binding;
        Observation {
            period: elapsed.min(timing.step() * 2),
            dead_time: timing.dead_time(),
            binding,
            demand,
            ..Observation::nothing(now)
        }
        .clean()
    }

    /// What is used of the limit in the mean: requests per second or in flight (Little's law), and of a process that
    /// works on one after another the share of its time, since that is what a request costs the head.
    fn used(&self, class: usize, of: &Loop, seen: &ClassReading, now: Time) -> f64 {
        let (spec, recent) = (&self.policy.classes[class], self.classes[class].recent);
        if of.kind == LimitKind::Rate {
            return recent.used_per_s / recent.used_seen.max(1e-3);
        }
        if self.policy.modules[spec.module.index()].is_one_process() && !spec.awaits {
            return recent.work_per_s;
        }
        let counts = seen.counts.since(&of.counts);
        let admitted_per_s = counts.admitted as f64 / now.since(of.since).as_secs_f64().max(1e-3);
        // Nothing was answered: all that was under way still is.
        counts.latency_mean().map_or(f64::from(of.peak), |latency_s| admitted_per_s * latency_s)
    }

    /// When a loop on this signal acts and on what: as configured or, where that is worse, as the
    /// signal is seen to come.
    fn timing(&self, id: SignalId) -> Timing {
        let configured = Timing::of_signals(&self.policy.control, Duration::ZERO);
        self.signal_store.get(id).map_or(configured, |posted| posted.cadence.timing(&configured))
    }

    /// The signals of a class that its outer loop follows: all but the backlog that its rate follows.
    pub(super) fn levels(&self, class: usize) -> Vec<SignalId> {
        let counts = self.counts(class);
        self.policy.classes[class].signals.iter().copied().filter(|id| Some(*id) != counts).collect()
    }

    /// The backlog that the class's rate follows.
    fn counts(&self, class: usize) -> Option<SignalId> {
        backlog_followed(&self.policy, class)
    }

    /// Whether this signal has brought something new since `since`.
    fn is_news(&self, id: SignalId, since: Time) -> bool {
        self.signal_store.get(id).is_some_and(|posted| posted.fresh_since(since))
    }

    fn health(&self, id: SignalId) -> Option<SignalHealth> {
        Some(self.signal_store.get(id)?.health())
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

    /// The backlog limit follows its own signal, every fresh reading at once. `whole` is the proxy
    /// with those of others.
    pub(super) fn step_backlog(&mut self, proxy: &ProxyReading, whole: &ProxyReading, now: Time) {
        let proxies = self.proxies();
        for (class, loops) in self.classes.iter_mut().enumerate() {
            let spec = &self.policy.classes[class];
            let Some(id) = spec.backlog.or_else(|| backlog_followed(&self.policy, class)) else { continue };
            loops.measured.on_admitted(whole[class].counts.admitted, now);
            let total = proxy[class].counts.admitted;
            if let Some(backlog) = &mut loops.backlog {
                backlog.share_among(proxies);
                backlog.on_admitted(total, now, REFRESH * 3);
            }
            let posted = self.signal_store.get(id);
            if let Some(counted) = posted.and_then(|posted| counted(posted, self.job_starts, proxies)) {
                let configured = self.policy.signals[id.index()].target;
                if loops.measured.is_news(counted.at) {
                    let target = loops.measured.target(spec.starts_within, configured);
                    let is_reached =
                        loops.backlog.as_ref().is_some_and(|backlog| backlog.admitted_max() <= total);
                    let promise = (target, spec.starts_within);
                    let true_at = (counted.at, counted.age, counted.interval);
                    loops.measured.on_reading(counted.jobs, true_at, promise, is_reached);
                }
                let promise = Promise {
                    target: loops.measured.target(spec.starts_within, configured),
                    starts_within: spec.starts_within,
                    // A head that is behind needs cores for its clients, too: the next reading gives the rest.
                    begins_per_s: loops.measured.least()
                        * if loops.measured.capacity().is_some() { BEHIND } else { 1.0 },
                };
                if let Some(backlog) = &mut loops.backlog {
                    let true_at = (counted.at - counted.age, counted.at);
                    backlog.on_reading(counted.jobs, true_at, promise, now);
                }
            }
            if let Some(backlog) = &mut loops.backlog {
                backlog.tick(total, now);
            }
        }
    }
}

/// How many jobs wait for their start.
#[derive(Clone, Copy, Debug)]
struct Counted {
    jobs: f64,
    /// When it was true at the latest, and by how much it may have been true before that.
    at: Time,
    age: Duration,
    /// Since when it is known here, and how often it comes.
    known_at: Time,
    interval: Duration,
    /// The jobs said so themselves.
    is_asked: bool,
}

impl Counted {
    fn seen(&self, signal: &Signal, now: Time) -> SignalSeen {
        SignalSeen {
            name: signal.name.to_string(),
            value: self.jobs,
            target: signal.target,
            pressure: self.jobs / signal.target,
            forecast: None,
            age_ms: u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX),
            source: "the states of admitted jobs".to_owned(),
            unit: signal.unit.to_string(),
        }
    }
}

/// How many jobs wait by Ray's gauge or by their own states, whichever knows better ([`crate::control::job_starts`]):
/// `asked` is what the jobs say that were let in here, one of so many replicas.
fn counted(posted: &Posted, asked: Option<Waiting>, replicas: u32) -> Option<Counted> {
    let asked = asked.map(|asked| {
        (
            asked.since,
            Counted {
                jobs: asked.jobs * f64::from(replicas),
                at: asked.at,
                age: ASKED_AGE,
                known_at: asked.at,
                interval: ASKED_AGE,
                is_asked: true,
            },
        )
    });
    let reading = posted.reading.as_ref().filter(|_| posted.health() == SignalHealth::Fresh);
    let gauge = reading.map(|reading| {
        let interval = posted.cadence.interval().unwrap_or_default();
        Counted {
            jobs: reading.value,
            at: reading.at,
            age: interval.clamp(Duration::from_secs(1), REFRESH),
            known_at: posted.fresh_at(),
            interval,
            is_asked: false,
        }
    });
    match (asked, gauge) {
        (Some((since, asked)), Some(gauge)) => {
            let all_counted_have_started = since > gauge.at;
            Some(if all_counted_have_started || asked.jobs >= gauge.jobs { asked } else { gauge })
        }
        (asked, gauge) => asked.map(|(_, asked)| asked).or(gauge),
    }
}

/// A job that is being let in is in the line of those that are asked by then.
const ASKED_AGE: Duration = Duration::from_secs(1);

/// The limit stands as the step left it, and the next window begins.
fn conclude(of: &mut Loop, seen: &ClassReading, step: &Move, now: Time) {
    of.limit = step.new;
    of.oscillation.observe(now, step.new);
    of.since = now;
    of.counts.clone_from(&seen.counts);
    of.peak = seen.in_flight;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::signal_store::SignalStore;
    use crate::policy::{Policy, Signal, plain};
    use crate::signal::catalogue::SIGNALS;
    use crate::signal::reading::Reading;

    fn at(second: u64) -> Time {
        Time::ZERO + Duration::from_secs(second)
    }

    /// How many wait where Ray's gauge said so many at 100 s, and the jobs say that `waiting` of those let in after `since`
    /// wait; and whether they are believed.
    fn believed(gauge: Option<f64>, asked: Option<(f64, u64)>, replicas: u32) -> Option<(f64, bool)> {
        let backlog = SIGNALS.iter().find(|signal| signal.name == "submission_backlog").unwrap();
        let signals: Vec<Signal> = vec![backlog.signal()];
        let policy = Policy { signals, ..plain::policy(vec![plain::class("submit", 8.0)], 100.0) };
        let mut store = SignalStore::new(&policy, at(0));
        if let Some(value) = gauge {
            let reading = Reading {
                signal: SignalId(0),
                value,
                at: at(100),
                fresh: 1,
                resolution: 1.0,
                source: "test".into(),
            };
            store.on_readings(&policy, &[(SignalId(0), Ok(reading))], at(101));
        }
        let waiting = asked.map(|(jobs, since)| Waiting { jobs, since: at(since), at: at(110) });
        let counted = counted(store.get(SignalId(0)).unwrap(), waiting, replicas)?;
        Some((counted.jobs, counted.is_asked))
    }

    #[test]
    fn jobs_are_believed_where_they_know_better_than_the_gauge() {
        assert_eq!(believed(None, None, 1), None);
        assert_eq!(believed(Some(7.0), None, 1), Some((7.0, false)));
        assert_eq!(believed(None, Some((3.0, 50)), 1), Some((3.0, true)));
        // A job of before the reading has started: others than these may wait, or more of these than the gauge says.
        assert_eq!(believed(Some(7.0), Some((3.0, 50)), 1), Some((7.0, false)));
        assert_eq!(believed(Some(7.0), Some((30.0, 50)), 1), Some((30.0, true)));
        // One that was let in after it has started: all that it counted have.
        assert_eq!(believed(Some(7.0), Some((3.0, 105)), 1), Some((3.0, true)));
        // Each of three replicas knows its own.
        assert_eq!(believed(Some(7.0), Some((3.0, 50)), 3), Some((9.0, true)));
    }
}
