//! The elastic clock: how a rate limit changes while traffic flows.
//!
//! governor's quota is fixed at construction. Rebuilding a limiter to change its rate hands
//! out a fresh burst; scaling its state locks clients out. So the quota never changes (one
//! cell is one millisecond of *virtual* time) and the clock under it runs at the rate:
//!
//! ```text
//! dv/dt = rate            v in ms of virtual time, t in s of real time
//! ```
//!
//! At 40/s a real second is 40 virtual milliseconds, hence 40 cells. A changed rate bends the
//! line but never breaks it: `v` is continuous and monotone, so what a change admits is
//! exactly the integral of the rate. A rate of zero stops time.
//!
//! Readers take no lock: the line's three numbers stand under a sequence count (odd while a
//! writer is at work) and a reader that saw it move reads again.

use super::sync::{AtomicU64, Ordering, fence, spin_loop};
use crate::time::Time;
use governor::clock::{Clock, Reference};
use governor::nanos::Nanos;
use std::ops::Add;

/// Virtual nanoseconds that one cell lasts.
pub(crate) const CELL_NANOS: f64 = 1e6;

/// A point of virtual time, in virtual nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VirtualTime(pub u64);

impl Reference for VirtualTime {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }
    fn saturating_sub(&self, duration: Nanos) -> Self {
        VirtualTime(self.0.checked_sub(duration.as_u64()).unwrap_or(self.0))
    }
}

impl Add<Nanos> for VirtualTime {
    type Output = VirtualTime;
    fn add(self, other: Nanos) -> VirtualTime {
        VirtualTime(self.0.saturating_add(other.as_u64()))
    }
}

/// Virtual time as a function of real time, with a slope that may change.
#[derive(Debug)]
pub struct ElasticClock {
    /// Odd while the three numbers below are being written.
    sequence: AtomicU64,
    /// Real nanoseconds at which the present slope began.
    real_origin: AtomicU64,
    /// Virtual nanoseconds at that moment.
    virtual_origin: AtomicU64,
    /// The slope: cells per second, as the bits of an `f64`.
    rate: AtomicU64,
    /// The latest virtual time anyone has asked for; what governor sees as "now".
    reached: AtomicU64,
}

impl ElasticClock {
    /// A clock at virtual zero that runs at `rate` cells per second from `now` on.
    pub fn new(rate: f64, now: Time) -> ElasticClock {
        ElasticClock {
            sequence: AtomicU64::new(0),
            real_origin: AtomicU64::new(now.0),
            virtual_origin: AtomicU64::new(0),
            rate: AtomicU64::new(sane(rate).to_bits()),
            reached: AtomicU64::new(0),
        }
    }

    /// The slope in cells per second.
    pub fn rate(&self) -> f64 {
        self.line().2
    }

    /// Bends the line at `now`. A second writer at the same moment waits its turn; a `now`
    /// before the last bend counts as the last bend, so virtual time never runs back.
    pub fn set_rate(&self, rate: f64, now: Time) {
        let even = loop {
            let seen = self.sequence.load(Ordering::Relaxed);
            if seen.is_multiple_of(2)
                && self
                    .sequence
                    .compare_exchange_weak(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                break seen;
            }
            spin_loop();
        };
        fence(Ordering::Release);
        let real = self.real_origin.load(Ordering::Relaxed);
        let origin = self.virtual_origin.load(Ordering::Relaxed);
        let slope = f64::from_bits(self.rate.load(Ordering::Relaxed));
        let bend = now.0.max(real);
        self.virtual_origin.store(along(real, origin, slope, bend), Ordering::Relaxed);
        self.real_origin.store(bend, Ordering::Relaxed);
        self.rate.store(sane(rate).to_bits(), Ordering::Relaxed);
        self.sequence.store(even + 2, Ordering::Release);
    }

    /// Moves governor's "now" to `now` (never back) and returns it.
    pub fn advance(&self, now: Time) -> VirtualTime {
        let (real, origin, slope) = self.line();
        let here = along(real, origin, slope, now.0);
        VirtualTime(self.reached.fetch_max(here, Ordering::Relaxed).max(here))
    }

    /// The three numbers of one and the same line.
    fn line(&self) -> (u64, u64, f64) {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                let line = (
                    self.real_origin.load(Ordering::Relaxed),
                    self.virtual_origin.load(Ordering::Relaxed),
                    f64::from_bits(self.rate.load(Ordering::Relaxed)),
                );
                fence(Ordering::Acquire);
                if self.sequence.load(Ordering::Relaxed) == before {
                    return line;
                }
            }
            spin_loop();
        }
    }
}

impl Clock for &ElasticClock {
    type Instant = VirtualTime;
    fn now(&self) -> VirtualTime {
        VirtualTime(self.reached.load(Ordering::Relaxed))
    }
}

/// governor owns its clock; this shares ours with it.
#[derive(Clone, Debug)]
pub struct SharedClock(pub std::sync::Arc<ElasticClock>);

impl Clock for SharedClock {
    type Instant = VirtualTime;
    fn now(&self) -> VirtualTime {
        (&*self.0).now()
    }
}

/// Virtual time at real time `at` on the line through `(real, origin)` with this slope.
fn along(real: u64, origin: u64, slope: f64, at: u64) -> u64 {
    let elapsed = at.saturating_sub(real) as f64 / 1e9;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as-casts of f64 saturate")]
    let gained = (elapsed * slope * CELL_NANOS) as u64;
    origin.saturating_add(gained)
}

/// A rate that is a rate: NaN and negatives stop time rather than break it.
fn sane(rate: f64) -> f64 {
    if rate.is_nan() { 0.0 } else { rate.clamp(0.0, 1e9) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn virtual_time_is_the_integral_of_the_rate() {
        let clock = ElasticClock::new(10.0, Time::ZERO);
        clock.set_rate(100.0, Time::from_secs_f64(1.0));
        clock.set_rate(0.0, Time::from_secs_f64(2.0));
        assert_eq!(clock.advance(Time::from_secs_f64(50.0)).0, 110_000_000);
    }

    #[test]
    fn a_real_clock_set_back_does_not_turn_virtual_time_back() {
        let clock = ElasticClock::new(10.0, Time::from_secs_f64(5.0));
        let reached = clock.advance(Time::from_secs_f64(6.0));
        clock.set_rate(1.0, Time::from_secs_f64(2.0));
        assert!(clock.advance(Time::from_secs_f64(3.0)) >= reached);
    }

    proptest! {
        #[test]
        fn virtual_time_never_runs_back(steps in prop::collection::vec((0u64..3_000_000_000, prop::num::f64::ANY), 1..60)) {
            let clock = ElasticClock::new(5.0, Time::ZERO);
            let mut now = 0;
            let mut last = VirtualTime(0);
            for (step, rate) in steps {
                now += step;
                let here = clock.advance(Time(now));
                prop_assert!(here >= last);
                clock.set_rate(rate, Time(now));
                let after = clock.advance(Time(now));
                prop_assert_eq!(here, after, "a bend must not jump");
                last = after;
            }
        }
    }
}
