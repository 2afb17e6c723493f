//! `rayguard status`: how is the head, what does the loop see, who is held back?
//!
//! One screen of the admin API's state: the head, what fires, the signals, and every class
//! that has something to tell. `--all` shows the quiet ones too.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use crate::admin::schema::State;
use crate::cli::check::Format;
use crate::cli::remote::{self, Remote, RemoteError};
use crate::config::quantity::Length;
use crate::core::engine::view::{ClassView, SignalView};
use crate::core::journal::{LimitKind, SignalHealth};

/// Shows the head, the signals, the classes and what fires.
///
/// Exit codes: 0 told, 1 no rayguard answers.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where it is.
    #[command(flatten)]
    pub remote: remote::Reach,
    /// How to say it.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Shows quiet classes and signals too.
    #[arg(long)]
    pub all: bool,
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No answer.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// Carries out the command; the number is the exit code.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<u8, StatusError> {
    let remote = Remote::new(&args.remote)?;
    match args.format {
        // As it came, so that nothing of a newer version is lost.
        Format::Json => writeln!(out, "{:#}", remote.get::<serde_json::Value>("/api/v1/state")?)?,
        Format::Table => out.write_all(screen(&remote.get("/api/v1/state")?, args.all).as_bytes())?,
    }
    Ok(0)
}

/// The whole screen.
fn screen(state: &State, all: bool) -> String {
    let mut out = String::new();
    head(&mut out, state);
    signals(&mut out, state, all);
    classes(&mut out, state, all);
    out
}

fn head(out: &mut String, state: &State) {
    let view = &state.view;
    let up = Length(Duration::from_secs(crate::core::time::duration_from_secs(state.uptime_s).as_secs()));
    // invariant: writing to a String cannot fail, here and below.
    let _ = writeln!(
        out,
        "rayguard {}, up {up}, configuration {}, table {}",
        state.version, state.config, view.table
    );
    for door in &state.doors {
        let _ = writeln!(out, "  {} -> {} ({})", door.listen, door.upstream, door.kind);
    }
    let head =
        view.upstream_problem.as_deref().map_or_else(|| "answers".to_owned(), |why| format!("DOWN: {why}"));
    let _ = writeln!(out, "\nhead     {head}");
    if let Some(problem) = &view.config_problem {
        let _ = writeln!(
            out,
            "config   REFUSED, the one before is in force: {}",
            problem.lines().next().unwrap_or_default()
        );
    }
    if view.frozen {
        let _ = writeln!(out, "loop     FROZEN by hand; `rayguard limits unfreeze` lets it move again");
    }
    for pin in &view.pins {
        let left = Length(Duration::from_secs(crate::core::time::duration_from_secs(pin.left_s).as_secs()));
        let _ = writeln!(
            out,
            "pinned   {} {} at {} for another {left}, by {}: {}",
            pin.class,
            pin.limit.label(),
            figure(pin.value),
            pin.who,
            pin.why
        );
    }
    if view.alerts.is_empty() {
        out.push_str("alerts   none\n");
    }
    for alert in &view.alerts {
        // A summary may carry a whole report; its first line names the thing.
        let summary = alert.summary.lines().next().unwrap_or_default();
        let _ = writeln!(out, "ALERT    {}: {summary}", alert.key);
    }
}

fn signals(out: &mut String, state: &State, all: bool) {
    let shown = |signal: &&SignalView| all || signal.value.is_some() || signal.health == SignalHealth::Stale;
    let _ = writeln!(
        out,
        "\n{:<22} {:>12} {:>12} {:>9} {:>7}  health",
        "signal", "value", "target", "pressure", "age"
    );
    for signal in state.view.signals.iter().filter(shown) {
        let value =
            signal.value.map_or_else(|| "-".to_owned(), |value| format!("{} {}", figure(value), signal.unit));
        let target = format!("{} {}", figure(signal.target), signal.unit);
        let pressure = signal.pressure.map_or_else(|| "-".to_owned(), |pressure| format!("{pressure:.2}"));
        let age = signal.age_s.map_or_else(|| "-".to_owned(), |age| format!("{age:.0}s"));
        let health = match signal.health {
            SignalHealth::Fresh => "fresh".to_owned(),
            SignalHealth::Stale => format!("STALE {}", signal.problem),
            SignalHealth::Waiting => "waiting".to_owned(),
        };
        let _ =
            writeln!(out, "{:<22} {value:>12} {target:>12} {pressure:>9} {age:>7}  {health}", signal.name);
    }
}

fn classes(out: &mut String, state: &State, all: bool) {
    let busy = |class: &&ClassView| all || class.offered > 0 || class.in_flight > 0;
    let _ = writeln!(
        out,
        "\n{:<19} {:<8} {:>8} {:>8} {:>9} {:>8} {:>7} {:>9} {:>9}",
        "class", "mode", "asked/s", "shed/s", "under way", "of limit", "waiting", "rate", "latency"
    );
    let mut quiet = 0;
    for class in &state.view.classes {
        if !busy(&class) {
            quiet += 1;
            continue;
        }
        let limit = |kind: LimitKind| {
            let found = class.limits.iter().find(|limit| limit.limit == kind);
            found.map_or_else(|| "-".to_owned(), |limit| figure(limit.value))
        };
        let mode = if class.treatment == "limited" { &class.mode } else { &class.treatment };
        let latency = class.slo_pressure.map_or_else(|| "-".to_owned(), |of| format!("{of:.2} slo"));
        let _ = writeln!(
            out,
            "{:<19} {mode:<8} {:>8.1} {:>8.1} {:>9} {:>8} {:>7} {:>9} {latency:>9}",
            class.name,
            class.offered_per_s,
            class.shed_per_s,
            class.in_flight,
            limit(LimitKind::InFlight),
            class.waiting,
            limit(LimitKind::Rate)
        );
    }
    if quiet > 0 {
        let _ = writeln!(out, "{quiet} classes have had no request yet (--all shows them)");
    }
}

/// Three digits, and no more zeros than they need.
pub(super) fn figure(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Overrides, Settings};
    use crate::core::engine::Engine;
    use crate::core::limit::table::Mode;
    use crate::core::time::{Time, WallMs};
    use std::sync::Arc;

    /// A state of the defaults, before the first request.
    pub(in crate::cli) fn state() -> State {
        let settings = Settings::defaults(&Overrides::default()).unwrap();
        let modes = vec![Mode::Enforce; settings.policy.classes.len()];
        let engine = Engine::new(Arc::clone(&settings.policy), &modes, &[], Time::ZERO);
        State {
            version: "0.1.0".into(),
            config: "defaults".into(),
            time: WallMs(0),
            uptime_s: 7200.4,
            token_required: false,
            doors: Vec::new(),
            view: engine.view(Time::ZERO),
        }
    }

    #[test]
    fn a_quiet_guard_fits_a_screen() {
        let screen = screen(&state(), false);
        assert!(screen.lines().count() < 24, "{screen}");
        for part in ["up 2h", "head     answers", "alerts   none", "classes have had no request yet"] {
            assert!(screen.contains(part), "{part} is missing from\n{screen}");
        }
    }

    #[test]
    fn all_shows_every_class_with_its_limits() {
        let state = state();
        let screen = screen(&state, true);
        for class in &state.view.classes {
            assert!(screen.contains(&class.name), "{}", class.name);
        }
        let submit = screen.lines().find(|line| line.starts_with("job-submit")).unwrap();
        assert!(submit.contains('8') && submit.contains('4'), "{submit}");
    }

    #[test]
    fn what_is_wrong_stands_at_the_top() {
        let mut state = state();
        state.view.upstream_problem = Some("connection refused".into());
        state.view.config_problem = Some("2 problems\nmore".into());
        state.view.frozen = true;
        let screen = screen(&state, false);
        let top: Vec<&str> = screen.lines().take(6).collect();
        for part in ["DOWN: connection refused", "REFUSED", "FROZEN"] {
            assert!(top.iter().any(|line| line.contains(part)), "{part} is missing from\n{screen}");
        }
    }

    #[test]
    fn the_state_is_read_over_the_wire() {
        let body = serde_json::to_string(&state()).unwrap();
        let (out, asked) = remote::tests::served("200 OK", &body, |remote| {
            let mut out = Vec::new();
            assert_eq!(run(&Args { remote, format: Format::Table, all: false }, &mut out).unwrap(), 0);
            String::from_utf8(out).unwrap()
        });
        assert!(asked.starts_with("GET /api/v1/state "), "{asked}");
        assert!(out.starts_with("rayguard 0.1.0, up 2h"), "{out}");
    }

    #[test]
    fn figures_are_short() {
        let written: Vec<String> = [0.0, 0.2, 4.0, 12.34, 16.0, 2048.0, 0.333].map(figure).to_vec();
        assert_eq!(written, ["0", "0.2", "4", "12.3", "16", "2048", "0.33"]);
    }
}
