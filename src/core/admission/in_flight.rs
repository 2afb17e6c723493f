//! A concurrency limit: a counter held against whatever the table says at that moment.
//!
//! The counter outlives every table. Lowering the limit below what is under way admits
//! nothing until enough has drained; it interrupts nothing.

use super::sync::{AtomicU32, Ordering};

/// How many are under way.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU32);

impl InFlight {
    /// Counts one more if that stays within `limit`.
    pub fn try_enter(&self, limit: u32) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| (count < limit).then_some(count + 1))
            .is_ok()
    }

    /// Counts one more whatever the limit: shadow mode, exempt routes.
    pub fn enter(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one less. One that was never counted is not subtracted.
    pub fn leave(&self) {
        let left = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| count.checked_sub(1));
        debug_assert!(left.is_ok(), "a permit was given back twice");
    }

    /// How many are under way.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lowered_limit_only_drains() {
        let permits = InFlight::default();
        assert!((0..8).all(|_| permits.try_enter(8)));
        assert!(!permits.try_enter(4));
        (0..4).for_each(|_| permits.leave());
        assert!(!permits.try_enter(4));
        permits.leave();
        assert!(permits.try_enter(4));
    }

    proptest! {
        #[test]
        fn what_enters_finds_the_count_below_the_limit(steps in prop::collection::vec((any::<bool>(), 0u32..20), 0..200)) {
            let permits = InFlight::default();
            for (entering, limit) in steps {
                let before = permits.count();
                if entering {
                    prop_assert_eq!(permits.try_enter(limit), before < limit);
                } else if before > 0 {
                    permits.leave();
                }
            }
        }
    }
}
