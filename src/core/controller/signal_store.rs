//! The signal store: every signal's last reading, how fresh it is, and what it says.

use crate::alert::SignalFacts;
use crate::control::dead_time::Cadence;
use crate::control::trial::Trend;
use crate::event::{Event, Forecast, SignalHealth, SignalSeen, SignalState};
use crate::policy::{OnStale, Policy, Signal, SignalId};
use crate::signal::freshness::{Freshness, FreshnessState, Transition, Why};
use crate::signal::reading::{Missing, Reading};
use crate::time::Time;
use std::sync::Arc;
use std::time::Duration;

/// All signals.
#[derive(Clone, Debug)]
pub(crate) struct SignalStore {
    signals: Vec<Posted>,
}

/// One signal.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    /// How far it may be trusted.
    pub freshness: Freshness,
    /// What was read last.
    pub reading: Option<Reading>,
    /// Why nothing was read last time, or empty.
    pub problem: String,
    /// The address that could not be read last time.
    pub unreachable: Option<Arc<str>>,
    /// How late and how often it really comes.
    pub cadence: Cadence,
    /// Where its readings are going.
    pub trend: Trend,
    fresh_at: Option<Time>,
}

impl SignalStore {
    /// Nothing read yet.
    #[must_use]
    pub(crate) fn new(policy: &Policy, now: Time) -> SignalStore {
        let posted = policy.signals.iter().enumerate().filter_map(|(at, signal)| {
            let id = SignalId(u8::try_from(at).ok()?);
            Some(Posted {
                freshness: Freshness::new(id, signal.stale_after, now),
                reading: None,
                problem: String::new(),
                unreachable: None,
                cadence: Cadence::default(),
                trend: Trend::default(),
                fresh_at: None,
            })
        });
        SignalStore { signals: posted.collect() }
    }

    /// Takes over what was read before a reload, of signals of the same name that may be as old as before: they are as
    /// fresh, or as stale, as they were.
    pub(crate) fn take_over(&mut self, policy: &Policy, before: &SignalStore, old: &Policy) {
        for (at, (own, new)) in self.signals.iter_mut().zip(&policy.signals).enumerate() {
            let is_same = |old: &&Signal| old.name == new.name && old.stale_after == new.stale_after;
            let known = before.signals.iter().zip(&old.signals).find(|(_, old)| is_same(old));
            if let (Some((known, _)), Ok(at)) = (known, u8::try_from(at)) {
                let id = SignalId(at);
                let reading = known.reading.clone().map(|reading| Reading { signal: id, ..reading });
                *own = Posted { freshness: known.freshness.renumbered(id), reading, ..known.clone() };
            }
        }
    }

    /// One signal.
    #[must_use]
    pub(crate) fn get(&self, id: SignalId) -> Option<&Posted> {
        self.signals.get(id.index())
    }

    /// Takes in what was read and what could not be; returns changes of state.
    pub(crate) fn on_readings(
        &mut self,
        policy: &Policy,
        readings: &[(SignalId, Result<Reading, Missing>)],
        now: Time,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for (id, result) in readings {
            let Some(posted) = self.signals.get_mut(id.index()) else { continue };
            let transition = match result {
                Ok(reading) => {
                    if posted.cadence.observe(now, reading.at, reading.fresh) {
                        posted.fresh_at = Some(now);
                        posted.trend.observe(reading.value, now);
                    }
                    posted.problem.clear();
                    posted.unreachable = None;
                    let transition = posted.freshness.on_reading(reading, now);
                    posted.reading = Some(reading.clone());
                    posted.note_frozen();
                    transition
                }
                Err(missing) => {
                    if posted.concerns(missing) {
                        posted.problem = missing.to_string();
                        posted.unreachable = match missing {
                            Missing::Unreachable { target, .. } => Some(Arc::clone(target)),
                            _ => None,
                        };
                    }
                    posted.freshness.on_missing(missing, now)
                }
            };
            events.extend(transition.map(|transition| posted.describe(policy, *id, &transition)));
        }
        events
    }

    /// Lets time pass; returns what has gone stale.
    pub(crate) fn tick(&mut self, policy: &Policy, now: Time) -> Vec<Event> {
        let mut events = Vec::new();
        for (at, posted) in self.signals.iter_mut().enumerate() {
            let Ok(id) = u8::try_from(at) else { continue };
            if let Some(transition) = posted.freshness.tick(now) {
                posted.note_frozen();
                events.push(posted.describe(policy, SignalId(id), &transition));
            }
        }
        events
    }

    /// The readings of these signals that may be acted on, as the adjustment log shows them.
    #[must_use]
    pub(crate) fn seen(&self, policy: &Policy, ids: &[SignalId], now: Time) -> Vec<(SignalId, SignalSeen)> {
        ids.iter().filter_map(|id| Some((*id, self.get(*id)?.seen(policy, *id, now)?))).collect()
    }

    /// For the alert rules.
    #[must_use]
    pub(crate) fn facts<'a>(&'a self, policy: &'a Policy, now: Time) -> Vec<SignalFacts<'a>> {
        self.signals
            .iter()
            .zip(&policy.signals)
            .enumerate()
            .filter(|(at, _)| u8::try_from(*at).is_ok_and(|at| policy.follows(SignalId(at))))
            .map(|(_, (posted, signal))| SignalFacts {
                name: &signal.name,
                stale: matches!(posted.freshness.state(), FreshnessState::Stale { .. }),
                age: posted.age(now),
                problem: &posted.problem,
                target: posted.target(),
                unreachable: posted.unreachable.is_some(),
            })
            .collect()
    }
}

impl Posted {
    /// Age of the last reading.
    #[must_use]
    pub(crate) fn age(&self, now: Time) -> Option<Duration> {
        self.reading.as_ref().map(|reading| now.since(reading.at))
    }

    /// Where it is read.
    fn target(&self) -> Option<&str> {
        self.unreachable.as_deref().or_else(|| self.source())
    }

    /// The address its last reading came from, or how many: what the source begins with.
    fn source(&self) -> Option<&str> {
        let source = &*self.reading.as_ref()?.source;
        source.split_once(", as ").map(|(targets, _)| targets).or_else(|| source.split(' ').next())
    }

    /// Whether this is news of the address that the signal was read at. A reader that has begun anew, after a reload,
    /// does not know that address: it reports that no page has come yet, or an address that fails beside it.
    fn concerns(&self, missing: &Missing) -> bool {
        match (missing, self.source()) {
            (Missing::NoPage { .. }, Some(_)) => self.problem.is_empty(),
            (Missing::Unreachable { target, .. }, Some(source)) => {
                self.unreachable.as_deref() != Some(source) || **target == *source
            }
            _ => true,
        }
    }

    /// Says so where the source answers and its values have stood still for too long.
    fn note_frozen(&mut self) {
        let is_frozen =
            matches!(self.freshness.state(), FreshnessState::Stale { why, .. } if *why != Why::Silent);
        if is_frozen && self.problem.is_empty() {
            let source = self.source().unwrap_or("the source");
            self.problem = format!(
                "{source} answers, but its values no longer change: Ray's agent there may hang; look at it on the head"
            );
        }
    }

    /// When it last brought something new.
    pub(crate) fn fresh_at(&self) -> Time {
        self.fresh_at.unwrap_or_default()
    }

    /// Whether it has brought something new after `since`.
    #[must_use]
    pub(crate) fn fresh_since(&self, since: Time) -> bool {
        self.fresh_at.is_some_and(|at| at > since)
    }

    /// What it is worth.
    #[must_use]
    pub(crate) fn health(&self) -> SignalHealth {
        health(self.freshness.state())
    }

    /// The reading, if it may be acted on.
    #[must_use]
    pub(crate) fn seen(&self, policy: &Policy, id: SignalId, now: Time) -> Option<SignalSeen> {
        let signal = &policy.signals[id.index()];
        let reading = self.reading.as_ref().filter(|_| self.health() == SignalHealth::Fresh)?;
        let forecast = self.forecast(signal, reading.value, now);
        let pressure = forecast.map_or(reading.value / signal.target, |forecast| {
            pressure_of_growth(reading.value, forecast.value, signal.target)
        });
        Some(SignalSeen {
            name: signal.name.to_string(),
            value: reading.value,
            target: signal.target,
            pressure,
            forecast,
            age_ms: u64::try_from(now.since(reading.at).as_millis()).unwrap_or(u64::MAX),
            source: reading.source.to_string(),
            unit: signal.unit.to_string(),
        })
    }

    /// Where what gathers is going to be.
    fn forecast(&self, signal: &Signal, value: f64, now: Time) -> Option<Forecast> {
        let counts = signal.gathers() && value >= signal.target / 2.0;
        counts.then(|| Forecast {
            value: self.trend.forecast(now, signal.forecast),
            in_s: signal.forecast.as_secs_f64(),
        })
    }

    fn describe(&self, policy: &Policy, id: SignalId, transition: &Transition) -> Event {
        let signal = &policy.signals[id.index()];
        let problem = match &transition.to {
            FreshnessState::Stale { why, .. } if self.problem.is_empty() => why.to_string(),
            FreshnessState::Stale { .. } => self.problem.clone(),
            FreshnessState::Waiting | FreshnessState::Fresh => String::new(),
        };
        // A class that is limited by what it leaves behind passes slowly without any news of it (core/controller/backlog.rs).
        let trickles = policy.classes.iter().any(|class| class.backlog == Some(id));
        let consequence = match (&transition.to, signal.on_stale) {
            _ if !policy.follows(id) => "no limit uses it",
            (FreshnessState::Stale { .. }, _) if trickles => {
                "until it is read again, rayguard asks Ray for the state of each admitted job; without that too, submissions pass at half the measured rate of job starts, or one every 5 s"
            }
            (FreshnessState::Fresh, _) => "it moves limits",
            (FreshnessState::Waiting, _) => "it moves nothing yet",
            (FreshnessState::Stale { .. }, OnStale::Hold) => {
                "rates and ceilings that follow it do not rise; the proxy's own latency still moves limits"
            }
            (FreshnessState::Stale { .. }, OnStale::Decay) => {
                "rates and ceilings that follow it go back towards their initial values"
            }
            (FreshnessState::Stale { .. }, OnStale::Static) => {
                "rates and ceilings that follow it go to their initial values"
            }
        };
        Event::SignalState(SignalState {
            signal: signal.name.to_string(),
            state: health(&transition.to),
            age_ms: transition.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            source: self.reading.as_ref().map_or_else(String::new, |reading| reading.source.to_string()),
            problem,
            consequence: consequence.to_owned(),
        })
    }
}

/// The pressure of what gathers: how fast it grows over how fast it may, so that it comes to its target just when it is
/// forecast; or its level, whichever is more. A rate moves the growth in proportion, and the level not at all at first:
/// measured by the level that is forecast, a rate that is twice too high would be a tenth too high, and be cut by that.
fn pressure_of_growth(value: f64, forecast: f64, target: f64) -> f64 {
    let may_grow = (target - value).max(target * GROWS_MIN);
    ((forecast - value) / may_grow).min(PRESSURE_MAX).max(value / target)
}

/// Near its target, and above it, what gathers may grow by so much of it all the same: a reading scatters.
const GROWS_MIN: f64 = 0.05;

/// More than this is cut no faster.
const PRESSURE_MAX: f64 = 4.0;

fn health(state: &FreshnessState) -> SignalHealth {
    match state {
        FreshnessState::Waiting => SignalHealth::Waiting,
        FreshnessState::Fresh => SignalHealth::Fresh,
        FreshnessState::Stale { .. } => SignalHealth::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::pressure_of_growth;

    #[test]
    fn what_gathers_presses_by_its_growth_over_what_it_may_grow_by_and_by_its_level() {
        // At 60 of 90 it may grow by 30 until it is forecast.
        for (forecast, pressure) in
            [(75.0, 60.0 / 90.0), (90.0, 1.0), (120.0, 2.0), (1000.0, 4.0), (30.0, 60.0 / 90.0)]
        {
            assert!((pressure_of_growth(60.0, forecast, 90.0) - pressure).abs() < 1e-12, "{forecast}");
        }
        // At its target it must not grow, and beyond it must come down.
        assert!(pressure_of_growth(90.0, 99.0, 90.0) >= 2.0);
        assert!((pressure_of_growth(99.0, 90.0, 90.0) - 1.1).abs() < 1e-12);
    }
}
