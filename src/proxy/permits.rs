//! The proxy as what permits return to: the admission controller, the trace and the usage of its clients.

use crate::permit_guard::Permits;
use crate::state::ProxyState;
use rayguard_core::admission::controller::{Ask, Permit, Stage};
use rayguard_core::admission::meter::Outcome;
use rayguard_core::admission::parked::Place;
use rayguard_core::policy::ClassId;
use rayguard_core::time::Time;
use rayguard_core::usage::Unlisted;
use std::sync::Arc;
use std::time::Duration;

impl Permits for ProxyState {
    fn now(&self) -> Time {
        self.clock.now()
    }

    fn turn(&self, permit: &mut Permit, stage: Stage) {
        self.admission.turn(permit, stage, self.clock.now());
    }

    fn park(&self, address: u64, left: Option<u64>) -> Option<Place> {
        self.parked.enter(address, left)
    }

    fn cancels(&self, class: ClassId) -> bool {
        self.module(class).cancels
    }

    fn release(
        self: Arc<Self>,
        permit: Permit,
        outcome: Outcome,
        bytes: (u64, u64),
        unlisted: Option<&Unlisted>,
    ) {
        self.record_end(&permit, outcome, bytes);
        ProxyState::finish(&self, permit, outcome, unlisted);
    }

    fn note_slow_client(&self, ask: Ask, length: Duration) {
        self.usage().keep(ask, length, self.clock.now());
    }
}
