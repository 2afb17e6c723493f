//! Did the cut help? (Law 2: a cut must help.)
//!
//! *The question.* A reading of Ray's above its target says that the head is short of something. It
//! does not say that this class is the reason. A head whose cores are full of the users' tasks stays
//! full however few submissions it gets; cutting them then only refuses clients.
//!
//! *The law.* Each cut on a signal is an experiment. Before it, the reading follows a *trend*: a level
//! and a slope, learnt by double exponential smoothing (Holt 1957), with the scatter about them. Once
//! the limit has come down by `DEPTH` and a dead time and a window have passed, so that the reading
//! is all of the time after the cut, it is held against where the trend would have brought it:
//!
//! ```text
//! helped  <=>  level + slope * t  -  reading  >  max(ERRORS * error, LEAST * expected)           (Eq. 1)
//! ```
//!
//! Against the trend, not against the level: a backlog that grew by 100 a second and now grows by 50
//! has answered, although it is higher than it was; a queue that was being worked off anyway has not,
//! although it is lower. Of what gathers, the share counts of what it was expected to grow by: an integrator's
//! level hardly moves in a trial's time; and where that share could not be told from chance yet, it is waited for.
//! If the cut did not help, the limit goes back to where the trial began and
//! the pair of signal and class *rests*: the signal neither cuts that class nor keeps it from growing. (What gathers keeps
//! it from growing until it has failed twice: one verdict may be chance, and a head without memory is restarted.)
//! The rest doubles with each failure in a row, from [`REST`] to `REST_MAX`, because each trial
//! costs a fifth of the throughput while it lasts. A pair that has been shown to help is believed: its
//! cuts go on at the law's own pace while the next trial runs, and a reading that falls meanwhile is
//! taken to fall for them.
//!
//! One trial at a time for one limit: of two cuts at once, which was it that helped?
//!
//! *What it refuses.* To lower a limit for long on a correlation. It is the least experiment that
//! tells cause from coincidence; extremum-seeking control does the same with a continuous dither.

use crate::policy::SignalId;
use crate::time::Time;
use std::time::Duration;

/// So far a limit comes down on a signal, as a share of it, before the signal must answer.
pub(crate) const DEPTH: f64 = 0.2;
/// The same of one that gathers: a fifth of its growth could not be told from chance before it is too late.
const DEPTH_GATHERING: f64 = 0.5;
/// A reading has answered if it is lower than its trend by so many standard errors ...
const ERRORS: f64 = 2.0;
/// ... and by this share of what was expected: less is not worth refusing a fifth of the clients.
const LEAST: f64 = 0.05;
/// An answer that is too faint to tell from chance is waited for so many times more: what is kept away of a growth
/// grows with the time.
const UNCLEAR_MAX: u32 = 3;
/// How long a pair rests after a cut that did not help ...
pub const REST: Duration = Duration::from_secs(60);
/// ... and at most, after several in a row.
pub(crate) const REST_MAX: Duration = Duration::from_secs(3600);
/// So many rises in a row are a growth.
const RISES: u32 = 3;
/// The smoothing's time constant, in seconds.
const MEMORY_S: f64 = 10.0;
/// Gain of the slope relative to the level's.
const SLOPE: f64 = 0.3;

/// Where a reading is going.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Trend {
    at: Option<Time>,
    level: f64,
    slope_per_s: f64,
    /// Mean square of what single readings differ from the trend by.
    scatter: f64,
    /// The last reading's weight in the level.
    weight: f64,
    /// The last reading, and how many in a row were higher than the one before.
    last: f64,
    rises: u32,
}

impl Trend {
    /// Takes in a reading. What is no number is no reading.
    pub fn observe(&mut self, reading: f64, now: Time) {
        if !reading.is_finite() {
            return;
        }
        let Some(at) = self.at else {
            *self = Trend { at: Some(now), level: reading, weight: 1.0, last: reading, ..Trend::default() };
            return;
        };
        let passed = now.since(at).as_secs_f64();
        if passed <= 0.0 {
            return;
        }
        self.rises = if reading > self.last { self.rises.saturating_add(1) } else { 0 };
        self.last = reading;
        let expected = self.expected(now);
        let off = reading - expected;
        self.weight = 1.0 - (-passed / MEMORY_S).exp();
        self.level = expected + self.weight * off;
        self.slope_per_s += SLOPE * self.weight * off / passed;
        self.scatter += self.weight * (off * off - self.scatter);
        self.at = Some(now);
    }

    /// Where the reading is going to be after `ahead`. One that has risen fewer than `RISES` times in a row stands:
    /// a thousand tasks that one job brought at once are no growth.
    #[must_use]
    pub fn forecast(&self, now: Time, ahead: Duration) -> f64 {
        let expected = self.expected(now + ahead);
        if self.rises < RISES { expected.min(self.last) } else { expected }
    }

    /// Where the reading would be at `now` if nothing changed; never below zero.
    #[must_use]
    pub fn expected(&self, now: Time) -> f64 {
        let passed = self.at.map_or(0.0, |at| now.since(at).as_secs_f64());
        (self.level + self.slope_per_s * passed).max(0.0)
    }

    /// Standard error of [`Trend::expected`].
    fn error(&self, now: Time) -> f64 {
        let passed = self.at.map_or(0.0, |at| now.since(at).as_secs_f64());
        let of_level = (self.weight / (2.0 - self.weight)).sqrt();
        self.scatter.sqrt() * of_level * (1.0 + SLOPE * passed / MEMORY_S)
    }
}

/// A cut whose effect is waited for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Trial {
    /// The signal that asked for it.
    pub signal: SignalId,
    /// The limit before it.
    pub limit: f64,
    /// What was used of that, where the cut began.
    from: f64,
    before: Trend,
    /// What it is asked of gathers: a share of its growth is an answer.
    gathers: bool,
    /// When it can be judged; `None` until the limit has come down by [`DEPTH`].
    judged_at: Option<Time>,
    /// How long its answer takes, and how often it has been too faint to judge.
    wait: Duration,
    unclear: u32,
}

impl Trial {
    /// No lower may the limit come before the trial is judged.
    fn ground(&self) -> f64 {
        self.from * (1.0 - self.depth())
    }

    fn depth(&self) -> f64 {
        depth(self.gathers)
    }
}

fn depth(gathers: bool) -> f64 {
    if gathers { DEPTH_GATHERING } else { DEPTH }
}

/// What a trial has shown.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum TrialVerdict {
    /// The reading answered.
    Helped,
    /// It did not.
    Futile {
        /// The trial.
        trial: Trial,
        /// Where the reading was going without the cut.
        expected: f64,
        /// Where it is.
        seen: f64,
        /// How long the pair rests.
        rest: Duration,
    },
}

/// What is known of a signal's power over a limit.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Pair {
    signal: SignalId,
    is_proven: bool,
    /// The scatter of its readings before they were first moved.
    scatter: f64,
    failed: u32,
    rests_until: Time,
}

/// The trials of one limit.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Trials {
    under_way: Option<Trial>,
    pairs: Vec<Pair>,
}

impl Trials {
    /// Whether the pair rests: the signal has no say about this limit.
    #[must_use]
    pub(crate) fn rests(&self, signal: SignalId, now: Time) -> bool {
        self.pair(signal).is_some_and(|pair| now < pair.rests_until)
    }

    /// Whether no more than one cut in a row on this signal has not helped: that may be chance.
    #[must_use]
    pub(crate) fn is_in_doubt(&self, signal: SignalId) -> bool {
        self.pair(signal).is_none_or(|pair| pair.failed <= 1)
    }

    /// Whether cuts on this signal have been seen to help.
    #[must_use]
    pub(crate) fn is_proven(&self, signal: SignalId) -> bool {
        self.pair(signal).is_some_and(|pair| pair.is_proven)
    }

    /// How far this signal may lower a limit that stands at `limit`, until its trial is judged.
    #[must_use]
    pub fn lowest(&self, signal: SignalId, gathers: bool, limit: f64) -> f64 {
        let is_proven = self.is_proven(signal);
        match self.under_way {
            Some(trial) if trial.signal != signal => limit,
            _ if is_proven => 0.0,
            Some(trial) => trial.ground().min(limit),
            None => limit * (1.0 - depth(gathers)),
        }
    }

    /// A limit of `old`, of which `from` was used, was cut to `new` on this signal, or stands at its floor, and
    /// readings follow `trend`. The cut can be judged after `wait`.
    #[expect(clippy::too_many_arguments, reason = "the three limits of a cut, and when it can be judged")]
    pub(crate) fn on_cut(
        &mut self,
        signal: SignalId,
        old: f64,
        from: f64,
        new: f64,
        (trend, gathers): (&Trend, bool),
        now: Time,
        wait: Duration,
    ) {
        let is_proven = self.is_proven(signal);
        // Where a pair is proven, a reading that falls, or scatters more, does so for the cuts before.
        let before = match self.pair(signal).filter(|pair| pair.is_proven) {
            Some(pair) => {
                let slope_per_s = trend.slope_per_s.max(0.0);
                Trend { slope_per_s, scatter: trend.scatter.min(pair.scatter), ..*trend }
            }
            None => *trend,
        };
        let trial = self.under_way.get_or_insert(Trial {
            signal,
            limit: old,
            from,
            before,
            gathers,
            judged_at: None,
            wait,
            unclear: 0,
        });
        // The floor may lie nearer than the depth, and then no more will come. What gathers goes on gathering by what
        // the floor lets in, and that a proven pair no longer helps is not to be told by so small a cut.
        let is_least = new >= from && !(gathers && is_proven);
        let is_deep = new <= trial.ground() * (1.0 + 1e-9) || is_least;
        if trial.judged_at.is_none() && is_deep {
            trial.judged_at = Some(now + wait);
        }
    }

    /// Judges the trial under way by how its signal's readings go now.
    pub fn judge(&mut self, trend: impl Fn(SignalId) -> Option<Trend>, now: Time) -> Option<TrialVerdict> {
        let trial = self.under_way.filter(|trial| trial.judged_at.is_some_and(|at| now >= at))?;
        self.under_way = None;
        // Without a reading nothing is known, and a limit that was lowered stays so (law 7).
        let after = trend(trial.signal)?;
        let (expected, seen) = (trial.before.expected(now), after.level);
        let worth = if trial.gathers { (expected - trial.before.level).abs() } else { expected };
        let least = (ERRORS * trial.before.error(now)).max(LEAST * worth);
        // What a cut that helps has kept away of the growth at the least.
        let due = trial.depth() * worth;
        if trial.gathers && expected - seen <= least && due < 2.0 * least && trial.unclear < UNCLEAR_MAX {
            let judged_at = Some(now + trial.wait);
            self.under_way = Some(Trial { judged_at, unclear: trial.unclear + 1, ..trial });
            return None;
        }
        if expected - seen > least {
            self.believe(&trial);
            return Some(TrialVerdict::Helped);
        }
        let pair = self.pair_mut(trial.signal);
        let rest = (REST * 2_u32.saturating_pow(pair.failed.min(16))).min(REST_MAX);
        pair.is_proven = false;
        pair.failed += 1;
        pair.rests_until = now + rest;
        Some(TrialVerdict::Futile { trial, expected, seen, rest })
    }

    /// The signal on trial is at its target again. Of what gathers, a growth that has slowed by the share of the cut and
    /// more has answered it; of any other the trial is over without a verdict.
    pub(crate) fn on_target(&mut self, trend: &Trend) {
        let Some(trial) = self.under_way.take() else { return };
        let has_slowed = trend.slope_per_s < trial.before.slope_per_s * (1.0 - trial.depth());
        if trial.gathers && trial.judged_at.is_some() && has_slowed {
            self.believe(&trial);
        }
    }

    /// A cut on its signal has been seen to help.
    fn believe(&mut self, trial: &Trial) {
        let pair = self.pair_mut(trial.signal);
        (pair.is_proven, pair.failed, pair.scatter) = (true, 0, trial.before.scatter);
    }

    /// The trial under way is over without a verdict: its signal is at its target again, or somebody
    /// else has set the limit.
    pub fn end(&mut self) {
        self.under_way = None;
    }

    /// The signal that is on trial.
    #[must_use]
    pub(crate) fn on_trial(&self) -> Option<SignalId> {
        self.under_way.map(|trial| trial.signal)
    }

    /// The same under a policy in which signals have other places.
    #[must_use]
    pub fn under(&self, place: impl Fn(SignalId) -> Option<SignalId>) -> Trials {
        let pair = |pair: &Pair| Some(Pair { signal: place(pair.signal)?, ..*pair });
        let trial = |trial: Trial| Some(Trial { signal: place(trial.signal)?, ..trial });
        Trials {
            under_way: self.under_way.and_then(trial),
            pairs: self.pairs.iter().filter_map(pair).collect(),
        }
    }

    fn pair(&self, signal: SignalId) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.signal == signal)
    }

    fn pair_mut(&mut self, signal: SignalId) -> &mut Pair {
        let at = self.pairs.iter().position(|pair| pair.signal == signal).unwrap_or_else(|| {
            let fresh = Pair { signal, is_proven: false, scatter: 0.0, failed: 0, rests_until: Time::ZERO };
            self.pairs.push(fresh);
            self.pairs.len() - 1
        });
        &mut self.pairs[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CPU: SignalId = SignalId(3);
    const WAIT: Duration = Duration::from_secs(25);

    fn at(seconds: u32) -> Time {
        Time::ZERO + Duration::from_secs(1) * seconds
    }

    /// A reading each five seconds; `effect` on it once the limit has been cut by a fifth at 100 s.
    fn verdict_on(reading: impl Fn(u32) -> f64) -> (Trials, Option<TrialVerdict>) {
        let (mut trend, mut trials) = (Trend::default(), Trials::default());
        for second in (0..=140).step_by(5) {
            trend.observe(reading(second), at(second));
            if second == 100 {
                trials.on_cut(CPU, 10.0, 10.0, 8.0, (&trend, false), at(second), WAIT);
            }
            if let Some(verdict) = trials.judge(|_| Some(trend), at(second)) {
                return (trials, Some(verdict));
            }
        }
        (trials, None)
    }

    fn helped(reading: impl Fn(u32) -> f64) -> bool {
        matches!(verdict_on(reading).1, Some(TrialVerdict::Helped))
    }

    #[test]
    fn a_reading_that_nothing_moves_gives_the_cut_back_and_one_that_follows_keeps_it() {
        assert!(!helped(|_| 98.0));
        assert!(helped(|second| if second > 100 { 78.0 } else { 98.0 }));
        // Half of it is this class's doing.
        assert!(helped(|second| if second > 100 { 88.0 } else { 98.0 }));
    }

    #[test]
    fn a_backlog_that_grows_more_slowly_has_answered_and_one_that_was_falling_anyway_has_not() {
        let rising = |second: u32| 100.0 * f64::from(second) - f64::from(second.saturating_sub(100)) * 50.0;
        assert!(helped(rising));
        assert!(!helped(|second| 20_000.0 - 50.0 * f64::from(second)));
    }

    #[test]
    fn a_pair_rests_twice_as_long_after_each_failure_and_is_believed_after_a_success() {
        let (mut trials, trend) = (Trials::default(), Trend { level: 5.0, ..Trend::default() });
        let mut now = at(0);
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            trials.on_cut(CPU, 10.0, 10.0, 8.0, (&trend, false), now, WAIT);
            now = now + WAIT;
            let Some(TrialVerdict::Futile { rest, trial, .. }) = trials.judge(|_| Some(trend), now) else {
                panic!("a constant does not answer")
            };
            assert_eq!((rest, trial.limit), (Duration::from_mins(minutes), 10.0));
            assert!(trials.rests(CPU, now + rest / 2) && !trials.rests(CPU, now + rest));
            now = now + rest;
        }
        trials.on_cut(CPU, 10.0, 10.0, 8.0, (&trend, false), now, WAIT);
        let lower = Trend { level: 3.0, ..trend };
        assert_eq!(trials.judge(|_| Some(lower), now + WAIT), Some(TrialVerdict::Helped));
        assert!(trials.lowest(CPU, false, 8.0) <= 0.0, "no further trial holds it up");
    }

    #[test]
    fn a_trial_goes_on_where_its_signal_has_another_place_and_ends_where_it_has_none() {
        const ELSEWHERE: SignalId = SignalId(1);
        let (mut trials, trend) = (Trials::default(), Trend { level: 5.0, ..Trend::default() });
        trials.on_cut(CPU, 10.0, 10.0, 8.0, (&trend, false), at(0), WAIT);
        assert_eq!(trials.under(|_| None).on_trial(), None);
        let mut trials = trials.under(|id| (id == CPU).then_some(ELSEWHERE));
        assert_eq!(trials.on_trial(), Some(ELSEWHERE));
        let Some(TrialVerdict::Futile { trial, .. }) =
            trials.judge(|id| (id == ELSEWHERE).then_some(trend), at(0) + WAIT)
        else {
            panic!("a constant does not answer")
        };
        assert_eq!((trial.signal, trial.limit), (ELSEWHERE, 10.0), "the cut is given back");
    }

    #[test]
    fn until_it_is_judged_a_signal_lowers_a_limit_by_a_fifth_and_no_other_signal_does() {
        let (mut trials, trend) = (Trials::default(), Trend { level: 5.0, ..Trend::default() });
        assert!((trials.lowest(CPU, false, 10.0) - 8.0).abs() < 1e-12);
        trials.on_cut(CPU, 10.0, 10.0, 9.0, (&trend, false), at(0), WAIT);
        assert!((trials.lowest(CPU, false, 9.0) - 8.0).abs() < 1e-12);
        assert!((trials.lowest(SignalId(1), false, 9.0) - 9.0).abs() < 1e-12);
        assert_eq!(trials.judge(|_| Some(trend), at(1000)), None, "it is not deep enough to be judged");
    }

    #[test]
    fn what_comes_at_once_is_no_growth() {
        let mut trend = Trend::default();
        for (second, reading) in [(0, 0.0), (10, 0.0), (20, 5000.0), (30, 5000.0), (40, 4900.0), (50, 4950.0)]
        {
            trend.observe(reading, at(second));
            assert!(trend.forecast(at(second), Duration::from_secs(180)) <= reading, "after {second} s");
        }
        for second in [60, 70, 80] {
            trend.observe(f64::from(second) * 100.0, at(second));
        }
        assert!(trend.forecast(at(80), Duration::from_secs(180)) > 15_000.0, "{trend:?}");
    }

    #[test]
    fn what_gathers_answers_by_a_share_of_its_growth() {
        // 10,000 and 100 more a second: half the feed, and after 25 s there are 1,250 less than there would be.
        let trend =
            Trend { at: Some(at(0)), level: 1e4, slope_per_s: 100.0, weight: 0.4, ..Trend::default() };
        let after = Trend { level: 1e4 + 25.0 * 85.0, ..trend };
        for (gathers, helped) in [(true, true), (false, false)] {
            let mut trials = Trials::default();
            assert!((trials.lowest(CPU, gathers, 1.0) - if gathers { 0.5 } else { 0.8 }).abs() < 1e-12);
            trials.on_cut(CPU, 4.0, 1.0, 0.5, (&trend, gathers), at(0), WAIT);
            let verdict = trials.judge(|_| Some(after), at(25)).unwrap();
            assert_eq!(verdict == TrialVerdict::Helped, helped, "{verdict:?}");
        }
    }

    #[test]
    fn an_answer_that_is_too_faint_to_tell_is_waited_for_but_not_for_ever() {
        let trend = Trend {
            at: Some(at(0)),
            level: 1e4,
            slope_per_s: 40.0,
            scatter: 1e6,
            weight: 0.4,
            ..Trend::default()
        };
        let after =
            |second: u32, slope_per_s: f64| Trend { level: 1e4 + f64::from(second) * slope_per_s, ..trend };
        let mut trials = Trials::default();
        trials.on_cut(CPU, 4.0, 1.0, 0.5, (&trend, true), at(0), WAIT);
        for second in [25, 50, 75] {
            assert_eq!(trials.judge(|_| Some(after(second, 40.0)), at(second)), None);
            assert_eq!(trials.on_trial(), Some(CPU), "after {second} s");
        }
        assert!(matches!(
            trials.judge(|_| Some(after(100, 40.0)), at(100)),
            Some(TrialVerdict::Futile { .. })
        ));
        trials.on_cut(CPU, 4.0, 1.0, 0.5, (&Trend { scatter: 1e4, ..trend }, true), at(0), WAIT);
        assert_eq!(trials.judge(|_| Some(after(25, 15.0)), at(25)), Some(TrialVerdict::Helped));
    }

    #[test]
    fn a_growth_that_comes_to_its_target_under_a_deep_cut_has_answered() {
        let before =
            Trend { at: Some(at(0)), level: 5e3, slope_per_s: 100.0, weight: 0.4, ..Trend::default() };
        // Deep enough, and slowed by half; not deep enough; not slowed.
        for (new, slope_per_s, is_proven) in [(0.5, 40.0, true), (0.8, 40.0, false), (0.5, 60.0, false)] {
            let mut trials = Trials::default();
            trials.on_cut(CPU, 4.0, 1.0, new, (&before, true), at(0), WAIT);
            trials.on_target(&Trend { slope_per_s, ..before });
            assert_eq!((trials.on_trial(), trials.is_proven(CPU)), (None, is_proven), "{new}, {slope_per_s}");
        }
    }

    #[test]
    fn at_its_floor_a_proven_pair_is_not_taken_for_one_that_does_not_help() {
        let trend = Trend { at: Some(at(0)), level: 50.0, slope_per_s: 0.1, weight: 0.4, ..Trend::default() };
        let same = |second: u32| Trend { level: 50.0 + 0.1 * f64::from(second), ..trend };
        for proven in [true, false] {
            let mut trials = Trials::default();
            if proven {
                trials.on_cut(CPU, 4.0, 1.0, 0.5, (&trend, true), at(0), WAIT);
                trials.on_target(&Trend { slope_per_s: 0.0, ..trend });
            }
            trials.on_cut(CPU, 0.2, 0.2, 0.2, (&trend, true), at(0), WAIT);
            let verdict = trials.judge(|_| Some(same(1000)), at(1000));
            assert_eq!(verdict.is_some(), !proven, "{verdict:?}");
            assert!(trials.is_in_doubt(CPU), "one verdict may be chance");
        }
    }

    #[test]
    fn a_trial_whose_signal_is_lost_ends_without_a_verdict() {
        let (mut trials, trend) = (Trials::default(), Trend { level: 5.0, ..Trend::default() });
        trials.on_cut(CPU, 10.0, 10.0, 8.0, (&trend, false), at(0), WAIT);
        assert_eq!(trials.judge(|_| None, at(60)), None);
        assert_eq!((trials.on_trial(), trials.rests(CPU, at(61))), (None, false));
    }

    proptest! {
        /// However a reading wanders by itself, cuts on it cost less than a tenth of the time.
        #[test]
        fn noise_that_nothing_moves_costs_little(seed in any::<u32>(), spread in 0.0_f64..0.1) {
            let (mut trend, mut trials) = (Trend::default(), Trials::default());
            let (mut limit, mut lost, mut random) = (10.0_f64, 0.0, u64::from(seed) | 1);
            for second in (0..4 * 3600_u32).step_by(5) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let rng = (random >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
                trend.observe(100.0 * (1.0 + spread * rng), at(second));
                match trials.judge(|_| Some(trend), at(second)) {
                    Some(TrialVerdict::Futile { trial, .. }) => limit = limit.max(trial.limit),
                    Some(TrialVerdict::Helped) | None => {}
                }
                if trials.rests(CPU, at(second)) {
                    // Other signals have room: the limit returns.
                    limit = (limit * 1.1).min(10.0);
                } else {
                    let new = (limit * 0.85).max(trials.lowest(CPU, false, limit));
                    if new < limit {
                        trials.on_cut(CPU, limit, limit, new, (&trend, false), at(second), WAIT);
                    }
                    limit = new.max(1.0);
                }
                lost += 1.0 - limit / 10.0;
            }
            prop_assert!(lost / 2880.0 < 0.1, "{lost} of 2880");
        }
    }
}
