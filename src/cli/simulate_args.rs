//! What `rayguard simulate` is asked, and why there is no answer.

use super::format::Format;
use crate::config::quantity::Length;
use crate::sim::scenario::ScenarioError;
use crate::sim::trace::TraceError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Run scenarios against a simulated Ray head.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Scenario files, folders of them, or names of built-in scenarios.
    #[arg(default_value = "simulations")]
    pub scenarios: Vec<PathBuf>,
    /// Seed for all scenarios, instead of each one's own.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Write a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the adjustment log of each run to this folder, as JSON Lines.
    #[arg(long, value_name = "FOLDER")]
    pub adjustment_log: Option<PathBuf>,
    /// Draw the head's parameters at random and repeat each scenario N times; print the pass rate with its
    /// 95 % interval and the number of the worst draw. Exits with 1 where a scenario claims to be robust (`[robust]`) and
    /// these draws do not show it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub runs: u64,
    /// Run each scenario once with the parameters of this draw of `--runs`.
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["runs", "baselines"])]
    pub draw: Option<u64>,
    /// Compare rayguard with other limiters, in one table over all scenarios.
    #[arg(long)]
    pub baselines: bool,
    /// Run each scenario with parts of the control loop removed, in one table over all scenarios.
    #[arg(long, conflicts_with_all = ["runs", "draw", "baselines"])]
    pub ablate: bool,
    /// Folder of the traces that scenarios use and that are not beside them.
    #[arg(long, value_name = "FOLDER")]
    pub traces: Option<PathBuf>,
    /// Compare the model with traffic traces of a real head, instead of running scenarios, and
    /// print the differences.
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "simulations/recorded")]
    pub calibration: Option<PathBuf>,
    /// A trace to replay instead.
    #[command(flatten)]
    pub incident: TraceArgs,
}

/// Which trace, which part of it, and how.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TraceArgs {
    /// Replay this trace instead of running scenarios: a traffic trace of rayguard, or an arrival
    /// log in CSV (columns `at_s,route,status,latency_ms`; also the public Philly and Azure traces).
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Configuration to try. Default: the built-in defaults.
    #[arg(long, short, value_name = "FILE", requires = "trace")]
    pub config: Option<PathBuf>,
    /// How the trace is replayed.
    #[command(flatten)]
    pub replay: Replay,
}

/// How a trace is replayed.
#[derive(Clone, Debug, clap::Args)]
pub struct Replay {
    /// Start this far into the trace.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub from: Length,
    /// Replay this much of the trace. Default: all of it, at most a day.
    #[arg(long = "for", value_name = "TIME")]
    pub length: Option<Length>,
    /// Replay the trace this many times as fast.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub speedup: f64,
    /// Multiply the load by this; each copy has its own clients.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub copies: u32,
    /// Time after which clients give up.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub patience: Length,
    /// Cores of the head's node; a trace does not show them.
    #[arg(long, value_name = "COUNT", default_value_t = 2.0)]
    pub cores: f64,
}

impl Default for Replay {
    fn default() -> Replay {
        Replay {
            from: Length(Duration::ZERO),
            length: None,
            speedup: 1.0,
            copies: 1,
            patience: Length(Duration::from_secs(30)),
            cores: 2.0,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A folder without scenarios.
    #[error("{}: no *.toml in this folder; name scenario files", .0.display())]
    Empty(PathBuf),
    /// Neither a file nor a built-in scenario.
    #[error("{}: no such file, and no built-in scenario of this name; {nearest}", path.display())]
    Unknown {
        /// As given.
        path: PathBuf,
        /// What may have been meant.
        nearest: String,
    },
    /// A scenario is wrong.
    #[error("{}: {error}", path.display())]
    Scenario {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ScenarioError,
    },
    /// A trace is wrong.
    #[error("{}: {error}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: TraceError,
    },
    /// Nowhere to print to.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

pub(super) fn at(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |error| Error::File { path: path.to_owned(), error }
}

#[cfg(test)]
impl Args {
    /// These scenarios, as they come.
    pub(super) fn of(scenarios: Vec<PathBuf>) -> Args {
        Args {
            scenarios,
            seed: None,
            format: Format::Table,
            html: None,
            adjustment_log: None,
            runs: 0,
            draw: None,
            baselines: false,
            ablate: false,
            traces: None,
            calibration: None,
            incident: TraceArgs::default(),
        }
    }
}
