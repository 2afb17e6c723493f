//! From bytes on the wire to a class and a client.
pub mod agents;
pub mod catalogue;
pub mod classify;
pub mod client_id;
pub mod facts;
pub mod identify;
pub mod path;
pub mod profile;
pub mod query;
mod route_tree;
