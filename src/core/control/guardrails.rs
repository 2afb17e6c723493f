//! How far may a law go?
//!
//! Every proposal passes the same guardrails, in this order; the first that holds it back is the
//! one the adjustment log names, and the last word is always `min` and `max`:
//!
//! | guardrail | holds back | because |
//! |---|---|---|
//! | not finite | everything | a number that is none moves nothing |
//! | deadband | everything, while pressure is within 1 +- deadband, or within its own noise | noise is not news |
//! | not reached | cuts on latency, while the limit holds nothing back and the class meets its SLO | it is not the cause (law 3) |
//! | futile | cuts on latency, while those before did not help | see [`super::futile`] |
//! | on trial | a cut on a signal, a fifth (half, where it gathers) below what was used; one on latency after others did not help | the reading must answer first (law 2) |
//! | app-limited | growth, unless the limit was binding | an unused limit proves nothing about a higher one |
//! | cool-down | growth, for a while after a cut (two dead times at most) | the queue behind the cut has to drain first |
//! | knee | growth on a signal, near where it rose before | see [`super::knee`] |
//! | demand cap | growth beyond twice the demand (never below `initial`) | room without demand is a burst in waiting |
//! | ramp | the limit, while a head that was away comes back | a cold head bears less than it will |
//! | slew | the change per step, as a ratio | one bad reading must not cost everything |
//! | floor, ceiling | the limit | the operator's word, but on signals a tenth of one process's time |
//!
//! A cut is never held back by cool-down, demand or app-limited: those only delay growth.
//!
//! Bounds are stronger than slew: after a reload a limit goes into its new range at once.
//! A limit of exactly 0 has no logarithm and no ratio; it may step to `Guardrails::ground`, a
//! hundredth of `initial`, and move on from there.

use super::futile::{self, Trial};
use super::knee::Knee;
use super::law::Observation;
use super::wasted::{self, Wasted};
use crate::policy::{Bounds, Control};
use crate::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Growth goes no further than this many times the demand.
pub(crate) const DEMAND_FACTOR: f64 = 2.0;
/// Limits below this share of `initial` are lifted to it before they grow.
const GROUND: f64 = 0.01;

/// Which guardrail held a proposal back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guardrail {
    /// The proposal was no number.
    NotFinite,
    /// Pressure was too near the target to matter.
    Deadband,
    /// The limit holds nothing back and the class meets its SLO: a cut would not help.
    NotReached,
    /// Latency did not follow the cuts before.
    Futile,
    /// Clients left before their answers came.
    Wasted,
    /// A limit comes down only so far before the readings must answer.
    OnTrial,
    /// The limit was not binding, so it does not grow.
    AppLimited,
    /// Too soon after a cut to grow.
    Cooldown,
    /// The signal rose there before.
    Knee,
    /// Twice the demand is enough.
    DemandCap,
    /// The head has just come back; the limit returns step by step.
    Ramp,
    /// No more than so much per step.
    Slew,
    /// The operator's `min`.
    Floor,
    /// The operator's `max`.
    Ceiling,
}

/// A proposal as the guardrails let it through.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Clamped {
    /// Within the bounds, and within the slew of the old limit.
    pub limit: f64,
    /// The guardrail that held the proposal back, if one did.
    pub guardrail: Option<Guardrail>,
}

/// The guardrails of one limit: the operator's bounds and what the guardrails remember.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Guardrails {
    /// The range.
    pub bounds: Bounds,
    /// Pressure within `1 +- deadband` moves nothing.
    pub deadband: f64,
    /// The largest change per step, as a ratio of at least 1.
    pub slew: f64,
    /// After a cut, no growth for so long.
    pub cooldown_ns: u64,
    /// When the limit was last cut by more than the deadband.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_at: Option<Time>,
    /// The way back after the head was away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
    /// Where a signal rose when the limit was last cut on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knee: Option<Knee>,
    /// What the cuts under way are judged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// What is known of clients that leave while the limit binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasted: Option<Wasted>,
}

/// A ceiling that rises from `from` to the operator's `max`, evenly on log(limit).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ramp {
    /// When it began.
    pub since: Time,
    /// How long it takes.
    pub length_ns: u64,
    /// The limit it starts from.
    pub from: f64,
}

impl Guardrails {
    /// The guardrails for a limit within `bounds`.
    #[must_use]
    pub fn new(bounds: Bounds, control: &Control) -> Guardrails {
        Guardrails {
            bounds,
            deadband: control.deadband,
            slew: control.slew.max(1.0),
            cooldown_ns: u64::try_from(control.cooldown.as_nanos()).unwrap_or(u64::MAX),
            cut_at: None,
            knee: None,
            ramp: None,
            trial: None,
            wasted: None,
        }
    }

    /// New bounds and constants; a cool-down, ramp or trial under way goes on.
    #[must_use]
    pub fn reload(&self, bounds: Bounds, control: &Control) -> Guardrails {
        Guardrails {
            cut_at: self.cut_at,
            knee: self.knee,
            ramp: self.ramp,
            trial: self.trial,
            wasted: self.wasted,
            ..Guardrails::new(bounds, control)
        }
    }

    /// Begins a recovery ramp: for `length` the limit stays below a ceiling that rises from
    /// `from` (held to the bounds) to `max`.
    pub fn recover(&mut self, now: Time, length: Duration, from: f64) {
        let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        self.ramp = Some(Ramp { since: now, length_ns, from: self.bounds.clamp(from).max(self.ground()) });
    }

    /// How long after a cut nothing grows: two dead times tell what it gave, whatever is configured.
    #[must_use]
    pub fn cooldown(&self, seen: &Observation) -> Duration {
        Duration::from_nanos(self.cooldown_ns).min(seen.dead_time * 2)
    }

    /// The least limit that ratios work on.
    #[must_use]
    pub(crate) fn ground(&self) -> f64 {
        (self.bounds.initial * GROUND).clamp(f64::MIN_POSITIVE, self.bounds.max.max(f64::MIN_POSITIVE))
    }

    /// The limit to go to because clients leave under the one in force, or because they do not under a lower one.
    pub(crate) fn judge_waste(&mut self, limit: f64, seen: &Observation) -> Option<f64> {
        wasted::judge(&mut self.wasted, limit, &self.bounds, seen)
    }

    /// No higher than where clients have left before their answers.
    pub(crate) fn cap_by_waste(&self, limit: f64) -> Option<f64> {
        self.wasted.as_ref().and_then(Wasted::cap).filter(|cap| limit > *cap)
    }

    /// What of `proposal` may be done. `old` that is no number counts as `initial`.
    pub fn pass(&mut self, old: f64, proposal: f64, seen: &Observation) -> Clamped {
        let from = self.bounds.clamp(old);
        let mut clamped = match futile::judge(&mut self.trial, from, &self.bounds, seen) {
            Some(limit) => Clamped { limit, guardrail: Some(Guardrail::Futile) },
            None => self.hold_back(from, proposal, seen),
        };
        let on_latency = self.trial.as_ref().and_then(Trial::lowest);
        let least =
            seen.not_below.map_or(on_latency, |least| on_latency.map(|of| of.max(least)).or(Some(least)));
        if let Some(least) = least.map(|least| least.min(from))
            && clamped.limit < least
        {
            clamped = Clamped { limit: least, guardrail: Some(Guardrail::OnTrial) };
        }
        self.cap_by_ramp(&mut clamped, seen.now);
        self.limit_slew(&mut clamped, from);
        self.keep_in_bounds(&mut clamped);
        if clamped.limit < from * (1.0 - self.deadband) {
            self.cut_at = Some(seen.now);
        }
        if clamped.limit < from && seen.used.is_some() {
            self.knee = Some(Knee::after(self.knee, from, seen.now));
        }
        clamped
    }

    /// The operator's bounds alone.
    #[must_use]
    pub fn bound(&self, proposal: f64) -> (f64, Option<Guardrail>) {
        let mut clamped = Clamped { limit: proposal, guardrail: None };
        self.keep_in_bounds(&mut clamped);
        (clamped.limit, clamped.guardrail)
    }

    /// The guardrails that know what is going on: deadband, app-limited, cool-down, demand.
    fn hold_back(&self, from: f64, proposal: f64, seen: &Observation) -> Clamped {
        let hold = |guardrail| Clamped { limit: from, guardrail: Some(guardrail) };
        if !proposal.is_finite() {
            return hold(Guardrail::NotFinite);
        }
        let moves = (proposal - from).abs() > 0.0;
        if moves && seen.pressure.is_some_and(|pressure| self.is_noise(pressure, seen.noise)) {
            return hold(Guardrail::Deadband);
        }
        if proposal < from && seen.is_calm() {
            return hold(Guardrail::NotReached);
        }
        if proposal < from && self.trial.as_ref().is_some_and(Trial::is_futile) {
            return hold(Guardrail::Futile);
        }
        if proposal <= from {
            return Clamped { limit: proposal, guardrail: None };
        }
        if !seen.binding {
            return hold(Guardrail::AppLimited);
        }
        if self.cut_at.is_some_and(|at| seen.now.since(at) < self.cooldown(seen)) {
            return hold(Guardrail::Cooldown);
        }
        let knee = self.knee.and_then(|knee| knee.cap(seen.now)).map(|cap| cap.max(from));
        if let Some(limit) = knee.filter(|cap| proposal > *cap) {
            return Clamped { limit, guardrail: Some(Guardrail::Knee) };
        }
        let demand = if seen.demand.is_finite() { seen.demand } else { 0.0 };
        let cap = (DEMAND_FACTOR * demand).max(self.bounds.initial).max(from);
        if proposal > cap {
            return Clamped { limit: cap, guardrail: Some(Guardrail::DemandCap) };
        }
        Clamped { limit: proposal, guardrail: None }
    }

    /// Whether so little may be chance, or is not worth a move.
    fn is_noise(&self, pressure: f64, noise: f64) -> bool {
        (pressure - 1.0).abs() <= self.deadband || pressure.ln().abs() <= noise
    }

    fn cap_by_ramp(&mut self, clamped: &mut Clamped, now: Time) {
        let Some(ramp) = self.ramp else { return };
        let length = Duration::from_nanos(ramp.length_ns);
        let gone = now.since(ramp.since);
        if gone >= length || ramp.from >= self.bounds.max {
            self.ramp = None;
            return;
        }
        let share = gone.as_secs_f64() / length.as_secs_f64();
        let cap = ramp.from * (self.bounds.max / ramp.from).powf(share);
        if clamped.limit > cap {
            *clamped = Clamped { limit: cap, guardrail: Some(Guardrail::Ramp) };
        }
    }

    fn limit_slew(&self, clamped: &mut Clamped, from: f64) {
        let high = (from * self.slew).max(self.ground());
        let low = from / self.slew;
        if clamped.limit > high {
            *clamped = Clamped { limit: high, guardrail: Some(Guardrail::Slew) };
        } else if clamped.limit < low {
            *clamped = Clamped { limit: low, guardrail: Some(Guardrail::Slew) };
        }
    }

    fn keep_in_bounds(&self, clamped: &mut Clamped) {
        if clamped.limit > self.bounds.max {
            *clamped = Clamped { limit: self.bounds.max, guardrail: Some(Guardrail::Ceiling) };
        } else if clamped.limit < self.bounds.min {
            *clamped = Clamped { limit: self.bounds.min, guardrail: Some(Guardrail::Floor) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::futile::Sample;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { initial: 8.0, min: 1.0, max: 100.0 };

    fn control() -> Control {
        Control { deadband: 0.1, ..Control::SHIPPED }
    }

    fn seen(pressure: f64, binding: bool, demand: f64, now_s: f64) -> Observation {
        Observation {
            now: Time::from_secs_f64(now_s),
            period: Duration::from_secs(5),
            dead_time: Duration::from_secs(20),
            pressure: Some(pressure),
            binding,
            demand,
            latency: None,
            slo_pressure: Some(pressure),
            spread: None,
            sample: None,
            ended: None,
            not_below: None,
            used: None,
            backlog: None,
            noise: 0.0,
        }
    }

    fn pass(old: f64, proposal: f64, seen: &Observation) -> (f64, Option<Guardrail>) {
        let clamped = Guardrails::new(BOUNDS, &control()).pass(old, proposal, seen);
        (clamped.limit, clamped.guardrail)
    }

    #[test]
    fn a_modest_proposal_passes_untouched() {
        assert_eq!(pass(20.0, 22.0, &seen(0.5, true, 50.0, 0.0)), (22.0, None));
        assert_eq!(pass(20.0, 18.0, &seen(2.0, false, 0.0, 0.0)), (18.0, None));
    }

    #[test]
    fn after_a_cut_on_a_signal_a_limit_stays_below_where_that_began_for_a_minute() {
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        let of_signal =
            |pressure, now_s| Observation { used: Some(20.0), ..seen(pressure, true, 50.0, now_s) };
        assert!(guardrails.pass(20.0, 15.0, &of_signal(2.0, 0.0)).limit < 20.0);
        let held = guardrails.pass(15.0, 22.0, &of_signal(0.5, 50.0));
        assert_eq!((held.limit, held.guardrail), (18.0, Some(Guardrail::Knee)));
        assert_eq!(guardrails.pass(15.0, 22.0, &of_signal(0.5, 61.0)).guardrail, None);
        // A cut by latency finds no knee: what latency tells it tells at once.
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        guardrails.pass(20.0, 15.0, &seen(2.0, true, 50.0, 0.0));
        assert_eq!(guardrails.pass(15.0, 22.0, &seen(0.5, true, 50.0, 50.0)).guardrail, None);
    }

    #[test]
    fn each_guardrail_is_named_when_it_holds_a_proposal_back() {
        let room = seen(0.5, true, 50.0, 0.0);
        assert_eq!(pass(20.0, f64::NAN, &room), (20.0, Some(Guardrail::NotFinite)));
        assert_eq!(pass(20.0, 22.0, &seen(0.95, true, 50.0, 0.0)), (20.0, Some(Guardrail::Deadband)));
        assert_eq!(pass(20.0, 18.0, &seen(1.05, true, 50.0, 0.0)), (20.0, Some(Guardrail::Deadband)));
        assert_eq!(pass(20.0, 22.0, &seen(0.5, false, 50.0, 0.0)), (20.0, Some(Guardrail::AppLimited)));
        assert_eq!(pass(20.0, 25.0, &seen(0.5, true, 11.0, 0.0)), (22.0, Some(Guardrail::DemandCap)));
        assert_eq!(pass(20.0, 90.0, &room), (30.0, Some(Guardrail::Slew)));
        assert_eq!(pass(30.0, 1.0, &seen(9.0, true, 50.0, 0.0)), (20.0, Some(Guardrail::Slew)));
        assert_eq!(pass(90.0, 120.0, &seen(0.5, true, 500.0, 0.0)), (100.0, Some(Guardrail::Ceiling)));
        assert_eq!(pass(1.2, 0.9, &seen(9.0, true, 50.0, 0.0)), (1.0, Some(Guardrail::Floor)));
    }

    #[test]
    fn the_demand_cap_never_stands_below_initial() {
        assert_eq!(pass(6.0, 7.0, &seen(0.5, true, 0.0, 0.0)), (7.0, None));
        assert_eq!(pass(7.0, 9.0, &seen(0.5, true, 0.0, 0.0)), (8.0, Some(Guardrail::DemandCap)));
    }

    #[test]
    fn after_a_cut_growth_waits_for_the_cooldown_and_cuts_do_not() {
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        assert_eq!(guardrails.pass(30.0, 25.0, &seen(2.0, true, 50.0, 100.0)).guardrail, None);
        assert_eq!(
            guardrails.pass(25.0, 26.0, &seen(0.5, true, 50.0, 109.0)).guardrail,
            Some(Guardrail::Cooldown)
        );
        assert_eq!(guardrails.pass(25.0, 20.0, &seen(2.0, true, 50.0, 109.5)).guardrail, None);
        assert_eq!(
            guardrails.pass(20.0, 21.0, &seen(0.5, true, 50.0, 119.0)).guardrail,
            Some(Guardrail::Cooldown)
        );
        assert_eq!(guardrails.pass(20.0, 21.0, &seen(0.5, true, 50.0, 119.5)).guardrail, None);
    }

    #[test]
    fn a_trim_smaller_than_the_deadband_starts_no_cooldown() {
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        guardrails.pass(20.0, 19.9, &seen(1.2, true, 50.0, 100.0));
        assert_eq!(guardrails.pass(19.9, 21.0, &seen(0.5, true, 50.0, 101.0)).guardrail, None);
    }

    #[test]
    fn what_may_be_chance_moves_nothing() {
        let mut rng = seen(1.3, true, 50.0, 0.0);
        rng.noise = 0.3;
        assert_eq!(pass(20.0, 18.0, &rng), (20.0, Some(Guardrail::Deadband)));
        rng.noise = 0.2;
        assert_eq!(pass(20.0, 18.0, &rng), (18.0, None));
    }

    /// A latency that many answers tell.
    fn told(seconds: f64) -> (Option<f64>, Option<Sample>) {
        let count = 1000.0;
        (Some(seconds), Some(Sample { count, seconds: count * seconds, squares: count * seconds * seconds }))
    }

    fn futile(limit: f64) -> Trial {
        let before = told(0.5).1.unwrap();
        Trial {
            limit,
            before,
            after: Sample::default(),
            mark: None,
            futile_at: Some(Time::ZERO),
            futile_times: 1,
            took: Duration::ZERO,
        }
    }

    /// Cuts by a tenth, step by step, while latency is `latency(limit)`; the limit after 25.
    fn cut_on(binding: bool, latency: impl Fn(f64) -> f64) -> (f64, bool) {
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        let (mut limit, mut was_futile) = (50.0, false);
        for second in 0..25 {
            let mut at = seen(2.0, binding, 500.0, 100.0 + f64::from(second));
            (at.latency, at.sample) = told(latency(limit));
            at.dead_time = at.period;
            let clamped = guardrails.pass(limit, limit * 0.9, &at);
            was_futile |= clamped.guardrail == Some(Guardrail::Futile);
            limit = clamped.limit;
        }
        (limit, was_futile)
    }

    #[test]
    fn cuts_that_give_nothing_stop_and_cuts_that_help_go_on() {
        let (limit, was_futile) = cut_on(true, |_| 0.6);
        assert!(was_futile && limit > 30.0, "{limit}");
        let (limit, was_futile) = cut_on(true, |limit| limit / 40.0);
        assert!(!was_futile && limit < 5.0, "{limit}");
        // A limit that is not used up says nothing of what it gives.
        let (limit, was_futile) = cut_on(false, |_| 0.6);
        assert!(!was_futile && limit < 5.0, "{limit}");
        // Saturated down to 16 in flight: the cuts stop where they cease to help.
        let (limit, was_futile) = cut_on(true, |limit| (limit / 40.0).max(0.4));
        assert!(was_futile && (16.0..=18.0).contains(&limit), "a tenth above, and whole: {limit}");
    }

    /// The limit at each second while every step asks for a tenth less and latency stays what it is.
    fn in_vain(seconds: u32) -> Vec<f64> {
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        let mut limits = vec![50.0];
        for second in 0..seconds {
            let mut at = seen(2.0, true, 500.0, 100.0 + f64::from(second));
            (at.latency, at.sample) = told(0.6);
            at.dead_time = at.period;
            let limit = limits[limits.len() - 1];
            limits.push(guardrails.pass(limit, limit * 0.9, &at).limit);
        }
        limits
    }

    #[test]
    fn what_cuts_in_vain_took_is_given_back_and_they_are_tried_ever_more_seldom() {
        let limits = in_vain(3600);
        assert!(limits.iter().all(|limit| *limit > 34.0), "never below one trial");
        let steps: Vec<bool> = limits.windows(2).map(|pair| pair[1] < pair[0]).collect();
        let cuts = |part: &[bool]| part.iter().filter(|is_cut| **is_cut).count();
        assert!(cuts(&steps[..60]) > 1, "there are trials");
        assert!(cuts(&steps[1800..]) < 20, "and few of them in the second half hour");
    }

    #[test]
    fn the_way_back_takes_as_many_steps_as_the_slew_asks_for() {
        let mut guardrails = Guardrails { slew: 1.2, ..Guardrails::new(BOUNDS, &control()) };
        guardrails.trial = Some(futile(40.0));
        let mut limit = 20.0;
        for second in 1..=5 {
            let mut at = seen(2.0, true, 500.0, f64::from(second));
            (at.latency, at.sample) = told(0.5);
            let back = guardrails.pass(limit, limit * 0.9, &at).limit;
            assert!((back - (limit * 1.2).min(40.0)).abs() < 1e-9, "{limit} -> {back}");
            limit = back;
        }
        assert!((limit - 40.0).abs() < 1e-9);
    }

    #[test]
    fn a_latency_that_rises_or_half_a_minute_opens_the_way_for_cuts_again() {
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        let mut at = seen(2.0, true, 500.0, 1.0);
        (at.latency, at.sample) = told(0.5);
        guardrails.trial = Some(futile(20.0));
        assert_eq!(guardrails.pass(20.0, 18.0, &at).guardrail, Some(Guardrail::Futile));
        (at.latency, at.sample) = told(0.7);
        assert_eq!(guardrails.pass(20.0, 18.0, &at).guardrail, None);
        guardrails.trial = Some(futile(20.0));
        let mut later = seen(2.0, true, 500.0, 30.5);
        (later.latency, later.sample) = told(0.5);
        assert_eq!(guardrails.pass(20.0, 18.0, &later).guardrail, None);
    }

    #[test]
    fn a_head_that_comes_back_gets_its_load_back_step_by_step() {
        let mut guardrails = Guardrails::new(BOUNDS, &control());
        guardrails.recover(Time::ZERO, Duration::from_mins(1), 1.0);
        let mut limit = 1.0;
        let mut climbed = Vec::new();
        for i in 0..13 {
            limit = guardrails.pass(limit, 100.0, &seen(0.1, true, 500.0, f64::from(i) * 5.0)).limit;
            climbed.push(limit);
        }
        assert!(climbed[6] <= 10.0 + 1e-9, "half of the way is the square root of 100: {climbed:?}");
        assert!(guardrails.ramp.is_none(), "the ramp ends");
        assert!(climbed.is_sorted(), "{climbed:?}");
    }

    #[test]
    fn a_limit_pinned_to_zero_can_come_back() {
        let bounds = Bounds { initial: 8.0, min: 0.0, max: 100.0 };
        let mut guardrails = Guardrails::new(bounds, &control());
        let up = guardrails.pass(0.0, 5.0, &seen(0.1, true, 500.0, 0.0));
        assert!((up.limit - 0.08).abs() < 1e-12, "{up:?}");
    }

    proptest! {
        #[test]
        fn always_within_bounds_and_slew_whatever_is_proposed(
            min in 0.0_f64..10.0, span in 0.0_f64..100.0, initial in 0.0_f64..1.0,
            proposals in prop::collection::vec(prop::num::f64::ANY, 1..40),
            pressure in prop::option::of(prop::num::f64::ANY),
            demand in prop::num::f64::ANY,
            binding: bool,
            ramp: bool,
        ) {
            let bounds = Bounds { initial: min + initial * span, min, max: min + span };
            let mut guardrails = Guardrails::new(bounds, &control());
            if ramp {
                guardrails.recover(Time::ZERO, Duration::from_mins(1), min);
            }
            let mut limit = bounds.initial;
            for (i, proposal) in proposals.into_iter().enumerate() {
                let mut at = seen(1.0, binding, demand, i as f64 * 5.0);
                at.pressure = pressure;
                let clamped = guardrails.pass(limit, proposal, &at);
                prop_assert!((bounds.min..=bounds.max).contains(&clamped.limit), "{clamped:?} {bounds:?}");
                let high = (limit * 1.5).max(guardrails.ground());
                prop_assert!(clamped.limit <= high * (1.0 + 1e-12), "{limit} -> {clamped:?}");
                prop_assert!(clamped.limit >= limit / 1.5 * (1.0 - 1e-12), "{limit} -> {clamped:?}");
                if proposal.is_finite() && !ramp {
                    // Never against the direction of the proposal.
                    prop_assert!((clamped.limit - limit) * (proposal - limit) >= 0.0);
                }
                limit = clamped.limit;
            }
        }

        #[test]
        fn an_old_limit_that_is_no_number_starts_again_from_initial(proposal in 1.0_f64..100.0) {
            let clamped = Guardrails::new(BOUNDS, &control()).pass(f64::NAN, proposal, &seen(3.0, true, 9.0, 0.0));
            prop_assert!((1.0..=12.0).contains(&clamped.limit));
        }
    }
}
