//! Admission in an async server: ask, wait for the turn, hold it while the handler works, drop it.
//!
//! This is all that lies between the admission controller, which knows neither clock nor runtime, and a server.

use rayguard_core::admission::controller::{AdmissionController, Ask, Decision, Grant, Permit, Shed};
use rayguard_core::admission::meter::{Outcome, Reason};
use rayguard_core::admission::table::LimitTable;
use rayguard_core::policy::plain::{class, policy};
use rayguard_core::policy::{ClassId, Queue};
use rayguard_core::request::client_id::ClientId;
use rayguard_core::time::Time;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The admission controller, the limits it goes by, and a clock.
pub(super) struct Admission {
    controller: AdmissionController<oneshot::Sender<Result<Turn, Shed>>>,
    table: LimitTable,
    began: Instant,
}

/// The right to work on one request; dropped, it goes to the next waiting request.
pub(super) struct Turn {
    admission: Arc<Admission>,
    permit: Option<Permit>,
}

/// A place in the queue; dropped, it is given up.
struct Waiting<'a>(&'a Admission, rayguard_core::admission::controller::WaitId);

impl Admission {
    /// One class: `in_flight` requests at once, `queue` that wait for `wait` at the longest.
    pub(super) fn new(in_flight: u32, queue: u32, wait: Duration) -> Arc<Admission> {
        let mut all = class("all", in_flight.into());
        all.queue = Queue { len_max: queue, wait_max: wait };
        let policy = policy(vec![all], in_flight.into());
        let table = LimitTable::initial(&policy);
        let controller = AdmissionController::new(&policy, &table, Time::ZERO);
        Arc::new(Admission { controller, table, began: Instant::now() })
    }

    /// A turn for a client, whom any number that is always the same tells from the others. Turns go round among
    /// clients that wait, however many requests each of them has.
    ///
    /// # Errors
    /// There is no room, and none came in time: the reason, and when to try again.
    pub(super) async fn turn(self: &Arc<Self>, client: u64) -> Result<Turn, Shed> {
        let class = ClassId(0);
        let ask = Ask { class, route: 0, client: ClientId { address: client, credential: None } };
        let (sender, mut receiver) = oneshot::channel();
        let wake = &mut |waiter, grant| self.wake(waiter, grant);
        let (id, deadline) = match self.controller.decide(&self.table, ask, self.now(), || sender, wake) {
            Decision::Admit(permit) => return Ok(self.hold(permit)),
            Decision::Shed(shed) => return Err(shed),
            Decision::Wait(id, deadline) => (id, deadline),
        };
        let waiting = Waiting(self, id);
        let verdict =
            tokio::time::timeout_at(self.began + Duration::from_nanos(deadline.0), &mut receiver).await;
        std::mem::forget(waiting); // its place has been taken, or its time is up
        match verdict {
            Ok(verdict) => verdict.unwrap_or_else(|_| Err(self.too_late())),
            Err(_) => match self.controller.expire(id, Reason::QueueTimeout) {
                Some((_, shed)) => Err(shed),
                // The verdict was on its way as time ran out.
                None => receiver.await.unwrap_or_else(|_| Err(self.too_late())),
            },
        }
    }

    fn too_late(&self) -> Shed {
        self.controller.refuse(ClassId(0), Reason::QueueTimeout, Duration::ZERO)
    }

    /// Drops a verdict that no request waits for any more, and with it its turn: that goes to the next.
    fn wake(self: &Arc<Self>, waiter: oneshot::Sender<Result<Turn, Shed>>, grant: Grant) {
        let verdict = match grant {
            Grant::Go(permit) => Ok(self.hold(permit)),
            Grant::Shed(shed) => Err(shed),
        };
        drop(waiter.send(verdict));
    }

    fn hold(self: &Arc<Self>, permit: Permit) -> Turn {
        Turn { admission: Arc::clone(self), permit: Some(permit) }
    }

    fn now(&self) -> Time {
        Time::from_secs_f64(self.began.elapsed().as_secs_f64())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let admission = &self.admission;
        let wake = &mut |waiter, grant| admission.wake(waiter, grant);
        admission.controller.finish(&admission.table, permit, Outcome::Served, admission.now(), wake);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let _ = self.0.controller.cancel(self.1, self.0.now());
    }
}
