//! `rayguard status`: everything on one screen, as `ray status` is the cluster on one.
//!
//! What is wrong comes first, then what it stands on: alerts, what is held by hand, Ray's
//! readings against their targets, the classes that are busy, the last changes with their
//! reasons. Idle classes are named in one line.

use crate::admin::clients::Clients;
use crate::admin::schema::{AdjustmentRow, Adjustments, State};
use crate::cli::client::{Client, ClientError, Paint, Reach, json, length, table};
use crate::cli::clients;
use crate::cli::format::Format;
use crate::cli::limits::mode_words;
use crate::core::admission::controller::HeldBy;
use crate::core::alert::{Severity, Transition};
use crate::core::controller::backlog::TRICKLE;
use crate::core::controller::view::{ClassView, SignalView, View};
use crate::core::event::{LimitKind, Mode, SignalHealth, number, printable, upstream_words};
use crate::core::policy::Treatment;
use std::io::{self, Write};
use std::time::Duration;

/// Shows current status.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
    /// Show idle classes and quiet signals too.
    #[arg(long)]
    pub all: bool,
    /// Refresh every two seconds until interrupted.
    #[arg(long, short)]
    pub watch: bool,
}

/// How often `--watch` asks.
const WATCH: Duration = Duration::from_secs(2);

/// Changes shown.
const LAST: usize = 5;

/// Carries out the command.
pub async fn run(args: &Args, out: &mut dyn Write, paint: Paint) -> Result<(), ClientError> {
    let client = Client::new(&args.reach)?;
    if !args.watch {
        return once(&client, args, out, paint).await;
    }
    loop {
        // Whole before it is shown, so that the screen does not flicker; and a rayguard that restarts is waited for.
        let mut text = Vec::new();
        match once(&client, args, &mut text, paint).await {
            Ok(()) => {}
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Strange { .. })) => {
                writeln!(text, "{}", paint.bad(&error.to_string()))?;
            }
            Err(error) => return Err(error),
        }
        let clear: &[u8] = if paint == Paint::plain() { b"" } else { b"\x1b[H\x1b[2J" };
        out.write_all(clear)?;
        out.write_all(&text)?;
        out.flush()?;
        tokio::time::sleep(WATCH).await;
    }
}

async fn once(client: &Client, args: &Args, out: &mut dyn Write, paint: Paint) -> Result<(), ClientError> {
    if args.reach.format == Format::Json {
        let state: serde_json::Value = client.get("/api/v1/state").await?;
        return json(out, &state);
    }
    let state: State = client.get("/api/v1/state").await?;
    let last: Adjustments = client.get(&format!("/api/v1/adjustments?limit={LAST}")).await?;
    let who: Clients = client.get(&format!("/api/v1/clients?limit={LAST}")).await?;
    screen(&state, &last.adjustments, args.all, paint, out)?;
    if !who.clients.is_empty() {
        writeln!(out, "\n{}", paint.head(&clients::title(&who, state.time)))?;
        clients::show(&who, "  ", out)?;
    }
    Ok(())
}

/// Writes the screen.
pub fn screen(
    state: &State,
    last: &[AdjustmentRow],
    all: bool,
    paint: Paint,
    out: &mut dyn Write,
) -> io::Result<()> {
    let time = state.time.rfc3339();
    let time = time.get(..19).unwrap_or(&time).replace('T', " ");
    writeln!(out, "{}", paint.head(&format!("======== rayguard status: {time} UTC ========")))?;
    head(state, paint, out)?;
    alerts(state, paint, out)?;
    pressure(&state.view.signals, all, paint, out)?;
    classes(&state.view, all, paint, out)?;
    changes(last, paint, out)
}

fn head(state: &State, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
    let view = &state.view;
    let limited = || view.classes.iter().filter(|class| class.treatment == Treatment::Limited);
    let shadowed: Vec<&str> =
        limited().filter(|class| class.mode == Mode::Shadow).map(|class| class.name.as_str()).collect();
    let mode = if shadowed.is_empty() {
        "enforcing".to_owned()
    } else if shadowed.len() == limited().count() {
        paint.warn("shadow: nothing is shed, only counted")
    } else {
        paint.warn(&format!("enforcing; in shadow: {}", shadowed.join(", ")))
    };
    let frozen = if view.frozen { paint.warn("; frozen: no limit moves") } else { String::new() };
    writeln!(
        out,
        "Mode    {mode}{frozen}; up {}, limit table {}, config {}, rayguard {}",
        length(state.uptime_s),
        view.table,
        printable(&state.config),
        printable(&state.version)
    )?;
    for listener in &state.listeners {
        writeln!(out, "Listen  {} {} -> {}", listener.kind, listener.listen, listener.upstream)?;
    }
    let ray = view.upstream_problem.as_ref().map_or_else(
        || "answers".to_owned(),
        |problem| paint.bad(upstream_words(&printable(problem)).trim_start_matches("Ray ")),
    );
    let version =
        state.ray.version.as_ref().map_or_else(String::new, |version| format!("{} ", printable(version)));
    let profile =
        if state.ray.says.is_empty() { String::new() } else { format!("; {}", printable(&state.ray.says)) };
    writeln!(out, "Ray     {version}{ray}{profile}")?;
    if let Some(problem) = &view.config_problem {
        let first = problem.lines().next().unwrap_or_default();
        writeln!(
            out,
            "Config  {}",
            paint.bad(&format!(
                "new configuration rejected; still using the previous one: {}",
                printable(first)
            ))
        )?;
    }
    if !state.awaits_restart.is_empty() {
        let parts = state.awaits_restart.join(", ");
        let line = format!("changed on disk, in effect after a restart only: {parts}");
        writeln!(out, "Config  {}", paint.warn(&line))?;
    }
    if view.events_lost > 0 {
        writeln!(out, "Log     {}", paint.bad(&format!("{} events are missing", view.events_lost)))?;
    }
    for pin in &view.pins {
        let held = format!(
            "{} {} at {}{} for {} more by {}: {}",
            pin.class,
            pin.limit.label(),
            number(pin.value),
            pin.limit.unit(),
            length(pin.left_s),
            printable(&pin.who),
            printable(&pin.why)
        );
        writeln!(out, "Pinned  {}", paint.warn(&held))?;
    }
    Ok(())
}

fn alerts(state: &State, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
    let firing = &state.view.alerts;
    if firing.is_empty() {
        return writeln!(out, "Alerts  none");
    }
    writeln!(out, "\n{}", paint.head(&format!("Alerts ({})", firing.len())))?;
    for alert in sorted(firing) {
        writeln!(out, "  {}", alert_line(alert, state.uptime_s, paint))?;
    }
    Ok(())
}

/// Worst first.
#[must_use]
pub fn sorted(alerts: &[Transition]) -> Vec<&Transition> {
    let mut sorted: Vec<&Transition> = alerts.iter().collect();
    sorted.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.since.cmp(&b.since)));
    sorted
}

/// One alert on one line.
#[must_use]
pub fn alert_line(alert: &Transition, uptime_s: f64, paint: Paint) -> String {
    let severity = match alert.severity {
        Severity::Critical => paint.bad("critical"),
        Severity::Warning => paint.warn("warning "),
        Severity::Info => "info    ".to_owned(),
    };
    format!(
        "{severity}  {}, since {} ago: {}",
        alert.key,
        length(uptime_s - alert.since.as_secs_f64()),
        printable(&alert.summary)
    )
}

/// Shown even at rest: what an operator looks for first. The page shows the same.
const ALWAYS: [&str; 6] =
    ["gcs_latency", "head_cpu", "head_memory", "pending_tasks", "submission_backlog", "dashboard_loop_lag"];

/// How a problem begins that all signals share ([`crate::core::signal::reading::Missing::NoPage`]).
const NO_PAGE: &str = "no page of Ray's metrics has been read yet";

/// How a problem ends whose page was read and has no such thing ([`crate::core::signal::reading::Missing::NotFound`]).
const NOT_FOUND: &str = "found in the scrape";

/// Readings that say something; the rest by name, and what is stale by its cause.
fn pressure(signals: &[SignalView], all: bool, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "\n{}",
        paint.head("Pressure (reading / target; above 1 limits that follow it are lowered)")
    )?;
    let width = signals.iter().map(|signal| signal.name.len()).max().unwrap_or(0);
    let telling = |signal: &&SignalView| {
        let loud = signal.pressure.is_some_and(|pressure| pressure >= 0.1);
        let fresh = signal.health == SignalHealth::Fresh;
        signal.value.is_some() && (all || ALWAYS.contains(&&*signal.name) || (fresh && loud))
    };
    for signal in signals.iter().filter(telling) {
        writeln!(out, "  {:<width$}  {}", signal.name, reading(signal, paint))?;
    }
    let names = |wanted: &dyn Fn(&SignalView) -> bool| -> Vec<&str> {
        signals.iter().filter(|signal| wanted(signal)).map(|signal| signal.name.as_str()).collect()
    };
    let quiet = names(&|signal| signal.health == SignalHealth::Fresh && !telling(&signal));
    if !quiet.is_empty() {
        list(&format!("below a tenth of the target ({}): ", quiet.len()), &quiet, out)?;
    }
    let remedy = |cause: &str| {
        if cause.starts_with(NO_PAGE) { "; set `metrics.targets`, or run `rayguard doctor`" } else { "" }
    };
    // What another version of Ray exports, or this one where it is configured to: nothing is wrong with it.
    let absent = |signal: &SignalView| !signal.followed && signal.problem.ends_with(NOT_FOUND);
    let is_stale = |signal: &SignalView| signal.health == SignalHealth::Stale && !absent(signal);
    let mut causes: Vec<&str> = Vec::new();
    for signal in signals.iter().filter(|signal| is_stale(signal)) {
        if !causes.contains(&signal.problem.as_str()) {
            causes.push(&signal.problem);
        }
    }
    for cause in causes {
        let stale = names(&|signal| is_stale(signal) && signal.problem == cause);
        let shown = if cause.is_empty() { "nothing has been read" } else { cause };
        let line = format!("STALE ({}): {}{}", stale.len(), printable(shown), remedy(cause));
        writeln!(out, "  {}", paint.warn(&line))?;
        list("  ", &stale, out)?;
    }
    let absent = names(&|signal| signal.health == SignalHealth::Stale && absent(signal));
    if !absent.is_empty() {
        list(&format!("not there, and no limit follows them ({}): ", absent.len()), &absent, out)?;
    }
    let silent = names(&|signal| signal.health == SignalHealth::Waiting && signal.value.is_none());
    if !silent.is_empty() {
        list("not read yet: ", &silent, out)?;
    }
    Ok(())
}

fn reading(signal: &SignalView, paint: Paint) -> String {
    let (Some(pressure), Some(value)) = (signal.pressure, signal.value) else {
        return printable(&signal.problem);
    };
    let follows = if signal.followed { "" } else { "; no limit follows it" };
    let line = format!(
        "{} {:>5.2}  {} of {} {}, {} old{follows}",
        bar(pressure),
        pressure,
        number(value),
        number(signal.target),
        signal.unit,
        length(signal.age_s.unwrap_or(0.0))
    );
    match signal.health {
        SignalHealth::Stale => paint.warn(&format!("{line}, STALE")),
        _ if pressure > 1.0 && signal.followed => paint.bad(&line),
        _ => line,
    }
}

/// Names after a beginning, in lines of a terminal's width.
fn list(beginning: &str, names: &[&str], out: &mut dyn Write) -> io::Result<()> {
    const WIDTH: usize = 100;
    let mut line = format!("  {beginning}");
    for (at, name) in names.iter().enumerate() {
        if line.len() + name.len() > WIDTH {
            writeln!(out, "{}", line.trim_end())?;
            "    ".clone_into(&mut line);
        }
        line.push_str(name);
        line.push_str(if at + 1 < names.len() { ", " } else { "" });
    }
    writeln!(out, "{line}")
}

/// Twelve places, the target at the eighth.
fn bar(pressure: f64) -> String {
    let full = (pressure * 8.0).round().clamp(0.0, 12.0);
    (0..12)
        .map(|at| match (f64::from(at) < full, at) {
            (true, _) => '#',
            (false, 8) => '|',
            (false, _) => '.',
        })
        .collect()
}

fn classes(view: &View, all: bool, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
    let classes = &view.classes;
    let backlog = view.signals.iter().find(|signal| signal.name == "submission_backlog");
    let counts_jobs = backlog.is_some_and(|signal| signal.health == SignalHealth::Fresh);
    let busy = |class: &ClassView| {
        class.offered_per_s >= 0.05
            || class.shared_per_s >= 0.05
            || class.in_flight > 0
            || class.waiting > 0
            || class.limits.iter().any(|limit| limit.pinned)
    };
    let mut shown: Vec<&ClassView> = classes.iter().filter(|class| all || busy(class)).collect();
    shown.sort_by(|a, b| {
        b.shed_per_s.total_cmp(&a.shed_per_s).then(b.offered_per_s.total_cmp(&a.offered_per_s))
    });
    writeln!(out, "\n{}", paint.head("Classes (requests per second, counted over the last ten seconds; in parentheses: shed in shadow mode only)"))?;
    if !shown.is_empty() {
        let header = [
            "  CLASS",
            "MODE",
            "REQUESTS",
            "ADMITTED",
            "SHED",
            "FAILED",
            "SHARED",
            "WAITING",
            "IN FLIGHT",
            "RATE LIMIT",
            "LATENCY/SLO",
            "LIMITED BY",
        ];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(shown.iter().map(|class| row(class, view.frozen, counts_jobs)));
        table(out, &(2..11), &rows)?;
    }
    let idle: Vec<&str> =
        classes.iter().filter(|class| !all && !busy(class)).map(|class| class.name.as_str()).collect();
    if !idle.is_empty() {
        list("idle: ", &idle, out)?;
    }
    Ok(())
}

fn row(class: &ClassView, frozen: bool, counts_jobs: bool) -> Vec<String> {
    let pinned = class.limits.iter().any(|limit| limit.pinned);
    let limit = |kind: LimitKind| {
        let limit = class.limits.iter().find(|limit| limit.limit == kind)?;
        Some(format!("{}{}", number(limit.value), kind.unit()))
    };
    let of = limit(LimitKind::InFlight).map_or_else(String::new, |limit| format!("/{limit}"));
    vec![
        format!("  {}", class.name),
        if class.treatment == Treatment::Limited {
            mode_words(class.mode, pinned, frozen)
        } else {
            class.treatment.label().to_owned()
        },
        format!("{:.1}", class.offered_per_s + class.shared_per_s),
        format!("{:.1}", class.admitted_per_s),
        // In shadow mode these were forwarded; the mode stands beside it.
        if class.shadow_shed_per_s > 0.0 {
            format!("({:.1})", class.shadow_shed_per_s)
        } else {
            format!("{:.1}", class.shed_per_s)
        },
        format!("{:.1}", class.failed_per_s),
        format!("{:.1}", class.shared_per_s),
        class.waiting.to_string(),
        format!("{}{of}", class.in_flight),
        limit(LimitKind::Rate).unwrap_or_else(|| "-".into()),
        class.slo_pressure.map_or_else(|| "-".into(), |pressure| format!("{pressure:.2}")),
        match class.held_by {
            None => "-".to_owned(),
            Some(HeldBy::Module) => format!("{}'s limit", class.module),
            Some(HeldBy::Process) => "modules' process".to_owned(),
            Some(HeldBy::Work) => "work in flight".to_owned(),
            Some(HeldBy::Backlog) if counts_jobs => "jobs not started".to_owned(),
            // Without that reading a few pass at once, and then one at a time (core/controller/backlog.rs).
            Some(HeldBy::Backlog) => format!("Ray's metrics not read: 1 per {} s", TRICKLE.as_secs()),
            Some(HeldBy::InFlight) => "in flight".to_owned(),
            Some(HeldBy::Rate) => "rate".to_owned(),
        },
    ]
}

fn changes(last: &[AdjustmentRow], paint: Paint, out: &mut dyn Write) -> io::Result<()> {
    if last.is_empty() {
        return writeln!(out, "\nNo limit has changed since the start.");
    }
    writeln!(out, "\n{}", paint.head("Last changes (rayguard log has them all)"))?;
    for change in last.iter().rev() {
        let time = change.time.rfc3339();
        writeln!(out, "  {}  {}", time.get(11..19).unwrap_or(&time), printable(&change.reason))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Overrides, Settings};
    use crate::core::controller::Controller;
    use crate::core::time::{Time, WallMs};
    use crate::runtime::ray_identity::RayView;
    use std::sync::Arc;

    /// A state of the defaults, before the first request.
    pub(in crate::cli) fn state() -> State {
        let settings = Settings::defaults(&Overrides::default()).unwrap();
        let modes = vec![crate::core::admission::table::Mode::Enforce; settings.policy.classes.len()];
        let controller = Controller::new(Arc::clone(&settings.policy), &modes, &[], Time::ZERO);
        State {
            version: "0.1.0".into(),
            config: "defaults".into(),
            time: WallMs(0),
            uptime_s: 7200.4,
            token_required: false,
            listeners: Vec::new(),
            awaits_restart: Vec::new(),
            leases: Vec::new(),
            ray: RayView::default(),
            view: controller.view(Time::ZERO),
        }
    }

    fn shown(state: &State, all: bool) -> String {
        let mut out = Vec::new();
        screen(state, &[], all, Paint::plain(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_quiet_proxy_fits_a_screen() {
        let screen = shown(&state(), false);
        assert!(screen.lines().count() < 30, "{screen}");
        for part in ["up 2 h 0 min", "Ray     answers", "Alerts  none", "idle: "] {
            assert!(screen.contains(part), "{part} is missing from\n{screen}");
        }
    }

    #[test]
    fn twenty_stale_readings_of_one_cause_are_one_matter() {
        let mut state = state();
        for signal in &mut state.view.signals {
            signal.health = SignalHealth::Stale;
            (signal.value, signal.pressure) = (Some(1.0), Some(0.5));
            signal.problem = "no connection".into();
        }
        let screen = shown(&state, false);
        assert_eq!(screen.matches("no connection").count(), 1, "{screen}");
        assert!(screen.lines().count() < 40 && screen.lines().all(|line| line.len() <= 110), "{screen}");
    }

    #[test]
    fn what_this_ray_does_not_export_is_no_trouble_unless_a_limit_follows_it() {
        let mut state = state();
        let absent = crate::core::signal::reading::Missing::NotFound { tried: "a".into() }.to_string();
        for signal in &mut state.view.signals {
            signal.health = SignalHealth::Stale;
            signal.problem.clone_from(&absent);
        }
        let spare = state.view.signals.iter().filter(|signal| !signal.followed).count();
        let missed = state.view.signals.len() - spare;
        let screen = shown(&state, false);
        assert!(spare > 10 && missed > 3, "{spare} {missed}");
        assert!(screen.contains(&format!("not there, and no limit follows them ({spare}): ")), "{screen}");
        assert!(screen.contains(&format!("STALE ({missed}): none of a found in the scrape")), "{screen}");
    }

    #[test]
    fn before_any_page_one_line_says_so_with_a_remedy() {
        let mut state = state();
        for signal in &mut state.view.signals {
            signal.health = SignalHealth::Stale;
            signal.problem = crate::core::signal::reading::Missing::NoPage { why: None }.to_string();
        }
        let screen = shown(&state, false);
        let all = state.view.signals.len();
        let line = format!(
            "STALE ({all}): no page of Ray's metrics has been read yet; set `metrics.targets`, or run \
             `rayguard doctor`"
        );
        assert!(screen.contains(&line), "{screen}");
    }

    #[test]
    fn a_class_in_shadow_mode_is_named_though_it_is_pinned_too() {
        let mut state = state();
        let class = state.view.classes.iter_mut().find(|class| !class.limits.is_empty()).unwrap();
        class.mode = Mode::Shadow;
        class.limits[0].pinned = true;
        let name = class.name.clone();
        let screen = shown(&state, false);
        assert!(screen.contains(&format!("enforcing; in shadow: {name};")), "{screen}");
        assert!(screen.contains("shadow, pinned"), "{screen}");
    }

    #[test]
    fn all_shows_every_class_with_its_limits() {
        let state = state();
        let screen = shown(&state, true);
        for class in &state.view.classes {
            assert!(screen.lines().any(|line| line.trim_start().starts_with(&class.name)), "{}", class.name);
        }
    }

    #[test]
    fn what_is_wrong_stands_at_the_top() {
        let mut state = state();
        state.view.upstream_problem = Some("connection refused".into());
        state.view.config_problem = Some("2 problems\nmore".into());
        state.view.frozen = true;
        let screen = shown(&state, false);
        let top: Vec<&str> = screen.lines().take(6).collect();
        for part in
            ["is unreachable: connection refused", "still using the previous one: 2 problems", "frozen"]
        {
            assert!(top.iter().any(|line| line.contains(part)), "{part} is missing from\n{screen}");
        }
        assert!(!screen.contains("more"));
    }

    #[test]
    fn nothing_that_is_read_can_drive_the_terminal() {
        let mut state = state();
        state.view.signals[0].problem = "\u{1b}[2J".into();
        assert!(!shown(&state, true).contains('\u{1b}'));
    }
}
