//! Where a signal rose before: how soon may a limit come back to that?
//!
//! *The question.* A limit that was cut on a signal of Ray's grows again as soon as the reading is below its target,
//! and faster the lower it is. Where the head saturates sharply (a GCS with one loop answers in a millisecond up to
//! nine tenths, and not at all beyond), there is no reading in between that would slow it down: the limit climbs to
//! the same knee every minute, and each time the head's users feel it before it is cut.
//!
//! *The law.* The knee is where the cut began. For `HOLD` after the last cut the limit comes up to `BELOW` of it and
//! no further. A cut that begins at the same knee once that time is over doubles it, up to `HOLD_MAX`: what was found
//! twice will be found again. One that begins well above it begins anew, for the head has become faster. Doubling is
//! what bounds the cost: of `t` seconds some `log2(t / HOLD)` are spent in overload, where it was a share of all of
//! them. (TCP's CUBIC holds its window below the last loss in the same way: RFC 9438, 4.3.)
//!
//! *What it refuses.* To take a knee for good. The head's need of its own changes, and nothing but trying tells.

use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a limit stays below a knee that was found once ...
const HOLD: Duration = Duration::from_secs(60);
/// ... and at most, after several times.
const HOLD_MAX: Duration = Duration::from_secs(900);
/// So near it comes.
const BELOW: f64 = 0.9;
/// A cut that begins within this factor of a knee begins there.
const SAME: f64 = 1.5;

/// The knee that was found last.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Knee {
    /// What was used of the limit when the signal rose.
    pub at: f64,
    /// Until when the limit stays below.
    pub until: Time,
    /// How long that was from the last cut on.
    pub hold_ns: u64,
}

impl Knee {
    /// A cut began at `from`.
    #[must_use]
    pub fn after(before: Option<Knee>, from: f64, now: Time) -> Knee {
        let (at, hold) = match before {
            // One cut after another is one search, which goes down.
            Some(knee) if now < knee.until => (knee.at.min(from), knee.hold()),
            Some(knee) if from <= knee.at * SAME => (from, (knee.hold() * 2).min(HOLD_MAX)),
            _ => (from, HOLD),
        };
        Knee { at, until: now + hold, hold_ns: u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX) }
    }

    fn hold(self) -> Duration {
        Duration::from_nanos(self.hold_ns)
    }

    /// No higher may the limit grow now; `None`: as high as it likes.
    #[must_use]
    pub fn cap(self, now: Time) -> Option<f64> {
        (now < self.until).then_some(self.at * BELOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn a_knee_that_is_found_again_is_kept_away_from_for_twice_as_long() {
        let mut knee = Knee::after(None, 1.0, at(0));
        assert!((knee.cap(at(59)).unwrap() - 0.9).abs() < 1e-12);
        assert_eq!(knee.cap(at(60)), None);
        let mut hold = 60;
        let mut now = 0;
        for _ in 0..10 {
            now += hold;
            knee = Knee::after(Some(knee), 1.1, at(now));
            hold = (hold * 2).min(900);
            assert_eq!((knee.cap(at(now + hold - 1)).is_some(), knee.cap(at(now + hold))), (true, None));
        }
    }

    #[test]
    fn cuts_in_a_row_are_one_search_and_a_higher_knee_begins_anew() {
        let first = Knee::after(None, 1.0, at(0));
        let lower = Knee::after(Some(first), 0.7, at(10));
        assert_eq!((lower.hold(), lower.until), (HOLD, at(70)));
        assert!((lower.at - 0.7).abs() < 1e-12);
        let doubled = Knee::after(Some(lower), 0.7, at(80));
        assert_eq!(doubled.hold(), HOLD * 2);
        assert_eq!(Knee::after(Some(doubled), 2.0, at(500)).hold(), HOLD);
    }
}
