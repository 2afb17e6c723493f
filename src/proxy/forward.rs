//! Sending an admitted request to Ray, and what happens when its client does not wait.
//!
//! Ray does not stop working when a client leaves, so neither does the exchange: if the door's
//! future is dropped (the client closed its connection) or its time is up, the upstream call
//! moves to a task of its own and holds its ticket until Ray has answered or a bound has
//! passed. Abandoned work stays counted and cannot pile up behind the door's back.

use crate::proxy::body::{ClientBody, RayBody};
use crate::proxy::slot::Slot;
use crate::proxy::upstream::{Upstream, UpstreamError};
use crate::runtime::tasks::Tasks;
use http::{Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// An answer and the slot it holds.
pub type Answer = Result<(Response<RayBody>, Slot), UpstreamError>;

/// Sends the request; the slot rides along. Once nobody waits for it, the exchange holds it for
/// `abandoned_max` at most.
pub fn send(
    upstream: Arc<Upstream>,
    request: Request<ClientBody>,
    mut slot: Slot,
    tasks: Tasks,
    abandoned_max: Duration,
) -> Exchange<impl Future<Output = Answer> + Send + 'static> {
    let exchange = async move {
        slot.sent();
        match upstream.send(request).await {
            Ok(response) => {
                if response.status().is_server_error() {
                    slot.failed();
                }
                Ok((response, slot))
            }
            // The client's doing is not Ray's failure: the slot stays marked as abandoned.
            Err(error @ UpstreamError::Client(_)) => Err(error),
            Err(error) => {
                slot.failed();
                Err(error)
            }
        }
    };
    Exchange { running: Some(Box::pin(exchange)), tasks, abandoned_max }
}

/// An upstream call that outlives whoever waits for it.
pub struct Exchange<F: Future<Output = Answer> + Send + 'static> {
    running: Option<Pin<Box<F>>>,
    tasks: Tasks,
    abandoned_max: Duration,
}

impl<F: Future<Output = Answer> + Send + 'static> Future for Exchange<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let Some(running) = self.running.as_mut() else { return Poll::Pending };
        let answer = running.as_mut().poll(context);
        if answer.is_ready() {
            self.running = None;
        }
        answer
    }
}

impl<F: Future<Output = Answer> + Send + 'static> Drop for Exchange<F> {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            // Outside a runtime (the very end of the process) there is nothing left to protect.
            let bound = self.abandoned_max;
            if tokio::runtime::Handle::try_current().is_ok() {
                self.tasks.spawn_until_closed(async move {
                    // The answer and its slot are dropped here, when Ray is done.
                    let _ = tokio::time::timeout(bound, running).await;
                });
            }
        }
    }
}
