//! What would become of a request that has not asked yet.
//!
//! A client that is certain to be refused is spared the upload that comes before the asking. To look
//! changes nothing and costs no place; a request that may hope is let on, and asks in earnest.

use super::{AdmissionController, Shed};
use crate::admission::meter::Reason;
use crate::admission::table::{LimitTable, Mode, permits};
use crate::policy::{ClassId, Kind, Treatment};
use crate::request::client_id::ClientId;
use crate::time::Time;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl<W> AdmissionController<W> {
    /// Refuses a request that is not to ask at all; `None` where sheds are only counted.
    pub fn refuse_at_once(
        &self,
        table: &LimitTable,
        id: ClassId,
        reason: Reason,
        wait: Duration,
    ) -> Option<Shed> {
        let meter = &self.class(id).tally.meter;
        if table.class(id).mode == Mode::Shadow {
            meter.shed_in_shadow();
            return None;
        }
        meter.offer();
        Some(self.refuse(id, reason, wait))
    }

    /// Why a request of this class from this client would be refused if it came now, and for how
    /// long; `None` if it may hope. It may as long as it could wait in line for its turn: it is
    /// shed where the client's own ceiling is reached, where nothing can pass at all, where
    /// the class's next free cell is further away than anyone may wait, and where the line is
    /// full and the client stands in it already. (One that does not would take the place of
    /// a client that asks for more than its share.)
    pub fn would_shed(
        &self,
        table: &LimitTable,
        id: ClassId,
        client: ClientId,
        now: Time,
    ) -> Option<(Reason, Duration)> {
        let (class, limits) = (self.class(id), table.class(id));
        if limits.treatment != Treatment::Limited || limits.mode != Mode::Enforce {
            return None;
        }
        let client = self.shared_credential.judge(client);
        if let Some(over) = class
            .client_limits
            .as_ref()
            .and_then(|(_, client_limits)| client_limits.would_refuse(client, 1, now))
        {
            return Some(over);
        }
        let waiting = class.tally.waiting.load(Ordering::Relaxed);
        let cell = class.rate.as_ref().map_or(Duration::ZERO, |(_, rate)| rate.wait(waiting, now));
        let queues = class.queue_len_max > 0 && class.kind == Kind::Unary;
        let patience = if queues { class.queue_wait_max } else { Duration::ZERO };
        if cell > patience {
            return Some((Reason::ClassRate, cell));
        }
        let [of_class, of_module] = [limits.in_flight, table.module(class.module).in_flight].map(permits);
        let now_or_never = |count: u32, room: u32| room == 0 || (!queues && count >= room);
        if now_or_never(class.tally.in_flight.count(), of_class) {
            return Some((Reason::ClassInFlight, Duration::ZERO));
        }
        let of_module_used = self.module(class.module).tally.in_flight.count();
        if class.kind == Kind::Unary && now_or_never(of_module_used, of_module) {
            return Some((Reason::ModuleInFlight, Duration::ZERO));
        }
        let used = class.tally.allowance_used.load(Ordering::Acquire);
        if !queues && limits.admitted_max.is_some_and(|max| used >= max) {
            return Some((Reason::ClassBacklog, Duration::ZERO));
        }
        let stands_in_it =
            || self.lock(class.module).class_mut(id).is_some_and(|line| line.fair.waiting(client) > 0);
        (queues && waiting >= class.queue_len_max && stands_in_it())
            .then_some((Reason::ClientShare, Duration::ZERO))
    }
}
