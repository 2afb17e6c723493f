//! The one table of keys: every key that a file may have, with its kind, default, range and text.
//!
//! What reads the file, what refuses values, `rayguard check --defaults`, `config/rayguard.toml` and
//! the tables of `config/KEYS.md` are made from these entries (see `table` for their form). What
//! is laid over built-in classes, modules and signals has no default here, and is `None` when
//! absent; what involves several keys is judged in `checked` and `classes`.

use std::time::Duration;

use serde::de::{self, Deserializer, MapAccess};

use super::defaults;
use super::quantity::shown;
use super::scalars::{LogFormat, NotifyKind, Secret};
use super::table::{self, Entry, Key, Section, keys, plain};
use super::value::{
    Agent, AnyUrl, Contact, Digest, Header, Host, How, HttpPath, LawKind, Listen, Name, Named, Network,
    OrOff, Origin, Page, Path, PrometheusUrl, Rate, RayVersion, ReadWithin, Room, Server, Short, Size, Slos,
    Text, Throughput, Time, Value, Word,
};
use rayguard_core::admission::table::Mode;
use rayguard_core::policy::{Control, Kind, OnStale, Treatment};
use rayguard_core::request::catalogue::Surface;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const HOUR: Duration = secs(3600);
const DAY: Duration = secs(86_400);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bounds of a rate, per second: one an hour to a million a second.
pub(super) const RATE_MIN: f64 = 1.0 / 3600.0;
pub(super) const RATE_MAX: f64 = 1_000_000.0;
/// Bounds of a concurrency limit. 0 would shut a class for good: `treatment` does that.
const IN_FLIGHT_MIN: f64 = 1.0;
const IN_FLIGHT_MAX: f64 = 1_000_000.0;

keys! {
    /// The whole file.
    Raw at "" {
        /// `enforce` sheds; `shadow` decides, counts and logs only
        mode: Word<Mode> = Mode::Enforce, file r#"
# "enforce" sheds; "shadow" decides, counts and logs, and lets everything through.
{}
"#;
        /// URL of Ray's dashboard; also used by the probe and by discovery
        upstream: Server = defaults::upstream(), range "http, no path", file r"
# URL of Ray's dashboard: plain HTTP, no path. Also used by the probe and by discovery.
{}
";
        /// Ray's version, which decides which modules share a process. `auto` asks Ray; a version selects the newest profile (2.9, 2.31, 2.44, 2.53, 2.60) that is not newer than it; while the version is unknown, 2.9 applies, where all modules share one process
        ray_version: RayVersion = None, range "`auto`, 2.9 and later", note "or a version, such as \"2.44\"", file r"
# Ray's version, which decides which of its modules share a process. auto asks Ray at the start and
# after each outage.
{}
";
        /// where rayguard listens: one address, or `[[listen]]` tables
        listen: Short<Listen, Vec<RawListener>> = Short::Value(defaults::listen()), unit "address", range "at least one; not where `upstream` is", file r"
# Where rayguard listens. To take Ray's own port, move Ray first
# (ray start --head --dashboard-port=18265), then: upstream 18265, listen 8265.
{}
";
        /// directory in which the last good limits and the adjustment log survive a restart; relative to the working directory
        state_dir: Path = defaults::STATE_DIR.into(), file r"
# Directory in which the last good limits and the adjustment log survive a restart.
{}
";
        /// networks whose X-Forwarded-* and identity headers are trusted
        trusted_proxies: Vec<Network>, default "none", range "not everyone (`/0`)", file r#"
# Networks of the proxies in front (ingress, oauth2-proxy): only their X-Forwarded-* and
# identity headers are trusted. Example: ["10.0.0.0/8"]
{}
"#;
        /// who helps users whose request was shed; the message of a shed request ends with it
        contact: Option<Contact>, default "\"your Ray administrator\"", range "one line, 1 to 200 ASCII characters", file r#"
# Who helps users whose request was shed; the message of a shed request ends with it.
# contact = "ray-help@example.com"
"#;
        /// limits and timeouts of HTTP itself
        http: Http;
        /// who counts as one client
        identity: RawIdentity;
        /// clients with a key of their own
        api_keys: Named<RawApiKey>, default "none";
        /// where Ray's readings come from
        metrics: RawMetrics;
        /// the active probe of the GCS
        probe: Probe;
        /// latency objectives: class = "p95 1s", measured from when the request is complete and admitted until the head of Ray's answer
        slo: Named<Slos>, default "as in `rayguard.toml`", range "p50 to p99.9, 1 ms to 1 h, within the class's timeout";
        /// readings and their targets
        signal: Named<RawSignal>, default "as in `rayguard.toml`", range "256";
        /// how the loop steps
        control: RawControl;
        /// limits of Ray's processes
        module: Named<RawModule>, default "as in `rayguard.toml`", range "built-in names";
        /// limits of classes of endpoints
        class: Named<RawClass>, default "as in `rayguard.toml`", range "256";
        /// routes of your own
        route: Vec<RawRoute>, default "none", range "256", file "";
        /// the adjustment log
        adjustment_log: AdjustmentLog;
        /// the program's own log, on standard error
        log: Log;
        /// alerts and their receivers
        alerts: RawAlerts;
        /// the admin listener
        admin: RawAdmin;
        /// several replicas share their limits through a Redis or Valkey
        replicas: Option<RawReplicas>, default "absent: one proxy";
        /// the rate-limit service for Envoy
        ratelimit_service: Option<RawRatelimitService>, default "off";
    }

    /// `[[listen]]`.
    RawListener at "listen." {
        /// `host:port` or `unix:/path`
        address: Option<Listen>, default "required", range "path up to 103 bytes; no two listeners alike", file r#"
# Instead of `listen = "..."`, one table for each port, of any kind:
# [[listen]]
# address = "0.0.0.0:10001"             # or "unix:/run/rayguard/proxy.sock"
"#;
        /// protocol of the listener, as on Ray's ports 8265, 10001 and 8000
        kind: Word<Surface> = Surface::Dashboard, file r#"# kind = "ray-client"                   # "dashboard", "ray-client" or "serve"
"#;
        /// where requests are forwarded
        upstream: Option<Server>, default "the top-level `upstream`; required for `ray-client` and `serve`", range "http, no path", file r#"# upstream = "http://127.0.0.1:20001"   # needed for ray-client and serve
"#;
        /// TLS to the upstream, for an ingress or a Serve proxy that requires it. The scheme of `upstream` stays http
        upstream_tls: Option<RawUpstreamTls>, default "off", file r#"# upstream_tls = { authorities = "/etc/rayguard/ca.pem", name = "serve.internal" }
"#;
        /// TLS for clients
        tls: Option<RawTls>, default "off", file r#"# tls = { certificate = "/etc/rayguard/chain.pem", key = "/etc/rayguard/key.pem", client_authorities = "/etc/rayguard/clients.pem" }
"#;
        /// expect a PROXY protocol header first; trusted only from `trusted_proxies`
        proxy_protocol: bool = false, file "# proxy_protocol = false                # true behind a TCP load balancer that speaks it\n";
    }

    /// `tls` of a listener.
    RawTls at "tls." {
        /// certificate chain, PEM
        certificate: Option<Path>, default "required";
        /// private key, PEM
        key: Option<Path>, default "required";
        /// CA certificates, PEM: only clients with a certificate from one of them may connect
        client_authorities: Option<Path>, default "anyone";
    }

    /// `upstream_tls` of a listener.
    RawUpstreamTls at "upstream_tls." {
        /// CA certificates (PEM) that the server's certificate must chain to. Reloaded when the file changes
        authorities: Option<Path>, default "required";
        /// the name that the server's certificate must contain
        name: Option<Text>, unit "host name or address", default "the upstream's host";
    }

    /// Limits and timeouts of HTTP itself.
    Http at "http." {
        /// open connections at once, all listeners together
        connections_max: usize = 8192, within(1, 1_000_000), note "all listeners together";
        /// open connections at once from one address (IPv6: one /64), the client's behind a load balancer that speaks the PROXY protocol; trusted proxies are not counted
        connections_per_address_max: usize = 1024, within(1, 1_000_000), note "trusted proxies are not counted";
        /// a request's head. Its target may have up to 8,190 bytes, Ray's own maximum; on Serve listeners up to 65,534, which do not count here
        header_bytes_max: Room = 64 * KIB, within(4 * KIB, MIB);
        /// header fields in a request
        headers_max: usize = 100, within(16, 1000);
        /// the head of Ray's answer; a longer one becomes a 502 that says so, unless it arrived complete in one read
        answer_header_bytes_max: Room = 128 * KIB, within(8 * KIB, MIB);
        /// header fields in Ray's answer; more become a 502 that says so
        answer_headers_max: usize = 100, within(16, 1000);
        /// origins whose pages may read the proxy's own answers on Serve listeners. `*`: any page, without credentials; a listed origin may send credentials too. Ray's own answers are not changed
        cors_origins: Vec<Origin> = vec!["*".into()], range "`https://host:port` or `*`", note "whose pages may read the proxy's own answers on Serve listeners";
        /// a request's body; Ray's dashboard itself rejects bodies above 100 MiB
        body_bytes_max: Size = 1 << 30, within(1 << 20, 1 << 40), note "Ray's dashboard itself rejects bodies above 100 MiB";
        /// memory for shared answers, kept or being sent (`rayguard_shared_answer_bytes`). Kept answers without readers are dropped first; an answer for which there is no room is not shared, and each client's request goes to Ray
        shared_bytes_max: Room = 64 * MIB, within(MIB, MIB << 20), note "shared answers; one without room is not shared";
        /// time for a client to send a request's head
        header_timeout: Time = secs(10), within(ms(100), secs(300));
        /// time an idle connection is kept open
        idle_timeout: Time = secs(75), within(secs(1), HOUR);
        /// time for connecting to Ray
        connect_timeout: Time = secs(2), within(ms(10), secs(60));
        /// longest time that a request whose client has left stays counted, if Ray never answers
        abandoned_max: Time = secs(600), within(secs(1), DAY), note "longest time a request whose client left stays counted";
        /// time for requests in progress to finish at shutdown
        drain: Time = secs(30), within(secs(0), HOUR), note "time for requests in progress at shutdown";
    }

    /// `[identity]`.
    RawIdentity at "identity." {
        /// headers, set by trusted proxies, that name the client; the first one present counts
        headers: Vec<Header> = defaults::IDENTITY_HEADERS.iter().map(|&name| name.into()).collect(), range "needs `trusted_proxies`", file r"# Trusted only from trusted proxies; they take precedence over address and token.
# headers = {}
";
        /// the header in which clients send their API key
        api_key_header: Header = "x-rayguard-key".into();
        /// a file with more keys, one per line: name, then SHA-256. Reloaded when it changes
        api_keys_file: Option<Path>, default "none", range "up to 1,000 keys, no two alike", file r#"# api_keys_file = "/etc/rayguard/keys"  # lines of `name sha256`; reloaded when it changes
"#;
        /// the header in which programs name themselves
        agent_header: Header = defaults::AGENT_HEADER.into(), file r"# Programs whose name begins with one of these count as clients of their own, apart from the
# others at their address.
{}
";
        /// beginnings of the names of programs that count as clients of their own, apart from the others at their address: KubeRay's operator, submitter and history server (which send the Go HTTP client's default name, except for the operator through the API server)
        agents: Vec<Agent> = defaults::AGENTS.iter().map(|&agent| agent.into()).collect(), range "3 to 100 letters, digits and signs without blanks, any case";
        /// under contention, clients that used Ray before go before strangers, up to their usual use; strangers keep a fifth of each class. Classes with a rate (submissions) share it the same way. Stored in `state_dir`, in `history` and `identity.key`
        history: bool = true, file r"# Under contention, clients that used Ray before go before strangers, who keep a fifth of each class.
{}
";
    }

    /// `[api_keys.<name>]`.
    RawApiKey at "api_keys.<name>." {
        /// SHA-256 of the key: `printf %s "$KEY" \| sha256sum`
        sha256: Option<Digest>, default "required", range "64 digits, no two alike", file r#"
# A client that sends such a key is one client, from any address. The file holds
# only the digest:  printf %s "$KEY" | sha256sum
# [api_keys.nightly-batch]
# sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"#;
    }

    /// `[metrics]`.
    RawMetrics at "metrics." {
        /// the Prometheus server for `promql` sources; a path prefix and a query (`?tenant=a`) are kept
        prometheus: Option<PrometheusUrl>, default "none", range "http, https; no user or password in it", file r#"# A Prometheus server, for signals with a `promql` source.
# prometheus = "https://prometheus:9090"   # or http; with a path and a query if needed
"#;
        /// CA certificates that the server's certificate must chain to
        prometheus_authorities: Option<Path>, unit "path, PEM", default "the system's", range "with https", file "# prometheus_authorities = \"/path/ca.pem\"\n";
        /// its bearer token
        prometheus_token: Option<SecretAt>, default "none", range "or user and password", file r#"# prometheus_token = { file = "/run/secrets/prometheus" }   # or prometheus_user and prometheus_password
"#;
        /// the user of its basic authentication
        prometheus_user: Option<Text>, default "none", range "with the password";
        /// and the password
        prometheus_password: Option<SecretAt>, default "none", range "with the user";
        /// headers that are not secret, such as a tenant's: `{ X-Scope-OrgID = "team-a" }`
        prometheus_headers: Named<Text>, unit "table", default "none", file "# prometheus_headers = { X-Scope-OrgID = \"team-a\" }\n";
        /// more headers, as JSON: what Ray reads from `RAY_PROMETHEUS_HEADERS`, so `{ env = "RAY_PROMETHEUS_HEADERS" }` works
        prometheus_headers_from: Option<SecretAt>, default "none", range "an object, or a list of pairs", file r#"# prometheus_headers_from = { env = "RAY_PROMETHEUS_HEADERS" }
"#;
        /// exposition pages to scrape; `host:port` means `/metrics` there. Setting it turns discovery off. In a pod: `["HEAD:8080", "HEAD:44217", "HEAD:44227"]`, with 8080 set by `--metrics-export-port`
        targets: Vec<Page>, default "discovered", range "http", note "\"127.0.0.1:8080\" or a URL; turns discovery off";
        /// Ray's list of targets on the head, read when the upstream does not provide one, or `off`. By default, that of a head on this host is found through its processes, wherever `--temp-dir` put it; it cannot be seen from a pod or another host (and before Ray 2.5x the upstream does not provide one either): set `metrics.targets` there
        discovery_file: OrOff<Path> = OrOff::On(defaults::DISCOVERY_FILE.into()), unit "path", note "\"off\": not read";
        /// ask the upstream for its targets (`GET /api/prometheus/sd`); with `false` only the file is read
        discover: bool = true, note "ask the upstream first: GET /api/prometheus/sd";
        /// Ray's own token for discovery, needed with `RAY_AUTH_MODE=token` (the metrics ports need none)
        token: Option<SecretAt>, default "where Ray's commands find it: `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`", file r#"# token = { file = "/root/.ray/auth_token" }   # Ray's own; by default found as Ray's commands find it
"#;
        /// time between scrapes
        interval: Time = secs(5), within(ms(100), secs(300));
        /// time limit of one scrape or query
        timeout: Time = secs(4), within(ms(50), secs(60)), range "{}, not above `metrics.interval`";
        /// one page; a longer one is not read
        body_bytes_max: Room = 64 * MIB, within(64 * KIB, 1024 * MIB);
    }

    /// A secret is never in this file: it comes from another file or from the environment.
    SecretTable at "secret." {
        /// the file that holds the secret; trailing white space is removed
        file: Option<Path>, range "one of the two";
        /// the environment variable that holds the secret
        env: Option<Text>, unit "name", range "one of the two";
    }

    /// The active probe.
    Probe at "probe." {
        /// probe the GCS through the upstream, and ask Ray for the state of admitted jobs, one at a time
        enabled: bool = true;
        /// path to request from the upstream
        path: HttpPath = defaults::PROBE_PATH.into();
        /// time between probes, and between questions to jobs
        interval: Time = secs(1), within(ms(100), secs(60));
        /// time limit of one probe
        timeout: Time = secs(2), within(ms(50), secs(60));
    }

    /// `[signal.<name>]`.
    RawSignal at "signal.<name>." {
        /// the reading at which pressure is 1
        target: Option<f64>, within(f64::MIN_POSITIVE, 1e15), unit "the signal's", default "by signal", range "above 0";
        /// unit shown to operators
        unit: Option<Text>, default "by signal";
        /// a reading older than this is stale
        stale_after: Option<Time>, within(secs(1), HOUR), default "by signal, three scrapes at least", range "{}, two scrapes at least";
        /// what a stale signal does to limits that use it, even while others are fresh: they stay; fall to `initial` slowly; fall to `initial` at once. Limits always stay in force
        on_stale: Option<Word<OnStale>>, default "`hold`";
        /// it counts work that requests leave behind (a backlog): a rate that follows it keeps the time until that work starts within the class's `starts_within`
        backlog: Option<bool>, default "`false`";
        /// for readings that accumulate: above half the target, pressure is how fast it grows over how fast it may grow, to come to the target after this time, once the reading has risen three times in a row; the first cut is by half of what is in use
        forecast: Option<Time>, within(secs(0), HOUR), default "`3m` for `pending_tasks` and `head_memory`, else `0s`";
        /// sources of the reading; the first one found is used
        sources: Option<Vec<RawSource>>, unit "list of sources", default "by signal", range "one at least";
    }

    /// One of `sources`.
    RawSource at "source." {
        /// a selector on scraped pages: `name{Label="v",Other!="w",State=~"A\|B",Kind=~"x.*"}`
        metric: Option<Text>, unit "selector", range "one of `metric`, `promql`, `probe`";
        /// how samples become one reading: their sum; the largest; their increase per second; a histogram's share above a bound; its quantile; their sum divided by another's
        how: Word<How> = How::Sum;
        /// the bound of `share-above`, the quantile of `quantile`
        at: Option<f64>, within(0.0, 1e15), unit "the metric's", default "required there", range "0 or more; of a quantile 0.01 to 0.9999";
        /// the divisor's selector for `ratio`
        to: Option<Text>, unit "selector", default "required there";
        /// multiplies the result
        scale: Option<f64>, within(1e-12, 1e12), default "1", range "above 0";
        /// an expression for the Prometheus server; its value is the reading
        promql: Option<Text>, unit "PromQL", range "needs `metrics.prometheus`";
        /// the probe's latency is the reading
        probe: Option<bool>, unit "ms", range "`true`";
    }

    /// `[control]`.
    RawControl at "control." {
        /// the inner loop: proxy latency moves concurrency
        inner_period: Time = Control::SHIPPED.inner_period, within(ms(10), secs(60)), range "{}, not above the outer period", note "proxy latency moves concurrency";
        /// the outer loop's shortest period: Ray's signals move rates, once per fresh sample
        outer_period: Time = Control::SHIPPED.outer_period, within(ms(100), secs(600)), note "Ray's signals move rates, once per fresh sample";
        /// time over which Ray averages its readings
        window: Time = Control::SHIPPED.window, within(secs(0), secs(600)), note "time over which Ray averages its readings";
        /// the age of Ray's readings when they arrive
        data_age: Time = Control::SHIPPED.data_age, within(secs(0), secs(600)), note "age of Ray's readings when scraped";
        /// pressure within 1 +- this value moves no limit
        deadband: f64 = Control::SHIPPED.deadband, within(0.0, 0.5), unit "ratio", note "pressure within 1 +- 0.05 moves no limit";
        /// the largest change in one step
        slew: f64 = Control::SHIPPED.slew, within(1.01, 10.0), unit "ratio", note "at most x1.5 or /1.5 in one step";
        /// time after a cut during which the limit does not grow
        cooldown: Time = Control::SHIPPED.cooldown, within(secs(0), HOUR), note "no growth for this time after a cut";
        /// the law of every class that sets none and is not fixed for a reason of its own
        law: Option<RawLaw>, unit "law", default "`pid`", file r#"# The law of every class that sets none: "static", "aimd" (increase, decrease), "pid" (kp, ki, kd;
# without ki the gain that suits the dead time), "gradient" (tolerance, smoothing).
law = { kind = "pid", kp = 0, kd = 0 }
"#;
    }

    /// `law`.
    RawLaw at "law." {
        /// `static`: stays. `aimd`: adds, multiplies down. `pid`: on log(limit). `gradient`: latency against a learnt baseline
        kind: Option<Word<LawKind>>, default "required";
        /// `aimd`: added per dead time at most, as a share of `initial`
        increase: f64 = 0.5, within(0.001, 1.0), unit "ratio";
        /// `aimd`: the factor of a cut, at most one per dead time
        decrease: f64 = 0.7, within(0.1, 0.99), unit "ratio";
        /// `pid`: proportional gain
        kp: f64 = 0.0, within(0.0, 10.0);
        /// `pid`: integral gain per step
        ki: Option<f64>, within(0.0, 2.0), default "period / (2 dead times)", range "above 0, to 2";
        /// `pid`: derivative gain
        kd: f64 = 0.0, within(0.0, 10.0);
        /// `gradient`: how far latency may rise over its baseline
        tolerance: f64 = 2.0, within(1.01, 100.0), unit "ratio";
        /// `gradient`: share of the new value taken per step
        smoothing: f64 = 0.5, within(0.001, 1.0), unit "ratio", default "0.5, and never more than the dead time allows";
    }

    /// `[module.<name>]`.
    RawModule at "module.<name>." {
        /// requests in flight at once, all classes together; held ones (tails) are not counted
        in_flight: Option<Short<f64, RawBounds>>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "number or range", default "by module", range "{}; with held classes at most 90: Ray hangs at 100";
        /// learnt work one class may have in flight in a single process: bounds how long all others wait behind it; classes of priority 6, 7, 8, 9 may have 2, 3, 4, 5 times as much
        work: Option<OrOff<Time>>, within(ms(1), secs(600)), default "by module";
    }

    /// `[class.<name>]`.
    RawClass at "class.<name>." {
        /// the Ray process that does its work
        module: Option<Text>, unit "name", default "by class", range "a module";
        /// limits apply; never limited or delayed; rejected
        treatment: Option<Word<Treatment>>, default "`limited`";
        /// request and answer; or held open (no queue, no timeout, the permit counts until Ray closes)
        kind: Option<Word<Kind>>, default "`unary`";
        /// mode of this class only
        mode: Option<Word<Mode>>, default "the top-level `mode`";
        /// who goes first in a contended module; the weight is 2^priority. While a class of priority 8 or 9 has requests, classes of 0 to 5 in the same process pause after a request of more than 0.3 s, so that an urgent request waits 150 ms on average, and one in a hundred of those with a 2 s timeout gives up
        priority: Option<u64>, within(0, 9), unit " ", default "3", range "{} (9 goes first)";
        /// requests per second: one rate (fixed), a range, or `off`
        rate: Option<Short<OrOff<Rate>, RawRate>>, within(RATE_MIN, RATE_MAX), unit "rate or range", default "by class";
        /// requests in flight at once: one number (fixed) or a range. Configured numbers are 1 or more; when signals cut it below 1, one request runs at a time, for that share of its module's time
        in_flight: Option<Short<f64, RawBounds>>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "number or range", default "by class";
        /// bandwidth of bodies in both directions, for the whole class, shared evenly between its requests; the sender of what does not fit is slowed down
        bytes_per_second: Option<OrOff<Throughput>>, within(1e3, 1e12), default "50 MB/s for log downloads, else off";
        /// only clients with an API key are admitted; others get 401 with instructions. On `job-submit` it also covers package uploads
        require_key: Option<bool>, default "`false`", range "needs keys";
        /// how a request waits when there is no room
        queue: Option<RawQueue>, default "by class";
        /// the most one client may use, even when there is room; fair sharing works without it. Counted separately for the address and for the credential: inventing credentials gains nothing, and users behind one address share its limit unless an API key or `identity.headers` tells them apart. A changed limit keeps counting what is in flight and used
        per_client: Option<RawPerClient>, default "off";
        /// equal GETs share one answer, which is kept for this time; `0s` shares only between requests in flight. In `log-tail`: readers of one job's log share one tail at Ray
        coalesce: Option<OrOff<Time>>, within(secs(0), secs(60)), default "by class";
        /// time for Ray to begin its answer, measured from when the request is complete and admitted
        timeout: Option<OrOff<Time>>, within(ms(10), DAY), default "by class";
        /// the law that moves its limits
        law: Option<RawLaw>, unit "law", default "`control.law`";
        /// the signals that move its rate or, in a class without a rate, a second ceiling on `in_flight`, in a single process down to a tenth of its time whatever `min` says; the worst one counts
        signals: Option<Vec<Text>>, unit "list of names", default "by class", range "signals";
        /// a signal that counts the work its requests leave behind: no more are admitted than the head starts within `starts_within`; before the first reading, and before a job has been seen to start, half the signal's target and then one every 5 s
        backlog: Option<OrOff<Text>>, unit "name or `off`", default "by class", range "a signal";
        /// the objective for work done after the answer: a submitted job starts within this time. It sets the backlog's target, from the measured rate of starts
        starts_within: Option<Time>, within(secs(1), HOUR), default "`25s`";
        /// the alert `high-request-rate` fires above this; `off`: above four times the last hour's average
        alert_above: Option<OrOff<Rate>>, within(RATE_MIN, RATE_MAX), default "off";
    }

    /// `rate`.
    RawRate at "rate." {
        /// the rate at the start, and the fallback of a stale signal
        initial: Option<Rate>, within(RATE_MIN, RATE_MAX), default "by class";
        /// lower bound
        min: Option<Rate>, within(RATE_MIN, RATE_MAX), default "by class; `initial` / 10", range "{}, not above `initial`";
        /// upper bound
        max: Option<Rate>, within(RATE_MIN, RATE_MAX), default "by class; `initial` * 10", range "{}, not below `initial`";
        /// how many may pass at once after a quiet time
        burst: Option<u64>, within(1, 1_000_000), default "by class; one second's worth", range "{}, back within 1 h";
    }

    /// `in_flight`.
    RawBounds at "range." {
        /// the limit at the start
        initial: Option<f64>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "count", default "by class";
        /// lower bound for cuts by latency; where the module is one process, signals may cut to 0.1, and where clients leave before their answers come, cuts may go to 1
        min: Option<f64>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "count", default "by class", range "{}, not above `initial`";
        /// upper bound
        max: Option<f64>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "count", default "by class", range "{}, not below `initial`";
    }

    /// `queue`.
    RawQueue at "queue." {
        /// requests waiting at once; 0 sheds at once
        len: Option<u64>, within(0, 100_000), default "by class";
        /// the longest wait; keep it below the clients' own timeouts (KubeRay 2 s, State API 24 s)
        wait: Option<Time>, within(secs(0), secs(300)), default "by class";
    }

    /// `per_client`.
    RawPerClient at "per_client." {
        /// requests per second of one client
        rate: Option<OrOff<Rate>>, within(RATE_MIN, RATE_MAX), default "off";
        /// how many it may send at once; needs `rate`
        burst: Option<u64>, within(1, 1_000_000), default "one second's worth";
        /// requests of one client in flight at once
        in_flight: Option<OrOff<u64>>, within(1, 1_000_000), default "off";
    }

    /// `[[route]]`.
    RawRoute at "route." {
        /// the method; `GET` stands for `HEAD` too
        method: Option<Text>, unit "name", default "any", file r#"
# Your own routes are matched before Ray's. A class may be your own too; then set its module:
# [class.batch-inference]
# module = "Serve"
# mode = "shadow"                       # this class only
# [[route]]
# method = "POST"                       # any when absent
"#;
        /// `{name}` is one segment, `{*rest}` at the end is all that follows
        path: Option<Text>, unit "pattern", default "required", range "in normal form", file r#"# path = "/v1/batch/{*rest}"            # {name}: one segment; {*rest}: all that follows
"#;
        /// a header that the request must have: `name: value`, or `name` for any value
        header: Option<Text>, unit "header", default "none", file r#"# header = "x-tier: batch"              # optional
"#;
        /// the kind of listener it applies to
        kind: Option<Word<Surface>>, default "the kind of the class's module", file r#"# kind = "serve"                        # the listener; default: the kind of the class's module
"#;
        /// its class
        class: Option<Text>, unit "name", default "required", range "a class", file r#"# class = "batch-inference"
"#;
    }

    /// The adjustment log.
    AdjustmentLog at "adjustment_log." {
        /// where the adjustment log is written
        dir: Path, default "`adjustment-log` under `state_dir`", file r#"# dir = "rayguard-state/adjustment-log"         # default: under state_dir
"#;
        /// size of one file before the next one is started
        file_bytes_max: Size = 64 << 20, within(64 << 10, 16 << 30);
        /// number of files kept
        files_max: usize = 16, within(2, 10_000);
        /// also write each line to standard output; for containers
        stdout: bool = false, note "for containers: also write each line to standard output";
    }

    /// The program's own log, on standard error.
    Log at "log." {
        /// the lowest level shown
        level: Word<tracing::Level> = tracing::Level::INFO, note "error, warn, info, debug, trace";
        /// `text` for people, or `json`: one object per line
        format: Word<LogFormat> = LogFormat::Text, note "or \"json\"";
    }

    /// `[alerts]`.
    RawAlerts at "alerts." {
        /// interval at which a firing alert is sent again
        repeat: Time = HOUR, within(secs(10), secs(604_800)), note "interval at which a firing alert is sent again";
        /// base URL of the runbooks; the alert's name is appended
        runbook_url: Option<AnyUrl>, default "the runbook of this repository", file r#"# runbook_url = "https://wiki.example/runbooks/"   # instead of the project's runbook; the alert's name is appended
"#;
        /// rules: `slo-breached`, `sheds-rising`, `requests-failing`, `high-request-rate`, `pinned-floor`, `pinned-ceiling`, `signal-stale`, `loop-hunting`, `upstream-down`, `config-rejected`, `adjustment-log-gaps`, `replica-store-down`
        rule: Named<RawAlertRule>, default "as in `rayguard.toml`", range "built-in names";
        /// receivers
        notify: Vec<RawNotify>, default "none", file "# [[alerts.notify]]\n";
    }

    /// `[alerts.rule.<name>]`.
    RawAlertRule at "rule." {
        /// send it to the receivers
        enabled: bool = true;
        /// time the condition must hold before it fires
        r#for: Option<Time>, within(secs(0), DAY), default "by rule";
        /// time the condition must be absent before it resolves
        clear: Option<Time>, within(secs(0), DAY), default "by rule";
    }

    /// `[[alerts.notify]]`.
    RawNotify at "notify." {
        /// Alertmanager's API v2; a POST with JSON; Slack's incoming webhook
        kind: Option<Word<NotifyKind>>, default "required", file r#"# kind = "alertmanager"                 # or "webhook", "slack"
"#;
        /// its address
        url: Option<AnyUrl>, default "one of the two", range "http, https", file r#"# url = "http://alertmanager:9093"
"#;
        /// its address, when that is a secret (Slack's is)
        url_from: Option<SecretAt>, default "one of the two", file r#"# url_from = { env = "SLACK_WEBHOOK" }  # instead of url, when the address is a secret
"#;
        /// bearer token
        token: Option<SecretAt>, default "none", file r#"# token = { file = "/run/secrets/alertmanager" }
"#;
    }

    /// `[admin]`.
    RawAdmin at "admin." {
        /// state, overrides, `/metrics`, `/livez`, `/readyz`; or `off`
        listen: OrOff<Listen> = OrOff::On(defaults::admin()), unit "address", range "no listener's, not Ray's", note "state, overrides, /metrics, /livez, /readyz; or \"off\"";
        /// bearer token required for changes; without one, only loopback may change anything
        token: Option<SecretAt>, default "none", file r#"# Without a token only loopback may change anything; reading needs none.
# token = { file = "/run/secrets/rayguard-admin" }   # or { env = "NAME" }
"#;
        /// accepted Host headers; IP addresses and `localhost` are always accepted. Any other name could be a foreign web page's that resolves to this address (DNS rebinding)
        hosts: Vec<Host>, range "without scheme and port", note "accepted Host headers: [\"rayguard.ray.svc\"]; IP addresses are always accepted";
        /// URL at which operators open the page; alerts link to it
        url: Option<AnyUrl>, default "`http://LISTEN/`", range "http, https", file r#"# url = "https://rayguard.example/"       # URL of the page, for links in alerts; default: http://LISTEN/
"#;
    }

    /// `[ratelimit_service]`.
    RawRatelimitService at "ratelimit_service." {
        /// `host:port` or `unix:/path`; HTTP/2 (gRPC)
        listen: Option<Listen>, default "required", range "no listener's, not Ray's", file r#"
# An Envoy that is already in front can ask rayguard before it lets a request pass (Envoy's rate-limit
# service v3): it enforces these limits, and no request goes through rayguard. See deploy/envoy/.
# [ratelimit_service]
# listen = "127.0.0.1:8281"             # or "unix:/run/rayguard/ratelimit.sock"
"#;
        /// the `domain` of Envoy's filter. Requests of any other domain pass, and are counted
        domain: Text = "rayguard".into(), range "not empty", file r"# domain = {}                   # as in Envoy's filter; any other domain passes unlimited
";
        /// which API the paths belong to
        kind: Word<Surface> = Surface::Dashboard, file r#"# kind = {}                    # API of the paths: "dashboard", "ray-client" or "serve"
"#;
        /// TLS for Envoys. The service trusts every caller about who its clients are: off loopback, require client certificates
        tls: Option<RawTls>, default "off", file r#"# tls = { certificate = "/etc/rayguard/chain.pem", key = "/etc/rayguard/key.pem", client_authorities = "/etc/rayguard/envoys.pem" }
"#;
        /// longest time a permit is held when Envoy does not report the end of a request; where the class is not held, its `timeout`, or the longer of five times its SLO and ten times the mean duration
        permit_max: Time = secs(600), within(secs(1), DAY), file r"# permit_max = {}                     # longest time a permit is held when Envoy does not report the end of a request
";
    }

    /// `[replicas]`.
    RawReplicas at "replicas." {
        /// the store, `redis://[user@]host:port/database`, `rediss://...` for TLS, or `unix:///path`; no password in it
        url: Option<Text>, unit "URL", default "required", file r#"
# Several replicas in front of one head share its limits through a Redis or Valkey; a single one needs none.
# [replicas]
# url = "redis://127.0.0.1:6379/0"      # "rediss://..." is TLS, with authorities = "/etc/rayguard/redis-ca.pem"
"#;
        /// CA certificates (PEM) that the store's certificate must chain to
        authorities: Option<Path>, default "required with `rediss://`";
        /// its password
        password: Option<SecretAt>, default "none", file r#"# password = { file = "/run/secrets/redis" }
"#;
        /// the largest number of replicas
        count: Option<u64>, within(1, 10_000), default "required", file r"# count = 3                          # the most you run; without the store each uses an even share
";
        /// name shared by the replicas of one head, and by no others
        group: Name = "rayguard".into(), range "letters, digits, `-._`", file r"# group = {}                    # one for each head
";
        /// name of this replica in logs and at the other replicas
        name: Option<Name>, default "the host's", range "letters, digits, `-._`", file r#"# name = "replica-1"                       # default: the host's name
"#;
        /// interval at which leases are renewed; a lease lasts eight of these, leadership two
        period: Time = ms(250), within(ms(100), secs(5)), file r"# period = {}                      # lease renewal interval
";
        /// how long the share of a silent replica is reserved for it
        remember: Time = secs(300), within(secs(10), DAY), file r"# remember = {}                       # how long the share of a silent replica is reserved for it
";
    }
}

type KeysOf = fn() -> Vec<Key>;

/// What the documentation has a table of, by the names of their sections.
pub(super) const SECTIONS: &[(&str, KeysOf)] = &[
    ("top", Raw::keys),
    ("listen", RawListener::keys),
    ("tls", RawTls::keys),
    ("upstream_tls", RawUpstreamTls::keys),
    ("http", Http::keys),
    ("identity", RawIdentity::keys),
    ("api_keys", RawApiKey::keys),
    ("metrics", RawMetrics::keys),
    ("secret", SecretTable::keys),
    ("probe", Probe::keys),
    ("signal", RawSignal::keys),
    ("source", RawSource::keys),
    ("control", RawControl::keys),
    ("law", RawLaw::keys),
    ("module", RawModule::keys),
    ("class", RawClass::keys),
    ("rate", RawRate::keys),
    ("range", RawBounds::keys),
    ("queue", RawQueue::keys),
    ("per_client", RawPerClient::keys),
    ("route", RawRoute::keys),
    ("adjustment_log", AdjustmentLog::keys),
    ("log", Log::keys),
    ("alerts", RawAlerts::keys),
    ("rule", RawAlertRule::keys),
    ("notify", RawNotify::keys),
    ("admin", RawAdmin::keys),
    ("replicas", RawReplicas::keys),
    ("ratelimit_service", RawRatelimitService::keys),
];

/// A secret is never in the file: it stands in another file or in the environment.
pub enum SecretAt {}
impl Value for SecretAt {
    type Out = Secret;
    type Bound = ();
    fn unit() -> String {
        "secret".into()
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        let table = SecretTable::read(from)?;
        match (table.file, table.env) {
            (Some(file), None) => Ok(Secret::File(file)),
            (None, Some(name)) if !name.is_empty() && !name.contains(['=', '\0']) => Ok(Secret::Env(name)),
            (None, Some(name)) => {
                Err(de::Error::custom(format!("`{}` is not the name of a variable", shown(&name))))
            }
            _ => Err(de::Error::custom(
                "a secret comes from one place, a file or a variable; write { file = \
                    \"/run/secrets/name\" } or { env = \"NAME\" }",
            )),
        }
    }
    fn toml(_: &Secret) -> String {
        String::new()
    }
}
