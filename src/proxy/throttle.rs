//! A class's bandwidth, held at a body: pieces wait for their turn, and nothing is asked of the
//! sender while one waits. What the sender cannot get rid of it does not send, so a slow reader
//! or a low limit reaches back to Ray (or to the client that uploads) through TCP itself.
//!
//! Memory: one frame an exchange. See [`Flow`] for how turns are shared out.

use crate::clock::Clock;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use rayguard_core::admission::flow::{Flow, Turn};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// A limit may rise while an exchange waits: none sleeps longer than this without looking.
const LOOK: Duration = Duration::from_millis(250);

/// Lets data through at the pace of its class.
#[derive(Debug)]
pub struct Throttle {
    flow: Arc<Flow>,
    clock: Clock,
    /// What has come and not gone.
    held: Bytes,
    /// When the first so many bytes of it may go.
    turn: Option<(Turn, usize)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    /// A body's place in its class's flow.
    pub fn new(flow: Arc<Flow>, clock: Clock) -> Throttle {
        Throttle { flow, clock, held: Bytes::new(), turn: None, sleep: None }
    }

    /// Takes in what has come; whatever came before must have gone.
    fn hold(&mut self, data: Bytes) {
        debug_assert!(self.held.is_empty(), "one frame at a time");
        self.held = data;
    }

    /// The next piece once its turn has come; `None` when nothing is held.
    fn poll_pass(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.held.is_empty() {
            return Poll::Ready(None);
        }
        loop {
            let now = self.clock.now();
            let (turn, length) = *self.turn.get_or_insert_with(|| {
                let length = self.held.len().min(self.flow.piece());
                (self.flow.take(length, now), length)
            });
            let wait = self.flow.wait(turn, now);
            if wait.is_zero() {
                (self.turn, self.sleep) = (None, None);
                return Poll::Ready(Some(self.held.split_to(length)));
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait.min(LOOK))));
            ready!(sleep.as_mut().poll(context));
            self.sleep = None;
        }
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let length = bytes.min(self.flow.piece());
            let turn = self.flow.take(length, self.clock.now());
            loop {
                let wait = self.flow.wait(turn, self.clock.now());
                if wait.is_zero() {
                    break;
                }
                tokio::time::sleep(wait.min(LOOK)).await;
            }
            bytes -= length;
        }
    }
}

/// A body that keeps to its class's bandwidth, if the class has one.
#[derive(Debug)]
pub struct Throttled<B> {
    body: B,
    throttle: Option<Throttle>,
}

impl<B> Throttled<B> {
    /// This body; without a `flow` it passes as it comes.
    pub fn new(body: B, flow: Option<Arc<Flow>>, clock: Clock) -> Throttled<B> {
        Throttled { body, throttle: flow.map(|flow| Throttle::new(flow, clock)) }
    }

    /// The body itself.
    pub(crate) fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    /// The same, to look at.
    pub fn body(&self) -> &B {
        &self.body
    }

    /// How much has come and not gone.
    fn held(&self) -> usize {
        self.throttle.as_ref().map_or(0, |throttle| throttle.held.len())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Throttled<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(throttle) = &mut this.throttle
                && let Some(piece) = ready!(throttle.poll_pass(context))
            {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match (ready!(Pin::new(&mut this.body).poll_frame(context)), &mut this.throttle) {
                (Some(Ok(frame)), Some(throttle)) if frame.is_data() => {
                    throttle.hold(frame.into_data().unwrap_or_default());
                }
                (frame, _) => return Poll::Ready(frame),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held() == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, held) = (self.body.size_hint(), self.held() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(left.lower() + held);
        if let Some(upper) = left.upper() {
            hint.set_upper(upper + held);
        }
        hint
    }
}
