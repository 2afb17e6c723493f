//! Every answer that is the proxy's own.
//!
//! No Ray client retries and most print the body, so the body is the user's only message: a
//! sentence with the reason, the time to wait and the request's id. Paths of the State API get
//! Ray's envelope, because `ray list` shows `msg` from it and "Failed to parse" otherwise. 429
//! when the client asks for more than its share, 503 when the head is overloaded; never 401 or
//! 403, which Ray's tools turn into advice about tokens and the dashboard into a login dialog.
//! 401 is for one thing alone, and that is no shedding: a class that takes an API key, asked
//! without one.

use crate::circuit_breaker::RECONNECT_S;
use crate::client_body::BodyError;
use crate::headers::REASON;
use crate::request_validation::Malformed;
use crate::response_body::Body;
use crate::state::ProxyState;
use crate::upstream::{Address, UpstreamError};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use hyper::ext::ReasonPhrase;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rayguard_core::admission::controller::Shed;
use rayguard_core::admission::meter::Reason;
use std::sync::Arc;
use std::time::Duration;

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// How the client wants to be spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorFormat {
    /// A sentence.
    Plain,
    /// Ray's State API envelope.
    StateApi,
    /// A gRPC status.
    Grpc,
}

impl ErrorFormat {
    /// The client's, told from its path and content type.
    pub fn of(path: &str, grpc: bool) -> ErrorFormat {
        if grpc {
            ErrorFormat::Grpc
        } else if path.starts_with("/api/v0/") {
            ErrorFormat::StateApi
        } else {
            ErrorFormat::Plain
        }
    }
}

/// What a refusal is about.
#[derive(Clone, Debug)]
pub(crate) struct Refused<'a> {
    /// The request's id.
    pub id: &'a str,
    /// The class's name.
    pub class: &'a str,
    /// The class's module.
    pub module: &'a str,
    /// The limit that refuses it, as it stands: in requests, or requests per second.
    pub limit: f64,
    /// Its queue's longest wait.
    pub waited_max: Duration,
    /// The header in which API keys come.
    pub key_header: &'a str,
    /// Where Ray is, if the refusal is about that.
    pub upstream: Option<&'a Address>,
    /// Requests of the class that wait.
    pub waiting: u32,
    /// Whom the client may turn to.
    pub contact: Contact,
}

impl<'a> Refused<'a> {
    /// A refusal at this proxy.
    pub(crate) fn at(proxy: &'a ProxyState, shed: Shed, id: &'a str) -> Refused<'a> {
        let class = &proxy.policy.classes[shed.class.index()];
        let table = proxy.table.load();
        let limits = *table.class(shed.class);
        let own = class.per_client;
        let limit = match shed.reason {
            Reason::ClientRate => own.rate.map(|(per_second, _)| per_second),
            Reason::ClientInFlight => own.in_flight.map(f64::from),
            Reason::ModuleInFlight => Some(table.module(class.module).in_flight),
            _ => limits.rate,
        };
        Refused {
            id,
            class: &class.name,
            module: &proxy.policy.modules[class.module.index()].name,
            limit: limit.unwrap_or(limits.in_flight),
            waited_max: class.queue.wait_max,
            key_header: match proxy.identifier.key_header() {
                "" => "X-Rayguard-Key",
                name => name,
            },
            upstream: None,
            waiting: proxy.admission.load(shed.class).1,
            contact: Contact::of(proxy),
        }
    }
}

/// The answer to a shed request, with its headers in the room of `spare`.
pub(crate) fn shed(
    error_format: ErrorFormat,
    shed: Shed,
    about: &Refused,
    spare: HeaderMap,
) -> Response<Body> {
    if shed.reason == Reason::ApiKey {
        return keyless(error_format, about);
    }
    let status = if shed.reason == Reason::Blocked {
        StatusCode::NOT_FOUND
    } else if shed.reason.is_clients_own() {
        StatusCode::TOO_MANY_REQUESTS
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut digits = itoa::Buffer::new();
    let seconds = digits.format(shed.retry_after_s);
    // Body and headers are parts of one text: under a flood, taking memory is most of what a refusal costs.
    let mut text = sentence(shed, seconds, about);
    let other = (error_format != ErrorFormat::Plain)
        .then(|| answer(error_format, status, &text, Some(shed.retry_after_s)));
    // Ray's SDK asks for the version first, and prints nothing but the reason phrase.
    let phrase = (shed.reason == Reason::UpstreamUnreachable).then(|| text.clone());
    text.push('\n');
    let line = text.len();
    // draft-ietf-httpapi-ratelimit-headers: remaining quota and seconds until it resets.
    push(&mut text, &["\"", about.class, "\";r=0;t=", seconds]);
    let (remaining, digits) = (text.len(), text.len() - seconds.len());
    push(&mut text, &["\"", about.class, "\";q=", itoa::Buffer::new().format(whole(about.limit))]);
    let text = Bytes::from(text);
    let mut response = other.unwrap_or_else(|| plain(status, text.slice(..line), spare));
    if let Some(phrase) = phrase {
        say_in_phrase(&mut response, &phrase);
    }
    let headers = response.headers_mut();
    headers.insert(REASON, HeaderValue::from_static(shed.reason.label()));
    if shed.reason != Reason::Blocked {
        for (name, part) in [
            (RETRY_AFTER, digits..remaining),
            (RATELIMIT, line..remaining),
            (RATELIMIT_POLICY, remaining..text.len()),
        ] {
            if let Ok(value) = HeaderValue::from_maybe_shared(text.slice(part)) {
                headers.insert(name, value);
            }
        }
    }
    response
}

/// A rate for people: in the unit in which it is at least 1, as the configuration takes it.
fn per_time(per_second: f64) -> String {
    let (value, unit) = match per_second {
        value if value >= 1.0 => (value, "s"),
        value if value * 60.0 >= 1.0 => (value * 60.0, "min"),
        value => (value * 3600.0, "h"),
    };
    format!("{}/{unit}", (value * 100.0).round() / 100.0)
}

/// Room for what a refusal says, in bytes; a longer one takes more.
const TEXT_LEN: usize = 512;

fn push(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}

/// A limit in whole requests.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as-casts of f64 saturate")]
fn whole(limit: f64) -> u64 {
    limit.max(0.0).round_ties_even() as u64
}

/// The answer to a request that takes an API key and shows none that is known.
fn keyless(error_format: ErrorFormat, about: &Refused) -> Response<Body> {
    let Refused { id, class, key_header, .. } = about;
    let sentence = format!(
        "rayguard: '{class}' requests need an API key, and this request has no valid one; ask {} for one and \
         send it in the header {key_header}. Nothing was sent to Ray. (reason {}, request {id})",
        about.contact.0.as_ref().map_or("your Ray administrator", |contact| contact),
        Reason::ApiKey.label()
    );
    let mut response = answer(error_format, StatusCode::UNAUTHORIZED, &sentence, None);
    let headers = response.headers_mut();
    headers.insert(REASON, HeaderValue::from_static(Reason::ApiKey.label()));
    if error_format == ErrorFormat::Grpc {
        headers.insert(GRPC_STATUS, HeaderValue::from_static("16")); // UNAUTHENTICATED
    }
    // A scheme of its own: no browser asks its user for a password, and no client of Ray's takes
    // it for a word about tokens.
    if let Ok(value) = HeaderValue::try_from(format!("ApiKey realm=\"rayguard\", header=\"{key_header}\"")) {
        headers.insert(WWW_AUTHENTICATE, value);
    }
    response
}

fn sentence(shed: Shed, seconds: &str, about: &Refused) -> String {
    let Refused { id, class, module, waited_max, .. } = about;
    let plural = if shed.retry_after_s == 1 { "" } else { "s" };
    let detail = match shed.reason {
        Reason::QueueTimeout => format!("{waited_max:?}"),
        Reason::ClientRate => per_time(about.limit),
        Reason::ClientInFlight => whole(about.limit).to_string(),
        Reason::UpstreamUnreachable => about.upstream.map_or(String::new(), |at| format!(" at {at}")),
        _ => String::new(),
    };
    let mut digits = itoa::Buffer::new();
    let waiting = match about.waiting {
        _ if shed.reason == Reason::UpstreamUnreachable => [""; 3],
        0 => [""; 3],
        1 => ["; 1 request is waiting", "", ""],
        waiting => ["; ", digits.format(waiting), " requests are waiting"],
    };
    // Joined, not formatted: under a flood this is most of what a refusal costs.
    let why: &[&str] = match shed.reason {
        Reason::Blocked => {
            return format!(
                "rayguard: this request would occupy a process of the Ray head permanently, so it is blocked (class {class}). Nothing was sent to Ray. (reason {}, request {id}){}",
                Reason::Blocked.label(),
                about.contact.sentence()
            );
        }
        Reason::ClassRate => &["the Ray head is at its rate limit of '", class, "' requests"],
        Reason::ClassBacklog => {
            &["Ray already has the maximum number of '", class, "' requests that have not started yet"]
        }
        Reason::ClassInFlight => &["the Ray head is at its limit of '", class, "' requests in progress"],
        Reason::ModuleInFlight => &["the Ray head's ", module, " is at its limit of requests in progress"],
        Reason::ClientShare => {
            &["you have more '", class, "' requests waiting than your share of the Ray head"]
        }
        Reason::ClientRate => {
            &["you have reached the rate limit of '", class, "' requests for one client, ", &detail]
        }
        Reason::ClientInFlight => {
            &["you have reached the limit of '", class, "' requests in progress for one client, ", &detail]
        }
        Reason::QueueTimeout => &["the Ray head had no room for this '", class, "' request within ", &detail],
        Reason::UpstreamUnreachable => &["Ray is down", &detail, "; rayguard keeps trying to reach it"],
        Reason::ApiKey => &["'", class, "' requests need an API key here"],
        Reason::Draining => {
            &["this rayguard is shutting down, and this '", class, "' request was still waiting for its turn"]
        }
    };
    let mut text = String::with_capacity(TEXT_LEN);
    text.push_str("rayguard: ");
    push(&mut text, why);
    push(&mut text, &waiting);
    push(
        &mut text,
        &[
            ". Nothing was sent to Ray; please try again in ",
            seconds,
            " second",
            plural,
            ". (reason ",
            shed.reason.label(),
            ", request ",
            id,
            ")",
        ],
    );
    push(&mut text, &about.contact.parts());
    text
}

/// Whom users may turn to: `contact` in the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contact(Option<Arc<String>>);

impl Contact {
    /// As it is configured now.
    pub(crate) fn of(proxy: &ProxyState) -> Contact {
        Contact(proxy.contact.load_full())
    }

    /// The end of every refusal.
    fn sentence(&self) -> String {
        self.parts().concat()
    }

    fn parts(&self) -> [&str; 3] {
        let contact = self.0.as_ref().map_or("your Ray administrator", |contact| contact);
        [" If it continues, give this id to ", contact, "."]
    }
}

/// The answer when upstream gave none.
pub(crate) fn upstream(
    error_format: ErrorFormat,
    error: &UpstreamError,
    id: &str,
    contact: &Contact,
) -> Response<Body> {
    if let UpstreamError::Client(error) = error {
        return body(error, id);
    }
    let reason = error.reason();
    let is_down = reason == Reason::UpstreamUnreachable.label();
    let again = if is_down {
        format!(". Nothing was sent to Ray; please try again in {RECONNECT_S} seconds")
    } else {
        String::new()
    };
    let sentence = format!("rayguard: {error}{again}. (reason {reason}, request {id}){}", contact.sentence());
    let status = if is_down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_GATEWAY };
    let mut response = answer(error_format, status, &sentence, None);
    response.headers_mut().insert(REASON, HeaderValue::from_static(reason));
    if is_down {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RECONNECT_S));
    }
    // Ray's SDK asks for the version first, and prints nothing but the reason phrase.
    say_in_phrase(&mut response, &sentence);
    response
}

/// The answer when upstream took too long.
pub(crate) fn timeout(
    error_format: ErrorFormat,
    class: &str,
    bound: Duration,
    id: &str,
    contact: &Contact,
) -> Response<Body> {
    let sentence = format!(
        "rayguard: the Ray head did not begin to answer this '{class}' request within {bound:?} \
         (class.{class}.timeout). Ray may still be working on it. (reason upstream_timeout, request {id}){}",
        contact.sentence()
    );
    let mut response = answer(error_format, StatusCode::GATEWAY_TIMEOUT, &sentence, None);
    say_in_phrase(&mut response, &sentence);
    response.headers_mut().insert(REASON, HeaderValue::from_static("upstream_timeout"));
    response
}

/// The same for one that has waited for the answer to an equal request.
pub(crate) fn timeout_of_equal(
    error_format: ErrorFormat,
    class: &str,
    bound: Duration,
    id: &str,
) -> Response<Body> {
    let sentence = format!(
        "rayguard: the Ray head did not begin to answer an equal '{class}' request within {bound:?} \
         (class.{class}.timeout); this one waited for its answer. Ray may still be working on it. \
         (reason upstream_timeout, request {id})"
    );
    let mut response = answer(error_format, StatusCode::GATEWAY_TIMEOUT, &sentence, None);
    response.headers_mut().insert(REASON, HeaderValue::from_static("upstream_timeout"));
    response
}

/// The answer when a shared fetch of Ray's answer did not come to its end, and nothing had been passed on.
pub(crate) fn broke_off(
    error_format: ErrorFormat,
    why: &dyn std::fmt::Display,
    id: &str,
    contact: &Contact,
) -> Response<Body> {
    let sentence =
        format!("rayguard: {why}. (reason upstream_broke_off, request {id}){}", contact.sentence());
    let mut response = answer(error_format, StatusCode::BAD_GATEWAY, &sentence, None);
    response.headers_mut().insert(REASON, HeaderValue::from_static("upstream_broke_off"));
    response
}

/// The answer to a request whose meaning is doubtful.
pub(crate) fn malformed(problem: &dyn std::fmt::Display, id: &str) -> Response<Body> {
    let sentence = format!("rayguard: {problem}. The request was not sent to Ray. (request {id})");
    let mut response = answer(ErrorFormat::Plain, StatusCode::BAD_REQUEST, &sentence, None);
    response.headers_mut().insert(REASON, HeaderValue::from_static("malformed"));
    response
}

/// The answer to a request whose head could not be read, or not in time.
pub(crate) fn unread(problem: Malformed, id: &str) -> Response<Body> {
    let mut response = malformed(&problem, id);
    *response.status_mut() = problem.status();
    response.headers_mut().insert(REASON, HeaderValue::from_static(problem.label()));
    response
}

/// The answer when the client's own body did not come to its end.
pub(crate) fn body(error: &BodyError, id: &str) -> Response<Body> {
    // A part of it may have been sent: long bodies go on while they come.
    let sentence = format!("rayguard: {error}. Ray did not receive the complete request. (request {id})");
    let mut response = answer(ErrorFormat::Plain, StatusCode::BAD_REQUEST, &sentence, None);
    let (status, reason) = match error {
        BodyError::TooLarge(bound) => {
            (StatusCode::PAYLOAD_TOO_LARGE, Malformed::BodyTooLarge(*bound).label())
        }
        BodyError::Slow { .. } => (StatusCode::REQUEST_TIMEOUT, "slow_upload"),
        BodyError::Shed(shed) => (StatusCode::SERVICE_UNAVAILABLE, shed.reason.label()),
        BodyError::Broken(_) => (StatusCode::BAD_REQUEST, "malformed"),
    };
    *response.status_mut() = status;
    response.headers_mut().insert(REASON, HeaderValue::from_static(reason));
    response
}

/// Puts the beginning of a sentence, without its ids, into the HTTP/1 status line.
fn say_in_phrase(response: &mut Response<Body>, sentence: &str) {
    let phrase = sentence.split_once(". (").map_or(sentence, |(phrase, _)| phrase);
    if let Ok(phrase) = ReasonPhrase::try_from(phrase.as_bytes()) {
        response.extensions_mut().insert(phrase);
    }
}

/// A refusal has no more headers than this; room for them is taken once.
const HEADERS_MAX: usize = 12;

/// An answer of this form. Its sender adds the request's id.
fn answer(
    error_format: ErrorFormat,
    status: StatusCode,
    sentence: &str,
    retry_s: Option<u32>,
) -> Response<Body> {
    let (status, kind, body) = match error_format {
        ErrorFormat::Plain => {
            return plain(status, [sentence, "\n"].concat().into(), HeaderMap::new());
        }
        ErrorFormat::StateApi => {
            let envelope = serde_json::json!({ "result": false, "msg": sentence, "data": {} });
            (status, "application/json; charset=utf-8", Body::full(envelope.to_string()))
        }
        ErrorFormat::Grpc => (StatusCode::OK, "application/grpc", Body::empty()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if error_format == ErrorFormat::StateApi {
        // Of a status that is an error, `ray list` prints the reason phrase and not the body.
        say_in_phrase(&mut response, sentence);
    }
    let headers = response.headers_mut();
    headers.reserve(HEADERS_MAX);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if error_format == ErrorFormat::Grpc {
        // 8 RESOURCE_EXHAUSTED, never 14 UNAVAILABLE: at UNAVAILABLE Ray Client reconnects
        // hundreds of times a second.
        headers.insert(GRPC_STATUS, HeaderValue::from_static("8"));
        if let Ok(message) = HeaderValue::try_from(utf8_percent_encode(sentence, GRPC_ENCODED).to_string()) {
            headers.insert(GRPC_MESSAGE, message);
        }
        if let Some(seconds) = retry_s {
            headers.insert(GRPC_PUSHBACK, HeaderValue::from(u64::from(seconds) * 1000));
        }
    }
    response
}

/// A sentence, with its headers in the room of `headers`, which are empty.
fn plain(status: StatusCode, line: Bytes, mut headers: HeaderMap) -> Response<Body> {
    headers.reserve(HEADERS_MAX);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let mut response = Response::new(Body::full(line));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// What gRPC encodes of a message in a header: all but printable ASCII, and `%`.
const GRPC_ENCODED: &AsciiSet = &CONTROLS.add(b'%');

#[cfg(test)]
mod tests {
    use super::*;
    use rayguard_core::policy::ClassId;

    const ABOUT: Refused = Refused {
        id: "r1",
        class: "job-submit",
        module: "JobHead",
        limit: 4.0,
        waited_max: Duration::from_secs(2),
        key_header: "x-rayguard-key",
        upstream: None,
        waiting: 12,
        contact: Contact(None),
    };

    fn refuse(reason: Reason, error_format: ErrorFormat) -> Response<Body> {
        shed(error_format, Shed { class: ClassId(0), reason, retry_after_s: 3 }, &ABOUT, HeaderMap::new())
    }

    #[test]
    fn a_refusal_says_what_is_full_how_many_wait_when_to_retry_and_whom_to_ask() {
        let shed = Shed { class: ClassId(0), reason: Reason::ClassInFlight, retry_after_s: 3 };
        let said = sentence(shed, "3", &ABOUT);
        assert_eq!(
            said,
            "rayguard: the Ray head is at its limit of 'job-submit' requests in progress; 12 requests are \
             waiting. Nothing was sent to Ray; please try again in 3 seconds. (reason class_in_flight, request \
             r1) If it continues, give this id to your Ray administrator."
        );
        let contact = Contact(Some(Arc::new("#ray-help".to_owned())));
        let said = sentence(shed, "3", &Refused { contact, ..ABOUT });
        assert!(said.ends_with("request r1) If it continues, give this id to #ray-help."), "{said}");
    }

    #[test]
    fn a_limit_for_one_client_is_named_with_its_value() {
        let said = |reason, limit| {
            let about = Refused { limit, waiting: 0, ..ABOUT };
            sentence(Shed { class: ClassId(0), reason, retry_after_s: 3 }, "3", &about)
        };
        assert!(said(Reason::ClientInFlight, 2.0).contains("in progress for one client, 2. Nothing"));
        assert!(said(Reason::ClientRate, 2.0 / 60.0).contains("requests for one client, 2/min. Nothing"));
        assert!(said(Reason::ClientRate, 1.5).contains("requests for one client, 1.5/s. Nothing"));
    }

    #[test]
    fn a_client_that_prints_the_reason_phrase_alone_is_told_in_it() {
        let response = refuse(Reason::ClassInFlight, ErrorFormat::StateApi);
        let phrase = response.extensions().get::<ReasonPhrase>().unwrap();
        assert_eq!(
            phrase.as_bytes(),
            b"rayguard: the Ray head is at its limit of 'job-submit' requests in progress; 12 requests are waiting. \
              Nothing was sent to Ray; please try again in 3 seconds"
        );
    }

    #[test]
    fn no_refusal_is_ever_a_401_or_403_but_for_want_of_a_key() {
        for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::ApiKey) {
            let status = refuse(reason, ErrorFormat::Plain).status();
            assert!(status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN, "{reason:?}");
        }
    }

    #[test]
    fn the_client_at_fault_gets_429_the_head_at_fault_503() {
        assert_eq!(refuse(Reason::ClientShare, ErrorFormat::Plain).status(), 429);
        for of_the_head in
            [Reason::ModuleInFlight, Reason::ClassRate, Reason::ClassBacklog, Reason::QueueTimeout]
        {
            assert_eq!(refuse(of_the_head, ErrorFormat::Plain).status(), 503, "{of_the_head:?}");
        }
        assert_eq!(refuse(Reason::ClientShare, ErrorFormat::Plain).headers()[RETRY_AFTER], "3");
    }

    #[test]
    fn a_refusal_and_its_headers_are_whole_in_the_room_of_others() {
        let mut room = HeaderMap::with_capacity(1);
        room.insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
        room.clear();
        let shed = Shed { class: ClassId(0), reason: Reason::ClassRate, retry_after_s: 12 };
        let (parts, body) = super::shed(ErrorFormat::Plain, shed, &ABOUT, room).into_parts();
        for (name, value) in [
            (CONTENT_TYPE, "text/plain; charset=utf-8"),
            (REASON, "class_rate"),
            (RETRY_AFTER, "12"),
            (RATELIMIT, "\"job-submit\";r=0;t=12"),
            (RATELIMIT_POLICY, "\"job-submit\";q=4"),
        ] {
            assert_eq!(parts.headers[&name], value, "{name}");
        }
        assert_eq!(parts.headers.len(), 5);
        let Body::Full(Some(line)) = body else { panic!("a body") };
        assert_eq!(line, sentence(shed, "12", &ABOUT) + "\n");
    }

    #[test]
    fn the_state_api_gets_rays_envelope() {
        let response = refuse(Reason::QueueTimeout, ErrorFormat::of("/api/v0/tasks", false));
        let Body::Full(Some(bytes)) = response.into_body() else { panic!("a body") };
        let envelope: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(envelope["result"], false);
        assert!(envelope["msg"].as_str().unwrap().contains("try again in 3 seconds"));
    }

    #[test]
    fn want_of_a_key_is_said_in_every_error_format() {
        let plain = refuse(Reason::ApiKey, ErrorFormat::Plain);
        assert_eq!(plain.status(), 401);
        assert_eq!(plain.headers()[WWW_AUTHENTICATE], "ApiKey realm=\"rayguard\", header=\"x-rayguard-key\"");
        assert!(!plain.headers().contains_key(RETRY_AFTER), "waiting does not help");
        let Body::Full(Some(bytes)) = refuse(Reason::ApiKey, ErrorFormat::StateApi).into_body() else {
            panic!("a body")
        };
        let envelope: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert!(envelope["msg"].as_str().unwrap().contains("in the header x-rayguard-key"), "{envelope}");
        assert_eq!(refuse(Reason::ApiKey, ErrorFormat::Grpc).headers()[GRPC_STATUS], "16");
    }

    #[test]
    fn grpc_gets_resource_exhausted_with_pushback() {
        let response = refuse(Reason::ClassRate, ErrorFormat::Grpc);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[GRPC_STATUS], "8");
        assert_eq!(response.headers()[GRPC_PUSHBACK], "3000");
    }
}
