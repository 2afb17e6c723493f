//! The shared way: one asks Ray, all who ask the same get its answer.

use super::{Passage, origin_form};
use crate::core::census::Verdict;
use crate::core::recording::Ending;
use crate::proxy::body::{Body, ClientBody, RayBody, Way};
use crate::proxy::coalesce::{ANSWER_MAX, Joined, Key, Lead, Shared};
use crate::proxy::forward::{self, Answer};
use crate::proxy::headers::strip_hop_by_hop;
use crate::proxy::reject;
use crate::proxy::slot::Slot;
use crate::proxy::upstream::UpstreamError;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;

impl Passage {
    /// The shared way: one leads, the others wait for its answer.
    pub(super) async fn share(&self, parts: Parts, key: Key) -> Response<Body> {
        match self.door.coalescer.join(key, || self.door.clock.now()).await {
            Joined::Answered(shared) => {
                self.count(Verdict::Shared, self.door.clock.now());
                let bytes = (0, shared.body.len() as u64);
                self.door.record(self.ask(), Ending::Shared, self.since, bytes);
                shared_response(&shared)
            }
            Joined::Alone => self.pass(parts, ClientBody::Empty, self.door.clock.now()).await,
            Joined::Lead(lead) => self.fetch(parts, lead).await,
        }
    }

    /// Admits and fetches for all who share; small answers are handed to everyone.
    async fn fetch(&self, mut parts: Parts, lead: Lead) -> Response<Body> {
        let slot = match self.admit(self.door.clock.now()).await {
            Ok(slot) => slot,
            Err(refusal) => return refusal, // the lead is dropped: the next in line leads
        };
        self.tell_client(&mut parts.headers);
        // A task of its own: followers get their answer even if this client leaves.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let exchange = forward::send(
            Arc::clone(&self.entrance.upstream),
            Request::from_parts(origin_form(parts), ClientBody::Empty),
            slot,
            self.door.tasks.clone(),
            self.peer.abandoned_max,
        );
        let way = self.way();
        let ttl = self.coalesce().map_or(Duration::ZERO, |coalesce| coalesce.ttl);
        let bound = self.timeout().unwrap_or(self.peer.abandoned_max);
        self.door.tasks.spawn_until_closed(async move {
            let answer = tokio::time::timeout(bound, exchange).await;
            // The leader may be gone; its followers are not.
            drop(sender.send(match answer {
                Ok(answer) => Some(land(way, lead, ttl, answer).await),
                Err(_) => None,
            }));
        });
        match receiver.await {
            Ok(Some(Landed::Shared(shared))) => shared_response(&shared),
            Ok(Some(Landed::Alone(response))) => response,
            Ok(Some(Landed::Failed(error))) => reject::upstream(self.tongue, &error, &self.id),
            Ok(None) | Err(_) => reject::timeout(self.tongue, &self.class().name, bound, &self.id),
        }
    }
}

/// How a shared fetch ended for its leader.
enum Landed {
    Shared(Arc<Shared>),
    Alone(Response<Body>),
    Failed(UpstreamError),
}

/// Ray's answer on its way back.
fn stream(response: Response<RayBody>, slot: Slot, way: Way) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    Response::from_parts(parts, Body::streamed(body, slot, None, way))
}

/// Collects an answer and hands it to all who wait; one too large goes to the leader alone.
async fn land(way: Way, lead: Lead, ttl: Duration, answer: Answer) -> Landed {
    let (response, slot) = match answer {
        Ok(answer) => answer,
        Err(error) => return Landed::Failed(error), // dropping the lead passes it on
    };
    let declared = hyper::body::Body::size_hint(response.body()).exact();
    if declared.is_none_or(|length| length > ANSWER_MAX as u64) {
        lead.dissolve();
        return Landed::Alone(stream(response, slot, way));
    }
    // Nobody's reading is awaited here.
    let clock = way.clock;
    let (parts, body) = stream(response, slot, Way { patience: None, ..way }).into_parts();
    let Ok(collected) = body.collect().await else {
        let mut broken = Response::new(Body::full("rayguard: Ray broke off in the middle of its answer.\n"));
        *broken.status_mut() = StatusCode::BAD_GATEWAY;
        return Landed::Alone(broken);
    };
    let shared = Shared { status: parts.status, headers: parts.headers, body: collected.to_bytes() };
    // An error is shared with those who wait now, but not with those who come later.
    let ttl = if parts.status.is_success() { ttl } else { Duration::ZERO };
    Landed::Shared(lead.land(shared, ttl, clock.now()))
}

fn shared_response(shared: &Shared) -> Response<Body> {
    let mut response = Response::new(Body::full(shared.body.clone()));
    *response.status_mut() = shared.status;
    *response.headers_mut() = shared.headers.clone();
    response
}
