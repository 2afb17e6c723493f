//! Traces: who asked for what and when, as it really happened, to be replayed.
//!
//! Three sources: requests recorded on a real Ray head (`simulations/recorded/*.csv`), the job
//! submissions of the Philly cluster (15,264 jobs with tenants), and the requests of an LLM
//! completion service on Azure (8,819 with token counts). The last two are not part of this
//! package; their importers take the text of a file the user names. Times are counted from
//! the trace's own first entry, unless the trace counts from elsewhere itself.

use crate::core::time::Time;
use std::sync::Arc;

/// Arrivals in the order of time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Trace {
    /// The arrivals, earliest first.
    pub arrivals: Vec<Arrival>,
}

/// One request of a trace.
#[derive(Clone, PartialEq, Debug)]
pub struct Arrival {
    /// When.
    pub at: Time,
    /// The plant's name of what is asked.
    pub route: Arc<str>,
    /// Who asks, in the trace's own words; empty when it does not say.
    pub party: Arc<str>,
    /// Payload: megabytes, thousand tokens.
    pub size: f64,
    /// What really came of it, where it was recorded.
    pub measured: Option<Measured>,
}

/// What really came of a request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// HTTP status; 0 when the client gave up.
    pub status: u16,
    /// From sending to the end of the answer, or to giving up.
    pub latency_ms: f64,
}

/// Why a trace cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of the trace: {problem}; expected {expected}")]
pub struct TraceError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
    /// The columns it should have.
    pub expected: &'static str,
}

/// Reads a trace in any of the known formats, told apart by its header line.
///
/// # Errors
/// The header is not one of the known ones, or a line does not fit it.
pub fn read(text: &str) -> Result<Trace, TraceError> {
    let header = text.lines().next().unwrap_or_default();
    match header.split(',').next() {
        Some("at_s") => rows(text, "at_s,route,status,latency_ms", recorded),
        Some("arrival_s") => rows(text, "arrival_s,vc,gpus,job_type,total_steps", philly),
        Some("TIMESTAMP") => azure(text),
        _ => Err(TraceError {
            line: 1,
            problem: format!("unknown header \"{}\"", header.chars().take(60).collect::<String>()),
            expected: "at_s,route,... or arrival_s,vc,... or TIMESTAMP,ContextTokens,...",
        }),
    }
}

type Parsed = Result<Arrival, String>;

fn rows(text: &str, expected: &'static str, parse: impl Fn(&[&str]) -> Parsed) -> Result<Trace, TraceError> {
    let mut arrivals = Vec::new();
    for (index, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty()) {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        match parse(&fields) {
            Ok(arrival) => arrivals.push(arrival),
            Err(problem) => return Err(TraceError { line: index + 1, problem, expected }),
        }
    }
    // Stable: requests of one moment stay in the order they were written down.
    arrivals.sort_by_key(|arrival| arrival.at);
    Ok(Trace { arrivals })
}

fn number(fields: &[&str], at: usize) -> Result<f64, String> {
    let text = fields.get(at).ok_or_else(|| format!("only {} columns", fields.len()))?;
    let value: f64 = text.parse().map_err(|_| format!("\"{text}\" is not a number"))?;
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(format!("{value} is not a time or amount"))
    }
}

fn recorded(fields: &[&str]) -> Parsed {
    let status = number(fields, 2)?;
    Ok(Arrival {
        at: Time::from_secs_f64(number(fields, 0)?),
        route: Arc::from(*fields.get(1).ok_or("no route")?),
        party: Arc::from(""),
        size: 0.0,
        measured: Some(Measured { status: status_of(status), latency_ms: number(fields, 3)? }),
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn status_of(value: f64) -> u16 {
    value as u16
}

fn philly(fields: &[&str]) -> Parsed {
    Ok(Arrival {
        at: Time::from_secs_f64(number(fields, 0)?),
        route: Arc::from("job-submit"),
        party: Arc::from(*fields.get(1).ok_or("no virtual cluster")?),
        size: 0.0,
        measured: None,
    })
}

fn azure(text: &str) -> Result<Trace, TraceError> {
    const EXPECTED: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
    let first = text.lines().nth(1).and_then(|line| day_seconds(line.split(',').next()?));
    let first = first.unwrap_or(0.0);
    rows(text, EXPECTED, |fields| {
        let stamp = fields.first().copied().unwrap_or_default();
        let seconds = day_seconds(stamp).ok_or_else(|| format!("\"{stamp}\" is not a time stamp"))?;
        Ok(Arrival {
            at: Time::from_secs_f64(seconds - first),
            route: Arc::from("completion"),
            party: Arc::from(""),
            // A generated token costs about twenty read ones: reading is one batched pass.
            size: (number(fields, 1)? / 20.0 + number(fields, 2)?) / 1000.0,
            measured: None,
        })
    })
}

/// Seconds since the first of the month of `YYYY-MM-DD HH:MM:SS.fffffff`; the traces are
/// shorter than a month.
fn day_seconds(stamp: &str) -> Option<f64> {
    let (date, time) = stamp.split_once(' ')?;
    let day: f64 = date.rsplit('-').next()?.parse().ok()?;
    let mut parts = time.split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(((day * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds)
}

impl Trace {
    /// The part from `from` to `to`, its times counted from `from`, run `speedup` times as fast.
    #[must_use]
    pub fn window(&self, from: Time, to: Time, speedup: f64) -> Trace {
        let arrivals = self
            .arrivals
            .iter()
            .filter(|arrival| (from..to).contains(&arrival.at))
            .map(|arrival| Arrival {
                at: Time::from_secs_f64(arrival.at.since(from).as_secs_f64() / speedup),
                ..arrival.clone()
            })
            .collect();
        Trace { arrivals }
    }

    /// The most arrivals in any `seconds` (the window slides).
    #[must_use]
    pub fn peak(&self, seconds: f64) -> usize {
        let mut from = 0;
        let mut peak = 0;
        for (at, arrival) in self.arrivals.iter().enumerate() {
            while arrival.at.since(self.arrivals[from].at).as_secs_f64() >= seconds {
                from += 1;
            }
            peak = peak.max(at - from + 1);
        }
        peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_formats_are_told_apart_by_their_header() {
        let own =
            read("at_s,route,status,latency_ms\n2.0,version,200,1.5\n1.0,tasks,0,30000\n").expect("fits");
        assert_eq!(&*own.arrivals[0].route, "tasks", "sorted by time");
        assert_eq!(own.arrivals[1].measured, Some(Measured { status: 200, latency_ms: 1.5 }));
        let philly = read("arrival_s,vc,gpus,job_type,total_steps\n0,0e4a51,1,T (batch size 128),95121\n");
        assert_eq!(&*philly.expect("fits").arrivals[0].party, "0e4a51");
        let azure = read(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n\
             2023-11-16 18:18:04.0319600,3180,8\n",
        )
        .expect("fits");
        assert!((azure.arrivals[1].at.as_secs_f64() - 60.052).abs() < 1e-6);
    }

    #[test]
    fn a_bad_line_is_named_with_what_was_expected() {
        let error =
            read("at_s,route,status,latency_ms\n1,version,200,2\nsoon,version,200,2\n").expect_err("bad");
        assert_eq!(
            error.to_string(),
            "line 3 of the trace: \"soon\" is not a number; expected at_s,route,status,latency_ms"
        );
        assert!(read("a,b\n").is_err());
        assert!(read("at_s,route,status,latency_ms\nNaN,version,200,2\n").is_err());
    }

    #[test]
    fn a_window_starts_at_zero_and_runs_faster() {
        let text = "arrival_s,vc,gpus\n10,a,1\n20,b,1\n30,c,1\n";
        let cut = read(text).expect("fits").window(Time::from_secs_f64(15.0), Time::from_secs_f64(40.0), 5.0);
        let at: Vec<f64> = cut.arrivals.iter().map(|a| a.at.as_secs_f64()).collect();
        assert_eq!(at, [1.0, 3.0]);
        assert_eq!(read(text).expect("fits").peak(10.5), 2);
    }
}
