//! The deterministic simulator: the production core, a modelled Ray head, virtual time.
pub mod arrivals;
pub mod calibration;
pub mod chance;
pub mod exposition;
pub mod faults;
pub mod gauges;
pub mod head;
pub mod heap;
pub mod plant;
pub mod report;
pub mod scenario;
pub mod trace;
pub mod verdict;
pub mod world;
