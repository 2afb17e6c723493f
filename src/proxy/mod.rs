//! The proxy: takes requests from the wire, asks the core, forwards or refuses.
pub mod body;
pub mod circuit_breaker;
pub mod coalesce;
pub mod cors;
pub mod forward;
pub mod handle;
pub mod headers;
pub mod id;
pub mod listen;
pub mod patience;
pub mod permit_guard;
pub mod preamble;
pub mod ratelimit;
pub mod readers;
pub mod reject;
pub mod sessions;
pub mod shape;
pub mod shared_answer;
pub mod sieve;
pub mod single_flight;
pub mod state;
pub mod stream;
pub mod tail;
pub mod throttle;
pub mod tls;
pub mod tunnel;
pub mod upload;
pub mod upstream;
pub mod websocket;
pub mod wire;

/// What the single-flight and the log fan-out are made of. `tests/loom.rs` compiles them once more, on loom's.
mod sync {
    pub(super) use std::sync::{Arc, Mutex, MutexGuard};
    pub(super) use tokio::sync::watch;
}
