//! Who gets how much, wherever it comes in: max-min fairness between identities over all replicas.
//!
//! The replicas' demands alone do not say it. An identity that spreads its flood over three replicas
//! would get three shares, and one that comes to a single replica, together with many others, would
//! have a share of that replica's part only. So each replica tells how its demand divides among those
//! who ask, and the leader finds the level of max-min fairness over *identities*:
//!
//! ```text
//! sum over identities of min(d_i, level) = limit        d_i = what identity i asks for at all replicas
//! ```
//!
//! *Among its replicas* an identity's share is divided max-min once more, so that a modest use of one
//! replica does not suffer from its flood at another: `min(d_ik, u_i)` at replica k, where `u_i` is the
//! level at which these sum to the identity's share. `w_i = u_i / level` is all that a replica needs
//! to know of the others: it asks for `sum over i of min(d_ik, w_i level)`, and in its queue the
//! identity weighs `w_i` (its tag advances by `cost / w_i`), which gives it `w_i` of what another
//! gets there. Most weigh 1 and are not named.
//!
//! *Two dimensions.* A request counts for an address and for the credential shown there, as in the
//! fair queue, and is cut to the lesser of what either has left; those of one address (or one
//! credential) are cut alike. Of equal flows behind one address no more than its share passes,
//! with however many invented tokens, and of one token no more than a share, from however many
//! addresses and at however many replicas. For a single dimension this is max-min exactly.
//!
//! *Bounded.* A replica names its [`NAMED_MAX`] heaviest of a class; the rest is an amount and a number of
//! equals. So an identity may hide at most a [`NAMED_MAX`]th of each replica's demand. Nothing here can
//! make the sum exceed the limit: what a replica asks for is a wish, and the book grants it or not.
//!
//! *Refused:* a home replica for each identity (a round trip, and a hot home); shares in proportion
//! to demand (an identity that asks for more would get more).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The heaviest that a replica tells by name, of one class.
pub const NAMED_MAX: usize = 32;

/// The most whose weight is told, of one limit.
pub(crate) const WEIGHED_MAX: usize = 64;

/// An identity's weight at each replica, where it is less than 1.
pub type Weights = BTreeMap<u64, f64>;

/// How one limit is shared among identities.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Share {
    /// No identity gets more than this, at all replicas together; in grains.
    pub level: f64,
    /// Of those that ask for more, at several replicas.
    pub weights: Weights,
}

/// What a client asks for at one replica: as an address, as a credential, or as both.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Row {
    /// Digest of the address, where it is one.
    pub address: Option<u64>,
    /// Digest of the credential, where one was shown.
    pub credential: Option<u64>,
    /// In grains.
    pub amount: f64,
}

/// What is asked for at one replica.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Demand {
    rows: Vec<Row>,
    /// What each digest asks for here.
    here: BTreeMap<u64, f64>,
    /// What the others ask for, and how many they are.
    rest: (f64, f64),
}

impl Row {
    fn digests(&self) -> impl Iterator<Item = u64> {
        self.address.into_iter().chain(self.credential)
    }
}

impl Demand {
    /// A demand by these rows and so many others who ask for so much together.
    pub fn new(rows: Vec<Row>, rest: f64, others: f64) -> Demand {
        let mut here = BTreeMap::new();
        for row in &rows {
            for digest in row.digests() {
                *here.entry(digest).or_default() += row.amount;
            }
        }
        Demand { rows, here, rest: (rest, others) }
    }

    /// A demand of which nothing is known but its size, as that of a replica that has just begun to
    /// look who asks: it counts as one identity's.
    pub(crate) fn of_one_unknown(amount: f64) -> Demand {
        Demand::new(Vec::new(), amount, 1.0)
    }

    /// Several demands at one replica as one.
    pub fn join(demands: impl IntoIterator<Item = Demand>) -> Demand {
        let mut joined = (Vec::new(), 0.0, 0.0);
        for demand in demands {
            joined.0.extend(demand.rows);
            joined.1 += demand.rest.0;
            joined.2 += if demand.rest.0 > 0.0 { demand.rest.1 } else { 0.0 };
        }
        Demand::new(joined.0, joined.1, joined.2)
    }

    /// All of it.
    pub fn sum(&self) -> f64 {
        self.rows.iter().map(|row| row.amount).sum::<f64>() + self.rest.0
    }

    /// What of it lies within everybody's share.
    pub fn within(&self, share: &Share) -> f64 {
        let cut = |row: &Row| {
            let left = |digest: u64| {
                let weight = share.weights.get(&digest).copied().unwrap_or(1.0);
                weight * share.level / self.here.get(&digest).copied().unwrap_or(row.amount)
            };
            row.amount * row.digests().map(left).fold(1.0, f64::min)
        };
        let (rest, others) = self.rest;
        let of_others = if rest > 0.0 { rest.min(others * share.level) } else { 0.0 };
        self.rows.iter().filter(|row| row.amount > 0.0).map(cut).sum::<f64>() + of_others
    }
}

/// Shares `pool` grains among all identities that ask at these replicas; `None` where it is enough for all.
pub fn share(pool: f64, replicas: &[Demand]) -> Option<Share> {
    if replicas.iter().map(Demand::sum).sum::<f64>() <= pool {
        return None;
    }
    let spread = Spread::of(replicas);
    let at = |level: f64| Share { level, weights: spread.weights(level) };
    let (mut low, mut high) = (0.0, spread.most.max(pool));
    for _ in 0..50 {
        let level = f64::midpoint(low, high);
        let share = at(level);
        if replicas.iter().map(|replica| replica.within(&share)).sum::<f64>() > pool {
            high = level;
        } else {
            low = level;
        }
    }
    let mut share = at(low);
    if share.weights.len() > WEIGHED_MAX {
        let mut light: Vec<(u64, f64)> = share.weights.into_iter().collect();
        light.sort_by(|a, b| a.1.total_cmp(&b.1));
        light.truncate(WEIGHED_MAX);
        share.weights = light.into_iter().collect();
    }
    Some(share)
}

/// The weights that hold an identity at several replicas to `ceiling` in all.
pub(crate) fn hold_to(ceiling: f64, replicas: &[Demand]) -> Weights {
    let mut weights: Vec<(u64, f64)> = Spread::of(replicas).weights(ceiling).into_iter().collect();
    weights.sort_by(|a, b| a.1.total_cmp(&b.1));
    weights.truncate(WEIGHED_MAX);
    weights.into_iter().collect()
}

/// The identities that come to several replicas, with what each asks for there.
struct Spread {
    over: Vec<(u64, Vec<f64>)>,
    /// The most that any identity asks for.
    most: f64,
}

impl Spread {
    fn of(replicas: &[Demand]) -> Spread {
        let mut everybody: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (digest, amount) in replicas.iter().flat_map(|replica| &replica.here) {
            everybody.entry(*digest).or_default().push(*amount);
        }
        let sums = everybody.values().map(|amounts| amounts.iter().sum::<f64>());
        let rest = replicas.iter().map(|replica| replica.rest.0);
        let most = sums.chain(rest).fold(0.0, f64::max);
        let mut spread: Vec<(u64, Vec<f64>)> =
            everybody.into_iter().filter(|(_, amounts)| amounts.len() > 1).collect();
        for (_, amounts) in &mut spread {
            amounts.sort_by(f64::total_cmp);
        }
        Spread { over: spread, most }
    }

    /// `u / level` of each that asks for more than `level`.
    fn weights(&self, level: f64) -> Weights {
        let over = self.over.iter().filter(|(_, amounts)| amounts.iter().sum::<f64>() > level);
        over.map(|(digest, amounts)| (*digest, level_of(level, amounts) / level.max(f64::MIN_POSITIVE)))
            .filter(|(_, weight)| *weight < 1.0)
            .collect()
    }
}

/// The level at which the lesser of it and each amount sum to `whole`; amounts in rising order.
fn level_of(whole: f64, amounts: &[f64]) -> f64 {
    let (mut left, mut heads) = (whole, amounts.len());
    for amount in amounts {
        let even = left / heads as f64;
        if *amount >= even {
            return even;
        }
        left -= amount;
        heads -= 1;
    }
    amounts.last().copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(digest: u64, amount: f64) -> Row {
        Row { address: Some(digest), credential: None, amount }
    }

    fn replica(rows: &[(u64, f64)]) -> Demand {
        Demand::new(rows.iter().map(|(digest, amount)| address(*digest, *amount)).collect(), 0.0, 0.0)
    }

    fn parts(pool: f64, replicas: &[Demand]) -> Vec<f64> {
        let share = share(pool, replicas).unwrap();
        replicas.iter().map(|replica| replica.within(&share)).collect()
    }

    fn close(a: &[f64], b: &[f64]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3 * b.abs().max(1.0)), "{a:?} not {b:?}");
    }

    #[test]
    fn a_flood_over_three_replicas_is_one_flood() {
        // Nine polite ones at the first replica, the flooder (0) at all: a tenth each of 100.
        let polite: Vec<(u64, f64)> = (1..=9).map(|digest| (digest, 10.0)).chain([(0, 700.0)]).collect();
        let replicas = [replica(&polite), replica(&[(0, 700.0)]), replica(&[(0, 600.0)])];
        let share = share(100.0, &replicas).unwrap();
        assert!((share.level - 10.0).abs() < 1e-3, "{share:?}");
        close(&parts(100.0, &replicas), &[93.333, 3.333, 3.333]);
        assert!((share.weights[&0] - 1.0 / 3.0).abs() < 1e-6 && share.weights.len() == 1, "{share:?}");
    }

    #[test]
    fn an_identity_at_one_replica_has_its_share_of_the_whole() {
        // Four at one replica and one at another: a fifth each, not an eighth and a half.
        let replicas = [replica(&[(1, 90.0), (2, 90.0), (3, 90.0), (4, 90.0)]), replica(&[(5, 900.0)])];
        close(&parts(100.0, &replicas), &[80.0, 20.0]);
    }

    #[test]
    fn a_modest_use_of_one_replica_does_not_suffer_from_the_same_ones_flood_at_another() {
        let replicas = [replica(&[(1, 5.0), (2, 500.0)]), replica(&[(1, 500.0)])];
        close(&parts(100.0, &replicas), &[55.0, 45.0]);
    }

    #[test]
    fn tokens_and_addresses_are_held_to_one_share_over_all_replicas() {
        let row = |address, credential, amount| Row { address, credential: Some(credential), amount };
        // One token behind three addresses, one at each replica, beside one who shows none.
        let replicas = [
            Demand::new(vec![row(Some(1), 7, 300.0), address(9, 300.0)], 0.0, 0.0),
            Demand::new(vec![row(Some(2), 7, 300.0)], 0.0, 0.0),
            Demand::new(vec![row(Some(3), 7, 300.0)], 0.0, 0.0),
        ];
        close(&parts(90.0, &replicas), &[60.0, 15.0, 15.0]);
        // One address that invents a token at each replica.
        let replicas = [
            Demand::new(vec![row(Some(1), 7, 300.0), address(9, 300.0)], 0.0, 0.0),
            Demand::new(vec![row(Some(1), 8, 300.0)], 0.0, 0.0),
        ];
        close(&parts(90.0, &replicas), &[67.5, 22.5]);
    }

    #[test]
    fn many_unnamed_ones_count_as_many() {
        let replicas = [Demand::new(Vec::new(), 300.0, 3.0), replica(&[(5, 900.0)])];
        close(&parts(100.0, &replicas), &[75.0, 25.0]);
        let replicas = [Demand::of_one_unknown(60.0), replica(&[(5, 900.0)])];
        close(&parts(100.0, &replicas), &[50.0, 50.0]);
    }

    #[test]
    fn enough_for_all_needs_no_level() {
        assert_eq!(share(100.0, &[replica(&[(1, 40.0)]), replica(&[(1, 60.0)])]), None);
    }

    #[test]
    fn a_ceiling_is_divided_among_the_replicas_of_an_identity_that_exceeds_it() {
        let replicas = [replica(&[(1, 8.0), (2, 3.0)]), replica(&[(1, 1.0), (2, 3.0)])];
        let weights = hold_to(6.0, &replicas);
        assert_eq!(weights.keys().copied().collect::<Vec<_>>(), [1], "the other does not");
        assert!((weights[&1] - 5.0 / 6.0).abs() < 1e-9, "{weights:?}: 5 and 1 make 6");
    }

    proptest! {
        /// Of addresses alone: each gets the lesser of what it asks for and the level, at all its
        /// replicas together, and nothing is left over.
        #[test]
        fn the_shares_are_max_min_over_identities(
            asks in prop::collection::vec(prop::collection::vec((0_u64..12, 0.1_f64..1e4), 0..10), 1..6),
            pool in 1.0_f64..1e4,
        ) {
            let replicas: Vec<Demand> = asks.iter().map(|rows| replica(rows)).collect();
            let whole: f64 = replicas.iter().map(Demand::sum).sum();
            let Some(share) = share(pool, &replicas) else {
                prop_assert!(whole <= pool);
                return Ok(());
            };
            let mut asked: BTreeMap<u64, f64> = BTreeMap::new();
            let mut got: BTreeMap<u64, f64> = BTreeMap::new();
            for (rows, whole) in asks.iter().zip(&replicas) {
                for (digest, amount) in rows {
                    let alone = Demand { rows: vec![address(*digest, *amount)], ..whole.clone() };
                    *asked.entry(*digest).or_default() += amount;
                    *got.entry(*digest).or_default() += alone.within(&share);
                }
            }
            for (digest, asked) in asked {
                let fair = asked.min(share.level);
                prop_assert!((got[&digest] - fair).abs() <= 1e-6 * fair.max(1.0), "{digest}: {got:?}, {share:?}");
            }
            prop_assert!((got.values().sum::<f64>() - pool).abs() <= 1e-6 * pool);
        }

        /// Whatever tokens are shown: no address and no token gets more than the level, over all replicas.
        #[test]
        fn neither_dimension_gets_more_than_the_level(
            asks in prop::collection::vec(
                prop::collection::vec((0_u64..6, prop::option::of(100_u64..106), 0.1_f64..1e3), 1..10), 1..5),
            pool in 1.0_f64..500.0,
        ) {
            let row = |(address, credential, amount): &(u64, Option<u64>, f64)| {
                Row { address: Some(*address), credential: *credential, amount: *amount }
            };
            let replicas: Vec<Demand> =
                asks.iter().map(|rows| Demand::new(rows.iter().map(row).collect(), 0.0, 0.0)).collect();
            let Some(share) = share(pool, &replicas) else { return Ok(()) };
            let mut got: BTreeMap<u64, f64> = BTreeMap::new();
            for replica in &replicas {
                for row in &replica.rows {
                    let alone = Demand { rows: vec![*row], ..replica.clone() }.within(&share);
                    row.digests().for_each(|digest| *got.entry(digest).or_default() += alone);
                }
            }
            prop_assert!(got.values().all(|got| *got <= share.level * (1.0 + 1e-9)), "{got:?}, {share:?}");
        }
    }
}
