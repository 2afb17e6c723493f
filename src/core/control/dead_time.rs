//! How late is the news, as measured?
//!
//! The configuration says how old readings should be and how often they should come; the
//! source may disagree (a scrape that takes 3 s on a loaded head, an agent that reports every
//! 10 s instead of 5). Both are averaged over the last readings, and the dead time is taken
//! from the worse of what was configured and what is seen: a loop may be slower than it could
//! be, never faster than it can bear. It grows at once and shrinks slowly.

use super::stability::Timing;
use crate::time::{Time, duration_from_secs};
use std::time::Duration;

/// Weight of a new sample that is better than the average.
const SHRINK: f64 = 0.1;
/// Weight of a new sample that is worse.
const GROW: f64 = 0.5;

/// The measured lateness of one signal.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Cadence {
    last: Option<(Time, u64)>,
    interval_s: Option<f64>,
    age_s: Option<f64>,
}

impl Cadence {
    /// A reading came: seen `now`, true `at`, and `fresh` is the count of its information (see
    /// [`crate::signal::reading::Reading::fresh`]). Returns whether it is news.
    pub fn observe(&mut self, now: Time, at: Time, fresh: u64) -> bool {
        if self.last.is_some_and(|(_, known)| known == fresh) {
            return false;
        }
        toward(&mut self.age_s, now.since(at).as_secs_f64());
        if let Some((before, _)) = self.last {
            toward(&mut self.interval_s, now.since(before).as_secs_f64());
        }
        self.last = Some((now, fresh));
        true
    }

    /// The time between news, as it comes; `None` before the second.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.interval_s.map(duration_from_secs)
    }

    /// The timing the loop really has, given what was configured.
    #[must_use]
    pub fn timing(&self, configured: &Timing) -> Timing {
        let worse = |measured: Option<f64>, planned: Duration| {
            measured.map_or(planned, |seconds| duration_from_secs(seconds).max(planned))
        };
        Timing {
            data_age: worse(self.age_s, configured.data_age),
            refresh: worse(self.interval_s, configured.refresh),
            ..*configured
        }
    }
}

fn toward(average: &mut Option<f64>, sample: f64) {
    *average = Some(match *average {
        None => sample,
        Some(known) if sample > known => known + GROW * (sample - known),
        Some(known) => known + SHRINK * (sample - known),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured() -> Timing {
        Timing {
            period: Duration::from_secs(5),
            window: Duration::from_secs(10),
            data_age: Duration::from_secs(2),
            refresh: Duration::ZERO,
        }
    }

    fn watch(interval_s: u64, age_s: u64) -> Cadence {
        let mut cadence = Cadence::default();
        for i in 1..50 {
            let now = Time(i * interval_s * 1_000_000_000);
            cadence.observe(now, now - Duration::from_secs(age_s), i);
        }
        cadence
    }

    #[test]
    fn a_source_as_good_as_configured_changes_nothing_but_the_refresh() {
        let timing = watch(5, 1).timing(&configured());
        assert_eq!(timing.data_age, Duration::from_secs(2));
        assert_eq!(timing.dead_time(), configured().dead_time());
    }

    #[test]
    fn a_slower_source_lengthens_the_dead_time() {
        let timing = watch(20, 8).timing(&configured());
        assert_eq!(timing.dead_time(), Duration::from_secs(8 + 5 + 10));
        assert_eq!(timing.step(), Duration::from_secs(20));
    }

    #[test]
    fn the_same_information_again_is_no_news() {
        let mut cadence = Cadence::default();
        assert!(cadence.observe(Time(1), Time(0), 1));
        assert!(!cadence.observe(Time(2), Time(0), 1));
        assert!(cadence.observe(Time(3), Time(2), 2));
    }
}
