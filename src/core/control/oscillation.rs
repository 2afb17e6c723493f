//! Is a limit hunting?
//!
//! A loop that moves is not yet a loop that hunts: going from 4 to 40 because the head can
//! bear it is work, going from 10 to 14 to 10 to 14 is not. On log(limit), the *path* is the
//! sum of all moves and the *net* their sum with signs; both are forgotten with one time
//! constant. The oscillation index is `1 - |net| / path`: 0 for a straight way, 1 for a way
//! that leads nowhere. The *swing* is half the size of the legs between turns, so that 0.15
//! means +-15 %. Small swings are noise, few turns are regulation; only a limit that turns
//! often, swings wide and gets nowhere is hunting.

use crate::time::Time;
use std::time::Duration;

/// An index above this, with [`SWING_HUNTING`], is hunting.
pub(crate) const INDEX_HUNTING: f64 = 0.7;
/// Swings up to +-15 % are allowed.
pub(crate) const SWING_HUNTING: f64 = 0.15;
/// So many turns must be remembered.
const TURNS_HUNTING: f64 = 2.5;
/// Weight of the newest leg in the mean swing.
const NEWEST: f64 = 0.3;

/// The recent past of one limit.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Oscillation {
    memory: Duration,
    last: Option<(Time, f64)>,
    path: f64,
    net: f64,
    leg: f64,
    turns: f64,
    swing: f64,
}

impl Oscillation {
    /// Remembers for about `memory`; ten dead times are a good choice.
    #[must_use]
    pub fn new(memory: Duration) -> Oscillation {
        Oscillation { memory, last: None, path: 0.0, net: 0.0, leg: 0.0, turns: 0.0, swing: 0.0 }
    }

    /// The limit as it stands now; to be told at every step, moved or not.
    pub fn observe(&mut self, now: Time, limit: f64) {
        if !(limit.is_finite() && limit > 0.0) {
            return;
        }
        let place = limit.ln();
        if let Some((at, before)) = self.last {
            self.forget(now.since(at));
            self.go(place - before);
        }
        self.last = Some((now, place));
    }

    /// 0 (straight) to 1 (going nowhere).
    #[must_use]
    pub fn index(&self) -> f64 {
        if self.path < 1e-6 { 0.0 } else { (1.0 - self.net.abs() / self.path).clamp(0.0, 1.0) }
    }

    /// Half the mean leg between turns, as a ratio: 0.15 is +-15 %.
    #[must_use]
    pub fn swing(&self) -> f64 {
        self.swing.exp() - 1.0
    }

    /// Whether the limit turns often, swings wide and gets nowhere.
    #[must_use]
    pub(crate) fn is_hunting(&self) -> bool {
        self.turns >= TURNS_HUNTING && self.index() > INDEX_HUNTING && self.swing() > SWING_HUNTING
    }

    fn forget(&mut self, elapsed: Duration) {
        let memory = self.memory.as_secs_f64().max(1e-3);
        let keep = (-elapsed.as_secs_f64() / memory).exp();
        self.path *= keep;
        self.net *= keep;
        self.turns *= keep;
    }

    fn go(&mut self, way: f64) {
        self.path += way.abs();
        self.net += way;
        if way * self.leg < 0.0 {
            self.turns += 1.0;
            self.swing += NEWEST * (self.leg.abs() / 2.0 - self.swing);
            self.leg = way;
        } else {
            self.leg += way;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(limits: impl IntoIterator<Item = f64>) -> Oscillation {
        let mut oscillation = Oscillation::new(Duration::from_mins(5));
        for (i, limit) in limits.into_iter().enumerate() {
            oscillation.observe(Time::from_secs_f64(i as f64 * 5.0), limit);
        }
        oscillation
    }

    #[test]
    fn a_climb_is_not_hunting() {
        let climb = walk((0..60).map(|i| 4.0 * 1.05_f64.powi(i)));
        assert!(climb.index() < 0.01 && !climb.is_hunting(), "{climb:?}");
    }

    #[test]
    fn a_wide_swing_without_end_is_hunting() {
        let swing = walk((0..60).map(|i| 10.0 * (f64::from(i) * 0.5).sin().mul_add(0.4, 1.0)));
        assert!(swing.is_hunting(), "index {} swing {}", swing.index(), swing.swing());
    }

    #[test]
    fn noise_of_five_percent_is_not() {
        let noise = walk((0..60).map(|i| if i % 2 == 0 { 10.0 } else { 10.5 }));
        assert!(noise.index() > 0.9 && !noise.is_hunting(), "{noise:?}");
    }

    #[test]
    fn one_overshoot_is_not() {
        assert!(!walk([10.0, 20.0, 30.0, 22.0, 18.0, 20.0, 20.0, 20.0]).is_hunting());
    }

    #[test]
    fn a_limit_that_came_to_rest_is_forgiven() {
        let steps = (0..60).map(|i| if i % 2 == 0 { 10.0 } else { 20.0 }).chain((0..200).map(|_| 14.0));
        assert!(!walk(steps).is_hunting());
    }
}
