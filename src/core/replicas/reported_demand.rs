//! What a replica knows of those who ask for a class, and what it tells of them.
//!
//! The admission controller hands over what it has counted since the last renewal ([`ClassDemand`]); here it is averaged over
//! `MEMORY_S` seconds, long enough for a client that asks ten times a second to be known within a
//! fifth, and short enough for a flood to be known when it has lasted as long. Told are the
//! heaviest by name and the others by number.
//!
//! *By which name.* A flow is one address and one credential, and is told as both; but a credential
//! that came from several addresses here is one row without an address, or a token behind 64 of
//! them would be told as many small ones.

use crate::admission::demand::{ClassDemand, FlowDemand, ROWS_MAX};
use crate::replicas::identities::{Demand, NAMED_MAX, Row};
use crate::usage::Credential;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long what was asked counts.
pub(crate) const MEMORY_S: f64 = 2.0;

/// A flow that asks less often per second is forgotten.
const FORGOTTEN: f64 = 0.01;

/// Who asks for a class here, per second.
#[derive(Clone, Debug, Default)]
pub struct SmoothedDemand {
    flows: BTreeMap<(u64, Credential), FlowDemand>,
    all: FlowDemand,
    addresses: f64,
    places: BTreeMap<u64, f64>,
}

/// The same as it is told.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ReportedDemand {
    /// Address, credential, requests and seconds of work per second; the heaviest first.
    rows: Vec<(Option<u64>, Option<u64>, f32, f32)>,
    /// The others' requests and work per second.
    rest: (f32, f32),
    /// How many they are.
    others: u32,
    /// What a client has under way or was refused a place for, where clients have so many each.
    places: Vec<(u64, f32)>,
}

impl SmoothedDemand {
    /// Takes in what was heard in the last `elapsed_s` seconds.
    pub fn take_in(&mut self, demand: &ClassDemand, elapsed_s: f64) {
        let kept = (-elapsed_s / MEMORY_S).exp();
        let new = (1.0 - kept) / elapsed_s.max(1e-3);
        let fade = |heard: &mut FlowDemand| {
            *heard = FlowDemand { requests: heard.requests * kept, work_s: heard.work_s * kept };
        };
        fade(&mut self.all);
        self.flows.values_mut().for_each(fade);
        self.all.add(demand.all(), new);
        for (flow, heard) in demand.flows() {
            self.flows.entry(*flow).or_default().add(*heard, new);
        }
        self.addresses = (self.addresses * kept).max(f64::from(demand.addresses()));
        self.flows.retain(|_, heard| heard.requests > FORGOTTEN);
        if self.flows.len() > ROWS_MAX {
            let mut work: Vec<f64> = self.flows.values().map(|heard| heard.work_s).collect();
            work.sort_by(|a, b| b.total_cmp(a));
            let least = work[ROWS_MAX - 1];
            self.flows.retain(|_, heard| heard.work_s >= least);
        }
    }

    /// Takes in what each client has under way and was refused a place for; forgotten slowly.
    pub(crate) fn take_places(&mut self, wanted: &[(u64, u32)]) {
        self.places.values_mut().for_each(|places| *places *= 0.9);
        for (client, wanted) in wanted {
            let places = self.places.entry(*client).or_default();
            *places = places.max(f64::from(*wanted));
        }
        self.places.retain(|_, places| *places >= 0.5);
    }

    /// What is told of them.
    pub fn tell(&self) -> ReportedDemand {
        let mut addresses: BTreeMap<u64, u32> = BTreeMap::new();
        for (_, credential) in self.flows.keys() {
            if let Credential::One(credential) = credential {
                *addresses.entry(*credential).or_default() += 1;
            }
        }
        let mut rows: BTreeMap<(Option<u64>, Option<u64>), FlowDemand> = BTreeMap::new();
        for ((address, credential), heard) in &self.flows {
            let name = match credential {
                Credential::One(one) if addresses[one] > 1 => (None, Some(*one)),
                Credential::One(one) => (Some(*address), Some(*one)),
                Credential::None | Credential::Many => (Some(*address), None),
            };
            rows.entry(name).or_default().add(*heard, 1.0);
        }
        let count = rows.len();
        let mut rows: Vec<_> = rows.into_iter().collect();
        // Equals in the order of their digests, so that all replicas name the same ones.
        rows.sort_by(|a, b| bucket(b.1.work_s).cmp(&bucket(a.1.work_s)).then(a.0.cmp(&b.0)));
        rows.truncate(NAMED_MAX);
        let mut rest = self.all;
        for (_, heard) in &rows {
            rest.add(*heard, -1.0);
        }
        // A table that is not full has them all.
        let crowd = if self.flows.len() < ROWS_MAX { 0.0 } else { self.addresses };
        let others = crowd.max(count as f64) - rows.len() as f64;
        let mut places: Vec<(u64, f64)> =
            self.places.iter().map(|(client, places)| (*client, *places)).collect();
        places.sort_by(|a, b| bucket(b.1).cmp(&bucket(a.1)).then(a.0.cmp(&b.0)));
        places.truncate(NAMED_MAX);
        let row = |((address, credential), heard): &((Option<u64>, Option<u64>), FlowDemand)| {
            (*address, *credential, short(heard.requests), short(heard.work_s))
        };
        ReportedDemand {
            rows: rows.iter().map(row).collect(),
            rest: (short(rest.requests.max(0.0)), short(rest.work_s.max(0.0))),
            others: whole(others.max(1.0)),
            places: places.into_iter().map(|(client, places)| (client, short(places))).collect(),
        }
    }
}

impl ReportedDemand {
    /// Whether anybody asks.
    pub(crate) fn is_something(&self) -> bool {
        !self.rows.is_empty() || !self.places.is_empty()
    }

    /// A demand for `want` grains, as it divides among those who ask: by the work they ask for.
    pub fn demand(&self, want: f64) -> Demand {
        let all = self.rows.iter().map(|row| f64::from(row.3)).sum::<f64>() + f64::from(self.rest.1);
        if all <= 0.0 {
            return Demand::of_one_unknown(want);
        }
        let part = |work: f32| want * f64::from(work) / all;
        let row = |(address, credential, _, work): &(_, _, _, f32)| Row {
            address: *address,
            credential: *credential,
            amount: part(*work),
        };
        Demand::new(self.rows.iter().map(row).collect(), part(self.rest.1), f64::from(self.others))
    }

    /// What each has under way or was refused a place for, by the same.
    pub fn places(&self) -> Demand {
        let row = |(client, places): &(u64, f32)| Row {
            address: None,
            credential: Some(*client),
            amount: f64::from(*places),
        };
        Demand::new(self.places.iter().map(row).collect(), 0.0, 1.0)
    }

    /// What each asks for, in requests a second, by the digest that its ceilings know it by.
    pub fn requests(&self) -> Demand {
        let row = |(address, credential, requests, _): &(Option<u64>, Option<u64>, f32, f32)| Row {
            address: address.filter(|_| credential.is_none()),
            credential: *credential,
            amount: f64::from(*requests),
        };
        Demand::new(self.rows.iter().map(row).collect(), 0.0, 1.0)
    }
}

/// Within a factor of two of each other.
#[expect(clippy::cast_possible_truncation, reason = "the logarithm of an f64 fits")]
fn bucket(value: f64) -> i32 {
    value.max(f64::MIN_POSITIVE).log2().floor() as i32
}

/// Four digits are more than what is told is worth.
#[expect(clippy::cast_possible_truncation, reason = "rounded on purpose")]
fn short(value: f64) -> f32 {
    if value <= 0.0 {
        return 0.0;
    }
    let unit = 10_f64.powf(value.log10().floor() - 3.0);
    ((value / unit).round() * unit) as f32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as-casts saturate")]
fn whole(value: f64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::client_id::ClientId;

    fn told(asked: &[(u64, Option<u64>, u32)]) -> ReportedDemand {
        let mut smoothed = SmoothedDemand::default();
        for _ in 0..200 {
            let mut demand = ClassDemand::default();
            for (address, credential, times) in asked {
                (0..*times)
                    .for_each(|_| demand.note(ClientId { address: *address, credential: *credential }, 0.1));
            }
            smoothed.take_in(&demand, 0.25);
        }
        let told = smoothed.tell();
        serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap()
    }

    #[test]
    fn what_each_asks_for_is_told_per_second() {
        let told = told(&[(1, None, 5), (2, Some(7), 1)]);
        assert_eq!(told.rows, [(Some(1), None, 20.0, 2.0), (Some(2), Some(7), 4.0, 0.4)]);
        assert_eq!(told.rest, (0.0, 0.0));
        let demand = told.demand(60.0);
        assert!((demand.sum() - 60.0).abs() < 1e-3, "{demand:?}");
    }

    #[test]
    fn a_token_behind_many_addresses_is_one_row_and_a_crowd_is_a_number() {
        let nodes: Vec<_> = (0..64).map(|address| (address, Some(7), 1)).collect();
        assert_eq!(told(&nodes).rows, [(None, Some(7), 256.0, 25.6)]);
        let crowd: Vec<_> = (0..150).map(|address| (address * 7 + 3, None, 1)).collect();
        let told = told(&crowd);
        assert_eq!(told.rows.len(), NAMED_MAX);
        assert_eq!(told.others, 118);
        assert!((f64::from(told.rest.0) / (4.0 * 118.0) - 1.0).abs() < 1e-3, "{:?}", told.rest);
    }

    #[test]
    fn a_flow_that_has_stopped_is_forgotten() {
        let mut smoothed = SmoothedDemand::default();
        let mut demand = ClassDemand::default();
        (0..100).for_each(|_| demand.note(ClientId { address: 1, credential: None }, 0.1));
        smoothed.take_in(&demand, 0.25);
        assert_eq!(smoothed.tell().rows.len(), 1);
        (0..200).for_each(|_| smoothed.take_in(&ClassDemand::default(), 0.25));
        assert_eq!(smoothed.tell().rows, []);
    }
}
