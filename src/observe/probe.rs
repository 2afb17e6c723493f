//! The active probe of `/api/gcs_healthz`: what does a small call through the head take now?
//!
//! The only reading of the GCS that is as old as its question. The call passes the dashboard's
//! loop, ReportHead and the GCS, takes 1 to 4 ms on an idle head, needs no token and is never
//! limited. It also sees what Ray's own metrics do not: a loop that hangs.
//!
//! Three outcomes, kept apart because they ask for different things. *Answered*: a latency.
//! *Slow*: no answer in time; the latency is at least the timeout, which is information of the
//! best kind, and is used as such. *Down*: refused, broken off, or not 200 (503 is how Ray
//! says that the GCS failed): no latency at all, so no limit may be moved by it.

use crate::core::signal::reading::Missing;
use crate::core::time::Time;
use crate::observe::fetch::{self, FetchError, FetchLimits};
use crate::proxy::clock::Clock;
use reqwest::Client;
use std::time::Duration;
use url::Url;

/// The answer is one word.
const BODY_BYTES_MAX: usize = 64 << 10;

/// One probe.
#[derive(Clone, PartialEq, Debug)]
pub struct Probe {
    /// When it went out.
    pub began: Time,
    /// What came of it.
    pub outcome: ProbeOutcome,
}

/// What came of a probe.
#[derive(Clone, PartialEq, Debug)]
pub enum ProbeOutcome {
    /// Answered with 200.
    Answered(Duration),
    /// Not answered in time.
    Slow(Duration),
    /// The head or the GCS does not serve.
    Down(FetchError),
}

impl ProbeOutcome {
    /// The latency in milliseconds, of a slow one the least it can be.
    ///
    /// # Errors
    /// [`Missing::Unreachable`] when the head is down.
    pub fn latency_ms(&self, target: &str) -> Result<f64, Missing> {
        match self {
            ProbeOutcome::Answered(length) | ProbeOutcome::Slow(length) => Ok(length.as_secs_f64() * 1000.0),
            ProbeOutcome::Down(fault) => Err(fault.missing(target)),
        }
    }
}

/// Probes the head behind `upstream`, the dashboard's own address, at `path`.
pub async fn probe(client: &Client, upstream: &Url, path: &str, timeout: Duration, clock: Clock) -> Probe {
    let mut url = upstream.clone();
    url.set_path(path);
    url.set_query(None);
    let began = clock.now();
    let bounds = FetchLimits { timeout, body_bytes_max: BODY_BYTES_MAX };
    let answer = fetch::get(client, url, "text/plain", None, bounds).await;
    let latency = clock.now().since(began);
    let outcome = match answer.and_then(fetch::Answer::data) {
        Ok(_) => ProbeOutcome::Answered(latency),
        Err(FetchError::Slow(timeout)) => ProbeOutcome::Slow(timeout),
        Err(fault) => ProbeOutcome::Down(fault),
    };
    Probe { began, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fetch::server;

    const PATH: &str = "/api/gcs_healthz";

    async fn probe_at(address: String) -> ProbeOutcome {
        let upstream = Url::parse(&format!("http://{address}/ignored?x=y")).unwrap();
        probe(&fetch::client().unwrap(), &upstream, PATH, Duration::from_secs(5), Clock::start())
            .await
            .outcome
    }

    #[tokio::test]
    async fn a_healthy_head_answers_and_has_a_latency() {
        let outcome = server::with(server::answer("200 OK", "text/plain", "success"), probe_at).await;
        assert!(matches!(outcome, ProbeOutcome::Answered(..)), "{outcome:?}");
        assert!(outcome.latency_ms("head").unwrap() > 0.0);
    }

    #[tokio::test]
    async fn a_failed_gcs_is_down_and_gives_no_latency() {
        let bytes = server::answer("503 Service Unavailable", "text/plain", "GCS is down");
        let outcome = server::with(bytes, probe_at).await;
        assert_eq!(outcome, ProbeOutcome::Down(FetchError::Status(503)));
        assert!(matches!(outcome.latency_ms("head"), Err(Missing::Unreachable { .. })));
    }

    #[tokio::test]
    async fn a_dashboard_without_the_path_is_down_with_a_hint() {
        let outcome = server::with(server::answer("404 Not Found", "text/plain", ""), probe_at).await;
        let missing = outcome.latency_ms("head").unwrap_err().to_string();
        assert!(missing.contains("version of Ray"), "{missing}");
        let page = server::answer("200 OK", "text/html", "<html></html>");
        assert!(matches!(server::with(page, probe_at).await, ProbeOutcome::Down(..)));
    }

    #[tokio::test]
    async fn a_hanging_head_is_at_least_as_slow_as_we_waited() {
        let timeout = Duration::from_millis(50);
        let hang = async |_stream: tokio::net::TcpStream| std::future::pending::<()>().await;
        let outcome = server::serve(hang, async |address| {
            let upstream = Url::parse(&format!("http://{address}")).unwrap();
            probe(&fetch::client().unwrap(), &upstream, PATH, timeout, Clock::start()).await.outcome
        })
        .await;
        assert_eq!(outcome, ProbeOutcome::Slow(timeout));
        assert!((outcome.latency_ms("head").unwrap() - 50.0).abs() < 1e-9);
    }

    #[tokio::test]
    async fn the_probe_asks_for_the_health_of_the_gcs() {
        let seen = std::cell::RefCell::new(Vec::new());
        let treat = async |request: &[u8], _stream: tokio::net::TcpStream| {
            seen.replace(request.to_vec());
        };
        server::serve_requests(treat, probe_at).await;
        assert!(seen.borrow().starts_with(b"GET /api/gcs_healthz HTTP/1.1\r\n"));
    }
}
