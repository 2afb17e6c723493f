//! `rayguard load`: sends a Ray-shaped load from a plan, and says what became of it.
//!
//! The load itself is sent in [`crate::lab::load`].

use crate::cli::client::table;
use crate::cli::format::Format;
use crate::lab::load::plan::{Plan, PlanError};
use crate::lab::load::report::{self, Report};
use crate::lab::load::{propose, send};
use std::io::{self, IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Sends the load of a plan and prints the results.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The plan, a TOML file.
    pub plan: PathBuf,
    /// Target URL, instead of the plan's own target (`http://127.0.0.1:8265`).
    #[arg(long)]
    pub target: Option<String>,
    /// The seed, instead of the plan's own.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Write every operation to this file, one JSON object per line.
    #[arg(long)]
    pub samples: Option<PathBuf>,
    /// Output format. Default: a table on a terminal, JSON into a pipe.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Propose limits for each class from the load that the head sustained; needs a plan whose rates rise.
    #[arg(long, conflicts_with = "format")]
    pub propose: bool,
    /// Allow a target on another machine.
    #[arg(long)]
    pub allow_remote: bool,
}

/// Why a load could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan is wrong.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The target is no address.
    #[error("target {target:?}: {problem}; give it as http://127.0.0.1:8265")]
    Target {
        /// As given.
        target: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or the output cannot be written.
    #[error("cannot write the outcome: {0}")]
    Output(#[from] io::Error),
    /// The outcome cannot be written.
    #[error("cannot write the outcome: {0}")]
    Json(#[from] serde_json::Error),
}

/// Carries out the command.
pub fn run(args: &Args) -> Result<(), LoadError> {
    let mut plan = Plan::read(&args.plan, args.target.as_deref())?;
    plan.seed = args.seed.unwrap_or(plan.seed);
    let target = resolve(&plan.target, args.allow_remote)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let samples = runtime.block_on(send(&plan, target));
    if let Some(path) = &args.samples {
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        report::write_samples(&plan, &samples, &mut file)?;
        file.flush()?;
    }
    let mut out = io::stdout().lock();
    if args.propose {
        out.write_all(propose::section(&plan, &samples).as_bytes())?;
        return Ok(());
    }
    let format = if io::stdout().is_terminal() { Format::Table } else { Format::Json };
    let report = Report::new(&plan, &samples);
    if args.format.unwrap_or(format) == Format::Table {
        return Ok(show(&report, &mut out)?);
    }
    serde_json::to_writer_pretty(&mut out, &report)?;
    writeln!(out)?;
    Ok(())
}

/// Writes the report as a table.
fn show(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let header = ["WINDOW", "STREAM", "DUE", "IN TIME", "P50 ms", "P99 ms", "MAX ms", "ENDED"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    for window in &report.windows {
        for (stream, figures) in &window.streams {
            let ended = figures.fates.iter().map(|(fate, count)| format!("{fate} {count}"));
            rows.push(vec![
                window.name.clone(),
                stream.clone(),
                figures.due.to_string(),
                format!("{:.1} %", figures.in_time_share * 100.0),
                ms(figures.p50_ms),
                ms(figures.p99_ms),
                ms(figures.max_ms),
                ended.collect::<Vec<_>>().join(", "),
            ]);
        }
    }
    table(out, &(2..7), &rows)?;
    writeln!(out, "\nThe generator itself was late by {:.1} ms (p99).", report.late_p99_ms)
}

/// The target's address; only the loopback unless `allow_remote`.
fn resolve(target: &str, allow_remote: bool) -> Result<SocketAddr, LoadError> {
    let wrong = |problem: String| LoadError::Target { target: target.into(), problem };
    let url = url::Url::parse(target).map_err(|problem| wrong(problem.to_string()))?;
    let host =
        url.host_str().filter(|_| url.scheme() == "http").ok_or_else(|| wrong("no http address".into()))?;
    let port = url.port_or_known_default().unwrap_or(80);
    let address = (host, port)
        .to_socket_addrs()
        .map_err(|problem| wrong(problem.to_string()))?
        .find(SocketAddr::is_ipv4)
        .ok_or_else(|| wrong("no IPv4 address".into()))?;
    if !address.ip().is_loopback() && !allow_remote {
        return Err(PlanError::Remote(address.to_string()).into());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_off_this_machine_needs_leave() {
        assert!(resolve("http://127.0.0.1:8265", false).is_ok());
        assert!(matches!(
            resolve("http://192.0.2.7:8265", false),
            Err(LoadError::Plan(PlanError::Remote(_)))
        ));
        assert!(resolve("http://192.0.2.7:8265", true).is_ok());
        assert!(resolve("https://127.0.0.1", false).is_err());
    }
}
