//! `rayguard limits`: every limit, where it stands between its bounds, and who holds it; and
//! `rayguard limits suggest`, which writes some ([`crate::cli::suggest`]).

use crate::admin::schema::Limits;
use crate::cli::class_name::ClassName;
use crate::cli::client::{Client, ClientError, Paint, Reach, json, length, table};
use crate::cli::format::Format;
use crate::cli::suggest;
use crate::core::controller::view::LimitView;
use crate::core::event::{Mode, number, printable};
use std::io::{self, Write};

/// Shows every limit and its bounds.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// Something else than showing them.
    #[command(subcommand)]
    pub command: Option<Instead>,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
    /// Only this class.
    #[arg(value_parser = ClassName, hide_possible_values = true)]
    pub class: Option<String>,
}

/// What there is to do but show limits.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Instead {
    /// Print a configuration section derived from the traffic seen so far, with reasons.
    Suggest(suggest::Args),
}

/// Carries out the command.
pub async fn run(args: &Args, out: &mut dyn Write, paint: Paint) -> Result<(), ClientError> {
    if let Some(Instead::Suggest(args)) = &args.command {
        return suggest::run(args, out).await;
    }
    let mut limits: Limits = Client::new(&args.reach)?.get("/api/v1/limits").await?;
    if let Some(class) = &args.class {
        limits.limits.retain(|row| row.class == *class);
        limits.pins.retain(|pin| pin.class == *class);
        if limits.limits.is_empty() {
            return Err(ClientError::Usage(format!(
                "there is no class `{class}` with limits; `rayguard limits` lists them"
            )));
        }
        limits.modules.retain(|module| limits.limits.iter().any(|row| row.module == module.name));
    }
    if args.reach.format == Format::Json {
        return json(out, &limits);
    }
    Ok(show(&limits, paint, out)?)
}

fn show(limits: &Limits, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
    let header = ["CLASS", "LIMIT", "MODE", "MODULE", "NOW", "MIN", "INITIAL", "MAX", "NOTE"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(limits.limits.iter().map(|row| {
        vec![
            row.class.clone(),
            row.limit.limit.label().to_owned(),
            mode_words(row.mode, row.limit.pinned, limits.frozen),
            row.module.clone(),
            with_unit(&row.limit, row.limit.value),
            with_unit(&row.limit, row.limit.min),
            with_unit(&row.limit, row.limit.initial),
            with_unit(&row.limit, row.limit.max),
            note(&row.limit),
        ]
    }));
    table(out, &(4..8), &rows)?;
    writeln!(out)?;
    let mut rows = vec![["MODULE", "IN FLIGHT", "CEILING"].map(str::to_owned).to_vec()];
    rows.extend(
        limits
            .modules
            .iter()
            .map(|module| vec![module.name.clone(), module.in_flight.to_string(), number(module.limit)]),
    );
    table(out, &(1..3), &rows)?;
    for pin in &limits.pins {
        let held = format!(
            "{} {} is pinned for {} more by {}: {}",
            pin.class,
            pin.limit.label(),
            length(pin.left_s),
            printable(&pin.who),
            printable(&pin.why)
        );
        writeln!(out, "\n{}", paint.warn(&held))?;
    }
    if limits.frozen {
        writeln!(out, "\n{}", paint.warn("all limits are frozen; `rayguard unfreeze` lets them move"))?;
    }
    Ok(())
}

fn with_unit(of: &LimitView, value: f64) -> String {
    format!("{}{}", number(value), of.limit.unit())
}

/// The mode, with what else an operator holds: a class in shadow mode may have a pinned limit.
pub(super) fn mode_words(mode: Mode, pinned: bool, frozen: bool) -> String {
    let also = match (pinned, frozen) {
        _ if mode != Mode::Shadow => "",
        (true, _) => ", pinned",
        (false, true) => ", frozen",
        (false, false) => "",
    };
    let mode = if mode == Mode::Manual { "pinned" } else { mode.label() };
    format!("{mode}{also}")
}

/// What is worth a word about a limit.
fn note(row: &LimitView) -> String {
    let moves = row.min < row.max;
    let notes = [
        (row.pinned, "pinned"),
        (row.binding, "holds requests back"),
        (moves && row.value < row.min * 0.99, "below min: lowered by Ray's signals"),
        (moves && row.value >= row.min * 0.99 && row.value <= row.min * 1.01, "at its floor"),
        (moves && row.value >= row.max * 0.99, "at its ceiling"),
        (row.oscillation > 0.5, "oscillates"),
        (!moves, "fixed"),
    ];
    notes.iter().filter(|(so, _)| *so).map(|(_, note)| *note).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::state;

    #[test]
    fn every_limit_is_shown_with_its_range() {
        let mut out = Vec::new();
        show(&crate::admin::api::limits(&state().view), Paint::plain(), &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let rate =
            out.lines().find(|line| line.starts_with("job-submit") && line.contains(" rate ")).unwrap();
        assert!(rate.contains("enforce"), "{rate}");
        assert!(rate.contains("/s"), "a rate has its unit: {rate}");
        assert!(out.contains("JobHead"), "{out}");
    }

    #[test]
    fn what_signals_have_lowered_below_min_is_not_called_its_floor() {
        let mut limits = crate::admin::api::limits(&state().view);
        let mut rows = limits.limits.iter_mut().map(|row| &mut row.limit);
        let row = rows.find(|row| row.min < row.max).unwrap();
        row.value = row.min * 0.46;
        assert_eq!(note(row), "below min: lowered by Ray's signals");
        row.value = row.min;
        assert_eq!(note(row), "at its floor");
    }
}
