//! PID: how far from the target, for how long, and getting worse or better.
//!
//! Error is `e = ln(1 / pressure)`: positive when there is room, and symmetric, so that twice
//! too much and half of what is allowed weigh the same. The output is a *change* of
//! `u = ln(limit)` (velocity form, Astrom and Hagglund, "Advanced PID Control", 3.5):
//!
//! `u <- u + ki*e + kp*(e - e') + kd*(f - 2f' + f'')`,   `f <- f' + (e - f')/2`      (Eq. 1, 2)
//!
//! where `'` is the value one step before and `f` is the error behind a first-order filter,
//! without which the second difference would mostly be noise.
//!
//! *Integral gain.* Not given, it is SIMC's `period / (2 * dead_time)` (Skogestad 2003, for a
//! plant of gain 1 that is dead time and nothing else), which keeps a gain margin of 3 or so.
//!
//! *Anti-windup.* The velocity form starts each step from the limit that was really applied,
//! so the integral cannot wind up against a guardrail: this is back-calculation with a tracking
//! gain of 1. The proportional part can still be lost: a step which the slew guardrail shortened
//! would be taken back whole once the error is gone, leaving the limit below where it began.
//! So `e'` is not simply the last error but *the error whose proportional action has been
//! applied*: what a guardrail withheld is backed out of it (Eq. 3).
//!
//! *Bumpless.* After a transfer `e'` is unknown and the first step is integral alone.

use super::law::{self, Observation, Step};
use crate::policy::between;
use serde::{Deserialize, Serialize};

/// Share of a new error that the derivative's filter takes per step.
const FILTER: f64 = 0.5;

/// The constants, all per step.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Proportional gain.
    pub kp: f64,
    /// Integral gain; `None`: SIMC.
    pub ki: Option<f64>,
    /// Derivative gain.
    pub kd: f64,
}

/// What the law remembers.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The error whose proportional action has been applied (`e'`).
    pub answered: Option<f64>,
    /// The filtered error one and two steps before (`f'`, `f''`).
    pub filtered: Option<[f64; 2]>,
    /// The proposal that `applied` has not yet spoken of.
    pub pending: Option<Pending>,
}

/// A proposal under way to the guardrails.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// The proposed ln(limit).
    pub log_limit: f64,
    /// The error answered before it.
    pub answered: f64,
}

/// The parts of a proposal, as changes of ln(limit).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// ln(1 / pressure).
    pub error: f64,
    /// Proportional part.
    pub p: f64,
    /// Integral part.
    pub i: f64,
    /// Derivative part.
    pub d: f64,
    /// The integral gain that was used.
    pub ki: f64,
}

/// The next limit, or `None` without information.
pub(super) fn step(config: &Config, state: &mut State, limit: f64, seen: &Observation) -> Option<Step> {
    let Some(pressure) = seen.pressure_held() else {
        // The past of a signal that fell silent says nothing about its slope.
        state.filtered = None;
        return None;
    };
    let error = -pressure.ln();
    let answered = state.answered.unwrap_or(error);
    let [one, two] = state.filtered.unwrap_or([error, error]);
    let filtered = one + FILTER * (error - one); // Eq. 2
    let ki = config.ki.unwrap_or_else(|| seen.gain_simc());
    let terms = Terms {
        error,
        p: config.kp * (error - answered),
        i: ki * error,
        d: config.kd * (filtered - 2.0 * one + two),
        ki,
    };
    let change = terms.i + terms.p + terms.d; // Eq. 1
    state.pending = Some(Pending { log_limit: limit.ln() + change, answered });
    state.answered = Some(error);
    state.filtered = Some([filtered, one]);
    Some(Step { limit: limit * change.exp(), terms: law::Terms::Pid(terms) })
}

impl State {
    /// Backs what the guardrails withheld out of the proportional memory, as far as it was
    /// proportional action at all (Eq. 3).
    pub(super) fn applied(&mut self, config: &Config, new: f64) {
        let Some(Pending { log_limit, answered: before }) = self.pending.take() else { return };
        let Some(error) = self.answered else { return };
        if config.kp <= 0.0 || !(new.is_finite() && new > 0.0) {
            return;
        }
        let backed = error + (new.ln() - log_limit) / config.kp; // Eq. 3
        self.answered = Some(between(backed, before.min(error), before.max(error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;
    use std::time::Duration;

    fn seen(pressure: Option<f64>) -> Observation {
        Observation {
            now: Time::ZERO,
            period: Duration::from_secs(5),
            dead_time: Duration::from_secs(20),
            pressure,
            binding: true,
            demand: 50.0,
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

    fn next(config: &Config, state: &mut State, limit: f64, pressure: f64) -> f64 {
        step(config, state, limit, &seen(Some(pressure))).unwrap().limit
    }

    fn assert_close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn the_default_integral_gain_is_simc() {
        let config = Config { kp: 0.0, ki: None, kd: 0.0 };
        // 5 s / (2 * 20 s) = 1/8: pressure 2 takes the eighth root of 2 off the limit.
        assert_close(next(&config, &mut State::default(), 10.0, 2.0), 10.0 * 2.0_f64.powf(-0.125));
    }

    #[test]
    fn the_first_step_after_a_transfer_is_integral_alone() {
        let config = Config { kp: 5.0, ki: Some(0.1), kd: 5.0 };
        let mut state = State::default();
        assert_close(next(&config, &mut state, 10.0, 2.0), 10.0 * 2.0_f64.powf(-0.1));
    }

    #[test]
    fn a_proportional_move_is_taken_back_exactly_when_the_error_goes() {
        let config = Config { kp: 0.5, ki: Some(0.0), kd: 0.0 };
        let mut state = State::default();
        let mut limit = 10.0;
        for pressure in [1.0, 4.0, 1.0] {
            limit = next(&config, &mut state, limit, pressure);
            state.applied(&config, limit);
        }
        assert_close(limit, 10.0);
    }

    #[test]
    fn what_a_guardrail_withheld_is_not_taken_back() {
        let config = Config { kp: 0.5, ki: Some(0.0), kd: 0.0 };
        let mut state = State::default();
        next(&config, &mut state, 10.0, 1.0);
        state.applied(&config, 10.0);
        // Pressure 4 asks for 5, the slew guardrail allows 8.
        assert_close(next(&config, &mut state, 10.0, 4.0), 5.0);
        state.applied(&config, 8.0);
        // The rest of the answer is still owed...
        let owed = next(&config, &mut state, 8.0, 4.0);
        assert_close(owed, 5.0);
        state.applied(&config, 8.0);
        // ... and when the error goes, only what was done is undone.
        assert_close(next(&config, &mut state, 8.0, 1.0), 10.0);
    }

    #[test]
    fn the_integral_does_not_wind_up_against_a_floor() {
        let config = Config { kp: 0.0, ki: Some(0.1), kd: 0.0 };
        let mut state = State::default();
        for _ in 0..1_000 {
            next(&config, &mut state, 1.0, 8.0);
            state.applied(&config, 1.0);
        }
        assert!(next(&config, &mut state, 1.0, 0.5) > 1.0, "the limit must rise at the first step with room");
    }

    #[test]
    fn a_signal_that_comes_back_gives_no_derivative_kick() {
        let config = Config { kp: 0.0, ki: Some(0.0), kd: 1.0 };
        let mut state = State::default();
        next(&config, &mut state, 10.0, 1.0);
        assert!(step(&config, &mut state, 10.0, &seen(None)).is_none());
        assert_close(next(&config, &mut state, 10.0, 8.0), 10.0);
    }
}
