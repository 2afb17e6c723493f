//! How far is each class's loop from swinging for ever?
//!
//! A class has up to three loops, and they are assessed as they run. The inner one moves concurrency
//! by proxy latency: at evidence, so as soon as every `inner_period`, and every 5 s at the latest, on
//! answers that began their way an objective's latency ago. The outer one moves the rate, or without
//! one a second ceiling on concurrency, by Ray's signals: on news of the signal that decides, which
//! comes as often as the slowest of them, is `data_age` old and averages over `window`. A rate whose
//! requests leave a backlog follows that too, as an integrator.
//! `core::control::stability` does the arithmetic; here the configuration is put to it, and
//! a file whose gain margin is below 2 is refused like one that does not parse.

use std::time::Duration;

use super::settings::Settings;
use rayguard_core::control::stability::{Assessment, Timing, Unstable, assess, assess_backlog};
use rayguard_core::controller::PATIENCE;
use rayguard_core::controller::backlog::backlog_followed;
use rayguard_core::event::{LimitKind, LoopKind};
use rayguard_core::policy::{
    Bounds, Class, ClassId, Kind, Law, Policy, Signal, SignalId, SignalSource, Treatment,
};

/// One loop of a class, before it is closed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClassLoop {
    /// The class.
    pub class: ClassId,
    /// What it moves.
    pub limit: LimitKind,
    /// What it follows: proxy latency, Ray's readings, or a backlog.
    pub by: LoopKind,
    /// When it acts, and on what.
    pub timing: Timing,
    /// By which law.
    pub law: Law,
    /// Within which range.
    pub bounds: Bounds,
}

impl ClassLoop {
    /// Its measures; `None` when it does not move.
    pub fn assess(&self) -> Option<Assessment> {
        match self.by {
            LoopKind::Backlog => assess_backlog(&self.timing, &self.bounds),
            LoopKind::Inner | LoopKind::Outer => assess(&self.timing, &self.law, &self.bounds),
        }
    }

    /// Refuses too little margin.
    pub fn verdict(&self) -> Result<(), Unstable> {
        self.assess().map_or(Ok(()), |assessment| assessment.verdict())
    }

    /// Whether the margin is the law's own doing: without a gain of the operator's, SIMC
    /// takes half of what a dead time bears, whatever the timing.
    pub(crate) fn is_safe_by_construction(&self) -> bool {
        match self.law {
            _ if self.by == LoopKind::Backlog => true,
            // The gradient law holds its smoothing to SIMC's gain, and AIMD its growth; AIMD's cuts
            // have gain 1, once per dead time.
            Law::Static | Law::Gradient { .. } | Law::Aimd { .. } => true,
            Law::Pid { kp, ki: None, kd } => kp <= 0.0 && kd <= 0.0,
            Law::Pid { .. } => !self.bounds.moves(),
        }
    }
}

/// Ray's own refresh of what its GCS and raylets report.
const RAY_REFRESH: Duration = Duration::from_secs(10);

/// How many scrapes of a Prometheus a reading should outlast, as `rayguard check` asks. What is configured of a
/// signal says nothing else of how seldom its Prometheus scrapes Ray.
const SCRAPES_OUTLASTED: u32 = 3;

/// How often a signal has something new, by the source that is preferred.
pub fn refresh(signal: &Signal, scrape: Duration, probe: Option<Duration>) -> Duration {
    match signal.sources.first() {
        Some(SignalSource::Probe) => probe.unwrap_or(scrape),
        Some(SignalSource::PromQl(_)) => scrape.max(RAY_REFRESH).max(signal.stale_after / SCRAPES_OUTLASTED),
        Some(SignalSource::Scrape(_)) | None => scrape.max(RAY_REFRESH),
    }
}

impl Settings {
    /// Every loop of these settings, in the order of classes.
    pub fn loops(&self) -> Vec<ClassLoop> {
        let classes = self.policy.classes.iter().zip((0..=u8::MAX).map(ClassId));
        classes.flat_map(|(class, id)| self.loops_of(class, id)).collect()
    }

    /// How often a signal has something new under these settings.
    pub fn refresh(&self, id: SignalId) -> Duration {
        let probe = self.probe.as_ref().map(|probe| probe.interval);
        refresh(&self.policy.signals[id.index()], self.metrics.interval, probe)
    }

    fn loops_of(&self, class: &Class, id: ClassId) -> Vec<ClassLoop> {
        if class.treatment != Treatment::Limited {
            return Vec::new();
        }
        let (policy, control): (&Policy, _) = (&self.policy, &self.policy.control);
        let one =
            |limit, by, timing, bounds| ClassLoop { class: id, limit, by, timing, law: class.law, bounds };
        let mut loops = Vec::new();
        let moves = class.law != Law::Static;
        if moves && class.kind == Kind::Unary && class.in_flight.moves() {
            // At evidence as soon as it may be, and when patience ends.
            for window in [control.inner_period, PATIENCE.max(control.inner_period)] {
                let timing = Timing::of_proxy(window, class.slo.latency);
                loops.push(one(LimitKind::InFlight, LoopKind::Inner, timing, class.in_flight));
            }
        }
        let counts = backlog_followed(policy, id.index());
        let slowest =
            class.signals.iter().filter(|id| Some(**id) != counts).map(|id| self.refresh(*id)).max();
        let rate = class.rate.filter(|rate| rate.per_second.moves());
        if let Some(slowest) = slowest.filter(|_| moves) {
            let slow = Timing::of_signals(control, slowest);
            match rate {
                Some(rate) => loops.push(one(LimitKind::Rate, LoopKind::Outer, slow, rate.per_second)),
                None if class.in_flight.moves() => {
                    loops.push(one(LimitKind::InFlight, LoopKind::Outer, slow, class.in_flight));
                }
                None => {}
            }
        }
        if let (Some(rate), Some(signal)) = (rate, counts) {
            let slow = Timing::of_signals(control, self.refresh(signal));
            loops.push(one(LimitKind::Rate, LoopKind::Backlog, slow, rate.per_second));
        }
        loops
    }
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
        for each in
            loops.iter().filter(|each| each.by != LoopKind::Inner || each.timing.data_age.as_secs() < 6)
        {
            let name = &settings.policy.classes[each.class.index()].name;
            let assessment = each.assess().unwrap();
            assert!(each.verdict().is_ok(), "{name}: {assessment:?}");
            assert!(assessment.settling.is_some(), "{name}: {assessment:?}");
        }
    }

    #[test]
    fn a_prometheus_has_news_as_seldom_as_its_readings_are_said_to_hold() {
        let of = |stale: &str, sources: &str| {
            let text = format!(
                "[metrics]\nprometheus = 'http://prometheus:9090'\n\
                 [signal.own]\ntarget = 1\nunit = '%'\nstale_after = '{stale}'\nsources = [{sources}]\n"
            );
            let settings = crate::parse(&text, "f", &Overrides::default()).unwrap();
            let mut signals = settings.policy.signals.iter().zip((0..=u8::MAX).map(SignalId));
            let (_, own) = signals.find(|(signal, _)| &*signal.name == "own").unwrap();
            settings.refresh(own).as_secs()
        };
        const QUERY: &str = "{ promql = 'max(a)' }";
        const PAGE: &str = "{ metric = 'a' }";
        assert_eq!([of("20s", QUERY), of("45s", QUERY), of("3m", QUERY)], [10, 15, 60]);
        assert_eq!(of("3m", PAGE), 10, "a page is read here");
        assert_eq!(of("3m", &format!("{PAGE}, {QUERY}")), 10, "a page is preferred");
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
                    ClassLoop { class: ClassId(0), limit: LimitKind::Rate, by: LoopKind::Outer, timing, law, bounds };
                prop_assert!(each.is_safe_by_construction());
                prop_assert!(each.verdict().is_ok(), "{law:?} {:?}", each.assess());
            }
        }
    }
}
