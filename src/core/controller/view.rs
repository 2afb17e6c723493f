//! What the controller looks like from outside: for the admin API, `status`, the demo and reports.

use crate::admission::controller::HeldBy;
use crate::admission::table::Mode as ShedMode;
use crate::alert;
use crate::controller::overrides::{Pin, PinView};
use crate::controller::{Controller, ProxyReading};
use crate::event::{LimitKind, Mode, SignalHealth};
use crate::policy::{ClassId, SignalId, Treatment};
use crate::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything at one moment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct View {
    /// Version of the limit table.
    pub table: u64,
    /// Whether all limits are held.
    pub frozen: bool,
    /// Why the head does not answer, if it does not.
    pub upstream_problem: Option<String>,
    /// Why the last configuration was refused, if it was.
    pub config_problem: Option<String>,
    /// Signals in the policy's order.
    pub signals: Vec<SignalView>,
    /// Classes in the policy's order.
    pub classes: Vec<ClassView>,
    /// Modules in the policy's order.
    pub modules: Vec<ModuleView>,
    /// What is held by hand.
    pub pins: Vec<PinView>,
    /// Alerts that fire.
    pub alerts: Vec<alert::Transition>,
    /// Events lost from the adjustment log since the start.
    pub events_lost: u64,
    /// The other replicas; null where the configuration has no `[replicas]`.
    #[serde(default)]
    pub replicas: Option<crate::controller::leadership::ReplicasView>,
}

/// One module.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Module")]
pub struct ModuleView {
    /// Its name.
    pub name: String,
    /// Requests of its classes under way, held ones included.
    pub in_flight: u32,
    /// How many unary requests may be under way at once.
    pub limit: f64,
}

/// One signal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Signal")]
pub struct SignalView {
    /// Its name.
    pub name: String,
    /// Whether its readings arrive.
    pub health: SignalHealth,
    /// The last value, in `unit`.
    pub value: Option<f64>,
    /// The target, in `unit`.
    pub target: f64,
    /// `value / target`: 1 is at target.
    pub pressure: Option<f64>,
    /// Its unit.
    pub unit: String,
    /// Age of the last value, in seconds.
    pub age_s: Option<f64>,
    /// Where it comes from.
    pub source: String,
    /// What is wrong, or empty.
    pub problem: String,
    /// Whether a limit follows it; others are shown for information.
    #[serde(default)]
    pub followed: bool,
}

/// One class.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Class")]
pub struct ClassView {
    /// Its name.
    pub name: String,
    /// Its module.
    pub module: String,
    /// What is done with its requests.
    pub treatment: Treatment,
    /// `shadow`, whatever is pinned or frozen; else `manual` (a limit is pinned), `frozen` or `enforce`.
    pub mode: Mode,
    /// 0 (served last) to 9 (served first).
    #[schemars(range(max = 9))]
    pub priority: u8,
    /// The latency at the proxy divided by the objective, as last measured; null while there is no measurement.
    pub slo_pressure: Option<f64>,
    /// The objective, in seconds.
    pub slo_s: f64,
    /// Its limits, as they are in force.
    pub limits: Vec<LimitView>,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Learnt work of those under way, in seconds of the module's time.
    #[serde(default)]
    pub work_under_way_s: f64,
    /// How much of it may be under way, where the module is one process; a limit beside those in `limits`, which the
    /// controller does not move.
    #[serde(default)]
    pub work_limit_s: Option<f64>,
    /// Requests waiting now.
    pub waiting: u32,
    /// Requests per second that came, over about ten seconds.
    pub offered_per_s: f64,
    /// Requests per second admitted.
    pub admitted_per_s: f64,
    /// Requests per second refused.
    pub shed_per_s: f64,
    /// Requests per second that failed: Ray could not be reached, answered 500 or above, took too long, or broke off.
    #[serde(default)]
    pub failed_per_s: f64,
    /// Share of its module's time it uses, learnt.
    pub work_per_s: f64,
    /// Requests since the start.
    pub offered: u64,
    /// Sent on since the start.
    pub admitted: u64,
    /// Refused for load since the start.
    pub shed: u64,
    /// Failed since the start; those that were sent to Ray are among `admitted`.
    #[serde(default)]
    pub failed: u64,
    /// Sent on since the start, and would have been refused were the class not in shadow mode.
    pub shadow_shed: u64,
    /// The same per second.
    #[serde(default)]
    pub shadow_shed_per_s: f64,
    /// Left before they were decided on, since the start.
    #[serde(default)]
    pub left: u64,
    /// Answered with another request's answer since the start; these are not among `offered`.
    #[serde(default)]
    pub shared: u64,
    /// The same per second.
    #[serde(default)]
    pub shared_per_s: f64,
    /// Which limit keeps requests waiting now; null while none waits.
    #[serde(default)]
    pub held_by: Option<HeldBy>,
}

/// One limit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Limit")]
pub struct LimitView {
    /// Which limit.
    pub limit: LimitKind,
    /// The value in force.
    pub value: f64,
    /// The lower bound.
    pub min: f64,
    /// The upper bound.
    pub max: f64,
    /// Where it starts.
    pub initial: f64,
    /// Whether it holds something back.
    pub binding: bool,
    /// 0 (steady or going somewhere) to 1 (swinging for nothing).
    pub oscillation: f64,
    /// Pinned by hand.
    pub pinned: bool,
}

impl Controller {
    /// The pressure on a class, 1 at its target: the worst of its own latency and of the signals it
    /// follows, as last told. `None` while nothing is known.
    #[must_use]
    pub fn pressure(&self, class: ClassId) -> Option<f64> {
        let of_signal = |id: &SignalId| {
            let reading = self.signal_store.get(*id)?.reading.as_ref()?;
            Some(reading.value / self.policy.signals[id.index()].target)
        };
        let signals = &self.policy.classes[class.index()].signals;
        let own = self.classes[class.index()].pressure;
        own.into_iter().chain(signals.iter().filter_map(of_signal)).filter(|p| p.is_finite()).reduce(f64::max)
    }

    /// The whole, as of the last tick.
    #[must_use]
    pub fn view(&self, now: Time) -> View {
        View {
            table: self.table.version,
            frozen: self.overrides.frozen(),
            upstream_problem: self.upstream_problem.clone(),
            config_problem: self.config_problem.clone(),
            signals: self.signal_views(now),
            classes: (0..self.classes.len()).map(|at| self.class_view(at, &self.last_proxy)).collect(),
            modules: self.module_views(),
            pins: self.pin_views(now),
            alerts: self.alerts.firing().cloned().collect(),
            events_lost: self.events_lost,
            replicas: self.replicas(),
        }
    }

    /// The proxy's counts as of the last tick, in the policy's order.
    #[must_use]
    pub fn proxy(&self) -> &ProxyReading {
        &self.last_proxy
    }

    /// When the controller last stepped.
    #[must_use]
    pub fn ticked_at(&self) -> Time {
        self.last_tick
    }

    fn module_views(&self) -> Vec<ModuleView> {
        let view = |(at, module): (usize, &crate::policy::Module)| {
            let classes = self.policy.classes.iter().zip(&self.last_proxy);
            ModuleView {
                name: module.name.to_string(),
                in_flight: classes
                    .filter(|(class, _)| class.module.index() == at)
                    .map(|(_, seen)| seen.in_flight)
                    .sum(),
                limit: self.table.modules[at].in_flight,
            }
        };
        // A module whose classes another process serves has no limit of its own.
        let serves = |at: &usize| self.policy.classes.iter().any(|class| class.module.index() == *at);
        self.policy.modules.iter().enumerate().filter(|(at, _)| serves(at)).map(view).collect()
    }

    pub(super) fn pin_views(&self, now: Time) -> Vec<PinView> {
        let view = |pin: &Pin| PinView {
            class: self.policy.classes[pin.class].name.to_string(),
            limit: pin.limit,
            value: pin.value,
            left_s: pin.until.since(now).as_secs_f64(),
            who: pin.who.clone(),
            why: pin.why.clone(),
        };
        self.overrides.pins().iter().map(view).collect()
    }

    fn signal_views(&self, now: Time) -> Vec<SignalView> {
        let view = |(at, signal): (usize, &crate::policy::Signal)| {
            let posted = self.signal_store.get(SignalId(u8::try_from(at).ok()?))?;
            let reading = posted.reading.as_ref();
            Some(SignalView {
                name: signal.name.to_string(),
                health: posted.health(),
                value: reading.map(|reading| reading.value),
                target: signal.target,
                pressure: reading.map(|reading| reading.value / signal.target),
                unit: signal.unit.to_string(),
                age_s: posted.age(now).map(|age| age.as_secs_f64()),
                source: reading.map_or_else(String::new, |reading| reading.source.to_string()),
                problem: posted.problem.clone(),
                followed: self.policy.follows(SignalId(u8::try_from(at).ok()?)),
            })
        };
        self.policy.signals.iter().enumerate().filter_map(view).collect()
    }

    fn class_view(&self, at: usize, proxy: &ProxyReading) -> ClassView {
        let class = &self.policy.classes[at];
        let loops = &self.classes[at];
        let limits = self.table.classes[at];
        let seen = &proxy[at];
        let pinned = |kind| self.overrides.pins().iter().any(|pin| pin.class == at && pin.limit == kind);
        // The one that holds: the lowest.
        let of_kind = |kind: LimitKind| {
            loops.all().filter(move |of| of.kind == kind).min_by(|a, b| a.limit.total_cmp(&b.limit))
        };
        let mut views = Vec::new();
        if class.treatment == Treatment::Limited {
            let of = of_kind(LimitKind::InFlight);
            views.push(LimitView {
                limit: LimitKind::InFlight,
                value: limits.in_flight,
                min: class.in_flight.min,
                max: class.in_flight.max,
                initial: class.in_flight.initial,
                binding: of.is_some_and(|of| of.binding),
                oscillation: of.map_or(0.0, |of| of.oscillation.index()),
                pinned: pinned(LimitKind::InFlight),
            });
            if let (Some(bounds), Some(value)) = (class.rate, limits.rate) {
                let of = of_kind(LimitKind::Rate);
                views.push(LimitView {
                    limit: LimitKind::Rate,
                    value,
                    min: bounds.per_second.min,
                    max: bounds.per_second.max,
                    initial: bounds.per_second.initial,
                    binding: of.is_some_and(|of| of.binding),
                    oscillation: of.map_or(0.0, |of| of.oscillation.index()),
                    pinned: pinned(LimitKind::Rate),
                });
            }
        }
        // Shadow first: that nothing is shed is more than that a limit does not move, and `pinned` and `frozen` say so.
        let mode = if loops.mode == ShedMode::Shadow {
            Mode::Shadow
        } else if views.iter().any(|view| view.pinned) {
            Mode::Manual
        } else if self.overrides.frozen() {
            Mode::Frozen
        } else {
            Mode::Enforce
        };
        ClassView {
            name: class.name.to_string(),
            module: self.policy.modules[class.module.index()].name.to_string(),
            treatment: class.treatment,
            mode,
            priority: class.priority.0,
            slo_pressure: loops.pressure,
            slo_s: class.slo.latency.as_secs_f64(),
            limits: views,
            in_flight: seen.in_flight,
            work_under_way_s: 0.0,
            work_limit_s: None,
            waiting: seen.waiting,
            offered_per_s: loops.recent.offered_per_s,
            admitted_per_s: loops.recent.admitted_per_s,
            shed_per_s: loops.recent.shed_per_s,
            failed_per_s: loops.recent.failed_per_s,
            work_per_s: loops.recent.work_per_s,
            offered: seen.counts.offered,
            admitted: seen.counts.admitted,
            shed: seen.counts.shed_for_load(),
            failed: seen.counts.failed_all(),
            shadow_shed: seen.counts.shadow_shed,
            shadow_shed_per_s: 0.0,
            left: seen.counts.left,
            shared: 0,
            shared_per_s: 0.0,
            held_by: None,
        }
    }
}
