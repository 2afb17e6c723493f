//! The deterministic simulator: the production core, a modelled Ray head, virtual time.
pub mod ablation;
pub mod arrivals;
pub mod baselines;
pub mod calibration;
pub mod cluster;
pub mod control_loop;
#[cfg(test)]
mod critical_gain_tests;
#[cfg(test)]
mod defects_tests;
pub mod exposition;
pub mod faults;
pub mod gauges;
pub mod head;
pub mod heap;
pub mod identify;
pub mod incident;
pub mod model_fit;
pub mod monte_carlo;
pub mod page;
pub mod plant;
pub mod proxy;
pub mod recovery;
#[cfg(test)]
mod reload_tests;
pub mod report;
pub mod rng;
pub mod scenario;
pub mod tally;
pub mod timeline;
pub mod trace;
pub mod verdict;
pub mod world;
