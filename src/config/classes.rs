//! The core's share of the file: signals, modules, classes, laws, objectives and routes.
//!
//! The file is laid over the built-in catalogue key by key: what it does not mention stays
//! as it is. A name that is not built in makes a new signal or class, which then must say
//! enough about itself to exist; if it does not, the name was probably a slip, and the
//! nearest built-in one is suggested.

use std::sync::Arc;
use std::time::Duration;

use super::check::Check;
use super::defaults;
use super::keys::{
    RATE_MAX, RATE_MIN, Raw, RawBounds, RawClass, RawControl, RawLaw, RawPerClient, RawQueue, RawRate,
    RawRoute, RawSignal, RawSource,
};
use super::problem::{closest, suggest};
use super::quantity::{Length, PerSecond};
use super::settings::Metrics;
use super::value::{How as RawHow, LawKind, OrOff, Short, Words};
use rayguard_core::admission::table::Mode;
use rayguard_core::policy::{
    Bounds, Class, Coalesce, Control, Derivation, How, Kind, Law, Module, ModuleId, OnStale, PerClientLimits,
    Policy, Priority, Queue, RateBounds, Selector, Signal, SignalId, SignalSource, Treatment,
};
use rayguard_core::request::catalogue::{self, Surface};
use rayguard_core::request::classify::{Classifier, HeaderIs, Rule};
use rayguard_core::signal::selector;

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

pub(super) fn judge(check: &mut Check<'_>, raw: &Raw, metrics: &Metrics) -> Judged {
    let signals = check.signals(raw, metrics);
    let modules = check.modules(raw);
    let control = check.control(&raw.control);
    let law = raw.control.law.as_ref().and_then(|law| check.law("control.law", law));
    let mut classes = check.classes(raw, &modules, &signals, law);
    check.objectives(raw, &mut classes);
    check.room(&modules, &classes);
    check.keys(raw);
    let mode = |class: &Class| raw.class.get(&*class.name).and_then(|raw| raw.mode).unwrap_or(raw.mode);
    let modes = classes.iter().map(mode).collect();
    let policy = Policy { modules, classes, signals, control, history: raw.identity.history };
    let routes = check.routes(raw, &policy);
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

impl Check<'_> {
    /// A new name among `count` others, fit to be a label.
    fn new_name(&mut self, what: &str, key: &str, name: &str, count: usize) -> bool {
        if !is_label(name) {
            let message = format!("`{name}` cannot be the name of a {what}");
            self.refuse(key, message, "use 1 to 64 letters, digits, `-` and `_`");
            return false;
        }
        if count >= NAMES_MAX {
            self.refuse(key, format!("there are already {NAMES_MAX} of this kind"), "remove some");
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
            let key = format!("signal.{name}");
            let place = names(&signals[..built_in], |signal| &signal.name).position(|known| known == name);
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

    fn new_signal(&mut self, key: &str, name: &str, raw: &RawSignal, known: &[Signal]) -> Option<Signal> {
        if raw.sources.is_none() || raw.target.is_none() {
            let guess = suggest(name, names(known, |signal| &signal.name)).unwrap_or_default();
            self.refuse(key, "a signal of your own needs `target` and `sources`", guess);
            return None;
        }
        self.new_name("signal", key, name, known.len()).then(|| Signal {
            name: name.into(),
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
        signal.target = raw.target.unwrap_or(signal.target);
        signal.unit = raw.unit.clone().unwrap_or_else(|| Arc::clone(&signal.unit));
        signal.on_stale = raw.on_stale.unwrap_or(signal.on_stale);
        signal.backlog = raw.backlog.unwrap_or(signal.backlog);
        signal.forecast = raw.forecast.unwrap_or(signal.forecast);
        signal.stale_after = raw.stale_after.unwrap_or_else(|| outlasts_lost_scrapes(signal, metrics));
        if let Some(given) = raw.stale_after.filter(|given| *given < 2 * metrics.interval) {
            let (given, interval) = (Length(given), Length(metrics.interval));
            self.refuse(
                format!("{key}.stale_after"),
                format!("{given} is less than two scrapes of {interval}, so one lost scrape makes it stale"),
                format!("write {} or more", Length(2 * metrics.interval)),
            );
        }
        if let Some(sources) = &raw.sources {
            let key = format!("{key}.sources");
            let given = sources.iter().enumerate();
            signal.sources = given
                .filter_map(|(i, source)| self.source(&format!("{key}[{i}]"), source, metrics))
                .collect();
            if sources.is_empty() {
                self.refuse(key, "no source is left", "write at least one, such as [{ metric = \"name\" }]");
            }
        }
    }

    fn source(&mut self, key: &str, raw: &RawSource, metrics: &Metrics) -> Option<SignalSource> {
        let probe = raw.probe == Some(true);
        if [raw.metric.is_some(), raw.promql.is_some(), probe].iter().filter(|given| **given).count() != 1 {
            let remedy = "write { metric = \"...\" }, { promql = \"...\" } or { probe = true }";
            self.refuse(key, "a source is one of `metric`, `promql` and `probe`", remedy);
            return None;
        }
        if let Some(metric) = &raw.metric {
            return self.derivation(key, raw, metric).map(SignalSource::Scrape);
        }
        for stray in ["how", "at", "to", "scale"] {
            let of_source = format!("{key}.{stray}");
            if self.has(&of_source) {
                self.refuse(of_source, format!("`{stray}` belongs to a `metric` source"), "remove it");
            }
        }
        let Some(promql) = raw.promql.as_deref().map(str::trim) else { return Some(SignalSource::Probe) };
        if metrics.prometheus.is_none() {
            let message = "a PromQL expression needs a Prometheus server";
            let remedy = "write [metrics] prometheus = \"http://host:9090\"";
            self.refuse(format!("{key}.promql"), message, remedy);
        }
        if promql.is_empty() {
            self.refuse(format!("{key}.promql"), "the expression is empty", "");
        }
        Some(SignalSource::PromQl(promql.into()))
    }

    fn derivation(&mut self, key: &str, raw: &RawSource, metric: &str) -> Option<Derivation> {
        let select = self.selector(format!("{key}.metric"), metric)?;
        let wants_at = matches!(raw.how, RawHow::ShareAbove | RawHow::Quantile);
        if wants_at != raw.at.is_some() {
            let (message, remedy) = if wants_at {
                ("needs `at`", "write the bound (share-above) or the quantile (quantile), such as at = 0.99")
            } else {
                ("`at` belongs to share-above and quantile", "remove it")
            };
            self.refuse(format!("{key}.at"), message, remedy);
            return None;
        }
        if (raw.how == RawHow::Ratio) != raw.to.is_some() {
            let remedy = "write how = \"ratio\" and to = \"selector\" together";
            self.refuse(format!("{key}.to"), "`to` and how = \"ratio\" go together", remedy);
            return None;
        }
        let at = raw.at.unwrap_or_default();
        let how = match raw.how {
            RawHow::Sum => How::Sum,
            RawHow::Max => How::Max,
            RawHow::Rate => How::Rate,
            RawHow::ShareAbove => How::ShareAbove(at),
            RawHow::Quantile => {
                if !(0.01..=0.9999).contains(&at) {
                    let message = format!("{at} is outside 0.01 to 0.9999");
                    self.refuse(format!("{key}.at"), message, "write a quantile, such as at = 0.99");
                }
                How::Quantile(at)
            }
            RawHow::Ratio => How::RatioTo(self.selector(format!("{key}.to"), raw.to.as_ref()?)?),
        };
        Some(Derivation { select, how, scale: raw.scale.unwrap_or(1.0) })
    }

    fn selector(&mut self, key: String, text: &str) -> Option<Selector> {
        selector::parse(text).map_err(|error| self.refuse(key, error.to_string(), "")).ok()
    }

    // === control ===

    fn control(&mut self, raw: &RawControl) -> Control {
        let RawControl { inner_period, outer_period, window, data_age, deadband, slew, cooldown, .. } = *raw;
        if inner_period > outer_period {
            let (inner, outer) = (Length(inner_period), Length(outer_period));
            self.refuse(
                "control.inner_period",
                format!("the inner period of {inner} is longer than the outer one of {outer}"),
                "the inner loop is the fast one: keep its period at or below the outer loop's",
            );
        }
        Control { inner_period, outer_period, window, data_age, deadband, slew, cooldown }
    }

    fn law(&mut self, key: &str, raw: &RawLaw) -> Option<Law> {
        let Some(kind) = raw.kind else {
            let remedy = "write kind = \"aimd\", \"pid\", \"gradient\" or \"static\"";
            self.refuse(key, "the law has no `kind`", remedy);
            return None;
        };
        for (field, of) in [
            ("increase", LawKind::Aimd),
            ("decrease", LawKind::Aimd),
            ("kp", LawKind::Pid),
            ("ki", LawKind::Pid),
            ("kd", LawKind::Pid),
            ("tolerance", LawKind::Gradient),
            ("smoothing", LawKind::Gradient),
        ] {
            let own = format!("{key}.{field}");
            if of != kind && self.has(&own) {
                let message = format!("`{field}` belongs to the law `{}`", of.word());
                self.refuse(own, message, "remove it, or change `kind`");
            }
        }
        // In velocity form the proportional and derivative terms forget the target.
        if kind == LawKind::Pid && raw.ki.is_some_and(|ki| ki <= 0.0) {
            let message = "without an integral gain the limit never finds its target";
            let remedy = "leave `ki` out for the gain that suits the dead time, or use kind = \"static\"";
            self.refuse(format!("{key}.ki"), message, remedy);
        }
        let &RawLaw { increase, decrease, kp, ki, kd, tolerance, smoothing, .. } = raw;
        Some(match kind {
            LawKind::Static => Law::Static,
            LawKind::Aimd => Law::Aimd { increase, decrease },
            LawKind::Pid => Law::Pid { kp, ki, kd },
            LawKind::Gradient => Law::Gradient { tolerance, smoothing },
        })
    }

    /// A class that requires a key would stay shut where no client has one.
    fn keys(&mut self, raw: &Raw) {
        if !raw.api_keys.is_empty() || raw.identity.api_keys_file.is_some() {
            return;
        }
        for (name, _) in raw.class.iter().filter(|(_, class)| class.require_key == Some(true)) {
            self.refuse(
                format!("class.{name}.require_key"),
                "no API keys are configured, so every request would get status 401",
                "list keys in [api_keys.<name>] or in `identity.api_keys_file`",
            );
        }
    }

    // === modules ===

    fn modules(&mut self, raw: &Raw) -> Vec<Module> {
        let mut modules = defaults::modules();
        for (name, raw) in &raw.module {
            let key = format!("module.{name}");
            let known = names(&modules, |module| &module.name);
            let Some(place) = self.find(&key, "module", name, known) else { continue };
            let module = &mut modules[place];
            let before = (module.in_flight, module.work);
            if let Some(in_flight) = &raw.in_flight {
                module.in_flight = self.bounds(&format!("{key}.in_flight"), in_flight, module.in_flight);
            }
            module.work = raw.work.map_or(module.work, OrOff::on);
            // The complete file names every module, and changes none.
            module.apart = before != (module.in_flight, module.work);
        }
        modules
    }

    /// `min <= initial <= max`, laid over `base`.
    fn bounds(&mut self, key: &str, given: &Short<f64, RawBounds>, base: Bounds) -> Bounds {
        let raw = match given {
            Short::Value(value) => return Bounds::fixed(*value),
            Short::Table(raw) => raw,
        };
        let given = [raw.min, raw.initial, raw.max];
        self.range(key, given, base, |value| value.to_string()).unwrap_or(base)
    }

    /// Lays `min`, `initial` and `max` over `base`; what is then not in rising order is refused, with a
    /// word on which value is a default.
    fn range(
        &mut self,
        key: &str,
        [min, initial, max]: [Option<f64>; 3],
        base: Bounds,
        show: impl Fn(f64) -> String,
    ) -> Option<Bounds> {
        let bounds = Bounds {
            initial: initial.unwrap_or(base.initial),
            min: min.unwrap_or(base.min),
            max: max.unwrap_or(base.max),
        };
        if bounds.min <= bounds.initial && bounds.initial <= bounds.max {
            return Some(bounds);
        }
        let values =
            [("min", min, bounds.min), ("initial", initial, bounds.initial), ("max", max, bounds.max)];
        let shown = values.map(|(name, given, value)| {
            format!("{name} {}{}", show(value), if given.is_some() { "" } else { " (the default)" })
        });
        let message = format!("{} is not in rising order", shown.join(", "));
        self.refuse(key, message, "choose min <= initial <= max; give all three to be sure");
        None
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
            let key = format!("class.{name}");
            let place = names(&classes, |class| &class.name).position(|known| known == name);
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
            self.class(&key, raw, modules, signals, &mut classes[place]);
        }
        classes
    }

    /// A class of the operator's begins as `other` does.
    fn new_class(
        &mut self,
        key: &str,
        name: &str,
        raw: &RawClass,
        known: &[Class],
        law: Option<Law>,
    ) -> Option<Class> {
        if raw.module.is_none() {
            let guess = closest(name, names(known, |class| &class.name))
                .unwrap_or_else(|| "add one, such as module = \"Serve\"".to_owned());
            self.refuse(
                key,
                "a class of your own needs a `module`, the Ray process that does its work",
                guess,
            );
            return None;
        }
        let template = known.iter().find(|class| &*class.name == "other")?;
        let class = Class {
            name: name.into(),
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
            let place = self.find(format!("{key}.module"), "module", name, known);
            class.module =
                ModuleId(place.and_then(|place| u8::try_from(place).ok()).unwrap_or(class.module.0));
        }
        self.treatment(key, raw, class);
        if let Some(priority) = raw.priority {
            class.priority = Priority(u8::try_from(priority).unwrap_or(9));
        }
        if let Some(rate) = &raw.rate {
            class.rate = self.rate(&format!("{key}.rate"), rate, class.rate);
        }
        if let Some(in_flight) = &raw.in_flight {
            class.in_flight = self.bounds(&format!("{key}.in_flight"), in_flight, class.in_flight);
        }
        class.bytes_per_second = raw.bytes_per_second.map_or(class.bytes_per_second, OrOff::on);
        class.require_key = raw.require_key.unwrap_or(class.require_key);
        self.waits(key, raw, class);
        if let Some(per_client) = &raw.per_client {
            class.per_client = self.per_client(&format!("{key}.per_client"), per_client, class.per_client);
        }
        if let Some(coalesce) = raw.coalesce {
            class.coalesce = coalesce.on().map(|ttl| Coalesce { ttl });
        }
        if let Some(law) = &raw.law {
            class.law = self.law(&format!("{key}.law"), law).unwrap_or(class.law);
        }
        if let Some(given) = &raw.signals {
            class.signals = self.followed(&format!("{key}.signals"), given, signals);
        }
        class.alert_above = raw.alert_above.map_or(class.alert_above, OrOff::on);
        class.starts_within = raw.starts_within.unwrap_or(class.starts_within);
        if let Some(given) = &raw.backlog {
            let name = given.clone().on();
            class.backlog = name.and_then(|name| self.signal_id(format!("{key}.backlog"), &name, signals));
        }
    }

    /// Whether limits apply, and whether the file sets limits that then do not.
    fn treatment(&mut self, key: &str, raw: &RawClass, class: &mut Class) {
        let was = class.treatment;
        class.treatment = raw.treatment.unwrap_or(was);
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
        let how = class.treatment.word();
        for field in ["require_key", "rate", "in_flight", "queue", "per_client", "law"] {
            let idle = field != "require_key" || class.treatment == Treatment::Blocked;
            if idle && self.has(&format!("{key}.{field}")) {
                self.refuse(
                    format!("{key}.{field}"),
                    format!("this has no effect: the class is {how}"),
                    "write treatment = \"limited\", or remove the limit",
                );
            }
        }
    }

    /// Kind, queue and timeout, which must agree: what is held open neither waits nor times out.
    fn waits(&mut self, key: &str, raw: &RawClass, class: &mut Class) {
        class.kind = raw.kind.unwrap_or(class.kind);
        if raw.kind == Some(Kind::Held) {
            class.queue = Queue { len_max: 0, wait_max: Duration::ZERO };
            class.timeout = None;
        }
        if class.kind == Kind::Held {
            for field in ["queue", "timeout"].map(|field| format!("{key}.{field}")) {
                if self.has(&field) {
                    let message = "held requests neither wait in a queue nor time out";
                    self.refuse(field, message, "remove it, or write kind = \"unary\"");
                }
            }
            return;
        }
        if let Some(queue) = &raw.queue {
            class.queue = self.queue(format!("{key}.queue"), queue, class.queue);
        }
        class.timeout = raw.timeout.map_or(class.timeout, OrOff::on);
    }

    fn queue(&mut self, key: String, raw: &RawQueue, base: Queue) -> Queue {
        let len_max = raw.len.map_or(base.len_max, saturated);
        let wait_max = raw.wait.unwrap_or(base.wait_max);
        if len_max > 0 && wait_max.is_zero() {
            let message = format!("{len_max} requests may wait, but for no time at all");
            self.refuse(key, message, "write wait = \"1s\", or len = 0 to shed at once");
        }
        Queue { len_max, wait_max }
    }

    fn rate(
        &mut self,
        key: &str,
        given: &Short<OrOff<f64>, RawRate>,
        base: Option<RateBounds>,
    ) -> Option<RateBounds> {
        let raw = match given {
            Short::Value(rate) => {
                let per_second = rate.on()?;
                let burst = base.map_or_else(|| one_second(per_second), |base| base.burst);
                return Some(self.refill(key, RateBounds { per_second: Bounds::fixed(per_second), burst }));
            }
            Short::Table(raw) => raw,
        };
        let Some(base) = base.or_else(|| {
            // Without a rate to lie over, the loop gets a decade on each side.
            let initial = raw.initial?;
            let per_second =
                Bounds { initial, min: (initial / 10.0).max(RATE_MIN), max: (initial * 10.0).min(RATE_MAX) };
            Some(RateBounds { per_second, burst: one_second(initial) })
        }) else {
            let message = "the class has no rate of its own, so `initial` is needed";
            self.refuse(key, message, "write initial = \"5/s\"");
            return None;
        };
        let given = [raw.min, raw.initial, raw.max];
        let per_second = self.range(key, given, base.per_second, |rate| PerSecond(rate).to_string());
        let Some(per_second) = per_second else { return Some(base) };
        Some(self.refill(key, RateBounds { per_second, burst: raw.burst.map_or(base.burst, saturated) }))
    }

    /// Refuses a burst that would take longer than anyone waits to come back.
    fn refill(&mut self, key: &str, rate: RateBounds) -> RateBounds {
        let seconds = f64::from(rate.burst) / rate.per_second.initial;
        if rate.burst > 1 && seconds > REFILL_MAX.as_secs_f64() {
            let refill =
                Length(Duration::from_secs(rayguard_core::time::duration_from_secs(seconds).as_secs()));
            let per_second = PerSecond(rate.per_second.initial);
            self.refuse(
                key,
                format!("burst of {} needs {refill} to refill at {per_second}", rate.burst),
                format!("raise the rate or lower the burst: {} at most", Length(REFILL_MAX)),
            );
        }
        rate
    }

    fn per_client(&mut self, key: &str, raw: &RawPerClient, base: PerClientLimits) -> PerClientLimits {
        let mut limits = base;
        if let Some(rate) = raw.rate {
            let burst = |rate| base.rate.map_or_else(|| one_second(rate), |(_, burst)| burst);
            limits.rate = rate.on().map(|rate| (rate, burst(rate)));
        }
        match (&mut limits.rate, raw.burst) {
            (Some((_, of_rate)), Some(burst)) => *of_rate = saturated(burst),
            (None, Some(_)) => {
                let message = "a burst without a rate limits nothing";
                self.refuse(format!("{key}.burst"), message, "write rate = \"5/s\" beside it");
            }
            (_, None) => {}
        }
        if let Some(in_flight) = raw.in_flight {
            limits.in_flight = in_flight.on().map(saturated);
        }
        limits
    }

    fn signal_id(&mut self, key: String, name: &str, signals: &[Signal]) -> Option<SignalId> {
        let found = self.find(key, "signal", name, names(signals, |signal| &signal.name))?;
        u8::try_from(found).ok().map(SignalId)
    }

    fn followed(&mut self, key: &str, given: &[Arc<str>], signals: &[Signal]) -> Vec<SignalId> {
        let mut followed = Vec::new();
        for (i, name) in given.iter().enumerate() {
            let key = format!("{key}[{i}]");
            let Some(id) = self.signal_id(key.clone(), name, signals) else { continue };
            if followed.contains(&id) {
                self.refuse(key, format!("`{name}` is listed twice"), "remove one");
            } else {
                followed.push(id);
            }
        }
        followed
    }

    // === objectives ===

    fn objectives(&mut self, raw: &Raw, classes: &mut [Class]) {
        for (name, slo) in &raw.slo {
            let key = format!("slo.{name}");
            let known = names(classes, |class| &class.name);
            let Some(place) = self.find(&key, "class", name, known) else { continue };
            let class = &mut classes[place];
            let latency = Length(slo.latency);
            if !(0.5..=0.999).contains(&slo.quantile) {
                let message = format!("p{} is outside p50 to p99.9", slo.quantile * 100.0);
                self.refuse(
                    key,
                    message,
                    "the finest quantile that a window resolves is one request in a \
                    thousand",
                );
            } else if slo.latency < Duration::from_millis(1) || slo.latency > Duration::from_secs(3600) {
                self.refuse(key, format!("{latency} is outside 1ms to 1h"), "");
            } else if let Some(timeout) = class.timeout.filter(|timeout| slo.latency > *timeout) {
                let message = format!("{latency} is beyond the class's timeout of {}", Length(timeout));
                self.refuse(key, message, format!("raise class.{name}.timeout or lower the objective"));
            } else {
                class.slo = *slo;
            }
        }
    }

    /// Ray opens 100 connections per module; held ones and the ceiling must leave some.
    fn room(&mut self, modules: &[Module], classes: &[Class]) {
        for (i, module) in modules.iter().enumerate() {
            // These two are servers of their own, without that limit.
            if ["RayClient", "Serve"].contains(&&*module.name) {
                continue;
            }
            let inside = || classes.iter().filter(|class| class.module.index() == i);
            let held = |class: &&Class| class.kind == Kind::Held && class.treatment == Treatment::Limited;
            let held: f64 = inside().filter(held).map(|class| class.in_flight.max).sum();
            let total = held + module.in_flight.max;
            if total <= catalogue::CONNECTIONS_MAX {
                continue;
            }
            let of_module = format!("module.{}.in_flight", module.name);
            let of_class = inside().map(|class| format!("class.{}.in_flight", class.name));
            let key = std::iter::once(of_module.clone()).chain(of_class).find(|key| self.has(key));
            self.refuse(
                key.unwrap_or(of_module),
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
        let mut keys = Vec::new();
        for (i, given) in raw.route.iter().enumerate() {
            let key = format!("route[{i}]");
            if let Some(rule) = self.route(&key, given, policy) {
                routes.push(rule);
                keys.push(key);
            }
        }
        let Err(faults) = Classifier::new(policy, Surface::Dashboard, &routes) else { return routes };
        for fault in faults {
            let key = fault.rule.and_then(|rule| keys.get(rule).cloned());
            let text = fault.to_string();
            let (message, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            self.refuse(key.unwrap_or_else(|| "route".into()), message, remedy);
        }
        routes
    }

    fn route(&mut self, key: &str, raw: &RawRoute, policy: &Policy) -> Option<Rule> {
        let (Some(path), Some(class)) = (&raw.path, &raw.class) else {
            let remedy = "write path = \"/api/thing/{id}\" and class = \"name\"";
            self.refuse(key, "a route needs `path` and `class`", remedy);
            return None;
        };
        let known = names(&policy.classes, |class| &class.name);
        let found = self.find(format!("{key}.class"), "class", class, known);
        let header = raw.header.as_ref().and_then(|header| self.header(format!("{key}.header"), header));
        let class = &policy.classes[found?];
        let surface = raw.kind.unwrap_or_else(|| match &*policy.modules[class.module.index()].name {
            "Serve" => Surface::Serve,
            "RayClient" => Surface::RayClient,
            _ => Surface::Dashboard,
        });
        let (method, path) = (raw.method.clone(), path.clone());
        Some(Rule { surface, method, path, header, class: class.name.clone() })
    }

    /// `name: value`, or `name` alone for any value.
    fn header(&mut self, key: String, header: &str) -> Option<HeaderIs> {
        let (name, value) = match header.split_once(':') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (header.trim(), None),
        };
        if let Ok(name) = http::HeaderName::from_bytes(name.as_bytes())
            && value.is_none_or(|value| !value.is_empty() && http::HeaderValue::from_str(value).is_ok())
        {
            return Some(HeaderIs { name: name.as_str().into(), value: value.map(Arc::from) });
        }
        let message = format!("`{header}` is not a header");
        self.refuse(key, message, "write name and value, such as \"x-tier: gold\"");
        None
    }
}

fn saturated(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What may come at once where nothing is said: one second's worth.
fn one_second(per_second: f64) -> u32 {
    rayguard_core::admission::table::permits(per_second.ceil()).max(1)
}
