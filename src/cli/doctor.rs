//! `rayguard doctor`: would it work on this host, and if not, what is to be done?
//!
//! Looks at what `run` will need, in the order in which it will: the configuration, Ray
//! itself, the ports, Ray's metrics, each signal in them, the directory for limits and
//! adjustment log, the clock and the bounds of the system. It changes nothing and sheds nothing: a
//! few GETs, and each port is opened and closed again. Every finding that is not well carries
//! what to do.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use reqwest::Client;
use serde::Serialize;
use serde_json::json;
use url::Url;

use crate::cli::config_file::ConfigFile;
use crate::cli::format::Format;
use crate::cli::run::why_not_bound;
use crate::config::settings::{self, Address, Admin, Settings};
use crate::config::{self, Overrides};
use crate::core::controller::backlog::TRICKLE;
use crate::core::policy::{Policy, Signal, SignalId, SignalSource};
use crate::core::request::profile::Fit;
use crate::core::signal::reading::Missing;
use crate::core::signal::series::SignalReader;
use crate::observe::discover::{self, DiscoverError, Places};
use crate::observe::fetch::{self, FetchError, FetchLimits};
use crate::observe::probe::{self, ProbeOutcome};
use crate::observe::promql::{self, Server};
use crate::observe::scrape::{self, Target, Targets};
use crate::proxy::clock::Clock;
use crate::replicas::store::Store;
use crate::runtime::head_version;
use crate::runtime::ray_identity::Seen;
use crate::runtime::secret;

/// Diagnoses this host and suggests fixes.
///
/// Exit codes: 0 no check failed, 1 a check failed, 2 the configuration cannot be used.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Configuration file.
    #[command(flatten)]
    pub config: ConfigFile,
    /// URL of Ray's dashboard, for example http://127.0.0.1:8265.
    #[arg(long)]
    pub upstream: Option<String>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// The answer cannot be written, or the system refuses to begin.
    #[error("doctor cannot run: {0}")]
    System(#[from] io::Error),
    /// No HTTP client.
    #[error(transparent)]
    Client(#[from] FetchError),
}

/// How well something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It would run, and not as well as it could.
    Warn,
    /// It would not do its work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How well it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do, or empty.
    pub remedy: String,
}

impl Finding {
    fn ok(subject: &str, found: impl Into<String>) -> Finding {
        Finding {
            subject: subject.to_owned(),
            health: Health::Ok,
            found: found.into(),
            remedy: String::new(),
        }
    }
    fn warn(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { health: Health::Warn, remedy: remedy.into(), ..Finding::ok(subject, found) }
    }
    fn fail(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { health: Health::Fail, remedy: remedy.into(), ..Finding::ok(subject, found) }
    }
}

/// Carries out the command; the number is the exit code.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<u8, DoctorError> {
    let overrides = Overrides { upstream: args.upstream.clone(), ..Overrides::default() };
    let settings = match args.config.path() {
        Some(path) => config::load(path, &overrides),
        None => Settings::defaults(&overrides).map_err(config::Error::from),
    };
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            writeln!(out, "{error}")?;
            return Ok(2);
        }
    };
    let findings = look(&settings)?;
    let failed = findings.iter().any(|finding| finding.health == Health::Fail);
    match args.format {
        Format::Json => writeln!(out, "{:#}", json!({ "ok": !failed, "findings": findings }))?,
        Format::Table => print(&findings, out)?,
    }
    Ok(u8::from(failed))
}

/// Looks at this host, on a runtime of its own.
pub fn look(settings: &Settings) -> Result<Vec<Finding>, DoctorError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(examine(settings))?)
}

/// Prints one finding, with its remedy where there is one.
pub fn print_finding(finding: &Finding, out: &mut dyn Write) -> io::Result<()> {
    let mark = match finding.health {
        Health::Ok => "OK",
        Health::Warn => "WARN",
        Health::Fail => "FAIL",
    };
    writeln!(out, "{mark:<4}  {:<27} {}", finding.subject, finding.found)?;
    if !finding.remedy.is_empty() {
        writeln!(out, "      {:<27} -> {}", "", finding.remedy)?;
    }
    Ok(())
}

fn print(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    for finding in findings {
        print_finding(finding, out)?;
    }
    let count = |health| findings.iter().filter(|finding| finding.health == health).count();
    writeln!(out, "\n{} OK, {} WARN, {} FAIL", count(Health::Ok), count(Health::Warn), count(Health::Fail))
}

/// Everything there is to look at.
pub async fn examine(settings: &Settings) -> Result<Vec<Finding>, FetchError> {
    let mut look = Look { settings, client: fetch::client()?, clock: Clock::start(), ray: Seen::default() };
    let mut findings = vec![Finding::ok("configuration", format!("valid (config {})", settings.version))];
    let ray = look.ray().await;
    let answers = ray.iter().all(|finding| finding.health != Health::Fail);
    findings.extend(ray);
    findings.extend(look.listeners(answers).await);
    findings.extend(look.readings().await);
    findings.push(look.state_dir());
    findings.extend(look.store().await);
    findings.extend(look.descriptors());
    Ok(findings)
}

/// What is looked at, and with what.
struct Look<'a> {
    settings: &'a Settings,
    client: Client,
    clock: Clock,
    ray: Seen,
}

// === Ray itself ===

/// The subject of what is said of the profile; once it is corrected, of that alone.
const PROFILE: &str = "ray profile";

impl Look<'_> {
    fn profile(&self, ray: &Seen) -> Finding {
        let says = ray.view(self.settings.ray).says;
        if self.settings.ray.is_none() && ray.fit == Fit::Newer {
            let remedy = "upgrade to a rayguard that knows it; until then it is treated as the newest \
                known version, unless its metrics say otherwise";
            Finding::warn(PROFILE, says, remedy)
        } else {
            Finding::ok(PROFILE, says)
        }
    }

    async fn ray(&mut self) -> Vec<Finding> {
        let Ok(dashboard) = Url::parse(&self.settings.upstream.url()) else { return Vec::new() };
        let mut findings = Vec::new();
        let shown = self.settings.upstream.url();
        let token = secret::rays_token(self.settings).unwrap_or_default();
        let mut withheld = None;
        match discover::version(&self.client, &dashboard, token.as_deref()).await {
            Ok(version) => {
                findings.push(Finding::ok("ray", format!("{} at {shown}", version.ray_version)));
                self.ray = Seen::of_version(&version.ray_version);
                findings.push(self.profile(&self.ray));
            }
            Err(fault) => {
                let Some(head) = head_version::withheld(&fault, token.is_some()) else {
                    findings.push(Finding::fail("ray", fault.to_string(), no_ray_remedy(&fault)));
                    return findings;
                };
                findings.push(Finding::warn("ray", format!("{shown} {}", head.found), head.remedy));
                withheld = Some(head);
            }
        }
        findings.extend(self.dashboard_facts(&dashboard).await);
        // It is asked once though the proxy does not probe.
        let settings::Probe { path, timeout, .. } = &self.settings.probe.clone().unwrap_or_default();
        findings.push(
            match probe::probe(&self.client, &dashboard, path, *timeout, self.clock).await.outcome {
                ProbeOutcome::Answered(latency) => {
                    Finding::ok("gcs", format!("answers in {:.1} ms", latency.as_secs_f64() * 1000.0))
                }
                ProbeOutcome::Slow(at_least) => Finding::warn(
                    "gcs",
                    format!("no answer within {at_least:?}"),
                    "the head is overloaded now, or probe.timeout is too short for it",
                ),
                ProbeOutcome::Down(fault) => Finding::fail(
                    "gcs",
                    fault.to_string(),
                    // A server that withholds this too may not be Ray at all.
                    withheld.map_or(
                        "the dashboard runs, but the GCS behind it does not answer: check `ray status`",
                        |head| head.remedy,
                    ),
                ),
            },
        );
        findings
    }

    /// Authentication and clock, both of one answer that needs no token.
    async fn dashboard_facts(&self, dashboard: &Url) -> Vec<Finding> {
        let mut url = dashboard.clone();
        url.set_path("/api/authentication_mode");
        let Ok(answer) = self.client.get(url).timeout(Duration::from_secs(4)).send().await else {
            return Vec::new();
        };
        let date = answer.headers().get("date").and_then(|date| date.to_str().ok().map(str::to_owned));
        let mut findings: Vec<Finding> =
            date.and_then(|date| self.clock_finding(&date)).into_iter().collect();
        if let Ok(body) = answer.bytes().await
            && let Ok(facts) = serde_json::from_slice::<serde_json::Value>(&body)
            && let Some(mode) = facts["authentication_mode"].as_str()
        {
            findings.push(match mode {
                "disabled" => Finding::warn(
                    "authentication",
                    "disabled: anyone who can reach Ray can run code on it",
                    "set RAY_AUTH_MODE=token, or let only rayguard reach Ray's ports",
                ),
                mode => Finding::ok(
                    "authentication",
                    format!(
                        "{mode}; rayguard passes credentials on \
                    unchanged"
                    ),
                ),
            });
        }
        findings
    }

    /// Our clock against the head's, to the second that a Date header has.
    fn clock_finding(&self, date: &str) -> Option<Finding> {
        let theirs = httpdate(date)?;
        let ours = self.clock.wall().0 / 1000;
        let apart = ours.abs_diff(theirs);
        let found = format!("{apart} s apart from the head's");
        Some(if apart <= 5 {
            Finding::ok("clock", found)
        } else {
            let remedy = "decisions do not depend on it, but times in the adjustment log differ from \
                those in Ray's logs: run chrony or ntpd";
            Finding::warn("clock", found, remedy)
        })
    }
}

/// What to do where no Ray has told its version.
fn no_ray_remedy(fault: &DiscoverError) -> &'static str {
    match fault {
        DiscoverError::Dashboard { fault: FetchError::Slow(..), .. } => {
            "it does not answer in time: the head is overloaded now (`rayguard run` protects it all the same), or \
             `upstream` is not the address of Ray"
        }
        DiscoverError::Dashboard { fault: FetchError::Status(408 | 429 | 500..=599), .. } => {
            "the server there reports an error: check Ray, and the ingress or proxy in front of it, then \
             try again"
        }
        DiscoverError::NotRay { .. } | DiscoverError::Dashboard { fault: FetchError::Status(..), .. } => {
            "something other than Ray answers there: set Ray's address with `upstream` or --upstream"
        }
        _ => "start Ray (ray start --head), or set its address with `upstream` or --upstream",
    }
}

/// Seconds since 1970 of `Mon, 23 Nov 2026 12:00:00 GMT`.
fn httpdate(date: &str) -> Option<u64> {
    let mut words = date.split(' ').skip(1);
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let whole = humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()?;
    whole.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

// === the store that replicas share ===

impl Look<'_> {
    async fn store(&self) -> Option<Finding> {
        let replicas = self.settings.replicas.as_ref()?;
        let remedy =
            "start it, or correct replicas.url; without it each replica continues with an even share";
        let password = match replicas
            .password
            .as_ref()
            .map(|from| secret::read(from, "password of the shared store"))
        {
            Some(Err(error)) => {
                return Some(Finding::fail("shared store", error.to_string(), "correct replicas.password"));
            }
            Some(Ok(password)) => Some(password),
            None => None,
        };
        let store = Store::of(replicas, password.as_deref());
        Some(match store {
            Err(error) => Finding::fail("shared store", error.to_string(), remedy),
            Ok(mut store) => match store.greet().await {
                Err(error) => Finding::fail("shared store", error.to_string(), remedy),
                Ok(()) => {
                    Finding::ok("shared store", format!("answers, and runs scripts, at {}", replicas.url))
                }
            },
        })
    }
}

// === ports ===

impl Look<'_> {
    async fn listeners(&self, ray_answers: bool) -> Vec<Finding> {
        let listeners = self.settings.listeners.iter().map(|listener| ("listen", &listener.address));
        let admin = self.settings.admin.as_ref().map(|admin| ("admin", &admin.listen));
        let mut findings = Vec::new();
        let service = self.settings.ratelimit_service.as_ref();
        let service = service.map(|service| ("ratelimit_service", &service.listen));
        for (subject, address) in listeners.chain(service).chain(admin) {
            findings.push(self.listener(subject, address).await);
        }
        if let Some(exposure) = self.settings.admin.as_ref().and_then(Admin::exposure) {
            let remedy = "listen on 127.0.0.1 or a Unix socket, or let only your network reach it (firewall, NetworkPolicy)";
            findings.push(Finding::warn("admin", exposure, remedy));
        }
        if ray_answers && self.settings.upstream.port == 8265 {
            let remedy = "fine for a first try; to protect Ray from every client: ray start --head \
                --dashboard-port=18265, and \
                          listen on 8265";
            findings.push(Finding::warn(
                "bypass",
                "Ray still listens on 8265: clients can bypass rayguard",
                remedy,
            ));
        }
        findings
    }

    async fn listener(&self, subject: &str, address: &Address) -> Finding {
        let Address::Tcp(tcp) = address else { return Finding::ok(subject, address.to_string()) };
        match TcpListener::bind(tcp) {
            Ok(_) => Finding::ok(subject, format!("{tcp} is free")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && self.is_ours().await => Finding::warn(
                subject,
                format!("{tcp} is used by a rayguard that is already running"),
                "expected if you are about to replace it; otherwise choose another address, because a \
                    second one cannot start beside it",
            ),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::fail(
                subject,
                format!("{tcp} is taken"),
                format!(
                    "find the process with: ss -ltnp 'sport = :{}'; or choose another address",
                    tcp.port()
                ),
            ),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::fail(
                subject,
                format!("{tcp}: {error}"),
                "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one",
            ),
            Err(error) => Finding::fail(
                subject,
                format!("{tcp}: {error}"),
                why_not_bound(&error, "choose another address"),
            ),
        }
    }

    /// Whether a rayguard answers at the admin address of these settings.
    async fn is_ours(&self) -> bool {
        let Some(Address::Tcp(admin)) = self.settings.admin.as_ref().map(|admin| &admin.listen) else {
            return false;
        };
        let host = if admin.ip().is_unspecified() { "127.0.0.1".to_owned() } else { admin.ip().to_string() };
        let url = format!("http://{host}:{}/livez", admin.port());
        let answer = self.client.get(url).timeout(Duration::from_secs(1)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

// === readings ===

impl Look<'_> {
    /// Two rounds, since a rate or a share needs two pages to differ.
    async fn readings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut reader = SignalReader::new(&self.settings.policy);
        let mut targets = self.targets(&mut findings).await;
        if !targets.certain {
            self.search(&mut targets, &mut reader, &mut findings).await;
        }
        let most = targets.head.len() + NODES_MAX;
        let targets: Vec<Target> = targets.all().take(most).cloned().collect();
        let answering = self.round(&targets, &mut reader, Some(&mut findings)).await;
        if !targets.is_empty() {
            tokio::time::sleep(self.settings.metrics.interval.min(ROUNDS_APART_MAX)).await;
            self.round(&answering, &mut reader, None).await;
        }
        self.prometheus(&mut reader, &mut findings).await;
        self.signals(&mut reader, &mut findings);
        findings
    }

    /// Asks all targets until a page says that it is the head's; its targets then come first.
    async fn search(&self, targets: &mut Targets, reader: &mut SignalReader, findings: &mut Vec<Finding>) {
        let metrics = &self.settings.metrics;
        let bounds = FetchLimits { timeout: metrics.timeout, body_bytes_max: metrics.body_bytes_max };
        let listed: Vec<Target> = targets.all().cloned().collect();
        scrape::search(&self.client, &listed, bounds, self.clock, |target, page| {
            if let Ok(page) = page {
                let _ = reader.on_scrape(&target.name, &page.body, page.began, page.wall);
            }
            if reader.of_head().next().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .await;
        if let Some(ranked) = targets.with_heads(&discover::hosts(reader.of_head())) {
            *targets = ranked;
            findings.push(Finding::ok("metrics targets", format!("the head's: {}", listed_head(targets))));
        }
    }

    async fn targets(&self, findings: &mut Vec<Finding>) -> Targets {
        let metrics = &self.settings.metrics;
        let given: Vec<Target> =
            metrics.targets.iter().filter_map(|url| Target::parse(url.as_str()).ok()).collect();
        let Ok(dashboard) = Url::parse(&self.settings.upstream.url()) else { return Targets::default() };
        let of_head = BTreeSet::new();
        if !given.is_empty() {
            return discover::rank(&dashboard, given, &of_head).await;
        }
        let token = secret::rays_token(self.settings).unwrap_or_default();
        let places = Places {
            dashboard: &dashboard,
            ask_dashboard: metrics.discover,
            token: token.as_deref(),
            file: metrics.discovery_file.as_deref(),
            of_head: &of_head,
        };
        let remedy = "name them: [metrics] targets = [\"HOST:8080\", \"HOST:44217\", \"HOST:44227\"]";
        match discover::discover(&self.client, places).await {
            Ok(found) => {
                findings.push(Finding::ok("metrics targets", listed(&found.targets)));
                for bad in found.bad.iter().take(ENTRIES_MAX) {
                    let what = format!("skipped an entry of Ray's list: {bad}");
                    findings.push(Finding::warn("metrics targets", what, remedy));
                }
                found.targets
            }
            Err(fault) => {
                findings.push(Finding::warn("metrics targets", fault.to_string(), remedy));
                Targets::default()
            }
        }
    }

    /// Reads each page once; returns the targets that gave one.
    async fn round(
        &self,
        targets: &[Target],
        reader: &mut SignalReader,
        mut findings: Option<&mut Vec<Finding>>,
    ) -> Vec<Target> {
        let metrics = &self.settings.metrics;
        let mut answering = Vec::new();
        let bounds = FetchLimits { timeout: metrics.timeout, body_bytes_max: metrics.body_bytes_max };
        scrape::scrape_all(&self.client, targets, bounds, self.clock, |target, page| {
            let subject = format!("metrics {}", target.name);
            let finding = match page {
                Ok(page) => {
                    answering.push(target.clone());
                    match reader.on_scrape(&target.name, &page.body, page.began, page.wall) {
                        Ok(_) => Finding::ok(
                            &subject,
                            format!("{} kB in {} ms", page.body.len() / 1000, page.took.as_millis()),
                        ),
                        Err(missing) => {
                            Finding::warn(&subject, missing.to_string(), "is this Ray's exporter?")
                        }
                    }
                }
                Err(fault) => {
                    reader.on_failure(&target.name, &target.missing(&fault));
                    let remedy = "is the port open to this host? Ray's metrics ports need no token";
                    Finding::warn(&subject, fault.to_string(), remedy)
                }
            };
            if let Some(findings) = &mut findings {
                findings.push(finding);
            }
        })
        .await;
        if let (Some(wanted), Ok(dashboard)) =
            (&self.settings.probe, Url::parse(&self.settings.upstream.url()))
        {
            let probe =
                probe::probe(&self.client, &dashboard, &wanted.path, wanted.timeout, self.clock).await;
            let name = self.settings.upstream.authority();
            reader.on_probe(&name, &probe.outcome.latency_ms(&name), probe.began);
        }
        answering
    }

    async fn prometheus(&self, reader: &mut SignalReader, findings: &mut Vec<Finding>) {
        let metrics = &self.settings.metrics;
        let Some(access) = &metrics.prometheus else { return };
        let remedy = "correct the keys [metrics] prometheus..., or remove them";
        let server = match Server::new(access) {
            Ok(server) => server,
            Err(fault) => return findings.push(Finding::fail("prometheus", fault.to_string(), remedy)),
        };
        let bounds = FetchLimits { timeout: metrics.timeout, body_bytes_max: metrics.body_bytes_max };
        findings.push(match promql::query(&server, "vector(1)", bounds).await {
            Ok(_) => Finding::ok("prometheus", format!("{} answers", server.name)),
            Err(fault) => Finding::fail("prometheus", fault.to_string(), remedy),
        });
        let queries: Vec<_> = reader.queries().collect();
        for (signal, expression) in queries {
            let (now, wall) = (self.clock.now(), self.clock.wall());
            let answer = promql::query(&server, &expression, bounds).await;
            let answer = answer
                .map(|answer| (answer.value, answer.evaluated))
                .map_err(|fault| fault.missing(&server, &expression));
            reader.on_answer(signal, &expression, &server.name, &answer, now, wall);
        }
    }

    /// Each signal: found where, how fresh, and against which target. Those that no class
    /// follows are nice to have, and share a line when they are not there.
    fn signals(&self, reader: &mut SignalReader, findings: &mut Vec<Finding>) {
        let policy = &self.settings.policy;
        let now = self.clock.now();
        let followed = |id| policy.follows(id);
        let readings = reader.readings(now);
        let is_read = |name: &str| {
            let named = readings.iter().find(|(id, _)| &*policy.signals[id.index()].name == name);
            named.is_some_and(|(_, reading)| reading.is_ok())
        };
        let ray = match &self.ray.version {
            Some(_) => self.ray.clone().corrected(&self.ray, is_read),
            None => Seen::of_signals(is_read).unwrap_or_default(),
        };
        if ray.version.is_none() || ray != self.ray {
            findings.retain(|finding| finding.subject != PROFILE);
            findings.push(self.profile(&ray));
        }
        let profile = self.settings.ray.copied().unwrap_or(ray.profile);
        let is_known = ray != Seen::default();
        let (mut spare, mut lacking) = (Vec::new(), Vec::new());
        let (mut pageless, mut trickling, mut no_page) = (Vec::new(), Vec::new(), String::new());
        for (id, reading) in readings {
            let signal = &policy.signals[id.index()];
            let subject = format!("signal {}", signal.name);
            match reading {
                Ok(reading) => {
                    let age = now.since(reading.at).as_secs_f64();
                    let found = format!(
                        "{:.1} {} (target {}), {age:.0} s old, from {}",
                        reading.value,
                        signal.unit,
                        signal.target,
                        short(&reading.source)
                    );
                    findings.push(if reading.value > signal.target && followed(id) {
                        Finding::warn(
                            &subject,
                            found,
                            "above its target: limits that follow it would fall now",
                        )
                    } else {
                        Finding::ok(&subject, found)
                    });
                }
                Err(Missing::NotFound { .. }) if is_known && profile.lacks(&signal.name) => {
                    lacking.push(&*signal.name);
                }
                Err(missing @ Missing::NoPage { .. }) if followed(id) => {
                    no_page = missing.to_string();
                    pageless.push(&*signal.name);
                    if signal.backlog {
                        trickling.push(id);
                    }
                }
                Err(missing) if followed(id) => {
                    let remedy = format!("{}; {}", look_where(signal, &missing), meanwhile(policy, id));
                    let found = match missing {
                        Missing::NotFound { .. } => format!("not found as {}", looked_for(signal)),
                        other => other.to_string(),
                    };
                    findings.push(Finding::warn(&subject, found, remedy));
                }
                Err(_) => spare.push(&*signal.name),
            }
        }
        if !pageless.is_empty() {
            let found =
                format!("{no_page}; {} signals have no reading: {}", pageless.len(), pageless.join(", "));
            let mut remedy =
                "list the exporters in [metrics] targets; until then rates and ceilings that follow these \
                              signals do not rise"
                    .to_owned();
            if let Some(id) = trickling.first() {
                let _ = write!(remedy, "; {}", meanwhile(policy, *id));
            }
            findings.push(Finding::warn("signals", found, remedy));
        }
        if !lacking.is_empty() {
            let found = format!("not exported by this Ray: {}", lacking.join(", "));
            findings.push(Finding::ok("signals of other versions", found));
        }
        if !spare.is_empty() {
            let found = format!("not found, and no class follows them: {}", spare.join(", "));
            findings.push(Finding::ok("other signals", found));
        }
    }
}

/// Where the reason lies that a signal has no reading: where it is to be had, or in its name.
fn look_where(signal: &Signal, missing: &Missing) -> String {
    match missing {
        Missing::Unreachable { target, .. } => format!("{target} exports it but did not answer"),
        _ => format!("if Ray exports it under another name, set [signal.{}] sources", signal.name),
    }
}

/// What becomes of limits while a signal is not read.
fn meanwhile(policy: &Policy, id: SignalId) -> String {
    let class = policy.classes.iter().find(|class| class.backlog == Some(id));
    match class {
        Some(class) => format!(
            "until then rayguard asks Ray for the state of each admitted job; without that, {:.0} requests of {} pass at once and then one every {} s",
            (policy.signals[id.index()].target / 2.0).floor(),
            class.name,
            TRICKLE.as_secs()
        ),
        None => "until then rates and ceilings that follow it do not rise".to_owned(),
    }
}

/// The names of a signal's sources, for people.
fn looked_for(signal: &Signal) -> String {
    let name = |source: &SignalSource| match source {
        SignalSource::Scrape(derivation) => derivation.select.metric.to_string(),
        SignalSource::PromQl(expression) => expression.to_string(),
        SignalSource::Probe => "the probe".to_owned(),
    };
    let mut names: Vec<String> = signal.sources.iter().map(name).collect();
    names.dedup();
    names.join(", ")
}

fn listed_head(targets: &Targets) -> String {
    let head: Vec<&str> = targets.head.iter().map(|target| &*target.name).collect();
    head.join(", ")
}

fn listed(targets: &Targets) -> String {
    let others = match targets.nodes.len() {
        0 => String::new(),
        1 => ", and one of another node".to_owned(),
        count => format!(", and {count} of other nodes"),
    };
    listed_head(targets) + &others
}

/// Entries of a list that are no targets are named up to this many.
const ENTRIES_MAX: usize = 5;

/// So many nodes beside the head are looked at.
const NODES_MAX: usize = scrape::AT_ONCE;

/// The longest that a second look at the pages is waited for.
const ROUNDS_APART_MAX: Duration = Duration::from_secs(5);

// === the host ===

impl Look<'_> {
    /// A file is made and taken away again, as `run` will make some.
    fn state_dir(&self) -> Finding {
        let dir = &self.settings.state_dir;
        let shown = dir.display();
        // "" is what stands above a relative path.
        let above = dir.ancestors().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
        let Some(nearest) = above.into_iter().find(|dir| dir.is_dir()) else {
            return Finding::fail(
                "state_dir",
                format!("{shown}: none of its parent directories exists"),
                "choose another state_dir",
            );
        };
        let trial = nearest.join(format!(".rayguard-doctor-{}", std::process::id()));
        match std::fs::write(&trial, b"") {
            Ok(()) => {
                let left = std::fs::remove_file(&trial).is_err();
                let found = if left {
                    format!("{shown} is writable, but files in it cannot be deleted")
                } else {
                    format!("{shown} is writable")
                };
                Finding::ok("state_dir", found)
            }
            Err(error) => Finding::fail(
                "state_dir",
                format!("{shown}: {error}"),
                "set state_dir to a directory that this user can write; otherwise limits and the \
                    adjustment log do not survive a restart",
            ),
        }
    }

    /// Two descriptors for each exchange under way, and the listeners', files' and pools'.
    fn descriptors(&self) -> Option<Finding> {
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
        let soft: u64 = line.split_whitespace().nth(3)?.parse().ok()?;
        let wanted = 2 * self.settings.http.connections_max as u64 + 256;
        let found = format!("{soft} file descriptors, up to {wanted} may be needed");
        Some(if soft >= wanted {
            Finding::ok("open files", found)
        } else {
            Finding::warn(
                "open files",
                found,
                "raise it (LimitNOFILE=, ulimit -n), or lower [http] connections_max",
            )
        })
    }
}

/// A source without its label conditions, where they would fill the screen.
fn short(source: &str) -> &str {
    let bare = source.split_once('{').map_or(source, |(bare, _)| bare);
    if source.len() > 90 { bare } else { source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::emulator::{Emulator, EmulatorConfig};

    fn settings(text: &str) -> Settings {
        config::parse(text, "test", &Overrides::default()).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[track_caller]
    fn of<'a>(findings: &'a [Finding], subject: &str) -> &'a Finding {
        findings
            .iter()
            .find(|finding| finding.subject == subject)
            .unwrap_or_else(|| panic!("{subject} is missing from {findings:#?}"))
    }

    #[tokio::test]
    async fn beside_a_head_that_runs_all_is_found() {
        let head = Emulator::start(EmulatorConfig::default()).await.unwrap();
        let text = format!(
            "upstream = 'http://{}'\nlisten = '127.0.0.1:0'\nstate_dir = '{}'\n[admin]\nlisten = '127.0.0.1:0'\n\
             [metrics]\ntargets = ['{}', '{}']\ninterval = '100ms'\ntimeout = '100ms'\n",
            head.dashboard,
            std::env::temp_dir().display(),
            head.metrics,
            head.dashboard_metrics
        );
        let findings = examine(&settings(&text)).await.unwrap();
        for subject in ["configuration", "ray", "gcs", "listen", "admin", "state_dir", "signal head_cpu"] {
            assert_eq!(of(&findings, subject).health, Health::Ok, "{findings:#?}");
        }
        assert!(findings.iter().all(|finding| finding.health != Health::Fail), "{findings:#?}");
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_with_what_to_do() {
        // A port that was free a moment ago, and one that is taken.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let text = format!(
            "upstream = 'http://{free}'\nlisten = '{}'\nstate_dir = '/proc/nowhere'\n[admin]\nlisten = 'off'\n\
             [metrics]\ndiscovery_file = '/nowhere.json'\n",
            taken.local_addr().unwrap()
        );
        let findings = examine(&settings(&text)).await.unwrap();
        for subject in ["ray", "listen", "state_dir"] {
            assert_eq!(of(&findings, subject).health, Health::Fail, "{findings:#?}");
        }
        assert_eq!(of(&findings, "metrics targets").health, Health::Warn);
        assert!(findings.iter().all(|finding| finding.health == Health::Ok || !finding.remedy.is_empty()));
    }

    /// Answers every request with 200, as the admin listener of a rayguard answers `/livez`.
    fn alive() -> std::net::SocketAddr {
        answers_all(|_| "200 OK")
    }

    /// Answers every request with what comes of its first line: a status, and perhaps header lines.
    fn answers_all(answer: impl Fn(&str) -> &'static str + Send + 'static) -> std::net::SocketAddr {
        use std::io::Read as _;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap_or(0);
                let head = answer(&String::from_utf8_lossy(&request[..length]));
                let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        address
    }

    #[tokio::test]
    async fn a_head_that_withholds_its_version_is_a_warning_and_one_that_withholds_its_health_too_a_failure()
    {
        let withheld = [
            ("302 Found\r\nlocation: /login", "status 302", "the address where Ray itself answers"),
            ("401 Unauthorized", "status 401", "metrics.token"),
            ("404 Not Found", "status 404", "the address where Ray itself answers"),
            ("200 OK\r\ncontent-type: text/html", "a web page", "the address where Ray itself answers"),
        ];
        for (answer, found, remedy) in withheld {
            for health in ["200 OK", answer] {
                let head =
                    answers_all(move |request| if request.contains("gcs_healthz") { health } else { answer });
                let text = format!(
                    "upstream = 'http://{head}'\nlisten = '127.0.0.1:0'\nstate_dir = '{}'\n[admin]\nlisten = 'off'\n\
                     [metrics]\ndiscover = false\ndiscovery_file = '/nowhere.json'\n",
                    std::env::temp_dir().display()
                );
                let findings = examine(&settings(&text)).await.unwrap();
                let ray = of(&findings, "ray");
                assert!(
                    ray.found.contains("does not report its version") && ray.found.contains(found),
                    "{ray:?}"
                );
                assert!(ray.health == Health::Warn && ray.remedy.contains(remedy), "{ray:?}");
                let gcs = of(&findings, "gcs");
                assert_eq!(gcs.health == Health::Fail, health == answer, "{gcs:?}");
                assert!(gcs.health != Health::Fail || gcs.remedy == ray.remedy, "{gcs:?}");
            }
        }
    }

    #[test]
    fn a_signal_is_looked_for_under_another_name_only_where_somebody_answered() {
        let settings = settings("");
        let signal = settings.policy.signals.iter().find(|signal| &*signal.name == "head_cpu").unwrap();
        let silent =
            Missing::Unreachable { target: "192.0.2.2:8080".into(), problem: "no connection".into() };
        let remedy = look_where(signal, &silent);
        assert!(remedy.contains("192.0.2.2:8080") && !remedy.contains("another name"), "{remedy}");
        let absent = Missing::NotFound { tried: "ray_node_cpu_utilization".into() };
        assert!(look_where(signal, &absent).contains("[signal.head_cpu] sources"));
    }

    #[test]
    fn a_head_that_is_short_of_time_is_not_called_something_else_nor_absent() {
        let of = |fault| no_ray_remedy(&DiscoverError::Dashboard { url: String::new(), fault });
        assert!(of(FetchError::Slow(Duration::from_secs(4))).contains("overloaded"));
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(of(FetchError::Status(status)).contains("try again"), "{status}");
        }
        assert!(of(FetchError::Status(400)).starts_with("something other than Ray"));
        assert!(of(FetchError::Unreachable("refused".to_owned())).starts_with("start Ray"));
    }

    #[tokio::test]
    async fn a_port_that_another_rayguard_holds_is_a_warning_and_one_signal_line_says_that_no_page_was_read()
    {
        let (head, admin) = (alive(), alive());
        let text = format!(
            "upstream = 'http://{head}'\nlisten = '127.0.0.1:0'\nstate_dir = '{}'\n[admin]\nlisten = '{admin}'\n\
             [metrics]\ndiscover = false\ndiscovery_file = '/nowhere.json'\n[probe]\nenabled = false\n",
            std::env::temp_dir().display()
        );
        let findings = examine(&settings(&text)).await.unwrap();
        let port = of(&findings, "admin");
        assert_eq!(
            (port.health, port.remedy.contains("cannot start beside it")),
            (Health::Warn, true),
            "{port:?}"
        );
        let ray = of(&findings, "ray");
        assert!(ray.remedy.starts_with("something other than Ray answers there"), "{ray:?}");
        let signals: Vec<_> =
            findings.iter().filter(|finding| finding.subject.starts_with("signal")).collect();
        assert_eq!(signals.len(), 1, "{signals:#?}");
        assert!(
            signals[0].remedy.contains("requests of job-submit pass at once and then one every 5 s"),
            "{signals:?}"
        );
    }

    #[tokio::test]
    async fn a_relative_state_dir_lies_in_the_working_directory() {
        let settings = settings("state_dir = 'rayguard-state-of-a-test'");
        let (client, clock) = (fetch::client().unwrap(), Clock::start());
        let look = Look { settings: &settings, client, clock, ray: Seen::default() };
        assert_eq!(look.state_dir().health, Health::Ok);
    }

    #[test]
    fn the_heads_clock_is_read_from_its_answers() {
        assert_eq!(httpdate("Thu, 01 Jan 1970 00:01:05 GMT"), Some(65));
        assert_eq!(httpdate("Mon, 23 Nov 2026 12:00:00 GMT"), Some(1_795_435_200));
        for wrong in
            ["", "now", "Mon, 23 Nov", "Mon, 99 Xxx 2026 12:00:00 GMT", "Mon, 31 Feb 2026 12:00:00 GMT"]
        {
            assert_eq!(httpdate(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_configuration_that_is_wrong_is_code_2() {
        let mut out = Vec::new();
        let args = Args { config: None.into(), upstream: Some("ftp://x".into()), format: Format::Table };
        assert_eq!(run(&args, &mut out).unwrap(), 2);
        assert!(String::from_utf8(out).unwrap().contains("upstream"));
    }
}
