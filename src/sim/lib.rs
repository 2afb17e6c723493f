//! The deterministic simulator: the production core, a modelled Ray head, virtual time.
mod arrivals;
mod baselines;
mod cluster;
mod control_loop;
#[cfg(test)]
mod critical_gain_tests;
#[cfg(test)]
mod defects_tests;
pub mod exposition;
mod faults;
mod gauges;
pub mod head;
pub mod heap;
pub mod plant;
mod policy;
mod proxy;
mod recovery;
#[cfg(test)]
mod reload_tests;
pub mod rng;
pub mod scenario;
pub mod tally;
pub mod timeline;
pub mod trace;
pub mod verdict;
pub mod world;
