//! What holds a limit: the table of numbers, and the clocks, counters and queues they govern.
pub mod ask;
pub(crate) mod client_limits;
pub mod clock;
pub mod controller;
pub mod cost;
pub mod demand;
pub mod flow;
pub mod history;
pub mod in_flight;
pub mod meter;
pub mod parked;
mod pause;
pub mod queue;
pub mod rate;
pub(crate) mod shared_credential;
pub mod table;
pub mod tiers;

/// What the clock and the counter are made of. `tests/loom.rs` compiles both once more, on loom's.
mod sync {
    pub(super) use std::hint::spin_loop;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
}

#[cfg(test)]
mod apf_tests;
#[cfg(test)]
mod fairness_tests;
