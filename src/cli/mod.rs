//! The command line, in the manner of `ray`.

pub mod alerts;
pub mod check;
pub mod class_name;
pub mod client;
pub mod clients;
pub mod completions;
pub mod config_file;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod format;
pub mod health;
pub mod incident;
pub mod limits;
pub mod load;
pub mod log;
pub mod log_source;
pub mod overrides;
pub mod progress;
pub mod replay;
pub mod run;
pub mod simulate;
pub mod simulate_args;
pub mod status;
pub mod suggest;
pub mod tune;
pub mod up;

use crate::core::admission::table::Mode as ShedMode;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::Write as _;
use std::process::ExitCode;

/// Adaptive load shedding in front of a Ray head.
#[derive(Debug, Parser)]
#[command(name = "rayguard", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Diagnose this host, run the proxy, and print what to do next.
    Up(up::Args),
    /// Run the proxy in front of a Ray head.
    Run(run::Args),
    /// Validate a configuration file, and say how stable its control loops are.
    Check(check::Args),
    /// Diagnose this host and suggest fixes.
    Doctor(doctor::Args),
    /// Show what it does: the same flood against two emulated Ray heads, one behind rayguard.
    Demo(demo::Args),
    /// Print the adjustment log: which limit moved, when and why.
    Log(log::Args),
    /// Explain why a request was shed, or why a limit has its value.
    Explain(explain::Args),
    /// Verify an adjustment log: compute every adjustment again and compare.
    Replay(replay::Args),
    /// Write a traffic trace of a Ray head, without shedding anything.
    Record(run::RecordArgs),
    /// Run scenarios against a simulated Ray head.
    Simulate(simulate::Args),
    /// Propose limits from a traffic trace, with the simulation that supports them.
    Tune(tune::Args),
    #[command(flatten)]
    Operate(Operate),
    /// Send a bounded load to a Ray head and print the results.
    Load(load::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
    /// Print the manual page.
    Man(completions::ManArgs),
}

/// Commands for a running rayguard.
#[derive(Debug, Subcommand)]
enum Operate {
    /// Show current status.
    Status(status::Args),
    /// Check readiness, for health checks.
    Health(health::Args),
    /// Show which clients send most requests, and how many were shed.
    Clients(clients::Args),
    /// Show every limit and its bounds, or suggest limits from current traffic.
    Limits(limits::Args),
    /// Hold a limit at a value for a while.
    Pin(overrides::PinArgs),
    /// Let the controller move a pinned limit again.
    Unpin(overrides::UnpinArgs),
    /// Freeze all limits at their current values.
    Freeze(overrides::FreezeArgs),
    /// Let all limits move again.
    Unfreeze(overrides::FreezeArgs),
    /// Forward everything and count what would have been shed, for one class or all.
    Shadow(overrides::ModeArgs),
    /// Enforce limits, for one class or all.
    Enforce(overrides::ModeArgs),
    /// Reload the configuration file, and report its problems.
    Reload(overrides::ReloadArgs),
    /// Show firing alerts, or send a test alert.
    Alerts(alerts::Args),
}

/// Commands by what they are for, each with an example that its own help shows.
const GROUPS: [(&str, &[(&str, &str)]); 5] = [
    (
        "Run",
        &[
            ("up", "rayguard up --upstream http://127.0.0.1:8265"),
            ("run", "rayguard run rayguard.toml"),
            ("check", "rayguard check rayguard.toml"),
            ("doctor", "rayguard doctor rayguard.toml"),
            ("demo", "rayguard demo"),
        ],
    ),
    (
        "Look",
        &[
            ("status", "rayguard status --watch"),
            ("clients", "rayguard clients -n 5"),
            ("limits", "rayguard limits job-list"),
            ("alerts", "rayguard alerts test"),
            ("log", "rayguard log --since 1h --class job-submit"),
            ("explain", "rayguard explain 1a22ce55fcb-1"),
            ("replay", "rayguard replay rayguard-state/adjustment-log"),
            ("health", "rayguard health --address unix:/run/rayguard/admin.sock"),
        ],
    ),
    (
        "Override",
        &[
            ("pin", "rayguard pin job-submit rate=2/s --for 30m --why 'nightly import'"),
            ("unpin", "rayguard unpin job-submit rate"),
            ("freeze", "rayguard freeze --why 'head is being upgraded'"),
            ("unfreeze", "rayguard unfreeze --why 'upgrade done'"),
            ("shadow", "rayguard shadow serve --why 'trying new limits'"),
            ("enforce", "rayguard enforce serve --why 'limits look right'"),
            ("reload", "rayguard reload --why 'new SLO'"),
        ],
    ),
    (
        "Lab",
        &[
            ("simulate", "rayguard simulate ray-state-flood"),
            ("record", "rayguard record monday.trace --for 1h"),
            ("tune", "rayguard tune --trace monday.trace"),
            ("load", "rayguard load plan.toml --target http://127.0.0.1:8266"),
        ],
    ),
    (
        "Shell",
        &[
            ("completions", "rayguard completions bash > /etc/bash_completion.d/rayguard"),
            ("man", "rayguard man | man -l -"),
        ],
    ),
];

/// The command line with its commands in groups, and an example in the help of each.
fn command() -> clap::Command {
    let mut command = Cli::command();
    let width =
        GROUPS.iter().flat_map(|(_, commands)| *commands).map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut list = String::new();
    for (group, commands) in GROUPS {
        list.extend(["\n", group, ":\n"]);
        for (name, example) in commands {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map_or_else(String::new, ToString::to_string);
            list.extend(["  ", name, &" ".repeat(width + 2 - name.len()), &about, "\n"]);
            command =
                command.mut_subcommand(name, |command| command.after_help(format!("Example: {example}")));
        }
    }
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{list}\nOptions:\n{{options}}"
    ))
}

/// Says what is wrong with the command line, and what an option that was renamed is called now.
fn refuse(error: &clap::Error) -> ! {
    if let Some((old, new)) = renamed(error) {
        command().error(error.kind(), format!("`{old}` has a new name; write `{new}`")).exit();
    }
    error.exit()
}

/// The option that is not known here because it was renamed, and its new name.
fn renamed(error: &clap::Error) -> Option<(&str, &'static str)> {
    match error.get(clap::error::ContextKind::InvalidArg)? {
        clap::error::ContextValue::String(old) => Some((old, crate::config::renamed::option(old)?)),
        _ => None,
    }
}

/// Parses the command line and carries it out. Exit codes: 0 done, 1 it went wrong, 2 it was
/// asked wrongly.
#[must_use]
pub fn main() -> ExitCode {
    let cli = command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .unwrap_or_else(|error| refuse(&error));
    let outcome: Result<u8, Box<dyn std::error::Error>> = match cli.command {
        Command::Up(args) => up::run(&args).map_err(Into::into),
        Command::Run(args) => run::run(&args).map_err(Into::into),
        Command::Record(args) => run::record(args).map_err(Into::into),
        Command::Check(args) => check::run(&args, &mut std::io::stdout().lock()).map_err(Into::into),
        Command::Doctor(args) => doctor::run(&args, &mut std::io::stdout().lock()).map_err(Into::into),
        Command::Demo(args) => demo::run(&args).map_err(Into::into),
        Command::Log(args) => {
            log::run(&args, wall(), &mut std::io::stdout().lock()).map(|()| 0).map_err(Into::into)
        }
        Command::Explain(args) => {
            explain::run(&args, wall(), &mut std::io::stdout().lock()).map(|()| 0).map_err(Into::into)
        }
        Command::Replay(args) => replay::run(&args, &mut std::io::stdout().lock())
            .map(|tally| u8::from(!tally.is_complete()))
            .map_err(Into::into),
        Command::Simulate(args) => simulate::run(&args, &mut std::io::stdout().lock()).map_err(Into::into),
        Command::Tune(args) => tune::run(&args, &mut std::io::stdout().lock()).map_err(Into::into),
        Command::Operate(command) => Ok(client::carry_out(operate(command))),
        Command::Load(args) => load::run(&args).map(|()| 0).map_err(Into::into),
        Command::Completions(args) => {
            completions::run(&args, command(), &mut std::io::stdout().lock()).map_err(Into::into)
        }
        Command::Man(args) => {
            completions::man(&args, command(), &mut std::io::stdout().lock()).map_err(Into::into)
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        // A reader that has gone, such as `head`, is no failure.
        Err(error) if reader_left(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "rayguard: {error}");
            ExitCode::from(1)
        }
    }
}

fn reader_left(error: &(dyn std::error::Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The wall clock, for commands that speak of "an hour ago".
fn wall() -> crate::core::time::WallMs {
    crate::proxy::clock::Clock::start().wall()
}

async fn operate(command: Operate) -> Result<(), client::ClientError> {
    let out = &mut std::io::stdout().lock();
    let paint = client::Paint::stdout();
    match command {
        Operate::Status(args) => status::run(&args, out, paint).await,
        Operate::Health(args) => health::run(&args, out).await,
        Operate::Clients(args) => clients::run(&args, out).await,
        Operate::Limits(args) => limits::run(&args, out, paint).await,
        Operate::Pin(args) => overrides::pin(&args, out).await,
        Operate::Unpin(args) => overrides::unpin(&args, out).await,
        Operate::Freeze(args) => overrides::freeze(&args, true, out).await,
        Operate::Unfreeze(args) => overrides::freeze(&args, false, out).await,
        Operate::Shadow(args) => overrides::mode(&args, ShedMode::Shadow, out).await,
        Operate::Enforce(args) => overrides::mode(&args, ShedMode::Enforce, out).await,
        Operate::Reload(args) => overrides::reload(&args, out).await,
        Operate::Alerts(args) => alerts::run(&args, out, paint).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    #[test]
    fn an_option_that_was_renamed_is_refused_with_its_new_name() {
        let old = ["rayguard", "log", "--ledger", "x"]; // kept: an earlier name
        let error = super::Cli::try_parse_from(old).unwrap_err();
        assert_eq!(super::renamed(&error), Some((old[2], "--adjustment-log")));
    }

    #[test]
    fn every_command_stands_in_one_group_and_its_example_can_be_parsed() {
        let command = super::command();
        command.clone().debug_assert();
        let mut grouped: Vec<&str> =
            super::GROUPS.iter().flat_map(|(_, of)| *of).map(|(name, _)| *name).collect();
        let mut all: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        all.retain(|name| *name != "help");
        assert_eq!(grouped, all);
        for (name, example) in super::GROUPS.iter().flat_map(|(_, of)| *of) {
            let words = example.split(['>', '|']).next().unwrap_or_default();
            // A reason in quotes is one word.
            let words = words.split('\'').enumerate().flat_map(|(at, part)| {
                if at % 2 == 1 { vec![part] } else { part.split_whitespace().collect() }
            });
            let parsed = super::command().try_get_matches_from(words);
            assert!(parsed.is_ok_and(|parsed| parsed.subcommand_name() == Some(*name)), "{example}");
        }
        let help = super::command().render_help().to_string();
        assert!(help.contains("\nOverride:\n  pin") && help.contains("Hold a limit at a value"), "{help}");
    }
}
