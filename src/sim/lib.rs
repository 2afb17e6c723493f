//! The deterministic simulator: the production core, a modelled Ray head, virtual time.
pub mod ablation;
pub mod arrivals;
pub mod calibration;
pub mod chance;
pub mod cluster;
pub mod course;
#[cfg(test)]
mod critical_gain;
#[cfg(test)]
mod defects;
pub mod exposition;
pub mod faults;
pub mod gauges;
pub mod head;
pub mod heap;
pub mod identify;
pub mod incident;
pub mod likeness;
pub mod monte_carlo;
pub mod page;
pub mod plant;
pub mod proxy;
pub mod recovery;
pub mod report;
pub mod rivals;
pub mod scenario;
pub mod steering;
pub mod tally;
pub mod trace;
pub mod verdict;
pub mod world;
