//! The way of what is held open: WebSockets, and log tails above all.

use super::{RequestContext, origin_form};
use crate::client_body::ClientBody;
use crate::coalesce::Key;
use crate::coalesce::Question;
use crate::headers::strip_hop_by_hop;
use crate::log_fanout::{self, Follower, Found, Lead, LogFanout, Place, Reopen};
use crate::permit_guard::PermitGuard;
use crate::reject;
use crate::response_body::Body;
use crate::routing::Routing;
use crate::state::ProxyState;
use crate::throttle::Throttle;
use crate::tunnel::{self, Shaken};
use crate::upstream::UpstreamError;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use rayguard_core::admission::controller::Ask;
use rayguard_core::policy::{ClassId, Kind};
use rayguard_core::request::catalogue::Surface;
use rayguard_core::traffic_trace::Ending;
use rayguard_core::usage::Verdict;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a client waits for Ray's answer to a handshake where its class has no time-out.
const HANDSHAKE_MAX: Duration = Duration::from_secs(60);

/// A follower that finds no tail to go on at looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The largest answer that declines a handshake and is passed on, in bytes.
const ANSWER_MAX: usize = 8 << 20;

impl RequestContext {
    /// The way of a log tail: read with others where it may be, through a tunnel where not.
    pub(super) async fn tail(&self, mut parts: Parts, client: OnUpgrade) -> Response<Body> {
        self.tell_client(&mut parts.headers);
        // An application's WebSocket is no log: each client has its own.
        let shares = self.coalesce().is_some() && self.routing.surface == Surface::Dashboard;
        let key = log_fanout::key(&parts, &Question::of(&self.routing, self.known.matched.route, &parts.uri));
        let Some(key) = key.filter(|_| shares).map(|key| key.at(&self.routing)) else {
            return self.tunnel(parts, client).await;
        };
        let (follows, tail) = match self.proxy.tails.find(key) {
            Found::Full => return self.tunnel(parts, client).await,
            Found::LogFanout(tail) => (true, tail),
            Found::Lead(lead) => {
                log_fanout::plain(&mut parts);
                match self.lead(&parts, lead).await {
                    Ok(tail) => (false, tail),
                    Err(answer) => return answer,
                }
            }
        };
        let joined = tokio::time::timeout(self.handshake_max(), tail.join(Place::default())).await;
        let follower = match joined {
            Ok(Some(follower)) => follower,
            Ok(None) => return self.tunnel(parts, client).await,
            Err(_) => return self.late(),
        };
        if follows {
            self.count(Verdict::Shared, self.proxy.clock.now());
            self.proxy.record(self.known.ask, Ending::Shared, self.since, (0, 0));
        }
        let welcome = log_fanout::welcome(&parts);
        log_fanout::plain(&mut parts);
        let again = Again { opener: self.opener(), ask: self.known.ask, key, parts };
        self.proxy.tasks.spawn(log_fanout::relay(client, follower, again, self.proxy.tasks.clone()));
        welcome
    }

    /// Opens a tail that others may read too.
    async fn lead(&self, parts: &Parts, lead: Lead) -> Result<Arc<LogFanout>, Response<Body>> {
        let permit = self.admit(self.proxy.clock.now()).await?;
        let tail = lead.tail();
        let told = self.opener().lead(parts.clone(), permit, self.known.matched.class, lead);
        self.opened(told).await?;
        Ok(tail)
    }

    /// The way of any other WebSocket: admit, hand-shake, join the two ends.
    async fn tunnel(&self, parts: Parts, client: OnUpgrade) -> Response<Body> {
        let permit = match self.admit(self.proxy.clock.now()).await {
            Ok(permit) => permit,
            Err(refusal) => return refusal,
        };
        let is_tail = self.class().kind == Kind::Held;
        let (opener, tasks) = (self.opener(), self.proxy.tasks.clone());
        let throttle = opener.throttle(self.known.matched.class);
        let told = opener.open(parts, permit, move |ray, permit| {
            tunnel::connect(client, ray, permit, throttle, is_tail, tasks)
        });
        let response = match self.opened(told).await {
            Ok(response) => response,
            Err(answer) => return answer,
        };
        let (mut parts, _) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        parts.headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
        Response::from_parts(parts, Body::empty())
    }

    /// Waits for Ray's answer to a handshake; the error is what to answer instead.
    async fn opened(&self, told: oneshot::Receiver<Opened>) -> Result<Response<Incoming>, Response<Body>> {
        match tokio::time::timeout(self.handshake_max(), told).await {
            Ok(Ok(Opened::Taken(response))) => Ok(response),
            Ok(Ok(Opened::Declined(declined))) => {
                let (response, mut permit) = *declined;
                // Ray's answer is short, and passed on as it is.
                let (mut parts, body) = response.into_parts();
                strip_hop_by_hop(&mut parts.headers);
                let body =
                    Limited::new(body, ANSWER_MAX).collect().await.map(http_body_util::Collected::to_bytes);
                permit.served();
                Err(Response::from_parts(parts, body.map_or_else(|_| Body::empty(), Body::full)))
            }
            Ok(Ok(Opened::Failed(error))) => {
                Err(reject::upstream(self.known.error_format, &error, &self.id, &self.contact()))
            }
            Ok(Err(_)) | Err(_) => Err(self.late()),
        }
    }

    fn handshake_max(&self) -> Duration {
        let bound = self.class().timeout.unwrap_or(HANDSHAKE_MAX).min(self.peer.abandoned_max);
        if self.shadow { self.peer.abandoned_max } else { bound }
    }

    fn late(&self) -> Response<Body> {
        self.note_late();
        reject::timeout(
            self.known.error_format,
            &self.class().name,
            self.handshake_max(),
            &self.id,
            &self.contact(),
        )
    }

    fn opener(&self) -> Opener {
        Opener {
            proxy: Arc::clone(&self.proxy),
            routing: Arc::clone(&self.routing),
            abandoned_max: self.peer.abandoned_max,
        }
    }
}

/// How Ray answered a handshake.
enum Opened {
    Taken(Response<Incoming>),
    Declined(Box<(Response<Incoming>, PermitGuard)>),
    Failed(UpstreamError),
}

/// Opens WebSockets at Ray for clients that may leave meanwhile.
#[derive(Clone)]
struct Opener {
    proxy: Arc<ProxyState>,
    routing: Arc<Routing>,
    abandoned_max: Duration,
}

impl Opener {
    /// Shakes hands with Ray in a task of its own, then does what is to be done with the open end. Ray does not
    /// notice that a client has left, so neither does this: the permit is held until Ray has declined or what it
    /// opened has ended; for `abandoned_max` at most if Ray never answers.
    fn open<F: Future<Output = ()> + Send + 'static>(
        &self,
        parts: Parts,
        permit: PermitGuard,
        then: impl FnOnce(OnUpgrade, PermitGuard) -> F + Send + 'static,
    ) -> oneshot::Receiver<Opened> {
        let (mut tell, told) = oneshot::channel();
        let (upstream, tasks) = (Arc::clone(&self.routing.upstream), self.proxy.tasks.clone());
        let (mut request, bound) = (Request::from_parts(parts, ClientBody::Empty), self.abandoned_max);
        origin_form(&mut request);
        self.proxy.tasks.spawn(async move {
            let no_client_waits = async {
                tell.closed().await;
                tasks.closed().await;
            };
            let shaken = tokio::select! {
                shaken = tokio::time::timeout(bound, tunnel::shake_hands(&upstream, request, permit)) => shaken,
                () = no_client_waits => return,
            };
            // The client that asked may have left.
            match shaken {
                Ok(Ok(Shaken::Open(response, ray, mut permit))) => {
                    permit.opened();
                    drop(tell.send(Opened::Taken(response)));
                    then(ray, permit).await;
                }
                Ok(Ok(Shaken::Declined(response, permit))) => {
                    drop(tell.send(Opened::Declined(Box::new((response, permit)))));
                }
                Ok(Err(error)) => drop(tell.send(Opened::Failed(error))),
                Err(_) => {}
            }
        });
        told
    }

    /// The same for a tail that others may follow.
    fn lead(
        &self,
        parts: Parts,
        permit: PermitGuard,
        class: ClassId,
        lead: Lead,
    ) -> oneshot::Receiver<Opened> {
        let (throttle, tasks) = (self.throttle(class), self.proxy.tasks.clone());
        self.open(parts, permit, move |ray, permit| async move {
            tokio::select! {
                () = lead.open(ray, permit, throttle) => {}
                () = tasks.closed() => {}
            }
        })
    }

    fn throttle(&self, class: ClassId) -> Option<Throttle> {
        let (_, flow) = self.proxy.conduct(class);
        flow.map(|flow| Throttle::new(flow, self.proxy.clock))
    }
}

/// What a follower needs to go on at another tail.
struct Again {
    opener: Opener,
    ask: Ask,
    key: Key,
    parts: Parts,
}

impl Reopen for Again {
    /// Waits for as long as there is no tail to be had: a follower has been let in, and is not sent away for being
    /// slow.
    async fn reopen(&self, place: Place) -> Option<Follower> {
        let proxy = &self.opener.proxy;
        loop {
            let tail = match proxy.tails.find_from(self.key, place) {
                Found::LogFanout(tail) => Some(tail),
                Found::Lead(lead) => match proxy.admit(self.ask, proxy.clock.now()).await {
                    Ok(permit) => {
                        let tail = lead.tail();
                        let told = self.opener.lead(self.parts.clone(), permit, self.ask.class, lead);
                        match told.await {
                            Ok(Opened::Taken(_)) => Some(tail),
                            // The log is gone, or Ray is.
                            Ok(Opened::Declined(..) | Opened::Failed(_)) | Err(_) => return None,
                        }
                    }
                    Err(_) => None,
                },
                Found::Full => None,
            };
            match tail {
                Some(tail) => {
                    if let Some(follower) = tail.join(place).await {
                        return Some(follower);
                    }
                }
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}
