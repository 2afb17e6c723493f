//! `rayguard replay`: does the adjustment log follow from its own inputs?
//!
//! Every adjustment holds the law and guardrails as they stood before, what they saw, and what they
//! came to. This steps each of them once more and compares to the last bit: the new limit, the
//! law's terms, the guardrail that held it back, and, where a module's need was divided, the
//! pressure that this class was to see. The first difference ends it, with both values: either
//! the adjustment log was changed, or the arithmetic was (another version, another machine).

use super::format::Format;
use super::log_source::{LogSource, Place, SourceError};
use crate::core::event::{Adjustment, Event, LoggedEvent, printable};
use crate::observe::adjustment_log::LogLine;
use std::io::{self, Write};
use std::path::PathBuf;

/// Verifies an adjustment log: computes every adjustment again and compares.
///
/// Exit codes: 0 all of it is verified, 1 a difference, or something is missing or unreadable.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Directory of an adjustment log, or one of its files.
    #[arg(value_name = "LOG", conflicts_with = "adjustment_log")]
    pub log: Option<PathBuf>,
    /// The adjustment log to read.
    #[command(flatten)]
    pub source: LogSource,
    /// Table or JSON.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Why an adjustment log was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The adjustment log cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An adjustment does not follow from its inputs.
    #[error("seq {seq} ({class}): {what} is {recorded} in the log, but computes to {derived}")]
    Differs {
        /// The adjustment log's number.
        seq: u64,
        /// The class or module.
        class: String,
        /// What differs.
        what: &'static str,
        /// As recorded.
        recorded: String,
        /// As derived.
        derived: String,
    },
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// What a replay came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct ReplaySummary {
    /// Adjustments derived again and found equal.
    pub derived: u64,
    /// Adjustments whose value was handed in: nothing to derive.
    pub given: u64,
    /// Other events.
    pub others: u64,
    /// Events lost, by the numbers that are missing.
    pub missing: u64,
    /// Lines that cannot be read.
    pub unreadable: u64,
}

/// Carries out the command.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ReplaySummary, ReplayError> {
    let place = args.log.clone().map_or_else(|| args.source.place(), |path| Ok(Place::Files(path)))?;
    let mut tally = ReplaySummary::default();
    let mut seq_last = None;
    for line in place.read(None)? {
        let LogLine::LoggedEvent(logged) = line.map_err(|problem| place.unreadable(problem))? else {
            tally.unreadable += 1;
            continue;
        };
        if let Some(last) = seq_last {
            tally.missing += logged.seq.saturating_sub(last + 1);
        }
        seq_last = Some(logged.seq);
        if let Err(differs) = tally.take(&logged) {
            tally.write(args.format, "a difference, and nothing after it was read", out)?;
            return Err(differs);
        }
    }
    let found = if tally.is_complete() {
        "no differences"
    } else {
        "no differences, but INCOMPLETE: what is missing or unreadable was not verified"
    };
    tally.write(args.format, found, out)?;
    Ok(tally)
}

impl ReplaySummary {
    /// Nothing is missing and every line could be read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.unreadable == 0
    }

    fn write(&self, format: Format, found: &str, out: &mut dyn Write) -> io::Result<()> {
        if format == Format::Json {
            return writeln!(out, "{}", serde_json::json!(self));
        }
        let count = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        writeln!(
            out,
            "{} verified, {found}; {} set by an operator or a reload and not computed; {}; {} missing; {}",
            count(self.derived, "adjustment"),
            self.given,
            count(self.others, "other event"),
            count(self.missing, "event"),
            count(self.unreadable, "unreadable line")
        )
    }

    fn take(&mut self, logged: &LoggedEvent) -> Result<(), ReplayError> {
        let Event::Adjustment(adjustment) = &logged.event else {
            self.others += 1;
            return Ok(());
        };
        if compare(logged.seq, adjustment)? {
            self.derived += 1;
        } else {
            self.given += 1;
        }
        Ok(())
    }
}

/// `false`: there is nothing to derive.
fn compare(seq: u64, adjustment: &Adjustment) -> Result<bool, ReplayError> {
    let Some(again) = adjustment.derive() else { return Ok(false) };
    let differs = |what, recorded: String, derived: String| {
        Err(ReplayError::Differs { seq, class: printable(&adjustment.class), what, recorded, derived })
    };
    if again.step.new.to_bits() != adjustment.new.to_bits() {
        return differs("the new limit", exact(adjustment.new), exact(again.step.new));
    }
    if again.step.terms != adjustment.terms {
        return differs(
            "the law's terms",
            format!("{:?}", adjustment.terms),
            format!("{:?}", again.step.terms),
        );
    }
    if again.step.guardrail != adjustment.guardrail {
        return differs(
            "the guardrail",
            format!("{:?}", adjustment.guardrail),
            format!("{:?}", again.step.guardrail),
        );
    }
    if let (Some(apportioned), Some(blame)) = (&adjustment.apportioned, again.blame) {
        if blame.pressure.to_bits() != apportioned.seen.to_bits() {
            return differs("the pressure apportioned", exact(apportioned.seen), exact(blame.pressure));
        }
        if blame.allotted.to_bits() != apportioned.allotted.to_bits() {
            return differs("the work allotted", exact(apportioned.allotted), exact(blame.allotted));
        }
    }
    Ok(true)
}

/// The shortest text that reads back as the same number, and its bits.
fn exact(value: f64) -> String {
    format!("{value:?} ({:#018x})", value.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::log::tests::{TestLog, adjusted, pinned, shed};
    use std::fs;

    fn sample(name: &str) -> TestLog {
        let mut adjustment_log = TestLog::new(name);
        for second in 0..50 {
            let pressure = 0.3 + (second % 7) as f64 / 3.0;
            adjustment_log
                .write(second, adjusted("state-heavy", 3.7 + second as f64 / 7.0, pressure, second));
        }
        adjustment_log.write(50, pinned("state-heavy", 9.0, 4.0));
        adjustment_log.write(51, shed("r-1", "state-heavy"));
        adjustment_log
    }

    fn args(adjustment_log: &TestLog, format: Format) -> Args {
        Args { log: Some(adjustment_log.dir.clone()), source: LogSource::default(), format }
    }

    fn replay(adjustment_log: &TestLog) -> Result<ReplaySummary, ReplayError> {
        run(&args(adjustment_log, Format::Table), &mut Vec::new())
    }

    #[test]
    fn a_log_follows_from_its_own_inputs() {
        let tally = replay(&sample("replay")).unwrap();
        assert_eq!(tally, ReplaySummary { derived: 50, given: 1, others: 1, missing: 0, unreadable: 0 });
    }

    #[test]
    fn the_least_change_of_a_number_is_found_and_both_values_are_told() {
        let adjustment_log = sample("replay-changed");
        let path = adjustment_log.dir.join("adjustments.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut logged: LoggedEvent = serde_json::from_str(&lines[9]).unwrap();
        let Event::Adjustment(adjustment) = &mut logged.event else { panic!() };
        let true_limit = adjustment.new;
        adjustment.new = f64::from_bits(true_limit.to_bits() + 1);
        lines[9] = serde_json::to_string(&logged).unwrap();
        fs::write(&path, lines.join("\n") + "\n").unwrap();

        let mut out = Vec::new();
        let error = run(&args(&adjustment_log, Format::Table), &mut out).unwrap_err();
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.starts_with("9 adjustments verified, a difference") || out.starts_with("8 adjustments"),
            "{out}"
        );
        let ReplayError::Differs { seq, recorded, derived, .. } = &error else { panic!("{error}") };
        assert_eq!(*seq, 10);
        assert_eq!(*derived, exact(true_limit));
        assert_ne!(recorded, derived);
    }

    #[test]
    fn what_is_missing_is_counted() {
        let adjustment_log = sample("replay-missing");
        let path = adjustment_log.dir.join("adjustments.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        let kept: Vec<&str> =
            text.lines().enumerate().filter(|(i, _)| !(5..8).contains(i)).map(|(_, line)| line).collect();
        fs::write(&path, kept.join("\n") + "\n{\"time\":\"torn").unwrap();
        let tally = replay(&adjustment_log).unwrap();
        assert_eq!((tally.derived, tally.missing, tally.unreadable), (47, 3, 1));
        assert!(!tally.is_complete(), "so that the command fails");
        let mut out = Vec::new();
        run(&args(&adjustment_log, Format::Table), &mut out).unwrap();
        let told = String::from_utf8(out).unwrap();
        assert!(
            told.contains("INCOMPLETE") && told.ends_with("3 events missing; 1 unreadable line\n"),
            "{told}"
        );
        let mut out = Vec::new();
        run(&args(&adjustment_log, Format::Json), &mut out).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&told["derived"], &told["missing"]), (&47.into(), &3.into()));
    }
}
