//! From [`Raw`] to [`Settings`]: every value judged against its bound, every name resolved.
//!
//! A slip does not stop the judging: it is noted, the default stands in, and the next key is
//! looked at, so that the operator sees everything in one round. What involves several keys
//! (two listeners on one port, a listener that leads to itself) is judged last.
//! Classes, signals and laws are judged in `classes`; this room has the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use toml::Spanned;
use url::Url;

use super::classes;
use super::defaults;
use super::keys;
use super::problem::{Problem, suggest};
use super::quantity::{Bytes, Length, OrOff};
use super::raw::{
    Name, Raw, RawAdjustmentLog, RawAdmin, RawAlertRule, RawAlerts, RawApiKey, RawFormat, RawHttp,
    RawIdentity, RawLevel, RawListen, RawListener, RawListenerKind, RawLog, RawMetrics, RawMode, RawNotify,
    RawNotifyKind, RawProbe, RawRatelimitService, RawReplicas, RawSecret, RawTls, RawUpstreamTls,
};
use super::settings::{
    Address, AdjustmentLog, Admin, Alerts, ApiKey, Http, Identity, Listener, Log, Metrics, Notify,
    NotifyKind, NotifyUrl, Probe, RatelimitService, Replicas, Secret, Settings, Tls, Upstream, UpstreamTls,
};
use rayguard_core::admission::table::Mode;
use rayguard_core::alert::{Alert, Patience};
use rayguard_core::replicas::Timing;
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::profile::{self, Fit, Profile};

/// The longest path that fits `sun_path` (108 bytes on Linux, 104 elsewhere, one for NUL).
const UNIX_PATH_BYTES_MAX: usize = 103;

/// Collects problems while values are judged.
#[derive(Debug, Default)]
pub(super) struct Judge {
    pub(super) problems: Vec<Problem>,
}

/// Where a value stands and what it is called.
#[derive(Clone, Debug)]
pub(super) struct Place {
    key: String,
    span: Option<Range<usize>>,
}

impl Place {
    pub(super) fn new<T>(key: impl Into<String>, value: &Spanned<T>) -> Place {
        let span = value.span();
        // What the command line put there has no place in the file.
        Place { key: key.into(), span: (span.start < span.end).then_some(span) }
    }
    pub(super) fn nowhere(key: impl Into<String>) -> Place {
        Place { key: key.into(), span: None }
    }
}

impl Judge {
    /// Notes a problem.
    pub(super) fn refuse(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem {
            span: place.span,
            key: place.key,
            message: message.into(),
            remedy: Some(remedy.into()).filter(|remedy: &String| !remedy.is_empty()),
        });
    }

    /// The value if it lies in `least..=most`, else the default and a problem.
    pub(super) fn within<T>(
        &mut self,
        key: &str,
        value: Option<&Spanned<T>>,
        default: T,
        least: T,
        most: T,
    ) -> T
    where
        T: Copy + PartialOrd + fmt::Display,
    {
        let Some(value) = value else { return default };
        let given = *value.get_ref();
        // Written so that NaN, which compares to nothing, is refused too.
        if given >= least && given <= most {
            return given;
        }
        let message = format!("{given} is outside {least} to {most}");
        self.refuse(
            Place::new(key, value),
            message,
            format!("write {least} to {most}; the default is {default}"),
        );
        default
    }

    /// [`Judge::within`] for lengths of time.
    pub(super) fn length(
        &mut self,
        key: &str,
        value: Option<&Spanned<Length>>,
        default: Duration,
        bounds: [Duration; 2],
    ) -> Duration {
        self.within(key, value, Length(default), Length(bounds[0]), Length(bounds[1])).0
    }

    fn count(&mut self, key: &str, value: Option<&Spanned<u64>>, default: u64, bounds: [u64; 2]) -> usize {
        usize::try_from(self.within(key, value, default, bounds[0], bounds[1])).unwrap_or(usize::MAX)
    }

    fn bytes(&mut self, key: &str, value: Option<&Spanned<Bytes>>, default: u64, bounds: [u64; 2]) -> u64 {
        self.within(key, value, Bytes(default), Bytes(bounds[0]), Bytes(bounds[1])).0
    }

    /// The place of `name` among `known`, or a problem that guesses what was meant.
    pub(super) fn find<'a>(
        &mut self,
        place: Place,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<usize> {
        let found = known.clone().position(|candidate| candidate == name);
        if found.is_none() {
            let remedy = suggest(name, known).unwrap_or_default();
            self.refuse(place, format!("there is no {what} `{name}`"), remedy);
        }
        found
    }
}

const MS: Duration = Duration::from_millis(1);
const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The settings that `raw` asks for, or all that is wrong with them.
pub fn check(raw: &Raw, version: &str) -> Result<Settings, Vec<Problem>> {
    let mut judge = Judge::default();
    let mode = raw.mode.as_ref().map_or(Mode::Enforce, |mode| mode_of(*mode.get_ref()));
    let upstream = match &raw.upstream {
        Some(upstream) => judge.upstream("upstream", upstream),
        None => None,
    }
    .unwrap_or_else(default_upstream);
    let listeners = judge.listeners(raw, &upstream);
    let trusted_proxies = judge.trusted_proxies(raw);
    let state_dir =
        judge.path("state_dir", raw.state_dir.as_ref()).unwrap_or_else(|| defaults::STATE_DIR.into());
    let metrics = judge.metrics(&raw.metrics);
    let judged = classes::judge(&mut judge, raw, &metrics, mode);
    let settings = Settings {
        version: version.into(),
        mode,
        class_modes: judged.modes,
        contact: judge.contact(raw.contact.as_ref()),
        http: judge.http(&raw.http),
        identity: judge.identity(&raw.identity, &raw.api_keys, &trusted_proxies),
        probe: judge.probe(&raw.probe),
        admin: judge.admin(&raw.admin),
        ratelimit_service: raw.ratelimit_service.as_ref().and_then(|given| judge.ratelimit_service(given)),
        replicas: raw.replicas.as_ref().and_then(|replicas| judge.replicas(replicas)),
        adjustment_log: judge.adjustment_log(&raw.adjustment_log, &state_dir),
        log: log(&raw.log),
        alerts: judge.alerts(&raw.alerts),
        listeners: listeners.iter().map(|(listener, _)| listener.clone()).collect(),
        policy: Arc::new(judged.policy),
        routes: judged.routes,
        ray: raw.ray_version.as_ref().and_then(|given| judge.ray_version(given)),
        upstream,
        trusted_proxies,
        metrics,
        state_dir,
    };
    judge.addresses(&settings, &listeners, raw);
    judge.margins(&settings, raw);
    if judge.problems.is_empty() { Ok(settings) } else { Err(judge.problems) }
}

pub(super) fn mode_of(mode: RawMode) -> Mode {
    match mode {
        RawMode::Enforce => Mode::Enforce,
        RawMode::Shadow => Mode::Shadow,
    }
}

fn default_upstream() -> Upstream {
    Upstream { host: "127.0.0.1".into(), port: 8265 }
}

fn default_listener(upstream: &Upstream) -> Listener {
    Listener {
        surface: Surface::Dashboard,
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8266))),
        upstream: upstream.clone(),
        upstream_tls: None,
        tls: None,
        proxy_protocol: false,
    }
}

pub(super) fn surface_of(kind: RawListenerKind) -> Surface {
    match kind {
        RawListenerKind::Dashboard => Surface::Dashboard,
        RawListenerKind::RayClient => Surface::RayClient,
        RawListenerKind::Serve => Surface::Serve,
    }
}

fn log(raw: &RawLog) -> Log {
    let level = match raw.level.as_ref().map(|level| *level.get_ref()) {
        Some(RawLevel::Error) => tracing::Level::ERROR,
        Some(RawLevel::Warn) => tracing::Level::WARN,
        Some(RawLevel::Debug) => tracing::Level::DEBUG,
        Some(RawLevel::Trace) => tracing::Level::TRACE,
        Some(RawLevel::Info) | None => tracing::Level::INFO,
    };
    Log { level, json: raw.format.as_ref().is_some_and(|format| *format.get_ref() == RawFormat::Json) }
}

// === impl Judge: where clients come in ===

impl Judge {
    /// The listeners, each with the place of its address.
    fn listeners(&mut self, raw: &Raw, upstream: &Upstream) -> Vec<(Listener, Place)> {
        let Some(listen) = &raw.listen else {
            return vec![(default_listener(upstream), Place::nowhere("listen"))];
        };
        match listen.get_ref() {
            RawListen::Address(text) => {
                let place = Place::new("listen", listen);
                let address = self.address(place.clone(), text);
                let fallback = default_listener(upstream);
                vec![(
                    Listener { address: address.unwrap_or_else(|| fallback.address.clone()), ..fallback },
                    place,
                )]
            }
            RawListen::Listeners(listeners) => {
                if listeners.is_empty() {
                    let remedy = format!("write listen = \"{}\"", defaults::LISTEN);
                    self.refuse(Place::new("listen", listen), "no listener is left", remedy);
                }
                let listeners = listeners.iter().enumerate();
                listeners
                    .filter_map(|(i, listener)| self.listener(&format!("listen[{i}]"), listener, upstream))
                    .collect()
            }
        }
    }

    fn listener(
        &mut self,
        key: &str,
        listener: &Spanned<RawListener>,
        upstream: &Upstream,
    ) -> Option<(Listener, Place)> {
        let raw = listener.get_ref();
        let surface = raw.kind.as_ref().map_or(Surface::Dashboard, |kind| surface_of(*kind.get_ref()));
        let leads_to = match &raw.upstream {
            Some(given) => self.upstream(&format!("{key}.upstream"), given),
            None if surface == Surface::Dashboard => Some(upstream.clone()),
            None => {
                let remedy = "write where Ray listens, such as upstream = \"http://127.0.0.1:20001\"";
                self.refuse(
                    Place::new(key, listener),
                    "this kind of listener needs an `upstream` of its own",
                    remedy,
                );
                None
            }
        };
        let tls = raw.tls.as_ref().and_then(|tls| self.tls(&format!("{key}.tls"), tls));
        let upstream_tls = match (&raw.upstream_tls, &leads_to) {
            (Some(tls), Some(upstream)) => self.upstream_tls(&format!("{key}.upstream_tls"), tls, upstream),
            _ => None,
        };
        let Some(given) = &raw.address else {
            let remedy = format!("write address = \"{}\"", defaults::LISTEN);
            self.refuse(Place::new(key, listener), "this listener has no `address`", remedy);
            return None;
        };
        let place = Place::new(format!("{key}.address"), given);
        let address = self.address(place.clone(), given.get_ref())?;
        let proxy_protocol = raw.proxy_protocol.unwrap_or(false);
        Some((Listener { surface, address, upstream: leads_to?, upstream_tls, tls, proxy_protocol }, place))
    }

    fn tls(&mut self, at: &str, tls: &Spanned<RawTls>) -> Option<Tls> {
        let raw = tls.get_ref();
        let certificate = self.path(&format!("{at}.certificate"), raw.certificate.as_ref());
        let private = self.path(&format!("{at}.key"), raw.key.as_ref());
        if let (Some(certificate), Some(key)) = (certificate, private) {
            let given = raw.client_authorities.as_ref();
            let client_authorities =
                given.and_then(|_| self.path(&format!("{at}.client_authorities"), given));
            return Some(Tls { certificate, key, client_authorities });
        }
        if raw.certificate.is_none() || raw.key.is_none() {
            let remedy = "write tls = { certificate = \"/path/chain.pem\", key = \"/path/key.pem\" }";
            self.refuse(Place::new(at, tls), "TLS needs both `certificate` and `key`", remedy);
        }
        None
    }

    fn upstream_tls(
        &mut self,
        at: &str,
        tls: &Spanned<RawUpstreamTls>,
        upstream: &Upstream,
    ) -> Option<UpstreamTls> {
        let raw = tls.get_ref();
        let Some(given) = &raw.authorities else {
            let remedy = "write upstream_tls = { authorities = \"/path/ca.pem\" }: nobody is trusted unasked";
            self.refuse(Place::new(at, tls), "TLS towards the upstream needs `authorities`", remedy);
            return None;
        };
        let authorities = self.path(&format!("{at}.authorities"), Some(given))?;
        let name = raw.name.as_ref().map_or(&*upstream.host, |name| name.get_ref());
        if let Ok(name) = ServerName::try_from(name.to_owned()) {
            return Some(UpstreamTls { authorities, name });
        }
        let place =
            raw.name.as_ref().map_or(Place::new(at, tls), |name| Place::new(format!("{at}.name"), name));
        self.refuse(
            place,
            format!("`{name}` is not the name of a server"),
            "write a host name or an address, as it stands in the server's certificate",
        );
        None
    }

    fn address(&mut self, place: Place, text: &str) -> Option<Address> {
        if let Some(path) = text.strip_prefix("unix:") {
            let message = match path.len() {
                0 => "the path of the Unix socket is empty".to_owned(),
                1..=UNIX_PATH_BYTES_MAX if path.contains('\0') => "the path holds a NUL".to_owned(),
                1..=UNIX_PATH_BYTES_MAX => return Some(Address::Unix(path.into())),
                bytes => format!(
                    "the path of the Unix socket has {bytes} bytes, the system takes {UNIX_PATH_BYTES_MAX}"
                ),
            };
            self.refuse(place, message, "choose a short path, such as unix:/run/rayguard/proxy.sock");
            return None;
        }
        let named = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        if let Ok(address) = named.as_deref().unwrap_or(text).parse() {
            return Some(Address::Tcp(address));
        }
        let remedy = match text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
            Some(port) => format!("for every interface write \"0.0.0.0:{port}\""),
            None => "write address and port, such as \"127.0.0.1:8266\" or \"[::1]:8266\", or \"unix:/path\""
                .to_owned(),
        };
        self.refuse(place, format!("`{text}` is not an address to listen on"), remedy);
        None
    }

    fn ray_version(&mut self, given: &Spanned<String>) -> Option<&'static Profile> {
        let text = given.get_ref().trim();
        if text == "auto" {
            return None;
        }
        let (profile, fit) = profile::of_version(text);
        if fit == Fit::Unknown {
            let message = format!("`{text}` is no version of Ray from {} on", profile::PROFILES[0].ray);
            let remedy = "write \"auto\" to have it asked for, or a version such as \"2.44\"";
            self.refuse(Place::new("ray_version", given), message, remedy);
        }
        Some(profile)
    }

    fn upstream(&mut self, key: &str, given: &Spanned<String>) -> Option<Upstream> {
        let text = given.get_ref().trim();
        let place = Place::new(key, given);
        let example = "write scheme, host and port, such as \"http://127.0.0.1:8265\"";
        let url = if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
        let Ok(url) = url else {
            self.refuse(place, format!("`{text}` is not an address of a server"), example);
            return None;
        };
        let message = if url.scheme() == "https" {
            "https towards Ray's own ports is not spoken; for a server before them write http, and `upstream_tls` in its `[[listen]]`".to_owned()
        } else if url.scheme() != "http" {
            format!("`{}` is not a scheme of Ray's", url.scheme())
        } else if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            format!("`{text}` has a path, and paths are passed on as they come")
        } else if !url.username().is_empty() || url.password().is_some() {
            "a password does not belong here; clients bring their own credentials".to_owned()
        } else if url.port_or_known_default() == Some(0) {
            "port 0 is no server's".to_owned()
        } else {
            let host = match url.host() {
                Some(url::Host::Ipv6(address)) => address.to_string(),
                Some(host) => host.to_string(),
                None => String::new(),
            };
            if !host.is_empty() {
                return Some(Upstream { host: host.into(), port: url.port_or_known_default().unwrap_or(80) });
            }
            format!("`{text}` names no host")
        };
        self.refuse(place, message, example);
        None
    }

    /// It stands in answers and headers: one short line.
    fn contact(&mut self, given: Option<&Spanned<String>>) -> Option<Arc<String>> {
        const CONTACT_MAX: usize = 200;
        let given = given?;
        let text = given.get_ref().trim();
        if text.is_empty()
            || text.len() > CONTACT_MAX
            || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        {
            self.refuse(
                Place::new("contact", given),
                format!("`{text}` is not one line of 1 to {CONTACT_MAX} ASCII characters"),
                "write who helps users, such as \"#ray-help in Slack\" or \"ray-admins@example.com\"",
            );
            return None;
        }
        Some(Arc::new(text.to_owned()))
    }

    fn trusted_proxies(&mut self, raw: &Raw) -> Vec<IpNet> {
        let given = raw.trusted_proxies.as_deref().unwrap_or_default();
        let mut networks = Vec::new();
        for (i, text) in given.iter().enumerate() {
            let network = text
                .get_ref()
                .parse::<IpNet>()
                .or_else(|_| text.get_ref().parse::<IpAddr>().map(IpNet::from));
            match network {
                Ok(network) if network.prefix_len() == 0 => self.refuse(
                    Place::new(format!("trusted_proxies[{i}]"), text),
                    format!("`{}` trusts everyone, so anyone could pass for anyone", text.get_ref()),
                    "list the networks of your proxies, such as \"10.0.0.0/8\"",
                ),
                Ok(network) => networks.push(network.trunc()),
                Err(_) => self.refuse(
                    Place::new(format!("trusted_proxies[{i}]"), text),
                    format!("`{}` is not a network", text.get_ref()),
                    "write an address or a network, such as \"10.1.2.3\" or \"10.0.0.0/8\"",
                ),
            }
        }
        networks
    }

    fn http(&mut self, raw: &RawHttp) -> Http {
        let header_bytes =
            self.bytes("http.header_bytes_max", raw.header_bytes_max.as_ref(), 64 * KIB, [4 * KIB, MIB]);
        let shared_bytes =
            self.bytes("http.shared_bytes_max", raw.shared_bytes_max.as_ref(), 64 * MIB, [MIB, 1024 * GIB]);
        Http {
            connections_max: self.count(
                "http.connections_max",
                raw.connections_max.as_ref(),
                8192,
                [1, 1_000_000],
            ),
            connections_per_address_max: self.count(
                "http.connections_per_address_max",
                raw.connections_per_address_max.as_ref(),
                1024,
                [1, 1_000_000],
            ),
            header_bytes_max: usize::try_from(header_bytes).unwrap_or(usize::MAX),
            headers_max: self.count("http.headers_max", raw.headers_max.as_ref(), 100, [16, 1000]),
            answer_header_bytes_max: usize::try_from(self.bytes(
                "http.answer_header_bytes_max",
                raw.answer_header_bytes_max.as_ref(),
                128 * KIB,
                [8 * KIB, MIB],
            ))
            .unwrap_or(usize::MAX),
            answer_headers_max: self.count(
                "http.answer_headers_max",
                raw.answer_headers_max.as_ref(),
                100,
                [16, 1000],
            ),
            cors_origins: self.cors_origins(raw.cors_origins.as_deref()),
            body_bytes_max: self.bytes(
                "http.body_bytes_max",
                raw.body_bytes_max.as_ref(),
                GIB,
                [MIB, 1024 * GIB],
            ),
            shared_bytes_max: usize::try_from(shared_bytes).unwrap_or(usize::MAX),
            header_timeout: self.length(
                "http.header_timeout",
                raw.header_timeout.as_ref(),
                secs(10),
                [100 * MS, secs(300)],
            ),
            idle_timeout: self.length(
                "http.idle_timeout",
                raw.idle_timeout.as_ref(),
                secs(75),
                [secs(1), secs(3600)],
            ),
            connect_timeout: self.length(
                "http.connect_timeout",
                raw.connect_timeout.as_ref(),
                secs(2),
                [10 * MS, secs(60)],
            ),
            abandoned_max: self.length(
                "http.abandoned_max",
                raw.abandoned_max.as_ref(),
                secs(600),
                [secs(1), secs(86_400)],
            ),
            drain: self.length("http.drain", raw.drain.as_ref(), secs(30), [Duration::ZERO, secs(3600)]),
        }
    }

    fn identity(
        &mut self,
        raw: &RawIdentity,
        keys: &BTreeMap<Name, RawApiKey>,
        trusted_proxies: &[IpNet],
    ) -> Identity {
        let mut headers: Vec<Arc<str>> = Vec::new();
        match &raw.headers {
            None => headers.extend(defaults::IDENTITY_HEADERS.iter().map(|name| Arc::from(*name))),
            Some(given) => {
                for (i, name) in given.iter().enumerate() {
                    let key = format!("identity.headers[{i}]");
                    headers.extend(self.header_name(&key, name));
                }
                if let Some(first) = given.first().filter(|_| trusted_proxies.is_empty()) {
                    self.refuse(
                        Place::new("identity.headers", first),
                        "these headers are believed from trusted proxies alone, and there are none",
                        "list the networks of your proxies in `trusted_proxies`, or take this key away",
                    );
                }
            }
        }
        let api_key_header = raw.api_key_header.as_ref();
        let api_key_header = api_key_header
            .and_then(|name| self.header_name("identity.api_key_header", name))
            .unwrap_or_else(|| defaults::API_KEY_HEADER.into());
        let api_keys_file = self.path("identity.api_keys_file", raw.api_keys_file.as_ref());
        let agent_header = raw.agent_header.as_ref();
        let agent_header = agent_header
            .and_then(|name| self.header_name("identity.agent_header", name))
            .unwrap_or_else(|| defaults::AGENT_HEADER.into());
        let agents = self.agents(raw.agents.as_deref());
        Identity {
            headers,
            api_key_header,
            agent_header,
            agents,
            api_keys: self.api_keys(keys),
            api_keys_file,
        }
    }

    fn agents(&mut self, given: Option<&[Spanned<String>]>) -> Vec<Arc<str>> {
        let Some(given) = given else { return defaults::AGENTS.iter().map(|&agent| agent.into()).collect() };
        for (i, agent) in given.iter().enumerate() {
            let text = agent.get_ref();
            if !(3..=100).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                self.refuse(
                    Place::new(format!("identity.agents[{i}]"), agent),
                    format!("`{text}` is not how a program's name begins"),
                    "write 3 to 100 letters, digits and signs, such as \"kuberay-operator/\"",
                );
            }
        }
        given.iter().map(|agent| agent.get_ref().to_ascii_lowercase().into()).collect()
    }

    fn cors_origins(&mut self, given: Option<&[Spanned<String>]>) -> Vec<Arc<str>> {
        let Some(given) = given else { return vec!["*".into()] };
        for (i, origin) in given.iter().enumerate() {
            let text = origin.get_ref().as_str();
            let is_origin = Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
            if text != "*" && !is_origin {
                self.refuse(
                    Place::new(format!("http.cors_origins[{i}]"), origin),
                    format!("`{text}` is not an origin"),
                    "write scheme, host and port as a browser sends them, such as \"https://app.example\", or \"*\"",
                );
            }
        }
        given.iter().map(|origin| origin.get_ref().as_str().into()).collect()
    }

    fn header_name(&mut self, key: &str, name: &Spanned<String>) -> Option<Arc<str>> {
        if let Ok(name) = http::HeaderName::from_bytes(name.get_ref().as_bytes()) {
            return Some(name.as_str().into());
        }
        let message = format!("`{}` is not the name of a header", name.get_ref());
        self.refuse(Place::new(key, name), message, "write a name such as \"x-forwarded-user\"");
        None
    }

    fn api_keys(&mut self, keys: &BTreeMap<Name, RawApiKey>) -> Vec<ApiKey> {
        let mut out: Vec<ApiKey> = Vec::new();
        for (name, raw) in keys {
            let key = format!("api_keys.{}.sha256", name.get_ref());
            let hint = "print it with: printf %s \"$KEY\" | sha256sum";
            let Some(given) = &raw.sha256 else {
                self.refuse(Place::new(key, name), "the key's digest is missing", hint);
                continue;
            };
            let place = Place::new(key, given);
            let Some(sha256) = keys::digest(given.get_ref()) else {
                self.refuse(place, "this is not a SHA-256 digest of 64 hexadecimal digits", hint);
                continue;
            };
            if let Some(twin) = out.iter().find(|other| other.sha256 == sha256) {
                let message = format!("`{}` has the same key", twin.name);
                self.refuse(place, message, "give each client a key of its own");
                continue;
            }
            out.push(ApiKey { name: name.get_ref().as_str().into(), sha256 });
        }
        out
    }
}

// === impl Judge: where readings come from ===

impl Judge {
    fn metrics(&mut self, raw: &RawMetrics) -> Metrics {
        let prometheus = self.prometheus(raw);
        let mut targets: Vec<Url> = Vec::new();
        for (i, target) in raw.targets.iter().flatten().enumerate() {
            let key = format!("metrics.targets[{i}]");
            let Some(url) = self.plain_url(&key, target, "/metrics") else { continue };
            if targets.contains(&url) {
                let message = format!("`{}` stands twice", target.get_ref());
                self.refuse(Place::new(key, target), message, "take one away");
            } else {
                targets.push(url);
            }
        }
        let interval = self.length("metrics.interval", raw.interval.as_ref(), secs(5), [100 * MS, secs(300)]);
        let timeout =
            self.length("metrics.timeout", raw.timeout.as_ref(), secs(4).min(interval), [50 * MS, secs(60)]);
        if let Some(given) = raw.timeout.as_ref().filter(|_| timeout > interval) {
            self.refuse(
                Place::new("metrics.timeout", given),
                format!(
                    "a scrape may take {} and the next is due after {}",
                    Length(timeout),
                    Length(interval)
                ),
                "keep the timeout at or below `metrics.interval`",
            );
        }
        let discovery_file = match &raw.discovery_file {
            None => Some(defaults::DISCOVERY_FILE.into()),
            Some(given) if given.get_ref() == "off" => None,
            Some(given) => self.path("metrics.discovery_file", Some(given)),
        };
        let body =
            self.bytes("metrics.body_bytes_max", raw.body_bytes_max.as_ref(), 64 * MIB, [64 * KIB, GIB]);
        Metrics {
            prometheus,
            targets,
            discovery_file,
            discover: raw.discover.unwrap_or(true),
            token: raw.token.as_ref().and_then(|token| self.secret("metrics.token", token)),
            interval,
            timeout,
            body_bytes_max: usize::try_from(body).unwrap_or(usize::MAX),
        }
    }

    /// An http URL; `host:port` alone gets `path`.
    fn plain_url(&mut self, key: &str, given: &Spanned<String>, path: &str) -> Option<Url> {
        let text = given.get_ref().trim();
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}{path}") };
        let remedy = "write an http URL, such as \"http://127.0.0.1:9090\"";
        match Url::parse(&whole) {
            Ok(url) if url.scheme() == "http" && url.has_host() => return Some(url),
            Ok(url) if url.scheme() == "https" => {
                self.refuse(Place::new(key, given), "Ray's exporters speak no https", remedy);
            }
            _ => self.refuse(Place::new(key, given), format!("`{text}` is not an http URL"), remedy),
        }
        None
    }

    fn probe(&mut self, raw: &RawProbe) -> Option<Probe> {
        let path = match &raw.path {
            Some(given)
                if !given.get_ref().starts_with('/') || given.get_ref().contains(char::is_whitespace) =>
            {
                let message = format!("`{}` is not a path", given.get_ref());
                let remedy = format!("write a path such as \"{}\"", defaults::PROBE_PATH);
                self.refuse(Place::new("probe.path", given), message, remedy);
                defaults::PROBE_PATH
            }
            Some(given) => given.get_ref(),
            None => defaults::PROBE_PATH,
        };
        let probe = Probe {
            path: path.into(),
            interval: self.length("probe.interval", raw.interval.as_ref(), secs(1), [100 * MS, secs(60)]),
            timeout: self.length("probe.timeout", raw.timeout.as_ref(), secs(2), [50 * MS, secs(60)]),
        };
        raw.enabled.unwrap_or(true).then_some(probe)
    }
}

// === impl Judge: the operator's side ===

impl Judge {
    fn admin(&mut self, raw: &RawAdmin) -> Option<Admin> {
        let token = raw.token.as_ref().and_then(|token| self.secret("admin.token", token));
        let text = match &raw.listen {
            Some(listen) => match listen.get_ref() {
                OrOff::Off => return None,
                OrOff::On(text) => text.as_str(),
            },
            None => defaults::ADMIN_LISTEN,
        };
        let place = raw
            .listen
            .as_ref()
            .map_or_else(|| Place::nowhere("admin.listen"), |listen| Place::new("admin.listen", listen));
        let listen = self.address(place, text)?;
        let hosts = raw.hosts.iter().filter_map(|host| self.host_name("admin.hosts", host)).collect();
        let url = raw.url.as_ref().and_then(|url| self.any_url("admin.url", url));
        Some(Admin { listen, token, hosts, url })
    }

    fn ratelimit_service(&mut self, given: &Spanned<RawRatelimitService>) -> Option<RatelimitService> {
        let raw = given.get_ref();
        let key = |name: &str| format!("ratelimit_service.{name}");
        let domain = match &raw.domain {
            Some(domain) if domain.get_ref().is_empty() => {
                let remedy =
                    format!("write the `domain` of Envoy's filter, such as \"{}\"", defaults::DOMAIN);
                self.refuse(Place::new(key("domain"), domain), "the domain is empty", remedy);
                defaults::DOMAIN
            }
            Some(domain) => domain.get_ref(),
            None => defaults::DOMAIN,
        };
        let tls = raw.tls.as_ref().and_then(|tls| self.tls(&key("tls"), tls));
        let permit_max =
            self.length(&key("permit_max"), raw.permit_max.as_ref(), secs(600), [secs(1), secs(86_400)]);
        let Some(listen) = &raw.listen else {
            let remedy =
                "write listen = \"127.0.0.1:8281\", or a Unix socket, and have Envoy's cluster lead there";
            self.refuse(Place::new("ratelimit_service", given), "the service has no `listen`", remedy);
            return None;
        };
        let listen = self.address(Place::new(key("listen"), listen), listen.get_ref())?;
        let surface = raw.kind.as_ref().map_or(Surface::Dashboard, |kind| surface_of(*kind.get_ref()));
        Some(RatelimitService { listen, tls, domain: domain.into(), surface, permit_max })
    }

    fn replicas(&mut self, raw: &Spanned<RawReplicas>) -> Option<Replicas> {
        let (place, raw) = (|key| Place::new(key, raw), raw.get_ref());
        let Some(url) = &raw.url else {
            let remedy = "add url = \"redis://host:6379/0\", or take the section away for a single replica";
            self.refuse(place("replicas.url"), "replicas share a Redis or Valkey, and none is named", remedy);
            return None;
        };
        if raw.count.is_none() {
            let remedy = "add count = 3, or whatever is the most you run";
            let message =
                "without its store a replica goes on with an even share, and must know among how many";
            self.refuse(place("replicas.count"), message, remedy);
        }
        let tls = self.store_tls(url, raw.authorities.as_ref());
        let url = self.store_url(url);
        let password = raw.password.as_ref().and_then(|password| self.secret("replicas.password", password));
        let count = self.count("replicas.count", raw.count.as_ref(), 1, [1, 10_000]);
        let group =
            self.short_name("replicas.group", raw.group.as_ref()).unwrap_or_else(|| "rayguard".into());
        let name = self.short_name("replicas.name", raw.name.as_ref());
        let period = self.length("replicas.period", raw.period.as_ref(), 250 * MS, [100 * MS, secs(5)]);
        let remember =
            self.length("replicas.remember", raw.remember.as_ref(), secs(300), [secs(10), secs(86_400)]);
        Some(Replicas {
            url: url?,
            tls,
            password,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            group,
            name,
            timing: Timing { period, remember },
        })
    }

    fn store_url(&mut self, given: &Spanned<String>) -> Option<Arc<str>> {
        let place = Place::new("replicas.url", given);
        let remedy = "write \"redis://host:6379/0\" or \"unix:///run/redis.sock\"";
        let Ok(url) = Url::parse(given.get_ref()) else {
            self.refuse(place, format!("`{}` is not an address", given.get_ref()), remedy);
            return None;
        };
        if url.password().is_some() {
            // The file is read by more people than may use the store.
            let remedy = "put it into a file: password = { file = \"/run/secrets/redis\" }";
            self.refuse(place, "a password stands in the address", remedy);
            return None;
        }
        match url.scheme() {
            "redis" | "rediss" if url.has_host() => Some(given.get_ref().as_str().into()),
            "unix" => Some(given.get_ref().as_str().into()),
            _ => {
                self.refuse(place, format!("`{}` is no address of a Redis", given.get_ref()), remedy);
                None
            }
        }
    }

    /// Who vouches for the store, where its address says that it is spoken with in TLS.
    fn store_tls(
        &mut self,
        url: &Spanned<String>,
        authorities: Option<&Spanned<String>>,
    ) -> Option<UpstreamTls> {
        let parsed = Url::parse(url.get_ref()).ok()?;
        match (parsed.scheme(), authorities) {
            ("rediss", Some(authorities)) => {
                let authorities = self.path("replicas.authorities", Some(authorities))?;
                let name = parsed.host_str()?.trim_matches(['[', ']']).to_owned();
                Some(UpstreamTls { authorities, name: ServerName::try_from(name).ok()? })
            }
            ("rediss", None) => {
                let remedy = "add authorities = \"/path/ca.pem\": nobody is trusted unasked";
                self.refuse(
                    Place::new("replicas.url", url),
                    "TLS towards the store needs `authorities`",
                    remedy,
                );
                None
            }
            (_, Some(given)) => {
                let remedy = "write url = \"rediss://host:6380/0\", or take the line away";
                let place = Place::new("replicas.authorities", given);
                self.refuse(place, "nobody vouches for a store that is spoken with in the open", remedy);
                None
            }
            _ => None,
        }
    }

    fn short_name(&mut self, key: &str, given: Option<&Spanned<String>>) -> Option<Arc<str>> {
        let given = given?;
        let name = given.get_ref();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > 100 || !name.bytes().all(fits) {
            let message = format!("`{name}` is not a name");
            self.refuse(Place::new(key, given), message, "use up to 100 letters, digits, `-`, `.` and `_`");
            return None;
        }
        Some(name.as_str().into())
    }

    fn host_name(&mut self, key: &str, given: &Spanned<String>) -> Option<Arc<str>> {
        let name = given.get_ref().to_ascii_lowercase();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > 253 || !name.bytes().all(fits) {
            let message = format!("`{}` is not a host name", given.get_ref());
            self.refuse(Place::new(key, given), message, "write the bare name, such as \"rayguard.ray.svc\"");
            return None;
        }
        Some(name.into())
    }

    fn adjustment_log(&mut self, raw: &RawAdjustmentLog, state_dir: &std::path::Path) -> AdjustmentLog {
        AdjustmentLog {
            dir: self
                .path("adjustment_log.dir", raw.dir.as_ref())
                .unwrap_or_else(|| state_dir.join("adjustment-log")),
            file_bytes_max: self.bytes(
                "adjustment_log.file_bytes_max",
                raw.file_bytes_max.as_ref(),
                64 * MIB,
                [64 * KIB, 16 * GIB],
            ),
            files_max: self.count("adjustment_log.files_max", raw.files_max.as_ref(), 16, [2, 10_000]),
            stdout: raw.stdout.unwrap_or(false),
        }
    }

    fn alerts(&mut self, raw: &RawAlerts) -> Alerts {
        let mut rules: BTreeMap<Alert, Patience> =
            Alert::ALL.into_iter().map(|alert| (alert, alert.patience())).collect();
        for (name, rule) in &raw.rule {
            let key = format!("alerts.rule.{}", name.get_ref());
            if let Some(new) = super::renamed::key(&key) {
                self.refuse(Place::new(&key, name), "this key has a new name", format!("write `{new}`"));
                continue;
            }
            let known = Alert::ALL.iter().map(|alert| alert.label());
            let found = self.find(Place::new(&key, name), "alert", name.get_ref(), known);
            let Some(alert) = found.map(|place| Alert::ALL[place]) else { continue };
            let patience = self.patience(&key, rule, alert.patience());
            if rule.enabled == Some(false) {
                rules.remove(&alert);
            } else {
                rules.insert(alert, patience);
            }
        }
        let notify = raw.notify.iter().enumerate();
        let notify =
            notify.filter_map(|(i, notify)| self.notify(&format!("alerts.notify[{i}]"), notify)).collect();
        Alerts {
            rules,
            repeat: self.length("alerts.repeat", raw.repeat.as_ref(), secs(3600), [secs(10), secs(604_800)]),
            runbook_url: raw.runbook_url.as_ref().and_then(|url| self.any_url("alerts.runbook_url", url)),
            notify,
        }
    }

    fn patience(&mut self, key: &str, rule: &RawAlertRule, default: Patience) -> Patience {
        let bounds = [Duration::ZERO, secs(86_400)];
        Patience {
            fire_after: self.length(&format!("{key}.for"), rule.r#for.as_ref(), default.fire_after, bounds),
            clear_after: self.length(
                &format!("{key}.clear"),
                rule.clear.as_ref(),
                default.clear_after,
                bounds,
            ),
        }
    }

    fn notify(&mut self, key: &str, notify: &Spanned<RawNotify>) -> Option<Notify> {
        let raw = notify.get_ref();
        let token = raw.token.as_ref().and_then(|token| self.secret(&format!("{key}.token"), token));
        let kind = match raw.kind.as_ref().map(|kind| *kind.get_ref()) {
            Some(RawNotifyKind::Alertmanager) => Some(NotifyKind::Alertmanager),
            Some(RawNotifyKind::Webhook) => Some(NotifyKind::Webhook),
            Some(RawNotifyKind::Slack) => Some(NotifyKind::Slack),
            None => {
                let remedy = "write kind = \"alertmanager\", \"webhook\" or \"slack\"";
                self.refuse(Place::new(key, notify), "the receiver has no `kind`", remedy);
                None
            }
        };
        let url = match (&raw.url, &raw.url_from) {
            (Some(url), None) => self.any_url(&format!("{key}.url"), url).map(NotifyUrl::Plain),
            (None, Some(from)) => self.secret(&format!("{key}.url_from"), from).map(NotifyUrl::Secret),
            (given, _) => {
                let message = if given.is_some() {
                    "`url` and `url_from` say the same thing"
                } else {
                    "the receiver has no `url`"
                };
                let remedy = "write url = \"http://...\", or url_from = { file = \"...\" } when the address is a secret";
                self.refuse(Place::new(key, notify), message, remedy);
                None
            }
        };
        Some(Notify { kind: kind?, url: url?, token })
    }

    fn any_url(&mut self, key: &str, given: &Spanned<String>) -> Option<Url> {
        let url = Url::parse(given.get_ref());
        if let Ok(url) = url
            && matches!(url.scheme(), "http" | "https")
            && url.has_host()
        {
            return Some(url);
        }
        let message = format!("`{}` is not a URL", given.get_ref());
        self.refuse(Place::new(key, given), message, "write a URL, such as \"http://alertmanager:9093\"");
        None
    }

    pub(super) fn secret(&mut self, key: &str, secret: &Spanned<RawSecret>) -> Option<Secret> {
        let raw = secret.get_ref();
        match (&raw.file, &raw.env) {
            (Some(file), None) => self.path(&format!("{key}.file"), Some(file)).map(Secret::File),
            (None, Some(name)) if !name.get_ref().is_empty() && !name.get_ref().contains(['=', '\0']) => {
                Some(Secret::Env(name.get_ref().as_str().into()))
            }
            (None, Some(name)) => {
                let message = format!("`{}` is not the name of a variable", name.get_ref());
                self.refuse(Place::new(format!("{key}.env"), name), message, "");
                None
            }
            _ => {
                let remedy = "write { file = \"/run/secrets/name\" } or { env = \"NAME\" }";
                self.refuse(
                    Place::new(key, secret),
                    "a secret stands in one place: a file or a variable",
                    remedy,
                );
                None
            }
        }
    }

    pub(super) fn path(&mut self, key: &str, given: Option<&Spanned<String>>) -> Option<PathBuf> {
        let given = given?;
        if given.get_ref().is_empty() || given.get_ref().contains('\0') {
            self.refuse(Place::new(key, given), "this is not a path", "write a path, or take the key away");
            return None;
        }
        Some(given.get_ref().into())
    }
}

// === impl Judge: loops against their margins ===

impl Judge {
    /// No loop that would swing. The gain that nobody chose is safe and not looked at.
    fn margins(&mut self, settings: &Settings, raw: &Raw) {
        for each in settings.loops().iter().filter(|each| !each.is_safe_by_construction()) {
            let Err(unstable) = each.verdict() else { continue };
            let name = &*settings.policy.classes[each.class.index()].name;
            let of_class = raw.class.iter().find(|(given, _)| given.get_ref() == name);
            let place = match (of_class.and_then(|(_, raw)| raw.law.as_ref()), &raw.control.law) {
                (Some(law), _) => Place::new(format!("class.{name}.law"), law),
                (None, Some(law)) => Place::new("control.law", law),
                (None, None) => Place::nowhere(format!("class.{name}.law")),
            };
            let text = unstable.to_string();
            let (message, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            self.refuse(place, format!("{} of {name}: {message}", each.limit.label()), remedy);
        }
    }
}

// === impl Judge: addresses against each other ===

impl Judge {
    /// No two listeners in one place, and none that leads to itself.
    fn addresses(&mut self, settings: &Settings, listeners: &[(Listener, Place)], raw: &Raw) {
        let mut taken: Vec<(&Address, &str)> = Vec::new();
        for (listener, place) in listeners {
            self.free(place, &listener.address, &taken);
            taken.push((&listener.address, &place.key));
            for upstream in std::iter::once(&listener.upstream).chain([&settings.upstream]) {
                if leads_to(&listener.address, upstream) {
                    // The built-in address has no line; the upstream's then is the one to mend.
                    let mend = match &raw.upstream {
                        Some(upstream) if raw.listen.is_none() => Place::new("upstream", upstream),
                        _ => place.clone(),
                    };
                    self.refuse(
                        mend,
                        format!("{} is where `upstream` leads: requests would go round in a loop", listener.address),
                        "give the listener another port, or move Ray: ray start --head --dashboard-port=18265",
                    );
                    break;
                }
            }
        }
        if let (Some(service), Some(given)) = (&settings.ratelimit_service, &raw.ratelimit_service)
            && let Some(listen) = &given.get_ref().listen
        {
            let place = Place::new("ratelimit_service.listen", listen);
            self.free(&place, &service.listen, &taken);
            if leads_to(&service.listen, &settings.upstream) {
                let message = format!("{} is Ray's own address", service.listen);
                self.refuse(place, message, "give the rate-limit service another port");
            }
            taken.push((&service.listen, "ratelimit_service.listen"));
        }
        let Some(admin) = &settings.admin else { return };
        let place = raw
            .admin
            .listen
            .as_ref()
            .map_or_else(|| Place::nowhere("admin.listen"), |listen| Place::new("admin.listen", listen));
        self.free(&place, &admin.listen, &taken);
        let upstreams = settings.listeners.iter().map(|listener| &listener.upstream);
        if upstreams.chain([&settings.upstream]).any(|upstream| leads_to(&admin.listen, upstream)) {
            let message = format!("{} is Ray's own address", admin.listen);
            self.refuse(place, message, "give the admin listener another port");
        }
    }

    fn free(&mut self, place: &Place, address: &Address, taken: &[(&Address, &str)]) {
        if let Some((_, other)) = taken.iter().find(|(other, _)| clash(address, other)) {
            let message = format!("{address} is taken by `{other}`");
            self.refuse(place.clone(), message, "give each listener a port of its own");
        }
    }
}

/// Whether two listeners cannot both be bound.
fn clash(left: &Address, right: &Address) -> bool {
    match (left, right) {
        (Address::Tcp(left), Address::Tcp(right)) => {
            let same_host =
                left.ip() == right.ip() || left.ip().is_unspecified() || right.ip().is_unspecified();
            left.port() != 0 && left.port() == right.port() && same_host
        }
        (Address::Unix(left), Address::Unix(right)) => left == right,
        _ => false,
    }
}

/// Whether a connection to `upstream` would arrive at `address` on this host.
fn leads_to(address: &Address, upstream: &Upstream) -> bool {
    let Address::Tcp(address) = address else { return false };
    if address.port() != upstream.port {
        return false;
    }
    let loopback_too = address.ip().is_unspecified() || address.ip().is_loopback();
    match upstream.host.parse::<IpAddr>() {
        Ok(host) => {
            host == address.ip() || (loopback_too && host.is_loopback() && address.ip().is_unspecified())
        }
        Err(_) => &*upstream.host == "localhost" && loopback_too,
    }
}
