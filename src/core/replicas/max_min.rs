//! Who gets how much: max-min fairness, in one number.
//!
//! Of a limit `L` and demands `d_i`, max-min fairness gives `min(d_i, level)` with the level at
//! which the sum is `L` (Bertsekas & Gallager, *Data Networks*, 6.5.2: a replica can get more only
//! if another that has no more gets less). The level is all a replica needs to know of the others.
//! Where demand is below the limit there is no level; what is left (`slack`) goes to all evenly,
//! so that a burst finds room where it arrives, and one part of it stays for a newcomer. When
//! nothing is left, a hundredth is kept back for one.
//!
//! In whole grains the level is rounded up and the book stops at the limit: of 20 permits among
//! three, two get 7 and one 6. A limit with fewer grains than there are replicas that want some
//! has the level 0: it goes round, see [`super::lease_book`].

use serde::{Deserialize, Serialize};

/// How one limit is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Level {
    /// The whole, in grains.
    pub limit: u64,
    /// No replica gets more than this; `None`: each gets what it asks for.
    pub level: Option<u64>,
    /// ... and this much more.
    pub slack: u64,
}

/// What every replica has whatever it asks for, so that its next request finds something: a
/// twentieth of an even share, and one grain at least where there is one for each.
pub fn minimum(limit: u64, replicas: u64) -> u64 {
    let replicas = replicas.max(1);
    if limit < replicas { 0 } else { (limit / (20 * replicas)).max(1) }
}

/// What is divided among so many when they want it all: a hundredth stays for a newcomer.
pub(crate) fn spare_one_part(limit: u64, reserved: u64, count: u64) -> u64 {
    let pool = limit.saturating_sub(reserved);
    pool - (limit / 100).min(pool / (count + 1))
}

/// Divides `limit`, of which `reserved` is kept for replicas that fell silent.
pub fn divide(limit: u64, reserved: u64, demands: &[u64]) -> Level {
    let count = demands.len() as u64;
    let pool = limit.saturating_sub(reserved);
    let least = minimum(limit, count);
    let mut demands: Vec<u64> = demands.iter().map(|demand| (*demand).max(least)).collect();
    let wanted = demands.iter().fold(0_u64, |sum, demand| sum.saturating_add(*demand));
    if wanted <= pool {
        return Level { limit, level: None, slack: (pool - wanted) / (count + 1) };
    }
    let pool = spare_one_part(limit, reserved, count);
    let wanting = demands.iter().filter(|demand| **demand > 0).count() as u64;
    if pool < wanting {
        return Level { limit, level: Some(0), slack: 0 };
    }
    demands.sort_unstable();
    let (mut left, mut heads) = (pool, count);
    for demand in demands {
        let even = left.div_ceil(heads);
        if demand >= even {
            return Level { limit, level: Some(even), slack: 0 };
        }
        left -= demand;
        heads -= 1;
    }
    Level { limit, level: None, slack: 0 }
}

impl Level {
    /// What one of so many replicas is to have, by its demand. Nothing is said where the limit
    /// goes round.
    pub fn wish(&self, demand: u64, replicas: u64) -> u64 {
        let least = minimum(self.limit, replicas);
        self.need(demand).max(least).saturating_add(self.slack).min(self.limit)
    }

    /// The same for one that winds up, and needs nothing to spare.
    pub fn need(&self, demand: u64) -> u64 {
        self.level.map_or(demand, |level| demand.min(level)).min(self.limit)
    }

    /// Whether it goes round.
    pub(crate) fn goes_round(&self) -> bool {
        self.level == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(limit: u64, demands: &[u64]) -> Vec<u64> {
        let level = divide(limit, 0, demands);
        demands.iter().map(|demand| level.wish(*demand, demands.len() as u64)).collect()
    }

    #[test]
    fn a_small_demand_is_met_and_the_others_get_the_rest_evenly() {
        // A hundredth is kept for a newcomer.
        assert_eq!(shares(10_000, &[1_000, 100_000, 100_000]), [1_000, 4_450, 4_450]);
        assert_eq!(shares(20, &[100, 100, 100]), [7, 7, 7], "the book stops the third at 6");
    }

    #[test]
    fn what_is_not_asked_for_is_spread_and_a_part_left_for_a_newcomer() {
        assert_eq!(shares(1_000, &[0, 0, 0]), [254, 254, 254]);
        assert_eq!(shares(1_000, &[400, 0, 0]), [542, 158, 158]);
    }

    #[test]
    fn what_is_kept_for_the_silent_is_not_divided() {
        let level = divide(900, 300, &[10_000, 10_000]);
        assert_eq!(level.level, Some(296));
    }

    #[test]
    fn fewer_grains_than_clients_go_round() {
        assert!(divide(2, 0, &[5, 5, 5]).goes_round());
        assert!(!divide(2, 0, &[5, 0, 0]).goes_round());
        assert_eq!(shares(2, &[2, 0, 0]), [2, 0, 0]);
    }

    proptest! {
        #[test]
        fn the_division_is_max_min(
            limit in 0_u64..1_000_000, demands in prop::collection::vec(0_u64..1_000_000, 1..40),
        ) {
            let count = demands.len() as u64;
            let level = divide(limit, 0, &demands);
            prop_assume!(!level.goes_round());
            let got: Vec<u64> = demands.iter().map(|demand| level.wish(*demand, count)).collect();
            let sum: u64 = got.iter().sum();
            prop_assert!(sum <= limit + count, "rounded up by less than one each");
            if let Some(top) = level.level {
                prop_assert!(sum + limit / 100 + count >= limit, "nothing is left lying: {sum} of {limit}");
                for (got, demand) in got.iter().zip(&demands) {
                    prop_assert!(*got >= (*demand).min(top), "cut only at the level");
                }
            } else {
                prop_assert!(got.iter().zip(&demands).all(|(got, demand)| got >= demand));
            }
        }
    }
}
