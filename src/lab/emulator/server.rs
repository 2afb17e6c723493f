//! The emulator's server: sockets in front, the plant behind, real time between them.
//!
//! A request is put into the plant when it has been read; one task advances the plant to the
//! present whenever something is due and wakes each request that was answered. What the plant does in
//! virtual nanoseconds is delivered on the timer's grid (1 ms), so answers come up to 1 ms
//! late, but capacity is exact: everything due is worked off at every step.
//!
//! When a client leaves, hyper drops the request's future; the guard in it tells the plant,
//! which, like Ray, goes on working. Everything started here ends when [`Running`] is dropped.

use super::routes::{self, Ask, Job, Reply};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rayguard_core::time::Time;
use rayguard_proxy::websocket;
use rayguard_sim::exposition;
use rayguard_sim::head::Spec;
use rayguard_sim::plant::{Demand, Event, Exchange, Plant, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Largest package Ray takes, bytes.
const PACKAGE_BYTES_MAX: u64 = 104_857_600;

/// How an emulated head is set up.
#[derive(Clone, Debug)]
pub struct EmulatorConfig {
    /// Where the dashboard listens; port 0 takes a free one.
    pub dashboard: SocketAddr,
    /// Where the agent's metrics are (Ray's 8080).
    pub metrics: SocketAddr,
    /// Where the dashboard's metrics are (Ray's 44227).
    pub dashboard_metrics: SocketAddr,
    /// What is emulated.
    pub spec: Spec,
    /// Seed of the service times.
    pub seed: u64,
    /// The cluster's token, if authentication is on.
    pub token: Option<String>,
}

impl Default for EmulatorConfig {
    /// A Ray head on free loopback ports.
    fn default() -> EmulatorConfig {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        EmulatorConfig {
            dashboard: any,
            metrics: any,
            dashboard_metrics: any,
            spec: Spec::ray_head(),
            seed: 1,
            token: None,
        }
    }
}

/// What the metrics pages do wrong, on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MetricsFault {
    /// Nothing.
    #[default]
    None,
    /// 503.
    Unavailable,
    /// The request is taken and never answered.
    Hang,
    /// The page of the moment the fault began, for ever.
    Frozen,
    /// Every value is NaN.
    NotANumber,
    /// Only the families' names.
    Empty,
}

/// What the head has seen so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// By route of the plant.
    pub routes: BTreeMap<&'static str, RouteCount>,
    /// Requests that no route was found for.
    pub unknown: u64,
}

/// What one route has seen so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RouteCount {
    /// Requests that arrived.
    pub seen: u64,
    /// Under way in the head, abandoned ones included.
    pub in_flight: u32,
    /// The most that ever were.
    pub in_flight_max: u32,
    /// Finished for a client that had left.
    pub abandoned: u64,
}

impl Counters {
    /// The count of one route.
    #[must_use]
    pub fn route(&self, name: &str) -> RouteCount {
        self.routes.get(name).copied().unwrap_or_default()
    }

    /// Requests seen, all routes together.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.routes.values().map(|count| count.seen).sum()
    }
}

/// Starts emulated heads.
#[derive(Clone, Copy, Debug)]
pub struct Emulator;

/// A head under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// The dashboard, Job API and State API.
    pub dashboard: SocketAddr,
    /// The agent's metrics.
    pub metrics: SocketAddr,
    /// The dashboard's metrics.
    pub dashboard_metrics: SocketAddr,
    head: Arc<Head>,
    _tasks: JoinSet<()>,
}

impl Emulator {
    /// Binds the ports and starts the head. To be called within a Tokio runtime with timers.
    ///
    /// # Errors
    /// A port cannot be bound.
    pub async fn start(config: EmulatorConfig) -> io::Result<Running> {
        let dashboard = TcpListener::bind(config.dashboard).await?;
        let metrics = TcpListener::bind(config.metrics).await?;
        let dashboard_metrics = TcpListener::bind(config.dashboard_metrics).await?;
        let addresses = (dashboard.local_addr()?, metrics.local_addr()?, dashboard_metrics.local_addr()?);
        let (tails, tail_queue) = mpsc::unbounded_channel();
        let head =
            Arc::new(Head::new(&config, vec![addresses.1.to_string(), addresses.2.to_string()], tails));
        let mut tasks = JoinSet::new();
        tasks.spawn(drive(Arc::clone(&head)));
        tasks.spawn(carry_tails(tail_queue));
        for (listener, port) in [
            (dashboard, Port::Dashboard),
            (metrics, Port::Agent),
            (dashboard_metrics, Port::DashboardMetrics),
        ] {
            tasks.spawn(accept(listener, port, Arc::clone(&head)));
        }
        Ok(Running {
            dashboard: addresses.0,
            metrics: addresses.1,
            dashboard_metrics: addresses.2,
            head,
            _tasks: tasks,
        })
    }
}

impl Running {
    /// What the head has seen so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.head.lock().counters.clone()
    }

    /// Connections of a module in use, and requests waiting for one, by Ray's module name.
    #[must_use]
    pub fn module_in_flight(&self, module: &str) -> (u32, usize) {
        let state = self.head.lock();
        let at = state.plant.spec().modules.iter().position(|m| m.name == module);
        at.map_or((0, 0), |at| state.plant.module_in_flight(at))
    }

    /// Jobs submitted that have not started; jobs running.
    #[must_use]
    pub fn jobs(&self) -> (usize, u32) {
        self.head.lock().plant.jobs()
    }

    /// Scales the head's speed: 1 as specified, 0.5 half as fast, 0 stopped.
    pub fn set_capacity(&self, capacity: f64) {
        self.head.act(|plant, now, _| plant.set_capacity(now, capacity));
    }

    /// The head dies and comes back empty; requests under way are answered 502.
    pub fn restart(&self) {
        self.head.act(Plant::restart);
    }

    /// Makes the metrics pages misbehave from now on.
    pub fn set_metrics_fault(&self, fault: MetricsFault) {
        let mut state = self.head.lock();
        let pages = [exposition::agent_page(&state.plant), exposition::dashboard_page(&state.plant)];
        state.fault = fault;
        state.frozen = pages;
    }
}

#[derive(Clone, Copy, Debug)]
enum Port {
    Dashboard,
    Agent,
    DashboardMetrics,
}

type Tail = (hyper::upgrade::OnUpgrade, mpsc::Receiver<Step>, Permit);

#[derive(Debug)]
struct Head {
    state: Mutex<State>,
    wake: Notify,
    began: Instant,
    spec: Spec,
    token: Option<String>,
    targets: Vec<String>,
    tails: mpsc::UnboundedSender<Tail>,
}

#[derive(Debug)]
struct State {
    plant: Plant,
    events: Vec<Event>,
    waiting: BTreeMap<u64, Waiter>,
    next_tag: u64,
    jobs: Vec<Job>,
    stopped: BTreeSet<String>,
    packages: BTreeSet<String>,
    counters: Counters,
    fault: MetricsFault,
    frozen: [String; 2],
}

#[derive(Debug)]
struct Waiter {
    route: &'static str,
    answer: mpsc::Sender<Step>,
}

/// A request's place in the plant; dropped before the end, it means that the client left.
#[derive(Debug)]
struct Permit {
    head: Arc<Head>,
    exchange: Exchange,
    done: bool,
}

impl Permit {
    /// The exchange ended at the head's side.
    fn finish(mut self) {
        self.done = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.done {
            let exchange = self.exchange;
            self.head.act(|plant, now, _| plant.hang_up(now, exchange));
        }
    }
}

impl Head {
    fn new(config: &EmulatorConfig, targets: Vec<String>, tails: mpsc::UnboundedSender<Tail>) -> Head {
        let jobs = (0..config.spec.jobs.listed).map(|n| job(u64::from(n), "echo hi", "SUCCEEDED")).collect();
        Head {
            state: Mutex::new(State {
                plant: Plant::new(config.spec.clone(), config.seed),
                events: Vec::new(),
                waiting: BTreeMap::new(),
                next_tag: 0,
                jobs,
                stopped: BTreeSet::new(),
                packages: BTreeSet::new(),
                counters: Counters::default(),
                fault: MetricsFault::None,
                frozen: [String::new(), String::new()],
            }),
            wake: Notify::new(),
            began: Instant::now(),
            spec: config.spec.clone(),
            token: config.token.clone(),
            targets,
            tails,
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.began.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves counters at worst one behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the plant to the present, acts on it, and delivers what came of both.
    fn act<T>(&self, act: impl FnOnce(&mut Plant, Time, &mut Vec<Event>) -> T) -> T {
        let mut state = self.lock();
        let now = self.now();
        let State { plant, events, .. } = &mut *state;
        plant.advance(now, events);
        let result = act(plant, now, events);
        state.deliver();
        drop(state);
        self.wake.notify_one();
        result
    }

    /// Puts a request into the plant.
    fn enter(
        self: &Arc<Head>,
        ask: &Ask,
        size: f64,
        lasts: Option<Duration>,
    ) -> (mpsc::Receiver<Step>, Permit) {
        let (answer, steps) = mpsc::channel(2);
        let route = self.spec.route(ask.route).unwrap_or(rayguard_sim::head::RouteId(0));
        let mut state = self.lock();
        let now = self.now();
        let tag = state.next_tag;
        state.next_tag += 1;
        state.waiting.insert(tag, Waiter { route: ask.route, answer });
        let count = state.counters.routes.entry(ask.route).or_default();
        count.seen += 1;
        count.in_flight += 1;
        count.in_flight_max = count.in_flight_max.max(count.in_flight);
        let State { plant, events, .. } = &mut *state;
        plant.advance(now, events);
        let exchange = plant.arrive(now, &Demand { size, lasts, ..Demand::of(tag, route) });
        state.deliver();
        drop(state);
        self.wake.notify_one();
        (steps, Permit { head: Arc::clone(self), exchange, done: false })
    }

    /// The jobs as the Job API shows them: started and ended in the order they came.
    fn jobs(&self) -> Vec<Job> {
        let state = self.lock();
        let (starting, alive) = state.plant.jobs();
        let count = state.jobs.len();
        let pending_from = count - starting.min(count);
        let running_from = pending_from.saturating_sub(alive as usize);
        let status = |at: usize, job: &Job| match at {
            _ if state.stopped.contains(&job.id) => "STOPPED",
            _ if at >= pending_from => "PENDING",
            _ if at >= running_from => "RUNNING",
            _ => "SUCCEEDED",
        };
        state
            .jobs
            .iter()
            .enumerate()
            .map(|(at, job)| Job { status: status(at, job), ..job.clone() })
            .collect()
    }
}

impl State {
    fn deliver(&mut self) {
        for event in self.events.drain(..) {
            let last = event.step != Step::Opened;
            let Some(waiter) = self.waiting.get(&event.tag) else { continue };
            // A full or closed channel means that the request no longer waits.
            let _ = waiter.answer.try_send(event.step);
            if last {
                if let Some(count) = self.counters.routes.get_mut(waiter.route) {
                    count.in_flight -= 1;
                    count.abandoned += u64::from(event.abandoned);
                }
                self.waiting.remove(&event.tag);
            }
        }
    }
}

fn job(number: u64, entrypoint: &str, status: &'static str) -> Job {
    Job {
        id: format!("raysubmit_{number:016x}"),
        entrypoint: entrypoint.to_owned(),
        status,
        start_ms: 1_795_426_000_000 + number * 1000,
    }
}

/// Advances the plant whenever something is due.
async fn drive(head: Arc<Head>) {
    loop {
        let next = {
            let mut state = head.lock();
            let now = head.now();
            let State { plant, events, .. } = &mut *state;
            plant.advance(now, events);
            state.deliver();
            state.plant.next_event()
        };
        let wait = next.map_or(Duration::from_secs(1), |at| Duration::from_nanos(at.0));
        tokio::select! {
            () = tokio::time::sleep_until(head.began + wait) => {}
            () = head.wake.notified() => {}
        }
    }
}

async fn accept(listener: TcpListener, port: Port, head: Arc<Head>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, port, Arc::clone(&head)));
                }
                // Out of file descriptors: try again shortly instead of spinning.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve(stream: TcpStream, port: Port, head: Arc<Head>) {
    // Without it small answers wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let head = Arc::clone(&head);
        async move {
            let response = match port {
                Port::Dashboard => dashboard(&head, request).await,
                Port::Agent => metrics(&head, 0).await,
                Port::DashboardMetrics => metrics(&head, 1).await,
            };
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // A client that breaks the protocol or leaves is its own business.
    let _ = connection.await;
}

type Answer = Response<Either<Full<Bytes>, Follow>>;

fn plain(status: StatusCode, kind: &str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    if let Ok(kind) = header::HeaderValue::from_str(kind) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

const TEXT: &str = "text/plain; charset=utf-8";

/// The life of one request to the dashboard.
async fn dashboard(head: &Arc<Head>, mut request: Request<Incoming>) -> Answer {
    let method = request.method().as_str().to_owned();
    let path = request.uri().path().to_owned();
    if let Some(refusal) = refuse(head, request.headers(), &method, &path) {
        return refusal;
    }
    let query = request.uri().query().unwrap_or_default();
    let Some(ask) = routes::resolve(&head.spec, &method, &path, query) else {
        head.lock().counters.unknown += 1;
        return plain(StatusCode::NOT_FOUND, TEXT, "404: Not Found");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let key = request.headers().get("sec-websocket-key").map(|key| websocket::accept(key.as_bytes()));
    let Some(body) = read_body(request.into_body()).await else {
        return plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            TEXT,
            format!("Maximum request body size {PACKAGE_BYTES_MAX} exceeded."),
        );
    };
    match &ask.reply {
        Reply::Tail(id) => tail(head, &ask, id.clone(), key, upgrade).await,
        Reply::LogStream => follow(head, &ask).await,
        _ => ordinary(head, &ask, &body).await,
    }
}

/// What Ray refuses before any route: browsers that write, and bad tokens.
fn refuse(head: &Head, headers: &HeaderMap, method: &str, path: &str) -> Option<Answer> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let browser = text("user-agent").is_some_and(|agent| agent.starts_with("Mozilla"))
        || headers.contains_key("origin")
        || headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"));
    if browser && !matches!(method, "GET" | "HEAD" | "OPTIONS") {
        return Some(plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed for browser traffic."));
    }
    let token = head.token.as_ref()?;
    let public = matches!(
        path,
        "/" | "/favicon.ico" | "/api/gcs_healthz" | "/api/authentication_mode" | "/api/authenticate"
    ) || path.starts_with("/static/");
    if public {
        return None;
    }
    let cookie = text("cookie").and_then(|cookies| {
        cookies.split("; ").find_map(|pair| pair.strip_prefix("ray-authentication-token="))
    });
    let bearer = |name| text(name).and_then(|value| value.strip_prefix("Bearer "));
    match bearer("authorization").or_else(|| bearer("x-ray-authorization")).or(cookie) {
        Some(given) if given == token => None,
        Some(_) => Some(plain(StatusCode::FORBIDDEN, TEXT, "Forbidden: Invalid authentication token")),
        None => Some(plain(StatusCode::UNAUTHORIZED, TEXT, "Unauthorized: Missing authentication token")),
    }
}

/// The whole body, of which only the first megabyte is kept; `None` when it is too long.
async fn read_body(mut body: Incoming) -> Option<(Vec<u8>, u64)> {
    let (mut kept, mut length) = (Vec::new(), 0_u64);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { break };
        if let Some(data) = frame.data_ref() {
            length += data.len() as u64;
            if length > PACKAGE_BYTES_MAX {
                return None;
            }
            if kept.len() < 1 << 20 {
                kept.extend_from_slice(data);
            }
        }
    }
    Some((kept, length))
}

async fn ordinary(head: &Arc<Head>, ask: &Ask, (body, length): &(Vec<u8>, u64)) -> Answer {
    let submission: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let entrypoint = submission["entrypoint"].as_str().unwrap_or("echo hi").to_owned();
    let lasts = match &ask.reply {
        Reply::Submit => routes::running_time(&entrypoint),
        Reply::Delay(seconds) => Some(*seconds),
        _ => None,
    };
    let (mut steps, permit) = head.enter(ask, *length as f64 / 1e6, lasts);
    let step = steps.recv().await;
    permit.finish();
    if let Some(Step::Answered(status)) = step
        && status != 200
    {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        return plain(
            status,
            TEXT,
            "Max number of in-progress requests=100 reached. To set a higher limit, set environment variable: export RAY_STATE_SERVER_MAX_HTTP_REQUEST='xxx'.",
        );
    }
    settle(head, ask, &entrypoint, submission["submission_id"].as_str());
    let jobs = match &ask.reply {
        Reply::Jobs | Reply::Submit | Reply::Job(_) | Reply::JobLogs(_) | Reply::Stop(_) => head.jobs(),
        _ => Vec::new(),
    };
    if let Reply::PackageGet(name) = &ask.reply
        && head.lock().packages.contains(name)
    {
        return plain(StatusCode::OK, TEXT, "");
    }
    let (status, kind, text) = routes::answer(&ask.reply, &jobs, &head.targets);
    plain(StatusCode::from_u16(status).unwrap_or(StatusCode::OK), kind, text)
}

/// What an answered request leaves in the head's books.
fn settle(head: &Head, ask: &Ask, entrypoint: &str, wanted: Option<&str>) {
    let mut state = head.lock();
    match &ask.reply {
        Reply::Submit => {
            let mut job = job(state.jobs.len() as u64, entrypoint, "PENDING");
            if let Some(id) = wanted {
                id.clone_into(&mut job.id);
            }
            state.jobs.push(job);
        }
        Reply::Stop(id) => {
            state.stopped.insert(id.clone());
        }
        Reply::PackagePut(name) => {
            state.packages.insert(name.clone());
        }
        _ => {}
    }
}

/// How much longer a job runs: its whole running time, as tails usually begin with the job.
fn job_lasts(head: &Head, id: &str) -> Duration {
    let state = head.lock();
    let job = state.jobs.iter().find(|job| job.id == id);
    job.and_then(|job| routes::running_time(&job.entrypoint)).unwrap_or(Duration::from_secs(5))
}

async fn tail(
    head: &Arc<Head>,
    ask: &Ask,
    id: String,
    key: Option<String>,
    upgrade: hyper::upgrade::OnUpgrade,
) -> Answer {
    let Some(accept) = key else {
        return plain(StatusCode::BAD_REQUEST, TEXT, "No WebSocket UPGRADE hdr: None");
    };
    let lasts = job_lasts(head, &id);
    let (mut steps, permit) = head.enter(ask, 0.0, Some(lasts));
    if steps.recv().await != Some(Step::Opened) {
        permit.finish();
        return plain(StatusCode::TOO_MANY_REQUESTS, TEXT, "busy");
    }
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, TEXT, "");
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    if let Ok(accept) = header::HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    // Fails only when the head has ended.
    let _ = head.tails.send((upgrade, steps, permit));
    response
}

/// Serves the open tails: a line at once, a close frame at the job's end, and never a look at
/// whether the client is still there.
async fn carry_tails(mut queue: mpsc::UnboundedReceiver<Tail>) {
    let mut tails = JoinSet::new();
    loop {
        tokio::select! {
            tail = queue.recv() => match tail {
                Some((upgrade, mut steps, permit)) => {
                    tails.spawn(async move {
                        let Ok(upgraded) = upgrade.await else { return };
                        let mut io = TokioIo::new(upgraded);
                        // The client may be gone; the slot stays until the job ends all the same.
                        let _ = io.write_all(&websocket::text_frame("hi\n")).await;
                        steps.recv().await;
                        permit.finish();
                        let _ = io.write_all(&websocket::close_frame(websocket::NORMAL)).await;
                        let _ = io.shutdown().await;
                    });
                }
                None => return,
            },
            Some(_) = tails.join_next(), if !tails.is_empty() => {}
        }
    }
}

async fn follow(head: &Arc<Head>, ask: &Ask) -> Answer {
    let (mut steps, permit) = head.enter(ask, 0.0, Some(Duration::from_secs(60)));
    match steps.recv().await {
        Some(Step::Opened) => {
            let first = Some(Bytes::from_static(b"1hi\n"));
            let mut response = Response::new(Either::Right(Follow { first, steps, permit }));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
            response
        }
        Some(Step::Answered(_)) => {
            permit.finish();
            plain(StatusCode::TOO_MANY_REQUESTS, TEXT, "Max number of in-progress requests=100 reached.")
        }
        _ => plain(StatusCode::BAD_GATEWAY, TEXT, "the head ended"),
    }
}

/// The body of a followed log: one line, then nothing until the head closes it.
struct Follow {
    first: Option<Bytes>,
    steps: mpsc::Receiver<Step>,
    permit: Permit,
}

impl Body for Follow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match self.steps.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                self.permit.done = true;
                Poll::Ready(None)
            }
        }
    }
}

/// One of the metrics pages, or what the fault makes of it.
async fn metrics(head: &Head, which: usize) -> Answer {
    let (page, fault) = {
        let mut state = head.lock();
        let now = head.now();
        let State { plant, events, .. } = &mut *state;
        plant.advance(now, events);
        state.deliver();
        let page = match (state.fault, which) {
            (MetricsFault::Frozen, at) => state.frozen[at].clone(),
            (_, 0) => exposition::agent_page(&state.plant),
            _ => exposition::dashboard_page(&state.plant),
        };
        (page, state.fault)
    };
    let page = match fault {
        MetricsFault::None | MetricsFault::Frozen => page,
        MetricsFault::Unavailable => return plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, "no metrics"),
        MetricsFault::Hang => std::future::pending().await,
        MetricsFault::NotANumber => spoil(&page),
        MetricsFault::Empty => {
            page.lines().filter(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n")
        }
    };
    plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
}

/// The page with every value NaN.
#[must_use]
pub(crate) fn spoil(page: &str) -> String {
    page.lines()
        .map(|line| match line.rsplit_once(' ') {
            Some((series, _)) if !line.starts_with('#') => format!("{series} NaN\n"),
            _ => format!("{line}\n"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    async fn start() -> Running {
        Emulator::start(EmulatorConfig::default()).await.expect("free ports")
    }

    async fn send(address: SocketAddr, request: http::request::Builder, body: &'static str) -> (u16, String) {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let request = request.header("host", "x").body(Full::new(Bytes::from(body))).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(body.into()).expect("text"))
    }

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        send(address, Request::get(path), "").await
    }

    /// Asks the head for its version until `condition` holds: a wait that needs no clock.
    async fn until(head: &Running, condition: impl Fn(&Counters) -> bool) -> Counters {
        for _ in 0..20_000 {
            let counters = head.counters();
            if condition(&counters) {
                return counters;
            }
            get(head.dashboard, "/api/version").await;
        }
        panic!("never came true: {:?}", head.counters());
    }

    #[tokio::test]
    async fn the_job_api_takes_a_job_and_shows_it() {
        let head = start().await;
        let body = r#"{"entrypoint":"sleep 30","submission_id":"mine"}"#;
        assert_eq!(send(head.dashboard, Request::post("/api/jobs/"), body).await.0, 200);
        assert_eq!(head.counters().route("job-submit").seen, 1);
        let (status, text) = get(head.dashboard, "/api/jobs/mine").await;
        assert_eq!(status, 200);
        let job: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!(job["entrypoint"], "sleep 30");
        assert_eq!(get(head.dashboard, "/api/jobs/other").await.0, 404);
        let (_, list) = get(head.dashboard, "/api/jobs/").await;
        let list: serde_json::Value = serde_json::from_str(&list).expect("json");
        assert_eq!(list.as_array().map(Vec::len), Some(3));
    }

    #[tokio::test]
    async fn the_metrics_targets_lead_to_the_metrics() {
        let head = start().await;
        let (_, text) = get(head.dashboard, "/api/prometheus/sd").await;
        let targets: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!(targets[0]["targets"][0], head.metrics.to_string());
        assert!(get(head.metrics, "/metrics").await.1.contains("ray_node_cpu_utilization{"));
        assert!(get(head.dashboard_metrics, "/metrics").await.1.contains("dashboard_JobHead"));
        head.set_metrics_fault(MetricsFault::NotANumber);
        assert!(get(head.metrics, "/metrics").await.1.contains(" NaN"));
        head.set_metrics_fault(MetricsFault::Unavailable);
        assert_eq!(get(head.metrics, "/metrics").await.0, 503);
    }

    #[tokio::test]
    async fn work_goes_on_after_the_client_left() {
        let head = start().await;
        let mut stream = TcpStream::connect(head.dashboard).await.expect("a connection");
        stream.write_all(b"GET /api/v0/tasks HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        until(&head, |counters| counters.route("tasks").in_flight == 1).await;
        drop(stream);
        let counters = until(&head, |counters| counters.route("tasks").in_flight == 0).await;
        assert_eq!(counters.route("tasks").abandoned, 1);
    }

    #[tokio::test]
    async fn a_tail_keeps_its_permit_after_the_client_left() {
        let head = start().await;
        let mut stream = TcpStream::connect(head.dashboard).await.expect("a connection");
        let handshake = "GET /api/jobs/raysubmit_0000000000000000/logs/tail HTTP/1.1\r\nhost: x\r\n\
            connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
            sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(handshake.as_bytes()).await.expect("sent");
        let mut answer = vec![0; 4096];
        let mut length = 0;
        while !answer[..length].ends_with(b"\x81\x03hi\n") {
            length += stream.read(&mut answer[length..]).await.expect("the handshake and a line");
        }
        let text = String::from_utf8_lossy(&answer[..length]);
        assert!(text.starts_with("HTTP/1.1 101"), "{text}");
        assert!(text.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{text}");
        drop(stream);
        assert_eq!(head.module_in_flight("JobHead").0, 1, "the permit is held");
        get(head.dashboard, "/api/version").await;
        assert_eq!(head.module_in_flight("JobHead").0, 1, "and still is");
    }

    #[tokio::test]
    async fn browsers_may_not_write_and_a_token_is_asked_for() {
        let config = EmulatorConfig { token: Some("secret".to_owned()), ..EmulatorConfig::default() };
        let head = Emulator::start(config).await.expect("free ports");
        let status = async |request| send(head.dashboard, request, "").await.0;
        let jobs = || Request::get("/api/jobs/");
        assert_eq!(status(Request::post("/api/jobs/").header("user-agent", "Mozilla/5.0")).await, 405);
        assert_eq!(status(jobs()).await, 401);
        assert_eq!(status(jobs().header("authorization", "Bearer wrong")).await, 403);
        assert_eq!(status(jobs().header("authorization", "Bearer secret")).await, 200);
        assert_eq!(status(jobs().header("cookie", "a=b; ray-authentication-token=secret")).await, 200);
        assert_eq!(get(head.dashboard, "/api/gcs_healthz").await, (200, "success".to_owned()));
    }

    #[tokio::test]
    async fn a_synthetic_head_takes_any_path() {
        let config = EmulatorConfig { spec: Spec::single_loop(200.0, 50.0), ..EmulatorConfig::default() };
        let head = Emulator::start(config).await.expect("free ports");
        assert_eq!(get(head.dashboard, "/anything").await.0, 200);
        assert_eq!(head.counters().route("cheap").seen, 1);
    }

    #[tokio::test]
    async fn a_head_that_ends_frees_its_port() {
        let head = start().await;
        let address = head.dashboard;
        get(address, "/api/version").await;
        drop(head);
        // Dropping aborts the tasks; they go at the runtime's next turns.
        let mut bound = TcpListener::bind(address).await;
        for _ in 0..1000 {
            if bound.is_ok() {
                return;
            }
            tokio::task::yield_now().await;
            bound = TcpListener::bind(address).await;
        }
        panic!("still bound: {bound:?}");
    }
}
