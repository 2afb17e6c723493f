//! `rayguard demo`: the whole of it, without a Ray.
//!
//! Two emulated Ray heads of the same kind, driven by the simulator's plant as it was fitted to
//! recorded overloads of a real one. The same load goes to both at the same time: to one
//! directly, to the other through rayguard. It is calm, then somebody polls every task of the
//! cluster while a script lists all jobs in a loop, then it is calm again. What the polite
//! clients got is the whole point.

use crate::admin;
use crate::config::{Overrides, Settings};
use crate::core::controller::view::{ClassView, View};
use crate::core::event::{Event, LimitKind};
use crate::core::policy::Treatment;
use crate::core::request::catalogue::Surface;
use crate::core::time::Time;
use crate::lab::emulator::{Emulator, EmulatorConfig, Running};
use crate::lab::load::plan::Plan;
use crate::lab::load::report::{Figures, Report};
use crate::lab::load::{self, report::Sample};
use crate::observe::adjustment_log::{self, AdjustmentLog, Writer};
use crate::observe::notify::{self, Notifier};
use crate::proxy::clock::Clock;
use crate::proxy::listen;
use crate::proxy::tasks::Tasks;
use crate::proxy::upstream::Address;
use crate::runtime::app::{App, Outlets};
use crate::runtime::reload;
use crate::runtime::watch;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The load, as `rayguard load` would read it from a file.
const PLAN: &str = include_str!("demo.toml");

/// Show what it does: the same flood against two emulated Ray heads, one behind rayguard.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Print a line every two seconds instead of a live view.
    #[arg(long)]
    pub plain: bool,
    /// Keep the adjustment log in this directory.
    #[arg(long)]
    pub keep: Option<std::path::PathBuf>,
}

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A port, a file, or the terminal.
    #[error("the demo cannot run: {0}")]
    System(#[from] std::io::Error),
    /// The built-in plan or settings are wrong, which a test rules out.
    #[error("the demo's own settings are wrong: {0}")]
    Settings(String),
}

/// Carries out the command.
pub fn run(args: &Args) -> Result<u8, DemoError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(show(args))
}

async fn show(args: &Args) -> Result<u8, DemoError> {
    let plan: Plan = toml::from_str(PLAN).map_err(|error| DemoError::Settings(error.to_string()))?;
    plan.check().map_err(|error| DemoError::Settings(error.to_string()))?;
    let bare = Emulator::start(busy_head()).await?;
    let head = Emulator::start(busy_head()).await?;
    let dir = args
        .keep
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("rayguard-demo-{}", std::process::id())));
    let (app, proxy, page) = start_app(&head, &dir).await?;

    let clock = app.clock;
    let live = std::io::stdout().is_terminal() && !args.plain;
    let screen = Screen { live, clock, plan: plan.clone(), drawn: RefCell::default() };
    screen.open(&page)?;
    let direct = spawn_load(&plan, bare.dashboard, &app.tasks);
    let guarded = spawn_load(&plan, proxy, &app.tasks);
    let start = clock.now();
    let mut every =
        tokio::time::interval(if screen.live { Duration::from_millis(500) } else { Duration::from_secs(2) });
    tokio::pin!(direct);
    tokio::pin!(guarded);
    let (mut without, mut with) = (None, None);
    while without.is_none() || with.is_none() {
        tokio::select! {
            samples = &mut direct, if without.is_none() => without = samples.ok(),
            samples = &mut guarded, if with.is_none() => with = samples.ok(),
            _ = every.tick() => {
                let elapsed = clock.now().since(start).as_secs_f64();
                screen.draw(elapsed, &app, &bare, &head)?;
            }
        }
    }
    let without = Report::new(&plan, &without.unwrap_or_default());
    let with = Report::new(&plan, &with.unwrap_or_default());
    screen.close(&app, &without, &with, args.keep.as_deref())?;
    app.tasks.close();
    if args.keep.is_none() {
        // The demo's own directory, made a minute ago; that it stays if it cannot go is no harm.
        let _ = std::fs::remove_dir_all(&dir);
    }
    Ok(0)
}

/// A head with a day's history: 119 finished jobs, 1,053 tasks.
fn busy_head() -> EmulatorConfig {
    let mut config = EmulatorConfig::default();
    config.spec.jobs.listed = 119;
    config
}

/// The app as `rayguard run` starts it, in front of an emulated head.
async fn start_app(
    head: &Running,
    dir: &std::path::Path,
) -> Result<(Arc<App>, SocketAddr, String), DemoError> {
    // Bound before the settings are made, so that `rayguard status` shows the port.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = listener.local_addr()?;
    let text = format!(
        "upstream = \"http://{}\"\nlisten = \"{proxy}\"\nstate_dir = \"{}\"\n[metrics]\ntargets = [\"http://{}/metrics\", \"http://{}/metrics\"]\n",
        head.dashboard,
        dir.display(),
        head.metrics,
        head.dashboard_metrics
    );
    let settings = crate::config::parse(&text, "the demo", &Overrides::default())
        .map_err(|problems| DemoError::Settings(problems.to_string()))?;
    let settings: Arc<Settings> = Arc::new(settings);
    let tasks = Tasks::default();
    let clock = Clock::start();
    let (adjustment_log, thread) = {
        let options = adjustment_log::Options {
            dir: dir.join("adjustment-log"),
            file_bytes_max: settings.adjustment_log.file_bytes_max,
            files_max: settings.adjustment_log.files_max,
        };
        let (writer, problem) = Writer::open(options);
        if let Some(problem) = problem {
            return Err(problem.into());
        }
        adjustment_log::channel(writer, 4096)
    };
    std::thread::Builder::new().name("record".into()).spawn(move || thread.run())?;
    let (app, notifier) = new_app(&settings, clock, &tasks, adjustment_log);
    let state = app
        .listener_state(Surface::Dashboard, Address::Tcp(head.dashboard.to_string()))
        .map_err(|faults| DemoError::Settings(format!("{faults:?}")))?;
    tasks.spawn(listen::serve(listener, state, tasks.clone(), listen::ListenerLimits::default()));
    watch::start(&app);
    crate::runtime::head_version::start(&app);
    let any = crate::config::settings::Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let admin = admin::listen::Listener::bind(&any).await?;
    let page = format!("http://{}/", admin.address());
    let access = admin::access::Access::new(None, Vec::new());
    let reloader = reload::start(&app, None, Vec::new());
    admin::start(&app, admin, access, notifier, reloader);
    Ok((app, proxy, page))
}

fn new_app(
    settings: &Arc<Settings>,
    clock: Clock,
    tasks: &Tasks,
    adjustment_log: AdjustmentLog,
) -> (Arc<App>, Notifier) {
    let (alerts, transitions) = mpsc::channel(64);
    let options =
        notify::Options { receivers: Vec::new(), repeat: settings.alerts.repeat, runbook: None, page: None };
    let notifier = notify::start(tasks, clock, options, transitions);
    let outlets = Outlets { adjustment_log, alerts };
    (App::new(Arc::clone(settings), &[], [1, 2], clock, tasks.clone(), outlets), notifier)
}

/// Sends the whole plan and hands its samples over at the end.
fn spawn_load(plan: &Plan, target: SocketAddr, tasks: &Tasks) -> tokio::sync::oneshot::Receiver<Vec<Sample>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let plan = plan.clone();
    tasks.spawn(async move {
        // When the demo is interrupted, the receiver may be gone.
        let _ = sender.send(load::send(&plan, target).await);
    });
    receiver
}

/// What is shown while it runs.
struct Screen {
    live: bool,
    clock: Clock,
    plan: Plan,
    /// Totals of the last drawings, for rates of that second and not of an average.
    drawn: RefCell<VecDeque<(Time, Vec<Totals>)>>,
}

/// Of one class since the start.
#[derive(Clone, Copy, Default)]
struct Totals {
    offered: u64,
    admitted: u64,
    shed: u64,
}

/// Of one class, per second over the last second.
#[derive(Clone, Copy, Default)]
struct Rates {
    offered: f64,
    admitted: f64,
    shed: f64,
}

impl Screen {
    fn open(&self, page: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "rayguard demo: the same load on two emulated Ray heads, one behind rayguard, one without it."
        )?;
        writeln!(
            out,
            "Polite: operators poll job status, one lists actors. From second 8 to 24 one client polls"
        )?;
        writeln!(out, "/api/v0/tasks 20 times a second and 32 scripts list all jobs in a loop.")?;
        writeln!(out, "The admin page, while the demo runs: {page}\n")?;
        if self.live {
            write!(out, "\x1b[?25l")?;
        }
        out.flush()
    }

    fn phase(elapsed: f64) -> &'static str {
        match elapsed {
            at if at < 8.0 => "calm",
            at if at < 24.0 => "FLOOD",
            _ => "calm again",
        }
    }

    fn draw(&self, elapsed: f64, app: &App, bare: &Running, head: &Running) -> std::io::Result<()> {
        let view = app.view();
        let rates = self.rates(&view);
        let mut out = std::io::stdout().lock();
        if self.live {
            let text = self.page(elapsed, &view, &rates, app, bare, head);
            write!(out, "\x1b[s{text}\x1b[u")?;
        } else {
            writeln!(out, "{}", Self::line(elapsed, &view, &rates, bare, head))?;
        }
        out.flush()
    }

    /// Class by class.
    fn rates(&self, view: &View) -> Vec<Rates> {
        let totals = view.classes.iter();
        let totals =
            totals.map(|class| Totals { offered: class.offered, admitted: class.admitted, shed: class.shed });
        let (now, totals) = (self.clock.now(), totals.collect::<Vec<_>>());
        let mut drawn = self.drawn.borrow_mut();
        // The latest that is a second old; at the start, the oldest.
        while drawn.get(1).is_some_and(|(at, _)| now.since(*at) >= Duration::from_secs(1)) {
            drawn.pop_front();
        }
        let rates = drawn.front().map(|(at, before)| {
            let elapsed = now.since(*at).as_secs_f64().max(1e-3);
            let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed;
            let of = |(now, before): (&Totals, &Totals)| Rates {
                offered: per_s(now.offered, before.offered),
                admitted: per_s(now.admitted, before.admitted),
                shed: per_s(now.shed, before.shed),
            };
            totals.iter().zip(before).map(of).collect()
        });
        let rates = rates.unwrap_or_else(|| vec![Rates::default(); totals.len()]);
        drawn.push_back((now, totals));
        rates
    }

    fn line(elapsed: f64, view: &View, rates: &[Rates], bare: &Running, head: &Running) -> String {
        let class = |name: &str| view.classes.iter().find(|class| class.name == name);
        let shed: f64 = rates.iter().map(|class| class.shed).sum();
        let admitted: f64 = rates.iter().map(|class| class.admitted).sum();
        let limit =
            |name: &str| class(name).and_then(|class| class.limits.first()).map_or(0.0, |limit| limit.value);
        format!(
            "{elapsed:5.1} s  {:<10}  admitted {admitted:6.1}/s  shed {shed:5.1}/s  state-heavy limit \
                {:4.1}  job-list limit {:4.1}  in Ray: without {:>4}, with rayguard {:>3}",
            Self::phase(elapsed),
            limit("state-heavy"),
            limit("job-list"),
            in_head(bare, "StateHead") + in_head(bare, "JobHead"),
            in_head(head, "StateHead") + in_head(head, "JobHead"),
        )
    }

    fn page(
        &self,
        elapsed: f64,
        view: &View,
        rates: &[Rates],
        app: &App,
        bare: &Running,
        head: &Running,
    ) -> String {
        let mut page = String::new();
        let total = self.plan.duration_s;
        // Writing to a String cannot fail.
        let _ = writeln!(page, "\x1b[K{:>5.1} / {total:.0} s   {}", elapsed.min(total), Self::phase(elapsed));
        let _ = writeln!(page, "\x1b[K");
        let _ = writeln!(page, "\x1b[Krequests in Ray       without  with rayguard");
        for module in ["JobHead", "StateHead"] {
            let _ = writeln!(
                page,
                "\x1b[K  {module:<14} {:>10} {:>14}",
                in_head(bare, module),
                in_head(head, module)
            );
        }
        let _ = writeln!(page, "\x1b[K");
        let _ = writeln!(page, "\x1b[Kpressure (1.0 = target)");
        for signal in view.signals.iter().filter(|signal| signal.pressure.is_some()).take(4) {
            let pressure = signal.pressure.unwrap_or(0.0);
            let _ = writeln!(page, "\x1b[K  {:<20} {} {pressure:4.2}", signal.name, bar(pressure / 2.0, 20));
        }
        let _ = writeln!(page, "\x1b[K");
        let _ =
            writeln!(page, "\x1b[Kclass           limit  in flight  waiting  offered/s  admitted/s   shed/s");
        let shown = |class: &ClassView| class.offered > 0 && class.treatment == Treatment::Limited;
        for (class, rates) in view.classes.iter().zip(rates).filter(|(class, _)| shown(class)) {
            let limit = class.limits.iter().find(|limit| limit.limit == LimitKind::InFlight);
            let _ = writeln!(
                page,
                "\x1b[K  {:<13} {:>5.1} {:>10} {:>8} {:>10.1} {:>11.1} {:>8.1}",
                class.name,
                limit.map_or(0.0, |limit| limit.value),
                class.in_flight,
                class.waiting,
                rates.offered,
                rates.admitted,
                rates.shed
            );
        }
        let _ = writeln!(page, "\x1b[K");
        let _ = writeln!(page, "\x1b[Kwhy (latest first)");
        for sentence in reasons(app, 3) {
            let _ = writeln!(page, "\x1b[K  {}", sentence.chars().take(110).collect::<String>());
        }
        let _ = write!(page, "\x1b[J");
        page
    }

    fn close(
        &self,
        app: &App,
        without: &Report,
        with: &Report,
        kept: Option<&std::path::Path>,
    ) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.live {
            write!(out, "\x1b[J\x1b[?25h")?;
        }
        writeln!(out, "\nPolite clients during the flood          answered in time        p99")?;
        for stream in self.plan.streams.iter().filter(|stream| !stream.name.starts_with("flood")) {
            for (label, report) in [("without", without), ("with rayguard", with)] {
                let figures = report.windows.iter().find(|window| window.name == "flood");
                let figures = figures.and_then(|window| window.streams.get(&stream.name));
                writeln!(out, "  {:<22} {label:<14} {}", stream.name, outcome(figures))?;
            }
        }
        let mut said = reasons(app, 6);
        said.reverse();
        // Admission protects under the limits as they are; they move only where they have to.
        let heading =
            if said.is_empty() { "No limit had to be moved." } else { "How limits were moved, and why:" };
        writeln!(out, "\n{heading}")?;
        for sentence in said {
            writeln!(out, "  {sentence}")?;
        }
        let shed: u64 = app.view().classes.iter().map(|class| class.shed).sum();
        writeln!(out, "\n{shed} requests were shed, each with a reason and a time to retry.")?;
        if let Some(dir) = kept {
            writeln!(
                out,
                "The adjustment log: {}",
                dir.join("adjustment-log").join(adjustment_log::FILE_NAME).display()
            )?;
        }
        writeln!(out, "Elapsed: {:.0} s.", self.clock.now().as_secs_f64())?;
        out.flush()
    }
}

fn outcome(figures: Option<&Figures>) -> String {
    figures.map_or_else(
        || "nothing was sent".to_owned(),
        |figures| {
            let p99 = figures.p99_ms.map_or_else(|| "-".to_owned(), |p99| format!("{p99:.0} ms"));
            format!("{:>14.1} % {p99:>12}", figures.in_time_share * 100.0)
        },
    )
}

fn in_head(head: &Running, module: &str) -> usize {
    let (under_way, waiting) = head.module_in_flight(module);
    under_way as usize + waiting
}

/// The latest reasons, newest first.
fn reasons(app: &App, count: usize) -> Vec<String> {
    let entries = app.recent(None);
    let said = entries.iter().rev().filter_map(|entry| match &entry.event {
        Event::Adjustment(adjustment) => Some(adjustment.reason.clone()),
        _ => None,
    });
    said.take(count).collect()
}

fn bar(share: f64, width: usize) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1")]
    let filled = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("{}{}", "#".repeat(filled), ".".repeat(width - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_plan_is_sound_and_under_two_minutes() {
        let plan: Plan = toml::from_str(PLAN).unwrap();
        plan.check().unwrap();
        assert!(plan.duration_s < 100.0);
        assert!(plan.streams.iter().any(|stream| stream.name.starts_with("flood")));
    }
}
