//! The complete file: every key, explained, at its default.
//!
//! `rayguard check --defaults` prints it, and `config/rayguard.toml` is that print; a test
//! reads it back and finds the defaults again. The sections whose keys are fixed are prose
//! below; signals, modules and classes are written from what the code holds.

use std::fmt::Write as _;
use std::time::Duration;

use super::defaults;
use super::quantity::{BytesPerSecond, Length, Objective, PerSecond};
use super::selector;
use rayguard_core::alert::Alert;
use rayguard_core::policy::{
    Bounds, Class, How, Kind, Law, Module, OnStale, PerClientLimits, Queue, Signal, SignalId, SignalSource,
    Treatment,
};
use rayguard_core::request::catalogue;
use rayguard_core::signal::catalogue::SIGNALS as SIGNALS_BUILT_IN;

/// The sections before the tables of signals, modules and classes.
const HEAD: &str = r#"# rayguard: every key at its default. This file changes nothing; keep the lines you change.
# What each key means, with unit and range: config/README.md. A start for real use:
# config/minimal.toml. Check before you run:  rayguard check --config FILE

# "enforce" sheds; "shadow" decides, counts and logs, and lets everything through.
mode = "enforce"

# Ray's dashboard: plain HTTP, no path. Probe and discovery ask here too.
upstream = "http://127.0.0.1:8265"

# Which of Ray's modules share a process: asked for at the start and whenever the head was away.
ray_version = "auto"                    # or a version, such as "2.44"

# Where rayguard listens. To take Ray's own port, move Ray first
# (ray start --head --dashboard-port=18265), then: upstream 18265, listen 8265.
listen = "127.0.0.1:8266"

# Where last good limits and the adjustment log survive a restart.
state_dir = "rayguard-state"

# Networks of the proxies in front (ingress, oauth2-proxy): only their X-Forwarded-* and
# identity headers are believed. Example: ["10.0.0.0/8"]
trusted_proxies = []

# Who helps users whose request was refused; every refusal ends with it.
# contact = "ray-help@example.com"

# Instead of `listen = "..."`, one table for each port, of any kind:
# [[listen]]
# address = "0.0.0.0:10001"             # or "unix:/run/rayguard/proxy.sock"
# kind = "ray-client"                   # "dashboard", "ray-client" or "serve"
# upstream = "http://127.0.0.1:20001"   # needed for ray-client and serve
# upstream_tls = { authorities = "/etc/rayguard/ca.pem", name = "serve.internal" }
# tls = { certificate = "/etc/rayguard/chain.pem", key = "/etc/rayguard/key.pem", client_authorities = "/etc/rayguard/clients.pem" }
# proxy_protocol = false                # true behind a TCP load balancer that speaks it

[http]
connections_max = 8192                  # all listeners together
connections_per_address_max = 1024      # trusted proxies are not counted
header_bytes_max = "64 KiB"
headers_max = 100
answer_header_bytes_max = "128 KiB"
answer_headers_max = 100
cors_origins = ["*"]                    # whose pages may read the proxy's own answers on Serve listeners
body_bytes_max = "1 GiB"                # Ray's dashboard refuses above 100 MiB by itself
shared_bytes_max = "64 MiB"             # answers that are shared; what has no room goes to each by itself
header_timeout = "10s"
idle_timeout = "75s"
connect_timeout = "2s"
abandoned_max = "10m"                   # work whose client left stays counted, at most so long
drain = "30s"                           # at shutdown, exchanges under way may finish

[identity]
# Believed from trusted proxies alone; they outrank address and token.
# headers = ["x-client-id", "x-forwarded-user", "x-auth-request-user"]
api_key_header = "x-rayguard-key"
# api_keys_file = "/etc/rayguard/keys"  # lines of `name sha256`; read again when it changes
# Programs whose name begins so are clients of their own beside the others of their address.
agent_header = "user-agent"
agents = ["kuberay-operator/", "go-http-client/"]
# Under contention clients that were here before go before strangers, who keep a fifth of each class.
history = true

# Clients with a key of their own are one client wherever they call from. The file holds
# only the digest:  printf %s "$KEY" | sha256sum
# [api_keys.nightly-batch]
# sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

[metrics]
# A Prometheus server, for signals with a `promql` source.
# prometheus = "https://prometheus:9090"   # or http; with a path and a query if need be
# prometheus_authorities = "/path/ca.pem"
# prometheus_token = { file = "/run/secrets/prometheus" }   # or prometheus_user and prometheus_password
# prometheus_headers = { X-Scope-OrgID = "team-a" }
# prometheus_headers_from = { env = "RAY_PROMETHEUS_HEADERS" }
targets = []                            # "127.0.0.1:8080" or a URL; then nothing is looked for
discovery_file = "/tmp/ray/prom_metrics_service_discovery.json"   # "off": do not look
discover = true                         # ask the upstream first: GET /api/prometheus/sd
# token = { file = "/root/.ray/auth_token" }   # Ray's own, for that; found as Ray's commands find it
interval = "5s"
timeout = "4s"
body_bytes_max = "64 MiB"

[probe]
enabled = true
path = "/api/gcs_healthz"
interval = "1s"
timeout = "2s"

[control]
inner_period = "250ms"                  # proxy latency moves concurrency
outer_period = "5s"                     # Ray's signals move rates, once per fresh sample
window = "10s"                          # Ray's readings average over so long
data_age = "5s"                         # age of Ray's readings when scraped
deadband = 0.05                         # pressure within 1 +- 0.05 moves nothing
slew = 1.5                              # at most x1.5 or /1.5 in one step
cooldown = "10s"                        # no growth for so long after a cut
# Of every class that names none: "static", "aimd" (increase, decrease), "pid" (kp, ki, kd;
# without ki the gain that suits the dead time), "gradient" (tolerance, smoothing).
law = { kind = "pid", kp = 0, kd = 0 }

[adjustment_log]
# dir = "rayguard-state/adjustment-log"         # under state_dir unless said otherwise
file_bytes_max = "64 MiB"
files_max = 16
stdout = false                          # true in containers: each line to standard output too

[log]
level = "info"                          # error, warn, info, debug, trace
format = "text"                         # or "json"

[alerts]
repeat = "1h"                           # what still fires is sent again
# runbook_url = "https://wiki.example/runbooks/"   # instead of the project's runbook; the alert's name is appended
# [[alerts.notify]]
# kind = "alertmanager"                 # or "webhook", "slack"
# url = "http://alertmanager:9093"
# url_from = { env = "SLACK_WEBHOOK" }  # instead of url, when the address is a secret
# token = { file = "/run/secrets/alertmanager" }

[admin]
listen = "127.0.0.1:9465"               # state, overrides, /metrics, /livez, /readyz; or "off"
# Without a token only loopback may change anything; reading needs none.
# token = { file = "/run/secrets/rayguard-admin" }   # or { env = "NAME" }
hosts = []                              # accepted Host headers: ["rayguard.ray.svc"]; IP addresses are always accepted
# url = "https://rayguard.example/"       # where people open the page, for links in alerts; http://LISTEN/ unless said otherwise

# Envoys that are in front already can ask here before they let a request pass (their rate-limit
# service v3): they enforce these limits, and nothing goes through rayguard. deploy/envoy/.
# [ratelimit_service]
# listen = "127.0.0.1:8281"             # or "unix:/run/rayguard/ratelimit.sock"
# domain = "rayguard"                   # as Envoy's filter has it; any other passes unlimited
# kind = "dashboard"                    # what the paths mean: "dashboard", "ray-client" or "serve"
# tls = { certificate = "/etc/rayguard/chain.pem", key = "/etc/rayguard/key.pem", client_authorities = "/etc/rayguard/envoys.pem" }
# permit_max = "10m"                     # longest time a permit is held when Envoy does not report the end of a request

# Several replicas in front of one head share its limits over a Redis or Valkey; one needs none.
# [replicas]
# url = "redis://127.0.0.1:6379/0"      # "rediss://..." is TLS, with authorities = "/etc/rayguard/redis-ca.pem"
# password = { file = "/run/secrets/redis" }
# count = 3                          # the most you run; without the store each has an even share
# group = "rayguard"                    # one for each head
# name = "replica-1"                       # the host's name unless said otherwise
# period = "250ms"                      # lease renewal interval
# remember = "5m"                       # the share of a replica that fell silent is kept so long

# Routes of your own, before Ray's. A class may be one of yours; then say its module:
# [class.batch-inference]
# module = "Serve"
# mode = "shadow"                       # this class alone
# [[route]]
# method = "POST"                       # any when absent
# path = "/v1/batch/{*rest}"            # {name}: one segment; {*rest}: all that follows
# header = "x-tier: batch"              # optional
# kind = "serve"                        # the listener; that of the class's module when absent
# class = "batch-inference"

# When a person is told: bad for so long before it fires, good for so long before it
# resolves. `enabled = false` silences one.
"#;

const SLO: &str = "
# The latency you want at the proxy, by class: this is what limits are moved to keep.
[slo]
";

const SIGNALS: &str = r#"
# Readings of Ray. `target` is where pressure is 1: above it, limits of the classes that
# follow the signal fall. Sources are tried in order; the first one found is used:
#   { metric = 'name{Label="v"}', how = "sum" }   how: sum, max, rate, share-above, quantile, ratio
#   at = 0.99 goes with share-above and quantile, to = "other_metric" with ratio
#   { promql = "..." } asks the Prometheus server; { probe = true } is the probe's latency
# One with `backlog = true` counts work that requests leave behind: a rate that follows it keeps
# the time until that starts within the class's `starts_within`. One with a `forecast` gathers: from half its target
# on, pressure is that of where it is going to be after so long.
# on_stale: "hold" (stay), "decay" (fall to initial), "static" (initial at once). Never open.
"#;

const MODULES: &str = "
# Ray's processes: what may be under way in each at once, all classes together, and how
# much learnt work one class may have in it (\"off\" for what works in parallel; what a
# client takes of that is counted in permits' time).
";

const CLASSES: &str = "
# What each class of endpoints may do. The first lists every key; the others leave out what
# is off. `rate` and `in_flight` take one value (fixed) or a range that the loop moves in.
";

/// The complete file.
#[must_use]
pub fn defaults() -> String {
    let signals = defaults::signals();
    let modules = defaults::modules();
    let classes = defaults::classes(&signals);
    let mut out = String::from(HEAD);
    for alert in Alert::ALL {
        write_alert(&mut out, alert);
    }
    out.push_str(SLO);
    for class in classes.iter().filter(|class| class.treatment == Treatment::Limited) {
        line(&mut out, &class.name, &quoted(&Objective(class.slo)));
    }
    out.push_str(SIGNALS);
    for (signal, about) in signals.iter().zip(SIGNALS_BUILT_IN) {
        write_signal(&mut out, signal, about.about);
    }
    out.push_str(MODULES);
    for (module, about) in modules.iter().zip(catalogue::MODULES) {
        write_module(&mut out, module, about.about);
    }
    out.push_str(CLASSES);
    for (i, (class, about)) in classes.iter().zip(catalogue::CLASSES).enumerate() {
        write_class(&mut out, class, about.about, &modules[class.module.index()].name, &signals, i == 0);
    }
    out
}

fn line(out: &mut String, key: &str, value: &str) {
    // invariant: writing to a String cannot fail.
    let _ = writeln!(out, "{key} = {value}");
}

fn quoted(value: &impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

fn or_off<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "\"off\"".to_owned(), |value| quoted(&value))
}

fn write_alert(out: &mut String, alert: Alert) {
    let patience = alert.patience();
    let _ = writeln!(out, "\n[alerts.rule.{}]", alert.label());
    line(out, "enabled", "true");
    line(out, "for", &quoted(&Length(patience.fire_after)));
    line(out, "clear", &quoted(&Length(patience.clear_after)));
}

fn write_signal(out: &mut String, signal: &Signal, about: &str) {
    let _ = writeln!(out, "\n# {about}\n[signal.{}]", signal.name);
    line(out, "target", &signal.target.to_string());
    line(out, "unit", &quoted(&signal.unit));
    line(out, "stale_after", &quoted(&Length(signal.stale_after)));
    let on_stale = match signal.on_stale {
        OnStale::Hold => "hold",
        OnStale::Decay => "decay",
        OnStale::Static => "static",
    };
    line(out, "on_stale", &quoted(&on_stale));
    if signal.backlog {
        line(out, "backlog", "true");
    }
    if signal.forecast > Duration::ZERO {
        line(out, "forecast", &quoted(&Length(signal.forecast)));
    }
    let sources = signal.sources.iter().map(|source| format!("  {},\n", source_text(source)));
    line(out, "sources", &format!("[\n{}]", sources.collect::<String>()));
}

fn source_text(source: &SignalSource) -> String {
    let derivation = match source {
        SignalSource::Probe => return "{ probe = true }".to_owned(),
        SignalSource::PromQl(text) => return format!("{{ promql = '{text}' }}"),
        SignalSource::Scrape(derivation) => derivation,
    };
    let how = match &derivation.how {
        How::Sum => "\"sum\"".to_owned(),
        How::Max => "\"max\"".to_owned(),
        How::Rate => "\"rate\"".to_owned(),
        How::ShareAbove(bound) => format!("\"share-above\", at = {bound}"),
        How::Quantile(quantile) => format!("\"quantile\", at = {quantile}"),
        How::RatioTo(below) => format!("\"ratio\", to = '{}'", selector::write(below)),
    };
    format!(
        "{{ metric = '{}', how = {how}, scale = {} }}",
        selector::write(&derivation.select),
        derivation.scale
    )
}

fn write_module(out: &mut String, module: &Module, about: &str) {
    let _ = writeln!(out, "\n# {about}\n[module.{}]", module.name);
    line(out, "in_flight", &bounds_text(module.in_flight));
    line(out, "work", &or_off(module.work.map(Length)));
}

fn bounds_text(bounds: Bounds) -> String {
    if bounds.moves() {
        return format!("{{ initial = {}, min = {}, max = {} }}", bounds.initial, bounds.min, bounds.max);
    }
    bounds.initial.to_string()
}

/// One class; `whole` writes what is off, too.
fn write_class(out: &mut String, class: &Class, about: &str, module: &str, signals: &[Signal], whole: bool) {
    let _ = writeln!(out, "\n# {about}\n[class.{}]", class.name);
    line(out, "module", &quoted(&module));
    let treatment = match class.treatment {
        Treatment::Limited => "limited",
        Treatment::Exempt => "exempt",
        Treatment::Blocked => "blocked",
    };
    let limited = class.treatment == Treatment::Limited;
    if whole || !limited {
        line(out, "treatment", &quoted(&treatment));
    }
    if !limited {
        return;
    }
    let held = class.kind == Kind::Held;
    if whole || held {
        line(out, "kind", if held { "\"held\"" } else { "\"unary\"" });
    }
    line(out, "priority", &class.priority.0.to_string());
    if let Some(rate) = class.rate {
        let [initial, min, max] =
            [rate.per_second.initial, rate.per_second.min, rate.per_second.max].map(PerSecond);
        let text = format!(
            "{{ initial = \"{initial}\", min = \"{min}\", max = \"{max}\", burst = {} }}",
            rate.burst
        );
        line(out, "rate", &text);
    } else if whole {
        line(out, "rate", "\"off\"");
    }
    line(out, "in_flight", &bounds_text(class.in_flight));
    if whole || class.bytes_per_second.is_some() {
        line(out, "bytes_per_second", &or_off(class.bytes_per_second.map(BytesPerSecond)));
    }
    if whole || class.require_key {
        line(out, "require_key", &class.require_key.to_string());
    }
    if !held {
        let Queue { len_max, wait_max } = class.queue;
        line(out, "queue", &format!("{{ len = {len_max}, wait = \"{}\" }}", Length(wait_max)));
    }
    if whole || class.per_client != PerClientLimits::default() {
        line(out, "per_client", &per_client_text(class.per_client));
    }
    if whole || class.coalesce.is_some() {
        line(out, "coalesce", &or_off(class.coalesce.map(|coalesce| Length(coalesce.ttl))));
    }
    if !held {
        line(out, "timeout", &or_off(class.timeout.map(Length)));
    }
    line(out, "law", &law_text(class.law));
    let name = |id: &SignalId| &*signals[id.index()].name;
    if whole || !class.signals.is_empty() {
        let followed: Vec<&str> = class.signals.iter().map(name).collect();
        line(out, "signals", &format!("{followed:?}"));
    }
    if whole || class.backlog.is_some() {
        line(out, "backlog", &or_off(class.backlog.as_ref().map(name)));
        line(out, "starts_within", &quoted(&Length(class.starts_within)));
    }
    if whole {
        line(out, "alert_above", "\"off\"");
    }
}

fn per_client_text(limits: PerClientLimits) -> String {
    let rate = match limits.rate {
        Some((rate, burst)) => format!("rate = \"{}\", burst = {burst}", PerSecond(rate)),
        None => "rate = \"off\"".to_owned(),
    };
    let in_flight = limits.in_flight.map_or_else(|| "\"off\"".to_owned(), |count| count.to_string());
    format!("{{ {rate}, in_flight = {in_flight} }}")
}

fn law_text(law: Law) -> String {
    match law {
        Law::Static => "{ kind = \"static\" }".to_owned(),
        Law::Aimd { increase, decrease } => {
            format!("{{ kind = \"aimd\", increase = {increase}, decrease = {decrease} }}")
        }
        Law::Pid { kp, ki: Some(ki), kd } => {
            format!("{{ kind = \"pid\", kp = {kp}, ki = {ki}, kd = {kd} }}")
        }
        Law::Pid { kp, ki: None, kd } => format!("{{ kind = \"pid\", kp = {kp}, kd = {kd} }}"),
        Law::Gradient { tolerance, smoothing } => {
            format!("{{ kind = \"gradient\", tolerance = {tolerance}, smoothing = {smoothing} }}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, Settings, parse};
    use super::defaults;

    #[test]
    fn the_complete_file_reads_back_as_the_defaults() {
        let without = Settings::defaults(&Overrides::default()).unwrap();
        let mut with = parse(&defaults(), "defaults", &Overrides::default())
            .unwrap_or_else(|problems| panic!("{problems}"));
        with.version = without.version.clone();
        assert_eq!(format!("{with:#?}"), format!("{without:#?}"));
    }

    #[test]
    fn config_rayguard_toml_is_the_complete_file() {
        let stored = include_str!("../../config/rayguard.toml");
        assert!(
            stored == defaults(),
            "a default has changed; write the file again: \
             cargo test --lib write_the_complete_file_again -- --ignored"
        );
    }

    #[test]
    #[ignore = "writes config/rayguard.toml; run it by hand after a default has changed"]
    fn write_the_complete_file_again() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/rayguard.toml"), defaults())
            .unwrap();
    }
}
