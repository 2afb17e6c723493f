//! The controller: readings and the proxy's own counts in, a new limit table and its reasons out.
//!
//! Two loops in cascade. The inner one steps on the proxy's latency, as soon as a
//! class has finished enough exchanges to tell (`inner`); it saves the head in the first
//! seconds. The outer one steps once per fresh reading of Ray's (`outer`); it finds what
//! holds. A class's concurrency is the lesser of what the two allow, its rate is the outer
//! loop's. Submissions are also gated on the backlog they leave behind ([`backlog`]),
//! because latency peaks only after their arrivals have stopped.
//!
//! The controller is driven: `run` calls it from tokio with the OS's time, `simulate` from an
//! event heap with virtual time. It owns no clock and does nothing; what is to be done it
//! returns as [`Effects`].

mod apply_override;
pub mod backlog;
#[cfg(test)]
mod eight_servers_tests;
#[cfg(test)]
mod evidence_tests;
mod inner;
pub mod leadership;
#[cfg(test)]
mod logged_moves_tests;
mod outer;
pub mod overrides;
mod replica;
#[cfg(test)]
mod retry_after_tests;
pub(crate) mod signal_store;
pub mod view;

use crate::admission::controller::AdmissionController;
pub use crate::admission::meter::{ClassReading, ProxyReading};
use crate::admission::meter::{Counts, Reason};
use crate::admission::table::{LimitTable, Mode};
use crate::alert::{self, Alert, Alerts, Patience};
use crate::control::backlog::Drain;
use crate::control::job_starts::Waiting;
use crate::control::law::Terms;
use crate::control::oscillation::Oscillation;
use crate::control::regulator::{Move, Regulator};
use crate::control::trial::Trials;
use crate::controller::backlog::{Backlog, backlog_followed};
use crate::controller::leadership::Leadership;
use crate::controller::overrides::Overrides;
use crate::controller::signal_store::SignalStore;
use crate::event::{
    Adjustment, Apportioned, Cause, Count, Derivation, Event, LimitKind, LoopKind, Mode as EffectiveMode,
    Other, ShedSummary, SignalSeen, Start, StartLimit,
};
use crate::policy::{Bounds, ClassId, Kind, Policy, SignalId, Treatment};
use crate::signal::reading::{Missing, Reading};
use crate::time::{Time, WallMs};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Reads the admission controller's counters.
#[must_use]
pub fn read_proxy<W>(admission: &AdmissionController<W>, classes: usize, now: Time) -> ProxyReading {
    (0..u8::try_from(classes).unwrap_or(u8::MAX)).map(|at| admission.reading(ClassId(at), now)).collect()
}

/// What is to be done after a step.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// The table to put in force, if it changed.
    pub table: Option<Arc<LimitTable>>,
    /// What happened, for the adjustment log.
    pub events: Vec<Event>,
    /// Alerts that began or ended.
    pub alerts: Vec<alert::Transition>,
    /// Over how many seconds each class's refusals are to be spread, where that changed.
    pub spreads: Vec<(ClassId, u32)>,
}

/// A limit of the last run.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct LastGood {
    /// The class's name.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// Its value.
    pub value: f64,
    /// For a rate that follows a backlog: how many the head was seen to start per second at the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_per_s: Option<f64>,
}

/// One limit under one loop.
#[derive(Clone, Debug)]
struct Loop {
    kind: LimitKind,
    which: LoopKind,
    regulator: Regulator,
    limit: f64,
    oscillation: Oscillation,
    /// The counts and the time of its last step.
    since: Time,
    counts: Counts,
    /// The counts when so many had been answered last that their spread was told.
    spread_since: Counts,
    peak: u32,
    /// What it last did, for the view.
    binding: bool,
    /// Whether its cuts on signals have helped.
    trials: Trials,
}

impl Loop {
    fn new(kind: LimitKind, which: LoopKind, regulator: &Regulator, last: Option<f64>, now: Time) -> Loop {
        Loop {
            kind,
            which,
            regulator: *regulator,
            limit: regulator.warm_start(last),
            oscillation: Oscillation::new(Duration::from_secs(300)),
            since: now,
            counts: Counts::default(),
            spread_since: Counts::default(),
            peak: 0,
            binding: false,
            trials: Trials::default(),
        }
    }

    /// Its value after a restart is worth starting from. The outer ceiling begins open: what it was
    /// lowered for may be long gone.
    fn is_kept(&self) -> bool {
        self.which == LoopKind::Inner || self.kind == LimitKind::Rate
    }
}

/// The loops of one class.
#[derive(Clone, Debug)]
struct ClassLoops {
    inner: Option<Loop>,
    outer: Option<Loop>,
    /// The rate after the backlog it leaves.
    drain: Option<Loop>,
    measured: Drain,
    backlog: Option<Backlog>,
    mode: Mode,
    /// As configured; `mode` differs where an operator has set it by hand.
    configured_mode: Mode,
    pressure: Option<f64>,
    spread_s: u32,
    recent: Recent,
}

impl ClassLoops {
    fn all(&self) -> impl Iterator<Item = &Loop> {
        self.inner.iter().chain(&self.outer).chain(&self.drain)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Loop> {
        self.inner.iter_mut().chain(&mut self.outer).chain(&mut self.drain)
    }
}

/// Averages over about ten seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    offered_per_s: f64,
    admitted_per_s: f64,
    shed_per_s: f64,
    failed_per_s: f64,
    /// Learnt work, in busy seconds per second.
    work_per_s: f64,
    /// Admissions, over [`USED_S`]: what waits for a reading comes in bursts.
    used_per_s: f64,
    /// How much of that average has been seen, 0 to 1: it begins with nothing.
    used_seen: f64,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct Controller {
    policy: Arc<Policy>,
    policy_version: u64,
    table: Arc<LimitTable>,
    classes: Vec<ClassLoops>,
    signal_store: SignalStore,
    overrides: Overrides,
    leadership: Option<Leadership>,
    /// What the jobs say that were let in here.
    job_starts: Option<Waiting>,
    alerts: Alerts,
    alerts_unwanted: Vec<Alert>,
    upstream_problem: Option<String>,
    config_problem: Option<String>,
    events_lost: u64,
    /// Moves of limits by a reload, for the next step to hand on.
    reload_moves: Vec<Event>,
    last_tick: Time,
    last_proxy: ProxyReading,
    /// The same with what the other replicas count, where this controller decides for them too.
    last_whole: ProxyReading,
    summarised: Vec<Counts>,
    summarised_at: Time,
    judged_at: Option<Time>,
    warm: Vec<bool>,
}

/// How often refusals are summed up for the adjustment log.
const SUMMARY_PERIOD: Duration = Duration::from_secs(10);

/// How often alert rules are judged: their patience is counted in seconds, and each judgement puts
/// every rule of every class into words.
const JUDGEMENT_PERIOD: Duration = Duration::from_secs(1);

/// An inner loop waits for so long until it has seen enough; then less must do.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Of its module's time a class keeps this share, whatever the head is short of.
const SHARE_MIN: f64 = 0.1;

impl Controller {
    /// A controller whose limits start at `initial`, or at the last run's where they are known.
    #[must_use]
    pub fn new(policy: Arc<Policy>, modes: &[Mode], last_good: &[LastGood], now: Time) -> Controller {
        let mut warm = Vec::new();
        let classes = policy
            .classes
            .iter()
            .enumerate()
            .map(|(at, class)| {
                let mut make = |kind, which, bounds: Bounds| {
                    let regulator = match which {
                        LoopKind::Backlog => Regulator::of_backlog(bounds, &policy.control),
                        LoopKind::Inner | LoopKind::Outer => {
                            Regulator::new(&class.law, bounds, &policy.control)
                        }
                    };
                    let last = last_good.iter().find(|last| *last.class == *class.name && last.limit == kind);
                    let mut of = Loop::new(kind, which, &regulator, None, now);
                    if of.is_kept() {
                        of.limit = regulator.warm_start(last.map(|last| last.value));
                    }
                    warm.push(of.is_kept() && last.is_some());
                    of
                };
                let limited = class.treatment == Treatment::Limited;
                let inner = (limited && class.kind == Kind::Unary && class.in_flight.moves())
                    .then(|| make(LimitKind::InFlight, LoopKind::Inner, class.in_flight));
                let counts = backlog_followed(&policy, at);
                let rate = class.rate.filter(|rate| rate.per_second.moves());
                let outer = if !limited || class.signals.iter().all(|id| Some(*id) == counts) {
                    None
                } else if let Some(rate) = rate {
                    Some(make(LimitKind::Rate, LoopKind::Outer, rate.per_second))
                } else if class.in_flight.moves() {
                    // The ceiling begins fully open: it is the signals' to lower, and in one process down to a share
                    // of its time (law 6).
                    let is_one_process = policy.modules[class.module.index()].is_one_process();
                    let share = if is_one_process { SHARE_MIN } else { f64::INFINITY };
                    let min = class.in_flight.min.min(share);
                    let open = Bounds { initial: class.in_flight.max, min, ..class.in_flight };
                    Some(make(LimitKind::InFlight, LoopKind::Outer, open))
                } else {
                    None
                };
                let drain = rate.filter(|_| limited && counts.is_some());
                let drain = drain.map(|rate| make(LimitKind::Rate, LoopKind::Backlog, rate.per_second));
                let gated = class.backlog.filter(|_| limited);
                let mut of_class = last_good.iter().filter(|last| *last.class == *class.name);
                let starts_per_s = of_class.find_map(|last| last.starts_per_s);
                ClassLoops {
                    inner,
                    outer,
                    drain,
                    measured: Drain::known_to_start(starts_per_s),
                    backlog: gated.map(|id| Backlog::new(id, policy.signals[id.index()].target, now)),
                    mode: modes.get(at).copied().unwrap_or(Mode::Enforce),
                    configured_mode: modes.get(at).copied().unwrap_or(Mode::Enforce),
                    pressure: None,
                    spread_s: 1,
                    recent: Recent::default(),
                }
            })
            .collect();
        let count = policy.classes.len();
        let mut controller = Controller {
            table: Arc::new(LimitTable::initial(&policy)),
            signal_store: SignalStore::new(&policy, now),
            policy,
            policy_version: 1,
            classes,
            overrides: Overrides::default(),
            leadership: None,
            job_starts: None,
            alerts: Alerts::default(),
            alerts_unwanted: Vec::new(),
            upstream_problem: None,
            config_problem: None,
            events_lost: 0,
            reload_moves: Vec::new(),
            last_tick: now,
            last_proxy: vec![ClassReading::default(); count],
            last_whole: vec![ClassReading::default(); count],
            summarised: vec![Counts::default(); count],
            summarised_at: now,
            judged_at: None,
            warm,
        };
        controller.table = Arc::new(controller.make_table());
        controller
    }

    /// The same with these alert rules and no others.
    #[must_use]
    pub fn with_alerts(mut self, rules: &BTreeMap<Alert, Patience>) -> Controller {
        self.alerts = Alerts::with_patience(rules.clone());
        self.alerts_unwanted = Alert::ALL.into_iter().filter(|alert| !rules.contains_key(alert)).collect();
        self
    }

    /// Takes on a new policy without a bump: limits, laws, pins, modes set by hand and averages go
    /// on under the same class names, within the new bounds.
    #[must_use]
    pub fn reconfigure(
        &self,
        policy: Arc<Policy>,
        modes: &[Mode],
        rules: &BTreeMap<Alert, Patience>,
        now: Time,
    ) -> Controller {
        let mut next = Controller::new(policy, modes, &[], now);
        let place = |name: &str| self.policy.classes.iter().position(|class| *class.name == *name);
        for (at, class) in next.policy.classes.iter().enumerate() {
            let Some(old_at) = place(&class.name) else { continue };
            let old = &self.classes[old_at];
            let new = &mut next.classes[at];
            let pairs =
                [(&mut new.inner, &old.inner), (&mut new.outer, &old.outer), (&mut new.drain, &old.drain)];
            for (of, before) in pairs {
                if let (Some(of), Some(before)) = (of, before)
                    && of.kind == before.kind
                {
                    let bounds = of.regulator.guardrails.bounds;
                    let regulator = before.regulator.reload(&class.law, bounds, &next.policy.control);
                    let trials = before.trials.under(|id| signal_in(&next.policy, &self.policy, id));
                    *of = Loop { regulator, limit: bounds.clamp(before.limit), trials, ..before.clone() };
                }
            }
            new.measured.clone_from(&old.measured);
            match (&mut new.backlog, &old.backlog) {
                (Some(of), Some(before)) => of.take_over(before),
                (Some(of), None) => of.begin_at(self.last_proxy[old_at].counts.admitted),
                (None, _) => {}
            }
            // What an operator has set by hand stays, until the configuration says something else than before.
            if new.configured_mode == old.configured_mode {
                new.mode = old.mode;
            }
            new.pressure = old.pressure;
            new.spread_s = old.spread_s;
            new.recent = old.recent;
            next.last_proxy[at].clone_from(&self.last_proxy[old_at]);
            next.last_whole[at].clone_from(&self.last_whole[old_at]);
            next.summarised[at].clone_from(&self.summarised[old_at]);
        }
        next.signal_store.take_over(&next.policy, &self.signal_store, &self.policy);
        next.overrides = self.overrides.under(|class| {
            let name = &self.policy.classes[class].name;
            next.policy.classes.iter().position(|class| class.name == *name)
        });
        next.leadership = self.leadership.as_ref().map(|leadership| {
            leadership.under(next.policy.classes.len(), |at| place_in(&next.policy, &self.policy, at))
        });
        next.job_starts = self.job_starts;
        next.alerts = self.alerts.clone();
        next.alerts_unwanted = Alert::ALL.into_iter().filter(|alert| !rules.contains_key(alert)).collect();
        next.upstream_problem.clone_from(&self.upstream_problem);
        next.events_lost = self.events_lost;
        next.last_tick = self.last_tick;
        next.summarised_at = self.summarised_at;
        next.judged_at = self.judged_at;
        next.policy_version = self.policy_version + 1;
        // Another reload within one tick has moved these.
        next.reload_moves.clone_from(&self.reload_moves);
        for (at, class) in next.policy.classes.iter().enumerate() {
            let Some(old) = place(&class.name).map(|old_at| &self.classes[old_at]) else { continue };
            let new = &next.classes[at];
            let pairs = [(&new.inner, &old.inner), (&new.outer, &old.outer), (&new.drain, &old.drain)];
            for (of, before) in pairs {
                if let (Some(of), Some(before)) = (of, before) {
                    let why = "the new configuration has other bounds".to_owned();
                    next.reload_moves.extend(next.handed_in(at, of, before.limit, why));
                }
            }
        }
        let mut table = next.make_table();
        table.version = self.table.version + 1;
        next.table = Arc::new(table);
        next
    }

    /// How many configurations have been accepted, this one included.
    #[must_use]
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// The table in force.
    #[must_use]
    pub fn table(&self) -> Arc<LimitTable> {
        Arc::clone(&self.table)
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The first line of a run's adjustment log.
    #[must_use]
    pub fn start_event(&self, version: &str, run: &str) -> Event {
        let mut warm = self.warm.iter();
        let limits = self.loops().map(|(class, of)| StartLimit {
            class: self.policy.classes[class].name.to_string(),
            limit: of.kind,
            value: of.limit,
            warm: warm.next().copied().unwrap_or(false),
        });
        Event::Start(Start {
            version: version.to_owned(),
            policy_version: self.policy_version,
            limits: limits.collect(),
            run: run.to_owned(),
        })
    }

    /// Limits worth starting from next time.
    #[must_use]
    pub fn last_good(&self) -> Vec<LastGood> {
        self.loops()
            .filter(|(_, of)| of.is_kept())
            .map(|(class, of)| LastGood {
                class: self.policy.classes[class].name.to_string(),
                limit: of.kind,
                value: of.limit,
                starts_per_s: (of.which == LoopKind::Backlog)
                    .then(|| self.classes[class].measured.least())
                    .filter(|starts| *starts > 0.0),
            })
            .collect()
    }

    /// Takes in what was read of Ray, and what could not be.
    pub fn on_readings(&mut self, readings: &[(SignalId, Result<Reading, Missing>)], now: Time) -> Effects {
        let events = self.signal_store.on_readings(&self.policy, readings, now);
        Effects { events, ..Effects::default() }
    }

    /// Takes in how many of the jobs that were let in here wait for their start, as they say themselves.
    pub fn on_job_starts(&mut self, waiting: Option<Waiting>) {
        self.job_starts = waiting;
    }

    /// Whether a limit follows how many jobs wait for their start.
    #[must_use]
    pub fn follows_job_starts(&self) -> bool {
        let mut classes = self.policy.classes.iter().enumerate();
        classes.any(|(at, class)| class.backlog.is_some() || backlog_followed(&self.policy, at).is_some())
    }

    fn proxies(&self) -> u32 {
        self.leadership.as_ref().map_or(1, Leadership::replicas)
    }

    /// Takes in whether the head accepts connections.
    pub fn on_upstream(&mut self, problem: Option<&str>, now: Time) -> Effects {
        let was_down = self.upstream_problem.is_some();
        self.upstream_problem = problem.map(str::to_owned);
        let mut effects = Effects::default();
        if was_down != problem.is_some() {
            effects
                .events
                .push(Event::Upstream { up: problem.is_none(), problem: problem.unwrap_or("").to_owned() });
        }
        if was_down && problem.is_none() {
            for class in 0..self.classes.len() {
                let Some(of) = &mut self.classes[class].inner else { continue };
                let old = of.limit;
                of.limit = of.regulator.recover(old, now, RECOVERY);
                let why = format!(
                    "slow start: Ray is reachable again; it may rise to its ceiling within {} s",
                    RECOVERY.as_secs()
                );
                let of = of.clone();
                effects.events.extend(self.handed_in(class, &of, old, why));
            }
            effects.table = self.renew_table();
        }
        effects
    }

    /// Takes in why the last configuration was refused, or that it was not.
    pub fn on_config(&mut self, problem: Option<&str>) {
        self.config_problem = problem.map(str::to_owned);
    }

    /// Takes in how many events the adjustment log has lost since the start.
    pub fn on_events_lost(&mut self, events_lost: u64) {
        self.events_lost = events_lost;
    }

    /// One step of everything that is due.
    pub fn on_tick(&mut self, proxy: ProxyReading, now: Time, wall: WallMs) -> Effects {
        let mut effects = Effects { events: self.signal_store.tick(&self.policy, now), ..Effects::default() };
        effects.events.append(&mut self.reload_moves);
        effects.events.extend(self.release_pins(now, wall));
        let whole = self.leadership.as_ref().map(|leadership| leadership.whole(&proxy));
        let whole = whole.as_ref().unwrap_or(&proxy);
        self.average(whole, now);
        if !self.decides() {
            self.keep_ready(whole, now);
        } else if !self.overrides.frozen() {
            self.step_inner(whole, now, &mut effects.events);
            self.step_outer(whole, now, &mut effects.events);
        }
        self.step_backlog(&proxy, whole, now);
        if self.leadership.is_some() {
            self.last_whole.clone_from(whole);
        }
        effects.table = self.renew_table();
        effects.spreads = self.spreads();
        self.sum_up(&proxy, now, &mut effects.events);
        effects.alerts = self.judge(&proxy, now);
        effects.events.extend(effects.alerts.iter().cloned().map(Event::Alert));
        self.last_proxy = proxy;
        self.last_tick = now;
        effects
    }

    fn loops(&self) -> impl Iterator<Item = (usize, &Loop)> {
        self.classes.iter().enumerate().flat_map(|(at, class)| class.all().map(move |of| (at, of)))
    }

    /// The table as the loops, pins and modes want it; the version is the next one's.
    fn make_table(&self) -> LimitTable {
        let mut table = LimitTable::initial(&self.policy);
        table.version = self.table.version;
        for (at, (loops, limits)) in self.classes.iter().zip(&mut table.classes).enumerate() {
            limits.mode = loops.mode;
            if let Some(inner) = &loops.inner {
                limits.in_flight = inner.limit;
            }
            // Every limit of an outer loop is a ceiling: the lowest holds.
            for of in loops.outer.iter().chain(&loops.drain) {
                match of.kind {
                    LimitKind::Rate => {
                        let only = if of.which == LoopKind::Outer { None } else { loops.outer.as_ref() };
                        limits.rate = Some(only.map_or(of.limit, |other| other.limit.min(of.limit)));
                    }
                    LimitKind::InFlight => limits.in_flight = limits.in_flight.min(of.limit),
                    LimitKind::ModuleInFlight => {}
                }
            }
            limits.admitted_max = loops.backlog.as_ref().map(Backlog::admitted_max);
            self.overrides.apply(at, limits);
        }
        table
    }

    fn renew_table(&mut self) -> Option<Arc<LimitTable>> {
        let mut table = self.make_table();
        if table == *self.table {
            return None;
        }
        table.version += 1;
        self.table = Arc::new(table);
        Some(self.table())
    }

    /// Who decides about a class, for the adjustment log.
    fn who(&self, class: usize) -> EffectiveMode {
        match self.classes[class].mode {
            Mode::Shadow => EffectiveMode::Shadow,
            Mode::Enforce => EffectiveMode::Enforce,
        }
    }

    fn record(&self, class: usize, of: &Loop, cause: Reasons, step: &Move) -> Event {
        let others =
            self.classes[class].all().filter(|other| other.kind == of.kind && other.which != of.which);
        let other = others.min_by(|a, b| a.limit.total_cmp(&b.limit));
        Event::Adjustment(Box::new(Adjustment::new(
            Cause {
                class: self.policy.classes[class].name.to_string(),
                limit: of.kind,
                r#loop: of.which,
                mode: self.who(class),
                policy_version: self.policy_version,
                signals: cause.signals,
                apportioned: cause.apportioned,
                derivation: cause.derivation,
                decided_by: self.leadership.as_ref().map(|leadership| leadership.me().to_owned()),
                other: other.map(|other| Other { r#loop: other.which, value: other.limit }),
            },
            step,
        )))
    }

    /// A limit that no law has moved.
    fn handed_in(&self, class: usize, of: &Loop, old: f64, why: String) -> Option<Event> {
        let step = Move { old, new: of.limit, terms: Terms::NoInformation, guardrail: None };
        let derivation = Derivation::Given { why };
        let reasons = Reasons { signals: Vec::new(), apportioned: None, derivation };
        (step.old.to_bits() != step.new.to_bits()).then(|| self.record(class, of, reasons, &step))
    }

    fn average(&mut self, proxy: &ProxyReading, now: Time) {
        let elapsed = now.since(self.last_tick).as_secs_f64();
        if elapsed <= 0.0 {
            return;
        }
        let weight = 1.0 - (-elapsed / RECENT_S).exp();
        let slow = 1.0 - (-elapsed / USED_S).exp();
        let last = if self.leadership.is_some() { &self.last_whole } else { &self.last_proxy };
        for ((loops, seen), before) in self.classes.iter_mut().zip(proxy).zip(last) {
            let (now, then) = (&seen.counts, &before.counts);
            let recent = &mut loops.recent;
            let mix = |average: &mut f64, count: u64| blend(average, count as f64 / elapsed, weight);
            mix(&mut recent.offered_per_s, now.offered.saturating_sub(then.offered));
            let admitted = now.admitted.saturating_sub(then.admitted);
            mix(&mut recent.admitted_per_s, admitted);
            mix(&mut recent.shed_per_s, now.shed_for_load().saturating_sub(then.shed_for_load()));
            mix(&mut recent.failed_per_s, now.failed_all().saturating_sub(then.failed_all()));
            let work_s = now.work_us.saturating_sub(then.work_us) as f64 / 1e6;
            blend(&mut recent.work_per_s, work_s / elapsed, weight);
            blend(&mut recent.used_per_s, admitted as f64 / elapsed, slow);
            blend(&mut recent.used_seen, 1.0, slow);
        }
    }

    /// Refusals are spread over the time it takes to serve as many as were refused lately.
    fn spreads(&mut self) -> Vec<(ClassId, u32)> {
        let mut changed = Vec::new();
        for (at, loops) in self.classes.iter_mut().enumerate() {
            let refused = loops.recent.shed_per_s * RECENT_S;
            let seconds = refused / loops.recent.admitted_per_s.max(0.2);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=60")]
            let spread = seconds.ceil().clamp(1.0, 60.0) as u32;
            if spread != loops.spread_s
                && let Ok(id) = u8::try_from(at)
            {
                loops.spread_s = spread;
                changed.push((ClassId(id), spread));
            }
        }
        changed
    }

    fn sum_up(&mut self, proxy: &ProxyReading, now: Time, events: &mut Vec<Event>) {
        let interval = now.since(self.summarised_at);
        if interval < SUMMARY_PERIOD {
            return;
        }
        for ((class, seen), before) in self.policy.classes.iter().zip(proxy).zip(&mut self.summarised) {
            let counts = seen.counts.since(before);
            before.clone_from(&seen.counts);
            if counts.shed_all() + counts.shadow_shed == 0 {
                continue;
            }
            let causes =
                Reason::ALL.iter().filter(|reason| counts.shed[**reason as usize] > 0).map(|reason| Count {
                    label: reason.label().to_owned(),
                    count: counts.shed[*reason as usize],
                });
            events.push(Event::ShedSummary(ShedSummary {
                class: class.name.to_string(),
                interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
                offered: counts.offered,
                served: counts.served,
                causes: causes.collect(),
                shadow: counts.shadow_shed,
                clients: Vec::new(),
            }));
        }
        self.summarised_at = now;
    }

    fn judge(&mut self, proxy: &ProxyReading, now: Time) -> Vec<alert::Transition> {
        if self.judged_at.is_some_and(|at| now.since(at) < JUDGEMENT_PERIOD) {
            return Vec::new();
        }
        self.judged_at = Some(now);
        let mut alerts = std::mem::take(&mut self.alerts);
        let none = Counts::default();
        let counts = proxy.iter().map(|seen| &seen.counts).chain(std::iter::repeat(&none));
        let classes = self.policy.classes.iter().zip(&self.classes).zip(counts);
        let classes = classes.map(|((class, loops), counts)| alert::ClassFacts {
            name: &class.name,
            slo_pressure: loops.pressure,
            offered: counts.offered,
            shed: counts.shed_for_load(),
            failed: counts.failed_all(),
            late: counts.late,
            rate_alert: class.alert_above,
        });
        let this = &*self;
        let limits = (0..this.classes.len()).flat_map(move |at| {
            [LimitKind::InFlight, LimitKind::Rate]
                .into_iter()
                .filter_map(move |kind| this.limit_facts(at, kind))
        });
        let facts = alert::Facts {
            classes: classes.collect(),
            limits: limits.collect(),
            signals: self.signal_store.facts(&self.policy, now),
            upstream_problem: self.upstream_problem.as_deref(),
            config_problem: self.config_problem.as_deref(),
            store_problem: self.leadership.as_ref().and_then(Leadership::problem),
            events_lost: self.events_lost,
        };
        let mut transitions = alerts.tick(now, &facts);
        transitions.retain(|transition| !self.alerts_unwanted.contains(&transition.alert));
        self.alerts = alerts;
        transitions
    }
}

impl Controller {
    /// One limit of one class as it is in force: of several ceilings the lowest, and all of them where one is hunting.
    /// Two that are judged by turns under one name would each deny what the other says.
    fn limit_facts(&self, at: usize, kind: LimitKind) -> Option<alert::LimitFacts<'_>> {
        let loops = &self.classes[at];
        let of = loops.all().filter(|of| of.kind == kind).min_by(|a, b| a.limit.total_cmp(&b.limit))?;
        let hunting = loops.all().find(|of| of.kind == kind && of.oscillation.is_hunting());
        Some(alert::LimitFacts {
            class: &self.policy.classes[at].name,
            limit: kind,
            value: of.limit,
            bounds: of.regulator.guardrails.bounds,
            // A step may be long ago: a class that no client asks for any more is not held back.
            binding: of.binding && loops.recent.offered_per_s >= ASKED_MIN_PER_S,
            hunting: hunting.is_some(),
            swing: hunting.unwrap_or(of).oscillation.swing(),
        })
    }
}

/// A class of which fewer requests per second arrive is at rest.
const ASKED_MIN_PER_S: f64 = 0.05;

/// The place in one policy of the class at a place in another.
fn place_in(policy: &Policy, other: &Policy, at: usize) -> Option<usize> {
    policy.classes.iter().position(|class| class.name == other.classes[at].name)
}

/// The place in one policy of the signal at a place in another.
fn signal_in(policy: &Policy, other: &Policy, id: SignalId) -> Option<SignalId> {
    let name = &other.signals[id.index()].name;
    let at = policy.signals.iter().position(|signal| signal.name == *name)?;
    u8::try_from(at).ok().map(SignalId)
}

/// What an adjustment is put down to.
struct Reasons {
    signals: Vec<SignalSeen>,
    apportioned: Option<Apportioned>,
    derivation: Derivation,
}

/// Moves an average towards a value by this share of the way.
fn blend(average: &mut f64, value: f64, weight: f64) {
    *average += weight * (value - *average);
}

/// Time constant of the recent averages, in seconds.
const RECENT_S: f64 = 10.0;

/// And of what is used of a rate, over several readings of Ray's.
const USED_S: f64 = 30.0;

/// The way back to full limits after the head was away.
const RECOVERY: Duration = Duration::from_secs(30);
