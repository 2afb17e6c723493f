//! What the door sends: its own short answers, and upstream's streams with the ticket inside.
//!
//! A permit is returned when the body it rides in ends, is dropped by a client that left, or
//! breaks: whatever ends the exchange, once.

use crate::proxy::slot::Slot;
use crate::proxy::upstream::Lease;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A response body.
#[derive(Debug)]
pub enum Body {
    /// Known in full.
    Full(Option<Bytes>),
    /// Upstream's, as it comes.
    Streamed(Box<Streamed>),
}

/// Upstream's body, its connection and the slot they hold.
#[derive(Debug)]
pub struct Streamed {
    inner: Incoming,
    lease: Option<Lease>,
    slot: Option<Slot>,
}

impl Body {
    /// Nothing.
    #[must_use]
    pub fn empty() -> Body {
        Body::Full(None)
    }

    /// These bytes.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        Body::Full(Some(bytes.into()))
    }

    /// Upstream's body; connection and slot are released when it ends.
    #[must_use]
    pub fn streamed(inner: Incoming, lease: Lease, slot: Slot) -> Body {
        let mut streamed = Streamed { inner, lease: Some(lease), slot: Some(slot) };
        if streamed.inner.is_end_stream() {
            streamed.complete();
        }
        Body::Streamed(Box::new(streamed))
    }
}

impl Streamed {
    fn complete(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        if let Some(mut slot) = self.slot.take() {
            slot.served();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Streamed(streamed) => {
                let frame = ready!(Pin::new(&mut streamed.inner).poll_frame(context));
                match &frame {
                    None => streamed.complete(),
                    Some(Err(_)) => {
                        streamed.lease = None;
                        if let Some(mut slot) = streamed.slot.take() {
                            slot.failed();
                        }
                    }
                    Some(Ok(_)) if streamed.inner.is_end_stream() => streamed.complete(),
                    Some(Ok(_)) => {}
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_none(),
            Body::Streamed(streamed) => streamed.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Streamed(streamed) => streamed.inner.size_hint(),
        }
    }
}
