//! Time as the core sees it: a number handed in by whoever drives it.
//!
//! `core` owns no clock. `run` hands in nanoseconds since the process began (from
//! `runtime::clock`), `simulate` hands in virtual nanoseconds from the event heap; the
//! code between cannot tell the difference, which is what makes the simulator's verdict
//! a verdict on production.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the driver's monotone time line, in nanoseconds since the driver's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// The driver's start.
    pub const ZERO: Time = Time(0);

    /// The point `seconds` after the start; negative and NaN become the start.
    #[must_use]
    pub fn from_secs_f64(seconds: f64) -> Time {
        Time::ZERO + duration_from_secs(seconds)
    }

    /// Seconds since the start.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        Duration::from_nanos(self.0).as_secs_f64()
    }

    /// How long ago `earlier` was; zero when it lies in the future.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A length of time in seconds as a [`Duration`]; negative and NaN become zero, what is
/// too long becomes the longest.
#[must_use]
pub fn duration_from_secs(seconds: f64) -> Duration {
    if seconds.is_nan() || seconds <= 0.0 {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, length: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, length: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.as_secs_f64())
    }
}

/// Wall-clock time for the record, in milliseconds since the Unix epoch. Never used in a
/// decision: the wall clock may be set back at any moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WallMs(pub u64);
