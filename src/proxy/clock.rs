//! The only OS clock.
//!
//! Decisions run on monotone time since the process began; the wall clock, which anyone may
//! set back, is for the adjustment log alone.

use rayguard_core::time::{Time, WallMs};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// The OS clock, counted from the moment it was made. Copies agree with each other. It is read as
/// tokio's timers read it: both stand still together where a test has stopped them.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Monotone time since the start.
    pub fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The OS's instant for a point of this clock's time, for timers.
    pub fn instant(&self, at: Time) -> Instant {
        self.start.checked_add(at.since(Time::ZERO)).unwrap_or(self.start)
    }

    /// The wall clock.
    #[expect(clippy::disallowed_methods, reason = "this is the one room that reads the OS clock")]
    pub fn wall(&self) -> WallMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
