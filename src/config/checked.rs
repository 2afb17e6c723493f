//! From [`Raw`] to [`Settings`]: what involves several keys is judged, and every name resolved.
//!
//! A slip does not stop the judging: it is noted, the default stands in, and the next key is
//! looked at, so that the operator sees everything in one round. What one value says by itself
//! has been judged when it was read (`keys`, `value`); classes, signals and laws are in
//! `classes`, and this room has the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use url::Url;

use super::check::Check;
use super::classes;
use super::defaults;
use super::document::Document;
use super::keys::{Raw, RawRatelimitService};
use super::keys::{
    RawAdmin, RawAlerts, RawApiKey, RawIdentity, RawListener, RawMetrics, RawNotify, RawReplicas, RawTls,
    RawUpstreamTls,
};
use super::problem::Problem;
use super::quantity::Length;
use super::settings::{
    Address, Admin, Alerts, ApiKey, Identity, Listener, Metrics, Notify, NotifyUrl, RatelimitService,
    Replicas, Settings, Tls, Upstream, UpstreamTls,
};
use super::value::Short;
use rayguard_core::alert::{Alert, Patience};
use rayguard_core::replicas::Timing;
use rayguard_core::request::catalogue::Surface;

/// The settings that the file asks for, or all that is wrong with them.
pub(super) fn check(document: &Document<'_>, version: &str) -> Result<Settings, Vec<Problem>> {
    let mut check = Check { document, problems: Vec::new() };
    let raw = &document.raw;
    let mut adjustment_log = raw.adjustment_log.clone();
    if !check.has("adjustment_log.dir") {
        adjustment_log.dir = raw.state_dir.join("adjustment-log");
    }
    let metrics = check.metrics(&raw.metrics);
    let judged = classes::judge(&mut check, raw, &metrics);
    let listeners = check.listeners(raw);
    let settings = Settings {
        version: version.into(),
        mode: raw.mode,
        class_modes: judged.modes,
        contact: raw.contact.clone(),
        http: raw.http.clone(),
        identity: check.identity(raw, &raw.identity),
        probe: Some(raw.probe.clone()).filter(|probe| probe.enabled),
        admin: raw.admin.clone().admin(),
        ratelimit_service: raw.ratelimit_service.as_ref().and_then(|given| check.ratelimit_service(given)),
        replicas: raw.replicas.as_ref().and_then(|replicas| check.replicas(replicas)),
        adjustment_log,
        log: raw.log.clone(),
        alerts: check.alerts(&raw.alerts),
        listeners: listeners.iter().map(|(_, listener)| listener.clone()).collect(),
        policy: Arc::new(judged.policy),
        routes: judged.routes,
        ray: raw.ray_version,
        upstream: raw.upstream.clone(),
        trusted_proxies: raw.trusted_proxies.clone(),
        metrics,
        state_dir: raw.state_dir.clone(),
    };
    check.addresses(&settings, &listeners);
    check.margins(&settings);
    if check.problems.is_empty() { Ok(settings) } else { Err(check.problems) }
}

// === impl Check: where clients come in ===

impl Check<'_> {
    /// The listeners, each with the key of its address.
    fn listeners(&mut self, raw: &Raw) -> Vec<(String, Listener)> {
        match &raw.listen {
            Short::Value(address) => {
                let listener = Listener {
                    surface: Surface::Dashboard,
                    address: address.clone(),
                    upstream: raw.upstream.clone(),
                    upstream_tls: None,
                    tls: None,
                    proxy_protocol: false,
                };
                vec![("listen".into(), listener)]
            }
            Short::Table(listeners) => {
                if listeners.is_empty() {
                    let remedy = format!("write listen = \"{}\"", defaults::listen());
                    self.refuse("listen", "no listener is left", remedy);
                }
                let listeners = listeners.iter().enumerate();
                listeners
                    .filter_map(|(i, listener)| {
                        self.listener(&format!("listen[{i}]"), listener, &raw.upstream)
                    })
                    .collect()
            }
        }
    }

    fn listener(&mut self, key: &str, raw: &RawListener, upstream: &Upstream) -> Option<(String, Listener)> {
        let upstream = match &raw.upstream {
            Some(given) => Some(given),
            None if raw.kind == Surface::Dashboard => Some(upstream),
            None => {
                let remedy = "write where Ray listens, such as upstream = \"http://127.0.0.1:20001\"";
                self.refuse(key, "this kind of listener needs an `upstream` of its own", remedy);
                None
            }
        };
        let tls = raw.tls.as_ref().and_then(|tls| self.tls(&format!("{key}.tls"), tls));
        let upstream_tls = match (&raw.upstream_tls, upstream) {
            (Some(tls), Some(upstream)) => self.upstream_tls(&format!("{key}.upstream_tls"), tls, upstream),
            _ => None,
        };
        let Some(address) = raw.address.clone() else {
            let remedy = format!("write address = \"{}\"", defaults::listen());
            self.refuse(key, "this listener has no `address`", remedy);
            return None;
        };
        let (surface, proxy_protocol) = (raw.kind, raw.proxy_protocol);
        let listener =
            Listener { surface, address, upstream: upstream?.clone(), upstream_tls, tls, proxy_protocol };
        Some((format!("{key}.address"), listener))
    }

    fn tls(&mut self, at: &str, raw: &RawTls) -> Option<Tls> {
        let RawTls { certificate: Some(certificate), key: Some(key), client_authorities } = raw.clone()
        else {
            let remedy = "write tls = { certificate = \"/path/chain.pem\", key = \"/path/key.pem\" }";
            self.refuse(at, "TLS needs both `certificate` and `key`", remedy);
            return None;
        };
        Some(Tls { certificate, key, client_authorities })
    }

    fn upstream_tls(&mut self, at: &str, raw: &RawUpstreamTls, upstream: &Upstream) -> Option<UpstreamTls> {
        let Some(authorities) = raw.authorities.clone() else {
            let remedy =
                "write upstream_tls = { authorities = \"/path/ca.pem\" }: no CA is trusted by default";
            self.refuse(at, "TLS towards the upstream needs `authorities`", remedy);
            return None;
        };
        let name = raw.name.as_ref().unwrap_or(&upstream.host);
        let Ok(name) = ServerName::try_from(name.to_string()) else {
            let message = format!("`{name}` is not the name of a server");
            let remedy = "write a host name or an address, as it stands in the server's certificate";
            self.refuse(raw.name.as_ref().map_or(at.into(), |_| format!("{at}.name")), message, remedy);
            return None;
        };
        Some(UpstreamTls { authorities, name })
    }

    fn identity(&mut self, raw: &Raw, identity: &RawIdentity) -> Identity {
        let chosen = self.has("identity.headers") && !identity.headers.is_empty();
        if chosen && raw.trusted_proxies.is_empty() {
            self.refuse(
                "identity.headers",
                "these headers are accepted only from trusted proxies, and there are none",
                "list the networks of your proxies in `trusted_proxies`, or remove this key",
            );
        }
        Identity {
            headers: identity.headers.clone(),
            api_key_header: identity.api_key_header.clone(),
            agent_header: identity.agent_header.clone(),
            agents: identity.agents.clone(),
            api_keys: self.api_keys(&raw.api_keys),
            api_keys_file: identity.api_keys_file.clone(),
        }
    }

    fn api_keys(&mut self, keys: &BTreeMap<String, RawApiKey>) -> Vec<ApiKey> {
        let mut out: Vec<ApiKey> = Vec::new();
        for (name, raw) in keys {
            let key = format!("api_keys.{name}.sha256");
            let Some(sha256) = raw.sha256 else {
                let hint = "print it with: printf %s \"$KEY\" | sha256sum";
                self.refuse(key, "the key's digest is missing", hint);
                continue;
            };
            if let Some(twin) = out.iter().find(|other| other.sha256 == sha256) {
                let message = format!("`{}` has the same key", twin.name);
                self.refuse(key, message, "give each client a key of its own");
                continue;
            }
            out.push(ApiKey { name: name.as_str().into(), sha256 });
        }
        out
    }
}

// === impl Check: where readings come from ===

impl Check<'_> {
    fn metrics(&mut self, raw: &RawMetrics) -> Metrics {
        for (i, target) in raw.targets.iter().enumerate() {
            if raw.targets[..i].contains(target) {
                let message = format!("`{target}` is listed twice");
                self.refuse(format!("metrics.targets[{i}]"), message, "remove one");
            }
        }
        let (interval, mut timeout) = (raw.interval, raw.timeout);
        if !self.has("metrics.timeout") {
            timeout = timeout.min(interval);
        }
        if timeout > interval {
            let (timeout, interval) = (Length(timeout), Length(interval));
            self.refuse(
                "metrics.timeout",
                format!("a scrape may take {timeout} and the next is due after {interval}"),
                "keep the timeout at or below `metrics.interval`",
            );
        }
        Metrics {
            prometheus: self.prometheus(raw),
            targets: raw.targets.clone(),
            discovery_file: raw.discovery_file.clone().on(),
            discover: raw.discover,
            token: raw.token.clone(),
            interval,
            timeout,
            body_bytes_max: raw.body_bytes_max,
        }
    }
}

// === impl Check: the operator's side ===

impl RawAdmin {
    fn admin(self) -> Option<Admin> {
        let RawAdmin { listen, token, hosts, url } = self;
        Some(Admin { listen: listen.on()?, token, hosts, url })
    }
}

impl Check<'_> {
    fn ratelimit_service(&mut self, raw: &RawRatelimitService) -> Option<RatelimitService> {
        if raw.domain.is_empty() {
            let usual = RawRatelimitService::default().domain;
            let remedy = format!("write the `domain` of Envoy's filter, such as \"{usual}\"");
            self.refuse("ratelimit_service.domain", "the domain is empty", remedy);
        }
        let tls = raw.tls.as_ref().and_then(|tls| self.tls("ratelimit_service.tls", tls));
        let Some(listen) = raw.listen.clone() else {
            let remedy =
                "write listen = \"127.0.0.1:8281\", or a Unix socket, and point Envoy's cluster at it";
            self.refuse("ratelimit_service", "the service has no `listen`", remedy);
            return None;
        };
        let (domain, surface, permit_max) = (raw.domain.clone(), raw.kind, raw.permit_max);
        Some(RatelimitService { listen, tls, domain, surface, permit_max })
    }

    fn replicas(&mut self, raw: &RawReplicas) -> Option<Replicas> {
        let Some(url) = &raw.url else {
            let remedy = "add url = \"redis://host:6379/0\", or remove the section for a single replica";
            self.refuse("replicas.url", "replicas share a Redis or Valkey, and `url` is missing", remedy);
            return None;
        };
        if raw.count.is_none() {
            let remedy = "add count = 3, or the most replicas you run";
            let message = "without the store each replica uses an even share, and `count` says of how many";
            self.refuse("replicas.count", message, remedy);
        }
        let parsed = self.store_url(url)?;
        Some(Replicas {
            url: url.clone(),
            tls: self.store_tls(&parsed, raw.authorities.as_ref()),
            password: raw.password.clone(),
            count: raw.count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1),
            group: raw.group.clone(),
            name: raw.name.clone(),
            timing: Timing { period: raw.period, remember: raw.remember },
        })
    }

    fn store_url(&mut self, given: &str) -> Option<Url> {
        let remedy = "write \"redis://host:6379/0\" or \"unix:///run/redis.sock\"";
        let (message, remedy) = match Url::parse(given) {
            Err(_) => (format!("`{given}` is not an address"), remedy),
            // The file is read by more people than may use the store.
            Ok(url) if url.password().is_some() => (
                "the address contains a password".to_owned(),
                "put it into a file: password = { file = \"/run/secrets/redis\" }",
            ),
            Ok(url)
                if matches!(url.scheme(), "redis" | "rediss") && url.has_host() || url.scheme() == "unix" =>
            {
                return Some(url);
            }
            Ok(_) => (format!("`{given}` is not the address of a Redis"), remedy),
        };
        self.refuse("replicas.url", message, remedy);
        None
    }

    /// Who vouches for the store, where its address says that it is spoken with in TLS.
    fn store_tls(&mut self, url: &Url, authorities: Option<&PathBuf>) -> Option<UpstreamTls> {
        match (url.scheme(), authorities) {
            ("rediss", Some(authorities)) => {
                let name = url.host_str()?.trim_matches(['[', ']']).to_owned();
                Some(UpstreamTls { authorities: authorities.clone(), name: ServerName::try_from(name).ok()? })
            }
            ("rediss", None) => {
                let remedy = "add authorities = \"/path/ca.pem\": no CA is trusted by default";
                self.refuse("replicas.url", "TLS towards the store needs `authorities`", remedy);
                None
            }
            (_, Some(_)) => {
                let remedy = "write url = \"rediss://host:6380/0\", or remove the line";
                let message = "the connection to the store is not encrypted, so no certificate is checked";
                self.refuse("replicas.authorities", message, remedy);
                None
            }
            _ => None,
        }
    }

    fn alerts(&mut self, raw: &RawAlerts) -> Alerts {
        let mut rules: BTreeMap<Alert, Patience> =
            Alert::ALL.into_iter().map(|alert| (alert, alert.patience())).collect();
        for (name, rule) in &raw.rule {
            let key = format!("alerts.rule.{name}");
            if let Some(new) = super::renamed::key(&key) {
                self.refuse(&key, "this key has a new name", format!("write `{new}`"));
                continue;
            }
            let known = Alert::ALL.iter().map(|alert| alert.label());
            let Some(alert) = self.find(&key, "alert", name, known).map(|place| Alert::ALL[place]) else {
                continue;
            };
            if rule.enabled {
                let usual = alert.patience();
                let patience = Patience {
                    fire_after: rule.r#for.unwrap_or(usual.fire_after),
                    clear_after: rule.clear.unwrap_or(usual.clear_after),
                };
                rules.insert(alert, patience);
            } else {
                rules.remove(&alert);
            }
        }
        let notify = raw.notify.iter().enumerate();
        let notify =
            notify.filter_map(|(i, notify)| self.notify(&format!("alerts.notify[{i}]"), notify)).collect();
        Alerts { rules, repeat: raw.repeat, runbook_url: raw.runbook_url.clone(), notify }
    }

    fn notify(&mut self, key: &str, raw: &RawNotify) -> Option<Notify> {
        if raw.kind.is_none() {
            let remedy = "write kind = \"alertmanager\", \"webhook\" or \"slack\"";
            self.refuse(key, "the receiver has no `kind`", remedy);
        }
        let url = match (&raw.url, &raw.url_from) {
            (Some(url), None) => NotifyUrl::Plain(url.clone()),
            (None, Some(from)) => NotifyUrl::Secret(from.clone()),
            (given, _) => {
                let message = if given.is_some() {
                    "`url` and `url_from` exclude each other"
                } else {
                    "the receiver has no `url`"
                };
                let remedy = "write url = \"http://...\", or url_from = { file = \"...\" } when the address is a secret";
                self.refuse(key, message, remedy);
                return None;
            }
        };
        Some(Notify { kind: raw.kind?, url, token: raw.token.clone() })
    }
}

// === impl Check: loops against their margins ===

impl Check<'_> {
    /// No loop that would swing. A gain that the operator did not choose is safe and not looked at.
    fn margins(&mut self, settings: &Settings) {
        for each in settings.loops().iter().filter(|each| !each.is_safe_by_construction()) {
            let Err(unstable) = each.verdict() else { continue };
            let name = &*settings.policy.classes[each.class.index()].name;
            let of_class = format!("class.{name}.law");
            let of_all = !self.has(&of_class) && self.has("control.law");
            let text = unstable.to_string();
            let (message, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            let message = format!("{} of {name}: {message}", each.limit.label());
            self.refuse(if of_all { "control.law".into() } else { of_class }, message, remedy);
        }
    }
}

// === impl Check: addresses against each other ===

impl Check<'_> {
    /// No two listeners in one place, and none that leads to itself.
    fn addresses(&mut self, settings: &Settings, listeners: &[(String, Listener)]) {
        let mut taken: Vec<(&Address, &str)> = Vec::new();
        for (key, listener) in listeners {
            self.free(key, &listener.address, &taken);
            taken.push((&listener.address, key));
            let upstreams = [&listener.upstream, &settings.upstream];
            if upstreams.into_iter().any(|upstream| leads_to(&listener.address, upstream)) {
                // The built-in address has no line; the upstream's then is the one to mend.
                let mend = if self.has("upstream") && !self.has("listen") { "upstream" } else { key };
                self.refuse(
                    mend,
                    format!("{} is the address of `upstream`: requests would loop", listener.address),
                    "give the listener another port, or move Ray: ray start --head --dashboard-port=18265",
                );
            }
        }
        if let Some(service) = &settings.ratelimit_service {
            let key = "ratelimit_service.listen";
            self.free(key, &service.listen, &taken);
            if leads_to(&service.listen, &settings.upstream) {
                let message = format!("{} is Ray's own address", service.listen);
                self.refuse(key, message, "give the rate-limit service another port");
            }
            taken.push((&service.listen, key));
        }
        let Some(admin) = &settings.admin else { return };
        self.free("admin.listen", &admin.listen, &taken);
        let upstreams = settings.listeners.iter().map(|listener| &listener.upstream);
        if upstreams.chain([&settings.upstream]).any(|upstream| leads_to(&admin.listen, upstream)) {
            let message = format!("{} is Ray's own address", admin.listen);
            self.refuse("admin.listen", message, "give the admin listener another port");
        }
    }

    fn free(&mut self, key: &str, address: &Address, taken: &[(&Address, &str)]) {
        if let Some((_, other)) = taken.iter().find(|(other, _)| clash(address, other)) {
            let message = format!("{address} is taken by `{other}`");
            self.refuse(key, message, "give each listener a port of its own");
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
