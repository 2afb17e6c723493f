//! `rayguard simulate`: put questions to the production loop on a modelled head.
//!
//! Reads scenarios (files, or every `*.toml` of a folder and of those in it), runs each with its control, and says
//! which expectations hold. The project's own are built in: where there is no such file or folder, a name
//! (`ray-state-flood`) or a path under `simulations` means one of them. Exit code 0 when all do, 1 when one does not or a scenario cannot
//! be read. The seed is printed with each answer: a run can be had again to the last byte.

use crate::cli::format::Format;
use crate::cli::incident;
use crate::cli::progress::Bar;
use crate::cli::simulate_args::at;
pub use crate::cli::simulate_args::{Args, Error};
use crate::lab::ablation;
use crate::lab::calibration;
use crate::lab::model_fit;
use crate::lab::monte_carlo::{PassRate, monte_carlo};
use crate::lab::page;
use crate::lab::report::{self, Answer};
use crate::sim::scenario::Scenario;
use crate::sim::trace;
use crate::sim::world::{Onlooker, Traces};
use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The scenarios that come with rayguard.
static BUILT_IN: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/simulations");

/// Runs the command; the exit code is 0 when every scenario holds and 1 when one does not.
///
/// # Errors
/// As [`simulate`].
pub fn run(args: &Args, out: &mut dyn Write) -> Result<u8, Error> {
    simulate(args, out).map(|held| u8::from(!held))
}

/// Answers every scenario; says whether all hold.
///
/// # Errors
/// A scenario or trace cannot be read, or a report not written.
pub fn simulate(args: &Args, out: &mut dyn Write) -> Result<bool, Error> {
    if let Some(trace) = &args.incident.trace {
        return incident::run(args, trace, out).map(|()| true);
    }
    if let Some(folder) = &args.calibration {
        return calibrate(args, folder, out);
    }
    let files = files(&args.scenarios)?;
    if files.len() > 1 {
        // Beside the answers and not among them; not to say it stops nothing.
        let _ = writeln!(
            std::io::stderr(),
            "{} scenarios, each with a control run; name one to run it alone",
            files.len()
        );
    }
    if args.ablate {
        return ablated(args, &files, out);
    }
    let mut answers = Vec::new();
    let mut machine = Vec::new();
    let mut compared = Vec::new();
    let mut claims_hold = true;
    for path in &files {
        let scenario = read(path)?;
        let Some(traces) = traces(args, path, &scenario)? else {
            left_out(args, path, out)?;
            continue;
        };
        let seed = args.seed.unwrap_or(scenario.seed);
        let wrong = |error| Error::Scenario { path: path.clone(), error };
        let name = name(path);
        let answer = answer(args, &name, path, &scenario, seed, &traces)?;
        let bar = Bar::new(&name, args.runs);
        let rate = (args.runs > 0)
            .then(|| monte_carlo(&scenario, seed, args.runs, &traces, &|done| bar.show(done)).map_err(wrong))
            .transpose()?;
        bar.clear();
        claims_hold &= !rate.as_ref().is_some_and(PassRate::misses_its_claim);
        let baselines = if args.baselines {
            report::compare(&scenario, seed, &traces).map_err(wrong)?
        } else {
            Vec::new()
        };
        match args.format {
            Format::Json => {
                machine.push(
                    serde_json::to_value(report::json(&answer, rate.as_ref(), &baselines))
                        .unwrap_or_default(),
                );
            }
            Format::Table => {
                write!(out, "{}", report::table(&answer))?;
                if let Some(rate) = &rate {
                    write!(out, "{}", rate.describe())?;
                }
            }
        }
        answers.push(answer);
        if args.baselines {
            compared.push((name, baselines));
        }
    }
    if args.baselines && args.format == Format::Table {
        write!(out, "{}", report::comparison_table(&compared))?;
    }
    Ok(finish(args, &answers, &machine, out)? && claims_hold)
}

fn name(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// Every scenario without parts of the loop; says whether all hold with all of it.
fn ablated(args: &Args, files: &[PathBuf], out: &mut dyn Write) -> Result<bool, Error> {
    let mut rows = Vec::new();
    for path in files {
        let scenario = read(path)?;
        let Some(traces) = traces(args, path, &scenario)? else {
            left_out(args, path, out)?;
            continue;
        };
        let seed = args.seed.unwrap_or(scenario.seed);
        let row = ablation::ablate(&name(path), &scenario, seed, &traces);
        rows.push(row.map_err(|error| Error::Scenario { path: path.clone(), error })?);
    }
    match args.format {
        Format::Table => write!(out, "{}", ablation::table(&rows))?,
        Format::Json => writeln!(out, "{}", serde_json::to_value(&rows).unwrap_or_default())?,
    }
    Ok(rows.iter().all(|row| row.broken[0].is_none()))
}

/// A scenario's answer, its adjustment log written and its progress shown as it goes.
fn answer(
    args: &Args,
    name: &str,
    path: &Path,
    scenario: &Scenario,
    seed: u64,
    traces: &Traces,
) -> Result<Answer, Error> {
    let mut adjustment_log =
        args.adjustment_log.as_deref().map(|folder| AdjustmentLogFile::create(folder, name)).transpose()?;
    let (bar, done) = (Bar::new(name, seconds(scenario, args.draw)), Cell::new(0));
    let step = || {
        done.set(done.get() + 1);
        bar.show(done.get());
    };
    let kept = adjustment_log.as_mut().map(|file| file as &mut dyn fmt::Write);
    let onlooker = Onlooker { adjustment_log: kept, step: Some(&step) };
    let answer = match args.draw {
        Some(draw) => report::draw(name, scenario, seed, draw, traces, onlooker),
        None => report::answer(name, scenario, seed, traces, onlooker),
    };
    bar.clear();
    let answer = answer.map_err(|error| Error::Scenario { path: path.to_owned(), error })?;
    adjustment_log.map(AdjustmentLogFile::close).transpose()?;
    Ok(answer)
}

fn finish(
    args: &Args,
    answers: &[Answer],
    machine: &[serde_json::Value],
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let held = answers.iter().filter(|answer| answer.passed()).count();
    match args.format {
        Format::Json => writeln!(out, "{}", serde_json::Value::Array(machine.to_vec()))?,
        Format::Table => writeln!(out, "{}\n{held} of {} scenarios hold", report::LEGEND, answers.len())?,
    }
    if let Some(file) = &args.html {
        std::fs::write(file, page::html(answers)).map_err(at(file))?;
    }
    Ok(held == answers.len())
}

fn calibrate(args: &Args, folder: &Path, out: &mut dyn Write) -> Result<bool, Error> {
    let mut like = true;
    let mut machine = Vec::new();
    for case in calibration::cases() {
        let trace = read_trace(&folder.join(format!("{}.csv", case.name)))?;
        // Signals were recorded for two of the overloads.
        let signals = std::fs::read_to_string(folder.join(format!("{}_signals.csv", case.name))).ok();
        let seed = args.seed.unwrap_or(1);
        let replay = calibration::replay(&case, &trace, seed);
        let all = model_fit::judge(&case, &trace, signals.as_deref(), &replay);
        like &= all.iter().all(|one| one.met);
        match args.format {
            Format::Table => writeln!(out, "{}", model_fit::report(&case, &all))?,
            Format::Json => {
                machine
                    .push(serde_json::json!({ "case": case.name, "fitted": case.fitted, "compared": all }));
            }
        }
    }
    match args.format {
        Format::Table => write!(out, "{}", model_fit::fitted())?,
        Format::Json => writeln!(out, "{}", serde_json::Value::Array(machine))?,
    }
    Ok(like)
}

/// Seconds of virtual time that an answer takes: a draw has no control run.
fn seconds(scenario: &Scenario, draw: Option<u64>) -> u64 {
    let runs = if draw.is_some() { 1.0 } else { 2.0 };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most two days")]
    let seconds = (runs * scenario.seconds) as u64;
    seconds
}

/// A run's adjustment log on its way into a file.
#[derive(Debug)]
struct AdjustmentLogFile {
    path: PathBuf,
    file: BufWriter<File>,
    /// Why no more could be written.
    failed: Option<std::io::Error>,
}

impl AdjustmentLogFile {
    fn create(folder: &Path, name: &str) -> Result<AdjustmentLogFile, Error> {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        let path = folder.join(format!("{name}.jsonl"));
        let file = BufWriter::new(File::create(&path).map_err(at(&path))?);
        Ok(AdjustmentLogFile { path, file, failed: None })
    }

    /// All of it is in the file, or why not.
    fn close(mut self) -> Result<(), Error> {
        let flushed = self.file.flush();
        self.failed.map_or(flushed, Err).map_err(at(&self.path))
    }
}

impl fmt::Write for AdjustmentLogFile {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.failed.is_none() {
            self.failed = self.file.write_all(text.as_bytes()).err();
        }
        if self.failed.is_some() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// The files named, folders opened, in the order of their names.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in named {
        if path.is_dir() {
            let inside = inside(path)?;
            if inside.is_empty() {
                return Err(Error::Empty(path.clone()));
            }
            files.extend(inside);
        } else if path.exists() {
            files.push(path.clone());
        } else {
            files.extend(built_in(path)?);
        }
    }
    Ok(files)
}

/// Where the built-in scenarios seem to be.
const LIBRARY: &str = "simulations";

/// The built-in scenarios at a path under `simulations`, or the one of this name.
fn built_in(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let all: Vec<PathBuf> = built_in_scenarios(&BUILT_IN);
    let found: Vec<PathBuf> = match path.strip_prefix(LIBRARY) {
        Ok(rest) => all.iter().filter(|file| file.starts_with(rest)).cloned().collect(),
        Err(_) => all
            .iter()
            .filter(|file| file.with_extension("") == path || file.file_stem() == Some(path.as_os_str()))
            .cloned()
            .collect(),
    };
    if found.is_empty() {
        let names: Vec<String> = all.iter().map(|file| name(file)).collect();
        let given = path.to_string_lossy();
        let nearest =
            crate::config::problem::suggest(&given, names.iter().map(String::as_str)).unwrap_or_default();
        return Err(Error::Unknown { path: path.to_owned(), nearest });
    }
    Ok(found.iter().map(|file| Path::new(LIBRARY).join(file)).collect())
}

/// In the order of [`inside`].
fn built_in_scenarios(folder: &include_dir::Dir<'_>) -> Vec<PathBuf> {
    let is_scenario =
        |file: &&include_dir::File<'_>| file.path().extension().is_some_and(|end| end == "toml");
    let mut files: Vec<PathBuf> =
        folder.files().filter(is_scenario).map(|file| file.path().to_owned()).collect();
    files.sort();
    let mut folders: Vec<&include_dir::Dir<'_>> = folder.dirs().collect();
    folders.sort_by_key(|folder| folder.path());
    files.into_iter().chain(folders.into_iter().flat_map(built_in_scenarios)).collect()
}

/// A file on disk, or else a built-in one.
fn bytes(path: &Path) -> Result<std::borrow::Cow<'static, [u8]>, Error> {
    match (std::fs::read(path), built_in_file(path)) {
        (Ok(bytes), _) => Ok(bytes.into()),
        (Err(_), Some(file)) => Ok(file.contents().into()),
        (Err(error), None) => Err(at(path)(error)),
    }
}

fn built_in_file(path: &Path) -> Option<&'static include_dir::File<'static>> {
    BUILT_IN.get_file(path.strip_prefix(LIBRARY).ok()?)
}

/// The scenarios of a folder, then those of the folders in it.
fn inside(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(folder).map_err(at(folder))?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| Ok(entry.map_err(at(folder))?.path())).collect::<Result<_, Error>>()?;
    entries.sort();
    let (folders, mut files): (Vec<PathBuf>, Vec<PathBuf>) =
        entries.into_iter().partition(|entry| entry.is_dir());
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    for folder in folders {
        files.extend(inside(&folder)?);
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Scenario, Error> {
    let text = bytes(path)?;
    Scenario::read(&String::from_utf8_lossy(&text))
        .map_err(|error| Error::Scenario { path: path.to_owned(), error })
}

fn read_trace(path: &Path) -> Result<trace::Trace, Error> {
    let text = bytes(path)?;
    trace::read(&String::from_utf8_lossy(&text))
        .map_err(|error| Error::Trace { path: path.to_owned(), error })
}

/// The traces a scenario names: in its own folder, or in that of `--traces`. `None`: one that is in
/// neither, which is no part of the project.
fn traces(args: &Args, scenario_path: &Path, scenario: &Scenario) -> Result<Option<Traces>, Error> {
    let folder = scenario_path.parent().unwrap_or(Path::new("."));
    let mut traces = Traces::new();
    for client in scenario.client.iter().filter(|client| !client.trace.is_empty()) {
        if traces.contains_key(&client.trace) {
            continue;
        }
        let own = folder.join(&client.trace);
        let named = args.traces.as_ref().map(|folder| folder.join(&client.trace));
        let Some(path) = [Some(own), named]
            .into_iter()
            .flatten()
            .find(|path| path.exists() || built_in_file(path).is_some())
        else {
            return Ok(None);
        };
        traces.insert(client.trace.clone(), Arc::new(read_trace(&path)?));
    }
    Ok(Some(traces))
}

fn left_out(args: &Args, path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    if args.format == Format::Table {
        writeln!(out, "---- {}: not run, its trace was not found; set its folder with --traces", name(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("simulations")
    }

    fn args(scenarios: Vec<PathBuf>, format: Format) -> Args {
        Args { format, ..Args::of(scenarios) }
    }

    #[test]
    fn the_shipped_scenarios_can_all_be_run() {
        let files = files(&[library()]).expect("a folder of scenarios");
        assert!(files.len() >= 20, "{} scenarios", files.len());
        for file in files {
            let scenario = read(&file).unwrap_or_else(|error| panic!("{error}"));
            let args = args(Vec::new(), Format::Table);
            traces(&args, &file, &scenario).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn without_the_repository_the_scenarios_are_the_same_and_found_by_name() {
        let here: Vec<PathBuf> = files(&[library()]).expect("a folder of scenarios");
        let relative = |file: &PathBuf| file.strip_prefix(library()).expect("in it").to_owned();
        assert_eq!(built_in_scenarios(&BUILT_IN), here.iter().map(relative).collect::<Vec<_>>());
        let one = built_in(Path::new("ray-recorded-state-flood")).expect("its name");
        let [path] = &one[..] else { panic!("{one:?}") };
        let scenario = read(path).unwrap_or_else(|error| panic!("{error}"));
        let args = args(Vec::new(), Format::Table);
        assert!(
            traces(&args, path, &scenario).expect("it can be read").is_some(),
            "its trace is built in too"
        );
        let error = built_in(Path::new("ray-recorded-state-flod")).expect_err("a slip");
        assert!(error.to_string().ends_with("did you mean `ray-recorded-state-flood`?"), "{error}");
        assert!(built_in(Path::new("simulations/busy")).expect("a folder").len() > 5);
    }

    #[test]
    fn a_scenario_whose_trace_is_not_here_is_left_out_and_run_when_its_folder_is_named() {
        let folder = std::env::temp_dir().join(format!("rayguard-traces-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("it is ours");
        let mut lines = String::from("TIMESTAMP,ContextTokens,GeneratedTokens\n");
        for second in 0..59 {
            lines += &["2023-11-16 18:00:", &format!("{second:02}"), ".0000000,100,20\n"].concat();
        }
        std::fs::write(folder.join("tokens.csv"), lines).expect("it is ours");
        let scenario = folder.join("scenario");
        std::fs::create_dir_all(&scenario).expect("it is ours");
        let text = r#"
            question = "?"
            seconds = 60
            plant = { kind = "serve", replicas = 1, ongoing = 4, base_ms = 5, per_size_ms = 25000 }
            control = { guard = { fixed = 1 } }
            expect = { "all.served" = [0.9, 1], "all.demands" = [50, 60], "all.p50_ms" = [0, 800] }
            [[client]]
            name = "all"
            kind = "trace"
            trace = "tokens.csv"
        "#;
        std::fs::write(scenario.join("one.toml"), text).expect("it is ours");
        let mut args = args(vec![scenario], Format::Table);
        let mut out = Vec::new();
        assert!(simulate(&args, &mut out).expect("nothing to run"));
        assert!(String::from_utf8_lossy(&out).contains("0 of 0"), "{}", String::from_utf8_lossy(&out));
        args.traces = Some(folder.clone());
        out.clear();
        simulate(&args, &mut out).expect("it runs");
        let told = String::from_utf8_lossy(&out);
        assert!(told.contains("+ all.demands") && told.contains("+ all.served"), "{told}");
        std::fs::remove_dir_all(&folder).expect("it is ours");
    }

    /// The quick ones of the library; all of them take `rayguard simulate` in a release build.
    #[test]
    fn scenarios_hold_and_their_controls_fail() {
        let quick = [
            "servers-1.2x",
            "servers-2x",
            "servers-0.6x",
            "servers-dip",
            "loop-heavy",
            "ray-state-flood",
            "ray-job-burst",
            "ray-fifty-tabs",
            "fault-metrics-lying",
            "fault-proxy-restart",
        ];
        let named = quick.iter().map(|name| library().join(format!("{name}.toml"))).collect();
        let mut out = Vec::new();
        let held = simulate(&args(named, Format::Table), &mut out).expect("they can be run");
        assert!(held, "{}", String::from_utf8_lossy(&out));
    }

    #[test]
    fn machines_are_told_the_same() {
        let mut out = Vec::new();
        let file = vec![library().join("loop-heavy.toml")];
        simulate(&args(file, Format::Json), &mut out).expect("it can be run");
        let answers: serde_json::Value = serde_json::from_slice(&out).expect("json");
        assert_eq!(answers[0]["passed"], true);
        assert_eq!(answers[0]["control_fails"], true);
        assert!(answers[0]["verdicts"]["goodput"].as_f64().is_some_and(|goodput| goodput > 0.9));
    }

    #[test]
    fn an_adjustment_log_is_written_during_the_run_and_is_the_same_twice() {
        let folder = std::env::temp_dir().join(format!("rayguard-adjustment-log-{}", std::process::id()));
        let adjustment_log = |part: &str| {
            let folder = folder.join(part);
            let args = Args {
                adjustment_log: Some(folder.clone()),
                ..args(vec![library().join("loop-heavy.toml")], Format::Table)
            };
            simulate(&args, &mut Vec::new()).expect("it can be run");
            std::fs::read_to_string(folder.join("loop-heavy.jsonl")).expect("an adjustment log")
        };
        let (one, again) = (adjustment_log("one"), adjustment_log("again"));
        assert_eq!(one, again);
        let seconds = one.lines().filter(|line| line.contains("\"event\":\"second\"")).count();
        let length = read(&library().join("loop-heavy.toml")).expect("it is shipped").seconds;
        assert!((seconds as f64 - length).abs() < 1.0, "{seconds} of {length}");
        let in_the_way = Args {
            adjustment_log: Some(folder.join("one/loop-heavy.jsonl")),
            ..args(vec![library().join("loop-heavy.toml")], Format::Table)
        };
        let error = simulate(&in_the_way, &mut Vec::new()).expect_err("a file is no folder");
        assert!(error.to_string().contains("loop-heavy.jsonl"), "{error}");
        std::fs::remove_dir_all(&folder).expect("it is ours");
    }

    #[test]
    fn a_folder_without_scenarios_is_named() {
        let folder = library().join("recorded");
        let error = simulate(&args(vec![folder], Format::Table), &mut Vec::new()).expect_err("none there");
        assert!(error.to_string().contains("no *.toml"), "{error}");
    }
}
