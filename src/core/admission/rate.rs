//! A rate limit: governor's GCRA on an elastic clock.
//!
//! Whatever happens to the rate in between, what is admitted in any interval is at most the
//! integral of the rate over it, plus the burst (one more for the cell in progress).

use crate::admission::clock::{CELL_NANOS, ElasticClock, SharedClock};
use crate::time::{Time, duration_from_secs};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// A rate limit whose rate may change at any moment.
#[derive(Debug)]
pub struct Rate {
    clock: Arc<ElasticClock>,
    burst: u32,
    account: Account,
    limiter:
        RateLimiter<NotKeyed, Account, SharedClock, NoOpMiddleware<crate::admission::clock::VirtualTime>>,
}

/// How long until a request that lets `ahead` others go first has a cell, by governor's state, which is
/// left as it is.
pub(super) fn until_due(
    account: &InMemoryState,
    burst: u32,
    ahead: u32,
    clock: &ElasticClock,
    now: Time,
) -> Duration {
    // GCRA: a cell passes up to `burst - 1` cells before it is due.
    let cells = owed(account, clock, now) + f64::from(ahead) - f64::from(burst.saturating_sub(1));
    let rate = clock.rate();
    if cells <= 0.0 {
        Duration::ZERO
    } else if rate > 0.0 {
        duration_from_secs(cells / rate)
    } else {
        Duration::MAX
    }
}

/// How many cells have been taken before they were due, by governor's state, which is left as it is.
pub(super) fn owed(account: &InMemoryState, clock: &ElasticClock, now: Time) -> f64 {
    let here = clock.advance(now).0 as f64 / CELL_NANOS;
    // An error changes nothing.
    match account.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>) {
        Err(Some(due)) => (due.as_u64() as f64 / CELL_NANOS - here).max(0.0),
        Err(None) | Ok(()) => 0.0,
    }
}

/// Cells there are for a request that comes now. (A cell is in hand to within a millionth: what was
/// earned is counted in whole nanoseconds of virtual time.)
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the burst")]
pub(super) fn in_hand(burst: u32, owed: f64) -> u32 {
    (f64::from(burst) - owed + 1e-6).max(0.0) as u32
}

/// governor's state, held so that it can be looked at without being changed.
#[derive(Clone, Debug, Default)]
struct Account(Arc<InMemoryState>);

impl StateStore for Account {
    type Key = NotKeyed;
    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.measure_and_replace(key, f)
    }
}

impl Rate {
    /// `rate` per second with room for `burst` at once (0 counts as 1), full at the start.
    pub fn new(rate: f64, burst: u32, now: Time) -> Rate {
        let clock = Arc::new(ElasticClock::new(rate, now));
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        // invariant: a period of one millisecond is not zero, the one thing `with_period` refuses
        #[expect(clippy::expect_used, reason = "see the invariant")]
        let quota = Quota::with_period(Duration::from_millis(1))
            .expect("one millisecond is a period")
            .allow_burst(burst);
        let account = Account::default();
        let limiter = RateLimiter::new(quota, account.clone(), SharedClock(Arc::clone(&clock)));
        Rate { clock, burst: burst.get(), account, limiter }
    }

    /// The same with nothing in hand: for a limiter that takes another's place at run time,
    /// so that the change hands out no burst.
    pub fn empty(rate: f64, burst: u32, now: Time) -> Rate {
        let fresh = Rate::new(rate, burst, now);
        while fresh.limiter.check().is_ok() {}
        fresh
    }

    /// Sets the rate from `now` on; what was earned so far stays earned.
    pub fn set_rate(&self, rate: f64, now: Time) {
        if (rate - self.clock.rate()).abs() > f64::EPSILON * rate.abs() {
            self.clock.set_rate(rate, now);
        }
    }

    /// Sets the rate to what the loop says, of a class that begins with `initial`. One that is lowered below that
    /// leaves in hand no more than the burst's share of it: a bucket that is full would let everything pass for as long
    /// as it lasts, and the loop would take its cut for one that does nothing.
    pub fn follow(&self, rate: f64, initial: f64, now: Time) {
        let was = self.clock.rate();
        self.set_rate(rate, now);
        if rate < was && rate < initial {
            let keep = (f64::from(self.burst) * rate / initial).max(1.0);
            while f64::from(self.left(now).0) > keep && self.take(now).is_ok() {}
        }
    }

    /// The rate per second.
    pub fn per_second(&self) -> f64 {
        self.clock.rate()
    }

    /// How long until there is a cell for a request that comes now and lets `ahead` others go
    /// first, at the present rate; takes none. [`Duration::MAX`] at rate zero.
    pub fn wait(&self, ahead: u32, now: Time) -> Duration {
        until_due(&self.account.0, self.burst, ahead, &self.clock, now)
    }

    /// Cells in hand, and how long until there are as many as there ever are.
    pub fn left(&self, now: Time) -> (u32, Duration) {
        let owed = owed(&self.account.0, &self.clock, now);
        let rate = self.clock.rate();
        let whole = if rate > 0.0 { duration_from_secs(owed / rate) } else { Duration::MAX };
        (in_hand(self.burst, owed), if owed > 0.0 { whole } else { Duration::ZERO })
    }

    /// Takes so many cells at once, or none.
    pub(crate) fn take_all(&self, cells: NonZeroU32, now: Time) -> bool {
        self.clock.advance(now);
        matches!(self.limiter.check_n(cells), Ok(Ok(())))
    }

    /// Takes one cell, or says how long until there is one at the present rate
    /// ([`Duration::MAX`] at rate zero).
    pub fn take(&self, now: Time) -> Result<(), Duration> {
        let here = self.clock.advance(now);
        self.limiter.check().map_err(|not_until| {
            let cells = not_until.wait_time_from(here).as_nanos() as f64 / CELL_NANOS;
            let rate = self.clock.rate();
            if rate > 0.0 { duration_from_secs(cells / rate) } else { Duration::MAX }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_that_is_cut_keeps_no_burst_beyond_its_share() {
        let at = Time::from_secs_f64;
        let rate = Rate::new(4.0, 16, Time::ZERO);
        rate.follow(1.0, 4.0, at(1.0));
        assert_eq!(rate.left(at(1.0)).0, 4);
        rate.follow(0.1, 4.0, at(1.0));
        assert_eq!(rate.left(at(1.0)).0, 1, "one may always go");
        rate.follow(8.0, 4.0, at(1.0));
        rate.follow(5.0, 4.0, at(4.0));
        assert_eq!(rate.left(at(4.0)).0, 16, "what is above the beginning keeps its burst");
    }

    #[test]
    fn fractional_rates_work_and_say_how_long() {
        let rate = Rate::new(0.5, 1, Time::ZERO);
        assert!(rate.take(Time::ZERO).is_ok());
        let wait = rate.take(Time::ZERO).unwrap_err();
        assert!((wait.as_secs_f64() - 2.0).abs() < 1e-3, "{wait:?}");
        assert!(rate.take(Time::from_secs_f64(2.0)).is_ok());
    }

    #[test]
    fn a_rate_of_zero_admits_the_burst_and_then_nothing() {
        let rate = Rate::new(0.0, 3, Time::ZERO);
        let admitted = (0..100).filter(|n| rate.take(Time::from_secs_f64(f64::from(*n))).is_ok()).count();
        assert_eq!(admitted, 3);
        assert_eq!(rate.take(Time::from_secs_f64(1e6)), Err(Duration::MAX));
    }

    #[test]
    fn a_limiter_that_replaces_another_hands_out_no_burst() {
        let rate = Rate::empty(10.0, 50, Time::ZERO);
        assert!(rate.take(Time::ZERO).is_err());
        assert!(rate.take(Time::from_secs_f64(0.11)).is_ok());
    }

    proptest! {
        /// Admitted in any interval <= integral of rate + burst.
        #[test]
        fn admitted_never_exceeds_the_integral_of_the_rate_plus_the_burst(
            burst in 1u32..50,
            steps in prop::collection::vec((0u64..500_000_000, 0.0..2000.0f64, 0usize..200), 1..60),
        ) {
            let limit = Rate::new(7.0, burst, Time::ZERO);
            let mut now = Time::ZERO;
            let mut integral = 0.0;
            let mut slope = 7.0;
            let mut admitted = 0u32;
            for (step, rate, asks) in steps {
                integral += slope * Duration::from_nanos(step).as_secs_f64();
                now = now + Duration::from_nanos(step);
                limit.set_rate(rate, now);
                slope = rate;
                for _ in 0..asks {
                    admitted += u32::from(limit.take(now).is_ok());
                }
                prop_assert!(f64::from(admitted) <= integral + f64::from(burst) + 1.0);
            }
        }

        /// What is foretold is what happens: no sooner, and no later.
        #[test]
        fn a_look_sees_the_wait_that_a_take_would_meet(
            rate in 0.01..5000.0f64, burst in 1u32..50, taken in 0u32..80, ahead in 0u32..5,
        ) {
            let limit = Rate::new(rate, burst, Time::ZERO);
            let admitted = (0..taken).filter(|_| limit.take(Time::ZERO).is_ok()).count();
            let foretold = limit.wait(ahead, Time::ZERO);
            prop_assert_eq!(limit.wait(ahead, Time::ZERO), foretold, "looking takes nothing");
            let owed = (admitted as f64 + f64::from(ahead) + 1.0 - f64::from(burst)).max(0.0) / rate;
            prop_assert!((foretold.as_secs_f64() - owed).abs() <= 1e-6 + 1e-3 * owed, "{foretold:?} {owed}");
            if ahead == 0 {
                match limit.take(Time::ZERO) {
                    Ok(()) => prop_assert!(foretold.is_zero()),
                    Err(wait) => prop_assert!(wait.abs_diff(foretold) < Duration::from_micros(1)),
                }
            }
        }

        /// What is said to be left is what can be taken, at once or one by one.
        #[test]
        fn what_is_left_can_be_taken_and_no_more(
            rate in 0.01..5000.0f64, burst in 1u32..50, taken in 0u32..60, later_ms in 0u64..2000, at_once: bool,
        ) {
            let limit = Rate::new(rate, burst, Time::ZERO);
            let _ = (0..taken).filter(|_| limit.take(Time::ZERO).is_ok()).count();
            let now = Time::ZERO + Duration::from_millis(later_ms);
            let (left, _) = limit.left(now);
            prop_assert!(left <= burst);
            match NonZeroU32::new(left) {
                Some(cells) if at_once => prop_assert!(limit.take_all(cells, now)),
                _ => (0..left).for_each(|_| assert!(limit.take(now).is_ok())),
            }
            prop_assert!(limit.take(now).is_err(), "{left} were left of {burst}");
            prop_assert!(!limit.take_all(NonZeroU32::new(burst + 1).unwrap(), now));
        }

        /// ... and no client is locked out: after a change, the wait is what the new rate says.
        #[test]
        fn the_wait_after_a_change_is_at_most_one_burst_at_the_new_rate(
            old in 0.01..5000.0f64, new in 0.01..5000.0f64, burst in 1u32..50,
        ) {
            let limit = Rate::new(old, burst, Time::ZERO);
            while limit.take(Time::ZERO).is_ok() {}
            limit.set_rate(new, Time::ZERO);
            let wait = limit.take(Time::ZERO).unwrap_err();
            prop_assert!(wait.as_secs_f64() <= 1.001 / new + 1e-6);
        }
    }
}
