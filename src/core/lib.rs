//! The part that decides: pure, deterministic, the same in production and in simulation.
//!
//! `now` is an argument. There is no clock, I/O, thread, randomness or global in here, and
//! no tokio, hyper, reqwest or tracing: Cargo.toml lets none in, and `tests/purity.rs` reads the
//! sources for what the standard library would.
//! In the order of the data: a request becomes facts, a class and a client ([`request`]);
//! the admission controller admits, queues or sheds it against the limit table ([`admission`]);
//! readings of Ray become signals ([`signal`]); signals and the proxy's own latency move the
//! limits ([`control`], [`engine`]); every move is a typed event ([`journal`], [`alert`]). Who asked for what is counted beside
//! it all ([`census`]); what came in and what became of it can be written down and replayed
//! ([`recording`]). Several replicas share one set of limits ([`fleet`]).

pub mod admission;
pub mod alert;
pub mod census;
pub mod control;
pub mod engine;
pub mod fleet;
pub mod journal;
pub mod policy;
pub mod recording;
pub mod request;
pub mod signal;
pub mod time;
