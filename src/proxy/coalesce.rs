//! Request coalescing: which requests are equal, and which answers may be shared.
//!
//! Fifty dashboard tabs ask for the same job list every four seconds; Ray computes it anew for each, at
//! O(jobs ever) apiece. Equal requests under way share one upstream call (`single_flight`) and one copy of
//! its answer (`shared_answer`); for a class's `ttl` after the answer's head has come it is handed on.
//!
//! **What Ray ignores splits nothing.** Where the head's Ray is of a version whose handlers are known, the target
//! counts as they read it: the route, and those keys of the query that the handler takes
//! ([`query`]). So `?r=1` and `?r=2` are one question. Anywhere else path and query
//! count as sent.
//!
//! **Never across clients.** Requests are equal if nothing that may tell two clients apart differs: the
//! upstream, the target, and every header, by name and value, with repetitions. The exceptions
//! are data, and few: headers that proxies and tracers set anew on each request ([`PER_REQUEST`]), and, for
//! Ray's dashboard alone, those that tell where a client calls from ([`PER_CLIENT`]). Ray's dashboard reads
//! `Authorization`, `X-Ray-Authorization`, cookies, `User-Agent`, `Origin`, `Referer` and `Sec-Fetch-*`, and
//! none of these; a Serve application may read whatever it likes, so there only the first list applies.
//! What concerns one hop is gone before a request comes here, and the proxy's own API key with it. The key
//! is compared whole, by SHA-256.
//!
//! **What the answer says of itself is obeyed** ([`keeping`]): `Set-Cookie`, `Cache-Control: private` or
//! `no-store`, `Vary: *` and a `Vary` that names one of the exceptions forbid sharing; `no-cache` and `max-age`
//! bound how long it is kept. An event stream is one reader's own.
//!
//! **Sharing makes no client wait longer.** Known clients come before strangers ([`history`]): a known client does
//! not follow a request that a stranger leads and that waits in the strangers' line. It asks in its own turn, and
//! other known clients follow that request. Otherwise a stranger that copies its question would hold it back.
//!
//! [`history`]: rayguard_core::admission::history
//!
//! Requests with a `Range` ask for a part of something large, each for another: they are not shared. Those
//! with a condition (`If-None-Match`) are: the condition is a header like any other, and clients that ask
//! the same get the same 304.

use crate::response_policy::AnswerError;
use crate::routing::Routing;
use crate::shared_answer::{Budget, Charge, SharedAnswer};
use crate::single_flight::{self, SingleFlight};
use crate::upstream::{Address, UpstreamError};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, SET_COOKIE, VARY};
use http::{HeaderName, Method, Uri};
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::classify::RouteId;
use rayguard_core::request::query::{self, ReadKeys};
use rayguard_core::time::Time;
use sha2::{Digest, Sha256};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Headers by which proxies, load balancers and tracers mark a request: different for each, and of no
/// meaning to the server that answers. Sorted.
pub const PER_REQUEST: &[&str] = &[
    "b3",
    "cf-ray",
    "cf-request-id",
    "correlation-id",
    "eagleeye-traceid",
    "elastic-apm-traceparent",
    "fly-request-id",
    "grpc-tags-bin",
    "grpc-trace-bin",
    "newrelic",
    "request-context",
    "request-id",
    "sentry-trace",
    "sw8",
    "traceparent",
    "tracestate",
    "uber-trace-id",
    "x-akamai-request-id",
    "x-amz-cf-id",
    "x-amzn-requestid",
    "x-amzn-trace-id",
    "x-appengine-request-log-id",
    "x-azure-ref",
    "x-client-trace-id",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-dynatrace",
    "x-envoy-attempt-count",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-upstream-service-time",
    "x-fastly-request-id",
    "x-honeycomb-trace",
    "x-instana-l",
    "x-instana-s",
    "x-instana-t",
    "x-kong-request-id",
    "x-ms-client-request-id",
    "x-ms-request-id",
    "x-nf-request-id",
    "x-ot-span-context",
    "x-queue-start",
    "x-railway-request-id",
    "x-req-id",
    "x-request-id",
    "x-request-start",
    "x-timer",
    "x-trace-id",
    "x-transaction-id",
    "x-varnish",
    "x-vercel-id",
];

/// The same, where a family of headers begins like this.
pub const PER_REQUEST_PREFIXES: &[&str] = &["ot-tracer-", "x-b3-", "x-datadog-"];

/// Headers that tell where a client calls from, or carry what its tracer hands along. Ray's dashboard reads
/// none of them; the first of them the proxy writes itself. Sorted.
pub const PER_CLIENT: &[&str] = &[
    "baggage",
    "cf-connecting-ip",
    "cloudfront-viewer-address",
    "do-connecting-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "sw8-correlation",
    "sw8-x",
    "true-client-ip",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded-for",
    "x-forwarded-port",
    "x-original-forwarded-for",
    "x-real-ip",
    "x-vercel-forwarded-for",
];

/// The same, where a family of headers begins like this.
pub const PER_CLIENT_PREFIXES: &[&str] = &["ot-baggage-", "uberctx-"];

/// What each WebSocket handshake has anew, or the proxy negotiates itself. Not the sub-protocol: a page in a
/// browser, which can set no other header, may send its token there.
pub const PER_HANDSHAKE: &[&str] =
    &["sec-websocket-extensions", "sec-websocket-key", "sec-websocket-version"];

/// What tells one client's software from another's. A log tail is the same for all of them: Ray's handler
/// reads the job's id from the path and nothing else.
pub const PER_SOFTWARE: &[&str] =
    &["accept", "accept-encoding", "accept-language", "cache-control", "pragma", "user-agent"];

/// Whether a header, by its lower-case name, does not tell two clients of this surface apart.
fn is_ignored(surface: Surface, name: &str) -> bool {
    let among = |names: &[&str], prefixes: &[&str]| {
        names.binary_search(&name).is_ok() || prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    among(PER_REQUEST, PER_REQUEST_PREFIXES)
        || (surface == Surface::Dashboard && among(PER_CLIENT, PER_CLIENT_PREFIXES))
}

/// How a client reached the proxy, as upstream is told.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The other end of the connection.
    pub hop: &'a HeaderValue,
    /// Whether it may say for whom it asks.
    pub trusted: bool,
    /// Whether TLS was ended here.
    pub tls: bool,
}

/// What a request's target asks for, as far as an answer may depend on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question<'a> {
    /// Path and query as sent: it is not known what is read of them.
    AsSent(&'a str),
    /// The path, and what the handler reads of the query.
    Read(&'a str, Vec<u8>),
}

impl<'a> Question<'a> {
    /// What this target asks for on this route.
    pub fn of(routing: &Routing, route: RouteId, uri: &'a Uri) -> Question<'a> {
        let known = routing.surface == Surface::Dashboard && routing.reads_are_known.load(Ordering::Relaxed);
        Question::by(uri, known.then(|| query::read_keys(routing.classifier.label(route))).flatten())
    }

    /// The question of a target whose route reads these keys, if they are known.
    pub fn by(uri: &'a Uri, keys: Option<&'static ReadKeys>) -> Question<'a> {
        let Some(keys) = keys else {
            return Question::AsSent(uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str));
        };
        let read = query::question(uri.query().unwrap_or(""), keys);
        let path = if query::is_path(uri.path(), keys.path) { keys.path } else { uri.path() };
        Question::Read(path, read)
    }

    fn add_to(&self, digest: &mut Sha256) {
        match self {
            Question::AsSent(target) => digest.update(target),
            Question::Read(path, read) => {
                digest.update(path);
                // No target has a line end in it: what follows is not taken for a part of one.
                digest.update(b"\n?");
                digest.update((read.len() as u64).to_le_bytes());
                digest.update(read);
            }
        }
        digest.update(b"\n");
    }
}

/// All that an answer may depend on, digested.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a request, if it is one to share: a GET for the whole of something.
    pub fn of(
        routing: &Routing,
        origin: Origin<'_>,
        method: &Method,
        question: &Question<'_>,
        headers: &HeaderMap,
    ) -> Option<Key> {
        if method != Method::GET || headers.contains_key(RANGE) {
            return None;
        }
        let mut digest = Sha256::new();
        add_upstream(&mut digest, routing);
        add_request(&mut digest, question, headers, |name| is_ignored(routing.surface, name));
        if routing.surface != Surface::Dashboard {
            digest.update(origin.hop);
            digest.update([u8::from(origin.trusted), u8::from(origin.tls)]);
        }
        Some(Key(digest.finalize().into()))
    }

    /// The key of a handshake for a log tail.
    pub fn of_tail(question: &Question<'_>, headers: &HeaderMap) -> Key {
        let mut digest = Sha256::new();
        add_request(&mut digest, question, headers, |name| {
            PER_HANDSHAKE.contains(&name)
                || PER_SOFTWARE.contains(&name)
                || is_ignored(Surface::Dashboard, name)
        });
        Key(digest.finalize().into())
    }

    /// The same among those who come before strangers: they do not wait for a stranger's turn.
    #[must_use]
    pub(crate) fn among_known(self) -> Key {
        Key(Sha256::new().chain_update(self.0).chain_update(b"known").finalize().into())
    }

    /// The same at one of several upstreams.
    #[must_use]
    pub fn at(self, routing: &Routing) -> Key {
        let mut digest = Sha256::new();
        digest.update(self.0);
        add_upstream(&mut digest, routing);
        Key(digest.finalize().into())
    }
}

/// Two listeners may lead to two heads, on which the same path is another thing.
fn add_upstream(digest: &mut Sha256, routing: &Routing) {
    let (kind, place) = match routing.upstream.address() {
        Address::Tcp(address) => (0, address.as_bytes()),
        Address::Tls(address, _) => (1, address.as_bytes()),
        Address::Unix(path) => (2, path.as_os_str().as_bytes()),
    };
    digest.update([routing.surface as u8, kind]);
    digest.update(place);
    digest.update(b"\n");
}

/// Neither a target, nor a header's name or value has a line end in it; no name has a colon.
fn add_request(
    digest: &mut Sha256,
    question: &Question<'_>,
    headers: &HeaderMap,
    is_ignored: impl Fn(&str) -> bool,
) {
    question.add_to(digest);
    for (name, value) in headers {
        let name = name.as_str();
        if !is_ignored(name) {
            digest.update(name);
            digest.update(b":");
            digest.update(value);
            digest.update(b"\n");
        }
    }
}

/// For how long an answer with these headers may be kept, after those who wait have had it; `None` if it is
/// for one client alone.
pub fn keeping(surface: Surface, headers: &HeaderMap) -> Option<Duration> {
    let stream = b"text/event-stream";
    let event_stream = |kind: &HeaderValue| {
        kind.as_bytes().get(..stream.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(stream))
    };
    if headers.contains_key(SET_COOKIE) || headers.get(CONTENT_TYPE).is_some_and(event_stream) {
        return None;
    }
    if words(headers, &VARY)?.iter().any(|name| name == "*" || is_ignored(surface, name)) {
        return None;
    }
    let mut longest = Duration::MAX;
    for directive in words(headers, &CACHE_CONTROL)? {
        let (name, value) = directive.split_once('=').unwrap_or((&directive, ""));
        match name.trim_end() {
            "private" | "no-store" => return None,
            "no-cache" => longest = Duration::ZERO,
            "max-age" | "s-maxage" => {
                let seconds = value.trim_matches(['"', ' ']).parse().unwrap_or(0);
                longest = longest.min(Duration::from_secs(seconds));
            }
            _ => {}
        }
    }
    Some(longest)
}

/// The words of a header that is a list, in lower case; `None` if it is not text.
fn words(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for value in headers.get_all(name) {
        words.extend(value.to_str().ok()?.split(',').map(|word| word.trim().to_ascii_lowercase()));
    }
    Some(words)
}

/// Why a shared request has no answer: for its leader, and for all who follow.
#[derive(Clone, Debug)]
pub enum Failure {
    /// Upstream gave none.
    Upstream(Arc<UpstreamError>),
    /// It took longer than this to begin one.
    TimedOut(Duration),
    /// A short one did not come to its end.
    BrokeOff(Arc<AnswerError>),
}

/// What a request that may be shared finds.
pub type Found = single_flight::Found<Key, SharedAnswer, Failure>;
/// What one that follows is told.
pub type Told = single_flight::Told<Key, SharedAnswer, Failure>;
/// The right, and the duty, to ask for all.
pub type Lead = single_flight::Lead<Key, SharedAnswer, Failure>;

/// The requests under way that may be shared, the answers that are kept, and what these take.
#[derive(Clone, Debug, Default)]
pub struct Coalescer {
    flights: SingleFlight<Key, SharedAnswer, Failure>,
    budget: Budget,
}

impl Coalescer {
    /// Follows a request that asks the same, takes a share of a kept answer, or leads.
    pub fn find(&self, key: Key, now: Time) -> Found {
        self.flights.find(key, now)
    }

    /// Kept answers are out of date: no request gets one from now on. Answers under way may be out of date
    /// too: the requests that wait for them get them, later ones do not.
    pub fn forget(&self) {
        self.flights.forget();
    }

    /// So many bytes of the budget; kept answers without readers make room for them.
    pub fn take(&self, bytes: usize) -> Option<Charge> {
        loop {
            if let Some(charge) = self.budget.take(bytes) {
                return Some(charge);
            }
            if bytes > self.budget.max() || !self.make_room() {
                self.budget.note_exhausted();
                return None;
            }
        }
    }

    /// Drops the oldest kept answer without readers; returns whether there was one.
    pub(crate) fn make_room(&self) -> bool {
        self.flights.drop_oldest()
    }

    /// What shared answers take, and may take.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// For requests from now on, by another policy. The budget stays one.
    #[must_use]
    pub fn reconfigure(&self) -> Coalescer {
        self.forget();
        Coalescer { flights: SingleFlight::default(), budget: self.budget.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::tasks::Tasks;
    use crate::upstream::{Options, Upstream};
    use rayguard_core::request::catalogue;
    use rayguard_core::request::classify::Classifier;

    fn routing(surface: Surface, upstream: &str) -> Routing {
        let policy = catalogue::policy();
        let address = Address::Tcp(upstream.to_owned());
        let upstream = Upstream::new(address, Options::default(), Clock::start(), Tasks::default());
        Routing::new(surface, Classifier::new(&policy, surface, &[]).unwrap(), upstream)
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap();
        let mut map = HeaderMap::new();
        for (header, value) in pairs {
            map.append(name(header), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn key_at(routing: &Routing, hop: &str, path: &str, pairs: &[(&str, &str)]) -> Option<Key> {
        let hop = HeaderValue::from_str(hop).unwrap();
        let origin = Origin { hop: &hop, trusted: false, tls: false };
        Key::of(routing, origin, &Method::GET, &Question::AsSent(path), &headers(pairs))
    }

    #[test]
    fn whatever_may_tell_two_clients_apart_tells_their_requests_apart() {
        let dashboard = routing(Surface::Dashboard, "127.0.0.1:8265");
        let key = |path, pairs: &[_]| key_at(&dashboard, "10.0.0.1", path, pairs);
        let all = [
            key("/api/jobs/", &[]),
            key("/api/jobs/", &[("authorization", "Bearer a")]),
            key("/api/jobs/", &[("authorization", "Bearer b")]),
            key("/api/jobs/", &[("x-ray-authorization", "Bearer a")]),
            key("/api/jobs/", &[("api-key", "a")]),
            key("/api/jobs/", &[("token", "a")]),
            key("/api/jobs/", &[("serve_multiplexed_model_id", "a")]),
            key("/api/jobs/", &[("cookie", "ray-authentication-token=a")]),
            key("/api/jobs/", &[("user-agent", "Mozilla/5.0")]),
            key("/api/jobs/", &[("user-agent", "python-requests/2.34")]),
            key("/api/jobs/", &[("sec-fetch-mode", "cors")]),
            key("/api/jobs/", &[("origin", "http://evil")]),
            key("/api/jobs/", &[("accept-encoding", "gzip")]),
            key("/api/jobs/", &[("x-forwarded-user", "ann")]),
            key("/api/jobs/", &[("x-forwarded-client-cert", "ann")]),
            key("/api/jobs/", &[("if-none-match", "\"1\"")]),
            key("/api/jobs/", &[("x", "a"), ("x", "bc")]),
            key("/api/jobs/", &[("x", "ab"), ("x", "c")]),
            key("/api/jobs/?a=1", &[]),
            key("/api/jobs", &[]),
            key_at(&routing(Surface::Dashboard, "127.0.0.1:8266"), "10.0.0.1", "/api/jobs/", &[]),
            key_at(&routing(Surface::Serve, "127.0.0.1:8265"), "10.0.0.1", "/api/jobs/", &[]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().map(|key| key.unwrap()).collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(key("/x", &[("range", "bytes=0-1")]), None);
    }

    #[test]
    fn handshakes_for_a_tail_differ_in_all_that_is_not_the_handshakes_own() {
        let key = |pairs: &[_]| Key::of_tail(&Question::AsSent("/x"), &headers(pairs));
        for name in PER_HANDSHAKE.iter().chain(PER_SOFTWARE) {
            assert_eq!(key(&[]), key(&[(name, "a")]), "{name}");
        }
        for name in ["sec-websocket-protocol", "sec-websocket-token", "authorization", "cookie", "origin"] {
            assert_ne!(key(&[(name, "token-a")]), key(&[(name, "token-b")]), "{name}");
        }
    }

    #[test]
    fn a_question_is_what_the_handler_reads_where_that_is_known() {
        let question = |target: &str, pattern: &str| {
            let uri: Uri = target.parse().unwrap();
            let question = Question::by(&uri, query::read_keys(pattern));
            Key::of_tail(&question, &HeaderMap::new())
        };
        let (jobs, job) = ("/api/jobs/", "/nodes/{node_id}");
        for same in ["/api/jobs/?r=1", "/api/jobs/?", "/api/%6Aobs/?r=2&r=3"] {
            assert_eq!(question("/api/jobs/", jobs), question(same, jobs), "{same}");
        }
        for other in ["/api//jobs/", "/api/jobs/.", "/api/jobs"] {
            assert_ne!(question("/api/jobs/", jobs), question(other, jobs), "{other}");
        }
        assert_eq!(question("/nodes/a?r=1", job), question("/nodes/a?r=2", job));
        assert_ne!(question("/nodes/a", job), question("/nodes/b", job));
        assert_ne!(question("/nodes/a?nocache=1", job), question("/nodes/a", job));
        assert_ne!(question("/x?r=1", "/x"), question("/x?r=2", "/x"), "a route whose keys are not known");
        let many = format!("/api/jobs/?{}", "a&".repeat(query::FIELDS_MAX));
        assert_eq!(question(&many, jobs), question("/api/jobs/", jobs), "no field counts where none is read");
    }

    #[test]
    fn what_front_ends_stamp_on_each_request_does_not() {
        for surface in [Surface::Dashboard, Surface::Serve] {
            let routing = routing(surface, "127.0.0.1:8265");
            let plain = key_at(&routing, "10.0.0.1", "/x", &[]);
            for name in PER_REQUEST.iter().copied().chain(["x-b3-traceid", "x-datadog-trace-id"]) {
                assert_eq!(plain, key_at(&routing, "10.0.0.1", "/x", &[(name, "4711")]), "{name}");
            }
            for name in PER_CLIENT.iter().copied().chain(["ot-baggage-tenant"]) {
                let stamped = key_at(&routing, "10.0.0.1", "/x", &[(name, "4711")]);
                assert_eq!(plain == stamped, surface == Surface::Dashboard, "{name}");
            }
            let elsewhere = key_at(&routing, "10.0.0.2", "/x", &[]);
            assert_eq!(plain == elsewhere, surface == Surface::Dashboard, "an application is told who calls");
        }
    }

    #[test]
    fn the_lists_are_sorted_and_in_lower_case() {
        for list in [PER_REQUEST, PER_CLIENT] {
            assert!(list.is_sorted());
            assert!(list.iter().all(|name| *name == name.to_ascii_lowercase()));
        }
    }

    #[test]
    fn an_answer_says_itself_whether_it_is_shared_and_kept() {
        let kept = |pairs: &[_]| keeping(Surface::Dashboard, &headers(pairs));
        for one_clients_own in [
            ("set-cookie", "a=b"),
            ("cache-control", "max-age=5, Private"),
            ("cache-control", "private=\"x\""),
            ("cache-control", "no-store"),
            ("vary", "accept, *"),
            ("vary", "X-Forwarded-For"),
            ("vary", "traceparent"),
            ("content-type", "text/event-stream; charset=utf-8"),
            ("content-type", "Text/Event-Stream"),
        ] {
            assert_eq!(kept(&[one_clients_own]), None, "{one_clients_own:?}");
        }
        assert_eq!(
            kept(&[("cache-control", "public"), ("vary", "Accept-Encoding, Origin")]),
            Some(Duration::MAX)
        );
        assert_eq!(kept(&[("cache-control", "no-cache")]), Some(Duration::ZERO));
        assert_eq!(kept(&[("cache-control", "max-age=0")]), Some(Duration::ZERO));
        assert_eq!(kept(&[("cache-control", "max-age=5")]), Some(Duration::from_secs(5)));
        let serve = keeping(Surface::Serve, &headers(&[("vary", "x-forwarded-for")]));
        assert_eq!(serve, Some(Duration::MAX), "there it is part of the key");
    }
}
