//! What a request costs its module, learnt from the order of departures.
//!
//! A Ray module is one Python process. In a single server the true service time of a request
//! is the time between its own departure and the later of its arrival and the departure
//! before it: whatever lay earlier was spent on others. No probe, no configuration, and a
//! request that waited behind a heavy one is not billed for it.
//!
//! In a module that overlaps its waiting (several requests truly in parallel) this reads too
//! low by the degree of overlap, for all routes alike: shares stay right, and the concurrency
//! limits, which do not depend on it, hold the rest.

use crate::core::time::Time;
use std::sync::atomic::{AtomicU64, Ordering};

/// Share of a new observation in the estimate.
const LEARN: f64 = 0.1;

/// Routes with a cost of their own; those beyond share the last.
pub const ROUTES_MAX: usize = 512;

/// Learnt work per route, in seconds.
#[derive(Debug)]
pub struct Costs(Box<[AtomicU64]>);

impl Default for Costs {
    fn default() -> Costs {
        Costs((0..ROUTES_MAX).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Costs {
    /// The estimate for a route in seconds; zero until one has been seen.
    #[must_use]
    pub fn get(&self, route: u16) -> f64 {
        f64::from_bits(self.slot(route).load(Ordering::Relaxed))
    }

    /// Learns from one observation in seconds. Two at once may lose one: it is an average.
    pub fn learn(&self, route: u16, work: f64) {
        if work.is_finite() && work >= 0.0 {
            let slot = self.slot(route);
            let old = f64::from_bits(slot.load(Ordering::Relaxed));
            let new = if old == 0.0 { work } else { old + LEARN * (work - old) };
            slot.store(new.to_bits(), Ordering::Relaxed);
        }
    }

    fn slot(&self, route: u16) -> &AtomicU64 {
        &self.0[usize::from(route).min(ROUTES_MAX - 1)]
    }
}

/// A module's departures, in order.
#[derive(Debug, Default)]
pub struct Departures(AtomicU64);

impl Departures {
    /// The work of a request that arrived at `arrived` and departs `now`, in seconds.
    pub fn depart(&self, arrived: Time, now: Time) -> f64 {
        let before = Time(self.0.fetch_max(now.0, Ordering::AcqRel));
        now.since(before.max(arrived)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_server_bills_each_its_own_service_time() {
        let departures = Departures::default();
        let at = Time::from_secs_f64;
        // A heavy one (250 ms) and two light ones (5 ms) arrive together.
        assert!((departures.depart(at(0.0), at(0.250)) - 0.250).abs() < 1e-9);
        assert!((departures.depart(at(0.0), at(0.255)) - 0.005).abs() < 1e-9);
        assert!((departures.depart(at(0.0), at(0.260)) - 0.005).abs() < 1e-9);
        // After a pause the bill starts at the arrival.
        assert!((departures.depart(at(1.0), at(1.005)) - 0.005).abs() < 1e-9);
    }

    #[test]
    fn the_estimate_follows_and_ignores_nonsense() {
        let costs = Costs::default();
        costs.learn(3, 0.1);
        costs.learn(3, f64::NAN);
        costs.learn(3, -1.0);
        assert!((costs.get(3) - 0.1).abs() < 1e-12);
        (0..200).for_each(|_| costs.learn(3, 0.2));
        assert!((costs.get(3) - 0.2).abs() < 1e-6);
    }
}
