//! What a load brought, in numbers: per stream, for the whole run, for each window of the
//! plan, and second by second for plots.
//!
//! An operation belongs to the second in which it was due. `in_time` is the share of all that
//! were due, so what was refused, dropped or never sent counts against it. `useful_ms` adds up
//! the worth of the answers that came in time by the second in which they came: divided by the
//! stretch's length it is the share of the head's time that did somebody good.

use super::client::Fate;
use super::plan::{DURATION_S_MAX, Plan, Stream, Window};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// One operation as it went.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The stream's place in the plan.
    pub stream: usize,
    /// The request's place in its stream.
    pub shape: usize,
    /// When it was due, in seconds from the start of the run.
    pub due_s: f64,
    /// From then until it was begun: how late the generator itself was.
    pub late_s: f64,
    /// From when it was due until its last attempt ended.
    pub latency_s: f64,
    /// How it ended.
    pub fate: Fate,
    /// Attempts made.
    pub attempts: u32,
    /// Bytes of the last answer's body.
    pub bytes: u64,
}

/// A line of the per-request log.
#[derive(Serialize)]
struct Record<'a> {
    stream: &'a str,
    path: &'a str,
    due_s: f64,
    latency_ms: f64,
    fate: String,
    attempts: u32,
    bytes: u64,
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where the load went.
    pub target: String,
    /// The plan's seed.
    pub seed: u64,
    /// How late the generator was, 99th percentile: above a few milliseconds, this machine was too busy to
    /// trust the figures.
    pub late_p99_ms: f64,
    /// How late the generator was at worst.
    pub late_max_ms: f64,
    /// `whole`, then the plan's windows.
    pub windows: Vec<Stretch>,
    /// By stream.
    pub seconds: BTreeMap<String, Seconds>,
}

/// One stretch of the run.
#[derive(Debug, Serialize)]
pub struct Stretch {
    /// Its name.
    pub name: String,
    /// Its first second.
    pub from_s: f64,
    /// Its end.
    pub until_s: f64,
    /// By stream.
    pub streams: BTreeMap<String, Figures>,
}

/// One stream in one stretch.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Operations that were due.
    pub due: u64,
    /// Of these, answered with success within the client's patience.
    pub in_time: u64,
    /// `in_time / due`; 1 when nothing was due.
    pub in_time_share: f64,
    /// Worth of the answers that came in time in this stretch, in milliseconds of the head.
    pub useful_ms: f64,
    /// Attempts, retries included.
    pub attempts: u64,
    /// Operations by how they ended.
    pub fates: BTreeMap<String, u64>,
    /// Median latency of what was answered in time, in milliseconds; absent without any.
    pub p50_ms: Option<f64>,
    /// 90th percentile.
    pub p90_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
}

/// One stream second by second.
#[derive(Debug, Default, Serialize)]
pub struct Seconds {
    /// Operations due.
    pub due: Vec<u64>,
    /// Answered in time.
    pub in_time: Vec<u64>,
    /// Refused with 429 or 503.
    pub shed: Vec<u64>,
    /// Unanswered, broken, or answered with anything else.
    pub failed: Vec<u64>,
    /// Median latency of what was answered in time, in milliseconds.
    pub p50_ms: Vec<Option<f64>>,
    /// 99th percentile.
    pub p99_ms: Vec<Option<f64>>,
}

impl Report {
    /// Sums up the samples of a plan.
    pub fn new(plan: &Plan, samples: &[Sample]) -> Report {
        let mut late = histogram();
        for sample in samples {
            late.saturating_record(micros(sample.late_s));
        }
        let whole = Window { name: "whole".into(), from_s: 0.0, until_s: plan.duration_s };
        let windows = std::iter::once(&whole).chain(&plan.windows);
        let by_stream = |index: usize| samples.iter().filter(move |sample| sample.stream == index);
        Report {
            target: plan.target.clone(),
            seed: plan.seed,
            late_p99_ms: millis(late.value_at_quantile(0.99)),
            late_max_ms: millis(late.max()),
            windows: windows
                .map(|window| Stretch {
                    name: window.name.clone(),
                    from_s: window.from_s,
                    until_s: window.until_s,
                    streams: named(plan, |index, stream| Figures::new(stream, window, by_stream(index))),
                })
                .collect(),
            seconds: named(plan, |index, _| Seconds::new(plan.duration_s, by_stream(index))),
        }
    }
}

impl Figures {
    fn new<'a>(stream: &Stream, window: &Window, samples: impl Iterator<Item = &'a Sample>) -> Figures {
        let inside = |at: f64| at >= window.from_s && at < window.until_s;
        let mut latencies = histogram();
        let mut fates = BTreeMap::new();
        let (mut due, mut attempts, mut useful_ms) = (0, 0, 0.0);
        for sample in samples {
            if sample.fate.is_success() && inside(sample.due_s + sample.latency_s) {
                useful_ms += stream.requests[sample.shape].cost_ms;
            }
            if !inside(sample.due_s) {
                continue;
            }
            due += 1;
            attempts += u64::from(sample.attempts);
            *fates.entry(sample.fate.to_string()).or_default() += 1;
            if sample.fate.is_success() {
                latencies.saturating_record(micros(sample.latency_s));
            }
        }
        let in_time = latencies.len();
        Figures {
            due,
            in_time,
            in_time_share: if due == 0 { 1.0 } else { in_time as f64 / due as f64 },
            useful_ms,
            attempts,
            fates,
            p50_ms: quantile(&latencies, 0.5),
            p90_ms: quantile(&latencies, 0.9),
            p99_ms: quantile(&latencies, 0.99),
            max_ms: quantile(&latencies, 1.0),
        }
    }
}

impl Seconds {
    fn new<'a>(duration_s: f64, samples: impl Iterator<Item = &'a Sample>) -> Seconds {
        let length = whole(duration_s.ceil());
        let zeros = || vec![0; length];
        let mut seconds =
            Seconds { due: zeros(), in_time: zeros(), shed: zeros(), failed: zeros(), ..Seconds::default() };
        let mut latencies: BTreeMap<usize, Histogram<u64>> = BTreeMap::new();
        for sample in samples {
            let at = whole(sample.due_s).min(length.saturating_sub(1));
            seconds.due[at] += 1;
            if sample.fate.is_success() {
                seconds.in_time[at] += 1;
                latencies.entry(at).or_insert_with(histogram).saturating_record(micros(sample.latency_s));
            } else if sample.fate.is_shed() {
                seconds.shed[at] += 1;
            } else {
                seconds.failed[at] += 1;
            }
        }
        let at_quantile =
            |q: f64| (0..length).map(|at| latencies.get(&at).and_then(|found| quantile(found, q))).collect();
        seconds.p50_ms = at_quantile(0.5);
        seconds.p99_ms = at_quantile(0.99);
        seconds
    }
}

/// Writes the samples one JSON object a line.
pub fn write_samples(
    plan: &Plan,
    samples: &[Sample],
    out: &mut impl std::io::Write,
) -> Result<(), serde_json::Error> {
    for sample in samples {
        let stream = &plan.streams[sample.stream];
        let record = Record {
            stream: &stream.name,
            path: &stream.requests[sample.shape].path,
            due_s: sample.due_s,
            latency_ms: sample.latency_s * 1e3,
            fate: sample.fate.to_string(),
            attempts: sample.attempts,
            bytes: sample.bytes,
        };
        serde_json::to_writer(&mut *out, &record)?;
        out.write_all(b"\n").map_err(serde_json::Error::io)?;
    }
    Ok(())
}

fn named<T>(plan: &Plan, figures: impl Fn(usize, &Stream) -> T) -> BTreeMap<String, T> {
    plan.streams
        .iter()
        .enumerate()
        .map(|(index, stream)| (stream.name.clone(), figures(index, stream)))
        .collect()
}

/// Microseconds to three digits, up to the longest run there is.
fn histogram() -> Histogram<u64> {
    // invariant: the bounds are constants within the histogram's own.
    #[expect(clippy::expect_used, reason = "constants that the histogram accepts")]
    Histogram::new_with_max(micros(2.0 * DURATION_S_MAX), 3).expect("an hour to 3 digits")
}

fn quantile(latencies: &Histogram<u64>, q: f64) -> Option<f64> {
    (!latencies.is_empty()).then(|| millis(latencies.value_at_quantile(q)))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
fn whole(seconds: f64) -> usize {
    seconds as usize
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        toml::from_str(
            "duration_s = 4\n[[window]]\nname = \"late\"\nfrom_s = 2\nuntil_s = 4\n\
             [[stream]]\nname = \"a\"\nrate = 1\nrequest = [{ path = \"/\", cost_ms = 5 }]",
        )
        .unwrap()
    }

    fn sample(due_s: f64, latency_s: f64, fate: Fate) -> Sample {
        Sample { stream: 0, shape: 0, due_s, late_s: 0.0, latency_s, fate, attempts: 1, bytes: 0 }
    }

    #[test]
    fn what_was_refused_or_never_sent_counts_against_the_share() {
        let fates = [Fate::Status(200), Fate::Status(429), Fate::Timeout, Fate::Unsent];
        let samples: Vec<Sample> = fates.iter().map(|&fate| sample(0.5, 0.1, fate)).collect();
        let report = Report::new(&plan(), &samples);
        let whole = &report.windows[0].streams["a"];
        assert_eq!((whole.due, whole.in_time), (4, 1));
        assert!((whole.in_time_share - 0.25).abs() < 1e-12);
        assert!((whole.p50_ms.unwrap() - 100.0).abs() < 0.1);
        assert_eq!(report.seconds["a"].shed[0], 1);
        assert_eq!(report.seconds["a"].failed[0], 2);
    }

    #[test]
    fn an_answer_is_worth_its_cost_in_the_stretch_where_it_came() {
        let samples = [sample(1.9, 0.2, Fate::Status(200)), sample(3.95, 0.1, Fate::Status(200))];
        let report = Report::new(&plan(), &samples);
        let late = &report.windows[1].streams["a"];
        assert!((late.useful_ms - 5.0).abs() < 1e-12, "came at 2.1: inside; at 4.05: after the end");
        assert_eq!(late.due, 1, "due at 1.9 belongs to the stretch before");
    }
}
