//! `rayguard limits`: every limit as it stands, and the wheel.
//!
//! `pin` holds one limit for a while, `freeze` holds all, `mode` sheds or only counts. Each is
//! carried out at once, written into the record with who and why, and undone by its opposite;
//! a pin also ends by itself, and the loop takes over from where it stood.

use std::io::{self, Write};
use std::time::Duration;

use crate::admin::schema::{Done, FreezeOrder, LimitRow, Limits, ModeOrder, PinOrder, ShedMode, UnpinOrder};
use crate::cli::check::Format;
use crate::cli::remote::{self, Remote, RemoteError};
use crate::cli::status::figure;
use crate::config::quantity::Length;
use crate::core::journal::LimitKind;

/// Shows every limit, or takes the wheel: pin, unpin, freeze, unfreeze, mode.
///
/// Exit codes: 0 done, 1 refused or no rayguard answers.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where it is.
    #[command(flatten)]
    pub remote: remote::Reach,
    /// How to say it.
    #[arg(long, value_enum, default_value_t = Format::Table, global = true)]
    pub format: Format,
    /// Shows one class alone.
    #[arg(long)]
    pub class: Option<String>,
    /// What to do; shows the limits when left out.
    #[command(subcommand)]
    pub order: Option<Order>,
}

/// What an operator may do by hand.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Order {
    /// Hold one limit at a value for a while.
    Pin {
        /// The class.
        class: String,
        /// Which limit.
        #[arg(value_enum)]
        limit: Limit,
        /// The value, within the limit's bounds.
        value: f64,
        /// For how long: 30m, 1h, ...
        #[arg(long, value_name = "LENGTH")]
        r#for: String,
        /// Why, for the record.
        #[arg(long)]
        why: String,
    },
    /// Give a limit back to the loop.
    Unpin {
        /// The class.
        class: String,
        /// Which limit.
        #[arg(value_enum)]
        limit: Limit,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Hold all limits where they are.
    Freeze {
        /// Why, for the record.
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Let all limits move again.
    Unfreeze {
        /// Why, for the record.
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Shed, or only count what would be shed.
    Mode {
        /// Which.
        #[arg(value_enum)]
        mode: Shed,
        /// One class; all when left out.
        #[arg(long = "of", value_name = "CLASS")]
        class: Option<String>,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        why: String,
    },
}

/// Which limit of a class.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Requests per second.
    Rate,
    /// Requests under way at once.
    #[value(name = "in_flight", alias = "in-flight")]
    InFlight,
}

/// What becomes of sheds.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shed {
    /// Carried out.
    Enforce,
    /// Only counted.
    Shadow,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// No answer, or a refusal.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// There is no such class.
    #[error("there is no class `{0}`; `rayguard limits` lists them")]
    UnknownClass(String),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    /// The answer cannot be written as JSON.
    #[error("cannot write the answer: {0}")]
    Json(#[from] serde_json::Error),
}

/// Carries out the command; the number is the exit code.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<u8, LimitsError> {
    let remote = Remote::new(&args.remote)?;
    let Some(order) = &args.order else {
        let mut limits: Limits = remote.get("/api/v1/limits")?;
        if let Some(class) = &args.class {
            limits.limits.retain(|row| row.class == *class);
            if limits.limits.is_empty() {
                return Err(LimitsError::UnknownClass(class.clone()));
            }
        }
        match args.format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&limits)?)?,
            Format::Table => table(&limits, args.class.is_some(), out)?,
        }
        return Ok(0);
    };
    let done = send(&remote, order)?;
    match args.format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(&done)?)?,
        Format::Table => writeln!(out, "{} (table {})", done.done, done.table)?,
    }
    Ok(0)
}

fn send(remote: &Remote, order: &Order) -> Result<Done, RemoteError> {
    let who = who();
    match order.clone() {
        Order::Pin { class, limit, value, r#for, why } => {
            remote.post("/api/v1/pin", &PinOrder { class, limit: limit.kind(), value, r#for, why, who })
        }
        Order::Unpin { class, limit, why } => {
            remote.post("/api/v1/unpin", &UnpinOrder { class, limit: limit.kind(), why, who })
        }
        Order::Freeze { why } => remote.post("/api/v1/freeze", &FreezeOrder { why, who }),
        Order::Unfreeze { why } => remote.post("/api/v1/unfreeze", &FreezeOrder { why, who }),
        Order::Mode { mode, class, why } => {
            let mode = match mode {
                Shed::Enforce => ShedMode::Enforce,
                Shed::Shadow => ShedMode::Shadow,
            };
            remote.post("/api/v1/mode", &ModeOrder { mode, class, why, who })
        }
    }
}

impl Limit {
    fn kind(self) -> LimitKind {
        match self {
            Limit::Rate => LimitKind::Rate,
            Limit::InFlight => LimitKind::InFlight,
        }
    }
}

/// Whoever sits at the terminal, for the record; the connection's peer is added by the server.
fn who() -> String {
    #[expect(clippy::disallowed_methods, reason = "the command line may read the environment")]
    std::env::var("USER").unwrap_or_default()
}

fn table(limits: &Limits, one_class: bool, out: &mut dyn Write) -> io::Result<()> {
    if limits.frozen {
        writeln!(out, "all limits are FROZEN by hand\n")?;
    }
    writeln!(
        out,
        "{:<19} {:<10} {:>9} {:>8} {:>8} {:>8}  {:<8} note",
        "class", "limit", "in force", "min", "initial", "max", "mode"
    )?;
    for row in &limits.limits {
        let [value, min, initial, max] = [row.value, row.min, row.initial, row.max].map(figure);
        writeln!(
            out,
            "{:<19} {:<10} {value:>9} {min:>8} {initial:>8} {max:>8}  {:<8} {}",
            row.class,
            row.limit.label(),
            row.mode,
            note(row)
        )?;
    }
    if one_class {
        return Ok(());
    }
    writeln!(out, "\n{:<19} {:>9} {:>9}", "module", "under way", "ceiling")?;
    for module in &limits.modules {
        writeln!(out, "{:<19} {:>9} {:>9}", module.name, module.in_flight, figure(module.limit))?;
    }
    for pin in &limits.pins {
        let left = Length(Duration::from_secs(crate::core::time::duration_from_secs(pin.left_s).as_secs()));
        writeln!(
            out,
            "\npinned: {} {} at {} for another {left}, by {}: {}",
            pin.class,
            pin.limit.label(),
            figure(pin.value),
            pin.who,
            pin.why
        )?;
    }
    Ok(())
}

/// What is worth a word about a limit.
fn note(row: &LimitRow) -> String {
    let moves = row.min < row.max;
    let mut notes = Vec::new();
    if row.pinned {
        notes.push("pinned");
    }
    if row.binding {
        notes.push("holds requests back");
    }
    if moves && row.value <= row.min * 1.01 {
        notes.push("at its floor");
    } else if moves && row.value >= row.max * 0.99 {
        notes.push("at its ceiling");
    }
    if row.oscillation > 0.5 {
        notes.push("swings");
    }
    if !moves {
        notes.push("fixed");
    }
    notes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::tests::state;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn line(words: &[&str]) -> Args {
        Line::try_parse_from([&["limits"], words].concat()).unwrap().args
    }

    fn answered(body: &str, mut args: Args) -> (Result<String, LimitsError>, String) {
        remote::tests::served("200 OK", body, |remote| {
            args.remote = remote;
            let mut out = Vec::new();
            run(&args, &mut out).map(|_| String::from_utf8(out).unwrap())
        })
    }

    #[test]
    fn every_limit_is_shown_with_its_range() {
        let body = serde_json::to_string(&crate::admin::api::limits(&state().view)).unwrap();
        let (out, asked) = answered(&body, line(&[]));
        let out = out.unwrap();
        assert!(asked.starts_with("GET /api/v1/limits "), "{asked}");
        let rate =
            out.lines().find(|line| line.starts_with("job-submit") && line.contains(" rate ")).unwrap();
        for part in ["4", "0.2", "64", "enforce"] {
            assert!(rate.contains(part), "{rate}");
        }
        assert!(out.contains("JobHead"), "{out}");
        let (one, _) = answered(&body, line(&["--class", "job-submit"]));
        assert_eq!(one.unwrap().lines().count(), 3);
        let (none, _) = answered(&body, line(&["--class", "job-sumbit"]));
        assert!(matches!(none, Err(LimitsError::UnknownClass(_))));
    }

    #[test]
    fn a_pin_is_sent_with_its_length_and_reason() {
        let done = r#"{"done":"job-submit rate is pinned at 2 for 1h","table":7}"#;
        let words =
            ["pin", "job-submit", "rate", "2", "--for", "1h", "--why", "release day", "--format", "table"];
        let (out, asked) = answered(done, line(&words));
        assert_eq!(out.unwrap(), "job-submit rate is pinned at 2 for 1h (table 7)\n");
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /api/v1/pin "), "{head}");
        let order: PinOrder = serde_json::from_str(body).unwrap();
        assert_eq!((order.class.as_str(), order.limit, &*order.r#for), ("job-submit", LimitKind::Rate, "1h"));
        assert_eq!(order.why, "release day");
    }

    #[test]
    fn each_order_goes_to_its_own_path() {
        for (words, path) in [
            (&["unpin", "views", "in_flight"][..], "/api/v1/unpin"),
            (&["freeze", "--why", "incident"], "/api/v1/freeze"),
            (&["unfreeze"], "/api/v1/unfreeze"),
            (&["mode", "shadow", "--of", "views"], "/api/v1/mode"),
        ] {
            let (out, asked) = answered(r#"{"done":"so","table":1}"#, line(words));
            assert!(out.is_ok() && asked.starts_with(&format!("POST {path} ")), "{words:?}: {asked}");
        }
    }

    #[test]
    fn a_pin_without_length_or_reason_is_no_order() {
        for words in
            [&["pin", "views", "rate", "2", "--for", "1h"][..], &["pin", "views", "rate", "2", "--why", "x"]]
        {
            assert!(Line::try_parse_from([&["limits"], words].concat()).is_err(), "{words:?}");
        }
    }
}
