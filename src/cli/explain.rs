//! `rayguard explain`: why was this request refused, or why is this limit what it is?
//!
//! From the adjustment log alone. For a request id (every refusal carries one) it shows the refusal,
//! what it means, the limits of its class and module as they stood, what they had been set by,
//! and what would undo it. For a class and a time it says of each of its limits which ceiling was in force,
//! and shows the last change of each before then and the first one after. For a signal it shows its last state.

use super::class_name::ClassName;
use super::format::Format;
use super::log::{LogError, known, parse_time};
use super::log_source::LogSource;
use crate::core::admission::meter::Reason;
use crate::core::control::guardrails::Guardrail;
use crate::core::event::{
    Adjustment, Event, LimitKind, LoggedEvent, LoopKind, ModeChange, Shed, number, printable, quantity,
};
use crate::core::time::WallMs;
use crate::observe::adjustment_log::LogLine;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// Explains a refused request, or a class's limits at some time.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Request id, from the `X-Rayguard-Request-Id` header of the response.
    #[arg(required_unless_present = "class", conflicts_with = "class")]
    pub request: Option<String>,
    /// A class, module or signal, instead of a request.
    #[arg(long, value_name = "NAME", value_parser = ClassName, hide_possible_values = true)]
    pub class: Option<String>,
    /// Point in time: UTC (`2026-01-31T23:00:00Z`) or a duration ago (`10m`). Default: now.
    #[arg(long, value_name = "TIME", requires = "class")]
    pub at: Option<String>,
    /// The adjustment log to read.
    #[command(flatten)]
    pub source: LogSource,
    /// Table or JSON.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The adjustment log cannot be read, or a time is none.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The request is not in the adjustment log.
    #[error(
        "request {request:?} is not in the adjustment log: only shed requests are written to it, and in a \
            flood only a few per second; try `rayguard explain --class NAME --at TIME` with the class and time of the request"
    )]
    NoRequest {
        /// As given.
        request: String,
    },
    /// The class is not in the adjustment log.
    #[error("nothing about {class:?} is in the adjustment log before {at}; `rayguard log` shows what is")]
    NoClass {
        /// As given.
        class: String,
        /// Until when was looked.
        at: String,
    },
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Carries out the command; `now` is the wall clock.
pub fn run(args: &Args, now: WallMs, out: &mut dyn Write) -> Result<(), ExplainError> {
    let place = args.source.place().map_err(LogError::from)?;
    let lines = place.read(None).map_err(LogError::from)?;
    let mut subjects = BTreeSet::new();
    let mut logged_events = lines.filter_map(|line| match line {
        Ok(LogLine::LoggedEvent(logged)) => {
            subjects.extend(logged.event.subject().map(str::to_owned));
            Some(Ok(*logged))
        }
        Ok(LogLine::Unreadable { .. }) => None,
        Err(problem) => Some(Err(LogError::from(place.unreadable(problem)))),
    });
    match (&args.request, &args.class) {
        (Some(request), _) => explain_request(request, &mut logged_events, args.format, out),
        (None, Some(class)) => {
            let at = args.at.as_deref().map_or(Ok(now), |text| parse_time(text, now))?;
            match explain_class(class, at, &mut logged_events, args.format, out) {
                Err(ExplainError::NoClass { class, at }) => {
                    logged_events.by_ref().for_each(drop);
                    drop(logged_events);
                    known(&class, &subjects)?;
                    Err(ExplainError::NoClass { class, at })
                }
                other => other,
            }
        }
        (None, None) => Err(ExplainError::NoRequest { request: String::new() }),
    }
}

/// The last change of each ceiling of one limit.
type Ceilings = BTreeMap<LoopKind, (WallMs, Adjustment)>;

/// The last word on every limit, as the adjustment log is read.
#[derive(Default)]
struct Known {
    /// By class and limit, and by loop: each loop has a ceiling of its own, and the lowest is in force.
    adjustments: BTreeMap<(String, LimitKind), Ceilings>,
    signals: BTreeMap<String, (WallMs, String)>,
    pins: BTreeMap<(String, LimitKind), f64>,
    modes: BTreeMap<String, (WallMs, ModeChange)>,
}

impl Known {
    fn take(&mut self, logged: &LoggedEvent) {
        match &logged.event {
            Event::Adjustment(adjustment) => {
                let key = (adjustment.class.clone(), adjustment.limit);
                self.adjustments
                    .entry(key)
                    .or_default()
                    .insert(adjustment.r#loop, (logged.time, (**adjustment).clone()));
            }
            Event::SignalState(state) => {
                let sentence = logged.event.sentence();
                self.signals.insert(state.signal.clone(), (logged.time, sentence));
            }
            Event::ModeChange(change) => {
                if let Some(limit) = change.limit {
                    let key = (change.class.clone(), limit);
                    match change.value {
                        Some(value) => _ = self.pins.insert(key, value),
                        None => _ = self.pins.remove(&key),
                    }
                }
                self.modes.insert(change.class.clone(), (logged.time, change.clone()));
            }
            // A new process starts from its own limits.
            Event::Start(_) => *self = Known::default(),
            _ => {}
        }
    }

    /// The last changes of these classes' or modules' limits.
    fn adjustments(&self, names: &[&str]) -> impl Iterator<Item = &(WallMs, Adjustment)> {
        self.adjustments
            .iter()
            .filter(|((class, _), _)| names.contains(&class.as_str()))
            .flat_map(|(_, loops)| loops.values())
    }

    /// The change that set what is in force of a limit: of its ceilings the lowest.
    fn in_force(&self, class: &str, limit: LimitKind) -> Option<&Adjustment> {
        let loops = self.adjustments.get(&(class.to_owned(), limit))?;
        loops.values().map(|(_, last)| last).min_by(|a, b| a.new.total_cmp(&b.new))
    }

    /// What each limit of a class was, and what held it there.
    fn standing(&self, class: &str) -> Vec<String> {
        let of_class = self.adjustments.iter().filter(|((name, _), _)| name == class);
        of_class
            .filter_map(|((_, limit), loops)| {
                let low = self.in_force(class, *limit)?;
                let (label, unit) = (limit.label(), limit.unit());
                let is = |value: f64| format!("{class} {label} is {}{unit}", number(value));
                if let Some(pinned) = self.pins.get(&(class.to_owned(), *limit)) {
                    return Some(format!("{}, pinned by an operator", is(*pinned)));
                }
                let held = match low.signals.first() {
                    Some(worst) => format!(
                        "set by {} ({}, target {})",
                        worst.name,
                        quantity(worst.value, &worst.unit),
                        quantity(worst.target, &worst.unit)
                    ),
                    None => format!("set by {}", low.r#loop.follows()),
                };
                let others =
                    loops.values().filter(|(_, other)| other.r#loop != low.r#loop).map(|(_, other)| {
                        format!("; {} alone would allow {}{unit}", other.r#loop.follows(), number(other.new))
                    });
                Some(format!("{}, {held}{}", is(low.new), others.collect::<String>()))
            })
            .collect()
    }

    /// The last changes of their modes, and of all classes' together.
    fn modes(&self, names: &[&str]) -> impl Iterator<Item = (WallMs, String, &ModeChange)> {
        names.iter().copied().chain(["all"]).filter_map(|name| {
            let (time, change) = self.modes.get(name)?;
            Some((*time, Event::ModeChange(change.clone()).sentence(), change))
        })
    }

    /// What would have let this request pass, by what had set its limit.
    fn advice(&self, shed: &Shed) -> String {
        let of_class = matches!(shed.cause, Reason::ClassInFlight | Reason::QueueTimeout);
        if let (true, Some(work), Some(limit)) = (of_class, shed.work_s, shed.work_limit_s)
            && work > 0.9 * limit
        {
            return format!(
                "cheaper requests, such as ones with a filter: those in flight already took {} of Ray's time, and {} may be \
                 taken at once",
                quantity(work, "s"),
                quantity(limit, "s")
            );
        }
        let last = self.in_force(&shed.class, LimitKind::InFlight);
        match last.filter(|_| of_class) {
            Some(cut) if cut.new < cut.old => format!(
                "fewer requests, or more capacity of the head; a higher bound would not have helped, because the \
                 controller had lowered the limit: {}",
                cut.reason
            ),
            Some(raised) if raised.guardrail == Some(Guardrail::Ceiling) => {
                format!("a higher `class.{}.in_flight.max`: the limit was at it", shed.class)
            }
            _ => shed.undo(),
        }
    }

    /// Whether there is anything about them.
    fn knows(&self, names: &[&str]) -> bool {
        self.adjustments(names).next().is_some() || self.modes(names).next().is_some()
    }

    /// Everything about a class, module or signal.
    fn show(&self, name: &str, out: &mut dyn Write) -> io::Result<()> {
        for sentence in self.standing(name) {
            writeln!(out, "  {}", printable(&sentence))?;
        }
        if let Some((time, sentence)) = self.signals.get(name) {
            writeln!(out, "  {}  {}", time.rfc3339(), printable(sentence))?;
        }
        for (time, adjustment) in self.adjustments(&[name]) {
            show_adjustment(*time, adjustment, out)?;
        }
        for (time, sentence, _) in self.modes(&[name]) {
            writeln!(out, "  {}  {}", time.rfc3339(), printable(&sentence))?;
        }
        Ok(())
    }

    /// The same for programs.
    fn told(&self, names: &[&str]) -> Vec<Value> {
        let adjustments = self.adjustments(names).map(|(time, adjustment)| {
            json!({ "time": time, "sentence": adjustment.reason, "undo": adjustment.undo(), "adjustment": adjustment })
        });
        let modes = self.modes(names).map(
            |(time, sentence, change)| json!({ "time": time, "sentence": sentence, "mode_change": change }),
        );
        adjustments.chain(modes).collect()
    }
}

type LoggedEvents<'a> = &'a mut dyn Iterator<Item = Result<LoggedEvent, LogError>>;

fn explain_request(
    request: &str,
    logged_events: LoggedEvents<'_>,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), ExplainError> {
    let mut known = Known::default();
    for logged in logged_events {
        let logged = logged?;
        match &logged.event {
            Event::Shed(shed) if shed.request == request => {
                match format {
                    Format::Table => show_shed(logged.time, shed, &known, out)?,
                    Format::Json => {
                        let told = json!({
                            "shed": logged, "sentence": shed.sentence(), "meaning": shed.meaning(),
                            "undo": known.advice(shed), "limits": known.told(&[&shed.class, &shed.module]),
                        });
                        writeln!(out, "{told}")?;
                    }
                }
                return Ok(());
            }
            _ => known.take(&logged),
        }
    }
    Err(ExplainError::NoRequest { request: request.to_owned() })
}

fn explain_class(
    class: &str,
    at: WallMs,
    logged_events: LoggedEvents<'_>,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), ExplainError> {
    let mut known = Known::default();
    let (mut refused, mut next) = (None, None);
    for logged in logged_events {
        let logged = logged?;
        if logged.time > at {
            if logged.event.subject() == Some(class) && matches!(logged.event, Event::Adjustment(_)) {
                next = Some(logged);
                break;
            }
            continue;
        }
        if matches!(&logged.event, Event::ShedSummary(summary) if summary.class == class) {
            refused = Some(logged);
        } else {
            known.take(&logged);
        }
    }
    // What was done to all classes says nothing of whether there is this one.
    let is_named = known.adjustments(&[class]).next().is_some()
        || known.modes.contains_key(class)
        || known.signals.contains_key(class);
    if !is_named && refused.is_none() && next.is_none() {
        return Err(ExplainError::NoClass { class: class.to_owned(), at: at.rfc3339() });
    }
    if format == Format::Json {
        let told = json!({
            "name": class, "at": at.rfc3339(), "standing": known.standing(class), "limits": known.told(&[class]),
            "signal": known.signals.get(class).map(|(time, sentence)| json!({ "time": time, "sentence": sentence })),
            "shed": refused, "next": next,
        });
        writeln!(out, "{told}")?;
        return Ok(());
    }
    writeln!(out, "{} at {}:", printable(class), at.rfc3339())?;
    known.show(class, out)?;
    if let Some(logged) = &refused {
        writeln!(out, "  {}  {}", logged.time.rfc3339(), printable(&logged.event.sentence()))?;
    }
    if let Some(logged) = &next {
        writeln!(out, "then {}  {}", logged.time.rfc3339(), printable(&logged.event.sentence()))?;
    }
    if known.signals.contains_key(class) {
        writeln!(out, "`rayguard log --class {}` shows what came before", printable(class))?;
    }
    Ok(())
}

fn show_shed(time: WallMs, shed: &Shed, known: &Known, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}  {}", time.rfc3339(), printable(&shed.sentence()))?;
    writeln!(out, "what that means: {}", shed.meaning())?;
    writeln!(
        out,
        "client: {} (a digest; `rayguard clients` shows it in column ID, beside the address)",
        printable(&shed.client)
    )?;
    writeln!(out, "what would have helped: {}", printable(&known.advice(shed)))?;
    writeln!(out, "the limits then (table {}):", shed.table)?;
    known.show(&shed.class, out)?;
    known.show(&shed.module, out)?;
    if !known.knows(&[&shed.class, &shed.module]) {
        writeln!(out, "  as configured; not changed since the start")?;
    }
    Ok(())
}

fn show_adjustment(time: WallMs, adjustment: &Adjustment, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "  {}  {}", time.rfc3339(), printable(&adjustment.reason))?;
    for signal in &adjustment.signals {
        let line = format!(
            "{} {} (target {}, pressure {}), {} old, from {}",
            signal.name,
            quantity(signal.value, &signal.unit),
            quantity(signal.target, &signal.unit),
            number(signal.pressure),
            quantity(signal.age_ms as f64 / 1e3, "s"),
            signal.source
        );
        writeln!(out, "      read: {}", printable(&line))?;
    }
    writeln!(out, "      undo: {}", printable(&adjustment.undo()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::log::tests::{START_MS, TestLog, adjusted, shed, source};

    fn explain(
        adjustment_log: &TestLog,
        request: Option<&str>,
        class: Option<&str>,
        at: Option<&str>,
    ) -> Result<String, ExplainError> {
        let args = Args {
            request: request.map(str::to_owned),
            class: class.map(str::to_owned),
            at: at.map(str::to_owned),
            source: source(adjustment_log),
            format: Format::Table,
        };
        let mut out = Vec::new();
        run(&args, WallMs(START_MS + 100_000), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn sample() -> TestLog {
        let mut adjustment_log = TestLog::new("explain");
        adjustment_log.write(0, adjusted("state-heavy", 8.0, 3.0, 0));
        adjustment_log.write(5, adjusted("state-heavy", 4.0, 1.5, 5));
        adjustment_log.write(6, adjusted("job-list", 4.0, 0.5, 6));
        adjustment_log.write(7, shed("r-17", "state-heavy"));
        adjustment_log.write(60, adjusted("state-heavy", 3.0, 0.5, 60));
        adjustment_log
    }

    #[test]
    fn a_refusal_is_explained_with_what_set_its_limit_and_what_would_undo_it() {
        let text = explain(&sample(), Some("r-17"), None, None).unwrap();
        for part in [
            "shed request r-17 of state-heavy (StateHead) after 1500 ms in the queue: class_in_flight; 2 in flight, limit 2",
            "Retry-After 4 s",
            "the class was at its limit of requests in flight",
            "cut state-heavy in_flight from 4 to 3.61: proxy latency 7.5 s is 1.5x its target 5 s",
            "read: proxy_latency 7.5 s (target 5 s, pressure 1.5), 100 ms old, from proxy",
            "undo: it grows again once proxy_latency is below 4.75 s",
            "what would have helped: fewer requests, or more capacity of the head; a higher bound would not have helped",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("job-list") && !text.contains("from 8"), "{text}");
    }

    #[test]
    fn a_class_is_explained_as_of_a_time() {
        let adjustment_log = sample();
        let then = explain(&adjustment_log, None, Some("state-heavy"), Some("2023-11-14T22:13:21Z")).unwrap();
        assert!(then.contains("from 8 to"), "{then}");
        assert!(then.contains("then 2023-11-14T22:13:25.000Z  cut state-heavy in_flight from 4"), "{then}");
        let now = explain(&adjustment_log, None, Some("state-heavy"), None).unwrap();
        assert!(now.contains("raised state-heavy in_flight from 3") && !now.contains("then"), "{now}");
    }

    #[test]
    fn of_two_ceilings_the_one_in_force_comes_first_and_a_signal_is_explained_too() {
        use crate::core::event::{SignalHealth, SignalSeen, SignalState};
        let mut log = TestLog::new("ceilings");
        let outer = crate::cli::log::tests::adjustment("state-light", 4.0, 1.83, 0);
        let signal = SignalSeen {
            name: "head_cpu".into(),
            value: 119.0,
            target: 65.0,
            unit: "%".into(),
            ..outer.signals[0].clone()
        };
        let outer = Adjustment { r#loop: LoopKind::Outer, new: 0.462_8, signals: vec![signal], ..outer };
        log.write(0, Event::Adjustment(Box::new(outer)));
        log.write(1, adjusted("state-light", 1.0, 0.5, 1));
        log.write(
            2,
            Event::SignalState(SignalState {
                signal: "head_cpu".into(),
                state: SignalHealth::Fresh,
                age_ms: None,
                source: "a:1 ray_node_cpu_utilization".into(),
                problem: String::new(),
                consequence: String::new(),
            }),
        );
        let text = explain(&log, None, Some("state-light"), None).unwrap();
        let first = text.lines().nth(1).unwrap();
        assert!(
            first.starts_with("  state-light in_flight is 0.463, set by head_cpu (119 %, target 65 %); latency alone would allow 1."),
            "{text}"
        );
        let text = explain(&log, None, Some("head_cpu"), None).unwrap();
        assert!(
            text.contains("head_cpu is read from a:1") && text.contains("`rayguard log --class head_cpu`"),
            "{text}"
        );
    }

    #[test]
    fn programs_are_told_the_same() {
        let adjustment_log = sample();
        let told = |request: Option<&str>, class: Option<&str>| -> Value {
            let (request, class) = (request.map(str::to_owned), class.map(str::to_owned));
            let mut out = Vec::new();
            let source = source(&adjustment_log);
            let args = Args { request, class, at: None, source, format: Format::Json };
            run(&args, WallMs(START_MS + 100_000), &mut out).unwrap();
            serde_json::from_slice(&out).unwrap()
        };
        let refused = told(Some("r-17"), None);
        assert_eq!(refused["shed"]["class"], "state-heavy");
        assert_eq!(refused["limits"][0]["adjustment"]["old"], 4.0);
        assert!(refused["undo"].as_str().is_some_and(|undo| !undo.is_empty()));
        let class = told(None, Some("state-heavy"));
        assert_eq!((&class["limits"][0]["adjustment"]["old"], &class["next"]), (&json!(3.0), &Value::Null));
    }

    #[test]
    fn what_is_not_in_the_record_is_said_to_be_sampled_or_unknown() {
        let adjustment_log = sample();
        let request = explain(&adjustment_log, Some("r-99"), None, None).unwrap_err();
        assert!(request.to_string().contains("in a flood only a few per second"), "{request}");
        let class = explain(&adjustment_log, None, Some("serve"), None).unwrap_err();
        assert!(matches!(class, ExplainError::NoClass { .. }), "{class}");
        let class = explain(&adjustment_log, None, Some("state-hevy"), None).unwrap_err();
        assert!(class.to_string().ends_with("did you mean `state-heavy`?"), "{class}");
    }
}
