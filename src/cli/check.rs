//! `rayguard check`: is this configuration sound, and would its loops hold still?
//!
//! Everything that is wrong with the file comes out at once, each with its line, a caret and
//! a remedy. A file that is sound is put to the arithmetic of `core::control::stability`. One line
//! for each class says how far it is from instability and how soon it reacts; `--stability` shows
//! every loop of it: how late it is, how much gain it uses and would bear, how long it takes to
//! settle. A margin below 2 is refused, here as at `rayguard run`.

use crate::cli::config_file::ConfigFile;
use crate::cli::format::Format;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::json;

use crate::config::margins::ClassLoop;
use crate::config::quantity::Length;
use crate::config::settings::Admin;
use crate::config::{self, Overrides, Problems, Settings};
use crate::core::control::stability::Assessment;
use crate::core::event::LoopKind;
use crate::core::policy::{Signal, SignalId, SignalSource, Treatment};

/// Validate a configuration file, and say how stable its loops are.
///
/// Exit codes: 0 sound, 1 refused, 2 the file cannot be read.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Configuration file.
    #[command(flatten)]
    pub config: ConfigFile,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Show every control loop with its dead time, gain and margins.
    #[arg(long)]
    pub stability: bool,
    /// Print the complete configuration with all defaults and explanations, and check nothing.
    #[arg(long, conflicts_with_all = ["config", "file"])]
    pub defaults: bool,
}

/// Why nothing could be said.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The answer cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Carries out the command; the number is the exit code.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<u8, CheckError> {
    if args.defaults {
        out.write_all(config::write::defaults().as_bytes())?;
        return Ok(0);
    }
    let overrides = Overrides::default();
    let settings = match args.config.path() {
        Some(path) => config::load(path, &overrides),
        None => Settings::defaults(&overrides).map_err(config::Error::Wrong),
    };
    match (settings, args.format) {
        (Ok(settings), Format::Table) => table(&settings, args, out)?,
        (Ok(settings), Format::Json) => json(&settings, out)?,
        (Err(config::Error::Wrong(problems)), Format::Table) => {
            writeln!(out, "{}", problems.render(io::stdout().is_terminal()))?;
            return Ok(1);
        }
        (Err(config::Error::Wrong(problems)), Format::Json) => {
            writeln!(out, "{:#}", json!({ "sound": false, "problems": listed(&problems) }))?;
            return Ok(1);
        }
        (Err(error), Format::Table) => {
            writeln!(out, "{error}")?;
            return Ok(2);
        }
        (Err(error), Format::Json) => {
            writeln!(out, "{:#}", json!({ "sound": false, "error": error.to_string() }))?;
            return Ok(2);
        }
    }
    Ok(0)
}

fn listed(problems: &Problems) -> Vec<serde_json::Value> {
    let one = |problem: &config::Problem| {
        let (line, column) = problems.position(problem).unzip();
        json!({
            "file": problems.file(), "line": line, "column": column, "key": problem.key,
            "message": problem.message, "remedy": problem.remedy,
        })
    };
    problems.list().iter().map(one).collect()
}

fn json(settings: &Settings, out: &mut dyn Write) -> io::Result<()> {
    let loops: Vec<_> = assessed(settings)
        .map(|(each, of)| {
            json!({
                "class": class_name(settings, &each),
                "limit": each.limit.label(),
                "by": by(&each),
                "dead_time_s": of.dead_time.as_secs_f64(),
                "step_s": of.step.as_secs_f64(),
                "gain": of.gain,
                "gain_critical": of.gain_critical,
                "gain_margin": of.gain_margin,
                "phase_margin_deg": of.phase_margin_deg,
                "settling_s": of.settling.map(|settling| settling.as_secs_f64()),
            })
        })
        .collect();
    let answer =
        json!({ "sound": true, "version": &*settings.version, "notes": notes(settings), "loops": loops });
    writeln!(out, "{answer:#}")
}

fn table(settings: &Settings, args: &Args, out: &mut dyn Write) -> io::Result<()> {
    let file =
        args.config.path().map_or_else(|| "the defaults".to_owned(), |path| path.display().to_string());
    writeln!(out, "{file}: valid (version {})\n", settings.version)?;
    for listener in &settings.listeners {
        writeln!(out, "  {} -> {} ({:?})", listener.address, listener.upstream.url(), listener.surface)?;
    }
    if let Some(service) = &settings.ratelimit_service {
        writeln!(
            out,
            "  {} rate-limit service, domain \"{}\" ({:?})",
            service.listen, service.domain, service.surface
        )?;
    }
    if let Some(admin) = &settings.admin {
        writeln!(out, "  {} admin", admin.listen)?;
    }
    writeln!(out)?;
    if args.stability {
        stability(settings, out)?;
    } else {
        summary(settings, out)?;
    }
    for note in notes(settings) {
        writeln!(out, "\nnote: {note}")?;
    }
    Ok(())
}

/// One line for each class whose limits move.
fn summary(settings: &Settings, out: &mut dyn Write) -> io::Result<()> {
    let all: Vec<(ClassLoop, Assessment)> = assessed(settings).collect();
    for (class, spec) in settings.policy.classes.iter().enumerate() {
        let own = || all.iter().filter(|(each, _)| each.class.index() == class);
        let Some(margin) = own().map(|(_, of)| of.gain_margin).reduce(f64::min) else { continue };
        // The step that hides a change and the dead time until the next shows it.
        let reacts = |inner: bool| {
            let loops = own().filter(|(each, _)| (each.by == LoopKind::Inner) == inner);
            loops.map(|(_, of)| of.step + of.dead_time).max().map(rounded)
        };
        let by = [("latency", reacts(true)), ("Ray's metrics", reacts(false))];
        let by = by.into_iter().filter_map(|(what, within)| Some(format!("to {what} within {}", within?)));
        let by = by.collect::<Vec<_>>().join(", ");
        writeln!(out, "  {:<18} stable, {margin:.1}x margin; reacts {by}", spec.name)?;
    }
    Ok(())
}

fn stability(settings: &Settings, out: &mut dyn Write) -> io::Result<()> {
    row(
        out,
        [
            "class",
            "limit",
            "by",
            "step",
            "dead time",
            "gain",
            "critical",
            "gain margin",
            "phase margin",
            "settles in",
        ],
    )?;
    for (each, of) in assessed(settings) {
        row(
            out,
            [
                class_name(settings, &each),
                each.limit.label(),
                by(&each),
                &rounded(of.step),
                &rounded(of.dead_time),
                &figure(of.gain),
                &figure(of.gain_critical),
                &format!("{:.1}", of.gain_margin),
                &format!("{:.0} deg", of.phase_margin_deg),
                &of.settling.map_or_else(|| "never".to_owned(), rounded),
            ],
        )?;
    }
    Ok(())
}

fn row<T: Display>(out: &mut dyn Write, cells: [T; 10]) -> io::Result<()> {
    let [class, limit, by, numbers @ ..] = cells;
    write!(out, "  {class:<18} {limit:<9} {by:<8}")?;
    for number in numbers {
        write!(out, " {number:>12}")?;
    }
    writeln!(out)
}

fn assessed(settings: &Settings) -> impl Iterator<Item = (ClassLoop, Assessment)> {
    settings.loops().into_iter().filter_map(|each| each.assess().map(|of| (each, of)))
}

fn class_name<'a>(settings: &'a Settings, each: &ClassLoop) -> &'a str {
    &settings.policy.classes[each.class.index()].name
}

/// What the loop follows.
fn by(each: &ClassLoop) -> &'static str {
    match each.by {
        LoopKind::Inner => "latency",
        LoopKind::Outer => "signals",
        LoopKind::Backlog => "backlog",
    }
}

/// Two digits of a length are all that a linear estimate is worth.
fn rounded(length: Duration) -> String {
    let seconds = length.as_secs_f64();
    if seconds >= 10.0 {
        Length(Duration::from_secs(length.as_secs())).to_string()
    } else {
        format!("{seconds:.1}s")
    }
}

fn figure(value: f64) -> String {
    if value < 0.01 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

/// What is sound and still worth a word.
fn notes(settings: &Settings) -> Vec<String> {
    let mut notes = Vec::new();
    let (metrics, control) = (&settings.metrics, &settings.policy.control);
    if metrics.targets.is_empty()
        && metrics.prometheus.is_none()
        && metrics.discovery_file.is_none()
        && !metrics.discover
    {
        notes.push(
            "no source of Ray's metrics is configured; limits follow only proxy latency and the \
                probe"
                .to_owned(),
        );
    }
    if control.outer_period < metrics.interval {
        notes.push(format!(
            "the outer period of {} is shorter than the scrape interval of {}: the loop still steps once \
                per fresh sample",
            Length(control.outer_period),
            Length(metrics.interval)
        ));
    }
    notes.extend(slow_scrapes(settings));
    notes.extend(scarce(settings));
    notes.extend(settings.admin.as_ref().and_then(Admin::exposure));
    if settings.alerts.notify.is_empty() {
        notes.push("no alert receiver configured: alerts appear only in the log and in /metrics".to_owned());
    }
    notes
}

/// Signals that come too seldom to be followed: their loops see nothing, or lose it with one scrape.
fn slow_scrapes(settings: &Settings) -> Vec<String> {
    let policy = &settings.policy;
    let interval = settings.metrics.interval;
    let followed = |id: SignalId| {
        policy.classes.iter().any(|class| class.signals.contains(&id) || class.backlog == Some(id))
    };
    let signals = policy.signals.iter().zip((0..=u8::MAX).map(SignalId)).filter(|(_, id)| followed(*id));
    let mut notes: Vec<String> = signals
        .filter_map(|(signal, id)| {
            if let Some(note) = asks_prometheus(signal) {
                return Some(note);
            }
            let (news, stale) = (settings.refresh(id), signal.stale_after);
            let trouble = if stale <= news {
                "it is always stale, and no limit that uses it ever rises"
            } else if stale < 2 * news {
                "one lost scrape makes it stale, and limits that use it do not rise until the next"
            } else {
                return None;
            };
            Some(format!(
                "`{}` gets a new value every {} and is stale after {}: {trouble}. Scrape more often, or set \
                 signal.{}.stale_after to {} or more",
                signal.name,
                Length(news),
                Length(stale),
                signal.name,
                Length(3 * news),
            ))
        })
        .collect();
    if interval > SCRAPE_MAX {
        notes.push(format!(
            "Ray's metrics are scraped every {}: limits react that much later, and a lost reading leaves \
                a longer gap. Ray updates its metrics every 5 to 10 s; set metrics.interval to {} or less",
            Length(interval),
            Length(SCRAPE_MAX)
        ));
    }
    notes
}

/// A signal that is asked of a Prometheus has news when that scrapes Ray, which only its own configuration says.
fn asks_prometheus(signal: &Signal) -> Option<String> {
    let asks = matches!(signal.sources.first(), Some(SignalSource::PromQl(_)));
    (asks && signal.stale_after < 2 * PROMETHEUS_SCRAPES).then(|| {
        format!(
            "`{}` is read from Prometheus and is stale after {}: that tolerates one lost scrape where its \
                `scrape_interval` is {} or less. For longer intervals set signal.{}.stale_after to three \
                times the interval; margins are counted with a third of it",
            signal.name,
            Length(signal.stale_after),
            Length(signal.stale_after / 2),
            signal.name,
        )
    })
}

/// How often a Prometheus scrapes by default.
const PROMETHEUS_SCRAPES: Duration = Duration::from_secs(60);

/// Scraping less often than this loses news of Ray's.
const SCRAPE_MAX: Duration = Duration::from_secs(10);

/// Limits that may fall below one permit for each replica: the one case in which replicas that have
/// lost their store may together exceed a limit.
fn scarce(settings: &Settings) -> Option<String> {
    let replicas = settings.replicas.as_ref()?.count;
    let least = |name: &str, min: f64| (min < f64::from(replicas)).then(|| format!("{name} ({min})"));
    let policy = &settings.policy;
    let classes = policy.classes.iter().filter(|class| class.treatment == Treatment::Limited);
    let classes = classes.filter_map(|class| least(&class.name, class.in_flight.min));
    let modules = policy.modules.iter().filter_map(|module| least(&module.name, module.in_flight.min));
    let scarce: Vec<String> = classes.chain(modules).collect();
    (!scarce.is_empty()).then(|| {
        format!(
            "`in_flight.min` is less than the {replicas} replicas in {}: a replica that cannot reach the \
                store still has one permit, so together they may exceed such a limit while it is that \
                low; raise it to {replicas}, or accept this",
            scarce.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str, format: Format) -> (u8, String) {
        let dir = std::env::temp_dir().join(format!("rayguard-check-{}-{:p}", std::process::id(), &text));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("rayguard.toml");
        std::fs::write(&path, text).unwrap();
        let mut out = Vec::new();
        let args = Args { config: Some(path).into(), format, defaults: false, stability: false };
        let code = run(&args, &mut out).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    /// Few loops, so that the arithmetic stays short.
    const STILL: &str = "[control]\nlaw = { kind = 'static' }\n\
        [class.job-submit]\nlaw = { kind = 'pid' }\n[class.serve]\nlaw = { kind = 'static' }\n";

    #[test]
    fn a_sound_file_is_answered_with_its_loops_and_code_0() {
        let (code, out) = checked(STILL, Format::Table);
        assert_eq!(code, 0, "{out}");
        for part in [
            ": valid (version ",
            "127.0.0.1:8266 -> http://127.0.0.1:8265",
            "job-submit",
            "stable, ",
            "x margin",
            "note:",
        ] {
            assert!(out.contains(part), "{part} is missing from\n{out}");
        }
        assert!(!out.contains("job-list"), "a loop that stands still has no margin:\n{out}");
    }

    #[test]
    fn a_scrape_interval_that_blinds_a_loop_or_loses_a_signal_is_named() {
        let scraped = |seconds: u32| {
            let (_, out) = checked(&format!("{STILL}[metrics]\ninterval = '{seconds}s'\n"), Format::Table);
            out
        };
        assert!(!scraped(5).contains("scrape"), "{}", scraped(5));
        for seconds in [30, 60] {
            let out = scraped(seconds);
            assert!(
                out.contains(&format!("scraped every {}", Length(Duration::from_secs(seconds.into())))),
                "{out}"
            );
        }
    }

    #[test]
    fn an_admin_listener_that_others_reach_is_named_with_what_they_see() {
        let noted = |admin: &str| checked(&format!("{STILL}[admin]\n{admin}\n"), Format::Table).1;
        for calm in [
            "listen = '127.0.0.1:9465'",
            "listen = '[::1]:9465'",
            "listen = 'unix:/run/rayguard.sock'",
            "listen = 'off'",
        ] {
            assert!(!noted(calm).contains("everyone who reaches"), "{calm}");
        }
        assert!(noted("listen = '0.0.0.0:9465'").contains("changes are accepted from this machine only"));
        assert!(noted("listen = '0.0.0.0:9465'\ntoken = { env = 'T' }").contains("changes need the token"));
    }

    #[test]
    fn limits_with_fewer_permits_than_replicas_are_named() {
        let replicas = "[replicas]\nurl = 'redis://cache'\ncount = 3\n";
        let (code, out) = checked(&format!("{STILL}[class.views]\nin_flight = 3\n{replicas}"), Format::Table);
        assert_eq!(code, 0);
        let note = out.lines().find(|line| line.contains("the 3 replicas in")).unwrap();
        assert!(note.contains("job-submit (2)") && !note.contains("views ("), "{note}");
        let (_, out) = checked(STILL, Format::Table);
        assert!(!out.contains("replicas"), "one proxy has no such trouble:\n{out}");
    }

    #[test]
    fn json_says_the_same_for_programs() {
        let (code, out) = checked(STILL, Format::Json);
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &answer["sound"]), (0, &json!(true)));
        let loops = answer["loops"].as_array().unwrap();
        // Latency at evidence and after five seconds; signals; the backlog.
        let by: Vec<&str> = loops.iter().filter_map(|each| each["by"].as_str()).collect();
        assert_eq!(by, ["latency", "latency", "signals", "backlog"], "{out}");
        assert!(loops.iter().all(|each| each["gain_margin"].as_f64().unwrap() >= 2.0), "{out}");
    }

    #[test]
    fn a_wrong_file_is_answered_with_every_problem_and_code_1() {
        let (code, out) = checked("mood = 1\n[class.views]\npriority = 77\n", Format::Table);
        assert_eq!(code, 1);
        assert!(out.contains("2 problems in") && out.contains("rayguard.toml:3:12"), "{out}");
        let (code, out) = checked("mood = 1\n", Format::Json);
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &answer["problems"][0]["line"]), (1, &json!(1)));
        assert_eq!(answer["problems"][0]["remedy"], "did you mean `mode`?");
    }

    #[test]
    fn a_file_that_is_not_there_is_code_2() {
        let mut out = Vec::new();
        let args = Args {
            config: Some("/nowhere/rayguard.toml".into()).into(),
            format: Format::Table,
            defaults: false,
            stability: false,
        };
        assert_eq!(run(&args, &mut out).unwrap(), 2);
        assert!(String::from_utf8(out).unwrap().contains("/nowhere/rayguard.toml"));
    }

    #[test]
    fn the_complete_file_can_be_printed() {
        let mut out = Vec::new();
        let args = Args { config: None.into(), format: Format::Table, defaults: true, stability: false };
        assert_eq!(run(&args, &mut out).unwrap(), 0);
        assert_eq!(String::from_utf8(out).unwrap(), config::write::defaults());
    }
}
