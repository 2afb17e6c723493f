//! The core's share of the file: signals, modules, classes, laws, objectives and routes.
//!
//! The file is laid over the built-in catalogue key by key: what it does not mention stays
//! as it is. A name that is not built in makes a new signal or class, which then must say
//! enough about itself to exist; if it does not, the name was probably a slip, and the
//! nearest built-in one is suggested.

use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::checked::{Judge, Place, mode_of, surface_of};
use super::defaults;
use super::problem::suggest;
use super::quantity::{BytesPerSecond, Length, Objective, OrOff, PerSecond, Short};
use super::raw::{
    Name, Raw, RawBounds, RawClass, RawControl, RawHow, RawKind, RawLaw, RawLawKind, RawModule, RawOnStale,
    RawPerClient, RawQueue, RawRate, RawRoute, RawSignal, RawSource, RawTreatment,
};
use super::selector;
use super::settings::Metrics;
use rayguard_core::admission::table::Mode;
use rayguard_core::policy::{
    Bounds, Class, Coalesce, Control, Derivation, How, Kind, Law, Module, ModuleId, OnStale, PerClientLimits,
    Policy, Priority, Queue, RateBounds, Selector, Signal, SignalId, SignalSource, Treatment,
};
use rayguard_core::request::catalogue::{self, Surface};
use rayguard_core::request::classify::{Classifier, HeaderIs, Rule};

/// Bounds of a concurrency limit. 0 would shut a class for good: `treatment` does that.
const IN_FLIGHT: [f64; 2] = [1.0, 1_000_000.0];
/// Bounds of a rate, per second: one an hour to a million a second.
const RATE: [f64; 2] = [1.0 / 3600.0, 1_000_000.0];
/// A burst that takes longer than this to come back is a slip.
const REFILL_MAX: Duration = Duration::from_secs(3600);
/// Ids are one byte.
const NAMES_MAX: usize = 256;

/// What was judged.
pub(super) struct Judged {
    pub(super) policy: Policy,
    pub(super) modes: Vec<Mode>,
    pub(super) routes: Vec<Rule>,
}

pub(super) fn judge(judge: &mut Judge, raw: &Raw, metrics: &Metrics, mode: Mode) -> Judged {
    let signals = judge.signals(raw, metrics);
    let modules = judge.modules(raw);
    let control = judge.control(&raw.control);
    let law = raw.control.law.as_ref().and_then(|law| judge.law("control.law", law));
    let mut classes = judge.classes(raw, &modules, &signals, law);
    judge.objectives(raw, &mut classes);
    judge.room(raw, &modules, &classes);
    judge.keys(raw);
    let given = |class: &Class| raw.class.iter().find(|(name, _)| name.get_ref() == &*class.name);
    let modes = classes.iter().map(|class| {
        let raw = given(class).and_then(|(_, raw)| raw.mode.as_ref());
        raw.map_or(mode, |mode| mode_of(*mode.get_ref()))
    });
    let modes = modes.collect();
    let history = raw.identity.history.unwrap_or(true);
    let policy = Policy { modules, classes, signals, control, history };
    let routes = judge.routes(raw, &policy);
    Judged { policy, modes, routes }
}

fn names<'a, T>(things: &'a [T], name: fn(&'a T) -> &'a Arc<str>) -> impl Iterator<Item = &'a str> + Clone {
    things.iter().map(move |thing| &**name(thing))
}

/// Where the file does not say when a signal is stale: one lost scrape does not make it so.
fn outlasts_lost_scrapes(signal: &Signal, metrics: &Metrics) -> Duration {
    let is_probed = matches!(signal.sources.first(), Some(SignalSource::Probe));
    if is_probed { signal.stale_after } else { signal.stale_after.max(3 * metrics.interval) }
}

/// Whether a name may become a label in metrics and logs.
fn is_label(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

impl Judge {
    /// A new name among `count` others, fit to be a label.
    fn new_name(&mut self, what: &str, key: &str, name: &Name, count: usize) -> bool {
        if !is_label(name.get_ref()) {
            let message = format!("`{}` cannot be the name of a {what}", name.get_ref());
            self.refuse(Place::new(key, name), message, "use 1 to 64 letters, digits, `-` and `_`");
            return false;
        }
        if count >= NAMES_MAX {
            self.refuse(Place::new(key, name), format!("there are {NAMES_MAX} already"), "take some away");
            return false;
        }
        true
    }

    // === signals ===

    fn signals(&mut self, raw: &Raw, metrics: &Metrics) -> Vec<Signal> {
        let mut signals = defaults::signals();
        for signal in &mut signals {
            signal.stale_after = outlasts_lost_scrapes(signal, metrics);
        }
        let built_in = signals.len();
        for (name, raw) in &raw.signal {
            let key = format!("signal.{}", name.get_ref());
            let place =
                names(&signals[..built_in], |signal| &signal.name).position(|known| known == name.get_ref());
            match place {
                Some(place) => self.signal(&key, raw, metrics, &mut signals[place]),
                None => {
                    if let Some(mut signal) = self.new_signal(&key, name, raw, &signals) {
                        self.signal(&key, raw, metrics, &mut signal);
                        signals.push(signal);
                    }
                }
            }
        }
        signals
    }

    fn new_signal(&mut self, key: &str, name: &Name, raw: &RawSignal, known: &[Signal]) -> Option<Signal> {
        if raw.sources.is_none() || raw.target.is_none() {
            let guess = suggest(name.get_ref(), names(known, |signal| &signal.name)).unwrap_or_default();
            let message = "a signal of your own needs `target` and `sources`";
            self.refuse(Place::new(key, name), message, guess);
            return None;
        }
        self.new_name("signal", key, name, known.len()).then(|| Signal {
            name: name.get_ref().as_str().into(),
            target: 1.0,
            unit: "".into(),
            stale_after: Duration::from_secs(30),
            on_stale: OnStale::Hold,
            backlog: false,
            forecast: Duration::ZERO,
            sources: Vec::new(),
        })
    }

    fn signal(&mut self, key: &str, raw: &RawSignal, metrics: &Metrics, signal: &mut Signal) {
        signal.target = self.within(
            &format!("{key}.target"),
            raw.target.as_ref(),
            signal.target,
            f64::MIN_POSITIVE,
            1e15,
        );
        if let Some(unit) = &raw.unit {
            signal.unit = unit.get_ref().as_str().into();
        }
        let bounds = [Duration::from_secs(1), Duration::from_secs(3600)];
        let stale_key = format!("{key}.stale_after");
        signal.stale_after = self.length(&stale_key, raw.stale_after.as_ref(), signal.stale_after, bounds);
        if raw.stale_after.is_none() {
            signal.stale_after = outlasts_lost_scrapes(signal, metrics);
        }
        if let Some(given) = &raw.stale_after
            && signal.stale_after < 2 * metrics.interval
        {
            self.refuse(
                Place::new(stale_key, given),
                format!(
                    "{} is less than two scrapes of {}, so one lost scrape would do",
                    given.get_ref(),
                    Length(metrics.interval)
                ),
                format!("write {} or more", Length(2 * metrics.interval)),
            );
        }
        signal.on_stale = match raw.on_stale.as_ref().map(|on_stale| *on_stale.get_ref()) {
            Some(RawOnStale::Hold) => OnStale::Hold,
            Some(RawOnStale::Decay) => OnStale::Decay,
            Some(RawOnStale::Static) => OnStale::Static,
            None => signal.on_stale,
        };
        if let Some(given) = &raw.backlog {
            signal.backlog = *given.get_ref();
        }
        let bounds = [Duration::ZERO, Duration::from_secs(3600)];
        let forecast_key = format!("{key}.forecast");
        signal.forecast = self.length(&forecast_key, raw.forecast.as_ref(), signal.forecast, bounds);
        if let Some(sources) = &raw.sources {
            let place = Place::new(format!("{key}.sources"), sources);
            let given = sources.get_ref().iter().enumerate();
            signal.sources = given
                .filter_map(|(i, source)| self.source(&format!("{key}.sources[{i}]"), source, metrics))
                .collect();
            if sources.get_ref().is_empty() {
                self.refuse(
                    place,
                    "no source is left",
                    "write at least one, such as [{ metric = \"name\" }]",
                );
            }
        }
    }

    fn source(&mut self, key: &str, source: &Spanned<RawSource>, metrics: &Metrics) -> Option<SignalSource> {
        let raw = source.get_ref();
        let probe = raw.probe.as_ref().is_some_and(|probe| *probe.get_ref());
        if [raw.metric.is_some(), raw.promql.is_some(), probe].iter().filter(|given| **given).count() != 1 {
            let remedy = "write { metric = \"...\" }, { promql = \"...\" } or { probe = true }";
            self.refuse(Place::new(key, source), "a source is one of `metric`, `promql` and `probe`", remedy);
            return None;
        }
        if let Some(metric) = &raw.metric {
            return self.derivation(key, raw, metric).map(SignalSource::Scrape);
        }
        let strays = [
            ("how", raw.how.is_some()),
            ("at", raw.at.is_some()),
            ("to", raw.to.is_some()),
            ("scale", raw.scale.is_some()),
        ];
        for (stray, _) in strays.iter().filter(|(_, given)| *given) {
            let message = format!("`{stray}` belongs to a `metric` source");
            self.refuse(Place::new(format!("{key}.{stray}"), source), message, "take it away");
        }
        let Some(promql) = &raw.promql else { return Some(SignalSource::Probe) };
        if metrics.prometheus.is_none() {
            let message = "a PromQL expression needs a Prometheus server";
            let remedy = "write [metrics] prometheus = \"http://host:9090\"";
            self.refuse(Place::new(format!("{key}.promql"), promql), message, remedy);
        }
        if promql.get_ref().trim().is_empty() {
            self.refuse(Place::new(format!("{key}.promql"), promql), "the expression is empty", "");
        }
        Some(SignalSource::PromQl(promql.get_ref().trim().into()))
    }

    fn derivation(&mut self, key: &str, raw: &RawSource, metric: &Spanned<String>) -> Option<Derivation> {
        let select = self.selector(&format!("{key}.metric"), metric)?;
        let kind = raw.how.as_ref().map_or(RawHow::Sum, |how| *how.get_ref());
        let at = Spanned::new(raw.how.as_ref().map_or_else(|| metric.span(), Spanned::span), ());
        let place = |key: String| Place::new(key, &at);
        let wants_at = matches!(kind, RawHow::ShareAbove | RawHow::Quantile);
        if wants_at != raw.at.is_some() {
            let (message, remedy) = if wants_at {
                ("needs `at`", "write the bound (share-above) or the quantile (quantile), such as at = 0.99")
            } else {
                ("`at` belongs to share-above and quantile", "take it away")
            };
            self.refuse(place(format!("{key}.at")), message, remedy);
            return None;
        }
        if (kind == RawHow::Ratio) != raw.to.is_some() {
            let remedy = "write how = \"ratio\" and to = \"selector\" together";
            self.refuse(place(format!("{key}.to")), "`to` and how = \"ratio\" go together", remedy);
            return None;
        }
        let how = match kind {
            RawHow::Sum => How::Sum,
            RawHow::Max => How::Max,
            RawHow::Rate => How::Rate,
            RawHow::ShareAbove => {
                How::ShareAbove(self.within(&format!("{key}.at"), raw.at.as_ref(), 0.0, 0.0, 1e15))
            }
            RawHow::Quantile => {
                How::Quantile(self.within(&format!("{key}.at"), raw.at.as_ref(), 0.5, 0.01, 0.9999))
            }
            RawHow::Ratio => How::RatioTo(self.selector(&format!("{key}.to"), raw.to.as_ref()?)?),
        };
        let scale = self.within(&format!("{key}.scale"), raw.scale.as_ref(), 1.0, 1e-12, 1e12);
        Some(Derivation { select, how, scale })
    }

    fn selector(&mut self, key: &str, text: &Spanned<String>) -> Option<Selector> {
        match selector::parse(text.get_ref()) {
            Ok(selector) => Some(selector),
            Err(parse_error) => {
                self.refuse(Place::new(key, text), parse_error.to_string(), "");
                None
            }
        }
    }

    // === control ===

    fn control(&mut self, raw: &RawControl) -> Control {
        let default = Control::SHIPPED;
        let (ms, minute) = (Duration::from_millis(1), Duration::from_secs(60));
        let control = Control {
            inner_period: self.length(
                "control.inner_period",
                raw.inner_period.as_ref(),
                default.inner_period,
                [10 * ms, minute],
            ),
            outer_period: self.length(
                "control.outer_period",
                raw.outer_period.as_ref(),
                default.outer_period,
                [100 * ms, 10 * minute],
            ),
            window: self.length(
                "control.window",
                raw.window.as_ref(),
                default.window,
                [Duration::ZERO, 10 * minute],
            ),
            data_age: self.length(
                "control.data_age",
                raw.data_age.as_ref(),
                default.data_age,
                [Duration::ZERO, 10 * minute],
            ),
            deadband: self.within("control.deadband", raw.deadband.as_ref(), default.deadband, 0.0, 0.5),
            slew: self.within("control.slew", raw.slew.as_ref(), default.slew, 1.01, 10.0),
            cooldown: self.length(
                "control.cooldown",
                raw.cooldown.as_ref(),
                default.cooldown,
                [Duration::ZERO, 60 * minute],
            ),
        };
        if let Some(given) = raw.inner_period.as_ref().or(raw.outer_period.as_ref())
            && control.inner_period > control.outer_period
        {
            self.refuse(
                Place::new("control.inner_period", given),
                format!(
                    "the inner period of {} is longer than the outer one of {}",
                    Length(control.inner_period),
                    Length(control.outer_period)
                ),
                "the inner loop is the fast one: keep its period at or below the outer loop's",
            );
        }
        control
    }

    fn law(&mut self, key: &str, law: &Spanned<RawLaw>) -> Option<Law> {
        let raw = law.get_ref();
        let Some(kind) = raw.kind.as_ref().map(|kind| *kind.get_ref()) else {
            let remedy = "write kind = \"aimd\", \"pid\", \"gradient\" or \"static\"";
            self.refuse(Place::new(key, law), "the law has no `kind`", remedy);
            return None;
        };
        let fields = [
            ("increase", &raw.increase, RawLawKind::Aimd),
            ("decrease", &raw.decrease, RawLawKind::Aimd),
            ("kp", &raw.kp, RawLawKind::Pid),
            ("ki", &raw.ki, RawLawKind::Pid),
            ("kd", &raw.kd, RawLawKind::Pid),
            ("tolerance", &raw.tolerance, RawLawKind::Gradient),
            ("smoothing", &raw.smoothing, RawLawKind::Gradient),
        ];
        for (field, value, of) in fields {
            if let Some(value) = value.as_ref().filter(|_| of != kind) {
                let message = format!("`{field}` belongs to the law `{}`", format!("{of:?}").to_lowercase());
                self.refuse(
                    Place::new(format!("{key}.{field}"), value),
                    message,
                    "take it away, or change `kind`",
                );
            }
        }
        let mut number = |field: &str, value: &Option<Spanned<f64>>, default, least, most| {
            self.within(&format!("{key}.{field}"), value.as_ref(), default, least, most)
        };
        let law_of = match kind {
            RawLawKind::Static => Law::Static,
            RawLawKind::Aimd => Law::Aimd {
                increase: number("increase", &raw.increase, 0.5, 0.001, 1.0),
                decrease: number("decrease", &raw.decrease, 0.7, 0.1, 0.99),
            },
            RawLawKind::Pid => Law::Pid {
                kp: number("kp", &raw.kp, 0.0, 0.0, 10.0),
                ki: raw.ki.as_ref().map(|_| number("ki", &raw.ki, 0.1, 0.0, 2.0)),
                kd: number("kd", &raw.kd, 0.0, 0.0, 10.0),
            },
            RawLawKind::Gradient => Law::Gradient {
                tolerance: number("tolerance", &raw.tolerance, 2.0, 1.01, 100.0),
                smoothing: number("smoothing", &raw.smoothing, 0.5, 0.001, 1.0),
            },
        };
        // In velocity form the proportional and derivative terms forget the target.
        if let (Law::Pid { ki: Some(ki), .. }, Some(given)) = (law_of, &raw.ki)
            && ki <= 0.0
        {
            let message = "without an integral gain the limit never finds its target";
            let remedy = "leave `ki` out for the gain that suits the dead time, or use kind = \"static\"";
            self.refuse(Place::new(format!("{key}.ki"), given), message, remedy);
        }
        Some(law_of)
    }

    /// A key that nobody has would shut its class for good.
    fn keys(&mut self, raw: &Raw) {
        if !raw.api_keys.is_empty() || raw.identity.api_keys_file.is_some() {
            return;
        }
        for (name, class) in &raw.class {
            let Some(given) = class.require_key.as_ref().filter(|given| *given.get_ref()) else { continue };
            self.refuse(
                Place::new(format!("class.{}.require_key", name.get_ref()), given),
                "nobody has an API key, so nobody could ask",
                "list keys in [api_keys.<name>] or in `identity.api_keys_file`",
            );
        }
    }

    // === modules ===

    fn modules(&mut self, raw: &Raw) -> Vec<Module> {
        let mut modules = defaults::modules();
        for (name, raw) in &raw.module {
            let key = format!("module.{}", name.get_ref());
            let known = names(&modules, |module| &module.name);
            let Some(place) = self.find(Place::new(&key, name), "module", name.get_ref(), known) else {
                continue;
            };
            let module = &mut modules[place];
            let before = (module.in_flight, module.work);
            self.module(&key, raw, module);
            // The complete file names every module, and changes none.
            module.apart = before != (module.in_flight, module.work);
        }
        modules
    }

    fn module(&mut self, key: &str, raw: &RawModule, module: &mut Module) {
        if let Some(in_flight) = &raw.in_flight {
            module.in_flight = self.bounds(&format!("{key}.in_flight"), in_flight, module.in_flight);
        }
        if let Some(work) = &raw.work {
            module.work = match work.get_ref() {
                OrOff::Off => None,
                OrOff::On(Length(length)) => {
                    let given = Spanned::new(work.span(), Length(*length));
                    let default = module.work.unwrap_or(Duration::from_secs(1));
                    let bounds = [Duration::from_millis(1), Duration::from_secs(600)];
                    Some(self.length(&format!("{key}.work"), Some(&given), default, bounds))
                }
            };
        }
    }

    /// `min <= initial <= max`, laid over `base`.
    fn bounds(&mut self, key: &str, given: &Spanned<Short<f64, RawBounds>>, base: Bounds) -> Bounds {
        let [least, most] = IN_FLIGHT;
        match given.get_ref() {
            Short::Value(value) => {
                let value = Spanned::new(given.span(), *value);
                Bounds::fixed(self.within(key, Some(&value), base.initial, least, most))
            }
            Short::Table(raw) => {
                let mut one = |field: &str, value: &Option<Spanned<f64>>, default: f64| {
                    self.within(&format!("{key}.{field}"), value.as_ref(), default, least, most)
                };
                let bounds = Bounds {
                    initial: one("initial", &raw.initial, base.initial),
                    min: one("min", &raw.min, base.min),
                    max: one("max", &raw.max, base.max),
                };
                let from_file = [raw.min.is_some(), raw.initial.is_some(), raw.max.is_some()];
                if self.ordered(Place::new(key, given), bounds, from_file, |value| value.to_string()) {
                    bounds
                } else {
                    base
                }
            }
        }
    }

    /// Refuses what is not `min <= initial <= max`, and says which value is a default.
    fn ordered(
        &mut self,
        place: Place,
        bounds: Bounds,
        from_file: [bool; 3],
        show: impl Fn(f64) -> String,
    ) -> bool {
        if bounds.min <= bounds.initial && bounds.initial <= bounds.max {
            return true;
        }
        let values = [("min", bounds.min), ("initial", bounds.initial), ("max", bounds.max)];
        let shown = values.iter().zip(from_file).map(|((name, value), given)| {
            format!("{name} {}{}", show(*value), if given { "" } else { " (the default)" })
        });
        let message = format!("{} is not in rising order", shown.collect::<Vec<_>>().join(", "));
        self.refuse(place, message, "choose min <= initial <= max; give all three to be sure");
        false
    }

    // === classes ===

    fn classes(&mut self, raw: &Raw, modules: &[Module], signals: &[Signal], law: Option<Law>) -> Vec<Class> {
        let mut classes = defaults::classes(signals);
        // The file's law takes the place of the built-in one where that is the usual one;
        // classes that stand still or follow their own past do so for a reason.
        for class in classes.iter_mut().filter(|class| class.law == defaults::LAW) {
            class.law = law.unwrap_or(class.law);
        }
        for (name, raw) in &raw.class {
            let key = format!("class.{}", name.get_ref());
            let place = names(&classes, |class| &class.name).position(|known| known == name.get_ref());
            let place = match place {
                Some(place) => place,
                None => match self.new_class(&key, name, raw, &classes, law) {
                    Some(class) => {
                        classes.push(class);
                        classes.len() - 1
                    }
                    None => continue,
                },
            };
            let mut class = classes[place].clone();
            self.class(&key, raw, modules, signals, &mut class);
            classes[place] = class;
        }
        classes
    }

    /// A class of the operator's begins as `other` does.
    fn new_class(
        &mut self,
        key: &str,
        name: &Name,
        raw: &RawClass,
        known: &[Class],
        law: Option<Law>,
    ) -> Option<Class> {
        if raw.module.is_none() {
            let guess = suggest(name.get_ref(), names(known, |class| &class.name)).unwrap_or_default();
            let message = "a class of your own needs a `module`, the process its work lands on";
            self.refuse(Place::new(key, name), message, guess);
            return None;
        }
        let template = known.iter().find(|class| &*class.name == "other")?;
        let class = Class {
            name: name.get_ref().as_str().into(),
            priority: Priority(3),
            awaits: false,
            law: law.unwrap_or(defaults::LAW),
            ..template.clone()
        };
        self.new_name("class", key, name, known.len()).then_some(class)
    }

    fn class(
        &mut self,
        key: &str,
        raw: &RawClass,
        modules: &[Module],
        signals: &[Signal],
        class: &mut Class,
    ) {
        if let Some(name) = &raw.module {
            let known = names(modules, |module| &module.name);
            let place = self.find(Place::new(format!("{key}.module"), name), "module", name.get_ref(), known);
            class.module =
                ModuleId(place.and_then(|place| u8::try_from(place).ok()).unwrap_or(class.module.0));
        }
        self.treatment(key, raw, class);
        class.priority = Priority(
            u8::try_from(self.within(
                &format!("{key}.priority"),
                raw.priority.as_ref(),
                u64::from(class.priority.0),
                0,
                9,
            ))
            .unwrap_or(9),
        );
        if let Some(rate) = &raw.rate {
            class.rate = self.rate(&format!("{key}.rate"), rate, class.rate);
        }
        if let Some(in_flight) = &raw.in_flight {
            class.in_flight = self.bounds(&format!("{key}.in_flight"), in_flight, class.in_flight);
        }
        if let Some(flow) = &raw.bytes_per_second {
            class.bytes_per_second = match *flow.get_ref() {
                OrOff::Off => None,
                OrOff::On(BytesPerSecond(bytes)) => {
                    let given = Spanned::new(flow.span(), BytesPerSecond(bytes));
                    let [least, most] = [BytesPerSecond(1e3), BytesPerSecond(1e12)];
                    Some(self.within(&format!("{key}.bytes_per_second"), Some(&given), least, least, most).0)
                }
            };
        }
        if let Some(given) = &raw.require_key {
            class.require_key = *given.get_ref();
        }
        self.waits(key, raw, class);
        if let Some(per_client) = &raw.per_client {
            class.per_client =
                self.per_client(&format!("{key}.per_client"), per_client.get_ref(), class.per_client);
        }
        if let Some(coalesce) = &raw.coalesce {
            let ttl =
                self.or_off(&format!("{key}.coalesce"), coalesce, [Duration::ZERO, Duration::from_secs(60)]);
            class.coalesce = ttl.map(|ttl| Coalesce { ttl });
        }
        if let Some(law) = &raw.law {
            class.law = self.law(&format!("{key}.law"), law).unwrap_or(class.law);
        }
        if let Some(given) = &raw.signals {
            class.signals = self.followed(&format!("{key}.signals"), given, signals);
        }
        if let Some(given) = &raw.alert_above {
            class.alert_above = self.rate_alert(&format!("{key}.alert_above"), given);
        }
        let bounds = [Duration::from_secs(1), Duration::from_secs(3600)];
        class.starts_within = self.length(
            &format!("{key}.starts_within"),
            raw.starts_within.as_ref(),
            class.starts_within,
            bounds,
        );
        if let Some(given) = &raw.backlog {
            class.backlog = match given.get_ref() {
                OrOff::Off => None,
                OrOff::On(name) => self.signal_id(Place::new(format!("{key}.backlog"), given), name, signals),
            };
        }
    }

    fn or_off(
        &mut self,
        key: &str,
        given: &Spanned<OrOff<Length>>,
        bounds: [Duration; 2],
    ) -> Option<Duration> {
        match *given.get_ref() {
            OrOff::Off => None,
            OrOff::On(length) => {
                let value = Spanned::new(given.span(), length);
                Some(self.length(key, Some(&value), bounds[0], bounds))
            }
        }
    }

    /// Whether limits apply, and whether the file sets limits that then do not.
    fn treatment(&mut self, key: &str, raw: &RawClass, class: &mut Class) {
        let was = class.treatment;
        class.treatment = match raw.treatment.as_ref().map(|treatment| *treatment.get_ref()) {
            Some(RawTreatment::Limited) => Treatment::Limited,
            Some(RawTreatment::Exempt) => Treatment::Exempt,
            Some(RawTreatment::Blocked) => Treatment::Blocked,
            None => was,
        };
        if class.treatment == Treatment::Limited {
            // What was exempt has no limits of its own to fall back on.
            if was != Treatment::Limited
                && let Some(template) = catalogue::CLASSES.iter().find(|default| default.name == "other")
            {
                (class.in_flight, class.queue, class.law) =
                    (template.in_flight, template.queue, template.law);
            }
            return;
        }
        let how = if class.treatment == Treatment::Exempt { "exempt" } else { "blocked" };
        let blocked = class.treatment == Treatment::Blocked;
        let idle = [
            ("require_key", raw.require_key.as_ref().filter(|_| blocked).map(Spanned::span)),
            ("rate", raw.rate.as_ref().map(Spanned::span)),
            ("in_flight", raw.in_flight.as_ref().map(Spanned::span)),
            ("queue", raw.queue.as_ref().map(Spanned::span)),
            ("per_client", raw.per_client.as_ref().map(Spanned::span)),
            ("law", raw.law.as_ref().map(Spanned::span)),
        ];
        for (field, span) in idle {
            let Some(span) = span else { continue };
            self.refuse(
                Place::new(format!("{key}.{field}"), &Spanned::new(span, ())),
                format!("this has no effect: the class is {how}"),
                "write treatment = \"limited\", or take the limit away",
            );
        }
    }

    /// Kind, queue and timeout, which must agree: what is held open neither waits nor times out.
    fn waits(&mut self, key: &str, raw: &RawClass, class: &mut Class) {
        match raw.kind.as_ref().map(|kind| *kind.get_ref()) {
            Some(RawKind::Held) => {
                class.kind = Kind::Held;
                class.queue = Queue { len_max: 0, wait_max: Duration::ZERO };
                class.timeout = None;
            }
            Some(RawKind::Unary) => class.kind = Kind::Unary,
            None => {}
        }
        if class.kind == Kind::Held {
            let strays = [
                ("queue", raw.queue.as_ref().map(Spanned::span)),
                ("timeout", raw.timeout.as_ref().map(Spanned::span)),
            ];
            for (field, span) in strays {
                let Some(span) = span else { continue };
                let message = "what is held open neither waits in a queue nor times out";
                let place = Place::new(format!("{key}.{field}"), &Spanned::new(span, ()));
                self.refuse(place, message, "take it away, or write kind = \"unary\"");
            }
            return;
        }
        if let Some(queue) = &raw.queue {
            class.queue = self.queue(&format!("{key}.queue"), queue, class.queue);
        }
        if let Some(timeout) = &raw.timeout {
            let bounds = [Duration::from_millis(10), Duration::from_secs(24 * 3600)];
            class.timeout = self.or_off(&format!("{key}.timeout"), timeout, bounds);
        }
    }

    fn queue(&mut self, key: &str, queue: &Spanned<RawQueue>, base: Queue) -> Queue {
        let raw = queue.get_ref();
        let len = self.within(&format!("{key}.len"), raw.len.as_ref(), u64::from(base.len_max), 0, 100_000);
        let bounds = [Duration::ZERO, Duration::from_secs(300)];
        let wait_max = self.length(&format!("{key}.wait"), raw.wait.as_ref(), base.wait_max, bounds);
        if len > 0 && wait_max.is_zero() {
            let message = format!("{len} may wait, but for no time at all");
            self.refuse(Place::new(key, queue), message, "write wait = \"1s\", or len = 0 to shed at once");
        }
        Queue { len_max: u32::try_from(len).unwrap_or(u32::MAX), wait_max }
    }

    fn rate(
        &mut self,
        key: &str,
        given: &Spanned<Short<OrOff<PerSecond>, RawRate>>,
        base: Option<RateBounds>,
    ) -> Option<RateBounds> {
        let [least, most] = RATE.map(PerSecond);
        let raw = match given.get_ref() {
            Short::Value(OrOff::Off) => return None,
            Short::Value(OrOff::On(rate)) => {
                let rate = Spanned::new(given.span(), *rate);
                let per_second = self.within(key, Some(&rate), *rate.get_ref(), least, most).0;
                let burst = base.map_or_else(|| one_second(per_second), |base| base.burst);
                return Some(self.refill(
                    Place::new(key, given),
                    RateBounds { per_second: Bounds::fixed(per_second), burst },
                ));
            }
            Short::Table(raw) => raw,
        };
        let Some(base) = base.or_else(|| {
            // Without a rate to lie over, the loop gets a decade on each side.
            let PerSecond(initial) = *raw.initial.as_ref()?.get_ref();
            let per_second =
                Bounds { initial, min: (initial / 10.0).max(least.0), max: (initial * 10.0).min(most.0) };
            Some(RateBounds { per_second, burst: one_second(initial) })
        }) else {
            let message = "the class has no rate of its own, so `initial` is needed";
            self.refuse(Place::new(key, given), message, "write initial = \"5/s\"");
            return None;
        };
        let mut one = |field: &str, value: &Option<Spanned<PerSecond>>, default: f64| {
            self.within(&format!("{key}.{field}"), value.as_ref(), PerSecond(default), least, most).0
        };
        let per_second = Bounds {
            initial: one("initial", &raw.initial, base.per_second.initial),
            min: one("min", &raw.min, base.per_second.min),
            max: one("max", &raw.max, base.per_second.max),
        };
        let burst =
            self.within(&format!("{key}.burst"), raw.burst.as_ref(), u64::from(base.burst), 1, 1_000_000);
        let burst = u32::try_from(burst).unwrap_or(u32::MAX);
        let from_file = [raw.min.is_some(), raw.initial.is_some(), raw.max.is_some()];
        if !self.ordered(Place::new(key, given), per_second, from_file, |rate| PerSecond(rate).to_string()) {
            return Some(base);
        }
        Some(self.refill(Place::new(key, given), RateBounds { per_second, burst }))
    }

    /// Refuses a burst that would take longer than anyone waits to come back.
    fn refill(&mut self, place: Place, rate: RateBounds) -> RateBounds {
        let seconds = f64::from(rate.burst) / rate.per_second.initial;
        if rate.burst > 1 && seconds > REFILL_MAX.as_secs_f64() {
            let refill =
                Length(Duration::from_secs(rayguard_core::time::duration_from_secs(seconds).as_secs()));
            let message = format!(
                "burst of {} needs {refill} to refill at {}",
                rate.burst,
                PerSecond(rate.per_second.initial)
            );
            self.refuse(
                place,
                message,
                format!("raise the rate or lower the burst: {} at most", Length(REFILL_MAX)),
            );
        }
        rate
    }

    fn per_client(&mut self, key: &str, raw: &RawPerClient, base: PerClientLimits) -> PerClientLimits {
        let mut limits = base;
        let burst = raw.burst.as_ref();
        let burst_key = format!("{key}.burst");
        match raw.rate.as_ref().map(|rate| (rate, *rate.get_ref())) {
            Some((_, OrOff::Off)) => limits.rate = None,
            Some((given, OrOff::On(rate))) => {
                let [least, most] = RATE.map(PerSecond);
                let rate = Spanned::new(given.span(), rate);
                let per_second =
                    self.within(&format!("{key}.rate"), Some(&rate), *rate.get_ref(), least, most).0;
                limits.rate =
                    Some((per_second, base.rate.map_or_else(|| one_second(per_second), |(_, burst)| burst)));
            }
            None => {}
        }
        match (&mut limits.rate, burst) {
            (Some((_, of_rate)), Some(_)) => {
                let burst = self.within(&burst_key, burst, u64::from(*of_rate), 1, 1_000_000);
                *of_rate = u32::try_from(burst).unwrap_or(u32::MAX);
            }
            (None, Some(given)) => {
                self.refuse(
                    Place::new(burst_key, given),
                    "a burst without a rate limits nothing",
                    "write rate = \"5/s\" beside it",
                );
            }
            (_, None) => {}
        }
        match raw.in_flight.as_ref().map(|in_flight| (in_flight, *in_flight.get_ref())) {
            Some((_, OrOff::Off)) => limits.in_flight = None,
            Some((given, OrOff::On(count))) => {
                let given = Spanned::new(given.span(), count);
                let count = self.within(&format!("{key}.in_flight"), Some(&given), 1, 1, 1_000_000);
                limits.in_flight = u32::try_from(count).ok();
            }
            None => {}
        }
        limits
    }

    fn rate_alert(&mut self, key: &str, given: &Spanned<OrOff<PerSecond>>) -> Option<f64> {
        let OrOff::On(rate) = *given.get_ref() else { return None };
        let [least, most] = RATE.map(PerSecond);
        Some(self.within(key, Some(&Spanned::new(given.span(), rate)), rate, least, most).0)
    }

    fn signal_id(&mut self, place: Place, name: &str, signals: &[Signal]) -> Option<SignalId> {
        let found = self.find(place, "signal", name, names(signals, |signal| &signal.name))?;
        u8::try_from(found).ok().map(SignalId)
    }

    fn followed(&mut self, key: &str, given: &[Spanned<String>], signals: &[Signal]) -> Vec<SignalId> {
        let mut followed = Vec::new();
        for (i, name) in given.iter().enumerate() {
            let place = Place::new(format!("{key}[{i}]"), name);
            let Some(id) = self.signal_id(place.clone(), name.get_ref(), signals) else { continue };
            if followed.contains(&id) {
                self.refuse(place, format!("`{}` stands twice", name.get_ref()), "take one away");
            } else {
                followed.push(id);
            }
        }
        followed
    }

    // === objectives ===

    fn objectives(&mut self, raw: &Raw, classes: &mut [Class]) {
        for (name, objective) in &raw.slo {
            let key = format!("slo.{}", name.get_ref());
            let known = names(classes, |class| &class.name);
            let Some(place) = self.find(Place::new(&key, name), "class", name.get_ref(), known) else {
                continue;
            };
            let class = &mut classes[place];
            let Objective(slo) = *objective.get_ref();
            let at = Place::new(&key, objective);
            if !(0.5..=0.999).contains(&slo.quantile) {
                let message = format!("p{} is outside p50 to p99.9", slo.quantile * 100.0);
                self.refuse(at, message, "one request in a thousand is the finest that a window can tell");
            } else if slo.latency < Duration::from_millis(1) || slo.latency > Duration::from_secs(3600) {
                self.refuse(at, format!("{} is outside 1ms to 1h", Length(slo.latency)), "");
            } else if let Some(timeout) = class.timeout.filter(|timeout| slo.latency > *timeout) {
                let message =
                    format!("{} is beyond the class's timeout of {}", Length(slo.latency), Length(timeout));
                self.refuse(
                    at,
                    message,
                    format!("raise class.{}.timeout or lower the objective", class.name),
                );
            } else {
                class.slo = slo;
            }
        }
    }

    /// Ray opens 100 connections per module; held ones and the ceiling must leave some.
    fn room(&mut self, raw: &Raw, modules: &[Module], classes: &[Class]) {
        for (i, module) in modules.iter().enumerate() {
            // These two are servers of their own, without that limit.
            if ["RayClient", "Serve"].contains(&&*module.name) {
                continue;
            }
            let held = |class: &&Class| {
                class.module.index() == i && class.kind == Kind::Held && class.treatment == Treatment::Limited
            };
            let held: f64 = classes.iter().filter(held).map(|class| class.in_flight.max).sum();
            let total = held + module.in_flight.max;
            if total <= catalogue::CONNECTIONS_MAX {
                continue;
            }
            let of_module = raw
                .module
                .iter()
                .find(|(name, raw)| name.get_ref() == &*module.name && raw.in_flight.is_some());
            let of_class = raw.class.iter().find(|(name, raw)| {
                raw.in_flight.is_some()
                    && classes.iter().any(|class| class.module.index() == i && name.get_ref() == &*class.name)
            });
            let place = match (of_module, of_class) {
                (Some((name, _)), _) => Place::new(format!("module.{}.in_flight", name.get_ref()), name),
                (None, Some((name, _))) => Place::new(format!("class.{}.in_flight", name.get_ref()), name),
                (None, None) => Place::nowhere(format!("module.{}", module.name)),
            };
            self.refuse(
                place,
                format!(
                    "{held} held connections and a ceiling of {} make {total} on {}, and Ray hangs at 100",
                    module.in_flight.max, module.name
                ),
                format!("keep the sum of both at {} or below", catalogue::CONNECTIONS_MAX),
            );
        }
    }

    // === routes ===

    /// The operator's routes; whether they can match, and differ, the classifier itself says.
    fn routes(&mut self, raw: &Raw, policy: &Policy) -> Vec<Rule> {
        let mut routes = Vec::new();
        let mut places = Vec::new();
        for (i, given) in raw.route.iter().enumerate() {
            let key = format!("route[{i}]");
            if let Some(rule) = self.route(&key, given, policy) {
                routes.push(rule);
                places.push(Place::new(key, given));
            }
        }
        let Err(faults) = Classifier::new(policy, Surface::Dashboard, &routes) else { return routes };
        for fault in faults {
            let place = fault.rule.and_then(|rule| places.get(rule).cloned());
            let text = fault.to_string();
            let (message, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            self.refuse(place.unwrap_or_else(|| Place::nowhere("route")), message, remedy);
        }
        routes
    }

    fn route(&mut self, key: &str, given: &Spanned<RawRoute>, policy: &Policy) -> Option<Rule> {
        let raw = given.get_ref();
        let (Some(path), Some(class)) = (&raw.path, &raw.class) else {
            let remedy = "write path = \"/api/thing/{id}\" and class = \"name\"";
            self.refuse(Place::new(key, given), "a route needs `path` and `class`", remedy);
            return None;
        };
        let known = names(&policy.classes, |class| &class.name);
        let place = Place::new(format!("{key}.class"), class);
        let found = self.find(place, "class", class.get_ref(), known);
        let header = raw.header.as_ref().and_then(|header| self.header(&format!("{key}.header"), header));
        let class = &policy.classes[found?];
        let surface = match raw.kind.as_ref() {
            Some(kind) => surface_of(*kind.get_ref()),
            None => match &*policy.modules[class.module.index()].name {
                "Serve" => Surface::Serve,
                "RayClient" => Surface::RayClient,
                _ => Surface::Dashboard,
            },
        };
        let method = raw.method.as_ref().map(|method| method.get_ref().as_str().into());
        let path = path.get_ref().as_str().into();
        Some(Rule { surface, method, path, header, class: class.name.clone() })
    }

    /// `name: value`, or `name` alone for any value.
    fn header(&mut self, key: &str, header: &Spanned<String>) -> Option<HeaderIs> {
        let (name, value) = match header.get_ref().split_once(':') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (header.get_ref().trim(), None),
        };
        if let Ok(name) = http::HeaderName::from_bytes(name.as_bytes())
            && value.is_none_or(|value| !value.is_empty() && http::HeaderValue::from_str(value).is_ok())
        {
            return Some(HeaderIs { name: name.as_str().into(), value: value.map(Arc::from) });
        }
        let message = format!("`{}` is not a header", header.get_ref());
        self.refuse(Place::new(key, header), message, "write name and value, such as \"x-tier: gold\"");
        None
    }
}

/// What may come at once where nothing is said: one second's worth.
fn one_second(per_second: f64) -> u32 {
    rayguard_core::admission::table::permits(per_second.ceil()).max(1)
}
