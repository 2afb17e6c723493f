//! A Ray head that is not one: a real HTTP server with Ray's routes and metrics over the simulated plant.
pub mod routes;
pub mod server;

pub use server::{Counters, Emulator, EmulatorConfig, MetricsFault, Running};
