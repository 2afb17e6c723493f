//! Sending an admitted request to Ray, and what happens when its client does not wait.
//!
//! Serve stops working on a request whose connection is closed, so a client that leaves, or whose time
//! is up, closes it: the upstream call is dropped with its permit. Ray's dashboard does not stop,
//! so neither does the exchange: the upstream call moves to a task of its own and holds its permit until
//! Ray has answered or a bound has passed. Abandoned work stays counted and cannot pile up behind the
//! proxy's back. Which of the two a module does, the catalogue says ([`PermitGuard::cancels`]).

use crate::body::{ClientBody, RayBody};
use crate::permit_guard::PermitGuard;
use crate::tasks::Tasks;
use crate::upload::Handover;
use crate::upstream::{Upstream, UpstreamError};
use http::{Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// An answer and the permit it holds.
pub(crate) type Answer = Result<(Response<RayBody>, PermitGuard), UpstreamError>;

/// Sends the request; the permit rides along. Once nobody waits for it, and unless upstream then cancels it,
/// the exchange holds it for `abandoned_max` at most.
pub(crate) fn send(
    upstream: Arc<Upstream>,
    request: Box<Request<ClientBody>>,
    mut permit: PermitGuard,
    tasks: Tasks,
    abandoned_max: Duration,
) -> Exchange<impl Future<Output = Answer> + Send + 'static> {
    let outlives = (!permit.cancels()).then_some((tasks, abandoned_max));
    permit.sent();
    send_with(upstream, request, move || permit, outlives)
}

/// The same for an upload, whose permit comes with its last piece. Before that Ray has nothing to work
/// on, and nothing goes on without the client.
pub(crate) fn send_upload(
    upstream: Arc<Upstream>,
    request: Box<Request<ClientBody>>,
    handover: &Arc<Handover>,
    tasks: Tasks,
    abandoned_max: Duration,
) -> Exchange<impl Future<Output = Answer> + Send + 'static> {
    let outlives = (!handover.cancels()).then_some((tasks, abandoned_max));
    let held = Arc::clone(handover);
    let mut exchange = send_with(upstream, request, move || held.take(), outlives);
    exchange.upload = Some(Arc::clone(handover));
    exchange
}

fn send_with(
    upstream: Arc<Upstream>,
    request: Box<Request<ClientBody>>,
    permit: impl FnOnce() -> PermitGuard + Send + 'static,
    outlives: Option<(Tasks, Duration)>,
) -> Exchange<impl Future<Output = Answer> + Send + 'static> {
    let exchange = async move {
        match upstream.send(request).await {
            Ok(response) => {
                let mut permit = permit();
                if response.status().is_server_error() {
                    permit.failed();
                }
                Ok((response, permit))
            }
            // The client's doing is not Ray's failure: the permit stays marked as abandoned.
            Err(error @ UpstreamError::Client(_)) => Err(error),
            Err(error) => {
                permit().failed();
                Err(error)
            }
        }
    };
    Exchange { running: Some(Box::pin(exchange)), upload: None, outlives }
}

/// An upstream call.
pub(crate) struct Exchange<F: Future<Output = Answer> + Send + 'static> {
    running: Option<Pin<Box<F>>>,
    upload: Option<Arc<Handover>>,
    /// Where it goes on when nobody waits for it any more, and for how long at most.
    outlives: Option<(Tasks, Duration)>,
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
        let asked = self.upload.as_ref().is_none_or(|upload| upload.is_whole());
        let outlives = self.outlives.take().filter(|_| asked);
        let (Some(running), Some((tasks, bound))) = (self.running.take(), outlives) else {
            return;
        };
        // Outside a runtime (the very end of the process) there is nothing left to protect.
        if tokio::runtime::Handle::try_current().is_ok() {
            tasks.spawn_until_closed(async move {
                // The answer and its permit are dropped here, when Ray is done.
                let _ = tokio::time::timeout(bound, running).await;
            });
        }
    }
}
