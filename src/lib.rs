//! rayguard: adaptive load shedding in front of a Ray head.
//!
//! The rooms, in the order of the data. A request: `proxy` takes it from the wire, `core`
//! decides, `proxy` forwards or sheds it. A reading: `observe` scrapes Ray, `core` turns it
//! into signals, moves limits and says why, `observe` writes that down. `runtime` owns the
//! clock and the tasks, `replicas` shares limits with other replicas, `admin` shows and
//! overrides, `sim` drives the very same core from an event heap, and `lab` questions `sim`.

pub use rayguard_config as config;
pub use rayguard_core as core;
pub use rayguard_lab as lab;
pub use rayguard_proxy as proxy;
pub use rayguard_sim as sim;

pub mod admin;
pub mod cli;
pub mod observe;
pub mod replicas;
pub mod runtime;
