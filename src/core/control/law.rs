//! What is a law, and what may it look at?
//!
//! A law looks at one [`Observation`] per step and proposes the next value of one limit.
//! That is all it may do: it knows no clock, no other limit, no class. Between its proposal
//! and the limit table stand the guardrails ([`super::guardrails`]); what they let through is told back
//! with `LawState::applied`, so that a law never believes in a move that was not made.
//!
//! All laws work on `ln(limit)`. By Little's law, latency = limit / throughput once the plant
//! is saturated, so `d ln(latency) / d ln(limit)` is 1 there, whatever the plant's size, and 0
//! below saturation. One dimensionless gain therefore fits a class of 2 permits and a class of
//! 2,000, and the stability sums in [`super::stability`] hold for both.
//!
//! A pressure that is absent, NaN, infinite or negative is *no information*: nothing moves.
//! It is never read as "all is well".
//!
//! Laws are plain data (`Serialize`): an adjustment is journalled with the law as it stood
//! before the step, so that any line of the adjustment log can be derived again by itself.

use super::{aimd, backlog, futile, gradient, pid, wasted};
use crate::policy::{Bounds, Law};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Pressures beyond these are taken for these: a reading a thousand times its target says no
/// more than "far too much", and a bounded error keeps every term bounded.
const PRESSURE_MIN: f64 = 1e-3;
/// See [`PRESSURE_MIN`].
const PRESSURE_MAX: f64 = 1e3;

/// What a law sees of the world at one step.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Observation {
    /// The instant of the step.
    pub now: Time,
    /// The time between steps.
    #[serde(rename = "period_ns", with = "nanos")]
    pub period: Duration,
    /// How long a change of the limit takes to show in `pressure`.
    #[serde(rename = "dead_time_ns", with = "nanos")]
    pub dead_time: Duration,
    /// Worst reading / target: 1 is at target, 2 twice too much. `None`: no new information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<f64>,
    /// The limit held something back (or was used up) since the step before.
    pub binding: bool,
    /// What was asked for since the step before, in the limit's own unit: requests per second,
    /// or requests that would have been under way at once.
    pub demand: f64,
    /// The class's latency over the window, in seconds, always the same quantile. The gradient
    /// law compares it with the baseline it has learnt.
    #[serde(default, rename = "latency_s", skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// The class's own latency over its SLO, where it is known: at most 1 while it meets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo_pressure: Option<f64>,
    /// A signal whose power over the limit is not proven yet may lower it so far and no further
    /// ([`super::trial`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_below: Option<f64>,
    /// How the latencies behind it spread, where there were enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// The latencies themselves, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<futile::Sample>,
    /// What ended of what was under way, where the proxy counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<wasted::Ended>,
    /// What is used of a limit that follows a signal, in the mean: a cut begins there (`Observation::cut_from`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<f64>,
    /// The backlog that the class's requests leave behind, where the limit follows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog: Option<backlog::Backlogged>,
    /// Standard error of ln(pressure): what of it may be chance. 0: it is exact, or the noise is not known.
    #[serde(default, skip_serializing_if = "is_exact")]
    pub noise: f64,
}

/// How latencies spread.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// What the tenth of them that took least stayed within, seconds.
    pub quickest: f64,
    /// Their mean, seconds.
    pub mean: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_exact(noise: &f64) -> bool {
    *noise <= 0.0
}

impl Observation {
    /// Nothing is known at `now`.
    #[must_use]
    pub fn nothing(now: Time) -> Observation {
        Observation {
            now,
            period: Duration::ZERO,
            dead_time: Duration::ZERO,
            pressure: None,
            binding: false,
            demand: 0.0,
            latency: None,
            slo_pressure: None,
            spread: None,
            sample: None,
            ended: None,
            not_below: None,
            used: None,
            backlog: None,
            noise: 0.0,
        }
    }

    /// The same with every number that is none (NaN, infinite, negative) taken for missing:
    /// what a law acts on, and what the adjustment log holds.
    #[must_use]
    pub fn clean(&self) -> Observation {
        let number = |value: f64| (value.is_finite() && value >= 0.0).then_some(value);
        Observation {
            pressure: self.pressure.and_then(number),
            latency: self.latency.and_then(number).filter(|&seconds| seconds > 0.0),
            slo_pressure: self.slo_pressure.and_then(number),
            not_below: self.not_below.and_then(number),
            used: self.used.and_then(number),
            spread: self
                .spread
                .filter(|of| number(of.quickest).is_some() && of.mean.is_finite() && of.mean > 0.0),
            ended: self.ended.filter(wasted::Ended::is_sound),
            backlog: self.backlog.filter(|seen| {
                [seen.reading, seen.target, seen.drain_per_s].into_iter().all(|value| number(value).is_some())
            }),
            demand: number(self.demand).unwrap_or(0.0),
            noise: number(self.noise).unwrap_or(0.0),
            ..*self
        }
    }

    /// From where a limit comes down: from what is used of it. What a signal's reading is made of is what the class
    /// does, and not what it might; a limit that is lowered and still not reached gives the head nothing. (As TCP's
    /// window is reduced from what was sent of it: RFC 7661, 4.4.)
    #[must_use]
    pub(crate) fn cut_from(&self, limit: f64, deadband: f64) -> f64 {
        let is_over = self.pressure.is_some_and(|pressure| pressure > 1.0 + deadband);
        self.used.filter(|_| is_over).map_or(limit, |used| used.min(limit))
    }

    /// Whether the limit has held nothing back and the class meets its SLO: then a lower limit would
    /// not help (law 3).
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.used.is_none() && !self.binding && self.slo_pressure.is_none_or(|pressure| pressure <= 1.0)
    }

    /// Pressure, held to a range in which its logarithm is harmless.
    pub(super) fn pressure_held(&self) -> Option<f64> {
        self.pressure.map(|pressure| pressure.clamp(PRESSURE_MIN, PRESSURE_MAX))
    }

    /// The share of a dead time that one step takes, at most 1.
    pub(super) fn period_per_dead_time(&self) -> f64 {
        let dead_time = self.dead_time.as_secs_f64();
        if dead_time <= 0.0 { 1.0 } else { (self.period.as_secs_f64() / dead_time).min(1.0) }
    }

    /// The SIMC integral gain for this loop: period / (2 dead times), at most 1.
    pub(super) fn gain_simc(&self) -> f64 {
        simc_gain(self.period, self.dead_time)
    }
}

/// The integral gain per step that Skogestad's SIMC rule gives a plant of gain 1 that is pure
/// dead time, at closed-loop time constant = dead time: `period / (2 * dead_time)`, at most 1.
#[must_use]
pub(crate) fn simc_gain(period: Duration, dead_time: Duration) -> f64 {
    let dead_time = dead_time.as_secs_f64();
    if dead_time <= 0.0 { 1.0 } else { (period.as_secs_f64() / (2.0 * dead_time)).min(1.0) }
}

/// A law with its constants and what it remembers.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "law", rename_all = "snake_case")]
pub enum LawState {
    /// Does not move.
    Static,
    /// Additive increase, multiplicative decrease.
    Aimd {
        /// Its constants.
        config: aimd::Config,
        /// What it remembers.
        state: aimd::State,
    },
    /// Proportional, integral, derivative.
    Pid {
        /// Its constants.
        config: pid::Config,
        /// What it remembers.
        state: pid::State,
    },
    /// Latency against a learnt baseline.
    Gradient {
        /// Its constants.
        config: gradient::Config,
        /// What it remembers.
        state: gradient::State,
    },
    /// A rate after the backlog it leaves. It needs no constants.
    Backlog {
        /// What it remembers.
        state: backlog::State,
    },
}

/// A law's proposal.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Step {
    /// The limit it wants, finite whenever the limit it was given was.
    pub limit: f64,
    /// How it came to it.
    pub terms: Terms,
}

/// The parts a proposal was made of, for the adjustment log.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Terms {
    /// Nothing to go by: no law moves without information.
    NoInformation,
    /// The limit does not move.
    Static,
    /// See [`aimd`].
    Aimd(aimd::Terms),
    /// See [`pid`].
    Pid(pid::Terms),
    /// See [`gradient`].
    Gradient(gradient::Terms),
    /// See [`backlog`].
    Backlog(backlog::Terms),
}

impl LawState {
    /// The law of a class, for a limit within `bounds`, with nothing remembered.
    #[must_use]
    pub fn new(law: &Law, bounds: &Bounds) -> LawState {
        match *law {
            Law::Static => LawState::Static,
            Law::Aimd { increase, decrease } => LawState::Aimd {
                config: aimd::Config { increase: increase * bounds.initial, decrease },
                state: aimd::State::default(),
            },
            Law::Pid { kp, ki, kd } => {
                LawState::Pid { config: pid::Config { kp, ki, kd }, state: pid::State::default() }
            }
            Law::Gradient { tolerance, smoothing } => LawState::Gradient {
                config: gradient::Config { tolerance, smoothing, min: bounds.min },
                state: gradient::State::default(),
            },
        }
    }

    /// The law's name in config and in the adjustment log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            LawState::Static => "static",
            LawState::Aimd { .. } => "aimd",
            LawState::Pid { .. } => "pid",
            LawState::Gradient { .. } => "gradient",
            LawState::Backlog { .. } => "backlog",
        }
    }

    /// Proposes the next limit. Without information, and for a limit that is no positive
    /// number, the proposal is the limit itself.
    pub fn step(&mut self, limit: f64, observation: &Observation) -> Step {
        let seen = observation.clean();
        if !(limit.is_finite() && limit > 0.0) {
            return Step { limit, terms: Terms::NoInformation };
        }
        let step = match self {
            LawState::Static => Some(Step { limit, terms: Terms::Static }),
            LawState::Aimd { config, state } => aimd::step(config, state, limit, &seen),
            LawState::Pid { config, state } => pid::step(config, state, limit, &seen),
            LawState::Gradient { config, state } => gradient::step(config, state, limit, &seen),
            LawState::Backlog { state } => backlog::step(state, &seen),
        };
        step.filter(|step| step.limit.is_finite()).unwrap_or(Step { limit, terms: Terms::NoInformation })
    }

    /// Tells the law what became of its last proposal: the limit went from `old` to `new`.
    pub(crate) fn applied(&mut self, observation: &Observation, old: f64, new: f64) {
        match self {
            LawState::Static | LawState::Gradient { .. } | LawState::Backlog { .. } => {}
            LawState::Aimd { state, .. } => state.applied(observation.now, old, new),
            LawState::Pid { config, state } => state.applied(config, new),
        }
    }

    /// Bumpless transfer: something else set the limit (an operator, a reload, a warm start).
    /// What the law has learnt of the plant stays; what it remembers of its own moves goes.
    pub fn reset(&mut self) {
        match self {
            LawState::Static | LawState::Gradient { .. } => {}
            LawState::Aimd { state, .. } => *state = aimd::State::default(),
            LawState::Pid { state, .. } => *state = pid::State::default(),
            LawState::Backlog { state } => *state = backlog::State::default(),
        }
    }

    /// The same kind of law with new constants keeps its memory; another kind starts anew.
    #[must_use]
    pub fn reload(self, law: &Law, bounds: &Bounds) -> LawState {
        match (self, LawState::new(law, bounds)) {
            (LawState::Aimd { state, .. }, LawState::Aimd { config, .. }) => LawState::Aimd { config, state },
            (LawState::Pid { state, .. }, LawState::Pid { config, .. }) => LawState::Pid { config, state },
            (LawState::Gradient { state, .. }, LawState::Gradient { config, .. }) => {
                LawState::Gradient { config, state }
            }
            (_, fresh) => fresh,
        }
    }
}

/// Durations as whole nanoseconds in the adjustment log.
mod nanos {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(length: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn laws() -> Vec<Law> {
        vec![
            Law::Static,
            Law::Aimd { increase: 0.1, decrease: 0.7 },
            Law::Pid { kp: 0.2, ki: None, kd: 0.1 },
            Law::Gradient { tolerance: 1.5, smoothing: 0.5 },
        ]
    }

    const BOUNDS: Bounds = Bounds { initial: 8.0, min: 1.0, max: 100.0 };

    fn observation(pressure: Option<f64>, latency: Option<f64>, binding: bool, now: u64) -> Observation {
        Observation {
            now: Time(now),
            period: Duration::from_secs(1),
            dead_time: Duration::from_secs(2),
            pressure,
            binding,
            demand: 20.0,
            latency,
            slo_pressure: None,
            spread: None,
            sample: None,
            ended: None,
            not_below: None,
            used: None,
            backlog: None,
            noise: 0.0,
        }
    }

    #[test]
    fn without_information_no_law_moves_a_limit() {
        for nothing in [None, Some(f64::NAN), Some(f64::INFINITY), Some(-1.0)] {
            for law in laws() {
                let mut state = LawState::new(&law, &BOUNDS);
                let step = state.step(12.0, &observation(nothing, nothing, true, 0));
                assert_eq!(step.limit.to_bits(), 12.0_f64.to_bits(), "{law:?} moved on {nothing:?}");
            }
        }
    }

    #[test]
    fn every_moving_law_cuts_at_twice_the_target_and_grows_at_half() {
        for law in &laws()[1..] {
            let mut state = LawState::new(law, &BOUNDS);
            // The gradient law first needs a baseline: a calm step at 0.1 s.
            state.step(12.0, &observation(Some(0.5), Some(0.1), false, 0));
            let cut = state.step(12.0, &observation(Some(2.0), Some(0.4), true, 10_000_000_000));
            assert!(cut.limit < 12.0, "{law:?} did not cut: {cut:?}");
            let mut state = LawState::new(law, &BOUNDS);
            state.step(12.0, &observation(Some(0.5), Some(0.1), false, 0));
            let grown = state.step(12.0, &observation(Some(0.5), Some(0.1), true, 10_000_000_000));
            assert!(grown.limit > 12.0, "{law:?} did not grow: {grown:?}");
        }
    }

    #[test]
    fn a_law_survives_its_own_json() {
        for law in laws() {
            let mut state = LawState::new(&law, &BOUNDS);
            let step = state.step(12.0, &observation(Some(1.3), Some(0.123_456_789), true, 7));
            state.applied(&observation(Some(1.3), None, true, 7), 12.0, step.limit);
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<LawState>(&text).unwrap(), state, "{text}");
        }
    }

    #[test]
    fn a_reload_with_new_constants_keeps_what_was_learnt() {
        let law = Law::Gradient { tolerance: 1.5, smoothing: 0.5 };
        let mut state = LawState::new(&law, &BOUNDS);
        state.step(12.0, &observation(Some(0.5), Some(0.1), false, 0));
        let LawState::Gradient { state: before, .. } = state else { unreachable!() };
        let after = state.reload(&Law::Gradient { tolerance: 2.0, smoothing: 0.5 }, &BOUNDS);
        let LawState::Gradient { config, state: after } = after else { panic!("another law: {after:?}") };
        assert_eq!(after, before);
        assert!((config.tolerance - 2.0).abs() < f64::EPSILON);
    }

    proptest! {
        #[test]
        fn a_proposal_is_finite_and_positive_whatever_is_seen(
            limits in prop::collection::vec(0.01_f64..1e6, 1..20),
            pressures in prop::collection::vec(prop::option::of(prop::num::f64::ANY), 20),
            latencies in prop::collection::vec(prop::option::of(prop::num::f64::ANY), 20),
            demand in prop::num::f64::ANY,
            binding: bool,
        ) {
            for law in laws() {
                let mut state = LawState::new(&law, &BOUNDS);
                for (i, &limit) in limits.iter().enumerate() {
                    let mut seen = observation(pressures[i], latencies[i], binding, i as u64 * 1_000_000_000);
                    seen.demand = demand;
                    let step = state.step(limit, &seen);
                    prop_assert!(step.limit.is_finite() && step.limit > 0.0, "{:?} {:?}", law, step);
                    state.applied(&seen, limit, step.limit);
                }
            }
        }
    }
}
