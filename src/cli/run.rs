//! `rayguard run`: guard a Ray head.

use crate::admin;
use crate::cli::config_file::ConfigFile;
use crate::config::quantity::{Bytes, Length};
use crate::config::{self, Overrides, Settings, settings};
use crate::core::admission::table::Mode;
use crate::core::controller::{ClassReading, LastGood, read_proxy};
use crate::core::event::Event;
use crate::core::request::catalogue::Surface;
use crate::core::request::classify::RouteError;
use crate::observe::adjustment_log::{self, AdjustmentLog, Writer};
use crate::observe::discover;
use crate::observe::fetch;
use crate::observe::notify;
use crate::observe::trace_writer;
use crate::proxy::clock::Clock;
use crate::proxy::cores::Cores;
use crate::proxy::listen::{self, Inherited, Listener};
use crate::proxy::ratelimit;
use crate::proxy::tasks::Tasks;
use crate::proxy::tls::{Originator, Renew, Terminator, TlsError};
use crate::proxy::upstream::Address;
use crate::replicas::Replica;
use crate::runtime::app::{App, Outlets};
use crate::runtime::head_version;
use crate::runtime::history::HistoryFiles;
use crate::runtime::lock::{self, Lock, LockError};
use crate::runtime::reload::{self, Source};
use crate::runtime::secret::{self, SecretError};
use crate::runtime::shutdown::StopSignals;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Run the proxy in front of a Ray head.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// Configuration file.
    #[command(flatten)]
    pub config: ConfigFile,
    /// URL of Ray's dashboard, for example http://127.0.0.1:8265.
    #[arg(long)]
    pub upstream: Option<String>,
    /// Address to listen on, for example 127.0.0.1:8266.
    #[arg(long)]
    pub listen: Option<String>,
    /// URL of a Prometheus server that scrapes Ray, for example http://127.0.0.1:9090.
    #[arg(long)]
    pub prometheus: Option<String>,
    /// Directory of the adjustment log and the last good limits.
    #[arg(long)]
    pub state_dir: Option<String>,
    /// Shadow mode: decide and log, but shed nothing.
    #[arg(long)]
    pub shadow: bool,
    /// Write a trace of requests (client number, class, time, outcome), signals and limits, for
    /// `rayguard simulate --trace` and `rayguard tune`; no address, credential, path or body.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Maximum size of the trace; the newest part is kept, in FILE and FILE.1.
    #[arg(long, value_name = "SIZE", default_value = "64 MiB", requires = "record")]
    pub record_max: Option<Bytes>,
}

/// Writes a traffic trace for a while: `run --shadow --record`, with an end.
#[derive(clap::Args, Clone, Debug)]
pub struct RecordArgs {
    /// File to write the trace to. An existing file is kept, and the trace gets the time in its name.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Duration, for example 10m. Default: until SIGINT or SIGTERM.
    #[arg(long = "for", value_name = "TIME")]
    pub length: Option<Length>,
    /// Maximum size of the trace; the newest part is kept, in FILE and FILE.1.
    #[arg(long, value_name = "SIZE", default_value_t = Bytes(trace_writer::BYTES_DEFAULT))]
    pub max: Bytes,
    /// Enforce limits, instead of only counting what would have been shed.
    #[arg(long)]
    pub enforce: bool,
    /// Configuration file. Without one: the defaults, and Ray as found on this host.
    #[arg(long, short)]
    pub config: Option<PathBuf>,
    /// URL of Ray's dashboard, for example http://127.0.0.1:8265.
    #[arg(long)]
    pub upstream: Option<String>,
    /// Address to listen on, for example 127.0.0.1:8266.
    #[arg(long)]
    pub listen: Option<String>,
}

impl From<RecordArgs> for Args {
    fn from(args: RecordArgs) -> Args {
        Args {
            config: args.config.into(),
            upstream: args.upstream,
            listen: args.listen,
            shadow: !args.enforce,
            record: Some(args.file),
            record_max: Some(args.max),
            ..Args::default()
        }
    }
}

/// A trace that was asked for.
#[derive(Clone, Debug)]
struct TraceTarget {
    path: PathBuf,
    bytes_max: u64,
}

/// Why the app cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A listener's address is taken or not ours.
    #[error(
        "cannot listen on {address}: {}",
        why_not_bound(source, "free the port or choose another with --listen")
    )]
    Listen {
        /// The address.
        address: String,
        /// What the OS says.
        source: std::io::Error,
    },
    /// A receiver's secret address is none.
    #[error("the secret address of an alert receiver is not a URL; it must begin with http:// or https://")]
    Receiver,
    /// The admin listener's address is taken or not ours.
    #[error(
        "cannot listen on {address} (admin): {}",
        why_not_bound(source, "free the port, or set `admin.listen` to another or to \"off\"")
    )]
    Admin {
        /// The address.
        address: String,
        /// What the OS says.
        source: std::io::Error,
    },
    /// The rate-limit service's address is taken or not ours.
    #[error(
        "cannot listen on {address} for Envoys: {}",
        why_not_bound(source, "free the port, or set `ratelimit_service.listen` to another")
    )]
    Ratelimit {
        /// The address.
        address: String,
        /// What the OS says.
        source: std::io::Error,
    },
    /// A route cannot work.
    #[error("{}", faults.iter().map(|fault| fault.problem.to_string()).collect::<Vec<_>>().join("\n"))]
    Routes {
        /// What is wrong with each.
        faults: Vec<RouteError>,
    },
    /// Another process writes there.
    #[error(transparent)]
    State(#[from] LockError),
    /// A secret cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The store that replicas share.
    #[error(transparent)]
    Store(#[from] crate::replicas::store::StoreError),
    /// The OS refuses something we cannot do without.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// TLS cannot be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The trace cannot be begun.
    #[error("cannot record to {}: {source}; choose a file in a writable directory", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What the OS says.
        source: std::io::Error,
    },
    /// The trace may take too little.
    #[error("a trace of at most {0} bytes is too small to be useful; allow 1 MiB or more")]
    RecordMax(u64),
}

/// Why an address could not be listened on, with a remedy.
pub(super) fn why_not_bound(error: &std::io::Error, remedy: &str) -> String {
    if error.kind() == std::io::ErrorKind::AddrNotAvailable {
        "this is not an address of this host; use one of its addresses, or 0.0.0.0".to_owned()
    } else {
        format!("{error}; {remedy}")
    }
}

/// Carries out `record`.
pub fn record(args: RecordArgs) -> Result<u8, RunError> {
    let length = args.length.map(|length| length.0);
    run_for(&args.into(), length, |_| {})
}

/// Carries out the command.
pub fn run(args: &Args) -> Result<u8, RunError> {
    run_then(args, |_| {})
}

/// The same, and calls `ready` once every listener is open.
pub fn run_then(args: &Args, ready: impl FnOnce(&Settings)) -> Result<u8, RunError> {
    run_for(args, None, ready)
}

/// What the command line and its file come to.
pub fn settings(args: &Args) -> Result<Settings, RunError> {
    let overrides = overrides(args);
    Ok(match args.config.path() {
        Some(path) => config::load(path, &overrides)?,
        None => Settings::defaults(&overrides).map_err(config::Error::from)?,
    })
}

fn overrides(args: &Args) -> Overrides {
    Overrides {
        upstream: args.upstream.clone(),
        listen: args.listen.clone(),
        mode: args.shadow.then_some(Mode::Shadow),
        prometheus: args.prometheus.clone(),
        state_dir: args.state_dir.clone(),
    }
}

fn run_for(args: &Args, length: Option<Duration>, ready: impl FnOnce(&Settings)) -> Result<u8, RunError> {
    let bytes_max = args.record_max.map_or(trace_writer::BYTES_DEFAULT, |max| max.0);
    if bytes_max < trace_writer::BYTES_MIN {
        return Err(RunError::RecordMax(bytes_max));
    }
    let trace = args.record.clone().map(|path| TraceTarget { path, bytes_max });
    let (settings, overrides) = (settings(args)?, overrides(args));
    crate::observe::log::start(&settings.log);
    let cores = Cores::start(cores_wanted())?;
    let tasks = Tasks::over(cores.handles());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let source = args.config.path().map(|path| Source { path: path.to_owned(), overrides });
    runtime.block_on(app(Arc::new(settings), source, inherited(), trace, length, ready, tasks))
}

/// Cores for the proxy. One forwards more requests than any head answers; a few more keep a TLS
/// handshake from holding up the next client.
const CORES_MAX: usize = 4;

/// As many threads for connections as there are cores, within reason; `TOKIO_WORKER_THREADS` asks
/// for another number. A single one is the main runtime itself, which needs none of what several share.
#[expect(clippy::disallowed_methods, reason = "the environment is read by the command line")]
fn cores_wanted() -> usize {
    let asked = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|asked| asked.parse().ok());
    let there = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match asked.unwrap_or(there.min(CORES_MAX)) {
        1 => 0,
        wanted => wanted,
    }
}

/// Listening sockets that the service manager has opened and keeps open (systemd's `LISTEN_FDS`):
/// connections wait in them while one process ends and the next begins, and none is refused.
fn inherited() -> Vec<Inherited> {
    let mut handed = listenfd::ListenFd::from_env();
    (0..handed.len())
        .filter_map(|place| match handed.take_tcp_listener(place) {
            Ok(socket) => socket.map(Inherited::Tcp),
            Err(_) => handed.take_unix_listener(place).ok().flatten().map(Inherited::Unix),
        })
        .collect()
}

/// Runs until a signal comes, or for so long.
async fn app(
    settings: Arc<Settings>,
    source: Option<Source>,
    inherited: Vec<Inherited>,
    trace: Option<TraceTarget>,
    length: Option<Duration>,
    ready: impl FnOnce(&Settings),
    tasks: Tasks,
) -> Result<u8, RunError> {
    let clock = Clock::start();
    let mut stop_signals = StopSignals::install()?;
    let _locks = lock_state(&settings)?;
    let state = State::of(&settings.state_dir);
    let known = settings.policy.history.then(|| HistoryFiles::of(&settings.state_dir));
    let key = known.as_ref().map_or_else(random_key, |known| known.key(random_key()));
    let (adjustment_log, writing) = start_adjustment_log(&settings)?;
    let (alerts, transitions) = mpsc::channel(256);
    let run = format!("{:x}", clock.wall().0);
    let app = App::new(
        Arc::clone(&settings),
        &state.load(),
        key,
        clock,
        tasks.clone(),
        Outlets { adjustment_log, alerts },
    );
    if let Some(token) = secret::rays_token(&settings)? {
        app.know_rays_token(token);
    }
    let notifier = notify::start(&tasks, clock, whom_to_tell(&settings)?, transitions);
    let told = Arc::downgrade(&app);
    notifier.say_what_is(move |key| {
        let alerts = told.upgrade()?.view().alerts;
        alerts.into_iter().find(|alert| alert.key == key).map(|alert| alert.summary)
    });
    app.note_start(&run);
    let replica = match &settings.replicas {
        Some(replicas) => Some(join(&app, replicas, &run).await?),
        None => None,
    };
    if let Some(known) = &known {
        known.load(&app);
        known.keep(&app);
    }
    let (listeners, mut certificates) = bind(&settings, inherited).await?;
    let ratelimit = bind_ratelimit(&settings, &mut certificates).await?;
    let ways = settings.listeners.iter().map(leads_to).collect::<Result<Vec<Address>, TlsError>>()?;
    for way in &ways {
        if let Address::Tls(_, originator) = way {
            certificates.push(Arc::new(originator.clone()));
        }
    }
    let admin = bind_admin(&settings).await?;
    let reloader = reload::start(&app, source, certificates);
    let trace = trace.map(|trace| start_trace(&app, &trace)).transpose()?;
    for ((listener, spec), way) in listeners.into_iter().zip(&settings.listeners).zip(ways) {
        let state = app.listener_state(spec.surface, way).map_err(|faults| RunError::Routes { faults })?;
        tracing::info!(
            address = %spec.address,
            kind = crate::proxy::handle::surface_name(spec.surface),
            upstream = %spec.upstream.authority(),
            "listening"
        );
        tasks.spawn(listen::serve(listener, state, tasks.clone(), (&settings.http).into()));
    }
    if let Some((listener, spec)) = ratelimit {
        let nowhere = Address::Tcp(settings.upstream.authority());
        let state =
            app.listener_state(spec.surface, nowhere).map_err(|faults| RunError::Routes { faults })?;
        tracing::info!(address = %spec.listen, domain = &*spec.domain, "rate-limit service for Envoys");
        let service = ratelimit::Service::start(state, Arc::clone(&spec.domain), spec.permit_max);
        tasks.spawn(listen::serve_ratelimit(listener, service, tasks.clone(), (&settings.http).into()));
    }
    if let Some((listener, access)) = admin {
        tracing::info!(address = %listener.address(), "admin page, API and metrics");
        admin::start(&app, listener, access, notifier, reloader);
    }
    if let Some(replica) = replica {
        replica.start();
    }
    crate::runtime::watch::start(&app);
    head_version::start(&app);
    say_whether_ray_is_there(&app);
    ready(&settings);
    state.keep(&app);
    let signal = match length {
        None => stop_signals.first().await,
        Some(length) => tokio::select! {
            signal = stop_signals.first() => signal,
            () = tokio::time::sleep(length) => "the trace has reached its duration",
        },
    };
    let before = Progress::of(&app);
    tracing::info!(
        signal,
        "draining: up to {}, {} in progress, {} waiting",
        Length(settings.http.drain),
        requests(before.in_flight),
        before.waiting
    );
    app.note(Event::Stop { reason: signal.to_owned() });
    state.save(&app.last_good());
    if let Some(known) = &known {
        known.save(&app);
    }
    tasks.close();
    let drained = tasks.drain(settings.http.drain).await;
    if !drained {
        tracing::warn!(left = tasks.running(), "some requests did not finish within http.drain");
    }
    let after = Progress::of(&app);
    tracing::info!(
        "stopped: {} finished, {} shed while draining",
        requests(after.ended.saturating_sub(before.ended)),
        after.shed.saturating_sub(before.shed)
    );
    app.stop_trace();
    if let Some(writing) = trace {
        if let Ok(tally) = writing.join() {
            tracing::info!(requests = tally.exchanges, lost = tally.lost, "traffic trace closed");
        } else {
            tracing::error!("the traffic trace may be incomplete: its writer failed");
        }
    }
    drop(app);
    // Ends when the last sender is gone; exchanges that did not finish may still hold one.
    if drained && writing.join().is_err() {
        tracing::error!("the adjustment log may be incomplete: its writer failed");
    }
    Ok(0)
}

/// How far requests are.
struct Progress {
    in_flight: u64,
    waiting: u64,
    ended: u64,
    shed: u64,
}

impl Progress {
    fn of(app: &App) -> Progress {
        let proxy = app.proxy();
        let read = read_proxy(&proxy.admission, proxy.policy.classes.len(), app.clock.now());
        let sum = |of: fn(&ClassReading) -> u64| read.iter().map(of).sum();
        Progress {
            in_flight: sum(|class| u64::from(class.in_flight)),
            waiting: sum(|class| u64::from(class.waiting)),
            ended: sum(|class| class.counts.finished()),
            shed: sum(|class| class.counts.shed_all()),
        }
    }
}

/// `1 request`, `3 requests`.
fn requests(count: u64) -> String {
    if count == 1 { "1 request".to_owned() } else { format!("{count} requests") }
}

/// Says at once what an operator who mistyped an address needs to know. It is no reason to end:
/// beside a head that is still starting, the proxy must be there first.
fn say_whether_ray_is_there(app: &Arc<App>) {
    let settings = app.settings();
    // Where only applications are proxied there is no dashboard to expect.
    if settings.listeners.iter().all(|listener| listener.surface != Surface::Dashboard) {
        return;
    }
    let tasks = app.tasks.clone();
    let app = Arc::clone(app);
    tasks.spawn_until_closed(async move {
        let url = settings.upstream.url();
        let (Ok(client), Ok(dashboard)) = (fetch::client(), url::Url::parse(&url)) else { return };
        let token = app.rays_token();
        match discover::version(&client, &dashboard, token).await {
            Ok(version) => tracing::info!(ray = version.ray_version, dashboard = url, "found Ray"),
            // Said where it is asked again and again.
            Err(fault) if head_version::withheld(&fault, token.is_some()).is_some() => {}
            Err(fault) => tracing::error!(
                "no Ray dashboard answers at {url} ({fault}); start one with `ray start --head`, or set \
                    its address with --upstream. rayguard keeps running and protects it as soon as it answers"
            ),
        }
    });
}

/// Becomes one of several replicas, with leases in hand before the first request comes.
async fn join(app: &Arc<App>, replicas: &settings::Replicas, run: &str) -> Result<Replica, RunError> {
    let password = replicas.password.as_ref();
    let password =
        password.map(|password| secret::read(password, "password of the shared store")).transpose()?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "rayguard",
        host => host,
    };
    let mut replica = Replica::new(app, replicas, password.as_deref(), host, run)?;
    replica.begin().await;
    Ok(replica)
}

/// Keeps other processes from our state and adjustment log. Where nothing can be written there is nothing
/// to keep them from.
fn lock_state(settings: &Settings) -> Result<Vec<Lock>, LockError> {
    let mut dirs = vec![&settings.state_dir];
    if !settings.adjustment_log.dir.starts_with(&settings.state_dir) {
        dirs.push(&settings.adjustment_log.dir);
    }
    let mut locks = Vec::new();
    for dir in dirs {
        match lock::take(dir) {
            Ok(lock) => locks.push(lock),
            Err(held @ LockError::Held { .. }) => return Err(held),
            Err(problem @ LockError::Unwritable { .. }) => {
                tracing::error!(%problem, "could not lock the state directory: a second rayguard could use it");
            }
        }
    }
    Ok(locks)
}

/// The adjustment log, written by a thread of its own so that a slow disk holds up nothing else.
fn start_adjustment_log(
    settings: &Settings,
) -> Result<(AdjustmentLog, std::thread::JoinHandle<()>), RunError> {
    let options = adjustment_log::Options {
        dir: settings.adjustment_log.dir.clone(),
        file_bytes_max: settings.adjustment_log.file_bytes_max,
        files_max: settings.adjustment_log.files_max,
    };
    let (mut writer, problem) = Writer::open(options);
    if let Some(problem) = problem {
        tracing::error!(dir = %settings.adjustment_log.dir.display(), %problem, "the adjustment log cannot be written; trying again");
    }
    if settings.adjustment_log.stdout {
        writer = writer.with_echo(Box::new(std::io::stdout()));
    }
    let (adjustment_log, thread) = adjustment_log::channel(writer, LOG_QUEUE);
    let writing = std::thread::Builder::new().name("adjustments".into()).spawn(move || thread.run())?;
    Ok((adjustment_log, writing))
}

/// Begins to write down what passes, by a thread of its own.
fn start_trace(
    app: &Arc<App>,
    trace: &TraceTarget,
) -> Result<std::thread::JoinHandle<trace_writer::TraceSummary>, RunError> {
    let TraceTarget { path, bytes_max } = trace;
    let path = &trace_writer::unused(path, app.clock.wall());
    let (trace_writer, thread) = trace_writer::channel(path, *bytes_max)
        .map_err(|source| RunError::Record { path: path.clone(), source })?;
    let writing = std::thread::Builder::new().name("trace".into()).spawn(move || thread.run())?;
    app.start_trace(trace_writer);
    tracing::info!(path = %path.display(), bytes_max, "writing a traffic trace");
    Ok(writing)
}

/// Events that may wait for the disk.
const LOG_QUEUE: usize = 4096;

/// Opens the listeners, those excepted that were inherited open; with them, what ends TLS there.
async fn bind(
    settings: &Settings,
    mut inherited: Vec<Inherited>,
) -> Result<(Vec<Listener>, Vec<Arc<dyn Renew>>), RunError> {
    let (mut listeners, mut certificates) = (Vec::new(), Vec::<Arc<dyn Renew>>::new());
    for spec in &settings.listeners {
        let open = inherited.iter().position(|socket| socket.is_bound_to(&spec.address));
        let listener = match open {
            Some(place) => Listener::take_over(inherited.swap_remove(place)),
            None => Listener::bind(&spec.address).await,
        };
        let listener =
            listener.map_err(|source| RunError::Listen { address: spec.address.to_string(), source })?;
        let tls = terminator(spec.tls.as_ref())?;
        certificates.extend(tls.clone().map(|tls| tls as Arc<dyn Renew>));
        listeners.push(listener.with_tls(tls).with_proxy_protocol(spec.proxy_protocol));
    }
    for socket in inherited {
        tracing::warn!(%socket, "an inherited socket matches no `listen` address; it is closed");
    }
    Ok((listeners, certificates))
}

fn terminator(tls: Option<&settings::Tls>) -> Result<Option<Arc<Terminator>>, TlsError> {
    let Some(tls) = tls else { return Ok(None) };
    let authorities = tls.client_authorities.as_deref();
    Ok(Some(Arc::new(Terminator::new(&tls.certificate, &tls.key, authorities)?)))
}

/// Opens the rate-limit service's listener, if there is to be one.
async fn bind_ratelimit<'a>(
    settings: &'a Settings,
    certificates: &mut Vec<Arc<dyn Renew>>,
) -> Result<Option<(Listener, &'a settings::RatelimitService)>, RunError> {
    let Some(spec) = &settings.ratelimit_service else { return Ok(None) };
    let listener = Listener::bind(&spec.listen)
        .await
        .map_err(|source| RunError::Ratelimit { address: spec.listen.to_string(), source })?;
    let tls = terminator(spec.tls.as_ref())?;
    certificates.extend(tls.clone().map(|tls| tls as Arc<dyn Renew>));
    Ok(Some((listener.with_tls(tls), spec)))
}

/// Where a listener's requests go.
fn leads_to(spec: &settings::Listener) -> Result<Address, TlsError> {
    let authority = spec.upstream.authority();
    let Some(tls) = &spec.upstream_tls else { return Ok(Address::Tcp(authority)) };
    Ok(Address::Tls(authority, Originator::new(tls.name.clone(), &tls.authorities)?))
}

/// Receivers of alerts, their secrets read.
fn whom_to_tell(settings: &Settings) -> Result<notify::Options, RunError> {
    let mut receivers = Vec::new();
    for spec in &settings.alerts.notify {
        let url = match &spec.url {
            settings::NotifyUrl::Plain(url) => url.clone(),
            settings::NotifyUrl::Secret(from) => {
                let text = secret::read(from, "address of an alert receiver")?;
                url::Url::parse(&text).ok().filter(url::Url::has_host).ok_or(RunError::Receiver)?
            }
        };
        let token =
            spec.token.as_ref().map(|token| secret::read(token, "token of an alert receiver")).transpose()?;
        receivers.push(notify::Receiver { kind: spec.kind, url, token });
    }
    Ok(notify::Options {
        receivers,
        repeat: settings.alerts.repeat,
        runbook: settings.alerts.runbook_url.clone(),
        page: settings.admin.as_ref().and_then(page_url),
    })
}

/// Where people open the page: as configured, or at the listener's own address.
fn page_url(admin: &settings::Admin) -> Option<url::Url> {
    admin.url.clone().or_else(|| {
        let settings::Address::Tcp(address) = &admin.listen else { return None };
        url::Url::parse(&format!("http://{address}/")).ok()
    })
}

/// The operator's listener, and who may change anything through it.
async fn bind_admin(
    settings: &Settings,
) -> Result<Option<(admin::listen::Listener, admin::access::Access)>, RunError> {
    let Some(spec) = &settings.admin else { return Ok(None) };
    let token = spec.token.as_ref().map(|token| secret::read(token, "admin token")).transpose()?;
    let listener = admin::listen::Listener::bind(&spec.listen)
        .await
        .map_err(|source| RunError::Admin { address: spec.listen.to_string(), source })?;
    Ok(Some((listener, admin::access::Access::new(token.as_deref(), spec.hosts.clone()))))
}

/// A key for digests that no attacker can guess, drawn from the OS through the standard library's
/// own seeding of hash maps.
fn random_key() -> [u64; 2] {
    use std::hash::{BuildHasher, RandomState};
    [RandomState::new().hash_one(1_u64), RandomState::new().hash_one(2_u64)]
}

/// Limits that survive a restart.
#[derive(Clone, Debug)]
struct State {
    path: PathBuf,
}

/// How often last good limits are written.
const KEEP: Duration = Duration::from_secs(5);

impl State {
    fn of(dir: &Path) -> State {
        State { path: dir.join("limits.json") }
    }

    /// What the last run left; nothing, if it left nothing that can be read.
    fn load(&self) -> Vec<LastGood> {
        let Ok(text) = std::fs::read(&self.path) else { return Vec::new() };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "last good limits cannot be read; starting from the initial ones");
            Vec::new()
        })
    }

    /// Writes beside the file and renames, so that a crash leaves the old or the new one whole.
    fn save(&self, limits: &[LastGood]) {
        let write = || -> std::io::Result<()> {
            if let Some(dir) = self.path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let beside = self.path.with_extension("json.new");
            std::fs::write(&beside, serde_json::to_vec(limits)?)?;
            std::fs::rename(&beside, &self.path)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %self.path.display(), %error, "could not save the last good limits");
        }
    }

    fn keep(&self, app: &Arc<App>) {
        let (state, app) = (self.clone(), Arc::clone(app));
        let tasks = app.tasks.clone();
        let mut last = Vec::new();
        tasks.every(KEEP, move || {
            let limits = app.last_good();
            if limits != last {
                state.save(&limits);
                last = limits;
            }
        });
    }
}
