//! A limit below one request: a share of its module's time.
//!
//! Where one request fills its process for as long as it lasts, one at a time is no limit at all: there is always
//! one, and the process is never free. What is left to lower is time. By Little's law a limit of `L` requests in
//! flight is a mean of `L`, and so below one it is held by a pause: after a request that took `t` of the module's
//! time the next may begin `t * (1 / L - 1)` later, so that the class has the module for the share `L` of the time
//! (law 6). Whoever lowers the limit so gives the rest of the head its cores back.
//!
//! *Dear requests leave gaps.* The same holds one request back for the sake of others. Who comes to a process while
//! a request of `t` is being worked on waits `t / 2` in the mean, and meets one in the share `L` of all cases. A list
//! of twenty thousand jobs takes three seconds of the process that a stop, or a poll that gives up after two, must pass
//! as well. So while anyone asks the process for what operators need (a limited class of priority 8 or 9), a class of less urgency has no more of its time
//! than makes such a request wait [`GENTLE`] in the mean: `L = 2 * GENTLE / t`. And where `t` is more than such clients
//! have patience for ([`PATIENCE`]), who comes in the first `t - PATIENCE` of it gives up: no more than one in a hundred
//! may, `L (t - PATIENCE) / t = GIVE_UP`. Nobody else notices: below 0.3 s `L` is 1, and where no urgent request has
//! come for [`URGENT_FOR`] nothing is held back. What `t` is, see `AdmissionController::finish`: a list takes three turns
//! on its loop, and whoever is let through between them was billed for the turn before.
//!
//! The pause is worked out anew whenever somebody asks, from the limit of that moment: a limit that is raised
//! shortens the pause under way.

use super::sync::{AtomicU64, Ordering};
use crate::time::{Time, duration_from_secs};
use std::time::Duration;

/// No pause is longer: what was dear once may have become cheap.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What an urgent request may wait for those of one less urgent class, in the mean.
const GENTLE: Duration = Duration::from_millis(150);
/// So long a poll waits for its answer: KubeRay's operator gives up after two seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The share of them that may give up on behalf of one less urgent class.
const GIVE_UP: f64 = 0.01;
/// One that came so long ago will be followed by another.
pub(super) const URGENT_FOR: Duration = Duration::from_secs(10);

/// When the last request of a class ended, and what it took.
#[derive(Debug, Default)]
pub(super) struct Pause {
    ended: AtomicU64,
    took_us: AtomicU64,
}

impl Pause {
    /// A request of the class has ended that took so much of its module's time.
    pub(super) fn begin(&self, took: Duration, now: Time) {
        self.took_us.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.ended.store(now.0, Ordering::Relaxed);
    }

    /// Whether it is over under this limit, or under what is left beside `urgent` requests.
    #[must_use]
    pub(super) fn is_over(&self, limit: f64, urgent: bool, now: Time) -> bool {
        let took = self.took_us.load(Ordering::Relaxed) as f64 / 1e6;
        let limit = if urgent { limit.min(share_beside_urgent(took)) } else { limit };
        if limit >= 1.0 {
            return true;
        }
        let pause = duration_from_secs(took * (1.0 / limit - 1.0)).min(PAUSE_MAX);
        now.since(Time(self.ended.load(Ordering::Relaxed))) >= pause
    }
}

/// The share of its module's time that a class may have whose requests take so many seconds of it.
fn share_beside_urgent(took: f64) -> f64 {
    let by_mean = 2.0 * GENTLE.as_secs_f64() / took.max(f64::MIN_POSITIVE);
    let beyond = took - PATIENCE.as_secs_f64();
    if beyond > 0.0 { by_mean.min(GIVE_UP * took / beyond) } else { by_mean }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    #[test]
    fn who_may_have_a_quarter_of_the_time_pauses_three_times_as_long_as_it_took() {
        let pause = Pause::default();
        assert!(pause.is_over(0.25, false, at(0.0)), "nothing has ended yet");
        pause.begin(Duration::from_millis(200), at(1.0));
        assert!(!pause.is_over(0.25, false, at(1.59)));
        assert!(pause.is_over(0.25, false, at(1.61)));
        assert!(pause.is_over(0.5, false, at(1.21)), "a limit that is raised shortens it");
        assert!(pause.is_over(1.0, false, at(1.0)) && pause.is_over(8.0, false, at(1.0)));
    }

    #[test]
    fn dear_requests_leave_gaps_while_anyone_asks_for_what_is_urgent() {
        let pause = Pause::default();
        pause.begin(Duration::from_secs(1), at(10.0));
        assert!(pause.is_over(8.0, false, at(10.0)), "nobody needs the gap");
        assert!(!pause.is_over(8.0, true, at(12.3)), "three tenths of the time: 150 ms in the mean");
        assert!(pause.is_over(8.0, true, at(12.4)));
        pause.begin(Duration::from_millis(290), at(20.0));
        assert!(pause.is_over(8.0, true, at(20.0)), "who is quick is not held back");
    }

    #[test]
    fn of_those_who_give_up_after_two_seconds_one_in_a_hundred_does() {
        for took in [2.5, 3.2, 5.0, 20.0] {
            let give_up = share_beside_urgent(took) * (took - 2.0) / took;
            assert!(give_up <= 0.01 + 1e-9, "{took} s: {give_up}");
        }
        assert!((share_beside_urgent(2.0) - 0.15).abs() < 1e-9, "150 ms in the mean, where nobody gives up");
        assert!(share_beside_urgent(0.0) > 1.0 && share_beside_urgent(0.3) >= 1.0);
    }

    #[test]
    fn no_pause_lasts_for_ever() {
        let pause = Pause::default();
        pause.begin(Duration::from_secs(60), at(0.0));
        assert!(!pause.is_over(0.1, false, at(299.0)) && pause.is_over(0.1, false, at(300.0)));
    }

    proptest! {
        /// Requests one after another, each as soon as it may: the share of time is the limit.
        #[test]
        fn the_share_of_time_is_the_limit(limit in 0.05_f64..0.99, took in prop::collection::vec(1_u64..500, 50..200)) {
            let pause = Pause::default();
            let (mut now, mut busy) = (0.0, 0.0);
            for took in took {
                while !pause.is_over(limit, false, at(now)) {
                    now += 1e-4;
                }
                let took = took as f64 / 1e3;
                (now, busy) = (now + took, busy + took);
                pause.begin(Duration::from_secs_f64(took), at(now));
            }
            while !pause.is_over(limit, false, at(now)) {
                now += 1e-4;
            }
            prop_assert!((busy / now - limit).abs() < 0.02 * limit + 0.01, "{} of {limit}", busy / now);
        }
    }
}
