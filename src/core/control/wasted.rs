//! Do clients leave before they are answered because the limit is too high?
//!
//! *The question.* A head that is given more requests at once than it has places for answers each of them later, and
//! not one more. As long as latency keeps to the objective, no law minds. But clients wait for as long as they choose,
//! not for as long as the objective says: where they leave shortly before their answers come, the head works for
//! no client at all, and the objective is met. (Goodput collapse under overload: Mogul and Ramakrishnan, "Eliminating
//! receive livelock in an interrupt-driven kernel", 1997.)
//!
//! *The law.* Of the requests that end at the head, count those whose clients left first. If more than
//! `FAR_TOO_MANY` do, beyond chance, either they stand in line too long, which a lower limit mends, or they take
//! longer than their clients wait, which it does not. Two things tell the one from the other:
//!
//! - In a line all wait. Where the quickest tenth of the answers takes less than `ALIKE` of what the clients that
//!   left had waited, no line is why they left, and nothing is done.
//! - A cut is a trial: the limit goes to `CUT` of what is used of it; once what began before has ended, at most half
//!   the share may leave. If so, the lower limit stays as a ceiling. If not, it goes back at once; the next
//!   trial comes after `HOLD`, twice as long after each further one, and goes deeper, down to one request
//!   at a time: with two places nothing less tells.
//!
//! *The way up.* After `HOLD` a ceiling rises by `STEP`, again and again for as long as no more leave than when it
//! helped. A step that makes more leave is taken back, and the next one comes after twice as long: a search costs one
//! step's waste, ever more seldom. A ceiling goes where the law keeps the limit below it.
//!
//! *What it refuses.* To begin where the limit binds and latency is above its objective, because there the law cuts
//! already; to count clients that have spent more of their wait in the proxy's queue than at the head, of which
//! a lower limit makes more; and to call a lower limit a success that does not bind.

use super::law::Observation;
use crate::policy::Bounds;
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where more than this share of what ends has lost its client, a trial is worth it.
const FAR_TOO_MANY: f64 = 0.3;

/// A ceiling is right while no more lose their clients than under the lowest that was tried, and this share.
const TOO_MANY: f64 = 0.05;

/// Where the quickest answers take less than this part of what clients waited that left, these did not leave a line.
const ALIKE: f64 = 0.7;

/// Fewer requests than this prove nothing.
const ENOUGH: f64 = 10.0;

/// So many standard errors are no chance, though looked at again and again.
const ERRORS: f64 = 3.0;

/// Fewer do where a ceiling is to rise, which is taken back easily.
const ERRORS_TO_RISE: f64 = 2.0;

/// Requests beyond so many say what was; half of them are forgotten.
const REMEMBERED: f64 = 200.0;

/// The first trial goes to this part of what is used, each further one to this part of the last.
const CUT: f64 = 0.4;

/// A ceiling rises by this factor at a time.
const STEP: f64 = 1.1;

/// A limit that its law keeps so far below its ceiling needs none.
const BELOW: f64 = 0.95;

/// Of what was under way when a limit changed, this many times as much must end before the limit is judged: those that
/// waited meanwhile say nothing of it either.
const SETTLED: f64 = 1.5;

/// For so long nothing is tried again, ...
const HOLD: Duration = Duration::from_secs(60);

/// ... twice as long after each time in a row that it came to nothing, and so many times at most: an hour.
const DOUBLED_MAX: u32 = 6;

/// Requests that ended while the head worked on them.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Ended {
    /// Those that were answered.
    pub answered: f64,
    /// Those whose clients left first, after more time at the head than in the queue.
    pub left: f64,
    /// How long the latter had been under way, in seconds, together.
    pub left_s: f64,
    /// Within which time the quickest tenth of the answers began, in seconds; 0: none did.
    pub quickest_s: f64,
    /// The most that were under way at once.
    pub under_way: f64,
}

impl Ended {
    /// Numbers that can be counted on.
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        let all = [self.answered, self.left, self.left_s, self.quickest_s, self.under_way];
        all.iter().all(|count| count.is_finite() && *count >= 0.0)
    }

    fn count(&self) -> f64 {
        self.answered + self.left
    }

    fn share(&self) -> f64 {
        self.left / self.count().max(1.0)
    }

    /// Standard error of the share, and no less than half a request.
    fn error(&self) -> f64 {
        let (share, count) = (self.share(), self.count().max(1.0));
        (share * (1.0 - share) / count).sqrt().max(0.5 / count)
    }

    /// More than this share left, beyond chance.
    fn is_above(&self, share: f64) -> bool {
        self.count() >= ENOUGH && self.share() - ERRORS * self.error() > share
    }

    /// The share that may leave, by what was counted.
    fn most(&self) -> f64 {
        self.share() + ERRORS_TO_RISE * self.error()
    }

    /// Fewer did, beyond chance.
    fn is_below(&self, share: f64) -> bool {
        self.count() >= ENOUGH && self.most() < share
    }

    /// Even the quickest answers take nearly as long as the clients waited that left.
    fn is_one_line(&self) -> bool {
        self.quickest_s * self.left > ALIKE * self.left_s || self.quickest_s <= 0.0
    }

    fn add(&mut self, more: &Ended) {
        let kept = if self.count() > REMEMBERED { 0.5 } else { 1.0 };
        self.answered = self.answered * kept + more.answered;
        self.left = self.left * kept + more.left;
        self.left_s = self.left_s * kept + more.left_s;
        if more.quickest_s > 0.0 {
            self.quickest_s = more.quickest_s;
        }
    }
}

/// What is known of clients that leave under one limit.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Wasted {
    /// The limit that is judged.
    pub limit: f64,
    /// How many have to end before it is.
    pub unsettled: f64,
    /// What has ended since.
    pub ended: Ended,
    /// What is being tried.
    pub trial: Trial,
    /// Until when nothing else is.
    pub rests_until: Time,
    /// How many times in a row a trial, or a step up, came to nothing.
    pub times: u32,
    /// The share that leaves whatever is done.
    pub least: f64,
}

/// What is being tried of a limit.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trial {
    /// Nothing, and it has no ceiling.
    Open,
    /// A cut.
    Cut {
        /// The limit before.
        from: f64,
        /// The share that left under it.
        share: f64,
        /// Whether that was a ceiling.
        capped: bool,
    },
    /// Nothing: the ceiling helps.
    Capped,
    /// A step up.
    Step {
        /// The ceiling before.
        from: f64,
    },
}

impl Wasted {
    fn new(limit: f64) -> Wasted {
        Wasted {
            limit,
            unsettled: 0.0,
            ended: Ended::default(),
            trial: Trial::Open,
            rests_until: Time::ZERO,
            times: 0,
            least: 0.0,
        }
    }

    /// The ceiling, if there is one.
    #[must_use]
    pub fn cap(&self) -> Option<f64> {
        (self.trial != Trial::Open).then_some(self.limit)
    }

    /// From now on another limit is judged.
    fn judge_next(&mut self, limit: f64, under_way: f64) {
        (self.limit, self.unsettled, self.ended) = (limit, under_way * SETTLED, Ended::default());
    }

    fn rest(&mut self, now: Time) {
        self.rests_until = now + HOLD * (1 << self.times.min(DOUBLED_MAX));
    }

    /// It came to nothing: back to that limit, and a longer rest.
    fn give_back(&mut self, from: f64, trial: Trial, seen: &Ended, now: Time) -> f64 {
        self.trial = trial;
        self.times = self.times.saturating_add(1);
        self.judge_next(from, seen.under_way);
        self.rest(now);
        from
    }

    /// A cut of what is used, on trial; so many times deeper than the first.
    fn cut(&mut self, from: f64, used: f64, deeper: u32, seen: &Ended) -> Option<f64> {
        let part = (0..deeper.min(DOUBLED_MAX)).fold(CUT, |part, _| part * CUT);
        let to = (used * part).floor().max(1.0);
        if to >= used {
            return None;
        }
        self.trial = Trial::Cut { from, share: self.ended.share(), capped: self.trial != Trial::Open };
        self.judge_next(to, seen.under_way);
        Some(to)
    }

    fn step_up(&mut self, seen: &Ended) -> f64 {
        let from = self.limit;
        let to = (from * STEP).max(from + 1.0);
        self.trial = Trial::Step { from };
        self.judge_next(to, seen.under_way);
        to
    }
}

/// What a move says, for people, that was made while this was tried.
#[must_use]
pub(crate) fn words(trial: Option<Trial>, is_cut: bool) -> &'static str {
    match (trial, is_cut) {
        (Some(Trial::Step { .. }), true) => {
            "clients leave again before they get their answers: lowered by one step"
        }
        (_, true) => "clients leave before they get their answers: lowered on trial",
        (Some(Trial::Cut { .. }), false) => "the lower limit did not help, as many clients leave: restored",
        (_, false) => "few clients leave now: raised by one step",
    }
}

/// Judges the limit in force, and says which is to be in force instead, if another.
pub fn judge(state: &mut Option<Wasted>, limit: f64, bounds: &Bounds, seen: &Observation) -> Option<f64> {
    let ended = seen.ended.filter(|_| limit > 0.0)?;
    if state.is_none() && ended.left <= 0.0 {
        return None;
    }
    let of = state.get_or_insert(Wasted::new(limit));
    if of.unsettled > 0.0 {
        of.unsettled -= ended.count();
        return None;
    }
    of.ended.add(&ended);
    if of.trial == Trial::Capped && of.ended.count() >= ENOUGH {
        // The longer it is looked at, the better it is known.
        of.least = of.least.min(of.ended.most());
    }
    let (is_rested, now) = (seen.now >= of.rests_until, seen.now);
    // A limit that binds under a latency above its objective is the law's to cut.
    let is_left_to_law = seen.binding && seen.slo_pressure.is_some_and(|pressure| pressure > 1.0);
    match of.trial {
        Trial::Open
            if of.ended.is_above(FAR_TOO_MANY) && is_rested && !is_left_to_law && of.ended.is_one_line() =>
        {
            // The limit itself may be far above what is used of it.
            of.cut(limit, limit.min(ended.under_way), of.times, &ended)
        }
        Trial::Open => {
            if of.times == 0 && of.ended.is_below(TOO_MANY) {
                *state = None;
            }
            None
        }
        Trial::Cut { share, .. } if seen.binding && of.ended.is_below(share / 2.0) => {
            of.trial = Trial::Capped;
            (of.times, of.least) = (0, of.ended.most());
            of.rest(now);
            None
        }
        Trial::Cut { from, share, capped } if of.ended.is_above(share / 2.0) => {
            let trial = if capped { Trial::Capped } else { Trial::Open };
            of.least = if capped { share } else { 0.0 };
            Some(of.give_back(from, trial, &ended, now))
        }
        Trial::Step { from } if of.ended.is_above(of.least + TOO_MANY) => {
            Some(of.give_back(from, Trial::Capped, &ended, now))
        }
        Trial::Capped if of.ended.is_above(of.least + TOO_MANY) && is_rested => {
            of.cut(of.limit, of.limit, 0, &ended)
        }
        Trial::Capped | Trial::Step { .. } if of.ended.is_below(of.least + TOO_MANY) => {
            if limit < of.limit * BELOW || of.limit >= bounds.max {
                *state = None;
                return None;
            }
            (seen.binding && is_rested).then(|| of.step_up(&ended))
        }
        Trial::Cut { .. } | Trial::Capped | Trial::Step { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { initial: 256.0, min: 32.0, max: 2048.0 };

    /// What a head of ten places tells that takes 5 s for each, whose clients wait for `patience_s`, under a limit that
    /// is asked for more.
    fn seen(second: u64, limit: f64, patience_s: f64) -> Observation {
        let under_way = limit.min(70.0);
        let latency_s = (under_way / 2.0).max(5.0);
        let left = if latency_s > patience_s { 9.0 } else { 0.0 };
        let ended = Ended {
            answered: 10.0 - left,
            left,
            left_s: left * patience_s,
            quickest_s: latency_s.min(patience_s),
            under_way,
        };
        let now = Time(second * 1_000_000_000);
        Observation { ended: Some(ended), binding: limit < 70.0, ..Observation::nothing(now) }
    }

    /// The limits that it comes to within so many seconds, one look each five.
    fn limits(seconds: u64, mut limit: f64, tell: impl Fn(u64, f64) -> Observation) -> Vec<f64> {
        let mut state = None;
        let steps = (0..seconds).step_by(5).map(|second| {
            if let Some(new) = judge(&mut state, limit, &BOUNDS, &tell(second, limit)) {
                limit = new;
            }
            limit
        });
        steps.collect()
    }

    #[test]
    fn a_limit_under_which_clients_leave_comes_down_to_where_they_stay_and_remains_there() {
        for patience_s in [6.0, 12.0, 30.0] {
            let limits = limits(3600, 256.0, |second, limit| seen(second, limit, patience_s));
            let late: Vec<_> = limits[360..].iter().filter(|limit| **limit / 2.0 > patience_s).collect();
            assert!(late.len() * 20 < 360, "{patience_s}: {} of 360 looks", late.len());
            assert!(limits.iter().all(|limit| *limit >= 1.0), "{patience_s}");
        }
    }

    #[test]
    fn where_they_leave_under_any_limit_it_goes_back_and_is_left_alone_ever_longer() {
        let all_leave = |second, limit| {
            let told = seen(second, limit, 0.0);
            let ended = told.ended.map(|ended| Ended { quickest_s: 9.0, left_s: 90.0, ..ended });
            Observation { ended, ..told }
        };
        let limits = limits(4 * 3600, 256.0, all_leave);
        assert!(limits.iter().any(|limit| *limit < 30.0), "it is tried");
        let open = limits.iter().filter(|limit| **limit >= 256.0).count();
        assert!(open * 10 > limits.len() * 9, "{open} of {}", limits.len());
        assert!(limits[limits.len() / 2..].iter().filter(|limit| **limit < 256.0).count() < 40);
    }

    #[test]
    fn clients_that_leave_although_others_are_answered_quickly_do_not_leave_a_line() {
        let beside_quick_ones = |second, limit| {
            let told = seen(second, limit, 12.0);
            let ended = Ended { answered: 6.0, left: 4.0, left_s: 48.0, quickest_s: 6.0, under_way: 40.0 };
            Observation { ended: Some(ended), ..told }
        };
        assert!(limits(3600, 256.0, beside_quick_ones).iter().all(|limit| *limit >= 256.0));
    }

    #[test]
    fn when_clients_wait_longer_again_the_ceiling_rises_until_it_is_gone() {
        let limits = limits(6 * 3600, 256.0, |second, limit| {
            let patience_s = if second < 1800 { 12.0 } else { 1e6 };
            let told = seen(second, limit, patience_s);
            Observation { binding: true, ..told }
        });
        assert!(limits[300] <= 24.0 * STEP, "{}", limits[300]);
        assert!(limits.last().is_some_and(|limit| *limit >= 2048.0), "{:?}", limits.last());
    }

    proptest! {
        #[test]
        fn whatever_is_told_the_limit_stays_a_number_within_reach_and_the_state_survives_its_json(
            told in prop::collection::vec((0.0_f64..50.0, 0.0_f64..50.0, 0.0_f64..60.0, any::<bool>()), 1..300),
        ) {
            let (mut state, mut limit) = (None, 256.0);
            for (second, (answered, left, quickest_s, binding)) in told.into_iter().enumerate() {
                let ended =
                    Ended { answered, left, left_s: left * 10.0, quickest_s, under_way: limit };
                let now = Time(second as u64 * 5_000_000_000);
                let observation = Observation { ended: Some(ended), binding, ..Observation::nothing(now) };
                let text = serde_json::to_string(&state).unwrap();
                let mut again: Option<Wasted> = serde_json::from_str(&text).unwrap();
                let new = judge(&mut state, limit, &BOUNDS, &observation);
                prop_assert_eq!(judge(&mut again, limit, &BOUNDS, &observation), new);
                prop_assert_eq!(again, state);
                limit = new.unwrap_or(limit);
                prop_assert!((1.0..=2.0 * BOUNDS.max).contains(&limit), "{}", limit);
            }
        }
    }
}
