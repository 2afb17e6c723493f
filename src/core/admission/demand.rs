//! Which clients ask for how much of a class, since the last look.
//!
//! For replicas that share limits: each tells the others' leader which clients ask for much of it,
//! so that an identity that comes to several replicas is seen as one (`core/replicas/identities.rs`). Counted is
//! what was asked for, let in or not, in requests and in work, by the keyed digests the admission controller knows
//! a client by. A class is counted only while it is looked at: a replica that shares with no other,
//! or has room for every client, pays one load a request.
//!
//! Memory is bounded as in `usage`: `ROWS_MAX` flows (Space-Saving, see
//! [`crate::usage`]), of one address no more than `CREDENTIALS_MAX` credentials apart.
//! What does not fit is counted without its name.

use crate::request::client_id::ClientId;
use crate::usage::summary::Summary;
use crate::usage::{Credential, Crowd};

/// Flows (address and credential) told apart.
pub(crate) const ROWS_MAX: usize = 256;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct FlowDemand {
    /// Requests.
    pub requests: f64,
    /// Learnt cost, seconds.
    pub work_s: f64,
}

impl FlowDemand {
    /// Adds as much again, times `factor`.
    pub fn add(&mut self, more: FlowDemand, factor: f64) {
        self.requests += more.requests * factor;
        self.work_s += more.work_s * factor;
    }
}

/// Who asked.
#[derive(Debug)]
pub struct ClassDemand {
    flows: Summary<(u64, Credential), FlowDemand>,
    all: FlowDemand,
    crowd: Crowd,
}

impl Default for ClassDemand {
    fn default() -> ClassDemand {
        ClassDemand { flows: Summary::new(ROWS_MAX), all: FlowDemand::default(), crowd: Crowd::default() }
    }
}

impl ClassDemand {
    /// One request, thought to cost so many seconds of work.
    pub fn note(&mut self, client: ClientId, work_s: f64) {
        let heard = FlowDemand { requests: 1.0, work_s };
        self.all.add(heard, 1.0);
        self.crowd.see(client.address);
        let (first, end) = ((client.address, Credential::One(0)), (client.address, Credential::Many));
        let shown = || self.flows.between(&first, &end).map(|(_, seen)| *seen);
        let credential = Credential::told_apart(client.credential, shown);
        self.flows.of((client.address, credential), 1).add(heard, 1.0);
    }

    /// Each flow that was told apart.
    pub fn flows(&self) -> impl Iterator<Item = (&(u64, Credential), &FlowDemand)> {
        self.flows.rows()
    }

    /// Everything, named or not.
    pub fn all(&self) -> FlowDemand {
        self.all
    }

    /// About how many addresses asked.
    pub fn addresses(&self) -> u32 {
        self.crowd.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_known_by_flow_and_in_all() {
        let mut demand = ClassDemand::default();
        for _ in 0..3 {
            demand.note(ClientId { address: 1, credential: None }, 0.5);
        }
        demand.note(ClientId { address: 1, credential: Some(7) }, 0.25);
        let flows: Vec<_> = demand.flows().map(|(flow, heard)| (*flow, heard.requests)).collect();
        assert_eq!(flows, [((1, Credential::None), 3.0), ((1, Credential::One(7)), 1.0)]);
        assert_eq!((demand.all(), demand.addresses()), (FlowDemand { requests: 4.0, work_s: 1.75 }, 1));
    }

    #[test]
    fn neither_invented_credentials_nor_a_crowd_take_more_memory() {
        let mut demand = ClassDemand::default();
        for invented in 0..10_000 {
            demand.note(ClientId { address: 1, credential: Some(invented) }, 0.1);
            demand.note(ClientId { address: 2 + invented, credential: None }, 0.1);
        }
        assert!(demand.flows().count() <= ROWS_MAX);
        let of_one: f64 = demand.flows().filter(|((a, _), _)| *a == 1).map(|(_, heard)| heard.requests).sum();
        assert!(of_one >= 9_500.0, "an address does not hide behind its inventions: {of_one}");
        assert!((demand.all().requests - 20_000.0).abs() < 1e-9);
    }
}
