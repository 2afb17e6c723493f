//! The plan of a load: which streams of requests come when, from whom, and how patient
//! they are.
//!
//! A plan is a TOML file. A stream is open loop (`rate`: requests come when they come,
//! whether or not the answers do) or closed loop (`workers`: each asks, waits, thinks, asks
//! again). Only an open loop shows an overload as it is: a closed one slows down with the
//! server and hides the wait. What is refused: a target off the loopback (unless asked for),
//! and a plan without an end or without a bound on what is under way.

use serde::Deserialize;
use std::net::Ipv4Addr;
use std::path::Path;

/// Longest run, in seconds.
pub(crate) const DURATION_S_MAX: f64 = 3_600.0;
/// Highest arrival rate of one stream, per second.
pub const RATE_MAX: f64 = 20_000.0;
/// Most requests under way at once, all streams together.
pub const IN_FLIGHT_MAX: usize = 16_384;

/// A whole load.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// `http://127.0.0.1:8266`; the command line may name another.
    #[serde(default)]
    pub target: String,
    /// Equal seeds give equal arrivals.
    #[serde(default = "one")]
    pub seed: u64,
    /// Length of the run in seconds; what is under way then is still awaited.
    pub duration_s: f64,
    /// Requests under way at once, all streams together; what comes above is counted `unsent`.
    #[serde(default = "in_flight_default")]
    pub in_flight_max: usize,
    /// The streams.
    #[serde(rename = "stream")]
    pub streams: Vec<Stream>,
    /// Stretches of the run that the report sums up one by one; the whole run is always there.
    #[serde(default, rename = "window")]
    pub windows: Vec<Window>,
    /// For the program that drives the load (what to do to the server meanwhile, a title): not read here.
    #[serde(default)]
    pub notes: toml::Table,
}

/// Requests of one kind of client.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Its name in the report.
    pub name: String,
    /// Open loop: requests per second, constant or as points `[seconds, per second]`.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Whether the rate runs straight from point to point instead of stepping.
    #[serde(default)]
    pub ramp: bool,
    /// How arrivals are spaced.
    #[serde(default)]
    pub spacing: Spacing,
    /// Closed loop: how many ask at once.
    #[serde(default)]
    pub workers: Option<u32>,
    /// Closed loop: pause between an answer and the next request, in seconds.
    #[serde(default)]
    pub think_s: f64,
    /// First arrival at or after this second.
    #[serde(default)]
    pub from_s: f64,
    /// No arrival at or after this second; the run's end when absent.
    #[serde(default)]
    pub until_s: Option<f64>,
    /// How long the client waits for the whole answer of one attempt, in seconds.
    #[serde(default = "one_s")]
    pub timeout_s: f64,
    /// What the client does when an attempt fails.
    #[serde(default)]
    pub retry: Retry,
    /// Source addresses in use, counted up from `first_address`.
    #[serde(default = "one_u32")]
    pub addresses: u32,
    /// The first source address; must be on the loopback when the target is.
    #[serde(default)]
    pub first_address: Option<Ipv4Addr>,
    /// Bearer tokens in use: `token_prefix` and a number. 0: no credential.
    #[serde(default)]
    pub tokens: u32,
    /// Begins every token, so that two streams may share tokens or not.
    #[serde(default = "token_prefix_default")]
    pub token_prefix: String,
    /// Whether connections are kept for the identity's next request.
    #[serde(default)]
    pub connection: Connection,
    /// Sent with every request of the stream; `{n}` in a value as in the path.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// What is asked, by weight.
    #[serde(rename = "request")]
    pub requests: Vec<Shape>,
}

/// One kind of request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// `GET` when absent.
    #[serde(default = "get")]
    pub method: String,
    /// Path and query; `{n}` becomes the request's number in its stream.
    pub path: String,
    /// The body; `{n}` as in the path.
    #[serde(default)]
    pub body: String,
    /// Or a body of this many bytes.
    #[serde(default)]
    pub body_bytes: usize,
    /// Share of the stream.
    #[serde(default = "one_f64")]
    pub weight: f64,
    /// What an answer in time is worth, in milliseconds of the head's time.
    #[serde(default)]
    pub cost_ms: f64,
    /// Opens a WebSocket, or a stream that is read to its end: an answer's head counts as
    /// the answer, and the line is then held for this long.
    #[serde(default)]
    pub hold_s: f64,
    /// Asks for a WebSocket.
    #[serde(default)]
    pub websocket: bool,
}

/// A rate over time.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Rate {
    /// Requests per second all along.
    Constant(f64),
    /// `[[second, per second], ...]`, seconds counted from the start of the run.
    Points(Vec<[f64; 2]>),
}

/// How arrivals are spaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Independent arrivals: what many people make together.
    #[default]
    Poisson,
    /// One after the other at equal distances: what a loop with a timer makes.
    Even,
}

/// Whether connections are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Connection {
    /// Kept alive and used again by the same identity.
    #[default]
    Keep,
    /// A new one for each request, as Ray's own SDK does.
    New,
}

/// What a client does when an attempt fails (no answer in time, or not 2xx).
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Further attempts after the first.
    #[serde(default)]
    pub max: u32,
    /// Pause before the first of them, in seconds.
    #[serde(default)]
    pub delay_s: f64,
    /// Each further pause is this many times the one before; 0 or 1: all alike.
    #[serde(default)]
    pub backoff: f64,
    /// Whether a `Retry-After` in the answer replaces the pause.
    #[serde(default)]
    pub honour_retry_after: bool,
}

/// A stretch of the run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Its name in the report.
    pub name: String,
    /// Its first second.
    pub from_s: f64,
    /// Its end.
    pub until_s: f64,
}

/// Why a plan cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not a plan.
    #[error("{0}")]
    Unparsable(#[from] toml::de::Error),
    /// A value is out of its range.
    #[error("{what} is {value}; it must be {range}")]
    OutOfRange {
        /// Which value.
        what: String,
        /// As given.
        value: String,
        /// What is accepted.
        range: String,
    },
    /// The target is not on this machine.
    #[error(
        "{0} is not a loopback address; load aimed at another machine needs --allow-remote, and its owner's consent"
    )]
    Remote(String),
}

impl Plan {
    /// Reads and checks a plan; `target` replaces the plan's own.
    pub fn read(path: &Path, target: Option<&str>) -> Result<Plan, PlanError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PlanError::Unreadable { path: path.display().to_string(), source })?;
        let mut plan: Plan = toml::from_str(&text)?;
        if let Some(target) = target {
            target.clone_into(&mut plan.target);
        }
        plan.check()?;
        Ok(plan)
    }

    /// Every bound that keeps a load finite.
    pub fn check(&self) -> Result<(), PlanError> {
        within("duration_s", self.duration_s, 0.01, DURATION_S_MAX)?;
        #[expect(clippy::cast_precision_loss, reason = "bounded by IN_FLIGHT_MAX")]
        within("in_flight_max", self.in_flight_max as f64, 1.0, IN_FLIGHT_MAX as f64)?;
        if self.streams.is_empty() {
            return Err(out_of_range("stream", "absent", "at least one [[stream]]"));
        }
        self.streams.iter().try_for_each(Stream::check)
    }
}

impl Stream {
    /// The stream's end: its own, or the run's.
    pub fn until(&self, duration_s: f64) -> f64 {
        self.until_s.unwrap_or(duration_s).min(duration_s)
    }

    fn check(&self) -> Result<(), PlanError> {
        let at = |field: &str| format!("stream {}: {field}", self.name);
        match (&self.rate, self.workers) {
            (Some(rate), None) => {
                for [second, per_second] in rate.points() {
                    within(&at("rate"), second, 0.0, DURATION_S_MAX)?;
                    within(&at("rate"), per_second, 0.0, RATE_MAX)?;
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "bounded by IN_FLIGHT_MAX")]
            (None, Some(workers)) => within(&at("workers"), f64::from(workers), 1.0, IN_FLIGHT_MAX as f64)?,
            (Some(_), Some(_)) => {
                return Err(out_of_range(&at("rate and workers"), "both there", "one of them"));
            }
            (None, None) => return Err(out_of_range(&at("rate"), "absent", "there, or `workers` instead")),
        }
        within(&at("timeout_s"), self.timeout_s, 0.001, DURATION_S_MAX)?;
        within(&at("think_s"), self.think_s, 0.0, DURATION_S_MAX)?;
        within(&at("retry.max"), f64::from(self.retry.max), 0.0, 1_000.0)?;
        within(&at("addresses"), f64::from(self.addresses), 1.0, 65_536.0)?;
        if let Some(first) = self.first_address.filter(|address| !address.is_loopback()) {
            return Err(PlanError::Remote(first.to_string()));
        }
        let total: f64 = self.requests.iter().map(|shape| shape.weight).sum();
        within(&at("sum of request weights"), total, f64::MIN_POSITIVE, f64::MAX)?;
        self.requests.iter().try_for_each(|shape| within(&at("weight"), shape.weight, 0.0, f64::MAX))
    }
}

impl Rate {
    /// The rate as points in rising time.
    pub fn points(&self) -> Vec<[f64; 2]> {
        match self {
            Rate::Constant(per_second) => vec![[0.0, *per_second]],
            Rate::Points(points) => points.clone(),
        }
    }
}

fn within(what: &str, value: f64, least: f64, most: f64) -> Result<(), PlanError> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(out_of_range(what, &value.to_string(), &format!("from {least} to {most}")))
}

fn out_of_range(what: &str, value: &str, range: &str) -> PlanError {
    PlanError::OutOfRange { what: what.into(), value: value.into(), range: range.into() }
}

fn one() -> u64 {
    1
}
fn one_u32() -> u32 {
    1
}
fn one_f64() -> f64 {
    1.0
}
fn one_s() -> f64 {
    1.0
}
fn in_flight_default() -> usize {
    4_096
}
fn get() -> String {
    "GET".into()
}
fn token_prefix_default() -> String {
    "token-".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan, PlanError> {
        let plan: Plan = toml::from_str(text)?;
        plan.check()?;
        Ok(plan)
    }

    #[test]
    fn a_stream_needs_a_rate_or_workers_and_not_both() {
        let with = |line: &str| {
            parse(&format!(
                "duration_s = 1\n[[stream]]\nname = \"a\"\n{line}\nrequest = [{{ path = \"/\" }}]"
            ))
        };
        assert!(with("rate = 5").is_ok());
        assert!(with("workers = 5").is_ok());
        assert!(with("").unwrap_err().to_string().contains("absent"));
        assert!(with("rate = 5\nworkers = 5").unwrap_err().to_string().contains("both there"));
    }

    #[test]
    fn a_run_without_an_end_is_refused() {
        let text = "duration_s = inf\n[[stream]]\nname = \"a\"\nrate = 1\nrequest = [{ path = \"/\" }]";
        assert!(parse(text).unwrap_err().to_string().contains("duration_s is inf"));
    }

    #[test]
    fn a_source_address_off_the_loopback_is_refused() {
        let text = "duration_s = 1\n[[stream]]\nname = \"a\"\nrate = 1\nfirst_address = \"192.0.2.1\"\nrequest = [{ path = \"/\" }]";
        assert!(matches!(parse(text), Err(PlanError::Remote(_))));
    }
}
