//! What clients are answered: the proxy's own bytes, or Ray's body.
//!
//! A permit rides in the body of the answer it was given for, and is returned when that body ends, is dropped by a
//! client that left, breaks, is read slowly or not at all: whatever comes first, once. It keeps to its class's
//! bandwidth.

use crate::clock::Clock;
use crate::permit_guard::PermitGuard;
use crate::response_policy::{AnswerError, ResponsePolicy};
use crate::sessions::Alive;
use crate::shared_answer::{Share, SharedBody};
use crate::slow_reader::{Cut, LAG, Listed, Taken};
use crate::submitted::Submission;
use crate::throttle::Throttled;
use crate::upstream::RayBody;
use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use rayguard_core::admission::controller::Stage;
use rayguard_core::time::Time;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::Sleep;

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

    /// A shared answer for one client, held to what every answer keeps to on its way.
    pub fn shared(share: Share, response_policy: &ResponsePolicy, http2: bool) -> Response<Body> {
        let head = share.head();
        head.map(|()| match share.short().filter(|_| !http2) {
            // It goes straight into the connection's buffer. A stream's may wait for as long as its client
            // likes, so there it is counted like any other.
            Some(bytes) => Body::full(bytes),
            None => Body::Shared(SharedBody::new(share, response_policy)),
        })
    }

    /// Ray's body, whose head has come. A short body has mostly come with its head: its connection and permit are
    /// released at once, and nothing has to watch its way to the client.
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
        // If it has not come yet, the reader of the answer asks for it again and is woken by it.
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
