//! The complete file: every key, explained, at its default.
//!
//! `rayguard check --defaults` prints it, and `config/rayguard.toml` is that print; a test
//! reads it back and finds the defaults again. Sections whose keys are fixed are written from the
//! table of `keys`, as are the tables of `config/KEYS.md`; signals, modules and classes from what
//! the code holds.

use std::fmt::Write as _;
use std::time::Duration;

use super::defaults;
use super::keys::SECTIONS;
use super::quantity::{BytesPerSecond, Length, Objective, PerSecond};
use super::table::Key;
use super::value::{Words, quoted};
use rayguard_core::alert::Alert;
use rayguard_core::policy::{
    Bounds, Class, How, Kind, Law, Module, PerClientLimits, Queue, Signal, SignalId, SignalSource, Treatment,
};
use rayguard_core::request::catalogue;
use rayguard_core::signal::catalogue::SIGNALS as SIGNALS_BUILT_IN;
use rayguard_core::signal::selector;

/// How the file begins.
const HEAD: &str =
    "# rayguard: every key at its default. This file changes nothing; keep the lines you change.
# What each key means, with unit and range: config/KEYS.md. A start for real use:
# config/minimal.toml. Check before you run:  rayguard check --config FILE
";

/// Whose keys are listed first, in this order; what has no header is commented out whole.
const LISTED: &[(&str, &str)] = &[
    ("", "top"),
    ("", "listen"),
    ("\n[http]\n", "http"),
    ("\n[identity]\n", "identity"),
    ("", "api_keys"),
    ("\n[metrics]\n", "metrics"),
    ("\n[probe]\n", "probe"),
    ("\n[control]\n", "control"),
    ("\n[adjustment_log]\n", "adjustment_log"),
    ("\n[log]\n", "log"),
    ("\n[alerts]\n", "alerts"),
    ("", "notify"),
    ("\n[admin]\n", "admin"),
    ("", "ratelimit_service"),
    ("", "replicas"),
    ("", "route"),
];

const ALERTS: &str = "
# When receivers are notified: an alert fires after its condition has held for `for`, and
# resolves after it has been absent for `clear`. `enabled = false` silences one.
";

const SLO: &str = "
# The latency you want at the proxy, by class; limits move to keep it.
[slo]
";

const SIGNALS: &str = r#"
# Readings of Ray. `target` is where pressure is 1: above it, limits of the classes that
# follow the signal fall. Sources are tried in order; the first one found is used:
#   { metric = 'name{Label="v"}', how = "sum" }   how: sum, max, rate, share-above, quantile, ratio
#   at = 0.99 goes with share-above and quantile, to = "other_metric" with ratio
#   { promql = "..." } asks the Prometheus server; { probe = true } is the probe's latency
# One with `backlog = true` counts work that requests leave behind: a rate that follows it keeps
# the time until that work starts within the class's `starts_within`. One with a `forecast`
# accumulates: above half its target, pressure is computed from the value expected after that time.
# on_stale: "hold" (stay), "decay" (fall to initial), "static" (initial at once). Limits stay in force.
"#;

const MODULES: &str = "
# Ray's processes: how many requests may be in flight in each, all classes together, and how
# much learnt work one class may have in it (\"off\" for a process that works in parallel; there
# a client's use is counted by the time it holds permits).
";

const CLASSES: &str = "
# The limits of each class of endpoints. The first lists every key; the others leave out what
# is off. `rate` and `in_flight` take one value (fixed) or a range in which the controller moves it.
";

/// The complete file.
pub fn defaults() -> String {
    let signals = defaults::signals();
    let modules = defaults::modules();
    let classes = defaults::classes(&signals);
    let mut out = String::from(HEAD);
    for (header, section) in LISTED {
        out.push_str(header);
        out.extend(keys(section).into_iter().map(|key| key.lines));
    }
    out.push_str(ALERTS);
    for alert in Alert::ALL {
        write_alert(&mut out, alert);
    }
    out.push_str(SLO);
    for class in classes.iter().filter(|class| class.treatment == Treatment::Limited) {
        line(&mut out, &class.name, &quoted(&Objective(class.slo)));
    }
    out.push_str(SIGNALS);
    for (signal, about) in signals.iter().zip(SIGNALS_BUILT_IN) {
        write_signal(&mut out, signal, about.about);
    }
    out.push_str(MODULES);
    for (module, about) in modules.iter().zip(catalogue::MODULES) {
        write_module(&mut out, module, about.about);
    }
    out.push_str(CLASSES);
    for (i, (class, about)) in classes.iter().zip(catalogue::CLASSES).enumerate() {
        write_class(&mut out, class, about.about, &modules[class.module.index()].name, &signals, i == 0);
    }
    out
}

/// The keys of a section.
fn keys(section: &str) -> Vec<Key> {
    SECTIONS.iter().find(|(name, _)| *name == section).map_or_else(Vec::new, |(_, keys)| keys())
}

/// `page` with its tables of keys written again: each follows a line `<!-- keys: SECTION ... -->`.
pub fn page(page: &str) -> String {
    let mut out = String::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let _ = writeln!(out, "{line}");
        let named = line.strip_prefix("<!-- keys: ").and_then(|rest| rest.strip_suffix(" -->"));
        let Some(sections) = named else { continue };
        out.push_str("\n| key | meaning | unit | default | range |\n|---|---|---|---|---|\n");
        for Key { path, text, unit, default, range, .. } in sections.split(' ').flat_map(keys) {
            let row = [&format!("`{path}`"), text, &unit, &default, &range].map(|cell| match cell.trim() {
                "" => " ".to_owned(),
                cell => format!(" {cell} "),
            });
            let _ = writeln!(out, "|{}|", row.join("|"));
        }
        while lines.next_if(|line| line.is_empty() || line.starts_with('|')).is_some() {}
        out.push('\n');
    }
    out
}

fn line(out: &mut String, key: &str, value: &str) {
    // invariant: writing to a String cannot fail.
    let _ = writeln!(out, "{key} = {value}");
}

fn or_off<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "\"off\"".to_owned(), |value| quoted(&value))
}

fn write_alert(out: &mut String, alert: Alert) {
    let patience = alert.patience();
    let _ = writeln!(out, "\n[alerts.rule.{}]", alert.label());
    line(out, "enabled", "true");
    line(out, "for", &quoted(&Length(patience.fire_after)));
    line(out, "clear", &quoted(&Length(patience.clear_after)));
}

fn write_signal(out: &mut String, signal: &Signal, about: &str) {
    let _ = writeln!(out, "\n# {about}\n[signal.{}]", signal.name);
    line(out, "target", &signal.target.to_string());
    line(out, "unit", &quoted(&signal.unit));
    line(out, "stale_after", &quoted(&Length(signal.stale_after)));
    line(out, "on_stale", &quoted(&signal.on_stale.word()));
    if signal.backlog {
        line(out, "backlog", "true");
    }
    if signal.forecast > Duration::ZERO {
        line(out, "forecast", &quoted(&Length(signal.forecast)));
    }
    let sources = signal.sources.iter().map(|source| format!("  {},\n", source_text(source)));
    line(out, "sources", &format!("[\n{}]", sources.collect::<String>()));
}

fn source_text(source: &SignalSource) -> String {
    let derivation = match source {
        SignalSource::Probe => return "{ probe = true }".to_owned(),
        SignalSource::PromQl(text) => return format!("{{ promql = '{text}' }}"),
        SignalSource::Scrape(derivation) => derivation,
    };
    let how = match &derivation.how {
        How::Sum => "\"sum\"".to_owned(),
        How::Max => "\"max\"".to_owned(),
        How::Rate => "\"rate\"".to_owned(),
        How::ShareAbove(bound) => format!("\"share-above\", at = {bound}"),
        How::Quantile(quantile) => format!("\"quantile\", at = {quantile}"),
        How::RatioTo(below) => format!("\"ratio\", to = '{}'", selector::write(below)),
    };
    format!(
        "{{ metric = '{}', how = {how}, scale = {} }}",
        selector::write(&derivation.select),
        derivation.scale
    )
}

fn write_module(out: &mut String, module: &Module, about: &str) {
    let _ = writeln!(out, "\n# {about}\n[module.{}]", module.name);
    line(out, "in_flight", &bounds_text(module.in_flight));
    line(out, "work", &or_off(module.work.map(Length)));
}

fn bounds_text(bounds: Bounds) -> String {
    if bounds.moves() {
        return format!("{{ initial = {}, min = {}, max = {} }}", bounds.initial, bounds.min, bounds.max);
    }
    bounds.initial.to_string()
}

/// One class; `whole` writes what is off, too.
fn write_class(out: &mut String, class: &Class, about: &str, module: &str, signals: &[Signal], whole: bool) {
    let _ = writeln!(out, "\n# {about}\n[class.{}]", class.name);
    line(out, "module", &quoted(&module));
    let limited = class.treatment == Treatment::Limited;
    if whole || !limited {
        line(out, "treatment", &quoted(&class.treatment.word()));
    }
    if !limited {
        return;
    }
    let held = class.kind == Kind::Held;
    if whole || held {
        line(out, "kind", &quoted(&class.kind.word()));
    }
    line(out, "priority", &class.priority.0.to_string());
    if let Some(rate) = class.rate {
        let [initial, min, max] =
            [rate.per_second.initial, rate.per_second.min, rate.per_second.max].map(PerSecond);
        let text = format!(
            "{{ initial = \"{initial}\", min = \"{min}\", max = \"{max}\", burst = {} }}",
            rate.burst
        );
        line(out, "rate", &text);
    } else if whole {
        line(out, "rate", "\"off\"");
    }
    line(out, "in_flight", &bounds_text(class.in_flight));
    if whole || class.bytes_per_second.is_some() {
        line(out, "bytes_per_second", &or_off(class.bytes_per_second.map(BytesPerSecond)));
    }
    if whole || class.require_key {
        line(out, "require_key", &class.require_key.to_string());
    }
    if !held {
        let Queue { len_max, wait_max } = class.queue;
        line(out, "queue", &format!("{{ len = {len_max}, wait = \"{}\" }}", Length(wait_max)));
    }
    if whole || class.per_client != PerClientLimits::default() {
        line(out, "per_client", &per_client_text(class.per_client));
    }
    if whole || class.coalesce.is_some() {
        line(out, "coalesce", &or_off(class.coalesce.map(|coalesce| Length(coalesce.ttl))));
    }
    if !held {
        line(out, "timeout", &or_off(class.timeout.map(Length)));
    }
    line(out, "law", &law_text(class.law));
    let name = |id: &SignalId| &*signals[id.index()].name;
    if whole || !class.signals.is_empty() {
        let followed: Vec<&str> = class.signals.iter().map(name).collect();
        line(out, "signals", &format!("{followed:?}"));
    }
    if whole || class.backlog.is_some() {
        line(out, "backlog", &or_off(class.backlog.as_ref().map(name)));
        line(out, "starts_within", &quoted(&Length(class.starts_within)));
    }
    if whole {
        line(out, "alert_above", "\"off\"");
    }
}

fn per_client_text(limits: PerClientLimits) -> String {
    let rate = match limits.rate {
        Some((rate, burst)) => format!("rate = \"{}\", burst = {burst}", PerSecond(rate)),
        None => "rate = \"off\"".to_owned(),
    };
    let in_flight = limits.in_flight.map_or_else(|| "\"off\"".to_owned(), |count| count.to_string());
    format!("{{ {rate}, in_flight = {in_flight} }}")
}

fn law_text(law: Law) -> String {
    match law {
        Law::Static => "{ kind = \"static\" }".to_owned(),
        Law::Aimd { increase, decrease } => {
            format!("{{ kind = \"aimd\", increase = {increase}, decrease = {decrease} }}")
        }
        Law::Pid { kp, ki: Some(ki), kd } => {
            format!("{{ kind = \"pid\", kp = {kp}, ki = {ki}, kd = {kd} }}")
        }
        Law::Pid { kp, ki: None, kd } => format!("{{ kind = \"pid\", kp = {kp}, kd = {kd} }}"),
        Law::Gradient { tolerance, smoothing } => {
            format!("{{ kind = \"gradient\", tolerance = {tolerance}, smoothing = {smoothing} }}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, Settings, parse};
    use super::{defaults, page};

    #[test]
    fn the_complete_file_reads_back_as_the_defaults() {
        let without = Settings::defaults(&Overrides::default()).unwrap();
        let mut with = parse(&defaults(), "defaults", &Overrides::default())
            .unwrap_or_else(|problems| panic!("{problems}"));
        with.version = without.version.clone();
        assert_eq!(format!("{with:#?}"), format!("{without:#?}"));
    }

    #[test]
    fn config_rayguard_toml_and_the_tables_of_the_page_are_what_the_table_of_keys_says() {
        let (file, text) = (include_str!("../../config/rayguard.toml"), include_str!("../../config/KEYS.md"));
        assert!(
            file == defaults() && text == page(text),
            "a key has changed; write both again: \
             cargo test -p rayguard-config --lib write_the_complete_file_again -- --ignored"
        );
    }

    #[test]
    #[ignore = "writes config/rayguard.toml and config/KEYS.md; run it by hand after a key has changed"]
    fn write_the_complete_file_again() {
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config");
        std::fs::write(format!("{config}/rayguard.toml"), defaults()).unwrap();
        let text = std::fs::read_to_string(format!("{config}/KEYS.md")).unwrap();
        std::fs::write(format!("{config}/KEYS.md"), page(&text)).unwrap();
    }
}
