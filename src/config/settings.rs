//! What the program runs by, checked: no field of these types can be wrong any more.
//!
//! The core's share is the [`Policy`]; the rest tells the rooms around it where to listen,
//! what to scrape, where to write and whom to tell. Plain data without behaviour: it is made
//! in `checked`, once at start and once a reload, and shared behind an `Arc`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use url::Url;

pub use super::keys::{AdjustmentLog, Http, Log, Probe};
pub use super::scalars::{Address, ApiKey, LogFormat, NotifyKind, Secret, Upstream};

use rayguard_core::admission::table::Mode;
use rayguard_core::alert::{Alert, Patience};
use rayguard_core::policy::Policy;
use rayguard_core::replicas::Timing;
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::classify::Rule;
use rayguard_core::request::profile::Profile;

/// Everything the program runs by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names this configuration in the adjustment log: 12 hexadecimal digits of the file's SHA-256.
    pub version: Arc<str>,
    /// What becomes of sheds, where a class does not say otherwise.
    pub mode: Mode,
    /// What becomes of sheds, indexed by [`ClassId`](rayguard_core::policy::ClassId).
    pub class_modes: Vec<Mode>,
    /// Ray's dashboard: where the probe and discovery ask, and where dashboard listeners lead.
    pub upstream: Upstream,
    /// The profile of the Ray there, where it is not to be found out.
    pub ray: Option<&'static Profile>,
    /// Where rayguard listens; at least one.
    pub listeners: Vec<Listener>,
    /// Networks whose X-Forwarded-* and identity headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whom users may turn to, as every refusal says.
    pub contact: Option<Arc<String>>,
    /// Limits and timeouts of HTTP itself.
    pub http: Http,
    /// Who counts as one client.
    pub identity: Identity,
    /// Where Ray's readings come from.
    pub metrics: Metrics,
    /// The active probe of the GCS, if wanted.
    pub probe: Option<Probe>,
    /// The admin listener, if wanted.
    pub admin: Option<Admin>,
    /// The rate-limit service that Envoys ask, if wanted.
    pub ratelimit_service: Option<RatelimitService>,
    /// Where last good limits survive a restart.
    pub state_dir: PathBuf,
    /// The adjustment log.
    pub adjustment_log: AdjustmentLog,
    /// The program's own log.
    pub log: Log,
    /// Alerts and whom they reach.
    pub alerts: Alerts,
    /// The store this replica shares with others, if it does.
    pub replicas: Option<Replicas>,
    /// The core's share.
    pub policy: Arc<Policy>,
    /// The operator's routes, before Ray's own; [`Classifier::new`] takes them as they are.
    ///
    /// [`Classifier::new`]: rayguard_core::request::classify::Classifier::new
    pub routes: Vec<Rule>,
}

/// One listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listener {
    /// What is spoken there.
    pub surface: Surface,
    /// Where.
    pub address: Address,
    /// Where it leads.
    pub upstream: Upstream,
    /// TLS towards the upstream.
    pub upstream_tls: Option<UpstreamTls>,
    /// TLS towards clients.
    pub tls: Option<Tls>,
    /// Whether a PROXY protocol header (v1 or v2) comes before anything else. It is
    /// believed from trusted proxies alone.
    pub proxy_protocol: bool,
}

/// Files of a TLS listener; they are read when it is opened and again when they have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    /// PEM, the chain.
    pub certificate: PathBuf,
    /// PEM, the private key.
    pub key: PathBuf,
    /// PEM, authorities: only clients with a certificate of theirs are let in.
    pub client_authorities: Option<PathBuf>,
}

/// How the server behind a listener proves who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpstreamTls {
    /// PEM, the authorities that may vouch for it.
    pub authorities: PathBuf,
    /// The name it is vouched for under.
    pub name: ServerName<'static>,
}

/// Who counts as one client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Headers, set by trusted proxies, that name the client; lower-case, best first.
    pub headers: Vec<Arc<str>>,
    /// The header in which clients send their API key; lower-case.
    pub api_key_header: Arc<str>,
    /// The header in which programs name themselves; lower-case.
    pub agent_header: Arc<str>,
    /// How the names of those begin that are clients of their own; lower-case.
    pub agents: Vec<Arc<str>>,
    /// Keys handed to known clients, those of the file among them.
    pub api_keys: Vec<ApiKey>,
    /// The file that some of them stand in; it is read with the configuration, and again when it
    /// has changed.
    pub api_keys_file: Option<PathBuf>,
}

/// Where Ray's readings come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metrics {
    /// The Prometheus server that PromQL sources ask.
    pub prometheus: Option<Prometheus>,
    /// Exposition pages to scrape.
    pub targets: Vec<Url>,
    /// Ray's own list of targets, in Prometheus' file_sd form.
    pub discovery_file: Option<PathBuf>,
    /// Whether to ask Ray's dashboard (`GET /api/prometheus/sd`); the file is read where it does
    /// not say.
    pub discover: bool,
    /// Ray's own token, for asking it where `RAY_AUTH_MODE=token`.
    pub token: Option<Secret>,
    /// How often each target is scraped.
    pub interval: Duration,
    /// How long one scrape or query may take.
    pub timeout: Duration,
    /// Bytes of one page; a longer one is given up.
    pub body_bytes_max: usize,
}

/// A Prometheus server, and what it is asked with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prometheus {
    /// http or https, with a path and a query if need be.
    pub url: Url,
    /// A PEM file of the CA certificates that its certificate must chain to; the system's else.
    pub authorities: Option<PathBuf>,
    /// As whom.
    pub login: Option<Login>,
    /// Headers that are no secret, such as a tenant's.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// More headers, as Ray's `RAY_PROMETHEUS_HEADERS` holds them.
    pub headers_from: Option<Secret>,
}

impl Prometheus {
    /// A server that is asked with nothing but the question.
    pub fn plain(url: Url) -> Prometheus {
        Prometheus { url, authorities: None, login: None, headers: Vec::new(), headers_from: None }
    }
}

/// As whom a Prometheus server is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Login {
    /// By a bearer token.
    Token(Secret),
    /// By HTTP's basic authentication.
    Basic {
        /// The user.
        user: Arc<str>,
        /// The password.
        password: Secret,
    },
}

/// The admin listener: state, health, metrics, and overrides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    /// Where.
    pub listen: Address,
    /// The bearer token for what changes anything. Without one, changes are answered to
    /// loopback and Unix peers alone.
    pub token: Option<Secret>,
    /// Host names, lower-case and without port, that a request may name in addition to addresses and
    /// `localhost`: a name that is not configured may be another site's, pointed at us.
    pub hosts: Vec<Arc<str>>,
    /// Where people open its page; alerts lead there.
    pub url: Option<Url>,
}

impl Admin {
    /// What others than this machine may do at the admin listener, if they reach it: a sentence to warn of.
    pub fn exposure(&self) -> Option<String> {
        let Address::Tcp(address) = &self.listen else { return None };
        if address.ip().is_loopback() {
            return None;
        }
        let changes = match &self.token {
            Some(_) => "changes need the token",
            None => "without `admin.token`, changes are accepted from this machine only",
        };
        Some(format!(
            "everyone who reaches {address} can read limits, traffic, client digests and the adjustment log; {changes}"
        ))
    }
}

/// The rate-limit service that Envoys ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RatelimitService {
    /// Where.
    pub listen: Address,
    /// TLS towards Envoys.
    pub tls: Option<Tls>,
    /// The domain that Envoys name; any other passes unlimited.
    pub domain: Arc<str>,
    /// What the paths that they tell mean.
    pub surface: Surface,
    /// How long a place is held whose end is to be told and is not.
    pub permit_max: Duration,
}

/// Replicas that share their limits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replicas {
    /// The Redis or Valkey they share; no password stands in it.
    pub url: Arc<str>,
    /// TLS towards it.
    pub tls: Option<UpstreamTls>,
    /// Its password.
    pub password: Option<Secret>,
    /// How many replicas there are at most.
    pub count: u32,
    /// What replicas of one head have in common, and no others.
    pub group: Arc<str>,
    /// What this replica is called; the host's name when absent.
    pub name: Option<Arc<str>>,
    /// How often leases are renewed, and how long a silent replica's share is kept.
    pub timing: Timing,
}

/// Alerts and whom they reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alerts {
    /// Every rule that is wanted, and how long it must hold and be gone.
    pub rules: BTreeMap<Alert, Patience>,
    /// A firing alert is sent again so often.
    pub repeat: Duration,
    /// Where runbooks stand, instead of the project's own; the alert's name is appended.
    pub runbook_url: Option<Url>,
    /// Whom to tell.
    pub notify: Vec<Notify>,
}

/// A receiver of alerts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// What it speaks.
    pub kind: NotifyKind,
    /// Where it is.
    pub url: NotifyUrl,
    /// The bearer token.
    pub token: Option<Secret>,
}

/// The address of a receiver, in the open or as a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotifyUrl {
    /// In the file.
    Plain(Url),
    /// Elsewhere: anyone who knows a Slack webhook can post to it.
    Secret(Secret),
}
