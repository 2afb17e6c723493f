//! Bodies: what clients send, what Ray sends, and what the proxy sends itself.
//!
//! A client's body is held to a size and a pace. A short one is read whole before its request asks
//! for a permit; of a longer one the last piece is held back until there is one
//! ([`crate::upload`]), so that a client's slow line holds no permit. A permit rides in the
//! body of the answer it was given for, and is returned when that body ends, is dropped by a client
//! that left, breaks, is read slowly or not at all: whatever comes first, once. Both kinds keep to
//! their class's bandwidth.

use crate::clock::Clock;
use crate::permit_guard::PermitGuard;
use crate::sessions::Alive;
use crate::shared_answer::SharedBody;
use crate::slow_reader::{Cut, LAG, Listed, SlowReaders, Taken};
use crate::submitted::Submission;
use crate::throttle::Throttled;
use crate::upload::Withheld;
use crate::upstream::Lease;
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use rayguard_core::admission::controller::{Shed, Stage};
use rayguard_core::admission::flow::Flow;
use rayguard_core::time::Time;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
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
    #[error("there was no permit for this request when its body had come")]
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
pub struct Pace {
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
    pub fn new(bounds: BodyBounds, clock: Clock) -> Pace {
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
    pub fn unhurried(self) -> Pace {
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
    Streamed(Box<Throttled<Upload>>),
    /// As it comes, but for its last piece.
    Withheld(Box<Withheld>),
}

/// A body that a client sends, held to its bounds unless it is a call that may last.
#[derive(Debug)]
pub struct Upload {
    body: Incoming,
    pace: Option<Pace>,
}

impl Upload {
    /// The body of a request; `pace` holds it to its bounds, `flow` to its class's bandwidth.
    pub fn new(
        body: Incoming,
        pace: Option<Pace>,
        flow: Option<Arc<Flow>>,
        clock: Clock,
    ) -> Throttled<Upload> {
        let pace = if flow.is_some() { pace.map(Pace::unhurried) } else { pace };
        Throttled::new(Upload { body, pace }, flow, clock)
    }

    /// For how long its client has kept us waiting.
    pub fn waited(&self) -> Duration {
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

impl HttpBody for Upload {
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

impl HttpBody for ClientBody {
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
            ClientBody::Streamed(upload) => Pin::new(&mut **upload).poll_frame(context),
            ClientBody::Withheld(upload) => Pin::new(&mut **upload).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ClientBody::Empty => true,
            ClientBody::Whole(bytes) => bytes.is_empty(),
            ClientBody::Streamed(upload) => upload.is_end_stream(),
            ClientBody::Withheld(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ClientBody::Empty => SizeHint::with_exact(0),
            ClientBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ClientBody::Streamed(upload) => upload.size_hint(),
            ClientBody::Withheld(upload) => upload.size_hint(),
        }
    }
}

/// The largest body that is looked for beside its head, in bytes.
const SHORT_MAX: u64 = 64 << 10;

/// Ray's body.
#[derive(Debug)]
pub enum RayBody {
    /// From an HTTP/1 connection, which goes back to its pool at the end.
    Http1(Incoming, Option<Lease>),
    /// From an HTTP/2 stream, which counts on its connection for as long as this lives.
    Http2(Incoming, Arc<()>),
}

impl RayBody {
    /// Whether it may have come in one piece with its head: its length is known and small.
    fn is_short(&self) -> bool {
        matches!(self, RayBody::Http1(..))
            && self.size_hint().exact().is_some_and(|length| length <= SHORT_MAX)
    }

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
        let frame = ready!(match this {
            RayBody::Http1(body, Some(lease)) => {
                // What comes, comes by driving it: it is looked for before and after, and wakes nobody.
                let mut look = || Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()));
                lease.rest();
                let there = look();
                if there.is_pending() {
                    lease.drive(context);
                    look()
                } else {
                    there
                }
            }
            RayBody::Http1(body, None) | RayBody::Http2(body, _) => Pin::new(body).poll_frame(context),
        });
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
    /// Ray's, as it comes, with the permit it holds.
    Streamed(Streamed),
    /// One that others read too.
    Shared(SharedBody),
}

/// Why an answer did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Ray broke off.
    #[error("Ray broke off in the middle of its answer: {0}")]
    Ray(hyper::Error),
    /// Ray fell silent.
    #[error("Ray said nothing more for {0:?} in the middle of its answer")]
    Silent(Duration),
    /// Its client did not read it.
    #[error("the client stopped reading its answer")]
    Unread,
    /// Its client kept those waiting who read the same answer.
    #[error("the client read a shared answer so slowly that it kept others waiting")]
    HeldUp,
    /// The one answer that it shared did not come to its end.
    #[error("{0}")]
    Shared(Arc<AnswerError>),
}

/// What an answer keeps to on its way.
#[derive(Clone, Debug)]
pub struct ResponsePolicy {
    /// Time.
    pub clock: Clock,
    /// The bandwidth of its class.
    pub flow: Option<Arc<Flow>>,
    /// How long its client may leave it unread.
    pub patience: Option<(SlowReaders, Duration)>,
    /// How long Ray may say nothing in the middle of it. A line to Ray that was cut without a word
    /// would hold its permit, and whoever shares the answer, for ever.
    pub silence_max: Option<Duration>,
    /// A submission's, which names a job.
    pub submission: Option<Box<Submission>>,
}

/// Ray's body on its way.
#[derive(Debug)]
pub struct Streamed {
    response_state: Arc<ResponseState>,
    _listed: Option<Listed>,
}

#[derive(Debug)]
struct ResponseState {
    clock: Clock,
    began: Time,
    taken: Taken,
    /// How long the client has kept it waiting, in nanoseconds, and whether it is parked for that.
    kept: AtomicU64,
    parked: AtomicBool,
    /// Gone once it is over.
    cargo: Mutex<Option<Cargo>>,
}

impl ResponseState {
    fn kept(&self) -> Duration {
        Duration::from_nanos(self.kept.load(Ordering::Relaxed))
    }

    /// The same, with the wait that lasts.
    fn kept_at(&self, now: Time) -> Duration {
        self.kept() + self.taken.since().map_or(Duration::ZERO, |since| now.since(since))
    }

    /// The client has kept it waiting for so much longer.
    fn keep(&self, more: Duration) -> Duration {
        self.kept.fetch_add(u64::try_from(more.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.kept()
    }
}

/// Ray's body and what it holds.
#[derive(Debug)]
struct Cargo {
    /// What has come of it with its head.
    first: Option<Result<Frame<Bytes>, hyper::Error>>,
    /// That it broke off, until what came before has gone out.
    broken: Option<AnswerError>,
    inner: Throttled<RayBody>,
    permit: Option<PermitGuard>,
    alive: Option<Alive>,
    silence: Option<Silence>,
    submission: Option<Box<Submission>>,
}

/// A wait for Ray, and how long it may last.
#[derive(Debug)]
struct Silence {
    max: Duration,
    /// Kept from one wait to the next.
    timer: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl Silence {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.max)));
        if !self.waits {
            self.waits = true;
            timer.as_mut().set(tokio::time::sleep(self.max));
        }
        timer.as_mut().poll(context)
    }
}

impl Default for Body {
    fn default() -> Body {
        Body::empty()
    }
}

impl Body {
    /// Nothing.
    pub fn empty() -> Body {
        Body::Full(None)
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        Body::Full(Some(bytes.into()))
    }

    /// Ray's body, whose head has come. A short one has come with its head, most of the time: its connection and permit are
    /// released at once, and nobody needs to watch over its way.
    #[must_use]
    pub fn forwarded(
        mut inner: RayBody,
        permit: Option<PermitGuard>,
        alive: Option<Alive>,
        response_policy: ResponsePolicy,
    ) -> Body {
        if response_policy.flow.is_some() || !inner.is_short() {
            return Body::streamed(inner, permit, alive, response_policy);
        }
        // What has not come yet is asked for again by whoever reads the answer, and wakes that one.
        let first = match Pin::new(&mut inner).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(first) => first,
            Poll::Pending => return Body::streamed(inner, permit, alive, response_policy),
        };
        let whole = match first {
            None => None,
            Some(Ok(frame)) if inner.is_end_stream() => frame.into_data().ok(),
            Some(first) => return Body::depart(Some(first), inner, permit, alive, response_policy),
        };
        if let Some(mut permit) = permit {
            permit.answered(whole.as_ref().map_or(0, Bytes::len));
            permit.served();
        }
        if let (Some(mut submission), Some(whole)) = (response_policy.submission, &whole) {
            submission.hear(whole);
            submission.end();
        }
        Body::Full(whole)
    }

    /// Ray's body; connection and permit, if it rides here, are released when it ends, and so is the
    /// session that is alive as long as it streams.
    pub fn streamed(
        inner: RayBody,
        permit: impl Into<Option<PermitGuard>>,
        alive: Option<Alive>,
        response_policy: ResponsePolicy,
    ) -> Body {
        Body::depart(None, inner, permit.into(), alive, response_policy)
    }

    fn depart(
        first: Option<Result<Frame<Bytes>, hyper::Error>>,
        inner: RayBody,
        mut permit: Option<PermitGuard>,
        alive: Option<Alive>,
        response_policy: ResponsePolicy,
    ) -> Body {
        if let Some(permit) = &mut permit {
            permit.turn(Stage::Answered);
        }
        let inner = Throttled::new(inner, response_policy.flow, response_policy.clock);
        let silence = response_policy.silence_max.map(|max| Silence { max, timer: None, waits: false });
        let submission = response_policy.submission;
        let mut cargo = Cargo { first, broken: None, inner, permit, alive, silence, submission };
        if cargo.is_end_stream() {
            cargo.complete();
        }
        let under_way = cargo.permit.is_some();
        let began = response_policy.clock.now();
        let response_state = Arc::new(ResponseState {
            clock: response_policy.clock,
            began,
            taken: Taken::at(began),
            kept: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            cargo: Mutex::new(Some(cargo)),
        });
        let listed = response_policy
            .patience
            .filter(|_| under_way)
            .map(|(readers, patience)| readers.list(Arc::clone(&response_state) as Arc<dyn Cut>, patience));
        Body::Streamed(Streamed { response_state, _listed: listed })
    }
}

impl Cargo {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.inner).poll_frame(context),
        };
        match (frame, &mut self.silence) {
            (Poll::Pending, Some(silence)) => {
                silence.poll(context).map(|()| Some(Err(AnswerError::Silent(silence.max))))
            }
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Ready(frame), silence) => {
                if let Some(silence) = silence {
                    silence.waits = false;
                }
                let Some(Err(error)) = frame else {
                    return Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::Ray)));
                };
                // An error makes hyper drop what it has not written yet, the head of the answer included: the
                // client would see a closed connection and no answer, and ask again. It writes while it waits.
                self.broken = Some(AnswerError::Ray(error));
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        if let (Some(Ok(first)), Some(left)) = (&self.first, hint.exact()) {
            hint.set_exact(left + first.data_ref().map_or(0, |data| data.len() as u64));
        }
        hint
    }

    fn complete(&mut self) {
        self.alive = None;
        self.inner.body_mut().release();
        if let Some(mut permit) = self.permit.take() {
            permit.served();
        }
        if let Some(submission) = self.submission.take() {
            submission.end();
        }
    }
}

impl Cut for ResponseState {
    fn waits_since(&self) -> Option<Time> {
        self.taken.since()
    }

    fn lags(&self, now: Time) -> bool {
        let kept = self.kept_at(now);
        kept >= LAG && kept * 2 > now.since(self.began) && !self.parked.load(Ordering::Relaxed)
    }

    fn park(&self, now: Time) {
        let mut cargo = self.cargo.lock();
        let Some(Cargo { permit: Some(permit), inner, .. }) = cargo.as_mut() else { return };
        permit.kept(self.kept_at(now));
        if permit.park(inner.size_hint().exact()) {
            self.parked.store(true, Ordering::Relaxed);
        }
    }

    /// Drops what is on the way: Ray's connection is closed, and the permit counts as abandoned.
    fn cut(&self) {
        let cargo = self.cargo.lock().take();
        drop(cargo);
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let Streamed { response_state, .. } = match self.get_mut() {
            Body::Full(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Shared(shared) => return Pin::new(shared).poll_frame(context),
            Body::Streamed(streamed) => streamed,
        };
        let mut cargo = response_state.cargo.lock();
        let Some(cargo) = cargo.as_mut() else { return Poll::Ready(Some(Err(AnswerError::Unread))) };
        if let Some(since) = response_state.taken.ask() {
            let kept = response_state.keep(response_state.clock.now().since(since));
            if let Some(permit) = &mut cargo.permit {
                permit.kept(kept);
            }
        }
        let frame = ready!(cargo.poll_frame(context));
        response_state.taken.give(response_state.clock.now());
        if let (Some(Ok(frame)), Some(permit)) = (&frame, &mut cargo.permit) {
            permit.answered(frame.data_ref().map_or(0, Bytes::len));
        }
        if let (Some(Ok(frame)), Some(submission)) = (&frame, &mut cargo.submission)
            && let Some(data) = frame.data_ref()
        {
            submission.hear(data);
        }
        match &frame {
            None => cargo.complete(),
            Some(Err(_)) => {
                cargo.alive = None;
                if let Some(mut permit) = cargo.permit.take() {
                    permit.failed();
                }
            }
            Some(Ok(_)) if cargo.is_end_stream() => cargo.complete(),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_none(),
            Body::Streamed(streamed) => streamed.look(Cargo::is_end_stream).unwrap_or(false),
            Body::Shared(shared) => shared.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Streamed(streamed) => streamed.look(Cargo::size_hint).unwrap_or_default(),
            Body::Shared(shared) => shared.size_hint(),
        }
    }
}

impl Streamed {
    fn look<T>(&self, at: impl FnOnce(&Cargo) -> T) -> Option<T> {
        self.response_state.cargo.lock().as_ref().map(at)
    }
}
