//! May a limit still be moved by this signal?
//!
//! One state machine per signal, driven by readings, by their absence, and by time:
//!
//! ```text
//!            reading                 too old
//! Waiting ------------> Fresh <----------------> Stale
//!    |                        a newer reading      ^
//!    +---------------------------------------------+
//!              nothing within `stale_after`
//! ```
//!
//! The law: a signal is fresh as long as its newest *information* is no older than
//! `stale_after`. A reading that only repeats an old one (no higher `fresh`, no later time) is no
//! information, so a frozen exporter ages like a dead one; what it answers is remembered as
//! the reason. One failed scrape makes nothing stale: age does. That keeps a source that
//! fails now and then from shaking the limits, and bounds how long a lie can last.
//!
//! Time. `now` that goes back is taken as the latest time seen; a reading from the future is
//! dated now; a reading older than the one before it brings nothing. Every change of state is
//! returned as a value, for the adjustment log and the alerts.

use crate::policy::SignalId;
use crate::signal::reading::{Missing, Reading};
use crate::time::Time;
use std::fmt;
use std::time::Duration;

/// How far a signal may be trusted.
#[derive(Clone, PartialEq, Debug)]
pub enum FreshnessState {
    /// Never seen yet.
    Waiting,
    /// Seen, and young enough.
    Fresh,
    /// Too old, or never seen in time.
    Stale {
        /// When it became so.
        since: Time,
        /// What was last heard instead of news.
        why: Why,
    },
}

/// Why a signal is stale.
#[derive(Clone, PartialEq, Debug)]
pub enum Why {
    /// Nothing was heard at all, neither a reading nor a failure.
    Silent,
    /// The source answers, and says the same as long ago.
    Frozen,
    /// The source fails, or what it says cannot be used.
    Missing(Missing),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Silent => f.write_str("nothing has been heard from the source"),
            Why::Frozen => {
                f.write_str("the source answers, but its values no longer change: Ray's agent there may hang")
            }
            Why::Missing(missing) => missing.fmt(f),
        }
    }
}

/// A change of state.
#[derive(Clone, PartialEq, Debug)]
pub struct Transition {
    /// Whose.
    pub signal: SignalId,
    /// Before.
    pub from: FreshnessState,
    /// After.
    pub to: FreshnessState,
    /// When.
    pub at: Time,
    /// Age of the newest information, if there ever was any.
    pub age: Option<Duration>,
}

/// The state of one signal.
#[derive(Clone, Debug)]
pub struct Freshness {
    signal: SignalId,
    stale_after: Duration,
    state: FreshnessState,
    began: Time,
    latest: Time,
    newest: Option<Newest>,
    heard: Option<Why>,
}

#[derive(Clone, Copy, Debug)]
struct Newest {
    at: Time,
    fresh: u64,
}

impl Freshness {
    /// A signal not yet seen, from `now` on.
    pub fn new(signal: SignalId, stale_after: Duration, now: Time) -> Freshness {
        let state = FreshnessState::Waiting;
        Freshness { signal, stale_after, state, began: now, latest: now, newest: None, heard: None }
    }

    /// The same under another number.
    #[must_use]
    pub(crate) fn renumbered(&self, signal: SignalId) -> Freshness {
        Freshness { signal, ..self.clone() }
    }

    /// Takes in a reading.
    pub(crate) fn on_reading(&mut self, reading: &Reading, now: Time) -> Option<Transition> {
        self.pass(now);
        let at = reading.at.min(self.latest);
        match self.newest {
            Some(newest) if at < newest.at || (at == newest.at && reading.fresh == newest.fresh) => {
                self.heard = Some(Why::Frozen);
            }
            _ => {
                self.newest = Some(Newest { at, fresh: reading.fresh });
                self.heard = None;
            }
        }
        self.judge()
    }

    /// Takes in that there is no reading, and why.
    pub(crate) fn on_missing(&mut self, missing: &Missing, now: Time) -> Option<Transition> {
        self.pass(now);
        self.heard = Some(Why::Missing(missing.clone()));
        self.judge()
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Time) -> Option<Transition> {
        self.pass(now);
        self.judge()
    }

    /// The state as of the last call.
    pub fn state(&self) -> &FreshnessState {
        &self.state
    }

    /// The age of the newest information; none when there never was any.
    pub fn age(&self, now: Time) -> Option<Duration> {
        self.newest.map(|newest| now.max(self.latest).since(newest.at))
    }

    fn pass(&mut self, now: Time) {
        self.latest = self.latest.max(now);
    }

    fn judge(&mut self) -> Option<Transition> {
        let since = self.newest.map_or(self.began, |newest| newest.at);
        let is_old = self.latest.since(since) > self.stale_after;
        let to = match (&self.state, is_old) {
            (FreshnessState::Waiting, false) if self.newest.is_none() => return None,
            (FreshnessState::Fresh, false) | (FreshnessState::Stale { .. }, true) => return None,
            (_, false) => FreshnessState::Fresh,
            (_, true) => {
                FreshnessState::Stale { since: self.latest, why: self.heard.clone().unwrap_or(Why::Silent) }
            }
        };
        let from = std::mem::replace(&mut self.state, to.clone());
        Some(Transition { signal: self.signal, from, to, at: self.latest, age: self.age(self.latest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Time {
        Time::ZERO + SECOND * seconds
    }

    fn reading(seconds: u32, fresh: u64) -> Reading {
        Reading {
            signal: SignalId(3),
            value: 1.0,
            at: at(seconds),
            fresh,
            resolution: 1.0,
            source: "t".into(),
        }
    }

    fn signal() -> Freshness {
        Freshness::new(SignalId(3), SECOND * 10, at(0))
    }

    fn missing() -> Missing {
        Missing::Unreachable { target: "t".into(), problem: "refused".into() }
    }

    #[test]
    fn it_waits_for_the_first_reading_and_is_fresh_from_then_on() {
        let mut signal = signal();
        assert_eq!(signal.tick(at(5)), None);
        assert_eq!(*signal.state(), FreshnessState::Waiting);
        let change = signal.on_reading(&reading(6, 1), at(6)).unwrap();
        assert_eq!((change.from, change.to), (FreshnessState::Waiting, FreshnessState::Fresh));
        assert_eq!(signal.on_reading(&reading(8, 2), at(8)), None, "no change, nothing to report");
        assert_eq!(signal.age(at(9)), Some(SECOND));
    }

    #[test]
    fn a_signal_that_is_never_found_goes_stale_and_says_what_was_missing() {
        let mut signal = signal();
        assert_eq!(signal.on_missing(&missing(), at(2)), None);
        let change = signal.tick(at(11)).unwrap();
        assert_eq!(change.to, FreshnessState::Stale { since: at(11), why: Why::Missing(missing()) });
        assert_eq!(change.age, None);
        assert_eq!(signal.tick(at(12)), None, "reported once");
    }

    #[test]
    fn one_failed_scrape_does_not_make_a_young_signal_stale() {
        let mut signal = signal();
        signal.on_reading(&reading(1, 1), at(1));
        assert_eq!(signal.on_missing(&missing(), at(6)), None);
        assert_eq!(*signal.state(), FreshnessState::Fresh);
        assert_eq!(signal.on_reading(&reading(11, 2), at(11)), None);
        assert_eq!(*signal.state(), FreshnessState::Fresh);
    }

    #[test]
    fn a_source_that_repeats_itself_ages_like_a_dead_one() {
        let mut signal = signal();
        signal.on_reading(&reading(1, 1), at(1));
        assert_eq!(signal.on_reading(&reading(1, 1), at(6)), None);
        let change = signal.on_reading(&reading(1, 1), at(12)).unwrap();
        assert_eq!(change.to, FreshnessState::Stale { since: at(12), why: Why::Frozen });
        assert_eq!(change.age, Some(SECOND * 11));
        let change = signal.on_reading(&reading(13, 2), at(13)).unwrap();
        assert_eq!(change.to, FreshnessState::Fresh);
    }

    #[test]
    fn a_silent_source_is_called_silent() {
        let mut signal = signal();
        signal.on_reading(&reading(1, 1), at(1));
        assert_eq!(
            signal.tick(at(20)).unwrap().to,
            FreshnessState::Stale { since: at(20), why: Why::Silent }
        );
    }

    #[test]
    fn time_that_goes_back_makes_nothing_younger() {
        let mut signal = signal();
        signal.on_reading(&reading(50, 1), at(50));
        assert_eq!(signal.tick(at(61)).unwrap().at, at(61));
        assert_eq!(signal.tick(at(3)), None, "still stale");
        assert_eq!(signal.on_reading(&reading(3, 2), at(3)), None, "an older reading is no news");
        assert_eq!(signal.age(at(3)), Some(SECOND * 11));
    }

    #[test]
    fn a_reading_from_the_future_is_dated_now() {
        let mut signal = signal();
        signal.on_reading(&reading(9_000, 1), at(1));
        assert_eq!(*signal.state(), FreshnessState::Fresh);
        assert!(signal.tick(at(12)).is_some(), "it goes stale like any other");
    }

    proptest! {
        #[test]
        fn whatever_comes_fresh_means_news_within_the_bound(steps in proptest::collection::vec((0u8..3, 0u32..100, 0u32..100, 0u64..20), 1..60)) {
            let mut signal = signal();
            let mut state = FreshnessState::Waiting;
            for (kind, now, stamp, fresh) in steps {
                let change = match kind {
                    0 => signal.on_reading(&reading(stamp, fresh), at(now)),
                    1 => signal.on_missing(&missing(), at(now)),
                    _ => signal.tick(at(now)),
                };
                if let Some(change) = change {
                    prop_assert_eq!(&change.from, &state, "changes form a chain");
                    prop_assert_ne!(&change.from, &change.to);
                    state = change.to;
                }
                prop_assert_eq!(&state, signal.state());
                if *signal.state() == FreshnessState::Fresh {
                    prop_assert!(signal.age(at(now)).unwrap() <= SECOND * 10);
                }
            }
        }
    }
}
