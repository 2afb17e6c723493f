//! The one table of keys: every key that a file may have, with its kind, default, range and text.
//!
//! What reads the file, what refuses values, `rayguard check --defaults`, `config/rayguard.toml` and
//! the tables of `config/README.md` are made from these entries (see `table` for their form). What
//! is laid over built-in classes, modules and signals has no default here, and is `None` when
//! absent; what involves several keys is judged in `checked` and `classes`.

use std::time::Duration;

use serde::de::{Deserializer, MapAccess};

use super::defaults;
use super::settings::{LogFormat, NotifyKind};
use super::table::{self, Entry, Key, Section, keys, plain};
use super::value::{
    Agent, AnyUrl, Contact, Digest, Flow, Header, Host, How, HttpPath, LawKind, Listen, Name, Named, Network,
    OrOff, Origin, Page, Path, PrometheusUrl, Rate, RayVersion, ReadWithin, Room, SecretAt, Server, Short,
    Size, Slos, Text, Time, Value, Word,
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
        /// Ray's dashboard; the probe and discovery ask it too
        upstream: Server = defaults::upstream(), range "http, no path", file r"
# Ray's dashboard: plain HTTP, no path. Probe and discovery ask here too.
{}
";
        /// which Ray is there: it decides which modules share a process. `auto` asks it; a version takes its profile (2.9, 2.31, 2.44, 2.53, 2.60: the newest that is not newer); while it is not known, 2.9, where all modules are one
        ray_version: RayVersion = None, range "`auto`, 2.9 and later", note "or a version, such as \"2.44\"", file r"
# Which of Ray's modules share a process: asked for at the start and whenever the head was away.
{}
";
        /// where rayguard listens: one address, or `[[listen]]` tables
        listen: Short<Listen, Vec<RawListener>> = Short::Value(defaults::listen()), unit "address", range "at least one; not where `upstream` is", file r"
# Where rayguard listens. To take Ray's own port, move Ray first
# (ray start --head --dashboard-port=18265), then: upstream 18265, listen 8265.
{}
";
        /// where last good limits and the adjustment log survive a restart; relative to the working directory
        state_dir: Path = defaults::STATE_DIR.into(), file r"
# Where last good limits and the adjustment log survive a restart.
{}
";
        /// networks whose X-Forwarded-* and identity headers are believed
        trusted_proxies: Vec<Network>, default "none", range "not everyone (`/0`)", file r#"
# Networks of the proxies in front (ingress, oauth2-proxy): only their X-Forwarded-* and
# identity headers are believed. Example: ["10.0.0.0/8"]
{}
"#;
        /// who helps users whose request was refused: every refusal for want of room ends with it
        contact: Option<Contact>, default "\"your Ray administrator\"", range "one line, 1 to 200 ASCII characters", file r#"
# Who helps users whose request was refused; every refusal for want of room ends with it.
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
        /// latency objectives: class = "p95 1s", measured from the request being whole and admitted to the head of Ray's answer
        slo: Named<Slos>, default "as in `rayguard.toml`", range "p50 to p99.9, 1 ms to 1 h, within the class's timeout";
        /// readings and their targets
        signal: Named<RawSignal>, default "as in `rayguard.toml`", range "256";
        /// how the loop steps
        control: RawControl;
        /// ceilings of Ray's processes
        module: Named<RawModule>, default "as in `rayguard.toml`", range "built-in names";
        /// limits of classes of endpoints
        class: Named<RawClass>, default "as in `rayguard.toml`", range "256";
        /// routes of your own
        route: Vec<RawRoute>, default "none", range "256", file "";
        /// the adjustment log
        adjustment_log: AdjustmentLog;
        /// the program's own log, on standard error
        log: Log;
        /// alerts and whom they reach
        alerts: RawAlerts;
        /// the admin listener
        admin: RawAdmin;
        /// several replicas share their limits over a Redis or Valkey
        replicas: Option<RawReplicas>, default "absent: one proxy";
        /// the rate-limit service that Envoys ask
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
        /// what is spoken there: Ray's ports 8265, 10001, 8000
        kind: Word<Surface> = Surface::Dashboard, file r#"# kind = "ray-client"                   # "dashboard", "ray-client" or "serve"
"#;
        /// where it leads
        upstream: Option<Server>, default "the top-level `upstream`; required for `ray-client` and `serve`", range "http, no path", file r#"# upstream = "http://127.0.0.1:20001"   # needed for ray-client and serve
"#;
        /// TLS towards the upstream: an ingress or a Serve proxy that asks for it. The scheme of `upstream` stays http
        upstream_tls: Option<RawUpstreamTls>, default "off", file r#"# upstream_tls = { authorities = "/etc/rayguard/ca.pem", name = "serve.internal" }
"#;
        /// TLS towards clients
        tls: Option<RawTls>, default "off", file r#"# tls = { certificate = "/etc/rayguard/chain.pem", key = "/etc/rayguard/key.pem", client_authorities = "/etc/rayguard/clients.pem" }
"#;
        /// a PROXY protocol header comes first; believed from trusted proxies
        proxy_protocol: bool = false, file "# proxy_protocol = false                # true behind a TCP load balancer that speaks it\n";
    }

    /// `tls` of a listener.
    RawTls at "tls." {
        /// the chain, PEM
        certificate: Option<Path>, default "required";
        /// the private key, PEM
        key: Option<Path>, default "required";
        /// authorities, PEM: only clients with a certificate of theirs are let in
        client_authorities: Option<Path>, default "anyone";
    }

    /// `upstream_tls` of a listener.
    RawUpstreamTls at "upstream_tls." {
        /// CA certificates (PEM) that the server's certificate must chain to. Reloaded when the file changes
        authorities: Option<Path>, default "required";
        /// the name it is vouched for under
        name: Option<Text>, unit "host name or address", default "the upstream's host";
    }

    /// Limits and timeouts of HTTP itself.
    Http at "http." {
        /// open connections at once, all listeners together
        connections_max: usize = 8192, within(1, 1_000_000), note "all listeners together";
        /// open connections at once from one address (IPv6: one /64), the client's behind a load balancer that speaks the PROXY protocol; trusted proxies are not counted
        connections_per_address_max: usize = 1024, within(1, 1_000_000), note "trusted proxies are not counted";
        /// a request's head. Its target may have 8,190 bytes, as Ray's dashboard reads; on Serve listeners 65,534, which do not count here
        header_bytes_max: Room = 64 * KIB, within(4 * KIB, MIB);
        /// header fields in a request
        headers_max: usize = 100, within(16, 1000);
        /// the head of Ray's answer; a longer one is a 502 that says so, unless it came whole in one read
        answer_header_bytes_max: Room = 128 * KIB, within(8 * KIB, MIB);
        /// header fields in Ray's answer; more are a 502 that says so
        answer_headers_max: usize = 100, within(16, 1000);
        /// origins whose pages may read the proxy's own answers on Serve listeners. `*`: any page, without credentials; a listed origin may send credentials too. Ray's own answers are left as they are
        cors_origins: Vec<Origin> = vec!["*".into()], range "`https://host:port` or `*`", note "whose pages may read the proxy's own answers on Serve listeners";
        /// a request's body; Ray's dashboard refuses above 100 MiB by itself
        body_bytes_max: Size = 1 << 30, within(1 << 20, 1 << 40), note "Ray's dashboard refuses above 100 MiB by itself";
        /// answers that are shared: kept, or on their way to their readers (`rayguard_shared_answer_bytes`). Kept ones that nobody reads make room; an answer that finds none is not shared, and each client asks for itself
        shared_bytes_max: Room = 64 * MIB, within(MIB, MIB << 20), note "answers that are shared; what has no room goes to each by itself";
        /// for a client to send its head
        header_timeout: Time = secs(10), within(ms(100), secs(300));
        /// for which an idle connection is kept
        idle_timeout: Time = secs(75), within(secs(1), HOUR);
        /// for connecting to Ray
        connect_timeout: Time = secs(2), within(ms(10), secs(60));
        /// for which work whose client has left stays counted, if Ray never answers
        abandoned_max: Time = secs(600), within(secs(1), DAY), note "work whose client left stays counted, at most so long";
        /// for exchanges under way to finish at shutdown
        drain: Time = secs(30), within(secs(0), HOUR), note "at shutdown, exchanges under way may finish";
    }

    /// `[identity]`.
    RawIdentity at "identity." {
        /// headers, set by trusted proxies, that name the client; best first
        headers: Vec<Header> = defaults::IDENTITY_HEADERS.iter().map(|&name| name.into()).collect(), range "needs `trusted_proxies`", file r"# Believed from trusted proxies alone; they outrank address and token.
# headers = {}
";
        /// the header in which clients send their API key
        api_key_header: Header = "x-rayguard-key".into();
        /// a file with more keys, a line each: name, then SHA-256. Read again when it changes
        api_keys_file: Option<Path>, default "none", range "up to 1,000 keys, no two alike", file r#"# api_keys_file = "/etc/rayguard/keys"  # lines of `name sha256`; read again when it changes
"#;
        /// the header in which programs name themselves
        agent_header: Header = defaults::AGENT_HEADER.into(), file r"# Programs whose name begins so are clients of their own beside the others of their address.
{}
";
        /// how the names of programs begin that are clients of their own beside the others of their address: KubeRay's operator, submitter and history server (they have Go's own name, but for the operator through the API server)
        agents: Vec<Agent> = defaults::AGENTS.iter().map(|&agent| agent.into()).collect(), range "3 to 100 letters, digits and signs without blanks, any case";
        /// under contention, clients that used Ray before go before strangers, as far as their habit reaches; strangers keep a fifth of each class. Classes with a rate (submissions) share it alike. Kept in `state_dir`, in `history` and `identity.key`
        history: bool = true, file r"# Under contention clients that were here before go before strangers, who keep a fifth of each class.
{}
";
    }

    /// `[api_keys.<name>]`.
    RawApiKey at "api_keys.<name>." {
        /// SHA-256 of the key: `printf %s "$KEY" \| sha256sum`
        sha256: Option<Digest>, default "required", range "64 digits, no two alike", file r#"
# Clients with a key of their own are one client wherever they call from. The file holds
# only the digest:  printf %s "$KEY" | sha256sum
# [api_keys.nightly-batch]
# sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"#;
    }

    /// `[metrics]`.
    RawMetrics at "metrics." {
        /// the Prometheus server that `promql` sources ask; a path before the API's and a query (`?tenant=a`) are kept
        prometheus: Option<PrometheusUrl>, default "none", range "http, https; no user or password in it", file r#"# A Prometheus server, for signals with a `promql` source.
# prometheus = "https://prometheus:9090"   # or http; with a path and a query if need be
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
        /// headers that are no secret, such as a tenant's: `{ X-Scope-OrgID = "team-a" }`
        prometheus_headers: Named<Text>, unit "table", default "none", file "# prometheus_headers = { X-Scope-OrgID = \"team-a\" }\n";
        /// more headers, as JSON: what Ray reads from `RAY_PROMETHEUS_HEADERS`, so `{ env = "RAY_PROMETHEUS_HEADERS" }` will do
        prometheus_headers_from: Option<SecretAt>, default "none", range "an object, or a list of pairs", file r#"# prometheus_headers_from = { env = "RAY_PROMETHEUS_HEADERS" }
"#;
        /// exposition pages to scrape; `host:port` means `/metrics` there. Nothing is looked for beside them. In a pod: `["HEAD:8080", "HEAD:44217", "HEAD:44227"]`, with 8080 set by `--metrics-export-port`
        targets: Vec<Page>, default "what is found", range "http", note "\"127.0.0.1:8080\" or a URL; then nothing is looked for";
        /// Ray's list of targets on the head, read when the upstream does not give one, or `off`. Unless another is named, that of a head on this host is found by its processes, wherever `--temp-dir` put it; from a pod or another host it cannot be seen (before Ray 2.5x the upstream does not give one either): name `metrics.targets`
        discovery_file: OrOff<Path> = OrOff::On(defaults::DISCOVERY_FILE.into()), unit "path", note "\"off\": do not look";
        /// ask the upstream for its targets (`GET /api/prometheus/sd`); `false` leaves the file
        discover: bool = true, note "ask the upstream first: GET /api/prometheus/sd";
        /// Ray's own token for that question, where `RAY_AUTH_MODE=token` (the metrics ports need none)
        token: Option<SecretAt>, default "where Ray's commands find it: `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`", file r#"# token = { file = "/root/.ray/auth_token" }   # Ray's own, for that; found as Ray's commands find it
"#;
        /// between scrapes
        interval: Time = secs(5), within(ms(100), secs(300));
        /// for one scrape or query
        timeout: Time = secs(4), within(ms(50), secs(60)), range "{}, not above `metrics.interval`";
        /// one page; a longer one is given up
        body_bytes_max: Room = 64 * MIB, within(64 * KIB, 1024 * MIB);
    }

    /// A secret is never in the file: it stands in another file or in the environment.
    SecretTable at "secret." {
        /// a secret's file; white space at its end is cut off
        file: Option<Path>, range "one of the two";
        /// a secret's environment variable
        env: Option<Text>, unit "name", range "one of the two";
    }

    /// The active probe.
    Probe at "probe." {
        /// whether to probe
        enabled: bool = true;
        /// what to ask the upstream for
        path: HttpPath = defaults::PROBE_PATH.into();
        /// between probes
        interval: Time = secs(1), within(ms(100), secs(60));
        /// for an answer
        timeout: Time = secs(2), within(ms(50), secs(60));
    }

    /// `[signal.<name>]`.
    RawSignal at "signal.<name>." {
        /// the reading at which pressure is 1
        target: Option<f64>, within(f64::MIN_POSITIVE, 1e15), unit "the signal's", default "by signal", range "above 0";
        /// for people
        unit: Option<Text>, default "by signal";
        /// a reading older than this is stale
        stale_after: Option<Time>, within(secs(1), HOUR), default "by signal, three scrapes at least", range "{}, two scrapes at least";
        /// what a stale signal does to limits that use it, be the others fresh or not: stay; fall to `initial` slowly; `initial` at once. None of them opens the admission controller
        on_stale: Option<Word<OnStale>>, default "`hold`";
        /// it counts work that requests leave behind: a rate that follows it is an integrator's input, and keeps the time to the start within the class's `starts_within`
        backlog: Option<bool>, default "`false`";
        /// what it counts gathers: from half its target on, pressure is that of where the reading is going to be after so long, once it has risen three times in a row; the first cut is by half of what is used
        forecast: Option<Time>, within(secs(0), HOUR), default "`3m` for `pending_tasks` and `head_memory`, else `0s`";
        /// where to read it; the first one found is used
        sources: Option<Vec<RawSource>>, unit "list of sources", default "by signal", range "one at least";
    }

    /// One of `sources`.
    RawSource at "source." {
        /// a selector on scraped pages: `name{Label="v",Other!="w",State=~"A\|B",Kind=~"x.*"}`
        metric: Option<Text>, unit "selector", range "one of `metric`, `promql`, `probe`";
        /// what is made of the samples: their sum; the largest; their increase per second; a histogram's share above a bound; its quantile; their sum over another's
        how: Word<How> = How::Sum;
        /// the bound of `share-above`, the quantile of `quantile`
        at: Option<f64>, within(0.0, 1e15), unit "the metric's", default "required there", range "0 or more; of a quantile 0.01 to 0.9999";
        /// the selector below the line of `ratio`
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
        /// over which Ray's readings average
        window: Time = Control::SHIPPED.window, within(secs(0), secs(600)), note "Ray's readings average over so long";
        /// the age of Ray's readings when they arrive
        data_age: Time = Control::SHIPPED.data_age, within(secs(0), secs(600)), note "age of Ray's readings when scraped";
        /// pressure within 1 +- this moves nothing
        deadband: f64 = Control::SHIPPED.deadband, within(0.0, 0.5), unit "ratio", note "pressure within 1 +- 0.05 moves nothing";
        /// the largest change in one step
        slew: f64 = Control::SHIPPED.slew, within(1.01, 10.0), unit "ratio", note "at most x1.5 or /1.5 in one step";
        /// after a cut, no growth for so long
        cooldown: Time = Control::SHIPPED.cooldown, within(secs(0), HOUR), note "no growth for so long after a cut";
        /// the law of every class that names none, and does not stand still for a reason
        law: Option<RawLaw>, unit "law", default "`pid`", file r#"# Of every class that names none: "static", "aimd" (increase, decrease), "pid" (kp, ki, kd;
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
        smoothing: f64 = 0.5, within(0.001, 1.0), unit "ratio", default "0.5, and never more than the dead time bears";
    }

    /// `[module.<name>]`.
    RawModule at "module.<name>." {
        /// requests under way at once, all classes together; held ones (tails) not counted
        in_flight: Option<Short<f64, RawBounds>>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "number or range", default "by module", range "{}; with held classes at most 90: Ray hangs at 100";
        /// learnt work one class may have under way in a single process: bounds the delay of all others behind it; classes of priority 6, 7, 8, 9 may have 2, 3, 4, 5 times as much
        work: Option<OrOff<Time>>, within(ms(1), secs(600)), default "by module";
    }

    /// `[class.<name>]`.
    RawClass at "class.<name>." {
        /// the process its work lands on
        module: Option<Text>, unit "name", default "by class", range "a module";
        /// limits apply; never limited, never delayed; refused
        treatment: Option<Word<Treatment>>, default "`limited`";
        /// asked and answered; or held open (no queue, no timeout, the permit counts until Ray closes)
        kind: Option<Word<Kind>>, default "`unary`";
        /// this class alone
        mode: Option<Word<Mode>>, default "the top-level `mode`";
        /// who goes first in a contended module; the weight is 2^priority. While a class of 8 or 9 is asked for, those of 0 to 5 in the same process pause after a request of more than 0.3 s, so that an urgent one waits 150 ms in the mean and of those that give up after 2 s one in a hundred does
        priority: Option<u64>, within(0, 9), unit " ", default "3", range "{} (9 goes first)";
        /// requests per second: one rate (fixed), a range, or `off`
        rate: Option<Short<OrOff<Rate>, RawRate>>, within(RATE_MIN, RATE_MAX), unit "rate or range", default "by class";
        /// requests under way at once: one number (fixed) or a range. Written numbers are 1 or more; where signals have cut it below 1 it is one at a time, for that share of its module's time
        in_flight: Option<Short<f64, RawBounds>>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "number or range", default "by class";
        /// bodies in both directions, over the whole class, shared evenly between its exchanges; what cannot pass is not read from its sender
        bytes_per_second: Option<OrOff<Flow>>, within(1e3, 1e12), default "50 MB/s for log downloads, else off";
        /// only holders of an API key may ask; others get 401 and are told how. On `job-submit` it holds for package uploads too
        require_key: Option<bool>, default "`false`", range "needs keys";
        /// how a request waits when there is no room
        queue: Option<RawQueue>, default "by class";
        /// what one client may do at most, whatever is free; fair sharing holds without it. Counted for the address and for the credential, each: inventing credentials gains nothing, and people behind one address share its ceiling unless an API key or `identity.headers` tells them apart. A changed ceiling counts on with what is under way and spent
        per_client: Option<RawPerClient>, default "off";
        /// equal GETs under way share one answer, kept for so long; `0s` shares only what is under way. In `log-tail`: readers of one job's log share one tail at Ray
        coalesce: Option<OrOff<Time>>, within(secs(0), secs(60)), default "by class";
        /// for Ray to begin its answer, from the request being whole and admitted
        timeout: Option<OrOff<Time>>, within(ms(10), DAY), default "by class";
        /// the law that moves its limits
        law: Option<RawLaw>, unit "law", default "`control.law`";
        /// the signals that move its rate, or without one a second ceiling on `in_flight`, in a single process down to a tenth of its time whatever `min` says; the worst one counts
        signals: Option<Vec<Text>>, unit "list of names", default "by class", range "signals";
        /// a signal that counts the work its requests leave behind: no more are let in than the head starts within `starts_within`; before the first reading half the signal's target, and one every 5 s
        backlog: Option<OrOff<Text>>, unit "name or `off`", default "by class", range "a signal";
        /// the objective of what is done after the answer: a submitted job starts within this time. It sets the backlog's target, from the measured rate of starts
        starts_within: Option<Time>, within(secs(1), HOUR), default "`25s`";
        /// the alert `high-request-rate` fires above this; `off`: above four times the last hour's
        alert_above: Option<OrOff<Rate>>, within(RATE_MIN, RATE_MAX), default "off";
    }

    /// `rate`.
    RawRate at "rate." {
        /// where the rate starts, and what a stale signal falls back to
        initial: Option<Rate>, within(RATE_MIN, RATE_MAX), default "by class";
        /// never below
        min: Option<Rate>, within(RATE_MIN, RATE_MAX), default "by class; `initial` / 10", range "{}, not above `initial`";
        /// never above
        max: Option<Rate>, within(RATE_MIN, RATE_MAX), default "by class; `initial` * 10", range "{}, not below `initial`";
        /// how many may come at once after a quiet time
        burst: Option<u64>, within(1, 1_000_000), default "by class; one second's worth", range "{}, back within 1 h";
    }

    /// `in_flight`.
    RawBounds at "range." {
        /// where a concurrency limit starts
        initial: Option<f64>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "count", default "by class";
        /// latency never cuts below; signals may, to 0.1, where the module is one process
        min: Option<f64>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "count", default "by class", range "{}, not above `initial`";
        /// never above
        max: Option<f64>, within(IN_FLIGHT_MIN, IN_FLIGHT_MAX), unit "count", default "by class", range "{}, not below `initial`";
    }

    /// `queue`.
    RawQueue at "queue." {
        /// requests waiting at once; 0 sheds at once
        len: Option<u64>, within(0, 100_000), default "by class";
        /// the longest wait; keep it below the clients' own patience (KubeRay 2 s, State API 24 s)
        wait: Option<Time>, within(secs(0), secs(300)), default "by class";
    }

    /// `per_client`.
    RawPerClient at "per_client." {
        /// requests per second of one client
        rate: Option<OrOff<Rate>>, within(RATE_MIN, RATE_MAX), default "off";
        /// how many it may send at once; needs `rate`
        burst: Option<u64>, within(1, 1_000_000), default "one second's worth";
        /// requests of one client under way at once
        in_flight: Option<OrOff<u64>>, within(1, 1_000_000), default "off";
    }

    /// `[[route]]`.
    RawRoute at "route." {
        /// the method; `GET` stands for `HEAD` too
        method: Option<Text>, unit "name", default "any", file r#"
# Routes of your own, before Ray's. A class may be one of yours; then say its module:
# [class.batch-inference]
# module = "Serve"
# mode = "shadow"                       # this class alone
# [[route]]
# method = "POST"                       # any when absent
"#;
        /// `{name}` is one segment, `{*rest}` at the end all that follows
        path: Option<Text>, unit "pattern", default "required", range "in normal form", file r#"# path = "/v1/batch/{*rest}"            # {name}: one segment; {*rest}: all that follows
"#;
        /// a header that must be there: `name: value`, or `name` for any value
        header: Option<Text>, unit "header", default "none", file r#"# header = "x-tier: batch"              # optional
"#;
        /// the kind of listener it holds for
        kind: Option<Word<Surface>>, default "that of the class's module", file r#"# kind = "serve"                        # the listener; that of the class's module when absent
"#;
        /// its class
        class: Option<Text>, unit "name", default "required", range "a class", file r#"# class = "batch-inference"
"#;
    }

    /// The adjustment log.
    AdjustmentLog at "adjustment_log." {
        /// where the adjustment log is written
        dir: Path, default "`adjustment-log` under `state_dir`", file r#"# dir = "rayguard-state/adjustment-log"         # under state_dir unless said otherwise
"#;
        /// one file, before the next is begun
        file_bytes_max: Size = 64 << 20, within(64 << 10, 16 << 30);
        /// files kept
        files_max: usize = 16, within(2, 10_000);
        /// each line also to standard output; for containers
        stdout: bool = false, note "true in containers: each line to standard output too";
    }

    /// The program's own log, on standard error.
    Log at "log." {
        /// the least level shown
        level: Word<tracing::Level> = tracing::Level::INFO, note "error, warn, info, debug, trace";
        /// lines for people or JSON objects
        format: Word<LogFormat> = LogFormat::Text, note "or \"json\"";
    }

    /// `[alerts]`.
    RawAlerts at "alerts." {
        /// a firing alert is sent again so often
        repeat: Time = HOUR, within(secs(10), secs(604_800)), note "what still fires is sent again";
        /// where runbooks stand; the alert's name is appended
        runbook_url: Option<AnyUrl>, default "the runbook of this repository", file r#"# runbook_url = "https://wiki.example/runbooks/"   # instead of the project's runbook; the alert's name is appended
"#;
        /// rules: `slo-breached`, `sheds-rising`, `requests-failing`, `high-request-rate`, `pinned-floor`, `pinned-ceiling`, `signal-stale`, `loop-hunting`, `upstream-down`, `config-rejected`, `adjustment-log-gaps`, `replica-store-down`
        rule: Named<RawAlertRule>, default "as in `rayguard.toml`", range "built-in names";
        /// whom to tell
        notify: Vec<RawNotify>, default "none", file "# [[alerts.notify]]\n";
    }

    /// `[alerts.rule.<name>]`.
    RawAlertRule at "rule." {
        /// whether anyone is told
        enabled: bool = true;
        /// it must be bad for so long before it fires
        r#for: Option<Time>, within(secs(0), DAY), default "by rule";
        /// it must be good for so long before it resolves
        clear: Option<Time>, within(secs(0), DAY), default "by rule";
    }

    /// `[[alerts.notify]]`.
    RawNotify at "notify." {
        /// Alertmanager's API v2; a POST with JSON; Slack's incoming webhook
        kind: Option<Word<NotifyKind>>, default "required", file r#"# kind = "alertmanager"                 # or "webhook", "slack"
"#;
        /// where
        url: Option<AnyUrl>, default "one of the two", range "http, https", file r#"# url = "http://alertmanager:9093"
"#;
        /// where, when the address is a secret (Slack's is)
        url_from: Option<SecretAt>, default "one of the two", file r#"# url_from = { env = "SLACK_WEBHOOK" }  # instead of url, when the address is a secret
"#;
        /// the bearer token
        token: Option<SecretAt>, default "none", file r#"# token = { file = "/run/secrets/alertmanager" }
"#;
    }

    /// `[admin]`.
    RawAdmin at "admin." {
        /// state, overrides, `/metrics`, `/livez`, `/readyz`; or `off`
        listen: OrOff<Listen> = OrOff::On(defaults::admin()), unit "address", range "no listener's, not Ray's", note "state, overrides, /metrics, /livez, /readyz; or \"off\"";
        /// the bearer token for changes; without one only loopback may change anything
        token: Option<SecretAt>, default "none", file r#"# Without a token only loopback may change anything; reading needs none.
# token = { file = "/run/secrets/rayguard-admin" }   # or { env = "NAME" }
"#;
        /// host names the admin listener may be asked by; addresses and `localhost` always may, any other name could be a strange web page's, pointed here
        hosts: Vec<Host>, range "without scheme and port", note "accepted Host headers: [\"rayguard.ray.svc\"]; IP addresses are always accepted";
        /// where people open the page; alerts link to it
        url: Option<AnyUrl>, default "`http://LISTEN/`", range "http, https", file r#"# url = "https://rayguard.example/"       # where people open the page, for links in alerts; http://LISTEN/ unless said otherwise
"#;
    }

    /// `[ratelimit_service]`.
    RawRatelimitService at "ratelimit_service." {
        /// `host:port` or `unix:/path`; HTTP/2, as gRPC has it
        listen: Option<Listen>, default "required", range "no listener's, not Ray's", file r#"
# Envoys that are in front already can ask here before they let a request pass (their rate-limit
# service v3): they enforce these limits, and nothing goes through rayguard. deploy/envoy/.
# [ratelimit_service]
# listen = "127.0.0.1:8281"             # or "unix:/run/rayguard/ratelimit.sock"
"#;
        /// the `domain` of Envoy's filter. Questions of any other pass, and are counted
        domain: Text = "rayguard".into(), range "not empty", file r"# domain = {}                   # as Envoy's filter has it; any other passes unlimited
";
        /// what the paths mean that Envoys tell
        kind: Word<Surface> = Surface::Dashboard, file r#"# kind = {}                    # what the paths mean: "dashboard", "ray-client" or "serve"
"#;
        /// TLS towards Envoys. Whoever reaches the service is believed about who asks: off loopback, demand client certificates
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
# Several replicas in front of one head share its limits over a Redis or Valkey; one needs none.
# [replicas]
# url = "redis://127.0.0.1:6379/0"      # "rediss://..." is TLS, with authorities = "/etc/rayguard/redis-ca.pem"
"#;
        /// who may vouch for the store's certificate, PEM; nobody else is trusted
        authorities: Option<Path>, default "required with `rediss://`";
        /// its password
        password: Option<SecretAt>, default "none", file r#"# password = { file = "/run/secrets/redis" }
"#;
        /// the most replicas there are
        count: Option<u64>, within(1, 10_000), default "required", file r"# count = 3                          # the most you run; without the store each has an even share
";
        /// what the replicas of one head have in common and no others
        group: Name = "rayguard".into(), range "letters, digits, `-._`", file r"# group = {}                    # one for each head
";
        /// what this replica is called in logs and at the others
        name: Option<Name>, default "the host's", range "letters, digits, `-._`", file r#"# name = "replica-1"                       # the host's name unless said otherwise
"#;
        /// how often leases are renewed; a lease runs eight of these, leadership two
        period: Time = ms(250), within(ms(100), secs(5)), file r"# period = {}                      # lease renewal interval
";
        /// how long the share of a silent replica is kept for it
        remember: Time = secs(300), within(secs(10), DAY), file r"# remember = {}                       # the share of a replica that fell silent is kept so long
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
