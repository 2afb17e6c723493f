//! The door: takes requests from the wire, asks the core, forwards or refuses.
pub mod body;
pub mod coalesce;
pub mod door;
pub mod forward;
pub mod handle;
pub mod headers;
pub mod listen;
pub mod preamble;
pub mod reject;
pub mod sessions;
pub mod shape;
pub mod sieve;
pub mod slot;
pub mod stream;
pub mod tls;
pub mod tunnel;
pub mod upstream;
