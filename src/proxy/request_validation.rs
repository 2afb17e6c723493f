//! Requests that two readers could read in two ways, and that are refused for it.
//!
//! hyper reads HTTP correctly; that is not enough for a proxy between other proxies and servers.
//! What hyper silently repairs is refused here and in [`crate::framing_guard`], so that no hop on the
//! way sees another request than the one that is forwarded. The forwarded request is written anew
//! from what was understood.

use crate::headers::HeaderPresence;
use crate::websocket::is_websocket;
use http::header::{EXPECT, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::Scheme;
use http::{Method, Request, StatusCode, Uri, Version};
use http_body::Body;
use rayguard_core::request::catalogue::Surface;

/// The longest request target that the dashboard's server (aiohttp) reads, in bytes.
const TARGET_OF_DASHBOARD: usize = 8190;

/// The longest that Serve is sent: its server (uvicorn) has no bound, ours has this one.
const TARGET_OF_SERVE: usize = 65_534;

/// How long a request's head may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeadBounds {
    /// Its target, in bytes.
    pub target: usize,
    /// All of it, in bytes.
    pub bytes: usize,
    /// Its headers.
    pub headers: usize,
}

impl HeadBounds {
    /// The bounds on one kind of listener, where the operator allows a head so many bytes and headers. A
    /// target longer than the dashboard's does not count against the bytes.
    pub(crate) fn of(surface: Surface, bytes: usize, headers: usize) -> HeadBounds {
        let target = target_len_max(surface);
        HeadBounds { target, bytes: bytes + target - TARGET_OF_DASHBOARD, headers }
    }
}

/// The longest request target on one kind of listener, in bytes.
pub(crate) fn target_len_max(surface: Surface) -> usize {
    match surface {
        Surface::Dashboard | Surface::RayClient => TARGET_OF_DASHBOARD,
        Surface::Serve => TARGET_OF_SERVE,
    }
}

/// Why a request is refused. The status is the answer's, the sentence its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Malformed {
    /// A line feed without a carriage return, or the other way round.
    #[error("a line of the request does not end in CR LF")]
    LineEnd,
    /// A header that goes on in the next line.
    #[error("a header is folded over two lines; write it in one")]
    Folded,
    /// A character that is allowed neither in a request line nor in a header.
    #[error("the method, the target or a header has a character that HTTP does not allow there")]
    Unreadable,
    /// The target is longer than the bound.
    #[error("the request target is longer than {0} bytes, more than Ray reads")]
    TargetTooLong(usize),
    /// There are more headers than the bound.
    #[error("the request has more than {0} headers (the bound is `http.headers_max`); send fewer")]
    TooManyHeaders(usize),
    /// The head is longer than the bound.
    #[error("the request's head is longer than {0} bytes; send fewer or smaller headers")]
    HeadTooLarge(usize),
    /// The announced body is longer than the bound.
    #[error("the body has more than the {0} bytes allowed here")]
    BodyTooLarge(u64),
    /// No `Host`, or two, or one that the target contradicts.
    #[error("{0}")]
    Host(&'static str),
    /// A target that is none, or of another protocol.
    #[error("{0}")]
    Target(&'static str),
    /// A length or transfer coding that could be read in two ways.
    #[error("{0}")]
    Framing(&'static str),
    /// Something the proxy does not do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// An expectation other than `100-continue`.
    #[error("only `Expect: 100-continue` is understood")]
    Expectation,
}

impl Malformed {
    /// The word for it in the `X-Rayguard-Reason` header.
    pub(crate) fn label(self) -> &'static str {
        match self.status() {
            StatusCode::BAD_REQUEST => "malformed",
            StatusCode::NOT_IMPLEMENTED | StatusCode::EXPECTATION_FAILED => "unsupported",
            _ => "too_large",
        }
    }

    /// The answer's status.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Malformed::TargetTooLong(_) => StatusCode::URI_TOO_LONG,
            Malformed::HeadTooLarge(_) | Malformed::TooManyHeaders(_) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Malformed::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Malformed::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Malformed::Expectation => StatusCode::EXPECTATION_FAILED,
            Malformed::Unreadable
            | Malformed::LineEnd
            | Malformed::Folded
            | Malformed::Host(_)
            | Malformed::Target(_)
            | Malformed::Framing(_) => StatusCode::BAD_REQUEST,
        }
    }
}

/// Whether a parsed request, whose headers mention these names, can be read in one way only.
pub(crate) fn check<B: Body>(
    request: &Request<B>,
    header_presence: HeaderPresence,
    surface: Surface,
) -> Result<(), Malformed> {
    let (uri, headers) = (request.uri(), request.headers());
    if *request.method() == Method::CONNECT {
        return Err(Malformed::Unsupported("a reverse proxy does not support CONNECT"));
    }
    let target_max = target_len_max(surface);
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > target_max) {
        return Err(Malformed::TargetTooLong(target_max));
    }
    if request.version() < Version::HTTP_2
        && uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS)
    {
        return Err(Malformed::Target("the request target has a scheme other than HTTP"));
    }
    if request.version() < Version::HTTP_2 && uri.scheme().is_none() && uri.authority().is_some() {
        return Err(Malformed::Target("the request target is neither a path nor a URL"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Malformed::Host("there is more than one Host header")),
        (None, None) if request.version() == Version::HTTP_11 => {
            return Err(Malformed::Host("there is no Host header"));
        }
        (None, None) => {}
        (Some(host), None) => check_host(host, uri)?,
    }
    if header_presence.has(HeaderPresence::TRANSFER_ENCODING) {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() {
            return Err(Malformed::Framing("the only Transfer-Encoding understood is `chunked`"));
        }
    }
    if header_presence.has(HeaderPresence::EXPECT)
        && headers.get(EXPECT).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Malformed::Expectation);
    }
    if header_presence.has(HeaderPresence::UPGRADE)
        && is_websocket(headers)
        && !request.body().is_end_stream()
    {
        return Err(Malformed::Framing("a WebSocket's handshake has no body"));
    }
    Ok(())
}

/// A target in absolute form must name the same host as `Host` (RFC 9112, 3.2.2, lets the target
/// win; a proxy before us may have read `Host`).
fn check_host(host: &HeaderValue, target: &Uri) -> Result<(), Malformed> {
    let (name, port) = split_port(host.as_bytes());
    if !name.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:[]%".contains(&byte))
        || !port.iter().all(u8::is_ascii_digit)
    {
        return Err(Malformed::Host("the Host header is not a host name with an optional port"));
    }
    let Some(authority) = target.authority() else { return Ok(()) };
    let (named, named_port) = split_port(authority.as_str().as_bytes());
    let usual: &[u8] = if target.scheme() == Some(&Scheme::HTTPS) { b"443" } else { b"80" };
    let or_usual = |port| if <[u8]>::is_empty(port) { usual } else { port };
    if name.eq_ignore_ascii_case(named) && or_usual(port) == or_usual(named_port) {
        return Ok(());
    }
    Err(Malformed::Host("the request target and the Host header name different hosts"))
}

/// A host and its port, if it has one: the colons of `[::1]` do not count.
fn split_port(host: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memrchr(b':', host) {
        Some(at) if memchr::memchr(b']', &host[at..]).is_none() => (&host[..at], &host[at + 1..]),
        _ => (host, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_the_host_that_host_names_its_usual_port_said_or_not() {
        let check = |target: &str, host: &'static str| {
            check_host(&HeaderValue::from_static(host), &target.parse().unwrap()).is_ok()
        };
        for (target, host) in [
            ("/x", "head:8265"),
            ("http://head/x", "head"),
            ("http://head:80/x", "HEAD"),
            ("http://head/x", "head:80"),
            ("https://head:443/x", "head"),
            ("http://head:8265/x", "head:8265"),
            ("http://[::1]:80/x", "[::1]"),
        ] {
            assert!(check(target, host), "{target} {host}");
        }
        for (target, host) in [
            ("http://head:8265/x", "head"),
            ("http://head:443/x", "head"),
            ("https://head/x", "head:80"),
            ("http://other/x", "head"),
            ("http://head/x", "head/y"),
            ("http://me@head/x", "head"),
        ] {
            assert!(!check(target, host), "{target} {host}");
        }
    }
}
