//! A limit below one request: a share of its module's time.
//!
//! Where one request fills its process for as long as it lasts, one at a time is no limit at all: there is always
//! one, and the process is never free. What is left to lower is time. By Little's law a limit of `L` requests in
//! flight is a mean of `L`, and so below one it is held by a pause: after a request that took `t` of the module's
//! time the next may begin `t * (1 / L - 1)` later, so that the class has the module for the share `L` of the time
//! (law 6). A lower limit thus gives the rest of the head its cores back.
//!
//! *Dear requests leave gaps.* The same holds one request back for the sake of others. A request that comes to a
//! process while it works on one of `t` waits `t / 2` in the mean, and meets one in the share `L` of all cases. A list
//! of twenty thousand jobs takes three seconds of the process that a stop, or a poll that gives up after two, must pass
//! as well. So while anyone asks the process for what operators need (a limited class of priority 8 or 9), a class of
//! less urgency has no more of its time than makes such a request wait [`GENTLE`] in the mean: `L = 2 * GENTLE / t`.
//! And where `t` is more than such clients have patience for ([`PATIENCE`]), one that comes in the first `t - PATIENCE`
//! of it gives up: no more than one in a hundred may, `L (t - PATIENCE) / t = GIVE_UP`. No other request notices: below
//! 0.3 s `L` is 1, and where no urgent request has come for [`URGENT_FOR`] nothing is held back. What `t` is, see
//! `AdmissionController::finish`: a list takes three turns on its loop, and the requests that it lets through between
//! them were billed for the turn before.
//!
//! *Known clients do not wait for what strangers made.* A limit below one answers a flood, and clients that were here
//! before the flood need not pay for it (`history.rs`): a request with a claim begins once the pause of the last
//! request with a claim is over, and what is left of the pauses of strangers is added to the next. So known clients
//! have the share `L` at most, as if there were no strangers, and a stranger begins only when all that went before has
//! been paused for. The gaps that dear requests leave are for others, and hold both back.
//!
//! The pause is worked out anew whenever somebody asks, from the limit of that moment: a limit that is raised
//! shortens the pause under way.

use super::sync::{AtomicBool, AtomicU64, Ordering};
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

/// When the last request of a class ended, what it took, and what it left to be paused for of those before.
#[derive(Debug, Default)]
pub(super) struct Pause {
    ended: AtomicU64,
    took_us: AtomicU64,
    /// Time of the module for which no pause has been made yet, beside `took_us`.
    owed_us: AtomicU64,
    /// The last request was a stranger's and had waited.
    of_stranger: AtomicBool,
}

/// What asks whether a pause is over.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Asks {
    /// The class's limit.
    pub(super) limit: f64,
    /// Urgent requests of others need the gap.
    pub(super) urgent: bool,
    /// It has a claim.
    pub(super) known: bool,
}

impl Pause {
    /// A request of the class has ended that took so much of its module's time.
    pub(super) fn begin(&self, took: Duration, of_stranger: bool, now: Time) {
        keep(&self.took_us, took);
        self.of_stranger.store(of_stranger, Ordering::Relaxed);
        self.ended.store(now.0, Ordering::Relaxed);
    }

    /// Whether it is over for this request.
    pub(super) fn is_over(&self, asks: Asks, now: Time) -> bool {
        // Most limits are above one: then nothing else is looked at.
        let of_class = || match (asks.known, self.of_stranger.load(Ordering::Relaxed)) {
            (false, _) => self.all(),
            (true, false) => seconds(&self.took_us),
            (true, true) => 0.0,
        };
        let for_class = asks.limit >= 1.0 || self.has_paused(of_class(), asks.limit, now);
        let for_urgent = || {
            let took = seconds(&self.took_us);
            self.has_paused(took, share_beside_urgent(took), now)
        };
        for_class && (!asks.urgent || for_urgent())
    }

    /// One begins under this limit: what has not been paused for by now is owed; nothing, once a stranger might begin.
    pub(super) fn end(&self, limit: f64, now: Time) {
        if limit >= 1.0 && self.owed_us.load(Ordering::Relaxed) == 0 {
            return;
        }
        let all = self.all();
        let owed = if self.has_paused(all, limit, now) {
            0.0
        } else {
            all - self.since_ended(now).as_secs_f64() / (1.0 / limit - 1.0)
        };
        keep(&self.owed_us, duration_from_secs(owed));
    }

    /// What is to be paused for, in seconds of the module's time.
    fn all(&self) -> f64 {
        seconds(&self.took_us) + seconds(&self.owed_us)
    }

    fn has_paused(&self, took: f64, limit: f64, now: Time) -> bool {
        limit >= 1.0 || self.since_ended(now) >= duration_from_secs(took * (1.0 / limit - 1.0)).min(PAUSE_MAX)
    }

    fn since_ended(&self, now: Time) -> Duration {
        now.since(Time(self.ended.load(Ordering::Relaxed)))
    }
}

fn keep(us: &AtomicU64, length: Duration) {
    us.store(u64::try_from(length.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn seconds(us: &AtomicU64) -> f64 {
    us.load(Ordering::Relaxed) as f64 / 1e6
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

    fn is_over(pause: &Pause, limit: f64, urgent: bool, now: Time) -> bool {
        pause.is_over(Asks { limit, urgent, known: false }, now)
    }

    #[test]
    fn who_may_have_a_quarter_of_the_time_pauses_three_times_as_long_as_it_took() {
        let pause = Pause::default();
        assert!(is_over(&pause, 0.25, false, at(0.0)), "nothing has ended yet");
        pause.begin(Duration::from_millis(200), true, at(1.0));
        assert!(!is_over(&pause, 0.25, false, at(1.59)));
        assert!(is_over(&pause, 0.25, false, at(1.61)));
        assert!(is_over(&pause, 0.5, false, at(1.21)), "a limit that is raised shortens it");
        assert!(is_over(&pause, 1.0, false, at(1.0)) && is_over(&pause, 8.0, false, at(1.0)));
    }

    #[test]
    fn dear_requests_leave_gaps_while_anyone_asks_for_what_is_urgent() {
        let pause = Pause::default();
        pause.begin(Duration::from_secs(1), true, at(10.0));
        assert!(is_over(&pause, 8.0, false, at(10.0)), "no urgent request needs the gap");
        assert!(!is_over(&pause, 8.0, true, at(12.3)), "three tenths of the time: 150 ms in the mean");
        assert!(is_over(&pause, 8.0, true, at(12.4)));
        pause.begin(Duration::from_millis(290), true, at(20.0));
        assert!(is_over(&pause, 8.0, true, at(20.0)), "who is quick is not held back");
    }

    #[test]
    fn of_those_who_give_up_after_two_seconds_one_in_a_hundred_does() {
        for took in [2.5, 3.2, 5.0, 20.0] {
            let give_up = share_beside_urgent(took) * (took - 2.0) / took;
            assert!(give_up <= 0.01 + 1e-9, "{took} s: {give_up}");
        }
        assert!(
            (share_beside_urgent(2.0) - 0.15).abs() < 1e-9,
            "150 ms in the mean, where no client gives up"
        );
        assert!(share_beside_urgent(0.0) > 1.0 && share_beside_urgent(0.3) >= 1.0);
    }

    #[test]
    fn no_pause_lasts_for_ever() {
        let pause = Pause::default();
        pause.begin(Duration::from_secs(60), true, at(0.0));
        assert!(!is_over(&pause, 0.1, false, at(299.0)) && is_over(&pause, 0.1, false, at(300.0)));
        pause.end(0.1, at(300.0));
        pause.begin(Duration::from_secs(1), true, at(301.0));
        assert!(is_over(&pause, 0.1, false, at(310.1)), "what was cut short is not made up for");
    }

    #[test]
    fn a_known_request_waits_for_no_strangers_pause_and_the_next_stranger_for_both() {
        let pause = Pause::default();
        let known = |now| pause.is_over(Asks { limit: 0.25, urgent: false, known: true }, at(now));
        pause.begin(Duration::from_millis(200), true, at(1.0));
        assert!(known(1.0) && !is_over(&pause, 0.25, false, at(1.0)));
        pause.end(0.25, at(1.3)); // half of the pause of 0.6 s is left
        pause.begin(Duration::from_millis(100), false, at(1.4));
        assert!(!known(1.69) && known(1.71), "it waits for that of another known one");
        assert!(!is_over(&pause, 0.25, false, at(1.99)) && is_over(&pause, 0.25, false, at(2.01)));
        pause.end(0.25, at(2.01));
        pause.begin(Duration::from_millis(100), true, at(2.2));
        assert!(is_over(&pause, 0.25, false, at(2.51)), "all that was owed is paused for");
    }

    proptest! {
        /// Strangers one after another, and known requests that come now and then: both together have the limit's share.
        #[test]
        fn known_requests_and_strangers_together_have_the_share(
            limit in 0.2_f64..0.9, requests in prop::collection::vec((1_u64..500, any::<bool>()), 50..200),
        ) {
            let pause = Pause::default();
            let (mut now, mut busy, mut most) = (0.0, 0.0, 0.0_f64);
            for (took, known) in requests {
                while !pause.is_over(Asks { limit, urgent: false, known }, at(now)) {
                    now += 1e-4;
                }
                pause.end(limit, at(now));
                let took = took as f64 / 1e3;
                (now, busy) = (now + took, busy + took);
                pause.begin(Duration::from_secs_f64(took), !known, at(now));
                most = most.max(busy - limit * now);
            }
            while !is_over(&pause, limit, false, at(now)) {
                now += 1e-4;
            }
            prop_assert!((busy / now - limit).abs() < 0.02 * limit + 0.01, "{} of {limit}", busy / now);
            // At any moment no more has been done than the share, and what one stranger and one known request take.
            prop_assert!(most < 1.0, "{most} s ahead");
        }

        /// Requests one after another, each as soon as it may: the share of time is the limit.
        #[test]
        fn the_share_of_time_is_the_limit(limit in 0.05_f64..0.99, took in prop::collection::vec(1_u64..500, 50..200)) {
            let pause = Pause::default();
            let (mut now, mut busy) = (0.0, 0.0);
            for took in took {
                while !is_over(&pause, limit, false, at(now)) {
                    now += 1e-4;
                }
                let took = took as f64 / 1e3;
                (now, busy) = (now + took, busy + took);
                pause.begin(Duration::from_secs_f64(took), true, at(now));
            }
            while !is_over(&pause, limit, false, at(now)) {
                now += 1e-4;
            }
            prop_assert!((busy / now - limit).abs() < 0.02 * limit + 0.01, "{} of {limit}", busy / now);
        }
    }
}
