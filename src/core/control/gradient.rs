//! Gradient: how much slower than when it was alone?
//!
//! For classes whose right latency is not known. The law learns the latency of the plant when
//! it is not contended (the *baseline*) and asks how far above it the latency is now.
//!
//! Answers of 0.1 s and of a minute come from the same plant, and a change in their mix is no congestion. But a
//! request in line waits as long whatever it asks for: what the *quickest* answers (the tenth of them that took least)
//! take beyond their baseline is the wait, and the mean latency less that is the work. (As TCP takes the least round
//! trip it has seen for the path's own, and what is above for the queue: Brakmo's Vegas, 1995; BBR.) By Little's law
//! a saturated plant that has `limit` requests so works on
//!
//! `work = limit * (mean - wait) / mean`, `wait = quickest - baseline`
//!
//! of them. That number does not depend on the limit, so it is a target, not merely a direction:
//!
//! `target = tolerance * work + sqrt(work)`                                            (Eq. 1)
//! `ln(limit) <- ln(limit) + s * ln(target / limit)`                                   (Eq. 2)
//!
//! `sqrt(work)` is the headroom that keeps `work` servers busy under random arrivals
//! (square-root staffing, Halfin and Whitt 1981), and the reason that a limit of 1 can grow.
//! `s` is held to SIMC's `period / (2 * dead_time)`: Eq. 2 is an integral law of gain `s`, and
//! the same critical gain applies to it. The objective stays the objective: the target is at
//! most `limit / pressure`, whatever the baseline says, on either side of it, so that a law
//! which had to learn its baseline under overload rests at the objective.              (Eq. 3)
//!
//! *A limit that is not reached is not cut.* Eq. 1 takes the whole limit to be under way. Below
//! it nothing waits because of the limit, and a latency above the baseline is a change in what is
//! asked: answers of 8 s by day on a Serve that had only health probes of 1 ms by night. While the
//! objective is met as well, there is nothing to cut for, and the guardrails hold such a cut back
//! (law 3, [`super::guardrails`]).
//!
//! *The baseline* is learnt from the traffic there is. It takes a lower latency at once, by a
//! third of the way per step. It rises slowly, doubling in about ten minutes, and only while
//! latency is not of our own making: while the limit does not bind, or when it stands at its
//! floor and cannot fall further. Under a sustained overload it therefore cannot drift up with
//! the very queue it should detect (which is how Netflix's long-window average loses), and
//! unlike Envoy's, no live request is ever rejected to measure it.

use super::law::{self, Observation, Spread, Step};
use serde::{Deserialize, Serialize};

/// How much of the way to a lower latency the baseline goes per step.
const FALL: f64 = 1.0 / 3.0;
/// How fast it may rise: ln 2 in ten minutes.
const RISE_PER_SECOND: f64 = std::f64::consts::LN_2 / 600.0;
/// Latencies beyond these, in seconds, are taken for these.
const LATENCY_MIN: f64 = 1e-6;
/// See [`LATENCY_MIN`].
const LATENCY_MAX: f64 = 1e6;
/// A limit within this ratio of its floor stands at it.
const AT_FLOOR: f64 = 1.05;

/// The constants.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Latency may be this many times the baseline before the limit falls; above 1.
    pub tolerance: f64,
    /// Share of the way to the target per step, at most.
    pub smoothing: f64,
    /// The limit's floor.
    pub min: f64,
}

/// What the law remembers.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// What the quickest answers of the uncontended plant take, in seconds, once seen.
    pub baseline: Option<f64>,
}

/// The parts of a proposal.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// The baseline used, in seconds.
    pub baseline: f64,
    /// The share of the mean latency that is no wait.
    pub gradient: f64,
    /// Requests under way that were worked on rather than waiting.
    pub work: f64,
    /// Where the limit should be.
    pub target: f64,
    /// Share of the way to it that was taken.
    pub smoothing: f64,
}

/// The next limit, or `None` without information.
pub(super) fn step(config: &Config, state: &mut State, limit: f64, seen: &Observation) -> Option<Step> {
    seen.latency?;
    let may_rise = !seen.binding || limit <= config.min * AT_FLOOR;
    let mut gradient = 1.0;
    // Few answers say nothing of the quickest; the objective still counts.
    if let Some(Spread { quickest, mean }) = seen.spread {
        let quickest = quickest.clamp(LATENCY_MIN, LATENCY_MAX);
        let baseline = learn(state.baseline, quickest, may_rise, seen.period.as_secs_f64());
        state.baseline = Some(baseline);
        gradient = (1.0 - (quickest - baseline) / mean.max(quickest)).clamp(0.0, 1.0);
    }
    let baseline = state.baseline.unwrap_or(LATENCY_MIN);
    let work = limit * gradient;
    let mut target = config.tolerance * work + work.sqrt(); // Eq. 1
    if let Some(pressure) = seen.pressure_held() {
        target = target.min(limit / pressure); // Eq. 3
    }
    let smoothing = config.smoothing.min(seen.gain_simc());
    let next = limit * (smoothing * (target / limit).ln()).exp(); // Eq. 2
    let terms = Terms { baseline, gradient, work, target, smoothing };
    Some(Step { limit: next, terms: law::Terms::Gradient(terms) })
}

/// The baseline after one more latency.
fn learn(baseline: Option<f64>, latency: f64, may_rise: bool, period_s: f64) -> f64 {
    match baseline {
        None => latency,
        Some(known) if latency < known => known + FALL * (latency - known),
        Some(known) if may_rise => latency.min(known * (RISE_PER_SECOND * period_s).exp()),
        Some(known) => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::guardrails::Guardrails;
    use crate::control::law::LawState;
    use crate::control::regulator::Regulator;
    use crate::policy::{Bounds, Control};
    use crate::time::Time;
    use std::time::Duration;

    const CONFIG: Config = Config { tolerance: 1.5, smoothing: 1.0, min: 1.0 };

    fn seen(latency: f64, binding: bool) -> Observation {
        Observation {
            now: Time::ZERO,
            period: Duration::from_secs(1),
            dead_time: Duration::from_millis(500),
            pressure: Some(0.5),
            binding,
            demand: 50.0,
            latency: Some(latency),
            slo_pressure: None,
            spread: Some(Spread { quickest: latency, mean: latency }),
            sample: None,
            ended: None,
            not_below: None,
            used: None,
            backlog: None,
            noise: 0.0,
        }
    }

    #[test]
    fn a_saturated_plant_of_eight_servers_gets_its_target_in_one_step() {
        for limit in [16.0, 40.0, 400.0] {
            // Far from any objective. Eight servers of 100 ms under `limit` requests: latency = limit / 80.
            let mut state = State { baseline: Some(0.1) };
            let mut far = seen(limit / 80.0, true);
            far.pressure = Some(0.001);
            let step = step(&CONFIG, &mut state, limit, &far).unwrap();
            assert!((step.limit - (12.0 + 8.0_f64.sqrt())).abs() < 1e-9, "{limit} -> {}", step.limit);
        }
    }

    #[test]
    fn an_hour_of_overload_does_not_raise_the_baseline() {
        let mut state = State { baseline: Some(0.1) };
        for _ in 0..3600 {
            step(&CONFIG, &mut state, 16.0, &seen(0.5, true));
        }
        assert_eq!(state.baseline, Some(0.1));
    }

    #[test]
    fn a_plant_that_has_become_slower_is_learnt_without_contention_in_some_minutes() {
        let mut state = State { baseline: Some(0.1) };
        for _ in 0..600 {
            step(&CONFIG, &mut state, 16.0, &seen(0.2, false));
        }
        assert!((state.baseline.unwrap() - 0.2).abs() < 1e-6, "{state:?}");
    }

    #[test]
    fn at_the_floor_a_slower_plant_is_learnt_even_though_the_limit_binds() {
        let mut state = State { baseline: Some(0.1) };
        for _ in 0..1200 {
            step(&CONFIG, &mut state, 1.0, &seen(0.4, true));
        }
        assert!(state.baseline.unwrap() > 0.39, "{state:?}");
    }

    #[test]
    fn a_change_in_the_mix_is_no_overload_while_the_limit_is_not_reached() {
        // Probes of 1 ms by night; by day 60 answers of 8 s under a limit of 256.
        let bounds = Bounds { initial: 256.0, min: 1.0, max: 2048.0 };
        let state = State { baseline: Some(0.001) };
        let law = LawState::Gradient { config: CONFIG, state };
        let mut regulator = Regulator { law, guardrails: Guardrails::new(bounds, &Control::SHIPPED) };
        let mut limit = 256.0;
        for _ in 0..600 {
            limit = regulator.step(limit, &seen(8.0, false)).new;
        }
        assert!(limit >= 256.0, "{limit}");
        let mut missed = seen(8.0, false);
        (missed.pressure, missed.slo_pressure) = (Some(1.5), Some(1.5));
        assert!(regulator.step(256.0, &missed).new < 256.0, "the objective counts");
    }

    #[test]
    fn who_stands_in_line_waits_as_long_whatever_it_asks_for() {
        // 64 places that answers of 4 s in the mean, the quickest of 0.1 s, keep busy; 256 are under way.
        let mut state = State { baseline: Some(0.1) };
        let mut line = seen(12.1, true);
        line.pressure = Some(0.001);
        line.spread = Some(Spread { quickest: 12.1, mean: 16.0 });
        let told = step(&CONFIG, &mut state, 256.0, &line).unwrap();
        assert!((told.limit - (1.5 * 64.0 + 8.0)).abs() < 1e-6, "{told:?}");
        // The same answers without a line, whatever their mean is.
        line.spread = Some(Spread { quickest: 0.1, mean: 30.0 });
        assert!(step(&CONFIG, &mut state, 64.0, &line).unwrap().limit > 64.0);
        line.spread = None;
        assert!(step(&CONFIG, &mut state, 64.0, &line).unwrap().limit > 64.0, "few say nothing");
    }

    #[test]
    fn the_objective_outranks_the_baseline() {
        let mut state = State { baseline: Some(10.0) };
        let mut slow = seen(10.0, true);
        slow.pressure = Some(2.0);
        let step = step(&CONFIG, &mut state, 16.0, &slow).unwrap();
        assert!((step.limit - 8.0).abs() < 1e-9, "{step:?}");
    }
}
