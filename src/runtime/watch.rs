//! Looking at Ray: a round of scrapes, queries and the probe, every few seconds.
//!
//! Each source has its own time-out and size cap and is asked beside the others, never on a
//! request's path. A round hands everything over at once; what could not be read is handed over
//! as missing, with its reason, so that a signal ages in plain sight.
//!
//! The targets come from the configuration or are discovered anew as long as none answers: Ray
//! may start after us, and picks its ports at random where nobody chose them.

use crate::config::Settings;
use crate::config::settings;
use crate::core::signal::reading::Missing;
use crate::core::signal::series::SignalReader;
use crate::core::time::Time;
use crate::observe::discover;
use crate::observe::fetch::{self, Bounds};
use crate::observe::probe::{self, Outcome};
use crate::observe::promql::{self, Server};
use crate::observe::scrape::{self, Target};
use crate::runtime::guard::Guard;
use reqwest::Client;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use url::Url;

/// Where targets are not to be had, they are looked for again after this.
const REDISCOVER: Duration = Duration::from_secs(15);

/// And where all answer, after this: a head that has just started names its exporters one by one.
const REDISCOVER_CALM: Duration = Duration::from_mins(1);

/// Starts looking, for as long as the guard's tasks run.
pub fn start(guard: &Arc<Guard>) {
    let client = match fetch::client() {
        Ok(client) => client,
        Err(fault) => {
            // The door's own readings still protect; the signals go stale and say why.
            tracing::error!(%fault, "no HTTP client: Ray's metrics cannot be read");
            return;
        }
    };
    let reader = Arc::new(Mutex::new(SignalReader::new(&guard.settings().policy)));
    let watch = Watch { guard: Arc::clone(guard), settings: guard.settings(), client, reader };
    guard.tasks.spawn_until_closed(watch.clone().look());
    if let Some(probe) = watch.settings.probe.clone() {
        guard.tasks.spawn_until_closed(watch.clone().probe(probe));
    }
    watch.query_all();
}

#[derive(Clone)]
struct Watch {
    guard: Arc<Guard>,
    /// What it was started by: once these are not the guard's any more, it ends.
    settings: Arc<Settings>,
    client: Client,
    reader: Arc<Mutex<SignalReader>>,
}

impl Watch {
    /// Scrapes, round after round.
    async fn look(self) {
        let metrics = &self.settings.metrics;
        let bounds = Bounds { timeout: metrics.timeout, body_bytes_max: metrics.body_bytes_max };
        let mut targets: Vec<Target> =
            metrics.targets.iter().filter_map(|url| Target::parse(url.as_str()).ok()).collect();
        let fixed = !targets.is_empty();
        let mut looked_at: Option<Time> = None;
        let mut all_answer = false;
        let mut every = tokio::time::interval(metrics.interval);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if self.is_succeeded() {
                return;
            }
            let now = self.guard.clock.now();
            let pause = if all_answer { REDISCOVER_CALM } else { REDISCOVER };
            if !fixed && metrics.discover && looked_at.is_none_or(|at| now.since(at) > pause) {
                looked_at = Some(now);
                targets = self.discover(targets).await;
            }
            let mut failed = false;
            scrape::scrape_all(&self.client, &targets, bounds, self.guard.clock, |target, page| {
                let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
                match page {
                    Ok(page) => {
                        if let Err(missing) =
                            reader.on_scrape(&target.name, &page.body, page.began, page.wall)
                        {
                            tracing::debug!(target = %target.name, %missing, "a page that cannot be used");
                        }
                    }
                    Err(fault) => {
                        failed = true;
                        reader.on_failure(&target.name, &target.missing(&fault));
                    }
                }
            })
            .await;
            all_answer = !failed && !targets.is_empty();
            self.hand_over();
        }
    }

    /// Finds the targets anew; keeps the old ones where none are to be found.
    async fn discover(&self, before: Vec<Target>) -> Vec<Target> {
        let settings = &self.settings;
        let Ok(dashboard) = Url::parse(&settings.upstream.url()) else { return before };
        let file = settings.metrics.discovery_file.clone().unwrap_or_default();
        match discover::discover(&self.client, &dashboard, self.guard.rays_token(), &file).await {
            Ok(found) => {
                if found.targets != before {
                    let names: Vec<&str> = found.targets.iter().map(|target| &*target.name).collect();
                    tracing::info!(targets = %names.join(", "), "found Ray's metrics");
                }
                found.targets
            }
            Err(fault) => {
                tracing::warn!(%fault, "Ray's metrics are not to be found; looking again");
                before
            }
        }
    }

    /// Probes, one after the other.
    async fn probe(self, wanted: settings::Probe) {
        let Ok(upstream) = Url::parse(&self.settings.upstream.url()) else { return };
        let name = self.settings.upstream.authority();
        let mut every = tokio::time::interval(wanted.interval);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if self.is_succeeded() {
                return;
            }
            let (path, timeout) = (&wanted.path, wanted.timeout);
            let probe = probe::probe(&self.client, &upstream, path, timeout, self.guard.clock).await;
            let down = match &probe.outcome {
                Outcome::Down { fault } => Some(fault.to_string()),
                Outcome::Answered { .. } | Outcome::Slow { .. } => None,
            };
            self.guard.on_upstream(down.as_deref());
            let latency_ms = probe.outcome.latency_ms(&name);
            self.reader.lock().unwrap_or_else(PoisonError::into_inner).on_probe(
                &name,
                &latency_ms,
                probe.began,
            );
            self.hand_over();
        }
    }

    /// Asks Prometheus, each expression on its own.
    fn query_all(&self) {
        let Some(url) = &self.settings.metrics.prometheus else { return };
        let server = match Server::parse(url.as_str()) {
            Ok(server) => server,
            Err(fault) => {
                tracing::error!(%fault, "Prometheus cannot be asked");
                return;
            }
        };
        let queries: Vec<_> = self.reader.lock().unwrap_or_else(PoisonError::into_inner).queries().collect();
        for (signal, expression) in queries {
            let (watch, server) = (self.clone(), server.clone());
            self.guard.tasks.spawn_until_closed(async move {
                let metrics = &watch.settings.metrics;
                let bounds = Bounds { timeout: metrics.timeout, body_bytes_max: metrics.body_bytes_max };
                let mut every = tokio::time::interval(metrics.interval);
                every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    every.tick().await;
                    if watch.is_succeeded() {
                        return;
                    }
                    let (now, wall) = (watch.guard.clock.now(), watch.guard.clock.wall());
                    let answer: Result<_, Missing> =
                        promql::query(&watch.client, &server, &expression, bounds)
                            .await
                            .map(|answer| (answer.value, answer.evaluated))
                            .map_err(|fault| fault.missing(&server, &expression));
                    watch.reader.lock().unwrap_or_else(PoisonError::into_inner).on_answer(
                        signal,
                        &expression,
                        &server.name,
                        &answer,
                        now,
                        wall,
                    );
                    watch.hand_over();
                }
            });
        }
    }

    /// Whether a reload has put another watch in this one's place.
    fn is_succeeded(&self) -> bool {
        !Arc::ptr_eq(&self.settings, &self.guard.settings())
    }

    fn hand_over(&self) {
        if self.is_succeeded() {
            return; // these readings are numbered by a policy that is gone
        }
        let readings =
            self.reader.lock().unwrap_or_else(PoisonError::into_inner).readings(self.guard.clock.now());
        self.guard.on_readings(&readings);
    }
}
