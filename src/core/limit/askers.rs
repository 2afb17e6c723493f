//! Who asks for how much of a class, since somebody last looked.
//!
//! For doors that share limits: each tells the others' leader who asks for much of it, so that an
//! identity that comes to several doors is seen as one (`core/fleet/identities.rs`). Counted is
//! what was asked for, let in or not, in requests and in work, by the keyed digests the gate knows
//! a party by. A class is counted only while it is looked at: a door that shares with nobody, or
//! has room for everybody, pays one load a request.
//!
//! Memory is bounded as in the census: [`ROWS_MAX`] flows (Space-Saving, see
//! [`crate::census`]), of one address no more than [`CREDENTIALS_MAX`](crate::census::CREDENTIALS_MAX) credentials apart.
//! What does not fit is counted without its name.

use crate::census::summary::Summary;
use crate::census::{Credential, Crowd};
use crate::request::party::Party;

/// Flows (address and credential) told apart.
pub const ROWS_MAX: usize = 256;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Heard {
    /// Requests.
    pub requests: f64,
    /// Learnt cost, seconds.
    pub work_s: f64,
}

impl Heard {
    /// Adds as much again, times `factor`.
    pub fn add(&mut self, more: Heard, factor: f64) {
        self.requests += more.requests * factor;
        self.work_s += more.work_s * factor;
    }
}

/// Who asked.
#[derive(Debug)]
pub struct Askers {
    flows: Summary<(u64, Credential), Heard>,
    all: Heard,
    crowd: Crowd,
}

impl Default for Askers {
    fn default() -> Askers {
        Askers { flows: Summary::new(ROWS_MAX), all: Heard::default(), crowd: Crowd::default() }
    }
}

impl Askers {
    /// One request, thought to cost so many seconds of work.
    pub fn note(&mut self, party: Party, work_s: f64) {
        let heard = Heard { requests: 1.0, work_s };
        self.all.add(heard, 1.0);
        self.crowd.see(party.address);
        let (first, end) = ((party.address, Credential::One(0)), (party.address, Credential::Many));
        let shown = self.flows.between(&first, &end).map(|(_, seen)| *seen);
        let credential = Credential::told_apart(party.credential, shown);
        self.flows.of((party.address, credential)).add(heard, 1.0);
    }

    /// Each flow that was told apart.
    pub fn flows(&self) -> impl Iterator<Item = (&(u64, Credential), &Heard)> {
        self.flows.rows()
    }

    /// Everything, named or not.
    #[must_use]
    pub fn all(&self) -> Heard {
        self.all
    }

    /// About how many addresses asked.
    #[must_use]
    pub fn addresses(&self) -> u32 {
        self.crowd.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_known_by_flow_and_in_all() {
        let mut askers = Askers::default();
        for _ in 0..3 {
            askers.note(Party { address: 1, credential: None }, 0.5);
        }
        askers.note(Party { address: 1, credential: Some(7) }, 0.25);
        let flows: Vec<_> = askers.flows().map(|(flow, heard)| (*flow, heard.requests)).collect();
        assert_eq!(flows, [((1, Credential::None), 3.0), ((1, Credential::One(7)), 1.0)]);
        assert_eq!((askers.all(), askers.addresses()), (Heard { requests: 4.0, work_s: 1.75 }, 1));
    }

    #[test]
    fn neither_invented_credentials_nor_a_crowd_take_more_memory() {
        let mut askers = Askers::default();
        for invented in 0..10_000 {
            askers.note(Party { address: 1, credential: Some(invented) }, 0.1);
            askers.note(Party { address: 2 + invented, credential: None }, 0.1);
        }
        assert!(askers.flows().count() <= ROWS_MAX);
        let of_one: f64 = askers.flows().filter(|((a, _), _)| *a == 1).map(|(_, heard)| heard.requests).sum();
        assert!(of_one >= 9_500.0, "an address does not hide behind its inventions: {of_one}");
        assert!((askers.all().requests - 20_000.0).abs() < 1e-9);
    }
}
