//! A ticket that cannot be lost: dropped in whatever way, it goes back to the gate once.

use crate::core::census::Unlisted;
use crate::core::limit::gate::Ticket;
use crate::core::limit::meter::Outcome;
use crate::proxy::door::Door;
use std::sync::Arc;

/// A ticket on its way through the door.
#[derive(Debug)]
pub struct Slot {
    door: Arc<Door>,
    ticket: Option<Ticket>,
    outcome: Outcome,
    unlisted: Option<Arc<Unlisted>>,
    /// Length of what was asked and of what was answered.
    bytes: (u64, u64),
}

impl Slot {
    /// A slot for this ticket. Until it is marked otherwise it counts as never sent.
    #[must_use]
    pub fn new(door: Arc<Door>, ticket: Ticket) -> Slot {
        Slot { door, ticket: Some(ticket), outcome: Outcome::Unsent, unlisted: None, bytes: (0, 0) }
    }

    /// Whose cost this is, for what no route knows.
    pub fn account(&mut self, unlisted: Option<Arc<Unlisted>>) {
        self.unlisted = unlisted;
    }

    /// The same, for a request of so many bytes.
    #[must_use]
    pub fn asking(mut self, bytes: u64) -> Slot {
        self.bytes.0 = bytes;
        self
    }

    /// So many bytes of the answer came.
    pub fn answered(&mut self, bytes: usize) {
        self.bytes.1 += bytes as u64;
    }

    /// The request is on its way: a client that leaves from here on abandons work, or cancels it.
    pub fn sent(&mut self) {
        self.outcome = if self.cancels() { Outcome::Cancelled } else { Outcome::Abandoned };
    }

    /// Whether upstream stops working on the request when its client leaves.
    #[must_use]
    pub fn cancels(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| self.door.module(ticket.ask.class).cancels)
    }

    /// Whether it had to wait for its turn.
    #[must_use]
    pub fn waited(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| !ticket.waited.is_zero())
    }

    /// Upstream answered (below 500).
    pub fn served(&mut self) {
        if self.outcome != Outcome::Failed {
            self.outcome = Outcome::Served;
        }
    }

    /// Upstream answered 500 or above, broke off, or could not be reached.
    pub fn failed(&mut self) {
        self.outcome = Outcome::Failed;
    }

    /// It goes another way: unless its end is told, nothing is known of it.
    pub fn unseen(&mut self) {
        self.outcome = Outcome::Unseen;
    }

    /// The ticket inside.
    #[must_use]
    pub fn ticket(&self) -> Option<&Ticket> {
        self.ticket.as_ref()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.door.record_end(&ticket, self.outcome, self.bytes);
            Door::finish(&self.door, ticket, self.outcome, self.unlisted.as_deref());
        }
    }
}
