//! Looking at Ray: a round of scrapes, queries and the probe, every few seconds.
//!
//! Each source has its own time-out and size cap and is asked beside the others, never on a
//! request's path. A round hands everything over at once; what could not be read is handed over
//! as missing, with its reason, so that a signal ages in plain sight.
//!
//! The head's own pages are asked each round, whatever else goes on: the limits follow them. The
//! pages of all other nodes are asked by a task of their own, if a signal needs them at all, and
//! the search for targets is a third one.
//!
//! Jobs that were let in are asked one at a time whether they have started, as often as the head is probed.
//!
//! Which pages are the head's may be a guess. Then all others are asked at once, by one more task, until a page says
//! that it is; that page takes the first place from then on.
//!
//! The targets come from the configuration or are discovered anew as long as none answers: Ray
//! may start after us, and picks its ports at random where they are not configured.

use crate::config::Settings;
use crate::config::settings;
use crate::core::policy::SignalId;
use crate::core::signal::reading::Missing;
use crate::core::signal::series::SignalReader;
use crate::observe::discover::{self, Discovery, Places};
use crate::observe::fetch::{self, FetchError, FetchLimits};
use crate::observe::job_state;
use crate::observe::probe::{self, ProbeOutcome};
use crate::observe::promql::{self, QueryError, Server};
use crate::observe::scrape::{self, Page, Target, Targets, Turns};
use crate::runtime::app::App;
use parking_lot::Mutex;
use reqwest::Client;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use url::Url;

/// Where targets are not to be had, they are looked for again after this.
const REDISCOVER: Duration = Duration::from_secs(15);

/// And where all answer, after this: a head that has just started names its exporters one by one.
const REDISCOVER_CALM: Duration = Duration::from_secs(60);

/// Where no page says that it is the head's, all are asked again less and less often, down to this.
const SEARCH_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Where the states of jobs are withheld, they are asked for again after this.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Entries of a list that are no targets are named in a warning up to this many.
const NAMED_MAX: usize = 5;

/// Starts looking, for as long as the app's tasks run.
pub fn start(app: &Arc<App>) {
    let client = match fetch::client() {
        Ok(client) => client,
        Err(fault) => {
            // The proxy's own readings still protect; the signals go stale and say why.
            tracing::error!(%fault, "no HTTP client: Ray's metrics cannot be read");
            return;
        }
    };
    let head_answers = Arc::new(AtomicBool::new(false));
    let settings = app.settings();
    let reader = app.next_reader(&settings);
    let targets = configured_targets(&settings);
    // The last watch may have been told which of them are the head's.
    let heads = discover::hosts(reader.lock().of_head());
    let targets = watch::Sender::new(Arc::new(targets.with_heads(&heads).unwrap_or(targets)));
    let watch = Watch { app: Arc::clone(app), settings, client, reader, head_answers, targets };
    if watch.targets.borrow().is_empty() && (watch.settings.metrics.discover || watch.file().is_some()) {
        app.tasks.spawn_until_closed(watch.clone().look_for_targets());
    }
    app.tasks.spawn_until_closed(watch.clone().look_for_head());
    app.tasks.spawn_until_closed(watch.clone().look_at_head());
    if watch.reader.lock().wants_nodes(watch.followed_signals()) {
        app.tasks.spawn_until_closed(watch.clone().look_at_nodes());
    }
    if let Some(probe) = watch.settings.probe.clone() {
        app.tasks.spawn_until_closed(watch.clone().probe(probe.clone()));
        if app.follows_job_starts() {
            app.tasks.spawn_until_closed(watch.clone().ask_jobs(probe));
        }
    }
    watch.query_all();
}

#[derive(Clone)]
struct Watch {
    app: Arc<App>,
    /// What it was started by: once these are not the app's any more, it ends.
    settings: Arc<Settings>,
    client: Client,
    reader: Arc<Mutex<SignalReader>>,
    /// Whether all of the head's pages came in the latest round.
    head_answers: Arc<AtomicBool>,
    /// Which pages are asked.
    targets: watch::Sender<Arc<Targets>>,
}

fn configured_targets(settings: &Settings) -> Targets {
    let targets = settings.metrics.targets.iter();
    let targets = targets.filter_map(|url| Target::parse(url.as_str()).ok()).collect();
    Targets::new(targets, &BTreeSet::new())
}

impl Watch {
    fn dashboard(&self) -> Option<Url> {
        Url::parse(&self.settings.upstream.url()).ok()
    }

    fn file(&self) -> Option<&std::path::Path> {
        self.settings.metrics.discovery_file.as_deref()
    }

    /// Signals that move a limit.
    fn followed_signals(&self) -> Vec<SignalId> {
        let classes = self.settings.policy.classes.iter();
        classes.flat_map(|class| class.signals.iter().copied().chain(class.backlog)).collect()
    }

    fn bounds(&self) -> FetchLimits {
        let metrics = &self.settings.metrics;
        FetchLimits { timeout: metrics.timeout, body_bytes_max: metrics.body_bytes_max }
    }

    /// Scrapes the head's pages, round after round. Only they are waited for.
    async fn look_at_head(self) {
        let mut targets = self.targets.subscribe();
        let mut every = rounds(self.settings.metrics.interval);
        loop {
            // A list that has just been found is not left waiting for its turn.
            tokio::select! {
                _ = every.tick() => {}
                Ok(()) = targets.changed() => every.reset(),
            }
            if self.is_succeeded() {
                return;
            }
            let found = Arc::clone(&targets.borrow_and_update());
            let mut failed = false;
            scrape::scrape_all(&self.client, &found.head, self.bounds(), self.app.clock, |target, page| {
                failed |= page.is_err();
                self.take(target, page, SignalReader::on_failure);
            })
            .await;
            self.head_answers.store(!failed, Ordering::Relaxed);
            self.hand_over();
        }
    }

    /// Scrapes the pages of all other nodes. What they say is handed over with the head's.
    async fn look_at_nodes(self) {
        let interval = self.settings.metrics.interval;
        let (mut every, mut turns) = (rounds(interval), Turns::default());
        loop {
            every.tick().await;
            if self.is_succeeded() {
                return;
            }
            turns.renew(&self.targets.borrow().nodes);
            let due = turns.due(self.app.clock.now());
            scrape::scrape_all(&self.client, &due, self.bounds(), self.app.clock, |target, page| {
                turns.note(target, page.is_ok(), self.app.clock.now(), interval);
                self.take(target, page, SignalReader::on_node_failure);
            })
            .await;
        }
    }

    fn take(
        &self,
        target: &Target,
        page: Result<Page, FetchError>,
        on_failure: impl FnOnce(&mut SignalReader, &str, &Missing),
    ) {
        let mut reader = self.reader.lock();
        let known = reader.of_head().count();
        match page {
            Ok(page) => {
                if let Err(missing) = reader.on_scrape(&target.name, &page.body, page.began, page.wall) {
                    tracing::debug!(target = %target.name, %missing, "a metrics page could not be used");
                }
            }
            Err(fault) => on_failure(&mut reader, &target.name, &target.missing(&fault)),
        }
        if reader.of_head().count() != known {
            self.put_first(&discover::hosts(reader.of_head()));
        }
    }

    /// These are the head's.
    fn put_first(&self, heads: &BTreeSet<String>) {
        self.targets.send_if_modified(|targets| match targets.with_heads(heads) {
            Some(ranked) => {
                *targets = Arc::new(ranked);
                true
            }
            None => false,
        });
    }

    /// Whether a page of the head's has said that it is.
    fn knows_head(&self) -> bool {
        self.reader.lock().of_head().next().is_some()
    }

    /// Asks all targets until a page is the head's, as long as none is and its address is not known either.
    async fn look_for_head(self) {
        let mut targets = self.targets.subscribe();
        if let Some(dashboard) = self.dashboard().filter(|_| !targets.borrow().is_empty()) {
            let listed = targets.borrow().all().cloned().collect();
            let ranked = discover::rank(&dashboard, listed, &BTreeSet::new()).await;
            if ranked.certain {
                self.targets.send_replace(Arc::new(ranked));
            }
        }
        let mut pause = REDISCOVER;
        loop {
            let found = Arc::clone(&targets.borrow_and_update());
            if !found.certain && !self.knows_head() {
                scrape::search(&self.client, &found.nodes, self.bounds(), self.app.clock, |target, page| {
                    self.take(target, page, SignalReader::on_node_failure);
                    if self.knows_head() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .await;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(SEARCH_PAUSE_MAX),
                _ = targets.changed() => pause = REDISCOVER,
            }
            if self.is_succeeded() {
                return;
            }
        }
    }

    /// Finds the targets, and finds them anew: often as long as the head's own do not answer.
    async fn look_for_targets(self) {
        let mut last_fault = String::new();
        loop {
            self.discover(&mut last_fault).await;
            let mut slept = Duration::ZERO;
            while slept < REDISCOVER_CALM {
                tokio::time::sleep(REDISCOVER).await;
                slept += REDISCOVER;
                if self.is_succeeded() {
                    return;
                }
                // A head that has been replaced has other ports.
                if !self.head_answers.load(Ordering::Relaxed) || self.targets.borrow().is_empty() {
                    break;
                }
            }
        }
    }

    /// Finds the targets anew; keeps the old ones where none are to be found.
    async fn discover(&self, last_fault: &mut String) {
        let Some(dashboard) = self.dashboard() else { return };
        let of_head = self.reader.lock().of_head().map(str::to_owned).collect();
        let places = Places {
            dashboard: &dashboard,
            ask_dashboard: self.settings.metrics.discover,
            token: self.app.rays_token(),
            file: self.file(),
            of_head: &of_head,
        };
        match discover::discover(&self.client, places).await {
            Ok(discovery) if discovery.targets == **self.targets.borrow() => {}
            Ok(discovery) => {
                say_what_was_found(&discovery);
                let names: std::collections::HashSet<&str> =
                    discovery.targets.all().map(|target| &*target.name).collect();
                self.reader.lock().keep_targets(|target| names.contains(target));
                self.targets.send_replace(Arc::new(discovery.targets));
            }
            Err(fault) => {
                let fault = fault.to_string();
                // Of its reason alone: what to do is said with the signals.
                self.reader.lock().on_no_target(fault.split(';').next().unwrap_or_default());
                // Once, and again when the reason is another: it is looked for every few seconds.
                if *last_fault != fault {
                    tracing::warn!(
                        fault,
                        "Ray's metrics are not found; looking again every {} s",
                        REDISCOVER.as_secs()
                    );
                    *last_fault = fault;
                }
                return;
            }
        }
        last_fault.clear();
    }

    /// Probes, one after the other.
    async fn probe(self, wanted: settings::Probe) {
        let Ok(upstream) = Url::parse(&self.settings.upstream.url()) else { return };
        let name = self.settings.upstream.authority();
        let mut every = rounds(wanted.interval);
        loop {
            every.tick().await;
            if self.is_succeeded() {
                return;
            }
            let (path, timeout) = (&wanted.path, wanted.timeout);
            let probe = probe::probe(&self.client, &upstream, path, timeout, self.app.clock).await;
            let down = match &probe.outcome {
                ProbeOutcome::Down(fault) => Some(fault.to_string()),
                ProbeOutcome::Answered(..) | ProbeOutcome::Slow(..) => None,
            };
            self.app.on_upstream(down.as_deref());
            let latency_ms = probe.outcome.latency_ms(&name);
            self.reader.lock().on_probe(&name, &latency_ms, probe.began);
            self.hand_over();
        }
    }

    /// Asks jobs that were let in whether they have started, one after the other.
    async fn ask_jobs(self, wanted: settings::Probe) {
        let Ok(upstream) = Url::parse(&self.settings.upstream.url()) else { return };
        let mut every = rounds(wanted.interval);
        loop {
            every.tick().await;
            if self.is_succeeded() {
                return;
            }
            let jobs = Arc::clone(&self.app.proxy().submitted);
            let Some(job) = jobs.lock().next(self.app.clock.now()) else { continue };
            let token = self.app.rays_token();
            match job_state::ask(&self.client, &upstream, &job, token, wanted.timeout).await {
                Ok(state) => jobs.lock().on_answer(&job, state, self.app.clock.now()),
                Err(fault) => {
                    tracing::debug!(%fault, "a job's state is not to be had");
                    if fault.is_refused() {
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Asks Prometheus, each expression on its own.
    fn query_all(&self) {
        let Some(access) = &self.settings.metrics.prometheus else { return };
        let server = match Server::new(access) {
            Ok(server) => server,
            Err(fault) => {
                tracing::error!(%fault, "Prometheus cannot be asked");
                return;
            }
        };
        let queries: Vec<_> = self.reader.lock().queries().collect();
        for (signal, expression) in queries {
            self.app.tasks.spawn_until_closed(self.clone().query(server.clone(), signal, expression));
        }
    }

    async fn query(self, server: Server, signal: SignalId, expression: Arc<str>) {
        let mut every = rounds(self.settings.metrics.interval);
        loop {
            every.tick().await;
            if self.is_succeeded() {
                return;
            }
            let (now, wall) = (self.app.clock.now(), self.app.clock.wall());
            let answer: Result<_, Missing> = promql::query(&server, &expression, self.bounds())
                .await
                .map(|answer| (answer.value, answer.evaluated))
                .map_err(|fault: QueryError| fault.missing(&server, &expression));
            self.reader.lock().on_answer(signal, &expression, &server.name, &answer, now, wall);
            self.hand_over();
        }
    }

    /// Whether a reload has put another watch in this one's place.
    fn is_succeeded(&self) -> bool {
        !Arc::ptr_eq(&self.settings, &self.app.settings())
    }

    fn hand_over(&self) {
        if self.is_succeeded() {
            return; // these readings are numbered by a policy that is gone
        }
        let readings = self.reader.lock().readings(self.app.clock.now());
        self.app.on_readings(&readings);
    }
}

fn rounds(interval: Duration) -> Interval {
    let mut every = tokio::time::interval(interval);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every
}

fn say_what_was_found(discovery: &Discovery) {
    let head: Vec<&str> = discovery.targets.head.iter().map(|target| &*target.name).collect();
    let nodes = discovery.targets.nodes.len();
    tracing::info!(head = %head.join(", "), other_nodes = nodes, "found Ray's metrics");
    if !discovery.bad.is_empty() {
        let named: Vec<String> = discovery.bad.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let count = discovery.bad.len();
        tracing::warn!(count, entries = %named.join("; "), "skipped entries of Ray's list of targets");
    }
    if discovery.left_out > 0 {
        let (max, left_out) = (discover::TARGETS_MAX, discovery.left_out);
        tracing::warn!(
            max,
            left_out,
            "Ray lists more targets than rayguard reads; reading only the \
            head's own"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Overrides};
    use crate::proxy::tasks::Tasks;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that counts its requests, and answers with this page, or never.
    struct Exporter {
        port: u16,
        asked: Arc<AtomicUsize>,
    }

    impl Exporter {
        async fn start(tasks: &Tasks, page: Option<&'static str>) -> Exporter {
            let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let asked = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&asked);
            tasks.spawn(async move {
                let mut silent = Vec::new();
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                    let Some(page) = page else {
                        silent.push(stream);
                        continue;
                    };
                    let _ = stream.read(&mut [0; 4096]).await;
                    let length = page.len();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}"
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
            Exporter { port, asked }
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    const HEAD: &str = "ray_node_cpu_utilization{IsHeadNode=\"true\"} 40\n";
    const DASHBOARD: &str = "ray_component_cpu_percentage{Component=\"dashboard\"} 40\n";

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("rayguard-watch-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A guard that reads only the list of targets in `dir`.
    fn watched(dir: &Path, tasks: &Tasks) -> Arc<App> {
        let text = format!(
            "upstream = 'http://127.0.0.1:1'\n[probe]\nenabled = false\n[metrics]\ndiscover = false\n\
             discovery_file = '{}'\ninterval = '200ms'\ntimeout = '200ms'\n",
            dir.join("sd.json").display()
        );
        let settings = config::parse(&text, "test", &Overrides::default()).unwrap();
        let app = App::of_test(settings, dir, tasks.clone());
        start(&app);
        app
    }

    async fn until(met: impl Fn() -> bool) {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_heads_pages_are_read_each_round_whatever_bad_entries_and_silent_nodes_there_are() {
        let (dir, tasks) = (directory("silent"), Tasks::default());
        let head = Exporter::start(&tasks, Some(HEAD)).await;
        let dashboard = Exporter::start(&tasks, Some(DASHBOARD)).await;
        let silent = Exporter::start(&tasks, None).await;
        let mut list = vec![format!("\"127.0.0.1:{}\"", head.port), "\"\"".to_owned(), "null".to_owned()];
        list.extend((2..66).map(|node| format!("\"127.0.1.{node}:{}\"", silent.port)));
        list.push(format!("\"127.0.0.1:{}\"", dashboard.port));
        std::fs::write(dir.join("sd.json"), format!("[{{\"targets\": [{}]}}]", list.join(","))).unwrap();
        let _guard = watched(&dir, &tasks);
        until(|| head.asked() >= 8 && dashboard.asked() >= 8).await;
        // All of them in each of eight rounds would be 512.
        assert!(silent.asked() <= 192, "silent nodes were asked {} times", silent.asked());
        until(|| silent.asked() >= 64).await;
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_head_with_one_exporter_is_found_among_silent_nodes_with_two_and_asked_first_from_then_on() {
        let (dir, tasks) = (directory("tie"), Tasks::default());
        let head = Exporter::start(&tasks, Some(HEAD)).await;
        let silent = [Exporter::start(&tasks, None).await, Exporter::start(&tasks, None).await];
        let nodes = (2..42)
            .flat_map(|node| silent.each_ref().map(|each| format!("\"127.0.1.{node}:{}\"", each.port)));
        let mut list: Vec<String> = nodes.collect();
        list.push(format!("\"127.0.2.1:{}\"", head.port));
        std::fs::write(dir.join("sd.json"), format!("[{{\"targets\": [{}]}}]", list.join(","))).unwrap();
        let guard = watched(&dir, &tasks);
        until(|| guard.has_read("node_cpu")).await;
        let before = head.asked();
        until(|| head.asked() >= before + 6).await;
        // Those that were guessed to be the head's are nodes like all others now, and asked less and less often.
        let asked = silent.iter().map(Exporter::asked).sum::<usize>();
        assert!(asked <= 80 * 4, "silent nodes were asked {asked} times");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
