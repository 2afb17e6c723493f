//! One gRPC call on HTTP/2: a message in, a message out.
//!
//! gRPC is a POST whose body is a five-byte prefix (compressed or not, length) and the message,
//! and whose answer ends in trailers with `grpc-status` (the protocol of the gRPC project,
//! `doc/PROTOCOL-HTTP2.md`). For one method with one small message each way that is all there is,
//! and hyper does the rest; a framework would bring more than it saves.
//!
//! Bounded: [`MESSAGE_BYTES_MAX`], `READ_MAX`, and the streams that the listener allows.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::WithTrailers;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use prost::Message;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::time::Duration;

/// The one method.
pub const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// A call's message, its prefix included. Envoy's own bound on a request's head is 60 KiB, so what
/// two descriptors repeat of it fits.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// A message must be complete within this.
const READ_MAX: Duration = Duration::from_secs(5);

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The body of an answer.
pub type Body = WithTrailers<Full<Bytes>, Ready<Option<Result<HeaderMap, Infallible>>>>;

/// Why a call is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// Another method.
    #[error("this server supports only envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")]
    Method,
    /// Not gRPC.
    #[error("this is a gRPC service; send content-type application/grpc")]
    NotGrpc,
    /// It is compressed, and nothing was agreed.
    #[error("compressed messages are not supported; send them uncompressed")]
    Compressed,
    /// It is too long.
    #[error("the message has more than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    /// It came too slowly.
    #[error("the message did not arrive in time")]
    Slow,
    /// It is not one message of this kind.
    #[error("the message cannot be read as a RateLimitRequest of v3")]
    Malformed,
    /// It asks too much at once.
    #[error("too many descriptors or entries; at most {0} of each are read")]
    TooMany(usize),
}

impl CallError {
    /// The status of gRPC's list.
    fn status(self) -> &'static str {
        match self {
            CallError::Method | CallError::Compressed => "12", // UNIMPLEMENTED
            CallError::NotGrpc | CallError::Malformed | CallError::TooMany(_) => "3", // INVALID_ARGUMENT
            CallError::TooLong => "8",                         // RESOURCE_EXHAUSTED
            CallError::Slow => "4",                            // DEADLINE_EXCEEDED
        }
    }
}

/// Reads the message of a call.
///
/// # Errors
/// [`CallError`]; its answer is [`refuse`].
pub async fn read<M: Message + Default>(request: Request<Incoming>) -> Result<M, CallError> {
    let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !kind.starts_with(b"application/grpc") {
        return Err(CallError::NotGrpc);
    }
    if request.method() != Method::POST || request.uri().path() != METHOD {
        return Err(CallError::Method);
    }
    let body = Limited::new(request.into_body(), MESSAGE_BYTES_MAX).collect();
    let bytes = match tokio::time::timeout(READ_MAX, body).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(CallError::TooLong),
        Ok(Err(_)) => return Err(CallError::Malformed),
        Err(_) => return Err(CallError::Slow),
    };
    unframe(&bytes)
}

/// The message behind its prefix.
fn unframe<M: Message + Default>(bytes: &Bytes) -> Result<M, CallError> {
    let (prefix, _) = bytes.split_first_chunk::<5>().ok_or(CallError::Malformed)?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(CallError::Compressed);
    }
    let message = bytes.slice(5..);
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(CallError::Malformed);
    }
    M::decode(message).map_err(|_| CallError::Malformed)
}

/// How long the client waits, if it says so.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// An answer.
pub fn answer(message: &impl Message) -> Response<Body> {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A buffer that grows takes any message.
    let _ = message.encode(&mut bytes);
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    respond(bytes.freeze(), Some(trailers))
}

/// The answer to a call that is not answered.
pub fn refuse(fault: CallError) -> Response<Body> {
    let mut response = respond(Bytes::new(), None);
    if fault == CallError::NotGrpc {
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    }
    let headers = response.headers_mut();
    headers.insert(GRPC_STATUS, HeaderValue::from_static(fault.status()));
    if let Ok(sentence) = HeaderValue::try_from(fault.to_string()) {
        headers.insert(GRPC_MESSAGE, sentence);
    }
    response
}

fn respond(bytes: Bytes, trailers: Option<HeaderMap>) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes).with_trailers(ready(trailers.map(Ok))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratelimit::message::{Descriptor, Entry, RateLimitRequest};
    use proptest::prelude::*;

    fn framed(message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).unwrap();
        [&[0], &length.to_be_bytes()[..], message].concat().into()
    }

    #[test]
    fn what_a_real_envoy_sends_is_read() {
        // Envoy 1.40: a request that begins, and its end with the answer's status.
        let begins = b"\x0a\x08rayguard\x12\x90\x01\x0a\x0d\x0a\x06method\x12\x03GET\x0a\x16\x0a\x04path\x12\x0e/api/jobs/?x=1\
            \x0a\x1b\x0a\x0eremote_address\x12\x09127.0.0.1\x0a\x19\x0a\x0dauthorization\x12\x08Bearer t\
            \x0a/\x0a\x07request\x12$28d9c57b-e788-4339-9f65-89e43aa00b0c";
        let read: RateLimitRequest = unframe(&framed(begins)).unwrap();
        assert_eq!((&*read.domain, read.hits_addend, read.descriptors.len()), (&b"rayguard"[..], 0, 1));
        let entry =
            |at: usize| (&*read.descriptors[0].entries[at].key, &*read.descriptors[0].entries[at].value);
        assert_eq!(entry(1), (&b"path"[..], &b"/api/jobs/?x=1"[..]));
        assert_eq!(entry(4), (&b"request"[..], &b"28d9c57b-e788-4339-9f65-89e43aa00b0c"[..]));
        assert_eq!(read.descriptors[0].hits_addend, None);

        let ends = b"\x0a\x08rayguard\x122\x0a+\x0a\x03end\x12$28d9c57b-e788-4339-9f65-89e43aa00b0c\x1a\x03\x08\xc8\x01";
        let read: RateLimitRequest = unframe(&framed(ends)).unwrap();
        assert_eq!(
            (&*read.descriptors[0].entries[0].key, read.descriptors[0].hits_addend),
            (&b"end"[..], Some(200))
        );
    }

    #[test]
    fn what_is_not_one_plain_message_is_refused() {
        let fault = |bytes: &[u8]| unframe::<RateLimitRequest>(&Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!(fault(b""), CallError::Malformed);
        assert_eq!(fault(b"\x01\0\0\0\0"), CallError::Compressed);
        assert_eq!(fault(b"\0\0\0\0\x05abc"), CallError::Malformed);
        assert_eq!(fault(b"\0\0\0\0\x01\xff"), CallError::Malformed);
        assert!(CallError::TooMany(16).to_string().contains("16"));
    }

    #[test]
    fn the_clients_patience_is_understood() {
        let read = |text: &str| {
            timeout(&HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::try_from(text).unwrap())]))
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        for nonsense in ["", "m", "-1m", "1", "1 m", "123456789m", "1x"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = unframe::<RateLimitRequest>(&bytes.clone().into());
            let _ = unframe::<RateLimitRequest>(&framed(&bytes));
        }

        #[test]
        fn what_is_written_is_read(
            entries in prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..5),
            hits_addend: u32, own: Option<u64>,
        ) {
            let entry = |(key, value): (Vec<u8>, Vec<u8>)| Entry { key: key.into(), value: value.into() };
            let entries = entries.into_iter().map(entry).collect();
            let descriptors = vec![Descriptor { entries, hits_addend: own }];
            let sent = RateLimitRequest { domain: "d".into(), descriptors, hits_addend };
            prop_assert_eq!(unframe::<RateLimitRequest>(&framed(&sent.encode_to_vec())), Ok(sent));
        }
    }
}
