//! AIMD: grow by a little while there is room, cut by a share when there is not.
//!
//! The law of TCP (Chiu and Jain, 1989), with three changes that a loop with dead time needs.
//!
//! 1. *At most one cut per dead time.* The effect of a cut shows only after the dead time;
//!    cutting on every step until then multiplies one overload into a collapse (this, and
//!    growth without feedback, is why plain AIMD reached 2 % goodput on the plant of eight
//!    servers).
//! 2. *A cut is as deep as it needs to be, and no deeper than `decrease`.* On a saturated
//!    plant latency is proportional to the limit, so `limit / pressure` is where the target
//!    lies; a fixed factor would swing by that factor for ever.
//!    `limit <- limit * max(decrease, 1 / pressure)`                                   (Eq. 1)
//! 3. *Growth per dead time, not per step, and never past the target.* Whatever the period, by
//!    the time the first increase is seen the limit has grown by `increase` at most; and by no
//!    more than an integral law of SIMC's gain `g` would grow it, so that near the target, or at
//!    a low limit, the increase is as small as the error and cannot make the loop swing:
//!    `limit <- limit + min(increase * period / dead_time, limit * (pressure^-g - 1))`  (Eq. 2)
//!
//! It grows only while the limit is binding: a limit that holds nothing back has not been
//! shown to be safe any higher. It refuses nothing else; min, max and slew are the guardrails'.

use super::law::{self, Observation, Step};
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// The constants.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Added per dead time when pressure is far below 1, in the limit's unit.
    pub increase: f64,
    /// The deepest cut, as a factor below 1.
    pub decrease: f64,
}

/// What the law remembers.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// When the limit was last cut.
    #[serde(default, rename = "cut_at_ns", skip_serializing_if = "Option::is_none")]
    pub cut_at: Option<Time>,
}

/// The parts of a proposal.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// Pressure as the law took it.
    pub pressure: f64,
    /// Added, in the limit's unit; 0 for a cut or a hold.
    pub increase: f64,
    /// Multiplied by; 1 for growth or a hold.
    pub factor: f64,
    /// Pressure asked for a cut, but the one before has not had time to show.
    pub waiting: bool,
}

/// The next limit, or `None` without information.
pub(super) fn step(config: &Config, state: &State, limit: f64, seen: &Observation) -> Option<Step> {
    let pressure = seen.pressure_held()?;
    let mut terms = Terms { pressure, increase: 0.0, factor: 1.0, waiting: false };
    if pressure > 1.0 {
        terms.waiting = state.cut_at.is_some_and(|at| seen.now.since(at) < seen.dead_time);
        if !terms.waiting {
            terms.factor = config.decrease.max(1.0 / pressure); // Eq. 1
        }
    } else if seen.binding {
        let proportionate = limit * (pressure.powf(-seen.gain_simc()) - 1.0);
        terms.increase = proportionate.min(config.increase * seen.period_per_dead_time()); // Eq. 2
    }
    Some(Step { limit: limit * terms.factor + terms.increase, terms: law::Terms::Aimd(terms) })
}

impl State {
    /// A cut counts from when it was made, not from when it was proposed.
    pub(super) fn applied(&mut self, now: Time, old: f64, new: f64) {
        if new < old {
            self.cut_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const CONFIG: Config = Config { increase: 2.0, decrease: 0.7 };

    fn seen(pressure: f64, binding: bool, now_s: f64) -> Observation {
        Observation {
            now: Time::from_secs_f64(now_s),
            period: Duration::from_secs(5),
            dead_time: Duration::from_secs(20),
            pressure: Some(pressure),
            binding,
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

    fn next(state: &State, limit: f64, seen: &Observation) -> f64 {
        step(&CONFIG, state, limit, seen).unwrap().limit
    }

    fn assert_close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn a_cut_goes_where_littles_law_says_but_no_deeper_than_the_factor() {
        let state = State::default();
        assert_close(next(&state, 20.0, &seen(1.25, true, 0.0)), 16.0);
        assert_close(next(&state, 20.0, &seen(5.0, true, 0.0)), 14.0);
    }

    #[test]
    fn a_second_cut_waits_for_the_dead_time() {
        let mut state = State::default();
        state.applied(Time::from_secs_f64(100.0), 20.0, 14.0);
        assert_close(next(&state, 14.0, &seen(5.0, true, 119.9)), 14.0);
        assert_close(next(&state, 14.0, &seen(5.0, true, 120.0)), 9.8);
    }

    #[test]
    fn a_cut_the_guardrails_withheld_does_not_start_the_wait() {
        let mut state = State::default();
        state.applied(Time::from_secs_f64(100.0), 20.0, 20.0);
        assert_close(next(&state, 20.0, &seen(5.0, true, 101.0)), 14.0);
    }

    #[test]
    fn growth_over_a_dead_time_is_the_increase_whatever_the_period() {
        let state = State::default();
        let mut limit = 10.0;
        for i in 0..4 {
            limit = next(&state, limit, &seen(0.1, true, f64::from(i) * 5.0));
        }
        assert_close(limit, 12.0);
    }

    #[test]
    fn a_low_limit_grows_no_faster_than_the_loop_can_bear() {
        // 5 s / (2 * 20 s) = 1/8: half of what is allowed gives the eighth root of 2, not 0.5 more.
        assert_close(next(&State::default(), 1.0, &seen(0.5, true, 0.0)), 2.0_f64.powf(0.125));
    }

    #[test]
    fn growth_fades_as_pressure_nears_the_target() {
        let state = State::default();
        let far = next(&state, 10.0, &seen(0.3, true, 0.0));
        let near = next(&state, 10.0, &seen(0.97, true, 0.0));
        assert!(far - 10.0 > 10.0 * (near - 10.0), "{far} {near}");
    }

    #[test]
    fn a_limit_that_holds_nothing_back_does_not_grow() {
        assert_close(next(&State::default(), 10.0, &seen(0.1, false, 0.0)), 10.0);
    }
}
