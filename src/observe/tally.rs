//! What is counted as events pass by, for the page of metrics.

use crate::core::event::{Event, LimitKind};
use std::collections::BTreeMap;

/// Which way a limit went.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Direction {
    /// It was raised.
    Up,
    /// It was cut.
    Down,
}

/// What is counted as events pass by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventCounts {
    adjustments: BTreeMap<(String, &'static str, Direction), u64>,
}

impl EventCounts {
    /// Takes an event in. Adjustments that a guardrail held back moved nothing and do not count.
    pub fn take(&mut self, event: &Event) {
        let Event::Adjustment(adjustment) = event else { return };
        let direction = match adjustment.new.total_cmp(&adjustment.old) {
            std::cmp::Ordering::Greater => Direction::Up,
            std::cmp::Ordering::Less => Direction::Down,
            std::cmp::Ordering::Equal => return,
        };
        let key = (adjustment.class.clone(), adjustment.limit.label(), direction);
        *self.adjustments.entry(key).or_default() += 1;
    }

    /// How many adjustments moved this limit this way.
    pub(super) fn adjustments(&self, class: &str, limit: LimitKind, direction: Direction) -> u64 {
        self.adjustments.get(&(class.to_owned(), limit.label(), direction)).copied().unwrap_or(0)
    }
}
