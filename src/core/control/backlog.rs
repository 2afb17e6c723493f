//! How fast may work be let in that is done only after its answer? (Law 5: each plant gets its law.)
//!
//! *The question.* Ray answers a submission in 36 ms and starts the job later. What its user waits for
//! is the start. The plant between the rate of submissions and the backlog of jobs not started is an
//! *integrator*: the backlog is the sum of what came in less what the head has started.
//!
//! ```text
//! B(t) = B(0) + integral of (rate - drain)                                                (Eq. 1)
//! ```
//!
//! A law that is right for a plant of gain 1 (concurrency to latency) is a second integrator here and
//! swings for ever, whatever its gain.
//!
//! *The target* follows from what was promised. By Little's law a job waits `B / drain` for its start,
//! so `B* = drain * starts_within` is the backlog at which the promise is just kept (Eq. 2): a fast head
//! takes a fan-out of sixty at once, a slow one does not. The drain is *measured*: what was admitted
//! less what the backlog grew by. While there has always been a backlog that is the head's capacity;
//! when the head ran dry it is only the least it can do, and then the configured target stands.
//!
//! *The law* is PI by SIMC's rule for integrating plants (Skogestad 2003, Table 1: `k' = 1`,
//! `tau_c = theta`, so `Kc = 1 / (2 theta)`, `tau_I = 8 theta`), about the measured drain as
//! feed-forward:
//!
//! ```text
//! rate = drain + (B* - B) / (2 theta) + integral of (B* - B) / (16 theta^2)               (Eq. 3)
//! ```
//!
//! Its gain margin is pi = 3.1 on the proportional part, whatever the head: the plant's gain is 1
//! by definition. The integral covers only what the measured drain is wrong by, and is held to half of it.
//!
//! *A head that is not behind* shows no capacity, only the least it can do. What it can do is searched for, as
//! TCP's slow start does: a whole target started within `starts_within` (or between two readings, where they come more
//! seldom), and none of those left waiting for long, earn half as much again, and the rate follows. A step too many is a
//! backlog of half as much more than was just started, and ends with the first reading that shows it.
//!
//! *What it refuses.* To grow on old news: a signal that has gone stale counts as a backlog of at least
//! its target (law 7), which leaves the drain.

use super::law::{self, Observation, Step};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// The drain is measured over the last so many seconds ...
const WINDOW: Duration = Duration::from_secs(60);
/// ... and over no fewer than these: a gauge is refreshed every 10 s.
const SPAN_MIN: Duration = Duration::from_secs(15);
/// Weight of time in the measured drain.
const MEMORY_S: f64 = 60.0;
/// Readings come no more seldom than this; where they do, some were lost.
const SELDOM: Duration = Duration::from_secs(60);
/// The target never falls below so many jobs: a backlog of one or two is a reading's rounding.
const TARGET_MIN: f64 = 4.0;
/// ... nor rises above so many, whatever a head is thought to start.
const TARGET_MAX: f64 = 1000.0;
/// The integral is at most this share of the drain.
const INTEGRAL_MAX: f64 = 0.5;
/// A head that is not behind is asked for so much more at a step (twice as much once in a storm left forty jobs where 25
/// are begun in time).
const SEARCH: f64 = 1.5;
/// It is not behind while a job that joins waits for less than this share of what was promised.
const DRY: f64 = 0.25;

/// What the law sees of a backlog.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Backlogged {
    /// How many there are.
    pub reading: f64,
    /// How many there may be, Eq. 2.
    pub target: f64,
    /// How many the head starts per second.
    pub drain_per_s: f64,
}

/// What the law remembers.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The third term of Eq. 3, per second.
    pub integral: f64,
}

/// The parts of a proposal, per second.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// What the head starts.
    pub drain: f64,
    /// To use the room there is, or to make room.
    pub proportional: f64,
    /// What the drain was found to be wrong by.
    pub integral: f64,
}

/// The next rate, or `None` without information.
pub(super) fn step(state: &mut State, seen: &Observation) -> Option<Step> {
    let Backlogged { reading, target, drain_per_s } = seen.backlog?;
    let theta = seen.dead_time.as_secs_f64().max(1.0);
    let room = target - reading;
    let most = INTEGRAL_MAX * drain_per_s;
    let grown = state.integral + room * seen.period.as_secs_f64() / (16.0 * theta * theta);
    state.integral = grown.clamp(-most, most);
    let terms = Terms { drain: drain_per_s, proportional: room / (2.0 * theta), integral: state.integral };
    let rate = (terms.drain + terms.proportional + terms.integral).max(0.0);
    Some(Step { limit: rate, terms: law::Terms::Backlog(terms) })
}

/// The measured drain of a backlog.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Drain {
    /// Totals admitted, by time.
    admitted: VecDeque<(Time, u64)>,
    /// Readings: when they were true at the latest, the backlog, and what had been admitted when they were true.
    readings: VecDeque<(Time, f64, u64)>,
    per_s: Option<f64>,
    /// There has been a backlog throughout once: it is the head's capacity, not the least of it.
    is_capacity: bool,
    /// The target that a head which is not behind has earned.
    earned: f64,
    /// Since when, and since which total, it is watched for the next one.
    search: (Time, u64),
}

impl Drain {
    /// Of a head that was seen to start so many per second, when rayguard ran last.
    #[must_use]
    pub(crate) fn known_to_start(per_s: Option<f64>) -> Drain {
        Drain { per_s: per_s.filter(|per_s| (0.0..=TARGET_MAX).contains(per_s)), ..Drain::default() }
    }

    /// Notes how many have been admitted by `now`.
    pub(crate) fn on_admitted(&mut self, total: u64, now: Time) {
        if self.admitted.back().is_some_and(|(at, _)| now.since(*at) < Duration::from_secs(1)) {
            return;
        }
        self.admitted.push_back((now, total));
        while self.admitted.len() > 2 && now.since(self.admitted[1].0) > WINDOW * 2 {
            self.admitted.pop_front();
        }
    }

    /// Whether a reading that was true at `at` is newer than the last.
    pub(crate) fn is_news(&self, at: Time) -> bool {
        self.readings.back().is_none_or(|(last, ..)| at > *last)
    }

    /// Takes in a new reading, true at `at` at the latest and `age` before at the earliest, one of those that come each
    /// `interval`, under a target that follows from the promise to start within `starts_within`; `is_reached`: as many
    /// as it allows have been admitted.
    pub(crate) fn on_reading(
        &mut self,
        backlog: f64,
        (at, age, interval): (Time, Duration, Duration),
        (target, starts_within): (f64, Duration),
        is_reached: bool,
    ) {
        // What was admitted since may or may not be in it: half of the time is the best guess.
        let (started, admitted) = (self.admitted_by(at - age), self.admitted_by(at - age / 2));
        self.readings.push_back((at, backlog, admitted));
        while self.readings.len() > 2 && at.since(self.readings[1].0) > WINDOW {
            self.readings.pop_front();
        }
        let first = self.readings[0];
        let span = at.since(first.0);
        // What came while the first reading was being read may have been in it.
        let at_least = started_per_s((first.0, first.1, self.admitted_by(first.0)), (at, backlog, started));
        // A job that joins a backlog below this waits for a small part of what was promised.
        let dry_below = (at_least * starts_within.as_secs_f64() * DRY).max(1.0);
        // Readings that come seldom say seldom that it is not behind.
        let soon = starts_within.max(interval.min(SELDOM) * 2);
        self.earn(backlog < dry_below, (at, started), (target, soon), is_reached);
        if span < SPAN_MIN {
            return;
        }
        if let Some(capacity) = self.too_slow(backlog, (at, age, admitted), dry_below, starts_within) {
            self.per_s = Some(self.per_s.map_or(capacity, |known| known.min(capacity)));
            self.is_capacity = true;
            return;
        }
        let is_dry = self.readings.iter().any(|(_, backlog, _)| *backlog < dry_below);
        // The least it can have been, where it is only that.
        let measured = if is_dry { at_least } else { started_per_s(first, (at, backlog, admitted)) };
        self.per_s = Some(match self.per_s {
            Some(known) if is_dry => known.max(measured),
            Some(known) if self.is_capacity => {
                let passed = self.readings.iter().rev().nth(1).map_or(span, |(last, ..)| at.since(*last));
                known + (1.0 - (-passed.as_secs_f64() / MEMORY_S).exp()) * (measured - known)
            }
            _ => measured,
        });
        self.is_capacity |= !is_dry;
    }

    /// What the head has started per second since it was last not behind, if those who wait now will wait longer
    /// than was promised: a head that has become slower is known before the window has forgotten the faster one.
    /// It had nothing to start until something came: a burst upon an idle head says nothing of it yet.
    fn too_slow(
        &self,
        backlog: f64,
        (at, age, admitted): (Time, Duration, u64),
        dry_below: f64,
        starts_within: Duration,
    ) -> Option<f64> {
        let (dry_at, dry, before) =
            *self.readings.iter().rev().find(|(_, backlog, _)| *backlog < dry_below)?;
        let (came_at, _) = *self.admitted.iter().find(|(_, total)| *total > before)?;
        // The reading that shows what came at a moment is true half its age later, at the best guess.
        let since = dry_at.max(came_at + age / 2);
        let per_s = started_per_s((since, dry, before), (at, backlog, admitted));
        (at.since(since) >= SPAN_MIN && backlog > per_s * starts_within.as_secs_f64()).then_some(per_s)
    }

    /// A head that starts a whole target within `soon`, and is not behind, earns more.
    fn earn(
        &mut self,
        is_dry: bool,
        (at, started): (Time, u64),
        (target, soon): (f64, Duration),
        is_reached: bool,
    ) {
        let began = &mut self.search;
        if !is_dry {
            (self.earned, *began) = (0.0, (at, started));
        } else if at.since(began.0) > soon {
            *began = (at, started);
        } else if is_reached && started.saturating_sub(began.1) as f64 >= target {
            (self.earned, *began) = (target * SEARCH, (at, started));
        }
    }

    /// How many the head starts per second: what was measured, else what may be assumed of a head that has
    /// never been behind, under a limit of `limit` that is reached and a backlog of `filled` times its target.
    #[must_use]
    pub(crate) fn assumed(&self, initial: f64, limit: f64, filled: f64) -> f64 {
        match self.per_s {
            Some(known) if self.is_capacity => known,
            least => {
                let least = least.map_or(initial, |least| least.max(initial));
                if filled < DRY { least.max(limit * SEARCH) } else { least }
            }
        }
    }

    /// How many the head starts per second at the least, 0 while nothing is known.
    #[must_use]
    pub(crate) fn least(&self) -> f64 {
        self.per_s.unwrap_or(0.0)
    }

    /// The measured capacity; `None` until there has been a backlog throughout.
    #[must_use]
    pub fn capacity(&self) -> Option<f64> {
        self.per_s.filter(|_| self.is_capacity)
    }

    /// How many may wait for their start so that each starts within `starts_within`, Eq. 2.
    #[must_use]
    pub fn target(&self, starts_within: Duration, configured: f64) -> f64 {
        let kept = self.per_s.map(|per_s| per_s * starts_within.as_secs_f64());
        match kept {
            Some(kept) if self.is_capacity => {
                kept.max(self.earned).clamp(TARGET_MIN.min(configured), TARGET_MAX)
            }
            kept => kept.unwrap_or(configured).max(self.earned).clamp(configured, TARGET_MAX.max(configured)),
        }
    }

    fn admitted_by(&self, at: Time) -> u64 {
        let before = self.admitted.iter().rev().find(|(then, _)| *then <= at);
        before.or(self.admitted.front()).map_or(0, |(_, total)| *total)
    }
}

/// How many were started per second from one reading to another: what came less what the backlog grew by.
fn started_per_s(from: (Time, f64, u64), to: (Time, f64, u64)) -> f64 {
    let came = to.2.saturating_sub(from.2) as f64;
    ((came + from.1 - to.1) / to.0.since(from.0).as_secs_f64().max(1.0)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::regulator::Regulator;
    use crate::policy::{Bounds, Control};
    use proptest::prelude::*;

    /// Ray's, of its gauges.
    const REFRESH: Duration = Duration::from_secs(10);

    const BOUNDS: Bounds = Bounds { initial: 4.0, min: 0.2, max: 64.0 };

    /// A head that starts `drain(second)` jobs a second, a gauge refreshed every 10 s, a scrape each
    /// `scrape` seconds and submitters who always want more: the backlog at each second.
    fn run(drain: impl Fn(u32) -> f64, scrape: u32, length: u32) -> Vec<f64> {
        let mut regulator = Regulator::of_backlog(BOUNDS, &Control::SHIPPED);
        let (mut measured, mut rate) = (Drain::default(), BOUNDS.initial);
        let (mut backlog, mut published, mut admitted) = (0.0_f64, 0.0, 0.0_f64);
        let mut seen = Vec::new();
        for second in 0..length {
            let now = Time::ZERO + Duration::from_secs(1) * second;
            admitted += rate;
            backlog = (backlog + rate - drain(second)).max(0.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
            measured.on_admitted(admitted as u64, now);
            if second % 10 == 0 {
                published = backlog.floor();
            }
            if second % scrape == 3 {
                let target = measured.target(Duration::from_secs(30), 20.0);
                measured.on_reading(
                    published,
                    (now, REFRESH, REFRESH.max(Duration::from_secs(1) * scrape)),
                    (target, Duration::from_secs(30)),
                    false,
                );
                let observation = Observation {
                    period: Duration::from_secs(u64::from(scrape.max(10))),
                    dead_time: Duration::from_secs(u64::from(5 + 5 + scrape.max(10) / 2)),
                    backlog: Some(Backlogged {
                        reading: published,
                        target: measured.target(Duration::from_secs(30), 20.0),
                        drain_per_s: measured.assumed(BOUNDS.initial, rate, published / 20.0),
                    }),
                    ..Observation::nothing(now)
                };
                rate = regulator.step(rate, &observation).new;
            }
            seen.push(backlog);
        }
        seen
    }

    #[test]
    fn a_rate_settles_at_the_drain_with_the_backlog_at_its_target() {
        for (drain, scrape) in [(0.9, 5), (0.9, 15), (0.9, 30), (5.0, 5), (20.0, 5)] {
            let seen = run(|_| drain, scrape, 3600);
            let late = &seen[1200..];
            let (low, high) = late.iter().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
            let target = drain * 30.0;
            assert!(
                low > 0.6 * target && high < 1.4 * target,
                "{drain}/s, a scrape in {scrape} s: {low}..{high} about {target}"
            );
        }
    }

    #[test]
    fn a_head_that_becomes_four_times_slower_or_faster_gets_its_new_target() {
        for (before, after) in [(4.0, 1.0), (1.0, 4.0)] {
            let seen = run(|second| if second < 1200 { before } else { after }, 5, 3600);
            let late = &seen[2400..];
            let mean = late.iter().sum::<f64>() / late.len() as f64;
            assert!((mean / (after * 30.0) - 1.0).abs() < 0.3, "{before} -> {after}: {mean}");
        }
    }

    #[test]
    fn an_idle_head_is_not_taken_for_a_slow_one() {
        let mut drain = Drain::default();
        for second in 0..600_u32 {
            let now = Time::ZERO + Duration::from_secs(1) * second;
            drain.on_admitted(u64::from(second / 10), now);
            if second % 5 == 0 {
                drain.on_reading(0.0, (now, REFRESH, REFRESH), (20.0, Duration::from_secs(30)), false);
            }
        }
        assert_eq!((drain.assumed(4.0, 4.0, 1.0), drain.capacity()), (4.0, None));
        assert!((drain.target(Duration::from_secs(30), 20.0) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn a_burst_upon_an_idle_head_is_not_taken_for_a_head_that_starts_nothing() {
        // Idle for a quarter of an hour, scrapes lost, then sixty jobs: the first reading that shows them is older than
        // what has been started of them.
        let mut drain = Drain::default();
        let promise = (20.0, Duration::from_secs(30));
        let at = |second: u64| Time::ZERO + Duration::from_secs(second);
        for second in 0..=900 {
            drain.on_admitted(if second < 900 { 0 } else { 20 }, at(second));
            if second % 5 == 0 && second < 885 {
                drain.on_reading(0.0, (at(second), REFRESH, REFRESH), promise, false);
            }
        }
        drain.on_reading(18.0, (at(905), REFRESH, REFRESH), promise, true);
        assert_eq!(drain.capacity(), None);
        assert!(drain.target(promise.1, promise.0) >= 20.0);
    }

    proptest! {
        /// Whatever is read, the rate is what the head starts, give or take what the room allows.
        #[test]
        fn a_full_backlog_leaves_no_more_than_the_drain_and_its_doubt(
            readings in prop::collection::vec(0.0_f64..500.0, 1..100), drain in 0.1_f64..20.0,
        ) {
            let mut state = State::default();
            for reading in readings {
                let observation = Observation {
                    period: Duration::from_secs(10),
                    dead_time: Duration::from_secs(15),
                    backlog: Some(Backlogged { reading, target: 30.0 * drain, drain_per_s: drain }),
                    ..Observation::nothing(Time::ZERO)
                };
                let rate = step(&mut state, &observation).unwrap().limit;
                prop_assert!(rate.is_finite() && rate >= 0.0);
                if reading >= 30.0 * drain {
                    prop_assert!(rate <= drain * (1.0 + INTEGRAL_MAX) + 1e-9);
                }
            }
        }
    }
}
