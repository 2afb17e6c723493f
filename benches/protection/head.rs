//! A head of exactly known capacity: one loop, first come first served, no admission control.
//!
//! It stands in for Ray where a figure needs a known 100 %: every request takes a fixed time
//! of one single loop (5 ms; 250 ms where the path ends in `/logs`), and, as in Ray, a client
//! that leaves does not take its work with it. The loop keeps a schedule instead of adding
//! up sleeps, so 200 requests a second means 200, whatever the timer's grain. The work is
//! slept, not burnt: on a small machine the measured proxy keeps its processor.
//!
//! `GET /head/dip?factor=0.25&for_s=5` makes everything cost 1/factor as much for a while;
//! `GET /head/state` answers with what was served, what was queued at most, and what is queued now.
//! Both, like `/api/version` and `/api/gcs_healthz` (which wait in line but cost nothing), are
//! there for the bench.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// A request's place in the loop's line.
struct Work {
    came: Instant,
    cost: Duration,
    done: oneshot::Sender<()>,
}

/// What the loop has done, and how fast it runs.
struct State {
    served: AtomicU64,
    abandoned: AtomicU64,
    busy_us: AtomicU64,
    queued: AtomicU64,
    queued_max: AtomicU64,
    dip: Mutex<Option<(f64, Instant)>>,
}

const CHEAP: Duration = Duration::from_millis(5);
const HEAVY: Duration = Duration::from_millis(250);

fn main() -> std::io::Result<()> {
    let address: SocketAddr = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 18_265)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(address))
}

async fn serve(address: SocketAddr) -> std::io::Result<()> {
    let state = Arc::new(State {
        served: AtomicU64::new(0),
        abandoned: AtomicU64::new(0),
        busy_us: AtomicU64::new(0),
        queued: AtomicU64::new(0),
        queued_max: AtomicU64::new(0),
        dip: Mutex::new(None),
    });
    let (line, works) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(single_loop(works, Arc::clone(&state)));
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        while tasks.try_join_next().is_some() {}
        let (line, state) = (line.clone(), Arc::clone(&state));
        tasks.spawn(async move {
            let answer = service_fn(move |request| answer(request, line.clone(), Arc::clone(&state)));
            // A client that leaves ends its connection with an error: nothing to report.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// Serves the line in order; a work whose client has left is done all the same.
async fn single_loop(mut works: mpsc::UnboundedReceiver<Work>, state: Arc<State>) {
    let mut free_at = Instant::now();
    while let Some(work) = works.recv().await {
        let cost = state.slowed(work.cost);
        // From when it came, not from now: a timer that woke late must not cost capacity.
        free_at = free_at.max(work.came) + cost;
        sleep_until(free_at).await;
        state.served.fetch_add(1, Ordering::Relaxed);
        state.busy_us.fetch_add(u64::try_from(cost.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        state.queued.fetch_sub(1, Ordering::Relaxed);
        if work.done.send(()).is_err() {
            state.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl State {
    fn slowed(&self, cost: Duration) -> Duration {
        match *self.dip.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((factor, until)) if Instant::now() < until => cost.div_f64(factor),
            _ => cost,
        }
    }

    fn describe(&self) -> String {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{{\"served\":{},\"abandoned\":{},\"busy_ms\":{:.1},\"queued\":{},\"queued_max\":{}}}\n",
            read(&self.served),
            read(&self.abandoned),
            read(&self.busy_us) as f64 / 1e3,
            read(&self.queued),
            self.queued_max.swap(0, Ordering::Relaxed)
        )
    }
}

async fn answer(
    request: Request<Incoming>,
    line: mpsc::UnboundedSender<Work>,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    // Read whole, so that the connection can carry the next request.
    let _ = body.collect().await;
    match parts.uri.path() {
        "/head/state" => return Ok(json(state.describe())),
        "/head/dip" => {
            let query = parts.uri.query().unwrap_or_default();
            let factor = number(query, "factor").unwrap_or(0.25).clamp(0.001, 1_000.0);
            let length = Duration::from_secs_f64(number(query, "for_s").unwrap_or(5.0).clamp(0.0, 600.0));
            *state.dip.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((factor, Instant::now() + length));
            return Ok(json("{}\n".into()));
        }
        _ => {}
    }
    let cost = match parts.uri.path() {
        "/api/version" | "/api/gcs_healthz" => Duration::ZERO,
        path if path.ends_with("/logs") => HEAVY,
        _ => CHEAP,
    };
    let queued = state.queued.fetch_add(1, Ordering::Relaxed) + 1;
    state.queued_max.fetch_max(queued, Ordering::Relaxed);
    let (done, waits) = oneshot::channel();
    let _ = line.send(Work { came: Instant::now(), cost, done });
    let _ = waits.await;
    Ok(json(format!("{{\"status\":\"RUNNING\",\"path\":\"{}\"}}\n", parts.uri.path())))
}

fn number(query: &str, name: &str) -> Option<f64> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn json(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
