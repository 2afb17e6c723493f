//! The operator's file, word for word: every key that exists, and nothing judged yet.
//!
//! One struct for each table; a field's name is the key. Unknown keys are refused by serde,
//! values keep their place in the file ([`Spanned`]) so that a later refusal can point at
//! them. Plain tables only: `Spanned` does not survive flattened or tagged ones. Every field
//! may be absent; what absence means is said in `checked`, and `config/README.md` tells
//! people. A test holds that page and `config/rayguard.toml` to the fields written here.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::quantity::{Bytes, BytesPerSecond, Length, Objective, OrOff, PerSecond, Short};

/// A name chosen by the operator, with its place in the file.
pub type Name = Spanned<String>;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// `enforce` or `shadow`.
    pub mode: Option<Spanned<RawMode>>,
    /// Ray's dashboard, `http://host:port`.
    pub upstream: Option<Spanned<String>>,
    /// The Ray at `upstream`: `auto`, or a version.
    pub ray_version: Option<Spanned<String>>,
    /// Where rayguard listens: one address, or `[[listen]]` tables.
    pub listen: Option<Spanned<RawListen>>,
    /// Where limits and the adjustment log survive a restart.
    pub state_dir: Option<Spanned<String>>,
    /// Networks whose X-Forwarded-* headers are believed.
    pub trusted_proxies: Option<Vec<Spanned<String>>>,
    /// Whom users may turn to.
    pub contact: Option<Spanned<String>>,
    /// Limits and timeouts of HTTP itself.
    pub http: RawHttp,
    /// Who counts as one client.
    pub identity: RawIdentity,
    /// Keys handed to known clients, by name.
    pub api_keys: BTreeMap<Name, RawApiKey>,
    /// Where Ray's readings come from.
    pub metrics: RawMetrics,
    /// The active probe of the GCS.
    pub probe: RawProbe,
    /// Latency objectives, by class.
    pub slo: BTreeMap<Name, Spanned<Objective>>,
    /// Signals, by name.
    pub signal: BTreeMap<Name, RawSignal>,
    /// How the loop steps.
    pub control: RawControl,
    /// Ceilings of Ray's processes, by name.
    pub module: BTreeMap<Name, RawModule>,
    /// Limits of classes, by name.
    pub class: BTreeMap<Name, RawClass>,
    /// Custom routes.
    pub route: Vec<Spanned<RawRoute>>,
    /// The adjustment log.
    pub adjustment_log: RawAdjustmentLog,
    /// The program's own log.
    pub log: RawLog,
    /// Alerts and whom they reach.
    pub alerts: RawAlerts,
    /// The admin listener.
    pub admin: RawAdmin,
    /// The rate-limit service that Envoys ask.
    pub ratelimit_service: Option<Spanned<RawRatelimitService>>,
    /// Replicas that share their limits.
    pub replicas: Option<Spanned<RawReplicas>>,
}

/// What becomes of a shed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawMode {
    /// Carried out.
    Enforce,
    /// Decided and logged only.
    Shadow,
}

/// `listen`: one address, or tables.
#[derive(Clone, Debug)]
pub enum RawListen {
    /// One dashboard listener.
    Address(String),
    /// `[[listen]]`.
    Listeners(Vec<Spanned<RawListener>>),
}

/// `[[listen]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawListener {
    /// `host:port` or `unix:/path`.
    pub address: Option<Spanned<String>>,
    /// What is spoken behind it.
    pub kind: Option<Spanned<RawListenerKind>>,
    /// Where it leads; the top-level `upstream` for the dashboard.
    pub upstream: Option<Spanned<String>>,
    /// TLS towards the upstream.
    pub upstream_tls: Option<Spanned<RawUpstreamTls>>,
    /// TLS towards clients.
    pub tls: Option<Spanned<RawTls>>,
    /// Whether a PROXY protocol header comes first.
    pub proxy_protocol: Option<bool>,
}

/// What is spoken behind a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawListenerKind {
    /// Port 8265: dashboard, Job API, State API.
    Dashboard,
    /// Port 10001: Ray Client gRPC.
    RayClient,
    /// Port 8000: Serve.
    Serve,
}

/// `tls` of a listener.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawTls {
    /// PEM file with the chain.
    pub certificate: Option<Spanned<String>>,
    /// PEM file with the private key.
    pub key: Option<Spanned<String>>,
    /// PEM file with the authorities of client certificates.
    pub client_authorities: Option<Spanned<String>>,
}

/// `upstream_tls` of a listener.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawUpstreamTls {
    /// PEM file with the authorities that vouch for the server.
    pub authorities: Option<Spanned<String>>,
    /// The server's name, if it is not the upstream's host.
    pub name: Option<Spanned<String>>,
}

/// `[http]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawHttp {
    /// Open connections at once, all listeners together.
    pub connections_max: Option<Spanned<u64>>,
    /// Open connections at once from one address.
    pub connections_per_address_max: Option<Spanned<u64>>,
    /// Bytes of a request's head.
    pub header_bytes_max: Option<Spanned<Bytes>>,
    /// Header fields in a request.
    pub headers_max: Option<Spanned<u64>>,
    /// Bytes of an answer's head.
    pub answer_header_bytes_max: Option<Spanned<Bytes>>,
    /// Header fields in an answer.
    pub answer_headers_max: Option<Spanned<u64>>,
    /// Origins whose pages may read the proxy's own answers on Serve listeners.
    pub cors_origins: Option<Vec<Spanned<String>>>,
    /// Bytes of a request's body.
    pub body_bytes_max: Option<Spanned<Bytes>>,
    /// Bytes of answers that are shared.
    pub shared_bytes_max: Option<Spanned<Bytes>>,
    /// How long a client may take to send its head.
    pub header_timeout: Option<Spanned<Length>>,
    /// How long an idle connection is kept.
    pub idle_timeout: Option<Spanned<Length>>,
    /// How long connecting to Ray may take.
    pub connect_timeout: Option<Spanned<Length>>,
    /// How long work whose client has left stays counted.
    pub abandoned_max: Option<Spanned<Length>>,
    /// How long exchanges may finish at shutdown.
    pub drain: Option<Spanned<Length>>,
}

/// `[identity]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawIdentity {
    /// Headers of trusted proxies that name the client.
    pub headers: Option<Vec<Spanned<String>>>,
    /// The header in which clients send their API key.
    pub api_key_header: Option<Spanned<String>>,
    /// A file with the digests of further keys.
    pub api_keys_file: Option<Spanned<String>>,
    /// The header in which programs name themselves.
    pub agent_header: Option<Spanned<String>>,
    /// How the names of programs begin that are clients of their own.
    pub agents: Option<Vec<Spanned<String>>>,
    /// Whether clients with a past go before strangers.
    pub history: Option<bool>,
}

/// `[api_keys.<name>]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawApiKey {
    /// SHA-256 of the key, in hexadecimal.
    pub sha256: Option<Spanned<String>>,
}

/// `[metrics]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawMetrics {
    /// A Prometheus server for `promql` sources.
    pub prometheus: Option<Spanned<String>>,
    /// Who may vouch for it, PEM; with `https://`.
    pub prometheus_authorities: Option<Spanned<String>>,
    /// Its bearer token.
    pub prometheus_token: Option<Spanned<RawSecret>>,
    /// The user of its basic authentication.
    pub prometheus_user: Option<Spanned<String>>,
    /// And the password.
    pub prometheus_password: Option<Spanned<RawSecret>>,
    /// Headers that are no secret.
    pub prometheus_headers: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Headers that are, as JSON.
    pub prometheus_headers_from: Option<Spanned<RawSecret>>,
    /// Exposition pages to scrape.
    pub targets: Option<Vec<Spanned<String>>>,
    /// Ray's own list of targets.
    pub discovery_file: Option<Spanned<String>>,
    /// Whether to ask Ray's dashboard for its targets.
    pub discover: Option<bool>,
    /// Ray's token, for asking it.
    pub token: Option<Spanned<RawSecret>>,
    /// How often.
    pub interval: Option<Spanned<Length>>,
    /// How long one scrape or query may take.
    pub timeout: Option<Spanned<Length>>,
    /// Bytes of one page.
    pub body_bytes_max: Option<Spanned<Bytes>>,
}

/// A secret is never in the file: it stands in another file or in the environment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct RawSecret {
    /// A file whose content it is.
    pub file: Option<Spanned<String>>,
    /// A variable whose value it is.
    pub env: Option<Spanned<String>>,
}

/// `[probe]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawProbe {
    /// Whether to probe.
    pub enabled: Option<bool>,
    /// What to ask for.
    pub path: Option<Spanned<String>>,
    /// How often.
    pub interval: Option<Spanned<Length>>,
    /// How long an answer may take.
    pub timeout: Option<Spanned<Length>>,
}

/// `[signal.<name>]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSignal {
    /// The reading at which pressure is 1.
    pub target: Option<Spanned<f64>>,
    /// The unit, for people.
    pub unit: Option<Spanned<String>>,
    /// A reading older than this is stale.
    pub stale_after: Option<Spanned<Length>>,
    /// What a stale signal does.
    pub on_stale: Option<Spanned<RawOnStale>>,
    /// It counts work that requests leave behind.
    pub backlog: Option<Spanned<bool>>,
    /// So far ahead it is read.
    pub forecast: Option<Spanned<Length>>,
    /// Where to read it, best first.
    pub sources: Option<Spanned<Vec<Spanned<RawSource>>>>,
}

/// What a stale signal does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawOnStale {
    /// Limits stay.
    Hold,
    /// Limits above `initial` decay to it.
    Decay,
    /// Limits go to `initial`.
    Static,
}

/// One of `sources`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSource {
    /// A selector on scraped pages: `ray_tasks{State="RUNNING"}`.
    pub metric: Option<Spanned<String>>,
    /// What is made of the samples.
    pub how: Option<Spanned<RawHow>>,
    /// `share-above`: the bound; `quantile`: the quantile.
    pub at: Option<Spanned<f64>>,
    /// `ratio`: the selector below the line.
    pub to: Option<Spanned<String>>,
    /// Multiplies the result.
    pub scale: Option<Spanned<f64>>,
    /// A PromQL expression instead of `metric`.
    pub promql: Option<Spanned<String>>,
    /// The probe's latency instead of `metric`.
    pub probe: Option<Spanned<bool>>,
}

/// What is made of samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawHow {
    /// Their sum.
    Sum,
    /// The largest.
    Max,
    /// Their increase per second.
    Rate,
    /// Share of a histogram's new observations above a bound.
    ShareAbove,
    /// Quantile of a histogram's new observations.
    Quantile,
    /// Their sum over another sum.
    Ratio,
}

/// `[control]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawControl {
    /// The inner loop's period.
    pub inner_period: Option<Spanned<Length>>,
    /// The outer loop's shortest period.
    pub outer_period: Option<Spanned<Length>>,
    /// The averaging window of Ray's readings.
    pub window: Option<Spanned<Length>>,
    /// The age of Ray's readings when they arrive.
    pub data_age: Option<Spanned<Length>>,
    /// Pressure within `1 +- deadband` moves nothing.
    pub deadband: Option<Spanned<f64>>,
    /// The largest change in one step, as a ratio.
    pub slew: Option<Spanned<f64>>,
    /// After a cut, no growth for so long.
    pub cooldown: Option<Spanned<Length>>,
    /// The law of every class that names none.
    pub law: Option<Spanned<RawLaw>>,
}

/// `law`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawLaw {
    /// Which law.
    pub kind: Option<Spanned<RawLawKind>>,
    /// `aimd`: added per step, as a share of `initial`.
    pub increase: Option<Spanned<f64>>,
    /// `aimd`: the factor of a cut.
    pub decrease: Option<Spanned<f64>>,
    /// `pid`: proportional gain.
    pub kp: Option<Spanned<f64>>,
    /// `pid`: integral gain per step.
    pub ki: Option<Spanned<f64>>,
    /// `pid`: derivative gain.
    pub kd: Option<Spanned<f64>>,
    /// `gradient`: how far latency may rise over its baseline.
    pub tolerance: Option<Spanned<f64>>,
    /// `gradient`: share of the new value taken per step.
    pub smoothing: Option<Spanned<f64>>,
}

/// The laws.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawLawKind {
    /// The limit stays.
    Static,
    /// Additive increase, multiplicative decrease.
    Aimd,
    /// Velocity-form PID on log(limit).
    Pid,
    /// Latency against a learnt baseline.
    Gradient,
}

/// `[module.<name>]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawModule {
    /// Requests under way at once, all classes together.
    pub in_flight: Option<Spanned<Short<f64, RawBounds>>>,
    /// Learnt work under way at once per class.
    pub work: Option<Spanned<OrOff<Length>>>,
}

/// `[class.<name>]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawClass {
    /// Where its work lands; custom classes must say.
    pub module: Option<Spanned<String>>,
    /// Limited, exempt or blocked.
    pub treatment: Option<Spanned<RawTreatment>>,
    /// How an exchange lives.
    pub kind: Option<Spanned<RawKind>>,
    /// `enforce` or `shadow` for this class alone.
    pub mode: Option<Spanned<RawMode>>,
    /// 0 (served last) to 9 (served first).
    pub priority: Option<Spanned<u64>>,
    /// Requests per second.
    pub rate: Option<Spanned<Short<OrOff<PerSecond>, RawRate>>>,
    /// Requests under way at once.
    pub in_flight: Option<Spanned<Short<f64, RawBounds>>>,
    /// Bytes per second over the whole class.
    pub bytes_per_second: Option<Spanned<OrOff<BytesPerSecond>>>,
    /// Whether only holders of an API key may ask.
    pub require_key: Option<Spanned<bool>>,
    /// How a request waits.
    pub queue: Option<Spanned<RawQueue>>,
    /// What one client may do at most.
    pub per_client: Option<Spanned<RawPerClient>>,
    /// Sharing of equal GETs.
    pub coalesce: Option<Spanned<OrOff<Length>>>,
    /// How long Ray may take to begin its answer.
    pub timeout: Option<Spanned<OrOff<Length>>>,
    /// The law that moves its limits.
    pub law: Option<Spanned<RawLaw>>,
    /// The signals that move its rate.
    pub signals: Option<Vec<Spanned<String>>>,
    /// The signal that counts what its requests leave behind.
    pub backlog: Option<Spanned<OrOff<String>>>,
    /// Within which time the work it leaves behind is to start.
    pub starts_within: Option<Spanned<Length>>,
    /// Alert above this rate.
    pub alert_above: Option<Spanned<OrOff<PerSecond>>>,
}

/// What is done with a class's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawTreatment {
    /// Limits apply.
    Limited,
    /// Never limited.
    Exempt,
    /// Refused.
    Blocked,
}

/// How an exchange lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawKind {
    /// Asked and answered.
    Unary,
    /// Held open.
    Held,
}

/// `rate`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawRate {
    /// Where it starts.
    pub initial: Option<Spanned<PerSecond>>,
    /// Never below.
    pub min: Option<Spanned<PerSecond>>,
    /// Never above.
    pub max: Option<Spanned<PerSecond>>,
    /// How many may come at once after a quiet time.
    pub burst: Option<Spanned<u64>>,
}

/// `in_flight`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawBounds {
    /// Where it starts.
    pub initial: Option<Spanned<f64>>,
    /// Never below.
    pub min: Option<Spanned<f64>>,
    /// Never above.
    pub max: Option<Spanned<f64>>,
}

/// `queue`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawQueue {
    /// Requests waiting at once.
    pub len: Option<Spanned<u64>>,
    /// The longest wait.
    pub wait: Option<Spanned<Length>>,
}

/// `per_client`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawPerClient {
    /// Requests per second.
    pub rate: Option<Spanned<OrOff<PerSecond>>>,
    /// How many may come at once.
    pub burst: Option<Spanned<u64>>,
    /// Requests under way at once.
    pub in_flight: Option<Spanned<OrOff<u64>>>,
}

/// `[[route]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawRoute {
    /// The method; any when absent.
    pub method: Option<Spanned<String>>,
    /// The path pattern.
    pub path: Option<Spanned<String>>,
    /// A header the request must carry: `name: value`.
    pub header: Option<Spanned<String>>,
    /// The kind of listener; that of the class's module when absent.
    pub kind: Option<Spanned<RawListenerKind>>,
    /// Its class.
    pub class: Option<Spanned<String>>,
}

/// `[adjustment_log]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAdjustmentLog {
    /// Where; under `state_dir` when absent.
    pub dir: Option<Spanned<String>>,
    /// Bytes of one file.
    pub file_bytes_max: Option<Spanned<Bytes>>,
    /// Files kept.
    pub files_max: Option<Spanned<u64>>,
    /// Whether each line also goes to standard output.
    pub stdout: Option<bool>,
}

/// `[log]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawLog {
    /// The least level shown.
    pub level: Option<Spanned<RawLevel>>,
    /// Lines for people or for machines.
    pub format: Option<Spanned<RawFormat>>,
}

/// Levels of the program's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawLevel {
    /// What went wrong.
    Error,
    /// And what may.
    Warn,
    /// And what happened.
    Info,
    /// And how.
    Debug,
    /// And everything.
    Trace,
}

/// Forms of the program's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// `[alerts]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAlerts {
    /// A firing alert is sent again so often.
    pub repeat: Option<Spanned<Length>>,
    /// Where runbooks stand, instead of the project's own; the alert's name is appended.
    pub runbook_url: Option<Spanned<String>>,
    /// Rules, by name.
    pub rule: BTreeMap<Name, RawAlertRule>,
    /// Whom to tell.
    pub notify: Vec<Spanned<RawNotify>>,
}

/// `[alerts.rule.<name>]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAlertRule {
    /// Whether anyone is told.
    pub enabled: Option<bool>,
    /// It must be bad for so long before it fires.
    pub r#for: Option<Spanned<Length>>,
    /// It must be good for so long before it resolves.
    pub clear: Option<Spanned<Length>>,
}

/// `[[alerts.notify]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawNotify {
    /// What it speaks.
    pub kind: Option<Spanned<RawNotifyKind>>,
    /// Where, when the address is no secret.
    pub url: Option<Spanned<String>>,
    /// Where, when the address is a secret (Slack).
    pub url_from: Option<Spanned<RawSecret>>,
    /// The bearer token.
    pub token: Option<Spanned<RawSecret>>,
}

/// What a receiver of alerts speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawNotifyKind {
    /// Alertmanager's API v2.
    Alertmanager,
    /// A POST with JSON.
    Webhook,
    /// Slack's incoming webhook.
    Slack,
}

/// `[admin]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAdmin {
    /// `host:port`, `unix:/path` or `off`.
    pub listen: Option<Spanned<OrOff<String>>>,
    /// The bearer token for what changes anything.
    pub token: Option<Spanned<RawSecret>>,
    /// Host names it may be asked by.
    pub hosts: Vec<Spanned<String>>,
    /// Where people open its page.
    pub url: Option<Spanned<String>>,
}

/// `[ratelimit_service]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawRatelimitService {
    /// `host:port` or `unix:/path`.
    pub listen: Option<Spanned<String>>,
    /// The domain that Envoys name.
    pub domain: Option<Spanned<String>>,
    /// What the paths that they tell mean.
    pub kind: Option<Spanned<RawListenerKind>>,
    /// TLS towards Envoys.
    pub tls: Option<Spanned<RawTls>>,
    /// How long a place is held whose end is to be told and is not.
    pub permit_max: Option<Spanned<Length>>,
}

/// `[replicas]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawReplicas {
    /// The Redis or Valkey they share, `redis://host:port/database`.
    pub url: Option<Spanned<String>>,
    /// Who may vouch for it, PEM; with `rediss://`.
    pub authorities: Option<Spanned<String>>,
    /// Its password.
    pub password: Option<Spanned<RawSecret>>,
    /// How many replicas there are at most.
    pub count: Option<Spanned<u64>>,
    /// What replicas of one head have in common, and no others.
    pub group: Option<Spanned<String>>,
    /// What this replica is called.
    pub name: Option<Spanned<String>>,
    /// How often leases are renewed.
    pub period: Option<Spanned<Length>>,
    /// How long the share of a silent replica is kept for it.
    pub remember: Option<Spanned<Length>>,
}

/// From a table alone: serde would read a list as the fields in their order, so that `token = ["..."]`
/// would be taken for a file of that name, and the name be told.
impl<'de> Deserialize<'de> for RawSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = RawSecret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("struct RawSecret")
            }
            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<RawSecret, M::Error> {
                RawSecret::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Table)
    }
}

impl<'de> Deserialize<'de> for RawListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = RawListen;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address in quotes, such as \"127.0.0.1:8266\", or [[listen]] tables")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawListen, E> {
                Ok(RawListen::Address(text.to_owned()))
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<RawListen, S::Error> {
                let mut listeners = Vec::new();
                while let Some(listener) = seq.next_element()? {
                    listeners.push(listener);
                }
                Ok(RawListen::Listeners(listeners))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}
