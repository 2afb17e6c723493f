//! A permit that cannot be lost: dropped in whatever way, it goes back to the admission controller once. It knows
//! what it returns to as [`Permits`] alone, and nothing of a server.

use rayguard_core::admission::controller::{Ask, Permit, Stage};
use rayguard_core::admission::meter::Outcome;
use rayguard_core::admission::parked::Place;
use rayguard_core::policy::ClassId;
use rayguard_core::time::Time;
use rayguard_core::usage::Unlisted;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// What permits are given by and return to.
pub trait Permits: Debug + Send + Sync {
    /// The time on the clock of its decisions.
    fn now(&self) -> Time;
    /// The turn in a request has changed.
    fn turn(&self, permit: &mut Permit, stage: Stage);
    /// A place for a transfer of so many bytes to or from a slow client of this address, if there is one.
    fn park(&self, address: u64, left: Option<u64>) -> Option<Place>;
    /// Whether upstream stops working on a request of this class when its client leaves.
    fn cancels(&self, class: ClassId) -> bool;
    /// Takes a permit back, with what came of its request and the bytes that were asked and answered.
    fn release(
        self: Arc<Self>,
        permit: Permit,
        outcome: Outcome,
        bytes: (u64, u64),
        unlisted: Option<&Unlisted>,
    );
    /// A client's own network has kept its request waiting for so long.
    fn note_slow_client(&self, ask: Ask, length: Duration);
}

/// A permit on its way through the proxy: in one place on the heap, since it changes hands a score of times.
#[derive(Debug)]
pub struct PermitGuard(Box<Held>);

#[derive(Debug)]
struct Held {
    home: Arc<dyn Permits>,
    permit: Option<Permit>,
    outcome: Outcome,
    unlisted: Option<Arc<Unlisted>>,
    /// Length of what was asked and of what was answered.
    bytes: (u64, u64),
    ask: Ask,
    /// How long its client's line has been awaited: before it was admitted, and since.
    kept: (Duration, Duration),
    /// Since when it is a session between the two ends, in which no client waits for an answer.
    opened: Option<Time>,
    /// Held instead of the permit while its client is slow.
    place: Option<Place>,
}

/// A client that has kept us waiting for less is not worth naming.
const NAMED_MIN: Duration = Duration::from_millis(100);

impl PermitGuard {
    /// A guard for this permit. Until it is marked otherwise it counts as never sent.
    #[must_use]
    pub fn new<P: Permits + 'static>(home: Arc<P>, permit: Permit) -> PermitGuard {
        PermitGuard(Box::new(Held {
            ask: permit.ask,
            home,
            permit: Some(permit),
            outcome: Outcome::Unsent,
            unlisted: None,
            bytes: (0, 0),
            kept: (Duration::ZERO, Duration::ZERO),
            opened: None,
            place: None,
        }))
    }

    /// The same, for a request that Ray has answered before it was whole: it stays parked.
    #[must_use]
    pub fn parked(mut self, place: Option<Place>) -> PermitGuard {
        self.0.place = place;
        self
    }

    /// The turn in this exchange has changed.
    pub fn turn(&mut self, stage: Stage) {
        if let Some(permit) = &mut self.0.permit {
            self.0.home.turn(permit, stage);
        }
    }

    /// Ray has opened a session: its two ends decide how long it lasts, and that counts as no latency.
    pub fn opened(&mut self) {
        self.turn(Stage::Answered);
        self.0.opened = Some(self.0.home.now());
    }

    /// So long has its client's line been awaited before it was admitted.
    pub(crate) fn kept_before(&mut self, length: Duration) {
        self.0.kept.0 = length;
    }

    /// So long in all since.
    pub fn kept(&mut self, length: Duration) {
        self.0.kept.1 = length;
    }

    /// Ray has done its work, and `left` bytes of its answer wait for a slow client: from now on it
    /// holds no permit, if it may park.
    pub(crate) fn park(&mut self, left: Option<u64>) -> bool {
        if self.0.place.is_some() || self.0.permit.is_none() {
            return true;
        }
        self.0.place = self.0.home.park(self.0.ask.client.address, left);
        if self.0.place.is_none() {
            return false;
        }
        let outcome = if self.0.outcome == Outcome::Failed { Outcome::Failed } else { Outcome::Served };
        self.finish(outcome);
        true
    }

    fn finish(&mut self, outcome: Outcome) {
        let Some(mut permit) = self.0.permit.take() else { return };
        permit.kept = self.0.kept.1;
        if let Some(opened) = self.0.opened {
            permit.kept += self.0.home.now().since(opened);
        }
        let home = Arc::clone(&self.0.home);
        home.release(permit, outcome, self.0.bytes, self.0.unlisted.as_deref());
    }

    /// Whose cost this is, for what no route knows.
    pub fn account(&mut self, unlisted: Option<Arc<Unlisted>>) {
        self.0.unlisted = unlisted;
    }

    /// The same, for a request of so many bytes.
    #[must_use]
    pub fn asking(mut self, bytes: u64) -> PermitGuard {
        self.0.bytes.0 = bytes;
        self
    }

    /// So many bytes of the answer came.
    pub fn answered(&mut self, bytes: usize) {
        self.0.bytes.1 += bytes as u64;
    }

    /// The request is on its way: a client that leaves from here on abandons work, or cancels it.
    pub fn sent(&mut self) {
        self.0.outcome = if self.cancels() { Outcome::Cancelled } else { Outcome::Abandoned };
    }

    /// Whether upstream stops working on the request when its client leaves.
    pub fn cancels(&self) -> bool {
        self.0.permit.as_ref().is_some_and(|permit| self.0.home.cancels(permit.ask.class))
    }

    /// Whether it had to wait for its turn.
    pub fn waited(&self) -> bool {
        self.0.permit.as_ref().is_some_and(|permit| !permit.waited.is_zero())
    }

    /// Upstream answered (below 500).
    pub fn served(&mut self) {
        if self.0.outcome != Outcome::Failed {
            self.0.outcome = Outcome::Served;
        }
    }

    /// Upstream answered 500 or above, broke off, or could not be reached.
    pub fn failed(&mut self) {
        self.0.outcome = Outcome::Failed;
    }

    /// It goes another way: unless its end is told, nothing is known of it.
    pub fn unseen(&mut self) {
        self.0.outcome = Outcome::Unseen;
    }

    /// The permit inside.
    #[must_use]
    pub fn permit(&self) -> Option<&Permit> {
        self.0.permit.as_ref()
    }
}

impl Drop for PermitGuard {
    fn drop(&mut self) {
        self.finish(self.0.outcome);
        let kept = self.0.kept.0 + self.0.kept.1;
        if kept >= NAMED_MIN {
            self.0.home.note_slow_client(self.0.ask, kept);
        }
    }
}
