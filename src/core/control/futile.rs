//! Did the cuts on latency give anything? (Law 8: unattainable SLOs do not starve.)
//!
//! *The question.* Latency follows a limit only while requests wait for each other at the head. Below that, a
//! lower limit takes throughput and gives nothing for it. An objective that a head which has become slower cannot
//! meet at any limit would so cut the limit to its floor.
//!
//! *The law.* By Little's law throughput is what is under way over the mean latency. A limit that comes down from
//! `L` to `l` under load so changes throughput by `(l / L) (R / r)`, where `R` and `r` are the mean latencies before
//! and after. If latency has followed the limit, throughput is what it was and the cut cost nothing. If it has not, it
//! fell short of the *knee*, the least limit that throughput needs, and the two means say where that lies:
//!
//! ```text
//! knee = L * r / R                                                                        (Eq. 1)
//! ```
//!
//! (The bandwidth-delay product that BBR fills a path to: Cardwell et al. 2016; Kleinrock's optimal operating point.)
//! Every cut is a trial of that. Once a binding limit has come down by a fifth (`TRIAL`), or as much more as it
//! takes to tell the fall of latency from chance (`ERRORS` standard errors of both means), latency must have come
//! down by half as much. If not, the limit goes back to a tenth above the knee (`HEADROOM`) and is held there for
//! `HOLD`, twice as long after each further trial in a row that fails, and at least `REST` times as long as the trial
//! took, because each costs throughput while it lasts; and one after a failure goes no deeper than `DEPTH` until it is
//! told. A latency that rises by more than
//! chance ends all of that: the head has become slower still. A window that tells nothing unsays nothing.
//!
//! *Means, not quantiles.* The objective is a p95 or a p99, which twenty answers hardly tell: chance of a third in
//! either direction was taken for help, one trial in four, and a limit crept down to its floor. A mean is told three
//! times as well by the same answers, those of a limit that stands still are added up (so that a limit at its floor
//! is judged as well), and it is the mean that Eq. 1 asks for.
//!
//! *The floor.* A limit that few answers have brought down to its floor is cut no more, and would not be judged again.
//! So it goes up by one trial, for `HOLD`, and what the next cut brings is told by many answers.
//!
//! *What it refuses.* To judge a limit that nothing waits for, or a class that is cut for its neighbours' sake.

use super::law::Observation;
use crate::policy::Bounds;
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A binding limit that came down by so much (on its logarithm) and brought latency down by less than half of
/// it was cut for nothing.
const TRIAL: f64 = 0.22;

/// A trial is told by a fall of this many standard errors of both latencies together.
const ERRORS: f64 = 4.0;

/// More answers after the cuts than so many times those before, or than are remembered, tell no more.
const ENOUGH: f64 = 4.0;

/// A rise of this many is no chance, though looked for at every step: the head has become slower, and the trial
/// begins anew.
const RISE_ERRORS: f64 = 4.0;

/// How deep (on its logarithm) a trial goes that follows one which failed.
const DEPTH: f64 = 0.36;

/// A limit goes back to so many times its knee.
const HEADROOM: f64 = 1.1;

/// So long a limit is not cut further after cuts that gave nothing...
const HOLD: Duration = Duration::from_secs(30);

/// ... twice as long after each further trial in a row, and so many times at most.
const DOUBLED_MAX: u32 = 5;

/// A limit that has come to its floor is looked at again from above after so many answers ...
const LOOK: f64 = 100.0;

/// ... twice as many after each further time, and so many times at most.
const LOOKS_DOUBLED_MAX: u32 = 3;

/// ... and so many times as long as the trial took: with few answers that is minutes, and they cost throughput.
const REST: u32 = 4;

/// Answers beyond so many say of what was; half of them are forgotten.
const REMEMBERED: f64 = 800.0;

/// The latencies of some answers, as far as their mean and its error need them.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// How many.
    pub count: f64,
    /// Their sum, seconds.
    pub seconds: f64,
    /// The sum of their squares.
    pub squares: f64,
}

impl Sample {
    /// The mean, seconds; `None` of nothing, or of what is no number.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let mean = self.seconds / self.count;
        (self.count >= 1.0 && mean.is_finite() && mean > 0.0).then_some(mean)
    }

    /// The standard error of the logarithm of two means' ratio. The wider spread of both goes for both, and never
    /// less than half of an exponential one: few answers may lie close together by chance.
    fn error(&self, other: &Sample) -> f64 {
        let spread = |of: &Sample| of.squares * of.count / (of.seconds * of.seconds) - 1.0;
        let widest = spread(self).max(spread(other)).max(0.25);
        (widest / self.count + widest / other.count).sqrt()
    }

    fn add(&mut self, more: &Sample) {
        let kept = if self.count > REMEMBERED { 0.5 } else { 1.0 };
        self.count = self.count * kept + more.count;
        self.seconds = self.seconds * kept + more.seconds;
        self.squares = self.squares * kept + more.squares;
    }
}

/// What the cuts under way are judged by.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// The limit before the cuts, or that they were given back to.
    pub limit: f64,
    /// The latencies under it.
    #[serde(default)]
    pub before: Sample,
    /// Those since the mark.
    #[serde(default)]
    pub after: Sample,
    /// A limit that stands, or was on the way down, and since when it was in force: what is seen a dead time later
    /// is judged against it, and not against what the limit has come to meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<(Time, f64)>,
    /// When the cuts were found to have given nothing, and were given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub futile_at: Option<Time>,
    /// How many trials in a row have come to that.
    #[serde(default, skip_serializing_if = "is_none")]
    pub futile_times: u32,
    /// How long the last of them took.
    #[serde(default, skip_serializing_if = "Duration::is_zero")]
    pub took: Duration,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_none(times: &u32) -> bool {
    *times == 0
}

impl Trial {
    fn new(limit: f64, before: Sample) -> Trial {
        let (after, took) = (Sample::default(), Duration::ZERO);
        Trial { limit, before, after, mark: None, futile_at: None, futile_times: 0, took }
    }

    /// Until when nothing is cut after it has failed.
    fn held_until(&self) -> Option<Time> {
        let times = 1 << self.futile_times.saturating_sub(1).min(DOUBLED_MAX);
        self.futile_at.map(|at| at + (HOLD * times).max(self.took * REST))
    }

    /// Whether it has failed, so that nothing is cut for now.
    #[must_use]
    pub(crate) fn is_futile(&self) -> bool {
        self.futile_at.is_some()
    }

    /// As far as a limit may come down before the trial has told something.
    #[must_use]
    pub fn lowest(&self) -> Option<f64> {
        (self.futile_times > 0).then(|| self.limit * (-DEPTH).exp())
    }

    /// Adds what was seen to what is known of the limit that it tells of, and says which that is: one that was in
    /// force when what has ended now began. `limit` has been in force since the window began. `None` while that
    /// was too short a time ago.
    fn marked(&mut self, limit: f64, sample: &Sample, seen: &Observation) -> Option<f64> {
        let (since, marked) = *self.mark.get_or_insert((seen.now - seen.period, limit));
        // Give or take a quarter: a window reaches a little back before the step.
        if seen.now.since(since) < seen.dead_time * 3 / 4 {
            return None;
        }
        self.after.add(sample);
        Some(marked)
    }
}

/// Judges the cuts so far, under the limit that was in force. Where they have given nothing, the limit to go back to.
pub fn judge(trial: &mut Option<Trial>, limit: f64, bounds: &Bounds, seen: &Observation) -> Option<f64> {
    let told = seen.sample.filter(|_| seen.binding && limit > 0.0 && seen.latency.is_some());
    let Some((sample, mean)) = told.and_then(|sample| sample.mean().map(|mean| (sample, mean))) else {
        return None; // a window without answers, or in which nothing waited, tells nothing, and unsays nothing
    };
    let anew = Trial::new(limit, sample);
    let Some(of) = trial.as_mut() else {
        *trial = Some(anew);
        return None;
    };
    // A window in which the objective happened to be met raises the limit a little, and is no other head.
    let is_chance = limit <= of.limit * DEPTH.exp();
    let higher = Trial { futile_times: if is_chance { of.futile_times } else { 0 }, ..anew };
    let until = of.held_until();
    let known = if of.is_futile() && of.after.count > 0.0 { of.after } else { of.before };
    let risen = (mean / known.mean().unwrap_or(mean)).ln();
    let is_slower = risen > (TRIAL / 2.0).max(RISE_ERRORS * known.error(&sample));
    if let Some(until) = until {
        if seen.now <= until && limit < of.limit {
            return Some(of.limit); // on the way back, which may take more than one step
        }
        if is_slower || limit > of.limit {
            *trial = Some(if is_slower { anew } else { higher });
        } else if seen.now > until {
            let before = if of.after.count > 0.0 { of.after } else { sample };
            *trial = Some(Trial { futile_times: of.futile_times, ..Trial::new(limit, before) });
        } else {
            of.marked(limit, &sample, seen);
        }
        return None;
    }
    if is_slower || limit > of.limit {
        *trial = Some(if is_slower { anew } else { higher });
        return None;
    }
    if limit >= of.limit {
        of.before.add(&sample);
        let looks = 1 << of.futile_times.min(LOOKS_DOUBLED_MAX);
        if limit <= bounds.min && of.before.count >= LOOK * f64::from(looks) {
            // Nothing is cut any more at the floor, and what brought it here may have been chance.
            let up = bounds.clamp((limit * DEPTH.exp()).max(limit + 1.0));
            let futile_times = of.futile_times.saturating_add(1);
            *trial = Some(Trial { futile_at: Some(seen.now), futile_times, ..Trial::new(up, of.before) });
            return Some(up);
        }
        return None;
    }
    let marked = of.marked(limit, &sample, seen)?;
    let cut = (of.limit / marked).ln();
    let error = of.before.error(&of.after);
    let is_all_there_is_to_know = of.after.count > (ENOUGH * of.before.count).min(REMEMBERED / 2.0);
    if cut >= TRIAL && (cut >= ERRORS * error || is_all_there_is_to_know) {
        let fallen = (of.before.mean()? / of.after.mean()?).ln();
        let knee = (of.limit * (-fallen).exp()).clamp(marked, of.limit);
        if fallen >= cut / 2.0 {
            // It helped. What of it fell short of the knee by more than chance is given back; what came down
            // since is still on trial.
            let is_short = (knee / marked).ln() > error;
            let from = if is_short { knee } else { marked };
            *trial = Some(Trial { futile_times: of.futile_times, ..Trial::new(from, of.after) });
            return (is_short && limit < knee).then_some(knee);
        }
        // Up to a whole request: a limit of 3.9 lets three pass.
        let back = bounds.clamp((knee * HEADROOM).ceil());
        let futile_times = of.futile_times.saturating_add(1);
        let took = of.mark.map_or(Duration::ZERO, |(since, _)| seen.now.since(since));
        *trial = Some(Trial { futile_at: Some(seen.now), futile_times, took, ..Trial::new(back, of.before) });
        return Some(back);
    }
    if limit < marked {
        (of.mark, of.after) = (None, Sample::default());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { initial: 8.0, min: 1.0, max: 1000.0 };

    fn seen(now_s: f64, count: f64, mean: f64) -> Observation {
        // Spread as exponential service is.
        let sample = Sample { count, seconds: count * mean, squares: 2.0 * count * mean * mean };
        Observation {
            period: Duration::from_secs(1),
            dead_time: Duration::from_secs(1),
            binding: true,
            latency: Some(3.0 * mean),
            sample: Some(sample),
            ..Observation::nothing(Time::from_secs_f64(now_s))
        }
    }

    /// The limit at each second, for half an hour, under a law that always asks for a fifth less, on a plant that
    /// `knee` fill: a mean of 400 ms, and more in proportion to what is beyond. `chance` is each window's.
    fn starved(knee: f64, from: f64, answers: f64, chance: &[f64]) -> Vec<f64> {
        let (mut trial, mut limit) = (None, from);
        let mut limits = Vec::new();
        for (second, chance) in (1..1800).zip(chance.iter().cycle()) {
            let at = seen(f64::from(second), answers, 0.4 * (limit / knee).max(1.0) * chance);
            let back = judge(&mut trial, limit, &BOUNDS, &at);
            let least = trial.and_then(|of| of.lowest()).unwrap_or(0.0).min(limit);
            let is_held = trial.is_some_and(|of| of.is_futile());
            let cut = if is_held { limit } else { (limit * 0.8).max(least) };
            limit = BOUNDS.clamp(back.unwrap_or(cut));
            limits.push(limit);
        }
        limits
    }

    #[test]
    fn a_limit_at_its_floor_is_judged_as_well() {
        // From 3 to the floor of 1 is a cut by two thirds, which windows of three answers do not tell one by one.
        let limits = starved(30.0, 3.0, 3.0, &[1.0]);
        assert!(limits.contains(&1.0) && *limits.last().unwrap() > 2.5, "{limits:?}");
    }

    #[test]
    fn a_limit_at_its_floor_is_looked_at_from_above_ever_more_seldom() {
        let mut trial = None;
        let mut looks = Vec::new();
        for second in 1..=90 {
            // Whatever is looked at is cut again at once: what brings it back to the floor is not the question here.
            if let Some(up) = judge(&mut trial, BOUNDS.min, &BOUNDS, &seen(f64::from(second), 10.0, 0.5)) {
                assert!((up - 2.0).abs() < 1e-9, "one request more: {up}");
                let of = trial.take().expect("it is on trial");
                assert!(of.is_futile(), "and stands for a while");
                trial = Some(Trial {
                    futile_times: of.futile_times,
                    ..Trial::new(BOUNDS.min, Sample::default())
                });
                looks.push(second);
            }
        }
        assert_eq!(looks, [10, 10 + 20, 10 + 20 + 40], "after 100, 200 and 400 answers, ten a second");
    }

    #[test]
    fn a_trial_ends_with_what_is_remembered_and_rests_four_times_as_long_as_it_took() {
        // Answers that differ so much that four standard errors are never less than the cut: what is remembered of
        // them, 400 at five a second, is all there is to know.
        let before = Sample { count: 250.0, seconds: 250.0, squares: 750.0 };
        let mut trial = Some(Trial::new(8.0, before));
        let mut steps = (1..1000).map(f64::from);
        let told = steps.find(|now| judge(&mut trial, 5.58, &BOUNDS, &seen(*now, 5.0, 1.0)).is_some());
        let (told, of) = (told.expect("it is told"), trial.expect("it has failed"));
        assert!((80.0..=83.0).contains(&told), "{told}");
        assert!((of.limit - 9.0).abs() < 1e-9, "the knee and a tenth, whole: {}", of.limit);
        let rests = of.held_until().expect("it rests").since(Time::from_secs_f64(told));
        assert!(rests >= Duration::from_secs_f64(3.9 * told), "{rests:?}");
    }

    #[test]
    fn a_sample_without_answers_or_a_number_tells_nothing() {
        assert_eq!(Sample::default().mean(), None);
        assert_eq!(Sample { count: 3.0, seconds: f64::NAN, squares: 1.0 }.mean(), None);
        let mut trial = Some(Trial::new(9.0, Sample { count: 9.0, seconds: 9.0, squares: 9.0 }));
        assert_eq!(judge(&mut trial, 8.0, &BOUNDS, &seen(1.0, 0.0, 1.0)), None);
        assert_eq!(trial.map(|of| of.limit), Some(9.0), "and unsays nothing");
    }

    proptest! {
        #[test]
        fn cuts_end_at_the_knee_and_cost_little_from_then_on(
            knee in 4.0_f64..100.0, times in 0.9_f64..10.0, answers in 25.0_f64..200.0,
        ) {
            let limits = starved(knee, knee * times, answers, &[1.0]);
            let late = &limits[300..];
            let used = late.iter().map(|limit| (limit / knee).min(1.0)).sum::<f64>() / late.len() as f64;
            let waits = late.iter().map(|limit| (limit / knee).max(1.0)).sum::<f64>() / late.len() as f64;
            prop_assert!(used > 0.9, "throughput {used}");
            prop_assert!(waits < 1.5, "latency {waits}");
        }

        #[test]
        fn chance_does_not_take_a_limit_to_its_floor(
            chance in prop::collection::vec(0.8_f64..1.25, 50..300), knee in 8.0_f64..60.0,
        ) {
            let limits = starved(knee, knee * 2.0, 60.0, &chance);
            let late = &limits[300..];
            let used = late.iter().map(|limit| (limit / knee).min(1.0)).sum::<f64>() / late.len() as f64;
            prop_assert!(used > 0.6, "throughput {used}");
        }
    }
}
