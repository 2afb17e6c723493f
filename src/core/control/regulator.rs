//! One limit's law and guardrails, as one thing that steps, and that can be stepped again.
//!
//! A [`Regulator`] is plain data. The controller keeps one per limit; the adjustment log stores it, as it
//! stood before a step, beside the observation of that step. Deserialised and stepped once
//! more it must give the same limit, bit for bit: that is what `rayguard replay` checks, and
//! why nothing here may depend on anything but its arguments.

use super::guardrails::{Guardrail, Guardrails};
use super::law::{LawState, Observation, Terms};
use crate::policy::{Bounds, Control, Law, OnStale, between};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A law between its guardrails.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Regulator {
    /// The law and what it remembers.
    pub law: LawState,
    /// The guardrails and what they remember.
    #[serde(alias = "rails")]
    pub guardrails: Guardrails,
}

/// What one step came to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Move {
    /// The limit before.
    pub old: f64,
    /// The limit after.
    pub new: f64,
    /// What the law made it of.
    pub terms: Terms,
    /// The guardrail that held the law back.
    pub guardrail: Option<Guardrail>,
}

impl Move {
    /// Whether the limit changed at all.
    #[must_use]
    pub(crate) fn is_change(&self) -> bool {
        self.old.to_bits() != self.new.to_bits()
    }
}

impl Regulator {
    /// A regulator with nothing remembered.
    #[must_use]
    pub fn new(law: &Law, bounds: Bounds, control: &Control) -> Regulator {
        Regulator { law: LawState::new(law, &bounds), guardrails: Guardrails::new(bounds, control) }
    }

    /// The regulator of a rate that follows the backlog it leaves ([`super::backlog`]).
    #[must_use]
    pub(crate) fn of_backlog(bounds: Bounds, control: &Control) -> Regulator {
        let law = LawState::Backlog { state: super::backlog::State::default() };
        Regulator { law, guardrails: Guardrails::new(bounds, control) }
    }

    /// One step: the law proposes, the guardrails decide, the law is told.
    pub fn step(&mut self, limit: f64, observation: &Observation) -> Move {
        let seen = observation.clean();
        if self.law == LawState::Static {
            self.guardrails.wasted = None;
        } else if let Some(new) = self.guardrails.judge_waste(limit, &seen) {
            self.law.reset();
            return Move { old: limit, new, terms: Terms::NoInformation, guardrail: Some(Guardrail::Wasted) };
        }
        let from = seen.cut_from(limit, self.guardrails.deadband);
        let base = self.guardrails.bounds.clamp(from).max(self.guardrails.ground());
        let step = self.law.step(base, &seen);
        let (new, guardrail) = if matches!(step.terms, Terms::NoInformation | Terms::Static) {
            // Nothing moves, but a reload may have moved the bounds.
            (self.guardrails.bounds.clamp(limit), None)
        } else if matches!(step.terms, Terms::Backlog(_)) {
            // It says where the rate belongs, not by how much to move it.
            self.guardrails.bound(step.limit)
        } else {
            let clamped = self.guardrails.pass(from, step.limit, &seen);
            (clamped.limit, clamped.guardrail)
        };
        let (new, guardrail) =
            self.guardrails.cap_by_waste(new).map_or((new, guardrail), |cap| (cap, Some(Guardrail::Wasted)));
        self.law.applied(&seen, base, new);
        Move { old: limit, new, terms: step.terms, guardrail }
    }

    /// The step of a limit whose signal has gone stale: hold, decay towards `initial` (never
    /// up), or go to `initial`, within the slew. A decay halves the distance on log(limit)
    /// every three dead times.
    pub(crate) fn step_stale(&mut self, limit: f64, on_stale: OnStale, observation: &Observation) -> Move {
        let bounds = self.guardrails.bounds;
        let (from, safe) = (bounds.clamp(limit), bounds.initial);
        let wanted = match on_stale {
            OnStale::Hold => from,
            OnStale::Decay if from <= safe => from,
            OnStale::Decay => {
                let share = 0.5_f64.powf(observation.period_per_dead_time() / 3.0);
                safe * (from / safe).powf(share)
            }
            OnStale::Static => safe,
        };
        let ratio = self.guardrails.slew;
        let new = bounds.clamp(between(wanted, from / ratio, (from * ratio).max(self.guardrails.ground())));
        let guardrail = ((new - wanted).abs() > 0.0).then_some(Guardrail::Slew);
        self.law.reset();
        Move { old: limit, new, terms: Terms::NoInformation, guardrail }
    }

    /// A cut did not help ([`super::trial`]): the limit goes back to where it was, within the bounds.
    pub fn restore(&mut self, limit: f64, to: f64) -> Move {
        self.law.reset();
        self.guardrails.knee = None;
        let new = self.guardrails.bounds.clamp(to.max(limit));
        Move { old: limit, new, terms: Terms::NoInformation, guardrail: None }
    }

    /// Somebody else set the limit; the next step starts from there without a jump.
    pub fn transfer(&mut self) {
        self.law.reset();
        self.guardrails.wasted = None;
    }

    /// New law constants, bounds and control constants; what was learnt stays.
    #[must_use]
    pub fn reload(&self, law: &Law, bounds: Bounds, control: &Control) -> Regulator {
        let kept = match self.law {
            LawState::Backlog { .. } => self.law,
            _ => self.law.reload(law, &bounds),
        };
        Regulator { law: kept, guardrails: self.guardrails.reload(bounds, control) }
    }

    /// Where to start after a restart: the last good limit if it is a number, within the
    /// bounds and no higher than twice `initial` (the head may have changed meanwhile).
    #[must_use]
    pub(crate) fn warm_start(&self, last_good: Option<f64>) -> f64 {
        let bounds = self.guardrails.bounds;
        last_good
            .filter(|limit| limit.is_finite() && *limit > 0.0)
            .map_or(bounds.initial, |limit| bounds.clamp(limit.min(2.0 * bounds.initial)))
    }

    /// The head was away and is back: grow again from `initial` or `limit`, whichever is
    /// lower, to the full range within `length`. Returns the limit to start from.
    pub fn recover(&mut self, limit: f64, now: Time, length: Duration) -> f64 {
        let from = self.guardrails.bounds.clamp(limit.min(self.guardrails.bounds.initial));
        self.guardrails.recover(now, length, from);
        self.guardrails.wasted = None;
        self.law.reset();
        from
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { initial: 8.0, min: 1.0, max: 100.0 };

    fn control() -> Control {
        Control {
            inner_period: Duration::from_millis(500),
            outer_period: Duration::from_secs(5),
            window: Duration::from_secs(10),
            data_age: Duration::from_secs(5),
            deadband: 0.05,
            slew: 2.0,
            cooldown: Duration::from_secs(1),
        }
    }

    fn seen(pressure: f64, step: u64) -> Observation {
        Observation {
            now: Time(step * 5_000_000_000),
            period: Duration::from_secs(5),
            dead_time: Duration::from_secs(10),
            pressure: Some(pressure),
            binding: true,
            demand: 200.0,
            latency: Some(0.1 * pressure),
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
    fn a_stale_signal_decays_to_the_safe_limit_and_never_opens() {
        let mut regulator = Regulator::new(&Law::Pid { kp: 0.0, ki: None, kd: 0.0 }, BOUNDS, &control());
        let mut limit = 80.0;
        for i in 0..200 {
            let step = regulator.step_stale(limit, OnStale::Decay, &seen(1.0, i));
            assert!(step.new <= step.old, "{step:?}");
            limit = step.new;
        }
        assert!((limit - 8.0).abs() < 0.1, "{limit}");
        let low = regulator.step_stale(2.0, OnStale::Decay, &seen(1.0, 0));
        assert!(!low.is_change(), "a limit below the safe one stays: {low:?}");
        let hold = regulator.step_stale(80.0, OnStale::Hold, &seen(1.0, 0));
        assert!(!hold.is_change());
        let at_once = regulator.step_stale(80.0, OnStale::Static, &seen(1.0, 0));
        assert_eq!((at_once.new, at_once.guardrail), (40.0, Some(Guardrail::Slew)));
    }

    #[test]
    fn a_warm_start_trusts_the_past_only_so_far() {
        let regulator = Regulator::new(&Law::Static, BOUNDS, &control());
        for (last, start) in [
            (None, 8.0),
            (Some(5.0), 5.0),
            (Some(90.0), 16.0),
            (Some(f64::NAN), 8.0),
            (Some(0.0), 8.0),
            (Some(0.2), 1.0),
        ] {
            assert!((regulator.warm_start(last) - start).abs() < 1e-12, "{last:?}");
        }
    }

    #[test]
    fn a_reload_to_narrower_bounds_brings_the_limit_in_at_the_next_step() {
        let law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };
        let mut regulator = Regulator::new(&law, BOUNDS, &control());
        regulator = regulator.reload(&law, Bounds { initial: 2.0, min: 1.0, max: 4.0 }, &control());
        let mut none = seen(1.0, 0);
        none.pressure = None;
        assert!((regulator.step(80.0, &none).new - 4.0).abs() < 1e-12);
    }

    #[test]
    fn a_limit_that_is_set_by_hand_does_not_move_for_clients_that_leave() {
        let all_leave = |second: u64| {
            let ended = crate::control::wasted::Ended {
                left: 10.0,
                left_s: 90.0,
                under_way: 64.0,
                ..Default::default()
            };
            Observation { ended: Some(ended), ..Observation::nothing(Time(second * 1_000_000_000)) }
        };
        let law = Law::Gradient { tolerance: 1.5, smoothing: 0.2 };
        for (law, is_cut) in [(law, true), (Law::Static, false)] {
            let mut regulator = Regulator::new(&law, BOUNDS, &control());
            let cut = (0..60).any(|second| regulator.step(80.0, &all_leave(second)).new < 80.0);
            assert_eq!(cut, is_cut, "{law:?}");
        }
    }

    #[test]
    fn taking_over_from_an_operator_moves_no_further_than_one_ordinary_step() {
        let mut regulator = Regulator::new(&Law::Pid { kp: 2.0, ki: Some(0.1), kd: 1.0 }, BOUNDS, &control());
        regulator.step(50.0, &seen(0.2, 0));
        regulator.transfer(); // an operator pinned 20 for a while
        let back = regulator.step(20.0, &seen(1.2, 100));
        assert!((back.new / 20.0 - 1.2_f64.powf(-0.1)).abs() < 1e-9, "integral alone: {back:?}");
    }

    proptest! {
        #[test]
        fn a_step_taken_again_from_its_own_json_is_the_same_to_the_last_bit(
            law in prop_oneof![
                Just(Law::Aimd { increase: 0.25, decrease: 0.6 }),
                Just(Law::Pid { kp: 0.3, ki: None, kd: 0.2 }),
                Just(Law::Gradient { tolerance: 1.5, smoothing: 0.7 }),
            ],
            pressures in prop::collection::vec(0.01_f64..10.0, 1..30),
        ) {
            let mut regulator = Regulator::new(&law, BOUNDS, &control());
            let mut limit = BOUNDS.initial;
            for (i, pressure) in pressures.into_iter().enumerate() {
                let observation = seen(pressure, i as u64);
                let text = serde_json::to_string(&(regulator, limit, observation)).unwrap();
                let step = regulator.step(limit, &observation);
                let (mut again, old, observation): (Regulator, f64, Observation) =
                    serde_json::from_str(&text).unwrap();
                let repeated = again.step(old, &observation);
                prop_assert_eq!(repeated.new.to_bits(), step.new.to_bits());
                prop_assert_eq!(again, regulator);
                limit = step.new;
            }
        }
    }
}
