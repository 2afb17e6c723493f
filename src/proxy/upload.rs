//! Requests whose body is too long to be read whole before they ask for a permit.
//!
//! Ray can begin to work once a request is whole, and not before. So the body is passed on as it
//! comes, while the upload is parked ([`rayguard_core::admission::parked`]), and its last piece is held
//! back until there is a permit: fairly in turn with all who ask. However slow its line, an upload
//! holds no permit; and however many uploads end at once, Ray is given no more of them than the
//! limits allow. Latency and the class's time-out begin with that last piece.
//!
//! Where nothing can be parked any more, an upload asks for its permit at the start.

use crate::client_body::{BodyError, Upload};
use crate::permit_guard::PermitGuard;
use crate::state::ProxyState;
use crate::throttle::Throttled;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use rayguard_core::admission::controller::{Ask, Shed, Stage};
use rayguard_core::admission::parked::Place;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::Notify;

/// A permit on its way.
pub(crate) type Asking = Pin<Box<dyn Future<Output = Result<PermitGuard, Shed>> + Send>>;

/// What the two ends of an upload share: its body, which finds out when it is whole, and the task
/// that waits for its answer.
#[derive(Debug)]
pub(crate) struct Handover {
    proxy: Arc<ProxyState>,
    ask: Ask,
    held: Mutex<Held>,
    whole: Notify,
    is_whole: AtomicBool,
}

/// A permit, or the place of one that is parked.
#[derive(Debug, Default)]
struct Held {
    permit: Option<PermitGuard>,
    place: Option<Place>,
}

impl Handover {
    /// Of an upload that is parked.
    pub(crate) fn parked(proxy: Arc<ProxyState>, ask: Ask, place: Place) -> Arc<Handover> {
        Handover::new(proxy, ask, Held { permit: None, place: Some(place) })
    }

    /// Of an upload that has its permit already.
    #[must_use]
    pub(crate) fn admitted(proxy: Arc<ProxyState>, ask: Ask, mut permit: PermitGuard) -> Arc<Handover> {
        permit.turn(Stage::Uploading);
        permit.sent();
        Handover::new(proxy, ask, Held { permit: Some(permit), place: None })
    }

    fn new(proxy: Arc<ProxyState>, ask: Ask, held: Held) -> Arc<Handover> {
        Arc::new(Handover {
            proxy,
            ask,
            held: Mutex::new(held),
            whole: Notify::new(),
            is_whole: AtomicBool::new(false),
        })
    }

    /// What is held now. One that Ray has answered before it was whole stays parked.
    #[must_use]
    pub(crate) fn take(&self) -> PermitGuard {
        let mut held = self.held.lock();
        held.permit.take().unwrap_or_else(|| {
            let permit = self.proxy.admission.let_by(self.ask, self.proxy.clock.now());
            PermitGuard::new(Arc::clone(&self.proxy), permit).parked(held.place.take())
        })
    }

    /// Returns once the request is whole and on its way.
    pub(crate) async fn whole(&self) {
        self.whole.notified().await;
    }

    /// Whether it is: only then does Ray work on it.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Relaxed)
    }

    /// Whether upstream stops working on it when its client leaves.
    pub(crate) fn cancels(&self) -> bool {
        self.proxy.module(self.ask.class).cancels
    }

    fn admit(&self, mut permit: PermitGuard) {
        permit.sent();
        let mut held = self.held.lock();
        held.permit = Some(permit);
        held.place = None;
    }

    fn pass(&self, upload: &Upload) {
        if let Some(permit) = &mut self.held.lock().permit {
            permit.kept_before(upload.waited());
            permit.turn(Stage::Asked);
        }
        self.is_whole.store(true, Ordering::Relaxed);
        self.whole.notify_one();
    }
}

/// A body whose last piece waits for a permit.
pub(crate) struct Withheld {
    body: Throttled<Upload>,
    handover: Arc<Handover>,
    asking: Option<Asking>,
    last: Last,
}

/// Where its last piece is.
#[derive(Debug)]
enum Last {
    ToCome,
    /// Here; `None` is the mere end of a body whose length was not declared.
    Here(Option<Frame<Bytes>>),
    Gone,
}

impl Withheld {
    /// This body; it asks for its permit, if it has none yet, when it has come whole.
    pub(crate) fn new(body: Throttled<Upload>, handover: Arc<Handover>, asking: Option<Asking>) -> Withheld {
        Withheld { body, handover, asking, last: Last::ToCome }
    }
}

impl Body for Withheld {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            match &mut this.last {
                Last::Gone => return Pin::new(&mut this.body).poll_frame(context),
                Last::Here(last) => {
                    if let Some(asking) = &mut this.asking {
                        let verdict = ready!(asking.as_mut().poll(context));
                        this.asking = None;
                        match verdict {
                            Ok(permit) => this.handover.admit(permit),
                            Err(shed) => return Poll::Ready(Some(Err(BodyError::Shed(shed)))),
                        }
                    }
                    let last = last.take();
                    this.last = Last::Gone;
                    this.handover.pass(this.body.body());
                    return Poll::Ready(last.map(Ok));
                }
                Last::ToCome => match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                    None => this.last = Last::Here(None),
                    Some(Ok(frame)) if frame.is_trailers() || this.body.is_end_stream() => {
                        this.last = Last::Here(Some(frame));
                    }
                    frame => return Poll::Ready(frame),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.last, Last::Gone) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.body.size_hint();
        let Last::Here(Some(last)) = &self.last else { return left };
        let mut hint = SizeHint::new();
        let length = last.data_ref().map_or(0, |data| data.len() as u64);
        hint.set_lower(left.lower() + length);
        if let Some(upper) = left.upper() {
            hint.set_upper(upper + length);
        }
        hint
    }
}
