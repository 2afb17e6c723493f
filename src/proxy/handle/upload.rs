//! The way of a request whose body is too long to be read whole beforehand.

use super::RequestContext;
use crate::client_body::{ClientBody, Pace, Upload};
use crate::forward;
use crate::permit_guard::PermitGuard;
use crate::response_body::Body;
use crate::upload::{Asking, Handover, Withheld};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use rayguard_core::admission::controller::Shed;
use rayguard_core::policy::Treatment;
use std::sync::Arc;
use std::time::Duration;

impl RequestContext {
    /// Passes the body on as it comes, all but its last piece, asks for a permit for that, and only
    /// then waits for Ray.
    pub(super) async fn upload(
        self: Arc<Self>,
        mut request: Box<Request<ClientBody>>,
        body: Incoming,
    ) -> Response<Body> {
        if let Some(refusal) = self.refuse_upload() {
            return refusal;
        }
        let (handover, asking) = match self.begin_upload().await {
            Ok(begun) => begun,
            Err(refusal) => return refusal,
        };
        let clock = self.proxy.clock;
        let pace = (!self.shadow).then(|| Pace::new(self.peer.body, clock));
        let body = Upload::new(body, pace, self.flow.clone(), clock);
        let body = Withheld::new(body, Arc::clone(&handover), asking);
        *request.body_mut() = ClientBody::Streamed(UnsyncBoxBody::new(body));
        self.address_to_ray(&mut request);
        let mut exchange = forward::send_upload(
            Arc::clone(&self.routing.upstream),
            request,
            &handover,
            self.proxy.tasks.clone(),
            self.peer.abandoned_max,
        );
        let Some(bound) = self.timeout() else { return self.pass_back(exchange.await) };
        let late = async {
            handover.whole().await;
            tokio::time::sleep(bound).await;
        };
        let answer = tokio::select! {
            answer = &mut exchange => answer,
            () = late => {
                exchange.late();
                self.note_change();
                return self.too_late(bound);
            }
        };
        self.pass_back(answer)
    }

    /// Parks the upload, or asks for its permit at once where that cannot be.
    async fn begin_upload(self: &Arc<Self>) -> Result<(Arc<Handover>, Option<Asking>), Response<Body>> {
        let (proxy, ask) = (Arc::clone(&self.proxy), self.known.ask);
        let limited = self.proxy.table.load().class(ask.class).treatment == Treatment::Limited;
        let declared = (self.bytes > 0).then_some(self.bytes);
        let place = limited.then(|| proxy.parked.enter(ask.client.address, declared)).flatten();
        let Some(place) = place else {
            let permit = self.admit(proxy.clock.now()).await?;
            return Ok((Handover::admitted(proxy, ask, permit), None));
        };
        let context = Arc::clone(self);
        let asking = Box::pin(async move { context.ask_in_turn().await });
        Ok((Handover::parked(proxy, ask, place), Some(asking)))
    }

    /// Asks for the permit of an upload that has come whole. It cannot cheaply come again, so where
    /// many end at once they wait outside the line rather than be shed for its length: no more than
    /// half of its room is theirs.
    async fn ask_in_turn(&self) -> Result<PermitGuard, Shed> {
        let turns = &self.proxy.turns[self.known.matched.class.index()];
        // A client that has waited here for as long as in the line asks all the same, and is told.
        let _turn = tokio::time::timeout(self.class().queue.wait_max, turns.acquire()).await;
        let mut permit = self.try_admit(Duration::MAX, self.proxy.clock.now()).await?;
        self.note_admitted(&mut permit);
        Ok(permit)
    }

    /// Refuses at sight what would be refused once it had come.
    fn refuse_upload(&self) -> Option<Response<Body>> {
        if let Some(shed) = self.cut_off() {
            return Some(self.refuse(shed));
        }
        let (proxy, class) = (&self.proxy, self.known.matched.class);
        let table = proxy.table.load();
        let (reason, wait) =
            proxy.admission.would_shed(&table, class, self.known.ask.client, proxy.clock.now())?;
        let shed = proxy.admission.refuse_at_once(&table, class, reason, wait)?;
        Some(self.refuse(shed))
    }
}
