//! The proxy: takes requests from the wire, asks the core, forwards or refuses.
pub mod body;
pub mod circuit_breaker;
pub mod coalesce;
pub mod cors;
pub mod forward;
pub mod framing_guard;
pub mod h1_connection;
pub mod handle;
pub mod headers;
pub mod id;
pub mod keepalive;
pub mod listen;
pub mod log_fanout;
pub mod permit_guard;
pub mod proxy_protocol;
pub mod ratelimit;
pub mod reject;
pub mod request_validation;
pub mod sessions;
pub mod shared_answer;
pub mod single_flight;
pub mod slow_reader;
pub mod state;
pub mod stream;
pub mod throttle;
pub mod tls;
pub mod tunnel;
pub mod upload;
pub mod upstream;
pub mod websocket;

/// What the single-flight and the log fan-out are made of. `tests/loom.rs` compiles them once more, on loom's.
mod sync {
    pub(super) use std::sync::{Arc, Mutex, MutexGuard};
    pub(super) use tokio::sync::watch;
}
