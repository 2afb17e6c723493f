//! What holds a limit: the table of numbers, and the clocks, counters and queues they govern.
pub mod clock;
pub mod common;
pub mod cost;
pub mod flow;
pub mod gate;
pub mod in_flight;
pub mod meter;
pub mod queue;
pub mod rate;
pub mod share;
pub mod table;

#[cfg(test)]
mod fairness_tests;
