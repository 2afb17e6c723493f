//! Sending an admitted request to Ray, and what happens when its client does not wait.
//!
//! Serve stops working on a request whose connection is closed, so a client that leaves, or whose time
//! is up, closes it: the upstream call is dropped with its permit. Ray's dashboard does not stop,
//! so neither does the exchange: the upstream call moves to a task of its own and holds its permit until
//! Ray has answered or a bound has passed. Abandoned work stays counted and cannot pile up behind the
//! proxy's back. Which of the two a module does, the catalogue says ([`PermitGuard::cancels`]).

use crate::client_body::ClientBody;
use crate::h1_connection::SentHead;
use crate::permit_guard::PermitGuard;
use crate::tasks::Tasks;
use crate::upload::Handover;
use crate::upstream::RayBody;
use crate::upstream::{Upstream, UpstreamError};
use http::{Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// An answer and the permit it holds.
pub(crate) type Answer = Result<(Response<RayBody>, PermitGuard), UpstreamError>;

/// What upstream said.
pub(crate) type Sent = Result<Response<RayBody>, UpstreamError>;

/// Sends the request, which may repeat one whose head is in `sent_head`; the exchange holds the permit. Once no
/// client waits for the answer, it holds the permit for `abandoned_max` at most, unless upstream then cancels
/// the request.
pub(crate) fn send(
    upstream: Arc<Upstream>,
    request: Box<Request<ClientBody>>,
    sent_head: Option<Arc<SentHead>>,
    mut permit: PermitGuard,
    tasks: Tasks,
    abandoned_max: Duration,
) -> Exchange<impl Future<Output = Sent> + Send + 'static> {
    let outlives = (!permit.cancels()).then_some((tasks, abandoned_max));
    permit.sent();
    send_with(upstream, request, sent_head, Held::Permit(permit), outlives)
}

/// The same for an upload, whose permit comes with its last piece. Before that Ray has nothing to work
/// on, and nothing goes on without the client.
pub(crate) fn send_upload(
    upstream: Arc<Upstream>,
    request: Box<Request<ClientBody>>,
    handover: &Arc<Handover>,
    tasks: Tasks,
    abandoned_max: Duration,
) -> Exchange<impl Future<Output = Sent> + Send + 'static> {
    let outlives = (!handover.cancels()).then_some((tasks, abandoned_max));
    send_with(upstream, request, None, Held::Upload(Arc::clone(handover)), outlives)
}

fn send_with(
    upstream: Arc<Upstream>,
    request: Box<Request<ClientBody>>,
    sent_head: Option<Arc<SentHead>>,
    held: Held,
    outlives: Option<(Tasks, Duration)>,
) -> Exchange<impl Future<Output = Sent> + Send + 'static> {
    let running = Box::pin(async move { upstream.send(request, sent_head).await });
    Exchange { running: Some((running, held)), outlives, late: false }
}

/// What an upstream call holds.
enum Held {
    Permit(PermitGuard),
    Upload(Arc<Handover>),
}

impl Held {
    fn permit(self) -> PermitGuard {
        match self {
            Held::Permit(permit) => permit,
            Held::Upload(handover) => handover.take(),
        }
    }

    /// The answer with its permit. A request whose client was told that Ray took too long has failed already, and
    /// is not counted as failed twice.
    fn settle(self, sent: Sent, late: bool) -> Answer {
        match sent {
            Ok(response) => {
                let mut permit = self.permit();
                if response.status().is_server_error() && !late {
                    permit.failed();
                }
                Ok((response, permit))
            }
            // The client's doing is not Ray's failure: the permit stays marked as abandoned.
            Err(error @ UpstreamError::Client(_)) => Err(error),
            Err(error) => {
                if !late {
                    self.permit().failed();
                }
                Err(error)
            }
        }
    }
}

/// An upstream call.
pub(crate) struct Exchange<F: Future<Output = Sent> + Send + 'static> {
    running: Option<(Pin<Box<F>>, Held)>,
    /// Where it goes on when no client waits for it any more, and for how long at most.
    outlives: Option<(Tasks, Duration)>,
    /// Its client was told that Ray took too long.
    late: bool,
}

impl<F: Future<Output = Sent> + Send + 'static> Exchange<F> {
    /// No client waits for it any more, since it took too long.
    pub(crate) fn late(&mut self) {
        self.late = true;
    }
}

impl<F: Future<Output = Sent> + Send + 'static> Future for Exchange<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let Some((running, _)) = self.running.as_mut() else { return Poll::Pending };
        let Poll::Ready(sent) = running.as_mut().poll(context) else { return Poll::Pending };
        match self.running.take() {
            Some((_, held)) => Poll::Ready(held.settle(sent, false)),
            None => Poll::Pending,
        }
    }
}

impl<F: Future<Output = Sent> + Send + 'static> Drop for Exchange<F> {
    fn drop(&mut self) {
        let Some((running, held)) = self.running.take() else { return };
        let asked = if let Held::Upload(upload) = &held { upload.is_whole() } else { true };
        let outlives = self.outlives.take().filter(|_| asked);
        let (Some((tasks, bound)), late) = (outlives, self.late) else { return };
        // Outside a runtime (the very end of the process) there is nothing left to protect.
        if tokio::runtime::Handle::try_current().is_ok() {
            tasks.spawn_until_closed(async move {
                // The answer and its permit are dropped here, when Ray is done.
                if let Ok(sent) = tokio::time::timeout(bound, running).await {
                    drop(held.settle(sent, late));
                }
            });
        }
    }
}
