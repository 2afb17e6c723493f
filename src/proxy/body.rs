//! Bodies: what clients send, what Ray sends, and what the door sends itself.
//!
//! A client's body is held to a size and a pace. A ticket rides in the body of the answer it
//! paid for, and is returned when that body ends, is dropped by a client that left, or breaks:
//! whatever ends the exchange, once.

use crate::core::time::Time;
use crate::proxy::sessions::Alive;
use crate::proxy::slot::Slot;
use crate::proxy::upstream::Lease;
use crate::runtime::clock::Clock;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Why a client's body did not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BodyError {
    /// It is larger than allowed.
    #[error("the body has more than the {0} bytes allowed here")]
    TooLarge(u64),
    /// It comes too slowly.
    #[error("the body did not arrive in time")]
    Slow,
    /// The client left, or its framing is broken.
    #[error("the request broke off before it was complete: {0}")]
    Broken(Arc<hyper::Error>),
}

/// How a client's body may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyBounds {
    /// Bytes in all.
    pub bytes_max: u64,
    /// The longest silence; once it has kept us waiting for longer than that, it must also
    /// have come at [`RATE_MIN`] or more.
    pub stall: Duration,
}

/// The least speed of a body, in bytes per second, once it has lasted longer than a stall may.
pub const RATE_MIN: u64 = 512;

/// Holds a body to its bounds.
#[derive(Debug)]
pub struct Pace {
    bounds: BodyBounds,
    clock: Clock,
    received: u64,
    /// Since the body first kept us waiting.
    since: Option<Time>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(bounds: BodyBounds, clock: Clock) -> Pace {
        Pace { bounds, clock, received: 0, since: None, patience: None }
    }

    fn note(&mut self, length: usize) -> Result<(), BodyError> {
        self.received += length as u64;
        self.patience = None;
        if self.received > self.bounds.bytes_max {
            return Err(BodyError::TooLarge(self.bounds.bytes_max));
        }
        Ok(())
    }

    /// Nothing has come: for how long, and how fast did it come before?
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<BodyError> {
        let now = self.clock.now();
        let stall = self.bounds.stall;
        let lasted = now.since(*self.since.get_or_insert(now));
        let crawls = lasted > stall && self.received < lasted.as_secs().saturating_mul(RATE_MIN);
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if crawls || patience.as_mut().poll(context).is_ready() {
            return Poll::Ready(BodyError::Slow);
        }
        Poll::Pending
    }
}

/// A request's body.
#[derive(Debug)]
pub enum ClientBody {
    /// None.
    Empty,
    /// As it comes; held to bounds unless it is a call that may last.
    Streamed(Incoming, Option<Box<Pace>>),
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let ClientBody::Streamed(body, pace) = self.get_mut() else { return Poll::Ready(None) };
        match (Pin::new(body).poll_frame(context), pace) {
            (Poll::Pending, Some(pace)) => pace.poll_wait(context).map(|slow| Some(Err(slow))),
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Ready(Some(Ok(frame))), Some(pace)) => {
                pace.note(frame.data_ref().map_or(0, Bytes::len))?;
                Poll::Ready(Some(Ok(frame)))
            }
            (Poll::Ready(frame), _) => {
                Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError::Broken(Arc::new(error)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Empty => true,
            ClientBody::Streamed(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Empty => SizeHint::with_exact(0),
            ClientBody::Streamed(body, _) => body.size_hint(),
        }
    }
}

/// Ray's body.
#[derive(Debug)]
pub enum RayBody {
    /// From an HTTP/1 connection, which goes back to its pool at the end.
    Http1(Incoming, Option<Lease>),
    /// From an HTTP/2 stream, which counts on its connection for as long as this lives.
    Http2(Incoming, Arc<()>),
}

impl RayBody {
    /// The exchange is complete: its connection may carry the next.
    fn release(&mut self) {
        if let RayBody::Http1(_, lease) = self
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }

    fn incoming(&self) -> &Incoming {
        let (RayBody::Http1(body, _) | RayBody::Http2(body, _)) = self;
        body
    }
}

impl HttpBody for RayBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let (RayBody::Http1(body, _) | RayBody::Http2(body, _)) = this;
        let frame = ready!(Pin::new(body).poll_frame(context));
        if frame.is_none() || this.is_end_stream() {
            this.release();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming().size_hint()
    }
}

/// A response's body.
#[derive(Debug)]
pub enum Body {
    /// Known in full.
    Full(Option<Bytes>),
    /// Ray's, as it comes, with the ticket it holds.
    Streamed(Streamed),
}

/// Ray's body and the slot it holds.
#[derive(Debug)]
pub struct Streamed {
    inner: RayBody,
    slot: Option<Slot>,
    alive: Option<Alive>,
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

    /// Ray's body; connection and slot, if it rides here, are released when it ends.
    #[must_use]
    pub fn streamed(inner: RayBody, slot: impl Into<Option<Slot>>) -> Body {
        let mut streamed = Streamed { inner, slot: slot.into(), alive: None };
        if streamed.inner.is_end_stream() {
            streamed.complete();
        }
        Body::Streamed(streamed)
    }
}

impl Body {
    /// The same; a Ray Client session is alive for as long as it streams.
    #[must_use]
    pub fn with_session(mut self, alive: Option<Alive>) -> Body {
        if let Body::Streamed(streamed) = &mut self
            && streamed.slot.is_some()
        {
            streamed.alive = alive;
        }
        self
    }
}

impl Streamed {
    fn complete(&mut self) {
        self.alive = None;
        self.inner.release();
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
                if let (Some(Ok(frame)), Some(slot)) = (&frame, &mut streamed.slot) {
                    slot.answered(frame.data_ref().map_or(0, Bytes::len));
                }
                match &frame {
                    None => streamed.complete(),
                    Some(Err(_)) => {
                        streamed.alive = None;
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
