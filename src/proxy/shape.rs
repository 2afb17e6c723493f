//! Requests that two readers could read in two ways, and that are refused for it.
//!
//! hyper reads HTTP correctly; that is not enough for a door that others stand before and
//! behind. What it repairs in silence is refused here and in [`crate::proxy::sieve`], so that
//! nobody on the way can have seen another request than the one that is forwarded. What is
//! forwarded is written anew from what was understood.

use crate::proxy::headers::Mentions;
use crate::proxy::tunnel::is_websocket;
use http::header::{EXPECT, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::Scheme;
use http::{Method, Request, StatusCode, Version};
use http_body::Body;

/// The longest request target, in bytes: Ray's own server reads no longer line.
pub const TARGET_LEN_MAX: usize = 8190;

/// Why a request is refused. The status is the answer's, the sentence its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// A line feed without a carriage return, or the other way round.
    #[error("a line of the request does not end in CR LF")]
    LineEnd,
    /// A header that goes on in the next line.
    #[error("a header is folded over two lines; write it in one")]
    Folded,
    /// The target is longer than [`TARGET_LEN_MAX`].
    #[error("the request target is longer than {TARGET_LEN_MAX} bytes, more than Ray reads")]
    TargetTooLong,
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
    /// Something the door does not do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// An expectation other than `100-continue`.
    #[error("only `Expect: 100-continue` is understood")]
    Expectation,
}

impl Malformed {
    /// The answer's status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Malformed::TargetTooLong => StatusCode::URI_TOO_LONG,
            Malformed::HeadTooLarge(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Malformed::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Malformed::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Malformed::Expectation => StatusCode::EXPECTATION_FAILED,
            Malformed::LineEnd
            | Malformed::Folded
            | Malformed::Host(_)
            | Malformed::Target(_)
            | Malformed::Framing(_) => StatusCode::BAD_REQUEST,
        }
    }
}

/// Whether a parsed request, whose headers mention these names, can be read in one way only.
///
/// # Errors
/// [`Malformed`].
pub fn check<B: Body>(request: &Request<B>, mentions: Mentions) -> Result<(), Malformed> {
    let (uri, headers) = (request.uri(), request.headers());
    if *request.method() == Method::CONNECT {
        return Err(Malformed::Unsupported("CONNECT is not for a reverse proxy"));
    }
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > TARGET_LEN_MAX) {
        return Err(Malformed::TargetTooLong);
    }
    if request.version() < Version::HTTP_2
        && uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS)
    {
        return Err(Malformed::Target("the request target is of another protocol than HTTP"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Malformed::Host("there is more than one Host")),
        (None, None) if request.version() == Version::HTTP_11 => {
            return Err(Malformed::Host("there is no Host"));
        }
        (None, None) => {}
        (Some(host), None) => check_host(host, uri.authority())?,
    }
    if mentions.has(Mentions::TRANSFER_ENCODING) {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || codings.next().is_some() {
            return Err(Malformed::Framing("the only Transfer-Encoding understood is `chunked`"));
        }
    }
    if mentions.has(Mentions::EXPECT)
        && headers.get(EXPECT).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Malformed::Expectation);
    }
    if mentions.has(Mentions::UPGRADE) && is_websocket(headers) && !request.body().is_end_stream() {
        return Err(Malformed::Framing("a WebSocket's handshake has no body"));
    }
    Ok(())
}

/// A target in absolute form must name the same host as `Host` (RFC 9112, 3.2.2, lets the target
/// win; whoever stands before us may have looked at the other).
fn check_host(host: &HeaderValue, authority: Option<&http::uri::Authority>) -> Result<(), Malformed> {
    let (name, port) = split_port(host.as_bytes());
    if !name.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:[]%".contains(&byte))
        || !port.iter().all(u8::is_ascii_digit)
    {
        return Err(Malformed::Host("the Host is not an authority"));
    }
    match authority {
        Some(authority) if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
            Err(Malformed::Host("the request target names another host than Host does"))
        }
        _ => Ok(()),
    }
}

/// A host and its port, if it has one: the colons of `[::1]` do not count.
fn split_port(host: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memrchr(b':', host) {
        Some(at) if memchr::memchr(b']', &host[at..]).is_none() => (&host[..at], &host[at + 1..]),
        _ => (host, b""),
    }
}
