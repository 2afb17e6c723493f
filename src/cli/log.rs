//! `rayguard log`: what happened, from the adjustment log.
//!
//! Lines that cannot be read are shown as such, never passed over in silence. Everything that goes
//! to a terminal is made printable first: a submission id cannot move the cursor.

use crate::cli::class_name::ClassName;
use crate::cli::format::Format;
use crate::cli::log_source::{LogSource, SourceError};
use crate::config::problem::suggest;
use crate::core::event::{Event, LoggedEvent, printable};
use crate::core::request::catalogue;
use crate::core::time::WallMs;
use crate::observe::adjustment_log::LogLine;
use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Write};
use std::time::Duration;

/// How often `--follow` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(300);

/// Shows what happened, from the adjustment log.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The adjustment log to read.
    #[command(flatten)]
    pub source: LogSource,
    /// Only events after this: a duration (`1h`, `30m`) or a UTC time
    /// (`2026-01-31T23:00:00Z`).
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only events of this class, module or signal.
    #[arg(long, value_name = "NAME", value_parser = ClassName, hide_possible_values = true)]
    pub class: Option<String>,
    /// Only events of this kind; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(Event::NAMES))]
    pub event: Vec<String>,
    /// Print each shed request, not only summaries.
    #[arg(long)]
    pub sheds: bool,
    /// At most this many events, the newest.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// Output format: sentences, or the JSON of the adjustment log.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Keep printing new events.
    #[arg(long, short)]
    pub follow: bool,
}

/// Why the adjustment log could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The adjustment log cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A time that is none.
    #[error(
        "invalid time {text:?}: expected a duration such as 1h30m, or a UTC time such as 2026-01-31T23:00:00Z"
    )]
    Time {
        /// As given.
        text: String,
    },
    /// A name that nothing has.
    #[error("no class, module or signal is called `{name}`; {nearest}")]
    Unknown {
        /// As given.
        name: String,
        /// What may have been meant.
        nearest: String,
    },
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Carries out the command; `now` is the wall clock.
pub fn run(args: &Args, now: WallMs, out: &mut dyn Write) -> Result<(), LogError> {
    let since = args.since.as_deref().map(|text| parse_time(text, now)).transpose()?;
    let place = args.source.place()?;
    // Before reading, so that nothing is missed in between; what is seen twice is dropped.
    let mut follow = args.follow.then(|| place.follow());
    let mut newest = VecDeque::new();
    let (mut subjects, mut summed_up) = (BTreeSet::new(), 0_u64);
    for line in place.read(since)? {
        let line = line.map_err(|problem| place.unreadable(problem))?;
        if let (Some(_), LogLine::LoggedEvent(logged)) = (&args.class, &line) {
            subjects.extend(logged.event.subject().map(str::to_owned));
        }
        if !args.wants(&line, since) {
            continue;
        }
        if args.sums_up(&line) {
            summed_up += 1;
            continue;
        }
        if newest.len() >= args.limit {
            newest.pop_front();
        }
        if args.limit > 0 {
            newest.push_back(line);
        }
    }
    if let Some(name) = &args.class {
        known(name, &subjects)?;
    }
    let (mut shown, mut last) = (0, now);
    for line in newest {
        if let LogLine::LoggedEvent(logged) = &line {
            (shown, last) = (shown.max(logged.seq), logged.time);
        }
        show(&line, args.format, out)?;
    }
    if summed_up > 0 && args.format == Format::Table {
        let lines = if summed_up == 1 { "line of a" } else { "lines of" };
        let requests = if summed_up == 1 { "request is" } else { "requests are" };
        writeln!(out, "{summed_up} {lines} single shed {requests} not shown; --sheds shows them")?;
    }
    out.flush()?;
    let Some(follow) = &mut follow else { return Ok(()) };
    loop {
        for line in follow.poll(last, &place)? {
            let again = matches!(&line, LogLine::LoggedEvent(logged) if logged.seq <= shown);
            if let (false, LogLine::LoggedEvent(logged)) = (again, &line) {
                (shown, last) = (logged.seq, logged.time);
            }
            if !again && args.wants(&line, None) && !args.sums_up(&line) {
                show(&line, args.format, out)?;
            }
        }
        out.flush()?;
        std::thread::sleep(FOLLOW_EVERY);
    }
}

impl Args {
    fn wants(&self, line: &LogLine, since: Option<WallMs>) -> bool {
        let LogLine::LoggedEvent(logged) = line else {
            // A torn line may have been anything.
            return self.class.is_none() && self.event.is_empty();
        };
        since.is_none_or(|since| logged.time >= since)
            && self.class.as_deref().is_none_or(|class| logged.event.subject() == Some(class))
            && (self.event.is_empty() || self.event.iter().any(|kind| kind == logged.event.name()))
    }

    /// A summary of the same seconds has it too.
    fn sums_up(&self, line: &LogLine) -> bool {
        let single = matches!(line, LogLine::LoggedEvent(logged) if matches!(logged.event, Event::Shed(_)));
        single && !self.sheds && self.event.is_empty() && self.format == Format::Table
    }
}

/// A name that nothing has, in the log or built in, is a slip.
pub(crate) fn known(name: &str, subjects: &BTreeSet<String>) -> Result<(), LogError> {
    let built_in = catalogue::CLASSES.iter().map(|class| class.name);
    let built_in = built_in.chain(catalogue::MODULES.iter().map(|module| module.name));
    let built_in = built_in.chain(crate::core::signal::catalogue::SIGNALS.iter().map(|signal| signal.name));
    let all: BTreeSet<&str> = built_in.chain(subjects.iter().map(String::as_str)).collect();
    if all.contains(name) {
        return Ok(());
    }
    let nearest = suggest(name, all).unwrap_or_default();
    Err(LogError::Unknown { name: printable(name), nearest: printable(&nearest) })
}

/// A length of time before `now`, or a time.
pub(crate) fn parse_time(text: &str, now: WallMs) -> Result<WallMs, LogError> {
    if let Ok(length) = humantime::parse_duration(text) {
        let ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        return Ok(WallMs(now.0.saturating_sub(ms)));
    }
    WallMs::parse_rfc3339(text).ok_or_else(|| LogError::Time { text: text.to_owned() })
}

fn show(line: &LogLine, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match (line, format) {
        (LogLine::LoggedEvent(logged), Format::Table) => writeln!(out, "{}", row(logged)),
        (LogLine::LoggedEvent(logged), Format::Json) => {
            serde_json::to_writer(&mut *out, logged)?;
            out.write_all(b"\n")
        }
        (LogLine::Unreadable { file, number, bytes, problem }, Format::Table) => {
            let file = printable(&file.to_string_lossy());
            let problem = printable(problem);
            writeln!(out, "{file} line {number} ({bytes} bytes) cannot be read: {problem}")
        }
        (LogLine::Unreadable { file, number, bytes, problem }, Format::Json) => {
            let unreadable = serde_json::json!({
                "unreadable": { "file": file, "line": number, "bytes": bytes, "problem": problem }
            });
            writeln!(out, "{unreadable}")
        }
    }
}

/// `2026-01-31T23:00:00.123Z      42  adjustment     cut ...`
#[must_use]
pub(crate) fn row(logged: &LoggedEvent) -> String {
    let sentence = printable(&logged.event.sentence());
    format!("{}  {:>7}  {:<13}  {sentence}", logged.time.rfc3339(), logged.seq, logged.event.name())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::core::admission::meter::Reason;
    use crate::core::control::law::{Observation, Terms};
    use crate::core::control::regulator::{Move, Regulator};
    use crate::core::event::{
        Adjustment, Cause, Derivation, Event, LimitKind, LoopKind, Mode, Shed, SignalSeen,
    };
    use crate::core::policy::{Bounds, Control, Law};
    use crate::core::time::Time;
    use crate::observe::adjustment_log::{Entry, Options, Writer};
    use std::fs;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    pub(crate) const START_MS: u64 = 1_700_000_000_000;

    /// An adjustment log of this test's own, removed at its end.
    pub(crate) struct TestLog {
        pub(crate) dir: PathBuf,
        pub(crate) writer: Writer,
    }

    impl TestLog {
        pub(crate) fn new(name: &str) -> TestLog {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let dir =
                std::env::temp_dir().join(format!("rayguard-cli-{name}-{}-{number}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            let options = Options { dir: dir.clone(), file_bytes_max: 1 << 20, files_max: 4 };
            let (writer, problem) = Writer::open(options);
            assert!(problem.is_none());
            TestLog { dir, writer }
        }

        pub(crate) fn write(&mut self, second: u64, event: Event) {
            let time = WallMs(START_MS + second * 1_000);
            self.writer.write(Entry { time, at: Time(second * 1_000_000_000), event });
        }
    }

    impl Drop for TestLog {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// A cut, or growth, of a class on the default law.
    pub(crate) fn adjustment(class: &str, limit: f64, pressure: f64, second: u64) -> Adjustment {
        let control = Control { inner_period: Duration::from_millis(500), slew: 2.0, ..Control::SHIPPED };
        let bounds = Bounds { initial: 4.0, min: 1.0, max: 64.0 };
        let mut regulator = Regulator::new(&Law::Pid { kp: 0.0, ki: None, kd: 0.0 }, bounds, &control);
        let before = Box::new(regulator);
        let observation = Observation {
            now: Time(second * 1_000_000_000),
            period: Duration::from_secs(5),
            dead_time: Duration::from_secs(10),
            pressure: Some(pressure),
            binding: true,
            demand: 100.0,
            latency: None,
            slo_pressure: None,
            spread: None,
            sample: None,
            ended: None,
            not_below: None,
            used: None,
            backlog: None,
            noise: 0.0,
        };
        let step = regulator.step(limit, &observation);
        let cause = Cause {
            class: class.into(),
            limit: LimitKind::InFlight,
            r#loop: LoopKind::Inner,
            mode: Mode::Enforce,
            policy_version: 1,
            signals: vec![SignalSeen {
                name: "proxy_latency".into(),
                value: pressure * 5.0,
                target: 5.0,
                pressure,
                forecast: None,
                age_ms: 100,
                source: "proxy".into(),
                unit: "s".into(),
            }],
            apportioned: None,
            derivation: Derivation::Law { before, observation },
            decided_by: None,
            other: None,
        };
        Adjustment::new(cause, &step)
    }

    pub(crate) fn adjusted(class: &str, limit: f64, pressure: f64, second: u64) -> Event {
        Event::Adjustment(Box::new(adjustment(class, limit, pressure, second)))
    }

    pub(crate) fn pinned(class: &str, old: f64, new: f64) -> Event {
        let cause = Cause {
            class: class.into(),
            limit: LimitKind::InFlight,
            r#loop: LoopKind::Outer,
            mode: Mode::Manual,
            policy_version: 1,
            signals: Vec::new(),
            apportioned: None,
            derivation: Derivation::Given { why: "pinned by ops: load test".into() },
            decided_by: None,
            other: None,
        };
        let step = Move { old, new, terms: Terms::NoInformation, guardrail: None };
        Event::Adjustment(Box::new(Adjustment::new(cause, &step)))
    }

    pub(crate) fn shed(request: &str, class: &str) -> Event {
        Event::Shed(Shed {
            request: request.into(),
            class: class.into(),
            module: "StateHead".into(),
            cause: Reason::ClassInFlight,
            shadow: false,
            client: "8f1c".into(),
            retry_after_s: 4,
            table: 17,
            in_flight_limit: 2.0,
            in_flight: 2,
            rate_limit: None,
            work_s: None,
            work_limit_s: None,
            waited_ms: 1500,
            via: crate::core::event::Via::Proxy,
        })
    }

    pub(crate) fn source(adjustment_log: &TestLog) -> LogSource {
        LogSource { adjustment_log: Some(adjustment_log.dir.clone()), ..LogSource::default() }
    }

    fn args(adjustment_log: &TestLog) -> Args {
        Args {
            source: source(adjustment_log),
            since: None,
            class: None,
            event: Vec::new(),
            sheds: true,
            limit: 100,
            format: Format::Table,
            follow: false,
        }
    }

    fn output(args: &Args) -> String {
        let mut out = Vec::new();
        run(args, WallMs(START_MS + 3_600_000), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn sample() -> TestLog {
        let mut adjustment_log = TestLog::new("log");
        adjustment_log.write(0, adjusted("state-heavy", 4.0, 1.5, 0));
        adjustment_log.write(1_800, adjusted("job-list", 8.0, 0.5, 1_800));
        adjustment_log.write(3_000, shed("r-1", "state-heavy"));
        adjustment_log
    }

    #[test]
    fn a_table_is_when_what_and_why() {
        let adjustment_log = sample();
        let text = output(&args(&adjustment_log));
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            "2023-11-14T22:13:20.000Z        1  adjustment     cut state-heavy in_flight from 4 to 3.61: \
             proxy latency 7.5 s is 1.5x its target 5 s; limit reached"
        );
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn since_class_event_and_limit_narrow_it_down() {
        let adjustment_log = sample();
        let count = |change: &dyn Fn(&mut Args)| {
            let mut args = args(&adjustment_log);
            change(&mut args);
            output(&args).lines().count()
        };
        assert_eq!(count(&|args| args.since = Some("45m".into())), 2);
        assert_eq!(count(&|args| args.since = Some("2023-11-14T23:00:00Z".into())), 1);
        assert_eq!(count(&|args| args.class = Some("state-heavy".into())), 2);
        assert_eq!(count(&|args| args.event = vec!["shed".into()]), 1);
        assert_eq!(count(&|args| args.limit = 1), 1);
        assert_eq!(count(&|args| args.limit = 0), 0);
    }

    #[test]
    fn single_sheds_are_left_to_their_summaries_and_counted() {
        let adjustment_log = sample();
        let text = output(&Args { sheds: false, ..args(&adjustment_log) });
        assert!(!text.contains("r-1"), "{text}");
        assert!(
            text.ends_with("1 line of a single shed request is not shown; --sheds shows them\n"),
            "{text}"
        );
    }

    #[test]
    fn a_class_that_does_not_exist_is_refused_with_the_nearest_name() {
        let adjustment_log = sample();
        let wrong = Args { class: Some("job-lst".into()), ..args(&adjustment_log) };
        let error = run(&wrong, WallMs(START_MS), &mut Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no class, module or signal is called `job-lst`; did you mean `job-list`?"
        );
        let quiet = Args { class: Some("job-submit".into()), ..args(&adjustment_log) };
        assert!(
            run(&quiet, WallMs(START_MS), &mut Vec::new()).is_ok(),
            "it exists, and nothing happened to it"
        );
    }

    #[test]
    fn json_is_the_logs_own() {
        let mut args = args(&sample());
        let adjustment_log = sample();
        args.source = source(&adjustment_log);
        args.format = Format::Json;
        let file = fs::read_to_string(adjustment_log.dir.join("adjustments.jsonl")).unwrap();
        assert_eq!(output(&args), file);
    }

    #[test]
    fn a_name_from_outside_cannot_control_the_terminal() {
        let mut adjustment_log = TestLog::new("injection");
        adjustment_log
            .write(0, shed("r\u{1b}[2J\n2023-11-14T22:13:20.000Z 9 stop all is well", "state-heavy"));
        let text = output(&args(&adjustment_log));
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_time_that_is_none_and_a_log_that_is_not_there_are_said() {
        let adjustment_log = sample();
        let mut args = args(&adjustment_log);
        args.since = Some("yesterday".into());
        let error = run(&args, WallMs(0), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("invalid time \"yesterday\""), "{error}");
        args.since = None;
        args.source.adjustment_log = Some(adjustment_log.dir.join("nowhere"));
        let error = run(&args, WallMs(0), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("name it with --adjustment-log"), "{error}");
    }
}
