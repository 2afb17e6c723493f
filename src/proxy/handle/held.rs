//! The way of what is held open: WebSockets, and log tails above all.

use super::{Passage, origin_form};
use crate::core::census::Verdict;
use crate::core::policy::Kind;
use crate::core::recording::Ending;
use crate::core::request::catalogue::Surface;
use crate::proxy::body::{Body, ClientBody, Way};
use crate::proxy::headers::strip_hop_by_hop;
use crate::proxy::reject;
use crate::proxy::slot::Slot;
use crate::proxy::tail::{self, Found, Lead as TailLead, Tail};
use crate::proxy::throttle::Throttle;
use crate::proxy::tunnel::{self, Shaken};
use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;

/// The largest answer that declines a handshake and is passed on, in bytes.
const ANSWER_MAX: usize = 8 << 20;

impl Passage {
    /// The way of a log tail: read with others where it may be, through a tunnel where not.
    pub(super) async fn tail(&self, mut parts: Parts, client: OnUpgrade) -> Response<Body> {
        self.tell_client(&mut parts.headers);
        // An application's WebSocket is no log: each caller has its own.
        let shares = self.coalesce().is_some() && self.entrance.surface == Surface::Dashboard;
        let key = tail::key(&parts).filter(|_| shares).map(|key| key.at(&self.entrance));
        let found = key.map_or(Found::Full, |key| self.door.tails.find(key));
        let (follows, tail) = match found {
            Found::Full => return self.tunnel(parts, client).await,
            Found::Tail(tail) => (true, tail),
            Found::Lead(lead) => {
                tail::plain(&mut parts);
                match self.lead(&parts, lead).await {
                    Ok(tail) => (false, tail),
                    Err(answer) => return answer,
                }
            }
        };
        let Some(reader) = tail.join().await else { return self.tunnel(parts, client).await };
        if follows {
            self.count(Verdict::Shared, self.door.clock.now());
            self.door.record(self.ask(), Ending::Shared, self.since, (0, 0));
        }
        self.door.tasks.spawn(tail::relay(client, reader, self.door.tasks.clone()));
        tail::welcome(&parts)
    }

    /// Opens a tail that others may read too.
    async fn lead(&self, parts: &Parts, lead: TailLead) -> Result<Arc<Tail>, Response<Body>> {
        let slot = self.admit(self.door.clock.now()).await?;
        let (_, ray, slot) = self.shake_hands(parts.clone(), slot).await?;
        let (tail, pump) = lead.open(ray, slot, self.throttle());
        self.door.tasks.spawn_until_closed(pump);
        Ok(tail)
    }

    /// The way of any other WebSocket: admit, hand-shake, join the two ends.
    async fn tunnel(&self, parts: Parts, client: OnUpgrade) -> Response<Body> {
        let shaken = match self.admit(self.door.clock.now()).await {
            Ok(slot) => self.shake_hands(parts, slot).await,
            Err(refusal) => return refusal,
        };
        let (response, ray, slot) = match shaken {
            Ok(shaken) => shaken,
            Err(answer) => return answer,
        };
        let is_tail = self.class().kind == Kind::Held;
        let joined = tunnel::connect(client, ray, slot, self.throttle(), is_tail, self.door.tasks.clone());
        self.door.tasks.spawn(joined);
        let (mut parts, _) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        parts.headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
        Response::from_parts(parts, Body::empty())
    }

    fn throttle(&self) -> Option<Throttle> {
        let Way { clock, flow, .. } = self.way();
        flow.map(|flow| Throttle::new(flow, clock))
    }

    /// Asks Ray for a WebSocket; the error is what to answer instead.
    async fn shake_hands(
        &self,
        parts: Parts,
        slot: Slot,
    ) -> Result<(Response<Incoming>, OnUpgrade, Slot), Response<Body>> {
        let request = Request::from_parts(origin_form(parts), ClientBody::Empty);
        match tunnel::shake_hands(&self.entrance.upstream, request, slot).await {
            Ok(Shaken::Open(response, ray, slot)) => Ok((response, ray, slot)),
            Ok(Shaken::Declined(response, mut slot)) => {
                // Ray's answer is short, and passed on as it is.
                let (mut parts, body) = response.into_parts();
                strip_hop_by_hop(&mut parts.headers);
                let body =
                    Limited::new(body, ANSWER_MAX).collect().await.map(http_body_util::Collected::to_bytes);
                slot.served();
                Err(Response::from_parts(parts, body.map_or_else(|_| Body::empty(), Body::full)))
            }
            Err(error) => Err(reject::upstream(self.tongue, &error, &self.id)),
        }
    }
}
