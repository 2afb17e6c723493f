//! What clients send: each body is held to a size and a pace.
//!
//! A short one is read whole before its request asks for a permit; of a longer one the last piece is held back
//! until there is one ([`crate::upload`]), so that a client's slow line holds no permit.

use crate::clock::Clock;
use crate::throttle::Throttled;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use rayguard_core::admission::controller::Shed;
use rayguard_core::admission::flow::Flow;
use rayguard_core::time::Time;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

/// Why a client's body did not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BodyError {
    /// It is larger than allowed.
    #[error("the body has more than the {0} bytes allowed here")]
    TooLarge(u64),
    /// It comes too slowly.
    #[error(
        "the client sent its request too slowly: {received} bytes of the body in {:.1} s; \
         send at least {RATE_MIN} bytes/s and pause for less than {:.1} s",
        lasted.as_secs_f64(), stall.as_secs_f64()
    )]
    Slow {
        /// Bytes that came.
        received: u64,
        /// Since they were first waited for.
        lasted: Duration,
        /// The longest pause allowed.
        stall: Duration,
    },
    /// It has come whole, and there is no permit for it.
    #[error("no permit was free when the body was complete")]
    Shed(Shed),
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
pub(crate) const RATE_MIN: u64 = 512;

/// Holds a body to its bounds.
#[derive(Debug)]
pub(crate) struct Pace {
    bounds: BodyBounds,
    clock: Clock,
    rate_min: u64,
    received: u64,
    /// Since the body first kept us waiting.
    since: Option<Time>,
    /// Since when it does now, and for how long it did before.
    waits: Option<Time>,
    waited: Duration,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Nothing has come yet.
    pub(crate) fn new(bounds: BodyBounds, clock: Clock) -> Pace {
        Pace {
            bounds,
            clock,
            rate_min: RATE_MIN,
            received: 0,
            since: None,
            waits: None,
            waited: Duration::ZERO,
            patience: None,
        }
    }

    /// The same for a body that we slow down ourselves: only its silence counts.
    #[must_use]
    pub(crate) fn unhurried(self) -> Pace {
        Pace { rate_min: 0, ..self }
    }

    fn note(&mut self, length: usize) -> Result<(), BodyError> {
        self.received += length as u64;
        self.patience = None;
        if let Some(since) = self.waits.take() {
            self.waited += self.clock.now().since(since);
        }
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
        self.waits.get_or_insert(now);
        let crawls = lasted > stall && self.received < lasted.as_secs().saturating_mul(self.rate_min);
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if crawls || patience.as_mut().poll(context).is_ready() {
            return Poll::Ready(BodyError::Slow { received: self.received, lasted, stall });
        }
        Poll::Pending
    }
}

/// A request's body.
#[derive(Debug)]
pub enum ClientBody {
    /// None.
    Empty,
    /// A short one, read whole.
    Whole(Bytes),
    /// As it comes.
    Streamed(UnsyncBoxBody<Bytes, BodyError>),
}

/// A body that a client sends, held to its bounds unless it is a call that may last.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    pace: Option<Pace>,
}

impl Upload {
    /// The body of a request; `pace` holds it to its bounds, `flow` to its class's bandwidth.
    pub(crate) fn new(
        body: Incoming,
        pace: Option<Pace>,
        flow: Option<Arc<Flow>>,
        clock: Clock,
    ) -> Throttled<Upload> {
        let pace = if flow.is_some() { pace.map(Pace::unhurried) } else { pace };
        Throttled::new(Upload { body, pace }, flow, clock)
    }

    /// For how long its client has kept us waiting.
    pub(crate) fn waited(&self) -> Duration {
        self.pace.as_ref().map_or(Duration::ZERO, |pace| pace.waited)
    }
}

/// The longest body that is read whole before its request asks for a permit.
pub(crate) const GATHERED_MAX: u64 = 64 << 10;

/// Bytes of such bodies that may be waited for at once; those beyond are passed on as they come.
const GATHERED_ALL_MAX: u64 = 64 << 20;

/// What such bodies take together.
#[derive(Debug, Default)]
pub struct Budget(AtomicU64);

/// A part of a [`Budget`]; dropped, it is given back.
struct Part<'a>(&'a Budget, u64);

impl Budget {
    fn take(&self, bytes: u64) -> Option<Part<'_>> {
        let part = Part(self, bytes);
        (self.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= GATHERED_ALL_MAX).then_some(part)
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// Reads a body whole if it is short and there is room; otherwise it is handed back.
///
/// # Errors
/// It came too slowly, or not to its end.
pub(crate) async fn gather(
    body: Incoming,
    bounds: BodyBounds,
    clock: Clock,
    budget: &Budget,
) -> Result<Result<Bytes, Incoming>, BodyError> {
    let Some(length) =
        body.size_hint().exact().filter(|length| *length <= GATHERED_MAX.min(bounds.bytes_max))
    else {
        return Ok(Err(body));
    };
    let Some(_part) = budget.take(length) else { return Ok(Err(body)) };
    let mut upload = Upload { body, pace: Some(Pace::new(bounds, clock)) };
    let mut whole = Bytes::new();
    let mut pieces = BytesMut::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut upload).poll_frame(context)).await {
        let Ok(data) = frame?.into_data() else { continue };
        if whole.is_empty() && pieces.is_empty() {
            whole = data; // most come in one piece
            continue;
        }
        if pieces.is_empty() {
            pieces.reserve(usize::try_from(length).unwrap_or(0));
            pieces.extend_from_slice(&std::mem::take(&mut whole));
        }
        pieces.extend_from_slice(&data);
    }
    Ok(Ok(if pieces.is_empty() { whole } else { pieces.freeze() }))
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Upload { body, pace } = self.get_mut();
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
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            ClientBody::Empty => Poll::Ready(None),
            ClientBody::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            ClientBody::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            ClientBody::Streamed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Empty => true,
            ClientBody::Whole(bytes) => bytes.is_empty(),
            ClientBody::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Empty => SizeHint::with_exact(0),
            ClientBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ClientBody::Streamed(body) => body.size_hint(),
        }
    }
}
