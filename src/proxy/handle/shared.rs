//! The shared way: one request goes to Ray, and all equal requests get its answer.

use super::{RequestContext, origin_form};
use crate::client_body::ClientBody;
use crate::coalesce::{self, Failure, Found, Key, Lead, Told};
use crate::forward::{self, Exchange, Sent};
use crate::headers::strip_hop_by_hop;
use crate::permit_guard::PermitGuard;
use crate::reject;
use crate::response_body::Body;
use crate::response_policy::ResponsePolicy;
use crate::shared_answer::{self, Share, SharedAnswer};
use crate::single_flight::Answer as _;
use crate::state::ProxyState;
use crate::upstream::RayBody;
use http::header::{HeaderName, HeaderValue};
use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use rayguard_core::admission::controller::Stage;
use rayguard_core::request::catalogue::Surface;
use rayguard_core::time::Time;
use rayguard_core::traffic_trace::Ending;
use rayguard_core::usage::Verdict;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Serve answers a request with the id that it came with.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An answer of a known length up to this is told of when it is there whole: should it break off, that can
/// still be said.
const SHORT_MAX: u64 = 64 << 10;

/// How a shared fetch ends for its leader.
enum Fetched {
    /// It shares the answer with others.
    Share(Share),
    /// The answer is its own.
    Own(Response<Body>),
    Failed(Failure),
}

/// What of a request its own copy of a shared answer depends on.
struct Asked {
    http2: bool,
    id: Option<HeaderValue>,
}

impl Asked {
    fn of(request: &Request<ClientBody>) -> Asked {
        Asked { http2: request.version() == Version::HTTP_2, id: request.headers().get(REQUEST_ID).cloned() }
    }
}

impl RequestContext {
    /// The shared way: one leads, the others wait for its answer.
    pub(super) async fn share(&self, request: Box<Request<ClientBody>>, key: Key) -> Response<Body> {
        let told = match self.find(key, self.proxy.clock.now()) {
            Found::Lead(lead) => return self.fetch(request, lead, Duration::MAX).await,
            Found::Full => Told::Alone,
            Found::Share(share) => Told::Share(share),
            Found::Follow(follower) => follower.await,
        };
        match told {
            Told::Share(share) => {
                self.note_shared(share.length());
                self.respond(share, Asked::of(&request))
            }
            Told::Failed(failure) => {
                self.note_shared(0);
                self.explain(&failure, false)
            }
            Told::Lead(lead) => {
                // It has waited beside the leader that was shed: it does not wait that time again.
                let waited = self.proxy.clock.now().since(self.since);
                let patience = self.class().queue.wait_max.saturating_sub(waited);
                self.fetch(request, lead, patience).await
            }
            Told::Alone => self.pass(request, self.proxy.clock.now()).await,
        }
    }

    /// What there is of this question that it need not wait for longer than in its own turn.
    fn find(&self, key: Key, now: Time) -> Found {
        match self.proxy.coalescer.find(key, now) {
            Found::Follow(follower) if follower.may_be_overtaken() && self.comes_first(now) => {
                drop(follower);
                self.proxy.coalescer.find(key.among_known(), now)
            }
            found => found,
        }
    }

    fn comes_first(&self, now: Time) -> bool {
        self.proxy.admission.comes_first(self.known.ask, now)
    }

    fn note_shared(&self, bytes: u64) {
        self.count(Verdict::Shared, self.proxy.clock.now());
        self.proxy.record(self.known.ask, Ending::Shared, self.since, (0, bytes));
    }

    fn respond(&self, share: Share, asked: Asked) -> Response<Body> {
        let mut response = Body::shared(share, &self.response_policy(), asked.http2);
        if let (Some(echo), Some(id)) = (response.headers_mut().get_mut(REQUEST_ID), asked.id) {
            *echo = id;
        }
        response
    }

    /// Why there is no answer.
    fn explain(&self, failure: &Failure, leads: bool) -> Response<Body> {
        let class = &self.class().name;
        match failure {
            Failure::Upstream(error) => {
                reject::upstream(self.known.error_format, error, &self.id, &self.contact())
            }
            Failure::TimedOut(bound) if leads => {
                self.note_late();
                reject::timeout(self.known.error_format, class, *bound, &self.id, &self.contact())
            }
            Failure::TimedOut(bound) => {
                reject::timeout_of_equal(self.known.error_format, class, *bound, &self.id)
            }
            Failure::BrokeOff(error) => {
                reject::broke_off(self.known.error_format, error, &self.id, &self.contact())
            }
        }
    }

    /// Admits and fetches for all who share.
    async fn fetch(
        &self,
        mut request: Box<Request<ClientBody>>,
        lead: Lead,
        patience: Duration,
    ) -> Response<Body> {
        let now = self.proxy.clock.now();
        if self.comes_first(now) {
            lead.goes_first();
        }
        let permit = match self.admit_within(patience, now).await {
            Ok(permit) => permit,
            Err(refusal) => return refusal, // the lead is dropped: the next in line leads
        };
        lead.goes_first();
        let (asked, cancels) = (Asked::of(&request), permit.cancels());
        self.tell_client(request.headers_mut());
        origin_form(&mut request);
        let exchange = forward::send(
            Arc::clone(&self.routing.upstream),
            request,
            None,
            permit,
            self.proxy.tasks.clone(),
            self.peer.abandoned_max,
        );
        let (leader, receiver) = oneshot::channel();
        let fetch = Fetch {
            proxy: Arc::clone(&self.proxy),
            surface: self.routing.surface,
            cancels,
            response_policy: self.response_policy(),
            ttl: self.coalesce().map_or(Duration::ZERO, |coalesce| coalesce.ttl),
            bound: self.timeout().unwrap_or(self.peer.abandoned_max),
            lead,
            leader,
        };
        // A task of its own: followers get their answer even if this client leaves, and so do all of them
        // while the proxy drains.
        self.proxy.tasks.spawn(fetch.run(exchange));
        match receiver.await {
            Ok(Fetched::Share(share)) => self.respond(share, asked),
            Ok(Fetched::Own(response)) => response,
            Ok(Fetched::Failed(failure)) => self.explain(&failure, true),
            Err(_) => reject::broke_off(
                self.known.error_format,
                &"the request to Ray was given up",
                &self.id,
                &self.contact(),
            ),
        }
    }
}

/// A request to Ray on behalf of all that are equal to it.
struct Fetch {
    proxy: Arc<ProxyState>,
    surface: Surface,
    /// Whether upstream stops working on a request that no client waits for.
    cancels: bool,
    response_policy: ResponsePolicy,
    ttl: Duration,
    /// For Ray to begin its answer.
    bound: Duration,
    lead: Lead,
    leader: oneshot::Sender<Fetched>,
}

impl Fetch {
    async fn run(mut self, mut exchange: Exchange<impl Future<Output = Sent> + Send + 'static>) {
        let bound = self.bound;
        let in_time = pin!(tokio::time::timeout(bound, &mut exchange));
        let answer = tokio::select! {
            biased;
            answer = in_time => answer,
            // The lead passes on if a follower has come at this moment.
            () = self.unwanted() => return,
        };
        match answer {
            Ok(Ok((response, permit))) => self.land(response, permit).await,
            Ok(Err(error)) => self.fail(Failure::Upstream(Arc::new(error))),
            Err(_) => {
                exchange.late();
                self.fail(Failure::TimedOut(bound));
            }
        }
    }

    /// Resolves once no client waits for the answer, where that is a reason to give it up: upstream then stops
    /// working on it, or the proxy drains. Otherwise the next client that asks can use it.
    async fn unwanted(&mut self) {
        if !self.cancels {
            self.proxy.tasks.closed().await;
        }
        self.leader.closed().await;
        poll_fn(|context| self.lead.poll_unawaited(context)).await;
    }

    /// All are told, together. The leader may be gone; its followers are not.
    fn fail(self, failure: Failure) {
        self.lead.fail(failure.clone());
        drop(self.leader.send(Fetched::Failed(failure)));
    }

    /// Hands the answer to all who wait, or to the leader alone if it cannot be shared.
    async fn land(self, response: Response<RayBody>, mut permit: PermitGuard) {
        permit.turn(Stage::Answered);
        let (mut head, body) = response.into_parts();
        strip_hop_by_hop(&mut head.headers);
        let length = body.size_hint().exact();
        let longest = coalesce::keeping(self.surface, &head.headers);
        let charge =
            longest.and_then(|_| self.proxy.coalescer.take(shared_answer::cost(&head.headers, length)));
        let (Some(longest), Some(charge)) = (longest, charge) else {
            self.lead.dissolve();
            let body = Body::forwarded(body, Some(permit), None, self.response_policy);
            drop(self.leader.send(Fetched::Own(Response::from_parts(head, body))));
            return;
        };
        // An error is shared with those who wait now, but not with those who come later.
        let keep = if head.status.is_success() { self.ttl.min(longest) } else { Duration::ZERO };
        let until = self.response_policy.clock.now() + keep;
        // No client is waited for here.
        let response_policy = ResponsePolicy { patience: None, ..self.response_policy.clone() };
        let (answer, rest) = match Body::forwarded(body, Some(permit), None, response_policy) {
            Body::Full(whole) => (SharedAnswer::whole(head, &whole.unwrap_or_default(), charge), None),
            body if length.is_some_and(|length| length <= SHORT_MAX) => match body.collect().await {
                Ok(whole) => (SharedAnswer::whole(head, &whole.to_bytes(), charge), None),
                Err(error) => return self.fail(Failure::BrokeOff(Arc::new(error))),
            },
            body => (SharedAnswer::begun(head, length, charge), Some(body)),
        };
        // A share for the leader before anybody can be told: it is read from the beginning.
        let own = answer.share();
        let kept = self.lead.land(answer.clone(), until).filter(|_| !keep.is_zero());
        if let Some(share) = own {
            drop(self.leader.send(Fetched::Share(share)));
        }
        if let Some(body) = rest {
            fill(&self.proxy, self.cancels, &answer, body).await;
        }
        if kept.is_some() && answer.is_whole() {
            tokio::select! {
                () = tokio::time::sleep_until(self.response_policy.clock.instant(until)) => {}
                () = self.proxy.tasks.closed() => {}
            }
        }
    }
}

/// Takes in what Ray sends; see [`Fetch::unwanted`] for when that is given up.
async fn fill(proxy: &ProxyState, cancels: bool, answer: &SharedAnswer, body: Body) {
    let unwanted = async {
        if !cancels {
            proxy.tasks.closed().await;
        }
        answer.unread().await;
    };
    tokio::select! {
        biased;
        () = answer.fill(body, || proxy.coalescer.make_room()) => {}
        () = unwanted => {}
    }
}
