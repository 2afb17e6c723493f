//! The proxy: takes requests from the wire, asks the core, forwards or sheds.
mod circuit_breaker;
mod client_body;
pub mod clock;
pub mod coalesce;
mod connections;
pub mod cores;
mod cors;
mod forward;
mod framing_guard;
pub mod h1_connection;
pub mod handle;
pub mod headers;
mod id;
pub mod keepalive;
pub mod listen;
mod log_fanout;
pub mod permit_guard;
mod permits;
mod protocol;
pub mod proxy_protocol;
pub mod ratelimit;
mod reject;
mod request_validation;
mod response_body;
mod response_policy;
pub mod routing;
mod sessions;
pub mod shared_answer;
mod single_flight;
mod slow_reader;
pub mod state;
pub mod stream;
mod submitted;
pub mod tasks;
pub mod throttle;
pub mod tls;
pub mod trace;
pub mod tunnel;
mod upload;
pub mod upstream;
pub mod websocket;

/// What the single-flight and the log fan-out are made of. `tests/loom.rs` compiles them once more, on loom's.
mod sync {
    pub(super) use std::sync::{Arc, Mutex, MutexGuard};
    pub(super) use tokio::sync::watch;
}
