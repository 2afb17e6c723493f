//! The line before a module: who waits, and who is next.
//!
//! One queue for each class, fair between clients ([`Tiers`]); between the classes of a module
//! start-time fair queueing again, by a tag of each class in work / weight, where the most urgent
//! go before all. A class without room is passed over, and holds up none of the others.
//!
//! All of it under the module's mutex, which is taken only once somebody waits there.

use super::{AdmissionController, ClassAdmission, Decision, Grant, HeldBy, Permit, Rank, Shed, WaitId};
use crate::admission::client_limits::ClientPermit;
use crate::admission::controller::Ask;
use crate::admission::controller::module_queue::{ClassQueue, ModuleQueue, Waiter};
use crate::admission::history::kept_free;
use crate::admission::meter::Reason;
use crate::admission::queue::{Joined, Waiting, Weights};
use crate::admission::table::{LimitTable, permits};
use crate::policy::{ClassId, Priority};
use crate::time::Time;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Classes of this priority and above are served before all others, whatever their share.
const STRICT: Priority = Priority(9);

impl<W> AdmissionController<W> {
    /// A waiter's client has left. Returns its waiter if it was still waiting.
    pub fn cancel(&self, id: WaitId, now: Time) -> Option<W> {
        let waiter = self.take_out(id, Some(now))?;
        self.class(id.class).tally.meter.leave();
        Some(waiter)
    }

    /// A waiter's time is up, for this reason: it is taken out and the refusal returned; `None` if its verdict
    /// is already on the way.
    pub fn expire(&self, id: WaitId, reason: Reason) -> Option<(W, Shed)> {
        let waiter = self.take_out(id, None)?;
        Some((waiter, self.refuse(id.class, reason, Duration::ZERO)))
    }

    /// Joins the class's queue, then serves the next in line (perhaps this very request). A request whose place
    /// no waiting request of the module wants does not join.
    pub(super) fn wait_in_line(
        &self,
        table: &LimitTable,
        ask: Ask,
        of_client: Option<ClientPermit>,
        now: Time,
        waiter: impl FnOnce() -> W,
        wake: &mut impl FnMut(W, Grant),
    ) -> Decision {
        let class = self.class(ask.class);
        let module = self.module(class.module);
        let deadline = now + class.queue_wait_max;
        let mut woken = Vec::new();
        let joined = {
            let mut queue = self.lock(class.module);
            if let Some(permit) = self.enter_in_calm(table, &mut queue, ask, now, &mut woken) {
                Err(Permit { of_client, ..permit })
            } else {
                let claims = || self.history.claim(ask.client, self.claims(ask), now);
                let request = Waiting {
                    waiter: Waiter { waiter: waiter(), of_client },
                    client: ask.client,
                    route: ask.route,
                    cost: self.price(table, ask.class, self.takes(ask)),
                    since: now,
                    deadline,
                    claim: self.uses_past(ask).then(claims).flatten(),
                    weights: Weights::EVEN,
                };
                // Made known before anyone looks for room (see the head of this file).
                module.line.waiting.fetch_add(1, Ordering::SeqCst);
                class.tally.waiting.fetch_add(1, Ordering::SeqCst);
                let joined = queue.join(ask.class, request, class.queue_len_max);
                self.dispatch(table, &mut queue, now, &mut woken);
                Ok(joined)
            }
        };
        let decision = match joined {
            Err(permit) => Decision::Admit(permit),
            Ok(Joined::Waits(place)) => Decision::Wait(WaitId { class: ask.class, place }, deadline),
            Ok(Joined::Displaced(place, displaced)) => {
                let shed = self.turn_away(ask.class, &displaced);
                wake(displaced.waiter.waiter, Grant::Shed(shed));
                Decision::Wait(WaitId { class: ask.class, place }, deadline)
            }
            Ok(Joined::Refused(request)) => Decision::Shed(self.turn_away(ask.class, &request)),
        };
        for (waiter, grant) in woken {
            wake(waiter, grant);
        }
        decision
    }

    /// Lets a request in past waiters of other classes who are short of something else.
    fn enter_in_calm(
        &self,
        table: &LimitTable,
        queue: &mut ModuleQueue<W>,
        ask: Ask,
        now: Time,
        woken: &mut Vec<(W, Grant)>,
    ) -> Option<Permit> {
        if queue.is_empty() || self.is_contended(queue, ask.class) {
            return None;
        }
        // What they can have by now is theirs.
        self.dispatch(table, queue, now, woken);
        if self.is_contended(queue, ask.class) {
            return None;
        }
        self.try_enter(table, ask, now, Rank::Even).ok()
    }

    /// Whether anybody waits for what a request of this class would take: its own class's limits, or what it shares
    /// with others, which is the module's ceiling and the bound on work of a process.
    fn is_contended(&self, queue: &ModuleQueue<W>, id: ClassId) -> bool {
        queue.classes.iter().filter(|of| !of.fair.is_empty()).any(|of| {
            let waits = self.class(of.id);
            of.id == id
                || match waits.tally.last_full() {
                    Some(HeldBy::Module) => true,
                    Some(HeldBy::Process) => waits.shares && self.class(id).shares,
                    _ => false,
                }
        })
    }

    /// Counts out one who must give way.
    fn turn_away(&self, id: ClassId, request: &Waiting<Waiter<W>>) -> Shed {
        self.refund(request);
        self.leave_client_limits(id, request.waiter.of_client);
        self.uncount(id);
        // A client that has nothing else in the queue, or has it for itself, is not over its share: the queue is full,
        // for want of what has held it back.
        let waits = self
            .lock(self.class(id).module)
            .class_mut(id)
            .is_some_and(|of| of.fair.has(request.client) && of.fair.has_others(request.client));
        let held_by = || self.class(id).tally.last_full().map_or(Reason::ClassInFlight, HeldBy::reason);
        self.refuse(id, if waits { Reason::ClientShare } else { held_by() }, Duration::ZERO)
    }

    /// A known one is not served: its allowance is what it was.
    fn refund(&self, request: &Waiting<Waiter<W>>) {
        if let Some(claim) = request.claim {
            self.history.refund(request.client, claim, 1.0);
        }
    }

    /// Serves waiters of a module while there is room. The woken are told after the lock is
    /// free: a waiter that has gone meanwhile gives its permit straight back.
    pub(super) fn dispatch(
        &self,
        table: &LimitTable,
        queue: &mut ModuleQueue<W>,
        now: Time,
        woken: &mut Vec<(W, Grant)>,
    ) {
        let served_here =
            |of: &ClassQueue<W>| !self.module(self.class(of.id).module).has_left.load(Ordering::SeqCst);
        if !queue.classes.first().is_some_and(served_here) {
            return;
        }
        queue.round += 1;
        let mut sharing_is_full = false;
        while let Some(at) = self.next_class(queue, sharing_is_full) {
            let (virtual_time, round) = (queue.virtual_time, queue.round);
            let ClassQueue { id, fair, tag, full_in, kept_until, .. } = &mut queue.classes[at];
            let class = self.class(*id);
            let places = permits(table.class(*id).in_flight);
            if class.tally.in_flight.count() >= places {
                // The next request need not be known; a full class is the rule under overload.
                class.tally.note_full(HeldBy::InFlight);
                *full_in = round;
                continue;
            }
            let Some(next) = fair.peek(now) else { break };
            let ask = Ask { class: *id, route: next.route, client: next.client };
            let is_kept = !fair.known_wait() && now < *kept_until;
            let rank = match next.claim {
                Some(_) => Rank::Known,
                None if is_kept => Rank::Stranger { kept: kept_free(places, class.side_by_side) },
                None => Rank::Stranger { kept: 0 },
            };
            let permit = match self.try_enter(table, ask, now, rank) {
                Ok(permit) => permit,
                Err(full) => match full.limit {
                    HeldBy::Module => {
                        self.note_full(queue, HeldBy::Module, |_| true);
                        break;
                    }
                    // The request whose turn it is keeps it, or those that need less would always go first.
                    HeldBy::Process => {
                        sharing_is_full = true;
                        self.note_full(queue, HeldBy::Process, |class| class.shares);
                        continue;
                    }
                    HeldBy::InFlight | HeldBy::Work | HeldBy::Rate | HeldBy::Backlog => {
                        *full_in = round;
                        continue;
                    }
                },
            };
            let Some(mut request) = fair.pop(now) else { break };
            if let Some(claim) = &mut request.claim
                && fair.is_empty()
                && request.since == now
            {
                // It went before no other request of its class.
                self.history.refund(request.client, *claim, 1.0);
                claim.seconds = 0.0;
            }
            let start = tag.max(virtual_time);
            *tag = start + self.takes(ask) / weight(class.priority);
            queue.virtual_time = start;
            self.uncount(ask.class);
            let waited = now.since(request.since);
            class.tally.meter.queue();
            class.tally.meter.wait(waited);
            let (of_client, claim) = (request.waiter.of_client, request.claim);
            let permit = Permit { of_client, waited, charged: Some(request.cost), claim, ..permit };
            woken.push((request.waiter.waiter, Grant::Go(permit)));
        }
    }

    /// These classes are passed over in this round without being asked.
    fn note_full(&self, queue: &ModuleQueue<W>, limit: HeldBy, which: impl Fn(&ClassAdmission) -> bool) {
        let passed_over = queue.classes.iter().filter(|class| class.full_in < queue.round);
        passed_over
            .map(|class| self.class(class.id))
            .filter(|class| which(class))
            .for_each(|class| class.tally.note_full(limit));
    }

    /// The class to serve next: strict ones first, then the smallest tag.
    fn next_class(&self, queue: &ModuleQueue<W>, sharing_is_full: bool) -> Option<usize> {
        queue
            .classes
            .iter()
            .enumerate()
            .filter(|(_, class)| class.full_in < queue.round && !class.fair.is_empty())
            .filter(|(_, class)| !(sharing_is_full && self.class(class.id).shares))
            .min_by(|(_, a), (_, b)| {
                let ordinary = |class: &ClassQueue<W>| self.class(class.id).priority < STRICT;
                ordinary(a).cmp(&ordinary(b)).then(a.tag.total_cmp(&b.tag))
            })
            .map(|(at, _)| at)
    }

    fn take_out(&self, id: WaitId, left_at: Option<Time>) -> Option<W> {
        let class = self.class(id.class);
        let removed = {
            let mut queue = self.lock(class.module);
            let fair = &mut queue.class_mut(id.class)?.fair;
            match left_at {
                Some(now) => fair.leave(id.place, now)?,
                None => fair.remove(id.place)?,
            }
        };
        self.refund(&removed);
        self.leave_client_limits(id.class, removed.waiter.of_client);
        self.uncount(id.class);
        Some(removed.waiter.waiter)
    }

    fn uncount(&self, id: ClassId) {
        let class = self.class(id);
        class.tally.waiting.fetch_sub(1, Ordering::SeqCst);
        self.module(class.module).line.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A class's weight among those of its module.
fn weight(priority: Priority) -> f64 {
    f64::from(1u32 << u32::from(priority.0.min(9)))
}
