//! `rayguard tune --trace FILE`: what should the limits be, going by what was recorded?
//!
//! From a trace the head is identified (`sim::identify`), and from that follows, for each
//! class whose module was seen saturated:
//!
//! ```text
//! N_slo              = capacity * objective / service time      Little's law at the objective:
//!                      with so many under way, an answer takes just as long as it may
//! in_flight.initial  = N_slo / 2                                margin 2 in latency
//! in_flight.max      = N_slo, within the module's ceiling
//! ```
//!
//! Where calm traffic itself hardly keeps an objective, there is no overload to defend it against:
//! the proposal is twice the calm latency. A signal whose calm readings already stand at its target
//! gets one with a quarter's room. Data that came older than the configuration thinks lengthen
//! its dead time, and gains follow from that by themselves (SIMC: step / (2 * dead time)).
//!
//! The proposal is then put to the same trace, beside the configuration as it is and no
//! limits at all; what the trace cannot show is listed, and no value is made up for it.
//! `rayguard limits suggest` answers the simpler question of what calm traffic needs.

use super::incident::{self, Loaded, Replay};
use super::simulate::Error as SimulateError;
use crate::config::quantity::{Length, Objective};
use crate::config::{self, Overrides, Settings};
use crate::core::event::printable;
use crate::core::policy::{Class, Kind, Slo, Treatment};
use crate::core::time::duration_from_secs;
use crate::core::traffic_trace::TrafficTrace;
use crate::lab::identify::{ClassFit, Identified};
use crate::lab::incident::{Incident, Wanted, replay, table};
use crate::sim::scenario::Guard;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use toml::Value;

/// Proposes limits, SLOs and targets from a traffic trace, with the simulation that supports them.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Traffic trace written by `rayguard record` or `run --record`.
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// Configuration to start from. Default: the built-in defaults.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Seed of the simulation.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How the trace is replayed.
    #[command(flatten)]
    pub replay: Replay,
}

/// Why there is no proposal.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// Trace or configuration cannot be read.
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    /// Not a trace.
    #[error(
        "{0}: an arrival log does not say how long the head took; write a trace with `rayguard record FILE`"
    )]
    Log(String),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] config::Problems),
    /// Nowhere to print to.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

/// One value that is proposed.
#[derive(Clone, PartialEq, Debug)]
struct Proposal {
    /// `slo`, `class.job-list`, `signal.head_cpu`, `control`.
    section: Vec<String>,
    key: String,
    value: Value,
    why: String,
}

/// Served less than this below the present configuration, a proposal is not backed.
const WORSE: f64 = 0.005;

/// Carries out the command; 1: the simulation does not back the proposal.
///
/// # Errors
/// The trace or the configuration cannot be read.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<u8, TuneError> {
    let Loaded { case, trace } = incident::load(&args.trace, &args.replay)?;
    let name = args.trace.display().to_string();
    let Some((trace, found)) = trace else { return Err(TuneError::Log(name)) };
    let base = match &args.config {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| SimulateError::File { path: path.clone(), error })?,
        None => String::new(),
    };
    let settings = config::parse(&base, "config", &Overrides::default())?;
    let (proposals, kept) = acceptable(&base, propose(&settings, &found));
    let proposed = config::parse(&kept, "proposal", &Overrides::default())?;
    let wanted = [
        ("as it is", &base, Guard::Rayguard),
        ("proposed", &kept, Guard::Rayguard),
        ("limits off", &base, Guard::Off),
    ];
    let wanted = wanted.map(|(label, config, guard)| Wanted {
        label: label.to_owned(),
        config: config.clone(),
        guard,
    });
    let incident = replay(&case, &wanted, args.seed, false)
        .map_err(|error| SimulateError::Scenario { path: args.trace.clone(), error })?;
    let backed = is_backed(&incident);
    let mut text = preface(&name, &trace, &found);
    write_proposals(&proposals, &mut text);
    misfit(&incident, &mut text);
    stability(&proposed, &mut text);
    backing(&incident, backed, &mut text);
    out.write_all(text.as_bytes())?;
    Ok(u8::from(!backed))
}

fn propose(settings: &Settings, found: &Identified) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    for fit in &found.classes {
        let class = settings.policy.classes.iter().find(|class| *class.name == *fit.class);
        let Some(class) = class.filter(|c| c.treatment == Treatment::Limited && c.kind == Kind::Unary) else {
            continue;
        };
        let slo = objective(class, fit, &mut proposals);
        limits(settings, class, fit, slo, found, &mut proposals);
    }
    targets(found, &mut proposals);
    data_age(settings, found, &mut proposals);
    proposals
}

/// An objective that a calm head can keep; seconds.
fn objective(class: &Class, fit: &ClassFit, proposals: &mut Vec<Proposal>) -> f64 {
    let now_s = class.slo.latency.as_secs_f64();
    let Some(calm_s) = fit.calm_ms.map(|ms| ms / 1e3).filter(|calm_s| *calm_s > now_s / 1.5) else {
        return now_s;
    };
    let timeout_s = class.timeout.map_or(f64::INFINITY, |timeout| timeout.as_secs_f64());
    let wanted_s = round_up(2.0 * calm_s).min(timeout_s);
    proposals.push(Proposal {
        section: vec!["slo".to_owned()],
        key: fit.class.clone(),
        value: Value::String(
            Objective(Slo { latency: duration_from_secs(wanted_s), ..class.slo }).to_string(),
        ),
        why: format!(
            "{} answers while no request waited: {} of them within {}; the objective of {} is too tight",
            fit.calm,
            percent(class.slo.quantile),
            seconds(calm_s),
            seconds(now_s)
        ),
    });
    wanted_s
}

fn limits(
    settings: &Settings,
    class: &Class,
    fit: &ClassFit,
    slo_s: f64,
    found: &Identified,
    proposals: &mut Vec<Proposal>,
) {
    let module = found.modules.iter().find(|module| module.module == fit.module);
    let capacity = module.and_then(|module| module.capacity);
    let (Some(capacity), Some(service_ms)) = (capacity, fit.service_ms) else { return };
    if service_ms <= 0.0 || !class.in_flight.moves() {
        return;
    }
    let ceiling = settings.policy.modules[class.module.index()].in_flight.max;
    let fits = capacity * slo_s / (service_ms / 1e3);
    let max = fits.min(ceiling).floor().max(1.0);
    let initial = (fits / 2.0).floor().clamp(1.0, max);
    let min = class.in_flight.min.min(initial).max(1.0);
    let now = class.in_flight;
    let same = |a: f64, b: f64| (a - b).abs() < 0.5;
    if max <= min || (same(now.initial, initial) && same(now.max, max)) {
        return;
    }
    let mut range = toml::Table::new();
    for (key, value) in [("initial", initial), ("min", min), ("max", max)] {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of permits")]
        range.insert(key.to_owned(), Value::Integer(value as i64));
    }
    proposals.push(Proposal {
        section: vec!["class".to_owned(), fit.class.clone()],
        key: "in_flight".to_owned(),
        value: Value::Table(range),
        why: format!(
            "{} did {capacity:.2} s of work a second when saturated, a request is {service_ms:.1} ms of it: \
             {fits:.1} under way take the objective of {}; half of that to begin with ({} to {} now)",
            fit.module,
            seconds(slo_s),
            now.initial,
            now.max
        ),
    });
}

fn targets(found: &Identified, proposals: &mut Vec<Proposal>) {
    for fit in &found.signals {
        let Some(calm) = fit.calm_p95.filter(|calm| *calm > 0.8 * fit.target) else { continue };
        let target = round_up(1.25 * calm);
        // A share that is used up has no room above it to be had by a higher target.
        if target <= fit.target || fit.unit == "%" && target > 95.0 {
            continue;
        }
        proposals.push(Proposal {
            section: vec!["signal".to_owned(), fit.signal.clone()],
            key: "target".to_owned(),
            value: Value::Float(target),
            why: format!(
                "95 % of calm readings lie within {calm:.3} {0}; the target of {1} {0} would cut limits on a calm day",
                fit.unit, fit.target
            ),
        });
    }
}

/// Gains follow from the dead time; what the trace shows of that is how old data were.
fn data_age(settings: &Settings, found: &Identified, proposals: &mut Vec<Proposal>) {
    let used = settings.policy.classes.iter().flat_map(|class| &class.signals);
    let used: Vec<&str> = used.map(|id| &*settings.policy.signals[id.index()].name).collect();
    let oldest = found
        .signals
        .iter()
        .filter(|fit| fit.readings >= 10 && used.contains(&fit.signal.as_str()))
        .max_by(|a, b| (a.age_s + a.every_s / 2.0).total_cmp(&(b.age_s + b.every_s / 2.0)));
    let Some(fit) = oldest else { return };
    let (age_s, now_s) = (fit.age_s + fit.every_s / 2.0, settings.policy.control.data_age.as_secs_f64());
    if age_s <= 1.2 * now_s {
        return;
    }
    proposals.push(Proposal {
        section: vec!["control".to_owned()],
        key: "data_age".to_owned(),
        value: Value::String(Length(duration_from_secs(age_s.ceil())).to_string()),
        why: format!(
            "{} had a new value every {} and was {} old on arrival: {} on average, where the \
                configuration assumes {}; gains fall with it",
            fit.signal,
            seconds(fit.every_s),
            seconds(fit.age_s),
            seconds(age_s),
            seconds(now_s)
        ),
    });
}

/// The proposals that the configuration bears, and it with them: one at a time, so that one that
/// would be refused does not take the others with it.
fn acceptable(base: &str, proposals: Vec<Proposal>) -> (Vec<Proposal>, String) {
    let mut text = base.to_owned();
    let mut kept = Vec::new();
    for proposal in proposals {
        let Some(with) = merged(&text, &proposal) else { continue };
        if config::parse(&with, "proposal", &Overrides::default()).is_ok() {
            text = with;
            kept.push(proposal);
        }
    }
    (kept, text)
}

fn merged(text: &str, proposal: &Proposal) -> Option<String> {
    let mut whole: toml::Table = text.parse().ok()?;
    let mut table = &mut whole;
    for name in &proposal.section {
        let next = table.entry(name.clone()).or_insert_with(|| Value::Table(toml::Table::new()));
        table = next.as_table_mut()?;
    }
    table.insert(proposal.key.clone(), proposal.value.clone());
    toml::to_string(&whole).ok()
}

fn is_backed(incident: &Incident) -> bool {
    let served = |label: &str| {
        let at = incident.runs.iter().position(|run| run == label)?;
        let fared = incident.total.fared.get(at)?;
        (fared.asked > 0).then(|| fared.served as f64 / fared.asked as f64)
    };
    match (served("as it is"), served("proposed")) {
        (Some(now), Some(then)) => then >= now - WORSE,
        _ => true,
    }
}

// --- what is printed -------------------------------------------------------------------------

fn preface(name: &str, trace: &TrafficTrace, found: &Identified) -> String {
    let mut text = format!(
        "# Proposed by `rayguard tune` from {}: {} requests in {:.0} s.\n\
         # Copy what you agree with into your own file, and run `rayguard check` on it.\n#\n\
         # What it shows of the head:\n",
        printable(name),
        trace.arrivals.len(),
        trace.until.since(trace.from).as_secs_f64()
    );
    // Writing to a String cannot fail.
    for module in found.modules.iter().filter(|module| module.capacity.is_some()) {
        let _ = writeln!(
            text,
            "#   {:<14} {:.2} s of work a second when saturated ({:.0} s of it); {} under way at most",
            printable(&module.module),
            module.capacity.unwrap_or(0.0),
            module.saturated_s,
            module.in_flight_max
        );
    }
    for route in found.routes.iter().filter(|route| route.service_ms.is_some()) {
        let _ = writeln!(
            text,
            "#   {:<34} {:>9.1} ms alone ({} of {} answers)",
            printable(&route.route),
            route.service_ms.unwrap_or(0.0),
            route.alone,
            route.answered
        );
    }
    for signal in &found.signals {
        let _ = writeln!(
            text,
            "#   {:<34} new every {:.1} s, {:.1} s old; {:.3} {} at most, target {}",
            printable(&signal.signal),
            signal.every_s,
            signal.age_s,
            signal.max,
            printable(&signal.unit),
            signal.target
        );
    }
    text.push_str("#\n# What it cannot show, so these stay as they are:\n");
    for words in &found.unknown {
        let _ = writeln!(text, "#   {}", printable(words));
    }
    text
}

fn write_proposals(proposals: &[Proposal], text: &mut String) {
    if proposals.is_empty() {
        text.push_str("\n# Nothing to change: the trace agrees with the configuration.\n");
    }
    let mut section: &[String] = &[];
    let mut sorted: Vec<&Proposal> = proposals.iter().collect();
    // TOML wants each table once.
    sorted.sort_by_key(|proposal| &proposal.section);
    for proposal in sorted {
        if *section != *proposal.section {
            section = &proposal.section;
            let _ =
                writeln!(text, "\n[{}]", section.iter().map(|name| bare(name)).collect::<Vec<_>>().join("."));
        }
        let value = match &proposal.value {
            Value::Table(range) => {
                let of = |key: &str| range.get(key).map_or_else(String::new, Value::to_string);
                format!("{{ initial = {}, min = {}, max = {} }}", of("initial"), of("min"), of("max"))
            }
            other => other.to_string(),
        };
        let _ = writeln!(text, "# {}.\n{} = {value}", printable(&proposal.why), bare(&proposal.key));
    }
}

/// A key of TOML, quoted where it must be.
fn bare(name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}

/// How far each loop of the proposal is from swinging.
fn stability(settings: &Settings, text: &mut String) {
    let assessed = settings.loops().into_iter().filter_map(|one| one.assess().map(|of| (one, of)));
    let least = assessed.min_by(|a, b| a.1.gain_margin.total_cmp(&b.1.gain_margin));
    if let Some((one, of)) = least {
        let _ = writeln!(
            text,
            "\n# Stability: the least gain margin is {:.1} (2 is required), of {}'s {} with a dead time of {:.1} s \
             and gain {:.3}.",
            of.gain_margin,
            settings.policy.classes[one.class.index()].name,
            one.limit.label(),
            of.dead_time.as_secs_f64(),
            of.gain
        );
    }
}

/// The model and the recording are no longer the same head where their medians are further apart: `sim::model_fit`'s bound.
const APART_MAX: f64 = 2.0;

/// Says where the model answers in another time than was recorded, whatever limits it runs with; the first run of each
/// class is the recording.
fn misfit(incident: &Incident, text: &mut String) {
    if incident.runs.first().is_none_or(|run| run != "recorded") {
        return;
    }
    let apart = incident.rows.iter().filter_map(|row| {
        let recorded = row.fared.first()?.p50_ms?;
        let mut simulated: Vec<f64> = row.fared.iter().skip(1).filter_map(|fared| fared.p50_ms).collect();
        simulated.sort_by(f64::total_cmp);
        let (low, high) = (*simulated.first()?, *simulated.last()?);
        let is_apart = high * APART_MAX < recorded || low > recorded * APART_MAX;
        is_apart.then(|| format!("{} {recorded:.1} ms, simulated {low:.1} to {high:.1} ms", row.class))
    });
    let apart: Vec<String> = apart.collect();
    if !apart.is_empty() {
        let _ = writeln!(
            text,
            "\n# THE MODEL DOES NOT FIT this trace: p50 recorded of {}.\n# Treat the values below with \
                the same caution. Record a time in which the head was saturated and one in which it was \
                calm,\n# with all of Ray's traffic through rayguard.",
            apart.join("; ")
        );
    }
}

fn backing(incident: &Incident, backed: bool, text: &mut String) {
    if !backed {
        text.push_str(
            "\n# NOT SUPPORTED: the simulation serves fewer requests with this than with the \
            current configuration.\n",
        );
    }
    text.push_str("\n# The trace, replayed on the head identified from it:\n#\n");
    for line in table(incident).lines().take_while(|line| !line.starts_with("note:")) {
        let _ = writeln!(text, "#{}{line}", if line.is_empty() { "" } else { " " });
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.0} ms", 1e3 * value) } else { format!("{value:.1} s") }
}

/// Up to two digits.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return value;
    }
    let unit = 10_f64.powf(value.log10().floor() - 1.0);
    // Off by a rounding, a whole number of units would become one more.
    (value / unit - 1e-9).ceil() * unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::incident::tests::{File, trace};

    fn tuned(file: &File, config: Option<PathBuf>) -> (u8, String) {
        let args = Args { trace: file.0.clone(), config, seed: 1, replay: Replay::default() };
        let mut out = Vec::new();
        let code = run(&args, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_saturated_module_gets_limits_by_littles_law_and_the_file_can_be_used_as_it_is() {
        let file = File::new("tune.rec", &trace());
        let (code, text) = tuned(&file, None);
        assert_eq!(code, 0, "{text}");
        let settings = config::parse(&text, "proposal", &Overrides::default());
        let settings = settings.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        let class = settings.policy.classes.iter().find(|class| &*class.name == "state-heavy").unwrap();
        let permits = class.slo.latency.as_secs_f64() / 0.1;
        let ceiling = settings.policy.modules[class.module.index()].in_flight.max;
        assert!(
            (class.in_flight.max - permits.min(ceiling)).abs() <= 2.0,
            "{:?} {permits}\n{text}",
            class.in_flight
        );
        assert!(text.contains("StateHead      1.0") || text.contains("StateHead      0.9"), "{text}");
        assert!(text.contains("limits off"), "{text}");
    }

    #[test]
    fn what_a_calm_trace_cannot_show_is_said_and_nothing_is_made_up() {
        let calm: String = trace()
            .lines()
            .filter(|line| !line.contains(" 2 - "))
            .map(|line| line.to_owned() + "\n")
            .collect();
        let file = File::new("calm.rec", &calm);
        let (code, text) = tuned(&file, None);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("StateHead was never saturated"), "{text}");
        assert!(!text.contains("in_flight = {"), "{text}");
    }

    #[test]
    fn an_objective_that_a_calm_head_does_not_keep_is_raised() {
        let file = File::new("slow.rec", &trace());
        let config = File::new("strict.toml", "[slo]\nstate-heavy = \"p95 60ms\"\n");
        let (_, text) = tuned(&file, Some(config.0.clone()));
        assert!(
            text.contains("state-heavy = \"p95 200ms\"") || text.contains("state-heavy = \"p95 210ms\""),
            "{text}"
        );
    }

    #[test]
    fn an_arrival_log_is_refused_with_what_would_do() {
        let file = File::new("log.csv", "arrival_s,vc,gpus\n1,a,1\n");
        let args = Args { trace: file.0.clone(), config: None, seed: 1, replay: Replay::default() };
        let error = run(&args, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("rayguard record"), "{error}");
    }

    #[test]
    fn numbers_are_rounded_up_to_two_digits() {
        for (value, rounded) in [(0.2, 0.2), (0.201, 0.21), (1.0, 1.0), (123.4, 130.0), (0.0, 0.0)] {
            assert!((round_up(value) - rounded).abs() < 1e-9, "{value}: {}", round_up(value));
        }
    }
}
