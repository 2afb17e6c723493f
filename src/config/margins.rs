//! How far is each class's loop from swinging for ever?
//!
//! A class has up to two loops. The inner one moves concurrency by door latency: every
//! `inner_period`, on answers of the last such period, which began their way an objective's
//! latency ago. The outer one moves the rate, or without one a second ceiling on concurrency,
//! by Ray's signals: every `outer_period`, on
//! readings that are `data_age` old and average over `window`, new at every scrape.
//! `core::control::stability` does the arithmetic; here the configuration is put to it, and
//! a file whose gain margin is below 2 is refused like one that does not parse.

use std::time::Duration;

use super::settings::Settings;
use rayguard_core::control::stability::{Assessment, Timing, Unstable, assess};
use rayguard_core::journal::LimitKind;
use rayguard_core::policy::{Bounds, Class, ClassId, Control, Kind, Law, Policy, Treatment};

/// One loop of a class, before it is closed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClassLoop {
    /// The class.
    pub class: ClassId,
    /// What it moves.
    pub limit: LimitKind,
    /// Whether it is the inner loop, by door latency.
    pub is_inner: bool,
    /// When it acts, and on what.
    pub timing: Timing,
    /// By which law.
    pub law: Law,
    /// Within which range.
    pub bounds: Bounds,
}

impl ClassLoop {
    /// Its measures; `None` when it does not move.
    #[must_use]
    pub fn assess(&self) -> Option<Assessment> {
        assess(&self.timing, &self.law, &self.bounds)
    }

    /// Refuses too little margin.
    pub fn verdict(&self) -> Result<(), Unstable> {
        self.assess().map_or(Ok(()), |assessment| assessment.verdict())
    }

    /// Whether the margin is the law's own doing: without a gain of the operator's, SIMC
    /// takes half of what a dead time bears, whatever the timing.
    #[must_use]
    pub fn is_safe_by_construction(&self) -> bool {
        match self.law {
            // The gradient law holds its smoothing to SIMC's gain, and AIMD its growth; AIMD's cuts
            // have gain 1, once per dead time.
            Law::Static | Law::Gradient { .. } | Law::Aimd { .. } => true,
            Law::Pid { kp, ki: None, kd } => kp <= 0.0 && kd <= 0.0,
            Law::Pid { .. } => !self.bounds.moves(),
        }
    }
}

/// Every loop of the policy, in the order of classes.
#[must_use]
pub fn loops(policy: &Policy, refresh: Duration) -> Vec<ClassLoop> {
    let classes = policy.classes.iter().zip((0..=u8::MAX).map(ClassId));
    classes.flat_map(|(class, id)| loops_of(class, id, &policy.control, refresh)).collect()
}

impl Settings {
    /// Every loop of these settings, in the order of classes.
    #[must_use]
    pub fn loops(&self) -> Vec<ClassLoop> {
        loops(&self.policy, self.metrics.interval)
    }
}

fn loops_of(class: &Class, id: ClassId, control: &Control, refresh: Duration) -> Vec<ClassLoop> {
    if class.treatment != Treatment::Limited || class.law == Law::Static {
        return Vec::new();
    }
    let one = |limit, is_inner, timing, bounds| ClassLoop {
        class: id,
        limit,
        is_inner,
        timing,
        law: class.law,
        bounds,
    };
    let inner = (class.kind == Kind::Unary && class.in_flight.moves()).then(|| {
        one(
            LimitKind::InFlight,
            true,
            Timing::of_door(control.inner_period, class.slo.latency),
            class.in_flight,
        )
    });
    let slow = Timing::of_signals(control, refresh);
    let rate = class.rate.filter(|rate| rate.per_second.moves());
    let outer = match rate {
        _ if class.signals.is_empty() => None,
        Some(rate) => Some(one(LimitKind::Rate, false, slow, rate.per_second)),
        None => class.in_flight.moves().then(|| one(LimitKind::InFlight, false, slow, class.in_flight)),
    };
    inner.into_iter().chain(outer).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Overrides;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shipped_loops_bear_at_least_twice_their_gain() {
        let settings = Settings::defaults(&Overrides::default()).unwrap();
        let loops = settings.loops();
        assert!(loops.len() > 20, "{}", loops.len());
        for each in loops.iter().filter(|each| !each.is_inner || each.timing.data_age.as_secs() < 6) {
            let name = &settings.policy.classes[each.class.index()].name;
            let assessment = each.assess().unwrap();
            assert!(each.verdict().is_ok(), "{name}: {assessment:?}");
            assert!(assessment.settling.is_some(), "{name}: {assessment:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_gain_that_is_not_the_operators_is_safe_whatever_the_timing(
            period_ms in 50_u64..20_000, window_ms in 0_u64..20_000, age_ms in 0_u64..20_000, refresh_ms in 0_u64..20_000,
        ) {
            let timing = Timing {
                period: Duration::from_millis(period_ms),
                window: Duration::from_millis(window_ms),
                data_age: Duration::from_millis(age_ms),
                refresh: Duration::from_millis(refresh_ms),
            };
            let bounds = Bounds { initial: 4.0, min: 1.0, max: 16.0 };
            for law in [
                Law::Pid { kp: 0.0, ki: None, kd: 0.0 },
                Law::Aimd { increase: 1.0, decrease: 0.1 },
                Law::Gradient { tolerance: 1.5, smoothing: 1.0 },
            ] {
                let each =
                    ClassLoop { class: ClassId(0), limit: LimitKind::Rate, is_inner: false, timing, law, bounds };
                prop_assert!(each.is_safe_by_construction());
                prop_assert!(each.verdict().is_ok(), "{law:?} {:?}", each.assess());
            }
        }
    }
}
