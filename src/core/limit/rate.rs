//! A rate limit: governor's GCRA on an elastic clock.
//!
//! Whatever happens to the rate in between, what is admitted in any interval is at most the
//! integral of the rate over it, plus the burst (one more for the cell in progress).

use crate::core::limit::clock::{CELL_NANOS, ElasticClock, SharedClock};
use crate::core::time::{Time, duration_from_secs};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// A rate limit whose rate may change at any moment.
#[derive(Debug)]
pub struct Rate {
    clock: Arc<ElasticClock>,
    limiter: RateLimiter<
        NotKeyed,
        InMemoryState,
        SharedClock,
        NoOpMiddleware<crate::core::limit::clock::VirtualTime>,
    >,
}

impl Rate {
    /// `rate` per second with room for `burst` at once (0 counts as 1), full at the start.
    #[must_use]
    pub fn new(rate: f64, burst: u32, now: Time) -> Rate {
        let clock = Arc::new(ElasticClock::new(rate, now));
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        // invariant: a period of one millisecond is not zero, the one thing `with_period` refuses
        #[expect(clippy::expect_used, reason = "see the invariant")]
        let quota = Quota::with_period(Duration::from_millis(1))
            .expect("one millisecond is a period")
            .allow_burst(burst);
        let limiter = RateLimiter::direct_with_clock(quota, SharedClock(Arc::clone(&clock)));
        Rate { clock, limiter }
    }

    /// The same with nothing in hand: for a limiter that takes another's place at run time,
    /// so that the change hands out no burst.
    #[must_use]
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

    /// The rate per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.clock.rate()
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
        /// Design 10: admitted in any interval <= integral of rate + burst.
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

        /// ... and nobody is locked out: after a change, the wait is what the new rate says.
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
