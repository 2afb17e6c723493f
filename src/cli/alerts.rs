//! `rayguard alerts`: what fires, and whether word of it would arrive.

use crate::admin::schema::{State, Tested};
use crate::cli::client::{Client, ClientError, Paint, Reach, json};
use crate::cli::format::Format;
use crate::cli::status::{alert_line, sorted};
use crate::core::event::printable;
use std::io::Write;

/// Shows firing alerts.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What else to do.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// What else to do.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Action {
    /// Send a test alert to every receiver and print the results.
    Test {
        /// Address of the running rayguard.
        #[command(flatten)]
        reach: Reach,
    },
}

/// Carries out the command.
pub async fn run(args: &Args, out: &mut dyn Write, paint: Paint) -> Result<(), ClientError> {
    if let Some(Action::Test { reach }) = &args.action {
        return test(reach, out, paint).await;
    }
    let state: State = Client::new(&args.reach)?.get("/api/v1/state").await?;
    if args.reach.format == Format::Json {
        return json(out, &state.view.alerts);
    }
    if state.view.alerts.is_empty() {
        writeln!(out, "no alert is firing")?;
    }
    for alert in sorted(&state.view.alerts) {
        writeln!(out, "{}", alert_line(alert, state.uptime_s, paint))?;
        writeln!(out, "          {}", printable(&alert.description))?;
        writeln!(out, "          {}", printable(&alert.runbook))?;
    }
    Ok(())
}

async fn test(reach: &Reach, out: &mut dyn Write, paint: Paint) -> Result<(), ClientError> {
    let order = serde_json::Map::new();
    let tested: Tested = Client::new(reach)?.post("/api/v1/alerts/test", &order).await?;
    if reach.format == Format::Json {
        json(out, &tested)?;
    } else {
        for receiver in &tested.receivers {
            match &receiver.problem {
                None => writeln!(out, "{}: delivered", receiver.receiver)?,
                Some(problem) => writeln!(out, "{}: {}", receiver.receiver, paint.bad(&printable(problem)))?,
            }
        }
    }
    let failed = tested.receivers.iter().filter(|receiver| receiver.problem.is_some()).count();
    if failed > 0 {
        return Err(ClientError::DeliveryError { failed, of: tested.receivers.len() });
    }
    Ok(())
}
