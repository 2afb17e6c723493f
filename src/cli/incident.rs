//! `rayguard simulate --trace`: what would have happened with this configuration?
//!
//! A trace is one of rayguard's own traffic traces, or an arrival log that the importers of
//! `sim::trace` know. From a trace the head is identified as far as it shows; the other
//! formats are replayed against the calibrated head, or, for a log of completions, against a
//! Serve application. Every run sees the same load; the first line of each class is what was
//! recorded, the last what would have been with limits off.

use super::format::Format;
use super::simulate_args::{Args as Simulate, Error};
pub use super::simulate_args::{Replay, TraceArgs};
use crate::core::traffic_trace::{self, Reader, TrafficTrace};
use crate::lab::identify::{Identified, identify};
use crate::lab::incident::{self, Case, Incident, Wanted};
use crate::observe::trace_writer::older;
use crate::sim::scenario::Guard;
use crate::sim::trace::{self, Guide, Trace, TraceError, import};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// The longest replay.
const DAY_S: f64 = 86_400.0;

/// A trace that has been read, and what it shows of its head.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The load.
    pub case: Case,
    /// The trace, where it is one.
    pub trace: Option<(TrafficTrace, Identified)>,
}

/// Carries out `simulate --trace`.
///
/// # Errors
/// The trace or the configuration cannot be read, or the answer not written.
pub fn run(args: &Simulate, trace: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let Loaded { case, .. } = load(trace, &args.incident.replay)?;
    let (label, config) = match &args.incident.config {
        Some(path) => (format!("with {}", name_of(path)), text(path)?),
        None => ("with the defaults".to_owned(), String::new()),
    };
    let wanted = [
        Wanted { label, config, guard: Guard::Rayguard },
        Wanted { label: "limits off".to_owned(), config: String::new(), guard: Guard::Off },
    ];
    let blamed = args.incident.config.clone().unwrap_or_else(|| trace.to_owned());
    let incident = incident::replay(&case, &wanted, args.seed.unwrap_or(1), args.adjustment_log.is_some())
        .map_err(|error| Error::Scenario { path: blamed, error })?;
    show(args, &incident, out)
}

fn show(args: &Simulate, incident: &Incident, out: &mut dyn Write) -> Result<(), Error> {
    match args.format {
        Format::Table => write!(out, "{}", incident::table(incident))?,
        Format::Json => writeln!(out, "{}", serde_json::to_value(incident).unwrap_or_default())?,
    }
    let file = |path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|error| Error::File { path: path.to_owned(), error })
    };
    if let Some(path) = &args.html {
        file(path, &incident::html(incident))?;
    }
    if let Some(folder) = &args.adjustment_log {
        std::fs::create_dir_all(folder).map_err(|error| Error::File { path: folder.clone(), error })?;
        for (label, adjustment_log) in &incident.adjustment_logs {
            file(&folder.join(format!("{}.jsonl", label.replace(['/', ' '], "-"))), adjustment_log)?;
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::File { path: path.to_owned(), error })
}

/// Reads a trace of any format, and cuts out the part that is wanted.
///
/// # Errors
/// The file cannot be read, is of no known format, or holds nothing in this part.
pub fn load(path: &Path, replay: &Replay) -> Result<Loaded, Error> {
    let wrong = |problem: String| Error::Trace {
        path: path.to_owned(),
        error: TraceError { line: 1, problem, expected: "requests that can be replayed" },
    };
    let positive = |value: f64| value.is_finite() && value > 0.0;
    if !positive(replay.speedup) || !positive(replay.cores) || replay.copies == 0 {
        return Err(wrong("--speedup, --copies and --cores must be above 0".to_owned()));
    }
    let bytes = std::fs::read(path).map_err(|error| Error::File { path: path.to_owned(), error })?;
    let mut loaded = if traffic_trace::is_trace(&bytes) {
        of_trace(path, &bytes, replay)?
    } else {
        let trace = trace::read(&String::from_utf8_lossy(&bytes))
            .map_err(|error| Error::Trace { path: path.to_owned(), error })?;
        of_log(path, &trace)
    };
    cut(&mut loaded.case, replay);
    if loaded.case.groups.is_empty() {
        return Err(wrong("it holds no requests in this part".to_owned()));
    }
    Ok(loaded)
}

fn of_trace(path: &Path, bytes: &[u8], replay: &Replay) -> Result<Loaded, Error> {
    let wrong = |error: traffic_trace::TrafficTraceError| Error::Trace {
        path: path.to_owned(),
        error: TraceError { line: 1, problem: error.to_string(), expected: "a trace" },
    };
    let mut reader = Reader::default();
    if let Ok(older) = std::fs::read(older(path)) {
        // One that is no trace is somebody else's file; one of another run is left out.
        if reader.read(&older).is_err() {
            reader = Reader::default();
        }
    }
    reader.read(bytes).map_err(wrong)?;
    let trace = reader.finish().map_err(wrong)?;
    let guide = Guide::new();
    let identified = identify(&trace, &guide);
    let mut notes = Vec::new();
    let mut groups = Vec::new();
    for (number, class) in trace.head.classes.iter().enumerate() {
        let part = import(&trace, &guide, |wanted| usize::from(wanted) == number);
        for (label, (stand_in, count)) in part.stand_ins {
            notes.push(match stand_in {
                Some(name) => format!("{count} requests of {label} are replayed as `{name}`"),
                None => format!("{count} requests of {label} are left out: the model has no such module"),
            });
        }
        groups.push((class.name.clone(), part.trace));
    }
    notes.extend(identified.unknown.iter().cloned());
    let case = Case {
        name: name_of(path),
        groups,
        seconds: trace.until.since(trace.from).as_secs_f64().floor() + 1.0,
        plant: ray_head(replay.cores),
        spec: Some(identified.spec(replay.cores)),
        patience_s: replay.patience.0.as_secs_f64(),
        notes,
    };
    Ok(Loaded { case, trace: Some((trace, identified)) })
}

fn of_log(path: &Path, trace: &Trace) -> Loaded {
    let mut groups: BTreeMap<String, Trace> = BTreeMap::new();
    for arrival in &trace.arrivals {
        groups.entry(arrival.route.to_string()).or_default().arrivals.push(arrival.clone());
    }
    let serve = groups.contains_key("completion");
    let note = if serve {
        "completions are replayed against 8 replicas of 4 slots at 25 ms a generated token; a scenario with \
         `plant = { kind = \"serve\", ... }` can say otherwise"
    } else {
        "replayed against the calibrated head; a trace of your own would be fitted to yours"
    };
    let case = Case {
        name: name_of(path),
        seconds: trace.arrivals.last().map_or(0.0, |last| last.at.as_secs_f64().floor() + 1.0),
        groups: groups.into_iter().collect(),
        plant: if serve { serve_plant() } else { ray_head(2.0) },
        spec: None,
        patience_s: 30.0,
        notes: vec![note.to_owned()],
    };
    Loaded { case, trace: None }
}

fn ray_head(cores: f64) -> toml::Table {
    let mut plant = toml::Table::new();
    plant.insert("kind".to_owned(), "ray-head".into());
    plant.insert("cores".to_owned(), cores.into());
    plant
}

fn serve_plant() -> toml::Table {
    let mut plant = toml::Table::new();
    plant.insert("kind".to_owned(), "serve".into());
    for (key, value) in [("replicas", 8), ("ongoing", 4)] {
        plant.insert(key.to_owned(), value.into());
    }
    for (key, value) in [("base_ms", 20.0), ("per_size_ms", 25_000.0)] {
        plant.insert(key.to_owned(), toml::Value::Float(value));
    }
    plant
}

/// The part that is wanted, as fast and as often as is wanted; groups that hold nothing go.
fn cut(case: &mut Case, replay: &Replay) {
    let from = replay.from.0.as_secs_f64();
    let length = replay.length.map_or(f64::INFINITY, |length| length.0.as_secs_f64());
    let seconds = (case.seconds - from).min(length).clamp(0.0, DAY_S * replay.speedup);
    let at = crate::core::time::Time::from_secs_f64;
    for (_, trace) in &mut case.groups {
        *trace = trace.window(at(from), at(from + seconds), replay.speedup).copies(replay.copies);
        if replay.speedup.to_bits() != 1.0_f64.to_bits() || replay.copies > 1 {
            // What was measured was measured of another load.
            trace.arrivals.iter_mut().for_each(|arrival| arrival.measured = None);
        }
    }
    case.groups.retain(|(_, trace)| !trace.arrivals.is_empty());
    // A little longer than the load, so that the last of it can be answered.
    case.seconds = (seconds / replay.speedup + 5.0).min(DAY_S);
    case.patience_s = replay.patience.0.as_secs_f64();
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::quantity::Length;
    use crate::core::time::Time;
    use std::fmt::Write as _;
    use std::path::PathBuf;
    use std::time::Duration;

    /// A file that goes when it is dropped.
    pub(in crate::cli) struct File(pub(in crate::cli) PathBuf);

    impl File {
        pub(in crate::cli) fn new(name: &str, text: &str) -> File {
            let path = std::env::temp_dir().join(format!("rayguard-incident-{}-{name}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            File(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Two minutes: actors now and then, and from the 60th second tasks at 20 a second for half a
    /// minute, on one server of 100 ms a task.
    pub(in crate::cli) fn trace() -> String {
        use crate::core::traffic_trace::{
            ClassHead, Encoder, Ending, Exchange, SignalHead, TraceHead, TraceLine,
        };
        let class = |name: &str| ClassHead {
            name: name.into(),
            module: "StateHead".into(),
            held: false,
            slo_ms: 2000.0,
            slo_quantile: 0.95,
        };
        let head = TraceHead {
            run: "r".into(),
            modules: vec!["StateHead".into()],
            classes: vec![class("state-heavy"), class("mine")],
            routes: vec!["GET /api/v0/tasks".into(), "GET /api/v0/actors".into(), "own-1".into()],
            signals: vec![SignalHead { name: "head_cpu".into(), unit: "%".into(), target: 90.0 }],
            ..TraceHead::default()
        };
        let mut lines: Vec<(f64, TraceLine)> = Vec::new();
        let mut free = 0.0_f64;
        let mut asks: Vec<(f64, u16)> = (0..60).map(|n| (2.0 * f64::from(n), 0)).collect();
        asks.extend((0..600).map(|n| (60.0 + 0.05 * f64::from(n), 0)));
        asks.extend((0..20).map(|n| (5.9 * f64::from(n) + 0.5, 1)));
        asks.push((3.3, 2));
        asks.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, route) in asks {
            let service = if route == 0 { 0.1 } else { 0.004 };
            let begins = free.max(at);
            let ends = begins + service;
            let shed = begins - at > 2.0;
            let latency = if shed { 0.0 } else { ends - at };
            if !shed {
                free = ends;
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's length")]
            let exchange = Exchange {
                class: u16::from(route == 2),
                route,
                address: if at > 60.0 { 2 } else { 1 },
                credential: None,
                ending: if shed {
                    Ending::Shed(crate::core::admission::meter::Reason::ClassInFlight)
                } else {
                    Ending::Served
                },
                would_shed: None,
                waited_us: 0,
                latency_us: (latency * 1e6) as u64,
                asked_bytes: 0,
                answered_bytes: 100,
            };
            lines.push((at + latency, TraceLine::Exchange(exchange)));
        }
        lines.extend((0..24).map(|n| (5.0 * f64::from(n), TraceLine::Signal(0, 20.0, 2_000_000))));
        lines.push((120.0, TraceLine::End("stopped".into())));
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut encoder, mut out) = (Encoder::default(), String::new());
        encoder.put(Time::ZERO, &TraceLine::Head(Box::new(head)), &mut out);
        for (at, line) in lines {
            encoder.put(Time::from_secs_f64(at), &line, &mut out);
        }
        out
    }

    fn answer(path: &Path, replay: Replay, config: Option<PathBuf>) -> Result<serde_json::Value, Error> {
        let incident = TraceArgs { trace: Some(path.to_owned()), config, replay };
        let args = Simulate { incident, format: Format::Json, ..Simulate::of(Vec::new()) };
        let mut out = Vec::new();
        run(&args, path, &mut out)?;
        Ok(serde_json::from_slice(&out).unwrap())
    }

    #[test]
    fn a_trace_is_laid_beside_its_replay() {
        let file = File::new("own.rec", &trace());
        let answer = answer(&file.0, Replay::default(), None).unwrap();
        assert_eq!(answer["runs"], serde_json::json!(["recorded", "with the defaults", "limits off"]));
        let row = |class: &str| {
            answer["rows"].as_array().unwrap().iter().find(|row| row["class"] == class).unwrap().clone()
        };
        let heavy = row("state-heavy");
        assert_eq!(heavy["fared"][0]["asked"], heavy["fared"][1]["asked"]);
        let off = heavy["fared"][2]["p99_ms"].as_f64().unwrap();
        assert!(off > 5000.0, "one server of 100 ms, asked twice what it can do: {off} ms");
        assert!(heavy["fared"][1]["shed"].as_u64().unwrap() > 100);
        let notes = answer["notes"].to_string();
        assert!(notes.contains("1 requests of own-1 (mine) are replayed as `tasks`"), "{notes}");
    }

    #[test]
    fn logs_of_others_are_replayed_where_they_belong() {
        let mut azure = String::from("TIMESTAMP,ContextTokens,GeneratedTokens\n");
        let mut philly = String::from("arrival_s,vc,gpus,job_type,total_steps\n");
        for n in 0..40 {
            let _ = writeln!(azure, "2023-11-16 18:17:{:02}.9799600,480,{}", n, 10 + n);
            let _ = writeln!(philly, "{},{},1,T,9", n * 3, n % 4);
        }
        let (azure, philly) = (File::new("azure.csv", &azure), File::new("philly.csv", &philly));
        let served = |answer: &serde_json::Value| answer["total"]["fared"][0]["served"].as_u64().unwrap();
        let serve = answer(&azure.0, Replay::default(), None).unwrap();
        assert_eq!((serve["runs"].as_array().unwrap().len(), served(&serve)), (2, 40));
        assert_eq!(serve["rows"][0]["class"], "completion");
        let jobs = answer(&philly.0, Replay { copies: 2, ..Replay::default() }, None).unwrap();
        assert_eq!(jobs["total"]["fared"][0]["asked"], 80);
        assert_eq!(jobs["rows"][0]["class"], "job-submit");
        let part = Replay { from: Length(Duration::from_mins(1)), speedup: 2.0, ..Replay::default() };
        let part = answer(&philly.0, part, None).unwrap();
        assert_eq!(
            (part["total"]["fared"][0]["asked"].as_u64(), part["seconds"].as_f64()),
            (Some(20), Some(34.0))
        );
    }

    #[test]
    fn what_cannot_be_replayed_is_said() {
        let file = File::new("bad.csv", "who,what\n1,2\n");
        let error = answer(&file.0, Replay::default(), None).unwrap_err().to_string();
        assert!(error.contains("unknown header"), "{error}");
        let file = File::new("cut.rec", &trace());
        let late = Replay { from: Length(Duration::from_hours(1)), ..Replay::default() };
        let error = answer(&file.0, late, None).unwrap_err().to_string();
        assert!(error.contains("no requests in this part"), "{error}");
        let config = File::new("bad.toml", "moed = 'shadow'\n");
        let error = answer(&file.0, Replay::default(), Some(config.0.clone())).unwrap_err().to_string();
        assert!(error.contains("moed"), "{error}");
    }
}
