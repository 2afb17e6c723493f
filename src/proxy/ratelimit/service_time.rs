//! How long does an exchange of a class last?
//!
//! A place whose end is not reported is held for the mean of the durations seen: Little's law asks for
//! the mean, not for a quantile. The exchanges went through the proxy, or an Envoy reported their end. The
//! mean of each second with enough of them counts for a quarter, so that a burst of odd ones moves it
//! little and a head that has slowed down moves it within seconds.

use crate::state::ProxyState;
use rayguard_core::admission::meter::Counts;
use rayguard_core::policy::ClassId;
use std::time::Duration;

/// A second with fewer exchanges than this tells nothing.
const ENOUGH: u64 = 5;

/// How much the latest second counts for.
const WEIGHT: f64 = 0.25;

/// The mean stay of each class.
#[derive(Debug, Default)]
pub(super) struct ServiceTimes {
    generation: Option<u32>,
    classes: Vec<(Counts, Option<f64>)>,
}

impl ServiceTimes {
    /// Takes in what has ended since the last time.
    pub(super) fn measure(&mut self, proxy: &ProxyState) {
        let ids = (0..=u8::MAX).map(ClassId).take(proxy.policy.classes.len());
        if self.generation != Some(proxy.generation) {
            // Another policy numbers its classes anew.
            self.generation = Some(proxy.generation);
            self.classes = ids.map(|id| (proxy.admission.counts(id), None)).collect();
            return;
        }
        for (id, (before, mean)) in ids.zip(&mut self.classes) {
            let now = proxy.admission.counts(id);
            let window = now.since(before);
            *before = now;
            if window.finished() >= ENOUGH
                && let Some(latest) = window.latency_mean()
            {
                *mean = Some(mean.map_or(latest, |mean| mean + WEIGHT * (latest - mean)));
            }
        }
    }

    /// The mean stay of a class, once there is one.
    pub(super) fn mean(&self, proxy: &ProxyState, id: ClassId) -> Option<Duration> {
        let known = self.generation == Some(proxy.generation);
        let (_, mean) = self.classes.get(id.index()).filter(|_| known)?;
        mean.map(|mean| Duration::from_secs_f64(mean.clamp(1e-3, 3600.0)))
    }
}
