//! The part that decides: pure, deterministic, the same in production and in simulation.
//!
//! `now` is an argument. There is no clock, I/O, thread, randomness or global in here, and
//! no tokio, hyper, reqwest or tracing: Cargo.toml lets none in, and `tests/purity.rs` reads the
//! sources for what the standard library would.
//! In the order of the data: a request becomes facts, a class and a client ([`request`]);
//! the admission controller admits, queues or sheds it against the limit table ([`admission`]);
//! readings of Ray become signals ([`signal`]); signals and the proxy's own latency move the
//! limits ([`control`], [`controller`]); every move is a typed event ([`event`], [`alert`]). Who asked for what is counted beside
//! it all ([`usage`]); what came in and what became of it can be written down and replayed
//! ([`traffic_trace`]). Several replicas share one set of limits ([`replicas`]).

pub mod admission;
pub mod alert;
pub mod control;
pub mod controller;
pub mod event;
mod format;
pub(crate) mod limit_kind;
pub mod policy;
pub mod replicas;
pub mod request;
pub mod signal;
pub mod time;
pub mod traffic_trace;
pub mod usage;
