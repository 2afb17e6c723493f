//! Who of those that share a module must give, and how much?
//!
//! A module's pressure is felt by all its classes and caused by few. If each class answered
//! the latency it feels, a flood of `state-heavy` would make the loop cut `state-light`, whose
//! requests are slow through no fault of their own. So a module's need to cut is divided
//! before any law sees it.
//!
//! *Division.* [`divide`] is weighted max-min with floors: the unique allotment
//! `x_i = min(want_i, max(floor_i, level * weight_i))` with `sum(x) = min(capacity, sum(want))`
//! (water-filling; Bertsekas and Gallager, "Data Networks", 6.5.2; Kubernetes' `conc_alloc`
//! solves the same). `f(level) = sum(x)` is continuous, piecewise linear and strictly rising
//! until every want is met, so one level solves it and the order of the claims is of no
//! consequence. A claim can get more only from one that has less, measured per weight.
//!
//! *Blame.* Under pressure P the module bears its present work divided by P. That capacity is
//! divided among the classes by priority (`weight = 2^priority`) and work (rate x learnt
//! cost, in busy seconds per second). A class whose work fits its allotment is innocent: its
//! law sees pressure 1 and holds. A class above it sees `work / allotment`, which is how much
//! too much it does: the heaviest above its share is cut first and deepest, and the sum of
//! the cuts is what the module needs. Below pressure 1 no class is to blame and all see P.
//!
//! Floors that do not fit together are scaled down in proportion. What is no number, or
//! negative, counts as 0.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One claim on something divisible.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// What it would use, in the unit of the capacity.
    pub want: f64,
    /// Its weight under contention; above 0.
    pub weight: f64,
    /// It gets at least this, or what it wants if that is less.
    pub floor: f64,
}

/// What a class's law is to see of its module's pressure.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Blame {
    /// The share of its module's work that it may do, in the unit of the claims.
    pub allotted: f64,
    /// The pressure that its law sees.
    pub pressure: f64,
}

/// The weight of a class of this priority: each step is worth twice the one below.
#[must_use]
pub fn weight(priority: crate::policy::Priority) -> f64 {
    f64::from(priority.0).exp2()
}

/// Divides `capacity` among the claims; see the head of this file for what is unique about it.
#[must_use]
pub fn divide(capacity: f64, claims: &[Claim]) -> Vec<f64> {
    let capacity = amount(capacity);
    let claims: Vec<Claim> = claims.iter().map(Claim::clean).collect();
    let wants: f64 = claims.iter().map(|claim| claim.want).sum();
    if wants <= capacity {
        return claims.iter().map(|claim| claim.want).collect();
    }
    let floors: f64 = claims.iter().map(|claim| claim.floor).sum();
    if floors >= capacity {
        let scale = if floors > 0.0 { capacity / floors } else { 0.0 };
        return claims.iter().map(|claim| claim.floor * scale).collect();
    }
    let level = water_level(capacity, &claims);
    claims.iter().map(|claim| claim.at(level)).collect()
}

/// Divides a module's need to cut: `pressure` is the module's, `claims` hold each class's
/// work now, in busy seconds per second. Without pressure above 1 all see `pressure`.
#[must_use]
pub(crate) fn apportion_cut(pressure: f64, claims: &[Claim]) -> Vec<Blame> {
    if pressure.is_nan() || pressure <= 1.0 {
        return claims.iter().map(|claim| Blame { allotted: amount(claim.want), pressure }).collect();
    }
    let work: f64 = claims.iter().map(|claim| amount(claim.want)).sum();
    let allotments = divide(work / pressure, claims);
    let blame = |(claim, allotted): (&Claim, f64)| {
        let want = amount(claim.want);
        // Without any work to go by, all are blamed alike.
        let share = if work <= 0.0 {
            pressure
        } else if want <= allotted {
            1.0
        } else {
            (want / allotted).min(pressure * claims.len() as f64)
        };
        Blame { allotted, pressure: share }
    };
    claims.iter().zip(allotments).map(blame).collect()
}

/// A number that can be divided: NaN, infinity and what is below 0 are nothing.
fn amount(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

impl Claim {
    fn clean(&self) -> Claim {
        let want = amount(self.want);
        Claim { want, weight: amount(self.weight), floor: amount(self.floor).min(want) }
    }

    /// What this claim gets at a water level.
    fn at(&self, level: f64) -> f64 {
        (level * self.weight).max(self.floor).min(self.want)
    }
}

/// The level at which the claims sum up to `capacity`, which lies above the floors and below
/// the wants.
fn water_level(capacity: f64, claims: &[Claim]) -> f64 {
    let weighted = || claims.iter().filter(|claim| claim.weight > 0.0);
    // Where a claim leaves its floor, and where it is satisfied.
    let mut bends: Vec<f64> =
        weighted().flat_map(|claim| [claim.floor / claim.weight, claim.want / claim.weight]).collect();
    bends.sort_by(f64::total_cmp);
    let mut below = 0.0;
    for bend in bends {
        let filled: f64 = claims.iter().map(|claim| claim.at(bend)).sum();
        if filled >= capacity {
            let base: f64 = claims.iter().map(|claim| claim.at(below)).sum();
            // Between two bends the rising claims are the same.
            let middle = f64::midpoint(below, bend);
            let slope: f64 = weighted()
                .filter(|claim| {
                    let level = middle * claim.weight;
                    level > claim.floor && level < claim.want
                })
                .map(|claim| claim.weight)
                .sum();
            return if slope > 0.0 { below + (capacity - base) / slope } else { bend };
        }
        below = bend;
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Priority;
    use proptest::prelude::*;

    fn equal(wants: &[f64]) -> Vec<Claim> {
        wants.iter().map(|&want| Claim { want, weight: 1.0, floor: 0.0 }).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (a, b) in got.iter().zip(expected) {
            assert!((a - b).abs() < 1e-9, "{got:?} is not {expected:?}");
        }
    }

    /// `TestFairAlloc` of kubernetes/apiserver at 24a394e, `queueset_test.go`.
    #[test]
    fn the_known_divisions() {
        assert_close(&divide(42.0, &equal(&[0.0, 0.0])), &[0.0, 0.0]);
        assert_close(&divide(21.0, &equal(&[1.0, 9.0, 7.0, 3.0])), &[1.0, 9.0, 7.0, 3.0]);
        assert_close(&divide(42.0, &equal(&[47.0, 0.0])), &[42.0, 0.0]);
        assert_close(&divide(42.0, &equal(&[1.0, 47.0])), &[1.0, 41.0]);
        assert_close(&divide(14.0, &equal(&[3.0, 7.0, 9.0, 1.0])), &[3.0, 5.0, 5.0, 1.0]);
    }

    #[test]
    fn a_weight_counts_only_under_contention() {
        let claims = |wants: [f64; 2]| {
            [
                Claim { want: wants[0], weight: weight(Priority(3)), floor: 0.0 },
                Claim { want: wants[1], weight: weight(Priority(1)), floor: 0.0 },
            ]
        };
        assert_close(&divide(10.0, &claims([20.0, 20.0])), &[8.0, 2.0]);
        assert_close(&divide(10.0, &claims([3.0, 20.0])), &[3.0, 7.0]);
    }

    #[test]
    fn a_floor_is_kept_and_floors_that_do_not_fit_shrink_together() {
        let claim = |floor| Claim { want: 20.0, weight: 1.0, floor };
        assert_close(&divide(10.0, &[claim(7.0), claim(0.0)]), &[7.0, 3.0]);
        assert_close(&divide(10.0, &[claim(15.0), claim(5.0)]), &[7.5, 2.5]);
    }

    #[test]
    fn the_flooding_class_is_blamed_and_the_innocent_are_not() {
        // StateHead: state-heavy does 0.95 busy s/s, state-light 0.04, state-logs 0.01.
        let claims = equal(&[0.95, 0.04, 0.01]);
        let blame = apportion_cut(2.0, &claims);
        assert!((blame[0].pressure - 0.95 / 0.45).abs() < 1e-9, "{blame:?}");
        assert!((blame[1].pressure - 1.0).abs() < 1e-12 && (blame[2].pressure - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_high_priority_class_is_cut_last() {
        let claims = [
            Claim { want: 0.5, weight: weight(Priority(2)), floor: 0.0 },
            Claim { want: 0.5, weight: weight(Priority(8)), floor: 0.0 },
        ];
        let blame = apportion_cut(1.5, &claims);
        assert!(blame[0].pressure > 2.0, "{blame:?}");
        assert!((blame[1].pressure - 1.0).abs() < 1e-12, "{blame:?}");
    }

    #[test]
    fn without_pressure_all_see_the_same() {
        for pressure in [0.3, 1.0, f64::NAN] {
            for blame in apportion_cut(pressure, &equal(&[0.9, 0.1])) {
                assert_eq!(blame.pressure.to_bits(), pressure.to_bits());
            }
        }
    }

    #[test]
    fn without_work_to_go_by_all_are_blamed_alike() {
        for blame in apportion_cut(3.0, &equal(&[0.0, f64::NAN])) {
            assert!((blame.pressure - 3.0).abs() < 1e-12);
        }
    }

    fn any_claims() -> impl Strategy<Value = Vec<Claim>> {
        let claim = (0.0_f64..100.0, 0_u8..10, 0.0_f64..20.0);
        prop::collection::vec(
            claim.prop_map(|(want, priority, floor)| Claim {
                want,
                weight: weight(Priority(priority)),
                floor,
            }),
            1..12,
        )
    }

    proptest! {
        #[test]
        fn a_division_spends_all_there_is_and_is_max_min(claims in any_claims(), capacity in 0.1_f64..500.0) {
            let shares = divide(capacity, &claims);
            let total: f64 = shares.iter().sum();
            let wants: f64 = claims.iter().map(|claim| claim.want).sum();
            prop_assert!((total - capacity.min(wants)).abs() < 1e-6, "{total} of {capacity}, wanted {wants}");
            let floors: f64 = claims.iter().map(|claim| claim.floor.min(claim.want)).sum();
            for (claim, share) in claims.iter().zip(&shares) {
                prop_assert!(*share <= claim.want + 1e-9);
                if floors <= capacity {
                    prop_assert!(*share >= claim.floor.min(claim.want) - 1e-9);
                    // No claim above its floor has more per weight than one that is not satisfied.
                    if *share < claim.want - 1e-6 {
                        for (other, rich) in claims.iter().zip(&shares) {
                            let above_floor = *rich > other.floor.min(other.want) + 1e-6;
                            prop_assert!(
                                !above_floor || rich / other.weight <= share / claim.weight + 1e-6,
                                "{shares:?}"
                            );
                        }
                    }
                }
            }
        }

        /// `TestConcAlloc` of kubernetes/apiserver at 24a394e, `conc_alloc_test.go`: one proportion
        /// solves it, and a share lies off it only at its own bound. (Their target is our weight,
        /// their bounds are our floor and want. Bounds that do not fit are errors there; here floors
        /// shrink together and wants are met, because a module's pressure has to go somewhere.)
        #[test]
        fn one_level_explains_every_share(claims in any_claims(), at in 0.01_f64..0.99) {
            let floors: f64 = claims.iter().map(|claim| claim.floor.min(claim.want)).sum();
            let wants: f64 = claims.iter().map(|claim| claim.want).sum();
            let shares = divide(floors + at * (wants - floors), &claims);
            let free = claims.iter().zip(&shares).find(|(claim, share)| {
                **share > claim.floor.min(claim.want) + 1e-9 && **share < claim.want - 1e-9
            });
            if let Some((claim, share)) = free {
                let level = share / claim.weight;
                for (claim, share) in claims.iter().zip(&shares) {
                    let due = (level * claim.weight).max(claim.floor.min(claim.want)).min(claim.want);
                    prop_assert!((share - due).abs() < 1e-6, "{share} where {due} is due: {claims:?}");
                }
            }
        }

        #[test]
        fn the_cuts_together_are_what_the_module_needs(claims in any_claims(), pressure in 1.01_f64..5.0) {
            let work: f64 = claims.iter().map(|claim| claim.want).sum();
            prop_assume!(work > 1.0);
            let left: f64 = apportion_cut(pressure, &claims).iter().map(|blame| blame.allotted).sum();
            prop_assert!((left - work / pressure).abs() < 1e-6);
        }
    }
}
